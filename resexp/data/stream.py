"""Images too many for memory: fetched batch by batch, ahead of need, in the order of the plan.

A ``Streamed`` set stands where a tensor of images stands: it has a length, a shape and a device,
and indexed with a tensor of rows or a slice it gives uint8 images there. What will be asked for is
told to it (``look_ahead``), so that it is ready by then. Asking for something else is never wrong,
only slow: no number of a run depends on what was fetched ahead, nor on how many processes did it.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resexp.settings import Stream, UsageError

SHARE = 0.5  # of the free memory: a decoded set that is larger is streamed
PIECE = 2**20  # bytes of images that a process decodes at a time
AHEAD = 2**25  # bytes of decoded images kept ready
MOST_WORKERS = 16

#: Reads the images of some files, uint8 [n, H, W, C]; or says in one line which file is at fault.
Read = Callable[[list[Any]], Tensor | str]


class Damaged(Exception):
    """An image that cannot be decoded, met while training; the text names it."""


class Source(Protocol):
    """Where the images of streamed sets come from."""

    name: str  # for run.json

    def fetch(self, batches: list[list[int]], pin: bool) -> Iterator[list[Tensor]]:
        """Begin to fetch at once; yields each batch in its order, in pieces, on the CPU."""
        ...

    def peek(self, rows: list[int]) -> Tensor:
        """A few images, here and now. Raises UsageError if one is damaged."""
        ...


class Decoded:
    """Files that worker processes read and decode. The processes start with the first fetch.

    A piece of work travels with the names of its files: the processes hold no list of the set.
    """

    name = "files"

    def __init__(self, read: Read, files: Sequence[Any], image_bytes: int, workers: int) -> None:
        self.read = read
        self.files = files
        self.piece = max(1, PIECE // image_bytes)  # images
        self.workers = workers
        self.work: list[list[Any]] = []
        self.loader: DataLoader[Any] | None = None

    def fetch(self, batches: list[list[int]], pin: bool) -> Iterator[list[Tensor]]:
        self.work.clear()
        for rows in batches:
            for first in range(0, len(rows), self.piece):
                self.work.append([self.files[row] for row in rows[first : first + self.piece]])
        self.loader = self.loader or self._loader(pin)
        pieces = iter(self.loader)  # lets go of what was fetched and not asked for
        counts = [-(-len(rows) // self.piece) for rows in batches]
        return ([_sound(next(pieces)) for _ in range(count)] for count in counts)

    def peek(self, rows: list[int]) -> Tensor:
        images = self.read([self.files[row] for row in rows])
        if isinstance(images, str):
            raise UsageError(images)
        return images

    def _loader(self, pin: bool) -> DataLoader[Any]:
        apart = self.workers > 0
        return DataLoader(
            cast(Dataset[Any], Readable(self.read)),  # anything that has rows will do
            batch_sampler=self.work,
            collate_fn=_as_it_is,  # a tensor already
            num_workers=self.workers,
            multiprocessing_context=_processes() if apart else None,
            worker_init_fn=_ignore_interrupts if apart else None,
            prefetch_factor=max(2, AHEAD // PIECE // self.workers) if apart else None,
            persistent_workers=apart,
            pin_memory=pin,
            generator=torch.Generator(),  # else it would draw from torch's own
        )


@dataclass(slots=True)
class Readable:
    """What DataLoader calls a dataset: its rows are files."""

    read: Read

    def __getitems__(self, files: list[Any]) -> Tensor | str:
        return self.read(files)


@dataclass(slots=True)
class Held:
    """Images in this computer's memory that are too many for its GPU's."""

    pixels: Tensor  # uint8 [N, H, W, C], on the CPU
    name: str = "memory"

    def fetch(self, batches: list[list[int]], pin: bool) -> Iterator[list[Tensor]]:
        for rows in batches:
            images = self.peek(rows)
            yield [images.pin_memory() if pin else images]

    def peek(self, rows: list[int]) -> Tensor:
        return self.pixels[torch.tensor(rows, dtype=torch.int64)]


class Feed:
    """What is being fetched from one source, for all the sets that share it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.keys: deque[tuple[Any, ...]] = deque()
        self.held: list[Tensor] = []  # as long as they live no other tensor has their keys
        self.batches: Iterator[list[Tensor]] = iter(())
        self.side: torch.cuda.Stream | None = None  # copies to the GPU while that computes

    def begin(self, keys: list[tuple[Any, ...]], batches: list[list[int]], pin: bool) -> None:
        self.keys = deque(keys)
        self.batches = self.source.fetch(batches, pin)

    def take(self, device: torch.device) -> Tensor:
        """The next batch, on ``device``; the host does not wait for the copy."""
        self.keys.popleft()
        try:
            pieces = next(self.batches)
        except BaseException:
            self.keys.clear()  # what follows would be given under wrong keys
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
    image: tuple[int, int, int]  # height, width, channels
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

    def look_ahead(self, batches: Sequence[Tensor]) -> None:
        """Begin to fetch these batches, each int64 [B], which will be asked for in this order.

        Each must then be asked for by a tensor in the same memory: looking at its values would
        wait for a GPU. Where they lie on one, this waits for it, once for all.
        """
        self.feed.held = list(batches)
        wanted = [batch.tolist() for batch in batches]
        self._begin([self._key(batch) for batch in batches], wanted)

    def __getitem__(self, wanted: Tensor | slice) -> Tensor:
        """Images on this set's device: those of int64 rows [B], or of a slice.

        After a slice, those of the same length that follow it are expected to be asked for.
        """
        if isinstance(wanted, slice):
            some = range(len(self))[wanted]
            if not some:
                return torch.empty((0, *self.image), dtype=self.dtype, device=self.device)
            if self._next() != self._key(some):
                starts = range(some.start, len(self), len(some) * some.step)
                turns = [
                    range(len(self))[i : i + len(some) * some.step : some.step] for i in starts
                ]
                self._begin([self._key(turn) for turn in turns], [list(turn) for turn in turns])
        elif self._next() != self._key(wanted):
            self.look_ahead([wanted])
        return self.feed.take(self.device)

    def _key(self, wanted: Tensor | range) -> tuple[Any, ...]:
        if isinstance(wanted, range):
            return id(self.rows), wanted
        return id(self.rows), wanted.data_ptr(), wanted.shape, wanted.stride()

    def _next(self) -> tuple[Any, ...] | None:
        return self.feed.keys[0] if self.feed.keys else None

    def _begin(self, keys: list[tuple[Any, ...]], batches: list[list[int]]) -> None:
        batches = [[self.rows[row] for row in batch] for batch in batches]
        self.feed.begin(keys, batches, pin=self.device.type == "cuda")


def look_ahead(images: Tensor | Streamed, batches: Sequence[Tensor]) -> None:
    """Say which batches, each int64 [B], will be asked for next; a tensor has them all at hand."""
    if isinstance(images, Streamed):
        images.look_ahead(batches)


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
        Streamed(Feed(Held(one)), list(range(len(one))), _image(one), device)
        if isinstance(one, Tensor)
        else one.to(device)
        for one in sets
    ]


def room(choice: Stream) -> float:
    """Bytes that a decoded set may have before it is streamed."""
    if choice is Stream.always:
        return 0
    free = free_memory()
    return float("inf") if choice is Stream.never or free is None else SHARE * free


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


def _image(pixels: Tensor) -> tuple[int, int, int]:
    height, width, channels = pixels.shape[1:]
    return height, width, channels


def _sound(piece: Tensor | str) -> Tensor:
    if isinstance(piece, str):
        raise Damaged(piece)
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


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C is for the process that trains: it still needs the step at hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
