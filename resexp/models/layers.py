"""The layers of one block, in any order, spelt as words."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resexp.models.activations import RELU, Nonlinearity, nonlinearity_of
from resexp.settings import Arch, BottleneckStride, Normalisation, Order, Settings, Unit


@dataclass(frozen=True, slots=True)
class Layout:
    """One order of layers, in words that :func:`sequence` reads.

    ``unit`` is repeated once a convolution; its last ``moved`` words move behind the merge. A
    layout that starts with activations shares them with the shortcut where shapes change and in
    the first block (He et al. 2016, section 3.3), so the stem and the end of the network differ.
    """

    unit: str
    moved: int = 0
    stem: str = "norm relu"
    end: str = ""

    @property
    def words(self) -> list[str]:
        return self.unit.split()

    @property
    def preactivation(self) -> list[str]:
        """The words before the first convolution."""
        return self.words[: self.words.index("conv")]

    @property
    def after(self) -> list[str]:
        """The words behind the merge."""
        return self.words[len(self.words) - self.moved :]

    def branch(self, convolutions: int) -> list[str]:
        """The words of the branch, from its first convolution on."""
        words = self.words * convolutions
        return words[len(self.preactivation) : len(words) - self.moved]


#: He et al. 2016, figure 4 (a) to (e): all hold the same layers, only boundaries differ. In Fixup
#: (Zhang et al. 2019, figure 1) scalar biases take the place of normalisation; its multiplier
#: belongs to the merge, and its last bias, added to the branch there, is added to the sum here.
LAYOUTS = {
    Order.original: Layout("conv norm relu", moved=1),
    Order.bn_after_addition: Layout("conv norm relu", moved=2),
    Order.relu_before_addition: Layout("conv norm relu"),
    Order.relu_only_preactivation: Layout("relu conv norm", stem="norm", end="relu"),
    Order.full_preactivation: Layout("norm relu conv", stem="", end="norm relu"),
    Order.fixup: Layout("bias conv bias relu", moved=2, stem="bias relu", end="bias"),
}


@dataclass(frozen=True, slots=True)
class Convolution:
    """A bias-free convolution: output channels, side of its square kernel, stride."""

    channels: int
    kernel: int
    stride: int = 1
    gain: float = 1.0  # factor on the standard deviation of its initial weights
    padded: bool = True  # with zeros, so that stride 1 keeps the size
    dirac: tuple[float, float] | None = None  # a and b at the start of a DiracConvolution
    follows: Nonlinearity | None = None  # the activation before it, if it is of a branch


def convolutions(arch: Arch, width: int, stride: int) -> list[Convolution]:
    """The convolutions of one branch."""
    if arch.unit is Unit.basic:
        return [Convolution(width, 3, stride if i == 0 else 1) for i in range(arch.skip_span)]
    middle = arch.bottleneck_stride is BottleneckStride.middle
    first, second = (1, stride) if middle else (stride, 1)
    convs = [Convolution(width, 1, first), Convolution(width, 3, second)]
    return [*convs, Convolution(4 * width, 1)]


@dataclass(frozen=True, slots=True)
class Norm:
    """What stands for the word ``norm``: its kind, and batch normalisation's two constants.

    And what stands for the word ``relu`` beside it: the activation.
    """

    eps: float
    momentum: float
    kind: Normalisation = Normalisation.batch
    activation: Nonlinearity = RELU

    def __call__(self, channels: int) -> nn.Module:
        if self.kind is Normalisation.none:
            return Bias(channels)
        if self.kind is not Normalisation.batch:
            groups = math.gcd(channels, GROUPS) if self.kind is Normalisation.group else 1
            return nn.GroupNorm(groups, channels, eps=self.eps)
        norm = nn.BatchNorm2d(channels, eps=self.eps, momentum=self.momentum)
        # The counter is needed by cumulative averages only and costs a kernel a layer on a GPU.
        norm.num_batches_tracked = None
        return norm


def norm_of(settings: Settings) -> Norm:
    """The normalisation and the activation that ``settings`` ask for."""
    kind, activation = settings.arch.norm, nonlinearity_of(settings)
    return Norm(settings.bn_eps, settings.bn_momentum, kind, activation)


GROUPS = 8
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def sequence(
    words: list[str], channels: int, convs: list[Convolution], norm: Norm
) -> tuple[nn.Sequential, int]:
    """Build the layers that ``words`` name on ``channels`` input channels.

    Layers are numbered by kind (conv1, norm1, relu1, conv2, ...), so that the same layer has the
    same parameter name whatever the merge. Returns the layers and their output channels.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    counts: Counter[str] = Counter()
    for word in words:
        counts[word] += 1
        if word == "conv":
            conv = convs[counts["conv"] - 1]
            layer: nn.Module = convolution(channels, conv)
            channels = conv.channels
        elif word == "norm":
            layer = norm(channels)
        elif word == "bias":
            layer = Bias(1)
        else:
            # One that follows a normalisation may overwrite it: its gradient needs its input only,
            # and nothing else reads its output. One that opens a sequence reads a shared tensor.
            layer = norm.activation(inplace=bool(layers))
            channels *= norm.activation.factor
        layers[f"{word}{counts[word]}"] = layer
    return nn.Sequential(layers), channels


def convolution(channels: int, conv: Convolution) -> nn.Conv2d:
    """The layer on ``channels`` input channels."""
    kind = Pointwise if conv.kernel == 1 else nn.Conv2d
    padding = conv.kernel // 2 if conv.padded else 0
    shape = channels, conv.channels, conv.kernel, conv.stride, padding
    layer = DiracConvolution(*shape, conv) if conv.dirac else kind(*shape, bias=False)
    layer.gain, layer.follows = conv.gain, conv.follows  # type: ignore[assignment]  # for initialise
    return layer


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that takes its strided pixels first: the same numbers.

    oneDNN's weight gradient of a strided 1x1 convolution writes past its buffer when there are
    fewer input channels than its block (8 on AVX2, 16 on AVX-512; oneDNN issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.stride
        return nn.functional.conv2d(x[:, :, ::height, ::width], self.weight)


class DiracConvolution(nn.Conv2d):
    """A convolution by a I + b W / |W|, a, b and |W| for each filter: one of DiracNet.

    Zagoruyko and Komodakis 2017 (arXiv 1706.00388). I hands channel c mod C_in on to channel c: of
    every second pixel where the layer strides, where the paper has max pooling. Behind CReLU it
    undoes that.
    """

    identity: Tensor

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int, padding: int, conv: Convolution
    ) -> None:
        super().__init__(channels, out, kernel, stride, padding, bias=False)
        assert conv.dirac and conv.follows
        self.a, self.b = (nn.Parameter(torch.empty(out)) for _ in range(2))
        self.starts = dict(zip("ab", conv.dirac, strict=True))
        identity = torch.zeros_like(self.weight)
        identity[:, :, kernel // 2, kernel // 2] = handing_on(out, channels, conv.follows)
        self.register_buffer("identity", identity, persistent=False)

    @property
    def kernel(self) -> Tensor:
        """The weight of the convolution that it is."""
        length = self.weight.flatten(1).norm(dim=1).clamp(min=1e-12)
        a, b = (one.view(-1, 1, 1, 1) for one in (self.a, self.b / length))
        return a * self.identity + b * self.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel, None, self.stride, self.padding)

    def folded(self) -> nn.Conv2d:
        """The same as a convolution like others."""
        shape = self.in_channels, self.out_channels
        size, stride = self.kernel_size[0], self.stride[0]
        plain = nn.Conv2d(*shape, size, stride, size // 2, bias=False)
        plain.weight.data = self.kernel.detach()
        return plain


def handing_on(out: int, into: int, follows: Nonlinearity) -> Tensor:
    """The matrix [out, into] of 0 and 1 that hands channels on, again from the first if it must.

    Where the inputs are CReLU's halves, those of what was before CReLU.
    """
    before = into // follows.factor
    tap = torch.eye(before)[torch.arange(out) % before]
    return torch.cat((tap, -tap), 1) if follows.factor == 2 else tap


class Bias(nn.Module):
    """x + b, [N, C, H, W]: one b for each of C channels, or one for all."""

    def __init__(self, channels: int, start: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels))
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(-1, 1, 1)


class Table(nn.Module):
    """x + a learned vector for each place, [N, places, d] -> the same.

    The vectors start normal, with mean 0 and standard deviation ``std``.
    """

    def __init__(self, places: int, dimension: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(places, dimension))
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class SqueezeExcitation(nn.Module):
    """s(x) x, one s in 0..1 a channel from the channel means: Hu et al. 2018, section 3.

    [N, C, H, W] -> the same; C / ``ratio`` hidden units, at least one, with biases.
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.squeeze(x.mean(dim=(2, 3))))
        return x * torch.sigmoid(self.excite(hidden))[:, :, None, None]


class ZeroPad(nn.Module):
    """Option A: every ``stride``-th pixel, new channels zero, no parameters (He et al. 2015, 4.1).

    [N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]; the first C_in channels are
    the input's. The paper fixes only stride 2 and zeros; channels are appended, as in the authors'
    release.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.new_channels))


def dropout(x: Tensor, dropped: float, word: int) -> Tensor:
    """x with a share of its values zero and the rest scaled up, by a uniform 64-bit word."""
    generator = torch.Generator(x.device).manual_seed(word >> 1)
    noise = torch.rand(x.shape, generator=generator, device=x.device)
    return x * (noise >= dropped) / (1 - dropped)


class Dropout(nn.Module):
    """:func:`dropout` in training, x itself at evaluation: Srivastava et al. 2014."""

    def __init__(self, dropped: float) -> None:
        super().__init__()
        self.dropped = dropped
        self.word = 0

    def draw(self, word: int) -> None:
        """Decide which values fall in the next step."""
        self.word = word

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropped, self.word) if self.training else x
