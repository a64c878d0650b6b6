"""Run directories: who may write one, and what it holds. Reads and writes; never imports torch.

``<results>/<experiment>/<run>/`` holds ``config.yaml`` (the settings), ``metrics.csv`` (a row an
evaluation, append-only), ``run.json`` (what ran, where, how it ended), ``checkpoint.pt`` (while
unfinished, or kept) and ``error.txt`` (after a failure).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

from resexp.files import read_json, read_text
from resexp.runs.lock import CLAIM, CLOCK, LOCK, check_held, hold
from resexp.settings import Job, UsageError, as_dict, complete, identity, misfit
from resexp.train.row import COLUMNS, HEADERS, Row

RECORD, METRICS, CONFIG, ERROR = "run.json", "metrics.csv", "config.yaml", "error.txt"

#: What a process that ended at its very start may leave without a record.
BEGUN = {LOCK, CONFIG, ERROR, f"{CONFIG}.tmp", f"{RECORD}.tmp", f"{ERROR}.tmp"}

FINISHED = ("ok", "collapsed", "diverged")  # rerunning would change nothing
UNFINISHED = ("running", "interrupted", "failed")  # rerunning goes on

#: What a run.json must hold to be a run of resexp, and of what type.
NEEDED: dict[str, type] = {
    **dict.fromkeys(("run", "name", "arch", "status"), str),
    **dict.fromkeys(("depth", "seed"), int),
    **dict.fromkeys(("extras", "settings", "data", "last"), dict),
}

#: What it may hold beside, null or of this type: what readers print, count or compare.
OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("command", "digest", "started", "updated", "error", "preregistration"), str),
    **dict.fromkeys(("parameters", "parameters_without_norm"), int),
    **dict.fromkeys(("flops", "seconds", "images_per_second", "peak_memory_mb"), int | float),
    **dict.fromkeys(("data.name", "data.task"), str),
    **dict.fromkeys(("data.train", "data.test"), int),
    "data.chance_error": int | float,
    "data.shape": list,
    "overrides": list,
    "environment": dict,
    "environment.threads": int,
}


def spell(value: float | None) -> str:
    """A cell of metrics.csv: shortest text that keeps seven significant digits, empty for None."""
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


class Unwritten(OSError):
    """A file did not fit on its disk, or its folder takes none. Says which, and what to do."""


class Claim(StrEnum):
    """What a run directory says to a job that wants to write it."""

    new = "new"
    resume = "resume"
    done = "done"  # finished with these settings
    busy = "busy"  # another process is at it


def look(job: Job) -> Claim:
    """What running ``job`` would mean, from its directory as it is; changes nothing.

    Raises UsageError if the directory holds other settings or something that is not a run, or if
    a link leads out of it.
    """
    directory = job.directory
    check_links(job)
    if job.settings.overwrite or not directory.is_dir():
        return Claim.new
    if not (directory / RECORD).exists():
        for name in (path.name for path in directory.iterdir()):
            if name not in BEGUN and not name.startswith((CLAIM, CLOCK)):
                raise UsageError(
                    f"{directory} holds {name} but no {RECORD}: not a run of resexp. "
                    "Move it away, choose another name=..., or replace it with overwrite=true."
                )
        return Claim.new
    record = read_record(directory)
    here, there = identity(as_dict(job.settings)), identity(record["settings"])
    for key in here:
        if here[key] != there.get(key):
            raise UsageError(
                f"{directory} was trained with {key}={there.get(key)}, not {key}={here[key]}. "
                "Choose another name=..., or replace it with overwrite=true."
            )
    return Claim.done if record["status"] in FINISHED else Claim.resume


def check_links(job: Job) -> None:
    """Raise UsageError if writing the run could change something outside the results folder, or
    wait for ever.

    The results folder itself may be a link; nothing that a run writes below it may.
    """
    directory = job.directory
    for path in (directory.parent, directory):
        if path.is_symlink():
            raise UsageError(
                f"{path} is a link to {path.resolve()}: runs are not written through links. "
                "Choose that folder with results=..., or another name=..."
            )
    for entry in [*os.scandir(directory)] if directory.is_dir() else []:
        if entry.is_symlink():  # as it was when it was listed: others may remove it meanwhile
            raise UsageError(
                f"{entry.path} is a link: runs are not written through links. Remove it, or "
                "choose another name=..."
            )
        ours = entry.name in BEGUN | {METRICS, RECORD} or entry.name.endswith(".pt")
        if not entry.is_file() and (ours or not entry.is_dir()):
            raise UsageError(
                f"{entry.path} is a pipe, device or folder, not a file. Move it away, or choose "
                "another name=..."
            )


def check_writable(job: Job) -> None:
    """Raise UsageError, before anything is written, if the run directory could not be."""
    directory = job.directory.absolute()
    place = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise unwritable(job, "it is read-only" if place.is_dir() else f"{place} is a file")


def unwritable(job: Job, reason: str) -> UsageError:
    """The refusal for a results folder that takes no files."""
    return UsageError(
        f"{job.directory} cannot be written ({reason}). Choose another folder with results=..."
    )


@contextmanager
def claim(job: Job) -> Iterator[Claim]:
    """Hold ``job``'s directory for this process, or learn that another holds it.

    A process that dies lets go (see resexp.runs.lock).
    Raises UsageError where nothing can be written.
    """
    with ExitStack() as stack:
        try:
            job.directory.mkdir(parents=True, exist_ok=True)
            ours = stack.enter_context(hold(job.directory))
        except OSError as error:
            raise unwritable(job, error.strerror or str(error)) from error
        if not ours:
            yield Claim.busy
            return
        state = look(job)
        if job.settings.overwrite:
            empty(job.directory)
        yield state


def empty(directory: Path) -> None:
    """Remove a run's files and nothing else; its record last, so that it stays a run till then."""
    names = (METRICS, CONFIG, ERROR, RECORD)
    for path in [*directory.glob("checkpoint*.pt*"), *(directory / name for name in names)]:
        path.unlink(missing_ok=True)


def read_record(directory: Path) -> dict[str, Any]:
    """A directory's run.json. Raises UsageError if it cannot be one."""
    path = directory / RECORD
    record = read_json(path)
    if reason := fault(record):
        raise UsageError(
            f"{path} is not a record of a run: damaged, or edited by hand ({reason}). Move "
            f"{directory} away, or replace it with overwrite=true."
        )
    return dict(record)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a type; in Python a bool is an int too."""
    return isinstance(value, kind) and not isinstance(value, bool)


def fault(record: Any) -> str:
    """What makes a run.json none of a run, as far as the readers depend on it; "" for nothing."""
    if not isinstance(record, dict):
        return "it is no JSON object"
    for key, kind in NEEDED.items():
        if not fits(record.get(key), kind):
            return f"{key} is missing or of another type"
    for key in ("run", "name", "arch"):
        if not record[key].isprintable():
            return f"{key} has characters that cannot be printed"
    if record["status"] not in (*FINISHED, *UNFINISHED):
        return f"status is none of {', '.join((*FINISHED, *UNFINISHED))}"
    if not all(f"{key}{value}".isprintable() for key, value in record["extras"].items()):
        return "extras has characters that cannot be printed"
    held = {**OPTIONAL, **{f"last.{key}": int | float for key in record["last"]}}
    for key, kind in held.items():
        group, _, name = key.rpartition(".")
        value = (record.get(group) or {} if group else record).get(name)
        if value is not None and not fits(value, kind):
            return f"{key} is of another type"
    if any(isinstance(value, dict | list) for value in (record.get("environment") or {}).values()):
        return "environment has lists or tables"
    classes = record["data"].get("classes")
    if not isinstance(classes, int) or classes < 1:
        return "data.classes is not a number of classes"
    if reason := misfit(record["settings"]):
        return reason.rstrip(".")
    flat = complete(record["settings"])
    for key in ("steps", "batch_size", "eval_every", "clean_every"):
        if not isinstance(flat[key], int) or flat[key] < 1:
            return f"settings.{key} is not a number of steps, images or rows"
    return ""


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Replace run.json by ``record``, whole or not at all; JSON has no NaN, so it becomes null."""
    write_atomically(directory / RECORD, json.dumps(finite(record), indent=1) + "\n")


def finite(value: Any) -> Any:
    """``value`` with every number that is not finite replaced by None."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: Path, text: str) -> None:
    """Write to a temporary name, flush to the disk, rename. Raises Unwritten."""
    with replacing(path) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes ``path`` if the block ends well, and else is gone.

    Raises Unwritten: a full disk is to be said in one line.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # nothing is written through a link
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the room
        for one in (error, error.__context__):  # torch.save hides the error of the file
            if isinstance(one, OSError):
                raise unwritten(path, one) from error
        raise


def unwritten(path: Path, error: OSError) -> Unwritten:
    """The error of a write, with the file's name and what to do."""
    reason = error.strerror or str(error)
    return Unwritten(f"{path} could not be written ({reason}): make room, then run it again")


def append_row(directory: Path, row: Row) -> None:
    """Add a row to metrics.csv in one write, the header before the first.

    Raises Unwritten if the row does not fit: what there is of it is taken back.
    """
    check_held(directory)
    path = directory / METRICS
    columns = HEADERS[row.test_iou is not None]
    text = ",".join(spell(getattr(row, key)) for key in columns) + "\n"
    size = path.stat().st_size if path.exists() else 0
    if not size:
        text = ",".join(columns) + "\n" + text
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        with suppress(OSError):  # if this fails too, keep_rows takes the torn row for what it is
            os.truncate(path, size)
        raise unwritten(path, error) from error


def are_whole(rows: list[Row], eval_every: int, steps: int, step: int) -> bool:
    """Whether these are all rows that a run of ``steps`` steps has after ``step`` of them."""
    marks = range(eval_every, step + 1, eval_every)
    last = [] if step < steps or step in marks else [step]
    wanted = len(marks) + len(last)  # may be any number: it is from a file
    return len(rows) == wanted and [row.step for row in rows] == [*marks, *last]


def keep_rows(directory: Path, step: int) -> list[Row]:
    """Cut metrics.csv after ``step``, where a resumed run goes on; returns the rows that stay.

    What is torn or damaged is cut off with all that follows it.
    """
    path = directory / METRICS
    if not path.exists():
        return []
    lines = read_text(path, errors="replace").splitlines(keepends=True)
    columns = tuple(lines[0].rstrip("\n").split(",")) if lines else ()
    kept: list[str] = []
    rows: list[Row] = []
    for line in lines[1:] if columns in HEADERS else []:
        try:
            row = parse_row(line, columns)
        except ValueError:
            break
        if not line.endswith("\n") or row.step > step:
            break
        kept.append(line)
        rows.append(row)
    if not kept:
        path.unlink()
    elif kept != lines[1:]:
        write_atomically(path, "".join([lines[0], *kept]))
    return rows


def parse_row(line: str, columns: tuple[str, ...] = COLUMNS) -> Row:
    """The row that a line of metrics.csv spells. Raises ValueError if it spells none."""
    cells = line.rstrip("\n").split(",")
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells, not {len(columns)}")
    values = {key: float(cell) if cell else None for key, cell in zip(columns, cells, strict=True)}
    missing = [key for key in columns if values[key] is None and not key.startswith("clean_")]
    if missing:
        raise ValueError(f"no {missing[0]}")
    return Row(**values | {"step": int(cells[0])})  # type: ignore[arg-type]


def as_written(row: Row) -> dict[str, Any]:
    """The cells of a row that are not empty, rounded as metrics.csv has them."""
    cells = {key: value for key, value in asdict(row).items() if value is not None}
    return {key: type(value)(spell(value)) for key, value in cells.items()}


def flush(directory: Path) -> None:
    """Bring metrics.csv to the disk: before a checkpoint says that its rows exist."""
    check_held(directory)
    path = directory / METRICS
    if path.exists():
        with path.open("a") as file:
            os.fsync(file.fileno())


def first_line(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    text = str(error).strip().splitlines()
    if isinstance(error, SystemExit):
        return f"it called for the end of the process (exit code {error.code})"
    return (text[0] if text else type(error).__name__)[:200]
