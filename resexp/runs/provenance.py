"""What a run ran on: versions, device, code. Stored with every result."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from resexp.settings import Engine, Settings
from resexp.train.device import device_name


def environment(
    settings: Settings, device: torch.device, threads: int, engine: Engine = Engine.eager
) -> dict[str, Any]:
    """The ``environment`` of run.json, with the engine that was chosen."""
    on_gpu = device.type == "cuda"
    cudnn = torch.backends.cudnn.version() if on_gpu else None  # type: ignore[no-untyped-call]
    commit, dirty = checkout()
    return {
        "resexp": package_version("resexp"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": cudnn,
        "device": device.type,
        "device_name": device_name(device),
        "threads": threads,
        "precision": settings.precision.value,
        "engine": engine.value,
        "deterministic": settings.deterministic or not on_gpu,
        "platform": platform.platform(),
        "process": os.getpid(),
        "git_commit": commit,
        "git_dirty": dirty,
    }


def package_version(name: str) -> str | None:
    """The installed version of a package; None from a bare checkout."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def checkout() -> tuple[str | None, bool | None]:
    """The commit this code was checked out from and whether it was edited since, or None, None.

    RESEXP_COMMIT names it where the code was copied without its history.
    """
    here = Path(__file__).resolve().parents[1]
    try:
        root = _git(here, "rev-parse", "--show-toplevel")
        if Path(root) != here.parent:  # installed inside somebody else's checkout
            return os.environ.get("RESEXP_COMMIT"), None
        changed = _git(here.parent, "status", "--porcelain", "--", "resexp", "configs")
        return _git(here, "rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("RESEXP_COMMIT"), None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()


def peak_memory_mb(device: torch.device) -> float | None:
    """Most memory held so far, in MB: the GPU's by PyTorch, or this process's resident set.

    Linux's VmHWM and not getrusage's ru_maxrss, which a child inherits from a larger parent. None
    where neither can be had.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        return None
