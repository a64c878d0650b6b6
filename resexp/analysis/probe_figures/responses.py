"""Standard deviations of layer responses, in order and sorted, as He et al. 2015, figure 7."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import DASHES, GREY, MM, PAGE, blank, head, legend
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, mean, those

COLOURS = {"plain": PLAIN, "residual": RESIDUAL}
STROKES: tuple[Any, ...] = ("-", DASHES, (0, (1, 1.4)))


def draw(rows: Rows) -> Figure:
    """The deepest and the shallowest networks by layer, sorted, and branch over input."""
    rows = those(rows, decay=rows[0]["decay"])
    depths = sorted({row["depth"] for row in rows}, reverse=True)[: len(STROKES)]
    figure = blank(PAGE, 76 * MM)
    order, ranked, ratios = figure.subplots(1, 3)
    for arch, colour in COLOURS.items():
        for depth, stroke in zip(depths, STROKES, strict=False):
            some = those(rows, arch=arch, depth=depth)
            style: dict[str, Any] = {"color": colour, "linestyle": stroke, "linewidth": 1.1}
            layers, values = means(some, "std")
            order.plot(layers, values, **style)
            ranked.plot(layers, sorted(values, reverse=True), **style)
            kept = [row for row in some if row["branch_over_input"] is not None]
            ratios.plot(*means(kept, "branch_over_input"), marker=".", ms=4, **style)
    label(order, "standard deviation of the response", "convolution, from the input")
    label(ranked, "standard deviation of the response", "convolution, by size")
    label(ratios, "branch over input, |F(x)| / |x|", "convolution that ends the branch")
    seeds = len({row["seed"] for row in rows})
    head(
        figure, f"Responses after normalisation in blocks, trained networks, means of {seeds} seeds"
    )
    handles = [Line2D([], [], color=colour) for colour in COLOURS.values()]
    handles += [Line2D([], [], color=GREY, linestyle=stroke) for stroke in STROKES[: len(depths)]]
    legend(figure, handles, [*COLOURS, *(f"depth {depth}" for depth in depths)])
    return figure


def means(rows: Rows, column: str) -> tuple[list[int], list[float]]:
    """Layers, and the mean over seeds at each."""
    layers = sorted({row["layer"] for row in rows})
    return layers, [mean(row[column] for row in those(rows, layer=at)) for at in layers]


def label(axis: Axes, y: str, x: str) -> None:
    axis.set_ylabel(y)
    axis.set_xlabel(x)
    axis.set_ylim(bottom=0)
