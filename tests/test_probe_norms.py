"""The probe norms: every word of its rule, and whose runs it reads."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest
from fake_sweeps import CHANCE, Errors, measured, rows_of

from resexp.probes import Account, norms

RATES = {0.002: 50.0, 0.02: 60.0}


def errors(**changes: float) -> Errors:
    """Of each network; by default all but the one with both fail."""
    known = dict.fromkeys(norms.ARMS, CHANCE) | {"residual batch": 0.3, "residual group": 0.4}
    known |= {"plain batch": 60.0} | {key.replace("_", " "): one for key, one in changes.items()}
    return {(one, 56): error for one, error in known.items()}


@pytest.mark.parametrize(
    ("changes", "verdict", "account"),
    [
        ({}, "supported", None),
        ({"skipinit": 0.3}, "not supported", Account.overgeneralised),
        ({"plain_group": 0.3}, "not supported", None),
        ({"plain_group": 0.3, "skipinit": 0.3}, "not supported", None),
        ({"residual_batch": CHANCE}, "inconclusive", None),  # all failed
    ],
)
def test_the_verdict_follows_its_rule(
    changes: dict[str, float], verdict: str, account: Account | None
) -> None:
    chosen = {(one, 56): RATES for one in norms.ARMS}
    found = norms.conclude(rows_of(errors(**changes), chosen=chosen))
    assert found.verdict == verdict
    assert (found.account or [None])[0] == account
    assert "plain none-56 (5 of 5)" in found.sentence


def test_networks_are_judged_at_the_rate_that_was_chosen() -> None:
    chosen = {(one, 56): RATES for one in norms.ARMS}
    rows = rows_of(errors(), chosen=chosen)
    other = rows[rows["seed"] < 90].assign(value=0.02, train_error_percent=0.0)
    found = norms.conclude(pd.concat([rows, other]))
    assert found.numbers == norms.conclude(rows).numbers
    assert "0.002 (skipinit-56)" in found.conventions[0]


@pytest.mark.process
def test_the_seven_networks_are_read_at_their_own_rates() -> None:
    both = product(("plain", "residual"), norms.NORMS)
    kinds = ["arch=skipinit", *(f"arch={arch} arch.norm={norm}" for arch, norm in both)]
    sweep = [
        f"{one} depth=56 lr={0.002 * (1 + at % 2)} seed={seed}"
        for (at, one), seed in product(enumerate(kinds), (10, 90, 91))
    ]
    others = ["arch=residual depth=56 arch.norm=layer lr=1", "arch=fixup depth=56 lr=1"]
    assert measured(norms, [*sweep, *others]) == {(one, 56) for one in norms.ARMS}
