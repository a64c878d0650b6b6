"""Two thousand runs are read, and two hundred composed and skipped, in seconds.

Times are of the processor, of one process with its imports; SLACK is for a slower machine, or one
with other work, which costs this process its caches.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_results import write_grid
from small_jobs import ENVIRONMENT

SECONDS, MEGABYTES, SKIP_SECONDS = 5.0, 1000.0, 0.05  # the bounds
SLACK = 2.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


Cost = tuple[float, float, int, str]  # seconds of the processor, most MB, exit code, answer

#: Runs a command and prints what it took. By itself, since a process starts with the peak memory
#: of the one that made it, and pytest's is large.
MEASURE = """
import json, os, subprocess, sys
with open("out", "w") as out, open("err", "w") as err:
    words = [sys.executable, "-m", "resexp", *sys.argv[1:]]
    process = subprocess.Popen(words, stdout=out, stderr=err)
_, status, used = os.wait4(process.pid, 0)
code = process.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6, code]))
"""


def cost(folder: Path, *words: str) -> Cost:
    """``resexp WORDS`` in ``folder``."""
    command, alone = [sys.executable, "-c", MEASURE, *words], {"OMP_NUM_THREADS": "1"}
    measured = subprocess.check_output(command, cwd=folder, env=ENVIRONMENT | alone)
    seconds, megabytes, code = json.loads(measured)
    return seconds, megabytes, code, (folder / "out").read_text()


@pytest.fixture(scope="module")
def two_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    rates = [{"lr": rate / 100} for rate in range(3, 13)]
    counts = [write_grid(folder / "results", (8, 20, 32, 56), 25, extras=one) for one in rates]
    assert sum(counts) == 2000
    return folder


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("list", "residual-56-s24,lr=0.12"),
        ("table", "0 of 25"),
        ("verdict results lr=0.05", "25 seeds"),
        ("plot", "families.png"),
        ("doctor --results results", "nothing is wrong"),
    ],
)
def test_two_thousand_runs_are_read_in_seconds(two_thousand: Path, command: str, said: str) -> None:
    seconds, megabytes, code, out = cost(two_thousand, *command.split())
    print(f"{command}: {seconds:.2f} s, {megabytes:.0f} MB")
    assert code in (0, 3, 4), (two_thousand / "err").read_text()
    assert said in out
    assert seconds < SECONDS * SLACK
    assert megabytes < MEGABYTES


def test_two_hundred_jobs_are_composed_checked_and_skipped_in_seconds(tmp_path: Path) -> None:
    assert write_grid(tmp_path / "results", (8, 20, 32, 56), 25) == 200
    words = ["run", "-m", "arch=plain,residual", "depth=8,20,32,56"]
    few, _, _, out = cost(tmp_path, *words, "seed=0")
    assert out.startswith("8 skipped (finished before)"), (tmp_path / "err").read_text()
    many, megabytes, _, out = cost(tmp_path, *words, "seed=range(25)")
    assert out.startswith("200 skipped (finished before)"), (tmp_path / "err").read_text()
    each = (many - few) / 192
    print(f"200 jobs: {many:.2f} s, {megabytes:.0f} MB, a job {each * 1000:.1f} ms")
    assert many < SECONDS * SLACK
    assert each < SKIP_SECONDS * SLACK
    assert megabytes < MEGABYTES
