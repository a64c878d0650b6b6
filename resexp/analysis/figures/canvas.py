"""What every figure shares: sizes, type, colours, headings, legends, and the file it becomes.

Drawn without pyplot: no window, no state between figures. Sizes are those of a printed page (a
column is 85 mm wide), so text keeps its size in a paper.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from resexp.analysis.formatting import count
from resexp.analysis.results import Run
from resexp.runs.records import replacing

MOST_PANELS = 4
MM = 1 / 25.4  # inches
COLUMN, PAGE = 85 * MM, 175 * MM

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: the same on every machine
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.edgecolor": "none",
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "resexp",  # the same figure, the same bytes
    "pdf.fonttype": 42,
}

#: Depth from shallow to deep: hue and lightness change together, so it reads in grey and by
#: colour-blind eyes, and the lightest still stands out on white. Other depths lie between.
DEPTH_COLOURS = {
    **{2: "#eeb547", 8: "#eba52e", 20: "#e2694f", 32: "#c04a78", 44: "#833b90"},
    **{56: "#46308f", 110: "#161648", 1202: "#000000"},
}

#: Networks where depth is the axis: colours of Okabe and Ito, and a marker for grey print.
SERIES_STYLES = (("#d55e00", "o"), ("#0072b2", "s"), ("#009e73", "^"), ("#cc79a7", "D"))
MORE_COLOURS = ("#7a5195", "#8a6d00")  # after those four, where a page shows more series
FAILURE = "#222222"
GREY = "#555555"
DASHES: Any = (0, (3, 1.6))


def depth_colour(depth: int) -> str:
    """The colour of a depth, the same in every figure."""
    channels = zip(*(to_rgb(colour) for colour in DEPTH_COLOURS.values()), strict=True)
    known = np.log([*DEPTH_COLOURS])
    red, green, blue = (float(np.interp(math.log(depth), known, each)) for each in channels)
    return to_hex((red, green, blue))


def series_style(index: int) -> tuple[str, str]:
    """Colour and marker of a series by its place; of twelve no two are alike."""
    colours = [*(colour for colour, _ in SERIES_STYLES), *MORE_COLOURS]
    return colours[index % len(colours)], SERIES_STYLES[index % len(SERIES_STYLES)][1]


def blank(width: float, height: float) -> Figure:
    """A figure of this size in inches, without axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr,call-arg]
    return figure


def heading(runs: Sequence[Run], series: int = 0, most: int = 0) -> str:
    """Experiment, data, recipe and seeds, and how many series are drawn if not all."""
    first = runs[0]
    left_out = f" ({most} of {series} series)" if series > most else ""
    return (
        f"Experiment {first.name}: data {data_sets(runs)}, recipe {first.setting('recipe')}, "
        f"{seeds(runs)}{left_out}{remarks(runs, '. ')}"
    )


def remarks(runs: Sequence[Run], before: str = "") -> str:
    """What the runs' settings say beside their numbers, such as how they differ from He's."""
    said = dict.fromkeys(str(run.setting("remark")) for run in runs if run.setting("remark"))
    return before + " ".join(said) if said else ""


def data_sets(runs: Sequence[Run]) -> str:
    """The names of the sets that the runs trained on: nearly always one."""
    return " and ".join(dict.fromkeys(run.data for run in runs))


def seeds(runs: Sequence[Run]) -> str:
    """``3 seeds``, or ``1 to 3 seeds`` where networks differ in how many they have."""
    networks = Counter((run.series, run.depth) for run in runs).values()
    said = count(max(networks), "seed")
    return said if len({*networks}) == 1 else f"{min(networks)} to {said}"


def spaced(series: str) -> str:
    """``residual,arch.shortcut=B`` with room after the comma."""
    return series.replace(",", ", ")


def head(figure: Figure, title: str) -> None:
    """The line above the panels, in two where the figure is narrow."""
    wide = figure.get_figwidth() > COLUMN
    letters = int(figure.get_figwidth() / MM / (1.55 if wide else 1.37))
    lines = textwrap.wrap(title, letters)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8 if wide else 7)


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the panels, in as many columns as the width holds; the first take what is over."""
    lengths = [len(label) for label in labels]

    def needed(columns: int) -> float:
        longest = [part.max() for part in np.array_split(lengths, columns)]
        return float(columns * 9.5 + 1.35 * sum(longest))

    width = figure.get_figwidth() / MM
    fit = (n for n in range(len(labels), 1, -1) if needed(n) <= width)
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=next(fit, 1),
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, in the form that its suffix names; no date inside.

    Raises Unwritten where it does not fit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(figure, temporary, path.suffix[1:])


def write(figure: Figure, target: Path | IO[bytes], form: str) -> None:
    """Render a figure; the same figure gives the same bytes."""
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form, {})
    for label in figure.findobj(Text, include_self=False):
        text = label.get_text()
        if "$" in text and "\\mathdefault" not in text:
            label.set_parse_math(False)  # a name with dollars in it, not the tick of an axis
        letters = (x if x.isprintable() or x == "\n" else "\N{REPLACEMENT CHARACTER}" for x in text)
        label.set_text("".join(letters))  # XML has no others
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters of another font
        figure.savefig(target, format=form, dpi=200, metadata=metadata)
