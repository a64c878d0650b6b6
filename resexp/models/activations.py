"""Activations: what stands for the word ``relu``, and what weights behind it make up for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from resexp.settings import Activation, Settings

ETA = 0.9  # TAT: the cosine at the end of the network of two images at right angles


@dataclass(frozen=True, slots=True)
class Nonlinearity:
    """One activation phi; TAT is a leaky ReLU with the slope of the network's depth."""

    kind: Activation = Activation.relu
    slope: float = 0.0  # of negative values

    def __call__(self, inplace: bool) -> nn.Module:
        """The layer; ``inplace`` if it may overwrite its input."""
        match self.kind:
            case Activation.relu:
                return nn.ReLU(inplace)
            case Activation.selu:
                return nn.SELU()  # overwriting, it sends back other last bits
            case Activation.tanh:
                return nn.Tanh()
            case Activation.crelu:
                return CReLU()
        return nn.LeakyReLU(self.slope, inplace)

    @property
    def factor(self) -> int:
        """Channels put out for each that comes in."""
        return 2 if self.kind is Activation.crelu else 1

    @property
    def power(self) -> float:
        """1 / E[phi(z)^2], z ~ N(0, 1): the variance of weights over inputs that keeps z's.

        Tanh counts as the identity that it is near 0, as by Glorot and Bengio 2010.
        """
        rectifies = self.kind not in (Activation.selu, Activation.tanh)
        return 2 / (1 + self.slope**2) if rectifies else 1.0


RELU = Nonlinearity()


class CReLU(nn.Module):
    """[relu(x), relu(-x)], [N, C, H, W] -> [N, 2 C, H, W]: Shang et al. 2016."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.cat((x, -x), 1))


class Difference(nn.Module):
    """The first half of the channels minus the second: what x was before CReLU."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return first - second


def nonlinearity_of(settings: Settings) -> Nonlinearity:
    """The activation that ``settings`` ask for. A network has ``depth`` - 1 of them in a row."""
    kind, slope = settings.arch.activation, settings.arch.slope
    if kind is Activation.tat:
        return Nonlinearity(Activation.leaky_relu, tat_slope(settings.depth - 1))
    return Nonlinearity(kind, slope if kind is Activation.leaky_relu else 0.0)


@cache
def tat_slope(layers: int, eta: float = ETA) -> float:
    """The slope with which ``layers`` leaky ReLUs take the cosine 0 to ``eta``: TAT.

    Zhang, Botev and Martens 2022 (arXiv 2203.08120), for networks without skips. 0, a ReLU, if
    so few layers do not reach it.
    """
    low, high = 0.0, 1.0  # the cosine falls as the slope rises
    if cosine_after(layers, low) <= eta:
        return low
    while high - low > 1e-12:
        slope = (low + high) / 2
        low, high = (slope, high) if cosine_after(layers, slope) > eta else (low, slope)
    return (low + high) / 2


def cosine_after(layers: int, slope: float, cosine: float = 0.0) -> float:
    """The cosine of two inputs after wide random layers, each behind a leaky ReLU: its C map."""
    share = (1 - slope) ** 2 / (math.pi * (1 + slope**2))
    for _ in range(layers):
        bent = math.sqrt(max(0.0, 1 - cosine**2)) - cosine * math.acos(min(1.0, cosine))
        cosine += share * bent
    return cosine
