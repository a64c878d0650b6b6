"""Run directories as Python objects and as one tidy table. Reads, never writes; needs no torch.

Plain json and csv only: pandas is imported by ``load_results`` and by nothing else here.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from resexp.analysis import export
from resexp.files import read_json, read_text
from resexp.runs.records import FINISHED, METRICS, RECORD, fault, parse_row
from resexp.settings import UsageError, complete, earlier, flatten
from resexp.settings.choices import nearest
from resexp.train.row import COLUMNS as METRIC_COLUMNS
from resexp.train.row import HEADERS, Row

if TYPE_CHECKING:
    import pandas as pd

Item = TypeVar("Item")
Key = TypeVar("Key")

#: Columns of ``load_results`` before those of metrics.csv.
LABELS = ("name", "run", "arch", "series", "depth", "seed", "status")


@dataclass
class Run:
    """One run: its place and its run.json; its metrics.csv if it is of an exported sweep."""

    path: Path
    record: dict[str, Any]
    exported: list[str] | None = field(default=None, repr=False)
    #: Typed settings but of the network that all runs read with it share: no part of its label.
    shared: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        record = self.record
        self.run: str = record["run"]
        self.name: str = record["name"]
        self.arch: str = record["arch"]
        self.depth: int = record["depth"]
        self.seed: int = record["seed"]
        self.status: str = record["status"]
        #: The settings in which this run differs from its experiment.
        self.extras: dict[str, Any] = record["extras"]

    @classmethod
    def read(cls, directory: Path) -> Run:
        """The run that lies in ``directory``. Raises UsageError if none does."""
        record = _read(directory / RECORD)
        if record is None:
            raise UsageError(f"{directory} holds no {RECORD} of a run. See resexp list.")
        return cls(directory, record)

    def __repr__(self) -> str:
        error = self.value("clean_train_error")
        said = "" if error is None else f", clean training error {error:.1f} %"
        return f"Run({self.path}, {self.status}{said})"

    def _repr_html_(self) -> str:
        from resexp.analysis.inline import shown

        return shown([self], repr(self))

    @property
    def skipless(self) -> bool:
        """Whether its network has no skip connections: plain, or trained as another's twin."""
        return bool(self.setting("arch.merge") == "plain" or self.setting("twin") != "none")

    @cached_property
    def series(self) -> str:
        """The line it belongs to in a figure: ``residual`` or ``residual,arch.shortcut=B``."""
        return ",".join([self.arch, *self.typed(self.extras.keys() - self.shared)])

    def typed(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` in which it differs from its experiment, as they were typed."""
        return [f"{key}={spell(self.extras[key])}" for key in sorted(keys) if key in self.extras]

    @property
    def data(self) -> str:
        return str(self.record["data"].get("name") or self.setting("data.name"))

    @property
    def segments(self) -> bool:
        """Whether it learns masks, so that its errors are of pixels."""
        return bool(self.record["data"].get("task") == "segmentation")

    @property
    def environment(self) -> dict[str, Any]:
        """What it was trained on and with; {} if it failed before that was known."""
        return self.record.get("environment") or {}

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    @property
    def experiment(self) -> Path:
        return self.path.parent

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings by flat key, such as ``data.name``; defaults where the run is older."""
        return complete(self.record["settings"])

    def setting(self, key: str) -> Any:
        """A setting's value, or the option typed of a group that is none, such as data."""
        if key in self.settings:
            return self.settings[key]
        return self.extras.get(key, self.data if key == "data" else None)

    def value(self, column: str) -> float | None:
        """The newest value of a column of metrics.csv, from run.json; None if there is none."""
        value = self.record["last"].get(column)
        return None if value is None else float(value)

    def endpoint(self, column: str) -> float | None:
        """The last step's value of a loss, error or overlap; None for a run that is not finished.

        A diverged run counts at chance.
        """
        if not self.finished or (column.endswith("_iou") and not self.segments):
            return None
        return self.chance(column) if self.status == "diverged" else self.value(column)

    def chance(self, column: str) -> float:
        """What guessing gives: of a loss log(classes), of an error that of always giving the
        commonest class, whose overlap is its share of the pixels and that of all others 0.
        """
        classes = int(self.record["data"]["classes"])
        error = float(self.record["data"].get("chance_error") or 100 * (1 - 1 / classes))
        if column.endswith("_iou"):
            return (100 - error) / classes
        return math.log(classes) if column.endswith("_loss") else error

    def lines(self) -> list[str]:
        """The lines of its metrics.csv, with their ends; [] if there is none yet.

        Raises UsageError if there should be.
        """
        path = self.path / METRICS
        if self.exported is not None:
            return self.exported
        if not path.exists() and not self.finished:
            return []
        try:
            return read_text(path).splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read. Train {self.run} again.") from error

    def rows(self) -> list[Row]:
        """The rows of its metrics.csv; [] if it ended, or still is, before the first.

        Read once. Raises UsageError naming the file and the line where the file is damaged. The
        last line of an unfinished run may be torn: it is left out.
        """
        return list(self._rows)

    @cached_property
    def _rows(self) -> list[Row]:
        path, lines = self.path / METRICS, self.lines()
        if lines and not lines[-1].endswith("\n"):
            if self.finished:
                raise UsageError(f"{path}, line {len(lines)} is torn. Train {self.run} again.")
            lines.pop()
        if not lines and not self.finished:
            return []
        columns = tuple(lines[0].rstrip("\n").split(",")) if lines else ()
        if columns not in HEADERS:
            raise UsageError(f"{path}, line 1 is not {','.join(METRIC_COLUMNS)}.")
        rows: list[Row] = []
        for number, line in enumerate(lines[1:], start=2):
            try:
                rows.append(parse_row(line, columns))
                if len(rows) > 1 and rows[-1].step <= rows[-2].step:
                    raise ValueError("its step does not rise")
            except ValueError as error:
                raise UsageError(f"{path}, line {number} is damaged: {error}.") from error
        return rows


class Sweep(list[Run]):
    """Runs that a notebook shows."""

    def _repr_html_(self) -> str:
        from resexp.analysis.inline import shown

        return shown(self, f"{len(self)} runs") if self else "no runs"


def find_runs(
    root: Path, filters: Sequence[str] = (), skipped: list[str] | None = None
) -> list[Run]:
    """The runs under ``root``, sorted by experiment, series, depth and seed.

    ``root`` is a results folder, an experiment folder or one run folder: the first level that holds
    runs is taken, and other experiments below it are not. An exported pair of files stands for the
    directories of its runs; one that is there comes before the exported run. ``filters`` such as
    ``arch=plain``, ``depth=20,56`` or ``lr=0.01`` must all hold. A directory whose run.json is no
    record of a run is left out, and a sentence about it added to ``skipped``. Raises UsageError for
    a filter whose setting does not exist, and for a damaged pair.
    """
    runs = _runs_below(root.parent if root.name == export.RUNS else root, skipped)
    for key, values in [_filter(text, runs) for text in filters]:
        runs = [run for run in runs if _holds(run, key, values)]
    if runs:
        common = set.intersection(*({*run.typed(run.extras)} for run in runs))
        shared = {word.partition("=")[0] for word in common if word[:5] not in ("arch.", "twin=")}
    for run in runs:
        run.shared = frozenset(shared)
    return sorted(runs, key=lambda run: (run.name, str(run.path.parent), *order(run)))


def _runs_below(root: Path, skipped: list[str] | None) -> list[Run]:
    """The runs of the first level that holds any."""
    read = cache(export.read)
    for level in range(3):
        runs: dict[Path, Run] = {}
        for folder in [*_pairs(root, level - 1), *_pairs(root, level - 2)]:
            for name, exported, lines in read(folder):
                path = folder / name
                if [path, *path.parents][level : level + 1] == [root]:
                    runs[path] = _exported(path, exported, lines)
        records = sorted(root.glob("*/" * level + RECORD))
        for path in records:
            if (record := _read(path)) is not None:
                runs[path.parent] = Run(path.parent, record)
            elif skipped is not None:
                skipped.append(
                    f"{path} is not a record of a run: left out. See resexp doctor --results."
                )
        if runs or records:
            return list(runs.values())
    return []


def _pairs(root: Path, level: int) -> list[Path]:
    """The folders of exported pairs so many levels below ``root``, or above it."""
    if level < 0:
        found = [*root.parents][-level - 1 : -level]
    else:
        found = [path.parent for path in root.glob("*/" * level + export.RUNS)]
    return [folder for folder in found if export.is_pair(folder)]


def _exported(path: Path, record: dict[str, Any], lines: list[str]) -> Run:
    if reason := fault(record):
        raise UsageError(f"{path} is damaged in {export.RUNS}: {reason}. Export its runs again.")
    return Run(path, record, exported=lines)


def require_runs(root: Path, filters: Sequence[str] = ()) -> list[Run]:
    """``find_runs``, with a UsageError where there is nothing.

    What is left out is said on stderr: no number is computed from fewer runs than there are without
    a word.
    """
    left_out: list[str] = []
    runs = find_runs(root, filters, left_out)
    for sentence in left_out:
        print(f"warning: {sentence}", file=sys.stderr)
    if runs:
        return runs
    if filters and find_runs(root):
        raise UsageError(f"no run in {root} has {' '.join(filters)}. See resexp list.")
    raise UsageError(
        f"no runs in {root}. Train some: resexp run -m depth=20,56 arch=plain,residual"
    )


def export_runs(root: Path, filters: Sequence[str], out: Path) -> Path:
    """Write the runs under ``root`` as a pair of files, and return its folder in ``out``.

    It is called as their experiment, or as the folder of their experiments if they are of several.
    """
    runs = require_runs(root, filters)
    experiment = runs[0].experiment
    several = any(run.experiment != experiment for run in runs)
    pair = out / (experiment.parent if several else experiment).resolve().name
    exported = [
        (f"{run.experiment.name}/{run.run}" if several else run.run, run.record, run.lines())
        for run in runs
    ]
    export.write(exported, pair)
    return pair


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by their key, in the order given."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def order(run: Run) -> tuple[int, str, int, int]:
    """Sorting key: plain first, its residual twin second, then the others; shallow to deep."""
    rank = {"plain": 0, "residual": 1}.get(run.arch, 2)
    return (rank, run.series, run.depth, run.seed)


def load_results(root: str | Path = "results", filters: Sequence[str] = ()) -> pd.DataFrame:
    """Every evaluation of every run under ``root``, one a row: LABELS, then metrics.csv's columns.

    Errors in percent, losses in nats, NaN where not measured; the columns of overlaps only if a run
    has them. Raises UsageError if there is no run.
    """
    import pandas as pd

    runs = require_runs(Path(root), filters)
    table = [
        {label: getattr(run, label) for label in LABELS} | asdict(row)
        for run in runs
        for row in run.rows()
    ]
    columns = HEADERS[any(row["test_iou"] is not None for row in table)]
    frame = pd.DataFrame(table, columns=[*LABELS, *columns])
    return frame.astype({key: float for key in columns if key != "step"})


def spell(value: Any) -> str:
    """A setting as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _read(path: Path) -> dict[str, Any] | None:
    """A record, or None: anything may lie in a results folder."""
    record = read_json(path)
    return None if fault(record) else record


def _facts(run: Run) -> dict[str, Any]:
    """Everything that a filter may ask of a run. The record's arch and data win over settings."""
    record = {key: value for key, value in run.record.items() if key not in ("settings", "extras")}
    return run.settings | flatten(record) | {"series": run.series}


def _filter(text: str, runs: list[Run]) -> tuple[str, list[Any]]:
    """``depth=20,56`` as ("depth", [20, 56]). Raises UsageError for a key that no run has."""
    key, equals, values = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is not a filter. Write setting=value, such as depth=20,56.")
    key = earlier(key)
    known = set(complete({})) | {"arch", "run", "status", "series"}
    if key not in known:
        known |= {fact for run in runs for fact in _facts(run)}
    if key not in known:
        hint = nearest(key, sorted(known)) or " Try arch, depth, seed or status."
        raise UsageError(f"unknown setting {key}.{hint}")
    # A comma inside brackets belongs to a list, and one before key=value to a series.
    parts = re.split(r",(?![^\[]*\])(?!\w[\w.]*=)", values)
    return key, [_typed(part) for part in parts]


def _typed(text: str) -> Any:
    """A number, true, false, null or a list where the text spells one, else the text itself."""
    decimal = re.fullmatch(r"[+-]?\.\d+(e[+-]?\d+)?", text, re.IGNORECASE)  # no JSON, as typed
    return float(text) if decimal else export.value(text)


def _holds(run: Run, key: str, values: list[Any]) -> bool:
    actual = _facts(run).get(key)
    if isinstance(actual, str) and actual in map(spell, values):
        return True
    # In Python True equals 1, but deterministic=true is not seed=1.
    return any(
        actual == one and isinstance(actual, bool) == isinstance(one, bool) for one in values
    )
