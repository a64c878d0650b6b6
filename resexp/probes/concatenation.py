"""Skips by concatenation: DenseNets and U-Nets against their twins without.

arch=dense and arch=unet against twin=plain, each family on its own data at its own depths. The
twin of a DenseNet has its parameters within 1 %, that of a U-Net a tenth fewer. Contrasts: the
clean training error (of a U-Net in percent of the pixels) of the twin less that of the network,
at the deepest depth of each family.

The rule (effect and none: resexp.probes.sweeps): both an effect: supported. One of them none, a
family that needs no skips: not supported. Else inconclusive.
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

CLAIM = "Skips by concatenation, as in DenseNets and U-Nets, make networks train better."
SOURCE = "Huang et al. 2017, section 1; Ronneberger et al. 2015, section 2"
TEXTBOOK = "Concatenation lets features be used again and gradients reach all layers."
NEEDS = Needs.runs
USUAL = ["arch=dense,unet"]

FAMILIES = ["dense", "unet"]


def arm(case: Case) -> str | None:
    """Its family, with ``plain`` if it is the twin without skips."""
    if case.arch not in FAMILIES or case.settings.twin is Twin.matched:
        return None
    return case.arch if case.settings.twin is Twin.none else f"{case.arch} plain"


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """A row per run. Raises UsageError without both families and their twins."""
    rows: list[dict[str, Cell]] = []
    for family in FAMILIES:
        own = [case for case in cases if case.arch == family]
        rows += ends("concatenation", own, arm, [family, f"{family} plain"], tell)
    return rows


def conclude(rows: pd.DataFrame) -> Finding:
    """The twins against their families; the rule in the module's docstring."""
    networks, less = [], {}
    for family in FAMILIES:
        pair = [family, f"{family} plain"]
        depths = common(rows, pair)
        networks += [(one, depth) for depth in depths for one in pair]
        less[family] = [
            contrast(rows, (f"{family} plain", depth), (family, depth)) for depth in depths[::-1]
        ]
    deepest = [some[0] for some in less.values()]
    return finding(
        rows,
        verdict(all(effects(deepest)), any(none(deepest))),
        f"training error {told(rows, networks)}",
        [one for some in less.values() for one in some],
        conventions=[
            "DenseNets classify the digits; U-Nets segment blobs, their errors are of pixels",
            "the deepest of each family decides; twins: twin=plain",
        ],
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Both errors of both families and their twins."""
    arms = [arm for family in FAMILIES for arm in (family, f"{family} plain")]
    return drawn(rows, "Concatenation, and the twins without", arms)
