"""The lesion probe: a deleted block is the identity, and what trained networks lose."""

from __future__ import annotations

import math
from itertools import product

import pandas as pd
import pytest
import torch

from resexp import models
from resexp.data import Images
from resexp.probes import Account, Verdict, lesion
from resexp.probes.networks import some_images
from resexp.settings import Arch, Merge, Settings

RESIDUAL = Arch(merge=Merge.residual)


def small(arch: Arch, depth: int, data: Images) -> lesion.Patient:
    settings = Settings(depth=depth, width=4, arch=arch)
    network = models.build(settings, 1, 10, (8, 8)).eval()
    images, labels = some_images(settings, data, 24)
    return lesion.examined(network, images, labels, images)


def test_blocks_that_change_shapes_stay(few_digits: Images) -> None:
    assert small(RESIDUAL, 20, few_digits).movable == [0, 1, 2, 4, 5, 7, 8]
    assert small(Arch(), 8, few_digits).movable == [0]


def test_a_deleted_residual_block_is_one_whose_branch_gives_nothing(few_digits: Images) -> None:
    """Oracle: with the last normalisation's scale and shift at 0 a block outputs its input."""
    one = small(RESIDUAL, 14, few_digits)
    damaged = lesion.arranged(one, lesion.without(one, [1]))
    assert len(list(damaged.get_submodule("blocks").children())) == 5
    assert len(list(one.network.get_submodule("blocks").children())) == 6
    for parameter in one.network.get_submodule("blocks.1.branch.norm2").parameters():
        parameter.data.zero_()
    with torch.no_grad():
        assert torch.equal(one.network(one.images), damaged(one.images))


def test_recalibration_has_the_statistics_of_the_damaged_network(few_digits: Images) -> None:
    """Oracle: the mean and the unbiased variance of what enters a normalisation."""
    one = small(RESIDUAL, 14, few_digits)
    before = {name: value.clone() for name, value in one.network.state_dict().items()}
    assert lesion.error(one, lesion.without(one, [1]), recalibrate=True) <= 100
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not one.network.training
    damaged = lesion.arranged(one, lesion.without(one, [1]))
    entered: list[torch.Tensor] = []
    norm = damaged.get_submodule("blocks.2.branch.norm1")
    norm.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    lesion.recalibrated(damaged, one.training)
    torch.testing.assert_close(norm.running_mean, entered[0].mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, entered[0].var((0, 2, 3)))


def test_orders_swap_within_a_stage_and_tau_counts_them(few_digits: Images) -> None:
    one = small(RESIDUAL, 20, few_digits)
    for number in range(20):
        order = lesion.swapped(one, 3, number)
        assert sorted(order) == list(range(9))
        assert all(one.stages[at] == one.stages[old] for old, at in enumerate(order))
        assert order[3] == 3
        assert order[6] == 6
    assert lesion.tau([0, 1, 2, 3]) == 1
    assert lesion.tau([3, 2, 1, 0]) == -1
    assert lesion.tau([1, 0, 2, 3]) == pytest.approx(2 / 3)


@pytest.mark.process
def test_every_kind_has_its_rows(few_digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesion, "DRAWS", 2)
    monkeypatch.setattr(lesion, "ORDERS", 1)
    one = small(RESIDUAL, 20, few_digits)
    assert len(list(lesion.singles(one))) == 1 + 7
    assert {row["k"] for row in lesion.sets(one)} == {1, 2, 4, 6}
    assert len(list(lesion.sets(one))) == 4 * lesion.DRAWS
    assert len(list(lesion.orders(one))) == len(lesion.SWAPS) * lesion.ORDERS


def damaged() -> pd.DataFrame:
    """Undamaged 10 and 20 percent; single deletions cost 1, 9 and 2, some networks' 60 or 40 more.

    Blocks 2 and 4 change shapes. plain-56 does not fit and loses little.
    """
    rows = []
    for arch, (depth, blocks), seed in product(
        ("plain", "residual"), ((8, 3), (20, 9), (56, 27)), range(5)
    ):
        fits = (arch, depth) != ("plain", 56)
        place = {"arch": arch, "depth": depth, "seed": seed, "blocks": blocks, "k": 1}
        place |= {"clean_error_percent": 0.5 if fits else 60.0}
        more = (60 if fits else 5) if arch == "plain" else 40 if depth == 8 else 0
        errors = [("whole", None, 0), *[("delete", at, more + cost) for at, cost in COSTS.items()]]
        for kind, block, points in errors:
            error = 10.0 * (1 + seed % 2) + points
            row = {"kind": kind, "block": block, "error_percent": error, "tau": None}
            rows.append(place | row | {"error_recalibrated_percent": error + 5})
        rows += [place | {"kind": "delete k", "k": 2, "error_percent": 90.0}] * 2
    return pd.DataFrame(rows)


COSTS = {1: 1, 3: 2, 5: 9}


def test_excess_is_over_the_undamaged_network_of_the_same_seed_where_plain_ones_fit() -> None:
    rows = damaged()
    finding = lesion.conclude(rows)
    assert finding.verdict is Verdict.supported
    assert "depth 20" in finding.sentence
    assert finding.numbers["points, median of single deletions, plain-8, recalibrated"] == 62
    assert finding.numbers["percent, median error, delete k, k=2"] == 90
    lost = (rows["seed"] == 1) & (rows["block"] == 5) & (rows["arch"] == "plain")
    rows.loc[lost, "error_percent"] = None  # not an error of 0
    assert lesion.excess(rows, "plain", 20, pd.Series.min).tolist()[:2] == [
        61,
        pytest.approx(math.nan, nan_ok=True),
    ]


def test_networks_that_fit_nowhere_or_only_with_few_blocks_decide_nothing() -> None:
    rows = damaged()
    nowhere = lesion.conclude(rows.assign(clean_error_percent=10.0))
    assert nowhere.verdict is Verdict.inconclusive
    assert "none" in nowhere.sentence
    shallow = rows["clean_error_percent"].where(rows["depth"] != 20, 40.0)
    assert lesion.conclude(rows.assign(clean_error_percent=shallow)).verdict is Verdict.inconclusive


def test_the_textbook_overgeneralises_where_few_blocks_are_fragile() -> None:
    rows = damaged()
    assert (account := lesion.conclude(rows).account) is not None
    assert account[0] is Account.overgeneralised
    costs = "by blocks: +42.0 with 3, +2.0 with 9, +2.0 with 27. Plain ones: +62.0 with 3, +62.0"
    assert costs in account[1]
    assert (deep := lesion.conclude(rows[rows["depth"] == 56]).account) is not None
    assert deep[0] is Account.right
    assert lesion.fixed(rows[rows["depth"] == 8]) == "blocks 2 of depth 8"


def test_the_verdict_needs_nine_blocks_and_five_seeds() -> None:
    good = [85.0] * 5, [1.0] * 5
    assert lesion.judge(*good, 9) is Verdict.supported
    assert lesion.judge(*good, 3) is Verdict.inconclusive
    assert lesion.judge([85.0] * 4, [1.0] * 4, 9) is Verdict.inconclusive
    assert lesion.judge([85.0] * 4 + [40.0], [1.0] * 5, 9) is Verdict.inconclusive
    assert lesion.judge([85.0] * 5, [60.0] * 5, 9) is Verdict.not_supported
    assert lesion.judge([15.0] * 5, [1.0] * 5, 9) is Verdict.not_supported
