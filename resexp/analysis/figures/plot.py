"""The figures of an experiment, drawn from run.json and metrics.csv alone, into files.

``curves``: errors while training; ``depth``: final errors by depth; ``difference``: plain minus its
twin by seed; ``strips``: learning rate and speed; ``families``: a page of small panels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from resexp.analysis.figures.canvas import FORMS, check_form, save
from resexp.analysis.figures.curves import draw_curves, draw_families, gather
from resexp.analysis.figures.depth import (
    differences,
    draw_depth,
    draw_difference,
    final_error,
)
from resexp.analysis.figures.paper import draw_paper
from resexp.analysis.figures.seeds import draw_strips
from resexp.analysis.results import Run, others, plain_twin, require_runs
from resexp.runs.records import METRICS, RECORD
from resexp.settings import UsageError

__all__ = [
    "FORMS",
    "KINDS",
    "STYLES",
    "draw_curves",
    "draw_depth",
    "draw_difference",
    "draw_families",
    "draw_paper",
    "draw_strips",
    "plot",
    "save",
]

STYLES = ("screen", "paper")

KINDS: dict[str, Callable[[Sequence[Run]], Figure]] = {
    "curves": draw_curves,
    "depth": draw_depth,
    "difference": draw_difference,
    "strips": draw_strips,
    "families": draw_families,
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
    written = []
    for folder, runs in experiments.items():
        place = folder
        if out_dir is not None:
            place = out_dir / folder.name if len(experiments) > 1 else out_dir
        for kind in asked:
            if not can_draw(kind, runs):
                continue
            paper = style == "paper" and kind == "curves"
            written.append(place / f"{kind}{'-paper' if paper else ''}.{form}")
            save(draw_paper(runs) if paper else KINDS[kind](runs), written[-1])
    if not written and which:
        KINDS[asked[0]](next(iter(experiments.values())))  # says what it lacks
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


def can_draw(kind: str, runs: Sequence[Run]) -> bool:
    """Whether these runs have what a figure shows."""
    if kind == "depth":
        return any(final_error(run) is not None for run in runs)
    if kind == "difference":
        return any(
            differences(runs, twin, other, "clean_train_error")
            for other in others(runs)
            if (twin := plain_twin(runs, other))
        )
    return bool(gather(runs))
