"""From an image file's bytes to its pixels; and what is wrong with a file that has none."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resexp.data.archives import Listing, Member
from resexp.settings import UsageError

if TYPE_CHECKING:
    import torch

NAMED = 5  # faults at most that a message spells out

Item = TypeVar("Item")


class Shape(NamedTuple):
    """Of an image; 1 or 3 channels."""

    height: int
    width: int
    channels: int


@dataclass(slots=True, frozen=True)
class Reader:
    """Reads and decodes some images; sent to other processes."""

    read: Callable[[Member], bytes]
    size: int | None
    image: Shape  # that every image has

    def __call__(self, members: list[Member]) -> torch.Tensor | list[str]:
        """uint8 [n, H, W, C], or a sentence for each file that is at fault."""
        import torch

        images, faults = [], []
        for member in members:
            try:
                images.append(self.decode(member))
            except UsageError as error:
                faults.append(str(error))
        return faults or torch.from_numpy(np.stack(images))

    def decode(self, member: Member) -> NDArray[np.uint8]:
        """One image. Raises UsageError, naming it, if it cannot be had."""
        image = decode_image(member.name, self.read(member), self.size)
        if image.shape[2] < self.image[2]:
            image = image.repeat(3, axis=2)
        if image.shape != self.image:
            raise UsageError(f"{member.name} is not what it was when its head was read. Run again.")
        return image


def decode_image(name: str, content: bytes, size: int | None) -> NDArray[np.uint8]:
    """uint8 [H, W, 1] of greyscale, else [H, W, 3]; the middle square, resized, if a size is given.

    Resizing is bilinear and antialiased. Raises UsageError, naming the image, if it is damaged.
    """
    with faults_named(name, len(content)), Image.open(io.BytesIO(content)) as image:
        mode = "L" if _channels(name, image) == 1 else "RGB"
        if size is not None:  # a large JPEG can be decoded to half its size, or less, at once
            image.draft(None, (2 * size, 2 * size))
        pixels = image if image.mode == mode else image.convert(mode)
        if size is not None and pixels.size != (size, size):
            side = min(pixels.size)  # of the largest square in the middle
            left, top = ((length - side) / 2 for length in pixels.size)
            box = left, top, left + side, top + side
            pixels = pixels.resize((size, size), Image.Resampling.BILINEAR, box)
        array = np.array(pixels)
        return array if array.ndim == 3 else array[:, :, None]


def read_head(files: Listing, member: Member) -> Shape | str:
    """An image's shape by its head alone, or in a sentence what is wrong with it."""
    name = member.name
    try:
        with faults_named(name, member.size), files.open(member) as file, Image.open(file) as image:
            return Shape(image.height, image.width, _channels(name, image))
    except UsageError as error:
        return str(error)


def read_heads(files: Listing, members: list[Member], size: int | None) -> Shape:
    """The shape that every image is decoded to, by the heads of all.

    Raises UsageError, naming the files, for those that are no images or differ in size.
    """
    ordered = sorted(members, key=lambda member: member.offset)
    with ThreadPoolExecutor(1 if files.sealed else 8) as pool:  # disks may be slow to answer
        try:
            answers = pool.map(partial(read_head, files), ordered)
            heads = list(shown(answers, len(ordered), "looking at images"))
        finally:
            pool.shutdown(cancel_futures=True)
    faults = [head for head in heads if isinstance(head, str)]
    sides: dict[tuple[int, int], str] = {}  # of all images, each with the first file that has them
    for member, head in zip(ordered, heads, strict=True):
        if isinstance(head, Shape):
            sides.setdefault(head[:2], member.name)
    if len(sides) > 1 and size is None:
        ((rows, columns), first), ((height, width), other), *_ = sides.items()
        faults.append(
            f"{other} is {width}x{height} pixels, but {first} is {columns}x{rows}. Set data.size, "
            f"such as data.size={min(rows, 32)}, to resize every image."
        )
    if faults:
        raise all_named(faults)
    height, width = (size, size) if size else next(iter(sides))
    return Shape(height, width, max(head[2] for head in heads if isinstance(head, Shape)))


def shown(items: Iterable[Item], count: int, doing: str) -> Iterable[Item]:
    """The items, as they come; with a bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not sys.stderr.isatty()
    return track(items, doing, count, console=Console(stderr=True), transient=True, disable=hidden)


@contextmanager
def faults_named(name: str, size: int = 1) -> Iterator[None]:
    """Turn what a file of ``size`` bytes that is no sound image raises into UsageError."""
    if not size:
        raise UsageError(f"{name} is empty (0 bytes). Replace or remove it.")
    try:
        yield
    except UsageError:
        raise
    except UnidentifiedImageError as error:
        raise UsageError(f"{name} is not an image that Pillow can read. Remove it.") from error
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
        raise UsageError(f"{name} cannot be decoded: {error}. Replace or remove it.") from error


def has_image_name(name: str) -> bool:
    """Whether a file may be an image: its name has no ending, or one that Pillow reads."""
    ending = PurePosixPath(name).suffix.lower()
    return not ending or ending in _endings()


def all_named(faults: Sequence[str]) -> UsageError:
    """One refusal for all that is wrong, a sentence each."""
    if len(faults) == 1:
        return UsageError(faults[0])
    more = len(faults) - NAMED
    rest = [f"And {more:,} more."] if more > 0 else []
    return UsageError(" ".join([f"{len(faults):,} faults.", *faults[:NAMED], *rest]))


def _channels(name: str, image: Image.Image) -> int:
    """How many an image is decoded to: 1 of greyscale, else 3."""
    if image.mode[0] in "IF":  # 16 or 32 bits: Pillow would clip, not scale
        raise UsageError(f"{name} has more than 8 bits a channel. Convert it to 8 bits.")
    return 1 if image.mode in ("1", "L") else 3


@cache
def _endings() -> set[str]:
    Image.init()
    return {ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN}
