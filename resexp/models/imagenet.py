"""The ImageNet family of He et al. 2015, table 1: stem, four stages of blocks, classifier.

Widths w, 2w, 4w, 8w (four times that for bottlenecks); the paper's w is 64, so ``width=64`` is its
size, and the CIFAR family's 16 a quarter of it: one setting says how wide a network is. Basic
blocks up to depth 34, bottlenecks from 50 on. Depth counts the stem, the convolutions of all
branches and the classifier; projections are left out, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from torch import nn

from resexp.models.blocks import BLOCK_SETTINGS, Stages, trained
from resexp.models.layers import LAYOUTS, Convolution, Norm, norm_of, sequence
from resexp.models.merges import RULES, SUMS
from resexp.models.options import read
from resexp.settings import Settings, Unit, UsageError

#: Blocks here have two convolutions or three: no place for a rule of single layers.
MERGES = [name for name in SUMS if not RULES[name].NEEDS]
#: What a block reads, but for what depth decides here.
READS = tuple(name for name in BLOCK_SETTINGS if name not in ("unit", "skip_span"))

#: Blocks of each stage: He et al. 2015, table 1.
STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

LEAST = 32  # pixels a side that are halved five times before one is left


class Stem(StrEnum):
    """What stands before the first stage."""

    imagenet = "imagenet"  # a 7x7 convolution and 3x3 max pooling, both with stride 2
    small = "small"  # a 3x3 convolution: for images of some 64 pixels and less


@dataclass(frozen=True, slots=True)
class Options:
    """``arch.options`` of this family."""

    stem: Stem = Stem.imagenet


def check(settings: Settings, size: tuple[int, int] | None) -> None:
    """Raise UsageError for images too small for the stem."""
    check_size(read(Options, settings.arch.options).stem, size)


def network(settings: Settings, channels: int, classes: int, size: tuple[int, int]) -> Stages:
    """The network of ``settings``, for images of at least 32 by 32, or 8 by 8 with a small stem."""
    unit = Unit.basic if settings.depth < 50 else Unit.bottleneck
    arch = replace(trained(settings), unit=unit)
    kind, words = read(Options, arch.options).stem, LAYOUTS[arch.order].stem.split()
    stem = opening(kind, words, channels, settings.width, norm_of(settings))
    return Stages(arch, settings, stem, STAGES[settings.depth], classes)


def opening(
    stem: Stem, words: list[str], channels: int, width: int, norm: Norm
) -> tuple[nn.Sequential, int]:
    """The layers of a stem, ``words`` those behind its convolution, and its output channels."""
    conv = Convolution(width, 7, 2) if stem is Stem.imagenet else Convolution(width, 3)
    layers, features = sequence(["conv", *words], channels, [conv], norm)
    if stem is Stem.imagenet:
        layers.add_module("pool", nn.MaxPool2d(3, 2, 1))
    return layers, features


def check_size(stem: Stem, size: tuple[int, int] | None) -> None:
    """Raise UsageError for images of which nothing is left to halve before the last stage."""
    if size is not None and stem is Stem.imagenet and min(size) < LEAST:
        height, width = size
        raise UsageError(
            f"arch.options.stem=imagenet halves images five times: {height}x{width} pixels are too "
            f"few, {LEAST}x{LEAST} the least. Choose arch.options.stem=small."
        )
