"""The jobs of one command: checked, carried out, shown while they run, summed up at the end."""

from __future__ import annotations

import contextlib
import shlex
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resexp.launch import cluster as elsewhere
from resexp.launch.progress import Screen, clock, key, percent, show_plan, talk
from resexp.runs.records import ERROR, FINISHED, RECORD, Claim, first_line, read_record
from resexp.settings import Job, Merge, Twin, UsageError

if TYPE_CHECKING:
    from resexp.runs.run import Outcome


class Session:
    """What one ``resexp run`` is about to do, does, and did."""

    def __init__(self, *, dry_run: bool = False, command: str = "") -> None:
        self.dry_run = dry_run
        self.command = command  # as it was typed
        self.outcomes: list[Outcome] = []
        self.failures: list[tuple[Job, BaseException]] = []
        self.refusal: UsageError | None = None  # why the only job could not start
        self.screen: Screen | None = None
        self.jobs: list[Job] = []  # of a sweep, checked
        self.planned: list[elsewhere.Planned] = []  # of them, those left to other processes

    def plan(self, jobs: list[Job], *, here: bool = True) -> list[int]:
        """Check every job; the indices of those to run, each run directory once.

        ``here`` is false for jobs that a launcher takes to processes or machines of its own.
        Raises UsageError for the first that cannot be run, before any has.
        """
        from resexp.runs.run import check

        claims = [check(job, here=here) for job in jobs]
        if self.dry_run:
            from resexp.launch.dry_run import forecast

            show_plan(forecast(jobs, claims))
            return []
        first = {job.directory: index for index, job in reversed(list(enumerate(jobs)))}
        chosen = sorted(first.values())
        self.jobs = [jobs[index] for index in chosen]
        if not here:
            self.planned = [elsewhere.plan(jobs[index], claims[index]) for index in chosen]
        self.screen = Screen(self.jobs)
        return chosen

    def looking(self) -> AbstractContextManager[None]:
        """Show, while the body runs, what other processes do."""
        return elsewhere.looking(self.look)

    def look(self) -> None:
        """Account for the jobs elsewhere that are over, and show where the others are."""
        for one in self.under_way():
            end, record = elsewhere.ending(one), elsewhere.begun(one)
            if end is not None:
                self.account(one.job, end)
            elif record is not None and self.screen is not None:
                known = key(record["name"], record["run"]) in self.screen.rows
                self.screen.watch(record, record["last"].get("step", 0) if known else 0, None)

    def settle(self, error: Exception | None) -> None:
        """Account for every job elsewhere: the launcher is through, perhaps with an ``error``."""
        for one in self.under_way():
            self.account(one.job, elsewhere.last_word(one, error))

    def under_way(self) -> list[elsewhere.Planned]:
        """The jobs elsewhere that are not accounted for."""
        over = {one.job.directory for one in self.outcomes}
        over |= {job.directory for job, _ in self.failures}
        return [one for one in self.planned if one.job.directory not in over]

    def account(self, job: Job, end: Outcome | Exception) -> None:
        """Remember and show how a job ended."""
        if isinstance(end, Exception):
            self.failed(job, end)
        else:
            self.ended(end)

    def perform(self, job: Job) -> None:
        """Carry out one job and remember how it went, be it a failure.

        Raises UsageError if a job on its own cannot start.
        """
        from resexp.runs.run import perform

        if self.failures and job.settings.fail_fast:
            return
        if self.screen is None:
            self.screen = Screen([job])
        try:
            outcome = perform(job, self.screen.watch)
        except (Exception, SystemExit) as error:
            if isinstance(error, UsageError) and not self.screen.several:
                raise
            self.failed(job, error)
        else:
            self.ended(outcome)

    def perform_all(self) -> None:
        """Carry out the planned jobs: one after another, or several at a time."""
        if self.jobs[0].settings.launch.name in ("processes", "lockstep"):
            self.perform_together()
            return
        for job in self.jobs:
            self.perform(job)

    def perform_together(self) -> None:
        """Carry out the planned jobs, several at a time: taking turns, or each in a process."""
        from resexp.launch import lockstep
        from resexp.launch import processes as pool
        from resexp.train.device import cores, gpus

        assert self.screen is not None
        launch = self.jobs[0].settings.launch
        if launch.name == "lockstep":
            at_a_time = launch.jobs or lockstep.AT_MOST
            said = lockstep.run_all(self.jobs, at_a_time, self.screen.watch)
        else:
            at_a_time = min(launch.jobs or 2 * gpus() or min(cores(), 8), len(self.jobs))
            said = pool.run_all(pool.placed(self.jobs, gpus()), at_a_time)
        with contextlib.closing(said):
            for job, (kind, *told) in said:
                if kind == "step":
                    self.screen.watch(*told)
                elif kind == "over":
                    self.ended(told[0])
                elif kind == "failed":
                    self.failed(job, told[0])
                    if job.settings.fail_fast:
                        return  # runs at work save and stop

    def ended(self, outcome: Outcome) -> None:
        """Remember and show a job that is over."""
        assert self.screen is not None
        self.outcomes.append(outcome)
        for warning in outcome.warnings:
            talk.print(f"warning: {warning}")
        trained = outcome.claim in (Claim.new, Claim.resume)
        self.screen.end(outcome.job, brief(outcome), trained=trained)

    def failed(self, job: Job, error: BaseException) -> None:
        """Remember and show a job that failed."""
        from resexp.launch.processes import WorkerDied
        from resexp.runs.run import record_failure

        assert self.screen is not None
        if isinstance(error, WorkerDied):
            record_failure(job, error)
        # The frames of the traceback hold the network: the next run may need its memory.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.failures.append((job, error))
        self.screen.end(job, f"failed  {first_line(error)}", trained=False)

    def close(self) -> None:
        """Give the terminal back."""
        if self.screen is not None:
            self.screen.close()

    def raise_refusal(self) -> None:
        """Raise what kept a job alone from starting; in a sweep it is one failure of several."""
        if self.refusal is not None:
            raise self.refusal

    @property
    def exit_code(self) -> int:
        """1 if a run failed, else 0."""
        return 1 if self.failures else 0

    def summary(self) -> str:
        """How it ended and what to type next; nothing of a dry run."""
        if not self.outcomes and not self.failures:
            return ""
        if len(self.outcomes) == 1 and not self.failures:
            return closing(self.outcomes[0])
        return "\n".join([*self.tally(), *self.retry()])

    def tally(self) -> list[str]:
        """22 done, 1 skipped (finished before), 1 failed."""
        trained = [one for one in self.outcomes if one.claim in (Claim.new, Claim.resume)]
        counts = {
            "done": len(trained),
            "skipped (finished before)": sum(one.claim is Claim.done for one in self.outcomes),
            "left to another process": sum(one.claim is Claim.busy for one in self.outcomes),
            "failed": len(self.failures),
            "not done (fail_fast=true)": max(
                0, len(self.jobs) - len(self.outcomes) - len(self.failures)
            ),
        }
        odd = {"collapsed", "diverged"}
        notes = [one for one in trained if one.record["status"] in odd]
        lines = [", ".join(f"{count} {what}" for what, count in counts.items() if count)]
        for job, error in self.failures:
            lines.append(f"  {job.run}   {first_line(error)}   ({job.directory / ERROR})")
        if notes:
            lines.append(
                f"{len(notes)} of them collapsed or diverged: see resexp list status="
                + ",".join(sorted({one.record["status"] for one in notes}))
            )
        return lines

    def retry(self) -> list[str]:
        """The next command: one that repeats what failed and nothing else."""
        failed = [job for job, _ in self.failures]
        if len(failed) > 1 and self.command and not failed[0].settings.overwrite:
            return [f"retry: {self.command}   (the same command: what is finished is skipped)"]
        if failed:
            return [f"retry: {job.command}" for job in failed]
        return ["next: resexp plot, resexp table, resexp verdict"]


def brief(outcome: Outcome) -> str:
    """The end of a run in a few words, for a line of a sweep."""
    if outcome.claim is Claim.busy:
        return "left to another process"
    record, last = outcome.record, outcome.record.get("last") or {}
    iou = f"IoU {percent(last['test_iou']):>6}  " if "test_iou" in last else ""
    status = "done before" if outcome.claim is Claim.done else record["status"]
    return (
        f"{status:<11} clean {percent(last.get('clean_train_error')):>6}  "
        f"test {percent(last.get('test_error')):>6}  {iou}{clock(record.get('seconds') or 0)}"
    )


def closing(outcome: Outcome) -> str:
    """The end of a run on its own: status, place, number beside its twin's, next command."""
    job, record = outcome.job, outcome.record
    if outcome.claim is Claim.busy:
        return f"busy      {job.directory}   another process trains it"
    error = percent((record.get("last") or {}).get("clean_train_error"))
    place = f"{record['status']:<9} {job.directory}"
    if outcome.claim is Claim.done:
        place = f"done      {job.directory} (before: nothing to do)"
    twin = twin_of(job)
    if twin is None:
        return f"{place}   clean training error {error}\n          next: resexp plot"
    its = finished_record(twin)
    if its is None:
        words = shlex.join(["resexp", "run", *job.flags, *twin.overrides])
        return f"{place}   clean training error {error}\n          next: {words}, then resexp plot"
    other = percent(its["last"].get("clean_train_error"))
    name = "plain" if "twin" in twin.extras else twin.arch
    return (
        f"{place}   clean training error {error} ({name} twin: {other})\n"
        "          next: resexp plot"
    )


def twin_of(job: Job) -> Job | None:
    """The run to set beside ``job``: plain and residual, or an arch and its own twin.

    None for a network that has no skips anyway, such as VGG.
    """
    typed = [word for word in job.overrides if not word.startswith("twin=")]
    extras = {key: value for key, value in job.extras.items() if key != "twin"}
    if job.settings.twin is not Twin.none:  # the network itself
        return replace(job, extras=extras, overrides=typed)
    if job.arch not in ("plain", "residual"):
        if job.settings.arch.merge == Merge.plain:
            return None
        return replace(job, extras=extras | {"twin": "plain"}, overrides=[*typed, "twin=plain"])
    arch = "residual" if job.arch == "plain" else "plain"
    kept = [word for word in typed if not word.startswith(("arch=", "arch."))]
    extras = {key: value for key, value in extras.items() if not key.startswith("arch.")}
    return replace(job, arch=arch, extras=extras, overrides=[*kept, f"arch={arch}"])


def finished_record(job: Job) -> dict[str, Any] | None:
    """The record of ``job``'s directory, if it holds a finished run."""
    directory = job.directory
    try:
        record = read_record(directory) if (directory / RECORD).exists() else None
    except UsageError:
        return None
    return record if record is not None and record["status"] in FINISHED else None
