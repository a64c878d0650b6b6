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

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from resexp.probes import Account, Case, Cell, Finding, Needs, Tell
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
from resexp.settings import Arch, Merge, Normalisation, Twin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Deep networks need both skips and normalisation: neither alone cures degradation."
SOURCE = "common; He et al. 2015, section 3.4, use both; De and Smith 2020 do without the second"
TEXTBOOK = "Skip connections combine with batch normalisation to make very deep networks train."
NEEDS = Needs.runs
USUAL = ["depth=56", "arch=plain,residual,skipinit"]

NORMS = ["batch", "group", "none"]
ARMS = [*(f"{arch} {norm}" for arch in ("plain", "residual") for norm in NORMS), "skipinit"]
BOTH = "residual batch"
NORMALISED, SKIPPED = ["plain batch", "plain group"], ["residual none", "skipinit"]
ALONE = [*NORMALISED, *SKIPPED]  # one of the two


def arm(case: Case) -> str | None:
    """Its arch and normalisation, if nothing else of it differs."""
    settings = case.settings
    if settings.twin is not Twin.none:
        return None
    if case.arch == "skipinit":
        return case.arch
    alike = replace(settings.arch, norm=Normalisation.batch)
    name = f"{case.arch} {settings.arch.norm.value}"
    return name if alike in (Arch(), Arch(merge=Merge.residual)) and name in ARMS else None


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """A row per run. Raises UsageError without all seven networks at one depth."""
    return ends("norms", cases, arm, ARMS, tell, key="lr")


def conclude(rows: pd.DataFrame) -> Finding:
    """One without the other against both; the rule in the module's docstring."""
    chosen, rows = rows, judged(rows)
    deep = common(rows, ARMS)[-1]
    less = [contrast(rows, (one, deep), (BOTH, deep)) for one in ALONE]
    worse = dict(zip(ALONE, effects(less), strict=True))
    enough = [one for one, is_none in zip(ALONE, none(less), strict=True) if is_none]
    account = None
    if all(worse[one] for one in NORMALISED) and set(SKIPPED) & set(enough):
        why = (
            "normalisation alone does not cure, but skips without it do, once branches start at 0."
        )
        account = Account.overgeneralised, why
    return finding(
        rows,
        verdict(all(worse.values()), bool(enough)),
        f"training error {told(rows, [(one, deep) for one in ARMS])}; as good as with both: "
        f"{', '.join(enough) or 'none'}",
        less,
        conventions=[
            chosen_values(chosen, "rate"),
            "SkipInit: pre-activated, no normalisation, branches times a number that starts at 0",
        ],
        account=account,
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Both errors of every network."""
    return drawn(rows, "With and without normalisation and skips", ARMS)
