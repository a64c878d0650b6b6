"""The figures of an experiment, drawn from run.json and metrics.csv alone, into files.

``curves``: errors while training; ``depth``: final errors by depth; ``difference``: plain minus its
twin by seed; ``seeds``: learning rate and speed; ``families``: a page of small panels;
``surface``: final error against steps and rate.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

from resexp.analysis.figures import FIGURES
from resexp.analysis.figures.canvas import DPI, MM, MOST_PANELS, SCREEN, SLIDE, Page, save
from resexp.analysis.figures.chart import Chart, Nothing, draw
from resexp.analysis.figures.paper import paper
from resexp.analysis.results import Run, grouped, require_runs
from resexp.runs.records import RECORD
from resexp.settings import UsageError

FORMS = ("png", "svg", "pdf")
STYLES = {"screen": SCREEN, "paper": SCREEN, "slide": SLIDE}

KINDS: dict[str, Callable[..., Chart]] = {
    name: resolve_name(function) for name, function in FIGURES.items()
}
USUAL = ("curves", "depth", "difference")  # those drawn unless others are asked for


def plot(
    root: Path,
    out_dir: Path | None = None,
    form: str = "png",
    filters: Sequence[str] = (),
    style: str = "screen",
    which: Sequence[str] | None = None,
    width: float | None = None,
    dpi: int = DPI,
    title: str | None = None,
) -> list[Path]:
    """Write figures of every experiment under ``root``; returns the files.

    They go into each experiment's folder, or with ``out_dir`` there (into a folder an experiment
    if there are several). ``which`` are of KINDS; the usual are curves (families where there are
    many series), depth and difference, and which of them would say nothing is told on stderr.
    ``style`` paper lays curves out as figure 6 of He et al. 2015 does and writes curves-paper;
    slide doubles all sizes. ``width`` in cm, of the page that the figure is made for; ``title`` in
    place of its heading. Raises UsageError if there is nothing to draw.
    """
    asked = list(dict.fromkeys(which or USUAL))
    choices = {"form": ([form], FORMS), "style": ([style], STYLES), "figure": (asked, KINDS)}
    for what, (chosen, known) in choices.items():
        if unknown := [one for one in chosen if one not in known]:
            raise UsageError(f"there is no {what} {unknown[0]}. Choose from {', '.join(known)}.")
    # A figure of one run belongs beside that run, not in place of its experiment's.
    alone = (root / RECORD).exists()
    experiments = grouped(
        require_runs(root, filters), lambda run: run.path if alone else run.experiment
    )
    written: list[Path] = []
    notes: list[str] = []
    lacking: dict[str, Nothing] = {}
    for folder, runs in experiments.items():
        place = folder
        if out_dir is not None:
            place = out_dir / folder.name if len(experiments) > 1 else out_dir
        for kind in asked if which or style == "paper" else fitting(runs):
            on_paper = style == "paper" and kind == "curves"
            try:
                chart = paper(runs) if on_paper else KINDS[kind](runs)
            except Nothing as error:
                lacking[f"{kind} of {folder.name}"] = error
                continue
            written.append(place / f"{kind}{'-paper' if on_paper else ''}.{form}")
            save(draw(chart, page(style, width, title)), written[-1], dpi)
            if chart.part:
                told = f"{chart.part} drawn. Choose with a filter, such as arch=plain,residual."
                notes.append(f"{kind} of {folder.name}: {told}")
    if not written:
        raise next(iter(lacking.values()))  # says what it lacks
    for note in [*notes, *(f"no {what}: {error}" for what, error in lacking.items())]:
        print(f"note: {note}", file=sys.stderr)
    return written


def page(style: str, width: float | None = None, title: str | None = None) -> Page:
    """The page of a style, ``width`` cm wide if given, and with another heading if given."""
    wide = {} if width is None else {"width": 10 * MM * width}
    return replace(STYLES[style], title=title, **wide)


def fitting(runs: Sequence[Run]) -> list[str]:
    """The usual figures, with all series on a page where curves would leave some out."""
    many = len({run.series for run in runs}) > MOST_PANELS
    return ["families" if kind == "curves" and many else kind for kind in USUAL]
