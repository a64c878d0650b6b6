"""Which runs a verdict compares: one experiment, its arms and depths, and nothing mixed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resexp.analysis.results import Run, order, spell
from resexp.analysis.verdict.rule import ENOUGH_SEEDS, Endpoint, log_loss
from resexp.settings import UsageError, identity

SHALLOW = 20  # the paper's shallowest network, the reference where it was trained

#: What is known of the data beside its settings: the same name may stand for other files.
DATA_FACTS = ("train", "test", "shape", "classes")

#: What the rule reads, and the columns that it is in.
MEASURES = {
    "train_error": "clean_train_error",
    "loss": "clean_train_loss",
    "test_error": "test_error",
}
#: How a run ends that counts at chance.
FAILURES = ("collapsed", "diverged", "failed")

#: Runs by arm, the baseline first.
Arms = Mapping[str, Sequence[Run]]


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
        letters = 12 if self.key.endswith("git_commit") else None
        here, there = (spell(value)[:letters] for value in (self.value, self.other_value))
        return (
            f"the runs differ in {self.key}: {here} in {self.run}, {there} in {self.other_run}. "
            f"Choose with a filter, such as {self.key}={spell(self.value)}, "
            "or judge them together with --mixed."
        )


def comparable(
    runs: Sequence[Run], allow_mixed: bool, free: str | None = None
) -> tuple[list[Run], dict[int, list[Run]], list[Mismatch]]:
    """The runs to judge, by steps those that are the budget check, and where they differ.

    Raises UsageError for several experiments, and for a difference unless ``allow_mixed``; those in
    the setting ``free`` are none.
    """
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
    usual, longer = split_budgets(runs)
    found = mismatches(usual, [run for group in longer.values() for run in group])
    unlike = [one for one in found if one.key != free]
    if unlike and not allow_mixed:
        raise UsageError(unlike[0].refusal)
    return usual, longer, unlike


def steps(run: Run) -> int:
    return int(run.setting("steps"))


def split_budgets(runs: Sequence[Run]) -> tuple[list[Run], dict[int, list[Run]]]:
    """The runs to judge, of the fewest steps, and by steps those of the same networks at more.

    Where some network has larger numbers of steps only, they are no check, and all runs stay
    together.
    """
    budgets: dict[int, list[Run]] = {}
    for run in runs:
        budgets.setdefault(steps(run), []).append(run)
    usual = budgets.pop(min(budgets))
    longer = [run for group in budgets.values() for run in group]
    if {(arm_of(run), run.depth) for run in longer} <= {(arm_of(run), run.depth) for run in usual}:
        return usual, budgets
    return list(runs), {}


def mismatches(usual: Sequence[Run], longer: Sequence[Run]) -> list[Mismatch]:
    """Where the runs differ in more than arch, depth and seed: for each key the first two.

    The ``longer`` may have more steps. What a record does not say about the data (it failed
    before) differs from nothing.
    """
    shared = [(run, conditions(run)) for run in usual]
    shared += [(run, conditions(run) | {"steps": steps(usual[0])}) for run in longer]
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
    shared = {
        key: value
        for key, value in identity(run.record["settings"]).items()
        if key not in ("depth", "seed") and not of_arch(key)
    }
    environment = run.record.get("environment") or {}
    code = ["git_commit", "git_dirty"]
    if environment.get("git_commit") is None:
        code.append("resexp")
    return (
        shared
        | {f"data.{fact}": run.record["data"].get(fact) for fact in DATA_FACTS}
        | {f"environment.{key}": environment.get(key) for key in ("precision", *code)}
    )


def of_arch(key: str) -> bool:
    """Whether a setting chooses the network."""
    return key == "twin" or key.startswith("arch.")


def arm_of(run: Run) -> str:
    """The kind of network: the arch label and what of the arch and its twin was typed beside it."""
    extras = sorted((key, spell(value)) for key, value in run.extras.items() if of_arch(key))
    return ",".join([run.arch, *(f"{key}={value}" for key, value in extras)])


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by arm, plain first, shallow to deep.

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
    return dict(sorted(arms.items(), key=lambda item: (order(item[1][0])[0], item[0])))


def group(runs: Iterable[Run], baseline: str | None) -> dict[str, list[Run]]:
    """Runs by arm; first the ``baseline``: the one named, the one called plain, or the only one
    without skips. Raises UsageError if there is none.
    """
    arms = by_arm(runs)
    if baseline is None:
        plain = [series for series, runs in arms.items() if runs[0].skipless]
        if not plain:
            raise UsageError(
                "no plain runs here. Train some: resexp run -m depth=20,56 arch=plain; or judge "
                f"a control: --baseline {next(iter(arms))}"
            )
        if "plain" not in plain and len(plain) > 1:
            named = "; ".join(plain)
            raise UsageError(f"several plain networks here ({named}). Choose with a filter.")
        baseline = "plain" if "plain" in plain else plain[0]
    elif baseline not in arms:
        raise UsageError(f"no runs of {baseline} here. Choose one of {'; '.join(arms)}.")
    return {baseline: arms[baseline]} | arms


def choose_depths(arms: Arms, shallow: int | None, deep: int | None) -> tuple[int, int]:
    """The depths asked for, or the outermost that were trained with plain and its twin.

    A depth with half as many common seeds as the best or fewer is an excursion, and passed over; a
    depth below ``SHALLOW`` is the reference only if there is none from there on. How runs ended is
    not looked at: a failure must not move the question.
    """
    pair = list(arms)[:2]
    held = [{(run.depth, run.seed) for run in arms[series]} for series in pair]
    common = Counter(depth for depth, _ in set.intersection(*held))
    here = sorted({depth for depth, _ in held[0]})
    for depth in (shallow, deep):
        if depth is not None and depth not in here:
            known = ", ".join(map(str, here))
            raise UsageError(f"no {pair[0]} runs of depth {depth}. Depths here: {known}.")
    most = max(common.values(), default=0)
    usual = sorted(depth for depth, seeds in common.items() if seeds > most / 2)
    if deep is None:
        deep = max(usual, default=None)
    if shallow is None:
        shallow = reference(depth for depth in usual if deep is None or depth < deep)
    if shallow is None or deep is None:
        raise UsageError(
            f"a verdict needs two depths with runs of {' and '.join(pair)}. "
            "Train some: resexp run -m depth=20,56 arch=plain,residual"
        )
    if shallow >= deep:
        raise UsageError(f"depth {deep} is not deeper than {shallow}. Swap them, or leave one out.")
    return shallow, deep


def reference(depths: Iterable[int]) -> int | None:
    """What deeper networks are compared with: the least of SHALLOW or more, or else the least."""
    return min(depths, key=lambda depth: (depth < SHALLOW, depth), default=None)


def endpoint(run: Run) -> Endpoint | None:
    """The final numbers that the rule reads; None if the run lacks one.

    A failure has those of chance, or deep networks that fail would leave the comparison.
    """
    known = {}
    for measure, column in MEASURES.items():
        value = run.chance(column) if run.status in FAILURES else run.endpoint(column)
        if value is None or not math.isfinite(value):
            return None
        known[measure] = value
    return known | {"loss": log_loss(known["loss"], run.chance("clean_train_loss") or math.inf)}


def endpoints(runs: Iterable[Run]) -> dict[tuple[int, int], Endpoint]:
    """The final numbers of the runs that have them, by depth and seed."""
    found = {(run.depth, run.seed): endpoint(run) for run in runs}
    return {key: numbers for key, numbers in found.items() if numbers is not None}


def untrained(arms: Arms, shallow: int) -> list[str]:
    """Series of which most shallow networks did not learn: above 3/4 of chance's error."""
    found = {
        series: [
            end["train_error"] > 0.75 * run.chance("clean_train_error")
            for run in runs
            if run.depth == shallow and (end := endpoint(run)) is not None
        ]
        for series, runs in arms.items()
    }
    return [series for series, high in found.items() if sum(high) > len(high) / 2]


def missing(arms: Arms, shallow: int, deep: int) -> list[str]:
    """Runs at the two depths that some other run has a counterpart of, and that do not count."""
    depths = (shallow, deep)
    at = {
        (series, run.depth, run.seed): run
        for series, runs in arms.items()
        for run in runs
        if run.depth in depths
    }
    seeds = sorted({seed for _, _, seed in at})
    lacking = []
    for series, depth, seed in ((s, d, n) for s in arms for d in depths for n in seeds):
        run = at.get((series, depth, seed))
        if run is None:
            lacking.append(f"{series}-{depth}-s{seed} (no run)")
        elif endpoint(run) is None:
            lacking.append(f"{run.run} ({'no final numbers' if run.finished else run.status})")
    return lacking


# --- what a reader must know of the runs


def circumstances(runs: Sequence[Run], unlike: Sequence[Mismatch]) -> list[str]:
    """Where the runs were made under unlike conditions, or by code that nobody can look up."""
    notes = []
    if unlike:
        keys = ", ".join(mismatch.key for mismatch in unlike)
        notes.append(f"Mixed on request: the runs differ in {keys}.")
    environments = [run.record.get("environment") or {} for run in runs]
    for key, what in (("torch", "versions of torch"), ("device", "kinds of device")):
        counts = Counter(str(one[key]) for one in environments if one.get(key) is not None)
        if len(counts) > 1:
            counted = ", ".join(f"{value} in {counts[value]}" for value in sorted(counts))
            notes.append(f"The runs were made with several {what}: {counted} of {len(runs)}.")
    edited = sum(one.get("git_dirty") is True for one in environments)
    if edited:
        notes.append(
            f"The code had uncommitted changes in {edited} of {len(runs)} runs: its version is not "
            "known exactly."
        )
    return notes


def advice(runs: Sequence[Run], arms: Arms, shallow: int, deep: int, seeds: int) -> list[str]:
    """What to train next, where an arm or seeds lack."""
    typed = [str(word) for word in runs[0].record.get("overrides") or []]
    kept = [word for word in typed if word.split("=")[0] not in ("depth", "arch", "seed")]
    again = " ".join(["resexp run -m", *kept, f"depth={shallow},{deep}"])
    archs = list(dict.fromkeys(group[0].arch for group in arms.values()))
    notes = []
    if archs == ["plain"]:
        notes.append(f"No residual twin here. next: {again} arch=residual")
        archs = ["plain", "residual"]
    if seeds < ENOUGH_SEEDS:
        wanted = ",".join(map(str, range(ENOUGH_SEEDS)))
        counted = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
        notes.append(
            f"{counted} a smoke test, not a claim: {ENOUGH_SEEDS} seeds are needed. "
            f"next: {again} arch={','.join(archs)} seed={wanted}"
        )
    return notes
