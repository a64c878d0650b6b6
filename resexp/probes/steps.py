"""Steps: how far does a layer move in one step of training, in units of its own weights?

For each convolution l of the blocks, in forward order, s_l = |W_after - W_before| / |W_before|,
norms of Frobenius, of one step as the optimizer made it: rate, momentum and decay included, so it
compares layers under any optimizer. T = log10 of the mean of s over the first three layers over
that of the last three: above 0 the first layers move farther, at 0 as far. ``unevenness`` of a
network is the mean of |T| over the steps watched: 1, 10, 60 and 110 (where the digits' rate drops).

At the start of a plain network the gradient's norm grows towards the input by
sqrt(pi / (pi - 1)) = 1.211 a layer, for that is the root of E[relu'(z)^2] / Var[relu(z)] of a
normal z: batch normalisation divides by the deviation alone (Yang et al. 2019, arXiv 1902.08129).
All weights being of like size, s grows with it.

The rule, on one-sided 95 % bounds (Student's t) of means over at least five seeds at the greatest
depth: the residual unevenness below log10 3 ("as fast" is within a factor of three) and below that
of plain networks, paired by seed: supported. The residual one above log10 3, or above that of plain
networks: not supported. Else, and where a network diverged, inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from torch import Tensor, nn

from resexp.analysis.statistics import Interval, least_squares, paired_t
from resexp.data import Images
from resexp.probes import Account, Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.gradients import ENDS, TWICE, tilt
from resexp.probes.rows import by_seed, difference, mean, seeds_of, those
from resexp.settings import Settings

CLAIM = "With skips the first layers learn as fast as the last ones; without them they do not."
SOURCE = "common, as what skips do about vanishing gradients; Yang et al. 2019 on normalisation"
TEXTBOOK = "Without skips the first layers hardly learn; with skips they learn as fast as the last."
NEEDS = Needs.settings
USUAL = ["depth=56", "arch=plain,residual", "seed=0,1,2,3,4"]

ARCHS = ("plain", "residual")
SEEDS = 5
WATCHED = (1, 10, 60, 110)
EVEN = math.log10(3)  # decades
GROWTH = math.sqrt(math.pi / (math.pi - 1))  # a layer, in theory


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """A row per convolution and watched step of the deepest networks, trained anew."""
    found = nets.twins(cases, "steps", SEEDS)
    deep = max(depth for _, depth, _ in found)
    for case in tell([case for case in found.values() if case.depth == deep]):
        for step, sizes in relative_steps(case.settings, nets.load(case.settings)):
            for layer, size in enumerate(sizes, start=1):
                yield case.place() | {"step": step, "layer": layer, "relative_step": size}


def relative_steps(settings: Settings, data: Images) -> Iterator[tuple[int, list[float]]]:
    """Each watched step and s of every convolution; nan once the loss is no longer finite."""
    watched = [step for step in WATCHED if step <= settings.steps]
    ends = sorted({end for step in watched for end in (step - 1, step)})
    before: list[Tensor] = []
    done = 0
    for step, network in nets.snapshots(settings, data, ends):
        after = weights(network)
        if step in watched:
            done = step
            yield step, moved(before, after)
        before = after
    yield from ((step, [math.nan] * len(before)) for step in watched if step > done)


def weights(network: nn.Module) -> list[Tensor]:
    """Those of the blocks' convolutions, in forward order, in float64."""
    layers = network.get_submodule("blocks").modules()
    return [one.weight.detach().double() for one in layers if isinstance(one, nn.Conv2d)]


def moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[float]:
    """|after - before| / |before| of each."""
    pairs = zip(before, after, strict=True)
    return [((new - old).norm() / old.norm()).item() for old, new in pairs]


# --- from the rows


def tilts(rows: pd.DataFrame, arch: str, step: int) -> pd.Series[float]:
    """T by seed."""
    return by_seed(rows, "relative_step", tilt, "layer", arch=arch, step=step)


def unevenness(rows: pd.DataFrame, arch: str) -> pd.Series[float]:
    """The mean of |T| over the steps watched, by seed; nan where one is."""
    some = pd.DataFrame({step: tilts(rows, arch, step).abs() for step in sorted(set(rows["step"]))})
    return some.mean(axis=1, skipna=False)


def growth(rows: pd.DataFrame, arch: str) -> pd.Series[float]:
    """The factor by which s grows a layer towards the input at the first step, by seed."""
    first = those(rows, arch=arch, step=1).sort_values("layer")
    slopes = {
        seed: least_squares(list(zip(one["layer"], np.log10(one["relative_step"]), strict=True)))
        for seed, one in first.groupby("seed")
    }
    return 10 ** -pd.Series(slopes)


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    depth, steps = rows["depth"].max(), sorted(set(rows["step"]))
    tilted = {(arch, step): tilts(rows, arch, step) for arch in ARCHS for step in steps}
    plain, residual = (unevenness(rows, arch) for arch in ARCHS)
    less, growths = difference(plain, residual), growth(rows, "plain")
    numbers = {f"T, {arch} {depth}, step {step}": mean(t) for (arch, step), t in tilted.items()}
    numbers |= {
        f"unevenness, plain {depth}": mean(plain),
        f"unevenness, residual {depth}": mean(residual),
        f"growth a layer, plain {depth}, step 1": mean(growths),
        "growth a layer, in theory": GROWTH,
    }
    last = steps[-1]
    course = {
        arch: ", ".join(f"10^{mean(tilted[arch, step]):+.1f}" for step in steps) for arch in ARCHS
    }
    return Finding(
        judge(paired_t(list(residual)), paired_t(list(less))),
        f"at depth {depth} the first layers' relative steps over the last ones', at steps "
        f"{', '.join(map(str, steps))}: residual {course['residual']}, plain {course['plain']}; "
        f"unevenness {mean(residual):.2f} and {mean(plain):.2f} decades.",
        numbers=numbers,
        conventions=[
            "relative step: |W_after - W_before| / |W_before| of a convolution in a block, of one "
            "step of the recipe's optimizer, rate, momentum and decay included",
            f"first and last: the mean over {ENDS} layers at either end; log10 above 0: the first "
            "layers move farther; unevenness: mean of its size over the steps",
            f"retrained to step {last}; {seeds_of(rows)}; one-sided 95 % bounds; as fast: within "
            "a factor of 3",
            f"in theory s grows by {GROWTH:.3f} a layer towards the input at the start of a plain "
            f"network; least squares over its layers give {mean(growths):.3f}",
            "what comes with degradation need not cause it: see which changes of the steps cure it",
        ],
        headlines=[
            Headline(what, some, "decades", "+.2f")
            for what, some in (
                (f"plain-{depth}, first over last layers, step 1", tilted["plain", 1]),
                (f"plain-{depth}, step {last}", tilted["plain", last]),
                (f"residual-{depth}, step 1", tilted["residual", 1]),
                (f"residual-{depth}, step {last}", tilted["residual", last]),
                ("unevenness, plain less residual", less),
            )
        ],
        account=account([mean(tilted["plain", step]) for step in steps], course),
    )


def account(plain: Sequence[float], course: dict[str, str]) -> tuple[Account, str] | None:
    """How right the textbook is, by T of plain networks at each step, if that is finite."""
    if any(map(math.isnan, plain)):
        return None
    behind = [t < -TWICE for t in plain]
    word = Account.overgeneralised if any(behind) else Account.contradicted
    return (
        Account.right if all(behind) else word,
        "it says that without skips first layers move too little; first over last layers' relative "
        f"steps, from the first step on: plain {course['plain']}, residual {course['residual']}.",
    )


def judge(residual: Interval, less: Interval) -> Verdict:
    """The rule in the module's docstring: unevenness, residual, and plain less residual."""
    if residual.n < SEEDS or less.n < SEEDS:
        return Verdict.inconclusive
    return Verdict.of(
        residual.upper < EVEN and less.lower > 0, residual.lower > EVEN or less.upper < 0
    )


def draw(rows: pd.DataFrame) -> Figure:
    """By layer at the first and the last step; T by step."""
    from resexp.probes.drawing import COLOURS, DASHES, GREY, finish, means, panels

    steps = sorted(set(rows["step"]))
    strokes = dict(zip((steps[0], steps[-1]), ("-", DASHES), strict=True))
    figure, (layers, training) = panels(2, 66)
    for arch, colour in COLOURS.items():
        for step, stroke in strokes.items():
            some = those(rows, arch=arch, step=step)
            style = {"color": colour, "linestyle": stroke, "linewidth": 1.3}
            means(layers, some, "layer", "relative_step", log=True, **style)
        tilted = pd.DataFrame({step: tilts(rows, arch, step) for step in steps}).T
        tilted.index = tilted.index.astype(str)  # evenly spaced
        training.plot(tilted, "o", color=colour, ms=2.5, alpha=0.6)
        training.plot(tilted.mean(axis=1, skipna=False), color=colour, lw=1.3)
    training.axhspan(-EVEN, EVEN, color=GREY, alpha=0.12, linewidth=0)
    layers.set(xlabel="convolution, from the input", ylabel="relative step, |dW| / |W|")
    ylabel = f"log10 of first {ENDS} over last {ENDS} layers"
    training.set(xlabel="step (grey: within a factor of 3)", ylabel=ylabel)
    labels = {f"step {step}": {"color": GREY, "linestyle": s} for step, s in strokes.items()}
    title = f"Steps over weights by layer, depth {rows['depth'].max()}"
    seeds = f", {rows['seed'].nunique()} seeds"
    return finish(figure, title + seeds, {a: {"color": c} for a, c in COLOURS.items()} | labels)
