"""The decision rule on constructed cases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_results import write_run

from resexp.analysis.results import Run, find_runs
from resexp.analysis.verdict import EXIT_CODES, Verdict, decide, text
from resexp.settings import UsageError

JITTER = (0.00, 0.04, -0.03, 0.02, -0.01)  # log10, so that no spread is zero


def write_arm(
    root: Path,
    arch: str,
    losses: dict[int, float],
    seeds: int = 5,
    errors: dict[int, tuple[float, float]] | None = None,
    **more: Any,
) -> None:
    """Runs of every depth with about this clean loss and these (training, test) errors."""
    for depth, loss in losses.items():
        clean, test = (errors or {}).get(depth, (1.0, 3.0))
        for seed in range(seeds):
            factor = 10 ** (JITTER[(seed + depth) % 5])
            write_run(
                root,
                arch,
                depth,
                seed,
                clean_loss=loss * factor,
                clean_error=clean * factor,
                test_error=test * factor,
                **more,
            )


RISING = {20: 0.05, 32: 0.3, 56: 2.0}
FLAT = {20: 0.002, 32: 0.002, 56: 0.002}
DEGRADED = {20: (0.5, 3.0), 32: (9.0, 12.0), 56: (74.0, 75.0)}


def degradation(root: Path, seeds: int = 5) -> None:
    write_arm(root, "plain", RISING, seeds, DEGRADED)
    write_arm(root, "residual", FLAT, seeds)


def judged(root: Path) -> Verdict:
    return decide(find_runs(root))


def test_degradation_is_shown(tmp_path: Path) -> None:
    degradation(tmp_path)
    verdict = judged(tmp_path)
    plain, residual = verdict.arms
    assert verdict.outcome == "shown" and EXIT_CODES[verdict.outcome] == 0
    assert (verdict.shallow, verdict.deep, verdict.depths) == (20, 56, [20, 32, 56])
    assert verdict.seeds == [0, 1, 2, 3, 4]
    assert plain.change.loss.mean == pytest.approx(math.log10(2.0 / 0.05), abs=0.05)
    assert plain.change.p == 0.03125
    assert plain.rising == 5
    assert (plain.reading, plain.label) == ("degrades", "degradation")
    assert plain.change.train_error.mean == pytest.approx(73.5, abs=3)
    assert residual.reading == "no worse than 0.30"
    difference = verdict.interactions["residual"]
    assert difference.loss.mean == pytest.approx(plain.change.loss.mean - residual.change.loss.mean)
    assert verdict.failures == {"collapsed": 0, "diverged": 0, "failed": 0}
    assert verdict.missing == [] and verdict.notes == []


def test_the_screen_of_a_shown_degradation(tmp_path: Path) -> None:
    degradation(tmp_path)
    lines = text(judged(tmp_path)).splitlines()
    assert lines[0] == (
        "Deeper plain networks train worse: shown "
        "(56 against 20 layers, 5 seeds, digits, recipe digits)."
    )
    assert lines[1].startswith("  plain                  log10 loss +1.6")
    assert "p = 0.0312" in lines[1] and lines[1].endswith("degrades")
    assert lines[2].endswith("no worse than 0.30")
    assert lines[3].startswith("  plain minus residual   log10 loss +1.6")
    assert "d = +" in lines[1] and "n = 5" in lines[1]
    assert lines[4].split("  ")[1] == "points (95 %)"
    assert lines[5].endswith("degradation, not overfitting")
    assert lines[7] == (
        "Other pairs of depths: log10 loss (95 %), n, p adjusted by Holm over all 3 "
        "(0.094 at least with 5 seeds):"
    )
    assert lines[8].split() == ["depths", "plain", "residual", "plain", "minus", "residual"]
    assert lines[9].startswith("  20 to 32   +0.7") and lines[10].startswith("  32 to 56   +0.8")
    assert lines[-1] == "Failures: none of 30 runs."
    assert len({line.index("n = 5") for line in lines[1:4]}) == 1
    assert max(len(line) for line in lines) <= 130


def test_equal_arms_are_not_shown(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", FLAT)
    write_arm(tmp_path, "residual", FLAT)
    verdict = judged(tmp_path)
    assert verdict.outcome == "not shown" and EXIT_CODES[verdict.outcome] == 3
    assert verdict.arms[0].label == "inconclusive"
    assert verdict.interactions["residual"].loss.mean == 0
    assert "-0.0 " not in text(verdict)


def test_wide_spread_is_inconclusive(tmp_path: Path) -> None:
    for seed, loss in enumerate((0.001, 10.0, 0.01, 5.0, 0.02)):
        write_run(tmp_path, "plain", 20, seed, clean_loss=0.1)
        write_run(tmp_path, "plain", 56, seed, clean_loss=loss)
        write_run(tmp_path, "residual", 20, seed)
        write_run(tmp_path, "residual", 56, seed)
    verdict = judged(tmp_path)
    assert verdict.outcome == "inconclusive" and EXIT_CODES[verdict.outcome] == 4


def test_a_loss_that_does_not_rise_at_every_depth_is_inconclusive(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", {20: 0.05, 32: 0.01, 56: 2.0}, errors=DEGRADED)
    write_arm(tmp_path, "residual", FLAT)
    verdict = judged(tmp_path)
    assert verdict.arms[0].rising == 0
    assert verdict.outcome == "inconclusive"
    assert "rises at every step of depth in only 0 of 5 seeds" in text(verdict)


def test_overfitting_is_told_from_degradation(tmp_path: Path) -> None:
    errors = {20: (0.5, 5.0), 56: (0.2, 9.0)}
    write_arm(tmp_path, "plain", {20: 0.02, 56: 0.01}, errors=errors)
    write_arm(tmp_path, "residual", {20: 0.02, 56: 0.01}, errors=errors)
    verdict = judged(tmp_path)
    assert verdict.outcome == "not shown"
    assert [arm.label for arm in verdict.arms] == ["overfitting", "overfitting"]
    assert verdict.arms[0].change.gap.lower > 0
    assert "overfitting: trains no worse, tests worse" in text(verdict)


def test_the_other_two_labels(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", {20: 0.05, 56: 0.5}, errors={20: (1.0, 9.0), 56: (5.0, 8.0)})
    better = {20: (1.0, 9.0), 56: (0.5, 7.0)}
    write_arm(tmp_path, "residual", {20: 0.05, 56: 0.02}, errors=better)
    plain, residual = judged(tmp_path).arms
    assert (plain.label, residual.label) == ("under-optimised", "depth helps")


def test_three_seeds_are_called_a_smoke_test_and_do_not_decide(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=3)
    verdict = judged(tmp_path)
    assert verdict.outcome == "inconclusive (preliminary)" and EXIT_CODES[verdict.outcome] == 4
    assert verdict.arms[0].reading == "degrades" and verdict.arms[0].change.p == 0.125
    screen = text(verdict)
    assert "3 seeds are a smoke test, not a claim: 5 seeds are needed." in screen
    assert screen.endswith("resexp run -m depth=20,56 arch=plain,residual seed=0,1,2,3,4")


def test_the_next_command_keeps_what_was_typed(tmp_path: Path) -> None:
    for depth in (20, 56):
        typed = ["experiment=he2015", f"depth={depth}", "arch=plain", "seed=0"]
        write_run(tmp_path, "plain", depth, 0, record={"overrides": typed})
    assert "next: resexp run -m experiment=he2015 depth=20,56 arch" in text(judged(tmp_path))


def test_one_seed_is_inconclusive_and_has_no_interval(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=1)
    verdict = judged(tmp_path)
    assert verdict.outcome == "inconclusive (preliminary)"
    assert "1 seed is a smoke test" in text(verdict) and "nan" not in text(verdict)
    assert verdict.as_dict()["arms"][0]["change"]["loss"]["low"] is None


def test_the_verdict_is_plain_json(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=1)
    plain = judged(tmp_path).as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["arms"][0]["series"] == "plain"


def test_collapsed_and_diverged_runs_count(tmp_path: Path) -> None:
    degradation(tmp_path)
    write_run(
        tmp_path,
        "plain",
        56,
        0,
        status="collapsed",
        clean_loss=2.303,
        clean_error=90,
        test_error=90,
    )
    write_run(tmp_path, "plain", 56, 1, status="diverged")
    verdict = judged(tmp_path)
    assert verdict.outcome == "shown"
    assert verdict.seeds == [0, 1, 2, 3, 4]
    assert verdict.failures == {"collapsed": 1, "diverged": 1, "failed": 0}
    screen = text(verdict)
    assert "Failures: 1 collapsed, 1 diverged of 30 runs." in screen
    assert "A diverged run counts at chance: loss 2.30, error 90.0 %." in screen


def test_failed_and_unfinished_runs_are_missing_not_dropped(tmp_path: Path) -> None:
    degradation(tmp_path)
    write_run(tmp_path, "residual", 56, 2, status="failed", rows=3)
    write_run(tmp_path, "plain", 20, 4, status="running", rows=3)
    write_run(tmp_path, "plain", 20, 5)
    verdict = judged(tmp_path)
    assert verdict.seeds == [0, 1, 2, 3]
    assert verdict.arms[1].change.seeds == [0, 1, 3, 4]
    assert verdict.interactions["residual"].seeds == [0, 1, 3]
    assert verdict.failures["failed"] == 1 and verdict.unfinished == 1
    assert verdict.missing == [
        "plain-20-s4 (running)",
        "plain-56-s5 (no run)",
        "residual-20-s5 (no run)",
        "residual-56-s2 (failed)",
        "residual-56-s5 (no run)",
    ]
    assert "Failures: 1 failed of 31 runs. Unfinished: 1." in text(verdict)
    assert "Missing: plain-20-s4 (running)," in text(verdict)


def test_another_recipe_is_refused_and_named(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=3)
    write_run(tmp_path, "residual", 56, 3, changes={"lr": 0.01})
    message = r"differ in lr: 0\.02 in plain-20-s0, 0\.01 in residual-56-s3.*lr=0\.02.*--mixed"
    with pytest.raises(UsageError, match=message):
        judged(tmp_path)
    mixed = decide(find_runs(tmp_path), allow_mixed=True)
    assert mixed.outcome == "inconclusive (preliminary)"
    assert mixed.notes[0] == "Mixed on request: the runs differ in lr."
    assert decide(find_runs(tmp_path, ["lr=0.02"])).outcome == "inconclusive (preliminary)"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"changes": {"data.name": "fashion_mnist"}}, "data.name"),
        ({"changes": {"threshold": 0.1}}, "threshold"),
        ({"record": {"environment": {"precision": "bf16"}}}, "environment.precision"),
        ({"record": {"data": {"name": "digits", "train": 1438, "classes": 10}}}, "data.train"),
    ],
)
def test_other_data_threshold_or_precision_is_refused(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    degradation(tmp_path, seeds=2)
    write_run(tmp_path, "residual", 56, 4, **change)
    with pytest.raises(UsageError, match=key):
        judged(tmp_path)


def test_where_it_ran_does_not_matter(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=2)
    write_run(tmp_path, "residual", 56, 2, changes={"device": "cuda", "threads": 9})
    assert judged(tmp_path).outcome == "inconclusive (preliminary)"


def test_two_runs_of_one_network_and_seed_are_refused(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=2)
    write_run(tmp_path, "plain", 56, 0, extras={"lr": 0.01})
    with pytest.raises(UsageError, match="the same network and seed"):
        decide(find_runs(tmp_path), allow_mixed=True)


def test_a_sweep_with_a_changed_setting_has_its_arms(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", RISING, errors=DEGRADED, extras={"steps": 440})
    write_arm(tmp_path, "residual", FLAT, extras={"steps": 440})
    write_arm(tmp_path, "residual", FLAT, extras={"steps": 440, "arch.shortcut": "B"})
    verdict = judged(tmp_path)
    assert verdict.outcome == "shown"
    assert [arm.series for arm in verdict.arms] == ["plain", "residual", "residual,arch.shortcut=B"]
    assert list(verdict.interactions) == ["residual", "residual,arch.shortcut=B"]


def test_depths_are_the_outermost_with_the_most_seeds(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", {8: 0.01, **RISING}, errors=DEGRADED)
    write_arm(tmp_path, "residual", {8: 0.01, **FLAT})
    write_run(tmp_path, "plain", 110, 0)
    write_run(tmp_path, "residual", 110, 0)
    verdict = judged(tmp_path)
    assert (verdict.shallow, verdict.deep) == (20, 56)
    runs = find_runs(tmp_path)
    assert (decide(runs, shallow=8).shallow, decide(runs, deep=32).deep) == (8, 32)
    assert decide(runs, deep=20).shallow == 8
    for deep, shallow, words in (
        (44, None, r"no plain runs of depth 44\. Depths here: 8, 20, 32, 56, 110"),
        (20, 56, "is not deeper than"),
    ):
        with pytest.raises(UsageError, match=words):
            decide(runs, deep=deep, shallow=shallow)


def test_shallow_networks_only_are_compared_from_the_shallowest(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", {8: 0.01, 14: 0.02})
    write_arm(tmp_path, "residual", {8: 0.01, 14: 0.02})
    verdict = judged(tmp_path)
    assert (verdict.shallow, verdict.deep) == (8, 14)


def test_plain_alone_is_judged_and_its_twin_asked_for(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", RISING, errors=DEGRADED)
    verdict = judged(tmp_path)
    assert verdict.outcome == "shown" and verdict.interactions == {}
    assert text(verdict).endswith("next: resexp run -m depth=20,56 arch=residual")


def test_zero_loss_is_finite(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", RISING, errors=DEGRADED)
    write_arm(tmp_path, "residual", {20: 0.0, 56: 0.0})
    residual = decide(find_runs(tmp_path), shallow=20, deep=56).arms[1]
    assert residual.change.loss.mean == 0.0


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    none: list[Run] = []
    with pytest.raises(UsageError, match="no runs to judge"):
        decide(none)
    write_run(tmp_path, "residual", 20, 0)
    with pytest.raises(UsageError, match="no plain runs here"):
        judged(tmp_path)
    write_run(tmp_path, "plain", 20, 0)
    with pytest.raises(UsageError, match="needs two depths"):
        judged(tmp_path)
    write_run(tmp_path, "plain", 20, 0, name="other")
    with pytest.raises(UsageError, match="one experiment, and here are digits, other"):
        judged(tmp_path)


# --- every pair of depths


def test_every_pair_of_depths_is_contrasted(tmp_path: Path) -> None:
    degradation(tmp_path)
    write_run(tmp_path, "residual", 110, 0)
    verdict = judged(tmp_path)
    found = {(one.series, one.shallow, one.deep): one for one in verdict.contrasts}
    pairs = [(20, 32), (20, 56), (32, 56)]
    assert [key[1:] for key in found if key[0] == "plain"] == pairs
    assert [key[1:] for key in found if key[0] == "plain minus residual"] == pairs
    assert found["residual", 56, 110].change.seeds == [0]
    assert found["plain", 20, 56].change == verdict.arms[0].change
    assert found["plain minus residual", 20, 56].change == verdict.interactions["residual"]
    for pair in pairs:  # 2^-5 in each of three
        assert found["plain", *pair].holm == pytest.approx(3 / 32)
        assert 0 < found["plain", *pair].holm_t < 1e-3
    assert "no pairs" in text(verdict)


def test_the_effect_size_is_the_mean_in_standard_deviations(tmp_path: Path) -> None:
    degradation(tmp_path)
    loss = judged(tmp_path).arms[0].change.loss
    assert loss.d == pytest.approx(loss.mean / loss.sd)


def test_two_depths_have_no_other_pair(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", {20: 0.05, 56: 2.0})
    assert "Other pairs" not in text(judged(tmp_path))


# --- a control


def test_a_residual_baseline_is_a_control(tmp_path: Path) -> None:
    write_arm(tmp_path, "residual", FLAT)
    write_arm(tmp_path, "residual", FLAT, extras={"arch.shortcut": "B"})
    verdict = decide(find_runs(tmp_path), baseline="residual")
    assert verdict.outcome == "not shown" and EXIT_CODES[verdict.outcome] == 3
    assert verdict.baseline == "residual"
    assert verdict.interactions["residual,arch.shortcut=B"].loss.mean == 0
    lines = text(verdict).splitlines()
    assert lines[0].startswith("Deeper residual networks train worse: not shown")
    assert lines[3].startswith("  residual minus residual,arch.shortcut=B   log10 loss +0.00")
    assert "twin" not in text(verdict)
    with pytest.raises(UsageError, match=r"no runs of preact here\. Choose one of residual; resid"):
        decide(find_runs(tmp_path), baseline="preact")


def test_a_short_control_asks_for_its_own_networks(tmp_path: Path) -> None:
    write_arm(tmp_path, "residual", {20: 0.01, 56: 0.01}, seeds=2)
    screen = text(decide(find_runs(tmp_path), baseline="residual"))
    assert screen.endswith("depth=20,56 arch=residual seed=0,1,2,3,4")


# --- code versions

CLEAN = {"device": "cpu", "precision": "fp32", "git_commit": "a" * 40, "git_dirty": False}


def write_versions(root: Path, plain: dict[str, Any], residual: dict[str, Any]) -> None:
    for arch, losses, place in (("plain", RISING, plain), ("residual", FLAT, residual)):
        write_arm(root, arch, losses, 3, record={"environment": CLEAN | place})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"git_commit": "b" * 40}, r"environment\.git_commit: aaaaaaaaaaaa in plain-20-s0, bbbbb"),
        ({"git_commit": None, "git_dirty": None}, r"environment\.git_commit: a+ in .*, null in"),
        ({"git_dirty": True}, r"environment\.git_dirty: false in plain-20-s0, true in residual"),
    ],
)
def test_other_code_is_refused_unless_asked_for(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    write_versions(tmp_path, {}, change)
    with pytest.raises(UsageError, match=f"{key}.*--mixed") as refusal:
        judged(tmp_path)
    assert "\n" not in str(refusal.value)
    assert decide(find_runs(tmp_path), allow_mixed=True).outcome == "inconclusive (preliminary)"


def test_without_git_the_package_version_counts(tmp_path: Path) -> None:
    bare = {"git_commit": None, "git_dirty": None}
    write_versions(tmp_path, bare | {"resexp": "0.1.0"}, bare | {"resexp": "0.2.0"})
    with pytest.raises(UsageError, match=r"environment\.resexp: 0\.1\.0 in plain-20-s0, 0\.2\.0"):
        judged(tmp_path)


def test_the_package_version_is_nothing_beside_the_same_commit(tmp_path: Path) -> None:
    write_versions(tmp_path, {"resexp": None}, {"resexp": "0.1.0"})
    assert judged(tmp_path).outcome == "inconclusive (preliminary)"


def test_the_filter_that_a_refusal_names_works(tmp_path: Path) -> None:
    write_versions(tmp_path, {}, {"git_commit": "b" * 40})
    commit = f"environment.git_commit={'a' * 40}"
    with pytest.raises(UsageError, match=commit):
        judged(tmp_path)
    assert decide(find_runs(tmp_path, [commit])).outcome == "inconclusive (preliminary)"


def test_edited_code_and_several_torches_are_noted(tmp_path: Path) -> None:
    edited = {"git_dirty": True}
    write_versions(tmp_path, edited | {"torch": "2.11.0"}, edited | {"torch": "2.15.0"})
    notes = judged(tmp_path).notes
    assert notes[0] == (
        "The runs were made with several versions of torch: 2.11.0 in 9, 2.15.0 in 9 of 18."
    )
    assert notes[1].startswith("The code had uncommitted changes in 18 of 18 runs")


# --- twice the steps


def write_doubled(root: Path, plain: dict[int, float], seeds: int = 5) -> None:
    write_arm(root, "plain", plain, seeds, DEGRADED, extras={"steps": 440})
    write_arm(root, "residual", {20: 0.001, 56: 0.001}, seeds, extras={"steps": 440})


def test_a_rise_that_twice_the_steps_halve_is_budget_limited(tmp_path: Path) -> None:
    degradation(tmp_path)  # log10 up by 1.6
    write_doubled(tmp_path, {20: 0.02, 56: 0.1})  # by 0.7
    verdict = judged(tmp_path)
    assert [arm.label for arm in verdict.arms] == ["budget-limited", "inconclusive"]
    assert verdict.outcome == "shown" and verdict.arms[0].reading == "degrades"
    check = verdict.as_dict()["budget"][0]
    assert (check["series"], check["steps"], check["halved"]) == ("plain", 220, True)
    assert check["once"]["mean"] == pytest.approx(math.log10(40), abs=0.05)
    assert check["twice"]["mean"] == pytest.approx(math.log10(5), abs=0.05)
    screen = text(verdict)
    assert "Budget check, log10 loss at once and twice the steps:" in screen
    assert " at 220   +0.7" in screen and "halved or less" in screen
    assert "budget-limited: twice the steps halve the rise" in screen
    assert "Failures: none of 50 runs." in screen


def test_a_rise_that_stays_keeps_its_label(tmp_path: Path) -> None:
    degradation(tmp_path)
    write_doubled(tmp_path, {20: 0.02, 56: 0.3}, seeds=3)  # by 1.2
    verdict = judged(tmp_path)
    assert verdict.arms[0].label == "degradation"
    assert verdict.budget[0].seeds == [0, 1, 2]
    assert [check.halved for check in verdict.budget] == [False, None]
    assert "more than half is left" in text(verdict)


def test_twice_the_steps_of_one_arm_alone_are_a_mix(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", RISING)
    write_arm(tmp_path, "residual", FLAT, extras={"steps": 440})
    with pytest.raises(UsageError, match="differ in steps: 220 in plain-20-s0, 440 in residual"):
        judged(tmp_path)


def test_doubled_runs_of_another_rate_are_a_mix(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=2)
    write_arm(tmp_path, "plain", {20: 0.1, 56: 0.1}, 2, extras={"steps": 440, "lr": 0.01})
    with pytest.raises(UsageError, match="differ in lr"):
        judged(tmp_path)
