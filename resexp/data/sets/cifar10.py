"""CIFAR-10 as its authors publish it: 50,000 training and 10,000 test images of 32x32, RGB.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The files are found,
downloaded and checked against their published MD5 sums by torchvision.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from urllib.error import URLError

import numpy as np

from resexp.data import Images, alone, from_arrays, root_of
from resexp.settings import Data, UsageError

SHAPE = 3, (32, 32), 10  # channels, height and width, classes
DOWNLOAD = 50_000, 10_000, 170  # training and test images, MB of the archive
FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"


def check_present(settings: Data) -> None:
    """Raise UsageError if neither folder nor archive is in data.root and download is off."""
    root = root_of(settings)
    if not (settings.download or (root / FOLDER).exists() or (root / ARCHIVE).exists()):
        raise _absent(settings, "data.download is false")


def load(settings: Data) -> Images:
    """Training and test images in file order. Raises UsageError if absent or damaged."""
    check_present(settings)
    # torchvision says "Files already downloaded" on stdout, which is for results.
    root = root_of(settings)
    with redirect_stdout(sys.stderr), alone(root):
        if not (root / FOLDER).is_dir():
            _unpack(settings)
        return _read(settings)


def _unpack(settings: Data) -> None:
    """Unpack the archive in data.root, downloading it first if need be."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    root = root_of(settings)
    archive = root / ARCHIVE
    here = archive.is_file()
    # torchvision would fetch a damaged archive anew: a file that somebody put there is theirs.
    if here and not check_integrity(archive, CIFAR10.tgz_md5):
        raise _damaged(settings, ARCHIVE)
    try:
        CIFAR10(root, download=True)
    except (OSError, RuntimeError) as error:
        if here:
            raise UsageError(f"{archive} could not be unpacked: {error}.") from error
        why = "no network" if type(error) is URLError else error
        raise _absent(settings, f"could not be downloaded ({why})") from error


def _read(settings: Data) -> Images:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(root_of(settings), train=split) for split in (True, False))
    except RuntimeError as error:  # a file is missing, or its MD5 sum is not the published one
        raise _damaged(settings, FOLDER) from error
    return from_arrays(
        settings.name,
        (train.data, np.array(train.targets)),
        (test.data, np.array(test.targets)),
        list(train.classes),
    )


def _absent(settings: Data, why: str) -> UsageError:
    return UsageError(
        f"CIFAR-10 is not in {settings.root.rstrip('/')}/ and {why}. Put {ARCHIVE} there, or point "
        "data.root at a copy; or train on what is here: experiment=digits."
    )


def _damaged(settings: Data, what: str) -> UsageError:
    return UsageError(
        f"{what} in {settings.root.rstrip('/')}/ is corrupt: its MD5 sums are not those published "
        "with CIFAR-10. Delete it and run again."
    )
