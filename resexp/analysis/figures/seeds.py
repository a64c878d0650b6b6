"""The learning rate over steps, and how many images a second were trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from resexp.analysis.figures.canvas import COLUMN, MOST_PANELS, depth_colour, heading, part
from resexp.analysis.figures.chart import Chart, Key, Line, Panel, Scale
from resexp.analysis.figures.curves import Network, depth_keys, require_rows, step_scale
from resexp.analysis.results import Run

STROKES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))

TONES = ("#222222", "#9a9a9a", "#d0b070", "#7fb0d0")

Schedule = tuple[tuple[int, float], ...]  # steps and the rate of each


def seeds(runs: Sequence[Run]) -> Chart:
    """Learning rate (above, logarithmic) and images a second (below) against steps.

    A colour a depth, a stroke a series; means over seeds. One line of learning rate stands for all
    networks that share it. Raises UsageError if no run has a row yet.
    """
    groups = require_rows(runs)
    drawn = {series: groups[series] for series in list(groups)[:MOST_PANELS]}
    steps, depths = step_scale(drawn), depth_keys(drawn)
    networks = [network for group in drawn.values() for network in group]
    strokes = dict(zip(drawn, STROKES, strict=False))
    speeds = [speed_line(network, strokes[network.series]) for network in networks if network.whole]
    highest = max((value for line in speeds for value in line.y), default=0) or 1.0
    rates = rate_lines(schedules(networks), len(depths), len(drawn))
    speed = Scale("", 0, 1.05 * highest, ticks=4, form="{x:,.0f}")
    shown = [rate for line in rates for rate in line.y]
    low, high = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    ticks = [10.0**power for power in range(low, high + 1)]
    least, most = min(0.6 * min(shown), ticks[0]), max(1.6 * max(shown), ticks[-1])
    kinds = [
        Key(group[0].label, width=1.3, stroke=strokes[series]) for series, group in drawn.items()
    ]
    return Chart(
        heading=heading(runs),
        part=part(len(drawn), len(groups)),
        panels=[
            Panel("learning rate", steps, Scale("", least, most, ticks, kind="log"), rates),
            Panel("images per second", steps, speed, speeds),
        ],
        keys=[
            *depths,
            *kinds,
            *(Key(f"rate of {line.name}", line.colour, width=line.width) for line in rates),
        ],
        columns=1,
        width=COLUMN,
        row=40,
        labels="outer",
    )


def schedules(networks: Sequence[Network]) -> dict[Schedule, list[Network]]:
    """The different learning rates over steps, and who was trained by each.

    A run that has not come as far as another of the same rate is not a schedule of its own.
    """
    found: dict[Schedule, list[Network]] = {}
    rated = [
        (tuple((row.step, row.lr) for row in run.rows()), network)
        for network in networks
        for run in network.runs
        if run.rows()
    ]
    for schedule, network in sorted(rated, key=lambda pair: -len(pair[0])):
        same = next((known for known in found if known[: len(schedule)] == schedule), schedule)
        users = found.setdefault(same, [])
        if network not in users:
            users.append(network)
    return found


def rate_lines(found: Mapping[Schedule, list[Network]], depths: int, series: int) -> list[Line]:
    """A stair a schedule: a row's rate holds from the row before it.

    Each lies under the one before it, wider and lighter, so that it shows where both agree.
    """
    lines = []
    for rank, (schedule, users) in enumerate(found.items()):
        at = sorted({network.depth for network in users})
        of = list(dict.fromkeys(network.label for network in users))
        # Whose it is, by what tells them apart: depths, series or both.
        names = "; ".join(of) if len(of) < series else ""
        layers = f"{', '.join(map(str, at))} layers" if len(at) < depths else ""
        whose = ", ".join(filter(None, [names, layers])) or "all networks"
        x = [0.0, *(float(step) for step, _ in schedule)]
        y = [schedule[0][1], *(rate for _, rate in schedule)]
        line = Line(whose, ("rate",), x, y, TONES[rank % len(TONES)], 1.2 + 1.1 * min(rank, 2))
        line.stairs, line.above = True, 3 - 0.1 * rank
        lines.append(line)
    return lines


def speed_line(network: Network, stroke: Any) -> Line:
    """Images a second of one network, the mean over its seeds; training alone, as recorded."""
    steps, speeds = network.values("images_per_second")
    name, tags = f"{network.label}-{network.depth}", (f"d{network.depth}",)
    mean, colour = speeds.mean(axis=0).tolist(), depth_colour(network.depth)
    return Line(name, tags, steps, mean, colour, width=1.1, stroke=stroke)
