"""The training loss of the first steps, and the step at which each network is below the mark."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import GREY, MM, PAGE, SERIES_STYLES, blank, head, legend
from resexp.analysis.probe_figures import Rows, mean, those

STYLES = dict(zip(("plain", "residual", "rezero", "preact"), SERIES_STYLES, strict=True))
THRESHOLD = 0.5


def draw(rows: Rows) -> Figure:
    """Left: losses, a line a network. Right: steps to the threshold, a point a seed."""
    figure = blank(PAGE, 74 * MM)
    left, right = figure.subplots(1, 2)
    for arm, (colour, _) in STYLES.items():
        for seed in sorted({row["seed"] for row in rows}):
            some = those(rows, arm=arm, seed=seed)
            steps = [row["step"] for row in some]
            left.plot(steps, [row["loss"] for row in some], color=colour, lw=0.9, alpha=0.8)
    left.axhline(THRESHOLD, color=GREY, linewidth=0.6)
    left.set_xlabel("step")
    left.set_ylabel("training loss, mean of 10 batches (nats)")
    left.set_ylim(bottom=0)
    points(right, rows)
    seeds = len({row["seed"] for row in rows})
    head(
        figure,
        f"Early training at depth {rows[0]['depth']}, {seeds} seeds: steps to a training loss of "
        f"{THRESHOLD} nats",
    )
    handles = [Line2D([], [], color=colour, marker=mark, ms=3) for colour, mark in STYLES.values()]
    legend(figure, handles, [*STYLES])
    return figure


def points(axis: Axes, rows: Rows) -> None:
    """Steps by arm; hollow where the network did not get there; a bar at the mean."""
    for place, (arm, (colour, mark)) in enumerate(STYLES.items()):
        last = {row["seed"]: row for row in those(rows, arm=arm)}
        for at, row in enumerate(last.values()):
            x = place + 0.08 * (at - (len(last) - 1) / 2)
            inside = colour if row["reached"] else "white"
            axis.plot(x, row["steps_to_threshold"], mark, color=colour, mfc=inside, ms=4)
        centre = mean(row["steps_to_threshold"] for row in last.values())
        axis.plot([place - 0.3, place + 0.3], [centre, centre], color=colour, lw=1.3)
    axis.set_xticks(range(len(STYLES)), [*STYLES])
    axis.grid(False, axis="x")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("steps to the threshold")
