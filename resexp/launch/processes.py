"""Several runs at a time on one machine, each in a process of its own that may die.

A worker is sent a job and sends that job's messages back. One that is killed costs its job, which
fails and can be resumed, and is replaced; the others never notice. If the command itself is killed,
its workers save and stop.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from resexp.runs.messages import (
    Failed,
    Message,
    Messages,
    Step,
    Stopped,
    WorkerDied,
    sendable,
    sender,
)
from resexp.runs.stop import STOPPING, Interrupted, stop_signals
from resexp.settings import Job, UsageError

LOOK_EVERY = 0.5  # seconds between two looks at whether a signal came

#: Signals that workers leave to the command: it tells them to stop with SIGTERM.
IGNORED = [one for one in STOPPING if one != signal.SIGTERM]


@dataclass(slots=True)
class Worker:
    """A process, the pipe to it, and the job it is at."""

    process: ForkServerProcess
    pipe: Connection
    job: Job | None = None


def run_all(jobs: list[Job], at_a_time: int) -> Messages:
    """Carry out ``jobs``, some at a time.

    Raises Interrupted, once every run at work has been saved, if this process is asked to stop.
    """
    waiting = deque(jobs)
    workers: list[Worker] = []
    told = False
    with stop_signals() as stop:
        try:
            while waiting or any(worker.job for worker in workers):
                while waiting and sum(worker.job is not None for worker in workers) < at_a_time:
                    assign(workers, waiting.popleft(), at_a_time)
                for worker in heard(workers):
                    job, message = worker.job, receive(worker, stopping=stop.signum is not None)
                    assert job is not None
                    if not isinstance(message, Step):
                        worker.job = None
                    yield job, message
                    if isinstance(message, Failed) and job.settings.fail_fast:
                        return
                workers = [one for one in workers if one.job or one.process.is_alive()]
                if stop.signum is not None and not told:
                    waiting.clear()
                    for worker in workers:  # one that had the Ctrl-C too was asked already: no harm
                        worker.process.terminate()
                    told = True
            if stop.signum is not None:
                raise Interrupted(stop.signum)
        finally:
            for worker in workers:
                end(worker)


def launch(jobs: list[Job]) -> Messages:
    """Carry out ``jobs`` as launch=processes does: launch.jobs at a time, or as the machine has."""
    from resexp.train.device import cores, gpus

    at_a_time = jobs[0].settings.launch.jobs or 2 * gpus() or min(cores(), 8)
    return run_all(placed(jobs, gpus()), min(at_a_time, len(jobs)))


def assign(workers: list[Worker], job: Job, at_a_time: int) -> None:
    """Give ``job`` to a worker without one, or to a new one of ``at_a_time``."""
    worker = next((one for one in workers if one.job is None), None)
    if worker is None:
        worker = start(work, at_a_time)
        workers.append(worker)
    worker.job = job
    with suppress(OSError):  # it died while idle: receive will find out
        worker.pipe.send(job)


def warm() -> None:
    """Let a process begin to import what workers need: they fork from it. Does not wait."""
    get_context("forkserver").set_forkserver_preload(["resexp.launch.local"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)  # until a worker ignores them
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(target: Callable[..., None], *words: Any) -> Worker:
    """A new process that calls ``target`` with a pipe and ``words``, and gets SIGTERM alone."""
    warm()
    context = get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *words))  # no daemon: may have children
    process.start()
    theirs.close()
    return Worker(process, ours)


def ignore_signals() -> None:
    """What a process that ``start`` made does first."""
    for one in IGNORED:
        signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)


def heard(workers: list[Worker]) -> list[Worker]:
    """The workers at a job that sent something or died."""
    busy = {worker.pipe: worker for worker in workers if worker.job is not None}
    return [busy[pipe] for pipe in wait(list(busy), LOOK_EVERY) if pipe in busy]  # type: ignore[index]


def receive(worker: Worker, stopping: bool) -> Message:
    """The worker's next message. If it died, its job failed, unless all are asked to stop."""
    try:
        message: Message = worker.pipe.recv()
        return message
    except (EOFError, OSError):
        worker.process.join()
    if stopping:
        return Stopped()
    from resexp.runs.run import record_failure

    code = worker.process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    error = WorkerDied(f"the process of this run {how}: run it again to go on")
    assert worker.job is not None
    with suppress(OSError, UsageError):  # a full disk
        record_failure(worker.job, error)
    return Failed(error)


def end(worker: Worker) -> None:
    """End a worker: at once if it is idle, saving if it is at work, by force if it takes long."""
    worker.pipe.close()  # one that waits for a job ends
    if worker.job is not None:
        worker.process.terminate()
    worker.process.join(10)
    worker.process.kill()


def work(pipe: Connection, at_a_time: int) -> None:
    """What a worker does: the jobs that come through the pipe, until it is closed."""
    ignore_signals()
    from resexp.launch.local import run_all
    from resexp.train.device import share_cores

    share_cores(at_a_time)
    with suppress(EOFError, OSError):
        while True:
            job = pipe.recv()
            send = sender(pipe)
            try:
                for _, message in run_all([job]):
                    if isinstance(message, Failed):
                        message = Failed(sendable(message.error, "its process"))
                    send(message)
            except Interrupted as stop:
                send(Stopped(stop.signum))


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
