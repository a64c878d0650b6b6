"""The numbers that decide how an engine is written for a GPU, each prediction's premise.

    python scripts/microbench.py [--output FILE] [--dry] [PART...]

- nodes: what an empty kernel costs in a CUDA graph, with programmatic dependent launch (PDL) too
- elementwise: one number added to an activation in bf16, read once and written once
- convolutions: cuDNN's three at the three stages of He et al. 2015, chosen by a search as in a run
- norms: batch normalisation alone, and with addition and ReLU: native, torch's choice, resexp's

Kernels are timed in graphs of many launches, by the GPU's clock, medians of five. ``cold`` goes
round among inputs of three times the L2 together; ``hot`` stays with one. What fails costs itself
alone, and FILE (JSON) is written after every row, so that none is lost with what follows. Whole
steps, streams and peaks: resexp bench. Exit code: 1 if something failed, 2 without a GPU; ``--dry``
tries there what a CPU can, tiny.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from resexp.runs.provenance import environment
from resexp.settings import Settings
from resexp.train.device import prepare, wait

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
Timing = tuple[str, Sequence[Call], float]  # what, calls in turn, FLOPs or bytes of one

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
WINDOWS = 5
LAUNCHES = 400 if ON_GPU else 8  # in a graph
COLD = 180e6 if ON_GPU else 1e5  # bytes of inputs to go round among
BATCH = 128 if ON_GPU else 4
STAGES = ((16, 32), (32, 16), (64, 8)) if ON_GPU else ((16, 8),)  # channels, pixels a side
FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32} if ON_GPU else {"fp32": torch.float32}


def microseconds(calls: Sequence[Call], launches: int) -> float:
    """Of one of ``calls``, carried out in turn: the median over windows of so many launches."""
    turns = list(itertools.islice(itertools.cycle(calls), launches))

    def act() -> None:
        for call in turns:
            call()

    if ON_GPU:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are chosen and compiled before the capture
            for call in [*calls, *calls]:
                call()
        wait(DEVICE)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            act()
    replay = graph.replay if ON_GPU else act
    replay()
    return statistics.median(window(replay) for _ in range(WINDOWS)) / launches


def window(replay: Call) -> float:
    """Microseconds of one call, by the GPU's clock if there is one."""
    if not ON_GPU:
        started = time.perf_counter()
        replay()
        return 1e6 * (time.perf_counter() - started)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end)


def activations(channels: int, side: int, kind: torch.dtype, each: int = 1) -> list[list[Tensor]]:
    """Groups of ``each`` random activations [N, C, H, W], channels-last: as many as fill COLD."""

    def one() -> Tensor:
        x = torch.randn(BATCH, channels, side, side, device=DEVICE)
        return x.to(kind, memory_format=torch.channels_last)

    groups = round(COLD / (each * one().nbytes))
    return [[one() for _ in range(each)] for _ in range(max(2, min(200, groups)))]


def nodes() -> Iterator[Timing]:
    """Launches that do nothing, or next to it."""
    if ON_GPU:
        yield "empty node", [lambda: empty_kernel[(1,)]()], 0
        yield "empty node with PDL", [lambda: chained_kernel[(1,)](launch_pdl=True)], 0
    one = torch.zeros(1, device=DEVICE)
    yield "one-element node", [lambda: one.add_(1)], 0


def elementwise() -> Iterator[Timing]:
    """In place, at the three stages."""
    for channels, side in STAGES:
        some = [x for (x,) in activations(channels, side, torch.bfloat16)]
        calls = [partial(x.add_, 1) for x in some]
        yield f"elementwise {channels}x{side}x{side}", calls, 2 * some[0].nbytes


def convolutions() -> Iterator[Timing]:
    """Forward, dgrad and wgrad, 3x3, as many channels out as in."""
    for (channels, side), (name, kind) in itertools.product(STAGES, FORMATS.items()):
        weight = torch.randn(channels, channels, 3, 3, device=DEVICE)
        weight = weight.to(kind, memory_format=torch.channels_last)
        pairs = activations(channels, side, kind, 2)
        work = 2.0 * BATCH * side**2 * channels**2 * 9
        forward = [partial(torch.conv2d, x, weight, padding=1) for x, _ in pairs]
        yield f"forward {channels}x{side}x{side} {name}", forward, work
        for gradient, mask in (("dgrad", [True, False, False]), ("wgrad", [False, True, False])):
            rest = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
            backward = torch.ops.aten.convolution_backward
            calls = [partial(backward, dy, x, weight, None, *rest) for x, dy in pairs]
            yield f"{gradient} {channels}x{side}x{side} {name}", calls, work


def norms() -> Iterator[Timing]:
    """Forward and backward together: alone, with ReLU, with addition and ReLU."""
    ways = [("native", ""), ("torch", ""), ("torch", ", ReLU"), ("torch", ", addition, ReLU")]
    ways += [("resexp", ", ReLU"), ("resexp", ", addition, ReLU")] if ON_GPU else []
    for (channels, side), (name, kind) in itertools.product(STAGES, FORMATS.items()):
        norm = nn.BatchNorm2d(channels).to(DEVICE)
        pairs = activations(channels, side, kind, 2)
        for whose, after in ways:
            calls = [partial(normalised, norm, x, dy, whose, after) for x, dy in pairs]
            yield f"{whose} norm{after} {channels}x{side}x{side} {name}", calls, 0


def normalised(norm: nn.BatchNorm2d, x: Tensor, dy: Tensor, whose: str, after: str) -> object:
    """``whose``: torch takes cuDNN's kernels where they know the format, or its native ones; resexp
    has kernels for the whole, as engine=triton. The addition is of ``dy``, to read no third input.
    """
    x = x.detach().requires_grad_()
    skip = dy.detach().requires_grad_() if "addition" in after else None
    if whose == "resexp":
        from resexp.train.engine.kernels import norm_act

        y = norm_act(x, norm, skip, relu=True)
    else:
        vectors = norm.weight, norm.bias, norm.running_mean, norm.running_var
        y = torch.batch_norm(x, *vectors, True, 0.1, norm.eps, whose == "torch")
        y = y if skip is None else y + skip
        y = torch.relu(y) if after else y
    wanted = [x, norm.weight, norm.bias, *([skip] if skip is not None else [])]
    return torch.autograd.grad(y, wanted, dy)


PARTS = {one.__name__: one for one in (nodes, elementwise, convolutions, norms)}


def measured(part: str, what: str, calls: Sequence[Call], work: float) -> dict[str, object]:
    """The row of one measurement, or its error."""
    row: dict[str, object] = {"part": part, "what": what}
    try:
        row["us"] = took = microseconds(calls, LAUNCHES)
        if part == "nodes":  # the difference of a long graph and a short one, which has the replay
            few = LAUNCHES // 4
            short = few * microseconds(calls, few)
            row["us"] = each = (LAUNCHES * took - short) / (LAUNCHES - few)
            row["us_replay"] = short - few * each
        elif work:
            rate = "tflop_per_second" if part == "convolutions" else "tb_per_second"
            row[rate] = work / took / 1e6
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return row


def rows(parts: Sequence[str]) -> Iterator[dict[str, object]]:
    """Every measurement, cold and hot where there are several inputs."""
    for part in parts:
        for what, calls, work in PARTS[part]():
            yield measured(part, what + (", cold" if len(calls) > 1 else ""), calls, work)
            if len(calls) > 1:
                yield measured(part, f"{what}, hot", calls[:1], work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="file for all of it, JSON")
    parser.add_argument("--dry", action="store_true", help="without a GPU too, at tiny sizes")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if not ON_GPU and not options.dry:
        print("microbench: PyTorch finds no GPU here; --dry tries it on the CPU", file=sys.stderr)
        return 2
    prepare(1, Settings(), DEVICE)
    about = environment(Settings(), DEVICE, 0)
    kept = {key: about[key] for key in ("torch", "cuda", "cudnn", "device_name", "git_commit")}
    result: dict[str, object] = {"kind": "microbench", "on_gpu": ON_GPU, **kept, "rows": []}
    print(f"{about['device_name']}, torch {about['torch']}, cuda {about['cuda']}", flush=True)
    done = []
    for row in rows(options.parts or list(PARTS)):
        numbers = [f"{row[key]:9.4g} {key}" for key in row if key not in ("part", "what", "error")]
        failed = [f"FAILED {row['error']}"] if "error" in row else []
        print(f"  {row['what']:<46} {'  '.join([*numbers, *failed])}", flush=True)
        done.append(row)
        if options.output:
            options.output.write_text(json.dumps(result | {"rows": done}, indent=1) + "\n")
    return int(any("error" in row for row in done))


if __name__ == "__main__":
    sys.exit(main())
