"""Full disks, read-only folders, clocks that are set, links: a clear line, no number is touched."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fake_results import write_grid, write_run
from small_jobs import at, cells, files_up_to, job_in, killed, resexp, row_of
from test_cli import call

from resexp import config, files
from resexp.analysis.figures.plot import plot
from resexp.analysis.report.page import write_report
from resexp.analysis.results import export_runs, require_runs
from resexp.analysis.table import render, rows
from resexp.launch import local
from resexp.runs import checkpoint, preregistration, records
from resexp.runs import run as running
from resexp.runs.records import Claim
from resexp.settings import Engine, Settings, UsageError
from resexp.train import fit
from resexp.train.row import Row

# --- a full disk


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
@pytest.mark.parametrize(
    ("file", "size", "seconds"),
    [("metrics.csv", 250, 1e6), ("checkpoint.pt", 20_000, 0.0), ("run.json", 1000, 1e6)],
)
def test_a_full_disk_fails_in_one_line_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, file: str, size: int, seconds: float
) -> None:
    whole, job = (job_in(tmp_path / name, checkpoint_every=seconds) for name in ("whole", "full"))
    local.perform(whole)
    with pytest.raises(records.Unwritten) as caught, ExitStack() as disk:
        local.perform(job, at(3, lambda: disk.enter_context(files_up_to(size))))
    said = records.first_line(caught.value)
    assert said.startswith(f"{job.directory / file} could not be written") and "\n" not in said
    assert not list(job.directory.glob("*.tmp"))
    assert local.perform(job).claim is Claim.resume
    assert cells(job) == cells(whole)
    assert records.read_record(job.directory)["status"] in records.FINISHED


@pytest.mark.process
def test_a_figure_that_does_not_fit_leaves_no_half_of_it(tmp_path: Path) -> None:
    write_grid(tmp_path, (20, 56), 1)
    with files_up_to(5000):
        answer = call("plot", str(tmp_path))
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert answer.err.startswith("resexp: ")
    assert "curves.png could not be written" in answer.err
    assert not list(tmp_path.rglob("*curves*"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system mounts no tmpfs")
    words = "run depth=8 width=8 steps=4 batch_size=8 eval_every=2 checkpoint_every=0 threads=1"
    try:
        ended = resexp(tmp_path, *words.split())
        assert ended.returncode == 1
        assert "could not be written (No space left on device)" in ended.stdout
        assert "Traceback" not in ended.stdout + ended.stderr
        subprocess.run(["mount", "-o", "remount,size=9m", str(tmp_path)], check=True)
        assert resexp(tmp_path, *words.split()).returncode == 0
        (metrics,) = tmp_path.rglob("metrics.csv")
        assert [line.split(",")[0] for line in metrics.read_text().splitlines()[1:]] == ["2", "4"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- a folder that takes no files


def test_a_read_only_results_folder_is_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(UsageError, match=r"cannot be written \(Read-only file system\).*results="),
        records.claim(job_in(tmp_path / "results")),
    ):
        raise AssertionError("claimed")


# --- clocks


@pytest.mark.usefixtures("few_images")
def test_a_clock_that_goes_backwards_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, job = (job_in(tmp_path / name, checkpoint_every=3600.0) for name in ("usual", "set"))
    local.perform(usual)
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    monkeypatch.setattr(running, "now", lambda: f"{time.time():.0f}")
    saved: list[int] = []
    monkeypatch.setattr(running, "save", lambda job, state, record: saved.append(state.step))
    local.perform(job)
    assert saved == []  # an hour went by on the wall's clock alone
    assert cells(job) == cells(usual)
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
    local.perform(job_in(tmp_path, checkpoint_every=60.0))
    assert steps == [2, 3, 4, 5]  # after each evaluation, and once it is known, before each


# --- links and names


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("what", ["..", ".", "metrics.csv", "run.json.tmp", ".lock"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_written_through_a_link(tmp_path: Path, what: str, overwrite: bool) -> None:
    """The link is the experiment's folder (..), the run's (.) or a file in it."""
    job = job_in(tmp_path / "results", overwrite=overwrite)
    outside, link = tmp_path / "outside", Path(os.path.normpath(job.directory / what))
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    if what.strip("."):
        outside.write_text("precious\n")
    else:
        outside.mkdir()
    with pytest.raises(UsageError, match="is a link"):
        local.perform(job)
    assert outside.is_dir() or outside.read_text() == "precious\n"
    assert not list(tmp_path.glob("outside/*"))


@pytest.mark.usefixtures("few_images")
def test_a_results_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "scratch")
    assert local.perform(job_in(tmp_path / "results")).record["status"] in records.FINISHED


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        "/tmp/x",
        "a/../../x",
        "a/b/c",
        "a/..",
        ".hidden",
        "x\n",
        "a\\b",
        "x\0",
        "",
        "~",
        "-m",
    ],
)
def test_a_name_cannot_leave_the_results_folder(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a folder"):
        Settings(name=name)


def test_the_name_of_the_data_leads_nowhere(tmp_path: Path) -> None:
    job = config.compose([f"results={tmp_path}", "depth=8", "data.name=../../x"])
    assert job.directory.resolve().parent.parent == tmp_path.resolve()
    assert "/" not in job.run


# --- what is read is text


SCRIPT = "<script>alert(1)</script>"


@pytest.mark.process
def test_a_page_and_a_table_show_a_script_as_text(tmp_path: Path) -> None:
    """Of runs whose every text means something to HTML, Markdown and LaTeX."""
    arch = f"res_{SCRIPT}|&%$\\frac$#{{}}~^\\input{{x}}"
    for depth in (20, 56):
        write_run(tmp_path, "plain", depth, 0)
        directory = write_run(tmp_path, "residual", depth, 0)
        record = json.loads((directory / "run.json").read_text())
        record |= {"arch": arch, "run": f"{arch}-{depth}-s0", "error": SCRIPT}
        record |= {"command": f"resexp run {SCRIPT}"}
        record["data"]["name"] = SCRIPT
        record["environment"] |= {"device_name": SCRIPT, "platform": SCRIPT}
        (directory / "run.json").write_text(json.dumps(record))
    page = write_report(tmp_path).read_text()
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    latex, markdown = (render(rows(require_runs(tmp_path)), kind) for kind in ("latex", "markdown"))
    assert "\\input{x}" not in latex
    assert "\\textbackslash" in latex
    assert SCRIPT not in markdown
    for path in plot(tmp_path, form="svg", which=["curves", "depth"]):
        assert SCRIPT not in path.read_text()


# --- what is no file, or has no end


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


KINDS = [os.mkfifo, endless, sparse, Path.mkdir]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["run.json", "metrics.csv", ".lock", "error.txt"])
def test_readers_neither_wait_for_what_is_no_file_nor_read_without_end(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
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
@pytest.mark.parametrize("kind", [os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("name", ["metrics.csv", "checkpoint.pt", ".lock", "error.txt"])
def test_a_run_is_not_written_where_one_of_its_files_is_none(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
    job = job_in(tmp_path)
    job.directory.mkdir(parents=True)
    kind(job.directory / name)
    with pytest.raises(UsageError, match=r"is a pipe, device or folder.*name="):
        local.perform(job)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["preregistration.yaml", "verdicts.csv", "runs.csv"])
def test_a_verdict_neither_waits_nor_writes_through_a_link(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
    write_grid(tmp_path, (20, 56), 1)
    kind(tmp_path / "digits" / name)
    answer = call("verdict", str(tmp_path / "digits"))
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
    directory = write_run(tmp_path, "plain", 20, 0, record={"environment": {}})
    record = place = json.loads((directory / "run.json").read_text())
    *groups, name = key.split(".")
    for group in groups:
        place = place[group]
    place[name] = ODD[key]
    (directory / "run.json").write_text(json.dumps(record))
    listed, shown = call("list", str(directory.parent)), call("show", str(directory))
    examined = call("doctor", "--results", str(directory.parent))
    assert (listed.code, shown.code, examined.code) == (0, 2, 1)
    assert "is not a record of a run: left out" in listed.err
    assert "damaged or edited" in examined.out


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("status", ["ok", "interrupted"])
@pytest.mark.parametrize(
    "key", ["environment", "environment.threads", "last", "settings.launch", "settings.device"]
)
def test_a_run_does_not_go_on_from_a_record_of_other_types(
    tmp_path: Path, key: str, status: str
) -> None:
    job = job_in(tmp_path)
    record = place = local.perform(job).record | {"status": status}
    *groups, name = key.split(".")
    for group in groups:
        place = place[group]
    place[name] = [1]
    path = job.directory / "run.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"run\.json is not a record of a run.*overwrite=true"):
        local.perform(job)
    assert json.loads(path.read_text()) == record


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("threads", [-5, 0, 10**9])
def test_a_run_goes_on_from_a_record_of_another_machine(tmp_path: Path, threads: int) -> None:
    job = job_in(tmp_path)
    assert killed(job, at(3))
    record = json.loads((job.directory / "run.json").read_text())
    record["environment"] |= {"threads": threads, "engine": "of later"}
    (job.directory / "run.json").write_text(json.dumps(record))
    found = local.perform(job).record
    assert (found["last"]["step"], found["environment"]["threads"]) == (6, 1)


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize(
    ("typed", "saved", "asked"),
    [
        (Engine.auto, True, Engine.graph),  # what it began with
        (Engine.auto, False, Engine.auto),  # it may have failed with that
        (Engine.eager, True, Engine.eager),
    ],
)
def test_a_run_goes_on_by_the_engine_that_is_typed_or_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Engine, saved: bool, asked: Engine
) -> None:
    job = job_in(tmp_path, engine=typed)
    assert killed(job, at(3))
    record = json.loads((job.directory / "run.json").read_text())
    record["environment"]["engine"] = "graph"
    (job.directory / "run.json").write_text(json.dumps(record))
    if not saved:
        (job.directory / checkpoint.NAME).unlink()
    said = []

    def choose(settings: Settings, *_: object) -> tuple[Engine, str]:
        said.append(settings.engine)
        return Engine.eager, ""

    monkeypatch.setattr("resexp.runs.run.choose", choose)
    assert local.perform(job).record["last"]["step"] == 6
    assert said == [asked]


def test_a_run_without_what_later_versions_note_is_shown(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "plain", 20, 0)
    record = json.loads((directory / "run.json").read_text())
    kept = ["run", "name", "arch", "depth", "seed", "status", "extras", "settings", "last"]
    record = {key: record[key] for key in kept} | {"data": {"classes": 10}}
    (directory / "run.json").write_text(json.dumps(record))
    answer = call("show", str(directory))
    assert (answer.code, answer.err) == (0, "")
    assert "- parameters" in answer.out


SHAPES = ["", "[1]", "a", "{" * 3000, "depth: 20", "&a [*a]", "\0", "!!python/name:os.system"]


@pytest.mark.parametrize("text", [*SHAPES, "deep: [56]"])
def test_a_preregistration_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / preregistration.NAME).write_text(text)
    with pytest.raises(UsageError, match="is no preregistration"):
        preregistration.read(tmp_path)


# --- exported pairs


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for seed in (0, 1):
        folder = write_run(tmp_path / "results", "plain", 20, seed).parent
    exported = export_runs(folder, [], tmp_path / "pair")
    return exported


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "/tmp/x", "a/../../x", "a/b/c", "a/..", "\x1b[2J", "x" * 300, ""]
)
def test_no_pair_is_unpacked_outside_its_folder(pair: Path, name: str) -> None:
    for path in pair.iterdir():
        path.write_text(path.read_text().replace("plain-20-s0", name))
    top = pair.parent.parent
    before = set(top.rglob("*"))
    answer = call("export", str(pair), "--unpack")
    assert answer.code in (0, 1, 2)
    assert answer.err.count("\n") <= 1
    assert "HYDRA" not in answer.err
    new = set(top.rglob("*")) - before
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
        ("runs.csv", lambda text: text.replace("plain-20-s0", "p\x1b[2J")),
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
    (pair / file).write_text(damage((pair / file).read_text()))
    for words in (["table"], ["export", "--unpack"]):
        answer = call(words[0], str(pair), *words[1:])
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith("resexp: ")
        assert answer.err[:-1].isprintable()


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
    def refuse(*words: Any) -> None:
        raise error

    monkeypatch.setattr("resexp.commands.listing.runs", refuse)
    answer = call("list", str(tmp_path))
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert said in answer.err
    assert "HYDRA" not in answer.err


def test_a_deleted_folder_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in ("explain", "list"):
        answer = call(command, code=2)
        assert answer.err == "resexp: this folder was deleted or moved. Go to another: cd ~\n"


@pytest.mark.process
def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = resexp(tmp_path, "list", "archs", stdout=full)
    said = "resexp: the answer could not be written (No space left on device).\n"
    assert (ended.returncode, ended.stderr) == (1, said)
