"""Run directories without training: what the tests of the analysis read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from resexp.runs.records import spell
from resexp.settings import Settings, as_dict, digest, run_name
from resexp.train.row import COLUMNS

PARAMETERS = {8: 75_290, 20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
DATA = {"train": 1437, "test": 360, "shape": [8, 8, 1], "classes": 10, "chance_error": 90.0}


def write_run(
    root: Path,
    arch: str,
    depth: int,
    seed: int,
    *,
    status: str = "ok",
    clean_loss: float = 0.01,
    clean_error: float = 0.2,
    train_error: float | None = None,
    test_error: float = 2.0,
    name: str = "digits",
    changes: dict[str, Any] | None = None,
    extras: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    wiggle: float = 0.0,
    rows: int | None = None,
) -> Path:
    """Write ``<root>/<name>/<run>/`` with run.json and metrics.csv; returns that folder.

    ``changes`` and ``extras`` are settings by flat key (extras are also listed as such), ``record``
    replaces whole entries of run.json. The curves fall from chance to the values given, with a
    wave of ``wiggle`` percent points that depends on the seed; ``rows`` cuts them short.
    """
    settings = as_dict(Settings(depth=depth, seed=seed, name=name))
    settings["arch"]["merge"] = "plain" if arch == "plain" else "residual"
    for key, value in {**(changes or {}), **(extras or {})}.items():
        *groups, leaf = key.split(".")
        place = settings
        for group in groups:
            place = place[group]
        place[leaf] = value
    train = clean_error + 0.3 if train_error is None else train_error
    final = {"train": train, "clean": clean_error, "test": test_error}
    table = curves(settings, final, clean_loss, seed, wiggle)[:rows]
    if status == "diverged":
        for row in table[len(table) // 2 :]:
            row |= {key: math.nan for key in row if key.endswith(("_loss", "_error"))}
    run = run_name(arch, depth, seed, extras or {})
    directory = root / name / run
    directory.mkdir(parents=True, exist_ok=True)
    lines = [",".join(COLUMNS), *(",".join(spell(row[key]) for key in COLUMNS) for row in table)]
    if table:
        (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
    last: dict[str, Any] = {}
    for row in table:
        last |= {key: type(value)(spell(value)) for key, value in row.items() if value is not None}
    last = {key: value if math.isfinite(value) else None for key, value in last.items()}
    written = {
        "run": run,
        "name": name,
        "status": status,
        "arch": arch,
        "depth": depth,
        "seed": seed,
        "extras": extras or {},
        "settings": settings,
        "digest": digest(settings),
        "overrides": [
            *(f"depth={depth}", f"arch={arch}"),
            *(f"{key}={value}" for key, value in (extras or {}).items()),
        ],
        "command": f"resexp run depth={depth} arch={arch}",
        "data": DATA | {"name": settings["data"]["name"]},
        "parameters": PARAMETERS.get(depth),
        "last": last,
        "environment": {"device": "cpu", "precision": "fp32"},
        "error": None,
    }
    (directory / "run.json").write_text(json.dumps(written | (record or {}), indent=1))
    return directory


def write_grid(root: Path, depths: Sequence[int], seeds: int, **more: Any) -> int:
    """Plain and residual runs of every depth and seed, the deeper plain the worse; how many."""
    for depth, seed, arch in product(depths, range(seeds), ("plain", "residual")):
        worse = depth / 8 if arch == "plain" else 1.0
        shift = 1 + (seed % 7) / 10
        loss, error = 0.01 * worse**2 * shift, 0.2 * worse * shift
        write_run(root, arch, depth, seed, clean_loss=loss, clean_error=error, wiggle=2, **more)
    return 2 * len(depths) * seeds


def curves(
    settings: dict[str, Any], final: dict[str, float], clean_loss: float, seed: int, wiggle: float
) -> list[dict[str, Any]]:
    """Rows that fall from chance (90 %, log 10) to the final values, exact at the last step."""
    steps, every = settings["steps"], settings["eval_every"]
    marks = [*range(every, steps, every), steps]
    table = []
    for index, step in enumerate(marks):
        left = 0.0 if step == steps else math.exp(-6 * step / steps)
        wave = 0.0 if step == steps else wiggle * math.sin(2.1 * index + 1.7 * seed)
        error = {
            key: min(90.0, max(0.0, value + (90 - value) * left + wave * (1 - step / steps)))
            for key, value in final.items()
        }
        clean = (index + 1) % settings["clean_every"] == 0 or step == steps
        loss = clean_loss + (math.log(10) - clean_loss) * left
        table.append(
            {
                "step": step,
                "epoch": step / 22.5,
                "lr": settings["lr"],
                "train_loss": loss,
                "train_error": error["train"],
                "clean_train_loss": loss if clean else None,
                "clean_train_error": error["clean"] if clean else None,
                "test_loss": loss + 0.1,
                "test_error": error["test"],
                "images_per_second": 1000.0,
                "seconds": step / 20,
            }
        )
    return table
