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
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resexp.analysis.published import TEST_METRICS, beside, best, short_source
from resexp.analysis.results import Run, order
from resexp.analysis.verdict import LEAST_LOSS
from resexp.settings import UsageError

FORMS = ("text", "markdown", "csv", "latex", "json")

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
    """A dict per network, sorted by experiment, plain first, shallow to deep. Keys as in ``Line``.

    A diverged run counts at chance; a failed or unfinished one is counted and has no error. With
    ``published`` a dict for every published error of a network, whose numbers are repeated, with
    the keys of ``Published`` in place of the three that begin so; one without values if there is
    no published error.
    """
    groups: dict[tuple[str, str, str, int], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.name, str(run.experiment), *order(run))):
        groups.setdefault((run.name, str(run.experiment), run.series, run.depth), []).append(run)
    found = []
    for group in groups.values():
        ours = asdict(line(group))
        if not published:
            found.append(ours)
            continue
        kept = {key: value for key, value in ours.items() if not key.startswith("published_")}
        theirs = beside(group[0], ours["test_error"], ours["test_error_sd"], ours["seeds"])
        found += [kept | asdict(one) for one in theirs]
    return found


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
    statuses = Counter(run.status for run in group)
    value, source, published = published_beside(first)
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
        collapsed=statuses["collapsed"],
        diverged=statuses["diverged"],
        failed=statuses["failed"],
        unfinished=statuses["running"] + statuses["interrupted"],
        runs=len(group),
        published_test_error=value,
        published_source=source,
        published_remark=published,
    )


def _finals(group: Sequence[Run], column: str) -> list[float]:
    values = [run.endpoint(column) for run in group]
    return [value for value in values if value is not None and math.isfinite(value)]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _geometric_mean(values: Sequence[float]) -> float | None:
    floored = [max(value, LEAST_LOSS) for value in values]
    return statistics.geometric_mean(floored) if floored else None


def published_beside(run: Run) -> tuple[float | None, str | None, str | None]:
    """Published test error of this network by the same recipe, its source, and what these runs do
    otherwise; None three times if there is none.
    """
    row = best(run)
    if row is None:
        return None, None, None
    remarks = []
    if run.data == "cifar10-jpeg":
        remarks.append("published on CIFAR-10; these runs used a JPEG re-encoding of it")
    if run.setting("steps") != PUBLISHED_STEPS:
        remarks.append(
            f"published after {PUBLISHED_STEPS:,} steps; these runs took {run.setting('steps'):,}"
        )
    statistic, _, _ = TEST_METRICS[row["metric"]]
    return float(row["value"]), f"{row['source']}, {statistic}", "; ".join(remarks) or None


# --- how they are written


def render(rows: Sequence[dict[str, Any]], form: str = "text") -> str:
    """The table as text, markdown, csv, latex or json. Raises UsageError for another form.

    csv and json hold the numbers of ``rows`` in full; the others are rounded, with footnotes.
    """
    if form not in FORMS:
        raise UsageError(f"a table has no form {form}. Choose one of {', '.join(FORMS)}.")
    if form == "json":
        return json.dumps(list(rows), indent=1)
    if form == "csv":
        buffer = io.StringIO()
        names = list(rows[0] if rows else Line.__dataclass_fields__)
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue().rstrip("\n")
    writers = {"text": _text, "markdown": _markdown, "latex": _latex}
    return writers[form](*_cells(rows))


def spread(mean: float | None, sd: float | None) -> str:
    """A mean and, where there is one, its standard deviation in brackets."""
    if mean is None:
        return ""
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ({sd:.2f})"


def _failures(row: dict[str, Any]) -> str:
    failures = row["collapsed"] + row["diverged"] + row["failed"]
    unfinished = f", {row['unfinished']} unfinished" if row["unfinished"] else ""
    return f"{failures} of {row['runs']}{unfinished}"


#: Headings, which a text table breaks at the bar, and what stands below them.
OURS: dict[str, Callable[[dict[str, Any]], str]] = {
    "|experiment": lambda row: str(row["name"]),
    "|network": lambda row: str(row["series"]),
    "|depth": lambda row: str(row["depth"]),
    "|parameters": lambda row: "" if row["parameters"] is None else f"{row['parameters']:,}",
    "|seeds": lambda row: str(row["seeds"]),
    "clean training|error % (sd)": lambda row: spread(
        row["clean_train_error"], row["clean_train_error_sd"]
    ),
    "training|error %": lambda row: spread(row["train_error"], None),
    "test|error % (sd)": lambda row: spread(row["test_error"], row["test_error_sd"]),
    "test|IoU % (sd)": lambda row: spread(row["test_iou"], row["test_iou_sd"]),
    "clean|loss": lambda row: (
        "" if row["clean_train_loss"] is None else f"{row['clean_train_loss']:.2g}"
    ),
    "|failures": _failures,
}
#: Columns of ours that make room for published errors.
LEFT_OUT = ("|parameters", "test|IoU % (sd)", "clean|loss")
THEIRS = ("published|test % (sd)", "published|training %", "test|difference", "|z", "published|by")
WORD_HEADINGS = ("|experiment", "|network", "published|by")  # to the left; numbers to the right
#: Columns that are left out where every cell is empty begin so.
OPTIONAL = ("published|", "|z", "test|difference", "test|IoU")

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
    if beside:
        ours = [heading for heading in OURS if heading not in LEFT_OUT]
        headings, body = [*ours, *THEIRS], _bodies_beside(rows, ours, notes)
    else:
        headings = [*OURS, "published|test error %"]
        body = [[*_ours(row, OURS), published_cell(row, notes)] for row in rows]
    footnotes = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    if any(row["diverged"] for row in rows):
        footnotes.append("A diverged run counts at chance.")
    if not beside and any(row["test_iou"] is not None for row in rows):
        footnotes.append(IOU_NOTE)
    if beside and any(row["z"] is not None for row in rows):
        footnotes.append(Z_NOTE)
    if beside and any(row["published_bound"] for row in rows):
        footnotes.append(BOUND_NOTE)
    one_experiment = len({row["name"] for row in rows}) < 2
    keep = [
        column
        for column, heading in enumerate(headings)
        if not (heading == "|experiment" and one_experiment)
        and not (heading.startswith(OPTIONAL) and not any(cells[column] for cells in body))
    ]
    heading = [headings[column] for column in keep]
    return heading, [[cells[column] for column in keep] for cells in body], footnotes


def _ours(row: dict[str, Any], headings: Iterable[str]) -> list[str]:
    return [OURS[heading](row) for heading in headings]


def _bodies_beside(
    rows: Sequence[dict[str, Any]], headings: Sequence[str], notes: list[str]
) -> list[list[str]]:
    """Ours and theirs; a network's own cells are empty after its first line."""
    bodies = []
    before: list[str] = []
    for row in rows:
        ours = _ours(row, headings)
        # Two folders may hold equal names: a new network begins where its first source does.
        again = ours == before and row["published_source"] is not None
        bodies.append([*([""] * len(ours) if again else ours), *_theirs(row, notes)])
        before = ours
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


def published_cell(row: dict[str, Any], notes: list[str]) -> str:
    """The published value with the number of its footnote, which is added to ``notes`` once."""
    if row["published_test_error"] is None:
        return ""
    note = "; ".join(filter(None, [row["published_source"], row["published_remark"]])) + "."
    return f"{row['published_test_error']:.2f} {_mark(note, notes)}"


def _text(heading: list[str], body: list[list[str]], footnotes: list[str]) -> str:
    """Aligned columns, headings broken over two lines where that makes them narrower."""
    tops, bottoms = zip(*(word.split("|") for word in heading), strict=True)
    lines = [list(tops), list(bottoms), *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
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


def _is_words(heading: str) -> bool:
    return heading in WORD_HEADINGS


def _markdown(heading: list[str], body: list[list[str]], footnotes: list[str]) -> str:
    rule = "|".join(":--" if _is_words(word) else "--:" for word in heading)
    head = " | ".join(map(_joined, heading))
    lines = [f"| {' | '.join(map(_piped, cells))} |" for cells in body]
    below = ["", *(f"{note}  " for note in footnotes)] if footnotes else []
    return "\n".join([f"| {head} |", f"|{rule}|", *lines, *below]).rstrip()


def _piped(cell: str) -> str:
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{letter: "\\" + letter for letter in "&%$#_{}"},
    }
)


def escape_latex(text: str) -> str:
    """``text`` with the letters that LaTeX gives a meaning made harmless."""
    return text.translate(LATEX_ESCAPES)


def _latex(heading: list[str], body: list[list[str]], footnotes: list[str]) -> str:
    columns = "".join("l" if _is_words(word) else "r" for word in heading)
    lines = [
        " & ".join(map(escape_latex, cells)) + r" \\" for cells in (map(_joined, heading), *body)
    ]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *(r"\par\noindent\footnotesize " + escape_latex(note) for note in footnotes),
        ]
    )
