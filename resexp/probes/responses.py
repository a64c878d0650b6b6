"""Layer responses: how much do trained layers change their signal? He et al. 2015, figure 7.

For each 3x3 convolution in a block, the standard deviation over images, places and channels of its
output after normalisation and before the ReLU or the addition (``std``), with statistics of these
images; and for each block that keeps its input's shape |F(x)| / |x|. After normalisation by
the batch's own statistics std is that of the learned scales and shifts: ``scale`` is the root mean
square of the scales, 1 at the start. Weight decay on scales shrinks them by itself, so residual
networks of one depth are trained once more with decay on weights alone (``decay``: weights).

The rule, by the mean std of the blocks' second convolutions, at least three seeds: residual below
plain at the greatest depth in every seed, and its mean over seeds falling from depth to depth:
supported. Residual above plain there in every seed: not supported. Else inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from resexp.models.blocks import Block
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
    twins,
)
from resexp.settings import WeightDecayOn

CLAIM = "Residual layers respond less than plain ones, and less the deeper the network."
SOURCE = "He et al. 2015, section 4.2, figure 7"
NEEDS = Needs.trained
USUAL: list[str] = []

IMAGES = 1024
SEEDS = 3


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Every trained network, and the controls at the first depth of at least 20."""
    chosen = twins(cases, "responses", SEEDS)
    depths = sorted({depth for arch, depth, _ in chosen if arch == "residual"})
    watched = next((depth for depth in depths if depth >= 20), depths[-1])
    controls = {
        place: case
        for place, case in chosen.items()
        if place[:2] == ("residual", watched) and case.settings.weight_decay_on is WeightDecayOn.all
    }
    rows: list[dict[str, Cell]] = []
    for done, case in enumerate(chosen.values()):
        tell(done, len(chosen) + len(controls), f"{case.arch} {case.settings.depth}")
        rows += rows_of(case, trained(case, load(case.settings)), case.settings.weight_decay_on)
    for done, case in enumerate(controls.values(), start=len(chosen)):
        tell(done, len(chosen) + len(controls), f"training {case.arch} {watched}, less decay")
        settings = replace(case.settings, weight_decay_on=WeightDecayOn.weights)
        for _, network in snapshots(settings, load(settings), [settings.steps]):
            rows += rows_of(case, network, settings.weight_decay_on)
    return concluded(rows)


def rows_of(case: Case, network: nn.Module, decay: WeightDecayOn) -> list[dict[str, Cell]]:
    """A row a convolution of a block."""
    settings = case.settings
    images, _ = some_images(settings, load(settings), IMAGES)
    place: dict[str, Cell] = {
        "arch": case.arch,
        "depth": settings.depth,
        "seed": settings.seed,
        "decay": decay.value,
    }
    return [place | row for row in responses(network, images)]


@torch.no_grad()
def responses(network: nn.Module, images: Tensor) -> list[dict[str, Cell]]:
    """What the module's docstring defines, in forward order; statistics are those of ``images``."""
    rows: list[dict[str, Cell]] = []

    def normalised(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        rows.append(
            {
                "layer": len(rows) + 1,
                "of_block": 0,
                "std": output.std(correction=0).item(),
                "scale": norm.weight.square().mean().sqrt().item(),
                "branch_over_input": None,
            }
        )

    def branched(branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in branch.children())
        for number, row in enumerate(rows[len(rows) - norms :], start=1):
            row["of_block"] = number
        if output.shape == inputs[0].shape:
            rows[-1]["branch_over_input"] = (output.norm() / inputs[0].norm()).item()

    blocks = [module for module in network.modules() if isinstance(module, Block)]
    handles = [block.branch.register_forward_hook(branched) for block in blocks]
    handles += [
        layer.register_forward_hook(normalised)
        for block in blocks
        for layer in block.branch.children()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    try:
        network.train()(images)
    finally:
        for handle in handles:
            handle.remove()
    return rows


# --- numbers out of rows


def by_seed(
    rows: Sequence[dict[str, Cell]], arch: str, depth: int, decay: str, column: str = "std"
) -> list[float]:
    """The mean of a column over the blocks' second convolutions, a number a seed."""
    values: dict[Cell, list[float]] = {}
    for row in rows:
        place = row["arch"], row["depth"], row["decay"]
        if place == (arch, depth, decay) and row["of_block"] == 2 and row[column] is not None:
            values.setdefault(row["seed"], []).append(float(row[column] or 0))
    return [average(some) for some in values.values()]


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def concluded(rows: list[dict[str, Cell]]) -> Finding:
    """The finding from all rows."""
    usual = str(rows[0]["decay"])
    networks = sorted({(str(r["arch"]), int(r["depth"] or 0), str(r["decay"])) for r in rows})
    numbers: dict[str, float] = {}
    for arch, depth, decay in networks:
        for column in ("std", "scale", "branch_over_input"):
            name = f"mean {column} of second convolutions, {arch} {depth}, decay on {decay}"
            numbers[name] = average(by_seed(rows, arch, depth, decay, column))
    deep = max(depth for _, depth, _ in networks)
    plain, residual = (by_seed(rows, arch, deep, usual) for arch in ("plain", "residual"))
    trend = [
        average(by_seed(rows, arch, depth, usual))
        for arch, depth, decay in networks
        if (arch, decay) == ("residual", usual)
    ]
    control = ""
    for arch, depth, decay in networks:
        if decay != usual:
            without = average(by_seed(rows, arch, depth, decay))
            with_decay = average(by_seed(rows, arch, depth, usual))
            control = (
                f"; without decay on scales {arch}-{depth} has {without:.3f} for {with_decay:.3f}"
            )

    def ratio(arch: str) -> float:
        return average(by_seed(rows, arch, deep, usual, "branch_over_input"))

    seeds = sorted({int(row["seed"] or 0) for row in rows})
    return Finding(
        judge(plain, residual, trend),
        f"at depth {deep} the second convolutions' responses have standard deviation "
        f"{average(residual):.2f} in residual networks and {average(plain):.2f} in plain ones; "
        f"residual by depth, shallow first: {', '.join(f'{one:.2f}' for one in trend)}{control}; "
        f"|F(x)|/|x| is {ratio('residual'):.2f} and {ratio('plain'):.2f}.",
        rows,
        numbers,
        [
            "std: of a convolution's output after normalisation, before ReLU or addition, over "
            "images, places and channels; 1 at the start whatever the network",
            "scale: root mean square of normalisation's learned scales, which std mostly is: alone "
            "it does not say that a layer changes its signal less; |F(x)|/|x| does "
            "(branch_over_input; blocks that change shapes left out)",
            f"{IMAGES} training images at most in one batch, whose own statistics are used; seeds "
            f"{', '.join(map(str, seeds))}",
            "magnitudes after a short training are not those of figure 7",
        ],
    )


def judge(plain: Sequence[float], residual: Sequence[float], trend: Sequence[float]) -> Verdict:
    """The rule in the module's docstring: by seed at the greatest depth; residual by depth."""
    if min(len(plain), len(residual)) < SEEDS or len(plain) != len(residual):
        return Verdict.inconclusive
    falls = all(deeper < shallower for shallower, deeper in pairwise(trend))
    if all(r < p for p, r in zip(plain, residual, strict=True)) and falls:
        return Verdict.supported
    if all(r > p for p, r in zip(plain, residual, strict=True)):
        return Verdict.not_supported
    return Verdict.inconclusive
