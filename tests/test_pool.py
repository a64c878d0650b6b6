"""Several runs at a time: the same numbers as one by one, and a dead worker costs its own run."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from resexp.launch.local import perform
from resexp.launch.processes import placed, run_all
from resexp.launch.session import Session
from resexp.runs.messages import Failed, Over, Step, Stopped, WorkerDied
from resexp.runs.records import METRICS, Claim, read_record
from resexp.runs.stop import Interrupted
from resexp.settings import Job, Launch, Settings

pytestmark = pytest.mark.process


def jobs_in(folder: Path, seeds: range, **settings: Any) -> list[Job]:
    """Tiny runs of one thread, told apart by their seeds."""
    usual: dict[str, Any] = {
        "depth": 8,
        "width": 4,
        "steps": 6,
        "batch_size": 8,
        "eval_every": 3,
        "threads": 1,
        "checkpoint_every": 0,
        "results": str(folder),
        "launch": Launch(name="processes", jobs=2),
    }
    common = Settings(**usual | settings)
    names: dict[str, Any] = {"arch": common.arch.merge.value, "extras": {}, "overrides": []}
    return [Job(settings=replace(common, seed=seed), config="", **names) for seed in seeds]


def numbers(job: Job) -> list[list[str]]:
    """metrics.csv without its two columns of time."""
    lines = (job.directory / METRICS).read_text().splitlines()
    return [line.split(",")[:-2] for line in lines]


def test_runs_at_a_time_have_the_numbers_of_runs_one_by_one(tmp_path: Path) -> None:
    together, alone = jobs_in(tmp_path / "both", range(3)), jobs_in(tmp_path / "one", range(3))
    session = Session()
    assert session.plan(together) == [0, 1, 2]
    session.note_all(session.carry_out(session.jobs))
    session.close()
    assert sorted(outcome.job.settings.seed for outcome in session.outcomes) == [0, 1, 2]
    assert {outcome.claim for outcome in session.outcomes} == {Claim.new}
    for job, twin in zip(alone, together, strict=True):
        perform(job)
        assert numbers(twin) == numbers(job)


def test_a_killed_worker_costs_its_own_run_alone(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path / "killed", range(3), steps=60)
    victim, ends, killed = jobs[0], {}, False
    for job, message in run_all(jobs, at_a_time=2):
        match message:
            case Step(record, step) if job == victim and step >= 3 and not killed:
                killed = True
                os.kill(int(record["environment"]["process"]), signal.SIGKILL)
            case Over() | Failed() | Stopped():
                ends[job.run] = message
    end = ends[victim.run]
    assert isinstance(end, Failed)
    assert isinstance(end.error, WorkerDied)
    assert "signal 9" in str(end.error)
    assert all(isinstance(ends[job.run], Over) for job in jobs[1:])
    assert read_record(victim.directory)["status"] == "failed"
    assert "signal 9" in (victim.directory / "error.txt").read_text()

    (whole,) = jobs_in(tmp_path / "whole", range(1), steps=60)
    perform(whole)
    assert perform(victim).claim is Claim.resume
    assert numbers(victim) == numbers(whole)


@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_command_saves_every_run_at_work(tmp_path: Path, one: signal.Signals) -> None:
    """Also one whose worker has not begun: stopped is not failed."""
    jobs = jobs_in(tmp_path, range(3), steps=2000)
    asked, ends = False, []
    with pytest.raises(Interrupted) as stop:
        for _, message in run_all(jobs, at_a_time=2):
            if not isinstance(message, Step):
                ends.append(message)
            elif message.step >= 3 and not asked:
                asked = True
                for child in active_children():  # as a terminal does
                    if one == signal.SIGINT and child.pid is not None:
                        os.kill(child.pid, one)
                os.kill(os.getpid(), one)
    assert stop.value.exit_code == (130 if one == signal.SIGINT else 75)
    assert len(ends) == 2
    assert all(isinstance(end, Stopped) for end in ends)
    begun = [job for job in jobs if (job.directory / "run.json").exists()]
    assert "interrupted" in {read_record(job.directory)["status"] for job in begun}
    assert not jobs[2].directory.exists()


def test_threads_and_gpus_are_dealt_out(tmp_path: Path) -> None:
    jobs = [
        replace(job, settings=replace(job.settings, threads=0, device="auto"))
        for job in jobs_in(tmp_path, range(4))
    ]
    devices = [job.settings.device for job in placed(jobs, gpus=2)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    asked = [replace(job, settings=replace(job.settings, device="cpu", threads=3)) for job in jobs]
    assert placed(asked, gpus=2) == asked
