"""Merge rules: what becomes of the input x beside a branch F.

A rule is one class: its name (``arch.merge``), its ``formula``, which ``resexp explain`` prints,
its ``Options``, if it has any, and ``forward``. It holds the shortcut S and is called with x and
the branch, so that a branch that is left out need not be computed. All stand in this one file but
those that fold into plain networks (models.foldable) and several streams (models.streams): what
there is to see is how little they differ. docs/extending.md adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from resexp.models.activations import Difference
from resexp.models.layers import Bias, Convolution, Norm, ZeroPad, convolution, dropout, sequence
from resexp.models.options import NoOptions, read
from resexp.randomness import words
from resexp.settings import Above, Arch, Order, Range, Shortcut, UsageError

Branch = Callable[[Tensor], Tensor]

DEPTH = b"depth"  # the purpose of the random words of blocks and shortcuts

#: The rules by name, and those of them that blocks know. Each enters itself.
RULES: dict[str, type[Rule]] = {}
SUMS: list[str] = []


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block stands: its number among ``count`` and its stage, all from 1."""

    number: int = 1
    count: int = 1
    stage: int = 1


class Rule(nn.Module):
    """What all rules are: modules that are given x and the branch, entered in RULES by a name.

    The third argument of one that is more than Add is an instance of its ``Options``. Parameters of
    its own start at its attribute ``start``. ``place`` is where its block stands.
    """

    formula: str
    place = Place()
    NEEDS: ClassVar[dict[str, Any]] = {}  # settings of the arch without which it is another
    Options: ClassVar[type] = NoOptions  # a frozen dataclass, as a family has one
    sums: ClassVar[bool] = True  # y has the shape of F(x), so that blocks can be stacked
    whole_batch: ClassVar[bool] = False  # draws noise for a whole batch, which ranks cannot share

    def __init_subclass__(cls, name: str) -> None:
        RULES[name] = cls
        if cls.sums:
            SUMS.append(name)

    def altered(self, conv: Convolution) -> Convolution:
        """What the branch has in place of one of its convolutions."""
        return conv

    @staticmethod
    def carries(
        arch: Arch, channels_in: int, channels_out: int, stride: int, norm: Norm
    ) -> nn.Module:
        """S, of which most rules leave the choice to ``arch.shortcut``."""
        return shortcut(arch, channels_in, channels_out, stride, norm)


class Drop(Rule, name="plain"):
    """y = F(x): the plain network."""

    formula = "F(x)"

    def __init__(self, *_: object) -> None:
        super().__init__()

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return branch(x)


class Add(Rule, name="residual"):
    """y = S(x) + F(x): He et al. 2015, equation 2. The other rules hold what it holds.

    ``shortcut`` is S, and ``channels`` are those of S(x).
    """

    formula = "S(x) + F(x)"

    def __init__(self, shortcut: nn.Module, channels: int = 0, options: Any = None) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.options = options

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return branch(x) + self.shortcut(x)


class WeightedAdd(Add, name="weighted"):
    """y = a S(x) + b F(x), a and b constant: He et al. 2016, section 3.1."""

    @dataclass(frozen=True, slots=True)
    class Options:
        shortcut_scale: Annotated[float, Range(0, 1000), "factor on S(x)"] = 1.0
        branch_scale: Annotated[float, Above(0, 1000), "factor on F(x)"] = 1.0

    def __init__(self, shortcut: nn.Module, channels: int, options: Any) -> None:
        super().__init__(shortcut, channels, options)
        self.formula = f"{options.shortcut_scale:g} S(x) + {options.branch_scale:g} F(x)"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        a, b = self.options.shortcut_scale, self.options.branch_scale
        return b * branch(x) + a * self.shortcut(x)


class DropoutAdd(Add, name="dropout"):
    """y = dropout(S(x)) + F(x): He et al. 2016, section 3.1; E[dropout(S)] = S."""

    formula = "dropout(S(x)) + F(x)"

    @dataclass(frozen=True, slots=True)
    class Options:
        shortcut_dropout: Annotated[float, Above(0, 0.99), "share dropped of S(x)"] = 0.5

    whole_batch = True
    word = 0

    def draw(self, word: int) -> None:
        """Decide which values fall in the next step."""
        self.word = word

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        carried: Tensor = self.shortcut(x)
        if self.training:
            carried = dropout(carried, self.options.shortcut_dropout, self.word)
        return branch(x) + carried


class Gate(nn.Module):
    """T in 0..1: the sigmoid of a 1x1 convolution with biases that start at ``bias``.

    [N, C, H, W] -> the same. Highway networks (Srivastava et al. 2015) gate with a convolution like
    the branch's own; He et al. 2016, section 3.1, with 1x1, as here.
    """

    def __init__(self, channels: int, bias: float) -> None:
        super().__init__()
        self.conv = convolution(channels, Convolution(channels, 1))
        self.bias = Bias(channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.bias(self.conv(x)))


class Highway(Add, name="highway"):
    """y = (1 - T) S(x) + T F(x), T a gate of S(x): Srivastava et al. 2015, equation 3.

    Also "exclusive gating" of He et al. 2016, section 3.1. The gate reads the shortcut's output, so
    that it has the shape of what it weighs where shapes change too.
    """

    formula = "(1 - T) S(x) + T F(x)"

    @dataclass(frozen=True, slots=True)
    class Options:
        gate_bias: Annotated[float, Range(-100, 100), "T starts near the sigmoid of this"] = -2.0

    def __init__(self, shortcut: nn.Module, channels: int, options: Any) -> None:
        super().__init__(shortcut, channels, options)
        self.gate = Gate(channels, options.gate_bias)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        carried: Tensor = self.shortcut(x)
        gate = self.gate(carried)
        return (1 - gate) * carried + gate * branch(x)


class ShortcutGate(Highway, name="shortcut_gate"):
    """y = (1 - T) S(x) + F(x): "shortcut-only gating" of He et al. 2016, section 3.1."""

    formula = "(1 - T) S(x) + F(x)"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        carried: Tensor = self.shortcut(x)
        return (1 - self.gate(carried)) * carried + branch(x)


class ScaledAdd(Add, name="scaled"):
    """y = S(x) + a F(x), a one learned number.

    a starts at 0 in ReZero (Bachlechner et al. 2020) and SkipInit (De and Smith 2020), at 1 in
    Fixup (Zhang et al. 2019).
    """

    formula = "S(x) + a F(x)"

    @dataclass(frozen=True, slots=True)
    class Options:
        branch_start: Annotated[float, Range(-1000, 1000), "a at the start"] = 0.0

    def __init__(self, shortcut: nn.Module, channels: int, options: Any) -> None:
        super().__init__(shortcut, channels, options)
        self.scale = nn.Parameter(torch.empty(1))
        self.start = options.branch_start

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.shortcut(x) + self.scale * branch(x)


class LayerScale(Add, name="layer_scale"):
    """y = S(x) + a F(x), a learned factor for each channel: Touvron et al. 2021, section 2.1.

    They start it at 0.1 up to 18 blocks, at 1e-5 with 24 and at 1e-6 with more.
    """

    formula = "S(x) + a F(x)"

    @dataclass(frozen=True, slots=True)
    class Options:
        scale_start: Annotated[float, Range(0, 10), "every factor at the start"] = 0.1

    def __init__(self, shortcut: nn.Module, channels: int, options: Any) -> None:
        super().__init__(shortcut, channels, options)
        self.scale = nn.Parameter(torch.empty(channels))
        self.start = options.scale_start

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        change = branch(x)  # [N, C, H, W] images or [N, T, C] tokens
        scale = self.scale.view(-1, 1, 1) if change.dim() == 4 else self.scale
        return self.shortcut(x) + scale * change


class DepthScaledAdd(Add, name="depth_scaled"):
    """y = S(x) + a F(x) / sqrt(L), L the number of branches: depth-muP.

    Bordelon et al. 2023 (arXiv 2309.16620) and Yang et al. 2023 (2310.02244): the best rate of SGD
    is then the same at every depth.
    """

    formula = "S(x) + a F(x) / sqrt(L)"

    @dataclass(frozen=True, slots=True)
    class Options:
        depth_scale: Annotated[float, Above(0, 1000), "a of a / sqrt(L)"] = 1.0

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.shortcut(x) + self.options.depth_scale / self.place.count**0.5 * branch(x)


class DecayedAdd(Add, name="decayed"):
    """y = a S(x) + F(x), a falling from 1 in the first block to ``least_identity`` in the last.

    Zhang et al. 2024 (arXiv 2404.10947), linear in the number of the block.
    """

    formula = "a S(x) + F(x)"

    @dataclass(frozen=True, slots=True)
    class Options:
        least_identity: Annotated[float, Range(0, 1), "a in the last block"] = 0.6

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        share = (self.place.number - 1) / max(1, self.place.count - 1)
        return (1 - share * (1 - self.options.least_identity)) * self.shortcut(x) + branch(x)


class FadingAdd(Add, name="fading"):
    """y = a S(x) + F(x), a falling from 1 to 0 between two steps: plain from there on.

    To ask whether skips are needed to train or to compute (arXiv 2506.14386 fades them likewise).
    """

    formula = "a S(x) + F(x)"

    @dataclass(frozen=True, slots=True)
    class Options:
        fade_from: Annotated[int, Range(0, 10**9), "step from which a falls"] = 110
        fade_to: Annotated[int, Range(1, 10**9), "step at which a is 0"] = 220

        def __post_init__(self) -> None:
            if self.fade_from >= self.fade_to:
                raise UsageError(
                    f"fade_from={self.fade_from} must be less than fade_to={self.fade_to}."
                )

    steps: Tensor  # int64: those begun
    share: Tensor  # a

    def __init__(self, shortcut: nn.Module, channels: int, options: Any) -> None:
        super().__init__(shortcut, channels, options)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("share", torch.tensor(1.0))

    def draw(self, word: int) -> None:
        """Begin the next step. Nothing is random."""
        left = (self.options.fade_to - self.steps) / (self.options.fade_to - self.options.fade_from)
        self.share.copy_(left.clamp(0, 1))
        self.steps += 1

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return branch(x) + self.share * self.shortcut(x)


class Concatenate(Add, name="concatenate"):
    """y = [S(x), F(x)], the channels of both: Ronneberger et al. 2015, Huang et al. 2017."""

    formula = "[S(x), F(x)]"
    sums = False

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return torch.cat((self.shortcut(x), branch(x)), 1)


def merge(
    arch: Arch,
    channels_in: int,
    channels_out: int,
    stride: int,
    norm: Norm,
    place: Place = Place(),
    *,
    doubled: bool = False,
) -> Rule:
    """The rule of ``arch`` that joins a branch to its input.

    ``doubled``: CReLU has made 2 ``channels_in`` of the input, which S undoes.
    """
    shape = channels_in, channels_out, stride
    carries = RULES[arch.merge].carries(arch, *shape, norm)
    carries = nn.Sequential(Difference(), carries) if doubled else carries
    joint = rule(arch, carries, channels_out)
    joint.place = place
    return joint


def rule(arch: Arch, shortcut: nn.Module, channels: int) -> Rule:
    """The rule of ``arch`` with a shortcut S, S(x) of ``channels``."""
    kind = RULES[arch.merge]
    return kind(shortcut, channels, read(kind.Options, arch.options))


def shortcut(arch: Arch, channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    """S(x): identity, zero padding (A) or a 1x1 projection (B, C).

    A projection is followed by normalisation, except before full pre-activation and in Fixup, where
    it is bare (He et al. 2016, section 3; Zhang et al. 2019).
    """
    changes = stride != 1 or channels_in != channels_out
    if arch.shortcut is Shortcut.A and changes:
        return ZeroPad(channels_in, channels_out, stride)
    if not changes and arch.shortcut is not Shortcut.C:
        return nn.Identity()
    bare = arch.order in (Order.full_preactivation, Order.fixup)
    words = ["conv"] if bare else ["conv", "norm"]
    return sequence(words, channels_in, [Convolution(channels_out, 1, stride)], norm)[0]


def drawn(network: nn.Module) -> list[nn.Module]:
    """The modules of a network whose training is random: those with a method ``draw``."""
    return [module for module in network.modules() if hasattr(module, "draw")]


def draw(modules: Iterable[nn.Module], seed: int, step: int) -> None:
    """Decide what is random in a step: a function of (seed, step) and a module's place."""
    modules = list(modules)
    if modules:
        for module, word in zip(modules, words(seed, DEPTH, step, len(modules)), strict=True):
            module.draw(int(word))  # type: ignore[operator]
