"""One HTML file that says what was found, shows it, and holds what is needed to check it.

It needs nothing from outside: styles, script, figures (inline SVG) and CSV files are in it, and its
content security policy forbids every request. Without a script it is the same page, only still.
Here plain values are made ready; template.html says how they look, and escapes every text.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from resexp.analysis import table, verdict
from resexp.analysis.figures.canvas import spaced
from resexp.analysis.report.charts import charts, embed
from resexp.analysis.report.origin import commands, facts
from resexp.analysis.results import Run, require_runs, spell
from resexp.runs.records import write_atomically
from resexp.settings import UsageError, flatten

FILE = "report.html"
MOST_CSV = 1_000_000  # bytes of metrics.csv in one page; more are packed with gzip

#: What a probe-<name>.json must hold to be a finding.
FINDING = {"probe", "claim", "source", "verdict", "sentence", "recipe", "command", "conventions"}


def write_report(root: Path, out: Path | None = None, filters: Sequence[str] = ()) -> Path:
    """Write the report of the runs under ``root`` to ``out`` (default: report.html in ``root``).

    A section an experiment, if there are several. ``out`` may be a folder. Returns the file. Raises
    UsageError if there are no runs, a metrics.csv is damaged, or the file cannot be written.
    """
    runs = require_runs(root, filters)
    path = root / FILE if out is None else out / FILE if out.is_dir() else out
    # Written in ASCII, the rest as character references: no locale can spoil it.
    text = page(runs, filters).encode("ascii", "xmlcharrefreplace").decode("ascii")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}). Choose another place with --out."
        ) from error
    return path


def page(runs: Sequence[Run], filters: Sequence[str] = ()) -> str:
    """The whole document."""
    groups: dict[Path, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    experiments = [
        experiment(group, filters, f"e{index}") for index, group in enumerate(groups.values())
    ]
    loader = PackageLoader("resexp.analysis.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    # The script as it is, neither a template nor escaped: the policy allows it by its digest.
    script = loader.get_source(environment, "script.js")[0]
    epoch = os.environ.get("SOURCE_DATE_EPOCH")  # reproducible-builds.org: the same page again
    several = len(experiments) > 1
    return environment.get_template("template.html").render(
        title=f"{len(experiments)} experiments" if several else f"Experiment {runs[0].name}",
        experiments=experiments,
        values={id: each for one in experiments for id, each in one.pop("values").items()},
        several=several,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=own_version(),
        now=datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC),
    )


def experiment(runs: Sequence[Run], filters: Sequence[str], key: str) -> dict[str, Any]:
    """Everything about one experiment."""
    drawn = [embed(chart, f"{key}-{name}") for name, chart in charts(runs).items()]
    return {
        "id": key,
        "name": runs[0].name,
        "verdict": judgement(runs),
        "charts": drawn,
        "values": {id: each for chart in drawn for id, each in chart["values"].items()},
        "results": results(runs),
        "findings": findings(runs[0].experiment),
        "facts": facts(runs, filters),
        "commands": commands(runs, filters),
        "runs": run_list(runs),
    }


# --- the verdict


def judgement(runs: Sequence[Run]) -> dict[str, Any]:
    """The decision in a sentence, the numbers it rests on, and what to know before believing it."""
    try:
        decided = verdict.decide(runs)
    except UsageError as refusal:
        return {"refusal": str(refusal)}
    spoken, found = verdict.text(decided), decided.as_dict()
    failed = [f"{count} {status}" for status, count in found["failures"].items() if count]
    unfinished = f" Unfinished: {found['unfinished']}." if found["unfinished"] else ""
    notes = [
        f"{verdict.RULE} Intervals are 95\u00a0% t intervals.",
        f"Failures: {', '.join(failed) or 'none'} of {found['runs']} runs." + unfinished,
    ]
    if found["missing"]:
        notes.append(f"Missing: {', '.join(found['missing'])}. Seeds without a pair are left out.")
    return {
        "refusal": "",
        "sentence": spoken.splitlines()[0],
        "outcome": found["outcome"],
        "spoken": spoken,
        "notes": notes + found["notes"],
        "table": verdict_table(found),
    }


def verdict_table(found: dict[str, Any]) -> dict[str, Any]:
    """Changes from shallow to deep, a row a network, and the baseline minus each other."""
    rows = [
        [spaced(arm["series"]), *changes(arm["change"]), reading(arm["reading"], arm["label"])]
        for arm in found["arms"]
    ]
    rows += [
        [spaced(f"{found['baseline']} minus {series}"), *changes(change), ""]
        for series, change in found["interactions"].items()
    ]
    seeds = len(found["arms"][0]["change"]["seeds"])
    return {
        "caption": f"Change from {found['shallow']} to {found['deep']} layers, mean over {seeds} "
        f"paired {'seed' if seeds == 1 else 'seeds'} (95\u00a0% interval); errors in percent "
        "points. Effect d is the mean over the standard deviation of the differences.",
        "headings": [
            *("Network", "Clean training error", "Effect d", "p"),
            *("log10 clean loss", "Test error", "Reading"),
        ],
        "rows": rows,
        "words": [0, 6],
    }


def changes(change: dict[str, Any]) -> list[str]:
    d, p = change["train_error"]["d"], change["p"]
    return [
        interval(change["train_error"], 1),
        "" if d is None else signed(d, 1),
        "" if p is None else f"{p:.3g}",
        interval(change["loss"], 2),
        interval(change["test_error"], 1),
    ]


def interval(found: dict[str, Any], digits: int) -> str:
    """+2.12 (+1.86 to +2.39); only the mean of one seed, and no more than a dash of none."""
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    if mean is None:
        return "\u2013"
    spread = "" if low is None else f" ({signed(low, digits)} to {signed(high, digits)})"
    return signed(mean, digits) + spread


def signed(value: float, digits: int) -> str:
    """With a sign and a real minus; a rounded zero is +0.0, as resexp verdict prints it."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\u2212")


def reading(said: str, label: str) -> str:
    """The reading of the rule and the label, each where it says something new."""
    if label == verdict.NEITHER:
        return said
    return label if said == "degrades" else f"{said}; {label}"


# --- the results


def results(runs: Sequence[Run]) -> dict[str, Any]:
    """A row a network: means over seeds, failures, and published numbers where there are any."""
    lines = table.rows(runs)
    notes: list[str] = []
    headings = [
        *("Network", "Depth", "Parameters", "Seeds", "Clean training error % (sd)"),
        *("Training error %", "Test error % (sd)", "Clean loss", "Failures"),
    ]
    rows = [result(line) for line in lines]
    if any(line["published_test_error"] is not None for line in lines):
        headings.append("Published test error %")
        for cells, line in zip(rows, lines, strict=True):
            cells.append(table.published_cell(line, notes))
    remarks = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    if any(line["diverged"] for line in lines):
        remarks.append("A diverged run counts at chance.")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return {
        "caption": "Numbers of the last step; means over finished runs (standard deviation).",
        "headings": headings,
        "rows": rows,
        "words": [0],
        "notes": remarks,
        "csv": as_link(buffer.getvalue().encode()),
    }


def result(line: dict[str, Any]) -> list[str]:
    failures = line["collapsed"] + line["diverged"] + line["failed"]
    unfinished = f", {line['unfinished']} unfinished" if line["unfinished"] else ""
    parameters, loss = line["parameters"], line["clean_train_loss"]
    return [
        spaced(line["series"]),
        str(line["depth"]),
        "" if parameters is None else f"{parameters:,}",
        str(line["seeds"]),
        table.spread(line["clean_train_error"], line["clean_train_error_sd"]),
        table.spread(line["train_error"], None),
        table.spread(line["test_error"], line["test_error_sd"]),
        "" if loss is None else f"{loss:.2g}",
        f"{failures} of {line['runs']}{unfinished}",
    ]


def as_link(text: bytes) -> str:
    """A CSV file as an address that holds it: it needs neither a network nor a script."""
    return "data:text/csv;charset=utf-8," + quote(text, safe=",:+")


# --- mechanisms


def findings(folder: Path) -> list[dict[str, Any]]:
    """What ``resexp probe`` found beside the runs, each with its figure; others are passed over."""
    found = []
    for path in sorted(folder.glob("probe-*.json")):
        try:
            one = json.loads(path.read_text())
        except (OSError, ValueError):  # anything may lie in a folder
            continue
        if isinstance(one, dict) and set(one) >= FINDING:
            figure = path.with_suffix(".png")
            data = base64.b64encode(figure.read_bytes()).decode() if figure.exists() else ""
            found.append(one | {"figure": data, "decided": f"{one['verdict']} under this recipe"})
    return found


# --- run by run


def run_list(runs: Sequence[Run]) -> dict[str, Any]:
    """Numbers, CSV, command, settings and environment of every run."""
    lines = {run.path: "".join(run.lines()).encode() for run in runs}
    texts = {path: text for path, text in lines.items() if text}
    packed = sum(map(len, texts.values())) > MOST_CSV
    return {
        "together": len(texts) > 1 and not packed,
        "folds": [fold(run) | download(texts.get(run.path), packed) for run in runs],
    }


def fold(run: Run) -> dict[str, Any]:
    record = run.record
    errors = {"clean_train_error": "clean training error", "test_error": "test error"}
    numbers = {name: run.endpoint(column) for column, name in errors.items()}
    said = [f"{name} {value:.2f} %" for name, value in numbers.items() if value is not None]
    about = [
        *("digest", "parameters", "parameters_without_norm", "flops", "seconds"),
        *("images_per_second", "peak_memory_mb", "started", "updated"),
    ]
    data = {f"data.{key}": value for key, value in flatten(record["data"]).items()}
    return {
        "name": run.run,
        "status": ", ".join([run.status, *said]),
        "error": record.get("error"),
        "command": record.get("command"),
        "lists": {
            "Settings": written(flatten(record["settings"])),
            "Environment": written(record.get("environment") or {}),
            "Record": written({key: record.get(key) for key in about} | data),
        },
    }


def written(values: dict[str, Any]) -> dict[str, str]:
    """As typed on a command line; measured numbers to six digits; what is not known is left out."""
    return {
        key: f"{value:.6g}" if isinstance(value, float) else spell(value)
        for key, value in values.items()
        if value is not None
    }


def download(text: bytes | None, packed: bool) -> dict[str, Any]:
    """A run's metrics.csv as an address; packed with gzip if the page would be too long."""
    if text is None or not packed:
        return {"csv": "" if text is None else as_link(text), "packed": False}
    data = base64.b64encode(gzip.compress(text, mtime=0)).decode()
    return {"csv": f"data:application/gzip;base64,{data}", "packed": True}


def own_version() -> str:
    try:
        return version("resexp")
    except PackageNotFoundError:
        return "from a checkout"
