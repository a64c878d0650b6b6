"""Kill workers with SIGKILL, a thousand times, and count what is lost: nothing.

Command    nice -n 15 python scripts/soak.py --kills 1000 --out results/soak
Hardware   two CPU cores, 1 GB of memory
Cost       2 to 5 s a kill: an hour or so; stopped at any time, the same command goes on
Expected   rows lost 0, rows doubled 0, rows changed 0, runs repeated 0

Two workers share sweeps of tiny networks on the digits through ``launch.local.perform``, so they
claim, train, save, record and finish as every launcher does. They are forked from a process that
has imported PyTorch, since a kill would else cost seconds of imports. At random moments, some of
them chosen while a row, a checkpoint or the end of a run is being written, one is killed, and
another takes its place. Where a worker was when it died is read from memory that it shared.

A finished run must have every row of the same run trained undisturbed, in every column but the
two of time, and must never be written again. Writes kills.csv (a row a kill) and sweeps.csv (a row
a run) to ``--out`` and prints their sums; the runs themselves go to ``--work``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import sharedctypes
from pathlib import Path
from typing import Any

import torch

from resexp.launch import local
from resexp.runs import records, run
from resexp.runs.records import FINISHED, METRICS, RECORD
from resexp.settings import Arch, Job, Merge, Settings
from resexp.train import fit
from resexp.train.row import TIME_COLUMNS

RUNS = 24  # of one sweep: seeds, half plain and half residual
AT_A_TIME = 2
PHASES = ("opening", "training", "evaluation", "row", "checkpoint", "finishing", "between runs")
OPENING, TRAINING, EVALUATION, ROW, CHECKPOINT, FINISHING, BETWEEN = range(len(PHASES))
#: Where kills are aimed; those not aimed hit whatever is at work.
AIMED = (None, None, TRAINING, ROW, CHECKPOINT, CHECKPOINT, FINISHING, OPENING, EVALUATION)
PATIENCE = 5.0  # seconds until a kill that waits for its phase hits another


def sweep(number: int, results: Path) -> list[Job]:
    """The jobs of one sweep: in every sweep the same, so that one is enough to compare with."""
    settings = Settings(depth=8, width=4, steps=240, batch_size=16, eval_every=20, clean_every=3)
    settings = replace(settings, threads=1, device="cpu", checkpoint_every=0.05)
    settings = replace(settings, name=f"sweep-{number:03}", results=str(results))
    jobs = []
    for seed, merge in itertools.product(range(RUNS // 2), (Merge.plain, Merge.residual)):
        one = replace(settings, arch=Arch(merge=merge), seed=seed)
        jobs.append(Job(settings=one, arch=merge.value, extras={}, overrides=[]))
    return jobs


def where(job: Job) -> str:
    return f"{job.settings.name}/{job.run}"


def work(jobs: list[Job], mark: Any) -> None:
    """Carry out the jobs that nobody else is at, until all are done.

    Says in ``mark``, which is shared, at which job it is, in which phase, at which step.
    """

    def phase(module: Any, name: str, inside: int, after: int = TRAINING) -> None:
        def marked(real: Callable[..., Any], *words: Any) -> Any:
            mark[1] = inside
            try:
                return real(*words)
            finally:
                mark[1] = after

        setattr(module, name, partial(marked, getattr(module, name)))

    phase(run, "opened", OPENING)
    phase(run, "restored", OPENING)
    phase(fit, "evaluation", EVALUATION)
    phase(records, "append_row", ROW)
    phase(run, "save", CHECKPOINT)
    phase(run, "finish", FINISHING, BETWEEN)

    def watch(record: dict[str, Any], step: int, row: object) -> None:
        mark[2] = step

    left = list(enumerate(jobs))
    random.shuffle(left)
    while left:
        index, job = left.pop(0)
        mark[0], mark[2] = index, 0
        if local.perform(job, watch).claim is records.Claim.busy:
            left.append((index, job))
            time.sleep(0.05)
        mark[1] = BETWEEN


Worker = tuple[Any, Any]  # a process, and what it shares


def start(jobs: list[Job]) -> Worker:
    """A forked process at the jobs of a sweep."""
    mark = sharedctypes.RawArray("i", [0, BETWEEN, 0])
    process = multiprocessing.get_context("fork").Process(target=work, args=(jobs, mark))
    process.daemon = True
    process.start()
    return process, mark


def disturb(jobs: list[Job], out: Path, wanted: int, pace: float) -> dict[str, str]:
    """Carry out a sweep while killing its workers, ``wanted`` kills in all sweeps together.

    Returns the fingerprint of every run as it was when it was first seen to be finished.
    """
    seen: dict[str, str] = {}
    workers = [start(jobs) for _ in range(AT_A_TIME)]
    try:
        while workers:
            time.sleep(random.uniform(0.1, 2 * pace))
            if failed := [process for process, _ in workers if process.exitcode]:
                raise SystemExit(f"a worker failed with exit code {failed[0].exitcode}")
            workers = [worker for worker in workers if worker[0].is_alive()]
            done = len(read(out / "kills.csv"))
            if done < wanted and (victim := chosen(workers)) is not None:
                process, mark = victim
                process.kill()
                process.join()  # what its memory says is what it died at
                place = {"phase": PHASES[mark[1]], "step": mark[2]}
                append(out / "kills.csv", number=done + 1, run=where(jobs[mark[0]]), **place)
                workers[workers.index(victim)] = start(jobs)
            for job in jobs:
                if where(job) in seen or not (job.directory / RECORD).exists():
                    continue
                if records.read_record(job.directory)["status"] in FINISHED:
                    seen[where(job)] = fingerprint(job)
    finally:
        for process, _ in workers:
            process.kill()
            process.join()
    return seen


def chosen(workers: list[Worker]) -> Worker | None:
    """A worker that is where this kill is aimed, or after some patience any; None if all ended."""
    aim, limit = random.choice(AIMED), time.monotonic() + PATIENCE
    while aim is not None and time.monotonic() < limit:
        for worker in workers:
            if worker[1][1] == aim and worker[0].is_alive():
                if aim != ROW:
                    time.sleep(random.choice((0, 0, 0.0002, 0.001, 0.003)))
                return worker
        if aim != ROW:  # over in 0.1 ms: no time to sleep
            time.sleep(0.0001)
    alive = [worker for worker in workers if worker[0].is_alive()]
    return random.choice(alive) if alive else None


def fingerprint(job: Job) -> str:
    """Changes if any file of the run is written again."""
    files = [job.directory / name for name in (METRICS, RECORD)]
    text = "".join(f"{file.stat().st_mtime_ns} {file.read_text()}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def compare(jobs: list[Job], undisturbed: list[Job], seen: dict[str, str], out: Path) -> None:
    """Write a row of sweeps.csv for each run of a sweep that is over."""
    kills = Counter(kill["run"] for kill in read(out / "kills.csv"))
    for job, whole in zip(jobs, undisturbed, strict=True):
        mine = rows(job)
        steps, expected = [row[0] for row in mine], {row[0]: row for row in rows(whole)}
        append(
            out / "sweeps.csv",
            run=where(job),
            rows=len(mine),
            kills=kills[where(job)],
            rows_lost=len(expected.keys() - set(steps)),
            rows_doubled=len(steps) - len(set(steps)),
            rows_changed=sum(row != expected.get(row[0]) for row in mine),
            repeated=int(fingerprint(job) != seen[where(job)]),
        )


def rows(job: Job) -> list[list[str]]:
    """The cells of metrics.csv but for its header and its columns of time."""
    lines = (job.directory / METRICS).read_text().splitlines()
    return [line.split(",")[: -len(TIME_COLUMNS)] for line in lines[1:]]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no file."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def append(path: Path, **row: object) -> None:
    """Add a row to a CSV file."""
    with path.open("a") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def tally(out: Path) -> dict[str, Any]:
    """The sums over all kills and runs."""
    kills, runs = read(out / "kills.csv"), read(out / "sweeps.csv")
    sums = {"rows": "rows", "rows lost": "rows_lost", "rows doubled": "rows_doubled"}
    sums |= {"rows changed": "rows_changed", "runs repeated": "repeated"}
    return {
        "kills": len(kills),
        "kills while": dict(Counter(kill["phase"] for kill in kills).most_common()),
        "runs finished": len(runs),
        "most kills of one run": max((int(one["kills"]) for one in runs), default=0),
        **{name: sum(int(one[column]) for one in runs) for name, column in sums.items()},
    }


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
    whole = sweep(0, asked.work / "whole")
    run.load(whole[0].settings.data, torch.device("cpu"))  # shared by all workers
    process, _ = start(whole)
    process.join()
    assert process.exitcode == 0
    number = 0
    while len(read(asked.out / "kills.csv")) < asked.kills or number == 0:
        jobs = sweep(number, asked.work / "disturbed")
        if where(jobs[-1]) not in {one["run"] for one in read(asked.out / "sweeps.csv")}:
            seen = disturb(jobs, asked.out, asked.kills, asked.pace)
            compare(jobs, whole, seen, asked.out)
            print(f"sweep {number}: {json.dumps(tally(asked.out))}", flush=True)
        number += 1
    print(json.dumps(tally(asked.out), indent=1))


if __name__ == "__main__":
    main()
