"""docs/mechanisms.md: the committed page is that of the committed rows and runs."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from fake_sweeps import orders_in

from resexp.analysis.results import export_runs
from resexp.probes import Account, Finding, Headline, Needs, Verdict, names, probe
from resexp.probes.rows import those
from resexp.probes.run import as_record
from resexp.runs.records import finite

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "results" / "digits" / "mechanisms"
PAGE = ROOT / "docs" / "mechanisms.md"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mechanisms = script("mechanisms")


# --- the committed page


@cache
def committed() -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """Rows and circumstances of every probe, as the script finds them from the root."""
    if not COMMITTED.exists():
        pytest.skip("results/digits/mechanisms is not here: ./scripts/mechanisms.sh makes it")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        found: dict[str, Any] = mechanisms.measurements(mechanisms.FOLDER)
    return found


@cache
def found(name: str) -> dict[str, Any]:
    if name not in committed() and probe(name).NEEDS is Needs.runs:
        pytest.skip(f"results/digits/claims/{name} is not here: ./scripts/claims.sh makes it")
    one: dict[str, Any] = mechanisms.concluded(name, *committed()[name])
    return one


def test_the_page_is_that_of_the_committed_rows_and_all_of_it_is_there() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        made = mechanisms.page([found(name) for name in committed()], mechanisms.PAGE)
    assert PAGE.read_bytes() == made.encode(), "run: python scripts/mechanisms.py"
    assert re.findall(r"^## (.*)$", made, re.MULTILINE) == sorted(committed())
    assert committed().keys() >= {one for one in names() if probe(one).NEEDS is not Needs.runs}
    assert re.findall(r"[{}]|nan|None", made) == []
    links = re.findall(r"[^\\]\]\(([^)#]+)\)", made)
    folders = {about["folder"] for _, about in committed().values()}
    assert len(links) == len(folders) + 2 * len(committed())
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def test_the_page_of_cures_is_that_of_the_committed_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cures = script("cures")
    if not cures.DIGITS.exists():
        pytest.skip(f"{cures.DIGITS} is not here: ./scripts/cures.sh makes it")
    assert cures.PAGE.read_text() == cures.page(), "run: python scripts/cures.py"


@pytest.mark.parametrize("name", names())
def test_the_order_of_rows_means_nothing_and_every_panel_shows_something(name: str) -> None:
    said, (rows, about) = found(name), committed()[name]
    backwards = mechanisms.concluded(name, rows.iloc[::-1], about)
    assert alike(said) == alike(backwards)
    assert all(axis.lines or axis.collections for axis in probe(name).draw(rows).axes)


def alike(found: Any) -> Any:
    """With numbers to nine digits: machines differ in the last ones."""
    if isinstance(found, dict):
        return {key: alike(value) for key, value in found.items()}
    if isinstance(found, list):
        return [alike(value) for value in found]
    return float(f"{found:.9g}") if isinstance(found, float) else found


def test_numbers_of_the_committed_page_are_those_of_the_rows() -> None:
    """By the standard library; t of 95 % with 4 degrees of freedom is 2.77645."""
    identity, speed, lesion = (committed()[name][0] for name in ("identity", "speed", "lesion"))
    parts = (
        those(identity, part=part, arch="plain")["loss"] for part in ("scratch", "constructed")
    )
    lost = [one - other for one, other in zip(*parts, strict=True)]
    mean, half = statistics.mean(lost), 2.77645 * statistics.stdev(lost) / 5**0.5
    assert [f"{one:+.4f}" for one in (mean, mean - half, mean + half)] == [
        "+1.7420",
        "+1.5401",
        "+1.9439",
    ]
    text = PAGE.read_text()
    assert "**+1.7420 nats** (+1.5401 to +1.9439) loss of plain-56, trained less" in text
    arms = (those(speed, arm=arm, step=10)["steps_to_threshold"] for arm in ("rezero", "residual"))
    ratios = [one / other for one, other in zip(*arms, strict=True)]
    assert f"{statistics.geometric_mean(ratios):.2f}" == "2.20"
    assert "**2.20 times** (2.03 to 2.37) steps, ReZero over residual" in text
    one = those(lesion, arch="residual", depth=20, seed=10).groupby("kind")["error_percent"]
    worst = found("lesion")["headlines"][2]["values"]["10"]
    assert worst == one.max()["delete"] - one.max()["whole"]


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
    said = found(name)
    numbers = said["numbers"] | {None: 0}
    more, less = OWN[name]
    one = said["headlines"][0]
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
    assert ignored("probe-gradients.json")
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


def fake(name: str, folder: Path) -> dict[str, Any]:
    """What the page is told of a probe; it is contradicted if its name is rank."""
    headlines = [
        Headline("this", pd.Series([1.0, 2.0])),
        Headline("that", pd.Series([1.0, 2.0, 3.0])),
    ]
    finding = Finding(Verdict.not_supported, "it is 1 | 2.", {}, ["seeds 0, 1"], headlines)
    finding.account = (Account.contradicted, "so *it* is.") if name == "rank" else None
    about = {"git_commit": "0123456789", "git_dirty": name == "speed", "threads": 1}
    about |= {"device_name": "a machine", "torch": "2", "python": "3"}
    return as_record(name, finding) | {
        "claim": f"The claim of {name}: |F| < [1].",
        "recipe": "data digits",
        "command": f"resexp probe {name}",
        "seconds": 1.5 if name == "rank" else None,
        "environment": about,
        "folder": folder,
    }


def test_the_page_has_a_row_a_figure_and_a_section_for_every_probe(tmp_path: Path) -> None:
    told = [fake("rank", tmp_path / "here"), fake("speed", tmp_path / "there")]
    told[1]["recipe"] = "data digits; data blobs"
    text = mechanisms.page(told, tmp_path / "docs" / "page.md")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2
    for line in lines:  # a pipe within a cell is escaped
        assert len(re.findall(r"(?<!\\)\|", line)) == 6
    for name in ("rank", "speed"):
        assert f"\n## {name}\n" in text
        assert text.count(f"](page/{name}.png)") == 2
    assert text.count("n = 2 to 3, [figure]") == 2
    assert "commit 0123456; `resexp probe rank`; 2 s\n" in text
    assert "commit 0123456, uncommitted changes; `resexp probe speed`\n" in text
    assert r"\|F\| \< \[1\]." in text
    assert "[contradicted](#rank)" in text
    assert r"**contradicted**: so \*it\* is." in text
    assert "what is in [here](../here), [there](../there);" in text
    assert "\n- data digits; data blobs; a machine, 1 thread, torch 2" in text
    with pytest.raises(ValueError, match="speed"):
        mechanisms.page([told[0], told[1] | {"headlines": []}], tmp_path / "page.md")


def test_a_sweep_is_read_from_the_pair_of_its_runs_in_a_folder_beside(tmp_path: Path) -> None:
    here = tmp_path / "digits" / "mechanisms"
    here.mkdir(parents=True)
    assert mechanisms.measurements(here) == {}  # not trained: no row
    ends = dict.fromkeys(("original", "relu_before_addition", "relu_only_preactivation"), 3.0)
    runs = orders_in(tmp_path, ends | {"full_preactivation": 0.0, "bn_after_addition": 9.0})
    pair = export_runs(runs, [], tmp_path / "out")
    pair.rename(here.parent / "orders")
    [(name, (rows, about))] = mechanisms.measurements(here).items()
    assert (name, about["folder"], len(rows)) == ("orders", here.parent / "orders", 5 * 5)
    assert mechanisms.concluded(name, rows, about)["verdict"] == "supported"
    assert about["recipe"].startswith("data digits, recipe digits")


def test_the_script_keeps_when_and_on_what_a_probe_was_measured(tmp_path: Path) -> None:
    _, about = committed()["identity"]
    shutil.copy(COMMITTED / "probe-identity.csv", tmp_path)
    left = {**about, "probe": "identity", "numbers": {}, "folder": None}
    (tmp_path / "probe-identity.json").write_text(json.dumps(left))
    mechanisms.main(tmp_path, tmp_path / "docs" / "page.md")
    (tmp_path / "probe-identity.json").unlink()
    text, figure = (tmp_path / "docs" / one for one in ("page.md", "page/identity.png"))
    kept, picture = text.read_text(), figure.read_bytes()
    mechanisms.main(tmp_path, text)
    assert (text.read_text(), figure.read_bytes()) == (kept, picture)
    assert "](page/identity.png)" in kept and "; 119 s\n" in kept
