"""What a person sees of a run or a sweep: live rows on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.live import Live
from rich.text import Text

from resexp.console import console, counted, duration, fitting, percent, tell
from resexp.runs.messages import Step
from resexp.settings import Job
from resexp.train.row import Row

SETTLED = 2.0  # seconds of training before a sweep's time left is told


def errors(last: dict[str, Any]) -> list[str]:
    """The newest errors of a record, and the overlap with test masks if it has one."""
    named = {"error: train": "train_error", "clean": "clean_train_error", "test": "test_error"}
    named |= {"IoU": "test_iou"}
    values = {name: last.get(key) for name, key in named.items()}
    return [f"{name} {percent(value):>6}" for name, value in values.items() if value is not None]


def headline(record: dict[str, Any]) -> str:
    """What a run is, in one line."""
    data, settings, place = record["data"], record["settings"], record["environment"]
    height, width, _ = data["shape"]
    pixels = ", errors of pixels" if data.get("task") == "segmentation" else ""
    cpu, ranks = f"cpu, {counted(place['threads'], 'thread')}", settings["launch"]["ranks"]
    where = cpu if place["device"] == "cpu" else place["device_name"]
    where = f"{ranks} ranks, each on {where}" if ranks > 1 else where
    engine = place.get("engine", "eager")  # absent in the records of older versions
    where += "" if engine == "eager" else f", {engine}"
    return (
        f"{record['run']}  {data['name']} {data['train']:,} + {data['test']:,} images of "
        f"{height}x{width}{pixels}  {record['parameters']:,} parameters  "
        f"{settings['steps']:,} steps of {settings['batch_size']} images  "
        f"{where}, {place['precision']}"
    )


@dataclass(slots=True)
class AtWork:
    """A run that is being trained."""

    record: dict[str, Any]
    step: int  # done
    first: int  # the step from which on it is timed, after one here to warm up
    since: float = math.nan  # when that was done, by the clock of ``time.monotonic``


class Display:
    """The progress of some jobs, one row for each run at work.

    ``console`` decides how: a terminal gets rows that move, anything else one line per row of
    metrics.csv (one run) or per finished run (a sweep).
    """

    def __init__(self, jobs: list[Job]) -> None:
        self.several = len(jobs) > 1
        self.name = jobs[0].settings.name if jobs else ""
        self.width = max((len(job.run) for job in jobs), default=0)
        self.weights = {key(job.settings.name, job.run): weight(job) for job in jobs}
        self.shares = dict.fromkeys(self.weights, 0.0)  # of each run, done
        self.over = 0  # runs
        self.skipped = 0.0  # weight of what was done before, here or by the first step here
        self.started = time.monotonic()
        self.first: float | None = None  # when the first step here was done
        self.rows: dict[str, AtWork] = {}
        self.live = Live(get_renderable=self.shown, console=console, transient=True)
        if console.is_terminal:
            self.live.start()

    def step(self, message: Step) -> None:
        """Show a run after a step (or before the first, to announce it)."""
        record, step, row = message.record, message.step, message.row
        run, steps = key(record["name"], record["run"]), record["settings"]["steps"]
        if run not in self.rows:
            self.rows[run] = AtWork(record, step, step + 1)
            if not self.several:
                tell(headline(record))
            if step:
                tell(f"{record['run']}: resuming from step {step:,}")
                self.skipped += self.weights[run] * step / steps
        work = self.rows[run]
        work.record, work.step, self.shares[run] = record, step, step / steps
        if math.isnan(work.since) and step >= work.first:
            work.since = time.monotonic()
            if self.first is None:
                self.first = work.since
                self.skipped += self.weights[run] * (step + 1 - work.first) / steps
            work.first = step
        if row is not None and not self.several and not console.is_terminal:
            tell(line(row, steps))

    def shown(self) -> Text:
        """The rows as they stand: of the sweep, and of every run at work."""
        lines = [self.whole()] if self.several else []
        width = max((len(work.record["run"]) for work in self.rows.values()), default=0)
        lines += [row(work, width) for work in list(self.rows.values())]
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")

    def whole(self) -> str:
        """The row of the sweep: runs over, and the time that the runs' weights suggest is left."""
        now, total = time.monotonic(), sum(self.weights.values())
        done = sum(self.weights[run] * share for run, share in self.shares.items())
        spent, worked = now - (self.first or now), done - self.skipped
        left = ""
        if spent > SETTLED and worked > 0:
            left = f"about {duration(spent / worked * (total - done))} left"
        counts = f"{self.over} of {counted(len(self.weights), 'run')}"
        parts = [self.name, counts, bar(done / total), f"after {duration(now - self.started)}"]
        return fitted([*parts, left], (2, 3))

    def end(self, job: Job, message: str, trained: bool = True) -> None:
        """A run is over; ``message`` says how."""
        run = key(job.settings.name, job.run)
        self.rows.pop(run, None)
        self.shares[run] = 1.0
        self.over += 1
        self.skipped += 0.0 if trained else self.weights.get(run, 0.0)
        if self.several:
            begin = f"{self.over:>3}/{len(self.weights)}  "
            line = f"{begin}{job.run:<{self.width}}  {message}"
            if console.is_terminal and len(line) > console.width:
                line = f"{begin}{job.run}\n{' ' * len(begin)}{message}"
            tell(line)

    def close(self) -> None:
        """Give the terminal back."""
        self.live.stop()


def row(work: AtWork, width: int) -> str:
    """A run at work, with its name and the time left whatever the terminal's width."""
    record, steps = work.record, work.record["settings"]["steps"]
    spent, done, pace = time.monotonic() - work.since, work.step - work.first, ""
    left = f"{duration(spent / done * (steps - work.step))} left" if done > 0 else ""
    if record["images_per_second"]:
        pace = f"{record['images_per_second']:,.0f} images/s"
    said = errors(record["last"])
    at = f"step {work.step:>{len(f'{steps:,}')},}/{steps:,}"
    parts = [f"{record['run']:<{width}}", at, left, bar(work.step / steps), pace, *said]
    return fitted(parts, (3, 4, *range(len(parts) - 1, 4, -1), 1))


def fitted(parts: Sequence[str], spare: Sequence[int]) -> str:
    """Parts of a line, those to spare left out in their order while it is too long."""
    return "  ".join(parts[i] for i in fitting([*map(len, parts)], 2, console.width, spare))


def bar(share: float) -> str:
    """####--------"""
    return f"{'#' * round(12 * share):-<12}"


def key(name: str, run: str) -> str:
    """What tells the runs of one command apart."""
    return f"{name}/{run}"


def weight(job: Job) -> float:
    """A run's share of the work, known before its network is built: layers times images.

    What comes with each step, whatever the depth, takes as long as some eight layers: on a CPU the
    digits took 3, 6.5 and 8 seconds at 8, 20 and 32 layers.
    """
    return (job.settings.depth + 8) * job.settings.steps * job.settings.batch_size


def line(row: Row, steps: int) -> str:
    """A row of metrics.csv for a person."""
    measured = {key: value for key, value in asdict(row).items() if value is not None}
    said = "  ".join(errors(measured))
    pace = f"{row.images_per_second:,.0f} images/s"
    return f"step {row.step:,}/{steps:,}  {said}  {pace}  {duration(row.seconds)}"
