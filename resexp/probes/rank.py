"""Transformers without skips: do all tokens become the same? And where skips meet LayerNorm.

Networks of random weights at their start, float64: 32 tokens of width 64, 4 heads, ReLU layers of
width 256; normal weights of variance 1 / fan in (2 / fan in before a ReLU).

(i) Rank: rel(X) = |X - 1 m| / |X|, norms of Frobenius, m the mean token: 1 where tokens have
nothing in common, 0 where all are one. After each of 12 layers of: attention alone; pre-LN layers
without skips; with skips and pre-LN (x + F(LN(x))); with skips and post-LN (LN(x + F(x))).

(ii) Gradients: the norm of the loss gradient at the last layer's second ReLU matrix, post-LN over
pre-LN (which has a last LN, as in the papers), for 2 to 32 layers; the loss is the cross-entropy of
a random readout of the mean token, random labels of 10 classes, 8 sequences.

(iii) The same on digits: rel(X) after each of 12 blocks of this package's own transformers at their
start, with skips and without (twin=plain), pre-LN and post-LN, mean over images: 16 patches an
image as tokens, biases, Glorot's uniform weights; layer 0 is what enters the first block.

The rule, on means over seeds: both networks without skips below 1e-3 by layer 4, and skips with
pre-LN above 0.3 at layer 12: supported. Skips below 1e-3 too, or both without above 0.3: not
supported. Else inconclusive. Parts (ii) and (iii) are reported, not judged. All of it is of the
start: nothing is trained, so nothing has failed to, and what training makes of it is not said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, relu, softmax

from resexp.probes import Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import decades, mean, those
from resexp.settings import Arch, Merge, Settings, Twin

CLAIM = "At the start attention without skips makes tokens alike in a few layers; skips prevent it."
SOURCE = "Dong et al. 2021, theorem 2.2; Xiong et al. 2020, theorem 1 (gradients)"
TEXTBOOK = "Attention alone loses rank doubly exponentially with depth; skips prevent it."
NEEDS = Needs.nothing
USUAL: list[str] = []

IMAGES = 32  # digits
TOKENS, WIDTH, HEADS, HIDDEN, CLASSES, SEQUENCES = 32, 64, 4, 256, 10, 8
LAYERS = 12
GRADIENT_LAYERS = (2, 4, 8, 16, 32)
SEEDS = 5
#: What is measured: the name of its numbers, and after which layers they count.
NUMBERS = {
    "rank": ("rel(X), {}, {} layers", (1, 2, 3, 4, LAYERS)),
    "digits": ("rel(X), {}, {} layers, digits", (0, 1, 2, 3, 4, LAYERS)),
    "gradient": ("last gradient, {}, {} layers", GRADIENT_LAYERS),
}


@dataclass(frozen=True, slots=True)
class Arm:
    """What stands around attention and the ReLU layer."""

    relu_layer: bool
    skip: bool
    norm: str  # "none", "pre" or "post"


ARMS = {
    "attention alone": Arm(relu_layer=False, skip=False, norm="none"),
    "no skip pre-LN": Arm(relu_layer=True, skip=False, norm="pre"),
    "no skip post-LN": Arm(relu_layer=True, skip=False, norm="post"),
    "skip pre-LN": Arm(relu_layer=True, skip=True, norm="pre"),
    "skip post-LN": Arm(relu_layer=True, skip=True, norm="post"),
}
OWN = [name for name, arm in ARMS.items() if arm.norm != "none"]  # transformers of this package


@dataclass(slots=True)
class Weights:
    """Matrices of one layer, [in, out]."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    first: Tensor
    second: Tensor


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """All three parts for each seed; ``cases`` are not looked at."""
    for seed, name in tell([*product(range(SEEDS), ARMS)]):
        arm = ARMS[name]
        found = {("rank", layer): value for layer, value in enumerate(ranks(arm, seed, LAYERS))}
        if name in OWN:
            found |= {("digits", at): value for at, value in enumerate(own_ranks(name, seed))}
        if arm.skip:
            found |= {("gradient", n): last_gradient(arm, seed, n) for n in GRADIENT_LAYERS}
        for (measured, layers), value in found.items():
            place = {"measured": measured, "arm": name, "seed": seed}
            yield place | {"layers": layers, "value": value}


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int, gain: float = 1.0) -> Tensor:
    """A matrix [in, out] of variance gain / in."""
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return weight * math.sqrt(gain / shape[0])


def weights(generator: torch.Generator) -> Weights:
    """One layer's."""
    query, key, value, out = (normal(generator, WIDTH, WIDTH) for _ in range(4))
    first = normal(generator, WIDTH, HIDDEN, gain=2.0)
    return Weights(query, key, value, out, first, normal(generator, HIDDEN, WIDTH))


def tokens(generator: torch.Generator, sequences: int) -> Tensor:
    """[sequences, TOKENS, WIDTH], standard normal."""
    return torch.randn((sequences, TOKENS, WIDTH), generator=generator, dtype=torch.float64)


def ranks(arm: Arm, seed: int, layers: int) -> list[float]:
    """rel(X) before the first layer and after each."""
    generator = draws(seed)
    found = [tokens(generator, 1)]
    for _ in range(layers):
        found.append(layer(arm, found[-1], weights(generator)))
    return [apart(x) for x in found]


@torch.no_grad()
def own_ranks(name: str, seed: int) -> list[float]:
    """The same of this package's transformer on IMAGES digits, float64, mean over images."""
    twin = Twin.none if ARMS[name].skip else Twin.plain
    place = {"pre": "before", "post": "after"}[ARMS[name].norm]
    options = {"patch": 2, "heads": HEADS, "layer_norm": place}
    arch = Arch(family="transformer", depths="n", merge=Merge.residual, options=options)
    settings = Settings(arch=arch, twin=twin, depth=LAYERS, width=WIDTH // HEADS, seed=seed)
    data = nets.load(settings)
    network = nets.at_start(settings, data).double()
    found: list[float] = []

    def passed(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(sum(apart(image) for image in output) / len(output))

    layers = [network.get_submodule("positions"), *network.get_submodule("blocks").children()]
    with nets.hooked(layers, passed):
        network(nets.some_images(settings, data, IMAGES)[0].double())
    return found


def apart(x: Tensor) -> float:
    """rel(X): how much of the tokens [..., TOKENS, WIDTH] is not their mean; Frobenius."""
    return float((x - x.mean(-2, keepdim=True)).norm() / x.norm())


def last_gradient(arm: Arm, seed: int, layers: int) -> float:
    """|dL/dW| of the last layer's second ReLU matrix."""
    generator = draws(seed)
    x = tokens(generator, SEQUENCES)
    labels = torch.randint(CLASSES, (SEQUENCES,), generator=generator)
    readout = normal(generator, WIDTH, CLASSES)
    for _ in range(layers - 1):
        x = layer(arm, x, weights(generator))
    last = weights(generator)
    last.second.requires_grad_()
    x = layer(arm, x, last)
    x = normalised(x) if arm.norm == "pre" else x
    loss = cross_entropy(x.mean(1) @ readout, labels)
    (gradient,) = torch.autograd.grad(loss, last.second)
    return float(gradient.norm())


def layer(arm: Arm, x: Tensor, w: Weights) -> Tensor:
    """Attention and, where the arm has one, the ReLU layer; [n, TOKENS, WIDTH] -> the same."""
    before = normalised(x) if arm.norm == "pre" else x
    x = attention(before, w) + (x if arm.skip else 0)
    x = normalised(x) if arm.norm == "post" else x
    if not arm.relu_layer:
        return x
    before = normalised(x) if arm.norm == "pre" else x
    x = relu(before @ w.first) @ w.second + (x if arm.skip else 0)
    return normalised(x) if arm.norm == "post" else x


def attention(x: Tensor, w: Weights) -> Tensor:
    """Vaswani et al. 2017, section 3.2.2, without biases."""
    query, key, value = (
        (x @ matrix).view(*x.shape[:-1], HEADS, -1).transpose(-3, -2)
        for matrix in (w.query, w.key, w.value)
    )
    scores = query @ key.mT / math.sqrt(WIDTH // HEADS)
    mixed: Tensor = softmax(scores, dim=-1) @ value
    return mixed.transpose(-3, -2).flatten(-2) @ w.out


def normalised(x: Tensor) -> Tensor:
    """LayerNorm at its start."""
    return layer_norm(x, (WIDTH,))


def conclude(rows: pd.DataFrame) -> Finding:
    """Means over seeds, and the rule in the module's docstring."""
    found: dict[Any, pd.Series[float]] = {
        place: some.set_index("seed")["value"]
        for place, some in rows.groupby(["measured", "arm", "layers"])
    }
    means = {place: mean(some) for place, some in found.items()}
    numbers = {
        NUMBERS[measured][0].format(arm, at): value
        for (measured, arm, at), value in means.items()
        if at in NUMBERS[measured][1]
    }
    shallow, *_, deep = depths = sorted({at for what, _, at in means if what == "gradient"})
    ratios = {
        at: means["gradient", "skip post-LN", at] / means["gradient", "skip pre-LN", at]
        for at in depths
    }
    numbers |= {f"post-LN over pre-LN, {at} layers": ratio for at, ratio in ratios.items()}
    without = [means["rank", arm, 4] for arm in ("attention alone", "no skip pre-LN")]
    kept = means["rank", "skip pre-LN", LAYERS]
    alike = found["rank", "no skip pre-LN", 4]
    post, pre = (decades(found["gradient", arm, deep]) for arm in ("skip post-LN", "skip pre-LN"))
    return Finding(
        judge(without, kept),
        f"before training, after 4 layers without skips tokens differ by {without[0]:.0e} "
        f"(attention alone) and {without[1]:.0e} (with ReLU layers and LN), after {LAYERS} with "
        f"skips by {kept:.2f} (pre-LN) and {means['rank', 'skip post-LN', LAYERS]:.2f} (post-LN); "
        f"the last layer's gradient under post-LN is {ratios[shallow]:.1f} times pre-LN's at "
        f"{shallow} layers, {ratios[deep]:.1f} times at {deep}; on digits this package's "
        f"transformer has {means['digits', 'no skip pre-LN', 4]:.0e} (pre-LN) and "
        f"{means['digits', 'no skip post-LN', 4]:.0e} (post-LN) after 4 blocks without skips, "
        f"{means['digits', 'skip pre-LN', LAYERS]:.2f} and "
        f"{means['digits', 'skip post-LN', LAYERS]:.2f} after {LAYERS} with them.",
        numbers=numbers,
        conventions=[
            "tokens less their mean, over the tokens (Frobenius): 1 nothing in common, 0 all "
            f"alike; random weights, not those of Xiong et al.; seeds 0 to {rows['seed'].max()}"
        ],
        headlines=[
            Headline("tokens apart, 4 layers, no skips", alike, form=".0e", interval=False),
            Headline(f"{LAYERS} layers, skips, pre-LN", found["rank", "skip pre-LN", LAYERS]),
            Headline(
                f"gradient, {deep} layers, post-LN over pre-LN", post - pre, "times", ".1f", base=10
            ),
        ],
    )


def judge(without: Sequence[float], kept: float) -> Verdict:
    """The rule in the module's docstring."""
    return Verdict.of(max(without) < 1e-3 and kept > 0.3, kept < 1e-3 or min(without) > 0.3)


def draw(rows: pd.DataFrame) -> Figure:
    """rel(X) by layer, of random tokens and of digits; the last layer's gradient by layers."""
    from resexp.probes.drawing import DASHES, DOTS, PLAIN, RESIDUAL, finish, means, panels

    styles: dict[str, dict[str, Any]] = {
        "attention alone": {"color": PLAIN, "linestyle": DASHES},
        "no skip pre-LN": {"color": PLAIN},
        "no skip post-LN": {"color": PLAIN, "linestyle": DOTS},
        "skip pre-LN": {"color": RESIDUAL},
        "skip post-LN": {"color": RESIDUAL, "linestyle": DASHES},
    }
    figure, (left, middle, right) = panels(3, 74)
    middle.sharey(left)
    titles = ["random tokens", "patches of digits", "where LayerNorm stands"]
    for axis, measured, title in zip((left, middle, right), NUMBERS, titles, strict=True):
        some = those(rows, measured=measured)
        for arm, style in styles.items():
            lines = style | {"lw": 1.3, "marker": "o", "ms": 3}
            means(axis, those(some, arm=arm), "layers", "value", **lines)
        layers = sorted(set(some["layers"]))
        axis.set(title=title, xlabel="layer", xticks=layers[::2])
    for axis in (left, middle):
        axis.set(yscale="log", ylim=(1e-16, None))  # of float64
    left.set_ylabel("tokens less their mean, over tokens")
    right.set_xscale("log", base=2)
    right.set_xticks(layers, map(str, layers))
    right.set(xlabel="layers of the network", ylim=(0, None))
    right.set_ylabel("gradient of the last matrix, norm")
    seeds = rows["seed"].nunique()
    title = f"Transformers of random weights, at their start: means of {seeds} seeds"
    return finish(figure, title, styles)
