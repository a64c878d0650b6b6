"""The verdict for people: both outcomes in a sentence, then aligned lines of what they rest on."""

from __future__ import annotations

import math
import re

from resexp.analysis.formatting import aligned, few, signed, spread
from resexp.analysis.verdict.rule import (
    CURED,
    DEGRADATION,
    ENOUGH_SEEDS,
    INCONCLUSIVE,
    NEITHER,
    NOT_CURED,
    OVERFITTING,
    PRELIMINARY,
    RULE,
    UNTRAINED,
    Arm,
    Change,
    Verdict,
)
from resexp.console import counted

MEANINGS = {
    DEGRADATION: "; trains worse: degradation",
    OVERFITTING: "; trains no worse, the gap widens: overfitting",
    NEITHER: "",
}
CURES = {
    CURED: "Cured",
    NOT_CURED: "Not cured",
    INCONCLUSIVE: "Cure inconclusive",
    PRELIMINARY: "Cure inconclusive (preliminary)",
}


def text(verdict: Verdict, room: int | None = None) -> str:
    """The verdict for people: lines of at most ``room`` columns (default: stdout's), if they can.

    Sentences may be longer.
    """
    by_holm = "p (Holm)" if len(verdict.arms) > 2 else "p"
    rises = [[arm.series, *cells(arm.change, arm.p)] for arm in verdict.arms]
    for series, change in verdict.interactions.items():
        rises.append([f"{verdict.baseline} minus {series}", *cells(change, math.nan)])
    lines = [sentence(verdict), "Training error, deep minus shallow, in points:"]
    lines += aligned(["", "rise (95 %)", "one-sided 95 %", "n", by_holm], rises, room)
    lines += aligned(["", ""], [[arm.series, _reading(arm)] for arm in verdict.arms], room)
    beside = [[arm.series, *_beside(arm.change)] for arm in verdict.arms]
    lines.append("Beside it (95 %), errors in points:")
    lines += aligned(["", "log10 loss", "test error", "test minus training"], beside, room)
    lines += _other_pairs(verdict, room) + _budget(verdict, room)
    rule = re.sub(r"(?<!\.)\n +", " ", RULE)  # its sentences, each in a line
    lines += [rule, verdict.fixed, failures(verdict)]
    if verdict.at_chance:
        lines[-1] += f" Counted at chance: {', '.join(verdict.at_chance)}."
    if verdict.missing:
        lines.append(f"Missing: {few(verdict.missing)}. Seeds without a pair are left out.")
    return "\n".join(lines + verdict.notes)


def sentence(verdict: Verdict) -> str:
    """Both outcomes: whether the baseline degrades, and which arms cure it."""
    said = (
        f"Training deeper {verdict.baseline} networks: {verdict.outcome} ({verdict.deep} against "
        f"{verdict.shallow} layers, {verdict.steps:,} steps, "
        f"{counted(len(verdict.seeds), 'seed')}, {verdict.data}, recipe {verdict.recipe})."
    )
    for cure, word in CURES.items():
        arms = [arm.series for arm in verdict.arms if arm.cure == cure and arm.label != UNTRAINED]
        said += f" {word}: {', '.join(arms)}." if arms else ""
    unread = [arm.series for arm in verdict.arms if arm.label == UNTRAINED]
    return said + (f" Did not learn: {', '.join(unread)}." if unread else "")


def cells(change: Change, p: float) -> list[str]:
    """A rise with its interval, the bounds that decide, seeds and p."""
    rise = change.train_error
    if rise.n == 0:
        return ["no pairs", "", "", ""]
    bounds = f">{signed(rise.lower, 1)}, <{signed(rise.upper, 1)}" if rise.n > 1 else ""
    return [spread(rise, 1), bounds, str(rise.n), _p(p)]


def _p(p: float) -> str:
    return "" if math.isnan(p) else f"{p:.2g}"


def _reading(arm: Arm) -> str:
    """What the rule says of an arm, and what its test error adds."""
    if arm.label == UNTRAINED:
        return "did not learn: no reading"
    p = f" (p = {_p(arm.cure_p)})" if _p(arm.cure_p) else ""
    cure = f"; {CURES[arm.cure].lower()}{p}" if arm.cure else ""
    few = arm.change.train_error.n < ENOUGH_SEEDS and arm.reading != INCONCLUSIVE
    return f"{arm.reading}{' (preliminary)' if few else ''}{cure}{MEANINGS[arm.label]}"


def _beside(change: Change) -> list[str]:
    if change.loss.n == 0:
        return ["no pairs", "", ""]
    return [spread(change.loss, 2), spread(change.test_error, 1), spread(change.gap, 1)]


def _other_pairs(verdict: Verdict, room: int | None) -> list[str]:
    """Each arm's rise between the pairs of depths that the headline is not about."""
    arms = [arm.series for arm in verdict.arms]
    rows = []
    for one in verdict.contrasts:
        if one.series in arms and (one.shallow, one.deep) != (verdict.shallow, verdict.deep):
            rise, _, n, p = cells(one.change, one.p)
            rows.append([one.series, f"{one.shallow} to {one.deep}", rise, n, p])
    pairs = sum(contrast.series == verdict.baseline for contrast in verdict.contrasts)
    title = f"Other pairs of depths, in points; one-sided p by Holm over all {pairs}:"
    return [title, *aligned(["", "depths", "rise (95 %)", "n", "p"], rows, room)] if rows else []


def _budget(verdict: Verdict, room: int | None) -> list[str]:
    """What is left of each arm's rise at larger budgets, and how much of it more steps close."""
    if not verdict.budget:
        return []
    rows = [
        [
            check.series,
            f"{spread(check.rise, 1)} at {check.steps:,} steps",
            f"{signed(check.once.mean, 1)} at {verdict.steps:,}",
            f"n = {len(check.seeds)}",
            "" if check.closed is None else f"{check.closed:.0%} of the gap closed",
        ]
        for check in verdict.budget
    ]
    title = "Budget check, points of training error at more steps:"
    lines = [title, *aligned([""] * 5, rows, room)]
    if len({check.steps for check in verdict.budget}) < 2:
        lines.append("One larger budget alone: two or more tell slow training from a limit.")
    return lines


def failures(verdict: Verdict) -> str:
    """How many runs went wrong or are at work, of all that were read."""
    failed = [f"{number} {status}" for status, number in verdict.failures.items() if number]
    line = f"Failures: {', '.join(failed) or 'none'} of {counted(verdict.runs, 'run')}."
    return f"{line} Unfinished: {verdict.unfinished}." if verdict.unfinished else line
