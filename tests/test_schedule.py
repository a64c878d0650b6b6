"""resexp.train.schedule: the learning rate of every step, as the paper's recipe gives it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resexp.config import compose
from resexp.settings import Settings
from resexp.train.schedule import learning_rate, milestone_steps, warmup_steps

#: The steps where something may happen in 64,000: the ends, the warm-up's end, the milestones.
STEPS = (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)


def trace(one: Settings) -> list[float]:
    return [learning_rate(one, step) for step in range(one.steps)]


@pytest.mark.parametrize(
    ("depth", "rates"),
    [
        (20, [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        (56, [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        (104, [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        (110, [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        (1202, [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
    ],
)
def test_the_papers_recipe_has_the_papers_rates(depth: int, rates: list[float]) -> None:
    paper = compose(["experiment=he2015", f"depth={depth}"]).settings
    assert paper.steps == 64_000
    assert [learning_rate(paper, step) for step in STEPS] == pytest.approx(rates, rel=1e-12)


@pytest.mark.process
def test_the_papers_rates_change_at_no_other_step() -> None:
    for depth, changes in ((20, [32_000, 48_000]), (110, [400, 32_000, 48_000])):
        rates = trace(compose(["experiment=he2015", f"depth={depth}"]).settings)
        assert [t for t in range(1, len(rates)) if rates[t] != rates[t - 1]] == changes


def test_the_digits_recipe_drops_at_110_and_165_of_220_steps() -> None:
    digits = compose([]).settings
    assert digits.recipe == "digits"
    rates = 110 * [0.02] + 55 * [0.002] + 55 * [0.0002]
    assert trace(digits) == pytest.approx(rates, rel=1e-12)


def test_150_steps_are_a_short_run_of_the_same_shape() -> None:
    short = compose(["experiment=he2015", "depth=20", "steps=150"]).settings
    # 0.75 x 150 lies between two steps.
    assert milestone_steps(short) == [75, 112]
    assert trace(short) == pytest.approx(75 * [0.1] + 37 * [0.01] + 38 * [0.001], rel=1e-12)


def test_warm_up_is_counted_in_steps_and_from_a_depth_on() -> None:
    one = Settings(depth=20, steps=150, lr=0.05, warmup_steps=3, warmup_lr=0.02, warmup_depth=20)
    assert warmup_steps(one) == 3
    assert trace(one)[:5] == [0.02, 0.02, 0.02, 0.05, 0.05]
    assert warmup_steps(replace(one, warmup_depth=21)) == 0
    assert trace(replace(one, warmup_depth=21))[:5] == 5 * [0.05]
    assert set(trace(replace(one, warmup_depth=21, milestones=[]))) == {0.05}


@pytest.mark.process
@settings(deadline=None)
@given(
    steps=st.integers(1, 3000),
    milestones=st.lists(st.floats(0.01, 0.99), max_size=4).map(sorted),
    lr_drop=st.floats(0.01, 1),
    warmup=st.integers(0, 60),
)
def test_after_the_warm_up_the_rate_never_rises(
    steps: int, milestones: list[float], lr_drop: float, warmup: int
) -> None:
    one = Settings(steps=steps, milestones=milestones, lr_drop=lr_drop, warmup_steps=warmup)
    rates = trace(one)
    assert rates[:warmup] == [0.01] * min(warmup, steps)
    assert all(later <= earlier for earlier, later in pairwise(rates[warmup:]))
    end = one.lr * lr_drop ** len([at for at in milestone_steps(one) if at < steps])
    assert steps <= warmup or rates[-1] == pytest.approx(end)
