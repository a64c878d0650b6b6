"""Where the files of a folder or an archive lie, so that one is read without the others."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple, cast

from PIL.ContainerIO import ContainerIO

from resexp.settings import UsageError


class Place(NamedTuple):
    """A file: its path inside the root and, in an archive, where its bytes are."""

    name: str
    offset: int = 0  # of a tar's file, or of a zip's local header
    length: int = 0  # bytes in the archive
    kind: str = "file"  # file, tar, stored or deflated


#: How gzip, bzip2, xz and zstd files begin.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip: 30 bytes, the lengths of name and extra field


def tar_members(root: Path, archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The files of a tar. Raises UsageError for a link, ReadError where it was cut short."""
    members = []
    for member in archive:
        if member.isfile():
            members.append(member)
        elif not member.isdir():
            raise UsageError(f"{member.name} in {root} is a link or device. Pack real files.")
    # A tar that was cut short lacks the block of zeros at its end; tarfile does not mind.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if len(archive.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")
    return members


def zip_members(root: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of a zip. Raises UsageError if one is encrypted."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        if member.flag_bits & 1:
            raise UsageError(f"{member.filename} in {root} is encrypted. Pack it without password.")
    return members


def tar_places(root: Path) -> list[Place]:
    """Where the files of a tar lie. Raises UsageError if it is compressed."""
    with root.open("rb") as file:
        start = file.read(6)
    if start.startswith(COMPRESSED):
        raise UsageError(
            f"data.root={root} is compressed as a whole, so its images cannot be streamed. Unpack "
            f"it (tar -xf {root.name}) and point data.root at the folder."
        )
    with tarfile.open(root, "r:") as archive:
        members = tar_members(root, archive)
    return [Place(one.name, one.offset_data, one.size, "tar") for one in members]


def zip_places(root: Path) -> list[Place]:
    """Where the files of a zip lie. Raises UsageError if one is compressed in an uncommon way."""
    kinds = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
    with zipfile.ZipFile(root) as archive:
        members = zip_members(root, archive)
    if odd := [one.filename for one in members if one.compress_type not in kinds]:
        raise UsageError(
            f"{odd[0]} in {root} is compressed in a way that cannot be streamed. Unpack it with "
            f"unzip {root.name} and point data.root at the folder."
        )
    return [
        Place(one.filename, one.header_offset, one.compress_size, kinds[one.compress_type])
        for one in members
    ]


def opened(root: Path, place: Place) -> IO[bytes]:
    """A file of a folder or an archive, to be read from its beginning to its end."""
    if place.kind == "file":
        return (root / place.name).open("rb")
    file = root.open("rb")
    offset = place.offset
    if place.kind != "tar":
        file.seek(offset)
        offset += LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
    if place.kind != "deflated":
        return cast(IO[bytes], ContainerIO(file, offset, place.length))
    with file:
        file.seek(offset)
        return io.BytesIO(zlib.decompress(file.read(place.length), -zlib.MAX_WBITS))
