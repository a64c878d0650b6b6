"""``engine=auto``: the fastest engine whose first steps are right, found by trying each."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resexp.data import Images
from resexp.models.merges import drawn
from resexp.runs.records import first_line
from resexp.settings import Engine, Precision, Settings, UsageError
from resexp.train.device import wait
from resexp.train.engine.graph import WARM, check_engine
from resexp.train.fit import begin, fit

#: Runs shorter than this are not worth a trial, which takes the time of some hundred steps.
WORTH = 1_000
TIMED = 30  # steps
#: What rounding leaves undetermined says nothing about an engine: at the start of a plain network
#: of 56 layers float32 misses the true gradient by a fifth, and bfloat16 by more than its size.
DETERMINED = 0.1
ALLOWED = 4.0  # an engine's error, in errors of eager
GPU = "cuda"  # where there is something to choose
HIGHER = {Precision.bf16: Precision.fp32, Precision.fp32: Precision.fp64}


@dataclass(frozen=True, slots=True)
class Trial:
    """How an engine did at the start of a run."""

    engine: Engine
    milliseconds: float  # a step
    error: float  # of the first step's change of the weights, in errors of eager: see ``excess``
    failed: str | None = None  # what went wrong instead

    @property
    def right(self) -> bool:
        """Whether the engine may be used."""
        return self.error <= ALLOWED


def choose(settings: Settings, data: Images, network: nn.Module) -> tuple[Engine, list[Trial]]:
    """The engine to train ``network`` with, from its initial weights, and what was tried.

    On a CPU, for short runs, for several ranks, and for networks that draw at random, ``auto`` is
    eager, untried; so it is if there is no memory for the reference. Engines that fail are not
    right.
    """
    device = data.train_images.device
    if settings.engine is not Engine.auto:
        return settings.engine, []
    if (
        device.type != GPU
        or settings.launch.ranks > 1
        or settings.steps < WORTH
        or settings.precision not in HIGHER
        or drawn(network)
    ):
        return Engine.eager, []
    try:
        trials = tried(settings, data, network)
    except torch.OutOfMemoryError:
        return Engine.eager, []
    right = [one for one in trials if one.right]
    return min(right, key=lambda one: one.milliseconds).engine, trials


def tried(settings: Settings, data: Images, network: nn.Module) -> list[Trial]:
    """A trial of every engine that this device has; eager's comes first."""
    device = data.train_images.device
    truth, _ = first_step(replace(settings, precision=HIGHER[settings.precision]), data, network)
    eager, milliseconds = first_step(settings, data, network, timed=TIMED)
    trials = [Trial(Engine.eager, milliseconds, 1.0)]
    for engine in (Engine.graph, Engine.triton):
        try:
            check_engine(replace(settings, engine=engine), device)
        except UsageError:
            continue
        try:
            change, milliseconds = first_step(settings, data, network, engine, TIMED)
        except Exception as error:  # no compiler for Triton, no memory for a graph, and others
            trials.append(Trial(engine, math.inf, math.inf, first_line(error)))
            continue
        trials.append(Trial(engine, milliseconds, excess(change, eager, truth, settings.precision)))
    if device.type == "cuda":  # the run's own peak is what counts
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return trials


def first_step(
    settings: Settings,
    data: Images,
    network: nn.Module,
    engine: Engine = Engine.eager,
    timed: int = 0,
) -> tuple[list[Tensor], float]:
    """How a step from the initial weights changes each of them, in float64; milliseconds a step.

    An engine that captures steps has done so before: the step is the first that it replays, with
    everything set back to the start. The network itself stays as it is.
    """
    device, steps = data.train_images.device, WARM + 2 + timed
    long = replace(settings, steps=max(settings.steps, steps), eval_every=steps)
    state = begin(copy.deepcopy(network).to(device), long)
    rule, start = state.optimizer, copy.deepcopy(state.state_dict())
    turns = fit(state, long, data, engine=engine)
    for _ in range(WARM):
        next(turns)
    state.load_state_dict(start)
    state.step = WARM  # for the batches go on
    before = rule.weights.to(torch.float64, copy=True)
    next(turns)
    change = rule.views(rule.weights.double() - before)
    wait(device)
    started = time.perf_counter()
    for _ in range(timed):
        next(turns)
    wait(device)
    return change, 1000 * (time.perf_counter() - started) / max(timed, 1)


def excess(
    change: Sequence[Tensor], eager: Sequence[Tensor], truth: Sequence[Tensor], precision: Precision
) -> float:
    """The greatest error of a weight's change, in errors that eager makes in the same weight.

    Errors are distances from the next higher precision's, relative to that. An error of eager of
    some last bits counts as eight, and weights whose change is undetermined are left out.
    """
    kind = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    least = 8 * torch.finfo(kind).eps
    usual = [distance(one, true) for one, true in zip(eager, truth, strict=True)]
    found = [distance(one, true) for one, true in zip(change, truth, strict=True)]
    pairs = [(its, own) for its, own in zip(found, usual, strict=True) if own <= DETERMINED]
    return max((its / max(own, least) for its, own in pairs), default=math.inf)


def distance(change: Tensor, truth: Tensor) -> float:
    """How far a change is from the true one, relative to that; infinitely if it is not finite."""
    apart = ((change - truth).norm() / truth.norm()).item()
    return apart if math.isfinite(apart) else math.inf
