"""A setting's values side by side: with each, do deeper plain networks still train worse?

Several settings, ``optimizer,init``, are one axis whose values are what was typed of them.

Of every value the rise of clean training error, deep minus shallow, of the baseline and of other
arms; p of both answers, that it degrades and that it does not, by Holm over the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resexp.analysis.formatting import aligned
from resexp.analysis.results import Run, spell
from resexp.analysis.statistics import holm, t_p
from resexp.analysis.verdict import decide
from resexp.analysis.verdict.best import without
from resexp.analysis.verdict.rule import (
    DEGRADES,
    DOES_NOT_DEGRADE,
    ENOUGH_SEEDS,
    INCONCLUSIVE,
    LEAST_RISE,
    LEVEL,
    PRELIMINARY,
    Verdict,
)
from resexp.analysis.verdict.text import cells
from resexp.settings import UsageError


@dataclass(slots=True)
class Value:
    """A value of the setting, and the verdict on the runs that have it."""

    value: Any
    reading: str  # of the baseline, both p adjusted over the values
    p_degrades: float  # by Holm
    p_does_not: float
    verdict: Verdict


def by_value(runs: Sequence[Run], axis: str, **options: Any) -> list[Value]:
    """The verdict for every value of the setting ``axis``; ``options`` are those of ``decide``.

    Raises UsageError if there is one value, or none can be judged.
    """
    for key in axis.split(","):
        if key != "arch" and any(key not in run.settings for run in runs):
            raise UsageError(f"--axis: there is no setting {key}. See: resexp list settings")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(held(run, axis), []).append(unnamed(run, axis))
    if len(groups) < 2:
        only = next(iter(groups), "")
        raise UsageError(f"all runs here have one value of {axis}: {only}. Train other values.")
    verdicts = {value: decide(group, **options) for value, group in groups.items()}
    rises = [one.arms[0].change.train_error for one in verdicts.values()]
    degrades = holm([t_p(rise) for rise in rises])
    does_not = holm([1 - t_p(rise, LEAST_RISE) for rise in rises])
    return [
        Value(value, read(one, above, below), above, below, one)
        for (value, one), above, below in zip(verdicts.items(), degrades, does_not, strict=True)
    ]


def held(run: Run, axis: str) -> str:
    """The value of one setting; of several what was typed: ``optimizer=muon, init=dirac``."""
    if axis == "arch":
        return run.arch
    keys = axis.split(",")
    values = {key: spell(run.setting(key)) for key in keys}
    if len(keys) == 1:
        return values[axis]
    typed = [f"{key.split('.')[-1]}={values[key]}" for key in keys if key in run.extras]
    return ", ".join(typed) or "none"


def unnamed(run: Run, axis: str) -> Run:
    """The run, named without the settings of the axis."""
    for key in axis.split(","):
        run = without(run, key)
    return run


def read(verdict: Verdict, degrades: float, does_not: float) -> str:
    """The reading of a baseline with both p adjusted."""
    rise, reading = verdict.arms[0].change.train_error, verdict.arms[0].reading
    if rise.n < ENOUGH_SEEDS:
        return PRELIMINARY
    if reading == DEGRADES and degrades <= LEVEL:
        return DEGRADES
    return DOES_NOT_DEGRADE if reading == DOES_NOT_DEGRADE and does_not <= LEVEL else INCONCLUSIVE


def text(found: Sequence[Value], axis: str) -> str:
    """The values as aligned lines, the smallest rise first."""
    first = found[0].verdict
    heads = [axis, "rise in points (95 %)", "one-sided 95 %", "n", f"{first.baseline} networks"]
    rows = []
    notes: dict[str, None] = {}
    for one in sorted(found, key=lambda one: one.verdict.arms[0].change.train_error.mean):
        for arm in one.verdict.arms:
            own = arm is one.verdict.arms[0]
            name = one.value if own else f"  {arm.series}"
            said = one.reading if own else arm.reading
            rows.append([name, *cells(arm.change, math.nan)[:3], said])
        notes |= dict.fromkeys(f"{one.value}: {note}" for note in one.verdict.notes)
    head = (
        f"Training deeper {first.baseline} networks, by {axis} ({first.deep} against "
        f"{first.shallow} layers, {first.steps:,} steps, {first.data}, recipe {first.recipe}):"
    )
    rule = f"By the rule of resexp verdict for each {axis}, both answers by Holm over {len(found)}."
    return "\n".join([head, *aligned(heads, rows), rule, *notes])
