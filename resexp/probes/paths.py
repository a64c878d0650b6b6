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

Then training on short paths alone, as Veit et al. trained 23 of 54 blocks: in each step the
gradient passes the branches of as large a share of the blocks, drawn anew from (seed, step), and
the others by their shortcuts alone; nothing changes on the way forward. Final error and loss are
compared with ordinary training from the same weights on the same batches.

Signs: slope is of log10 norm by k, below 0 longer paths carry less. The mean length by weight is
compared with n/2, that of all paths. Differences are training on short paths less ordinary: above 0
it is worse.

The rule, on trained networks with the batch's statistics, at least three: slope below 0 and mean
length by weight below n/2 in every one: supported. Both not below in every one: not supported. Else
inconclusive. Training on short paths is reported, not judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import least_squares, paired_t
from resexp.models.blocks import Block
from resexp.probes import (
    Case,
    Cell,
    Finding,
    Needs,
    Tell,
    Verdict,
    at_start,
    ended,
    load,
    scored,
    some_images,
)
from resexp.randomness import words
from resexp.settings import Arch, Merge, Settings, Twin, UsageError
from resexp.train.fit import begin, fit

CLAIM = "In a trained residual network the short paths carry the gradient."
SOURCE = "Veit et al. 2016, section 5"
NEEDS = Needs.settings
USUAL = ["depth=20", "arch=residual", "seed=0,1,2"]

IMAGES = 32
SEEDS = 3
DRAWS = 6  # random paths of each length
STATISTICS = ("running", "batch")  # running first: the batch's change them
BAND = 0.9  # of the weight, that the band of lengths holds
PATHS = b"paths"
FEW = b"few"
PART = 23 / 54  # of the blocks, whose branches pass the gradient in a step

Cells = dict[str, Cell]


@dataclass(slots=True)
class Step:
    """One block of a forward pass, cut out: its input, branch, shortcut and output."""

    x: Tensor
    branch: Tensor
    carried: Tensor
    total: Tensor  # a leaf: the sum of both
    y: Tensor


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Lengths in networks of one depth, at the start and trained; then training on short paths."""
    chosen, retrained = watched(cases)
    work = [(case, when) for case in chosen for when in ("start", "end")]
    rows: list[Cells] = []
    for done, (case, when) in enumerate(work):
        settings, data = case.settings, load(case.settings)
        tell(done, len(work) + len(retrained), f"{case.arch} {settings.depth}, {when}")
        network = at_start(settings, data) if when == "start" else ended(case)
        batch = some_images(settings, data, IMAGES)
        for statistics in STATISTICS:
            network.train(statistics == "batch")
            place = place_of(case, "length") | {"when": when, "statistics": statistics}
            rows += [place | row for row in lengths(network, *batch)]
    for done, case in enumerate(retrained, start=len(work)):
        tell(done, len(work) + len(retrained), f"training {case.settings.depth} on short paths")
        rows += short_and_ordinary(case)
    return concluded(rows)


def place_of(case: Case, kind: str) -> Cells:
    settings = case.settings
    return {"kind": kind, "arch": case.arch, "depth": settings.depth, "seed": settings.seed}


def watched(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Residual cases, SEEDS of one depth each: those to unravel, and those to train again.

    The deepest that have checkpoints, or else the same as the others: the first of at least 20.
    """
    fit = [
        case
        for case in cases
        if case.settings.twin is Twin.none and case.settings.arch == Arch(merge=Merge.residual)
    ]
    if not fit:
        raise UsageError("paths unravels residual networks. Choose arch=residual.")

    def of(depth: int) -> list[Case]:
        seeds = {case.settings.seed: case for case in reversed(fit) if case.settings.depth == depth}
        return [seeds[seed] for seed in sorted(seeds)[:SEEDS]]

    kept = [case.settings.depth for case in fit if case.checkpoint is not None]
    depths = sorted({case.settings.depth for case in fit})
    usual = next((one for one in depths if one >= 20), depths[-1])
    return of(max(kept, default=usual)), of(usual)


def lengths(network: nn.Module, images: Tensor, labels: Tensor) -> list[Cells]:
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
            "train_loss": None,
            "test_error_percent": None,
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


# --- training on short paths


def short_and_ordinary(case: Case) -> list[Cells]:
    """A row for the network trained on short paths, and one for the same trained as usual."""
    network = ended(case)
    n = len(list(network.get_submodule("blocks").children()))
    few = round(PART * n)
    found = {n: network, few: on_short_paths(case.settings, few)}
    return [
        place_of(case, "training")
        | {"when": "end", "statistics": None, "blocks": n, "k": k}
        | dict.fromkeys(("norm", "paths_share", "weight", "share"))
        | scored(case.settings, network)
        for k, network in found.items()
    ]


def on_short_paths(settings: Settings, k: int) -> nn.Module:
    """The network, trained with the gradient passing ``k`` of the branches in each step."""
    data = load(settings)
    state = begin(at_start(settings, data), settings)
    blocks = list(state.network.get_submodule("blocks").children())

    def stop(branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        chosen = few(settings.seed, state.step, len(blocks), k)
        passes = any(blocks[at].branch is branch for at in chosen)
        return output if passes else output.detach()

    handles = [block.get_submodule("branch").register_forward_hook(stop) for block in blocks]
    for _ in fit(state, replace(settings, eval_every=settings.steps), data):
        pass
    for handle in handles:
        handle.remove()
    return state.network


def few(seed: int, step: int, n: int, k: int) -> list[int]:
    """The ``k`` of n branches, from 0, that pass the gradient in the step after ``step`` steps."""
    return [int(at) for at in np.argsort(words(seed, FEW, step, n), kind="stable")[:k]]


# --- numbers out of rows


def slope(norms: Sequence[float]) -> float:
    """Least squares of log10 norm by length; lengths whose gradient is exactly 0 are left out."""
    return least_squares(
        [(k, math.log10(norm)) for k, norm in enumerate(norms) if 0 < norm < math.inf]
    )


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


def of_seeds(rows: Sequence[Cells], when: str, statistics: str) -> list[list[Cells]]:
    """The rows of lengths in each seed's network, by rising length."""
    found: dict[Cell, list[Cells]] = {}
    for row in rows:
        if (row["kind"], row["when"], row["statistics"]) == ("length", when, statistics):
            found.setdefault(row["seed"], []).append(row)
    return list(found.values())


def column(rows: Sequence[Cells], name: str) -> list[float]:
    return [float(row[name] or 0) for row in rows]


def mean_length(weights: Sequence[float]) -> float:
    return sum((k * weight for k, weight in enumerate(weights)), 0.0)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def concluded(rows: list[Cells]) -> Finding:
    """The finding from all rows."""
    n = int(rows[0]["blocks"] or 0)
    numbers = {"blocks": float(n)}
    for when, statistics in product(("start", "end"), STATISTICS):
        found, where = of_seeds(rows, when, statistics), f"{when}, {statistics} statistics"
        weights = [column(one, "weight") for one in found]
        numbers |= {
            f"slope of log10 norm per block, {where}": mean(
                [slope(column(one, "norm")) for one in found]
            ),
            f"mean length by weight, {where}": mean([mean_length(some) for some in weights]),
            f"mean length by share, {where}": mean(
                [mean_length(column(one, "share")) for one in found]
            ),
            f"share of paths that carry {BAND:.0%} of the weight, {where}": share_of_paths(
                n, *band([mean(some) for some in zip(*weights, strict=True)])
            ),
        }
    first, last = band([mean(some) for some in zip(*weights, strict=True)])  # trained, the batch's

    def factor(when: str, statistics: str) -> float:
        return float(
            10 ** numbers[f"slope of log10 norm per block, {when}, {statistics} statistics"]
        )

    numbers |= (trained := against_ordinary(rows))
    k, m, depth = (rows[-1][name] for name in ("k", "blocks", "depth"))
    short, usual, less, low, high = list(trained.values())[:5]
    return Finding(
        judge(
            [
                (slope(column(one, "norm")), mean_length(column(one, "weight")) - n / 2)
                for one in found
            ]
        ),
        f"trained, each branch on a path multiplies its gradient by {factor('end', 'batch'):.2f}; "
        f"at the start by {factor('start', 'batch'):.2f} with the batch's statistics and "
        f"{factor('start', 'running'):.2f} with running ones; lengths {first} to {last} of {n}, "
        f"{share_of_paths(n, first, last):.1%} of the paths, carry {BAND:.0%} by norms (mean "
        f"{numbers['mean length by weight, end, batch statistics']:.1f}, of all "
        f"paths {n / 2:.1f}); with the gradient through {k} of {m} branches a step "
        f"residual-{depth} trains to {short:.1f} percent test error for {usual:.1f} "
        f"({less:+.1f}, 95 % interval {low:+.1f} to {high:+.1f}).",
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
            f"{', '.join(map(str, sorted({int(row['seed'] or 0) for row in rows})))}; blocks that "
            "change shapes count: their shortcut passes every second pixel",
            f"short paths: at depth {depth} the gradient passes {k} of {m} branches in a step (23 "
            "of 54 in the paper), drawn anew from (seed, step), the forward pass unchanged; what "
            "it does not pass keeps its decay and momentum; test error in percent, training loss "
            "in nats, evaluation mode; short less ordinary, paired by seed: above 0 is worse",
        ],
    )


def against_ordinary(rows: Sequence[Cells]) -> dict[str, float]:
    """Means over seeds of training on short paths and as usual, and paired differences."""
    training = [row for row in rows if row["kind"] == "training"]
    pairs = [
        (one, other)
        for one in training
        for other in training
        if one["seed"] == other["seed"] and one["k"] != one["blocks"] == other["k"]
    ]
    numbers: dict[str, float] = {}
    for name, key in {"percent, test error": "test_error_percent", "nats": "train_loss"}.items():
        short, usual = (
            column([one for one, _ in pairs], key),
            column([one for _, one in pairs], key),
        )
        less = paired_t([a - b for a, b in zip(short, usual, strict=True)])
        numbers |= {
            f"{name}, short paths": mean(short),
            f"{name}, ordinary": mean(usual),
            f"{name}, short paths less ordinary": less.mean,
            f"{name}, short paths less ordinary, low": less.low,
            f"{name}, short paths less ordinary, high": less.high,
        }
    return numbers


def judge(trained: Sequence[tuple[float, float]]) -> Verdict:
    """The rule in the module's docstring: (slope, mean length - n/2) of each trained network."""
    if len(trained) < SEEDS:
        return Verdict.inconclusive
    if all(slope < 0 and beyond < 0 for slope, beyond in trained):
        return Verdict.supported
    if all(slope >= 0 and beyond >= 0 for slope, beyond in trained):
        return Verdict.not_supported
    return Verdict.inconclusive
