"""Where the numbers of a report come from, and what to type to make them again."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from resexp.analysis.results import Run
from resexp.console import counted


def facts(runs: Sequence[Run], filters: Sequence[str]) -> dict[str, str]:
    """What was trained on which data, where, with which code, and when; what is known of it."""
    first, environments = runs[0], [run.environment for run in runs]
    statuses = Counter(run.status for run in runs)
    seeds = sorted({run.seed for run in runs})
    said = {
        "Data": images(first),
        "Recipe": f"{first.setting('recipe')}: {first.setting('steps'):,} steps of "
        f"{first.setting('batch_size')} images, learning rate {first.setting('lr')}",
        "Runs": ", ".join(f"{count} {status}" for status, count in statuses.items())
        + f"; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
        + (f"; only {' '.join(filters)}" if filters else ""),
        "Code": "; ".join(distinct(map(code, environments))),
        "Machine": "; ".join(distinct(map(machine, environments))),
        "Software": "; ".join(distinct(map(software, environments))),
        "Trained": period(runs),
    }
    return {name: text for name, text in said.items() if text}


def images(run: Run) -> str:
    data = run.record["data"]
    if not all(data.get(key) for key in ("train", "test", "shape")):
        return run.data
    size, known = "x".join(map(str, data["shape"][:2])), f"{run.data}: {data['train']:,} training"
    return f"{known} and {data['test']:,} test images of {size} pixels"


def code(place: dict[str, Any]) -> str:
    if place.get("git_commit"):
        dirty = " with uncommitted changes" if place.get("git_dirty") else ""
        return f"commit {place['git_commit']}{dirty}"
    return f"resexp {place['resexp']}" if place.get("resexp") else ""


def machine(place: dict[str, Any]) -> str:
    threads = place.get("threads")
    parts = (
        place.get("device_name") or place.get("device"),
        counted(threads, "CPU thread") if threads else None,
        place.get("precision"),
    )
    return ", ".join(str(part) for part in parts if part)


def software(place: dict[str, Any]) -> str:
    named = {"torch": "PyTorch ", "cuda": "CUDA ", "cudnn": "cuDNN ", "python": "Python "}
    named["platform"] = ""
    return ", ".join(f"{name}{place[key]}" for key, name in named.items() if place.get(key))


def period(runs: Sequence[Run]) -> str:
    """From the first start to the last row, in UTC."""
    starts, ends = (
        [str(run.record[key])[:16].replace("T", " ") for run in runs if run.record.get(key)]
        for key in ("started", "updated")
    )
    if not starts or not ends:
        return ""
    first, last = min(starts), max(ends)
    return f"{first} to {last[11:] if last[:10] == first[:10] else last} UTC"


def distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, texts)))


def commands(runs: Sequence[Run], filters: Sequence[str], baseline: str | None = None) -> str:
    """What to type to train, judge and draw all this again, a command a line."""
    commits = distinct(str(run.environment.get("git_commit") or "") for run in runs)
    lines = [f"git checkout {shlex.quote(commits[0])}"] if len(commits) == 1 else []
    lines += sweeps(runs)
    folder = str(Path(str(runs[0].setting("results"))) / runs[0].name)
    judged = ["--baseline", baseline] if baseline else []
    for verb, flags in (("verdict", judged), ("table", []), ("plot", []), ("report", judged)):
        lines.append(shlex.join(["resexp", verb, folder, *filters, *flags]))
    return "\n".join(lines)


def sweeps(runs: Sequence[Run]) -> list[str]:
    """The commands that train exactly these runs: one sweep where they are all of a grid."""
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    odd = []
    for text in distinct(str(run.record.get("command") or "") for run in runs):
        try:
            words = shlex.split(text)
        except ValueError:  # edited by hand
            odd.append(text)
            continue
        keys = tuple(word.partition("=")[0] if "=" in word else word for word in words)
        groups.setdefault(keys, []).append(words)
    lines = []
    for group in groups.values():
        choices = [list(dict.fromkeys(column)) for column in zip(*group, strict=True)]
        if len(group) > 1 and math.prod(map(len, choices)) == len(group):
            # Words that differ have a value each: after the first, the value alone.
            together = [
                ",".join([first, *(word.partition("=")[2] for word in more)])
                for first, *more in choices
            ]
            lines.append(shlex.join([*together[:2], "-m", *together[2:]]))
        else:
            lines += [shlex.join(words) for words in group]
    return lines + odd
