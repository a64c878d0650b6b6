"""Gated skips, their bias tuned, against identity skips.

Highway networks and shortcut-only gates against the residual network, at the deepest depth that
has all three; each gated network of each depth with the gate bias (arch.gate_bias: below 0 the
shortcut starts open) that did best on seeds of its own. Contrasts: the clean training error of
each gated network less that of the residual one.

The rule (effect and none: resexp.probes.sweeps): both an effect: supported. One of them none, gates
that train as well: not supported. Else inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from resexp.probes import Case, Cell, Finding, Needs, Tell
from resexp.probes.sweeps import (
    chosen_values,
    common,
    contrast,
    drawn,
    effects,
    ends,
    finding,
    judged,
    none,
    told,
    verdict,
)
from resexp.settings import Arch, Merge, Twin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Identity skips train deep networks better than gated ones, however the gates are tuned."
SOURCE = "He et al. 2016, section 3.2, table 1"
TEXTBOOK = (
    "Of 110 layers exclusive gates fail, or end at 8.70 % with the best bias; shortcut-only gates "
    "at 6.91 %, identity at 6.61 %."
)
NEEDS = Needs.runs
USUAL = ["depth=20,56", "arch=residual,highway,shortcut_gate"]

GATED = ["highway", "shortcut_gate"]
ARMS = ["residual", *GATED]


def arm(case: Case) -> str | None:
    """Its arch, if it is one of the three."""
    fits = case.arch in GATED or case.settings.arch == Arch(merge=Merge.residual)
    return case.arch if fits and case.settings.twin is Twin.none else None


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """A row per run. Raises UsageError without all three networks at one depth."""
    return ends("gates", cases, arm, ARMS, tell, key="arch.gate_bias")


def conclude(rows: pd.DataFrame) -> Finding:
    """Gates at their best against the identity; the rule in the module's docstring."""
    chosen, rows = rows, judged(rows)
    depths = common(rows, ARMS)
    less = {
        depth: [contrast(rows, (gate, depth), ("residual", depth)) for gate in GATED]
        for depth in depths
    }
    deepest = less[depths[-1]]
    return finding(
        rows,
        verdict(all(effects(deepest)), any(none(deepest))),
        f"training error {told(rows, [(one, depth) for depth in depths for one in ARMS])}",
        [one for depth in reversed(depths) for one in less[depth]],
        conventions=[
            chosen_values(chosen, "gate bias"),
            f"depth {depths[-1]} decides; no other setting was chosen, and no bias beyond these",
        ],
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Both errors of each kind of skip."""
    return drawn(rows, "Gated and identity skips", ARMS)
