"""``resexp doctor --results DIR``: what is wrong in a results tree, what it means, what to type.

Reads and never writes; believes nothing it reads. Never imports torch.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resexp.analysis import export
from resexp.analysis.results import Run, find_runs
from resexp.files import printable, read_json, read_text
from resexp.runs.lock import CLAIM, CLOCK, LOCK, is_held
from resexp.runs.preregistration import NAME as PREREGISTRATION
from resexp.runs.records import (
    BEGUN,
    CONFIG,
    ERROR,
    FINISHED,
    METRICS,
    RECORD,
    are_whole,
    as_written,
    fault,
    finite,
)
from resexp.settings import Settings, UsageError, as_dict, digest, flatten, run_name
from resexp.settings.job import LATER
from resexp.train.row import TIME_COLUMNS

OURS = {RECORD, METRICS, CONFIG, ERROR, LOCK}
CHECKPOINT = "checkpoint"  # how the names of all checkpoints begin
LEVELS = 3  # below the folder given: experiments, runs, and a group of experiments above them

EDITED = "it was edited by hand: its numbers would stand for "

Found = tuple[str, str, str, str]  # level, what is wrong, what it means, what to type


@dataclass(slots=True)
class Trouble:
    """One thing about one directory. ``level`` is warn (no number is touched) or fail."""

    level: str
    directory: str
    what: str
    meaning: str
    remedy: str


def inspect(root: Path) -> list[Trouble]:
    """Everything that is wrong below ``root``: results, an experiment or a run."""
    os.listdir(root)  # raises here if that cannot be read; below it is one of the faults
    seen: dict[tuple[str, str], Path] = {}
    return [
        Trouble(level, printable(str(directory)), printable(what), meaning, printable(remedy))
        for directory in directories(root, LEVELS)
        for level, what, meaning, remedy in (*troubles(directory), *copies(directory, seen))
    ]


def directories(root: Path, levels: int) -> Iterator[Path]:
    """Directories that are a run, or ought to be: with a run's file in them, or nothing below."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        names = []
    below = [root / name for name in names if os.path.isdir(root / name)]
    is_run = OURS & set(names) or any(name.startswith(CHECKPOINT) for name in names)
    if root.is_symlink() or is_run or not below:
        yield root
        return
    for folder in below if levels else []:
        yield from directories(folder, levels - 1)


def copies(directory: Path, seen: dict[tuple[str, str], Path]) -> Iterator[Found]:
    """A run of which there is another copy beside it, among those ``seen``."""
    record = read_json(directory / RECORD)
    if fault(record):
        return
    twin = seen.setdefault((str(directory.parent), record["run"]), directory)
    if twin != directory:
        what, remedy = f"the same run as {twin.name}", f"move one away, as with {move(directory)}"
        yield "fail", what, "it counts twice in means and verdicts", remedy


def troubles(directory: Path) -> Iterator[Found]:
    """What is wrong with one directory by itself."""
    if directory.is_symlink():
        what = f"a link to {directory.resolve()}"
        meaning = "its runs are read, and never written through the link"
        yield "warn", what, meaning, "nothing, or train there with results=..."
        return
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        remedy = f"chmod u+rwx {quoted(directory)}"
        yield "fail", f"cannot be read: {error.strerror}", "no reader counts what is there", remedy
        return
    if links := [name for name in names if os.path.islink(directory / name)]:
        meaning = "resexp run refuses it: writing would change another place"
        yield "fail", f"{links[0]} is a link", meaning, f"rm {quoted(directory / links[0])}"
    record = read_json(directory / RECORD)
    if RECORD not in names:
        pair = export.is_pair(directory)
        yield from of_pair(directory) if pair else without_record(directory, names)
    elif reason := fault(record):
        what = f"{RECORD} is damaged or edited: {reason}"
        meaning = "the run is left out of every list, table, figure and verdict"
        yield "fail", what, meaning, rerun(directory)
    else:
        yield from of_record(directory, record)
        if not is_held(directory):  # what follows is true of every run at work
            yield from of_rows(Run(directory, record))
            yield from of_status(record)
            yield from leftovers(directory, names, record)


def of_pair(directory: Path) -> Iterator[Found]:
    """An exported sweep: two files in place of run directories."""
    try:
        runs = find_runs(directory)
    except UsageError as refusal:
        yield "fail", str(refusal), "none of its runs is read", f"git checkout {quoted(directory)}"
        return
    for run in runs:
        yield from of_record(run.path, run.record)
        yield from of_rows(run)


def without_record(directory: Path, names: list[str]) -> Iterator[Found]:
    """A directory without run.json; one that was preregistered and not begun is sound."""
    if PREREGISTRATION in names:
        return
    foreign = [one for one in names if one not in BEGUN and not one.startswith((CLAIM, CLOCK))]
    if not foreign and is_held(directory):
        return
    if not foreign:
        said = last_line(directory / ERROR)
        what = f"it failed before it began: {said}" if said else "empty: a run that never began"
        remedy = f"run its sweep again, or rm -r {quoted(directory)}"
        yield "warn", what, "no reader counts it", remedy
    elif METRICS in names or any(name.startswith(CHECKPOINT) for name in names):
        meaning = "no reader counts it, and resexp run refuses it: its settings are unknown"
        what = f"half of a run: {foreign[0]} without {RECORD}"
        yield "fail", what, meaning, rerun(directory)
    else:
        what = f"not a run of resexp: it holds {foreign[0]} and no {RECORD}"
        meaning = "no reader counts it; resexp run refuses a run of that name"
        yield "warn", what, meaning, f"nothing, or {move(directory)}"


def of_record(directory: Path, record: dict[str, Any]) -> Iterator[Found]:
    """A record that contradicts itself or its place."""
    flat = flatten(record["settings"])
    known = flatten(as_dict(Settings()))
    complete = known.keys() - LATER <= flat.keys()  # else of a version with other digests
    if complete and record.get("digest") != digest(record["settings"]):
        what = f"the settings in {RECORD} are not those it was trained with (their digest differs)"
        yield "fail", what, f"{EDITED}settings they do not have", rerun(directory)
    for key in ("depth", "seed"):
        if key in flat and flat[key] != record[key]:
            what = f"{RECORD} says {key}={record[key]} and, among its settings, {key}={flat[key]}"
            yield "fail", what, f"{EDITED}another network", rerun(directory)
    name = run_name(record["arch"], record["depth"], record["seed"], record["extras"])
    if directory.name != name:
        meaning = "it is read as that run; resexp run looks for it under that name and would"
        remedy = f"mv {quoted(directory)} {quoted(directory.with_name(name))}"
        yield "warn", f"renamed: its record is of {name}", f"{meaning} retrain", remedy


def of_rows(run: Run) -> Iterator[Found]:
    """Rows that are damaged, missing, or not those that the record tells of."""
    remedy = again(run.record, ["overwrite=true"])
    try:
        rows = run.rows()
    except UsageError as error:
        yield "fail", str(error), "figures and reports refuse it", remedy
        return
    if not run.finished:
        return
    wanted, end = run.setting("steps"), rows[-1].step if rows else 0
    whole = are_whole(rows, run.setting("eval_every"), wanted, end)
    if not whole or (run.status != "diverged" and end != wanted):
        what = f"{METRICS} lacks rows: it has {len(rows)}, the last after step {end:,}"
        yield "fail", f"{what} of {wanted:,}", "curves would be drawn without them", remedy
        return
    last: dict[str, Any] = {}
    for row in rows:
        last |= as_written(row)
    meaning = "one was edited: tables and verdicts use the first, curves the second"
    for key, value in finite(last).items():
        said = run.record["last"].get(key)
        if key not in TIME_COLUMNS and said != value:
            yield "fail", f"{RECORD} says {key} {said}, {METRICS} {last[key]}", meaning, remedy
            return


def of_status(record: dict[str, Any]) -> Iterator[Found]:
    """A run that is not finished, and that nobody is at."""
    what = {
        "running": "it was killed while it trained",
        "interrupted": "it was stopped, and saved",
        "failed": f"it failed: {record.get('error')}",
    }.get(record["status"])
    if what:
        yield "warn", what, "it is unfinished: no mean or verdict counts it", again(record)


def leftovers(directory: Path, names: list[str], record: dict[str, Any]) -> Iterator[Found]:
    """Files that nothing will read again."""
    done = record["status"] in FINISHED and not record["settings"].get("keep_checkpoint")
    ends = (".tmp", ".bad")
    left = [one for one in names if one.endswith(ends) or (done and one.startswith(CHECKPOINT))]
    if left:
        paths = " ".join(quoted(directory / name) for name in left)
        yield "warn", f"left behind: {', '.join(left)}", "room on the disk", f"rm {paths}"


def again(record: dict[str, Any], more: Sequence[str] = ()) -> str:
    """The command that trains a run, spelled anew: what a file says is not pasted into a shell."""
    try:
        words = shlex.split(str(record.get("command")))
    except ValueError:
        words = []
    if words[:2] != ["resexp", "run"]:
        return " with ".join(["run its sweep again", *more])
    return shlex.join([*words, *more])


def move(directory: Path) -> str:
    """The command that takes a directory out of every reader's way."""
    return f"mkdir -p rejected; mv {quoted(directory)} rejected/"


def rerun(directory: Path) -> str:
    return f"{move(directory)}, then run its sweep again"


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def last_line(path: Path) -> str:
    """What went wrong, by a traceback."""
    try:
        return read_text(path, errors="replace").strip().rpartition("\n")[2][:200]
    except OSError:
        return ""


def text(root: Path, found: list[Trouble]) -> str:
    """What is wrong, directory by directory."""
    if not found:
        return f"ok    {root}: nothing is wrong"
    lines = []
    for one in found:
        lines.append(f"{one.level:<5} {one.directory}\n      {one.what}")
        lines.append(f"      so: {one.meaning}\n      do: {one.remedy}")
    faults = sum(one.level == "fail" for one in found)
    lines.append(f"{len(found)} found, {faults} of them to fix" if faults else "nothing to fix")
    return "\n".join(lines)
