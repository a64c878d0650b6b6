"""The where probe: arms that differ in their skips alone, and gains by seed."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch

from resexp import models
from resexp.analysis.statistics import paired_t
from resexp.config import compose
from resexp.launch.local import perform
from resexp.models.merges import Add, Drop
from resexp.probes import Case, Verdict, where
from resexp.probes import run as probing
from resexp.probes.where import ARMS, gains, settings_of
from resexp.settings import Arch, Settings, UsageError


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_has_skips_in_its_stages_alone(arm: str) -> None:
    settings = settings_of(arm, Settings(depth=14, width=4))
    network = models.build(settings, 1, 10, (8, 8))
    for number, block in enumerate(network.get_submodule("blocks").children()):
        kind = Add if number // 2 + 1 in ARMS[arm] else Drop
        assert isinstance(block.get_submodule("merge"), kind)
    plain = models.build(Settings(depth=14, width=4), 1, 10, (8, 8)).state_dict()
    assert all(torch.equal(plain[name], value) for name, value in network.state_dict().items())


def test_gains_are_decades_paired_by_seed() -> None:
    losses = [("none", 0, 1.0), ("all", 1, 0.02), ("none", 1, 2.0), ("all", 0, 0.1)]
    rows = pd.DataFrame(losses, columns=["arm", "seed", "loss"])
    assert list(gains(rows, "all", "none")) == pytest.approx([1, 2])


def test_the_headlines_compare_all_stages_with_none_and_the_best() -> None:
    nats = {"none": 1.0, "stage 1": 0.5, "stage 2": 0.5, "stage 3": 0.1, "all": 0.01}
    place = {"depth": 20, "step": 50, "reused": 0}
    rows = [
        place | {"arm": arm, "seed": seed, "loss": loss * 2**seed}
        for (arm, loss), seed in product(nats.items(), (0, 1, 2))
    ]
    found = where.conclude(pd.DataFrame(rows))
    assert found.numbers["share of the gain, stage 3"] == pytest.approx(0.5)
    assert {one.what: list(one.values) for one in found.headlines} == {
        "log10 loss, skips in all stages less none": pytest.approx([-2, -2, -2]),
        "all less the best alone, stage 3": pytest.approx([-1, -1, -1]),
    }
    assert found.verdict is Verdict.supported
    rows[-1]["loss"] = None  # a lost network
    assert where.conclude(pd.DataFrame(rows)).verdict is Verdict.inconclusive


def test_the_verdict_is_of_bounds() -> None:
    better, worse, unsure = (paired_t([x - 0.1, x, x + 0.1]) for x in (1.0, -1.0, 0.0))
    assert where.judge([better] * 3) is Verdict.supported
    assert where.judge([better, better, unsure]) is Verdict.inconclusive
    assert where.judge([better, better, worse]) is Verdict.not_supported
    assert where.judge([paired_t([1.0, 1.1])] * 3) is Verdict.inconclusive


@pytest.mark.process
def test_runs_with_skips_in_single_stages_are_used(tmp_path: Path) -> None:
    """Stage 2 from its checkpoint, at its last step; what has none is trained as its run was."""
    words = ["depth=8", "width=4", "steps=4", "batch_size=8", "eval_every=4", "threads=1"]
    words += ["arch=residual", "keep_checkpoint=true", f"results={tmp_path}"]
    for more in ([], ["arch.skip_stages=[2]"]):
        perform(compose([*words, *more]))
    [task] = probing.of_runs("where", tmp_path, [])
    rows = where.measure(task.cases, lambda done, of, what: None)
    assert {row["step"] for row in rows} == {4}
    assert {row["arm"] for row in rows if row["reused"]} == {"stage 2", "all"}
    new = where.measure([Case("residual", task.cases[0].settings)], lambda done, of, what: None)
    assert [row["arm"] for row in new] == list(ARMS)
    assert [row["loss"] for row in new] == [row["loss"] for row in rows]  # the recipe is so short
    assert not any(row["reused"] for row in new)
    assert where.conclude(pd.DataFrame(new)).verdict is Verdict.inconclusive


def test_other_networks_are_refused() -> None:
    highway = Case("highway", Settings(arch=Arch(merge="highway")))
    with pytest.raises(UsageError, match="arch=residual"):
        where.measure([highway], lambda done, of, what: None)
