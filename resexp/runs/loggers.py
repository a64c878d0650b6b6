"""Places beside metrics.csv that a run's numbers may also go to: TensorBoard, MLflow, wandb.

All are extras, none is needed, and none can stop a run: what one raises is said once, and the rest
of the run goes without it. Each writes into a folder of the run directory that has its name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from resexp.settings import UsageError, flatten
from resexp.settings.choices import nearest

#: Where nothing may be sent unless a person says so.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow 3 wants to be asked for its file store
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
}


def check_loggers(names: Sequence[str]) -> None:
    """Raise UsageError, before anything is trained, for a logger that does not exist or is absent.

    Looks packages up without importing them.
    """
    for name in names:
        if name not in LOGGERS:
            hint = nearest(name, LOGGERS) or f" Choose from {', '.join(LOGGERS)}."
            raise UsageError(f"unknown logger {name}.{hint}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"loggers=[{name}] needs pip install '.[{name}]' in the clone.")


def open_loggers(
    names: Sequence[str], directory: Path, record: dict[str, Any], warn: Callable[[str], None]
) -> list[Logger]:
    """A logger for each name that ``check_loggers`` let pass, in the run directory ``directory``.

    ``record`` is run.json; where it has a last step the run is resumed and its logs go on, else
    what an earlier run left in the logger's folder is removed.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    return [Logger(name, directory / name, record, warn) for name in dict.fromkeys(names)]


def last_step(record: dict[str, Any]) -> int:
    """The step up to which a resumed run was recorded; 0 for a fresh one."""
    return int(record["last"].get("step", 0))


class Logger:
    """One of LOGGERS, whose first exception is its last: ``warn`` is told, and nothing raised."""

    def __init__(
        self, name: str, place: Path, record: dict[str, Any], warn: Callable[[str], None]
    ) -> None:
        self.name, self.warn = name, warn
        self.real: Any = None
        with self.guarded():
            if last_step(record) == 0 and place.exists():
                shutil.rmtree(place)
            place.mkdir(parents=True, exist_ok=True)
            self.real = LOGGERS[name](place, record)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take the numbers of one evaluation, by the names of metrics.csv's columns."""
        if self.real is not None:
            with self.guarded():
                self.real.log(step, values)

    def close(self) -> None:
        """Write what is not written yet."""
        real, self.real = self.real, None
        if real is not None:
            with self.guarded():
                real.close()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0][:200]
            reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
            self.warn(
                f"logger {self.name} stopped ({reason}); training goes on, metrics.csv has every "
                "number"
            )
            broken, self.real = self.real, None
            if broken is not None:
                with suppress(Exception):  # it may hold files open; a second error is not news
                    broken.close()


class TensorBoard:
    """Event files: tensorboard --logdir results."""

    def __init__(self, place: Path, record: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        last = last_step(record)
        # A resumed run repeats the steps after its checkpoint: those logged before are purged.
        self.writer = SummaryWriter(str(place), purge_step=last + 1 if last else None)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A file store of its own: mlflow ui --backend-store-uri <run>/mlflow.

    Through the client, not the global functions: runs of a sweep share a process. A resumed run
    logs the steps after its checkpoint twice, with the same values.
    """

    def __init__(self, place: Path, record: dict[str, Any]) -> None:
        from mlflow import MlflowClient  # type: ignore[import-not-found]

        self.client = MlflowClient(tracking_uri=place.absolute().as_uri())
        known = self.client.get_experiment_by_name(record["name"])
        before = self.client.search_runs([known.experiment_id], max_results=1) if known else []
        if before:
            self.run = before[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        experiment = known.experiment_id if known else self.client.create_experiment(record["name"])
        self.run = self.client.create_run(experiment, run_name=record["run"]).info.run_id
        for key, value in flatten(record["settings"]).items():
            self.client.log_param(self.run, key, value)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


class WeightsAndBiases:
    """A wandb run, offline unless WANDB_MODE says otherwise: wandb sync <run>/wandb/wandb/*."""

    def __init__(self, place: Path, record: dict[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        online = os.environ.get("WANDB_MODE") not in ("offline", "disabled")
        # The same for every part of a resumed run, another for a run that was begun anew.
        begun = f"{record['name']}/{record['run']}/{record['digest']}/{record['started']}"
        self.run = wandb.init(
            id=hashlib.sha256(begun.encode()).hexdigest()[:16],
            resume="allow" if online else None,
            project="resexp",
            group=record["name"],
            name=record["run"],
            dir=str(place.absolute()),
            config=record["settings"],
            reinit="create_new",
            settings=wandb.Settings(
                silent=not online, console="off", disable_git=True, save_code=False
            ),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.run.log(finite, step=step)

    def close(self) -> None:
        self.run.finish()


#: By name, which is also that of the package to import and of the extra that installs it.
LOGGERS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
