"""Runs carried out by processes that another launcher starts: Ray's, Slurm's, joblib's.

Such a process does its job in a child, so that one that is killed costs its run and nothing else;
the command that submitted the jobs learns from their run directories how they ended, whatever the
launcher says.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from resexp.launch.processes import WorkerDied, placed, run_all
from resexp.launch.progress import Screen, talk
from resexp.runs import records
from resexp.runs.records import ERROR, FINISHED, RECORD, Claim
from resexp.runs.stop import Interrupted, submitit_listens
from resexp.settings import Job, UsageError

if TYPE_CHECKING:
    from resexp.runs.run import Outcome

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
    screen = Screen([job]) if submitit_listens() else None
    while not carried_out(job, screen):
        pass
    if screen is not None:
        screen.close()


def carried_out(job: Job, screen: Screen | None) -> bool:
    """Do ``job`` in a child of this process, to its end or until a signal.

    Once all is saved, the signal goes to whoever listened before: by default the process ends;
    submitit has it queued again on the one signal, and on SIGTERM lets it go on (False).
    """
    end: tuple[Any, ...] = ("stopped",)
    try:
        for _, message in run_all([job], at_a_time=1):
            if message[0] != "step":
                end = message
            elif screen is not None:
                screen.watch(*message[1:])
    except Interrupted as stop:
        signal.raise_signal(stop.signum)
        return False
    if end[0] == "failed" and isinstance(end[1], UsageError | WorkerDied):
        from resexp.runs.run import record_failure

        record_failure(job, end[1])
    return bool(end[0] != "stopped")


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
        talk.print(f"warning: {lack}: runs wait until one joins")


@dataclass(frozen=True, slots=True)
class Planned:
    """A job before it was handed over: what its directory said, and the record it held."""

    job: Job
    claim: Claim
    before: dict[str, Any] | None


def plan(job: Job, claim: Claim) -> Planned:
    """Note how things stand."""
    return Planned(job, claim, record_of(job))


def record_of(job: Job) -> dict[str, Any] | None:
    """The job's record, if there is one that can be read."""
    with suppress(UsageError):
        if (job.directory / RECORD).exists():
            return records.read_record(job.directory)
    return None


def begun(planned: Planned) -> dict[str, Any] | None:
    """The record of a job that was begun or gone on with since it was planned."""
    record = record_of(planned.job)
    return None if record == planned.before else record


def ending(planned: Planned) -> Outcome | Exception | None:
    """How a job ended, if its directory says that it did."""
    from resexp.runs.run import Outcome

    record = planned.before if planned.claim is Claim.done else begun(planned)
    if record is None:
        return None
    if record["status"] in FINISHED:
        return Outcome(planned.job, planned.claim, record, [])
    return RuntimeError(record["error"]) if record["status"] == "failed" else None


def last_word(planned: Planned, error: Exception | None) -> Outcome | Exception:
    """How a job ended, now that the launcher is through, or why that cannot be known.

    ``error`` is what the launcher raised.
    """
    from resexp.runs.run import Outcome

    job = planned.job
    found = ending(planned)
    if found is not None:
        return found
    try:
        with records.claim(replace(job, settings=replace(job.settings, overwrite=False))) as state:
            if state is Claim.busy:
                return Outcome(job, Claim.busy, {}, [])
    except UsageError as refusal:
        return refusal
    record = record_of(job)
    if record is not None and record["status"] == "interrupted" and record != planned.before:
        return RuntimeError("stopped and saved: run it again to go on")
    if (job.directory / ERROR).exists() and (record is None or record["status"] == "failed"):
        return RuntimeError(last_line((job.directory / ERROR).read_text()))
    why = f" ({last_line(str(error))})" if error else ""
    return WorkerDied(f"the launcher ended it without a word: run it again{why}")


def last_line(text: str) -> str:
    """What went wrong, of a traceback or a launcher's report: its last line, without colours."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", text).strip().splitlines() or ["no reason given"]
    return re.sub(r"^[\w.]+: ", "", plain[-1].strip())


@contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` every now and then, in a thread, for as long as the body waits."""
    over = threading.Event()

    def keep_looking() -> None:
        while not over.wait(LOOK_EVERY):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
