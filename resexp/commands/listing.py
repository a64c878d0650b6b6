"""``resexp list`` and ``resexp show``: what was trained, and what can be chosen. Never torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resexp.analysis.results import find_runs
from resexp.console import counted, duration, grid, percent, tell
from resexp.runs.records import ERROR
from resexp.settings import UsageError, choices, complete

#: The columns of ``resexp list``: run.json's keys and those of its last row.
COLUMNS = ["run", "name", "status", "clean_train_error", "test_error", "seconds", "updated"]


def runs(root: Path, filters: list[str]) -> list[dict[str, Any]]:
    """One row for each run under ``root`` that passes the filters, newest last."""
    skipped: list[str] = []
    found = find_runs(root, filters, skipped)
    for sentence in skipped:
        tell(f"warning: {sentence}")
    records = [run.record | run.record["last"] for run in found]
    return [{key: record.get(key) for key in COLUMNS} for record in records]


def settings(names: Sequence[str]) -> list[dict[str, Any]]:
    """Every setting, or those named, with its default, its meaning and its values.

    Raises UsageError for a name that is none.
    """
    known = choices.described()
    if unknown := [name for name in names if choices.full_key(name) not in known]:
        near = choices.nearest(unknown[0], known)
        raise UsageError(f"unknown setting {unknown[0]}.{near} All of them: resexp list settings.")
    defaults = complete({})
    return [
        {
            "setting": key,
            "default": defaults.get(key),
            "meaning": known[key],
            "values": " ".join(choices.values(key)),
        }
        for key in ([choices.full_key(name) for name in names] or known)
    ]


def options(what: str) -> list[dict[str, Any]]:
    """The options of a config group with a sentence each."""
    group = what if what == "data" else what.removesuffix("s")
    return [{group: option, **choices.facts(group, option)} for option in choices.options(group)]


#: Settings that ``resexp show`` tells by other words.
TOLD_APART = ("results", "depth", "seed", "arch.merge")
#: What a column of people's tables is called, if not as its key.
TITLES = {"clean_train_error": "clean training|error", "test_error": "test|error"}
TITLES |= {"name": "experiment", "seconds": "time", "updated": "updated (UTC)"}
#: The columns that a narrow screen goes without, the first of them first.
SPARE = ("updated", "name", "seconds", "clean_train_error")


def text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "none"
    keys = [*rows[0]]
    body = [[cell(key, row.get(key)) for key in keys] for row in rows]
    sides = "".join(">" if key.endswith("_error") or key == "seconds" else "<" for key in keys)
    heads = [TITLES.get(key, key.replace("_", " ")) for key in keys]
    return "\n".join(grid(heads, body, sides, [keys.index(key) for key in SPARE if key in keys]))


def cell(key: str, value: Any) -> str:
    if key.endswith("_error"):
        return percent(value)
    if value is None:
        return "-"
    if key == "updated":
        return str(value)[:16].replace("T", " ")
    return duration(value) if key == "seconds" else str(value)


def known(fact: str | float | None) -> str:
    """A fact of a record as people read it; a dash where an older version kept none."""
    return "-" if fact is None else f"{fact:,}" if isinstance(fact, int | float) else fact


def find(name: str) -> dict[str, Any]:
    """The record of a run given by its folder, or by its name if one run alone has it."""
    hits = find_runs(Path(name))
    if [run.run for run in hits] != [Path(name).absolute().name]:
        hits = [run for run in find_runs(Path("results")) if run.run == name]
    if len(hits) > 1:
        places = ", ".join(str(hit.path) for hit in hits)
        raise UsageError(f"{name} names {len(hits)} runs: give the folder, one of {places}.")
    if not hits:
        raise UsageError(f"there is no run {name}. All runs: resexp list.")
    return {"directory": str(hits[0].path), **hits[0].record}


def show(record: dict[str, Any]) -> str:
    """A run for people: what it is, how it went, what it changed, how to repeat it."""
    last, place = record["last"], record.get("environment") or {}
    settings, data = complete(record["settings"]), record["data"]
    defaults = complete({}) | {key: settings[key] for key in TOLD_APART}
    changed = [f"{key}={value}" for key, value in settings.items() if value != defaults.get(key)]
    dirty = " with uncommitted changes" if place.get("git_dirty") else ""
    mflops = "-" if (flops := record.get("flops")) is None else f"{flops / 1e6:,.1f}"
    lines = {
        "run": f"{record['directory']}   {record['status']}",
        "network": f"{record['arch']}, {record['depth']} layers, "
        f"{known(record.get('parameters'))} parameters "
        f"({known(record.get('parameters_without_norm'))} without normalisation), "
        f"{mflops} MFLOPs an image",
        "data": f"{known(data.get('name'))}, {known(data.get('train'))} + "
        f"{known(data.get('test'))} images of "
        + "x".join(str(side) for side in data.get("shape") or "-"),
        "progress": f"step {last.get('step') or 0:,} of {settings['steps']:,}, "
        f"{duration(record.get('seconds') or 0)} of training, "
        f"last at {known(record.get('updated'))}",
        "errors": f"train {percent(last.get('train_error'))}   "
        f"clean {percent(last.get('clean_train_error'))}   test {percent(last.get('test_error'))}",
        "machine": f"{known(place.get('device_name'))}, "
        f"{counted(place.get('threads', '-'), 'CPU thread')}, {known(place.get('precision'))}, "
        f"engine {place.get('engine', 'eager')}, torch {known(place.get('torch'))}, "
        f"Python {known(place.get('python'))}",
        "code": f"commit {place['git_commit']}{dirty}"
        if place.get("git_commit")
        else f"resexp {place.get('resexp') or 'of unknown version'}",
        "settings": ", ".join(changed) or "all at their defaults",
        "again": f"{known(record.get('command'))} overwrite=true",
    }
    if record.get("error"):
        lines["error"] = f"{record['error']}   (all of it: {record['directory']}/{ERROR})"
    return "\n".join(f"{key:<9} {value}" for key, value in lines.items())
