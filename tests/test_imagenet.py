"""resexp.models.imagenet and vgg: the networks of 224 pixels, against torchvision's and counts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torchvision
from families import (
    same_logits,
    same_values,
    settings,
    size,
    uncounted,
)
from torch import nn

from resexp import config, models
from resexp.models import imagenet, vgg
from resexp.models.blocks import Block, Stages
from resexp.models.layers import Dropout
from resexp.models.merges import draw, drawn
from resexp.settings import (
    BottleneckStride,
    Merge,
    Normalisation,
    Order,
    Settings,
    Shortcut,
    Twin,
)

PAPER = 64  # channels of the first stage


def resnet(depth: int, shortcut: Shortcut = Shortcut.B, **changes: object) -> Settings:
    return settings("resnet", depth, width=PAPER, shortcut=shortcut, **changes)  # type: ignore[arg-type]


def torchvisions(depth: int) -> Settings:
    return resnet(depth, bottleneck_stride=BottleneckStride.middle)


# Torchvision's networks


def in_torchvision(name: str, stages: tuple[int, ...]) -> str:
    """What torchvision's ResNet calls the entry ``name`` of ours."""
    for ours, theirs in (
        (r"stem\.conv1", "conv1"),
        (r"stem\.norm1", "bn1"),
        (r"classifier", "fc"),
        (r"branch\.conv(\d)", r"conv\1"),
        (r"branch\.norm(\d)", r"bn\1"),
        (r"merge\.shortcut\.conv1", "downsample.0"),
        (r"merge\.shortcut\.norm1", "downsample.1"),
    ):
        name = re.sub(ours, theirs, name)
    if block := re.match(r"blocks\.(\d+)\.", name):
        index, stage = int(block[1]), 0
        while index >= stages[stage]:
            index, stage = index - stages[stage], stage + 1
        name = f"layer{stage + 1}.{index}.{name[block.end() :]}"
    return name


def values_of(network: nn.Module) -> list[str]:
    """The names in a state, but for counters that we do without."""
    return [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]


@pytest.mark.process
@pytest.mark.parametrize(
    "depth", [18, 34, 50, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (101, 152))]
)
def test_the_weights_of_torchvisions_resnet_give_its_logits(depth: int) -> None:
    with torch.device("meta"):
        network = models.structure(torchvisions(depth), 3, 1000, (64, 64))
        other = uncounted(getattr(torchvision.models, f"resnet{depth}")())
    stages = imagenet.STAGES[depth]
    same_values(network, other, [(key, in_torchvision(key, stages)) for key in values_of(network)])
    same_logits(network, other)


def torchvisions_vgg(depth: int, width: int, norm: bool) -> nn.Module:
    """torchvision's VGG, with fewer channels: its 140 million weights take their time."""
    plan: list[str | int] = []
    for count, factor in zip(vgg.STAGES[depth], vgg.WIDTHS, strict=True):
        plan += [*[factor * width] * count, "M"]
    network = torchvision.models.VGG(
        torchvision.models.vgg.make_layers(plan, batch_norm=norm), init_weights=False
    )
    assert [type(layer) for layer in network.classifier] == [
        *[nn.Linear, nn.ReLU, nn.Dropout] * 2,
        nn.Linear,
    ]
    hidden = 64 * width
    network.classifier[0] = nn.Linear(8 * width * 49, hidden)
    network.classifier[3] = nn.Linear(hidden, hidden)
    network.classifier[6] = nn.Linear(hidden, 1000)
    return uncounted(network)


@pytest.mark.parametrize("norm", [Normalisation.none, Normalisation.batch])
@pytest.mark.parametrize("depth", [11, 19])
def test_the_weights_of_torchvisions_vgg_give_its_logits(depth: int, norm: Normalisation) -> None:
    with torch.device("meta"):
        network = models.structure(settings("vgg", depth, width=4, norm=norm), 3, 1000, (64, 64))
        other = torchvisions_vgg(depth, 4, norm is Normalisation.batch)
    pairs = list(zip(network.state_dict(), other.state_dict(), strict=True))  # in one order
    assert all(ours.split(".")[-1] == theirs.split(".")[-1] for ours, theirs in pairs)
    same_values(network, other, pairs)
    same_logits(network, other)


# Shapes and sizes


def small(name: str, depth: int, **changes: object) -> Settings:
    return settings(name, depth, width=8, options={"stem": "small"}, **changes)  # type: ignore[arg-type]


def sides(network: nn.Module, parts: list[nn.Module], pixels: int) -> list[int]:
    seen: list[int] = []
    for part in parts:
        part.register_forward_hook(lambda _m, _i, output: seen.append(output.shape[-1]))
    with torch.device("meta"):
        network.eval()(torch.zeros(1, 3, pixels, pixels))
    return seen


@pytest.mark.parametrize(
    ("stem", "pixels", "wanted"),
    [
        ("imagenet", 224, [56, 56, 56, 28, 28, 14, 14, 7, 7]),
        ("imagenet", 32, [8, 8, 8, 4, 4, 2, 2, 1, 1]),
        ("small", 32, [32, 32, 32, 16, 16, 8, 8, 4, 4]),
        ("small", 8, [8, 8, 8, 4, 4, 2, 2, 1, 1]),
    ],
)
def test_stages_have_the_papers_sizes(stem: str, pixels: int, wanted: list[int]) -> None:
    one = settings("resnet", 18, options={"stem": stem})
    with torch.device("meta"):
        network = models.structure(one, 3, 10, (pixels, pixels))
    assert isinstance(network, Stages)
    assert sides(network, [network.stem, *network.blocks], pixels) == wanted


# Twins


@pytest.mark.parametrize("depth", [18, 50])
def test_the_twin_of_projections_lacks_the_projections_alone(depth: int) -> None:
    found = [
        dict(models.structure(small("resnet", depth, twin=twin), 1, 10, (8, 8)).named_parameters())
        for twin in (Twin.none, Twin.plain)
    ]
    assert {key for key in found[0] if "shortcut" not in key} == set(found[1])
    projections = len([key for key in found[0] if key.endswith("shortcut.conv1.weight")])
    assert projections == (3 if depth == 18 else 4)


@pytest.mark.process
def test_every_merge_and_order_of_blocks_is_there_too() -> None:
    for merge in imagenet.MERGES:
        network = models.build(small("resnet", 18, merge=merge), 1, 10, (8, 8))
        assert network(torch.ones(2, 1, 8, 8)).shape == (2, 10)
    for order in Order:
        one = small("resnet", 18, merge=Merge.scaled, order=order, skip_stages=[2, 4])
        network = models.build(one, 1, 10, (8, 8))
        assert isinstance(network, Stages)
        skips = [bool(list(b.merge.parameters())) for b in network.blocks if isinstance(b, Block)]
        assert skips == [False, False, True, True, False, False, True, True]


# Training


def test_vgg_drops_half_of_the_hidden_values_anew_in_each_step() -> None:
    network = models.build(settings("vgg", 11, width=4), 1, 10, (32, 32))
    random = drawn(network)
    assert [type(one) for one in random] == [Dropout, Dropout]
    assert isinstance(network, vgg.Vgg)
    kept: list[torch.Tensor] = []
    network.head.dropout1.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda _module, inputs, output: kept.append(output)
    )
    x = torch.ones(1, 1, 32, 32)
    layer = network.head.dropout1
    assert isinstance(layer, Dropout)
    some = torch.ones(4, 4096)
    draw(random, seed=0, step=0)
    first = layer(some)
    assert first.unique().tolist() == [0.0, 2.0]
    assert first.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(first, layer(some))
    draw(random, seed=0, step=1)
    assert not torch.equal(first, layer(some))
    network.eval()
    assert torch.equal(layer(some), some)
    assert torch.equal(network(x), network(x))


@pytest.mark.process
def test_the_experiment_at_224_pixels_is_the_papers_network_and_recipe() -> None:
    job = config.compose(["experiment=imagefolder_224", "data.root=flowers", "shortcut=A"])
    of = job.settings
    assert (job.arch, of.name, of.data.name, of.data.size) == (
        *("resnet", "imagefolder_224", "flowers", 224),
    )
    assert (of.batch_size, of.lr, of.weight_decay, of.momentum) == (256, 0.1, 1e-4, 0.9)
    assert size(of, 224, 1000).parameters == 11_515_688
    assert size(replace(of, twin=Twin.plain), 224, 1000) == size(of, 224, 1000)
