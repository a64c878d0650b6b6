"""Merge rules: what becomes of the input x beside a branch F.

A rule holds the shortcut S and is called with x and the branch, so that a branch that is left out
need not be computed. The rules of the literature differ in the factors before S(x) and F(x); each
says its own as ``formula``, which ``resexp explain`` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from resexp.models.layers import (
    Bias,
    Convolution,
    Norm,
    ZeroPad,
    convolution,
    dropout,
    sequence,
)
from resexp.randomness import words
from resexp.settings import Arch, Merge, Order, Shortcut

Branch = Callable[[Tensor], Tensor]

#: The rules that blocks know.
SUMS = tuple(merge for merge in Merge if merge is not Merge.concatenate)

DEPTH = b"depth"  # the purpose of the random words of blocks and shortcuts


class Drop(nn.Module):
    """y = F(x): the plain network."""

    formula = "F(x)"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return branch(x)


class Add(nn.Module):
    """y = S(x) + F(x): He et al. 2015, equation 2."""

    formula = "S(x) + F(x)"

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        y: Tensor = branch(x) + self.shortcut(x)
        return y


class Concatenate(Add):
    """y = [S(x), F(x)], the channels of both: Ronneberger et al. 2015, Huang et al. 2017."""

    formula = "[S(x), F(x)]"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return torch.cat((self.shortcut(x), branch(x)), 1)


class WeightedAdd(Add):
    """y = a S(x) + b F(x), a and b constant: He et al. 2016, section 3.1."""

    def __init__(self, shortcut: nn.Module, shortcut_scale: float, branch_scale: float) -> None:
        super().__init__(shortcut)
        self.shortcut_scale = shortcut_scale
        self.branch_scale = branch_scale
        self.formula = f"{shortcut_scale:g} S(x) + {branch_scale:g} F(x)"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        y: Tensor = self.branch_scale * branch(x) + self.shortcut_scale * self.shortcut(x)
        return y


class DropoutAdd(Add):
    """y = dropout(S(x)) + F(x): He et al. 2016, section 3.1; E[dropout(S)] = S."""

    formula = "dropout(S(x)) + F(x)"

    def __init__(self, shortcut: nn.Module, dropped: float) -> None:
        super().__init__(shortcut)
        self.dropped = dropped
        self.word = 0

    def draw(self, word: int) -> None:
        """Decide which values fall in the next step."""
        self.word = word

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        carried: Tensor = self.shortcut(x)
        if self.training:
            carried = dropout(carried, self.dropped, self.word)
        return branch(x) + carried


class Gate(nn.Module):
    """T in 0..1: the sigmoid of a 1x1 convolution with biases that start at ``bias``.

    [N, C, H, W] -> the same. Highway networks (Srivastava et al. 2015) gate with a convolution like
    the branch's own; He et al. 2016, section 3.1, with 1x1, as here.
    """

    def __init__(self, channels: int, bias: float) -> None:
        super().__init__()
        self.conv = convolution(channels, Convolution(channels, 1))
        self.bias = Bias(channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.bias(self.conv(x)))


class Highway(Add):
    """y = (1 - T) S(x) + T F(x), T a gate of S(x): Srivastava et al. 2015, equation 3.

    Also "exclusive gating" of He et al. 2016, section 3.1. The gate reads the shortcut's output, so
    that it has the shape of what it weighs where shapes change too.
    """

    formula = "(1 - T) S(x) + T F(x)"

    def __init__(self, shortcut: nn.Module, channels: int, bias: float) -> None:
        super().__init__(shortcut)
        self.gate = Gate(channels, bias)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        carried: Tensor = self.shortcut(x)
        gate = self.gate(carried)
        y: Tensor = (1 - gate) * carried + gate * branch(x)
        return y


class ShortcutGate(Highway):
    """y = (1 - T) S(x) + F(x): "shortcut-only gating" of He et al. 2016, section 3.1."""

    formula = "(1 - T) S(x) + F(x)"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        carried: Tensor = self.shortcut(x)
        y: Tensor = (1 - self.gate(carried)) * carried + branch(x)
        return y


class ScaledAdd(Add):
    """y = S(x) + a F(x), a one learned number.

    a starts at 0 in ReZero (Bachlechner et al. 2020) and SkipInit (De and Smith 2020), at 1 in
    Fixup (Zhang et al. 2019).
    """

    formula = "S(x) + a F(x)"

    def __init__(self, shortcut: nn.Module, start: float) -> None:
        super().__init__(shortcut)
        self.scale = nn.Parameter(torch.empty(1))
        self.start = start

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        y: Tensor = self.shortcut(x) + self.scale * branch(x)
        return y


def merge(arch: Arch, channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    """The rule that joins a branch to its input."""
    if arch.merge is Merge.plain:
        return Drop()
    carried = shortcut(arch, channels_in, channels_out, stride, norm)
    match arch.merge:
        case Merge.weighted:
            return WeightedAdd(carried, arch.shortcut_scale, arch.branch_scale)
        case Merge.dropout:
            return DropoutAdd(carried, arch.shortcut_dropout)
        case Merge.highway:
            return Highway(carried, channels_out, arch.gate_bias)
        case Merge.shortcut_gate:
            return ShortcutGate(carried, channels_out, arch.gate_bias)
        case Merge.scaled:
            return ScaledAdd(carried, arch.branch_start)
        case _:
            return Add(carried)


def shortcut(arch: Arch, channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    """S(x): identity, zero padding (A) or a 1x1 projection (B, C).

    A projection is followed by normalisation, except before full pre-activation and in Fixup, where
    it is bare (He et al. 2016, section 3; Zhang et al. 2019).
    """
    changes = stride != 1 or channels_in != channels_out
    if arch.shortcut is Shortcut.A and changes:
        return ZeroPad(channels_in, channels_out, stride)
    if not changes and arch.shortcut is not Shortcut.C:
        return nn.Identity()
    bare = arch.order in (Order.full_preactivation, Order.fixup)
    words = ["conv"] if bare else ["conv", "norm"]
    return sequence(words, channels_in, [Convolution(channels_out, 1, stride)], norm)[0]


def drawn(network: nn.Module) -> list[nn.Module]:
    """The modules of a network whose training is random: those with a method ``draw``."""
    return [module for module in network.modules() if hasattr(module, "draw")]


def draw(modules: Iterable[nn.Module], seed: int, step: int) -> None:
    """Decide what is random in a step: a function of (seed, step) and a module's place."""
    modules = list(modules)
    if modules:
        for module, word in zip(modules, words(seed, DEPTH, step, len(modules)), strict=True):
            module.draw(int(word))  # type: ignore[operator]
