"""The verdict for people: both outcomes in a sentence, then aligned lines of what they rest on."""

from __future__ import annotations

import math

from resexp.analysis.formatting import aligned, count, few, signed, spread
from resexp.analysis.verdict.rule import (
    CURED,
    DEGRADATION,
    INCONCLUSIVE,
    NEITHER,
    NOT_CURED,
    OVERFITTING,
    PRELIMINARY,
    RULE,
    Arm,
    Change,
    Contrast,
    Verdict,
)

MEANINGS = {
    DEGRADATION: "degradation: trains worse",
    OVERFITTING: "overfitting: trains no worse, the gap widens",
    NEITHER: "neither shown",
}
CURES = {
    CURED: "Cured",
    NOT_CURED: "Not cured",
    INCONCLUSIVE: "Cure inconclusive",
    PRELIMINARY: "Cure inconclusive (preliminary)",
}


def text(verdict: Verdict) -> str:
    """The verdict for people, a few aligned lines."""
    lines = [sentence(verdict), *aligned(_primary(verdict))]
    heads = ["beside it (95 %)", "log10 loss", "test error", "test minus training", ""]
    rows = [[arm.series, *_secondary(arm.change), MEANINGS[arm.label]] for arm in verdict.arms]
    lines += aligned([heads, *rows])
    lines += _other_pairs(verdict) + _budget(verdict)
    lines += [RULE, verdict.fixed, _failures(verdict)]
    if verdict.missing:
        lines.append(f"Missing: {few(verdict.missing)}. Seeds without a pair are left out.")
    return "\n".join(lines + verdict.notes)


def sentence(verdict: Verdict) -> str:
    """Both outcomes: whether the baseline degrades, and which arms cure it."""
    said = (
        f"Training deeper {verdict.baseline} networks: {verdict.outcome} ({verdict.deep} against "
        f"{verdict.shallow} layers, {verdict.steps:,} steps, {count(len(verdict.seeds), 'seed')}, "
        f"{verdict.data}, recipe {verdict.recipe})."
    )
    for cure, word in CURES.items():
        arms = [arm.series for arm in verdict.arms if arm.cure == cure]
        said += f" {word}: {', '.join(arms)}." if arms else ""
    return said


def _primary(verdict: Verdict) -> list[list[str]]:
    """Rises of training error with the bounds that decide, then the differences of differences."""
    by_holm = "p (Holm)" if len(verdict.arms) > 2 else "p"
    rows = [["points of training error", "rise (95 %)", "one-sided 95 %", "n", by_holm, ""]]
    rows += [[arm.series, *cells(arm.change, arm.p), _reading(arm)] for arm in verdict.arms]
    for series, change in verdict.interactions.items():
        rows.append([f"{verdict.baseline} minus {series}", *cells(change, math.nan), ""])
    return rows


def cells(change: Change, p: float) -> list[str]:
    """A rise with its interval, the bounds that decide, seeds and p."""
    rise = change.train_error
    if rise.n == 0:
        return ["no pairs", "", "", ""]
    bounds = f"above {signed(rise.lower, 1)}, below {signed(rise.upper, 1)}" if rise.n > 1 else ""
    return [spread(rise, 1), bounds, str(rise.n), "" if math.isnan(p) else f"{p:.2g}"]


def _reading(arm: Arm) -> str:
    if not arm.cure:
        return arm.reading
    p = "" if math.isnan(arm.cure_p) else f" (p = {arm.cure_p:.2g})"
    return f"{arm.reading}; {CURES[arm.cure].lower()}{p}"


def _secondary(change: Change) -> list[str]:
    if change.loss.n == 0:
        return ["no pairs", "", ""]
    return [spread(change.loss, 2), *(spread(one, 1) for one in (change.test_error, change.gap))]


def _other_pairs(verdict: Verdict) -> list[str]:
    """The pairs of depths that the headline is not about: one row per pair, one block per arm."""
    by_pair: dict[tuple[int, int], dict[str, Contrast]] = {}
    for contrast in verdict.contrasts:
        by_pair.setdefault((contrast.shallow, contrast.deep), {})[contrast.series] = contrast
    by_pair.pop((verdict.shallow, verdict.deep), None)
    if not by_pair:
        return []
    pairs = sum(contrast.series == verdict.baseline for contrast in verdict.contrasts)
    lines = [
        f"Other pairs of depths: training error (95 %), n, one-sided p by Holm over all {pairs}:"
    ]
    others = [[series, f"{verdict.baseline} minus {series}"] for series in verdict.interactions]
    first, *more = others or [[]]
    for columns in ([verdict.baseline, *first], *more):
        rows = [
            [f"{shallow} to {deep}", *(_cell(row.get(column)) for column in columns)]
            for (shallow, deep), row in sorted(by_pair.items())
        ]
        lines += aligned([["depths", *columns], *rows])
    return lines


def _cell(contrast: Contrast | None) -> str:
    if contrast is None:
        return "no pairs"
    rise, p = contrast.change.train_error, contrast.holm_t
    return f"{spread(rise, 1)}, {rise.n}" + ("" if math.isnan(p) else f", {p:.2g}")


def _budget(verdict: Verdict) -> list[str]:
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
    lines = ["Budget check, points of training error at more steps:", *aligned(rows)]
    if len({check.steps for check in verdict.budget}) < 2:
        lines.append("One larger budget alone: two or more tell slow training from a limit.")
    return lines


def _failures(verdict: Verdict) -> str:
    """How many runs went wrong, of all that were read, and which: they count at chance."""
    counted = [f"{number} {status}" for status, number in verdict.failures.items() if number]
    line = f"Failures: {', '.join(counted) or 'none'} of {count(verdict.runs, 'run')}."
    if verdict.at_chance:
        line += f" Counted at chance: {', '.join(verdict.at_chance)}."
    return f"{line} Unfinished: {verdict.unfinished}." if verdict.unfinished else line
