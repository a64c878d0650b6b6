"""DenseNet of Huang et al. 2017: every layer reads all that came before it in its block.

A 3x3 stem, three dense blocks of n layers, and between them transitions: a 1x1 convolution that
keeps a share (``compression``) of the channels, and average pooling. A layer adds ``growth``
channels to what it reads: normalisation, ReLU, 3x3 convolution, depth 3n+4; or, as a bottleneck,
1x1 to four times the growth and then 3x3, depth 6n+4. ``width`` is not read: growth is the width.
Dropout, which the paper adds where nothing augments the images, is left out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from resexp.models.blocks import Block, Pooled
from resexp.models.layers import Convolution, Norm, norm_of, sequence
from resexp.models.merges import Concatenate, Drop
from resexp.models.options import read
from resexp.settings import Above, Merge, Normalisation, Range, Settings, Twin, Unit, UsageError

MERGES = (Merge.concatenate,)
READS = ("unit", "norm")

INNER = 4  # channels of a bottleneck, in those that it adds

#: Of a twin's widths, in thousandths: those tried, and how many around the first that is enough.
FACTORS, NEARBY = range(100, 1_000_000), 25


@dataclass(frozen=True, slots=True)
class Options:
    """``arch.options`` of this family."""

    growth: Annotated[int, Range(1, 1024), "channels that a layer adds: k"]
    compression: Annotated[float, Above(0, 1), "share a transition keeps: theta"]
    stem_channels: Annotated[int, Range(0, 4096), "0: twice the growth"]


def check(settings: Settings, size: tuple[int, int] | None) -> None:
    """Raise UsageError for a depth that the unit does not have. Images may have any size."""
    if settings.arch.unit is Unit.bottleneck and (settings.depth - 4) % 6:
        below = settings.depth - (settings.depth - 4) % 6
        raise UsageError(
            f"depth={settings.depth} is not 6n+4, as arch.unit=bottleneck needs. "
            f"Nearest: {below}, {below + 6}."
        )


def network(settings: Settings, channels: int, classes: int, size: tuple[int, int]) -> DenseNetwork:
    """The network of ``settings``, for images of any size from 8 by 8."""
    options = read(Options, settings.arch.options)
    bottleneck = settings.arch.unit is Unit.bottleneck
    width = options.stem_channels or 2 * options.growth
    stem, _ = sequence(["conv"], channels, [Convolution(width, 3)], norm_of(settings))
    layers = (settings.depth - 4) // (6 if bottleneck else 3)
    form = Form([[options.growth] * layers] * 3, options.compression, bottleneck)
    return DenseNetwork(settings, stem, width, form, classes)


@dataclass(frozen=True, slots=True)
class Form:
    """What stands between stem and classifier, and whether its layers are concatenated."""

    added: list[list[int]]  # channels that each layer of each block puts out
    compression: float
    bottleneck: bool
    merge: str = Merge.concatenate


class DenseNetwork(Pooled):
    """Stem, dense blocks, classifier; ``channels`` are those of the stem's output."""

    def __init__(
        self, settings: Settings, stem: nn.Module, channels: int, form: Form, classes: int
    ) -> None:
        super().__init__()
        norm, form = norm_of(settings), chosen(form, settings, channels, classes)
        self.stem = stem
        blocks: list[nn.Module] = []
        for number, row in enumerate(form.added):
            if number > 0:
                part, channels = transition(channels, form.compression, norm)
                blocks.append(part)
            for added in row:
                blocks.append(layer(channels, added, form, norm))
                channels = added + (channels if form.merge == Merge.concatenate else 0)
        self.blocks = nn.Sequential(*blocks)
        self.end, _ = sequence(["norm", "relu"], channels, [], norm)
        self.classifier = nn.Linear(channels, classes)


def layer(channels: int, added: int, form: Form, norm: Norm) -> Block:
    """A dense layer on ``channels`` inputs: [x, F(x)], or F(x) in the twin."""
    convs = [*([Convolution(INNER * added, 1)] if form.bottleneck else []), Convolution(added, 3)]
    branch, _ = sequence(["norm", "relu", "conv"] * len(convs), channels, convs, norm)
    rule = Concatenate(nn.Identity()) if form.merge == Merge.concatenate else Drop()
    return Block(nn.Sequential(), branch, rule, nn.Sequential())


def transition(channels: int, compression: float, norm: Norm) -> tuple[nn.Sequential, int]:
    """What halves an image's sides between two blocks, and its output channels."""
    conv = Convolution(kept(channels, compression), 1)
    layers, channels = sequence(["norm", "relu", "conv"], channels, [conv], norm)
    layers.add_module("pool", nn.AvgPool2d(2))
    return layers, channels


def kept(channels: int, compression: float) -> int:
    """Channels that a transition keeps; 0.29 of 100 is a little less than 29 to a computer."""
    return max(1, math.floor(channels * compression + 1e-9))


def chosen(form: Form, settings: Settings, channels: int, classes: int) -> Form:
    """``form``, or that of its twin: as many layers, each reading the one before it alone.

    A layer of the twin has the width that would give it the weights of the dense layer in its
    place, if the layer before it were as wide; times one number for all layers, to a thousandth,
    that brings all parameters together nearest to those of the dense network. Its transitions keep
    all channels: nothing has piled up that they could compress.
    """
    if settings.twin is Twin.none:
        return form
    norm, widths = settings.arch.norm, plain_widths(form, channels)
    aim = parameters(form, channels, classes, norm)

    def twin(thousandths: int) -> Form:
        return Form(rounded(widths, thousandths / 1000), 1.0, form.bottleneck, Merge.plain)

    def excess(thousandths: int) -> int:
        return parameters(twin(thousandths), channels, classes, norm) - aim

    # Rounding lets the count fall back by a channel here and there: look around the crossing.
    crossing = FACTORS[bisect_left(FACTORS, 0, key=excess)]
    around = range(crossing - NEARBY, crossing + NEARBY)
    return twin(min(around, key=lambda one: abs(excess(one))))


def plain_widths(form: Form, channels: int) -> list[list[float]]:
    """The widths w of the twin's layers: w to w has the weights of the dense layer.

    The twin's layers hold 9 w^2 weights, or with bottlenecks 4 w^2 + 36 w^2.
    """
    widths: list[list[float]] = []
    for row in form.added:
        widths.append([])
        for added in row:
            weights = INNER * added * (channels + 9 * added) / (10 * INNER)
            widths[-1].append(math.sqrt(weights if form.bottleneck else channels * added))
            channels += added
        channels = kept(channels, form.compression)
    return widths


def rounded(widths: list[list[float]], factor: float) -> list[list[int]]:
    """Whole multiples of ``widths``: their sums are rounded, so that equal ones do not all jump."""
    rows: list[list[int]] = []
    total = 0.0
    for row in widths:
        rows.append([])
        for width in row:
            before, total = total, total + factor * width
            rows[-1].append(max(1, round(total) - round(before)))
    return rows


def parameters(form: Form, channels: int, classes: int, norm: Normalisation) -> int:
    """Parameters of a network of ``form`` behind its stem of ``channels``."""
    each = 1 if norm is Normalisation.none else 2  # of a normalisation, a channel
    total = 0
    for number, row in enumerate(form.added):
        if number > 0:
            left = kept(channels, form.compression)
            total += (each + left) * channels
            channels = left
        for added in row:
            read = INNER * added if form.bottleneck else channels  # by the 3x3 convolution
            total += (each + read) * channels if form.bottleneck else 0
            total += (each + 9 * added) * read
            channels = added + (channels if form.merge == Merge.concatenate else 0)
    return total + each * channels + (channels + 1) * classes
