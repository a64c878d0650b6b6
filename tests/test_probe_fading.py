"""The probe fading: every word of its rule, and whose runs it reads."""

from __future__ import annotations

from typing import Any

import pytest
from fake_sweeps import Errors, measured, rows_of

from resexp.probes import Verdict, fading
from resexp.settings import UsageError


@pytest.mark.parametrize(
    ("plain", "faded", "verdict"),
    [
        (60, 0.3, "supported"),
        (60, 20, "not supported"),  # better than plain, but the skips are missed
        (0.3, 0.3, "not supported"),  # there was nothing to cure
        (60, [0.0, 4.0, 0.5, 2.0, 1.0], "inconclusive"),
    ],
)
def test_the_verdict_follows_its_rule(plain: float, faded: Any, verdict: str) -> None:
    errors: Errors = {("plain", 56): plain, ("fading", 56): faded, ("residual", 56): 0.3}
    found = fading.conclude(rows_of(errors))
    assert found.verdict == verdict
    assert fading.conclude(rows_of(errors, seeds=4)).verdict is Verdict.inconclusive


@pytest.mark.process
def test_a_fading_network_counts_once_its_shortcuts_are_gone() -> None:
    gone = "arch=fading fade_from=50 fade_to=100"
    sweep = ["arch=plain", "arch=residual", "arch=rezero", f"{gone} arch.norm=none", gone]
    assert measured(fading, sweep) == {(one, 20) for one in fading.ARMS}
    with pytest.raises(UsageError, match="needs finished runs of plain, fading, residual"):
        measured(fading, [*sweep[:-1], "arch=fading fade_from=50 fade_to=220"])
