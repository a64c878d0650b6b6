"""Checkpoints: written whole or not at all, read without running anything they hold."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any, cast
from zipfile import ZipFile

import torch

from resexp.files import open_regular
from resexp.runs.records import replacing
from resexp.train.fit import State

NAME = "checkpoint.pt"
BEFORE = "checkpoint.before.pt"  # the one before, in case the newest is torn
TEMPORARY = "checkpoint.pt.tmp"


class Timer:
    """Says when a checkpoint is due, by a clock that nobody can set.

    It is due ``every`` seconds after the last, and before an evaluation that would pass that time:
    a kill then costs no more than ``every`` seconds of training, and never training and evaluation.
    """

    def __init__(self, every: float) -> None:
        self.every = every
        self.evaluation = 0.0  # seconds of the newest turn that had one
        self.restart()

    def restart(self) -> None:
        """A checkpoint was just written."""
        self.saved = self.turn = time.monotonic()

    def due(self, *, after_row: bool, before_row: bool) -> bool:
        """Whether to write one now, between two steps; to be asked after every step."""
        now = time.monotonic()
        if after_row:
            self.evaluation = now - self.turn
        self.turn = now
        return now - self.saved + self.evaluation * before_row >= self.every


def save(directory: Path, state: State, digest: str) -> None:
    """Write the state beside the run's other files and keep the checkpoint before it."""
    path = directory / NAME
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            torch.save({"digest": digest, **state.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, directory / BEFORE)


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Raises any error for a file that is none."""
    with open_regular(path) as file:
        with ZipFile(file) as packed:
            if any(one.compress_type for one in packed.infolist()):  # to any size: not by torch
                raise ValueError("it is compressed")
        file.seek(0)
        return cast(dict[str, Any], torch.load(file, map_location="cpu", weights_only=True))


def load(directory: Path, state: State, digest: str) -> list[str]:
    """Bring ``state`` to the newest checkpoint that can be read, if there is one.

    Returns a warning for each that could not; it is set aside as ``<name>.bad``.
    """
    warnings: list[str] = []
    fresh = copy.deepcopy(state.state_dict())
    for path in (directory / NAME, directory / BEFORE):
        if not path.exists():
            continue
        try:
            saved = read(path)
            if saved["digest"] != digest:
                raise ValueError("it belongs to a run with other settings")
            state.load_state_dict(saved)
            return warnings
        except Exception as error:  # torn files fail in many ways; every one means: not usable
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            os.replace(path, path.with_name(path.name + ".bad"))
            warnings.append(f"{path} cannot be used ({reason}): set aside as {path.name}.bad")
            state.load_state_dict(fresh)
    return warnings


def remove(directory: Path) -> None:
    """Delete what only an unfinished run needs."""
    for name in (NAME, BEFORE, TEMPORARY):
        (directory / name).unlink(missing_ok=True)
