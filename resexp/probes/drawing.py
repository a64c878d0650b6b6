"""What the figures of probes share: panels, colours, lines of means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures import canvas
from resexp.probes import Probe
from resexp.probes.rows import decades

COLUMN, GREY, DASHES = canvas.COLUMN, canvas.GREY, canvas.DASHES
DOTS: Any = (0, (1, 1.4))
PLAIN, RESIDUAL = (colour for colour, _ in canvas.SERIES_STYLES[:2])
COLOURS = {"plain": PLAIN, "residual": RESIDUAL}


def series(*names: str) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each, as options of a line; begin with plain, residual."""
    styles = zip(names, canvas.SERIES_STYLES, strict=False)
    return {name: {"color": colour, "marker": marker} for name, (colour, marker) in styles}


def panels(
    columns: int, height: float, width: float = canvas.PAGE, **options: Any
) -> tuple[Figure, Any]:
    """A figure of ``height`` in mm and ``width`` in inches, and its axes in a row."""
    figure = canvas.blank(width, height * canvas.MM)
    return figure, figure.subplots(1, columns, **options)


def means(
    axis: Axes, rows: pd.DataFrame, x: str, column: str, *, log: bool = False, **style: Any
) -> None:
    """The mean over seeds of a column at each ``x`` where it was measured.

    With ``log`` the geometric mean on a logarithmic axis, a gap where one is not above 0.
    """
    rows = rows.dropna(subset=[column])
    numbers = decades(rows[column]) if log else rows[column]
    line = numbers.groupby(rows[x]).agg(lambda some: some.mean(skipna=False))
    axis.plot(line.index, 10**line if log else line, **style)
    if log:
        axis.set_yscale("log")


def dots(axis: Axes, at: float, values: Iterable[float], colour: str) -> None:
    """A dot per seed and a line at the mean, at one place of the axis."""
    some = pd.Series(values)
    axis.plot([at] * len(some), some, "o", color=colour, ms=4, alpha=0.8)
    axis.plot([at - 0.25, at + 0.25], [some.mean()] * 2, color=colour, linewidth=1.4)


def finish(
    figure: Figure, title: str, lines: Mapping[str, Mapping[str, Any]] | None = None
) -> Figure:
    """The figure with its heading and, by label, the lines of its legend (options of Line2D)."""
    canvas.head(figure, title)
    if lines:
        handles = [Line2D([], [], **{"ms": 3, **style}) for style in lines.values()]
        canvas.legend(figure, handles, list(lines))
    return figure


def write(probe: Probe, rows: pd.DataFrame, path: Path) -> None:
    """Draw the figure of a probe from its rows into a file. Raises Unwritten."""
    with matplotlib.rc_context(canvas.STYLE):
        canvas.save(probe.draw(rows), path)
