"""One pass of an empty image through a network: what each layer gets, gives, holds and multiplies.

The size of a network (``models.measure``), the least work of a training step (``bench.roofline``)
and the tables and diagrams of ``resexp explain`` are all read from this one pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Call:
    """One module's turn in a pass of one image."""

    name: str  # as in the names of its parameters; empty: the network
    module: nn.Module
    into: tuple[int, ...]  # shape of its first argument, without the number of images
    out: tuple[int, ...]
    parameters: int  # its own, not those of modules in it; at its first turn alone
    multiply_adds: int
    calls: list[Call]  # of modules in it, in order

    @property
    def values(self) -> int:
        """Numbers that it reads and writes."""
        return math.prod(self.into) + math.prod(self.out)

    def walk(self) -> Iterator[Call]:
        """This call and all within it; what is within comes first."""
        for inner in self.calls:
            yield from inner.walk()
        yield self


def one_pass(network: nn.Module, channels: int, size: tuple[int, int]) -> Call:
    """The call of ``network`` in evaluation mode on one image of ``size`` pixels.

    The pass is made where the parameters are; on the meta device it takes no memory, but torch
    imports 1.5 s of modules for it. The network stays as it was.
    """
    names = {module: name for name, module in network.named_modules()}
    seen: set[nn.Module] = set()
    under_way: list[list[Call]] = [[]]  # the calls within each module that is being called

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        under_way.append([])

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, within = inputs[0], under_way.pop()
        own = 0 if module in seen else sum(p.numel() for p in module.parameters(recurse=False))
        seen.add(module)
        shapes = shape_of(x), shape_of(output)
        products = multiply_adds(module, x, output)
        under_way[-1].append(Call(names[module], module, *shapes, own, products, within))

    handles = [module.register_forward_pre_hook(enter) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(next(network.parameters()).new_zeros(1, channels, *size))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return under_way[0][0]


def shape_of(value: Any) -> tuple[int, ...]:
    """A tensor's shape for one image; nothing of what is no tensor."""
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


def multiply_adds(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    """Products of one layer itself on one image, 0 where there are none.

    A weight meets every pixel of a convolution's output, or of a transposed one's input. A layer
    that multiplies other things says so by a method of this name.
    """
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        met = x if isinstance(layer, nn.ConvTranspose2d) else output
        return met[0].numel() // layer.weight.shape[0] * layer.weight.numel()
    own = getattr(layer, "multiply_adds", None)
    return own(output) if own else 0
