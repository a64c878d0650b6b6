"""Tiny jobs, what they wrote, and what disturbs them: shared by the tests of runs and launchers."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from resexp.launch import local
from resexp.runs.records import METRICS
from resexp.settings import Arch, Job, Merge, Settings
from resexp.train.row import TIME_COLUMNS, Row

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "resexp"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}

TINY: dict[str, Any] = {"depth": 8, "width": 4, "steps": 6, "batch_size": 8, "eval_every": 2}
TINY |= {"arch": Arch(merge=Merge.residual), "checkpoint_every": 0.0, "threads": 1}

ROW = Row(
    step=22,
    epoch=0.98,
    lr=0.05,
    train_loss=2.25,
    train_error=87.5,
    clean_train_loss=None,
    clean_train_error=None,
    test_loss=2.5,
    test_error=90.0,
    images_per_second=1234.5,
    seconds=0.25,
)


#: The least that a run.json must hold, but settings and status.
RECORD: dict[str, Any] = {
    "run": "residual-8-s0",
    "name": "digits",
    "arch": "residual",
    "depth": 8,
    "seed": 0,
}
RECORD |= {"extras": {}, "data": {"classes": 10}, "last": {}}


def job_in(results: Path, **settings: Any) -> Job:
    """Six steps of eight layers, a row every second one and a checkpoint after each."""
    one = Settings(**TINY | {"results": str(results)} | settings)
    arch, words = str(one.arch.merge), ["depth=8"]
    return Job(settings=one, arch=arch, extras={}, overrides=words)


def jobs_in(results: Path, seeds: range, **settings: Any) -> list[Job]:
    """The same with a row every third step, told apart by their seeds."""
    return [job_in(results, **{"eval_every": 3} | settings, seed=seed) for seed in seeds]


def cells(job: Job) -> list[list[str]]:
    """metrics.csv but for its columns of time."""
    lines = (job.directory / METRICS).read_text().splitlines()
    return [line.split(",")[: -len(TIME_COLUMNS)] for line in lines]


def row_of(step: int, **changes: Any) -> Row:
    return replace(ROW, step=step, **changes)


class Killed(BaseException):
    """What stands for the end of the process: nothing in resexp catches it."""


def kill() -> None:
    raise Killed


def at(step: int, act: Callable[[], object] = kill) -> local.Watch:
    """A watcher that acts after this step: its row is written, its checkpoint is not."""

    def watch(record: dict[str, Any], done: int, row: Row | None) -> None:
        if done == step:
            act()

    return watch


def killed(job: Job, watch: local.Watch | None = None) -> bool:
    """Whether training ``job`` was ended by ``Killed``."""
    try:
        local.perform(job, watch)
    except Killed:
        return True
    return False


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A write beyond ``size`` bytes of a file fails part of the way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def resexp(folder: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``resexp WORDS`` in ``folder`` and a process of its own, from this checkout."""
    usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    usual |= {"cwd": folder, "env": ENVIRONMENT}
    return subprocess.run([*COMMAND, *words], **usual | options)
