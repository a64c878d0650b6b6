"""``resexp doctor``: what this machine can do, and what to mend."""

from __future__ import annotations

import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resexp import data
from resexp.runs.lock import has_locks
from resexp.runs.provenance import checkout, package_version
from resexp.settings import Data, Engine, Precision, Settings, UsageError
from resexp.settings.choices import config_folder, options
from resexp.train.device import (
    check_precision,
    choose_device,
    cores,
    cpu_flags,
    device_name,
)
from resexp.train.engine.graph import check_engine


@dataclass(slots=True)
class Finding:
    """One thing looked at. ``level`` is ok, warn (a limit) or fail (nothing will train)."""

    level: str
    what: str
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that a run with these settings needs."""
    return [
        versions(),
        configs(),
        processor(),
        *gpus(),
        device(settings),
        bf16(settings),
        engines(settings),
        writable(Path(settings.results)),
        *(data_set(name) for name in ("digits", "cifar10", "fashion_mnist")),
    ]


def versions() -> Finding:
    """Python, torch, Hydra and this code."""
    commit, dirty = checkout()
    code = f"commit {commit[:9]}{' + changes' if dirty else ''}" if commit else "no git checkout"
    hydra = package_version("hydra-core")
    return Finding(
        "ok",
        "versions",
        f"Python {platform.python_version()}, torch {torch.__version__}, Hydra {hydra}, "
        f"resexp {package_version('resexp') or 'from a checkout'} ({code})",
    )


def configs() -> Finding:
    """The shipped configuration files."""
    folder = config_folder()
    if not folder.is_dir() or not options("arch"):
        return Finding("fail", "configs", f"none in {folder}: install resexp again")
    return Finding("ok", "configs", f"{folder}")


def processor() -> Finding:
    """The CPU and its threads."""
    vector = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in cpu_flags()
    ]
    name = device_name(torch.device("cpu"))
    return Finding(
        "ok", "cpu", f"{name}, {cores()} cores, {' '.join(vector) or platform.machine()}"
    )


def gpus() -> list[Finding]:
    """Every GPU that torch can use."""
    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
        )
        return [Finding("warn", "gpu", f"none found ({built}): training on the CPU")]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        detail = (
            f"{torch.cuda.get_device_name(index)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB "
            f"free, compute capability {capability}, CUDA {torch.version.cuda}"
        )
        found.append(Finding("ok", f"cuda:{index}", detail))
    return found


def device(settings: Settings) -> Finding:
    """The device asked for does arithmetic."""
    try:
        chosen = choose_device(settings.device)
        total = torch.ones(8, device=chosen).sum().item()
    except UsageError as error:
        return Finding("fail", "device", str(error))
    except RuntimeError as error:
        return Finding("fail", "device", f"{settings.device}: {str(error).splitlines()[0]}")
    return Finding(
        "ok" if total == 8 else "fail", "device", f"{settings.device} trains on {chosen}"
    )


def bf16(settings: Settings) -> Finding:
    """Whether precision=bf16 would be accepted."""
    try:
        check_precision(Precision.bf16, choose_device(settings.device))
    except UsageError as error:
        return Finding("warn", "bf16", str(error))
    return Finding("ok", "bf16", "precision=bf16 can be used")


def engines(settings: Settings) -> Finding:
    """The ways to carry out a step that this device has; auto chooses by trying them."""
    there, refusals = [], []
    for engine in (Engine.eager, Engine.graph, Engine.triton):
        try:
            check_engine(replace(settings, engine=engine), choose_device(settings.device))
        except UsageError as error:
            refusals.append(str(error))
        else:
            there.append(engine.value)
    if len(there) > 1 and refusals:
        return Finding("warn", "engines", f"{', '.join(there)}. {refusals[0]}")
    return Finding("ok", "engines", ", ".join(there))


def writable(results: Path) -> Finding:
    """The results folder takes files, and there is room."""
    place = next(
        folder for folder in (results.absolute(), *results.absolute().parents) if folder.exists()
    )
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding(
            "fail", "results", f"{place} cannot be written ({error.strerror}): set results="
        )
    if not has_locks(place):
        return Finding(
            "warn",
            "results",
            f"{place} has no file locks: a run that is killed can go on after a minute",
        )
    free = shutil.disk_usage(place).free / 2**30
    return Finding("ok" if free > 1 else "warn", "results", f"{results}, {free:.0f} GiB free")


def data_set(name: str) -> Finding:
    """Whether a data set is here; only the embedded one must be."""
    try:
        data.check_present(Data(name=name, loader=name, download=False))
    except UsageError as error:
        return Finding("fail" if name == "digits" else "warn", name, str(error))
    return Finding("ok", name, "shipped with resexp" if name == "digits" else "found in data/")


def text(findings: list[Finding]) -> str:
    """A line for each, the faults named again at the end."""
    lines = [f"{one.level:<5} {one.what:<14} {one.detail}" for one in findings]
    faults = [one.what for one in findings if one.level == "fail"]
    lines.append(f"to mend: {', '.join(faults)}" if faults else "ready: resexp demo")
    return "\n".join(lines)
