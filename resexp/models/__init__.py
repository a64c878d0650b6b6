"""Networks: built from settings, counted, initialised. Knows neither data nor training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resexp.models.cifar import CifarNetwork
from resexp.models.initial import initialise
from resexp.models.layers import Norm
from resexp.settings import Settings, check_depth


@dataclass(frozen=True, slots=True)
class Size:
    """What a network costs. Published counts mix both conventions, so both are here."""

    parameters: int  # batch normalisation's scales and shifts included
    parameters_without_norm: int
    flops: int  # of one image forward, two for a multiply-add; convolutions and classifier


def structure(settings: Settings, channels: int, classes: int) -> nn.Module:
    """The network with unspecified weights, on torch's current default device."""
    check_depth(settings.depth, settings.arch.unit)
    return CifarNetwork(
        settings.arch,
        depth=settings.depth,
        width=settings.width,
        channels=channels,
        classes=classes,
        norm=Norm(settings.bn_eps, settings.bn_momentum),
    )


def build(settings: Settings, channels: int, classes: int) -> nn.Module:
    """The network with its initial weights, on the CPU, in channels-last layout."""
    network = structure(settings, channels, classes)
    initialise(network, settings.seed, settings.init)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def measure(settings: Settings, size: tuple[int, int], channels: int, classes: int) -> Size:
    """Parameters and FLOPs for images of ``size`` pixels, on the meta device: nothing is computed."""
    with torch.device("meta"):
        network = structure(settings, channels, classes)
        image = torch.empty(1, channels, *size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    return Size(
        parameters := count(network), parameters - sum(map(count, norms)), counter.get_total_flops()
    )


def count(module: nn.Module) -> int:
    """Parameters of a module, buffers left out."""
    return sum(parameter.numel() for parameter in module.parameters())
