"""The landscape probe: slices, and curvature against an explicit Hessian."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import Case, Verdict, landscape, load, snapshots, some_images
from resexp.probes.landscape import (
    at,
    curvature,
    direction,
    extremes,
    filters,
    minima,
    plane,
    roughness,
    slices,
    width,
)
from resexp.settings import Arch, Merge, Settings


def test_a_direction_has_each_filters_length_and_is_its_seeds() -> None:
    network = models.build(Settings(depth=8, width=4), 1, 10, (8, 8))
    weights = filters(network)
    assert len(weights) == 8
    for d, weight in zip(direction(weights, 1), weights, strict=True):
        torch.testing.assert_close(d.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
    assert torch.equal(direction(weights, 1)[3], direction(weights, 1)[3])
    assert not torch.equal(direction(weights, 1)[3], direction(weights, 2)[3])


def test_a_slice_leaves_the_weights_and_its_slope_is_the_gradients(few_digits: Images) -> None:
    settings = Settings(depth=8, width=4)
    network = models.build(settings, 1, 10, (8, 8)).double().train()
    images, labels = some_images(settings, few_digits, 16)
    images, weights = images.double(), filters(network)
    before = [weight.clone() for weight in weights]
    d = direction(weights, 0)
    ahead, behind = (at(network, weights, [(a, d)], images, labels) for a in (1e-5, -1e-5))
    gradients = torch.autograd.grad(cross_entropy(network(images), labels), weights)
    expected = sum((g * part).sum().item() for g, part in zip(gradients, d, strict=True))
    assert (ahead - behind) / 2e-5 == pytest.approx(expected, rel=1e-5)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    rows = slices(network, images, labels)
    assert len(rows) == landscape.DIRECTIONS * landscape.POINTS
    middle = [row["loss"] for row in rows if row["a"] == 0]
    assert middle == pytest.approx([cross_entropy(network(images), labels).item()] * 3)
    assert len(plane(network, images, labels)) == landscape.GRID**2


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
    inside = curvature(network, images, labels)
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


def test_at_equal_loss_the_better_network_is_sliced_on_its_way() -> None:
    settings = Settings(depth=8, width=4, steps=40, batch_size=32, arch=Arch(merge=Merge.residual))
    data, case = load(settings), Case("residual", settings)
    images, labels = some_images(settings, data, landscape.IMAGES)
    losses = {
        step: at(network.train(), [], [], images, labels)
        for step, network in snapshots(settings, data, range(0, 41, landscape.EVERY))
    }
    wanted = losses[20] + 1e-4
    rows = landscape.at_equal_loss((losses[40], case), (wanted, case))
    assert {(row["kind"], row["step"]) for row in rows} == {("matched", 20)}
    middle = [row["loss"] for row in rows if row["a"] == 0]
    assert middle == pytest.approx([losses[20]] * landscape.DIRECTIONS)
    assert list(losses.values()) == sorted(losses.values(), reverse=True)


def test_the_verdict_is_by_seed_and_needs_alike_shallow_ones() -> None:
    rough = {
        ("plain", 8): [2.0] * 3,
        ("residual", 8): [2.1] * 3,
        ("plain", 44): [5.0] * 3,
        ("residual", 44): [3.0] * 3,
    }
    assert landscape.judge(rough, 8, 44) is Verdict.supported
    assert landscape.judge(rough | {("plain", 8): [4.0] * 3}, 8, 44) is Verdict.inconclusive
    assert landscape.judge(rough | {("plain", 44): [5.0, 5, 2]}, 8, 44) is Verdict.inconclusive
    assert landscape.judge(rough | {("plain", 44): [1.0] * 3}, 8, 44) is Verdict.not_supported
    assert landscape.judge(rough, 44, 44) is Verdict.inconclusive
