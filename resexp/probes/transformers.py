"""Transformers with skips, and the same without: from which depth on do they need them?

arch=transformer and its exact plain twin, which has the same attention, feed-forward layers and
normalisation, by depth in blocks. Contrasts: the clean training error of the twin less that of the
Transformer, at each depth.

The rule (effect and none: resexp.probes.sweeps): at the deepest an effect, and the deepest
Transformer with skips no worse than the shallowest (none): supported. At the deepest none: not
supported. Else inconclusive.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from resexp.probes import Case, Finding, Needs, Verdict, sweeps
from resexp.settings import Twin

CLAIM = "Deep Transformers do not train without skip connections."
SOURCE = "Dong et al. 2021, section 1; He et al. 2023 (they do, with other initial weights)"
TEXTBOOK = "Without skips attention loses rank, and Transformers do not train."
NEEDS = Needs.runs

SKIPS, PLAIN = "transformer", "without skips"
ARMS = [SKIPS, PLAIN]


def arm(case: Case) -> str | None:
    """With skips, or without."""
    arms = {Twin.none: SKIPS, Twin.plain: PLAIN}
    return arms.get(case.settings.twin) if case.arch == "transformer" else None


measure = partial(sweeps.ends, arm, ARMS)
draw = partial(sweeps.drawn, "Transformers with skips and without", ARMS)


def conclude(rows: pd.DataFrame) -> Finding:
    """The twins against the Transformers; the rule in the module's docstring."""
    depths = sweeps.common(rows, ARMS)
    less = [sweeps.contrast(rows, (PLAIN, depth), (SKIPS, depth)) for depth in depths]
    deeper = sweeps.contrast(rows, (SKIPS, depths[-1]), (SKIPS, depths[0]))
    needs = [depth for depth, effect in zip(depths, sweeps.effects(less), strict=True) if effect]
    return sweeps.finding(
        rows,
        Verdict.of(depths[-1] in needs and sweeps.none([deeper])[0], sweeps.none(less)[-1]),
        f"training error {sweeps.told(rows, ARMS, depths)}; "
        f"worse without skips at depth {', '.join(map(str, needs)) or 'none'}",
        [*reversed(less), deeper],
        conventions=["depth is in blocks, each of attention and a feed-forward of two layers"],
    )
