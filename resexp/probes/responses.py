"""Are residual functions small, and do blocks change their signal less? He et al. 2015, figure 7.

The paper shows the standard deviation of each 3x3 convolution's output after normalisation and
before the ReLU or the addition (``std``; ``scale`` is the root mean square of the scales learned
there, 1 at the start). But std is those scales, and a plain block's may take any value without
changing what the network computes: the next normalisation divides by it. The question, whether what
a block computes is close to the identity (section 3.1), has an answer without scales, by block that
keeps its input's shape:

- ``change``, the sine of the angle between input x and output y, over images, places and channels:
  0 if y is a multiple of x, 1 if nothing of x is left. Both arms end blocks in the same ReLU.
- ``branch_over_input``, |F(x)| / |x|, of residual blocks alone: a plain one adds to nothing.

Of trained networks and of the same before training: what is small there, the architecture brings.
All in training mode, with the statistics of these images.

The rule, by the median change over blocks, on one-sided 95 % bounds of means paired by seed, five
seeds or more: residual below plain at the matched depth, the greatest at which all networks of both
fit (clean training error below 10 %); residual at its greatest depth that fits below that at the
matched one; and there below its own before training: supported. One of the three above: not
supported. Else inconclusive. The textbook is right by its own measure if std of residual networks
at the matched depth is below that of plain ones by a tenth (the upper bound).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn

from resexp.analysis.statistics import Interval, paired_t
from resexp.models.blocks import Block
from resexp.models.merges import Drop
from resexp.probes import Account, Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import difference, fitted_depth, matched_depth, mean, seeds_of, those

CLAIM = (
    "A residual block changes its signal less than a plain one, and less the deeper the network."
)
SOURCE = "He et al. 2015, section 4.2, figure 7"
TEXTBOOK = (
    "Residual functions are small corrections: weaker responses than plain layers, and "
    "ResNet-20 > 56 > 110."
)
NEEDS = Needs.trained

IMAGES = 1024
SEEDS = 5
WEAKER = 0.1
COLUMNS = ("change", "branch_over_input", "std", "scale")


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """Every network, at the start and trained: a row per convolution of a block."""
    for case in tell(nets.twins(cases, "responses", SEEDS).values()):
        data = nets.load(case.settings)
        images, _ = nets.some_images(case.settings, data, IMAGES)
        networks = {"start": nets.at_start(case.settings, data), "end": nets.trained(case, data)}
        for when, network in networks.items():
            for row in responses(network, images):
                yield nets.about(case) | {"when": when} | row


@torch.no_grad()
def responses(network: nn.Module, images: Tensor) -> list[Row]:
    """What the module's docstring defines, in forward order; of blocks in their last row."""
    rows: list[Row] = []
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    norms: dict[nn.Module, int] = {}  # their number in their block
    for block in blocks:
        own = [one for one in block.branch.children() if isinstance(one, nn.BatchNorm2d)]
        norms |= {norm: number for number, norm in enumerate(own, start=1)}

    def normalised(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        row = {"layer": len(rows) + 1, "of_block": norms[norm]} | dict.fromkeys(COLUMNS)
        row["std"] = output.std(correction=0).item()
        row["scale"] = norm.weight.square().mean().sqrt().item()
        rows.append(row)

    def branched(branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape == inputs[0].shape:
            rows[-1]["branch_over_input"] = (output.norm() / inputs[0].norm()).item()

    def ended(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape == inputs[0].shape:
            rows[-1]["change"] = sine(inputs[0], output)

    sums = [block.branch for block in blocks if not isinstance(block.merge, Drop)]
    watched = nets.hooked(norms, normalised), nets.hooked(sums, branched)
    with watched[0], watched[1], nets.hooked(blocks, ended):
        network.train()(images)
    return rows


def sine(x: Tensor, y: Tensor) -> float:
    """Of the angle between two tensors: the norm of y without its part along x, over that of y."""
    rest = y - (x * y).sum() / x.square().sum() * x
    return float(rest.norm() / y.norm())


# --- from the rows


def deepest(rows: pd.DataFrame) -> int:
    """Of residual networks that fit, the greatest depth; if there is none the least."""
    return fitted_depth(rows, "residual") or int(rows["depth"].min())


def by_seed(rows: pd.DataFrame, column: str, arch: str, depth: int, when: str) -> pd.Series[float]:
    """Of a network's second convolutions the mean, of its blocks that keep shapes the median."""
    some = those(rows, arch=arch, depth=depth, when=when, of_block=2)
    if column in ("std", "scale"):
        return some.groupby("seed")[column].agg(mean)
    return some.dropna(subset=column).groupby("seed")[column].median()


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    networks = sorted(set(zip(rows["arch"], rows["depth"], rows["when"], strict=True)))
    numbers = {
        f"{column}, {arch} {depth}, {when}": mean(some)
        for arch, depth, when in networks
        for column in COLUMNS
        if len(some := by_seed(rows, column, arch, depth, when))
    }
    (at, fit, here), deep = matched_depth(rows), deepest(rows)
    residual, plain, deeper = ("residual", at), ("plain", at), ("residual", deep)
    change, start = (
        {one: by_seed(rows, "change", *one, when) for one in (residual, plain, deeper)}
        for when in ("end", "start")
    )
    than_plain = difference(change[residual], change[plain])
    than_shallow = difference(change[deeper], change[residual])
    learned = difference(change[deeper], start[deeper])
    std = difference(*(by_seed(rows, "std", *one, "end") for one in (residual, plain)))
    told = {
        f"change of the signal by a block, residual-{at} less plain-{at}": than_plain,
        f"residual-{deep} less residual-{at}": than_shallow,
        f"residual-{deep}, trained less at the start": learned,
        f"standard deviation, residual-{at} less plain-{at}": std,
    }
    ratio = [numbers[f"branch_over_input, residual {deep}, {when}"] for when in ("end", "start")]
    changes = ", ".join(
        f"{arch}-{depth} {mean(some):.2f} (before training {mean(start[arch, depth]):.2f})"
        for (arch, depth), some in change.items()
    )
    return Finding(
        judge(fit, [paired_t(list(some)) for some in (than_plain, than_shallow, learned)]),
        f"{here}, the sine of the angle between a trained block's input and output is, in the "
        f"median: {changes}; |F(x)|/|x| of residual-{deep} is {ratio[0]:.2f} (before "
        f"{ratio[1]:.2f}).",
        numbers=numbers,
        conventions=[
            "change of the signal: that sine, 0 where a block gives back its input or a multiple; "
            "standard deviation: of second convolutions after normalisation",
            f"{IMAGES} training images at most in one batch, whose own statistics are used; "
            f"{seeds_of(rows)}; blocks that change shapes left out",
        ],
        headlines=[Headline(what, some, form="+.3f") for what, some in told.items()],
        account=account(paired_t(list(std)), at),
    )


def account(std: Interval, depth: int) -> tuple[Account, str]:
    """How right the textbook is by its own measure, beside a plain network that fits."""
    return Account.right if std.upper < -WEAKER else Account.overgeneralised, (
        "its measure is the standard deviation after normalisation, which is the scale learned "
        "there, and free in plain networks; its deep plain networks train worse. At "
        f"depth {depth} residual less plain is {std.mean:+.3f} ({std.low:+.3f} to {std.high:+.3f})."
    )


def judge(fit: bool, changes: Sequence[Interval]) -> Verdict:
    """The rule: residual less plain, less at the matched depth, less before training."""
    if not fit or min(one.n for one in changes) < SEEDS:
        return Verdict.inconclusive
    supported, refuted = (one.upper < 0 for one in changes), (one.lower > 0 for one in changes)
    return Verdict.of(all(supported), any(refuted))


def draw(rows: pd.DataFrame) -> Figure:
    """Change by convolution at the matched depth, and of the deepest that fit."""
    from resexp.probes.drawing import COLOURS, DOTS, GREY, finish, means, panels

    both, residual = ["plain", "residual"], ["residual"]
    shown, strokes = {matched_depth(rows)[0]: both}, {"end": "-", "start": DOTS}
    shown.setdefault(deepest(rows), residual)
    figure, axes = panels(len(shown), 70, sharey=True, squeeze=False)
    for axis, (depth, archs) in zip(axes[0], shown.items(), strict=True):
        for arch, (when, stroke) in product(archs, strokes.items()):
            some = those(rows, arch=arch, depth=depth, when=when)
            style = {"color": COLOURS[arch], "linestyle": stroke, "linewidth": 1.1}
            means(axis, some, "layer", "change", **style)
        axis.set(title=f"depth {depth}", xlabel="convolution, from the input", ylim=(0, 1))
    axes[0, 0].set_ylabel("change of the signal (sine)")
    lines = {arch: {"color": COLOURS[arch]} for arch in both}
    lines |= {"trained": {"color": GREY}, "at the start": {"color": GREY, "linestyle": DOTS}}
    seeds = rows["seed"].nunique()
    return finish(figure, f"What blocks do to their signal, means of {seeds} seeds", lines)
