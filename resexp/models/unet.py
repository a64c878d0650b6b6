"""The U-Net of Ronneberger et al. 2015, figure 1: segmentation, with long skips.

A level is a branch joined to its input by a merge rule too, but the branch is all that lies below:
pooling, the next level at half the resolution and twice the channels, and a 2x2 up-convolution. The
rule concatenates (the paper), adds, or drops the input; two 3x3 convolutions stand before it and
two behind. n levels and the bottom make depth 5n+3: four 3x3 and an up-convolution a level, two 3x3
at the bottom, one 1x1 classifier. The paper has n = 4, depth 23, width 64, no normalisation.

Of the paper's training, dropout, elastic deformations and the weight map of borders are left out.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from resexp.models.blocks import trained
from resexp.models.layers import Convolution, norm_of, sequence
from resexp.models.merges import Rule, rule
from resexp.models.options import read
from resexp.settings import Merge, Normalisation, Settings, Twin, UsageError

MERGES = (Merge.concatenate, Merge.residual, Merge.plain)
MATCHED_TWIN = True
READS = ("norm",)
TASK = "segmentation"

MATCHED = 0.01  # share by which the parameters of a matched twin may differ


class Padding(StrEnum):
    """What a 3x3 convolution sees beyond the border of its input."""

    same = "same"  # zeros: every level keeps its size
    valid = "valid"  # nothing, it yields two pixels less: the paper


@dataclass(frozen=True, slots=True)
class Options:
    """``arch.options`` of this family."""

    padding: Padding = Padding.same


class UNet(nn.Module):
    """[N, C, H, W] images of any size from 8 by 8 -> [N, classes, H, W] logits.

    The images are mirrored at their border as far as the levels need (section 2 of the paper): on
    every side by what unpadded convolutions take away, and at the right and bottom up to a size
    that every pooling halves. The logits of what was added are cut off.
    """

    def __init__(
        self, settings: Settings, channels: int, classes: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        arch, norm = trained(settings), norm_of(settings)
        wide = widths(settings, channels, classes)
        self.levels = len(wide) - 1
        self.valid = read(Options, arch.options).padding is Padding.valid

        def double(channels: int, width: int) -> nn.Sequential:
            """Two 3x3 convolutions, each followed by normalisation (or a bias) and ReLU."""
            convs = 2 * [Convolution(width, 3, padded=not self.valid)]
            return sequence(2 * ["conv", "norm", "relu"], channels, convs, norm)[0]

        inner: nn.Module = double(wide[-2], wide[-1])
        for index in reversed(range(self.levels)):
            width, below = wide[index], self.levels - index - 1
            joint = rule(arch, Crop(lost(below)) if self.valid else nn.Identity(), width)
            down = double(wide[index - 1] if index else channels, width)
            rise = nn.ConvTranspose2d(wide[index + 1], width, 2, 2)
            up = double(width if joint.sums else 2 * width, width)
            inner = Level(down, inner, rise, joint, up)
        self.top = inner
        self.classifier = nn.Conv2d(wide[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = (mirrored(side, *self.tile(side), x.device) for side in (height, width))
        if len(rows) > height or len(columns) > width:
            x = x[:, :, rows[:, None], columns]
        logits: Tensor = self.classifier(self.top(x))
        return logits[:, :, :height, :width]

    def tile(self, side: int) -> tuple[int, int]:
        """Pixels of context before an image's ``side``, and after it."""
        step = 2**self.levels
        margin = lost(self.levels) // 4 if self.valid else 0
        # A bottom of m pixels is reached from step x m, and what the convolutions take before.
        extra = 4 * (step - 1) if self.valid else 0
        whole = math.ceil((side + 2 * margin - extra) / step) * step + extra
        return margin, whole - side - margin


class Level(nn.Module):
    """Two convolutions, all below as a branch beside their output, two convolutions on both.

    [N, channels, H, W] -> [N, width, H, W], or less of H and W if the convolutions are not padded.
    """

    def __init__(
        self, down: nn.Module, inner: nn.Module, rise: nn.Module, merge: Rule, up: nn.Module
    ) -> None:
        super().__init__()
        self.down = down
        self.branch = nn.Sequential(OrderedDict(pool=nn.MaxPool2d(2), inner=inner, rise=rise))
        self.merge = merge
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.merge(self.down(x), self.branch))


network = UNet


class Crop(nn.Module):
    """[N, C, H, W] -> [N, C, H - lost, W - lost]: the middle."""

    def __init__(self, lost: int) -> None:
        super().__init__()
        self.margin = lost // 2

    def forward(self, x: Tensor) -> Tensor:
        cut = slice(self.margin, -self.margin)
        return x[:, :, cut, cut]


def lost(below: int) -> int:
    """Pixels a side that unpadded convolutions take from a branch with ``below`` levels in it.

    Twice the four of the bottom; with a level around it twice its eight and its branch's.
    """
    return (24 << below) - 16


def mirrored(side: int, before: int, after: int, device: torch.device) -> Tensor:
    """Positions of ``side`` pixels with context mirrored at both ends, as often as it takes."""
    period = 2 * (side - 1)
    position = torch.arange(-before, side + after, device=device) % period
    return torch.minimum(position, period - position)


def widths(settings: Settings, channels: int, classes: int) -> list[int]:
    """Channels of every level from the top, and of the bottom.

    Doubled from level to level. A matched twin of concatenation is wider throughout, by the root of
    what its parameters would lack; as that is no whole number, the first levels are chosen from
    those near it: closest to it of all that match. Raises UsageError if none matches within 1 %.
    """
    arch = settings.arch
    levels = (settings.depth - 3) // 5
    doubled = [settings.width << index for index in range(levels + 1)]
    if settings.twin is not Twin.matched or arch.merge != Merge.concatenate:
        return doubled

    def count(widths: list[int], merge: str) -> int:
        return parameters(widths, merge, channels, classes, arch.norm)

    wanted = count(doubled, Merge.concatenate)
    factor = math.sqrt(wanted / count(doubled, Merge.plain))
    wider = [width * factor for width in doubled]
    near = [range(int(width) - 1, int(width) + 3) for width in wider[:3]]
    rest = [round(width) for width in wider[3:]]
    candidates = [[*first, *rest] for first in product(*near) if min(first) > 0]
    matching = [one for one in candidates if abs(count(one, Merge.plain) / wanted - 1) <= MATCHED]
    if not matching:
        raise UsageError(
            f"width={settings.width} has no matched twin: no network without skips has parameters "
            f"within 1 % of {wanted:,}. Choose another width, or twin=plain."
        )

    def distance(widths: list[int]) -> float:
        return sum((one / ideal - 1) ** 2 for one, ideal in zip(widths, wider, strict=True))

    return min(matching, key=distance)


def parameters(
    widths: list[int], merge: str, channels: int, classes: int, norm: Normalisation
) -> int:
    """Parameters of a network, before it is built."""
    beside = 1 if norm is Normalisation.none else 2  # a channel: a bias, or scale and shift
    total = widths[0] * classes + classes
    for index, width in enumerate(widths):
        below = channels if index == 0 else widths[index - 1]
        total += 9 * width * (below + width) + 2 * beside * width
    for width, width_below in pairwise(widths):
        merged = 2 * width if merge == Merge.concatenate else width
        total += 4 * width_below * width + width  # the up-convolution
        total += 9 * width * (merged + width) + 2 * beside * width
    return total
