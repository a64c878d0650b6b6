"""resexp.models.unet: U-Nets with long skips that concatenate, add, or are not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resexp import models
from resexp.config import compose
from resexp.models import unet
from resexp.models.initialise import generator
from resexp.models.unet import UNet
from resexp.settings import Arch, Init, Merge, Normalisation, Settings, Twin

PAPER = {"norm": Normalisation.none, "options": {"padding": "valid"}}
MERGES = [Merge.concatenate, Merge.residual, Merge.plain]


def settings(merge: Merge = Merge.concatenate, depth: int = 13, **changes: Any) -> Settings:
    arch = {key: changes.pop(key) for key in ("norm", "options") if key in changes}
    family = Arch(family="unet", depths="5n+3", merge=merge, **arch)
    return Settings(**{"arch": family, "depth": depth, "width": 4} | changes)


def structure(one: Settings, classes: int = 2) -> UNet:
    network = models.structure(one, 1, classes)
    assert isinstance(network, UNet)
    return network


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# Counts


def test_the_papers_tile_of_572_pixels_gives_388() -> None:
    network = structure(settings(depth=23, width=1, **PAPER))
    with torch.no_grad():
        assert network.top(torch.zeros(1, 1, 572, 572)).shape == (1, 1, 388, 388)
    assert network.tile(388) == (92, 92)


@pytest.mark.parametrize("norm", list(Normalisation))
def test_parameters_are_counted_without_building(norm: Normalisation) -> None:
    for merge in MERGES:
        network = structure(settings(merge, 18, norm=norm), classes=3)
        assert unet.parameters([4, 8, 16, 32], merge, 1, 3, norm) == models.count(network)


# What is computed


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(32, 32), (9, 21), (8, 8)])
def test_logits_are_of_the_images_size(padding: str, size: tuple[int, int]) -> None:
    for merge in MERGES:
        network = structure(settings(merge, 13, options={"padding": padding}), classes=3)
        assert network(pictures(2, 1, *size)).shape == (2, 3, *size)


def test_unpadded_convolutions_see_the_image_mirrored_at_its_border() -> None:
    network = models.build(settings(options={"padding": "valid"}), 1, 2).eval()
    assert isinstance(network, UNet)
    x = pictures(1, 1, 36, 36)
    before, after = network.tile(36)
    assert before == after == 20
    with torch.no_grad():
        mirrored = network.top(F.pad(x, (20, 20, 20, 20), mode="reflect"))
        assert torch.equal(network(x), network.classifier(mirrored))


def test_mirroring_goes_back_and_forth_as_often_as_it_takes() -> None:
    positions = unet.mirrored(3, 5, 4, torch.device("cpu"))
    assert positions.tolist() == [*(1, 0, 1, 2, 1), *(0, 1, 2), *(1, 0, 1, 2)]


@pytest.mark.process
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_logits_lie_where_their_pixels_do(padding: str) -> None:
    # Far from the border, an image shifted by what the poolings take gives shifted logits.
    network = models.build(settings(options={"padding": padding}), 1, 2).eval()
    x = pictures(1, 1, 96, 96)
    with torch.no_grad():
        whole, part = network(x), network(x[:, :, 4:, 8:])
    inside = slice(28, 60)
    torch.testing.assert_close(part[:, :, inside, inside], whole[:, :, 32:64, 36:68])


def test_an_even_size_is_not_mirrored() -> None:
    network = models.build(settings(), 1, 2).eval()
    assert isinstance(network, UNet)
    x = pictures(1, 1, 12, 20)
    with torch.no_grad():
        assert torch.equal(network(x), network.classifier(network.top(x)))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_level_merges_its_input_with_all_that_lies_below(padding: str) -> None:
    x = pictures(1, 1, 40, 40)
    for merge in MERGES:
        top = structure(settings(merge, 8, options={"padding": padding})).top.eval()
        assert isinstance(top, unet.Level)
        with torch.no_grad():
            skip = top.down(x)
            below = top.branch(skip)
            margin = (skip.shape[2] - below.shape[2]) // 2
            skip = skip[:, :, margin : margin + below.shape[2], margin : margin + below.shape[3]]
            joined = {
                Merge.concatenate: torch.cat((skip, below), 1),
                Merge.residual: skip + below,
                Merge.plain: below,
            }[merge]
            assert torch.equal(top(x), top.up(joined))


def test_without_skips_every_path_leads_through_the_bottom() -> None:
    # A bottom that answers the same to everything makes a plain U-Net blind, the others not.
    for merge, blind in zip(MERGES, (False, False, True), strict=True):
        network = models.build(settings(merge, 8), 1, 2).eval()
        bottom = network.get_submodule("top.branch.inner")
        bottom.register_forward_hook(lambda layer, inputs, output: torch.zeros_like(output))
        with torch.no_grad():
            assert torch.equal(network(pictures(1, 1, 8, 8)), network(torch.ones(1, 1, 8, 8))) is (
                blind
            )


# Initial values and gradients


@pytest.mark.parametrize(("init", "fan"), [(Init.he_fan_out, 32), (Init.he_fan_in, 64)])
def test_an_up_convolution_starts_by_its_own_fans(init: Init, fan: int) -> None:
    network = models.build(settings(depth=8, width=64, init=init), 1, 2)
    weight = network.get_parameter("top.branch.rise.weight")
    assert weight.shape == (128, 64, 2, 2)
    std = (2 / (4 * 2 * fan)) ** 0.5
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    drawn = torch.randn(weight.shape, generator=generator(0, "top.branch.rise.weight"))
    torch.testing.assert_close(weight, std * drawn)


# Twins


@pytest.mark.process
def test_the_plain_twin_of_concatenation_lacks_the_concatenated_channels_alone() -> None:
    concatenated = dict(structure(settings(depth=23, width=64, **PAPER)).named_parameters())
    plain = dict(
        structure(settings(depth=23, width=64, twin=Twin.plain, **PAPER)).named_parameters()
    )
    assert concatenated.keys() == plain.keys()
    differ = [key for key in plain if plain[key].shape != concatenated[key].shape]
    assert differ == [f"top.{'branch.inner.' * level}up.conv1.weight" for level in (3, 2, 1, 0)]


@pytest.mark.parametrize("depth", [8, 13, 18, 23])
@pytest.mark.parametrize("width", [6, 16, 64])
def test_a_matched_twin_has_parameters_within_one_percent(depth: int, width: int) -> None:
    one = settings(depth=depth, width=width)
    matched = replace(one, twin=Twin.matched)
    wanted = unet.parameters(unet.widths(one, 1, 2), Merge.concatenate, 1, 2, Normalisation.batch)
    widths = unet.widths(matched, 1, 2)
    got = unet.parameters(widths, Merge.plain, 1, 2, Normalisation.batch)
    assert got == pytest.approx(wanted, rel=0.01)
    with torch.device("meta"):
        assert models.count(structure(matched)) == got
    # About as much wider at every level.
    factors = [mine / width for mine, width in zip(widths, unet.widths(one, 1, 2), strict=True)]
    assert all(1 <= factor < 1.2 for factor in factors)


def test_addition_matches_its_plain_twin_as_it_is() -> None:
    added = settings(Merge.residual, twin=Twin.matched)
    assert unet.widths(added, 1, 2) == unet.widths(settings(), 1, 2)


# Choosing it


@pytest.mark.process
def test_the_sums_configuration_differs_in_its_rule_alone() -> None:
    added = compose(["experiment=blobs", "arch=unet_add"]).settings
    assert added.arch == replace(compose(["experiment=blobs"]).settings.arch, merge=Merge.residual)
