"""One network on several processes, or ranks, of this machine.

The job's own process holds the run directory, passes rank 0's messages on and hears signals. Rank 0
trains and writes as a run alone does; the others take the same steps and write nothing.
"""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import torch.distributed as dist

from resexp.data import Images
from resexp.launch.processes import Worker, ignore_signals, start
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
GRACE = 10.0  # seconds in which the others must notice that a rank died

#: How long a rank waits for another: rank 0 may have to write to a slow disk.
PATIENCE = timedelta(days=1)


class RankFailed(Exception):
    """A rank ended in the middle of a job."""


def train(job: Job) -> Turns:
    """``resexp.runs.run.train`` on ``launch.ranks`` processes; it hears signals itself.

    Raises Interrupted, once the run is saved, if this process or a rank is asked to stop, the
    first error that a rank sends, and RankFailed if a rank dies.
    """
    with claimed(job) as claim:
        if claim in (Claim.done, Claim.busy):
            return untrained(job, claim)
        with TemporaryDirectory() as folder, stop_signals() as stop:
            words = job, claim, f"file://{folder}/ranks"  # where they find each other
            ranks = [start(work, rank, *words) for rank in range(job.settings.launch.ranks)]
            try:
                end = yield from heard(ranks, stop)
            finally:
                for one in ranks:
                    one.process.kill()
                    one.process.join()
                    one.pipe.close()
        match end:
            case Outcome():
                return replace(end, job=job)
            case Stopped(signum):
                raise Interrupted(stop.signum or signum)
            case Failed(error):
                raise error
    raise AssertionError("a rank's last message is no step")


def heard(ranks: list[Worker], stop: Stop) -> Generator[Step, None, Message]:
    """Yields rank 0's steps; returns the last message, a failure's if there is one.

    Rank 0 is told of a signal again and again, and tells the others; before its first step there
    is nothing to save.
    """
    left = {rank.pipe: rank for rank in ranks}
    end: Message | None = None
    begun, deadline = False, math.inf
    while left and time.monotonic() < deadline:
        for pipe in cast("list[Connection]", wait(list(left), LOOK_EVERY)):
            try:
                message: Message = pipe.recv()
            except (EOFError, OSError):
                process = left.pop(pipe).process
                process.join()
                if process.exitcode:  # the others fail soon, for want of it, or wait for ever
                    deadline = min(deadline, time.monotonic() + GRACE)
                continue
            if isinstance(message, Step):
                begun = True
                yield message
            elif end is None or isinstance(message, Failed):
                end = end if isinstance(end, Failed) else message
        if stop.signum is not None:
            if not begun:
                return Stopped(stop.signum)
            ranks[0].process.terminate()
    return end or Failed(died(ranks))


def died(ranks: list[Worker]) -> RankFailed:
    """What is known of a rank that ended without a word; the others then fail for want of it."""
    codes = [one.process.exitcode or 0 for one in ranks]
    killed = [index for index, code in enumerate(codes) if code < 0]
    who = "a rank of this run ended without a word"
    if killed:
        who = f"rank {killed[0]} of this run was killed by signal {-codes[killed[0]]}"
    return RankFailed(f"{who}: run it again to go on")


def work(pipe: Connection, rank: int, job: Job, claim: Claim, store: str) -> None:
    """What a rank does. Rank 0 sends its steps and outcome, every one what stopped it."""
    ignore_signals()
    ranks = Ranks(rank, job.settings.launch.ranks)
    try:
        outcome = work_as(ranks, placed(job, ranks), claim, store, pipe)
        if outcome is not None:
            pipe.send(outcome)
    except Interrupted as stop:
        with suppress(OSError):  # nobody is left to hear it
            pipe.send(Stopped(stop.signum))
    except Exception as error:
        if not wants_another(error):
            pipe.send(Failed(sendable(error, f"rank {rank}")))
        raise SystemExit(1) from error


def work_as(ranks: Ranks, job: Job, claim: Claim, store: str, pipe: Connection) -> Outcome | None:
    """Train in one process of several."""
    device = torch.device(job.settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Messages about when to stop go by gloo on a GPU too: they must not wait for it.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store, PATIENCE, ranks.size, ranks.rank)
    data = load(job.settings.data, device)
    # Heard between steps alone: a late one must not kill. (What is ignored is never heard.)
    signal.signal(signal.SIGTERM, lambda signum, frame: None)
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
    prepare(threads_for(settings, data.size), settings, device)
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
