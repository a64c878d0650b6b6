"""Routes: do the same blocks matter for all images, or does each image have its own?

One block at a time is left out of the deepest trained residual networks (its input becomes its
output), and what that adds to each test image's loss, in nats, is how much the block matters for
it. These numbers, images by blocks, less each image's mean, are split by sums of squares: what is
the same for all images (block), what class and block add (class), and the rest, the image's own.
Twice: of ``ranks`` of blocks within an image, where the first share is Kendall's W and grows with
the mean rank correlation of two images, and of ``nats``, where negligible blocks do not count but
few large losses may decide. Labels given to images at random say what class adds by chance.

Normalisation has the statistics of training images through the network as it then is
(recalibrated). With those of training (as trained) a network without an early block may answer
nearly every image with one class, the same for all: measured too, but it decides nothing.

The rule, at least five seeds: one-sided 95 % upper bounds (Student's t) of the blocks' share below
one half, of ranks and of nats, and class adding more to that of ranks than in 95 % of random
labellings in every seed (so what is not the same for all is not mere noise): supported. Both lower
bounds above one half: not supported. Else inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import Interval, paired_t
from resexp.probes import Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.lesion import RECALIBRATION, Patient, arranged, patient, recalibrated, without
from resexp.probes.rows import mean, seeds_of, those, values
from resexp.randomness import words

CLAIM = "A residual network's images take their own routes: other blocks matter for other images."
SOURCE = "Srivastava et al. 2015 of highway networks' gates; Wang et al. 2018 build it in (SkipNet)"
TEXTBOOK = "Layers that an image does not need are skipped: every input finds its own path."
NEEDS = Needs.trained

SEEDS = 5
LABELLINGS = 200  # random ones
HALF = 0.5
ROUTES = b"routes"
STATISTICS = ("recalibrated", "as trained")
PARTS = ("block", "class", "image")
Numbers = NDArray[np.float64]


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """Shares, and means by block and class, of the deepest residual networks."""
    fit = nets.chosen(
        cases,
        lambda case: case.arch == case.kind() == "residual",
        "routes needs trained residual networks. Choose arch=residual.",
    )
    found = nets.places(fit, SEEDS)
    deep = max(depth for _, depth, _ in found)
    for case in tell([case for case in found.values() if case.depth == deep]):
        one = patient(case)
        place = {"depth": deep, "seed": case.seed, "images": len(one.labels)}
        yield from (place | row for row in tidy(one))


def tidy(one: Patient) -> Iterator[Row]:
    """The rows of one network; ``block`` counts all of its blocks, from 1."""
    labels = one.labels.cpu().numpy()
    columns = ("block", "label", "chance", "p")
    for statistics in STATISTICS:
        nats = importance(one, recalibrate=statistics == "recalibrated")
        ranks = pd.DataFrame(nats).rank(axis=1).to_numpy()  # 1: matters least
        for of, scores in (("ranks", ranks), ("nats", nats)):
            about = {"statistics": statistics, "of": of}
            for part, measured in split(scores, labels).items():
                yield about | {"what": part, **dict.fromkeys(columns), **measured}
            for label, (at, block) in product(np.unique(labels), enumerate(one.movable)):
                value = float(scores[labels == label, at].mean())
                place = {"block": block + 1, "label": int(label)}
                yield about | {"what": "mean", **dict.fromkeys(columns), **place, "value": value}


def importance(one: Patient, recalibrate: bool) -> Numbers:
    """What leaving out each movable block adds to each image's loss, [images, blocks] in nats."""
    orders = [without(one, []), *(without(one, [block]) for block in one.movable)]
    whole, *damaged = (losses(one, order, recalibrate) for order in orders)
    return np.stack([nats - whole for nats in damaged], axis=1)


@torch.no_grad()
def losses(one: Patient, order: Sequence[int], recalibrate: bool) -> Numbers:
    """Each image's cross-entropy in nats, with these blocks in this order."""
    network = arranged(one, order)
    if recalibrate:
        recalibrated(network, one.training)
    nats = cross_entropy(network(one.images).double(), one.labels, reduction="none")
    return nats.cpu().numpy()


def split(scores: Numbers, labels: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Shares of the variance of [images, blocks] about each image's mean; nan if there is none.

    Of the class also the 95 % quantile over random labellings, and its p.
    """
    scores = scores - scores.mean(axis=1, keepdims=True)
    total = np.square(scores).sum()
    if not total > 0:
        return {part: {"value": math.nan} for part in PARTS}
    blocks = between(scores, np.zeros(len(labels))) / total
    classes = between(scores, labels) / total - blocks
    orders = (np.argsort(words(0, ROUTES, at, len(labels))) for at in range(LABELLINGS))
    chance = np.array([between(scores, labels[order]) for order in orders]) / total - blocks
    p = (1 + (chance >= classes).sum()) / (1 + LABELLINGS)
    return {
        "block": {"value": blocks},
        "class": {"value": classes, "chance": float(np.quantile(chance, 0.95)), "p": float(p)},
        "image": {"value": 1 - blocks - classes},
    }


def between(scores: Numbers, groups: NDArray[np.generic]) -> float:
    """The sum of squares over [images, blocks] of the means of groups of images."""
    some = (scores[groups == group] for group in np.unique(groups))
    return float(sum(len(one) * np.square(one.mean(axis=0)).sum() for one in some))


# --- from the rows


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    shares, old = (shares_of(those(rows, statistics=one)) for one in STATISTICS)
    rows = those(rows, statistics="recalibrated")
    images, depth = int(rows["images"].min()), rows["depth"].max()
    p, chance = (values(rows, key, of="ranks", what="class") for key in ("p", "chance"))
    blocks = [shares[of, "block"] for of in ("ranks", "nats")]
    alike = (images * blocks[0] - 1) / (images - 1)
    numbers = {
        f"share of {of}, {part}, {one}": mean(some)
        for one, found in zip(STATISTICS, (shares, old), strict=True)
        for (of, part), some in found.items()
    }
    numbers |= {
        "share of ranks, class, by chance (95 %)": mean(chance),
        "largest p of class": float(p.max(skipna=False)),
        "mean rank correlation of two images": mean(alike),
    }
    ranks, nats = (
        ", ".join(f"{100 * mean(shares[of, part]):.0f} % {part}" for part in PARTS)
        for of in ("ranks", "nats")
    )
    return Finding(
        judge(paired_t(list(blocks[0])), paired_t(list(blocks[1])), list(p)),
        f"what leaving out a block of residual-{depth} adds to an image's loss varies by {ranks} "
        f"(ranks of blocks within an image) or {nats} (nats); class by chance at most "
        f"{100 * mean(chance):.0f} % of ranks; two images' blocks rank alike by {mean(alike):.2f}; "
        f"with statistics as trained blocks alone are {100 * mean(old['ranks', 'block']):.0f} % of "
        f"ranks and {100 * mean(old['nats', 'block']):.0f} % of nats.",
        numbers=numbers,
        conventions=[
            "shares of the sum of squares about an image's mean: block, the same for all images; "
            "class, what block and class add; image, the rest; ranks: 1 matters least",
            f"{images} test images, one block left out at a time, statistics recalibrated on "
            f"{RECALIBRATION} training images; blocks that change shapes stay; {seeds_of(rows)}",
            "with statistics as trained a network without an early block may answer nearly every "
            "image with one class, and that is the same for all",
            f"chance: 95 % quantile over {LABELLINGS} random labellings; rank correlation is that "
            "of Spearman, 1 where all images agree",
            "nothing is skipped: every block is computed for every image; blocks were not trained "
            "to be left out, and blocks that stand in for each other look unimportant alone",
        ],
        headlines=[
            *(
                Headline(what, 100 * some, "%", ".1f")
                for what, some in (
                    ("of the ranks' variance is the same for all images", blocks[0]),
                    ("is added by class", shares["ranks", "class"]),
                    ("of the nats' variance is the same for all images", blocks[1]),
                )
            ),
            Headline("mean rank correlation of two images", alike),
        ],
    )


def shares_of(rows: pd.DataFrame) -> dict[tuple[str, str], pd.Series[float]]:
    """Shares of ranks and of nats by part, by seed."""
    kinds = product(("ranks", "nats"), PARTS)
    return {(of, part): values(rows, "value", of=of, what=part) for of, part in kinds}


def judge(ranks: Interval, nats: Interval, p: Sequence[float]) -> Verdict:
    """The rule in the module's docstring: shares of blocks alone, and p of class by seed."""
    if min(ranks.n, nats.n) < SEEDS:
        return Verdict.inconclusive
    return Verdict.of(
        max(ranks.upper, nats.upper) < HALF and all(one < 0.05 for one in p),
        min(ranks.lower, nats.lower) > HALF,
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Mean ranks by block, a line per class, of the first seed; shares, a dot per seed."""
    from resexp.probes.drawing import DOTS, GREY, RESIDUAL, dots, finish, means, panels

    seed, blue, grey = rows["seed"].min(), RESIDUAL, GREY
    figure, (blocks, shares) = panels(2, 66)
    rows = those(rows, statistics="recalibrated")
    first = those(rows, of="ranks", what="mean", seed=seed)
    for _, some in first.groupby("label"):
        blocks.plot(some["block"], some["value"], color=GREY, lw=0.6, alpha=0.6)
    means(blocks, first, "block", "value", color=RESIDUAL, lw=1.4, marker="o", ms=2.5)
    blocks.set(xlabel=f"block, from the input (seed {seed})", ylabel="mean rank of its importance")
    for at, (part, (of, colour)) in enumerate(product(PARTS, (("ranks", blue), ("nats", grey)))):
        some = those(rows, of=of, what=part)
        dots(shares, at, some["value"], colour)
        if part == "class":
            level = some["chance"].mean()
            shares.plot([at - 0.35, at + 0.35], [level, level], color=colour, lw=1, ls=DOTS)
    shares.set_xticks([0.5, 2.5, 4.5], ["block alone", "added by class", "image's own"])
    shares.set(ylabel="share of the variance", ylim=(0, 1))
    styles: dict[str, dict[str, Any]] = {
        "left: one class": {"color": grey, "lw": 0.6},
        "all images": {"color": blue},
    }
    dot = {"marker": "o", "ls": "none"}
    styles |= {"right: ranks": {"color": blue} | dot, "nats": {"color": grey} | dot}
    styles |= {"by chance (95 %)": {"color": grey, "ls": DOTS}}
    title = "Which blocks matter for an image's loss, residual-"
    return finish(figure, f"{title}{rows['depth'].max()}, {rows['seed'].nunique()} seeds", styles)
