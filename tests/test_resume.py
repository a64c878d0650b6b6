"""A run that was stopped, killed or torn and then goes on equals one that never stopped."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import Killed, at, cells, job_in, killed

from resexp.launch import local
from resexp.runs import records
from resexp.runs import run as running
from resexp.runs.stop import STOPPING, Interrupted
from resexp.settings import Job
from resexp.train.optimizers import OPTIMIZERS
from resexp.train.row import TIME_COLUMNS, Row

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("few_images")]

STEPS = 6
DIVERGING = {"lr": 1e6, "steps": 40}


def pair(folder: Path, **settings: Any) -> tuple[Job, Job]:
    """A finished run, and the same one to be disturbed."""
    names = "whole", "parts"
    whole, parts = (job_in(folder / name, clean_every=2, **settings) for name in names)
    local.perform(whole)
    return whole, parts


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
    return cells(job), {**same, "last": last}


def steps_of(job: Job) -> list[int]:
    """The steps at which a run was seen until it was over."""
    steps: list[int] = []
    local.perform(job, lambda record, step, row: steps.append(step))
    return steps


# --- killed between two steps


def tensors(job: Job) -> list[torch.Tensor]:
    """The network and the optimizer's states of a run that kept its checkpoint."""
    saved = torch.load(job.directory / "checkpoint.pt", weights_only=True)
    states = [one for views in saved["optimizer"].values() for one in views]
    return [*saved["network"].values(), *states]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_weights_are_equal_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    whole, parts = pair(tmp_path, keep_checkpoint=True, optimizer=optimizer)
    for step in (1, 2, 4):
        assert killed(parts, at(step))
    local.perform(parts)
    assert outcome(parts) == outcome(whole)
    pairs = zip(tensors(parts), tensors(whole), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_resumed_run_adds_up_its_time_and_keeps_its_threads(tmp_path: Path) -> None:
    job = job_in(tmp_path, threads=1)
    assert killed(job, at(5))
    before = float((job.directory / "metrics.csv").read_text().splitlines()[-1].split(",")[-1])
    started = records.read_record(job.directory)["started"]
    record = local.perform(job_in(tmp_path, threads=2)).record
    assert record["started"] == started
    assert record["seconds"] > before > 0
    assert record["environment"]["threads"] == torch.get_num_threads() == 1


def test_a_run_killed_at_its_very_end_has_the_same_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = pair(tmp_path)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(running, "finish", die)
        assert killed(parts)
    record = local.perform(parts).record
    for key in TIME_COLUMNS:
        assert record[key] == pytest.approx(record["last"][key])
        assert record[key] > 0
    assert outcome(parts) == outcome(whole)


# --- killed anywhere


class Disk:
    """Counts what a run writes, and kills it before a given write, or half-way through a row."""

    def __init__(self, patch: pytest.MonkeyPatch, left: int | None = None) -> None:
        self.left = left
        self.writes = 0
        self.real_replace, self.real_append = os.replace, records.append_row
        patch.setattr(os, "replace", self.replace)
        patch.setattr(os, "fsync", lambda file: self.count())
        patch.setattr(records, "append_row", self.append_row)

    def count(self) -> None:
        """One more write is about to happen."""
        self.writes += 1
        if self.writes == self.left:
            raise Killed

    def replace(self, source: Path, target: Path) -> None:
        self.count()
        self.real_replace(source, target)

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


@pytest.mark.parametrize(("changes", "first"), [({"steps": 3}, 0), (DIVERGING, -12)])
def test_a_run_killed_at_any_write_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], first: int
) -> None:
    """At every write of a short run, and at the last of one that diverges."""
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        whole, _ = pair(tmp_path, **changes)
    rows, record = outcome(whole)
    assert disk.writes > 20
    assert (record["status"] == "diverged") == (changes is DIVERGING)
    assert 1 < len(rows) < 20  # one that diverges ends at the row that shows it
    unlike = []
    for write in range(1, disk.writes + 1)[first:]:
        parts = job_in(tmp_path / f"parts-{write}", clean_every=2, **changes)
        with monkeypatch.context() as patch:
            Disk(patch, write)
            assert killed(parts)
        local.perform(parts)
        if outcome(parts) != outcome(whole):
            unlike.append(write)
    assert unlike == [], f"of {disk.writes} writes"


# --- damaged files


def test_a_torn_checkpoint_costs_one_step(tmp_path: Path) -> None:
    whole, parts = pair(tmp_path)
    assert killed(parts, at(5))
    os.truncate(parts.directory / "checkpoint.pt", 1000)
    assert steps_of(parts)[0] == 3  # of the checkpoint before
    assert outcome(parts) == outcome(whole)


def test_a_lost_metrics_file_is_no_reason_to_end_without_rows(tmp_path: Path) -> None:
    """A checkpoint says that rows exist; where they do not, the run must not pass for whole."""
    whole, parts = pair(tmp_path)
    assert killed(parts, at(5))
    (parts.directory / "metrics.csv").unlink()
    done = local.perform(parts)
    assert [warning.rpartition(" ")[2] for warning in done.warnings] == ["again"]
    assert outcome(parts) == outcome(whole)


# --- signals


def signal_at(step: int, *signals: signal.Signals) -> local.Watch:
    return at(step, lambda: [os.kill(os.getpid(), one) for one in signals])


@pytest.mark.parametrize(
    ("step", "one"), [*enumerate(STOPPING), (0, signal.SIGINT), (5, signal.SIGTERM)]
)
def test_a_signal_saves_and_stops(tmp_path: Path, step: int, one: signal.Signals) -> None:
    whole, parts = pair(tmp_path, checkpoint_every=1e6)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        local.perform(parts, signal_at(step, one))
    assert stop.value.exit_code == (130 if one == signal.SIGINT else 75)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert records.read_record(parts.directory)["status"] == "interrupted"
    assert steps_of(parts)[0] == step
    assert outcome(parts) == outcome(whole)


def test_a_signal_at_the_last_step_comes_too_late_to_matter(tmp_path: Path) -> None:
    done = local.perform(job_in(tmp_path), signal_at(STEPS, signal.SIGTERM))
    assert done.record["status"] in records.FINISHED


def test_a_second_ctrl_c_quits_at_once(tmp_path: Path) -> None:
    whole, parts = pair(tmp_path)
    with pytest.raises(KeyboardInterrupt) as stop:
        local.perform(parts, signal_at(3, signal.SIGINT, signal.SIGINT))
    assert not isinstance(stop.value, Interrupted)
    assert records.read_record(parts.directory)["status"] == "running"
    local.perform(parts)
    assert outcome(parts) == outcome(whole)


def test_a_signal_in_a_diverged_row_does_not_train_on(tmp_path: Path) -> None:
    whole, parts = pair(tmp_path, **DIVERGING)
    end = records.read_record(whole.directory)["last"]["step"]
    with contextlib.suppress(Interrupted):
        local.perform(parts, signal_at(end, signal.SIGTERM))
    local.perform(parts)
    assert outcome(parts) == outcome(whole)
