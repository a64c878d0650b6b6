"""Where words for people go, how wide they may be, and how they say times and errors."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

#: What happens is told on stderr; results go to stdout.
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

WIDE = 10_000  # columns of what is no terminal: nothing is broken, dropped or stacked there
PROSE = 30  # columns from which on a cell is prose, and may be broken
KEPT = "\N{NO-BREAK SPACE}"  # a space where no line is broken
COMMAND = re.compile(r"\b(next|retry|again|done):? +resexp ")  # what is to be typed, and pasted
DEEP = 2_000  # layers from which on building a network takes seconds
UNITS = (("s", 60), ("min", 60), ("h", 48), ("days", 0))  # and how many make the next


def width(stream: TextIO | None = None) -> int:
    """Columns of a line on ``stream``, or on stdout."""
    there = (stream or sys.stdout).isatty()
    return shutil.get_terminal_size().columns if there else WIDE


def tell(text: str) -> None:
    """What happens, on stderr, above the rows that move."""
    console.print(folded(text, console.width if console.is_terminal else WIDE))


def tell_if_deep(layers: int) -> None:
    """Say that a network is about to take long to build, where it does: 20,000 layers some 40 s."""
    if layers > DEEP:
        tell(f"{layers:,} layers are built one after another: {duration(layers / 500)} or more")


def folded(text: str, room: int) -> str:
    """Lines longer than ``room`` broken between words; a command so that it can be pasted whole."""
    return "\n".join(part for line in text.split("\n") for part in _fold(line, room))


def _fold(line: str, room: int) -> list[str]:
    if len(line) <= room:
        return [line]
    # Below the words that it goes on from: they stand after the last gap of the line's first half.
    gaps = [gap.end() for gap in re.finditer(r"\S {2,}(?=\S)", line[: room // 2])]
    indent = gaps[-1] if gaps else len(line) - len(line.lstrip()) + 2
    command = COMMAND.search(line)
    if "  " in line.strip():  # what stands between gaps stays together
        line = re.sub(r"\S+( \S+)+", _kept_together, line)
    wrap = textwrap.TextWrapper(break_long_words=False, break_on_hyphens=False)
    wrap.width = room - 2 if command else room
    for hang in (indent, 2):  # a name that is too long there may fit further left
        wrap.subsequent_indent = " " * hang
        parts = wrap.wrap(line)
        if max(map(len, parts)) <= room:
            break
    if command:
        begun = next((i for i, part in enumerate(parts) if "resexp " in part), 0)
        parts[begun:-1] = [f"{part} \\" for part in parts[begun:-1]]
    return [part.replace(KEPT, " ") for part in parts]


def _kept_together(words: re.Match[str]) -> str:
    return words[0] if len(words[0]) >= PROSE else words[0].replace(" ", KEPT)


def fitting(widths: Sequence[int], gap: int, room: int, spare: Sequence[int]) -> list[int]:
    """Which parts of a line to keep so that it is no longer than ``room``.

    The ``spare`` ones go in their order, while it is; those without width are not there anyway.
    """
    kept = [part for part, width in enumerate(widths) if width]
    for part in spare:
        if sum(widths[one] + gap for one in kept) - gap > room and part in kept:
            kept.remove(part)
    return kept


def grid(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    sides: str = "",
    spare: Sequence[int] = (),
    room: int | None = None,
    gap: int = 2,
) -> list[str]:
    """A table as lines: a heading, broken at its bars, over columns to the left (<) or right (>).

    Where ``room`` columns (default: those of stdout) are too few, the ``spare`` columns go in their
    order, which a line below says; if the others are too wide still, a last column of prose is
    broken between words, or else each row becomes a block.
    """
    room = width() if room is None else room
    titles = [*zip_longest(*(word.split("|") for word in head), fillvalue="")]
    rows = [*titles, *body] if any(head) else [*body]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    kept = fitting(widths, gap, room, spare)
    left = room - sum(widths[one] + gap for one in kept[:-1])
    if widths[kept[-1]] > left and (left < PROSE or widths[kept[-1]] < PROSE):
        return [line for row in body for line in _block(head, row)]
    if widths[kept[-1]] > left:
        rows = [line for row in rows for line in _broken(row, kept[-1], left)]
    lines = [
        (" " * gap).join(f"{row[i]:{(sides or '<' * len(head))[i]}{widths[i]}}" for i in kept)
        for row in rows
    ]
    dropped = [head[i].replace("|", " ").strip() for i in spare if widths[i] and i not in kept]
    note = [f"No room here for {', '.join(dropped)}."] if dropped else []
    return [line.rstrip() for line in lines] + note


def _broken(row: Sequence[str], last: int, room: int) -> list[list[str]]:
    """A row whose last cell is broken between words, as rows."""
    parts = textwrap.wrap(row[last], room, break_long_words=False, break_on_hyphens=False) or [""]
    return [[*row[:last], parts[0]], *([*[""] * last, part] for part in parts[1:])]


def _block(head: Sequence[str], row: Sequence[str]) -> list[str]:
    """A row of a table that is too wide: its first cell, and below it a line for each other."""
    titles = [word.replace("|", " ").strip() for word in head]
    longest = max(map(len, titles[1:]))
    cells = zip(titles[1:], row[1:], strict=True)
    return [row[0], *(f"  {title:<{longest}}  {cell}" for title, cell in cells if cell)]


def duration(seconds: float) -> str:
    """0.4 s, 17 s, 4 min, 2.9 h or 3.2 days."""
    value = seconds
    for unit, most in UNITS:
        if value < most - 0.5 or not most:
            break
        value /= most if unit != "h" else 24
    return f"{value:,.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}".replace(".0 ", " ")


def counted(number: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(value: float | None) -> str:
    """An error as ``12.2 %``, or a dash where there is none."""
    return "-" if value is None else f"{value:.1f} %"


def bar_of(what: str) -> Progress:
    """A bar for one piece of work after another; nothing where there is no terminal."""
    columns = (TextColumn(what), BarColumn(bar_width=16), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
