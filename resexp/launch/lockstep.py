"""Several runs at a time in one process on one device: a step of each in turn.

They share the images and nothing else. A run that fails leaves the others alone; a signal saves
all of them. For a sweep of small networks on one GPU: images and libraries are in its memory once,
and each run has a stream of its own, so that kernels too small to fill the device overlap. On a CPU
the runs wait for each other and gain no time.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass

import torch

from resexp.launch.processes import Message
from resexp.runs.run import Turns, Watch, steps
from resexp.runs.stop import Interrupted, stop_signals
from resexp.settings import Job
from resexp.train.device import choose_device

AT_MOST = 64  # runs at a time unless launch.jobs says otherwise: each has a file open, or several


def run_all(
    jobs: list[Job], at_a_time: int, watch: Watch
) -> Generator[tuple[Job, Message], None, None]:
    """Carry out ``jobs``, some at a time, the next as soon as one ends; yields how each ended.

    Raises Interrupted, once every run at work has been saved, if this process is asked to stop.
    They are saved, too, if this generator is closed.
    """
    waiting = deque(jobs)
    working: list[Work] = []
    with stop_signals() as stop:
        try:
            while waiting or working:
                while waiting and len(working) < at_a_time:
                    job = waiting.popleft()
                    working.append(Work(job, steps(job, watch), stream(job)))
                for work in list(working):
                    if stop.signum is not None:
                        raise Interrupted(stop.signum)
                    if (end := advance(work)) is not None:
                        working.remove(work)
                        yield work.job, end
        except (Interrupted, GeneratorExit):
            for work in working:
                with suppress(Interrupted, Exception), torch.cuda.stream(work.stream):
                    # one that cannot be saved says so itself
                    work.turns.throw(Interrupted(stop.signum or signal.SIGTERM))
            raise
        finally:
            for work in working:
                work.turns.close()


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A run that takes turns with others."""

    job: Job
    turns: Turns
    stream: torch.cuda.Stream | None  # of a GPU: what the run computes there, in order


def stream(job: Job) -> torch.cuda.Stream | None:
    """A stream of the run's own, if it is for a GPU. Nothing in a step waits for the device."""
    device = choose_device(job.settings.device)
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def advance(work: Work) -> Message | None:
    """Give a run its turn; how it ended, if it did."""
    try:
        with torch.cuda.stream(work.stream):  # type: ignore[arg-type]
            next(work.turns)
    except StopIteration as end:
        return ("over", end.value)
    except (Exception, SystemExit) as error:
        return ("failed", error)
    return None
