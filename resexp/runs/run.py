"""One job from its settings to its run directory. Plain dataclasses in, files out."""

from __future__ import annotations

import math
import traceback
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

import torch
import yaml
from torch import nn

from resexp import data as images
from resexp import models
from resexp.data import batches
from resexp.runs import checkpoint, records
from resexp.runs.loggers import open_loggers
from resexp.runs.messages import Outcome, Step
from resexp.runs.preregistration import fingerprint
from resexp.runs.provenance import environment, peak_memory_mb
from resexp.runs.ready import ready
from resexp.runs.records import Claim
from resexp.runs.stop import Interrupted
from resexp.settings import Data, Engine, Job, Settings, UsageError, as_dict, digest
from resexp.train import optimizers
from resexp.train.device import (
    check_gpus,
    check_precision,
    check_threads,
    choose_device,
    most_threads,
    prepare,
    threads_for,
    wait,
)
from resexp.train.engine.choose import choose
from resexp.train.engine.graph import check_engine, check_repeats
from resexp.train.fit import State, begin, fit, is_last
from resexp.train.ranks import ALONE, Ranks, synchronise
from resexp.train.row import Row
from resexp.train.schedule import next_row

AT_CHANCE = 2.0  # points: an error this close to always answering the commonest class is chance
AT_CHANCE_SHARE = 0.1  # ... and no further off than this share of it: one class may be most of all


#: A job under way, a step a turn.
Turns = Generator[Step, None, Outcome]


def check_settings(job: Job, *, here: bool = True) -> None:
    """Refuse, with a UsageError, what no machine could train, or with ``here`` this one."""
    models.check(job.settings)
    optimizers.check(job.settings)
    check_task(job)
    if here:
        device = choose_device(job.settings.device)
        check_precision(job.settings.precision, device)
        check_threads(job.settings.threads)
        check_gpus(job.settings.launch.ranks, device)
        check_engine(job.settings, device)


def check_task(job: Job) -> None:
    """Raise UsageError for a network that cannot learn what the set's labels teach."""
    settings = job.settings
    learns, taught = models.task(settings.arch.family), images.task(settings.data.loader)
    if taught == "segmentation" and settings.launch.ranks > 1 and settings.crop_padding:
        raise UsageError(
            "launch.ranks shares batches by images, and cropped masks have unequal counts of "
            "pixels. Use launch.ranks=1 or crop_padding=0."
        )
    if learns == taught:
        return
    name = settings.data.name
    if taught == "segmentation":
        raise UsageError(
            f"{name} has masks, and arch={job.arch} gives each image one class. Choose arch=unet."
        )
    raise UsageError(
        f"arch={job.arch} learns masks, and {name} has none. Choose experiment=blobs, or "
        "data=masks data.root=... for a folder of your own."
    )


@contextmanager
def claimed(job: Job) -> Iterator[Claim]:
    """Hold a job's directory while it is trained; a failure is recorded there and raised.

    What the job's settings, images or directory forbid is refused before anything is written.
    """
    try:
        claim = ready(job)
        if claim is Claim.done:
            yield claim
            return
        check_settings(job)
        if job.settings.launch.ranks == 1:  # else each rank loads the images
            device = choose_device(job.settings.device)
            models.check(job.settings, load(job.settings.data, device).size)
        with records.claim(job) as claim:
            yield claim
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        with suppress(OSError, UsageError):  # the disk may be full: the error itself comes first
            record_failure(job, error)
        raise


#: Sets in use by a run of this process, and ...
_loaded: WeakValueDictionary[tuple[str, str], images.Images] = WeakValueDictionary()
#: ... the newest, kept for the next job of a sweep.
_newest: images.Images | None = None


def load(settings: Data, device: torch.device) -> images.Images:
    """The images on ``device``: those of another run that is at work, or of the last, if equal."""
    global _newest
    key = (repr(settings), str(device))
    found = _loaded.get(key)
    if found is None:
        _newest = None  # before the next is loaded: there may not be room for both
        found = _loaded[key] = images.load(settings).to(device)
        wait(device)  # runs on other streams will read them
    _newest = found
    return found


def as_begun(
    job: Job, before: dict[str, Any], data: images.Images, device: torch.device
) -> tuple[int, Settings]:
    """CPU threads of a run, and its settings with the engine that it goes on by.

    ``before``, the record of a run that goes on, keeps both as they were, unless it goes on with
    another number of ranks, on another kind of device or where there are fewer cores by far: else
    its sums would differ in the last bits. An engine typed by name goes first, and what was chosen
    for a run that saved nothing is chosen again: it may have failed with it.
    """
    settings = job.settings
    ranks_before = before.get("settings", {}).get("launch", {}).get("ranks", 1)
    there = (before.get("environment") or {}) if ranks_before == settings.launch.ranks else {}
    threads = there.get("threads") or 0
    if not 0 < threads <= most_threads():
        threads = threads_for(settings, data.size)
    saved = there.get("device") == device.type and (job.directory / checkpoint.NAME).exists()
    if saved and settings.engine is Engine.auto and there.get("engine") in list(Engine):
        settings = replace(settings, engine=Engine(there["engine"]))
    return threads, settings


def opened(
    job: Job, claim: Claim, data: images.Images, network: nn.Module, device: torch.device
) -> dict[str, Any]:
    """The record of a run that is about to train, written, beside its settings."""
    before = records.read_record(job.directory) if claim is Claim.resume else {}
    threads, settings = as_begun(job, before, data, device)
    prepare(threads, settings, device)
    check_repeats(settings.engine, job.arch, network)
    optimizers.check(settings, network)
    engine, reason = choose(settings, network, device, job.directory.parent)
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
        "preregistration": fingerprint(job.directory.parent),
        "data": {
            "name": data.name,
            "task": data.task,
            "train": len(data.train_labels),
            "test": len(data.test_labels),
            "shape": list(data.train_images.shape[1:]),
            "classes": len(data.classes),
            "chance_error": data.chance_error,
            "streamed": data.streamed_from,
            "statistics_images": len(batches.sample(data.train_images)),
        },
        "parameters": size.parameters,
        "parameters_without_norm": size.parameters_without_norm,
        "flops": size.flops,
        "last": {},
        "seconds": 0.0,
        "images_per_second": None,
        "peak_memory_mb": None,
        "engine_reason": reason,
        "environment": environment(job.settings, device, threads, engine),
        "started": before.get("started") or now(),
        "updated": now(),
        "error": None,
    }
    config = yaml.safe_dump(record["settings"], sort_keys=False, allow_unicode=True)
    records.write_atomically(job.directory / records.CONFIG, config)
    records.write_record(job.directory, record)
    return record


def build(settings: Settings, data: images.Images, ranks: Ranks) -> nn.Module:
    """The network at its start, on the CPU."""
    network = models.build(settings, data.channels, len(data.classes), data.size)
    if settings.bn_sync and ranks.size > 1:
        synchronise(network)
    return network


def train(job: Job, ranks: Ranks = ALONE, held: Claim | None = None) -> Turns:
    """Train to the end, from a checkpoint if there is one, keeping the run directory up to date.

    Pauses before the first step and after each. Meanwhile other code may run, and stop the job by
    throwing Interrupted in: it saves. ``held`` is the claim where another process holds it.
    """
    settings, directory = job.settings, job.directory
    with claimed(job) if held is None else nullcontext(held) as claim:
        if claim in (Claim.done, Claim.busy):
            return untrained(job, claim)
        device = choose_device(settings.device)
        data = load(settings.data, device)
        network = build(settings, data, ranks)
        record = opened(job, claim, data, network, device)
        state, rows, warnings = restored(job, record, data, network.to(device), ranks)
        for known in rows:
            update(record, known, device)
        over = bool(rows) and is_last(rows[-1], settings)  # killed between its last row and its end
        over = ranks.spread(state, over)
        engine = Engine(record["environment"]["engine"])
        timer = checkpoint.Timer(settings.checkpoint_every)
        with ExitStack() as stack:
            loggers = open_loggers(settings.loggers, directory, record, warnings.append)
            for logger in loggers:
                stack.callback(logger.close)  # after a stop or a failure too
            stack.enter_context(saved_if_stopped(job, state, record, rows))
            yield Step(record, state.step)
            turns = fit(state, settings, data, ranks, engine)

            def note(row: Row) -> None:
                rows.append(row)
                update(record, row, device)
                for logger in loggers:
                    logger.log(row.step, records.as_written(row))

            for row in () if over else turns:
                if row is not None:
                    records.append_row(directory, row)
                    note(row)
                try:
                    yield Step(record, state.step, row)
                except Interrupted:
                    if state.due and (row := next(turns)) is not None:  # what is saved has its row
                        records.append_row(directory, row)
                        note(row)
                    raise
                if is_last(row, settings):
                    break
                evaluates = next_row(settings, state.step) == state.step + 1
                if not state.due and timer.due(after_row=row is not None, before_row=evaluates):
                    save(job, state, record)
                    timer.restart()
        finish(job, state, record, rows)
        return Outcome(job, claim, record, warnings)


def untrained(job: Job, claim: Claim) -> Outcome:
    """The outcome of a job that was done before, or that another process is at."""
    record = records.read_record(job.directory) if claim is Claim.done else {}
    return Outcome(job, claim, record, [])


@contextmanager
def saved_if_stopped(
    job: Job, state: State, record: dict[str, Any], rows: list[Row]
) -> Iterator[None]:
    """Save a run that Interrupted ends; one that has its last row already is over instead."""
    try:
        yield
    except Interrupted:
        if rows and is_last(rows[-1], job.settings):
            return
        record["status"] = "interrupted"
        save(job, state, record)
        raise


def restored(
    job: Job, record: dict[str, Any], data: images.Images, network: nn.Module, ranks: Ranks
) -> tuple[State, list[Row], list[str]]:
    """Where the run stands: its newest checkpoint and the rows up to it, or the very beginning.

    Rows and checkpoint must agree: a run that lost rows begins again, rather than end without them.
    """
    settings, directory = job.settings, job.directory
    state = begin(network, settings)
    warnings = checkpoint.load(directory, state, record["digest"])
    rows = records.keep_rows(directory, state.step)
    if records.are_whole(rows, settings.eval_every, settings.steps, state.step):
        return state, rows, warnings
    warnings.append(f"{directory / records.METRICS} lacks rows: the run begins again")
    checkpoint.remove(directory)
    records.keep_rows(directory, 0)
    device = data.train_images.device
    return begin(build(settings, data, ranks).to(device), settings), [], warnings


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

    At chance means a training error within ``AT_CHANCE`` points (and ``AT_CHANCE_SHARE``) of always
    answering the commonest class, in every row after ``collapse_after`` of the steps.
    """
    if not math.isfinite(rows[-1].train_loss):
        return "diverged"
    late = [row for row in rows if row.step > settings.collapse_after * settings.steps]
    close = min(AT_CHANCE, AT_CHANCE_SHARE * chance_error)
    at_chance = all(row.train_error >= chance_error - close for row in late)
    return "collapsed" if late and at_chance else "ok"


def record_failure(job: Job, error: BaseException) -> None:
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
