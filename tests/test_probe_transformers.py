"""The probe transformers: every word of its rule, and whose runs it reads."""

from __future__ import annotations

import pytest
from fake_sweeps import CHANCE, Errors, measured, rows_of

from resexp.probes import transformers


@pytest.mark.parametrize(
    ("skips", "without", "verdict"),
    [
        (0.3, CHANCE, "supported"),
        (0.3, 0.4, "not supported"),
        (0.3, -5.0, "not supported"),  # better without
        (30, CHANCE, "inconclusive"),  # with skips deep ones are worse than shallow ones, too
        (CHANCE, CHANCE, "inconclusive"),
    ],
)
def test_the_verdict_follows_its_rule(skips: float, without: float, verdict: str) -> None:
    errors: Errors = {("transformer", 2): 0.3, ("without skips", 2): 0.3}
    errors |= {("transformer", 8): skips, ("without skips", 8): without}
    found = transformers.conclude(rows_of(errors))
    assert found.verdict == verdict
    assert ("without skips-8 (5 of 5)" in found.sentence) == (without == CHANCE)
    assert ("worse without skips at depth 8;" in found.sentence) == (skips < without == CHANCE)


def test_transformers_and_their_plain_twins_are_read() -> None:
    sweep = [f"arch=transformer depth=2 twin={twin}" for twin in ("none", "plain")]
    assert measured(transformers, [*sweep, "arch=transformer_post depth=2"]) == {
        ("transformer", 2),
        ("without skips", 2),
    }
