"""What only a GPU can show. The checks of its first minutes come first, cheapest first.

Each of these runs in a process of its own and under a time limit, for a fault of a kernel breaks
the process that it happens in, and networks that wait for each other never end.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resexp import data, models
from resexp.bench import steps as bench
from resexp.bench.cases import BASELINE, groups, planned
from resexp.config import compose
from resexp.data import Images
from resexp.launch.local import run_all
from resexp.runs.checkpoint import NAME
from resexp.runs.messages import Outcome, Step, Stopped
from resexp.runs.stop import Interrupted
from resexp.settings import Arch, Data, Engine, Merge, Precision, Settings
from resexp.train import step_inputs
from resexp.train.device import prepare
from resexp.train.engine import choose
from resexp.train.fit import State, begin, fit
from resexp.train.optimizers import OPTIMIZERS
from resexp.train.row import Row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="there is no triton")

ENGINES = [Engine.graph, pytest.param(Engine.triton, marks=needs_triton)]
PRECISIONS = [Precision.fp32, Precision.tf32, Precision.bf16]

SHORT = Settings(
    arch=Arch(merge=Merge.residual),
    depth=20,
    steps=20,
    eval_every=5,
    clean_every=2,
    crop_padding=1,
    flip=True,
)
FIGURE6 = replace(
    SHORT,
    batch_size=128,
    crop_padding=4,
    eval_every=8,
    milestones=[0.5],
    precision=Precision.bf16,
    deterministic=True,
)


def start(settings: Settings, images: Images | None = None) -> tuple[State, Images]:
    """A network at its first step and the images it learns, the digits unless others are given."""
    prepare(1, settings, torch.device("cuda"))
    images = images or data.load(Data()).to("cuda")
    network = models.build(settings, images.channels, len(images.classes))
    return begin(network.to("cuda"), settings), images


def noise() -> Images:
    """Images of CIFAR-10's form."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for count in (3000, 4500):
        shape = count, 32, 32, 3
        sets += [torch.randint(256, shape, generator=generator, dtype=torch.uint8)]
        sets += [torch.randint(10, (count,), generator=generator)]
    return Images("noise", *sets, list("0123456789")).to("cuda")


def rows(settings: Settings, engine: Engine = Engine.eager) -> tuple[list[Row], list[Tensor]]:
    """The rows of a run and its state at the end."""
    state, images = start(settings)
    found = [row for row in fit(state, settings, images, engine=engine) if row is not None]
    return found, tensors(state)


def tensors(state: State) -> list[Tensor]:
    """All that a checkpoint of it holds: weights, statistics, velocities, sums."""
    saved = state.state_dict()
    states = [one for part in saved["optimizer"].values() for one in part]
    return [one.clone() for one in (*saved["network"].values(), *states, saved["loss_sum"])]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def measured(row: Row) -> tuple[Any, ...]:
    """A row but for its columns of time."""
    return row.step, row.train_loss, row.train_error, row.clean_train_loss, row.test_loss


# The first minutes


def in_a_process(seconds: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a test run in a process of its own, with a limit; its words are that process's."""

    def decorated(check: Callable[..., None]) -> Callable[..., None]:
        @wraps(check)
        def test(**words: str) -> None:
            code = f"import test_gpu; test_gpu.{check.__name__}.__wrapped__(**{words})"
            here = Path(__file__).parent
            subprocess.run([sys.executable, "-c", code], cwd=here, timeout=seconds, check=True)

        return test

    return decorated


@needs_triton
@in_a_process(100)
def test_1_the_kernels_at_the_sizes_of_figure_6() -> None:
    for precision in (Precision.fp32, Precision.bf16):  # tf32 multiplies in no kernel
        bound = choose.BOUND[precision]
        assert choose.worst_error(precision, "cuda") <= bound, precision


def steps_of(engine: Engine, *, capture: bool, spoil: Callable[[], None] | None = None) -> State:
    """The state after 20 steps at CIFAR-10's sizes; ``spoil`` is called once all is captured.

    They go across two rows, a new table every third step and a milestone.
    """
    step_inputs.MOST = 3 * FIGURE6.batch_size
    state, images = start(FIGURE6, noise())
    for step, _ in enumerate(fit(state, FIGURE6, images, engine=engine, capture=capture)):
        if step == 12 and spoil is not None:  # behind the first row
            spoil()
    return state


@needs_triton
@pytest.mark.parametrize("engine", ["graph", "triton"])
@in_a_process(100)
def test_2_replays_are_the_steps_that_they_repeat(engine: str) -> None:
    replayed = steps_of(Engine(engine), capture=True)
    assert equal(tensors(replayed), tensors(steps_of(Engine(engine), capture=False)))


def fill_with_nan() -> None:
    """Write into all memory that nobody holds, and give it back."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    torch.full((int(0.9 * free) // 4,), torch.nan, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@needs_triton
@pytest.mark.parametrize("engine", ["graph", "triton"])
@in_a_process(100)
def test_3_a_graph_reads_no_memory_that_it_does_not_hold(engine: str) -> None:
    replayed = steps_of(Engine(engine), capture=True, spoil=fill_with_nan)
    assert equal(tensors(replayed), tensors(steps_of(Engine(engine), capture=False)))


def eight(engine: Engine, precision: Precision) -> Iterator[Iterator[State]]:
    """The networks of Figure 6, each its states after every turn."""
    images = noise()
    for merge in (Merge.plain, Merge.residual):
        for depth in (20, 32, 44, 56):
            arch, steps = Arch(merge=merge), {"steps": 300, "eval_every": 150}
            of = replace(FIGURE6, arch=arch, depth=depth, precision=precision, **steps)
            state, _ = start(of, images)
            yield (state for _ in fit(state, of, images, engine=engine))


def at_once(*words: Any) -> None:
    """Train the eight networks one after another and all at once: each ends the same."""
    alone = [tensors([*turns][-1]) for turns in eight(*words)]
    torch.cuda.synchronize()
    networks = list(eight(*words))
    streams = [torch.cuda.Stream() for _ in networks]
    torch.cuda.synchronize()
    found: list[list[Tensor]] = [[] for _ in networks]
    left = set(range(8))
    while left:
        for place in sorted(left):
            with torch.cuda.stream(streams[place]):
                if (state := next(networks[place], None)) is None:
                    left.remove(place)
                elif state.step == 300:
                    found[place] = tensors(state)
    torch.cuda.synchronize()  # their copies lie in the streams
    assert all(map(equal, found, alone))


@needs_triton
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@in_a_process(120)
def test_4_eight_networks_at_once_are_each_what_they_are_alone(precision: str) -> None:
    at_once(Engine.triton, Precision(precision))


@needs_triton
@in_a_process(90)
def test_5_the_kernels_pass_the_check_of_auto() -> None:
    for precision in (Precision.fp32, Precision.bf16):
        assert choose.kernels_fault(precision, "cuda") == ""


@needs_triton
@in_a_process(120)
def test_6_runs_stopped_in_lockstep_go_on_to_the_same_bits() -> None:
    with tempfile.TemporaryDirectory() as folder:
        alone, together, stopped = (
            trained(f"{folder}/{stop}-{at_a_time}", stop, at_a_time)
            for stop, at_a_time in ((0, 1), (0, 2), (137, 2))
        )
    assert equal(together, alone)
    assert equal(stopped, alone)


def trained(results: str, stop: int, at_a_time: int) -> list[Tensor]:
    """What the last checkpoints of two runs hold, which were stopped at a step, unless it is 0."""
    words = ["device=cuda", "engine=triton", "deterministic=true", "steps=200", "eval_every=50"]
    words += ["precision=bf16", "keep_checkpoint=true", f"results={results}", "depth=20"]
    jobs = [compose([*words, f"arch={arch}"]) for arch in ("plain", "residual")]
    ends = []
    try:
        for _, message in run_all(jobs, at_a_time):
            if isinstance(message, Step) and message.step == stop > 0:
                os.kill(os.getpid(), signal.SIGTERM)
            ends += [] if isinstance(message, Step) else [type(message)]
    except Interrupted:
        assert ends == [Stopped, Stopped]
        return trained(results, 0, at_a_time)
    assert ends == [Outcome, Outcome]
    saved = [torch.load(job.directory / NAME, weights_only=True) for job in jobs]
    return [one for state in saved for one in state["network"].values()] + [
        one for state in saved for one in state["optimizer"]["velocities"]
    ]


@needs_triton
@in_a_process(180)
def test_7_milliseconds_of_a_step_alone_and_of_eight_networks() -> None:
    """For the log: nothing is expected of them here."""
    words = ["arch=plain,residual", "depth=20,32,44,56", "engine=triton", "precision=bf16,tf32"]
    cases = [one for one in planned(words, compose).cases if one.engine != BASELINE]
    for case in cases:
        case.prepare()
        if case.job.settings.depth in (20, 56):
            say(case.network, case.job.settings, bench.timed([case], 0.5))
    for group in groups(cases):
        group[0].prepare()
        say("all eight", group[0].job.settings, bench.timed(group, 1))


def say(what: str, settings: Settings, found: dict[str, Any]) -> None:
    took, memory = found["milliseconds"], found["memory_mb"]
    print(f"{what} {settings.precision}: {took:.3f} ms a step, {memory:.0f} MB", flush=True)


@in_a_process(120)
def test_8_eight_networks_at_once_by_torchs_kernels() -> None:
    """The last of them, for it may hang: see NativeNorm."""
    at_once(Engine.graph, Precision.fp32)


# Numbers


def test_a_gpu_trains_to_the_losses_of_the_cpu() -> None:
    on_gpu, _ = rows(SHORT)
    images = data.load(Data())
    state = begin(models.build(SHORT, images.channels, len(images.classes)), SHORT)
    on_cpu = [row for row in fit(state, SHORT, images) if row is not None]
    assert [row.step for row in on_gpu] == [row.step for row in on_cpu]
    first = on_gpu[0].train_loss / on_cpu[0].train_loss
    assert first == pytest.approx(1, rel=0.02)  # fp32 sums differ, and training spreads them


@pytest.mark.parametrize("engine", [Engine.eager, *ENGINES])
def test_a_deterministic_run_is_equal_twice_and_after_a_resume(engine: Engine) -> None:
    settings = replace(SHORT, deterministic=True)
    whole, at_the_end = rows(settings, engine)
    again, state_again = rows(settings, engine)
    assert list(map(measured, again)) == list(map(measured, whole))
    assert equal(state_again, at_the_end)
    state, images = start(settings)
    turns = fit(state, settings, images, engine=engine)
    while state.step < 7:
        next(turns)
    saved = copy.deepcopy(state.state_dict())
    fresh, _ = start(settings)
    fresh.load_state_dict(saved)
    after = [row for row in fit(fresh, settings, images, engine=engine) if row is not None]
    assert [measured(row) for row in after] == [measured(row) for row in whole if row.step > 7]
    assert equal(tensors(fresh), at_the_end)


@pytest.mark.parametrize("precision", [Precision.tf32, Precision.bf16])
def test_coarser_numbers_train_close_to_fp32(precision: Precision) -> None:
    long = replace(SHORT, steps=60, eval_every=60)
    (fp32,), _ = rows(long)
    (coarse,), _ = rows(replace(long, precision=precision))
    assert coarse.train_loss != fp32.train_loss
    assert coarse.train_loss == pytest.approx(fp32.train_loss, rel=0.2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_graph_replays_eagers_own_steps(precision: Precision, optimizer: str) -> None:
    """The kernels are the same, so in deterministic mode every number is: momentum included."""
    settings = replace(SHORT, deterministic=True, precision=precision, optimizer=optimizer)
    mine, eagers = rows(settings, Engine.graph), rows(settings)
    assert list(map(measured, mine[0])) == list(map(measured, eagers[0]))
    assert equal(mine[1], eagers[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_two_hundred_steps_lose_as_much_as_eagers(engine: Engine) -> None:
    settings = replace(SHORT, steps=200, eval_every=200)
    (eager,), _ = rows(settings)
    (mine,), _ = rows(settings, engine)
    assert mine.train_loss == pytest.approx(eager.train_loss, rel=0.03)
    assert mine.test_loss == pytest.approx(eager.test_loss, rel=0.2)  # by running averages


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", [Engine.eager, *ENGINES])
def test_between_two_rows_nothing_waits_and_no_replay_allocates(
    engine: Engine, optimizer: str
) -> None:
    settings = replace(SHORT, steps=40, eval_every=40, optimizer=optimizer)
    state, images = start(settings)
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
    after = torch.cuda.memory_stats()["allocation.all.allocated"]
    assert engine is Engine.eager or after == before


@needs_triton
def test_every_graph_has_memory_of_its_own_for_cublas() -> None:
    """Runs share the 32 streams there are, and workspaces belong to streams."""
    images = noise()
    for _ in range(2):
        state, _ = start(FIGURE6, images)
        turns = fit(state, FIGURE6, images, engine=Engine.triton)
        for _ in range(5):
            next(turns)
        before = torch.cuda.memory_allocated()
        torch._C._cuda_clearCublasWorkspaces()  # type: ignore[attr-defined]
        assert torch.cuda.memory_allocated() == before  # no stream was left with one
