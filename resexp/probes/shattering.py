"""Shattered gradients: is the gradient of a deep network white noise along its input?

Networks. Plain and residual ones of this package with batch normalisation, at their start (float64)
and as their runs left them: the cosine of the gradients of the first logit at an image and at a
point part of the way to another image, mean over a batch; 1 for a smooth gradient, 0 for white
noise. Neighbours are 1/64 of the way apart, as near as points on the lines below; all the way is
two images, mean over all pairs. Statistics are those of the batch, held fixed, so that a logit is
of its image alone.

Lines, the paper's own setting. Fully connected ReLU networks of width 200 on one number x, at 256
points from -2 to 2, at their start (He's weights, float64); the gradient is g(x) = df/dx. Its
autocorrelation at neighbouring points is sum (g_i - m)(g_{i+1} - m) / sum (g_i - m)^2. Arms: plain
with the mean of each unit subtracted, with batch normalisation, with neither (the control: without
centring units are active together and nothing shatters), residual h + b W relu(h) without and with
batch normalisation, at b = 1 and 0.1: the scale drives the answer.

The rule, on neighbours at the greatest depth of the networks, at their start, where nothing has
failed to train: plain and residual twins begin with the same weights. 95 % intervals over seeds, at
least three. Plain wholly below 0.2 and residual wholly above 0.5: supported. Plain wholly above
0.5, or residual wholly below plain (of differences by seed): not supported. Else inconclusive.
Trained networks, two images and lines are reported, not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from resexp.analysis.statistics import paired_t
from resexp.probes import Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import ENOUGH, FAILED, difference, mean, seeds_of, those, values

CLAIM = "Gradients of deep plain networks shatter into white noise; skips keep them correlated."
SOURCE = "Balduzzi et al. 2017, section 2"
TEXTBOOK = (
    "Correlations of gradients decay exponentially with depth in plain networks, far slower in "
    "residual ones."
)
NEEDS = Needs.settings
USUAL = ["depth=8,20,56", "arch=plain,residual", "seed=0,1,2"]

IMAGES, SEEDS = 64, 5
NEAR, PAIRS = 1 / 64, 1.0  # of the way to another image: neighbours, two images
PARTS = (NEAR, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, PAIRS)

WIDTH, POINTS, REACH = 200, 256, 2.0
EPS = 1e-5


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


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """Plain and residual networks of every depth, then every arm of lines for each seed."""
    chosen = nets.twins(cases, "shattering", SEEDS)
    for case in tell(chosen.values()):
        settings, data = case.settings, nets.load(case.settings)
        images, labels = nets.some_images(settings, data, IMAGES)
        networks = {"start": nets.at_start(settings, data)}
        if case.checkpoint is not None:
            networks["end"] = nets.trained(case, data)
        for when, network in networks.items():
            network, batch = network.double(), images.double()
            found = cosines(network, batch)
            with torch.no_grad():
                error = nets.error_percent(network(batch), labels)
            for part, value in found.items():
                about = {"part": part, "correlation": value, "error_percent": error}
                yield {"when": when} | case.place("arm") | about
    seeds = sorted({seed for _, _, seed in chosen})
    for name, seed in tell([*product(ARMS, seeds)]):
        for depth, gradient in gradients(ARMS[name], seed).items():
            place = {"when": "line", "arm": name, "depth": depth, "seed": seed, "part": None}
            yield place | {"correlation": autocorrelation(gradient, 1), "error_percent": None}


def cosines(network: nn.Module, images: Tensor) -> dict[float, float]:
    """Mean cosine of the first logit's gradients at ``images`` [N, C, H, W] and part of the way on.

    By the part of the way to the next image; of all the way, over all pairs of images. Leaves the
    network in evaluation mode, with the statistics of the images.
    """
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # the statistics of this batch alone
    with torch.no_grad():
        network.train()(images)
    network.eval()

    def directions(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
        return normalize(gradient.flatten(1), dim=1)

    here, way, n = directions(images), images.roll(-1, 0) - images, len(images)
    found = {
        part: (here * directions(images + part * way)).sum(1).mean().item() for part in PARTS[:-1]
    }
    # |sum of directions|^2 holds each pair twice, and n times 1
    return found | {PAIRS: ((here.sum(0).square().sum() - n) / (n * (n - 1))).item()}


def gradients(arm: Arm, seed: int, depths: Sequence[int] = DEPTHS) -> dict[int, Tensor]:
    """df/dx at every point, [POINTS], of the networks of these depths; they share their layers."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    x = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)[:, None].requires_grad_()
    value = x * draw(1, WIDTH) + draw(WIDTH)
    readout = draw(WIDTH) / math.sqrt(WIDTH)
    found = {}
    for layer in range(2, max(depths) + 1):
        value = next_layer(arm, value, draw(WIDTH, WIDTH) * math.sqrt(2 / WIDTH))
        if layer in depths:
            f = (value.relu() if arm.scale is None else value) @ readout
            found[layer] = torch.autograd.grad(f.sum(), x, retain_graph=True)[0][:, 0]
    return found


def next_layer(arm: Arm, value: Tensor, weight: Tensor) -> Tensor:
    """W relu(norm(h)), or h plus a multiple of it, [POINTS, WIDTH]; statistics are held fixed."""
    fixed, normed = value.detach(), value
    if arm.norm != "none":
        normed = normed - fixed.mean(0)
    if arm.norm == "batch":
        normed = normed / (fixed.var(0, unbiased=False) + EPS).sqrt()
    branch = normed.relu() @ weight
    return branch if arm.scale is None else value + arm.scale * branch


def autocorrelation(gradient: Tensor, lag: int) -> float:
    """At a lag of this many points; nan for a constant gradient."""
    centred = gradient - gradient.mean()
    return ((centred[:-lag] * centred[lag:]).sum() / centred.square().sum()).item()


# --- from the rows


def conclude(rows: pd.DataFrame) -> Finding:
    """Means over seeds, and the rule in the module's docstring."""
    networks, lines = rows[rows["when"] != "line"], those(rows, when="line")
    shallow, deep = networks["depth"].min(), networks["depth"].max()
    near = {
        (when, arch, depth): values(some, "correlation", part=NEAR)
        for (when, arch, depth), some in networks.groupby(["when", "arm", "depth"])
    }
    keys = ["when", "arm", "depth", "part"]
    means: dict[Any, float] = networks.groupby(keys)["correlation"].agg(mean).to_dict()
    line: dict[Any, float] = lines.groupby(["arm", "depth"])["correlation"].agg(mean).to_dict()
    plain, residual = (near["start", arch, deep] for arch in ("plain", "residual"))
    after, told = [], []
    for (_, arch, depth), some in those(networks, when="end", depth=deep).groupby(keys[:3]):
        error = mean(some["error_percent"])
        failed = f", which failed to train ({error:.0f} % of images wrong)" * (error > FAILED)
        after.append(f"{arch}-{depth}{failed} {mean(near['end', arch, deep]):.2f}")
        what = f"{arch}-{depth} trained{', which failed' * (error > FAILED)}"
        told.append(Headline(what, near["end", arch, deep], form="+.2f"))
    pairs = [means["start", arch, deep, PAIRS] for arch in ("plain", "residual")]
    return Finding(
        judge(plain, residual),
        f"at their start gradients at neighbouring images correlate by {mean(plain):.2f} in "
        f"plain-{deep} and {mean(residual):.2f} in residual-{deep} (depth {shallow}: "
        f"{means['start', 'plain', shallow, NEAR]:.2f} and "
        f"{means['start', 'residual', shallow, NEAR]:.2f}), at two images by {pairs[0]:.3f} and "
        f"{pairs[1]:.3f}{'; trained: ' * bool(after)}{', '.join(after)}; in the paper's setting by "
        f"{line['plain centred', 24]:.2f} (plain centred, 24 layers; not centred "
        f"{line['plain', 24]:.2f}) and {line['residual batch norm 0.1', 50]:.2f} (residual, 50 "
        f"layers, branches scaled by 0.1; by 1 {line['residual batch norm', 50]:.2f}).",
        numbers={
            f"correlation, {arm} {depth}, {when}, {part:g} of the way": value
            for (when, arm, depth, part), value in means.items()
        }
        | {f"lag 1, {arm}, {depth} layers": value for (arm, depth), value in line.items()},
        conventions=[
            f"1 smooth, 0 white noise; neighbours: {NEAR:g} of the way to another of {IMAGES} "
            f"training images, on lines {2 * REACH / (POINTS - 1):.4f} apart; {seeds_of(rows)}"
        ],
        headlines=[
            Headline(f"plain-{deep} at the start, neighbouring images", plain, form="+.2f"),
            Headline(f"residual-{deep}", residual, form="+.2f"),
            *told,
        ],
    )


def judge(plain: pd.Series[float], residual: pd.Series[float]) -> Verdict:
    """The rule in the module's docstring, on correlations of neighbours by seed."""
    ours, theirs = paired_t(list(plain)), paired_t(list(residual))
    if min(ours.n, theirs.n) < ENOUGH:
        return Verdict.inconclusive
    below = paired_t(list(difference(residual, plain))).high < 0
    return Verdict.of(ours.high < 0.2 and theirs.low > 0.5, ours.low > 0.5 or below)


def draw(rows: pd.DataFrame) -> Figure:
    """Neighbouring images by depth; the deepest by distance; lines by layers."""
    from resexp.probes.drawing import COLOURS, DASHES, DOTS, GREY, finish, means, panels

    networks = rows[rows["when"] != "line"]
    deep = networks["depth"].max()
    figure, axes = panels(3, 76, sharey=True)
    by_depth, by_part, by_layers = axes
    line: dict[str, Any] = {"linewidth": 1.3, "marker": "o", "ms": 3}
    strokes = {"start": "-", "end": DASHES}
    for (when, stroke), (arch, colour) in product(strokes.items(), COLOURS.items()):
        some, style = those(networks, when=when, arm=arch), {"color": colour, "linestyle": stroke}
        means(by_depth, those(some, part=NEAR), "depth", "correlation", **style, **line)
        means(by_part, those(some, depth=deep), "part", "correlation", **style, **line)
    for arm in ARMS:
        arch, _, ending = arm.partition(" ")
        stroke = {"": DOTS, "batch norm": DASHES}.get(ending, "-")
        style = {"color": COLOURS[arch], "linestyle": stroke} | line
        means(by_layers, those(rows, when="line", arm=arm), "depth", "correlation", **style)
    labels = {
        "neighbouring images": "depth",
        f"depth {deep}": "part of the way to another image",
        "the paper's lines, at the start": "layers",
    }
    for axis, (title, label) in zip(axes, labels.items(), strict=True):
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.set(title=title, xlabel=label)
    by_depth.set_ylabel("correlation of input gradients")
    by_part.set_xscale("log", base=2)
    seeds = rows["seed"].nunique()
    return finish(
        figure,
        f"Input gradients: 1 smooth, 0 white noise; {seeds} seeds; right, solid: centred or x 0.1",
        {arch: {"color": colour} for arch, colour in COLOURS.items()}
        | {"trained; right: batch norm": {"color": GREY, "linestyle": DASHES}}
        | {"right: neither": {"color": GREY, "linestyle": DOTS}},
    )
