"""The where probe: arms that differ in their skips alone, and which of them suffice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch

from resexp import models
from resexp.analysis.statistics import paired_t, t_p
from resexp.config import compose
from resexp.launch.local import perform
from resexp.models.merges import Add, Drop
from resexp.probes import Case, Finding, Verdict, where
from resexp.probes import run as probing
from resexp.probes.where import ARMS, settings_of
from resexp.settings import Settings


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_has_skips_in_its_stages_alone(arm: str) -> None:
    settings = settings_of(arm, Settings(depth=14, width=4))
    network = models.build(settings, 1, 10, (8, 8))
    for number, block in enumerate(network.get_submodule("blocks").children()):
        kind = Add if number // 2 + 1 in ARMS[arm] else Drop
        assert isinstance(block.get_submodule("merge"), kind)
    plain = models.build(Settings(depth=14, width=4), 1, 10, (8, 8)).state_dict()
    assert all(torch.equal(plain[name], value) for name, value in network.state_dict().items())


def concluded(**errors: Sequence[float]) -> Finding:
    """By clean training errors of some arms; else 60 percent, and 0.1 with skips in all stages."""
    usual = dict.fromkeys(ARMS, [60.0] * 5) | {"all": [0.1] * 5}
    place = {"depth": 56, "step": 220, "reused": 0, "clean_loss": 0.1}
    return where.conclude(
        pd.DataFrame(
            place | {"arm": arm, "seed": seed, "clean_error_percent": error}
            for arm, some in (usual | errors).items()
            for seed, error in enumerate(some)
        )
    )


SMALL = [0.2, 0.1, 0.3, 0.2, 0.1]


def test_two_stages_that_suffice_contradict_the_claim() -> None:
    found = concluded(**{"1+2": SMALL, "2": [20.0] * 5})
    assert found.verdict is Verdict.not_supported
    assert "): 1+2." in found.sentence
    told = [one.what for one in found.headlines]
    assert "stage 2 alone" in told[1] and "stages 1+2" in told[2]


def test_it_is_supported_where_every_arm_is_worse_by_more_than_the_margin() -> None:
    assert concluded().verdict is Verdict.supported


@pytest.mark.parametrize(
    "errors",
    [
        {"3": [1.5, 2.5, 1.0, 3.0, 0.5]},  # by as much as the margin
        {"1+2": [0.2, 0.1, 3.0, 0.2, 0.1]},  # sometimes
        {"1+2": SMALL[:4]},  # four seeds
        {"1+2": SMALL, "none": SMALL},  # where plain networks train
        {"1+2": [12.0] * 5, "all": [12.0] * 5},  # where none do
        {"1+2": [*SMALL[:4], math.nan]},  # a lost network
    ],
)
def test_what_is_not_shown_decides_nothing(errors: dict[str, Sequence[float]]) -> None:
    assert concluded(**errors).verdict is Verdict.inconclusive


def test_the_arm_named_before_is_tested_first_and_the_others_together() -> None:
    """Mean 0.5 above all, deviation 0.4: p = 0.021 alone, more than 0.05 by Holm over five."""
    points = [0.5 + 0.4 * one for one in (-1.2, -0.6, 0.0, 0.6, 1.2)]
    found, other = (concluded(**{arm: [0.1 + one for one in points]}) for arm in ("1+2", "2+3"))
    alone = t_p(paired_t([-one for one in points]), -1)
    assert 0.01 < alone < 0.05
    assert found.numbers["p that it suffices, 1+2"] == pytest.approx(alone)
    assert found.verdict is Verdict.not_supported
    assert other.numbers["p that it suffices, 2+3"] == 1  # of stages 1 and 2, which do not
    assert other.verdict is Verdict.inconclusive
    both = {"1+2": SMALL, "2+3": [0.1 + one for one in points]}
    assert concluded(**both).numbers["p that it suffices, 2+3"] == pytest.approx(5 * alone)


@pytest.mark.process
def test_runs_with_skips_in_single_stages_are_used(tmp_path: Path) -> None:
    """Stage 2 from its checkpoint, at its last step; what has none is trained as its run was."""
    words = ["depth=8", "width=4", "steps=4", "batch_size=8", "eval_every=4", "threads=1"]
    words += ["arch=residual", "keep_checkpoint=true", f"results={tmp_path}"]
    for more in ([], ["arch.skip_stages=[2]"]):
        perform(compose([*words, *more]))
    [task] = probing.of_runs("where", tmp_path, [])
    rows = list(where.measure(task.cases, iter))
    assert {row["step"] for row in rows} == {4}
    assert {row["arm"] for row in rows if row["reused"]} == {"2", "all"}
    new = list(where.measure([Case("residual", task.cases[0].settings)], iter))
    assert [row["arm"] for row in new] == list(ARMS)
    assert [row["clean_loss"] for row in new] == [row["clean_loss"] for row in rows]
    [ended] = [case for case in task.cases if case.settings.arch.skip_stages == [2]]
    assert ended.run is not None
    [found] = [row for row in rows if row["arm"] == "2"]
    assert found["clean_error_percent"] == pytest.approx(ended.run.value("clean_train_error"))
    assert not any(row["reused"] for row in new)
    assert where.conclude(pd.DataFrame(new)).verdict is Verdict.inconclusive
