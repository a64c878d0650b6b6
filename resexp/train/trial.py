"""``engine=auto``: the fastest engine whose first steps are right, found by trying each."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resexp.data import Images
from resexp.models.merges import drawn
from resexp.settings import Engine, Precision, Settings, UsageError
from resexp.train.engine import WARM, check_engine
from resexp.train.fit import begin, fit

#: Runs shorter than this are not worth a trial, which takes the time of some hundred steps.
WORTH = 1_000
CHECKED = WARM + 2  # steps whose numbers are compared: of a captured engine two are replays
TIMED = 30  # steps more that are timed
#: An engine may be this many times as far from the next higher precision as eager is ...
ALLOWED = 2.0
FLOOR = 1e-5  # ... and this far anyway: relative to the change of the weights
GPU = "cuda"  # where there is something to choose
HIGHER = {Precision.bf16: Precision.fp32, Precision.fp32: Precision.fp64}


@dataclass(frozen=True, slots=True)
class Trial:
    """How an engine did at the start of a run."""

    engine: Engine
    milliseconds: float  # a step
    distance: float  # of the weights' change from the next higher precision's, relative
    right: bool


def choose(settings: Settings, data: Images, network: nn.Module) -> tuple[Engine, list[Trial]]:
    """The engine to train ``network`` with, from its initial weights, and what was tried.

    On a CPU, for short runs, for several ranks, and for networks that draw at random, ``auto`` is
    eager, untried. An engine that fails, or needs memory that is not there, is left out.
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
    except torch.OutOfMemoryError:  # one network alone may still have room
        return Engine.eager, []
    return min(
        (one for one in trials if one.right), key=lambda one: one.milliseconds
    ).engine, trials


def tried(settings: Settings, data: Images, network: nn.Module) -> list[Trial]:
    """A trial of every engine that this device has; eager's comes first, and is right."""
    device = data.train_images.device
    truth, _ = first_steps(replace(settings, precision=HIGHER[settings.precision]), data, network)
    trials: list[Trial] = []
    for engine in (Engine.eager, Engine.graph, Engine.triton):
        try:
            check_engine(replace(settings, engine=engine), device)
        except UsageError:
            continue
        change, milliseconds = first_steps(settings, data, network, engine, TIMED)
        apart = distance(change, truth)
        right = not trials or apart <= ALLOWED * trials[0].distance + FLOOR
        trials.append(Trial(engine, milliseconds, apart, right))
    return trials


def first_steps(
    settings: Settings,
    data: Images,
    network: nn.Module,
    engine: Engine = Engine.eager,
    timed: int = 0,
) -> tuple[Tensor, float]:
    """The change of the weights over CHECKED steps, flat, in float64, and milliseconds a step.

    The network itself stays as it is.
    """
    device, steps = data.train_images.device, CHECKED + timed
    long = replace(settings, steps=max(settings.steps, steps + 1), eval_every=steps + 1)
    state = begin(copy.deepcopy(network).to(device), long)
    start = state.optimizer.weights.to(torch.float64, copy=True)
    turns = fit(state, long, data, engine=engine)
    for _ in range(CHECKED):
        next(turns)
    change = state.optimizer.weights.double() - start
    wait(device)
    started = time.perf_counter()
    for _ in range(timed):
        next(turns)
    wait(device)
    return change, 1000 * (time.perf_counter() - started) / max(timed, 1)


def distance(change: Tensor, truth: Tensor) -> float:
    """How far a change is from the true one, relative to that; infinitely if it is not finite."""
    apart = ((change - truth).norm() / truth.norm()).item()
    return apart if math.isfinite(apart) else math.inf


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
