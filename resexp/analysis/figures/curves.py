"""Errors while training: He et al. 2015, figure 6, for a few networks or a page of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resexp.analysis.figures.canvas import (
    DASHES,
    MM,
    MOST_PANELS,
    PAGE,
    STYLE,
    blank,
    canvas,
    depth_colours,
    draw_chance,
    head,
    heading,
    legend_curves,
    round_up,
    spaced,
    step_axis,
    step_label,
    step_scale,
)
from resexp.analysis.results import Run, order
from resexp.runs.records import Row
from resexp.settings import UsageError

ERRORS = ("train_error", "test_error")
TALLEST = 235 * MM  # of a page of small panels, so that it fits A4


@dataclass(slots=True)
class Curves:
    """Runs of one series and depth, with their rows."""

    series: str
    depth: int
    runs: list[tuple[Run, list[Row]]]

    @property
    def whole(self) -> list[list[Row]]:
        """Rows of the runs that the mean is over: finished finite ones, else all finite ones."""
        finite = [(run, rows) for run, rows in self.runs if run.status != "diverged" and rows]
        finished = [rows for run, rows in finite if run.finished]
        return finished or [rows for _, rows in finite]

    def means(self, column: str) -> tuple[list[int], list[float]]:
        """Steps that all seeds share, and the mean of a column of errors there."""
        steps, errors = self.values(column)
        return steps, [float(mean) for mean in errors.mean(axis=0)]

    def values(
        self, column: str
    ) -> tuple[list[int], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
        """Steps that all seeds share, and a column there, shape (seeds, steps), in percent."""
        steps = set.intersection(*({row.step for row in rows} for rows in self.whole))
        values = [
            [getattr(row, column) for row in rows if row.step in steps] for rows in self.whole
        ]
        return sorted(steps), np.array(values, dtype=np.float64)


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Training (dashed) and test error (solid) against steps, a panel a series, a colour a depth.

    Lines are means over seeds, bands their whole range. A diverged run is a thin line of its own
    that ends in a cross. Raises UsageError if no run has a row yet.
    """
    panels = require_rows(runs)
    drawn = list(panels)[:MOST_PANELS]
    depths = depths_of([panels[series] for series in drawn])
    colours = depth_colours(depths)
    longest = last_step([panels[series] for series in drawn])
    scale = step_scale(longest)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(len(drawn))
        for index, (axis, series) in enumerate(zip(axes, drawn, strict=True)):
            axis.set_title(spaced(series), loc="left", fontweight="bold", pad=4)
            for curves in panels[series]:
                draw_mean(axis, curves, colours[curves.depth], scale)
                draw_diverged(axis, curves, colours[curves.depth], scale)
            note_failures(axis, panels[series])
            axis.set_xlabel(step_label(longest))
            if index % 2 == 0:
                axis.set_ylabel("error (%)")
        top = top_error([curves for series in drawn for curves in panels[series]])
        axes[0].set_ylim(0, top)
        for axis, series in zip(axes, drawn, strict=True):
            draw_chance(axis, runs, top)
            label_ends(axis, panels[series], colours, scale, 0.055 * top)
        step_axis(axes[0], longest)
        head(figure, heading(runs), len(panels))
        legend_curves(figure, depths, colours)
    return figure


def draw_families(runs: Sequence[Run]) -> Figure:
    """A page of small panels, one a series, however many: errors against steps, colours by depth.

    Series of one arch stand together. Raises UsageError if no run has a row yet.
    """
    panels = require_rows(runs)
    depths = depths_of(list(panels.values()))
    colours = depth_colours(depths)
    longest = last_step(list(panels.values()))
    top = top_error([curves for panel in panels.values() for curves in panel])
    with matplotlib.rc_context(STYLE):
        figure, axes, columns = small_panels(len(panels))
        for axis, (series, panel) in zip(axes, panels.items(), strict=True):
            for curves in panel:
                draw_mean(axis, curves, colours[curves.depth], step_scale(longest), thin=0.75)
                draw_diverged(axis, curves, colours[curves.depth], step_scale(longest))
            title_small(axis, series, failed_runs(panel), letters=112 // columns)
        for axis in axes[::columns]:
            axis.set_ylabel("error (%)")
        for axis in axes[max(len(axes) - columns, 0) :]:  # the lowest of each column
            axis.set_xlabel(step_label(longest))
            axis.tick_params(labelbottom=True)
        axes[0].set_ylim(0, top)
        step_axis(axes[0], longest, ticks=4)
        head(figure, heading(runs))
        legend_curves(figure, depths, colours)
    return figure


# --- what is drawn


def gather(runs: Sequence[Run]) -> dict[str, list[Curves]]:
    """Runs that have rows, by series (plain first) and depth (shallow first).

    Runs without a row stay in their group if it has others: failures are counted.
    """
    groups: dict[tuple[str, int], Curves] = {}
    for run in sorted(runs, key=order):
        key = (run.series, run.depth)
        groups.setdefault(key, Curves(*key, [])).runs.append((run, run.rows()))
    panels: dict[str, list[Curves]] = {}
    for curves in groups.values():
        panels.setdefault(curves.series, []).append(curves)
    return {
        series: depths
        for series, depths in panels.items()
        if any(rows for curves in depths for _, rows in curves.runs)
    }


def require_rows(runs: Sequence[Run]) -> dict[str, list[Curves]]:
    """``gather``, with a UsageError where there is nothing."""
    panels = gather(runs)
    if not panels:
        raise UsageError("no run here has a row of metrics yet. Wait for the first evaluation.")
    return panels


def depths_of(panels: Sequence[Sequence[Curves]]) -> list[int]:
    return sorted({curves.depth for panel in panels for curves in panel})


def last_step(panels: Sequence[Sequence[Curves]]) -> int:
    """The step that the longest run has come to."""
    return max(
        rows[-1].step for panel in panels for curves in panel for _, rows in curves.runs if rows
    )


def final_mean(curves: Curves, column: str) -> float | None:
    """The mean over seeds of the last value of an error; None where there is no finite run."""
    finals = [getattr(rows[-1], column) for rows in curves.whole]
    mean = float(np.mean(finals)) if finals else math.nan
    return mean if math.isfinite(mean) else None


def draw_mean(axis: Axes, curves: Curves, colour: str, scale: int, thin: float = 1.0) -> None:
    """Means over seeds with their range, at the steps that all seeds share."""
    if not curves.whole:
        return
    for column, style, width in (("train_error", DASHES, 0.9), ("test_error", "-", 1.3)):
        steps, errors = curves.values(column)
        x = np.array(steps) / scale
        label = f"{curves.series}-{curves.depth} {column.removesuffix('_error')}"
        axis.plot(
            x,
            errors.mean(axis=0),
            color=colour,
            linestyle=style,
            linewidth=thin * width,
            label=label,
        )
        if len(errors) > 1:
            axis.fill_between(
                x, errors.min(axis=0), errors.max(axis=0), color=colour, alpha=0.13, linewidth=0
            )


def draw_diverged(axis: Axes, curves: Curves, colour: str, scale: int) -> None:
    """A diverged run's test error up to where it is no number, and a cross there."""
    for run, rows in curves.runs:
        good = [row for row in rows if math.isfinite(row.test_error)]
        if run.status != "diverged" or not good:
            continue
        x = [row.step / scale for row in good]
        y = [row.test_error for row in good]
        axis.plot(x, y, color=colour, linewidth=0.6, label=f"{run.run} test")
        axis.plot(x[-1:], y[-1:], "x", color=colour, markersize=5, label=f"{run.run} diverged")


def label_ends(
    axis: Axes, panel: Sequence[Curves], colours: dict[int, str], scale: int, apart: float
) -> None:
    """Depths beside the ends of the test lines; those less than ``apart`` percent share a label."""
    ends = sorted(
        (curves.whole[0][-1].step, error, curves.depth)
        for curves in panel
        if (error := final_mean(curves, "test_error")) is not None
    )
    clusters: list[list[tuple[int, float, int]]] = []
    for end in ends:
        before = clusters[-1][-1] if clusters else None
        if before and before[0] == end[0] and end[1] - before[1] < apart:
            clusters[-1].append(end)
        else:
            clusters.append([end])
    for cluster in clusters:
        depths = sorted(depth for _, _, depth in cluster)
        between = [curves.depth for curves in panel if depths[0] <= curves.depth <= depths[-1]]
        joined = ", ".join(str(depth) for depth in depths)
        axis.annotate(
            f"{depths[0]} to {depths[-1]}" if len(between) == len(depths) > 2 else joined,
            (cluster[0][0] / scale, float(np.mean([error for _, error, _ in cluster]))),
            xytext=(3, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=7,
            color=colours[depths[0]] if len(depths) == 1 else "#444444",
            annotation_clip=False,
        )


def note_failures(axis: Axes, panel: Sequence[Curves]) -> None:
    """``56 layers: 1 collapsed of 3`` in a corner of the panel."""
    notes = []
    for curves in panel:
        counts = [
            (status, sum(run.status == status for run, _ in curves.runs))
            for status in ("collapsed", "diverged", "failed", "interrupted", "running")
        ]
        said = [f"{count} {status}" for status, count in counts if count]
        if said:
            notes.append(f"{curves.depth} layers: {', '.join(said)} of {len(curves.runs)}")
    if notes:
        axis.set_title("\n".join(notes), loc="right", fontsize=6.5, color="#666666", pad=4)


def top_error(curves: Sequence[Curves]) -> float:
    """Upper end of the error axis: twice the worst final mean, so that the first steps may leave.

    As in the paper, whose axis ends at 20 %.
    """
    finals = [final_mean(group, column) for group in curves for column in ERRORS]
    finite = [value for value in finals if value is not None]
    return min(100.0, round_up(max(2 * max(finite, default=50.0), 10.0)))


# --- a page of small panels


def small_panels(count: int) -> tuple[Figure, list[Axes], int]:
    """A figure of page width, its axes, and in how many columns: as many as keep it on a page."""
    columns = next(
        (
            most
            for most in (1, 2, 3, 4, 5, 6)
            if count <= most * most and page_height(count, most) <= TALLEST
        ),
        6,
    )
    figure = blank(PAGE, page_height(count, columns))
    grid = figure.subplots(
        math.ceil(count / columns), columns, sharex=True, sharey=True, squeeze=False
    )
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count], columns


def page_height(count: int, columns: int) -> float:
    """Inches: a small panel is a little wider than high."""
    panel = min(52.0, 0.8 * 165 / columns) + 8
    return (panel * math.ceil(count / columns) + 20) * MM


def failed_runs(panel: Sequence[Curves]) -> str:
    """``2 of 6 failed`` for runs that collapsed, diverged or broke off; empty if none did."""
    runs = [run for curves in panel for run, _ in curves.runs]
    failed = sum(run.status in ("collapsed", "diverged", "failed") for run in runs)
    return f"{failed} of {len(runs)} failed" if failed else ""


def title_small(axis: Axes, series: str, failures: str, letters: int) -> None:
    """The arch in bold; in the corner the settings in which the series differs, and failures."""
    arch, *settings = series.split(",")
    axis.set_title(arch, loc="left", fontsize=7.5, fontweight="bold", pad=3)
    said = ", ".join(setting.removeprefix("arch.") for setting in settings)
    lines = textwrap.wrap(said, letters, max_lines=3, placeholder=" ...", break_long_words=False)
    corner = "\n".join([*lines, failures] if failures else lines)
    if corner:
        axis.text(
            0.97,
            0.95,
            corner,
            transform=axis.transAxes,
            ha="right",
            va="top",
            fontsize=6.5,
            color="#555555",
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        )
