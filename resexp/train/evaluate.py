"""Loss and error of a network on a whole set. Leaves the network as it found it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp.data import Images, batches
from resexp.data.stream import Streamed
from resexp.settings import BnEval, Precision, Settings

# Both decide memory and, in the last bits, sums.
EVALUATION_BATCH = 1000  # images at most
EVALUATION_PIXELS = 1000 * 64 * 64  # of a batch at most: fewer images if they are larger than 64x64


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 activations where ``precision`` asks for them; losses are computed in fp32."""
    enabled = precision is Precision.bf16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: Tensor | Streamed,
    labels: Tensor,
    statistics: batches.Statistics,
    precision: Precision,
) -> tuple[float, float]:
    """Mean cross-entropy in nats and error in percent on uint8 images [N, H, W, C]."""
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    wrong = torch.zeros((), dtype=torch.int64, device=images.device)
    size = min(EVALUATION_BATCH, max(1, EVALUATION_PIXELS // math.prod(images.shape[1:3])))
    for first in range(0, len(labels), size):
        some = slice(first, first + size)
        answers = labels[some]
        with autocast(precision, images.device):
            logits = network(batches.prepare(images[some], statistics))
        loss += cross_entropy(logits.float(), answers, reduction="sum")
        wrong += (logits.argmax(1) != answers).sum()
    return loss.item() / len(labels), 100 * wrong.item() / len(labels)


@contextmanager
def evaluation_mode(
    network: nn.Module, settings: Settings, data: Images, statistics: batches.Statistics
) -> Iterator[None]:
    """Evaluate inside; the mode and every normalisation statistic are as before on leaving.

    With ``bn_eval=recalibrated`` the statistics inside are averages over the clean training set in
    batches of ``batch_size``, as He et al. computed them, not the moving average of training.
    """
    training = network.training
    saved = {name: buffer.clone() for name, buffer in network.named_buffers()}
    if settings.bn_eval is BnEval.recalibrated:
        recalibrate(network, settings, data, statistics)
    network.eval()
    try:
        yield
    finally:
        network.train(training)
        for name, buffer in network.named_buffers():
            buffer.copy_(saved[name])


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
