"""Autocorrelation of the input gradient: by lag for deep networks, by depth for neighbours."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import GREY, MM, PAGE, blank, head, legend
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, mean, those

#: Colour for the merge, stroke for the normalisation and scale.
ARMS: dict[str, tuple[str, Any]] = {
    "plain": (PLAIN, (0, (1, 1.4))),
    "plain centred": (PLAIN, "-"),
    "plain batch norm": (PLAIN, (0, (4, 2))),
    "residual": (RESIDUAL, (0, (1, 1.4))),
    "residual batch norm": (RESIDUAL, (0, (4, 2))),
    "residual batch norm 0.1": (RESIDUAL, "-"),
}


def draw(rows: Rows) -> Figure:
    """Lines: neighbours (lag 1) by depth, and by lag at 24 layers. Images: pairs by depth."""
    images, rows = those(rows, inputs="images"), those(rows, inputs="line")
    figure = blank(PAGE, 76 * MM)
    by_depth, by_lag, pairs = figure.subplots(1, 3)
    by_lag.sharey(by_depth)
    depths, lags = sorted({row["depth"] for row in rows}), sorted({row["lag"] for row in rows})
    shown = depths[-2]
    for arm, (colour, stroke) in ARMS.items():
        own = those(rows, arm=arm)
        style = {"color": colour, "linestyle": stroke, "linewidth": 1.3, "marker": "o", "ms": 3}
        values = [correlation(those(own, depth=at, lag=1)) for at in depths]
        by_depth.plot(depths, values, **style)
        values = [correlation(those(own, depth=shown, lag=at)) for at in lags]
        by_lag.plot(lags, values, **style)
        own = those(images, arm=arm)
        depths_there = sorted({row["depth"] for row in own})
        values = [correlation(those(own, depth=at)) for at in depths_there]
        pairs.plot(depths_there, values, **style)
    for axis in (by_depth, by_lag, pairs):
        axis.axhline(0, color=GREY, linewidth=0.6)
    pairs.set_title("images", loc="left", fontweight="bold")
    pairs.set_xlabel("depth")
    pairs.set_ylabel("cosine of gradients by two images")
    by_depth.set_title("a line, neighbouring points", loc="left", fontweight="bold")
    by_depth.set_xlabel("layers")
    by_depth.set_ylabel("autocorrelation of the input gradient")
    by_lag.set_title(f"a line, {shown} layers", loc="left", fontweight="bold")
    by_lag.set_xlabel("lag (points)")
    by_lag.set_xscale("log", base=2)
    by_lag.set_xticks(lags, [str(lag) for lag in lags])
    lines, pictures = (len({row["seed"] for row in some}) for some in (rows, images))
    head(
        figure,
        f"Input gradients at the start: 1 smooth, 0 white noise; {lines} seeds (images {pictures})",
    )
    handles = [Line2D([], [], color=colour, linestyle=stroke) for colour, stroke in ARMS.values()]
    legend(figure, handles, [*ARMS])
    return figure


def correlation(rows: Rows) -> float:
    return mean(row["autocorrelation"] if row["lag"] else row["cosine"] for row in rows)
