"""Skips and normalisation: does one cure degradation without the other?

Plain and residual networks with batch, group and no normalisation, and SkipInit's, which has skips,
branches that start at 0 and no normalisation; the deepest depth that has all, each network at the
learning rate that did best on seeds of its own. Contrasts: the clean training error of each network
with one of the two alone (plain with batch or group normalisation; residual without, and SkipInit)
less that of the residual network with batch normalisation, which has both. That SkipInit can train
at a rate of 0.2 was known, from seeds that do not judge.

The rule (effect and none: resexp.probes.sweeps): all four effects: supported. One of them none, a
network with one of the two alone that does as well: not supported. Else inconclusive.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from resexp.probes import Account, Case, Finding, Needs, Verdict, sweeps
from resexp.settings import Twin

CLAIM = "Deep networks need both skips and normalisation: neither alone cures degradation."
SOURCE = "common; He et al. 2015, section 3.4, use both; De and Smith 2020 do without the second"
TEXTBOOK = "Skip connections combine with batch normalisation to make very deep networks train."
NEEDS = Needs.runs

NORMS = ["batch", "group", "none"]
ARMS = [*(f"{arch} {norm}" for arch in ("plain", "residual") for norm in NORMS), "skipinit"]
BOTH = "residual batch"
NORMALISED, SKIPPED = ["plain batch", "plain group"], ["residual none", "skipinit"]
ALONE = [*NORMALISED, *SKIPPED]  # one of the two


def arm(case: Case) -> str | None:
    """Its arch and normalisation, if nothing else of it differs."""
    if case.arch == "skipinit":
        return case.arch if case.settings.twin is Twin.none else None
    name = f"{case.arch} {case.settings.arch.norm.value}"
    return name if case.kind("norm") and name in ARMS else None


measure = partial(sweeps.ends, arm, ARMS, key="lr")
draw = partial(sweeps.drawn, "With and without normalisation and skips", ARMS)


def conclude(rows: pd.DataFrame) -> Finding:
    """One without the other against both; the rule in the module's docstring."""
    chosen, rows = rows, sweeps.judged(rows)
    deep = sweeps.common(rows, ARMS)[-1]
    less = [sweeps.contrast(rows, (one, deep), (BOTH, deep)) for one in ALONE]
    worse = dict(zip(ALONE, sweeps.effects(less), strict=True))
    enough = [one for one, is_none in zip(ALONE, sweeps.none(less), strict=True) if is_none]
    why = "normalisation alone does not cure, but skips without it do, once branches start at 0."
    cures = all(worse[one] for one in NORMALISED) and set(SKIPPED) & set(enough)
    return sweeps.finding(
        rows,
        Verdict.of(all(worse.values()), bool(enough)),
        f"training error {sweeps.told(rows, ARMS, [deep])}; as good as with both: "
        f"{', '.join(enough) or 'none'}",
        less,
        conventions=[
            sweeps.chosen_values(chosen, "rate"),
            "SkipInit: pre-activated, no normalisation, branches times a number that starts at 0",
            "rates ten times apart: a finer search, clipping or a warm-up might train SkipInit",
        ],
        account=(Account.overgeneralised, why) if cures else None,
    )
