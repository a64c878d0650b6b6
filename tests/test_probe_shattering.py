"""The shattering probe: its acceptance, and its derivative against autograd and differences."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from itertools import combinations

import pandas as pd
import pytest
import torch
from torch import Tensor

from resexp.data import Images
from resexp.probes import Case, Verdict, shattering
from resexp.probes.networks import at_start, load, some_images
from resexp.probes.rows import those
from resexp.probes.shattering import ARMS, NEAR, PAIRS, PARTS, autocorrelation, cosines, gradients
from resexp.settings import Arch, Merge, Normalisation, Settings

SEEDS = 5


def neighbours(name: str, depth: int) -> float:
    """Mean autocorrelation at lag 1."""
    found = [autocorrelation(gradients(ARMS[name], s, [depth])[depth], 1) for s in range(SEEDS)]
    return sum(found) / SEEDS


@pytest.mark.process
def test_lines_shatter_where_centred_and_only_there() -> None:
    assert neighbours("plain centred", 24) < 0.2
    assert neighbours("residual batch norm 0.1", 50) > 0.8
    assert neighbours("plain", 24) > 0.5  # the control


@pytest.mark.process
def test_deep_plain_networks_shatter_at_their_start_and_residual_ones_do_not() -> None:
    for merge, low, high in ((Merge.plain, -0.2, 0.2), (Merge.residual, 0.5, 1.0)):
        settings = Settings(depth=56, width=8, seed=90, arch=Arch(merge=merge))
        data = load(settings)
        images = some_images(settings, data, 16)[0].double()
        assert low < cosines(at_start(settings, data).double(), images)[NEAR] < high


def test_cosines_are_of_each_images_own_gradient(few_digits: Images) -> None:
    """Image by image, with the statistics of the whole batch written in by hand."""
    settings = Settings(depth=8, width=4, arch=Arch(merge=Merge.residual))
    network = at_start(settings, few_digits).double()
    images = some_images(settings, few_digits, 6)[0].double()
    found = cosines(network, images)
    again = at_start(settings, few_digits).double().train()
    for layer in again.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_pre_hook(keep_statistics)
    with torch.no_grad():
        again(images)
    again.eval()

    def gradient(image: Tensor) -> Tensor:
        image = image.clone().requires_grad_()
        (one,) = torch.autograd.grad(again(image[None])[0, 0], image)
        return one.flatten()

    def mean(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
        return statistics.mean(torch.cosine_similarity(*pair, dim=0).item() for pair in pairs)

    pairs = [(gradient(one), gradient(other)) for one, other in combinations(images, 2)]
    assert found[PAIRS] == pytest.approx(mean(pairs), rel=1e-6)
    ways = zip(images, [*images[1:], images[0]], strict=True)
    near = [(gradient(x), gradient(x + NEAR * (other - x))) for x, other in ways]
    assert found[NEAR] == pytest.approx(mean(near), rel=1e-6)


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
    found = cosines(network, image.expand(5, -1, -1, -1))
    assert list(found) == list(PARTS)
    assert list(found.values()) == pytest.approx([1] * len(PARTS))


@pytest.mark.parametrize(
    ("plain", "residual", "verdict"),
    [
        ([0.01, 0.0, -0.01], [0.7, 0.72, 0.71], Verdict.supported),
        ([0.01, 0.0], [0.7, 0.72], Verdict.inconclusive),  # of two seeds
        ([0.0, 0.0, 0.0], [0.003, 0.007, -0.001], Verdict.inconclusive),  # both noise
        ([0.01, 0.0, -0.01], [0.4, 0.7, 1.0], Verdict.inconclusive),  # too wide to say
        ([0.8, 0.81, 0.82], [0.9, 0.9, 0.91], Verdict.not_supported),  # plain does not shatter
        ([0.4, 0.41, 0.42], [0.3, 0.3, 0.31], Verdict.not_supported),
        ([0.0, 0.0, math.nan], [0.7, 0.72, 0.71], Verdict.inconclusive),
    ],
)
def test_the_verdict_has_two_sides(
    plain: list[float], residual: list[float], verdict: Verdict
) -> None:
    assert shattering.judge(pd.Series(plain), pd.Series(residual)) is verdict


def by_differences(arm: shattering.Arm, seed: int, depth: int) -> Tensor:
    """df/dx by central differences, statistics frozen."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width = shattering.WIDTH
    first, bias, readout = draw(1, width), draw(width), draw(width) / math.sqrt(width)
    weights = [draw(width, width) * math.sqrt(2 / width) for _ in range(depth - 1)]
    frozen: list[tuple[Tensor, Tensor]] = []

    def function(x: Tensor) -> Tensor:
        h = x @ first + bias
        for at, weight in enumerate(weights):
            if len(frozen) == at:
                frozen.append((h.mean(0), (h.var(0, unbiased=False) + shattering.EPS).sqrt()))
            mean, deviation = frozen[at]
            mean = torch.zeros_like(mean) if arm.norm == "none" else mean
            deviation = deviation if arm.norm == "batch" else torch.ones_like(deviation)
            branch = torch.relu((h - mean) / deviation) @ weight
            h = branch if arm.scale is None else h + arm.scale * branch
        return (torch.relu(h) if arm.scale is None else h) @ readout

    x = torch.linspace(-2, 2, shattering.POINTS, dtype=torch.float64)[:, None]
    function(x)
    return (function(x + 1e-7) - function(x - 1e-7)) / 2e-7


@pytest.mark.parametrize("name", ARMS)
def test_the_derivative_is_that_of_differences(name: str) -> None:
    ours, difference = (
        gradients(ARMS[name], 3, [6])[6],
        by_differences(ARMS[name], 3, 6),
    )
    assert (ours - difference).abs().median() < 1e-5 * ours.abs().median()  # kinks aside


def test_autocorrelation_of_known_signals() -> None:
    ramp = torch.arange(4.0)  # centred: -1.5 -0.5 0.5 1.5
    assert autocorrelation(ramp, 1) == pytest.approx((0.75 - 0.25 + 0.75) / 5)
    noise = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert abs(autocorrelation(noise, 1)) < 0.02
    assert autocorrelation(noise.cumsum(0), 1) > 0.99


@pytest.mark.process
def test_every_network_distance_and_line_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shattering, "WIDTH", 16)
    cases = [
        Case(arch, Settings(depth=depth, width=4, arch=Arch(merge=Merge(arch)), seed=3))
        for arch, depth in itertools.product(("plain", "residual"), (8, 14))
    ]
    rows = pd.DataFrame(shattering.measure(cases, iter))
    assert len(rows) == 4 * len(PARTS) + len(ARMS) * len(shattering.DEPTHS)
    ends = pd.concat([rows, those(rows, when="start").assign(when="end", error_percent=40.0)])
    for table, headlines in ((rows, 2), (ends, 4)):
        finding = shattering.conclude(table)
        assert finding.verdict is Verdict.inconclusive  # of one seed
        assert len(finding.headlines) == headlines
        assert ("failed to train (40 %" in finding.sentence) == (headlines == 4)
        assert all("which failed" in one.what for one in finding.headlines[2:])
    [value] = finding.headlines[0].values
    assert value == finding.numbers["correlation, plain 14, start, 0.015625 of the way"]
