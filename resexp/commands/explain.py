"""``resexp explain``: the numbers of one block, and any arch as a diagram and a table of layers.

Everything comes from one pass of an empty image through the real modules: which are called, in what
order and with what shapes. Nothing is drawn by the name of an arch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from resexp import data as images
from resexp import models
from resexp.models.blocks import Block, Place, block
from resexp.models.layers import Norm, ZeroPad
from resexp.models.merges import Drop
from resexp.runs.run import check_task
from resexp.settings import Arch, Data, Job, Merge, Normalisation, Order, choices

#: Sets that may have to be downloaded: channels, height and width, classes.
SHAPES = {"cifar10": (3, (32, 32), 10), "fashion_mnist": (1, (28, 28), 10)}

#: An image folder's, where it says nothing else: ImageNet's.
FOLDER_SIZE, FOLDER_CLASSES = 224, 1000

#: The numbers of the worked example.
X, H = (2.0, 1.5, 0.8), (2.3, 1.4, 1.0)

#: What layers are called; others go by the name of their class.
KINDS = {
    nn.Linear: "linear",
    nn.BatchNorm2d: "batch norm",
    nn.GroupNorm: "group norm",
    nn.LayerNorm: "layer norm",
    nn.ReLU: "ReLU",
    nn.MaxPool2d: "max pooling",
    nn.AvgPool2d: "mean pooling",
}

DIAGRAMS = 4  # drawn unless all are asked for


# The worked example


@dataclass(frozen=True, slots=True)
class Example:
    """What one block makes of three numbers, computed by the block itself."""

    x: list[float]
    wanted: list[float]  # H(x)
    branch: list[float]  # F(x), which the weights were set for
    residual: list[float]
    plain: list[float]  # the same weights without the skip
    residual_at_zero: list[float]  # all weights zero
    plain_at_zero: list[float]


def example() -> Example:
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
        seen = [residual.branch(x), residual(x), plain(x)]
        for parameter in (*residual.parameters(), *plain.parameters()):
            parameter.zero_()
        seen += [residual(x), plain(x)]
    return Example(list(X), list(H), *([round(v, 9) for v in y.flatten().tolist()] for y in seen))


def of_three(merge: Merge) -> Block:
    """A block on three channels, all weights zero."""
    arch = Arch(merge=merge, order=Order.full_preactivation, norm=Normalisation.none)
    norm = Norm(eps=1e-5, momentum=0.1, kind=arch.norm)
    one, _ = block(arch, 3, 3, 1, Place(number=2, count=2, stage=1), norm)
    for parameter in one.parameters():
        nn.init.zeros_(parameter)
    return one.double()


def example_text(found: Example) -> str:
    """The example as a teacher would read it out."""
    x, wanted, branch = vector(found.x), vector(found.wanted), vector(found.branch)
    return f"""\
A block gets x and should give H(x).

  x    = {x}   what comes in
  H(x) = {wanted}   what should come out

A residual block adds its input to what its branch of layers gives. The branch need only learn the
difference:

  F(x) = H(x) - x = {branch}
  y    = x + F(x) = {vector(found.residual)}   what a residual block gave just now

A plain block has no x to add. Its layers have to give all of H(x):

  y    = F(x)     = {vector(found.plain)}   what the same layers gave without the skip

And with every weight at zero, F(x) = 0:

  y    = x + 0    = {vector(found.residual_at_zero)}   residual: x is handed on unchanged
  y    = 0        = {vector(found.plain_at_zero)}   plain: x is lost

A deeper network is no worse than a shallow one if its added blocks hand x on. A residual block does
that by learning nothing, a plain one has to learn it.

next: resexp explain arch=residual depth=20"""


def vector(values: list[float]) -> str:
    """Three numbers in columns."""
    return "[" + ", ".join(f"{value:4.1f}" for value in values) + "]"


# A network, as one pass goes through it


@dataclass(slots=True)
class Call:
    """One module's turn in a pass."""

    name: str  # as in the names of its parameters; empty: the network
    module: nn.Module
    into: str = ""  # shape without the number of images, such as 16x8x8
    out: str = ""
    parameters: int = 0  # its own, not those of modules in it; at its first turn alone
    multiply_adds: int = 0
    calls: list[Call] = field(default_factory=list)  # of modules in it, in order


@dataclass(frozen=True, slots=True)
class Layer:
    """A row of the table."""

    layer: str
    kind: str
    shape: str
    parameters: int
    flops: int


def trace(network: nn.Module, channels: int, size: tuple[int, int]) -> Call:
    """The calls of one pass of an empty image of ``size`` pixels."""
    names = {module: name for name, module in network.named_modules()}
    whole = Call("", network)
    under_way = [whole]

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        call = Call(names[module], module, into=shape_of(inputs[0]))
        under_way[-1].calls.append(call)
        under_way.append(call)

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = under_way.pop()
        call.out = shape_of(output)
        call.multiply_adds = models.multiply_adds(module, inputs[0], output)
        call.parameters = 0 if module in counted else own_parameters(module)
        counted.add(module)

    counted: set[nn.Module] = {network}
    inner = [module for module in names if module is not network]
    handles = [module.register_forward_pre_hook(enter) for module in inner]
    handles += [module.register_forward_hook(leave) for module in inner]
    models.one_pass(network, channels, size)
    for handle in handles:
        handle.remove()
    whole.parameters = own_parameters(network)
    return whole


def own_parameters(module: nn.Module) -> int:
    """Parameters of a module itself, not of modules in it."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def shape_of(value: Any) -> str:
    """A tensor's shape for one image."""
    return "x".join(str(side) for side in value.shape[1:]) if isinstance(value, Tensor) else "-"


def walk(call: Call) -> Iterator[Call]:
    """A call and all within it; what is within comes first."""
    for inner in call.calls:
        yield from walk(inner)
    yield call


def layers(call: Call) -> list[Layer]:
    """The rows of a call and of all within it."""
    return [row(one) for one in walk(call) if has_row(one)]


def row(call: Call) -> Layer:
    """What the table says of one call."""
    name = call.name or "network"
    return Layer(name, kind(call.module), call.out, call.parameters, 2 * call.multiply_adds)


def has_row(call: Call) -> bool:
    """Whether a call stands in the table: layers that have parameters or multiply, and merges."""
    return bool(call.parameters or call.multiply_adds) or is_merge(call.module)


def is_merge(module: nn.Module) -> bool:
    return hasattr(module, "formula") and not joins(module)


def joins(module: nn.Module) -> bool:
    """Whether a module joins a branch to its input: a block, or a level of a U-Net."""
    return hasattr(module, "branch") and hasattr(module, "merge")


def kind(module: nn.Module) -> str:
    """What a layer is, in a few words."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        height, width = module.kernel_size
        transposed = "transposed " if isinstance(module, nn.ConvTranspose2d) else ""
        return f"{height}x{width} {transposed}convolution{stride(module.stride[0])}"
    if isinstance(module, ZeroPad):
        return f"{module.new_channels} channels of zeros appended{stride(module.stride)}"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(module).__name__).lower()
    return next((name for one, name in KINDS.items() if isinstance(module, one)), words)


def stride(pixels: int) -> str:
    """How far apart pixels are taken, where not each is."""
    return f", stride {pixels}" if pixels > 1 else ""


def formula(block: nn.Module) -> str:
    """What a block computes: x in place of a shortcut that changes nothing."""
    merge = block.merge
    said = str(getattr(block, "formula", None) or merge.formula)  # type: ignore[union-attr]
    if not isinstance(getattr(merge, "shortcut", None), nn.Identity):
        return said
    return said.replace("(S(x))", "(x)").replace("S(x)", "x")


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
    kinds: dict[str, list[Call]] = {}
    for call in walk(whole):
        if joins(call.module):
            numberless = [re.sub(r"\d+ channels", "channels", line) for line in draw(call)[1:-1]]
            kinds.setdefault("\n".join(numberless), []).append(call)
    found = [
        Diagram(first.name, [one.name for one in more], formula(first.module), draw(first))
        for first, *more in kinds.values()
    ]
    return sorted(found, key=lambda one: -len(one.alike))


def draw(call: Call) -> list[str]:
    """A block from its input down to its output, the way beside the branch on the right."""
    block = call.module
    place = next(i for i, inner in enumerate(call.calls) if inner.module is block.merge)
    merge = call.calls[place]
    before, after = named(call.calls[:place]), named(call.calls[place + 1 :])
    layers = named(inner for inner in merge.calls if inner.module is block.branch)
    branch = [f"| {' ' if i else 'F'}  {line}" for i, line in enumerate(layers)]
    beside = [
        f"{inner.name.rpartition('.')[2]}: {', '.join(kinds_in(inner))}"
        for inner in merge.calls
        if inner.module is not block.branch
    ]
    branch += ["|"] * (len(beside) - len(branch))
    start, end = "x", f"y = {formula(block)}"
    if not isinstance(block.merge, Drop):
        width = max(len(line) for line in (*branch, f"{end} <")) + 2
        sides = [f"|  {words}" for words in beside] + ["|"] * (len(branch) - len(beside))
        branch = [f"{line:<{width}}{side}" for line, side in zip(branch, sides, strict=True)]
        start, end = "x ".ljust(width, "-") + ".", f"{end} <".ljust(width, "-") + "'"
    return [f"in   {call.into}", *before, start, *branch, end, *after, f"out  {call.out}"]


def named(calls: Iterable[Call]) -> list[str]:
    """A line for each layer that sequences call: its name, and what it is."""
    turns = [inner for call in calls for inner in in_turn(call)]
    names = [inner.name.rpartition(".")[2] for inner in turns]
    width = max(map(len, names), default=0)
    return [f"{name:<{width}}  {kind(one.module)}" for name, one in zip(names, turns, strict=True)]


def kinds_in(call: Call) -> list[str]:
    """What the layers within a call are."""
    found = [kind(inner.module) for inner in walk(call) if not inner.calls]
    return [word for word in found if word != "sequential"]


def in_turn(call: Call) -> list[Call]:
    """The layers that a sequence calls, sequences in it opened."""
    if isinstance(call.module, nn.Sequential):
        return [layer for inner in call.calls for layer in in_turn(inner)]
    return [call]


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
    whole: Call

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "whole"}
        lists = {name: [asdict(one) for one in fields[name]] for name in ("blocks", "layers")}
        return fields | lists


def explain(job: Job) -> Explanation:
    """The network that ``job`` would train, from its modules alone. Needs no images on disk.

    Raises UsageError if there is no such network, or it learns another task than the images teach.
    """
    settings = job.settings
    check_task(job)
    channels, size, classes = shape(settings.data)
    network = models.structure(settings, channels, classes, size)
    cost = models.measure(network, channels, size)
    whole = trace(network, channels, size)
    return Explanation(
        arch=job.arch,
        depth=settings.depth,
        facts=choices.facts("arch", job.arch),
        data=settings.data.name,
        shape=[channels, *size],
        classes=classes,
        parameters=cost.parameters,
        parameters_without_norm=cost.parameters_without_norm,
        flops=cost.flops,
        blocks=diagrams(whole),
        layers=layers(whole),
        whole=whole,
    )


def shape(data: Data) -> tuple[int, tuple[int, int], int]:
    """Channels, height and width, and classes of a set's images; ``data.size`` goes first."""
    if data.loader == "imagefolder":
        channels, size, classes = 3, (FOLDER_SIZE, FOLDER_SIZE), FOLDER_CLASSES
    elif data.loader in SHAPES:
        channels, size, classes = SHAPES[data.loader]
    else:
        held = images.load(data)
        channels, size, classes = held.channels, held.size, len(held.classes)
    return channels, (data.size, data.size) if data.size else size, classes


def text(found: Explanation, full: bool = False) -> str:
    """Facts, diagrams and the table of layers; ``full``: every one of them."""
    said = dict(found.facts)
    parts = ["\n".join([f"{found.arch}: {said.pop('what it is')}", *facts_lines(said)])]
    channels, height, width = found.shape
    parts.append(
        f"{found.arch}-{found.depth} on {found.data}: images of {height}x{width}x{channels}, "
        f"{found.classes:,} classes, {found.parameters:,} parameters "
        f"({found.parameters_without_norm:,} without normalisation), "
        f"{found.flops / 1e6:,.1f} MFLOPs an image"
    )
    drawn = found.blocks if full else found.blocks[:DIAGRAMS]
    parts += ["\n".join([title(one), "", *(f"    {line}" for line in one.lines)]) for one in drawn]
    if left := len(found.blocks) - len(drawn):
        parts.append(f"{left} more kinds of blocks: --full draws them.")
    rows = [columns(one) for one in found.layers] if full else folded(found.whole)
    total = ("total", "", "", f"{found.parameters:,}", f"{found.flops:,}")
    parts.append(aligned([("layer", "kind", "output", "parameters", "FLOPs"), *rows, total]))
    return "\n\n".join(parts)


def facts_lines(facts: dict[str, str]) -> list[str]:
    """One line for each thing that an arch's file says."""
    return [f"  {key:<6}  {value}" for key, value in facts.items()]


def title(one: Diagram) -> str:
    """Which blocks a diagram is of."""
    others = f", and {len(one.alike)} alike" if one.alike else ""
    return f"{one.block}{others}"


Columns = tuple[str, str, str, str, str]


def columns(one: Layer) -> Columns:
    """A row as people read it."""
    return one.layer, one.kind, one.shape, f"{one.parameters:,}", f"{one.flops:,}"


def folded(call: Call) -> list[Columns]:
    """The rows of a call; where one inner call is like the one before, a line for the whole run."""
    rows: list[Columns] = []
    runs: list[list[Call]] = []
    for inner in call.calls:
        if inner.calls and runs and alike(runs[-1][0], inner):
            runs[-1].append(inner)
        else:
            runs.append([inner])
    for first, *more in runs:
        rows += folded(first)
        if more:
            rows.append(run_of(first, more))
    return rows + ([columns(row(call))] if has_row(call) else [])


def run_of(first: Call, more: list[Call]) -> Columns:
    """One line for the calls that repeat ``first``, with their sums."""
    inner = [one for call in more for one in layers(call)]
    last = more[-1].name.rpartition(".")[2]
    names = more[0].name if len(more) == 1 else f"{more[0].name} to {last}"
    sums = sum(one.parameters for one in inner), sum(one.flops for one in inner)
    return names, f"as {first.name}", more[-1].out, f"{sums[0]:,}", f"{sums[1]:,}"


def alike(one: Call, other: Call) -> bool:
    """Whether two calls have the same rows, but for their own names."""
    return bool(layers(one)) and relative(one) == relative(other)


def relative(call: Call) -> list[Layer]:
    """The rows of a call, named from there."""
    return [replace(one, layer=one.layer.removeprefix(call.name)) for one in layers(call)]


def aligned(rows: list[Columns]) -> str:
    """Rows under each other, words to the left and numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place > 2 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(one, widths, strict=True))
        )
        for one in rows
    )
