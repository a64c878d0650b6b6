"""Launchers beyond this process: what each is told, and runs that others carry out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from small_jobs import ENVIRONMENT, job_in, jobs_in, resexp

from resexp.config import launch
from resexp.launch import cluster
from resexp.launch.local import perform, run_all
from resexp.launch.session import Session
from resexp.runs.messages import Failed, Step, Stopped, WorkerDied
from resexp.runs.records import ERROR, claim, read_record, write_record
from resexp.runs.run import record_failure
from resexp.runs.stop import Interrupted, stop_signals, submitit_listens
from resexp.settings import Job, Launch, Settings, UsageError
from resexp.settings.choices import config_folder

Plugins.instance()  # registers every plugin's schema before Hydra's state is first saved

#: The keys of the packages' own schemas that our configs set or that stand beside them.
SCHEMAS: dict[str, dict[str, Any]] = {
    "joblib": {"n_jobs": -1, "pre_dispatch": "2*n_jobs", "batch_size": "auto"},
    "ray": {"ray": {"init": {"address": None}, "remote": {}}},
    "submitit_slurm": {
        "submitit_folder": "",
        "partition": None,
        "timeout_min": 60,
        "gpus_per_node": None,
        "cpus_per_task": None,
        "tasks_per_node": 1,
        "array_parallelism": 256,
        "stderr_to_stdout": False,
        "max_num_timeout": 0,
        "signal_delay_s": 120,
        "additional_parameters": {},
    },
}
PACKAGES = {
    "joblib": "hydra_joblib_launcher",
    "ray": "hydra_ray_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
}


def installed(package: str) -> bool:
    return find_spec(f"hydra_plugins.{package}") is not None


def composed(*overrides: str) -> tuple[Any, Any]:
    """The settings and the launcher's part of a composed configuration, resolved.

    On the real schemas of the packages that are installed, and our copies of the others.
    """
    for name, schema in SCHEMAS.items():
        if not installed(PACKAGES[name]):
            ConfigStore.instance().store(group="hydra/launcher", name=name, node=schema)
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = hydra.compose("config", list(overrides), return_hydra_config=True)
        return config, OmegaConf.to_container(config.hydra.launcher, resolve=True)


def test_joblib_runs_as_many_as_asked_or_one_a_core() -> None:
    config, launcher = composed("launch=joblib")
    assert (config.threads, launcher["n_jobs"]) == (1, -1)
    assert composed("launch=joblib", "launch.jobs=4")[1]["n_jobs"] == 4


def test_ray_is_told_shares_of_a_gpu_and_keeps_nothing_for_itself() -> None:
    config, launcher = composed("launch=ray", "launch.cores=2", "launch.address=auto")
    init, remote = launcher["ray"]["init"], launcher["ray"]["remote"]
    assert (remote["num_gpus"], remote["num_cpus"], config.threads) == (0.5, 2, 2)
    assert (init["address"], init["object_store_memory"]) == ("auto", None)
    assert composed("launch=ray", "launch.gpus=0")[1]["ray"]["remote"]["num_gpus"] == 0


def test_slurm_is_told_limits_and_to_queue_again() -> None:
    words = ["launch=slurm", "launch.partition=gpu", "launch.minutes=30", "results='~/out'"]
    config, launcher = composed(*words)
    assert launcher["submitit_folder"] == f"{Path.home()}/out/.slurm/%j"
    assert (launcher["partition"], launcher["timeout_min"]) == ("gpu", 30)
    assert (launcher["gpus_per_node"], launcher["cpus_per_task"], config.threads) == (1, 1, 1)
    assert (launcher["tasks_per_node"], launcher["max_num_timeout"]) == (1, 100)
    assert launcher["additional_parameters"] == {"requeue": True}
    assert not config.hydra.job_logging.disable_existing_loggers
    assert composed("launch=slurm", "launch.gpus=0")[1]["gpus_per_node"] is None


@pytest.mark.parametrize("name", ["joblib", "ray", "slurm"])
def test_a_missing_extra_is_one_line(name: str, tmp_path: Path) -> None:
    if installed(PACKAGES.get(name, "hydra_submitit_launcher")):
        pytest.skip("the extra is installed")
    with pytest.raises(UsageError, match=rf"pip install '\.\[{name}\]'"):
        launch(["-m", "depth=8", f"launch={name}", f"results={tmp_path}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("chosen", "hint"),
    [
        (Launch(name="slurm", gpus=0.5), "launch.gpus=1"),
        (Launch(name="ray", gpus=1.5), "launch.gpus=2"),
        (Launch(gpus=-1), "launch.gpus=-1"),
        (Launch(minutes=0), "launch.minutes=0"),
    ],
)
def test_what_no_launcher_can_give_is_refused(chosen: Launch, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        Settings(launch=chosen)


@pytest.fixture(autouse=True)
def looks_at_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOOK_EVERY", 1e6)


def followed(jobs: list[Job], launch: Callable[[], None]) -> Session:
    """A session whose jobs ``launch`` carried out cluster."""
    session = Session()
    session.plan(jobs, here=False)
    session.follow(jobs, launch)
    session.close()
    return session


def write_status(job: Job, **changed: Any) -> None:
    write_record(job.directory, read_record(job.directory) | changed)


@pytest.mark.process
def test_what_others_did_is_read_from_the_run_directories(tmp_path: Path) -> None:
    perform(jobs_in(tmp_path, range(1))[0])
    jobs = jobs_in(tmp_path, range(7))
    _, done, failed, broken, saved, other, lost = jobs

    def launch() -> None:
        perform(done)
        perform(failed)
        write_status(failed, status="failed", error="E")
        broken.directory.mkdir()
        (broken.directory / ERROR).write_text("Traceback\nresexp.settings.UsageError: no data\n")
        perform(saved)
        write_status(saved, status="interrupted")
        stack.enter_context(claim(other))
        raise RuntimeError("some report\n\x1b[36mray.Error: node lost\x1b[39m")

    with ExitStack() as stack:
        session = followed(jobs, launch)
    assert session.tally()[:4] == [
        "1 done, 1 skipped (finished before), 1 left to another process, 3 failed, "
        "1 stopped and saved",
        f"  residual-8-s2   E   ({failed.directory / ERROR})",
        f"  residual-8-s3   no data   ({broken.directory / ERROR})",
        "  residual-8-s6   the launcher ended it without a word: run it again (node lost)"
        f"   ({lost.directory / ERROR})",
    ]
    assert session.stopped == [saved]
    assert session.exit_code == 1


def test_a_stopped_run_is_no_failure(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, range(2))

    def launch() -> None:
        for job in jobs:
            perform(job)
        write_status(jobs[1], status="interrupted")

    session = followed(jobs, launch)
    assert (session.tally()[0], session.exit_code) == ("1 done, 1 stopped and saved", 75)


def test_messages_come_while_the_launcher_waits_and_of_new_records_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOOK_EVERY", 0.05)
    old, new = jobs_in(tmp_path, range(2))
    perform(old)
    write_status(old, status="failed", error="old")
    planned = [cluster.plan(job) for job in (old, new)]
    messages = cluster.run_all(planned, over := Future())
    perform(new)
    write_status(new, status="running")
    first = next(messages)
    assert first[0] is new
    assert isinstance(first[1], Step)
    assert first[1].step == 0  # announced as what begins
    assert next(messages)[1].step == 6  # type: ignore[union-attr]
    over.set_exception(KeyboardInterrupt())
    assert list(messages) == []


def test_a_worker_records_what_keeps_its_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "run_in_processes", lambda jobs, at_a_time: run_all(jobs))
    refused = job_in(Path("out"), device="cuda:7")
    os.mkdir("submitted-from")
    cluster.work(refused, str(tmp_path / "submitted-from"), 0)
    text = (tmp_path / "submitted-from" / refused.directory / ERROR).read_text()
    assert cluster.last_line(text).startswith("device=cuda:7, but")


def test_who_listened_before_hears_of_the_signals_behind_the_first() -> None:
    heard = []

    def hear(signum: int, frame: FrameType | None) -> None:
        heard.append(signum)

    before = {one: signal.signal(one, hear) for one in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert (stop.signum, stop.later, heard) == (signal.SIGTERM, [signal.SIGUSR2], [])
        assert heard == [signal.SIGUSR2]
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class Requeued(Exception):
    """What the stand-in for submitit's handler does in place of leaving the process."""


@pytest.mark.process
def test_under_submitit_a_run_goes_on_after_sigterm_and_leaves_by_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handlers pass SIGTERM over, and queue the job again on SIGUSR2."""
    passed_over = []

    def bypass(signum: int, frame: FrameType | None) -> None:
        passed_over.append(signum)

    def requeue(signum: int, frame: FrameType | None) -> None:
        raise Requeued

    bypass.__module__ = "submitit.core.job_environment"
    sent = iter([signal.SIGTERM, signal.SIGUSR2])

    def stopped(jobs: list[Job], at_a_time: int) -> Iterator[Any]:
        yield jobs[0], Stopped()
        raise Interrupted(next(sent))

    monkeypatch.setattr(cluster, "run_in_processes", stopped)
    before = [signal.signal(signal.SIGTERM, bypass), signal.signal(signal.SIGUSR2, requeue)]
    try:
        assert submitit_listens()
        with pytest.raises(Requeued):
            cluster.work(job_in(tmp_path), str(tmp_path), 0)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR2, before[1])
    assert passed_over == [signal.SIGTERM]
    assert not submitit_listens()


def test_a_killed_child_costs_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = jobs_in(tmp_path, range(2))
    died = WorkerDied("the process of this run was killed by signal 9: run it again to go on")

    def dies(jobs: list[Job], at_a_time: int) -> Iterator[Any]:
        record_failure(jobs[0], died)
        yield jobs[0], Failed(died)

    def launch() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "run_in_processes", dies)
            cluster.work(first, str(tmp_path), 0)
        perform(second)

    session = followed([first, second], launch)
    assert [one.job for one in session.outcomes] == [second]
    assert [str(error) for _, error in session.failures] == [str(died)]


TINY = ["-m", "depth=8", "width=4", "steps=4", "batch_size=8", "eval_every=2", "seed=0,1,2,3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["launch=joblib", "launch.jobs=2"], "hydra_joblib_launcher"),
        (["launch=ray", "+hydra.launcher.ray.init.num_gpus=1"], "hydra_ray_launcher"),
        (["hydra/launcher=submitit_local"], "hydra_submitit_launcher"),
    ],
)
def test_four_runs_by_a_real_launcher(words: list[str], package: str, tmp_path: Path) -> None:
    """Under Ray at half a logical GPU each: two at a time."""
    if not installed(package):
        pytest.skip(f"{package} is not installed")
    alone = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    first = resexp(tmp_path, "run", *TINY, *words, env=alone)
    again = resexp(tmp_path, "run", *TINY, "threads=1", env=alone)
    assert (first.returncode, first.stdout.splitlines()[0]) == (0, "4 done"), first.stderr
    assert again.stdout.splitlines()[0] == "4 skipped (finished before)"
