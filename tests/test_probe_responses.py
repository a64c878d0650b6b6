"""The responses probe: 1 at the start, scales by another way, and order of depths."""

from __future__ import annotations

import math
from itertools import product

import pandas as pd
import pytest
import torch
from torch import nn

from resexp import models
from resexp.data import Images
from resexp.probes import Verdict, responses
from resexp.probes.networks import some_images
from resexp.probes.responses import by_seed
from resexp.settings import Arch, Merge, Settings

RESIDUAL = Arch(merge=Merge.residual)


@pytest.mark.parametrize("merge", [Merge.plain, Merge.residual])
def test_at_the_start_every_response_is_one(merge: Merge, few_digits: Images) -> None:
    settings = Settings(depth=20, arch=Arch(merge=merge))
    network = models.build(settings, 1, 10, (8, 8))
    rows = responses.responses(network, some_images(settings, few_digits, 40)[0])
    assert [row["layer"] for row in rows] == list(range(1, 19))
    assert [row["of_block"] for row in rows] == [1, 2] * 9
    for row in rows:
        assert row["std"] == pytest.approx(1, abs=2e-3)
        assert row["scale"] == 1
    assert [row["branch_over_input"] is None for row in rows[1::2]] == [
        block in (4, 7) for block in range(1, 10)
    ]
    assert not any(module._forward_hooks for module in network.modules())


def test_a_response_is_that_of_scales_and_shifts(few_digits: Images) -> None:
    """Pooled over channels: mean of scale^2 plus the variance of the shifts."""
    settings = Settings(depth=8, arch=RESIDUAL)
    network = models.build(settings, 1, 10, (8, 8))
    norm = network.get_submodule("blocks.0.branch.norm2")
    assert isinstance(norm, nn.BatchNorm2d)
    generator = torch.Generator().manual_seed(0)
    norm.weight.data.copy_(torch.rand(16, generator=generator))
    norm.bias.data.copy_(torch.randn(16, generator=generator))
    row = responses.responses(network, some_images(settings, few_digits, 40)[0])[1]
    variance = norm.weight.square().mean() + norm.bias.var(correction=0)
    assert row["std"] == pytest.approx(variance.sqrt().item(), rel=2e-3)
    assert row["scale"] == pytest.approx(norm.weight.square().mean().sqrt().item())


def test_branch_over_input_is_of_the_blocks_own_tensors(few_digits: Images) -> None:
    settings = Settings(depth=8, arch=RESIDUAL)
    network = models.build(settings, 1, 10, (8, 8))
    images, _ = some_images(settings, few_digits, 40)
    rows = responses.responses(network, images)
    with torch.no_grad():
        x = network.train().get_submodule("stem")(images)
        f = network.get_submodule("blocks.0.branch")(x.clone())
    assert rows[1]["branch_over_input"] == pytest.approx((f.norm() / x.norm()).item(), rel=1e-4)


def test_means_are_of_second_convolutions_by_seed() -> None:
    stds = [(0, 1, 9.0), (0, 2, 1.0), (0, 2, 3.0), (1, 2, 5.0), (2, 2, math.nan), (2, 2, 1.0)]
    rows = pd.DataFrame(stds, columns=["seed", "of_block", "std"])
    found = by_seed(rows.assign(arch="plain", depth=8, decay="all"), "plain", 8, "all")
    assert list(found) == pytest.approx([2, 5, math.nan], nan_ok=True)


def test_the_deepest_are_compared_under_the_usual_decay() -> None:
    """Second convolutions: plain 1.2, residual 1.0 deep and 1.1 shallow, 0.1 more each seed."""
    std = {("plain", 8): 1.1, ("plain", 56): 1.2, ("residual", 8): 1.1, ("residual", 56): 1.0}
    rows = [
        {"arch": arch, "depth": depth, "seed": seed, "decay": decay, "layer": layer}
        | {"of_block": 2 - layer % 2, "scale": 1.0}
        | {"std": 5.0 if decay == "weights" or layer % 2 else one + 0.1 * seed}
        | {"branch_over_input": None if layer < 4 else 1.5 if arch == "plain" else 0.5}
        for ((arch, depth), one), seed, decay, layer in product(
            std.items(), (0, 1, 2), ("all", "weights"), range(1, 5)
        )
        if decay == "all" or (arch, depth) == ("residual", 8)
    ]
    finding = responses.conclude(pd.DataFrame(rows))
    assert finding.verdict is Verdict.supported
    assert "residual-8 has 5.000 for 1.200; |F(x)|/|x| is 0.50 and 1.50." in finding.sentence
    assert {one.what: list(one.values) for one in finding.headlines} == {
        "standard deviation, residual-56 less plain-56": pytest.approx([-0.2] * 3),
        "residual-56 less residual-8": pytest.approx([-0.1] * 3),
        "|F(x)|/|x|, residual-56 less plain-56": [-1, -1, -1],
    }


def test_the_verdict_is_by_seed_and_depth() -> None:
    assert responses.judge([1.1] * 3, [1.0] * 3, [1.3, 1.0]) is Verdict.supported
    assert responses.judge([1.1] * 3, [1.0] * 3, [1.0, 1.1]) is Verdict.inconclusive
    assert responses.judge([1.1] * 2, [1.0] * 2, [1.3, 1.0]) is Verdict.inconclusive
    assert responses.judge([1.1] * 3, [1.0, 1.0, 1.2], [1.3, 1.0]) is Verdict.inconclusive
    assert responses.judge([1.1] * 3, [1.2] * 3, [1.3, 1.0]) is Verdict.not_supported
