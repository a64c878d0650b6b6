"""Two narrow strips over steps: the learning rate, and how many images a second were trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from resexp.analysis.figures.canvas import (
    COLUMN,
    GREY,
    MM,
    MOST_PANELS,
    STYLE,
    blank,
    depth_colours,
    head,
    heading,
    legend,
    spaced,
    step_axis,
    step_label,
    step_scale,
)
from resexp.analysis.figures.curves import Curves, depths_of, last_step, require_rows
from resexp.analysis.results import Run

STROKES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))

TONES = ("#222222", "#9a9a9a", "#d0b070", "#7fb0d0")

Schedule = tuple[tuple[int, float], ...]  # steps and the rate of each


def draw_strips(runs: Sequence[Run]) -> Figure:
    """Learning rate (above, logarithmic) and images a second (below) against steps.

    A colour a depth, a stroke a series; means over seeds. One line of learning rate stands for all
    networks that share it. Raises UsageError if no run has a row yet.
    """
    panels = require_rows(runs)
    drawn = list(panels)[:MOST_PANELS]
    shown = [panels[series] for series in drawn]
    depths = depths_of(shown)
    colours = depth_colours(depths)
    longest = last_step(shown)
    with matplotlib.rc_context(STYLE):
        found = schedules(shown)
        figure = blank(COLUMN, (82 if len(found) == 1 else 92) * MM)
        ratio = 2 if len(found) == 1 else 3
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[ratio, 3])
        draw_rates(above, found, step_scale(longest), len(depths), len(drawn))
        for panel, stroke in zip(shown, STROKES, strict=False):
            for curves in panel:
                draw_speed(below, curves, colours[curves.depth], stroke, step_scale(longest))
        below.set_ylim(bottom=0)
        below.yaxis.set_major_locator(MaxNLocator(4))
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        above.set_title("learning rate", loc="left", fontweight="bold", pad=4)
        below.set_title("images per second", loc="left", fontweight="bold", pad=4)
        below.set_xlabel(step_label(longest))
        step_axis(below, longest)
        head(figure, heading(runs), len(panels))
        handles = [Line2D([], [], color=colours[depth], linewidth=1.6) for depth in depths]
        labels = [f"{depth} layers" for depth in depths]
        handles += [
            Line2D([], [], color=GREY, linewidth=1.3, linestyle=stroke)
            for _, stroke in zip(drawn, STROKES, strict=False)
        ]
        legend(figure, handles, labels + [spaced(series) for series in drawn])
    return figure


def schedules(panels: Sequence[Sequence[Curves]]) -> dict[Schedule, list[Curves]]:
    """The different learning rates over steps, and who was trained by each.

    A run that has not come as far as another of the same rate is not a schedule of its own.
    """
    found: dict[Schedule, list[Curves]] = {}
    rated = [
        (tuple((row.step, row.lr) for row in rows), curves)
        for panel in panels
        for curves in panel
        for _, rows in curves.runs
        if rows
    ]
    for schedule, curves in sorted(rated, key=lambda pair: -len(pair[0])):
        same = next((known for known in found if known[: len(schedule)] == schedule), schedule)
        users = found.setdefault(same, [])
        if curves not in users:
            users.append(curves)
    return found


def draw_rates(
    axis: Axes, found: dict[Schedule, list[Curves]], scale: int, depths: int, series: int
) -> None:
    """A stair a schedule: a row's rate holds from the row before it. Named if there are several.

    Each lies under the one before it, wider and lighter, so that it shows where both agree.
    """
    for rank, (schedule, users) in enumerate(found.items()):
        steps = [0, *(step for step, _ in schedule)]
        axis.plot(
            [step / scale for step in steps],
            [schedule[0][1], *(rate for _, rate in schedule)],
            drawstyle="steps-pre",
            color=TONES[rank % len(TONES)],
            linewidth=1.2 + 1.1 * min(rank, 2),
            solid_capstyle="butt",
            zorder=3 - 0.1 * rank,
            label=users_name(users, depths, series),
        )
    rates = [rate for schedule in found for _, rate in schedule]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))
    axis.set_yscale("log")
    axis.set_yticks([10.0**power for power in range(low, high + 1)])
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    room = 1.0 if len(found) == 1 else 10 ** (0.25 * len(found))  # for the names
    axis.set_ylim(min(0.6 * min(rates), 10.0**low), room * max(1.6 * max(rates), 10.0**high))
    if len(found) > 1:
        axis.legend(
            loc="upper right",
            fontsize=6.5,
            handlelength=1.6,
            borderaxespad=0,
            frameon=True,
            edgecolor="none",
            framealpha=0.9,
        )


def users_name(users: Sequence[Curves], depths: int, series: int) -> str:
    """Whose learning rate it is, by what tells them apart: depths, series or both."""
    at = sorted({curves.depth for curves in users})
    of = list(dict.fromkeys(spaced(curves.series) for curves in users))
    layers = f"{', '.join(str(depth) for depth in at)} layers" if len(at) < depths else ""
    names = "; ".join(of) if len(of) < series else ""
    return ", ".join(filter(None, [names, layers])) or "all networks"


def draw_speed(axis: Axes, curves: Curves, colour: str, stroke: Any, scale: int) -> None:
    """Images a second of one network, the mean over its seeds; training alone, as recorded."""
    if not curves.whole:
        return
    steps, speeds = curves.values("images_per_second")
    axis.plot(
        np.array(steps) / scale,
        speeds.mean(axis=0),
        color=colour,
        linestyle=stroke,
        linewidth=1.1,
        label=f"{curves.series}-{curves.depth} images per second",
    )
