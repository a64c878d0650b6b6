"""What every figure shares: sizes, type, colours, headings, legends, and the file it becomes.

Drawn without pyplot: no window, no state between figures. Sizes are those of a printed page (a
column is 85 mm wide), so text keeps its size in a paper: 7 points or more. A slide is a page on
which all is larger, lines as well as letters.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from resexp.analysis.results import Run, spell
from resexp.console import counted
from resexp.runs.records import replacing

MOST_PANELS = 4
MM = 1 / 25.4  # inches
COLUMN, PAGE = 85 * MM, 175 * MM
TALLEST = 235 * MM  # so that it fits A4
DPI = 200  # of a PNG

TICKS = {"labelsize": 7, "color": "#444444", "major.width": 0.6, "major.size": 2.5, "major.pad": 3}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: the same on every machine
    "font.size": 7.5,  # sizes and widths in points; pt() gives others
    **{"figure.titlesize": 7.5, "axes.labelsize": 7.5, "axes.labelpad": 3, "legend.fontsize": 7},
    **{"axes.titlesize": 8.5, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in TICKS.items()},
    **{"axes.edgecolor": "#444444", "axes.labelcolor": "#222222", "text.color": "#222222"},
    **{"axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.5},
    "legend.edgecolor": "none",
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
CHANCE = "#999999"
DOTS: Any = (0, (1, 1.5))
GREY = "#555555"
DASHES: Any = (0, (3, 1.6))


@dataclass(frozen=True, slots=True)
class Page:
    """Where a figure will be seen: how wide it is there, and how large its letters are."""

    width: float | None = None  # inches; None leaves it to the chart
    tallest: float = TALLEST  # inches
    scale: float = 1.0  # of all sizes in points
    title: str | None = None  # in place of the heading; "" for none


SCREEN = Page()
SLIDE = Page(width=13.333, tallest=7.5, scale=2)  # the usual wide slide, in inches


def scaled(style: dict[Any, Any], scale: float) -> dict[Any, Any]:
    """A style whose sizes, widths and distances, all in points, are ``scale`` times as large."""
    points = (key for key in style if key.endswith(("size", "width", "pad")))
    return style | {key: scale * style[key] for key in points}


def pt(points: float) -> float:
    """A size on a page, in points of the figure that is being drawn."""
    return points * float(matplotlib.rcParams["font.size"] / STYLE["font.size"])


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
    pad = pt(2.2) / 72
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)  # type: ignore[union-attr,call-arg]
    return figure


def heading(runs: Sequence[Run]) -> str:
    """Experiment, data, recipe and seeds."""
    first = runs[0]
    return (
        f"Experiment {first.name}: data {data_sets(runs)}, recipe {first.setting('recipe')}, "
        f"{seeds(runs)}{remarks(runs, '. ')}"
    )


def part(drawn: int, series: int) -> str:
    """How many series are drawn, if not all."""
    return f"{drawn} of {series} series" if drawn < series else ""


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
    said = counted(max(networks), "seed")
    return said if len({*networks}) == 1 else f"{min(networks)} to {said}"


def spaced(series: str) -> str:
    """``residual,arch.shortcut=B`` with room after the comma."""
    return series.replace(",", ", ")


def labels(runs: Sequence[Run]) -> dict[str, str]:
    """What people call each series: its arch, and the settings that tell it from the others.

    A setting that all runs share says nothing: ``steps=1000`` is named beside ``steps=2000`` alone.
    One of the architecture is compared within it.
    """
    keys = sorted({key for run in runs for key in run.extras})
    seen: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for key in keys:
            seen.setdefault((of_arch(run, key), key), set()).add(spell(run.setting(key)))
    found = {}
    for run in runs:
        varied = (key for key in keys if len(seen[of_arch(run, key), key]) > 1)
        words = [setting_word(run, key) for key in varied]
        found[run.series] = ", ".join([arch_name(run.arch), *filter(None, words)])
    clash = len({*found.values()}) < len(found)
    return {series: spaced(series) for series in found} if clash else found


def of_arch(run: Run, key: str) -> str:
    """The arch that a setting belongs to; "" for one of the recipe."""
    return run.arch if key.startswith("arch.") or key == "twin" else ""


def setting_word(run: Run, key: str) -> str:
    """``lr=0.1``; a plain twin is called so, and what has its skips is not said to have no twin."""
    value = spell(run.setting(key))
    if key == "twin":
        return {"none": "", "plain": "plain twin"}.get(value, f"{value} twin")
    return f"{key.removeprefix('arch.')}={value}"


#: Archs whose names are not words; of the others the underscores go.
NAMES = {
    **{"preact": "pre-activation", "se": "squeeze-and-excitation", "rezero": "ReZero"},
    **{"skipinit": "SkipInit", "fixup": "Fixup", "resnet": "ResNet", "vgg": "VGG"},
    **{"unet": "U-Net", "densenet": "DenseNet", "repvgg": "RepVGG", "diracnet": "DiracNet"},
}


def arch_name(arch: str) -> str:
    return NAMES.get(arch, arch.replace("_", " "))


def wrapped(title: str, width: float) -> list[str]:
    """The lines of a heading in a figure of this width in inches, as of a page."""
    return textwrap.wrap(title, int(width / MM / 1.45))


def head(figure: Figure, title: str) -> None:
    """The lines above the panels."""
    lines = wrapped(title, figure.get_figwidth() / pt(1))
    figure.suptitle("\n".join(lines), x=0.01, ha="left")


def legend_lines(names: Sequence[str], width: float) -> tuple[list[str], int, int]:
    """Names broken where they are longer than a legend, its columns and its lines.

    ``width`` in inches, as of a page.
    """
    letters = int((width / MM - 9.5) / 1.35)
    names = ["\n".join(textwrap.wrap(name, letters)) or " " for name in names]
    lengths = [len(name) for name in names]

    def needed(columns: int) -> float:
        longest = [part.max() for part in np.array_split(lengths, columns)]
        return float(columns * 9.5 + 1.35 * sum(longest))

    fit = (n for n in range(len(names), 1, -1) if needed(n) <= width / MM)
    columns = next(fit, 1)
    lines = math.ceil(len(names) / columns) + sum(name.count("\n") for name in names)
    return names, columns, lines


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Below the panels, in as many columns as the width holds; the first take what is over."""
    names, columns, _ = legend_lines(names, figure.get_figwidth() / pt(1))
    figure.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a figure whole or not at all, in the form that its suffix names; no date inside.

    Raises Unwritten where it does not fit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(figure, temporary, path.suffix[1:], dpi)


def write(figure: Figure, target: Path | IO[bytes], form: str, dpi: int = DPI) -> None:
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
        figure.savefig(target, format=form, dpi=dpi, metadata=metadata)
