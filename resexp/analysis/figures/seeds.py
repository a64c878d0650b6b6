"""The learning rate over steps, and how many images a second were trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from resexp.analysis.figures.canvas import COLUMN, GREY, MM, MOST_PANELS, heading, part
from resexp.analysis.figures.chart import Chart, Key, Line, Panel, Scale
from resexp.analysis.figures.curves import (
    Network,
    colours_of,
    depth_keys,
    last_step,
    require_rows,
    step_scale,
)
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
    colours = colours_of(drawn)
    steps = step_scale(last_step(drawn))
    networks = [network for group in drawn.values() for network in group]
    found = schedules(networks)
    strokes = dict(zip(drawn, STROKES, strict=False))
    speeds = [
        speed_line(network, colours[network.depth], strokes[network.series])
        for network in networks
        if network.whole
    ]
    highest = max((value for line in speeds for value in line.y), default=0) or 1.0
    lines = rate_lines(found, len(colours), len(drawn))
    speed = Scale(label="", low=0, high=1.05 * highest, ticks=4, form="{x:,.0f}")
    return Chart(
        heading=heading(runs),
        part=part(len(drawn), len(groups)),
        panels=[
            Panel(title="learning rate", x=steps, y=rate_scale(lines), lines=lines),
            Panel(title="images per second", x=steps, y=speed, lines=speeds),
        ],
        keys=depth_keys(colours)
        + [
            Key(name=group[0].label, colour=GREY, width=1.3, stroke=strokes[series])
            for series, group in drawn.items()
        ]
        + [
            Key(name=f"rate of {line.name}", colour=line.colour, width=line.width) for line in lines
        ],
        columns=1,
        width=COLUMN,
        row=40 * MM,
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
    return [
        Line(
            name=users_name(users, depths, series),
            tags=("rate",),
            x=[0.0, *(float(step) for step, _ in schedule)],
            y=[schedule[0][1], *(rate for _, rate in schedule)],
            colour=TONES[rank % len(TONES)],
            width=1.2 + 1.1 * min(rank, 2),
            stairs=True,
            above=3 - 0.1 * rank,
        )
        for rank, (schedule, users) in enumerate(found.items())
    ]


def rate_scale(lines: Sequence[Line]) -> Scale:
    """Powers of ten around all rates."""
    rates = [rate for line in lines for rate in line.y]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))
    return Scale(
        label="",
        low=min(0.6 * min(rates), 10.0**low),
        high=max(1.6 * max(rates), 10.0**high),
        ticks=[10.0**power for power in range(low, high + 1)],
        logarithmic=True,
    )


def users_name(users: Sequence[Network], depths: int, series: int) -> str:
    """Whose learning rate it is, by what tells them apart: depths, series or both."""
    at = sorted({network.depth for network in users})
    of = list(dict.fromkeys(network.label for network in users))
    layers = f"{', '.join(str(depth) for depth in at)} layers" if len(at) < depths else ""
    names = "; ".join(of) if len(of) < series else ""
    return ", ".join(filter(None, [names, layers])) or "all networks"


def speed_line(network: Network, colour: str, stroke: Any) -> Line:
    """Images a second of one network, the mean over its seeds; training alone, as recorded."""
    steps, speeds = network.values("images_per_second")
    return Line(
        name=f"{network.label}-{network.depth}",
        tags=(f"d{network.depth}",),
        x=steps,
        y=speeds.mean(axis=0).tolist(),
        colour=colour,
        stroke=stroke,
        width=1.1,
    )
