"""What was fixed before the runs: a file in the experiment's folder, whose hash its runs carry."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from resexp.files import read_bytes
from resexp.settings.fields import UsageError, checked, hints

NAME = "preregistration.yaml"
MOST_BYTES = 2**22  # of ten thousand runs, some three fourths of it
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError, yaml.YAMLError)
HEAD = "# Fixed before its runs, which carry the SHA-256 of this file. Do not edit it.\n"


@dataclass(slots=True)
class Preregistration:
    """Rule, hypotheses and the runs that they are about."""

    written: str  # UTC
    resexp: str | None  # version
    git_commit: str | None
    git_dirty: bool | None
    command: str
    hypotheses: list[str]
    rule: list[str]  # as the verdict prints it
    shallow: int  # the depths that it is about
    deep: int
    settings: dict[str, Any]  # the recipe: what all runs share, flat
    runs: dict[str, str]  # by name, each with the digest of its settings


def write(folder: Path, fixed: Preregistration) -> Path:
    """Write it into an experiment's folder. Raises UsageError if there is one."""
    path, text = folder / NAME, yaml.safe_dump(asdict(fixed), sort_keys=False, width=120)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x") as file:
            file.write(HEAD + text)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already. Choose another name=...") from error
    return path


def read(folder: Path) -> Preregistration | None:
    """The preregistration of an experiment's folder; None if it has none.

    Raises UsageError if it cannot be read.
    """
    path = folder / NAME
    try:
        found, known = yaml.safe_load(read_bytes(path, MOST_BYTES)), hints(Preregistration)
        return Preregistration(**{key: checked(key, known[key], found[key]) for key in found})
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise UsageError(f"{path} is no preregistration. Restore it, or move it away.") from error


def fingerprint(folder: Path) -> str | None:
    """The SHA-256 of the file in an experiment's folder, in hexadecimal; None if it has none."""
    try:
        return hashlib.sha256(read_bytes(folder / NAME, MOST_BYTES)).hexdigest()
    except FileNotFoundError:
        return None
