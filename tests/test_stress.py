"""Twenty-four runs in processes whose workers are killed at random, until all are done."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resexp.runs.records import FINISHED, METRICS, RECORD, read_record

ROOT = Path(__file__).parents[1]
WORDS = [
    "depth=8",
    "width=4",
    "steps=120",
    "batch_size=8",
    "eval_every=12",
    "arch=plain,residual",
    "seed=range(12)",
    "checkpoint_every=0.02",
    "launch=processes",
    "launch.jobs=2",
]
KILLS = 30
MOMENTS = 200.0  # seconds that no single command takes


def start(results: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "resexp", "run", "-m", *WORDS, f"results={results}"],
        cwd=results.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes at the jobs of a command."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = []
    for child in children.read_text().split():
        try:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
        except OSError:
            continue
    return found


def runs(results: Path) -> list[Path]:
    return sorted(path.parent for path in results.glob(f"*/*/{RECORD}"))


def rows(directory: Path) -> list[list[str]]:
    """metrics.csv but for its columns of time."""
    return [line.split(",")[:-2] for line in (directory / METRICS).read_text().splitlines()]


def fingerprints(results: Path) -> dict[Path, str]:
    """Of every finished run; changes if a file of it is written again."""
    found = {}
    for directory in runs(results):
        if read_record(directory)["status"] in FINISHED:
            files = [directory / METRICS, directory / RECORD]
            text = "".join(f"{file.stat().st_mtime_ns}{file.read_text()}" for file in files)
            found[directory] = hashlib.sha256(text.encode()).hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_workers_killed_at_random_lose_no_row_and_repeat_no_run(tmp_path: Path) -> None:
    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("this system does not list the children of a process")
    chance = random.Random(20151210)
    disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"
    kills, commands, done = 0, 0, {}
    while True:
        commands += 1
        assert commands <= KILLS + 1, "a command that nobody disturbed did not finish"
        process = start(disturbed)
        limit = time.monotonic() + MOMENTS
        while process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(chance.uniform(0.1, 0.8))
            victims = workers(process)
            if kills < KILLS and len(runs(disturbed)) and victims:
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills += 1
            for directory, mark in fingerprints(disturbed).items():
                assert done.setdefault(directory, mark) == mark, f"{directory} was trained again"
        assert process.returncode in (0, 1)
        if process.returncode == 0:
            break
    assert kills == KILLS
    assert start(whole).wait(MOMENTS) == 0
    assert len(runs(whole)) == len(runs(disturbed)) == 24
    for directory in runs(whole):
        killed = disturbed / directory.relative_to(whole)
        assert rows(killed) == rows(directory)
        assert len(rows(killed)) == 1 + 10
        assert read_record(killed)["status"] == read_record(directory)["status"]
        assert {path.name for path in killed.iterdir()} == {
            path.name for path in directory.iterdir()
        }
    assert done.keys() | fingerprints(disturbed).keys() == set(runs(disturbed))
