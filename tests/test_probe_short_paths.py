"""The probe short_paths: which branches pass the gradient, and two endpoints with margins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import pandas as pd
import pytest
import torch

from resexp.analysis.statistics import paired_t
from resexp.probes import Account, Case, Verdict, short_paths
from resexp.probes.networks import at_start, ended, load
from resexp.probes.paths import pick
from resexp.probes.short_paths import on_short_paths
from resexp.settings import Arch, Merge, Settings

RESIDUAL = Arch(merge=Merge.residual)


def test_a_step_leaves_branches_that_pass_no_gradient_where_they_are() -> None:
    """Without decay or momentum each step moves the chosen branches, and all of the rest."""
    settings = Settings(
        depth=20, width=4, batch_size=8, momentum=0, weight_decay=0, arch=RESIDUAL, seed=3
    )
    start = dict(at_start(settings, load(settings)).named_parameters())
    chosen: set[int] = set()
    for steps in (1, 2):
        settings.steps = steps
        network = on_short_paths(settings, 4)
        moved = {
            name for name, one in network.named_parameters() if not torch.equal(one, start[name])
        }
        chosen |= set(pick(3, b"few", steps - 1, 9, 4))
        assert {int(name.split(".")[1]) for name in moved if ".branch." in name} == chosen
        assert {"classifier.weight", "stem.conv1.weight"} <= moved
        assert not any(module._forward_hooks for module in network.modules())
    assert 4 < len(chosen) < 9


def test_the_branches_of_a_step_are_drawn_from_the_seed_and_the_step() -> None:
    drawn = [pick(seed, b"few", step, 54, 23) for seed in (0, 1) for step in range(100)]
    assert all(len(set(one)) == 23 for one in drawn)
    assert len({tuple(one) for one in drawn}) == 200
    assert pick(1, b"few", 7, 54, 23) == drawn[107]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=54)
    assert 60 <= counts.min() < counts.max() <= 110  # of 200, 85 expected


def test_the_gradient_through_every_branch_is_usual_training() -> None:
    settings = Settings(depth=8, width=4, steps=3, batch_size=8, arch=RESIDUAL)
    usual = ended(Case("residual", settings)).state_dict()
    for name, value in on_short_paths(settings, 3).state_dict().items():
        assert torch.equal(value, usual[name]), name


@pytest.mark.parametrize(
    ("points", "decades", "verdict"),
    [
        ([0.1, 0.0, -0.1], [0.0, 0.1, 0.1], Verdict.supported),
        ([0.1, 0.0, -0.1], [0.8, 1.0, 1.2], Verdict.not_supported),
        ([4.0, 5.0, 6.0], [0.0, 0.1, 0.1], Verdict.not_supported),
        ([0.1, 0.0, -0.1], [0.2, 0.2, 0.2], Verdict.supported),
        ([0.1, 0.0, 0.1], [0.0, 0.3, 0.6], Verdict.inconclusive),  # too wide to say
        ([0.1, 0.0], [0.0, 0.1], Verdict.inconclusive),  # of two seeds
        ([0.1, 0.0, 0.0], [0.0, math.nan, 0.0], Verdict.inconclusive),
    ],
)
def test_both_endpoints_have_their_margin(
    points: Sequence[float], decades: Sequence[float], verdict: Verdict
) -> None:
    apart = {"test_error_percent": paired_t(points), "train_loss": paired_t(decades)}
    assert short_paths.judge(apart) is verdict


@pytest.mark.parametrize(
    ("fewer", "price", "account"),
    [(0.1, -1, Account.overgeneralised), (0.002, math.log10(5), Account.contradicted)],
)
def test_arms_are_paired_by_seed(fewer: float, price: float, account: Account) -> None:
    loss, passing = {"usual": 0.001, "short": 0.01, "fewer": fewer}, {"short": 4}
    rows = [
        {"arch": "residual", "depth": 20, "seed": seed, "arm": arm, "blocks": 9}
        | {"passing": passing.get(arm, 9), "steps": 94 if arm == "fewer" else 220}
        | {"train_loss": loss[arm] * 3**seed, "train_error_percent": 0.0}
        | {"test_error_percent": seed + 5.0 * (arm == "short")}
        for arm, seed in product(loss, (2, 0, 1))
    ]
    finding = short_paths.conclude(pd.DataFrame(rows))
    assert finding.verdict is Verdict.not_supported
    decades, points, beyond = (list(one.values) for one in finding.headlines)
    assert (decades, points, beyond) == (
        pytest.approx([1] * 3),
        [5] * 3,
        pytest.approx([price] * 3),
    )
    assert finding.account is not None
    assert finding.account[0] is account
    assert finding.numbers["fewer less usual, train_loss (log10)"] == pytest.approx(1 - price)
    assert "4 of 9" in finding.sentence
    assert "94 steps" in finding.sentence


@pytest.mark.process
def test_three_arms_are_trained_and_one_that_diverges_decides_nothing() -> None:
    settings = Settings(depth=8, width=4, steps=5, batch_size=8, arch=RESIDUAL)
    cases = [Case("residual", settings)]
    rows = list(short_paths.measure(cases, iter))
    assert [(row["arm"], row["passing"], row["steps"]) for row in rows] == [
        ("usual", 3, 5),
        ("short", 1, 5),
        ("fewer", 3, 2),
    ]
    assert len({row["train_loss"] for row in rows}) == 3
    settings.lr, settings.steps = 1e6, 40
    rows = list(short_paths.measure(cases, iter))
    assert all(math.isnan(float(row["test_error_percent"] or 0)) for row in rows[:2]), rows
    assert short_paths.conclude(pd.DataFrame(rows)).verdict is Verdict.inconclusive
