"""What each step trains on: tables on the device, and the number of the step that comes next.

They lie in memory that stays where it is, so that a step captured in a graph can read its own row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resexp.data import Images, batches
from resexp.data.stream import Streamed, look_ahead
from resexp.settings import Settings
from resexp.train.ranks import Ranks


class Agenda:
    """The steps from one row of metrics.csv to the next."""

    def __init__(
        self, settings: Settings, data: Images, statistics: batches.Statistics, ranks: Ranks
    ) -> None:
        self.settings = settings
        self.data = data
        self.statistics = statistics
        self.ranks = ranks
        self.most = min(settings.eval_every, settings.steps)  # steps between two rows
        self.device = data.train_images.device
        self.turn = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.plan: Tensor | None = None  # int64 [most, 4, B]: row of the set, dy, dx, mirror
        self.rates: Tensor | None = None  # [most, G]
        self.wanted: list[Tensor] = []  # int64 [B] each, on the CPU: rows of a streamed set
        self.fetched: Tensor | None = None  # uint8 [B, H, W, C] of a streamed set

    def fill(self, first: int, end: int, rates: list[list[float]]) -> None:
        """Write the tables of steps ``first`` to ``end - 1``; the next step is ``first``."""
        settings = self.settings
        whole = batches.plan(
            seed=settings.seed,
            start=first,
            stop=end,
            images=len(self.data.train_labels),
            batch_size=settings.batch_size,
            crop_padding=settings.crop_padding,
            flip=settings.flip,
        )
        plan = self.ranks.share(whole)
        self.wanted = list(plan.index.unbind())
        look_ahead(self.data.train_images, self.wanted)
        packed = torch.stack([plan.index, plan.dy, plan.dx, plan.mirror.long()], 1)
        self.plan = self._written(self.plan, packed)
        self.rates = self._written(
            self.rates, torch.tensor(rates, dtype=self.statistics.mean.dtype)
        )
        self.turn.zero_()

    def _written(self, table: Tensor | None, rows: Tensor) -> Tensor:
        """The table with new first rows; made at the first call, and never moved."""
        if table is None:
            shape = (self.most, *rows.shape[1:])
            table = torch.zeros(shape, dtype=rows.dtype, device=self.device)
        table[: len(rows)].copy_(rows)
        return table

    def fetch(self, turn: int) -> None:
        """Have the images of the ``turn``-th step on the device, where they are not already."""
        images = self.data.train_images
        if isinstance(images, Streamed):
            batch = images[self.wanted[turn]]
            if self.fetched is None:
                self.fetched = torch.empty_like(batch)
            self.fetched.copy_(batch)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next step's images [B, C, H, W], its labels [B] or masks, and its rates [G].

        Reads and writes tensors on the device alone, and does not wait for it.
        """
        assert self.plan is not None and self.rates is not None
        index, dy, dx, mirror = self.plan.index_select(0, self.turn)[0].unbind()
        rates = self.rates.index_select(0, self.turn)[0]
        self.turn += 1
        crop = dy, dx, mirror.bool(), self.settings.crop_padding
        images, place = self.data.train_images, index
        if self.fetched is not None:
            images, place = self.fetched, torch.arange(len(index), device=self.device)
        pixels = batches.batch(images, self.statistics, place, *crop)
        return pixels, batches.answers(self.data.train_labels, index, *crop), rates
