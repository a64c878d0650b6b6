"""Shattered gradients: is the gradient of a deep network white noise along its input?

Lines. Fully connected ReLU networks of width 200 on one number x, at 256 points from -2 to 2, at
their start (He's weights, float64). The gradient g(x) = df/dx is followed forwards beside f;
statistics over the points (means, deviations) are held fixed, so that f is a function of one x. The
autocorrelation of g at a lag of k points is sum (g_i - m)(g_{i+k} - m) / sum (g_i - m)^2: 1 for a
smooth gradient, 0 for white noise.

Arms: plain with the mean of each unit subtracted, plain with batch normalisation, plain with
neither (the control: without centring units are active together and nothing shatters), residual
h + b W relu(h) without and with batch normalisation, at b = 1 and 0.1: the scale drives the answer.

Images. The convolutional networks of this package at their start, plain and residual, with batch
normalisation and with none, on digits: the cosine of the gradients of the first logit by two
images, mean over all pairs of a batch; 1 where all images have one gradient, 0 where they have
nothing in common. Statistics are those of the batch, held fixed, so a logit is of its image alone.

The rule, on means over seeds at lag 1: plain centred at 24 layers below 0.2 and residual with batch
normalisation and b = 0.1 at 50 layers above 0.8: supported. Both on the other side: not supported.
Else inconclusive. Lines say little about images; the cosines of images are reported, not judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from resexp.probes import Case, Cell, Finding, Headline, Needs, Tell, Verdict
from resexp.probes.networks import at_start, load, some_images
from resexp.probes.rows import mean, those, values
from resexp.settings import Arch, Merge, Normalisation, Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Gradients of deep plain networks shatter into white noise; skips keep them correlated."
SOURCE = "Balduzzi et al. 2017, section 2"
TEXTBOOK = (
    "Correlations of gradients decay exponentially with depth in plain networks, far slower in "
    "residual ones."
)
NEEDS = Needs.nothing
USUAL: list[str] = []

WIDTH, POINTS, REACH = 200, 256, 2.0
LAGS = (1, 2, 4, 8, 16)
SEEDS = 10
EPS = 1e-5


Row = dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Arm:
    """How a layer is normalised ("none", "centred", "batch") and joined to its input."""

    norm: str
    scale: float | None  # of the branch beside the identity; None: no identity, plain


ARMS = {
    "plain": Arm("none", None),
    "plain centred": Arm("centred", None),
    "plain batch norm": Arm("batch", None),
    "residual": Arm("none", 1.0),
    "residual batch norm": Arm("batch", 1.0),
    "residual batch norm 0.1": Arm("batch", 0.1),
}
DEPTHS = (2, 10, 24, 50)  # weighted layers before the readout

IMAGES, IMAGE_SEEDS = 64, 5
IMAGE_DEPTHS = (8, 20, 56)
IMAGE_ARMS = {
    "plain batch norm": Arch(),
    "residual batch norm": Arch(merge=Merge.residual),
    "plain": Arch(norm=Normalisation.none),
    "residual": Arch(merge=Merge.residual, norm=Normalisation.none),
}

#: The networks of the rule.
DECIDE = {"plain": ("plain centred", 24), "residual": ("residual batch norm 0.1", 50)}


def measure(cases: Sequence[Case], tell: Tell, seeds: int = SEEDS) -> list[Row]:
    """Every arm, depth and seed; ``cases`` are not looked at."""
    rows: list[Row] = []
    lines = [(name, seed) for name in ARMS for seed in range(seeds)]
    images = [(name, seed) for name in IMAGE_ARMS for seed in range(min(seeds, IMAGE_SEEDS))]
    for done, (name, seed) in enumerate(lines):
        tell(done, len(lines) + len(images), f"{name}, lines")
        for depth, gradient in gradients(ARMS[name], seed).items():
            place: Row = {"inputs": "line", "arm": name, "depth": depth, "seed": seed}
            rows += [
                place
                | {"lag": lag, "autocorrelation": autocorrelation(gradient, lag), "cosine": None}
                for lag in LAGS
            ]
    for done, (name, seed) in enumerate(images, start=len(lines)):
        tell(done, len(lines) + len(images), f"{name}, images")
        for depth in IMAGE_DEPTHS:
            settings = Settings(depth=depth, seed=seed, arch=IMAGE_ARMS[name])
            data = load(settings)
            network = at_start(settings, data).double()
            batch, _ = some_images(settings, data, IMAGES)
            place = {"inputs": "images", "arm": name, "depth": depth, "seed": seed}
            similar = cosine(network, batch.double())
            rows.append(place | {"lag": None, "autocorrelation": None, "cosine": similar})
    return rows


def cosine(network: nn.Module, images: Tensor) -> float:
    """Mean cosine of the first logit's gradients by two of ``images`` [N, C, H, W]."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # the statistics of this batch alone
    with torch.no_grad():
        network.train()(images)
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network.eval()(x)[:, 0].sum(), x)
    directions = torch.nn.functional.normalize(gradient.flatten(1), dim=1)
    n = len(directions)  # |sum of directions|^2 holds each pair twice, and n times 1
    return ((directions.sum(0).square().sum() - n) / (n * (n - 1))).item()


def gradients(arm: Arm, seed: int, depths: Sequence[int] = DEPTHS) -> dict[int, Tensor]:
    """df/dx at every point, [POINTS], of the networks of these depths; they share their layers."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    x = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)[:, None]
    weight = draw(1, WIDTH)
    value, slope = x * weight + draw(WIDTH), weight.expand(POINTS, WIDTH)
    readout = draw(WIDTH) / math.sqrt(WIDTH)
    found = {}
    for layer in range(2, max(depths) + 1):
        weight = draw(WIDTH, WIDTH) * math.sqrt(2 / WIDTH)
        value, slope = next_layer(arm, value, slope, weight)
        if layer in depths:
            found[layer] = ((value > 0) * slope if arm.scale is None else slope) @ readout
    return found


def next_layer(arm: Arm, value: Tensor, slope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W relu(norm(h)), or h plus a multiple of it, and its derivative: both [POINTS, WIDTH]."""
    normed, tangent = value, slope
    if arm.norm != "none":
        normed = value - value.mean(0)
    if arm.norm == "batch":
        deviation = (value.var(0, unbiased=False) + EPS).sqrt()
        normed, tangent = normed / deviation, slope / deviation
    branch, change = normed.clamp(min=0) @ weight, ((normed > 0) * tangent) @ weight
    if arm.scale is None:
        return branch, change
    return value + arm.scale * branch, slope + arm.scale * change


def autocorrelation(gradient: Tensor, lag: int) -> float:
    """At a lag of this many points; nan for a constant gradient."""
    centred = gradient - gradient.mean()
    return ((centred[:-lag] * centred[lag:]).sum() / centred.square().sum()).item()


def conclude(rows: pd.DataFrame) -> Finding:
    """Means over seeds, and the rule in the module's docstring."""
    line, images = those(rows, inputs="line", lag=1), those(rows, inputs="images")
    found = {
        (arm, depth): values(line, "autocorrelation", arm=arm, depth=depth)
        for arm in ARMS
        for depth in DEPTHS
    }
    means = {network: mean(some) for network, some in found.items()}
    cosines = {
        (arm, depth): mean(values(images, "cosine", arm=arm, depth=depth))
        for arm in IMAGE_ARMS
        for depth in IMAGE_DEPTHS
    }
    first, last = IMAGE_DEPTHS[0], IMAGE_DEPTHS[-1]
    cosine_by_depth = ", ".join(
        f"{cosines[arm, first]:.3f} to {cosines[arm, last]:.3f} ({arm})" for arm in IMAGE_ARMS
    )
    plain, residual = (means[network] for network in DECIDE.values())
    return Finding(
        judge(plain, residual),
        f"neighbouring gradients correlate by {plain:.2f} in a centred plain network of 24 layers, "
        f"by {residual:.2f} in a residual one of 50 with branches scaled by 0.1 "
        f"({means['residual batch norm', 50]:.2f} by 1); control: a plain network that is not "
        f"centred keeps {means['plain', 24]:.2f}; the mean cosine of gradients by two images "
        f"goes, depth {first} to {last}, from {cosine_by_depth}.",
        numbers={f"lag 1, {arm}, {depth} layers": one for (arm, depth), one in means.items()}
        | {f"cosine, {arm}, depth {depth}": one for (arm, depth), one in cosines.items()},
        conventions=[
            "autocorrelation of df/dx along x, 1 smooth, 0 white noise; lags in points of "
            f"{2 * REACH / (POINTS - 1):.4f}",
            f"fully connected, width {WIDTH}, {POINTS} points from -{REACH:g} to {REACH:g}, at the "
            f"start, float64, statistics held fixed; seeds 0 to {line['seed'].max()}",
            f"cosine: of the first logit's gradients by two of {IMAGES} digits, mean over pairs; 1 "
            "one gradient for all images, 0 nothing in common; at the start, float64, the batch's "
            f"statistics held fixed; seeds 0 to {images['seed'].max()}",
            "a line of inputs says little about images, and neither about trained networks",
        ],
        headlines=[
            Headline(what, found[network], form="+.2f")
            for what, network in (
                ("correlation, plain centred, 24 layers", DECIDE["plain"]),
                ("residual, branches x 0.1, 50 layers", DECIDE["residual"]),
                ("control, plain not centred, 24 layers", ("plain", 24)),
            )
        ],
    )


def judge(plain: float, residual: float) -> Verdict:
    """The rule in the module's docstring."""
    if plain < 0.2 and residual > 0.8:
        return Verdict.supported
    if plain >= 0.2 and residual <= 0.8:
        return Verdict.not_supported
    return Verdict.inconclusive


def draw(rows: pd.DataFrame) -> Figure:
    """Lines: neighbours (lag 1) by depth, and by lag at 24 layers. Images: pairs by depth."""
    from resexp.probes.drawing import DOTS, GREY, PLAIN, RESIDUAL, finish, means, panels

    dashes = (0, (4, 2))  # the stroke says how a layer is normalised and scaled
    styles = {
        "plain": {"color": PLAIN, "linestyle": DOTS},
        "plain centred": {"color": PLAIN},
        "plain batch norm": {"color": PLAIN, "linestyle": dashes},
        "residual": {"color": RESIDUAL, "linestyle": DOTS},
        "residual batch norm": {"color": RESIDUAL, "linestyle": dashes},
        "residual batch norm 0.1": {"color": RESIDUAL},
    }
    line, images, shown = those(rows, inputs="line"), those(rows, inputs="images"), 24
    figure, axes = panels(3, 76)
    by_depth, by_lag, pairs = axes
    by_lag.sharey(by_depth)
    for arm, style in styles.items():
        style = style | {"linewidth": 1.3, "marker": "o", "ms": 3}
        means(by_depth, those(line, arm=arm, lag=1), "depth", "autocorrelation", **style)
        means(by_lag, those(line, arm=arm, depth=shown), "lag", "autocorrelation", **style)
        means(pairs, those(images, arm=arm), "depth", "cosine", **style)
    labels = {
        "a line, neighbouring points": ("layers", "autocorrelation of the input gradient"),
        f"a line, {shown} layers": ("lag (points)", ""),
        "images": ("depth", "cosine of gradients by two images"),
    }
    for axis, (title, (x, y)) in zip(axes, labels.items(), strict=True):
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.set_title(title, loc="left", fontweight="bold")
        axis.set(xlabel=x, ylabel=y)
    by_lag.set_xscale("log", base=2)
    by_lag.set_xticks(LAGS, map(str, LAGS))
    seeds, few = line["seed"].nunique(), images["seed"].nunique()
    return finish(
        figure,
        f"Input gradients at the start: 1 smooth, 0 white noise; {seeds} seeds (images {few})",
        styles,
    )
