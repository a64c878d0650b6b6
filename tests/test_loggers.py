"""Extra loggers: asked for by name, absent ones refused early, broken ones said once."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from small_jobs import job_in

from resexp.launch import local
from resexp.runs import loggers, ready, records
from resexp.runs import run as running
from resexp.runs.loggers import QUIET, Logger, check_loggers, open_loggers
from resexp.settings import Settings, UsageError, as_dict

RECORD: dict[str, Any] = {
    "run": "plain-20-s0",
    "name": "digits",
    "digest": "0123456789ab",
    "started": "2026-01-01T00:00:00+00:00",
    "settings": as_dict(Settings()),
    "last": {},
}


class Fake:
    """Remembers what it is given, and raises where it is told to."""

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks
        self.taken: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        if self.breaks == "log" and self.taken:
            raise OSError("disk full\nmore")
        self.taken.append((step, values))

    def close(self) -> None:
        self.closed += 1
        if self.breaks:
            raise RuntimeError("no way out")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back the environment variables that opening a logger sets."""
    for key in QUIET:
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)


def opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, real: Any, **record: Any
) -> tuple[Logger, list[str]]:
    """The logger of ``real``, under the name of a package that is there, and its warnings."""
    said: list[str] = []
    monkeypatch.setitem(loggers.LOGGERS, "json", lambda place, record: real)
    (logger,) = open_loggers(["json", "json"], folder, RECORD | record, said.append)
    return logger, said


# --- guarding


def test_values_reach_a_logger_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, said = opened(tmp_path, monkeypatch, fake := Fake())
    logger.log(1, {"test_error": 5.0})
    logger.close()
    logger.close()
    assert (fake.taken, fake.closed, said) == ([(1, {"test_error": 5.0})], 1, [])


def test_a_logger_that_breaks_is_reported_once_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, said = opened(tmp_path, monkeypatch, fake := Fake("log"))
    for step in range(5):
        logger.log(step, {"test_error": 5.0})
    logger.close()
    assert [step for step, _ in fake.taken] == [0]
    assert fake.closed == 1  # it may hold files open
    assert said == [
        "logger json stopped (OSError: disk full); training goes on, metrics.csv has every number"
    ]


def test_a_logger_that_breaks_while_closing_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, said = opened(tmp_path, monkeypatch, Fake("close"))
    logger.log(1, {})
    logger.close()
    logger.close()
    assert len(said) == 1 and "no way out" in said[0]


def test_ctrl_c_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(fake, "log", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, monkeypatch, fake)[0].log(1, {})


# --- opening


def test_what_cannot_be_logged_to_is_refused_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match=r"unknown logger wand. Did you mean wandb\?"):
        check_loggers(["wand"])
    with pytest.raises(UsageError, match=r"Choose from tensorboard, mlflow, wandb\."):
        check_loggers(["neptune"])
    monkeypatch.setitem(loggers.LOGGERS, name := "no_such_package", Fake)
    with pytest.raises(UsageError) as refusal:
        check_loggers([name])
    assert str(refusal.value) == f"loggers=[{name}] needs pip install '.[{name}]' in the clone."


def test_every_logger_has_an_extra_of_its_name() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert all(extras[name][0].startswith(name) for name in loggers.LOGGERS)


def test_a_logger_that_does_not_open_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loggers.LOGGERS, "json", lambda place, record: int("bad file"))
    said: list[str] = []
    (logger,) = open_loggers(["json"], tmp_path, RECORD, said.append)
    logger.log(1, {})
    logger.close()
    assert len(said) == 1 and "logger json stopped (ValueError: invalid literal" in said[0]


def test_a_fresh_run_starts_an_empty_folder_and_a_resumed_one_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "json" / "old"
    old.parent.mkdir()
    old.write_text("")
    opened(tmp_path, monkeypatch, Fake(), last={"step": 40})
    assert old.exists()
    opened(tmp_path, monkeypatch, Fake())
    assert old.parent.exists() and not old.exists()


def test_nothing_is_sent_unless_a_person_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    opened(tmp_path, monkeypatch, Fake())
    assert os.environ["WANDB_MODE"] == "online"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_no_logger_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys; import resexp.runs.loggers as l; l.open_loggers([], None, {}, print); "
        "print(*{'torch', 'tensorboard', 'mlflow', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- read back by their own readers


def log_twice(name: str, directory: Path) -> None:
    """Two rows, the second with a loss that is no number, then two more after a resumption."""
    said: list[str] = []
    (first,) = open_loggers([name], directory, RECORD, said.append)
    first.log(22, {"test_error": 40.0, "train_loss": 1.5})
    first.log(44, {"test_error": 20.0, "train_loss": math.nan})
    first.close()
    (again,) = open_loggers([name], directory, RECORD | {"last": {"step": 44}}, said.append)
    again.log(66, {"test_error": 10.0, "train_loss": 0.5})
    again.close()
    assert said == []


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    log_twice("tensorboard", tmp_path)
    assert scalars(tmp_path, "test_error") == [(22, 40.0), (44, 20.0), (66, 10.0)]
    assert math.isnan(scalars(tmp_path, "train_loss")[1][1])


def test_tensorboard_forgets_the_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    for last, values in ((0, {22: 40.0, 44: 20.0}), (22, {44: 21.0})):
        record = RECORD | {"last": {"step": last} if last else {}}
        (logger,) = open_loggers(["tensorboard"], tmp_path, record, pytest.fail)
        for step, value in values.items():
            logger.log(step, {"test_error": value})
        logger.close()
    assert scalars(tmp_path, "test_error") == [(22, 40.0), (44, 21.0)]


def test_mlflow_reads_back_what_was_logged(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    log_twice("mlflow", tmp_path)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("plain-20-s0", "FINISHED")
    assert run.data.params["data.name"] == "digits" and run.data.params["depth"] == "20"
    history = client.get_metric_history(run.info.run_id, "test_error")
    assert [(metric.step, metric.value) for metric in history] == [
        (22, 40.0),
        (44, 20.0),
        (66, 10.0),
    ]


def test_wandb_writes_offline_into_the_run_directory(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); "
        "from test_loggers import log_twice; log_twice('wandb', Path(sys.argv[1]))"
    )
    # A process of its own: wandb keeps a service and hooks for as long as its process lives.
    kept = {key: value for key, value in os.environ.items() if key not in QUIET}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=kept,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    files = list((tmp_path / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2  # one a part; both carry the same id
    assert len({path.stem for path in files}) == 1
    assert all(path.stat().st_size > 0 for path in files)
    held = b"".join(path.read_bytes() for path in files)
    assert b"test_error" in held and b"momentum" in held
    assert list(tmp_path.iterdir()) == [tmp_path / "wandb"]


@pytest.mark.process
@pytest.mark.usefixtures("few_images")
def test_a_run_feeds_its_loggers_what_its_csv_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Fake()
    monkeypatch.setattr(ready, "check_loggers", lambda names: None)
    monkeypatch.setattr(running, "open_loggers", lambda *arguments: [ear])
    job = job_in(tmp_path, loggers=["ear"])
    local.perform(job)
    rows = records.keep_rows(job.directory, 6)
    assert ear.taken == [(row.step, records.as_written(row)) for row in rows]
    assert (len(rows), ear.closed) == (3, 1)
