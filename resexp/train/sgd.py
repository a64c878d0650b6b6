"""Stochastic gradient descent with momentum, as He et al. 2015 used it, on flat memory.

The rule of torch.optim.SGD (a test compares them), but with the rate as a tensor, so that a
captured step can read it from a table and no scheduler's state can drift from the step; with
velocities that exist from the start, so that a captured or resumed step has no first-step case; in
a handful of kernels, however many parameters there are; and without the 1.7 s import of
torch._dynamo that constructing a torch optimizer costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resexp.settings import Settings, WeightDecayOn

ALIGNMENT = 32  # elements: every parameter starts at 64 bytes, in bfloat16 too, as cuDNN likes it


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that lie side by side and share a weight decay."""

    span: slice  # of the flat memory
    weight_decay: float
    rate: float = 1.0  # share of the learning rate


class Momentum:
    """v = m v + (g + d p);  p = p - rate v, or with Nesterov p - rate ((g + d p) + m v).

    The velocity does not hold the rate: right after a change of rate this differs from Caffe's
    v = m v + rate g. Making one moves the network's parameters into ``weights``, one flat tensor
    that stays where it is; ``gradient`` and ``velocity`` have its layout.
    """

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        self.momentum = settings.momentum
        self.nesterov = settings.nesterov
        everything = settings.weight_decay_on is WeightDecayOn.all
        decay = settings.weight_decay
        small = decay if everything else 0.0
        share = settings.arch.scalar_lr
        weights: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        scalars: dict[str, Tensor] = {}  # single numbers, where they have a rate of their own
        for name, one in network.named_parameters():
            apart = share != 1 and one.numel() == 1
            (scalars if apart else weights if one.dim() > 1 else others)[name] = one
        named = weights | others | scalars
        self.names = list(named)
        self.parameters = list(named.values())
        self.starts, size = layout(self.parameters)
        first = self.parameters[0]
        self.weights = torch.zeros(size, dtype=first.dtype, device=first.device)
        self.gradient = torch.zeros_like(self.weights)
        self.velocity = torch.zeros_like(self.weights)
        self.gradients = self.views(self.gradient)
        for parameter, view in zip(self.parameters, self.views(self.weights), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        ends = [*self.starts, size]
        bounds = [0, ends[len(weights)], ends[len(weights) + len(others)], size]
        rules = [(decay, 1.0), (small, 1.0), (small, share)]
        self.groups: list[Group] = []
        for start, stop, (pull, rate) in zip(bounds, bounds[1:], rules, strict=False):
            last = self.groups[-1] if self.groups else None
            if last and (last.weight_decay, last.rate) == (pull, rate):  # one update for both
                self.groups[-1] = Group(slice(last.span.start, stop), pull, rate)
            elif start < stop:
                self.groups.append(Group(slice(start, stop), pull, rate))

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each parameter's part of a tensor of the layout of ``weights``, in its own shape."""
        return [
            flat.as_strided(one.shape, one.stride(), start)
            for one, start in zip(self.parameters, self.starts, strict=True)
        ]

    def rates(self, rate: float) -> list[float]:
        """The rate of each group, for a learning rate."""
        return [rate * one.rate for one in self.groups]

    @torch.no_grad()
    def collect(self, gradients: Sequence[Tensor | None]) -> None:
        """Write the gradients, in the order of ``parameters``, into the flat one.

        None is zeros: a branch that this step left out.
        """
        pairs = list(zip(self.gradients, gradients, strict=True))
        for view, one in pairs:
            if one is None:
                view.zero_()
        kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for view, one in pairs:
            if one is not None:
                views, gradients_of = kinds.setdefault(one.dtype, ([], []))
                views.append(view)
                gradients_of.append(one)
        for views, gradients_of in kinds.values():  # of mixed types each is a launch of its own
            torch._foreach_copy_(views, gradients_of)

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        """One update from ``gradient``, which is spoilt, with the groups' rates [G]."""
        for rate, one in zip(rates.unbind(), self.groups, strict=True):
            weights, gradient = self.weights[one.span], self.gradient[one.span]
            velocity = self.velocity[one.span]
            if one.weight_decay:
                gradient.add_(weights, alpha=one.weight_decay)
            velocity.mul_(self.momentum).add_(gradient)
            if self.nesterov:
                gradient.add_(velocity, alpha=self.momentum)
                weights.addcmul_(gradient, rate, value=-1)
            else:
                weights.addcmul_(velocity, rate, value=-1)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The velocities, in the order of ``parameters``."""
        return {"velocities": self.views(self.velocity)}

    def load_state_dict(self, saved: dict[str, list[Tensor]]) -> None:
        """Set the velocities. Raises ValueError or RuntimeError on those of another network."""
        mine = self.state_dict()["velocities"]
        for velocity, value in zip(mine, saved["velocities"], strict=True):
            velocity.copy_(value)


def layout(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each tensor starts in flat memory, in elements, and the size of the whole."""
    starts, end = [], 0
    for one in tensors:
        starts.append(end)
        end += -(-one.numel() // ALIGNMENT) * ALIGNMENT
    return starts, end
