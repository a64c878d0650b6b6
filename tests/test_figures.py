"""What charts hold, that they are drawn as they are, and the files that they become."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pytest
from fake_results import write_run
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from resexp.analysis.figures.canvas import MORE_COLOURS, SERIES_STYLES, depth_colour, labels, save
from resexp.analysis.figures.chart import Chart, Line, Panel, Points, draw, spread
from resexp.analysis.figures.curves import curves, families, top_error
from resexp.analysis.figures.depth import depth, depth_scale, difference, paired, plain_twin
from resexp.analysis.figures.paper import paper
from resexp.analysis.figures.plot import KINDS, page, plot
from resexp.analysis.figures.seeds import seeds
from resexp.analysis.results import find_runs
from resexp.analysis.statistics import paired_t
from resexp.settings import UsageError

Kind = Callable[..., Chart]
PLAIN = {20: (0.5, 3.0), 32: (9.0, 12.0), 56: (74.0, 75.0)}
PAIR, BOTH = ("plain", "residual"), ("test", "training")
#: The figures that need no sweep of a kind of their own.
OF_ANY_RUNS = {name: chart for name, chart in KINDS.items() if name != "surface"}
HE2015 = {"data.name": "cifar10", "recipe": "he2015", "steps": 64000, "eval_every": 8000}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for at, (clean, test) in PLAIN.items():
        for seed in range(3):
            write_run(tmp_path, "plain", at, seed, clean_error=clean + seed, test_error=test + seed)
            write_run(tmp_path, "residual", at, seed, clean_error=0.1, test_error=2.0)
    return tmp_path


@pytest.fixture
def he2015(tmp_path: Path) -> Path:
    errors = {"plain": (9.6, 9.9, 10.6, 13.4), "residual": (8.7, 7.5, 7.2, 7.0)}
    for arch, seed in product(PAIR, range(2)):
        for at, error in zip((20, 32, 44, 56), errors[arch], strict=True):
            write_run(tmp_path, arch, at, seed, changes=HE2015, test_error=error, name="he")
    return tmp_path


def named(panel: Panel, name: str) -> Line:
    (found,) = [line for line in panel.lines if line.name == name]
    return found


def points(panel: Panel, tag: str, failed: bool = False) -> Points:
    found = [each for each in panel.points if tag in each.tags]
    (found,) = [each for each in found if (each.marker == "x") == failed]
    return found


def legend(chart: Chart) -> list[str]:
    return [key.name for key in chart.keys]


def shown(figure: Figure) -> list[Text]:
    """Every text that a reader sees: ticks beyond an axis are not drawn."""
    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [axis.label, *(tick.label1 for tick in ticks)]
    return [text for text in texts if text.get_text() and text.get_visible()]


# --- drawn as computed


@pytest.mark.parametrize("kind", [*OF_ANY_RUNS.values(), paper])
def test_artists_hold_the_charts_numbers(results: Path, kind: Kind) -> None:
    write_run(results, "plain", 56, 1, status="diverged")
    chart = kind(find_runs(results))
    figure = draw(chart)
    for axis, panel in zip(figure.axes, chart.panels, strict=True):
        ids = {artist: (artist.get_gid() or "").split(".")[1:-1] for artist in axis.lines}
        drawn = [artist for artist, tags in ids.items() if tags and "spread" not in tags]
        for artist, line in zip(drawn, panel.lines, strict=False):
            assert ids[artist] == [*line.tags]
            x = (np.array(line.x) + line.shift) / panel.x.per
            np.testing.assert_allclose(np.array(artist.get_data(), float), [x, line.y])
            assert artist.get_color() == line.colour
            assert (artist.get_linestyle() == "-") == (line.stroke == "-")
            assert artist.get_drawstyle() == ("steps-pre" if line.stairs else "default")
        for artist, points in zip(drawn[len(panel.lines) :], panel.points, strict=True):
            assert (ids[artist], artist.get_marker()) == ([*points.tags, "run"], points.marker)
            x = np.array(points.x) / panel.x.per
            np.testing.assert_allclose(np.array(artist.get_data(), float), [x, points.y])
        assert axis.get_xlim() == (panel.x.low / panel.x.per, panel.x.high / panel.x.per)
        assert axis.get_ylim() == (panel.y.low, panel.y.high)
        assert (axis.get_xscale(), axis.get_yscale()) == ("linear", panel.y.kind)
        assert (axis.get_title() or axis.get_title(loc="left")) == panel.title
    (drawn_legend,) = figure.legends
    assert [text.get_text() for text in drawn_legend.get_texts()] == legend(chart)


def test_bands_and_bars_are_drawn_from_low_to_high(results: Path) -> None:
    runs = find_runs(results, ["arch=plain"])
    chart = curves(runs)
    axis = draw(chart).axes[0]
    lines = [line for line in chart.panels[0].lines if line.low]
    assert len(axis.collections) == len(lines) == 3  # of test error alone
    for band, line in zip(axis.collections, lines, strict=True):
        corners = np.asarray(band.get_paths()[0].vertices)
        for x, low, high in zip(line.x, line.low, line.high, strict=True):
            at = corners[corners[:, 0] == x, 1]
            assert (at.min(), at.max()) == (low, high)
    chart = depth(runs)
    (container,) = draw(chart).axes[0].containers
    (bars,) = container.lines[2]  # type: ignore[attr-defined]
    (line,) = chart.panels[0].lines
    drawn = [(ends[0][1], ends[1][1]) for ends in bars.get_segments()]
    np.testing.assert_allclose(drawn, np.transpose([line.low, line.high]))


@pytest.mark.parametrize("kind", [*KINDS.values(), paper])
@pytest.mark.parametrize(
    ("style", "width", "least"), [("screen", None, 7), ("screen", 8.5, 7), ("slide", 33.867, 14)]
)
def test_no_text_is_small_or_cut_off_or_on_another(
    results: Path, kind: Kind, style: str, width: float | None, least: int
) -> None:
    for arch, at, lr, steps in product(PAIR, (20, 56), (0.05, 0.1), (220, 660)):
        extras = {"lr": lr, "steps": steps}
        write_run(results, arch, at, 1, extras=extras, status="collapsed")
    figure = draw(kind(find_runs(results)), page(style, width))
    figure.draw_without_rendering()
    if width:
        assert figure.get_figwidth() * 2.54 == pytest.approx(width)
    boxes, page_box = {}, figure.bbox.padded(1)
    for text in shown(figure):
        assert text.get_fontsize() >= least, text.get_text()
        box = boxes[text] = Text.get_window_extent(text)
        assert page_box.x0 <= box.x0 and box.x1 <= page_box.x1, text.get_text()
        assert page_box.y0 <= box.y0 and box.y1 <= page_box.y1, text.get_text()
    for one, two in combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[two]), (one.get_text(), two.get_text())


@pytest.mark.parametrize("kind", [curves, paper])
def test_names_beside_the_curves_do_not_overlap(he2015: Path, kind: Kind) -> None:
    figure = draw(kind(find_runs(he2015)))
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without hair lines
        assert len(boxes) == 4
        assert not any(one.overlaps(two) for one, two in combinations(boxes, 2))
        assert all(box.x1 <= figure.bbox.x1 and box.x0 >= axis.bbox.x1 for box in boxes)


def test_names_are_spread_no_further_than_needed() -> None:
    assert spread([1, 5, 9], 1, 20) == [1, 5, 9]
    assert spread([5, 5, 5], 1, 20) == pytest.approx([4, 5, 6])
    assert spread([5, 5.5, 12], 1, 20) == pytest.approx([4.75, 5.75, 12])
    assert spread([0, 0, 0], 1, 20) == pytest.approx([0, 1, 2])
    assert spread([20, 20], 2, 20) == pytest.approx([18, 20])
    assert spread([], 1, 20) == []


# --- curves


def test_lines_are_the_means_of_the_csv_files_and_start_at_chance(results: Path) -> None:
    chart = curves(find_runs(results))
    assert [panel.title for panel in chart.panels] == ["plain", "residual"]
    assert [axis.get_ylabel() for axis in draw(chart).axes] == ["error (%)", ""]
    (x, y), *more = [(panel.x, panel.y) for panel in chart.panels]
    assert (x.label, x.low, x.high, y.low, y.high) == ("step", 0, 220, 0, 100) and [(x, y)] == more
    assert legend(chart) == [
        *("20 layers", "32 layers", "56 layers"),
        *("test error, mean of 3 seeds", "training error"),
        *("range of test error over seeds", "chance, 90 %"),
    ]
    files = [results / f"digits/plain-56-s{seed}/metrics.csv" for seed in range(3)]
    tables = [list(csv.DictReader(file.read_text().splitlines())) for file in files]
    test, training = (named(chart.panels[0], f"56 {error}") for error in BOTH)
    for line, column in ((test, "test_error"), (training, "train_error")):
        found = np.array([[float(row[column]) for row in rows] for rows in tables])
        assert line.x == [0, *(float(row["step"]) for row in tables[0])]
        assert line.y == pytest.approx([90.0, *found.mean(axis=0)])
        if line is test:
            assert line.low == pytest.approx([90.0, *found.min(axis=0)])
            assert line.high == pytest.approx([90.0, *found.max(axis=0)])
    assert (test.y[-1], training.y[-1]) == (pytest.approx(76.0), pytest.approx(75.3))
    assert test.stroke == "-" != training.stroke


def test_one_seed_has_no_band_and_the_legend_claims_none(results: Path) -> None:
    chart = curves(find_runs(results, ["seed=0"]))
    assert all(line.low == line.high == [] for panel in chart.panels for line in panel.lines)
    assert legend(chart)[-3:-1] == ["test error", "training error"]


@pytest.mark.parametrize("kind", [curves, families, paper])
def test_a_depth_has_one_colour_in_every_figure(results: Path, kind: Kind) -> None:
    for chosen in ([], ["depth=32,56"]):
        chart = kind(find_runs(results, chosen))
        for at in (32, 56):
            drawn = [named(one, f"{at} {error}") for one in chart.panels for error in BOTH]
            assert {line.colour for line in drawn} == {depth_colour(at)}
            keys = {key.colour for key in chart.keys if key.name == f"{at} layers"}
            assert keys == ({depth_colour(at)} if kind is not paper else set())


def test_failures_are_noted_and_a_diverged_run_ends_in_a_cross(results: Path) -> None:
    write_run(results, "plain", 56, 1, status="collapsed", clean_error=90, test_error=90)
    write_run(results, "plain", 56, 2, status="diverged")
    write_run(results, "plain", 32, 2, status="failed", rows=0)
    write_run(results, "plain", 20, 0, status="failed", rows=0, record={"data": {"classes": 10}})
    plain = curves(find_runs(results)).panels[0]
    assert plain.chance == named(plain, "20 test").y[0] == 90
    assert plain.note == (
        "20 layers: 1 failed of 3\n32 layers: 1 failed of 3\n"
        "56 layers: 1 collapsed, 1 diverged of 3"
    )
    (cross,) = plain.points
    assert (cross.marker, cross.x, cross.names) == ("x", [110], ["plain-56-s2 diverged"])
    assert named(plain, "plain-56-s2 diverged").x[-1] == 110
    assert named(plain, "56 test").y[-1] == pytest.approx((75 + 90) / 2)


def test_running_runs_are_drawn_only_where_none_is_finished(results: Path) -> None:
    write_run(results, "plain", 20, 0, status="running", rows=4)
    for seed in range(3):
        write_run(results, "plain", 56, seed, status="running", rows=4 + seed)
    plain = curves(find_runs(results)).panels[0]
    assert len(named(plain, "20 test").x) == 11
    assert named(plain, "56 test").x == [0, 22, 44, 66, 88]


def test_long_runs_are_in_thousands_of_steps(tmp_path: Path) -> None:
    changes = {"steps": 64000, "eval_every": 8000}
    write_run(tmp_path, "residual", 56, 0, changes=changes, clean_error=0.2, test_error=7.0)
    (axis,) = draw(curves(find_runs(tmp_path))).axes
    assert axis.get_xlabel() == "step (thousands)"
    assert list(axis.get_xticks()) == [0, 16, 32, 48, 64]
    assert axis.get_ylim() == (0, 20)  # as in the paper: the first steps leave the axis


def test_axes_end_at_round_numbers() -> None:
    worst = (0.3, 5, 5.1, 7, 30.4, 49, 80)
    assert [top_error([value]) for value in worst] == [10, 10, 20, 20, 70, 100, 100]


def test_the_title_says_experiment_data_recipe_seeds_and_what_part(results: Path) -> None:
    title = "Experiment digits: data digits, recipe digits, "
    runs = find_runs(results)
    assert {kind(runs).heading for kind in OF_ANY_RUNS.values()} == {title + "3 seeds"}
    assert draw(curves(runs)).get_suptitle() == title + "3 seeds"
    assert curves(runs[:1]).heading == title + "1 seed"
    write_run(results, "plain", 110, 0)
    assert curves(find_runs(results)).heading == title + "1 to 3 seeds"
    write_run(results, "plain", 20, 0, changes={"data.name": "cats"}, extras={"lr": 0.1})
    for lr in (0.2, 0.3):
        write_run(results, "plain", 20, 0, extras={"lr": lr})
    runs = find_runs(results)
    assert "data digits and cats, " in curves(runs).heading
    assert curves(runs).part == depth(runs).part == "4 of 5 series"
    assert draw(curves(runs)).get_suptitle().endswith("(4 of 5 series)")
    assert len(curves(runs).panels) == 4 and len(curves(runs, most=9).panels) == 5


def test_families_have_a_panel_a_series_however_many(results: Path) -> None:
    for lr in (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5):
        write_run(results, "plain", 20, 0, extras={"lr": lr, "arch.shortcut": "B"})
    write_run(results, "plain", 20, 1, extras={"lr": 0.5, "arch.shortcut": "B"}, status="diverged")
    chart = families(find_runs(results))
    best, *_, residual, worst = [panel.title for panel in chart.panels]
    assert (best, residual) == ("plain, shortcut=B, lr=0.01", "residual, lr=0.02")
    assert worst == "plain, shortcut=A, lr=0.02"  # sorted by outcome
    (broken,) = [panel for panel in chart.panels if panel.note]
    assert broken.title == "plain, shortcut=B, lr=0.5"
    assert broken.note == "20 layers: 1 diverged of 2"
    assert len({(panel.y.low, panel.y.high, panel.chance) for panel in chart.panels}) == 1
    figure = draw(chart)
    axis = figure.axes[chart.panels.index(broken)]
    assert [text.get_text() for text in axis.texts] == [broken.note]
    assert figure.get_figheight() < 240 / 25.4


# --- depth


def test_depth_has_means_with_t_intervals_and_a_point_a_run(results: Path) -> None:
    chart = depth(find_runs(results))
    training, test = chart.panels
    assert [panel.title for panel in chart.panels] == ["training error", "test error"]
    mean, residual = named(training, "plain"), named(training, "residual")
    assert mean.x == [20, 32, 56] and mean.y == pytest.approx([1.5, 10.0, 75.0])
    half = 4.302653 / 3**0.5  # t(0.975) of two degrees of freedom, sd 1, three seeds
    assert (mean.low[2], mean.high[2]) == pytest.approx((75 - half, 75 + half), abs=1e-5)
    assert "mean of 3 seeds, 95 % t interval" in legend(chart) and "a run" in legend(chart)
    assert named(test, "plain").y == pytest.approx([4.0, 13.0, 76.0])
    runs = points(training, "s0")
    assert sorted(runs.y) == [0.5, 1.5, 2.5, 9, 10, 11, 74, 75, 76]
    assert "plain-56-s2: 76.00 %" in runs.names
    assert training.x.ticks == [20, 32, 56] and residual.colour != mean.colour
    beside = points(training, "s1").x + [x + residual.shift for x in residual.x]
    for at in (20, 32, 56):  # networks and seeds stand side by side
        left = [x for x in runs.x + [x + mean.shift for x in mean.x] if abs(x - at) < 6]
        right = [x for x in beside if abs(x - at) < 6]
        assert len({*left}) == len({*right}) == 4 and max(left) < at < min(right)


@pytest.mark.parametrize(("kind", "seed"), [(depth, "0"), (depth, "0,1"), (difference, "0,1")])
def test_one_or_two_seeds_have_no_interval(results: Path, kind: Kind, seed: str) -> None:
    chart = kind(find_runs(results, [f"seed={seed}"]))
    assert any("no interval of so few" in name for name in legend(chart))
    assert not any(np.isfinite(line.low).any() for panel in chart.panels for line in panel.lines)
    assert all(axis.containers == [] for axis in draw(chart).axes)


def test_failed_runs_are_crosses_and_count_in_the_mean(results: Path) -> None:
    write_run(results, "plain", 56, 1, status="collapsed", clean_error=89, test_error=89)
    write_run(results, "plain", 56, 2, status="diverged")
    write_run(results, "plain", 32, 2, status="failed")
    chart = depth(find_runs(results))
    for panel, means in zip(chart.panels, ([1.5, 9.5, 84.3333], [4.0, 12.5, 84.6667]), strict=True):
        crosses = points(panel, "s0", failed=True)
        assert crosses.y == [89.0, 90.0] and "collapsed" in crosses.names[0]
        assert named(panel, "plain").y == pytest.approx(means, abs=1e-3)
        assert panel.chance == 90
    assert legend(chart)[-2:] == ["collapsed or diverged", "chance, 90 %"]


def test_an_axis_is_logarithmic_where_most_errors_would_lie_on_its_floor(results: Path) -> None:
    for panel in depth(find_runs(results)).panels:
        assert (panel.y.kind, panel.y.high) == ("symlog", 100)
    even = depth(find_runs(results, ["arch=plain", "depth=32,56"])).panels[0].y
    assert (even.kind, even.low) == ("linear", 0) and even.high > 76


def test_a_depth_whose_number_would_touch_another_has_none() -> None:
    assert depth_scale([8, 20, 22, 56]).ticks == [8, 22, 56]


# --- differences


def test_the_difference_is_plain_minus_residual_by_seed(results: Path) -> None:
    for seed, error in enumerate((0.0, 0.1, 0.5)):
        loss = 0.001 * 10**seed
        write_run(results, "residual", 56, seed, clean_error=error, test_error=2.0, clean_loss=loss)
    chart = difference(find_runs(results))
    training, loss = chart.panels
    assert training.y.label == "training error (points)" and training.signed
    assert training.title == loss.title == "plain minus residual"
    by_seed = [line for line in training.lines if line.tags == ("seed",)]
    assert [line.y[-1] for line in by_seed] == pytest.approx([74.0, 74.9, 75.5])
    assert by_seed[0].x == [20, 32, 56]
    mean, its = named(training, "plain minus residual"), paired_t([74.0, 74.9, 75.5])
    assert (mean.y[-1], mean.low[-1], mean.high[-1]) == pytest.approx((74.8, its.low, its.high))
    assert named(loss, "plain minus residual").y == pytest.approx([0, 0, 0], abs=1e-6)
    assert [line.y[-1] for line in loss.lines[:3]] == pytest.approx([1, 0, -1])
    assert "above it plain is worse" in legend(chart)[-1]


@pytest.mark.process
def test_a_seed_without_a_twin_is_left_out_of_the_difference(results: Path) -> None:
    write_run(results, "residual", 56, 1, status="failed")
    write_run(results, "plain", 32, 0, status="diverged")
    runs = find_runs(results)
    found = [(plain.depth, plain.seed) for plain, _ in paired(runs, "plain", "residual")]
    assert found == [(at, seed) for at in PLAIN for seed in range(3) if (at, seed) != (56, 1)]
    crosses = [each for each in difference(runs).panels[0].points if each.marker == "x"]
    assert [(each.x, each.y) for each in crosses] == [([32], [pytest.approx(89.9)])]


def test_a_twin_has_the_same_settings_but_for_its_architecture(results: Path) -> None:
    for at, seed in product((20, 56), (0, 1)):
        write_run(results, "plain", at, seed, extras={"lr": 0.1}, clean_error=50)
        write_run(results, "residual", at, seed, extras={"lr": 0.1}, clean_error=1)
        write_run(results, "residual", at, seed, extras={"arch.shortcut": "B"})
    write_run(results, "residual", 20, 0, extras={"lr": 0.3})
    runs = find_runs(results)
    assert plain_twin(runs, "residual,lr=0.3") is None
    chart = difference(runs)
    titles = [f"plain minus residual, {x}, lr=0.02" for x in ("shortcut=A", "shortcut=B")]
    titles += ["plain minus residual, shortcut=A, lr=0.1"]
    assert [panel.title for panel in chart.panels[::2]] == titles  # a row a twin
    assert named(chart.panels[4], titles[2]).y == pytest.approx([49, 49])


def test_a_series_is_called_by_what_tells_it_from_the_others(tmp_path: Path) -> None:
    common = {"eval_every": 11, "milestones": [0.5, 0.75]}
    for arch in ("residual", "shortcut_gate"):
        for more in ({"steps": 1000}, {}, {"twin": "plain"}):
            write_run(tmp_path, arch, 20, 0, extras=common | more)
    assert list(labels(find_runs(tmp_path)).values()) == [
        *("residual, steps=220", "residual, steps=1000", "residual, steps=220, plain twin"),
        *("shortcut gate, steps=220", "shortcut gate, steps=1000"),
        "shortcut gate, steps=220, plain twin",
    ]
    alike = labels(find_runs(tmp_path, ["steps=1000"]))
    assert [*alike.values()] == ["residual", "shortcut gate"]
    for start in (110, 220):  # an option that other archs have not
        write_run(tmp_path, "fading", 20, 0, name="b", extras={"arch.options.fade_from": start})
    write_run(tmp_path, "plain", 20, 0, name="b")
    names = labels(find_runs(tmp_path, ["name=b"]))
    assert [*names.values()] == ["plain", *(f"fading, options.fade_from={n}" for n in (110, 220))]


def test_a_set_that_was_typed_is_part_of_a_label(tmp_path: Path) -> None:
    """data=imagefolder chooses a group of settings, and is none itself."""
    write_run(tmp_path, "plain", 20, 0, record={"extras": {"data": "imagefolder"}})
    assert [*labels(find_runs(tmp_path)).values()] == ["plain"]
    write_run(tmp_path, "residual", 20, 0, record={"extras": {"unheard": 1}})
    assert [*labels(find_runs(tmp_path)).values()] == [
        "plain, data=imagefolder, unheard=null",
        "residual, data=digits, unheard=1",
    ]


# --- learning rate and speed


def test_a_learning_rate_is_one_line_and_says_whose_above_the_speed(results: Path) -> None:
    rate, speed = seeds(find_runs(results)).panels
    (stair,) = rate.lines
    assert stair.stairs  # a row's rate holds since the row before it
    assert stair.x == [0, *range(22, 221, 22)] and set(stair.y) == {0.02}
    assert set(named(speed, "residual-56").y) == {1000.0}
    assert len(speed.lines) == 6 and speed.y.low == 0
    assert len({str(named(speed, f"{arch}-56").stroke) for arch in PAIR}) == 2
    write_run(results, "plain", 56, 0, status="running", rows=3)  # no schedule of its own
    write_run(results, "plain", 110, 0, changes={"lr": 0.01})
    chart = seeds(find_runs(results))
    whose = [line.name for line in chart.panels[0].lines]
    assert whose == ["20, 32, 56 layers", "plain, 110 layers"]
    assert "rate of plain, 110 layers" in legend(chart)


# --- the paper's layout


def test_paper_style_has_the_layout_of_figure_6(he2015: Path) -> None:
    write_run(he2015, "plain", 20, 0, changes=HE2015, extras={"lr": 0.2}, name="he")
    write_run(he2015, "preact", 20, 0, changes=HE2015, name="he")
    chart = paper(find_runs(he2015))
    figure = draw(chart)
    assert [axis.get_title() for axis in figure.axes] == ["plain", "residual"]
    for axis in figure.axes:
        assert axis.get_ylim() == (0, 20) and axis.get_xlim() == (0, 6.4)
        assert axis.get_xlabel() == "iter. (1e4)"
    training, test = named(chart.panels[0], "56 training"), named(chart.panels[0], "56 test")
    assert test.stroke == "-" != training.stroke and test.width >= 2 * training.width
    ends = {line.end for panel in chart.panels for line in panel.lines}
    assert ends == {"", *(f"{arch}-{at}" for arch in PAIR for at in (20, 32, 44, 56))}
    assert legend(chart)[-1] == "cifar10, 64,000 steps of 64, means over 2 seeds, 2 of 4 series"


def test_a_curve_above_the_papers_axis_is_named_and_if_all_are_the_data_decide(
    results: Path,
) -> None:
    axis = draw(paper(find_runs(results))).axes[0]
    assert axis.get_ylim() == (0, 20) and axis.get_xlabel() == "step"
    assert "plain-56 \N{UPWARDS ARROW} 76 %" in [text.get_text() for text in axis.texts]
    chart = paper(find_runs(results, ["depth=56", "arch=plain"]))
    assert [(panel.y.low, panel.y.high) for panel in chart.panels] == [(0, 100)]
    assert "means over 3 seeds, most curves end above 20 %" in legend(chart)[-1]


# --- colours


#: Machado, Oliveira and Fernandes 2009: linear RGB as seen without red or without green cones.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [
        *([0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216]),
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        *([0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413]),
        [-0.011820, 0.042940, 0.968881],
    ],
}
SHADES = [depth_colour(at) for at in (8, 20, 32, 44, 56, 110)]


def lab(colour: str, seen: str = "none") -> np.ndarray:
    """CIELAB of a colour (D65), as a colour-blind eye sees it if told."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(DEFICIENCIES[seen]) @ linear, 0, 1)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratio = np.array(matrix) @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_darken_with_depth() -> None:
    shades = [lab(colour)[0] for colour in SHADES]
    assert all(before - after > 4 for before, after in pairwise(shades))
    others = [lab(depth_colour(at))[0] for at in (2, 6, 8, 14, 26, 50, 101, 152, 164, 1202)]
    assert others == sorted(others, reverse=True)
    assert len({*MORE_COLOURS, *(colour for colour, _ in SERIES_STYLES)}) == 6


@pytest.mark.parametrize("seen", DEFICIENCIES)
def test_colours_stay_apart_for_colour_blind_eyes(seen: str) -> None:
    for palette in (SHADES, [colour for colour, _ in SERIES_STYLES]):
        for one, two in combinations(palette, 2):
            apart = np.linalg.norm(lab(one, seen) - lab(two, seen))
            assert apart > 10  # well above the 2.3 that is just noticeable


# --- files


@pytest.mark.process
def test_text_stays_text_in_vector_files(results: Path, tmp_path: Path) -> None:
    few, out = ["seed=0,1", "depth=20,56"], tmp_path / "out"
    words = {"depth": "test error", "difference": "log10 training loss", "seeds": "learning rate"}
    for svg in plot(results, out, "svg", few, which=list(OF_ANY_RUNS)):
        assert f">{words.get(svg.stem, 'residual')}</text>" in svg.read_text()
    assert {svg.stem for svg in out.iterdir()} == {*OF_ANY_RUNS}
    assert re.search(r'<g id="p1\.d56\.test\.\d+">', (out / "curves.svg").read_text())
    (pdf,) = plot(results, out, "pdf", few, which=["curves"])
    assert b"/FontFile2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()
    (svg,) = plot(results, out, "svg", few, style="paper", which=["curves"])
    assert svg.name == "curves-paper.svg"
    assert ">plain-20</text>" in svg.read_text() and ">residual-56</text>" in svg.read_text()


def test_names_in_dollars_or_without_letters_are_written_as_they_are(tmp_path: Path) -> None:
    for seed, place in enumerate(("$x$\u4e2d", "here")):
        write_run(tmp_path, "plain", 20, seed, extras={"data.root": place})
    (svg,) = plot(tmp_path, form="svg", which=["curves"])
    assert ">plain, data.root=$x$\u4e2d</text>" in svg.read_text()


@pytest.mark.process
def test_drawn_twice_is_drawn_equal(tmp_path: Path) -> None:
    write_run(tmp_path, "residual", 20, 0)
    runs = find_runs(tmp_path)
    for form, begin in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        first, second = ((tmp_path / f"{name}.{form}") for name in ("first", "second"))
        for path in (first, second):
            save(draw(curves(runs)), path)
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes().startswith(begin)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.process
def test_plot_writes_into_each_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    for arch, at, seed in product(PAIR, (20, 56), (0, 1)):
        write_run(results, arch, at, seed)
    write_run(results, "plain", 20, 0, name="other")
    written = plot(results, form="svg")
    assert [str(path.relative_to(results)) for path in written] == [
        *("digits/curves.svg", "digits/depth.svg", "digits/difference.svg", "other/curves.svg")
    ]
    assert "note: no depth of other: all runs have 20 layers." in capsys.readouterr().err
    assert all(path.exists() for path in written)
    assert len(find_runs(results)) == 9  # figures are in nobody's way
    apart = plot(results / "digits", out, form="svg", filters=["arch=plain", "seed=0"])
    assert apart == [out / "curves.svg", out / "depth.svg"]
    assert plot(results, out, filters=["depth=20", "arch=plain"])[0] == out / "digits/curves.png"
    run = results / "digits" / "plain-56-s0"  # a single run is plotted beside itself
    assert plot(run)[0] == run / "curves.png"
    assert not (results / "digits" / "curves.png").exists()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, results: Path) -> None:
    write_run(tmp_path / "new", "plain", 20, 0, status="running", rows=0)
    refused: list[tuple[str, Callable[[], object]]] = [
        ("Choose from png, svg, pdf", lambda: plot(results, form="gif")),
        ("Choose from screen, paper, slide", lambda: plot(results, style="poster")),
        ("Choose from curves, depth, difference", lambda: plot(results, which=["curve"])),
        ("resexp run -m", lambda: plot(tmp_path / "nowhere")),
        ("has a row of metrics yet", lambda: plot(tmp_path / "new")),
        ("no run here has a row", lambda: curves(find_runs(tmp_path / "new"))),
        ("all runs have 56 layers", lambda: depth(find_runs(results, ["depth=56"]))),
        ("all pairs are of depth 56", lambda: difference(find_runs(results, ["depth=56"]))),
        ("all pairs are of seed 0", lambda: difference(find_runs(results, ["seed=0"]))),
        ("no run here is finished", lambda: depth(find_runs(tmp_path / "new"))),
        ("a plain network and its twin", lambda: difference(find_runs(results, ["arch=plain"]))),
    ]
    for said, draws in refused:
        with pytest.raises(UsageError, match=said):
            draws()
