"""Make resexp/data/digits.npz, the image set that comes with the package.

    python scripts/make_digits.py

Needs scikit-learn (``pip install resexp[dev]``), which carries the 1,797 test images of the UCI set
"Optical Recognition of Handwritten Digits". Takes a second, needs no network, and writes the same
arrays every time; it prints their SHA-256, which resexp/data/sets/digits.py compares.

The split: images in order of class, and of file within a class; every fifth is a test image. That
gives 1,437 and 360, and each class's share of the test set is right to within one image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from resexp.data.sets.digits import fingerprint

TARGET = Path(__file__).parents[1] / "resexp" / "data" / "digits.npz"


def main() -> None:
    source = load_digits()
    images = source.images.astype(np.uint8)  # [1797, 8, 8], 0 to 16
    labels = source.target.astype(np.uint8)
    test = np.zeros(len(labels), dtype=bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    np.savez_compressed(TARGET, images=images, labels=labels, test=test)
    print(f"{TARGET.name}  {TARGET.stat().st_size:,} bytes  {fingerprint(images, labels, test)}")


if __name__ == "__main__":
    main()
