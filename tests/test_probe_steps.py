"""The steps probe: a step is what the optimizer did; theory at the start; the rule's sides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import Account, Case, Verdict, steps
from resexp.probes.gradients import arm, layers
from resexp.probes.networks import load, snapshots, some_images
from resexp.probes.rows import mean
from resexp.settings import Arch, Merge, Settings

SMALL = Settings(depth=8, width=4, arch=Arch(merge=Merge.residual), batch_size=40, seed=90)


def test_the_first_step_is_the_rate_times_the_gradient(few_digits: Images) -> None:
    """Oracle: the gradient on the whole set, which is the batch; momentum starts at rest."""
    settings = replace(SMALL, weight_decay=0.0, steps=2, lr=0.3)
    [(step, sizes)] = steps.relative_steps(settings, few_digits)
    network = models.build(settings, 1, 10, (8, 8))
    _, *rows = layers(network, *some_images(settings, few_digits, 40))  # without the stem
    assert step == 1
    assert sizes == pytest.approx([0.3 * row["r"] for row in rows], rel=1e-3)


def test_a_later_step_has_momentum_and_decay(few_digits: Images) -> None:
    """Oracle: torch's own SGD on the same whole set."""
    settings = replace(SMALL, weight_decay=0.1, lr=0.05, steps=40)
    *_, (step, sizes) = steps.relative_steps(settings, few_digits)
    network = models.build(settings, 1, 10, (8, 8)).double()
    rule = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    images, labels = some_images(settings, few_digits, 40)
    for _ in range(step):
        before = [one.clone() for one in steps.weights(network)]
        rule.zero_grad()
        cross_entropy(network(images.double()), labels).backward()
        rule.step()
    assert step == 10
    assert sizes == pytest.approx(steps.moved(before, steps.weights(network)), rel=1e-2)


def test_steps_grow_by_the_theory_behind_normalisation_and_relu() -> None:
    """Oracle: sqrt(pi / (pi - 1)) a layer, where sums are of independent terms."""
    torch.manual_seed(90)
    count, width = 20, 128
    stages = [
        part
        for _ in range(count)
        for part in (nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    ]
    network = nn.Sequential()
    network.blocks = nn.Sequential(*stages)
    for layer in stages[::3]:
        nn.init.normal_(layer.weight, std=math.sqrt(2 / width))
    x = torch.randn(512, width, 1, 1)
    logits = network.blocks(x).flatten(1) @ torch.randn(width, 10)
    before = [one.clone() for one in steps.weights(network)]
    cross_entropy(logits, torch.arange(512) % 10).backward()
    with torch.no_grad():
        for layer in stages[::3]:
            layer.weight -= 1e-3 * layer.weight.grad
    sizes = steps.moved(before, steps.weights(network))
    rows = pd.DataFrame({"arch": "plain", "seed": 90, "step": 1, "layer": range(1, count + 1)})
    [found] = steps.growth(rows.assign(relative_step=sizes), "plain")
    assert found == pytest.approx(1.2112, rel=0.02)


def test_plain_networks_start_near_the_theory_and_residual_ones_far_below() -> None:
    """3x3 sums of correlated pixels deviate: 1.17 a layer over 53 layers of He's weights."""
    found = {}
    for arch in steps.ARCHS:
        settings = replace(arm(Settings(depth=20, seed=90), arch), steps=1)
        [(_, sizes)] = steps.relative_steps(settings, load(settings))
        rows = pd.DataFrame({"arch": arch, "seed": 90, "step": 1, "layer": range(1, 19)})
        [found[arch]] = steps.growth(rows.assign(relative_step=sizes), arch)
    assert found["plain"] == pytest.approx(steps.GROWTH, abs=0.05)
    assert found["residual"] < 1 + (steps.GROWTH - 1) / 2


def table(plain: float, residual: float, seeds: int = 5) -> pd.DataFrame:
    """First layers ahead of the last ones by so many decades, and behind as many at step 10."""
    ahead = {"plain": plain, "residual": residual}
    return pd.DataFrame(
        {"arch": arch, "depth": 8, "seed": seed, "step": step, "layer": layer}
        | {"relative_step": 10.0 ** (sign * (decades + 0.01 * seed) if layer <= 3 else 0)}
        for (arch, decades), seed, (step, sign), layer in product(
            ahead.items(), range(seeds), ((1, 1), (10, -1)), range(6, 0, -1)
        )
    )


@pytest.mark.parametrize(
    ("plain", "residual", "seeds", "verdict"),
    [
        (3.0, 0.4, 5, "supported"),
        (3.0, -0.44, 5, "supported"),
        (3.0, 0.46, 5, "inconclusive"),  # 0.48 on average, log10 3 is 0.477
        (3.0, 2.0, 5, "not supported"),
        (0.3, 0.4, 5, "not supported"),
        (3.0, 0.4, 4, "inconclusive"),
        (math.nan, 0.4, 5, "inconclusive"),
    ],
)
def test_the_verdict_follows_its_rule(
    plain: float, residual: float, seeds: int, verdict: str
) -> None:
    assert steps.conclude(table(plain, residual, seeds)).verdict == verdict


@pytest.mark.parametrize(
    ("plain", "word"),
    [
        ([-3.0, -2.0], Account.right),
        ([3.0, -2.0], Account.overgeneralised),
        ([3.0, -0.2], Account.contradicted),  # within a factor of two
        ([3.0, math.nan], None),
    ],
)
def test_the_textbook_is_right_where_first_layers_of_plain_networks_lag(
    plain: list[float], word: Account | None
) -> None:
    found = steps.account(plain, {"plain": "", "residual": ""})
    assert (found[0] if found else None) is word


def test_a_network_that_diverges_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(name, arm(replace(SMALL, steps=20), name)) for name in steps.ARCHS]
    for ends in ([0, 1], [0, 1, 9]):

        def until(settings: Settings, data: Images, _: object) -> Iterator[tuple[int, nn.Module]]:
            return snapshots(settings, data, ends)  # noqa: B023

        monkeypatch.setattr(steps.nets, "snapshots", until)
        rows = pd.DataFrame(steps.measure(cases, iter))
        assert len(rows) == 2 * 2 * 6
        known = rows.groupby("step")["relative_step"].count()
        assert known.to_dict() == {1: 2 * 6, 10: 0}
        assert math.isnan(mean(steps.unevenness(rows, "plain")))
        assert steps.conclude(rows).verdict is Verdict.inconclusive
