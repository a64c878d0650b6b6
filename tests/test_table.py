"""The table: numbers, failures, published values and the five forms."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_results import write_run

from resexp.analysis.published import (
    TEST_METRICS,
    TRAIN_METRIC,
    VERIFIED,
    published_rows,
    short_source,
    z_value,
)
from resexp.analysis.results import find_runs
from resexp.analysis.table import FORMS, render, rows
from resexp.settings import UsageError

Lines = list[dict[str, Any]]

HE2015 = {"data.name": "cifar10", "recipe": "he2015", "steps": 64000, "eval_every": 16000}


def table(root: Path) -> Lines:
    return rows(find_runs(root))


def test_a_line_is_the_mean_over_seeds_with_its_spread(tmp_path: Path) -> None:
    for seed, error in enumerate((1.0, 2.0, 6.0)):
        errors = {"clean_error": error, "test_error": error + 1, "train_error": error}
        write_run(tmp_path, "plain", 20, seed, **errors, clean_loss=10.0 ** -(seed + 1))
    (line,) = table(tmp_path)
    exact = {"name": "digits", "series": "plain", "depth": 20, "parameters": 269_722, "seeds": 3}
    assert {key: line[key] for key in exact} == exact
    numbers = {
        **{"clean_train_error": 3, "clean_train_error_sd": 7**0.5, "train_error": 3, "runs": 3},
        **{"test_error": 4, "test_error_sd": 7**0.5, "clean_train_loss": 0.01},  # geometric
    }
    assert {key: line[key] for key in numbers} == pytest.approx(numbers)
    assert "3.00 (2.65)" in render([line], "text")


def test_one_seed_has_no_spread_and_a_loss_of_zero_a_mean(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0, clean_error=1.0, clean_loss=0.0)
    (line,) = table(tmp_path)
    assert line["clean_train_error_sd"] is None and line["test_error_sd"] is None
    assert "1.00 " in render([line], "text") and "1.00 (" not in render([line], "text")
    (cells,) = csv.DictReader(io.StringIO(render([line], "csv")))
    assert cells["test_error_sd"] == ""
    assert line["clean_train_loss"] == pytest.approx(1e-8)


def test_failures_are_counted_and_a_diverged_run_is_at_chance(tmp_path: Path) -> None:
    for seed, status in enumerate(("ok", "collapsed", "diverged", "failed", "running")):
        error = 90.0 if status == "collapsed" else 10.0
        write_run(tmp_path, "plain", 56, seed, status=status, test_error=error)
    write_run(tmp_path, "plain", 110, 0, status="failed", rows=0)
    line, empty = table(tmp_path)
    assert (line["collapsed"], line["diverged"], line["failed"]) == (1, 1, 1)
    assert (line["unfinished"], line["runs"], line["seeds"]) == (1, 5, 3)
    assert line["test_error"] == pytest.approx((10 + 90 + 90) / 3)
    assert empty["test_error"] is None and empty["clean_train_loss"] is None
    text = render([line, empty], "text")
    assert "3 of 5, 1 unfinished" in text and "1 of 1" in text
    assert text.endswith("A diverged run counts at chance.")


def test_equal_names_in_two_folders_are_two_lines(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        write_run(tmp_path / folder, "plain", 20, 0)
    assert len(rows(find_runs(tmp_path / "here") + find_runs(tmp_path / "there"))) == 2


@pytest.mark.parametrize(
    ("arch", "depth", "value", "changes"),
    [
        ("residual", 20, 8.75, {}),
        ("residual", 32, 7.51, {}),
        ("residual", 44, 7.17, {}),
        ("residual", 110, 6.61, {}),  # the mean of five runs, not the best
        ("plain", 56, 12.95, {}),  # a rerun, the mean of five: the paper has none
        ("preact", 110, 6.37, {"arch.order": "full_preactivation"}),
        ("preact", 56, None, {"arch.order": "full_preactivation"}),
        ("plain", 110, None, {}),  # a bound alone
        ("highway", 110, 8.7, {"arch.merge": "highway", "arch.gate_bias": -6.0}),
        ("highway", 110, None, {"arch.merge": "highway"}),
        ("se", 110, None, {"arch.se_ratio": 16}),  # by another recipe
        ("residual", 56, None, {"width": 32}),
        ("residual", 56, None, {"recipe": "mine"}),
        ("residual", 56, None, {"data.name": "digits"}),
        ("residual", 56, None, {"extras": {"lr": 0.2}}),
        ("residual", 56, None, {"extras": {"arch.shortcut": "B"}}),
        ("residual", 56, None, {"record": {"parameters": 600_000}}),  # of another size
    ],
)
def test_the_best_published_error_is_of_the_same_network_and_recipe(
    tmp_path: Path, arch: str, depth: int, value: float | None, changes: dict[str, Any]
) -> None:
    more = {key: changes[key] for key in changes if key in ("extras", "record")}
    settings = HE2015 | {key: changes[key] for key in changes if key not in more}
    write_run(tmp_path, arch, depth, 0, changes=settings, **more)
    (line,) = table(tmp_path)
    assert line["published_test_error"] == value and line["published_remark"] is None
    if value is None:
        assert "published" not in render([line], "text")
    elif arch == "residual":
        assert "He2015 arXiv:1512.03385 Table 6" in line["published_source"]
        assert f"{value:.2f} [1]" in render([line], "text")


def test_other_images_or_fewer_steps_are_remarked(tmp_path: Path) -> None:
    changes = HE2015 | {"data.name": "cifar10-jpeg", "steps": 2000}
    write_run(tmp_path, "residual", 56, 0, changes=changes)
    text = render(table(tmp_path), "text")
    assert "6.97 [1]" in text
    assert "published on CIFAR-10; these runs used a JPEG re-encoding of it" in text
    assert "published after 64,000 steps; these runs took 2,000" in text


def test_published_numbers_were_all_read_at_a_source_and_can_be_shown() -> None:
    assert {row["verified"] for row in published_rows()} == set(VERIFIED)
    assert {row["metric"] for row in published_rows()} == {*TEST_METRICS, TRAIN_METRIC}
    assert all(row["settings"] and row["source"] for row in published_rows())


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    for seed in (0, 1):
        for depth in (20, 56):
            write_run(tmp_path, "plain", depth, seed, test_error=depth / 4 + seed)
            write_run(tmp_path, "residual", depth, seed, extras={"arch.shortcut": "B"})
    write_run(tmp_path, "residual", 56, 0, name="he2015", changes=HE2015)
    return table(tmp_path)


def piped(text: str) -> list[str]:
    """The rows of a table in markdown, which must have as many cells each."""
    marked = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in marked}) == 1
    return marked


def test_text_columns_are_aligned(lines: Lines) -> None:
    text = render(lines, "text").splitlines()
    assert all(len(line) <= 140 for line in text[:-1])
    assert len({line.index(" of ") for line in text[2:-1]}) == 1
    assert text[2].startswith("digits      plain ") and "269,722" in text[2]


def test_markdown_and_latex_are_escaped(lines: Lines) -> None:
    awkward = [lines[0] | {"series": "plain,a|b_c=all&50%\\~^{>}#$<"}]
    assert r"plain,a\|b_c=all&amp;50%\~^{>}#$&lt;" in render(awkward, "markdown")
    text = render(awkward, "latex")
    assert (
        r"plain,a|b\_c=all\&50\%\textbackslash{}\textasciitilde{}\textasciicircum{}"
        r"\{\textgreater{}\}\#\$\textless{}"
    ) in text
    assert r"\begin{tabular}{lrrrrrrrr}" in text and r"\end{tabular}" in text
    assert r"\caption{" in text and r"\label{tab:" in text
    spread = lines[0] | {"test_error": 1.25, "test_error_sd": 0.5}
    assert r" & $1.25 \pm 0.50$ & " in render([spread], "latex")
    with pytest.raises(UsageError, match=", ".join(FORMS)):
        render(lines, "html")


# --- beside what others published


FULL = {
    **{"batch_size": 128, "lr": 0.1, "warmup_steps": 400, "warmup_depth": 110},
    **{"crop_padding": 4, "flip": True},
}
IMAGES = {"name": "cifar10", "train": 50_000, "test": 10_000, "classes": 10, "chance_error": 90.0}


def published(
    root: Path,
    arch: str,
    depth: int,
    errors: tuple[float, ...] = (8.0,),
    changes: dict[str, Any] | None = None,
    extras: dict[str, Any] | None = None,
    data: str = "cifar10",
    **record: Any,
) -> Lines:
    """Rows beside published ones, of one network by the paper's recipe, a seed an error."""
    changes = HE2015 | FULL | {"data.name": data} | (changes or {})
    record["data"] = IMAGES | {"name": data}
    for seed, error in enumerate(errors):
        more: Any = {"changes": changes, "extras": extras, "record": record}
        write_run(root, arch, depth, seed, name="he2015", test_error=error, **more)
    return rows(find_runs(root), published=True)


def remark(lines: Lines, source: str) -> str:
    """What is remarked beside a source's number, which is not its best."""
    (line,) = [
        line
        for line in lines
        if line["published_source"].startswith(source) and "best" not in line["published_statistic"]
    ]
    return str(line["published_remark"])


def test_every_source_of_a_network_is_a_line_the_paper_first(tmp_path: Path) -> None:
    lines = published(tmp_path, "residual", 56)
    keys = ("published_test_error", "published_source", "published_train_error")
    found = [tuple(line[key] for key in keys) for line in lines]
    assert [(error, short_source(source), train) for error, source, train in found] == [
        (6.97, "He2015 Table 6", None),
        (7.46, "a-martyn", 0.04),
        (7.13, "hhhhuangggg", 0.06),
        (7.4, "nabla0001", None),
        (7.5, "robertkoller", 0.05),
        (7.47, "samitmohan", None),
        (7.74, "tbachlechner/ReZero-examples README", None),
        (7.1, "wooyeolBaek", 0.11),
        (5.89, "Li2018 Fig 5/6", None),
        (8.3, "independent replication README", 0.18),
    ]
    assert {line["test_error"] for line in lines} == {8.0}
    assert lines[0]["difference"] == pytest.approx(1.03)
    assert all(line["published_verified"] in VERIFIED for line in lines)


def test_the_paper_repeats_no_number_and_a_best_is_no_mean(tmp_path: Path) -> None:
    lines = published(tmp_path, "residual", 110, (6.5, 6.7))
    said = [(line["published_test_error"], line["published_statistic"]) for line in lines]
    best = (6.43, "best of 5 runs")
    assert said[:3] == [(6.61, "mean of 5 runs"), best, (6.61, "median of 5 runs")]
    assert lines[1]["difference"] is None and lines[1]["z"] is None
    sources = [line["published_source"].split()[0] for line in lines]
    assert len({*zip(sources, said, strict=True)}) == len(lines)


def test_z_is_the_difference_over_both_standard_errors(tmp_path: Path) -> None:
    line, *more = lines = published(tmp_path, "residual", 110, (6.8, 7.0, 7.2))
    assert (line["published_test_error_sd"], line["published_runs"]) == (0.16, 5)
    expected = (7.0 - 6.61) / (0.2**2 / 3 + 0.16**2 / 5) ** 0.5
    assert line["z"] == pytest.approx(expected) == pytest.approx(2.87096, abs=1e-5)
    assert [one["published_test_error_sd"] is None for one in more] == [
        one["z"] is None for one in more
    ]
    text = render(lines, "text")
    assert "+2.9" in text and "sd^2 / n of each side" in text
    assert z_value(0.39, None, 1, 0.16, 5) is None  # one seed has no spread
    assert z_value(0.39, 0.0, 3, 0.0, 5) is None


def test_a_failure_is_only_a_bound(tmp_path: Path) -> None:
    lines = published(tmp_path, "plain", 110, (72.0, 74.0))
    said = [(line["published_bound"], line["published_test_error"]) for line in lines]
    assert said == [(">", 60.0), (">", 20.0), ("", 16.44)]
    assert lines[0]["difference"] is None and lines[2]["difference"] == pytest.approx(56.56)
    text = render(lines, "text")
    assert ">60.00" in text and "an error above this" in text


def test_footnotes_say_what_the_run_did_otherwise(tmp_path: Path) -> None:
    alike = remark(published(tmp_path / "alike", "residual", 20), "He2015")
    assert alike == "training split not stated there; these: all 50,000 images trained on"
    changes = {"steps": 2000, "data.split": "45k", "precision": "bf16", "nesterov": True}
    extras = {"arch.shortcut": "B", "lr": 0.05, "init": "xavier"}
    said = remark(published(tmp_path, "residual", 20, changes=changes, extras=extras), "He2015")
    assert "its runs: shortcut option A, 64,000 steps, learning rate 0.1; " in said
    assert "these: shortcut option B, 2,000 steps, learning rate 0.05; " in said
    assert "these runs also: init=xavier" in said
    assert said.endswith(
        "training split, Nesterov, precision not stated there; "
        "these: 45,000 of 50,000 images trained on, Nesterov momentum, bf16"
    )


def test_footnotes_are_of_each_source(tmp_path: Path) -> None:
    lines = published(tmp_path, "plain", 56)
    li, rerun = remark(lines, "Li2018"), remark(lines, "independent")
    assert "its runs: 300 epochs, drops at 0.5, 0.75, 0.917 of the steps, Nesterov momentum" in li
    assert "these: 164 epochs, drops at 0.5, 0.75 of the steps, momentum without Nesterov" in li
    assert "its deep networks without shortcuts at learning rate 0.01" in li
    assert "fp16" not in rerun and "rest of its recipe is not known" in rerun
    shallow = remark(published(tmp_path / "shallow", "plain", 20), "independent")
    assert "its runs: fp16 mixed precision; these: fp32" in shallow
    jpeg = remark(published(tmp_path / "jpeg", "residual", 20, data="cifar10-jpeg"), "He2015")
    assert jpeg.startswith("not compared; published on CIFAR-10; these runs: a JPEG re-encoding")


def test_errors_of_short_runs_or_other_images_are_not_set_against_published_ones(
    tmp_path: Path,
) -> None:
    def compared(name: str, **run: Any) -> set[bool]:
        lines = published(tmp_path / name, "plain", 20, (9.0, 9.2), **run)
        measured = [line for line in lines if "best" not in line["published_statistic"]]
        assert all(
            ("not compared" in line["published_remark"]) == (line["difference"] is None)
            and (line["z"] is None or line["difference"] is not None)
            for line in measured
        )
        return {line["difference"] is not None for line in measured}

    assert compared("whole") == compared("half", changes={"steps": 32_000}) == {True}
    assert compared("short", changes={"steps": 2_000}) == {False}
    assert compared("jpeg", data="cifar10-jpeg") == {False}


def test_other_data_have_empty_columns_and_one_footnote(tmp_path: Path) -> None:
    for arch in ("plain", "residual"):
        write_run(tmp_path, arch, 20, 0)
    lines = rows(find_runs(tmp_path), published=True)
    assert [(line["published_test_error"], line["z"]) for line in lines] == [(None, None)] * 2
    text = render(lines, "text").splitlines()
    note = "No published error is shown: those are of CIFAR-10, these runs of digits."
    assert [line for line in text if line.startswith("[")] == text[-1:] == [f"[1] {note}"]
    assert "difference" not in text[0] + text[1]


@pytest.mark.parametrize(
    ("arch", "depth", "changes", "first"),
    [
        ("residual", 56, {"width": 32}, None),
        ("residual", 110, {"arch.unit": "bottleneck"}, None),
        ("residual", 110, {"arch.order": "bn_after_addition"}, 8.17),
        ("residual", 110, {"arch.order": "bn_after_addition", "arch.shortcut": "C"}, 8.17),
        ("residual", 1202, {}, 7.93),
    ],
)
def test_the_network_decides_what_stands_beside_it(
    tmp_path: Path, arch: str, depth: int, changes: dict[str, Any], first: float | None
) -> None:
    size = {"parameters": 1_100_000} if "arch.unit" in changes else {}
    lines = published(tmp_path, arch, depth, changes=changes, **size)
    assert lines[0]["published_test_error"] == first
    if first is None:
        assert "was read at a source" in lines[0]["published_remark"]


def test_a_projected_shortcut_has_its_own_number(tmp_path: Path) -> None:
    lines = published(tmp_path, "residual", 110, changes={"arch.shortcut": "C"})
    (own,) = [line for line in lines if line["published_test_error"] == 12.22]
    assert "shortcut option" not in own["published_remark"]
    assert "shortcut option A" in lines[0]["published_remark"]


@pytest.mark.parametrize("beside", [False, True])
def test_the_five_forms_hold_every_row(tmp_path: Path, lines: Lines, beside: bool) -> None:
    if beside:
        more = published(tmp_path / "plain", "plain", 56)
        lines = published(tmp_path / "residual", "residual", 56) + more
    assert json.loads(render(lines, "json")) == lines
    frame = pd.read_csv(io.StringIO(render(lines, "csv")))
    assert list(frame.columns) == list(lines[0])
    for key in ("series", "test_error"):  # repeated, so that each line stands alone
        assert list(frame[key]) == [line[key] for line in lines]
    known = [line["published_test_error"] for line in lines if line["published_test_error"]]
    assert list(frame["published_test_error"].dropna()) == known
    marked = piped(render(lines, "markdown"))
    assert len(marked) == 2 + len(lines)
    body = [line for line in render(lines, "latex").splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + len(lines) and len({line.count("&") for line in body}) == 1
    if beside:
        assert marked[2].startswith("| residual | 56 | 1 |") and marked[3].startswith("|  |  |")
        text = render(lines, "text").splitlines()
        assert text[2].endswith("He2015 Table 6, 1 run [1]")
        assert all(len(line) <= 160 for line in text if not line.startswith("["))
