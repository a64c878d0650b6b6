"""Final errors against depth, and by how much the plain network is worse than its twin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from resexp.analysis.figures.canvas import MOST_PANELS, heading, labels, part, seeds, series_style
from resexp.analysis.figures.chart import Chart, Key, Line, Nothing, Panel, Points, Scale, at_chance
from resexp.analysis.results import Run, grouped, order
from resexp.analysis.statistics import paired_t
from resexp.analysis.verdict import LEAST_LOSS

#: The two errors that tell degradation from overfitting, and their names.
MEASURES = {"clean_train_error": "training error", "test_error": "test error"}
LOSS = "clean_train_loss"  # what the verdict is about
MINUS = {"clean_train_error": "training error (points)", LOSS: "log10 training loss"}
CONFIDENCE = 0.95
CROWDED = 20  # times the median error that the largest mean may be on a linear axis
ENOUGH = 3  # seeds for an interval: that of two reaches 9 times as far as they lie apart
FAILURE = "#222222"
SEED = "#8c8c8c"  # the colour of single seeds behind their mean

Pairs = Sequence[tuple[Run, Run]]  # a plain run and its twin of the same depth and seed


def depth(runs: Sequence[Run], most: int = MOST_PANELS) -> Chart:
    """Final clean training error (left) and test error (right) against depth.

    A line of means a series, a point a run, a bar the t interval of the mean. Collapsed and
    diverged runs are crosses and count in the mean, a diverged one at chance. Where a few errors
    would press all others to the floor the axis is logarithmic from 1 % on. Raises Nothing for
    fewer than two depths.
    """
    found = [run for run, _ in finals(runs, "clean_train_error")]
    series = list(dict.fromkeys(run.series for run in found))
    if not series:
        raise Nothing("no run here is finished yet. See resexp list.")
    if len(depths := {run.depth for run in found}) < 2:
        raise Nothing(
            f"all runs have {min(depths)} layers. Train another depth, or see resexp table."
        )
    names = {one: name for one, name in labels(runs).items() if one in series[:most]}
    shown = [run for run in found if run.series in names]
    panels = [error_panel(shown, series[:most], names, column) for column in MEASURES]
    panels[0].y = panels[1].y = error_scale(panels)
    keys = []
    for index, one in enumerate(series[:most]):
        colour, marker = series_style(index)
        keys.append(Key(names[one], colour, f"s{index}", 1.4, marker=marker))
    return Chart(
        title="Final error against depth",
        caption="After the last step, over all training and all test images.",
        heading=heading(runs),
        part=part(len(names), len(series)),
        panels=panels,
        keys=[
            *keys,
            mean_key(shown, panels),
            Key("a run", tag="run", stroke="none", marker="o"),
            *failed_keys(panels),
            *at_chance(panels),
        ],
        columns=2,
        row=66,
    )


def difference(runs: Sequence[Run], most: int = MOST_PANELS - 1) -> Chart:
    """Plain minus its twin by depth: final training error, and log10 of training loss.

    A row a twin; the points of a seed are joined, the thick line is their mean, a bar the paired t
    interval. Raises Nothing if no seed has both networks at one depth, or if all pairs are of one
    depth or of one seed.
    """
    twins = {other: twin for other in others(runs) if (twin := plain_twin(runs, other))}
    pairs = {other: found for other, twin in twins.items() if (found := paired(runs, twin, other))}
    if not pairs:
        raise Nothing(
            "no seed here has a plain network and its twin at one depth, both finished. "
            "Train some: resexp run -m depth=20,56 arch=plain,residual"
        )
    silent = {other: says_nothing(found) for other, found in pairs.items()}
    drawn = {other: pairs[other] for other in [one for one in pairs if not silent[one]][:most]}
    if not drawn:
        raise Nothing(next(iter(silent.values())))
    depths = sorted({plain.depth for found in drawn.values() for plain, _ in found})
    names, panels = labels(runs), []
    for other, found in drawn.items():
        style = series_style(list(others(runs)).index(other) + 1)
        plain, settings = names[twins[other]], names[twins[other]].partition(", ")[2]
        if names[other].endswith(f", {settings}"):  # what both are called is said once
            plain = plain.removesuffix(f", {settings}")
        title = f"{plain} minus {names[other]}"
        panels += [difference_panel(found, depths, column, title, style) for column in MINUS]
    for alike, least in ((panels[::2], 1.0), (panels[1::2], 0.1)):  # errors, and losses
        # Around zero; where nothing differs there is nothing to see: not a magnified nothing.
        low, high = min(0.0, *values(alike)), max(0.0, *values(alike))
        room = max(0.06 * (high - low), (least - (high - low)) / 2)
        for panel in alike:
            panel.y.low, panel.y.high = low - room, high + room
    only = list(drawn) == ["residual"]
    return Chart(
        title="Plain minus residual" if only else "Plain minus the others",
        caption="Paired by seed; above zero the plain network is worse.",
        heading=heading(runs),
        part=part(len(drawn), len(pairs)),
        panels=panels,
        keys=[
            mean_key([twin for found in drawn.values() for _, twin in found], panels),
            Key("a seed", SEED, "seed", 0.6, marker="o"),
            Key("no difference; above it plain is worse", "#444444", width=0.9),
            *failed_keys(panels),
        ],
        columns=len(MINUS),
        row=60,
        labels="each",
    )


def others(runs: Sequence[Run]) -> dict[str, Run]:
    """Series that are not plain, in the order of figures, each with one of its runs."""
    return {run.series: run for run in sorted(runs, key=order) if not run.skipless}


def plain_twin(runs: Sequence[Run], other: str) -> str | None:
    """The plain series trained with the same settings as ``other``, but for its architecture's."""
    one = others(runs)[other]
    recipe = {key: value for key, value in one.extras.items() if not key.startswith("arch.")}
    twin = one.extras | {"twin": "plain"}
    for wanted in ((one.arch, twin), ("plain", one.extras), ("plain", recipe)):
        for run in runs:
            if run.skipless and (run.arch, run.extras) == wanted:
                return run.series
    return None


def says_nothing(pairs: Pairs) -> str:
    """Why pairs have no difference to draw against depth, with its spread; "" where they have."""
    for what in ("depth", "seed"):
        if len(alike := {getattr(plain, what) for plain, _ in pairs}) < 2:
            return f"all pairs are of {what} {min(alike)}. Train another, or see resexp table."
    return ""


# --- final numbers


def final(run: Run, column: str) -> float | None:
    """A number after the last step, losses as log10; None where there is none."""
    value = run.endpoint(column)
    if value is None or not math.isfinite(value):
        return None
    return math.log10(max(value, LEAST_LOSS)) if column == LOSS else value


def finals(runs: Sequence[Run], column: str) -> list[tuple[Run, float]]:
    """The runs that have that number, plain first, shallow to deep."""
    known = ((run, final(run, column)) for run in sorted(runs, key=order))
    return [(run, value) for run, value in known if value is not None]


def paired(runs: Sequence[Run], plain: str, other: str) -> Pairs:
    """Finished runs of a plain series and another of the same depth and seed, by depth and seed."""
    found = {
        (run.depth, run.seed, run.series): run
        for run in runs
        if all(final(run, column) is not None for column in MINUS)
    }
    keys = sorted(key[:2] for key in found if key[2] == plain and (*key[:2], other) in found)
    return [(found[*key, plain], found[*key, other]) for key in keys]


# --- what is drawn


def error_panel(
    runs: Sequence[Run], series: Sequence[str], names: Mapping[str, str], column: str
) -> Panel:
    """Means, intervals and single runs of one error.

    Networks stand side by side around a depth, and beside each bar its points, so that none hides
    another.
    """
    lines, points = [], []
    depths = sorted({run.depth for run in runs})
    # Points of one depth spread as far as tells seeds apart, and no further.
    least = min((after - before for before, after in pairwise(depths)), default=0)
    width = min(0.45 * least, 0.12 * (depths[-1] - depths[0])) if least else 1.0
    by_series = grouped(finals(runs, column), lambda pair: pair[0].series)
    for index, one in enumerate(series):
        mine = by_series.get(one)
        if not mine:
            continue
        tags, (colour, marker) = (f"s{index}",), series_style(index)
        offset = width / len(series) * (index - (len(series) - 1) / 2)
        known = sorted({run.seed for run, _ in mine})
        slot = width / len(series) if len(known) > 1 else 0.0  # one point lies on the line
        outward = -1 if offset < 0 else 1  # points away from the tick, bars beside it
        at = {
            seed: offset
            + slot * (0.2 * outward + 0.45 * (rank - (len(known) - 1) / 2) / len(known))
            for rank, seed in enumerate(known)
        }
        by_depth = grouped(mine, lambda pair: pair[0].depth)
        errors = {layers: [error for _, error in some] for layers, some in by_depth.items()}
        lines.append(mean_line(names[one], tags, errors, colour))
        lines[-1].shift = offset - 0.25 * outward * slot
        found = []
        for run, error in mine:
            told = f"{run.run}: {error:.2f} %" + (f" {run.status}" if bad(run) else "")
            found.append((run.depth + at[run.seed], error, told, bad(run)))
        points += marks(found, tags, colour, marker)
    y, chance = Scale("final error (%)", 0, 100), runs[0].chance("test_error")
    x = depth_scale(depths)
    return Panel(MEASURES[column], x, y, lines, points, chance, spread="95 % ")


def difference_panel(
    pairs: Pairs, depths: Sequence[int], column: str, title: str, style: tuple[str, str]
) -> Panel:
    """Differences by depth: a thin line a seed, and their mean with its interval."""
    colour, marker = style
    lines, points = [], []
    at: dict[int, list[float]] = {}
    for _, some in sorted(grouped(pairs, lambda pair: pair[0].seed).items()):
        found = []
        for plain, other in some:
            one, two = final(plain, column), final(other, column)
            assert one is not None and two is not None
            at.setdefault(plain.depth, []).append(one - two)
            name = f"{plain.run} minus {other.run}: {one - two:+.2f}"
            found.append((float(plain.depth), one - two, name, bad(plain) or bad(other)))
        x, y = [x for x, *_ in found], [y for _, y, *_ in found]
        lines.append(Line("", ("seed",), x, y, SEED, width=0.6, above=2))
        points += marks(found, ("seed",), SEED, marker)
    lines.append(mean_line(title, ("mean",), dict(sorted(at.items())), colour))
    panel = Panel(title, depth_scale(depths), Scale(MINUS[column], -1, 1), lines, points)
    panel.signed, panel.spread = True, "95 % "
    panel.digits, panel.unit = (2, "") if column == LOSS else (1, " points")
    return panel


def mean_line(
    name: str, tags: tuple[str, ...], values: Mapping[int, list[float]], colour: str
) -> Line:
    """Means of values by depth, and their t intervals where there are seeds enough for one."""
    means = [paired_t(each, CONFIDENCE) for each in values.values()]
    line = Line(name, tags, [*values], [each.mean for each in means], colour, 1.4, bars=True)
    line.low = [each.low if each.n >= ENOUGH else math.nan for each in means]
    line.high = [each.high if each.n >= ENOUGH else math.nan for each in means]
    return line


def marks(
    found: Sequence[tuple[float, float, str, bool]], tags: tuple[str, ...], colour: str, marker: str
) -> list[Points]:
    """(x, y, name, whether it failed) as points, failures as crosses."""
    groups = []
    for failed, some in sorted(grouped(found, lambda one: one[3]).items()):
        x, y, names, _ = (list(values) for values in zip(*some, strict=True))
        groups.append(Points(names, tags, x, y, colour, "x" if failed else marker))
    return groups


def bad(run: Run) -> bool:
    return run.status != "ok"


# --- axes and legends


def depth_scale(depths: Sequence[int]) -> Scale:
    """A tick at every depth that was trained, none between."""
    margin = 0.07 * (depths[-1] - depths[0]) or 1
    told: list[int] = []  # numbers that would touch are left out
    for at in sorted(depths, reverse=True):
        if not told or told[-1] - at > margin:
            told.append(at)
    low, high = depths[0] - margin, depths[-1] + margin
    return Scale("depth (weighted layers)", low, high, told[::-1])


def error_scale(panels: Sequence[Panel]) -> Scale:
    """From 0 past all errors; to 100 and logarithmic if most means lie at the foot of others."""
    means = sorted(error for panel in panels for line in panel.lines for error in line.y)
    if means[-1] < CROWDED * means[len(means) // 2] or means[-1] < 10:
        return Scale("final error (%)", 0, min(100.0, 1.06 * max(1.0, *values(panels))))
    ticks = [0, 1, 3, 10, 30, 100]
    return Scale("final error (%), log from 1 on", 0, 100, ticks, kind="symlog")


def values(panels: Sequence[Panel]) -> list[float]:
    """All that must be within the axis."""
    held = [[*line.y, *line.low, *line.high] for panel in panels for line in panel.lines]
    held += [points.y for panel in panels for points in panel.points]
    return [value for each in held for value in each if math.isfinite(value)]


def mean_key(runs: Sequence[Run], panels: Sequence[Panel]) -> Key:
    """What the line and its bars are."""
    bars = [low for panel in panels for line in panel.lines for low in line.low]
    if all(map(math.isnan, bars)):
        return Key(f"mean of {seeds(runs)} (no interval of so few)", width=1.4)
    name = f"mean of {seeds(runs)}, {100 * CONFIDENCE:.0f} % t interval"
    return Key(name, tag="spread", width=1.4, marker="|")


def failed_keys(panels: Sequence[Panel]) -> list[Key]:
    """What a cross is, where there is one."""
    crosses = [points for panel in panels for points in panel.points if points.marker == "x"]
    return [Key("collapsed or diverged", FAILURE, stroke="none", marker="x")] if crosses else []
