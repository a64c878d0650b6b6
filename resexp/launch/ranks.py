"""One network on several processes of this machine: torch's elastic launch from inside a job.

The job's own process holds the run directory, shows what happens and hears signals. Rank 0 trains
and writes as a run alone does; the others take the same steps and write nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Generator
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
from resexp.launch.processes import LOOK_EVERY, SHOW_EVERY, Message
from resexp.runs.records import Claim, Row
from resexp.runs.run import Watch, build, finished, load, train
from resexp.runs.stop import Interrupted, Stop, stop_signals
from resexp.settings import Job, UsageError
from resexp.train.device import choose_device, prepare, share_cores, threads_for
from resexp.train.fit import begin, fit, is_last
from resexp.train.ranks import Ranks

#: How long a rank waits for another: rank 0 may have to write to a slow disk. One that died is
#: noticed at once.
PATIENCE = timedelta(days=1)


class RankFailed(Exception):
    """A rank ended in the middle of a job."""


def launch(job: Job, claim: Claim, watch: Watch) -> tuple[dict[str, Any], list[str]]:
    """Train a claimed job on ``launch.ranks`` processes; returns its record and warnings.

    Raises Interrupted, once the run is saved, if this process or a rank is asked to stop, and
    RankFailed with the first failure's words if a rank fails.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    pipes = [get_context("spawn").Pipe(duplex=False) for _ in range(job.settings.launch.ranks)]
    failures: list[Exception] = []
    with stop_signals() as stop, ThreadPoolExecutor(1) as thread:
        theirs = tuple(sending for _, sending in pipes)
        under_way = thread.submit(start, job, claim, theirs)
        try:
            listen([receiving for receiving, _ in pipes], under_way, stop, watch, failures)
            returned = under_way.result()[0]
        except ChildFailedError as error:
            if failures:
                raise failures[0] from None
            if stop.signum is not None:  # Ctrl-C before the ranks listened, or twice
                raise KeyboardInterrupt from None
            raise RankFailed(died(error)) from None
    if isinstance(returned, int):
        raise Interrupted(stop.signum or returned)
    record, warnings = returned
    return record, warnings


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


def listen(
    pipes: list[Connection],
    under_way: Future[dict[int, Any]],
    stop: Stop,
    watch: Watch,
    failures: list[Exception],
) -> None:
    """Show what the ranks say until they are over, and let rank 0 know of a signal.

    ``failures`` gets those that ranks report, in the order in which they happened.
    """
    pid = 0
    try:
        while not under_way.done() or any(pipe.poll() for pipe in pipes):
            for pipe in cast("list[Connection]", wait(pipes, LOOK_EVERY / 5)):
                kind, *said = pipe.recv()
                if kind == "began":
                    pid = said[0]
                elif kind == "step":
                    watch(*said)
                else:
                    failures.append(said[0])
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


def work(job: Job, claim: Claim, pipes: tuple[Connection, ...]) -> Any:
    """A rank's life. Rank 0 returns record and warnings; all return a signal that stopped them."""
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    pipe, parent = pipes[ranks.rank], os.getppid()
    try:
        return work_as(ranks, placed(job, ranks), claim, pipe)
    except Interrupted as stop:
        if os.getppid() != parent:  # nobody is left to return it to
            raise SystemExit(stop.exit_code) from stop
        return stop.signum
    except Exception as error:
        if not wants_another(error):
            pipe.send(("failed", sendable(error, ranks.rank)))
        raise


def work_as(ranks: Ranks, job: Job, claim: Claim, pipe: Connection) -> Any:
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
        pipe.send(("began", os.getpid()))
        returned: Any = finished(train(job, claim, data, speaker(pipe), ranks), ranks)
    else:
        returned = finished(follow(job, data, ranks), ranks)
    dist.destroy_process_group()
    return returned


def follow(job: Job, data: Images, ranks: Ranks) -> Generator[None, None, None]:
    """The steps and pauses of ``train`` on another rank than the first, which writes nothing."""
    settings, device = job.settings, data.train_images.device
    prepare(threads_for(settings, data.size), settings.deterministic, device)
    state = begin(build(settings, data, ranks).to(device), settings)
    over = ranks.spread(state, False)
    yield
    for row in () if over else fit(state, settings, data, ranks):
        if is_last(row, settings):
            return
        yield


def placed(job: Job, ranks: Ranks) -> Job:
    """The job with this rank's GPU, or the CPU, whose cores the ranks share."""
    on_gpu = choose_device(job.settings.device).type == "cuda"
    share_cores(ranks.size)
    device = f"cuda:{ranks.rank}" if on_gpu else "cpu"
    return replace(job, settings=replace(job.settings, device=device))


def speaker(pipe: Connection) -> Watch:
    """A watcher that tells the job's process, not more often than a person can see."""
    said = 0.0

    def watch(record: dict[str, Any], step: int, row: Row | None) -> None:
        nonlocal said
        if row is None and step and time.monotonic() - said < SHOW_EVERY:
            return
        said = time.monotonic()
        message: Message = ("step", record, step, row)
        try:
            pipe.send(message)
        except OSError:  # the command was killed: save and stop. On Linux torch tells the ranks so.
            if sys.platform != "linux":
                os.kill(os.getpid(), signal.SIGTERM)

    return watch


def wants_another(error: Exception) -> bool:
    """Whether a rank failed in the middle of a word with the others: one of them has ended."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(place).is_relative_to(Path(dist.__file__).parent)


def sendable(error: Exception, rank: int) -> Exception:
    """An error that survives the way to another process, its traceback as a note."""
    kind = UsageError if isinstance(error, UsageError) else RankFailed
    copy = kind(f"{error}" or type(error).__name__)
    copy.add_note(f"in rank {rank}:\n" + "".join(traceback.format_exception(error)))
    return copy
