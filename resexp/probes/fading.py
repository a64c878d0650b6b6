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

from dataclasses import replace
from functools import partial

import pandas as pd

from resexp.probes import Case, Finding, Needs, Verdict, sweeps
from resexp.settings import Arch, Merge, Twin

CLAIM = "A deep plain network trains well if it has skips first and loses them on the way."
SOURCE = "this project's question; arXiv 2506.14386 asks it of test errors"
TEXTBOOK = "Skips ease optimisation; whether a trained network still needs them is left open."
NEEDS = Needs.runs

PLAIN, FADING, RESIDUAL = ARMS = ["plain", "fading", "residual"]


def arm(case: Case) -> str | None:
    """Which of the three it is; only shortcuts that were gone before the last step have faded."""
    arch, settings = case.settings.arch, case.settings
    if arch.merge != FADING:
        return case.kind()
    gone = arch.options["fade_to"] < settings.steps and settings.twin is Twin.none
    return FADING if gone and replace(arch, merge=Merge.plain, options={}) == Arch() else None


measure = partial(sweeps.ends, arm, ARMS)
draw = partial(sweeps.drawn, "Without skips, with skips that fade, and with skips", ARMS)


def conclude(rows: pd.DataFrame) -> Finding:
    """What fading changes; the rule in the module's docstring."""
    deep = sweeps.common(rows, ARMS)[-1]
    plain, fading, residual = ((one, deep) for one in ARMS)
    gain, loss = sweeps.contrast(rows, plain, fading), sweeps.contrast(rows, fading, residual)
    (helps,), (harms,) = sweeps.effects([gain]), sweeps.effects([loss])
    (same,), (no_gain,) = sweeps.none([loss]), sweeps.none([gain])
    errors, tests = (sweeps.told(rows, ARMS, [deep], one) for one in (sweeps.ERROR, sweeps.TEST))
    return sweeps.finding(
        rows,
        Verdict.of(helps and same, harms or no_gain),
        f"training error {errors}; test error {tests}",
        [gain, loss, sweeps.contrast(rows, fading, residual, sweeps.TEST)],
        conventions=["shortcuts times a, which falls from 1 to 0 in the middle of training"],
    )
