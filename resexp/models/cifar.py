"""The CIFAR family of He et al. 2015, section 4.2: stem, three stages of n blocks, classifier.

Widths w, 2w, 4w (four times that for bottlenecks) at full, half and quarter resolution; depth
6n+2, or 9n+2 for bottlenecks. A block is a branch joined to its input by a merge rule, and the
rule is all that differs between the plain network and the residual one.
"""

from __future__ import annotations

from torch import Tensor, nn

from resexp.models.blocks import BLOCK_SETTINGS, classifier, stack, trained
from resexp.models.layers import LAYOUTS, Convolution, Norm, norm_of, sequence
from resexp.models.merges import SUMS
from resexp.settings import Arch, Settings, convolutions_per_block

MERGES = SUMS
READS = BLOCK_SETTINGS


def network(settings: Settings, channels: int, classes: int, size: tuple[int, int]) -> CifarNetwork:
    """The network of ``settings``, for images of any size from 8 by 8."""
    return CifarNetwork(
        trained(settings),
        depth=settings.depth,
        width=settings.width,
        channels=channels,
        classes=classes,
        norm=norm_of(settings),
    )


class CifarNetwork(nn.Module):
    """[N, C, H, W] images (H and W at least 8) -> [N, classes] logits."""

    def __init__(
        self, arch: Arch, *, depth: int, width: int, channels: int, classes: int, norm: Norm
    ) -> None:
        super().__init__()
        layout = LAYOUTS[arch.order]
        stem = [Convolution(width, 3)]
        self.stem, features = sequence(["conv", *layout.stem.split()], channels, stem, norm)
        per_stage = (depth - 2) // (3 * convolutions_per_block(arch))
        self.blocks, features = stack(arch, features, width, [per_stage] * 3, norm)
        self.end, features = sequence(layout.end.split(), features, [], norm)
        self.classifier = classifier(features, classes, arch.order, norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.end(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits
