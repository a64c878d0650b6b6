"""What a terminal of 80 or 60 columns shows: no name cut, no word broken, no line too long."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from pathlib import Path

import pytest

from resexp.cli import main
from resexp.console import COMMAND, console, duration, folded, grid
from resexp.launch.progress import AtWork, row

pytestmark = pytest.mark.process

SIZES = [(80, 24), (60, 20)]
TINY = "steps=4 batch_size=8 threads=1 device=cpu"
DEMO = f"demo depth=8,14 seed=0,1 launch=local {TINY}"
ALONE = "batch_size=8,steps=4"  # what TINY adds to a run's name
ARMS = ("plain", "residual")

#: Commands, and what must stand whole on the screen that they leave.
SHOWN = {
    DEMO: [*ARMS, "resexp verdict results/digits", "preliminary", "points"],
    f"run depth=8 arch=plain seed=5 {TINY}": [f"plain-8-s5,{ALONE}", "next: resexp run depth=8"],
    f"run -m depth=8 arch=plain,residual seed=0 {TINY}": ["2 skipped (finished before)"],
    "list": [f"{arch}-{depth}-s1,{ALONE}" for arch in ARMS for depth in (8, 14)],
    "table": [*ARMS, "clean training", "failures", "All runs: batch_size=8"],
    "verdict": ["plain minus residual", "in points:", "smoke test", "Rule: clean training"],
    f"run -m depth=8,14 arch=plain seed=0,9 {TINY} --dry-run": [
        *(f"plain-{depth}-s{seed},{ALONE}" for depth in (8, 14) for seed in (0, 9)),
        "2 of 4 runs to train, about",
    ],
    "list archs": ["preact_bottleneck", "source"],
    "list settings lr": ["lr", "learning rate at the start"],
}  # fmt: skip


def screen(folder: Path, size: tuple[int, int], command: str, **variables: str) -> str:
    """What ``resexp COMMAND`` writes to a terminal of ``size`` columns and lines."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            os.environ.pop(name, None)
        os.environ.update({"TERM": "xterm-256color"} | variables)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
        os.chdir(folder)
        sys.argv = ["resexp", *command.split()]
        try:
            main()
        finally:
            sys.stdout.flush()
            os._exit(0)
    written = b""
    with contextlib.suppress(OSError):  # Linux says EIO at the end
        while block := os.read(terminal, 65_536):
            written += block
    os.close(terminal)
    os.waitpid(child, 0)
    return written.decode()


def bare(shown: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)


def test_a_terminal_has_colours_unless_it_wants_none(tmp_path: Path) -> None:
    coloured = re.compile(r"\x1b\[(\d+;)*([349]\d|10\d)(;\d+)*m")
    assert coloured.search(screen(tmp_path, SIZES[0], "--help"))
    assert not coloured.search(screen(tmp_path, SIZES[0], "--help", NO_COLOR="1"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the runs of the smallest demo, and what that wrote to the larger terminal."""
    folder = tmp_path_factory.mktemp("terminal")
    shown = bare(screen(folder, SIZES[0], DEMO))
    assert "8 done" in shown
    return folder, shown


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("command", SHOWN)
def test_a_screen_fits(command: str, size: tuple[int, int], trained: tuple[Path, str]) -> None:
    folder, first = trained
    shown = first if (command, size) == (DEMO, SIZES[0]) else bare(screen(folder, size, command))
    lines = re.split(r"[\r\n]+", shown)
    assert [line for line in lines if len(line) > size[0]] == []
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    flat = " ".join(shown.replace(" \\\r\n", " ").split())
    for words in SHOWN[command]:
        assert words in flat
    assert not re.search(r"(?<!-\d\d )\b\d+:\d\d\b", shown)  # a clock has no unit


#: A run in the middle of its training, with a name of middling length.
RECORD = {
    "run": "residual-110-s12",
    "images_per_second": 1240.0,
    "settings": {"steps": 64_000},
    "last": {"train_error": 88.1, "clean_train_error": 87.6, "test_error": 88.3},
}


@pytest.mark.parametrize("width", [100, 80, 60])
def test_progress_keeps_name_and_time_left(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", width)
    monkeypatch.setattr(console, "legacy_windows", False)
    since = time.monotonic() - 100
    shown = row(AtWork(RECORD, 16_001, 1, since), 16)
    assert len(shown) <= width
    assert shown.startswith("residual-110-s12  step 16,001/64,000  5 min left")
    assert ("error: train 88.1 %" in shown) == (width > 60)
    assert ("clean 87.6 %" in shown) == (width > 80)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((0.31, "0.3 s"), (17, "17 s"), (59.7, "1 min"), (240, "4 min"), (271, "4.5 min")),
        *((3599, "1 h"), (10_440, "2.9 h"), (172_799, "2 days"), (276_480, "3.2 days")),
    ],
)
def test_a_duration_has_a_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_command_that_is_broken_can_be_pasted() -> None:
    line = "3 seeds are few. next: resexp run -m launch=processes depth=20,56 seed=0,1,2,3,4"
    parts = folded(line, 40).splitlines()
    assert COMMAND.search(line) and max(map(len, parts)) <= 40
    pasted = " ".join(part.removesuffix(" \\").strip() for part in parts)
    assert pasted == line and all(part.endswith(" \\") for part in parts[1:-1])


def test_a_table_drops_columns_by_priority_and_then_becomes_blocks() -> None:
    head, body = ["run", "loss", "error"], [["plain-8", "0.25", "12.5 %"]]
    assert grid(head, body, room=22) == ["run      loss  error", "plain-8  0.25  12.5 %"]
    narrow = grid(head, body, spare=[1], room=18)
    assert narrow == ["run      error", "plain-8  12.5 %", "No room here for loss."]
    assert grid(head, body, room=18) == ["plain-8", "  loss   0.25", "  error  12.5 %"]
