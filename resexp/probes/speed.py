"""Early training speed: after how many steps is the training loss below a threshold?

Plain, residual, ReZero and pre-activated networks of one depth (the first of at least 20 there is),
trained anew on the same batches from the same initial weights: the step at which the mean loss of
the last 10 batches first is below 0.5 nats (chance among 10 classes is 2.3). A network that does
not get there counts at one step more than it was given, and is counted in the conventions.
Differences are of log2 steps, paired by seed: -1 is half the steps of the residual network.

ReZero here keeps the original order, ReLU after the addition; the authors' own residual network
also moves it into the branch (Bachlechner et al. 2020).

The rule, on one-sided 95 % bounds of the paired mean (Student's t): ReZero and pre-activation both
sooner than residual: supported. One of them later: not supported. Else inconclusive.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from resexp.analysis.statistics import Interval, paired_t
from resexp.data import Images
from resexp.probes import Case, Cell, Finding, Needs, Tell, Verdict, at_start, load
from resexp.settings import Arch, Merge, Order, Settings, Twin, UsageError
from resexp.train.fit import begin, fit

CLAIM = "ReZero and pre-activation train faster at first than the original residual network."
SOURCE = "Bachlechner et al. 2020, section 5; He et al. 2016, section 4.1"
NEEDS = Needs.settings
USUAL = ["depth=20", "arch=residual", "seed=0,1,2,3,4"]

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
SOONER = ("rezero", "preact")  # than residual, says the claim


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Every arm and seed, until the threshold, the run's own end or MOST_STEPS."""
    bases = {case.settings.seed: case.settings for case in reversed(watched(cases))}
    seeds = sorted(bases)[:SEEDS]
    rows: list[dict[str, Cell]] = []
    for done, (arm, seed) in enumerate((arm, seed) for arm in ARMS for seed in seeds):
        tell(done, len(ARMS) * len(seeds), f"{arm} {bases[seed].depth}, seed {seed}")
        settings = replace(bases[seed], arch=ARMS[arm], twin=Twin.none)
        means = list(running(losses(settings, load(settings))))
        reached, given = means[-1] < THRESHOLD, min(settings.steps, MOST_STEPS)
        rows += [
            {
                "arm": arm,
                "depth": settings.depth,
                "seed": seed,
                "step": step,
                "loss": mean,
                "steps_to_threshold": len(means) + BATCHES - 1 if reached else given + 1,
                "reached": int(reached),
            }
            for step, mean in enumerate(means, start=BATCHES)
        ]
    return concluded(rows, seeds)


def watched(cases: Sequence[Case]) -> list[Case]:
    """The cases of one depth. Raises UsageError if their family has no such arms."""
    fit = [case for case in cases if case.settings.arch.family == "cifar"]
    depths = sorted({case.settings.depth for case in fit})
    if not depths:
        raise UsageError("speed needs networks of the cifar family. Choose arch=residual.")
    depth = next((depth for depth in depths if depth >= 20), depths[-1])
    return [case for case in fit if case.settings.depth == depth]


def losses(settings: Settings, data: Images) -> Iterator[float]:
    """The loss of each training batch in nats, from the first step; nothing is evaluated."""
    state = begin(at_start(settings, data), settings)
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


def concluded(rows: list[dict[str, Cell]], seeds: Sequence[int]) -> Finding:
    """The finding from all rows."""
    steps = {(row["arm"], row["seed"]): float(row["steps_to_threshold"] or 0) for row in rows}
    late = {(row["arm"], row["seed"]) for row in rows if not row["reached"]}
    numbers: dict[str, float] = {}
    against: dict[str, Interval] = {}
    for arm in ARMS:
        numbers[f"steps, {arm}"] = sum(steps[arm, seed] for seed in seeds) / len(seeds)
        if arm != "residual":
            pairs = [math.log2(steps[arm, seed] / steps["residual", seed]) for seed in seeds]
            against[arm] = paired_t(pairs)
            numbers[f"log2 steps, {arm} over residual"] = against[arm].mean
            numbers[f"log2 steps, {arm} over residual, upper bound"] = against[arm].upper
            numbers[f"log2 steps, {arm} over residual, lower bound"] = against[arm].lower
    named = ", ".join(f"{arm} {numbers[f'steps, {arm}']:.0f}" for arm in ARMS)
    ratios = " and ".join(f"{2 ** against[arm].mean:.2f} times ({arm})" for arm in SOONER)
    return Finding(
        judge([against[arm] for arm in SOONER]),
        f"mean steps to a training loss of {THRESHOLD} nats at depth {rows[0]['depth']}: {named}; "
        f"that is {ratios} the residual network's.",
        rows,
        numbers,
        [
            f"steps until the mean loss of the last {BATCHES} batches is below {THRESHOLD} nats; "
            "fewer is faster; ratios are geometric means, paired by seed, one-sided 95 % bounds",
            f"trained anew on the training set; seeds {', '.join(map(str, seeds))}; "
            f"{len(late)} of {len(steps)} networks did not get there",
            "early speed says nothing about the final error",
        ],
    )


def judge(against: Sequence[Interval]) -> Verdict:
    """The rule in the module's docstring."""
    if all(one.upper < 0 for one in against):
        return Verdict.supported
    if any(one.lower > 0 for one in against):
        return Verdict.not_supported
    return Verdict.inconclusive
