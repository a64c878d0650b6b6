"""The decision on runs: constructed cases, which runs are compared, and what is said of them."""

from __future__ import annotations

import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fake_results import write_run

from resexp.analysis.results import find_runs
from resexp.analysis.statistics import holm
from resexp.analysis.verdict import Verdict, decide, text
from resexp.console import folded
from resexp.settings import UsageError

JITTER = (0.0, 0.4, -0.3, 0.2, -0.1)  # percent points, so that no spread is zero
RISING = {20: 1.0, 32: 9.0, 56: 74.0}
FLAT = {20: 1.0, 32: 1.0, 56: 1.0}
SMOKE = "inconclusive (preliminary)"

#: Clean training errors by depth; of one seed after another where they are several.
Errors = dict[int, Any]


def write_arm(
    root: Path,
    arch: str,
    errors: Errors,
    seeds: int = 5,
    spread: float = 1.0,
    gap: float = 2.0,
    **more: Any,
) -> None:
    """Runs of every depth with about these errors, and test errors ``gap`` points above."""
    for depth, error in errors.items():
        for seed in range(seeds):
            several = isinstance(error, tuple)
            clean = error[seed] if several else error + spread * JITTER[(seed + depth) % 5]
            values = {"clean_error": clean, "test_error": clean + gap, "clean_loss": clean / 40}
            write_run(root, arch, depth, seed, **values | more)


def degradation(root: Path, seeds: int = 5, **more: Any) -> None:
    write_arm(root, "plain", RISING, seeds, **more)
    write_arm(root, "residual", FLAT, seeds, **more)


def judged(root: Path, **question: Any) -> Verdict:
    return decide(find_runs(root), **question)


# --- both outcomes


def test_degradation_that_residual_networks_cure(tmp_path: Path) -> None:
    degradation(tmp_path)
    verdict = judged(tmp_path)
    plain, residual = verdict.arms
    assert (verdict.outcome, verdict.exit_code) == ("degrades", 0)
    assert (verdict.shallow, verdict.deep, verdict.depths) == (20, 56, [20, 32, 56])
    assert (verdict.seeds, verdict.steps) == ([0, 1, 2, 3, 4], 220)
    assert plain.change.train_error.mean == pytest.approx(73)
    assert plain.change.loss.mean == pytest.approx(math.log10(74), abs=0.1)
    assert plain.change.p < 1e-6
    assert (plain.rising, plain.reading, plain.label) == (5, "degrades", "degradation")
    assert (residual.reading, residual.label) == ("does not degrade", "neither")
    assert (plain.cure, residual.cure) == ("", "cured")
    assert residual.cure_p == pytest.approx(1e-3, abs=0.02)
    minus = verdict.interactions["residual"].train_error
    assert minus.mean == pytest.approx(73) and minus.lower > 0
    assert verdict.failures == {"collapsed": 0, "diverged": 0, "failed": 0}
    assert verdict.missing == [] and verdict.notes == [] and verdict.at_chance == []


def test_the_screen_says_both_outcomes_and_prints_what_decides(tmp_path: Path) -> None:
    degradation(tmp_path)
    verdict = judged(tmp_path)
    lines = text(verdict).splitlines()
    assert lines[0] == (
        "Training deeper plain networks: degrades (56 against 20 layers, 220 steps, 5 seeds, "
        "digits, recipe digits). Cured: residual."
    )
    assert "one-sided 95 %" in lines[2]
    rise = verdict.arms[0].change.train_error
    assert lines[3].startswith("  plain ")
    assert f">+{rise.lower:.1f}, <+{rise.upper:.1f}" in lines[3]
    assert lines[5].startswith("  plain minus residual ")
    assert lines[6].split(maxsplit=1) == ["plain", "degrades; trains worse: degradation"]
    assert "does not degrade; cured (p = " in lines[7]
    assert "Holm over all 3" in lines[12]
    assert lines[14].split()[:4] == ["plain", "20", "to", "32"]
    assert lines[14].split()[4] == "+8.0" and lines[15].split()[1:5] == ["32", "to", "56", "+65.0"]
    assert lines[-1] == "Failures: none of 30 runs."
    for room in (80, 60):
        assert max(map(len, folded(text(verdict, room), room).splitlines())) <= room


PILOT = {"plain": {20: 47.9, 56: 76.1}, "residual": {20: 41.6, 56: 62.7}}  # CIFAR-10, percent
FAILING = {"plain": {20: 1.0, 56: 70.0}, "fixup": {20: 80.0, 56: 80.0}}
ONE_OFF = {"plain": {20: (1, 1, 1, 1, 1), 56: (1.1, 1, 1.2, 0.9, 41)}}
SMALL = {"plain": {20: (1, 1, 1, 1, 1), 56: (1.5, 1.6, 1.4, 1.5, 1.5)}}


@pytest.mark.parametrize(
    ("arms", "outcome", "code", "last", "said"),
    [
        # Losses near chance cannot rise by much: log loss called this overfitting.
        (PILOT, "degrades", 5, ("degrades", "degradation", "not cured"), "Not cured: residual."),
        (FAILING, "degrades", 5, ("inconclusive", "did not learn", "inconclusive"), "reading"),
        (ONE_OFF, "inconclusive", 4, ("inconclusive", "neither", ""), "+8.0 ("),
        (SMALL, "does not degrade", 3, ("does not degrade", "neither", ""), ">+0.4, <+0.6"),
    ],
)
def test_constructed_networks_are_read_by_the_rule(
    tmp_path: Path,
    arms: dict[str, Errors],
    outcome: str,
    code: int,
    last: tuple[str, str, str],
    said: str,
) -> None:
    for arch, errors in arms.items():
        write_arm(tmp_path, arch, errors, spread=3.0)
    verdict = judged(tmp_path)
    arm = verdict.arms[-1]
    assert (verdict.outcome, verdict.exit_code) == (outcome, code)
    assert (arm.reading, arm.label, arm.cure) == last
    screen = text(verdict)
    assert said in screen
    if arms is FAILING:
        assert screen.splitlines()[0].endswith("recipe digits). Did not learn: fixup.")


def test_networks_that_both_fit_do_not_degrade_whatever_their_losses(tmp_path: Path) -> None:
    for arch in ("plain", "residual"):
        for depth, loss in ((20, 0.001), (56, 0.003)):
            write_arm(tmp_path, arch, {depth: 0.0}, spread=0.0, clean_loss=loss)
    verdict = judged(tmp_path)
    assert (verdict.outcome, verdict.exit_code) == ("does not degrade", 3)
    assert verdict.arms[0].label == "neither" and verdict.arms[1].cure == ""
    assert verdict.arms[0].change.loss.mean == pytest.approx(math.log10(3))
    assert "-0.0" not in text(verdict) and "nan" not in text(verdict)


def test_a_plateau_degrades_and_the_flat_part_is_a_note(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", {20: 0.5, 32: 60.0, 56: 62.0}, spread=0.5)
    verdict = judged(tmp_path)
    assert verdict.outcome == "degrades" and verdict.interactions == {}
    assert text(verdict).endswith("next: resexp run -m depth=20,56 arch=residual")  # its twin
    write_arm(tmp_path, "plain", {20: 0.5, 32: 62.0, 56: 60.0}, spread=0.5)
    verdict = judged(tmp_path)
    assert (verdict.outcome, verdict.arms[0].rising) == ("degrades", 0)
    assert "rises at every depth between in only 0 of 5 seeds" in verdict.notes[0]


@pytest.mark.parametrize("status", ["failed", "diverged", "collapsed"])
@pytest.mark.parametrize(("others", "outcome"), [(30.0, "degrades"), (1.0, "inconclusive")])
def test_two_failures_of_five_count_at_chance_and_are_named(
    tmp_path: Path, status: str, others: float, outcome: str
) -> None:
    write_arm(tmp_path, "plain", {20: 1.0, 56: others})
    write_arm(tmp_path, "residual", {20: 1.0, 56: 1.0})
    for seed in range(2):
        rows = 2 if status == "failed" else None
        write_run(tmp_path, "plain", 56, seed, status=status, rows=rows)
    verdict = judged(tmp_path)
    assert verdict.outcome == outcome and verdict.seeds == [0, 1, 2, 3, 4]
    assert verdict.missing == [] and verdict.failures[status] == 2
    rise = verdict.arms[0].change.train_error
    assert rise.mean == pytest.approx((2 * 90 + 3 * others) / 5 - 1, abs=0.3)
    assert (
        f"Failures: 2 {status} of 20 runs. Counted at chance: plain-56-s0 ({status}), "
        f"plain-56-s1 ({status})."
    ) in text(verdict)


def test_networks_that_all_fail_show_nothing(tmp_path: Path) -> None:
    """At chance at either depth there is no rise: that is no sign of health."""
    write_arm(tmp_path, "plain", FLAT, status="failed", rows=0)
    verdict = judged(tmp_path)
    assert (verdict.outcome, verdict.exit_code) == ("inconclusive", 4)
    assert verdict.arms[0].change.train_error.mean == 0
    assert "plain-20 did not learn" in verdict.notes[0]


def test_losses_are_capped_at_chance_and_zero_is_finite(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", {20: 1.0, 56: 89.0}, clean_loss=0.01)
    for seed in range(3):
        write_run(tmp_path, "plain", 56, seed, clean_loss=6.8e7, clean_error=90.4)
    write_run(tmp_path, "plain", 56, 3, clean_loss=1e5, clean_error=85.0)
    change = judged(tmp_path).arms[0].change
    assert change.loss.mean == pytest.approx(4 / 5 * (math.log10(math.log(10)) - math.log10(0.01)))
    assert change.train_error.high < 100
    write_arm(tmp_path, "plain", {20: 1.0, 56: 2.0}, clean_loss=0.0)
    assert judged(tmp_path).arms[0].change.loss.mean == 0.0


def test_overfitting_is_told_from_degradation_by_the_gap(tmp_path: Path) -> None:
    write_arm(tmp_path, "residual", {20: 1.0, 56: 1.0})
    write_arm(tmp_path, "plain", {20: 1.0})
    write_arm(tmp_path, "plain", {56: 1.0}, gap=6.0)
    plain, residual = judged(tmp_path).arms
    assert (plain.label, residual.label) == ("overfitting", "neither")
    assert plain.change.gap.mean == pytest.approx(4) and plain.change.test_error.mean > 3
    screen = text(judged(tmp_path))
    assert "overfitting" in screen and "Other pairs" not in screen  # two depths have one


def test_several_arms_are_adjusted_by_holm(tmp_path: Path) -> None:
    """A cure that is shown alone is not beside three: 0.05 / 3 is asked of the surest."""
    ends = {20: (1.0,) * 5, 56: (1.8, 0.7, 1.6, 0.3, 1.2)}
    write_arm(tmp_path, "plain", {20: (1.0,) * 5, 56: (60.0, 62.0, 61.0, 58.0, 59.0)})
    write_arm(tmp_path, "residual", ends)
    alone = judged(tmp_path).arms[1]
    assert alone.cure == "cured" and 0.05 / 3 < alone.cure_p < 0.05
    for shortcut in ("B", "C"):
        write_arm(tmp_path, "residual", ends, extras={"arch.shortcut": shortcut})
    verdict = judged(tmp_path)
    series = ["plain", "residual", "residual,arch.shortcut=B", "residual,arch.shortcut=C"]
    assert [arm.series for arm in verdict.arms] == series == ["plain", *verdict.interactions]
    assert [arm.cure for arm in verdict.arms[1:]] == ["inconclusive"] * 3
    assert verdict.arms[1].cure_p == pytest.approx(3 * alone.cure_p)
    assert verdict.arms[0].p == verdict.arms[0].change.p  # the first hypothesis stands alone
    assert "p (Holm)" in text(verdict) and "Cure inconclusive: residual, " in text(verdict)
    (tmp_path / "digits" / "residual-56-s4" / "run.json").unlink()
    verdict = judged(tmp_path)
    assert (verdict.outcome, verdict.exit_code) == ("degrades", 5)
    assert verdict.arms[1].cure == SMOKE  # four seeds of this arm alone


# --- too few seeds, and what to train next


def test_three_seeds_are_called_a_smoke_test_and_do_not_decide(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=3)
    verdict = judged(tmp_path)
    assert (verdict.outcome, verdict.exit_code) == (SMOKE, 4)
    assert verdict.arms[0].reading == "degrades"
    assert verdict.arms[1].cure == SMOKE
    screen = text(verdict)
    assert "3 seeds are a smoke test" in screen and "5 seeds are needed" in screen
    assert screen.endswith("resexp run -m depth=20,56 arch=plain,residual seed=0,1,2,3,4")


def test_one_seed_has_no_interval_and_is_plain_json(tmp_path: Path) -> None:
    typed = ["experiment=he2015", "depth=56", "arch=plain", "seed=0"]
    degradation(tmp_path, seeds=1, record={"overrides": typed})
    verdict = judged(tmp_path)
    screen = text(verdict)
    assert verdict.outcome == SMOKE
    assert "1 seed is a smoke test" in screen and "nan" not in screen
    assert "next: resexp run -m experiment=he2015 depth=20,56 arch" in screen  # as it was typed
    plain = verdict.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["arms"][0]["series"] == "plain"
    assert plain["arms"][0]["change"]["train_error"]["low"] is None


# --- which runs are compared


def test_unfinished_runs_are_missing_not_dropped(tmp_path: Path) -> None:
    degradation(tmp_path)
    write_run(tmp_path, "residual", 56, 2, status="interrupted", rows=3)
    write_run(tmp_path, "plain", 20, 4, status="running", rows=3)
    write_run(tmp_path, "plain", 20, 5)
    verdict = judged(tmp_path)
    assert verdict.seeds == [0, 1, 2, 3]
    assert verdict.arms[1].change.seeds == [0, 1, 3, 4]
    assert verdict.interactions["residual"].seeds == [0, 1, 3]
    assert verdict.unfinished == 2 and verdict.at_chance == []
    assert verdict.missing == [
        "plain-20-s4 (running)",
        "plain-56-s5 (no run)",
        "residual-20-s5 (no run)",
        "residual-56-s2 (interrupted)",
        "residual-56-s5 (no run)",
    ]
    assert "Failures: none of 31 runs. Unfinished: 2." in text(verdict)
    assert "Missing: plain-20-s4 (running)," in text(verdict)


COMMIT, OTHER = "a" * 40, "b" * 40


def place(commit: str | None = COMMIT, dirty: bool | None = False, **more: Any) -> dict[str, Any]:
    return {"environment": {"precision": "fp32", "git_commit": commit, "git_dirty": dirty} | more}


def setting(key: str, value: Any) -> dict[str, Any]:
    return {"changes": {key: value}, "record": place()}


IMAGES = {"name": "digits", "train": 1438, "classes": 10}


@pytest.mark.parametrize(
    ("first", "other", "difference"),
    [
        (place(), setting("lr", 0.01), r"lr: 0\.02 in plain-20-s0, 0\.01 in residual-56-s2.*lr=0"),
        (place(), setting("data.name", "fashion_mnist"), r"data\.name"),
        (place(), setting("threshold", 0.1), "threshold"),
        (place(), {"record": place() | {"data": IMAGES}}, r"data\.train"),
        (place(), {"record": place(precision="bf16")}, r"environment\.precision"),
        (place(), {"record": place(OTHER)}, r"git_commit: aaaaaaaaaaaa in plain-20-s0, bbbbb"),
        (place(), {"record": place(None, None)}, r"environment\.git_commit: a+ in .*, null in"),
        (place(), {"record": place(COMMIT, True)}, r"git_dirty: false in plain-20-s0, true in res"),
        (place(None, resexp="0.1"), {"record": place(None, resexp="0.2")}, r"\.resexp: 0\.1 in"),
        (place(), {"record": place(resexp="0.2")}, None),  # nothing beside the same commit
        (place(), setting("threads", 9), None),  # where it ran does not matter
        (place(), setting("device", "cuda"), None),
    ],
)
def test_what_twins_must_share_is_asked_and_named(
    tmp_path: Path, first: dict[str, Any], other: dict[str, Any], difference: str | None
) -> None:
    degradation(tmp_path, seeds=2, record=first)
    write_run(tmp_path, "residual", 56, 2, **other)
    if difference is None:
        assert judged(tmp_path).outcome == SMOKE
        return
    with pytest.raises(UsageError, match=f"{difference}.*--mixed") as refusal:
        judged(tmp_path)
    assert "\n" not in str(refusal.value)
    key, _, rest = str(refusal.value).removeprefix("the runs differ in ").partition(":")
    mixed = judged(tmp_path, allow_mixed=True)
    assert mixed.outcome == SMOKE
    assert mixed.notes[0].startswith(f"Mixed on request: the runs differ in {key}")
    filtered = re.search(r"such as (\S+),", rest)
    assert filtered and decide(find_runs(tmp_path, [filtered[1]])).outcome == SMOKE


def test_edited_code_and_several_torches_are_noted(tmp_path: Path) -> None:
    for arch, torch in (("plain", "2.11.0"), ("residual", "2.15.0")):
        write_arm(tmp_path, arch, FLAT, 3, record=place(COMMIT, True, torch=torch))
    notes = judged(tmp_path).notes
    assert notes[0] == (
        "The runs were made with several versions of torch: 2.11.0 in 9, 2.15.0 in 9 of 18."
    )
    assert notes[1].startswith("The code had uncommitted changes in 18 of 18 runs")


def test_two_runs_of_one_network_and_seed_are_refused(tmp_path: Path) -> None:
    degradation(tmp_path, seeds=2)
    write_run(tmp_path, "plain", 56, 0, extras={"lr": 0.01})
    with pytest.raises(UsageError, match="the same network and seed"):
        judged(tmp_path, allow_mixed=True)


def test_depths_are_the_outermost_with_the_most_seeds(tmp_path: Path) -> None:
    for arch in ("plain", "residual"):
        write_arm(tmp_path, arch, {8: 1.0, 14: 2.0})
    assert (judged(tmp_path).shallow, judged(tmp_path).deep) == (8, 14)  # there is no other
    degradation(tmp_path)
    write_run(tmp_path, "plain", 110, 0)
    write_run(tmp_path, "residual", 110, 0)
    verdict = judged(tmp_path)
    assert (verdict.shallow, verdict.deep) == (20, 56)
    assert (judged(tmp_path, shallow=8).shallow, judged(tmp_path, deep=32).deep) == (8, 32)
    assert judged(tmp_path, deep=20).shallow == 8
    with pytest.raises(UsageError, match=r"no plain runs of depth 44\. Depths here: 8, 14, 20, 32"):
        judged(tmp_path, deep=44)
    with pytest.raises(UsageError, match="is not deeper than"):
        judged(tmp_path, deep=20, shallow=56)


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no runs to judge"):
        judged(tmp_path)
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


def test_a_sweep_that_has_only_begun_is_judged_by_what_there_is(tmp_path: Path) -> None:
    for arch, (depth, seed) in product(("plain", "residual"), ((20, 0), (20, 1), (56, 0))):
        write_run(tmp_path, arch, depth, seed)
    verdict = judged(tmp_path)
    assert (verdict.shallow, verdict.deep, verdict.arms[0].change.seeds) == (20, 56, [0])


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
    own = [found["plain", *pair].change.p for pair in pairs]
    assert [found["plain", *pair].p for pair in pairs] == holm(own) != own
    screen = text(verdict)
    assert re.search(r"^  residual +56 to 110 .* 1$", screen, re.MULTILINE)
    assert not re.search(r"^  plain +\d+ to 110", screen, re.MULTILINE)


# --- a control


def test_a_residual_baseline_is_a_control(tmp_path: Path) -> None:
    write_arm(tmp_path, "residual", FLAT, 2)
    short = text(judged(tmp_path, baseline="residual"))  # asks for its own networks
    assert short.endswith("depth=20,56 arch=residual seed=0,1,2,3,4")
    write_arm(tmp_path, "residual", FLAT)
    write_arm(tmp_path, "residual", FLAT, extras={"arch.shortcut": "B"})
    verdict = judged(tmp_path, baseline="residual")
    assert (verdict.outcome, verdict.exit_code) == ("does not degrade", 3)
    assert verdict.baseline == "residual"
    assert verdict.interactions["residual,arch.shortcut=B"].train_error.mean == 0
    lines = text(verdict).splitlines()
    assert lines[0].startswith("Training deeper residual networks: does not degrade")
    assert lines[5].startswith("  residual minus residual,arch.shortcut=B  +0.0")
    assert "twin" not in text(verdict)
    with pytest.raises(UsageError, match=r"no runs of preact here\. Choose one of residual; resid"):
        judged(tmp_path, baseline="preact")


# --- more steps


def write_longer(root: Path, steps: int, deep: float, seeds: int = 5) -> None:
    write_arm(root, "plain", {20: 1.0, 56: deep}, seeds, extras={"steps": steps})
    write_arm(root, "residual", {20: 1.0, 56: 1.0}, seeds, extras={"steps": steps})


def test_the_budget_check_says_what_more_steps_leave_and_close(tmp_path: Path) -> None:
    """The digits' gaps in points at 220, 440, 660 and 2,200 steps."""
    write_arm(tmp_path, "plain", {20: 1.0, 56: 70.0})
    write_arm(tmp_path, "residual", FLAT)
    write_longer(tmp_path, 440, 53.0, 3)
    assert "One larger budget alone" in text(judged(tmp_path))
    write_longer(tmp_path, 660, 43.0)
    write_longer(tmp_path, 2200, 23.0)
    verdict = judged(tmp_path)
    assert (verdict.outcome, verdict.steps) == ("degrades", 220)
    plain = [check for check in verdict.budget if check.series == "plain"]
    assert [(check.steps, len(check.seeds)) for check in plain] == [(440, 3), (660, 5), (2200, 5)]
    assert [check.rise.mean for check in plain] == pytest.approx([52, 42, 22], abs=0.5)
    assert [check.closed for check in plain] == pytest.approx([17 / 69, 27 / 69, 47 / 69], abs=0.01)
    assert {check.closed for check in verdict.budget if check.series == "residual"} == {None}
    screen = text(verdict)
    assert "+22.0" in screen and " at 2,200 steps " in screen and "68% of the gap closed" in screen
    assert "One larger budget" not in screen and "of 77 runs" in screen


def test_more_steps_of_one_arm_alone_or_at_another_rate_are_a_mix(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", RISING, 2)
    write_arm(tmp_path, "residual", FLAT, 2, extras={"steps": 440})
    with pytest.raises(UsageError, match="differ in steps: 220 in plain-20-s0, 440 in residual"):
        judged(tmp_path)
    write_arm(tmp_path, "residual", FLAT, 2)
    write_arm(tmp_path, "plain", {20: 1.0, 56: 1.0}, 2, extras={"steps": 440, "lr": 0.01})
    with pytest.raises(UsageError, match="differ in lr"):
        judged(tmp_path)
