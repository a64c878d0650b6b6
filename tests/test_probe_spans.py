"""The probe spans: every word of its rule, and whose runs it reads."""

from __future__ import annotations

import pytest
from fake_sweeps import CHANCE, Errors, measured, rows_of

from resexp.probes import spans


@pytest.mark.parametrize(
    ("single", "double", "verdict"),
    [
        (60, 0.1, "supported"),
        (40, 0.1, "not supported"),  # it helps, if less than over two
        (60, 60, "inconclusive"),  # there was nothing to gain
        (CHANCE, 1, "inconclusive"),  # two failures are not alike
        (70, 0.1, "supported"),  # it even harms
    ],
)
def test_the_verdict_follows_its_rule(single: float, double: float, verdict: str) -> None:
    plain = CHANCE if single == CHANCE else 60
    errors: Errors = {("plain", 56): plain, ("span 1", 56): single, ("span 2", 56): double}
    errors |= {("span 3", 56): CHANCE, ("plain", 20): 0.1}
    assert spans.conclude(rows_of(errors)).verdict == verdict


def test_plain_and_residual_networks_of_each_span_are_read() -> None:
    sweep = ["arch=plain", *(f"arch=residual arch.skip_span={span}" for span in (1, 2, 3))]
    others = ["arch=plain arch.skip_span=1", "arch=preact", "arch=residual twin=plain"]
    assert measured(spans, [*sweep, *others]) == {(one, 20) for one in spans.ARMS}
