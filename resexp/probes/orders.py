"""The five orders of a residual block: is full pre-activation the best?

Residual networks of the same convolutions whose normalisation, ReLU and addition stand in the
orders of He et al. 2016, figure 4 (arch.order); the deepest depth that has all five. Contrasts:
the clean training error of each other order less that of full pre-activation.

The rule (effect and none: resexp.probes.sweeps): each of the four an effect: supported. One of
them none, an order that full pre-activation does not beat by a point: not supported. Else
inconclusive. Test errors, which the paper compares, are told beside it and decide nothing.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from resexp.probes import Case, Finding, Needs, Verdict, sweeps
from resexp.settings import Order

CLAIM = "Full pre-activation is the best order of a residual block."
SOURCE = "He et al. 2016, section 4.1, table 2"
TEXTBOOK = "Best of five orders: test error 6.37 % at 110 layers, the original 6.61 %."
NEEDS = Needs.runs

BEST = Order.full_preactivation.value
OTHERS = [order.value for order in Order if order not in (Order.full_preactivation, Order.fixup)]
ARMS = [BEST, *OTHERS]


def arm(case: Case) -> str | None:
    """Its order, if nothing else of it differs from the residual network."""
    order = case.settings.arch.order.value
    return order if case.kind("order") == "residual" and order in ARMS else None


measure = partial(sweeps.ends, arm, ARMS)
draw = partial(sweeps.drawn, "Orders of a residual block", ARMS)


def conclude(rows: pd.DataFrame) -> Finding:
    """The other orders against full pre-activation; the rule in the module's docstring."""
    deep = sweeps.common(rows, ARMS)[-1]
    pairs = [((other, deep), (BEST, deep)) for other in OTHERS]
    less, tests = (
        [sweeps.contrast(rows, *pair, one) for pair in pairs] for one in (sweeps.ERROR, sweeps.TEST)
    )
    better = [other for other, effect in zip(OTHERS, sweeps.effects(tests), strict=True) if effect]
    return sweeps.finding(
        rows,
        Verdict.of(all(sweeps.effects(less)), any(sweeps.none(less))),
        f"training error {sweeps.told(rows, ARMS, [deep])}; test error "
        f"{sweeps.told(rows, ARMS, [deep], sweeps.TEST)}, by a point or more above full "
        f"pre-activation's: {', '.join(better) or 'none'}",
        [*less, *tests],
        conventions=["at a training error near 0 the orders cannot differ by a point"],
    )
