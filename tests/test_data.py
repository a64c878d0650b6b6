"""resexp.data: every loader reads what is there and refuses, by name, what cannot be used."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from resexp import data
from resexp.data import sets
from resexp.data.sets import cifar10, digits, fashion_mnist
from resexp.data.sets.masks import FOLDERS
from resexp.settings import Data, Split, UsageError, choices


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


NOISE = torch.randint(0, 255, (4, 8, 8, 2), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train_images": torch.ones(4, 8, 8, 1)}, "training images are no uint8"),
        ({"train_labels": torch.tensor([0, 1, 0])}, "4 training images but 3 training labels"),
        ({"test_images": NOISE[:0, ..., :1], "test_labels": torch.arange(0)}, "no test images"),
        ({"test_images": torch.ones(2, 8, 9, 1, dtype=torch.uint8)}, "differ in size"),
        ({"train_labels": torch.tensor([0, 1, 0, 2])}, "training labels run from 0 to 2"),
        ({"test_labels": torch.tensor([0, -1])}, "test labels run from -1 to 0"),
        ({"classes": ["a", "b", "cat"]}, "no training image is of class cat"),
        ({"classes": ["a"]}, "fewer than two classes"),
        ({"train_images": torch.full((4, 8, 8, 1), 9, dtype=torch.uint8)}, "one constant colour"),
        ({"train_images": (torch.arange(256) == 0).to(torch.uint8).view(4, 8, 8, 1)}, "all black"),
        ({"train_images": NOISE[:, :7, :, :1], "test_images": NOISE[:2, :7, :, :1]}, "7x8 pixels"),
        ({"train_images": NOISE, "test_images": NOISE[:2]}, "2 channels"),
    ],
)
def test_a_set_that_nothing_can_be_learnt_from_is_refused(
    changes: dict[str, Any], fault: str
) -> None:
    with refused("tiny", fault):
        data.check_images(a_set(**changes))


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
    with refused("data.loader=zzz", *data.loaders()):
        data.load(Data(loader="zzz"))


def test_a_loader_is_found_by_its_module_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stripes.py").write_text(
        "TASK = 'segmentation'\ndef check_present(settings): raise LookupError\n"
    )
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
    assert "stripes" in data.loaders()
    with pytest.raises(LookupError):
        data.check_present(Data(loader="stripes"))
    assert data.task("stripes") == "segmentation" and data.task("digits") == "classification"


@pytest.mark.parametrize("loader", data.loaders())
def test_every_loader_keeps_the_protocol_and_has_a_config(loader: str) -> None:
    module = import_module(f"resexp.data.sets.{loader}")
    assert callable(module.check_present) and callable(module.load)
    assert loader in choices.options("data")


@pytest.mark.process
def test_looking_for_files_does_not_import_torch(tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    code = (
        "import sys; from contextlib import suppress\n"
        "from resexp import data; from resexp.settings import Data, UsageError\n"
        "for loader in data.loaders():\n"
        "    with suppress(UsageError): data.check_present(Data(loader=loader, root=sys.argv[1]))\n"
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
    levels = [round(value * 255 / 16) for value in range(17)]
    assert np.unique(images.train_images).tolist() == levels
    assert 70 < images.train_images.float().mean() < 85
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


def test_a_gzip_bomb_is_read_no_further_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "MOST_BYTES", 2**16)
    write_fashion(tmp_path, ".gz")
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(idx(np.zeros(2**22))))
    with refused(file.name, f"{2**16:,} bytes"):
        data.load(fashion(tmp_path))


def test_absent_fashion_mnist_names_the_missing_file(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with refused("no t10k-labels-idx1-ubyte[.gz]", "data.download is false", "experiment=digits"):
        data.check_present(fashion(tmp_path))


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "settings", "error", "said"),
    [
        ("CIFAR10", cifar, URLError("no route to host"), ABSENT),
        ("FashionMNIST", fashion, RuntimeError("Error:\nTried it all"), "dataset-fashion-mnist"),
    ],
)
def test_without_a_network_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, settings: Any, error: Any, said: str
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise error

    torchvision = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(getattr(torchvision, kind), "download", no_network)
    with refused(f"is not in {tmp_path}/", "could not be downloaded (no network)", said):
        data.load(settings(tmp_path, download=True))
