"""Charts of the HTML report: inline SVG that stands by itself, and the data that a script reads.

Every panel is an image with a name and a description. Its lines carry tags; the report's script
hides a line whose tag is switched off in the legend. Colours come in pairs, for a light page and a
dark one. Plain Python: no matplotlib, no torch.
"""

from __future__ import annotations

import json
import math
import statistics as plain_statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

from resexp.analysis.results import Run, order, others, plain_twin
from resexp.analysis.statistics import paired_t
from resexp.analysis.verdict import LEAST_LOSS
from resexp.runs.records import Row

MOST_POINTS = 400  # of one line: more than the pixels that a phone has across
WIDTH, HEIGHT = 440, 300  # of a panel, in its own units; it is scaled to the page
LEFT, RIGHT, TOP, BOTTOM = 46, 40, 12, 44

#: Depth from shallow to deep, on a light and on a dark page.
DEPTH_RAMPS = (
    ("#e8a33d", "#d1495b", "#7b3f8c", "#1b2a5c"),
    ("#f6cf85", "#f0818d", "#c48fd8", "#93a9f5"),
)
#: Networks where depth is the axis: colours of Okabe and Ito, lightened for a dark page.
SERIES_COLOURS = (
    ("#d55e00", "#ff9a52"),
    ("#0072b2", "#5bb8ef"),
    ("#009e73", "#3fd0a4"),
    ("#cc79a7", "#eba9cb"),
    ("#7a5195", "#bd9cdb"),
    ("#8a6d00", "#dfc153"),
)

Colours = tuple[str, str]
Scale = Callable[[float], float]

#: Shapes around a place, for print without colour: circle, square, triangle, diamond.
MARKERS = (
    "M{}m-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
    "M{}m-3-3h6v6h-6z",
    "M{}m0-3.8l3.8 6.6h-7.6z",
    "M{}m0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",
)


@dataclass(kw_only=True, slots=True)
class Trace:
    """One line: means ``y`` at ``x``, with the spread ``low`` to ``high`` around them."""

    name: str
    tags: tuple[str, ...]  # it shows while all of these are switched on
    colours: Colours
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]
    dashed: bool = False
    bars: bool = False  # the spread as bars at the points, not as a band
    shift: float = 0.0  # of bars, so that those of several series stand side by side
    end: str = ""  # written beside its last point


@dataclass(kw_only=True, slots=True)
class Point:
    """One run, or one pair of runs."""

    x: float
    y: float
    name: str
    tags: tuple[str, ...]
    colours: Colours
    marker: int  # circle, square, triangle, diamond
    failed: bool = False  # drawn as a cross


@dataclass(kw_only=True, slots=True)
class Panel:
    """One pair of axes."""

    name: str
    description: str  # what a person who does not see it needs
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: list[float]
    traces: list[Trace]
    spread: str  # what low and high are: seeds or 95 %
    unit: str = " %"
    digits: int = 1
    signed: bool = False
    points: list[Point] = field(default_factory=list)
    chance: float | None = None


@dataclass(kw_only=True, slots=True)
class Key:
    """One entry of a legend, which switches a tag."""

    tag: str
    name: str
    colours: Colours | None  # None for a kind of line whatever its colour
    kind: str = "line"  # line, dashed, or band


@dataclass(kw_only=True, slots=True)
class Chart:
    """Panels with one legend."""

    title: str
    caption: str
    panels: list[Panel]
    keys: list[Key]


# --- what is drawn


def curves(runs: Sequence[Run]) -> Chart | None:
    """Training (dashed) and test error against steps, a panel a series; None without a row."""
    table = [(run, run.rows()) for run in sorted(runs, key=order)]
    drawn = [run for run, rows in table if rows]
    if not drawn:
        return None
    depths = sorted({run.depth for run in drawn})
    colours = dict(zip(depths, ramp(len(depths)), strict=True))
    longest = max(rows[-1].step for _, rows in table if rows)
    series = list(dict.fromkeys(run.series for run in drawn))
    traces: dict[str, list[Trace]] = {name: [] for name in series}
    crosses: dict[str, list[Point]] = {name: [] for name in series}
    for name in series:
        for depth in depths:
            group = [(run, rows) for run, rows in table if (run.series, run.depth) == (name, depth)]
            traces[name] += mean_traces(group, colours[depth])
            broken, ends = diverged_traces(group, colours[depth])
            traces[name] += broken
            crosses[name] += ends
    top = top_error([trace for group in traces.values() for trace in group])
    chance = drawn[0].record["data"].get("chance_error")
    panels = [
        Panel(
            name=spaced(name),
            description=describe_curves(name, traces[name]),
            x_label="step",
            y_label="error (%)",
            x_range=(0, longest),
            y_range=(0, top),
            x_ticks=ticks(0, longest),
            traces=traces[name],
            points=crosses[name],
            spread="seeds",
            chance=chance if chance is not None and chance < top else None,
        )
        for name in series
    ]
    keys = [Key(tag=f"d{depth}", name=str(depth), colours=colours[depth]) for depth in depths]
    keys[0].name += " layers"
    keys += [
        Key(tag="test", name="test", colours=None),
        Key(tag="train", name="training", colours=None, kind="dashed"),
    ]
    if any(trace.low != trace.high for group in traces.values() for trace in group):
        keys.append(Key(tag="spread", name="range over seeds", colours=None, kind="band"))
    return Chart(
        title="Error while training",
        caption="Means over seeds. Training error is the running mean over augmented batches.",
        panels=panels,
        keys=keys,
    )


def mean_traces(group: Sequence[tuple[Run, list[Row]]], colours: Colours) -> list[Trace]:
    """Means and range over the finished runs of one network (all of them, if none is finished)."""
    finite = [(run, rows) for run, rows in group if run.status != "diverged" and rows]
    whole = [rows for run, rows in finite if run.finished] or [rows for _, rows in finite]
    if not whole:
        return []
    depth = group[0][0].depth
    steps = set.intersection(*({row.step for row in rows} for rows in whole))
    traces = []
    for column, kind, tag in (("test_error", "test", "test"), ("train_error", "training", "train")):
        found: dict[int, list[float]] = {step: [] for step in sorted(steps)}
        for rows in whole:
            for row in rows:
                if row.step in found:
                    found[row.step].append(getattr(row, column))
        found = {step: errors for step, errors in found.items() if all(map(math.isfinite, errors))}
        if found:
            traces.append(
                thinned(
                    Trace(
                        name=f"{depth} {kind}",
                        tags=(f"d{depth}", tag),
                        colours=colours,
                        x=[float(step) for step in found],
                        y=[plain_statistics.fmean(errors) for errors in found.values()],
                        low=[min(errors) for errors in found.values()],
                        high=[max(errors) for errors in found.values()],
                        dashed=tag == "train",
                        end=str(depth) if tag == "test" else "",
                    )
                )
            )
    return traces


def diverged_traces(
    group: Sequence[tuple[Run, list[Row]]], colours: Colours
) -> tuple[list[Trace], list[Point]]:
    """Each diverged run's test error up to where it is no number, and a cross there."""
    traces, points = [], []
    for run, rows in group:
        good = [row for row in rows if math.isfinite(row.test_error)]
        if run.status != "diverged" or not good:
            continue
        y = [row.test_error for row in good]
        tags = (f"d{run.depth}", "test")
        x = [float(row.step) for row in good]
        name = f"{run.run} diverged"
        trace = Trace(name=name, tags=tags, colours=colours, x=x, y=y, low=y, high=y)
        traces.append(thinned(trace))
        points.append(
            Point(x=x[-1], y=y[-1], name=name, tags=tags, colours=colours, marker=0, failed=True)
        )
    return traces, points


def by_depth(runs: Sequence[Run]) -> Chart | None:
    """Final clean training error against depth, a point a run; None if no run is finished."""
    finals: dict[str, list[tuple[Run, float]]] = {}
    for run in sorted(runs, key=order):
        error = run.endpoint("clean_train_error")
        if error is not None and math.isfinite(error):
            finals.setdefault(run.series, []).append((run, error))
    if not finals:
        return None
    depths = sorted({run.depth for found in finals.values() for run, _ in found})
    traces, points, keys = [], [], []
    for index, (series, found) in enumerate(finals.items()):
        at = {depth: [error for run, error in found if run.depth == depth] for depth in depths}
        colours, tags = SERIES_COLOURS[index % len(SERIES_COLOURS)], (f"s{index}",)
        traces.append(
            Trace(
                name=spaced(series),
                tags=tags,
                colours=colours,
                x=[float(depth) for depth, errors in at.items() if errors],
                y=[plain_statistics.fmean(errors) for errors in at.values() if errors],
                low=[min(errors) for errors in at.values() if errors],
                high=[max(errors) for errors in at.values() if errors],
                bars=True,
            )
        )
        shift = dodge(depths) * (index - (len(finals) - 1) / 2)
        traces[-1].shift = shift
        points += [
            Point(
                x=run.depth + shift,
                y=error,
                name=f"{run.run}: {error:.2f} %" + ("" if run.status == "ok" else f" {run.status}"),
                tags=tags,
                colours=colours,
                marker=index,
                failed=run.status != "ok",
            )
            for run, error in found
        ]
        keys.append(Key(tag=tags[0], name=spaced(series), colours=colours))
    highest = max(error for found in finals.values() for _, error in found)
    panel = Panel(
        name="clean training error",
        description=describe_means(traces, " %", 2),
        x_label="depth (weighted layers)",
        y_label="final clean training error (%)",
        x_range=padded(depths),
        y_range=(0, round_up(1.06 * highest)),
        x_ticks=[float(depth) for depth in depths],
        traces=traces,
        points=points,
        spread="seeds",
        digits=2,
    )
    failed = any(point.failed for point in points)
    caption = "A line of means over seeds, a point a run; bars are the range over seeds."
    caption += " A cross is a run that collapsed or diverged." if failed else ""
    return Chart(title="Final error against depth", caption=caption, panels=[panel], keys=keys)


def differences(runs: Sequence[Run]) -> Chart | None:
    """Plain minus each other network by depth, paired by seed; None if there is no pair."""
    pairs = pair(runs)
    if not pairs:
        return None
    depths = sorted({depth for found in pairs.values() for depth, _, _ in found})
    panels = []
    for name, column, unit, digits in (
        ("clean training error, percent points", "clean_train_error", " points", 1),
        ("log10 clean training loss", "clean_train_loss", "", 2),
    ):
        traces, points = [], []
        for index, (series, found) in enumerate(pairs.items()):
            colours, tags = SERIES_COLOURS[(index + 1) % len(SERIES_COLOURS)], (f"s{index}",)
            trace, seeds = difference(series, found, column, tags, colours, index + 1)
            shift = dodge(depths) * (index - (len(pairs) - 1) / 2)
            trace.shift = shift
            for point in seeds:
                point.x += shift
            traces.append(trace)
            points += seeds
        panels.append(
            Panel(
                name=name,
                description=describe_means(traces, unit, digits),
                x_label="depth (weighted layers)",
                y_label="plain minus residual"
                if list(pairs) == ["residual"]
                else "plain minus other",
                x_range=padded(depths),
                y_range=around_zero(
                    [value for trace in traces for value in (*trace.low, *trace.high)]
                    + [point.y for point in points]
                ),
                x_ticks=[float(depth) for depth in depths],
                traces=traces,
                points=points,
                spread="95 %",
                unit=unit,
                digits=digits,
                signed=True,
            )
        )
    keys = [
        Key(
            tag=f"s{index}",
            name=f"plain minus {spaced(series)}",
            colours=SERIES_COLOURS[(index + 1) % len(SERIES_COLOURS)],
        )
        for index, series in enumerate(pairs)
    ]
    return Chart(
        title="Plain minus residual" if list(pairs) == ["residual"] else "Plain minus the others",
        caption="Paired by seed; above zero the plain network trains worse. A point a seed, a line "
        "of means, bars are 95\u00a0% t intervals.",
        panels=panels,
        keys=keys,
    )


def pair(runs: Sequence[Run]) -> dict[str, list[tuple[int, Run, Run]]]:
    """(depth, skipless run, other run) by the other's series: same depth, seed and settings."""
    found = {(run.series, run.depth, run.seed): run for run in runs if measured(run)}
    pairs: dict[str, list[tuple[int, Run, Run]]] = {}
    for other in others(runs):
        plain = plain_twin(runs, other)
        for (series, depth, seed), run in sorted(found.items()):
            if series == other and (twin := found.get((plain or "", depth, seed))):
                pairs.setdefault(series, []).append((depth, twin, run))
    return pairs


def measured(run: Run) -> bool:
    values = [run.endpoint(column) for column in ("clean_train_error", "clean_train_loss")]
    return all(value is not None and math.isfinite(value) for value in values)


def difference(
    series: str,
    found: Sequence[tuple[int, Run, Run]],
    column: str,
    tags: tuple[str, ...],
    colours: Colours,
    marker: int,
) -> tuple[Trace, list[Point]]:
    """Mean differences with t intervals by depth, and a point a seed."""
    at: dict[int, list[float]] = {}
    points = []
    for depth, plain, other in found:
        value = scaled(plain, column) - scaled(other, column)
        at.setdefault(depth, []).append(value)
        points.append(
            Point(
                x=depth,
                y=value,
                name=f"{plain.run} minus {other.run}: {value:+.2f}",
                tags=tags,
                colours=colours,
                marker=marker,
                failed=(plain.status, other.status) != ("ok", "ok"),
            )
        )
    intervals = {depth: paired_t(at[depth]) for depth in sorted(at)}
    return (
        Trace(
            name=f"plain minus {spaced(series)}",
            tags=tags,
            colours=colours,
            x=[float(depth) for depth in intervals],
            y=[interval.mean for interval in intervals.values()],
            low=[finite(interval.low, interval.mean) for interval in intervals.values()],
            high=[finite(interval.high, interval.mean) for interval in intervals.values()],
            bars=True,
        ),
        points,
    )


def scaled(run: Run, column: str) -> float:
    """An endpoint as it is subtracted: errors as they are, losses as log10."""
    value = run.endpoint(column)
    assert value is not None
    return math.log10(max(value, LEAST_LOSS)) if column.endswith("_loss") else value


def finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


# --- numbers and names


def thinned(trace: Trace) -> Trace:
    """At most ``MOST_POINTS`` points: of each stretch of steps its lowest and its highest."""
    if len(trace.x) <= MOST_POINTS:
        return trace
    buckets = MOST_POINTS // 2 - 1
    edges = [round(1 + index * (len(trace.x) - 2) / buckets) for index in range(buckets + 1)]
    kept = {0, len(trace.x) - 1}
    for start, stop in pairwise(edges):
        kept |= {
            min(range(start, stop), key=trace.low.__getitem__),
            max(range(start, stop), key=trace.high.__getitem__),
        }
    places = sorted(kept)
    for values in ("x", "y", "low", "high"):
        setattr(trace, values, [getattr(trace, values)[place] for place in places])
    return trace


def ramp(count: int) -> list[Colours]:
    """A pair of colours a depth, by rank from shallow to deep."""
    last = max(count - 1, 1)
    return [
        (blend(DEPTH_RAMPS[0], rank / last), blend(DEPTH_RAMPS[1], rank / last))
        for rank in range(count)
    ]


def blend(stops: Sequence[str], share: float) -> str:
    """The colour at ``share`` of the way through ``stops``."""
    place = share * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    rest = place - first
    channels = [
        round((1 - rest) * int(stops[first][at : at + 2], 16))
        + round(rest * int(stops[first + 1][at : at + 2], 16))
        for at in (1, 3, 5)
    ]
    return "#" + "".join(f"{min(channel, 255):02x}" for channel in channels)


def top_error(traces: Iterable[Trace]) -> float:
    """Upper end of the error axis: twice the worst last mean, so that the first steps may leave."""
    return min(100.0, round_up(max(2 * max((trace.y[-1] for trace in traces), default=50), 10)))


def round_up(value: float) -> float:
    """To the next of 1, 2, 5, 10, 20, 30 ... 100, and beyond that as it is."""
    return next((float(top) for top in (1, 2, 5, *range(10, 101, 10)) if value <= top), value)


def around_zero(values: Sequence[float]) -> tuple[float, float]:
    """A range with zero in it and room on both sides."""
    low, high = min([*values, 0.0]), max([*values, 0.0])
    room = 0.06 * ((high - low) or 1)
    return low - room, high + room


def padded(depths: Sequence[int]) -> tuple[float, float]:
    margin = 0.06 * (depths[-1] - depths[0]) or 1
    return depths[0] - margin, depths[-1] + margin


def dodge(depths: Sequence[int]) -> float:
    """How far two series' points of one depth stand apart, in layers."""
    if len(depths) < 2:
        return 0.1
    least = min(after - before for before, after in pairwise(depths))
    return min(0.15 * least, 0.02 * (depths[-1] - depths[0]))


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in a range. 1.6 is among them so that 64,000 steps divide as in the paper."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 1.6, 2, 2.5, 5, 10) if size * power >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step + 0.0 for index in range(first, last + 1)]


def written(value: float) -> str:
    """A tick: 64,000 or 2.5."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}".rstrip("0")


def spaced(series: str) -> str:
    """``residual,arch.shortcut=B`` with room after the comma."""
    return series.replace(",", ", ")


def describe_curves(series: str, traces: Sequence[Trace]) -> str:
    """Where the lines end, in words."""
    said = [f"{trace.name} {trace.y[-1]:.1f} %" for trace in traces]
    last = f"{max((trace.x[-1] for trace in traces), default=0):,.0f}"
    return f"{spaced(series)}, error at step {last}, by depth: {', '.join(said) or 'none'}."


def describe_means(traces: Sequence[Trace], unit: str, digits: int) -> str:
    """Every mean, in words."""
    sign = "+" if "minus" in traces[0].name else ""
    said = [
        f"{trace.name}: "
        + ", ".join(
            f"{x:.0f} layers {y:{sign}.{digits}f}{unit}"
            for x, y in zip(trace.x, trace.y, strict=True)
        )
        for trace in traces
    ]
    return "; ".join(said) + "."


# --- SVG and HTML


def render(chart: Chart, name: str) -> str:
    """A chart as HTML: legend, panels, caption. ``name`` is unique on the page, letters only."""
    panels = "".join(
        render_panel(panel, f"{name}-{index}", len(chart.panels) > 1)
        for index, panel in enumerate(chart.panels)
    )
    keys = "".join(map(render_key, chart.keys))
    single = " single" if len(chart.panels) == 1 else ""
    return (
        f'<figure class="chart" id="{name}">'
        f'<div class="legend" role="group" aria-label="Legend: {escape(chart.title)}">{keys}</div>'
        f'<div class="panels{single}">{panels}</div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def render_key(key: Key) -> str:
    """A legend entry: a button that a script wakes; without one it is a picture and a word."""
    swatch = f'<span class="swatch {key.kind}{ink(key.colours)}></span>'
    return (
        f'<button type="button" disabled aria-pressed="true" data-tag="{escape(key.tag)}">'
        f"{swatch}{escape(key.name)}</button>"
    )


def ink(colours: Colours | None) -> str:
    """The end of a class attribute, and the style, that give an element its pair of colours."""
    return '"' if colours is None else f' ink" style="--l:{colours[0]};--d:{colours[1]}"'


def render_panel(panel: Panel, name: str, titled: bool) -> str:
    """One SVG image, and the data behind it for the script."""
    across = scale(panel.x_range, LEFT, WIDTH - RIGHT)
    up = scale(panel.y_range, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(panel.name)}: {escape(panel.y_label)} against '
        f"{escape(panel.x_label)}</title>",
        f'<desc id="{name}-d">{escape(panel.description)}</desc>',
        f'<clipPath id="{name}-c"><rect x="{LEFT}" y="{TOP - 4}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM + 4}"/></clipPath>',
        *axes(panel, across, up),
        f'<g clip-path="url(#{name}-c)">',
        *(spread(trace, across, up) for trace in panel.traces),
        *(stroke(trace, across, up) for trace in panel.traces),
        "</g>",
        *(marker(point, across, up) for point in panel.points),
        *end_labels(panel.traces, across, up),
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="0" x2="0"/>',
        "</svg>",
    ]
    title = f'<p class="panel-name">{escape(panel.name)}</p>' if titled else ""
    label = f"{panel.name}: values. Left and right arrow keys move through them."
    return (
        f'<div class="panel">{title}<div class="plot" role="group" aria-label="{escape(label)}">'
        f'{"".join(parts)}<div class="tip" role="status" hidden></div></div>'
        f'<script type="application/json">{data(panel)}</script></div>'
    )


def scale(domain: tuple[float, float], start: float, stop: float) -> Scale:
    """The linear map of ``domain`` to pixels from ``start`` to ``stop``."""
    factor = (stop - start) / (domain[1] - domain[0])
    return lambda value: start + (value - domain[0]) * factor


def axes(panel: Panel, across: Scale, up: Scale) -> list[str]:
    """Grid, ticks, labels, and lines at zero and at chance."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(*panel.y_range):
        y = up(value)
        zero = " zero" if value == 0 else ""
        parts.append(
            f'<line class="grid{zero}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        text = written(value).replace("-", "\u2212")
        parts.append(f'<text class="tick end" x="{LEFT - 7}" y="{y + 4:.1f}">{text}</text>')
    last = -math.inf
    for value in panel.x_ticks:
        x, text = across(value), written(value)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        )
        if x - last > 9 + 7 * len(text):  # or it would touch the one before
            parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 18}">{text}</text>')
            last = x
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="label mid" x="{middle}" y="{HEIGHT - 6}">{escape(panel.x_label)}</text>'
    )
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="label mid" transform="translate(11 {middle}) rotate(-90)">'
        f"{escape(panel.y_label)}</text>"
    )
    if panel.chance is not None:
        y = up(panel.chance)
        parts.append(
            f'<line class="chance" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick end" x="{right}" y="{y - 4:.1f}">chance</text>'
        )
    return parts


def tagged(tags: Sequence[str]) -> str:
    return f' data-tags="{" ".join(tags)}"'


def spread(trace: Trace, across: Scale, up: Scale) -> str:
    """The band around a line, or its bars; nothing where there is no spread."""
    if trace.low == trace.high:
        return ""
    places = list(zip(trace.x, trace.low, trace.high, strict=True))
    if trace.bars:
        d = "".join(
            f"M{across(x + trace.shift):.1f} {up(low):.1f}V{up(high):.1f}"
            for x, low, high in places
        )
        return f'<path class="bars{ink(trace.colours)}{tagged(trace.tags)} d="{d}"/>'
    edge = [(x, high) for x, _, high in places] + [(x, low) for x, low, _ in reversed(places)]
    tags = (*trace.tags, "spread")
    return f'<path class="band{ink(trace.colours)}{tagged(tags)} d="{path(edge, across, up)}Z"/>'


def stroke(trace: Trace, across: Scale, up: Scale) -> str:
    """The line itself."""
    kind = "trace dashed" if trace.dashed else "trace"
    d = path(zip(trace.x, trace.y, strict=True), across, up)
    return f'<path class="{kind}{ink(trace.colours)}{tagged(trace.tags)} d="{d}"/>'


def path(places: Iterable[tuple[float, float]], across: Scale, up: Scale) -> str:
    """Straight lines through ``places``."""
    return "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in places)


def marker(point: Point, across: Scale, up: Scale) -> str:
    """A point in its series' shape, or a cross; its name shows without a script too."""
    x, y = across(point.x), max(up(point.y), TOP)  # an early divergence may lie above the axis
    if point.failed:
        d, kind = f"M{x - 4:.1f} {y - 4:.1f}l8 8m-8 0l8-8", "cross"
    else:
        d, kind = MARKERS[point.marker % len(MARKERS)].format(f"{x:.1f} {y:.1f}"), "point"
    return (
        f'<path class="{kind}{ink(point.colours)}{tagged(point.tags)} d="{d}">'
        f"<title>{escape(point.name)}</title></path>"
    )


def end_labels(traces: Sequence[Trace], across: Scale, up: Scale) -> list[str]:
    """Names beside the ends of lines, pushed apart where they would touch, each with a leader."""
    ends = sorted(
        ((up(trace.y[-1]), across(trace.x[-1]), trace) for trace in traces if trace.end),
        key=lambda end: (-end[0], end[2].end),
    )
    parts, below = [], HEIGHT - BOTTOM + 16.0
    for y, x, trace in ends:
        at = min(y, below - 12)
        below = at
        parts.append(
            f'<g{tagged(trace.tags)}><path class="leader{ink(trace.colours)} '
            f'd="M{x + 1:.1f} {y:.1f}L{x + 9:.1f} {at:.1f}"/>'
            f'<text class="tick" x="{x + 12:.1f}" y="{at + 4:.1f}">{escape(trace.end)}</text></g>'
        )
    return parts


def data(panel: Panel) -> str:
    """What the script needs to show values, as JSON that no text in it can end."""
    lines: list[dict[str, Any]] = [
        {
            "tags": trace.tags,
            "name": trace.name,
            "light": trace.colours[0],
            "dark": trace.colours[1],
            "dashed": trace.dashed,
            "x": [round(x, 3) for x in trace.x],
            "y": [round(y, 3) for y in trace.y],
        }
        | (
            {
                "low": [round(y, 3) for y in trace.low],
                "high": [round(y, 3) for y in trace.high],
            }
            if trace.low != trace.high
            else {}
        )
        for trace in panel.traces
    ]
    described = {
        "view": [WIDTH, HEIGHT],
        "box": [LEFT, WIDTH - RIGHT],
        "domain": panel.x_range,
        "x": "step" if panel.x_label == "step" else "layers",
        "unit": panel.unit,
        "digits": panel.digits,
        "signed": panel.signed,
        "spread": panel.spread,
        "lines": lines,
    }
    return harmless(described)


def harmless(value: Any) -> str:
    """JSON for a script element: no text in it can close the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
