"""Several runs at a time: the same numbers as one by one, and a dead worker costs its own run."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children
from pathlib import Path

import pytest
from small_jobs import cells, jobs_in

from resexp.launch.local import perform
from resexp.launch.processes import placed, run_all
from resexp.launch.session import Session
from resexp.runs.messages import Step, Stopped, WorkerDied
from resexp.runs.records import Claim, read_record
from resexp.runs.stop import Interrupted
from resexp.settings import Launch

pytestmark = pytest.mark.process


def test_runs_at_a_time_have_the_numbers_of_others_and_a_killed_one_costs_itself_alone(
    tmp_path: Path,
) -> None:
    two = Launch(name="processes", jobs=2)
    jobs = jobs_in(tmp_path / "together", range(3), steps=60, launch=two)
    alone = jobs_in(tmp_path / "alone", range(3), steps=60)
    victim, killed, session = jobs[0], False, Session()
    assert session.plan(jobs) == [0, 1, 2]
    for job, message in session.carry_out(session.jobs):
        session.note(job, message)
        if isinstance(message, Step) and job == victim and message.step >= 3 and not killed:
            killed = True
            os.kill(int(message.record["environment"]["process"]), signal.SIGKILL)
    session.close()
    ((failed, error),) = session.failures
    assert failed == victim
    assert isinstance(error, WorkerDied)
    assert "signal 9" in str(error)
    assert sorted(outcome.job.settings.seed for outcome in session.outcomes) == [1, 2]
    assert {outcome.claim for outcome in session.outcomes} == {Claim.new}
    assert read_record(victim.directory)["status"] == "failed"
    assert "signal 9" in (victim.directory / "error.txt").read_text()

    assert perform(victim).claim is Claim.resume
    for job, twin in zip(jobs, alone, strict=True):
        perform(twin)
        assert cells(job) == cells(twin)


def test_a_stopped_command_saves_every_run_at_work(tmp_path: Path) -> None:
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
                    os.kill(child.pid or 0, signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
    assert stop.value.exit_code == 130
    assert [type(end) for end in ends] == [Stopped, Stopped]
    begun = [job for job in jobs if (job.directory / "run.json").exists()]
    assert "interrupted" in {read_record(job.directory)["status"] for job in begun}
    assert not jobs[2].directory.exists()


def test_gpus_are_dealt_out(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, range(4), device="auto")
    devices = [job.settings.device for job in placed(jobs, gpus=2)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    asked = jobs_in(tmp_path, range(4), device="cpu")
    assert placed(asked, gpus=2) == asked
