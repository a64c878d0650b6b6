"""Image folders and archives: Pillow's own pixels, kept once, and refused by the file at fault."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import KINDS, SEALED, Files, encoded, noise, pack, pixels_of, six
from test_data import refused

from resexp import data
from resexp.data import archives, stream
from resexp.data.decode import decode_image
from resexp.data.sets import imagefolder
from resexp.settings import Data, Split, Stream


def folder(root: Path, tmp_path: Path, size: int | None = None, **changes: Any) -> Data:
    usual = Data(name="mine", loader="imagefolder", root=str(root), cache=str(tmp_path / "cache"))
    return replace(usual, size=size, **changes)


def load_files(files: Files, tmp_path: Path, size: int | None = None) -> data.Images:
    return data.load(folder(pack("folder", tmp_path, files), tmp_path, size))


def streamed(root: Path, tmp_path: Path, size: int | None = None) -> data.Images:
    return data.load(folder(root, tmp_path, size, stream=Stream.always, workers=1))


# What is read


@pytest.mark.parametrize("kind", KINDS + SEALED)
@pytest.mark.parametrize("around", ["", "birds/", "./"])
def test_images_are_read_from_folders_and_archives(tmp_path: Path, kind: str, around: str) -> None:
    files = six()
    clutter = {"README.md": b"mine"} if not around.strip("./") else {}
    hidden = {"train/.DS_Store": b"", "train/cat/._0.png": b"", "__MACOSX/train/x": b""}
    packed = {around + name: content for name, content in (files | clutter | hidden).items()}
    images = data.load(folder(pack(kind, tmp_path, packed), tmp_path))
    assert images.name == "mine"
    assert images.classes == ["ant", "cat"]
    assert images.train_labels.tolist() == [0, 0, 1, 1]
    assert images.test_labels.tolist() == [0, 1]
    order = ["train/ant/2.png", "train/ant/7.png", "train/cat/0.png", "train/cat/1.png"]
    assert images.train_images.tolist() == [pixels_of(files[name]) for name in order]
    assert images.test_images[1].tolist() == pixels_of(files["test/cat/5.png"])
    assert not (tmp_path / "train").exists()


def test_the_classes_and_rows_are_those_of_torchvision(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    images = load_files(six(), tmp_path)
    theirs = torchvision.ImageFolder(tmp_path / "images" / "train")
    assert images.classes == theirs.classes
    assert images.train_labels.tolist() == theirs.targets
    assert images.train_images.tolist() == [np.asarray(image).tolist() for image, _ in theirs]


def test_a_zip_of_an_uncommon_kind_is_to_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in six().items():
            archive.writestr(name, content)
    with refused("unzip odd.zip"):
        data.load(folder(path, tmp_path))


def test_grey_images_have_one_channel_and_one_in_colour_gives_all_three(tmp_path: Path) -> None:
    files = six("L")
    grey = load_files(files, tmp_path)
    assert grey.channels == 1
    assert grey.test_images[1].tolist() == pixels_of(files["test/cat/5.png"], "L")
    files["train/cat/1.png"] = noise(9, mode="RGBA")
    mixed = load_files(files, tmp_path)
    assert mixed.channels == 3
    assert mixed.train_images[3].tolist() == pixels_of(files["train/cat/1.png"])
    assert mixed.test_images[1].tolist() == pixels_of(files["test/cat/5.png"])


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_square_of_an_image_is_resized(tmp_path: Path, turned: bool) -> None:
    files = six() | {"train/cat/1.png": noise(9, size=(12, 24) if turned else (24, 12))}
    with Image.open(io.BytesIO(files["train/cat/1.png"])) as image:
        larger = image.resize((16, 32) if turned else (32, 16), Image.Resampling.BILINEAR)
        whole, larger = np.asarray(image, np.int64), np.asarray(larger, np.int64)
    cut = load_files(files, tmp_path, size=12).train_images[3].numpy()
    assert np.array_equal(cut, whole[6:18] if turned else whole[:, 6:18])
    resized = load_files(files, tmp_path, size=16).train_images[3].numpy()
    expected = larger[8:24] if turned else larger[:, 8:24]
    assert np.abs(resized - expected).max() <= 1  # of 255: Pillow rounds its weights


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_photograph_is_decoded_small_to_nearly_the_same_pixels(mode: str) -> None:
    dots = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    photograph = Image.fromarray(dots).resize((300, 400), Image.Resampling.BICUBIC).convert(mode)
    content = encoded(photograph, "JPEG", quality=95)
    small = decode_image("x.jpg", content, 32)
    assert small.shape == (32, 32, 1 if mode == "L" else 3)
    with Image.open(io.BytesIO(content)) as image:
        whole = image.convert("L" if mode == "L" else "RGB").crop((0, 50, 300, 350))
    slow = np.asarray(whole.resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    assert np.abs(small.reshape(slow.shape) - slow).mean() < 2


@pytest.mark.process
def test_processes_decode_what_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pack("tar", tmp_path, six())
    alone = data.load(folder(root, tmp_path))
    monkeypatch.setattr(imagefolder, "FEW", 0)
    monkeypatch.setattr(stream, "PIECE", 8 * 8 * 3)  # an image
    elsewhere = folder(root, tmp_path, cache=str(tmp_path / "other"), workers=2)
    together = data.load(elsewhere)
    assert torch.equal(alone.train_images, together.train_images)
    assert torch.equal(alone.test_images, together.test_images)


# The cache


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pack("tar.xz", tmp_path, six())
    first = data.load(folder(root, tmp_path))

    def never(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(imagefolder, "_decoded", never)
    again = data.load(folder(root, tmp_path))
    assert torch.equal(again.train_images, first.train_images)
    assert torch.equal(again.test_labels, first.test_labels)
    with pytest.raises(AssertionError, match="decoded again"):
        data.load(folder(root, tmp_path, size=16))


def test_a_changed_image_is_decoded_again(tmp_path: Path) -> None:
    before = load_files(six(), tmp_path)
    path = tmp_path / "images" / "test/cat/5.png"
    path.write_bytes(noise(77))
    os.utime(path, ns=(1, 1))
    after = data.load(folder(tmp_path / "images", tmp_path))
    assert after.test_images[1].tolist() == pixels_of(noise(77))
    assert torch.equal(after.train_images, before.train_images)


def test_an_archive_with_one_changed_byte_is_another_set(tmp_path: Path) -> None:
    """Archives made to be reproducible have the same times; sizes may agree as well."""
    files = six()
    data.load(folder(pack("tar", tmp_path, files), tmp_path))
    cat, ant = "test/cat/5.png", "test/ant/5.png"
    files[cat], files[ant] = files[ant], files[cat]
    images = data.load(folder(pack("tar", tmp_path, files), tmp_path))
    assert images.test_images[1].tolist() == pixels_of(files[cat])


def changed_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def with_arrays(**changes: Any) -> Callable[[Path], None]:
    """Other arrays, in a file that is whole."""

    def damage(path: Path) -> None:
        with np.load(path) as kept:
            arrays = dict(kept) | changes
        np.savez(path, **{name: one for name, one in arrays.items() if one is not None})

    return damage


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("null"),
    "a pipe": as_pipe,
}


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGE.values(),
        changed_pixel,
        with_arrays(pixels=None),
        with_arrays(more=np.zeros(1)),
        with_arrays(pixels=np.zeros((6, 8, 8), np.uint8)),
        with_arrays(pixels=np.zeros((5, 8, 8, 3), np.uint8)),
        with_arrays(pixels=np.zeros((6, 8, 8, 3))),
        with_arrays(labels=np.array(["a"] * 6)),
        with_arrays(train=np.array(9)),
        with_arrays(train=np.array([4, 2])),
        with_arrays(classes=np.array([0, 1])),
    ],
)
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    first = load_files(six(), tmp_path)
    (kept,) = (tmp_path / "cache").glob("images-*.npz")
    damage(kept)
    again = data.load(folder(tmp_path / "images", tmp_path))
    assert torch.equal(again.train_images, first.train_images)
    with np.load(kept) as arrays:
        assert len(arrays["pixels"]) == 6


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGE.values(),
        with_arrays(shape=np.array([8, 8])),
        with_arrays(shape=np.array([-8, 8, 3])),
        with_arrays(shape=np.array([8, 8, 2])),
        with_arrays(shape=np.array([8.0, 8, np.inf])),
        with_arrays(shape=np.array(None, object)),
    ],
)
def test_damaged_heads_are_read_again(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    root = pack("folder", tmp_path, six())
    first = streamed(root, tmp_path)
    (kept,) = (tmp_path / "cache").glob("heads-*.npz")
    damage(kept)
    assert streamed(root, tmp_path).train_images.shape == first.train_images.shape == (4, 8, 8, 3)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with refused("data.cache=", "cannot be written"):
        load_files(six(), tmp_path)


# What is refused


BLANK = encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16)))  # 16 bits


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train/cat/1.png": b""}, ["train/cat/1.png", "empty"]),
        ({"train/cat/1.png": b"no image"}, ["train/cat/1.png", "not an image"]),
        ({"train/cat/1.png": noise(9)[:90]}, ["train/cat/1.png", "cannot be decoded"]),
        (
            {"train/cat/1.png": noise(9, (9, 12))},
            ["train/cat/1.png is 9x12", "train/", "8x8", "data.size=8"],
        ),
        ({"test/cat/5.png": BLANK}, ["test/cat/5.png", "8 bits"]),
        ({"train/dog/1.png": noise(9)}, ["Class dog", "train/", "none in test/"]),
        ({"test/bee/1.png": noise(9)}, ["Class bee", "test/", "none in train/"]),
        ({"train/1.png": noise(9)}, ["train/1.png", "train/<class>/<image>"]),
        ({"test/cat/old/1.png": noise(9)}, ["test/cat/old/1.png", "Move it"]),
        ({"test/cat/a/b/c/d/1.png": noise(9)}, ["test/cat/a/b/c", "Move it"]),
        # All that is wrong, in one message
        (
            {"train/cat/1.png": b"", "test/ant/5.png": b"no image", "test/cat/5.png": BLANK},
            ["3 faults", "train/cat/1.png is empty", "test/ant/5.png is not", "test/cat/5.png has"],
        ),
        (
            {f"train/cat/{number}.png": noise(9)[:90] for number in range(7)},
            ["7 faults", "train/cat/0.png cannot", "train/cat/4.png cannot", "And 2 more"],
        ),
        ({"train/1.png": b"", "test/2.png": b""}, ["2 faults", "train/1.png", "test/2.png"]),
        (
            {"train/dog/1.png": noise(9), "test/bee/1.png": noise(9)},
            ["Class dog has images in train/", "Class bee has images in test/"],
        ),
    ],
)
def test_an_image_folder_is_refused_by_the_files_at_fault(
    tmp_path: Path, changes: Files, words: list[str]
) -> None:
    with refused(*words):
        load_files(six() | changes, tmp_path)
    assert not list((tmp_path / "cache").glob("images-*.npz"))


def test_files_that_are_no_images_by_their_names_are_skipped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["train/cat/notes.txt", "train/labels.csv", "test/cat/Thumbs.db"]
    files = six() | dict.fromkeys(names, b"no image") | {"train/cat/3": noise(3)}
    images = load_files(files, tmp_path)
    assert len(images.train_labels) == 5  # a name without an ending may be an image's
    said = capsys.readouterr()
    assert said.out == ""
    assert "skipped 3 files" in said.err and all(name in said.err for name in names)
    streamed(tmp_path / "images", tmp_path)
    assert "skipped 3 files" in capsys.readouterr().err


@pytest.mark.parametrize(("absent", "hint"), [("train", ""), ("test", "Rename val/ to test/")])
def test_an_image_folder_needs_both_splits(tmp_path: Path, absent: str, hint: str) -> None:
    files = {name.replace("test/", "val/") if hint else name: file for name, file in six().items()}
    (tmp_path / "images" / absent / "cat").mkdir(parents=True)
    with refused(f"no images at {absent}/<class>/", hint):
        load_files({name: one for name, one in files.items() if absent not in name}, tmp_path)


def test_a_root_that_does_not_exist_is_refused_before_anything(tmp_path: Path) -> None:
    with refused("data.root=", "nowhere", "does not exist", "train/<class>/"):
        data.check_present(folder(tmp_path / "nowhere", tmp_path))


def test_a_set_with_no_room_in_memory_is_refused_where_it_may_not_be_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "free_memory", lambda: 10_000)
    root = pack("folder", tmp_path, six())
    with refused("memory", "data.size"):
        data.load(folder(root, tmp_path, 1024, stream=Stream.never))
    with refused("memory", "data.size"):
        data.load(Data(name="blobs", loader="blobs", size=1024))


# Archives that are damaged, or mean harm


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(b"hello" * 1000)
    with refused("images.tar", "neither a folder nor a tar or zip"):
        data.load(folder(tmp_path / "images.tar", tmp_path))


@pytest.mark.parametrize("kind", KINDS[1:] + SEALED)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_archive_cut_short_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = pack(kind, tmp_path, six())
    content = path.read_bytes()
    end = len(content) if kind != "tar" else 6 * 1024  # leaves the padding of a plain tar out
    path.write_bytes(content[: int(share * end)])
    with refused(str(path), "damaged"):
        data.load(folder(path, tmp_path))


def test_a_plain_tar_cut_between_two_files_is_refused(tmp_path: Path) -> None:
    path = pack("tar", tmp_path, six() | {"train/cat/8.png": noise(8)})
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    with refused(str(path), "damaged"):
        data.load(folder(path, tmp_path))


@pytest.mark.parametrize("kind", ["zip", "stored.zip"])
@pytest.mark.parametrize("load", [lambda *a: data.load(folder(*a)), streamed])
def test_a_changed_byte_in_a_zip_is_found(tmp_path: Path, kind: str, load: Any) -> None:
    path = pack(kind, tmp_path, six())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("train/cat/1.png").header_offset
    content = bytearray(path.read_bytes())
    content[start + 150] ^= 1
    path.write_bytes(content)
    with refused("train/cat/1.png"):
        load(path, tmp_path).train_images.peek(range(4))


@pytest.mark.parametrize("name", ["../evil.png", "/train/cat/evil.png", "train/../../evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_lead_out_of_an_archive_are_refused(
    tmp_path: Path, kind: str, name: str
) -> None:
    path = pack(kind, tmp_path, six() | {name: noise(9)})
    with refused(name, "leads out of the archive"):
        data.load(folder(path, tmp_path))
    assert not list(tmp_path.parent.glob("evil.png"))


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    path = pack("tar", tmp_path, six())
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("train/cat/9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with refused("train/cat/9.png", "link"):
        data.load(folder(path, tmp_path))


def promise(path: Path, name: str, size: int) -> None:
    """Let a zip's directory say that a file has so many bytes."""
    with zipfile.ZipFile(path) as archive:
        honest = archive.getinfo(name).file_size
    entry = path.read_bytes().rindex(name.encode()) - 46  # of the central directory
    content = bytearray(path.read_bytes())
    assert struct.unpack_from("<I", content, entry + 24) == (honest,)
    struct.pack_into("<I", content, entry + 24, size)
    path.write_bytes(content)


BOMB = "train/cat/0.png"


@pytest.mark.parametrize("load", [lambda *a: data.load(folder(*a)), streamed])
@pytest.mark.parametrize("size", [2**32 - 2, 1000])  # as much as it says, and more than it says
@pytest.mark.parametrize("kind", ["zip", "bzip2.zip"])
def test_a_zip_bomb_is_refused_before_it_is_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any, size: int, kind: str
) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 2**20)
    path = pack(kind, tmp_path, six() | {BOMB: noise(0) + bytes(2**22)})
    promise(path, BOMB, size)
    with refused(BOMB):
        load(path, tmp_path)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz"])
def test_a_tar_bomb_is_refused_by_its_header(tmp_path: Path, kind: str) -> None:
    path = pack(kind, tmp_path, six())
    header = tarfile.TarInfo("train/cat/9.png")
    header.size = 6 * 2**30  # nothing of it is there: it would be read for, and missed
    with tarfile.open(path, f"w:{kind[4:]}") as archive:  # type: ignore[call-overload]
        archive.fileobj.write(header.tobuf())
    with refused("train/cat/9.png", f"{header.size:,} bytes"):
        data.load(folder(path, tmp_path))


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("header", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_name_as_long_as_memory_is_refused(tmp_path: Path, kind: str, header: bytes) -> None:
    lie = tarfile.TarInfo("x")
    lie.type, lie.size = header, 6 * 2**30
    path = tmp_path / f"images.{kind}"
    path.write_bytes(packed := lie.tobuf() + bytes(1024))
    if kind == "tar.gz":
        path.write_bytes(gzip.compress(packed))
    with refused(str(path), f"claims {lie.size:,} bytes"):
        data.load(folder(path, tmp_path))


@pytest.mark.parametrize("header", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_headers_without_end_are_refused(tmp_path: Path, header: bytes) -> None:
    one = tarfile.TarInfo("x")
    one.type, one.size = header, 12
    (tmp_path / "images.tar").write_bytes((one.tobuf() + b"12 a=bcdefg\n".ljust(512, b"\0")) * 2000)
    with refused("images.tar", "damaged"):
        data.load(folder(tmp_path / "images.tar", tmp_path))


def test_a_directory_of_a_zip_as_large_as_memory_is_refused(tmp_path: Path) -> None:
    size = 3 * 2**30
    end = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)
    with open(tmp_path / "images.zip", "wb") as file:
        file.write(b"PK")
        file.seek(size)  # a hole: on the disk there are a few bytes
        file.write(end)
    with refused("images.zip", f"claims {size:,} bytes"), archives.listing(tmp_path / "images.zip"):
        pass


def test_an_archive_of_many_files_that_grow_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_GROWTH", (2**20, 10))
    path = pack("tar.xz", tmp_path, {f"train/cat/{n}.png": bytes(2**18) for n in range(9)})
    with refused("train/cat/4.png"):
        data.load(folder(path, tmp_path))


# Pipes and devices: what would keep a reader waiting for ever


def test_a_pipe_or_device_as_root_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for root in (tmp_path / "pipe", Path("/dev/zero")):
        with refused("is a pipe or device"):
            data.check_present(folder(root, tmp_path))
        with refused("is a pipe or device"):
            data.load(folder(root, tmp_path))


def test_a_pipe_among_the_images_is_refused_at_once(tmp_path: Path) -> None:
    root = pack("folder", tmp_path, six())
    os.mkfifo(root / "train/cat/9.png")
    for load in (lambda *a: data.load(folder(*a)), streamed):
        with refused("train/cat/9.png", "pipe"):
            load(root, tmp_path)


def test_a_pipe_that_takes_an_images_place_is_refused_at_once(tmp_path: Path) -> None:
    images = streamed(pack("folder", tmp_path, six()), tmp_path)
    as_pipe(tmp_path / "images/train/ant/2.png")
    with refused("train/ant/2.png", "pipe"):
        images.train_images.peek([0])  # type: ignore[union-attr]


def test_a_link_that_leads_back_up_ends(tmp_path: Path) -> None:
    root = pack("folder", tmp_path, six())
    for name in "abc":
        (root / "test" / name).symlink_to(root)
    with refused("is not at train/<class>/<image>"):
        data.load(folder(root, tmp_path))


# What doctor says, and the whole of CIFAR-10


def test_a_folder_is_described_without_being_decoded(tmp_path: Path) -> None:
    root = pack("folder", tmp_path, six() | {"train/cat/notes.txt": b""})
    said = imagefolder.describe(folder(root, tmp_path))
    for words in ("2 classes", "4 + 2 images of 8x8x3", str(root), "train/cat/notes.txt"):
        assert words in said
    (root / "train/cat/1.png").write_bytes(b"no image")
    with refused("train/cat/1.png is not an image"):
        imagefolder.describe(folder(root, tmp_path))
    assert not list((tmp_path / "cache").glob("images-*.npz"))


@pytest.mark.slow
def test_the_jpeg_copy_of_cifar10_is_read_whole(tmp_path: Path) -> None:
    root = os.environ.get("RESEXP_CIFAR10_JPEG")
    if not root:
        pytest.skip("RESEXP_CIFAR10_JPEG does not name an archive of CIFAR-10 as JPEG files")
    images = data.load(folder(Path(root), tmp_path, split=Split("45k")))
    assert images.train_images.shape == (45_000, 32, 32, 3)
    assert images.test_images.shape == (10_000, 32, 32, 3)
    assert images.classes[0] == "airplane" and images.classes[9] == "truck"
    assert images.chance_error == 90.0
