"""Finding and reading run directories."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fake_results import write_run

import resexp
from resexp.analysis.results import LABELS, Run, find_runs, load_results, require_runs
from resexp.settings import UsageError
from resexp.train.row import COLUMNS


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for depth in (20, 56):
        for seed in (0, 1):
            write_run(tmp_path, "residual", depth, seed)
            write_run(tmp_path, "plain", depth, seed)
    write_run(tmp_path, "plain", 20, 0, extras={"lr": 0.01})
    write_run(tmp_path, "residual", 20, 0, extras={"arch.shortcut": "B"}, status="collapsed")
    write_run(tmp_path, "plain", 20, 0, name="other", changes={"data.name": "fashion_mnist"})
    return tmp_path


def names(runs: list[Run]) -> list[str]:
    return [run.run for run in runs]


def test_runs_come_by_experiment_plain_first_shallow_to_deep(results: Path) -> None:
    def grid(arch: str) -> list[str]:
        return [f"{arch}-{depth}-s{seed}" for depth in (20, 56) for seed in (0, 1)]

    plain, residual = [*grid("plain"), "plain-20-s0,lr=0.01"], grid("residual")
    wanted = [*plain, *residual, "residual-20-s0,arch.shortcut=B", "plain-20-s0"]
    assert names(find_runs(results)) == wanted


def test_root_is_results_or_experiment_or_run(results: Path) -> None:
    assert len(find_runs(results)) == 11
    assert len(find_runs(results / "digits")) == 10
    assert names(find_runs(results / "digits" / "plain-56-s1")) == ["plain-56-s1"]
    assert find_runs(results / "nowhere") == []
    write_run(results / "digits", "plain", 20, 7, name="below")  # is not mixed into what is above
    assert len(find_runs(results)) == 11 and len(find_runs(results / "digits")) == 10
    assert [run.seed for run in find_runs(results / "digits" / "below")] == [7]


def test_a_run_knows_its_series_and_settings(results: Path) -> None:
    (run,) = find_runs(results, ["arch.shortcut=B"])
    assert run.series == "residual,arch.shortcut=B"
    assert (run.arch, run.depth, run.seed, run.status) == ("residual", 20, 0, "collapsed")
    assert run.finished and run.setting("arch.shortcut") == "B"
    assert (run.value("test_error"), run.value("nothing")) == (2.0, None)
    assert Run.read(run.path) == run


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["arch=plain"], 6),
        (["depth=56"], 4),
        (["depth=20,56"], 11),
        (["arch=plain", "depth=20", "seed=0"], 3),
        (["status=ok"], 10),
        (["status=collapsed,diverged"], 1),
        (["lr=0.01"], 1),
        (["lr=1e-2"], 1),
        (["lr=.01"], 1),
        (["data.name=digits"], 10),
        (["name=other"], 1),
        (["arch.shortcut=B"], 1),
        (["series=residual,arch.shortcut=B"], 1),
        (["series=plain,residual"], 9),
        (["milestones=[0.5,0.75]"], 11),
        (["deterministic=false"], 11),
        (["deterministic=0"], 0),
        (["data.size=null"], 11),
        (["environment.precision=fp32"], 11),
        (["depth=110"], 0),
    ],
)
def test_filters_compare_settings_and_record(results: Path, filters: list[str], count: int) -> None:
    assert len(find_runs(results, filters)) == count


def test_an_unknown_filter_names_the_nearest_setting(results: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown setting dpeth\. Did you mean depth\?"):
        find_runs(results, ["dpeth=56"])
    with pytest.raises(UsageError, match="is not a filter"):
        find_runs(results, ["plain"])


def test_no_runs_says_what_to_type(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resexp run -m depth=20,56 arch=plain,residual"):
        require_runs(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"no run in .* has depth=110"):
        require_runs(results, ["depth=110"])


RECORD = {"run": "x", "name": "x", "arch": "plain", "depth": 20, "seed": 0, "status": "ok"}
DATA = {"extras": {}, "settings": {}, "data": {"classes": 10}, "last": {}}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            '{"run": "x"}',
            "[" * 100_000,
            "\x00",
            '{"depth": true}',
            "\udcff",
        ),
        *(
            json.dumps(RECORD | DATA | {key: value})
            for key, value in (
                *(("depth", "20"), ("depth", True), ("extras", []), ("status", "fine")),
                *(("run", "a\x1b"), ("last", {"lr": "x"}), ("data", {})),
                ("settings", {"steps": 0}),
            )
        ),
    ],
)
def test_foreign_files_are_left_out_and_said(tmp_path: Path, text: str) -> None:
    write_run(tmp_path, "plain", 20, 0)
    (tmp_path / "digits" / "notes").mkdir()
    (tmp_path / "digits" / "folder" / "run.json").mkdir(parents=True)
    (tmp_path / "digits" / "notes" / "run.json").write_text(text, errors="surrogateescape")
    (tmp_path / "digits" / "README.md").write_text("not a folder")
    skipped: list[str] = []
    assert names(find_runs(tmp_path, skipped=skipped)) == ["plain-20-s0"]
    assert len(skipped) == 2 and "folder" in skipped[0] and "notes" in skipped[1]
    with pytest.raises(UsageError, match=r"no run\.json"):
        Run.read(tmp_path / "digits" / "notes")
    (tmp_path / "digits" / "notes" / "run.json").write_text(json.dumps(RECORD | DATA))
    assert len(find_runs(tmp_path)) == 2


def test_rows_are_those_of_the_file(tmp_path: Path) -> None:
    (run,) = find_runs(write_run(tmp_path, "plain", 20, 0, test_error=3.25))
    rows = run.rows()
    assert [row.step for row in rows] == list(range(22, 221, 22))
    assert [row.clean_train_loss is None for row in rows] == ([True] * 4 + [False]) * 2
    assert rows[-1].test_error == 3.25 and isinstance(rows[0].step, int)


def test_a_torn_last_line_is_left_out_only_while_unfinished(tmp_path: Path) -> None:
    for status, seed in (("running", 0), ("interrupted", 1), ("ok", 2)):
        path = write_run(tmp_path, "plain", 20, seed, status=status)
        with (path / "metrics.csv").open("a") as file:
            file.write("242,10.7,0.")
    running, interrupted, finished = find_runs(tmp_path)
    assert len(running.rows()) == len(interrupted.rows()) == 10
    with pytest.raises(UsageError, match=r"metrics\.csv, line 12 is torn"):
        finished.rows()


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        (1, "step,", "steps,"),
        (1, "test_error", "test_acc"),
        (3, "44,", "many,"),
        (3, "44,", "44,1,"),
        (3, ",0.02,", ",fast,"),
        (3, ",0.02,", ",,"),
        (3, "44,", "22,"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(
    tmp_path: Path, line: int, old: str, new: str
) -> None:
    path = write_run(tmp_path, "plain", 20, 0) / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("".join(lines))
    with pytest.raises(UsageError, match=rf"metrics\.csv, line {line} "):
        load_results(tmp_path)


def test_a_run_without_rows_is_empty_until_it_is_finished(tmp_path: Path) -> None:
    path = write_run(tmp_path, "plain", 20, 0, status="failed", rows=0)
    assert find_runs(tmp_path)[0].rows() == []
    (path / "metrics.csv").write_text("")
    assert find_runs(tmp_path)[0].rows() == []
    write_run(tmp_path, "plain", 20, 1, rows=0)
    with pytest.raises(UsageError, match="cannot be read"):
        find_runs(tmp_path)[1].rows()


def test_a_diverged_run_counts_at_chance(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0, status="diverged")
    write_run(tmp_path, "plain", 20, 1, status="running")
    diverged, running = find_runs(tmp_path)
    assert math.isnan(diverged.rows()[-1].test_error)
    assert diverged.value("test_error") is None
    assert diverged.endpoint("clean_train_loss") == pytest.approx(math.log(10))
    assert diverged.endpoint("test_error") == 90.0
    assert running.endpoint("test_error") is None


def test_load_results_is_tidy(results: Path) -> None:
    frame = resexp.load_results(results)  # under the package's own name
    assert list(frame.columns) == [*LABELS, *COLUMNS]
    assert len(frame) == 110
    assert frame["step"].dtype.kind == frame["depth"].dtype.kind == "i"
    assert frame["clean_train_loss"].isna().sum() == 88
    last = frame[frame["step"] == 220].groupby(["series", "depth"])["test_error"].mean()
    assert last["plain", 56] == 2.0
    assert set(load_results(results, ["depth=56"])["depth"]) == {56}
    write_run(results, "plain", 110, 0, status="running", rows=0)
    empty = load_results(str(results), ["depth=110"])
    assert empty.empty and list(empty.columns) == [*LABELS, *COLUMNS]
