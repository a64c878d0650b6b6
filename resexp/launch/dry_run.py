"""What a sweep would do and roughly how long it would take: ``resexp run --dry-run``.

Networks are measured once a day on a machine: what was found is kept in data.cache, and a sweep of
networks that are known there is planned without torch, whose import takes longer than all else.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resexp import data as sets
from resexp.console import counted, duration, folded, grid, width
from resexp.files import read_json
from resexp.runs.records import Claim, write_atomically
from resexp.settings import Data, Job, UsageError, as_dict

PACKAGE = Path(__file__).parents[1]
DAY = 86_400  # seconds that a measurement counts
MEASURED = ("parameters", "flops", "seconds", "at")
NAMES = ("seed", "results", "name", "remark")  # settings that no network's cost depends on


@dataclass(slots=True)
class Estimate:
    """One job before it runs."""

    run: str
    state: str
    directory: str
    parameters: int
    flops: int  # of an image
    seconds: float  # 0 for a run that is done; a resumed one counts whole


def show(
    jobs: list[Job], claims: list[Claim], check: Callable[[], None], as_json: bool = False
) -> None:
    """The plan of ``--dry-run``, on stdout."""
    found = recalled(jobs, claims)
    if not found:
        from resexp.launch.estimates import estimates

        check()
        found = estimates(jobs, claims)
        remember(jobs, found)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    heads = ["run", "state", "parameters", "MFLOPs|an image", "about", "directory"]
    body = [
        [
            one.run,
            one.state,
            f"{one.parameters:,}",
            f"{one.flops / 1e6:,.1f}",
            duration(one.seconds) if one.seconds else "-",
            one.directory,
        ]
        for one in found
    ]
    due = sum(one.seconds > 0 for one in found)
    total = duration(sum(one.seconds for one in found))
    lines = grid(heads, body, "<<>>><", spare=(5, 3, 2, 1))
    lines.append(f"{due} of {counted(len(found), 'run')} to train, about {total} one after another")
    lines += sorted({absent for job in jobs if (absent := to_download(job.settings.data))})
    print(folded("\n".join(lines), width()))


def to_download(settings: Data) -> str:
    """That a set is not here and how large it is; nothing for one that is."""
    try:
        sets.check_present(replace(settings, download=False))
    except UsageError:
        *_, size = getattr(sets.loader(settings.loader), "DOWNLOAD", ["?"])
        place = settings.root.rstrip("/")
        return f"data: {settings.name} is not in {place}/ and would be downloaded ({size} MB)"
    return ""


def recalled(jobs: list[Job], claims: list[Claim]) -> list[Estimate]:
    """Each job's, from what was measured today with its settings; none if one is not known.

    Such settings were found fit to run then, on this machine by this code.
    """
    table, found = measured(jobs[0]), []
    for job, claim in zip(jobs, claims, strict=True):
        costs, due = table.get(key(job)), claim is not Claim.done
        if costs is None or (due and not costs["seconds"]):  # it was done, and is to be trained now
            return []
        sizes = int(costs["parameters"]), int(costs["flops"])
        seconds = costs["seconds"] if due else 0.0
        found.append(Estimate(job.run, claim.value, str(job.directory), *sizes, seconds))
    return found


def remember(jobs: list[Job], found: list[Estimate]) -> None:
    """Keep what was measured now, where data.cache takes files."""
    table = measured(jobs[0])
    for job, one in zip(jobs, found, strict=True):
        name = key(job)
        if one.seconds or name not in table:
            numbers = one.parameters, one.flops, one.seconds, time.time()
            table[name] = dict(zip(MEASURED, numbers, strict=True))
    with suppress(OSError):
        place(jobs[0]).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place(jobs[0]), json.dumps(table))


def measured(job: Job) -> dict[str, dict[str, float]]:
    """What the last day's dry runs found, by ``key``; nothing of what is no such finding."""
    table, now = None, time.time()
    with suppress(OSError):
        table = read_json(place(job))
    return {
        name: costs
        for name, costs in (table.items() if isinstance(table, dict) else ())
        if isinstance(costs, dict)
        and costs.keys() == set(MEASURED)
        and all(type(value) in (int, float) for value in costs.values())
        and now - DAY < costs["at"] <= now
    }


def place(job: Job) -> Path:
    """Where it is kept. Raises OSError for a user without a home folder."""
    try:
        return Path(job.settings.data.cache).expanduser() / "costs.json"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def key(job: Job) -> str:
    """Of all that a network's cost may depend on: settings, data folder, machine and code."""
    settings = {name: x for name, x in as_dict(job.settings).items() if name not in NAMES}
    with suppress(OSError):
        settings["data_changed"] = os.stat(job.settings.data.root).st_mtime_ns
    text = json.dumps([settings, machine()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def machine() -> list[Any]:
    """Its name, cores and GPUs, and of what is installed when it was last changed."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    changed = max(path.stat().st_mtime_ns for path in PACKAGE.rglob("*.py"))
    return [platform.node(), os.cpu_count(), gpus, version("torch"), changed]
