"""Curves in the layout of He et al. 2015, figure 6: plain left, residual right, names beside them.

Axes from 0 to 20 %, training dashed, test bold, a colour a depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from resexp.analysis.figures.canvas import COLUMN, DASHES, PAGE, STYLE, data_sets, remarks, seeds
from resexp.analysis.figures.chart import Chart, Key
from resexp.analysis.figures.curves import Look, error_panels, require_rows, step_scale
from resexp.analysis.results import Run

PAPER_TOP = 20.0  # percent, where the paper's axis ends

PAPER_STYLE: dict[Any, Any] = STYLE | {
    "axes.spines.top": True,
    "axes.spines.right": True,
    "axes.titlelocation": "center",
    "axes.titleweight": "normal",
    "axes.edgecolor": "#222222",
    "xtick.direction": "in",
    "ytick.direction": "in",
    "grid.color": "#cccccc",
    "grid.linestyle": (0, (2, 2)),
    "grid.linewidth": 0.4,
    "axes.grid.axis": "y",
}
INK = "#222222"


def paper(runs: Sequence[Run]) -> Chart:
    """Two panels that share their axes: plain, and the first other series, as in figure 6.

    Lines are means over seeds, without bands. A curve that ends above the axis is named with its
    final test error at the top; where most curves do, the axis follows the data, and says so.
    Raises UsageError if no run has a row yet.
    """
    chosen = twin_panels(list(require_rows(runs)))
    drawn = require_rows([run for run in runs if run.series in chosen])
    steps = step_scale(drawn, ticks=7)
    if steps.per > 1:
        steps = replace(steps, label="iter. (1e4)", per=10_000)
    look = Look((1.7, 0.8), bands=False, end="{arch}-{depth}", top=PAPER_TOP)
    panels = error_panels(drawn, look, steps)
    ends = [line.y[-1] for panel in panels for line in panel.lines if line.end]
    fits = sum(end <= PAPER_TOP for end in ends) > len(ends) / 2
    if not fits:
        panels = error_panels(drawn, replace(look, top=None), steps)
    for panel in panels:
        panel.chance, panel.note = None, ""
        panel.y.ticks = [0, 5, 10, 15, 20] if fits else None
    return Chart(
        heading=remarks(runs),
        panels=panels,
        keys=[
            Key("training error", INK, width=0.8, stroke=DASHES),
            Key("test error", INK, width=1.7),
            Key(remark(runs, list(drawn), fits), INK, stroke="none"),  # words alone
        ],
        columns=len(panels),
        width=PAGE if len(panels) > 1 else 1.2 * COLUMN,
        row=62,
        labels="each",
        style=PAPER_STYLE,
    )


def twin_panels(series: Sequence[str]) -> list[str]:
    """The first plain series and the first other one; of one kind alone, its first two."""
    plain = [one for one in series if one.split(",")[0] == "plain"]
    other = [one for one in series if one not in plain]
    return [plain[0], other[0]] if plain and other else list(series)[:2]


def remark(runs: Sequence[Run], drawn: Sequence[str], fits: bool) -> str:
    """What a caption must say: data, seeds, and where the axis is not the paper's."""
    shown = [run for run in runs if run.series in drawn]
    counted = seeds(shown)
    lengths = sorted({(run.setting("steps"), run.setting("batch_size")) for run in shown})
    said = [data_sets(shown), *(f"{steps:,} steps of {size}" for steps, size in lengths)]
    said += ["1 seed" if counted == "1 seed" else f"means over {counted}"]
    if (series := len({run.series for run in runs})) > len(drawn):
        said.append(f"{len(drawn)} of {series} series")
    if not fits:
        said.append(f"most curves end above {PAPER_TOP:.0f} %: axis by the data")
    return ", ".join(said)
