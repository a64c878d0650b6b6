"""Which runs a verdict compares: one experiment, its arms and depths, and nothing mixed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from resexp.analysis.results import Run, grouped, order, spell
from resexp.analysis.verdict.rule import ENOUGH_SEEDS, Endpoint, log_loss
from resexp.settings import UsageError, identity

SHALLOW = 20  # the paper's shallowest network, the reference where it was trained

#: What is known of the data beside its settings: the same name may stand for other files.
DATA_FACTS = ("data.train", "data.test", "data.shape", "data.classes")

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


#: For each key in which runs differ, names and values of the first two that do.
Mismatches = Mapping[str, tuple[tuple[str, Any], tuple[str, Any]]]


def comparable(
    runs: Sequence[Run], allow_mixed: bool, free: str | None = None
) -> tuple[Sequence[Run], dict[int, list[Run]], list[str]]:
    """The runs to judge, by steps those that are the budget check, and the keys they differ in.

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
    unlike = [key for key in found if key != free]
    if unlike and not allow_mixed:
        key, letters = unlike[0], 12 if unlike[0].endswith("git_commit") else None
        (run, value), (other, its) = found[key]
        raise UsageError(
            f"the runs differ in {key}: {spell(value)[:letters]} in {run}, {spell(its)[:letters]} "
            f"in {other}. Choose with a filter, such as {key}={spell(value)}, "
            "or judge them together with --mixed."
        )
    return usual, longer, unlike


def split_budgets(runs: Sequence[Run]) -> tuple[Sequence[Run], dict[int, list[Run]]]:
    """The runs to judge, of the fewest steps, and by steps those of the same networks at more.

    Where some network has larger numbers of steps only, they are no check, and all runs stay
    together.
    """
    longer = grouped(runs, lambda run: int(run.setting("steps")))
    usual = longer.pop(min(longer))
    networks = {(arm_of(run), run.depth) for run in usual}
    if all((arm_of(run), run.depth) in networks for group in longer.values() for run in group):
        return usual, longer
    return runs, {}


def mismatches(usual: Sequence[Run], longer: Sequence[Run] = ()) -> Mismatches:
    """Where the runs differ in more than arch, depth and seed.

    The ``longer`` may have more steps. What a record does not say about the data (it failed
    before) differs from nothing.
    """
    shared = [(run.run, conditions(run)) for run in usual]
    shared += [(run.run, conditions(run) | {"steps": usual[0].setting("steps")}) for run in longer]
    found = {}
    for key in sorted({key for _, held in shared for key in held}):
        values = [(run, held.get(key)) for run, held in shared]
        if key in DATA_FACTS:
            values = [(run, value) for run, value in values if value is not None]
        unlike = [(run, value) for run, value in values if value != values[0][1]]
        if unlike:
            found[key] = values[0], unlike[0]
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
    environment = run.environment
    code = ["git_commit", "git_dirty"]
    if environment.get("git_commit") is None:
        code.append("resexp")
    return (
        shared
        | {fact: run.record["data"].get(fact.removeprefix("data.")) for fact in DATA_FACTS}
        | {f"environment.{key}": environment.get(key) for key in ("precision", *code)}
    )


def of_arch(key: str) -> bool:
    return key == "twin" or key.startswith("arch.")


def arm_of(run: Run) -> str:
    """The kind of network: the arch label and what of the arch and its twin was typed beside it."""
    return ",".join([run.arch, *run.typed(filter(of_arch, run.extras))])


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by arm, plain first, shallow to deep.

    Raises UsageError if an arm has two runs of the same depth and seed.
    """
    ranked = sorted(runs, key=order)
    for alike in grouped(ranked, lambda run: (arm_of(run), run.depth, run.seed)).values():
        if len(alike) > 1:
            raise UsageError(
                f"{alike[0].run} and {alike[1].run} are the same network and seed. "
                "Choose with a filter."
            )
    arms = grouped(ranked, arm_of)
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
    usual = usual if len(usual) > 1 else sorted(common)  # a sweep that has only begun
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
    at = {(name, run.depth, run.seed): run for name, runs in arms.items() for run in runs}
    seeds = sorted({seed for _, depth, seed in at if depth in (shallow, deep)})
    lacking = []
    for series, depth, seed in product(arms, (shallow, deep), seeds):
        run = at.get((series, depth, seed))
        if run is None:
            lacking.append(f"{series}-{depth}-s{seed} (no run)")
        elif endpoint(run) is None:
            lacking.append(f"{run.run} ({'no final numbers' if run.finished else run.status})")
    return lacking


# --- what a reader must know of the runs


def circumstances(runs: Sequence[Run], unlike: Sequence[str]) -> list[str]:
    """Where the runs were made under unlike conditions, or by code that nobody can look up."""
    notes = []
    if unlike:
        notes.append(f"Mixed on request: the runs differ in {', '.join(unlike)}.")
    environments = [run.environment for run in runs]
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
