"""The probe concatenation: every word of its rule, and whose runs it reads."""

from __future__ import annotations

import pytest
from fake_sweeps import CHANCE, Errors, measured, rows_of

from resexp.probes import concatenation
from resexp.settings import UsageError


@pytest.mark.parametrize(
    ("dense", "unet", "verdict"),
    [
        (CHANCE, 10, "supported"),
        (0.4, 10, "not supported"),
        (20, [0.0, 4.0, 0.5, 2.0, 1.0], "inconclusive"),
    ],
)
def test_the_deepest_twin_of_each_family_decides(
    dense: float, unet: float | list[float], verdict: str
) -> None:
    errors: Errors = dict.fromkeys([("dense", 22), ("dense plain", 22), ("unet", 13)], 0.3)
    errors |= {("unet plain", 13): 0.3, ("dense", 40): 0.3, ("dense plain", 40): dense}
    errors |= {("unet", 23): 0.5, ("unet plain", 23): unet}
    assert concatenation.conclude(rows_of(errors)).verdict == verdict


@pytest.mark.process
def test_each_family_is_read_under_its_own_recipe() -> None:
    dense = [f"arch=dense depth=22 twin={twin}" for twin in ("none", "plain")]
    unet = [f"experiment=blobs arch=unet twin={twin}" for twin in ("none", "plain")]
    found = measured(concatenation, [*dense, *unet])
    assert found == {("dense", 22), ("dense plain", 22), ("unet", 13), ("unet plain", 13)}
    with pytest.raises(UsageError, match="unet plain"):
        measured(concatenation, [*dense, *unet[:1]])
    with pytest.raises(UsageError, match="differ in steps"):
        measured(concatenation, [dense[0], f"{dense[1]} steps=440", *unet])
