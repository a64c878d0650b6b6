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
from resexp.analysis.figures.canvas import save
from resexp.analysis.figures.chart import Chart, Nothing, draw
from resexp.analysis.figures.paper import paper
from resexp.analysis.results import grouped, require_runs
from resexp.runs.records import METRICS, RECORD
from resexp.settings import UsageError

FORMS, STYLES = ("png", "svg", "pdf"), ("screen", "paper")

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
) -> list[Path]:
    """Write figures of every experiment under ``root``; returns the files.

    They go into each experiment's folder, or with ``out_dir`` there (into a folder an experiment
    if there are several). ``which`` are of KINDS; the usual are curves, depth and, where plain
    networks and a twin are there, difference. ``style`` paper lays curves out as figure 6 of He et
    al. 2015 does and writes curves-paper. Raises UsageError if there is nothing to draw.
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
