"""Lesions: what a trained network loses when blocks are deleted or change places, untrained after.

To delete a block is to leave it out: its input becomes its output. Beside a skip that is its
shortcut alone; without one the next block reads what it was not trained on. Blocks that change
shapes cannot be left out of either and stay (they are listed in the conventions). Three ways, as
errors in percent on test images, and excess in points over the undamaged network's:

- ``delete`` each block alone, with the statistics of normalisation as trained (Veit et al.) and,
  as ``recalibrated``, with those of training images through the damaged network;
- ``delete k`` random blocks at once, and ``reorder`` by random swaps of blocks of one stage, tau
  the rank correlation of Kendall of the new order and the old: deepest residual networks only.

That a plain network breaks says only that its layers form a chain, each fitted to the one before;
that a residual one does not is what Veit et al. call an ensemble of paths, a word that is disputed.

The rule, at the greatest depth there is, by the median over blocks of the excess of single
deletions, of each of at least three seeds: residual at most 15 points and plain at least 50, and
the residual mean falling from depth to depth: supported. Residual at least 50 or plain at most 15
in every seed: not supported. Else, and with fewer than nine blocks, where residual networks are
fragile too: inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor, nn

from resexp.data import batches
from resexp.probes import (
    Case,
    Cell,
    Finding,
    Needs,
    Tell,
    Verdict,
    load,
    some_images,
    trained,
    twins,
)
from resexp.randomness import words

CLAIM = "Deleting a block breaks a plain network and hardly harms a residual one."
SOURCE = "Veit et al. 2016, section 4"
NEEDS = Needs.trained
USUAL: list[str] = []

IMAGES = 200  # test images
RECALIBRATION = 200  # training images
SEEDS = 3
DRAWS = 10  # random sets of each size
DELETED = (1, 2, 4, 6, 8, 12)
SWAPS = (1, 2, 4, 8, 16)
ORDERS = 5  # random orders for each number of swaps
FEWEST_BLOCKS = 9
HARDLY, BREAKS = 15.0, 50.0  # points
LESION = b"lesion"


@dataclass(slots=True)
class Patient:
    """A network in evaluation mode, its blocks, and the images that it is tested on."""

    network: nn.Module
    blocks: list[nn.Module]
    stages: list[tuple[int, ...]]  # the shape of each block's output
    movable: list[int]  # blocks whose output has the shape of their input, from 0
    images: Tensor
    labels: Tensor
    training: Tensor  # images for new statistics


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Single deletions in every network, the rest in the deepest residual ones."""
    chosen = twins(cases, "lesion", SEEDS)
    deepest = max(depth for arch, depth, _ in chosen if arch == "residual")
    rows: list[dict[str, Cell]] = []
    for done, ((arch, depth, seed), case) in enumerate(chosen.items()):
        tell(done, len(chosen), f"{arch} {depth}, seed {seed}")
        one = patient(case)
        place: dict[str, Cell] = {"arch": arch, "depth": depth, "seed": seed}
        rows += [place | row for row in singles(one)]
        if (arch, depth) == ("residual", deepest):
            rows += [place | row for row in (*sets(one), *orders(one))]
    return concluded(rows)


def patient(case: Case) -> Patient:
    """The case's network as its run left it, and what it is tested on."""
    data = load(case.settings)
    network = trained(case, data).eval()
    count = min(IMAGES, len(data.test_labels))
    index = torch.linspace(0, len(data.test_labels) - 1, count).round().long()
    index = index.to(data.test_labels.device)
    statistics = batches.statistics(data.train_images, case.settings.normalise)
    images = batches.prepare(data.test_images[index], statistics)
    training, _ = some_images(case.settings, data, RECALIBRATION)
    return examined(network, images, data.test_labels[index], training)


@torch.no_grad()
def examined(network: nn.Module, images: Tensor, labels: Tensor, training: Tensor) -> Patient:
    """Which of the network's blocks can be left out."""
    blocks = list(network.get_submodule("blocks").children())
    x = network.get_submodule("stem")(images)
    stages, movable = [], []
    for at, block in enumerate(blocks):
        y = block(x)
        if y.shape == x.shape:
            movable.append(at)
        stages.append(tuple(y.shape))
        x = y
    return Patient(network, blocks, stages, movable, images, labels, training)


@contextmanager
def arranged(one: Patient, order: Sequence[int]) -> Iterator[nn.Module]:
    """The network with these of its blocks, in this order; as it was on leaving."""
    before = one.network.get_submodule("blocks")
    one.network.blocks = nn.Sequential(*(one.blocks[at] for at in order))
    try:
        yield one.network
    finally:
        one.network.blocks = before


@torch.no_grad()
def error(one: Patient, order: Sequence[int]) -> float:
    """Percent of the test images, with these blocks in this order."""
    with arranged(one, order) as network:
        wrong = network(one.images).argmax(1) != one.labels
    return float(100 * wrong.double().mean())


@torch.no_grad()
def recalibrated(one: Patient, order: Sequence[int]) -> float:
    """The same with normalisation's statistics of training images through the damaged network."""
    norms = [module for module in one.network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    saved = {name: buffer.clone() for name, buffer in one.network.named_buffers()}
    try:
        for norm in norms:
            norm.momentum = 1.0  # the last batch's alone
        with arranged(one, order) as network:
            network.train()(one.training)
        one.network.eval()
        return error(one, order)
    finally:
        one.network.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for name, buffer in one.network.named_buffers():
            buffer.copy_(saved[name])


def without(one: Patient, deleted: Sequence[int]) -> list[int]:
    """The order with some blocks left out."""
    return [at for at in range(len(one.blocks)) if at not in deleted]


def singles(one: Patient) -> Iterator[dict[str, Cell]]:
    """The undamaged network, and each block deleted alone."""
    every = without(one, [])
    yield row(one, "whole", 0, None, error(one, every), recalibrated(one, every))
    for at in one.movable:
        order = without(one, [at])
        yield row(one, "delete", 1, at + 1, error(one, order), recalibrated(one, order))


def sets(one: Patient) -> Iterator[dict[str, Cell]]:
    """Random sets of blocks deleted: the same sets in every network with as many blocks."""
    for k in DELETED:
        if k > len(one.movable):
            return
        for draw in range(DRAWS):
            number = 1000 * k + draw
            places = np.argsort(words(0, LESION, number, len(one.movable)), kind="stable")[:k]
            order = without(one, [one.movable[at] for at in places])
            yield row(one, "delete k", k, None, error(one, order), None)


def orders(one: Patient) -> Iterator[dict[str, Cell]]:
    """Blocks of one stage swapped, k times."""
    for k in SWAPS:
        for draw in range(ORDERS):
            order = swapped(one, k, 1000 * k + draw + 500)
            yield row(one, "reorder", k, None, error(one, order), None) | {"tau": tau(order)}


def swapped(one: Patient, swaps: int, number: int) -> list[int]:
    """The order after ``swaps`` random swaps, each of two blocks of one stage."""
    order = without(one, [])
    pairs = [
        (first, second)
        for first in one.movable
        for second in one.movable
        if first < second and one.stages[first] == one.stages[second]
    ]
    if pairs:
        for word in words(0, LESION, number, swaps):
            first, second = pairs[int(word) % len(pairs)]
            order[first], order[second] = order[second], order[first]
    return order


def tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation of an order without ties and 0, 1, 2, ...: 1 is the same."""
    pairs = math.comb(len(order), 2)
    backward = sum(order[i] > order[j] for i in range(len(order)) for j in range(i + 1, len(order)))
    return 1 - 2 * backward / pairs if pairs else 1.0


def row(
    one: Patient, kind: str, k: int, block: int | None, percent: float, new: float | None
) -> dict[str, Cell]:
    """One measurement; ``block`` from 1."""
    return {
        "kind": kind,
        "blocks": len(one.blocks),
        "movable": len(one.movable),
        "k": k,
        "block": block,
        "tau": None,
        "error_percent": percent,
        "error_recalibrated_percent": new,
    }


# --- numbers out of rows


def excesses(
    rows: Sequence[dict[str, Cell]], arch: str, depth: int, column: str = "error_percent"
) -> dict[int, list[float]]:
    """Points over the undamaged network of each single deletion, by seed."""
    here = [row for row in rows if (row["arch"], row["depth"]) == (arch, depth)]
    intact = {row["seed"]: float(row[column] or 0) for row in here if row["kind"] == "whole"}
    found: dict[int, list[float]] = {}
    for row in here:
        if row["kind"] == "delete":
            points = float(row[column] or 0) - intact[row["seed"]]
            found.setdefault(int(row["seed"] or 0), []).append(points)
    return found


def concluded(rows: list[dict[str, Cell]]) -> Finding:
    """The finding from all rows."""
    numbers: dict[str, float] = {}
    medians: dict[tuple[str, int], list[float]] = {}
    for arch, depth in sorted({(str(row["arch"]), int(row["depth"] or 0)) for row in rows}):
        name, points = f"{arch}-{depth}", excesses(rows, arch, depth)
        medians[arch, depth] = [median(values) for values in points.values()]
        numbers[f"points, median of single deletions, {name}"] = mean(medians[arch, depth])
        numbers[f"points, worst single deletion, {name}"] = mean(map(max, points.values()))
        new = excesses(rows, arch, depth, "error_recalibrated_percent")
        numbers[f"points, median of single deletions, {name}, recalibrated"] = mean(
            map(median, new.values())
        )
    for kind in ("delete k", "reorder"):
        some = [row for row in rows if row["kind"] == kind]
        for k in sorted({int(row["k"] or 0) for row in some}):
            errors = [float(row["error_percent"] or 0) for row in some if row["k"] == k]
            numbers[f"percent, median error, {kind}, k={k}"] = median(errors)
    deep = max(depth for _, depth in medians)
    blocks = max(int(row["blocks"] or 0) for row in rows)
    plain, residual = medians.get(("plain", deep), []), medians.get(("residual", deep), [])
    trend = [mean(values) for (arch, _), values in medians.items() if arch == "residual"]
    worst = numbers.get(f"points, worst single deletion, residual-{deep}", math.nan)
    seeds = sorted({int(row["seed"] or 0) for row in rows})
    return Finding(
        judge(plain, residual, trend, blocks),
        f"deleting one of {blocks} blocks at depth {deep} costs plain {average(plain):.0f} points "
        f"of test error (undamaged {whole(rows, 'plain', deep):.0f} percent) and residual "
        f"{average(residual):.1f} (undamaged {whole(rows, 'residual', deep):.0f}), medians over "
        f"blocks; the worst block costs residual {worst:.0f}; residual by depth, shallow first: "
        f"{', '.join(f'{value:.1f}' for value in trend)}.",
        rows,
        numbers,
        [
            "points of test error in percent over the undamaged network; more is worse; means over "
            "seeds of medians over blocks; a network near chance has few points to lose",
            f"{IMAGES} test images at most; statistics of normalisation as trained, or "
            f"recalibrated on {RECALIBRATION} training images; seeds {', '.join(map(str, seeds))}",
            f"left out, for they change shapes: {fixed(rows)}",
            f"delete k: {DRAWS} random sets, reorder: {ORDERS} random orders, in the deepest "
            "residual networks; the same in each; tau 1 is the old order",
            f"fewer than {FEWEST_BLOCKS} blocks decide nothing: residual networks that shallow "
            "are fragile too",
        ],
    )


def whole(rows: Sequence[dict[str, Cell]], arch: str, depth: int) -> float:
    """Mean error of the undamaged networks, percent."""
    wanted = (arch, depth, "whole")
    return average(
        [
            float(row["error_percent"] or 0)
            for row in rows
            if (row["arch"], row["depth"], row["kind"]) == wanted
        ]
    )


def fixed(rows: Sequence[dict[str, Cell]]) -> str:
    """The blocks that cannot be deleted, by depth."""
    parts = []
    for depth in sorted({int(row["depth"] or 0) for row in rows}):
        here = [row for row in rows if row["depth"] == depth]
        there = {row["block"] for row in here if row["kind"] == "delete"}
        stay = [at for at in range(1, int(here[0]["blocks"] or 0) + 1) if at not in there]
        parts.append(f"blocks {' and '.join(map(str, stay))} of depth {depth}")
    return "; ".join(parts)


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def judge(
    plain: Sequence[float], residual: Sequence[float], trend: Sequence[float], blocks: int
) -> Verdict:
    """The rule in the module's docstring: medians by seed, residual means by rising depth."""
    if blocks < FEWEST_BLOCKS or min(len(plain), len(residual)) < SEEDS:
        return Verdict.inconclusive
    falls = all(deeper < shallower for shallower, deeper in pairwise(trend))
    if max(residual) <= HARDLY and min(plain) >= BREAKS and falls:
        return Verdict.supported
    if min(residual) >= BREAKS or max(plain) <= HARDLY:
        return Verdict.not_supported
    return Verdict.inconclusive
