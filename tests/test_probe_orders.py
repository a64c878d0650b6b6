"""The probe orders: every word of its rule, and whose runs it reads."""

from __future__ import annotations

import pytest
from fake_sweeps import CHANCE, Errors, measured, rows_of

from resexp.probes import Verdict, orders


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ([3, CHANCE, 2, 4], "supported"),
        ([3, CHANCE, 0.1, 4], "not supported"),  # one as good
        ([3, CHANCE, -9, 4], "not supported"),  # one better
        ([3, CHANCE, [-4, 8, 1, 5, 3], 4], "inconclusive"),
    ],
)
def test_the_verdict_follows_its_rule(others: list[float | list[float]], verdict: str) -> None:
    errors: Errors = {(one, 56): end for one, end in zip(orders.OTHERS, others, strict=True)}
    errors[orders.BEST, 56] = 0.0
    found = orders.conclude(rows_of(errors))
    assert found.verdict == verdict
    assert "bn_after_addition-56 (5 of 5)" in found.sentence


def test_nothing_is_decided_where_full_preactivation_failed_too() -> None:
    errors: Errors = {(one, 56): CHANCE for one in orders.ARMS}
    assert orders.conclude(rows_of(errors)).verdict is Verdict.inconclusive


def test_test_errors_are_told_and_decide_nothing() -> None:
    errors: Errors = {(one, 56): 0.3 for one in orders.ARMS}
    test: Errors = {(one, 56): 9.0 for one in orders.OTHERS} | {("full_preactivation", 56): 2.0}
    found = orders.conclude(rows_of(errors, test))
    assert found.verdict is Verdict.not_supported
    assert "full pre-activation's: original, bn_after_addition" in found.sentence


def test_the_five_orders_of_residual_networks_are_read() -> None:
    sweep = [f"arch=residual depth=56 arch.order={one}" for one in orders.ARMS]
    others = ["arch=fixup depth=56", "arch=residual depth=56 arch.norm=group"]
    assert measured(orders, [*sweep, *others]) == {(one, 56) for one in orders.ARMS}
