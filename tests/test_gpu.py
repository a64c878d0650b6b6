"""What only a GPU can show: the numbers of the CPU, and resume to the byte if deterministic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resexp import data, models
from resexp.records import Row, spell
from resexp.settings import Arch, Data, Merge, Precision, Settings
from resexp.train.device import prepare
from resexp.train.fit import State, begin, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

SHORT = Settings(
    arch=Arch(merge=Merge.residual),
    depth=20,
    steps=20,
    eval_every=5,
    clean_every=2,
    crop_padding=1,
    flip=True,
)


def start(settings: Settings, device: str) -> tuple[State, data.Images]:
    """A network at its first step and the digits, on a device."""
    prepare(1, settings.deterministic, torch.device(device))
    images = data.load(Data()).to(device)
    network = models.build(settings, images.channels, len(images.classes))
    return begin(network.to(device), settings), images


def rows(settings: Settings, device: str) -> list[Row]:
    state, images = start(settings, device)
    return [row for row in fit(state, settings, images) if row is not None]


def cells(row: Row) -> list[str]:
    """A row as text but for its two columns of time."""
    return [spell(getattr(row, key)) for key in list(Row.__slots__)[:-2]]


def test_a_gpu_trains_to_the_losses_of_the_cpu() -> None:
    on_cpu, on_gpu = rows(SHORT, "cpu"), rows(SHORT, "cuda")
    assert [row.step for row in on_gpu] == [row.step for row in on_cpu]
    first = on_gpu[0].train_loss / on_cpu[0].train_loss
    assert first == pytest.approx(1, rel=0.02)  # fp32 sums differ, and training spreads them


def test_a_deterministic_run_is_equal_twice_and_after_a_resume() -> None:
    settings = replace(SHORT, deterministic=True)
    whole = rows(settings, "cuda")
    assert [cells(row) for row in rows(settings, "cuda")] == [cells(row) for row in whole]
    state, images = start(settings, "cuda")
    turns = fit(state, settings, images)
    for _ in range(7):
        next(turns)
    saved = state.state_dict()
    fresh, _ = start(settings, "cuda")
    fresh.load_state_dict(saved)
    after = [row for row in fit(fresh, settings, images) if row is not None]
    assert [cells(row) for row in after] == [cells(row) for row in whole if row.step > 7]


def test_bf16_trains_close_to_fp32() -> None:
    fp32 = rows(replace(SHORT, steps=60, eval_every=60), "cuda")[-1]
    bf16 = rows(replace(SHORT, steps=60, eval_every=60, precision=Precision.bf16), "cuda")[-1]
    assert bf16.train_loss == pytest.approx(fp32.train_loss, rel=0.2)


def test_nothing_waits_for_the_device_between_two_rows() -> None:
    settings = replace(SHORT, steps=40, eval_every=40)
    state, images = start(settings, "cuda")
    turns = fit(state, settings, images)
    for _ in range(3):
        next(turns)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            next(turns)
    finally:
        torch.cuda.set_sync_debug_mode("default")
