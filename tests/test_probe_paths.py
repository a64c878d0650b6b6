"""The paths probe: paths add up to autograd's gradient, one by one and by length."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import (
    Case,
    Verdict,
    at_start,
    ended,
    load,
    paths,
    some_images,
)
from resexp.probes.paths import (
    band,
    by_length,
    few,
    lengths,
    on_short_paths,
    path,
    share_of_paths,
    slope,
    unravelled,
    weighed,
)
from resexp.settings import Arch, Merge, Order, Settings, UsageError

RESIDUAL = Arch(merge=Merge.residual)
PREACT = Arch(merge=Merge.residual, order=Order.full_preactivation)


@pytest.mark.parametrize("arch", [RESIDUAL, PREACT])
def test_all_paths_add_up_to_the_gradient_by_autograd(arch: Arch, few_digits: Images) -> None:
    settings = Settings(depth=20, width=4, arch=arch)
    network = models.build(settings, 1, 10, (8, 8)).double().train()
    images, labels = some_images(settings, few_digits, 8)
    images = images.double()
    steps, at_end = unravelled(network, images, labels)
    totals = by_length(steps, at_end)

    x = network.get_submodule("stem")(images).detach().requires_grad_()
    y = network.get_submodule("end")(network.get_submodule("blocks")(x))
    loss = cross_entropy(network.get_submodule("classifier")(y.mean(dim=(2, 3))), labels)
    (whole,) = torch.autograd.grad(loss, x)
    assert len(totals) == 10
    torch.testing.assert_close(torch.stack(totals).sum(0), whole, rtol=1e-9, atol=1e-15)

    for k in (0, 1, 2, 9):
        every = [path(steps, at_end, frozenset(c)) for c in itertools.combinations(range(9), k)]
        torch.testing.assert_close(torch.stack(every).sum(0), totals[k], rtol=1e-9, atol=1e-15)


def test_dead_branches_leave_only_the_path_of_length_0(few_digits: Images) -> None:
    settings = Settings(depth=14, width=4, arch=RESIDUAL)
    network = models.build(settings, 1, 10, (8, 8)).train()
    for name, parameter in network.named_parameters():
        if ".branch.norm2." in name:
            parameter.data.zero_()
    rows = lengths(network, *some_images(settings, few_digits, 8))
    assert rows[0]["share"] == pytest.approx(1)
    assert rows[0]["weight"] == pytest.approx(1)
    assert all(row["norm"] == 0 for row in rows[1:])


def test_the_path_algebra_of_54_blocks() -> None:
    assert share_of_paths(54, 5, 17) == pytest.approx(0.0045367, abs=1e-7)
    assert share_of_paths(54, 19, 35) == pytest.approx(0.98017, abs=1e-5)
    assert share_of_paths(54, 0, 54) == 1
    assert sum(k * share_of_paths(54, k, k) for k in range(55)) == pytest.approx(27)
    assert sum(k * share_of_paths(23, k, k) for k in range(24)) == pytest.approx(11.5)


def test_equal_norms_weigh_as_the_binomial_and_a_decay_shifts_its_mean() -> None:
    """(1 + r)^n: norms r^k make the mean length n r / (1 + r)."""
    assert weighed([1.0] * 5) == pytest.approx([math.comb(4, k) / 16 for k in range(5)])
    weights = weighed([0.5**k for k in range(22)])
    assert sum(k * weight for k, weight in enumerate(weights)) == pytest.approx(21 * 0.5 / 1.5)
    assert slope([3 * 0.1**k for k in range(9)]) == pytest.approx(-1)
    assert math.isnan(slope([0.0, 1.0, 0.0]))
    assert band([0.02, 0.48, 0.47, 0.03]) == (1, 2)


def test_the_verdict_needs_both_signs_in_three_networks() -> None:
    assert paths.judge([(-0.2, -3)] * 3) is Verdict.supported
    assert paths.judge([(-0.2, -3)] * 2) is Verdict.inconclusive
    assert paths.judge([(-0.2, -3)] * 2 + [(0.1, -1)]) is Verdict.inconclusive
    assert paths.judge([(0.2, 3)] * 3) is Verdict.not_supported
    assert paths.judge([(math.nan, -3)] * 3) is Verdict.inconclusive


def test_networks_are_measured_at_the_start_and_trained() -> None:
    settings = Settings(depth=8, width=4, steps=3, batch_size=8, arch=RESIDUAL)
    finding = paths.measure([Case("residual", settings)], lambda done, of, what: None)
    lengths = [row for row in finding.rows if row["kind"] == "length"]
    assert {(row["when"], row["statistics"], row["k"]) for row in lengths} == set(
        itertools.product(("start", "end"), ("batch", "running"), range(4))
    )
    assert [(row["kind"], row["k"]) for row in finding.rows[-2:]] == [
        ("training", 3),
        ("training", 1),
    ]
    assert finding.verdict is Verdict.inconclusive
    with pytest.raises(UsageError, match="arch=residual"):
        paths.measure([Case("plain", Settings())], lambda done, of, what: None)


def test_a_step_leaves_branches_that_pass_no_gradient_where_they_are() -> None:
    """Without decay or momentum one step moves the chosen branches, and all of the rest."""
    settings = Settings(
        depth=20, width=4, steps=1, batch_size=8, momentum=0, weight_decay=0, arch=RESIDUAL
    )
    network = on_short_paths(settings, 4)
    start = dict(at_start(settings, load(settings)).named_parameters())
    moved = {name for name, one in network.named_parameters() if not torch.equal(one, start[name])}
    branches = {int(name.split(".")[1]) for name in moved if ".branch." in name}
    assert branches == set(few(0, 0, 9, 4))
    assert {"classifier.weight", "stem.conv1.weight"} <= moved
    assert not any(module._forward_hooks for module in network.modules())


def test_the_branches_of_a_step_are_drawn_from_the_seed_and_the_step() -> None:
    drawn = [few(seed, step, 54, 23) for seed in (0, 1) for step in range(100)]
    assert all(len(set(one)) == 23 for one in drawn)
    assert len({tuple(one) for one in drawn}) == 200
    assert few(1, 7, 54, 23) == drawn[107]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=54)
    assert 60 <= counts.min() < counts.max() <= 110  # of 200, 85 expected


def test_the_gradient_through_every_branch_is_ordinary_training() -> None:
    settings = Settings(depth=8, width=4, steps=3, batch_size=8, arch=RESIDUAL)
    ordinary = ended(Case("residual", settings)).state_dict()
    for name, value in on_short_paths(settings, 3).state_dict().items():
        assert torch.equal(value, ordinary[name]), name
