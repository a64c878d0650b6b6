"""Stochastic gradient descent with momentum, as He et al. 2015 used it.

The rule of torch.optim.SGD (a test compares them), but with the rate as an argument, so that no
scheduler's state can drift from the step; with velocities that exist from the start, so that a
captured or resumed step has no first-step case; and without the 1.7 s import of torch._dynamo that
constructing a torch optimizer costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resexp.settings import Settings, WeightDecayOn


@dataclass(slots=True)
class Group:
    """Parameters that share a weight decay, and their velocities."""

    parameters: list[Tensor]
    velocities: list[Tensor]
    weight_decay: float
    rate: float = 1.0  # share of the learning rate


class Momentum:
    """v = m v + (g + d p);  p = p - rate v, or with Nesterov p - rate ((g + d p) + m v).

    The velocity does not hold the rate: right after a change of rate this differs from Caffe's
    v = m v + rate g.
    """

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        self.momentum = settings.momentum
        self.nesterov = settings.nesterov
        everything = settings.weight_decay_on is WeightDecayOn.all
        decay = settings.weight_decay
        small = decay if everything else 0.0
        share = settings.arch.scalar_lr
        weights: list[Tensor] = []
        others: list[Tensor] = []
        scalars: list[Tensor] = []  # single numbers, where they have a rate of their own
        for one in network.parameters():
            apart = share != 1 and one.numel() == 1
            (scalars if apart else weights if one.dim() > 1 else others).append(one)
        self.groups = [
            group(weights, decay),
            group(others, small),
            *([group(scalars, small, share)] if scalars else []),
        ]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the gradients, which are forgotten."""
        for one in self.groups:
            gradients = [gradient(parameter) for parameter in one.parameters]
            if one.weight_decay:
                torch._foreach_add_(gradients, one.parameters, alpha=one.weight_decay)
            torch._foreach_mul_(one.velocities, self.momentum)
            torch._foreach_add_(one.velocities, gradients)
            if self.nesterov:
                torch._foreach_add_(gradients, one.velocities, alpha=self.momentum)
                torch._foreach_add_(one.parameters, gradients, alpha=-rate * one.rate)
            else:
                torch._foreach_add_(one.parameters, one.velocities, alpha=-rate * one.rate)
            for parameter in one.parameters:
                parameter.grad = None

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The velocities, in the order of the parameters of each group."""
        return {"velocities": [v for one in self.groups for v in one.velocities]}

    def load_state_dict(self, saved: dict[str, list[Tensor]]) -> None:
        """Set the velocities. Raises ValueError or RuntimeError on those of another network."""
        mine = self.state_dict()["velocities"]
        for velocity, value in zip(mine, saved["velocities"], strict=True):
            velocity.copy_(value)


def group(parameters: list[Tensor], weight_decay: float, rate: float = 1.0) -> Group:
    """A group at rest."""
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    return Group(parameters, velocities, weight_decay, rate)


def gradient(parameter: Tensor) -> Tensor:
    """The gradient; zeros for a parameter of a branch that this step left out."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
