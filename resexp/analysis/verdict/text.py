"""The verdict for people: the decision in a sentence, then aligned lines of what it rests on."""

from __future__ import annotations

import math

from resexp.analysis.formatting import aligned, count, few, signed, spread
from resexp.analysis.statistics import Interval
from resexp.analysis.verdict.rule import BUDGET_LIMITED, INCONCLUSIVE, Change, Contrast, Verdict

MEANINGS = {
    "degradation": "degradation, not overfitting",
    "overfitting": "overfitting: trains no worse, tests worse",
    "under-optimised": "under-optimised: trains worse, tests no worse",
    "depth helps": "depth helps: trains no worse, tests better",
    BUDGET_LIMITED: "budget-limited: twice the steps halve the rise",
    INCONCLUSIVE: "neither shown",
}
LEFT = {True: "halved or less", False: "more than half is left", None: ""}


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
    lines.append(_failures(verdict))
    if verdict.missing:
        lines.append(f"Missing: {few(verdict.missing)}. Seeds without a pair are left out.")
    return "\n".join(lines + verdict.notes)


def _training(change: Change) -> list[str]:
    loss = change.loss
    if loss.n == 0:
        return ["no pairs", "", "", ""]
    effect = "" if math.isnan(loss.d) else f"d = {signed(loss.d, 1)}"
    return [f"log10 loss {_interval(loss)}", effect, f"n = {loss.n}", f"p = {change.p:.3g}"]


def _interval(interval: Interval) -> str:
    return spread(interval, 2, "95 % ")


def _errors(change: Change) -> list[str]:
    if change.loss.n == 0:
        return ["no pairs", "", ""]
    return [spread(one, 1) for one in (change.train_error, change.test_error, change.gap)]


def _other_pairs(verdict: Verdict) -> list[str]:
    """The pairs of depths that the headline is not about: a row a pair, a block a twin."""
    by_pair: dict[tuple[int, int], dict[str, Contrast]] = {}
    for contrast in verdict.contrasts:
        by_pair.setdefault((contrast.shallow, contrast.deep), {})[contrast.series] = contrast
    by_pair.pop((verdict.shallow, verdict.deep), None)
    if not by_pair:
        return []
    pairs = sum(contrast.series == verdict.baseline for contrast in verdict.contrasts)
    least = min(1.0, pairs / 2 ** len(verdict.seeds))
    lines = [
        f"Other pairs of depths: log10 loss (95 %), n, p adjusted by Holm over all {pairs} "
        f"({least:.2g} at least with {count(len(verdict.seeds), 'seed')}):"
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
    return f"{spread(contrast.change.loss, 2)}, {contrast.change.loss.n}, {contrast.holm:.2g}"


def _budget(verdict: Verdict) -> list[str]:
    """Each arm's rise at both budgets, and whether it stands."""
    if not verdict.budget:
        return []
    rows = [
        [
            check.series,
            f"{_interval(check.once)} at {check.steps}",
            f"{_interval(check.twice)} at {2 * check.steps}",
            f"n = {len(check.seeds)}",
            LEFT[check.halved],
        ]
        for check in verdict.budget
    ]
    return ["Budget check, log10 loss at once and twice the steps:", *aligned(rows)]


def _failures(verdict: Verdict) -> str:
    """How many runs went wrong, of all that were read."""
    counted = [f"{number} {status}" for status, number in verdict.failures.items() if number]
    line = f"Failures: {', '.join(counted) or 'none'} of {count(verdict.runs, 'run')}."
    return f"{line} Unfinished: {verdict.unfinished}." if verdict.unfinished else line
