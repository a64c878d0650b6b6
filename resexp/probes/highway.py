"""The gradient highway: dL/dx = dL/ds (dF/dx + 1) at an addition s = x + F(x).

For every block whose shortcut is the identity (those where shapes change, and the first of a
pre-activated network, share an activation or are no identity: left out), in float64:

- ``identity_error``: |dL/dx - (dL/ds + v)| / |dL/dx|, v the branch's own vector-Jacobian product,
  computed apart from the network. Exact but for rounding (He et al. 2016, equation 5).
- ``shortcut_share``: <dL/ds, dL/dx> / |dL/dx|^2, the part of dL/dx that came by the shortcut,
  measured along dL/dx; the branch has the rest, so it may lie outside 0..1. A plain block has 0.
- ``direct_share``: <dL/dx_L, dL/dx> / |dL/dx|^2, x_L the end of the block's stage: the part that
  came by shortcuts alone all the way, where nothing but additions is between (pre-activation).
- ``gain``: |dL/dx| / |dL/dy|, y the block's output: what one block does to the gradient.
- ``branch_over_input`` |F(x)| / |x|, ``cosine`` of x and y, ``clipped``, the share of s below 0,
  which the ReLU after the addition stops (0 in a pre-activated block, which has none).

The rule: the claim is about residual and pre-activated networks, trained if checkpoints are there,
else at the start. Every identity_error below 1e-9, and the median shortcut_share of each network
above 0.5: supported. Below 0.5 in every network: not supported. Else inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.models.blocks import Block
from resexp.models.merges import Drop
from resexp.probes import Case, Cell, Finding, Headline, Needs, Tell, Verdict
from resexp.probes.networks import at_start, hooked, load, places, some_images, trained
from resexp.probes.rows import by_seed, seeds_of, those
from resexp.settings import Arch, Merge, Order, Settings, Twin, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Skips are a highway: most of the gradient reaches the early layers by the shortcuts."
SOURCE = "He et al. 2016, section 2, equation 5"
TEXTBOOK = "dL/dx = dL/dy (dF/dx + 1): the 1 carries the gradient to any layer."
NEEDS = Needs.settings
USUAL = ["depth=20,56", "arch=plain,residual,preact", "seed=0,1,2"]

IMAGES = 64
SEEDS = 3
EXACT = 1e-9
ARMS = {
    "plain": Arch(),
    "residual": Arch(merge=Merge.residual),
    "preact": Arch(merge=Merge.residual, order=Order.full_preactivation),
}


#: What figures and numbers are told of, by block.
NUMBERS = ("shortcut_share", "direct_share", "gain", "branch_over_input", "cosine", "clipped")
WHEN = {"start": "at the start", "end": "trained"}


@dataclass(slots=True)
class Passage:
    """One block's tensors of a forward pass: input, branch, output."""

    block: Block
    x: Tensor
    f: Tensor
    y: Tensor


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """Networks at the start for each depth and seed, and the same trained where checkpoints are."""

    def fits(case: Case) -> bool:
        return case.settings.arch.family == "cifar" and case.settings.arch.skip_span == 2

    found = places(cases, fits, SEEDS)
    if not found:
        raise UsageError("highway needs networks of the cifar family. Choose arch=residual.")
    bases = {place[1:]: case.settings for place, case in reversed(found.items())}
    seeds = {seed for _, seed in bases}
    ended = [
        case
        for case in cases
        if case.checkpoint is not None
        and case.settings.seed in seeds
        and ARMS.get(case.arch) == case.settings.arch
        and case.settings.twin is Twin.none
    ]
    work = [(base, arm) for base in bases.values() for arm in ARMS]
    rows: list[dict[str, Cell]] = []
    for done, (base, arm) in enumerate(work):
        tell(done, len(work) + len(ended), f"{arm} {base.depth}, seed {base.seed}")
        settings = replace(base, arch=ARMS[arm], twin=Twin.none)
        rows += rows_of(arm, settings, "start", at_start(settings, load(settings)))
    for done, case in enumerate(ended, start=len(work)):
        tell(done, len(work) + len(ended), f"{case.arch} {case.settings.depth}, trained")
        network = trained(case, load(case.settings))
        rows += rows_of(case.arch, case.settings, "end", network)
    if not rows:
        raise UsageError("no block here keeps its input's shape. Choose deeper networks: depth=20.")
    return rows


def rows_of(arm: str, settings: Settings, when: str, network: nn.Module) -> list[dict[str, Cell]]:
    """A row per block that keeps its input's shape."""
    images, labels = some_images(settings, load(settings), IMAGES)
    place: dict[str, Cell] = {"arm": arm, "depth": settings.depth, "seed": settings.seed}
    found = blocks(network.double().train(), images.double(), labels)
    return [place | {"when": when} | numbers for numbers in found]


def blocks(network: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Cell]]:
    """The numbers of every block with an identity shortcut (or, plain, where one could be).

    None for a pre-activated network of one block a stage.
    """
    logits, passages = passed(network, images)
    seen = [(number, one) for number, one in enumerate(passages, start=1) if keeps_shape(one)]
    if not seen:
        return []
    wanted = [tensor for _, one in seen for tensor in (one.x, one.f, one.y)]
    gradients = torch.autograd.grad(cross_entropy(logits, labels), wanted, retain_graph=True)
    found: list[dict[str, Cell]] = []
    ends: dict[torch.Size, Tensor] = {}  # the gradient at the end of a stage, by its shape
    for at in reversed(range(len(seen))):
        number, one = seen[at]
        at_x, at_f, at_y = gradients[3 * at : 3 * at + 3]
        end = ends.setdefault(one.y.shape, at_y)
        direct = ((end * at_x).sum() / at_x.square().sum()).item() if only_adds(one) else None
        shares: dict[str, Cell] = {"block": number, "direct_share": direct}
        found.append(shares | numbers(one, at_x, at_f, at_y))
    return found[::-1]


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
    with hooked([block.branch for block in blocks], branched), hooked(blocks, ended):
        return network(images), passages


def keeps_shape(one: Passage) -> bool:
    """Whether nothing but an identity stands, or could stand, beside the branch."""
    return one.x.shape == one.f.shape and not list(one.block.before.children())


def only_adds(one: Passage) -> bool:
    """Whether the output is x + F(x) and nothing stands behind the addition."""
    return not isinstance(one.block.merge, Drop) and not list(one.block.after.children())


def numbers(one: Passage, at_x: Tensor, at_f: Tensor, at_y: Tensor) -> dict[str, Cell]:
    """What the module's docstring defines, of one block; ``at_`` are gradients of the loss."""
    (branch,) = torch.autograd.grad(one.f, one.x, at_f, retain_graph=True)
    plain = isinstance(one.block.merge, Drop)
    carried = torch.zeros_like(at_f) if plain else at_f  # s = x + F, so dL/ds is dL/dF
    total = one.f if plain else one.x + one.f
    stops = bool(list(one.block.after.children()))
    return {
        "identity_error": ((at_x - carried - branch).norm() / at_x.norm()).item(),
        "shortcut_share": ((carried * at_x).sum() / at_x.square().sum()).item(),
        "gain": (at_x.norm() / at_y.norm()).item(),
        "branch_over_input": (one.f.norm() / one.x.norm()).item(),
        "cosine": ((one.x * one.y).sum() / one.x.norm() / one.y.norm()).item(),
        "clipped": (total < 0).double().mean().item() if stops else 0.0,
    }


# --- from the rows


def medians(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """The median over the blocks of each network, by (arm, depth, when, seed)."""
    networks = rows.groupby(["arm", "depth", "when", "seed"], sort=False)[column]
    return networks.agg(lambda blocks: blocks.median(skipna=False))


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    numbers = {
        f"median {column}, {arm} {depth}, {when}": float(values.mean())
        for column in NUMBERS
        for (arm, depth, when), values in medians(rows, column)
        .dropna()
        .groupby(["arm", "depth", "when"], sort=False)
    }
    numbers["largest identity_error"] = error = float(rows["identity_error"].max(skipna=False))
    skips = rows[rows["arm"] != "plain"]
    when = "end" if (skips["when"] == "end").any() else "start"
    shares = medians(those(skips, when=when), "shortcut_share")
    stage = "of trained networks" if when == "end" else "at the start"
    return Finding(
        judge(error, shares),
        f"the identity holds to {error:.0e}, and {stage} a block's shortcut brings "
        f"{shares.min():.0%} to {shares.max():.0%} of its input's gradient (medians of "
        f"{len(shares)} networks with skips).",
        numbers=numbers,
        conventions=[
            "shortcut_share: projection of the shortcut's part on the whole gradient at a block's "
            "input; the branch has the rest; 0 in plain networks by construction",
            "gain above 1: the gradient grows through a block towards the input",
            f"{IMAGES} training images, one batch, training-mode statistics, float64; "
            f"{seeds_of(rows)}",
            "blocks that change shapes, and the first of a pre-activated network, are left out",
        ],
        headlines=headlines(rows, when),
    )


def headlines(rows: pd.DataFrame, when: str) -> list[Headline]:
    """Shares of the deepest and shallowest networks, and how exact the equation is."""
    depths = those(rows, arm="residual")["depth"]
    preact = those(rows, arm="preact")["depth"].max()
    told = [
        ("residual", depths.max(), when),
        ("residual", depths.min(), when),
        ("preact", preact, "start"),
    ]
    found = []
    for arm, depth, moment in dict.fromkeys(told):
        where = {"arm": arm, "depth": depth, "when": moment}
        percent = 100 * by_seed(rows, "shortcut_share", pd.Series.median, "block", **where)
        what = f"by shortcuts, {arm}-{depth} {WHEN[moment]}"
        found.append(Headline(what, percent, "%", ".0f"))
    exact = by_seed(rows, "identity_error", pd.Series.max)
    return [*found, Headline("error of the equation", exact, form=".0e", interval=False)]


def judge(error: float, shares: Iterable[float]) -> Verdict:
    """The rule in the module's docstring."""
    if error < EXACT and all(share > 0.5 for share in shares):
        return Verdict.supported
    if error < EXACT and all(share < 0.5 for share in shares):
        return Verdict.not_supported
    return Verdict.inconclusive


def draw(rows: pd.DataFrame) -> Figure:
    """Three numbers of every block of the deepest networks; dashed once trained."""
    from resexp.probes.drawing import DASHES, GREY, finish, means, panels, series

    deep, styles = rows["depth"].max(), series("plain", "residual", "preact")
    labels = {
        "gain": "gradient at a block's input\nover its output (norms)",
        "shortcut_share": "share of the gradient at the input\nthat came by the shortcut",
        "branch_over_input": "branch over input, |F(x)| / |x|",
    }
    figure, axes = panels(3, 72)
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for (arm, style), when in product(styles.items(), WHEN):
            some = those(rows, depth=deep, arm=arm, when=when)
            stroke = DASHES if when == "end" else "-"
            means(axis, some, "block", column, linestyle=stroke, ms=2.5, lw=1.1, **style)
        axis.axhline(0.5 if column == "shortcut_share" else 1.0, color=GREY, linewidth=0.6)
        axis.set(xlabel="block, from the input", ylabel=label)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    if len(those(rows, when="end")):
        styles |= {"at the start": {"color": GREY}, "trained": {"color": GREY, "linestyle": DASHES}}
    seeds = rows["seed"].nunique()
    title = f"Every block that keeps its input's shape, depth {deep}: means of {seeds} seeds"
    return finish(figure, title, styles)
