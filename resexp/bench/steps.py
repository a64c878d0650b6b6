"""``resexp bench``: how fast the steps of training are, against an ordinary loop and the device.

Every combination of the settings typed, with every engine that the device has, is timed as a run
takes its steps (resexp.train.fit, batches included, evaluations left out), and beside it the same
network in the loop of a tutorial (resexp.bench.baseline), in the same process, on as many threads.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn
from torch.profiler import ProfilerActivity, profile

from resexp import data as sets
from resexp import models
from resexp.bench import baseline as ordinary
from resexp.bench import roofline
from resexp.data import Images
from resexp.data.stream import Streamed, workers
from resexp.launch.progress import talk
from resexp.runs import run as task
from resexp.runs.provenance import environment, peak_memory_mb
from resexp.runs.records import finite, first_line, write_atomically
from resexp.settings import Engine, Job, Precision, UsageError
from resexp.settings.choices import alternatives
from resexp.train.device import check_precision, choose_device, prepare, threads_for, wait
from resexp.train.engine.graph import WARM, check_engine, check_repeats
from resexp.train.fit import begin, fit

#: What is measured unless other values are typed.
USUAL = ["arch=residual", "recipe=he2015"]
USUAL_ON = {"cpu": ["depth=8,20"], "cuda": ["depth=20,56", "precision=fp32,bf16"]}
NOISE, SHAPE, CLASSES = 10_000, (32, 32, 3), 10  # images, unless a set is typed: CIFAR-10's form
EVERY = 500  # steps between evaluations, as in He et al. 2015's recipe
FOR_EVER = 10**9  # steps
RATE = 1e-4  # of learning: small, so that no network diverges, and it costs no time
WINDOWS = 5
EXAMINED = 10  # test images: evaluations are not timed, so they need not be long
ORDINARY = "ordinary"


@dataclass(frozen=True, slots=True)
class Case:
    """A loop to be timed."""

    network: str  # residual-20, and what else tells it from the others
    engine: str  # or ordinary
    job: Job

    @property
    def compared(self) -> str:
        """What decides the ordinary loop that it is compared with."""
        settings = self.job.settings
        return repr(replace(settings, engine=Engine.eager, precision=Precision.fp32, seed=0))


@dataclass(slots=True)
class Plan:
    """What is measured, and what cannot be."""

    cases: list[Case]
    left_out: list[str]  # sentences
    device: torch.device
    noise: bool  # the images; else those of each job's data


@dataclass(slots=True)
class Loop:
    """Something that takes a step of training a turn; every EVERY-th may evaluate too."""

    turns: Iterator[object]
    stream: torch.cuda.Stream | None = None  # of a GPU, where several loops take turns
    taken: int = 0  # steps

    def turn(self) -> None:
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            next(self.turns)
        self.taken += 1


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a step (of each loop, where several take turns) over some windows."""

    median: float
    least: float
    greatest: float


@dataclass(kw_only=True, slots=True)
class Row:
    """How a loop did. What a roofline says is of its precision."""

    network: str
    arch: str
    depth: int
    data: str
    image: list[int]  # height, width, channels
    batch: int
    threads: int
    engine: str  # or ordinary
    precision: str
    milliseconds: float  # a step, median
    milliseconds_least: float
    milliseconds_greatest: float
    images_per_second: float
    times_ordinary: float | None  # as fast as the ordinary loop
    gflop: float  # of a step
    gb: float  # that a step moves at the least
    tflop_per_second: float
    gb_per_second: float  # of the least traffic
    roofline_milliseconds: float
    share_of_roofline: float  # 0 to 1
    kernels: int | None = None  # with copies and fills, of a step on a GPU
    memory_mb: float | None = None  # of a GPU at most, beside the images


@dataclass(slots=True)
class Measured:
    """What there is so far."""

    rows: list[Row] = field(default_factory=list)
    lockstep: list[dict[str, Any]] = field(default_factory=list)
    peaks: dict[tuple[str, int], roofline.Peak] = field(default_factory=dict)  # precision, threads
    failed: list[str] = field(default_factory=list)  # sentences


def perform(
    words: Sequence[str],
    compose: Callable[[Sequence[str]], Job],
    command: str,
    seconds: float,
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure and return all there is to say; ``output`` holds what is known after every row.

    ``seconds`` is the timing of each loop. Raises UsageError, before anything is measured, if
    nothing of what was typed can be.
    """
    check_output(output)
    plan = planned(words, compose)
    measured, load = Measured(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    first = plan.cases[0].job.settings
    where = environment(first, plan.device, threads=0)
    for one in ("engine", "precision", "threads"):  # each row has its own
        del where[one]

    def result() -> dict[str, Any]:
        peaks = [
            {
                "precision": precision,
                "threads": count,
                "tflop_per_second": one.flops / 1e12,
                "gb_per_second": one.bytes / 1e9,
            }
            for (precision, count), one in measured.peaks.items()
        ]
        found = {
            "command": command,
            "measured": task.now(),
            "seconds": seconds,
            "windows": WINDOWS,
            "load": load,
            "workers": workers(first.data.workers),
            "peaks": peaks,
            "rows": [asdict(row) for row in measured.rows],
            "lockstep": measured.lockstep,
            "left_out": plan.left_out,
            "failed": measured.failed,
            "environment": where,
        }
        return dict(finite(found))

    columns = (TextColumn("bench"), BarColumn(bar_width=16), TextColumn("{task.description}"))
    with Progress(*columns, console=talk, transient=True, disable=not talk.is_terminal) as progress:
        bar = progress.add_task("", total=1)
        for done, of, what in measure(plan, seconds, measured):
            progress.update(bar, completed=done, total=of, description=what)
            if output is not None:
                write_atomically(output, json.dumps(result(), indent=1) + "\n")
    return result()


def check_output(output: Path | None) -> None:
    """Raise UsageError if the file cannot be written."""
    if output is None:
        return
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise UsageError(f"{output} cannot be written. Give --output a file in a folder of yours.")


def planned(words: Sequence[str], compose: Callable[[Sequence[str]], Job]) -> Plan:
    """The cases that ``words`` describe; engine=auto, the default, is every engine there is.

    Raises UsageError if none of them can be measured here.
    """
    given = {word.partition("=")[0] for word in words}
    chosen = [*(word for word in USUAL if not stands(word, given)), *words]
    device = choose_device(compose([alternatives(word)[0] for word in chosen]).settings.device)
    usual = [word for word in USUAL_ON[device.type] if not stands(word, given)]
    swept = [alternatives(word) for word in [*usual, *chosen]]
    if any(len(one) > 1 and one[0].startswith("device=") for one in swept):
        raise UsageError("device has several values. Give one.")
    plan = Plan([], [], device, noise=not given & {"data", "experiment"})
    found = [
        Case(name(job, [word for word, others in choice if others]), job.settings.engine, job)
        for choice in itertools.product(*([(w, len(one) > 1) for w in one] for one in swept))
        for job in with_engines(compose([word for word, _ in choice]))
    ]
    order = list(dict.fromkeys(case.network for case in found))
    seen: set[str] = set()
    for case in sorted(found, key=lambda case: order.index(case.network)):
        if (why := refusal(case.job, plan)) is not None:
            plan.left_out += [] if why in plan.left_out else [why]
            continue
        if case.compared not in seen:
            seen.add(case.compared)
            plan.cases.append(replace(case, engine=ORDINARY))
        plan.cases.append(case)
    if not plan.cases:
        raise UsageError(plan.left_out[0])
    return plan


def stands(word: str, given: set[str]) -> bool:
    """Whether what was typed says this already; an experiment says which recipe."""
    key = word.partition("=")[0]
    return key in given or (key == "recipe" and "experiment" in given)


def name(job: Job, swept: Sequence[str]) -> str:
    """What tells a network from the others: residual-20 width=32."""
    apart = ("arch", "depth", "engine", "precision")
    more = [word for word in swept if word.partition("=")[0] not in apart]
    return " ".join([f"{job.arch}-{job.settings.depth}", *more])


def with_engines(job: Job) -> list[Job]:
    """The job with its engine, or with every one where that is ``auto``."""
    if job.settings.engine is not Engine.auto:
        return [job]
    engines = [engine for engine in Engine if engine is not Engine.auto]
    return [replace(job, settings=replace(job.settings, engine=engine)) for engine in engines]


def refusal(job: Job, plan: Plan) -> str | None:
    """Why a job cannot be measured here, if it cannot.

    Raises UsageError where it could not be anywhere.
    """
    settings = job.settings
    if models.task(settings.arch.family) != "classification":
        raise UsageError(f"arch={job.arch} learns masks. resexp bench times classifiers.")
    if not plan.noise:
        task.check_task(job)
        sets.check_present(settings.data)
    images = images_of(job, plan)
    if isinstance(images.train_images, Streamed):
        raise UsageError(f"{images.name} is streamed. Use data.stream=never, or a smaller set.")
    if settings.batch_size > len(images.train_labels):
        most = len(images.train_labels)
        raise UsageError(
            f"batch_size={settings.batch_size}, but there are {most:,} images. Use at most {most}."
        )
    network = models.structure(settings, images.channels, len(images.classes), images.size)
    try:
        check_precision(settings.precision, plan.device)
        check_engine(settings, plan.device)
        check_repeats(settings.engine, job.arch, network)
    except UsageError as why:
        return str(why)
    return None


def images_of(job: Job, plan: Plan) -> Images:
    """A job's images on the device: seeded noise, or its set's, with few to be examined."""
    if plan.noise:
        return noise(plan.device)
    found = task.load(job.settings.data, plan.device)
    few = slice(EXAMINED)
    return replace(found, test_images=found.test_images[few], test_labels=found.test_labels[few])


@cache
def noise(device: torch.device) -> Images:
    """Images of CIFAR-10's form: what they show costs no time."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (NOISE, *SHAPE), np.uint8)).to(device)
    labels = torch.from_numpy(random.integers(0, CLASSES, NOISE)).to(device)
    few = slice(EXAMINED)
    classes = [str(one) for one in range(CLASSES)]
    return Images("noise", pixels, labels, pixels[few], labels[few], classes)


def measure(plan: Plan, seconds: float, measured: Measured) -> Iterator[tuple[int, int, str]]:
    """Fill ``measured``; says before each piece of work how many are done, of how many, and what.

    Each loop is timed alone first, then those that can in lockstep; kernels are counted last, for a
    profiler may slow what comes after it. What fails is said, and the rest goes on.
    """
    on_gpu = plan.device.type == "cuda"
    groups = together(plan) if on_gpu else []
    total, done = len(plan.cases) * (2 if on_gpu else 1) + len(groups), 0
    compared: dict[str, float] = {}  # milliseconds of the ordinary loops
    rows: list[tuple[Case, Row]] = []
    for case in plan.cases:
        what = f"{case.network} {case.engine}"
        yield done, total, what
        with tolerated(what, measured):
            row = timed_row(case, plan, seconds, measured)
            if case.engine == ORDINARY:
                compared[case.compared] = row.milliseconds
            if case.compared in compared:
                row.times_ordinary = compared[case.compared] / row.milliseconds
            rows.append((case, row))
            measured.rows.append(row)
        done += 1
    for group in groups:
        what = f"{len(group)} networks in lockstep, {group[0].engine}"
        yield done, total, what
        with tolerated(what, measured):
            alone = [row.milliseconds for case, row in rows if case in group]
            measured.lockstep.append(in_lockstep(group, plan, seconds, alone))
        done += 1
    for case, row in rows if on_gpu else []:
        what = f"kernels of {case.network} {case.engine}"
        yield done, total, what
        with tolerated(what, measured):
            row.kernels = kernels(case, plan)
        done += 1
    yield total, total, ""


@contextmanager
def tolerated(what: str, measured: Measured) -> Iterator[None]:
    """Note what went wrong inside and go on: minutes of a GPU may lie behind, and before."""
    try:
        yield
    except Exception as error:
        measured.failed.append(f"{what}: {first_line(error)}")


def timed_row(case: Case, plan: Plan, seconds: float, measured: Measured) -> Row:
    """Time one loop alone."""
    settings, device = case.job.settings, plan.device
    precision = Precision.fp32 if case.engine == ORDINARY else settings.precision
    images = images_of(case.job, plan)
    threads = prepare(threads_for(settings, images.size), settings.deterministic, device)
    key = precision.value, threads
    if key not in measured.peaks:
        measured.peaks[key] = roofline.peak(precision, device)
    network = models.structure(settings, images.channels, len(images.classes), images.size)
    work = roofline.least_work(
        network, images.channels, images.size, settings.batch_size, precision
    )
    with ordinary.unset() if case.engine == ORDINARY else nullcontext():
        timing, memory = timed(lambda: [loop(case, images)], seconds, device)
    spent, floor = timing.median / 1000, measured.peaks[key].seconds(work)
    return Row(
        network=case.network,
        arch=case.job.arch,
        depth=settings.depth,
        data=images.name,
        image=[*images.size, images.channels],
        batch=settings.batch_size,
        threads=threads,
        engine=case.engine,
        precision=precision.value,
        milliseconds=timing.median,
        milliseconds_least=timing.least,
        milliseconds_greatest=timing.greatest,
        images_per_second=settings.batch_size / spent,
        times_ordinary=None,
        gflop=work.flops / 1e9,
        gb=work.bytes / 1e9,
        tflop_per_second=work.flops / spent / 1e12,
        gb_per_second=work.bytes / spent / 1e9,
        roofline_milliseconds=1000 * floor,
        share_of_roofline=floor / spent,
        memory_mb=memory,
    )


def loop(case: Case, images: Images, stream: torch.cuda.Stream | None = None) -> Loop:
    """A case's loop before its first step."""
    settings = replace(
        case.job.settings,
        steps=FOR_EVER,
        eval_every=EVERY,
        clean_every=FOR_EVER,
        lr=RATE,
        warmup_lr=RATE,
    )
    if case.engine == ORDINARY:
        return Loop(ordinary.steps(settings, images, workers(settings.data.workers)))
    network = models.build(settings, images.channels, len(images.classes), images.size)
    state = begin(network.to(images.train_images.device), settings)
    return Loop(fit(state, settings, images, engine=settings.engine), stream)


def timed(
    make: Callable[[], list[Loop]], seconds: float, device: torch.device
) -> tuple[Timing, float | None]:
    """Make loops and time them, in turn if there are several; and the memory they took, in MB."""
    on_gpu, before = device.type == "cuda", 0.0
    if on_gpu:
        torch.cuda.empty_cache()  # what graphs before this one held
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 1e6
    loops = make()
    wait(device)
    clock(loops, warm(device), device)
    steps, window = 1, seconds / WINDOWS
    while (spent := clock(loops, steps, device)) < window / 4:
        steps *= 2
    steps = max(1, round(steps * window / spent))
    each = [1000 * clock(loops, steps, device) / steps for _ in range(WINDOWS)]
    memory = (peak_memory_mb(device) or 0.0) - before if on_gpu else None
    return Timing(statistics.median(each), min(each), max(each)), memory


def warm(device: torch.device) -> int:
    """Steps that are not timed: on a GPU those before a capture, it, and the first replay."""
    return WARM + 2 if device.type == "cuda" else 2


def clock(loops: Sequence[Loop], steps: int, device: torch.device) -> float:
    """Seconds of ``steps`` steps of each loop, a step of each in turn; one that evaluates is extra.

    As in a run, what is planned for the steps up to the next evaluation counts, and the device is
    waited for before it.
    """
    spent = 0.0
    while steps:
        left = EVERY - 1 - loops[0].taken % EVERY  # before the next evaluation
        if left == 0:
            for one in loops:
                one.turn()
            continue
        some = min(left, steps)
        wait(device)
        started = time.perf_counter()
        for _ in range(some):
            for one in loops:
                one.turn()
        wait(device)
        spent += time.perf_counter() - started
        steps -= some
    return spent


def together(plan: Plan) -> list[list[Case]]:
    """The cases that a sweep could train in lockstep: of one engine and precision, if several."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in plan.cases:
        if case.engine != ORDINARY:
            groups.setdefault((case.engine, case.job.settings.precision), []).append(case)
    return [group for group in groups.values() if len(group) > 1]


def in_lockstep(
    group: Sequence[Case], plan: Plan, seconds: float, alone: Sequence[float]
) -> dict[str, Any]:
    """Time networks that take turns, each on a stream of its own, as launch=lockstep does.

    ``alone`` are the milliseconds of a step of each by itself.
    """
    settings = group[0].job.settings
    size = images_of(group[0].job, plan).size
    prepare(threads_for(settings, size), settings.deterministic, plan.device)
    streams = [torch.cuda.Stream(plan.device) for _ in group]  # type: ignore[no-untyped-call]

    def make() -> list[Loop]:
        images = {repr(case.job.settings.data): images_of(case.job, plan) for case in group}
        return [
            loop(case, images[repr(case.job.settings.data)], stream)
            for case, stream in zip(group, streams, strict=True)
        ]

    timing, memory = timed(make, seconds, plan.device)
    images = sum(case.job.settings.batch_size for case in group)
    return {
        "networks": [case.network for case in group],
        "engine": group[0].engine,
        "precision": settings.precision.value,
        "milliseconds": timing.median,  # a step of every network
        "milliseconds_least": timing.least,
        "milliseconds_greatest": timing.greatest,
        "images_per_second": 1000 * images / timing.median,
        "times_one_after_another": sum(alone) / timing.median if len(alone) == len(group) else None,
        "memory_mb": memory,
    }


def kernels(case: Case, plan: Plan) -> int | None:
    """Kernels, copies and fills that one step gives a GPU; None where they cannot be counted."""
    # Without this, a profiler that ends and another that begins crash where graphs are replayed.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    settings = case.job.settings
    images = images_of(case.job, plan)
    prepare(threads_for(settings, images.size), settings.deterministic, plan.device)
    with ordinary.unset() if case.engine == ORDINARY else nullcontext():
        one = loop(case, images)
        clock([one], warm(plan.device), plan.device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            one.turn()
            wait(plan.device)
    on_device = [
        event
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return len(on_device) or None


def text(found: dict[str, Any]) -> str:
    """What was measured, for people, at most 100 columns wide."""
    place, rows = found["environment"], found["rows"]
    on_gpu = place["device"] != "cpu"
    threads = sorted({row["threads"] for row in rows})
    count = f", threads {' and '.join(map(str, threads))}" if place["device"] == "cpu" else ""
    load = "" if found["load"] is None else f", load {found['load']:.1f} before"
    lines = [f"{place['device_name']}{count}, torch {place['torch']}{load}"]
    for peak in found["peaks"]:
        on = f", threads {peak['threads']}" if len(threads) > 1 else ""
        lines.append(
            f"peak of {peak['precision']}{on}: {digits(rate(peak, on_gpu))} {unit(on_gpu)} in a "
            f"matrix product, {digits(peak['gb_per_second'])} GB/s in a copy"
        )
    for network, some in itertools.groupby(rows, key=lambda row: row["network"]):
        lines += ["", *table(network, list(some), on_gpu)]
    lines.append("")
    lines += [together_text(one) for one in found["lockstep"]]
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        last = best.get(row["network"])
        if row["engine"] != ORDINARY and (not last or row["milliseconds"] < last["milliseconds"]):
            best[row["network"]] = row
    lines += [sentence(row) for row in best.values()]
    lines += [f"left out: {why}" for why in found["left_out"]]
    lines += [f"failed: {what}" for what in found["failed"]]
    return "\n".join(lines)


def table(network: str, rows: Sequence[dict[str, Any]], on_gpu: bool) -> list[str]:
    """A heading and a line for every loop of one network."""
    titles = ["ms/step", "range", "images/s", "times", unit(on_gpu), "GB/s", "roofline"]
    widths = [7, 11, 9, 6, 7, 6, 8]
    if on_gpu:
        titles += ["kernels", "MB"]
        widths += [7, 6]
    height, width, channels = rows[0]["image"]
    what = f"batch {rows[0]['batch']} of {height}x{width}x{channels}, {rows[0]['data']}"
    lines = [
        f"{network}   {what}, {digits(rows[0]['gflop'])} GFLOP a step",
        f"{'':<15}" + "".join(f"  {t:>{w}}" for t, w in zip(titles, widths, strict=True)),
    ]
    for row in rows:
        spread = f"{digits(row['milliseconds_least'])}-{digits(row['milliseconds_greatest'])}"
        cells = [
            digits(row["milliseconds"]),
            spread,
            f"{row['images_per_second']:,.0f}",
            "-" if row["times_ordinary"] is None else f"{row['times_ordinary']:.2f}",
            digits(rate(row, on_gpu)),
            digits(row["gb_per_second"]),
            f"{100 * row['share_of_roofline']:.1f} %",
        ]
        if on_gpu:
            cells.append("-" if row["kernels"] is None else f"{row['kernels']:,}")
            cells.append(f"{row['memory_mb']:,.0f}")
        label = f"  {row['engine']} {row['precision']}"
        lines.append(
            f"{label:<15}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=True))
        )
    return lines


def sentence(row: dict[str, Any]) -> str:
    """What the fastest engine of a network means."""
    how = f"{row['engine']} {row['precision']}"
    if row["times_ordinary"] is None:
        return f"{row['network']}: {row['images_per_second']:,.0f} images/s ({how})"
    return f"{row['network']}: {row['times_ordinary']:.1f} times the ordinary loop ({how})"


def together_text(one: dict[str, Any]) -> str:
    """What came of networks in lockstep."""
    times = one["times_one_after_another"]
    ratio = f", {times:.2f} times one after another" if times else ""
    return (
        f"{len(one['networks'])} networks in lockstep ({one['engine']} {one['precision']}): "
        f"{one['images_per_second']:,.0f} images/s{ratio}, {one['memory_mb']:,.0f} MB"
    )


def unit(on_gpu: bool) -> str:
    """What rates are printed in."""
    return "TFLOP/s" if on_gpu else "GFLOP/s"


def rate(found: dict[str, Any], on_gpu: bool) -> float:
    """A row's or a peak's rate in the unit that is printed."""
    return float(found["tflop_per_second"] * (1 if on_gpu else 1000))


def digits(value: float) -> str:
    """A positive number in three digits or so."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"
