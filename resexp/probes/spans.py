"""Skips over one, two or three convolutions: does one over a single convolution help?

Plain networks and residual ones of the same convolutions (arch.skip_span; shortcuts without
parameters), at the deepest depth that has all four. Contrasts: the clean training error of the
plain network less that of each residual one, what its skips gain.

The rule (effect and none: resexp.probes.sweeps): skips over two gain (an effect), so there is
something to gain, and those over one do not (none): supported. Those over one gain: not supported.
Else inconclusive.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from resexp.probes import Case, Finding, Needs, Verdict, sweeps

CLAIM = "A skip over a single convolution does not help."
SOURCE = "He et al. 2015, section 3.2"
TEXTBOOK = "Over a single layer y = W x + x is like a linear layer: no advantages were observed."
NEEDS = Needs.runs

SPANS = ["span 1", "span 2", "span 3"]
ARMS = ["plain", *SPANS]


def arm(case: Case) -> str | None:
    """Plain, or over how many convolutions its skips go, if nothing else of it differs."""
    if case.kind("skip_span") == "residual":
        return f"span {case.settings.arch.skip_span}"
    return case.kind()


measure = partial(sweeps.ends, arm, ARMS)
draw = partial(sweeps.drawn, "Convolutions that a skip spans", ARMS)


def conclude(rows: pd.DataFrame) -> Finding:
    """What skips of each span gain; the rule in the module's docstring."""
    depths = sweeps.common(rows, ARMS)
    deep = depths[-1]
    gains = [sweeps.contrast(rows, ("plain", deep), (span, deep)) for span in SPANS]
    single, double, _ = sweeps.effects(gains)
    beyond = sweeps.contrast(rows, ("span 1", deep), ("span 2", deep))
    return sweeps.finding(
        rows,
        Verdict.of(double and sweeps.none(gains)[0], single),
        f"training error {sweeps.told(rows, ARMS, depths)}; a skip over one takes "
        f"{gains[0].mean.mean:.1f} of the {gains[1].mean.mean:.1f} points that skips over two take",
        [*gains, beyond],
        conventions=["all four have the same convolutions, and parameters"],
    )
