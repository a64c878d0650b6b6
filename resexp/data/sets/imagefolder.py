"""Any labelled images: ``train/<class>/*`` and ``test/<class>/*`` in a folder, a tar or a zip.

The images are decoded once, on all cores, and kept as arrays in data.cache; where they would not
fit in memory they are streamed: decoded whenever they are asked for, to the same pixels.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from resexp.data import Images, from_arrays, root_of
from resexp.data.archives import Listing, Member, content, faults_named, listing
from resexp.data.decode import Reader, Shape, all_named, has_image_name, read_heads, shown
from resexp.files import open_regular
from resexp.settings import Data, Stream, UsageError

#: What is known of a set that nobody has looked at: ImageNet's channels, sides and classes.
SHAPE = 3, (224, 224), 1000

FORMAT = 2  # of the cache: raise it when the same files would decode to other arrays
SPLITS = ("train", "test")
FEW = 2**25  # bytes of images: fewer are decoded here, for starting processes would take longer

#: A decoded set: pixels uint8 [N, H, W, C], labels int64 [N], train (how many of them train; they
#: come first) and classes (names).
Arrays = dict[str, NDArray[Any]]
NAMES = ("pixels", "labels", "train", "classes")
Check = Callable[[Arrays], bool]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which files are images of which class, in order of split, class and name."""

    files: list[Member]
    labels: NDArray[np.int64]
    train: int  # how many train; the others test
    classes: list[str]
    skipped: list[str]  # names among the images that are not an image's

    def note(self) -> str:
        """What is said of the files that were skipped."""
        some = ", ".join(self.skipped[:3]) + (" ..." if len(self.skipped) > 3 else "")
        return f"skipped {len(self.skipped):,} files that are no images by their names: {some}"


def check_present(settings: Data) -> None:
    """Raise UsageError if data.root does not exist, or is a pipe or device."""
    root = root_of(settings)
    if os.path.isdir(root) or os.path.isfile(root):
        return
    what = "is a pipe or device" if os.path.exists(root) else "does not exist"
    raise UsageError(
        f"data.root={settings.root} {what}. Point it at a folder, tar or zip that has "
        "train/<class>/ and test/<class>/ in it."
    )


def load(settings: Data) -> Images:
    """The images: decoded, from the cache unless the files have changed, or streamed.

    Raises UsageError, naming the files, if some cannot be used.
    """
    from resexp.data import stream

    check_present(settings)
    room, root = stream.room(settings.stream), root_of(settings)
    if (root.stat().st_size if root.is_file() else 1) > room:
        return _streamed(settings)
    path = _cached(settings, "images", f"{FORMAT} {settings.size} {_source(root)}")
    if path.is_file() and path.stat().st_size > room:
        return _streamed(settings)
    make, are_sound = partial(_decoded, settings, room), partial(_are_sound, settings)
    if (arrays := _kept(settings, path, make, are_sound)) is None:
        return _streamed(settings)
    pixels, labels, n = arrays["pixels"], arrays["labels"], int(arrays["train"])
    sets = (pixels[:n], labels[:n]), (pixels[n:], labels[n:])
    return from_arrays(settings.name, *sets, arrays["classes"].tolist())


def _are_sound(settings: Data, arrays: Arrays) -> bool:
    """Whether arrays from the cache have the types and shapes that a decoded set has."""
    pixels, labels, train, classes = (arrays[name] for name in NAMES)
    return (
        len(arrays) == len(NAMES)
        and (pixels.dtype.name, labels.dtype.name, classes.dtype.kind) == ("uint8", "int64", "U")
        and (pixels.ndim, labels.ndim, classes.ndim, train.shape) == (4, 1, 1, ())
        and settings.size in (None, pixels.shape[1], pixels.shape[2])
        and 0 < int(train) < len(labels) == len(pixels)
    )


def describe(settings: Data) -> str:
    """What lies in data.root, undecoded. Raises UsageError as ``load`` does."""
    check_present(settings)
    with listing(root_of(settings)) as files:
        layout = arrange(files)
        shape = _image_shape(settings, files, layout)
    note = f"; {layout.note()}" if layout.skipped else ""
    return (
        f"{len(layout.classes):,} classes, {layout.train:,} + "
        f"{len(layout.files) - layout.train:,} images of {'x'.join(map(str, shape))}"
        f" in {settings.root}{note}"
    )


# Layout: which files are images of which class.


def arrange(files: Listing) -> Layout:
    """Which files are images of which class.

    Raises UsageError for files that are not where images should be, and for classes that differ.
    """
    root, found, skipped, misplaced = files.root, [], [], []
    inside = _inside(files)
    for member, parts in inside:
        if parts[0] not in SPLITS:
            continue
        if not has_image_name(member.name):
            skipped.append(member.name)
        elif len(parts) != 3:
            misplaced.append(
                f"{member.name} in {root} is not at train/<class>/<image> or test/<class>/<image>. "
                "Move it there, or away."
            )
        else:
            found.append((SPLITS.index(parts[0]), parts[1], parts[2], member))
    if misplaced:
        raise all_named(misplaced)
    found.sort()
    train, test = ({label for split, label, *_ in found if split == s} for s in (0, 1))
    _check_classes(root, train, test, {parts[0] for _, parts in inside})
    classes = sorted(train)
    number = {label: row for row, label in enumerate(classes)}
    return Layout(
        files=[member for *_, member in found],
        labels=np.array([number[label] for _, label, *_ in found], np.int64),
        train=sum(split == 0 for split, *_ in found),
        classes=classes,
        skipped=skipped,
    )


def _inside(files: Listing) -> list[tuple[Member, tuple[str, ...]]]:
    """Files and their paths' parts, without hidden ones and without one folder around all."""
    paths = [(member, PurePosixPath(member.name).parts) for member in files.members]
    for member, parts in paths:
        if parts[:1] == ("/",) or ".." in parts:
            raise UsageError(
                f"{member.name} in {files.root} leads out of the archive. Pack it again without."
            )
    seen = [
        (member, parts)
        for member, parts in paths
        if parts and not any(part.startswith(".") or part == "__MACOSX" for part in parts)
    ]
    tops = {parts[0] for _, parts in seen}
    wrapped = len(tops) == 1 and tops.isdisjoint(SPLITS)
    return [(one, parts[1:]) for one, parts in seen if parts[1:]] if wrapped else seen


def _check_classes(root: Path, train: set[str], test: set[str], tops: Iterable[str]) -> None:
    """Raise UsageError unless training and test images are there, of the same classes."""
    for split, present in zip(SPLITS, (train, test), strict=True):
        if not present:
            other = sorted({"val", "valid", "validation", "dev"}.intersection(tops))
            hint = f" Rename {other[0]}/ to test/." if other and split == "test" else ""
            raise UsageError(
                f"data.root={root} has no images at {split}/<class>/. Both train/ and test/ "
                f"must be there, with a folder of images for each class.{hint}"
            )
    faults = []
    for odd in sorted(train ^ test):
        here, there = SPLITS if odd in train else SPLITS[::-1]
        faults.append(f"Class {odd} has images in {here}/ but none in {there}/ of {root}.")
    if faults:
        raise all_named(faults)


# Decoding, or streaming.


def _decoded(settings: Data, room: float) -> Arrays | None:
    """Every image, read and decoded; None if they are too large.

    Raises UsageError, naming the files, if some are damaged.
    """
    from resexp.data import stream

    with listing(root_of(settings)) as files:
        layout = arrange(files)
        image = _image_shape(settings, files, layout)
        members = layout.files
        if len(members) * math.prod(image) > room:
            return None
        _say(layout)
        here = files.sealed or sum(member.size for member in members) < FEW
        read = files.read if files.sealed else partial(content, files.root)
        source = stream.Decoded(
            Reader(read, settings.size, image),
            members,
            math.prod(image),
            0 if here else stream.workers(settings.workers),
        )
        pixels = np.empty((len(members), *image), np.uint8)
        order = sorted(range(len(members)), key=lambda row: members[row].offset)
        chunks = [order[i : i + source.piece] for i in range(0, len(order), source.piece)]
        faults: list[str] = []
        pieces = shown(source.pieces(chunks), len(chunks), "decoding images")
        for rows, piece in zip(chunks, pieces, strict=True):
            if isinstance(piece, list):
                faults += piece
            else:
                pixels[rows] = piece.numpy()
    if faults:
        raise all_named(faults)
    rest = layout.labels, np.array(layout.train), np.array(layout.classes)
    return dict(zip(NAMES, (pixels, *rest), strict=True))


def _streamed(settings: Data) -> Images:
    """The images, none of which is decoded before it is asked for.

    Raises UsageError, naming the files, if the heads of some cannot be read.
    """
    import torch

    from resexp.data import stream

    with listing(root_of(settings), in_place=True) as files:
        layout = arrange(files)
        image = _image_shape(settings, files, layout)
    if settings.stream is Stream.never:
        stream.check_room(settings, len(layout.files), math.prod(image))
    _say(layout)
    reader = Reader(partial(content, files.root), settings.size, image)
    workers = stream.workers(settings.workers)
    feed = stream.Feed(stream.Decoded(reader, layout.files, math.prod(image), workers))
    rows, labels = list(range(len(layout.files))), torch.from_numpy(layout.labels)
    return Images(
        settings.name,
        stream.Streamed(feed, rows[: layout.train], image),
        labels[: layout.train],
        stream.Streamed(feed, rows[layout.train :], image),
        labels[layout.train :],
        layout.classes,
    )


def _say(layout: Layout) -> None:
    if layout.skipped:
        print(f"resexp: {layout.note()}", file=sys.stderr)


# The cache: files found by a hash of what they were made from.


def _source(root: Path) -> str:
    """What decides the arrays: an archive's bytes, or every path, size and time in a folder.

    An archive's own list would not do: those made to be reproducible give every file one time.
    """
    if root.is_dir():
        with listing(root) as files:
            paths = [(member.name, member.size, member.changed) for member in files.members]
        return hashlib.sha256(repr(paths).encode()).hexdigest()
    with faults_named(root), open_regular(root) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _image_shape(settings: Data, files: Listing, layout: Layout) -> Shape:
    """The shape of every decoded image. All heads are read once a set; data.cache keeps it."""

    def make() -> Arrays:
        return {"shape": np.array(read_heads(files, layout.files, settings.size))}

    def is_sound(arrays: Arrays) -> bool:
        shape = arrays["shape"]
        like = (shape.shape, shape.dtype.kind) == ((3,), "i")
        return like and bool(shape.min() > 0 and shape[2] in (1, 3))

    changed = files.root.stat().st_mtime_ns if files.root.is_file() else 0
    path = _cached(settings, "heads", f"{settings.size} {changed} {layout.files}")
    kept = _kept(settings, path, make, is_sound)
    assert kept is not None
    return Shape(*kept["shape"].tolist())


def _cached(settings: Data, kind: str, key: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return Path(settings.cache).expanduser() / f"{kind}-{name}.npz"


def _kept(
    settings: Data, path: Path, make: Callable[[], Arrays | None], is_sound: Check
) -> Arrays | None:
    """What this file of data.cache holds; made first, and kept, if that is nothing sound."""
    arrays = _read(path, is_sound)
    if arrays is not None:
        return arrays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # the other runs of a sweep wait for the first
            arrays = _read(path, is_sound)
            if arrays is None and (arrays := make()) is not None:
                part = path.with_suffix(".part")
                part.unlink(missing_ok=True)
                with part.open("xb") as file:
                    np.savez(file, allow_pickle=False, **arrays)
                os.replace(part, path)
    except OSError as error:
        raise UsageError(
            f"data.cache={settings.cache} cannot be written: {error.strerror or error}. Set "
            "data.cache to a folder with room for the decoded images."
        ) from error
    return arrays


def _read(path: Path, is_sound: Check) -> Arrays | None:
    """The arrays, or None if they are not there, damaged or of other shapes than they must be."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as kept:
            arrays = dict(kept)
        return arrays if is_sound(arrays) else None
    except Exception:  # NumPy raises almost anything on a damaged file
        return None
