"""Gradients by layer: do they vanish, or explode, on their way from the loss to the first layers?

Five arms at each depth and seed: batch normalisation or none (a bias instead), plain or residual,
and plain without normalisation from Xavier's weights, the control that does vanish. For every
convolution l in forward order, g_l = |dL/dW_l| and r_l = g_l / |W_l|, norms of Frobenius (batch
normalisation makes W's scale arbitrary, so only r_l compares layers later in training); for every
block, a_l, the mean over images of |dL_n/dx_l| at its output, L_n the image's own loss in nats.

Signs: log10 rho = log10 of mean g over the first three layers / mean g over the last three. Above 0
gradients grow towards the input (they explode), below 0 they shrink (they vanish). The slope is of
log10 a_l by layer counted from the input: below 0 is explosion.

The rule: the claim is of plain networks under the recipe, with batch normalisation, at step 0 and
the greatest depth: of the architecture, for nothing was trained. Mean log10 rho over seeds <= -1
and every seed below 0: supported. >= +1 and every seed above 0 (they explode instead): not
supported. Else, or of fewer than three seeds, inconclusive.

Networks as their runs left them are told of, by rho of r, and decide nothing. One that answers more
than 10 % of the images wrong failed to train: what it shows may be its failure. There r has a
second reason to be small, |W|: its growth in the first three layers since step 0 is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import least_squares
from resexp.models.blocks import Block
from resexp.probes import Account, Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import (
    ENOUGH,
    FAILED,
    by_seed,
    decades,
    difference,
    mean,
    seeds_of,
    those,
    values,
)
from resexp.settings import Arch, Init, Merge, Normalisation, Settings, Twin

CLAIM = "In deep plain networks at their start gradients vanish on their way to the first layers."
SOURCE = "common; He et al. 2015, section 4.1, doubt it with batch normalisation"
TEXTBOOK = "Every layer shrinks the gradient, so the first layers of a deep network hardly learn."
NEEDS = Needs.settings
USUAL = ["depth=20,56", "arch=plain,residual", "seed=0,1,2"]

IMAGES = 128
SEEDS = 5
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


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """Every arm and depth at step 0 and, if trained, at the end; between at the usual depth."""
    fit = nets.chosen(
        cases,
        lambda case: (
            case.arch in ("plain", "residual") and case.settings.arch.norm is Normalisation.batch
        ),
        "gradients starts from plain and residual networks with batch normalisation. "
        "Choose arch=plain,residual.",
    )
    bases = nets.bases(fit, SEEDS)
    watched = nets.usual_depth(base.depth for base in bases)
    arms = [Case(name, arm(base.settings, name)) for base in bases for name in ARMS]
    for case in tell(nets.with_runs(arms, cases)):
        settings, data = case.settings, nets.load(case.settings)
        batch = nets.some_images(settings, data, IMAGES)
        steps = [step for step in EARLY if step <= settings.steps and case.depth == watched]
        networks = nets.snapshots(settings, data, steps or [0])
        end = [("end", nets.trained(case, data))] if case.run else []
        for step, network in chain(networks, end):
            for row in layers(network, *batch):
                yield case.place("arm") | {"step": str(step)} | row


def arm(base: Settings, name: str) -> Settings:
    """``base`` with the merge, normalisation and initial weights of an arm."""
    merge, norm, init = ARMS[name]
    old = base.arch
    arch = Arch(merge=merge, norm=norm, order=old.order, unit=old.unit, shortcut=old.shortcut)
    return replace(base, arch=arch, twin=Twin.none, init=init or base.init)


def layers(network: nn.Module, images: Tensor, labels: Tensor) -> list[Row]:
    """A row per convolution, in training mode; ``a`` stands with the last one of its block."""
    weights: list[Tensor] = []
    outputs: dict[int, Tensor] = {}  # of each block, by its last convolution, from 1

    def passed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            weights.append(module.weight)
        else:
            outputs[len(weights)] = output

    modules = [module for module in network.modules() if isinstance(module, Block | nn.Conv2d)]
    with nets.hooked(modules, passed):
        logits = network.train()(images)
    loss = cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, [*weights, *outputs.values()])
    of_blocks = zip(outputs, gradients[len(weights) :], strict=True)
    a = {at: len(images) * one.flatten(1).norm(dim=1).mean().item() for at, one in of_blocks}
    error = {"error_percent": nets.error_percent(logits, labels)}
    norms = [gradient.norm().item() for gradient in gradients[: len(weights)]]
    return [
        error | {"layer": at, "g": g, "r": g / weight.norm().item(), "a": a.get(at)}
        for at, (g, weight) in enumerate(zip(norms, weights, strict=True), start=1)
    ]


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
        numbers[f"log10 rho, {name} {depth}, step 0"] = mean(tilts(rows, "g", name, depth))
        slope = mean(slopes(those(rows, arm=name, depth=depth, step="0")))
        numbers[f"slope of log10 a per layer, {name} {depth}, step 0"] = slope
    for name, depth, step in product(ARMS, depths, (*map(str, EARLY[1:]), "end")):
        if len(found := tilts(rows, "r", name, depth, step)):
            numbers[f"log10 rho of r, {name} {depth}, step {step}"] = mean(found)
    for depth in depths:
        key = f"g of the first layer, plain no norm xavier {depth}, step 0"
        numbers[key] = mean(first_of_control(rows, depth))
    return numbers


def first_of_control(rows: pd.DataFrame, depth: int) -> pd.Series[float]:
    """g of the control's first layer, by seed."""
    return values(rows, "g", arm="plain no norm xavier", depth=depth, step="0", layer=1)


def trained_ones(rows: pd.DataFrame, depth: int) -> tuple[pd.Series[float], float, float]:
    """Plain ones of this depth: log10 rho of r by seed, percent of images wrong, growth.

    Growth: of log10 |W| in the first layers since step 0, mean over them and seeds.
    """
    plain = those(rows, arm="plain", depth=depth)
    first = plain[plain["layer"] <= ENDS].assign(w=lambda some: decades(some["g"] / some["r"]))
    growth = difference(*(by_seed(those(first, step=at), "w", mean) for at in ("end", "0")))
    error = mean(those(plain, step="end")["error_percent"])
    return tilts(rows, "r", "plain", depth, "end"), error, mean(growth)


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    rows = rows.assign(step=rows["step"].astype(str))
    depths = sorted(set(rows["depth"]))
    deep = depths[-1]
    numbers = figures(rows, depths)
    plain, residual = (tilts(rows, "g", arm, deep) for arm in ("plain", "residual"))
    xavier = numbers[f"slope of log10 a per layer, plain no norm xavier {deep}, step 0"]
    control = difference(*(decades(first_of_control(rows, at)) for at in (deep, depths[0])))
    told = {
        f"plain-{deep} at the start, first over last layers": plain,
        f"residual-{deep}": residual,
        f"control, no normalisation, Xavier's weights, depth {deep} over {depths[0]}": control,
    }
    trained = []
    for depth in sorted(set(those(rows, arm="plain", step="end")["depth"])):
        tilted, error, growth = trained_ones(rows, depth)
        numbers[f"percent of images wrong, plain {depth}, step end"] = error
        numbers[f"log10 growth of the first layers' weights, plain {depth}, step end"] = growth
        failed = error > FAILED
        name = f"plain-{depth} trained{', which failed' * failed}, in units of the weights"
        told[name] = tilted
        why = f" (which failed to train: {error:.0f} % of images wrong, and its first layers' "
        why += f"weights grew by {growth:+.1f})"
        trained.append(f"plain-{depth}{why * failed} {mean(tilted):+.1f} ({word(mean(tilted))})")
    start = (
        f"{word(mean(plain))} towards the input at the start, by {mean(plain):+.1f} decades from "
        f"the last layers to the first (residual {mean(residual):+.1f})"
    )
    without = f"the first layer's {word(mean(control))} with depth, by {mean(control):+.1f} decades"
    return Finding(
        judge(list(plain)),
        f"gradients of plain-{deep} {start}; without normalisation and from Xavier's weights "
        f"they {word(-xavier * deep)}, an image's by 10^{-xavier:+.2f} a layer.",
        numbers=numbers,
        conventions=[
            f"first {ENDS} layers over last {ENDS}; in units of the weights: each gradient over "
            f"its weights' norm; {IMAGES} training images, training-mode statistics; "
            f"{seeds_of(rows)}; between start and end depth {nets.usual_depth(depths)} retrained",
            "a hypothesis, not tested here: exploding gradients enlarge the first layers' weights, "
            "and normalisation then divides their effective rate, so trained ones may vanish",
        ],
        headlines=[Headline(what, some, "decades", "+.1f") for what, some in told.items()],
        account=(
            Account.right if mean(plain) < -TWICE else Account.contradicted,
            f"with batch normalisation gradients of plain networks {start}; trained, in decades "
            f"and units of the weights, {'; '.join(trained)}. Without normalisation and from "
            f"Xavier's weights {without}.",
        )
        if trained and len(depths) > 1
        else None,
    )


def judge(plain: Sequence[float]) -> Verdict:
    """The rule in the module's docstring, on log10 rho of each seed."""
    if len(plain) < ENOUGH:
        return Verdict.inconclusive
    tilted = mean(plain)
    return Verdict.of(tilted <= -1 and max(plain) < 0, tilted >= 1 and min(plain) > 0)


def word(log: float) -> str:
    """What gradients do, by the sign of log10 rho; within a factor of two they do neither."""
    if abs(log) < TWICE:
        return "neither grow nor shrink"
    return "explode" if log > 0 else "vanish"


def draw(rows: pd.DataFrame) -> Figure:
    """The deepest at step 0, by layer: weights, activations. Then the tilt by step, and trained."""
    from resexp.probes.drawing import COLOURS, DASHES, DOTS, GREY, finish, means, panels

    depths = sorted(set(rows["depth"]))
    deep, watched = depths[-1], nets.usual_depth(depths)
    rows = rows.assign(step=rows["step"].astype(str))
    start = those(rows, depth=deep, step="0")
    figure, axes = panels(4, 76, width_ratios=[3, 3, 2, 2])
    weights, activations, training, ends = axes
    strokes = dict(zip(ARMS, ("-", "-", DASHES, DASHES, DOTS), strict=True))
    styles = {
        arm: {"color": COLOURS[arm.split()[0]], "linestyle": stroke, "linewidth": 1.3}
        for arm, stroke in strokes.items()
    }
    for arm, style in styles.items():
        means(weights, those(start, arm=arm), "layer", "g", log=True, **style)
        means(activations, those(start, arm=arm), "layer", "a", log=True, **style)
        tilted = {step: tilts(rows, "r", arm, watched, step) for step in map(str, EARLY)}
        known = {step: mean(some) for step, some in tilted.items() if len(some)}
        training.plot([*known], [*known.values()], marker="o", ms=3, **style)
    for at, (depth, (arm, colour)) in enumerate(product(depths, COLOURS.items())):
        error = those(rows, arm=arm, depth=depth, step="end")["error_percent"].mean()
        mark = "x" if error > FAILED else "o"
        for value in tilts(rows, "r", arm, depth, "end"):
            ends.plot(at // 2, value, mark, color=colour, ms=4, alpha=0.8)
    ends.set_xticks(range(len(depths)), map(str, depths))
    for axis, what in ((weights, "the weights"), (activations, "activations")):
        axis.set(title=f"depth {deep}, step 0", xlabel="convolution, from the input")
        axis.set_ylabel(f"gradient of {what} (norm)")
    label = f"log10 of gradient over weights,\nfirst {ENDS} over last {ENDS} layers"
    training.set(title=f"depth {watched}", xlabel="step", ylabel=label)
    ends.set(title="trained", xlabel="depth", xlim=(-0.5, len(depths) - 0.5))
    for axis in (training, ends):
        axis.axhline(0, color=GREY, linewidth=0.6)
    return finish(
        figure,
        f"Loss gradients by layer, {rows['seed'].nunique()} seeds; batch normalised unless no "
        "norm; right, above 0: larger near the input",
        styles | {"failed to train": {"color": GREY, "marker": "x", "linestyle": "none"}},
    )
