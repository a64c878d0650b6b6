"""What a step of training must compute and move at the least, and what a device can at the most.

The roofline of Williams, Waterman and Patterson 2009: a step takes no less time than its FLOPs at
the peak rate, nor than its bytes at the peak bandwidth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resexp import models
from resexp.settings import Precision
from resexp.train.device import wait
from resexp.train.precision import weights_type

MOVES = 6  # of a parameter in a step: weight, gradient and velocity, each read and written once
WITH_WEIGHTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product shows the peak rate
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes, more than a cache holds
MEASURED = 0.3  # seconds of each peak; the best of at least REPEATS
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Work:
    """The least that one step of training can be."""

    flops: int  # forward, data gradients and weight gradients, two for a multiply-add
    bytes: int


@dataclass(frozen=True, slots=True)
class Peak:
    """What a device does a second, measured."""

    flops: float  # in a large matrix product
    bytes: float  # read and written, in a large copy

    def seconds(self, work: Work) -> float:
        """The time below which no step with this much to do can come."""
        return max(work.flops / self.flops, work.bytes / self.bytes)


def type_of(precision: Precision) -> torch.dtype:
    """The type that is multiplied."""
    return torch.bfloat16 if precision is Precision.bf16 else weights_type(precision)


def least_work(
    network: nn.Module, channels: int, size: tuple[int, int], batch: int, precision: Precision
) -> Work:
    """What a step on ``batch`` images must do, from one image sent through ``network`` on the CPU.

    FLOPs: the multiply-adds of the forward pass, twice each, once more for the gradient of the
    weights and once more for that of the layer's input, which the first layer has no use for.

    Bytes: a convolution or linear layer reads its input and writes its output, reads the gradient
    of its output and writes that of its input (but the first), and reads input and gradient of the
    output for that of its weights; all in the type that ``precision`` multiplies. A weight, its
    gradient and its velocity are read and written once, in the type of the weights. All between two
    such layers is taken to be fused into them, and kernels and images to stay in the caches: no
    step moves less unless a cache keeps activations, and every other moves more.

    A network that draws which of its branches take part counts as whole.
    """
    flops = elements = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops, elements
        passes = 3 if inputs[0].requires_grad else 2
        flops += 2 * passes * models.multiply_adds(layer, inputs[0], output)
        if isinstance(layer, WITH_WEIGHTS):
            elements += passes * (inputs[0].numel() + output.numel())

    handles = [layer.register_forward_hook(add) for layer in network.modules()]
    training = network.training
    network.eval()(torch.zeros(1, channels, *size))
    network.train(training)
    for handle in handles:
        handle.remove()
    moved = MOVES * models.count(network) * weights_type(precision).itemsize
    return Work(batch * flops, batch * elements * type_of(precision).itemsize + moved)


def peak(precision: Precision, device: torch.device) -> Peak:
    """The best of some products and some copies; takes about a second."""
    side, copied = SIDE[device.type], COPIED[device.type]
    left, right = torch.ones(2, side, side, dtype=type_of(precision), device=device)
    product = torch.empty_like(left)
    flops = 2 * side**3 / best(lambda: torch.mm(left, right, out=product), device)
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peak(flops, 2 * copied / best(lambda: target.copy_(source), device))


def best(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several turns, after one that does not count."""
    act()
    wait(device)
    fastest, turns, end = math.inf, 0, time.perf_counter() + MEASURED
    while turns < REPEATS or time.perf_counter() < end:
        started = time.perf_counter()
        act()
        wait(device)
        fastest = min(fastest, time.perf_counter() - started)
        turns += 1
    return fastest
