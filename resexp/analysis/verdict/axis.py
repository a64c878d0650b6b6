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
from resexp.analysis.results import Run, grouped, spell
from resexp.analysis.statistics import holm, t_p
from resexp.analysis.verdict import decide, rule
from resexp.analysis.verdict.best import without
from resexp.analysis.verdict.text import cells
from resexp.settings import UsageError


@dataclass(slots=True)
class Value:
    """A value of the setting, and the verdict on the runs that have it."""

    value: Any
    reading: str  # of the baseline, both p adjusted over the values
    p_degrades: float  # by Holm
    p_does_not: float
    verdict: rule.Verdict


def by_value(runs: Sequence[Run], axis: str, **options: Any) -> list[Value]:
    """The verdict for every value of the setting ``axis``; ``options`` are those of ``decide``.

    Raises UsageError if there is one value, or none can be judged.
    """
    keys = axis.split(",")
    for key in keys:
        if key != "arch" and any(key not in run.settings for run in runs):
            raise UsageError(f"--axis: there is no setting {key}. See: resexp list settings")
    groups = grouped(runs, lambda run: held(run, keys))
    if len(groups) < 2:
        only = next(iter(groups), "")
        raise UsageError(f"all runs here have one value of {axis}: {only}. Train other values.")
    verdicts = [decide([without(run, keys) for run in one], **options) for one in groups.values()]
    rises = [one.arms[0].change.train_error for one in verdicts]
    degrades = holm([t_p(rise) for rise in rises])
    does_not = holm([1 - t_p(rise, rule.LEAST_RISE) for rise in rises])
    return [
        Value(value, read(one, above, below), above, below, one)
        for value, one, above, below in zip(groups, verdicts, degrades, does_not, strict=True)
    ]


def held(run: Run, keys: Sequence[str]) -> str:
    """The value of one setting; of several what was typed: ``optimizer=muon, init=dirac``."""
    if [*keys] == ["arch"]:
        return run.arch
    if len(keys) == 1:
        return spell(run.setting(keys[0]))
    typed = [key for key in keys if key in run.extras]
    said = [f"{key.rpartition('.')[2]}={spell(run.setting(key))}" for key in typed]
    return ", ".join(said) or "none"


def read(verdict: rule.Verdict, degrades: float, does_not: float) -> str:
    """The reading of a baseline with both p adjusted."""
    arm = verdict.arms[0]
    if arm.change.train_error.n < rule.ENOUGH_SEEDS:
        return rule.PRELIMINARY
    p = {rule.DEGRADES: degrades, rule.DOES_NOT_DEGRADE: does_not}.get(arm.reading, math.inf)
    return arm.reading if p <= rule.LEVEL else rule.INCONCLUSIVE


def text(found: Sequence[Value], axis: str) -> str:
    """The values as aligned lines, the smallest rise first."""
    first = found[0].verdict
    heads = [axis, "rise in points (95 %)", "one-sided 95 %", "n", f"{first.baseline} networks"]
    rows: list[list[str]] = []
    notes: list[str] = []
    for one in sorted(found, key=lambda one: one.verdict.arms[0].change.train_error.mean):
        own, *others = one.verdict.arms
        rows.append([one.value, *cells(own.change, math.nan)[:3], one.reading])
        for arm in others:
            rows.append([f"  {arm.series}", *cells(arm.change, math.nan)[:3], arm.reading])
        notes += dict.fromkeys(f"{one.value}: {note}" for note in one.verdict.notes)
    head = (
        f"Training deeper {first.baseline} networks, by {axis} ({first.deep} against "
        f"{first.shallow} layers, {first.steps:,} steps, {first.data}, recipe {first.recipe}):"
    )
    law = f"By the rule of resexp verdict for each {axis}, both answers by Holm over {len(found)}."
    return "\n".join([head, *aligned(heads, rows), law, *notes])
