"""What only a GPU can show: the numbers of the CPU, and resume to the byte if deterministic."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from resexp import data, models
from resexp.config import compose
from resexp.launch.local import perform, run_all
from resexp.runs.messages import Over, Step
from resexp.runs.records import METRICS, spell
from resexp.settings import Arch, Data, Engine, Merge, Precision, Settings
from resexp.train.device import prepare
from resexp.train.engine import choose
from resexp.train.fit import State, begin, fit
from resexp.train.optimizers import OPTIMIZERS
from resexp.train.row import COLUMNS, TIME_COLUMNS, Row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="there is no triton")

ENGINES = [Engine.graph, pytest.param(Engine.triton, marks=needs_triton)]

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


def rows(settings: Settings, device: str, engine: Engine = Engine.eager) -> list[Row]:
    state, images = start(settings, device)
    return [row for row in fit(state, settings, images, engine=engine) if row is not None]


def cells(row: Row) -> list[str]:
    """A row as text but for its columns of time."""
    return [spell(getattr(row, key)) for key in COLUMNS if key not in TIME_COLUMNS]


def test_a_gpu_trains_to_the_losses_of_the_cpu() -> None:
    on_cpu, on_gpu = rows(SHORT, "cpu"), rows(SHORT, "cuda")
    assert [row.step for row in on_gpu] == [row.step for row in on_cpu]
    first = on_gpu[0].train_loss / on_cpu[0].train_loss
    assert first == pytest.approx(1, rel=0.02)  # fp32 sums differ, and training spreads them


@pytest.mark.parametrize("engine", [Engine.eager, *ENGINES])
def test_a_deterministic_run_is_equal_twice_and_after_a_resume(engine: Engine) -> None:
    settings = replace(SHORT, deterministic=True)
    whole = rows(settings, "cuda", engine)
    assert [cells(row) for row in rows(settings, "cuda", engine)] == [cells(row) for row in whole]
    state, images = start(settings, "cuda")
    turns = fit(state, settings, images, engine=engine)
    for _ in range(7):
        next(turns)
    saved = copy.deepcopy(state.state_dict())
    fresh, _ = start(settings, "cuda")
    fresh.load_state_dict(saved)
    after = [row for row in fit(fresh, settings, images, engine=engine) if row is not None]
    assert [cells(row) for row in after] == [cells(row) for row in whole if row.step > 7]


def test_bf16_trains_close_to_fp32() -> None:
    fp32 = rows(replace(SHORT, steps=60, eval_every=60), "cuda")[-1]
    bf16 = rows(replace(SHORT, steps=60, eval_every=60, precision=Precision.bf16), "cuda")[-1]
    assert bf16.train_loss == pytest.approx(fp32.train_loss, rel=0.2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_waits_for_the_device_between_two_rows(optimizer: str) -> None:
    settings = replace(SHORT, steps=40, eval_every=40, optimizer=optimizer)
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


# Engines


PRECISIONS = [Precision.fp32, Precision.bf16]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_graph_replays_eagers_own_steps(precision: Precision, optimizer: str) -> None:
    """The kernels are the same, so in deterministic mode every number is: momentum included."""
    settings = replace(SHORT, deterministic=True, precision=precision, optimizer=optimizer)
    assert [cells(row) for row in rows(settings, "cuda", Engine.graph)] == [
        cells(row) for row in rows(settings, "cuda")
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_kernels_pass_the_check_of_auto(precision: Precision) -> None:
    assert choose.kernels_fault(precision, "cuda") == ""


@pytest.mark.parametrize("engine", ENGINES)
def test_two_hundred_steps_lose_as_much_as_eagers(engine: Engine) -> None:
    settings = replace(SHORT, steps=200, eval_every=200)
    eager, mine = rows(settings, "cuda")[-1], rows(settings, "cuda", engine)[-1]
    assert mine.train_loss == pytest.approx(eager.train_loss, rel=0.03)


@pytest.mark.parametrize("engine", ENGINES)
def test_replays_are_bit_equal_twice_and_among_others_on_streams_of_their_own(
    engine: Engine,
) -> None:
    settings = replace(SHORT, deterministic=True)
    alone = [cells(row) for row in rows(settings, "cuda", engine)]
    assert [cells(row) for row in rows(settings, "cuda", engine)] == alone
    turns, found = [], []
    for _ in range(3):
        stream = torch.cuda.Stream()
        state, images = start(settings, "cuda")
        torch.cuda.synchronize()
        turns.append((stream, fit(state, settings, images, engine=engine)))
        found.append([])
    for _ in range(settings.steps):
        for (stream, one), seen in zip(turns, found, strict=True):
            with torch.cuda.stream(stream):
                row = next(one)
            if row is not None:
                seen.append(cells(row))
    assert found == [alone] * 3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_replay_neither_waits_nor_allocates(engine: Engine) -> None:
    settings = replace(SHORT, steps=40, eval_every=40)
    state, images = start(settings, "cuda")
    turns = fit(state, settings, images, engine=engine)
    for _ in range(8):
        next(turns)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            next(turns)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_runs_in_lockstep_are_the_runs_alone(tmp_path: Path) -> None:
    def csv(launch: str) -> list[list[list[str]]]:
        words = ["device=cuda", "engine=graph", "deterministic=true", "steps=12", "eval_every=4"]
        jobs = [
            compose([*words, f"arch={arch}", "depth=8", f"results={tmp_path / launch}"])
            for arch in ("plain", "residual")
        ]
        if launch == "alone":
            for job in jobs:
                perform(job)
        else:
            ends = [end for _, end in run_all(jobs, 2) if not isinstance(end, Step)]
            assert [type(end) for end in ends] == [Over, Over]
        columns = slice(None, -2)  # but those of time
        return [
            [line.split(",")[columns] for line in (job.directory / METRICS).read_text().split()]
            for job in jobs
        ]

    assert csv("lockstep") == csv("alone")
