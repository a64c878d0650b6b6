"""The shattering probe: its acceptance, and its derivative against autograd and differences."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest
import torch
from torch import Tensor

from resexp.data import Images
from resexp.probes import Verdict, shattering
from resexp.probes.networks import at_start, some_images
from resexp.probes.shattering import ARMS, DECIDE, autocorrelation, cosine, gradients
from resexp.settings import Arch, Merge, Normalisation, Settings

SEEDS = 5


def neighbours(name: str, depth: int) -> float:
    """Mean autocorrelation at lag 1."""
    found = [autocorrelation(gradients(ARMS[name], s, [depth])[depth], 1) for s in range(SEEDS)]
    return sum(found) / SEEDS


@pytest.mark.process
def test_plain_gradients_shatter_where_centred_and_only_there() -> None:
    plain, residual = (neighbours(*place) for place in DECIDE.values())
    assert plain < 0.2
    assert residual > 0.8
    assert neighbours("plain", 24) > 0.5  # the control
    assert shattering.judge(plain, residual) is Verdict.supported


def test_a_cosine_is_the_mean_over_pairs_of_each_images_own_gradient(few_digits: Images) -> None:
    """Image by image, with the statistics of the whole batch written in by hand."""
    settings = Settings(depth=8, width=4, arch=Arch(merge=Merge.residual))
    network = at_start(settings, few_digits).double()
    images = some_images(settings, few_digits, 6)[0].double()
    found = cosine(network, images)
    again = at_start(settings, few_digits).double().train()
    for layer in again.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_pre_hook(keep_statistics)
    with torch.no_grad():
        again(images)
    gradients = []
    for image in images.clone().requires_grad_():
        (one,) = torch.autograd.grad(again.eval()(image[None])[0, 0], image)
        gradients.append(one.flatten())
    pairs = [
        torch.cosine_similarity(one, other, dim=0).item()
        for one, other in itertools.combinations(gradients, 2)
    ]
    assert found == pytest.approx(sum(pairs) / 15, rel=1e-6)


def keep_statistics(layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if layer.training:
        assert isinstance(layer, torch.nn.BatchNorm2d)
        layer.momentum = 0.0
        layer.running_mean = inputs[0].mean((0, 2, 3))
        layer.running_var = inputs[0].var((0, 2, 3), correction=1)


def test_gradients_of_equal_images_have_cosine_1(few_digits: Images) -> None:
    settings = Settings(depth=8, width=4, arch=Arch(norm=Normalisation.none))
    image = some_images(settings, few_digits, 1)[0].double()
    network = at_start(settings, few_digits).double()
    assert cosine(network, image.expand(5, -1, -1, -1)) == pytest.approx(1)


def test_the_verdict_has_two_sides() -> None:
    assert shattering.judge(0.5, 0.5) is Verdict.not_supported
    assert shattering.judge(0.5, 0.9) is Verdict.inconclusive


def by_autograd(arm: shattering.Arm, seed: int, depth: int) -> tuple[Tensor, Tensor]:
    """df/dx by autograd, statistics detached, and by central differences with them frozen."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width = shattering.WIDTH
    first, bias, readout = draw(1, width), draw(width), draw(width) / math.sqrt(width)
    weights = [draw(width, width) * math.sqrt(2 / width) for _ in range(depth - 1)]
    frozen: list[tuple[Tensor, Tensor]] = []

    def function(x: Tensor, learn: bool) -> Tensor:
        h = x @ first + bias
        for at, weight in enumerate(weights):
            if learn:
                deviation = (h.detach().var(0, unbiased=False) + shattering.EPS).sqrt()
                frozen.append((h.detach().mean(0), deviation))
            mean, deviation = frozen[at]
            mean = torch.zeros_like(mean) if arm.norm == "none" else mean
            deviation = deviation if arm.norm == "batch" else torch.ones_like(deviation)
            branch = torch.relu((h - mean) / deviation) @ weight
            h = branch if arm.scale is None else h + arm.scale * branch
        return (torch.relu(h) if arm.scale is None else h) @ readout

    x = torch.linspace(-2, 2, shattering.POINTS, dtype=torch.float64)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(function(x, True).sum(), x)
    with torch.no_grad():
        difference = (function(x + 1e-7, False) - function(x - 1e-7, False)) / 2e-7
    return slope[:, 0], difference


@pytest.mark.parametrize("name", ARMS)
def test_the_derivative_is_that_of_autograd_and_of_differences(name: str) -> None:
    ours = gradients(ARMS[name], 3, [6])[6]
    slope, difference = by_autograd(ARMS[name], 3, 6)
    assert torch.allclose(ours, slope, rtol=1e-9, atol=1e-12)
    assert (ours - difference).abs().median() < 1e-5 * ours.abs().median()  # kinks aside


def test_autocorrelation_of_known_signals() -> None:
    ramp = torch.arange(4.0)  # centred: -1.5 -0.5 0.5 1.5
    assert autocorrelation(ramp, 1) == pytest.approx((0.75 - 0.25 + 0.75) / 5)
    noise = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert abs(autocorrelation(noise, 1)) < 0.02
    assert autocorrelation(noise.cumsum(0), 1) > 0.99


@pytest.mark.process
def test_every_arm_depth_and_lag_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shattering, "WIDTH", 16)
    monkeypatch.setattr(shattering, "IMAGE_DEPTHS", (8, 20))
    rows = shattering.measure([], lambda done, of, what: None, seeds=1)
    lines = len(ARMS) * len(shattering.DEPTHS) * len(shattering.LAGS)
    assert len(rows) == lines + 4 * 2
    finding = shattering.conclude(pd.DataFrame(rows))
    assert "control" in finding.sentence
    first = {(row["arm"], row["depth"]): row["autocorrelation"] for row in rows if row["lag"] == 1}
    networks = (*DECIDE.values(), ("plain", 24))
    assert [list(one.values) for one in finding.headlines] == [[first[one]] for one in networks]
