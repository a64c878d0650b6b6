"""The gradients probe: explosion with normalisation, vanishing without; norms by another way."""

from __future__ import annotations

import math
from itertools import product

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import Account, Case, Verdict, gradients
from resexp.probes.gradients import arm, layers, slopes, tilt
from resexp.probes.networks import load, some_images
from resexp.settings import Arch, Merge, Normalisation, Settings, Twin

SEEDS = (0, 1, 2)


def at_start(name: str, depth: int, seed: int) -> pd.DataFrame:
    settings = arm(Settings(depth=depth, seed=seed), name)
    data = load(settings)
    network = models.build(settings, 1, 10, data.size)
    return pd.DataFrame(layers(network, *some_images(settings, data, 32))).assign(seed=seed)


@pytest.mark.process
def test_plain_gradients_explode_at_the_start_with_normalisation() -> None:
    plain = [tilt(at_start("plain", 56, seed)["g"]) for seed in SEEDS]
    residual = [tilt(at_start("residual", 56, seed)["g"]) for seed in SEEDS]
    assert min(plain) > 0
    assert (sum(map(abs, plain)) - sum(map(abs, residual))) / 3 >= 1.5
    assert gradients.judge(plain) is Verdict.not_supported
    assert gradients.word(sum(plain) / 3) == "explode"


@pytest.mark.process
def test_without_normalisation_xaviers_weights_let_them_vanish() -> None:
    for seed in SEEDS:
        shallow, deep = (at_start("plain no norm xavier", depth, seed) for depth in (20, 56))
        assert shallow["g"][0] / deep["g"][0] >= 1e3
        assert slopes(deep)[0] > 0.1  # an image's gradient grows from layer to layer to the loss


def test_the_verdict_and_its_words_go_by_sign() -> None:
    assert gradients.judge([-3.0, -2.0, -1.5]) is Verdict.supported
    assert gradients.judge([-3.0, -2.0, 0.5]) is Verdict.inconclusive
    assert gradients.judge([0.1, -0.1, 0.0]) is Verdict.inconclusive
    assert gradients.judge([math.nan, 2.0, 2.0]) is Verdict.inconclusive
    assert gradients.judge([-3.0, -2.0]) is Verdict.inconclusive  # of two seeds
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
    assert len(found) == len(convolutions) == 7
    for row, layer in zip(found, convolutions, strict=True):
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
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(row["g"], rel=1e-5)
        assert row["r"] == pytest.approx(row["g"] / weight.norm().item(), rel=1e-9)


def test_a_is_the_mean_over_images_of_each_ones_own_gradient(few_digits: Images) -> None:
    settings = Settings(depth=8, width=4, arch=Arch(norm=Normalisation.none))
    network = models.build(settings, 1, 10, (8, 8)).double()
    images, labels = some_images(settings, few_digits, 5)
    images = images.double()
    whole = pd.DataFrame(layers(network, images, labels)).dropna().set_index("layer")["a"]
    parts = [layers(network, images[n : n + 1], labels[n : n + 1]) for n in range(5)]
    alone = pd.concat([pd.DataFrame(part).dropna() for part in parts])
    assert dict(whole) == pytest.approx(dict(alone.groupby("layer")["a"].mean()), rel=1e-9)
    assert list(whole.index) == [3, 5, 7]


def test_slope_and_rho_of_an_exponential() -> None:
    rows = pd.DataFrame({"seed": 0, "layer": range(1, 8)}, dtype=float)
    rows["g"], rows["a"] = 10 ** -rows["layer"], 10 ** (0.5 * rows["layer"])
    assert slopes(rows) == [pytest.approx(0.5)]
    assert tilt(rows["g"]) == pytest.approx(4)


@pytest.mark.process
def test_every_arm_is_followed_while_it_trains() -> None:
    settings = Settings(depth=8, width=4, steps=12, batch_size=8)
    rows = list(gradients.measure([Case("plain", settings)], iter))
    places = {(row["arm"], row["step"]) for row in rows}
    assert places == {(name, step) for name in gradients.ARMS for step in ("0", "10")}
    assert len(rows) == len(places) * 7
    finding = gradients.conclude(pd.DataFrame(rows))
    assert not any(math.isnan(value) for value in finding.numbers.values())
    assert finding.account is None  # nothing was trained to its end


#: g of the first layers of seed 0, ten times that in seed 1; of all other layers 1.
FIRST = {("plain", 8): 9.0, ("residual", 8): 9.0, ("plain no norm xavier", 8): 1e-2}
FIRST |= {("plain", 56): 100.0, ("residual", 56): 1.0, ("plain no norm xavier", 56): 1e-8}


def told(scale: float = 1.0) -> gradients.Finding:
    """Trained, plain-8 explodes in units of the weights, and plain-56 fails and vanishes."""
    rows = [
        {"arm": arm, "depth": depth, "seed": seed, "step": step, "layer": layer, "a": None}
        | {"g": 7.0 if step == "end" else g * scale * 10**seed if layer <= 3 else 1.0}
        | {"r": 7.0 if step == "0" else (10.0 if depth == 8 else 0.1) if layer <= 3 else 1.0}
        | {"error_percent": 65.0 if (arm, depth) == ("plain", 56) else 0.5}
        for ((arm, depth), g), step, seed, layer in product(
            FIRST.items(), ("0", "end"), (0, 1), range(7, 0, -1)
        )
    ]
    return gradients.conclude(pd.DataFrame(rows))


def test_the_textbook_is_contradicted_where_they_explode_and_right_where_they_vanish() -> None:
    assert (exploding := told().account) is not None
    assert exploding[0] is Account.contradicted
    assert "explode towards the input at the start, by +2.5 decades" in exploding[1]
    assert "plain-8 +1.0 (explode); plain-56 (which failed to train: 65 %" in exploding[1]
    assert "-1.0 (vanish)" in exploding[1]
    assert "vanish with depth, by -6.0 decades" in exploding[1]
    assert (vanishing := told(1e-6).account) is not None
    assert vanishing[0] is Account.right


def test_an_arm_has_its_skips_whatever_it_was_made_from() -> None:
    base = Settings(depth=8, twin=Twin.plain, arch=Arch(merge=Merge.residual))
    for name, (merge, norm, init) in gradients.ARMS.items():
        made = arm(base, name)
        assert (made.arch.merge, made.arch.norm, made.twin) == (merge, norm, Twin.none)
        assert made.init is (init or base.init)
