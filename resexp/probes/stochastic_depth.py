"""Stochastic depth: does it test better though it trains no better, at less computation?

Residual networks and the same whose branches are left out at random, survival falling linearly to
0.5; the deepest depth that has both. Contrasts: the test error of the residual network less that
with stochastic depth, and the clean training error of the same two.

The computation is a count, not a time (timings beside other work are no results): branches
computed in a step on average, 1 - (l/L)/2 for branch l of L, out of L. It follows from the method.

The rule (effect and none: resexp.probes.sweeps): the difference of test errors an effect, that of
training errors none (stochastic depth trains no better, so it regularises): supported. The
difference of test errors none: not supported. Else inconclusive.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from resexp.probes import Case, Finding, Needs, Verdict, sweeps

CLAIM = "Stochastic depth regularises: it tests better though it trains no better, for less work."
SOURCE = "Huang et al. 2016, sections 3 and 4"
TEXTBOOK = "Test error 5.25 % in place of 6.41 % at 110 layers, with a quarter less training time."
NEEDS = Needs.runs

SURVIVAL = 0.5
ARMS = ["residual", "stochastic depth"]


def arm(case: Case) -> str | None:
    """Which of the two it is."""
    arms = dict(zip((1.0, SURVIVAL), ARMS, strict=True))
    return arms.get(case.settings.arch.survival) if case.kind("survival") == "residual" else None


measure = partial(sweeps.ends, arm, ARMS)
draw = partial(sweeps.drawn, "Stochastic depth", ARMS)


def computed(depth: int) -> float:
    """Mean share of a network's branches, of two convolutions each, that a step computes."""
    count = (depth - 2) // 2
    return 1 - (1 - SURVIVAL) * (count + 1) / (2 * count)


def conclude(rows: pd.DataFrame) -> Finding:
    """Test and training errors of the two; the rule in the module's docstring."""
    depths = sweeps.common(rows, ARMS)
    pairs = [((ARMS[0], depth), (ARMS[1], depth)) for depth in reversed(depths)]
    tests, trains = (
        [sweeps.contrast(rows, *pair, one) for pair in pairs] for one in (sweeps.TEST, sweeps.ERROR)
    )
    (better,), (no_better,) = sweeps.effects(tests[:1]), sweeps.none(tests[:1])
    return sweeps.finding(
        rows,
        Verdict.of(better and sweeps.none(trains[:1])[0], no_better),
        f"test error {sweeps.told(rows, ARMS, depths, sweeps.TEST)}; training error "
        f"{sweeps.told(rows, ARMS, depths)}; a step computes {computed(depths[-1]):.0%} of the "
        f"branches of {depths[-1]} layers",
        [*tests, *trains],
        conventions=[
            f"depth {depths[-1]} decides, test error first; branches computed are the mean of the "
            "method, not a time: fewer of them are no proof of reaching an error sooner"
        ],
    )
