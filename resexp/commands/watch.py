"""``resexp watch``: runs while they train, read from their directories alone. Never torch.

Whoever trains them, a worker here or a job of a cluster, leaves run.json and a growing metrics.csv.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.live import Live
from rich.text import Text

from resexp.analysis.results import Run, find_runs, require_runs
from resexp.console import duration, grid, percent
from resexp.runs.lock import LOCK, is_held
from resexp.runs.records import RECORD, UNFINISHED, replacing
from resexp.settings import UsageError
from resexp.train.row import Row

LOOK_EVERY = 2.0  # seconds between two looks
PATIENCE = 15.0  # without a run at work until it ends: the next of a sweep may be on its way
HEIGHTS = "_.:-=+*#", "▁▂▃▄▅▆▇█"  # of a sparkline, in ASCII and in Unicode
CURVE = 16  # the least columns for a sparkline and what stands before it
STATES = {"interrupted": "stopped", "running": "killed"}  # of a run that no process is at

PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>{again}
<style>:root {{ color-scheme: light dark }}</style>
<pre>{text}</pre>
"""


@dataclass
class Seen:
    """A run at one look."""

    run: Run
    state: str  # running, or how it ended

    @cached_property
    def rows(self) -> list[Row]:
        """Those of its metrics.csv; none if that is damaged, or begun anew just now."""
        with suppress(UsageError):
            return self.run.rows()
        return []

    def cells(self) -> dict[str, str]:
        """How far it is, its newest errors, and the time that it needs or how it ended."""
        steps = self.run.setting("steps")
        if not self.rows:
            return {"step": f"0/{steps:,}", "train": "-", "test": "-", "left": self.state}
        last = self.rows[-1]
        left = f"{duration(last.seconds / last.step * (steps - last.step))} left"
        return {
            "step": f"{last.step:,}/{steps:,}",
            "train": percent(last.train_error),
            "test": percent(last.test_error),
            "left": left if self.state == "running" else self.state,
        }

    def spark(self, width: int, heights: str) -> str:
        """Training error from 0 to chance, all steps in ``width`` cells; x where not finite."""
        marks, steps = [row.step for row in self.rows], self.run.setting("steps")
        line = ""
        for cell in range(width):
            at = bisect_left(marks, (cell + 0.5) * steps / width)
            if at == len(marks):
                break
            share = self.rows[at].train_error / self.run.chance("train_error")
            line += heights[min(int(share * 8), 7)] if share == share else "x"
        return line


def watch(root: Path, filters: Sequence[str], page: Path | None, once: bool) -> None:
    """Show the runs under ``root`` until none is at work, or once; in a page that reloads too.

    Without a terminal the last picture alone is printed. Raises UsageError where there is no run,
    and Unwritten if the page cannot be written.
    """
    out = Console(highlight=False, markup=False)
    worked = -PATIENCE  # when a run was last seen at work
    with Live(console=out, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            seen, starting = look(root, filters)
            if not seen and not starting:
                require_runs(root, filters)  # says what to type
            if starting or any(one.state == "running" for one in seen):
                worked = time.monotonic()
            over = time.monotonic() - worked > PATIENCE
            head = f"{tally(seen, starting)}   {root}"
            end = [f"nothing runs here. next: resexp table {quote(str(root))}"] if over else []
            if page is not None:
                lines = [head, *table(seen, 120, len(seen) + 1, "utf-8"), *end]
                reload = "" if over else f'<meta http-equiv="refresh" content="{LOOK_EVERY:.0f}">'
                text = {"text": escape("\n".join(lines)), "title": escape(str(root))}
                with replacing(page) as temporary:
                    page.parent.mkdir(parents=True, exist_ok=True)
                    temporary.write_text(PAGE.format(again=reload, **text), "utf-8")
            lines = [head, *table(seen, out.width, out.height - 3, out.encoding), *end]
            picture = "\n".join(lines) + "\n" * (not out.is_terminal)
            live.update(Text(picture, no_wrap=True, overflow="ellipsis"), refresh=True)
            if once or over:
                return
            time.sleep(LOOK_EVERY)


def look(root: Path, filters: Sequence[str]) -> tuple[list[Seen], int]:
    """The runs, those at work first and the newest of each first; how many have no record yet."""
    # Before the records: a run that ends meanwhile is ok then, and not one without its process.
    held = {path.parent for path in root.rglob(LOCK) if is_held(path.parent)}
    seen = []
    for run in find_runs(root, filters, []):
        works = run.status in UNFINISHED and run.path in held
        seen.append(Seen(run, "running" if works else STATES.get(run.status, run.status)))
    newest = sorted(seen, key=lambda one: str(one.run.record.get("started") or ""), reverse=True)
    starting = sum(not (place / RECORD).exists() for place in held)
    return sorted(newest, key=lambda one: one.state != "running"), starting


def tally(seen: Sequence[Seen], starting: int = 0) -> str:
    """2 running, 1 starting, 12 ok, 1 stopped."""
    states = Counter(running=0, starting=starting)
    states.update(one.state for one in seen)
    return ", ".join(f"{count} {state}" for state, count in states.items() if count)


def table(seen: Sequence[Seen], width: int, height: int, encoding: str) -> list[str]:
    """Headings and a line a run, at most ``height``; runs that do not fit are counted.

    In ``width`` columns names and the time left stand always, and curves where numbers leave room.
    """
    shown = seen if len(seen) < height else seen[: height - 2]
    several = len({one.run.name for one in seen}) > 1
    names = ["run", *(f"{one.run.name}/{one.run.run}" if several else one.run.run for one in shown)]
    cells = [one.cells() for one in shown]
    columns = [["left", *(cell["left"] for cell in cells)]]
    room = width - max(map(len, columns[0])) - 2
    names = [name if len(name) <= room else f"{name[: room - 9]}…{name[-8:]}" for name in names]
    room -= max(map(len, names))
    for heading in ("train", "step", "test"):
        column = [heading, *(cell[heading] for cell in cells)]
        taken = max(map(len, column)) + 2
        if room >= taken + CURVE:
            columns.insert(-1, column)
            room -= taken
    if room >= CURVE:
        heights = HEIGHTS[encoding.startswith("utf")]
        wide = min(room - 2, 40)
        curves = [one.spark(wide, heights).ljust(wide) for one in shown]
        columns.insert(0, ["training error", *curves])
    head, *body = zip(names, *columns, strict=True)
    lines = grid(head, body, room=width)
    rest = seen[len(shown) :]
    return [*lines, f"and {len(rest)} more: {tally(rest)}"] if rest else lines
