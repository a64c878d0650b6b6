"""The loss around trained networks, along random directions scaled filter by filter.

A direction d is normal and then, for each filter of a convolution and each row of the classifier,
scaled to the norm of the weights there; normalisation's parameters and biases stay (Li et al. 2018,
section 4). f(a) = L(w + a d), a from -1 to 1, and f(a, b) along two directions, losses in nats on
fixed training images, in training mode: normalisation has their statistics at every point. Numbers:

- ``roughness``: the sum of |second differences| of g = log10(1 + f) at the points, over the range
  of g; for a straight line 0, for one kink its change of slope over the range, more for waves;
- ``minima``: points inside lower than both neighbours; ``width``: the part of a from -1 to 1 where
  f is below twice its least value;
- ``lambda_min`` and ``lambda_max``: extreme eigenvalues of the loss's Hessian, by Lanczos, bounds
  from inside, at the network and half way along the first direction to both sides. As Li et al. do
  |lambda_min / lambda_max| is told: 0 where the loss is convex, the greater the less it is.

A slice that is not convex proves that the loss is not; one that is convex proves nothing. Losses
at the middle differ between networks, and with them the slices: a network that failed to train is
not compared with a fitted one alone. At the greatest depth, for each seed, the network with the
lower loss is retrained up to the loss that the other ended with, as near as a step comes, and
measured there too (``matched``): a younger network, at its rate then.

The rule, by the median roughness over directions, at least three seeds: plain above residual at
the greatest depth in every seed, both at the end of training and at matched loss, and the mean
difference at the least depth smaller than half of the one at the end there: supported. Plain below
residual at the greatest depth in every seed, in both: not supported. Else inconclusive. Eigenvalues
are reported, not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from resexp.probes import Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import ENOUGH, difference, each_seed, mean, seeds_of, those
from resexp.settings import UsageError

CLAIM = "Without skips the loss around a deep network is rough, with them as smooth as a shallow's."
SOURCE = "Li et al. 2018, section 5"
TEXTBOOK = "At 56 layers chaotic without skips, smooth with them; at 20 hardly a difference."
NEEDS = Needs.trained

ARCHS = ("plain", "residual")
IMAGES = 256
CURVATURE_IMAGES = 64
SEEDS = 5
DIRECTIONS = 3
POINTS = 21  # of a 1-D slice
GRID = 9  # points a side of a 2-D slice, of the first seed's deepest networks
ITERATIONS = 20  # of Lanczos: its least value to 1 % in pilots
CURVED_AT = (-0.5, 0.0, 0.5)  # along the first direction


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """Slices of the shallowest and the deepest networks that are plain and residual."""
    found = nets.twins(cases, "landscape", SEEDS)
    plain, residual = ({depth for one, depth, _ in found if one == arch} for arch in ARCHS)
    if not (depths := plain & residual):
        raise UsageError("landscape compares plain and residual networks of one depth. Train both.")
    deep = max(depths)
    chosen = [case for case in found.values() if case.depth in (min(depths), deep)]
    reached: dict[int, list[tuple[float, Case]]] = {}  # losses of the deepest, by seed
    for case in tell(chosen):
        data = nets.load(case.settings)
        network = nets.trained(case, data).train()
        batch = nets.some_images(case.settings, data, IMAGES)
        rows = slices(network, *batch)
        if case.depth == deep:
            reached.setdefault(case.seed, []).append((at(network, *batch), case))
            if case.seed == min(one.seed for one in chosen):
                rows += plane(network, *batch)
        for row in rows + curved(network, *batch):
            yield case.place() | row
    pairs = [sorted(pair, key=lambda one: one[0]) for _, pair in sorted(reached.items())]
    for case, target in tell([(pair[0][1], pair[1][0]) for pair in pairs if len(pair) == 2]):
        yield from at_equal_loss(case, target)


def at_equal_loss(case: Case, target: float) -> Iterator[Row]:
    """Slices of the network where, on its way, its loss was nearest ``target``."""
    settings, data = case.settings, nets.load(case.settings)
    batch = nets.some_images(settings, data, IMAGES)
    off, nearest, at_step = math.inf, nets.at_start(settings, data), 0
    for step, network in nets.snapshots(settings, data, range(settings.steps + 1)):
        loss = at(network.train(), *batch)
        if abs(loss - target) < off:
            off, nearest, at_step = abs(loss - target), network, step
        if loss < target:
            break
    nearest.train()
    for row in slices(nearest, *batch) + curved(nearest, *batch):
        yield case.place() | row | {"matched": 1, "step": at_step}


def slices(network: nn.Module, images: Tensor, labels: Tensor) -> list[Row]:
    """f along each direction."""
    directions = enumerate([direction(network, number) for number in range(DIRECTIONS)])
    return [
        cell("slice", direction=number, a=a, loss=at(network, images, labels, (a, d)))
        for (number, d), a in product(directions, points(POINTS))
    ]


def plane(network: nn.Module, images: Tensor, labels: Tensor) -> list[Row]:
    """f along the first two directions at once."""
    first, second = direction(network, 0), direction(network, 1)
    return [
        cell("plane", a=a, b=b, loss=at(network, images, labels, (a, first), (b, second)))
        for a, b in product(points(GRID), repeat=2)
    ]


def cell(kind: str, **numbers: Any) -> Row:
    """A row without its place; ``step`` where it is matched, not the last."""
    columns = ("step", "direction", "a", "b", "loss", "lambda_min", "lambda_max")
    return {"kind": kind, "matched": 0, **dict.fromkeys(columns), **numbers}


def points(count: int) -> list[float]:
    """Evenly spaced from -1 to 1; of an odd number the middle one is exactly 0."""
    return [2 * number / (count - 1) - 1 for number in range(count)]


Direction = dict[str, Tensor]  # by the name of a parameter: of convolutions and the classifier


def direction(network: nn.Module, number: int) -> Direction:
    """The ``number``-th random direction, each filter as long as the weights' own."""
    generator = torch.Generator().manual_seed(number)
    found = {}
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            weight = parameter.detach()
            d = torch.randn(weight.shape, generator=generator).to(weight).flatten(1)
            own = weight.flatten(1).norm(dim=1, keepdim=True)
            found[name] = (d / d.norm(dim=1, keepdim=True) * own).view_as(weight)
    return found


def moved(network: nn.Module, moves: Sequence[tuple[float, Direction]]) -> Direction:
    """Its weights moved by a times d for each (a, d); the network keeps its own."""
    weights: Direction = {name: one.detach() for name, one in network.named_parameters()}
    for a, d in moves:
        weights |= {name: weights[name].add(part, alpha=a) for name, part in d.items()}
    return weights


@torch.no_grad()
def at(
    network: nn.Module, images: Tensor, labels: Tensor, *moves: tuple[float, Direction]
) -> float:
    """The loss with the weights moved."""
    logits = functional_call(network, moved(network, moves), (images,))
    return cross_entropy(logits, labels).item()


# --- curvature


def curved(network: nn.Module, images: Tensor, labels: Tensor) -> list[Row]:
    """Extreme eigenvalues at the network and beside it, on some of the images."""
    some, d = slice(None, None, max(1, IMAGES // CURVATURE_IMAGES)), direction(network, 0)
    found = {a: curvature(network, images[some], labels[some], (a, d)) for a in CURVED_AT}
    return [
        cell("curvature", direction=0, a=a, lambda_min=least, lambda_max=most)
        for a, (least, most) in found.items()
    ]


def curvature(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *moves: tuple[float, Direction],
    iterations: int = ITERATIONS,
) -> tuple[float, float]:
    """The least and the greatest eigenvalue of the Hessian in all parameters, by Lanczos."""
    weights = {name: one.requires_grad_() for name, one in moved(network, moves).items()}
    parameters = list(weights.values())
    loss = cross_entropy(functional_call(network, weights, (images,)), labels)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([one.flatten() for one in gradients])

    def product(vector: Tensor) -> Tensor:
        parts = torch.autograd.grad(gradient, parameters, vector, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    start = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0))
    return extremes(product, start.to(gradient), iterations)


def extremes(
    product: Callable[[Tensor], Tensor], start: Tensor, iterations: int
) -> tuple[float, float]:
    """The least and the greatest Ritz value of a symmetric matrix given by its product.

    Lanczos with every new vector made orthogonal to all before. Values lie inside the spectrum, so
    the greatest is at most the true one, the least at least.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(iterations):
        vector = product(basis[-1])
        diagonal.append((vector @ basis[-1]).item())
        known = torch.stack(basis)
        for _ in range(2):
            vector = vector - (known @ vector) @ known
        norm = vector.norm().item()
        if len(diagonal) == iterations or norm < 1e-6 * abs(diagonal[0]):
            break
        beside.append(norm)
        basis.append(vector / norm)
    middle, side = (torch.tensor(some, dtype=torch.float64) for some in (diagonal, beside))
    matrix = middle.diag() + side.diag(1) + side.diag(-1)
    if not matrix.isfinite().all():
        return math.nan, math.nan
    values = torch.linalg.eigvalsh(matrix)
    return values[0].item(), values[-1].item()


# --- from the rows


def roughness(losses: Sequence[float]) -> float:
    """Of one slice: the sum of |second differences| of log10(1 + f) over its range."""
    g = np.log10(1 + np.asarray(losses))
    return float(np.abs(np.diff(g, 2)).sum() / np.ptp(g)) if np.ptp(g) > 0 else math.nan


def minima(losses: Sequence[float]) -> int:
    """Points inside a slice that are lower than both neighbours."""
    steps = np.diff(losses)
    return int(((steps[:-1] < 0) & (steps[1:] > 0)).sum())


def width(losses: Sequence[float]) -> float:
    """The fraction of a slice's points below twice its least loss, times its length of 2."""
    return 2 * float(np.mean(np.asarray(losses) < 2 * min(losses)))


NUMBERS: dict[str, Callable[[Sequence[float]], float]] = {
    "roughness": roughness,
    "minima": minima,
    "width": width,
    "loss": lambda losses: list(losses)[len(losses) // 2],  # at the network itself
}
RATIO = "|lambda_min / lambda_max|"


def of_slices(
    rows: pd.DataFrame,
    arch: str,
    depth: int,
    number: Callable[[Sequence[float]], float],
    matched: int = 0,
) -> pd.Series[float]:
    """The median over directions of a slice's number, by seed."""
    wanted = {"arch": arch, "depth": depth, "kind": "slice", "matched": matched}
    some = each_seed(rows, "direction", "a", **wanted)
    found = some.groupby(["seed", "direction"])["loss"].agg(number).groupby("seed")
    return found.agg(lambda one: one.median(skipna=False))


def apart(rows: pd.DataFrame, depth: int, *, matched: bool = False) -> pd.Series[float]:
    """Roughness of plain less residual by seed; ``matched``: of the one that has such slices."""
    rough = {}
    for arch in ARCHS:
        last = of_slices(rows, arch, depth, roughness)
        earlier = of_slices(rows, arch, depth, roughness, 1) if matched else last
        rough[arch] = pd.concat([earlier, last.drop(earlier.index)])
    found = difference(*(rough[arch] for arch in ARCHS))
    return found[sorted(set(those(rows, matched=1)["seed"]))] if matched else found


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    depths = sorted(set(rows["depth"]))
    least, deep = depths[0], depths[-1]
    numbers: dict[str, float] = {}
    told = []
    ratio = (rows["lambda_min"] / rows["lambda_max"]).abs()
    for matched, depth, arch in product((0, 1), depths, ARCHS):
        here = those(rows, arch=arch, depth=depth, matched=matched)
        if here.empty:
            continue
        name, of_name = f"{arch} {depth}{' at equal loss' * matched}", (arch, depth)
        for key, number in NUMBERS.items():
            numbers[f"{key}, {name}"] = mean(of_slices(rows, *of_name, number, matched))
        for place, some in {"": here["a"] == 0, "beside, ": here["a"] != 0}.items():
            curved = those(here[some], kind="curvature")
            for column in ("lambda_min", "lambda_max"):
                numbers[f"{column}, {place}{name}"] = mean(curved[column])
            numbers[f"{RATIO}, {place}{name}"] = mean(ratio[curved.index])
        told.append(
            f"{name} {numbers[f'roughness, {name}']:.2f}, {numbers[f'{RATIO}, {name}']:.2f} "
            f"(loss {numbers[f'loss, {name}']:.3f})"
        )
    by_depth = {depth: apart(rows, depth) for depth in (deep, least)}
    equal = apart(rows, deep, matched=True)
    between = f"plain-{deep} less residual-{deep}"
    return Finding(
        judge(by_depth, equal),
        f"median roughness of slices, and {RATIO}, of trained networks: {'; '.join(told)}; so the "
        "worse of two is held against one as badly fitted, not against one that had trained.",
        numbers=numbers,
        conventions=[
            f"{POINTS} points along {DIRECTIONS} directions, torch's generator seeded 0 to "
            f"{DIRECTIONS - 1}; {IMAGES} training images; {seeds_of(rows)}",
            f"eigenvalues: {ITERATIONS} products of Lanczos, {CURVATURE_IMAGES} images; lambda_min "
            "below 0: not convex there; at equal loss: the better of the two deepest, earlier",
        ],
        headlines=[
            Headline(f"roughness, {between}", by_depth[deep], form="+.2f"),
            Headline("at equal loss", equal, form="+.2f"),
            Headline(f"plain-{least} less residual-{least}", by_depth[least], form="+.2f"),
        ],
    )


def judge(apart: Mapping[int, Collection[float]], equal: Collection[float]) -> Verdict:
    """The rule in the module's docstring: roughness of plain less residual, seeds by depth."""
    deep, shallow = apart[max(apart)], apart[min(apart)]
    if min(len(deep), len(equal)) < ENOUGH or len(apart) < 2:
        return Verdict.inconclusive
    both = [*deep, *equal]
    alike = abs(mean(shallow)) < mean(deep) / 2
    return Verdict.of(all(one > 0 for one in both) and alike, all(one < 0 for one in both))


def draw(rows: pd.DataFrame) -> Figure:
    """Every slice at the least and at the greatest depth; contours of the deepest."""
    from resexp.probes.drawing import COLOURS, DASHES, GREY, finish, panels

    depths = (rows["depth"].min(), rows["depth"].max())
    figure, (shallow, deep, *planes) = panels(4, 76)
    deep.sharey(shallow)
    ends, strokes = zip((shallow, deep), depths, strict=True), enumerate(("-", DASHES))
    for (axis, depth), arch, (matched, stroke) in product(ends, ARCHS, strokes):
        style = {"color": COLOURS[arch], "linestyle": stroke, "linewidth": 0.7}
        lines = those(rows, arch=arch, depth=depth, kind="slice", matched=matched)
        for _, line in lines.groupby(["seed", "direction"]):
            axis.plot(line["a"], line["loss"], alpha=0.7, **style)
        axis.set(title=f"depth {depth}", yscale="log", xlabel="along the direction, a")
    shallow.set_ylabel("training loss, nats")
    draw_planes(figure, planes, those(rows, kind="plane"))
    for axis, arch in zip(planes, ARCHS, strict=True):
        axis.set_title(f"{arch} {depths[1]}")
    handles = {arch: {"color": COLOURS[arch]} for arch in ARCHS}
    if len(those(rows, matched=1)):
        label = "the better one, earlier, at the other's loss"
        handles[label] = {"color": GREY, "linestyle": DASHES}
    return finish(
        figure,
        f"Loss along random directions scaled filter by filter, {rows['seed'].nunique()} seeds; "
        "right: two directions at once, one seed",
        handles,
    )


def draw_planes(figure: Figure, axes: Sequence[Any], rows: pd.DataFrame) -> None:
    """The loss over two directions, a panel a network, on one logarithmic scale."""
    if not len(rows):
        return  # no network was measured over a plane
    losses = rows["loss"].where(np.isfinite(rows["loss"])).clip(lower=1e-6)
    levels = np.geomspace(losses.min(), 1.001 * losses.max(), 12)
    style: dict[str, Any] = {"levels": levels, "norm": "log", "cmap": "viridis"}
    for axis, arch in zip(axes, ARCHS, strict=True):
        grid = those(rows, arch=arch).pivot(index="b", columns="a", values="loss")
        if len(grid):  # the first seed has both networks
            filled = axis.contourf(grid.columns, grid.index, grid.clip(lower=1e-6), **style)
        axis.set(xlabel="a", ylabel="b", aspect="equal")
    where: dict[str, Any] = {"location": "bottom", "aspect": 40}
    bar = figure.colorbar(filled, ax=axes, label="training loss, nats", **where)
    ticks = [10.0**power for power in range(-6, 4)]
    bar.set_ticks([tick for tick in ticks if levels[0] <= tick <= levels[-1]])
    bar.minorticks_off()
