"""The training loop, and the state it needs to go on."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.data import UNLABELLED, Images, batches
from resexp.models.merges import draw, drawn
from resexp.settings import Engine, Settings
from resexp.train.engine.graph import ready
from resexp.train.evaluate import Score, evaluate, evaluation_mode, misses, per_label
from resexp.train.optimizers import OPTIMIZERS, Optimizer
from resexp.train.precision import CastWeights, autocast, weights_type
from resexp.train.ranks import ALONE, Ranks
from resexp.train.row import Row
from resexp.train.schedule import learning_rate, next_row
from resexp.train.step_inputs import StepInputs


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

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only, so that it loads with ``weights_only``."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "wrong": self.wrong,
            "counted": self.counted,
            "step": self.step,
            "seconds": self.seconds,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where ``saved`` stopped. Raises an error on another run's state."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.loss_sum.copy_(saved["loss_sum"])
        self.wrong.copy_(saved["wrong"])
        self.counted.copy_(saved["counted"])
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
) -> Iterator[Row | None]:
    """Train from ``state`` to the last step, one optimizer step a turn.

    Yields the row of an evaluation after the steps that have one, else None, so that the caller
    can record, show, save or stop between any two steps. ``data`` lies on the device that trains.
    A loss that is not finite ends the run with the row that shows it.
    """
    rule = state.optimizer
    statistics = batches.statistics(data.train_images, settings.normalise).to(rule.weights)
    inputs = StepInputs(settings, data, statistics, ranks, rule.rates)
    step = ready(engine, state.network, partial(train_step, state, settings, inputs, ranks))
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
        inputs.plan(end)  # while a GPU still works on the steps before
        state.wrong.item()  # waits for the device, so that the rate below is the device's
        rate = settings.batch_size * (end - first) / (time.perf_counter() - started)
        row = evaluation(state, settings, data, statistics)
        state.seconds = row.seconds = time.perf_counter() - origin
        row.images_per_second = rate
        yield row
        if is_last(row, settings):
            return


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
    loss = cross_entropy(logits, labels, ignore_index=UNLABELLED) * share
    state.optimizer.collect(torch.autograd.grad(loss, state.cast_weights.leaves, allow_unused=True))
    counts = torch.stack([misses(logits.detach(), labels), (labels != UNLABELLED).sum()])
    loss, counts = ranks.add_up(state.optimizer.gradient, loss.detach(), counts)
    state.optimizer.step(rates)
    state.loss_sum += loss
    state.wrong += counts[0]
    state.counted += counts[1]


def evaluation(
    state: State, settings: Settings, data: Images, statistics: batches.Statistics
) -> Row:
    """The row after ``state.step`` steps, its two columns of time still 0; starts new sums."""
    since = (state.step - 1) % settings.eval_every + 1
    train_loss = state.loss_sum.item() / since
    train_error = 100 * state.wrong.item() / state.counted.item()
    for total in (state.loss_sum, state.wrong, state.counted):
        total.zero_()

    rows = math.ceil(state.step / settings.eval_every)
    last = state.step == settings.steps or not math.isfinite(train_loss)
    clean: Score | None = None
    with evaluation_mode(state.network, settings, data, statistics):
        test = evaluate(
            state.network, data.test_images, data.test_labels, statistics, settings.precision
        )
        if last or rows % settings.clean_every == 0:
            clean = evaluate(
                state.network, data.train_images, data.train_labels, statistics, settings.precision
            )
    return Row(
        step=state.step,
        epoch=state.step * settings.batch_size / len(data.train_labels),
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
