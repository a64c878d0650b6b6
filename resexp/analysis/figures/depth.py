"""Final errors against depth, and by how much the plain network is worse than its twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resexp.analysis.figures.canvas import (
    FAILURE,
    GREY,
    MM,
    MOST_PANELS,
    PAGE,
    SERIES_STYLES,
    STYLE,
    blank,
    canvas,
    draw_chance,
    head,
    heading,
    legend,
    spaced,
)
from resexp.analysis.results import Run, order, others, plain_twin
from resexp.analysis.statistics import Interval, paired_t
from resexp.settings import UsageError

#: The two measures that tell degradation from overfitting, and their names.
MEASURES = {"clean_train_error": "training", "test_error": "test"}
CONFIDENCE = 0.95
SEED = "#8c8c8c"  # the colour of single seeds behind their mean

Finals = dict[str, list[tuple[Run, float]]]  # by series: finished runs and their final errors


def draw_depth(runs: Sequence[Run]) -> Figure:
    """Final clean training error (left) and test error (right) against depth.

    A line of means a series, a point a run, a bar the t interval of the mean. Collapsed and
    diverged runs are crosses and count in the mean, a diverged one at chance. Raises UsageError if
    no run is finished.
    """
    measured = {column: finals(runs, column) for column in MEASURES}
    drawn = list(measured["clean_train_error"])[:MOST_PANELS]
    if not drawn:
        raise UsageError("no run here is finished yet. See resexp list.")
    depths = sorted(
        {run.depth for series in drawn for run, _ in measured["clean_train_error"][series]}
    )
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(2)
        reach = [1.0]
        for axis, (column, name) in zip(axes, MEASURES.items(), strict=True):
            axis.set_title(f"{name} error", loc="left", fontweight="bold", pad=4)
            for index, series in enumerate(drawn):
                found = measured[column].get(series, [])
                if not found:
                    continue
                intervals = draw_series(axis, found, index, len(drawn), dodge_width(depths))
                reach += [error for _, error in found]
                reach += [each.high for each in intervals if math.isfinite(each.high)]
            axis.set_xlabel("depth (weighted layers)")
        depth_ticks(axes[0], depths)
        top = min(100.0, 1.06 * max(reach))
        axes[0].set_ylim(0, top)
        axes[0].yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
        for axis in axes:
            draw_chance(axis, runs, top)
        axes[0].set_ylabel("final error (%)")
        head(figure, heading(runs), len(measured["clean_train_error"]))
        legend_depth(figure, drawn, measured["clean_train_error"])
    return figure


def draw_difference(runs: Sequence[Run]) -> Figure:
    """Plain minus its twin, final clean training error (left) and test error (right), by depth.

    A row a twin; the points of a seed are joined, the thick line is their mean, a bar the paired t
    interval. Raises UsageError if no seed has both networks at one depth.
    """
    twins = {other: twin for other in others(runs) if (twin := plain_twin(runs, other))}
    tables = {
        other: {column: differences(runs, twin, other, column) for column in MEASURES}
        for other, twin in twins.items()
    }
    tables = {other: table for other, table in tables.items() if any(table.values())}
    if not tables:
        raise UsageError(
            "no seed here has a plain network and its twin at one depth, both finished. "
            "Train some: resexp run -m depth=20,56 arch=plain,residual"
        )
    drawn = list(tables)[: MOST_PANELS - 1]
    depths = sorted(
        {depth for other in drawn for column in MEASURES for depth in tables[other][column]}
    )
    with matplotlib.rc_context(STYLE):
        figure = blank(PAGE, (58 * len(drawn) + 16) * MM)
        grid = figure.subplots(len(drawn), 2, sharex=True, sharey=True, squeeze=False)
        for other, line in zip(drawn, grid, strict=True):
            index = (list(others(runs)).index(other) + 1) % len(SERIES_STYLES)
            for axis, (column, name) in zip(line, MEASURES.items(), strict=True):
                if other == drawn[0]:
                    axis.set_title(f"{name} error", loc="left", fontweight="bold", pad=4)
                draw_paired(axis, tables[other][column], SERIES_STYLES[index])
                axis.tick_params(labelbottom=True, labelleft=True)
            line[0].set_ylabel(f"{twins[other]} minus\n{spaced(other)} (points)")
        for axis in grid[-1]:
            axis.set_xlabel("depth (weighted layers)")
        depth_ticks(grid[0][0], depths)
        low, high = grid[0][0].get_ylim()
        if high - low < 1:  # nothing to see: not a magnified nothing
            grid[0][0].set_ylim(min(low, -0.5), max(high, 0.5))
        head(figure, heading(runs), len(tables), MOST_PANELS - 1)
        legend_difference(figure, [tables[other] for other in drawn])
    return figure


# --- final errors


def final_error(run: Run, column: str = "clean_train_error") -> float | None:
    """The last value of an error in a finished run's metrics.csv; chance if it diverged."""
    if run.status == "diverged":
        return run.endpoint(column)
    if not run.finished:
        return None
    errors = [getattr(row, column) for row in run.rows()]
    known = [float(error) for error in errors if error is not None]
    return known[-1] if known and math.isfinite(known[-1]) else None


def finals(runs: Sequence[Run], column: str) -> Finals:
    """Final errors by series, plain first, shallow to deep."""
    found: Finals = {}
    for run in sorted(runs, key=order):
        error = final_error(run, column)
        if error is not None:
            found.setdefault(run.series, []).append((run, error))
    return found


def differences(
    runs: Sequence[Run], plain: str, other: str, column: str
) -> dict[int, dict[int, tuple[float, bool]]]:
    """By depth and seed: plain minus other in percent points, and whether one of them failed."""
    errors = {
        (run.series, run.depth, run.seed): (error, run.status != "ok")
        for run in runs
        if run.series in (plain, other) and (error := final_error(run, column)) is not None
    }
    table: dict[int, dict[int, tuple[float, bool]]] = {}
    for (series, depth, seed), (error, failed) in sorted(errors.items()):
        twin = errors.get((other, depth, seed))
        if series == plain and twin is not None:
            table.setdefault(depth, {})[seed] = (error - twin[0], failed or twin[1])
    return table


# --- what is drawn


def dodge_width(depths: Sequence[int]) -> float:
    """How far the points of one depth may spread, in layers: enough to tell seeds apart."""
    if len(depths) < 2:
        return 1.0
    least = min(after - before for before, after in pairwise(depths))
    return min(0.45 * least, 0.12 * (depths[-1] - depths[0]))


def depth_ticks(axis: Axes, depths: Sequence[int]) -> None:
    """A tick at every depth that was trained, none between."""
    axis.set_xticks(depths, [str(depth) for depth in depths])
    margin = 0.07 * (depths[-1] - depths[0]) or 1
    axis.set_xlim(depths[0] - margin, depths[-1] + margin)


def draw_series(
    axis: Axes, found: Sequence[tuple[Run, float]], index: int, count: int, width: float
) -> list[Interval]:
    """One network's mean line with intervals, a point a seed beside it, a cross for a failure.

    Networks stand side by side within ``width`` layers of a depth, and beside each bar its points,
    so that none hides another.
    """
    colour, marker = SERIES_STYLES[index]
    series = found[0][0].series
    depths = sorted({run.depth for run, _ in found})
    offset = width * (index - (count - 1) / 2) / max(count, 1)
    intervals = [
        paired_t([error for run, error in found if run.depth == depth], CONFIDENCE)
        for depth in depths
    ]
    seeds = sorted({run.seed for run, _ in found})
    slot = width / max(count, 1) if len(seeds) > 1 else 0.0  # one point lies on the line
    outward = -1 if offset < 0 else 1  # points away from the tick, bars beside it
    bar, centre = offset - 0.25 * outward * slot, offset + 0.2 * outward * slot
    draw_means(axis, [depth + bar for depth in depths], intervals, colour, series)
    place = {seed: (rank - (len(seeds) - 1) / 2) / len(seeds) for rank, seed in enumerate(seeds)}
    for failed in (False, True):
        points = [(run, error) for run, error in found if (run.status != "ok") == failed]
        draw_points(
            axis,
            [run.depth + centre + 0.45 * slot * place[run.seed] for run, _ in points],
            [error for _, error in points],
            colour,
            "x" if failed else marker,
            f"{series} {'failures' if failed else 'runs'}",
        )
    return intervals


def draw_means(
    axis: Axes, x: Sequence[float], intervals: Sequence[Interval], colour: str, label: str
) -> None:
    """A line through means, and a capped bar where more than one seed gives an interval."""
    means = [interval.mean for interval in intervals]
    axis.plot(x, means, color=colour, linewidth=1.4, label=label, zorder=3, clip_on=False)
    barred = [(at, interval) for at, interval in zip(x, intervals, strict=True) if interval.n > 1]
    if not barred:
        return
    half = [interval.high - interval.mean for _, interval in barred]
    axis.errorbar(
        [at for at, _ in barred],
        [interval.mean for _, interval in barred],
        yerr=half,
        fmt="none",
        ecolor=colour,
        elinewidth=0.9,
        capsize=2.2,
        capthick=0.9,
        label=f"{label} interval",
        zorder=3,
    )


def draw_points(
    axis: Axes, x: Sequence[float], y: Sequence[float], colour: str, marker: str, label: str
) -> None:
    """A mark a run, translucent so that equal ones add up; a cross for a failure."""
    if not x:
        return
    failed = marker == "x"
    axis.plot(
        x,
        y,
        linestyle="none",
        marker=marker,
        markersize=5 if failed else 2.8,
        markeredgewidth=1.1 if failed else 0,
        alpha=1 if failed else 0.55,
        color=colour,
        label=label,
        clip_on=False,
        zorder=4,
    )


def draw_paired(
    axis: Axes,
    table: dict[int, dict[int, tuple[float, bool]]],
    style: tuple[str, str],
) -> None:
    """Differences by depth: a thin line a seed, their mean with its interval, and the zero line."""
    colour, marker = style
    axis.axhline(0, color="#444444", linewidth=0.9, zorder=2, label="zero")
    seeds = sorted({seed for by_seed in table.values() for seed in by_seed})
    for seed in seeds:
        at = [(depth, *by_seed[seed]) for depth, by_seed in table.items() if seed in by_seed]
        x, y = [depth for depth, _, _ in at], [value for _, value, _ in at]
        axis.plot(x, y, color=SEED, linewidth=0.6, alpha=0.8, label=f"seed {seed}", zorder=2)
        for failed in (False, True):
            chosen = [place for place, (_, _, broken) in enumerate(at) if broken == failed]
            draw_points(
                axis,
                [x[place] for place in chosen],
                [y[place] for place in chosen],
                SEED,
                "x" if failed else marker,
                f"seed {seed} {'failures' if failed else 'runs'}",
            )
    intervals = [
        paired_t([value for value, _ in by_seed.values()], CONFIDENCE) for by_seed in table.values()
    ]
    if intervals:
        draw_means(axis, list(table), intervals, colour, "mean")


# --- legends


def interval_name(counts: Sequence[int]) -> str:
    """What the line and its bars are, given how many runs each mean is over."""
    if max(counts, default=0) < 2:
        return "mean (one seed: no interval)"
    return f"mean and its {100 * CONFIDENCE:.0f} % t interval over seeds"


def interval_handle(counts: Sequence[int]) -> Line2D:
    """A line, with a bar across it if any mean has one."""
    bar = "|" if max(counts, default=0) > 1 else "none"
    return Line2D([], [], color=GREY, linewidth=1.4, marker=bar, markersize=8, markeredgewidth=1)


def legend_depth(figure: Figure, drawn: Sequence[str], found: Finals) -> None:
    """Names of the lines, what a bar and a point are, and what a cross is if there is one."""
    handles: list[Any] = []
    labels: list[str] = []
    for index, series in enumerate(drawn):
        colour, marker = SERIES_STYLES[index]
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=3.5, linewidth=1.4))
        labels.append(spaced(series))
    networks = [(run.series, run.depth) for series in drawn for run, _ in found[series]]
    counts = [networks.count(one) for one in networks]
    handles += [
        interval_handle(counts),
        Line2D([], [], color=GREY, marker="o", markersize=3, linestyle="none", alpha=0.6),
    ]
    labels += [interval_name(counts), "a run"]
    failed = sum(run.status != "ok" for series in drawn for run, _ in found[series])
    legend_failed(handles, labels, failed)
    legend(figure, handles, labels)


def legend_difference(
    figure: Figure, tables: Sequence[dict[str, dict[int, dict[int, tuple[float, bool]]]]]
) -> None:
    """What the lines are, and what lies above zero."""
    cells = [by_seed for table in tables for by in table.values() for by_seed in by.values()]
    counts = [len(by_seed) for by_seed in cells]
    handles: list[Any] = [
        interval_handle(counts),
        Line2D([], [], color=SEED, linewidth=0.6, marker="o", markersize=2.8),
        Line2D([], [], color="#444444", linewidth=0.9),
    ]
    labels = [
        interval_name(counts),
        "a seed",
        "no difference; above it plain is worse",
    ]
    failed = sum(broken for by_seed in cells for _, broken in by_seed.values())
    legend_failed(handles, labels, failed)
    legend(figure, handles, labels)


def legend_failed(handles: list[Any], labels: list[str], failed: int) -> None:
    if failed:
        handles.append(Line2D([], [], color=FAILURE, marker="x", markersize=5, linestyle="none"))
        labels.append("collapsed or diverged")
