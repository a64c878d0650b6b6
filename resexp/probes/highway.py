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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.models.blocks import Block
from resexp.models.merges import Drop
from resexp.probes import (
    Case,
    Cell,
    Finding,
    Needs,
    Tell,
    Verdict,
    at_start,
    load,
    some_images,
    trained,
)
from resexp.settings import Arch, Merge, Order, Settings, Twin, UsageError

CLAIM = "Skips are a highway: most of the gradient reaches the early layers by the shortcuts."
SOURCE = "He et al. 2016, section 2, equation 5"
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


@dataclass(slots=True)
class Passage:
    """One block's tensors of a forward pass: input, branch, output."""

    block: Block
    x: Tensor
    f: Tensor
    y: Tensor


def measure(cases: Sequence[Case], tell: Tell) -> Finding:
    """Networks at the start for each depth and seed, and the same trained where checkpoints are."""
    bases = {
        (case.settings.depth, case.settings.seed): case.settings
        for case in reversed(cases)
        if case.settings.arch.family == "cifar" and case.settings.arch.skip_span == 2
    }
    seeds = sorted({seed for _, seed in bases})[:SEEDS]
    bases = {place: base for place, base in bases.items() if place[1] in seeds}
    if not bases:
        raise UsageError("highway needs networks of the cifar family. Choose arch=residual.")
    ended = [
        case
        for case in cases
        if case.checkpoint is not None
        and case.settings.seed in seeds
        and ARMS.get(case.arch) == case.settings.arch
        and case.settings.twin is Twin.none
    ]
    work = [(arm, place) for place in bases for arm in ARMS]
    rows: list[dict[str, Cell]] = []
    for done, (arm, place) in enumerate(work):
        tell(done, len(work) + len(ended), f"{arm} {place[0]}, seed {place[1]}")
        settings = replace(bases[place], arch=ARMS[arm], twin=Twin.none)
        network = at_start(settings, load(settings))
        rows += rows_of(arm, settings, "start", network)
    for done, case in enumerate(ended, start=len(work)):
        tell(done, len(work) + len(ended), f"{case.arch} {case.settings.depth}, trained")
        network = trained(case, load(case.settings))
        rows += rows_of(case.arch, case.settings, "end", network)
    if not rows:
        raise UsageError("no block here keeps its input's shape. Choose deeper networks: depth=20.")
    return concluded(rows)


def rows_of(arm: str, settings: Settings, when: str, network: nn.Module) -> list[dict[str, Cell]]:
    """A row a block that keeps its input's shape."""
    data = load(settings)
    images, labels = some_images(settings, data, IMAGES)
    place: dict[str, Cell] = {
        "arm": arm,
        "depth": settings.depth,
        "seed": settings.seed,
        "when": when,
    }
    return [
        place | numbers for numbers in blocks(network.double().train(), images.double(), labels)
    ]


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
    handles = [block.branch.register_forward_hook(branched) for block in blocks]
    handles += [block.register_forward_hook(ended) for block in blocks]
    try:
        return network(images), passages
    finally:
        for handle in handles:
            handle.remove()


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


def medians(rows: Sequence[dict[str, Cell]], column: str) -> dict[tuple[Cell, ...], float]:
    """The median over the blocks of each network, by (arm, depth, when, seed)."""
    groups: dict[tuple[Cell, ...], list[float]] = {}
    for row in rows:
        if (value := row[column]) is not None:
            place = row["arm"], row["depth"], row["when"], row["seed"]
            groups.setdefault(place, []).append(float(value))
    return {place: median(values) for place, values in groups.items()}


def concluded(rows: list[dict[str, Cell]]) -> Finding:
    """The finding from all rows."""
    figures: dict[str, float] = {}
    for column in (
        "shortcut_share",
        "direct_share",
        "gain",
        "branch_over_input",
        "cosine",
        "clipped",
    ):
        seeds: dict[str, list[float]] = {}
        for (arm, depth, when, _), value in medians(rows, column).items():
            seeds.setdefault(f"median {column}, {arm} {depth}, {when}", []).append(value)
        figures |= {key: sum(values) / len(values) for key, values in seeds.items()}
    error = max(float(row["identity_error"] or 0) for row in rows)
    figures["largest identity_error"] = error
    when = "end" if any(row["when"] == "end" for row in rows) else "start"
    shares = {
        place: share
        for place, share in medians(rows, "shortcut_share").items()
        if place[0] != "plain" and place[2] == when
    }
    lowest, highest = min(shares.values()), max(shares.values())
    stage = "of trained networks" if when == "end" else "at the start"
    return Finding(
        judge(error, list(shares.values())),
        f"the identity holds to {error:.0e}, and {stage} a block's shortcut brings {lowest:.0%} to "
        f"{highest:.0%} of its input's gradient (medians of {len(shares)} networks with skips).",
        rows,
        figures,
        [
            "shortcut_share: projection of the shortcut's part on the whole gradient at a block's "
            "input; the branch has the rest; 0 in plain networks by construction",
            "gain above 1: the gradient grows through a block towards the input",
            f"{IMAGES} training images, one batch, training-mode statistics, float64; seeds "
            f"{', '.join(map(str, sorted({int(row['seed'] or 0) for row in rows})))}",
            "blocks that change shapes, and the first of a pre-activated network, are left out",
        ],
    )


def judge(error: float, shares: Sequence[float]) -> Verdict:
    """The rule in the module's docstring."""
    if error < EXACT and min(shares) > 0.5:
        return Verdict.supported
    if error < EXACT and max(shares) < 0.5:
        return Verdict.not_supported
    return Verdict.inconclusive
