"""The gradient highway: what part of the gradient travels from head to stem by shortcuts alone?

He et al. 2016, equation 5: dL/dx = dL/dx_L (1 + d(sum of F)/dx). The 1 stands for one way back, by
the shortcuts of all blocks; whatever passed a branch anywhere is in the other term. In float64, of
every block:

- ``path_share``: <G0, G> / |G|^2, G the loss gradient at the block's input and G0 what came there
  from the head by shortcuts alone, through the ReLUs between. That of the first block is the whole
  depth's, and ``share`` of length 0 in the probe paths, whose functions measure it here. The two
  shortcuts between stages pass every second pixel.
- Where the shortcut is the identity (not where shapes change, nor in the first pre-activated block,
  which shares an activation), at s = x + F(x): ``identity_error``: |dL/dx - (dL/ds + v)| / |dL/dx|,
  v the branch's own vector-Jacobian product, computed apart from the network;
  ``shortcut_share``: <dL/ds, dL/dx> / |dL/dx|^2; ``gain``: |dL/dx| / |dL/dy|, y the block's output,
  above 1 where the gradient grows towards the input; ``branch_over_input`` |F(x)| / |x|;
  ``cosine`` of x and y; ``clipped``, the share of s below 0, which the ReLU after the addition
  stops (0 in a pre-activated block, which has none).

Shares are of the part along the whole gradient, so they may lie outside 0..1. A block's says little
of the whole depth: 0.8 in each of 27 blocks leaves 0.8^27 = 0.002.

The rule, on trained networks of the greatest depth, residual and pre-activated, five seeds or more,
by one-sided 95 % bounds of the mean path_share of the first block (Student's t): above 0.5 in both:
supported. Below 0.5 in both: not supported. Else, where a network's clean training error is 10 % or
more or an identity_error 1e-9 or more: inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.analysis.statistics import paired_t
from resexp.models.blocks import Block
from resexp.probes import Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.paths import back, unravelled
from resexp.probes.rows import FAILED, by_seed, mean, seeds_of, those, values
from resexp.settings import Arch, Merge, Order, Twin

CLAIM = "Skips are a highway: most of the gradient goes from head to stem by the shortcuts alone."
SOURCE = "He et al. 2016, section 2, equation 5"
TEXTBOOK = "dL/dx = dL/dy (dF/dx + 1): the 1 carries the gradient to any layer."
NEEDS = Needs.settings
USUAL = ["depth=20,56", "arch=residual", "seed=0,1,2,3,4"]

IMAGES = 64
SEEDS = 5
EXACT = 1e-9
MOST = 0.5
ARMS = {
    "residual": Arch(merge=Merge.residual),
    "preact": Arch(merge=Merge.residual, order=Order.full_preactivation),
}
#: What is told of blocks whose shortcut is the identity, in the median.
BLOCK = ("shortcut_share", "gain", "branch_over_input", "cosine", "clipped")


@dataclass(slots=True)
class Passage:
    """One block's tensors of a forward pass: input, branch, output."""

    block: Block
    x: Tensor
    f: Tensor
    y: Tensor


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """Each depth and seed at the start; trained the deepest, and others that have checkpoints."""
    fit = nets.chosen(
        cases,
        lambda case: case.settings.arch.family == "cifar" and case.settings.arch.skip_span == 2,
        "highway needs networks of the cifar family. Choose arch=residual.",
    )
    bases = nets.bases(fit, SEEDS)
    deep = max(base.depth for base in bases)
    wanted = [
        Case(arm, replace(base.settings, arch=arch, twin=Twin.none))
        for base, (arm, arch) in product(bases, ARMS.items())
    ]
    found = nets.with_runs(wanted, cases)
    trained = [case for case in found if case.run or case.depth == deep]
    for case, when in tell([*product(found, ["start"]), *product(trained, ["end"])]):
        yield from rows_of(case, when)


def rows_of(case: Case, when: str) -> Iterator[Row]:
    """A row per block."""
    settings, data = case.settings, nets.load(case.settings)
    network = nets.at_start(settings, data) if when == "start" else nets.ended(case)
    scores = nets.scores(settings, network) if when == "end" else {}
    images, labels = nets.some_images(settings, data, IMAGES)
    network, images = network.double().train(), images.double()
    error = {"clean_error_percent": scores.get("train_error_percent")}
    place = case.place("arm") | {"when": when} | error
    nothing = dict.fromkeys(("identity_error", *BLOCK))
    found = blocks(network, images, labels)
    for number, share in enumerate(path_shares(network, images, labels), start=1):
        yield place | {"block": number, "path_share": share} | nothing | found.get(number, {})


def path_shares(network: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """The share of the gradient at each block's input that came by shortcuts alone."""
    steps, alone = unravelled(network, images, labels)
    whole, shares = alone, []
    for step in reversed(steps):
        whole = back(step, whole, by_branch=True) + back(step, whole, by_branch=False)
        alone = back(step, alone, by_branch=False)
        shares.append(((alone * whole).sum() / whole.square().sum()).item())
    return shares[::-1]


def blocks(network: nn.Module, images: Tensor, labels: Tensor) -> dict[int, Row]:
    """The numbers of every block with an identity shortcut, by block from 1.

    None for a pre-activated network of one block a stage.
    """
    logits, passages = passed(network, images)
    seen = {number: one for number, one in enumerate(passages, start=1) if keeps_shape(one)}
    if not seen:
        return {}
    wanted = [tensor for one in seen.values() for tensor in (one.x, one.f, one.y)]
    gradients = torch.autograd.grad(cross_entropy(logits, labels), wanted, retain_graph=True)
    return {
        number: numbers(one, *gradients[3 * at : 3 * at + 3])
        for at, (number, one) in enumerate(seen.items())
    }


def passed(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Passage]]:
    """Logits, and what each block made of its input on the way."""
    branches: list[tuple[Tensor, Tensor]] = []
    passages: list[Passage] = []

    def branched(branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        branches.append((inputs[0], output))

    def ended(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(block, Block)
        passages.append(Passage(block, *branches.pop(), output))

    blocks = [module for module in network.modules() if isinstance(module, Block)]
    with nets.hooked([block.branch for block in blocks], branched), nets.hooked(blocks, ended):
        return network(images), passages


def keeps_shape(one: Passage) -> bool:
    """Whether nothing but an identity stands beside the branch."""
    return one.x.shape == one.f.shape and not list(one.block.before.children())


def numbers(one: Passage, at_x: Tensor, at_f: Tensor, at_y: Tensor) -> Row:
    """What the module's docstring defines, of one block; ``at_`` are gradients of the loss."""
    (branch,) = torch.autograd.grad(one.f, one.x, at_f, retain_graph=True)
    stops = bool(list(one.block.after.children()))
    return {  # s = x + F, so dL/ds is dL/dF
        "identity_error": ((at_x - at_f - branch).norm() / at_x.norm()).item(),
        "shortcut_share": ((at_f * at_x).sum() / at_x.square().sum()).item(),
        "gain": (at_x.norm() / at_y.norm()).item(),
        "branch_over_input": (one.f.norm() / one.x.norm()).item(),
        "cosine": ((one.x * one.y).sum() / one.x.norm() / one.y.norm()).item(),
        "clipped": (one.x + one.f < 0).double().mean().item() if stops else 0.0,
    }


# --- from the rows


def medians(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """The median over the blocks of each network that have it, by (arm, depth, when, seed)."""
    known = rows.dropna(subset=column)
    return known.groupby(["arm", "depth", "when", "seed"], sort=False)[column].median()


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    wholes = those(rows, block=1).set_index(["arm", "depth", "when", "seed"])
    found = {"path share": wholes["path_share"]}
    found |= {f"median {column}": medians(rows, column) for column in BLOCK}
    numbers = {
        f"{name}, {arm} {depth}, {when}": mean(some)
        for name, values in found.items()
        for (arm, depth, when), some in values.groupby(["arm", "depth", "when"], sort=False)
    }
    error, deep = float(rows["identity_error"].max()), rows["depth"].max()
    judged = those(rows, depth=deep, when="end")
    shares = {arm: values(judged, "path_share", arm=arm, block=1) for arm in ARMS}
    worst = float(judged["clean_error_percent"].max(skipna=False))
    n = int(judged["block"].max())
    stage = values(judged, "path_share", arm="residual", block=min(2 * n // 3 + 2, n))
    known = judged.dropna(subset="shortcut_share")
    single = by_seed(known, "shortcut_share", pd.Series.median, arm="residual")
    told = {f"by shortcuts alone, {arm}-{deep} trained": share for arm, share in shares.items()}
    told[f"residual-{deep}, through its last stage alone"] = stage
    told[f"residual-{deep}, through a single block"] = single
    exact = rows.dropna(subset="identity_error").groupby("seed")["identity_error"].max()
    first = " and ".join(f"{mean(share):.2%} of {arm}-{deep}'s" for arm, share in shares.items())
    return Finding(
        judge(error, worst, list(shares.values())),
        f"trained (clean training error at most {worst:.1f} percent), the path of shortcuts alone "
        f"brings {first} gradient to the first block; in residual-{deep} {mean(stage):.2%} through "
        f"the last stage, where shortcuts are identities, and {mean(single):.0%} through a single "
        f"block (median); the equation itself holds to {error:.0e}.",
        numbers=numbers | {"largest identity_error": error},
        conventions=[
            f"{IMAGES} training images, one batch, training-mode statistics, float64; "
            f"{seeds_of(rows)}; a share: projection on the whole gradient at the same place"
        ],
        headlines=[
            *(Headline(what, 100 * share, "%", ".2f") for what, share in told.items()),
            Headline("error of the equation", exact, form=".0e", interval=False),
        ],
    )


def judge(error: float, worst: float, shares: Sequence[pd.Series[float]]) -> Verdict:
    """The rule: of identity and training the greatest errors, and each arm's shares by seed."""
    if not (error < EXACT and worst < FAILED) or min(map(len, shares)) < SEEDS:
        return Verdict.inconclusive
    bounds = [paired_t(list(share)) for share in shares]
    above, below = (one.lower > MOST for one in bounds), (one.upper < MOST for one in bounds)
    return Verdict.of(all(above), all(below))


def draw(rows: pd.DataFrame) -> Figure:
    """By block of the deepest networks; dashed at the start."""
    from resexp.probes.drawing import DASHES, GREY, finish, means, panels, series

    deep, styles = rows["depth"].max(), series("plain", *ARMS)
    del styles["plain"]  # whose colour is for plain networks alone
    labels = {
        "path_share": "share of the gradient at a block\nthat came by shortcuts alone",
        "branch_over_input": "branch over input, |F(x)| / |x|",
    }
    strokes = {"start": (DASHES, 0.8), "end": ("-", 1.4)}
    figure, axes = panels(2, 68)
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for (arm, style), (when, (stroke, width)) in product(styles.items(), strokes.items()):
            some, colour = those(rows, depth=deep, arm=arm, when=when), style["color"]
            means(axis, some, "block", column, linestyle=stroke, linewidth=width, color=colour)
        axis.axhline(1.0 if column == "branch_over_input" else MOST, color=GREY, linewidth=0.6)
        axis.set(xlabel="block, from the input", ylabel=label)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    styles = {arm: {"color": style["color"]} for arm, style in styles.items()}
    styles |= {"trained": {"color": GREY}, "at the start": {"color": GREY, "linestyle": DASHES}}
    seeds = rows["seed"].nunique()
    return finish(figure, f"Gradients by shortcuts, depth {deep}: means of {seeds} seeds", styles)
