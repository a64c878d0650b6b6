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
from resexp.probes.landscape import (
    at,
    curvature,
    direction,
    extremes,
    minima,
    plane,
    roughness,
    slices,
    width,
)
from resexp.probes.networks import load, snapshots, some_images
from resexp.settings import Arch, Merge, Settings, UsageError


@pytest.mark.process
def test_a_direction_has_each_filters_length_and_is_its_seeds() -> None:
    network = models.build(Settings(depth=8, width=4), 1, 10, (8, 8))
    weights = {name: one for name, one in network.named_parameters() if one.dim() > 1}
    first, again, other = (direction(network, number) for number in (1, 1, 2))
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
    images, d = images.double(), direction(network, 0)
    before = [weight.clone() for weight in network.parameters()]
    ahead, behind = (at(network, images, labels, (a, d)) for a in (1e-5, -1e-5))
    weights = [network.get_parameter(name) for name in d]
    gradients = torch.autograd.grad(cross_entropy(network(images), labels), weights)
    expected = sum((g * part).sum().item() for g, part in zip(gradients, d.values(), strict=True))
    assert (ahead - behind) / 2e-5 == pytest.approx(expected, rel=1e-5)
    rows = slices(network, images, labels)
    assert len(rows) == landscape.DIRECTIONS * landscape.POINTS
    middle = [row["loss"] for row in rows if row["a"] == 0]
    assert middle == pytest.approx([cross_entropy(network(images), labels).item()] * 3)
    assert len(plane(network, images, labels)) == landscape.GRID**2
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
    least, most = curvature(network, images, labels, iterations=60)
    assert most == pytest.approx(exact[-1].item(), rel=1e-4)
    assert least == pytest.approx(exact[0].item(), abs=1e-4 * exact[-1].item())
    inside = curvature(network, images, labels, iterations=10)
    assert exact[0].item() - 1e-6 <= inside[0] < inside[1] <= exact[-1].item() + 1e-6


def test_lanczos_is_exact_after_as_many_products_as_values() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(matrix)
    found = extremes(lambda vector: matrix @ vector, start, 6)
    assert found == pytest.approx((exact[0].item(), exact[-1].item()))
    identity = extremes(lambda vector: 2 * vector, start, 6)
    assert identity == pytest.approx((2, 2))


def test_numbers_of_slices() -> None:
    line = [10 ** (0.1 * x) - 1 for x in range(11)]
    assert roughness(line) == pytest.approx(0, abs=1e-9)
    kink = [10 ** abs(0.1 * x) - 1 for x in range(-5, 6)]
    assert roughness(kink) == pytest.approx(0.2 / 0.5)
    assert minima(kink) == 1
    assert minima([3, 1, 2, 1, 3]) == 2
    assert width([4, 1.5, 1, 1.5, 4]) == pytest.approx(2 * 3 / 5)


@pytest.mark.process
def test_at_equal_loss_the_better_network_is_sliced_on_its_way() -> None:
    settings = Settings(depth=8, width=4, steps=40, batch_size=32, arch=Arch(merge=Merge.residual))
    data, case = load(settings), Case("residual", settings)
    images, labels = some_images(settings, data, landscape.IMAGES)
    losses = {
        step: at(network.train(), images, labels)
        for step, network in snapshots(settings, data, range(0, 41, 2))
    }
    wanted = losses[20] + 1e-4
    rows = landscape.at_equal_loss((losses[40], case), (wanted, case))
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


def test_headlines_are_differences_by_seed_of_kinks() -> None:
    finding = told(1, 0, 0.5)
    assert {one.what: list(one.values) for one in finding.headlines} == {
        "roughness, plain-56 less residual-56": pytest.approx([2, 2, 2]),
        "at equal loss": pytest.approx([2 - 1 / 0.75] * 3),
        "plain-8 less residual-8": pytest.approx([0, 0, 0], abs=1e-12),
    }
    assert finding.numbers["loss, plain 56"] == pytest.approx(9)  # at a = 0
    assert finding.numbers["lambda_max, plain 56"] == 4
    ratio = "|lambda_min / lambda_max|"
    expected = (1 / 2 + 1 / 4 + 1 / 6) / 3
    assert finding.numbers[f"{ratio}, plain 56"] == pytest.approx(expected)
    assert finding.numbers[f"{ratio}, beside, residual 56 at equal loss"] == (
        pytest.approx(2 * expected)
    )
    assert finding.verdict is Verdict.supported


@pytest.mark.parametrize(
    ("plain", "residual", "matched", "verdict"),
    [
        (1, 0, 1, Verdict.inconclusive),  # no rougher at equal loss: the loss, not the skips
        (0, 1, 1, Verdict.not_supported),
        (0, 1, 0, Verdict.inconclusive),
        (math.nan, 0, 0, Verdict.inconclusive),
        (1, 0, math.nan, Verdict.inconclusive),
    ],
)
def test_both_comparisons_decide(
    plain: float, residual: float, matched: float, verdict: Verdict
) -> None:
    assert told(plain, residual, matched).verdict is verdict


def test_networks_of_no_depth_in_common_are_refused() -> None:
    cases = [
        Case(arch, Settings(depth=depth, arch=Arch(merge=Merge(arch))))
        for arch, depth in (("plain", 8), ("residual", 14))
    ]
    with pytest.raises(UsageError, match="one depth"):
        landscape.measure(cases, lambda done, of, what: None)


def test_the_verdict_is_by_seed_and_needs_alike_shallow_ones() -> None:
    rough = [2.0] * 3
    assert landscape.judge({8: [-0.1] * 3, 44: rough}, rough) is Verdict.supported
    assert landscape.judge({8: [1.9] * 3, 44: rough}, rough) is Verdict.inconclusive
    assert landscape.judge({8: [-0.1] * 3, 44: [2.0, 2, -1]}, rough) is Verdict.inconclusive
    assert landscape.judge({8: [-0.1] * 3, 44: rough}, [2.0, 2, -1]) is Verdict.inconclusive
    assert landscape.judge({8: [-0.1] * 3, 44: [-2.0] * 3}, [-2.0] * 3) is Verdict.not_supported
    assert landscape.judge({8: [-0.1] * 3, 44: rough}, rough[:2]) is Verdict.inconclusive
    assert landscape.judge({8: [-0.1] * 2, 44: rough[:2]}, rough[:2]) is Verdict.inconclusive
    assert landscape.judge({44: rough}, rough) is Verdict.inconclusive
