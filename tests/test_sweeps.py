"""What probes of finished sweeps share: effects and none, choosing, who is compared, pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from fake_results import write_run
from fake_sweeps import CHANCE, case_of, orders_in, rows_of

from resexp.analysis.results import export_runs
from resexp.config import compose
from resexp.probes import Needs, names, probe, spans
from resexp.probes import run as probing
from resexp.probes.rows import read
from resexp.probes.sweeps import (
    ERROR,
    LOSS,
    Contrast,
    best,
    contrast,
    effects,
    ends,
    failed,
    judged,
    none,
)
from resexp.settings import UsageError

SWEEPS = [name for name in names() if probe(name).NEEDS is Needs.runs]
T95 = 2.131847  # Student's t, one-sided 95 %, 4 degrees of freedom


def points(*values: float, trained: bool = True) -> Contrast:
    return Contrast("points", pd.Series(values, dtype=float), trained)


# --- the rule


def test_an_effect_is_a_point_with_its_bound_above_zero() -> None:
    spread = (-2.0, -1.0, 0.0, 1.0, 2.0)  # deviation sqrt(2.5), standard error sqrt(0.5)
    bound = T95 * math.sqrt(0.5)
    below, above = ([value + bound + shift for value in spread] for shift in (-0.01, 0.01))
    assert effects([points(*below)]) == [False]
    assert effects([points(*above)]) == [True]
    assert effects([points(*[0.99] * 5)]) == [False]
    assert effects([points(*[1.0] * 5)]) == [True]
    assert effects([points(*[9.0] * 4)]) == [False]  # four seeds decide nothing
    assert effects([points(9, 9, 9, 9, math.nan)]) == [False]
    assert effects([points(*above), points(*above)]) == [False, False]  # Holm
    assert effects([points(*above), points(*[9.0] * 5)]) == [True, True]


def test_none_is_an_upper_bound_below_a_point() -> None:
    spread = (-0.2, -0.1, 0.0, 0.1, 0.2)
    bound = 1 - T95 * math.sqrt(0.005)
    below, above = ([value + bound + shift for value in spread] for shift in (-0.001, 0.001))
    assert none([points(*below)]) == [True]
    assert none([points(*above)]) == [False]
    assert none([points(*below, trained=False)]) == [False]
    assert none([points(*[0.0] * 4)]) == [False]
    assert none([points(0, 0, 0, 0, math.nan)]) == [False]
    assert none([points(*below), points(*below)]) == [False, False]  # Holm
    assert none([points(*below), points(*[0.0] * 5)]) == [True, True]


def test_a_contrast_is_paired_by_seed_and_knows_whether_the_other_trained() -> None:
    rows = rows_of({("a", 56): [5, 7, 9], ("b", 56): [1, 2, CHANCE]})
    rows = pd.concat([rows.iloc[1:], rows.iloc[:1]])  # the order of rows means nothing
    one = contrast(rows, ("a", 56), ("b", 56))
    assert dict(one.points) == {10: 4, 11: 5, 12: 9 - CHANCE}
    assert one.what == "a-56 less b-56" and one.trained
    fails = rows_of({("a", 56): [5, 7, 9], ("b", 56): [1, CHANCE, CHANCE]})
    assert not contrast(fails, ("a", 56), ("b", 56)).trained
    assert failed(fails) == "at chance ended b-56 (2 of 3)"
    assert failed(rows_of({("a", 56): 1})) == "no network ended at chance"


# --- choosing


def tried(*runs: tuple[int, float, float, float | None]) -> pd.DataFrame:
    """Rows of seed, value, error and log loss."""
    rows = [("a", 56, "ok", *run) for run in runs]
    return pd.DataFrame(rows, columns=["arm", "depth", "status", "seed", "value", ERROR, LOSS])


def test_the_least_mean_loss_on_the_seeds_that_choose_is_best() -> None:
    runs = [(90, -1, 0, 1), (91, -1, 0, 9), (90, -2, 5, 4), (91, -2, 5, 4), (10, -1, 0, 0)]
    assert best(tried(*runs)) == {("a", 56): -2}
    assert best(tried(*runs[::-1])) == {("a", 56): -2}
    lacking = [*runs, (90, -3, 0, 0)]
    assert best(tried(*lacking)) == {("a", 56): -2}  # one seed is no choice
    lost = [*runs, (90, -3, 0, 0), (91, -3, None, None)]
    assert best(tried(*lost)) == {("a", 56): -2}


def test_the_seeds_that_choose_do_not_judge_and_other_values_neither() -> None:
    rows = tried((90, -2, 4, 0), (91, -2, 4, 0), (10, -2, 5, 0), (10, -1, 6, 0), (11, -2, 7, 0))
    assert list(judged(rows)[ERROR]) == [5, 7]
    assert list(judged(rows.assign(value=None))[ERROR]) == [5, 6, 7]  # nothing was chosen
    assert len(judged(rows.drop(columns="value"))) == 5


# --- who is compared


def measure(*words: str) -> list[dict[str, object]]:
    cases = [case_of(one) for one in words]
    return spans.measure(cases, iter)  # type: ignore[return-value]


SPANS = [f"arch=residual arch.skip_span={span} depth=20" for span in (1, 2, 3)]


def test_what_is_missing_is_named_with_what_trains_it() -> None:
    with pytest.raises(UsageError, match=r"span 3.*CLAIMS=spans scripts/claims.sh"):
        measure("arch=plain depth=20", *SPANS[:2])
    with pytest.raises(UsageError, match="at one depth"):
        measure("arch=plain depth=56", *SPANS)
    assert len(measure("arch=plain depth=20", *SPANS)) == 4


def test_runs_of_one_network_and_seed_or_of_other_conditions_are_refused() -> None:
    with pytest.raises(UsageError, match="several runs"):
        measure("arch=plain depth=20", "arch=plain depth=20 name=again", *SPANS)
    with pytest.raises(UsageError, match="differ in steps"):
        measure("arch=plain depth=20 steps=440", *SPANS)


def test_failures_count_at_chance_and_a_chosen_setting_may_differ() -> None:
    cases = [case_of(f"arch=plain lr={rate} seed={seed}") for rate in (1, 2) for seed in (90, 91)]
    cases += [case_of("arch=plain lr=1 seed=10", status=status) for status in ("failed",)]
    cases += [case_of("arch=plain lr=1 seed=11", status="diverged")]
    rows = ends(lambda case: case.arch, ["plain"], cases, iter, key="lr")
    assert [row[ERROR] for row in rows] == [1.0] * 4 + [CHANCE] * 2
    assert [row["value"] for row in rows] == [1, 1, 2, 2, 1, 1]


# --- from a folder, or an exported pair


ORDERS = {
    "full_preactivation": 0.0,
    "original": 3.0,
    "bn_after_addition": CHANCE,
    "relu_before_addition": 2.0,
    "relu_only_preactivation": 4.0,
}


@pytest.mark.process
def test_a_pair_gives_the_finding_of_its_directories(tmp_path: Path) -> None:
    folder = orders_in(tmp_path, ORDERS)
    write_run(folder.parent, "plain", 20, 0, name="second")
    alone = export_runs(folder, [], tmp_path / "out")
    places = [folder, alone, export_runs(folder.parent, [], tmp_path / "out") / folder.name]
    assert not list(tmp_path.glob("out/**/run.json"))
    for where in places:
        [one] = probing.of_runs("orders", where, [])
        found = probing.perform(one, "resexp probe orders")
        assert found["folder"] == str(where)
        assert found["verdict"] == "supported"
        assert "bn_after_addition-56 (5 of 5)" in found["sentence"]
        assert (where / "probe-orders.png").stat().st_size > 1000
    tables = [read((where / "probe-orders.csv").read_text()) for where in places]
    kept, *others = (json.loads((one / "probe-orders.json").read_text()) for one in places)
    untimed = {"seconds", "measured"}
    for table, again in zip(tables[1:], others, strict=True):
        assert table.equals(tables[0])
        assert {key for key in kept if kept[key] != again[key]} <= untimed


@pytest.mark.process
def test_a_diverged_and_a_failed_run_are_read_a_running_one_is_not(tmp_path: Path) -> None:
    for seed, status in enumerate(("ok", "collapsed", "diverged", "failed", "running")):
        write_run(tmp_path, "plain", 20, seed, status=status)
    [one] = probing.of_runs("orders", tmp_path, [])
    assert [case.settings.seed for case in one.cases] == [0, 1, 2, 3]
    [one] = probing.of_runs("gradients", tmp_path, [])
    assert [case.settings.seed for case in one.cases] == [0, 1]


@pytest.mark.parametrize("name", SWEEPS)
def test_settings_alone_are_no_sweep(name: str) -> None:
    with pytest.raises(UsageError, match=f"reads finished runs.*CLAIMS={name} "):
        probing.of_words(name, [], compose)


def test_all_recipes_of_a_sweep_are_told_and_the_first_of_others() -> None:
    cases = [case_of(f"arch=plain lr={rate}") for rate in (0.2, 0.02)]
    under = "data digits, recipe digits, 220 steps of 64, rate"
    assert probing.recipe(Needs.runs, cases) == f"{under} 0.02 or 0.2"
    assert probing.recipe(Needs.trained, cases) == f"{under} 0.2"
    blobs = case_of("experiment=blobs")
    assert probing.recipe(Needs.runs, [*cases, blobs]).count("; data blobs") == 1


def test_an_edited_checkout_of_any_run_is_told() -> None:
    clean, edited = (
        case_of("depth=20", environment={"torch": "2", "git_dirty": dirty})
        for dirty in (False, True)
    )
    assert probing.of_first([clean, clean])["git_dirty"] is False
    assert probing.of_first([clean, edited]) == {"torch": "2", "git_dirty": True}
