"""How far tokens stay apart through a transformer, and its last gradient by depth."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import MM, PAGE, blank, head, legend
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, mean, those

ARMS: dict[str, tuple[str, Any]] = {
    "attention alone": (PLAIN, (0, (4, 2))),
    "no skip pre-LN": (PLAIN, "-"),
    "no skip post-LN": (PLAIN, (0, (1, 1.4))),
    "skip pre-LN": (RESIDUAL, "-"),
    "skip post-LN": (RESIDUAL, (0, (4, 2))),
}
FLOOR = 1e-16  # of float64


def draw(rows: Rows) -> Figure:
    """rel(X) by layer, of random tokens and of digits; the last layer's gradient by layers."""
    figure = blank(PAGE, 74 * MM)
    left, middle, right = figure.subplots(1, 3)
    middle.sharey(left)
    for axis, measured in ((left, "rank"), (middle, "digits")):
        lines(axis, those(rows, measured=measured))
        axis.set_yscale("log")
        axis.set_ylim(bottom=FLOOR)
        axis.set_xticks(sorted({row["layers"] for row in those(rows, measured=measured)})[::2])
        axis.set_xlabel("layer")
    left.set_ylabel("tokens less their mean, over tokens")
    left.set_title("random tokens", loc="left", fontweight="bold")
    middle.set_title("patches of digits", loc="left", fontweight="bold")
    lines(right, those(rows, measured="gradient"))
    right.set_xscale("log", base=2)
    depths = sorted({row["layers"] for row in those(rows, measured="gradient")})
    right.set_xticks(depths, [str(depth) for depth in depths])
    right.set_ylim(bottom=0)
    right.set_xlabel("layers of the network")
    right.set_ylabel("gradient of the last matrix, norm")
    right.set_title("where LayerNorm stands", loc="left", fontweight="bold")
    seeds = len({row["seed"] for row in rows})
    head(figure, f"Transformers of random weights, at their start: means of {seeds} seeds")
    handles = [Line2D([], [], color=colour, linestyle=stroke) for colour, stroke in ARMS.values()]
    legend(figure, handles, [*ARMS])
    return figure


def lines(axis: Axes, rows: Rows) -> None:
    """Means over seeds, a line an arm."""
    for arm, (colour, stroke) in ARMS.items():
        some = those(rows, arm=arm)
        layers = sorted({row["layers"] for row in some})
        values = [mean(row["value"] for row in those(some, layers=at)) for at in layers]
        axis.plot(layers, values, color=colour, linestyle=stroke, lw=1.3, marker="o", ms=3)
