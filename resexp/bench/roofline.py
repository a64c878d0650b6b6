"""What a step of training must compute and move at the least, and what a device can at the most.

The roofline of Williams, Waterman and Patterson 2009: a step takes no less time than its FLOPs at
the peak rate, nor than its bytes at the peak bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from resexp import models
from resexp.models.trace import one_pass
from resexp.settings import Precision
from resexp.train.device import wait
from resexp.train.precision import weights_type

MOVES = 6  # of a parameter in a step: weight, gradient and velocity, each read and written once
WITH_WEIGHTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product shows the peak rate
COPIED = {"cpu": 2**26, "cuda": 2**28}  # floats, more than a cache holds
MEASURED = 0.3  # seconds of each peak; the best of at least REPEATS
REPEATS = 3


class Amount(NamedTuple):
    """What a step must do at the least, or what a device does in a second."""

    flops: float  # two for a multiply-add
    bytes: float  # read and written

    def seconds(self, peak: Amount) -> float:
        """The time below which no step with this much to do can come."""
        return max(self.flops / peak.flops, self.bytes / peak.bytes)


def type_of(precision: Precision) -> torch.dtype:
    """The type that is multiplied."""
    return torch.bfloat16 if precision is Precision.bf16 else weights_type(precision)


def least_work(
    network: nn.Module, channels: int, size: tuple[int, int], batch: int, precision: Precision
) -> Amount:
    """What a step on ``batch`` images must do, from one image sent through ``network``.

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
    passes = 2  # the first layer's; the inputs of the others have gradients, too
    for call in one_pass(network, channels, size).walk():
        flops += 2 * passes * call.multiply_adds
        if isinstance(call.module, WITH_WEIGHTS):
            elements += passes * call.values
            passes = 3
    moved = MOVES * models.count(network) * weights_type(precision).itemsize
    return Amount(batch * flops, batch * elements * type_of(precision).itemsize + moved)


@cache
def peak(precision: Precision, threads: int, device: torch.device) -> Amount:
    """The best of some large products and copies on as many threads as torch has; about a second.

    The numbers are random: a GPU draws less power for ones and zeros, and multiplies them faster.
    """
    side, copied = SIDE[device.type], COPIED[device.type]
    left, right = torch.randn(2, side, side, device=device).to(type_of(precision))
    product = torch.empty_like(left)
    flops = 2 * side**3 / best(lambda: torch.mm(left, right, out=product), device)
    source = torch.randn(copied, device=device)
    target = torch.empty_like(source)
    return Amount(flops, 2 * source.nbytes / best(lambda: target.copy_(source), device))


def best(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several turns, after one that does not count.

    (torch.utils.benchmark prints warnings about CUDA where there is none.)
    """
    spent: list[float] = []
    while len(spent) <= REPEATS or sum(spent) < MEASURED:
        started = time.perf_counter()
        act()
        wait(device)
        spent.append(time.perf_counter() - started)
    return min(spent[1:])
