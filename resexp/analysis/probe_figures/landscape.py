"""Slices of the loss around trained networks."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import DASHES, GREY, MM, PAGE, blank, head, legend
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, those

COLOURS = {"plain": PLAIN, "residual": RESIDUAL}


def draw(rows: Rows) -> Figure:
    """Every slice at the least and at the greatest depth; contours of the deepest."""
    depths = sorted({row["depth"] for row in rows})
    figure = blank(PAGE, 72 * MM)
    shallow, deep, *planes = figure.subplots(1, 4)
    deep.sharey(shallow)
    for axis, depth in ((shallow, depths[0]), (deep, depths[-1])):
        for arch, colour in COLOURS.items():
            lines(axis, those(rows, arch=arch, depth=depth, kind="slice"), colour, "-")
            lines(axis, those(rows, arch=arch, depth=depth, kind="matched"), colour, DASHES)
        axis.set_yscale("log")
        axis.set_xlabel("along the direction, a")
        axis.set_title(f"depth {depth}", loc="left", fontweight="bold")
    shallow.set_ylabel("training loss, nats")
    for axis, arch in zip(planes, COLOURS, strict=True):
        contours(axis, those(rows, arch=arch, kind="plane"))
        axis.set_title(f"{arch} {depths[-1]}, nats", loc="left", fontweight="bold")
    seeds = len({row["seed"] for row in rows})
    head(
        figure,
        f"Loss along random directions scaled filter by filter, {seeds} seeds; right: two "
        "directions at once, one seed",
    )
    handles = [Line2D([], [], color=colour) for colour in COLOURS.values()]
    labels = list(COLOURS)
    if those(rows, kind="matched"):
        handles.append(Line2D([], [], color=GREY, linestyle=DASHES))
        labels.append("the better one, earlier, at the other's loss")
    legend(figure, handles, labels)
    return figure


def lines(axis: Axes, rows: Rows, colour: str, stroke: Any) -> None:
    """A thin line a seed and direction."""
    for seed, direction in sorted({(row["seed"], row["direction"]) for row in rows}):
        some = those(rows, seed=seed, direction=direction)
        axis.plot(
            [row["a"] for row in some],
            [row["loss"] for row in some],
            color=colour,
            linestyle=stroke,
            linewidth=0.7,
            alpha=0.7,
        )


def contours(axis: Axes, rows: Rows) -> None:
    """The loss over two directions, by lines of equal loss."""
    side = sorted({row["a"] for row in rows})
    losses = [[those(rows, a=a, b=b)[0]["loss"] for a in side] for b in side]
    drawn = axis.contour(side, side, losses, levels=8, cmap="viridis", linewidths=0.8)
    axis.clabel(drawn, fontsize=5, fmt="%.2g")
    axis.set_xlabel("a")
    axis.set_ylabel("b")
    axis.set_aspect("equal")
