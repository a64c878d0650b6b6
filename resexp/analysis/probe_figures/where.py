"""Training loss with skips in one stage, in all and in none."""

from __future__ import annotations

from matplotlib.figure import Figure

from resexp.analysis.figures.canvas import COLUMN, MM, blank, head
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, mean, those

ARMS = ("none", "stage 1", "stage 2", "stage 3", "all")


def draw(rows: Rows) -> Figure:
    """A dot a seed and a line at the mean."""
    figure = blank(COLUMN, 66 * MM)
    axis = figure.subplots()
    for at, arm in enumerate(ARMS):
        colour = PLAIN if arm == "none" else RESIDUAL
        losses = [row["loss"] for row in those(rows, arm=arm)]
        axis.plot([at] * len(losses), losses, "o", color=colour, ms=4, alpha=0.8)
        axis.plot([at - 0.25, at + 0.25], [mean(losses)] * 2, color=colour, linewidth=1.4)
    axis.set_xticks(range(len(ARMS)), ARMS)
    axis.set_xlabel("stages with skips")
    axis.set_ylabel(f"training loss after {rows[0]['step']} steps, nats")
    axis.set_yscale("log")
    seeds = len({row["seed"] for row in rows})
    head(figure, f"Where skips are, depth {rows[0]['depth']}, {seeds} seeds")
    return figure
