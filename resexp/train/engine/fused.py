"""A network whose normalisations, additions and ReLUs are the operations of engine.kernels."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from resexp.models.blocks import Block
from resexp.models.merges import Add, Drop
from resexp.train.engine.kernels import norm_act


class FusedNorm(nn.BatchNorm2d):
    """A batch normalisation, with the ReLU behind it or without. In evaluation torch's own."""

    relu = False

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(x, self, relu=self.relu)


class FusedBlock(Block):
    """A block whose last normalisation, addition and ReLU are one operation.

    It does not call ``branch``, ``merge`` and ``after`` as such: hooks on them never run.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = x = self.before(x)
        *layers, norm = self.branch.children()
        assert isinstance(norm, nn.BatchNorm2d)
        for layer in layers:
            y = layer(y)
        skip = None
        if isinstance(self.merge, Add):
            skip = self.merge.shortcut(getattr(x, "again", x))
        return norm_act(y, norm, skip, relu=True)


def use_kernels(network: nn.Module) -> int:
    """Let a network normalise by the kernels; returns how many normalisations now do.

    Every nn.BatchNorm2d of it does, together with the ReLU that follows in an nn.Sequential, or
    with the sum and the ReLU that end a :class:`Block`. Parameters, buffers and their names stay.
    """
    count = 0
    for module in list(network.modules()):
        for (_, child), (after, follower) in pairwise([*module.named_children(), ("", None)]):
            if isinstance(child, Block) and fusible(child):
                child.__class__ = FusedBlock
            elif type(child) is nn.BatchNorm2d:
                child.__class__ = FusedNorm
                if type(module) is nn.Sequential and type(follower) is nn.ReLU:
                    child.relu = True  # type: ignore[assignment]
                    setattr(module, after, nn.Identity())
                count += 1
    return count


def fusible(block: Block) -> bool:
    """Whether a block is relu(norm(...) + shortcut) and, if plain, relu(norm(...))."""
    return (
        type(block) is Block
        and type(block.merge) in (Add, Drop)
        and [type(one) for one in block.branch.children()][-1:] == [nn.BatchNorm2d]
        and [type(one) for one in block.after.children()] == [nn.ReLU]
    )
