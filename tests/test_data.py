"""resexp.data: every loader reads what is there and refuses, by name, what cannot be used."""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from resexp import data
from resexp.data import cifar10, digits, imagefolder
from resexp.data.masks import FOLDERS
from resexp.settings import Data, Split, UsageError


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """UsageError, in one line, with all of these words in it."""
    with pytest.raises(UsageError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def a_set(**changes: Any) -> data.Images:
    """Four training and two test images of two classes; sound unless changed."""
    pixels = torch.arange(6 * 64, dtype=torch.int64).remainder(251).to(torch.uint8)
    pixels = pixels.view(6, 8, 8, 1)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    sound = data.Images("tiny", pixels[:4], labels[:4], pixels[4:], labels[4:], ["a", "b"])
    return replace(sound, **changes)


# Any set


def test_a_set_says_its_size_and_what_chance_is() -> None:
    images = a_set(train_labels=torch.tensor([0, 1, 1, 1]))
    assert (images.channels, images.size, images.chance_error) == (1, (8, 8), 25.0)
    assert images.to("cpu").classes == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train_images": torch.ones(4, 8, 8, 1)}, "training images are no uint8"),
        ({"train_labels": torch.tensor([0, 1, 0])}, "4 training images but 3 training labels"),
        (
            {
                "test_images": torch.zeros(0, 8, 8, 1, dtype=torch.uint8),
                "test_labels": torch.zeros(0, dtype=torch.int64),
            },
            "no test images",
        ),
        ({"test_images": torch.ones(2, 8, 9, 1, dtype=torch.uint8)}, "differ in size"),
        ({"train_labels": torch.tensor([0, 1, 0, 2])}, "training labels run from 0 to 2"),
        ({"test_labels": torch.tensor([0, -1])}, "test labels run from -1 to 0"),
        ({"classes": ["a", "b", "cat"]}, "no training image is of class cat"),
        ({"classes": ["a"]}, "fewer than two classes"),
        ({"train_images": torch.full((4, 8, 8, 1), 9, dtype=torch.uint8)}, "one constant colour"),
    ],
)
def test_a_set_that_nothing_can_be_learnt_from_is_refused(
    changes: dict[str, Any], fault: str
) -> None:
    with refused("tiny", fault):
        data.check_images(a_set(**changes))


def test_an_almost_black_set_is_refused() -> None:
    black = torch.zeros(4, 8, 8, 1, dtype=torch.uint8)
    black[0, 0, 0, 0] = 1
    with refused("tiny", "nearly all black"):
        data.check_images(a_set(train_images=black))


@pytest.mark.parametrize(("shape", "fault"), [((7, 8, 1), "7x8 pixels"), ((8, 8, 2), "2 channels")])
def test_images_of_an_impossible_shape_are_refused(shape: tuple[int, ...], fault: str) -> None:
    pixels = torch.randint(0, 255, (6, *shape), dtype=torch.uint8)
    with refused("tiny", fault):
        data.check_images(a_set(train_images=pixels[:4], test_images=pixels[4:]))


def test_the_45k_split_keeps_the_first_4500_of_each_class() -> None:
    labels = torch.arange(50_000).remainder(10)
    numbered = torch.arange(50_000).view(-1, 1, 1, 1)
    ten = [str(c) for c in range(10)]
    images = a_set(train_images=numbered, train_labels=labels, classes=ten)
    kept = data.keep_45k(images)
    assert kept.train_images.flatten().tolist() == list(range(45_000))
    assert kept.train_labels.bincount().tolist() == [4500] * 10
    assert torch.equal(kept.test_images, images.test_images)


def test_the_45k_split_is_refused_for_other_sets() -> None:
    with refused("data.split=45k", "digits has 1,437", "data.split=full"):
        data.load(Data(split=Split("45k")))


def test_an_unknown_loader_is_refused_with_the_nearest() -> None:
    with refused("data.loader=cifar", "Did you mean cifar10?"):
        data.check_present(Data(loader="cifar"))
    with refused("data.loader=zzz", "digits, cifar10, fashion_mnist, imagefolder"):
        data.load(Data(loader="zzz"))


def test_looking_for_files_does_not_import_torch(tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    code = (
        "import sys; from resexp import data; from resexp.settings import Data\n"
        "data.check_present(Data(loader='masks', root=sys.argv[1]))\n"
        "for loader in data.LOADERS[:-1]: data.check_present(Data(loader=loader, root='.'))\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=root)


# Digits


def test_digits_come_with_the_package() -> None:
    images = data.load(Data())
    assert images.name == "digits"
    assert images.train_images.shape == (1437, 8, 8, 1)
    assert images.test_images.shape == (360, 8, 8, 1)
    assert images.classes == [str(digit) for digit in range(10)]
    assert digits.FILE.stat().st_size < 100_000


def test_digits_use_the_whole_range_of_grey() -> None:
    images = data.load(Data()).train_images
    levels = [round(value * 255 / 16) for value in range(17)]
    assert np.unique(images).tolist() == levels
    assert 70 < images.float().mean() < 85


def test_digits_are_split_in_the_same_proportions() -> None:
    images = data.load(Data())
    train, test = images.train_labels.bincount(), images.test_labels.bincount()
    share = (train + test) * 360 / 1797
    assert (test - share).abs().max() < 1


def test_digits_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is for development")
    source = sklearn.load_digits()
    with np.load(digits.FILE, allow_pickle=False) as file:
        assert np.array_equal(file["images"], source.images)
        assert np.array_equal(file["labels"], source.target)


@pytest.mark.parametrize("damage", ["cut", "changed", "no zip"])
def test_damaged_digits_are_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "digits.npz"
    content = digits.FILE.read_bytes()
    if damage == "changed":
        with np.load(digits.FILE) as arrays:
            np.savez(file, images=arrays["images"], labels=arrays["labels"], test=~arrays["test"])
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"digits")
    monkeypatch.setattr(digits, "FILE", file)
    with refused("digits.npz", "damaged"):
        data.load(Data())


def test_missing_digits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "FILE", tmp_path / "digits.npz")
    with refused("digits.npz is missing"):
        data.check_present(Data())


# CIFAR-10

ABSENT = (
    "Put cifar-10-python.tar.gz there, or point data.root at a copy; "
    "or train on what is here: experiment=digits."
)


def cifar(root: Path, download: bool = False) -> Data:
    return Data(name="cifar10", loader="cifar10", root=str(root), download=download)


def test_absent_cifar10_says_what_to_do(tmp_path: Path) -> None:
    with refused(f"CIFAR-10 is not in {tmp_path}/ and data.download is false. {ABSENT}"):
        data.check_present(cifar(tmp_path))
    data.check_present(cifar(tmp_path, download=True))


def test_cifar10_without_a_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    torchvision = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(torchvision.CIFAR10, "download", no_network)
    sentence = f"CIFAR-10 is not in {tmp_path}/ and could not be downloaded (no network). {ABSENT}"
    with refused(sentence):
        data.load(cifar(tmp_path, download=True))


def test_cifar10_files_with_other_checksums_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for name in ("test_batch", "batches.meta", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(b"not what was published")
    with refused("cifar-10-batches-py", "corrupt", "MD5"):
        data.load(cifar(tmp_path, download=True))


def test_a_damaged_cifar10_archive_is_refused_and_kept(tmp_path: Path) -> None:
    archive = tmp_path / cifar10.ARCHIVE
    archive.write_bytes(b"cut short")
    with refused("cifar-10-python.tar.gz", "corrupt", "Delete it"):
        data.load(cifar(tmp_path, download=True))
    assert archive.read_bytes() == b"cut short"


def test_cifar10_is_read_in_file_order_and_keeps_stdout_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fake:
        def __init__(self, root: Path, train: bool = True) -> None:
            print("Files already downloaded and verified")
            count = 20 if train else 10
            planar = np.arange(count * 3072, dtype=np.int64).reshape(count, 3, 32, 32)
            self.data = (planar % 256).astype(np.uint8).transpose(0, 2, 3, 1)
            self.targets = [row % 10 for row in range(count)]
            self.classes = list("abcdefghij")

    (tmp_path / cifar10.FOLDER).mkdir()
    torchvision = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(torchvision, "CIFAR10", Fake)
    images = data.load(cifar(tmp_path))
    assert images.train_images.shape == (20, 32, 32, 3)
    assert images.test_labels.tolist() == list(range(10))
    assert images.train_images[0, 0, :3, 0].tolist() == [0, 1, 2]
    assert capsys.readouterr().out == ""


# Fashion-MNIST


def idx(array: np.ndarray[Any, Any]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion(folder: Path, suffix: str = "") -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": generator.integers(0, 256, (20, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(20) % 10,
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (10, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(10),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = gzip.compress(idx(array)) if suffix else idx(array)
        (folder / (name + suffix)).write_bytes(content)
    return arrays


def fashion(root: Path, download: bool = False) -> Data:
    return Data(name="fashion", loader="fashion_mnist", root=str(root), download=download)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path, place: str, suffix: str) -> None:
    arrays = write_fashion(tmp_path / place, suffix)
    images = data.load(fashion(tmp_path))
    assert np.array_equal(images.train_images[..., 0], arrays["train-images-idx3-ubyte"])
    assert np.array_equal(images.test_labels, arrays["t10k-labels-idx1-ubyte"])
    assert images.classes[0] == "T-shirt/top" and images.classes[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1], "truncated"),
        (lambda content: content + b"x", "too long"),
        (lambda content: content[:9], "truncated"),
        (lambda content: b"\0\0\x0d\3" + content[4:], "no IDX file"),
        (lambda content: content[:3] + b"\1" + content[4:], "no IDX file"),
        (lambda content: b"", "no IDX file"),
        (lambda content: idx(np.zeros((0, 28, 28))), "empty"),
    ],
)
def test_a_damaged_idx_file_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    write_fashion(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with refused("train-images-idx3-ubyte", words):
        data.load(fashion(tmp_path))


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, cut: int) -> None:
    write_fashion(tmp_path, ".gz")
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:cut])
    with refused("t10k-labels-idx1-ubyte.gz"):
        data.load(fashion(tmp_path))


def test_absent_fashion_mnist_names_the_missing_file(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with refused("no t10k-labels-idx1-ubyte[.gz]", "data.download is false", "experiment=digits"):
        data.check_present(fashion(tmp_path))


def test_fashion_mnist_without_a_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error downloading:\nTried everything")

    torchvision = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(torchvision.FashionMNIST, "download", no_network)
    with refused("could not be downloaded (no network)", "dataset-fashion-mnist"):
        data.load(fashion(tmp_path, download=True))


# Image folders

Files = dict[str, bytes]


def png(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """An image of noise; PNG, so that its pixels survive."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    shape = (size[1], size[0], *channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(content: bytes, mode: str = "RGB") -> list[Any]:
    with Image.open(io.BytesIO(content)) as image:
        array = np.asarray(image.convert(mode))
    return (array if array.ndim == 3 else array[:, :, None]).tolist()  # type: ignore[no-any-return]


def eight(mode: str = "RGB") -> Files:
    """Two training images and one test image of each of two classes."""
    names = ["train/cat/0.png", "train/cat/1.png", "train/ant/7.png", "train/ant/2.png"]
    names += ["test/cat/5.png", "test/ant/5.png"]
    return {name: png(seed, mode=mode) for seed, name in enumerate(names)}


def write_folder(root: Path, files: Files) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path: Path, files: Files, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def pack(kind: str, where: Path, files: Files) -> Path:
    if kind == "folder":
        return write_folder(where / "images", files)
    if kind == "zip":
        return write_zip(where / "images.zip", files)
    compression = kind.rpartition(".")[2] if "." in kind else ""
    return write_tar(where / f"images.{kind}", files, f"w:{compression}")


KINDS = ["folder", "zip", "tar", "tar.gz", "tar.xz", "tar.bz2"]


def folder(root: Path, tmp_path: Path, size: int | None = None) -> Data:
    return Data(
        name="mine",
        loader="imagefolder",
        root=str(root),
        size=size,
        cache=str(tmp_path / "cache"),
    )


def load_files(files: Files, tmp_path: Path, size: int | None = None) -> data.Images:
    return data.load(folder(write_folder(tmp_path / "images", files), tmp_path, size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", ["", "birds/", "./"])
def test_images_are_read_from_folders_and_archives(tmp_path: Path, kind: str, around: str) -> None:
    files = eight()
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


def test_grey_images_have_one_channel_and_one_in_colour_gives_all_three(tmp_path: Path) -> None:
    files = eight("L")
    grey = load_files(files, tmp_path)
    assert grey.channels == 1
    assert grey.test_images[1].tolist() == pixels_of(files["test/cat/5.png"], "L")
    files["train/cat/1.png"] = png(9, mode="RGBA")
    mixed = load_files(files, tmp_path)
    assert mixed.channels == 3
    assert mixed.train_images[3].tolist() == pixels_of(files["train/cat/1.png"])
    assert mixed.test_images[1].tolist() == pixels_of(files["test/cat/5.png"])


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_square_of_an_image_is_resized(tmp_path: Path, turned: bool) -> None:
    files = eight() | {"train/cat/1.png": png(9, size=(12, 24) if turned else (24, 12))}
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
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    photograph = Image.fromarray(noise).resize((300, 400), Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=95)
    small = imagefolder.decode_image("x.jpg", file.getvalue(), 32)
    assert small.shape == (32, 32, 1 if mode == "L" else 3)
    with Image.open(file) as image:
        whole = image.convert("L" if mode == "L" else "RGB").crop((0, 50, 300, 350))
    slow = np.asarray(whole.resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    assert np.abs(small.reshape(slow.shape) - slow).mean() < 2


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pack("tar.xz", tmp_path, eight())
    first = data.load(folder(root, tmp_path))

    def never(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(imagefolder, "_decode", never)
    again = data.load(folder(root, tmp_path))
    assert torch.equal(again.train_images, first.train_images)
    assert torch.equal(again.test_labels, first.test_labels)
    with pytest.raises(AssertionError, match="decoded again"):
        data.load(folder(root, tmp_path, size=16))


def test_a_changed_image_is_decoded_again(tmp_path: Path) -> None:
    files = eight()
    before = load_files(files, tmp_path)
    path = tmp_path / "images" / "test/cat/5.png"
    path.write_bytes(png(77))
    os.utime(path, ns=(1, 1))
    after = data.load(folder(tmp_path / "images", tmp_path))
    assert after.test_images[1].tolist() == pixels_of(png(77))
    assert torch.equal(after.train_images, before.train_images)


def test_an_archive_with_one_changed_byte_is_another_set(tmp_path: Path) -> None:
    """Archives made to be reproducible have the same times; sizes may agree as well."""
    files = eight()
    data.load(folder(pack("tar", tmp_path, files), tmp_path))
    files["test/cat/5.png"], files["test/ant/5.png"] = (
        files["test/ant/5.png"],
        files["test/cat/5.png"],
    )
    images = data.load(folder(pack("tar", tmp_path, files), tmp_path))
    assert images.test_images[1].tolist() == pixels_of(files["test/cat/5.png"])


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    first = load_files(eight(), tmp_path)
    (kept,) = (tmp_path / "cache").glob("*.npz")
    content = bytearray(kept.read_bytes())
    if damage == "changed":
        content[300] ^= 1  # a pixel
    kept.write_bytes(content[: {"cut": 500, "changed": len(content), "empty": 0}[damage]])
    again = data.load(folder(tmp_path / "images", tmp_path))
    assert torch.equal(again.train_images, first.train_images)
    with np.load(kept) as arrays:
        assert len(arrays["pixels"]) == 6


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with refused("data.cache=", "cannot be written"):
        load_files(eight(), tmp_path)


def test_processes_decode_what_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pack("tar", tmp_path, eight())
    alone = data.load(folder(root, tmp_path))
    monkeypatch.setattr(imagefolder, "_workers", lambda images: 2)
    monkeypatch.setattr(imagefolder, "CHUNK_FILES", 1)
    together = data.load(replace(folder(root, tmp_path), cache=str(tmp_path / "other")))
    assert torch.equal(alone.train_images, together.train_images)
    assert torch.equal(alone.test_images, together.test_images)


def sixteen_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train/cat/1.png": b""}, ["train/cat/1.png", "empty"]),
        ({"train/cat/1.png": b"no image"}, ["train/cat/1.png", "not an image"]),
        ({"train/cat/1.png": png(9)[:90]}, ["train/cat/1.png", "cannot be decoded"]),
        (
            {"train/cat/1.png": png(9, (9, 12))},
            ["train/cat/1.png is 9x12", "train/", "8x8", "data.size=8"],
        ),
        ({"test/cat/5.png": sixteen_bits()}, ["test/cat/5.png", "8 bits"]),
        ({"train/dog/1.png": png(9)}, ["Class dog", "train/", "none in test/"]),
        ({"test/bee/1.png": png(9)}, ["Class bee", "test/", "none in train/"]),
        ({"train/1.png": png(9)}, ["train/1.png", "train/<class>/<image>"]),
        ({"test/cat/old/1.png": png(9)}, ["test/cat/old/1.png", "Move it"]),
    ],
)
def test_an_image_folder_is_refused_by_the_file_at_fault(
    tmp_path: Path, changes: Files, words: list[str]
) -> None:
    with refused(*words):
        load_files(eight() | changes, tmp_path)
    assert not list((tmp_path / "cache").glob("*.npz"))


@pytest.mark.parametrize("absent", ["train", "test"])
def test_an_image_folder_needs_both_splits(tmp_path: Path, absent: str) -> None:
    files = {name: file for name, file in eight().items() if not name.startswith(absent)}
    with refused(f"no images at {absent}/<class>/"):
        load_files(files, tmp_path)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "images" / split / "cat").mkdir(parents=True)
    with refused("no images at train/<class>/"):
        data.load(folder(tmp_path / "images", tmp_path))


def test_a_root_that_does_not_exist_is_refused_before_anything(tmp_path: Path) -> None:
    with refused("data.root=", "nowhere", "does not exist", "train/<class>/"):
        data.check_present(folder(tmp_path / "nowhere", tmp_path))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(b"hello" * 1000)
    with refused("images.tar", "neither a folder nor a tar or zip"):
        data.load(folder(tmp_path / "images.tar", tmp_path))


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_archive_cut_short_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = pack(kind, tmp_path, eight())
    content = path.read_bytes()
    end = len(content) if kind != "tar" else 6 * 1024  # leaves the padding of a plain tar out
    path.write_bytes(content[: int(share * end)])
    with refused(str(path), "damaged"):
        data.load(folder(path, tmp_path))


def test_a_plain_tar_cut_between_two_files_is_refused(tmp_path: Path) -> None:
    path = pack("tar", tmp_path, eight() | {"train/cat/8.png": png(8)})
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    with refused(str(path), "damaged"):
        data.load(folder(path, tmp_path))


@pytest.mark.parametrize("name", ["../evil.png", "/train/cat/evil.png", "train/../../evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_lead_out_of_an_archive_are_refused(
    tmp_path: Path, kind: str, name: str
) -> None:
    path = pack(kind, tmp_path, eight() | {name: png(9)})
    with refused(name, "leads out of the archive"):
        data.load(folder(path, tmp_path))
    assert not list(tmp_path.parent.glob("evil.png"))


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar", eight())
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("train/cat/9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with refused("train/cat/9.png", "link"):
        data.load(folder(path, tmp_path))


def test_a_progress_bar_is_drawn_only_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_files(eight(), tmp_path)
    printed = capsys.readouterr()
    assert (printed.out, re.sub(r"\s", "", printed.err)) == ("", "")


@pytest.mark.slow
def test_the_jpeg_copy_of_cifar10_is_read_whole(tmp_path: Path) -> None:
    root = os.environ.get("RESEXP_CIFAR10_JPEG")
    if not root:
        pytest.skip("RESEXP_CIFAR10_JPEG does not name an archive of CIFAR-10 as JPEG files")
    images = data.load(replace(folder(Path(root), tmp_path), split=Split("45k")))
    assert images.train_images.shape == (45_000, 32, 32, 3)
    assert images.test_images.shape == (10_000, 32, 32, 3)
    assert images.classes[0] == "airplane" and images.classes[9] == "truck"
    assert images.chance_error == 90.0
