"""What every figure shares: sizes, type, colours, axes, headings, legends, and the file it becomes.

Drawn without pyplot: no window, no state between figures. Sizes are those of a printed page (a
column is 85 mm wide), so text keeps its size in a paper.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from resexp.analysis.results import Run
from resexp.runs.records import replacing
from resexp.settings import UsageError

FORMS = ("png", "svg", "pdf")
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
#: colour-blind eyes, and the lightest still stands out on white.
DEPTH_COLOURS = LinearSegmentedColormap.from_list(
    "depth", ["#e8a33d", "#d1495b", "#7b3f8c", "#1b2a5c"]
)

#: Networks where depth is the axis: colours of Okabe and Ito, and a marker for grey print.
SERIES_STYLES = (("#d55e00", "o"), ("#0072b2", "s"), ("#009e73", "^"), ("#cc79a7", "D"))
FAILURE = "#222222"
GREY = "#555555"
DASHES: Any = (0, (3, 1.6))


def depth_colours(depths: Sequence[int]) -> dict[int, str]:
    """A colour a depth, by rank: the shallowest lightest, the deepest darkest."""
    last = max(len(depths) - 1, 1)
    return {depth: to_hex(DEPTH_COLOURS(rank / last)) for rank, depth in enumerate(depths)}


def blank(width: float, height: float) -> Figure:
    """A figure of this size in inches, without axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr,call-arg]
    return figure


def canvas(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of column or page width with axes that share their scales."""
    columns, lines = min(panels, 2), math.ceil(panels / 2)
    figure = blank(COLUMN if columns == 1 else PAGE, 62 * MM * lines + 14 * MM)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.remove()
    for axis in axes[:panels]:
        axis.tick_params(labelbottom=True, labelleft=True)
    return figure, axes[:panels]


def heading(runs: Sequence[Run]) -> str:
    """Experiment, data, recipe and seeds."""
    first = runs[0]
    return (
        f"Experiment {first.name}: data {data_sets(runs)}, recipe {first.setting('recipe')}, "
        f"{seeds(runs)}"
    )


def data_sets(runs: Sequence[Run]) -> str:
    """The names of the sets that the runs trained on: nearly always one."""
    return " and ".join(dict.fromkeys(run.data for run in runs))


def seeds(runs: Sequence[Run]) -> str:
    """``3 seeds``, or ``1 to 3 seeds`` where networks differ in how many they have."""
    networks = Counter((run.series, run.depth) for run in runs)
    least, most = min(networks.values()), max(networks.values())
    counted = f"{most} seed{'' if most == 1 else 's'}"
    return counted if least == most else f"{least} to {counted}"


def spaced(series: str) -> str:
    """``residual,arch.shortcut=B`` with room after the comma."""
    return series.replace(",", ", ")


def head(figure: Figure, title: str, series: int = 0, most: int = MOST_PANELS) -> None:
    """The line above the panels, in two where the figure is narrow."""
    left_out = f" ({most} of {series} series)" if series > most else ""
    wide = figure.get_figwidth() > COLUMN
    letters = int(figure.get_figwidth() / MM / (1.55 if wide else 1.37))
    lines = textwrap.wrap(title + left_out, letters)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8 if wide else 7)


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the panels, in as many columns as the width holds."""
    width = figure.get_figwidth() / MM
    columns = len(labels)
    while columns > 1 and columns * 9.5 + 1.35 * _letters(labels, columns) > width:
        columns -= 1
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _letters(labels: Sequence[str], columns: int) -> int:
    """Letters across, the longest label of each column; the first columns take what is over."""
    lines, over = divmod(len(labels), columns)
    letters, start = 0, 0
    for column in range(columns):
        end = start + lines + (column < over)
        letters += max(len(label) for label in labels[start:end])
        start = end
    return letters


def legend_curves(figure: Figure, depths: Sequence[int], colours: dict[int, str]) -> None:
    """A colour a depth, a stroke a kind of error."""
    handles = [Line2D([], [], color=colours[depth], linewidth=1.6) for depth in depths]
    labels = [f"{depth} layers" for depth in depths]
    handles += [
        Line2D([], [], color=GREY, linewidth=1.3),
        Line2D([], [], color=GREY, linewidth=0.9, linestyle=DASHES),
    ]
    legend(figure, handles, [*labels, "test", "training"])


def draw_chance(axis: Axes, runs: Sequence[Run], top: float) -> None:
    """Where always answering the commonest class lies, if the axis reaches that far."""
    chance = runs[0].record["data"].get("chance_error")
    if chance is None or chance >= top:
        return
    axis.axhline(chance, color="#999999", linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1)
    axis.annotate(
        "chance",
        (0, chance),
        xycoords=("axes fraction", "data"),
        xytext=(3, 2),
        textcoords="offset points",
        fontsize=6.5,
        color="#777777",
    )


def step_scale(longest: int) -> int:
    """By what steps are divided on the axis: long runs are counted in thousands."""
    return 1000 if longest >= 10_000 else 1


def step_axis(axis: Axes, longest: int, ticks: int = 5) -> None:
    """Ticks from 0 to the last step of the longest run."""
    axis.set_xlim(0, longest / step_scale(longest))
    # 1.6 so that 64,000 steps are marked where the paper drops its rate: 16, 32, 48, 64.
    axis.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 1.6, 2, 2.5, 5, 10]))


def step_label(longest: int) -> str:
    return "step (thousands)" if step_scale(longest) > 1 else "step"


def round_up(value: float) -> float:
    """To the next of 1, 2, 5, 10, 20, 30 ... 100."""
    for top in (1, 2, 5, *range(10, 101, 10)):
        if value <= top:
            return float(top)
    return 100.0


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, in the form that its suffix names; no date inside.

    Raises Unwritten where it does not fit.
    """
    form = check_form(path.suffix.lstrip("."))
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form, {})
    path.parent.mkdir(parents=True, exist_ok=True)
    for label in figure.findobj(Text):
        if "$" in label.get_text() and "\\mathdefault" not in label.get_text():
            label.set_parse_math(False)  # a name with dollars in it, not the tick of an axis
    with matplotlib.rc_context(STYLE), replacing(path) as temporary:
        figure.savefig(temporary, format=form, dpi=200, metadata=metadata)


def check_form(form: str) -> str:
    if form not in FORMS:
        raise UsageError(f"a figure has no form {form}. Choose one of {', '.join(FORMS)}.")
    return form
