"""The gradients probe: explosion with normalisation, vanishing without; norms by another way."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import Case, Verdict, gradients, load, some_images
from resexp.probes.gradients import arm, layers, log_rho, slope, tidy
from resexp.settings import Arch, Merge, Normalisation, Settings, Twin, UsageError

SEEDS = (0, 1, 2)


def at_start(name: str, depth: int, seed: int) -> list[dict[str, str | int | float | None]]:
    settings = arm(Settings(depth=depth, seed=seed), name)
    data = load(settings)
    network = models.build(settings, 1, 10, data.size)
    return tidy(name, depth, seed, "0", layers(network, *some_images(settings, data, 32)))


def test_plain_gradients_explode_at_the_start_with_normalisation() -> None:
    plain = [log_rho(at_start("plain", 56, seed)) for seed in SEEDS]
    residual = [log_rho(at_start("residual", 56, seed)) for seed in SEEDS]
    assert min(plain) > 0
    assert (sum(map(abs, plain)) - sum(map(abs, residual))) / 3 >= 1.5
    assert gradients.judge(plain) is Verdict.not_supported
    assert gradients.word(sum(plain) / 3) == "explode"


def test_without_normalisation_xaviers_weights_let_them_vanish() -> None:
    for seed in SEEDS:
        shallow, deep = (at_start("plain no norm xavier", depth, seed) for depth in (20, 56))
        assert float(shallow[0]["g"] or 0) / float(deep[0]["g"] or 0) >= 1e3
        assert slope(deep) > 0.1  # an image's gradient grows from layer to layer towards the loss


def test_the_verdict_and_its_words_go_by_sign() -> None:
    assert gradients.judge([-3.0, -2.0, -1.5]) is Verdict.supported
    assert gradients.judge([-3.0, -2.0, 0.5]) is Verdict.inconclusive
    assert gradients.judge([0.1, -0.1, 0.0]) is Verdict.inconclusive
    assert gradients.judge([math.nan, 2.0, 2.0]) is Verdict.inconclusive
    assert gradients.word(-3) == "vanish"
    assert gradients.word(0.1) == "neither grow nor shrink"


def test_a_layers_norm_is_the_slope_of_the_loss_along_its_gradient(few_digits: Images) -> None:
    settings = Settings(depth=8, width=4, arch=Arch(merge=Merge.residual))
    network = models.build(settings, 1, 10, (8, 8)).double()
    images, labels = some_images(settings, few_digits, 16)
    images = images.double()
    found = layers(network, images, labels)
    cross_entropy(network(images), labels).backward()
    convolutions = [one for one in network.modules() if isinstance(one, torch.nn.Conv2d)]
    assert len(found.g) == len(convolutions) == 7
    for g, r, layer in zip(found.g, found.r, convolutions, strict=True):
        weight = layer.weight
        assert weight.grad is not None
        step = 1e-5 * weight.grad / weight.grad.norm()
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                weight += sign * step
            ends.append(cross_entropy(network(images), labels).item())
        with torch.no_grad():
            weight += step
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(g, rel=1e-5)
        assert r == pytest.approx(g / weight.norm().item(), rel=1e-9)


def test_a_is_the_mean_over_images_of_each_ones_own_gradient(few_digits: Images) -> None:
    settings = Settings(depth=8, width=4, arch=Arch(norm=Normalisation.none))
    network = models.build(settings, 1, 10, (8, 8)).double()
    images, labels = some_images(settings, few_digits, 5)
    images = images.double()
    whole = layers(network, images, labels)
    alone = [layers(network, images[n : n + 1], labels[n : n + 1]).a for n in range(5)]
    means = [sum(values) / 5 for values in zip(*alone, strict=True)]
    assert whole.a == pytest.approx(means, rel=1e-9)
    assert whole.block_ends == [3, 5, 7]


def test_slope_and_rho_of_an_exponential() -> None:
    rows = [
        {"layer": layer, "g": 10.0**-layer, "a": 10.0 ** (0.5 * layer)} for layer in range(1, 8)
    ]
    assert slope(rows) == pytest.approx(0.5)  # type: ignore[arg-type]
    assert log_rho(rows) == pytest.approx(4)  # type: ignore[arg-type]


def test_every_arm_is_followed_while_it_trains() -> None:
    settings = Settings(depth=8, width=4, steps=12, batch_size=8)
    finding = gradients.measure([Case("plain", settings)], lambda done, of, what: None)
    places = {(row["arm"], row["step"]) for row in finding.rows}
    assert places == {(name, step) for name in gradients.ARMS for step in ("0", "10")}
    assert len(finding.rows) == len(places) * 7
    assert not any(math.isnan(value) for value in finding.numbers.values())


def test_an_arm_has_its_skips_whatever_it_was_made_from() -> None:
    base = Settings(depth=8, twin=Twin.plain, arch=Arch(merge=Merge.residual))
    for name, (merge, norm, init) in gradients.ARMS.items():
        made = arm(base, name)
        assert (made.arch.merge, made.arch.norm, made.twin) == (merge, norm, Twin.none)
        assert made.init is (init or base.init)


def test_networks_without_their_twins_are_refused() -> None:
    case = Case("highway", Settings(arch=Arch(merge=Merge.highway)))
    with pytest.raises(UsageError, match="arch=plain,residual"):
        gradients.measure([case], lambda done, of, what: None)
