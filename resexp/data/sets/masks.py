"""Any images and their masks: ``train/images/*``, ``train/masks/*``, and the same under ``test``.

A mask has its image's file name but for the ending, and a pixel's class as its value: 0, 1, 2, ...,
grey or by palette. 255 is a pixel without a class, as in PASCAL VOC; unless all masks hold nothing
but 0 and 255, which are two classes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resexp.data import UNLABELLED, Images, from_arrays, root_of
from resexp.data.archives import Member, content
from resexp.data.decode import all_named, decode_image, faults_named
from resexp.settings import Data, UsageError

TASK = "segmentation"

FOLDERS = ("train/images", "train/masks", "test/images", "test/masks")
VOID = 255  # in a file
MODES = ("1", "L", "P")  # of Pillow: one number of at most 8 bits a pixel


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image and its mask, resized if they are to be."""

    path: Path  # of the image
    pixels: NDArray[np.uint8]  # [H, W, C]
    mask: NDArray[np.int16]  # [H, W], as in the file
    values: set[int]  # of the mask in the file: resizing may lose the rare


def check_present(settings: Data) -> None:
    """Raise UsageError if one of the four folders is missing."""
    missing = [folder for folder in FOLDERS if not (root_of(settings) / folder).is_dir()]
    if missing:
        raise UsageError(
            f"data.root={settings.root} has no {missing[0]}/. Point it at a folder with "
            f"{', '.join(FOLDERS)} in it."
        )


def load(settings: Data) -> Images:
    """The images and masks, by name. Raises UsageError, naming the files, if some are unusable."""
    check_present(settings)
    train, test = (pairs(root_of(settings) / split) for split in ("train", "test"))
    whole, n = decoded(settings, [*train, *test]), len(train)
    check_sizes(whole)
    colour = max(one.pixels.shape[2] for one in whole)
    pixels = np.stack([one.pixels.repeat(colour // one.pixels.shape[2], axis=2) for one in whole])
    masks = np.stack([one.mask for one in whole])
    classes = label(settings, masks, set().union(*(one.values for one in whole)))
    return from_arrays(settings.name, (pixels[:n], masks[:n]), (pixels[n:], masks[n:]), classes)


def describe(settings: Data) -> str:
    """What lies in data.root, undecoded. Raises UsageError as ``load`` does."""
    check_present(settings)
    train, test = (len(pairs(root_of(settings) / split)) for split in ("train", "test"))
    return f"{train:,} + {test:,} images with masks in {settings.root}"


def decoded(settings: Data, paths: list[tuple[Path, Path]]) -> list[Decoded]:
    """Every image and its mask. Raises UsageError, naming the files, if some are unusable."""
    from resexp.data.stream import check_room

    found, faults = [], []
    for image, mask in paths:
        try:
            found.append(decode(image, mask, settings.size))
        except UsageError as error:
            faults.append(str(error))
        if len(found) == 1:  # twice: one by one, and stacked
            check_room(settings, len(paths), 2 * (found[0].pixels.nbytes + found[0].mask.nbytes))
    if faults:
        raise all_named(faults)
    return found


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Every image of train or test with its mask, by name."""
    images, masks = named(folder / "images"), named(folder / "masks")
    if not images:
        raise UsageError(f"{folder / 'images'} has no images. Put some there.")
    alone = [
        f"{mine[stem]} has no counterpart {folder / its / stem}.*. Add it, or move the file away."
        for mine, its, what in ((images, "masks", masks), (masks, "images", images))
        for stem in sorted(mine.keys() - what.keys())
    ]
    if alone:
        raise all_named(alone)
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def named(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names without ending; hidden files are left out."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise UsageError(f"{path} and {found[path.stem].name} share a name. Keep one of them.")
        found[path.stem] = path
    return found


def decode(image: Path, mask: Path, size: int | None) -> Decoded:
    """An image and its mask, of size x size pixels if that is given. Raises UsageError."""
    encoded = read(image)
    pixels = decode_image(str(image), encoded, size)
    labels = read_mask(mask)
    with Image.open(io.BytesIO(encoded)) as original:
        if labels.size != original.size:
            raise UsageError(
                f"{mask} is {labels.width}x{labels.height} pixels, but {image} is "
                f"{original.width}x{original.height}. Save both at one size."
            )
    values = set(np.unique(np.asarray(labels)).tolist())
    if size is not None:
        labels = labels.resize((size, size), Image.Resampling.NEAREST)
    return Decoded(image, pixels, np.asarray(labels).astype(np.int16), values)


def read_mask(path: Path) -> Image.Image:
    """A mask as Pillow has it: one number a pixel."""
    with faults_named(str(path)):
        mask = Image.open(io.BytesIO(read(path)))
        mask.load()
    if mask.mode not in MODES or mask.format == "JPEG":
        raise UsageError(
            f"{path} is no mask: {mask.format} of mode {mask.mode}. Save one class a pixel, 8 bits "
            "of grey or palette, as PNG."
        )
    return mask


def read(path: Path) -> bytes:
    """A file's content."""
    return content(Path(), Member(str(path), 0))


def check_sizes(decoded: list[Decoded]) -> None:
    """Raise UsageError where images differ in size."""
    first = decoded[0]
    rows, columns = first.mask.shape
    for one in decoded:
        height, width = one.mask.shape
        if (height, width) != (rows, columns):
            raise UsageError(
                f"{one.path} is {width}x{height} pixels, but {first.path} is {columns}x{rows}. Set "
                "data.size, such as data.size=128, to resize every image and mask."
            )


def label(settings: Data, masks: NDArray[np.int16], found: set[int]) -> list[str]:
    """Turn the values of the files' pixels into classes in place; returns the classes' names."""
    values = sorted(found)
    names = [str(value) for value in values]
    if values == [0, VOID]:
        masks[masks == VOID] = 1
        return names
    masks[masks == VOID] = UNLABELLED
    classes = [value for value in values if value != VOID]
    if classes != list(range(len(classes))):
        gap = next(number for number in range(VOID) if number not in classes)
        raise UsageError(
            f"the masks in {settings.root} have values {', '.join(names[:8])}"
            f"{' ...' if len(names) > 8 else ''}: {gap} is missing. Number the classes 0, 1, 2, "
            "...; 255 is a pixel without a class."
        )
    return [str(value) for value in classes]
