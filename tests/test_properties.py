"""Properties: overrides round-trip, and a run stopped anywhere ends as if it had not been."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_jobs import cells, job_in, kill, killed

from resexp import config
from resexp.data import Images
from resexp.launch import local
from resexp.runs import records
from resexp.runs import run as running
from resexp.settings import as_dict, flatten
from resexp.train.row import TIME_COLUMNS, Row

pytestmark = pytest.mark.process

TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "depth": st.sampled_from([8, 14, 20, 56]),
    "seed": st.integers(0, 2**63 - 1),
    "lr": st.floats(1e-9, 10, allow_subnormal=False),
    "steps": st.integers(1, 10**9),
    "flip": st.booleans(),
    "milestones": st.lists(st.floats(0.001, 0.999), max_size=3, unique=True).map(sorted),
    "data.size": st.none() | st.integers(8, 1024),
    "data.root": TEXTS,
    "data.name": TEXTS.filter(bool),
    "arch.shortcut": st.sampled_from(["A", "B"]),
    "results": TEXTS.filter(bool),
}
chosen = st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=5).flatmap(
    lambda keys: st.fixed_dictionaries({key: VALUES[key] for key in keys})
)


def spelled(value: Any) -> str:
    """A value as an override: text in quotes, in which Hydra wants a quote and what could be
    mistaken for an escape escaped."""
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = ""
    for at, letter in enumerate(value):
        rest = value[at:].lstrip("\\")
        doubled = letter == "\\" and (not rest or rest.startswith("'"))
        escaped += "\\\\" if doubled else "\\'" if letter == "'" else letter
    return f"'{escaped}'"


@settings(deadline=None, max_examples=12)
@given(chosen)
def test_overrides_come_back_as_they_went_in(values: dict[str, Any]) -> None:
    values = {key: value for key, value in values.items() if "${" not in str(value)}
    words = ["arch=residual", *(f"{key}={spelled(value)}" for key, value in values.items())]
    job = config.compose(words)
    flat = flatten(as_dict(job.settings))
    for key, value in values.items():
        assert flat[key] == value
    again = config.compose(shlex.split(job.command)[2:])
    assert again.settings == job.settings
    assert again.directory == job.directory
    assert again.extras == job.extras


def saving_and_killing(patch: pytest.MonkeyPatch, saved: int, end: int, steps: int) -> local.Watch:
    """A watcher that has a checkpoint written after one step and kills after another."""

    def watch(record: dict[str, Any], step: int, row: Row | None) -> None:
        patch.setattr(running.checkpoint.Timer, "due", lambda *_, **__: step == saved)
        if end <= step < steps:
            kill()

    return watch


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_a_run_saved_and_killed_at_random_steps_equals_one_that_was_not(
    few_digits: Images, choose: Any
) -> None:
    """Saved at one step, killed at another at or after it, several times over."""
    steps = choose.draw(st.integers(1, 9), "steps")
    shape: dict[str, Any] = {"steps": steps, "width": 2, "batch_size": 4, "checkpoint_every": 1e9}
    shape["eval_every"] = choose.draw(st.integers(1, 10), "every")
    shape["clean_every"] = choose.draw(st.integers(1, 3), "clean")
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "load", lambda settings, device: few_digits)
        whole, parts = (job_in(Path(folder) / name, **shape) for name in ("whole", "parts"))
        local.perform(whole)
        for _ in range(choose.draw(st.integers(1, 3), "kills")):
            saved, end = sorted(choose.draw(st.tuples(*[st.integers(1, steps)] * 2), "at"))
            killed(parts, saving_and_killing(patch, saved, end, steps))
        local.perform(parts)
        assert cells(parts) == cells(whole)
        mine, its = (records.read_record(job.directory)["last"] for job in (parts, whole))
        assert all(math.isfinite(mine.pop(key)) and its.pop(key) for key in TIME_COLUMNS)
        assert mine == its
