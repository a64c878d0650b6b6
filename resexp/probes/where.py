"""Which stage's skips matter? Networks with skips in one stage alone, in all and in none.

On the same batches from the same initial weights. Where runs with skips in single stages
(arch.skip_stages) kept their checkpoints, all arms are compared at the last step, from checkpoints
as far as there are; else all are retrained for the first STEPS steps of the recipe. Then the
loss on training images, in training mode: normalisation has their statistics.
``gain`` of an arm: log10 loss without skips less its own, in decades, paired by seed; above 0 its
skips help. ``share``: gain over that of skips in all stages, which is 1; shares of the stages need
not add up to 1.

The rule, on one-sided 95 % bounds of paired means over at least three seeds (Student's t): log10
loss with skips in all stages below that of every single stage: supported. One single stage's below
that of all stages: not supported. Else inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import Interval, paired_t
from resexp.probes import Case, Cell, Finding, Headline, Needs, Tell, Verdict
from resexp.probes.networks import first_seeds, load, snapshots, some_images, trained, usual_depth
from resexp.probes.rows import decades, difference, mean, seeds_of, those, values
from resexp.settings import Arch, Merge, Settings, Twin, UsageError, as_dict, digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "No one stage's skips do the work: a network needs them in all of its stages."
SOURCE = "this project's question; He et al. 2015, section 3.3, give every stage skips"
TEXTBOOK = "Nothing about single stages: all have skips."
NEEDS = Needs.settings
USUAL = ["depth=20", "arch=residual", "seed=0,1,2"]

IMAGES = 512
SEEDS = 3
STEPS = 50
ARMS: dict[str, list[int]] = {
    "none": [],
    "stage 1": [1],
    "stage 2": [2],
    "stage 3": [3],
    "all": [1, 2, 3],
}
SINGLE = ("stage 1", "stage 2", "stage 3")


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """One row per arm and seed, at the smallest depth >= 20, or else the greatest."""
    fit = [
        case
        for case in cases
        if replace(case.settings.arch, skip_stages=None) in (Arch(), Arch(merge=Merge.residual))
        and case.settings.twin is Twin.none
    ]
    if not fit:
        raise UsageError("where starts from plain or residual networks. Choose arch=residual.")
    bases = first_seeds(fit, usual_depth(case.settings.depth for case in fit), SEEDS)
    fresh = [Case(arm, settings_of(arm, base.settings)) for arm in ARMS for base in bases]
    kept = {digest(as_dict(case.settings)): case for case in cases if case.checkpoint is not None}
    found = [kept.get(digest(as_dict(case.settings))) for case in fresh]
    reuse = any(
        run is not None and case.arch in SINGLE for run, case in zip(found, fresh, strict=True)
    )
    rows: list[dict[str, Cell]] = []
    for done, (new, old) in enumerate(zip(fresh, found, strict=True)):
        tell(done, len(fresh), f"skips in {new.arch}, seed {new.settings.seed}")
        steps = new.settings.steps if reuse else min(STEPS, new.settings.steps)
        rows.append(row_of(new.arch, old if reuse and old else new, steps))
    return rows


def settings_of(arm: str, base: Settings) -> Settings:
    """The base with skips in some of its stages."""
    stages = ARMS[arm] if arm in SINGLE else None
    arch = Arch(merge=Merge.residual, skip_stages=stages) if ARMS[arm] else Arch()
    return replace(base, arch=arch)


def row_of(arm: str, case: Case, steps: int) -> dict[str, Cell]:
    """One network after ``steps``: nan if its loss became that before."""
    settings, data = case.settings, load(case.settings)
    images, nats = some_images(settings, data, IMAGES), math.nan
    if case.run is not None:
        nats = loss(trained(case, data), *images)
    else:
        for _, network in snapshots(settings, data, [steps]):
            nats = loss(network, *images)
    return {
        "arm": arm,
        "depth": settings.depth,
        "seed": settings.seed,
        "step": steps,
        "loss": nats,
        "reused": int(case.run is not None),
    }


@torch.no_grad()
def loss(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats, normalised by these images' own statistics."""
    return cross_entropy(network.train()(images).double(), labels).item()


def gains(rows: pd.DataFrame, arm: str, than: str) -> pd.Series[float]:
    """log10 loss of ``than`` less that of ``arm``, by seed: above 0 if ``arm`` is better."""
    return difference(*(decades(values(rows, "loss", arm=one)) for one in (than, arm)))


def conclude(rows: pd.DataFrame) -> Finding:
    """Gains, their shares of that of all stages, and the rule in the module's docstring."""
    gain = {arm: mean(gains(rows, arm, "none")) for arm in ARMS if arm != "none"}
    against = {arm: paired_t(list(gains(rows, "all", arm))) for arm in SINGLE}
    numbers = {f"gain in decades, {arm}": one for arm, one in gain.items()}
    for arm, one in against.items():
        numbers |= {
            f"share of the gain, {arm}": gain[arm] / gain["all"],
            f"decades, all better than {arm}": one.mean,
            f"decades, all better than {arm}, lower bound": one.lower,
            f"decades, all better than {arm}, upper bound": one.upper,
        }
    alone = ", ".join(f"{gain[arm]:+.2f} ({arm})" for arm in SINGLE)
    step, depth, best = rows["step"][0], rows["depth"][0], max(SINGLE, key=lambda arm: gain[arm])
    return Finding(
        judge(list(against.values())),
        f"after {step} steps at depth {depth} skips in all stages lower the training loss by "
        f"{gain['all']:.2f} decades, in one alone by {alone}.",
        numbers=numbers,
        conventions=[
            "gain: log10 loss without skips less log10 loss with them, means paired by seed; above "
            "0 the skips help; one-sided 95 % bounds",
            f"after {step} steps of the recipe, {rows['reused'].sum()} of {len(rows)} networks "
            f"from checkpoints of their runs, the others retrained; loss in nats on {IMAGES} "
            "training images at most in one batch, whose own statistics are used; "
            f"{seeds_of(rows)}",
            "an early loss says what trains sooner, not what ends lower",
        ],
        headlines=[
            Headline(what, gains(rows, than, "all"), "decades", "+.2f")
            for what, than in (
                ("log10 loss, skips in all stages less none", "none"),
                (f"all less the best alone, {best}", best),
            )
        ],
    )


def judge(against: Sequence[Interval]) -> Verdict:
    """The rule in the module's docstring, on decades by which all stages beat each one alone."""
    if any(one.n < SEEDS for one in against):
        return Verdict.inconclusive
    if all(one.lower > 0 for one in against):
        return Verdict.supported
    if any(one.upper < 0 for one in against):
        return Verdict.not_supported
    return Verdict.inconclusive


def draw(rows: pd.DataFrame) -> Figure:
    """Loss by arm: a dot per seed and a line at the mean."""
    from resexp.probes.drawing import COLUMN, PLAIN, RESIDUAL, dots, finish, panels

    figure, axis = panels(1, 66, COLUMN)
    for at, arm in enumerate(ARMS):
        dots(axis, at, those(rows, arm=arm)["loss"], PLAIN if arm == "none" else RESIDUAL)
    axis.set_xticks(range(len(ARMS)), [*ARMS])
    label = f"training loss after {rows['step'][0]} steps, nats"
    axis.set(xlabel="stages with skips", ylabel=label, yscale="log")
    seeds = rows["seed"].nunique()
    return finish(figure, f"Where skips are, depth {rows['depth'][0]}, {seeds} seeds")
