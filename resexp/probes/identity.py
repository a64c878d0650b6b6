"""Can a plain network learn to do nothing? A deep solution built from a shallow one, and searched.

- ``constructed``: a trained shallow plain network, its stages lengthened by blocks that are
  the identity: Dirac convolutions, normalisation whose scale and shift undo its statistics. As the
  input of such a block is not negative, ReLUs change nothing: the deep network's loss is the
  shallow one's, so a solution as good exists at that depth.
- ``warm``: the constructed network trained on for some steps at the recipe's last rate.
- ``scratch``: the deep network trained from its usual start, as its run was.
- ``regression``: y = x asked of a stack of convolutions, plain and residual, with the recipe's rate
  and decay: |f(x) - x| / |x| on new images. Images are noise made non-negative, for a ReLU at the
  end can give nothing else. A residual stack is the identity where its branches are 0: partly a
  tautology, and no evidence about other tasks. At its usual start they are not: normalised, each
  adds as much as it is given, so that the stack starts farther from y = x than a plain one. A third
  stack, ReZero's, starts with branches that count 0: it has nothing to learn, and says how much of
  "easy identity" is the start. It decides nothing.

The rule, at least three seeds. Every constructed loss within 1e-6 of the shallow one, no warm loss
above its constructed one, every scratch loss above it, and in regression every residual error below
0.01 and every plain one at least ten times as large: supported. A scratch loss no higher than the
constructed one in every seed, or a plain error below 0.01 in every seed: not supported (training
finds it). Else inconclusive: where neither stack learned y = x the regression decides nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from resexp.models.blocks import stack
from resexp.models.initialise import initialise
from resexp.models.layers import Norm
from resexp.probes import Case, Cell, Finding, Headline, Needs, Tell, Verdict
from resexp.probes.networks import at_start, ended, load, places, some_images
from resexp.probes.rows import difference, mean, seeds_of, those, values
from resexp.settings import Arch, Merge, Settings, Twin, UsageError
from resexp.train.fit import begin, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLAIM = "A deep plain network could do as well as a shallow one, but training does not find it."
SOURCE = "He et al. 2015, sections 1 and 3.1"
TEXTBOOK = (
    "Added layers could be identities, so a deeper network need not be worse; solvers do not find "
    "that."
)
NEEDS = Needs.settings
USUAL = ["depth=8,20", "arch=plain", "seed=0,1,2"]

IMAGES = 512
SEEDS = 3
WARM_STEPS = 30
STACKS = {"plain": Merge.plain, "residual": Merge.residual, "rezero": Merge.scaled}
LAYERS = 20  # convolutions of the regression's stack
WIDTH, SIDE = 8, 8  # its channels, and pixels a side
REGRESSION_STEPS = 200
BATCH = 32
SAME = 1e-6  # nats
CLOSE, TIMES = 0.01, 10.0

BySeed: TypeAlias = "Sequence[float] | pd.Series[float]"


def measure(cases: Sequence[Case], tell: Tell) -> list[dict[str, Cell]]:
    """The shallowest depth and the deepest."""

    def fits(case: Case) -> bool:
        return case.settings.arch == Arch() and case.settings.twin is Twin.none

    found = places(cases, fits, len(cases))
    chosen = {place[1:]: case for place, case in reversed(found.items())}
    depths = {depth for depth, _ in chosen}
    if len(depths) < 2:
        raise UsageError(
            "identity needs plain networks of two depths. Choose arch=plain depth=8,20."
        )
    shallow, deep = min(depths), max(depths)
    seeds = sorted({seed for _, seed in chosen if {(shallow, seed), (deep, seed)} <= set(chosen)})
    rows: list[dict[str, Cell]] = []
    for done, seed in enumerate(seeds[:SEEDS]):
        tell(2 * done, 2 * len(seeds), f"plain {shallow} and {deep}, seed {seed}")
        rows += built(chosen[shallow, seed], chosen[deep, seed])
        tell(2 * done + 1, 2 * len(seeds), f"learning y = x, seed {seed}")
        for arch, merge in STACKS.items():
            error = regression(chosen[deep, seed].settings, merge, LAYERS, REGRESSION_STEPS)
            rows.append(row("regression", arch, LAYERS, seed, None, error))
    return rows


def built(shallow: Case, deep: Case) -> list[dict[str, Cell]]:
    """Losses of the shallow network, of the one built from it, trained on, and of the usual one."""
    settings, data = deep.settings, load(deep.settings)
    images, labels = some_images(settings, data, IMAGES)
    source = ended(shallow).eval()
    made = constructed(source, at_start(settings, data), images)
    networks = {"shallow": source, "constructed": copy.deepcopy(made)}
    networks["warm"] = trained_on(made, settings)
    networks["scratch"] = ended(deep)
    depths = {part: (shallow if part == "shallow" else deep).settings.depth for part in networks}
    return [
        row(part, "plain", depths[part], settings.seed, loss(network, images, labels), None)
        for part, network in networks.items()
    ]


@torch.no_grad()
def constructed(shallow: nn.Module, deep: nn.Module, images: Tensor) -> nn.Module:
    """``deep`` with the parameters of ``shallow``, and identities for the blocks it has more.

    Each stage keeps the shallow network's blocks first. Evaluation mode.
    """
    deep.eval()
    for name in ("stem", "end", "classifier"):
        deep.get_submodule(name).load_state_dict(shallow.get_submodule(name).state_dict())
    x = shallow.eval().get_submodule("stem")(images)
    stages: dict[tuple[int, ...], list[nn.Module]] = {}
    for block in shallow.get_submodule("blocks").children():
        x = block(x)
        stages.setdefault(tuple(x.shape[1:]), []).append(block)
    x = deep.get_submodule("stem")(images)
    for block in deep.get_submodule("blocks").children():
        if source := stages[tuple(block(x).shape[1:])]:
            block.load_state_dict(source.pop(0).state_dict())
        else:
            become_identity(block, x)
        x = block(x)
    return deep


@torch.no_grad()
def become_identity(block: nn.Module, x: Tensor) -> None:
    """A plain block that outputs its input, where that is like ``x`` [N, C, H, W], not negative.

    Normalisation has the statistics of x, and scales and shifts that undo them, so that the block
    is the identity at evaluation, and nearly so while training.
    """
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
            layer.weight.copy_((layer.running_var.double() + layer.eps).sqrt())
            layer.bias.copy_(layer.running_mean)


def trained_on(network: nn.Module, settings: Settings) -> nn.Module:
    """The network after WARM_STEPS more at the recipe's last rate."""
    rate = settings.lr * settings.lr_drop ** len(settings.milestones)
    more = replace(
        settings,
        lr=rate,
        milestones=[],
        warmup_steps=0,
        steps=WARM_STEPS,
        eval_every=WARM_STEPS + 1,
    )
    state = begin(network, more)
    for _ in fit(state, more, load(settings)):
        pass
    return network


@torch.no_grad()
def loss(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats, in evaluation mode."""
    return cross_entropy(network.eval()(images).double(), labels).item()


def regression(settings: Settings, merge: Merge, layers: int, steps: int) -> float:
    """The relative error of a stack of ``layers`` convolutions that learned y = x."""
    norm = Norm(settings.bn_eps, settings.bn_momentum)
    network, _ = stack(Arch(merge=merge), WIDTH, WIDTH, [layers // 2], norm)
    initialise(network, settings.seed, settings.init)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [int(share * steps) for share in settings.milestones], settings.lr_drop
    )
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(steps):
        x = noise(BATCH, generator)
        optimizer.zero_grad()
        mse_loss(network(x), x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    x = noise(8 * BATCH, generator)
    with torch.no_grad():
        return float((network.eval()(x) - x).norm() / x.norm())


def noise(count: int, generator: torch.Generator) -> Tensor:
    """Non-negative images [count, WIDTH, SIDE, SIDE]: normal values, those below 0 set to 0."""
    return torch.randn(count, WIDTH, SIDE, SIDE, generator=generator).relu()


def row(
    part: str, arch: str, depth: int, seed: int, nats: float | None, error: float | None
) -> dict[str, Cell]:
    return dict(part=part, arch=arch, depth=depth, seed=seed, loss=nats, relative_error=error)


# --- from the rows


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    parts = ("shallow", "constructed", "warm", "scratch")
    losses = {part: values(rows, "loss", part=part, arch="plain") for part in parts}
    errors = {arch: values(rows, "relative_error", part="regression", arch=arch) for arch in STACKS}
    means = {key: mean(some) for key, some in (losses | errors).items()}
    apart = difference(losses["shallow"], losses["constructed"]).abs()
    most = float(apart.max(skipna=False))
    shallow, deep = (those(rows, part=part)["depth"].iloc[0] for part in ("shallow", "scratch"))
    beyond = difference(losses["scratch"], losses["constructed"])
    return Finding(
        judge(losses, errors),
        f"plain-{deep} built from plain-{shallow} has its loss to {most:.0e} nats "
        f"({means['constructed']:.4f}), {means['warm']:.4f} trained on, {means['scratch']:.4f} "
        f"from the usual start; asked for y = x, {LAYERS} layers miss by "
        f"{means['plain']:.3f} plain, {means['residual']:.3f} residual and {means['rezero']:.3f} "
        "residual with branches that start at 0.",
        numbers={f"nats, {part}": means[part] for part in losses}
        | {f"relative error of y = x, {arch} {LAYERS}": means[arch] for arch in errors}
        | {"nats, constructed and shallow apart at most": most},
        conventions=[
            f"losses in nats on {IMAGES} training images at most, evaluation mode; lower is better",
            f"warm: {WARM_STEPS} steps at the recipe's last rate; the statistics of identity "
            "blocks are those of the images",
            f"regression: |f(x) - x| / |x|, stack of {LAYERS} 3x3 convolutions of {WIDTH} channels "
            f"with batch normalisation, {REGRESSION_STEPS} steps of {BATCH} images of "
            f"{SIDE}x{SIDE}, the recipe's rate, drops and decay; new images, evaluation mode",
            "a residual stack is the identity where its branches are 0 (partly a tautology), but "
            "normalised branches are not 0 at the start: it begins farther from y = x than a plain "
            "stack",
            seeds_of(rows),
        ],
        headlines=[
            Headline(f"loss of plain-{deep}, trained less constructed", beyond, "nats", "+.4f"),
            Headline("constructed and shallow apart", apart, "nats", ".0e", interval=False),
            Headline(f"y = x, {LAYERS} layers, error: plain", errors["plain"], form=".3f"),
            Headline("residual", errors["residual"], form=".3f"),
            Headline("residual, branches that start at 0", errors["rezero"], form=".3f"),
        ],
    )


def judge(losses: Mapping[str, BySeed], errors: Mapping[str, BySeed]) -> Verdict:
    """The rule in the module's docstring, by seed."""
    shallow, built, warm, scratch = (
        np.array(losses[part]) for part in ("shallow", "constructed", "warm", "scratch")
    )
    plain, residual = np.array(errors["plain"]), np.array(errors["residual"])
    if len(built) < SEEDS:
        return Verdict.inconclusive
    exists = (abs(built - shallow) <= SAME).all() and (warm <= built).all()
    learned = (residual < CLOSE).all() and (plain >= TIMES * residual).all()
    if exists and (scratch > built).all() and learned:
        return Verdict.supported
    if (scratch <= built).all() or (plain < CLOSE).all():
        return Verdict.not_supported
    return Verdict.inconclusive


def draw(rows: pd.DataFrame) -> Figure:
    """A dot per seed and a line at the mean: losses of networks, errors at learning y = x."""
    from resexp.probes.drawing import COLOURS, dots, finish, panels

    learned, built = those(rows, part="regression"), rows[rows["part"] != "regression"]
    parts = {
        "shallow": "shallow,\ntrained",
        "constructed": "deep,\nbuilt from it",
        "warm": "built,\ntrained on",
        "scratch": "deep, from\nusual start",
    }
    stacks = {"plain": "plain", "residual": "residual", "rezero": "branches\nstart at 0"}
    figure, (losses, errors) = panels(2, 70, width_ratios=[3, 2])
    for at, part in enumerate(parts):
        dots(losses, at, those(built, part=part)["loss"], COLOURS["plain"])
    for at, arch in enumerate(stacks):
        colour = COLOURS["plain" if arch == "plain" else "residual"]
        dots(errors, at, those(learned, arch=arch)["relative_error"], colour)
    scale(losses, built["loss"])
    scale(errors, learned["relative_error"])
    losses.set_xticks(range(len(parts)), list(parts.values()))
    losses.set_ylabel("training loss, nats")
    errors.set_xticks(range(len(stacks)), list(stacks.values()))
    errors.set_xlim(-0.6, len(stacks) - 0.4)
    errors.set_ylabel("error at y = x, |f(x) - x| / |x|")
    return finish(
        figure,
        f"Plain networks of depth {built['depth'].min()} and {built['depth'].max()} (left); stacks "
        f"of {learned['depth'].iloc[0]} convolutions that learn the identity (right); "
        f"{rows['seed'].nunique()} seeds",
    )


def scale(axis: Axes, values: pd.Series[float]) -> None:
    """Logarithmic where a decade is spanned, else from 0."""
    if values.max() >= 10 * values.min() > 0:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, 1.1 * values.max())
