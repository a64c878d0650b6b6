"""resexp export: a sweep as two files that every reading command takes in place of a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_results import write_run
from test_cli import call

from resexp.analysis import compare, export, results, table, verdict
from resexp.commands import listing
from resexp.config import compose
from resexp.runs.records import Claim, look
from resexp.settings import UsageError

SEEDS = range(5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs with everything that is awkward to spell: extras, commas, null, texts like numbers."""
    for seed in SEEDS:
        for depth in (20, 56):
            write_run(tmp_path, "plain", depth, seed, clean_error=depth, clean_loss=depth / 40)
            write_run(tmp_path, "residual", depth, seed, extras={"arch.shortcut": "B"})
    odd = {"command": "resexp run 'milestones=[0.5,0.75]'", "overrides": ["a=1,2", "#"]}
    odd["environment"] = {"device": "cpu", "git_commit": "5e10", "note": "", "load": None}
    write_run(tmp_path, "plain", 110, 0, status="diverged", record=odd)
    write_run(tmp_path, "plain", 110, 1, status="failed", rows=0)
    return tmp_path / "digits"


@pytest.fixture
def pair(folder: Path, tmp_path: Path) -> Path:
    written = results.export_runs(folder, [], tmp_path / "out")
    assert sorted(path.name for path in written.iterdir()) == [export.ROWS, export.RUNS]
    return written


def test_records_and_rows_come_back_as_they_were(folder: Path, pair: Path) -> None:
    before, after = results.find_runs(folder), results.find_runs(pair)
    assert [run.record for run in after] == [run.record for run in before]
    assert [run.lines() for run in after] == [run.lines() for run in before]
    assert {run.run for run in after if not run.lines()} == {"plain-110-s1"}


def test_unpacked_runs_are_those_that_were_exported_and_not_trained_again(
    folder: Path, pair: Path
) -> None:
    before = {run.run: run for run in results.find_runs(folder)}
    for run in export.unpack(pair):
        again = results.Run.read(run)
        assert again.record == before[run.name].record
        assert again.lines() == before.pop(run.name).lines()
    assert not before and export.unpack(pair) == []
    job = compose([f"results={pair.parent}", f"name={pair.name}", "depth=20", "arch=plain"])
    assert look(job) is Claim.done
    shutil.rmtree(job.directory)
    assert look(job) is Claim.new


def test_a_pair_whose_run_would_lie_elsewhere_is_refused(pair: Path) -> None:
    for path in pair.iterdir():
        path.write_text(path.read_text().replace("plain-20-s0", "../plain-20-s0"))
    with pytest.raises(UsageError, match="Export its runs again"):
        export.unpack(pair)


def test_every_reader_says_the_same(folder: Path, pair: Path) -> None:
    said = []
    for root in (folder, pair):
        runs = results.find_runs(root)
        twins = [[run for run in runs if run.arch == arch] for arch in ("plain", "residual")]
        said.append(
            [
                table.render(table.rows(runs), "csv"),
                verdict.text(verdict.decide(runs, allow_mixed=True)),
                compare.text(compare.compare(*twins, ("a", "b"))),
                listing.text(listing.runs(root, ["arch=plain", "depth=20,56"])),
                results.load_results(root, ["seed=0"]).to_csv(),
            ]
        )
    assert said[0] == said[1]


def test_a_pair_or_one_run_of_it_can_be_named(pair: Path) -> None:
    [run] = results.find_runs(pair / "plain-56-s3")
    assert (run.depth, run.seed) == (56, 3)
    assert listing.find(str(pair / "plain-56-s3"))["run"] == "plain-56-s3"
    assert results.find_runs(pair / "plain-57-s3") == []
    for root in (pair, pair.parent, pair / export.RUNS):
        assert len(results.find_runs(root)) == 22
    write_run(pair.parent, "plain", 20, 0, clean_error=77.0)  # a directory comes first
    runs = results.find_runs(pair)
    assert len(runs) == 22
    assert [run.endpoint("clean_train_error") for run in runs if run.run == "plain-20-s0"] == [77.0]


def test_pandas_reads_both_files_and_what_all_runs_share_stands_once(pair: Path) -> None:
    runs = pd.read_csv(pair / export.RUNS, skiprows=1)
    rows = pd.read_csv(pair / export.ROWS)
    assert len(runs) == 22 and runs["depth"].nunique() == 3
    assert set(rows["run"]) < set(runs["run"])
    assert rows[rows["run"] == "plain-56-s0"].iloc[-1]["clean_train_error"] == 56
    shared = json.loads((pair / export.RUNS).read_text().partition("\n")[0].removeprefix("#"))
    assert shared["settings.lr"] == 0.02
    assert [*runs][:5] == ["run", "arch", "depth", "seed", "status"]
    assert not {*runs} & set(shared)


@pytest.mark.parametrize("text", ["", "1", "true", "null", "5e10", '"', "a,b\nc", "NaN", "-"])
def test_a_text_stays_a_text(text: str) -> None:
    assert export.value(export.cell(text)) == text


@pytest.mark.parametrize("file", [export.RUNS, export.ROWS])
@pytest.mark.parametrize("damage", [b"", b"# {}\nrun\n\xff", b"nonsense", b"# [1]\nrun\na\n"])
def test_a_damaged_pair_is_refused_by_name(pair: Path, file: str, damage: bytes) -> None:
    (pair / file).write_bytes(damage)
    with pytest.raises(UsageError, match=str(pair)):
        results.find_runs(pair)


def test_a_pair_that_lost_its_last_rows_is_refused(pair: Path) -> None:
    lines = (pair / export.ROWS).read_text().splitlines(keepends=True)
    (pair / export.ROWS).write_text("".join(lines[:-1]))
    with pytest.raises(UsageError, match="lacks rows of"):
        results.find_runs(pair)


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="called a"):
        export.write([("a", {}, []), ("a", {}, [])], tmp_path / "out")


# --- several experiments in one pair


@pytest.fixture
def tree(folder: Path) -> Path:
    """Three experiments with runs of the same names, one of which has the columns of masks."""
    root = folder.parent
    for seed in SEEDS:
        for depth in (20, 56):
            write_run(root, "plain", depth, seed, name="again", clean_error=depth / 2)
            write_run(root, "residual", depth, seed, name="again")
    path = write_run(root, "plain", 20, 0, name="masks", extras={"lr": 0.1}) / "metrics.csv"
    header, *rows = path.read_text().splitlines()
    wide = [f"{header},clean_train_iou,test_iou", *(f"{row},70,80" for row in rows)]
    path.write_text("\n".join(wide) + "\n")
    return root


@pytest.fixture
def whole(tree: Path, tmp_path: Path) -> Path:
    return results.export_runs(tree, [], tmp_path / "out")


def files(root: Path) -> dict[Path, Any]:
    """What every file of its run directories holds."""
    return {
        path.relative_to(root): json.loads(text) if path.suffix == ".json" else text
        for path in root.glob("*/*-s*/*")
        for text in [path.read_text()]
    }


def test_a_pair_of_several_experiments_is_read_as_their_tree(tree: Path, whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [export.ROWS, export.RUNS]
    found = []
    for part in ("", "again", "digits", "digits/plain-56-s3"):
        before, after = results.find_runs(tree / part), results.find_runs(whole / part)
        assert [run.path.relative_to(whole) for run in after] == [
            run.path.relative_to(tree) for run in before
        ]
        assert [run.record for run in after] == [run.record for run in before]
        assert [run.lines() for run in after] == [run.lines() for run in before]
        assert [run.series for run in after] == [run.series for run in before]
        assert table.rows(after) == table.rows(before)
        found.append(len(after))
    assert found == [43, 20, 22, 1]
    assert len(results.find_runs(whole / export.RUNS)) == 43
    assert results.find_runs(whole / "elsewhere") == []


def test_it_is_unpacked_as_the_tree_was(tree: Path, whole: Path) -> None:
    assert len(export.unpack(whole)) == 43
    assert files(whole) == files(tree)
    assert export.unpack(whole) == []


def test_one_of_its_experiments_is_judged_and_chosen_by_name_or_folder(
    tree: Path, whole: Path
) -> None:
    said = [
        verdict.text(verdict.decide(results.find_runs(root, filters)))
        for root, filters in (
            (tree / "again", []),
            (whole / "again", []),
            (whole, ["name=again"]),
        )
    ]
    assert "degrades" in said[0] and len(set(said)) == 1
    with pytest.raises(UsageError, match=rf"Name one: resexp verdict {whole / 'again'}"):
        verdict.decide(results.find_runs(whole))
    answer = call("verdict", str(whole / "again"), "--json")
    assert answer.code == 0 and json.loads(answer.out)["outcome"] == "degrades"
    (whole / "again").mkdir()  # as of a figure: still nothing grows there
    assert call("verdict", str(whole / "again")).code == 0
    assert [*(whole / "again").iterdir()] == []
    one = results.export_runs(whole, ["name=again"], whole / "alone")
    assert one == whole / "alone" / "again"
    assert not any("/" in name for name, *_ in export.read(one))


def test_what_is_trained_afresh_takes_the_place_of_its_own_part_alone(whole: Path) -> None:
    before = {name: lines for name, _, lines in export.read(whole)}
    write_run(whole, "plain", 20, 0, name="again", clean_error=77.0)
    write_run(whole, "plain", 20, 9, name="new")
    assert results.export_runs(whole, [], whole.parent) == whole
    after = {name: lines for name, _, lines in export.read(whole)}
    assert after.keys() - before.keys() == {"new/plain-20-s9"}
    assert {name for name in before if after[name] != before[name]} == {"again/plain-20-s0"}
