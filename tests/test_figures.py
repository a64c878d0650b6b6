"""What the figures' artists hold, and the files they become."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_results import write_run
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from resexp.analysis.figures import depth_colours, draw_curves, draw_depth, plot, round_up, save
from resexp.analysis.results import find_runs
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


def test_at_most_four_panels_and_it_is_said(results: Path) -> None:
    for lr in (0.1, 0.2, 0.3):
        write_run(results, "plain", 20, 0, extras={"lr": lr})
    figure = draw_curves(find_runs(results))
    assert len(figure.axes) == 4
    assert figure.get_suptitle().endswith("(4 of 5 series)")
    assert draw_depth(find_runs(results)).get_suptitle().endswith("(4 of 5 series)")
    assert len(draw_curves(find_runs(results, ["seed=0", "lr=0.05,0.1"])).axes) == 3


def test_depth_is_drawn_with_a_mean_line_and_a_point_a_run(results: Path) -> None:
    (axis,) = draw_depth(find_runs(results)).axes
    mean = line(axis, "plain")
    assert xs(mean) == [20, 32, 56]
    assert ys(mean) == pytest.approx([1.5, 10.0, 75.0])
    points = line(axis, "plain runs")
    assert points.get_linestyle() == "None"
    assert sorted(ys(points)) == [0.5, 1.5, 2.5, 9, 10, 11, 74, 75, 76]
    assert all(abs(x - depth) < 2 for x, depth in zip(xs(points), [20] * 3, strict=False))
    assert len(set(xs(points))) == 9  # seeds stand side by side
    assert list(axis.get_xticks()) == [20, 32, 56]
    assert axis.get_ylim() == (0, 90)
    assert line(axis, "residual").get_color() != mean.get_color()


def test_failed_runs_are_crosses_and_count_in_the_mean(results: Path) -> None:
    write_run(results, "plain", 56, 1, status="collapsed", clean_error=89)
    write_run(results, "plain", 56, 2, status="diverged")
    write_run(results, "plain", 32, 2, status="failed")
    figure = draw_depth(find_runs(results))
    (axis,) = figure.axes
    crosses = line(axis, "plain failures")
    assert crosses.get_marker() == "x"
    assert ys(crosses) == [89.0, 90.0]
    assert ys(line(axis, "plain")) == pytest.approx([1.5, 9.5, (74 + 89 + 90) / 3])
    assert "chance" in words(axis)
    (legend,) = figure.legends
    assert legend.get_texts()[-1].get_text() == "collapsed or diverged"


def test_one_depth_can_be_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 20, 0)
    (axis,) = draw_depth(find_runs(tmp_path)).axes
    assert list(axis.get_xticks()) == [20]


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
    written = plot(results)
    assert [str(path.relative_to(results)) for path in written] == [
        "digits/curves.png",
        "digits/depth.png",
        "other/curves.png",
        "other/depth.png",
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


def test_axes_end_at_round_numbers() -> None:
    assert [round_up(value) for value in (0.3, 1.5, 4, 7, 10.1, 61, 99, 140)] == [
        1, 2, 5, 10, 20, 70, 100, 100,
    ]  # fmt: skip
