"""Paths: a network of n residual blocks unravelled into 2^n, each block passed or skipped.

A path of length k passes k branches. Its gradient is the loss gradient at the first block's input
when, going back, k chosen blocks let it through their branch alone and the others through their
shortcut alone; ReLUs after the additions count in both. Two numbers for each k:

- ``norm``: the mean norm of a path's gradient over random paths of that length (Veit et al.);
  times the number of paths, C(n, k), and divided by the sum over k, it is ``weight``;
- ``share``: <G_k, G> / |G|^2, G_k the sum of the gradients of all C(n, k) paths, G the whole: what
  length k adds to the gradient once paths cancel. Exact, by recursion; shares add up to 1.

Both at the start and trained, with the batch's statistics of normalisation and with the running
ones, which make it do nothing at the start. The slope is of log10 norm by k: below 0, longer paths
carry less; 10 to its power is the factor of a branch. Blocks that change shapes count: their
shortcut passes every second pixel. What training on short paths comes to: the probe short_paths.

The rule, on trained networks with the batch's statistics, at least three: slope below 0 and mean
length by weight below n/2 in every one: supported. Both not below in every one: not supported. Else
inconclusive. Residual networks alone have paths to compare, so nothing is said of plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import least_squares, paired_t
from resexp.models.blocks import Block
from resexp.probes import Account, Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import ENOUGH, decades, mean, seeds_of, those
from resexp.randomness import words

CLAIM = "In a trained residual network the short paths carry the gradient."
SOURCE = "Veit et al. 2016, section 5"
TEXTBOOK = (
    "A path's gradient falls exponentially with its length; 5 to 17 of 54 blocks, 0.45 % of the "
    "paths, carry most."
)
NEEDS = Needs.settings
USUAL = ["depth=20", "arch=residual", "seed=0,1,2"]

IMAGES = 32
SEEDS = 5
DRAWS = 6  # random paths of each length
STATISTICS = ("running", "batch")  # running first: the batch's change them
BAND = 0.9  # of the weight, that the band of lengths holds


@dataclass(slots=True)
class Step:
    """One block of a forward pass, cut out: its input, branch, shortcut and output."""

    x: Tensor
    branch: Tensor
    carried: Tensor
    total: Tensor  # a leaf: the sum of both
    y: Tensor


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """Every length in networks of one depth, at the start and trained."""
    for case, when in tell([*product(deepest(cases, "paths"), ("start", "end"))]):
        settings, data = case.settings, nets.load(case.settings)
        network = nets.at_start(settings, data) if when == "start" else nets.ended(case)
        batch = nets.some_images(settings, data, IMAGES)
        for statistics in STATISTICS:
            network.train(statistics == "batch")
            place = case.place() | {"when": when, "statistics": statistics}
            yield from (place | row for row in lengths(network, *batch))


def deepest(cases: Sequence[Case], name: str) -> list[Case]:
    """Residual cases of one depth: the greatest with checkpoints, or else the smallest >= 20.

    Raises UsageError, on behalf of the probe ``name``, if there is none.
    """
    refusal = f"{name} unravels residual networks. Choose arch=residual."
    fit = nets.chosen(cases, lambda case: case.kind() == "residual", refusal)
    kept = [case.depth for case in fit if case.checkpoint is not None]
    depth = max(kept, default=nets.usual_depth(case.depth for case in fit))
    return nets.first_seeds(fit, depth, SEEDS)


def lengths(network: nn.Module, images: Tensor, labels: Tensor) -> list[Row]:
    """The numbers of each length of path, in the network's present mode."""
    steps, at_end = unravelled(network, images, labels)
    n, totals, norms = len(steps), by_length(steps, at_end), []
    whole = torch.stack(totals).sum(0)
    for k in range(n + 1):
        draws = range(min(DRAWS, math.comb(n, k)))  # the same paths in every network
        some = [path(steps, at_end, pick(0, b"paths", 1000 * k + draw, n, k)) for draw in draws]
        norms.append(mean(one.norm().item() for one in some))
    return [
        {
            "blocks": n,
            "k": k,
            "norm": norms[k],
            "paths_share": share_of_paths(n, k, k),
            "weight": weight,
            "share": ((totals[k] * whole).sum() / whole.square().sum()).item(),
        }
        for k, weight in enumerate(weighed(norms))
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
    if step.y is not step.total:  # something stands behind the addition
        (at_y,) = torch.autograd.grad(step.y, step.total, at_y, retain_graph=True)
    way = step.branch if by_branch else step.carried
    if way is step.x:
        return at_y
    return torch.autograd.grad(way, step.x, at_y, retain_graph=True)[0]


def path(steps: Sequence[Step], at_end: Tensor, chosen: Collection[int]) -> Tensor:
    """The gradient of one path, through the branches of the blocks ``chosen``, from 0."""
    for at, step in reversed([*enumerate(steps)]):
        at_end = back(step, at_end, at in chosen)
    return at_end


def by_length(steps: Sequence[Step], at_end: Tensor) -> list[Tensor]:
    """The sum of the gradients of all paths of each length, from 0: block by block, all lengths."""
    sums = [at_end]
    for step in reversed(steps):
        skipped = [back(step, one, False) for one in sums]
        passed = [back(step, one, True) for one in sums]
        none = torch.zeros_like(skipped[0])
        sums = [one + other for one, other in zip([*skipped, none], [none, *passed], strict=True)]
    return sums


def pick(seed: int, purpose: bytes, count: int, n: int, k: int) -> list[int]:
    """Which ``k`` of n blocks, from 0: the ``count``-th random choice of this seed and purpose."""
    return [int(at) for at in np.argsort(words(seed, purpose, count, n), kind="stable")[:k]]


def weighed(norms: Sequence[float]) -> list[float]:
    """Norms times the number of paths of their length, adding up to 1; nan if all are 0."""
    heavy = [math.comb(len(norms) - 1, k) * norm for k, norm in enumerate(norms)]
    return [one / (sum(heavy) or math.nan) for one in heavy]


def slope(norms: pd.Series[float]) -> float:
    """Least squares of log10 norm by length; lengths whose gradient is exactly 0 are left out."""
    some = decades(norms[norms < math.inf]).dropna()
    return least_squares(list(zip(some.index, some, strict=True)))


def band(weights: Collection[float]) -> tuple[int, int]:
    """The shortest run of lengths that holds BAND of the weight, the first of several."""
    for width in range(1, len(weights)):
        enough = np.convolve(list(weights), np.ones(width), "valid") >= BAND
        if enough.any():
            return int(enough.argmax()), int(enough.argmax()) + width - 1
    return 0, len(weights) - 1


def share_of_paths(n: int, first: int, last: int) -> float:
    """The share of the 2^n paths whose length is from ``first`` to ``last``."""
    return sum(math.comb(n, k) for k in range(first, last + 1)) / float(2**n)


def conclude(rows: pd.DataFrame) -> Finding:
    """Slopes and mean lengths, and the rule in the module's docstring."""
    n, depth = (int(rows[name].iloc[0]) for name in ("blocks", "depth"))
    numbers, slopes = {"blocks": float(n)}, {}
    for when, statistics in product(("start", "end"), STATISTICS):  # last, what is judged
        some = those(rows, when=when, statistics=statistics)
        norm, weight, share = (
            some.pivot(index="k", columns="seed", values=name)
            for name in ("norm", "weight", "share")
        )
        slopes[when, statistics] = fall = norm.apply(slope)
        length = weight.mul(weight.index, axis=0).sum(skipna=False)
        first, last = band(weight.mean(axis=1, skipna=False))
        carrying, at = share_of_paths(n, first, last), f"{when}, {statistics} statistics"
        numbers |= {
            f"slope of log10 norm per block, {at}": mean(fall),
            f"mean length by weight, {at}": mean(length),
            f"mean length by share, {at}": mean(share.mul(share.index, axis=0).sum(skipna=False)),
            f"share of paths that carry {BAND:.0%} of the weight, {at}": carrying,
        }
    factor = {place: 10 ** mean(some) for place, some in slopes.items()}
    return Finding(
        judge(list(zip(fall, length - n / 2, strict=True))),
        f"trained, each branch on a path multiplies its gradient by {factor['end', 'batch']:.2f}; "
        f"at the start by {factor['start', 'batch']:.2f} with the batch's statistics and "
        f"{factor['start', 'running']:.2f} with running ones; lengths {first} to {last} of {n}, "
        f"{carrying:.1%} of the paths, carry {BAND:.0%} by norms (mean "
        f"{mean(length):.1f}, of all paths {n / 2:.1f}).",
        numbers=numbers,
        conventions=[
            f"of the loss gradient at the first block's input; norms: means over {DRAWS} random "
            f"paths of each length, the same in each network; shares may be negative",
            f"{IMAGES} training images, one batch, depth {depth}; {seeds_of(rows)}",
        ],
        headlines=[
            Headline(f"residual-{depth} trained, a branch's factor", fall, "times", base=10),
            Headline("at the start", slopes["start", "batch"], "times", base=10),
            Headline("trained, mean length less half of all", length - n / 2, "blocks", "+.1f"),
        ],
        account=account(slopes),
    )


def account(slopes: dict[tuple[str, str], pd.Series[float]]) -> tuple[Account, str]:
    """Whether longer paths carry less whenever one looks, or once trained, or not even then."""
    less = {place: paired_t(list(some)).high < 0 for place, some in slopes.items()}
    if not less["end", "batch"]:
        word, said = Account.contradicted, "it is not shown that longer paths carry less, trained"
    elif all(less[place] for place in (("start", "batch"), ("start", "running"))):
        word, said = Account.right, "longer paths carry less, trained and before training"
    else:
        word, said = Account.overgeneralised, "longer paths carry less, trained, not always before"
    factor = {place: f"{10 ** mean(some):.2f}" for place, some in slopes.items()}
    return word, (
        f"it is stated as a property of the architecture; {said}. Each branch on a path multiplies "
        f"its gradient by {factor['end', 'batch']} trained, {factor['start', 'batch']} at the "
        f"start, {factor['start', 'running']} at the start with running statistics, where "
        "normalisation does nothing."
    )


def judge(trained: Sequence[tuple[float, float]]) -> Verdict:
    """The rule in the module's docstring: (slope, mean length - n/2) of each trained network."""
    if len(trained) < ENOUGH:
        return Verdict.inconclusive
    return Verdict.of(
        all(slope < 0 and beyond < 0 for slope, beyond in trained),
        all(slope >= 0 and beyond >= 0 for slope, beyond in trained),
    )


def draw(rows: pd.DataFrame) -> Figure:
    """One path by length, and all paths of a length, by norms and exactly."""
    from resexp.probes.drawing import DASHES, DOTS, GREY, RESIDUAL, finish, means, panels

    styles: dict[str, dict[str, Any]] = {
        "at the start": {"color": RESIDUAL, "linestyle": DASHES, "marker": "o"},
        "trained": {"color": RESIDUAL, "marker": "s"},
        "at the start, running statistics": {"color": GREY, "linestyle": DASHES, "marker": "^"},
        "share of the paths (binomial)": {"color": GREY, "linestyle": DOTS},
    }
    figure, (norm, weight, share) = panels(3, 74)
    places = (("start", "batch"), ("end", "batch"), ("start", "running"))
    for (when, statistics), style in zip(places, styles.values(), strict=False):
        some = those(rows, when=when, statistics=statistics)
        line = style | {"ms": 2.5, "linewidth": 1.1}
        means(norm, some, "k", "norm", log=True, **line)
        if statistics == "batch":
            means(weight, some, "k", "weight", **line)
            means(share, some, "k", "share", **line)
    means(weight, rows, "k", "paths_share", linewidth=0.9, color=GREY, linestyle=DOTS)
    share.axhline(0, color=GREY, linewidth=0.6)
    labels = {
        norm: "gradient of one path (norm)",
        weight: "share of the gradient by norms",
        share: "exact share of the gradient",
    }
    for axis, label in labels.items():
        axis.set(xlabel="branches on the path", ylabel=label)
    first, seeds = rows.iloc[0], rows["seed"].nunique()
    title = f"Paths through the {first.blocks} blocks of {first.arch}-{first.depth}, {seeds} seeds"
    return finish(figure, title, styles)
