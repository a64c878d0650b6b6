"""Several streams in place of one, which blocks read, write and mix: hyper-connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from resexp.models.merges import Add, Branch
from resexp.settings import Range


class Streams(Add, name="streams"):
    """y = A S(x) + b F(m x), x several streams, A a square, b and m a number a stream, all learned.

    Hyper-connections (Zhu et al. 2024, arXiv 2409.19606), static; with ``doubly_stochastic`` A is
    made so by Sinkhorn's steps (Xie et al. 2025, arXiv 2512.24880). The streams stand one after the
    other in the first dimension: the first block makes them of x, the last gives their mean (the
    sum there; here no normalisation follows). At the start A = I, b = 1 and m picks one stream, so
    the network is the residual one; what is learned is the distance from that.
    """

    formula = "A S(x) + b F(m x)"

    @dataclass(frozen=True, slots=True)
    class Options:
        streams: Annotated[int, Range(2, 16), "copies of x that are carried"] = 4
        doubly_stochastic: Annotated[bool, "A's rows and columns sum to 1"] = False

    NEEDS: ClassVar[dict[str, Any]] = {"skip_stages": None, "survival": 1.0}
    start = 0.0
    far = -8.0  # log of what stands beside A's diagonal before Sinkhorn's steps

    def __init__(self, shortcut: nn.Module, channels: int, options: Any) -> None:
        super().__init__(shortcut)
        self.count, self.stochastic = options.streams, options.doubly_stochastic
        self.mix = nn.Parameter(torch.empty(self.count, self.count))
        self.read = nn.Parameter(torch.empty(self.count))
        self.write = nn.Parameter(torch.empty(self.count))

    @property
    def square(self) -> Tensor:
        """A, [streams, streams]."""
        same = torch.eye(self.count, dtype=self.mix.dtype, device=self.mix.device)
        return sinkhorn(self.far * (1 - same) + self.mix) if self.stochastic else same + self.mix

    def apart(self, x: Tensor) -> Tensor:
        """[streams N, ...] -> [streams, N, ...]"""
        return x.reshape(self.count, -1, *x.shape[1:])

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        first, last = self.place.number == 1, self.place.number == self.place.count
        picked = torch.zeros_like(self.read)
        picked[(self.place.number - 1) % self.count] = 1
        streams = self.apart(torch.cat([x] * self.count) if first else x)
        change = branch(torch.tensordot(self.read + picked, streams, 1))
        carried = self.apart(self.shortcut(streams.flatten(0, 1)))
        write = (1 + self.write).view(-1, *[1] * change.dim())
        y: Tensor = torch.tensordot(self.square, carried, 1) + write * change
        return y.mean(0) if last else y.flatten(0, 1)


def sinkhorn(logs: Tensor, times: int = 20) -> Tensor:
    """exp of a square of logarithms, its rows and columns in turn divided by their sums."""
    for step in range(2 * times):
        logs = logs - torch.logsumexp(logs, dim=1 - step % 2, keepdim=True)
    return logs.exp()
