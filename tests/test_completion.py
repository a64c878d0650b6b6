"""TAB: settings and their values, also in bash, which breaks words at the equals sign."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resexp import config
from resexp.settings import LAUNCHERS, choices

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """As zsh and fish have it: the word is handed over whole."""
    for name in ("COMP_WORDS", "COMP_CWORD", "_RESEXP_COMPLETE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("arch=pl", ["arch=plain"]),
        ("arch=sk", ["arch=skipinit"]),
        ("arch=str", ["arch=streams"]),
        ("arch=plain,resi", ["arch=plain,residual"]),
        ("launch=l", ["launch=local", "launch=lockstep"]),
        ("arch=x", []),
        ("arch.shortcut=", ["arch.shortcut=A", "arch.shortcut=B", "arch.shortcut=C"]),
        ("dep", ["depth="]),
        ("depth=", []),
        # One key: its values at once.
        ("precis", ["precision=fp32", "precision=bf16", "precision=tf32", "precision=fp64"]),
        ("flip=", ["flip=true", "flip=false"]),
        ("device=c", ["device=cpu", "device=cuda"]),
        ("experiment=he", ["experiment=he2015"]),
        ("nothing", []),
        ("nothing=", []),
    ],
)
def test_a_word_is_completed(typed: str, offered: list[str]) -> None:
    assert choices.complete(typed) == offered


def test_a_key_is_completed_to_all_that_begin_so() -> None:
    offered = choices.complete("arc")
    assert {"arch=", "arch.order=", "arch.shortcut="} <= set(offered)
    assert all(offer.startswith("arc") for offer in offered)
    everything = choices.complete("")
    known = (*choices.settings(), *choices.groups(), *choices.own_options())
    assert set(everything) == {f"{key}=" for key in known}
    assert {"depth=", "seed=", "experiment=", "data.root=", "arch.options.growth="} <= set(
        everything
    )


def test_plain_and_residual_are_offered_first() -> None:
    offered = choices.complete("arch=plain,")
    assert offered[:2] == ["arch=plain,plain", "arch=plain,residual"]
    assert offered == [f"arch=plain,{name}" for name in choices.options("arch")]
    assert offered[2:] == sorted(offered[2:])


@pytest.mark.process
def test_every_value_offered_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = {key: choices.values(key) for key in (*choices.settings(), "data", "recipe")}
    known["launch"] = list(LAUNCHERS)  # the others need packages
    known["data.stream"] = ["auto", "never"]  # always is for image folders
    assert sum(map(len, known.values())) > 50
    for turn in range(max(map(len, known.values()))):
        # one value of every key at once; 20 layers are both 6n+2 and 9n+2
        offers = [f"{key}={values[turn]}" for key, values in known.items() if turn < len(values)]
        config.compose(["depth=20", *offers])


@pytest.mark.parametrize(
    ("words", "position", "incomplete", "offered"),
    [
        ("twin =", 3, "", ["none", "plain", "matched"]),
        ("twin =", 3, "=", ["none", "plain", "matched"]),
        ("arch = plain,resi", 4, "plain,resi", ["plain,residual"]),
        ("depth = 20 arch = resi", 7, "resi", ["residual"]),
        ("depth = 20 dev", 5, "dev", ["device=auto", "device=cpu", "device=cuda"]),
        ("arc", 2, "dep", ["depth="]),
    ],
)
def test_bash_breaks_words_at_the_equals_sign(
    words: str, position: int, incomplete: str, offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_WORDS", f"resexp run {words}")
    monkeypatch.setenv("COMP_CWORD", str(position))
    assert choices.complete(incomplete) == offered


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)} | variables


@pytest.mark.process
def test_the_command_answers_bash(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "resexp run arch = resi", "COMP_CWORD": "4"}
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "resexp"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(_RESEXP_COMPLETE="complete_bash", **words),
    )
    assert result.stdout.split() == ["residual"], result.stderr[-500:]
    loaded = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "typer" in loaded
    assert loaded & {"torch", "hydra", "omegaconf", "pandas", "matplotlib"} == set()


@pytest.mark.process
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_real_bash_completes_the_command_line(tmp_path: Path) -> None:
    program = tmp_path / "resexp"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m resexp "$@"\n')
    program.chmod(0o755)
    script = r"""
        source <(_RESEXP_COMPLETE=source_bash resexp)
        press_tab() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            $(complete -p resexp | sed 's/.*-F \([^ ]*\).*/\1/') resexp
            echo "${COMPREPLY[*]}"
        }
        press_tab resexp ver
        press_tab resexp run arch = pl
        press_tab resexp run depth = 20 twin =
        press_tab resexp run -m seed = 0,1 see
    """
    result = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(PATH=f"{tmp_path}:{os.environ['PATH']}"),
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "verdict",
        "plain",
        "none plain matched",
        "seed= seeds.augmentation= seeds.batches= seeds.weights=",
    ]
