"""docs/extending.md: the blocks of every section, written into a copy of the package, work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
HEADINGS = [
    *("A merge rule", "A family", "An optimizer"),
    *("A data set", "A probe", "A launcher", "A figure"),
]
SLOW = ("An optimizer", "A data set", "A launcher")  # those that rest on the least of the package
COPIED = ("conftest", "families", "fake_results", "test_archs", "test_figures")

Blocks = list[tuple[str, str]]


def sections() -> dict[str, Blocks]:
    """The fenced blocks (language, text) under each second heading of the page."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {
        heading: re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


def write(root: Path, block: str) -> None:
    """Write a block to the file that its first line names, or to the end of it."""
    first, _, text = block.partition("\n")
    named = re.fullmatch(r"(?:#|//|<!--) (\S+)(?: -->)?", first)
    assert named, f"the first line names no file: {first}"
    path = root / named[1]
    assert path.resolve().is_relative_to(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text().rstrip("\n") + "\n\n\n" if path.exists() else ""
    path.write_text(before + text)


def test_the_page_has_a_section_for_everything_that_can_be_added() -> None:
    assert list(sections()) == HEADINGS
    assert all(sections().values())


@pytest.mark.process
@pytest.mark.parametrize(
    "heading",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in HEADINGS],
)
def test_an_example_works_in_a_copy_of_the_package(heading: str, tmp_path: Path) -> None:
    """Some seconds: each command is a process of its own, in a copy that nothing else can reach."""
    blocks = sections()[heading]
    for folder in ("resexp", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pyc*"))
    (tmp_path / "tests").mkdir()
    for name in COPIED:
        shutil.copy(ROOT / "tests" / f"{name}.py", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    commands = []
    for language, text in blocks:
        if language == "sh":
            commands += text.splitlines()
        elif language != "console":  # shown, not run: a console's output
            write(tmp_path, text)
    assert commands, "no sh block that runs the example"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": path, "PYTEST_ADDOPTS": ""}
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-1000:]}"
