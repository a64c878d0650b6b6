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

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from resexp.models.blocks import Block
from resexp.probes import Case, Cell, Finding, Headline, Needs, Tell, Verdict
from resexp.probes.networks import hooked, load, snapshots, some_images, trained, twins, usual_depth
from resexp.probes.rows import difference, mean, seeds_of, those
from resexp.settings import WeightDecayOn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Residual layers respond less than plain ones, and less the deeper the network."
SOURCE = "He et al. 2015, section 4.2, figure 7"
TEXTBOOK = (
    "Residual functions are small corrections: weaker responses than plain layers, and "
    "ResNet-20 > 56 > 110."
)
NEEDS = Needs.trained
USUAL: list[str] = []

IMAGES = 1024
SEEDS = 3


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """Every trained network, and the controls at the smallest depth >= 20."""
    chosen = list(twins(cases, "responses", SEEDS).values())
    residual = [case for case in chosen if case.arch == "residual"]
    controls = [
        case
        for case in residual
        if case.settings.depth == usual_depth(case.settings.depth for case in residual)
        and case.settings.weight_decay_on is WeightDecayOn.all
    ]
    rows: list[dict[str, Cell]] = []
    for done, case in enumerate(chosen):
        tell(done, len(chosen) + len(controls), f"{case.arch} {case.settings.depth}")
        rows += rows_of(case, trained(case, load(case.settings)), case.settings.weight_decay_on)
    for done, case in enumerate(controls, start=len(chosen)):
        settings = replace(case.settings, weight_decay_on=WeightDecayOn.weights)
        tell(done, len(chosen) + len(controls), f"training residual {settings.depth}, less decay")
        for _, network in snapshots(settings, load(settings), [settings.steps]):
            rows += rows_of(case, network, settings.weight_decay_on)
    return rows


def rows_of(case: Case, network: nn.Module, decay: WeightDecayOn) -> list[dict[str, Cell]]:
    """A row per convolution of a block."""
    settings = case.settings
    images, _ = some_images(settings, load(settings), IMAGES)
    place: dict[str, Cell] = {"arch": case.arch, "depth": settings.depth, "seed": settings.seed}
    return [place | {"decay": decay.value} | row for row in responses(network, images)]


@torch.no_grad()
def responses(network: nn.Module, images: Tensor) -> list[dict[str, Cell]]:
    """What the module's docstring defines, in forward order; statistics are those of ``images``."""
    rows: list[dict[str, Cell]] = []
    branches = [module.branch for module in network.modules() if isinstance(module, Block)]
    number_of = {
        layer: number
        for branch in branches
        for number, layer in enumerate(
            (one for one in branch.children() if isinstance(one, nn.BatchNorm2d)), start=1
        )
    }

    def normalised(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows.append(
            {
                "layer": len(rows) + 1,
                "of_block": number_of[norm],
                "std": output.std(correction=0).item(),
                "scale": norm.weight.square().mean().sqrt().item(),
                "branch_over_input": None,
            }
        )

    def branched(branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape == inputs[0].shape:
            rows[-1]["branch_over_input"] = (output.norm() / inputs[0].norm()).item()

    with hooked(branches, branched), hooked(number_of, normalised):
        network.train()(images)
    return rows


def by_seed(
    rows: pd.DataFrame, arch: str, depth: int, decay: str, column: str = "std"
) -> pd.Series[float]:
    """The mean of a column over the blocks' second convolutions, by seed."""
    some = those(rows, arch=arch, depth=depth, decay=decay, of_block=2)
    if column == "branch_over_input":
        some = some.dropna(subset=column)  # blocks that change shapes
    return some.groupby("seed")[column].agg(mean)


def conclude(rows: pd.DataFrame) -> Finding:
    """Second convolutions by network, and the rule in the module's docstring."""
    networks = sorted(set(zip(rows["arch"], rows["depth"], rows["decay"], strict=True)))
    usual = rows["decay"][0]
    numbers = {
        f"mean {column} of second convolutions, {arch} {depth}, decay on {decay}": mean(
            by_seed(rows, arch, depth, decay, column)
        )
        for arch, depth, decay in networks
        for column in ("std", "scale", "branch_over_input")
    }
    depths = [depth for arch, depth, decay in networks if (arch, decay) == ("residual", usual)]
    trend = [mean(by_seed(rows, "residual", depth, usual)) for depth in depths]
    control = "".join(
        f"; without decay on scales {arch}-{depth} has "
        f"{mean(by_seed(rows, arch, depth, decay)):.3f} for "
        f"{mean(by_seed(rows, arch, depth, usual)):.3f}"
        for arch, depth, decay in networks
        if decay != usual
    )
    shallow, deep = depths[0], max(rows["depth"])
    (plain, plain_ratio), (residual, residual_ratio) = (
        [by_seed(rows, arch, deep, usual, column) for column in ("std", "branch_over_input")]
        for arch in ("plain", "residual")
    )
    pair = f"residual-{deep} less plain-{deep}"
    deeper = difference(residual, by_seed(rows, "residual", shallow, usual))
    return Finding(
        judge(list(plain), list(residual), trend),
        f"at depth {deep} the second convolutions' responses have standard deviation "
        f"{mean(residual):.2f} in residual networks and {mean(plain):.2f} in plain ones; "
        f"residual by depth, shallow first: {', '.join(f'{one:.2f}' for one in trend)}{control}; "
        f"|F(x)|/|x| is {mean(residual_ratio):.2f} and {mean(plain_ratio):.2f}.",
        numbers=numbers,
        conventions=[
            "std: of a convolution's output after normalisation, before ReLU or addition, over "
            "images, places and channels; 1 at the start whatever the network",
            "scale: root mean square of normalisation's learned scales, which std mostly is: alone "
            "it does not say that a layer changes its signal less; |F(x)|/|x| does "
            "(branch_over_input; blocks that change shapes left out)",
            f"{IMAGES} training images at most in one batch, whose own statistics are used; "
            f"{seeds_of(rows)}",
            "magnitudes after a short training are not those of figure 7",
        ],
        headlines=[
            Headline(what, less, form=form)
            for what, less, form in (
                (f"standard deviation, {pair}", difference(residual, plain), "+.3f"),
                (f"residual-{deep} less residual-{shallow}", deeper, "+.3f"),
                (f"|F(x)|/|x|, {pair}", difference(residual_ratio, plain_ratio), "+.2f"),
            )
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


def draw(rows: pd.DataFrame) -> Figure:
    """By layer, the deepest networks and shallower ones; sorted, as in figure 7; |F(x)| / |x|."""
    from resexp.probes.drawing import COLOURS, DASHES, DOTS, GREY, finish, means, panels

    rows = those(rows, decay=rows["decay"][0])
    depths = zip(sorted(set(rows["depth"]), reverse=True), ("-", DASHES, DOTS), strict=False)
    strokes = dict(depths)
    figure, axes = panels(3, 76)
    order, ranked, ratios = axes
    for arch, colour in COLOURS.items():
        for depth, stroke in strokes.items():
            some = those(rows, arch=arch, depth=depth)
            style = {"color": colour, "linestyle": stroke, "linewidth": 1.1}
            means(order, some, "layer", "std", **style)
            values = some.groupby("layer")["std"].mean()
            ranked.plot(values.index, sorted(values, reverse=True), **style)
            kept = some.dropna(subset="branch_over_input")
            means(ratios, kept, "layer", "branch_over_input", marker=".", ms=4, **style)
    for axis, x in zip(
        axes, (", from the input", ", by size", " that ends the branch"), strict=True
    ):
        y = "standard deviation of the response"
        axis.set(xlabel=f"convolution{x}", ylabel=y, ylim=(0, None))
    ratios.set_ylabel("branch over input, |F(x)| / |x|")
    legend = {arch: {"color": colour} for arch, colour in COLOURS.items()} | {
        f"depth {depth}": {"color": GREY, "linestyle": stroke} for depth, stroke in strokes.items()
    }
    seeds = rows["seed"].nunique()
    title = f"Responses after normalisation in blocks, trained networks, means of {seeds} seeds"
    return finish(figure, title, legend)
