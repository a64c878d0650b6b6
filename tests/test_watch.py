"""``resexp watch``: what it says of runs in every state, in any window, and when it ends."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_results import write_run
from test_cli import call

from resexp.commands import watch
from resexp.runs.lock import hold

AT_WORK = {"status": "running", "rows": 4}  # of 10, 22 steps and 1.1 seconds apart


def pictured(root: Path, *words: str) -> list[str]:
    answer = call("watch", str(root), "--once", *words)
    assert (answer.code, answer.err) == (0, "")
    return answer.out.splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 20)])
def test_it_fits_and_counts_the_rest(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    long = {"lr": 0.01759375662862636, "data.name": "a-set-with-a-very-long-name-of-its-own"}
    for seed in range(29):
        record = {"started": f"2026-01-01T00:00:{seed:02}"}
        write_run(tmp_path, "plain", 20, seed, record=record, extras=long if seed else {})
    lines = pictured(tmp_path)
    assert len(lines) <= height and max(map(len, lines)) <= width
    assert lines[0].startswith("29 ok   ")
    runs = [line for line in lines if line.startswith("plain-20-s")]
    assert runs[0].startswith("plain-20-s28") and all(run.endswith(" ok") for run in runs)
    assert f"and {29 - len(runs)} more: {29 - len(runs)} ok" in lines


def test_every_state_is_told_and_those_at_work_come_first(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 8, 0, record={"started": "2026-01-01T00:00:09"})
    write_run(tmp_path, "plain", 8, 1, status="running")  # and no process
    write_run(tmp_path, "plain", 8, 2, status="interrupted", rows=0)
    write_run(tmp_path, "plain", 8, 3, status="diverged")
    at_work = write_run(tmp_path, "plain", 56, 0, train_error=70, **AT_WORK)
    torn = write_run(tmp_path, "plain", 56, 1, train_error=70, **AT_WORK)
    damaged = write_run(tmp_path, "plain", 56, 2, **AT_WORK)
    with (torn / "metrics.csv").open("a") as file:
        file.write("110,4.88,0.0")
    (damaged / "metrics.csv").write_text("no,table\n1,2\n")
    loading = tmp_path / "digits/plain-56-s3"
    loading.mkdir()
    with ExitStack() as stack:
        for directory in (at_work, torn, damaged, loading):
            stack.enter_context(hold(directory))
        head, _, *lines = pictured(tmp_path)
    states = {line.split()[0]: line for line in lines}
    assert head.startswith("3 running, 1 starting, 1 ok, 1 killed, 1 stopped, 1 diverged   ")
    assert [name[:8] for name in states][:3] == ["plain-56"] * 3
    for run in ("plain-56-s0", "plain-56-s1"):
        assert re.search(r" 71\.8 % +88/220 .* 6\.6 s left$", states[run])
    assert re.search(r"^plain-56-s2 +- +0/220 +- +running$", states["plain-56-s2"])
    assert re.search(r"^plain-8-s2 +- +0/220 +- +stopped$", states["plain-8-s2"])
    assert states["plain-8-s1"].endswith(" killed")
    assert re.search(r"[▁-█]+x+ ", states["plain-8-s3"])


def test_a_sparkline_spreads_the_steps_and_falls_from_chance(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 8, 0, status="running", rows=2)
    [seen], _ = watch.look(tmp_path, [])
    first, second = (row.train_error / 90 for row in seen.rows)
    levels = [min(int(8 * share), 7) for share in (first, first, second, second)]
    assert seen.spark(20, "01234567") == "".join(map(str, levels))  # 2 of 10 rows, 4 of 20 cells


def test_it_ends_when_nothing_runs_and_its_page_stops_reloading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_run(tmp_path, "plain", 56, 0, **AT_WORK)
    page, looks, clock = tmp_path / "pages/sweep.html", list[str](), iter(range(0, 1000, 10))
    with ExitStack() as stack:
        stack.enter_context(hold(directory))

        def slept(seconds: float) -> None:
            looks.append(page.read_text())
            if len(looks) == 2:
                write_run(tmp_path, "plain", 56, 0)
                stack.close()

        monkeypatch.setattr(watch.time, "sleep", slept)
        monkeypatch.setattr(watch.time, "monotonic", lambda: next(clock))
        answer = call("watch", str(tmp_path), "--html", str(page))
    assert answer.code == 0
    assert "nothing runs here. next: resexp table" in answer.out
    assert all('http-equiv="refresh"' in look and "88/220" in look for look in looks[:2])
    assert "220/220" in page.read_text()
    assert "refresh" not in page.read_text()


def test_ctrl_c_ends_it_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupted)
    with hold(write_run(tmp_path, "plain", 56, 0, **AT_WORK)):
        answer = call("watch", str(tmp_path))
    assert (answer.code, answer.err) == (0, "")
    assert "1 running" in answer.out
    assert call("watch", str(tmp_path / "digits"), "arch=residual").code == 2
