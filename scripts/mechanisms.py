"""docs/mechanisms.md, from what probes measured: claim, measurement, figure.

    python scripts/mechanisms.py [FOLDER [PAGE]]

FOLDER holds the rows of several probes (probe-<name>.csv) and, of each, when and on what it was
measured (probes.json, taken from the probe-<name>.json that resexp probe leaves). A sweep has its
probe's name and stands beside FOLDER, alone or in claims, if it was trained. Every probe is
concluded and its figure drawn again: the same files give the same page, byte for byte. What a
probe has to tell there stands in its own module (TEXTBOOK, headlines, account).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from resexp.analysis.results import find_runs, grouped
from resexp.analysis.statistics import paired_t
from resexp.probes import drawing, names, probe
from resexp.probes.rows import read
from resexp.probes.run import Measurement, as_record, cases_of, measured
from resexp.runs.records import finite

FOLDER = Path("results/digits/mechanisms")
PAGE = Path("docs/mechanisms.md")
TEMPLATE = "mechanisms.md.jinja"
ABOUT, CLAIMS = "probes.json", "claims"

Found = Mapping[str, Any]  # what probe-<name>.json holds


def measurements(folder: Path) -> dict[str, tuple[pd.DataFrame, Found]]:
    """By probe its rows, and on what, how and when they were measured."""
    about, beside = circumstances_in(folder), folder.parent
    claims = grouped(find_runs(beside / CLAIMS), lambda run: run.experiment.name)
    found: dict[str, tuple[pd.DataFrame, Found]] = {}
    for name in names():
        table = folder / f"probe-{name}.csv"
        if table.exists():
            found[name] = read(table.read_text()), about[name] | {"folder": folder}
        elif runs := claims.get(name) or find_runs(beside / name):
            own, cases = runs[0].experiment, cases_of(runs, probe(name).NEEDS)
            text, of_sweep = measured(Measurement(name, own, cases), f"resexp probe {name} {own}")
            place = beside / CLAIMS if name in claims else own
            found[name] = read(text), of_sweep | {"folder": place, "seconds": None}
    return found


def circumstances_in(folder: Path) -> dict[str, dict[str, Any]]:
    """By probe: recipe, command, time and machine; what was measured last counts."""
    kept, keys = folder / ABOUT, ("recipe", "command", "seconds", "measured", "environment")
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for path in folder.glob("probe-*.json"):
        new = json.loads(path.read_text())
        found[new["probe"]] = {key: new[key] for key in keys}
    return dict(sorted(found.items()))


def concluded(name: str, rows: pd.DataFrame, about: Found) -> Found:
    """What the page tells of a probe."""
    return {**finite(as_record(name, probe(name).conclude(rows))), **about}


def page(found: Sequence[Found], target: Path) -> str:
    """The whole page, with links from ``target``; its figures stand in a folder beside it.

    Raises ValueError if a probe has no number to tell.
    """
    if silent := [one["probe"] for one in found if not one["headlines"]]:
        raise ValueError(f"no headlines: {', '.join(silent)}.")
    folders = dict.fromkeys(one["folder"] for one in found)
    links = [Path(os.path.relpath(folder, target.parent)).as_posix() for folder in folders]
    filled = {"found": found, "links": links, "figures": target.stem}
    return template(TEMPLATE).render(filled)


def template(name: str) -> jinja2.Template:
    """A page to be filled in, which lies beside this script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": plain, "number": number, "seeds": seeds}
    environment.filters["circumstances"] = circumstances
    return environment.get_template(name)


# --- words


def number(headline: Found) -> str:
    """``**+3.12 decades** (+2.90 to +3.34) plain-56``, in Markdown."""
    values, base = list(headline["values"].values()), headline["base"]
    what = plain(headline["what"])
    unit = f" {headline['unit']}" if headline["unit"] else ""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"**not finite** in {len(values) - len(known)} of {len(values)} seeds: {what}"

    def spelled(value: float) -> str:
        return format(base**value if base else value, headline["form"])

    if not headline["interval"]:
        return f"**{spelled(min(known))} to {spelled(max(known))}{unit}** (range) {what}"
    mean = paired_t(known)
    spread = f"{spelled(mean.low)} to {spelled(mean.high)}" if mean.n > 1 else "no interval"
    return f"**{spelled(mean.mean)}{unit}** ({spread}) {what}"


def seeds(headlines: Sequence[Found]) -> str:
    """Over how many seeds."""
    counts = sorted({len(one["values"]) for one in headlines})
    return "n = " + " to ".join(map(str, counts))


def circumstances(found: Found) -> str:
    """Recipe, machine, code, command and time."""
    about = found["environment"]
    commit = (about["git_commit"] or "unknown")[:7]
    changes = ", uncommitted changes" if about["git_dirty"] else ""
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    seconds = f"; {found['seconds']:.0f} s" if found["seconds"] is not None else ""
    return (
        f"{plain(found['recipe'])}; {about['device_name']}, {threads}, torch {about['torch']}, "
        f"Python {about['python']}; commit {commit}{changes}; `{found['command']}`{seconds}"
    )


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in a cell too."""
    return "".join(f"\\{mark}" if mark in "\\|*<[]`" else mark for mark in text)


def main(folder: Path = FOLDER, target: Path = PAGE) -> None:
    found, figures = measurements(folder), target.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    for name, (rows, _) in found.items():
        drawing.write(probe(name), rows, figures / f"{name}.png")
    (folder / ABOUT).write_text(json.dumps(circumstances_in(folder), indent=1) + "\n")
    target.write_text(page([concluded(name, *one) for name, one in found.items()], target))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
