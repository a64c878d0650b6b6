"""The CIFAR family of He et al. 2015, section 4.2: stem, three stages of n blocks, classifier.

Widths w, 2w, 4w (four times that for bottlenecks) at full, half and quarter resolution; depth
6n+2, or 9n+2 for bottlenecks. A block is a branch joined to its input by a merge rule, and the
rule is all that differs between the plain network and the residual one.
"""

from __future__ import annotations

from resexp.models.blocks import BLOCK_SETTINGS, Stages, trained
from resexp.models.layers import LAYOUTS, Convolution, norm_of, sequence
from resexp.models.merges import SUMS
from resexp.settings import Settings, convolutions_per_block

MERGES = SUMS
READS = BLOCK_SETTINGS


def network(settings: Settings, channels: int, classes: int, size: tuple[int, int]) -> Stages:
    """The network of ``settings``, for images of any size from 8 by 8."""
    arch = trained(settings)
    words, conv = ["conv", *LAYOUTS[arch.order].stem.split()], Convolution(settings.width, 3)
    stem = sequence(words, channels, [conv], norm_of(settings))
    per_stage = (settings.depth - 2) // (3 * convolutions_per_block(arch))
    return Stages(arch, settings, stem, [per_stage] * 3, classes)
