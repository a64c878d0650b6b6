"""A block: a branch joined to its input by a merge rule. Families stack blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from resexp.models.layers import (
    LAYOUTS,
    NORMS,
    Convolution,
    Norm,
    SqueezeExcitation,
    convolutions,
    norm_of,
    sequence,
)
from resexp.models.merges import Place, merge
from resexp.settings import Arch, Merge, Order, Settings, Twin

#: The settings of an arch that a block reads, beside its merge's.
BLOCK_SETTINGS = (
    *("shortcut", "order", "unit", "norm", "activation", "slope", "bottleneck_stride"),
    *("skip_span", "skip_stages", "survival", "se_ratio", "scalar_lr"),
)


class Block(nn.Module):
    """``after(merge(x, branch))``, with ``before`` an activation that both paths share."""

    def __init__(
        self, before: nn.Module, branch: nn.Module, merge: nn.Module, after: nn.Module
    ) -> None:
        super().__init__()
        self.before = before
        self.branch = branch
        self.merge = merge
        self.after = after

    @property
    def formula(self) -> str:
        """What the merge rule makes of the shortcut S(x) and the branch F(x)."""
        return str(self.merge.formula)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.merge(self.before(x), self.branch))


class RandomBlock(Block):
    """A block whose branch is left out in a share of the steps: Huang et al. 2016.

    One draw a step for the whole batch; the branch is then not computed. At evaluation it counts
    with its probability of being there.
    """

    def __init__(self, *parts: nn.Module, survival: float) -> None:
        super().__init__(*parts)
        self.survival = survival
        self.survives = True

    @property
    def formula(self) -> str:
        """The merge's, with a factor that is 1 with probability ``survival``, else 0."""
        return super().formula.replace("F(x)", "b F(x)")

    def draw(self, word: int) -> None:
        """Decide about the next step, by a uniform 64-bit word."""
        self.survives = word < self.survival * 2**64

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if not self.training:
            y = self.merge(x, lambda x: self.survival * self.branch(x))
        elif self.survives:
            y = self.merge(x, self.branch)
        else:
            y = self.merge.shortcut(x)  # type: ignore[operator]
        return self.after(y)


def block(
    arch: Arch, channels: int, width: int, stride: int, place: Place, norm: Norm
) -> tuple[Block, int]:
    """One block on ``channels`` inputs, and its output channels.

    Where CReLU made its input, the merge is given what that was before, of half the channels.
    """
    if arch.skip_stages is not None and place.stage not in arch.skip_stages:
        arch = replace(arch, merge=Merge.plain)
    layout, convs = LAYOUTS[arch.order], convolutions(arch, width, stride)
    if arch.order is Order.fixup and arch.merge != Merge.plain:
        convs = fixup_start(convs, place.count)
    convs = [replace(conv, follows=norm.activation) for conv in convs]
    factor = norm.activation.factor
    channels_out = convs[-1].channels
    carried = channels // factor if layout.after else channels
    changes = stride != 1 or carried != channels_out
    # Fixup opens with a bias of the branch alone: its shortcut carries x itself.
    shared = (place.number == 1 or changes) and arch.order is not Order.fixup
    opening = layout.preactivation
    before, channels = sequence(opening if shared else [], channels, [], norm)
    doubled = channels != carried
    joint = merge(arch, carried, channels_out, stride, norm, place, doubled=doubled)
    words = ([] if shared else opening) + layout.branch(len(convs))
    convs = [joint.altered(conv) for conv in convs]
    branch, _ = sequence(words, channels, convs, norm)
    if arch.merge != Merge.plain and isinstance(branch[-1], NORMS):
        branch[-1].ends_branch = True  # type: ignore[assignment]  # read by initialise
    if arch.se_ratio:
        branch.add_module("se", SqueezeExcitation(channels_out, arch.se_ratio))
    after, channels = sequence(layout.after, channels_out, [], norm)
    parts = before, branch, joint, after
    if arch.survival == 1 or arch.merge == Merge.plain:
        return Block(*parts), channels
    survival = 1 - place.number / place.count * (1 - arch.survival)
    return RandomBlock(*parts, survival=survival), channels


def stack(
    arch: Arch, channels: int, width: int, stages: Sequence[int], norm: Norm
) -> tuple[nn.Sequential, int]:
    """Stages of as many blocks as ``stages`` says, and their output channels.

    Each stage but the first opens with stride 2 and is twice as wide as the one before.
    """
    blocks: list[nn.Module] = []
    for stage, count in enumerate(stages):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            place = Place(len(blocks) + 1, sum(stages), stage + 1)
            one, channels = block(arch, channels, width * 2**stage, stride, place, norm)
            blocks.append(one)
    return nn.Sequential(*blocks), channels


class Pooled(nn.Module):
    """[N, C, H, W] images -> [N, classes] logits, of what is left behind the blocks' mean pixel."""

    stem: nn.Module
    blocks: nn.Module
    end: nn.Module
    classifier: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        x = self.end(self.blocks(self.stem(x)))
        return self.classifier(x.mean(dim=(2, 3)))


class Stages(Pooled):
    """Stem, stages of blocks, classifier: the networks of He et al. 2015 and all that vary them."""

    def __init__(
        self,
        arch: Arch,
        settings: Settings,
        stem: tuple[nn.Module, int],
        stages: Sequence[int],
        classes: int,
    ) -> None:
        """``stem`` is its layers and their output channels, ``stages`` the blocks of each."""
        super().__init__()
        norm = norm_of(settings)
        self.stem, features = stem
        self.blocks, features = stack(arch, features, settings.width, stages, norm)
        self.end, features = sequence(LAYOUTS[arch.order].end.split(), features, [], norm)
        self.classifier = nn.Linear(features, classes)
        self.classifier.follows = norm.activation  # type: ignore[assignment]  # for initialise
        if arch.order is Order.fixup:  # starts at 0 (Zhang et al. 2019, rule 1)
            self.classifier.gain = 0.0  # type: ignore[assignment]


def fixup_start(convs: list[Convolution], blocks: int) -> list[Convolution]:
    """The convolutions of one branch with the initial weights of Zhang et al. 2019, section 3.2.

    Those of a branch of m layers are scaled by L^(-1/(2m-2)), L the number of blocks; the last
    starts at 0. A network without skips would start dead, so twins start from He's values.
    """
    gain = blocks ** (-1 / (2 * len(convs) - 2)) if len(convs) > 1 else 0.0
    return [*(replace(conv, gain=gain) for conv in convs[:-1]), replace(convs[-1], gain=0.0)]


def trained(settings: Settings) -> Arch:
    """The arch to build: the chosen one, or its twin without skips."""
    if settings.twin is Twin.none:
        return settings.arch
    return replace(settings.arch, merge=Merge.plain)
