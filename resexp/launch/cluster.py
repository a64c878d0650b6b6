"""Runs carried out by processes that another launcher starts: Ray's, Slurm's, joblib's.

Such a process does its job in a child, so that one that is killed costs its run and nothing else;
the command that submitted the jobs learns from their run directories how they go, whatever the
launcher says.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from resexp.console import tell
from resexp.files import read_text
from resexp.launch.processes import placed
from resexp.launch.processes import run_all as run_in_processes
from resexp.launch.progress import Display
from resexp.runs import records
from resexp.runs.messages import Failed, Message, Messages, Outcome, Step, Stopped, WorkerDied
from resexp.runs.records import ERROR, FINISHED, RECORD, Claim
from resexp.runs.stop import Interrupted, submitit_listens
from resexp.settings import Job, UsageError

LOOK_EVERY = 2.0  # seconds between two looks at the run directories


def work(job: Job, folder: str, number: int) -> None:
    """Carry out ``job``, the sweep's run ``number``, as typed in ``folder``; its directory tells.

    Under submitit, whose log nobody else writes, the lines of a run on its own are printed.
    """
    os.chdir(folder)  # a Ray cluster started elsewhere has another
    multiprocessing.set_start_method("spawn", force=True)  # joblib's own, our child does not know
    if job.settings.launch.name == "joblib":  # it hands out no GPUs
        from resexp.train.device import gpus

        job = placed([job] * (number + 1), gpus())[number]
    display = Display([job]) if submitit_listens() else None
    while not carried_out(job, display):
        pass
    if display is not None:
        display.close()


def carried_out(job: Job, display: Display | None) -> bool:
    """Do ``job`` in a child of this process, to its end or until a signal.

    Once all is saved, the signal goes to whoever listened before: by default the process ends;
    submitit has it queued again on the one signal, and on SIGTERM lets it go on (False).
    """
    end: Message = Stopped()
    try:
        for _, end in run_in_processes([job], at_a_time=1):
            if isinstance(end, Step) and display is not None:
                display.step(end)
    except Interrupted as stop:
        signal.raise_signal(stop.signum)
        return False
    if isinstance(end, Failed) and isinstance(end.error, UsageError):
        from resexp.runs.run import record_failure

        record_failure(job, end.error)  # nobody else sees it
    return not isinstance(end, Stopped)


def start_ray(init: Any, remote: Any) -> None:
    """Start Ray, or join the cluster that ``init`` names, before the launcher does.

    ``init`` and ``remote`` are the arguments of ray.init and ray.remote.
    Raises UsageError if a run needs more than any machine has: Ray would wait for it for ever. A
    cluster may grow, so there it is a warning.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report to its makers
    address = init["address"] or ""
    try:
        if found := re.fullmatch(r"(.+):(\d+)", address):  # Ray itself would try for minutes
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        ray.init(**init)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"launch.address={address}: no Ray cluster answers there. Start one with "
            "ray start --head, or leave launch.address away."
        ) from error
    for key, kind in {"gpus": "GPU", "cores": "CPU"}.items():
        wanted = remote["num_gpus" if key == "gpus" else "num_cpus"]
        most = max(node["Resources"].get(kind, 0) for node in ray.nodes())
        if wanted <= most:
            continue
        lack = f"launch.{key}={wanted}, but no machine of the Ray cluster has more than {most:g}"
        if not address:
            raise UsageError(f"{lack}. Use launch.{key}={most:g}.")
        tell(f"warning: {lack}: runs wait until one joins")


@dataclass(slots=True)
class Planned:
    """A job before it was handed over: whether it was done then, and the record it had."""

    job: Job
    done: bool
    before: dict[str, Any] | None
    announced: bool = False


def plan(job: Job) -> Planned:
    return Planned(job, records.look(job) is Claim.done, record_of(job))


def run_all(planned: list[Planned], launcher: Future[None]) -> Messages:
    """The messages of jobs elsewhere, until their launcher is through or interrupted."""
    under_way = list(planned)
    while under_way:
        through = bool(wait([launcher], LOOK_EVERY).done)
        error = launcher.exception() if through else None
        if isinstance(error, KeyboardInterrupt):
            return
        for one in list(under_way):
            message = last_message(one, error) if through else look(one)
            if message is None:
                continue
            if not isinstance(message, Step):
                under_way.remove(one)
            yield one.job, message


def look(one: Planned) -> Message | None:
    """Where a job is, if it was begun or gone on with since it was planned, or how it ended."""
    record = one.before if one.done else record_of(one.job)
    if record is None or (record == one.before and not one.done):
        return None
    if record["status"] in FINISHED:
        claim = Claim.done if one.done else Claim.resume if one.before else Claim.new
        return Outcome(one.job, claim, record, [])
    if record["status"] == "failed":
        return Failed(RuntimeError(record["error"]))
    step = record["last"].get("step", 0) if one.announced else 0
    one.announced = True
    return Step(record, step)


def last_message(one: Planned, error: BaseException | None) -> Message:
    """How a job ended, now that the launcher is through, or why that cannot be known.

    ``error`` is what the launcher raised.
    """
    job = one.job
    found = look(one)
    if isinstance(found, Outcome | Failed):
        return found
    try:
        with records.claim(replace(job, settings=replace(job.settings, overwrite=False))) as state:
            if state is Claim.busy:
                return Outcome(job, Claim.busy, {}, [])
    except UsageError as refusal:
        return Failed(refusal)
    record = record_of(job)
    status = record["status"] if record is not None else "failed"
    if status == "interrupted" and record != one.before:
        return Stopped()
    if status == "failed" and (job.directory / ERROR).exists():
        return Failed(RuntimeError(last_line(read_text(job.directory / ERROR, errors="replace"))))
    why = f" ({last_line(str(error))})" if error else ""
    return Failed(WorkerDied(f"the launcher ended it without a word: run it again{why}"))


def record_of(job: Job) -> dict[str, Any] | None:
    """The job's record, if there is one that can be read."""
    with suppress(UsageError):
        if (job.directory / RECORD).exists():
            return records.read_record(job.directory)
    return None


def last_line(text: str) -> str:
    """What went wrong, of a traceback or a launcher's report: its last line, without colours."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", text).strip().splitlines() or ["no reason given"]
    return re.sub(r"^[\w.]+: ", "", plain[-1].strip())
