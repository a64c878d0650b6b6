"""models.activations and initialise: what stands for ReLU, and initial values that go with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import pictures, settings
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, cross_entropy

from resexp import data, models
from resexp.config import compose
from resexp.data import batches
from resexp.models.activations import RELU, CReLU, Difference, Nonlinearity, cosine_after, tat_slope
from resexp.models.initialise import CENTRED, centre, generator
from resexp.models.layers import ZeroPad
from resexp.settings import Activation, Init, Normalisation, Order, Settings, Twin

TAT20, TAT56 = 0.1644, 0.4519  # the slopes of a published solver


def built(of: Settings) -> Any:
    return models.build(of, 1, 10)


def gaussian(function: Callable[[Tensor], Tensor]) -> float:
    """E[f(z)], z ~ N(0, 1), by a sum over a fine grid."""
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    weights = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    return float((function(z) * weights).sum())


#: CReLU would double what relu_before_addition adds up.
ORDERS = [order for order in Order if order is not Order.relu_before_addition]


# Activations


@pytest.mark.parametrize(
    ("depth", "slope"), [(8, 0), (20, TAT20), (32, 0.3117), (56, TAT56), (110, 0.5856)]
)
def test_slopes_of_tat_are_those_of_another_solver(depth: int, slope: float) -> None:
    assert tat_slope(depth - 1) == pytest.approx(slope, abs=5e-5)
    of = settings("plain", depth, activation=Activation.tat)
    slopes = [one.negative_slope for one in built(of).modules() if isinstance(one, nn.LeakyReLU)]
    assert slopes == (depth - 1) * [tat_slope(depth - 1)]
    if slope:
        assert cosine_after(depth - 1, tat_slope(depth - 1)) == pytest.approx(0.9, abs=1e-9)


@pytest.mark.process
@pytest.mark.parametrize("slope", [0.0, TAT20])
def test_cosines_in_a_wide_random_network_follow_the_c_map(slope: float) -> None:
    width, inputs = 2048, 16
    source = torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(width, inputs, generator=source))[0].T
    pairs = torch.triu(torch.ones(inputs, inputs), 1).bool()
    for layer in range(1, 11):
        weight = torch.randn(width, width, generator=source)
        x = nn.functional.normalize(nn.functional.leaky_relu(x @ weight, slope))
        assert (x @ x.T)[pairs].mean().item() == pytest.approx(cosine_after(layer, slope), abs=0.02)


ALL = [Nonlinearity(kind, 0.3 * (kind is Activation.leaky_relu)) for kind in Activation]


@pytest.mark.parametrize("one", [one for one in ALL if one.kind is not Activation.tanh], ids=str)
def test_weights_make_up_for_what_an_activation_takes(one: Nonlinearity) -> None:
    layer = one(inplace=False)
    power = gaussian(lambda z: layer(z.view(-1, 1)).square().mean(1))
    assert one.power * power == pytest.approx(1, abs=1e-6)


def test_crelu_keeps_both_signs_and_is_undone() -> None:
    x = pictures(6, 3)
    y = CReLU()(x)
    assert torch.equal(y, torch.cat((x.clamp(min=0), (-x).clamp(min=0)), 1))
    assert torch.equal(Difference()(y), x)


@pytest.mark.parametrize("one", ALL, ids=str)
@pytest.mark.parametrize("order", ["plain", "preact"])
def test_overwriting_changes_no_gradient_and_kernels_leave_other_activations_alone(
    order: str, one: Nonlinearity
) -> None:
    from resexp.train.engine.fused import FusedBlock, use_kernels

    slope = {"slope": one.slope} if one.slope else {}
    network = built(settings(order, 8, width=4, activation=one.kind, **slope))
    careful, fused = copy.deepcopy(network), copy.deepcopy(network)
    use_kernels(fused)
    for module in careful.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    kinds = [type(module) for module in network.modules() if isinstance(module, type(one(False)))]
    left = [type(module) for module in fused.modules() if isinstance(module, type(one(False)))]
    if one.kind is not Activation.relu:
        assert left == kinds
        assert not any(isinstance(module, FusedBlock) for module in fused.modules())
    found = []
    for other in (network, careful, fused):
        loss = cross_entropy(other(pictures()), torch.arange(6))
        found.append([loss, *torch.autograd.grad(loss, list(other.parameters()))])
    assert len(kinds) == 7
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("twin", [Twin.none, Twin.plain])
def test_crelu_doubles_the_inputs_of_all_but_the_stem(order: Order, twin: Twin) -> None:
    norm = Normalisation.none if order is Order.fixup else Normalisation.batch
    how: dict[str, Any] = {"order": order, "norm": norm, "twin": twin}
    usual, doubled = (
        models.structure(settings("residual", 14, activation=kind, **how), 1, 10)
        for kind in (Activation.relu, Activation.crelu)
    )
    shapes = {name: value.shape for name, value in usual.named_parameters()}
    for name, value in doubled.named_parameters():
        takes = value.dim() > 1 and "stem" not in name
        if value.dim() > 1:
            assert value.shape[1] == (2 if takes else 1) * shapes[name][1]
        else:
            assert value.numel() in (shapes[name].numel(), 2 * shapes[name].numel())
    sizes = [models.measure(network, 1, (8, 8)).flops for network in (usual, doubled)]
    stem = 2 * 9 * 16 * 64
    assert sizes[1] - stem == 2 * (sizes[0] - stem)
    assert doubled(pictures()).shape == (6, 10)


# Initial values


def some(init: Init, into: int, out: int, one: Nonlinearity, kernel: int = 3) -> Tensor:
    weight = torch.zeros(out, into * one.factor, kernel, kernel)
    tap = centre(weight, init, one, generator(0, "a layer"))
    weight[:, :, kernel // 2, kernel // 2] = tap
    return weight


@pytest.mark.parametrize("out", [16, 32])
def test_a_delta_orthogonal_convolution_is_an_isometry(out: int) -> None:
    one = Nonlinearity(Activation.leaky_relu, 0.3)
    weight = some(Init.delta_orthogonal, 16, out, one) / math.sqrt(one.power * out / 16)
    x = pictures(6, 16)
    y = nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(conv_transpose2d(y, weight, padding=1), x)


@pytest.mark.parametrize("one", ALL[:2] + ALL[-1:], ids=str)
@pytest.mark.parametrize(("into", "out"), [(256, 256), (256, 512), (512, 256)])
@pytest.mark.parametrize("init", [Init.delta_orthogonal, Init.looks_linear])
def test_the_mean_square_of_a_channel_is_kept(
    init: Init, into: int, out: int, one: Nonlinearity
) -> None:
    if init is Init.looks_linear and one.factor == 1:
        return
    z = torch.randn(1024, into, 1, 1, generator=torch.Generator().manual_seed(2))
    weight = some(init, into, out, one, 1)
    y = nn.functional.conv2d(one(inplace=False)(z), weight)
    # Rows of a narrowing one see the mean of phi more or less: a deviation of 0.03.
    assert y.square().mean().item() == pytest.approx(1, abs=0.02 if out >= into else 0.1)


def test_dirac_copies_channels_at_a_widening_as_torchs_groups_do() -> None:
    for into, out in [(16, 16), (16, 32), (32, 16), (16, 64)]:
        known = nn.init.dirac_(torch.empty(out, into, 3, 3), groups=max(1, out // into))
        assert torch.equal(some(Init.dirac, into, out, RELU), known)
    one = Nonlinearity(Activation.crelu)
    x = pictures(6, 16)
    y = nn.functional.conv2d(one(inplace=False)(x), some(Init.dirac, 16, 16, one), padding=1)
    assert torch.equal(y, x)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("arch", ["plain", "residual"])
def test_a_looks_linear_network_is_linear_at_the_start(arch: str, order: Order) -> None:
    of = settings(
        arch, 20, width=4, order=order, activation=Activation.crelu, norm=Normalisation.none
    )
    network = built(replace(of, init=Init.looks_linear)).double()
    usual = built(of).double()
    if order is Order.fixup:  # which silences branches and classifier
        network.classifier.weight.data.copy_(built(of).classifier.weight)
        network.classifier.weight.data[:, 16:] = -network.classifier.weight.data[:, :16]
    x, y = pictures().double(), pictures().flip(0).double()
    torch.testing.assert_close(network(x + 2 * y), network(x) + 2 * network(y))
    if order is not Order.fixup:
        assert (usual(x + 2 * y) - usual(x) - 2 * usual(y)).abs().max() > 1e-3


@pytest.mark.parametrize("order", [Order.original, Order.relu_only_preactivation])
def test_zero_gamma_silences_every_branch(order: Order) -> None:
    of = settings("residual", 20, width=4, order=order)
    network, he = built(replace(of, init=Init.zero_gamma)), built(of)
    x = pictures()
    y = network.stem(x)
    for number, block in enumerate(network.blocks):
        assert not block.branch(block.before(y)).any()
        z = ZeroPad(len(y[0]), 2 * len(y[0]), 2)(block.before(y)) if number in (3, 6) else y
        if number == 0:
            z = block.before(y)
        y = block(y)
        assert torch.equal(y, torch.relu(z) if order is Order.original else z)
    logits = network.classifier(network.end(y).mean((2, 3)))
    assert torch.equal(network(x), logits)
    rest = {name: value for name, value in he.named_parameters() if "norm2" not in name}
    assert all(torch.equal(rest[k], v) for k, v in network.named_parameters() if k in rest)


def test_initial_weights_of_stem_and_projections_stay_as_by_he() -> None:
    of = settings("resnet", 18, width=4, activation=Activation.crelu, options={"stem": "small"})
    he = dict(built(of).named_parameters())
    for init in CENTRED:
        for name, value in built(replace(of, init=init)).named_parameters():
            if "branch.conv" in name:
                around = value.clone()
                around[:, :, 1, 1] = 0
                assert value.any() and not around.any()
            elif "classifier" not in name:
                assert torch.equal(value, he[name])


@pytest.mark.parametrize("init", Init)
def test_twins_share_every_value_that_they_can(init: Init) -> None:
    of = replace(settings("residual", 14, width=4, activation=Activation.crelu), init=init)
    mine, plain = (
        dict(built(replace(of, twin=twin)).named_parameters()) for twin in (Twin.none, Twin.plain)
    )
    assert list(mine) == list(plain)
    for name, value in mine.items():  # with branches silenced, a plain network would be dead
        silenced = init is Init.zero_gamma and name.endswith("branch.norm2.weight")
        assert torch.equal(value, plain[name]) is not silenced
        assert torch.equal(value, torch.zeros_like(value)) is (silenced or name.endswith("bias"))


# What backpropagation makes of them


@pytest.mark.parametrize(
    ("one", "growth"),
    [
        (RELU, 1.2112),
        (Nonlinearity(Activation.leaky_relu, TAT56), 1.0422),
        (Nonlinearity(Activation.selu), 1.0352),
    ],
    ids=["relu", "tat 56", "selu"],
)
def test_gradients_grow_through_batch_norm_as_computed(one: Nonlinearity, growth: float) -> None:
    """sqrt(E[phi'(z)^2] / Var[phi(z)]) a layer: Yang et al. 2019."""
    layer, step = one(inplace=False), 1e-6
    slope = gaussian(lambda z: ((layer(z + step) - layer(z - step)) / (2 * step)).square())
    variance = gaussian(lambda z: layer(z).square()) - gaussian(layer) ** 2
    assert math.sqrt(slope / variance) == pytest.approx(growth, abs=5e-4)
    source = torch.Generator().manual_seed(1)
    y = torch.randn(1024, 256, generator=source)
    outputs = []
    for _ in range(8):
        weight = torch.linalg.qr(torch.randn(256, 256, generator=source))[0]
        outputs.append(y := (y @ weight).requires_grad_())
        y = layer(nn.functional.batch_norm(y, None, None, training=True))
    end = torch.randn(y.shape, generator=source)
    norms = [g.norm().item() for g in torch.autograd.grad(y, outputs[1:], end)]
    assert [a / b for a, b in pairwise(norms)] == pytest.approx(6 * [growth], rel=0.005)


@pytest.mark.parametrize(
    ("words", "ratio"), [("", 3950), ("activation=tat", 8.9), ("init=dirac", 19)]
)
def test_relative_gradients_of_plain_56_span_what_another_program_measured(
    words: str, ratio: float
) -> None:
    """Greatest over least |g| / |W| of hidden convolutions, first 64 digits, seed 11."""
    of = compose(["arch=plain", "depth=56", "seed=11", *words.split()]).settings
    network, images = built(of), data.load(of.data)
    x = batches.prepare(
        images.train_images[:64], batches.statistics(images.train_images, of.normalise)
    )
    weights = [value for name, value in network.named_parameters() if "branch.conv" in name]
    loss = cross_entropy(network(x), images.train_labels[:64])
    gradients = torch.autograd.grad(loss, weights)
    found = [float(g.norm() / w.detach().norm()) for g, w in zip(gradients, weights, strict=True)]
    assert max(found) / min(found) == pytest.approx(ratio, rel=0.01)
