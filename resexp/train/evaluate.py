"""Loss and error of a network on a whole set. Leaves the network as it found it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.data import UNLABELLED, Images, batches
from resexp.data.stream import Streamed
from resexp.settings import BnEval, Precision, Settings
from resexp.train.precision import autocast

# These decide memory and, in the last bits, sums.
EVALUATION_BATCH = 1000  # images at most
EVALUATION_PIXELS = 1000 * 64 * 64  # of a batch at most: fewer images if they are larger than 64x64
EVALUATION_LABELS = 2**20  # pixels of masks at most


class Score(NamedTuple):
    """How a network does on a whole set."""

    loss: float  # mean cross-entropy in nats
    error: float  # percent of the images, or of the labelled pixels of masks
    iou: float | None = None  # of masks: mean intersection over union, percent


@dataclass
class Evaluation:
    """A network's score on a set, batch by batch.

    ``ready`` says how whole batches are carried out. What it is given reads the place of its batch
    from the device and never waits for that, so that a graph can hold it.
    """

    network: nn.Module
    images: Tensor | Streamed  # uint8 [N, H, W, C]
    labels: Tensor  # [N], or masks [N, H, W]
    statistics: batches.Statistics
    precision: Precision
    ready: Callable[[Callable[[], None]], Callable[[], None]] | None = None

    def __post_init__(self) -> None:
        device = self.images.device
        pixels, answered = math.prod(self.images.shape[1:3]), self.labels[0].numel()
        most = min(EVALUATION_BATCH, EVALUATION_PIXELS // pixels, EVALUATION_LABELS // answered)
        self.size = max(1, most)
        self.counted = int((self.labels != UNLABELLED).sum())
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        self.matrix: Tensor | None = None  # of masks: see confusion
        self.repeated: Callable[[], None] | None = None
        if self.ready is not None and isinstance(self.images, Tensor):
            self.first = torch.zeros((), dtype=torch.int64, device=device)
            self.ahead = torch.arange(self.size, device=device)
            self.repeated = self.ready(self.next_batch)

    @torch.no_grad()
    def start(self) -> None:
        """Go through the whole set. Does not wait for a GPU."""
        self.loss.zero_()
        self.wrong.zero_()
        if self.matrix is not None:
            self.matrix.zero_()
        count, done = len(self.labels), 0
        if self.repeated is not None:
            self.first.zero_()
            for _ in range(count // self.size):
                self.repeated()
            done = count // self.size * self.size
        for first in range(done, count, self.size):
            some = slice(first, first + self.size)
            self.add(self.images[some], self.labels[some])

    def next_batch(self) -> None:
        """Add the batch at ``first`` and go on by one."""
        assert isinstance(self.images, Tensor)
        place = self.first + self.ahead
        self.add(self.images.index_select(0, place), self.labels.index_select(0, place))
        self.first += self.size

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Add the score on some images."""
        with autocast(self.precision, images.device):
            logits = self.network(batches.prepare(images, self.statistics))
        logits, answers = per_label(logits, labels.long())
        self.loss += cross_entropy(logits, answers, ignore_index=UNLABELLED, reduction="sum")
        self.wrong += misses(logits, answers)
        if labels.dim() > 1:
            matrix = confusion(logits, answers)
            self.matrix = torch.zeros_like(matrix) if self.matrix is None else self.matrix
            self.matrix += matrix

    def score(self) -> Score:
        """That of the last start; waits for it."""
        iou = None if self.matrix is None else mean_iou(self.matrix)
        return Score(self.loss.item() / self.counted, 100 * self.wrong.item() / self.counted, iou)


def evaluate(
    network: nn.Module,
    images: Tensor | Streamed,
    labels: Tensor,
    statistics: batches.Statistics,
    precision: Precision,
) -> Score:
    """The score on uint8 images [N, H, W, C] with labels [N], or masks [N, H, W]."""
    whole = Evaluation(network, images, labels, statistics, precision)
    whole.start()
    return whole.score()


def per_label(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, K] or [N, K, H, W] and their labels as float32 (or 64) [L, K] and int64 [L].

    Losses of [L, K] are deterministic on a GPU; those of [N, K, H, W] are not.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.movedim(1, -1).flatten(0, -2), labels.flatten()


def misses(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the labels that count are not the greatest logit's: int64, on the device."""
    return ((logits.argmax(1) != labels) & (labels != UNLABELLED)).sum()


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Labels that count, by class (rows) and answer (columns): int64 [K, K], on the device."""
    classes = logits.shape[1]
    counts = labels != UNLABELLED
    cell = torch.where(counts, labels, 0) * classes + logits.argmax(1)
    matrix = torch.zeros(classes**2, dtype=torch.int64, device=labels.device)
    return matrix.index_add_(0, cell, counts.long()).view(classes, classes)


def mean_iou(matrix: Tensor) -> float:
    """Mean intersection over union, percent, of a whole set's confusion matrix [K, K].

    A class's is the pixels that are of it and are answered so, over those that are either, as in
    PASCAL VOC; a class that is neither labelled nor answered anywhere is left out.
    """
    both = matrix.diagonal()
    either = matrix.sum(0) + matrix.sum(1) - both
    there = either > 0
    return 100 * (both[there].double() / either[there]).mean().item()


@contextmanager
def evaluation_mode(
    network: nn.Module, settings: Settings, data: Images, statistics: batches.Statistics
) -> Iterator[None]:
    """Evaluate inside; the mode and every normalisation statistic are as before on leaving.

    With ``bn_eval=recalibrated`` the statistics inside are averages over the clean training set in
    batches of ``batch_size``, as He et al. computed them, not the moving average of training.
    """
    training, saved = network.training, list[Tensor]()
    if settings.bn_eval is BnEval.recalibrated:
        saved = [buffer.clone() for buffer in network.buffers()]
        recalibrate(network, settings, data, statistics)
    network.eval()
    try:
        yield
    finally:
        network.train(training)
        for buffer, before in zip(network.buffers(), saved, strict=False):
            buffer.copy_(before)


@torch.no_grad()
def recalibrate(
    network: nn.Module, settings: Settings, data: Images, statistics: batches.Statistics
) -> None:
    """Set each normalisation's mean and variance to their average over the training batches."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    size = min(settings.batch_size, len(data.train_images))
    network.eval()  # but for the norms: what is random in training is left out
    for norm in norms:
        norm.train()
    for index in range(len(data.train_images) // size):
        images = data.train_images[index * size : (index + 1) * size]
        for norm in norms:
            norm.momentum = 1 / (index + 1)  # a running mean of what was seen
        with autocast(settings.precision, images.device):
            network(batches.prepare(images, statistics))
    for norm in norms:
        norm.momentum = settings.bn_momentum
