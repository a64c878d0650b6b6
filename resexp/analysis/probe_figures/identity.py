"""Losses of deep plain networks built and searched, and errors at learning y = x."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resexp.analysis.figures.canvas import MM, PAGE, blank, head
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, mean, those

PARTS = {
    "shallow": "shallow,\ntrained",
    "constructed": "deep,\nbuilt from it",
    "warm": "built,\ntrained on",
    "scratch": "deep, from\nusual start",
}

STACKS = {"plain": "plain", "residual": "residual", "rezero": "branches\nstart at 0"}


def draw(rows: Rows) -> Figure:
    """A dot a seed and a line at the mean."""
    figure = blank(PAGE, 70 * MM)
    losses, errors = figure.subplots(1, 2, width_ratios=[3, 2])
    for at, part in enumerate(PARTS):
        dots(losses, at, [row["loss"] for row in those(rows, part=part)], PLAIN)
    losses.set_xticks(range(len(PARTS)), list(PARTS.values()))
    losses.set_ylabel("training loss, nats")
    scale(losses, [row["loss"] for row in rows if row["loss"] is not None])
    for at, arch in enumerate(STACKS):
        some = those(rows, part="regression", arch=arch)
        colour = PLAIN if arch == "plain" else RESIDUAL
        dots(errors, at, [row["relative_error"] for row in some], colour)
    scale(errors, [row["relative_error"] for row in those(rows, part="regression")])
    errors.set_xticks(range(len(STACKS)), list(STACKS.values()))
    errors.set_xlim(-0.6, len(STACKS) - 0.4)
    errors.set_ylabel("error at y = x, |f(x) - x| / |x|")
    depths = sorted({row["depth"] for row in rows if row["part"] != "regression"})
    layers = those(rows, part="regression")[0]["depth"]
    seeds = len({row["seed"] for row in rows})
    head(
        figure,
        f"Plain networks of depth {depths[0]} and {depths[-1]} (left); stacks of {layers} "
        f"convolutions that learn the identity (right); {seeds} seeds",
    )
    return figure


def dots(axis: Axes, at: int, values: list[float], colour: str) -> None:
    """The seeds at one place of the axis."""
    axis.plot([at] * len(values), values, "o", color=colour, ms=4, alpha=0.8)
    axis.plot([at - 0.25, at + 0.25], [mean(values)] * 2, color=colour, linewidth=1.4)


def scale(axis: Axes, values: list[float]) -> None:
    """Logarithmic where a decade is spanned, else from 0."""
    if max(values) >= 10 * min(values) > 0:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, 1.1 * max(values))
