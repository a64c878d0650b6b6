"""The highway probe: the identity at an addition, and the share of the whole depth."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.models.blocks import Block
from resexp.probes import Case, Verdict, highway, paths
from resexp.probes.highway import ARMS, blocks, keeps_shape, passed, path_shares
from resexp.probes.networks import some_images
from resexp.settings import Arch, Settings


def built(arch: Arch, depth: int) -> nn.Module:
    return models.build(Settings(depth=depth, arch=arch), 1, 10, (8, 8)).double().train()


def batch(data: Images) -> tuple[Tensor, Tensor]:
    images, labels = some_images(Settings(), data, 16)
    return images.double(), labels


@pytest.mark.process
@pytest.mark.parametrize("arm", ["residual", "preact"])
def test_the_identity_is_exact(arm: str, few_digits: Images) -> None:
    network = built(ARMS[arm], 20)
    rows = blocks(network, *batch(few_digits))
    assert list(rows) == [1, 2, 3, 5, 6, 8, 9][arm == "preact" :]
    assert max(float(row["identity_error"] or 0) for row in rows.values()) < 1e-12
    assert not any(module._forward_hooks for module in network.modules())


def test_the_branch_brings_the_rest_by_finite_differences(few_digits: Images) -> None:
    """He et al. 2016, equation 5: <u, dL/dx - dL/dy> is the slope of <dL/dy, F> along u."""
    images, labels = batch(few_digits)
    logits, passages = passed(built(ARMS["preact"], 20), images)
    for one in filter(keeps_shape, passages):
        loss = cross_entropy(logits, labels)
        at_x, at_y = torch.autograd.grad(loss, [one.x, one.y], retain_graph=True)
        direction = torch.randn(one.x.shape, generator=torch.Generator().manual_seed(1))
        step = 1e-6 * direction.double()
        with torch.no_grad():
            ahead, behind = (one.block.branch(one.x + sign * step) for sign in (1, -1))
        measured = (at_y * (ahead - behind)).sum() / 2e-6
        expected = (direction * (at_x - at_y)).sum()
        assert measured.item() == pytest.approx(expected.item(), rel=1e-4)


def test_dead_branches_leave_the_shortcut_everything(few_digits: Images) -> None:
    network = built(ARMS["preact"], 20)
    for name, parameter in network.named_parameters():
        if name.endswith("branch.conv2.weight"):
            parameter.data.zero_()
    for row in blocks(network, *batch(few_digits)).values():
        assert (row["shortcut_share"], row["gain"]) == pytest.approx((1, 1))
        assert (row["branch_over_input"], row["cosine"]) == pytest.approx((0, 1))
    assert path_shares(network, *batch(few_digits)) == pytest.approx([1] * 9)


class Quarter(nn.Module):
    """A branch that adds a quarter of what the shortcut carries."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) / 4


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_judged_is_of_the_whole_depth_not_of_a_block(arm: str, few_digits: Images) -> None:
    """Four fifths by the shortcut in each of 27 blocks are 0.8^27 by shortcuts alone, 0.24 %."""
    network = built(ARMS[arm], 56)
    for block in network.modules():
        if isinstance(block, Block):
            block.branch = Quarter(block.merge.get_submodule("shortcut"))
    per_block = [row["shortcut_share"] for row in blocks(network, *batch(few_digits)).values()]
    assert per_block == pytest.approx([0.8] * len(per_block))
    shares = path_shares(network, *batch(few_digits))
    assert shares == pytest.approx([0.8**left for left in range(27, 0, -1)])
    seeds = pd.Series([shares[0]] * 5)
    assert highway.judge(1e-16, 0.0, [seeds, seeds]) is Verdict.not_supported


def test_it_is_the_share_of_the_shortest_path_of_the_probe_paths(few_digits: Images) -> None:
    network, images = built(ARMS["residual"], 20), batch(few_digits)
    assert path_shares(network, *images)[0] == pytest.approx(
        paths.lengths(network, *images)[0]["share"], rel=1e-9
    )


def test_the_verdict_needs_the_identity_fitted_networks_both_arms_and_five_seeds() -> None:
    most, few = pd.Series([0.7, 0.8, 0.9, 0.7, 0.8]), pd.Series([0.1, 0.2, 0.1, 0.3, 0.2])
    unsure = pd.Series([0.4, 0.6, 0.5, 0.45, 0.7])
    assert highway.judge(1e-15, 0.1, [most, most]) is Verdict.supported
    assert highway.judge(1e-15, 0.1, [few, few]) is Verdict.not_supported
    for error, worst, shares in (
        (1e-15, 0.1, [most, few]),
        (1e-15, 0.1, [most, unsure]),
        (1e-3, 0.1, [few, few]),
        (1e-15, 12.0, [few, few]),
        (1e-15, 0.1, [few, few[:4]]),
        (1e-15, 0.1, [few, few.replace(0.3, float("nan"))]),
    ):
        assert highway.judge(error, worst, shares) is Verdict.inconclusive


@pytest.mark.process
def test_of_every_depth_the_start_is_measured_and_the_deepest_trained() -> None:
    cases = [
        Case("plain", Settings(depth=depth, width=4, steps=3, batch_size=8)) for depth in (8, 14)
    ]
    rows = pd.DataFrame(highway.measure(cases, iter))
    seen = rows.groupby(["arm", "depth", "when"])["block"].count().to_dict()
    assert seen == {
        (arm, depth, when): (depth - 2) // 2
        for arm, depth, when in product(ARMS, (8, 14), ("start", "end"))
        if (depth, when) != (8, "end")
    }
    assert rows["path_share"].notna().all()
    assert rows["clean_error_percent"].notna().equals(rows["when"] == "end")


def test_a_network_may_have_no_identity_shortcut(few_digits: Images) -> None:
    assert blocks(built(ARMS["preact"], 8), *batch(few_digits)) == {}
