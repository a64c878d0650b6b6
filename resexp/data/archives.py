"""The files of a folder, a zip or a tar: one list of them, and the bytes of any one.

Archives are read in place: nothing is ever extracted to disk, so no path in one can do harm. Only
regular files are opened, and none is read before its size is known to be sane.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from PIL.ContainerIO import ContainerIO

from resexp.files import MOST_BYTES, open_regular
from resexp.settings import UsageError

MOST_GROWTH = 2**30, 200  # bytes that an archive may unpack to, or that many times its size
DEEPEST = 5  # folders below the root: deeper ones are not looked into, for links may go in circles

MOST_HEADER = 2**20  # bytes of a tar that are read to know a file's name

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip: 30 bytes, the lengths of name and extra field
#: What unpacks no more of a zip's file than it is asked for.
UNPACKERS: dict[str, Callable[[], Any]] = {
    "deflated": partial(zlib.decompressobj, -zlib.MAX_WBITS),
    "bzip2": bz2.BZ2Decompressor,
}
ZIP_KINDS = {
    zipfile.ZIP_STORED: "stored",
    zipfile.ZIP_DEFLATED: "deflated",
    zipfile.ZIP_BZIP2: "bzip2",
}

#: How compressed tars begin, and what reads them. tarfile would try all, lzma with zeros for hours.
COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": partial(lzma.open, format=lzma.FORMAT_XZ),
}


class Member(NamedTuple):
    """A file: its path inside the root, its bytes, and where they are. Small when pickled."""

    name: str
    size: int  # bytes; of a folder's file, when it was listed
    changed: int = 0  # of a folder's file: nanoseconds since 1970
    kind: str = "file"  # file, tar, one of ZIP_KINDS, or sealed: of a compressed tar
    offset: int = 0  # of a tar's file, or of a zip's local header
    packed: int = 0  # bytes in the archive
    checksum: int | None = None  # CRC-32, of a zip's file


class Bounded:
    """An open archive whose headers cannot have more than ``most`` bytes read at once."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.file, self.most = file, most

    def read(self, size: int = -1) -> bytes:
        if size > self.most:
            raise OSError(f"a header of it claims {size:,} bytes")
        return self.file.read(self.most if size < 0 else size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def bounded(file: IO[bytes], most: int) -> IO[bytes]:
    return cast(IO[bytes], Bounded(file, most))


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder or an archive, to be read while its context lasts."""

    root: Path
    members: list[Member]
    unpacked: IO[bytes] | None = None  # what a compressed tar holds

    @property
    def sealed(self) -> bool:
        """Whether files must be read here, by one thread, and fast only by rising offset."""
        return self.unpacked is not None

    def open(self, member: Member) -> IO[bytes]:
        """A file, to be read from its beginning."""
        return io.BytesIO(self.read(member)) if self.sealed else opened(self.root, member)

    def read(self, member: Member) -> bytes:
        """A file's bytes."""
        if self.unpacked is None:
            return content(self.root, member)
        self.unpacked.seek(member.offset)
        return _whole(member, self.unpacked.read(member.size))


@contextmanager
def listing(root: Path, *, in_place: bool = False) -> Iterator[Listing]:
    """What lies in a folder or an archive. Raises UsageError, here and inside, if it is damaged.

    With ``in_place`` also if files cannot be read from any process, without those before them.
    """
    with faults_named(root), ExitStack() as stack:
        if root.is_dir():
            yield Listing(root, folder_members(root))
            return
        file = stack.enter_context(open_regular(root))
        head = file.peek(6)
        unpack = next((how for magic, how in COMPRESSED.items() if head.startswith(magic)), None)
        unpacked = stack.enter_context(unpack(root)) if unpack else None
        if unpacked and in_place:
            raise UsageError(
                f"data.root={root} is compressed in a way that cannot be streamed. Unpack it "
                f"(tar -xf {root.name}) and point data.root at the folder."
            )
        with faults_named(root, ValueError, RecursionError):  # what odd headers raise
            members = _sane(root, archived(root, file, unpacked))
        yield Listing(root, members, unpacked)


def archived(root: Path, file: IO[bytes], unpacked: IO[bytes] | None) -> Iterator[Member]:
    """The files of an archive that is open: a tar, as itself or unpacked, or a zip."""
    with suppress(tarfile.ReadError):
        tar = tarfile.open(  # noqa: SIM115  holds nothing open itself
            fileobj=bounded(unpacked or file, MOST_HEADER), mode="r:"
        )
        return tar_members(root, tar, "sealed" if unpacked else "tar")
    if zipfile.is_zipfile(whole := bounded(file, MOST_BYTES)):
        return zip_members(root, zipfile.ZipFile(whole))
    raise UsageError(
        f"data.root={root} is neither a folder nor a tar or zip archive that can be read. It may "
        "be damaged: fetch it again."
    )


def content(root: Path, member: Member) -> bytes:
    """The bytes of a file that is not sealed; any thread or process may ask.

    Raises UsageError, naming the file, if they are not what the listing says.
    """
    try:
        with opened(root, member) as file:
            read = file.read(MOST_BYTES + 1)
    except (OSError, struct.error, zlib.error) as error:
        raise UsageError(f"{member.name} cannot be read: {error}.") from error
    if len(read) > MOST_BYTES:
        raise UsageError(f"{member.name} has more than {MOST_BYTES:,} bytes: no image.")
    return read if member.kind == "file" else _whole(member, read)


def opened(root: Path, member: Member) -> IO[bytes]:
    """A file that is not sealed, to be read from its beginning."""
    if member.kind == "file":
        return open_regular(root / member.name)
    with ExitStack() as stack:
        file = stack.enter_context(open_regular(root))
        offset = member.offset
        if member.kind != "tar":
            file.seek(offset)
            offset += LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
        if member.kind not in UNPACKERS:
            stack.pop_all()  # stays open
            return cast(IO[bytes], ContainerIO(file, offset, member.packed))
        file.seek(offset)
        packed = file.read(member.packed)
    # No more than is promised, and one byte that gives away a file that holds more.
    return io.BytesIO(UNPACKERS[member.kind]().decompress(packed, member.size + 1))


def folder_members(root: Path) -> list[Member]:
    """The files of a folder but for hidden ones, by path."""
    found = []
    for folder, folders, names in os.walk(root, onerror=_stop, followlinks=True):
        inside = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if len(inside.parts) == DEEPEST:
            names, folders[:] = [*names, *folders], []  # too deep for an image, as a file would be
        for name in names:
            if name.startswith("."):
                continue
            path, status = (inside / name).as_posix(), os.stat(Path(folder, name))
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise UsageError(f"{path} in {root} is a pipe or device. Move it away.")
            found.append(Member(path, status.st_size, status.st_mtime_ns))
    return sorted(found)


def tar_members(root: Path, archive: tarfile.TarFile, kind: str) -> Iterator[Member]:
    """The files of a tar. Raises UsageError for a link, ReadError where it was cut short."""
    for one in archive:
        if one.isfile() and not one.issparse():
            yield Member(one.name, one.size, 0, kind, one.offset_data, one.size)
        elif not one.isdir():
            raise UsageError(f"{one.name} in {root} is a link or device. Pack real files.")
    # A tar that was cut short lacks the block of zeros at its end; tarfile does not mind.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if len(archive.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")


def zip_members(root: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    """The files of a zip. Raises UsageError if one is encrypted, or packed as images never are."""
    for one in archive.infolist():
        if one.flag_bits & 1:
            raise UsageError(f"{one.filename} in {root} is encrypted. Pack it without password.")
        if one.is_dir():
            continue
        if one.compress_type not in ZIP_KINDS:
            raise UsageError(
                f"{one.filename} in {root} is compressed in a way that is not read here. Unpack it "
                f"(unzip {root.name}) and point data.root at the folder."
            )
        kind, place = ZIP_KINDS[one.compress_type], (one.header_offset, one.compress_size, one.CRC)
        yield Member(one.filename, one.file_size, 0, kind, *place)


#: What a damaged archive or an unreadable file raises.
FAULTS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    NotImplementedError,  # a zip of a later version
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
)


@contextmanager
def faults_named(root: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn FAULTS, and ``more``, into UsageError."""
    faults = FAULTS + more
    try:
        yield
    except faults as error:
        raise UsageError(
            f"data.root={root} is damaged or cannot be read: {error}. Fetch it again."
        ) from error


def _sane(root: Path, members: Iterable[Member]) -> list[Member]:
    """The members, the last of each name. Stops at the first that cannot be read or is a bomb."""
    least, times = MOST_GROWTH
    left = max(least, times * root.stat().st_size)
    found = {}
    for one in members:
        left -= one.size
        if max(one.size, one.packed) > MOST_BYTES or left < 0:
            raise UsageError(
                f"{one.name} in {root} unpacks to {one.size:,} bytes: no archive of images. Pack "
                "it again without."
            )
        found[one.name] = one
    return list(found.values())


def _whole(member: Member, read: bytes) -> bytes:
    if len(read) != member.size or member.checksum not in (None, zlib.crc32(read)):
        raise UsageError(f"{member.name} is damaged in the archive. Fetch it again.")
    return read


def _stop(error: OSError) -> None:
    """A folder that may not be read must not pass for an empty one."""
    raise error
