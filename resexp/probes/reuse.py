"""Reuse: do low-level features stay accessible, so that later blocks can use them again?

Read-outs by ridge regression, in closed form and float64, of each block's output, averaged over a
2x2 grid: low-level features lie at places, which a mean over the whole image would hide, and the
digits' last stage has no finer grid. Fitted on training images, judged on test images:

- ``r2_stem``: the share of the variance of the stem's output (on the same grid) that a block's
  output explains: what the first layer found, still there to be read. At the start the stem is the
  same in both twins; after training each has its own, so ``r2_image``, the same of the image
  (averaged over at most an 8x8 grid), stands beside it;
- ``error_percent``: of the class, read off by regression on its indicators.

Networks with skips are compared with their plain twins: plain with residual, twin=plain with others
(dense: a layer of its twin has other widths, but the network as many parameters). A twin that did
not learn tells nothing of trained networks, so those are compared at the greatest depth at which
both fit in every seed (training error below 10 %); at the start all are, at the greatest depth.

The rule, for every kind of network with skips, trained and at the start, at the last block, on
one-sided 95 % bounds (Student's t) of means over at least five seeds: r2_stem at least one half,
and at least 0.1 above the twin's, paired by seed: supported. Below one half, or less than 0.1
above: not supported. Else, and where these words differ or no depth fits: inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from resexp.analysis.statistics import Interval, paired_t
from resexp.data import batches
from resexp.models import blocks
from resexp.probes import Account, Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import difference, mean, seeds_of, those, values
from resexp.settings import BnEval, Merge, Settings, Twin, UsageError, as_dict, digest
from resexp.train.evaluate import evaluation_mode

CLAIM = "With skips low-level features stay accessible to the last block; without them they do not."
SOURCE = "Huang et al. 2017, section 1, and common"
TEXTBOOK = "Skips carry low-level features on unchanged, so that later layers can reuse them."
NEEDS = Needs.trained

FAMILIES = ("cifar", "dense")
TWINS = ("none", "plain")
WORDS = {"start": "at the start", "end": "trained"}
SEEDS = 5
IMAGES, TEST_IMAGES = 2000, 500  # at most
GRID, PIXELS = 2, 8
RIDGE = 1e-3  # of the features' variance
FITS = 10.0  # percent, training error
ACCESSIBLE, MORE = 0.5, 0.1


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """A row per block of both twins of every pair, at the start and trained; block 0: the stem."""
    for pair in tell(pairs(cases)):
        for (case, twin), when in product(zip(pair, TWINS, strict=True), WORDS):
            data, start = nets.load(case.settings), when == "start"
            network = nets.at_start(case.settings, data) if start else nets.trained(case, data)
            place = {"arch": pair[0].arch, "twin": twin, "when": when} | pair[0].place()
            yield from (place | row for row in read_outs(network, case.settings))


def pairs(cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Networks with skips and their plain twins, of the first SEEDS seeds.

    Raises UsageError if there is none.
    """
    fit = [case for case in cases if case.settings.arch.family in FAMILIES]
    plain = {key(one): one for one in fit if blocks.trained(one.settings).merge == Merge.plain}
    found = [
        (one, plain[key(one)]) for one in fit if one not in plain.values() and key(one) in plain
    ]
    if not found:
        raise UsageError(
            "reuse compares networks with skips and their plain twins, both trained. "
            "Choose arch=plain,residual, or arch=dense twin=none,plain."
        )
    seeds = sorted({one.seed for one, _ in found})[:SEEDS]
    return [pair for pair in found if pair[0].seed in seeds]


def key(case: Case) -> str:
    """What a network and its plain twin share."""
    arch = blocks.trained(replace(case.settings, twin=Twin.plain))
    return digest(as_dict(replace(case.settings, arch=arch, twin=Twin.none)))


def read_outs(network: nn.Module, settings: Settings) -> Iterator[Row]:
    """The read-outs of the stem's and each block's output, in forward order."""
    data = nets.load(settings)
    statistics = batches.statistics(data.train_images, settings.normalise)
    images, labels = nets.some_images(settings, data, IMAGES)
    some = slice(None, None, math.ceil(len(data.test_labels) / TEST_IMAGES))
    test_images = batches.prepare(data.test_images[some], statistics)
    test_labels = data.test_labels[some].long()
    recalibrated = replace(settings, bn_eval=BnEval.recalibrated)
    with evaluation_mode(network, recalibrated, data, statistics):
        fitted, logits = outputs(network, images)
        judged, _ = outputs(network, test_images)
    classes = one_hot(labels, len(data.classes)).double().cpu()
    stem, test_stem = fitted[0], judged[0]
    small, test_small = pooled(images, PIXELS), pooled(test_images, PIXELS)
    wanted = torch.cat([stem, small, classes], 1)
    columns = (stem.shape[1], stem.shape[1] + small.shape[1])  # where the next begins
    error = 100 * (logits.argmax(1) != labels).double().mean().item()
    for number, (x, test) in enumerate(zip(fitted, judged, strict=True)):
        read = ridge(x, wanted, test)
        of_stem, of_image, of_class = torch.tensor_split(read, columns, dim=1)
        wrong = of_class.argmax(1) != test_labels.cpu()
        yield {
            "block": number,
            "r2_stem": explained(of_stem, test_stem),
            "r2_image": explained(of_image, test_small),
            "error_percent": 100 * wrong.double().mean().item(),
            "train_error_percent": error,
        }


@torch.no_grad()
def outputs(network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Of the stem and each block, on the grid, [N, features] in forward order; and logits."""
    found: list[Tensor] = []
    parts = [network.get_submodule("stem"), *network.get_submodule("blocks").children()]
    with nets.hooked(parts, lambda module, inputs, y: found.append(pooled(y, GRID))):
        logits = network(images)
    return found, logits


def pooled(x: Tensor, most: int) -> Tensor:
    """[N, C, H, W] averaged over at most ``most`` by ``most`` places: float64 [N, features]."""
    sides = min(x.shape[2], most), min(x.shape[3], most)
    return adaptive_avg_pool2d(x.double(), sides).flatten(1).cpu()


def ridge(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """What the ridge regression of y [n, k] on standardised x [n, p] gives for ``test`` [m, p]."""
    centre, spread = x.mean(0), x.std(0)
    scale = torch.where(spread > 0, 1 / spread, 0.0)
    x, test = (x - centre) * scale, (test - centre) * scale
    penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights: Tensor = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean(0)))
    return y.mean(0) + test @ weights


def explained(prediction: Tensor, truth: Tensor) -> float:
    """R2 over all columns together: 1 less the share of variance about their means left over."""
    left = (truth - prediction).square().sum()
    return 1 - (left / (truth - truth.mean(0)).square().sum()).item()


# --- from the rows


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    network = ["arch", "depth", "twin", "when"]
    ends = rows[rows["block"] == rows.groupby(network)["block"].transform("max")]
    numbers = {
        f"{column}, {arch} {depth}, twin {twin}, {when}": mean(here[column])
        for (arch, depth, twin, when), here in ends.groupby(network)
        for column in ("r2_stem", "r2_image", "error_percent")
    }
    told: list[str] = []
    headlines: list[Headline] = []
    verdicts: list[Verdict] = []
    for arch, when in product(sorted(set(rows["arch"])), WORDS):
        depth = depth_of(those(ends, arch=arch), when)
        here = those(ends, arch=arch, when=when, depth=depth)
        own, twins = (values(here, "r2_stem", twin=twin) for twin in TWINS)
        more = difference(own, twins)
        verdicts.append(judge(paired_t(list(own)), paired_t(list(more))))
        if depth is None:
            told.append(f"no {arch} network and its twin both fit")
            continue
        name = f"{arch}-{depth} {WORDS[when]}"
        told.append(f"{name} {mean(own):.2f} (its plain twin {mean(twins):.2f})")
        headlines += [Headline(f"R2, {name}", own), Headline("less its twin's", more, form="+.2f")]
    verdict, *others = set(verdicts)
    return Finding(
        Verdict.inconclusive if others else verdict,
        "the last block's output explains these shares of the variance of the stem's: "
        f"{'; '.join(told)}.",
        numbers=numbers,
        conventions=[
            f"R2 of ridge regressions (penalty {RIDGE:g} of each feature's variance) on outputs "
            f"averaged over {GRID}x{GRID} places, fitted on {IMAGES} training images at most, "
            f"judged on {TEST_IMAGES} test images at most; below 0: worse than their mean",
            "statistics of normalisation recalibrated on the training set, at the start too; "
            f"one-sided 95 % bounds; {seeds_of(rows)}",
            f"trained: the greatest depth at which both twins are below {FITS:g} % training error "
            "in every seed; at the start: the greatest depth",
            "what can be read off a block need not be used by the next; wider stages have more to "
            "read from, in both twins of a residual network alike (a dense one's twin has other "
            "widths)",
        ],
        headlines=headlines,
        account=account(verdicts),
    )


def depth_of(rows: pd.DataFrame, when: str) -> int | None:
    """At the start the greatest depth; trained the greatest at which all networks fit, if any."""
    worst = those(rows, when=when).groupby("depth")["train_error_percent"].max()
    return max(worst.index if when == "start" else worst.index[worst < FITS], default=None)


def account(verdicts: Sequence[Verdict]) -> tuple[Account, str] | None:
    """How right the textbook is, if nothing is left open."""
    if Verdict.inconclusive in verdicts:
        return None
    if Verdict.supported not in verdicts:
        return Account.contradicted, "neither at the start nor trained is it as it says."
    if Verdict.not_supported not in verdicts:
        return Account.right, "it holds at the start and of trained networks."
    return (
        Account.overgeneralised,
        "it does not hold of all these networks, at the start and after.",
    )


def judge(own: Interval, more: Interval) -> Verdict:
    """The rule in the module's docstring: R2 of networks with skips, and less their twins'."""
    if min(own.n, more.n) < SEEDS:
        return Verdict.inconclusive
    return Verdict.of(
        own.lower >= ACCESSIBLE and more.lower >= MORE, own.upper < ACCESSIBLE or more.upper < MORE
    )


def draw(rows: pd.DataFrame) -> Figure:
    """By block: R2 of the stem at the start and trained, and the error of the class, trained."""
    from resexp.probes.drawing import GREY, finish, means, panels, series

    archs = sorted(set(rows["arch"]), key=lambda arch: (arch != "residual", arch))
    arms = list(product(archs, reversed(TWINS)))
    styles = series(*(" twin ".join(arm) for arm in arms))
    figure, axes = panels(3, 70)
    wanted = (("start", "r2_stem"), ("end", "r2_stem"), ("end", "error_percent"))
    for axis, (when, column) in zip(axes, wanted, strict=True):
        depths = {arch: depth_of(those(rows, arch=arch), when) for arch in archs}
        for (arch, twin), style in zip(arms, styles.values(), strict=True):
            some = those(rows, arch=arch, twin=twin, when=when, depth=depths[arch])
            means(axis, some, "block", column, ms=2.5, lw=1.2, **style)
        depth = ", ".join(map(str, sorted({one for one in depths.values() if one is not None})))
        axis.set(title=f"{WORDS[when]}, depth {depth}", xlabel="block (0: the stem)")
        axis.set_ylabel("R2 of the stem's output")
        axis.axhline(0, color=GREY, linewidth=0.6)
    axes[2].set(ylabel="class, read off: test error (%)", ylim=(0, None))
    short = {"residual twin plain": "plain"}
    lines = {short.get(name, name.removesuffix(" twin none")): styles[name] for name in styles}
    seeds = rows["seed"].nunique()
    return finish(figure, f"What a linear read-out finds in each block, {seeds} seeds", lines)
