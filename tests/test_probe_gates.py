"""The probe gates: every word of its rule, and whose runs it reads."""

from __future__ import annotations

import pytest
from fake_sweeps import CHANCE, Errors, measured, rows_of

from resexp.probes import gates
from resexp.settings import UsageError

BIASES = {-1.0: 70.0, -2.0: 20.0, -3.0: 30.0}


@pytest.mark.parametrize(
    ("highway", "gate", "verdict"),
    [
        (20, 5, "supported"),
        (20, 0.3, "not supported"),  # the shortcut gate trains as well
        (0.3, CHANCE, "not supported"),
        (20, [0.0, 4.0, 0.5, 2.0, 1.0], "inconclusive"),
    ],
)
def test_the_verdict_follows_its_rule(
    highway: float, gate: float | list[float], verdict: str
) -> None:
    errors: Errors = {("residual", 20): 0.3, ("highway", 20): 0.3, ("shortcut_gate", 20): 0.3}
    errors |= {("residual", 56): 0.3, ("highway", 56): highway, ("shortcut_gate", 56): gate}
    chosen = {place: BIASES for place in errors if place[0] != "residual"}
    found = gates.conclude(rows_of(errors, chosen=chosen))
    assert found.verdict == verdict
    assert "-2 (highway-20), -2 (highway-56)" in found.conventions[0]


def test_gates_are_read_once_their_bias_was_chosen() -> None:
    gated = [
        f"arch={arch} gate_bias=-3 seed={seed}" for arch in gates.GATED for seed in (10, 90, 91)
    ]
    sweep = ["arch=residual seed=10", "arch=rezero seed=10", *gated]
    assert measured(gates, sweep) == {(one, 20) for one in gates.ARMS}
    with pytest.raises(UsageError, match="chosen on seeds 90 and 91"):
        measured(gates, [words for words in sweep if "seed=91" not in words])
