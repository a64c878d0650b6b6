"""Errors while training: He et al. 2015, figure 6, for a few networks or a page of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from resexp.analysis.figures import canvas
from resexp.analysis.figures.canvas import COLUMN, DASHES, MM, MOST_PANELS, PAGE, depth_colour
from resexp.analysis.figures.chart import Chart, Key, Line, Nothing, Panel, Points, Scale, at_chance
from resexp.analysis.results import Run, grouped, order
from resexp.train.row import Row

#: What is drawn of a network: column, the tag of its lines and their name.
ERRORS = (("test_error", "test", "test"), ("train_error", "train", "training"))
#: Statuses that are told below a title.
NOTED = ("collapsed", "diverged", "failed", "interrupted", "running")

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


#: Networks by series, plain first, each shallow to deep.
Groups = Mapping[str, Sequence[Network]]


@dataclass(frozen=True, slots=True)
class Look:
    """In what the kinds of curves differ."""

    widths: tuple[float, float] = (1.3, 0.9)  # of test and of training error, points
    bands: bool = True
    end: str = "{depth}"  # beside a curve
    top: float | None = None  # of the axis, percent; by the data if None


def curves(runs: Sequence[Run], most: int = MOST_PANELS) -> Chart:
    """Training (dashed) and test error (solid) against steps, a panel a series, a colour a depth.

    Lines are means over seeds, bands their whole range. A diverged run is a thin line of its own
    that ends in a cross. Raises Nothing if no run has a row yet.
    """
    groups = require_rows(runs)
    drawn = {series: groups[series] for series in list(groups)[:most]}
    panels = error_panels(drawn, Look(), step_scale(drawn))
    columns = min(len(panels), 2)
    return Chart(
        title="Error while training",
        caption="Curves start at chance. Training error is the running mean over augmented "
        "batches.",
        heading=canvas.heading(runs),
        part=canvas.part(len(drawn), len(groups)),
        panels=panels,
        keys=curve_keys(drawn, panels),
        columns=columns,
        width=COLUMN if columns == 1 else PAGE,
        row=64,
    )


def families(runs: Sequence[Run]) -> Chart:
    """A page of small panels, one a series, however many: errors against steps, colours by depth.

    From the best to the worst of the deepest networks. Raises Nothing if no run has a row yet.
    """
    groups = dict(sorted(require_rows(runs).items(), key=lambda pair: outcome(pair[1])))
    look = Look((0.75 * 1.3, 0.75 * 0.9), end="")
    panels = error_panels(groups, look, step_scale(groups, ticks=4))
    # A small panel is a little wider than high; of its columns as few as keep all on a page.
    rows = {columns: min(52.0, 0.8 * 165 / columns) + 8 for columns in range(1, 7)}
    most = canvas.TALLEST / MM - 24  # mm that are left of a page for panels
    number = len(panels)
    fit = (n for n in rows if number <= n * n and math.ceil(number / n) * rows[n] <= most)
    columns = next(fit, 6)
    keys = curve_keys(groups, panels)
    return Chart(
        heading=canvas.heading(runs),
        panels=panels,
        keys=keys,
        columns=columns,
        row=rows[columns],
        labels="outer",
    )


def outcome(group: Sequence[Network]) -> float:
    """The mean test error at the end of the deepest network that has one."""
    whole = [network for network in group if network.whole]
    return float(whole[-1].values("test_error")[1][:, -1].mean()) if whole else math.inf


# --- what is drawn


def require_rows(runs: Sequence[Run]) -> dict[str, list[Network]]:
    """Networks by series (plain first), shallow first; raises Nothing if no run has a row yet.

    Runs without a row stay in their network if it has others: failures are counted.
    """
    networks = grouped(sorted(runs, key=order), lambda run: (run.series, run.depth))
    names = canvas.labels(runs)
    found = [Network(*key, some, names[key[0]]) for key, some in networks.items()]
    begun = {run.series for run in runs if run.rows()}
    if not begun:
        raise Nothing("no run here has a row of metrics yet. Wait for the first evaluation.")
    return grouped([one for one in found if one.series in begun], lambda one: one.series)


def step_scale(groups: Groups, ticks: int = 5) -> Scale:
    """From 0 to the last step of the longest run; long runs are counted in thousands."""
    networks = chain(*groups.values())
    longest = max(run.rows()[-1].step for one in networks for run in one.runs if run.rows())
    if longest >= 10_000:
        return Scale("step (thousands)", 0, longest, ticks, per=1000)
    return Scale("step", 0, longest, ticks)


def error_panels(groups: Groups, look: Look, steps: Scale) -> list[Panel]:
    """A panel a series; all end at the same error."""
    means = {
        series: [line for network in group for line in mean_lines(network, look)]
        for series, group in groups.items()
    }
    lasts = [line.y[-1] for lines in means.values() for line in lines]
    top = top_error(lasts) if look.top is None else look.top
    panels = []
    for series, group in groups.items():
        runs = [run for network in group for run in network.runs]
        broken = [drawn for run in runs if (drawn := diverged_line(run))]
        crosses = [
            Points([one.name], one.tags, one.x[-1:], one.y[-1:], one.colour, "x") for one in broken
        ]
        y, chance = Scale("error (%)", 0, top), runs[0].chance("test_error")
        lines = means[series] + broken
        panels.append(Panel(group[0].label, steps, y, lines, crosses, chance, failures(group)))
    return panels


def mean_lines(network: Network, look: Look) -> list[Line]:
    """Means over seeds, at the steps that all share, from chance on; of test error the range."""
    lines: list[Line] = []
    arch, depth = network.series.split(",")[0], network.depth
    for (column, tag, kind), width in zip(ERRORS, look.widths, strict=True):
        steps, errors = network.values(column) if network.whole else ([], np.empty((0, 0)))
        if not steps:
            continue
        errors = np.insert(errors, 0, network.runs[0].chance("test_error"), axis=1)
        mean, tags = errors.mean(axis=0).tolist(), (f"d{depth}", tag)
        line = Line(f"{depth} {kind}", tags, [0.0, *steps], mean, depth_colour(depth), width)
        lines.append(line)
        if tag == "train":
            line.stroke = DASHES
            continue
        line.end = look.end.format(arch=arch, depth=depth)
        if look.bands and len(errors) > 1:
            line.low, line.high = errors.min(axis=0).tolist(), errors.max(axis=0).tolist()
    return lines


def diverged_line(run: Run) -> Line | None:
    """A diverged run's test error up to where it is no number."""
    good = [row for row in run.rows() if math.isfinite(row.test_error)]
    if run.status != "diverged" or not good:
        return None
    x = [0.0, *(float(row.step) for row in good)]
    y = [run.chance("test_error"), *(row.test_error for row in good)]
    tags = (f"d{run.depth}", "test")
    return Line(f"{run.run} diverged", tags, x, y, depth_colour(run.depth), width=0.6)


def top_error(lasts: Sequence[float]) -> float:
    """Upper end of the error axis: twice the worst final mean, so that the first steps may leave.

    As in the paper, whose axis ends at 20 %.
    """
    worst = max(2 * max(lasts, default=50.0), 10.0)
    return next((float(top) for top in range(10, 90, 10) if worst <= top), 100.0)


def curve_keys(groups: Groups, panels: Sequence[Panel]) -> list[Key]:
    """A colour a depth, a stroke a kind of error, and what lines and bands are over seeds."""
    networks = list(chain(*groups.values()))
    several = any(len(network.whole) > 1 for network in networks)
    of = f", mean of {canvas.seeds([run for network in networks for run in network.runs])}"
    return [
        *depth_keys(groups),
        Key(f"test error{of if several else ''}", tag="test", width=1.3),
        Key("training error", tag="train", width=0.9, stroke=DASHES),
        *([Key("range of test error over seeds", tag="spread", band=True)] if several else []),
        *at_chance(panels),
    ]


def depth_keys(groups: Groups) -> list[Key]:
    depths = sorted({network.depth for network in chain(*groups.values())})
    return [Key(f"{depth} layers", depth_colour(depth), f"d{depth}") for depth in depths]


def failures(group: Sequence[Network]) -> str:
    """``56 layers: 1 collapsed of 3``, a line a network."""
    notes = []
    for network in group:
        counts = Counter(run.status for run in network.runs)
        said = [f"{counts[status]} {status}" for status in NOTED if counts[status]]
        if said:
            notes.append(f"{network.depth} layers: {', '.join(said)} of {len(network.runs)}")
    return "\n".join(notes)
