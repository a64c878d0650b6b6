"""The speed probe: its losses are training's own, its threshold and pairing are as stated."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pandas as pd
import pytest

from resexp import models
from resexp.analysis.statistics import paired_t
from resexp.data import Images
from resexp.probes import Case, Verdict, speed
from resexp.probes.networks import first_seeds, usual_depth
from resexp.probes.speed import losses, running
from resexp.settings import Arch, Merge, Settings, UsageError
from resexp.train.fit import begin, fit

TINY = Settings(depth=8, width=4, steps=12, batch_size=8)


@pytest.mark.process
def test_the_losses_are_those_of_training(few_digits: Images) -> None:
    settings = replace(TINY, eval_every=4, arch=Arch(merge=Merge.residual))
    found = list(losses(settings, few_digits))
    state = begin(models.build(settings, 1, 10, (8, 8)), settings)
    rows = [row for row in fit(state, settings, few_digits) if row is not None]
    assert len(found) >= 11  # the last step's loss went into its row
    assert sum(found[:4]) / 4 == pytest.approx(rows[0].train_loss, rel=1e-6)
    assert sum(found[4:8]) / 4 == pytest.approx(rows[1].train_loss, rel=1e-6)


def test_means_are_over_ten_batches_and_end_below_the_threshold() -> None:
    assert list(running(iter([1.0] * 9))) == []
    falling = [1.0] * 10 + [0.0] * 10
    assert list(running(iter(falling))) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])


@pytest.mark.process
def test_a_network_that_stays_above_counts_one_step_more() -> None:
    cases = [Case("residual", replace(TINY, seed=seed)) for seed in (0, 1)]
    rows = speed.measure(cases, lambda done, of, what: None)
    assert {row["steps_to_threshold"] for row in rows} == {13}
    finding = speed.conclude(pd.DataFrame(rows))
    assert any("8 of 8 networks did not get there" in line for line in finding.conventions)
    assert finding.verdict is Verdict.inconclusive
    assert finding.numbers["log2 steps, rezero over residual"] == 0


def test_steps_are_compared_with_the_residual_networks_by_seed() -> None:
    """ReZero takes 2 and 8 times the steps, pre-activation half."""
    steps = {"plain": (60, 60), "residual": (20, 20), "rezero": (40, 160), "preact": (10, 10)}
    rows = [
        {"arm": arm, "depth": 20, "seed": seed, "step": step, "loss": 2.0, "reached": 1}
        | {"steps_to_threshold": steps[arm][seed]}
        for arm, seed, step in product(steps, (0, 1), (10, 11, 12))
    ]
    finding = speed.conclude(pd.DataFrame(rows))
    assert "plain 60, residual 20, rezero 100, preact 10" in finding.sentence
    assert {one.what: (list(one.values), one.base) for one in finding.headlines} == {
        "steps, ReZero over residual": ([1, 3], 2),
        "pre-activation over residual": ([-1, -1], 2),
    }


def test_the_smallest_depth_of_at_least_twenty_is_watched() -> None:
    assert usual_depth([8, 56, 32]) == 32
    assert usual_depth([8, 14]) == 14
    with pytest.raises(UsageError, match="arch=residual"):
        speed.measure([], lambda done, of, what: None)


def test_of_a_depth_the_first_seeds_are_watched() -> None:
    cases = [Case(str(at), Settings(depth=8, seed=seed)) for at, seed in enumerate((3, 0, 0, 1))]
    assert [case.arch for case in first_seeds(cases, 8, 2)] == ["1", "3"]
    assert first_seeds(cases, 20, 2) == []


def test_the_verdict_goes_by_the_bounds_of_both() -> None:
    sooner, later, open_ = ([-1.0, -1.1, -0.9], [1.0, 1.1, 0.9], [1.0, -1.0, 0.0])
    table = {
        (tuple(sooner), tuple(sooner)): Verdict.supported,
        (tuple(sooner), tuple(later)): Verdict.not_supported,
        (tuple(sooner), tuple(open_)): Verdict.inconclusive,
    }
    for pair, verdict in table.items():
        assert speed.judge([paired_t(one) for one in pair]) is verdict


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_residual_networks_are_sooner_than_plain_ones_in_every_seed() -> None:
    cases = [Case("residual", Settings(depth=20, seed=seed)) for seed in range(3)]
    rows = speed.measure(cases, lambda done, of, what: None)
    steps = {(row["arm"], row["seed"]): row["steps_to_threshold"] for row in rows}
    assert all(steps["residual", seed] < steps["plain", seed] for seed in range(3))  # type: ignore[operator]
