"""Rows and runs of sweeps without training: what the tests of their probes read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from fake_results import write_run

from resexp.analysis.results import Run
from resexp.config import compose
from resexp.probes import Case
from resexp.probes.rows import as_csv, read
from resexp.probes.sweeps import ERROR, LOSS, TEST
from resexp.settings import Job, as_dict

CHANCE = 90.0
SPREAD = (-0.2, -0.1, 0.0, 0.1, 0.2)  # points by seed: a 95 % lower bound 0.15 below the mean

#: Mean error by arm and depth, or the errors of seeds 10, 11, ... one by one.
Errors = dict[tuple[str, int], Any]


def rows_of(
    errors: Errors,
    test: Errors | None = None,
    chosen: Mapping[tuple[str, int], Mapping[float, float]] | None = None,
    seeds: int = 5,
) -> pd.DataFrame:
    """Rows as a reader of a probe's CSV has them; a run at CHANCE collapsed.

    A mean is spread over the seeds, alternately signed by arm, so that differences spread too.
    ``chosen``: the error of seeds 90 and 91 by value; seeds 10 on have the least one's.
    """
    rows = []
    for at, ((arm, depth), mean) in enumerate(errors.items()):
        ends = (
            [mean + (-1) ** at * one for one in SPREAD] if isinstance(mean, float | int) else mean
        )
        if mean == CHANCE:
            ends = [CHANCE] * len(SPREAD)
        tried = (chosen or {}).get((arm, depth), {})
        value = min(tried, key=lambda one: tried[one]) if tried else None
        runs = [(10 + n, end, value) for n, end in enumerate(ends[:seeds])]
        runs += [(seed, end, value) for value, end in tried.items() for seed in (90, 91)]
        for n, (seed, end, value) in enumerate(runs):
            tested = (test or {}).get((arm, depth), end)
            row: dict[str, Any] = {"arm": arm, "depth": depth, "seed": seed}
            row["status"] = "collapsed" if end == CHANCE else "ok"
            row |= {ERROR: end, TEST: tested if isinstance(tested, float | int) else tested[n]}
            row |= {LOSS: math.log10(max(end, 0.01) / 100)}
            rows.append(row | ({"value": value} if chosen is not None else {}))
    return pd.DataFrame(rows)


@cache
def composed(*words: str) -> Job:
    """Of all seeds alike, for it takes a while."""
    return compose(words)


def case_of(words: str, **record: Any) -> Case:
    """A finished run of what ``words`` compose, with a clean training error of 1 %."""
    seeds = [word for word in words.split() if word.startswith("seed=")]
    job = composed(*(word for word in words.split() if word not in seeds))
    if seeds:
        job = replace(job, settings=replace(job.settings, seed=int(seeds[0][5:])))
    numbers = {"clean_train_error": 1.0, "clean_train_loss": 0.1, "test_error": 2.0}
    known: dict[str, Any] = {
        "run": job.run,
        "name": job.settings.name,
        "arch": job.arch,
        "depth": job.settings.depth,
        "seed": job.settings.seed,
        "status": "ok",
        "extras": job.extras,
        "settings": as_dict(job.settings),
        "data": {"name": "digits", "classes": 10, "chance_error": CHANCE},
        "last": numbers,
    }
    return Case(job.arch, job.settings, Run(Path("nowhere") / job.run, known | record))


def measured(module: ModuleType, sweep: Sequence[str]) -> set[tuple[str, int]]:
    """Arms and depths that a probe finds in the runs of these words, as its CSV has them."""
    rows = read(as_csv(module.measure([case_of(words) for words in sweep], iter)))
    return set(zip(rows["arm"], rows["depth"], strict=True))


def orders_in(root: Path, errors: Mapping[str, float], seeds: int = 5) -> Path:
    """Run directories of residual networks of 56 layers in several orders; their folder."""
    for order, error in errors.items():
        for seed in range(10, 10 + seeds):
            status = "collapsed" if error == CHANCE else "ok"
            numbers = {"clean_error": error + seed / 100, "test_error": error + 1}
            write_run(
                root, "residual", 56, seed, status=status, extras={"arch.order": order}, **numbers
            )
    return root / "digits"
