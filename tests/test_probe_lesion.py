"""The lesion probe: a deleted block is the identity, and what trained networks lose."""

from __future__ import annotations

import pytest
import torch

from resexp import models
from resexp.data import Images
from resexp.probes import Verdict, lesion, some_images
from resexp.probes.lesion import (
    arranged,
    examined,
    excesses,
    orders,
    recalibrated,
    sets,
    singles,
    swapped,
    tau,
    without,
)
from resexp.settings import Arch, Merge, Settings

RESIDUAL = Arch(merge=Merge.residual)


def small(arch: Arch, depth: int, data: Images) -> lesion.Patient:
    settings = Settings(depth=depth, width=4, arch=arch)
    network = models.build(settings, 1, 10, (8, 8)).eval()
    images, labels = some_images(settings, data, 24)
    return examined(network, images, labels, images)


def test_blocks_that_change_shapes_stay(few_digits: Images) -> None:
    assert small(RESIDUAL, 20, few_digits).movable == [0, 1, 2, 4, 5, 7, 8]
    assert small(Arch(), 8, few_digits).movable == [0]


def test_a_deleted_residual_block_is_one_whose_branch_gives_nothing(few_digits: Images) -> None:
    """Oracle: with the last normalisation's scale and shift at 0 a block outputs its input."""
    one = small(RESIDUAL, 14, few_digits)
    with torch.no_grad(), arranged(one, without(one, [1])) as damaged:
        expected = damaged(one.images)
        whole = one.network.get_submodule("blocks")
    assert len(list(whole.children())) == 5
    assert len(one.network.get_submodule("blocks")) == 6  # type: ignore[arg-type]
    norm = one.network.get_submodule("blocks.1.branch.norm2")
    for parameter in norm.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        assert torch.equal(one.network(one.images), expected)


def test_recalibration_leaves_the_network_as_it_was(few_digits: Images) -> None:
    one = small(RESIDUAL, 14, few_digits)
    before = {name: value.clone() for name, value in one.network.state_dict().items()}
    recalibrated(one, without(one, [1]))
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not one.network.training


def test_orders_swap_within_a_stage_and_tau_counts_them(few_digits: Images) -> None:
    one = small(RESIDUAL, 20, few_digits)
    for number in range(20):
        order = swapped(one, 3, number)
        assert sorted(order) == list(range(9))
        assert all(one.stages[at] == one.stages[old] for old, at in enumerate(order))
        assert order[3] == 3
        assert order[6] == 6
    assert tau([0, 1, 2, 3]) == 1
    assert tau([3, 2, 1, 0]) == -1
    assert tau([1, 0, 2, 3]) == pytest.approx(2 / 3)


def test_every_kind_has_its_rows(few_digits: Images) -> None:
    one = small(RESIDUAL, 20, few_digits)
    assert len(list(singles(one))) == 1 + 7
    assert {row["k"] for row in sets(one)} == {1, 2, 4, 6}
    assert len(list(sets(one))) == 4 * lesion.DRAWS
    assert len(list(orders(one))) == len(lesion.SWAPS) * lesion.ORDERS


EXCESS = [
    *[(0, "whole", 10.0), (0, "delete", 70.0), (1, "whole", 20.0)],
    *[(1, "delete", 50.0), (1, "delete", 20.0), (1, "delete k", 99.0)],
]


def test_excess_is_over_the_undamaged_network_of_the_same_seed() -> None:
    rows = [
        {"arch": "plain", "depth": 8, "seed": seed, "kind": kind, "error_percent": error}
        for seed, kind, error in EXCESS
    ]
    assert excesses(rows, "plain", 8) == {0: [60.0], 1: [30.0, 0.0]}  # type: ignore[arg-type]


def test_the_verdict_needs_nine_blocks_three_seeds_and_a_falling_residual() -> None:
    good = [85.0] * 3, [1.0] * 3, [70.0, 3.0, 1.0]
    assert lesion.judge(*good, 9) is Verdict.supported
    assert lesion.judge(*good, 3) is Verdict.inconclusive
    assert lesion.judge([85.0] * 2, [1.0] * 2, [1.0], 9) is Verdict.inconclusive
    assert lesion.judge([85.0] * 3, [1.0] * 3, [1.0, 3.0], 9) is Verdict.inconclusive
    assert lesion.judge([85.0, 85, 40], [1.0] * 3, [1.0], 9) is Verdict.inconclusive
    assert lesion.judge([85.0] * 3, [60.0] * 3, [60.0], 9) is Verdict.not_supported
