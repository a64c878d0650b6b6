"""The landscape probe: slices, and curvature against an explicit Hessian."""

from __future__ import annotations

import math
from itertools import product

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import Case, Verdict, landscape
from resexp.probes.networks import load, snapshots, some_images
from resexp.settings import Arch, Merge, Settings


@pytest.mark.process
def test_a_direction_has_each_filters_length_and_is_its_seeds() -> None:
    network = models.build(Settings(depth=8, width=4), 1, 10, (8, 8))
    weights = {name: one for name, one in network.named_parameters() if one.dim() > 1}
    first, again, other = (landscape.direction(network, number) for number in (1, 1, 2))
    assert first.keys() == weights.keys()
    assert len(weights) == 8
    for name, weight in weights.items():
        lengths = first[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, weight.flatten(1).norm(dim=1))
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_a_slice_leaves_the_weights_and_its_slope_is_the_gradients(few_digits: Images) -> None:
    settings = Settings(depth=8, width=4)
    network = models.build(settings, 1, 10, (8, 8)).double().train()
    images, labels = some_images(settings, few_digits, 16)
    images, d = images.double(), landscape.direction(network, 0)
    before = [weight.clone() for weight in network.parameters()]
    ahead, behind = (landscape.at(network, images, labels, (a, d)) for a in (1e-5, -1e-5))
    weights = [network.get_parameter(name) for name in d]
    gradients = torch.autograd.grad(cross_entropy(network(images), labels), weights)
    expected = sum((g * part).sum().item() for g, part in zip(gradients, d.values(), strict=True))
    assert (ahead - behind) / 2e-5 == pytest.approx(expected, rel=1e-5)
    rows = landscape.slices(network, images, labels)
    assert len(rows) == landscape.DIRECTIONS * landscape.POINTS
    middle = [row["loss"] for row in rows if row["a"] == 0]
    assert middle == pytest.approx([cross_entropy(network(images), labels).item()] * 3)
    assert len(landscape.plane(network, images, labels)) == landscape.GRID**2
    after = network.parameters()
    assert all(torch.equal(weight, old) for weight, old in zip(after, before, strict=True))


def test_the_extreme_eigenvalues_are_those_of_the_explicit_hessian(few_digits: Images) -> None:
    """By finite differences of the gradient, entry by entry, of a network of 115 parameters."""
    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 7), torch.nn.Tanh()
    )
    network.append(torch.nn.Linear(7, 10)).double()
    images, labels = some_images(Settings(), few_digits, 40)
    images = 3 * images.double()
    parameters = list(network.parameters())

    def gradient() -> torch.Tensor:
        found = torch.autograd.grad(cross_entropy(network(images), labels), parameters)
        return torch.cat([one.flatten() for one in found])

    columns = []
    for parameter in parameters:
        for index in range(parameter.numel()):
            flat = parameter.data.view(-1)
            flat[index] += 1e-5
            ahead = gradient()
            flat[index] -= 2e-5
            columns.append((ahead - gradient()) / 2e-5)
            flat[index] += 1e-5
    exact = torch.linalg.eigvalsh(torch.stack(columns).double())
    least, most = landscape.curvature(network, images, labels, iterations=60)
    assert most == pytest.approx(exact[-1].item(), rel=1e-4)
    assert least == pytest.approx(exact[0].item(), abs=1e-4 * exact[-1].item())
    inside = landscape.curvature(network, images, labels, iterations=10)
    assert exact[0].item() - 1e-6 <= inside[0] < inside[1] <= exact[-1].item() + 1e-6


def test_lanczos_is_exact_after_as_many_products_as_values() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(matrix)
    found = landscape.extremes(lambda vector: matrix @ vector, start, 6)
    assert found == pytest.approx((exact[0].item(), exact[-1].item()))
    identity = landscape.extremes(lambda vector: 2 * vector, start, 6)
    assert identity == pytest.approx((2, 2))


def test_numbers_of_slices() -> None:
    line = [10 ** (0.1 * x) - 1 for x in range(11)]
    assert landscape.roughness(line) == pytest.approx(0, abs=1e-9)
    kink = [10 ** abs(0.1 * x) - 1 for x in range(-5, 6)]
    assert landscape.roughness(kink) == pytest.approx(0.2 / 0.5)
    assert landscape.minima(kink) == 1
    assert landscape.minima([3, 1, 2, 1, 3]) == 2
    assert landscape.width([4, 1.5, 1, 1.5, 4]) == pytest.approx(2 * 3 / 5)


@pytest.mark.process
def test_at_equal_loss_the_better_network_is_sliced_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, less in {"POINTS": 3, "DIRECTIONS": 1, "ITERATIONS": 2, "IMAGES": 64}.items():
        monkeypatch.setattr(landscape, name, less)
    settings = Settings(depth=8, width=4, steps=40, batch_size=32, arch=Arch(merge=Merge.residual))
    data, case = load(settings), Case("residual", settings)
    images, labels = some_images(settings, data, landscape.IMAGES)
    losses = {
        step: landscape.at(network.train(), images, labels)
        for step, network in snapshots(settings, data, range(0, 41, 2))
    }
    wanted = losses[20] + 1e-4
    rows = list(landscape.at_equal_loss(case, wanted))
    assert {(row["matched"], row["step"]) for row in rows} == {(1, 20)}
    assert {row["kind"] for row in rows} == {"slice", "curvature"}
    middle = [row["loss"] for row in rows if (row["kind"], row["a"]) == ("slice", 0)]
    assert middle == pytest.approx([losses[20]] * landscape.DIRECTIONS)
    assert list(losses.values()) == sorted(losses.values(), reverse=True)


def told(plain: float, residual: float, matched: float) -> landscape.Finding:
    """log10(1 + loss) is so much of |a| in networks of depth 56, else a line; range 1 to 2.

    ``matched``: of residual-56 on its way.
    """
    bends = {("plain", 56, 0): plain, ("residual", 56, 0): residual, ("residual", 56, 1): matched}
    bends |= {("plain", 8, 0): 0.0, ("residual", 8, 0): 0.0}
    rows = []
    for ((arch, depth, earlier), bend), seed in product(bends.items(), (2, 0, 1)):
        place = {"arch": arch, "depth": depth, "seed": seed}
        for number, a in product((0, 1, 2), (1.0, -1.0, 0.0)):
            loss = 10 ** (1 + bend * abs(a) + (1 - bend) * (a + 1) / 2) - 1
            made = landscape.cell("slice", direction=number, a=a, loss=loss)
            rows.append(place | made | {"matched": earlier})
        for a in landscape.CURVED_AT:
            least, most = -1.0 - 2 * abs(a), 2.0 * (1 + seed)
            made = landscape.cell("curvature", a=a, lambda_min=least, lambda_max=most)
            rows.append(place | made | {"matched": earlier})
    return landscape.conclude(pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("plain", "residual", "matched", "verdict"),
    [
        (1, 0, 0.5, Verdict.supported),
        (1, 0, 1, Verdict.inconclusive),  # no rougher at equal loss: the loss, not the skips
        (0, 1, 1, Verdict.not_supported),
        (0, 1, 0, Verdict.inconclusive),
        (math.nan, 0, 0, Verdict.inconclusive),
        (1, 0, math.nan, Verdict.inconclusive),
    ],
)
@pytest.mark.process
def test_both_comparisons_decide(
    plain: float, residual: float, matched: float, verdict: Verdict
) -> None:
    assert told(plain, residual, matched).verdict is verdict


def test_the_verdict_is_by_seed_and_needs_alike_shallow_ones() -> None:
    rough, unlike, alike = [2.0] * 3, [2.0, 2, -1], [-0.1] * 3
    assert landscape.judge({8: alike, 44: rough}, rough) is Verdict.supported
    for by_depth, equal in (
        ({8: [1.9] * 3, 44: rough}, rough),
        ({8: alike, 44: unlike}, rough),
        ({8: alike, 44: rough}, unlike),
        ({8: alike, 44: rough}, rough[:2]),
        ({44: rough}, rough),
    ):
        assert landscape.judge(by_depth, equal) is Verdict.inconclusive
