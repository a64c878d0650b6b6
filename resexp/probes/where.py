"""Which stage's skips matter? Networks with skips in one stage alone, in all and in none.

On the same batches from the same initial weights. Where runs with skips in single stages
(arch.skip_stages) kept their checkpoints, all arms are compared at the last step, from checkpoints
as far as there are; else all are trained anew for the first STEPS steps of the recipe. Then the
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

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import Interval, paired_t
from resexp.probes import (
    Case,
    Cell,
    Finding,
    Needs,
    Tell,
    Verdict,
    load,
    snapshots,
    some_images,
    trained,
)
from resexp.settings import Arch, Merge, Settings, Twin, UsageError, as_dict, digest

CLAIM = "No one stage's skips do the work: a network needs them in all of its stages."
SOURCE = "this project's question; He et al. 2015, section 3.3, give every stage skips"
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
SINGLE = ("stage 1", "stage 2", "stage 3")  # arms of runs that the probe can use


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Every arm and seed at the first depth of at least 20, or else the deepest."""
    fit = [
        case
        for case in cases
        if replace(case.settings.arch, skip_stages=None) in (Arch(), Arch(merge=Merge.residual))
        and case.settings.twin is Twin.none
    ]
    if not fit:
        raise UsageError("where starts from plain or residual networks. Choose arch=residual.")
    depths = sorted({case.settings.depth for case in fit})
    depth = next((one for one in depths if one >= 20), depths[-1])
    bases = {
        case.settings.seed: case.settings for case in reversed(fit) if case.settings.depth == depth
    }
    seeds = sorted(bases)[:SEEDS]
    kept = {digest(as_dict(case.settings)): case for case in cases if case.checkpoint is not None}
    networks = {
        (arm, seed): Case(arm, settings_of(arm, bases[seed])) for arm in ARMS for seed in seeds
    }
    known = {
        place: kept[same]
        for place, case in networks.items()
        if (same := digest(as_dict(case.settings))) in kept
    }
    reuse = any(arm in SINGLE for arm, _ in known)
    networks |= known if reuse else {}
    rows: list[dict[str, Cell]] = []
    for done, ((arm, seed), case) in enumerate(networks.items()):
        tell(done, len(networks), f"skips in {arm}, seed {seed}")
        steps = case.settings.steps if reuse else min(STEPS, case.settings.steps)
        rows.append(row_of(arm, case, steps))
    return concluded(rows)


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


def gains(rows: Sequence[dict[str, Cell]], arm: str, than: str) -> list[float]:
    """log10 loss of ``than`` less that of ``arm``, by seed: above 0 if ``arm`` is better."""
    losses = {(row["arm"], row["seed"]): float(row["loss"] or math.nan) for row in rows}
    return [
        math.log10(losses[than, seed] / losses[arm, seed])
        for seed in sorted({int(row["seed"] or 0) for row in rows})
    ]


def concluded(rows: list[dict[str, Cell]]) -> Finding:
    """The finding from all rows."""
    numbers: dict[str, float] = {}
    against = {arm: paired_t(gains(rows, "all", arm)) for arm in SINGLE}
    for arm in ARMS:
        if arm != "none":
            some = gains(rows, arm, "none")
            numbers[f"gain in decades, {arm}"] = sum(some) / len(some)
    whole = numbers["gain in decades, all"]
    for arm in SINGLE:
        numbers[f"share of the gain, {arm}"] = numbers[f"gain in decades, {arm}"] / whole
        numbers[f"decades, all better than {arm}"] = against[arm].mean
        numbers[f"decades, all better than {arm}, lower bound"] = against[arm].lower
        numbers[f"decades, all better than {arm}, upper bound"] = against[arm].upper
    told = ", ".join(f"{numbers[f'gain in decades, {arm}']:+.2f} ({arm})" for arm in SINGLE)
    seeds = sorted({int(row["seed"] or 0) for row in rows})
    reused = sum(int(row["reused"] or 0) for row in rows)
    return Finding(
        judge(list(against.values())),
        f"after {rows[0]['step']} steps at depth {rows[0]['depth']} skips in all stages lower the "
        f"training loss by {whole:.2f} decades, in one alone by {told}.",
        rows,
        numbers,
        [
            "gain: log10 loss without skips less log10 loss with them, means paired by seed; above "
            "0 the skips help; one-sided 95 % bounds",
            f"after {rows[0]['step']} steps of the recipe, {reused} of {len(rows)} networks from "
            "checkpoints of their runs, the others trained anew; loss in nats on {IMAGES} training "
            "images at most in one batch, whose own statistics are used; seeds "
            f"{', '.join(map(str, seeds))}",
            "an early loss says what trains sooner, not what ends lower",
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
