"""Full disks, read-only folders, clocks that are set, links: a clear line, no number is touched."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import resource
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from resexp import config, data, files
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
        return row(*words)

    row = fit.Evaluations.row
    monkeypatch.setattr(fit.Evaluations, "row", slow)
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


# --- what is no file, or has no end


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


KINDS = [pipe, endless, sparse, Path.mkdir]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["run.json", "metrics.csv", ".lock", "error.txt"])
def test_readers_neither_wait_for_what_is_no_file_nor_read_without_end(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
    from fake_results import write_run
    from test_cli import call

    directory = write_run(tmp_path, "plain", 20, 0)
    (directory / name).unlink(missing_ok=True)
    kind(directory / name)
    folder = str(directory.parent)
    asked = ["list", folder], ["show", str(directory)], ["doctor", "--results", folder]
    for words in (*asked, ["export", folder, "--out", str(tmp_path / "pair")]):
        answer = call(*words)
        assert answer.code in (0, 1, 2), answer.err
        assert "HYDRA" not in answer.err


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("kind", [pipe, Path.mkdir])
@pytest.mark.parametrize("name", ["metrics.csv", "checkpoint.pt", ".lock", "error.txt"])
def test_a_run_is_not_written_where_one_of_its_files_is_none(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
    job = make_job(tmp_path)
    job.directory.mkdir(parents=True)
    kind(job.directory / name)
    with pytest.raises(UsageError, match=r"is a pipe, device or folder.*name="):
        local.perform(job)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["preregistration.yaml", "verdicts.csv", "runs.csv"])
def test_a_verdict_neither_waits_nor_writes_through_a_link(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
    from fake_results import write_run
    from test_cli import call

    for depth in (20, 56):
        for arch in ("plain", "residual"):
            folder = write_run(tmp_path, arch, depth, 0).parent
    kind(folder / name)
    answer = call("verdict", str(folder))
    assert answer.code == (2 if name.startswith("pre") else 4), answer.err
    assert "HYDRA" not in answer.err


@pytest.mark.parametrize("target", ["file", "pipe"])
def test_no_temporary_name_is_written_through(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("precious")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "report.html.tmp").symlink_to(target)
    records.write_atomically(tmp_path / "report.html", "page")
    assert (tmp_path / "file").read_text() == "precious"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert not (tmp_path / "report.html").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe", "report.html"]


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(ValueError, match="compressed"):
        checkpoint.read(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    "change", [{"step": -1}, {"step": "4"}, {"step": None}, {"seconds": math.nan}]
)
def test_a_checkpoint_of_no_step_is_set_aside(
    tmp_path: Path, few_digits: data.Images, change: dict[str, Any]
) -> None:
    from resexp import models

    settings = make_job(tmp_path).settings
    state = fit.begin(models.build(settings, 1, 10), settings)
    torch.save({"digest": "d", **state.state_dict(), **change}, tmp_path / "checkpoint.pt")
    (warning,) = checkpoint.load(tmp_path, state, "d")
    assert "set aside" in warning
    assert (state.step, state.seconds) == (0, 0.0)


# --- shapes that nobody writes


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 60 + "]" * 60, "1e400", "NaN", "-Infinity", "9" * 20, "", "\xff"]
)
def test_json_that_no_reader_could_go_on_with_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert files.read_json(tmp_path / "run.json") is None
    with pytest.raises(ValueError, match=r"nested|number|digits|Expecting"):
        files.parse_json(text)


#: Entries of a run.json, each with a value of another type.
ODD = {
    "depth": "20",
    "settings.depth": "20",
    "settings.milestones": ["half"],
    "settings.loggers": "wandb",
    "settings.arch.norm": 3,
    "settings.arch.options": "growth",
    "settings.lr": [0.1],
    "settings.steps": 10**30,
    "extras": {"lr": "\x1b[2J"},
    "environment": [],
    "environment.threads": {"a": 1},
    "parameters": "many",
    "seconds": {},
    "updated": 5,
    "data.shape": "8x8",
    "data.train": [1],
    "last.test_error": "none",
    "overrides": "depth=20",
    "command": {},
}


@pytest.mark.parametrize("key", ODD)
def test_a_record_of_other_types_is_left_out_with_a_word(tmp_path: Path, key: str) -> None:
    from fake_results import write_run
    from test_cli import call

    directory = write_run(tmp_path, "plain", 20, 0, record={"environment": {}})
    record = json.loads((directory / "run.json").read_text())
    *groups, name = key.split(".")
    place = record
    for group in groups:
        place = place[group]
    place[name] = ODD[key]
    (directory / "run.json").write_text(json.dumps(record))
    answer = call("list", str(directory.parent))
    assert answer.code == 0
    assert "is not a record of a run: left out" in answer.err
    answer = call("show", str(directory))
    assert answer.code == 2
    answer = call("doctor", "--results", str(directory.parent))
    assert answer.code == 1
    assert "damaged or edited" in answer.out


def test_a_run_without_what_later_versions_note_is_shown(tmp_path: Path) -> None:
    from fake_results import write_run
    from test_cli import call

    directory = write_run(tmp_path, "plain", 20, 0)
    record = json.loads((directory / "run.json").read_text())
    kept = {*("run", "name", "arch", "depth", "seed", "status", "extras", "settings", "last")}
    record = {key: record[key] for key in kept} | {"data": {"classes": 10}}
    (directory / "run.json").write_text(json.dumps(record))
    answer = call("show", str(directory))
    assert (answer.code, answer.err) == (0, "")
    assert "- parameters" in answer.out


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "a",
        "{" * 3000,
        "depth: 20",
        "&a [*a]",
        "\0",
        "!!python/name:os.system",
        "deep: [56]",
    ],
)
def test_a_preregistration_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    from resexp.runs import preregistration

    (tmp_path / preregistration.NAME).write_text(text)
    with pytest.raises(UsageError, match="is no preregistration"):
        preregistration.read(tmp_path)


# --- exported pairs


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    from fake_results import write_run

    from resexp.analysis.results import export_runs

    for seed in (0, 1):
        folder = write_run(tmp_path / "results", "plain", 20, seed).parent
    (exported,) = export_runs(folder, [], tmp_path / "pair")
    return exported


@pytest.mark.parametrize("name", ["../x", "..", ".", "/tmp/x", "a/b", "\x1b[2J", "x" * 300, ""])
def test_no_pair_is_unpacked_outside_its_folder(pair: Path, name: str) -> None:
    from test_cli import call

    for path in pair.iterdir():
        path.write_text(path.read_text().replace("plain-20-s0", name))
    before = sorted(pair.parent.rglob("*"))
    answer = call("export", str(pair), "--unpack")
    assert answer.code in (0, 1, 2)
    assert answer.err.count("\n") <= 1
    assert "HYDRA" not in answer.err
    made = [path for path in sorted(pair.parent.parent.rglob("*")) if "plain-20-s1" in path.parts]
    assert all(path.is_relative_to(pair) or "results" in path.parts for path in made)
    new = [path for path in pair.parent.rglob("*") if path not in before]
    assert all(path.is_relative_to(pair / "plain-20-s1") for path in new)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("runs.csv", lambda text: text.partition("\n")[2]),
        ("runs.csv", lambda text: "# [1]\n" + text.partition("\n")[2]),
        ("runs.csv", lambda text: "# " + "[" * 100_000 + "\n" + text.partition("\n")[2]),
        ("runs.csv", lambda text: text + text.splitlines(keepends=True)[-1]),
        ("runs.csv", lambda text: text.rstrip("\n") + ",1,2\n"),
        ("runs.csv", lambda text: text.replace("plain-20-s0", "p" * 200_000)),
        ("runs.csv", lambda text: text.replace("plain-20-s0", "p\0")),
        ("runs.csv", lambda text: ""),
        ("rows.csv", lambda text: ""),
        ("rows.csv", lambda text: "run\n"),
        ("rows.csv", lambda text: text + "another,1,2\n"),
        ("rows.csv", lambda text: text.rpartition("plain-20-s1")[0]),
    ],
)
def test_a_damaged_pair_is_refused_in_one_line(
    pair: Path, file: str, damage: Callable[[str], str]
) -> None:
    from test_cli import call

    (pair / file).write_text(damage((pair / file).read_text()))
    for words in (["table"], ["export", "--unpack"]):
        answer = call(words[0], str(pair), *words[1:])
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith("resexp: ")
        assert answer.err.count("\n") == 1


# --- what the machine refuses


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "locked"), "locked cannot be used (P"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "(No such file or direct"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, said: str
) -> None:
    from test_cli import call

    def refuse(*words: Any) -> None:
        raise error

    monkeypatch.setattr("resexp.commands.listing.runs", refuse)
    answer = call("list", str(tmp_path))
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert said in answer.err
    assert "HYDRA" not in answer.err


@pytest.mark.process
def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "resexp", "list", "archs"],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = "resexp: the answer could not be written (No space left on device).\n"
    assert (ended.returncode, ended.stderr) == (1, said)
