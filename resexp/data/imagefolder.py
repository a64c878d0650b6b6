"""Any labelled images: ``train/<class>/*`` and ``test/<class>/*`` in a folder, a tar or a zip.

Archives are read in place: nothing is ever extracted to disk, so no path in one can do harm. The
images are decoded once, by Pillow on all cores, and kept as arrays in data.cache.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import signal
import sys
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resexp.data import Images, from_arrays
from resexp.settings import Data, UsageError

FORMAT = 1  # of the cache: raise it when the same files would decode to other arrays
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


def load(settings: Data) -> Images:
    """The images, from the cache unless the files have changed since they were decoded.

    Raises UsageError, naming the file, if one cannot be used.
    """
    check_present(settings)
    path = _cache_path(settings)
    arrays = _read_cache(path)
    if arrays is None:
        with _lock(settings, path):  # the other runs of a sweep wait for the first
            arrays = _read_cache(path)
            if arrays is None:
                arrays = _decode(settings)
                _write_cache(settings, path, arrays)
    pixels, labels, train = arrays["pixels"], arrays["labels"], int(arrays["train"])
    return from_arrays(
        settings.name,
        (pixels[:train], labels[:train]),
        (pixels[train:], labels[train:]),
        arrays["classes"].tolist(),
    )


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
            raise UsageError(
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
    files: list[File] = []
    for member in archive:
        if member.isfile():
            files.append((member.name, partial(_read_member, archive, member)))
        elif not member.isdir():
            raise UsageError(f"{member.name} in {root} is a link or device. Pack real files.")
    # A tar that was cut short lacks the block of zeros at its end; tarfile does not mind.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if len(archive.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")
    return files


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    assert content is not None  # only links have none
    return content.read()


def _zip_files(root: Path, archive: zipfile.ZipFile) -> list[File]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        if member.flag_bits & 1:
            raise UsageError(f"{member.filename} in {root} is encrypted. Pack it without password.")
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


def _decode(settings: Data) -> Arrays:
    """Read and decode every image, once all names have been looked at."""
    root = _root(settings)
    with _faults_named(root), _files(root) as files:
        rows, arrays = _arrange(root, [name for name, _ in files])
        arrays["pixels"] = _decode_rows(files, rows, settings.size)
    return arrays


def _decode_rows(files: list[File], rows: dict[str, int], size: int | None) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C], written in place as images arrive; one channel if all are greyscale."""
    pixels = np.empty((0, 0, 0, 0), np.uint8)
    first = ""
    with _progress(len(rows)) as advance:
        for chunk in _decoded(_chunks(files, rows), size, _workers(len(rows))):
            for name, image in chunk:
                if not first:
                    first, pixels = name, np.empty((len(rows), *image.shape), np.uint8)
                if image.shape[:2] != pixels.shape[1:3]:
                    raise _other_size(name, image, first, pixels)
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
    return [(name, _decode_image(name, content, size)) for name, content in chunk]


def _decode_image(name: str, content: bytes, size: int | None) -> NDArray[np.uint8]:
    """One image, resized (bilinear, antialiased) to size x size if that is given."""
    if not content:
        raise UsageError(f"{name} is empty (0 bytes). Replace or remove it.")
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = "L" if image.mode in ("1", "L") else "RGB"
            deep = image.mode[0] in "IF"  # 16 or 32 bits: Pillow would clip, not scale
            pixels = image if image.mode == mode or deep else image.convert(mode)
            if size is not None and not deep:
                pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
            array = np.asarray(pixels)
    except UnidentifiedImageError as error:
        raise UsageError(f"{name} is not an image that Pillow can read. Remove it.") from error
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
        raise UsageError(f"{name} cannot be decoded: {error}. Replace or remove it.") from error
    if deep:
        raise UsageError(f"{name} has more than 8 bits a channel. Convert it to 8 bits.")
    return array if array.ndim == 3 else array[:, :, None]


def _other_size(
    name: str, image: NDArray[np.uint8], first: str, pixels: NDArray[np.uint8]
) -> UsageError:
    height, width = image.shape[:2]
    rows, columns = pixels.shape[1:3]
    return UsageError(
        f"{name} is {width}x{height} pixels, but {first} is {columns}x{rows}. Set data.size, such "
        f"as data.size={min(rows, 32)}, to resize every image."
    )


@contextmanager
def _progress(images: int) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, if that is a terminal; yields what is called with every advance."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("decoding images", total=images)
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
