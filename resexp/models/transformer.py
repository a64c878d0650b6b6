"""A Transformer encoder of images: patches, blocks of attention and feed-forward, classifier.

An image is cut into square patches, each mapped to a token (Dosovitskiy et al. 2021, section 3.1);
a learned vector a place is added; the tokens of the last block are averaged for the classifier, as
the CIFAR family averages pixels (no class token). Depth is the number of blocks, as Transformers
are counted. A block is two sublayers, and each is a branch joined to its input by the merge rule:

    pre-LN   x + Attention(LN(x)),  x + FFN(LN(x)),  one LN more behind the last block
    post-LN  LN(x + Attention(x)),  LN(x + FFN(x))
    peri-LN  x + LN(Attention(LN(x))), x + LN(FFN(LN(x))), one LN more first, and one last
    scaled   x + Attention(LN(x) / sqrt(l)), x + FFN(LN(x) / sqrt(l)) in block l; else as pre-LN
    ReZero   x + a Attention(x),    x + a FFN(x),    one a for both

Vaswani et al. 2017 (post-LN), Xiong et al. 2020 (pre-LN), Kim et al. 2025 (peri-LN, arXiv
2502.02732), Sun et al. 2025 (scaled, 2502.05795), Bachlechner et al. 2020 (ReZero). The plain twin
is the same without the additions: FFN(LN(Attention(LN(x)))) for pre-LN. *Shaped* attention is for
that twin: it starts as the identity, so that tokens stay apart without a skip.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import torch
from torch import Tensor, nn

from resexp.models.blocks import Block, trained
from resexp.models.layers import Table, norm_of
from resexp.models.merges import Place, Rule, merge
from resexp.models.options import read
from resexp.settings import Merge, Range, Settings, UsageError

MERGES = (
    *(Merge.plain, Merge.residual, "weighted", Merge.scaled),
    *("layer_scale", "depth_scaled", "decayed", "streams"),
)
READS = ("scalar_lr",)

FEEDFORWARD = 4  # hidden values of the feed-forward sublayer, in embedding dimensions
#: Standard deviation of the places' vectors at the start, near that of the sinusoids of Vaswani et
#: al. 2017 (0.71). With the 0.02 of Dosovitskiy et al. 2021, a few hundred steps hardly tell places
#: apart.
POSITION_STD = 0.5


class LayerNorm(StrEnum):
    """Where layer normalisation stands."""

    before = "before"  # each sublayer, on its branch: pre-LN
    after = "after"  # each addition, on the path of the input too: post-LN
    around = "around"  # each sublayer and what it gives: peri-LN
    scaled = "scaled"  # each sublayer, and divided by the root of the block's number
    none = "none"


@dataclass(frozen=True, slots=True)
class Options:
    """The embedding dimension is ``heads`` times the setting ``width``: 4 x 16 = 64."""

    patch: Annotated[int, Range(1, 1024), "pixels a side"]
    heads: Annotated[int, Range(1, 1024), "of attention, each of width values"]
    layer_norm: LayerNorm
    shaped: Annotated[bool, "whether attention starts as the identity"] = False


def check(settings: Settings, size: tuple[int, int] | None) -> None:
    """Raise UsageError if patches do not cover the images."""
    patch = read(Options, settings.arch.options).patch
    if size and any(side % patch for side in size):
        fits = [one for one in range(1, min(size) + 1) if math.gcd(*size) % one == 0]
        raise UsageError(
            f"arch.options.patch={patch} does not divide images of {size[0]}x{size[1]}. "
            f"Choose from {', '.join(map(str, fits))}."
        )


class Transformer(nn.Module):
    """[N, C, H, W] images of one size -> [N, classes] logits; T tokens of d values between."""

    def __init__(
        self, settings: Settings, channels: int, classes: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        options, depth = read(Options, settings.arch.options), settings.depth
        dimension = options.heads * settings.width
        tokens = math.prod(side // options.patch for side in size)
        self.patch = options.patch
        self.embedding = nn.Linear(channels * options.patch**2, dimension)
        self.embedding.gain = math.sqrt(3)  # type: ignore[assignment]  # variance 1 / fan in
        self.positions = Table(tokens, dimension, POSITION_STD)
        places = [Place(number, 2 * depth) for number in range(1, 2 * depth + 1)]
        blocks = [
            TransformerBlock(settings, options, dimension, pair)
            for pair in zip(places[::2], places[1::2], strict=True)
        ]
        self.blocks = nn.Sequential(*blocks)

        def norm(there: bool) -> nn.Module:
            return nn.LayerNorm(dimension, settings.bn_eps) if there else nn.Identity()

        self.opening = norm(options.layer_norm is LayerNorm.around)
        self.end = norm(options.layer_norm not in (LayerNorm.after, LayerNorm.none))
        self.classifier = nn.Linear(dimension, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        tokens = self.opening(self.positions(self.embedding(patches)))
        return self.classifier(self.end(self.blocks(tokens)).mean(dim=1))


network = Transformer


class TransformerBlock(nn.Module):
    """[N, T, d] tokens -> the same: attention, then feed-forward, joined by one merge rule."""

    def __init__(
        self, settings: Settings, options: Options, dimension: int, places: tuple[Place, Place]
    ) -> None:
        super().__init__()
        arch, norm = trained(settings), norm_of(settings)
        rules = [merge(arch, dimension, dimension, 1, norm, place) for place in places]
        if arch.merge == Merge.scaled:
            rules[1] = rules[0]  # ReZero learns one number for both
        attention = {
            "inputs": linear(dimension, dimension, maps=3),  # queries, keys and values
            "products": Attention(options.heads, options.shaped),
            "output": linear(dimension, dimension),
        }
        if options.shaped:
            for layer in attention["inputs"], attention["output"]:
                layer.orthogonal = True  # type: ignore[assignment]
            silent = torch.ones(3 * dimension, 1)
            silent[:dimension] = 0  # no queries: every token attends to all alike
            attention["inputs"].gain = silent  # type: ignore[assignment]
            attention["output"].gain = 1.0  # type: ignore[assignment]
        feedforward = {
            "first": linear(dimension, FEEDFORWARD * dimension),
            "relu": nn.ReLU(),
            "second": linear(FEEDFORWARD * dimension, dimension),
        }
        norms = [nn.LayerNorm(dimension, settings.bn_eps) for _ in places]
        self.attention = sublayer(attention, rules[0], options.layer_norm, norms[0])
        self.feedforward = sublayer(feedforward, rules[1], options.layer_norm, norms[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.feedforward(self.attention(x))


def linear(into: int, out: int, maps: int = 1) -> nn.Linear:
    """``maps`` maps of ``into`` to ``out`` values side by side, as one layer with biases.

    Weights start uniform with variance 2 / (into + out): Glorot and Bengio 2010, as Vaswani et al.
    2017 and Xiong et al. 2020 start theirs. ``initialise`` multiplies 1/sqrt(into) by the gain.
    """
    layer = nn.Linear(into, maps * out)
    layer.gain = math.sqrt(6 * into / (into + out))  # type: ignore[assignment]
    return layer


def sublayer(layers: dict[str, nn.Module], rule: Rule, place: LayerNorm, norm: nn.Module) -> Block:
    """A branch of ``layers``, the rule that joins it to its input, and ``norm`` in its place."""
    if place is LayerNorm.scaled:
        block = (rule.place.number + 1) // 2
        layers = {"scale": Divide(block**0.5), **layers}
    if place not in (LayerNorm.after, LayerNorm.none):
        layers = {"norm": norm, **layers}
    if place is LayerNorm.around:
        layers["norm_after"] = copy.deepcopy(norm)
    after = OrderedDict(norm=norm) if place is LayerNorm.after else OrderedDict()
    return Block(nn.Sequential(), nn.Sequential(OrderedDict(layers)), rule, nn.Sequential(after))


class Divide(nn.Module):
    """x / ``by``."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x / self.by


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(e)) V in each head of e = d / heads values, without a mask.

    [N, T, 3 d], the queries Q, keys K and values V of T tokens -> [N, T, d]: Vaswani et al. 2017,
    equation 1. ``shaped``: (I + softmax(Q K^T / sqrt(e)) - 1/T) V, which is V where Q is 0: Noci
    et al. 2023, section 4.
    """

    def __init__(self, heads: int, shaped: bool = False) -> None:
        super().__init__()
        self.heads, self.shaped = heads, shaped

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, _ = x.shape
        split = x.view(images, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(*split)
        if self.shaped:
            values = split[2]
            y = values + y - values.mean(dim=2, keepdim=True)
        return y.transpose(1, 2).flatten(2)

    def multiply_adds(self, output: Tensor) -> int:
        """Of one image: each of T tokens with each, d values for Q K^T and d for the mean of V."""
        _, tokens, dimension = output.shape
        return 2 * tokens * tokens * dimension
