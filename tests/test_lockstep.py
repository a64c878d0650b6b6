"""Runs that take turns in one process: the numbers of runs one by one, and each fails alone."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Tensor

from resexp import data
from resexp.data import Images, batches
from resexp.launch.lockstep import run_all
from resexp.launch.session import Session
from resexp.runs import run as task
from resexp.runs.records import METRICS, Claim, Row, claim, read_record
from resexp.runs.run import perform, unwatched
from resexp.runs.stop import Interrupted
from resexp.settings import Arch, Data, Job, Launch, Merge, Settings

STEPS = 6


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch, few_digits: Images) -> None:
    """Train on forty images, unknown outside, and let the disk flush when it likes."""
    monkeypatch.setattr(task, "_newest", None)
    monkeypatch.setattr(task, "_loaded", WeakValueDictionary())
    monkeypatch.setattr(data, "load", lambda settings: replace(few_digits))
    monkeypatch.setattr(os, "fsync", lambda file: None)


def jobs_in(folder: Path, seeds: range, arch: Merge = Merge.plain, **settings: Any) -> list[Job]:
    """Tiny runs told apart by their seeds."""
    usual: dict[str, Any] = {
        "arch": Arch(merge=arch),
        "depth": 8,
        "width": 4,
        "steps": STEPS,
        "batch_size": 8,
        "eval_every": 3,
        "threads": 1,
        "results": str(folder),
        "launch": Launch(name="lockstep"),
    }
    common = Settings(**usual | settings)
    return [
        Job(
            settings=replace(common, seed=seed), arch=arch.value, extras={}, overrides=[], config=""
        )
        for seed in seeds
    ]


def eight(folder: Path) -> list[Job]:
    return [
        job for arch in (Merge.plain, Merge.residual) for job in jobs_in(folder, range(4), arch)
    ]


def numbers(job: Job) -> list[list[str]]:
    """metrics.csv without its two columns of time."""
    lines = (job.directory / METRICS).read_text().splitlines()
    return [line.split(",")[:-2] for line in lines]


def together(jobs: list[Job], watch: task.Watch = unwatched, at_a_time: int = 8) -> dict[str, str]:
    """How each run ended."""
    return {job.run: end[0] for job, end in run_all(jobs, at_a_time, watch)}


def at(run: str, step: int, what: Callable[[], None]) -> task.Watch:
    """A watcher that does something after one step of one run."""

    def watch(record: dict[str, Any], done: int, row: Row | None) -> None:
        if (record["run"], done) == (run, step):
            what()

    return watch


def fail() -> None:
    raise RuntimeError("out of memory")


def test_one_of_eight_fails_and_seven_have_the_numbers_of_separate_runs(tmp_path: Path) -> None:
    jobs, alone = eight(tmp_path / "together"), eight(tmp_path / "alone")
    victim = jobs[2]
    ends = together(jobs, at(victim.run, 4, fail))
    assert ends == {job.run: "failed" if job is victim else "over" for job in jobs}
    for job in alone:
        perform(job)
    same = [numbers(job) == numbers(one) for job, one in zip(jobs, alone, strict=True)]
    assert same == [job is not victim for job in jobs]
    assert read_record(victim.directory)["status"] == "failed"
    assert "out of memory" in (victim.directory / "error.txt").read_text()
    assert sum((job.directory / "error.txt").exists() for job in jobs) == 1

    assert together(jobs) == dict.fromkeys(ends, "over")
    assert numbers(victim) == numbers(alone[2])


def test_steps_are_taken_in_turn(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    jobs = jobs_in(tmp_path, range(2), steps=2, eval_every=1)
    together(jobs, lambda record, step, row: seen.append((record["run"], step)))
    first, second = (job.run for job in jobs)
    assert seen == [(run, step) for step in range(3) for run in (first, second)]


def test_no_more_at_a_time_than_asked_and_the_next_begins_when_one_ends(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, range(5))
    at_work: set[str] = set()
    most = 0

    def watch(record: dict[str, Any], step: int, row: Row | None) -> None:
        nonlocal most
        at_work.add(record["run"])
        most = max(most, len(at_work))

    for job, _ in run_all(jobs, 2, watch):
        at_work.remove(job.run)
        assert len(at_work) <= 1
    assert most == 2
    assert not at_work


def test_images_are_loaded_once_for_all_and_once_for_each_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def load(settings: Data) -> Images:
        loads.append(settings.name)
        return replace(few)

    few = data.load(Data())
    monkeypatch.setattr(data, "load", load)
    other = Data(name="others")
    jobs = [*jobs_in(tmp_path / "a", range(2)), *jobs_in(tmp_path / "b", range(2), data=other)]
    mixed = [jobs[0], jobs[2], jobs[1], jobs[3]]
    assert [end[0] for _, end in run_all(mixed, 4, unwatched)] == ["over"] * 4
    assert loads == ["digits", "others"]
    gc.collect()
    assert [key[0] for key in task._loaded] == [
        repr(other)
    ]  # the newest alone is kept for the next sweep


def test_what_is_done_or_held_by_another_process_is_skipped(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, range(3))
    perform(jobs[0])
    with claim(jobs[1]) as mine:
        assert mine is Claim.new
        ends = {job.run: end[1] for job, end in run_all(jobs, 3, unwatched)}
    claims = [ends[job.run].claim for job in jobs]
    assert claims == [Claim.done, Claim.busy, Claim.new]
    assert not (jobs[1].directory / METRICS).exists()


@pytest.mark.parametrize(("one", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_all_and_they_go_on_as_if_nothing_had_been(
    tmp_path: Path, one: signal.Signals, code: int
) -> None:
    jobs, alone = jobs_in(tmp_path / "stopped", range(4)), jobs_in(tmp_path / "alone", range(4))
    with pytest.raises(Interrupted) as stop:
        together(jobs, at(jobs[1].run, 4, lambda: os.kill(os.getpid(), one)), at_a_time=3)
    assert stop.value.exit_code == code
    begun = jobs[:3]
    assert {read_record(job.directory)["status"] for job in begun} == {"interrupted"}
    assert not jobs[3].directory.exists()
    steps: list[int] = []
    together(jobs, lambda record, step, row: steps.append(step))
    assert steps[:4] == [4, 4, 3, 0]  # each from where it stood
    for job, twin in zip(jobs, alone, strict=True):
        perform(twin)
        assert numbers(job) == numbers(twin)


def test_runs_are_saved_when_no_more_is_wanted_of_them(tmp_path: Path) -> None:
    jobs = [*jobs_in(tmp_path / "short", range(1), steps=2), *jobs_in(tmp_path / "long", range(2))]
    ends = run_all(jobs, 3, unwatched)
    assert next(ends)[0] is jobs[0]
    ends.close()
    statuses = [read_record(job.directory)["status"] for job in jobs]
    assert statuses == ["collapsed", "interrupted", "interrupted"]


def test_a_run_that_cannot_be_saved_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_in(tmp_path, range(3))
    real = task.save

    def save(job: Job, *rest: Any) -> None:
        if job is jobs[0]:
            raise OSError("no space left on device")
        real(job, *rest)

    monkeypatch.setattr(task, "save", save)
    with pytest.raises(Interrupted):
        together(jobs, at(jobs[2].run, 2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    statuses = [read_record(job.directory)["status"] for job in jobs]
    assert statuses == ["failed", "interrupted", "interrupted"]


def test_threads_are_each_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[int, set[int]] = {}
    at_work = -1
    real = batches.batch

    def batch(images: Tensor, *rest: Any) -> Tensor:
        used.setdefault(at_work, set()).add(torch.get_num_threads())
        return real(images, *rest)

    monkeypatch.setattr(batches, "batch", batch)
    jobs = [
        *jobs_in(tmp_path, range(1), threads=1),
        *jobs_in(tmp_path, range(1, 2), threads=2),
    ]
    turns = [task.steps(job, unwatched) for job in jobs]
    for one in turns:
        next(one)
    for _ in range(3):
        for place, one in enumerate(turns):
            at_work = place
            next(one)
    for one in turns:
        one.close()
    assert used == {0: {1}, 1: {2}}


def test_the_command_counts_the_failure_and_forgets_its_network(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, range(3))
    session = Session()
    session.plan(jobs)
    assert session.screen is not None
    session.screen.watch = at(jobs[1].run, 3, fail)  # type: ignore[method-assign]
    session.perform_together()
    session.close()
    assert [outcome.job for outcome in session.outcomes] == [jobs[0], jobs[2]]
    ((failed, error),) = session.failures
    assert failed is jobs[1]
    assert error.__traceback__ is None
    assert session.exit_code == 1
