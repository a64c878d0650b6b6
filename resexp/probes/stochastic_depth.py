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

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from resexp.probes import Case, Cell, Finding, Needs, Tell
from resexp.probes.sweeps import (
    TEST,
    common,
    contrast,
    drawn,
    effects,
    ends,
    finding,
    none,
    told,
    verdict,
)
from resexp.settings import Arch, Merge, Twin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Stochastic depth regularises: it tests better though it trains no better, for less work."
SOURCE = "Huang et al. 2016, sections 3 and 4"
TEXTBOOK = "Test error 5.25 % in place of 6.41 % at 110 layers, with a quarter less training time."
NEEDS = Needs.runs
USUAL = ["depth=20,56", "arch=residual,stochastic_depth"]

SURVIVAL = 0.5
RANDOM = Arch(merge=Merge.residual, survival=SURVIVAL)
ARMS = ["residual", "stochastic depth"]


def arm(case: Case) -> str | None:
    """Which of the two it is."""
    if case.settings.twin is not Twin.none:
        return None
    known = dict(zip(ARMS, (Arch(merge=Merge.residual), RANDOM), strict=True))
    return next((name for name, arch in known.items() if arch == case.settings.arch), None)


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """A row per run. Raises UsageError without both networks at one depth."""
    return ends("stochastic_depth", cases, arm, ARMS, tell)


def computed(depth: int) -> float:
    """Mean share of a network's branches, of two convolutions each, that a step computes."""
    count = (depth - 2) // 2
    return 1 - (1 - SURVIVAL) * (count + 1) / (2 * count)


def conclude(rows: pd.DataFrame) -> Finding:
    """Test and training errors of the two; the rule in the module's docstring."""
    depths = common(rows, ARMS)
    networks = [(one, depth) for depth in depths for one in ARMS]
    pairs = [((ARMS[0], depth), (ARMS[1], depth)) for depth in reversed(depths)]
    tests = [contrast(rows, *pair, TEST) for pair in pairs]
    trains = [contrast(rows, *pair) for pair in pairs]
    return finding(
        rows,
        verdict(effects(tests[:1])[0] and none(trains[:1])[0], none(tests[:1])[0]),
        f"test error {told(rows, networks, TEST)}; training error {told(rows, networks)}; a step "
        f"computes {computed(depths[-1]):.0%} of the branches of {depths[-1]} layers",
        [*tests, *trains],
        conventions=[
            f"depth {depths[-1]} decides, test error first; branches computed are the mean of the "
            "method, not a time: fewer of them are no proof of reaching an error sooner"
        ],
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Both errors with every branch and with random ones."""
    return drawn(rows, "Stochastic depth", ARMS)
