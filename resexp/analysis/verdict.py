"""Do deeper plain networks train worse, and does the skip connection cure it? A rule fixed before.

Endpoint: log10 of the clean training loss after the last step, deep minus shallow, paired by seed.
Plain networks degrade if the mean rise is at least the threshold, its one-sided 95 % lower bound is
above zero, and in most seeds the loss rises at every step of depth. If the one-sided upper bound is
below the threshold, degradation is not shown; anything else is inconclusive, and so are fewer than
five seeds.

``judge`` is the rule, on plain numbers; ``decide`` brings runs to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any

from resexp.analysis.results import Run, order, spell
from resexp.analysis.statistics import MOST_FLIPS, Interval, holm, paired_t, sign_flip_p, t_p
from resexp.runs.records import finite
from resexp.settings import UsageError, identity

LEAST_LOSS = 1e-8  # the floor of the endpoint, so that a loss of zero has a logarithm
ENOUGH_SEEDS = 5  # the least p of a sign-flip test of n seeds is 2^-n: 0.031 with five
SHALLOW = 20  # the paper's shallowest network, the reference where it was trained

SHOWN, NOT_SHOWN, INCONCLUSIVE = "shown", "not shown", "inconclusive"
PRELIMINARY = "inconclusive (preliminary)"  # too few seeds, whatever they say
BUDGET_LIMITED = "budget-limited"
EXIT_CODES = {SHOWN: 0, NOT_SHOWN: 3, INCONCLUSIVE: 4, PRELIMINARY: 4}

#: What is known of the data beside its settings: the same name may stand for other files.
DATA_FACTS = ("train", "test", "shape", "classes")

#: One run's final numbers: log10 clean training loss, clean training error, test error (percent).
Endpoint = tuple[float, float, float]
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


def decide(
    runs: Sequence[Run],
    deep: int | None = None,
    shallow: int | None = None,
    allow_mixed: bool = False,
    baseline: str | None = None,
) -> Verdict:
    """Apply the rule to the runs of one experiment.

    ``baseline`` names the series that is asked whether it degrades, in place of plain: a control.
    Runs at twice the steps of the others are the budget check. Raises UsageError if the runs are
    of several experiments, mix settings or code (unless ``allow_mixed``) or have no pair of depths
    to compare.
    """
    check_one_experiment(runs)
    usual, doubled = split_budgets(runs)
    unlike = mismatches(usual, doubled)
    if unlike and not allow_mixed:
        raise UsageError(unlike[0].refusal)
    arms = group(usual)
    first = plain_series(arms) if baseline is None else named_series(arms, baseline)
    ordered = [first, *(series for series in arms if series != first)]
    shallow, deep = choose_depths(arms, ordered, shallow, deep)
    threshold = float(arms[first][0].setting("threshold"))
    numbers = {series: endpoints(arms[series]) for series in ordered}
    judged = [judge(series, numbers[series], shallow, deep, threshold) for series in ordered]
    budget = check_budget(judged, numbers, group(doubled), shallow, deep, steps(usual[0]))
    limit(judged, budget)
    rises = {series: changes(numbers[series], shallow, deep) for series in ordered}
    run = arms[first][0]
    return Verdict(
        outcome=outcome(judged[0]),
        experiment=run.name,
        data=run.data,
        recipe=str(run.setting("recipe")),
        threshold=threshold,
        shallow=shallow,
        deep=deep,
        depths=sorted({run.depth for run in arms[first] if shallow <= run.depth <= deep}),
        baseline=first,
        arms=judged,
        interactions={
            series: summary(difference(rises[first], rises[series])) for series in ordered[1:]
        },
        contrasts=all_contrasts(numbers),
        budget=budget,
        runs=len(runs),
        failures={
            status: sum(run.status == status for run in runs)
            for status in ("collapsed", "diverged", "failed")
        },
        unfinished=sum(run.status in ("running", "interrupted") for run in runs),
        missing=missing(arms, ordered, shallow, deep),
        notes=[
            *circumstances(runs, unlike),
            *remarks(runs, arms, judged, shallow, deep),
        ],
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


def steps(run: Run) -> int:
    return int(run.setting("steps"))


def split_budgets(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs to judge, and those of the same networks at twice the steps: the budget check.

    Where some network has the doubled steps only, they are no check, and all runs stay together.
    """
    least = min(steps(run) for run in runs)
    doubled = [run for run in runs if steps(run) == 2 * least]
    usual = [run for run in runs if steps(run) != 2 * least]
    networks = {(arm_of(run), run.depth) for run in usual}
    if all((arm_of(run), run.depth) in networks for run in doubled):
        return usual, doubled
    return list(runs), []


@dataclass(slots=True)
class Mismatch:
    """Two runs that differ in what twins must share."""

    key: str
    value: Any
    run: str
    other_value: Any
    other_run: str

    @property
    def refusal(self) -> str:
        """One sentence with what to type."""
        here, there = (_short(self.key, value) for value in (self.value, self.other_value))
        return (
            f"the runs differ in {self.key}: {here} in {self.run}, {there} in {self.other_run}. "
            f"Choose with a filter, such as {self.key}={spell(self.value)}, "
            "or judge them together with --mixed."
        )


def _short(key: str, value: Any) -> str:
    """A setting as it is typed; of a commit the first letters."""
    return spell(value)[:12] if key.endswith("git_commit") else spell(value)


def mismatches(usual: Sequence[Run], doubled: Sequence[Run]) -> list[Mismatch]:
    """Where the runs differ in more than arch, depth and seed: for each key the first two.

    The ``doubled`` may have twice the steps. What a record does not say about the data (it failed
    before) differs from nothing.
    """
    shared = [(run, conditions(run)) for run in usual]
    shared += [(run, conditions(run) | {"steps": steps(usual[0])}) for run in doubled]
    found = []
    for key in sorted({key for _, held in shared for key in held}):
        unknown = key in {f"data.{fact}" for fact in DATA_FACTS}
        values = [(run, held.get(key)) for run, held in shared]
        known = [(run, value) for run, value in values if not (unknown and value is None)]
        unlike = [(run, value) for run, value in known if value != known[0][1]]
        if unlike:
            (run, value), (other, other_value) = known[0], unlike[0]
            found.append(Mismatch(key, value, run.run, other_value, other.run))
    return found


def conditions(run: Run) -> dict[str, Any]:
    """What twins must share: the run's identity without arch, depth and seed, precision and code.

    Code is told apart by its commit and whether it was edited since, and where there is no commit
    by the version of the package.
    """
    flat = identity(run.record["settings"])
    shared = {
        key: value
        for key, value in flat.items()
        if key not in ("depth", "seed") and not of_arch(key)
    }
    for fact in DATA_FACTS:
        shared[f"data.{fact}"] = run.record["data"].get(fact)
    place = run.record.get("environment") or {}
    for key in ("precision", "git_commit", "git_dirty"):
        shared[f"environment.{key}"] = place.get(key)
    if place.get("git_commit") is None:
        shared["environment.resexp"] = place.get("resexp")
    return shared


def of_arch(key: str) -> bool:
    """Whether a setting chooses the network."""
    return key == "twin" or key.startswith("arch.")


def arm_of(run: Run) -> str:
    """The kind of network: the arch label and what of the arch and its twin was typed beside it."""
    extras = {key: value for key, value in run.extras.items() if of_arch(key)}
    return ",".join([run.arch, *(f"{key}={spell(extras[key])}" for key in sorted(extras))])


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by arm, plain first.

    Raises UsageError if an arm has two runs of the same depth and seed.
    """
    arms: dict[str, list[Run]] = {}
    seen: dict[tuple[str, int, int], Run] = {}
    for run in sorted(runs, key=order):
        arm = arm_of(run)
        twin = seen.setdefault((arm, run.depth, run.seed), run)
        if twin is not run:
            raise UsageError(
                f"{twin.run} and {run.run} are the same network and seed. Choose with a filter."
            )
        arms.setdefault(arm, []).append(run)
    by_rank = sorted(arms.items(), key=lambda item: (order(item[1][0])[0], item[0]))
    return dict(by_rank)


def plain_series(arms: dict[str, list[Run]]) -> str:
    """The arm called plain, or the only one without skips."""
    plain = [series for series, runs in arms.items() if runs[0].skipless]
    if not plain:
        raise UsageError("no plain runs here. Train some: resexp run -m depth=20,56 arch=plain")
    if "plain" not in plain and len(plain) > 1:
        raise UsageError(f"several plain networks here ({'; '.join(plain)}). Choose with a filter.")
    return "plain" if "plain" in plain else plain[0]


def named_series(arms: Mapping[str, list[Run]], baseline: str) -> str:
    """The arm that was asked for."""
    if baseline not in arms:
        raise UsageError(f"no runs of {baseline} here. Choose one of {'; '.join(arms)}.")
    return baseline


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
            raise UsageError(f"no {pair[0]} runs of depth {depth}. Depths here: {here}.")
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


def endpoints(runs: Iterable[Run]) -> dict[tuple[int, int], Endpoint]:
    """The final numbers of the runs that have them, by depth and seed."""
    numbers: dict[tuple[int, int], Endpoint] = {}
    for run in runs:
        if measured(run):
            train, test = run.endpoint("clean_train_error"), run.endpoint("test_error")
            assert train is not None and test is not None
            numbers[run.depth, run.seed] = (log_loss(run), train, test)
    return numbers


def changes(numbers: Endpoints, shallow: int, deep: int) -> dict[int, Endpoint]:
    """Deep minus shallow, for every seed that has both."""
    both = sorted(seed for depth, seed in numbers if depth == deep and (shallow, seed) in numbers)
    return {seed: _minus(numbers[deep, seed], numbers[shallow, seed]) for seed in both}


def difference(
    baseline: Mapping[int, Endpoint], other: Mapping[int, Endpoint]
) -> dict[int, Endpoint]:
    """The baseline's changes minus the other arm's, for every seed that both have."""
    return {seed: _minus(baseline[seed], other[seed]) for seed in baseline if seed in other}


def _minus(left: Endpoint, right: Endpoint) -> Endpoint:
    return (left[0] - right[0], left[1] - right[1], left[2] - right[2])


def summary(values: Mapping[int, Endpoint]) -> Change:
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


def judge(series: str, numbers: Endpoints, shallow: int, deep: int, threshold: float) -> Arm:
    """Read one arm by the rule, from its final numbers alone."""
    change = summary(changes(numbers, shallow, deep))
    rising = count_rising(numbers, change.seeds, shallow, deep)
    worse = (
        change.loss.mean >= threshold and change.loss.lower > 0 and rising > len(change.seeds) / 2
    )
    no_worse = change.loss.upper < threshold
    reading = (
        "degrades" if worse else f"no worse than {threshold:.2f}" if no_worse else "inconclusive"
    )
    return Arm(series, change, rising, reading, label(change, worse, no_worse))


def count_rising(numbers: Endpoints, seeds: Iterable[int], shallow: int, deep: int) -> int:
    """Seeds whose loss is higher at every depth than at the depth trained before it."""
    between = sorted({depth for depth, _ in numbers if shallow <= depth <= deep})
    count = 0
    for seed in seeds:
        losses = [numbers[depth, seed][0] for depth in between if (depth, seed) in numbers]
        count += all(before < after for before, after in pairwise(losses))
    return count


def all_contrasts(numbers: Mapping[str, Endpoints]) -> list[Contrast]:
    """Every arm's change between every two depths, and the first arm's minus each other's."""
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
    return [
        contrast for series, family in families.items() for contrast in adjusted(series, family)
    ]


def adjusted(
    series: str, family: Mapping[tuple[int, int], Mapping[int, Endpoint]]
) -> list[Contrast]:
    """The contrasts of one series, p by Holm over those pairs that have a seed."""
    found = {pair: summary(values) for pair, values in family.items() if values}
    flips = holm([change.p for change in found.values()])
    tests = holm([t_p(change.loss) for change in found.values()])
    return [
        Contrast(shallow, deep, series, change, p, by_t)
        for ((shallow, deep), change), p, by_t in zip(found.items(), flips, tests, strict=True)
    ]


# --- what more training does to it


def check_budget(
    arms: Iterable[Arm],
    numbers: Mapping[str, Endpoints],
    doubled: Mapping[str, list[Run]],
    shallow: int,
    deep: int,
    once_steps: int,
) -> list[Budget]:
    """Each arm's change at once and twice the steps, over the seeds that have both."""
    checks = []
    for arm in arms:
        once = changes(numbers[arm.series], shallow, deep)
        twice = changes(endpoints(doubled.get(arm.series, [])), shallow, deep)
        seeds = [seed for seed in once if seed in twice]
        if seeds:
            before, after = (
                paired_t([values[seed][0] for seed in seeds]) for values in (once, twice)
            )
            halved = after.mean <= before.mean / 2 if arm.reading == "degrades" else None
            checks.append(Budget(arm.series, seeds, once_steps, before, after, halved))
    return checks


def limit(arms: Iterable[Arm], budget: Iterable[Budget]) -> None:
    """Relabel the arms that train worse with depth only as long as the budget is short."""
    halved = {check.series for check in budget if check.halved}
    for arm in arms:
        if arm.series in halved:
            arm.label = BUDGET_LIMITED


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
    return INCONCLUSIVE if arm.reading == "inconclusive" else NOT_SHOWN


def circumstances(runs: Sequence[Run], unlike: Sequence[Mismatch]) -> list[str]:
    """Where the runs were made under unlike conditions, or by code that nobody can look up."""
    notes = []
    if unlike:
        keys = ", ".join(mismatch.key for mismatch in unlike)
        notes.append(f"Mixed on request: the runs differ in {keys}.")
    places = [run.record.get("environment") or {} for run in runs]
    for key, what in (("torch", "versions of torch"), ("device", "kinds of device")):
        counts = Counter(str(place[key]) for place in places if place.get(key) is not None)
        if len(counts) > 1:
            counted = ", ".join(f"{value} in {counts[value]}" for value in sorted(counts))
            notes.append(f"The runs were made with several {what}: {counted} of {len(runs)}.")
    edited = sum(place.get("git_dirty") is True for place in places)
    if edited:
        notes.append(
            f"The code had uncommitted changes in {edited} of {len(runs)} runs: its version is not "
            "known exactly."
        )
    return notes


def remarks(
    runs: Sequence[Run],
    grouped: Mapping[str, list[Run]],
    arms: Sequence[Arm],
    shallow: int,
    deep: int,
) -> list[str]:
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
    again = f"{command(runs[0])} depth={shallow},{deep}"
    archs = list(dict.fromkeys(grouped[arm.series][0].arch for arm in arms))
    if archs == ["plain"]:
        notes.append(f"No residual twin here. next: {again} arch=residual")
        archs = ["plain", "residual"]
    if seeds < ENOUGH_SEEDS:
        wanted = ",".join(str(seed) for seed in range(ENOUGH_SEEDS))
        counted = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
        notes.append(
            f"{counted} a smoke test, not a claim: {ENOUGH_SEEDS} seeds are needed. "
            f"next: {again} arch={','.join(archs)} seed={wanted}"
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
        f"Deeper {verdict.baseline} networks train worse: {verdict.outcome} ({verdict.deep} "
        f"against {verdict.shallow} layers, {count(len(verdict.seeds), 'seed')}, {verdict.data}, "
        f"recipe {verdict.recipe})."
    ]
    rows = [[arm.series, *_training(arm.change), arm.reading] for arm in verdict.arms]
    rows += [
        [f"{verdict.baseline} minus {series}", *_training(change), ""]
        for series, change in verdict.interactions.items()
    ]
    lines += aligned(rows)
    heads = ["points (95 %)", "training error", "test error", "test minus training", ""]
    lines += aligned(
        [heads, *([arm.series, *_errors(arm.change), MEANINGS[arm.label]] for arm in verdict.arms)]
    )
    lines += _other_pairs(verdict) + _budget(verdict)
    lines.append(
        "Rule: log10 of the final clean training loss, paired by seed, up by "
        f"{verdict.threshold:.2f} or more; intervals by t, p by exact sign flips."
    )
    lines.append(failures(verdict))
    if verdict.missing:
        lines.append(f"Missing: {few(verdict.missing)}. Seeds without a pair are left out.")
    return "\n".join(lines + verdict.notes)


MEANINGS = {
    "degradation": "degradation, not overfitting",
    "overfitting": "overfitting: trains no worse, tests worse",
    "under-optimised": "under-optimised: trains worse, tests no worse",
    "depth helps": "depth helps: trains no worse, tests better",
    BUDGET_LIMITED: "budget-limited: twice the steps halve the rise",
    INCONCLUSIVE: "neither shown",
}


def _training(change: Change) -> list[str]:
    loss = change.loss
    if loss.n == 0:
        return ["no pairs", "", "", ""]
    effect = "" if math.isnan(loss.d) else f"d = {signed(loss.d, 1)}"
    p = f"p = {change.p:.3g}"
    return [f"log10 loss {_interval(loss, 2)}", effect, f"n = {loss.n}", p]


def _errors(change: Change) -> list[str]:
    if change.loss.n == 0:
        return ["no pairs", "", ""]
    intervals = (change.train_error, change.test_error, change.gap)
    return [_interval(interval, 1).replace("95 % ", "") for interval in intervals]


def _other_pairs(verdict: Verdict) -> list[str]:
    """The pairs of depths that the headline is not about: a row a pair, a block a twin."""
    by_pair: dict[tuple[int, int], dict[str, Contrast]] = {}
    for contrast in verdict.contrasts:
        pair = (contrast.shallow, contrast.deep)
        if pair != (verdict.shallow, verdict.deep):
            by_pair.setdefault(pair, {})[contrast.series] = contrast
    if not by_pair:
        return []
    pairs = sum(contrast.series == verdict.baseline for contrast in verdict.contrasts)
    least = min(1.0, pairs / 2 ** len(verdict.seeds))
    lines = [
        f"Other pairs of depths: log10 loss (95 %), n, p adjusted by Holm over all {pairs} "
        f"({least:.2g} at least with {count(len(verdict.seeds), 'seed')}):"
    ]
    columns = [verdict.baseline]
    for series in [*verdict.interactions] or [""]:
        columns += [series, f"{verdict.baseline} minus {series}"] if series else []
        rows = [
            [f"{shallow} to {deep}", *(_cell(row.get(column)) for column in columns)]
            for (shallow, deep), row in sorted(by_pair.items())
        ]
        lines += aligned([["depths", *columns], *rows])
        columns = []
    return lines


def _cell(contrast: Contrast | None) -> str:
    if contrast is None:
        return "no pairs"
    loss = contrast.change.loss
    return f"{_interval(loss, 2).replace('95 % ', '')}, {loss.n}, {contrast.holm:.2g}"


def _budget(verdict: Verdict) -> list[str]:
    """Each arm's rise at both budgets, and whether it stands."""
    if not verdict.budget:
        return []
    rows = [
        [
            check.series,
            f"{_interval(check.once, 2)} at {check.steps}",
            f"{_interval(check.twice, 2)} at {2 * check.steps}",
            f"n = {len(check.seeds)}",
            LEFT[check.halved],
        ]
        for check in verdict.budget
    ]
    return ["Budget check, log10 loss at once and twice the steps:", *aligned(rows)]


LEFT = {True: "halved or less", False: "more than half is left", None: ""}


def _interval(interval: Interval, digits: int) -> str:
    """A mean with its two-sided interval, which one seed has not."""
    mean, low, high = (
        signed(value, digits) for value in (interval.mean, interval.low, interval.high)
    )
    return mean if interval.n < 2 else f"{mean} (95 % {low} to {high})"


def signed(value: float, digits: int) -> str:
    """+0.0 rather than -0.0: a sign is information."""
    return f"{round(value, digits) + 0.0:+,.{digits}f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, indented, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def failures(verdict: Verdict) -> str:
    """How many runs went wrong, of all that were read."""
    counted = [f"{count} {status}" for status, count in verdict.failures.items() if count]
    line = f"Failures: {', '.join(counted) or 'none'} of {count(verdict.runs, 'run')}."
    return f"{line} Unfinished: {verdict.unfinished}." if verdict.unfinished else line


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def few(items: Sequence[str], most: int = 6) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
