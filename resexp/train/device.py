"""Where a run computes: device, precision and threads, refused clearly where they cannot be had."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from resexp.settings import Precision, Settings, UsageError

#: Values of a layer's output that a thread more must be worth: the digits, 64 images of 8x8 in 16
#: channels, are half of it; CIFAR's, 128 of 32x32, sixteen times. Timings: docs/performance.md.
THREAD_WORK = 2**17

#: Threads a core that may be asked for. With 8, twenty steps of the digits on two cores took 17 s
#: in place of 6, with 16 over 40 s; with 256 the whole machine stands still.
THREADS_A_CORE = 4

_siblings = 1  # processes that share the cores

# Numbers of glibc's mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU without one; a GPU asked for by name must be there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "no driver" if torch.version.cuda else "a CPU build"
        raise UsageError(
            f"device={name}, but PyTorch finds no GPU (torch {torch.__version__}, {why}). "
            "Use device=cpu, or see resexp doctor."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"device={name}, but there are {count} GPUs. Use device=cuda:{count - 1}.")
    return device


def bf16_on_cpu() -> bool:
    """True if this CPU multiplies bfloat16 in hardware; elsewhere convolutions crawl or fail."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def cpu_flags() -> set[str]:
    """The CPU's feature flags as Linux names them; empty where they cannot be read."""
    return set(cpu_says("flags").split())


def cpu_says(what: str) -> str:
    """What Linux says of the first CPU; empty where that cannot be read."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(what):
                return line.split(":", 1)[1].strip()
    return ""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise UsageError where a format has no hardware: a silent fallback would name it wrongly."""
    if precision is Precision.tf32:
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
            raise UsageError(
                "precision=tf32 is of GPUs since NVIDIA's Ampere, and this is "
                f"{device_name(device)}. Use precision=fp32."
            )
        return
    if precision is not Precision.bf16:
        return
    if device.type == "cpu" and not bf16_on_cpu():
        raise UsageError(
            "precision=bf16, but this CPU has neither avx512_bf16 nor amx_bf16. Use precision=fp32."
        )
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(
            f"precision=bf16, but {torch.cuda.get_device_name(device)} lacks it. "
            "Use precision=fp32."
        )


def check_gpus(ranks: int, device: torch.device) -> None:
    """Raise UsageError if a run on GPUs has more ranks than there are: each rank takes one."""
    if device.type == "cuda" and ranks > gpus():
        there = "there is 1 GPU" if gpus() == 1 else f"there are {gpus()} GPUs"
        raise UsageError(
            f"launch.ranks={ranks}, but {there}. Use launch.ranks={gpus()} or device=cpu."
        )


def threads_for(settings: Settings, size: tuple[int, int]) -> int:
    """CPU threads for a network on images of ``size``: ``settings.threads``, or what its work pays.

    A layer with less than ``THREAD_WORK`` values a thread gains nothing from a second one, and
    loses much beside other work: the threads wait for each other at every layer.
    """
    values = settings.batch_size * settings.width * size[0] * size[1]  # of the first stage
    return settings.threads or min(cores(), max(1, values // THREAD_WORK))


def most_threads() -> int:
    """CPU threads that this machine can carry out, slowly; no setting and no record brings more."""
    return THREADS_A_CORE * machine_cores()


def check_threads(threads: int) -> None:
    """Raise UsageError for more than ``most_threads``."""
    if threads > (most := most_threads()):
        raise UsageError(
            f"threads={threads} is more than this machine's cores can carry out. Choose up to "
            f"threads={most}, or threads=0 for what pays."
        )


def prepare(threads: int, settings: Settings, device: torch.device) -> int:
    """Set numerics for this process and its CPU threads; returns their number.

    TF32 is off unless it is asked for, so that fp32 means fp32. Without ``deterministic``, cuDNN
    may pick its fastest kernels by trial, which differ in the last bits from run to run.
    """
    check_threads(threads)
    deterministic, tf32 = settings.deterministic, settings.precision is Precision.tf32
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Not use_deterministic_algorithms, which does the same and imports torch's compiler: 1 s.
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
        # Else PyTorch then writes NaN into every new tensor first: a launch more for each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return threads


@cache
def keep_freed_memory() -> None:
    """Let glibc reuse the memory of activations instead of returning it after every layer.

    By default a tensor of some MB is mapped, zeroed page by page and unmapped again each time: some
    20,000 page faults in a step of ResNet-20 at 32x32, a tenth of its time. Elsewhere than on glibc
    nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def machine_cores() -> int:
    """Cores this process may use, with its siblings."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cores() -> int:
    """Cores this process may use, less those left to its siblings by ``share_cores``."""
    return max(1, machine_cores() // _siblings)


def share_cores(processes: int) -> None:
    """Leave to each of so many processes at work, of which this is one, its part of the cores."""
    global _siblings
    _siblings = processes


def gpus() -> int:
    """GPUs that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_says("model name") or platform.processor() or platform.machine()
