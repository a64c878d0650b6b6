"""What the figures' artists hold, and the files they become."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_results import write_run
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text

from resexp.analysis.figures.canvas import SERIES_STYLES, depth_colours, round_up
from resexp.analysis.figures.depth import differences
from resexp.analysis.figures.paper import INKS, inks, spread
from resexp.analysis.figures.plot import (
    KINDS,
    draw_curves,
    draw_depth,
    draw_difference,
    draw_families,
    draw_paper,
    draw_strips,
    plot,
    save,
)
from resexp.analysis.results import find_runs, plain_twin
from resexp.analysis.statistics import paired_t
from resexp.settings import UsageError

PLAIN = {20: (0.5, 3.0), 32: (9.0, 12.0), 56: (74.0, 75.0)}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for depth, (clean, test) in PLAIN.items():
        for seed in range(3):
            write_run(
                tmp_path, "plain", depth, seed, clean_error=clean + seed, test_error=test + seed
            )
            write_run(tmp_path, "residual", depth, seed, clean_error=0.1, test_error=2.0)
    return tmp_path


def line(axis: Axes, label: str) -> Line2D:
    (found,) = [line for line in axis.lines if line.get_label() == label]
    return found


def xs(drawn: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(drawn.get_xdata())]


def ys(drawn: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(drawn.get_ydata())]


def words(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_plain_is_left_residual_right_on_equal_axes(results: Path) -> None:
    figure = draw_curves(find_runs(results))
    plain, residual = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["plain", "residual"]
    assert plain.get_xlim() == residual.get_xlim() == (0, 220)
    assert plain.get_ylim() == residual.get_ylim() == (0, 100)
    assert plain.get_ylabel() == "error (%)" and plain.get_xlabel() == "step"


def test_lines_are_means_over_seeds_at_the_evaluated_steps(results: Path) -> None:
    plain = draw_curves(find_runs(results)).axes[0]
    test = line(plain, "plain-56 test")
    assert xs(test) == list(range(22, 221, 22))
    assert ys(test)[-1] == pytest.approx(76.0)
    rows = [run.rows() for run in find_runs(results, ["arch=plain", "depth=56"])]
    expected = [sum(row.test_error for row in at) / 3 for at in zip(*rows, strict=True)]
    assert ys(test) == pytest.approx(expected)
    assert ys(line(plain, "plain-56 train"))[-1] == pytest.approx(75.3)


def test_training_is_dashed_and_test_solid(results: Path) -> None:
    for axis in draw_curves(find_runs(results)).axes:
        for drawn in axis.lines:
            label = str(drawn.get_label())
            if label.endswith(" test"):
                assert drawn.get_linestyle() == "-"
            if label.endswith(" train"):
                assert drawn.get_linestyle() == "--"


def test_a_depth_has_one_colour_in_every_panel(results: Path) -> None:
    plain, residual = draw_curves(find_runs(results)).axes
    colours = []
    for depth in PLAIN:
        colour = line(plain, f"plain-{depth} test").get_color()
        assert line(plain, f"plain-{depth} train").get_color() == colour
        assert line(residual, f"residual-{depth} test").get_color() == colour
        colours.append(colour)
    assert len(set(colours)) == 3


def test_colours_darken_with_depth() -> None:
    def luminance(colour: str) -> float:
        red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = [luminance(colour) for colour in depth_colours([8, 20, 32, 44, 56, 110]).values()]
    assert shades == sorted(shades, reverse=True)
    assert all(before - after > 8 for before, after in pairwise(shades))
    assert len(depth_colours([20])) == 1


def test_depths_stand_at_the_line_ends_where_they_do_not_overlap(results: Path) -> None:
    plain, residual = draw_curves(find_runs(results)).axes
    assert {"20", "32", "56"} <= set(words(plain))
    assert "20 to 56" in words(residual) and "20" not in words(residual)


def test_the_legend_names_depths_and_strokes(results: Path) -> None:
    (legend,) = draw_curves(find_runs(results)).legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["20 layers", "32 layers", "56 layers", "test", "training"]


def test_the_band_is_the_range_of_the_seeds(results: Path) -> None:
    plain = draw_curves(find_runs(results, ["arch=plain", "depth=56"])).axes[0]
    training, test = [np.asarray(band.get_paths()[0].vertices) for band in plain.collections]
    last = test[test[:, 0] == 220, 1]
    assert (last.min(), last.max()) == (75.0, 77.0)
    assert len(training) == len(test)
    single = draw_curves(find_runs(results, ["arch=plain", "depth=56", "seed=0"])).axes[0]
    assert len(single.collections) == 0


def test_failures_are_noted_and_a_diverged_run_ends_in_a_cross(results: Path) -> None:
    write_run(results, "plain", 56, 1, status="collapsed", clean_error=90, test_error=90)
    write_run(results, "plain", 56, 2, status="diverged")
    write_run(results, "plain", 32, 2, status="failed", rows=0)
    plain = draw_curves(find_runs(results)).axes[0]
    assert plain.get_title(loc="right") == (
        "32 layers: 1 failed of 3\n56 layers: 1 collapsed, 1 diverged of 3"
    )
    cross = line(plain, "plain-56-s2 diverged")
    assert cross.get_marker() == "x" and xs(cross) == [110]
    assert ys(line(plain, "plain-56 test"))[-1] == pytest.approx((75 + 90) / 2)


def test_running_runs_are_drawn_only_where_none_is_finished(results: Path) -> None:
    write_run(results, "plain", 20, 0, status="running", rows=4)
    for seed in range(3):
        write_run(results, "plain", 56, seed, status="running", rows=4 + seed)
    plain = draw_curves(find_runs(results)).axes[0]
    assert len(xs(line(plain, "plain-20 test"))) == 10
    assert xs(line(plain, "plain-56 test")) == [22, 44, 66, 88]


def test_long_runs_are_in_thousands_of_steps(tmp_path: Path) -> None:
    changes = {"steps": 64000, "eval_every": 8000}
    write_run(tmp_path, "residual", 56, 0, changes=changes, clean_error=0.2, test_error=7.0)
    figure = draw_curves(find_runs(tmp_path))
    (axis,) = figure.axes
    assert axis.get_xlabel() == "step (thousands)"
    assert axis.get_xlim() == (0, 64)
    assert list(axis.get_xticks()) == [0, 16, 32, 48, 64]
    assert axis.get_ylim() == (0, 20)  # as in the paper: the first steps leave the axis


def test_the_title_says_experiment_data_recipe_and_seeds(results: Path) -> None:
    title = "Experiment digits: data digits, recipe digits, "
    runs = find_runs(results)
    for figure in (draw_curves(runs), draw_depth(runs)):
        assert figure.get_suptitle() == title + "3 seeds"
    write_run(results, "plain", 110, 0)
    assert draw_curves(find_runs(results)).get_suptitle() == title + "1 to 3 seeds"
    assert draw_curves(runs[:1]).get_suptitle() == title + "1 seed"


def test_the_title_names_every_data_set(results: Path) -> None:
    write_run(results, "plain", 20, 0, changes={"data.name": "cats"}, extras={"lr": 0.5})
    title = draw_curves(find_runs(results)).get_suptitle()
    assert "data digits and cats, " in title.replace("\n", " ")


def test_at_most_four_panels_and_it_is_said(results: Path) -> None:
    for lr in (0.1, 0.2, 0.3):
        write_run(results, "plain", 20, 0, extras={"lr": lr})
    figure = draw_curves(find_runs(results))
    assert len(figure.axes) == 4
    assert figure.get_suptitle().endswith("(4 of 5 series)")
    assert draw_depth(find_runs(results)).get_suptitle().endswith("(4 of 5 series)")
    assert len(draw_curves(find_runs(results, ["seed=0", "lr=0.02,0.1"])).axes) == 3


def test_depth_is_drawn_with_a_mean_line_and_a_point_a_run(results: Path) -> None:
    training, test = draw_depth(find_runs(results)).axes
    assert [axis.get_title(loc="left") for axis in (training, test)] == [
        "training error",
        "test error",
    ]
    mean = line(training, "plain")
    assert xs(mean) == pytest.approx([20, 32, 56], abs=2)
    assert ys(mean) == pytest.approx([1.5, 10.0, 75.0])
    assert ys(line(test, "plain")) == pytest.approx([4.0, 13.0, 76.0])
    points = line(training, "plain runs")
    assert points.get_linestyle() == "None"
    assert sorted(ys(points)) == [0.5, 1.5, 2.5, 9, 10, 11, 74, 75, 76]
    assert all(abs(x - depth) < 3 for x, depth in zip(xs(points), [20] * 3, strict=False))
    assert len(set(xs(points))) == 9  # seeds stand side by side
    assert list(training.get_xticks()) == [20, 32, 56]
    assert line(training, "residual").get_color() != mean.get_color()


def test_networks_stand_beside_each_other_at_a_depth(results: Path) -> None:
    training = draw_depth(find_runs(results)).axes[0]
    plain, residual = (
        xs(line(training, f"{arch} runs")) + xs(line(training, arch))
        for arch in ("plain", "residual")
    )
    for depth in (20, 32, 56):
        left = [x for x in plain if abs(x - depth) < 6]
        right = [x for x in residual if abs(x - depth) < 6]
        assert len(left) == len(right) == 4
        assert max(left) < depth < min(right)


def bars(axis: Axes, label: str) -> list[tuple[float, float]]:
    """Lower and upper ends of the interval bars of a line."""
    (container,) = [each for each in axis.containers if each.get_label() == f"{label} interval"]
    (drawn,) = container.lines[2]  # type: ignore[attr-defined]
    return [(float(ends[0][1]), float(ends[1][1])) for ends in drawn.get_segments()]


def test_a_bar_is_the_t_interval_of_the_mean_and_it_is_said(results: Path) -> None:
    figure = draw_depth(find_runs(results))
    half = 4.302653 / 3**0.5  # t(0.975) of two degrees of freedom, sd 1, three seeds
    low, high = bars(figure.axes[0], "plain")[2]
    assert (low, high) == pytest.approx((75 - half, 75 + half), abs=1e-5)
    (legend,) = figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert "mean and its 95 % t interval over seeds" in said and "a run" in said


def test_one_seed_has_no_bar(results: Path) -> None:
    figure = draw_depth(find_runs(results, ["seed=0"]))
    assert figure.axes[0].containers == []
    (legend,) = figure.legends
    assert "mean (one seed: no interval)" in [text.get_text() for text in legend.get_texts()]


def test_failed_runs_are_crosses_and_count_in_the_mean(results: Path) -> None:
    write_run(results, "plain", 56, 1, status="collapsed", clean_error=89, test_error=89)
    write_run(results, "plain", 56, 2, status="diverged")
    write_run(results, "plain", 32, 2, status="failed")
    figure = draw_depth(find_runs(results))
    for axis, means in zip(figure.axes, ([1.5, 9.5, 84.3333], [4.0, 12.5, 84.6667]), strict=True):
        crosses = line(axis, "plain failures")
        assert crosses.get_marker() == "x"
        assert ys(crosses) == [89.0, 90.0]
        assert ys(line(axis, "plain")) == pytest.approx(means, abs=1e-3)
        assert "chance" in words(axis)
    (legend,) = figure.legends
    assert legend.get_texts()[-1].get_text() == "collapsed or diverged"


def test_one_depth_can_be_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0)
    write_run(tmp_path, "residual", 20, 0)
    for draw in (draw_depth, draw_difference):
        assert list(draw(find_runs(tmp_path)).axes[0].get_xticks()) == [20]


def test_the_difference_is_plain_minus_residual_by_seed(results: Path) -> None:
    for seed, error in enumerate((0.0, 0.1, 0.5)):
        write_run(results, "residual", 56, seed, clean_error=error, test_error=2.0)
    figure = draw_difference(find_runs(results))
    training, test = figure.axes
    assert ys(line(training, "zero")) == [0, 0]
    assert training.get_ylabel() == "plain minus\nresidual (points)"
    by_seed = [ys(line(training, f"seed {seed}")) for seed in range(3)]
    assert [values[-1] for values in by_seed] == pytest.approx([74.0, 74.9, 75.5])
    assert xs(line(training, "seed 0")) == [20, 32, 56]
    assert ys(line(training, "mean"))[-1] == pytest.approx(74.8)
    interval = paired_t([74.0, 74.9, 75.5])
    assert bars(training, "mean")[-1] == pytest.approx((interval.low, interval.high))
    assert ys(line(test, "mean")) == pytest.approx([2.0, 11.0, 74.0])
    (legend,) = figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said[-1] == "no difference; above it plain is worse"


def test_a_seed_without_a_twin_is_left_out_of_the_difference(results: Path) -> None:
    write_run(results, "residual", 56, 1, status="failed")
    write_run(results, "plain", 32, 0, status="diverged")
    runs = find_runs(results)
    table = differences(runs, "plain", "residual", "clean_train_error")
    assert {depth: sorted(by_seed) for depth, by_seed in table.items()} == {
        20: [0, 1, 2],
        32: [0, 1, 2],
        56: [0, 2],
    }
    difference, failed = table[32][0]
    assert difference == pytest.approx(89.9) and failed
    training = draw_difference(runs).axes[0]
    assert line(training, "seed 0 failures").get_marker() == "x"


def test_a_twin_has_the_same_settings_but_for_its_architecture(results: Path) -> None:
    write_run(results, "plain", 20, 0, extras={"lr": 0.1})
    write_run(results, "residual", 20, 0, extras={"lr": 0.1})
    write_run(results, "residual", 20, 0, extras={"lr": 0.3})
    write_run(results, "residual", 20, 0, extras={"arch.shortcut": "B"})
    runs = find_runs(results)
    assert plain_twin(runs, "residual") == "plain"
    assert plain_twin(runs, "residual,lr=0.1") == "plain,lr=0.1"
    assert plain_twin(runs, "residual,lr=0.3") is None
    assert plain_twin(runs, "residual,arch.shortcut=B") == "plain"
    figure = draw_difference(runs)
    assert len(figure.axes) == 6  # a row a twin
    assert figure.axes[2].get_ylabel() == "plain minus\nresidual, arch.shortcut=B (points)"


def test_the_strips_are_the_learning_rate_and_the_speed(results: Path) -> None:
    rate, speed = draw_strips(find_runs(results)).axes
    assert rate.get_yscale() == "log" and speed.get_yscale() == "linear"
    (stair,) = rate.lines
    assert stair.get_drawstyle() == "steps-pre"  # a row's rate holds since the row before it
    assert xs(stair) == [0, *range(22, 221, 22)] and set(ys(stair)) == {0.02}
    assert set(ys(line(speed, "residual-56 images per second"))) == {1000.0}
    assert len(speed.lines) == 6 and speed.get_ylim()[0] == 0
    strokes = {line(speed, f"{arch}-56 images per second").get_linestyle() for arch in PAIR}
    assert len(strokes) == 2


def test_each_learning_rate_is_one_line_and_says_whose(results: Path) -> None:
    write_run(results, "plain", 56, 0, status="running", rows=3)  # no schedule of its own
    write_run(results, "plain", 110, 0, changes={"lr": 0.01})
    rate = draw_strips(find_runs(results)).axes[0]
    assert [str(each.get_label()) for each in rate.lines] == [
        "20, 32, 56 layers",
        "plain, 110 layers",
    ]


def test_families_have_a_panel_a_series_however_many(results: Path) -> None:
    for lr in (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5):
        write_run(results, "plain", 20, 0, extras={"lr": lr, "arch.shortcut": "B"})
    write_run(results, "plain", 20, 1, extras={"lr": 0.5, "arch.shortcut": "B"}, status="diverged")
    figure = draw_families(find_runs(results))
    assert len(figure.axes) == 9
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["plain"] * 8 + ["residual"]  # families stand together
    corners = [words(axis) for axis in figure.axes]
    assert corners[0] == [] and corners[1] == ["shortcut=B, lr=0.01"]
    assert corners[7] == ["shortcut=B, lr=0.5\n1 of 2 failed"]
    assert len({axis.get_ylim() for axis in figure.axes}) == 1
    colour = line(figure.axes[0], "plain-56 test").get_color()
    assert line(figure.axes[8], "residual-56 test").get_color() == colour
    assert figure.get_figheight() < 240 / 25.4


PAIR = ("plain", "residual")
HE2015 = {"data.name": "cifar10", "recipe": "he2015", "steps": 64000, "eval_every": 8000}


@pytest.fixture
def he2015(tmp_path: Path) -> Path:
    errors = {20: (9.6, 8.7), 32: (9.9, 7.5), 44: (10.6, 7.2), 56: (13.4, 7.0)}
    for depth, pair in errors.items():
        for arch, error in zip(PAIR, pair, strict=True):
            for seed in range(2):
                write_run(tmp_path, arch, depth, seed, changes=HE2015, test_error=error, name="he")
    return tmp_path


def test_paper_style_has_the_layout_of_figure_6(he2015: Path) -> None:
    write_run(he2015, "plain", 20, 0, changes=HE2015, extras={"lr": 0.2}, name="he")
    write_run(he2015, "preact", 20, 0, changes=HE2015, name="he")
    figure = draw_paper(find_runs(he2015))
    plain, residual = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["plain", "residual"]
    assert plain.get_ylim() == residual.get_ylim() == (0, 20)
    assert plain.get_xlim() == residual.get_xlim() == (0, 6.4)
    assert plain.get_xlabel() == residual.get_xlabel() == "iter. (1e4)"
    training, test = line(plain, "plain-56 train"), line(plain, "plain-56 test")
    assert training.get_linestyle() == "--" and test.get_linestyle() == "-"
    assert test.get_linewidth() >= 2 * training.get_linewidth()
    assert training.get_color() == line(residual, "residual-56 test").get_color()
    assert set(words(plain)) == {"plain-20", "plain-32", "plain-44", "plain-56"}
    assert "residual-20" in words(residual)
    (legend,) = figure.legends
    assert legend.get_texts()[-1].get_text() == "cifar10, means over 2 seeds, 2 of 4 series"


def test_names_beside_the_curves_do_not_overlap(he2015: Path) -> None:
    figure = draw_paper(find_runs(he2015))
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without hair lines
        assert not any(one.overlaps(two) for one, two in combinations(boxes, 2))
        assert all(box.x1 <= figure.bbox.x1 and box.x0 >= axis.bbox.x1 for box in boxes)


def test_a_curve_above_the_papers_axis_is_named_at_the_top(results: Path) -> None:
    plain = draw_paper(find_runs(results)).axes[0]
    assert plain.get_ylim() == (0, 20) and plain.get_xlabel() == "step"
    assert "plain-56 \N{UPWARDS ARROW} 76 %" in words(plain)


def test_where_nothing_fits_the_papers_axis_the_data_decide(results: Path) -> None:
    figure = draw_paper(find_runs(results, ["depth=56", "arch=plain"]))
    (axis,) = figure.axes
    assert axis.get_ylim() == (0, 100)
    (legend,) = figure.legends
    assert legend.get_texts()[-1].get_text() == (
        "digits, means over 3 seeds, no curve ends below 20 %: axis by the data"
    )


def test_names_are_spread_no_further_than_needed() -> None:
    assert spread([1, 5, 9], 1, 20) == [1, 5, 9]
    assert spread([5, 5, 5], 1, 20) == pytest.approx([4, 5, 6])
    assert spread([5, 5.5, 12], 1, 20) == pytest.approx([4.75, 5.75, 12])
    assert spread([0, 0, 0], 1, 20) == pytest.approx([0, 1, 2])
    assert spread([20, 20], 2, 20) == pytest.approx([18, 20])
    assert spread([], 1, 20) == []


#: Machado, Oliveira and Fernandes 2009: linear RGB as seen without red, green or blue cones.
DEFICIENCIES = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}


def lab(colour: str, seen: tuple[tuple[float, ...], ...] | None = None) -> np.ndarray:
    """CIELAB of a colour (D65), as a colour-blind eye sees it if given."""
    rgb = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if seen is not None:
        linear = np.clip(np.array(seen) @ linear, 0, 1)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    white = np.array([0.9505, 1.0, 1.089])
    ratio = matrix @ linear / white
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", [None, *DEFICIENCIES])
def test_colours_stay_apart_for_colour_blind_eyes(seen: str | None) -> None:
    matrix = DEFICIENCIES[seen] if seen else None
    shades = list(depth_colours([20, 32, 44, 56, 110]).values())
    for palette in (INKS[:5], shades, [colour for colour, _ in SERIES_STYLES]):
        colours = [lab(colour, matrix) for colour in palette]
        for one, two in combinations(colours, 2):
            assert np.linalg.norm(one - two) > 10  # well above the 2.3 that is just noticeable


def test_many_depths_have_a_colour_each_in_print() -> None:
    assert list(inks([20, 56]).values()) == list(INKS[:2])
    assert len(set(inks(list(range(8, 80, 6))).values())) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_text_stays_text_in_vector_files(results: Path, tmp_path: Path, kind: str) -> None:
    few = ["seed=0", "depth=20,56"]
    (svg,) = plot(results, tmp_path / "out", "svg", few, which=[kind])
    assert svg.name == f"{kind}.svg"
    label = {"curves": "residual", "families": "residual", "strips": "learning rate"}
    assert f">{label.get(kind, 'training error')}</text>" in svg.read_text()
    if kind not in ("curves", "difference"):  # the others are written by the same function
        return
    (pdf,) = plot(results, tmp_path / "out", "pdf", few, which=[kind])
    assert b"/FontFile2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()


def test_the_papers_names_stay_text(results: Path, tmp_path: Path) -> None:
    (svg,) = plot(results, tmp_path / "out", "svg", style="paper", which=["curves"])
    assert svg.name == "curves-paper.svg"
    assert ">plain-20</text>" in svg.read_text() and ">residual-56</text>" in svg.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_off_at_the_edges(results: Path, kind: str) -> None:
    for lr in (0.05, 0.1):
        for arch in PAIR:
            write_run(results, arch, 56, 1, extras={"lr": lr}, status="collapsed")
    figure = KINDS[kind](find_runs(results))
    figure.draw_without_rendering()
    page = figure.bbox.padded(1)
    (legend,) = figure.legends
    said = [*legend.get_texts(), *(text for axis in figure.axes for text in axis.texts)]
    said += [axis.title for axis in figure.axes] + [axis.xaxis.label for axis in figure.axes]
    for text in said:
        if text.get_text():
            box = text.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1, text.get_text()
            assert page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()


def test_a_long_heading_is_broken_where_the_figure_is_narrow(results: Path) -> None:
    name = "a-rather-long-name-of-an-experiment-on-digits"
    write_run(results, "plain", 20, 0, name=name)
    title = draw_strips(find_runs(results / name)).get_suptitle()
    assert "\n" in title and max(map(len, title.split("\n"))) <= 62


def test_drawn_twice_is_drawn_equal(results: Path, tmp_path: Path) -> None:
    runs = find_runs(results, ["arch=residual", "seed=0"])
    for form in ("svg", "png", "pdf"):
        for name in ("first", "second"):
            save(draw_curves(runs), tmp_path / f"{name}.{form}")
        first, second = ((tmp_path / f"{name}.{form}") for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.glob("*.tmp"))
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "first.pdf").read_bytes().startswith(b"%PDF")
    assert ">residual</text>" in (tmp_path / "first.svg").read_text()


def test_plot_writes_into_each_experiment(results: Path, tmp_path: Path) -> None:
    write_run(results, "plain", 20, 0, name="other")
    written = plot(results, form="svg")
    assert [str(path.relative_to(results)) for path in written] == [
        "digits/curves.svg",
        "digits/depth.svg",
        "digits/difference.svg",
        "other/curves.svg",
        "other/depth.svg",
    ]
    assert all(path.exists() for path in written)
    assert len(find_runs(results)) == 19  # figures are in nobody's way
    out = tmp_path / "out"
    elsewhere = plot(results / "digits", out, form="svg", filters=["arch=plain", "seed=0"])
    assert elsewhere == [out / "curves.svg", out / "depth.svg"]
    assert plot(results, out, filters=["depth=20", "arch=plain"])[0] == out / "digits/curves.png"


def test_a_single_run_is_plotted_beside_itself(results: Path) -> None:
    run = results / "digits" / "plain-56-s0"
    assert plot(run)[0] == run / "curves.png"
    assert not (results / "digits" / "curves.png").exists()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, results: Path) -> None:
    with pytest.raises(UsageError, match="Choose one of png, svg, pdf"):
        plot(results, form="gif")
    with pytest.raises(UsageError, match="resexp run -m"):
        plot(tmp_path / "nowhere")
    write_run(tmp_path / "new", "plain", 20, 0, status="running", rows=0)
    with pytest.raises(UsageError, match="Nothing to draw"):
        plot(tmp_path / "new")
    runs = find_runs(tmp_path / "new")
    with pytest.raises(UsageError, match="no run here has a row"):
        draw_curves(runs)
    with pytest.raises(UsageError, match="no run here is finished"):
        draw_depth(runs)
    with pytest.raises(UsageError, match="no seed here has a plain network and its twin"):
        plot(results, filters=["arch=plain"], which=["difference"])
    with pytest.raises(UsageError, match="Choose from curves, depth, difference, strips, families"):
        plot(results, which=["curve"])
    with pytest.raises(UsageError, match="Choose one of screen, paper"):
        plot(results, style="poster")


def test_axes_end_at_round_numbers() -> None:
    assert [round_up(value) for value in (0.3, 1.5, 4, 7, 10.1, 61, 99, 140)] == [
        1, 2, 5, 10, 20, 70, 100, 100,
    ]  # fmt: skip
