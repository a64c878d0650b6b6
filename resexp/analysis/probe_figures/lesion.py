"""Test error after blocks are deleted or change places."""

from __future__ import annotations

from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resexp.analysis.figures.canvas import GREY, MM, PAGE, blank, head, legend
from resexp.analysis.probe_figures import PLAIN, RESIDUAL, Rows, mean, those

COLOURS = {"plain": (PLAIN, "o"), "residual": (RESIDUAL, "s")}


def draw(rows: Rows) -> Figure:
    """By block at the greatest depth; by number deleted; by order kept."""
    deep = max(row["depth"] for row in rows)
    figure = blank(PAGE, 72 * MM)
    one, several, orders = figure.subplots(1, 3, sharey=True)
    by_block(one, those(rows, depth=deep))
    one.set_ylabel("test error, percent")
    one.set_title(f"one block deleted, depth {deep}", loc="left", fontweight="bold")
    medians(several, those(rows, kind="delete k"), "k")
    several.set_xticks(sorted({row["k"] for row in those(rows, kind="delete k")}))
    several.set_xlabel("blocks deleted (random sets, median)")
    several.set_title("residual, several deleted", loc="left", fontweight="bold")
    scattered(orders, those(rows, kind="reorder"))
    orders.set_title("residual, reordered", loc="left", fontweight="bold")
    for axis in (one, several, orders):
        axis.set_ylim(0, 100)
    seeds = len({row["seed"] for row in rows})
    head(figure, f"Trained networks, blocks deleted or moved at test time, {seeds} seeds")
    handles = [Line2D([], [], color=colour, marker=mark, ms=3) for colour, mark in COLOURS.values()]
    handles += [Line2D([], [], color=GREY), Line2D([], [], color=GREY, linestyle=(0, (1, 1.4)))]
    legend(figure, handles, [*COLOURS, "damaged", "undamaged"])
    return figure


def by_block(axis: Axes, rows: Rows) -> None:
    """Means over seeds for each block, and the undamaged network's error as a dotted line."""
    for arch, (colour, mark) in COLOURS.items():
        some = those(rows, arch=arch, kind="delete")
        blocks = sorted({row["block"] for row in some})
        errors = [mean(row["error_percent"] for row in those(some, block=at)) for at in blocks]
        axis.plot(blocks, errors, color=colour, marker=mark, ms=2.5, lw=1.1)
        whole = [row["error_percent"] for row in those(rows, arch=arch, kind="whole")]
        axis.axhline(mean(whole), color=colour, linewidth=0.8, linestyle=(0, (1, 1.4)))
    axis.set_xlabel("block, from the input")


def medians(axis: Axes, rows: Rows, column: str) -> None:
    """The median over sets and seeds, and the middle half of them."""
    values = sorted({row[column] for row in rows})
    errors = [sorted(row["error_percent"] for row in those(rows, **{column: at})) for at in values]
    axis.plot(values, [median(some) for some in errors], color=RESIDUAL, marker="s", ms=2.5, lw=1.1)
    quarters = [(some[len(some) // 4], some[-1 - len(some) // 4]) for some in errors]
    low, high = [one for one, _ in quarters], [other for _, other in quarters]
    axis.fill_between(values, low, high, color=RESIDUAL, alpha=0.15, linewidth=0)


def scattered(axis: Axes, rows: Rows) -> None:
    """Every random order by its rank correlation with the trained one."""
    axis.scatter(
        [row["tau"] for row in rows],
        [row["error_percent"] for row in rows],
        color=RESIDUAL,
        marker="s",
        s=6,
    )
    axis.invert_xaxis()
    axis.set_xlabel("Kendall's tau with the trained order")
