"""resexp.runs.checkpoint: written whole or not at all, read without running what it holds."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resexp import models
from resexp.data import Images
from resexp.runs import checkpoint
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


def torn(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def scribbled(path: Path) -> None:
    path.write_text("step,epoch,lr\n")


def without_digest(path: Path) -> None:
    torch.save({"step": 3}, path)


DAMAGE = [torn, emptied, zeroed, scribbled, without_digest]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_gives_way_to_the_one_before(
    saved: Path, few_digits: Images, damage: Callable[[Path], None]
) -> None:
    newest = saved / checkpoint.NAME
    damage(newest)
    contents = newest.read_bytes()
    state = untrained()
    warnings = checkpoint.load(saved, state, DIGEST)
    before = trained(few_digits, 2)
    before.seconds = state.seconds  # the one number that differs from time to time
    assert same(state, before)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{newest} cannot be used (")
    assert warnings[0].endswith("set aside as checkpoint.pt.bad")
    assert "\n" not in warnings[0]
    assert names(saved) == {"checkpoint.pt.bad", "checkpoint.before.pt"}
    assert (saved / "checkpoint.pt.bad").read_bytes() == contents
    assert checkpoint.load(saved, untrained(), DIGEST) == []  # said once


@pytest.mark.parametrize("damage", DAMAGE)
def test_with_both_damaged_a_run_starts_at_its_beginning(
    saved: Path, damage: Callable[[Path], None]
) -> None:
    for name in (checkpoint.NAME, checkpoint.BEFORE):
        damage(saved / name)
    state = untrained()
    warnings = checkpoint.load(saved, state, DIGEST)
    assert same(state, untrained())
    assert len(warnings) == 2
    assert checkpoint.NAME in warnings[0]
    assert checkpoint.BEFORE in warnings[1]
    assert names(saved) == {"checkpoint.pt.bad", "checkpoint.before.pt.bad"}


def test_another_runs_checkpoint_is_set_aside(saved: Path) -> None:
    state = untrained()
    warnings = checkpoint.load(saved, state, "ba9876543210")
    assert same(state, untrained())
    assert len(warnings) == 2
    assert all("it belongs to a run with other settings" in warning for warning in warnings)
    assert names(saved) == {"checkpoint.pt.bad", "checkpoint.before.pt.bad"}


def test_a_state_that_fits_only_half_leaves_nothing_behind(tmp_path: Path) -> None:
    # The network and all velocities but the last would load before the fault is seen.
    content = {"digest": DIGEST, **untrained(replace(SETTINGS, seed=3)).state_dict()}
    content["optimizer"]["velocities"][-1] = torch.zeros(11)
    for velocity in content["optimizer"]["velocities"][:-1]:
        velocity.fill_(1)
    torch.save(content, tmp_path / checkpoint.NAME)
    state = untrained()
    assert len(checkpoint.load(tmp_path, state, DIGEST)) == 1
    assert same(state, untrained())


def test_another_networks_state_is_set_aside(tmp_path: Path) -> None:
    for other in (replace(SETTINGS, depth=14), replace(SETTINGS, width=5)):
        checkpoint.save(tmp_path, untrained(other), DIGEST)
        (tmp_path / checkpoint.BEFORE).unlink(missing_ok=True)
        state = untrained()
        assert len(checkpoint.load(tmp_path, state, DIGEST)) == 1
        assert same(state, untrained())


# Nothing in a file is run


class Trap:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o, 2))])
def test_a_checkpoint_that_would_run_something_is_refused_and_not_run(
    tmp_path: Path, write: Callable[[Any, Path], None]
) -> None:
    sprung = tmp_path / "sprung"
    run = tmp_path / "run"
    run.mkdir()
    write(
        {"digest": DIGEST, **untrained().state_dict(), "trap": Trap(sprung)}, run / "checkpoint.pt"
    )
    state = untrained()
    warnings = checkpoint.load(run, state, DIGEST)
    assert not sprung.exists()
    assert len(warnings) == 1
    assert names(run) == {"checkpoint.pt.bad"}
    assert same(state, untrained())
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works


# Interrupted writing


def test_a_write_that_fails_leaves_the_newest_as_it_was(
    saved: Path, few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / checkpoint.NAME).read_bytes()

    def half_written(content: object, file: Any) -> None:
        file.write(b"PK half of a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(torch, "save", half_written)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(saved, trained(few_digits, 5), DIGEST)
    assert (saved / checkpoint.NAME).read_bytes() == before
    state = untrained()
    assert checkpoint.load(saved, state, DIGEST) == []
    assert state.step == 3
    checkpoint.save(saved, trained(few_digits, 5), DIGEST)  # over what was left
    assert names(saved) == {"checkpoint.pt", "checkpoint.before.pt"}


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
