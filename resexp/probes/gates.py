"""Gated skips, their bias tuned, against identity skips.

Highway networks and shortcut-only gates against the residual network, at the deepest depth that
has all three; each gated network of each depth with the gate bias (arch.gate_bias: below 0 the
shortcut starts open) that did best on seeds of its own. Contrasts: the clean training error of
each gated network less that of the residual one.

The rule (effect and none: resexp.probes.sweeps): both an effect: supported. One of them none, gates
that train as well: not supported. Else inconclusive.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from resexp.probes import Case, Finding, Needs, Verdict, sweeps
from resexp.settings import Twin

CLAIM = "Identity skips train deep networks better than gated ones, however the gates are tuned."
SOURCE = "He et al. 2016, section 3.2, table 1"
TEXTBOOK = (
    "Of 110 layers exclusive gates fail, or end at 8.70 % with the best bias; shortcut-only gates "
    "at 6.91 %, identity at 6.61 %."
)
NEEDS = Needs.runs

GATED = ["highway", "shortcut_gate"]
ARMS = ["residual", *GATED]


def arm(case: Case) -> str | None:
    """Its arch, if it is one of the three."""
    gated = case.arch in GATED and case.settings.twin is Twin.none
    return case.arch if gated or case.kind() == "residual" else None


measure = partial(sweeps.ends, arm, ARMS, key="arch.gate_bias")
draw = partial(sweeps.drawn, "Gated and identity skips", ARMS)


def conclude(rows: pd.DataFrame) -> Finding:
    """Gates at their best against the identity; the rule in the module's docstring."""
    chosen, rows = rows, sweeps.judged(rows)
    depths = sweeps.common(rows, ARMS)
    less = {
        depth: [sweeps.contrast(rows, (gate, depth), ("residual", depth)) for gate in GATED]
        for depth in depths
    }
    deepest = less[depths[-1]]
    return sweeps.finding(
        rows,
        Verdict.of(all(sweeps.effects(deepest)), any(sweeps.none(deepest))),
        f"training error {sweeps.told(rows, ARMS, depths)}",
        [one for depth in reversed(depths) for one in less[depth]],
        conventions=[
            sweeps.chosen_values(chosen, "gate bias"),
            f"depth {depths[-1]} decides; no other setting was chosen, and no bias beyond these",
        ],
    )
