"""Any labelled images: ``train/<class>/*`` and ``test/<class>/*`` in a folder, a tar or a zip.

Archives are read in place: nothing is ever extracted to disk, so no path in one can do harm. The
images are decoded once, on all cores, and kept as arrays in data.cache; where they would not fit in
memory they are streamed: decoded whenever they are asked for, to the same pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import math
import os
import signal
import sys
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resexp.data import Images, from_arrays
from resexp.data.archives import Place, opened, tar_members, tar_places, zip_members, zip_places
from resexp.settings import Data, UsageError

if TYPE_CHECKING:
    import torch

FORMAT = 2  # of the cache: raise it when the same files would decode to other arrays
SPLITS = ("train", "test")
CHUNK_FILES, CHUNK_BYTES = 256, 2**22  # handed to a decoder at a time: whichever is reached first
FEW = 2000  # fewer images than this are decoded here: starting processes would take longer

#: A file: its path inside the root, and how to read it. In a compressed tar, reading files in their
#: order means decompressing it once.
File = tuple[str, Callable[[], bytes]]

#: A decoded set: pixels uint8 [N, H, W, C], labels int64 [N], train (how many of them train; they
#: come first) and classes (names).
Arrays = dict[str, NDArray[Any]]


def check_present(settings: Data) -> None:
    """Raise UsageError if data.root does not exist."""
    if not _root(settings).exists():
        raise UsageError(
            f"data.root={settings.root} does not exist. Point it at a folder, tar or zip that has "
            "train/<class>/ and test/<class>/ in it."
        )


class TooLarge(Exception):
    """The decoded images would take more memory than there is room for."""


def load(settings: Data) -> Images:
    """The images: decoded, from the cache unless the files have changed, or streamed.

    Raises UsageError, naming the file, if one cannot be used.
    """
    from resexp.data import stream

    check_present(settings)
    room = stream.room(settings.stream)
    root = _root(settings)
    if room < (root.stat().st_size if root.is_file() else 1):
        return streamed(settings)
    try:
        arrays = _decoded_once(settings, room)
    except TooLarge:
        return streamed(settings)
    pixels, labels, train = arrays["pixels"], arrays["labels"], int(arrays["train"])
    return from_arrays(
        settings.name,
        (pixels[:train], labels[:train]),
        (pixels[train:], labels[train:]),
        arrays["classes"].tolist(),
    )


def _decoded_once(settings: Data, room: float) -> Arrays:
    """The arrays from the cache, made first if need be. Raises TooLarge."""
    path = _cache_path(settings)
    if path.exists() and path.stat().st_size > room:
        raise TooLarge
    arrays = _read_cache(path)
    if arrays is None:
        with _lock(settings, path):  # the other runs of a sweep wait for the first
            arrays = _read_cache(path)
            if arrays is None:
                arrays = _decode(settings, room)
                _write_cache(settings, path, arrays)
    return arrays


# Files: where they are and how they are read.


def _root(settings: Data) -> Path:
    return Path(settings.root).expanduser()


@contextmanager
def _files(root: Path) -> Iterator[list[File]]:
    """Every file of a folder or an archive, to be read while the context lasts."""
    with ExitStack() as stack:
        if root.is_dir():
            yield _folder_files(root)
        elif tarfile.is_tarfile(root):
            yield _tar_files(root, stack.enter_context(tarfile.open(root)))
        elif zipfile.is_zipfile(root):
            yield _zip_files(root, stack.enter_context(zipfile.ZipFile(root)))
        else:
            raise _no_archive(root)


def _no_archive(root: Path) -> UsageError:
    return UsageError(
        f"data.root={root} is neither a folder nor a tar or zip archive that can be read. "
        "It may be damaged: fetch it again."
    )


def _folder_files(root: Path) -> list[File]:
    files: list[File] = []
    for folder, folders, names in os.walk(root, onerror=_stop, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(folder, name) for name in names]
        files += [(path.relative_to(root).as_posix(), path.read_bytes) for path in paths]
    return files


def _stop(error: OSError) -> None:
    """A folder that may not be read must not pass for an empty one."""
    raise error


def _tar_files(root: Path, archive: tarfile.TarFile) -> list[File]:
    members = tar_members(root, archive)
    return [(member.name, partial(_read_member, archive, member)) for member in members]


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    assert content is not None  # only links have none
    return content.read()


def _zip_files(root: Path, archive: zipfile.ZipFile) -> list[File]:
    members = zip_members(root, archive)
    return [(member.filename, partial(archive.read, member)) for member in members]


@contextmanager
def _faults_named(root: Path) -> Iterator[None]:
    """Turn what a damaged archive or an unreadable file raises into UsageError."""
    try:
        yield
    except (
        OSError,
        EOFError,
        NotImplementedError,  # a zip compressed in a way that Python does not know
        tarfile.TarError,
        zipfile.BadZipFile,
        lzma.LZMAError,
        zlib.error,
    ) as error:
        raise UsageError(
            f"data.root={root} is damaged or cannot be read: {error}. Fetch it again."
        ) from error


# Layout: which files are images of which class.


def _arrange(root: Path, names: Iterable[str]) -> tuple[dict[str, int], Arrays]:
    """The row of each image file, and every array but the pixels. In order of split, class, name.

    Raises UsageError for a file that is not where an image should be, and for classes that differ.
    """
    found = []
    for name, parts in _inside(root, names):
        if parts[:1] in (("train",), ("test",)):
            if len(parts) != 3:
                raise UsageError(
                    f"{name} in {root} is not at train/<class>/<image> or test/<class>/<image>. "
                    "Move it there, or away."
                )
            found.append((SPLITS.index(parts[0]), parts[1], parts[2], name))
    found.sort()
    train, test = ({label for split, label, *_ in found if split == s} for s in (0, 1))
    for split, present in zip(SPLITS, (train, test), strict=True):
        if not present:
            raise UsageError(
                f"data.root={root} has no images at {split}/<class>/. Both train/ and test/ "
                "must be there, with a folder of images for each class."
            )
    if train != test:
        odd = min(train ^ test)
        here, there = ("train", "test") if odd in train else ("test", "train")
        raise UsageError(f"Class {odd} has images in {here}/ but none in {there}/ of {root}.")
    classes = sorted(train)
    number = {label: row for row, label in enumerate(classes)}
    arrays: Arrays = {
        "labels": np.array([number[label] for _, label, *_ in found], np.int64),
        "train": np.array(sum(split == 0 for split, *_ in found)),
        "classes": np.array(classes),
    }
    return {name: row for row, (*_, name) in enumerate(found)}, arrays


def _inside(root: Path, names: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Names and their parts, without hidden files and without one folder around everything."""
    paths = {name: PurePosixPath(name).parts for name in names}
    for name, parts in paths.items():
        if parts[:1] == ("/",) or ".." in parts:
            raise UsageError(f"{name} in {root} leads out of the archive. Pack it again without.")
    seen = [
        (name, parts)
        for name, parts in paths.items()
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts)
    ]
    tops = {parts[0] for _, parts in seen}
    wrapped = len(tops) == 1 and tops.isdisjoint(SPLITS)
    return [(name, parts[1:]) for name, parts in seen] if wrapped else seen


# Decoding.


def _decode(settings: Data, room: float) -> Arrays:
    """Read and decode every image, once all names have been looked at. Raises TooLarge."""
    root = _root(settings)
    with _faults_named(root), _files(root) as files:
        rows, arrays = _arrange(root, [name for name, _ in files])
        arrays["pixels"] = _decode_rows(files, rows, settings.size, room)
    return arrays


def _decode_rows(
    files: list[File], rows: dict[str, int], size: int | None, room: float
) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C], written in place as images arrive; one channel if all are greyscale."""
    pixels = np.empty((0, 0, 0, 0), np.uint8)
    first = ""
    with _progress(len(rows), "decoding images") as advance:
        for chunk in _decoded(_chunks(files, rows), size, _workers(len(rows))):
            for name, image in chunk:
                if image.nbytes * len(rows) > room:
                    raise TooLarge
                if not first:
                    first, pixels = name, np.empty((len(rows), *image.shape), np.uint8)
                if image.shape[:2] != pixels.shape[1:3]:
                    raise _other_size(name, image.shape[:2], first, pixels.shape[1:3])
                if image.shape[2] > pixels.shape[3]:
                    pixels = pixels.repeat(3, axis=3)  # the first image in colour
                pixels[rows[name]] = image
            advance(len(chunk))
    return pixels


def _chunks(files: list[File], rows: dict[str, int]) -> Iterator[list[tuple[str, bytes]]]:
    """Names and contents of the image files, some at a time, so that few are in memory at once."""
    chunk: list[tuple[str, bytes]] = []
    held = 0
    for name, read in files:
        if name not in rows:
            continue
        chunk.append((name, read()))
        held += len(chunk[-1][1])
        if len(chunk) >= CHUNK_FILES or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    yield chunk


def _workers(images: int) -> int:
    """One a core, but one process reads all files and keeps no more than about eight busy."""
    return 1 if images < FEW else min(os.cpu_count() or 1, 8)


def _decoded(
    chunks: Iterator[list[tuple[str, bytes]]], size: int | None, workers: int
) -> Iterator[list[tuple[str, NDArray[np.uint8]]]]:
    """Decoded chunks in order. Processes, for Pillow holds Python's lock most of a small image."""
    if workers == 1:
        yield from (decode_chunk(chunk, size) for chunk in chunks)
        return
    waiting: deque[Future[list[tuple[str, NDArray[np.uint8]]]]] = deque()
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),  # a fork would copy torch's threads in mid-stride
        initializer=signal.signal,  # Ctrl-C is for this process to handle
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        for chunk in chunks:
            waiting.append(pool.submit(decode_chunk, chunk, size))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def decode_chunk(
    chunk: list[tuple[str, bytes]], size: int | None
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Names and pixels, each uint8 [H, W, 1] if greyscale, else [H, W, 3]."""
    return [(name, decode_image(name, content, size)) for name, content in chunk]


def decode_image(name: str, content: bytes, size: int | None) -> NDArray[np.uint8]:
    """One image; its middle square, resized (bilinear, antialiased), if a size is given.

    Raises UsageError, naming the image, if it cannot be decoded.
    """
    with _image_faults_named(name, content), Image.open(io.BytesIO(content)) as image:
        mode = _mode(name, image)
        if size is not None:  # a large JPEG can be decoded to half its size, or less, at once
            image.draft(None, (2 * size, 2 * size))
        pixels = image if image.mode == mode else image.convert(mode)
        if size is not None and pixels.size != (size, size):
            pixels = pixels.resize((size, size), Image.Resampling.BILINEAR, _middle(pixels))
        array = np.array(pixels)
        return array if array.ndim == 3 else array[:, :, None]


def _mode(name: str, image: Image.Image) -> str:
    """What an image is decoded to: L, which is greyscale, or RGB."""
    if image.mode[0] in "IF":  # 16 or 32 bits: Pillow would clip, not scale
        raise UsageError(f"{name} has more than 8 bits a channel. Convert it to 8 bits.")
    return "L" if image.mode in ("1", "L") else "RGB"


@contextmanager
def _image_faults_named(name: str, content: bytes) -> Iterator[None]:
    """Turn what a file that is no sound image raises into UsageError."""
    if not content:
        raise UsageError(f"{name} is empty (0 bytes). Replace or remove it.")
    try:
        yield
    except UsageError:
        raise
    except UnidentifiedImageError as error:
        raise UsageError(f"{name} is not an image that Pillow can read. Remove it.") from error
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
        raise UsageError(f"{name} cannot be decoded: {error}. Replace or remove it.") from error


def _middle(image: Image.Image) -> tuple[float, float, float, float]:
    """The largest square in the middle of an image: left, top, right and bottom."""
    (width, height), side = image.size, min(image.size)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _other_size(name: str, sides: Sequence[int], first: str, its: Sequence[int]) -> UsageError:
    (height, width), (rows, columns) = sides, its
    return UsageError(
        f"{name} is {width}x{height} pixels, but {first} is {columns}x{rows}. Set data.size, such "
        f"as data.size={min(rows, 32)}, to resize every image."
    )


# Streaming: images decoded when they are asked for.


@dataclass(slots=True, frozen=True)
class Reader:
    """Reads and decodes some images; sent to other processes."""

    root: Path
    size: int | None
    image: tuple[int, int, int]  # height, width and channels that every image has

    def __call__(self, places: list[Place]) -> torch.Tensor | str:
        """uint8 [n, H, W, C], or in one line which file is at fault."""
        import torch

        try:
            return torch.from_numpy(np.stack([self.read(place) for place in places]))
        except UsageError as error:
            return str(error)

    def read(self, place: Place) -> NDArray[np.uint8]:
        """One image. Raises UsageError, naming it, if it cannot be had."""
        try:
            with opened(self.root, place) as file:
                content = file.read()
        except (OSError, zlib.error) as error:
            raise UsageError(f"{place.name} cannot be read: {error}.") from error
        image = decode_image(place.name, content, self.size)
        if image.shape[2] < self.image[2]:
            image = image.repeat(3, axis=2)
        if image.shape != self.image:
            raise UsageError(f"{place.name} is not what it was when training began. Run again.")
        return image


def streamed(settings: Data) -> Images:
    """The images, none of which is decoded before it is asked for.

    Raises UsageError, naming the file, if the head of one cannot be read.
    """
    import torch

    from resexp.data import stream

    root = _root(settings)
    with _faults_named(root):
        places = {place.name: place for place in _places(root)}
        rows, arrays = _arrange(root, places)
        files = [places[name] for name in rows]
        image = _image_shape(settings, root, files)
    reader = Reader(root, settings.size, image)
    feed = stream.Feed(
        stream.Decoded(reader, files, math.prod(image), stream.workers(settings.workers))
    )
    train = int(arrays["train"])
    labels = torch.from_numpy(arrays["labels"])
    return Images(
        settings.name,
        stream.Streamed(feed, list(range(train)), image),
        labels[:train],
        stream.Streamed(feed, list(range(train, len(files))), image),
        labels[train:],
        arrays["classes"].tolist(),
    )


def _places(root: Path) -> list[Place]:
    if root.is_dir():
        return [Place(name) for name, _ in _folder_files(root)]
    if tarfile.is_tarfile(root):
        return tar_places(root)
    if zipfile.is_zipfile(root):
        return zip_places(root)
    raise _no_archive(root)


def _image_shape(settings: Data, root: Path, files: list[Place]) -> tuple[int, int, int]:
    """Height, width and channels of the images, once the head of every file has been read.

    That is done once a set: the answer is kept in data.cache.
    """
    status = [((root / f.name) if f.kind == "file" else root).stat() for f in files]
    listing = [(*f, s.st_size, s.st_mtime_ns) for f, s in zip(files, status, strict=True)]
    key = hashlib.sha256(f"{settings.size} {listing}".encode()).hexdigest()
    path = Path(settings.cache).expanduser() / f"heads-{key[:24]}.json"
    with _lock(settings, path):
        try:
            height, width, channels = json.loads(path.read_text())
        except (OSError, ValueError):
            height, width, channels = _read_heads(root, files, settings.size)
            path.write_text(json.dumps([height, width, channels]))
    return height, width, channels


def _read_heads(root: Path, files: list[Place], size: int | None) -> tuple[int, int, int]:
    """What the heads of the files say, read some at a time, for disks may be slow to answer."""
    _, *first = _head(root, files[0])
    channels = 1
    with ThreadPoolExecutor(8) as pool, _progress(len(files), "looking at images") as advance:
        try:
            heads = pool.map(partial(_head, root), files)
            for place, (mode, *sides) in zip(files, heads, strict=True):
                channels = 3 if mode == "RGB" else channels
                if size is None and sides != first:
                    raise _other_size(place.name, sides, files[0].name, first)
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    height, width = (size, size) if size else first
    return height, width, channels


def _head(root: Path, place: Place) -> tuple[str, int, int]:
    """Mode, height and width of an image."""
    with opened(root, place) as file:
        start = file.read(1)
        with _image_faults_named(place.name, start), Image.open(file) as image:
            return _mode(place.name, image), image.height, image.width


@contextmanager
def _progress(images: int, doing: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, if that is a terminal; yields what is called with every advance."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(doing, total=images)
        yield lambda more: bar.advance(task, more)


# The cache: one file a set, found by a hash of what it was decoded from.


def _cache_path(settings: Data) -> Path:
    """Named after what decides the arrays: the archive's bytes or the folder's listing, and size.

    A folder's listing is every path, size in bytes and time of change. An archive's own list would
    not do: archives made to be reproducible give every file the same time.
    """
    root = _root(settings)
    with _faults_named(root):
        if root.is_dir():
            paths = sorted(name for name, _ in _folder_files(root))
            status = [(root / path).stat() for path in paths]
            listing = [(p, s.st_size, s.st_mtime_ns) for p, s in zip(paths, status, strict=True)]
            source = hashlib.sha256(repr(listing).encode()).hexdigest()
        else:
            with root.open("rb") as file:
                source = hashlib.file_digest(file, "sha256").hexdigest()
    key = hashlib.sha256(f"{FORMAT} {settings.size} {source}".encode()).hexdigest()
    return Path(settings.cache).expanduser() / f"images-{key[:24]}.npz"


def _read_cache(path: Path) -> Arrays | None:
    """The arrays, or None if they are not there or damaged (a zip checks the sum of each)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in ("pixels", "labels", "train", "classes")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(settings: Data, path: Path, arrays: Arrays) -> None:
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(part, path)
    except OSError as error:
        raise _cannot_keep(settings, error) from error


@contextmanager
def _lock(settings: Data, path: Path) -> Iterator[None]:
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _cannot_keep(settings, error) from error
    try:
        yield
    finally:
        lock.release()


def _cannot_keep(settings: Data, error: OSError) -> UsageError:
    return UsageError(
        f"data.cache={settings.cache} cannot be written: {error.strerror or error}. Set data.cache "
        "to a folder with room for the decoded images."
    )
