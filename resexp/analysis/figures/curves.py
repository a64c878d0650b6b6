"""Errors while training: He et al. 2015, figure 6, for a few networks or a page of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from resexp.analysis.figures.canvas import (
    COLUMN,
    DASHES,
    GREY,
    MM,
    MOST_PANELS,
    PAGE,
    TALLEST,
    depth_colour,
    heading,
    labels,
    part,
    seeds,
)
from resexp.analysis.figures.chart import (
    Chart,
    Key,
    Line,
    Nothing,
    Panel,
    Points,
    Scale,
    chance_keys,
)
from resexp.analysis.results import Run, grouped, order
from resexp.train.row import Row

#: What is drawn of a network: column, the tag of its lines and their name.
ERRORS = (("test_error", "test", "test"), ("train_error", "train", "training"))

BROKEN = ("collapsed", "diverged", "failed")  # statuses of runs that went wrong
UNFINISHED = ("interrupted", "running")

Values = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(slots=True)
class Network:
    """Runs of one series and depth: they differ in their seed."""

    series: str
    depth: int
    runs: list[Run]
    label: str  # what people call the series

    @property
    def whole(self) -> list[list[Row]]:
        """Rows of the runs that the mean is over: finished finite ones, else all finite ones."""
        finite = [run for run in self.runs if run.status != "diverged" and run.rows()]
        return [run.rows() for run in finite if run.finished] or [run.rows() for run in finite]

    def values(self, column: str) -> tuple[list[float], Values]:
        """Steps that all seeds share, and a column there, shape (seeds, steps)."""
        whole = self.whole
        shared = set.intersection(*({row.step for row in rows} for rows in whole))
        values = [[getattr(row, column) for row in rows if row.step in shared] for rows in whole]
        table = np.array(values, dtype=np.float64)
        known = np.isfinite(table).all(axis=0)
        return list(np.array(sorted(shared), dtype=float)[known]), table[:, known]


@dataclass(frozen=True, slots=True)
class Look:
    """In what the kinds of curves differ."""

    colours: Mapping[int, str]
    widths: tuple[float, float]  # of test and of training error, points
    bands: bool = True
    end: str = "{depth}"  # beside a curve
    top: float | None = None  # of the axis, percent; by the data if None


def curves(runs: Sequence[Run], most: int = MOST_PANELS) -> Chart:
    """Training (dashed) and test error (solid) against steps, a panel a series, a colour a depth.

    Lines are means over seeds, bands their whole range. A diverged run is a thin line of its own
    that ends in a cross. Raises UsageError if no run has a row yet.
    """
    groups = require_rows(runs)
    drawn = {series: groups[series] for series in list(groups)[:most]}
    longest = last_step(drawn)
    panels = error_panels(drawn, Look(colours_of(drawn), (1.3, 0.9)), step_scale(longest))
    columns = min(len(panels), 2)
    return Chart(
        title="Error while training",
        caption="Curves start at chance. Training error is the running mean over augmented "
        "batches.",
        heading=heading(runs),
        part=part(len(drawn), len(groups)),
        panels=panels,
        keys=curve_keys(drawn, panels),
        columns=columns,
        width=COLUMN if columns == 1 else PAGE,
        row=64 * MM,
    )


def families(runs: Sequence[Run]) -> Chart:
    """A page of small panels, one a series, however many: errors against steps, colours by depth.

    From the best to the worst of the deepest networks. Raises UsageError if no run has a row yet.
    """
    groups = dict(sorted(require_rows(runs).items(), key=lambda pair: outcome(pair[1])))
    look = Look(colours_of(groups), (0.75 * 1.3, 0.75 * 0.9), end="")
    panels = error_panels(groups, look, step_scale(last_step(groups), ticks=4))
    columns = page_columns(len(panels))
    return Chart(
        heading=heading(runs),
        panels=panels,
        keys=curve_keys(groups, panels),
        columns=columns,
        width=PAGE,
        row=small_row(columns),
        labels="outer",
    )


def outcome(group: Sequence[Network]) -> float:
    """The mean test error at the end of the deepest network that has one."""
    whole = [network for network in group if network.whole]
    return float(whole[-1].values("test_error")[1][:, -1].mean()) if whole else math.inf


# --- what is drawn


def require_rows(runs: Sequence[Run]) -> dict[str, list[Network]]:
    """Networks by series (plain first), shallow first; UsageError if no run has a row yet.

    Runs without a row stay in their network if it has others: failures are counted.
    """
    networks = grouped(sorted(runs, key=order), lambda run: (run.series, run.depth))
    names = labels(runs)
    groups = grouped(
        [Network(*key, some, names[key[0]]) for key, some in networks.items()],
        lambda one: one.series,
    )
    begun = {run.series for run in runs if run.rows()}
    if not begun:
        raise Nothing("no run here has a row of metrics yet. Wait for the first evaluation.")
    return {series: group for series, group in groups.items() if series in begun}


def colours_of(groups: Mapping[str, Sequence[Network]]) -> dict[int, str]:
    """The colours of the depths drawn, shallow first."""
    depths = sorted({network.depth for network in chain(*groups.values())})
    return {depth: depth_colour(depth) for depth in depths}


def last_step(groups: Mapping[str, Sequence[Network]]) -> int:
    """The step that the longest run has come to."""
    runs = [run for network in chain(*groups.values()) for run in network.runs if run.rows()]
    return max(run.rows()[-1].step for run in runs)


def step_scale(longest: int, ticks: int = 5) -> Scale:
    """From 0 to the last step of the longest run; long runs are counted in thousands."""
    per = 1000 if longest >= 10_000 else 1
    label = "step (thousands)" if per > 1 else "step"
    return Scale(label=label, low=0, high=longest, per=per, ticks=ticks)


def error_panels(groups: Mapping[str, Sequence[Network]], look: Look, steps: Scale) -> list[Panel]:
    """A panel a series; all end at the same error."""
    means = {series: [mean_lines(one, look) for one in group] for series, group in groups.items()}
    lasts = [line.y[-1] for group in means.values() for lines in group for line in lines]
    top = top_error(lasts) if look.top is None else look.top
    panels = []
    for series, group in groups.items():
        lines = [line for drawn in means[series] for line in drawn]
        runs = [run for network in group for run in network.runs if run.status == "diverged"]
        broken = [drawn for run in runs if (drawn := diverged_line(run, look))]
        panels.append(
            Panel(
                title=group[0].label,
                x=steps,
                y=Scale(label="error (%)", low=0, high=top),
                lines=lines + broken,
                points=[cross(line) for line in broken],
                chance=chance([run for network in group for run in network.runs]),
                note=failures(group),
            )
        )
    return panels


def mean_lines(network: Network, look: Look) -> list[Line]:
    """Means over seeds, at the steps that all share, from chance on; of test error the range."""
    lines: list[Line] = []
    arch = network.series.split(",")[0]
    for (column, tag, kind), width in zip(ERRORS, look.widths, strict=True):
        steps, errors = network.values(column) if network.whole else ([], np.empty((0, 0)))
        if not steps:
            continue
        errors = np.insert(errors, 0, chance(network.runs), axis=1)
        banded = look.bands and len(errors) > 1 and tag == "test"
        lines.append(
            Line(
                name=f"{network.depth} {kind}",
                tags=(f"d{network.depth}", tag),
                x=[0.0, *steps],
                y=errors.mean(axis=0).tolist(),
                low=errors.min(axis=0).tolist() if banded else [],
                high=errors.max(axis=0).tolist() if banded else [],
                colour=look.colours[network.depth],
                width=width,
                stroke=DASHES if tag == "train" else "-",
                end=look.end.format(arch=arch, depth=network.depth) if tag == "test" else "",
            )
        )
    return lines


def diverged_line(run: Run, look: Look) -> Line | None:
    """A diverged run's test error up to where it is no number."""
    good = [row for row in run.rows() if math.isfinite(row.test_error)]
    if not good:
        return None
    return Line(
        name=f"{run.run} diverged",
        tags=(f"d{run.depth}", "test"),
        x=[0.0, *(float(row.step) for row in good)],
        y=[chance([run]), *(row.test_error for row in good)],
        colour=look.colours[run.depth],
        width=0.6,
    )


def cross(line: Line) -> Points:
    """Where a diverged run's line ends."""
    last = {"x": line.x[-1:], "y": line.y[-1:]}
    return Points(names=[line.name], tags=line.tags, **last, colour=line.colour, marker="x")


def chance(runs: Sequence[Run]) -> float:
    """The error of an untrained network, percent."""
    return runs[0].chance("test_error")


def top_error(lasts: Sequence[float]) -> float:
    """Upper end of the error axis: twice the worst final mean, so that the first steps may leave.

    As in the paper, whose axis ends at 20 %.
    """
    worst = max(2 * max(lasts, default=50.0), 10.0)
    return next((float(top) for top in range(10, 90, 10) if worst <= top), 100.0)


def curve_keys(groups: Mapping[str, Sequence[Network]], panels: Sequence[Panel]) -> list[Key]:
    """A colour a depth, a stroke a kind of error, and what lines and bands are over seeds."""
    networks = list(chain(*groups.values()))
    several = any(len(network.whole) > 1 for network in networks)
    of = f", mean of {seeds([run for network in networks for run in network.runs])}"
    band = [Key(name="range of test error over seeds", colour=GREY, tag="spread", band=True)]
    return [
        *depth_keys(colours_of(groups)),
        Key(name=f"test error{of if several else ''}", colour=GREY, tag="test", width=1.3),
        Key(name="training error", colour=GREY, tag="train", width=0.9, stroke=DASHES),
        *(band if several else []),
        *chance_keys(panels),
    ]


def depth_keys(colours: Mapping[int, str]) -> list[Key]:
    return [
        Key(name=f"{depth} layers", colour=colour, tag=f"d{depth}")
        for depth, colour in colours.items()
    ]


def failures(group: Sequence[Network]) -> str:
    """``56 layers: 1 collapsed of 3``, a line a network."""
    notes = []
    for network in group:
        counts = Counter(run.status for run in network.runs)
        said = [f"{counts[status]} {status}" for status in (*BROKEN, *UNFINISHED) if counts[status]]
        if said:
            notes.append(f"{network.depth} layers: {', '.join(said)} of {len(network.runs)}")
    return "\n".join(notes)


# --- a page of small panels


def page_columns(count: int) -> int:
    """As many columns as keep the panels on a page."""
    most = TALLEST - 24 * MM  # what is left of it for panels
    fit = (n for n in range(1, 6) if count <= n * n and math.ceil(count / n) * small_row(n) <= most)
    return next(fit, 6)


def small_row(columns: int) -> float:
    """Inches: a small panel is a little wider than high."""
    return (min(52.0, 0.8 * 165 / columns) + 8) * MM
