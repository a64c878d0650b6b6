"""A run that was stopped, killed or torn and then goes on equals one that never stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resexp import data
from resexp.launch import local
from resexp.runs import records
from resexp.runs import run as running
from resexp.runs.records import Claim
from resexp.runs.stop import STOPPING, Interrupted
from resexp.settings import Arch, Job, Merge, Settings
from resexp.train.fit import State, fit
from resexp.train.optimizers import OPTIMIZERS
from resexp.train.row import TIME_COLUMNS, Row

pytestmark = pytest.mark.process

STEPS = 6


class Killed(BaseException):
    """What stands for the end of the process: nothing in resexp catches it."""


def make_job(results: Path, **settings: Any) -> Job:
    """Six steps with a row every second one and a checkpoint after each."""
    usual: dict[str, Any] = {
        "arch": Arch(merge=Merge.residual),
        "depth": 8,
        "width": 4,
        "steps": STEPS,
        "batch_size": 8,
        "eval_every": 2,
        "clean_every": 2,
        "checkpoint_every": 0.0,
        "threads": 1,
        "results": str(results),
    }
    return Job(
        settings=Settings(**usual | settings),
        arch="residual",
        extras={},
        overrides=["depth=8"],
        config="depth: 8\n",
    )


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch, few_digits: data.Images) -> None:
    """Train on forty images, and let the disk flush when it likes."""
    monkeypatch.setattr(running, "load", lambda settings, device: few_digits)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def cells(directory: Path) -> list[list[str]]:
    """metrics.csv but for its two columns of time."""
    lines = (directory / records.METRICS).read_text().splitlines()
    return [line.split(",")[: -len(TIME_COLUMNS)] for line in lines]


def outcome(job: Job) -> tuple[list[list[str]], dict[str, Any]]:
    """What a finished run says, time left out: its rows, and of its record what must be equal."""
    assert not list(job.directory.glob("*.tmp")), "something was left behind"
    record = records.read_record(job.directory)
    last = {
        key: records.spell(value)
        for key, value in record["last"].items()
        if key not in TIME_COLUMNS
    }
    same = {key: record[key] for key in ("status", "run", "digest", "parameters", "error")}
    return cells(job.directory), {**same, "last": last}


def tensors(job: Job) -> list[torch.Tensor]:
    """The network and the optimizer's states of a run that kept its checkpoint."""
    saved = torch.load(job.directory / "checkpoint.pt", weights_only=True)
    states = [one for views in saved["optimizer"].values() for one in views]
    return [*saved["network"].values(), *states]


def kill_at(step: int) -> local.Watch:
    """A watcher that kills after this step: its row is written, its checkpoint is not."""

    def watch(record: dict[str, Any], done: int, row: Row | None) -> None:
        if done == step:
            raise Killed

    return watch


def killed(job: Job, watch: local.Watch | None = None) -> bool:
    """Whether training ``job`` was ended by ``Killed``."""
    try:
        local.perform(job, watch)
    except Killed:
        return True
    return False


# --- killed between two steps


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts", checkpoint_every=1e6)
    local.perform(whole)
    for step in (5, 2, 4):
        assert killed(parts, kill_at(step))
    steps: list[int] = []
    assert local.perform(parts, lambda record, step, row: steps.append(step)).claim is Claim.resume
    assert steps[0] == 0
    assert outcome(parts) == outcome(whole)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_weights_are_equal_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    kept = {"keep_checkpoint": True, "optimizer": optimizer}
    whole, parts = make_job(tmp_path / "whole", **kept), make_job(tmp_path / "parts", **kept)
    local.perform(whole)
    for step in (1, 2, 4):
        assert killed(parts, kill_at(step))
    local.perform(parts)
    assert outcome(parts) == outcome(whole)
    pairs = zip(tensors(parts), tensors(whole), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_resumed_run_adds_up_its_time(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert killed(job, kill_at(5))
    before = float((job.directory / "metrics.csv").read_text().splitlines()[-1].split(",")[-1])
    started = records.read_record(job.directory)["started"]
    record = local.perform(job).record
    assert record["started"] == started
    assert record["seconds"] > before > 0


def test_a_run_killed_at_its_very_end_has_the_same_record(tmp_path: Path) -> None:
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts")
    expected = local.perform(whole).record["last"]

    def die(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "finish", die)
        assert killed(parts)
    record = local.perform(parts).record
    assert record["seconds"] == pytest.approx(record["last"]["seconds"])
    assert record["seconds"] > 0
    assert record["images_per_second"] == pytest.approx(record["last"]["images_per_second"])
    for key in set(expected) - set(TIME_COLUMNS):
        assert record["last"][key] == expected[key], key


def test_a_resumed_run_keeps_the_threads_it_began_with(tmp_path: Path) -> None:
    assert killed(make_job(tmp_path, threads=1), kill_at(3))
    record = local.perform(make_job(tmp_path, threads=2)).record
    assert record["environment"]["threads"] == 1
    assert torch.get_num_threads() == 1


def test_after_a_failure_the_run_goes_on_and_its_traceback_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts")
    local.perform(whole)

    def failing(state: State, *words: Any) -> Iterator[Row | None]:
        for row in fit(state, *words):
            yield row
            if state.step == 3:
                raise RuntimeError("the GPU fell off the bus")

    with monkeypatch.context() as patch:
        patch.setattr(running, "fit", failing)
        with pytest.raises(RuntimeError, match="fell off"):
            local.perform(parts)
    assert records.read_record(parts.directory)["status"] == "failed"
    assert "fell off" in (parts.directory / "error.txt").read_text()
    assert local.perform(parts).claim is Claim.resume
    assert outcome(parts) == outcome(whole)
    assert not (parts.directory / "error.txt").exists()


# --- killed anywhere


class Disk:
    """Counts what a run writes, and kills it before a given write, or half-way through a row."""

    def __init__(self, patch: pytest.MonkeyPatch, left: int | None = None) -> None:
        self.left = left
        self.writes = 0
        self.real_replace, self.real_append = os.replace, records.append_row
        patch.setattr(os, "replace", self.replace)
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(records, "append_row", self.append_row)

    def count(self) -> None:
        """One more write is about to happen."""
        self.writes += 1
        if self.writes == self.left:
            raise Killed

    def replace(self, source: Path, target: Path) -> None:
        self.count()
        self.real_replace(source, target)

    def fsync(self, file: int) -> None:
        self.count()

    def append_row(self, directory: Path, row: Row) -> None:
        """Killed before the row, or with a third of its line written."""
        self.count()
        path = directory / records.METRICS
        before = path.read_text() if path.exists() else ""
        self.real_append(directory, row)
        after = path.read_text()
        path.write_text(after[: len(before) + (len(after) - len(before)) // 3])
        self.count()
        path.write_text(after)


def writes_of(job: Job) -> int:
    """How many writes the whole of ``job`` makes; trains it."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        local.perform(job)
    return disk.writes


def killed_at_write(job: Job, write: int) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, write)
        return killed(job)


def test_a_run_killed_at_any_write_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = make_job(tmp_path / "whole", steps=3)
    count = writes_of(whole)
    assert count > 20
    unlike = []
    for write in range(1, count + 1):
        parts = make_job(tmp_path / f"parts-{write}", steps=3)
        assert killed_at_write(parts, write)
        local.perform(parts)
        if outcome(parts) != outcome(whole):
            unlike.append(write)
    assert unlike == [], f"of {count} writes"


def test_a_diverging_run_killed_at_any_write_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = make_job(tmp_path / "whole", lr=1e6, steps=40)
    count = writes_of(whole)
    rows, record = outcome(whole)
    assert record["status"] == "diverged"
    assert 1 < len(rows) < 20  # it ended at the row that shows it
    unlike = []
    for write in range(count - 11, count + 1):
        parts = make_job(tmp_path / f"parts-{write}", lr=1e6, steps=40)
        assert killed_at_write(parts, write)
        local.perform(parts)
        if outcome(parts) != outcome(whole):
            unlike.append(write)
    assert unlike == [], f"of {count} writes"


# --- damaged files


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "garbage":
        path.write_bytes(b"\x00" * len(content))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["empty", "half", "garbage", "gone"])
def test_a_torn_checkpoint_costs_one_step(tmp_path: Path, how: str) -> None:
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts")
    local.perform(whole)
    assert killed(parts, kill_at(5))
    damage(parts.directory / "checkpoint.pt", how)
    steps: list[int] = []
    done = local.perform(parts, lambda record, step, row: steps.append(step))
    assert steps[0] == 3  # of the checkpoint before
    assert outcome(parts) == outcome(whole)
    assert len(done.warnings) == (how != "gone")
    assert all("checkpoint.pt" in warning for warning in done.warnings)


def test_without_a_checkpoint_that_can_be_read_it_starts_again(tmp_path: Path) -> None:
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts")
    local.perform(whole)
    assert killed(parts, kill_at(5))
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        damage(parts.directory / name, "half")
    done = local.perform(parts)
    assert len(done.warnings) == 2
    assert outcome(parts) == outcome(whole)


def test_another_runs_checkpoint_is_set_aside(tmp_path: Path) -> None:
    other = make_job(tmp_path / "other", lr=0.5, keep_checkpoint=True)
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts")
    local.perform(other)
    local.perform(whole)
    assert killed(parts, kill_at(1))
    foreign = (other.directory / "checkpoint.pt").read_bytes()
    (parts.directory / "checkpoint.pt").write_bytes(foreign)
    done = local.perform(parts)
    assert "other settings" in done.warnings[0]
    assert (parts.directory / "checkpoint.pt.bad").read_bytes() == foreign
    assert outcome(parts) == outcome(whole)


def test_a_lost_metrics_file_is_no_reason_to_end_without_rows(tmp_path: Path) -> None:
    """A checkpoint says that rows exist; where they do not, the run must not pass for whole."""
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts")
    local.perform(whole)
    assert killed(parts, kill_at(5))
    (parts.directory / "metrics.csv").unlink()
    with contextlib.suppress(Exception):  # to refuse would be as good as to begin again
        local.perform(parts)
    finished = records.read_record(parts.directory)["status"] in records.FINISHED
    assert not finished or outcome(parts) == outcome(whole)


# --- signals, in this process


def signal_at(step: int, *signals: signal.Signals) -> local.Watch:
    def watch(record: dict[str, Any], done: int, row: Row | None) -> None:
        if done == step:
            for one in signals:
                os.kill(os.getpid(), one)

    return watch


@pytest.mark.parametrize(
    ("step", "one"), [*enumerate(STOPPING), (0, signal.SIGINT), (5, signal.SIGTERM)]
)
def test_a_signal_saves_and_stops(tmp_path: Path, step: int, one: signal.Signals) -> None:
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts")
    parts.settings.checkpoint_every = 1e6
    local.perform(whole)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        local.perform(parts, signal_at(step, one))
    assert stop.value.exit_code == (130 if one == signal.SIGINT else 75)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    record = records.read_record(parts.directory)
    assert record["status"] == "interrupted"
    steps: list[int] = []
    local.perform(parts, lambda record, step, row: steps.append(step))
    assert steps[0] == step
    assert outcome(parts) == outcome(whole)


def test_a_signal_at_the_last_step_comes_too_late_to_matter(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    done = local.perform(job, signal_at(STEPS, signal.SIGTERM))
    assert done.record["status"] in records.FINISHED


def test_a_second_ctrl_c_quits_at_once(tmp_path: Path) -> None:
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts")
    local.perform(whole)
    with pytest.raises(KeyboardInterrupt) as stop:
        local.perform(parts, signal_at(3, signal.SIGINT, signal.SIGINT))
    assert not isinstance(stop.value, Interrupted)
    assert records.read_record(parts.directory)["status"] == "running"
    local.perform(parts)
    assert outcome(parts) == outcome(whole)


def test_a_signal_in_a_diverged_row_does_not_train_on(tmp_path: Path) -> None:
    whole = make_job(tmp_path / "whole", lr=1e6, steps=40)
    parts = make_job(tmp_path / "parts", lr=1e6, steps=40)
    local.perform(whole)
    end = records.read_record(whole.directory)["last"]["step"]
    with contextlib.suppress(Interrupted):
        local.perform(parts, signal_at(end, signal.SIGTERM))
    local.perform(parts)
    assert outcome(parts) == outcome(whole)


# --- real processes

PROCESS = ["depth=8", "steps=60", "batch_size=16", "eval_every=6", "clean_every=3", "threads=1"]
MOMENTS = 120  # seconds within which a process must get where it is waited for


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The rows of the run that nobody stops, trained in this process."""
    results = tmp_path_factory.mktemp("undisturbed")
    job = make_job(
        results,
        arch=Arch(),
        width=Settings().width,
        steps=60,
        batch_size=16,
        eval_every=6,
        clean_every=3,
    )
    local.perform(job)
    return cells(job.directory)


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """``python -m resexp run`` of sixty steps, or as WORDS say, in ``folder``, output discarded."""
    return subprocess.Popen(
        [sys.executable, "-m", "resexp", "run", *PROCESS, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def directory_in(folder: Path) -> Path:
    """The only run directory of a folder."""
    (directory,) = (folder / "results/digits").iterdir()
    return directory


def status_in(folder: Path) -> str:
    return str(records.read_record(directory_in(folder))["status"])


def rows_in(folder: Path) -> int:
    """Rows written so far."""
    paths = list(folder.glob("results/digits/*/metrics.csv"))
    return paths[0].read_text().count("\n") - 1 if paths else 0


def exit_code_after(folder: Path, words: str, one: signal.Signals) -> int:
    """Start, send a signal as soon as there is a new row, and wait for the end."""
    seen = rows_in(folder)
    process = start(folder, words)
    limit = time.monotonic() + MOMENTS
    while rows_in(folder) <= seen:
        assert process.poll() is None, f"ended with {process.returncode} before the signal"
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(one)
    return process.wait(MOMENTS)


def finish_and_compare(folder: Path, words: str, rows: list[list[str]]) -> None:
    assert start(folder, words).wait(MOMENTS) == 0
    directory = directory_in(folder)
    assert cells(directory) == rows
    assert len(rows) == 1 + 10
    assert status_in(folder) == "ok"
    assert not list(directory.glob("*.tmp"))


def test_a_process_killed_and_stopped_and_its_checkpoint_torn(
    tmp_path: Path, undisturbed: list[list[str]]
) -> None:
    for words, one, code, status in [
        ("checkpoint_every=0", signal.SIGKILL, -signal.SIGKILL, "running"),
        ("checkpoint_every=0.3", signal.SIGTERM, 75, "interrupted"),
        ("checkpoint_every=0", signal.SIGHUP, 75, "interrupted"),
        ("checkpoint_every=0.3", signal.SIGINT, 130, "interrupted"),
        ("checkpoint_every=0", signal.SIGKILL, -signal.SIGKILL, "running"),
    ]:
        assert exit_code_after(tmp_path, words, one) == code
        assert status_in(tmp_path) == status
    assert rows_in(tmp_path) < len(undisturbed) - 1
    damage(directory_in(tmp_path) / "checkpoint.pt", "half")
    finish_and_compare(tmp_path, "checkpoint_every=0", undisturbed)
    left = {path.name for path in directory_in(tmp_path).iterdir()}
    assert left - {".lock"} == {"config.yaml", "metrics.csv", "run.json", "checkpoint.pt.bad"}


@pytest.mark.parametrize(("one", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_while_modules_load_ends_without_a_word(
    tmp_path: Path, one: signal.Signals, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "resexp", "run", *PROCESS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "hydra.core" in line:  # torch comes after it
                process.send_signal(one)
                break
        said = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.returncode == code
    assert said == []  # nothing is to be saved yet


SWEEP = ["-m", "steps=300", "seed=0,1", "launch=processes", "launch.jobs=2"]


def wait_for_rows(folder: Path, process: subprocess.Popen[bytes]) -> list[Path]:
    """The two run directories, as soon as both have a row."""
    limit = time.monotonic() + MOMENTS
    while len(paths := list(folder.glob("results/digits/*/metrics.csv"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    return sorted(path.parent for path in paths)


def statuses(directories: list[Path]) -> list[str]:
    return [str(records.read_record(directory)["status"]) for directory in directories]


@pytest.mark.slow
@pytest.mark.parametrize(("one", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_sweep_in_processes_saves_every_run_when_it_is_stopped(
    tmp_path: Path, one: signal.Signals, code: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    process = start(parts, *SWEEP)
    directories = wait_for_rows(parts, process)
    process.send_signal(one)
    assert process.wait(MOMENTS) == code
    assert statuses(directories) == ["interrupted"] * 2
    assert start(parts, *SWEEP).wait(MOMENTS) == 0
    assert statuses(directories) == ["ok"] * 2
    assert start(whole, *SWEEP).wait(MOMENTS) == 0
    for directory in directories:
        assert cells(directory) == cells(whole / directory.relative_to(parts))


@pytest.mark.slow
def test_workers_save_when_the_command_itself_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, *SWEEP)
    directories = wait_for_rows(tmp_path, process)
    process.kill()
    process.wait()
    limit = time.monotonic() + MOMENTS
    while "running" in statuses(directories):
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert statuses(directories) == ["interrupted"] * 2
    assert start(tmp_path, *SWEEP).wait(MOMENTS) == 0
    assert statuses(directories) == ["ok"] * 2
