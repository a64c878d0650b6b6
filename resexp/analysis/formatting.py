"""How numbers and rows are written on the screen, by every command that compares runs."""

from __future__ import annotations

from collections.abc import Sequence

from resexp.analysis.statistics import Interval
from resexp.console import grid, width


def signed(value: float, digits: int) -> str:
    """+0.0 rather than -0.0: a sign is information."""
    return f"{round(value, digits) + 0.0:+,.{digits}f}"


def spread(interval: Interval, digits: int, before: str = "", after: str = "") -> str:
    """A mean with its two-sided interval in brackets, which one seed has not."""
    mean, low, high = (
        signed(value, digits) for value in (interval.mean, interval.low, interval.high)
    )
    return mean if interval.n < 2 else f"{mean} ({before}{low} to {high}{after})"


def aligned(
    head: Sequence[str], body: Sequence[Sequence[str]], room: int | None = None
) -> list[str]:
    """A table as indented lines, all columns to the left."""
    inside = (width() if room is None else room) - 2
    return [f"  {line}" for line in grid(head, body, room=inside)]


def few(items: Sequence[str], most: int = 6) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
