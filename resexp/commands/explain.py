"""``resexp explain``: the numbers of one block, and any arch as a diagram and a table of layers.

Everything comes from one pass of an empty image through the real modules: which are called, in what
order and with what shapes. Nothing is drawn by the name of an arch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from resexp import data as images
from resexp import models
from resexp.analysis.results import grouped
from resexp.console import grid
from resexp.models.activations import CReLU
from resexp.models.blocks import Block, block
from resexp.models.layers import Norm, ZeroPad
from resexp.models.merges import Drop, Place
from resexp.models.trace import Call, one_pass
from resexp.runs.run import check_task
from resexp.settings import Arch, Data, Job, Merge, Normalisation, Order, choices

#: The numbers of the worked example.
X, H = (2.0, 1.5, 0.8), (2.3, 1.4, 1.0)

#: What layers are called; others go by the name of their class.
KINDS = {
    nn.BatchNorm2d: "batch norm",
    nn.ReLU: "ReLU",
    CReLU: "CReLU",
    nn.SELU: "SELU",
    nn.MaxPool2d: "max pooling",
    nn.AvgPool2d: "mean pooling",
}

DIAGRAMS = 4  # drawn unless all are asked for


def example() -> dict[str, list[float]]:
    """Numbers from two blocks with the same weights, one that adds its input and one that does not.

    A block of two convolutions on three channels of one pixel, ReLU before each; the first hands
    its input on, the second weighs each channel, so that F(x) = H(x) - x.
    """
    x = torch.tensor(X, dtype=torch.float64).view(1, 3, 1, 1)
    wanted = torch.tensor(H, dtype=torch.float64)
    residual, plain = (of_three(merge) for merge in (Merge.residual, Merge.plain))
    for one in (residual, plain):
        first, second = (layer for layer in one.branch.modules() if isinstance(layer, nn.Conv2d))
        nn.init.dirac_(first.weight)
        second.weight.data[..., 1, 1] = torch.diag((wanted - x.flatten()) / x.flatten())
    with torch.no_grad():
        found = {"x": x, "wanted": wanted, "branch": residual.branch(x)}
        found |= {"residual": residual(x), "plain": plain(x)}
        for parameter in (*residual.parameters(), *plain.parameters()):
            parameter.zero_()
        found |= {"residual_at_zero": residual(x), "plain_at_zero": plain(x)}
    return {name: [round(v, 9) for v in y.flatten().tolist()] for name, y in found.items()}


def of_three(merge: Merge) -> Block:
    arch = Arch(merge=merge, order=Order.full_preactivation, norm=Normalisation.none)
    norm = Norm(eps=1e-5, momentum=0.1, kind=arch.norm)
    one, _ = block(arch, 3, 3, 1, Place(number=2, count=2, stage=1), norm)
    for parameter in one.parameters():
        nn.init.zeros_(parameter)
    return one.double()


def example_text(found: dict[str, list[float]]) -> str:
    """The example as a teacher would read it out."""
    said = {name: f"[{', '.join(f'{v:4.1f}' for v in values)}]" for name, values in found.items()}
    return """\
A block gets x and should give H(x).

  x    = {x}   what comes in
  H(x) = {wanted}   what should come out

A residual block adds its input to what its branch of layers gives. The branch need only learn the
difference:

  F(x) = H(x) - x = {branch}
  y    = x + F(x) = {residual}   what a residual block gave just now

A plain block has no x to add. Its layers have to give all of H(x):

  y    = F(x)     = {plain}   what the same layers gave without the skip

And with every weight at zero, F(x) = 0:

  y    = x + 0    = {residual_at_zero}   residual: x is handed on unchanged
  y    = 0        = {plain_at_zero}   plain: x is lost

A deeper network is no worse than a shallow one if its added blocks hand x on. A residual block does
that by learning nothing, a plain one has to learn it.

next: resexp explain arch=residual depth=20""".format(**said)


# Layers


@dataclass(frozen=True, slots=True)
class Layer:
    layer: str
    kind: str
    shape: str
    parameters: int
    flops: int


def layers(call: Call) -> list[Layer]:
    return [row for one in call.walk() for row in own_row(one)]


def own_row(call: Call) -> list[Layer]:
    """The row of one call, if it has parameters, multiplies, or merges."""
    is_merge = hasattr(call.module, "formula") and not joins(call.module)
    if not (call.parameters or call.multiply_adds or is_merge):
        return []
    name, shape = call.name or "network", by(call.out)
    return [Layer(name, kind(call.module), shape, call.parameters, 2 * call.multiply_adds)]


def by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "-"


def joins(module: nn.Module) -> bool:
    """Whether a module joins a branch to its input: a block, or a level of a U-Net."""
    return hasattr(module, "branch") and hasattr(module, "merge")


def kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        transposed = "transposed " if isinstance(module, nn.ConvTranspose2d) else ""
        said, stride = f"{by(module.kernel_size)} {transposed}convolution", module.stride[0]
    elif isinstance(module, ZeroPad):
        said, stride = f"{module.new_channels} channels of zeros appended", module.stride
    elif isinstance(module, nn.LeakyReLU):
        said, stride = f"leaky ReLU, slope {module.negative_slope:.4g}", 1
    else:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(module).__name__).lower()
        return next((name for one, name in KINDS.items() if isinstance(module, one)), words)
    return f"{said}, stride {stride}" if stride > 1 else said


# Diagrams


@dataclass(frozen=True, slots=True)
class Diagram:
    """One block, and the others that are drawn alike."""

    block: str
    alike: list[str]
    formula: str
    lines: list[str]


def diagrams(whole: Call) -> list[Diagram]:
    """The blocks of a network, each kind once; channels and image sides make no kind."""
    kinds = grouped(
        (call for call in whole.walk() if joins(call.module)),
        lambda call: re.sub(r"\d+ channels", "channels", "\n".join(draw(call)[1:-1])),
    )
    found = [
        Diagram(first.name, [one.name for one in more], formula(first.module), draw(first))
        for first, *more in kinds.values()
    ]
    return sorted(found, key=lambda one: -len(one.alike))


def draw(call: Call) -> list[str]:
    """A block from its input down to its output, the way beside the branch on the right."""
    block = call.module
    place = next(i for i, inner in enumerate(call.calls) if inner.module is block.merge)
    within = call.calls[place].calls
    layers = named(inner for inner in within if inner.module is block.branch)
    branch = [f"| {' ' if i else 'F'}  {line}" for i, line in enumerate(layers)]
    beside = [
        f"{inner.name.rpartition('.')[2]}: {', '.join(kinds_in(inner))}"
        for inner in within
        if inner.module is not block.branch
    ]
    branch += ["|"] * (len(beside) - len(branch))
    start, end = "x", f"y = {formula(block)}"
    if not isinstance(block.merge, Drop):
        width = max(len(line) for line in (*branch, f"{end} <")) + 2
        sides = [f"|  {words}" for words in beside] + ["|"] * (len(branch) - len(beside))
        branch = [f"{line:<{width}}{side}" for line, side in zip(branch, sides, strict=True)]
        start, end = "x ".ljust(width, "-") + ".", f"{end} <".ljust(width, "-") + "'"
    lines = [*named(call.calls[:place]), start, *branch, end, *named(call.calls[place + 1 :])]
    return [f"in   {by(call.into)}", *lines, f"out  {by(call.out)}"]


def formula(block: nn.Module) -> str:
    """What a block computes: x in place of a shortcut that changes nothing."""
    merge = block.merge
    said = str(getattr(block, "formula", None) or merge.formula)  # type: ignore[union-attr]
    if not isinstance(getattr(merge, "shortcut", None), nn.Identity):
        return said
    return said.replace("(S(x))", "(x)").replace("S(x)", "x")


def named(calls: Iterable[Call]) -> list[str]:
    """A line for each layer that sequences call: its name, and what it is."""
    turns = [(one.name.rpartition(".")[2], one) for call in calls for one in in_turn(call)]
    width = max((len(name) for name, _ in turns), default=0)
    return [f"{name:<{width}}  {kind(one.module)}" for name, one in turns]


def in_turn(call: Call) -> list[Call]:
    """The layers that a sequence calls, sequences in it opened."""
    if isinstance(call.module, nn.Sequential):
        return [layer for inner in call.calls for layer in in_turn(inner)]
    return [call]


def kinds_in(call: Call) -> list[str]:
    found = [kind(inner.module) for inner in call.walk() if not inner.calls]
    return [word for word in found if word != "sequential"]


# The whole


@dataclass(frozen=True, slots=True)
class Explanation:
    """An arch at a depth, on images of one shape."""

    arch: str
    depth: int
    facts: dict[str, str]
    data: str
    shape: list[int]  # channels, height, width
    classes: int
    parameters: int
    parameters_without_norm: int
    flops: int
    blocks: list[Diagram]
    layers: list[Layer]
    whole: Call | None

    def as_dict(self) -> dict[str, Any]:
        plain = asdict(replace(self, whole=None))
        del plain["whole"]
        return plain


def explain(job: Job) -> Explanation:
    """The network that ``job`` would train, from its modules alone. Needs no images on disk.

    Raises UsageError if there is no such network, or it learns another task than the images teach.
    """
    settings = job.settings
    check_task(job)
    channels, size, classes = shape(settings.data)
    network = models.structure(settings, channels, classes, size)
    whole = one_pass(network, channels, size)
    return Explanation(
        arch=job.arch,
        depth=settings.depth,
        facts=choices.facts("arch", job.arch)
        | {"step": f"{settings.optimizer}: {choices.describe('optimizer', settings.optimizer)}"},
        data=settings.data.name,
        shape=[channels, *size],
        classes=classes,
        **asdict(models.measured(network, whole)),
        blocks=diagrams(whole),
        layers=layers(whole),
        whole=whole,
    )


def shape(data: Data) -> tuple[int, tuple[int, int], int]:
    """Channels, height and width, and classes of a set's images; ``data.size`` goes first."""
    known = getattr(images.loader(data.loader), "SHAPE", None)  # if no file is needed to know
    if not known:
        held = images.load(data)
        known = held.channels, held.size, len(held.classes)
    channels, size, classes = known
    return channels, (data.size, data.size) if data.size else size, classes


def text(found: Explanation, full: bool = False) -> str:
    """Facts, diagrams and the table of layers; ``full``: every one of them."""
    (_, said), *facts = found.facts.items()
    parts = ["\n".join([f"{found.arch}: {said}", *(f"  {k:<6}  {value}" for k, value in facts)])]
    channels, height, width = found.shape
    parts.append(
        f"{found.arch}-{found.depth} on {found.data}: images of {height}x{width}x{channels}, "
        f"{found.classes:,} classes, {found.parameters:,} parameters "
        f"({found.parameters_without_norm:,} without normalisation), "
        f"{found.flops / 1e6:,.1f} MFLOPs an image, two a multiply-add"
    )
    drawn = found.blocks[: None if full else DIAGRAMS]
    for one in drawn:
        others = f", and {len(one.alike)} alike" if one.alike else ""
        parts.append("\n    ".join([f"{one.block}{others}\n", *one.lines]))
    if left := len(found.blocks) - len(drawn):
        parts.append(f"{left} more kinds of blocks: --full draws them.")
    assert found.whole
    rows = found.layers if full else folded(found.whole)
    total = Layer("total", "", "", found.parameters, found.flops)
    cells = [
        (r.layer, r.kind, r.shape, f"{r.parameters:,}", f"{r.flops:,}") for r in (*rows, total)
    ]
    header = ("layer", "kind", "output", "parameters", "FLOPs")
    parts.append("\n".join(grid(header, cells, "<<<>>", spare=(1, 2))))
    return "\n\n".join(parts)


def folded(call: Call) -> list[Layer]:
    """The rows of a call; where one inner call is like the one before, a line for the whole run."""
    rows: list[Layer] = []
    for _, group in groupby(call.calls, key=lambda one: (one.calls and relative(one)) or id(one)):
        first, *more = group
        rows += folded(first)
        if more:
            inner = [row for one in more for row in layers(one)]
            last = more[-1].name.rpartition(".")[2]
            names = more[0].name if len(more) == 1 else f"{more[0].name} to {last}"
            sums = sum(one.parameters for one in inner), sum(one.flops for one in inner)
            rows.append(Layer(names, f"as {first.name}", by(more[-1].out), *sums))
    return rows + own_row(call)


def relative(call: Call) -> list[Layer]:
    """The rows of a call, named from there."""
    return [replace(one, layer=one.layer.removeprefix(call.name)) for one in layers(call)]
