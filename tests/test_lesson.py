"""docs/lesson.md, command by command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resexp.analysis.results import find_runs
from resexp.cli import app

LESSON = Path(__file__).parents[1] / "docs" / "lesson.md"
COMMANDS = re.findall(r"^\$ resexp (.*)$", LESSON.read_text(), re.MULTILINE)


def carry_out(*more: str) -> list[str]:
    """What each command prints, trained with ``more``; each must end well."""
    said = []
    for command in COMMANDS:
        trains = command.startswith(("run", "probe"))
        result = CliRunner().invoke(app, [*shlex.split(command), *(more if trains else ())])
        assert result.exit_code == 0, (command, result.output, result.exception)
        said.append(result.output)
    return said


@pytest.mark.process
def test_every_command_of_the_lesson_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = carry_out("width=1", "steps=3", "batch_size=4", "threads=1")
    assert len(COMMANDS) == 4 and "curves.png" in said[2] and "gradients" in said[3]
    assert {run.depth for run in find_runs(tmp_path / "results" / "lesson")} == {20, 56}


@pytest.mark.slow
def test_the_lesson_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = carry_out()
    errors = {
        f"{run.arch}-{run.depth}": run.endpoint("clean_train_error")
        for run in find_runs(tmp_path / "results" / "lesson")
    }
    assert errors["plain-56"] > 30 > 1 > max(errors["plain-20"], errors["residual-56"])
    assert "explode" in said[3]
