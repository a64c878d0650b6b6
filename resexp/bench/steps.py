"""``resexp bench``: how fast the steps of training are, against a baseline loop and the device.

Every combination of the settings typed, with every engine that the device has, is timed as a run
takes its steps (resexp.train.fit, batches included, evaluations left out), and beside it the same
network in the loop of a tutorial (resexp.bench.baseline), in the same process, on as many threads.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from resexp import models
from resexp.bench import baseline, roofline
from resexp.bench.cases import BASELINE, Case, groups, planned
from resexp.console import bar_of, grid
from resexp.data.stream import workers
from resexp.runs.provenance import environment, peak_memory_mb
from resexp.runs.records import finite, first_line, write_atomically
from resexp.runs.run import now
from resexp.settings import Engine, Job, UsageError
from resexp.train.device import wait
from resexp.train.engine.graph import WARM
from resexp.train.fit import begin, fit

FOR_EVER = 10**9  # steps, and as many between evaluations: there is none
RATE = 1e-4  # of learning: small, so that no network diverges, and it costs no time
WINDOWS = 5


def perform(
    words: Sequence[str],
    compose: Callable[[Sequence[str]], Job],
    command: str,
    seconds: float,
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure and return all there is to say; ``output`` holds what is known after every row.

    ``seconds`` is the timing of each loop. What fails is noted and the rest goes on: minutes of a
    GPU may lie behind, and before. Raises UsageError, before anything is measured, if nothing of
    what was typed can be.
    """
    if output is not None and (output.is_dir() or not os.access(output.parent, os.W_OK)):
        raise UsageError(f"{output} cannot be written. Give --output a file in a folder of yours.")
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    plan = planned(words, compose)
    first = plan.cases[0].job.settings
    where = environment(first, plan.device, threads=0)
    for key in ("engine", "precision", "threads"):  # of which each row has its own
        where.pop(key, None)
    found: dict[str, Any] = {
        "command": command,
        "measured": now(),
        "seconds": seconds,
        "windows": WINDOWS,
        "load": load_before,
        "workers": workers(first.data.workers),
        "peaks": [],
        "rows": [],
        "lockstep": [],
        "left_out": plan.left_out,
        "failed": [],  # sentences
        "environment": where,
    }
    work = [(f"{c.network} {c.engine}", partial(alone, c, seconds, found)) for c in plan.cases]
    for group in groups(plan.cases) if plan.device.type == "cuda" else []:
        what = f"{len(group)} networks in lockstep, {group[0].engine}"
        work.append((what, partial(lockstep, group, seconds, found)))
    with bar_of("bench") as progress:
        bar = progress.add_task("", total=len(work))
        for what, measure in work:
            progress.update(bar, description=what)
            try:
                measure()
            except Exception as error:
                found["failed"].append(f"{what}: {first_line(error)}")
            progress.advance(bar)
            if output is not None:
                write_atomically(output, json.dumps(finite(found), indent=1) + "\n")
    return dict(finite(found))


def alone(case: Case, seconds: float, found: dict[str, Any]) -> None:
    """Time one loop alone and add its row to what was found.

    What the row says of the roofline is of its precision; the traffic is the least there can be.
    """
    settings, images, precision = case.job.settings, case.images, case.job.settings.precision
    threads = case.prepare()
    peak = roofline.peak(precision, threads, case.device)
    rates = {"tflop_per_second": peak.flops / 1e12, "gb_per_second": peak.bytes / 1e9}
    said = {"precision": precision.value, "threads": threads, **rates}
    found["peaks"] += [] if said in found["peaks"] else [said]
    network = models.structure(settings, images.channels, len(images.classes), images.size)
    batch = settings.batch_size
    work = roofline.least_work(network, images.channels, images.size, batch, precision)
    with baseline.torch_defaults() if case.engine == BASELINE else nullcontext():
        timing = timed([case], seconds)
    spent, floor = timing["milliseconds"] / 1000, work.seconds(peak)
    row: dict[str, Any] = {
        "network": case.network,
        "arch": case.job.arch,
        "depth": settings.depth,
        "data": images.name,
        "image": [*images.size, images.channels],
        "batch": batch,
        "threads": threads,
        "engine": case.engine,
        "precision": precision.value,
        **timing,
        "images_per_second": batch / spent,
        "times_baseline": None,  # as fast as the baseline loop
        "gflop": work.flops / 1e9,  # of a step
        "gb": work.bytes / 1e9,
        "tflop_per_second": work.flops / spent / 1e12,
        "gb_per_second": work.bytes / spent / 1e9,
        "roofline_milliseconds": 1000 * floor,
        "share_of_roofline": floor / spent,  # 0 to 1
        "kernels": None,  # with copies and fills, of a step on a GPU
    }
    found["rows"].append(row)
    for other in found["rows"]:
        if (other["network"], other["engine"]) == (case.beside, BASELINE):
            row["times_baseline"] = other["milliseconds"] / row["milliseconds"]
    if case.device.type == "cuda" and case.engine != BASELINE:
        row["kernels"] = kernels(case)


def lockstep(group: Sequence[Case], seconds: float, found: dict[str, Any]) -> None:
    """Time networks that take turns, each on a stream of its own, as launch=lockstep does."""
    engine, precision = group[0].engine, group[0].job.settings.precision
    group[0].prepare()
    timing = timed(group, seconds)
    took, images = timing["milliseconds"], sum(case.job.settings.batch_size for case in group)
    rows = [
        row for row in found["rows"] if (row["engine"], row["precision"]) == (engine, precision)
    ]
    apart = sum(row["milliseconds"] for row in rows)
    row = {
        "networks": [case.network for case in group],
        "engine": engine,
        "precision": precision.value,
        **timing,  # of a step of every network
        "images_per_second": 1000 * images / took,
        "times_one_after_another": apart / took if len(rows) == len(group) else None,
    }
    found["lockstep"].append(row)


def timed(cases: Sequence[Case], seconds: float) -> dict[str, Any]:
    """Milliseconds a step of each case, in turn if there are several; and MB of a GPU's memory.

    The median of some windows and their range; the memory is the most held beside the images.
    """
    device = cases[0].device
    on_gpu, before = device.type == "cuda", 0.0
    if on_gpu:
        torch.cuda.empty_cache()  # what graphs before this one held
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 1e6
    loops = [(loop(case), own_stream(cases)) for case in cases]

    def clock(steps: int) -> float:
        """Seconds of so many steps of each loop."""
        wait(device)
        started = time.perf_counter()
        for _ in range(steps):
            for one, stream in loops:
                with stream:
                    next(one)
        wait(device)
        return time.perf_counter() - started

    clock(WARM + 2 if on_gpu else 2)  # on a GPU with the capture and the first replay
    steps, window = 1, seconds / WINDOWS
    while (spent := clock(steps)) < window / 4:
        steps *= 2
    steps = max(1, round(steps * window / spent))
    each = [1000 * clock(steps) / steps for _ in range(WINDOWS)]
    return {
        "milliseconds": statistics.median(each),
        "milliseconds_least": min(each),
        "milliseconds_greatest": max(each),
        "memory_mb": (peak_memory_mb(device) or 0.0) - before if on_gpu else None,
    }


def own_stream(cases: Sequence[Case]) -> AbstractContextManager[Any]:
    """A stream of a GPU for one of several loops; one alone needs none."""
    if len(cases) == 1:
        return nullcontext()
    stream = torch.cuda.Stream(cases[0].device)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(stream)


def loop(case: Case, *, capture: bool = True) -> Iterator[object]:
    """A case's loop before its first step; it takes one a turn, and never evaluates.

    What is planned for the steps ahead is part of it, as in a run.
    """
    settings, images = case.job.settings, case.images
    settings = replace(settings, steps=FOR_EVER, eval_every=FOR_EVER, lr=RATE, warmup_lr=RATE)
    if case.engine == BASELINE:
        return baseline.steps(settings, images, workers(settings.data.workers))
    network = models.build(settings, images.channels, len(images.classes), images.size)
    state = begin(network.to(case.device), settings)
    return fit(state, settings, images, engine=Engine(case.engine), capture=capture)


def kernels(case: Case) -> int:
    """Kernels, copies and fills of one step on a GPU: the nodes of a graph of it.

    A baseline loop waits for the device in each step, so there is no graph of one.
    """
    case.prepare()
    turns = loop(case, capture=False)
    for _ in range(WARM):
        next(turns)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        next(turns)
    return nodes(graph)


def nodes(graph: torch.cuda.CUDAGraph) -> int:
    """Nodes of a graph that was kept. Raises RuntimeError if the driver does not say."""
    count = ctypes.c_size_t()
    driver = ctypes.CDLL("libcuda.so.1")
    handle = ctypes.c_void_p(graph.raw_cuda_graph())
    if failed := driver.cuGraphGetNodes(handle, None, ctypes.byref(count)):
        raise RuntimeError(f"cuGraphGetNodes: error {failed}")
    return count.value


# What is said


def text(found: dict[str, Any]) -> str:
    """What was measured, for people."""
    place, rows = found["environment"], found["rows"]
    on_gpu = place["device"] == "cuda"
    unit, scale = ("TFLOP/s", 1) if on_gpu else ("GFLOP/s", 1000)
    threads = sorted({row["threads"] for row in rows})
    count = "" if on_gpu else f", threads {' and '.join(map(str, threads))}"
    load = "" if found["load"] is None else f", load {found['load']:.1f} before"
    lines = [f"{place['device_name']}{count}, torch {place['torch']}{load}"]
    for peak in found["peaks"]:
        on = f", threads {peak['threads']}" if len(threads) > 1 else ""
        rate = digits(scale * peak["tflop_per_second"])
        lines.append(
            f"peak of {peak['precision']}{on}: {rate} {unit} in a matrix product, "
            f"{digits(peak['gb_per_second'])} GB/s in a copy"
        )
    titles, *table = columns(rows, unit, scale, on_gpu)
    of_rows = iter(table)
    for _, some in itertools.groupby(rows, key=lambda row: row["network"]):
        first, *more = some
        lines += ["", heading(first), titles, *itertools.islice(of_rows, 1 + len(more))]
    lines += [*of_rows, ""]  # what there was no room for
    lines += [lockstep_text(one) for one in found["lockstep"]]
    lines += sentences(rows)
    lines += [f"left out: {why}" for why in found["left_out"]]
    lines += [f"failed: {what}" for what in found["failed"]]
    return "\n".join(lines)


def heading(row: dict[str, Any]) -> str:
    """The network that loops are of, and its batch."""
    height, width, channels = row["image"]
    what = f"batch {row['batch']} of {height}x{width}x{channels}, {row['data']}"
    return f"{row['network']}   {what}, {digits(row['gflop'])} GFLOP a step"


def columns(rows: Sequence[dict[str, Any]], unit: str, scale: float, on_gpu: bool) -> list[str]:
    """Titles, and a line for every loop."""
    titles = ["", "ms/step", "range", "images/s", "times", unit, "GB/s", "roofline"]
    titles += ["kernels", "MB"] if on_gpu else []
    cells = [
        [
            f"  {row['engine']} {row['precision']}",
            digits(row["milliseconds"]),
            f"{digits(row['milliseconds_least'])}-{digits(row['milliseconds_greatest'])}",
            f"{row['images_per_second']:,.0f}",
            "-" if row["times_baseline"] is None else f"{row['times_baseline']:.2f}",
            digits(scale * row["tflop_per_second"]),
            digits(row["gb_per_second"]),
            f"{100 * row['share_of_roofline']:.1f} %",
            "-" if row["kernels"] is None else f"{row['kernels']:,}",
            f"{row['memory_mb'] or 0:,.0f}",
        ][: len(titles)]
        for row in rows
    ]
    spare = [one for one in (6, 9, 8, 5, 7, 2) if one < len(titles)]
    return grid(titles, cells, "<" + ">" * len(titles), spare=spare)


def sentences(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the fastest engine of each network means."""
    for network in dict.fromkeys(row["network"] for row in rows):
        engines = [r for r in rows if r["network"] == network and r["engine"] != BASELINE]
        for row in sorted(engines, key=lambda row: float(row["milliseconds"]))[:1]:
            how, times = f"({row['engine']} {row['precision']})", row["times_baseline"]
            if times is None:
                yield f"{network}: {row['images_per_second']:,.0f} images/s {how}"
            else:
                yield f"{network}: {times:.1f} times the baseline loop {how}"


def lockstep_text(one: dict[str, Any]) -> str:
    """What came of networks in lockstep."""
    times = one["times_one_after_another"]
    ratio = f", {times:.2f} times one after another" if times else ""
    return (
        f"{len(one['networks'])} networks in lockstep ({one['engine']} {one['precision']}): "
        f"{one['images_per_second']:,.0f} images/s{ratio}, {one['memory_mb']:,.0f} MB"
    )


def digits(value: float) -> str:
    """A positive number in three digits or so."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"
