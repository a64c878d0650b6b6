"""The probe cures: every word of its rule, whose runs it reads, and what its figure shows."""

from __future__ import annotations

from typing import Any

import matplotlib
import pytest
from fake_sweeps import CHANCE, Errors, measured, rows_of

from resexp.probes import Account, Verdict, cures
from resexp.probes.sweeps import judged
from resexp.settings import UsageError

RATES = {0.0067: 70.0, 0.02: 20.0, 0.06: 30.0}
CHANGES = {
    "none": "",
    "adamw": "optimizer=adamw",
    "lars": "optimizer=lars",
    "muon": "optimizer=muon",
    "tat": "arch.activation=tat",
    "delta_orthogonal": "init=delta_orthogonal",
}


def errors_of(**deep: Any) -> Errors:
    """0.3 % everywhere, but plain-56 with the cures named; 70 % without any."""
    found: Errors = {(f"plain, {one}", 20): 0.3 for one in CHANGES}
    found |= {(f"residual, {one}", depth): 0.3 for one in CHANGES for depth in (20, 56)}
    ends = dict.fromkeys(CHANGES, 0.3) | {"none": 70.0, "delta_orthogonal": 80.0} | deep
    return found | {(f"plain, {one}", 56): end for one, end in ends.items()}


@pytest.mark.parametrize(
    ("deep", "verdict"),
    [
        ({}, "supported"),
        ({"muon": 30.0}, "not supported"),  # even steps, and no cure
        ({"delta_orthogonal": 0.3}, "not supported"),  # uneven steps, and a cure
        ({"lars": [0.0, 4.0, 0.5, 2.0, 1.0]}, "inconclusive"),
        ({"adamw": CHANCE}, "not supported"),
    ],
)
def test_the_verdict_follows_its_rule(deep: dict[str, Any], verdict: str) -> None:
    errors = errors_of(**deep)
    chosen = dict.fromkeys(errors, RATES)
    found = cures.conclude(rows_of(errors, chosen=chosen))
    assert found.verdict == verdict
    assert found.account is not None and found.account[0] is Account.overgeneralised
    few = cures.conclude(rows_of(errors, chosen=chosen, seeds=4))
    assert few.verdict is Verdict.inconclusive and few.account is None


@pytest.mark.process
def test_runs_are_read_by_what_differs_from_the_recipe() -> None:
    def sweep(words: str) -> list[str]:
        return [f"{words} lr=0.01 seed={seed}" for seed in (30, 90, 91)]

    six = [line for words in CHANGES.values() for line in sweep(f"depth=20 arch=plain {words}")]
    more = [
        "depth=20 arch=residual init=dirac arch.activation=crelu",
        "depth=20 arch=repvgg",
        "depth=20 arch=repvgg optimizer=muon",  # two cures that nobody asked for together
        "depth=20 arch=rezero",
        "depth=20 arch=plain arch.norm=none",
    ]
    found = measured(cures, six + [line for words in more for line in sweep(words)])
    extra = {"residual, crelu + dirac", "plain, repvgg"}
    assert found == {(one, 20) for one in {f"plain, {one}" for one in CHANGES} | extra}
    with pytest.raises(UsageError, match="needs finished runs of plain, none"):
        measured(cures, six[3:])


@pytest.mark.process
def test_the_figure_sorts_cures_by_what_deeper_plain_networks_lose() -> None:
    errors = errors_of(muon=30.0)
    rows = rows_of(errors, chosen=dict.fromkeys(errors, RATES))
    assert list(cures.rises(judged(rows), "plain", "train_error_percent"))[-3:] == [
        "muon",
        "none",
        "delta_orthogonal",
    ]
    with matplotlib.rc_context():
        rise, _, best = cures.draw(rows).axes
    assert [label.get_text() for label in rise.get_yticklabels()][-1] == "delta_orthogonal"
    assert {x for line in best.lines[1::5] for x in line.get_xdata()} == {0.02}
