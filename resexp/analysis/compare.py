"""What differs between two runs or two sweeps, and what that did to the numbers.

Runs pair up by arch, depth, seed and extras. What the two sides have no value of in common (one
is ``lr=0.01``, the other ``lr=0.02``; one plain, the other residual) is what is compared: it does
not keep them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resexp.analysis.formatting import aligned, few, signed, spread
from resexp.analysis.results import Run, grouped, order, spell
from resexp.analysis.statistics import Interval, paired_t
from resexp.analysis.verdict.rule import log_loss
from resexp.console import counted
from resexp.runs.records import finite
from resexp.settings import UsageError, flatten, identity

#: The numbers compared, as they are headed on the screen, and their digits.
DIGITS = {"clean training error": 2, "test error": 2, "log10 clean loss": 2, "images/s": 0}
CODE = ("resexp", "git_commit", "git_dirty")
GROUPS = ("settings", "data", "code", "environment")
MOST_ROWS = 12  # pairs listed one by one on the screen
ABSENT = "absent"


@dataclass(slots=True)
class Side:
    """One of the two things compared."""

    label: str
    runs: int
    alone: list[str]  # runs without a counterpart


@dataclass(slots=True)
class Difference:
    """A setting or circumstance and its values on either side, without repeats."""

    group: str  # settings, data, code or environment
    key: str
    a: list[Any]
    b: list[Any]


@dataclass(slots=True)
class Pair:
    """A run of A and its counterpart in B; a number is None where a run has none."""

    network: str  # arch, depth and extras as far as the two share them
    seed: int | None  # None where the two differ in it
    a: str
    b: str
    statuses: list[str]
    values_a: dict[str, float | None]
    values_b: dict[str, float | None]
    changes: dict[str, float | None]  # B minus A


@dataclass(slots=True)
class Comparison:
    """What differs between A and B, and B minus A."""

    a: Side
    b: Side
    differences: list[Difference]
    pairs: list[Pair]
    networks: dict[str, dict[str, Interval]]  # B minus A over seeds, by network and column
    overall: dict[str, Interval]  # over all pairs, each counted as one


def compare(a: list[Run], b: list[Run], labels: tuple[str, str] = ("A", "B")) -> Comparison:
    """Pair the runs of ``a`` and ``b`` up and compare their settings, code, data and numbers.

    ``labels`` name the sides. Raises UsageError if no runs pair up, or one side has two runs of
    the same arch, depth, seed and extras.
    """
    matched, keys = match(a, b, labels)
    if not matched:
        raise UsageError(
            f"no run of {labels[0]} has a counterpart in {labels[1]}: {outline(labels[0], a)}; "
            f"{outline(labels[1], b)}. Name two runs, or sweeps that share depths and seeds."
        )
    pairs = [pair(first, second, keys) for first, second in matched]
    sides = []
    for label, runs, paired in zip(labels, (a, b), zip(*matched, strict=True), strict=True):
        known = {id(run) for run in paired}
        sides.append(Side(label, len(runs), [run.run for run in runs if id(run) not in known]))
    networks = grouped(pairs, lambda one: one.network)
    means = {name: intervals(some) for name, some in networks.items()}
    one, other = sides
    return Comparison(one, other, differing(a, b, matched), pairs, means, intervals(pairs))


# --- which runs belong together


def facts_of(run: Run) -> dict[str, str]:
    """What pairs are made by, spelled: arch, depth, seed and extras."""
    facts = {"arch": run.arch, "depth": run.depth, "seed": run.seed} | run.extras
    return {key: spell(value) for key, value in facts.items()}


def match(
    a: Sequence[Run], b: Sequence[Run], labels: tuple[str, str]
) -> tuple[list[tuple[Run, Run]], list[str]]:
    """Runs of the same arch, depth, seed and extras, and what of it pairs had to share.

    What the sides have no value of in common is left out, unless runs of one side could then not
    be told apart. Two single runs are a pair whatever they are.
    """
    every = sorted({key for run in (*a, *b) for key in facts_of(run)})
    shared = [key for key in every if key == "seed" or {*index(a, [key])} & {*index(b, [key])}]
    if len(a) == len(b) == 1:
        return [(a[0], b[0])], shared
    for keys in (shared, every):
        sides = first, second = index(a, keys), index(b, keys)
        same = [
            (label, found)
            for label, side in zip(labels, sides, strict=True)
            for found in side.values()
            if len(found) > 1
        ]
        if not same:
            return [(first[key][0], second[key][0]) for key in first if key in second], keys
    label, twins = same[0]
    raise UsageError(
        f"{twins[0].path} and {twins[1].path} in {label} are the same network and seed. "
        "Name one experiment."
    )


def index(runs: Iterable[Run], keys: Sequence[str]) -> dict[tuple[str, ...], list[Run]]:
    """Runs by their values of ``keys``."""
    return grouped(
        sorted(runs, key=order), lambda run: tuple(facts_of(run).get(key, ABSENT) for key in keys)
    )


def outline(label: str, runs: Sequence[Run]) -> str:
    """A side in a few words: its archs, depths, seeds and extras."""
    extras = sorted({key for run in runs for key in run.extras})
    parts = [
        f"{key}={few([value for (value,) in index(runs, [key])])}"
        for key in ("arch", "depth", "seed", *extras)
    ]
    return f"{label} has {' '.join(parts)}"


# --- what differs


def differing(
    a: Sequence[Run], b: Sequence[Run], matched: Sequence[tuple[Run, Run]]
) -> list[Difference]:
    """Keys whose values differ in some pair, or between the sides as a whole."""
    known = {id(run): circumstances(run) for run in (*a, *b)}
    names = {name for held in known.values() for name in held}
    found = []
    for group, key in sorted(names, key=lambda name: (GROUPS.index(name[0]), name[1])):
        at = {number: held.get((group, key)) for number, held in known.items()}
        here, there = ([at[id(run)] for run in runs] for runs in (a, b))
        in_a_pair = any(at[id(first)] != at[id(second)] for first, second in matched)
        if in_a_pair or {*map(spell, here)} != {*map(spell, there)}:
            found.append(Difference(group, key, distinct(here), distinct(there)))
    return found


def circumstances(run: Run) -> dict[tuple[str, str], Any]:
    """Everything that may differ, by group and key. How and where it was written is left out."""
    settings = {"arch": run.arch} | identity(run.record["settings"])
    settings |= flatten(run.record["data"], "data.")
    found = {("data" if key[:5] == "data." else "settings", key): settings[key] for key in settings}
    for key, value in run.environment.items():
        found["code" if key in CODE else "environment", key] = value
    return found


def distinct(found: Iterable[Any]) -> list[Any]:
    """Values without repeats, in their order."""
    return list({spell(value): value for value in found}.values())


# --- what that did


def pair(a: Run, b: Run, keys: Sequence[str]) -> Pair:
    """Two runs with their final numbers, named by what they share of ``keys``."""
    before, after = numbers(a), numbers(b)
    changes = {
        column: None if one is None or (two := after[column]) is None else two - one
        for column, one in before.items()
    }
    seed = a.seed if a.seed == b.seed else None
    return Pair(network(a, keys), seed, a.run, b.run, [a.status, b.status], before, after, changes)


def network(run: Run, keys: Sequence[str]) -> str:
    """``plain-20``, ``depth 20`` where the archs are what is compared, and shared extras."""
    name = f"depth {run.depth}" if "depth" in keys else "networks"
    if "arch" in keys:
        name = f"{run.arch}-{run.depth}" if "depth" in keys else run.arch
    extras = [f"{key}={spell(run.extras[key])}" for key in sorted(run.extras) if key in keys]
    return ",".join([name, *extras])


def numbers(run: Run) -> dict[str, float | None]:
    """The final numbers of a finished run (a diverged one's at chance), and its speed."""
    loss = run.endpoint("clean_train_loss")
    speed = run.record.get("images_per_second") or run.value("images_per_second")
    found = {
        "clean training error": run.endpoint("clean_train_error"),
        "test error": run.endpoint("test_error"),
        "log10 clean loss": None if loss is None else log_loss(loss),
        "images/s": speed if run.finished else None,
    }
    known: dict[str, float | None] = finite(found)
    return known


def intervals(pairs: Sequence[Pair]) -> dict[str, Interval]:
    """Mean of B minus A with its paired t interval, by column; over the pairs that have it."""
    return {
        column: paired_t([x for one in pairs if (x := one.changes[column]) is not None])
        for column in DIGITS
    }


# --- the screen


def text(comparison: Comparison) -> str:
    """The comparison for people: sides, differences, numbers."""
    said, alone = [], []
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        runs = counted(side.runs, "run")
        said.append(f"{name}: {runs}." if side.label == name else f"{name}: {side.label} ({runs}).")
        alone += [f"Only in {name}: {few(side.alone)}."] if side.alone else []
    lines = [" ".join([*said, f"{counted(len(comparison.pairs), 'pair')}."]), *alone]
    rows = [[one.key, _values(one, one.a), _values(one, one.b)] for one in comparison.differences]
    lines += aligned(["differs", "A", "B"], rows) if rows else []
    same = [name for name in GROUPS if name not in {one.group for one in comparison.differences}]
    lines += [f"Same {', '.join(same)}."] if same else []
    return "\n".join([*lines, *_numbers(comparison)])


def _values(one: Difference, found: Sequence[Any]) -> str:
    """What one side has; of a commit the first letters."""
    most = 12 if one.key == "git_commit" else 40
    unknown = "unknown" if one.group in ("code", "environment") else "null"
    return few([unknown if value is None else spell(value)[:most] for value in found], 5)


def _numbers(comparison: Comparison) -> list[str]:
    """Pairs one by one if they are few, means by network and over all with intervals."""
    pairs, networks = comparison.pairs, comparison.networks
    measured = [column for column in DIGITS if column != "images/s"]  # speed is never the same
    if all(one.changes[column] == 0 for one in pairs for column in measured):
        return ["The final numbers are the same in every pair, to the last digit."]
    rows, many = [], len(pairs) > MOST_ROWS
    for one in [] if many else pairs:
        name = one.network if one.seed is None else f"{one.network}, seed {one.seed}"
        rows.append([name, *(_cell(one, column) for column in DIGITS)])
    if len(networks) > 1 or many:
        rows += [[name, *_means(by_column)] for name, by_column in networks.items()]
    if len(pairs) > 1:
        rows.append([f"all {len(pairs)} pairs", *_means(comparison.overall)])
    said = ["B minus A: errors in percent points; intervals are paired t, 95 %."]
    unfinished = sum(one.changes["test error"] is None for one in pairs)
    note = f"Without final numbers on one side or both: {counted(unfinished, 'pair')}."
    return said + aligned(["", *DIGITS], rows) + ([note] if unfinished else [])


def _cell(one: Pair, column: str) -> str:
    """Both numbers and their difference, or how a run ended that has none."""
    change, digits = one.changes[column], DIGITS[column]
    values = one.values_a[column], one.values_b[column]
    before, after = (
        status if value is None else f"{value:,.{digits}f}"
        for status, value in zip(one.statuses, values, strict=True)
    )
    if change is None:
        return f"{before} and {after}"
    return f"{before} to {after} ({signed(change, digits)})"


def _means(by_column: Mapping[str, Interval]) -> list[str]:
    """Means over pairs; of one without an interval, of none in words."""
    cells = []
    for column, digits in DIGITS.items():
        one = by_column[column]
        mean = spread(one, digits, after=f", n {one.n}")
        cells.append({0: "no pairs", 1: f"{mean} (n 1)"}.get(one.n, mean))
    return cells
