"""Gradient norms by layer at the start, and how they tilt while training."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import GREY, MM, PAGE, blank, head, legend
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, mean, those

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
    """At step 0 by layer, the deepest networks: weights, activations. Then the tilt by step."""
    deep = max(row["depth"] for row in rows)
    places = {(row["depth"], row["step"]) for row in rows}
    depths = sorted(depth for depth, _ in places)
    watched = max(depths, key=depths.count)  # the one with most steps
    figure = blank(PAGE, 72 * MM)
    weights, activations, steps = figure.subplots(1, 3)
    by_layer(weights, those(rows, depth=deep, step=0), "g")
    weights.set_ylabel("gradient of the weights (norm)")
    by_layer(activations, those(rows, depth=deep, step=0), "a")
    activations.set_ylabel("gradient of activations (norm)")
    for axis in (weights, activations):
        axis.set_title(f"depth {deep}, step 0", loc="left", fontweight="bold")
    by_step(steps, those(rows, depth=watched))
    steps.set_title(f"depth {watched}, training", loc="left", fontweight="bold")
    seeds = len({row["seed"] for row in rows})
    head(
        figure,
        f"Loss gradients by layer, {seeds} seeds; batch normalised unless no norm; right, "
        "above 0: larger near the input",
    )
    arms = [arm for arm in ARMS if those(rows, arm=arm)]
    handles = [Line2D([], [], color=ARMS[arm][0], linestyle=ARMS[arm][1]) for arm in arms]
    legend(figure, handles, arms)
    return figure


def by_layer(axis: Axes, rows: Rows, column: str) -> None:
    """A norm at every convolution, a line an arm: geometric means over seeds."""
    for arm, (colour, stroke) in ARMS.items():
        some = [row for row in those(rows, arm=arm) if row[column]]
        layers = sorted({row["layer"] for row in some})
        logs = [mean(math.log10(row[column]) for row in those(some, layer=at)) for at in layers]
        axis.plot(layers, [10**log for log in logs], color=colour, linestyle=stroke, linewidth=1.3)
    axis.set_yscale("log")
    axis.set_xlabel("convolution, from the input")


def by_step(axis: Axes, rows: Rows) -> None:
    """First over last layers of the scale-free gradient, a line an arm."""
    steps = list(dict.fromkeys(str(row["step"]) for row in rows))
    for arm, (colour, stroke) in ARMS.items():
        values = []
        for step in steps:
            some = [row for row in those(rows, arm=arm) if str(row["step"]) == step]
            seeds = sorted({row["seed"] for row in some})
            values.append(mean(tilt(those(some, seed=seed)) for seed in seeds))
        axis.plot(steps, values, color=colour, linestyle=stroke, linewidth=1.3, marker="o", ms=3)
    axis.axhline(0, color=GREY, linewidth=0.6)
    axis.set_xlabel("step")
    axis.set_ylabel(f"log10 of gradient over weights,\nfirst {ENDS} over last {ENDS} layers")


def tilt(rows: Rows) -> float | None:
    """log10 of the first layers' mean r over the last layers'; None where it has no value."""
    ratios = [row["r"] or 0.0 for row in sorted(rows, key=lambda row: row["layer"])]
    first, last = sum(ratios[:ENDS]), sum(ratios[-ENDS:])
    return math.log10(first / last) if first > 0 and 0 < last < math.inf else None
