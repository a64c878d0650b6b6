"""resexp.bench.steps: what a step must do at least, what is timed, and how it is said."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_probing import call
from test_trace import Two
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import resexp
from resexp import console, models
from resexp.bench import baseline, roofline
from resexp.bench import steps as bench
from resexp.bench.cases import Case, Plan, planned
from resexp.bench.steps import digits, text
from resexp.config import compose
from resexp.data import Images
from resexp.settings import Arch, Engine, Merge, Precision, Settings
from resexp.train import fit as fitting

CPU = torch.device("cpu")
TINY = ["data=digits", "depth=8", "width=2", "batch_size=8", "threads=1", "data.workers=1"]

#: Workers are forked, as everybody's are; Python warns of it from 3.12 on.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# --- the least work


def residual(depth: int) -> nn.Module:
    return models.structure(Settings(arch=Arch(merge=Merge.residual), depth=depth), 3, 10)


@pytest.mark.parametrize(("depth", "gflop"), [(20, 31.03), (56, 96.26), (110, 194.10)])
def test_flops_of_a_step_are_those_that_torch_counts(depth: int, gflop: float) -> None:
    """FlopCounterMode's for the same step at batch 128, to every digit given."""
    work = roofline.least_work(residual(depth), 3, (32, 32), 128, Precision.bf16)
    assert round(work.flops / 1e9, 2) == gflop


@pytest.mark.parametrize(
    ("precision", "width", "weights"),
    [(Precision.fp32, 4, 4), (Precision.bf16, 2, 4), (Precision.fp64, 8, 8)],
)
def test_the_least_work_of_a_tiny_network_is_what_a_hand_counts(
    precision: Precision, width: int, weights: int
) -> None:
    elements = 2 * (3 * 64 + 4 * 64) + 3 * (4 * 64 + 8 * 16) + 3 * (8 + 10)
    products = 2 * (64 * 108) + 3 * (16 * 288) + 3 * 80
    work = roofline.least_work(Two(), 3, (8, 8), 5, precision)
    assert work.bytes == 5 * elements * width + 6 * (108 + 288 + 90) * weights
    assert work.flops == 5 * 2 * products


def test_the_roof_is_the_higher_of_two_times() -> None:
    peak = roofline.Amount(flops=100.0, bytes=10.0)
    assert roofline.Amount(flops=500, bytes=20).seconds(peak) == 5
    assert roofline.Amount(flops=500, bytes=80).seconds(peak) == 8


@pytest.fixture
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Peaks of this device in a moment."""
    monkeypatch.setattr(roofline, "MEASURED", 0.02)
    monkeypatch.setattr(roofline, "COPIED", {"cpu": 2**22})
    monkeypatch.setattr(roofline, "SIDE", {"cpu": 256})
    roofline.peak.cache_clear()
    yield
    roofline.peak.cache_clear()


def test_peaks_are_of_this_device_and_of_random_numbers(
    small_peaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: (seen.append((a, b)), real(a, b, out=out)))
    peak = roofline.peak(Precision.fp32, 1, CPU)
    assert 1e8 < peak.flops < 1e14  # what any computer of these decades does
    assert 1e7 < peak.bytes < 1e13
    assert all(0.9 < one.std() < 1.1 for one in seen[0])


# --- what is timed


def tiny_case(images: Images) -> Case:
    return Case("residual-8", "eager", compose([*TINY, "eval_every=2"]), images, "residual-8")


@pytest.mark.process
def test_a_timed_step_is_a_step_of_fit_and_none_evaluates(
    few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    real = fitting.train_step
    monkeypatch.setattr(
        fitting, "train_step", lambda *arguments: (taken.append(1), real(*arguments))
    )
    monkeypatch.delattr(fitting.Evaluations, "start")
    turns = bench.loop(tiny_case(few_digits))
    assert [next(turns) for _ in range(5)] == [None] * 5
    assert len(taken) == 5


def test_windows_are_steps_of_every_loop_in_turn(
    few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of two loops take 10 and 20 ms of a pretended clock; the first are not timed."""
    now, order = 0.0, []

    def loop(case: Case) -> Iterator[None]:
        nonlocal now
        for step in itertools.count():
            now += case.job.settings.width / 1000 + (100 if step < 2 else 0)
            order.append(case.job.settings.width)
            yield

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    monkeypatch.setattr(bench, "loop", loop)
    monkeypatch.setattr(bench, "own_stream", lambda cases: contextlib.nullcontext())
    jobs = [compose(["data=digits", f"width={width}"]) for width in (10, 20)]
    timing = bench.timed([Case("", "eager", job, few_digits, "") for job in jobs], seconds=3.0)
    assert timing["milliseconds"] == pytest.approx(30)
    assert timing["milliseconds_least"] == pytest.approx(timing["milliseconds_greatest"])
    assert timing["memory_mb"] is None
    assert order == [10, 20] * (len(order) // 2)
    assert now == pytest.approx(400 + 3.5, abs=0.2)  # half a second to find out what a window holds


@forks
@pytest.mark.process
def test_the_baseline_loop_learns_the_same_network(
    few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(depth=8, width=4, batch_size=20, lr=0.1, crop_padding=1, flip=True)
    losses = []
    torch.manual_seed(0)  # of the order
    real = baseline.cross_entropy

    def noted(logits: Tensor, labels: Tensor) -> Tensor:
        losses.append(real(logits, labels).item())
        return real(logits, labels)

    monkeypatch.setattr(baseline, "cross_entropy", noted)
    turns = baseline.steps(settings, few_digits, workers=1)
    for _ in range(40):
        next(turns)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_pictures_are_the_images(few_digits: Images) -> None:
    pictures = baseline.Pictures(few_digits.train_images, few_digits.train_labels, Settings())
    image, label = pictures[3]
    expected = few_digits.train_images[3].permute(2, 0, 1) / 255
    assert torch.allclose(image, (expected - 0.5) / 0.25)
    assert label == few_digits.train_labels[3] and len(pictures) == 40


# --- what is planned


LOOPS = "baseline", "eager"


def loops(plan: Plan) -> list[tuple[str, str]]:
    return [(one.network, one.engine) for one in plan.cases]


@pytest.mark.process
def test_nothing_typed_is_residual_in_the_paper_s_shapes() -> None:
    plan = planned(["device=cpu"], compose)
    assert loops(plan) == list(itertools.product(("residual-8", "residual-20"), LOOPS))
    settings = plan.cases[0].job.settings
    assert (settings.batch_size, settings.crop_padding, settings.flip) == (128, 4, True)
    images = plan.cases[0].images
    assert images.train_images.shape[1:] == (32, 32, 3) and images.name == "noise"
    assert [why.partition(" ")[0] for why in plan.left_out] == ["engine=graph", "engine=triton"]


@pytest.mark.process
def test_one_baseline_loop_stands_beside_all_that_do_its_work() -> None:
    words = ["device=cpu", "depth=8", "seed=0,1", "arch=plain,residual", "width=2"]
    first = itertools.product(("plain-8 seed=0", "residual-8 seed=0"), LOOPS)
    again = [("plain-8 seed=1", "eager"), ("residual-8 seed=1", "eager")]
    assert loops(planned(words, compose)) == [*first, *again]


@pytest.mark.process
def test_an_experiment_brings_its_own_recipe_and_images() -> None:
    plan = planned(["experiment=digits", "depth=8", "device=cpu"], compose)
    assert plan.cases[0].job.settings.batch_size == 64
    images = plan.cases[0].images
    assert (images.name, images.train_images.shape[1:]) == ("digits", (8, 8, 1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engine=graph", "device=cpu"], "engine=graph needs a GPU"),
        (["engine=triton", "device=cpu"], "engine=triton needs a GPU"),
        (["depth=21"], "depth=21"),
        (["dpeth=20"], "Did you mean depth?"),
        (["engine=fast"], "engine"),
        (["experiment=blobs", "arch=unet", "depth=23"], "segmentation"),
        (["experiment=blobs", "depth=8"], "has masks"),
        (["data=digits", "batch_size=1438", "device=cpu"], "1,437 images"),
        (["device=cpu,auto"], "device has several values"),
        (["--seconds", "0"], "--seconds"),
        (["--output", "nowhere/at/all.json"], "cannot be written"),
        (["-m"], "-m"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(words: list[str], said: str) -> None:
    code, out, err = call("bench", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err


# --- what is said


#: A row of a GPU, as far as the table shows it, and what is around it.
ROW: dict[str, Any] = {
    **{"network": "residual-20", "engine": "graph", "precision": "bf16", "data": "noise"},
    **{"image": [32, 32, 3], "batch": 128, "threads": 16, "milliseconds": 1.25},
    **{"milliseconds_least": 1.2, "milliseconds_greatest": 1.5, "images_per_second": 102_400.0},
    **{"times_baseline": 12.34, "gflop": 31.03, "tflop_per_second": 24.8, "gb_per_second": 232.0},
    **{"share_of_roofline": 0.054, "kernels": 290, "memory_mb": 310.4},
}
PEAK = {"precision": "bf16", "threads": 16, "tflop_per_second": 788.0, "gb_per_second": 4300.0}
FOUND: dict[str, Any] = {
    "environment": {"device": "cuda", "device_name": "GPU", "torch": "2.11.0"},
    **{"load": 0.25, "peaks": [PEAK], "left_out": ["no triton."], "failed": ["a: b"]},
}


def test_the_table_says_what_was_measured() -> None:
    first = ROW | {
        **{"engine": "baseline", "precision": "fp32", "milliseconds": 15.43},
        **{"milliseconds_least": 14.0, "milliseconds_greatest": 123.0},
        **{"images_per_second": 8_296.0, "times_baseline": 1.0, "tflop_per_second": 2.01},
        **{"gb_per_second": 37.2, "share_of_roofline": 0.035, "kernels": None},
    }
    lockstep = {
        **{"networks": ["plain-20", "residual-20"], "engine": "graph", "precision": "bf16"},
        **{"images_per_second": 180_000.0, "times_one_after_another": 1.76, "memory_mb": 620.0},
    }
    found = FOUND | {"rows": [first, ROW], "lockstep": [lockstep]}
    assert (
        text(found)
        == """\
GPU, torch 2.11.0, load 0.2 before
peak of bf16: 788 TFLOP/s in a matrix product, 4,300 GB/s in a copy

residual-20   batch 128 of 32x32x3, noise, 31.0 GFLOP a step
                 ms/step      range  images/s  times  TFLOP/s  GB/s  roofline  kernels   MB
  baseline fp32     15.4   14.0-123     8,296   1.00     2.01  37.2     3.5 %        -  310
  graph bf16        1.25  1.20-1.50   102,400  12.34     24.8   232     5.4 %      290  310

2 networks in lockstep (graph bf16): 180,000 images/s, 1.76 times one after another, 620 MB
residual-20: 12.3 times the baseline loop (graph bf16)
left out: no triton.
failed: a: b"""
    )
    assert [digits(0.0123), digits(0.5)] == ["0.012", "0.500"]


@pytest.mark.parametrize("room", [80, 60])
def test_the_table_fits_a_terminal(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", lambda: room)
    found = FOUND | {"rows": [ROW, ROW | {"network": "plain-20"}], "lockstep": []}
    said = console.folded(text(found), room)
    assert max(map(len, said.splitlines())) <= room
    assert said.count("  graph bf16     1.25") == 2
    assert said.count("No room here for GB/s") == 1


@forks
@pytest.mark.process
def test_a_tiny_benchmark_prints_json_and_nothing_else(tmp_path: Path, small_peaks: None) -> None:
    output = tmp_path / "bench.json"
    words = [*TINY, "device=cpu", "--json", "--seconds", "0.02", "--output", str(output)]
    code, out, err = call("bench", *words)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found == json.loads(output.read_text())
    assert set(found) == {
        *("command", "measured", "seconds", "windows", "load", "workers", "peaks", "rows"),
        *("lockstep", "left_out", "failed", "environment"),
    }
    one, other = found["rows"]
    hidden = {"arch", "depth", "gb", "roofline_milliseconds"}  # from the table
    assert set(one) == set(other) == set(ROW) | hidden
    assert (one["engine"], other["engine"], other["precision"]) == ("baseline", "eager", "fp32")
    assert (other["batch"], other["image"], other["threads"]) == (8, [8, 8, 1], 1)
    assert one["times_baseline"] == 1
    assert other["times_baseline"] == one["milliseconds"] / other["milliseconds"]
    assert other["kernels"] is other["memory_mb"] is None
    (peak,) = found["peaks"]
    for some in (one, other):
        least, greatest = some["milliseconds_least"], some["milliseconds_greatest"]
        assert 0 < least <= some["milliseconds"] <= greatest
        seconds = some["milliseconds"] / 1000
        assert some["images_per_second"] == pytest.approx(8 / seconds)
        assert some["tflop_per_second"] == pytest.approx(some["gflop"] / 1000 / seconds)
        assert some["gb_per_second"] == pytest.approx(some["gb"] / seconds)
        share = some["roofline_milliseconds"] / some["milliseconds"]
        assert some["share_of_roofline"] == pytest.approx(share)
        rates = some["gflop"] / peak["tflop_per_second"], 1000 * some["gb"] / peak["gb_per_second"]
        assert some["roofline_milliseconds"] == pytest.approx(max(rates))
    assert found["environment"]["torch"] == torch.__version__
    assert "residual-8: " in text(found) and "eager fp32" in text(found)


@forks
@pytest.mark.process
def test_what_fails_is_said_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "peak", lambda *arguments: roofline.Amount(1e12, 1e10))

    def broken(*arguments: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory\nand more")

    monkeypatch.setattr(bench, "fit", broken)
    code, out, _ = call("bench", *TINY, "device=cpu", "--seconds", "0.01")
    assert code == 1
    assert "baseline fp32" in out
    assert out.splitlines()[-1] == "failed: residual-8 eager: out of memory"


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    root = Path(resexp.__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "resexp", "bench", *TINY, "--seconds", "600"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    group = os.getpgid(process.pid)
    deadline = time.monotonic() + 60
    while len(members(group)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)  # until there is a worker of the baseline loop
    time.sleep(0.3)
    os.killpg(group, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    assert members(group) == []


def members(group: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, member = entry.read_text().rpartition(")")[2].split()[:3]
            if int(member) == group and state != "Z":
                found.append(int(entry.parent.name))
    return found


# --- on a GPU


@pytest.mark.gpu
@forks
def test_a_gpu_s_engines_are_timed_counted_and_set_against_its_peaks() -> None:
    words = ["depth=8", "arch=plain,residual", "engine=eager,graph", "precision=fp32", "width=8"]
    code, out, _ = call("bench", *words, "--json", "--seconds", "0.5")
    found = json.loads(out)
    assert (code, found["failed"]) == (0, [])
    assert [row["engine"] for row in found["rows"]] == ["baseline", "eager", "graph"] * 2
    eager, graph = found["rows"][1:3]
    assert eager["kernels"] == graph["kernels"]  # one step, carried out in two ways
    assert graph["milliseconds"] < eager["milliseconds"]
    assert all(row["memory_mb"] > 0 for row in found["rows"])
    assert all(0 < row["share_of_roofline"] < 1 for row in found["rows"])
    assert [one["engine"] for one in found["lockstep"]] == ["eager", "graph"]
    assert all(len(one["networks"]) == 2 for one in found["lockstep"])


@pytest.mark.gpu
def test_a_step_has_as_many_nodes_as_a_profiler_sees_kernels() -> None:
    plan = planned(["depth=8", "engine=eager", "precision=bf16"], compose)
    case = next(one for one in plan.cases if one.engine == "eager")
    case.prepare()
    turns = bench.loop(case)
    for _ in range(3):
        next(turns)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        next(turns)
        torch.cuda.synchronize()
    events = [one for one in profiler.events() if one.device_type.name == "CUDA"]
    seen = sum(not one.is_user_annotation for one in events)
    assert bench.kernels(case) == pytest.approx(seen, abs=5)


@pytest.mark.gpu
def test_a_gpu_without_any_typed_precision_is_timed_in_all() -> None:
    plan = planned(["engine=eager"], compose)
    precisions = {one.job.settings.precision for one in plan.cases}
    assert precisions == {Precision.fp32, Precision.tf32, Precision.bf16}
    assert {one.job.settings.depth for one in plan.cases} == {20, 56}
    assert {one.job.settings.engine for one in plan.cases} == {Engine.eager}
