"""What each step trains on: tables on the device, and the number of the step that comes next.

They lie in memory that stays where it is, so that a step captured in a graph can read its own row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from resexp.data import Images, batches
from resexp.data.stream import Streamed, look_ahead
from resexp.settings import Settings
from resexp.train.ranks import Ranks
from resexp.train.schedule import learning_rate, next_row

#: Images of all the steps that the tables hold: they take 4 MB.
MOST = 2**17


@dataclass
class StepInputs:
    """Some steps ahead, at most to the next row of metrics.csv."""

    settings: Settings
    data: Images
    statistics: batches.Statistics
    ranks: Ranks
    rates_of: Callable[[float, int], list[list[float]]]  # the optimizer's, of a rate and a step

    def __post_init__(self) -> None:
        settings = self.settings
        self.most = min(settings.eval_every, settings.steps, max(1, MOST // settings.batch_size))
        self.device = self.data.train_images.device
        self.ahead = range(0)  # the steps that the tables hold
        self.turn = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.table: Tensor | None = None  # int64 [most, 4, B]: row of the set, dy, dx, mirror
        self.rates: Tensor | None = None  # [most, G, n]
        self.wanted: list[Tensor] = []  # int64 [B] each, on the CPU: rows of a streamed set
        self.fetched: Tensor | None = None  # uint8 [B, H, W, C] of a streamed set

    def plan(self, step: int) -> tuple[range, batches.Plan]:
        """What the tables shall hold from ``step`` on; at hand when it is asked for again."""
        settings = self.settings
        ahead = range(step, min(next_row(settings, step), step + self.most))
        plan = batches.planned(settings, ahead.start, ahead.stop, len(self.data.train_labels))
        return ahead, self.ranks.share(plan)

    def prepare(self, step: int) -> None:
        """Have ready what ``next`` gives for this step.

        To be called for each step in turn, outside of what is captured.
        """
        if step not in self.ahead:
            self._fill(step)
        images = self.data.train_images
        if isinstance(images, Streamed):
            batch = images[self.wanted[step - self.ahead.start]]
            if self.fetched is None:
                self.fetched = torch.empty_like(batch)
            self.fetched.copy_(batch)

    def _fill(self, step: int) -> None:
        """Write the tables from ``step`` on and begin at their first row."""
        self.ahead, plan = self.plan(step)
        rates = [self.rates_of(learning_rate(self.settings, one), one) for one in self.ahead]
        packed = torch.stack([plan.index, plan.dy, plan.dx, plan.mirror.long()], 1)
        self.table = self._written(self.table, packed)
        numbers = torch.tensor(rates, dtype=self.statistics.mean.dtype)
        self.rates = self._written(self.rates, numbers)
        self.turn.zero_()
        self.wanted = list(plan.index.unbind())
        look_ahead(self.data.train_images, self.wanted)

    def _written(self, table: Tensor | None, rows: Tensor) -> Tensor:
        """The table with new first rows; made at the first call, and never moved."""
        if table is None:
            shape = (self.most, *rows.shape[1:])
            table = torch.zeros(shape, dtype=rows.dtype, device=self.device)
        table[: len(rows)].copy_(rows)
        return table

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next step's images [B, C, H, W], its labels [B] or masks, and its rates [G, n].

        Reads and writes tensors on the device alone, and does not wait for it.
        """
        assert self.table is not None and self.rates is not None
        index, dy, dx, mirror = self.table.index_select(0, self.turn)[0].unbind()
        rates = self.rates.index_select(0, self.turn)[0]
        self.turn += 1
        crop = dy, dx, mirror.bool(), self.settings.crop_padding
        images, place = self.data.train_images, index
        if self.fetched is not None:
            images, place = self.fetched, torch.arange(len(index), device=self.device)
        pixels = batches.batch(images, self.statistics, place, *crop)
        return pixels, batches.answers(self.data.train_labels, index, *crop), rates
