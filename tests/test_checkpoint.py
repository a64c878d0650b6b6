"""resexp.runs.checkpoint: written whole or not at all, read without running what it holds."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import files_up_to
from torch import Tensor

from resexp import models
from resexp.data import Images
from resexp.runs import checkpoint
from resexp.runs.records import Unwritten
from resexp.settings import Settings
from resexp.train.fit import State, begin, fit

SETTINGS = Settings(depth=8, width=4, seed=2, steps=9, batch_size=8, eval_every=4)
DIGEST = "0123456789ab"


def untrained(settings: Settings = SETTINGS) -> State:
    return begin(models.build(settings, 1, 10), settings)


def trained(images: Images, steps: int) -> State:
    """A state in the middle of a run, with velocities, statistics and sums of its own."""
    state = untrained()
    for _ in fit(state, SETTINGS, images):
        if state.step == steps:
            break
    return state


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a state dictionary by their paths."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in flat(value[key], f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, one in enumerate(value) for k, v in flat(one, f"{name}/{i}").items()}
    return {name: value}


def same(one: State, other: State) -> bool:
    """Whether two states agree to the last bit."""
    mine, its = flat(one.state_dict()), flat(other.state_dict())
    return list(mine) == list(its) and all(
        value.dtype == its[key].dtype and torch.equal(value, its[key])
        if isinstance(value, Tensor)
        else value == its[key]
        for key, value in mine.items()
    )


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def saved(tmp_path: Path, few_digits: Images) -> Path:
    """A directory with the checkpoints of steps 2 and 3."""
    for steps in (2, 3):
        checkpoint.save(tmp_path, trained(few_digits, steps), DIGEST)
    return tmp_path


# Round trip


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_state_comes_back_to_the_last_bit(tmp_path: Path, few_digits: Images, steps: int) -> None:
    state = trained(few_digits, steps)
    leaves = flat(state.state_dict())
    assert leaves["/step"] == steps
    assert bool(leaves["/loss_sum"]) == (steps != 4)  # a row at step 4 begins new sums
    checkpoint.save(tmp_path, state, DIGEST)
    other = untrained(replace(SETTINGS, seed=3))
    assert not same(state, other)
    assert checkpoint.load(tmp_path, other, DIGEST) == []
    assert same(state, other)


def test_a_loaded_state_trains_on_without_changing_the_file(
    tmp_path: Path, few_digits: Images
) -> None:
    checkpoint.save(tmp_path, trained(few_digits, 3), DIGEST)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    state = untrained()
    checkpoint.load(tmp_path, state, DIGEST)
    assert len(list(fit(state, SETTINGS, few_digits))) == 6
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


def test_without_a_checkpoint_a_run_starts_at_its_beginning(tmp_path: Path) -> None:
    state = untrained()
    assert checkpoint.load(tmp_path, state, DIGEST) == []
    assert same(state, untrained())
    assert names(tmp_path) == set()


def test_the_newest_two_are_kept(saved: Path, few_digits: Images) -> None:
    assert names(saved) == {"checkpoint.pt", "checkpoint.before.pt"}
    checkpoint.save(saved, trained(few_digits, 5), DIGEST)
    steps = [
        torch.load(saved / name, weights_only=True)["step"]
        for name in (checkpoint.NAME, checkpoint.BEFORE)
    ]
    assert steps == [5, 3]


# Files that cannot be used


class Trap:
    """An object that makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (Path("sprung"),)


def another(settings: Settings = SETTINGS, **changes: Any) -> Callable[[Path], None]:
    """Puts in the place of a checkpoint that of another state, some of its entries changed."""
    return lambda path: torch.save(
        {"digest": DIGEST, **untrained(settings).state_dict(), **changes}, path
    )


def half_fitting(path: Path) -> None:
    """The network and all velocities but the last would load before the fault is seen."""
    content = untrained(replace(SETTINGS, seed=3)).state_dict()
    content["optimizer"]["velocities"][-1] = torch.zeros(11)
    for velocity in content["optimizer"]["velocities"][:-1]:
        velocity.fill_(1)
    torch.save({"digest": DIGEST, **content}, path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "torn": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("step,epoch,lr\n"),
    "without digest": lambda path: torch.save({"step": 3}, path),
    "another run's": another(digest="ba9876543210"),
    "another depth's": another(replace(SETTINGS, depth=14)),
    "another width's": another(replace(SETTINGS, width=5)),
    "half fitting": half_fitting,
    "step below 0": another(step=-1),
    "step of text": another(step="4"),
    "no step": another(step=None),
    "no time": another(seconds=nan),
    "trap": another(trap=Trap()),
    "old trap": lambda path: path.write_bytes(pickle.dumps(Trap(), 2)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_that_to_the_beginning(
    saved: Path, few_digits: Images, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Nothing in it is run, it is set aside as it was, and that is said once."""
    monkeypatch.chdir(saved)
    left = {"checkpoint.pt.bad", "checkpoint.before.pt"}
    for name, expected in ((checkpoint.NAME, trained(few_digits, 2)), (checkpoint.BEFORE, None)):
        DAMAGE[damage](saved / name)
        content = (saved / name).read_bytes()
        state = untrained()
        (warning,) = checkpoint.load(saved, state, DIGEST)
        assert warning.startswith(f"{saved / name} cannot be used (")
        assert warning.endswith(f"set aside as {name}.bad") and "\n" not in warning
        assert (saved / f"{name}.bad").read_bytes() == content
        if expected is not None:
            expected.seconds = state.seconds  # the one number that differs from time to time
        assert same(state, expected or untrained())
        assert names(saved) == left
        left = {"checkpoint.pt.bad", "checkpoint.before.pt.bad"}


def test_the_trap_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Trap()))
    assert names(tmp_path) == {"sprung"}


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(ValueError, match="compressed"):
        checkpoint.read(tmp_path / "checkpoint.pt")


# Interrupted writing


def test_a_checkpoint_that_does_not_fit_leaves_the_two_before(
    saved: Path, few_digits: Images
) -> None:
    before = [(saved / name).read_bytes() for name in (checkpoint.NAME, checkpoint.BEFORE)]
    with pytest.raises(Unwritten, match=r"checkpoint\.pt could not"), files_up_to(10_000):
        checkpoint.save(saved, trained(few_digits, 5), DIGEST)
    assert names(saved) == {checkpoint.NAME, checkpoint.BEFORE}
    assert before == [(saved / name).read_bytes() for name in (checkpoint.NAME, checkpoint.BEFORE)]


def test_a_stop_between_the_two_renames_loses_nothing_that_was_saved(
    saved: Path, few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    replace_ = os.replace

    def once(source: Path, target: Path) -> None:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(Path(target).name)
        replace_(source, target)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", once)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(saved, trained(few_digits, 5), DIGEST)
    assert renamed == [checkpoint.BEFORE]
    state = untrained()
    assert checkpoint.load(saved, state, DIGEST) == []
    assert state.step == 3


def test_removing_takes_checkpoints_and_half_written_ones_and_nothing_else(saved: Path) -> None:
    (saved / checkpoint.TEMPORARY).write_bytes(b"PK")
    (saved / "metrics.csv").write_text("step\n")
    checkpoint.remove(saved)
    assert names(saved) == {"metrics.csv"}
    checkpoint.remove(saved)  # nothing left to remove is no fault
