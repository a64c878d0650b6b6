"""Images too many for memory: fetched batch by batch, ahead of need, in the order of the plan.

A ``Streamed`` set stands where a tensor of images stands: it has a length, a shape and a device,
and indexed with a tensor of rows or a slice it gives uint8 images there. It follows a plan of
batches (``look_ahead``), which it fetches before they are asked for. Asking for something else is
never wrong, only slow: no number of a run depends on the plan, nor on how many processes fetch.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resexp.settings import Data, Stream, UsageError

SHARE = 0.5  # of the free memory: a decoded set that is larger is streamed
PIECE = 2**20  # bytes of images that a process decodes at a time
AHEAD = 2**25  # bytes of decoded images kept ready
MOST_WORKERS = 16

#: Reads the images of some files, uint8 [n, H, W, C]; or says of each file at fault what it is.
Read = Callable[[list[Any]], Tensor | list[str]]


class Damaged(Exception):
    """An image that cannot be decoded, met while training; the text names it."""


class Decoded:
    """Files that worker processes read and decode. The processes start with the first fetch.

    A piece of work travels with the names of its files: the processes hold no list of the set.
    """

    name = "files"  # for run.json

    def __init__(self, read: Read, files: Sequence[Any], image_bytes: int, workers: int) -> None:
        self.read = read
        self.files = files
        self.piece = max(1, PIECE // image_bytes)  # images
        self.workers = workers
        self.work: list[list[Any]] = []
        self.loader: DataLoader[Any] | None = None

    def pieces(
        self, wanted: Iterable[list[int]], pin: bool = False
    ) -> Iterator[Tensor | list[str]]:
        """The images of some rows at a time, in turn, or what is wrong with some of them."""
        self.work[:] = [[self.files[row] for row in rows] for rows in wanted]
        self.loader = self.loader or self._loader(pin)
        return iter(self.loader)  # lets go of what was fetched and not asked for

    def fetch(self, plan: list[list[int]], pin: bool) -> Iterator[list[Tensor]]:
        """Begin to fetch at once; yields each batch in its order, in pieces, on the CPU."""
        cut = [
            [rows[first : first + self.piece] for first in range(0, len(rows), self.piece)]
            for rows in plan
        ]
        pieces = self.pieces(chain.from_iterable(cut), pin)
        return ([_sound(next(pieces)) for _ in parts] for parts in cut)

    def peek(self, rows: list[int]) -> Tensor:
        """A few images, here and now. Raises UsageError if one is damaged."""
        images = self.read([self.files[row] for row in rows])
        if isinstance(images, list):
            raise UsageError(images[0])
        return images

    def _loader(self, pin: bool) -> DataLoader[Any]:
        apart = self.workers > 0
        return DataLoader(
            cast(Dataset[Any], Readable(self.read)),  # anything that has rows will do
            batch_sampler=self.work,
            collate_fn=_as_it_is,  # a tensor already
            num_workers=self.workers,
            multiprocessing_context=_processes() if apart else None,
            worker_init_fn=_leave_signals if apart else None,
            prefetch_factor=max(2, AHEAD // PIECE // self.workers) if apart else None,
            persistent_workers=apart,
            pin_memory=pin,
            generator=torch.Generator(),  # else it would draw from torch's own
        )


@dataclass(slots=True)
class Readable:
    """What DataLoader calls a dataset: its rows are files."""

    read: Read

    def __getitems__(self, files: list[Any]) -> Tensor | list[str]:
        return self.read(files)


@dataclass(slots=True)
class Held:
    """Images in this computer's memory that are too many for its GPU's."""

    pixels: Tensor  # uint8 [N, H, W, C], on the CPU
    name: str = "memory"

    def fetch(self, plan: list[list[int]], pin: bool) -> Iterator[list[Tensor]]:
        for rows in plan:
            images = self.peek(rows)
            yield [images.pin_memory() if pin else images]

    def peek(self, rows: list[int]) -> Tensor:
        return self.pixels[torch.tensor(rows, dtype=torch.int64)]


class Feed:
    """A plan of batches of one source, each a list of its rows, being fetched in its order.

    All the sets that share the source share the plan: they take turns at the same processes.
    """

    def __init__(self, source: Decoded | Held) -> None:
        self.source = source
        self.plan: deque[list[int]] = deque()
        self.batches: Iterator[list[Tensor]] = iter(())
        self.side: torch.cuda.Stream | None = None  # copies to the GPU while that computes

    def follow(self, plan: list[list[int]], device: torch.device) -> None:
        """Begin to fetch these batches; what is left of another plan is dropped."""
        self.plan = deque(plan)
        self.batches = self.source.fetch(plan, pin=device.type == "cuda")

    def take(self, device: torch.device) -> Tensor:
        """The plan's next batch, on ``device``; the host does not wait for the copy."""
        self.plan.popleft()
        try:
            pieces = next(self.batches)
        except BaseException:
            self.plan.clear()  # it is not known what would follow
            raise
        if device.type == "cpu":
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self.side = self.side or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.side):
            images = torch.cat([piece.to(device, non_blocking=True) for piece in pieces])
        now = torch.cuda.current_stream(device)
        now.wait_stream(self.side)
        images.record_stream(now)
        return images


@dataclass(slots=True, eq=False)
class Streamed:
    """uint8 images [N, H, W, C] that are fetched when they are asked for."""

    feed: Feed
    rows: list[int]  # of the source
    image: tuple[int, ...]  # height, width, channels
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.uint8

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self.rows), *self.image])

    def __len__(self) -> int:
        return len(self.rows)

    def dim(self) -> int:
        return 4

    def to(self, device: torch.device | str) -> Streamed:
        return Streamed(self.feed, self.rows, self.image, torch.device(device))

    def keep(self, rows: Tensor) -> Streamed:
        """The set of these rows alone, in this order; nothing is read."""
        chosen = [self.rows[row] for row in rows.tolist()]
        return Streamed(self.feed, chosen, self.image, self.device)

    def peek(self, rows: Iterable[int]) -> Tensor:
        """A few images, on the CPU, read here and now."""
        return self.feed.source.peek([self.rows[row] for row in rows])

    def look_ahead(self, plan: Iterable[Tensor]) -> None:
        """Begin to fetch these batches, each int64 [B], which will be asked for in this order.

        They had better lie on the CPU, here and when they are asked for: reading one that lies on a
        GPU waits for it.
        """
        self.feed.follow([self._of_source(batch) for batch in plan], self.device)

    def __getitem__(self, wanted: Tensor | slice) -> Tensor:
        """Images on this set's device: those of int64 rows [B], or of a slice.

        After a slice off the plan, those of the same length that follow it are the new plan.
        """
        rows = self.rows[wanted] if isinstance(wanted, slice) else self._of_source(wanted)
        if not rows:
            return torch.empty((0, *self.image), dtype=self.dtype, device=self.device)
        if not self.feed.plan or self.feed.plan[0] != rows:
            plan = [rows]
            if isinstance(wanted, slice):
                left = self.rows[slice(wanted.start, None, wanted.step)]
                plan = [left[i : i + len(rows)] for i in range(0, len(left), len(rows))]
            self.feed.follow(plan, self.device)
        return self.feed.take(self.device)

    def _of_source(self, rows: Tensor) -> list[int]:
        return [self.rows[row] for row in rows.tolist()]


def look_ahead(images: Tensor | Streamed, plan: Iterable[Tensor]) -> None:
    """Say which batches, each int64 [B], will be asked for next; a tensor has them all at hand."""
    if isinstance(images, Streamed):
        images.look_ahead(plan)


def keep(images: Tensor | Streamed, rows: Tensor) -> Tensor | Streamed:
    """The set of these rows alone."""
    return images.keep(rows) if isinstance(images, Streamed) else images[rows]


def placed(sets: list[Tensor | Streamed], device: torch.device | str) -> list[Tensor | Streamed]:
    """The sets on a device; left in memory, and streamed from there, if a GPU has no room."""
    device = torch.device(device)
    size = sum(one.nbytes for one in sets if isinstance(one, Tensor) and one.device != device)
    if device.type != "cuda" or size <= SHARE * torch.cuda.mem_get_info(device)[0]:
        return [one.to(device) for one in sets]
    return [
        Streamed(Feed(Held(one)), list(range(len(one))), tuple(one.shape[1:]), device)
        if isinstance(one, Tensor)
        else one.to(device)
        for one in sets
    ]


def room(choice: Stream) -> float:
    """Bytes that a decoded set may have in memory."""
    free = free_memory()
    share = {Stream.always: 0.0, Stream.auto: SHARE, Stream.never: 1.0}[choice]
    return float("inf") if free is None and share else share * (free or 0)


def check_room(settings: Data, images: int, image_bytes: int) -> None:
    """Raise UsageError if there is no room for a set that cannot be streamed."""
    need, free = images * image_bytes, room(Stream.never)
    if need > free:
        raise UsageError(
            f"{images:,} images of data.name={settings.name} take {need / 2**30:,.1f} GiB of "
            f"memory, and {free / 2**30:,.1f} are free. Choose a smaller data.size."
        )


def free_memory() -> int | None:
    """Bytes that this process could still take: the machine's, or its container's. Linux only."""
    free = []
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * next(int(s.split()[1]) for s in lines if s.startswith("MemAvailable")))
    with suppress(OSError, ValueError):  # a container without a limit says "max"
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        free.append(most - int((group / "memory.current").read_text()))
    return min(free, default=None)


def workers(asked: int) -> int:
    """Processes that decode: as many as asked, else one a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return asked or min(cores or 1, MOST_WORKERS)


def _sound(piece: Tensor | list[str]) -> Tensor:
    if isinstance(piece, list):
        raise Damaged(piece[0])
    return piece


def _processes() -> BaseContext:
    """How to start processes. A fork of this one would copy torch's threads in mid-stride.

    A server that has imported what they need starts each at once and in a quarter of the memory.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.data", "PIL.Image"])
    return context


def _as_it_is(piece: Any) -> Any:
    return piece


def _leave_signals(worker: int) -> None:
    """They are for the process that trains, even if all here are sent them: it needs this step."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
