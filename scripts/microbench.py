"""The numbers that decide how an engine is written for a GPU. Prints a table, writes JSON.

    python scripts/microbench.py [--output FILE] [--seconds 180] [--dry] [PART...]

- ceilings: copies, matrix products, empty nodes of a CUDA graph, small elementwise kernels
- steps: whole steps of resexp at 20 and 56 layers, by each engine, and what the host needs for them
- streams: steps of 1, 2, 4 and 8 networks, each on a stream of its own
- convolutions: cuDNN's three, at the three shapes of He et al. 2015, and the kernels it takes
- searched: the same with cudnn.benchmark
- norms: batch normalisation, native, cuDNN's and resexp's own, forward and backward

Each part is a process of its own with a limit, and each measurement is guarded: what fails or hangs
costs itself alone, and the file is written after every part. (cuDNN's choices with and without
benchmark would, besides, meet in one cache.) Kernels are timed in graphs of many launches, by the
GPU's clock, medians of five; their names are in the file alone. ``cold`` goes round among inputs of
three times the L2 together; ``hot`` stays with one. Without a GPU it ends with code 2; ``--dry``
tries all that a CPU can, tiny.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resexp import models
from resexp.data import Images
from resexp.runs.provenance import environment
from resexp.settings import Arch, Engine, Merge, Precision, Settings
from resexp.train.device import prepare
from resexp.train.engine.graph import WARM
from resexp.train.fit import begin, fit

if find_spec("triton"):
    import triton
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    @triton.jit
    def empty_kernel():
        """Nothing: a node of a graph."""

    @triton.jit
    def chained_kernel():
        """Nothing, once the launch before is done; the next may come before this one is."""
        gdc_wait()
        gdc_launch_dependents()


Call = Callable[[], object]

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
WINDOWS = 5
COLD = 180e6 if ON_GPU else 1e5  # bytes of inputs to go round among
BATCH = 128 if ON_GPU else 4
#: Channels and pixels a side of the three stages.
STAGES = ((16, 32), (32, 16), (64, 8)) if ON_GPU else ((16, 8),)
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
if not ON_GPU:  # elsewhere they crawl
    del FORMATS["bf16"], FORMATS["fp16"]
DEPTHS = (20, 56) if ON_GPU else (8,)
LONG = 2000  # steps at most that a network here is trained


class Log:
    """Where a part's measurements go: a line of JSON each, so that none is lost with the part."""

    def __init__(self, path: Path, part: str) -> None:
        self.path = path
        self.part = part
        self.calls: dict[str, Call] = {}  # timed, their kernels not yet named

    def write(self, what: str, **cells: object) -> None:
        """A row: value and unit, or error, or skipped; and perhaps a note."""
        with self.path.open("a") as file:
            file.write(json.dumps({"part": self.part, "what": what, **cells}) + "\n")

    def attempt(self, what: str, measure: Callable[[], Any], gpu: bool = False) -> Any:
        """What ``measure`` returns; None, and a row that says why, if it fails or has no GPU."""
        if gpu and not ON_GPU:
            self.write(what, skipped="needs a GPU")
            return None
        try:
            return measure()
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            self.write(what, error=f"{type(error).__name__}: {first}"[:300])
            return None


def wait() -> None:
    """Until the GPU has done what it was given."""
    if ON_GPU:
        torch.cuda.synchronize()


def microseconds(calls: Sequence[Call], rounds: int) -> float:
    """Of one of ``calls``: the median of windows of ``rounds`` times all of them."""
    if not ON_GPU:
        by_the_wall(calls, 1)
        return statistics.median(by_the_wall(calls, rounds) for _ in range(WINDOWS))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are chosen and compiled before the capture
        for call in [*calls, *calls]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    windows = []
    for _ in range(WINDOWS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        windows.append(1000 * start.elapsed_time(end) / (rounds * len(calls)))
    return statistics.median(windows)


def by_the_wall(calls: Sequence[Call], rounds: int) -> float:
    """``microseconds`` of one window on a CPU."""
    started = time.perf_counter()
    for _ in range(rounds):
        for call in calls:
            call()
    return 1e6 * (time.perf_counter() - started) / (rounds * len(calls))


def kernels(call: Call) -> list[str]:
    """The names of the kernels that a call launches, in their order."""
    # Without this, a profiler after another can crash where graphs are replayed.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        wait()
    found = [event for event in profile.events() or () if event.device_type.name == "CUDA"]
    found.sort(key=lambda event: event.time_range.start)
    return [event.name for event in found]


def name_kernels(log: Log) -> None:
    """The kernels of every call that was timed: last, for a profiler may slow what follows it."""
    for what, call in log.calls.items():
        names = log.attempt(f"{what}, kernels", partial(kernels, call), True)
        if names is not None:
            log.write(f"{what}, kernels", value=len(names), unit="", note="; ".join(names))


def sets(bytes_each: float) -> int:
    """How many inputs of a size make ``COLD``."""
    return max(2, min(200, round(COLD / bytes_each)))


def activation(channels: int, side: int, kind: torch.dtype) -> Tensor:
    """Random numbers [N, C, H, W], channels-last."""
    made = torch.randn(BATCH, channels, side, side, device=DEVICE).to(kind)
    return made.contiguous(memory_format=torch.channels_last)


def inputs_and_gradients(
    channels: int, side: int, kind: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """As many pairs of activations as fill ``COLD``."""
    count = sets(2 * activation(channels, side, kind).nbytes)
    some = [activation(channels, side, kind) for _ in range(2 * count)]
    return list(zip(some[::2], some[1::2], strict=True))


def rotated(log: Log, what: str, calls: Sequence[Call], work: float = 0) -> None:
    """Time a call cold and hot; ``work`` is in floating-point operations."""
    rounds = max(1, (200 if ON_GPU else 4) // len(calls))
    for name, some, times in (("cold", calls, rounds), ("hot", calls[:1], rounds * len(calls))):
        took = microseconds(some, times)
        rate = f"{work / took / 1e6:.1f} TFLOP/s" if work else ""
        log.write(f"{what}, {name}", value=took, unit="us", note=rate)


def ceilings(log: Log) -> None:
    """The most that the device can do, and the least that a launch costs."""
    log.attempt("copy", partial(copy_rate, log))
    for name, kind in FORMATS.items():
        log.attempt(f"matrix product {name}", partial(product_rate, log, name, kind))
    log.attempt("empty nodes", lambda: nodes(log, "empty node", lambda: empty_kernel[(1,)]()), True)
    chained = partial(nodes, log, "empty node with PDL", chained_call)
    log.attempt("empty nodes with PDL", chained, True)
    one = torch.zeros(1, device=DEVICE)
    log.attempt("one-element nodes", partial(nodes, log, "one-element node", lambda: one.add_(1)))
    for channels, side in STAGES:
        name = f"elementwise {channels}x{side}x{side}"
        log.attempt(name, partial(elementwise, log, name, channels, side))


def chained_call() -> None:
    """A launch that need not wait for the end of the one before it."""
    chained_kernel[(1,)](launch_pdl=True)


def copy_rate(log: Log) -> None:
    """Far more than the L2 holds; bytes read and bytes written."""
    source = torch.randn(2**29 if ON_GPU else 2**16, device=DEVICE)
    target = torch.empty_like(source)
    took = microseconds([lambda: target.copy_(source)], 5)
    log.write("copy", value=2 * source.nbytes / took / 1e6, unit="TB/s", note="read and written")


def product_rate(log: Log, name: str, kind: torch.dtype) -> None:
    """A large matrix product of random numbers, TF32 off."""
    side = 8192 if ON_GPU else 64
    left, right = (torch.randn(side, side, device=DEVICE).to(kind) for _ in range(2))
    took = microseconds([lambda: left @ right], 3)
    log.write(f"matrix product {name}", value=2 * side**3 / took / 1e6, unit="TFLOP/s", note="")


def nodes(log: Log, what: str, call: Call) -> None:
    """A chain of launches in one graph: what a node costs, and what a replay costs besides."""
    few, many = (100, 1000) if ON_GPU else (2, 10)
    short, long = few * microseconds([call], few), many * microseconds([call], many)
    each = (long - short) / (many - few)
    log.write(what, value=each, unit="us", note=f"and {short - few * each:.1f} us a replay")


def elementwise(log: Log, name: str, channels: int, side: int) -> None:
    """One number added to an activation in bf16, in place: read once and written once."""
    first = activation(channels, side, torch.bfloat16)
    inputs = [first.clone() for _ in range(sets(first.nbytes))]
    for kind, some in (("cold", inputs), ("hot", inputs[:1])):
        calls = [partial(one.add_, 1) for one in some]
        took = microseconds(calls, max(1, 400 // len(some) if ON_GPU else 2))
        rate = f"{2 * first.nbytes / took / 1e6:.2f} TB/s"
        log.write(f"{name} ({first.nbytes / 1e6:.2f} MB), {kind}", value=took, unit="us", note=rate)


def recipe(depth: int, precision: Precision) -> Settings:
    """He et al. 2015 at its batch; no evaluation comes before the last step."""
    return Settings(
        arch=Arch(merge=Merge.residual),
        depth=depth,
        batch_size=BATCH,
        lr=0.1,
        crop_padding=4,
        flip=True,
        steps=LONG,
        eval_every=LONG,
        precision=precision,
    )


def noise() -> Images:
    """Images of CIFAR-10's form: their content does not change the time of a step."""
    count, side = (50_000, 32) if ON_GPU else (64, 8)
    generator = torch.Generator().manual_seed(0)
    shape = (count, side, side, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator)
    made = Images("noise", pixels, labels, pixels[:10], labels[:10], list("0123456789"))
    return made.to(DEVICE)


def training(settings: Settings, images: Images, engine: Engine) -> Iterator[object]:
    """A network in training, a step a turn, past its capture."""
    network = models.build(settings, images.channels, len(images.classes)).to(DEVICE)
    turns = fit(begin(network, settings), settings, images, engine=engine)
    for _ in range(WARM + 2):
        next(turns)
    return turns


def engines() -> list[Engine]:
    """Those that can be had here."""
    return [one for one in Engine if one is not Engine.auto] if ON_GPU else [Engine.eager]


def steps(log: Log) -> None:
    """Milliseconds a step: of the device, and of the host that only launches it."""
    images = noise()
    formats = (Precision.bf16, Precision.fp32) if ON_GPU else (Precision.fp32,)
    for precision, depth, engine in itertools.product(formats, DEPTHS, engines()):
        what = f"residual-{depth} {precision} {engine}"
        log.attempt(what, partial(one_network, log, what, recipe(depth, precision), images, engine))


def one_network(log: Log, what: str, settings: Settings, images: Images, engine: Engine) -> None:
    """The rows of one network."""
    turns = training(settings, images, engine)
    count = (15 if engine is Engine.eager else 150) if ON_GPU else 2
    whole, host = zip(*(window([turns], [None], count) for _ in range(WINDOWS)), strict=True)
    each = 1000 * statistics.median(whole) / count
    launched = 1000 * statistics.median(host) / count
    log.write(what, value=each, unit="ms a step", note=f"host {launched:.3f} ms")


def window(
    turns: Sequence[Iterator[object]], streams: Sequence[torch.cuda.Stream | None], count: int
) -> tuple[float, float]:
    """Seconds for ``count`` steps of each, in turn: until they are done, and until launched."""
    wait()
    started = time.perf_counter()
    for _ in range(count):
        for one, stream in zip(turns, streams, strict=True):
            with torch.cuda.stream(stream) if stream else nullcontext():
                next(one)
    launched = time.perf_counter() - started
    wait()
    return time.perf_counter() - started, launched


def streams(log: Log) -> None:
    """Images/s of several networks, as launch=lockstep runs them, against one alone."""
    images = noise()
    captured = [Engine.graph, Engine.triton] if ON_GPU else [Engine.eager]
    for engine, depth in itertools.product(captured, DEPTHS):
        what = f"residual-{depth} {engine}"
        log.attempt(what, partial(several_networks, log, what, depth, images, engine))


def several_networks(log: Log, what: str, depth: int, images: Images, engine: Engine) -> None:
    """The rows of 1, 2, 4 and 8 networks."""
    settings = recipe(depth, Precision.bf16 if ON_GPU else Precision.fp32)
    running: list[Iterator[object]] = []
    places: list[torch.cuda.Stream | None] = []
    count, alone = 60 if ON_GPU else 1, 0.0
    for wanted in (1, 2, 4, 8):
        while len(running) < wanted:
            places.append(torch.cuda.Stream() if ON_GPU else None)
            with torch.cuda.stream(places[-1]) if ON_GPU else nullcontext():
                running.append(training(settings, images, engine))
        took = statistics.median(window(running, places, count)[0] for _ in range(WINDOWS))
        rate = wanted * count * BATCH / took
        alone = alone or rate
        note = f"x{rate / alone:.2f} of one"
        log.write(f"{what}, {wanted} at a time", value=rate, unit="images/s", note=note)


def convolutions(log: Log, benchmark: bool = False) -> None:
    """Forward, dgrad and wgrad, 3x3, as many channels out as in."""
    torch.backends.cudnn.benchmark = benchmark
    for (channels, side), (name, kind) in itertools.product(STAGES, FORMATS.items()):
        what = f"{channels}x{side}x{side} {name}"
        log.attempt(what, partial(convolution, log, what, channels, side, kind))
    name_kernels(log)


def searched(log: Log) -> None:
    """``convolutions`` by the kernels that a search finds fastest."""
    convolutions(log, benchmark=True)


def convolution(log: Log, what: str, channels: int, side: int, kind: torch.dtype) -> None:
    """The rows of one shape in one format."""
    weight = torch.randn(channels, channels, 3, 3, device=DEVICE).to(kind)
    weight = weight.contiguous(memory_format=torch.channels_last)
    pairs = inputs_and_gradients(channels, side, kind)
    work = 2.0 * BATCH * side**2 * channels**2 * 9
    for name, mask in (("forward", None), ("dgrad", (True, False)), ("wgrad", (False, True))):
        calls = [partial(convolve, x, dy, weight, mask) for x, dy in pairs]
        log.attempt(f"{name} {what}", partial(rotated, log, f"{name} {what}", calls, work))
        log.calls[f"{name} {what}"] = calls[0]


def convolve(x: Tensor, dy: Tensor, weight: Tensor, mask: tuple[bool, bool] | None) -> object:
    """The convolution, or its gradient for the inputs or the weights."""
    one = [1, 1]
    if mask is None:
        return torch.conv2d(x, weight, None, one, one)
    wanted = [*mask, False]
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, one, one, one, False, [0, 0], 1, wanted
    )


def norms(log: Log) -> None:
    """Of one shape in one format: normalisation alone, and with addition and ReLU."""
    for (channels, side), (name, kind) in itertools.product(STAGES, FORMATS.items()):
        what = f"{channels}x{side}x{side} {name}"
        log.attempt(what, partial(normalisation, log, what, channels, side, kind))
    name_kernels(log)


def normalisation(log: Log, what: str, channels: int, side: int, kind: torch.dtype) -> None:
    """The rows of one shape in one format, each forward and backward together."""
    norm = nn.BatchNorm2d(channels).to(DEVICE)
    pairs = inputs_and_gradients(channels, side, kind)
    for name, single in (("native", native_norm), ("cuDNN", cudnn_norm)):
        calls = [partial(single, norm, x, dy) for x, dy in pairs]
        row = f"{name} norm {what}"
        log.attempt(row, partial(rotated, log, row, calls), name == "cuDNN")
        log.calls[row] = calls[0]
    for skipped in (False, True):
        words = f"norm{', addition' if skipped else ''}, ReLU {what}"
        calls = [partial(activated, torch_activation, norm, x, dy, skipped) for x, dy in pairs]
        log.attempt(f"torch {words}", partial(rotated, log, f"torch {words}", calls))
        if kind is torch.float16:  # for which resexp has no kernels
            continue
        own = [partial(activated, own_activation, norm, x, dy, skipped) for x, dy in pairs]
        log.attempt(f"own {words}", partial(rotated, log, f"own {words}", own), True)


def native_norm(norm: nn.BatchNorm2d, x: Tensor, dy: Tensor) -> object:
    """By torch's own kernels, forward and backward."""
    averages = norm.running_mean, norm.running_var
    _, *saved = torch.ops.aten.native_batch_norm(
        x, norm.weight.detach(), norm.bias.detach(), *averages, True, 0.1, norm.eps
    )
    everything = [True, True, True]
    return torch.ops.aten.native_batch_norm_backward(
        dy, x, norm.weight.detach(), *averages, *saved, True, norm.eps, everything
    )


def cudnn_norm(norm: nn.BatchNorm2d, x: Tensor, dy: Tensor) -> object:
    """By cuDNN's kernels, which torch does not take for every format."""
    averages = norm.running_mean, norm.running_var
    _, mean, variance, reserve = torch.ops.aten.cudnn_batch_norm(
        x, norm.weight.detach(), norm.bias.detach(), *averages, True, 0.1, norm.eps
    )
    return torch.ops.aten.cudnn_batch_norm_backward(
        x, dy, norm.weight.detach(), *averages, mean, variance, norm.eps, reserve
    )


def activated(
    function: Callable[[Tensor, nn.BatchNorm2d, Tensor | None], Tensor],
    norm: nn.BatchNorm2d,
    x: Tensor,
    dy: Tensor,
    skipped: bool,
) -> object:
    """relu(norm(x) + skip) forward and backward; the skip is ``dy``, to read no third input."""
    x, skip = x.detach().requires_grad_(), dy.detach().requires_grad_() if skipped else None
    wanted = [x, norm.weight, norm.bias, *([skip] if skip is not None else [])]
    return torch.autograd.grad(function(x, norm, skip), wanted, dy)


def torch_activation(x: Tensor, norm: nn.BatchNorm2d, skip: Tensor | None) -> Tensor:
    """By torch's operations, as the engines eager and graph do."""
    y = torch.batch_norm(
        *(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, 0.1, norm.eps),
        torch.backends.cudnn.enabled,
    )
    return torch.relu(y if skip is None else y + skip)


def own_activation(x: Tensor, norm: nn.BatchNorm2d, skip: Tensor | None) -> Tensor:
    """By resexp's kernels, as the engine triton does."""
    from resexp.train.engine.kernels import norm_act

    return norm_act(x, norm, skip, relu=True)


PARTS: dict[str, Callable[[Log], None]] = {
    "ceilings": ceilings,
    "steps": steps,
    "streams": streams,
    "convolutions": convolutions,
    "searched": searched,
    "norms": norms,
}


def perform(part: str, path: Path) -> None:
    """One part, in this process."""
    prepare(1, False, DEVICE)
    PARTS[part](Log(path, part))


def perform_apart(part: str, path: Path, seconds: float) -> None:
    """One part in a process of its own, which is ended after so many seconds."""
    log = Log(path, part)
    words = [sys.executable, __file__, "--dry", "--alone", part, "--output", str(path)]
    try:
        done = subprocess.run(words, timeout=seconds, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        log.write(part, error=f"stopped after {seconds:.0f} s: what is missing was not reached")
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        log.write(part, error=f"ended with exit code {done.returncode}: {last}"[:300])


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    head = f"  {row['what']:<46} "
    if "value" not in row:
        return head + (f"FAILED {row['error']}" if "error" in row else row["skipped"])
    return head + f"{row['value']:>12,.4g} {row['unit']:<10} {row['note']}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="file for all of it, JSON")
    parser.add_argument("--seconds", type=float, default=180.0, help="for all parts together")
    parser.add_argument("--dry", action="store_true", help="without a GPU too, at tiny sizes")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one part, here
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if not ON_GPU and not options.dry:
        print("microbench: PyTorch finds no GPU here; --dry tries it on the CPU", file=sys.stderr)
        return 2
    if options.alone:
        perform(options.parts[0], options.output)
        return 0
    return report(options.parts or list(PARTS), options.seconds, options.output)


def report(parts: list[str], seconds: float, output: Path | None) -> int:
    """Carry out the parts, print their rows, keep all in ``output``; 1 if something failed."""
    started = time.monotonic()
    about = environment(Settings(), DEVICE, 0)
    kept = {key: about[key] for key in ("torch", "cuda", "cudnn", "device_name", "git_commit")}
    result: dict[str, Any] = {"kind": "microbench", "on_gpu": ON_GPU, **kept, "rows": []}
    print(f"{about['device_name']}, torch {about['torch']}, cuda {about['cuda']}", flush=True)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "rows"
    for left, part in zip(range(len(parts), 0, -1), parts, strict=True):
        remaining = seconds - (time.monotonic() - started)
        path.write_text("")
        perform_apart(part, path, max(1.0, remaining if left == 1 else remaining / 2))
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        shown = [row for row in rows if row.get("unit") != ""]  # names of kernels
        print("\n".join([part, *map(line, shown)]), flush=True)
        result["rows"] += rows
        result["seconds"] = time.monotonic() - started
        if output:
            output.write_text(json.dumps(result, indent=1) + "\n")
    folder.cleanup()
    return int(any("error" in row for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
