"""The rule, on plain numbers: nothing here knows of runs or files.

Endpoint: log10 of the clean training loss after the last step, deep minus shallow, paired by seed.
Plain networks degrade if the mean rise is at least the threshold, its one-sided 95 % lower bound is
above zero, and in most seeds the loss rises at every step of depth. If the one-sided upper bound is
below the threshold, degradation is not shown; anything else is inconclusive, and so are fewer than
five seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any

from resexp.analysis.statistics import MOST_FLIPS, Interval, holm, paired_t, sign_flip_p, t_p
from resexp.runs.records import finite
from resexp.settings import UsageError

LEAST_LOSS = 1e-8  # the floor of the endpoint, so that a loss of zero has a logarithm
ENOUGH_SEEDS = 5  # the least p of a sign-flip test of n seeds is 2^-n: 0.031 with five

SHOWN, NOT_SHOWN, INCONCLUSIVE = "shown", "not shown", "inconclusive"
PRELIMINARY = "inconclusive (preliminary)"  # too few seeds, whatever they say
BUDGET_LIMITED = "budget-limited"
EXIT_CODES = {SHOWN: 0, NOT_SHOWN: 3, INCONCLUSIVE: 4, PRELIMINARY: 4}

#: One run's final numbers, or a difference of such: ``loss`` (log10 of the clean training loss),
#: ``train_error`` (clean) and ``test_error`` (percent).
Endpoint = Mapping[str, float]
#: Those of one kind of network, by depth and seed.
Endpoints = Mapping[tuple[int, int], Endpoint]


@dataclass(slots=True)
class Change:
    """How much worse deep is than shallow, over the seeds that have both (or a difference)."""

    seeds: list[int]
    loss: Interval  # of log10 clean training loss
    p: float  # exact one-sided sign-flip test that ``loss`` is above zero
    train_error: Interval  # clean training error, percent points
    test_error: Interval  # percent points
    gap: Interval  # test error minus clean training error, percent points


@dataclass(slots=True)
class Arm:
    """One kind of network, deep against shallow."""

    series: str
    change: Change
    rising: int  # seeds whose loss rises at every step of depth between shallow and deep
    reading: str  # degrades, no worse than <threshold>, or inconclusive
    label: str  # degradation, overfitting, under-optimised, depth helps, budget-limited, or none


@dataclass(slots=True)
class Contrast:
    """A change between one pair of depths, with p adjusted over all pairs of the same series."""

    shallow: int
    deep: int
    series: str  # an arm, or "plain minus residual"
    change: Change
    holm: float  # of the sign-flip test
    holm_t: float  # of the one-sided t test


@dataclass(slots=True)
class Budget:
    """An arm's change at the steps that it was judged by and at twice as many, same seeds."""

    series: str
    seeds: list[int]
    steps: int
    once: Interval  # of log10 clean training loss, at ``steps``
    twice: Interval  # at twice as many
    halved: bool | None  # half the rise or less is left; None for an arm that does not degrade


@dataclass(slots=True)
class Verdict:
    """The decision and everything that it rests on."""

    outcome: str  # shown, not shown, inconclusive or inconclusive (preliminary)
    experiment: str
    data: str
    recipe: str
    threshold: float  # least rise of log10 loss that counts
    shallow: int
    deep: int
    depths: list[int]  # those trained, from shallow to deep
    baseline: str  # the series in the part of plain
    arms: list[Arm]  # the baseline first
    interactions: dict[str, Change]  # by series: the baseline's change minus that arm's
    contrasts: list[Contrast]  # every pair of depths that was trained
    budget: list[Budget]  # empty where no network was trained for twice the steps
    runs: int  # all of them, at every depth
    failures: dict[str, int]  # collapsed, diverged, failed
    unfinished: int  # running or interrupted
    missing: list[str]  # runs that a pair lacks, and why
    notes: list[str]

    @property
    def seeds(self) -> list[int]:
        return self.arms[0].change.seeds

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined (an interval of one seed) is None."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def log_loss(loss: float) -> float:
    """log10 of a loss in nats that is no less than ``LEAST_LOSS``."""
    return math.log10(max(loss, LEAST_LOSS))


def changes(numbers: Endpoints, shallow: int, deep: int) -> dict[int, Endpoint]:
    """Deep minus shallow, for every seed that has both."""
    ends = [
        {seed: found for (depth, seed), found in sorted(numbers.items()) if depth == end}
        for end in (deep, shallow)
    ]
    return difference(*ends)


def difference(left: Mapping[int, Endpoint], right: Mapping[int, Endpoint]) -> dict[int, Endpoint]:
    """Left minus right, measure by measure, for every seed that both have."""
    return {
        seed: {measure: value - right[seed][measure] for measure, value in found.items()}
        for seed, found in left.items()
        if seed in right
    }


def summary(values: Mapping[int, Endpoint]) -> Change:
    """Intervals and p over seeds. Raises UsageError for more than ``MOST_FLIPS`` of them."""
    if len(values) > MOST_FLIPS:
        raise UsageError(f"{len(values)} seeds are more than {MOST_FLIPS}. Choose with a filter.")
    found = values.values()
    losses = [one["loss"] for one in found]
    return Change(
        seeds=list(values),
        loss=paired_t(losses),
        p=sign_flip_p(losses),
        train_error=paired_t([one["train_error"] for one in found]),
        test_error=paired_t([one["test_error"] for one in found]),
        gap=paired_t([one["test_error"] - one["train_error"] for one in found]),
    )


def judge(series: str, numbers: Endpoints, shallow: int, deep: int, threshold: float) -> Arm:
    """Read one arm by the rule, from its final numbers alone."""
    change = summary(changes(numbers, shallow, deep))
    rising = count_rising(numbers, change.seeds, shallow, deep)
    worse = (
        change.loss.mean >= threshold and change.loss.lower > 0 and rising > len(change.seeds) / 2
    )
    no_worse = change.loss.upper < threshold
    reading = (
        "degrades" if worse else f"no worse than {threshold:.2f}" if no_worse else INCONCLUSIVE
    )
    return Arm(series, change, rising, reading, label(change, worse, no_worse))


def count_rising(numbers: Endpoints, seeds: Iterable[int], shallow: int, deep: int) -> int:
    """Seeds whose loss is higher at every depth than at the depth trained before it."""
    between = sorted({depth for depth, _ in numbers if shallow <= depth <= deep})
    count = 0
    for seed in seeds:
        losses = [numbers[depth, seed]["loss"] for depth in between if (depth, seed) in numbers]
        count += all(before < after for before, after in pairwise(losses))
    return count


def label(change: Change, worse: bool, no_worse: bool) -> str:
    """Degradation or overfitting: training and test told apart.

    Training worse: the sign of the mean test change decides. Training no worse: the test change's
    own one-sided bound must be off zero, or seed noise would read as overfitting.
    """
    if worse:
        return "degradation" if change.test_error.mean > 0 else "under-optimised"
    if no_worse and change.test_error.lower > 0:
        return "overfitting"
    if no_worse and change.test_error.upper < 0:
        return "depth helps"
    return INCONCLUSIVE


def outcome(arm: Arm) -> str:
    """What an arm's reading makes of the claim: nothing yet, with fewer than ENOUGH_SEEDS."""
    if len(arm.change.seeds) < ENOUGH_SEEDS:
        return PRELIMINARY
    if arm.reading == "degrades":
        return SHOWN
    return INCONCLUSIVE if arm.reading == INCONCLUSIVE else NOT_SHOWN


def remarks(arm: Arm) -> list[str]:
    """What the interval of the arm does not say."""
    seeds = len(arm.change.seeds)
    if arm.change.loss.lower > 0 and arm.rising <= seeds / 2:
        return [f"The loss rises at every step of depth in only {arm.rising} of {seeds} seeds."]
    return []


def all_contrasts(numbers: Mapping[str, Endpoints]) -> list[Contrast]:
    """Every arm's change between every two depths, and the first arm's minus each other's."""
    pairs = list(combinations(sorted({depth for one in numbers.values() for depth, _ in one}), 2))
    families = {
        series: {pair: changes(one, *pair) for pair in pairs} for series, one in numbers.items()
    }
    first, *others = numbers
    for other in others:
        families[f"{first} minus {other}"] = {
            pair: difference(families[first][pair], families[other][pair]) for pair in pairs
        }
    return [one for series, family in families.items() for one in adjusted(series, family)]


def adjusted(
    series: str, family: Mapping[tuple[int, int], Mapping[int, Endpoint]]
) -> list[Contrast]:
    """The contrasts of one series, p by Holm over those pairs that have a seed."""
    found = {pair: summary(values) for pair, values in family.items() if values}
    flips = holm([change.p for change in found.values()])
    tests = holm([t_p(change.loss) for change in found.values()])
    return [
        Contrast(*pair, series, change, p, by_t)
        for (pair, change), p, by_t in zip(found.items(), flips, tests, strict=True)
    ]


def check_budget(
    arms: Iterable[Arm],
    numbers: Mapping[str, Endpoints],
    doubled: Mapping[str, Endpoints],
    shallow: int,
    deep: int,
    steps: int,
) -> list[Budget]:
    """Each arm's change at once and twice the ``steps``, over the seeds that have both.

    An arm that trains worse with depth only as long as the budget is short is relabelled.
    """
    checks = []
    for arm in arms:
        once = changes(numbers[arm.series], shallow, deep)
        twice = changes(doubled.get(arm.series, {}), shallow, deep)
        seeds = [seed for seed in once if seed in twice]
        if not seeds:
            continue
        before, after = (paired_t([one[seed]["loss"] for seed in seeds]) for one in (once, twice))
        halved = after.mean <= before.mean / 2 if arm.reading == "degrades" else None
        if halved:
            arm.label = BUDGET_LIMITED
        checks.append(Budget(arm.series, seeds, steps, before, after, halved))
    return checks
