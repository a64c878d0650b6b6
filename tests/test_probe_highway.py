"""The highway probe: the identity at an addition, by finite differences and by dead branches."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import Case, Verdict, highway
from resexp.probes.highway import ARMS, blocks, keeps_shape, passed
from resexp.probes.networks import some_images
from resexp.settings import Settings


def batch(data: Images) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = some_images(Settings(), data, 16)
    return images.double(), labels


@pytest.mark.process
@pytest.mark.parametrize("arm", ["residual", "preact"])
def test_the_identity_is_exact(arm: str, few_digits: Images) -> None:
    network = models.build(Settings(depth=20, arch=ARMS[arm]), 1, 10, (8, 8)).double()
    rows = blocks(network, *batch(few_digits))
    assert len(rows) == {"residual": 7, "preact": 6}[arm]
    assert max(float(row["identity_error"] or 0) for row in rows) < 1e-12
    assert not any(module._forward_hooks for module in network.modules())


def test_the_branch_brings_the_rest_by_finite_differences(few_digits: Images) -> None:
    """He et al. 2016, equation 5: <u, dL/dx - dL/dy> is the slope of <dL/dy, F> along u."""
    network = models.build(Settings(depth=20, arch=ARMS["preact"]), 1, 10, (8, 8)).double()
    images, labels = batch(few_digits)
    logits, passages = passed(network, images)
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
    network = models.build(Settings(depth=20, arch=ARMS["preact"]), 1, 10, (8, 8)).double()
    for name, parameter in network.named_parameters():
        if name.endswith("branch.conv2.weight"):
            parameter.data.zero_()
    rows = blocks(network, *batch(few_digits))
    for row in rows:
        assert (row["shortcut_share"], row["gain"], row["direct_share"]) == pytest.approx((1, 1, 1))
        assert (row["branch_over_input"], row["cosine"]) == pytest.approx((0, 1))


def test_a_plain_block_has_no_shortcut(few_digits: Images) -> None:
    network = models.build(Settings(depth=20), 1, 10, (8, 8)).double()
    for row in blocks(network, *batch(few_digits)):
        assert row["shortcut_share"] == 0
        assert row["direct_share"] is None
        assert float(row["identity_error"] or 0) < 1e-12


def test_the_verdict_needs_the_identity_and_every_network() -> None:
    assert highway.judge(1e-15, [0.6, 0.7]) is Verdict.supported
    assert highway.judge(1e-15, [0.6, 0.4]) is Verdict.inconclusive
    assert highway.judge(1e-15, [0.3, 0.4]) is Verdict.not_supported
    assert highway.judge(1e-3, [0.6, 0.7]) is Verdict.inconclusive


def test_every_arm_is_measured() -> None:
    rows = highway.measure([Case("plain", Settings(depth=14))], lambda done, of, what: None)
    assert {row["arm"] for row in rows} == set(ARMS)
    assert {row["when"] for row in rows} == {"start"}
    finding = highway.conclude(pd.DataFrame(rows))
    assert finding.numbers["median shortcut_share, plain 14, start"] == 0
    assert "at the start" in finding.sentence


def test_headlines_are_of_trained_networks_or_of_the_start_without_them() -> None:
    """Medians over blocks: 0.6 and 0.7 of seeds 0 and 1 trained, 0.5 at the start in both."""
    rows = pd.DataFrame(
        {"arm": arm, "depth": depth, "seed": seed, "when": when, "block": block}
        | dict.fromkeys(highway.NUMBERS, None)
        | {"shortcut_share": share + (0.1 * seed if when == "end" else -0.1)}
        | {"identity_error": 1e-16 * (1 + seed)}
        for arm, depth, seed, when, (block, share) in product(
            ("residual", "preact"), (8, 56), (0, 1), ("start", "end"), enumerate((0.2, 0.9, 0.6))
        )
        if (arm, when) != ("preact", "end")
    )
    finding = highway.conclude(rows)
    assert {one.what: list(one.values) for one in finding.headlines} == {
        "by shortcuts, residual-56 trained": pytest.approx([60, 70]),
        "by shortcuts, residual-8 trained": pytest.approx([60, 70]),
        "by shortcuts, preact-56 at the start": pytest.approx([50, 50]),
        "error of the equation": [1e-16, 2e-16],
    }
    assert finding.numbers["median shortcut_share, residual 56, end"] == pytest.approx(0.65)
    assert finding.verdict is Verdict.supported
    start = highway.conclude(rows[rows["when"] == "start"])
    assert start.headlines[0].what == "by shortcuts, residual-56 at the start"
    assert list(start.headlines[0].values) == pytest.approx([50, 50])
    lost = rows.assign(shortcut_share=rows["shortcut_share"].where(rows["depth"] == 8))
    assert highway.conclude(lost).verdict is Verdict.inconclusive


def test_a_network_without_such_blocks_has_no_rows(few_digits: Images) -> None:
    shallow = models.build(Settings(depth=8, arch=ARMS["preact"]), 1, 10, (8, 8)).double()
    assert blocks(shallow, *batch(few_digits)) == []
    case = Case("preact", Settings(depth=8))
    found = highway.measure([case], lambda done, of, what: None)
    assert {row["arm"] for row in found} == {"plain", "residual"}  # they have one
