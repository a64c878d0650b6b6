"""The rule, on plain numbers: nothing here knows of runs or files.

Primary endpoint: clean training error after the last step, deep minus shallow, paired by seed. The
baseline (plain) *degrades* if the mean rise is at least ``LEAST_RISE`` and its one-sided 95 % lower
bound is above zero; it does not if the upper bound is below ``LEAST_RISE``. Each other arm *cures*
if its own rise is non-inferior, the upper bound below ``LEAST_RISE``, and the difference of
differences, the baseline's rise minus its own, has its lower bound above zero. Anything else is
inconclusive, and so are fewer than ``ENOUGH_SEEDS``.

One hypothesis comes first, the baseline's between the two depths named, at 5 %; p of all other arms
are adjusted by Holm over them, and p of pairs of depths by Holm over the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any

from resexp.analysis.statistics import Interval, holm, paired_t, t_p
from resexp.runs.records import finite

#: Percent points of error. Below it a rise does not matter whatever its p: networks that fit differ
#: by tenths of a point, and the rises in question by several (He et al. 2015: plain-56 against 20).
LEAST_RISE = 1.0
LEVEL = 0.05  # of one-sided tests, as the bounds of ``Interval``
ENOUGH_SEEDS = 5  # with fewer a t test leans on normality that nobody can check
LEAST_LOSS = 1e-8  # the floor of a loss, so that zero has a logarithm

DEGRADES, DOES_NOT_DEGRADE, INCONCLUSIVE = "degrades", "does not degrade", "inconclusive"
PRELIMINARY = "inconclusive (preliminary)"  # too few seeds, whatever they say
CURED, NOT_CURED = "cured", "not cured"
DEGRADATION, OVERFITTING, NEITHER = "degradation", "overfitting", "neither"
UNTRAINED = "did not learn"  # even shallow: no rise from there is a reading
EXIT_CODES = {DEGRADES: 0, DOES_NOT_DEGRADE: 3, INCONCLUSIVE: 4, PRELIMINARY: 4}
SOME_NOT_CURED = 5  # in place of 0, where an arm is not shown to be cured

RULE = f"""\
Rule: clean training error after the last step, deep minus shallow, paired by seed; p by t.
  Degrades: a mean rise of {LEAST_RISE:g} point or more, its one-sided 95 % lower bound above 0.
  Cured: a rise with its upper bound below {LEAST_RISE:g} point, the baseline's rise minus it with
  its lower bound above 0, and deep networks that train better than the baseline's.
  p of several other arms, and of several pairs of depths, by Holm: then p decides."""

#: One run's final numbers, or a difference of such: ``train_error`` (clean) and ``test_error`` in
#: percent, ``loss`` (log10 of the clean training loss, capped at chance).
Endpoint = Mapping[str, float]
#: Those of one kind of network, by depth and seed.
Endpoints = Mapping[tuple[int, int], Endpoint]


@dataclass(slots=True)
class Change:
    """How much worse deep is than shallow, over the seeds that have both (or a difference)."""

    seeds: list[int]
    train_error: Interval  # the primary endpoint: clean training error, percent points
    p: float  # one-sided t test that ``train_error`` is above zero
    loss: Interval  # of log10 clean training loss, capped at chance
    test_error: Interval  # percent points
    gap: Interval  # test error minus clean training error, percent points


@dataclass(slots=True)
class Arm:
    series: str
    change: Change
    rising: int  # seeds whose error rises at every depth trained between: a note, no clause
    p: float  # that of ``change``; of other arms than the first by Holm over them
    reading: str  # degrades, does not degrade, or inconclusive
    label: str  # degradation, overfitting, did not learn, or neither
    cure: str = ""  # cured, not cured or inconclusive; "" for the first, or with nothing to cure
    cure_p: float = math.nan  # the larger of its two tests', by Holm over the other arms


@dataclass(slots=True)
class Contrast:
    """A change between one pair of depths."""

    shallow: int
    deep: int
    series: str  # an arm, or "plain minus residual"
    change: Change
    p: float  # that of ``change`` by Holm over the pairs of this series


@dataclass(slots=True)
class Budget:
    """An arm's rise of clean training error at more steps than it was judged by, same seeds."""

    series: str
    steps: int
    seeds: list[int]
    once: Interval  # percent points at the steps judged by
    rise: Interval  # percent points at ``steps``
    closed: float | None  # share of the rise that is gone; None for an arm that does not degrade


@dataclass(slots=True)
class Verdict:
    """The decision and everything that it rests on."""

    outcome: str  # degrades, does not degrade, inconclusive or inconclusive (preliminary)
    exit_code: int
    experiment: str
    data: str
    recipe: str
    least_rise: float  # percent points of clean training error
    shallow: int
    deep: int
    depths: list[int]  # those trained, from shallow to deep
    steps: int  # those judged by
    baseline: str  # the series in the part of plain
    arms: list[Arm]  # the baseline first
    interactions: dict[str, Change]  # by series: the baseline's change minus that arm's
    contrasts: list[Contrast]  # every pair of depths that was trained
    budget: list[Budget]  # empty where no network was trained for more steps
    runs: int  # all of them, at every depth
    failures: dict[str, int]  # collapsed, diverged, failed
    at_chance: list[str]  # the runs that failed, and how: they count at chance
    unfinished: int  # running or interrupted
    missing: list[str]  # runs that a pair lacks, and why
    fixed: str  # before or after the runs: whether the question was preregistered
    notes: list[str]

    def __repr__(self) -> str:  # what a notebook shows
        from resexp.analysis.verdict.text import text

        return text(self)

    @property
    def seeds(self) -> list[int]:
        return self.arms[0].change.seeds

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined (an interval of one seed) is None."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def log_loss(loss: float, chance: float = math.inf) -> float:
    """log10 of a loss in nats that is no more than ``chance`` and no less than ``LEAST_LOSS``."""
    return math.log10(max(min(loss, chance), LEAST_LOSS))


# --- changes and their intervals


def changes(numbers: Endpoints, shallow: int, deep: int) -> dict[int, Endpoint]:
    """Deep minus shallow, for every seed that has both."""
    return difference(at_depth(numbers, deep), at_depth(numbers, shallow))


def at_depth(numbers: Endpoints, wanted: int) -> dict[int, Endpoint]:
    return {seed: found for (depth, seed), found in sorted(numbers.items()) if depth == wanted}


def difference(left: Mapping[int, Endpoint], right: Mapping[int, Endpoint]) -> dict[int, Endpoint]:
    """Left minus right, measure by measure, for every seed that both have."""
    return {
        seed: {measure: value - right[seed][measure] for measure, value in found.items()}
        for seed, found in left.items()
        if seed in right
    }


def summary(values: Mapping[int, Endpoint]) -> Change:
    """Intervals and p over seeds."""
    errors, losses, tests = (
        [found[measure] for found in values.values()]
        for measure in ("train_error", "loss", "test_error")
    )
    return Change(
        seeds=list(values),
        train_error=(rise := paired_t(errors)),
        p=t_p(rise),
        loss=paired_t(losses),
        test_error=paired_t(tests),
        gap=paired_t([test - error for test, error in zip(tests, errors, strict=True)]),
    )


# --- the decision


def judge(
    numbers: Mapping[str, Endpoints], shallow: int, deep: int, untrained: Collection[str] = ()
) -> tuple[list[Arm], dict[str, Change]]:
    """Read all arms by the rule, the first as the baseline, from their final numbers alone.

    Of series ``untrained`` even the shallow networks did not learn: that their error does not rise
    says nothing. Also returns, by series, the baseline's change minus each other arm's.
    """
    rises = {series: changes(one, shallow, deep) for series, one in numbers.items()}
    first, *others = rises
    changed = {series: summary(rise) for series, rise in rises.items()}
    minus = {series: summary(difference(rises[first], rises[series])) for series in others}
    p_values = [changed[first].p, *holm([changed[series].p for series in others])]
    arms = []
    for (series, change), p in zip(changed.items(), p_values, strict=True):
        rising = count_rising(numbers[series], change.seeds, shallow, deep)
        arms.append(Arm(series, change, rising, p, *read(change, p, series in untrained)))
    if arms[0].reading == DEGRADES:
        cures = holm([cure_p(arm.change, minus[arm.series]) for arm in arms[1:]])
        deepest = {series: at_depth(one, deep) for series, one in numbers.items()}
        for arm, p in zip(arms[1:], cures, strict=True):
            gains = difference(deepest[first], deepest[arm.series]).values()
            better = paired_t([gain["train_error"] for gain in gains]).mean > 0
            arm.cure, arm.cure_p = cure(arm, minus[arm.series], p, better), p
    return arms, minus


def read(change: Change, p: float, untrained: bool) -> tuple[str, str]:
    """An arm's reading, by the p of its rise, and its label: optimisation or overfitting."""
    rise = change.train_error
    if rise.mean >= LEAST_RISE and rise.lower > 0 and p <= LEVEL:
        return DEGRADES, DEGRADATION
    if untrained:
        return INCONCLUSIVE, UNTRAINED
    if rise.upper < LEAST_RISE:
        return DOES_NOT_DEGRADE, OVERFITTING if change.gap.lower > 0 else NEITHER
    return INCONCLUSIVE, NEITHER


def cure_p(change: Change, minus: Change) -> float:
    """p of both parts of a cure together: the larger, for each must be shown by itself."""
    inferior = 1 - t_p(change.train_error, LEAST_RISE)
    return math.nan if math.isnan(inferior + minus.p) else max(inferior, minus.p)


def cure(arm: Arm, minus: Change, p: float, better: bool) -> str:
    """What another arm than the baseline is to a baseline that degrades.

    ``better``: its deep networks train better than the baseline's, or both merely fail alike.
    """
    if len(minus.seeds) < ENOUGH_SEEDS:
        return PRELIMINARY
    if arm.label == UNTRAINED:
        return INCONCLUSIVE
    if arm.reading == DEGRADES or not better:
        return NOT_CURED
    shown = minus.train_error.lower > 0 and p <= LEVEL
    return CURED if arm.reading == DOES_NOT_DEGRADE and shown else INCONCLUSIVE


def outcome(arms: Sequence[Arm]) -> tuple[str, int]:
    """What the baseline's reading makes of the claim, and the exit code of it and the cures."""
    enough = len(arms[0].change.seeds) >= ENOUGH_SEEDS
    decided = arms[0].reading if enough else PRELIMINARY
    if decided == DEGRADES and any(arm.cure != CURED for arm in arms[1:]):
        return decided, SOME_NOT_CURED
    return decided, EXIT_CODES[decided]


def count_rising(numbers: Endpoints, seeds: Iterable[int], shallow: int, deep: int) -> int:
    """Seeds whose error is higher at every depth than at the depth trained before it."""
    count = 0
    for seed in seeds:
        errors = [
            found["train_error"]
            for (depth, its), found in sorted(numbers.items())
            if its == seed and shallow <= depth <= deep
        ]
        count += all(before < after for before, after in pairwise(errors))
    return count


def remarks(arms: Sequence[Arm], shallow: int) -> list[str]:
    """What the reading of the baseline does not say, and which arms have none."""
    arm, unread = arms[0], [one.series for one in arms if one.label == UNTRAINED]
    seen = f"{arm.rising} of {len(arm.change.seeds)} seeds, which is no part of the rule."
    flat = arm.reading == DEGRADES and arm.rising <= len(arm.change.seeds) / 2
    said = [f"The error rises at every depth between in only {seen}"] if flat else []
    return said + [f"{one}-{shallow} did not learn: no rise is seen from there." for one in unread]


# --- beside the decision: other pairs of depths, and more steps


def all_contrasts(numbers: Mapping[str, Endpoints]) -> list[Contrast]:
    """Every arm's change between every two depths, and the first arm's minus each other's.

    p by Holm over those pairs of a series that have a seed.
    """
    depths = sorted({depth for one in numbers.values() for depth, _ in one})
    pairs = list(combinations(depths, 2))
    families = {
        series: {pair: changes(one, *pair) for pair in pairs} for series, one in numbers.items()
    }
    first, *others = numbers
    for other in others:
        families[f"{first} minus {other}"] = {
            pair: difference(families[first][pair], families[other][pair]) for pair in pairs
        }
    contrasts = []
    for series, family in families.items():
        found = {pair: summary(values) for pair, values in family.items() if values}
        adjusted = holm([change.p for change in found.values()])
        contrasts += [
            Contrast(*pair, series, change, p)
            for (pair, change), p in zip(found.items(), adjusted, strict=True)
        ]
    return contrasts


def check_budget(
    arms: Iterable[Arm],
    numbers: Mapping[str, Endpoints],
    longer: Mapping[int, Mapping[str, Endpoints]],
    shallow: int,
    deep: int,
) -> list[Budget]:
    """Each arm's rise at every larger number of steps, over the seeds that have both budgets.

    ``longer`` has the final numbers by steps and series.
    """
    checks = []
    for arm in arms:
        once = changes(numbers[arm.series], shallow, deep)
        for steps, found in sorted(longer.items()):
            more = changes(found.get(arm.series, {}), shallow, deep)
            seeds = [seed for seed in once if seed in more]
            before, after = (
                paired_t([rise[seed]["train_error"] for seed in seeds]) for rise in (once, more)
            )
            rises = arm.reading == DEGRADES and before.mean > 0
            closed = 1 - after.mean / before.mean if rises else None
            if seeds:
                checks.append(Budget(arm.series, steps, seeds, before, after, closed))
    return checks
