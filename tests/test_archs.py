"""What holds for every arch in configs/arch, whatever its family and its merge rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from families import depths, enlarged, least, settings
from torch import Tensor, nn

from resexp import models
from resexp.data import Images
from resexp.models.merges import draw, drawn
from resexp.settings import Normalisation, Settings, Twin, choices
from resexp.train.fit import begin, fit

ARCHS = choices.options("arch")
CLASSIFIERS = [one for one in ARCHS if models.task(settings(one).arch.family) == "classification"]


def built(of: Settings) -> nn.Module:
    return models.build(of, 1, 10, least(of))


def values(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters())


def small(name: str) -> Settings:
    """An arch at its least depth, narrow, for the smallest images."""
    options = {"stem": "small", "growth": 6}
    stated = settings(name).arch.options
    return settings(name, width=4, options={k: v for k, v in options.items() if k in stated})


#: All of them so, and forms that these do not show.
FORMS = {name: small(name) for name in ARCHS} | {
    "resnet-50": settings("resnet", 50, width=4, options={"stem": "small"}),
    "resnet at 224": settings("resnet", width=4),
    "vgg batch": settings("vgg", width=4, norm=Normalisation.batch),
    "dense bottleneck": settings("dense_bc", 16, options={"growth": 6}),
}


@pytest.mark.parametrize("name", FORMS)
def test_initial_values_come_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    one = values(built(FORMS[name]))
    torch.manual_seed(2)
    again, other = values(built(FORMS[name])), values(built(replace(FORMS[name], seed=1)))
    assert all(torch.equal(one[key], again[key]) for key in one)
    drawn_ones = [key for key in one if one[key].dim() > 1 and one[key].any()]
    assert drawn_ones
    assert not any(torch.equal(one[key], other[key]) for key in drawn_ones)


@pytest.mark.parametrize("twin", [Twin.none, Twin.plain])
@pytest.mark.parametrize("name", FORMS)
def test_a_gradient_reaches_every_parameter(name: str, twin: Twin) -> None:
    of = replace(FORMS[name], twin=twin)
    network = built(of)
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():  # some start where their branch, or they, learn nothing
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    draw(drawn(network), seed=3, step=0)
    for block in network.modules():
        if hasattr(block, "survives"):
            block.survives = True  # type: ignore[assignment]
    x = torch.randn(8, 1, *least(of), generator=generator)
    network(x).square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 1e-12, key


@pytest.mark.parametrize("name", ARCHS)
def test_its_plain_twin_starts_at_the_values_of_what_they_share(name: str) -> None:
    mine = values(built(small(name)))
    plain = values(built(replace(small(name), twin=Twin.plain)))
    said = choices.facts("arch", name)["twin"]
    if "exact" in said and "exact with" not in said:
        assert list(mine) == list(plain)
    shared = [key for key in plain if key in mine and mine[key].shape == plain[key].shape]
    if "initial weights not scaled" in said:  # which a network without skips cannot be
        shared = [key for key in shared if "branch.conv" not in key and "classifier" not in key]
    assert len(shared) > 1
    assert all(torch.equal(mine[key], plain[key]) for key in shared)


@pytest.mark.parametrize("name", ARCHS)
def test_depth_counts_weighted_layers_without_projections(name: str) -> None:
    for depth in depths(settings(name).arch):
        if depth == 264:  # Huang et al. 2017 call one of 265 layers so
            continue
        for twin in (Twin.none, Twin.plain):
            of = settings(name, depth, width=4, twin=twin)
            with torch.device("meta"):
                network = models.structure(of, 3, 10, (64, 64))
            kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
            weighted = [key for key, one in network.named_modules() if isinstance(one, kinds)]
            counted = [key for key in weighted if ".merge." not in key and ".se." not in key]
            if of.arch.family == "transformer":  # counts blocks, of four layers each
                counted = [key for key in counted if key.endswith("attention.branch.inputs")]
            assert len(counted) == depth


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_it_trains_and_repeats(name: str, few_digits: Images) -> None:
    images = enlarged(few_digits, least(small(name))[0] // 8)
    for twin in (Twin.none, Twin.plain):
        of = replace(small(name), twin=twin, steps=4, batch_size=20, eval_every=4, lr=1e-3)

        def losses(of: Settings) -> list[float | None]:
            rows = [row for row in fit(begin(built(of), of), of, images) if row is not None]
            return [rows[-1].train_loss, rows[-1].clean_train_loss, rows[-1].test_loss]

        first = losses(of)
        assert all(loss is not None and math.isfinite(loss) for loss in first)
        assert losses(of) == first
