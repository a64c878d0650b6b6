"""Final error against steps and rate: what each line of the figure is."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_results import write_run

from resexp.analysis.figures.chart import Nothing, draw
from resexp.analysis.figures.surface import surface
from resexp.analysis.results import find_runs

#: Clean training error of plain-56 by steps and rate, on the seeds that choose.
ERRORS = {220: {0.01: 50.0, 0.02: 70.0}, 660: {0.01: 40.0, 0.02: 20.0}}


@pytest.fixture
def runs_at(tmp_path: Path) -> Path:
    for steps, rates in ERRORS.items():
        for lr, error in rates.items():
            for seed in (90, 91, 10, 11, 12):
                if seed < 90 and error != min(rates.values()):
                    continue  # judged at the best rate alone
                clean = error + (5 if seed < 90 else 0) + seed % 10
                extras = {"lr": lr, "steps": steps}
                values = {"clean_error": clean, "clean_loss": clean / 40}
                write_run(tmp_path, "plain", 56, seed, extras=extras, **values)
    return tmp_path


def test_the_best_rate_of_each_length_is_drawn_by_the_seeds_that_did_not_choose(
    runs_at: Path,
) -> None:
    chart = surface(find_runs(runs_at))
    (panel,) = chart.panels
    assert draw(chart).axes[0].get_xscale() == "log"
    (best,) = [line for line in panel.lines if "best" in line.name]
    assert best.x == [220, 660]
    assert best.y == pytest.approx([50 + 5 + 1, 20 + 5 + 1])
    assert best.low[0] < best.y[0] < best.high[0]
    thin = {line.name: line.y for line in panel.lines if line is not best}
    assert thin["plain-56, rate 0.02"][0] == pytest.approx(70.5)  # of seeds 90 and 91
    assert len(thin) == 2 and panel.chance == 90


def test_one_rate_or_one_length_is_no_surface(runs_at: Path) -> None:
    for wanted in ("lr=0.01", "steps=220"):
        with pytest.raises(Nothing, match="several steps and rates"):
            surface(find_runs(runs_at, [wanted]))
