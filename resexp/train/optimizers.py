"""Optimizers: what makes a step of a gradient, on flat memory.

A rule is one class: its name (``optimizer``), the ``STATES`` it keeps, the ``factors`` that a step
has beside them, and ``update``. torch.optim has most of them (tests compare), but here the factors
are tensors, so that a captured step can read them from a table and no scheduler's state can drift
from the step; states exist from the start, so that a captured or resumed step has no first-step
case; a step is a handful of kernels, however many parameters there are; and nothing imports
torch._dynamo, as constructing a torch optimizer does, for 1.7 s. docs/extending.md adds one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import ClassVar

import torch
from torch import Tensor, nn

from resexp.models.layers import SqueezeExcitation
from resexp.models.merges import Gate
from resexp.settings import Settings, UsageError, WeightDecayOn

ALIGNMENT = 32  # elements: every parameter starts at 64 bytes, in bfloat16 too, as cuDNN likes it

#: The rules by name. Each enters itself.
OPTIMIZERS: dict[str, type[Optimizer]] = {}


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that lie side by side and are updated alike."""

    span: slice  # of the flat memory
    weight_decay: float
    rate: float = 1.0  # share of the learning rate
    own: bool = False  # those that the rule treats in a way of its own


class Optimizer:
    """What all rules are: a network's parameters in flat memory, entered in OPTIMIZERS by a name.

    Making one moves the parameters into ``weights``, one flat tensor that stays where it is;
    ``gradient`` and every one of ``states`` have its layout.
    """

    STATES: ClassVar[tuple[str, ...]] = ()  # zeros at first; a checkpoint has them by these names

    def __init_subclass__(cls, name: str) -> None:
        OPTIMIZERS[name] = cls

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        self.momentum = settings.momentum
        self.nesterov = settings.nesterov
        decay, share = settings.weight_decay, settings.arch.scalar_lr
        small = decay if settings.weight_decay_on is WeightDecayOn.all else 0.0
        own = self.own(network) or {}
        self.owned = len(own)  # the first of ``parameters``
        weights: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        scalars: dict[str, Tensor] = {}  # single numbers, where they have a rate of their own
        for name, one in network.named_parameters():
            if name not in own:
                apart = share != 1 and one.numel() == 1
                (scalars if apart else weights if one.dim() > 1 else others)[name] = one
        named = own | weights | others | scalars
        self.names, self.parameters = list(named), list(named.values())
        taken = (aligned(one.numel()) for one in self.parameters)
        *self.starts, size = accumulate(taken, initial=0)  # in elements
        first = self.parameters[0]
        self.weights = torch.zeros(size, dtype=first.dtype, device=first.device)
        self.gradient = torch.zeros_like(self.weights)
        self.states = {name: torch.zeros_like(self.weights) for name in self.STATES}
        self.gradients = self.views(self.gradient)
        for parameter, view in zip(self.parameters, self.views(self.weights), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.groups: list[Group] = []
        ends, begun = [*self.starts, size], 0
        rules = [(own, decay, 1.0), (weights, decay, 1.0), (others, small, 1.0)]
        for part, pull, rate in [*rules, (scalars, small, share)]:
            span = slice(ends[begun], ends[begun + len(part)])
            begun += len(part)
            self.add(Group(span, pull, rate, own=part is own))

    def add(self, one: Group) -> None:
        """Add a group to ``groups``, or to the last of them if they are updated alike."""
        last = self.groups[-1] if self.groups else one
        if last is not one and replace(last, span=one.span) == one:
            self.groups[-1] = replace(last, span=slice(last.span.start, one.span.stop))
        elif one.span.start < one.span.stop:
            self.groups.append(one)

    @classmethod
    def own(cls, network: nn.Module) -> dict[str, Tensor] | None:
        """The parameters that ``update`` treats in a way of its own; they lie first, as here.

        None if there is no such way.
        """
        return None

    def factors(self, rate: float, step: int) -> list[float]:
        """The numbers [n] that ``update`` has for a learning rate at a step, counted from 0."""
        return [rate]

    def update(self, group: Group, factors: Tensor) -> None:
        """One update of a group from its gradient, which may be spoilt, with its factors [n]."""
        raise NotImplementedError

    def of(self, group: Group) -> list[Tensor]:
        """The group's part of weights, gradient and each of ``states``, flat."""
        return [flat[group.span] for flat in (self.weights, self.gradient, *self.states.values())]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each parameter's part of a tensor of the layout of ``weights``, in its own shape."""
        return [
            flat.as_strided(one.shape, one.stride(), start)
            for one, start in zip(self.parameters, self.starts, strict=True)
        ]

    def rates(self, rate: float, step: int) -> list[list[float]]:
        """The factors of each group [G, n], for a learning rate at a step, counted from 0."""
        return [self.factors(rate * one.rate, step) for one in self.groups]

    @torch.no_grad()
    def collect(self, gradients: Sequence[Tensor | None]) -> None:
        """Write the gradients, in the order of ``parameters``, into the flat one.

        None is zeros: a branch that this step left out.
        """
        kinds: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for view, one in zip(self.gradients, gradients, strict=True):
            if one is None:
                view.zero_()
            else:
                kinds.setdefault(one.dtype, []).append((view, one))
        for pairs in kinds.values():  # of mixed types each is a launch of its own
            views, values = zip(*pairs, strict=True)
            torch._foreach_copy_(views, values)

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        """One update from ``gradient``, which is spoilt, with the groups' factors [G, n].

        It never waits for the device.
        """
        for factors, one in zip(rates.unbind(), self.groups, strict=True):
            self.update(one, factors)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The states, each in the order of ``parameters``."""
        return {name: self.views(flat) for name, flat in self.states.items()}

    def load_state_dict(self, saved: dict[str, list[Tensor]]) -> None:
        """Set the states. Raises KeyError, ValueError or RuntimeError on those of another."""
        for name, views in self.state_dict().items():
            for view, value in zip(views, saved[name], strict=True):
                view.copy_(value)


class Sgd(Optimizer, name="sgd"):
    """v = m v + (g + d p);  p = p - rate v, or with Nesterov p - rate ((g + d p) + m v).

    As He et al. 2015 used it. The velocity does not hold the rate: right after a change of rate
    this differs from Caffe's v = m v + rate g.
    """

    STATES = ("velocities",)

    def update(self, group: Group, factors: Tensor) -> None:
        weights, gradient, velocity = self.of(group)
        if group.weight_decay:
            gradient.add_(weights, alpha=group.weight_decay)
        weights.addcmul_(self.direction(gradient, velocity), factors[0], value=-1)

    def direction(self, gradient: Tensor, velocity: Tensor) -> Tensor:
        """v = m v + g; returns v, or with Nesterov g + m v in the gradient's memory."""
        velocity.mul_(self.momentum).add_(gradient)
        return gradient.add_(velocity, alpha=self.momentum) if self.nesterov else velocity


class AdamW(Optimizer, name="adamw"):
    """p = p - rate d p;  p = p - rate m' / (sqrt(s') + eps), m' and s' moving means of g and g^2.

    Loshchilov and Hutter 2019, algorithm 2: both means divided by 1 - beta^t, and decay apart from
    the gradient. ``momentum`` is beta 1.
    """

    STATES = ("means", "squares")
    BETA = 0.999  # of the squares
    EPS = 1e-8

    def factors(self, rate: float, step: int) -> list[float]:
        means, squares = (1 - beta ** (step + 1) for beta in (self.momentum, self.BETA))
        return [rate, rate / means, 1 / math.sqrt(squares)]

    def update(self, group: Group, factors: Tensor) -> None:
        weights, gradient, mean, square = self.of(group)
        rate, size, scale = factors.unbind()
        if group.weight_decay:
            weights.addcmul_(weights, rate, value=-group.weight_decay)
        mean.lerp_(gradient, 1 - self.momentum)
        square.mul_(self.BETA).addcmul_(gradient, gradient, value=1 - self.BETA)
        spread = torch.sqrt(square, out=gradient).mul_(scale).add_(self.EPS)
        weights.addcmul_(torch.div(mean, spread, out=spread), size, value=-1)


class Lars(Sgd, name="lars"):
    """Sgd of gradients that are as long as the weights of their layer: You et al. 2017.

    (g + d W) |W| / (|g| + d |W|) stands for the gradient of each weight; biases and the parameters
    of normalisation are Sgd's. So the rate is the length of a step, of the weights'. Where a norm
    is 0 the gradient stays as it is.
    """

    @classmethod
    def own(cls, network: nn.Module) -> dict[str, Tensor]:
        return {name: one for name, one in network.named_parameters() if one.dim() > 1}

    def update(self, group: Group, factors: Tensor) -> None:
        if group.own:
            weights, gradient, _ = self.of(group)
            gradients = self.gradients[: self.owned]
            length = torch.stack(torch._foreach_norm(self.parameters[: self.owned]))
            slope = torch.stack(torch._foreach_norm(gradients))
            slope.add_(length, alpha=group.weight_decay)
            scale = torch.where((length > 0) & (slope > 0), length / slope, 1)
            gradient.add_(weights, alpha=group.weight_decay)
            torch._foreach_mul_(gradients, list(scale.unbind()))
            group = replace(group, weight_decay=0.0)
        super().update(group, factors)


class Muon(Sgd, name="muon"):
    """W = W - rate d W;  W = W - rate s O, O the orthogonal matrix near Sgd's direction.

    Jordan et al. 2024, for hidden convolutions, each a matrix with a row a filter; other parameters
    are Sgd's. s = sqrt(max(1, rows / columns)), so that the rate is near the step's largest
    singular value. Direction is g + m v or v as ``nesterov`` says; its length means nothing.
    """

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__(network, settings)
        #: Size [count, rows, columns], stride and start of convolutions of equal shape.
        self.stacks: list[tuple[tuple[int, int, int], tuple[int, int, int], int]] = []
        start = 0
        for shape, alike in groupby(one.shape for one in self.parameters[: self.owned]):
            count, columns = len(list(alike)), shape[1:].numel()
            apart = aligned(shape.numel())
            self.stacks.append(((count, shape[0], columns), (apart, columns, 1), start))
            start += count * apart

    @classmethod
    def own(cls, network: nn.Module) -> dict[str, Tensor]:
        """Hidden convolutions, equal shapes side by side."""
        modules = network.named_modules()
        gates = [f"{name}." for name, one in modules if isinstance(one, Gate | SqueezeExcitation)]
        kernels = [pair for pair in network.named_parameters() if pair[1].dim() == 4]
        behind = kernels[1:]  # the stem
        hidden = [pair for pair in behind if not pair[0].startswith((*gates, "classifier."))]
        return dict(sorted(hidden, key=lambda pair: tuple(pair[1].shape)))

    def update(self, group: Group, factors: Tensor) -> None:
        if not group.own:
            super().update(group, factors)
            return
        weights, gradient, velocity = self.of(group)
        if group.weight_decay:
            weights.addcmul_(weights, factors[0], value=-group.weight_decay)
        direction = self.direction(gradient, velocity)
        for size, stride, start in self.stacks:
            near = orthogonalised(direction.as_strided(size, stride, start))
            _, rows, columns = size
            near *= math.sqrt(max(1, rows / columns))
            gradient.as_strided(size, stride, start).copy_(near)
        weights.addcmul_(gradient, factors[0], value=-1)


#: x -> a x + b x^3 + c x^5 five times brings what lies between 0.01 and 1 into 0.68 to 1.13.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices [N, m, n] with singular values near 1, by Newton-Schulz: Jordan et al. 2024."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def check(settings: Settings, network: nn.Module | None = None) -> None:
    """Raise UsageError for an optimizer that there is not, or has no use for nesterov or a network.

    ``network`` is what it would train, once it is there.
    """
    name = settings.optimizer
    kind = OPTIMIZERS.get(name)
    if kind is None:
        raise UsageError(f"optimizer={name} is unknown. Choose one of: {', '.join(OPTIMIZERS)}.")
    if settings.nesterov and not issubclass(kind, Sgd):
        raise UsageError(f"nesterov=true means nothing to optimizer={name}. Leave it out.")
    if network is not None and kind.own(network) == {}:
        raise UsageError(
            f"optimizer={name} is for layers that this network does not have. Use optimizer=sgd."
        )


def aligned(size: int) -> int:
    """Elements that a tensor of ``size`` takes in flat memory."""
    return -(-size // ALIGNMENT) * ALIGNMENT
