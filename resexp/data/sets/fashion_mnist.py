"""Fashion-MNIST: 60,000 training and 10,000 test images of 28x28, greyscale.

H. Xiao, K. Rasul and R. Vollgraf, 2017, arXiv 1708.07747; MIT licence. Read from its four IDX
files, gzipped or not. Debian's package dataset-fashion-mnist installs them.
"""

from __future__ import annotations

import gzip
import math
import sys
import zlib
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resexp.data import Images, alone, from_arrays, root_of
from resexp.files import MOST_BYTES, open_regular
from resexp.settings import Data, UsageError

SHAPE = 1, (28, 28), 10  # channels, height and width, classes
DOWNLOAD = 60_000, 10_000, 31  # training and test images, MB of the files

#: The files, and how many axes each array has.
FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
UBYTE = 0x08  # the only type of value that these files hold


def check_present(settings: Data) -> None:
    """Raise UsageError if a file is missing and download is off."""
    missing = _missing(settings)
    if missing and not settings.download:
        raise _absent(settings, missing, "data.download is false")


def load(settings: Data) -> Images:
    """Training and test images in file order. Raises UsageError if absent or damaged."""
    check_present(settings)
    with alone(root_of(settings)):
        if _missing(settings):
            _download(settings)
        paths = [(_find(settings, name), axes) for name, axes in FILES.items()]
        arrays = [read_idx(path, axes) for path, axes in paths if path]
    return from_arrays(settings.name, (arrays[0], arrays[1]), (arrays[2], arrays[3]), CLASSES)


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """The array in an IDX file (http://yann.lecun.com/exdb/mnist), which may be gzipped.

    Two zero bytes, the type of value, the number of axes, each axis as a big-endian 32-bit number,
    then the values. Raises UsageError, naming the file, if it holds anything else.
    """
    try:
        with open_regular(path) as file:
            zipped = path.suffix == ".gz"
            content = (gzip.GzipFile(fileobj=file) if zipped else file).read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}. Fetch it again.") from error
    if content[:4] != bytes([0, 0, UBYTE, axes]):
        raise UsageError(f"{path} is no IDX file of bytes with {axes} axes. Fetch it again.")
    start = 4 + 4 * axes
    shape = np.frombuffer(content[4:start].ljust(4 * axes, b"\0"), ">u4").tolist()
    if len(content) != start + math.prod(shape):
        raise UsageError(
            f"{path} is truncated or too long: {len(content):,} bytes for an array of "
            f"{'x'.join(map(str, shape))}. Fetch it again."
        )
    if 0 in shape:
        raise UsageError(f"{path} is empty: an array of {'x'.join(map(str, shape))}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _find(settings: Data, name: str) -> Path | None:
    """The file of this name: in data.root itself, or where torchvision puts it."""
    places = (root_of(settings), root_of(settings) / "FashionMNIST" / "raw")
    paths = [place / (name + suffix) for place in places for suffix in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def _missing(settings: Data) -> str | None:
    return next((name for name in FILES if _find(settings, name) is None), None)


def _download(settings: Data) -> None:
    """Let torchvision fetch the files into data.root/FashionMNIST/raw."""
    from torchvision.datasets import FashionMNIST

    try:
        with redirect_stdout(sys.stderr):
            FashionMNIST(root_of(settings), download=True)
    except (OSError, RuntimeError) as error:
        missing = _missing(settings) or "a file"
        raise _absent(settings, missing, "could not be downloaded (no network)") from error


def _absent(settings: Data, missing: str, why: str) -> UsageError:
    return UsageError(
        f"Fashion-MNIST is not in {settings.root.rstrip('/')}/ (no {missing}[.gz]) and {why}. Put "
        "its four IDX files there, or point data.root at a copy (Debian and Ubuntu: apt install "
        "dataset-fashion-mnist, then data.root=/usr/share/datasets/fashion-mnist); or train on "
        "what is here: experiment=digits."
    )
