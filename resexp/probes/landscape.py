"""The loss around trained networks, along random directions scaled filter by filter.

A direction d is normal and then, for each filter of a convolution and each row of the classifier,
scaled to the norm of the weights there; normalisation's parameters and biases stay (Li et al. 2018,
section 4). f(a) = L(w + a d), a from -1 to 1, and f(a, b) along two directions, on fixed
training images, in training mode: normalisation has their statistics at every point. Numbers:

- ``roughness``: the sum of |second differences| of g = log10(1 + f) at the points, over the range
  of g; for a straight line 0, for one kink its change of slope over the range, more for waves;
- ``minima``: points inside lower than both neighbours; ``width``: the part of a from -1 to 1 where
  f is below twice its least value;
- ``lambda_max`` and ``lambda_min``: extreme eigenvalues of the loss's Hessian, by Lanczos.

A slice that is not convex proves that the loss is not; one that is convex proves nothing. Losses
at the middle differ between networks, and with them the slices: they are told. So at the greatest
depth, for each seed, the network with the lower loss is trained anew up to the loss that the
other ended with, as near as every second step comes, and sliced there (``matched``).

The rule, by the median roughness over directions, at least three seeds: plain above residual at
the greatest depth in every seed, and the mean difference at the least depth smaller than half of
the one there: supported. Plain below residual at the greatest depth in every seed: not supported.
Else inconclusive. It goes by networks at the end of training; at matched loss is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.probes import (
    Case,
    Cell,
    Finding,
    Needs,
    Tell,
    Verdict,
    at_start,
    load,
    snapshots,
    some_images,
    trained,
    twins,
)

CLAIM = "Without skips the loss around a deep network is rough, with them as smooth as a shallow's."
SOURCE = "Li et al. 2018, section 5"
NEEDS = Needs.trained
USUAL: list[str] = []

IMAGES = 256
CURVATURE_IMAGES = 64
SEEDS = 3
DIRECTIONS = 3
POINTS = 21  # of a 1-D slice
GRID = 9  # points a side of a 2-D slice, of the first seed's deepest networks
ITERATIONS = 10  # of Lanczos
EVERY = 2  # steps between losses on the way to a matched one


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Slices of the shallowest and the deepest networks that are plain and residual."""
    chosen = twins(cases, "landscape", SEEDS)
    depths = {depth for arch, depth, _ in chosen if arch == "plain"}
    depths &= {depth for arch, depth, _ in chosen if arch == "residual"}
    deep = max(depths)
    chosen = {place: case for place, case in chosen.items() if place[1] in (min(depths), deep)}
    first = min(seed for _, _, seed in chosen)
    losses: dict[tuple[str, int, int], float] = {}
    rows: list[dict[str, Cell]] = []
    for done, ((arch, depth, seed), case) in enumerate(chosen.items()):
        tell(done, len(chosen), f"{arch} {depth}, seed {seed}")
        data = load(case.settings)
        network = trained(case, data).train()
        images, labels = some_images(case.settings, data, IMAGES)
        place: dict[str, Cell] = {"arch": arch, "depth": depth, "seed": seed}
        losses[arch, depth, seed] = at(network, [], [], images, labels)
        rows += [place | row for row in slices(network, images, labels)]
        if (depth, seed) == (deep, first):
            rows += [place | row for row in plane(network, images, labels)]
        some = slice(None, None, max(1, IMAGES // CURVATURE_IMAGES))
        least, most = curvature(network, images[some], labels[some])
        rows.append(place | cell("curvature", lambda_min=least, lambda_max=most))
    for seed in sorted({seed for _, _, seed in chosen}):
        pair = [
            (losses[place], case) for place, case in chosen.items() if place[1:] == (deep, seed)
        ]
        tell(len(chosen) - 1, len(chosen), f"depth {deep} at equal loss, seed {seed}")
        if len(pair) == 2:
            rows += at_equal_loss(*sorted(pair, key=lambda one: one[0]))
    return concluded(rows)


def at_equal_loss(lower: tuple[float, Case], higher: tuple[float, Case]) -> list[dict[str, Cell]]:
    """Slices of the better network where, on its way, its loss was nearest the other's last."""
    (_, case), (target, _) = lower, higher
    settings, data = case.settings, load(case.settings)
    images, labels = some_images(settings, data, IMAGES)
    off, nearest, at_step = math.inf, at_start(settings, data), 0
    for step, network in snapshots(settings, data, range(0, settings.steps + 1, EVERY)):
        loss = at(network.train(), [], [], images, labels)
        if abs(loss - target) < off:
            off, nearest, at_step = abs(loss - target), network, step
        if loss < target:
            break
    place: dict[str, Cell] = {"arch": case.arch, "depth": settings.depth, "seed": settings.seed}
    kind: dict[str, Cell] = {"kind": "matched", "step": at_step}
    return [place | row | kind for row in slices(nearest.train(), images, labels)]


def slices(network: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Cell]]:
    """f along each direction."""
    weights = filters(network)
    return [
        cell("slice", direction=number, a=a, loss=loss)
        for number in range(DIRECTIONS)
        for d in [direction(weights, number)]
        for a in points(POINTS)
        for loss in [at(network, weights, [(a, d)], images, labels)]
    ]


def plane(network: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Cell]]:
    """f along the first two directions at once."""
    weights = filters(network)
    first, second = direction(weights, 0), direction(weights, 1)
    side = points(GRID)
    return [
        cell(
            "plane", a=a, b=b, loss=at(network, weights, [(a, first), (b, second)], images, labels)
        )
        for a in side
        for b in side
    ]


def points(count: int) -> list[float]:
    """Evenly spaced from -1 to 1; of an odd number the middle one is exactly 0."""
    return [2 * number / (count - 1) - 1 for number in range(count)]


def filters(network: nn.Module) -> list[Tensor]:
    """The weights that directions move: of convolutions and the classifier."""
    return [parameter for parameter in network.parameters() if parameter.dim() > 1]


def direction(weights: Sequence[Tensor], number: int) -> list[Tensor]:
    """The ``number``-th random direction, each filter as long as the weights' own."""
    generator = torch.Generator().manual_seed(number)
    found = []
    for weight in weights:
        d = torch.randn(weight.shape, generator=generator).to(weight).flatten(1)
        own = weight.detach().flatten(1).norm(dim=1, keepdim=True)
        found.append((d / d.norm(dim=1, keepdim=True) * own).view_as(weight))
    return found


@torch.no_grad()
def at(
    network: nn.Module,
    weights: Sequence[Tensor],
    moves: Sequence[tuple[float, Sequence[Tensor]]],
    images: Tensor,
    labels: Tensor,
) -> float:
    """The loss with the weights moved by a times d for each (a, d); they are put back."""
    saved = [weight.clone() for weight in weights]
    for a, d in moves:
        for weight, part in zip(weights, d, strict=True):
            weight.add_(part, alpha=a)
    try:
        return cross_entropy(network(images), labels).item()
    finally:
        for weight, old in zip(weights, saved, strict=True):
            weight.copy_(old)


# --- curvature


def curvature(
    network: nn.Module, images: Tensor, labels: Tensor, iterations: int = ITERATIONS
) -> tuple[float, float]:
    """The least and the greatest eigenvalue of the Hessian in all parameters, by Lanczos."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(
        cross_entropy(network(images), labels), parameters, create_graph=True
    )
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
        for _ in range(2):
            for one in basis:
                vector = vector - (vector @ one) * one
        norm = vector.norm().item()
        if len(diagonal) == iterations or norm < 1e-6 * abs(diagonal[0]):
            break
        beside.append(norm)
        basis.append(vector / norm)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for index, value in enumerate(beside[: len(diagonal) - 1]):
        matrix[index, index + 1] = matrix[index + 1, index] = value
    if not matrix.isfinite().all():
        return math.nan, math.nan
    values = torch.linalg.eigvalsh(matrix)
    return values[0].item(), values[-1].item()


# --- numbers out of rows


def cell(
    kind: str,
    *,
    direction: int | None = None,
    a: float | None = None,
    b: float | None = None,
    loss: float | None = None,
    lambda_min: float | None = None,
    lambda_max: float | None = None,
) -> dict[str, Cell]:
    return {
        "kind": kind,
        "step": None,  # where not the last
        "direction": direction,
        "a": a,
        "b": b,
        "loss": loss,
        "lambda_min": lambda_min,
        "lambda_max": lambda_max,
    }


def roughness(losses: Sequence[float]) -> float:
    """Of one slice: the sum of |second differences| of log10(1 + f) over its range."""
    g = [math.log10(1 + loss) for loss in losses]
    spread = max(g) - min(g)
    bends = sum(abs(x - 2 * y + z) for x, y, z in zip(g, g[1:], g[2:], strict=False))
    return bends / spread if spread > 0 else math.nan


def minima(losses: Sequence[float]) -> int:
    """Points inside a slice that are lower than both neighbours."""
    return sum(x > y < z for x, y, z in zip(losses, losses[1:], losses[2:], strict=False))


def width(losses: Sequence[float]) -> float:
    """The share of a slice's points below twice its least loss, times its length of 2."""
    return 2 * sum(loss < 2 * min(losses) for loss in losses) / len(losses)


def by_seed(
    rows: Sequence[dict[str, Cell]],
    arch: str,
    depth: int,
    number: Callable[[list[float]], float],
    kind: str = "slice",
) -> list[float]:
    """The median over directions of a slice's number, for each seed."""
    found: dict[Cell, dict[Cell, list[float]]] = {}
    for row in rows:
        if (row["arch"], row["depth"], row["kind"]) == (arch, depth, kind):
            one = found.setdefault(row["seed"], {}).setdefault(row["direction"], [])
            one.append(float(row["loss"] or 0))
    return [median(number(losses) for losses in seed.values()) for seed in found.values()]


def concluded(rows: list[dict[str, Cell]]) -> Finding:
    """The finding from all rows."""
    networks = sorted({(str(row["arch"]), int(row["depth"] or 0)) for row in rows})
    numbers: dict[str, float] = {}
    rough: dict[tuple[str, int], list[float]] = {}
    for arch, depth in networks:
        rough[arch, depth] = by_seed(rows, arch, depth, roughness)
        named = {"roughness": roughness, "minima": minima, "width": width, "loss": middle}
        for name, number in named.items():
            some = by_seed(rows, arch, depth, number)
            numbers[f"{name}, {arch} {depth}"] = sum(some) / len(some)
        for column in ("lambda_min", "lambda_max"):
            values = [
                float(row[column] or 0)
                for row in rows
                if (row["arch"], row["depth"], row["kind"]) == (arch, depth, "curvature")
            ]
            numbers[f"{column}, {arch} {depth}"] = sum(values) / len(values)
    depths = [depth for arch, depth in networks if arch == "plain"]
    told = "; ".join(
        f"{arch}-{depth} {numbers[f'roughness, {arch} {depth}']:.2f} (loss "
        f"{numbers[f'loss, {arch} {depth}']:.3f})"
        for arch, depth in networks
    )
    equal = ""
    for arch, depth in networks:
        if matched := by_seed(rows, arch, depth, roughness, "matched"):
            there = by_seed(rows, arch, depth, middle, "matched")
            rougher, loss = sum(matched) / len(matched), sum(there) / len(there)
            numbers[f"roughness, {arch} {depth} at equal loss"] = rougher
            numbers[f"loss, {arch} {depth} at equal loss"] = loss
            equal += f"; on its way, at the other's loss ({loss:.3f}), {arch}-{depth} {rougher:.2f}"
    seeds = sorted({int(row["seed"] or 0) for row in rows})
    return Finding(
        judge(rough, depths[0], depths[-1]),
        f"median roughness of slices through trained networks: {told}{equal}.",
        rows,
        numbers,
        [
            f"roughness: sum of |second differences| of log10(1 + loss) at {POINTS} points, over "
            "the range: higher is rougher; width in units of a, from -1 to 1; losses in nats",
            f"{DIRECTIONS} directions of torch's generator seeded 0 to {DIRECTIONS - 1}, scaled "
            "filter by filter, normalisation and biases not moved",
            f"{IMAGES} training images, one batch, normalisation by its statistics at every point; "
            f"seeds {', '.join(map(str, seeds))}",
            f"eigenvalues: Lanczos, {ITERATIONS} products, {CURVATURE_IMAGES} images: bounds from "
            "inside; lambda_min below 0: not convex there",
            "the verdict compares networks at the losses that they reached; equal loss: the better "
            f"of the two deepest trained anew, where, looked at every {EVERY} steps, it came "
            "nearest the other's last loss on these images: a younger network, at its rate then",
        ],
    )


def middle(losses: list[float]) -> float:
    """The loss at the network itself."""
    return losses[len(losses) // 2]


def judge(rough: dict[tuple[str, int], list[float]], shallow: int, deep: int) -> Verdict:
    """The rule in the module's docstring, on the roughness of each seed by (arch, depth)."""
    plain, residual = rough["plain", deep], rough["residual", deep]
    if min(len(plain), len(residual)) < SEEDS or shallow == deep:
        return Verdict.inconclusive

    def apart(depth: int) -> float:
        one, other = rough["plain", depth], rough["residual", depth]
        return sum(one) / len(one) - sum(other) / len(other)

    pairs = list(zip(plain, residual, strict=True))
    if all(p > r for p, r in pairs) and abs(apart(shallow)) < apart(deep) / 2:
        return Verdict.supported
    if all(p < r for p, r in pairs):
        return Verdict.not_supported
    return Verdict.inconclusive
