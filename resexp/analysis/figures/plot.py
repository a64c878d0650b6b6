"""The figures of an experiment, drawn from run.json and metrics.csv alone, into files.

``curves``: errors while training; ``depth``: final errors by depth; ``difference``: plain minus its
twin by seed; ``seeds``: learning rate and speed; ``families``: a page of small panels;
``surface``: final error against steps and rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name

from resexp.analysis.figures import FIGURES
from resexp.analysis.figures.canvas import check_form, save
from resexp.analysis.figures.chart import Chart, Nothing, draw
from resexp.analysis.figures.paper import paper
from resexp.analysis.results import Run, require_runs
from resexp.runs.records import METRICS, RECORD
from resexp.settings import UsageError

STYLES = ("screen", "paper")

KINDS: dict[str, Callable[[Sequence[Run]], Chart]] = {
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
) -> list[Path]:
    """Write figures of every experiment under ``root``; returns the files.

    They go into each experiment's folder, or with ``out_dir`` there (into a folder an experiment
    if there are several). ``which`` are of KINDS; the usual are curves, depth and, where plain
    networks and a twin are there, difference. ``style`` paper lays curves out as figure 6 of He et
    al. 2015 does and writes curves-paper. Raises UsageError if there is nothing to draw.
    """
    check_form(form)
    asked = check_kinds(which)
    if style not in STYLES:
        raise UsageError(f"a figure has no style {style}. Choose one of {', '.join(STYLES)}.")
    experiments: dict[Path, list[Run]] = {}
    for run in require_runs(root, filters):
        # A figure of one run belongs beside that run, not in place of its experiment's.
        folder = run.path if (root / RECORD).exists() else run.experiment
        experiments.setdefault(folder, []).append(run)
    written: list[Path] = []
    lacking: Nothing | None = None
    for folder, runs in experiments.items():
        place = folder
        if out_dir is not None:
            place = out_dir / folder.name if len(experiments) > 1 else out_dir
        for kind in asked:
            on_paper = style == "paper" and kind == "curves"
            try:
                chart = paper(runs) if on_paper else KINDS[kind](runs)
            except Nothing as error:
                lacking = lacking or error
                continue
            written.append(place / f"{kind}{'-paper' if on_paper else ''}.{form}")
            save(draw(chart), written[-1])
    if not written and which and lacking:
        raise lacking  # says what it lacks
    if not written:
        raise UsageError(f"no run in {root} has a row of {METRICS} yet. Nothing to draw.")
    return written


def check_kinds(which: Sequence[str] | None) -> list[str]:
    """The figures asked for, each once. Raises UsageError for one that does not exist."""
    asked = list(dict.fromkeys(which or USUAL))
    for kind in asked:
        if kind not in KINDS:
            raise UsageError(f"there is no figure {kind}. Choose from {', '.join(KINDS)}.")
    return asked
