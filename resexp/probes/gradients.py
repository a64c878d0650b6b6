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

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import least_squares
from resexp.models.blocks import Block
from resexp.probes import (
    Case,
    Cell,
    Finding,
    Needs,
    Tell,
    Verdict,
    at_start,
    load,
    snapshots,
    some_images,
    trained,
)
from resexp.settings import Arch, Init, Merge, Normalisation, Settings, Twin, UsageError

CLAIM = "In deep plain networks gradients vanish on their way to the first layers."
SOURCE = "common; He et al. 2015, section 4.1, doubt it with batch normalisation"
NEEDS = Needs.settings
USUAL = ["depth=20,56", "arch=plain,residual", "seed=0,1,2"]

IMAGES = 128
SEEDS = 3
EARLY = (0, 10, 100)  # steps; "end" comes from checkpoints
ENDS = 3  # layers at either end that rho compares

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


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Every arm at step 0 and every depth; at later steps at the first depth of at least 20."""
    bases = chosen(cases)
    depths = sorted({depth for depth, _ in bases})
    watched = next((depth for depth in depths if depth >= 20), depths[-1])
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
    rows += at_the_end(cases, set(bases))
    return concluded(rows, depths, watched)


def chosen(cases: Sequence[Case]) -> dict[tuple[int, int], Case]:
    """A case for each depth and seed, to make the arms from; the first SEEDS seeds."""
    fit = [
        case
        for case in cases
        if case.arch in ("plain", "residual") and case.settings.arch.norm is Normalisation.batch
    ]
    if not fit:
        raise UsageError(
            "gradients starts from plain and residual networks with batch normalisation. "
            "Choose arch=plain,residual."
        )
    seeds = sorted({case.settings.seed for case in fit})[:SEEDS]
    return {
        (case.settings.depth, case.settings.seed): case
        for case in reversed(fit)
        if case.settings.seed in seeds
    }


def arm(base: Settings, name: str) -> Settings:
    """``base`` with the merge, normalisation and initial weights of an arm."""
    merge, norm, init = ARMS[name]
    old = base.arch
    arch = Arch(merge=merge, norm=norm, order=old.order, unit=old.unit, shortcut=old.shortcut)
    return replace(base, arch=arch, twin=Twin.none, init=init or base.init)


def layers(network: nn.Module, images: Tensor, labels: Tensor) -> Layers:
    """Gradient norms in training mode: normalisation by the batch's own statistics."""
    outputs: list[Tensor] = []
    order: list[nn.Conv2d] = []
    ends: list[int] = []

    def convolved(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        order.append(layer)

    def ended(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)
        ends.append(len(order))

    handles = [
        module.register_forward_hook(ended if isinstance(module, Block) else convolved)
        for module in network.modules()
        if isinstance(module, Block | nn.Conv2d)
    ]
    try:
        loss = cross_entropy(network.train()(images), labels)
    finally:
        for handle in handles:
            handle.remove()
    weights = [layer.weight for layer in order]
    gradients = torch.autograd.grad(loss, [*weights, *outputs])
    g = [gradient.norm().item() for gradient in gradients[: len(weights)]]
    a = [
        len(images) * gradient.flatten(1).norm(dim=1).mean().item()
        for gradient in gradients[len(weights) :]
    ]
    r = [norm / weight.norm().item() for norm, weight in zip(g, weights, strict=True)]
    return Layers(loss.item(), g, r, a, ends)


def tidy(name: str, depth: int, seed: int, step: str, found: Layers) -> list[dict[str, Cell]]:
    """A row a convolution; ``a`` stands with the last convolution of its block."""
    at_end = dict(zip(found.block_ends, found.a, strict=True))
    return [
        {
            "arm": name,
            "depth": depth,
            "seed": seed,
            "step": step,
            "layer": layer,
            "loss": found.loss,
            "g": g,
            "r": r,
            "a": at_end.get(layer),
        }
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


# --- numbers out of rows


def log_rho(rows: Sequence[dict[str, Cell]], column: str = "g") -> float:
    """log10 of the first layers' mean over the last layers', of one network's rows."""
    values = [float(row[column] or 0) for row in rows]
    first, last = sum(values[:ENDS]), sum(values[-ENDS:])
    return math.log10(first / last) if first > 0 and 0 < last < math.inf else math.nan


def slope(rows: Sequence[dict[str, Cell]]) -> float:
    """Least squares of log10 a by layer, per layer."""
    points = [(int(row["layer"] or 0), float(row["a"])) for row in rows if row["a"]]
    return least_squares([(layer, math.log10(a)) for layer, a in points if 0 < a < math.inf])


def networks(
    rows: Sequence[dict[str, Cell]], name: str, depth: int, step: str
) -> list[list[dict[str, Cell]]]:
    """The rows of each seed's network."""
    found: dict[Cell, list[dict[str, Cell]]] = {}
    for row in rows:
        if (row["arm"], row["depth"], row["step"]) == (name, depth, step):
            found.setdefault(row["seed"], []).append(row)
    return list(found.values())


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def concluded(rows: list[dict[str, Cell]], depths: list[int], watched: int) -> Finding:
    """The finding from all rows."""
    deep, numbers = depths[-1], {}
    for name, depth in product(ARMS, depths):
        found = networks(rows, name, depth, "0")
        numbers[f"log10 rho, {name} {depth}, step 0"] = average([log_rho(one) for one in found])
        numbers[f"slope of log10 a per layer, {name} {depth}, step 0"] = average(
            [slope(one) for one in found]
        )
    later = [step for step in dict.fromkeys(str(row["step"]) for row in rows) if step != "0"]
    for name, step in product(ARMS, later):
        found = networks(rows, name, watched, step)
        if found:
            numbers[f"log10 rho of r, {name} {watched}, step {step}"] = average(
                [log_rho(one, "r") for one in found]
            )
    for depth in depths:
        first = [
            float(one[0]["g"] or 0) for one in networks(rows, "plain no norm xavier", depth, "0")
        ]
        numbers[f"g of the first layer, plain no norm xavier {depth}, step 0"] = average(first)
    plain = [log_rho(one) for one in networks(rows, "plain", deep, "0")]
    residual = average([log_rho(one) for one in networks(rows, "residual", deep, "0")])
    xavier = numbers[f"slope of log10 a per layer, plain no norm xavier {deep}, step 0"]
    seeds = sorted({int(row["seed"] or 0) for row in rows})
    return Finding(
        judge(plain),
        f"at step 0 gradients of plain-{deep} {word(average(plain))} towards the input, first over "
        f"last layers 10^{average(plain):+.1f} (residual 10^{residual:+.1f}); without "
        f"normalisation and from Xavier's weights they {word(-xavier * deep)}, an image's by "
        f"10^{-xavier:+.2f} a layer.",
        rows,
        numbers,
        [
            "g: norm of a convolution's weight gradient; r: g over the weights' norm; a: norm "
            "of an image's loss gradient at a block's output, mean over images; losses in nats",
            f"log10 rho: first {ENDS} layers over last {ENDS}; above 0 gradients explode towards "
            "the input, below 0 they vanish; slope by layer counted from the input has the "
            "opposite sign",
            f"{IMAGES} training images, true labels, one batch for all, training-mode statistics; "
            f"seeds {', '.join(map(str, seeds))}",
            f"steps after 0 at depth {watched} only; trained anew (same batches and weights as the "
            "run's), the end from checkpoints",
        ],
    )


def judge(plain: Sequence[float]) -> Verdict:
    """The rule in the module's docstring, on log10 rho of each seed."""
    if average(plain) <= -1 and max(plain) < 0:
        return Verdict.supported
    if average(plain) >= 1 and min(plain) > 0:
        return Verdict.not_supported
    return Verdict.inconclusive


def word(log: float) -> str:
    """What gradients do, by the sign of log10 rho; within a factor of two they do neither."""
    if abs(log) < math.log10(2):
        return "neither grow nor shrink"
    return "explode" if log > 0 else "vanish"
