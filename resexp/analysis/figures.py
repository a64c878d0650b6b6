"""The two figures: errors while training (He et al. 2015, figure 6), and final error by depth.

Drawn from metrics.csv alone, without pyplot: no window, no state between figures. Sizes are those
of a printed page (a column is 85 mm wide), so text keeps its size in a paper.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resexp.analysis.results import Run, order, require_runs
from resexp.records import METRICS, RECORD, Row
from resexp.settings import UsageError

FORMS = ("png", "svg", "pdf")
MOST_PANELS = 4
MM = 1 / 25.4  # inches
COLUMN, PAGE = 85 * MM, 175 * MM

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: the same on every machine
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "resexp",  # the same figure, the same bytes
    "pdf.fonttype": 42,
}

#: Depth from shallow to deep: hue and lightness change together, so it reads in grey and by
#: colour-blind eyes, and the lightest still stands out on white.
DEPTH_COLOURS = LinearSegmentedColormap.from_list(
    "depth", ["#e8a33d", "#d1495b", "#7b3f8c", "#1b2a5c"]
)

#: Networks where depth is the axis: colours of Okabe and Ito, and a marker for grey print.
SERIES_STYLES = (("#d55e00", "o"), ("#0072b2", "s"), ("#009e73", "^"), ("#cc79a7", "D"))
FAILURE = "#222222"


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


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Training (dashed) and test error (solid) against steps, a panel a series, a colour a depth.

    Lines are means over seeds, bands their whole range. A diverged run is a thin line of its own
    that ends in a cross. Raises UsageError if no run has a row yet.
    """
    panels = gather(runs)
    if not panels:
        raise UsageError("no run here has a row of metrics yet. Wait for the first evaluation.")
    drawn = list(panels)[:MOST_PANELS]
    depths = sorted({curves.depth for series in drawn for curves in panels[series]})
    colours = depth_colours(depths)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(len(drawn))
        longest = max(
            rows[-1].step
            for series in drawn
            for curves in panels[series]
            for _, rows in curves.runs
            if rows
        )
        scale = 1000 if longest >= 10_000 else 1
        for index, (axis, series) in enumerate(zip(axes, drawn, strict=True)):
            axis.set_title(spaced(series), loc="left", fontweight="bold", pad=4)
            for curves in panels[series]:
                draw_mean(axis, curves, colours[curves.depth], scale)
                draw_diverged(axis, curves, colours[curves.depth], scale)
            note_failures(axis, panels[series])
            axis.set_xlabel("step (thousands)" if scale > 1 else "step")
            if index % 2 == 0:
                axis.set_ylabel("error (%)")
        axes[0].set_xlim(0, longest / scale)
        top = top_error([curves for series in drawn for curves in panels[series]])
        axes[0].set_ylim(0, top)
        for axis, series in zip(axes, drawn, strict=True):
            draw_chance(axis, runs, top)
            label_ends(axis, panels[series], colours, scale, 0.055 * top)
        # 1.6 so that 64,000 steps are marked where the paper drops its rate: 16, 32, 48, 64.
        axes[0].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 1.6, 2, 2.5, 5, 10]))
        head(figure, heading(runs), len(drawn), len(panels))
        legend_curves(figure, depths, colours)
    return figure


def draw_depth(runs: Sequence[Run]) -> Figure:
    """Final clean training error against depth: a line of means a series, a point a run.

    Collapsed and diverged runs are crosses and count in the mean, a diverged one at chance. Raises
    UsageError if no run is finished.
    """
    finals: dict[str, list[tuple[Run, float]]] = {}
    for run in sorted(runs, key=order):
        error = final_error(run)
        if error is not None:
            finals.setdefault(run.series, []).append((run, error))
    if not finals:
        raise UsageError("no run here is finished yet. See resexp list.")
    drawn = list(finals)[:MOST_PANELS]
    depths = sorted({run.depth for series in drawn for run, _ in finals[series]})
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(1)
        axis = axes[0]
        for index, series in enumerate(drawn):
            draw_series(axis, finals[series], index, len(drawn), dodge_width(depths))
        axis.set_xticks(depths, [str(depth) for depth in depths])
        margin = 0.06 * (depths[-1] - depths[0]) or 1
        axis.set_xlim(depths[0] - margin, depths[-1] + margin)
        highest = max(error for series in drawn for _, error in finals[series])
        top = round_up(1.06 * highest)
        axis.set_ylim(0, top)
        draw_chance(axis, runs, top)
        axis.set_xlabel("depth (weighted layers)")
        axis.set_ylabel("final clean training error (%)")
        head(figure, heading(runs), 1, len(finals))
        legend_depth(figure, drawn, finals, runs)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, in the form that its suffix names; no date inside."""
    form = check_form(path.suffix.lstrip("."))
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form, {})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with matplotlib.rc_context(STYLE):
        figure.savefig(temporary, format=form, dpi=200, metadata=metadata)
    os.replace(temporary, path)


def plot(
    root: Path, out_dir: Path | None = None, form: str = "png", filters: Sequence[str] = ()
) -> list[Path]:
    """Write curves and depth of every experiment under ``root``; returns the files.

    They go into each experiment's folder, or with ``out_dir`` there (into a folder an experiment
    if there are several). Raises UsageError if there is nothing to draw.
    """
    check_form(form)
    experiments: dict[Path, list[Run]] = {}
    for run in require_runs(root, filters):
        # A figure of one run belongs beside that run, not in place of its experiment's.
        folder = run.path if (root / RECORD).exists() else run.experiment
        experiments.setdefault(folder, []).append(run)
    written = []
    for folder, runs in experiments.items():
        place = folder
        if out_dir is not None:
            place = out_dir / folder.name if len(experiments) > 1 else out_dir
        if gather(runs):
            written.append(place / f"curves.{form}")
            save(draw_curves(runs), written[-1])
        if any(final_error(run) is not None for run in runs):
            written.append(place / f"depth.{form}")
            save(draw_depth(runs), written[-1])
    if not written:
        raise UsageError(f"no run in {root} has a row of {METRICS} yet. Nothing to draw.")
    return written


def check_form(form: str) -> str:
    if form not in FORMS:
        raise UsageError(f"a figure has no form {form}. Choose one of {', '.join(FORMS)}.")
    return form


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


def final_error(run: Run) -> float | None:
    """The last clean training error in a finished run's metrics.csv; chance if it diverged."""
    if run.status == "diverged":
        return run.endpoint("clean_train_error")
    if not run.finished:
        return None
    errors = [row.clean_train_error for row in run.rows() if row.clean_train_error is not None]
    return errors[-1] if errors and math.isfinite(errors[-1]) else None


def depth_colours(depths: Sequence[int]) -> dict[int, str]:
    """A colour a depth, by rank: the shallowest lightest, the deepest darkest."""
    last = max(len(depths) - 1, 1)
    return {depth: to_hex(DEPTH_COLOURS(rank / last)) for rank, depth in enumerate(depths)}


def draw_mean(axis: Axes, curves: Curves, colour: str, scale: int) -> None:
    """Means over seeds with their range, at the steps that all seeds share."""
    if not curves.whole:
        return
    steps = set.intersection(*({row.step for row in rows} for rows in curves.whole))
    x = np.array(sorted(steps)) / scale
    for column, style, width in (("train_error", (0, (3, 1.6)), 0.9), ("test_error", "-", 1.3)):
        errors = np.array(
            [[getattr(row, column) for row in rows if row.step in steps] for rows in curves.whole]
        )
        label = f"{curves.series}-{curves.depth} {column.removesuffix('_error')}"
        axis.plot(
            x, errors.mean(axis=0), color=colour, linestyle=style, linewidth=width, label=label
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


def draw_chance(axis: Axes, runs: Sequence[Run], top: float) -> None:
    """Where always answering the commonest class lies, if the axis reaches that far."""
    chance = runs[0].record["data"].get("chance_error")
    if chance is None or chance >= top:
        return
    axis.axhline(chance, color="#999999", linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1)
    axis.annotate(
        "chance",
        (0, chance),
        xycoords=("axes fraction", "data"),
        xytext=(3, 2),
        textcoords="offset points",
        fontsize=6.5,
        color="#777777",
    )


def label_ends(
    axis: Axes, panel: Sequence[Curves], colours: dict[int, str], scale: int, apart: float
) -> None:
    """Depths beside the ends of the test lines; those less than ``apart`` percent share a label."""
    ends = sorted(
        (
            rows[-1].step,
            float(np.mean([rows[-1].test_error for rows in curves.whole])),
            curves.depth,
        )
        for curves in panel
        if (rows := next(iter(curves.whole), []))
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
    """``56: 1 of 3 collapsed`` in a corner of the panel."""
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
    finals = [
        float(np.mean([getattr(rows[-1], column) for rows in group.whole]))
        for group in curves
        for column in ("train_error", "test_error")
        if group.whole
    ]
    finite = [value for value in finals if math.isfinite(value)]
    return min(100.0, round_up(max(2 * max(finite, default=50.0), 10.0)))


def round_up(value: float) -> float:
    """To the next of 1, 2, 5, 10, 20, 30 ... 100."""
    for top in (1, 2, 5, *range(10, 101, 10)):
        if value <= top:
            return float(top)
    return 100.0


def dodge_width(depths: Sequence[int]) -> float:
    """How far the points of one depth may spread, in layers: enough to tell seeds apart."""
    if len(depths) < 2:
        return 1.0
    least = min(after - before for before, after in pairwise(depths))
    return min(0.25 * least, 0.05 * (depths[-1] - depths[0]))


def draw_series(
    axis: Axes, finals: Sequence[tuple[Run, float]], index: int, count: int, width: float
) -> None:
    """One network's mean line, a point a seed beside it, a cross for a failure."""
    colour, marker = SERIES_STYLES[index]
    series = finals[0][0].series
    depths = sorted({run.depth for run, _ in finals})
    means = [
        float(np.mean([error for run, error in finals if run.depth == depth])) for depth in depths
    ]
    axis.plot(depths, means, color=colour, linewidth=1.4, label=series, zorder=3)
    seeds = sorted({run.seed for run, _ in finals})
    place = {seed: rank - (len(seeds) - 1) / 2 for rank, seed in enumerate(seeds)}
    offset = width * (index - (count - 1) / 2) / max(count, 1)
    for failed in (False, True):
        points = [(run, error) for run, error in finals if (run.status != "ok") == failed]
        if not points:
            continue
        x = [run.depth + offset + 0.4 * width * place[run.seed] / len(seeds) for run, _ in points]
        axis.plot(
            x,
            [error for _, error in points],
            linestyle="none",
            marker="x" if failed else marker,
            markersize=5 if failed else 3,
            markeredgewidth=1.1 if failed else 0,
            alpha=1 if failed else 0.6,
            color=colour,
            label=f"{series} {'failures' if failed else 'runs'}",
            clip_on=False,
            zorder=4,
        )


# --- around the axes


def canvas(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of column or page width with axes that share their scales."""
    columns, lines = min(panels, 2), math.ceil(panels / 2)
    width, height = (COLUMN if columns == 1 else PAGE), 62 * MM * lines + 14 * MM
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr,call-arg]
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.remove()
    for axis in axes[:panels]:
        axis.tick_params(labelbottom=True, labelleft=True)
    return figure, axes[:panels]


def heading(runs: Sequence[Run]) -> str:
    """Experiment, data, recipe and seeds."""
    first = runs[0]
    data = first.record["data"].get("name") or first.setting("data.name")
    networks = Counter((run.series, run.depth) for run in runs)
    least, most = min(networks.values()), max(networks.values())
    seeds = f"{most} seed{'' if most == 1 else 's'}"
    return (
        f"Experiment {first.name}: data {data}, recipe {first.setting('recipe')}, "
        f"{seeds if least == most else f'{least} to {seeds}'}"
    )


def spaced(series: str) -> str:
    """``residual,arch.shortcut=B`` with room after the comma."""
    return series.replace(",", ", ")


def head(figure: Figure, title: str, panels: int, series: int) -> None:
    left_out = f" ({MOST_PANELS} of {series} series)" if series > MOST_PANELS else ""
    figure.suptitle(title + left_out, x=0.01, ha="left", fontsize=8 if panels > 1 else 7)


def legend_curves(figure: Figure, depths: Sequence[int], colours: dict[int, str]) -> None:
    """One line below the panels: a colour a depth, a stroke a kind of error."""
    handles = [Line2D([], [], color=colours[depth], linewidth=1.6) for depth in depths]
    labels = [f"{depth} layers" for depth in depths]
    grey = "#555555"
    handles += [
        Line2D([], [], color=grey, linewidth=1.3),
        Line2D([], [], color=grey, linewidth=0.9, linestyle=(0, (3, 1.6))),
    ]
    labels += ["test", "training"]
    legend(figure, handles, labels)


def legend_depth(
    figure: Figure,
    drawn: Sequence[str],
    finals: dict[str, list[tuple[Run, float]]],
    runs: Sequence[Run],
) -> None:
    """Names of the lines, and what a cross is if there is one."""
    handles, labels = [], []
    for index, series in enumerate(drawn):
        colour, marker = SERIES_STYLES[index]
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=3, linewidth=1.4))
        labels.append(spaced(series))
    failed = sum(run.status != "ok" for series in drawn for run, _ in finals[series])
    if failed:
        handles.append(Line2D([], [], color=FAILURE, marker="x", markersize=5, linestyle="none"))
        labels.append("collapsed or diverged")
    legend(figure, handles, labels)


def legend(figure: Figure, handles: list[Line2D], labels: list[str]) -> None:
    """Below the panels, in as many columns as the width holds."""
    width = figure.get_figwidth() / MM
    columns = len(labels)
    while columns > 1 and columns * 9.5 + 1.35 * legend_letters(labels, columns) > width:
        columns -= 1
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def legend_letters(labels: Sequence[str], columns: int) -> int:
    """Letters across, the longest label of each column; matplotlib fills columns downwards."""
    lines = math.ceil(len(labels) / columns)
    return sum(
        max(len(label) for label in labels[start : start + lines])
        for start in range(0, len(labels), lines)
    )
