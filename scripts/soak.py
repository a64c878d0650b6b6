"""Kill workers with SIGKILL, a thousand times, and count what is lost: nothing.

Command    nice -n 15 python scripts/soak.py --kills 1000 --out results/soak
Hardware   two CPU cores, 1 GB of memory
Cost       2 to 5 s a kill: an hour or so; stopped at any time, the same command goes on
Expected   rows lost 0, rows doubled 0, rows changed 0, runs repeated 0

Two workers share sweeps of tiny networks on the digits through ``resexp.runs.run.perform``, so they
claim, train, save, record and finish as every launcher does. They are forked from a process that
has imported PyTorch, since a kill would else cost seconds of imports. At random moments, some of
them chosen while a row, a checkpoint or the end of a run is being written, one is killed, and
another takes its place. Where a worker was when it died is read from memory that it shared.

A finished run must have every row of the same run trained undisturbed, in every column but the
two of time, and must never be written again. Writes kills.csv (a row a kill), runs.csv (a row a
run) and tally.json (the sums) to ``--out``; the runs themselves go to ``--work``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from multiprocessing import sharedctypes
from pathlib import Path
from typing import Any

import torch

from resexp.runs import records
from resexp.runs import run as task
from resexp.runs.records import FINISHED, METRICS, RECORD, TIME_COLUMNS, Row
from resexp.settings import Arch, Job, Merge, Settings
from resexp.train import fit

RUNS = 24  # of one sweep: seeds, half plain and half residual
AT_A_TIME = 2
PHASES = ("opening", "training", "evaluation", "row", "checkpoint", "finishing", "between runs")
OPENING, TRAINING, EVALUATION, ROW, CHECKPOINT, FINISHING, BETWEEN = range(len(PHASES))
#: Where kills are aimed; those not aimed hit whatever is at work.
AIMED = (None, None, TRAINING, ROW, CHECKPOINT, CHECKPOINT, FINISHING, OPENING, EVALUATION)
PATIENCE = 5.0  # seconds until a kill that waits for its phase hits another


@dataclass
class Kill:
    """One SIGKILL: where the worker was."""

    number: int
    run: str
    phase: str
    step: int


@dataclass
class Finished:
    """One run when its sweep was over, beside the same run undisturbed."""

    run: str
    rows: int
    kills: int
    rows_lost: int
    rows_doubled: int
    rows_changed: int
    repeated: int


def sweep(number: int, results: Path) -> list[Job]:
    """The jobs of one sweep: in every sweep the same, so that one is enough to compare with."""
    jobs = []
    for index in range(RUNS):
        merge = Merge.plain if index % 2 == 0 else Merge.residual
        settings = Settings(
            arch=Arch(merge=merge),
            depth=8,
            width=4,
            seed=index // 2,
            steps=240,
            batch_size=16,
            eval_every=20,
            clean_every=3,
            threads=1,
            device="cpu",
            checkpoint_every=0.05,
            name=f"sweep-{number:03}",
            results=str(results),
        )
        jobs.append(Job(settings=settings, arch=merge.value, extras={}, overrides=[], config=""))
    return jobs


class Worker:
    """A forked process at the jobs of a sweep, and what it shares: job, phase and step."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.mark = sharedctypes.RawArray("i", [0, BETWEEN, 0])
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=work, args=(jobs, self.mark), daemon=True)
        self.process.start()

    @property
    def phase(self) -> int:
        return int(self.mark[1])

    def kill(self, number: int) -> Kill:
        """End it at once; what its memory said is then what it died at."""
        self.process.kill()
        self.process.join()
        return Kill(number, where(self.jobs[self.mark[0]]), PHASES[self.phase], self.mark[2])


def where(job: Job) -> str:
    return f"{job.settings.name}/{job.run}"


def work(jobs: list[Job], mark: Any) -> None:
    """Carry out the jobs that nobody else is at, until all are done, and say where it is."""

    def phase(inside: int, function: Callable[..., Any], after: int) -> Callable[..., Any]:
        def marked(*words: Any) -> Any:
            mark[1] = inside
            try:
                return function(*words)
            finally:
                mark[1] = after

        return marked

    task.opened = phase(OPENING, task.opened, TRAINING)
    task.restored = phase(OPENING, task.restored, TRAINING)
    fit.evaluation = phase(EVALUATION, fit.evaluation, TRAINING)
    records.append_row = phase(ROW, records.append_row, TRAINING)
    task.save = phase(CHECKPOINT, task.save, TRAINING)
    task.finish = phase(FINISHING, task.finish, BETWEEN)

    def watch(record: dict[str, Any], step: int, row: Row | None) -> None:
        mark[2] = step

    left = list(enumerate(jobs))
    random.shuffle(left)
    while left:
        index, job = left.pop(0)
        mark[0], mark[2] = index, 0
        if task.perform(job, watch).claim is records.Claim.busy:
            left.append((index, job))
            time.sleep(0.05)
        mark[1] = BETWEEN


def disturb(jobs: list[Job], out: Path, wanted: int, pace: float) -> None:
    """Carry out a sweep while killing its workers, ``wanted`` kills in all sweeps together."""
    seen = known(out)
    workers = [Worker(jobs) for _ in range(AT_A_TIME)]
    try:
        while workers:
            time.sleep(random.uniform(0.1, 2 * pace))
            for worker in workers:
                if not worker.process.is_alive() and worker.process.exitcode:
                    raise SystemExit(f"a worker failed with exit code {worker.process.exitcode}")
            workers = [worker for worker in workers if worker.process.is_alive()]
            done = len(read(out / "kills.csv", Kill))
            if done < wanted and (victim := chosen(workers)) is not None:
                append(out / "kills.csv", victim.kill(done + 1))
                workers.remove(victim)
                workers.append(Worker(jobs))
            note_finished(jobs, seen, out)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()


def chosen(workers: list[Worker]) -> Worker | None:
    """A worker that is where this kill is aimed, or after some patience any; None if all ended."""
    aim, limit = random.choice(AIMED), time.monotonic() + PATIENCE
    while aim is not None and time.monotonic() < limit:
        for worker in workers:
            if worker.phase == aim and worker.process.is_alive():
                if aim != ROW:
                    time.sleep(random.choice((0, 0, 0.0002, 0.001, 0.003)))
                return worker
        if aim != ROW:  # over in 0.1 ms: no time to sleep
            time.sleep(0.0001)
    alive = [worker for worker in workers if worker.process.is_alive()]
    return random.choice(alive) if alive else None


def fingerprint(job: Job) -> str:
    """Changes if any file of the run is written again."""
    files = [job.directory / name for name in (METRICS, RECORD)]
    text = "".join(f"{file.stat().st_mtime_ns} {file.read_text()}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def known(out: Path) -> dict[str, str]:
    """The fingerprints of the runs that were seen to be finished."""
    path = out / "finished.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def note_finished(jobs: list[Job], seen: dict[str, str], out: Path) -> None:
    """Take the fingerprints of runs that finished since the last look."""
    new = [job for job in jobs if where(job) not in seen and is_finished(job)]
    seen |= {where(job): fingerprint(job) for job in new}
    if new:
        records.write_atomically(out / "finished.json", json.dumps(seen))


def is_finished(job: Job) -> bool:
    """Whether a run's record says so and nobody is at work in its directory any more."""
    if not (job.directory / RECORD).exists():
        return False
    return records.read_record(job.directory)["status"] in FINISHED


def compare(jobs: list[Job], undisturbed: list[Job], out: Path) -> None:
    """Write a row of runs.csv for each run of a sweep that is over."""
    kills = Counter(kill.run for kill in read(out / "kills.csv", Kill))
    seen = known(out)
    written = {one.run for one in read(out / "runs.csv", Finished)}
    for job, whole in zip(jobs, undisturbed, strict=True):
        if where(job) in written:
            continue
        mine, theirs = rows(job), rows(whole)
        steps = [row[0] for row in mine]
        expected = {row[0]: row for row in theirs}
        finished = Finished(
            run=where(job),
            rows=len(mine),
            kills=kills[where(job)],
            rows_lost=len(expected.keys() - set(steps)),
            rows_doubled=len(steps) - len(set(steps)),
            rows_changed=sum(row != expected.get(row[0]) for row in mine),
            repeated=int(fingerprint(job) != seen[where(job)]),
        )
        append(out / "runs.csv", finished)


def rows(job: Job) -> list[list[str]]:
    """The cells of metrics.csv but for its header and its columns of time."""
    lines = (job.directory / METRICS).read_text().splitlines()
    return [line.split(",")[: -len(TIME_COLUMNS)] for line in lines[1:]]


def read(path: Path, kind: Any) -> list[Any]:
    """The rows of a CSV file as ``kind``; none if there is no file."""
    if not path.exists():
        return []
    types = {field.name: int if field.type == "int" else str for field in fields(kind)}
    with path.open() as file:
        return [
            kind(**{key: types[key](value) for key, value in row.items()})
            for row in csv.DictReader(file)
        ]


def append(path: Path, row: Kill | Finished) -> None:
    """Add a row to a CSV file."""
    begun = path.exists()
    with path.open("a") as file:
        if not begun:
            file.write(",".join(asdict(row)) + "\n")
        file.write(",".join(str(value) for value in asdict(row).values()) + "\n")


def tally(out: Path) -> dict[str, Any]:
    """The sums, written to tally.json."""
    kills, runs = read(out / "kills.csv", Kill), read(out / "runs.csv", Finished)
    found = {
        "kills": len(kills),
        "kills while": dict(Counter(kill.phase for kill in kills).most_common()),
        "runs finished": len(runs),
        "most kills of one run": max((run.kills for run in runs), default=0),
        "rows": sum(run.rows for run in runs),
        "rows lost": sum(run.rows_lost for run in runs),
        "rows doubled": sum(run.rows_doubled for run in runs),
        "rows changed": sum(run.rows_changed for run in runs),
        "runs repeated": sum(run.repeated for run in runs),
    }
    records.write_atomically(out / "tally.json", json.dumps(found, indent=1) + "\n")
    return found


def undisturbed(jobs: list[Job]) -> None:
    """Train the jobs in a process that nobody kills."""
    worker = Worker(jobs)
    worker.process.join()
    assert worker.process.exitcode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument(
        "--pace", type=float, default=0.5, help="seconds between kills, mean, aiming left out"
    )
    parser.add_argument("--out", type=Path, default=Path("results/soak"))
    parser.add_argument("--work", type=Path, default=Path("soak-work"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    task.load(sweep(0, asked.work)[0].settings.data, torch.device("cpu"))  # shared by all workers
    whole = sweep(0, asked.work / "whole")
    undisturbed(whole)
    number = 0
    while len(read(asked.out / "kills.csv", Kill)) < asked.kills or number == 0:
        jobs = sweep(number, asked.work / "disturbed")
        if {where(job) for job in jobs} - {
            run.run for run in read(asked.out / "runs.csv", Finished)
        }:
            disturb(jobs, asked.out, asked.kills, asked.pace)
            compare(jobs, whole, asked.out)
            print(f"sweep {number}: {json.dumps(tally(asked.out))}", flush=True)
        number += 1
    print(json.dumps(tally(asked.out), indent=1))
    (asked.out / "finished.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
