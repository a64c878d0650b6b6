"""What was fixed before, how often it was judged, each network at its best rate, and axes."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fake_results import write_run
from typer.testing import CliRunner

from resexp.analysis.results import find_runs
from resexp.analysis.verdict import axis, best, decide, history
from resexp.cli import app
from resexp.runs import preregistration
from resexp.settings import UsageError

SEEDS = range(5)
WORDS = ["depth=20,56", "arch=plain,residual", "seed=0,1,2,3,4"]


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, UsageError):
        raise result.exception
    return result.output


def write_sweep(root: Path, seeds: range = SEEDS, **more: Any) -> None:
    """Plain networks that degrade and residual ones that do not, carrying what is fixed there."""
    held = {"preregistration": preregistration.fingerprint(root / "digits")}
    for arch, deep in (("plain", 60.0), ("residual", 1.0)):
        for depth, error in ((20, 1.0), (56, deep)):
            for seed in seeds:
                values = {"clean_error": error + seed / 10, "test_error": error + 2}
                write_run(root, arch, depth, seed, **values, record=held, **more)


# --- preregistration


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the preregistration of 20 runs, which takes seconds."""
    folder = tmp_path_factory.mktemp("registered")
    invoke("preregister", f"results={folder}", *WORDS, "--hypothesis", "Plain-56 is worse.")
    return folder


@pytest.fixture
def fixed(registered: Path, tmp_path: Path) -> Path:
    """A results folder with a preregistration and, after it, its runs."""
    shutil.copytree(registered, tmp_path, dirs_exist_ok=True)
    write_sweep(tmp_path)
    return tmp_path


def test_runs_of_a_preregistration_were_fixed_before(fixed: Path) -> None:
    said = decide(find_runs(fixed)).fixed
    assert said.startswith(history.FIXED) and "all 20 runs" in said and "Plain-56 is worse." in said
    assert said in invoke("verdict", str(fixed))
    held = preregistration.read(fixed / "digits")
    assert held is not None and (held.shallow, held.deep, len(held.runs)) == (20, 56, 20)
    assert held.settings["lr"] == 0.02 and "depth" not in held.settings


def test_an_exported_pair_keeps_what_was_fixed(fixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    invoke("export", str(fixed), "--out", str(out))
    shutil.copy(fixed / "digits" / preregistration.NAME, out / "digits")
    assert decide(find_runs(out)).fixed == decide(find_runs(fixed)).fixed


@pytest.mark.parametrize("change", ["seed", "depths", "file", "settings", "none"])
def test_whatever_is_not_as_fixed_was_chosen_after(fixed: Path, change: str) -> None:
    path, shallow = fixed / "digits" / preregistration.NAME, None
    if change == "seed":
        write_sweep(fixed, range(5, 6))
    elif change == "depths":
        shallow = 32
        for arch in ("plain", "residual"):
            write_run(fixed, arch, shallow, 0)
    elif change == "file":
        path.write_text(path.read_text() + "# looks better so\n")
    elif change == "settings":
        held = preregistration.fingerprint(fixed / "digits")
        write_run(fixed, "plain", 20, 0, changes={"lr": 0.1}, record={"preregistration": held})
    else:
        path.unlink()
    decided = decide(find_runs(fixed), shallow=shallow, allow_mixed=True)
    assert decided.fixed.startswith(history.AFTER)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["depth=20,56"], "has begun"),
        (["depth=20", "name=other"], "two depths"),
        (["depth=20,56", "name=a,b"], "one experiment"),
        (["dept=8"], "depth"),
    ],
)
def test_what_was_begun_or_decides_nothing_cannot_be_preregistered(
    words: list[str], reason: str, tmp_path: Path
) -> None:
    write_run(tmp_path, "plain", 20, 0)
    with pytest.raises(UsageError, match=reason):
        invoke("preregister", f"results={tmp_path}", "arch=plain", *words)
    assert not list(tmp_path.rglob(preregistration.NAME))


@pytest.mark.process
def test_a_run_carries_the_hash_of_what_was_fixed(tmp_path: Path) -> None:
    """Of the depths that the verdict compares: 8 against 20, though 20 is the usual reference."""
    words = [f"results={tmp_path}", "arch=plain", "depth=8,20", "width=4", "steps=2"]
    invoke("preregister", *words)
    invoke("run", "-m", *words)
    fixed, hashed = preregistration.read(tmp_path / "digits"), preregistration.fingerprint
    assert fixed is not None and (fixed.shallow, fixed.deep) == (8, 20)
    found = find_runs(tmp_path)
    assert [run.record["preregistration"] for run in found] == [hashed(tmp_path / "digits")] * 2
    assert history.when_fixed(found, 8, 20).startswith(history.FIXED)
    with pytest.raises(UsageError, match="already"):  # it is not written over
        invoke("preregister", *words[:-1], "steps=3")


# --- seeds added after a verdict


def test_looks_cost_what_simulation_says() -> None:
    """The audit found 10 to 11 % for looks at 3, 5 and 10 seeds."""
    assert history.rate_of_looks((5,)) == pytest.approx(0.05, abs=0.004)
    assert 0.10 <= history.rate_of_looks((3, 5, 10)) <= 0.115
    assert history.rate_of_looks((5, 10)) < history.rate_of_looks((5, 7, 10))


def test_seeds_added_after_a_verdict_are_said(tmp_path: Path) -> None:
    write_sweep(tmp_path, range(3))
    invoke("verdict", str(tmp_path))  # preliminary: it decides nothing and costs nothing
    write_sweep(tmp_path, range(5))
    assert "added after" not in invoke("verdict", str(tmp_path))
    write_sweep(tmp_path, range(10))
    for _ in range(2):
        said = invoke("verdict", str(tmp_path))
        assert "added after a verdict by 5:" in said and "from 5% to 8%" in said
    assert "added after" not in invoke("verdict", str(tmp_path), "seed=0,1,2,3,4,5")


def test_a_number_of_seeds_that_was_fixed_costs_nothing(fixed: Path) -> None:
    invoke("verdict", str(fixed), "seed=0,1,2,3,4")
    (fixed / "digits" / history.LOOKS).write_text("question,seeds\nplain 56 against 20,4\n")
    assert "added after" not in invoke("verdict", str(fixed))


def test_a_folder_that_cannot_be_written_is_judged_all_the_same(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    (tmp_path / "digits" / history.LOOKS).mkdir()
    assert "degrades" in invoke("verdict", str(tmp_path))


# --- each network at its best rate

#: Clean training error by network and rate; chosen on seeds 90 and 91, judged on others.
RATES = {
    ("plain", 20): {0.01: 3.0, 0.05: 1.0},
    ("plain", 56): {0.01: 9.0, 0.05: 60.0},
    ("residual", 20): {0.01: 3.0, 0.05: 1.0},
    ("residual", 56): {0.01: 3.0, 0.05: 1.0},
}


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    for (arch, depth), errors in RATES.items():
        for lr, error in errors.items():
            for seed in (*SEEDS, 90, 91):
                # On the seeds that are judged, the value not chosen would look perfect.
                perfect = seed < 90 and error != min(errors.values())
                clean = 0.0 if perfect else error + seed % 7 / 10
                values = {"clean_error": clean, "clean_loss": clean / 40 + 1e-6}
                write_run(tmp_path, arch, depth, seed, extras={"lr": lr}, **values)
    return tmp_path


def test_each_network_is_judged_at_its_best_rate_on_other_seeds(rates: Path) -> None:
    decided = decide(find_runs(rates), best="lr", chosen_on=[90, 91])
    plain, residual = decided.arms
    assert (plain.series, residual.series) == ("plain", "residual")
    assert decided.seeds == [*SEEDS] and decided.exit_code == 0
    assert plain.change.train_error.mean == pytest.approx(8.0)  # 9 at 0.01 against 1 at 0.05
    assert residual.change.train_error.mean == pytest.approx(0.0)
    (said,) = [note for note in decided.notes if "best lr" in note]
    assert "plain-56 0.01 (the edge)" in said and "plain-20 0.05" in said


def test_the_best_values_are_listed_and_turned_into_commands(rates: Path) -> None:
    words = ["best", str(rates), "--chosen-on", "90,91"]
    listed = json.loads(invoke(*words, "--json"))
    chosen = {one["network"]: one["value"] for one in listed}
    assert chosen == {"plain-20": 0.05, "plain-56": 0.01, "residual-20": 0.05, "residual-56": 0.05}
    lines = [line.split() for line in invoke(*words, "--then", "10,11").splitlines()]
    trained = {}
    for line in lines:
        assert line[:3] == ["resexp", "run", "-m"] and line[-1] == "seed=10,11"
        value = dict(word.split("=") for word in line[3:])
        for arch, depth in product(value["arch"].split(","), value["depth"].split(",")):
            trained[f"{arch}-{depth}"] = float(value["lr"])
    assert trained == chosen and len(lines) == 3  # residual of both depths in one
    assert "plain-56" in invoke(*words)


def test_a_value_that_lacks_a_seed_is_not_chosen(rates: Path) -> None:
    for run in find_runs(rates, ["arch=plain", "depth=56", "lr=0.01", "seed=91"]):
        (run.path / "run.json").unlink()
    (plain,) = best.choose(find_runs(rates, ["arch=plain", "depth=56"]), "lr", [90, 91])
    assert plain.value == 0.05


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["best", "--setting", "lr"], "--chosen-on"),
        (["best", "--setting", "threads", "--chosen-on", "90"], "threads is no setting"),
        (["best", "--chosen-on", "77"], "not trained with seed=77"),
        (["best", "--chosen-on", "x"], "must be seeds"),
        (["verdict", "--best", "lr"], "go together"),
        (["verdict", "--best", "lr", "--chosen-on", "0,1,2,3,4,90,91"], "resexp best"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(
    rates: Path, words: list[str], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        invoke(words[0], str(rates), *words[1:])


# --- one setting's values side by side


@pytest.fixture
def momenta(tmp_path: Path) -> Path:
    """Without momentum plain networks degrade, with it they do not."""
    for momentum, deep in ((0.0, 60.0), (0.9, 1.0)):
        for arch in ("plain", "residual"):
            for depth, error in ((20, 1.0), (56, deep if arch == "plain" else 1.0)):
                for seed in SEEDS:
                    clean = error + (seed * depth) % 3 / 10
                    extras = {"momentum": momentum}
                    write_run(tmp_path, arch, depth, seed, clean_error=clean, extras=extras)
    return tmp_path


def test_each_value_of_an_axis_has_its_verdict(momenta: Path) -> None:
    found = axis.by_value(find_runs(momenta), "momentum")
    readings = {one.value: one.reading for one in found}
    assert readings == {"0.0": "degrades", "0.9": "does not degrade"}
    alone = decide(find_runs(momenta, ["momentum=0"]))
    assert found[0].verdict.arms[0].change == alone.arms[0].change
    said = invoke("verdict", str(momenta), "--axis", "momentum").splitlines()
    assert said[2].split()[0] == "0.9" and said[2].endswith("does not degrade")
    listed = json.loads(invoke("verdict", str(momenta), "--axis", "momentum", "--json"))
    assert [one["value"] for one in listed] == ["0.0", "0.9"]


def test_the_answers_of_an_axis_are_adjusted_over_its_values(momenta: Path) -> None:
    """Ten values with p of 0.01 to 0.05 each: by Holm none of them degrades."""
    for number in range(10):
        for depth, errors in ((20, [10, 10, 10, 10, 10]), (56, [10, 12, 14, 17, 20])):
            for seed, error in enumerate(errors):
                extras = {"momentum": number / 20 + 0.01}
                write_run(momenta, "plain", depth, seed, clean_error=error, extras=extras)
    found = axis.by_value(find_runs(momenta), "momentum")
    weak = [one for one in found if 4 < one.verdict.arms[0].change.train_error.mean < 5]
    assert len(weak) == 10 and {one.verdict.outcome for one in weak} == {"degrades"}
    assert {one.reading for one in weak} == {"inconclusive"}
    assert {one.reading for one in found} == {"degrades", "does not degrade", "inconclusive"}


def test_several_settings_are_one_axis_of_what_was_typed(momenta: Path) -> None:
    for depth in (20, 56):
        for seed in SEEDS:
            extras = {"momentum": 0.9, "init": "dirac"}
            write_run(momenta, "plain", depth, seed, clean_error=1.0, extras=extras)
            write_run(momenta, "plain", depth, seed, clean_error=depth, extras={})
    found = axis.by_value(find_runs(momenta), "momentum,init")
    assert {one.value: one.reading for one in found} == {
        "momentum=0.0": "degrades",
        "momentum=0.9": "does not degrade",
        "momentum=0.9, init=dirac": "does not degrade",
        "none": "degrades",
    }


@pytest.mark.parametrize(
    ("axis", "reason"), [("lr", "Train other values"), ("lr,optimiser", "optimiser")]
)
def test_an_axis_needs_two_values_of_settings(fixed: Path, axis: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        invoke("verdict", str(fixed), "--axis", axis)
