"""Can a deep network do nothing more than a shallow one? The solution built, and searched for.

For plain networks, and as a control for pre-activated residual ones (He et al. 2016):

- ``shallow``: trained, as its run was;
- ``constructed``: the shallow one with its stages lengthened by blocks that are the identity, so
  that a solution as good exists at that depth. Plain blocks: Dirac convolutions, normalisation
  whose scale and shift undo its statistics; as their input is not negative, ReLUs change nothing.
  Pre-activated blocks: the last convolution is 0, and they are the identity exactly;
- ``warm``: the constructed network trained on for some steps at the recipe's last rate;
- ``scratch``: the deep network trained from its usual start, as its run was.

The rule, at least three seeds, of losses in nats. Supported: in every seed both constructed losses
within 1e-6 of the shallow ones, the plain warm one not above its constructed one, and the plain
scratch one above it; log10 scratch / constructed of plain at least 0.3 in the mean (a factor of
two), and of the control less than half of that (else the recipe trains nothing that deep, and it is
no matter of skips). Not supported (training finds it): no plain scratch loss above the constructed
one. Else inconclusive. The word is of the recipe's rate and steps: in others training may find it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.models.blocks import Block
from resexp.models.merges import Drop
from resexp.probes import Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.rows import ENOUGH, decades, difference, mean, seeds_of, those, values
from resexp.settings import Arch, Merge, Order, UsageError

CLAIM = "A deep plain network could do as well as a shallow one, but training does not find it."
SOURCE = "He et al. 2015, sections 1 and 3.1"
TEXTBOOK = (
    "Added layers could be identities, so a deeper network need not be worse; solvers do not find "
    "that."
)
NEEDS = Needs.settings
USUAL = ["depth=8,20", "arch=plain", "seed=0,1,2"]

IMAGES = 512
SEEDS = 5
WARM_STEPS = 30
SAME = 1e-6  # nats
FAR = 0.3  # decades
ARCHS = {"plain": Arch(), "preact": Arch(merge=Merge.residual, order=Order.full_preactivation)}
PARTS = {
    "shallow": "shallow,\ntrained",
    "constructed": "deep,\nbuilt from it",
    "warm": "built,\ntrained on",
    "scratch": "deep, from\nusual start",
}


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """The shallowest depth and the deepest of plain networks; the control is retrained if need be.

    Raises UsageError without plain networks of two depths.
    """
    fit = [case for case in cases if case.arch == case.kind() == "plain"]
    plain = {(depth, seed): case for (_, depth, seed), case in nets.places(fit, len(fit)).items()}
    depths, seeds = ({place[at] for place in plain} for at in (0, 1))
    if len(depths) < 2:
        raise UsageError(
            "identity needs plain networks of two depths. Choose arch=plain depth=8,20."
        )
    ends = min(depths), max(depths)
    both = [seed for seed in sorted(seeds) if all((depth, seed) in plain for depth in ends)]
    for arch, seed in tell([*product(ARCHS, both[:SEEDS])]):
        pair = [replace(plain[depth, seed].settings, arch=ARCHS[arch]) for depth in ends]
        yield from built(*nets.with_runs([Case(arch, one) for one in pair], cases))


def built(shallow: Case, deep: Case) -> Iterator[Row]:
    """Losses of the shallow network, of the one built from it, trained on, and of the usual one."""
    settings, data = deep.settings, nets.load(deep.settings)
    batch = nets.some_images(settings, data, IMAGES)
    source = nets.ended(shallow).eval()
    made = constructed(source, nets.at_start(settings, data), batch[0])
    networks = {"shallow": source, "constructed": copy.deepcopy(made)}
    last = settings.lr * settings.lr_drop ** len(settings.milestones)
    gentle = replace(settings, lr=last, milestones=[], warmup_steps=0, steps=WARM_STEPS)
    networks["warm"] = nets.fitted(made, gentle)
    networks["scratch"] = nets.ended(deep)
    for part, network in networks.items():
        place = (shallow if part == "shallow" else deep).place()
        yield {"part": part} | place | {"loss": loss(network, *batch)}


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
    """A block that outputs its input where that is like ``x`` [N, C, H, W]; plain: not negative.

    A residual block's branch becomes 0. In a plain one normalisation has the statistics of x, and
    scales and shifts that undo them, so that it is the identity at evaluation, and nearly so while
    training.
    """
    assert isinstance(block, Block)
    if not isinstance(block.merge, Drop):
        *_, last = (one for one in block.branch.modules() if isinstance(one, nn.Conv2d))
        nn.init.zeros_(last.weight)
        return
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


@torch.no_grad()
def loss(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats, in evaluation mode."""
    return cross_entropy(network.eval()(images).double(), labels).item()


# --- from the rows

Losses = Mapping[str, pd.Series]  # of one arch by part, each by seed


def missed(losses: Losses) -> pd.Series[float]:
    """log10 of the scratch loss over the constructed one, by seed."""
    return difference(decades(losses["scratch"]), decades(losses["constructed"]))


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    losses: dict[str, Losses] = {
        arch: {part: values(rows, "loss", part=part, arch=arch) for part in PARTS} for arch in ARCHS
    }
    nats = {(arch, part): mean(losses[arch][part]) for arch, part in product(ARCHS, PARTS)}
    apart = {
        arch: difference(one["shallow"], one["constructed"]).abs() for arch, one in losses.items()
    }
    most = max(float(one.max(skipna=False)) for one in apart.values())
    shallow, deep = (those(rows, part=part)["depth"].iloc[0] for part in ("shallow", "scratch"))
    alike = "constructed and shallow apart"
    beyond = {arch: difference(one["scratch"], one["constructed"]) for arch, one in losses.items()}
    return Finding(
        judge(losses["plain"], losses["preact"]),
        f"plain-{deep} built from plain-{shallow} has its loss to {most:.0e} nats "
        f"({nats['plain', 'constructed']:.4f}), {nats['plain', 'warm']:.4f} trained on, "
        f"{nats['plain', 'scratch']:.4f} from the usual start, in the recipe's steps and at its "
        f"rate; control: preact-{deep}, built as exactly ({nats['preact', 'constructed']:.4f}), "
        f"has {nats['preact', 'scratch']:.4f} from its usual start.",
        numbers={f"nats, {part}, {arch}": value for (arch, part), value in nats.items()}
        | {f"log10 scratch over constructed, {arch}": mean(missed(losses[arch])) for arch in ARCHS}
        | {f"nats, {alike} at most": most},
        conventions=[
            f"losses on {IMAGES} training images at most, evaluation mode, whose statistics "
            f"identity blocks have; trained on for {WARM_STEPS} steps; {seeds_of(rows)}"
        ],
        headlines=[
            *(
                Headline(f"loss of {arch}-{deep}, trained less constructed", some, "nats", "+.4f")
                for arch, some in beyond.items()
            ),
            Headline(f"{alike}, plain", apart["plain"], "nats", ".0e", interval=False),
        ],
    )


def judge(plain: Losses, control: Losses) -> Verdict:
    """The rule in the module's docstring, on losses by part and seed."""
    if len(plain["scratch"]) < ENOUGH:
        return Verdict.inconclusive
    exists = all(
        difference(one["constructed"], one["shallow"]).abs().le(SAME).all()
        for one in (plain, control)
    )
    above = difference(plain["scratch"], plain["constructed"])
    kept = (difference(plain["warm"], plain["constructed"]) <= 0).all()
    misses, other = mean(missed(plain)), mean(missed(control))
    far = (above > 0).all() and misses >= FAR and other < misses / 2
    return Verdict.of(bool(exists and kept and far), bool((above <= 0).all()))


def draw(rows: pd.DataFrame) -> Figure:
    """Losses of each part: a dot per seed and a line at the mean."""
    from resexp.probes.drawing import PLAIN, RESIDUAL, dots, finish, panels

    figure, axes = panels(2, 66, sharey=True)
    arms = ("plain", PLAIN, "plain"), ("preact", RESIDUAL, "residual, pre-activated")
    for axis, (arch, colour, title) in zip(axes, arms, strict=True):
        for at, part in enumerate(PARTS):
            dots(axis, at, those(rows, arch=arch, part=part)["loss"], colour)
        axis.set_title(title)
        axis.set_xticks(range(len(PARTS)), list(PARTS.values()))
    wide = rows["loss"].max() > 10 * rows["loss"].min()
    axes[0].set(ylabel="training loss, nats", yscale="log" if wide else "linear")
    depths = f"{rows['depth'].min()} and {rows['depth'].max()}"
    return finish(figure, f"Networks of depths {depths}, {rows['seed'].nunique()} seeds")
