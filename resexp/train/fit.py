"""The training loop, and the state it needs to go on."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.data import UNLABELLED, Images, batches
from resexp.data.stream import Streamed
from resexp.models.merges import draw, drawn
from resexp.settings import Engine, Settings
from resexp.train.engine.graph import Step, ready, use_native_norms
from resexp.train.evaluate import Evaluation, evaluation_mode, misses, per_label
from resexp.train.optimizers import OPTIMIZERS, Optimizer
from resexp.train.precision import CastWeights, autocast, weights_type
from resexp.train.ranks import ALONE, Ranks
from resexp.train.row import Row
from resexp.train.schedule import learning_rate, next_row
from resexp.train.step_inputs import StepInputs

SUMS = ("loss_sum", "wrong", "counted")  # of a state, since the last row


@dataclass(slots=True)
class State:
    """Everything that changes while a run trains: a checkpoint holds exactly this."""

    network: nn.Module
    optimizer: Optimizer
    cast_weights: CastWeights  # the weights once more, as they are multiplied with
    loss_sum: Tensor  # float64, on the device: sum of the batches' losses since the last row
    wrong: Tensor  # int64, on the device: training labels answered wrongly since the last row
    counted: Tensor  # int64, on the device: training labels since the last row
    random: list[nn.Module]  # modules whose training is random
    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # of the whole run
    due: bool = False  # the row of this step is being computed: not to be saved yet

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only, so that it loads with ``weights_only``."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in SUMS},
            "step": self.step,
            "seconds": self.seconds,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where ``saved`` stopped. Raises an error on another run's state."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name in SUMS:
            getattr(self, name).copy_(saved[name])
        self.step, self.seconds = operator.index(saved["step"]), float(saved["seconds"])
        if self.step < 0 or not math.isfinite(self.seconds):
            raise ValueError("it has no number of steps, or no time")


def begin(network: nn.Module, settings: Settings) -> State:
    """The state before the first step, on the network's device."""
    network.to(weights_type(settings.precision))
    device = next(network.parameters()).device
    optimizer = OPTIMIZERS[settings.optimizer](network, settings)
    return State(
        network=network,
        optimizer=optimizer,
        cast_weights=CastWeights(network, optimizer, settings.precision),
        loss_sum=torch.zeros((), dtype=torch.float64, device=device),
        wrong=torch.zeros((), dtype=torch.int64, device=device),
        counted=torch.zeros((), dtype=torch.int64, device=device),
        random=drawn(network),
    )


def fit(
    state: State,
    settings: Settings,
    data: Images,
    ranks: Ranks = ALONE,
    engine: Engine = Engine.eager,
    *,
    capture: bool = True,
) -> Iterator[Row | None]:
    """Train from ``state`` to the last step, one optimizer step a turn.

    Yields the row of an evaluation after the steps that have one, else None, so that the caller
    can record, show, save or stop between any two steps. ``data`` lies on the device that trains;
    a GPU has a turn between a step and its row, in which others can use it: see ``State.due``.
    A loss that is not finite ends the run with the row that shows it. Without ``capture`` the
    engine's step is not made a graph: a caller does that.
    """
    rule = state.optimizer
    statistics = batches.statistics(data.train_images, settings.normalise).to(rule.weights)
    inputs = StepInputs(settings, data, statistics, ranks, rule.rates)
    device = data.train_images.device
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    repeated = partial(ready, engine if capture else Engine.eager, pool=pool)
    step = repeated(step_of(engine, state, settings, inputs, ranks))
    evaluations = Evaluations(state, settings, data, statistics, repeated)
    origin = time.perf_counter() - state.seconds
    while state.step < settings.steps:
        first, started = state.step, time.perf_counter()
        end = next_row(settings, first)
        while state.step < end:
            inputs.prepare(state.step)
            draw(state.random, settings.seed, state.step)
            step()
            state.step += 1
            state.seconds = time.perf_counter() - origin
            if state.step < end:
                yield None
        inputs.plan(end)  # ahead, while a GPU works on these steps: batches.plan keeps it
        state.wrong.item()  # waits for the device, so that the rate below is the device's
        rate = settings.batch_size * (end - first) / (time.perf_counter() - started)
        evaluations.start()
        if computes_by_itself(device):
            state.due = True
            yield None
            state.due = False
        row = evaluations.row()
        state.seconds = row.seconds = time.perf_counter() - origin
        row.images_per_second = rate
        yield row
        if is_last(row, settings):
            return


def step_of(
    engine: Engine, state: State, settings: Settings, inputs: StepInputs, ranks: Ranks
) -> Step:
    """A step as an engine has it, before it is captured; gives the network its normalisations."""
    if engine is Engine.triton:
        from resexp.train.engine import fused, step_kernels

        fused.use_kernels(state.network)
        if step_kernels.suits(inputs):
            return partial(step_kernels.train_step, state, settings, inputs)
    elif inputs.device.type == "cuda":
        use_native_norms(state.network)
    return partial(train_step, state, settings, inputs, ranks)


def computes_by_itself(device: torch.device) -> bool:
    """Whether this process can go on while a row is computed."""
    return device.type == "cuda"


def is_last(row: Row | None, settings: Settings) -> bool:
    """Whether a run ends with this row: all its steps are done, or its loss is not finite."""
    return row is not None and (row.step == settings.steps or not math.isfinite(row.train_loss))


def train_step(state: State, settings: Settings, inputs: StepInputs, ranks: Ranks) -> None:
    """One optimizer step on the inputs's next batch.

    It reads and writes memory that stays where it is, never waits for the device, and holds no
    Python number that changes from step to step but for what ``draw`` decides: so a graph can hold
    it.
    """
    images, labels, rates = inputs.next()
    with autocast(settings.precision, images.device):
        logits = state.cast_weights.call(state.network, images)
    share = len(labels) / settings.batch_size  # 1, or this rank's part of the whole mean
    logits, labels = per_label(logits, labels)
    loss = cross_entropy(logits, labels, ignore_index=UNLABELLED)
    loss = loss if share == 1 else loss * share
    state.optimizer.collect(torch.autograd.grad(loss, state.cast_weights.leaves, allow_unused=True))
    counts = torch.stack([misses(logits.detach(), labels), (labels != UNLABELLED).sum()])
    loss, counts = ranks.add_up(state.optimizer.gradient, loss.detach(), counts)
    state.optimizer.step(rates)
    state.loss_sum += loss
    state.wrong += counts[0]
    state.counted += counts[1]


class Evaluations:
    """The rows of a run: how it does on the test set and, in some of them, on the training set.

    Between ``start`` and ``row`` a GPU computes, and the caller need not wait for it.
    """

    def __init__(
        self,
        state: State,
        settings: Settings,
        data: Images,
        statistics: batches.Statistics,
        ready: Callable[[Step], Step] | None = None,
    ) -> None:
        self.state, self.settings, self.data, self.statistics = state, settings, data, statistics

        def of(images: Tensor | Streamed, labels: Tensor) -> Evaluation:
            on_gpu = ready if images.device.type == "cuda" else None
            return Evaluation(state.network, images, labels, statistics, settings.precision, on_gpu)

        self.test = of(data.test_images, data.test_labels)
        self.clean = of(data.train_images, data.train_labels)
        self.cleaned = False

    def start(self) -> None:
        """Begin the row after ``state.step`` steps."""
        settings, step = self.settings, self.state.step
        number = math.ceil(step / settings.eval_every)
        self.cleaned = step == settings.steps or number % settings.clean_every == 0
        self.perform(self.test, *([self.clean] if self.cleaned else []))

    def perform(self, *some: Evaluation) -> None:
        with evaluation_mode(self.state.network, self.settings, self.data, self.statistics):
            for one in some:
                one.start()

    def row(self) -> Row:
        """The row that was begun, its two columns of time still 0; starts new sums."""
        state, settings = self.state, self.settings
        since = (state.step - 1) % settings.eval_every + 1
        train_loss = state.loss_sum.item() / since
        train_error = 100 * state.wrong.item() / state.counted.item()
        for name in SUMS:
            getattr(state, name).zero_()
        if not (self.cleaned or math.isfinite(train_loss)):  # the last row, then
            self.cleaned = True
            self.perform(self.clean)
        clean = self.clean.score() if self.cleaned else None
        test = self.test.score()
        return Row(
            step=state.step,
            epoch=state.step * settings.batch_size / len(self.data.train_labels),
            lr=learning_rate(settings, state.step - 1),
            train_loss=train_loss,
            train_error=train_error,
            clean_train_loss=clean and clean.loss,
            clean_train_error=clean and clean.error,
            test_loss=test.loss,
            test_error=test.error,
            images_per_second=0.0,
            seconds=0.0,
            clean_train_iou=clean and clean.iou,
            test_iou=test.iou,
        )
