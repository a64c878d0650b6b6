"""models.foldable: DiracNet and RepVGG are the plain networks that they fold into."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import settings
from torch import Tensor, nn

from resexp import models
from resexp.models.activations import RELU
from resexp.models.layers import Convolution, DiracConvolution, convolution
from resexp.models.merges import Drop
from resexp.settings import Activation, Order, Settings, Twin


def pictures(channels: int = 1) -> Tensor:
    source = torch.Generator().manual_seed(3)
    return torch.randn(6, channels, 9, 8, generator=source, dtype=torch.float64)


def trained(of: Settings) -> nn.Module:
    """A network with values of its own everywhere, as after training."""
    network = models.build(of, 1, 10).double()
    source = torch.Generator().manual_seed(7)
    for name, tensor in network.state_dict().items():
        if tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=source, dtype=tensor.dtype) + 0.5)
        if name.endswith(("bias", "running_mean")):
            tensor.sub_(1)
    return network


ACTIVATIONS = [Activation.relu, Activation.tat, Activation.crelu]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("arch", "how"),
    [
        *(("diracnet", {"order": order}) for order in Order),
        ("diracnet", {"skip_span": 1, "se_ratio": 4}),
        ("diracnet", {"skip_stages": [2]}),
        ("repvgg", {}),
        ("repvgg", {"skip_stages": [2]}),
    ],
    ids=str,
)
def test_folded_and_unfolded_answer_alike(
    arch: str, how: dict[str, Any], activation: Activation
) -> None:
    if activation is Activation.crelu and how.get("order") == Order.relu_before_addition:
        return  # refused
    of = settings(arch, 20, width=4, activation=activation, **how)
    network = trained(of).eval()
    expected, before = network(pictures()), copy.deepcopy(network)
    models.fold(network)
    assert all(isinstance(block.merge, Drop) for block in network.blocks)  # type: ignore[union-attr]
    found = network(pictures())
    bound = 1e-12 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    assert expected.std() > 1e-3
    with torch.device("meta"):
        plain = models.structure(replace(of, twin=Twin.plain), 1, 10)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    models.fold(network)  # of what is plain: nothing
    assert torch.equal(network(pictures()), found)
    assert len(before.state_dict()) > len(network.state_dict())


@pytest.mark.parametrize(("out", "stride"), [(4, 1), (8, 1), (8, 2), (2, 1)])
def test_a_dirac_convolution_is_its_formula(out: int, stride: int) -> None:
    conv = Convolution(out, 3, stride, dirac=(1.0, 0.1), follows=RELU)
    layer = convolution(4, conv).double()
    assert isinstance(layer, DiracConvolution)
    source = torch.Generator().manual_seed(1)
    for value in layer.parameters():
        value.data = torch.randn(value.shape, generator=source, dtype=value.dtype)
    x = pictures(4)
    y = layer(x)
    for channel in range(out):
        weight = layer.weight[channel] / layer.weight[channel].square().sum().sqrt()
        branch = nn.functional.conv2d(x, weight[None], stride=stride, padding=1)[:, 0]
        handed_on = x[:, channel % 4, ::stride, ::stride]
        expected = layer.a[channel] * handed_on + layer.b[channel] * branch
        torch.testing.assert_close(y[:, channel], expected)


def test_diracnet_starts_where_it_was_told_and_shares_its_weights_with_the_plain_network() -> None:
    network, plain = (
        models.build(settings("diracnet", 8, twin=twin), 1, 10) for twin in (Twin.none, Twin.plain)
    )
    for layer in network.modules():
        if isinstance(layer, DiracConvolution):
            assert (layer.a == 1).all() and torch.equal(layer.b, torch.full_like(layer.b, 0.1))
    values = dict(network.named_parameters())
    assert all(torch.equal(values[name], value) for name, value in plain.named_parameters())
    assert models.count(network) - models.count(plain) == 2 * 2 * (16 + 32 + 64)
    # Sides of 8, 4 and 2 pixels; a and b cost nothing once the kernel is made.
    assert models.measure(network, 1, (8, 8)).flops == models.measure(plain, 1, (8, 8)).flops


def test_repvgg_costs_its_1x1_convolutions_and_norms() -> None:
    """20 layers: 18 of three widths, all but two with three norms."""
    network, plain = (
        models.build(settings("repvgg", 20, twin=twin), 1, 10) for twin in (Twin.none, Twin.plain)
    )
    of_1x1 = 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2
    norms = 2 * (6 * 2 * 16 + (5 * 2 + 1) * 32 + (5 * 2 + 1) * 64)
    assert models.count(network) - models.count(plain) == of_1x1 + norms
    sizes = [models.measure(one, 1, (8, 8)) for one in (network, plain)]
    products = 64 * 6 * 16**2 + 16 * (16 * 32 + 5 * 32**2) + 4 * (32 * 64 + 5 * 64**2)
    assert sizes[0].flops - sizes[1].flops == 2 * products
