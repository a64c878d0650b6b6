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
A network near chance has little to lose, so a plain one that does not train cannot be compared.

The rule, at the matched depth, the greatest at which all plain and residual networks fit (clean
training error below 10 %), by the median over blocks of the excess of single deletions, of each of
at least five seeds: residual at most 15 points and plain at least 50: supported. Residual at least
50 or plain at most 15 in every seed: not supported. Else, where no depth fits, and with fewer than
nine blocks, where residual networks are fragile too: inconclusive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from resexp.probes import Account, Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import by_seed, difference, matched_depth, mean, seeds_of, those, values
from resexp.randomness import words

CLAIM = "Deleting a block breaks a plain network and hardly harms a residual one."
SOURCE = "Veit et al. 2016, section 4"
TEXTBOOK = "Without one layer VGG falls to chance; ResNet-110 without one block hardly changes."
NEEDS = Needs.trained

ARCHS = ("plain", "residual")
IMAGES = 200  # test images
RECALIBRATION = 200  # training images
SEEDS = 5
DRAWS = 10  # random sets of each size
DELETED = (1, 2, 4, 6, 8, 12)
SWAPS = (1, 2, 4, 8, 16)
ORDERS = 5  # random orders for each number of swaps
FEWEST_BLOCKS = 9
HARDLY, BREAKS = 15.0, 50.0  # points
LESION = b"lesion"


@dataclass(slots=True)
class Patient:
    """A network in evaluation mode and the images that it is tested on."""

    network: nn.Module
    stages: list[tuple[int, ...]]  # the shape of each block's output
    movable: list[int]  # blocks whose output has the shape of their input, from 0
    images: Tensor
    labels: Tensor
    training: Tensor  # images for new statistics


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """Single deletions in every network, the rest in the deepest residual ones."""
    chosen = nets.twins(cases, "lesion", SEEDS)
    deepest = max(depth for arch, depth, _ in chosen if arch == "residual")
    for case in tell(chosen.values()):
        one, deep = patient(case), (case.arch, case.depth) == ("residual", deepest)
        for row in chain(singles(one), *([sets(one), orders(one)] if deep else [])):
            yield nets.about(case) | row


def patient(case: Case) -> Patient:
    """The case's network as its run left it, and what it is tested on."""
    settings, data = case.settings, nets.load(case.settings)
    training, _ = nets.some_images(settings, data, RECALIBRATION)
    images, labels = nets.some_images(settings, data, IMAGES, test=True)
    return examined(nets.trained(case, data).eval(), images, labels, training)


@torch.no_grad()
def examined(network: nn.Module, images: Tensor, labels: Tensor, training: Tensor) -> Patient:
    """Which of the network's blocks can be left out."""
    x = network.get_submodule("stem")(images)
    stages, movable = [], []
    for at, block in enumerate(network.get_submodule("blocks").children()):
        y = block(x)
        if y.shape == x.shape:
            movable.append(at)
        stages.append(tuple(y.shape))
        x = y
    return Patient(network, stages, movable, images, labels, training)


def arranged(one: Patient, order: Sequence[int]) -> nn.Module:
    """A copy of the network with these of its blocks, in this order."""
    network = copy.deepcopy(one.network)
    blocks = list(network.get_submodule("blocks").children())
    network.blocks = nn.Sequential(*(blocks[at] for at in order))
    return network


@torch.no_grad()
def recalibrated(network: nn.Module, images: Tensor) -> None:
    """Give normalisation the statistics of these images through the network."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the last batch's alone
    network.train()(images)
    network.eval()


@torch.no_grad()
def error(one: Patient, order: Sequence[int], recalibrate: bool = False) -> float:
    """Percent of the test images, with these blocks in this order.

    With ``recalibrate`` normalisation has the statistics of training images through the damaged
    network.
    """
    network = arranged(one, order)
    if recalibrate:
        recalibrated(network, one.training)
    return float(100 * (network(one.images).argmax(1) != one.labels).double().mean())


def without(one: Patient, deleted: Sequence[int]) -> list[int]:
    """The order with some blocks left out."""
    return [at for at in range(len(one.stages)) if at not in deleted]


def singles(one: Patient) -> Iterator[Row]:
    """The undamaged network, and each block deleted alone."""
    for at in (None, *one.movable):
        order = without(one, [] if at is None else [at])
        kind, k, block = ("whole", 0, None) if at is None else ("delete", 1, at + 1)
        found = {"error_percent": error(one, order)}
        found |= {"error_recalibrated_percent": error(one, order, recalibrate=True)}
        yield row(one, kind, k, block=block, **found)


def sets(one: Patient) -> Iterator[Row]:
    """Random sets of blocks deleted: the same sets in every network with as many blocks."""
    for k, draw in product(DELETED, range(DRAWS)):
        if k <= len(one.movable):
            random = words(0, LESION, 1000 * k + draw, len(one.movable))
            places = np.argsort(random, kind="stable")[:k]
            order = without(one, [one.movable[at] for at in places])
            yield row(one, "delete k", k, error_percent=error(one, order))


def orders(one: Patient) -> Iterator[Row]:
    """Blocks of one stage swapped, k times."""
    for k, draw in product(SWAPS, range(ORDERS)):
        order = swapped(one, k, 1000 * k + draw + 500)
        yield row(one, "reorder", k, tau=tau(order), error_percent=error(one, order))


def swapped(one: Patient, swaps: int, number: int) -> list[int]:
    """The order after ``swaps`` random swaps, each of two blocks of one stage."""
    order = without(one, [])
    pairs = [
        pair for pair in combinations(one.movable, 2) if len({one.stages[at] for at in pair}) == 1
    ]
    for word in words(0, LESION, number, swaps) if pairs else []:
        first, second = pairs[int(word) % len(pairs)]
        order[first], order[second] = order[second], order[first]
    return order


def tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation of an order without ties and 0, 1, 2, ...: 1 is the same."""
    backward = [before > after for before, after in combinations(order, 2)]
    return 1 - 2 * sum(backward) / len(backward) if backward else 1.0


def row(one: Patient, kind: str, k: int, **measured: float | None) -> Row:
    """One measurement; ``block`` from 1."""
    place = {"kind": kind, "blocks": len(one.stages), "movable": len(one.movable), "k": k}
    columns = ("block", "tau", "error_percent", "error_recalibrated_percent")
    return place | dict.fromkeys(columns) | measured


# --- from the rows


def excess(
    rows: pd.DataFrame,
    arch: str,
    depth: int,
    number: Callable[[pd.Series[float]], float],
    column: str = "error_percent",
) -> pd.Series[float]:
    """A number of a network's single deletions, points over the undamaged one, by seed."""
    here = those(rows, arch=arch, depth=depth)
    deleted = by_seed(here, column, number, "block", kind="delete")
    return difference(deleted, values(here, column, kind="whole"))


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    numbers: dict[str, float] = {}
    medians: dict[tuple[str, int], pd.Series[float]] = {}
    for arch, depth in sorted(set(zip(rows["arch"], rows["depth"], strict=True))):
        medians[arch, depth] = excess(rows, arch, depth, pd.Series.median)
        new = excess(rows, arch, depth, pd.Series.median, "error_recalibrated_percent")
        most, name = excess(rows, arch, depth, pd.Series.max), f"{arch}-{depth}"
        numbers[f"points, median of single deletions, {name}"] = mean(medians[arch, depth])
        numbers[f"points, worst single deletion, {name}"] = mean(most)
        numbers[f"points, median of single deletions, {name}, recalibrated"] = mean(new)
    for kind in ("delete k", "reorder"):
        for k, errors in those(rows, kind=kind).groupby("k")["error_percent"]:
            numbers[f"percent, median error, {kind}, k={k}"] = float(errors.median())
    at, fit, here = matched_depth(rows)
    blocks, deep = int(those(rows, depth=at)["blocks"].iloc[0]), rows["depth"].max()
    plain, residual = (medians[arch, at] for arch in ARCHS)
    worst = excess(rows, "residual", at, pd.Series.max)
    told = {
        f"plain-{at}, one of {blocks} blocks": plain,
        f"residual-{at}": residual,
        "its worst block": worst,
        f"residual-{deep}": medians["residual", deep],
    }
    return Finding(
        judge(list(plain), list(residual), blocks if fit else 0),
        f"{here}, deleting one of {blocks} blocks costs plain {mean(plain):.0f} points of test "
        f"error and residual {mean(residual):.1f}, medians over blocks; the worst block costs "
        f"residual {mean(worst):.0f}.",
        numbers=numbers,
        conventions=[
            "points of test error in percent over the undamaged network, means over seeds",
            f"{IMAGES} test images at most; statistics of normalisation as trained, or "
            f"recalibrated on {RECALIBRATION} training images; {seeds_of(rows)}",
            f"left out, for they change shapes: {fixed(rows)}",
        ],
        headlines=[Headline(what, some, "points", "+.1f") for what, some in told.items()],
        account=account(rows, medians),
    )


def account(
    rows: pd.DataFrame, medians: dict[tuple[str, int], pd.Series[float]]
) -> tuple[Account, str]:
    """How right the textbook is: it names one depth."""
    blocks = rows.groupby("depth")["blocks"].first()
    costs = {
        arch: {blocks[depth]: mean(some) for (one, depth), some in medians.items() if one == arch}
        for arch in ARCHS
    }
    plain, residual = (
        ", ".join(f"{points:+.1f} with {count}" for count, points in some.items())
        for some in costs.values()
    )
    fragile = max(costs["residual"].values()) > HARDLY
    return Account.overgeneralised if fragile else Account.right, (
        "it is stated for residual networks whatever their depth; deleting one block (the median "
        f"one) costs them these points of test error, by blocks: {residual}. Plain ones: {plain}; "
        "those that do not train have few to lose."
    )


def fixed(rows: pd.DataFrame) -> str:
    """The blocks that cannot be deleted, by depth."""
    parts = []
    for depth, here in rows.groupby("depth"):
        there = set(those(here, kind="delete")["block"])
        stay = sorted(set(range(1, int(here["blocks"].iloc[0]) + 1)) - there)
        parts.append(f"blocks {' and '.join(map(str, stay))} of depth {depth}")
    return "; ".join(parts)


def judge(plain: Sequence[float], residual: Sequence[float], blocks: int) -> Verdict:
    """The rule in the module's docstring, on medians by seed at the matched depth."""
    if blocks < FEWEST_BLOCKS or min(len(plain), len(residual)) < SEEDS:
        return Verdict.inconclusive
    return Verdict.of(
        max(residual) <= HARDLY and min(plain) >= BREAKS,
        min(residual) >= BREAKS or max(plain) <= HARDLY,
    )


def draw(rows: pd.DataFrame) -> Figure:
    """By block at the matched depth; of the deepest residual by number deleted, by order kept."""
    from resexp.probes.drawing import DOTS, GREY, finish, means, panels, series

    (at, *_), styles = matched_depth(rows), series(*ARCHS)
    deep = those(rows, arch="residual")["depth"].max()
    figure, (one, several, reordered) = panels(3, 72, sharey=True)
    for arch, style in styles.items():
        here = those(rows, arch=arch, depth=at)
        means(one, those(here, kind="delete"), "block", "error_percent", ms=2.5, lw=1.1, **style)
        intact = those(here, kind="whole")["error_percent"].mean()
        one.axhline(intact, color=style["color"], linewidth=0.8, linestyle=DOTS)
    errors = those(rows, kind="delete k").groupby("k")["error_percent"]
    middle, style = errors.median(), styles["residual"]
    several.plot(middle.index, middle, ms=2.5, lw=1.1, **style)
    quartiles = errors.quantile(0.25), errors.quantile(0.75)
    several.fill_between(middle.index, *quartiles, color=style["color"], alpha=0.15, linewidth=0)
    several.set_xticks(middle.index)
    orders = those(rows, kind="reorder")
    reordered.scatter(orders["tau"], orders["error_percent"], s=6, **style)
    reordered.invert_xaxis()
    one.set(title=f"one block deleted, depth {at}", xlabel="block, from the input")
    one.set(ylabel="test error, percent", ylim=(0, 100))
    several.set(title=f"residual-{deep}, several deleted")
    several.set(xlabel="blocks deleted (random sets, median)")
    reordered.set(title=f"residual-{deep}, reordered")
    reordered.set(xlabel="Kendall's tau with the trained order")
    seeds = rows["seed"].nunique()
    lines = {"damaged": {"color": GREY}, "undamaged": {"color": GREY, "linestyle": DOTS}}
    title = f"Trained networks, blocks deleted or moved at test time, {seeds} seeds"
    return finish(figure, title, styles | lines)
