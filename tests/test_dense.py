"""resexp.models.dense and dense_imagenet: counts, concatenation, twins, torchvision's network."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from families import settings, size
from torch import nn

from resexp import models
from resexp.models.blocks import Block
from resexp.models.dense import DenseNetwork
from resexp.settings import Normalisation, Settings, Twin


def dense(name: str, depth: int, growth: int, twin: Twin = Twin.none) -> Settings:
    return settings(name, depth, twin=twin, options={"growth": growth})


# Structure


def layers(network: nn.Module) -> list[Block]:
    assert isinstance(network, DenseNetwork)
    return [block for block in network.blocks if isinstance(block, Block)]


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [one for one in module.modules() if isinstance(one, nn.Conv2d)]


def test_layer_l_reads_the_stem_and_all_layers_before_it() -> None:
    network = models.structure(dense("dense", 22, 12), 3, 10)
    read = [convolutions(layer)[0].in_channels for layer in layers(network)]
    first = [16 + 12 * number for number in range(6)]
    assert read[:6] == first
    assert read[6:12] == [88 + 12 * number for number in range(6)]  # a transition keeps all


def test_bottlenecks_widen_to_four_times_the_growth_and_transitions_halve() -> None:
    network = models.structure(dense("dense_bc", 16, 12), 3, 10)
    pairs = [[(c.in_channels, c.out_channels) for c in convolutions(x)] for x in layers(network)]
    assert pairs[:2] == [[(24, 48), (48, 12)], [(36, 48), (48, 12)]]
    assert pairs[2][0] == (24, 48)  # 48 channels, half of them


def test_a_layer_hands_on_what_it_read_unchanged() -> None:
    network = models.build(dense("dense", 10, 12), 1, 10)
    x = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    before = x.clone()
    layer = layers(network)[0]
    y = layer(x)
    assert torch.equal(x, before)  # no activation in place reaches it
    assert torch.equal(y[:, :16], x)
    assert torch.equal(y[:, 16:], layer.branch(x))
    assert y.shape[1] == 28


# Twins


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "depth", "growth"),
    [
        *(("dense", depth, 12) for depth in (7, 10, 22, 40)),
        ("dense", 100, 24),
        *(("dense_bc", depth, 12) for depth in (16, 22, 100)),
        pytest.param("dense_bc", 190, 40, marks=pytest.mark.slow),
        pytest.param("dense_bc", 250, 24, marks=pytest.mark.slow),
        ("densenet", 121, 32),
    ],
)
def test_a_twin_has_the_parameters_within_a_percent(name: str, depth: int, growth: int) -> None:
    pixels = 224 if name == "densenet" else 32
    found, twin = (
        size(dense(name, depth, growth, twin), pixels, 10) for twin in (Twin.none, Twin.plain)
    )
    assert twin.parameters == pytest.approx(found.parameters, rel=0.01)
    assert twin.flops == pytest.approx(found.flops, rel=0.25)


def test_a_twin_of_one_bottleneck_a_block_is_as_near_as_whole_channels_are() -> None:
    found, twin = (
        size(dense("dense_bc", 10, 12, twin), 32, 10) for twin in (Twin.none, Twin.plain)
    )
    assert twin.parameters == pytest.approx(found.parameters, rel=0.03)


@pytest.mark.parametrize("norm", [Normalisation.batch, Normalisation.none])
def test_a_twin_is_matched_whatever_the_normalisation(norm: Normalisation) -> None:
    sizes = [
        size(settings("dense", 40, twin=twin, norm=norm), 32, 10)
        for twin in (Twin.none, Twin.plain)
    ]
    assert sizes[1].parameters == pytest.approx(sizes[0].parameters, rel=0.01)


def test_a_twins_layers_each_read_the_one_before_alone() -> None:
    network = models.structure(dense("dense", 22, 12, Twin.plain), 3, 10)
    convs = convolutions(network)
    assert all(a.out_channels == b.in_channels for a, b in pairwise(convs))
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    first = layers(network)[0]
    assert torch.equal(first(x), first.branch(x))
