"""docs/mechanisms.md: the committed page is that of the findings, and the findings of the rows."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from resexp.probes import Account, Finding, Headline, Needs, Verdict, names, probe
from resexp.probes.rows import as_csv, read
from resexp.probes.run import as_record, of_runs, recipe
from resexp.runs.records import finite

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "results" / "digits" / "mechanisms"
PAGE = ROOT / "docs" / "mechanisms.md"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mechanisms", ROOT / "scripts" / "mechanisms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mechanisms = script()


# --- the committed page


TABLES = {path.stem.removeprefix("probe-"): path for path in mechanisms.findings(COMMITTED)}


def committed(name: str) -> dict[str, Any]:
    if not COMMITTED.exists():
        pytest.skip("results/digits/mechanisms is not here: ./scripts/mechanisms.sh makes it")
    if name not in TABLES and probe(name).NEEDS is Needs.runs:
        pytest.skip(f"results/digits/{name} is not here: ./scripts/claims.sh makes it")
    found: dict[str, Any] = json.loads(TABLES[name].with_suffix(".json").read_text())
    return found


@pytest.mark.parametrize("name", names())
def test_a_committed_finding_is_that_of_its_rows(name: str) -> None:
    found = committed(name)
    again = mechanisms.concluded(TABLES[name])
    assert alike(again) == alike(found), "run: python scripts/mechanisms.py"
    one, rows = probe(name), read(TABLES[name])
    backwards = finite(as_record(name, one.conclude(rows.iloc[::-1])))
    assert alike(found).items() >= alike(backwards).items()
    axes = one.draw(rows).axes
    assert all(axis.lines or axis.collections for axis in axes)


@pytest.mark.parametrize("name", [one for one in names() if probe(one).NEEDS is Needs.runs])
def test_a_committed_finding_of_a_sweep_is_that_of_its_runs(name: str) -> None:
    """Of the pair beside it, which is all that is committed of them."""
    found = committed(name)
    [one] = of_runs(name, TABLES[name].parent, [])
    rows = probe(name).measure(one.cases, lambda done, of, what: None)
    assert as_csv(rows) == TABLES[name].read_text()
    assert recipe(Needs.runs, one.cases) == found["recipe"]


def alike(found: Any) -> Any:
    """With numbers to nine digits: machines differ in the last ones."""
    if isinstance(found, dict):
        return {key: alike(value) for key, value in found.items()}
    if isinstance(found, list):
        return [alike(value) for value in found]
    return float(f"{found:.9g}") if isinstance(found, float) else found


@pytest.mark.process
def test_the_page_is_that_of_the_committed_findings() -> None:
    committed("rank")
    made = mechanisms.page(mechanisms.findings(COMMITTED), PAGE)
    assert PAGE.read_bytes() == made.encode(), "run: python scripts/mechanisms.py"
    sweeps = {name for name in names() if probe(name).NEEDS is Needs.runs}
    assert re.findall(r"^## (.*)$", made, re.MULTILINE) == sorted(TABLES)
    assert TABLES.keys() >= set(names()) - sweeps


def test_nothing_of_the_committed_page_was_left_unfilled() -> None:
    committed("rank")
    assert re.findall(r"[{}]|nan|None", PAGE.read_text()) == []


def test_every_link_of_the_committed_page_leads_somewhere() -> None:
    committed("rank")
    links = re.findall(r"[^\\]\]\(([^)#]+)\)", PAGE.read_text())
    folders = {path.parent for path in TABLES.values()}
    assert len(links) == len(folders) + 2 * len(TABLES)
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def rows(name: str, **wanted: str) -> list[dict[str, str]]:
    with (COMMITTED / f"probe-{name}.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if wanted.items() <= row.items()]


def test_numbers_of_the_committed_page_are_those_of_the_rows() -> None:
    """By the standard library alone; t of 95 % with 4 degrees of freedom is 2.77645."""
    committed("rank")
    text = PAGE.read_text()
    lost = [
        float(one["loss"]) - float(other["loss"])
        for one, other in zip(
            rows("identity", part="scratch", arch="plain"),
            rows("identity", part="constructed", arch="plain"),
            strict=True,
        )
    ]
    mean, half = statistics.mean(lost), 2.77645 * statistics.stdev(lost) / 5**0.5
    assert [f"{one:+.4f}" for one in (mean, mean - half, mean + half)] == [
        "+1.7420",
        "+1.5401",
        "+1.9439",
    ]
    assert "**+1.7420 nats** (+1.5401 to +1.9439) loss of plain-56, trained less" in text
    steps = {
        arm: [int(row["steps_to_threshold"]) for row in rows("speed", arm=arm, step="10")]
        for arm in ("rezero", "residual")
    }
    ratios = [one / other for one, other in zip(*steps.values(), strict=True)]
    assert f"{statistics.geometric_mean(ratios):.2f}" == "2.20"
    assert "**2.20 times** (2.03 to 2.37) steps, ReZero over residual" in text
    error = {
        kind: [float(row["error_percent"]) for row in rows("lesion", **where, kind=kind)]
        for where in [{"arch": "residual", "depth": "20", "seed": "10"}]
        for kind in ("whole", "delete")
    }
    worst = committed("lesion")["headlines"][2]["values"]["10"]
    assert worst == max(error["delete"]) - error["whole"][0]


#: The first number of a headline out of those that the probe made itself: added, taken away.
OWN = {
    "gradients": ("log10 rho, plain 56, step 0", None),
    "highway": ("path share, residual 56, end", None),
    "responses": ("change, residual 20, end", "change, plain 20, end"),
    "identity": ("nats, scratch, plain", "nats, constructed, plain"),
    "lesion": ("points, median of single deletions, plain-20", None),
    "paths": ("slope of log10 norm per block, end, batch statistics", None),
    "short_paths": ("short less usual, train_loss (log10)", None),
    "landscape": ("roughness, plain 56", "roughness, residual 56"),
    "shattering": ("correlation, plain 56, start, 0.015625 of the way", None),
    "where": ("points above all, none", None),
    "speed": ("log2 steps, rezero over residual", None),
}


@pytest.mark.parametrize("name", OWN)
def test_headlines_and_numbers_agree_on_the_committed_rows(name: str) -> None:
    found = committed(name)
    numbers = found["numbers"] | {None: 0}
    more, less = OWN[name]
    one = found["headlines"][0]
    scale = 100 if one["unit"] == "%" else 1
    mean = statistics.mean(one["values"].values())
    assert mean == pytest.approx(scale * (numbers[more] - numbers[less]), rel=1e-6, abs=1e-9)


def test_git_takes_the_committed_folder_without_checkpoints() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git")

    def ignored(name: str) -> bool:
        path = f"results/digits/mechanisms/{name}"
        command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", "-q", path]
        return subprocess.run(command).returncode == 0

    assert ignored("plain-8-s0/checkpoint.pt")
    assert ignored("plain-8-s0/metrics.csv")
    assert not ignored("rows.csv")
    assert not ignored("probe-gradients.csv")


# --- numbers in Markdown


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        # Mean 2, deviation 1, t(0.975, 2) = 4.30265, over the root of 3: 2.48414.
        ([1, 2, 3], {"unit": "units", "form": ".3f"}, "**2.000 units** (-0.484 to 4.484) |F|"),
        # Of two values the interval is the mean +- 12.706205 * half their distance.
        ([2, 3], {"unit": "decades", "form": "+.1f"}, "**+2.5 decades** (-3.9 to +8.9) |F|"),
        ([1, 1], {"unit": "times", "base": 10}, "**10.00 times** (10.00 to 10.00) |F|"),
        (
            [1, 3],
            {"base": 2, "form": ".3g"},
            f"**4** ({2 ** (2 - 12.706205):.3g} to {2 ** (2 + 12.706205):.3g}) |F|",
        ),
        ([1e-16, 2e-16], {"form": ".0e", "interval": False}, "**1e-16 to 2e-16** (range) |F|"),
        ([1], {"form": ".1f"}, "**1.0** (no interval) |F|"),
        ([1, float("nan")], {}, "**not finite** in 1 of 2 seeds: |F|"),
    ],
)
def test_a_number_has_its_mean_and_interval(
    values: list[float], options: dict[str, object], expected: str
) -> None:
    headline = Headline("|F|", pd.Series(values, dtype=float), **options)  # type: ignore[arg-type]
    finding = Finding(Verdict.supported, "", headlines=[headline])
    [one] = finite(as_record("rank", finding))["headlines"]
    assert mechanisms.number(one) == expected.replace("|", "\\|")


def test_a_number_without_a_seed_is_not_told() -> None:
    nothing = Headline("what", pd.Series(dtype=float))
    assert as_record("rank", Finding(Verdict.supported, "", headlines=[nothing]))["headlines"] == []


# --- the page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder ``here`` with two findings as resexp probe leaves them."""
    here = tmp_path / "here"
    here.mkdir()
    headlines = [
        Headline("this", pd.Series([1.0, 2.0])),
        Headline("that", pd.Series([1.0, 2.0, 3.0])),
    ]
    for name in ("speed", "rank"):
        finding = Finding(Verdict.not_supported, "it is 1 | 2.", headlines=headlines)
        finding.conventions = ["seeds 0, 1"]
        finding.account = (Account.contradicted, "so *it* is.") if name == "rank" else None
        about = {"git_commit": "0123456789", "git_dirty": name == "speed", "threads": 1}
        about |= {"device_name": "a machine", "torch": "2", "python": "3"}
        found = as_record(name, finding) | {
            "claim": f"The claim of {name}: |F| < [1].",
            "recipe": "data digits",
            "command": f"resexp probe {name}",
            "seconds": 1.5,
            "environment": about,
        }
        (here / f"probe-{name}.json").write_text(json.dumps(found))
        (here / f"probe-{name}.csv").touch()
    return here


def page_of(folder: Path) -> str:
    made: str = mechanisms.page(mechanisms.findings(folder), folder.parent / "docs/page.md")
    return made


@pytest.mark.process
def test_the_page_has_a_row_a_figure_and_a_section_for_every_probe(folder: Path) -> None:
    text = page_of(folder)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2
    for line in lines:  # a pipe within a cell is escaped
        assert len(re.findall(r"(?<!\\)\|", line)) == 6
    for name in ("rank", "speed"):
        assert f"\n## {name}\n" in text
        assert f"](../here/probe-{name}.png)\n" in text
    assert text.count("n = 2 to 3, [figure]") == 2
    assert "commit 0123456; `resexp probe rank`; 2 s" in text
    assert "commit 0123456, uncommitted changes; `resexp probe speed`" in text
    assert r"\|F\| \< \[1\]." in text
    assert "[contradicted](#rank)" in text
    assert r"**contradicted**: so \*it\* is." in text


def test_a_probe_without_a_number_is_refused_by_name(folder: Path) -> None:
    path = folder / "probe-rank.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"headlines": []}))
    with pytest.raises(ValueError, match="rank"):
        page_of(folder)


def test_the_finding_of_a_sweep_stands_in_a_folder_beside_and_has_its_own_links(
    folder: Path,
) -> None:
    without = page_of(folder)
    spans = folder.parent / "spans"
    spans.mkdir()
    assert page_of(folder) == without  # not trained: no row
    found = json.loads((folder / "probe-rank.json").read_text())
    found |= {"probe": "spans", "recipe": "data digits; data blobs"}
    (spans / "probe-spans.json").write_text(json.dumps(found))
    (spans / "probe-spans.csv").touch()
    (spans / "probe-speed.csv").touch()  # of another probe: passed over
    text = page_of(folder)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["rank", "spans", "speed"]
    assert text.count("](../spans/probe-spans.png)") == 2
    assert "left in [here](../here), [spans](../spans);" in text
    assert "(data digits; data blobs)" in text


def test_the_script_concludes_again_and_links_relative_to_the_page(tmp_path: Path) -> None:
    kept = committed("identity")
    for form in ("csv", "json"):
        shutil.copy(COMMITTED / f"probe-identity.{form}", tmp_path)
    spoiled = kept | {"verdict": "supported", "numbers": {}}
    (tmp_path / "probe-identity.json").write_text(json.dumps(spoiled))
    mechanisms.main(tmp_path, tmp_path / "docs" / "page.md")
    assert alike(json.loads((tmp_path / "probe-identity.json").read_text())) == alike(kept)
    assert "](../probe-identity.png)" in (tmp_path / "docs/page.md").read_text()
