"""Which stages' skips matter? Networks with skips in some stages, in all and in none.

On the same batches from the same initial weights, at the greatest depth there is, after the whole
recipe; from checkpoints as far as there are (of arch.skip_stages too), else retrained. The number
is the clean training error in percent: all training images, evaluation mode.

The rule, on differences in points paired by seed, five seeds or more, Student's t: an arm suffices
if it is non-inferior to skips in all stages, less than 1 point worse at 5 % one-sided. Stages 1 and
2 are tested first, for a trial on other seeds named them; the other arms, p by Holm, only if these
suffice. One suffices: not supported. Every one, and none, is worse by more than 1
point, each at 5 % one-sided: supported. Else inconclusive, as where skips in all stages do not fit
(clean training error of 10 % or more) or none are not worse by more than 1 point.

It tells which networks are trained by so many steps at this rate, not which could be in others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from resexp.analysis.statistics import Interval, holm, paired_t, t_p
from resexp.analysis.verdict.rule import LEAST_RISE, LEVEL
from resexp.probes import Case, Cell, Finding, Headline, Needs, Tell, Verdict
from resexp.probes.networks import first_seeds, load, scores, snapshots, trained, with_runs
from resexp.probes.rows import FAILED, difference, mean, seeds_of, those, values
from resexp.settings import Arch, Merge, Settings, Twin, UsageError
from resexp.train.evaluate import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "A deep network needs skips in all of its stages: those of one or two do not train it."
SOURCE = "this project's question; He et al. 2015, section 3.3, give every stage skips"
TEXTBOOK = "Nothing about single stages: all have skips."
NEEDS = Needs.settings
USUAL = ["depth=56", "arch=residual", "seed=0,1,2,3,4"]

SEEDS = 5
MARGIN = LEAST_RISE  # points of clean training error
ARMS: dict[str, list[int]] = {
    "none": [],
    "1": [1],
    "2": [2],
    "3": [3],
    "1+2": [1, 2],
    "1+3": [1, 3],
    "2+3": [2, 3],
    "all": [1, 2, 3],
}
PARTIAL = ["1+2", "1+3", "2+3", "1", "2", "3"]  # the first is tested first


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """One row per arm and seed."""
    fit = [
        case
        for case in cases
        if replace(case.settings.arch, skip_stages=None) in (Arch(), Arch(merge=Merge.residual))
        and case.settings.twin is Twin.none
    ]
    if not fit:
        raise UsageError("where starts from plain or residual networks. Choose arch=residual.")
    bases = first_seeds(fit, max(case.settings.depth for case in fit), SEEDS)
    wanted = [Case(arm, settings_of(arm, base.settings)) for arm in ARMS for base in bases]
    rows: list[dict[str, Cell]] = []
    for case in with_runs(wanted, cases):
        tell(len(rows), len(wanted), f"skips in {case.arch}, seed {case.settings.seed}")
        rows.append(row_of(case))
    return rows


def settings_of(arm: str, base: Settings) -> Settings:
    """The base with skips in some of its stages."""
    stages = ARMS[arm] if arm in PARTIAL else None
    arch = Arch(merge=Merge.residual, skip_stages=stages) if ARMS[arm] else Arch()
    return replace(base, arch=arch)


def row_of(case: Case) -> dict[str, Cell]:
    """One network after its last step: nan if its loss became that before."""
    settings, data, train = case.settings, load(case.settings), Score(math.nan, math.nan)
    if case.run is not None:
        train, _ = scores(settings, trained(case, data))
    else:
        for _, network in snapshots(settings, data, [settings.steps]):
            train, _ = scores(settings, network)
    return {
        "arm": case.arch,
        "depth": settings.depth,
        "seed": settings.seed,
        "step": settings.steps,
        "clean_error_percent": train.error,
        "clean_loss": train.loss,
        "reused": int(case.run is not None),
    }


def in_order(tests: Sequence[float]) -> list[float]:
    """p of the arms of PARTIAL: the first as it is, the others by Holm and no smaller than that."""
    first, *others = tests
    return [first, *(max(first, p) for p in holm(others))]


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    errors = {arm: values(rows, "clean_error_percent", arm=arm) for arm in ARMS}
    above = {arm: difference(some, errors["all"]) for arm, some in errors.items() if arm != "all"}
    points = {arm: paired_t(list(some)) for arm, some in above.items()}
    better = [t_p(paired_t(list(-above[arm])), -MARGIN) for arm in PARTIAL]
    p = dict(zip(PARTIAL, in_order(better), strict=True))
    numbers = {f"percent, {arm}": mean(some) for arm, some in errors.items()}
    for arm, one in points.items():
        numbers |= {
            f"points above all, {arm}": one.mean,
            f"points above all, {arm}, lower bound": one.lower,
            f"points above all, {arm}, upper bound": one.upper,
        }
    numbers |= {f"p that it suffices, {arm}": one for arm, one in p.items()}
    said = ", ".join(f"{mean(some):.1f} ({arm})" for arm, some in errors.items())
    enough = " and ".join(arm for arm in PARTIAL if p[arm] < LEVEL) or "none"
    single, pair = (
        min(some, key=lambda arm: (math.isnan(points[arm].mean), points[arm].mean))
        for some in (PARTIAL[3:], PARTIAL[:3])
    )
    told = {"no skips": "none", f"stage {single} alone": single, f"stages {pair}": pair}
    return Finding(
        judge(points, p, float(errors["all"].max(skipna=False))),
        f"after {rows['step'].iloc[0]} steps at depth {rows['depth'].iloc[0]} the clean training "
        f"error is, by the stages with skips, in percent {said}; shown to suffice (less than "
        f"{MARGIN:g} point above all): {enough}. That is of so many steps at this rate: others may "
        "train with more.",
        numbers=numbers,
        conventions=[
            f"points: above the clean training error with skips in all stages; {seeds_of(rows)}; "
            f"{rows['reused'].sum()} of {len(rows)} networks from checkpoints of their runs",
        ],
        headlines=[
            Headline(f"clean training error, {what}, above all", above[arm], "points", "+.1f")
            for what, arm in told.items()
        ],
    )


def judge(points: Mapping[str, Interval], p: Mapping[str, float], fitted: float) -> Verdict:
    """The rule: points above all stages, p that partial arms suffice, greatest error of all."""
    matters = fitted < FAILED and points["none"].lower > MARGIN
    if not matters or any(one.n < SEEDS for one in points.values()):
        return Verdict.inconclusive
    if any(one < LEVEL for one in p.values()):
        return Verdict.not_supported
    if all(points[arm].lower > MARGIN for arm in PARTIAL):
        return Verdict.supported
    return Verdict.inconclusive


def draw(rows: pd.DataFrame) -> Figure:
    """Clean training error by arm: a dot per seed and a line at the mean."""
    from resexp.probes.drawing import COLUMN, GREY, PLAIN, RESIDUAL, dots, finish, panels

    figure, axis = panels(1, 66, COLUMN)
    for at, arm in enumerate(ARMS):
        errors = those(rows, arm=arm)["clean_error_percent"]
        dots(axis, at, errors, PLAIN if arm == "none" else RESIDUAL)
    all_stages = those(rows, arm="all")["clean_error_percent"].mean()
    axis.axhline(all_stages + MARGIN, color=GREY, linewidth=0.6)
    axis.set_yscale("symlog", linthresh=MARGIN)
    axis.set_yticks(ticks := [0, 1, 10, 100], [str(tick) for tick in ticks])
    axis.set_xticks(range(len(ARMS)), [*ARMS])
    axis.set(xlabel="stages with skips", ylabel="clean training error, percent", ylim=(-0.2, 100))
    first, seeds = rows.iloc[0], rows["seed"].nunique()
    title = f"Where skips are: depth {first.depth}, {first.step} steps, {seeds} seeds"
    return finish(figure, title)
