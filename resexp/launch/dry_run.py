"""What a sweep would do and roughly how long it would take: ``resexp run --dry-run``."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from resexp import models
from resexp.console import clock
from resexp.data import Images
from resexp.runs.records import Claim
from resexp.runs.run import load
from resexp.settings import Job
from resexp.train.device import choose_device, prepare, threads_for
from resexp.train.fit import begin, fit

TIMED_STEPS = 3  # after one to warm up
TIMED_FLOPS = 10**11  # of a timed step on a CPU: a second, where a whole batch may take minutes


@dataclass(slots=True)
class Estimate:
    """One job before it runs."""

    job: Job
    claim: Claim
    size: models.Size
    seconds: float  # 0 for a run that is done; a resumed one counts whole


def show(jobs: list[Job], claims: list[Claim]) -> None:
    """The table of ``--dry-run``, on stdout."""
    found = estimates(jobs, claims)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("run", "state", "parameters", "MFLOPs", "about", "directory"):
        right = title in ("parameters", "MFLOPs", "about")
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for one in found:
        table.add_row(
            one.job.run,
            one.claim.value,
            f"{one.size.parameters:,}",
            f"{one.size.flops / 1e6:,.1f}",
            clock(one.seconds) if one.seconds else "-",
            str(one.job.directory),
        )
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 300
    with out.capture() as capture:
        out.print(table)
    print("\n".join(row.rstrip() for row in capture.get().splitlines()))
    due = sum(one.claim is not Claim.done for one in found)
    total = sum(one.seconds for one in found)
    out.print(f"{due} of {len(found)} to train, about {clock(total)} one after another")


def estimates(jobs: list[Job], claims: list[Claim]) -> list[Estimate]:
    """Parameters, FLOPs and time of each job.

    A few steps of the cheapest network are timed on the device at hand; the others are taken to
    cost in proportion to their FLOPs, and evaluation to cost as much a FLOP as training does.
    """
    sizes = [measured(job) for job in jobs]
    due = [index for index, claim in enumerate(claims) if claim is not Claim.done]
    pace = 0.0
    if due:
        cheapest = min(due, key=lambda index: sizes[index].flops)
        pace = seconds_per_flop(jobs[cheapest], sizes[cheapest])
    return [
        Estimate(job, claim, size, 0.0 if claim is Claim.done else pace * work(job, size))
        for job, claim, size in zip(jobs, claims, sizes, strict=True)
    ]


def images(job: Job) -> Images:
    """The job's data on its device."""
    return load(job.settings.data, choose_device(job.settings.device))


def measured(job: Job) -> models.Size:
    """The size of a job's network on its data."""
    data = images(job)
    network = models.structure(job.settings, data.channels, len(data.classes), data.size)
    return models.measure(network, data.channels, data.size)


def work(job: Job, size: models.Size) -> float:
    """FLOPs of a whole run: three forward passes a training image, one an evaluated image."""
    settings, data = job.settings, images(job)
    rows = -(-settings.steps // settings.eval_every)
    clean = -(-rows // settings.clean_every)
    evaluated = rows * len(data.test_labels) + clean * len(data.train_labels)
    return size.flops * (3 * settings.steps * settings.batch_size + evaluated)


def seconds_per_flop(job: Job, size: models.Size) -> float:
    """Time a few steps of ``job`` and leave nothing behind."""
    steps = TIMED_STEPS + 1
    data = images(job)
    device = data.train_images.device
    batch = job.settings.batch_size
    if device.type == "cpu":
        batch = min(batch, max(8, TIMED_FLOPS // (3 * size.flops)))
    settings = replace(job.settings, steps=10 * steps, eval_every=10 * steps, batch_size=batch)
    prepare(threads_for(settings, data.size), settings.deterministic, device)
    network = models.build(settings, data.channels, len(data.classes), data.size)
    state = begin(network.to(device), settings)
    turns = fit(state, settings, data)
    next(turns)
    state.loss_sum.item()  # waits for the device
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        next(turns)
    state.loss_sum.item()
    spent = time.perf_counter() - started
    return spent / (TIMED_STEPS * 3 * settings.batch_size * size.flops)
