"""Sweeps as two files that any program reads, in place of a folder a run: what is committed.

``runs.csv`` has a line for each run: what its run.json says, nested keys joined by dots. What all
runs share stands once, as JSON, in a comment above the header. ``rows.csv`` has every row of every
metrics.csv, the run's name before it. With pandas: ``read_csv("runs.csv", skiprows=1)``. Every
reading command takes the folder of such a pair as it takes one of run directories. In a pair of
several experiments a run goes by ``experiment/run``, and is read as if it lay there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from resexp.files import parse_json, printable, read_text
from resexp.runs.records import METRICS, write_atomically, write_record
from resexp.settings import UsageError
from resexp.train.row import HEADERS

RUNS, ROWS = "runs.csv", "rows.csv"

#: First columns of runs.csv.
FIRST = ("run", "arch", "depth", "seed", "status")
#: Entries of a record that are cells as they are: their keys may hold dots.
WHOLE = ("extras",)

#: What a run goes by in a pair, its record, and its metrics.csv as lines with their ends.
Exported = tuple[str, dict[str, Any], list[str]]


def write(runs: Sequence[Exported], folder: Path) -> None:
    """Write the pair. Raises UsageError if two runs share a name, Unwritten if there is no room."""
    names = [name for name, _, _ in runs]
    records = [flat(record) | {"run": name} for name, record, _ in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"several runs are called {min(twice)}. Choose with a filter.")
    keys = list(dict.fromkeys([*FIRST, *(key for record in records for key in record)]))
    # An empty cell is a key that the run lacks, which is not to have null.
    cells = {
        key: [cell(record[key]) if key in record else "" for record in records] for key in keys
    }
    shared = {key for key in keys if key not in FIRST and len(set(cells[key])) == 1}
    columns = [key for key in keys if key not in shared]
    once = json.dumps({key: records[0][key] for key in shared}, sort_keys=True)
    table = zip(*(cells[key] for key in columns), strict=True)
    # Rows of sets without masks lack the columns of overlaps.
    header = max((lines[0] for *_, lines in runs if lines), key=len, default="").strip().split(",")
    rows = []
    for name, _, lines in runs:
        split = [line.rstrip("\n").split(",") for line in lines[1:]]
        rows += [[name, *row, *[""] * (len(header) - len(row))] for row in split]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RUNS, f"# {once}\n{spelled([columns, *table])}")
    write_atomically(folder / ROWS, spelled([["run", *header], *rows]))


def read(folder: Path) -> list[Exported]:
    """The runs of a pair, as their run.json and metrics.csv were.

    Raises UsageError, naming the file, if it is none.
    """
    try:
        once, _, table = read_text(folder / RUNS).partition("\n")
        shared, known = parse_json(once.removeprefix("#")), cache(value)
        records = [
            nested(shared | {key: known(text) for key, text in line.items() if text})
            for line in csv.DictReader(io.StringIO(table))
        ]
        (first, *columns), *rows = csv.reader(io.StringIO(read_text(folder / ROWS)))
        if first != "run" or tuple(columns) not in HEADERS:
            raise ValueError(f"{ROWS} begins with {first}")
        lines: dict[str, list[list[str]]] = {str(record["run"]): [] for record in records}
        if len(lines) < len(records):
            raise ValueError(f"{RUNS} names a run twice")
        for name, *cells in rows:
            lines[name].append(cells)
        found = []
        for record, (name, of_run) in zip(records, lines.items(), strict=True):
            its, step = metrics(columns, of_run), record["last"].get("step", 0)
            if (its and not its[-1].startswith(f"{step},")) or (step and not its):
                raise ValueError(f"{ROWS} lacks rows of {name}")
            record["run"] = own_name(name)
            found.append((name, record, its))
        return found
    except (OSError, ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise UsageError(
            f"{folder} holds no pair {RUNS} and {ROWS} of resexp export ({printable(str(error))}). "
            "Export its runs again."
        ) from error


def unpack(folder: Path) -> list[Path]:
    """Write the pair in ``folder`` back as run directories beside it; returns those written.

    So runs that were exported elsewhere count as finished here. What is there already stays.
    """
    written = []
    for name, record, lines in read(folder):
        directory = folder / name
        if not directory.exists():
            directory.mkdir(parents=True)
            if lines:
                write_atomically(directory / METRICS, "".join(lines))
            write_record(directory, record)
            written.append(directory)
    return written


def own_name(name: str) -> str:
    """The run's in ``experiment/run``. Raises ValueError if it would lie somewhere else."""
    parts = name.split("/")
    if len(parts) > 2 or not {"", ".", ".."}.isdisjoint(parts) or not name.isprintable():
        raise ValueError(f"{RUNS} names a run {name}")
    return parts[-1]


def is_pair(folder: Path) -> bool:
    """Whether both files are in ``folder``."""
    return (folder / RUNS).is_file() and (folder / ROWS).is_file()


def metrics(columns: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of one run's metrics.csv; none of a run without rows."""
    if not rows:
        return []
    plain, with_overlap = HEADERS
    wide = len(columns) == len(with_overlap) and any("".join(row[len(plain) :]) for row in rows)
    width = len(with_overlap if wide else plain)
    return [",".join(row[:width]) + "\n" for row in (columns, *rows)]


def spelled(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"name": ...}} as {"data.name": ...}; what is empty stays as it is."""
    found: dict[str, Any] = {}
    for key, held in record.items():
        if isinstance(held, dict) and held and key not in WHOLE:
            found |= flat(held, f"{prefix}{key}.")
        else:
            found[prefix + key] = held
    return found


def nested(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ``flat`` flattened."""
    found: dict[str, Any] = {}
    for key, held in record.items():
        *groups, leaf = key.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = held
    return found


def cell(held: Any) -> str:
    """A value as a cell: a text as it is unless it would read as something else."""
    if not isinstance(held, str):
        return json.dumps(held, sort_keys=True)
    return json.dumps(held) if held != value(held) or not held else held


def value(text: str) -> Any:
    """What a cell spells."""
    try:
        return parse_json(text)
    except ValueError:
        return text
