"""``resexp doctor``: what this machine can do, and what to fix."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch

from resexp import data
from resexp.runs.lock import has_locks
from resexp.runs.provenance import checkout, package_version
from resexp.runs.records import first_line
from resexp.settings import Data, Engine, Precision, Settings, UsageError, choices
from resexp.train.device import check_precision, choose_device, cores, cpu_flags, device_name
from resexp.train.engine.graph import check_engine


@dataclass(slots=True)
class Finding:
    """One thing looked at. ``level`` is ok, warn (a limit) or fail (nothing will train)."""

    level: str
    what: str
    detail: str


def examine(settings: Settings) -> list[Finding]:
    return [
        Finding("ok", "versions", versions()),
        found("torchvision", torchvision),
        found("configs", configs),
        Finding("ok", "cpu", processor()),
        *gpus(),
        found("device", lambda: device(settings)),
        found("bf16", lambda: bf16(settings), "warn"),
        engines(settings),
        writable(Path(settings.results)),
        *(data_set(name, settings.data) for name in sets(settings.data)),
    ]


def found(what: str, look: Callable[[], str], otherwise: str = "fail") -> Finding:
    """What ``look`` says of a thing, or why it cannot be had."""
    try:
        return Finding("ok", what, look())
    except UsageError as error:
        return Finding(otherwise, what, str(error))
    except RuntimeError as error:  # of a driver
        return Finding(otherwise, what, first_line(error))


def versions() -> str:
    commit, dirty = checkout()
    code = f"commit {commit[:9]}{' + changes' if dirty else ''}" if commit else "no git checkout"
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"Hydra {package_version('hydra-core')}, "
        f"resexp {package_version('resexp') or 'from a checkout'} ({code})"
    )


def torchvision() -> str:
    """It brings CIFAR-10, and it and its operators load only beside the torch it was built for."""
    version = package_version("torchvision")
    try:
        import_module("torchvision").ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # what it raises differs from version to version
        raise UsageError(
            f"{version} does not load beside torch {torch.__version__} ({first_line(error)}): "
            "install both anew, with one pip install torch torchvision"
        ) from error
    return f"{version}"


def configs() -> str:
    folder = choices.config_folder()
    if not choices.options("arch"):
        raise UsageError(f"none in {folder}: install resexp again")
    return f"{folder}"


def processor() -> str:
    known = cpu_flags()
    vector = [one for one in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if one in known]
    name, units = device_name(torch.device("cpu")), " ".join(vector) or platform.machine()
    return f"{name}, {cores()} cores, {units}"


def gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        cuda = torch.version.cuda
        built = f"torch is built for CUDA {cuda}" if cuda else "CPU build"
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


def device(settings: Settings) -> str:
    """The device asked for does arithmetic."""
    chosen = choose_device(settings.device)
    if torch.ones(8, device=chosen).sum().item() != 8:
        raise UsageError(f"{settings.device}: ones add up wrongly on {chosen}")
    return f"{settings.device} trains on {chosen}"


def bf16(settings: Settings) -> str:
    check_precision(Precision.bf16, choose_device(settings.device))
    return "precision=bf16 can be used"


def engines(settings: Settings) -> Finding:
    """The ways to carry out a step that this device has; auto chooses by trying them."""
    there, refusals = [], []
    for engine in (Engine.eager, Engine.graph, Engine.triton):
        try:
            check_engine(replace(settings, engine=engine), choose_device(settings.device))
            there.append(engine.value)
        except UsageError as error:
            refusals.append(str(error))
    if len(there) > 1 and refusals:
        return Finding("warn", "engines", f"{', '.join(there)}. {refusals[0]}")
    return Finding("ok", "engines", ", ".join(there))


def writable(results: Path) -> Finding:
    """The results folder takes files, and there is room."""
    folders = results.absolute(), *results.absolute().parents
    place = next(folder for folder in folders if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        why = f"{place} cannot be written ({error.strerror}): set results="
        return Finding("fail", "results", why)
    if not has_locks(place):
        why = f"{place} has no file locks: a run that is killed can go on after a minute"
        return Finding("warn", "results", why)
    free = shutil.disk_usage(place).free / 2**30
    return Finding("ok" if free > 1 else "warn", "results", f"{results}, {free:.0f} GiB free")


def sets(chosen: Data) -> list[str]:
    """The loaders to ask: all, but of those whose images are the user's own only the chosen."""
    return [
        name
        for name in data.loaders()
        if name == chosen.loader or not hasattr(data.loader(name), "describe")
    ]


def data_set(name: str, chosen: Data) -> Finding:
    """Whether a loader's set is here. The embedded one must be, and so must one's own images."""
    settings = chosen if name == chosen.loader else Data(name=name, loader=name)
    describe = getattr(data.loader(name), "describe", None)
    needed = name == "digits" or describe or not settings.download

    def look() -> str:
        data.check_present(replace(settings, download=False))
        return str(describe(settings)) if describe else here(name)

    return found(name, look, "fail" if needed else "warn")


def here(name: str) -> str:
    """What a set that was found is, by its config's first line."""
    return f"here: {choices.describe('data', name)}" if name in choices.options("data") else "here"


def text(findings: list[Finding]) -> str:
    """A line for each, the faults named again at the end."""
    lines = [f"{one.level:<5} {one.what:<14} {one.detail}" for one in findings]
    faults = [one.what for one in findings if one.level == "fail"]
    lines.append(f"to fix: {', '.join(faults)}" if faults else "ready: resexp demo")
    return "\n".join(lines)
