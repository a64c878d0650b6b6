"""Gradient norms by layer at the start, and how they tilt while training."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.canvas import GREY, MM, PAGE, blank, head, legend
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, mean, where

SOLID, DASHED, DOTTED = "-", (0, (4, 2)), (0, (1, 1.4))

#: Colour and stroke of each arm: colour for the merge, stroke for normalisation and weights.
ARMS: dict[str, tuple[str, Any]] = {
    "plain": (PLAIN, SOLID),
    "residual": (RESIDUAL, SOLID),
    "plain no norm": (PLAIN, DASHED),
    "residual no norm": (RESIDUAL, DASHED),
    "plain no norm xavier": (PLAIN, DOTTED),
}
ENDS = 3


def draw(rows: Rows) -> Figure:
    """Left: norms at step 0 by layer, the deepest networks. Right: first over last, by step."""
    deep = max(row["depth"] for row in rows)
    watched = max((row["depth"] for row in rows if str(row["step"]) != "0"), default=deep)
    figure = blank(PAGE, 74 * MM)
    left, right = figure.subplots(1, 2)
    by_layer(left, where(rows, depth=deep, step=0))
    left.set_title(f"depth {deep}, step 0", loc="left", fontweight="bold")
    by_step(right, where(rows, depth=watched))
    right.set_title(f"depth {watched}, while training", loc="left", fontweight="bold")
    seeds = len({row["seed"] for row in rows})
    head(
        figure,
        f"Gradients by layer: means of {seeds} seeds, geometric; above the line they grow "
        "towards the input",
    )
    arms = [arm for arm in ARMS if where(rows, arm=arm)]
    handles = [Line2D([], [], color=ARMS[arm][0], linestyle=ARMS[arm][1]) for arm in arms]
    legend(figure, handles, arms)
    return figure


def by_layer(axis: Axes, rows: Rows) -> None:
    """|dL/dW| of every convolution, a line an arm."""
    for arm, (colour, stroke) in ARMS.items():
        some = [row for row in where(rows, arm=arm) if row["g"]]
        layers = sorted({row["layer"] for row in some})
        norms = [10 ** mean(math.log10(row["g"]) for row in where(some, layer=at)) for at in layers]
        axis.plot(layers, norms, color=colour, linestyle=stroke, linewidth=1.3)
    axis.set_yscale("log")
    axis.set_xlabel("convolution, from the input")
    axis.set_ylabel("gradient of the weights, norm")


def by_step(axis: Axes, rows: Rows) -> None:
    """First over last layers of the scale-free gradient, a line an arm."""
    steps = list(dict.fromkeys(str(row["step"]) for row in rows))
    for arm, (colour, stroke) in ARMS.items():
        values = []
        for step in steps:
            some = [row for row in where(rows, arm=arm) if str(row["step"]) == step]
            seeds = sorted({row["seed"] for row in some})
            values.append(mean(tilt(where(some, seed=seed)) for seed in seeds))
        axis.plot(steps, values, color=colour, linestyle=stroke, linewidth=1.3, marker="o", ms=3)
    axis.axhline(0, color=GREY, linewidth=0.6)
    axis.set_xlabel("step")
    axis.set_ylabel(f"first {ENDS} over last {ENDS} layers, log10\n(gradient over weights)")


def tilt(rows: Rows) -> float | None:
    """log10 of the first layers' mean r over the last layers'; None where it has no value."""
    ratios = [row["r"] or 0.0 for row in sorted(rows, key=lambda row: row["layer"])]
    first, last = sum(ratios[:ENDS]), sum(ratios[-ENDS:])
    return math.log10(first / last) if first > 0 and 0 < last < math.inf else None
