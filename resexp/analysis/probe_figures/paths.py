"""The gradient by length of path, at the start and trained."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import DASHES, GREY, MM, PAGE, blank, head, legend
from resexp.analysis.probe_figures import RESIDUAL, Rows, mean, those

STROKES = {"start": (DASHES, "o"), "end": ("-", "s")}
PANELS = {
    "norm": "gradient of one path (norm)",
    "weight": "share of the gradient by norms",
    "share": "exact share of the gradient",
}


def draw(rows: Rows) -> Figure:
    """One path by length, all paths of a length by norms and exactly; training on short paths."""
    training, rows = those(rows, kind="training"), those(rows, kind="length")
    running, rows = those(rows, statistics="running", when="start"), those(rows, statistics="batch")
    figure = blank(PAGE, 74 * MM)
    *axes, trained = figure.subplots(1, 4, width_ratios=[4, 4, 4, 3])
    errors(trained, training)
    for axis, column in zip(axes, PANELS, strict=True):
        for when, (stroke, mark) in STROKES.items():
            by_length(axis, those(rows, when=when), column, RESIDUAL, stroke, mark)
    by_length(axes[0], running, "norm", GREY, DASHES, "^")
    for axis, label in zip(axes, PANELS.values(), strict=True):
        axis.set_ylabel(label)
        axis.set_xlabel("branches on the path")
    lengths = sorted({row["k"] for row in rows})
    paths = [mean(row["paths_share"] for row in those(rows, k=at)) for at in lengths]
    axes[1].plot(lengths, paths, color=GREY, linewidth=0.9, linestyle=(0, (1, 1.4)))
    axes[2].axhline(0, color=GREY, linewidth=0.6)
    seeds, first = len({row["seed"] for row in rows}), rows[0]
    head(
        figure,
        f"Paths through the {first['blocks']} blocks of {first['arch']}-{first['depth']}, "
        f"{seeds} seeds; right: {training[0]['arch']}-{training[0]['depth']} trained through some",
    )
    handles = [
        Line2D([], [], color=RESIDUAL, linestyle=stroke, marker=mark, ms=3)
        for stroke, mark in STROKES.values()
    ]
    handles.append(Line2D([], [], color=GREY, linestyle=DASHES, marker="^", ms=3))
    handles.append(Line2D([], [], color=GREY, linestyle=(0, (1, 1.4))))
    labels = ["at the start", "trained", "at the start, running statistics"]
    legend(figure, handles, [*labels, "share of the paths (binomial)"])
    return figure


def errors(axis: Axes, rows: Rows) -> None:
    """The final test error of both ways to train, a line a seed and a bar at the mean."""
    short, blocks = sorted({row["k"] for row in rows})
    for seed in sorted({row["seed"] for row in rows}):
        pair = [those(rows, seed=seed, k=k)[0]["test_error_percent"] for k in (blocks, short)]
        axis.plot([0, 1], pair, "o-", color=RESIDUAL, ms=3, linewidth=0.7, alpha=0.7)
    for at, k in enumerate((blocks, short)):
        centre = mean(row["test_error_percent"] for row in those(rows, k=k))
        axis.plot([at - 0.25, at + 0.25], [centre, centre], color=RESIDUAL, linewidth=1.6)
    axis.set_xticks([0, 1], [f"all {blocks}", f"{short} of {blocks}"])
    axis.set_xlim(-0.5, 1.5)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("branches in a step")
    axis.set_ylabel("test error, percent")


def by_length(axis: Axes, rows: Rows, column: str, colour: str, stroke: Any, mark: str) -> None:
    """Means over seeds, geometric where the axis is logarithmic."""
    lengths = sorted({row["k"] for row in rows})
    values = [average([row[column] for row in those(rows, k=at)], column) for at in lengths]
    axis.plot(lengths, values, color=colour, linestyle=stroke, marker=mark, ms=2.5, linewidth=1.1)
    if column == "norm":
        axis.set_yscale("log")


def average(values: list[float | None], column: str) -> float:
    known = [value for value in values if value is not None]
    if column != "norm":
        return mean(known)
    return math.exp(mean(math.log(value) for value in known)) if min(known) > 0 else math.nan
