"""Runs that take turns in one process: the numbers of runs one by one, and each fails alone."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from small_jobs import cells, job_in, jobs_in

from resexp import data
from resexp.data import Images
from resexp.launch import local
from resexp.launch.local import perform, run_all
from resexp.launch.session import Session
from resexp.runs import run as running
from resexp.runs.messages import Failed, Message, Outcome, Step
from resexp.runs.records import METRICS, Claim, claim, read_record
from resexp.runs.stop import Interrupted
from resexp.settings import Arch, Data, Job, Launch, Merge, Settings
from resexp.train import fit as fitting
from resexp.train.fit import State, fit
from resexp.train.optimizers import OPTIMIZERS

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("few_images")]

LOAD = running.load


def eight(folder: Path) -> list[Job]:
    """Plain and residual runs by every optimizer."""
    archs = Arch(), Arch(merge=Merge.residual)
    return [
        job_in(folder, arch=arch, optimizer=rule, seed=seed)
        for arch in archs
        for seed, rule in enumerate(OPTIMIZERS)
    ]


def together(
    jobs: list[Job], see: Callable[[Job, Step], object] | None = None, at_a_time: int = 8
) -> dict[str, Message]:
    """How each run ended; ``see`` is called with every step of each."""
    ends = {}
    for job, message in run_all(jobs, at_a_time):
        if not isinstance(message, Step):
            ends[job.run] = message
        elif see is not None:
            see(job, message)
    return ends


def all_over(jobs: list[Job]) -> bool:
    return all(isinstance(end, Outcome) for end in together(jobs).values())


def failing(victim: Job, step: int) -> Callable[..., Iterator[Any]]:
    """``fit``, but that one run raises after one step."""

    def fails(state: State, settings: Settings, *words: Any) -> Iterator[Any]:
        for row in fit(state, settings, *words):
            yield row
            if state.step == step and settings == victim.settings:
                raise RuntimeError("out of memory")

    return fails


def signal_at(victim: Job, step: int, one: signal.Signals) -> Callable[[Job, Step], None]:
    def see(job: Job, message: Step) -> None:
        if job is victim and message.step == step:
            os.kill(os.getpid(), one)

    return see


def test_one_of_eight_fails_and_seven_have_the_numbers_of_separate_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, alone = eight(tmp_path / "together"), eight(tmp_path / "alone")
    victim = jobs[2]
    with monkeypatch.context() as patch:
        patch.setattr(running, "fit", failing(victim, 4))
        ends = together(jobs)
    assert {run for run, end in ends.items() if isinstance(end, Failed)} == {victim.run}
    assert len(ends) == len(jobs) == 8
    for job in alone:
        perform(job)
    same = [cells(job) == cells(one) for job, one in zip(jobs, alone, strict=True)]
    assert same == [job is not victim for job in jobs]
    assert read_record(victim.directory)["status"] == "failed"
    assert "out of memory" in (victim.directory / "error.txt").read_text()
    assert sum((job.directory / "error.txt").exists() for job in jobs) == 1

    assert all_over(jobs)
    assert cells(victim) == cells(alone[2])
    assert not (victim.directory / "error.txt").exists()


def test_steps_are_taken_in_turn_and_the_next_begins_when_one_ends(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, range(3), steps=2, eval_every=1)
    seen = [
        (jobs.index(job), message.step if isinstance(message, Step) else "end")
        for job, message in run_all(jobs, 2)
    ]
    both = [(run, step) for step in (0, 1, 2, "end") for run in (0, 1)]
    assert seen == [*both, *((2, step) for step in (0, 1, 2, "end"))]


def test_images_are_loaded_once_for_all_and_once_for_each_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: Images
) -> None:
    loads: list[str] = []

    def load(settings: Data) -> Images:
        loads.append(settings.name)
        return replace(few_digits)  # unknown outside

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(running, "load", LOAD)
    monkeypatch.setattr(running, "_newest", None)
    monkeypatch.setattr(running, "_loaded", WeakValueDictionary())
    other = Data(name="others")
    jobs = [*jobs_in(tmp_path / "a", range(2)), *jobs_in(tmp_path / "b", range(2), data=other)]
    mixed = [jobs[0], jobs[2], jobs[1], jobs[3]]
    assert all_over(mixed)
    assert loads == ["digits", "others"]
    gc.collect()
    (key,) = running._loaded  # the newest alone is kept for the next sweep
    assert key[0] == repr(other)


def test_what_is_done_or_held_by_another_process_is_skipped(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, range(3))
    perform(jobs[0])
    with claim(jobs[1]) as mine:
        assert mine is Claim.new
        ends = together(jobs).values()
    claims = [end.claim for end in ends if isinstance(end, Outcome)]
    assert claims == [Claim.done, Claim.busy, Claim.new]
    assert not (jobs[1].directory / METRICS).exists()


def test_a_run_stopped_while_its_row_is_computed_is_saved_with_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the others have a turn between a step and its row."""
    jobs, alone = jobs_in(tmp_path / "stopped", range(2)), jobs_in(tmp_path / "alone", range(2))
    for twin in alone:
        perform(twin)
    monkeypatch.setattr(fitting, "computes_by_itself", lambda device: True)
    turns: list[tuple[int, bool]] = []
    with pytest.raises(Interrupted):
        see = signal_at(jobs[1], 3, signal.SIGTERM)
        together(jobs, lambda job, it: (turns.append((it.step, it.row is None)), see(job, it)))
    assert turns[-2:] == [(3, True), (3, True)]
    assert [cells(job) for job in jobs] == [cells(twin)[:2] for twin in alone]
    assert all_over(jobs)
    assert [cells(job) for job in jobs] == [cells(twin) for twin in alone]


def test_a_signal_saves_all_and_they_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    jobs, alone = jobs_in(tmp_path / "stopped", range(4)), jobs_in(tmp_path / "alone", range(4))
    with pytest.raises(Interrupted) as stop:
        together(jobs, signal_at(jobs[1], 4, signal.SIGINT), at_a_time=3)
    assert stop.value.exit_code == 130
    begun = jobs[:3]
    assert {read_record(job.directory)["status"] for job in begun} == {"interrupted"}
    assert not jobs[3].directory.exists()
    steps: list[int] = []
    together(jobs, lambda job, message: steps.append(message.step))
    assert steps[:4] == [4, 4, 3, 0]  # each from where it stood
    for job, twin in zip(jobs, alone, strict=True):
        perform(twin)
        assert cells(job) == cells(twin)


def test_after_a_failure_with_fail_fast_runs_are_saved_and_no_more_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_in(tmp_path, range(4), fail_fast=True)
    monkeypatch.setattr(running, "fit", failing(jobs[0], 2))
    ends = together(jobs, at_a_time=3)
    kinds = [type(ends[job.run]).__name__ for job in jobs[:3]]
    assert kinds == ["Failed", "Stopped", "Stopped"]
    assert len(ends) == 3
    statuses = [read_record(job.directory)["status"] for job in jobs[:3]]
    assert statuses == ["failed", "interrupted", "interrupted"]
    assert not jobs[3].directory.exists()


def test_a_run_that_cannot_be_saved_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_in(tmp_path, range(3))
    real = running.save

    def save(job: Job, *rest: Any) -> None:
        if job is jobs[0]:
            raise OSError("no space left on device")
        real(job, *rest)

    monkeypatch.setattr(running, "save", save)
    with pytest.raises(Interrupted):
        together(jobs, signal_at(jobs[2], 2, signal.SIGTERM))
    statuses = [read_record(job.directory)["status"] for job in jobs]
    assert statuses == ["failed", "interrupted", "interrupted"]


def test_threads_are_each_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[tuple[int, int]] = set()

    def watched(state: State, settings: Settings, *words: Any) -> Iterator[Any]:
        for row in fit(state, settings, *words):
            used.add((settings.threads, torch.get_num_threads()))
            yield row

    monkeypatch.setattr(running, "fit", watched)
    more = jobs_in(tmp_path, range(1, 2), threads=2, steps=2)
    assert all_over([*jobs_in(tmp_path, range(1), threads=1), *more])
    assert used == {(1, 1), (2, 2)}


def test_a_run_alone_sets_its_threads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    for module in (running, local):
        monkeypatch.setattr(module, "prepare", lambda threads, *_: calls.append(threads))
    list(run_all(jobs_in(tmp_path, range(2))))
    assert calls == [1, 1]


def test_the_command_counts_the_failure_and_forgets_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_in(tmp_path, range(3), launch=Launch(name="lockstep"))
    monkeypatch.setattr(running, "fit", failing(jobs[1], 3))
    session = Session()
    session.plan(jobs)
    session.note_all(session.carry_out(session.jobs))
    session.close()
    assert [outcome.job for outcome in session.outcomes] == [jobs[0], jobs[2]]
    ((failed, error),) = session.failures
    assert failed is jobs[1]
    assert error.__traceback__ is None
    assert session.exit_code == 1
