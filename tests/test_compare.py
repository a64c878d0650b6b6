"""Two runs or two sweeps side by side: what differs, which runs pair up, what changed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fake_results import write_run

from resexp.analysis.compare import Comparison, Difference, compare, text
from resexp.analysis.results import find_runs
from resexp.analysis.statistics import paired_t
from resexp.runs.records import finite
from resexp.settings import UsageError

PLACE = {"resexp": "0.1.0", "git_commit": "a" * 40, "git_dirty": False, "torch": "2.15.0"}


def compared(a: Path, b: Path) -> Comparison:
    return compare(find_runs(a), find_runs(b))


def write_sweep(root: Path, loss: float = 0.01, seeds: int = 3, **more: Any) -> None:
    """Both archs, two depths, some seeds; depth adds to the errors, seeds to everything."""
    for arch, depth, seed in product(("plain", "residual"), (20, 56), range(seeds)):
        numbers = {"clean_error": depth / 10, "test_error": depth / 5 + seed + 100 * loss}
        write_run(root, arch, depth, seed, clean_loss=loss * (1 + seed), **numbers, **more)


def test_two_runs_pair_up_whatever_they_are(tmp_path: Path) -> None:
    one = write_run(tmp_path, "plain", 56, 0, clean_loss=1.0, clean_error=40, test_error=42)
    two = write_run(tmp_path, "residual", 20, 1, clean_loss=0.01, clean_error=1, test_error=4)
    comparison = compared(one, two)
    (pair,) = comparison.pairs
    assert (pair.a, pair.b, pair.seed) == ("plain-56-s0", "residual-20-s1", None)
    assert [*pair.changes.values()] == pytest.approx([-39, -38, -2, 0])
    assert comparison.overall["test error"].mean == -38
    assert math.isnan(comparison.overall["test error"].low)
    keys = [difference.key for difference in comparison.differences]
    assert keys == ["arch", "arch.merge", "depth", "seed"]
    assert "networks  40.00 to 1.00 (-39.00)  42.00 to 4.00 (-38.00)" in text(comparison)


def test_sweeps_pair_by_arch_depth_seed_and_extras(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", 0.01)
    write_sweep(tmp_path / "b", 0.02)
    comparison = compared(tmp_path / "a", tmp_path / "b")
    assert len(comparison.pairs) == 12 and comparison.differences == []
    assert all(pair.a == pair.b for pair in comparison.pairs)
    assert list(comparison.networks) == ["plain-20", "plain-56", "residual-20", "residual-56"]
    assert comparison.networks["plain-20"]["test error"].n == 3
    loss = comparison.overall["log10 clean loss"]
    assert (loss.n, loss.mean) == (12, pytest.approx(math.log10(2)))
    screen = text(comparison)
    assert "Same settings, data, code, environment." in screen
    assert "plain-56, seed 2" in screen and "all 12 pairs" in screen
    write_run(tmp_path / "a", "plain", 110, 0)  # a 13th pair: summed up by network
    write_run(tmp_path / "b", "plain", 110, 0)
    screen = text(compared(tmp_path / "a", tmp_path / "b"))
    assert "seed 2" not in screen and "plain-110 " in screen and "all 13 pairs" in screen
    plain = finite(asdict(comparison))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["pairs"][0]["changes"]["test error"] == pytest.approx(1)


def test_the_interval_is_paired_t_over_seeds(tmp_path: Path) -> None:
    before, after = (5.0, 6.0, 4.0), (5.5, 7.0, 4.0)
    for seed in range(3):
        write_run(tmp_path / "a", "plain", 20, seed, test_error=before[seed])
        write_run(tmp_path / "b", "plain", 20, seed, test_error=after[seed])
    comparison = compared(tmp_path / "a", tmp_path / "b")
    assert comparison.overall["test error"] == paired_t([0.5, 1.0, 0.0])
    assert "+0.50 (-0.74 to +1.74, n 3)" in text(comparison)


def test_a_setting_that_differs_throughout_does_not_keep_runs_apart(tmp_path: Path) -> None:
    write_sweep(tmp_path, seeds=2)
    write_sweep(tmp_path, seeds=2, extras={"lr": 0.01})
    comparison = compare(find_runs(tmp_path, ["lr=0.02"]), find_runs(tmp_path, ["lr=0.01"]))
    assert len(comparison.pairs) == 8
    assert comparison.pairs[0].b == "plain-20-s0,lr=0.01"
    assert comparison.differences == [Difference("settings", "lr", [0.02], [0.01])]


def test_extras_in_common_keep_runs_apart(tmp_path: Path) -> None:
    for shortcut in ("A", "B"):
        write_run(tmp_path / "a", "residual", 20, 0, extras={"arch.shortcut": shortcut})
        write_run(tmp_path / "b", "residual", 20, 0, extras={"arch.shortcut": shortcut})
    comparison = compared(tmp_path / "a", tmp_path / "b")
    assert [(pair.a, pair.b) for pair in comparison.pairs] == [
        (f"residual-20-s0,arch.shortcut={letter}",) * 2 for letter in "AB"
    ]
    assert list(comparison.networks) == [f"residual-20,arch.shortcut={letter}" for letter in "AB"]


def test_arms_are_compared_depth_by_depth(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    runs = [find_runs(tmp_path, [f"arch={arch}"]) for arch in ("plain", "residual")]
    comparison = compare(runs[0], runs[1], ("plain arm", "residual arm"))
    assert list(comparison.networks) == ["depth 20", "depth 56"]
    said = "A: plain arm (6 runs). B: residual arm (6 runs). 6 pairs.\n"
    assert text(comparison).startswith(said)


def test_runs_without_a_counterpart_are_named(tmp_path: Path) -> None:
    for side, depth, seed in (("a", 110, 0), ("b", 20, 7)):
        write_run(tmp_path / side, "plain", 56, 0)
        write_run(tmp_path / side, "plain", depth, seed)
    comparison = compared(tmp_path / "a", tmp_path / "b")
    assert comparison.a.alone == ["plain-110-s0"] and comparison.b.alone == ["plain-20-s7"]
    assert "Only in A: plain-110-s0.\nOnly in B: plain-20-s7." in text(comparison)


def test_settings_data_code_and_environment_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "plain", 20, 0, record={"environment": PLACE})
    changes = {"lr": 0.1, "results": "there", "threads": 3}
    record = {
        "environment": PLACE | {"git_commit": "b" * 40, "torch": "2.11.0"},
        "data": {"name": "digits", "train": 1000, "classes": 10},
    }
    write_run(tmp_path / "b", "plain", 20, 0, changes=changes, record=record)
    comparison = compared(tmp_path / "a", tmp_path / "b")
    differences = comparison.differences
    found = {(one.group, one.key): (one.a, one.b) for one in differences}
    assert found["settings", "lr"] == ([0.02], [0.1])
    assert found["data", "data.train"] == ([1437], [1000])
    assert found["code", "git_commit"] == (["a" * 40], ["b" * 40])
    assert found["environment", "torch"] == (["2.15.0"], ["2.11.0"])
    assert not {("settings", "results"), ("settings", "threads")} & found.keys()
    lines = text(comparison).splitlines()
    assert any(line.split() == ["git_commit", "a" * 12, "b" * 12] for line in lines)


def test_settings_swapped_between_arms_are_seen(tmp_path: Path) -> None:
    """Both sides have both rates: only the pairs tell."""
    for side, rates in (("a", (0.1, 0.2)), ("b", (0.2, 0.1))):
        for arch, rate in zip(("plain", "residual"), rates, strict=True):
            write_run(tmp_path / side, arch, 20, 0, changes={"lr": rate})
    differences = compared(tmp_path / "a", tmp_path / "b").differences
    assert [(one.key, one.a, one.b) for one in differences] == [("lr", [0.1, 0.2], [0.2, 0.1])]


def test_a_sweep_repeated_to_the_digit_is_said_to_be_so(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    comparison = compared(tmp_path, tmp_path)
    assert text(comparison).splitlines() == [
        "A: 12 runs. B: 12 runs. 12 pairs.",
        "Same settings, data, code, environment.",
        "The final numbers are the same in every pair, to the last digit.",
    ]


def test_failures_are_shown_and_left_out_of_means_only_without_numbers(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "a", "plain", 20, seed, test_error=5.0)
    write_run(tmp_path / "b", "plain", 20, 0, test_error=6.0)
    write_run(tmp_path / "b", "plain", 20, 1, status="diverged")
    write_run(tmp_path / "b", "plain", 20, 2, status="failed", rows=2)
    comparison = compared(tmp_path / "a", tmp_path / "b")
    changes = [pair.changes["test error"] for pair in comparison.pairs]
    assert changes == [1.0, 85.0, None]  # a diverged run counts at chance, 90 %
    assert comparison.overall["test error"].n == 2
    screen = text(comparison)
    assert "5.00 and failed" in screen
    assert "Without final numbers on one side or both: 1 pair." in screen


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path) -> None:
    write_sweep(tmp_path, seeds=2)
    plain, residual = (find_runs(tmp_path, [f"arch={arch}"]) for arch in ("plain", "residual"))
    early, late = [run for run in plain if run.seed == 0], [run for run in residual if run.seed]
    outlines = r"A has arch=plain depth=20, 56 seed=0; B has arch=residual depth=20, 56 seed=1\."
    with pytest.raises(UsageError, match=f"no run of A has a counterpart in B: {outlines}"):
        compare(early, late)
    write_run(tmp_path, "plain", 20, 0, name="other")
    with pytest.raises(UsageError, match=r"plain-20-s0 and .* in A are the same network and seed"):
        compare(find_runs(tmp_path), plain)
