"""How numbers and rows are written on the screen, by every command that compares runs."""

from __future__ import annotations

from collections.abc import Sequence

from resexp.analysis.statistics import Interval


def signed(value: float, digits: int) -> str:
    """+0.0 rather than -0.0: a sign is information."""
    return f"{round(value, digits) + 0.0:+,.{digits}f}"


def spread(interval: Interval, digits: int, before: str = "", after: str = "") -> str:
    """A mean with its two-sided interval in brackets, which one seed has not."""
    mean, low, high = (
        signed(value, digits) for value in (interval.mean, interval.low, interval.high)
    )
    return mean if interval.n < 2 else f"{mean} ({before}{low} to {high}{after})"


def columns(rows: Sequence[Sequence[str]], sides: str, gap: int = 2) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell; ``<`` or ``>`` for each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (" " * gap).join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as indented columns, all to the left."""
    return [f"  {line}" for line in columns(rows, "<" * len(rows[0]), gap=3)]


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def few(items: Sequence[str], most: int = 6) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
