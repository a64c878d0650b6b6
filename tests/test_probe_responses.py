"""The responses probe: 1 at the start, scales by another way, and order of depths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resexp import models
from resexp.data import Images
from resexp.probes import Verdict, responses, some_images
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
    place = {"arch": "plain", "depth": 8, "decay": "all"}
    rows = [
        place | {"seed": seed, "of_block": of, "std": std}
        for seed, of, std in [(0, 1, 9.0), (0, 2, 1.0), (0, 2, 3.0), (1, 2, 5.0)]
    ]
    assert by_seed(rows, "plain", 8, "all") == [2, 5]  # type: ignore[arg-type]


def test_the_verdict_is_by_seed_and_depth() -> None:
    assert responses.judge([1.1] * 3, [1.0] * 3, [1.3, 1.0]) is Verdict.supported
    assert responses.judge([1.1] * 3, [1.0] * 3, [1.0, 1.1]) is Verdict.inconclusive
    assert responses.judge([1.1] * 2, [1.0] * 2, [1.3, 1.0]) is Verdict.inconclusive
    assert responses.judge([1.1] * 3, [1.0, 1.0, 1.2], [1.3, 1.0]) is Verdict.inconclusive
    assert responses.judge([1.1] * 3, [1.2] * 3, [1.3, 1.0]) is Verdict.not_supported
