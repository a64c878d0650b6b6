"""Final error against the steps trained and the learning rate: slow, or stuck?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from resexp.analysis.figures.canvas import arch_name, depth_colour, heading, part
from resexp.analysis.figures.chart import Chart, Key, Line, Nothing, Panel, Scale, at_chance
from resexp.analysis.results import Run, grouped, order
from resexp.analysis.statistics import paired_t
from resexp.analysis.verdict.select import endpoint

MOST = 3  # archs side by side


@dataclass(slots=True)
class Final:
    """Where a run of so many steps at one rate ended."""

    run: Run
    error: float  # clean training error, percent
    loss: float  # log10, capped at chance

    @property
    def steps(self) -> int:
        return int(self.run.setting("steps"))

    @property
    def rate(self) -> float:
        return float(self.run.setting("lr"))


def surface(runs: Sequence[Run]) -> Chart:
    """Clean training error at the end against steps: a panel an arch, a thin line a rate.

    The thick line follows the best rate of each number of steps, chosen by log loss on the seeds
    that all rates have; its mean and t interval are over the other seeds, where there are such.
    Raises Nothing for runs of one rate or of one number of steps.
    """
    last: dict[tuple[Any, ...], Final] = {}  # of runs that differ in other settings
    for run in sorted(runs, key=order):
        if (end := endpoint(run)) is not None:
            final = Final(run, end["train_error"], end["loss"])
            last[run.arch, run.depth, run.seed, final.steps, final.rate] = final
    finals = list(last.values())
    lengths = sorted({final.steps for final in finals})
    rates = sorted({run.setting("lr") for run in runs})
    if len(lengths) < 2 or len(rates) < 2:
        raise Nothing("surface needs several steps and rates: steps=220,660 lr=0.005,0.02.")
    low, high = 0.9 * lengths[0], 1.1 * lengths[-1]
    x = Scale("steps trained", low, high, lengths, "{x:,.0f}", kind="log")
    y = Scale("clean training error at the end (%)", 0, 100)
    archs = grouped(finals, lambda final: final.run.arch)
    panels = [
        Panel(arch_name(arch), x, y, lines_of(found), chance=runs[0].chance("test_error"))
        for arch, found in list(archs.items())[:MOST]
    ]
    lines = [line for panel in panels for line in panel.lines]
    most = max(value for line in lines for value in (*line.y, *line.high) if value == value)
    y.high = min(100.0, 1.06 * max(1.0, most))
    depths = sorted({final.run.depth for arch in list(archs)[:MOST] for final in archs[arch]})
    told = ", ".join(f"{rate:g}" for rate in rates)
    return Chart(
        heading=heading(runs),
        part=part(len(panels), len(archs)),
        panels=panels,
        keys=[
            *(Key(f"{at} layers at the best rate", depth_colour(at), width=1.8) for at in depths),
            Key("mean and its 95 % t interval", width=1.8, marker="|"),
            Key(f"each rate of {told}", depth_colour(depths[-1]), width=0.6),
            *at_chance(panels),
        ],
        columns=len(panels),
        row=64,
    )


def lines_of(finals: Sequence[Final]) -> list[Line]:
    """Of one arch every rate of every depth, and the best ones."""
    lines = []
    for depth, found in sorted(grouped(finals, lambda final: final.run.depth).items()):
        name = f"{found[0].run.arch}-{depth}"
        for rate, its in sorted(grouped(found, lambda final: final.rate).items()):
            lines.append(line(f"{name}, rate {rate:g}", its, 0.6))
        by_steps = grouped(found, lambda final: final.steps).values()
        chosen = [final for one in by_steps for final in best(one)]
        lines.append(line(f"{name}, best rate", chosen, 1.8))
    return lines


def best(finals: Sequence[Final]) -> list[Final]:
    """Those of the rate with the lowest mean loss on the seeds that all rates have.

    Without those seeds, if it has others: they chose it.
    """
    rates = list(grouped(finals, lambda final: final.rate).values())
    shared = set.intersection(*({final.run.seed for final in rate} for rate in rates))

    def loss(rate: Sequence[Final]) -> float:
        return fmean(one.loss for one in rate if one.run.seed in shared or not shared)

    chosen = min(rates, key=loss)
    fresh = [final for final in chosen if shared and final.run.seed not in shared]
    return fresh or chosen


def line(name: str, finals: Sequence[Final], width: float) -> Line:
    """Mean errors over steps, with intervals where it is the thick one."""
    by_steps: Mapping[int, list[Final]] = grouped(finals, lambda final: final.steps)
    x = sorted(by_steps)
    intervals = [paired_t([final.error for final in by_steps[steps]]) for steps in x]
    depth, mean = finals[0].run.depth, [one.mean for one in intervals]
    drawn = Line(name, (f"d{depth}",), [*map(float, x)], mean, depth_colour(depth), width)
    if width > 1:
        drawn.bars = True
        drawn.low = [one.low for one in intervals]
        drawn.high = [one.high for one in intervals]
    return drawn
