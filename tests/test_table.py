"""The table: numbers, failures, published values and the five forms."""

from __future__ import annotations

import csv
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_results import write_run

from resexp.analysis.results import find_runs
from resexp.analysis.table import FORMS, VERIFIED, escape_latex, published_rows, render, rows
from resexp.settings import UsageError

HE2015 = {"data.name": "cifar10", "recipe": "he2015", "steps": 64000, "eval_every": 16000}


def he2015(root: Path, arch: str, depth: int, changes: dict[str, Any] | None = None) -> None:
    write_run(root, arch, depth, 0, name="he2015", changes=HE2015 | (changes or {}))


def test_a_line_is_the_mean_over_seeds_with_its_spread(tmp_path: Path) -> None:
    for seed, error in enumerate((1.0, 2.0, 6.0)):
        write_run(
            tmp_path, "plain", 20, seed, clean_error=error, test_error=error + 1, train_error=error,
            clean_loss=10.0 ** -(seed + 1),
        )  # fmt: skip
    (line,) = rows(find_runs(tmp_path))
    assert (line["name"], line["series"], line["depth"]) == ("digits", "plain", 20)
    assert line["parameters"] == 269_722
    assert (line["seeds"], line["runs"]) == (3, 3)
    assert line["clean_train_error"] == pytest.approx(3.0)
    assert line["clean_train_error_sd"] == pytest.approx(7**0.5)
    assert line["train_error"] == pytest.approx(3.0)
    assert line["test_error"] == pytest.approx(4.0)
    assert line["test_error_sd"] == pytest.approx(7**0.5)
    assert line["clean_train_loss"] == pytest.approx(0.01)  # geometric
    assert "3.00 (2.65)" in render([line], "text")


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0, clean_error=1.0)
    (line,) = rows(find_runs(tmp_path))
    assert line["clean_train_error_sd"] is None and line["test_error_sd"] is None
    assert "1.00 " in render([line], "text") and "1.00 (" not in render([line], "text")
    (cells,) = csv.DictReader(io.StringIO(render([line], "csv")))
    assert cells["test_error_sd"] == ""


def test_failures_are_counted_and_a_diverged_run_is_at_chance(tmp_path: Path) -> None:
    for seed, status in enumerate(("ok", "collapsed", "diverged", "failed", "running")):
        error = 90.0 if status == "collapsed" else 10.0
        write_run(tmp_path, "plain", 56, seed, status=status, test_error=error)
    (line,) = rows(find_runs(tmp_path))
    assert (line["collapsed"], line["diverged"], line["failed"]) == (1, 1, 1)
    assert (line["unfinished"], line["runs"], line["seeds"]) == (1, 5, 3)
    assert line["test_error"] == pytest.approx((10 + 90 + 90) / 3)
    text = render([line], "text")
    assert "3 of 5, 1 unfinished" in text
    assert text.endswith("A diverged run counts at chance.")


def test_a_network_without_a_finished_run_has_empty_cells(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 56, 0, status="failed", rows=0)
    (line,) = rows(find_runs(tmp_path))
    assert line["test_error"] is None and line["clean_train_loss"] is None
    assert "1 of 1" in render([line], "text")


def test_zero_loss_has_a_geometric_mean(tmp_path: Path) -> None:
    write_run(tmp_path, "residual", 20, 0, clean_loss=0.0)
    assert rows(find_runs(tmp_path))[0]["clean_train_loss"] == pytest.approx(1e-8)


def test_equal_names_in_two_folders_are_two_lines(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        write_run(tmp_path / folder, "plain", 20, 0)
    found = find_runs(tmp_path / "here") + find_runs(tmp_path / "there")
    assert len(rows(found)) == 2


@pytest.mark.parametrize(
    ("arch", "depth", "value"),
    [
        ("residual", 20, 8.75),
        ("residual", 32, 7.51),
        ("residual", 44, 7.17),
        ("residual", 56, 6.97),
        ("residual", 110, 6.61),  # the mean of five runs, not the best
        ("plain", 56, 14.22),  # a rerun: the paper has no number
        ("preact", 110, 6.37),
        ("preact", 56, None),
        ("plain", 110, None),
    ],
)
def test_published_errors_of_the_paper(
    tmp_path: Path, arch: str, depth: int, value: float | None
) -> None:
    he2015(tmp_path, arch, depth)
    (line,) = rows(find_runs(tmp_path))
    assert line["published_test_error"] == value
    assert line["published_remark"] is None
    if arch == "residual":
        assert "He2015 arXiv:1512.03385 Table 6" in line["published_source"]
        assert f"{value:.2f} [1]" in render([line], "text")


def test_no_published_error_beside_another_experiment(tmp_path: Path) -> None:
    write_run(tmp_path, "residual", 56, 0)
    for changes in ({"width": 32}, {"recipe": "mine"}, {"data.name": "digits"}):
        write_run(tmp_path, "residual", 56, 0, name=f"no{len(changes)}", changes=HE2015 | changes)
        assert all(line["published_test_error"] is None for line in rows(find_runs(tmp_path)))
    write_run(tmp_path, "residual", 56, 0, extras={"lr": 0.2}, changes=HE2015, name="he2015")
    shortcut = {"arch.shortcut": "B"}
    write_run(tmp_path, "residual", 56, 0, extras=shortcut, changes=HE2015, name="he2015")
    lines = rows(find_runs(tmp_path))
    assert all(line["published_test_error"] is None for line in lines)
    assert "published" not in render(lines, "text")


def test_a_network_of_another_size_is_not_the_published_one(tmp_path: Path) -> None:
    write_run(tmp_path, "residual", 56, 0, changes=HE2015, record={"parameters": 600_000})
    assert rows(find_runs(tmp_path))[0]["published_test_error"] is None


def test_other_images_or_fewer_steps_are_remarked(tmp_path: Path) -> None:
    he2015(tmp_path, "residual", 56, {"data.name": "cifar10-jpeg", "steps": 2000})
    text = render(rows(find_runs(tmp_path)), "text")
    assert "6.97 [1]" in text
    assert "published on CIFAR-10; these runs used a JPEG re-encoding of it" in text
    assert "published after 64,000 steps; these runs took 2,000" in text


def test_recalled_numbers_are_never_shown() -> None:
    text = files("resexp.analysis").joinpath("published.csv").read_text()
    everything = list(csv.DictReader(io.StringIO(text)))
    assert {"recalled", "recalled-low"} <= {row["verified"] for row in everything}
    assert {row["verified"] for row in published_rows()} == set(VERIFIED)
    assert 0 < len(published_rows()) < len(everything)


@pytest.fixture
def lines(tmp_path: Path) -> list[dict[str, Any]]:
    for seed in (0, 1):
        for depth in (20, 56):
            write_run(tmp_path, "plain", depth, seed, test_error=depth / 4 + seed)
            write_run(tmp_path, "residual", depth, seed, extras={"arch.shortcut": "B"})
    he2015(tmp_path, "residual", 56)
    return rows(find_runs(tmp_path))


def test_csv_and_json_hold_the_rows_exactly(lines: list[dict[str, Any]]) -> None:
    assert json.loads(render(lines, "json")) == lines
    frame = pd.read_csv(io.StringIO(render(lines, "csv")))
    assert list(frame.columns) == list(lines[0])
    assert list(frame["series"]) == [line["series"] for line in lines]
    assert list(frame["test_error"]) == [line["test_error"] for line in lines]
    assert list(frame["published_test_error"].dropna()) == [6.97]


def test_text_columns_are_aligned(lines: list[dict[str, Any]]) -> None:
    text = render(lines, "text").splitlines()
    assert all(len(line) <= 140 for line in text[:-1])
    ends = {line.index(" of ") for line in text[2:-1]}
    assert len(ends) == 1
    assert text[2].startswith("digits      plain ")
    assert "269,722" in text[2]


def test_markdown_has_as_many_cells_in_every_line(lines: list[dict[str, Any]]) -> None:
    table = [line for line in render(lines, "markdown").splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(lines)
    assert len({line.count("|") for line in table}) == 1
    awkward = [lines[0] | {"series": "plain,data.root=a|b"}]
    assert r"a\|b" in render(awkward, "markdown")


def test_latex_is_escaped(lines: list[dict[str, Any]]) -> None:
    text = render([lines[0] | {"series": "plain,weight_decay_on=all&50%"}], "latex")
    assert r"plain,weight\_decay\_on=all\&50\%" in text
    assert r"\begin{tabular}{lrrrrrrrr}" in text and r"\end{tabular}" in text
    body = [line for line in render(lines, "latex").splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in body}) == 1
    assert escape_latex("a\\b~c^d{e}#$") == (
        r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\{e\}\#\$"
    )


def test_another_form_is_refused(lines: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match=", ".join(FORMS)):
        render(lines, "html")


def test_no_rows_still_make_a_table() -> None:
    for form in FORMS:
        assert isinstance(render([], form), str)
