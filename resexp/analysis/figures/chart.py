"""A chart as plain values, computed once from runs, and the one way in which it is drawn.

``resexp plot`` draws a whole chart into a file. The report draws its panels one by one, and shows
under the pointer the same values. What a reader may switch off there has its tags in its id.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from resexp.analysis.figures.canvas import (
    CHANCE,
    COLUMN,
    DOTS,
    GREY,
    MM,
    PAGE,
    SCREEN,
    STYLE,
    Page,
    blank,
    head,
    legend,
    legend_lines,
    pt,
    scaled,
    wrapped,
)
from resexp.settings import UsageError

NAME = 3.3 * MM  # a name at the end of a curve, and room
AROUND = 14 * MM  # what a row of panels needs beside its axes
LINE = 3.8 * MM  # of a heading or a legend

#: What was drawn, each with the tags of its id.
Tagged = Iterator[tuple[Artist, tuple[str, ...]]]


class Nothing(UsageError):
    """These runs do not have what a chart shows."""


@dataclass(slots=True)
class Line:
    """A curve with the spread around it, as a band or as bars at its points."""

    name: str  # told under the pointer; "" for a line that is not
    tags: tuple[str, ...]  # the report shows it while all of these are switched on
    x: list[float]
    y: list[float]
    colour: str
    width: float = 1.3  # points
    low: list[float] = field(default_factory=list)  # empty without a spread, nan where it has none
    high: list[float] = field(default_factory=list)
    stroke: Any = "-"
    bars: bool = False
    stairs: bool = False  # a value holds from the x before it
    shift: float = 0.0  # along x, so that several stand side by side
    end: str = ""  # written beside its last point
    above: float = 3  # what lies over what


@dataclass(slots=True)
class Points:
    """Single runs, or pairs of runs."""

    names: list[str]
    tags: tuple[str, ...]
    x: list[float]
    y: list[float]
    colour: str
    marker: str  # "x" for failures


@dataclass(slots=True)
class Scale:
    """One axis."""

    label: str
    low: float
    high: float
    ticks: int | Sequence[float] | None = None  # how many, or which; None leaves it to matplotlib
    form: str = ""  # of its numbers, such as {x:,.0f}
    per: int = 1  # what its numbers are divided by where they are written
    kind: str = "linear"  # or log, or symlog: linear up to 1


@dataclass(slots=True)
class Panel:
    """One pair of axes."""

    title: str
    x: Scale
    y: Scale
    lines: list[Line]
    points: list[Points] = field(default_factory=list)
    chance: float | None = None  # error of always answering the commonest class, percent
    note: str = ""  # below its title
    digits: int = 1
    unit: str = " %"
    signed: bool = False  # a difference, drawn around a line at zero
    spread: str = ""  # what low and high are, before them

    def number(self, value: float) -> str:
        """A value in words, with a real minus, without its unit."""
        sign = "+" if self.signed else ""
        rounded = round(value, self.digits) + 0.0  # no minus before a zero
        return f"{rounded:{sign}.{self.digits}f}".replace("-", "\u2212")


@dataclass(slots=True)
class Key:
    """One entry of the legend; with a tag the report can switch what it names."""

    name: str
    colour: str = GREY
    tag: str = ""
    width: float = 1.6
    stroke: Any = "-"
    marker: str = ""
    band: bool = False


@dataclass(kw_only=True, slots=True)
class Chart:
    """Panels with one legend."""

    title: str = ""  # of its section in the report
    caption: str = ""  # below it there
    heading: str  # above the figure
    part: str = ""  # what part of the series is drawn, if not all
    panels: list[Panel]
    keys: list[Key]
    columns: int  # on a page as wide as PAGE
    width: float = PAGE  # inches
    row: float  # height of a row of panels, mm
    labels: str = "left"  # where axes are labelled: left, outer (numbers too) or each
    style: dict[Any, Any] = field(default_factory=lambda: STYLE)


def draw(chart: Chart, page: Page = SCREEN) -> Figure:
    """A whole chart as a figure; where the page is narrower than PAGE its panels are stacked."""
    width = (page.width or chart.width) / page.scale  # lengths as if letters were of a page's size
    columns = chart.columns
    if page.width:
        columns = max(1, min(len(chart.panels), round(chart.columns * width / PAGE)))
    rows = math.ceil(len(chart.panels) / columns)
    heading = chart.heading if page.title is None else page.title
    heading += f" ({chart.part})" if heading and chart.part else ""
    names = [key.name for key in chart.keys]
    words = LINE * (len(wrapped(heading, width)) + legend_lines(names, width)[2])
    titles = [title_lines(panel, width / columns) for panel in chart.panels]
    more = LINE * max(len(title) + len(notes) - 1 for title, notes, _ in titles)
    row = min(chart.row * MM + more, (page.tallest / page.scale - words) / rows)
    # Rather a page that is too tall than one with no axes.
    row = max(row, chart.row * MM / 2 + more)
    with matplotlib.rc_context(scaled(chart.style, page.scale)):
        figure = blank(page.scale * width, page.scale * (rows * row + words))
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for unused in axes[len(chart.panels) :]:
            unused.remove()
        for index, (axis, panel) in enumerate(zip(axes, chart.panels, strict=False)):
            draw_panel(axis, panel, f"p{index}", row - more)
            first, lowest = index % columns == 0, index + columns >= len(chart.panels)
            if chart.labels != "each" and not first:
                axis.set_ylabel("")
            if chart.labels == "outer":
                axis.tick_params(labelleft=first, labelbottom=lowest)
                axis.set_xlabel(axis.get_xlabel() if lowest else "")
            title, notes, size = titles[index]
            if notes:
                style: dict[str, Any] = {"fontsize": pt(7), "color": "#666666", "va": "bottom"}
                above: Any = ((0, 1), (0, pt(3)), "axes fraction", "offset points")
                axis.annotate("\n".join(notes), *above, **style)
            axis.set_title("\n".join(title), fontsize=pt(size), pad=pt(4 + 9.8 * len(notes)))
        if heading:
            head(figure, heading)
        legend(figure, [handle(key) for key in chart.keys], names)
    return figure


def draw_alone(chart: Chart, panel: Panel, name: str) -> Figure:
    """One panel as a figure, without title and legend; ``name`` begins its ids."""
    height = 58 * MM
    with matplotlib.rc_context(chart.style):
        figure = blank(COLUMN, height)
        draw_panel(figure.subplots(), panel, name, height)
    return figure


def draw_panel(axis: Axes, panel: Panel, name: str, height: float) -> None:
    """All of a panel but its title. Ids are ``name``.tag.tag.number; ``height`` as of a page."""
    set_scale(axis, "x", panel.x)
    set_scale(axis, "y", panel.y)
    if panel.signed:
        axis.axhline(0, color="#444444", linewidth=pt(0.9), zorder=2)
    if panel.chance is not None:
        axis.axhline(panel.chance, color=CHANCE, linewidth=pt(0.7), linestyle=DOTS, zorder=1)
    drawn = [one for line in panel.lines for one in draw_line(axis, line, panel.x.per)]
    drawn += [one for points in panel.points for one in draw_points(axis, points, panel)]
    drawn += draw_ends(axis, panel, NAME / (height - AROUND))
    for number, (artist, tags) in enumerate(drawn):
        artist.set_gid(".".join((name, *tags, str(number))))


def title_lines(panel: Panel, width: float) -> tuple[list[str], list[str], float]:
    """The lines of a title and of its note in a panel of this width, and the title's size."""
    room = width / MM - 4
    size = 8.5 if room > 50 else 7.5
    title = textwrap.wrap(panel.title, int(room / (0.23 * size)))
    notes = (textwrap.fill(note, int(room / 1.35)) for note in panel.note.splitlines())
    return title, "\n".join(notes).splitlines(), size


def set_scale(axis: Axes, which: str, scale: Scale) -> None:
    """The range, ticks and label of the x or the y axis."""
    one = axis.xaxis if which == "x" else axis.yaxis
    if scale.kind != "linear":
        foot = {"linthresh": 1, "linscale": 0.4} if scale.kind == "symlog" else {}
        getattr(axis, f"set_{which}scale")(scale.kind, **foot)
        one.set_minor_locator(NullLocator())
    axis.set(**{f"{which}lim": (scale.low / scale.per, scale.high / scale.per)})
    if isinstance(scale.ticks, int):
        # 1.6 so that 64,000 steps are marked where the paper drops its rate: 16, 32, 48, 64.
        steps = [1, *([1.6] if scale.per > 1 else []), 2, 2.5, 5, 10]
        one.set_major_locator(MaxNLocator(scale.ticks, steps=steps))
    elif scale.ticks is not None:
        one.set_ticks(scale.ticks, [f"{tick:g}" for tick in scale.ticks])
    if scale.form:
        one.set_major_formatter(scale.form)
    one.set_label_text(scale.label)


def draw_line(axis: Axes, line: Line, per: int) -> Tagged:
    """The line itself, and its band or its bars."""
    x, y = (np.array(line.x) + line.shift) / per, np.array(line.y)
    colour, above = line.colour, line.above
    (drawn,) = axis.plot(
        x,
        y,
        color=colour,
        linewidth=pt(line.width),
        linestyle=line.stroke,
        drawstyle="steps-pre" if line.stairs else "default",
        label=line.name,
        zorder=above,
        clip_on=not line.bars,  # a mean at 0 has its whole width
    )
    yield drawn, line.tags
    low, high = np.array(line.low), np.array(line.high)
    parts: Sequence[Artist] = []
    if line.bars and (known := np.isfinite(low)).any():
        ends = ((y - low)[known], (high - y)[known])
        style: dict[str, Any] = {"elinewidth": pt(0.9), "capsize": pt(2.2), "capthick": pt(0.9)}
        style |= {"fmt": "none", "ecolor": colour, "zorder": above}
        parts = axis.errorbar(x[known], y[known], ends, **style).get_children()
    elif line.low and not line.bars:
        parts = [axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)]
    for part in parts:
        yield part, (*line.tags, "spread")


def draw_points(axis: Axes, points: Points, panel: Panel) -> Tagged:
    """A mark a run, translucent so that equal ones add up; a cross for a failure."""
    failed = points.marker == "x"
    (drawn,) = axis.plot(
        np.array(points.x) / panel.x.per,
        np.minimum(points.y, panel.y.high),  # an early divergence may lie above the axis
        linestyle="none",
        marker=points.marker,
        markersize=pt(5 if failed else 2.8),
        markeredgewidth=pt(1.1 if failed else 0),
        alpha=1 if failed else 0.55,
        color=points.colour,
        clip_on=False,
        zorder=4,
    )
    yield drawn, (*points.tags, "run")


def draw_ends(axis: Axes, panel: Panel, apart: float) -> Tagged:
    """Names right of the ends of curves, each with a hair line, a share of the height ``apart``.

    A curve that ends above the axis has an arrow and its last value there. More names than there is
    room for are none: the legend has the colours.
    """
    low, high = panel.y.low, panel.y.high
    named = sorted((line for line in panel.lines if line.end), key=lambda line: line.y[-1])
    if len(named) * apart > 1:
        return
    hair: dict[str, Any] = {"arrowstyle": "-", "shrinkA": 0.5, "shrinkB": 0, "relpos": (0, 0.5)}
    wanted = [(min(line.y[-1], high) - low) / (high - low) for line in named]
    for line, place in zip(named, spread(wanted, apart, 1), strict=True):
        value, end = line.y[-1], (line.x[-1] - panel.x.low) / (panel.x.high - panel.x.low)
        beyond = f" \N{UPWARDS ARROW} {value:.0f} %" if value > high else ""
        note = axis.annotate(
            line.end + beyond,
            (line.x[-1] / panel.x.per, min(value, high)),
            (end + 0.045, place),
            textcoords="axes fraction",
            va="center",
            fontsize=pt(7),
            color=line.colour,
            annotation_clip=False,
            arrowprops=hair | {"color": line.colour, "linewidth": pt(0.5)},
        )
        yield note, line.tags
        if note.arrow_patch is not None:
            yield note.arrow_patch, line.tags


def spread(wanted: Sequence[float], apart: float, top: float) -> list[float]:
    """Heights at least ``apart``, in the order given, as near to the wanted as can be.

    Neighbours that are too near share the middle of what they want (pool adjacent violators);
    none lies above ``top``, nor below 0 if they fit.
    """
    blocks: list[tuple[float, int]] = []  # the mean of wanted minus rank * apart, and how many
    for rank, value in enumerate(wanted):
        mean, members = value - rank * apart, 1
        while blocks and blocks[-1][0] > mean:
            before, others = blocks.pop()
            mean = (mean * members + before * others) / (members + others)
            members += others
        blocks.append((mean, members))
    shifted = [mean for mean, members in blocks for _ in range(members)]
    most = top - (len(wanted) - 1) * apart
    return [max(0.0, min(mean, most)) + rank * apart for rank, mean in enumerate(shifted)]


def at_chance(panels: Sequence[Panel]) -> list[Key]:
    """What the dotted line is, where one is within the axes."""
    drawn = {panel.chance for panel in panels if panel.chance and panel.chance < panel.y.high}
    told = " and ".join(f"{error:.0f} %" for error in sorted(drawn))
    return [Key(f"chance, {told}", CHANCE, width=0.7, stroke=DOTS)] if drawn else []


def handle(key: Key) -> Artist:
    """What stands before a name in the legend."""
    if key.band:
        return Patch(color=key.colour, alpha=0.25, linewidth=0)
    return Line2D(
        *([], []),
        color=key.colour,
        linewidth=pt(key.width),
        linestyle=key.stroke,
        marker=key.marker or "none",
        markersize=pt({"|": 8, "x": 5, "": 0}.get(key.marker, 3.2)),
    )
