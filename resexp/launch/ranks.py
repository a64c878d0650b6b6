"""One network on several processes of this machine: torch's elastic launch from inside a job.

The job's own process holds the run directory, passes rank 0's messages on and hears signals. Rank 0
trains and writes as a run alone does; the others take the same steps and write nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from resexp.data import Images
from resexp.runs.messages import Failed, Message, Outcome, Step, Stopped, sendable, sender
from resexp.runs.records import Claim
from resexp.runs.run import Turns, build, claimed, load, untrained
from resexp.runs.run import train as train_alone
from resexp.runs.stop import Interrupted, Stop, stop_signals
from resexp.settings import Job
from resexp.train.device import choose_device, prepare, share_cores, threads_for
from resexp.train.fit import begin, fit
from resexp.train.ranks import Ranks

LOOK_EVERY = 0.1  # seconds between two looks at whether a signal came

#: How long a rank waits for another: rank 0 may have to write to a slow disk. One that died is
#: noticed at once.
PATIENCE = timedelta(days=1)


class RankFailed(Exception):
    """A rank ended in the middle of a job."""


def train(job: Job) -> Turns:
    """``resexp.runs.run.train`` on ``launch.ranks`` processes; it hears signals itself.

    Raises Interrupted, once the run is saved, if this process or a rank is asked to stop, the
    first error that a rank sends, and RankFailed if a rank dies.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with claimed(job) as claim:
        if claim in (Claim.done, Claim.busy):
            return untrained(job, claim)
        pipes = [get_context("spawn").Pipe(duplex=False) for _ in range(job.settings.launch.ranks)]
        with stop_signals() as stop, ThreadPoolExecutor(1) as thread:
            under_way = thread.submit(start, job, claim, tuple(theirs for _, theirs in pipes))
            failed = None
            for message in heard([ours for ours, _ in pipes], under_way, stop):
                if isinstance(message, Step):
                    yield message
                elif isinstance(message, Failed):
                    failed = failed or message.error
            try:
                end = under_way.result()[0]
            except ChildFailedError as error:
                if failed is not None:
                    raise failed from None
                if stop.signum is not None:  # Ctrl-C before the ranks listened, or twice
                    raise KeyboardInterrupt from None
                raise RankFailed(died(error)) from None
        if isinstance(end, Stopped):
            raise Interrupted(stop.signum or end.signum)
        return replace(cast(Outcome, end), job=job)


def start(job: Job, claim: Claim, pipes: tuple[Connection, ...]) -> dict[int, Any]:
    """Start the ranks and wait for them; returns what each returned.

    In a thread that is not the main one, so that torch leaves the signals to us.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("distributed.elastic", "distributed.launcher", "multiprocessing"):
        logger = logging.getLogger(f"torch.{name}")
        logger.addHandler(logging.NullHandler())  # what they have to say, we say
        logger.propagate = False
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=len(pipes),
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        start_method="spawn",
    )
    returned: dict[int, Any] = elastic_launch(config, work)(job, claim, pipes)
    return returned


def heard(
    pipes: list[Connection], under_way: Future[dict[int, Any]], stop: Stop
) -> Iterator[Message]:
    """What the ranks send until they are over; lets rank 0 know of a signal meanwhile."""
    pid = 0  # of rank 0, known from its first step on
    try:
        while not under_way.done() or any(pipe.poll() for pipe in pipes):
            for pipe in cast("list[Connection]", wait(pipes, LOOK_EVERY)):
                message: Message = pipe.recv()
                if isinstance(message, Step):
                    pid = message.record["environment"]["process"]
                yield message
            if stop.signum is not None:
                tell_to_stop(pid)
    finally:
        if not under_way.done():  # leaving in a hurry
            tell_to_stop(pid)


def tell_to_stop(pid: int) -> None:
    """Ask rank 0, once it is known, to save and stop; again and again, for it may not listen yet.

    It tells the others, and may have been told by the terminal.
    """
    with suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGTERM)


def died(error: Any) -> str:
    """What is known of a rank that ended without a word; the others then fail for want of it."""
    rank, failure = error.get_first_failure()
    killed = f"rank {rank} of this run was killed by signal {-failure.exitcode}"
    who = killed if failure.exitcode < 0 else "a rank of this run ended without a word"
    return f"{who}: run it again to go on"


def work(job: Job, claim: Claim, pipes: tuple[Connection, ...]) -> Outcome | Stopped | None:
    """What a rank does. Rank 0 returns the outcome; all return what stopped them."""
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    pipe, parent = pipes[ranks.rank], os.getppid()
    try:
        return work_as(ranks, placed(job, ranks), claim, pipe)
    except Interrupted as stop:
        if os.getppid() != parent:  # nobody is left to return it to
            raise SystemExit(stop.exit_code) from stop
        return Stopped(stop.signum)
    except Exception as error:
        if not wants_another(error):
            pipe.send(Failed(sendable(error, f"rank {ranks.rank}")))
        raise


def work_as(ranks: Ranks, job: Job, claim: Claim, pipe: Connection) -> Outcome | None:
    """Train in one process of several."""
    device = torch.device(job.settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Messages about when to stop go by gloo on a GPU too: they must not wait for it.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE
    )
    data = load(job.settings.data, device)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # but between steps: a late one must not kill
    if ranks.rank == 0:
        outcome: Outcome | None = finished(train_alone(job, ranks, claim), ranks, sender(pipe))
    else:
        outcome = finished(follow(job, data, ranks), ranks, lambda message: None)
    dist.destroy_process_group()
    return outcome


def finished(turns: Generator[Any, None, Any], ranks: Ranks, send: Callable[[Any], None]) -> Any:
    """Take all turns of a rank's part and send what they yield, unless a rank is asked to stop."""
    send(next(turns))
    try:
        with stop_signals() as stop:
            while not (signum := ranks.highest(stop.signum or 0)):
                send(next(turns))
            turns.throw(Interrupted(signum))
    except StopIteration as end:
        return end.value


def follow(job: Job, data: Images, ranks: Ranks) -> Generator[None, None, None]:
    """The steps and pauses of ``train_alone`` on another rank than the first: writes nothing."""
    settings, device = job.settings, data.train_images.device
    prepare(threads_for(settings, data.size), settings.deterministic, device)
    state = begin(build(settings, data, ranks).to(device), settings)
    over = ranks.spread(state, False)
    yield
    for _ in () if over else fit(state, settings, data, ranks):
        yield


def placed(job: Job, ranks: Ranks) -> Job:
    """The job with this rank's GPU, or the CPU, whose cores the ranks share."""
    on_gpu = choose_device(job.settings.device).type == "cuda"
    share_cores(ranks.size)
    device = f"cuda:{ranks.rank}" if on_gpu else "cpu"
    return replace(job, settings=replace(job.settings, device=device))


def wants_another(error: Exception) -> bool:
    """Whether a rank failed in the middle of a word with the others: one of them has ended."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(place).is_relative_to(Path(dist.__file__).parent)
