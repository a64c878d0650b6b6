"""What ``resexp bench`` times: every combination of the settings typed, by every engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from resexp import models
from resexp.data import Images, check_present
from resexp.data.stream import Streamed
from resexp.runs.run import check_task, load
from resexp.settings import Engine, Job, Precision, UsageError
from resexp.settings.choices import alternatives
from resexp.train.device import check_precision, check_threads, choose_device, prepare, threads_for
from resexp.train.engine.graph import check_engine, check_repeats

#: What is measured unless other values are typed.
USUAL = ["arch=residual", "recipe=he2015"]
USUAL_ON = {"cpu": ["depth=8,20"], "cuda": ["depth=20,56", "precision=fp32,tf32,bf16"]}
NOISE, SHAPE, CLASSES = 10_000, (32, 32, 3), 10  # images, unless a set is typed: CIFAR-10's form
BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Case:
    """A loop to be timed."""

    network: str  # residual-20, and what else tells it from the others
    engine: str  # or baseline
    job: Job
    images: Images  # on the device
    beside: str  # the network whose baseline loop does the same work

    @property
    def device(self) -> torch.device:
        return self.images.train_images.device

    def prepare(self) -> int:
        """Set this process up as the run would; returns its threads."""
        settings = self.job.settings
        threads = threads_for(settings, self.images.size)
        return prepare(threads, settings, self.device)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and what cannot be."""

    cases: list[Case]
    left_out: list[str]  # sentences
    device: torch.device


def planned(words: Sequence[str], compose: Callable[[Sequence[str]], Job]) -> Plan:
    """The cases that ``words`` describe; engine=auto, the default, is every engine there is.

    Raises UsageError if none of them can be measured here.
    """
    given = {key(word) for word in words}
    noisy = not given & {"data", "experiment"}
    given |= {"recipe"} if "experiment" in given else set()  # which has a recipe of its own
    chosen = [*(word for word in USUAL if key(word) not in given), *words]
    device = choose_device(compose([alternatives(word)[0] for word in chosen]).settings.device)
    usual = [word for word in USUAL_ON[device.type] if key(word) not in given]
    swept = [alternatives(word) for word in [*usual, *chosen]]
    if any(len(values) > 1 and key(values[0]) == "device" for values in swept):
        raise UsageError("device has several values. Give one.")
    plan = Plan([], [], device)
    baselines: dict[str, str] = {}  # what a baseline loop does, and the network that has it
    for network, job in networks(swept, compose):
        images = images_of(job, device, noisy)
        if (why := refusal(job, images, device)) is not None:
            plan.left_out.extend([] if why in plan.left_out else [why])
            continue
        plain = replace(job.settings, engine=Engine.eager, precision=Precision.fp32)
        work = repr(replace(plain, seed=0))
        if work not in baselines:
            baselines[work] = network
            case = Case(network, BASELINE, replace(job, settings=plain), images, network)
            plan.cases.append(case)
        plan.cases.append(Case(network, job.settings.engine, job, images, baselines[work]))
    if not plan.cases:
        raise UsageError(plan.left_out[0])
    return plan


def networks(
    swept: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], Job]
) -> list[tuple[str, Job]]:
    """Every combination of the words, by every engine where that is ``auto``: name and job.

    A name is residual-20, and what else tells it from the others. Jobs of one name stand together.
    """
    found: dict[str, list[Job]] = {}
    for choice in itertools.product(*swept):
        job = compose(list(choice))
        apart = [word for word, values in zip(choice, swept, strict=True) if len(values) > 1]
        more = [w for w in apart if key(w) not in ("arch", "depth", "engine", "precision")]
        name = " ".join([f"{job.arch}-{job.settings.depth}", *more])
        every = [one for one in Engine if one is not Engine.auto]
        engines = every if job.settings.engine is Engine.auto else [job.settings.engine]
        jobs = [replace(job, settings=replace(job.settings, engine=one)) for one in engines]
        found.setdefault(name, []).extend(jobs)
    return [(name, job) for name, jobs in found.items() for job in jobs]


def key(word: str) -> str:
    """What a word such as depth=20,56 sets."""
    return word.partition("=")[0]


def images_of(job: Job, device: torch.device, noisy: bool) -> Images:
    """A job's images on the device: seeded noise, or its set's.

    Raises UsageError if the job cannot be timed on any machine.
    """
    settings = job.settings
    if models.task(settings.arch.family) != "classification":
        raise UsageError(
            f"arch={job.arch} is a segmentation model. resexp bench times classifiers."
        )
    if not noisy:
        check_task(job)
        check_present(settings.data)
    images = noise(device) if noisy else load(settings.data, device)
    if isinstance(images.train_images, Streamed):
        raise UsageError(f"{images.name} is streamed. Use data.stream=never, or a smaller set.")
    if settings.batch_size > len(images.train_labels):
        most = len(images.train_labels)
        raise UsageError(
            f"batch_size={settings.batch_size}, but there are {most:,} images. Use at most {most}."
        )
    return images


@cache
def noise(device: torch.device) -> Images:
    """Images of CIFAR-10's form: what they show costs no time."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (NOISE, *SHAPE), np.uint8)).to(device)
    labels = torch.from_numpy(random.integers(0, CLASSES, NOISE)).to(device)
    classes = [str(one) for one in range(CLASSES)]
    return Images("noise", pixels, labels, pixels[:1], labels[:1], classes)


def refusal(job: Job, images: Images, device: torch.device) -> str | None:
    """Why a job cannot be timed on this device, if it cannot."""
    settings = job.settings
    network = models.structure(settings, images.channels, len(images.classes), images.size)
    try:
        check_precision(settings.precision, device)
        check_threads(settings.threads)
        check_engine(settings, device)
        check_repeats(settings.engine, job.arch, network)
    except UsageError as why:
        return str(why)
    return None


def groups(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases that a sweep could train in lockstep: of one engine and precision, if several."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if case.engine != BASELINE:
            found.setdefault((case.engine, case.job.settings.precision), []).append(case)
    return [group for group in found.values() if len(group) > 1]
