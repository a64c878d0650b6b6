"""Merge rules whose skips fold into the branch: a plain network, trained as another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from resexp.models.blocks import Block
from resexp.models.layers import Convolution, DiracConvolution, Norm, convolution
from resexp.models.merges import Add, Drop
from resexp.settings import Arch, Normalisation, Order, Range, Unit


def fold(network: nn.Module) -> None:
    """Make the plain network that it computes of one with rules of this module, in place.

    It answers as before in evaluation mode; to train it on is to train a plain network.
    """
    for block in network.modules():
        if isinstance(block, Block) and isinstance(block.merge, Dirac | RepVGG):
            block.merge.fold(block.branch)
            block.merge = Drop()


class Dirac(Drop, name="diracnet"):
    """y = F(x), F's kernels a I + b W / |W|: Zagoruyko and Komodakis 2017.

    A plain network by another parametrisation; the skip is in the kernels, before normalisation.
    """

    formula = "F(x), kernels a I + b W / |W|"

    @dataclass(frozen=True, slots=True)
    class Options:
        identity_start: Annotated[float, Range(-100, 100), "a at the start"] = 1.0
        kernel_start: Annotated[float, Range(-100, 100), "b at the start"] = 0.1

    def __init__(self, shortcut: nn.Module, channels: int, options: Any) -> None:
        super().__init__()
        self.starts = options.identity_start, options.kernel_start

    def altered(self, conv: Convolution) -> Convolution:
        return replace(conv, dirac=self.starts) if conv.kernel == 3 else conv

    @torch.no_grad()
    def fold(self, branch: nn.Module) -> None:
        """Put a plain convolution with the same kernel in place of each."""
        for name, layer in branch.named_children():
            if isinstance(layer, DiracConvolution):
                setattr(branch, name, layer.folded())


class RepVGG(Add, name="repvgg"):
    """y = S(x) + F(x), S(x) = norm(1x1 x), and + norm(x) where shapes stay: Ding et al. 2021.

    Each layer has its own, so F is one convolution and its normalisation. Once trained, all of it
    is one convolution (``fold``): plain at inference, skips while training.
    """

    formula = "S(x) + F(x), foldable into F"
    NEEDS: ClassVar[dict[str, Any]] = {
        **{"unit": Unit.basic, "skip_span": 1, "order": Order.original},
        **{"norm": Normalisation.batch, "se_ratio": 0, "survival": 1.0},
    }

    @staticmethod
    def carries(
        arch: Arch, channels_in: int, channels_out: int, stride: int, norm: Norm
    ) -> nn.Module:
        return Branches(channels_in, channels_out, stride, norm)

    @torch.no_grad()
    def fold(self, branch: nn.Module) -> None:
        """Give the branch the kernel and shift of the whole, as it is in evaluation mode.

        Its normalisation then shifts alone.
        """
        layers: list[Any] = list(branch.children())
        conv, norm = layers
        doubled = not isinstance(self.shortcut, Branches)  # behind CReLU: in front is a Difference
        beside: Any = list(self.shortcut.children())[1] if doubled else self.shortcut
        kernel, shift = normalised(conv.weight, norm)
        parts = [normalised(beside.conv1.weight, beside.norm1)]
        if beside.norm0 is not None:
            eye = torch.eye(len(shift), dtype=kernel.dtype, device=kernel.device)
            parts.append(normalised(eye[:, :, None, None], beside.norm0))
        for centre, its_shift in parts:
            tap = centre[:, :, 0, 0]
            kernel[:, :, 1, 1] += torch.cat((tap, -tap), 1) if doubled else tap
            shift += its_shift
        conv.weight.copy_(kernel)
        norm.weight.fill_(1)
        norm.bias.copy_(shift)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


class Branches(nn.Module):
    """norm1(conv1 x), and + norm0(x) where shapes stay: what RepVGG adds to a 3x3 convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = convolution(channels_in, Convolution(channels_out, 1, stride))
        self.norm1 = norm(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.norm0 = norm(channels_out) if same else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm1(self.conv1(x))
        return y if self.norm0 is None else y + self.norm0(x)


def normalised(kernel: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and shift of a convolution with the normalisation behind it, in evaluation mode."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return kernel * scale.view(-1, 1, 1, 1), norm.bias - mean * scale
