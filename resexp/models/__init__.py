"""Networks: built from settings, counted, initialised. Knows neither data nor training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    """The network with torch's own initial weights, on torch's current default device."""
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


def measure(network: nn.Module, channels: int, size: tuple[int, int]) -> Size:
    """Parameters and FLOPs for images of ``size`` pixels, from one pass of one image on the CPU.

    FLOPs are counted as published ones are, two for each multiply-add of a weight. (torch's
    FlopCounterMode and the meta device agree, but take 1.5 s to import.)
    """
    flops = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops
        weight = layer.get_parameter("weight")
        flops += 2 * output[0].numel() // weight.shape[0] * weight.numel()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, channels, *size))
    network.train(training)
    for handle in handles:
        handle.remove()
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    return Size(parameters := count(network), parameters - sum(map(count, norms)), flops)


def count(module: nn.Module) -> int:
    """Parameters of a module, buffers left out."""
    return sum(parameter.numel() for parameter in module.parameters())
