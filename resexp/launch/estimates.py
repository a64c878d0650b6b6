"""What networks hold, multiply and take: their sizes, and steps timed on the device at hand."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from resexp import data as sets
from resexp import models
from resexp.data import Images
from resexp.launch.dry_run import Estimate, to_download
from resexp.runs.records import Claim
from resexp.runs.run import load
from resexp.settings import Job, Split
from resexp.train.device import choose_device, most_threads, prepare, threads_for
from resexp.train.fit import begin, fit

TIMED_STEPS = 7
TIMED_SECONDS = 3.0  # no further step of a network is timed after them, but for its second
TIMED_FLOPS = 10**11  # of a timed step on a CPU: a second, where a whole batch may take minutes


def estimates(jobs: list[Job], claims: list[Claim]) -> list[Estimate]:
    """Parameters, FLOPs and time of each job.

    A few steps of the cheapest and of the dearest network are timed on the device at hand; between
    them the time of an image grows by its FLOPs, and evaluation is a third of a training step.
    """
    sizes = sizes_of(jobs)
    due = [index for index, claim in enumerate(claims) if claim is not Claim.done]
    due.sort(key=lambda index: sizes[index].flops)
    timed = {sizes[index].flops: index for index in due[:1] + due[-1:]}
    ends = {flops: seconds_per_image(jobs[i], sizes[i]) for flops, i in timed.items()}
    return [
        Estimate(
            job.run,
            claim.value,
            str(job.directory),
            size.parameters,
            size.flops,
            float(np.interp(size.flops, [*ends], [*ends.values()])) * work(job)
            if claim is not Claim.done
            else 0.0,
        )
        for job, claim, size in zip(jobs, claims, sizes, strict=True)
    ]


def images(job: Job) -> Images:
    """The job's data on its device; as many black images if they would have to be downloaded."""
    settings, device = job.settings.data, choose_device(job.settings.device)
    loader = sets.loader(settings.loader)
    if not (hasattr(loader, "DOWNLOAD") and hasattr(loader, "SHAPE") and to_download(settings)):
        return load(settings, device)
    (channels, size, classes), (train, test, _) = loader.SHAPE, loader.DOWNLOAD
    train = train * 9 // 10 if settings.split is Split("45k") else train
    train, test = (
        (np.zeros((count, *size, channels), np.uint8), np.zeros(count)) for count in (train, test)
    )
    return sets.from_arrays(settings.name, train, test, [*map(str, range(classes))]).to(device)


def sizes_of(jobs: list[Job]) -> list[models.Size]:
    """Those of the jobs' networks; equal ones, of several seeds or rates, are measured once."""
    known: dict[str, models.Size] = {}
    sizes = []
    for job in jobs:
        one = job.settings
        key = repr((one.arch, one.depth, one.width, one.twin, one.data))
        if key not in known:
            data = images(job)
            network = models.structure(one, data.channels, len(data.classes), data.size)
            known[key] = models.measure(network, data.channels, data.size)
        sizes.append(known[key])
    return sizes


def work(job: Job) -> float:
    """Training images of a whole run, and a third of those that are evaluated."""
    settings, data = job.settings, images(job)
    rows = -(-settings.steps // settings.eval_every)
    clean = -(-rows // settings.clean_every)
    evaluated = rows * len(data.test_labels) + clean * len(data.train_labels)
    return settings.steps * settings.batch_size + evaluated / 3


def seconds_per_image(job: Job, size: models.Size) -> float:
    """Time a few steps of ``job`` and leave nothing behind; the fastest counts.

    The first, which takes memory and prepares layers, may be five times as slow as the rest.
    """
    data = images(job)
    device = data.train_images.device
    batch = job.settings.batch_size
    if device.type == "cpu":
        batch = min(batch, max(8, TIMED_FLOPS // (3 * size.flops)))
    steps = 10 * TIMED_STEPS  # no row among those that are timed
    settings = replace(job.settings, steps=steps, eval_every=steps, batch_size=batch)
    threads = min(threads_for(settings, data.size), most_threads())  # another machine may have more
    prepare(threads, settings, device)
    network = models.build(settings, data.channels, len(data.classes), data.size)
    state = begin(network.to(device), settings)
    turns = fit(state, settings, data)
    spent: list[float] = []
    while len(spent) < 2 or (len(spent) < TIMED_STEPS and sum(spent) < TIMED_SECONDS):
        started = time.perf_counter()
        next(turns)
        state.loss_sum.item()  # waits for the device
        spent.append(time.perf_counter() - started)
    return min(spent) / batch
