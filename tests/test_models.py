"""resexp.models: what is built, what it costs, what it computes and where it starts."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from families import blocks, norms, pictures
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import batches
from resexp.models.blocks import Block, Stages
from resexp.models.layers import Norm, ZeroPad
from resexp.models.merges import RULES, SUMS, Add, Drop
from resexp.settings import Arch, Init, Merge, Normalise, Order, Settings, Shortcut, Unit

#: The orders of He et al. 2016, figure 4; Fixup's is tested with its family.
FIGURE = [order for order in Order if order is not Order.fixup]

PLAIN = Arch(merge=Merge.plain)
A, B, C = (Arch(merge=Merge.residual, shortcut=shortcut) for shortcut in Shortcut)
PREACT = replace(A, order=Order.full_preactivation)
BOTTLENECK = replace(B, unit=Unit.bottleneck)

#: Every combination that changes the layers of a network, merge aside.
SHAPES = [
    Arch(merge=Merge.residual, shortcut=shortcut, order=order, unit=unit)
    for shortcut, order, unit in product(Shortcut, FIGURE, Unit)
]


def small(arch: Arch, depth: int = 8, channels: int = 1, seed: int = 0) -> Stages:
    """A narrow network with random normalisation, so that no part of it is a neutral element."""
    network = models.build(Settings(arch=arch, depth=depth, width=4, seed=seed), channels, 10)
    assert isinstance(network, Stages)
    generator = torch.Generator().manual_seed(7)
    for norm in norms(network):
        for tensor in norm.state_dict().values():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        norm.bias.data -= 1
        norm.get_buffer("running_mean").sub_(1)
    return network


def same_shape(network: Stages, n: int) -> list[Block]:
    """The blocks that keep their input's shape and start no stage."""
    return [block for index, block in enumerate(blocks(network)) if index % n]


def through(
    network: nn.Module, some: Sequence[nn.Module], x: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Copies of what goes into and comes out of each of ``some`` modules."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].detach().clone(), output.detach().clone()))

    handles = [module.register_forward_hook(note) for module in some]
    network(x)
    for handle in handles:
        handle.remove()
    return seen


def results(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Logits, and the gradient of every parameter."""
    logits = network(x)
    loss = cross_entropy(logits, torch.arange(len(x)))
    return [logits, *torch.autograd.grad(loss, list(network.parameters()))]


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_network_as_it_was(training: bool) -> None:
    network = small(A).train(training)
    before = copy.deepcopy(network.state_dict())
    models.measure(network, 1, (8, 8))
    assert {module.training for module in network.modules()} == {training}
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    network(pictures())  # no hook is left behind that would count on
    assert all(not module._forward_hooks for module in network.modules())


# Layers and their order


KINDS = {
    **{nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.ReLU: "relu", nn.Linear: "linear"},
    **{ZeroPad: "pad", Add: "add", Drop: "drop"},
}


def kinds_of(module: nn.Module) -> list[str]:
    """A layer's kind; none for what holds layers."""
    return [kind for one, kind in KINDS.items() if isinstance(module, one)]


def run_of(network: nn.Module, x: Tensor) -> list[str]:
    """The kinds of layers in the order in which one pass goes through them."""
    seen: list[str] = []
    for module in network.modules():
        for kind in kinds_of(module):
            module.register_forward_hook(lambda *_, kind=kind: seen.append(kind))
    network(x)
    return seen


#: He et al. 2016, figure 4: stem, block, end.
ORDERS = {
    Order.original: ("conv norm relu", "conv norm relu conv norm add relu", "linear"),
    Order.bn_after_addition: ("conv norm relu", "conv norm relu conv add norm relu", "linear"),
    Order.relu_before_addition: ("conv norm relu", "conv norm relu conv norm relu add", "linear"),
    Order.relu_only_preactivation: ("conv norm", 2 * "relu conv norm " + "add", "relu linear"),
    Order.full_preactivation: ("conv", 2 * "norm relu conv " + "add", "norm relu linear"),
}


@pytest.mark.parametrize("order", FIGURE)
def test_a_pass_goes_through_the_layers_of_the_papers_figure(order: Order) -> None:
    stem, block, end = ORDERS[order]
    change = block.replace("add", "pad add")  # of shape
    expected = " ".join([stem, block, block, *2 * [change, block], end])
    assert run_of(small(replace(A, order=order), 14), pictures()) == expected.split()
    plain = expected.replace("pad add", "drop").replace("add", "drop").split()
    assert run_of(small(replace(PLAIN, order=order), 14), pictures()) == plain


@pytest.mark.parametrize("arch", [A, B, BOTTLENECK], ids=["A", "B", "bottleneck"])
def test_preactivation_is_shared_with_the_shortcut_where_shapes_change_and_first(
    arch: Arch,
) -> None:
    arch = replace(arch, order=Order.full_preactivation)
    network = small(arch, 20 if arch.unit is Unit.bottleneck else 14)
    skipped: list[Tensor] = []  # what the merge takes beside the branch
    for block in blocks(network):
        block.merge.register_forward_pre_hook(lambda _, inputs: skipped.append(inputs[0].clone()))
    entered = [x for x, _ in through(network, blocks(network), pictures())]
    for index, (x, beside) in enumerate(zip(entered, skipped, strict=True)):
        assert x.min() < 0  # nothing is activated on its way into a block
        if index % 2:
            assert torch.equal(beside, x)
        else:
            assert beside.min() == 0
    assert [len(block.before) for block in blocks(network)] == [2, 0, 2, 0, 2, 0]  # type: ignore[arg-type]


def test_bare_projections_belong_to_preactivation_alone() -> None:
    for order in FIGURE:
        merge = blocks(small(replace(B, order=order)))[1].merge
        kinds = [kind for module in merge.modules() for kind in kinds_of(module)]
        bare = order is Order.full_preactivation
        assert kinds == (["add", "conv"] if bare else ["add", "conv", "norm"])


@pytest.mark.parametrize(
    ("arch", "projected"),
    [(A, [0] * 6), (B, [0, 0, 1, 0, 1, 0]), (C, [1] * 6), (BOTTLENECK, [1, 0, 1, 0, 1, 0])],
    ids=["A", "B", "C", "bottleneck"],
)
def test_projections_stand_where_the_shortcut_says(arch: Arch, projected: list[int]) -> None:
    network = small(arch, 20 if arch is BOTTLENECK else 14)
    assert [any(True for _ in one.merge.parameters()) for one in blocks(network)] == projected
    strides = [
        [m.stride for m in block.modules() if isinstance(m, nn.Conv2d)] for block in blocks(network)
    ]
    for index, some in enumerate(strides):
        halves = index in (2, 4)
        assert some[0] == ((2, 2) if halves else (1, 1))
        convs = 3 if arch is BOTTLENECK else 2
        assert some[1:] == [*(convs - 1) * [(1, 1)], *projected[index] * [some[0]]]


def test_normalisation_takes_its_constants_from_the_settings() -> None:
    network = models.structure(Settings(depth=8, bn_eps=0.25, bn_momentum=0.75), 1, 10)
    assert {(norm.eps, norm.momentum) for norm in norms(network)} == {(0.25, 0.75)}
    assert Norm(0.25, 0.75)(3).num_features == 3


@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((28, 28), 3), ((33, 31), 1)])
def test_images_of_any_size_go_through(size: tuple[int, int], channels: int) -> None:
    for arch in SHAPES:
        network = small(arch, 8 if arch.unit is Unit.basic else 11, channels)
        x = pictures(2, channels, *size)
        seen = through(network, [*blocks(network), network], x)
        halves = [-(-side // 2) for side in size]
        quarters = [-(-side // 2) for side in halves]
        assert [list(y.shape[2:]) for _, y in seen] == [list(size), halves, quarters, []]
        assert seen[-1][1].shape == (2, 10)


# What it computes


def test_option_a_takes_every_second_pixel_and_appends_zeros() -> None:
    pad = ZeroPad(3, 8, 2)
    assert not list(pad.parameters())
    for size in ((8, 8), (33, 31)):
        x = pictures(6, 3, *size)
        y = pad(x)
        assert y.shape == (6, 8, -(-size[0] // 2), -(-size[1] // 2))
        assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
        assert not y[:, 3:].any()


@pytest.mark.process
def test_a_residual_block_without_a_branch_hands_on_its_input_exactly() -> None:
    network = small(A, 20)
    for block in blocks(network):
        for parameter in block.branch.get_submodule("norm2").parameters():
            nn.init.zeros_(parameter)
    kept = same_shape(network, 3)
    assert len(kept) == 6
    for x, y in through(network, kept, pictures()):
        assert torch.equal(x, y)
        assert x.any()
    for x, y in through(network, [blocks(network)[3], blocks(network)[6]], pictures()):
        assert torch.equal(y[:, : x.shape[1]], x[:, :, ::2, ::2])
        assert not y[:, x.shape[1] :].any()


def test_preactivation_without_branches_carries_signal_and_gradient_through_a_stage() -> None:
    network = small(PREACT, 20)
    outputs: list[Tensor] = []
    for block in blocks(network):
        nn.init.zeros_(block.branch.get_submodule("conv2").get_parameter("weight"))
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    loss = cross_entropy(network(pictures()), torch.arange(6))
    flowing = torch.autograd.grad(loss, outputs)
    for stage in range(3):
        first, *rest = range(3 * stage, 3 * stage + 3)
        assert flowing[first].any()
        for index in rest:
            assert torch.equal(outputs[index], outputs[first])
            assert torch.equal(flowing[index], flowing[first])


def test_the_gradient_is_that_of_the_end_plus_that_of_the_branches() -> None:
    # He et al. 2016, equation 5, the branches' part by finite differences.
    network = small(PREACT, 26).double()
    stage = blocks(network)[5:8]  # three same-shape blocks of the second stage
    x = pictures(6, 8, 4, 4).double().requires_grad_()

    def end_and_branches(start: Tensor) -> tuple[Tensor, Tensor]:
        total, now = torch.zeros_like(start), start
        for block in stage:
            total = total + block.branch(now)
            now = block(now)
        return now, total

    end, _ = end_and_branches(x)
    rest = nn.Sequential(*network.blocks[8:], network.end)
    loss = cross_entropy(network.classifier(rest(end).mean((2, 3))), torch.arange(6))
    at_start, at_end = torch.autograd.grad(loss, [x, end])

    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ahead, behind = (end_and_branches(x + s * 1e-6 * direction)[1] for s in (1, -1))
    slope = ((ahead - behind) / 2e-6 * at_end).sum()
    expected = ((at_start - at_end) * direction).sum()
    assert slope.item() == pytest.approx(expected.item(), rel=1e-4)
    assert abs(expected.item()) > 1e-3 * (at_start * direction).sum().abs().item()


def test_a_deeper_plain_network_can_compute_what_a_shallow_one_does() -> None:
    """The constructive solution of He et al. 2015, section 1: added layers are the identity."""
    shallow, deep = small(PLAIN, 8).eval(), small(PLAIN, 20, seed=1).eval()
    deep.stem.load_state_dict(shallow.stem.state_dict())
    deep.classifier.load_state_dict(shallow.classifier.state_dict())
    for index, block in enumerate(blocks(deep)):
        if index % 3 == 0:
            block.load_state_dict(blocks(shallow)[index // 3].state_dict())
            continue
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight)
        for norm in norms(block):
            norm.load_state_dict(nn.BatchNorm2d(norm.num_features).state_dict(), strict=False)
            norm.get_buffer("running_var").fill_(1 - norm.eps)
    x = pictures(6, 1, 12, 9)
    torch.testing.assert_close(deep(x), shallow(x), rtol=0, atol=1e-6)
    labels = torch.arange(6)
    loss = cross_entropy(shallow(x), labels).item()
    assert cross_entropy(deep(x), labels).item() == pytest.approx(loss, abs=1e-6)
    assert shallow(x).std() > 0.01  # the images are told apart


@pytest.mark.process
@pytest.mark.parametrize("arch", SHAPES, ids=lambda of: f"{of.shortcut} {of.order} {of.unit}")
def test_overwriting_activations_changes_no_logit_and_no_gradient(arch: Arch) -> None:
    depth = 14 if arch.unit is Unit.basic else 20
    any_block = [name for name in SUMS if not RULES[name].NEEDS]
    every = arch.shortcut is Shortcut.A and arch.unit is Unit.basic
    for merge in any_block if every else [Merge.residual]:
        network = small(replace(arch, merge=merge), depth)
        careful = copy.deepcopy(network)
        relus = [module for module in careful.modules() if isinstance(module, nn.ReLU)]
        assert any(relu.inplace for relu in relus)
        for relu in relus:
            relu.inplace = False
        x = pictures(3)
        pairs = zip(results(network, x), results(careful, x), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_built_network_computes_in_channels_last_layout() -> None:
    network = models.build(Settings(arch=B, depth=8, width=4), 3, 10)
    for parameter in network.parameters():
        if parameter.dim() == 4 and parameter.shape[1] > 1:
            _, into, height, width = parameter.shape
            assert parameter.stride() == (into * height * width, 1, into * width, into)
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    x = batches.prepare(images, batches.statistics(images, Normalise.none))
    assert isinstance(network, Stages)
    for _, y in through(network, blocks(network), x):
        assert y.is_contiguous(memory_format=torch.channels_last)


# Where it starts


def named(arch: Arch, seed: int = 0, init: Init = Init.he_fan_out) -> dict[str, Tensor]:
    depth = 11 if arch.unit is Unit.bottleneck else 8
    network = models.build(Settings(arch=arch, depth=depth, seed=seed, init=init), 3, 10)
    return dict(network.named_parameters())


@pytest.mark.process
def test_networks_share_the_initial_value_of_every_parameter_they_share() -> None:
    plain = named(PLAIN)
    for shape in SHAPES:
        arch = replace(shape, unit=Unit.basic)
        other = named(arch)
        shared = [key for key in plain if key in other and plain[key].shape == other[key].shape]
        convs = [key for key in shared if "conv" in key]
        assert len(convs) == 7  # all of them, whatever the order and the merge
        assert all(torch.equal(plain[key], other[key]) for key in shared)


def test_initial_values_differ_across_names_and_seeds() -> None:
    drawn = [value for seed in (0, 1) for key, value in named(PLAIN, seed).items() if drawn_at(key)]
    assert len(drawn) == 2 * 8
    starts = {tuple(value.flatten()[:8].div(value.std()).tolist()) for value in drawn}
    assert len(starts) == len(drawn)
    values = torch.stack(
        [value.permute(0, -1, *range(1, value.dim() - 1)).flatten()[:160] for value in drawn]
    )
    correlation = torch.corrcoef(values) - torch.eye(len(drawn))
    assert correlation.abs().max() < 0.45  # 120 pairs of 160 values: a standard error of 0.08


def drawn_at(name: str) -> bool:
    """Whether a parameter's initial value is random."""
    return name.endswith("weight") and "norm" not in name


def test_the_first_weights_of_seed_0_are_these_for_ever() -> None:
    start = named(PLAIN)
    first = start["stem.conv1.weight"][0, 0].flatten()[:4].tolist()
    assert first == pytest.approx([-0.0335836, -0.2807583, -0.2088088, 0.0134437], abs=1e-7)


#: The transition from 16 to 32 channels: 18,432 weights; fan in 144, fan out 288.
TRANSITION = "blocks.1.branch.conv1.weight"


@pytest.mark.parametrize(
    ("init", "variance"),
    [(Init.he_fan_out, 2 / 288), (Init.he_fan_in, 2 / 144), (Init.xavier, 2 / 432)],
)
def test_initial_weights_have_the_variance_of_their_rule(init: Init, variance: float) -> None:
    weight = named(PLAIN, init=init)[TRANSITION]
    assert weight.shape == (32, 16, 3, 3)
    std = math.sqrt(variance)
    sampling = 1 / math.sqrt(2 * weight.numel())  # relative error of a standard deviation
    assert weight.std().item() == pytest.approx(std, rel=4 * sampling)
    assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel())
    assert weight.abs().max() > 3 * std  # normal, not uniform


def test_the_classifier_starts_uniform_between_its_bounds_and_unbiased() -> None:
    start = named(PLAIN)
    weight = start["classifier.weight"]
    assert weight.shape == (10, 64)
    assert weight.abs().max() <= 1 / 8
    assert weight.min() < -0.95 / 8
    assert weight.max() > 0.95 / 8
    # A uniform deviation is bound / sqrt(3); its relative sampling error sqrt(0.2 / 640).
    assert weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=4 * 0.018)
    assert not start["classifier.bias"].any()


@pytest.mark.process
def test_normalisation_starts_as_the_identity() -> None:
    for key, value in named(C).items():
        if "norm" in key or (".merge." in key and value.dim() == 1):
            assert torch.equal(value, torch.full_like(value, float(key.endswith("weight"))))


#: A projection of 4 channels that strides, of which torch 2.15 on x86 CPUs wrote the gradient past
#: its buffer (oneDNN issue 6035): float32 against float64. In a process of its own, for it crashed.
NARROW = """
import torch
from resexp import models
from resexp.settings import Arch, Merge, Settings, Shortcut

torch.set_num_threads(1)
arch = Arch(merge=Merge.residual, shortcut=Shortcut.B)
network = models.build(Settings(arch=arch, depth=8, width=4), 1, 10)
for _ in range(20):
    x = torch.randn(8, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    found = {}
    for dtype in (torch.float32, torch.float64):
        loss = torch.nn.functional.cross_entropy(
            network.to(dtype)(x.to(dtype)), torch.arange(8)
        )
        found[dtype] = torch.autograd.grad(loss, list(network.parameters()))
    for one, other in zip(*found.values()):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)
"""


@pytest.mark.process
def test_narrow_projections_train_with_right_gradients() -> None:
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-400:]
