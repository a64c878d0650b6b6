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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd

from resexp.analysis.statistics import Interval, holm, paired_t, t_p
from resexp.analysis.verdict.rule import LEAST_RISE, LEVEL
from resexp.probes import Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import FAILED, bounds, difference, mean, seeds_of, those, values
from resexp.settings import Arch, Merge, Settings

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


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """One row per arm and seed; nan if its loss became that before its last step."""
    refusal = "where starts from plain or residual networks. Choose arch=residual."
    fit = nets.chosen(cases, lambda case: case.kind("skip_stages"), refusal)
    bases = nets.first_seeds(fit, max(case.depth for case in fit), SEEDS)
    wanted = [Case(arm, settings_of(arm, base.settings)) for arm, base in product(ARMS, bases)]
    for case in tell(nets.with_runs(wanted, cases)):
        scores = nets.scores(case.settings, nets.ended(case))
        yield case.place("arm") | {
            "step": case.settings.steps,
            "clean_error_percent": scores["train_error_percent"],
            "clean_loss": scores["train_loss"],
            "reused": int(case.run is not None),
        }


def settings_of(arm: str, base: Settings) -> Settings:
    """The base with skips in some of its stages."""
    stages = ARMS[arm] if arm in PARTIAL else None
    arch = Arch(merge=Merge.residual, skip_stages=stages) if ARMS[arm] else Arch()
    return replace(base, arch=arch)


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    errors = {arm: values(rows, "clean_error_percent", arm=arm) for arm in ARMS}
    above = {arm: difference(some, errors["all"]) for arm, some in errors.items() if arm != "all"}
    points = {arm: paired_t(list(some)) for arm, some in above.items()}
    first, *others = (t_p(paired_t(list(-above[arm])), -MARGIN) for arm in PARTIAL)
    in_order = [first, *(max(first, one) for one in holm(others))]  # none smaller than the first
    p = dict(zip(PARTIAL, in_order, strict=True))
    numbers = {f"percent, {arm}": mean(some) for arm, some in errors.items()}
    for arm, one in points.items():
        numbers |= bounds(f"points above all, {arm}", one)
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
            f"{rows['reused'].sum()} of {len(rows)} networks from checkpoints of their runs"
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
    suffices = any(one < LEVEL for one in p.values())
    worse = all(points[arm].lower > MARGIN for arm in PARTIAL)
    return Verdict.of(worse and not suffices, suffices)


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
