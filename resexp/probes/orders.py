"""The five orders of a residual block: is full pre-activation the best?

Residual networks of the same convolutions whose normalisation, ReLU and addition stand in the
orders of He et al. 2016, figure 4 (arch.order); the deepest depth that has all five. Contrasts:
the clean training error of each other order less that of full pre-activation.

The rule (effect and none: resexp.probes.sweeps): each of the four an effect: supported. One of
them none, an order that full pre-activation does not beat by a point: not supported. Else
inconclusive. Test errors, which the paper compares, are told beside it and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from resexp.settings import Arch, Merge, Order, Twin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Full pre-activation is the best order of a residual block."
SOURCE = "He et al. 2016, section 4.1, table 2"
TEXTBOOK = "Best of five orders: test error 6.37 % at 110 layers, the original 6.61 %."
NEEDS = Needs.runs
USUAL = ["depth=56", "arch=residual"]

BEST = Order.full_preactivation.value
OTHERS = [order.value for order in Order if order not in (Order.full_preactivation, Order.fixup)]
ARMS = [BEST, *OTHERS]


def arm(case: Case) -> str | None:
    """Its order, if nothing else of it differs from the residual network."""
    settings = case.settings
    alike = replace(settings.arch, order=Order.original) == Arch(merge=Merge.residual)
    fits = alike and settings.twin is Twin.none and settings.arch.order.value in ARMS
    return settings.arch.order.value if fits else None


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """A row per run. Raises UsageError without all five orders at one depth."""
    return ends("orders", cases, arm, ARMS, tell)


def conclude(rows: pd.DataFrame) -> Finding:
    """The other orders against full pre-activation; the rule in the module's docstring."""
    deep = common(rows, ARMS)[-1]
    less = [contrast(rows, (other, deep), (BEST, deep)) for other in OTHERS]
    tests = [contrast(rows, (other, deep), (BEST, deep), TEST) for other in OTHERS]
    networks = [(one, deep) for one in ARMS]
    better = [other for other, is_effect in zip(OTHERS, effects(tests), strict=True) if is_effect]
    return finding(
        rows,
        verdict(all(effects(less)), any(none(less))),
        f"training error {told(rows, networks)}; test error {told(rows, networks, TEST)}, "
        f"by a point or more above full pre-activation's: {', '.join(better) or 'none'}",
        [*less, *tests],
        conventions=["at a training error near 0 the orders cannot differ by a point"],
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Both errors of each order."""
    return drawn(rows, "Orders of a residual block", ARMS)
