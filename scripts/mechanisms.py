"""docs/mechanisms.md from the committed findings of resexp probe: claim, measurement, figure.

    python scripts/mechanisms.py [FOLDER [PAGE]]

FOLDER holds findings of several probes; that of a sweep stands in a folder beside it that has the
probe's name, if the sweep was trained. Every probe is concluded again from probe-<name>.csv, in
case its rule or words changed, and the page is filled from the probe-<name>.json alone: the same
files give the same page, byte for byte. What a probe has to tell there stands in its own module
(TEXTBOOK, headlines, account).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from resexp.analysis.statistics import paired_t
from resexp.probes import names, probe
from resexp.probes.rows import read
from resexp.probes.run import as_record
from resexp.runs.records import finite

FOLDER = Path("results/digits/mechanisms")
PAGE = Path("docs/mechanisms.md")
TEMPLATE = "mechanisms.md.jinja"

Found = Mapping[str, Any]  # what probe-<name>.json holds


def concluded(table: Path) -> dict[str, Any]:
    """The finding of probe-<name>.csv, with what its JSON says of the measurement."""
    name = table.stem.removeprefix("probe-")
    about = json.loads(table.with_suffix(".json").read_text())
    found: dict[str, Any] = finite(as_record(name, probe(name).conclude(read(table))))
    return found | {key: value for key, value in about.items() if key not in found}


def findings(folder: Path) -> list[Path]:
    """Every probe-<name>.csv of ``folder``, and of a sweep's own folder beside it; by name."""
    beside = (folder.parent / name / f"probe-{name}.csv" for name in names())
    found = {*folder.glob("probe-*.csv"), *(path for path in beside if path.exists())}
    return sorted(found, key=lambda path: path.name)


def page(tables: Sequence[Path], target: Path) -> str:
    """The whole page from the findings beside ``tables``, with links to them from ``target``.

    Raises ValueError if a probe has no number to tell.
    """
    found = [
        json.loads(path.with_suffix(".json").read_text())
        | {"link": Path(os.path.relpath(path.parent, target.parent)).as_posix()}
        for path in tables
    ]
    if silent := [one["probe"] for one in found if not one["headlines"]]:
        raise ValueError(f"no headlines: {', '.join(silent)}. Conclude again from probe-*.csv.")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": plain, "number": number, "seeds": seeds}
    environment.filters["circumstances"] = circumstances
    recipes = dict.fromkeys(part for one in found for part in one["recipe"].split("; "))
    links = dict.fromkeys(one["link"] for one in found)
    return environment.get_template(TEMPLATE).render(found=found, links=links, recipes=recipes)


# --- words


def number(headline: Found) -> str:
    """``**+3.12 decades** (+2.90 to +3.34) plain-56``, in Markdown."""
    values, what, base = (
        list(headline["values"].values()),
        plain(headline["what"]),
        headline["base"],
    )
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
    return (
        f"{plain(found['recipe'])}; {about['device_name']}, {threads}, torch {about['torch']}, "
        f"Python {about['python']}; commit {commit}{changes}; `{found['command']}`; "
        f"{found['seconds']:.0f} s"
    )


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in a cell too."""
    return "".join(f"\\{mark}" if mark in "\\|*<[]`" else mark for mark in text)


def main(folder: Path = FOLDER, target: Path = PAGE) -> None:
    tables = findings(folder)
    for table in tables:
        text = json.dumps(concluded(table), indent=1) + "\n"
        table.with_suffix(".json").write_text(text)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(tables, target))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
