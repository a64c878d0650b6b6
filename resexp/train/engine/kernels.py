"""Batch normalisation, the addition and the ReLU behind it, as one operation: Triton kernels.

Four launches a normalisation, two forward and two backward, where torch needs eight to twelve with
addition and ReLU. Activations are channels-last, [N, C, H, W] that lie in memory as [M, C] with
M = N H W; they are float32 or bfloat16, everything else is float32. Each pair of kernels works in
the same way: the first leaves partial sums of its rows, and every program of the second adds up
those of its channels, all in the same order. So there is no atomic addition, no barrier between
programs and no third launch, and two runs are equal to the bit.

Nothing waits for the device and memory comes from ``torch.empty`` alone, so a CUDA graph can hold
all of it. Under TRITON_INTERPRET=1, set before it is imported,
the same kernels run on the CPU.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import relu as rectify

#: Where the kernels run.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

#: Programs a launch: one for nearly each of the 132 multiprocessors of an H200. With more, each
#: leaves partial sums that all others of its channels must read. By arithmetic; not yet measured.
PROGRAMS = 128

#: Channels of a program: 32 bytes in bfloat16, the least that a GPU's memory moves. As few as
#: possible, for a program reads PROGRAMS * CHANNELS**2 / C partial sums of each kind.
CHANNELS = 16

#: Values that a program holds at a time, at most; half as many where it has to loop, for which 16
#: warps have no more registers.
TILE = 16384
VALUES_PER_WARP = 512


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the programs of all four kernels divide [M, C].

    Program (part, block) has the rows from part * tiles * rows on and the channels from block *
    columns on; it goes through its rows in ``tiles`` pieces of [rows, columns].
    """

    rows: int  # a power of 2, as is columns
    columns: int
    tiles: int
    parts: int
    blocks: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.parts, self.blocks

    @property
    def warps(self) -> int:
        return min(max(self.rows * self.columns // VALUES_PER_WARP, 1), 16)


def tiling(count: int, channels: int) -> Tiling:
    """The tiling of ``count`` rows of ``channels``; no part of it is empty."""
    columns = min(triton.next_power_of_2(channels), CHANNELS)
    blocks = triton.cdiv(channels, columns)
    most = max(1, PROGRAMS // blocks)
    rows = max(triton.next_power_of_2(triton.cdiv(count, most)), 32)
    if rows * columns > TILE:
        rows = TILE // columns // 2
    tiles = triton.cdiv(count, most * rows)
    return Tiling(rows, columns, tiles, triton.cdiv(count, tiles * rows), blocks)


@triton.jit
def channels_of(C: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's channels, [COLUMNS], and which of them exist."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return column, column < C


@triton.jit
def tile_of(
    tile, M, C: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Where a tile of this program lies in [M, C], and which of it exists, [ROWS, COLUMNS] both.

    In 64 bits: M * C may be more than 2**31.
    """
    first = (tl.program_id(0).to(tl.int64) * TILES + tile) * ROWS
    row = first + tl.arange(0, ROWS)
    column, real = channels_of(C, COLUMNS)
    return row[:, None] * C + column[None, :], (row < M)[:, None] & real[None, :]


@triton.jit
def of_part(part, C: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the sums of this program's channels lie in [parts, C], and which exist.

    Both are [PARTS, COLUMNS], ``part`` counts to PARTS: a power of 2, not below that of parts.
    """
    column, real = channels_of(C, COLUMNS)
    exists = (part < tl.num_programs(0))[:, None] & real[None, :]
    return part[:, None] * C + column[None, :], exists


@triton.jit
def moments_kernel(
    x_ptr,
    partial_ptr,
    M,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mean, and sum of squared distances from it, of each part: partial [2, parts, C].

    Welford 1962 within each place of a tile; then places are merged as in Chan et al. 1983,
    equation 2.1 for any number of samples. No difference of large sums is ever taken.
    """
    mean = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    square = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for tile in range(TILES):
        offset, here = tile_of(tile, M, C, ROWS, TILES, COLUMNS)
        x = tl.load(x_ptr + offset, mask=here, other=0.0).to(tl.float32)
        # The tiles that have a place are the first ones, so their number is that of its values.
        change = tl.where(here, x - mean, 0.0)
        mean += change / (tile + 1)
        square += change * (x - mean)
    row = tl.program_id(0).to(tl.int64) * (TILES * ROWS) + tl.arange(0, ROWS)
    count = tl.minimum(tl.maximum((M - row + ROWS - 1) // ROWS, 0), TILES).to(tl.float32)
    middle = tl.sum(count[:, None] * mean, 0) / tl.sum(count, 0)
    away = mean - middle[None, :]
    square = tl.sum(square + count[:, None] * away * away, 0)
    column, real = channels_of(C, COLUMNS)
    place = partial_ptr + tl.program_id(0) * C + column
    tl.store(place, middle, mask=real)
    tl.store(place + tl.num_programs(0) * C, square, mask=real)


@triton.jit
def normalise_kernel(
    x_ptr,
    skip_ptr,
    y_ptr,
    partial_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    running_mean_ptr,
    running_var_ptr,
    M,
    eps,
    momentum,
    C: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """y = relu((x - mean) / std * weight + bias + skip); saves mean and 1 / std, moves averages."""
    part = tl.arange(0, PARTS)
    place, exists = of_part(part, C, COLUMNS)
    means = tl.load(partial_ptr + place, mask=exists, other=0.0)
    squares = tl.load(partial_ptr + tl.num_programs(0) * C + place, mask=exists, other=0.0)
    rows = M - part.to(tl.int64) * (ROWS * TILES)
    count = tl.minimum(tl.maximum(rows, 0), ROWS * TILES).to(tl.float32)[:, None]
    mean = tl.sum(means * count, 0) / M
    away = means - mean[None, :]
    square = tl.sum(squares + count * away * away, 0)
    rstd = tl.rsqrt(square / M + eps)

    column, real = channels_of(C, COLUMNS)
    if tl.program_id(0) == 0:
        tl.store(mean_ptr + column, mean, mask=real)
        tl.store(rstd_ptr + column, rstd, mask=real)
        if running_mean_ptr is not None:
            old = tl.load(running_mean_ptr + column, mask=real, other=0.0)
            tl.store(running_mean_ptr + column, old + momentum * (mean - old), mask=real)
            old = tl.load(running_var_ptr + column, mask=real, other=0.0)
            new = square / (M - 1)
            tl.store(running_var_ptr + column, old + momentum * (new - old), mask=real)

    scale = tl.load(weight_ptr + column, mask=real, other=0.0).to(tl.float32) * rstd
    bias = tl.load(bias_ptr + column, mask=real, other=0.0).to(tl.float32)
    for tile in range(TILES):
        offset, here = tile_of(tile, M, C, ROWS, TILES, COLUMNS)
        x = tl.load(x_ptr + offset, mask=here, other=0.0).to(tl.float32)
        y = tl.fma(x - mean[None, :], scale[None, :], bias[None, :])
        if skip_ptr is not None:
            y += tl.load(skip_ptr + offset, mask=here, other=0.0).to(tl.float32)
        if RELU:
            y = tl.where(y <= 0, 0.0, y)  # what is not a number stays so
        tl.store(y_ptr + offset, y, mask=here)


@triton.jit
def open_gradient(dy_ptr, more_ptr, y_ptr, centred, scale, bias, offset, here, RELU: tl.constexpr):
    """The gradient of what stands before the ReLU, float32: dy, and more of it, where y > 0.

    Without a kept y, y is computed from x - mean again, by the very operations of the forward pass.
    """
    dy = tl.load(dy_ptr + offset, mask=here, other=0.0).to(tl.float32)
    if more_ptr is not None:
        dy += tl.load(more_ptr + offset, mask=here, other=0.0).to(tl.float32)
    if RELU:
        if y_ptr is not None:
            y = tl.load(y_ptr + offset, mask=here, other=0.0).to(tl.float32)
        else:
            y = tl.fma(centred, scale[None, :], bias[None, :])
        dy = tl.where(y <= 0, 0.0, dy)
    return dy


@triton.jit
def vectors_at(column, real, weight_ptr, bias_ptr, mean_ptr, rstd_ptr):
    """The saved mean and 1 / std of these channels, and weight / std and bias, [COLUMNS] each."""
    mean = tl.load(mean_ptr + column, mask=real, other=0.0)
    rstd = tl.load(rstd_ptr + column, mask=real, other=0.0)
    scale = tl.load(weight_ptr + column, mask=real, other=0.0).to(tl.float32) * rstd
    bias = tl.load(bias_ptr + column, mask=real, other=0.0).to(tl.float32)
    return mean, rstd, scale, bias


@triton.jit
def sums_kernel(
    dy_ptr,
    more_ptr,
    x_ptr,
    y_ptr,
    g_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    partial_ptr,
    M,
    C: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of g and of g (x - mean) over each part: partial [2, parts, C]. Writes g if asked."""
    column, real = channels_of(C, COLUMNS)
    mean, _, scale, bias = vectors_at(column, real, weight_ptr, bias_ptr, mean_ptr, rstd_ptr)
    shift = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    slope = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for tile in range(TILES):
        offset, here = tile_of(tile, M, C, ROWS, TILES, COLUMNS)
        x = tl.load(x_ptr + offset, mask=here, other=0.0).to(tl.float32)
        centred = x - mean[None, :]
        g = open_gradient(dy_ptr, more_ptr, y_ptr, centred, scale, bias, offset, here, RELU)
        if g_ptr is not None:
            tl.store(g_ptr + offset, g, mask=here)
        shift += g
        slope += g * centred
    place = partial_ptr + tl.program_id(0) * C + column
    tl.store(place, tl.sum(shift, 0), mask=real)
    tl.store(place + tl.num_programs(0) * C, tl.sum(slope, 0), mask=real)


@triton.jit
def gradient_kernel(
    dy_ptr,
    x_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    partial_ptr,
    M,
    C: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """dx = weight / std * (g - mean(g) - xhat mean(g xhat)), and the gradients of both vectors.

    Ioffe and Szegedy 2015, section 3. With ``RELU`` g is dy where y > 0, else dy itself.
    """
    place, exists = of_part(tl.arange(0, PARTS), C, COLUMNS)
    shift = tl.sum(tl.load(partial_ptr + place, mask=exists, other=0.0), 0)
    place += tl.num_programs(0) * C
    slope = tl.sum(tl.load(partial_ptr + place, mask=exists, other=0.0), 0)

    column, real = channels_of(C, COLUMNS)
    mean, rstd, scale, bias = vectors_at(column, real, weight_ptr, bias_ptr, mean_ptr, rstd_ptr)
    if tl.program_id(0) == 0:
        tl.store(dbias_ptr + column, shift, mask=real)
        tl.store(dweight_ptr + column, slope * rstd, mask=real)
    shift = shift / M
    slope = slope * rstd * rstd / M
    for tile in range(TILES):
        offset, here = tile_of(tile, M, C, ROWS, TILES, COLUMNS)
        x = tl.load(x_ptr + offset, mask=here, other=0.0).to(tl.float32)
        centred = x - mean[None, :]
        g = open_gradient(dy_ptr, None, None, centred, scale, bias, offset, here, RELU)
        dx = (g - shift[None, :] - centred * slope[None, :]) * scale[None, :]
        tl.store(dx_ptr + offset, dx, mask=here)


def image(like: Tensor, dtype: torch.dtype) -> Tensor:
    """An activation of the same shape, channels-last and not filled."""
    return torch.empty(
        like.shape, dtype=dtype, device=like.device, memory_format=torch.channels_last
    )


class Activated(torch.autograd.Function):
    """relu(normalise(x) + skip), with or without either: see :func:`norm_act`.

    Given out twice: a branch and its shortcut then send back two gradients, which ``sums_kernel``
    adds while it reads them; autograd would launch a kernel and pass over both.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        skip: Tensor | None,
        norm: nn.BatchNorm2d,
        relu: bool,
    ) -> tuple[Tensor, Tensor]:
        channels = x.shape[1]
        count = x.numel() // channels
        how = tiling(count, channels)
        sizes = channels, how.rows, how.tiles, how.columns
        y = image(x, x.dtype if skip is None else torch.promote_types(x.dtype, skip.dtype))
        if skip is not None:
            skip = skip.contiguous(memory_format=torch.channels_last)
        mean, rstd = (torch.empty(channels, device=x.device) for _ in range(2))
        partial = torch.empty(2, how.parts, channels, device=x.device)
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            moments_kernel[how.grid](x, partial, count, *sizes, num_warps=how.warps)
            normalise_kernel[how.grid](
                *(x, skip, y, partial, weight, bias, mean, rstd),
                *(norm.running_mean, norm.running_var, count, norm.eps, norm.momentum),
                *(channels, relu, *sizes[1:], triton.next_power_of_2(how.parts)),
                num_warps=how.warps,
            )
        # A ReLU is undone by its output's sign, which takes the shortcut to compute again.
        kept = y if relu and skip is not None else None
        ctx.save_for_backward(x, weight, bias, mean, rstd, kept)
        ctx.relu, ctx.skipped = relu, skip is not None
        ctx.set_materialize_grads(False)
        return y, y.data  # no view, which autograd would follow

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # type: ignore[override]
        x, weight, bias, mean, rstd, y = ctx.saved_tensors
        channels = x.shape[1]
        count = x.numel() // channels
        how = tiling(count, channels)
        sizes = how.rows, how.tiles, how.columns
        there = [one for one in gradients if one is not None]
        dy, *rest = (one.contiguous(memory_format=torch.channels_last) for one in there)
        more = rest[0] if rest else None
        g = image(dy, dy.dtype) if rest or y is not None else None
        partial = torch.empty(2, how.parts, channels, device=x.device)
        vectors = weight, bias, mean, rstd, partial, count, channels
        sums_kernel[how.grid](dy, more, x, y, g, *vectors, ctx.relu, *sizes, num_warps=how.warps)
        dx, dweight, dbias = image(x, x.dtype), torch.empty_like(weight), torch.empty_like(bias)
        gradient_kernel[how.grid](
            *(dy if g is None else g, x, dx, dweight, dbias, *vectors),
            *(ctx.relu and g is None, *sizes, triton.next_power_of_2(how.parts)),
            num_warps=how.warps,
        )
        dskip = (dy if g is None else g) if ctx.skipped else None
        return dx, dweight, dbias, dskip, None, None


def norm_act(x: Tensor, norm: nn.BatchNorm2d, skip: Tensor | None = None, *, relu: bool) -> Tensor:
    """relu(norm(x) + skip), [N, C, H, W] -> the same, with or without ``skip`` and ReLU.

    By the kernels where they apply (:func:`suits`), else by :func:`reference`. A second reader of
    what the kernels compute may take it from its attribute ``again``.
    """
    if not suits(x, norm, skip):
        return reference(x, norm, skip, relu=relu)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    y: Tensor
    y, y.again = Activated.apply(x, norm.weight, norm.bias, skip, norm, relu)  # type: ignore[attr-defined]
    return y


def reference(x: Tensor, norm: nn.BatchNorm2d, skip: Tensor | None = None, *, relu: bool) -> Tensor:
    """What :func:`norm_act` means, in torch's operations."""
    y = nn.BatchNorm2d.forward(norm, x)
    if skip is not None:
        y = y + skip
    return rectify(y) if relu else y


def suits(x: Tensor, norm: nn.BatchNorm2d, skip: Tensor | None) -> bool:
    """Whether the kernels compute this: training, on a GPU, channels-last, float32 or bfloat16."""
    return (
        norm.training
        and x.device.type == DEVICE
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > x.shape[1]  # of one value there is no variance, says torch
        and (skip is None or skip.shape == x.shape)
        and all(
            one.dtype in (torch.float32, torch.bfloat16) for one in (x, skip) if one is not None
        )
        and norm.affine
        and norm.momentum is not None
    )
