"""Full disks, read-only folders, clocks that are set, links: a clear line, no number is touched."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from resexp import config, data
from resexp.launch import local
from resexp.runs import checkpoint, records
from resexp.runs import run as running
from resexp.runs.records import Claim
from resexp.settings import Arch, Job, Merge, Settings, UsageError
from resexp.train import fit
from resexp.train.row import Row


def make_job(results: Path, **settings: Any) -> Job:
    usual: dict[str, Any] = {
        "arch": Arch(merge=Merge.residual),
        "depth": 8,
        "width": 4,
        "steps": 6,
        "batch_size": 8,
        "eval_every": 2,
        "checkpoint_every": 0.0,
        "threads": 1,
        "results": str(results),
    }
    one = Settings(**usual | settings)
    return Job(settings=one, arch="residual", extras={}, overrides=["depth=8"], config="depth: 8\n")


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch, few_digits: data.Images) -> None:
    monkeypatch.setattr(running, "load", lambda settings, device: few_digits)


def cells(job: Job) -> list[list[str]]:
    lines = (job.directory / records.METRICS).read_text().splitlines()
    return [line.split(",")[:-2] for line in lines]


# --- a full disk


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes: a write that would fails part of the way, as on a full
    disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def row_of(step: int) -> Row:
    return Row(
        step=step,
        epoch=0.5,
        lr=0.02,
        train_loss=2.25,
        train_error=87.5,
        clean_train_loss=None,
        clean_train_error=None,
        test_loss=2.5,
        test_error=90.0,
        images_per_second=1234.5,
        seconds=0.25,
    )


@pytest.mark.parametrize("room", range(0, 40, 3))
def test_a_row_that_does_not_fit_leaves_the_rows_before_it_whole(tmp_path: Path, room: int) -> None:
    records.append_row(tmp_path, row_of(22))
    before = (tmp_path / "metrics.csv").read_bytes()
    with (
        pytest.raises(records.Unwritten, match=r"metrics\.csv could not be written .*make room"),
        files_up_to(len(before) + room),
    ):
        records.append_row(tmp_path, row_of(44))
    assert (tmp_path / "metrics.csv").read_bytes() == before
    records.append_row(tmp_path, row_of(44))
    assert [row.step for row in records.keep_rows(tmp_path, 44)] == [22, 44]


def test_a_first_row_that_does_not_fit_leaves_the_header_to_the_next(tmp_path: Path) -> None:
    with pytest.raises(records.Unwritten), files_up_to(30):
        records.append_row(tmp_path, row_of(22))
    records.append_row(tmp_path, row_of(22))
    assert [row.step for row in records.keep_rows(tmp_path, 22)] == [22]


@pytest.mark.process
@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("part", ["row", "checkpoint", "record"])
def test_a_full_disk_fails_in_one_line_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, part: str
) -> None:
    whole = make_job(tmp_path / "whole")
    local.perform(whole)
    size = {"row": 300, "checkpoint": 20_000, "record": 1000}[part]
    job = make_job(tmp_path / "full")
    started = False

    def watch(record: dict[str, Any], step: int, row: Row | None) -> None:
        nonlocal started
        if step == 3 and not started:
            started = True
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(records.Unwritten, match="could not be written") as caught:
            local.perform(job, watch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in records.first_line(caught.value)
    assert str(job.directory) in records.first_line(caught.value)
    assert not [path for path in job.directory.iterdir() if path.name == "checkpoint.pt.tmp"]
    assert local.perform(job).claim is Claim.resume
    assert cells(job) == cells(whole)
    assert records.read_record(job.directory)["status"] in records.FINISHED


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    tmp_path: Path, few_digits: data.Images
) -> None:
    settings = make_job(tmp_path).settings
    from resexp import models

    state = fit.begin(models.build(settings, 1, 10), settings)
    checkpoint.save(tmp_path, state, "digest")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    state.step = 5
    with (
        pytest.raises(records.Unwritten, match=r"checkpoint\.pt could not be written"),
        files_up_to(10_000),
    ):
        checkpoint.save(tmp_path, state, "digest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.process
def test_a_figure_that_does_not_fit_leaves_no_half_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_results import write_run

    from resexp.cli import main

    for arch in ("plain", "residual"):
        for depth in (20, 56):
            write_run(tmp_path, arch, depth, 0)
    monkeypatch.setattr(sys, "argv", ["resexp", "plot", str(tmp_path)])
    with pytest.raises(SystemExit) as stop, files_up_to(5000):
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("resexp: ")
    assert "curves.png could not be written" in error
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if "curves" in path.name]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system mounts no tmpfs")
    words = ["depth=8", "width=8", "steps=4", "batch_size=8", "eval_every=2", "checkpoint_every=0"]
    command = [sys.executable, "-m", "resexp", "run", *words, "threads=1", f"results={disk}/r"]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    try:
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 1
        assert "could not be written (No space left on device)" in ended.stdout
        assert "Traceback" not in ended.stdout + ended.stderr
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert again.returncode == 0
        (metrics,) = disk.rglob("metrics.csv")
        assert [line.split(",")[0] for line in metrics.read_text().splitlines()[1:]] == ["2", "4"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- a folder that takes no files


def test_a_read_only_results_folder_is_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    job = make_job(tmp_path / "results")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(UsageError, match=r"cannot be written \(Read-only file system\).*results="),
        records.claim(job),
    ):
        raise AssertionError("claimed")


# --- clocks


@pytest.mark.usefixtures("few_images")
def test_a_clock_that_goes_backwards_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.perform(make_job(tmp_path / "usual"))
    now = [2e9]

    def backwards() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(running, "now", lambda: f"{backwards():.0f}")
    job = make_job(tmp_path / "set", checkpoint_every=3600.0)
    saved: list[int] = []
    monkeypatch.setattr(running, "save", lambda job, state, record: saved.append(state.step))
    local.perform(job)
    assert saved == []  # an hour went by on the wall's clock alone
    assert cells(job) == cells(make_job(tmp_path / "usual"))
    assert float((job.directory / "metrics.csv").read_text().split(",")[-1]) >= 0


def test_a_checkpoint_comes_before_an_evaluation_that_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of 1 s, evaluations of 50 s every 10 steps, a checkpoint every 60 s."""
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    timer, saved, lost = checkpoint.Timer(60.0), [], [0.0]
    for step in range(1, 41):
        clock[0] += 51.0 if step % 10 == 0 else 1.0
        lost.append(clock[0] - timer.saved)
        if timer.due(after_row=step % 10 == 0, before_row=(step + 1) % 10 == 0):
            saved.append(step)
            timer.restart()
    # 10 is the first evaluation: nobody knew how long it takes.
    assert saved == [10, 19, 29, 39]
    assert max(lost[11:]) <= 60.0 + 1.0


@pytest.mark.usefixtures("few_images")
def test_a_slow_evaluation_does_not_put_checkpoints_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, steps = [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(running, "save", lambda job, state, record: steps.append(state.step))

    def slow(*words: Any) -> Row:
        clock[0] += 100.0
        return evaluation(*words)

    evaluation = fit.evaluation
    monkeypatch.setattr(fit, "evaluation", slow)
    local.perform(make_job(tmp_path, checkpoint_every=60.0))
    assert steps == [2, 3, 4, 5]  # after each evaluation, and once it is known, before each


# --- links and names


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("what", ["experiment", "run", "metrics.csv", "run.json.tmp", ".lock"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_written_through_a_link(tmp_path: Path, what: str, overwrite: bool) -> None:
    job = make_job(tmp_path / "results", overwrite=overwrite)
    outside = tmp_path / "outside"
    if what in ("experiment", "run"):
        outside.mkdir()
        link = job.directory if what == "run" else job.directory.parent
        link.parent.mkdir(parents=True)
        link.symlink_to(outside)
    else:
        outside.write_text("precious\n")
        job.directory.mkdir(parents=True)
        (job.directory / what).symlink_to(outside)
    with pytest.raises(UsageError, match="is a link"):
        local.perform(job)
    if outside.is_dir():
        assert list(outside.iterdir()) == []
    else:
        assert outside.read_text() == "precious\n"


@pytest.mark.usefixtures("few_images")
def test_a_results_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "scratch")
    job = make_job(tmp_path / "results")
    assert local.perform(job).record["status"] in ("ok", "collapsed")


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "/tmp/x", "a/b", ".hidden", "x\n", "a\\b", "x\0", "", "~", "-m"]
)
def test_a_name_cannot_leave_the_results_folder(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a folder"):
        Settings(name=name)


@pytest.mark.parametrize("word", ["name=../x", "name=/tmp/x", "name='..'", "data.name=../../x"])
def test_no_override_names_a_place_outside(word: str, tmp_path: Path) -> None:
    try:
        job = config.compose([f"results={tmp_path}", "depth=8", word])
    except UsageError:
        return
    assert job.directory.resolve().parent.parent == tmp_path.resolve()
    assert "/" not in job.run


# --- nothing that is read is executed


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("executed",))


@pytest.mark.usefixtures("few_images")
def test_a_malicious_checkpoint_is_set_aside_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(tmp_path / "results")

    class Stopped(BaseException):
        pass

    def stop(record: dict[str, Any], step: int, row: Row | None) -> None:
        if step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        local.perform(job, stop)
    torch.save({"digest": Evil(), "network": Evil()}, job.directory / "checkpoint.pt")
    (job.directory / "checkpoint.before.pt").write_bytes(pickle.dumps(Evil()))
    outcome = local.perform(job)
    assert not (tmp_path / "executed").exists()
    assert len([line for line in outcome.warnings if "cannot be used" in line]) == 2
    assert [row[0] for row in cells(job)[1:]] == ["2", "4", "6"]


TAGS = '!!python/object/apply:os.mkdir ["executed"]\n'


@pytest.mark.usefixtures("few_images")
def test_python_tags_in_a_run_directory_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from resexp.analysis.results import find_runs
    from resexp.commands.doctor_results import inspect

    monkeypatch.chdir(tmp_path)
    job = make_job(tmp_path / "results")
    local.perform(job)
    (job.directory / "config.yaml").write_text(TAGS)
    assert len(find_runs(tmp_path / "results")) == 1
    assert local.perform(job).claim is Claim.done
    (job.directory / "run.json").write_text(TAGS)
    assert find_runs(tmp_path / "results") == []
    with pytest.raises(UsageError, match="is not a record"):
        local.perform(job)
    assert [one.level for one in inspect(tmp_path / "results")] == ["fail"]
    assert not (tmp_path / "executed").exists()


SCRIPT = "<script>alert(1)</script>"


def write_scripts(root: Path) -> None:
    """Runs whose every text means something to HTML, Markdown and LaTeX."""
    from fake_results import write_run

    arch = f"res_{SCRIPT}|&%$\\frac$#{{}}~^\\input{{x}}"
    for depth in (20, 56):
        write_run(root, "plain", depth, 0)
        directory = write_run(root, "residual", depth, 0)
        record = json.loads((directory / "run.json").read_text())
        record |= {"arch": arch, "run": f"{arch}-{depth}-s0", "error": SCRIPT}
        record |= {"command": f"resexp run {SCRIPT}"}
        record["data"]["name"] = SCRIPT
        record["environment"] |= {"device_name": SCRIPT, "platform": SCRIPT}
        (directory / "run.json").write_text(json.dumps(record))


@pytest.mark.process
def test_a_page_and_a_table_show_a_script_as_text(tmp_path: Path) -> None:
    from resexp.analysis.figures.plot import plot
    from resexp.analysis.report.page import write_report
    from resexp.analysis.results import require_runs
    from resexp.analysis.table import render, rows

    root = tmp_path / "results"
    write_scripts(root)
    page = write_report(root).read_text()
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    latex = render(rows(require_runs(root)), "latex")
    assert "\\input{x}" not in latex
    assert "\\textbackslash" in latex
    markdown = render(rows(require_runs(root)), "markdown")
    assert SCRIPT not in markdown
    for path in plot(root, form="svg", which=["curves", "depth"]):
        assert SCRIPT not in path.read_text()
