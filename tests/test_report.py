"""The HTML report: complete, self-contained, harmless and accessible; opened once in Chromium."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from fake_results import write_run

from resexp.analysis import report, verdict
from resexp.analysis.figures.canvas import DEPTH_COLOURS
from resexp.analysis.figures.chart import Line, Panel, Scale
from resexp.analysis.report.charts import MOST_POINTS, charts, line_values
from resexp.analysis.report.origin import sweeps
from resexp.analysis.report.page import MOST_CSV, page, write_report
from resexp.analysis.results import find_runs
from resexp.analysis.statistics import paired_t
from resexp.runs.records import COLUMNS
from resexp.settings import UsageError

VOID = {"meta", "link", "br", "hr", "img", "input"}
EVIL = "<script>alert(1)</script>\"'&amp;${x}</svg>"


@dataclass(eq=False)
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None
    parts: list[str | Element] = field(default_factory=list)

    @property
    def children(self) -> list[Element]:
        return [part for part in self.parts if isinstance(part, Element)]

    @property
    def text(self) -> str:
        """What stands directly in it."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def whole(self) -> str:
        """What stands in it and in everything in it."""
        return "".join(part if isinstance(part, str) else part.whole for part in self.parts)


class Tree(HTMLParser):
    """All elements of a document in order; raises where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.here: Element | None = None
        self.feed(text)
        self.close()
        assert self.here is None, f"{self.here.tag} is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs}, self.here)
        self.elements.append(element)
        if self.here is not None:
            self.here.parts.append(element)
        if tag not in VOID:
            self.here = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.here is not None and self.here.tag == tag, f"</{tag}> closes {self.here}"
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        if self.here is not None:
            self.here.parts.append(data)

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain networks that degrade, residual ones that do not; one collapsed, one diverged run.

    For all tests of this file: not to be changed.
    """
    root = tmp_path_factory.mktemp("results")
    for seed in range(3):
        for depth in (20, 56):
            write_run(root, "residual", depth, seed, clean_loss=0.01 + 0.001 * seed)
        write_run(root, "plain", 20, seed, clean_loss=0.01, clean_error=0.3 + 0.1 * seed)
        bad = {"status": "collapsed"} if seed == 1 else {}
        write_run(root, "plain", 56, seed, clean_loss=1.5, clean_error=60 + seed, **bad)
    write_run(root, "plain", 110, 0, status="diverged")
    return root


def read(results: Path, filters: Sequence[str] = ()) -> str:
    return page(find_runs(results, filters), filters)


@pytest.fixture(scope="module")
def text(results: Path) -> str:
    """The page of those runs."""
    return read(results)


@pytest.fixture(scope="module")
def tree(text: str) -> Tree:
    return Tree(text)


def values(tree: Tree) -> dict[str, Any]:
    """The numbers that the script shows, by panel."""
    (block,) = [e for e in tree.all("script") if e.attributes.get("type") == "application/json"]
    found: dict[str, Any] = json.loads(block.text)
    return found


# --- what it says


def test_the_verdict_comes_first_with_its_numbers(results: Path, tree: Tree) -> None:
    sentence = next(e for e in tree.elements if e.attributes.get("class") == "sentence")
    decided = verdict.decide(find_runs(results))
    assert sentence.whole == verdict.text(decided).splitlines()[0]
    assert [e.whole for e in sentence.children] == ["inconclusive (preliminary)"]
    headings = [e.whole for e in tree.elements if e.tag in ("h1", "h2")]
    assert headings[:2] == ["Experiment digits", "Verdict"]
    first = tree.all("table")[0]
    assert f"{decided.arms[0].change.loss.mean:+.2f}" in first.whole
    rows = [e.whole for e in tree.all("th") if e.attributes["scope"] == "row"]
    assert rows[:3] == ["plain", "residual", "plain minus residual"]


def test_without_a_verdict_the_rest_is_still_there(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0)
    text = read(tmp_path)
    assert "No verdict: a verdict needs two depths" in text
    assert "How to reproduce it" in text and "Error while training" in text


def test_runs_without_rows_make_a_report_without_figures(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0, status="running", rows=0)
    tree = Tree(read(tmp_path))
    assert tree.all("svg") == []
    assert any("No run has a row" in e.text for e in tree.all("p"))


def test_one_seed_has_means_without_intervals(tmp_path: Path) -> None:
    for arch in ("plain", "residual"):
        for depth in (20, 56):
            write_run(tmp_path, arch, depth, 0)
    text = read(tmp_path)
    assert "nan" not in Tree(text).elements[0].whole.lower().split()
    assert "1 paired seed (" in text


def test_several_experiments_are_sections_that_can_be_jumped_to(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_run(tmp_path, "plain", 20, 0, name=name)
    tree = Tree(read(tmp_path))
    links = [e.attributes["href"] for e in tree.all("a") if e.attributes["href"].startswith("#")]
    ids = [e.attributes["id"] for e in tree.elements if "id" in e.attributes]
    assert links == ["#e0", "#e1"]
    assert len(ids) == len(set(ids)) and {"e0", "e1"} <= set(ids)


def test_every_run_has_its_settings_and_environment_in_a_fold(results: Path, tree: Tree) -> None:
    folds = [e for e in tree.all("details") if "class" not in e.attributes]
    assert len(folds) == len(find_runs(results)) == 13
    assert [e.children[0].tag for e in folds] == ["summary"] * 13
    assert "plain-110-s0diverged" in "".join(e.whole for e in folds)
    for fold in folds:
        assert "momentum0.9" in fold.whole and "devicecpu" in fold.whole


def test_filters_choose_the_runs_and_are_repeated_in_the_commands(results: Path) -> None:
    text = read(results, ["depth=20"])
    assert "plain-110-s0" not in text
    assert "resexp report results/digits depth=20" in text


# --- commands


def command_run(tmp_path: Path, arch: str, depth: int, seed: int, *words: str) -> None:
    command = " ".join(["resexp run", f"depth={depth}", f"arch={arch}", f"seed={seed}", *words])
    record = {"command": command, "environment": {"git_commit": "0123abcd", "device": "cpu"}}
    write_run(tmp_path, arch, depth, seed, record=record)


def test_a_full_grid_is_one_sweep_command(tmp_path: Path) -> None:
    for arch in ("plain", "residual"):
        for depth in (8, 20):
            for seed in (0, 1):
                command_run(tmp_path, arch, depth, seed, "milestones=[0.5,0.75]")
    assert sweeps(find_runs(tmp_path)) == [
        "resexp run -m depth=8,20 arch=plain,residual seed=0,1 'milestones=[0.5,0.75]'"
    ]
    text = read(tmp_path)
    assert "git checkout 0123abcd\nresexp run -m depth=8,20" in unescape(text)
    assert "resexp verdict results/digits" in text


def test_a_grid_with_a_hole_is_listed_run_by_run(tmp_path: Path) -> None:
    for depth, seed in ((8, 0), (8, 1), (20, 0)):
        command_run(tmp_path, "plain", depth, seed)
    lines = sweeps(find_runs(tmp_path))
    assert lines == [
        f"resexp run depth={d} arch=plain seed={s}" for d, s in ((8, 0), (8, 1), (20, 0))
    ]


def test_a_command_that_no_shell_would_take_is_listed_as_it_is(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0, record={"command": "resexp run it's"})
    assert sweeps(find_runs(tmp_path)) == ["resexp run it's"]


def test_every_run_has_its_own_command(results: Path, text: str) -> None:
    shown = unescape(text)
    assert all(run.record["command"] in shown for run in find_runs(results))


# --- downloads


def test_the_csv_downloads_are_the_files(results: Path, tree: Tree) -> None:
    links = {e.attributes["download"]: e.attributes["href"] for e in tree.all("a")}
    for run in find_runs(results):
        head, _, body = links[f"{run.run}.csv"].partition(",")
        assert head == "data:text/csv;charset=utf-8"
        assert unquote_to_bytes(body) == (run.path / "metrics.csv").read_bytes()
    table = unquote_to_bytes(links["results.csv"].partition(",")[2]).decode().splitlines()
    assert table[0].startswith("name,series,depth") and len(table) == 1 + 5


def test_much_csv_is_packed(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "plain", 20, 0)
    lines = (directory / "metrics.csv").read_text().splitlines(keepends=True)
    cells = lines[-1].split(",")
    many = [
        ",".join([str(1000 + step), *cells[1:]]) for step in range(2 * MOST_CSV // len(lines[-1]))
    ]
    (directory / "metrics.csv").write_text("".join([*lines, *many]))
    tree = Tree(read(tmp_path))
    link = next(e for e in tree.all("a") if e.attributes["download"] == "plain-20-s0.csv.gz")
    packed = base64.b64decode(link.attributes["href"].partition(",")[2])
    assert gzip.decompress(packed) == (directory / "metrics.csv").read_bytes()
    assert not any("data-every" in e.attributes for e in tree.elements)


def test_the_papers_sweep_stays_small(tmp_path: Path) -> None:
    """40 runs of 64,000 steps, a row every 100: under 3 MB, at most 400 points a line."""
    rows = [
        f"{step},{step / 390:.6g},0.1,{math.sin(step) + 2:.7g},{20 + 9 * math.sin(step):.7g},,,"
        f"{math.cos(step) + 2:.7g},{20 + 9 * math.cos(step):.7g},1234.567,{step / 31:.7g}"
        for step in range(100, 64_001, 100)
    ]
    text = "\n".join([",".join(COLUMNS), *rows]) + "\n"
    for arch in ("plain", "residual"):
        for depth in (20, 32, 44, 56):
            for seed in range(5):
                (write_run(tmp_path, arch, depth, seed) / "metrics.csv").write_text(text)
    path = write_report(tmp_path)
    assert path.stat().st_size < 3_000_000
    tree = Tree(path.read_text())
    lines = [line for panel in values(tree).values() for line in panel["lines"]]
    assert max(len(line["x"]) for line in lines) <= MOST_POINTS
    assert {line["x"][-1] for line in lines if "training" in line["name"]} == {64_000}


# --- safe and alone


def test_nothing_is_fetched(text: str, tree: Tree) -> None:
    for element in tree.elements:
        for key in ("src", "srcset", "action", "poster", "data"):
            assert key not in element.attributes
        href = element.attributes.get("href", "")
        assert href.startswith(("data:", "#")) or element.tag == "a" or href == ""
    assert re.search(r"@import|@font-face|https?://", text) is None
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", text))
    policy = next(e for e in tree.all("meta") if "http-equiv" in e.attributes)
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_only_the_reports_own_script_may_run(tree: Tree) -> None:
    (script,) = [e for e in tree.all("script") if "type" not in e.attributes]
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    policy = next(e for e in tree.all("meta") if "http-equiv" in e.attributes)
    assert f"script-src 'sha256-{digest}'" in policy.attributes["content"]
    assert not any(key.startswith("on") for e in tree.elements for key in e.attributes)


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    for arch in ("plain", "residual"):
        for depth in (20, 56):
            write_run(
                tmp_path,
                arch,
                depth,
                0,
                status="failed" if (arch, depth) == ("plain", 56) else "ok",
                extras={"data.root": EVIL},
                record={
                    "name": EVIL,
                    "run": f"{arch}-{depth}-{EVIL}",
                    "error": EVIL,
                    "command": f"resexp run depth={depth} '{EVIL.replace(chr(39), '')}'",
                    "data": {"name": EVIL, "classes": 10, EVIL: EVIL},
                    "environment": {"device_name": EVIL, "git_commit": EVIL, EVIL: EVIL},
                },
            )
    text = read(tmp_path)
    tree = Tree(text)  # every tag is closed by its own
    assert len([e for e in tree.all("script") if "type" not in e.attributes]) == 1
    assert "<script>alert" not in text and "alert(1)</script>" not in text
    assert tree.all("h1")[0].text == f"Experiment {EVIL}"
    names = [line["name"] for panel in values(tree).values() for line in panel["lines"]]
    assert any(EVIL in name for name in names)
    assert any(EVIL in e.whole for e in tree.all("text"))  # of an axis
    assert any(EVIL in e.whole for e in tree.all("title")[1:])  # of a point
    ids = [e.attributes["id"] for e in tree.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w.-]+", each) for each in ids)


def test_a_page_is_plain_ascii(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0, record={"name": "Zahlen \u00fc\u4e2d"})
    path = write_report(tmp_path)
    assert path.read_bytes().isascii()
    assert Tree(path.read_text()).all("h1")[0].text == "Experiment Zahlen \u00fc\u4e2d"


# --- for everybody


def test_headings_are_in_order_under_one_h1(tmp_path: Path, text: str) -> None:
    for name in ("one", "other"):
        write_run(tmp_path, "plain", 20, 0, name=name)
    for each in (text, read(tmp_path)):
        levels = [int(e.tag[1]) for e in Tree(each).elements if re.fullmatch(r"h[1-6]", e.tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))


def test_every_image_says_what_it_shows(tree: Tree) -> None:
    images = tree.all("svg", "img")
    assert len(images) == 2 + 2 + 3  # curves by series, errors by depth, differences
    assert {image.attributes["role"] for image in images} == {"img"}
    said = [image.attributes["aria-label"] for image in images]
    assert "56 test: 2.0 %" in said[1] and "56 layers 61.0 %" in said[2]
    assert "plain minus residual: 20 layers +0.2 points" in said[4]


def test_tables_have_headers_that_say_their_direction(tree: Tree) -> None:
    assert len(tree.all("table")) == 2
    for table in tree.all("table"):
        assert table.children[0].tag == "caption"
        assert table.parent is not None and table.parent.attributes["class"] == "box"
    assert {e.attributes["scope"] for e in tree.all("th")} == {"col", "row"}


def test_the_page_suits_a_phone_and_says_its_language(tree: Tree) -> None:
    viewport = [e for e in tree.all("meta") if e.attributes.get("name") == "viewport"]
    assert viewport[0].attributes["content"] == "width=device-width, initial-scale=1"
    assert tree.all("html")[0].attributes["lang"] == "en"


def test_legend_entries_are_buttons_for_what_is_drawn(tree: Tree) -> None:
    figures = [e for e in tree.all("figure") if e.attributes.get("class") == "chart"]
    assert len(figures) == 3
    for figure in figures:
        inside = [e for e in tree.elements if within(e, figure)]
        plots = [e.attributes["id"] for e in inside if e.attributes.get("class") == "plot"]
        drawn = [e.attributes.get("id", "") for e in inside]
        marks = [each for each in drawn if each.startswith(tuple(f"{plot}." for plot in plots))]
        keys = [e for e in inside if "data-tag" in e.attributes]
        assert {e.attributes["aria-pressed"] for e in keys} == {"true"}
        for tag in (e.attributes["data-tag"] for e in keys):
            assert any(tag in mark.split(".")[1:-1] for mark in marks), tag


def within(element: Element, outer: Element) -> bool:
    return element is outer or (element.parent is not None and within(element.parent, outer))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * letter for letter in colour[1:])
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_on_light_and_on_dark() -> None:
    style = Path(report.__path__[0], "template.html").read_text()
    blocks = re.findall(r":root \{([^}]*)\}", style)
    assert len(blocks) == 2
    for block in blocks:
        named = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6});", block))
        for text in ("ink", "soft", "link", "shown", "calm", "open"):
            for ground in ("paper", "wash"):
                assert contrast(named[text], named[ground]) >= 4.5, (text, ground)
    # Figures are on white in both.
    assert ".chart { background: #fff; color: #222;" in style
    assert all(contrast(colour, "#fff") >= 1.8 for colour in DEPTH_COLOURS.values())
    assert contrast("#666666", "#fff") >= 4.5  # the palest text of a figure, but for chance


# --- where it goes


def test_it_lands_beside_the_runs_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "plain", 20, 0)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    assert write_report(tmp_path) == tmp_path / "report.html"
    deep = tmp_path / "deep"
    assert write_report(tmp_path, deep / "page.html") == deep / "page.html"
    assert write_report(tmp_path, deep) == deep / "report.html"
    assert len(find_runs(tmp_path)) == 1
    # The same runs at the same time give the same page.
    first = (tmp_path / "report.html").read_bytes()
    assert first == (deep / "page.html").read_bytes() == (deep / "report.html").read_bytes()
    assert b"2027-01-15 08:00 UTC" in first


def test_nothing_to_report_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no runs in"):
        write_report(tmp_path)
    write_run(tmp_path, "plain", 20, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(tmp_path, tmp_path / "file" / "report.html")


def test_torch_pandas_and_pyplot_are_not_loaded(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0)
    code = (
        "import sys; from pathlib import Path; "
        "from resexp.analysis.report.page import write_report; "
        "write_report(Path(sys.argv[1])); "
        "print(*{'torch', 'pandas', 'hydra', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


# --- charts


def test_the_script_tells_what_is_drawn(results: Path, tree: Tree) -> None:
    """The numbers of the page are those of the charts, whose own are held against the CSV files."""
    found = values(tree)
    made = charts(find_runs(results))
    assert list(made) == ["curves", "depth", "difference"]
    for kind, chart in made.items():
        for index, panel in enumerate(chart.panels):
            told = found[f"e0-{kind}-p{index}"]
            assert told["domain"] == [panel.x.low, panel.x.high]
            left, right, top, bottom = told["box"]
            assert 0 < left < right <= 1 and 0 <= top < bottom < 1
            for line, held in zip((x for x in panel.lines if x.name), told["lines"], strict=True):
                assert held["x"] == line.x and held["y"] == pytest.approx(line.y, abs=1e-4)
    (plain,) = [line for line in found["e0-depth-p0"]["lines"] if line["name"] == "plain"]
    interval = paired_t([60, 61, 62])
    assert plain["told"][1] == f"61.0 % (95 % {interval.low:.1f} to {interval.high:.1f})"
    loss = found["e0-difference-p2"]["lines"][0]["told"]
    assert loss[0] == "\N{MINUS SIGN}0.04 (95 % \N{MINUS SIGN}0.14 to +0.06)"


def test_many_points_are_told_at_some_of_their_places() -> None:
    steps = [float(step) for step in range(5000)]
    line = Line(name="", tags=(), x=steps, y=steps, colour="")
    scale = Scale(label="step", low=0, high=4999)
    panel = Panel(title="", x=scale, y=scale, lines=[line])
    held = line_values(panel, line)
    assert MOST_POINTS / 2 < len(held["x"]) <= MOST_POINTS
    assert held["x"] == held["y"] == sorted(held["x"]) and held["x"][-1] == 4999
    assert held["told"][-1] == "4999.0 %"


def test_every_series_is_in_the_page(tmp_path: Path) -> None:
    for rate in (0.01, 0.02, 0.03, 0.04, 0.05):
        for arch in ("plain", "residual"):
            write_run(tmp_path, arch, 20, 0, extras={"lr": rate})
    made = charts(find_runs(tmp_path))
    assert [len(chart.panels) for chart in made.values()] == [10, 2, 15]
    assert len(made["depth"].panels[0].lines) == 10
    assert len({(key.colour, key.marker) for key in made["depth"].keys if key.tag[:1] == "s"}) == 10


# --- in a browser

PROBE = """
"use strict";
addEventListener("load", () => {
  const out = {};
  const key = document.querySelector('.legend button[data-tag="d56"]');
  const trace = document.querySelector('svg [id*=".d56."]');
  const other = document.querySelector('svg [id*=".d20."]');
  const style = (element) => getComputedStyle(element).display;
  out.before = [style(trace), key.getAttribute("aria-pressed")];
  key.click();
  out.hidden = [style(trace), key.getAttribute("aria-pressed"), style(other)];
  key.click();
  out.again = [style(trace), key.getAttribute("aria-pressed")];
  const plot = document.querySelector(".plot");
  plot.focus();
  out.focus = document.activeElement === plot;
  for (const name of ["ArrowRight", "ArrowRight"])
    plot.dispatchEvent(new KeyboardEvent("keydown", { key: name, cancelable: true }));
  out.tip = plot.querySelector(".tip").innerText;
  out.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  out.drawn = [...document.querySelectorAll("svg")].map((image) => image.getBBox().width > 100);
  URL.createObjectURL = (blob) => { out.blob = blob.size; return "#"; };
  document.querySelector("button[data-every]").click();
  out.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  out.violations = violations;
  document.body.dataset.outcome = JSON.stringify(out);
});
const violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.blockedURI));
"""


@pytest.mark.slow
def test_in_chromium_legends_work_and_no_request_leaves(tmp_path: Path, text: str) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=500,900"),
            *("--dump-dom", probed.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    body = Tree(done.stdout).all("body")[0]
    out = json.loads(body.attributes["data-outcome"])
    assert out["before"] == ["inline", "true"]
    assert out["hidden"] == ["none", "false", "inline"]
    assert out["again"] == ["inline", "true"]
    assert out["focus"] and out["tip"].startswith("step 22")
    assert "56 test: " in out["tip"]
    assert not out["wide"]
    assert out["drawn"] == [True] * 7
    assert out["blob"] > 1000
    assert (out["requests"], out["violations"]) == ([], [])


def test_the_page_names_no_file_beside_it(results: Path, text: str) -> None:
    assert str(results) not in text


def test_what_probes_found_is_told_with_its_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "plain", 20, 0).parent
    (folder / "probe-damaged.json").write_text("{")
    assert "Mechanisms" not in write_report(tmp_path).read_text()
    found = {
        "probe": "gradients",
        "claim": "Gradients <vanish>.",
        "source": "common",
        "verdict": "not supported",
        "sentence": "they explode.",
        "recipe": "data digits",
        "command": "resexp probe gradients",
        "conventions": ["seeds 0, 1, 2"],
    }
    (folder / "probe-gradients.json").write_text(json.dumps(found))
    (folder / "probe-gradients.png").write_bytes(b"pixels")
    page = write_report(tmp_path).read_text()
    assert "Gradients &lt;vanish&gt;." in page
    assert "<strong>Not supported under this recipe</strong>: they explode." in page
    assert f"data:image/png;base64,{base64.b64encode(b'pixels').decode()}" in page
    assert "seeds 0, 1, 2" in page
