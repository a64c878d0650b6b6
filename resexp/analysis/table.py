"""One line a network: final errors over seeds, failures counted, published numbers beside them.

Published numbers are shown only if someone read them at their source, and only beside networks
trained by the same recipe; ``published.csv`` says where each is from.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resexp.analysis.published import VERIFIED, beside, published_rows, short_source
from resexp.analysis.results import Run, order
from resexp.analysis.verdict import LEAST_LOSS
from resexp.settings import UsageError

FORMS = ("text", "markdown", "csv", "latex", "json")

#: The network's name in published.csv by arch, trained by the recipe of He et al. 2015.
PUBLISHED_NAMES = {
    "plain": "plain-{depth} (third-party rerun, 1 seed)",  # the paper has curves only
    "residual": "ResNet-{depth}",
    "preact": "ResNet-{depth} full pre-activation (e)",
}

#: Measures of published.csv that a final test error may stand beside, best first, and their names.
PUBLISHED_METRICS = {
    "test_error_pct_mean_of_5": "mean of 5 runs",
    "test_error_pct": "1 run",
    "test_error_pct_median5": "median of 5 runs",
}
PUBLISHED_STEPS = 64_000


@dataclass(kw_only=True, slots=True)
class Line:
    """One network. Errors in percent over finished runs; sd with n - 1, None for one seed."""

    name: str
    series: str
    depth: int
    parameters: int | None
    seeds: int  # finished runs, which the means are over
    clean_train_error: float | None
    clean_train_error_sd: float | None
    train_error: float | None  # of the last batches, augmented, as the paper's dashed curves
    test_error: float | None
    test_error_sd: float | None
    test_iou: float | None  # percent, of networks that segment; their errors are of pixels
    test_iou_sd: float | None
    clean_train_loss: float | None  # geometric mean
    collapsed: int
    diverged: int
    failed: int
    unfinished: int
    runs: int
    published_test_error: float | None
    published_source: str | None
    published_remark: str | None  # in what these runs differ from those published


def rows(runs: Sequence[Run], published: bool = False) -> list[dict[str, Any]]:
    """A dict a network, sorted by experiment, plain first, shallow to deep. Keys as in ``Line``.

    A diverged run counts at chance; a failed or unfinished one is counted and has no error. With
    ``published`` a dict for every published error of a network, whose numbers are repeated, with
    the keys of ``Published`` in place of the three that begin so; one without values if there is
    no published error.
    """
    groups: dict[tuple[str, str, str, int], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.name, str(run.experiment), *order(run))):
        groups.setdefault((run.name, str(run.experiment), run.series, run.depth), []).append(run)
    if not published:
        return [asdict(line(group)) for group in groups.values()]
    return [row for group in groups.values() for row in _beside(group)]


def _beside(group: Sequence[Run]) -> list[dict[str, Any]]:
    """A network's line once for every published error of it."""
    ours = line(group)
    kept = {key: value for key, value in asdict(ours).items() if not key.startswith("published_")}
    found = beside(group[0], ours.test_error, ours.test_error_sd, ours.seeds)
    return [kept | asdict(theirs) for theirs in found]


def line(group: Sequence[Run]) -> Line:
    """The line of runs that differ in their seed only."""
    first = group[0]
    clean, train, test, iou, loss = (
        _finals(group, column)
        for column in (
            *("clean_train_error", "train_error", "test_error"),
            *("test_iou", "clean_train_loss"),
        )
    )
    count = {
        status: sum(run.status == status for run in group)
        for status in ("collapsed", "diverged", "failed")
    }
    value, source, remark = bestpublished_cell(first)
    return Line(
        name=first.name,
        series=first.series,
        depth=first.depth,
        parameters=first.record.get("parameters"),
        seeds=sum(run.finished for run in group),
        clean_train_error=_mean(clean),
        clean_train_error_sd=_sd(clean),
        train_error=_mean(train),
        test_error=_mean(test),
        test_error_sd=_sd(test),
        test_iou=_mean(iou),
        test_iou_sd=_sd(iou),
        clean_train_loss=_geometric_mean(loss),
        collapsed=count["collapsed"],
        diverged=count["diverged"],
        failed=count["failed"],
        unfinished=sum(run.status in ("running", "interrupted") for run in group),
        runs=len(group),
        published_test_error=value,
        published_source=source,
        published_remark=remark,
    )


def _finals(group: Sequence[Run], column: str) -> list[float]:
    values = [run.endpoint(column) for run in group]
    return [value for value in values if value is not None and math.isfinite(value)]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _geometric_mean(values: Sequence[float]) -> float | None:
    return (
        statistics.geometric_mean([max(value, LEAST_LOSS) for value in values]) if values else None
    )


# --- published numbers


def bestpublished_cell(run: Run) -> tuple[float | None, str | None, str | None]:
    """Published test error of this network, its source, and what these runs do otherwise.

    (None, None, None) unless the run is CIFAR-10 (or its JPEG re-encoding) by the recipe of He et
    al. 2015, with no setting changed but the number of steps.
    """
    nothing = (None, None, None)
    data = str(run.record["data"].get("name"))
    comparable = (
        data in ("cifar10", "cifar10-jpeg")
        and run.setting("recipe") == "he2015"
        and run.setting("width") == 16
        and run.setting("arch.unit") == "basic"
        and run.arch in PUBLISHED_NAMES
        and not set(run.extras) - {"steps"}
    )
    if not comparable:
        return nothing
    network = PUBLISHED_NAMES[run.arch].format(depth=run.depth)
    found = [
        row
        for row in published_rows()
        if row["network"] == network
        and row["dataset"] == "cifar10+"
        and row["metric"] in PUBLISHED_METRICS
        and _same_size(row["params_millions"], run.record.get("parameters"))
    ]
    if not found:
        return nothing
    metrics = list(PUBLISHED_METRICS)
    best = min(
        found, key=lambda row: (VERIFIED.index(row["verified"]), metrics.index(row["metric"]))
    )
    remarks = []
    if data == "cifar10-jpeg":
        remarks.append("published on CIFAR-10; these runs used a JPEG re-encoding of it")
    if run.setting("steps") != PUBLISHED_STEPS:
        remarks.append(
            f"published after {PUBLISHED_STEPS:,} steps; these runs took {run.setting('steps'):,}"
        )
    source = f"{best['source']}, {PUBLISHED_METRICS[best['metric']]}"
    return float(best["value"]), source, "; ".join(remarks) or None


def _same_size(millions: str, parameters: int | None) -> bool:
    """Whether a rounded count, such as 0.85, is of this network: other networks share names."""
    if not millions or not parameters:
        return False
    return abs(float(millions) * 1e6 / parameters - 1) < 0.05


# --- how they are written


def render(rows: Sequence[dict[str, Any]], form: str = "text") -> str:
    """The table as text, markdown, csv, latex or json. Raises UsageError for another form.

    csv and json hold the numbers of ``rows`` in full; the others are rounded, with footnotes.
    """
    writers: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
        "text": _text,
        "markdown": _markdown,
        "csv": _csv,
        "latex": _latex,
        "json": _json,
    }
    if form not in writers:
        raise UsageError(f"a table has no form {form}. Choose one of {', '.join(FORMS)}.")
    return writers[form](rows)


def _json(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(list(rows), indent=1)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    names = list(rows[0] if rows else Line.__dataclass_fields__)
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().rstrip("\n")


#: Headings; a text table breaks them at the bar.
HEADINGS = (
    "|experiment",
    "|network",
    "|depth",
    "|parameters",
    "|seeds",
    "clean training|error % (sd)",
    "training|error %",
    "test|error % (sd)",
    "test|IoU % (sd)",
    "clean|loss",
    "|failures",
    "published|test error %",
)

#: Headings beside published errors: ours, theirs, and what lies between.
PUBLISHED_HEADINGS = (
    "|experiment",
    "|network",
    "|depth",
    "|seeds",
    "clean training|error % (sd)",
    "training|error %",
    "test|error % (sd)",
    "|failures",
    "published|test % (sd)",
    "published|training %",
    "test|difference",
    "|z",
    "published|by",
)
WORD_HEADINGS = ("|experiment", "|network", "published|by")  # to the left; numbers to the right

Z_NOTE = (
    "z: ours minus theirs over the root of the summed squared standard errors, sd^2 / n of each "
    "side, n our seeds and the runs that the source names; empty where a spread is not known."
)
IOU_NOTE = (
    "IoU: mean intersection over union of the classes; errors of networks that have one are of "
    "pixels."
)
BOUND_NOTE = "> : given only as a failure, an error above this."


def _cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings and body without needless columns, and footnotes."""
    notes: list[str] = []
    beside = bool(rows) and "z" in rows[0]
    headings = PUBLISHED_HEADINGS if beside else HEADINGS
    body = _bodies_beside(rows, notes) if beside else [_body(row, notes) for row in rows]
    footnotes = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    if any(row["diverged"] for row in rows):
        footnotes.append("A diverged run counts at chance.")
    if not beside and any(row["test_iou"] is not None for row in rows):
        footnotes.append(IOU_NOTE)
    if beside and any(row["z"] is not None for row in rows):
        footnotes.append(Z_NOTE)
    if beside and any(row["published_bound"] for row in rows):
        footnotes.append(BOUND_NOTE)
    needless = {0} if len({row["name"] for row in rows}) < 2 else set()
    optional = ("published|", "|z", "test|difference", "test|IoU")
    for column, word in enumerate(headings):
        if word.startswith(optional) and not any(cells[column] for cells in body):
            needless.add(column)
    keep = [column for column in range(len(headings)) if column not in needless]
    heading = [headings[column] for column in keep]
    return heading, [[cells[column] for column in keep] for cells in body], footnotes


def _failures(row: dict[str, Any]) -> str:
    failures = row["collapsed"] + row["diverged"] + row["failed"]
    unfinished = f", {row['unfinished']} unfinished" if row["unfinished"] else ""
    return f"{failures} of {row['runs']}{unfinished}"


def _body(row: dict[str, Any], notes: list[str]) -> list[str]:
    """The cells of ``HEADINGS``."""
    return [
        row["name"],
        row["series"],
        str(row["depth"]),
        "" if row["parameters"] is None else f"{row['parameters']:,}",
        str(row["seeds"]),
        spread(row["clean_train_error"], row["clean_train_error_sd"]),
        spread(row["train_error"], None),
        spread(row["test_error"], row["test_error_sd"]),
        spread(row["test_iou"], row["test_iou_sd"]),
        "" if row["clean_train_loss"] is None else f"{row['clean_train_loss']:.2g}",
        _failures(row),
        published_cell(row, notes),
    ]


def _bodies_beside(rows: Sequence[dict[str, Any]], notes: list[str]) -> list[list[str]]:
    """The cells of ``PUBLISHED_HEADINGS``; a network's own are empty after its first line."""
    bodies = []
    before: tuple[Any, ...] = ()
    for row in rows:
        ours = [
            row["name"],
            row["series"],
            str(row["depth"]),
            str(row["seeds"]),
            spread(row["clean_train_error"], row["clean_train_error_sd"]),
            spread(row["train_error"], None),
            spread(row["test_error"], row["test_error_sd"]),
            _failures(row),
        ]
        # Two folders may hold equal names: a new network begins where its first source does.
        key = (row["name"], row["series"], row["depth"], *ours)
        again = key == before and row["published_source"] is not None
        bodies.append([*([""] * len(ours) if again else ours), *_theirs(row, notes)])
        before = key
    return bodies


def _theirs(row: dict[str, Any], notes: list[str]) -> list[str]:
    """Published errors, the difference, and by whom, with the number of a footnote."""
    value, source = row["published_test_error"], row["published_source"]
    note = "; ".join(filter(None, [source, row["published_remark"]])) + "."
    mark = _mark(note[0].upper() + note[1:] if source is None else note, notes)
    if value is None:
        return ["", "", "", "", mark]
    train = row["published_train_error"]
    return [
        row["published_bound"] + spread(value, row["published_test_error_sd"]),
        spread(train, None),
        "" if row["difference"] is None else f"{row['difference']:+.2f}",
        "" if row["z"] is None else f"{row['z']:+.1f}",
        f"{short_source(source)}, {row['published_statistic']} {mark}",
    ]


def _mark(note: str, notes: list[str]) -> str:
    """``[2]``: the number of a footnote, which is added to ``notes`` once."""
    if note not in notes:
        notes.append(note)
    return f"[{notes.index(note) + 1}]"


def spread(mean: float | None, sd: float | None) -> str:
    """A mean and, where there is one, its standard deviation in brackets."""
    if mean is None:
        return ""
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ({sd:.2f})"


def published_cell(row: dict[str, Any], notes: list[str]) -> str:
    """The published value with the number of its footnote, which is added to ``notes`` once."""
    if row["published_test_error"] is None:
        return ""
    note = "; ".join(filter(None, [row["published_source"], row["published_remark"]])) + "."
    return f"{row['published_test_error']:.2f} {_mark(note, notes)}"


def _is_words(heading: str) -> bool:
    return heading in WORD_HEADINGS


def _text(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned columns, headings broken over two lines where that makes them narrower."""
    heading, body, footnotes = _cells(rows)
    tops, bottoms = zip(*(word.split("|") for word in heading), strict=True)
    lines = [list(tops), list(bottoms), *body]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(heading))]
    written = [
        "  ".join(
            cell.ljust(width) if _is_words(word) else cell.rjust(width)
            for cell, width, word in zip(cells, widths, heading, strict=True)
        ).rstrip()
        for cells in lines
    ]
    return "\n".join([*written, *footnotes])


def _joined(heading: str) -> str:
    """``clean training|error %`` in one line."""
    return heading.replace("|", " ").strip()


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    heading, body, footnotes = _cells(rows)
    rule = [":--" if _is_words(word) else "--:" for word in heading]
    lines = ["| " + " | ".join(_piped(cell) for cell in cells) + " |" for cells in body]
    head = ["| " + " | ".join(_joined(word) for word in heading) + " |", "|" + "|".join(rule) + "|"]
    below = ["", *(f"{note}  " for note in footnotes)] if footnotes else []
    return "\n".join([*head, *lines, *below]).rstrip()


def _piped(cell: str) -> str:
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: "\\" + letter for letter in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """``text`` with the letters that LaTeX gives a meaning made harmless."""
    return "".join(LATEX_ESCAPES.get(letter, letter) for letter in text)


def _latex(rows: Sequence[dict[str, Any]]) -> str:
    heading, body, footnotes = _cells(rows)
    columns = "".join("l" if _is_words(word) else "r" for word in heading)
    lines = [" & ".join(escape_latex(cell) for cell in cells) + r" \\" for cells in body]
    below = [r"\par\noindent\footnotesize " + escape_latex(note) for note in footnotes]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(escape_latex(_joined(word)) for word in heading) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *below,
        ]
    )
