"""Charts inside a page: each panel as SVG that stands by itself, and its values for the script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

from matplotlib.figure import Figure

from resexp.analysis.figures.canvas import write
from resexp.analysis.figures.chart import Chart, Line, Nothing, Panel, draw_alone
from resexp.analysis.figures.plot import KINDS, USUAL
from resexp.analysis.results import Run

MOST_POINTS = 400  # of one line's values: more than the pixels that a phone has across
ALL = 1000  # series: the page is as long as it must be


def charts(runs: Sequence[Run]) -> tuple[dict[str, Chart], list[str]]:
    """The charts of a page that these runs have anything for, and why not the others."""
    found, lacking = {}, []
    for kind in USUAL:
        try:
            found[kind] = KINDS[kind](runs, most=ALL)
        except Nothing as error:
            lacking.append(f"No {kind}: {error}")
    return found, lacking


def embed(chart: Chart, key: str) -> dict[str, Any]:
    """A chart for the template: the chart itself, its panels' SVG, and their values by id.

    ``key`` begins the ids in it and is unique on the page.
    """
    panels = []
    for index, panel in enumerate(chart.panels):
        name = f"{key}-p{index}"
        figure = draw_alone(chart, panel, name)
        drawn = {"svg": inline(figure, panel, name), "values": values(panel, figure)}
        panels.append(drawn | {"id": name, "title": panel.title, "note": panel.note})
    return {"id": key, "chart": chart, "panels": panels}


def inline(figure: Figure, panel: Panel, name: str) -> str:
    """A figure as an svg element of HTML: ids that are unique on the page, no namespaces, no style.

    Points are named by titles, for a pointer that rests on them; the whole by what it shows.
    """
    buffer = BytesIO()
    write(figure, buffer, "svg")
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # its rules would hold for the page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id" and not value.startswith(f"{name}."):
                value = f"{name}-{value}"
            value = value.replace("url(#", f"url(#{name}-") if key == "clip-path" else value
            value = f"#{name}-{value[1:]}" if key.endswith("}href") else value
            element.set(key.rpartition("}")[2], value)
    named = iter([text for points in panel.points for text in points.names])
    for group in root.iter("g"):
        if ".run." in group.get("id", ""):
            for use in group.iter("use"):
                ElementTree.SubElement(use, "title").text = next(named)
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.set("role", "img")
    root.set("aria-label", described(panel))
    return ElementTree.tostring(root, encoding="unicode")


def described(panel: Panel) -> str:
    """What a person who does not see a panel needs: where its lines end, or all their means."""
    said = []
    for line in panel.lines:
        means = [panel.number(value) + panel.unit for value in line.y]
        if line.bars:
            means = [f"{x:,.0f} layers {mean}" for x, mean in zip(line.x, means, strict=True)]
        if line.name:
            said.append(f"{line.name}: {', '.join(means if line.bars else means[-1:])}")
    axes = f"{panel.y.label} against {panel.x.label}".replace("\n", " ")
    return f"{panel.title}: {axes}. {'; '.join(said) or 'No line'}."


def values(panel: Panel, figure: Figure) -> dict[str, Any]:
    """What the script needs to tell values: where the axes are, shares of the figure, and lines."""
    box = figure.axes[0].get_position()
    return {
        "box": [round(x, 4) for x in (box.x0, box.x1, 1 - box.y1, 1 - box.y0)],
        "domain": [panel.x.low, panel.x.high],
        "x": "step" if panel.x.label.startswith("step") else "layers",
        "lines": [line_values(panel, line) for line in panel.lines if line.name],
    }


def line_values(panel: Panel, line: Line) -> dict[str, Any]:
    """A line's values in words, at its last point and no more than ``MOST_POINTS`` in all."""
    stride = math.ceil(len(line.x) / MOST_POINTS)
    kept = range(len(line.x) - 1, -1, -stride)[::-1]
    told = []
    for at in kept:
        text = panel.number(line.y[at]) + panel.unit
        if line.low and line.low[at] < line.high[at]:
            low, high = panel.number(line.low[at]), panel.number(line.high[at])
            text += f" ({panel.spread}{low} to {high})"
        told.append(text)
    return {
        "name": line.name,
        "tags": line.tags,
        "colour": line.colour,
        "dashed": line.stroke != "-",
        "x": [line.x[at] for at in kept],
        "y": [round(line.y[at], 4) for at in kept],
        "told": told,
    }
