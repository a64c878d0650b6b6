"""One line a network: final errors over seeds, failures counted, published numbers beside them.

Published numbers are shown only if someone read them at their source, and only beside networks
trained by the same recipe; ``published.csv`` says where each is from.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from resexp.analysis.published import beside, published_beside, short_source
from resexp.analysis.results import Run, grouped, order
from resexp.analysis.verdict import LEAST_LOSS
from resexp.console import grid
from resexp.settings import UsageError

#: A network's numbers, as ``line`` has them, and published ones.
Row = dict[str, Any]

FORMS = ("text", "markdown", "csv", "latex", "json")


def rows(runs: Sequence[Run], published: bool = False) -> list[Row]:
    """A dict per network, sorted by experiment, plain first, shallow to deep. Keys as in ``line``.

    A diverged run counts at chance; a failed or unfinished one is counted and has no error. With
    ``published`` a dict for every published error of a network, whose numbers are repeated, with
    the keys of ``published.COLUMNS`` in place of the three that begin so; one without values if
    there is no published error.
    """
    ordered = sorted(runs, key=lambda run: (run.name, str(run.experiment), *order(run)))
    found = []
    networks = grouped(ordered, lambda run: (run.name, run.experiment, run.series, run.depth))
    for group in networks.values():
        ours = line(group)
        theirs = beside(group[0], ours) if published else [published_beside(group[0])]
        found += [ours | one for one in theirs]
    return found


def line(group: Sequence[Run]) -> Row:
    """The numbers of runs that differ in their seed only.

    Errors in percent, means over finished runs; sd with n - 1, None for one seed.
    """
    first, statuses = group[0], Counter(run.status for run in group)
    losses = [max(loss, LEAST_LOSS) for loss in finals(group, "clean_train_loss")]
    train = finals(group, "train_error")  # augmented images, as the paper's dashed curves
    return {
        "name": first.name,
        "series": first.series,
        "depth": first.depth,
        "parameters": first.record.get("parameters"),
        "seeds": sum(run.finished for run in group),  # which the means are over
        **mean_and_sd(group, "clean_train_error"),
        "train_error": statistics.fmean(train) if train else None,
        **mean_and_sd(group, "test_error"),
        **mean_and_sd(group, "test_iou"),  # of networks that segment; their errors are of pixels
        "clean_train_loss": statistics.geometric_mean(losses) if losses else None,
        **{status: statuses[status] for status in ("collapsed", "diverged", "failed")},
        "unfinished": statuses["running"] + statuses["interrupted"],
        "runs": len(group),
    }


def finals(group: Sequence[Run], column: str) -> list[float]:
    values = (run.endpoint(column) for run in group)
    return [value for value in values if value is not None and math.isfinite(value)]


def mean_and_sd(group: Sequence[Run], column: str) -> dict[str, float | None]:
    values = finals(group, column)
    return {
        column: statistics.fmean(values) if values else None,
        f"{column}_sd": statistics.stdev(values) if len(values) > 1 else None,
    }


# --- how they are written


def render(rows: Sequence[Row], form: str = "text") -> str:
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


def spread(row: Row, key: str) -> str:
    """A mean and, where there is one, its standard deviation in brackets."""
    sd = _form(row, f"{key}_sd", ".2f") if f"{key}_sd" in row else ""
    return _form(row, key, ".2f") + (f" ({sd})" if sd else "")


def _failures(row: Row) -> str:
    failures = row["collapsed"] + row["diverged"] + row["failed"]
    unfinished = f", {row['unfinished']} unfinished" if row["unfinished"] else ""
    return f"{failures} of {row['runs']}{unfinished}"


def _form(row: Row, key: str, form: str) -> str:
    return "" if row[key] is None else format(row[key], form)


def _by(row: Row) -> str:
    """By whom an error was published, with the number of a footnote."""
    if row["published_test_error"] is None:
        return str(row["mark"])
    source = short_source(row["published_source"])
    return f"{source}, {row['published_statistic']} {row['mark']}"


#: Headings, which a text table breaks at the bar, and what stands below them.
OURS: dict[str, Callable[[Row], str]] = {
    "|experiment": lambda row: str(row["name"]),
    "|network": lambda row: str(row["series"]),
    "|depth": lambda row: str(row["depth"]),
    "|parameters": lambda row: _form(row, "parameters", ","),
    "|seeds": lambda row: str(row["seeds"]),
    "clean training|error % (sd)": lambda row: spread(row, "clean_train_error"),
    "training|error %": lambda row: _form(row, "train_error", ".2f"),
    "test|error % (sd)": lambda row: spread(row, "test_error"),
    "test|IoU % (sd)": lambda row: spread(row, "test_iou"),
    "clean loss|(nats)": lambda row: _form(row, "clean_train_loss", ".2g"),
    "|failures": _failures,
}
#: The best published error beside them.
BEST: dict[str, Callable[[Row], str]] = {
    "published|test error %": lambda row: " ".join(
        filter(None, [spread(row, "published_test_error"), row["mark"]])
    )
}
#: Or all of them, one a row.
THEIRS: dict[str, Callable[[Row], str]] = {
    "published|test % (sd)": lambda row: (
        row["published_bound"] + spread(row, "published_test_error")
    ),
    "published|training %": lambda row: _form(row, "published_train_error", ".2f"),
    "test|difference": lambda row: _form(row, "difference", "+.2f"),
    "|z": lambda row: _form(row, "z", "+.1f"),
    "published|by": _by,
}
#: Columns of ours that make room for them.
LEFT_OUT = ("|parameters", "test|IoU % (sd)", "clean loss|(nats)")
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


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings and body without needless columns, and footnotes."""
    beside = "z" in rows[0]
    columns = OURS | BEST
    if beside:
        columns = {key: OURS[key] for key in OURS if key not in LEFT_OUT} | THEIRS
    notes = [_note(row) if beside or row["published_source"] else "" for row in rows]
    numbers = {note: n for n, note in enumerate(dict.fromkeys(filter(None, notes)), 1)}
    body = []
    for row, note in zip(rows, notes, strict=True):
        mark = f"[{numbers[note]}]" if note else ""
        body.append([write(row | {"mark": mark}) for write in columns.values()])
    if beside:
        own = len(columns) - len(THEIRS)
        for at in range(len(body) - 1, 0, -1):
            # Two folders may hold equal names: a new network begins where its first source does.
            if body[at][:own] == body[at - 1][:own] and rows[at]["published_source"] is not None:
                body[at][:own] = [""] * own
    keep = [
        at
        for at, heading in enumerate(columns)
        if (heading != "|experiment" or len({row["name"] for row in rows}) > 1)
        and not (heading.startswith(OPTIONAL) and not any(cells[at] for cells in body))
    ]
    footnotes = [f"[{number}] {note}" for note, number in numbers.items()]
    if any(row["diverged"] for row in rows):
        footnotes.append("A diverged run counts at chance.")
    if beside:
        footnotes += [Z_NOTE] if any(row["z"] is not None for row in rows) else []
        footnotes += [BOUND_NOTE] if any(row["published_bound"] for row in rows) else []
    elif any(row["test_iou"] is not None for row in rows):
        footnotes.append(IOU_NOTE)
    headings = list(columns)
    return [headings[at] for at in keep], [[cells[at] for at in keep] for cells in body], footnotes


def _note(row: Row) -> str:
    """Where a published error is from and what these runs do otherwise, as a sentence."""
    note = "; ".join(filter(None, [row["published_source"], row["published_remark"]])) + "."
    return note[0].upper() + note[1:] if row["published_source"] is None else note


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
        " & ".join(_as_latex(cell) for cell in cells) + r" \\"
        for cells in ([joined(word) for word in heading], *body)
    )
    return "\n".join(
        [
            *(r"% \usepackage{booktabs}", r"\begin{table}", r"\centering"),
            r"\caption{Errors after the last step: mean $\pm$ standard deviation over seeds.}",
            r"\label{tab:errors}",
            rf"\begin{{tabular}}{{{_sides(heading).replace('<', 'l').replace('>', 'r')}}}",
            *(r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"),
            *(r"\par\noindent\footnotesize " + note.translate(LATEX) for note in footnotes),
            r"\end{table}",
        ]
    )


def _as_latex(cell: str) -> str:
    """A cell in LaTeX, what stands in brackets behind a mean as plus and minus."""
    spread = re.fullmatch(r"([\d.]+) \(([\d.]+)\)", cell)
    if spread:
        return rf"${spread[1]} \pm {spread[2]}$"
    return cell.translate(LATEX).replace("(sd)", r"$\pm$ sd")
