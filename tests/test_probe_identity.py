"""The identity probe: the deep plain solution exists, to the last digits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
import torch
from torch import nn

from resexp import models
from resexp.data import Images
from resexp.probes import Case, Finding, Verdict, identity
from resexp.probes.identity import ARCHS, FAR, become_identity, constructed, loss
from resexp.probes.networks import some_images
from resexp.settings import Settings


@pytest.mark.process
def test_a_plain_block_becomes_the_identity_and_nearly_so_in_training() -> None:
    network = models.build(Settings(depth=14, width=8), 1, 10, (8, 8)).eval()
    block = network.get_submodule("blocks.1")
    x = torch.randn(64, 8, 8, 8, generator=torch.Generator().manual_seed(0)).relu()
    x[:, 3] = 0  # a dead channel
    become_identity(block, x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(block.train()(x), x, rtol=1e-4, atol=1e-4)


def test_a_pre_activated_block_becomes_the_identity_exactly_whatever_it_is_given() -> None:
    network = models.build(Settings(depth=14, width=8, arch=ARCHS["preact"]), 1, 10, (8, 8))
    block = network.get_submodule("blocks.1")
    x = torch.randn(8, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    become_identity(block, x)
    assert torch.equal(block.train()(x), x)
    assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize(("arch", "deep"), list(product(ARCHS, (14, 20, 44))))
def test_a_deeper_network_has_the_shallow_ones_loss(
    arch: str, deep: int, few_digits: Images
) -> None:
    """He et al. 2015, section 3.1: the constructed solution."""
    settings = Settings(depth=8, arch=ARCHS[arch])
    shallow = models.build(settings, 1, 10, (8, 8))
    images, labels = some_images(settings, few_digits, 40)
    shallow.train()(images)  # statistics that are not those of the start
    start = models.build(replace(settings, depth=deep, seed=5), 1, 10, (8, 8))
    made = constructed(shallow, start, images)
    assert loss(made, images, labels) == pytest.approx(loss(shallow, images, labels), abs=1e-6)
    other = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    assert loss(made, other, labels) == pytest.approx(loss(shallow, other, labels), abs=1e-5)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in made.modules())
    assert convolutions == deep - 1


def finding(**changes: float) -> Finding:
    """Losses of three seeds, each 1.5 times the one before; ``changes`` are of one loss."""
    losses = {"plain_shallow": 0.02, "plain_constructed": 0.02, "plain_warm": 0.01}
    losses |= {"plain_scratch": 0.2, "preact_shallow": 0.04, "preact_constructed": 0.04}
    losses |= {"preact_warm": 0.03, "preact_scratch": 0.02} | changes
    rows = [
        {"part": part, "arch": arch, "depth": 8 if part == "shallow" else 20, "seed": seed}
        | {"loss": nats * 1.5**seed}
        for (arch, part), nats, seed in (
            (name.split("_"), nats, seed)
            for (name, nats), seed in product(losses.items(), (1, 2, 0))
        )
    ]
    return identity.conclude(pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.supported),
        ({"plain_warm": 0.03}, Verdict.inconclusive),
        ({"plain_shallow": 0.0201}, Verdict.inconclusive),  # not the same solution
        ({"preact_shallow": 0.0401}, Verdict.inconclusive),
        ({"preact_scratch": 0.2}, Verdict.inconclusive),  # nothing that deep trains well
        ({"plain_scratch": 0.02 * 10**FAR * 0.99}, Verdict.inconclusive),  # too little
        ({"plain_scratch": 0.01}, Verdict.not_supported),
        ({"plain_scratch": math.nan}, Verdict.inconclusive),
    ],
)
def test_the_verdict_needs_every_part(changes: dict[str, float], verdict: Verdict) -> None:
    assert finding(**changes).verdict is verdict


@pytest.mark.process
def test_every_part_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "WARM_STEPS", 2)
    base = Settings(width=4, steps=4, batch_size=8)
    cases = [Case("plain", replace(base, depth=depth)) for depth in (8, 14)]
    rows = list(identity.measure(cases, iter))
    assert [(row["arch"], row["part"]) for row in rows] == list(product(ARCHS, identity.PARTS))
    finding = identity.conclude(pd.DataFrame(rows))
    assert finding.numbers["nats, constructed and shallow apart at most"] < 1e-6
    assert finding.verdict is Verdict.inconclusive
