"""Fading: are skips needed to train a deep network, or to compute with?

Plain networks, residual ones, and residual ones whose shortcuts fade to nothing while they train
and that are trained on without any; the deepest depth that has all three. Contrasts: the clean
training error of the plain network less that of the fading one, and the fading one's less the
residual one's; and, told beside them, the test errors of the last two: He et al. say skips help
optimisation alone, arXiv 2506.14386 that networks of variable depth also generalise better.

The rule (effect and none: resexp.probes.sweeps): the first an effect and the second none:
supported. The second an effect, or the first none: not supported. Else inconclusive. Written
before any network of it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from resexp.probes import Case, Cell, Finding, Needs, Tell
from resexp.probes.sweeps import (
    TEST,
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

CLAIM = "A deep plain network trains well if it has skips first and loses them on the way."
SOURCE = "this project's question; arXiv 2506.14386 asks it of test errors"
TEXTBOOK = "Skips ease optimisation; whether a trained network still needs them is left open."
NEEDS = Needs.runs
USUAL = ["depth=56", "arch=plain,fading,residual"]

PLAIN, FADING, RESIDUAL = ARMS = ["plain", "fading", "residual"]


def arm(case: Case) -> str | None:
    """Which of the three it is; only shortcuts that were gone before the last step have faded."""
    arch, settings = case.settings.arch, case.settings
    if settings.twin is not Twin.none:
        return None
    if arch.merge == FADING:
        gone = arch.options["fade_to"] < settings.steps
        return FADING if gone and replace(arch, merge=Merge.plain, options={}) == Arch() else None
    known = {PLAIN: Arch(), RESIDUAL: Arch(merge=Merge.residual)}
    return next((name for name, one in known.items() if one == arch), None)


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """A row per run. Raises UsageError without all three networks at one depth."""
    return ends("fading", cases, arm, ARMS, tell)


def conclude(rows: pd.DataFrame) -> Finding:
    """What fading changes; the rule in the module's docstring."""
    deep = common(rows, ARMS)[-1]
    plain, fading, residual = ((one, deep) for one in ARMS)
    gain, loss = contrast(rows, plain, fading), contrast(rows, fading, residual)
    (helps,), (harms,) = effects([gain]), effects([loss])
    (same,), (no_gain,) = none([loss]), none([gain])
    networks = [plain, fading, residual]
    return finding(
        rows,
        verdict(helps and same, harms or no_gain),
        f"training error {told(rows, networks)}; test error {told(rows, networks, TEST)}",
        [gain, loss, contrast(rows, fading, residual, TEST)],
        conventions=["shortcuts times a, which falls from 1 to 0 in the middle of training"],
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Both errors of the three."""
    return drawn(rows, "Without skips, with skips that fade, and with skips", ARMS)
