"""Do deeper plain networks train worse, and does the skip connection cure it? A rule fixed before.

Endpoint: log10 of the clean training loss after the last step, deep minus shallow, paired by seed.
Plain networks degrade if the mean rise is at least the threshold, its one-sided 95 % lower bound is
above zero, and in most seeds the loss rises at every step of depth. If the one-sided upper bound is
below the threshold, degradation is not shown; anything else is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from resexp.analysis.results import Run, order, spell
from resexp.analysis.statistics import MOST_FLIPS, Interval, paired_t, sign_flip_p
from resexp.records import finite
from resexp.settings import UsageError, identity

LEAST_LOSS = 1e-8  # the floor of the endpoint, so that a loss of zero has a logarithm
ENOUGH_SEEDS = 5  # the least p of a sign-flip test of n seeds is 2^-n: 0.031 with five
SHALLOW = 20  # the paper's shallowest network, the reference where it was trained

SHOWN, NOT_SHOWN, INCONCLUSIVE = "shown", "not shown", "inconclusive"
EXIT_CODES = {SHOWN: 0, NOT_SHOWN: 3, INCONCLUSIVE: 4}


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
    label: str  # degradation, overfitting, under-optimised, depth helps, or inconclusive


@dataclass(slots=True)
class Verdict:
    """The decision and everything that it rests on."""

    outcome: str  # shown, not shown or inconclusive
    experiment: str
    data: str
    recipe: str
    threshold: float  # least rise of log10 loss that counts
    shallow: int
    deep: int
    depths: list[int]  # those trained, from shallow to deep
    arms: list[Arm]  # plain first
    interactions: dict[str, Change]  # by series: plain's change minus that arm's
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


def decide(
    runs: Sequence[Run],
    deep: int | None = None,
    shallow: int | None = None,
    allow_mixed: bool = False,
) -> Verdict:
    """Apply the rule to the runs of one experiment.

    Raises UsageError if they are of several experiments, mix settings (unless ``allow_mixed``) or
    have no pair of depths to compare.
    """
    check_one_experiment(runs)
    if not allow_mixed:
        check_matched(runs)
    arms = group(runs)
    plain = plain_series(arms)
    ordered = [plain, *(series for series in arms if series != plain)]
    shallow, deep = choose_depths(arms, ordered, shallow, deep)
    threshold = float(arms[plain][0].setting("threshold"))
    judged = [judge(series, arms[series], shallow, deep, threshold) for series in ordered]
    values = {series: changes(arms[series], shallow, deep) for series in ordered}
    first = arms[plain][0]
    return Verdict(
        outcome=outcome(judged[0].reading),
        experiment=first.name,
        data=str(first.record["data"].get("name") or first.setting("data.name")),
        recipe=str(first.setting("recipe")),
        threshold=threshold,
        shallow=shallow,
        deep=deep,
        depths=sorted({run.depth for run in arms[plain] if shallow <= run.depth <= deep}),
        arms=judged,
        interactions={series: interaction(values[plain], values[series]) for series in ordered[1:]},
        runs=len(runs),
        failures={
            status: sum(run.status == status for run in runs)
            for status in ("collapsed", "diverged", "failed")
        },
        unfinished=sum(run.status in ("running", "interrupted") for run in runs),
        missing=missing(arms, ordered, shallow, deep),
        notes=remarks(runs, judged, shallow, deep),
    )


def exit_code(verdict: Verdict) -> int:
    """0 shown, 3 not shown, 4 inconclusive."""
    return EXIT_CODES[verdict.outcome]


# --- which runs are compared


def check_one_experiment(runs: Sequence[Run]) -> None:
    folders = sorted({run.experiment for run in runs})
    if not folders:
        raise UsageError(
            "no runs to judge. Train some: resexp run -m depth=20,56 arch=plain,residual"
        )
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise UsageError(
            f"a verdict is about one experiment, and here are {names}. "
            f"Name one: resexp verdict {folders[0]}"
        )


def check_matched(runs: Sequence[Run]) -> None:
    """Raise UsageError if the runs differ in more than arch, depth and seed."""
    first = conditions(runs[0])
    for run in runs[1:]:
        other = conditions(run)
        for key in sorted(first.keys() | other.keys()):
            here, there = first.get(key), other.get(key)
            if here != there:
                raise UsageError(
                    f"the runs differ in {key}: {spell(here)} in {runs[0].run}, {spell(there)} in "
                    f"{run.run}. Choose with a filter, such as {key}={spell(here)}."
                )


def conditions(run: Run) -> dict[str, Any]:
    """What twins must share: the run's identity without arch, depth and seed, and its precision."""
    flat = identity(run.record["settings"])
    shared = {
        key: value
        for key, value in flat.items()
        if key not in ("depth", "seed") and not key.startswith("arch.")
    }
    environment = run.record.get("environment") or {}
    return shared | {"environment.precision": environment.get("precision")}


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by arm: the arch label and its arch.* extras, plain first.

    Raises UsageError if an arm has two runs of the same depth and seed.
    """
    arms: dict[str, list[Run]] = {}
    seen: dict[tuple[str, int, int], Run] = {}
    for run in sorted(runs, key=order):
        extras = {key: value for key, value in run.extras.items() if key.startswith("arch.")}
        arm = ",".join([run.arch, *(f"{key}={spell(extras[key])}" for key in sorted(extras))])
        twin = seen.setdefault((arm, run.depth, run.seed), run)
        if twin is not run:
            raise UsageError(
                f"{twin.run} and {run.run} are the same network and seed. Choose with a filter."
            )
        arms.setdefault(arm, []).append(run)
    by_rank = sorted(arms.items(), key=lambda item: (order(item[1][0])[0], item[0]))
    return dict(by_rank)


def plain_series(arms: dict[str, list[Run]]) -> str:
    """The arm called plain, or the only one of that arch."""
    plain = [series for series, runs in arms.items() if runs[0].arch == "plain"]
    if not plain:
        raise UsageError("no plain runs here. Train some: resexp run -m depth=20,56 arch=plain")
    if "plain" not in plain and len(plain) > 1:
        raise UsageError(f"several plain networks here ({'; '.join(plain)}). Choose with a filter.")
    return "plain" if "plain" in plain else plain[0]


def choose_depths(
    arms: dict[str, list[Run]], ordered: list[str], shallow: int | None, deep: int | None
) -> tuple[int, int]:
    """The depths asked for, or the outermost that were trained with plain and its twin.

    A depth with half as many common seeds as the best or fewer is an excursion, and passed over; a
    depth below ``SHALLOW`` is the reference only if there is none from there on. How runs ended is
    not looked at: a failure must not move the question.
    """
    pair = ordered[:2]
    seeds = {
        series: {
            depth: {run.seed for run in arms[series] if run.depth == depth}
            for depth in {run.depth for run in arms[series]}
        }
        for series in pair
    }
    common = {
        depth: len(set.intersection(*(seeds[series][depth] for series in pair)))
        for depth in set.intersection(*(set(seeds[series]) for series in pair))
    }
    for depth in (shallow, deep):
        if depth is not None and depth not in seeds[pair[0]]:
            here = ", ".join(str(known) for known in sorted(seeds[pair[0]]))
            raise UsageError(f"no plain runs of depth {depth}. Depths here: {here}.")
    most = max(common.values(), default=0)
    usual = sorted(depth for depth, count in common.items() if count > most / 2)
    if deep is None:
        deep = max(usual, default=None)
    if shallow is None:
        below = [depth for depth in usual if deep is None or depth < deep]
        shallow = next((depth for depth in below if depth >= SHALLOW), min(below, default=None))
    if shallow is None or deep is None:
        raise UsageError(
            f"a verdict needs two depths with runs of {' and '.join(pair)}. "
            "Train some: resexp run -m depth=20,56 arch=plain,residual"
        )
    if shallow >= deep:
        raise UsageError(f"depth {deep} is not deeper than {shallow}. Swap them, or leave one out.")
    return shallow, deep


def measured(run: Run) -> bool:
    """Whether a run has the numbers that the rule needs."""
    columns = ("clean_train_loss", "clean_train_error", "test_error")
    values = [run.endpoint(column) for column in columns]
    return all(value is not None and math.isfinite(value) for value in values)


def missing(arms: dict[str, list[Run]], ordered: list[str], shallow: int, deep: int) -> list[str]:
    """Runs at the two depths that some other run has a counterpart of, and that do not count."""
    at = {
        (series, run.depth, run.seed): run
        for series in ordered
        for run in arms[series]
        if run.depth in (shallow, deep)
    }
    lacking = []
    for series in ordered:
        for depth in (shallow, deep):
            for seed in sorted({seed for _, _, seed in at}):
                run = at.get((series, depth, seed))
                if run is None:
                    lacking.append(f"{series}-{depth}-s{seed} (no run)")
                elif not measured(run):
                    why = run.status if not run.finished else "no final numbers"
                    lacking.append(f"{run.run} ({why})")
    return lacking


# --- what they say


def log_loss(run: Run) -> float:
    """The endpoint: log10 of the final clean training loss, no less than ``LEAST_LOSS``."""
    loss = run.endpoint("clean_train_loss")
    assert loss is not None
    return math.log10(max(loss, LEAST_LOSS))


def changes(runs: Sequence[Run], shallow: int, deep: int) -> dict[int, tuple[float, float, float]]:
    """Deep minus shallow by seed: log10 loss, clean training error, test error."""
    numbers: dict[tuple[int, int], tuple[float, float, float]] = {}
    for run in runs:
        if measured(run):
            train, test = run.endpoint("clean_train_error"), run.endpoint("test_error")
            assert train is not None and test is not None
            numbers[run.depth, run.seed] = (log_loss(run), train, test)
    both = sorted(seed for depth, seed in numbers if depth == deep and (shallow, seed) in numbers)
    return {seed: _minus(numbers[deep, seed], numbers[shallow, seed]) for seed in both}


def _minus(
    left: tuple[float, float, float], right: tuple[float, float, float]
) -> tuple[float, float, float]:
    return (left[0] - right[0], left[1] - right[1], left[2] - right[2])


def summary(values: dict[int, tuple[float, float, float]]) -> Change:
    """Intervals and p over seeds."""
    losses = [loss for loss, _, _ in values.values()]
    if len(losses) > MOST_FLIPS:
        raise UsageError(f"{len(losses)} seeds are more than {MOST_FLIPS}. Choose with a filter.")
    return Change(
        seeds=list(values),
        loss=paired_t(losses),
        p=sign_flip_p(losses),
        train_error=paired_t([train for _, train, _ in values.values()]),
        test_error=paired_t([test for _, _, test in values.values()]),
        gap=paired_t([test - train for _, train, test in values.values()]),
    )


def interaction(
    plain: dict[int, tuple[float, float, float]], other: dict[int, tuple[float, float, float]]
) -> Change:
    """Plain's change minus the other arm's, over the seeds that both have."""
    return summary({seed: _minus(plain[seed], other[seed]) for seed in plain if seed in other})


def judge(series: str, runs: Sequence[Run], shallow: int, deep: int, threshold: float) -> Arm:
    """Read one arm by the rule."""
    change = summary(changes(runs, shallow, deep))
    rising = count_rising(runs, change.seeds, shallow, deep)
    worse = (
        change.loss.mean >= threshold and change.loss.lower > 0 and rising > len(change.seeds) / 2
    )
    no_worse = change.loss.upper < threshold
    reading = (
        "degrades" if worse else f"no worse than {threshold:.2f}" if no_worse else "inconclusive"
    )
    return Arm(series, change, rising, reading, label(change, worse, no_worse))


def count_rising(runs: Sequence[Run], seeds: Iterable[int], shallow: int, deep: int) -> int:
    """Seeds whose loss is higher at every depth than at the depth trained before it."""
    count = 0
    for seed in seeds:
        losses = [
            log_loss(run)
            for run in sorted(runs, key=lambda run: run.depth)
            if run.seed == seed and shallow <= run.depth <= deep and measured(run)
        ]
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


def outcome(reading: str) -> str:
    if reading == "degrades":
        return SHOWN
    return INCONCLUSIVE if reading == "inconclusive" else NOT_SHOWN


def remarks(runs: Sequence[Run], arms: Sequence[Arm], shallow: int, deep: int) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = []
    change, seeds = arms[0].change, len(arms[0].change.seeds)
    if change.loss.lower > 0 and arms[0].rising <= seeds / 2:
        notes.append(
            f"The loss rises at every step of depth in only {arms[0].rising} of {seeds} seeds."
        )
    diverged = [run for run in runs if run.status == "diverged"]
    if diverged:
        loss, error = (diverged[0].endpoint(f"clean_train_{kind}") for kind in ("loss", "error"))
        notes.append(f"A diverged run counts at chance: loss {loss:.2f}, error {error:.1f} %.")
    if len(arms) == 1:
        notes.append(
            f"No residual twin here. next: {command(runs[0])} depth={shallow},{deep} arch=residual"
        )
    if seeds < ENOUGH_SEEDS:
        wanted = ",".join(str(seed) for seed in range(ENOUGH_SEEDS))
        counted = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
        notes.append(
            f"{counted} a smoke test, not a claim: {ENOUGH_SEEDS} seeds are needed. "
            f"next: {command(runs[0])} depth={shallow},{deep} arch=plain,residual seed={wanted}"
        )
    return notes


def command(run: Run) -> str:
    """The beginning of a sweep command with what was typed for this run, but not which network."""
    typed = [str(word) for word in run.record.get("overrides") or []]
    kept = [word for word in typed if word.split("=")[0] not in ("depth", "arch", "seed")]
    return " ".join(["resexp run -m", *kept])


# --- the screen


def text(verdict: Verdict) -> str:
    """The verdict for people, a few aligned lines."""
    lines = [
        f"Deeper plain networks train worse: {verdict.outcome} ({verdict.deep} against "
        f"{verdict.shallow} layers, {_count(len(verdict.seeds), 'seed')}, {verdict.data}, recipe "
        f"{verdict.recipe})."
    ]
    rows = [[arm.series, *_training(arm.change), arm.reading] for arm in verdict.arms]
    rows += [
        [f"plain minus {series}", *_training(change), ""]
        for series, change in verdict.interactions.items()
    ]
    lines += _aligned(rows)
    lines += _aligned(
        [[arm.series, *_testing(arm.change), MEANINGS[arm.label]] for arm in verdict.arms]
    )
    lines.append(
        "Rule: log10 of the final clean training loss, paired by seed, up by "
        f"{verdict.threshold:.2f} or more; intervals by t, p by exact sign flips."
    )
    lines.append(failures(verdict))
    if verdict.missing:
        lines.append(f"Missing: {_few(verdict.missing)}. Seeds without a pair are left out.")
    return "\n".join(lines + verdict.notes)


MEANINGS = {
    "degradation": "degradation, not overfitting",
    "overfitting": "overfitting: trains no worse, tests worse",
    "under-optimised": "under-optimised: trains worse, tests no worse",
    "depth helps": "depth helps: trains no worse, tests better",
    INCONCLUSIVE: "neither shown",
}


def _training(change: Change) -> list[str]:
    loss, points = change.loss, _signed(change.train_error.mean, 1)
    if loss.n == 0:
        return ["no pairs", "", ""]
    p = f"p = {change.p:.3g}"
    return [f"log10 loss {_interval(loss, 2)}", f"training error {points} points", p]


def _testing(change: Change) -> list[str]:
    if change.loss.n == 0:
        return ["no pairs", ""]
    gap = _interval(change.gap, 1)
    return [f"test error {_interval(change.test_error, 1)}", f"test minus training {gap}"]


def _interval(interval: Interval, digits: int) -> str:
    """A mean with its two-sided interval, which one seed has not."""
    mean, low, high = (
        _signed(value, digits) for value in (interval.mean, interval.low, interval.high)
    )
    return mean if interval.n < 2 else f"{mean} (95 % {low} to {high})"


def _signed(value: float, digits: int) -> str:
    """+0.0 rather than -0.0: a sign is information."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def failures(verdict: Verdict) -> str:
    """How many runs went wrong, of all that were read."""
    counted = [f"{count} {status}" for status, count in verdict.failures.items() if count]
    line = f"Failures: {', '.join(counted) or 'none'} of {_count(verdict.runs, 'run')}."
    return f"{line} Unfinished: {verdict.unfinished}." if verdict.unfinished else line


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _few(items: Sequence[str], most: int = 6) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
