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
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes
from xml.etree.ElementTree import Element, TreeBuilder

import numpy as np
import pytest
from fake_results import write_run
from matplotlib.colors import to_rgb

from resexp.analysis import report, verdict
from resexp.analysis.figures.canvas import DEPTH_COLOURS
from resexp.analysis.figures.chart import Line, Panel, Scale
from resexp.analysis.report.charts import MOST_POINTS, charts, line_values
from resexp.analysis.report.origin import sweeps
from resexp.analysis.report.page import MOST_CSV, judgement, page, write_report
from resexp.analysis.results import find_runs
from resexp.analysis.statistics import paired_t
from resexp.settings import UsageError
from resexp.train.row import COLUMNS

VOID = {"meta", "link", "br", "hr", "img", "input"}
EVIL = "<script>alert(1)</script>\"'&amp;${x}{{ 7 * 7 }}</svg>"


class Parser(HTMLParser):
    """A document as an ElementTree; raises where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.builder, self.open = TreeBuilder(), []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {key: value or "" for key, value in attrs})
        self.open.append(tag)
        if tag in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.builder.data(data)


def parse(text: str) -> Element:
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser.builder.close()


def whole(element: Element) -> str:
    return "".join(element.itertext()).strip()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain networks that degrade, residual ones that do not; one collapsed, one diverged run.

    For all tests of this file: not to be changed.
    """
    root = tmp_path_factory.mktemp("results")
    for seed, status in enumerate(("ok", "collapsed", "ok")):
        for depth in (20, 56):
            write_run(root, "residual", depth, seed, clean_loss=0.01 + 0.001 * seed)
        write_run(root, "plain", 20, seed, clean_loss=0.01, clean_error=0.3 + 0.1 * seed)
        write_run(root, "plain", 56, seed, clean_loss=1.5, clean_error=60 + seed, status=status)
    write_run(root, "plain", 110, 0, status="diverged")
    return root


def read(results: Path, filters: Sequence[str] = ()) -> str:
    return page(find_runs(results, filters), filters)


@pytest.fixture(scope="module")
def text(results: Path) -> str:
    return read(results)


@pytest.fixture(scope="module")
def tree(text: str) -> Element:
    return parse(text)


def values(tree: Element) -> dict[str, Any]:
    """The numbers that the script shows, by panel."""
    (block,) = tree.findall(".//script[@type='application/json']")
    found: dict[str, Any] = json.loads(whole(block))
    return found


# --- what it says


def test_the_verdict_comes_first_with_its_numbers(results: Path, tree: Element) -> None:
    (sentence,) = tree.findall(".//p[@class='sentence']")
    decided = verdict.decide(find_runs(results))
    assert whole(sentence) == verdict.text(decided).splitlines()[0]
    assert [whole(each) for each in sentence] == ["inconclusive (preliminary)"]
    headings = [whole(each) for each in tree.iter() if each.tag in ("h1", "h2")]
    assert headings[:2] == ["Experiment digits", "Verdict"]
    assert f"{decided.arms[0].change.train_error.mean:+.1f}" in whole(tree.findall(".//table")[0])
    rows = [whole(each) for each in tree.findall(".//th[@scope='row']")]
    assert rows[:3] == ["plain", "residual", "plain minus residual"]


def test_one_seed_has_means_without_intervals_and_one_depth_no_verdict(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0)
    text = read(tmp_path)
    assert "No verdict: a verdict needs two depths" in text
    assert "How to reproduce it" in text and "Error while training" in text
    for arch, depth in (("plain", 56), ("residual", 20), ("residual", 56)):
        write_run(tmp_path, arch, depth, 0)
    text = read(tmp_path)
    assert "nan" not in whole(parse(text)).lower().split() and "1 paired seed (" in text


def test_several_experiments_are_sections_that_can_be_jumped_to(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_run(tmp_path, "plain", 20, 0, name=name, status="running", rows=0)
    text = read(tmp_path)
    tree = parse(text)
    assert [each.attrib["href"] for each in tree.findall(".//nav//a")] == ["#e0", "#e1"]
    assert {"e0", "e1"} <= unique_ids(tree)
    levels(tree)
    assert "<svg" not in text and "no run here has a row" in text


def unique_ids(tree: Element) -> set[str]:
    ids = [each.attrib["id"] for each in tree.iter() if "id" in each.attrib]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w.-]+", each) for each in ids)
    return set(ids)


def levels(tree: Element) -> None:
    """One h1, and no heading leaves a level out."""
    found = [int(each.tag[1]) for each in tree.iter() if re.fullmatch(r"h[1-6]", each.tag)]
    assert found[0] == 1 and found.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(found))


def test_every_run_has_its_settings_and_environment_in_a_fold(results: Path, tree: Element) -> None:
    folds = [each for each in tree.iter("details") if "class" not in each.attrib]
    for fold, run in zip(folds, find_runs(results), strict=True):
        said = whole(fold)
        assert fold[0].tag == "summary" and whole(fold[0]).startswith(run.run + run.status)
        assert "momentum0.9" in said and "devicecpu" in said and run.record["command"] in said


def test_what_probes_found_is_told_with_its_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "plain", 20, 0, status="running", rows=0).parent
    (folder / "probe-damaged.json").write_text("{")
    assert "Mechanisms" not in read(tmp_path)
    found = {
        **{"probe": "gradients", "claim": "Gradients <vanish>.", "source": "common"},
        **{"verdict": "not supported", "sentence": "by 10^+3.1 <.", "recipe": "data digits"},
        **{"command": "resexp probe gradients", "conventions": ["seeds 0, 1, 2"]},
    }
    for key in found:
        (folder / "probe-damaged.json").write_text(json.dumps(found | {key: 5}))
        assert "Mechanisms" not in read(tmp_path)
    (folder / "probe-gradients.json").write_text(json.dumps(found))
    (folder / "probe-gradients.png").write_bytes(b"pixels")
    text = read(tmp_path)
    assert "Gradients &lt;vanish&gt;." in text and "seeds 0, 1, 2" in text
    assert "<strong>Not supported under this recipe</strong>: by 10<sup>3.1</sup> &lt;." in text
    assert f"data:image/png;base64,{base64.b64encode(b'pixels').decode()}" in text


# --- commands


def test_a_full_grid_is_one_sweep_and_any_other_a_list(tmp_path: Path) -> None:
    def write(arch: str, depth: int, seed: int) -> str:
        command = f"resexp run depth={depth} arch={arch} seed={seed} 'milestones=[0.5,0.75]'"
        record = {"command": command, "environment": {"git_commit": "0123abcd"}}
        write_run(tmp_path, arch, depth, seed, record=record, status="running", rows=0)
        return command

    one_by_one = [write("plain", depth, seed) for depth, seed in ((8, 0), (8, 1), (20, 0))]
    assert sweeps(find_runs(tmp_path)) == one_by_one  # a hole
    for grid in product(("plain", "residual"), (8, 20), (0, 1)):
        write(*grid)
    whole = ["resexp run -m depth=8,20 arch=plain,residual seed=0,1 'milestones=[0.5,0.75]'"]
    lines = ["git checkout 0123abcd", *whole, "resexp verdict results/digits seed=0,1"]
    text = read(tmp_path, ["seed=0,1"])
    assert "\n".join(lines) in unescape(text)
    assert "plain-20-s1" not in read(tmp_path, ["seed=0"])
    write_run(tmp_path, "highway", 20, 0, record={"command": "resexp run it's"})  # for no shell
    assert sweeps(find_runs(tmp_path)) == [*whole, "resexp run it's"]


# --- downloads


def test_the_csv_downloads_are_the_files(results: Path, tree: Element) -> None:
    links = {each.attrib["download"]: each.attrib["href"] for each in tree.iter("a")}
    for run in find_runs(results):
        head, _, body = links[f"{run.run}.csv"].partition(",")
        assert head == "data:text/csv;charset=utf-8"
        assert unquote_to_bytes(body) == (run.path / "metrics.csv").read_bytes()
    table = unquote_to_bytes(links["results.csv"].partition(",")[2]).decode().splitlines()
    assert table[0].startswith("name,series,depth") and len(table) == 1 + 5


@pytest.mark.process
def test_the_papers_sweep_stays_small(tmp_path: Path) -> None:
    """40 runs of 64,000 steps, a row every 100: under 3 MB, their CSV packed."""
    rows = [
        f"{step},{step / 390:.6g},0.1,{math.sin(step) + 2:.7g},{20 + 9 * math.sin(step):.7g},,,"
        f"{math.cos(step) + 2:.7g},{20 + 9 * math.cos(step):.7g},1234.567,{step / 31:.7g}"
        for step in range(100, 64_001, 100)
    ]
    text = "\n".join([",".join(COLUMNS), *rows]) + "\n"
    assert 40 * len(text) > MOST_CSV
    for arch, depth, seed in product(("plain", "residual"), (20, 32, 44, 56), range(5)):
        (write_run(tmp_path, arch, depth, seed) / "metrics.csv").write_text(text)
    path = write_report(tmp_path)
    assert path.stat().st_size < 3_000_000
    tree = parse(path.read_text())
    (link,) = tree.findall(".//a[@download='plain-20-s0.csv.gz']")
    assert gzip.decompress(base64.b64decode(link.attrib["href"].partition(",")[2])) == text.encode()
    assert tree.findall(".//button[@data-every]") == []
    lines = [line for panel in values(tree).values() for line in panel["lines"]]
    assert max(len(line["x"]) for line in lines) <= MOST_POINTS
    assert {line["x"][-1] for line in lines if "training" in line["name"]} == {64_000}


# --- safe and alone


def test_nothing_is_fetched_and_only_the_reports_own_script_may_run(
    results: Path, text: str, tree: Element
) -> None:
    for element in tree.iter():
        assert not {"src", "srcset", "action", "poster", "data"} & set(element.attrib)
        assert not any(key.startswith("on") for key in element.attrib)
        href = element.get("href", "")
        assert href.startswith(("data:", "#")) or element.tag == "a" or href == ""
    assert re.search(r"@import|@font-face|https?://", text) is None
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", text))
    assert str(results) not in text
    (script,) = [each for each in tree.iter("script") if "type" not in each.attrib]
    digest = base64.b64encode(hashlib.sha256((script.text or "").encode()).digest()).decode()
    (policy,) = tree.findall(".//meta[@http-equiv]")
    assert policy.attrib["content"].startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}';" in policy.attrib["content"]


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    for arch in ("plain", "residual"):
        for depth in (20, 56):
            record = {
                **{"name": EVIL, "run": f"{arch}-{depth}-{EVIL}", "error": EVIL},
                "command": f"resexp run depth={depth} '{EVIL.replace(chr(39), '')}'",
                "data": {"name": EVIL, "classes": 10, EVIL: EVIL},
                "environment": {"device_name": EVIL, "git_commit": EVIL, EVIL: EVIL},
            }
            status = "failed" if (arch, depth) == ("plain", 56) else "ok"
            extras = {"data.root": f"{EVIL}{depth}"}  # what all share is no label
            directory = write_run(
                tmp_path, arch, depth, 0, status=status, extras=extras, record=record
            )
    write_run(tmp_path, "plain", 20, 0, record={"name": EVIL})  # told from by its root
    finding = dict.fromkeys(("probe", "claim", "source", "verdict", "sentence", "recipe"), EVIL)
    finding |= {"command": EVIL, "conventions": [EVIL]}
    (directory.parent / "probe-evil.json").write_text(json.dumps(finding))
    (directory.parent / "probe-evil.png").write_bytes(b"pixels")
    text = read(tmp_path)
    tree = parse(text)  # every tag is closed by its own
    assert len([each for each in tree.iter("script") if "type" not in each.attrib]) == 1
    assert "<script>alert" not in text and "alert(1)</script>" not in text
    assert whole(tree.findall(".//h1")[0]) == f"Experiment {EVIL}"
    names = [line["name"] for panel in values(tree).values() for line in panel["lines"]]
    assert any(EVIL in name for name in names)
    assert any(EVIL in whole(each) for each in tree.findall(".//p[@class='panel-name']"))
    assert any(EVIL in whole(each) for each in tree.findall(".//use/title"))  # of a point
    unique_ids(tree)
    template = Path(report.__path__[0], "template.html").read_text()
    assert re.findall(r"[\w.]+\|safe", template) == ["panel.svg|safe", "script|safe"]


def test_a_page_is_plain_ascii(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0, extras={"data.root": "\u4e2d"}, status="running", rows=0)
    path = write_report(tmp_path)
    assert path.read_bytes().isascii()
    assert "\u4e2d" in whole(parse(path.read_text()))


# --- for everybody


def test_images_headings_tables_language_and_width_are_said(tree: Element) -> None:
    images = [each for each in tree.iter() if each.tag in ("svg", "img")]
    assert {image.attrib["role"] for image in images} == {"img"}
    said = [image.attrib["aria-label"] for image in images]
    assert len(said) == 2 + 2 + 2  # curves by series, errors by depth, differences
    assert "56 test: 2.0 %" in said[1] and "56 layers 61.0 %" in said[2]
    assert "plain minus residual: 20 layers +0.2 points" in said[4]
    levels(tree)
    boxes = tree.findall(".//div[@class='box']/table")
    assert len(boxes) == len(list(tree.iter("table"))) == 2
    assert all(table[0].tag == "caption" for table in boxes)
    assert {each.attrib["scope"] for each in tree.iter("th")} == {"col", "row"}
    (viewport,) = tree.findall(".//meta[@name='viewport']")
    assert viewport.attrib["content"] == "width=device-width, initial-scale=1"
    assert tree.attrib["lang"] == "en"


@pytest.mark.process
def test_legend_entries_are_buttons_for_what_is_drawn(tree: Element) -> None:
    figures = tree.findall(".//figure[@class='chart']")
    assert len(figures) == 3
    for figure in figures:
        plots = tuple(f"{each.attrib['id']}." for each in figure.findall(".//div[@class='plot']"))
        ids = [each.get("id", "") for each in figure.iter()]
        tags = {tag for each in ids if each.startswith(plots) for tag in each.split(".")[1:-1]}
        keys = figure.findall(".//button[@data-tag]")
        assert {each.attrib["data-tag"] for each in keys} <= tags
        assert {each.attrib["aria-pressed"] for each in keys} == {"true"}


def contrast(one: str, other: str) -> float:
    channels = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return float((high + 0.05) / (low + 0.05))


def test_text_stands_out_on_light_and_on_dark() -> None:
    style = Path(report.__path__[0], "template.html").read_text()
    blocks = re.findall(r":root \{([^}]*)\}", style)
    assert len(blocks) == 2
    for block in blocks:
        named = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6});", block))
        for text in ("ink", "soft", "link", "shown", "calm", "open"):
            for ground in ("paper", "wash"):
                assert contrast(named[text], named[ground]) >= 4.5, (text, ground)
    # Figures are on white in both; the palest of their text is grey.
    assert ".chart { background: #fff; color: #222;" in style
    assert contrast("#666666", "#fff") >= 4.5
    assert all(contrast(colour, "#fff") >= 1.9 for at, colour in DEPTH_COLOURS.items() if at >= 8)


# --- where it goes


def test_it_lands_beside_the_runs_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no runs in"):
        write_report(tmp_path)
    write_run(tmp_path, "plain", 20, 0, status="running", rows=0)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    assert write_report(tmp_path) == tmp_path / "digits/report.html"
    deep = tmp_path / "deep"
    assert write_report(tmp_path, deep / "page.html") == deep / "page.html"
    assert write_report(tmp_path, deep) == deep / "report.html"
    assert write_report(tmp_path, tmp_path / "new") == tmp_path / "new/report.html"
    assert len(find_runs(tmp_path)) == 1
    # The same runs at the same time give the same page.
    first = (tmp_path / "digits/report.html").read_bytes()
    assert first == (deep / "page.html").read_bytes() == (deep / "report.html").read_bytes()
    assert b"2027-01-15 08:00 UTC" in first
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(tmp_path, tmp_path / "file" / "report.html")


def test_a_control_has_a_verdict_too(tmp_path: Path) -> None:
    for depth, seed in product((20, 56), range(5)):
        write_run(tmp_path, "residual", depth, seed, clean_error=seed / 10)
    assert "--baseline residual" in judgement(find_runs(tmp_path), None)["refusal"]
    page = write_report(tmp_path, baseline="residual").read_text()
    assert "Training deeper residual networks: does not degrade" in page
    assert "resexp verdict results/digits --baseline residual" in page


# --- charts


def test_the_script_tells_what_is_drawn(results: Path, tree: Element) -> None:
    """The numbers of the page are those of the charts, whose own are held against the CSV files."""
    found = values(tree)
    made, _ = charts(find_runs(results))
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
    loss = found["e0-difference-p1"]["lines"][0]["told"]
    assert loss[0] == "\N{MINUS SIGN}0.04 (95 % \N{MINUS SIGN}0.14 to +0.06)"


def test_many_points_are_told_at_some_of_their_places() -> None:
    steps = [float(step) for step in range(5000)]
    line, scale = Line("", (), steps, steps, ""), Scale("step", 0, 4999)
    held = line_values(Panel("", scale, scale, [line]), line)
    assert MOST_POINTS / 2 < len(held["x"]) <= MOST_POINTS
    assert held["x"] == held["y"] == sorted(held["x"]) and held["x"][-1] == 4999
    assert held["told"][-1] == "4999.0 %"


def test_every_series_is_in_the_page(tmp_path: Path) -> None:
    rates = (0.01, 0.02, 0.03, 0.04, 0.05)
    for rate, arch, depth, seed in product(rates, ("plain", "residual"), (20, 56), range(2)):
        write_run(tmp_path, arch, depth, seed, extras={"lr": rate})
    made, _ = charts(find_runs(tmp_path))
    assert [len(chart.panels) for chart in made.values()] == [10, 2, 10]
    assert len(made["depth"].panels[0].lines) == 10
    series = [key for key in made["depth"].keys if key.name.startswith(("plain", "residual"))]
    assert len({(key.colour, key.marker) for key in series}) == 10


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
    body = parse(done.stdout).findall(".//body")[0]
    out = json.loads(body.attrib["data-outcome"])
    assert out["before"] == ["inline", "true"]
    assert out["hidden"] == ["none", "false", "inline"]
    assert out["again"] == ["inline", "true"]
    assert out["focus"] and out["tip"].startswith("step 22")
    assert "56 test: " in out["tip"]
    assert not out["wide"]
    assert out["drawn"] == [True] * text.count("<svg ") and len(out["drawn"]) > 1
    assert out["blob"] > 1000
    assert (out["requests"], out["violations"]) == ([], [])
