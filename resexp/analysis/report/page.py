"""One HTML file that says what was found, shows it, and holds what is needed to check it.

It needs nothing from outside: styles, script, figures (inline SVG) and CSV files are in it, and its
content security policy forbids every request. Without a script it is the same page, only still.
Here plain values are made ready; template.html says how they look, and escapes every text.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import math
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from resexp.analysis import table, verdict
from resexp.analysis.figures.canvas import spaced
from resexp.analysis.formatting import signed, spread
from resexp.analysis.report.charts import charts, embed
from resexp.analysis.report.origin import commands, facts
from resexp.analysis.results import Run, grouped, require_runs, spell
from resexp.analysis.statistics import Interval
from resexp.analysis.verdict.rule import Change
from resexp.console import WIDE, counted
from resexp.files import read_bytes, read_json
from resexp.runs.records import RECORD, write_atomically
from resexp.settings import UsageError, flatten

FILE, MINUS = "report.html", "\N{MINUS SIGN}"
MOST_CSV = 1_000_000  # bytes of metrics.csv in one page; more are packed with gzip

#: What a probe-<name>.json must hold to be a finding, and of what type.
FINDING: dict[str, type] = {
    **dict.fromkeys(("probe", "claim", "source", "verdict", "sentence", "recipe", "command"), str),
    "conventions": list,
}


def write_report(
    root: Path, out: Path | None = None, filters: Sequence[str] = (), baseline: str | None = None
) -> Path:
    """Write the report of the runs under ``root`` to ``out``, which may be a folder.

    By default beside the figures of one experiment, of several in ``root``, a section each.
    ``baseline`` is the verdict's. Returns the file. Raises UsageError if there are no runs, a
    metrics.csv is damaged, or the file cannot be written.
    """
    runs = require_runs(root, filters)
    folders = {run.experiment for run in runs}
    path = out or (root if len(folders) > 1 or (root / RECORD).exists() else folders.pop())
    path = path / FILE if path.is_dir() or path.suffix[:4] != ".htm" else path
    # Written in ASCII, the rest as character references: no locale can spoil it.
    text = page(runs, filters, baseline).encode("ascii", "xmlcharrefreplace").decode("ascii")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror or error}). Choose another place: --out."
        ) from error
    return path


def page(runs: Sequence[Run], filters: Sequence[str] = (), baseline: str | None = None) -> str:
    """The whole document."""
    groups = grouped(runs, lambda run: run.experiment).values()
    experiments = [
        experiment(group, filters, baseline, f"e{index}") for index, group in enumerate(groups)
    ]
    panels = [panel for one in experiments for drawn in one["charts"] for panel in drawn["panels"]]
    loader = PackageLoader("resexp.analysis.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["powers"] = powers
    # The script as it is, neither a template nor escaped: the policy allows it by its digest.
    script = loader.get_source(environment, "script.js")[0]
    epoch = os.environ.get("SOURCE_DATE_EPOCH")  # reproducible-builds.org: the same page again
    several = len(experiments) > 1
    return environment.get_template("template.html").render(
        title=f"{len(experiments)} experiments" if several else f"Experiment {runs[0].name}",
        experiments=experiments,
        values={panel["id"]: panel["values"] for panel in panels},
        several=several,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=own_version(),
        now=datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC),
    )


def powers(text: str) -> Markup:
    """A sentence in HTML, its ``10^+3.1`` set as a power."""
    return Markup(re.sub(r"10\^\+?(-?[\d.]*\d)", r"10<sup>\1</sup>", str(escape(text))))


def experiment(
    runs: Sequence[Run], filters: Sequence[str], baseline: str | None, key: str
) -> dict[str, Any]:
    """Everything about one experiment."""
    drawn, lacking = charts(runs)
    return {
        "id": key,
        "name": runs[0].name,
        "verdict": judgement(runs, baseline),
        "charts": [embed(chart, f"{key}-{name}") for name, chart in drawn.items()],
        "lacking": lacking,
        "results": results(runs),
        "findings": findings(runs[0].experiment),
        "facts": facts(runs, filters),
        "commands": commands(runs, filters, baseline),
        "runs": run_list(runs),
    }


# --- the verdict


def judgement(runs: Sequence[Run], baseline: str | None) -> dict[str, Any]:
    """The decision in a sentence, the numbers it rests on, and what to know before believing it."""
    try:
        decided = verdict.decide(runs, baseline=baseline)
    except UsageError as refusal:
        return {"refusal": str(refusal)}
    notes = [f"{verdict.RULE} Intervals are 95\u00a0% t intervals.", verdict.failures(decided)]
    if decided.missing:
        notes.append(f"Missing: {', '.join(decided.missing)}. Seeds without a pair are left out.")
    spoken = verdict.text(decided, WIDE)
    return {
        "refusal": "",
        "sentence": spoken.splitlines()[0],
        "outcome": decided.outcome,
        "spoken": spoken,
        "notes": notes + decided.notes,
        "table": verdict_table(decided),
    }


def verdict_table(found: verdict.Verdict) -> dict[str, Any]:
    """Changes from shallow to deep, a row a network, and the baseline minus each other."""
    rows = [(arm.series, arm.change, reading(arm.reading, arm.label)) for arm in found.arms]
    for series, change in found.interactions.items():
        rows.append((f"{found.baseline} minus {series}", change, ""))
    about = ("Clean training error", "Effect d", "p", "log10 clean loss", "Test error")
    return {
        "caption": f"Change from {found.shallow} to {found.deep} layers, mean over "
        f"{counted(len(found.seeds), 'paired seed')} (95\u00a0% interval); errors in percent "
        "points. Effect d is the mean over the standard deviation of the differences.",
        "headings": ["Network", *about, "Reading"],
        "rows": [[spaced(name), *changes(change), said] for name, change, said in rows],
        "words": [0, 6],
    }


def changes(change: Change) -> list[str]:
    d = change.train_error.d
    return [
        interval(change.train_error, 1),
        "" if math.isnan(d) else signed(d, 1).replace("-", MINUS),
        "" if math.isnan(change.p) else f"{change.p:.3g}",
        interval(change.loss, 2),
        interval(change.test_error, 1),
    ]


def interval(found: Interval, digits: int) -> str:
    """+2.12 (+1.86 to +2.39); only the mean of one seed, and no more than a dash of none."""
    return spread(found, digits).replace("-", MINUS) if found.n else "\N{EN DASH}"


def reading(said: str, label: str) -> str:
    """The reading of the rule and the label, each where it says something new."""
    if label == verdict.NEITHER:
        return said
    return label if said == "degrades" else f"{said}; {label}"


# --- the results


def results(runs: Sequence[Run]) -> dict[str, Any]:
    """A row a network: means over seeds, failures, and published numbers where there are any."""
    lines = table.rows(runs)
    headings, rows, notes = table.cells(lines)
    titles = map(table.joined, headings)
    return {
        "caption": "Numbers of the last step; means over finished runs (standard deviation).",
        "headings": [title[0].upper() + title[1:] for title in titles],
        "rows": [[spaced(cells[0]), *cells[1:]] for cells in rows],
        "words": [0],
        "notes": notes,
        "csv": as_link((table.render(lines, "csv") + "\n").encode()),
    }


def as_link(text: bytes) -> str:
    """A CSV file as an address that holds it: it needs neither a network nor a script."""
    return "data:text/csv;charset=utf-8," + quote(text, safe=",:+")


# --- mechanisms


def findings(folder: Path) -> list[dict[str, Any]]:
    """What ``resexp probe`` found beside the runs, each with its figure; others are passed over."""
    found = []
    for path in sorted(folder.glob("probe-*.json")):
        one = read_json(path)  # anything may lie in a folder
        if isinstance(one, dict) and all(isinstance(one.get(k), FINDING[k]) for k in FINDING):
            figure = path.with_suffix(".png")
            data = base64.b64encode(read_bytes(figure)).decode() if figure.is_file() else ""
            found.append(one | {"figure": data, "decided": f"{one['verdict']} under this recipe"})
    return found


# --- run by run


def run_list(runs: Sequence[Run]) -> dict[str, Any]:
    """Numbers, CSV, command, settings and environment of every run.

    Each metrics.csv is an address; packed with gzip if the page would be too long.
    """
    texts = ["".join(run.lines()).encode() for run in runs]
    packed = sum(map(len, texts)) > MOST_CSV
    folds = []
    for run, text in zip(runs, texts, strict=True):
        link = as_link(text) if text else ""
        if text and packed:
            short = base64.b64encode(gzip.compress(text, mtime=0)).decode()
            link = f"data:application/gzip;base64,{short}"
        folds.append(fold(run) | {"csv": link, "packed": packed and bool(text)})
    return {"together": sum(map(bool, texts)) > 1 and not packed, "folds": folds}


def fold(run: Run) -> dict[str, Any]:
    record = run.record
    errors = {"clean training error": "clean_train_error", "test error": "test_error"}
    numbers = {name: run.endpoint(column) for name, column in errors.items()}
    said = [f"{name} {value:.2f} %" for name, value in numbers.items() if value is not None]
    about = [
        *("digest", "parameters", "parameters_without_norm", "flops", "seconds"),
        *("images_per_second", "peak_memory_mb", "started", "updated"),
    ]
    return {
        "name": run.run,
        "status": ", ".join([run.status, *said]),
        "error": record.get("error"),
        "command": record.get("command"),
        "lists": {
            "Settings": written(flatten(record["settings"])),
            "Environment": written(run.environment),
            "Record": written(
                {key: record.get(key) for key in about} | flatten(record["data"], "data.")
            ),
        },
    }


def written(values: dict[str, Any]) -> dict[str, str]:
    """As typed on a command line; measured numbers to six digits; what is not known is left out."""
    return {
        key: f"{value:.6g}" if isinstance(value, float) else spell(value)
        for key, value in values.items()
        if value is not None
    }


def own_version() -> str:
    try:
        return version("resexp")
    except PackageNotFoundError:
        return "from a checkout"
