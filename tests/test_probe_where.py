"""The where probe: arms that differ in their skips alone, and gains by seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from resexp import models
from resexp.analysis.statistics import paired_t
from resexp.config import compose
from resexp.models.merges import Add, Drop
from resexp.probes import Case, Verdict, where
from resexp.probes import run as probing
from resexp.probes.where import ARMS, gains, settings_of
from resexp.runs.run import perform
from resexp.settings import Arch, Merge, Settings, UsageError


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_has_skips_in_its_stages_alone(arm: str) -> None:
    settings = settings_of(arm, Settings(depth=14, width=4))
    network = models.build(settings, 1, 10, (8, 8))
    for number, block in enumerate(network.get_submodule("blocks").children()):
        kind = Add if number // 2 + 1 in ARMS[arm] else Drop
        assert isinstance(block.get_submodule("merge"), kind)
    plain = models.build(Settings(depth=14, width=4), 1, 10, (8, 8)).state_dict()
    assert all(torch.equal(plain[name], value) for name, value in network.state_dict().items())


LOSSES = [("none", 0, 1.0), ("all", 1, 0.02), ("none", 1, 2.0), ("all", 0, 0.1)]


def test_gains_are_decades_paired_by_seed() -> None:
    rows = [{"arm": arm, "seed": seed, "loss": loss} for arm, seed, loss in LOSSES]
    assert gains(rows, "all", "none") == pytest.approx([1, 2])  # type: ignore[arg-type]


def test_the_verdict_is_of_bounds() -> None:
    better, worse, unsure = (paired_t([x - 0.1, x, x + 0.1]) for x in (1.0, -1.0, 0.0))
    assert where.judge([better] * 3) is Verdict.supported
    assert where.judge([better, better, unsure]) is Verdict.inconclusive
    assert where.judge([better, better, worse]) is Verdict.not_supported
    assert where.judge([paired_t([1.0, 1.1])] * 3) is Verdict.inconclusive


def test_runs_with_skips_in_single_stages_are_used(tmp_path: Path) -> None:
    """Stage 2 from its checkpoint, at its last step; what has none is trained as its run was."""
    words = ["depth=8", "width=4", "steps=4", "batch_size=8", "eval_every=4", "threads=1"]
    words += ["arch=residual", "keep_checkpoint=true", f"results={tmp_path}"]
    for more in ([], ["arch.skip_stages=[2]"]):
        perform(compose([*words, *more]))
    [task] = probing.of_runs("where", tmp_path, [])
    finding = where.measure(task.cases, lambda done, of, what: None)
    assert {row["step"] for row in finding.rows} == {4}
    assert {row["arm"] for row in finding.rows if row["reused"]} == {"stage 2", "all"}
    anew = where.measure(
        [Case("residual", task.cases[0].settings)], lambda done, of, what: None
    )  # of so short a recipe all steps
    assert [row["loss"] for row in anew.rows] == [row["loss"] for row in finding.rows]
    assert not any(row["reused"] for row in anew.rows)


def test_every_arm_is_trained() -> None:
    settings = Settings(depth=8, width=4, steps=3, batch_size=8, arch=Arch(merge=Merge.residual))
    finding = where.measure([Case("residual", settings)], lambda done, of, what: None)
    assert [row["arm"] for row in finding.rows] == list(ARMS)
    assert all(math.isfinite(float(row["loss"] or math.nan)) for row in finding.rows)
    assert finding.verdict is Verdict.inconclusive
    highway = Case("highway", Settings(arch=Arch(merge=Merge.highway)))
    with pytest.raises(UsageError, match="arch=residual"):
        where.measure([highway], lambda done, of, what: None)
