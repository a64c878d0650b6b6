"""What a step does beside the network, in one launch each: its batch, its loss and metrics, SGD.

The numbers are those of fit.train_step up to the last bits, and its batches equal to the bit. As
with engine.kernels a CUDA graph can hold all of it, and Triton's interpreter runs it on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from resexp.data.batches import TO_UNIT
from resexp.settings import Settings
from resexp.train.optimizers import Sgd
from resexp.train.precision import autocast

if TYPE_CHECKING:
    from resexp.train.fit import State
    from resexp.train.step_inputs import StepInputs

PIXELS = 1024  # values of an image that a program writes
LOGITS = 4096  # that the one program of a loss holds at a time
WEIGHTS = 1024  # that a program updates


@triton.jit
def batch_kernel(
    images_ptr,
    labels_ptr,
    table_ptr,
    rates_ptr,
    turn_ptr,
    mean_ptr,
    std_ptr,
    pixels_ptr,
    answers_ptr,
    factors_ptr,
    B,
    unit,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    EACH_PIXEL: tl.constexpr,
    RATES: tl.constexpr,
    SOME: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Image b of the table's row ``turn``: cropped, mirrored and normalised as batches.batch does.

    Program (b, part) writes a part of its pixels, the first ones the label and the rates, too.
    """
    b = tl.program_id(0)
    turn = tl.load(turn_ptr)
    row = table_ptr + turn * (4 * B) + b
    index = tl.load(row)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = value // C % W
    x = tl.where(tl.load(row + 3 * B) != 0, W - 1 - x, x) + tl.load(row + 2 * B) - PADDING
    y = value // (C * W) + tl.load(row + B) - PADDING
    wanted = value < H * W * C
    inside = wanted & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    place = (y * W + x) * C + value % C
    pixel = tl.load(images_ptr + index * (H * W * C) + place, mask=inside, other=0)
    mean = tl.load(mean_ptr + (place if EACH_PIXEL else value % C), mask=inside, other=0.0)
    std = tl.load(std_ptr + value % C, mask=inside, other=1.0)
    pixel = tl.where(inside, tl.div_rn(pixel.to(tl.float32) * unit - mean, std), 0.0)
    tl.store(pixels_ptr + b.to(tl.int64) * (H * W * C) + value, pixel, mask=wanted)
    if tl.program_id(1) == 0:
        tl.store(answers_ptr + b, tl.load(labels_ptr + index))
        if b == 0:
            rate = tl.arange(0, SOME)
            factor = tl.load(rates_ptr + turn * RATES + rate, mask=rate < RATES)
            tl.store(factors_ptr + rate, factor, mask=rate < RATES)


@triton.jit
def loss_kernel(
    logits_ptr,
    labels_ptr,
    slope_ptr,
    loss_ptr,
    wrong_ptr,
    counted_ptr,
    B,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mean cross-entropy of logits [B, K], added to ``loss``; its gradient; answers that are wrong.

    One program adds up in a fixed order.
    """
    column = tl.arange(0, COLUMNS)
    losses = tl.full([ROWS], 0.0, tl.float32)
    misses = tl.full([ROWS], 0, tl.int64)
    for first in range(0, B, ROWS):
        row = first + tl.arange(0, ROWS)
        here = (row < B)[:, None] & (column < K)[None, :]
        place = row[:, None] * K + column[None, :]
        logits = tl.load(logits_ptr + place, mask=here, other=float("-inf")).to(tl.float32)
        label = tl.load(labels_ptr + row, mask=row < B, other=0)
        logits = tl.where((row < B)[:, None], logits, 0.0)
        above = logits - tl.max(logits, 1)[:, None]
        power = tl.exp(above)
        total = tl.sum(power, 1)
        right = column[None, :] == label[:, None]
        loss = tl.log(total) - tl.sum(tl.where(right, above, 0.0), 1)
        losses += tl.where(row < B, loss, 0.0)
        misses += ((tl.argmax(logits, 1) != label) & (row < B)).to(tl.int64)
        slope = (power / total[:, None] - right.to(tl.float32)) / B
        tl.store(slope_ptr + place, slope, mask=here)
    tl.store(loss_ptr, tl.load(loss_ptr) + (tl.sum(losses, 0) / B).to(tl.float64))
    tl.store(wrong_ptr, tl.load(wrong_ptr) + tl.sum(misses, 0))
    tl.store(counted_ptr, tl.load(counted_ptr) + B)


@triton.jit
def sgd_kernel(
    weight_ptr,
    gradient_ptr,
    velocity_ptr,
    rate_ptr,
    size,
    decay,
    momentum,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One update of a group, as optimizers.Sgd has it; the gradient stays."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = place < size
    weight = tl.load(weight_ptr + place, mask=here, other=0.0)
    gradient = tl.load(gradient_ptr + place, mask=here, other=0.0) + decay * weight
    velocity = momentum * tl.load(velocity_ptr + place, mask=here, other=0.0) + gradient
    tl.store(velocity_ptr + place, velocity, mask=here)
    step = gradient + momentum * velocity if NESTEROV else velocity
    tl.store(weight_ptr + place, weight - tl.load(rate_ptr) * step, mask=here)


def suits(inputs: StepInputs) -> bool:
    """Whether the kernels know these batches: a class for each image, all images on the device."""
    data = inputs.data
    return data.task == "classification" and isinstance(data.train_images, Tensor)


def train_step(state: State, settings: Settings, inputs: StepInputs) -> None:
    """fit.train_step, by these kernels."""
    images, labels, rates = batch(inputs)
    with autocast(settings.precision, images.device):
        logits = state.cast_weights.call(state.network, images)
    slope = scored(logits.contiguous(), labels, state)
    leaves = state.cast_weights.leaves
    state.optimizer.collect(torch.autograd.grad(logits, leaves, slope, allow_unused=True))
    if type(state.optimizer) is Sgd:
        update(state.optimizer, rates)
    else:
        state.optimizer.step(rates)


def batch(inputs: StepInputs) -> tuple[Tensor, Tensor, Tensor]:
    """What ``inputs.next`` gives."""
    images, labels = inputs.data.train_images, inputs.data.train_labels
    table, rates, mean = inputs.table, inputs.rates, inputs.statistics.mean
    assert isinstance(images, Tensor) and table is not None and rates is not None
    count, values = table.shape[2], images[0].numel()
    pixels = torch.empty(count, *images.shape[1:], device=images.device)
    answers = torch.empty(count, dtype=labels.dtype, device=images.device)
    factors = torch.empty_like(rates[0])
    outputs = pixels, answers, factors
    many = factors.numel()
    batch_kernel[count, triton.cdiv(values, PIXELS)](
        *(images, labels, table, rates, inputs.turn, mean, inputs.statistics.std, *outputs),
        *(count, TO_UNIT, *images.shape[1:], inputs.settings.crop_padding, mean.dim() == 3),
        *(many, triton.next_power_of_2(many), PIXELS),
        enable_fp_fusion=False,  # else mean and scale are rounded once where torch rounds twice
    )
    inputs.turn += 1
    return pixels.permute(0, 3, 1, 2), answers, factors


def scored(logits: Tensor, labels: Tensor, state: State) -> Tensor:
    """The loss's gradient for logits [B, K]; adds to the state's sums."""
    count, classes = logits.shape
    columns = triton.next_power_of_2(classes)
    slope = torch.empty_like(logits)
    sums = state.loss_sum, state.wrong, state.counted
    rows = min(triton.next_power_of_2(count), max(1, LOGITS // columns))
    loss_kernel[1,](logits, labels, slope, *sums, count, classes, rows, columns)
    return slope


@torch.no_grad()
def update(optimizer: Sgd, rates: Tensor) -> None:
    """``optimizer.step``: a launch for each group."""
    for factors, group in zip(rates.unbind(), optimizer.groups, strict=True):
        parts = optimizer.of(group)
        size = parts[0].numel()
        how = group.weight_decay, optimizer.momentum, optimizer.nesterov
        sgd_kernel[triton.cdiv(size, WEIGHTS),](*parts, factors, size, *how, WEIGHTS)
