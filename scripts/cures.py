"""docs/cures.md: what cures degradation besides a skip, from the committed sweeps.

    python scripts/cures.py

Every number comes from results/digits/cures and, for photographs, from results/cifar10-cures beside
results/cifar10-jpeg; what they mean stands in cures.md.jinja.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from mechanisms import template

from resexp.analysis.results import find_runs
from resexp.analysis.statistics import Interval
from resexp.probes import cures, sweeps
from resexp.probes.rows import read, those
from resexp.probes.run import cases_of, measured, of_runs

DIGITS = Path("results/digits/cures")
PHOTOGRAPHS, UNCURED = Path("results/cifar10-cures"), Path("results/cifar10-jpeg")
PAGE = Path("docs/cures.md")


def digits(rows: pd.DataFrame) -> list[list[str]]:
    """A line per cure, the least rise of plain networks first."""
    chosen, of = sweeps.best(rows), sweeps.judged(rows)
    shallow, deep = cures.depths_of(of)
    readings = cures.readings(of)
    return [
        [
            name,
            f"{chosen[cures.plain(name), shallow]:g}, {chosen[cures.plain(name), deep]:g}",
            error(of, cures.plain(name), shallow),
            error(of, cures.plain(name), deep),
            spelled(readings[name][0].mean),
            readings[name][1],
            error(of, f"residual, {name}", deep),
        ]
        for name in cures.rises(of, "plain", sweeps.ERROR)
    ]


def photographs() -> list[list[str]]:
    """A line per cure and depth on CIFAR-10, beside plain networks of the same seeds without it."""
    rows = []
    for folder, filters in (PHOTOGRAPHS, []), (UNCURED, ["arch=plain", "steps=1000"]):
        for case in cases_of(find_runs(folder, filters), cures.NEEDS) if folder.exists() else []:
            assert case.run is not None
            rows.append(sweeps.row_of(case.run, cures.cure(case), None))
    table = pd.DataFrame(rows)
    names = [name for name in dict.fromkeys(table.get("arm", ())) if name != cures.NONE]
    lines = []
    for name in names:
        for depth in sorted(set(those(table, arm=name)["depth"])):
            less = sweeps.contrast(table, (name, depth), (cures.NONE, depth)).mean
            here = those(table, arm=name, depth=depth)
            same = those(table, arm=cures.NONE, depth=depth)
            same = same[same["seed"].isin(here["seed"])]
            errors = error(here, name, depth), error(same, cures.NONE, depth)
            lines.append([name, str(depth), str(less.n), *errors, spelled(less)])
    return lines


def error(rows: pd.DataFrame, arm: str, depth: int) -> str:
    """The mean clean training error in percent, a dash without runs."""
    found = those(rows, arm=arm, depth=depth)[sweeps.ERROR]
    return f"{found.mean():.1f}" if len(found) else "-"


def spelled(mean: Interval) -> str:
    """``+0.4 (-0.5 to +1.2)``, in points; of one seed no interval."""
    return f"{mean.mean:+.1f}" + (f" ({mean.low:+.1f} to {mean.high:+.1f})" if mean.n > 1 else "")


def page() -> str:
    """The whole page."""
    [sweep] = of_runs("cures", DIGITS, [])
    table, about = measured(sweep, f"resexp probe cures {DIGITS}")
    rows = read(table)
    found = cures.conclude(rows)
    told = {"digits": digits(rows), "photographs": photographs(), "found": found, "about": about}
    return template("cures.md.jinja").render(told)


if __name__ == "__main__":
    PAGE.write_text(page())
