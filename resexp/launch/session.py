"""The jobs of one command: checked, carried out, shown while they run, summed up at the end."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from threading import Thread

from resexp.analysis.results import Run
from resexp.console import duration, percent, tell, tell_if_deep
from resexp.launch import cluster
from resexp.launch.progress import Display
from resexp.runs.messages import Failed, Message, Messages, Outcome, Step, Stopped
from resexp.runs.ready import ready
from resexp.runs.records import ERROR, FINISHED, Claim, first_line, read_record
from resexp.settings import LAUNCHERS, Job, Launcher, Merge, Settings, Twin, UsageError

#: What is done with jobs that are not to be trained: with what their directories say, and with what
#: checks the settings of those that are not done. That imports torch.
Instead = Callable[[list[Job], list[Claim], Callable[[], None]], object]


class Session:
    """What one ``resexp run`` is about to do, does, and did.

    ``instead`` is given the jobs, in place of the launcher.
    """

    def __init__(self, *, instead: Instead | None = None, command: str = "") -> None:
        self.instead = instead
        self.command = command  # as it was typed
        self.jobs: list[Job] = []  # checked
        self.ends: dict[Path, tuple[Job, Message]] = {}  # by run directory: how jobs ended
        self.display: Display | None = None
        self.search = False  # whether a sweeper chooses runs by how those before them went

    @property
    def outcomes(self) -> list[Outcome]:
        return [end for _, end in self.ends.values() if isinstance(end, Outcome)]

    @property
    def failures(self) -> list[tuple[Job, BaseException]]:
        return [(job, end.error) for job, end in self.ends.values() if isinstance(end, Failed)]

    @property
    def stopped(self) -> list[Job]:
        return [job for job, end in self.ends.values() if isinstance(end, Stopped)]

    def endpoints(self) -> dict[Path, float | None]:
        """By run directory what the verdict goes by: clean training error at the end, percent."""
        finished = [one for one in self.outcomes if one.claim is not Claim.busy]
        places = [Run(one.job.directory, one.record) for one in finished]
        return {run.path: run.endpoint("clean_train_error") for run in places}

    def plan(self, jobs: list[Job], *, here: bool = True) -> list[int]:
        """Check every job, note those that are done; the indices of the rest, each directory once.

        ``here`` is false for jobs that a launcher takes to processes or machines of its own.
        Raises UsageError for the first that cannot be run, before any has.
        """
        claims = [ready(job) for job in jobs]
        due = [job for job, claim in zip(jobs, claims, strict=True) if claim is not Claim.done]
        check = partial(check_all, due, here)
        if self.instead is not None:
            self.instead(jobs, claims, check)
            return []
        if due and here and (warm := self.launcher(jobs[0]).warm):
            resolve_name(warm)()  # while this process imports torch
        check()
        first = {job.directory: index for index, job in reversed(list(enumerate(jobs)))}
        over = {one.job.directory for one in self.outcomes}  # a search may ask again
        chosen = sorted(index for place, index in first.items() if place not in over)
        self.close()
        self.display = Display([jobs[index] for index in chosen])
        self.jobs += [jobs[index] for index in chosen]
        done = {index for index in chosen if claims[index] is Claim.done}
        for job in (jobs[index] for index in sorted(done)):
            self.note(job, Outcome(job, Claim.done, read_record(job.directory), []))
        return [index for index in chosen if index not in done]

    def launcher(self, job: Job) -> Launcher:
        """A job's own; a config of one's own may name launch as it likes."""
        return LAUNCHERS.get(job.settings.launch.name, LAUNCHERS["local"])

    def carry_out(self, jobs: list[Job]) -> Messages:
        """Train planned jobs on this machine, as their settings say: yields their messages."""
        messages: Messages = resolve_name(self.launcher(jobs[0]).run_all)(jobs)
        return messages

    def follow(self, jobs: list[Job], launch: Callable[[], object]) -> None:
        """Show what planned jobs do while ``launch`` has others carry them out."""
        over: Future[None] = Future()
        planned = [cluster.plan(job) for job in jobs]
        thread = Thread(target=self.note_all, args=(cluster.run_all(planned, over),), daemon=True)
        thread.start()
        try:
            launch()
            over.set_result(None)
        except Exception as error:  # its workers may be at work still
            over.set_exception(error)
        except BaseException as error:
            over.set_exception(error)
            raise
        finally:
            thread.join()

    def note_all(self, messages: Messages) -> None:
        """Remember and show messages until they end."""
        with closing(messages):
            for job, message in messages:
                self.note(job, message)

    def note(self, job: Job, message: Message) -> None:
        """Show a message, and remember one that is a job's last."""
        assert self.display is not None
        match message:
            case Step():
                self.display.step(message)
                return
            case Outcome():
                for warning in message.warnings:
                    tell(f"warning: {warning}")
                trained = message.claim in (Claim.new, Claim.resume)
                self.display.end(job, brief(message), trained=trained)
            case Failed(error):
                # The traceback's frames hold the network: the next run may need its memory.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                self.display.end(job, f"failed  {first_line(error)}", trained=False)
            case Stopped():
                self.display.end(job, "stopped and saved", trained=False)
        self.ends[job.directory] = job, message

    def close(self) -> None:
        """Give the terminal back."""
        if self.display is not None:
            self.display.close()

    def raise_refusal(self) -> None:
        """Raise what kept a job alone from starting; in a sweep it is one failure of several."""
        if len(self.jobs) == 1 and self.failures and isinstance(self.failures[0][1], UsageError):
            raise self.failures[0][1]

    @property
    def exit_code(self) -> int:
        """1 if a run failed, else 75 if one was stopped, else 0."""
        return 1 if self.failures else 75 if self.stopped else 0

    def summary(self) -> str:
        """How it ended and what to type next; nothing if nothing was trained."""
        if len(self.outcomes) == len(self.ends) == 1:
            return conclusion(self.outcomes[0])
        return "\n".join([*self.tally(), *self.retry()]) if self.ends else ""

    def tally(self) -> list[str]:
        """22 done, 1 skipped (finished before), 1 failed."""
        trained = [one for one in self.outcomes if one.claim in (Claim.new, Claim.resume)]
        counts = {
            "done": len(trained),
            "skipped (finished before)": sum(one.claim is Claim.done for one in self.outcomes),
            "left to another process": sum(one.claim is Claim.busy for one in self.outcomes),
            "failed": len(self.failures),
            "stopped and saved": len(self.stopped),
            "not done (fail_fast=true)": len({job.directory for job in self.jobs}) - len(self.ends),
        }
        odd = [one.record["status"] for one in trained if one.record["status"] != "ok"]
        lines = [", ".join(f"{count} {what}" for what, count in counts.items() if count)]
        for job, error in self.failures:
            lines.append(f"  {job.run}   {first_line(error)}   ({job.directory / ERROR})")
        if odd:
            listed = f"{reading(self.jobs[0], 'list')} status={','.join(sorted({*odd}))}"
            lines.append(f"{len(odd)} of them collapsed or diverged: see {listed}")
        return lines

    def retry(self) -> list[str]:
        """The next command: one that repeats what failed and nothing else."""
        left = [job for job, _ in self.failures] + self.stopped
        if len(left) > 1 and self.command and not left[0].settings.overwrite:
            return [f"retry: {self.command}   (the same command: what is finished is skipped)"]
        if left:
            return [f"retry: {job.command}" for job in left]
        found = {place: x for place, x in self.endpoints().items() if x is not None}
        if self.search and found:
            best = min(found, key=found.__getitem__)
            return [f"lowest clean training error: {percent(found[best])} of {best}"]
        read = [reading(self.jobs[0], what) for what in ("plot", "table", "verdict")]
        return [f"next: {', '.join(read)}"]


def check_all(jobs: list[Job], here: bool) -> None:
    """Raise UsageError for the first that this machine, or without ``here`` any, cannot train."""
    if not jobs:
        return  # nothing to import torch for
    from resexp.runs.run import check_settings

    for job in jobs:
        check_settings(job, here=here)
    tell_if_deep(max(job.settings.depth for job in jobs))


def brief(outcome: Outcome) -> str:
    """The end of a run in a few words, for a line of a sweep."""
    if outcome.claim is Claim.busy:
        return "left to another process"
    record, last = outcome.record, outcome.record.get("last") or {}
    iou = f"IoU {percent(last['test_iou']):>6}  " if "test_iou" in last else ""
    status = "skipped" if outcome.claim is Claim.done else record["status"]
    return (
        f"{status:<9} error: clean {percent(last.get('clean_train_error')):>6}  "
        f"test {percent(last.get('test_error')):>6}  {iou}{duration(record.get('seconds') or 0)}"
    )


def conclusion(outcome: Outcome) -> str:
    """The end of a run on its own: status, place, number beside its twin's, next command."""
    job, record = outcome.job, outcome.record
    if outcome.claim is Claim.busy:
        return f"busy      {job.directory}   another process trains it"
    place = f"{record['status']:<9} {job.directory}"
    if outcome.claim is Claim.done:
        place = f"done      {job.directory} (before: nothing to do)"
    error = percent((record.get("last") or {}).get("clean_train_error"))
    twin, beside, command = twin_of(job), "", reading(job, "plot")
    if twin is not None:
        its = cluster.record_of(twin)
        if its is None or its["status"] not in FINISHED:
            command = shlex.join(["resexp", "run", *job.flags, *twin.overrides])
            command += f", then {reading(job, 'plot')}"
        else:
            name = "plain" if "twin" in twin.extras else twin.arch
            beside = f" ({name} twin: {percent(its['last'].get('clean_train_error'))})"
    return f"{place}   clean training error {error}{beside}\n          next: {command}"


def reading(job: Job, verb: str) -> str:
    """The command that reads where a job writes."""
    results = job.settings.results
    return shlex.join(["resexp", verb, *([] if results == Settings().results else [results])])


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
    shared = ("arch.activation", "arch.slope")  # by both; the rest is the skip's
    lost = [word for word in typed if word.startswith(("arch=", "arch."))]
    kept = [word for word in typed if word not in lost or word.partition("=")[0] in shared]
    extras = {k: v for k, v in extras.items() if not k.startswith("arch.") or k in shared}
    return replace(job, arch=arch, extras=extras, overrides=[*kept, f"arch={arch}"])
