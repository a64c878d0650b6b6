"""Skips over one, two or three convolutions: does one over a single convolution help?

Plain networks and residual ones of the same convolutions (arch.skip_span; shortcuts without
parameters), at the deepest depth that has all four. Contrasts: the clean training error of the
plain network less that of each residual one, what its skips gain.

The rule (effect and none: resexp.probes.sweeps): skips over two gain (an effect), so there is
something to gain, and those over one do not (none): supported. Those over one gain: not supported.
Else inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from resexp.settings import Arch, Merge, Twin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "A skip over a single convolution does not help."
SOURCE = "He et al. 2015, section 3.2"
TEXTBOOK = "Over a single layer y = W x + x is like a linear layer: no advantages were observed."
NEEDS = Needs.runs
USUAL = ["depth=20,56", "arch=plain,residual"]

SPANS = ["span 1", "span 2", "span 3"]
ARMS = ["plain", *SPANS]


def arm(case: Case) -> str | None:
    """Plain, or over how many convolutions its skips go, if nothing else of it differs."""
    settings = case.settings
    if settings.twin is not Twin.none:
        return None
    if settings.arch == Arch():
        return "plain"
    alike = replace(settings.arch, skip_span=2) == Arch(merge=Merge.residual)
    return f"span {settings.arch.skip_span}" if alike else None


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """A row per run. Raises UsageError without plain networks and all spans at one depth."""
    return ends("spans", cases, arm, ARMS, tell)


def conclude(rows: pd.DataFrame) -> Finding:
    """What skips of each span gain; the rule in the module's docstring."""
    depths = common(rows, ARMS)
    deep = depths[-1]
    gains = [contrast(rows, ("plain", deep), (span, deep)) for span in SPANS]
    single, double, _ = effects(gains)
    beyond = contrast(rows, ("span 1", deep), ("span 2", deep))
    return finding(
        rows,
        verdict(double and none(gains)[0], single),
        f"training error {told(rows, [(one, depth) for depth in depths for one in ARMS])}; "
        f"a skip over one takes {gains[0].mean.mean:.1f} of the {gains[1].mean.mean:.1f} points "
        "that skips over two take",
        [*gains, beyond],
        conventions=["all four have the same convolutions, and parameters"],
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Both errors by span."""
    return drawn(rows, "Convolutions that a skip spans", ARMS)
