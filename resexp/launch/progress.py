"""What a person sees of a run or a sweep: live rows on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from resexp.console import clock, console, counted, percent
from resexp.runs.messages import Step
from resexp.settings import Job
from resexp.train.row import Row


def errors(last: dict[str, Any]) -> str:
    """The newest errors of a record, and the overlap with test masks if it has one."""
    named = {"train": "train_error", "clean": "clean_train_error", "test": "test_error"}
    named |= {"IoU": "test_iou"} if "test_iou" in last else {}
    return "  ".join(f"{name} {percent(last.get(key)):>6}" for name, key in named.items())


def headline(record: dict[str, Any]) -> str:
    """What a run is, in one line."""
    data, settings, place = record["data"], record["settings"], record["environment"]
    height, width, _ = data["shape"]
    pixels = ", errors of pixels" if data.get("task") == "segmentation" else ""
    where = (
        f"cpu, {counted(place['threads'], 'thread')}"
        if place["device"] == "cpu"
        else place["device_name"]
    )
    ranks = settings["launch"]["ranks"]
    where = f"{ranks} ranks, each on {where}" if ranks > 1 else where
    engine = place.get("engine", "eager")  # absent in the records of older versions
    where += "" if engine == "eager" else f", {engine}"
    return (
        f"{record['run']}  {data['name']} {data['train']:,} + {data['test']:,} images of "
        f"{height}x{width}{pixels}  {record['parameters']:,} parameters  "
        f"{settings['steps']:,} steps of {settings['batch_size']}  {where}, {place['precision']}"
    )


class Display:
    """The progress of some jobs, one row for each run at work.

    ``console`` decides how: a terminal gets rows that move, anything else one line per row of
    metrics.csv (one run) or per finished run (a sweep).
    """

    def __init__(self, jobs: list[Job]) -> None:
        self.several = len(jobs) > 1
        self.width = max((len(job.run) for job in jobs), default=0)
        self.weights = {key(job.settings.name, job.run): weight(job) for job in jobs}
        self.shares = dict.fromkeys(self.weights, 0.0)  # of each run, done
        self.over = 0  # runs
        self.skipped = 0.0  # weight of what was finished before
        self.started = time.monotonic()
        self.begun: dict[str, tuple[float, int]] = {}  # when a run at work began here, at what step
        self.rows: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.fields[state]}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[pace]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        title = jobs[0].settings.name if jobs else ""
        self.whole = self.progress.add_task(
            title, total=1.0, visible=self.several, state="", pace=""
        )
        self.progress.start()

    def step(self, message: Step) -> None:
        """Show a run after a step (or before the first, to announce it)."""
        record, step, row = message.record, message.step, message.row
        run, steps = key(record["name"], record["run"]), record["settings"]["steps"]
        if run not in self.rows:
            self.begin(run, record, step)
        self.shares[run] = step / steps
        if console.is_terminal:
            since, first = self.begun[run]
            spent = time.monotonic() - since
            left = clock(spent / (step - first) * (steps - step)) if step > first else ""
            pace = record["images_per_second"]
            self.progress.update(
                self.rows[run],
                completed=step,
                state=f"step {step:,}/{steps:,}  {errors(record['last'])}",
                pace=(f"{pace:,.0f} images/s  " if pace else "") + (left and f"{left} left"),
            )
            self.show_whole()
        elif row is not None and not self.several:
            console.print(line(row, steps))

    def begin(self, run: str, record: dict[str, Any], step: int) -> None:
        """A run starts or goes on."""
        if not self.several:
            console.print(headline(record))
        if step:
            console.print(f"{record['run']}: resuming from step {step:,}")
        steps = record["settings"]["steps"]
        self.rows[run] = self.progress.add_task(record["run"], total=steps, state="", pace="")
        self.begun[run] = time.monotonic(), step

    def show_whole(self) -> None:
        """The row of the sweep: runs over, and the time that the runs' weights suggest is left."""
        total = sum(self.weights.values())
        done = sum(self.weights[run] * share for run, share in self.shares.items())
        spent, worked = time.monotonic() - self.started, done - self.skipped
        left = f", about {clock(spent / worked * (total - done))} left" if worked > 0 else ""
        self.progress.update(
            self.whole,
            completed=done / total,
            state=f"{self.over} of {len(self.weights)} runs",
            pace=f"{clock(spent)}{left}",
        )

    def end(self, job: Job, message: str, trained: bool = True) -> None:
        """A run is over; ``message`` says how."""
        run = key(job.settings.name, job.run)
        if run in self.rows:
            self.progress.remove_task(self.rows.pop(run))
        self.shares[run] = 1.0
        self.over += 1
        self.skipped += 0.0 if trained else self.weights.get(run, 0.0)
        if self.several:
            count = len(self.weights)
            console.print(f"{self.over:>3}/{count}  {job.run:<{self.width}}  {message}")
        self.show_whole()

    def close(self) -> None:
        """Give the terminal back."""
        self.progress.stop()


def key(name: str, run: str) -> str:
    """What tells the runs of one command apart."""
    return f"{name}/{run}"


def weight(job: Job) -> float:
    """A run's share of the work, known before its network is built: layers times images."""
    return job.settings.depth * job.settings.steps * job.settings.batch_size


def line(row: Row, steps: int) -> str:
    """A row of metrics.csv for a person."""
    measured = {key: value for key, value in asdict(row).items() if value is not None}
    return (
        f"step {row.step:,}/{steps:,}  {errors(measured)}  "
        f"{row.images_per_second:,.0f} images/s  {clock(row.seconds)}"
    )
