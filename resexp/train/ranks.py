"""One network on several processes, or ranks: each takes its share of every batch.

The ranks begin alike and take equal steps, so they stay alike: gradients are summed over all ranks,
each weighted by its share of the batch, which makes them those of the whole batch's mean loss. Only
normalisation statistics may differ (see :class:`SynchronisedNorm`).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from resexp.data.batches import Plan

if TYPE_CHECKING:
    from resexp.train.fit import State

PIXELS = (0, 2, 3)  # the dimensions of [N, C, H, W] that normalisation averages over


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train one network. Alone, every method does nothing.

    Every rank must call the same methods in the same order: each waits for all.
    """

    rank: int = 0
    size: int = 1

    def share(self, plan: Plan) -> Plan:
        """This rank's part of every batch, [S, B] -> [S, B / size]: neighbours stay together.

        Where the ranks do not divide the batch, the first ones take an image more.
        """
        parts = (plan.index, plan.dy, plan.dx, plan.mirror)
        return Plan(*(part.tensor_split(self.size, 1)[self.rank] for part in parts))

    def add_up(self, gradient: Tensor, loss: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Replace a flat gradient by its sum over all ranks; returns those of loss and counts.

        All in one message, in the gradient's type.
        """
        if self.size == 1:
            return loss, counts
        parts = [part.to(gradient.dtype).flatten() for part in (gradient, loss, counts)]
        whole = torch.cat(parts)
        dist.all_reduce(whole)
        total, loss, numbers = torch.split(whole, [part.numel() for part in parts])
        gradient.copy_(total)
        return loss.squeeze(), numbers.to(counts.dtype)

    def highest(self, number: int) -> int:
        """The highest number that a rank says. Never waits for a GPU."""
        if self.size == 1:
            return number
        said = torch.tensor(number)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return int(said)

    def spread(self, state: State, over: bool) -> bool:
        """Bring every rank to rank 0's state; returns rank 0's ``over``."""
        if self.size == 1:
            return over
        packed = io.BytesIO()
        torch.save(state.state_dict(), packed)
        message: list[Any] = [packed.getvalue(), over]
        dist.broadcast_object_list(message, device=torch.device("cpu"))
        saved = torch.load(io.BytesIO(message[0]), map_location="cpu", weights_only=True)
        state.load_state_dict(saved)
        return bool(message[1])


ALONE = Ranks()


class SynchronisedNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics in training are those of all ranks' images together.

    torch's SyncBatchNorm does so on GPUs alone. In evaluation, and without gradients, where ranks
    need not be in step, it is a BatchNorm2d; the moving averages are the same on every rank.
    Without this class each rank normalises its share by itself, as the paper's two GPUs did with
    64 images each, and the moving averages that count are rank 0's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        mean, variance, count = statistics(x)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        vectors = self.weight, self.bias, mean, variance
        return Normalised.apply(x, *vectors, count, self.eps)  # type: ignore[no-untyped-call]


@torch.no_grad()
def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [C] of all ranks' [N, C, H, W], and how many values each is of.

    A rank's own moments are exact to their type; in float64 their sums over the ranks are too, for
    any mean that leaves float32 a variance.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    parts = torch.var_mean(x.to(kind), PIXELS, correction=0)
    variance, mean = (part.double() for part in parts)
    count = x.numel() // x.shape[1]
    one = torch.ones(1, dtype=torch.float64, device=x.device)
    sums = count * torch.cat([mean, variance + mean.square(), one])
    dist.all_reduce(sums)
    mean, square = (sums[:-1] / sums[-1]).chunk(2)
    return mean.to(kind), (square - mean.square()).to(kind), sums[-1].to(kind)


class Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance functions of x.

    Ioffe and Szegedy 2015, section 3, with sums over all ranks in the gradient of x. Those of
    weight and bias are this rank's, to be added up with all others.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        return batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, mean, scale, count = ctx.saved_tensors
        each = (1, -1, 1, 1)  # [C] beside [N, C, H, W]
        normal = (x - mean.view(each)) * scale.view(each)
        gradient = gradient.to(normal.dtype)
        own = torch.stack([gradient.sum(PIXELS), (gradient * normal).sum(PIXELS)])
        sums = own.clone()
        dist.all_reduce(sums)
        shift, slope = (sums / count).unbind()
        centred = gradient - shift.view(each) - normal * slope.view(each)
        dx = (centred * (weight * scale).view(each)).to(x.dtype)
        return dx, own[1], own[0], None, None, None, None


def synchronise(network: nn.Module) -> None:
    """Let every batch normalisation of a network use the statistics of all ranks."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedNorm
