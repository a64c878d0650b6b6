"""DenseNet-BC of Huang et al. 2017, table 1: the dense networks for ImageNet, in four blocks.

Layers are bottlenecks, the stem puts out twice ``growth`` channels. Depth counts the stem, two
convolutions a layer, the transitions and the classifier. ``width`` is not read: growth is the width
(the paper's 32; 48 at depth 161).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from resexp.models.dense import MERGES, DenseNetwork, Form
from resexp.models.imagenet import Stem, check_size, opening
from resexp.models.layers import norm_of
from resexp.models.options import read
from resexp.settings import Above, Range, Settings

__all__ = ["MERGES", "READS", "Options", "check", "network"]

READS = ("norm",)

#: Layers of each dense block.
LAYERS = {
    121: (6, 12, 24, 16),
    161: (6, 12, 36, 24),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
    264: (6, 12, 64, 48),
}


@dataclass(frozen=True, slots=True)
class Options:
    """``arch.options`` of this family."""

    growth: Annotated[int, Range(1, 1024), "channels that a layer adds: k"]
    compression: Annotated[float, Above(0, 1), "share a transition keeps: theta"]
    stem: Stem = Stem.imagenet


def check(settings: Settings, size: tuple[int, int] | None) -> None:
    """Raise UsageError for images too small for the stem."""
    check_size(read(Options, settings.arch.options).stem, size)


def network(settings: Settings, channels: int, classes: int, size: tuple[int, int]) -> DenseNetwork:
    """The network of ``settings``, for images of at least 32 by 32, or 8 by 8 with a small stem."""
    options = read(Options, settings.arch.options)
    words, norm = ["norm", "relu"], norm_of(settings)
    stem, width = opening(options.stem, words, channels, 2 * options.growth, norm)
    added = [[options.growth] * count for count in LAYERS[settings.depth]]
    form = Form(added, options.compression, bottleneck=True)
    return DenseNetwork(settings, stem, width, form, classes)
