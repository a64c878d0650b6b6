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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from resexp.analysis.published import beside, published_beside, short_source
from resexp.analysis.results import Run, grouped, order
from resexp.analysis.verdict import LEAST_LOSS
from resexp.console import grid
from resexp.settings import UsageError

FORMS = ("text", "markdown", "csv", "latex", "json")


def rows(runs: Sequence[Run], published: bool = False) -> list[dict[str, Any]]:
    """A dict per network, sorted by experiment, plain first, shallow to deep. Keys as in ``line``.

    A diverged run counts at chance; a failed or unfinished one is counted and has no error. With
    ``published`` a dict for every published error of a network, whose numbers are repeated, with
    the keys of ``Published`` in place of the three that begin so; one without values if there is
    no published error.
    """
    ordered = sorted(runs, key=lambda run: (run.name, str(run.experiment), *order(run)))
    groups = grouped(ordered, lambda run: (run.name, run.experiment, run.series, run.depth))
    if not published:
        return [line(group) | published_beside(group[0]) for group in groups.values()]
    return [
        ours | asdict(theirs)
        for group in groups.values()
        for ours in [line(group)]
        for theirs in beside(group[0], ours["test_error"], ours["test_error_sd"], ours["seeds"])
    ]


def line(group: Sequence[Run]) -> dict[str, Any]:
    """The numbers of runs that differ in their seed only.

    Errors in percent, means over finished runs; sd with n - 1, None for one seed.
    """
    first, statuses = group[0], Counter(run.status for run in group)
    losses = [max(loss, LEAST_LOSS) for loss in finals(group, "clean_train_loss")]
    return {
        "name": first.name,
        "series": first.series,
        "depth": first.depth,
        "parameters": first.record.get("parameters"),
        "seeds": sum(run.finished for run in group),  # which the means are over
        **mean_and_sd(group, "clean_train_error"),
        # Of the last batches, augmented, as the paper's dashed curves.
        "train_error": mean_and_sd(group, "train_error")["train_error"],
        **mean_and_sd(group, "test_error"),
        **mean_and_sd(group, "test_iou"),  # of networks that segment; their errors are of pixels
        "clean_train_loss": statistics.geometric_mean(losses) if losses else None,
        "collapsed": statuses["collapsed"],
        "diverged": statuses["diverged"],
        "failed": statuses["failed"],
        "unfinished": statuses["running"] + statuses["interrupted"],
        "runs": len(group),
    }


def finals(group: Sequence[Run], column: str) -> list[float]:
    values = [run.endpoint(column) for run in group]
    return [value for value in values if value is not None and math.isfinite(value)]


def mean_and_sd(group: Sequence[Run], column: str) -> dict[str, float | None]:
    values = finals(group, column)
    return {
        column: statistics.fmean(values) if values else None,
        f"{column}_sd": statistics.stdev(values) if len(values) > 1 else None,
    }


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
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue().rstrip("\n")
    writers = {"text": _text, "markdown": _markdown, "latex": _latex}
    return writers[form](*cells(rows))


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
    "clean loss|(nats)": lambda row: (
        "" if row["clean_train_loss"] is None else f"{row['clean_train_loss']:.2g}"
    ),
    "|failures": _failures,
}
#: Columns of ours that make room for published errors.
LEFT_OUT = ("|parameters", "test|IoU % (sd)", "clean loss|(nats)")
THEIRS = ("published|test % (sd)", "published|training %", "test|difference", "|z", "published|by")
WORD_HEADINGS = ("|experiment", "|network", "published|by")  # to the left; numbers to the right
#: Columns that a narrow screen goes without, the first of them first.
SPARE = ("clean loss|(nats)", "|parameters", "training|error %", "|z", "test|difference", "|seeds")
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


def cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings and body without needless columns, and footnotes."""
    notes: list[str] = []
    said = []
    if any(row["diverged"] for row in rows):
        said.append("A diverged run counts at chance.")
    if "z" in rows[0]:
        ours = [heading for heading in OURS if heading not in LEFT_OUT]
        headings, body = [*ours, *THEIRS], _bodies_beside(rows, ours, notes)
        said += [Z_NOTE] if any(row["z"] is not None for row in rows) else []
        said += [BOUND_NOTE] if any(row["published_bound"] for row in rows) else []
    else:
        headings = [*OURS, "published|test error %"]
        body = [[*(cell(row) for cell in OURS.values()), _best(row, notes)] for row in rows]
        said += [IOU_NOTE] if any(row["test_iou"] is not None for row in rows) else []
    one_experiment = len({row["name"] for row in rows}) < 2
    keep = [
        column
        for column, heading in enumerate(headings)
        if not (heading == "|experiment" and one_experiment)
        and not (heading.startswith(OPTIONAL) and not any(cells[column] for cells in body))
    ]
    body = [[cells[column] for column in keep] for cells in body]
    footnotes = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    return [headings[column] for column in keep], body, footnotes + said


def _bodies_beside(
    rows: Sequence[dict[str, Any]], headings: Sequence[str], notes: list[str]
) -> list[list[str]]:
    """Ours and theirs; a network's own cells are empty after its first line."""
    bodies = []
    before: list[str] = []
    for row in rows:
        ours = [OURS[heading](row) for heading in headings]
        # Two folders may hold equal names: a new network begins where its first source does.
        again = ours == before and row["published_source"] is not None
        bodies.append([*([""] * len(ours) if again else ours), *_theirs(row, notes)])
        before = ours
    return bodies


def _theirs(row: dict[str, Any], notes: list[str]) -> list[str]:
    """Published errors, the difference, and by whom, with the number of a footnote."""
    value, source = row["published_test_error"], row["published_source"]
    mark = _mark(row, notes)
    if value is None:
        return ["", "", "", "", mark]
    return [
        row["published_bound"] + spread(value, row["published_test_error_sd"]),
        spread(row["published_train_error"], None),
        "" if row["difference"] is None else f"{row['difference']:+.2f}",
        "" if row["z"] is None else f"{row['z']:+.1f}",
        f"{short_source(source)}, {row['published_statistic']} {mark}",
    ]


def _best(row: dict[str, Any], notes: list[str]) -> str:
    """The published value of a network by the same recipe, if there is one."""
    value = row["published_test_error"]
    return "" if value is None else f"{value:.2f} {_mark(row, notes)}"


def _mark(row: dict[str, Any], notes: list[str]) -> str:
    """``[2]``: the number of a row's footnote, which is added to ``notes`` once."""
    note = "; ".join(filter(None, [row["published_source"], row["published_remark"]])) + "."
    note = note[0].upper() + note[1:] if row["published_source"] is None else note
    if note not in notes:
        notes.append(note)
    return f"[{notes.index(note) + 1}]"


def joined(heading: str) -> str:
    """``clean training|error %`` in one line."""
    return heading.replace("|", " ").strip()


def _sides(heading: Sequence[str]) -> str:
    return "".join("<" if word in WORD_HEADINGS else ">" for word in heading)


def _text(heading: list[str], body: list[list[str]], footnotes: list[str]) -> str:
    """Aligned columns, without those of SPARE that there is no room for."""
    spare = [heading.index(word) for word in SPARE if word in heading]
    return "\n".join([*grid(heading, body, _sides(heading), spare), *footnotes])


def _markdown(heading: list[str], body: list[list[str]], footnotes: list[str]) -> str:
    sides = "|".join({"<": ":--", ">": "--:"}[side] for side in _sides(heading))
    head = " | ".join(map(joined, heading))
    lines = [f"| {' | '.join(cell.translate(PIPED) for cell in cells)} |" for cells in body]
    below = ["", *(f"{note}  " for note in footnotes)] if footnotes else []
    return "\n".join([f"| {head} |", f"|{sides}|", *lines, *below]).rstrip()


PIPED = str.maketrans({"&": "&amp;", "<": "&lt;", "|": "\\|"})
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{letter: "\\" + letter for letter in "&%$#_{}"},
    }
)


def _latex(heading: list[str], body: list[list[str]], footnotes: list[str]) -> str:
    head, *lines = (
        " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"
        for cells in ([joined(word) for word in heading], *body)
    )
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{_sides(heading).replace('<', 'l').replace('>', 'r')}}}",
            *(r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"),
            *(r"\par\noindent\footnotesize " + note.translate(LATEX) for note in footnotes),
        ]
    )
