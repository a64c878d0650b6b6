"""Number formats: what is computed in bfloat16, and the weights in that format."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resexp.settings import Precision
from resexp.train.optimizers import Optimizer

#: Layers that compute in bfloat16 with weights in bfloat16; autocast would cast theirs each time.
LOWERED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def weights_type(precision: Precision) -> torch.dtype:
    """The type of weights, images and statistics."""
    return torch.float64 if precision is Precision.fp64 else torch.float32


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 activations where ``precision`` asks for them; losses are computed in fp32."""
    enabled = precision is Precision.bf16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


class CastWeights:
    """With bf16 the weights of LOWERED layers in bfloat16, all cast in one go; else nothing.

    The numbers are autocast's own, which would cast every weight, and its gradient back, alone: two
    kernels a layer. ``leaves`` is what a step differentiates, in the order of the optimizer's
    parameters.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, precision: Precision) -> None:
        self.weights = optimizer.weights
        named = list(zip(optimizer.names, optimizer.parameters, strict=True))
        self.copy: Tensor | None = None
        self.replaced: dict[str, Tensor] = {}
        if precision is Precision.bf16:
            self.copy = torch.empty_like(self.weights, dtype=torch.bfloat16)
            layers = [module for module in network.modules() if isinstance(module, LOWERED)]
            wanted = {id(one) for layer in layers for one in layer.parameters(recurse=False)}
            views = zip(named, optimizer.views(self.copy), strict=True)
            self.replaced = {n: v.requires_grad_() for (n, one), v in views if id(one) in wanted}
        self.leaves = [self.replaced.get(name, parameter) for name, parameter in named]

    def call(self, network: nn.Module, images: Tensor) -> Tensor:
        """The network's outputs with its weights as they are now."""
        if self.copy is None:
            return network(images)
        self.copy.data.copy_(self.weights)
        return functional_call(network, self.replaced, (images,), tie_weights=False)
