"""What blocks do to the gradient, and how much of it comes by the shortcuts."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import (
    DASHES,
    GREY,
    MM,
    PAGE,
    SERIES_STYLES,
    blank,
    head,
    legend,
)
from resexp.analysis.probe_figures import Rows, mean, those

COLOURS = dict(zip(("plain", "residual", "preact"), SERIES_STYLES, strict=False))
PANELS = {
    "gain": "gradient at a block's input\nover its output (norms)",
    "shortcut_share": "share of the gradient at the input\nthat came by the shortcut",
    "branch_over_input": "branch over input, |F(x)| / |x|",
}


def draw(rows: Rows) -> Figure:
    """Three numbers of every block of the deepest networks; dashed once trained."""
    deep = max(row["depth"] for row in rows)
    figure = blank(PAGE, 72 * MM)
    for axis, (column, label) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        by_block(axis, those(rows, depth=deep), column)
        axis.set_ylabel(label)
    seeds = len({row["seed"] for row in rows})
    head(figure, f"Every block that keeps its input's shape, depth {deep}: means of {seeds} seeds")
    handles = [Line2D([], [], color=colour, marker=mark, ms=3) for colour, mark in COLOURS.values()]
    labels = [*COLOURS]
    if those(rows, when="end"):
        handles += [Line2D([], [], color=GREY), Line2D([], [], color=GREY, linestyle=DASHES)]
        labels += ["at the start", "trained"]
    legend(figure, handles, labels)
    return figure


def by_block(axis: Axes, rows: Rows, column: str) -> None:
    """A line an arm and stage of training."""
    for arm, (colour, mark) in COLOURS.items():
        for when, stroke in (("start", "-"), ("end", DASHES)):
            some = those(rows, arm=arm, when=when)
            blocks = sorted({row["block"] for row in some})
            values = [mean(row[column] for row in those(some, block=at)) for at in blocks]
            axis.plot(blocks, values, color=colour, linestyle=stroke, marker=mark, ms=2.5, lw=1.1)
    level = 0.5 if column == "shortcut_share" else 1.0
    axis.axhline(level, color=GREY, linewidth=0.6)
    axis.set_xlabel("block, from the input")
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
