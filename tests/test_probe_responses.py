"""The responses probe: 1 at the start, scales by another way, and order of depths."""

from __future__ import annotations

import math
from itertools import product

import pandas as pd
import pytest
import torch
from torch import nn

from resexp import models
from resexp.analysis.statistics import paired_t
from resexp.data import Images
from resexp.probes import Account, Verdict, responses
from resexp.probes.networks import some_images
from resexp.probes.responses import by_seed, sine
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
    changing = [block in (4, 7) for block in range(1, 10)]
    assert [row["change"] is None for row in rows[1::2]] == changing
    plain = merge is Merge.plain  # adds to nothing
    assert [row["branch_over_input"] is None for row in rows[1::2]] == [
        plain or changes for changes in changing
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


def test_change_and_branch_over_input_are_of_the_blocks_own_tensors(few_digits: Images) -> None:
    settings = Settings(depth=8, arch=RESIDUAL)
    network = models.build(settings, 1, 10, (8, 8))
    images, _ = some_images(settings, few_digits, 40)
    rows = responses.responses(network, images)
    with torch.no_grad():
        x = network.train().get_submodule("stem")(images)
        f = network.get_submodule("blocks.0.branch")(x.clone())
        y = torch.relu(x + f)
    assert rows[1]["branch_over_input"] == pytest.approx((f.norm() / x.norm()).item(), rel=1e-4)
    cosine = torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
    assert rows[1]["change"] == pytest.approx(math.sqrt(1 - cosine**2), rel=1e-4)
    assert sine(x, 3 * x) == pytest.approx(0, abs=1e-6)
    assert sine(torch.tensor([1.0, 0]), torch.tensor([0.0, -2])) == 1


@pytest.mark.parametrize("merge", [Merge.plain, Merge.residual])
def test_change_is_free_of_the_scales_that_std_is(merge: Merge, few_digits: Images) -> None:
    """In a plain network the next normalisation takes the scale out: std ten times, change none.

    So it does in a residual one if the stream is scaled with its branches.
    """
    settings = Settings(depth=14, arch=Arch(merge=merge))
    network = models.build(settings, 1, 10, (8, 8))
    images, _ = some_images(settings, few_digits, 40)
    before = pd.DataFrame(responses.responses(network, images))
    for name, parameter in network.named_parameters():
        if name.startswith("stem.norm") or ".norm2." in name:
            parameter.data.mul_(10)
    after = pd.DataFrame(responses.responses(network, images))
    assert (after["std"] / before["std"]).tolist() == pytest.approx([1, 10] * 6, rel=1e-3)
    assert after["change"].tolist() == pytest.approx(before["change"], rel=1e-3, nan_ok=True)


def measured() -> pd.DataFrame:
    """Of five seeds: plain-56 does not fit; changes of residual blocks fall with depth, training.

    Blocks have changes 0.1 apart; the first convolutions of a block have none.
    """
    change = {
        ("plain", 20, "end"): 0.9,
        ("plain", 56, "end"): 0.1,
        ("residual", 20, "end"): 0.5,
        ("residual", 56, "end"): 0.3,
    } | {(arch, depth, "start"): 0.6 for arch, depth in product(("plain", "residual"), (20, 56))}
    return pd.DataFrame(
        {"arch": arch, "depth": depth, "seed": seed, "when": when, "layer": layer}
        | {"clean_error_percent": 60.0 if (arch, depth) == ("plain", 56) else 0.1 * seed}
        | {"of_block": 2 - layer % 2, "scale": 1.0, "std": 2.0 if arch == "plain" else layer / 3.5}
        | {"change": None if layer % 2 else one + 0.05 * layer - 0.2 + 0.01 * seed}
        | {"branch_over_input": None if arch == "plain" or layer % 2 else 0.1 * layer}
        for ((arch, depth, when), one), seed, layer in product(
            change.items(), range(5), range(1, 7)
        )
    )


def test_medians_are_over_blocks_and_means_over_second_convolutions() -> None:
    rows = measured()
    found = by_seed(rows, "change", "residual", 56, "end")
    assert list(found) == pytest.approx([0.3 + 0.01 * seed for seed in range(5)])
    assert list(by_seed(rows, "std", "residual", 56, "end")) == pytest.approx([4 / 3.5] * 5)
    lost = rows.assign(std=rows["std"].where(rows["layer"] < 6))
    assert by_seed(lost, "std", "residual", 56, "end").isna().all()


def test_a_plain_network_that_does_not_fit_is_compared_with_nothing() -> None:
    finding = responses.conclude(measured())
    assert finding.verdict is Verdict.supported
    assert "residual-20 0.52 (before training 0.62), plain-20 0.92" in finding.sentence
    assert finding.account is not None
    assert finding.account[0] is Account.right
    same = measured().assign(std=1.0)
    assert (account := responses.conclude(same).account) is not None
    assert account[0] is Account.overgeneralised
    nowhere = responses.conclude(same.assign(clean_error_percent=11.0))
    assert nowhere.verdict is Verdict.inconclusive


def test_the_verdict_is_of_three_bounds() -> None:
    less, more, unsure = (
        paired_t([one - 0.1, one, one, one, one + 0.1]) for one in (-1.0, 1.0, 0.0)
    )
    assert responses.judge(True, [less, less, less]) is Verdict.supported
    assert responses.judge(True, [less, less, unsure]) is Verdict.inconclusive
    assert responses.judge(True, [less, more, unsure]) is Verdict.not_supported
    assert responses.judge(False, [less, less, less]) is Verdict.inconclusive
    assert responses.judge(True, [less, less, paired_t([-1.0] * 4)]) is Verdict.inconclusive
