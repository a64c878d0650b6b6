"""The CIFAR family of He et al. 2015, section 4.2: stem, three stages of n blocks, classifier.

Widths w, 2w, 4w (four times that for bottlenecks) at full, half and quarter resolution; depth
6n+2, or 9n+2 for bottlenecks. A block is a branch joined to its input by a merge rule, and the
rule is all that differs between the plain network and the residual one.
"""

from __future__ import annotations

from torch import Tensor, nn

from resexp.models.layers import (
    LAYOUTS,
    Convolution,
    Layout,
    Norm,
    ZeroPad,
    convolutions,
    sequence,
)
from resexp.settings import LAYERS_PER_BLOCK, Arch, Merge, Order, Shortcut


class Drop(nn.Module):
    """The plain merge: y = F(x)."""

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return branch


class Add(nn.Module):
    """The residual merge: y = S(x) + F(x), with S the shortcut (He et al. 2015, equation 2)."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        y: Tensor = branch + self.shortcut(x)
        return y


class Block(nn.Module):
    """``after(merge(x, branch(x)))``, with ``before`` an activation that both paths share."""

    def __init__(
        self, before: nn.Module, branch: nn.Module, merge: nn.Module, after: nn.Module
    ) -> None:
        super().__init__()
        self.before = before
        self.branch = branch
        self.merge = merge
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y: Tensor = self.after(self.merge(x, self.branch(x)))
        return y


def shortcut(arch: Arch, channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    """S(x) of a residual block: identity, zero padding (A) or a 1x1 projection (B, C).

    A projection is followed by normalisation, except before full pre-activation, where it is bare
    (He et al. 2016, section 3).
    """
    changes = stride != 1 or channels_in != channels_out
    if arch.shortcut is Shortcut.A and changes:
        return ZeroPad(channels_in, channels_out, stride)
    if not changes and arch.shortcut is not Shortcut.C:
        return nn.Identity()
    words = ["conv"] if arch.order is Order.full_preactivation else ["conv", "norm"]
    return sequence(words, channels_in, [Convolution(channels_out, 1, stride)], norm)[0]


def merge(arch: Arch, channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    """The rule that joins a branch to its input."""
    if arch.merge is Merge.plain:
        return Drop()
    return Add(shortcut(arch, channels_in, channels_out, stride, norm))


def block(
    arch: Arch, layout: Layout, channels: int, width: int, stride: int, first: bool, norm: Norm
) -> tuple[Block, int]:
    """One block on ``channels`` inputs, and its output channels."""
    convs = convolutions(arch.unit, width, stride)
    channels_out = convs[-1].channels
    shared = first or stride != 1 or channels != channels_out
    opening = layout.preactivation
    before, _ = sequence(opening if shared else [], channels, [], norm)
    branch, _ = sequence(
        ([] if shared else opening) + layout.branch(len(convs)), channels, convs, norm
    )
    after, _ = sequence(layout.after, channels_out, [], norm)
    join = merge(arch, channels, channels_out, stride, norm)
    return Block(before, branch, join, after), channels_out


class CifarNetwork(nn.Module):
    """[N, C, H, W] images (H and W at least 8) -> [N, classes] logits."""

    def __init__(
        self, arch: Arch, *, depth: int, width: int, channels: int, classes: int, norm: Norm
    ) -> None:
        super().__init__()
        layout = LAYOUTS[arch.order]
        stem = [Convolution(width, 3)]
        self.stem, features = sequence(["conv", *layout.stem.split()], channels, stem, norm)
        blocks: list[nn.Module] = []
        for stage in range(3):
            for index in range((depth - 2) // LAYERS_PER_BLOCK[arch.unit]):
                stride = 2 if stage > 0 and index == 0 else 1
                one, features = block(
                    arch, layout, features, width * 2**stage, stride, not blocks, norm
                )
                blocks.append(one)
        self.blocks = nn.Sequential(*blocks)
        self.end, _ = sequence(layout.end.split(), features, [], norm)
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.end(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits
