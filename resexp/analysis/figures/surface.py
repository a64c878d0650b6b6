"""Final error against the steps trained and the learning rate: slow, or stuck?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from resexp.analysis.figures.canvas import GREY, MM, PAGE, arch_name, depth_colour, heading, part
from resexp.analysis.figures.chart import Chart, Key, Line, Nothing, Panel, Scale, chance_keys
from resexp.analysis.figures.curves import chance
from resexp.analysis.results import Run, order
from resexp.analysis.statistics import paired_t
from resexp.analysis.verdict.select import endpoint

MOST = 3  # archs side by side


@dataclass(slots=True)
class Cell:
    """A network trained for so many steps at one rate: final numbers by seed."""

    errors: dict[int, float] = field(default_factory=dict)  # clean training error, percent
    losses: dict[int, float] = field(default_factory=dict)  # log10, capped at chance


#: By depth, steps and rate.
Surface = dict[int, dict[int, dict[float, Cell]]]


def surface(runs: Sequence[Run]) -> Chart:
    """Clean training error at the end against steps: a panel an arch, a thin line a rate.

    The thick line follows the best rate of each number of steps, chosen by log loss on the seeds
    that all rates have; its mean and t interval are over the other seeds, where there are such.
    Raises UsageError for runs of one rate or of one number of steps.
    """
    surfaces: dict[str, Surface] = {}
    for run in sorted(runs, key=order):
        end, rate, steps = endpoint(run), float(run.setting("lr")), int(run.setting("steps"))
        if end is not None:
            rates = (
                surfaces.setdefault(run.arch, {}).setdefault(run.depth, {}).setdefault(steps, {})
            )
            cell = rates.setdefault(rate, Cell())
            cell.errors[run.seed], cell.losses[run.seed] = end["train_error"], end["loss"]
    lengths = sorted({steps for one in surfaces.values() for by in one.values() for steps in by})
    rates_tried = {run.setting("lr") for run in runs}
    if len(lengths) < 2 or len(rates_tried) < 2:
        raise Nothing("surface needs several steps and rates: steps=220,660 lr=0.005,0.02.")
    drawn = dict(list(surfaces.items())[:MOST])
    scale = Scale(
        label="steps trained",
        low=0.9 * lengths[0],
        high=1.1 * lengths[-1],
        ticks=lengths,
        form="{x:,.0f}",
        logarithmic=True,
    )
    panels = [panel(arch, one, scale, chance(runs)) for arch, one in drawn.items()]
    drawn_lines = [line for one in panels for line in one.lines]
    most = max(value for line in drawn_lines for value in (*line.y, *line.high) if value == value)
    top = min(100.0, 1.06 * max(1.0, most))
    for one in panels:
        one.y.high = top
    depths = sorted({depth for one in drawn.values() for depth in one})
    keys = [
        Key(name=f"{depth} layers at the best rate", colour=depth_colour(depth), width=1.8)
        for depth in depths
    ]
    keys.append(Key(name="mean and its 95 % t interval", colour=GREY, width=1.8, marker="|"))
    told = ", ".join(f"{rate:g}" for rate in sorted(rates_tried))
    keys.append(Key(name=f"each rate of {told}", colour=depth_colour(depths[-1]), width=0.6))
    keys += chance_keys(panels)
    return Chart(
        title="Final error against steps and rate",
        caption="Each point is a network trained to the end of its own schedule.",
        heading=heading(runs),
        part=part(len(drawn), len(surfaces)),
        panels=panels,
        keys=keys,
        columns=len(panels),
        width=PAGE,
        row=64 * MM,
    )


def panel(arch: str, found: Surface, x: Scale, at_chance: float | None) -> Panel:
    """One arch: every rate of every depth, and the best ones."""
    y = Scale(label="clean training error at the end (%)", low=0, high=100)
    lines = []
    for depth, by_steps in sorted(found.items()):
        for rate in sorted({rate for rates in by_steps.values() for rate in rates}):
            cells = {steps: rates[rate] for steps, rates in by_steps.items() if rate in rates}
            lines.append(line(f"{arch}-{depth}, rate {rate:g}", depth, cells, 0.6))
        chosen = {steps: best(rates) for steps, rates in by_steps.items()}
        lines.append(line(f"{arch}-{depth}, best rate", depth, chosen, 1.8))
    return Panel(title=arch_name(arch), x=x, y=y, lines=lines, chance=at_chance)


def best(rates: dict[float, Cell]) -> Cell:
    """The cell of the rate with the lowest mean loss on the seeds that all have.

    Without those seeds, if it has others: they chose it.
    """
    shared = set.intersection(*({*cell.losses} for cell in rates.values()))
    if not shared:
        return min(rates.values(), key=lambda cell: mean([*cell.losses.values()]))
    chosen = min(rates.values(), key=lambda cell: mean([cell.losses[seed] for seed in shared]))
    fresh = {seed: error for seed, error in chosen.errors.items() if seed not in shared}
    return Cell(fresh or chosen.errors, chosen.losses)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def line(name: str, depth: int, cells: dict[int, Cell], width: float) -> Line:
    """Mean errors over steps, with intervals where it is the thick one."""
    intervals = [paired_t(list(cell.errors.values())) for _, cell in sorted(cells.items())]
    bars = width > 1
    return Line(
        name=name,
        tags=(f"d{depth}",),
        x=[float(steps) for steps in sorted(cells)],
        y=[one.mean for one in intervals],
        low=[one.low for one in intervals] if bars else [],
        high=[one.high for one in intervals] if bars else [],
        colour=depth_colour(depth),
        width=width,
        bars=bars,
    )
