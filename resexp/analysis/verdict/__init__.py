"""Do deeper plain networks train worse, and does the skip connection cure it? A rule fixed before.

``select`` says which runs are compared, ``rule`` decides on plain numbers, ``text`` writes it down.
"""

from __future__ import annotations

from collections.abc import Sequence

from resexp.analysis.results import Run
from resexp.analysis.verdict import rule, select
from resexp.analysis.verdict.rule import EXIT_CODES, INCONCLUSIVE, LEAST_LOSS, Verdict
from resexp.analysis.verdict.text import text

__all__ = ["EXIT_CODES", "INCONCLUSIVE", "LEAST_LOSS", "Verdict", "decide", "text"]


def decide(
    runs: Sequence[Run],
    deep: int | None = None,
    shallow: int | None = None,
    allow_mixed: bool = False,
    baseline: str | None = None,
) -> Verdict:
    """Apply the rule to the runs of one experiment.

    ``baseline`` names the series that is tested for degradation, in place of plain: a control.
    Runs at twice the steps of the others are the budget check. Raises UsageError if the runs are
    of several experiments, mix settings or code (unless ``allow_mixed``) or have no pair of depths
    to compare.
    """
    usual, doubled, unlike = select.comparable(runs, allow_mixed)
    arms = select.group(usual, baseline)
    shallow, deep = select.choose_depths(arms, shallow, deep)
    numbers = {series: select.endpoints(group) for series, group in arms.items()}
    longer = {series: select.endpoints(group) for series, group in select.by_arm(doubled).items()}
    first, *others = arms
    run = arms[first][0]
    threshold = float(run.setting("threshold"))
    judged = [rule.judge(series, numbers[series], shallow, deep, threshold) for series in arms]
    budget = rule.check_budget(judged, numbers, longer, shallow, deep, select.steps(usual[0]))
    rises = {series: rule.changes(numbers[series], shallow, deep) for series in arms}
    return Verdict(
        outcome=rule.outcome(judged[0]),
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
            series: rule.summary(rule.difference(rises[first], rises[series])) for series in others
        },
        contrasts=rule.all_contrasts(numbers),
        budget=budget,
        runs=len(runs),
        failures={
            status: sum(run.status == status for run in runs)
            for status in ("collapsed", "diverged", "failed")
        },
        unfinished=sum(run.status in ("running", "interrupted") for run in runs),
        missing=select.missing(arms, shallow, deep),
        notes=[
            *select.circumstances(runs, unlike),
            *rule.remarks(judged[0]),
            *select.at_chance(runs),
            *select.advice(runs, arms, shallow, deep, len(judged[0].change.seeds)),
        ],
    )
