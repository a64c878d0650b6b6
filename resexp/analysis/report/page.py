"""One HTML file that says what was found, shows it, and holds what is needed to check it.

It needs nothing from outside: styles, script, figures (inline SVG) and CSV files are in it, and its
content security policy forbids every request. Without a script it is the same page, only still.
Every text from a run goes through ``escape``. Never imports torch or matplotlib.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import math
import os
import shlex
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from resexp.analysis import table, verdict
from resexp.analysis.report import charts as report_charts
from resexp.analysis.report.charts import Chart
from resexp.analysis.results import Run, require_runs, spell
from resexp.runs.records import METRICS, RECORD, write_atomically
from resexp.settings import UsageError, flatten

FILE = "report.html"
MOST_CSV = 1_000_000  # bytes of metrics.csv in one page; more are packed with gzip

CHARTS: tuple[tuple[str, Callable[[Sequence[Run]], Chart | None]], ...] = (
    ("curves", report_charts.curves),
    ("depth", report_charts.by_depth),
    ("difference", report_charts.differences),
)


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
    experiments: dict[Path, list[Run]] = {}
    for run in runs:
        experiments.setdefault(run.experiment, []).append(run)
    several = len(experiments) > 1
    names = [group[0].name for group in experiments.values()]
    title = f"{len(names)} experiments" if several else f"Experiment {names[0]}"
    parts = [
        '<p class="kicker">Plain and residual networks at growing depth</p>',
        f"<h1>{escape(title)}</h1>",
        contents(names) if several else "",
        *(
            experiment(group, filters, f"e{index}", several)
            for index, group in enumerate(experiments.values())
        ),
        footer(),
    ]
    folder = files("resexp.analysis.report")
    script = folder.joinpath("script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = folder.joinpath("template.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        title=escape(f"{title}: plain and residual networks"),
        generator=escape(f"resexp {own_version()}"),
        script_hash=f"sha256-{digest}",
        body="\n".join(filter(None, parts)),
        script=script,
    )


def contents(names: Sequence[str]) -> str:
    """Links to the sections."""
    links = (f'<li><a href="#e{at}">{escape(name)}</a></li>' for at, name in enumerate(names))
    return f'<nav aria-label="Experiments"><ul>{"".join(links)}</ul></nav>'


def experiment(runs: Sequence[Run], filters: Sequence[str], key: str, several: bool) -> str:
    """Everything about one experiment; its headings are one level lower if there are several."""
    head = partial(heading, 3 if several else 2)
    below = partial(heading, 4 if several else 3)
    drawn = [(f"{key}-{name}", draw(runs)) for name, draw in CHARTS]
    figures = "".join(
        below(chart.title) + report_charts.render(chart, name) for name, chart in drawn if chart
    )
    nothing = '<p class="note">No run has a row of metrics yet.</p>'
    parts = [
        heading(2, runs[0].name) if several else "",
        judgement(runs, head),
        head("Figures"),
        figures or nothing,
        head("Results"),
        results_table(runs),
        mechanisms(runs[0].experiment, head, below),
        head("How to reproduce it"),
        facts_about(runs, filters),
        commands(runs, filters),
        head("Runs"),
        run_list(runs, below, f"{key}-runs"),
    ]
    kind = "several" if several else "one"
    return f'<section class="{kind}" id="{key}">{"".join(parts)}</section>'


def heading(level: int, text: str) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


# --- the verdict


def judgement(runs: Sequence[Run], head: Callable[[str], str]) -> str:
    """The decision in a sentence, the numbers it rests on, and what to know before believing it."""
    try:
        decided = verdict.decide(runs)
    except UsageError as refusal:
        inside = f'<p class="sentence">No verdict: {escape(str(refusal))}</p>'
        return f'<div class="verdict">{head("Verdict")}{inside}</div>'
    spoken, found = verdict.text(decided), decided.as_dict()
    failed = [f"{count} {status}" for status, count in found["failures"].items() if count]
    notes = [
        f"{verdict.RULE} Intervals are 95\u00a0% t intervals.",
        f"Failures: {', '.join(failed) or 'none'} of {found['runs']} runs."
        + (f" Unfinished: {found['unfinished']}." if found["unfinished"] else ""),
    ]
    if found["missing"]:
        notes.append(f"Missing: {', '.join(found['missing'])}. Seeds without a pair are left out.")
    notes += found["notes"]
    return (
        f'<div class="verdict">{head("Verdict")}'
        f"{sentence(spoken.splitlines()[0], found['outcome'])}"
        f"{verdict_table(found)}{''.join(map(note, notes))}"
        f'<details class="aside"><summary>As resexp verdict prints it</summary>'
        f'<pre tabindex="0">{escape(spoken)}</pre></details></div>'
    )


def sentence(text: str, outcome: str) -> str:
    """The verdict's first line, its outcome in bold."""
    before, found, after = text.partition(f": {outcome}")
    if not found:
        return f'<p class="sentence">{escape(text)}</p>'
    kinds = {0: "shown", 3: "not-shown", 4: "inconclusive"}
    kind = kinds.get(verdict.EXIT_CODES.get(outcome, -1), "")
    return (
        f'<p class="sentence">{escape(before)}: <strong class="{kind}">{escape(outcome)}</strong>'
        f"{escape(after)}</p>"
    )


def verdict_table(found: dict[str, Any]) -> str:
    """Changes from shallow to deep, a row a network, and plain minus each other."""
    headings = (
        *("Network", "log10 clean loss", "Effect d", "p"),
        *("Clean training error", "Test error", "Reading"),
    )
    rows = [
        [
            report_charts.spaced(arm["series"]),
            *change_cells(arm["change"]),
            reading(arm["reading"], arm["label"]),
        ]
        for arm in found["arms"]
    ]
    rows += [
        [report_charts.spaced(f"{found['baseline']} minus {series}"), *change_cells(change), ""]
        for series, change in found["interactions"].items()
    ]
    seeds = len(found["arms"][0]["change"]["seeds"])
    caption = (
        f"Change from {found['shallow']} to {found['deep']} layers, mean over {seeds} paired "
        f"{'seed' if seeds == 1 else 'seeds'} (95\u00a0% interval); errors in percent points. "
        "Effect d is the mean over the standard deviation of the differences."
    )
    return as_table(caption, headings, rows, words=(0, 6))


def change_cells(change: dict[str, Any]) -> list[str]:
    d, p = change["train_error"]["d"], change["p"]
    return [
        interval(change["loss"], 2),
        "" if d is None else signed(d, 1),
        "" if p is None else f"{p:.3g}",
        interval(change["train_error"], 1),
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


def note(text: str) -> str:
    """A remark; a command that it ends with looks like one."""
    before, found, command = text.partition(" next: ")
    typed = f" Next: <code>{escape(command)}</code>" if found else ""
    return f'<p class="note">{escape(before)}{typed}</p>'


# --- the results


def results_table(runs: Sequence[Run]) -> str:
    """A row a network: means over seeds, failures, and published numbers where there are any."""
    lines = table.rows(runs)
    notes: list[str] = []
    headings = [
        *("Network", "Depth", "Parameters", "Seeds", "Clean training error % (sd)"),
        *("Training error %", "Test error % (sd)", "Clean loss", "Failures"),
    ]
    body = []
    for line in lines:
        failures = line["collapsed"] + line["diverged"] + line["failed"]
        unfinished = f", {line['unfinished']} unfinished" if line["unfinished"] else ""
        loss = line["clean_train_loss"]
        body.append(
            [
                report_charts.spaced(line["series"]),
                str(line["depth"]),
                "" if line["parameters"] is None else f"{line['parameters']:,}",
                str(line["seeds"]),
                table.spread(line["clean_train_error"], line["clean_train_error_sd"]),
                table.spread(line["train_error"], None),
                table.spread(line["test_error"], line["test_error_sd"]),
                "" if loss is None else f"{loss:.2g}",
                f"{failures} of {line['runs']}{unfinished}",
            ]
        )
    if any(line["published_test_error"] is not None for line in lines):
        headings.append("Published test error %")
        for cells, line in zip(body, lines, strict=True):
            cells.append(table.published_cell(line, notes))
    remarks = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    if any(line["diverged"] for line in lines):
        remarks.append("A diverged run counts at chance.")
    caption = "Numbers of the last step; means over finished runs (standard deviation)."
    link = download(as_csv(lines), "results.csv", "Download this table as CSV, unrounded")
    return (
        as_table(caption, headings, body, words=(0,), grouped=True)
        + "".join(map(note, remarks))
        + f"<p>{link}</p>"
    )


def as_table(
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: tuple[int, ...],
    grouped: bool = False,
) -> str:
    """A table in a box that scrolls by itself; the first cell of a row is its heading.

    Columns in ``words`` go to the left, numbers to the right. ``grouped``: a rule where the first
    cell changes.
    """

    def cell(column: int, text: str) -> str:
        left = ' class="left"' if column in words else ""
        if column == 0:
            return f'<th scope="row"{left}>{escape(text)}</th>'
        return f"<td{left}>{softened(text)}</td>"

    head = "".join(
        f'<th scope="col"{" class=" + chr(34) + "left" + chr(34) if column in words else ""}>'
        f"{escape(text)}</th>"
        for column, text in enumerate(headings)
    )
    body = "".join(
        f"<tr{group_class(rows, at) if grouped else ''}>"
        + "".join(cell(column, text) for column, text in enumerate(cells))
        + "</tr>"
        for at, cells in enumerate(rows)
    )
    # The box takes the keyboard's focus, so that it can be scrolled without a mouse.
    return (
        f'<div class="box" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def group_class(rows: Sequence[Sequence[str]], at: int) -> str:
    return ' class="group"' if at and rows[at][0] != rows[at - 1][0] else ""


def softened(text: str) -> str:
    """Escaped, with what stands in brackets a little lighter."""
    before, bracket, after = text.partition(" (")
    if not bracket:
        return escape(text)
    return f'{escape(before)} <span class="interval">({escape(after)}</span>'


def as_csv(lines: Sequence[dict[str, Any]]) -> bytes:
    """Rows of the results table in full."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue().encode()


# --- mechanisms


def mechanisms(folder: Path, head: Callable[[str], str], below: Callable[[str], str]) -> str:
    """What ``resexp probe`` found beside the runs: claim, verdict, figure, conventions."""
    found = [one for path in sorted(folder.glob("probe-*.json")) if (one := read_finding(path))]
    if not found:
        return ""
    return head("Mechanisms") + "".join(mechanism(folder, one, below) for one in found)


def mechanism(folder: Path, found: dict[str, Any], below: Callable[[str], str]) -> str:
    """One finding. The figure is inlined, so that the page needs nothing beside it."""
    name, claim, sentence = (str(found[key]) for key in ("probe", "claim", "sentence"))
    decided = f"{found['verdict']} under this recipe"
    figure = folder / f"probe-{name}.png"
    drawn = ""
    if figure.exists():
        data = base64.b64encode(figure.read_bytes()).decode()
        said = escape(f"Probe {name}. {claim} {decided.capitalize()}: {sentence}")
        drawn = f'<figure><img src="data:image/png;base64,{data}" alt="{said}"></figure>'
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in found["conventions"])
    return (
        below(f"{name}: {claim}")
        + f"<p><strong>{escape(decided.capitalize())}</strong>: {escape(sentence)}</p>"
        + drawn
        + f'<p class="note">The claim: {escape(str(found["source"]))}. Measured on '
        + f"{escape(str(found['recipe']))}, with <code>{escape(str(found['command']))}</code>.</p>"
        + f'<ul class="note">{notes}</ul>'
    )


def read_finding(path: Path) -> dict[str, Any] | None:
    """A probe-<name>.json, or None where it is not one: anything may lie in a folder."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    needed = {"probe", "claim", "source", "verdict", "sentence", "recipe", "command", "conventions"}
    return found if isinstance(found, dict) and needed <= set(found) else None


# --- where it comes from


def facts_about(runs: Sequence[Run], filters: Sequence[str]) -> str:
    """What was trained on which data, where, with which code, and when."""
    first, places = runs[0], [run.record.get("environment") or {} for run in runs]
    statuses = Counter(run.status for run in runs)
    seeds = sorted({run.seed for run in runs})
    said = {
        "Data": images(first),
        "Recipe": f"{first.setting('recipe')}: {first.setting('steps'):,} steps of "
        f"{first.setting('batch_size')} images, learning rate {first.setting('lr')}",
        "Runs": ", ".join(f"{count} {status}" for status, count in statuses.items())
        + f"; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
        + (f"; only {' '.join(filters)}" if filters else ""),
        "Code": "; ".join(distinct(map(code, places))),
        "Machine": "; ".join(distinct(map(machine, places))),
        "Software": "; ".join(distinct(map(software, places))),
        "Trained": period(runs),
    }
    entries = "".join(
        f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in said.items() if text
    )
    return f'<dl class="meta">{entries}</dl>'


def images(run: Run) -> str:
    data = run.record["data"]
    if not all(data.get(key) for key in ("train", "test", "shape")):
        return run.data
    size = "x".join(str(side) for side in data["shape"][:2])
    return (
        f"{run.data}: {data['train']:,} training and {data['test']:,} test images of {size} pixels"
    )


def code(place: dict[str, Any]) -> str:
    if place.get("git_commit"):
        dirty = " with uncommitted changes" if place.get("git_dirty") else ""
        return f"commit {place['git_commit']}{dirty}"
    return f"resexp {place['resexp']}" if place.get("resexp") else ""


def machine(place: dict[str, Any]) -> str:
    name = place.get("device_name") or place.get("device")
    threads = f"{place['threads']} CPU threads" if place.get("threads") else None
    return ", ".join(str(part) for part in (name, threads, place.get("precision")) if part)


def software(place: dict[str, Any]) -> str:
    named = {"torch": "PyTorch", "cuda": "CUDA", "cudnn": "cuDNN", "python": "Python"}
    parts = [f"{name} {place[key]}" for key, name in named.items() if place.get(key)]
    return ", ".join([*parts, *([str(place["platform"])] if place.get("platform") else [])])


def period(runs: Sequence[Run]) -> str:
    """From the first start to the last row, in UTC."""
    starts = sorted(str(run.record["started"]) for run in runs if run.record.get("started"))
    ends = sorted(str(run.record["updated"]) for run in runs if run.record.get("updated"))
    if not starts or not ends:
        return ""
    first, last = (text[:16].replace("T", " ") for text in (starts[0], ends[-1]))
    return f"{first} to {last[11:] if last[:10] == first[:10] else last} UTC"


def distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, texts)))


def commands(runs: Sequence[Run], filters: Sequence[str]) -> str:
    """What to type to train, judge and draw all this again."""
    commits = distinct(
        str((run.record.get("environment") or {}).get("git_commit") or "") for run in runs
    )
    lines = [f"git checkout {shlex.quote(commits[0])}"] if len(commits) == 1 else []
    lines += sweeps(runs)
    folder = str(Path(str(runs[0].setting("results"))) / runs[0].name)
    rest = shlex.join([folder, *filters])
    lines += [f"resexp {verb} {rest}" for verb in ("verdict", "table", "plot", "report")]
    return (
        f'<pre role="region" tabindex="0" aria-label="Commands">{escape(chr(10).join(lines))}</pre>'
    )


def sweeps(runs: Sequence[Run]) -> list[str]:
    """The commands that train exactly these runs: one sweep where they are all of a grid."""
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    odd = []
    for text in distinct(str(run.record.get("command") or "") for run in runs):
        try:
            words = shlex.split(text)
        except ValueError:  # edited by hand
            odd.append(text)
            continue
        keys = tuple(word.partition("=")[0] if "=" in word else word for word in words)
        groups.setdefault(keys, []).append(words)
    lines = []
    for group in groups.values():
        choices = [list(dict.fromkeys(column)) for column in zip(*group, strict=True)]
        if len(group) > 1 and math.prod(map(len, choices)) == len(group):
            together = [
                f"{key}=" + ",".join(word.partition("=")[2] for word in column)
                if len(column) > 1
                else column[0]
                for column in choices
                for key in [column[0].partition("=")[0]]
            ]
            lines.append(shlex.join([*together[:2], "-m", *together[2:]]))
        else:
            lines += [shlex.join(words) for words in group]
    return lines + odd


# --- run by run


def run_list(runs: Sequence[Run], head: Callable[[str], str], key: str) -> str:
    """A fold a run: its numbers, its CSV, command, settings and environment."""
    found = {run.path: metrics(run) for run in runs}
    packed = sum(len(text or b"") for text in found.values()) > MOST_CSV
    folds = "".join(run_fold(run, found[run.path], packed, head) for run in runs)
    several = sum(text is not None for text in found.values()) > 1
    button = (
        f'<p><button type="button" class="button" hidden data-every="{key}" '
        f'data-name="{escape(runs[0].name)}.csv">Download every run as one CSV</button></p>'
    )
    return (button if several and not packed else "") + f'<div id="{key}">{folds}</div>'


def metrics(run: Run) -> bytes | None:
    """A run's metrics.csv as it is."""
    return "".join(run.lines()).encode() or None


def run_fold(run: Run, text: bytes | None, packed: bool, head: Callable[[str], str]) -> str:
    record = run.record
    said = [run.status]
    for name, column in (
        ("clean training error", "clean_train_error"),
        ("test error", "test_error"),
    ):
        value = run.endpoint(column)
        said += [f"{name} {value:.2f} %"] if value is not None else []
    about = {
        key: record.get(key)
        for key in ("digest", "parameters", "parameters_without_norm", "flops", "seconds")
    } | {
        key: record.get(key)
        for key in ("images_per_second", "peak_memory_mb", "started", "updated")
    }
    data = {f"data.{key}": value for key, value in flatten(record["data"]).items()}
    error = (
        f'<p class="note"><strong>{escape(str(record["error"]))}</strong></p>'
        if record.get("error")
        else ""
    )
    command = (
        f'<pre tabindex="0">{escape(str(record["command"]))}</pre>' if record.get("command") else ""
    )
    link = "" if text is None else f"<p>{run_download(run, text, packed)}</p>"
    return (
        f"<details><summary>{escape(run.run)}"
        f'<span class="status">{escape(", ".join(said))}</span></summary><div>'
        f"{error}{link}{command}"
        f"{head('Settings')}{fact_list(flatten(record['settings']))}"
        f"{head('Environment')}{fact_list(record.get('environment') or {})}"
        f"{head('Record')}{fact_list(about | data)}</div></details>"
    )


def fact_list(values: dict[str, Any]) -> str:
    """Names and values; what is not known is left out."""
    entries = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(fact(value))}</dd></div>"
        for key, value in values.items()
        if value is not None
    )
    return f'<dl class="facts">{entries}</dl>'


def fact(value: Any) -> str:
    """As typed on a command line; measured numbers to six digits."""
    return f"{value:.6g}" if isinstance(value, float) else spell(value)


def run_download(run: Run, text: bytes, packed: bool) -> str:
    name = f"{run.run}.csv"
    run_name = f' data-run="{escape(run.run)}"'
    if packed:
        data = base64.b64encode(gzip.compress(text, mtime=0)).decode()
        return anchor(
            f"data:application/gzip;base64,{data}", f"{name}.gz", f"Download {METRICS} (gzip)"
        )
    return download(text, name, f"Download {METRICS}", run_name)


def download(text: bytes, name: str, label: str, more: str = "") -> str:
    """A link that holds the file itself: it works without a network and without a script."""
    return anchor("data:text/csv;charset=utf-8," + quote(text, safe=",:+"), name, label, more)


def anchor(href: str, name: str, label: str, more: str = "") -> str:
    return f'<a href="{escape(href)}" download="{escape(name)}"{more}>{escape(label)}</a>'


def footer() -> str:
    """When the page was written, and by what."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")  # reproducible-builds.org: the same page again
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return (
        f'<footer><p class="note">Written by resexp {escape(own_version())} on '
        f'<time datetime="{now.isoformat(timespec="seconds")}">{now:%Y-%m-%d %H:%M} UTC</time> '
        f"from {RECORD} and {METRICS} alone. This file needs no network.</p></footer>"
    )


def own_version() -> str:
    try:
        return version("resexp")
    except PackageNotFoundError:
        return "from a checkout"
