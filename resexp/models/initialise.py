"""Initial parameters: each a pure function of (seed, its name).

Two networks that share a parameter's name and shape therefore share its initial value, whatever
else differs between them: plain and residual twins start at the same point.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from resexp.models.layers import NORMS, Table
from resexp.settings import Init

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, *NORMS)


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one purpose; the values drawn are the same on every device."""
    digits = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digits[:8], "little") >> 1)


@torch.no_grad()
def initialise(network: nn.Module, seed: int, init: Init) -> None:
    """Set every parameter in place.

    Convolutions are normal with mean 0 and the variance that ``init`` names; normalisation starts
    as the identity; linear weights are uniform in +-1/sqrt(fan in) with bias 0, as those of the
    classifier in the authors' release (He et al. 2015 leave them open). A layer's attribute
    ``gain``, if it has one, multiplies its weights. Another module's parameters start at its
    attribute ``start``: raises TypeError for one without, which would keep what torch left there.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            gain = getattr(module, "gain", 1.0)
            weight = module.weight
            if isinstance(module, nn.ConvTranspose2d):
                weight = weight.transpose(0, 1)  # its inputs come first
            std = gain * convolution_std(weight, init)
            fill(module.weight, std, seed, f"{name}.weight")
        elif isinstance(module, nn.Linear):
            bound = getattr(module, "gain", 1.0) / math.sqrt(module.in_features)
            draw = torch.rand(module.weight.shape, generator=generator(seed, f"{name}.weight"))
            module.weight.copy_((2 * draw - 1) * bound)
        elif isinstance(module, NORMS):
            module.weight.fill_(1)
        elif isinstance(module, Table):
            fill(module.weight, module.std, seed, f"{name}.weight")
        elif hasattr(module, "start"):
            for parameter in module.parameters(recurse=False):
                parameter.fill_(module.start)  # type: ignore[arg-type]
        elif not isinstance(module, LAYERS) and any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"{name}: a {type(module).__name__} needs an attribute start")
        if isinstance(module, LAYERS) and module.bias is not None:
            module.bias.zero_()


def fill(weight: Tensor, std: float, seed: int, name: str) -> None:
    """Normal values of mean 0 and standard deviation ``std``, by (seed, name)."""
    weight.copy_(std * torch.randn(weight.shape, generator=generator(seed, name)))


def convolution_std(weight: Tensor, init: Init) -> float:
    """Standard deviation for a weight [C_out, C_in, k, k] (He et al. 2015b; Glorot 2010)."""
    channels_out, channels_in, height, width = weight.shape
    fan_out, fan_in = channels_out * height * width, channels_in * height * width
    variance = {
        Init.he_fan_out: 2 / fan_out,
        Init.he_fan_in: 2 / fan_in,
        Init.xavier: 2 / (fan_in + fan_out),
    }[init]
    return math.sqrt(variance)
