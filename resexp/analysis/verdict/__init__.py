"""Do deeper plain networks train worse, and does the skip connection cure it?

``select`` says which runs are compared, ``rule`` decides on plain numbers, ``text`` writes it down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from resexp.analysis.results import Run
from resexp.analysis.verdict import history, rule, select
from resexp.analysis.verdict.best import each_at_best
from resexp.analysis.verdict.rule import EXIT_CODES, LEAST_LOSS, NEITHER, RULE, Verdict
from resexp.analysis.verdict.text import failures, text

__all__ = ["EXIT_CODES", "LEAST_LOSS", "NEITHER", "RULE", "Verdict", "decide", "failures", "text"]


def decide(
    runs: Sequence[Run],
    deep: int | None = None,
    shallow: int | None = None,
    allow_mixed: bool = False,
    baseline: str | None = None,
    best: str | None = None,
    chosen_on: Sequence[int] = (),
) -> Verdict:
    """Apply the rule to the runs of one experiment.

    ``baseline`` names the series that is tested for degradation, in place of plain: a control.
    Runs at more steps than the others are the budget check. With ``best``, such as lr, each network
    is taken at its own best value, chosen on the seeds ``chosen_on``. Raises UsageError for several
    experiments, mixed settings or code (unless ``allow_mixed``), and without a pair of depths.
    """
    runs, chosen = each_at_best(runs, best, chosen_on) if best else (runs, [])
    usual, longer, unlike = select.comparable(runs, allow_mixed, best)
    arms = select.group(usual, baseline)
    shallow, deep = select.choose_depths(arms, shallow, deep)
    numbers = {series: select.endpoints(group) for series, group in arms.items()}
    at_more_steps = {
        steps: {series: select.endpoints(group) for series, group in select.by_arm(found).items()}
        for steps, found in longer.items()
    }
    untrained = select.untrained(arms, shallow)
    judged, interactions = rule.judge(numbers, shallow, deep, untrained)
    outcome, exit_code = rule.outcome(judged)
    baseline, run = judged[0].series, usual[0]
    statuses = Counter(run.status for run in runs)
    return Verdict(
        outcome=outcome,
        exit_code=exit_code,
        experiment=run.name,
        data=run.data,
        recipe=str(run.setting("recipe")),
        least_rise=rule.LEAST_RISE,
        shallow=shallow,
        deep=deep,
        depths=sorted({run.depth for run in arms[baseline] if shallow <= run.depth <= deep}),
        steps=run.setting("steps"),
        baseline=baseline,
        arms=judged,
        interactions=interactions,
        contrasts=rule.all_contrasts(numbers),
        budget=rule.check_budget(judged, numbers, at_more_steps, shallow, deep),
        runs=len(runs),
        failures={status: statuses[status] for status in select.FAILURES},
        at_chance=[f"{run.run} ({run.status})" for run in runs if run.status in select.FAILURES],
        unfinished=statuses["running"] + statuses["interrupted"],
        missing=select.missing(arms, shallow, deep),
        fixed=history.when_fixed(runs, shallow, deep),
        notes=[
            *chosen,
            *select.circumstances(runs, unlike),
            *rule.remarks(judged, shallow),
            *select.advice(runs, arms, shallow, deep, len(judged[0].change.seeds)),
        ],
    )
