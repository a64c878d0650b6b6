"""Image sets as tensors: where they come from, and what makes one fit to train on.

Each loader is a module of ``resexp.data.sets``, and nothing lists them. Nothing here or there
imports torch before a set is loaded, so that looking whether the files are there is cheap.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, cast

from filelock import FileLock

from resexp.settings import Data, Split, UsageError
from resexp.settings.choices import nearest

if TYPE_CHECKING:
    import numpy as np
    import torch

    from resexp.data.stream import Streamed

SMALLEST = 8  # pixels a side: three stages of the family halve it twice
UNLABELLED = -1  # in a mask: a pixel that no loss, error or overlap counts
SAMPLE = 64  # images of a streamed set that are looked at before training


@dataclass(slots=True, weakref_slot=True)
class Images:
    """One set of labelled images, training and test, on one device.

    The labels are a class for each image, or masks: a class, or UNLABELLED, for each pixel.
    """

    name: str
    train_images: torch.Tensor | Streamed  # uint8 [N, H, W, C]
    train_labels: torch.Tensor  # int64 [N], or masks int16 [N, H, W]
    test_images: torch.Tensor | Streamed  # uint8 [M, H, W, C]
    test_labels: torch.Tensor  # int64 [M], or int16 [M, H, W]
    classes: list[str]

    @property
    def channels(self) -> int:
        return int(self.train_images.shape[3])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.train_images.shape[1]), int(self.train_images.shape[2])

    @property
    def task(self) -> str:
        """What these labels teach: classification or segmentation."""
        return "classification" if self.train_labels.dim() == 1 else "segmentation"

    @property
    def chance_error(self) -> float:
        """Percent error, on the training labels, of always answering the commonest class."""
        counts = class_counts(self.train_labels, len(self.classes))
        return 100 * (1 - max(counts) / sum(counts))

    @property
    def streamed_from(self) -> str | None:
        """``files`` or ``memory`` if the images are fetched as they are needed."""
        from resexp.data.stream import Streamed

        images = self.train_images
        return images.feed.source.name if isinstance(images, Streamed) else None

    def to(self, device: torch.device | str) -> Images:
        """The set on a device; its images are streamed to a GPU that has no room for them."""
        from resexp.data.stream import placed

        train_images, test_images = placed([self.train_images, self.test_images], device)
        return replace(
            self,
            train_images=train_images,
            train_labels=self.train_labels.to(device),
            test_images=test_images,
            test_labels=self.test_labels.to(device),
        )


class Loader(Protocol):
    """What a module of ``resexp.data.sets`` offers; its name is the loader's.

    Beside these, where they apply: ``TASK``, if it is not classification; ``SHAPE`` (channels,
    height and width, classes), if no file is needed to know; ``DOWNLOAD`` (training and test
    images, megabytes), if it can be fetched; ``describe``, which tells ``resexp doctor`` what lies
    in data.root, if the images are whatever lies there.
    """

    def check_present(self, settings: Data) -> None: ...

    def load(self, settings: Data) -> Images: ...


def loaders() -> list[str]:
    """The names of all loaders."""
    from resexp.data import sets

    return sorted(module.name for module in iter_modules(sets.__path__))


@cache
def loader(name: str) -> Loader:
    """The module of this name. Raises UsageError, with the nearest name, if there is none."""
    known = loaders()
    if name not in known:
        advice = nearest(name, known) or f" Choose from {', '.join(known)}."
        raise UsageError(f"data.loader={name} is unknown.{advice}")
    return cast(Loader, import_module(f"resexp.data.sets.{name}"))


def check_present(settings: Data) -> None:
    """Raise UsageError if the files of ``data`` are absent and must not be downloaded.

    Looks at names only: nothing is decoded and torch is not imported. Files that are there may
    still turn out to be damaged, and a download may still fail, when the set is loaded.
    """
    loader(settings.loader).check_present(settings)


def load(settings: Data) -> Images:
    """The set that ``data`` names, checked and split, on the CPU.

    Raises UsageError if it is absent, damaged or unfit to train on.
    """
    images = loader(settings.loader).load(settings)
    check_images(images)
    return keep_45k(images) if settings.split is Split("45k") else images


def from_arrays(
    name: str,
    train: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    test: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    classes: list[str],
) -> Images:
    """Images from (images, labels) arrays; [N, H, W] becomes [N, H, W, 1]. Not checked.

    Labels of more than one dimension are masks.
    """
    import numpy as np
    import torch

    def tensors(
        images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        pixels = pixels.unsqueeze(-1) if pixels.dim() == 3 else pixels
        return pixels, torch.from_numpy(labels.astype(np.int64 if labels.ndim == 1 else np.int16))

    return Images(name, *tensors(*train), *tensors(*test), classes)


def root_of(settings: Data) -> Path:
    """The folder or archive that data.root names."""
    return Path(settings.root).expanduser()


def alone(root: Path) -> AbstractContextManager[object]:
    """Keep other processes from downloading or unpacking into a folder, which is made if need be.

    Where this process cannot write, no lock is needed to read: nobody is unpacking there.
    """
    with suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".resexp.runs.lock") if os.access(root, os.W_OK) else nullcontext()


def task(name: str) -> str:
    """What the sets of a loader teach: classification or segmentation."""
    return str(getattr(loader(name), "TASK", "classification"))


def class_counts(labels: torch.Tensor, classes: int) -> list[int]:
    """How many images, or labelled pixels of masks, are of each class."""
    flat = labels.flatten()
    counts: list[int] = flat[flat != UNLABELLED].bincount(minlength=classes).tolist()
    return counts


def check_images(images: Images) -> None:
    """Raise UsageError, naming the set and its fault, if nothing can be learnt from it."""
    fault = _shape_fault(images) or _label_fault(images) or _pixel_fault(images)
    if fault:
        raise UsageError(f"data.name={images.name} cannot be trained on: {fault}.")


def keep_45k(images: Images) -> Images:
    """The 45,000 training images of He et al. 2015, section 4.2; the test set stays as it is.

    The first nine tenths of each class in file order (4,500 of each class of CIFAR-10) train. The
    paper does not say which 5,000 it held out. They are left aside here: nothing is tuned on them.

    Raises UsageError for sets of any other size than 50,000.
    """
    import torch

    from resexp.data.stream import keep

    labels = images.train_labels
    if images.task == "segmentation":
        raise UsageError(f"data.split=45k is for CIFAR-10; {images.name} has masks. Leave it away.")
    rows = [(labels == label).nonzero().flatten() for label in range(len(images.classes))]
    kept = torch.cat([row[: len(row) * 9 // 10] for row in rows]).sort().values
    if len(labels) != 50_000 or len(kept) != 45_000:
        raise UsageError(
            f"data.split=45k needs 50,000 training images in classes of whole tens, as CIFAR-10 "
            f"has; {images.name} has {len(labels):,}. Use data.split=full."
        )
    return replace(images, train_images=keep(images.train_images, kept), train_labels=labels[kept])


def _shape_fault(images: Images) -> str | None:
    import torch

    for split, pixels, labels in _splits(images):
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            return f"its {split} images are no uint8 array of [N, H, W, C]"
        if images.task == "segmentation":
            if labels.dtype != torch.int16 or labels.shape != pixels.shape[:3]:
                return f"its {split} masks are no int16 array of its {split} images' [N, H, W]"
        elif labels.dtype != torch.int64 or labels.shape != pixels.shape[:1]:
            return f"it has {len(pixels):,} {split} images but {len(labels):,} {split} labels"
        if len(pixels) == 0:
            return f"it has no {split} images"
    if images.train_images.shape[1:] != images.test_images.shape[1:]:
        return "its training and test images differ in size"
    if min(images.size) < SMALLEST:
        height, width = images.size
        return f"its images are {height}x{width} pixels, and {SMALLEST}x{SMALLEST} are the least"
    if images.channels not in (1, 3):
        return f"its images have {images.channels} channels, and only 1 or 3 are known"
    return None


def _label_fault(images: Images) -> str | None:
    classes = len(images.classes)
    if classes < 2:
        return "it has fewer than two classes"
    masks = images.task == "segmentation"
    for split, _, labels in _splits(images):
        least, most = int(labels.min()), int(labels.max())
        if least < (UNLABELLED if masks else 0) or most >= classes:
            return f"its {split} labels run from {least} to {most}, but it has {classes} classes"
        if masks and (blank := (labels == UNLABELLED).all(2).all(1)).any():
            return f"mask {int(blank.int().argmax()):,} of its {split} images labels no pixel"
    counts = class_counts(images.train_labels, classes)
    if 0 in counts:
        what = "pixel" if masks else "image"
        return f"no training {what} is of class {images.classes[counts.index(0)]}"
    return None


def _pixel_fault(images: Images) -> str | None:
    import numpy as np

    from resexp.data.stream import Streamed

    if isinstance(images.train_images, Streamed):  # a look at some: not all are read for this
        step = -(-len(images.train_images) // SAMPLE)
        pixels = images.train_images.peek(range(0, len(images.train_images), step)).numpy()
    else:
        pixels = images.train_images.numpy()
    if pixels.min() == pixels.max():
        return "its training images are all of one constant colour"
    mean = float(pixels.mean(dtype=np.float64))
    if not 1 <= mean <= 254:
        return f"its training images are nearly all black or white (mean {mean:.2g} of 255)"
    return None


def _splits(images: Images) -> list[tuple[str, torch.Tensor | Streamed, torch.Tensor]]:
    return [
        ("training", images.train_images, images.train_labels),
        ("test", images.test_images, images.test_labels),
    ]
