"""The probe stochastic_depth: its rule, its runs, and the branches that a step computes."""

from __future__ import annotations

import pytest
from fake_sweeps import Errors, measured, rows_of

from resexp import models
from resexp.config import compose
from resexp.models.blocks import RandomBlock
from resexp.probes import stochastic_depth


@pytest.mark.parametrize(
    ("train", "test", "verdict"),
    [
        (0.3, 2.0, "supported"),
        (5.0, 2.0, "supported"),  # trains worse, tests better
        (-5.0, 2.0, "inconclusive"),  # tests better for it trains better
        (0.3, 4.9, "not supported"),
        (0.3, 9.0, "not supported"),
        (0.3, [3.0, 5.0, 5.5, 2.0, 4.0], "inconclusive"),
    ],
)
def test_the_verdict_follows_its_rule(
    train: float, test: float | list[float], verdict: str
) -> None:
    errors: Errors = {("residual", 56): 0.2, ("stochastic depth", 56): train}
    tests: Errors = {("residual", 56): [5.0, 5.1, 4.9, 5.0, 5.0], ("stochastic depth", 56): test}
    found = stochastic_depth.conclude(rows_of(errors, tests))
    assert found.verdict == verdict


@pytest.mark.parametrize("depth", [8, 20])
def test_branches_computed_are_the_mean_survival_of_the_network(depth: int) -> None:
    network = models.build(compose(["arch=stochastic_depth", f"depth={depth}"]).settings, 1, 10)
    survivals = [one.survival for one in network.modules() if isinstance(one, RandomBlock)]
    mean = sum(survivals) / len(survivals)
    assert stochastic_depth.computed(depth) == pytest.approx(mean)
    assert mean < 0.85


def test_the_two_networks_are_read_at_the_survival_of_the_paper() -> None:
    sweep = ["arch=residual", "arch=stochastic_depth", "arch=stochastic_depth arch.survival=0.8"]
    assert measured(stochastic_depth, sweep) == {(one, 20) for one in stochastic_depth.ARMS}
