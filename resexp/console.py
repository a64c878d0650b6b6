"""Where words for people go, and how they say times and errors."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

#: What happens is told on stderr; results go to stdout.
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def clock(seconds: float) -> str:
    """0:17, 12:05 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
