"""Early training speed: after how many steps is the training loss below a threshold?

Residual, ReZero, pre-activated and plain networks of one depth (the greatest there is), retrained
on the same batches from the same initial weights at one rate, which is tuned for none: the step at
which the mean loss of the last 10 batches first is below 0.5 nats (chance among 10 classes is 2.3).
A network that does not get there counts at one step more than it was given. Differences are of log2
steps, paired by seed: -1 is half the steps of the residual network. ReZero here keeps the original
order, ReLU after the addition; the authors' own residual network also moves it into the branch.

The claim of ReZero is about 56 layers, and is judged there or deeper: else inconclusive. That of
pre-activation is about 1001 (at 110 its authors see little): here it is measured, not tested.

The rule, on the one-sided 95 % bounds of the paired mean of five seeds or more (Student's t):
ReZero sooner than residual, and every residual network gets there: supported. Later: not supported.
Else inconclusive.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from resexp.analysis.statistics import Interval, paired_t
from resexp.data import Images
from resexp.probes import Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import bounds, mean, seeds_of, those, values
from resexp.settings import Arch, Merge, Order, Settings, Twin, UsageError
from resexp.train.fit import begin, fit

CLAIM = "ReZero trains faster at first than the original residual network of 56 layers."
SOURCE = "Bachlechner et al. 2020, section 5; He et al. 2016, section 4.1"
TEXTBOOK = (
    "ReZero: ResNet-56 faster to a threshold by 32 %. Pre-activation: 1001 layers optimise faster."
)
NEEDS = Needs.settings
USUAL = ["depth=56", "arch=residual", "seed=0,1,2,3,4"]

THRESHOLD = 0.5  # nats
BATCHES = 10  # whose mean loss is compared
MOST_STEPS = 1000  # of long runs
SEEDS = 5
ARMS = {
    "plain": Arch(),
    "residual": Arch(merge=Merge.residual),
    "rezero": Arch(merge=Merge.scaled),
    "preact": Arch(merge=Merge.residual, order=Order.full_preactivation),
}
LAYERS = 56  # of the networks that the claim is about


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """The loss by step of every arm and seed, to the threshold, the run's end or MOST_STEPS."""
    refusal = "speed needs networks of the cifar family. Choose arch=residual."
    fit = nets.chosen(cases, lambda case: case.settings.arch.family == "cifar", refusal)
    bases = nets.first_seeds(fit, max(case.depth for case in fit), SEEDS)
    if any(base.settings.steps <= BATCHES for base in bases):
        raise UsageError(
            f"speed takes means of {BATCHES} batches' losses: steps={bases[0].settings.steps} are "
            f"too few. Choose steps={BATCHES + 1} or more."
        )
    wanted = [
        Case(arm, replace(base.settings, arch=ARMS[arm], twin=Twin.none))
        for arm, base in product(ARMS, bases)
    ]
    for case in tell(wanted):
        settings = case.settings
        means = list(running(losses(settings, nets.load(settings)))) or [math.nan]
        reached, given = means[-1] < THRESHOLD, min(settings.steps, MOST_STEPS)
        steps = len(means) + BATCHES - 1 if reached else given + 1
        for step, loss in enumerate(means, start=BATCHES):
            row = case.place("arm") | {"step": step, "loss": loss}
            yield row | {"steps_to_threshold": steps, "reached": int(reached)}


def losses(settings: Settings, data: Images) -> Iterator[float]:
    """The loss of each training batch in nats, from the first step; nothing is evaluated."""
    state = begin(nets.at_start(settings, data), settings)
    before = 0.0
    for _ in fit(state, replace(settings, eval_every=MOST_STEPS + 1), data):
        total = state.loss_sum.item()
        if not math.isfinite(total) or total == 0:  # 0: the last step's row began a new sum
            return
        yield total - before
        before = total
        if state.step == MOST_STEPS:
            return


def running(values: Iterator[float]) -> Iterator[float]:
    """Means of the last BATCHES values, from the first there is until one below THRESHOLD."""
    last: deque[float] = deque(maxlen=BATCHES)
    for value in values:
        last.append(value)
        if len(last) == BATCHES:
            mean = sum(last) / BATCHES
            yield mean
            if mean < THRESHOLD:
                return


def conclude(rows: pd.DataFrame) -> Finding:
    """Steps and their ratios to the residual network's; the rule in the module's docstring."""
    networks, depth = rows.drop_duplicates(["arm", "seed"]), int(rows["depth"].iloc[0])
    steps = {arm: values(networks, "steps_to_threshold", arm=arm) for arm in ARMS}
    ratios = {
        arm: (steps[arm] / steps["residual"]).transform(np.log2)
        for arm in ARMS
        if arm != "residual"
    }
    against = {arm: paired_t(list(ratio)) for arm, ratio in ratios.items()}
    numbers = {f"steps, {arm}": mean(some) for arm, some in steps.items()}
    for arm, one in against.items():
        numbers |= bounds(f"log2 steps, {arm} over residual", one)
    late = {arm: int((some["reached"] == 0).sum()) for arm, some in networks.groupby("arm")}
    named = ", ".join(
        f"{arm} {mean(some):.0f}" + (f" ({late[arm]} never)" if late[arm] else "")
        for arm, some in steps.items()
    )
    factor = {arm: f"{2**one.mean:.2f} times" for arm, one in against.items()}
    return Finding(
        judge(against["rezero"], depth, late["residual"]),
        f"mean steps to a training loss of {THRESHOLD} nats at depth {depth}, all at one rate: "
        f"{named}; ReZero takes {factor['rezero']} the residual network's, pre-activation "
        f"{factor['preact']}, whose claim is of 1001 layers and untested here.",
        numbers=numbers,
        conventions=[
            f"a loss: mean of the last {BATCHES} batches; ratios: geometric; {seeds_of(rows)}",
            "ReZero here keeps the ReLU after the addition, which its authors move into the branch",
        ],
        headlines=[
            Headline("steps, ReZero over residual", ratios["rezero"], "times", base=2),
            Headline("pre-activation, untested", ratios["preact"], "times", base=2),
        ],
    )


def judge(rezero: Interval, depth: int, late: int) -> Verdict:
    """The rule in the module's docstring; ``late`` residual networks did not get there."""
    if depth < LAYERS or rezero.n < SEEDS:
        return Verdict.inconclusive
    return Verdict.of(rezero.upper < 0 and not late, rezero.lower > 0)


def draw(rows: pd.DataFrame) -> Figure:
    """Left: losses, a line per network. Right: steps to the threshold, a point per seed.

    Hollow where the network did not get there; a bar at the mean.
    """
    from resexp.probes.drawing import GREY, finish, panels, series

    styles = series(*ARMS)
    figure, (left, right) = panels(2, 74)
    for place, (arm, style) in enumerate(styles.items()):
        for _, some in those(rows, arm=arm).groupby("seed"):
            left.plot(some["step"], some["loss"], color=style["color"], lw=0.9, alpha=0.8)
        ends = those(rows, arm=arm).drop_duplicates("seed")
        x = place + 0.08 * (np.arange(len(ends)) - (len(ends) - 1) / 2)
        for at, steps, reached in zip(x, ends["steps_to_threshold"], ends["reached"], strict=True):
            inside = style["color"] if reached else "white"
            right.plot(at, steps, ls="none", mfc=inside, ms=4, **style)
        centre = ends["steps_to_threshold"].mean()
        right.plot([place - 0.3, place + 0.3], [centre, centre], color=style["color"], lw=1.3)
    left.axhline(THRESHOLD, color=GREY, linewidth=0.6)
    label = f"training loss, mean of {BATCHES} batches (nats)"
    left.set(xlabel="step", ylabel=label, ylim=(0, None))
    right.set_xticks(range(len(styles)), [*styles])
    right.grid(False, axis="x")
    right.set(ylabel="steps to the threshold", ylim=(0, None))
    title = f"Early training at depth {rows['depth'][0]}, {rows['seed'].nunique()} seeds"
    return finish(figure, f"{title}: steps to a training loss of {THRESHOLD} nats", styles)
