"""Transformers with skips, and the same without: from which depth on do they need them?

arch=transformer and its exact plain twin, which has the same attention, feed-forward layers and
normalisation, by depth in blocks. Contrasts: the clean training error of the twin less that of the
Transformer, at each depth.

The rule (effect and none: resexp.probes.sweeps): at the deepest an effect, and the deepest
Transformer with skips no worse than the shallowest (none): supported. At the deepest none: not
supported. Else inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from resexp.probes import Case, Cell, Finding, Needs, Tell
from resexp.probes.sweeps import (
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
from resexp.settings import Twin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Deep Transformers do not train without skip connections."
SOURCE = "Dong et al. 2021, section 1; He et al. 2023 (they do, with other initial weights)"
TEXTBOOK = "Without skips attention loses rank, and Transformers do not train."
NEEDS = Needs.runs
USUAL = ["depth=2,4,8", "arch=transformer"]

SKIPS, PLAIN = "transformer", "without skips"
ARMS = [SKIPS, PLAIN]


def arm(case: Case) -> str | None:
    """With skips, or without."""
    if case.arch != "transformer" or case.settings.twin is Twin.matched:
        return None
    return SKIPS if case.settings.twin is Twin.none else PLAIN


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """A row per run. Raises UsageError without Transformers and their twins at one depth."""
    return ends("transformers", cases, arm, ARMS, tell)


def conclude(rows: pd.DataFrame) -> Finding:
    """The twins against the Transformers; the rule in the module's docstring."""
    depths = common(rows, ARMS)
    less = [contrast(rows, (PLAIN, depth), (SKIPS, depth)) for depth in depths]
    deeper = contrast(rows, (SKIPS, depths[-1]), (SKIPS, depths[0]))
    needs = [depth for depth, effect in zip(depths, effects(less), strict=True) if effect]
    return finding(
        rows,
        verdict(depths[-1] in needs and none([deeper])[0], none(less)[-1]),
        f"training error {told(rows, [(one, depth) for depth in depths for one in ARMS])}; "
        f"worse without skips at depth {', '.join(map(str, needs)) or 'none'}",
        [*reversed(less), deeper],
        conventions=["depth is in blocks, each of attention and a feed-forward of two layers"],
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Both errors by depth."""
    return drawn(rows, "Transformers with skips and without", ARMS)
