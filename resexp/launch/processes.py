"""Several runs at a time on one machine, each in a process of its own that may die.

A worker is told a job, sends what there is to see, and says how the job ended. One that is killed
costs its job, which fails and can be resumed, and is replaced; the others never notice. If the
command itself is killed, its workers save and stop.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from resexp.runs.records import Row, first_line
from resexp.runs.stop import STOPPING, Interrupted, stop_signals
from resexp.settings import Job, UsageError

SHOW_EVERY = 0.2  # seconds between two messages about the steps of one run
LOOK_EVERY = 0.5  # seconds between two looks at whether a signal came

#: What a worker says of its job: ("step", record, step, row), ("over", outcome),
#: ("failed", exception) or ("stopped",).
Message = tuple[Any, ...]


class WorkerDied(Exception):
    """A process ended in the middle of a job."""


@dataclass(slots=True)
class Worker:
    """A process, the pipe to it, and the job it is at."""

    process: SpawnProcess
    pipe: Connection
    job: Job | None = None


def run_all(jobs: list[Job], at_a_time: int) -> Generator[tuple[Job, Message], None, None]:
    """Carry out ``jobs``, some at a time; yields what the workers say of them, as they say it.

    Raises Interrupted, once every run at work has been saved, if this process is asked to stop.
    """
    waiting = deque(jobs)
    workers: list[Worker] = []
    told = False
    with stop_signals() as stop:
        try:
            while waiting or any(worker.job for worker in workers):
                while waiting and sum(worker.job is not None for worker in workers) < at_a_time:
                    employ(workers, waiting.popleft(), at_a_time)
                for worker in speaking(workers):
                    job, message = worker.job, listen(worker)
                    assert job is not None
                    if message[0] != "step":
                        worker.job = None
                    if not isinstance(message[-1], WorkerDied) or not told:
                        yield job, message
                workers = [one for one in workers if one.job or one.process.is_alive()]
                if stop.signum is not None and not told:
                    waiting.clear()
                    tell_to_stop(workers)
                    told = True
            if stop.signum is not None:
                raise Interrupted(stop.signum)
        finally:
            for worker in workers:
                dismiss(worker)


def employ(workers: list[Worker], job: Job, at_a_time: int) -> None:
    """Give ``job`` to a worker without one, or to a new one of ``at_a_time``."""
    idle = [worker for worker in workers if worker.job is None]
    worker = idle[0] if idle else hire(at_a_time)
    if not idle:
        workers.append(worker)
    worker.job = job
    with suppress(OSError):  # it died while idle: listen will find out
        worker.pipe.send(job)


def hire(at_a_time: int) -> Worker:
    """A new process with nothing to do yet, one of ``at_a_time`` that share the cores."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=work, args=(theirs, at_a_time)
    )  # no daemon: it may have children
    process.start()
    theirs.close()
    return Worker(process, ours)


def speaking(workers: list[Worker]) -> list[Worker]:
    """The workers at a job that said something or died."""
    busy = {worker.pipe: worker for worker in workers if worker.job is not None}
    return [busy[pipe] for pipe in wait(list(busy), LOOK_EVERY) if pipe in busy]  # type: ignore[index]


def listen(worker: Worker) -> Message:
    """The worker's next message; that it failed, if it has died."""
    try:
        message: Message = worker.pipe.recv()
        return message
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ("failed", WorkerDied(f"the process of this run {how}: run it again to go on"))


def tell_to_stop(workers: list[Worker]) -> None:
    """Ask for a save and a stop; a worker that had the Ctrl-C too was asked already: no harm."""
    for worker in workers:
        if worker.process.is_alive() and worker.process.pid:
            os.kill(worker.process.pid, signal.SIGTERM)


def dismiss(worker: Worker) -> None:
    """Let a worker go, by force if it is at work still."""
    worker.pipe.close()  # one that waits for a job ends
    if worker.job is not None:
        worker.process.terminate()
    worker.process.join(10)
    worker.process.kill()


def work(pipe: Connection, at_a_time: int) -> None:
    """A worker's life: jobs come through the pipe until it is closed."""
    from resexp.runs.run import perform
    from resexp.train.device import share_cores

    share_cores(at_a_time)

    for one in STOPPING:
        if one != signal.SIGTERM:  # with which the command says when to stop
            signal.signal(one, signal.SIG_IGN)
    said = 0.0

    def watch(record: dict[str, Any], step: int, row: Row | None) -> None:
        nonlocal said
        if row is None and time.monotonic() - said < SHOW_EVERY:
            return
        said = time.monotonic()
        try:
            pipe.send(("step", record, step, row))
        except OSError:  # the command was killed: save and stop
            os.kill(os.getpid(), signal.SIGTERM)

    with suppress(EOFError, OSError):
        while True:
            job = pipe.recv()
            said = 0.0  # the first word about a job is always said
            try:
                message: Message = ("over", perform(job, watch))
            except Interrupted:
                message = ("stopped",)
            except UsageError as error:
                message = ("failed", UsageError(f"{error}"))
            except (Exception, SystemExit) as error:
                message = ("failed", RuntimeError(first_line(error)))
            pipe.send(message)


def placed(jobs: list[Job], gpus: int) -> list[Job]:
    """The jobs with GPUs dealt out in turn to those that may take any."""
    if gpus < 2:
        return jobs
    return [
        replace(job, settings=replace(job.settings, device=f"cuda:{index % gpus}"))
        if job.settings.device in ("auto", "cuda")
        else job
        for index, job in enumerate(jobs)
    ]
