"""The speed probe: its losses are training's own, its threshold and pairing are as stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest

from resexp import models
from resexp.analysis.statistics import paired_t
from resexp.data import Images
from resexp.probes import Case, Verdict, speed
from resexp.probes.networks import first_seeds, usual_depth
from resexp.probes.speed import ARMS, losses, running
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
    rows = list(speed.measure(cases, iter))
    assert {row["steps_to_threshold"] for row in rows} == {13}
    finding = speed.conclude(pd.DataFrame(rows))
    assert "residual 13 (2 never)" in finding.sentence
    assert finding.verdict is Verdict.inconclusive
    assert finding.numbers["log2 steps, rezero over residual"] == 0


@pytest.mark.parametrize("steps", [4, 10])
def test_fewer_steps_than_a_mean_takes_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match="steps=11"):
        list(speed.measure([Case("residual", replace(TINY, steps=steps))], iter))


def test_a_network_that_diverges_at_once_never_gets_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "losses", lambda settings, data: iter([2.0] * 3))
    rows = list(speed.measure([Case("residual", TINY)], iter))
    assert [(row["arm"], row["steps_to_threshold"]) for row in rows] == [(arm, 13) for arm in ARMS]


def table(**steps: Sequence[int]) -> pd.DataFrame:
    """Five networks of an arm at depth 56: these steps, and 221 if it does not get there."""
    return pd.DataFrame(
        {"arm": arm, "depth": 56, "seed": seed, "step": step, "loss": 2.0}
        | {"steps_to_threshold": steps[arm][seed % 2], "reached": int(steps[arm][seed % 2] < 221)}
        for arm, seed, step in product(steps, range(5), (10, 11, 12))
    )


def test_steps_are_compared_with_the_residual_networks_by_seed() -> None:
    """ReZero takes 2 and 8 times the steps, pre-activation half."""
    rows = table(plain=(221, 60), residual=(20, 20), rezero=(40, 160), preact=(10, 10))
    finding = speed.conclude(rows)
    assert "plain 157 (3 never), residual 20, rezero 88, preact 10" in finding.sentence
    assert finding.verdict is Verdict.not_supported
    assert "1001 layers and untested" in finding.sentence
    assert list(finding.headlines[0].values) == [1, 3, 1, 3, 1]


def test_pre_activation_decides_nothing_nor_a_residual_network_that_never_gets_there() -> None:
    sooner = {"plain": (30, 30), "residual": (40, 44), "rezero": (20, 21)}
    for preact in ((10, 10), (221, 221)):
        assert speed.conclude(table(**sooner, preact=preact)).verdict is Verdict.supported
    late = table(**sooner | {"residual": (40, 221)}, preact=(10, 10))
    assert speed.conclude(late).verdict is Verdict.inconclusive


def test_the_usual_depth_is_the_smallest_of_at_least_twenty() -> None:
    assert usual_depth([8, 56, 32]) == 32
    assert usual_depth([8, 14]) == 14


def test_of_a_depth_the_first_seeds_are_watched() -> None:
    cases = [Case(str(at), Settings(depth=8, seed=seed)) for at, seed in enumerate((3, 0, 0, 1))]
    assert [case.arch for case in first_seeds(cases, 8, 2)] == ["1", "3"]
    assert first_seeds(cases, 20, 2) == []


def test_the_verdict_goes_by_the_bounds_at_56_layers() -> None:
    sooner, later, unsure = (paired_t([one - 0.1, one, one, one, one + 0.1]) for one in (-1, 1, 0))
    assert speed.judge(sooner, 56, 0) is Verdict.supported
    assert speed.judge(sooner, 56, 1) is Verdict.inconclusive
    assert speed.judge(later, 56, 1) is Verdict.not_supported
    assert speed.judge(unsure, 56, 0) is Verdict.inconclusive
    assert speed.judge(sooner, 20, 0) is Verdict.inconclusive
    assert speed.judge(paired_t([-1.0] * 4), 56, 0) is Verdict.inconclusive


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_residual_networks_are_sooner_than_plain_ones_in_every_seed() -> None:
    cases = [Case("residual", Settings(depth=20, seed=seed)) for seed in range(3)]
    rows = list(speed.measure(cases, iter))
    steps = {(row["arm"], row["seed"]): row["steps_to_threshold"] for row in rows}
    assert all(steps["residual", seed] < steps["plain", seed] for seed in range(3))  # type: ignore[operator]
