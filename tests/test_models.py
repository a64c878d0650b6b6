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
from families import computed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import batches
from resexp.models.blocks import Block, Stages
from resexp.models.layers import Norm, ZeroPad, convolutions
from resexp.models.merges import RULES, SUMS, Add, Drop
from resexp.settings import (
    Arch,
    BottleneckStride,
    Init,
    Merge,
    Normalise,
    Order,
    Settings,
    Shortcut,
    Unit,
    UsageError,
)

#: The orders of He et al. 2016, figure 4; Fixup's is tested with its family.
FIGURE = [order for order in Order if order is not Order.fixup]

PLAIN = Arch(merge=Merge.plain)
A, B, C = (Arch(merge=Merge.residual, shortcut=shortcut) for shortcut in Shortcut)
PREACT = replace(A, order=Order.full_preactivation)
BOTTLENECK = replace(B, unit=Unit.bottleneck)
PREACT_BOTTLENECK = replace(BOTTLENECK, order=Order.full_preactivation)

#: Every combination that changes the layers of a network, merge aside.
SHAPES = [
    Arch(merge=Merge.residual, shortcut=shortcut, order=order, unit=unit)
    for shortcut, order, unit in product(Shortcut, FIGURE, Unit)
]

#: What the tables of published.csv call networks that this package builds.
NETWORKS: dict[str, list[Arch]] = {
    "plain/resnet A": [PLAIN, A],
    "resnet A": [A],
    "resnet B": [B],
    "resnet C": [C],
    "preact basic A": [PREACT],
    "preact basic B (bare 1x1)": [replace(PREACT, shortcut=Shortcut.B)],
    "bottleneck B": [BOTTLENECK],
    "bottleneck plain twin": [replace(PLAIN, unit=Unit.bottleneck)],
    "preact bottleneck": [PREACT_BOTTLENECK],
    "SE-resnet A r16": [replace(A, se_ratio=16)],
    "SE-resnet B r16": [replace(B, se_ratio=16)],
    "SE-bottleneck B r16": [replace(BOTTLENECK, se_ratio=16)],
    "SE-preact-bottleneck r16": [replace(PREACT_BOTTLENECK, se_ratio=16)],
    "Fixup ResNet (authors layout, 5 scalars/block + 2)": [
        replace(A, merge=Merge.scaled, order=Order.fixup)
    ],
    "ReZero ResNet A with BN (1 scalar/block)": [replace(A, merge=Merge.scaled)],
}

WITHOUT_NORM = " without BN params"


def oracle(metric: str) -> list[tuple[str, Arch, int, int]]:
    """The computed rows of ``metric`` for networks we have: (name, arch, depth, value)."""
    return [
        (name, arch, depth, value)
        for (name, depth), value in computed(metric).items()
        for arch in NETWORKS.get(name.removesuffix(WITHOUT_NORM), [])
    ]


PARAMETERS, MACS = oracle("params_exact"), oracle("macs_exact_32x32")


def label(value: object) -> str:
    return f"{value.merge}-{value.order}" if isinstance(value, Arch) else str(value)


def weightless(arch: Arch, depth: int) -> Stages:
    """A network of the paper's size without memory for its values."""
    with torch.device("meta"):
        network = models.structure(Settings(arch=arch, depth=depth), 3, 10)
    assert isinstance(network, Stages)
    return network


#: What ``counted`` found before: the deepest networks take a second each.
counts: dict[str, tuple[int, int]] = {}


def counted(arch: Arch, depth: int) -> tuple[int, int]:
    """Parameters with and without those of normalisation."""
    key = repr((arch, depth))
    if key not in counts:
        network = weightless(arch, depth)
        norm = sum(p.numel() for one in norms(network) for p in one.parameters())
        counts[key] = models.count(network), models.count(network) - norm
    return counts[key]


def small(arch: Arch, depth: int = 8, channels: int = 1, seed: int = 0) -> Stages:
    """A narrow network with random normalisation, so that no part of it is a neutral element.

    Projections of basic blocks keep the paper's width, for torch's CPU kernels are wrong in
    narrower ones: see test_narrow_projections_train_with_right_gradients.
    """
    projects = arch.unit is Unit.basic and arch.shortcut is not Shortcut.A
    width = 16 if projects else 4
    network = models.build(Settings(arch=arch, depth=depth, width=width, seed=seed), channels, 10)
    assert isinstance(network, Stages)
    generator = torch.Generator().manual_seed(7)
    for norm in norms(network):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        norm.bias.data -= 1
        norm.get_buffer("running_mean").sub_(1)
    return network


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def blocks(network: Stages) -> list[Block]:
    return [block for block in network.blocks if isinstance(block, Block)]


def same_shape(network: Stages, n: int) -> list[Block]:
    """The blocks that keep their input's shape and start no stage."""
    return [block for index, block in enumerate(blocks(network)) if index % n]


def pictures(*size: int, count: int = 6, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (count, channels, *(size or (8, 8)))
    return torch.randn(shape, generator=generator)


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


# What it costs


def test_the_oracle_speaks_of_every_network_we_have() -> None:
    assert {name.removesuffix(WITHOUT_NORM) for name, *_ in PARAMETERS} == set(NETWORKS)
    assert len(PARAMETERS) == 49
    assert len(MACS) == 27


@pytest.mark.process
@pytest.mark.parametrize(("name", "arch", "depth", "value"), PARAMETERS, ids=label)
def test_parameters_are_the_computed_ones(name: str, arch: Arch, depth: int, value: int) -> None:
    everything, without_norm = counted(arch, depth)
    assert value == (without_norm if name.endswith(WITHOUT_NORM) else everything)


@pytest.mark.process
@pytest.mark.parametrize(("name", "arch", "depth", "value"), MACS, ids=label)
def test_flops_are_twice_the_computed_multiply_adds(
    name: str, arch: Arch, depth: int, value: int
) -> None:
    # The oracle strides in a bottleneck's 3x3 convolution; the paper, and the default, in its 1x1.
    arch = replace(arch, bottleneck_stride=BottleneckStride.middle)
    network = models.structure(Settings(arch=arch, depth=depth), 3, 10)
    assert models.measure(network, 3, (32, 32)).flops == 2 * value


def test_a_bottleneck_that_strides_first_saves_what_its_convolutions_would_read() -> None:
    network = models.structure(Settings(arch=BOTTLENECK, depth=164), 3, 10)
    # Two first 1x1 convolutions at a quarter of 2,097,152 multiply-adds each.
    assert models.measure(network, 3, (32, 32)).flops == 2 * (247_646_720 - 3_145_728)


@pytest.mark.process
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_parameters_follow_the_closed_forms(n: int) -> None:
    plain = 97_216 * n - 21_926
    basic = [
        *((replace(arch, order=order), plain) for arch in (PLAIN, A) for order in FIGURE),
        (B, plain + 2_752),
        (C, plain + 2_752 + 288 * n + 5_312 * (n - 1)),
        (replace(PREACT, shortcut=Shortcut.B), plain + 2_560),
    ]
    bottleneck = [
        (replace(PLAIN, unit=Unit.bottleneck), 92_736 * n - 7_974),
        (BOTTLENECK, 92_736 * n + 34_906),
        (PREACT_BOTTLENECK, 92_736 * n + 34_010),
    ]
    for arch, value in basic:
        assert models.count(weightless(arch, 6 * n + 2)) == value
    for arch, value in bottleneck:
        assert models.count(weightless(arch, 9 * n + 2)) == value


def test_both_published_conventions_of_counting_are_told_apart() -> None:
    size = models.measure(small(PLAIN), 1, (8, 8))
    # Widths 4, 8, 16: a stem of 36, then 3x3 convolutions, classifier 16 x 10 + 10.
    convolutions_only = 36 + 9 * (16 + 16 + 32 + 64 + 128 + 256)
    scales_and_shifts = 2 * (4 + 4 + 4 + 8 + 8 + 16 + 16)
    assert size.parameters_without_norm == convolutions_only + 170
    assert size.parameters == convolutions_only + 170 + scales_and_shifts


# torch imports its own counter through a module that warns of its own deprecation.
@pytest.mark.process
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("arch", [A, C, BOTTLENECK], ids=label)
def test_flops_agree_with_torchs_own_counter(arch: Arch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = small(arch, 20, channels=3).eval()
    with FlopCounterMode(display=False) as counter:
        network(pictures(13, 10, channels=3, count=1))
    assert models.measure(network, 3, (13, 10)).flops == counter.get_total_flops()


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_network_as_it_was(training: bool) -> None:
    network = small(A).train(training)
    before = copy.deepcopy(network.state_dict())
    models.measure(network, 1, (8, 8))
    assert {module.training for module in network.modules()} == {training}
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    network(pictures())  # no hook is left behind that would count on
    assert all(not module._forward_hooks for module in network.modules())


# Depth


@pytest.mark.parametrize(("arch", "depth"), [(C, 20), (C, 110), (BOTTLENECK, 164)], ids=label)
def test_depth_counts_weighted_layers_without_projections(arch: Arch, depth: int) -> None:
    names = [key for key, one in weightless(arch, depth).named_modules() if is_weighted(one)]
    assert len([key for key in names if "merge" not in key]) == depth


def is_weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


@pytest.mark.parametrize(
    ("unit", "depth", "nearest"),
    [
        (Unit.basic, 21, "6n+2. Nearest: 20, 26."),
        (Unit.basic, 19, "6n+2. Nearest: 14, 20."),
        (Unit.basic, 2, "6n+2. Nearest: 8."),
        (Unit.basic, 164, ""),
        (Unit.bottleneck, 8, "9n+2. Nearest: 11."),
        (Unit.bottleneck, 110, ""),
        (Unit.bottleneck, 163, "9n+2. Nearest: 155, 164."),
    ],
)
def test_other_depths_are_refused_with_the_nearest(unit: Unit, depth: int, nearest: str) -> None:
    if not nearest:  # 164 and 110 are of both families
        assert len(weightless(Arch(unit=unit), depth).blocks) > 0
        return
    with pytest.raises(UsageError) as refusal:
        Settings(depth=depth, arch=Arch(unit=unit))
    assert str(refusal.value) == f"depth={depth} is not {nearest}"
    settings = Settings(depth=20)
    settings.depth, settings.arch = depth, Arch(unit=unit)
    with pytest.raises(UsageError):
        models.structure(settings, 1, 10)


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
    Order.relu_only_preactivation: (
        *("conv norm", "relu conv norm relu conv norm add", "relu linear"),
    ),
    Order.full_preactivation: (*("conv", "norm relu conv norm relu conv add", "norm relu linear"),),
}


@pytest.mark.parametrize("order", FIGURE)
def test_a_pass_goes_through_the_layers_of_the_papers_figure(order: Order) -> None:
    stem, block, end = ORDERS[order]
    change = block.replace("add", "pad add")  # of shape
    expected = " ".join([stem, block, block, *2 * [change, block], end]).split()
    assert run_of(small(replace(A, order=order), 14), pictures()) == expected


@pytest.mark.parametrize("order", FIGURE)
def test_a_plain_pass_is_the_residual_one_without_additions(order: Order) -> None:
    residual = run_of(small(replace(A, order=order), 14), pictures())
    plain = run_of(small(replace(PLAIN, order=order), 14), pictures())
    assert plain == ["drop" if kind == "add" else kind for kind in residual if kind != "pad"]


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
    ("shortcut", "projected"),
    [
        (Shortcut.A, [False] * 6),
        (Shortcut.B, [False, False, True, False, True, False]),
        (Shortcut.C, [True] * 6),
    ],
)
def test_projections_stand_where_the_shortcut_says(
    shortcut: Shortcut, projected: list[bool]
) -> None:
    network = small(replace(A, shortcut=shortcut), 14)
    found = [any(True for _ in block.merge.parameters()) for block in blocks(network)]
    assert found == projected
    strides = [
        [m.stride for m in block.modules() if isinstance(m, nn.Conv2d)] for block in blocks(network)
    ]
    for index, some in enumerate(strides):
        halves = index in (2, 4)
        assert some[0] == ((2, 2) if halves else (1, 1))
        assert some[1] == (1, 1)
        assert some[2:] == ([some[0]] if projected[index] else [])


def test_bottlenecks_project_in_the_first_stage_too() -> None:
    network = small(BOTTLENECK, 20)
    found = [any(True for _ in block.merge.parameters()) for block in blocks(network)]
    assert found == [True, False, True, False, True, False]


def test_a_bottleneck_strides_in_its_first_1x1_and_widens_in_its_last() -> None:
    wanted = [(16, 1, 2), (16, 3, 1), (64, 1, 1)]
    made = convolutions(BOTTLENECK, 16, 2)
    assert [(c.channels, c.kernel, c.stride) for c in made] == wanted
    branch = blocks(small(BOTTLENECK, 11))[1].branch
    convs = [module for module in branch if isinstance(module, nn.Conv2d)]  # type: ignore[attr-defined]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convs] == [
        (16, 8, (1, 1), (2, 2)),
        (8, 8, (3, 3), (1, 1)),
        (8, 32, (1, 1), (1, 1)),
    ]


def test_normalisation_takes_its_constants_from_the_settings() -> None:
    network = models.structure(Settings(depth=8, bn_eps=0.25, bn_momentum=0.75), 1, 10)
    assert {(norm.eps, norm.momentum) for norm in norms(network)} == {(0.25, 0.75)}
    assert Norm(0.25, 0.75)(3).num_features == 3


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (33, 31)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("unit", Unit)
def test_images_of_any_size_go_through(size: tuple[int, int], channels: int, unit: Unit) -> None:
    for shortcut, order in product(Shortcut, FIGURE):
        arch = Arch(merge=Merge.residual, shortcut=shortcut, order=order, unit=unit)
        network = small(arch, 8 if unit is Unit.basic else 11, channels)
        x = pictures(*size, count=2, channels=channels)
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
        x = pictures(*size, channels=3)
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
    x = pictures(4, 4, channels=8).double().requires_grad_()

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


def test_relu_before_addition_can_only_raise_the_signal() -> None:
    network = small(replace(A, order=Order.relu_before_addition), 20)
    for x, y in through(network, same_shape(network, 3), pictures()):
        assert (y >= x).all()
        assert (y > x).any()


def test_the_original_order_keeps_the_signal_non_negative_and_others_do_not() -> None:
    least = {
        order: min(y.min() for _, y in through(network, blocks(network), pictures()))
        for order in FIGURE
        if (network := small(replace(A, order=order), 20))
    }
    assert least[Order.original] == least[Order.bn_after_addition] == 0
    assert least[Order.full_preactivation] < 0
    assert least[Order.relu_only_preactivation] < 0


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
            elif isinstance(module, nn.BatchNorm2d):
                for tensor, value in (
                    (module.weight, 1),
                    (module.bias, 0),
                    (module.running_mean, 0),
                    (module.running_var, 1 - module.eps),
                ):
                    assert tensor is not None
                    nn.init.constant_(tensor, value)
    x = pictures(12, 9)
    torch.testing.assert_close(deep(x), shallow(x), rtol=0, atol=1e-6)
    labels = torch.arange(6)
    loss = cross_entropy(shallow(x), labels).item()
    assert cross_entropy(deep(x), labels).item() == pytest.approx(loss, abs=1e-6)
    assert shallow(x).std() > 0.01  # the images are told apart


@pytest.mark.process
@pytest.mark.parametrize("arch", SHAPES, ids=str)
def test_overwriting_activations_changes_no_logit_and_no_gradient(arch: Arch) -> None:
    depth = 14 if arch.unit is Unit.basic else 20
    any_block = [name for name in SUMS if not RULES[name].NEEDS]
    for merge in any_block if arch.shortcut is Shortcut.A else [Merge.residual]:
        network = small(replace(arch, merge=merge), depth)
        careful = copy.deepcopy(network)
        relus = [module for module in careful.modules() if isinstance(module, nn.ReLU)]
        assert any(relu.inplace for relu in relus)
        for relu in relus:
            relu.inplace = False
        x = pictures(count=3)
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


def test_a_plain_network_and_a_residual_one_of_option_a_share_every_name() -> None:
    for order in FIGURE:
        plain, residual = named(replace(PLAIN, order=order)), named(replace(A, order=order))
        assert list(plain) == list(residual)
        assert all(torch.equal(plain[key], residual[key]) for key in plain)


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


#: A projection of 4 channels that strides: gradients in float32 against those in float64, which
#: torch computes with other kernels. In a process of its own, for it may crash.
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
    # Fails with torch 2.15 on x86 CPUs (oneDNN issue 6035): the weight gradient of a channels-last
    # 1x1 convolution with stride 2 and fewer than 8 (AVX-512: 16) input channels writes past its
    # buffer. `resexp run arch=residual arch.shortcut=B width=4 depth=8 steps=20` gives other
    # numbers each time, or crashes.
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-400:]
