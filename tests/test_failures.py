"""However a job ends, the others go on; the end is one table, with one command that retries."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import EXTRAS, call, record, run

from resexp.launch import processes as pool
from resexp.launch.processes import Worker
from resexp.settings import LAUNCHERS
from resexp.train.fit import fit

pytestmark = pytest.mark.process


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def raising(seed: int, error: BaseException) -> Any:
    """``fit``, but that the runs of one seed raise after their first step."""

    def disturbed(state: Any, settings: Any, *more: Any) -> Iterator[Any]:
        for row in fit(state, settings, *more):
            if settings.seed == seed:
                raise error
            yield row

    return disturbed


def folder(seed: int) -> Path:
    return Path("results/digits") / f"plain-8-s{seed},{EXTRAS}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("CUDA out of memory\nTried to allocate"), "CUDA out of memory"),
        (MemoryError(), "MemoryError"),
        (SystemExit(3), "it called for the end of the process (exit code 3)"),
        (SystemExit("enough"), "it called for the end of the process (exit code enough)"),
    ],
)
def test_however_a_job_fails_the_next_is_done(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, line: str
) -> None:
    monkeypatch.setattr("resexp.runs.run.fit", raising(0, error))
    answer = run("-m", "seed=0,1")
    assert answer.code == 1
    assert answer.out.startswith("1 done, 1 failed\n")
    assert f"  plain-8-s0,{EXTRAS}   {line}   ({folder(0) / 'error.txt'})" in answer.out
    assert "Traceback" not in answer.out + answer.err
    assert (record(folder(0))["status"], record(folder(0))["error"]) == ("failed", line)
    written = (folder(0) / "error.txt").read_text()
    assert type(error).__name__ in written and str(error) in written and "Traceback" in written
    assert record(folder(1))["status"] in ("ok", "collapsed")


@pytest.mark.parametrize("part", ["models.build", "load"])
def test_a_failure_before_the_first_step_leaves_its_traceback_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("cannot be built")

    monkeypatch.setattr(f"resexp.runs.run.{part}", broken)
    answer = run()  # one run alone
    assert answer.code == 1 and "retry: resexp run" in answer.out
    assert str(folder(0) / "error.txt") in answer.out
    assert "cannot be built" in (folder(0) / "error.txt").read_text()


def test_a_failed_run_does_not_keep_its_network(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory: what the failed run held must be free for the next."""
    import gc
    import weakref

    alive: list[Any] = []

    def disturbed(state: Any, *_: Any) -> Iterator[Any]:
        gc.collect()
        assert not [one for one in alive if one() is not None]
        alive.append(weakref.ref(state.network))
        yield from ()
        raise MemoryError

    monkeypatch.setattr("resexp.runs.run.fit", disturbed)
    answer = run("-m", "seed=0,1,2")
    assert answer.out.count("MemoryError") == 3


def test_one_command_retries_all_that_failed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("resexp.runs.run.fit", raising(0, RuntimeError("broken")))
        answer = run("-m", "seed=0,1", "arch=plain,residual")
    retries = re.findall(r"retry: (resexp run .*?)   \(the same command: what is", answer.out)
    assert len(retries) == 1
    again = call(*shlex.split(retries[0])[1:])
    assert again.code == 0
    assert again.out.startswith("2 done, 2 skipped (finished before)")
    assert record(folder(0))["error"] is None and not (folder(0) / "error.txt").exists()
    rows = (folder(0) / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "2", "4"]


def test_with_overwrite_only_what_failed_is_retried(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resexp.runs.run.fit", raising(0, RuntimeError("broken")))
    answer = run("-m", "seed=0,1", "arch=plain,residual", "overwrite=true")
    retries = re.findall(r"retry: resexp run .*", answer.out)
    assert len(retries) == 2 and all("seed=0" in one for one in retries)


@pytest.mark.parametrize("launch", LAUNCHERS)
def test_fail_fast_starts_no_more(here: Path, monkeypatch: pytest.MonkeyPatch, launch: str) -> None:
    monkeypatch.setattr("resexp.runs.run.fit", raising(0, RuntimeError("broken")))
    monkeypatch.setattr(pool, "start", dying(pool.start))  # a worker knows nothing of a patch
    answer = run("-m", "seed=0,1,2", "fail_fast=true", f"launch={launch}", "launch.jobs=1")
    assert answer.code == 1
    assert answer.out.startswith("1 failed, 2 not done (fail_fast=true)\n")
    assert "retry: resexp run" in answer.out
    assert not folder(1).exists() and not folder(2).exists()


def dying(start: Callable[..., Worker]) -> Callable[..., Worker]:
    """Workers that die before they are sent anything."""

    def dead(*words: Any) -> Worker:
        worker = start(*words)
        assert worker.process.pid is not None
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
        assert pool.wait([worker.pipe], 10)
        return worker

    return dead


def test_a_disk_that_takes_not_even_the_traceback_hides_no_error(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resexp.runs.run.fit", raising(0, RuntimeError("the error itself")))
    monkeypatch.setattr("resexp.runs.run.record_failure", full)
    answer = run("-m", "seed=0,1")
    assert answer.code == 1 and "the error itself" in answer.out
    assert answer.out.startswith("1 done, 1 failed")
