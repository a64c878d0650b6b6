"""Tiny image sets on disk: a few files of noise, as a folder, a zip or a tar, and masks."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Files = dict[str, bytes]  # a path inside the set, and what is there

#: How a set may be packed. All but the first are archives; those of the second row cannot stream.
KINDS = ["folder", "zip", "stored.zip", "bzip2.zip", "tar"]
SEALED = ["tar.gz", "tar.xz", "tar.bz2"]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """An image of noise, (width, height) pixels; as PNG its pixels survive."""
    shape = (size[1], size[0], *{"L": (), "RGB": (3,), "RGBA": (4,)}[mode])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def pixels_of(content: bytes, mode: str = "RGB") -> list[Any]:
    """[H, W, C], read by Pillow alone."""
    with Image.open(io.BytesIO(content)) as image:
        array = np.asarray(image.convert(mode))
    pixels: list[Any] = (array if array.ndim == 3 else array[:, :, None]).tolist()
    return pixels


def six(mode: str = "RGB") -> Files:
    """Two training images and one test image of each of two classes."""
    names = ["train/cat/0.png", "train/cat/1.png", "train/ant/7.png", "train/ant/2.png"]
    names += ["test/cat/5.png", "test/ant/5.png"]
    return {name: noise(seed, mode=mode) for seed, name in enumerate(names)}


def pack(kind: str, where: Path, files: Files) -> Path:
    """Write ``where/images``, or an archive of one of the KINDS beside it; returns its path."""
    if kind == "folder":
        for name, content in files.items():
            path = where / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return where / "images"
    path = where / f"images.{kind}"
    if kind.endswith("zip"):
        methods = {"stored.zip": zipfile.ZIP_STORED, "bzip2.zip": zipfile.ZIP_BZIP2}
        method = methods.get(kind, zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(path, "w", method) as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{kind[4:]}") as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def save(root: Path, name: str, pixels: NDArray[Any]) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pack_masks(root: Path, values: tuple[int, ...] = (0, 1, 2), size: int = 12) -> Path:
    """Three training and two test images in colour, with masks of stripes of ``values``."""
    generator = np.random.default_rng(0)
    y, x = np.indices((size, size))
    mask = np.array(values, np.uint8)[(x + y // 2) % len(values)]
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            pixels = generator.integers(0, 256, (size, size, 3), np.uint8)
            save(root, f"{split}/images/{number}.jpg", pixels)
            save(root, f"{split}/masks/{number}.png", mask)
    return root
