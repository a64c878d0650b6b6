"""Curves in the layout of He et al. 2015, figure 6: plain left, residual right, names beside them.

Axes from 0 to 20 %, training dashed, test bold, a colour a depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resexp.analysis.figures.canvas import (
    COLUMN,
    DASHES,
    MM,
    PAGE,
    STYLE,
    blank,
    data_sets,
    depth_colours,
    legend,
    seeds,
    spaced,
)
from resexp.analysis.figures.curves import (
    Curves,
    depths_of,
    draw_diverged,
    final_mean,
    last_step,
    require_rows,
    top_error,
)
from resexp.analysis.results import Run

PAPER_TOP = 20.0  # percent, where the paper's axis ends

PAPER_STYLE: dict[Any, Any] = STYLE | {
    "axes.spines.top": True,
    "axes.spines.right": True,
    "axes.edgecolor": "#222222",
    "xtick.direction": "in",
    "ytick.direction": "in",
    "grid.color": "#cccccc",
    "grid.linestyle": (0, (2, 2)),
    "grid.linewidth": 0.4,
    "axes.grid.axis": "y",
}

#: The paper's order of hues, shallow to deep, in tones that colour-blind eyes tell apart.
INKS = ("#cc9a1a", "#4aa3d8", "#2a9d6f", "#c1272d", "#1a1a1a", "#5b3a8c", "#8a8a8a")


def draw_paper(runs: Sequence[Run]) -> Figure:
    """Two panels that share their axes: plain, and the first other series, as in figure 6.

    Lines are means over seeds, without bands. A curve that ends above the axis is named with its
    final test error at the top; where every curve does, the axis follows the data, and says so.
    Raises UsageError if no run has a row yet.
    """
    panels = require_rows(runs)
    drawn = twin_panels(panels)
    shown = [panels[series] for series in drawn]
    depths = depths_of(shown)
    colours = inks(depths)
    longest = last_step(shown)
    scale = 10_000 if longest >= 10_000 else 1
    fits = any(
        (error := final_mean(curves, "test_error")) is not None and error <= PAPER_TOP
        for panel in shown
        for curves in panel
    )
    top = PAPER_TOP if fits else top_error([curves for panel in shown for curves in panel])
    with matplotlib.rc_context(PAPER_STYLE):
        figure = blank(PAGE if len(drawn) > 1 else 1.2 * COLUMN, 66 * MM)
        axes = list(figure.subplots(1, len(drawn), sharex=True, sharey=True, squeeze=False)[0])
        for axis, series, panel in zip(axes, drawn, shown, strict=True):
            for curves in panel:
                draw_lines(axis, curves, colours[curves.depth], scale)
                draw_diverged(axis, curves, colours[curves.depth], scale)
            axis.set_xlabel("iter. (1e4)" if scale > 1 else "step")
            axis.set_title(spaced(series), fontsize=8, pad=4)
            axis.tick_params(labelleft=True)
            axis.set_ylabel("error (%)")
        axes[0].set_xlim(0, longest / scale)
        axes[0].set_ylim(0, top)
        axes[0].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes[0].xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        for axis, panel in zip(axes, shown, strict=True):
            name_curves(axis, panel, colours, scale, top)
        ink = "#222222"
        handles = [
            Line2D([], [], color=ink, linewidth=0.8, linestyle=DASHES),
            Line2D([], [], color=ink, linewidth=1.7),
        ]
        handles.append(Line2D([], [], linestyle="none"))  # words alone
        legend(figure, handles, ["training error", "test error", remark(runs, drawn, fits)])
    return figure


def twin_panels(panels: dict[str, list[Curves]]) -> list[str]:
    """The first plain series and the first other one; of one kind alone, its first two."""
    plain = [series for series in panels if series.split(",")[0] == "plain"]
    other = [series for series in panels if series not in plain]
    return [plain[0], other[0]] if plain and other else list(panels)[:2]


def inks(depths: Sequence[int]) -> dict[int, str]:
    """A print colour a depth, by rank; more depths than inks shade as elsewhere."""
    if len(depths) > len(INKS):
        return depth_colours(depths)
    return dict(zip(depths, INKS, strict=False))


def remark(runs: Sequence[Run], drawn: Sequence[str], fits: bool) -> str:
    """What a caption must say: data, seeds, and where the axis is not the paper's."""
    shown = [run for run in runs if run.series in drawn]
    counted = seeds(shown)
    over = "1 seed" if counted == "1 seed" else f"means over {counted}"
    said = [data_sets(shown), over]
    if len({run.series for run in runs}) > len(drawn):
        said.append(f"{len(drawn)} of {len({run.series for run in runs})} series")
    if not fits:
        said.append(f"no curve ends below {PAPER_TOP:.0f} %: axis by the data")
    return ", ".join(said)


def draw_lines(axis: Axes, curves: Curves, colour: str, scale: int) -> None:
    """Training thin and dashed, test bold, as means over the seeds."""
    if not curves.whole:
        return
    for column, stroke, width in (("train_error", DASHES, 0.8), ("test_error", "-", 1.7)):
        steps, errors = curves.means(column)
        axis.plot(
            np.array(steps) / scale,
            errors,
            color=colour,
            linestyle=stroke,
            linewidth=width,
            label=f"{curves.series}-{curves.depth} {column.removesuffix('_error')}",
        )


def name_curves(
    axis: Axes, panel: Sequence[Curves], colours: dict[int, str], scale: int, top: float
) -> None:
    """``plain-20`` right of the end of each test curve, moved apart where they would overlap.

    A moved name has a hair line to its curve; one above the axis an arrow and its final error.
    """
    ends = [
        (error, curves.whole[0][-1].step, curves)
        for curves in panel
        if (error := final_mean(curves, "test_error")) is not None
    ]
    ends.sort(key=lambda end: end[0])
    places = spread([min(error, top) for error, _, _ in ends], 0.072 * top, top)
    for (error, step, curves), place in zip(ends, places, strict=True):
        arch = curves.series.split(",")[0]
        beyond = f" \N{UPWARDS ARROW} {error:.0f} %" if error > top else ""
        end = min(error, top)
        axis.annotate(
            f"{arch}-{curves.depth}{beyond}",
            (step / scale, end),
            xytext=(1.045, place / top),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=7,
            color=colours[curves.depth],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[curves.depth],
                "linewidth": 0.5,
                "shrinkA": 0.5,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def spread(wanted: Sequence[float], apart: float, top: float) -> list[float]:
    """Heights at least ``apart``, in the order given, as near to the wanted as can be.

    Neighbours that are too near share the middle of what they want (pool adjacent violators);
    none lies above ``top``, nor below 0 if they fit.
    """
    blocks: list[tuple[float, int]] = []  # the mean of wanted minus rank * apart, and how many
    for rank, value in enumerate(wanted):
        mean, count = value - rank * apart, 1
        while blocks and blocks[-1][0] > mean:
            before, members = blocks.pop()
            mean = (mean * count + before * members) / (count + members)
            count += members
        blocks.append((mean, count))
    shifted = [mean for mean, count in blocks for _ in range(count)]
    most = top - (len(wanted) - 1) * apart
    return [max(0.0, min(mean, most)) + rank * apart for rank, mean in enumerate(shifted)]
