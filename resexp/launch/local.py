"""Runs in this process: one after another, or several at a time, a step of each in turn.

Those that take turns share the images and nothing else. A run that fails leaves the others alone; a
signal saves all of them. It is for a sweep of small networks on one GPU: images and libraries are
in its memory once, and each run has a stream of its own, so that kernels too small to fill the
device overlap. On a CPU the runs wait for each other and gain no time.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import torch

from resexp.runs.messages import Failed, Message, Messages, Outcome, Step, Stopped
from resexp.runs.run import Turns, train
from resexp.runs.stop import Interrupted, stop_signals
from resexp.settings import Job, UsageError
from resexp.train.device import choose_device, prepare
from resexp.train.row import Row

AT_MOST = 64  # runs at a time unless launch.jobs says otherwise: each has a file open, or several


#: Called after every step with the record so far, the step, and the row if there is a new one.
Watch = Callable[[dict[str, Any], int, Row | None], None]


def perform(job: Job, watch: Watch | None = None) -> Outcome:
    """Train ``job`` to its end, from its checkpoint if there is one, for callers in Python.

    A failure is recorded in the run directory and raised; an interruption saves and raises
    Interrupted.
    """
    with closing(run_all([job])) as messages:
        for _, message in messages:
            match message:
                case Step(record, step, row) if watch is not None:
                    watch(record, step, row)
                case Failed(error):
                    raise error
                case Outcome():
                    return message
    raise AssertionError("a job ends with its outcome or an error")


@dataclass(slots=True, eq=False)
class Work:
    """A run that takes turns with others."""

    job: Job
    turns: Turns
    device: torch.device
    stream: torch.cuda.Stream | None  # of a GPU: what the run computes there, in order
    threads: int = 0  # of the CPU, known from its first step on


def run_all(jobs: list[Job], at_a_time: int = 1) -> Messages:
    """Carry out ``jobs``, some at a time, the next as soon as one ends.

    Once this process is asked to stop, every run at work is saved and no other begun, and
    Interrupted raised, unless they all were at their ends. A failure with fail_fast ends the others
    in the same way, but for the Interrupted.
    """
    waiting, working = deque(jobs), list[Work]()
    ending, stopped, failed_fast = 0, False, False  # by which signal; whether it cost a run its end
    with stop_signals() as stop:
        try:
            while working or (waiting and not ending):
                while waiting and len(working) < at_a_time and not ending:
                    working.append(begin(waiting.popleft(), alone=at_a_time == 1))
                for work in list(working):
                    ending = ending or stop.signum or 0
                    if work.threads and at_a_time > 1:  # another run had a turn
                        prepare(work.threads, work.job.settings, work.device)
                    stop.at_once = not work.threads
                    message: Message
                    try:
                        with torch.cuda.stream(work.stream):  # type: ignore[arg-type]
                            if ending:
                                work.turns.throw(Interrupted(ending))
                            message = next(work.turns)
                        work.threads = message.record["environment"]["threads"]
                    except StopIteration as end:
                        message = end.value
                    except Interrupted as interrupted:
                        ending, stopped = interrupted.signum, True
                        message = Stopped(ending)
                    except (Exception, SystemExit) as error:
                        message = Failed(error)
                    stop.at_once = False
                    if not isinstance(message, Step):
                        working.remove(work)
                    if isinstance(message, Failed) and work.job.settings.fail_fast:
                        ending, failed_fast = ending or signal.SIGTERM, True
                    yield work.job, message
            if ending and not failed_fast and (stopped or waiting):
                raise Interrupted(ending)
        finally:
            for work in working:
                work.turns.close()


def lockstep(jobs: list[Job]) -> Messages:
    """Carry out ``jobs`` as launch=lockstep does: launch.jobs at a time, or as many as may be."""
    return run_all(jobs, jobs[0].settings.launch.jobs or AT_MOST)


def begin(job: Job, alone: bool) -> Work:
    """A job that has not had a turn. Nothing in a step waits for a GPU, so runs can share one."""
    several = job.settings.launch.ranks > 1
    if several:
        from resexp.launch import ranks
    device = torch.device("cpu")
    with suppress(UsageError):  # one that is not there is refused in the job's first turn
        device = choose_device(job.settings.device)
    own = device.type == "cuda" and not alone
    stream = torch.cuda.Stream(device) if own else None  # type: ignore[no-untyped-call]
    return Work(job, ranks.train(job) if several else train(job), device, stream)
