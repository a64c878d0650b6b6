"""One job from its settings to its run directory. Plain dataclasses in, files out."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from resexp import data as images
from resexp import models, records
from resexp.environment import environment, peak_memory_mb
from resexp.records import Claim, Row
from resexp.settings import Data, Job, Settings, UsageError, as_dict, digest
from resexp.signals import Interrupted, Stop, stop_signals
from resexp.train import checkpoint
from resexp.train.device import check_precision, choose_device, prepare
from resexp.train.fit import State, begin, fit, row_steps
from resexp.train.loggers import check_loggers, open_loggers

AT_CHANCE = 2.0  # points: an error this close to always answering the commonest class is chance


@dataclass(slots=True)
class Outcome:
    """How a job went: what its directory said to it, and its record (run.json) afterwards."""

    job: Job
    claim: Claim
    record: dict[str, Any]
    warnings: list[str]


#: Called after every step with the record so far, the step, and the row if there is a new one.
Watch = Callable[[dict[str, Any], int, Row | None], None]


def unwatched(record: dict[str, Any], step: int, row: Row | None) -> None:
    """Show nothing."""


def check(job: Job, *, here: bool = True) -> Claim:
    """Refuse, with a UsageError and before anything is written, what ``perform`` could not do.

    Returns what the run directory says. Without ``here`` another machine trains, whose devices are
    not known.
    """
    models.check(job.settings)
    if here:
        check_precision(job.settings.precision, choose_device(job.settings.device))
    claim = records.look(job)
    if claim is not Claim.done:
        check_loggers(job.settings.loggers)
        records.check_writable(job)
        images.check_present(job.settings.data)
    return claim


def perform(job: Job, watch: Watch = unwatched) -> Outcome:
    """Train ``job`` to its end, from its checkpoint if there is one, unless that is done already.

    A failure is recorded in the run directory and raised; an interruption saves and raises
    Interrupted.
    """
    if check(job) is Claim.done:
        return Outcome(job, Claim.done, records.read_record(job.directory), [])
    try:
        data = load(job.settings.data, choose_device(job.settings.device))
        with records.claim(job) as claim:
            if claim is Claim.busy:
                return Outcome(job, claim, {}, [])
            if claim is Claim.done:
                return Outcome(job, claim, records.read_record(job.directory), [])
            record, warnings = train(job, claim, data, watch)
            return Outcome(job, claim, record, warnings)
    except UsageError:
        raise
    except Exception as error:
        record_failure(job, error)
        raise


_loaded: dict[tuple[str, str], images.Images] = {}


def load(settings: Data, device: torch.device) -> images.Images:
    """The images on ``device``, kept for the next job of a sweep."""
    key = (repr(settings), str(device))
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = images.load(settings).to(device)
    return _loaded[key]


def opened(
    job: Job, claim: Claim, data: images.Images, network: nn.Module, device: torch.device
) -> dict[str, Any]:
    """The record of a run that is about to train, written, beside its settings.

    A resumed run keeps the threads it began with: sums on another number differ in the last bits.
    """
    before = records.read_record(job.directory) if claim is Claim.resume else {}
    threads = before.get("environment", {}).get("threads") or job.settings.threads
    threads = prepare(threads, job.settings.deterministic, device)
    size = models.measure(network, data.channels, data.size)
    record = {
        "run": job.run,
        "name": job.settings.name,
        "status": "running",
        "arch": job.arch,
        "depth": job.settings.depth,
        "seed": job.settings.seed,
        "extras": job.extras,
        "settings": as_dict(job.settings),
        "digest": digest(as_dict(job.settings)),
        "overrides": job.overrides,
        "command": job.command,
        "data": {
            "name": data.name,
            "train": len(data.train_labels),
            "test": len(data.test_labels),
            "shape": list(data.train_images.shape[1:]),
            "classes": len(data.classes),
            "chance_error": data.chance_error,
        },
        "parameters": size.parameters,
        "parameters_without_norm": size.parameters_without_norm,
        "flops": size.flops,
        "last": {},
        "seconds": 0.0,
        "images_per_second": None,
        "peak_memory_mb": None,
        "environment": environment(job.settings, device, threads),
        "started": before.get("started") or now(),
        "updated": now(),
        "error": None,
    }
    records.write_atomically(job.directory / records.CONFIG, job.config)
    records.write_record(job.directory, record)
    return record


def train(
    job: Job, claim: Claim, data: images.Images, watch: Watch
) -> tuple[dict[str, Any], list[str]]:
    """Train to the end, keeping the run directory up to date; returns its record and warnings."""
    settings, directory = job.settings, job.directory
    device = data.train_images.device
    network = models.build(settings, data.channels, len(data.classes), data.size)
    record = opened(job, claim, data, network, device)
    state, rows, warnings = restored(job, record, data, network.to(device))
    for known in rows:
        update(record, known, device)
    watch(record, state.step, None)
    loggers = open_loggers(settings.loggers, directory, record, warnings.append)
    saved = time.monotonic()
    over = bool(rows) and not math.isfinite(rows[-1].train_loss)  # stopped right after diverging
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        for logger in loggers:
            stack.callback(logger.close)  # after a stop or a failure too
        for row in () if over else fit(state, settings, data):
            if row is not None:
                records.append_row(directory, row)
                rows.append(row)
                update(record, row, device)
                for logger in loggers:
                    logger.log(row.step, records.as_written(row))
            watch(record, state.step, row)
            if stop.signum is not None and state.step < settings.steps:
                save(job, state, record)
                interrupt(job, record, stop)
            if time.monotonic() - saved >= settings.checkpoint_every:
                save(job, state, record)
                saved = time.monotonic()
    finish(job, state, record, rows)
    return record, warnings


def restored(
    job: Job, record: dict[str, Any], data: images.Images, network: nn.Module
) -> tuple[State, list[Row], list[str]]:
    """Where the run stands: its newest checkpoint and the rows up to it, or the very beginning.

    Rows and checkpoint must agree: a run that lost rows begins again, rather than end without them.
    """
    settings, directory = job.settings, job.directory
    state = begin(network, settings)
    warnings = checkpoint.load(directory, state, record["digest"])
    rows = records.keep_rows(directory, state.step)
    if [row.step for row in rows] == row_steps(settings, state.step):
        return state, rows, warnings
    warnings.append(f"{directory / records.METRICS} lacks rows: the run begins again")
    checkpoint.remove(directory)
    records.keep_rows(directory, 0)
    device = data.train_images.device
    fresh = models.build(settings, data.channels, len(data.classes), data.size)
    return begin(fresh.to(device), settings), [], warnings


def update(record: dict[str, Any], row: Row, device: torch.device) -> None:
    """Bring a record up to a new row, in the digits that metrics.csv has."""
    record["last"] |= records.as_written(row)
    record["seconds"] = row.seconds
    record["images_per_second"] = row.images_per_second
    record["peak_memory_mb"] = peak_memory_mb(device)
    record["updated"] = now()


def save(job: Job, state: State, record: dict[str, Any]) -> None:
    """A checkpoint, after the rows that it says exist."""
    records.flush(job.directory)
    checkpoint.save(job.directory, state, record["digest"])
    records.write_record(job.directory, record)


def interrupt(job: Job, record: dict[str, Any], stop: Stop) -> None:
    """Record that a saved run was stopped, and stop everything."""
    assert stop.signum is not None
    record["status"] = "interrupted"
    records.write_record(job.directory, record)
    raise Interrupted(stop.signum)


def finish(job: Job, state: State, record: dict[str, Any], rows: list[Row]) -> None:
    """Record how the run ended. The rows come first: a finished run has all of them on disk."""
    if job.settings.keep_checkpoint:
        checkpoint.save(job.directory, state, record["digest"])
    records.flush(job.directory)
    record["status"] = status(rows, job.settings, record["data"]["chance_error"])
    record["updated"] = now()
    records.write_record(job.directory, record)
    (job.directory / records.ERROR).unlink(missing_ok=True)
    if not job.settings.keep_checkpoint:
        checkpoint.remove(job.directory)


def status(rows: list[Row], settings: Settings, chance_error: float) -> str:
    """``diverged``: the loss stopped being finite. ``collapsed``: at chance to the end.

    At chance means a training error within ``AT_CHANCE`` points of always answering the commonest
    class, in every row after ``collapse_after`` of the steps.
    """
    if not math.isfinite(rows[-1].train_loss):
        return "diverged"
    late = [row for row in rows if row.step > settings.collapse_after * settings.steps]
    at_chance = all(row.train_error >= chance_error - AT_CHANCE for row in late)
    return "collapsed" if late and at_chance else "ok"


def record_failure(job: Job, error: Exception) -> None:
    """Leave ``error.txt`` behind, and a status where there is a record; no finished run is touched.

    Also for a run whose process died before it could do so itself.
    """
    job = replace(job, settings=replace(job.settings, overwrite=False))
    with records.claim(job) as claim:
        if claim not in (Claim.new, Claim.resume):
            return
        text = "".join(traceback.format_exception(error))
        records.write_atomically(job.directory / records.ERROR, text)
        if claim is Claim.resume:
            record = records.read_record(job.directory)
            record |= {"status": "failed", "error": records.first_line(error), "updated": now()}
            records.write_record(job.directory, record)


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
