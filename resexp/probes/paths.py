"""Paths: a network of n residual blocks unravelled into 2^n, each block passed or skipped.

A path of length k passes k branches. Its gradient is the loss gradient at the first block's input
when, going back, k chosen blocks let it through their branch alone and the others through their
shortcut alone; ReLUs after the additions count in both. Two numbers for each k:

- ``norm``: the mean norm of a path's gradient over random paths of that length (Veit et al.);
  times the number of paths, C(n, k), and divided by the sum over k, it is ``weight``;
- ``share``: <G_k, G> / |G|^2, G_k the sum of the gradients of all C(n, k) paths, G the whole: what
  length k adds to the gradient once paths cancel. Exact, by recursion; shares add up to 1.

Both of networks at the start and trained, and with the batch's statistics of normalisation as well
as the running ones, which make normalisation do nothing at the start. Training makes the decay or
deepens it: what one learns about paths at the start is another slope, and may be of another sign.

Signs: slope is of log10 norm by k, below 0 longer paths carry less. The mean length by weight is
compared with n/2, that of all paths.

The rule, on trained networks with the batch's statistics, at least three: slope below 0 and mean
length by weight below n/2 in every one: supported. Both not below in every one: not supported. Else
inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.models.blocks import Block
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
)
from resexp.randomness import words
from resexp.settings import Arch, Merge, Twin, UsageError

CLAIM = "In a trained residual network the short paths carry the gradient."
SOURCE = "Veit et al. 2016, section 4.3"
NEEDS = Needs.settings
USUAL = ["depth=20", "arch=residual", "seed=0,1,2"]

IMAGES = 32
SEEDS = 3
DRAWS = 6  # random paths of each length
STATISTICS = ("running", "batch")  # running first: the batch's change them
BAND = 0.9  # of the weight, that the band of lengths holds
PATHS = b"paths"


@dataclass(slots=True)
class Step:
    """One block of a forward pass, cut out: its input, branch, shortcut and output."""

    x: Tensor
    branch: Tensor
    carried: Tensor
    total: Tensor  # a leaf: the sum of both
    y: Tensor


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Networks of one depth at the start and trained."""
    chosen = watched(cases)
    rows: list[dict[str, Cell]] = []
    for done, case in enumerate(chosen):
        settings, data = case.settings, load(case.settings)
        batch = some_images(settings, data, IMAGES)
        for half, when in enumerate(("start", "end")):
            tell(2 * done + half, 2 * len(chosen), f"{case.arch} {settings.depth}, {when}")
            if when == "start":
                network = at_start(settings, data)
            elif case.checkpoint is not None:
                network = trained(case, data)
            else:
                network = list(snapshots(settings, data, [settings.steps]))[-1][1]
            place: dict[str, Cell] = {
                "arch": case.arch,
                "depth": settings.depth,
                "seed": settings.seed,
                "when": when,
            }
            for statistics in STATISTICS:
                network.train(statistics == "batch")
                found = lengths(network, *batch)
                rows += [place | {"statistics": statistics} | row for row in found]
    return concluded(rows)


def watched(cases: Sequence[Case]) -> list[Case]:
    """Residual cases of one depth: the deepest with a checkpoint, or the first of at least 20."""
    fit = [
        case
        for case in cases
        if case.settings.twin is Twin.none and case.settings.arch == Arch(merge=Merge.residual)
    ]
    if not fit:
        raise UsageError("paths unravels residual networks. Choose arch=residual.")
    kept = [case.settings.depth for case in fit if case.checkpoint is not None]
    depths = sorted({case.settings.depth for case in fit})
    depth = max(kept) if kept else next((one for one in depths if one >= 20), depths[-1])
    seeds = {case.settings.seed: case for case in reversed(fit) if case.settings.depth == depth}
    return [seeds[seed] for seed in sorted(seeds)[:SEEDS]]


def lengths(network: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Cell]]:
    """A row for each length of path, in the network's present mode."""
    steps, at_end = unravelled(network, images, labels)
    n = len(steps)
    totals = by_length(steps, at_end)
    whole = torch.stack(totals).sum(0)
    norms = [
        sum(path(steps, at_end, chosen).norm().item() for chosen in some) / len(some)
        for some in (drawn(n, k) for k in range(n + 1))
    ]
    weights = weighed(norms)
    return [
        {
            "blocks": n,
            "k": k,
            "norm": norms[k],
            "paths_share": math.comb(n, k) / 2**n,
            "weight": weights[k],
            "share": ((totals[k] * whole).sum() / whole.square().sum()).item(),
        }
        for k in range(n + 1)
    ]


def unravelled(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[list[Step], Tensor]:
    """The blocks of one forward pass, cut from each other, and dL/dx at the last one's output."""
    steps = []
    x = network.get_submodule("stem")(images).detach()
    for block in network.get_submodule("blocks").children():
        assert isinstance(block, Block)
        x = x.detach().requires_grad_()
        before = block.before(x)
        branch = block.branch(before)
        carried = block.merge.get_submodule("shortcut")(before)
        total = (branch + carried).detach().requires_grad_()
        steps.append(Step(x, branch, carried, total, block.after(total)))
        x = steps[-1].y
    x = x.detach().requires_grad_()
    logits = network.get_submodule("classifier")(network.get_submodule("end")(x).mean(dim=(2, 3)))
    (at_end,) = torch.autograd.grad(cross_entropy(logits, labels), x)
    return steps, at_end


def back(step: Step, at_y: Tensor, by_branch: bool) -> Tensor:
    """The gradient at a block's input that came by its branch, or by its shortcut, alone."""
    at_total = at_y
    if step.y is not step.total:  # something stands behind the addition
        (at_total,) = torch.autograd.grad(step.y, step.total, at_y, retain_graph=True)
    way = step.branch if by_branch else step.carried
    if way is step.x:
        return at_total
    (at_x,) = torch.autograd.grad(way, step.x, at_total, retain_graph=True)
    return at_x


def path(steps: Sequence[Step], at_end: Tensor, chosen: frozenset[int]) -> Tensor:
    """The gradient of one path, through the branches of the blocks ``chosen``, from 0."""
    gradient = at_end
    for at in reversed(range(len(steps))):
        gradient = back(steps[at], gradient, at in chosen)
    return gradient


def by_length(steps: Sequence[Step], at_end: Tensor) -> list[Tensor]:
    """The sum of the gradients of all paths of each length, from 0: block by block, all lengths."""
    sums = [at_end]
    for step in reversed(steps):
        skipped = [back(step, one, False) for one in sums]
        passed = [back(step, one, True) for one in sums]
        sums = [
            skipped[0],
            *(one + other for one, other in zip(skipped[1:], passed, strict=False)),
            passed[-1],
        ]
    return sums


def drawn(n: int, k: int) -> list[frozenset[int]]:
    """Random choices of k of n blocks, the same in every network; one where there is but one."""
    draws = min(DRAWS, math.comb(n, k))
    orders = (words(0, PATHS, 1000 * k + draw, n) for draw in range(draws))
    return [frozenset(np.argsort(order, kind="stable")[:k].tolist()) for order in orders]


def weighed(norms: Sequence[float]) -> list[float]:
    """Norms times the number of paths of their length, adding up to 1."""
    n = len(norms) - 1
    heavy = [math.comb(n, k) * norm for k, norm in enumerate(norms)]
    total = sum(heavy)
    return [one / total for one in heavy] if total > 0 else [math.nan] * len(heavy)


# --- numbers out of rows


def slope(norms: Sequence[float]) -> float:
    """Least squares of log10 norm by length; lengths whose gradient is exactly 0 are left out."""
    points = [(k, math.log10(norm)) for k, norm in enumerate(norms) if 0 < norm < math.inf]
    if len(points) < 2:
        return math.nan
    x = sum(k for k, _ in points) / len(points)
    y = sum(log for _, log in points) / len(points)
    return sum((k - x) * (log - y) for k, log in points) / sum((k - x) ** 2 for k, _ in points)


def band(weights: Sequence[float]) -> tuple[int, int]:
    """The shortest run of lengths that holds BAND of the weight, the first of several."""
    n = len(weights)
    runs = [
        (last - first, first, last)
        for first in range(n)
        for last in range(first, n)
        if sum(weights[first : last + 1]) >= BAND
    ]
    return min(runs)[1:] if runs else (0, n - 1)


def share_of_paths(n: int, first: int, last: int) -> float:
    """The share of the 2^n paths whose length is from ``first`` to ``last``."""
    return sum(math.comb(n, k) for k in range(first, last + 1)) / float(2**n)


def concluded(rows: list[dict[str, Cell]]) -> Finding:
    """The finding from all rows."""
    n = int(rows[0]["blocks"] or 0)
    numbers, bands = {"blocks": float(n)}, {}
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    seeds = sorted({int(row["seed"] or 0) for row in rows})
    for place in product(("start", "end"), STATISTICS):
        here = [row for row in rows if (row["when"], row["statistics"]) == place]
        average = [0.0] * (n + 1)
        found[place] = []
        for seed in seeds:
            one = [row for row in here if row["seed"] == seed]
            norms, weights, shares = (
                [float(row[column] or 0) for row in one] for column in ("norm", "weight", "share")
            )
            by_weight, by_share = (
                sum((k * part for k, part in enumerate(some)), 0.0) for some in (weights, shares)
            )
            found[place].append((slope(norms), by_weight, by_share))
            average = [a + w / len(seeds) for a, w in zip(average, weights, strict=True)]
        bands[place] = band(average)
        words = ("slope of log10 norm per block", "mean length by weight", "mean length by share")
        where = f"{place[0]}, {place[1]} statistics"
        for word, values in zip(words, zip(*found[place], strict=True), strict=True):
            numbers[f"{word}, {where}"] = sum(values) / len(values)
        numbers[f"share of paths that carry {BAND:.0%} of the weight, {where}"] = share_of_paths(
            n, *bands[place]
        )
    first, last = bands["end", "batch"]
    slopes = {
        place: 10 ** numbers[f"slope of log10 norm per block, {place[0]}, {place[1]} statistics"]
        for place in found
    }
    return Finding(
        judge([(one[0], one[1] - n / 2) for one in found["end", "batch"]]),
        f"trained, each branch on a path multiplies its gradient by {slopes['end', 'batch']:.2f}; "
        f"at the start by {slopes['start', 'batch']:.2f} with the batch's statistics and "
        f"{slopes['start', 'running']:.2f} with running ones; lengths {first} to {last} of {n}, "
        f"{share_of_paths(n, first, last):.1%} of the paths, carry {BAND:.0%} by norms (mean "
        f"{numbers['mean length by weight, end, batch statistics']:.1f}, of all "
        f"paths {n / 2:.1f}).",
        rows,
        numbers,
        [
            "norm: of the loss gradient at the first block's input by one path, mean over "
            f"{DRAWS} random paths of each length, the same in each network; slope below 0 (factor "
            "below 1): longer paths carry less",
            "weight: norm times the number of paths, without cancellation; share: exact part of "
            "the whole gradient, cancellation counted, may be negative; both add up to 1",
            "the verdict is of trained networks with the batch's statistics; at the start running "
            "statistics make normalisation do nothing",
            f"{IMAGES} training images, one batch, depth {rows[0]['depth']}; seeds "
            f"{', '.join(map(str, seeds))}; blocks that change shapes count: their shortcut passes "
            "every second pixel",
        ],
    )


def judge(trained: Sequence[tuple[float, float]]) -> Verdict:
    """The rule in the module's docstring: (slope, mean length - n/2) of each trained network."""
    if len(trained) < SEEDS:
        return Verdict.inconclusive
    if all(slope < 0 and beyond < 0 for slope, beyond in trained):
        return Verdict.supported
    if all(slope >= 0 and beyond >= 0 for slope, beyond in trained):
        return Verdict.not_supported
    return Verdict.inconclusive
