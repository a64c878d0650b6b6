"""Which images a step trains on, and how they are cropped and mirrored: functions of (seed, step).

No generator has a state here, so a resumed run needs none, and twins see the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resexp.data import UNLABELLED
from resexp.data.stream import Streamed, look_ahead
from resexp.randomness import words
from resexp.settings import Normalise, Settings, UsageError

#: Purposes of random words.
ORDER = b"order"
AUGMENT = b"augment"
SAMPLE = b"sample"

SUMMED = 2**30  # bytes of images at most that statistics are taken from
CHUNK = 2**24  # bytes of images at a time when summing over a set
TO_UNIT = 1 / 255  # multiplied with, for CUDA divides by a scalar that way and the CPU does not


@dataclass(slots=True)
class Plan:
    """What S consecutive steps train on; every tensor is [S, B]."""

    index: Tensor  # int64: row of the training set
    dy: Tensor  # int64, 0 to 2 x padding: top of the crop in the padded image
    dx: Tensor  # int64, 0 to 2 x padding: left of the crop in the padded image
    mirror: Tensor  # bool: left and right swapped, after the crop


@dataclass(slots=True)
class Statistics:
    """What is subtracted from images scaled to 0..1, and what they are then divided by."""

    mean: Tensor  # float32, or 64 as the reference, [H, W, C] or [C]
    std: Tensor  # of the same type, [C]

    def to(self, place: torch.device | str | Tensor) -> Statistics:
        """On a device; or on that of a tensor, and in its type, which images then have too."""
        return Statistics(self.mean.to(place), self.std.to(place))


@lru_cache(maxsize=64)
def plan(
    *,
    seed: int,
    start: int,
    stop: int,
    images: int,
    batch_size: int,
    crop_padding: int,
    flip: bool,
    augmentation: int | None = None,
) -> Plan:
    """The plan of steps ``start`` to ``stop - 1``, on the CPU; not to be written to.

    Runs in lockstep ask for the same one, so the last few are kept.

    Step t trains on positions t B to t B + B - 1 of the epochs' orders put end to end, so a batch
    may cross from one epoch into the next and no image is ever left out. Crop and mirror come from
    separate bits: switching one off leaves the other as it was. They are of the seed
    ``augmentation``, if that is given.
    """
    source = seed if augmentation is None else augmentation
    drawn = [words(source, AUGMENT, step, batch_size) for step in range(start, stop)]
    bits = np.array(drawn, np.uint64).reshape(-1, batch_size) >> np.uint64(1)  # 63 an image
    bits = bits.astype(np.int64)
    low, middle, top = bits & 0x7FFFFFFF, (bits >> 31) & 0x7FFFFFFF, (bits >> 62) & 1
    offsets = 2 * crop_padding + 1  # 31 uniform bits scaled to 0 .. offsets - 1
    return Plan(
        index=torch.from_numpy(_indices(seed, start, stop, images, batch_size)),
        dy=torch.from_numpy((low * offsets) >> 31),
        dx=torch.from_numpy((middle * offsets) >> 31),
        mirror=torch.from_numpy((top == 1) & flip),
    )


def planned(settings: Settings, start: int, stop: int, images: int) -> Plan:
    """The plan of a run's steps ``start`` to ``stop - 1``, of so many training images."""
    return plan(
        seed=settings.seed_of("batches"),
        start=start,
        stop=stop,
        images=images,
        batch_size=settings.batch_size,
        crop_padding=settings.crop_padding,
        flip=settings.flip,
        augmentation=settings.seed_of("augmentation"),
    )


def epoch_order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """The order in which an epoch goes through the training set: a permutation, int64 [N]."""
    return np.argsort(words(seed, ORDER, epoch, images), kind="stable")


def sample(images: Tensor | Streamed) -> Tensor:
    """The rows that statistics are taken from, int64, rising, on the CPU.

    All of them, up to ``SUMMED`` bytes of images; of a larger set as many as that, drawn alike by
    every run. That does not depend on whether the set is streamed.
    """
    count = len(images)
    some = max(1, SUMMED // math.prod(images.shape[1:]))
    if count <= some:
        return torch.arange(count)
    return torch.from_numpy(np.sort(np.argsort(words(0, SAMPLE, 0, count), kind="stable")[:some]))


def statistics(images: Tensor | Streamed, normalise: Normalise) -> Statistics:
    """Statistics of the ``sample`` of uint8 images [N, H, W, C], on their device.

    The sums are of integers, hence the same on any device and any number of threads.
    Raises UsageError if a channel is constant and should be divided by its deviation.
    """
    height, width, channels = images.shape[1:]
    one = torch.ones(channels)
    if normalise is Normalise.none:
        return Statistics(torch.zeros(channels), one).to(images.device)
    total = torch.zeros(height, width, channels, dtype=torch.int64, device=images.device)
    square = torch.zeros_like(total)
    rows = sample(images).to(images.device)
    chunks = torch.split(rows, max(1, CHUNK // total.numel()))
    look_ahead(images, chunks)
    for some in chunks:
        chunk = images[some]
        total += chunk.sum(0, dtype=torch.int64)
        if normalise is Normalise.channel_std:
            square += chunk.to(torch.int32).square().sum(0, dtype=torch.int64)
    if normalise is Normalise.pixel_mean:
        mean = total.cpu().double() / (255 * len(rows))
        return Statistics(mean.float(), one).to(images.device)
    pixels = len(rows) * height * width
    return _per_channel(total.sum((0, 1)), square.sum((0, 1)), pixels).to(images.device)


def prepare(images: Tensor, stats: Statistics) -> Tensor:
    """uint8 images [n, H, W, C] for evaluation: normalised float32 [n, C, H, W], channels last."""
    return _normalised(images, stats).permute(0, 3, 1, 2)


def batch(images: Tensor | Streamed, stats: Statistics, index: Tensor, *crop: Any) -> Tensor:
    """One step's images: float32 [B, C, H, W], channels last, on the device of all the arguments.

    ``images`` is the whole uint8 set [N, H, W, C]; ``index`` and the first three of ``crop`` are
    one row of a Plan, the last is the padding. Zeros are padded after the mean is subtracted, as in
    the authors' release (fb.resnet.torch), so that the border is an average pixel, not a black one.
    Nothing here waits for a GPU.
    """
    return _cropped(_normalised(images[index], stats), 0, *crop).permute(0, 3, 1, 2)


def answers(labels: Tensor, index: Tensor, *crop: Any) -> Tensor:
    """One step's labels: int64 [B], or [B, H, W] of masks cropped and mirrored as ``batch`` does.

    What a crop takes from beyond a mask is UNLABELLED.
    """
    chosen = labels[index]
    if chosen.dim() == 1:
        return chosen
    return _cropped(chosen.unsqueeze(3), UNLABELLED, *crop).squeeze(3).long()


def _cropped(pixels: Tensor, beyond: int, dy: Tensor, dx: Tensor, mirror: Tensor, p: int) -> Tensor:
    """[B, H, W, C] padded by p with ``beyond``, cropped to its size at (dy, dx), then mirrored."""
    if p == 0:
        return torch.where(mirror[:, None, None, None], pixels.flip(2), pixels)
    size, height, width, channels = pixels.shape
    pixels = F.pad(pixels, (0, 0, p, p, p, p), value=beyond)
    ahead = torch.arange(width, device=pixels.device)
    columns = dx[:, None] + torch.where(mirror[:, None], ahead.flip(0), ahead)  # [B, W]
    rows = dy[:, None] + torch.arange(height, device=pixels.device)  # [B, H]
    rows += torch.arange(size, device=pixels.device)[:, None] * (height + 2 * p)
    # Position of every pixel wanted among all pixels of the padded batch: [B, H, W].
    wanted = rows[:, :, None] * (width + 2 * p) + columns[:, None, :]
    chosen = pixels.reshape(-1, channels).index_select(0, wanted.flatten())
    return chosen.view(size, height, width, channels)


def _normalised(images: Tensor, stats: Statistics) -> Tensor:
    """Of the shape of ``images`` and the type of ``stats``."""
    return images.to(stats.mean.dtype).mul_(TO_UNIT).sub_(stats.mean).div_(stats.std)


def _per_channel(total: Tensor, square: Tensor, pixels: int) -> Statistics:
    """Mean and deviation of each channel, from exact sums; Python's integers do not overflow."""
    means, deviations = [], []
    for s, q in zip(total.tolist(), square.tolist(), strict=True):
        means.append(s / (255 * pixels))
        deviations.append(math.sqrt((pixels * q - s * s) / pixels**2) / 255)
    if 0 in deviations:
        raise UsageError(
            f"normalise=channel_std, but channel {deviations.index(0)} of the training images is "
            "constant. Use normalise=pixel_mean."
        )
    return Statistics(torch.tensor(means), torch.tensor(deviations))


def _indices(seed: int, start: int, stop: int, images: int, batch_size: int) -> NDArray[np.int64]:
    """Rows of the training set for steps start to stop - 1: int64 [S, B]."""
    first, last = start * batch_size, stop * batch_size
    epochs = range(first // images, -(-last // images))
    orders = [epoch_order(seed, epoch, images) for epoch in epochs]
    begin = first - epochs.start * images
    stream = np.concatenate([*orders, np.empty(0, np.int64)])[begin : begin + last - first]
    return stream.reshape(stop - start, batch_size)
