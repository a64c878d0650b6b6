"""Gradients by layer: do they vanish, or explode, on their way from the loss to the first layers?

Five arms at each depth and seed: batch normalisation or none (a bias instead), plain or residual,
and plain without normalisation from Xavier's weights, the control that does vanish. For every
convolution l in forward order, g_l = |dL/dW_l| and r_l = g_l / |W_l|, norms of Frobenius (batch
normalisation makes W's scale arbitrary, so only r_l compares layers later in training); for every
block, a_l, the mean over images of |dL_n/dx_l| at its output, L_n the image's own loss.

Signs: log10 rho = log10 of mean g over the first three layers / mean g over the last three. Above 0
gradients grow towards the input (they explode), below 0 they shrink (they vanish). The slope is of
log10 a_l by layer counted from the input: below 0 is explosion.

The rule: the claim is of plain networks under the recipe, with batch normalisation, at step 0 and
the greatest depth. Mean log10 rho over seeds <= -1 and every seed below 0: supported. >= +1 and
every seed above 0 (they explode instead): not supported. Else inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import least_squares
from resexp.models.blocks import Block
from resexp.probes import Account, Case, Cell, Finding, Headline, Needs, Tell, Verdict
from resexp.probes.networks import (
    at_start,
    hooked,
    load,
    places,
    snapshots,
    some_images,
    trained,
    usual_depth,
)
from resexp.probes.rows import by_seed, decades, difference, mean, seeds_of, those, values
from resexp.settings import Arch, Init, Merge, Normalisation, Settings, Twin, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "In deep plain networks gradients vanish on their way to the first layers."
SOURCE = "common; He et al. 2015, section 4.1, doubt it with batch normalisation"
TEXTBOOK = "Every layer shrinks the gradient, so the first layers of a deep network hardly learn."
NEEDS = Needs.settings
USUAL = ["depth=20,56", "arch=plain,residual", "seed=0,1,2"]

IMAGES = 128
SEEDS = 3
EARLY = (0, 10, 100)  # steps; "end" comes from checkpoints
ENDS = 3  # layers at either end that rho compares
TWICE = math.log10(2)  # decades: less than a factor of two is no change

#: Name of an arm: merge, normalisation, initial weights (None: the recipe's).
ARMS: dict[str, tuple[Merge, Normalisation, Init | None]] = {
    "plain": (Merge.plain, Normalisation.batch, None),
    "residual": (Merge.residual, Normalisation.batch, None),
    "plain no norm": (Merge.plain, Normalisation.none, None),
    "residual no norm": (Merge.residual, Normalisation.none, None),
    "plain no norm xavier": (Merge.plain, Normalisation.none, Init.xavier),
}


@dataclass(slots=True)
class Layers:
    """Gradient norms of one network on one batch, in forward order."""

    loss: float
    g: list[float]  # of each convolution's weights
    r: list[float]  # the same over the norm of the weights
    a: list[float]  # at each block's output
    block_ends: list[int]  # convolutions up to each block's end


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """Every arm at step 0 and every depth; at later steps at the first depth of at least 20."""
    bases = chosen(cases)
    watched = usual_depth(depth for depth, _ in bases)
    rows: list[dict[str, Cell]] = []
    work = list(product(bases, ARMS))
    for done, ((depth, seed), name) in enumerate(work):
        tell(done, len(work), f"{name} {depth}, seed {seed}")
        settings = arm(bases[depth, seed].settings, name)
        data = load(settings)
        batch = some_images(settings, data, IMAGES)
        if depth == watched:
            steps = [step for step in EARLY if step <= settings.steps]
            for step, network in snapshots(settings, data, steps):
                rows += tidy(name, depth, seed, str(step), layers(network, *batch))
        else:
            rows += tidy(name, depth, seed, "0", layers(at_start(settings, data), *batch))
    return rows + at_the_end(cases, set(bases))


def chosen(cases: Sequence[Case]) -> dict[tuple[int, int], Case]:
    """A case for each depth and seed, to make the arms from; the first SEEDS seeds."""

    def fits(case: Case) -> bool:
        norm = case.settings.arch.norm
        return case.arch in ("plain", "residual") and norm is Normalisation.batch

    found = places(cases, fits, SEEDS)
    if not found:
        raise UsageError(
            "gradients starts from plain and residual networks with batch normalisation. "
            "Choose arch=plain,residual."
        )
    return {place[1:]: case for place, case in reversed(found.items())}


def arm(base: Settings, name: str) -> Settings:
    """``base`` with the merge, normalisation and initial weights of an arm."""
    merge, norm, init = ARMS[name]
    old = base.arch
    arch = Arch(merge=merge, norm=norm, order=old.order, unit=old.unit, shortcut=old.shortcut)
    return replace(base, arch=arch, twin=Twin.none, init=init or base.init)


def layers(network: nn.Module, images: Tensor, labels: Tensor) -> Layers:
    """Gradient norms in training mode: normalisation by the batch's own statistics."""
    weights: list[Tensor] = []
    outputs: list[Tensor] = []
    ends: list[int] = []

    def passed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            weights.append(module.weight)
        else:
            outputs.append(output)
            ends.append(len(weights))

    modules = [module for module in network.modules() if isinstance(module, Block | nn.Conv2d)]
    with hooked(modules, passed):
        loss = cross_entropy(network.train()(images), labels)
    gradients = torch.autograd.grad(loss, [*weights, *outputs])
    g = [gradient.norm().item() for gradient in gradients[: len(weights)]]
    r = [norm / weight.norm().item() for norm, weight in zip(g, weights, strict=True)]
    of_blocks = gradients[len(weights) :]
    a = [len(images) * one.flatten(1).norm(dim=1).mean().item() for one in of_blocks]
    return Layers(loss.item(), g, r, a, ends)


def tidy(name: str, depth: int, seed: int, step: str, found: Layers) -> list[dict[str, Cell]]:
    """A row per convolution; ``a`` stands with the last convolution of its block."""
    at_end = dict(zip(found.block_ends, found.a, strict=True))
    place: dict[str, Cell] = {"arm": name, "depth": depth, "seed": seed, "step": step}
    return [
        {**place, "layer": layer, "loss": found.loss, "g": g, "r": r, "a": at_end.get(layer)}
        for layer, (g, r) in enumerate(zip(found.g, found.r, strict=True), start=1)
    ]


def at_the_end(cases: Sequence[Case], bases: set[tuple[int, int]]) -> list[dict[str, Cell]]:
    """The same of networks as their runs left them, for arms that were trained."""
    rows: list[dict[str, Cell]] = []
    for case in cases:
        place = case.settings.depth, case.settings.seed
        if case.checkpoint is None or place not in bases:
            continue
        if case.arch in ("plain", "residual") and case.settings == arm(case.settings, case.arch):
            data = load(case.settings)
            batch = some_images(case.settings, data, IMAGES)
            rows += tidy(case.arch, *place, "end", layers(trained(case, data), *batch))
    return rows


# --- from the rows


def tilt(norms: pd.Series[float]) -> float:
    """log10 rho: the first layers' mean over the last layers', of one network in forward order."""
    first, last = norms.iloc[:ENDS].sum(), norms.iloc[-ENDS:].sum()
    return math.log10(first / last) if first > 0 and 0 < last < math.inf else math.nan


def tilts(
    rows: pd.DataFrame, column: str, arm: str, depth: int, step: str = "0"
) -> pd.Series[float]:
    """``tilt`` by seed."""
    return by_seed(rows, column, tilt, "layer", arm=arm, depth=depth, step=step)


def slopes(rows: pd.DataFrame) -> list[float]:
    """Least squares of log10 a by layer, per layer, of each seed."""
    some = rows[(rows["a"] > 0) & (rows["a"] < math.inf)]
    return [
        least_squares(list(zip(one["layer"], np.log10(one["a"]), strict=True)))
        for _, one in some.groupby("seed")
    ]


def figures(rows: pd.DataFrame, depths: Sequence[int]) -> dict[str, float]:
    """Means over seeds by name."""
    numbers = {}
    for name, depth in product(ARMS, depths):
        here, tilted = those(rows, arm=name, depth=depth, step="0"), tilts(rows, "g", name, depth)
        numbers[f"log10 rho, {name} {depth}, step 0"] = mean(tilted)
        numbers[f"slope of log10 a per layer, {name} {depth}, step 0"] = mean(slopes(here))
    watched = usual_depth(depths)
    for name, step in product(ARMS, (*map(str, EARLY[1:]), "end")):
        if len(found := tilts(rows, "r", name, watched, step)):
            numbers[f"log10 rho of r, {name} {watched}, step {step}"] = mean(found)
    for depth in depths:
        key = f"g of the first layer, plain no norm xavier {depth}, step 0"
        numbers[key] = mean(first_of_control(rows, depth))
    return numbers


def first_of_control(rows: pd.DataFrame, depth: int) -> pd.Series[float]:
    """g of the control's first layer, by seed."""
    return values(rows, "g", arm="plain no norm xavier", depth=depth, step="0", layer=1)


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    rows = rows.assign(step=rows["step"].astype(str))
    depths = sorted(set(rows["depth"]))
    deep = depths[-1]
    numbers = figures(rows, depths)
    plain, residual = (tilts(rows, "g", arm, deep) for arm in ("plain", "residual"))
    xavier = numbers[f"slope of log10 a per layer, plain no norm xavier {deep}, step 0"]
    control = difference(*(decades(first_of_control(rows, at)) for at in (deep, depths[0])))
    trained = tilts(rows, "r", "plain", deep, "end")
    told = {
        f"plain-{deep} at the start, first over last layers": plain,
        f"residual-{deep}": residual,
        f"plain-{deep} trained, in units of the weights": trained,
        f"control, no normalisation, Xavier's weights, depth {deep} over {depths[0]}": control,
    }
    return Finding(
        judge(list(plain)),
        f"at step 0 gradients of plain-{deep} {word(mean(plain))} towards the input, first over "
        f"last layers 10^{mean(plain):+.1f} (residual 10^{mean(residual):+.1f}); without "
        f"normalisation and from Xavier's weights they {word(-xavier * deep)}, an image's by "
        f"10^{-xavier:+.2f} a layer.",
        numbers=numbers,
        conventions=[
            "g: norm of a convolution's weight gradient; r: g over the weights' norm; a: norm "
            "of an image's loss gradient at a block's output, mean over images; losses in nats",
            f"log10 rho: first {ENDS} layers over last {ENDS}; above 0 gradients explode towards "
            "the input, below 0 they vanish; slope by layer counted from the input has the "
            "opposite sign",
            f"{IMAGES} training images, true labels, one batch for all, training-mode statistics; "
            f"{seeds_of(rows)}",
            f"steps after 0 at depth {usual_depth(depths)} only; retrained (same batches and "
            "weights as the run's), the end from checkpoints",
        ],
        headlines=[Headline(what, some, "decades", "+.1f") for what, some in told.items()],
        account=account(*map(mean, told.values())) if len(trained) and len(depths) > 1 else None,
    )


def account(plain: float, residual: float, trained: float, control: float) -> tuple[Account, str]:
    """How right the textbook is, by mean decades from the last layers to the first."""
    return (
        Account.right if plain < -TWICE else Account.contradicted,
        f"with batch normalisation the gradients of plain networks {word(plain)} towards the "
        f"input at the start, by {plain:+.1f} decades from the last layers to the first (residual "
        f"{residual:+.1f}); of trained ones, in units of the weights, they {word(trained)}, "
        f"by {trained:+.1f}. Without normalisation and from Xavier's weights the first layer's "
        f"{word(control)} with depth, by {control:+.1f} decades.",
    )


def judge(plain: Sequence[float]) -> Verdict:
    """The rule in the module's docstring, on log10 rho of each seed."""
    if mean(plain) <= -1 and max(plain) < 0:
        return Verdict.supported
    if mean(plain) >= 1 and min(plain) > 0:
        return Verdict.not_supported
    return Verdict.inconclusive


def word(log: float) -> str:
    """What gradients do, by the sign of log10 rho; within a factor of two they do neither."""
    if abs(log) < TWICE:
        return "neither grow nor shrink"
    return "explode" if log > 0 else "vanish"


def draw(rows: pd.DataFrame) -> Figure:
    """At step 0 by layer, the deepest networks: weights, activations. Then the tilt by step."""
    from resexp.probes.drawing import COLOURS, GREY, finish, means, panels

    deep, watched = rows["depth"].max(), usual_depth(set(rows["depth"]))
    rows = rows.assign(step=rows["step"].astype(str))
    start = those(rows, depth=deep, step="0")
    figure, (weights, activations, training) = panels(3, 72)
    dashed, dotted = (0, (4, 2)), (0, (1, 1.4))  # without normalisation; from Xavier's weights
    strokes = dict(zip(ARMS, ("-", "-", dashed, dashed, dotted), strict=True))
    styles = {
        arm: {"color": COLOURS[arm.split()[0]], "linestyle": stroke}
        for arm, stroke in strokes.items()
    }
    for arm, style in styles.items():
        means(weights, those(start, arm=arm), "layer", "g", log=True, linewidth=1.3, **style)
        means(activations, those(start, arm=arm), "layer", "a", log=True, linewidth=1.3, **style)
        steps = those(rows, arm=arm, depth=watched)["step"].unique()
        tilted = [tilts(rows, "r", arm, watched, step).mean() for step in steps]
        training.plot(steps, tilted, linewidth=1.3, marker="o", ms=3, **style)
    for axis, what in ((weights, "the weights"), (activations, "activations")):
        axis.set_title(f"depth {deep}, step 0", loc="left", fontweight="bold")
        axis.set(xlabel="convolution, from the input", ylabel=f"gradient of {what} (norm)")
    training.set_title(f"depth {watched}, training", loc="left", fontweight="bold")
    training.axhline(0, color=GREY, linewidth=0.6)
    ylabel = f"log10 of gradient over weights,\nfirst {ENDS} over last {ENDS} layers"
    training.set(xlabel="step", ylabel=ylabel)
    return finish(
        figure,
        f"Loss gradients by layer, {rows['seed'].nunique()} seeds; batch normalised unless no "
        "norm; right, above 0: larger near the input",
        styles,
    )
