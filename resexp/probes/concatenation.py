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
from functools import partial

import pandas as pd

from resexp.probes import Case, Finding, Needs, Row, Tell, Verdict, sweeps
from resexp.settings import Twin

CLAIM = "Skips by concatenation, as in DenseNets and U-Nets, make networks train better."
SOURCE = "Huang et al. 2017, section 1; Ronneberger et al. 2015, section 2"
TEXTBOOK = "Concatenation lets features be used again and gradients reach all layers."
NEEDS = Needs.runs

PAIRS = {family: [family, f"{family} plain"] for family in ("dense", "unet")}
ARMS = [arm for pair in PAIRS.values() for arm in pair]


def arm(case: Case) -> str | None:
    """Its family, with ``plain`` if it is the twin without skips."""
    arms = {Twin.none: case.arch, Twin.plain: f"{case.arch} plain"}
    return arms.get(case.settings.twin) if case.arch in PAIRS else None


def measure(cases: Sequence[Case], tell: Tell) -> list[Row]:
    """A row per run. Raises UsageError without both families and their twins."""
    own = {family: [case for case in cases if case.arch == family] for family in PAIRS}
    return [
        row for family, some in own.items() for row in sweeps.ends(arm, PAIRS[family], some, tell)
    ]


draw = partial(sweeps.drawn, "Concatenation, and the twins without", ARMS)


def conclude(rows: pd.DataFrame) -> Finding:
    """The twins against their families; the rule in the module's docstring."""
    depths = {family: sweeps.common(rows, pair) for family, pair in PAIRS.items()}
    less = {
        family: [
            sweeps.contrast(rows, (twin, depth), (family, depth)) for depth in depths[family][::-1]
        ]
        for family, (_, twin) in PAIRS.items()
    }
    deepest = [some[0] for some in less.values()]
    errors = ", ".join(sweeps.told(rows, pair, depths[family]) for family, pair in PAIRS.items())
    return sweeps.finding(
        rows,
        Verdict.of(all(sweeps.effects(deepest)), any(sweeps.none(deepest))),
        f"training error {errors}",
        [one for some in less.values() for one in some],
        conventions=[
            "DenseNets classify the digits; U-Nets segment blobs, their errors are of pixels",
            "the deepest of each family decides; twins: twin=plain",
        ],
    )
