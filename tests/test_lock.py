"""One writer to a directory, with the file system's locks and without them."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from resexp.runs import lock, records
from resexp.runs.lock import CLAIM, ClaimLost, check_held, claims, hold, is_held, stale, take

pytestmark = pytest.mark.process


def refuse(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOLCK) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No locks, and a heart that beats every 20 ms."""
    refuse(monkeypatch)
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "STALE", 0.5)
    monkeypatch.setattr(lock, "WATCH", 0.2)


def foreign(directory: Path, age: float = 0.0, number: int = 1) -> Path:
    """A claim of a process on another machine, last touched ``age`` seconds ago."""
    claim = directory / f"{CLAIM}{number}"
    claim.write_text("another machine\n1\nits token\n")
    touch(claim, age)
    return claim


def touch(claim: Path, age: float) -> None:
    os.utime(claim, (time.time() - age,) * 2)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_has_one_writer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse(monkeypatch, code)
    for _ in range(2):
        with hold(tmp_path) as first, hold(tmp_path) as second:
            assert (first, second) == (True, False)
            assert is_held(tmp_path)
            assert list(claims(tmp_path)) == [".claim.1"]
        assert not is_held(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_other_errors_of_flock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"), hold(tmp_path):
        raise AssertionError("held")


def test_a_held_claim_is_touched_all_the_while(tmp_path: Path, quick: None) -> None:
    with hold(tmp_path):
        claim = tmp_path / ".claim.1"
        touch(claim, 3600)
        limit = time.monotonic() + 10
        while time.time() - claim.stat().st_mtime > 60:
            assert time.monotonic() < limit
            time.sleep(0.01)


def test_a_claim_without_a_heartbeat_is_taken_over(tmp_path: Path, quick: None) -> None:
    foreign(tmp_path, age=0.0)
    with hold(tmp_path) as young:
        assert not young
    touch(tmp_path / ".claim.1", 2.0)
    with hold(tmp_path) as ours:
        assert ours
        assert list(claims(tmp_path)) == [".claim.2"]
    assert not claims(tmp_path)


def test_a_process_of_this_machine_that_ended_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch)
    child = subprocess.Popen(["true"])
    child.wait()
    (tmp_path / ".claim.1").write_text(f"{lock.machine()}\n{child.pid}\ntoken\n")
    started = time.monotonic()
    with hold(tmp_path) as ours:
        assert ours
    assert time.monotonic() - started < lock.WATCH / 2


@pytest.mark.parametrize("set_by", [-7200.0, 7200.0])
def test_a_clock_that_was_set_ends_no_live_claim(
    tmp_path: Path, quick: None, set_by: float
) -> None:
    """The file system's clock jumps: the claim looks hours old, or hours ahead, and then beats."""
    claim = foreign(tmp_path, age=set_by)
    beats = threading.Timer(0.05, os.utime, args=(claim,))
    beats.start()
    assert not stale(claim)
    beats.join()
    touch(claim, set_by)
    assert stale(claim)  # watched, and nothing moved


def test_machines_whose_clocks_differ_agree(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Age is measured by the file system alone: this machine's clock is never asked."""
    claim = foreign(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", None)
        assert not stale(claim)


def test_of_many_takers_one_wins(tmp_path: Path, quick: None) -> None:
    foreign(tmp_path, age=100.0)
    start = threading.Barrier(8)

    def attempt(_: int) -> Path | None:
        start.wait()
        return take(tmp_path)

    with ThreadPoolExecutor(8) as threads:
        winners = [claim for claim in threads.map(attempt, range(8)) if claim is not None]
    assert len(winners) <= 1
    assert list(claims(tmp_path)) == [claim.name for claim in winners] or not winners


def test_a_taker_that_was_overtaken_takes_its_claim_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the judgement and the claim another process took over, finished, and a third came."""
    foreign(tmp_path, age=100.0)

    def slow(claim: Path) -> bool:
        claim.write_text("a third machine\n7\nanother token\n")
        return True

    monkeypatch.setattr(lock, "stale", slow)
    assert take(tmp_path) is None
    assert list(claims(tmp_path)) == [".claim.1"]


def test_a_process_that_slept_too_long_writes_nothing_more(tmp_path: Path, quick: None) -> None:
    with hold(tmp_path):
        check_held(tmp_path)
        foreign(tmp_path, number=2)  # what a taker does
        with pytest.raises(ClaimLost, match="taken over"):
            check_held(tmp_path)
        with pytest.raises(ClaimLost):
            records.flush(tmp_path)
    check_held(tmp_path)


def test_a_lock_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError), hold(tmp_path):
        raise AssertionError("held")
    assert (tmp_path / "precious").read_text() == "text"


SCRIPT = """
import errno, fcntl, os, random, sys, time
from pathlib import Path
from resexp.runs import lock
def flock(file, how): raise OSError(errno.ENOSYS, "no locks here")
fcntl.flock = flock
lock.BEAT, lock.STALE, lock.WATCH = 0.05, 0.5, 0.2
lock.machine = lambda: f"machine of {os.getpid()}"  # as if each ran elsewhere
folder = Path(sys.argv[1])
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    with lock.hold(folder) as ours:
        if ours:
            inside = folder / "inside"
            file = os.open(inside, os.O_CREAT | os.O_EXCL | os.O_WRONLY)  # fails if two are in
            os.write(file, str(os.getpid()).encode())
            os.close(file)
            with (folder / "entries").open("a") as log:
                log.write(f"{os.getpid()}\\n")
            time.sleep(random.uniform(0, 0.02))
            inside.unlink()
    time.sleep(random.uniform(0, 0.005))
"""


@contextmanager
def contenders(folder: Path, count: int, seconds: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    words = [sys.executable, "-c", SCRIPT, str(folder), str(seconds)]
    processes = [subprocess.Popen(words, cwd=Path(__file__).parents[1]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def entries(folder: Path, count: int, seconds: float) -> int:
    """How often processes were alone in a folder; they fail where two are in it."""
    with contenders(folder, count, seconds) as processes:
        assert [process.wait(60) for process in processes] == [0] * count
    return len((folder / "entries").read_text().split())


def test_processes_without_locks_are_never_two_at_once(tmp_path: Path) -> None:
    assert entries(tmp_path, 4, 1.5) > 4


def test_a_claim_of_a_killed_process_is_taken_over_by_one(tmp_path: Path) -> None:
    with contenders(tmp_path, 1, 60.0) as (victim,):
        limit = time.monotonic() + 60
        while not (tmp_path / "inside").exists() or not claims(tmp_path):
            assert time.monotonic() < limit
        victim.kill()
        victim.wait()
    (tmp_path / "inside").unlink(missing_ok=True)
    (tmp_path / "entries").unlink(missing_ok=True)
    assert entries(tmp_path, 3, 2.5) > 0


def test_one_that_looks_at_a_lock_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resexp watch does so every two seconds, and may be stopped in the middle of it."""
    file = os.open(tmp_path / lock.LOCK, os.O_RDWR | os.O_CREAT)
    assert lock.lock(file)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.close(file))
    with hold(tmp_path) as ours:
        assert ours
