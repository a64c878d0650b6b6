"""The paths probe: paths add up to autograd's gradient, one by one and by length."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import Account, Case, Verdict, paths
from resexp.probes.networks import some_images
from resexp.settings import Arch, Merge, Order, Settings

RESIDUAL = Arch(merge=Merge.residual)
PREACT = Arch(merge=Merge.residual, order=Order.full_preactivation)


@pytest.mark.process
@pytest.mark.parametrize("arch", [RESIDUAL, PREACT])
def test_all_paths_add_up_to_the_gradient_by_autograd(arch: Arch, few_digits: Images) -> None:
    settings = Settings(depth=20, width=4, arch=arch)
    network = models.build(settings, 1, 10, (8, 8)).double().train()
    images, labels = some_images(settings, few_digits, 8)
    images = images.double()
    steps, at_end = paths.unravelled(network, images, labels)
    totals = paths.by_length(steps, at_end)

    x = network.get_submodule("stem")(images).detach().requires_grad_()
    y = network.get_submodule("end")(network.get_submodule("blocks")(x))
    loss = cross_entropy(network.get_submodule("classifier")(y.mean(dim=(2, 3))), labels)
    (whole,) = torch.autograd.grad(loss, x)
    assert len(totals) == 10
    torch.testing.assert_close(torch.stack(totals).sum(0), whole, rtol=1e-9, atol=1e-15)

    for k in (0, 1, 2, 9):
        every = [
            paths.path(steps, at_end, frozenset(c)) for c in itertools.combinations(range(9), k)
        ]
        torch.testing.assert_close(torch.stack(every).sum(0), totals[k], rtol=1e-9, atol=1e-15)


def test_dead_branches_leave_only_the_path_of_length_0(few_digits: Images) -> None:
    settings = Settings(depth=14, width=4, arch=RESIDUAL)
    network = models.build(settings, 1, 10, (8, 8)).train()
    for name, parameter in network.named_parameters():
        if ".branch.norm2." in name:
            parameter.data.zero_()
    rows = paths.lengths(network, *some_images(settings, few_digits, 8))
    assert rows[0]["share"] == pytest.approx(1)
    assert rows[0]["weight"] == pytest.approx(1)
    assert all(row["norm"] == 0 for row in rows[1:])


def test_the_path_algebra_of_54_blocks() -> None:
    assert paths.share_of_paths(54, 5, 17) == pytest.approx(0.0045367, abs=1e-7)
    assert paths.share_of_paths(54, 19, 35) == pytest.approx(0.98017, abs=1e-5)
    assert paths.share_of_paths(54, 0, 54) == 1
    assert sum(k * paths.share_of_paths(54, k, k) for k in range(55)) == pytest.approx(27)
    assert sum(k * paths.share_of_paths(23, k, k) for k in range(24)) == pytest.approx(11.5)


def test_equal_norms_weigh_as_the_binomial_and_a_decay_shifts_its_mean() -> None:
    """(1 + r)^n: norms r^k make the mean length n r / (1 + r)."""
    assert paths.weighed([1.0] * 5) == pytest.approx([math.comb(4, k) / 16 for k in range(5)])
    weights = paths.weighed([0.5**k for k in range(22)])
    assert sum(k * weight for k, weight in enumerate(weights)) == pytest.approx(21 * 0.5 / 1.5)
    assert paths.slope(pd.Series([3 * 0.1**k for k in range(9)])) == pytest.approx(-1)
    assert math.isnan(paths.slope(pd.Series([0.0, 1.0, math.inf])))
    assert all(math.isnan(weight) for weight in paths.weighed([0.0, 0.0]))
    assert paths.band([0.02, 0.48, 0.47, 0.03]) == (1, 2)
    assert paths.band([0.25] * 4) == (0, 3)
    assert paths.band([0.05, 0.95, 0.0]) == (1, 1)


def test_the_verdict_needs_both_signs_in_three_networks() -> None:
    assert paths.judge([(-0.2, -3)] * 3) is Verdict.supported
    assert paths.judge([(-0.2, -3)] * 2) is Verdict.inconclusive
    assert paths.judge([(-0.2, -3)] * 2 + [(0.1, -1)]) is Verdict.inconclusive
    assert paths.judge([(0.2, 3)] * 3) is Verdict.not_supported
    assert paths.judge([(math.nan, -3)] * 3) is Verdict.inconclusive


@pytest.mark.process
def test_networks_are_measured_at_the_start_and_trained() -> None:
    settings = Settings(depth=8, width=4, steps=3, batch_size=8, arch=RESIDUAL)
    rows = list(paths.measure([Case("residual", settings)], iter))
    assert {(row["when"], row["statistics"], row["k"]) for row in rows} == set(
        itertools.product(("start", "end"), ("batch", "running"), range(4))
    )
    assert paths.conclude(pd.DataFrame(rows)).verdict is Verdict.inconclusive
    settings.lr, settings.steps = 1e6, 40  # diverges: measured as it was left
    rows = list(paths.measure([Case("residual", settings)], iter))
    end = [row["norm"] for row in rows if row["when"] == "end"]
    assert len(end) == 8
    assert all(isinstance(norm, float) and math.isnan(norm) for norm in end)
    assert paths.conclude(pd.DataFrame(rows)).verdict is Verdict.inconclusive


def table(**factors: float) -> pd.DataFrame:
    """Two blocks, all weight at length 0; each branch multiplies the gradient by its factor."""
    rows = [
        {"arch": "residual", "depth": 56, "seed": seed, "when": at.split("_")[0]}
        | {"statistics": at.split("_")[1], "blocks": 2, "k": k, "norm": (1 + seed) * factor**k}
        | {"weight": float(k == 0), "share": float(k == 1)}
        for (at, factor), seed, k in itertools.product(factors.items(), (0, 1, 2), range(3))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("running", "start", "end", "account"),
    [
        (1, 0.5, 0.1, Account.overgeneralised),
        (0.8, 0.5, 0.1, Account.right),
        (2, 0.5, 1, Account.contradicted),
    ],
)
def test_the_textbook_is_of_any_network_trained_or_not(
    running: float, start: float, end: float, account: Account
) -> None:
    rows = table(start_running=running, start_batch=start, end_running=end, end_batch=end)
    assert (found := paths.conclude(rows).account) is not None
    assert found[0] is account
    assert f"by {end:.2f} trained, {start:.2f} at the start, {running:.2f} at" in found[1]
