"""Figures of probes, each drawn from its probe-<name>.csv alone by the module of its name."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib

from resexp.analysis.figures.canvas import SERIES_STYLES, STYLE, save

PLAIN, RESIDUAL = SERIES_STYLES[0][0], SERIES_STYLES[1][0]

Rows = Sequence[dict[str, Any]]


def draw(name: str, table: Path, path: Path) -> None:
    """Draw the figure of a probe from its CSV into a file."""
    module = import_module(f"{__name__}.{name}")
    with matplotlib.rc_context(STYLE):
        save(module.draw(read(table)), path)


def read(table: Path) -> Rows:
    """The rows of a probe's CSV, numbers as numbers, None where a cell is empty."""
    with table.open(newline="") as file:
        return [{key: number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> Any:
    """The number that a cell spells, its text if it spells none, None if it is empty."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def mean(values: Iterable[float | None]) -> float:
    """The mean of the values that are there; nan if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def those(rows: Rows, **wanted: object) -> Rows:
    """The rows with these cells."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]
