"""Runs inside a notebook: a table and their curves, as the figures and tables of the commands."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from resexp.analysis import table as tables
from resexp.analysis.figures.canvas import save, write
from resexp.analysis.figures.chart import draw
from resexp.analysis.figures.plot import KINDS
from resexp.analysis.results import Run, grouped, require_runs
from resexp.analysis.verdict import Verdict, decide, history
from resexp.settings import UsageError

#: A folder of runs, one run, or several.
Runs = str | Path | Run | Sequence[Run]


@dataclass(frozen=True)
class Picture:
    """A figure that a notebook shows. ``figure`` is Matplotlib's."""

    figure: Figure

    def save(self, path: str | Path) -> None:
        """Write it as the suffix says: .png, .svg or .pdf."""
        save(self.figure, Path(path))

    def _repr_html_(self) -> str:
        buffer = BytesIO()
        write(self.figure, buffer, "svg")
        # As an image: ids and styles of several figures on a page cannot meet.
        svg = b64encode(buffer.getvalue()).decode()
        return f'<img src="data:image/svg+xml;base64,{svg}" style="background: white">'


def plot(results: Runs = "results", which: str = "curves", filters: Sequence[str] = ()) -> Picture:
    """A figure of one experiment; ``which`` as in ``resexp plot --which``.

        >>> resexp.plot("results/digits", "depth", ["arch=plain,residual"]).save("depth.pdf")

    Raises UsageError for several experiments, and where nothing can be drawn.
    """
    runs = runs_of(results, filters)
    if which not in KINDS:
        raise UsageError(f"there is no figure {which}. Choose from {', '.join(KINDS)}.")
    if len(folders := {str(run.experiment) for run in runs}) > 1:
        raise UsageError(f"{' and '.join(sorted(folders))}: a figure is of one. Give one of them.")
    return Picture(draw(KINDS[which](runs)))


def table(results: Runs = "results", filters: Sequence[str] = ()) -> pd.DataFrame:
    """A row a network, as ``resexp table``: errors in percent, means and deviations over seeds.

    >>> resexp.table("results/digits", ["depth=20,56"])[["series", "depth", "test_error"]]
    """
    return pd.DataFrame(tables.rows(runs_of(results, filters)))


def verdict(results: Runs = "results", filters: Sequence[str] = (), **question: Any) -> Verdict:
    """Whether deeper plain networks trained worse, and the skips cured it, as ``resexp verdict``.

    ``question``: ``deep``, ``shallow``, ``baseline``, ``allow_mixed``, ``best`` and ``chosen_on``,
    as in resexp.analysis.verdict.decide.

        >>> resexp.verdict("results/digits", deep=56, shallow=20).outcome
    """
    runs = runs_of(results, filters)
    decided = decide(runs, **question)
    decided.notes += history.asked_again(decided, runs[0].experiment, filters)
    return decided


def runs_of(results: Runs, filters: Sequence[str]) -> Sequence[Run]:
    """The runs meant. Raises UsageError where there are none."""
    if isinstance(results, str | Path):
        return require_runs(Path(results), filters)
    if filters:
        raise UsageError("filters go with a folder of runs. Choose among these in Python.")
    return [results] if isinstance(results, Run) else results


def shown(runs: Sequence[Run], caption: str) -> str:
    """HTML: what ``resexp table`` says, and the curves of each experiment."""
    headings, body, notes = tables.cells(tables.rows(runs))
    lines = [map(tables.joined, headings), *body]
    rows = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) for line in lines)
    parts = [f"<table><caption>{escape(caption)}</caption>", *rows, "</table>"]
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    for group in grouped(runs, lambda run: run.experiment).values():
        with suppress(UsageError):  # no row yet
            parts.append(plot(group)._repr_html_())
    return "\n".join(parts)
