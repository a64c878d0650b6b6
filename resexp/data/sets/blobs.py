"""Grey images of smooth blobs and their masks, drawn on the fly: segmentation without a download.

Blobs overlap, and where two meet a thin gap belongs to the background: an answer is good only if
its boundaries are. Light is uneven and pixels are noisy, so that no threshold finds the blobs.
Every image is a function of its number; only sums, products, quotients and square roots are taken,
which are exact to the last bit everywhere, so that the set is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resexp.data import Images, from_arrays
from resexp.randomness import words
from resexp.settings import Data

TASK = "segmentation"

TRAIN, TEST = 400, 200
SIZE = 32  # pixels a side, if data.size does not say

PURPOSE, SEED = b"blobs", 2015

# Lengths are shares of the side.
BLOBS = 5, 11  # an image, at least and at most
LOBES = 3  # circles that melt into a blob
RADIUS = 0.08, 0.14  # of a lobe
SPREAD = 0.08  # from a blob's middle to a lobe's, at most, along and across
MELT = 0.06  # distance at which lobes begin to melt
GAP = 1.6 / 32  # between blobs that meet
BLUR = 1.6 / 32  # over which brightness falls at a boundary
# Brightness is a share of white.
BACKGROUND = 0.3
CONTRAST = 0.18, 0.4  # of a blob above it
LIGHT = 0.2  # the most that each term of the uneven light adds or takes
NOISE = 0.07  # standard deviation

VALUES = 1 + BLOBS[1] * (3 + 3 * LOBES) + 5  # random numbers that a scene takes


def check_present(settings: Data) -> None:
    """Nothing has to be there."""


def load(settings: Data) -> Images:
    """The set at ``data.size``: classes background and blob."""
    from resexp.data.stream import check_room

    size = settings.size or SIZE
    check_room(settings, TRAIN + TEST, 8 * size**2)  # pixels, and masks of two bytes, twice
    drawn = [draw(number, size) for number in range(TRAIN + TEST)]
    pixels, masks = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    return from_arrays(
        settings.name,
        (pixels[:TRAIN], masks[:TRAIN]),
        (pixels[TRAIN:], masks[TRAIN:]),
        ["background", "blob"],
    )


def draw(number: int, size: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Image ``number`` and its mask: uint8 [size, size] and bool [size, size]."""
    random = words(SEED, PURPOSE, number, VALUES + size**2)
    uniform = iter(((random[:VALUES] >> np.uint64(11)) * 2.0**-53).tolist())

    def between(least: float, most: float) -> float:
        return least + (most - least) * float(next(uniform))

    count = int(between(BLOBS[0], BLOBS[1] + 1))
    circles, contrast = [], []
    for _ in range(count):
        middle = between(0, 1), between(0, 1)
        circles.append([circle(middle, between) for _ in range(LOBES)])
        contrast.append(between(*CONTRAST))
    outside = distances(np.array(circles), size)
    nearest = np.argmin(outside, axis=0)
    edge = boundary(outside)
    x = (np.arange(size) + 0.5) / size
    y = x[:, None]
    light = sum(
        between(-LIGHT, LIGHT) * term
        for term in (y - 0.5, x - 0.5, y * y - 0.3, x * x - 0.3, x * y)
    )
    share = np.clip(0.5 - edge / BLUR, 0, 1)
    bright = BACKGROUND + light + np.array(contrast)[nearest] * share + noise(random[VALUES:], size)
    return np.floor(255 * np.clip(bright, 0, 1) + 0.5).astype(np.uint8), edge < 0


def circle(
    middle: tuple[float, float], between: Callable[[float, float], float]
) -> tuple[float, float, float]:
    """Middle (down, across) and radius of a lobe of the blob at ``middle``."""
    down, across = between(-SPREAD, SPREAD), between(-SPREAD, SPREAD)
    return middle[0] + down, middle[1] + across, between(*RADIUS)


def distances(circles: NDArray[Any], size: int) -> NDArray[Any]:
    """Distance of every pixel from blobs, negative inside: [blobs, lobes, 3] -> [blobs, H, W].

    A blob is the union of its circles, its inner corners rounded by a polynomial smooth minimum.
    """
    ahead = (np.arange(size) + 0.5) / size
    down = ahead[:, None] - circles[:, :, 0, None, None]
    across = ahead - circles[:, :, 1, None, None]
    each = np.sqrt(down * down + across * across) - circles[:, :, 2, None, None]
    whole: NDArray[Any] = each[:, 0]
    for lobe in range(1, LOBES):
        near = np.maximum(MELT - np.abs(whole - each[:, lobe]), 0)
        whole = np.minimum(whole, each[:, lobe]) - near * near / (4 * MELT)
    return whole


def boundary(outside: NDArray[Any]) -> NDArray[Any]:
    """Distance from the boundary of the mask, negative in a blob: [blobs, H, W] -> [H, W].

    It is that of the nearest blob, or runs beside the middle of the gap to the second nearest.
    """
    first, second = np.partition(outside, 1, axis=0)[:2]
    edge: NDArray[Any] = np.maximum(first, (GAP - (second - first)) / 2)
    return edge


def noise(random: NDArray[np.uint64], size: int) -> NDArray[Any]:
    """Nearly normal: the four 16-bit parts of a word added, [size, size]."""
    total = sum(((random >> np.uint64(shift)) & np.uint64(0xFFFF)) for shift in (0, 16, 32, 48))
    scaled = np.asarray(total, np.float64) / 65_535 - 2  # standard deviation 1 / sqrt(3)
    return (scaled * (NOISE * 3**0.5)).reshape(size, size)
