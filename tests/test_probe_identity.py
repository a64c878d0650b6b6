"""The identity probe: the deep plain solution exists, to the last digits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
import torch
from torch import nn

from resexp import models
from resexp.data import Images
from resexp.probes import Case, Verdict, identity
from resexp.probes.identity import become_identity, constructed, loss, noise, regression
from resexp.probes.networks import some_images
from resexp.settings import Arch, Merge, Settings, UsageError


@pytest.mark.process
def test_a_plain_block_becomes_the_identity_and_nearly_so_in_training() -> None:
    network = models.build(Settings(depth=14, width=8), 1, 10, (8, 8)).eval()
    block = network.get_submodule("blocks.1")
    x = noise(64, torch.Generator().manual_seed(0))
    x[:, 3] = 0  # a dead channel
    become_identity(block, x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(block.train()(x), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("deep", [14, 20, 44])
def test_a_deeper_plain_network_has_the_shallow_ones_loss(deep: int, few_digits: Images) -> None:
    """He et al. 2015, section 3.1: the constructed solution."""
    shallow = models.build(Settings(depth=8), 1, 10, (8, 8))
    images, labels = some_images(Settings(), few_digits, 40)
    shallow.train()(images)  # statistics that are not those of the start
    made = constructed(shallow, models.build(Settings(depth=deep, seed=5), 1, 10, (8, 8)), images)
    assert loss(made, images, labels) == pytest.approx(loss(shallow, images, labels), abs=1e-6)
    other = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    assert loss(made, other, labels) == pytest.approx(loss(shallow, other, labels), abs=1e-5)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in made.modules())
    assert convolutions == deep - 1


@pytest.mark.process
def test_the_error_of_a_network_that_gives_nothing_is_one() -> None:
    """Without a step a plain stack is no identity; the relative error is of the right size."""
    settings = Settings(width=8)
    assert regression(settings, Merge.plain, 4, 0) > 0.5
    assert regression(settings, Merge.plain, 4, 3) == regression(settings, Merge.plain, 4, 3)
    assert (noise(4, torch.Generator().manual_seed(0)) >= 0).all()


def test_a_stack_whose_branches_start_at_0_is_the_identity_and_stays_so() -> None:
    assert regression(Settings(width=8), Merge.scaled, 4, 0) == 0
    assert regression(Settings(width=8), Merge.scaled, 4, 3) < 1e-6


def test_the_verdict_needs_every_part() -> None:
    losses = {
        "shallow": [0.02] * 3,
        "constructed": [0.02] * 3,
        "warm": [0.01] * 3,
        "scratch": [0.05] * 3,
    }
    errors = {"plain": [0.5] * 3, "residual": [0.005] * 3}
    assert identity.judge(losses, errors) is Verdict.supported
    assert identity.judge(losses | {"warm": [0.01, 0.01, 0.03]}, errors) is Verdict.inconclusive
    assert identity.judge(losses, errors | {"residual": [0.1] * 3}) is Verdict.inconclusive
    assert identity.judge(losses | {"scratch": [0.01] * 3}, errors) is Verdict.not_supported
    assert identity.judge(losses, errors | {"plain": [0.005] * 3}) is Verdict.not_supported
    assert identity.judge({k: v[:2] for k, v in losses.items()}, errors) is Verdict.inconclusive


def test_headlines_pair_the_losses_by_seed() -> None:
    losses = {("shallow", 8): 0.5, ("constructed", 20): 0.5, ("warm", 20): 0.4}
    losses |= {("scratch", 20): 0.75}
    errors = {"plain": 0.5, "residual": 0.001, "rezero": 0.0}
    rows = [
        identity.row(part, "plain", depth, seed, nats + 0.25 * seed, None)
        for ((part, depth), nats), seed in product(losses.items(), (1, 2, 0))
    ] + [
        identity.row("regression", arch, 20, seed, None, error)
        for (arch, error), seed in product(errors.items(), (0, 1, 2))
    ]
    finding = identity.conclude(pd.DataFrame(rows))
    assert [(one.what, list(one.values)) for one in finding.headlines] == [
        ("loss of plain-20, trained less constructed", [0.25] * 3),
        ("constructed and shallow apart", [0] * 3),
        ("y = x, 20 layers, error: plain", [0.5] * 3),
        ("residual", [0.001] * 3),
        ("residual, branches that start at 0", [0] * 3),
    ]
    assert finding.numbers["nats, scratch"] == 1
    assert finding.verdict is Verdict.supported


@pytest.mark.process
def test_every_part_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "REGRESSION_STEPS", 2)
    monkeypatch.setattr(identity, "WARM_STEPS", 2)
    base = Settings(width=4, steps=4, batch_size=8)
    cases = [Case("plain", replace(base, depth=depth)) for depth in (8, 14)]
    rows = identity.measure(cases, lambda done, of, what: None)
    parts = [row["part"] for row in rows]
    assert parts == ["shallow", "constructed", "warm", "scratch", *["regression"] * 3]
    finding = identity.conclude(pd.DataFrame(rows))
    assert finding.numbers["nats, constructed and shallow apart at most"] < 1e-6
    assert finding.verdict is Verdict.inconclusive
    with pytest.raises(UsageError, match="depth=8,20"):
        identity.measure(cases[:1], lambda done, of, what: None)
    with pytest.raises(UsageError, match="arch=plain"):
        identity.measure(
            [Case("residual", Settings(arch=Arch(merge=Merge.residual)))], lambda *_: None
        )
