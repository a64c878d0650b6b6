"""Probes of trained networks at the size that their acceptance was stated for.

Digits, depths 8, 20 and 44, 220 steps of 128 at rate 0.1 (the rate and batch of He et al. 2015),
three seeds: one sweep for all tests. Eight minutes of one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from resexp.config import compose
from resexp.launch.local import perform
from resexp.probes import Case, Verdict, highway, identity, landscape, lesion, paths, responses
from resexp.probes import run as probing
from resexp.probes.rows import those, values

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RECIPE = ["lr=0.1", "batch_size=128", "steps=220", "eval_every=220", "threads=1"]
SEEDS = (0, 1, 2)


def measured(module: ModuleType, cases: Sequence[Case]) -> pd.DataFrame:
    return pd.DataFrame(module.measure(cases, iter))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Case]:
    """Plain and residual networks of every depth and seed, trained."""
    root = tmp_path_factory.mktemp("stated")
    for arch, depth, seed in product(("plain", "residual"), (8, 20, 44), SEEDS):
        words = [f"arch={arch}", f"depth={depth}", f"seed={seed}", f"results={root}"]
        folder = perform(compose([*words, *RECIPE, "keep_checkpoint=true"])).job.directory.parent
    return probing.of_runs("lesion", Path(folder), [])[0].cases


def test_deleted_blocks_cost_plain_networks_most_and_residual_ones_less_from_depth_to_depth(
    cases: Sequence[Case],
) -> None:
    """At most 15 points against at least 50 in each seed."""
    rows = measured(lesion, cases)
    cost = {
        place: lesion.excess(rows, *place, pd.Series.median)
        for place in product(("plain", "residual"), (8, 20, 44))
    }
    for depth in (20, 44):
        assert cost["plain", depth].min() >= 50
        assert cost["residual", depth].max() <= 15
    by_depth = [cost["residual", depth].mean() for depth in (8, 20, 44)]
    assert by_depth == sorted(set(by_depth), reverse=True)


def test_responses_are_weaker_in_residual_networks_the_deeper_the_more(
    cases: Sequence[Case],
) -> None:
    """By the measure of figure 7, and by the change of the signal, which is free of scales."""
    rows = measured(responses, cases)
    std, change = (
        {
            (arch, depth): responses.by_seed(rows, column, arch, depth, "end")
            for arch, depth in product(("plain", "residual"), (8, 20, 44))
        }
        for column in ("std", "change")
    )
    for numbers in (std, change):
        assert (numbers["residual", 44] < numbers["plain", 44]).all()
        by_depth = [numbers["residual", depth].mean() for depth in (8, 20, 44)]
        assert by_depth == sorted(set(by_depth), reverse=True)


def test_short_paths_carry_the_gradient_of_trained_networks_and_more_than_at_the_start(
    cases: Sequence[Case],
) -> None:
    finding = paths.conclude(measured(paths, cases))
    assert finding.verdict is Verdict.supported
    slope = "slope of log10 norm per block"
    end, start = (
        finding.numbers[f"{slope}, {when}, batch statistics"] for when in ("end", "start")
    )
    assert end < start


def test_slices_through_plain_44_are_rougher_than_through_residual_44(
    cases: Sequence[Case],
) -> None:
    finding = landscape.conclude(measured(landscape, cases))
    assert finding.verdict is Verdict.supported
    rough = finding.numbers
    assert rough["roughness, residual 44 at equal loss"] < rough["roughness, plain 44"]


def test_deep_branches_add_less_than_shallow_ones(cases: Sequence[Case]) -> None:
    """Median |F(x)| / |x| over blocks, by seed."""
    residual = [case for case in cases if case.arch == "residual" and case.settings.depth != 20]
    numbers = highway.medians(measured(highway, residual), "branch_over_input")
    for seed in SEEDS:
        shallow, deep = (numbers["residual", depth, "end", seed] for depth in (8, 44))
        assert deep < shallow


def test_the_deep_plain_solution_exists_and_training_misses_it(cases: Sequence[Case]) -> None:
    rows = measured(identity, cases)
    for arch in identity.ARCHS:
        shallow, built = (
            values(rows, "loss", part=part, arch=arch) for part in ("shallow", "constructed")
        )
        assert list(built) == pytest.approx(list(shallow), abs=1e-6)
    plain = those(rows, arch="plain")
    assert (values(plain, "loss", part="scratch") > values(plain, "loss", part="constructed")).all()
