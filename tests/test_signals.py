"""Signals at every stage of a command: no traceback, 130 after Ctrl-C, 75 after any other."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_results import write_run
from small_jobs import COMMAND, ENVIRONMENT, cells, resexp
from test_cli import call

from resexp.config import compose
from resexp.launch.local import perform
from resexp.runs import stop
from resexp.runs.records import read_record
from resexp.settings import Job

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
TRAIN = "run depth=8 width=4 steps=200000 batch_size=8 eval_every=1000 device=cpu threads=1 name=s"

#: Runs resexp, to which signals come as it begins to load a module.
AT_IMPORT = """
import os, runpy, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        while name == module and signals:
            os.kill(os.getpid(), signals.pop())

module, signals = sys.argv[1], [int(one) for one in sys.argv[2].split()]
sys.argv[1:3] = []
sys.meta_path.insert(0, Sender())
runpy.run_module("resexp", run_name="__main__", alter_sys=True)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "signals", "code"),
    [
        ("typer", [INT, INT], 130),
        ("typer", [HUP], 75),
        ("resexp.config", [INT, INT], 130),
        ("torch.nn", [TERM], 75),
    ],
)
def test_a_signal_while_modules_are_loaded_ends_it_without_a_word(
    tmp_path: Path, module: str, signals: list[signal.Signals], code: int
) -> None:
    numbers = " ".join(str(int(one)) for one in signals)
    ended = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, module, numbers, *TRAIN.split()],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("one", "code"), [(INT, 130), (TERM, 75)])
def test_a_reading_command_ends_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: signal.Signals, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results", "plain", 20, 0)
    monkeypatch.setattr("resexp.commands.listing.runs", lambda *words: os.kill(os.getpid(), one))
    before = signal.getsignal(one)
    answer = call("list")
    assert (answer.code, answer.out, answer.err) == (code, "", "")
    assert signal.getsignal(one) is before


#: A signal in a finalizer, whose exceptions Python reports and drops.
IN_A_FINALIZER = """
import os, sys
from resexp.runs.stop import stop_signals, take_signals

class Sender:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))

take_signals()
with stop_signals(at_once=True):
    Sender()
print("went on")
"""


@pytest.mark.process
@pytest.mark.parametrize(("one", "code"), [(INT, 130), (TERM, 75)])
def test_a_signal_in_a_finalizer_is_not_lost(one: signal.Signals, code: int) -> None:
    words = [sys.executable, "-c", IN_A_FINALIZER, str(int(one))]
    ended = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


def test_a_second_ctrl_c_with_nothing_to_save_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[int] = []
    monkeypatch.setattr(stop, "leave", left.append)
    with stop.stop_signals(at_once=True) as heard:
        with pytest.raises(stop.Interrupted):
            os.kill(os.getpid(), INT)
        os.kill(os.getpid(), INT)
    assert (heard.signum, left) == (INT, [INT])


def test_what_the_parent_has_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """nohup, and workers, which the command tells to stop."""
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with stop.stop_signals() as heard:
            os.kill(os.getpid(), HUP)
            assert heard.signum is None
        assert signal.getsignal(HUP) is signal.SIG_IGN
    finally:
        signal.signal(HUP, before)


def statuses(results: Path) -> list[str]:
    return [str(read_record(path.parent)["status"]) for path in sorted(results.rglob("run.json"))]


def wait_for(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.process
def test_a_closed_terminal_saves_and_ends_with_75(tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "resexp", *TRAIN.split()], ENVIRONMENT)

    def trains() -> bool:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        return bool(ready) and b" left" in os.read(terminal, 2**16)

    wait_for(trains)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    assert statuses(tmp_path) == ["interrupted"]
    assert list(tmp_path.glob("results/s/*/checkpoint.pt"))


PARTS = ["depth=8", "steps=60", "batch_size=16", "eval_every=6", "clean_every=3"]
PARTS += ["threads=1", "device=cpu"]


@pytest.mark.process
def test_a_process_killed_and_stopped_and_its_checkpoint_torn(tmp_path: Path) -> None:
    words = [*PARTS, "checkpoint_every=0"]
    whole, parts = (compose([*words, f"results={tmp_path / name}"]) for name in ("whole", "parts"))
    perform(whole)
    for one, code, status in [
        (signal.SIGKILL, -signal.SIGKILL, "running"),
        (INT, 130, "interrupted"),
    ]:
        seen = rows_in(parts)
        with subprocess.Popen(
            [*COMMAND, "run", *parts.overrides], env=ENVIRONMENT, stderr=subprocess.DEVNULL
        ) as process:
            wait_for(lambda: rows_in(parts) > seen or process.poll() is not None)  # noqa: B023
            process.send_signal(one)
        assert process.returncode == code
        assert read_record(parts.directory)["status"] == status
    assert rows_in(parts) < rows_in(whole)
    os.truncate(parts.directory / "checkpoint.pt", 1000)
    assert resexp(tmp_path, "run", *parts.overrides).returncode == 0
    assert cells(parts) == cells(whole)
    left = {path.name for path in parts.directory.iterdir()}
    assert left - {".lock"} == {"config.yaml", "metrics.csv", "run.json", "checkpoint.pt.bad"}


def rows_in(job: Job) -> int:
    """Rows written so far."""
    path = job.directory / "metrics.csv"
    return path.read_text().count("\n") - 1 if path.exists() else 0


@pytest.mark.slow
def test_workers_save_when_the_command_itself_is_killed(tmp_path: Path) -> None:
    words = ["run", *PARTS, "-m", "steps=300", "seed=0,1", "launch=processes", "launch.jobs=2"]
    with subprocess.Popen([*COMMAND, *words], cwd=tmp_path, env=ENVIRONMENT) as process:
        wait_for(lambda: len(list(tmp_path.rglob("metrics.csv"))) == 2)
        process.kill()
    wait_for(lambda: "running" not in statuses(tmp_path))
    assert statuses(tmp_path) == ["interrupted"] * 2
    assert resexp(tmp_path, *words).returncode == 0
    assert statuses(tmp_path) == ["ok"] * 2
