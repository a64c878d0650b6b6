"""resexp.models.imagenet and vgg: the networks of 224 pixels, against torchvision's and counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from families import norms, settings, size
from torch import nn

from resexp import config, models
from resexp.models import imagenet, vgg
from resexp.models.blocks import Block, Stages
from resexp.models.layers import Dropout
from resexp.models.merges import draw, drawn
from resexp.settings import BottleneckStride, Merge, Normalisation, Order, Settings, Twin

# Torchvision's networks


def torchvisions_vgg(depth: int, norm: bool) -> nn.Module:
    """torchvision's VGG of width 4: its 140 million weights would take their time."""
    plan: list[str | int] = []
    for count, factor in zip(vgg.STAGES[depth], vgg.WIDTHS, strict=True):
        plan += [*[factor * 4] * count, "M"]
    layers = torchvision.models.vgg.make_layers(plan, batch_norm=norm)
    network = torchvision.models.VGG(layers, init_weights=False)
    kinds = [*2 * [nn.Linear, nn.ReLU, nn.Dropout], nn.Linear]
    assert [type(layer) for layer in network.classifier] == kinds
    for place, shape in ((0, (32 * 49, 256)), (3, (256, 256)), (6, (256, 1000))):
        network.classifier[place] = nn.Linear(*shape)
    return network


MIDDLE = {"width": 64, "bottleneck_stride": BottleneckStride.middle}
SLOW = [("resnet101", MIDDLE), ("resnet152", MIDDLE)]
SLOW += [("densenet161", {"options": {"growth": 48}}), ("densenet169", {}), ("densenet201", {})]


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((f"resnet{depth}", MIDDLE) for depth in (18, 34, 50)),
        ("densenet121", {}),
        *((f"vgg{depth}", {"width": 4}) for depth in (11, 19)),
        *((f"vgg{depth}", {"width": 4, "norm": Normalisation.batch}) for depth in (11, 19)),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW),
    ],
)
def test_the_weights_of_torchvisions_networks_give_their_logits(
    name: str, how: dict[str, Any]
) -> None:
    """Random weights of a size that signals survive; answers in units of their spread."""
    family, depth = name.rstrip("0123456789"), int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
    with torch.device("meta"):
        network = models.structure(settings(family, depth, **how), 3, 1000, (64, 64))
        made = torchvisions_vgg(depth, "norm" in how) if family == "vgg" else None
        other = made or getattr(torchvision.models, name)()
    for norm in norms(other):
        norm.num_batches_tracked = None  # as ours have no counter
    generator = torch.Generator().manual_seed(11)
    mine, theirs = (one.to_empty(device="cpu").state_dict() for one in (network, other))
    for (key, value), (name, its) in zip(mine.items(), theirs.items(), strict=True):
        assert key.split(".")[-1] == name.split(".")[-1] and value.shape == its.shape
        value.uniform_(-1, 1, generator=generator)
        if value.dim() > 1:
            value *= math.sqrt(6 / value.shape[1:].numel())
        elif key.endswith(("weight", "running_var")):
            value.abs_().add_(0.5)
        its.copy_(value)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        answers, expected = network.eval()(x), other.eval()(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4 * expected.std().item())


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
