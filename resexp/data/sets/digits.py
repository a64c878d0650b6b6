"""Handwritten digits that come with the package: 1,437 training and 360 test images of 8x8 pixels.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0 (see DIGITS_LICENSE.txt). These
are its 1,797 test images; scripts/make_digits.py made the file and decided the split.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from resexp.data import Images, from_arrays
from resexp.settings import Data, UsageError

FILE = Path(__file__).parents[1] / "digits.npz"
SHA256 = "38803a9bdec19e88e4db8093f0e8f1f7faa5fb4ae3d52da5114014054dfd6684"


def check_present(settings: Data) -> None:
    """Raise UsageError if the package was installed without its digits."""
    if not FILE.is_file():
        raise UsageError("digits.npz is missing from resexp/data. Install resexp again.")


def load(settings: Data) -> Images:
    """The digits, 0 to 16 scaled to 0 to 255. Raises UsageError if the file is damaged."""
    check_present(settings)
    try:
        with FILE.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels, test = arrays["images"], arrays["labels"], arrays["test"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged() from error
    if fingerprint(images, labels, test) != SHA256:
        raise _damaged()
    pixels = np.rint(images * (255 / 16)).astype(np.uint8)
    return from_arrays(
        settings.name,
        (pixels[~test], labels[~test]),
        (pixels[test], labels[test]),
        [str(digit) for digit in range(10)],
    )


def fingerprint(*arrays: np.ndarray[Any, Any]) -> str:
    """SHA-256 of the arrays' bytes: unlike the file's, it is the same with every zlib."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _damaged() -> UsageError:
    return UsageError("digits.npz in resexp/data is damaged. Install resexp again.")
