"""runs.records and the identity of a run: what a run directory says, and who may write one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_jobs import RECORD, job_in, row_of

from resexp.runs import provenance, records
from resexp.runs.records import FINISHED, UNFINISHED, Claim
from resexp.settings import BnEval, Job, UsageError, as_dict
from resexp.train.row import COLUMNS, TIME_COLUMNS

HEADER = (
    "step,epoch,lr,train_loss,train_error,clean_train_loss,clean_train_error,test_loss,test_error,"
    "images_per_second,seconds"
)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """UsageError, in one line, with all of these words in it."""
    with pytest.raises(UsageError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def write_status(job: Job, status: str, **changes: Any) -> None:
    """A run.json with the job's own settings, or some of them changed."""
    job.directory.mkdir(parents=True, exist_ok=True)
    settings = as_dict(job.settings) | changes
    records.write_record(job.directory, RECORD | {"settings": settings, "status": status})


# --- metrics.csv


def test_the_columns_are_those_of_the_contract(tmp_path: Path) -> None:
    records.append_row(tmp_path, row_of(22))
    text = (tmp_path / "metrics.csv").read_text()
    assert text == f"{HEADER}\n22,0.98,0.05,2.25,87.5,,,2.5,90,1234.5,0.25\n"
    assert TIME_COLUMNS == ("images_per_second", "seconds")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (12_345_678, "12345678"),  # a step keeps all its digits
        (0.0, "0"),
        (1 / 3, "0.3333333"),
        (1.25e-9, "1.25e-09"),
        (12_345_678.9, "1.234568e+07"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_a_cell_is_spelled(value: float | None, text: str) -> None:
    assert records.spell(value) == text


numbers = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.process
@settings(deadline=None)
@given(
    st.integers(1, 10**9),
    st.lists(numbers, min_size=8, max_size=8),
    st.tuples(st.none() | numbers, st.none() | numbers),
)
def test_a_row_reads_back_to_seven_digits(
    step: int, values: list[float], clean: tuple[float | None, float | None]
) -> None:
    names = [key for key in COLUMNS if key != "step" and not key.startswith("clean_")]
    cells = dict(zip(names, values, strict=True)) | {"step": step}
    cells |= {"clean_train_loss": clean[0], "clean_train_error": clean[1]}
    line = ",".join(records.spell(cells[key]) for key in COLUMNS) + "\n"
    again = records.parse_row(line)
    assert again.step == step
    for key, value in cells.items():
        close = None if value is None else pytest.approx(value, 1e-6, nan_ok=True)
        assert getattr(again, key) == close


@pytest.mark.parametrize(
    "line",
    ["", "22\n", "22,1,1,1,1,1,1,1,1,1\n", "22,1,,1,1,1,1,1,1,1,1\n", "22,a,1,1,1,1,1,1,1,1,1\n"],
)
def test_a_line_that_is_no_row_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        records.parse_row(line)


def test_rows_after_the_step_are_cut(tmp_path: Path) -> None:
    for step in (22, 44, 66):
        records.append_row(tmp_path, row_of(step))
    assert [row.step for row in records.keep_rows(tmp_path, 44)] == [22, 44]
    records.append_row(tmp_path, row_of(50))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "22", "44", "50"]


def test_a_torn_last_line_is_cut_wherever_it_is_torn(tmp_path: Path) -> None:
    records.append_row(tmp_path, row_of(22))
    whole = (tmp_path / "metrics.csv").read_text()
    records.append_row(tmp_path, row_of(44))
    both = (tmp_path / "metrics.csv").read_text()
    for length in range(len(whole), len(both)):
        (tmp_path / "metrics.csv").write_text(both[:length])
        assert [row.step for row in records.keep_rows(tmp_path, 44)] == [22]
        assert (tmp_path / "metrics.csv").read_text() == whole


def test_a_file_without_a_row_to_keep_is_removed_so_that_the_header_comes_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.csv"
    for text in ("", HEADER[:9], HEADER, f"{HEADER}\n", f"{HEADER}\n22,0.98"):
        path.write_text(text)
        assert records.keep_rows(tmp_path, 10**6) == []
        assert not path.exists()
    records.append_row(tmp_path, row_of(22))
    assert records.keep_rows(tmp_path, 21) == []
    assert not path.exists()
    assert records.keep_rows(tmp_path, 21) == []


def test_a_record_holds_a_row_as_the_csv_has_it() -> None:
    written = records.as_written(row_of(22, lr=0.00020000000000000004))
    assert written["lr"] == 0.0002
    assert written["step"] == 22
    assert isinstance(written["step"], int)
    assert "clean_train_error" not in written


# --- run.json


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    record = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": "nan", "e": True, "f": 3}
    records.write_record(tmp_path, record)

    def not_json(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "run.json").read_text()
    assert json.loads(text, parse_constant=not_json) == {
        "a": None,
        "b": [1.5, None, {"c": None}],
        "d": "nan",
        "e": True,
        "f": 3,
    }
    assert record["a"] is not None  # the caller's record stays as it was


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "run.json"
    records.write_atomically(path, "old\n")
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError):
        records.write_atomically(path, "new and longer\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = os.replace

    def rename(source: Path, target: Path) -> None:
        calls.append(f"rename {source.read_text()} to {target.name}")
        real(source, target)

    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync"))
    monkeypatch.setattr(os, "replace", rename)
    records.write_atomically(tmp_path / "run.json", "new")
    assert calls == ["fsync", "rename new to run.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_first_line_of_an_error_is_short() -> None:
    assert records.first_line(RuntimeError("out of memory\nTried to allocate")) == "out of memory"
    assert records.first_line(KeyError()) == "KeyError"
    assert len(records.first_line(ValueError("x" * 1000))) == 200


# --- what a directory says


def test_no_directory_or_an_empty_one_is_new(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    assert records.look(job) is Claim.new
    assert not job.directory.exists()
    job.directory.mkdir(parents=True)
    assert records.look(job) is Claim.new
    (job.directory / ".lock").touch()
    assert records.look(job) is Claim.new


def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    job.directory.mkdir(parents=True)
    (job.directory / "thesis.tex").write_text("all of it")
    with refused("thesis.tex", "not a run", "name=", "overwrite=true"):
        records.look(job)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"status": "ok"}', '{"status": 1, "settings": {}}', "\udcff"]
)
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    job = job_in(tmp_path)
    job.directory.mkdir(parents=True)
    (job.directory / "run.json").write_text(text, errors="surrogateescape")
    with refused(str(job.directory / "run.json"), "overwrite=true"):
        records.look(job)


@pytest.mark.parametrize("status", [*FINISHED, *UNFINISHED])
def test_the_status_says_whether_to_go_on(tmp_path: Path, status: str) -> None:
    write_status(job_in(tmp_path), status)
    claim = Claim.done if status in ("ok", "collapsed", "diverged") else Claim.resume
    assert records.look(job_in(tmp_path)) is claim
    assert records.look(job_in(tmp_path, overwrite=True)) is Claim.new


@pytest.mark.parametrize("status", ["ok", "running"])
def test_other_settings_are_refused_by_their_key(tmp_path: Path, status: str) -> None:
    job = job_in(tmp_path)
    write_status(job, status, lr=0.2)
    with refused("lr=0.2,", "lr=0.02.", "name=", "overwrite=true"):
        records.look(job)
    write_status(job, status, arch={"merge": "plain"})
    with refused("arch.merge=plain,", "arch.merge=residual."):
        records.look(job)
    assert records.look(job_in(tmp_path, overwrite=True)) is Claim.new


def test_an_older_record_lacks_only_what_was_then_at_its_default(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    settings = as_dict(job.settings)
    del settings["bn_eval"], settings["data"]["split"]
    job.directory.mkdir(parents=True)
    records.write_record(job.directory, RECORD | {"settings": settings, "status": "ok"})
    assert records.look(job) is Claim.done
    with refused("bn_eval=ema", "bn_eval=recalibrated"):
        records.look(job_in(tmp_path, bn_eval=BnEval.recalibrated))


# --- who may write


def test_a_directory_has_one_writer_at_a_time(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    with records.claim(job) as first:
        assert first is Claim.new
        with records.claim(job) as second:
            assert second is Claim.busy
    with records.claim(job) as third:
        assert third is Claim.new


def test_overwriting_removes_a_runs_files_and_no_others(tmp_path: Path) -> None:
    job = job_in(tmp_path, overwrite=True)
    write_status(job, "ok", lr=0.2)
    ours = ["metrics.csv", "config.yaml", "error.txt", "checkpoint.pt", "checkpoint.before.pt"]
    ours += ["checkpoint.pt.bad", "checkpoint.pt.tmp"]
    for name in [*ours, "notes.txt", "curves.png"]:
        (job.directory / name).write_text("x")
    with records.claim(job) as state:
        assert state is Claim.new
    left = {path.name for path in job.directory.iterdir()} - {".lock"}
    assert left == {"notes.txt", "curves.png"}


def test_a_refused_directory_is_let_go(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    write_status(job, "ok", lr=0.2)
    for _ in range(2):
        with refused("lr=0.2"), records.claim(job):
            raise AssertionError("claimed")
    write_status(job, "ok")
    with records.claim(job) as state:
        assert state is Claim.done


def test_code_without_its_history_may_be_told_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "resexp/runs/provenance.py"))
    asked = provenance.checkout.__wrapped__
    monkeypatch.delenv("RESEXP_COMMIT", raising=False)
    assert asked() == (None, None)
    monkeypatch.setenv("RESEXP_COMMIT", "0123abc")
    assert asked() == ("0123abc", None)
