"""Before or after: whether the question was fixed before the runs, and how often it was asked."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from resexp.analysis.export import is_pair
from resexp.analysis.results import Run
from resexp.analysis.statistics import t_quantile
from resexp.analysis.verdict.rule import ENOUGH_SEEDS, LEAST_RISE, LEVEL, RULE, Verdict
from resexp.files import no_link, read_text
from resexp.runs.preregistration import NAME, fingerprint, read

if TYPE_CHECKING:  # NumPy takes longer to load than all that judges runs
    import numpy as np

LOOKS = "verdicts.csv"  # in the experiment's folder: the numbers of seeds it was judged by
DRAWS = 40_000
FIXED, AFTER = "Fixed before", "Chosen after"


def when_fixed(runs: Sequence[Run], shallow: int, deep: int) -> str:
    """Whether rule, depths, seeds and recipe of these runs were fixed before they began."""
    folder = runs[0].experiment
    fixed = read(folder)
    if fixed is None:
        return f"{AFTER}, for all that is known: no preregistration (resexp preregister)."
    about = f"{NAME} of {fixed.written[:10]}"
    held = fingerprint(folder)
    without = [run.run for run in runs if run.record.get("preregistration") != held]
    others = [run.run for run in runs if fixed.runs.get(run.run) != run.record.get("digest")]
    reasons = {
        f"it is about {fixed.deep} against {fixed.shallow} layers": (shallow, deep)
        != (fixed.shallow, fixed.deep),
        "it has another rule": fixed.rule != RULE.splitlines(),
        f"it does not name {_some(others)}": bool(others),
        f"{_some(without)} lacks its hash": bool(without),
    }
    for reason, holds in reasons.items():
        if holds:
            return f"{AFTER}: there is a {about}, but {reason}."
    said = "".join(f" Hypothesis: {text.rstrip('.')}." for text in fixed.hypotheses)
    return f"{FIXED}: {about} names all {len(runs)} runs, which carry its hash.{said}"


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" (one of {len(names)})" if len(names) > 1 else "") if names else ""


# --- adding seeds after a verdict


def asked_again(verdict: Verdict, folder: Path, filters: Sequence[str]) -> list[str]:
    """What it cost to have judged by fewer seeds and to have added some since; [] if nothing.

    Notes in the experiment's folder by how many seeds it was judged now. Numbers that the rule does
    not decide by cost nothing, and a preregistered number of seeds was fixed.
    """
    question = f"{verdict.baseline} {verdict.deep} against {verdict.shallow} {' '.join(filters)}"
    seeds = len(verdict.seeds)
    asked = judged_by(folder / LOOKS, question.strip(), seeds)
    before = [n for n in asked if ENOUGH_SEEDS <= n < seeds]
    if not before or verdict.fixed.startswith(FIXED):
        return []
    rate, counts = rate_of_looks((*before, seeds)), " and ".join(map(str, before))
    return [
        f"Seeds were added after a verdict by {counts}: looking again raises the rate of false "
        f'"degrades" from {LEVEL:.0%} to {rate:.0%}. Fix the number beforehand: resexp preregister.'
    ]


def judged_by(path: Path, question: str, seeds: int) -> list[int]:
    """The numbers of seeds by which a question was judged before, and note this one.

    Only where run directories lie, for an exported pair grows no seeds; and a folder that cannot be
    written keeps no note.
    """
    if any(map(is_pair, path.parents[:2])):
        return []
    known: list[tuple[str, int]] = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        lines = csv.DictReader(read_text(path).splitlines())
        known = [(row["question"], int(row["seeds"])) for row in lines]
    if (question, seeds) not in known:
        with suppress(OSError), open(path, "a", newline="", opener=no_link) as file:
            rows = [] if known else [("question", "seeds")]
            csv.writer(file, lineterminator="\n").writerows([*rows, (question, seeds)])
    return sorted({n for asked, n in known if asked == question})


@cache
def rate_of_looks(looks: tuple[int, ...]) -> float:
    """How often "degrades" is read at one or more of several looks where there is no rise.

    ``looks`` are the numbers of seeds. Simulated: normal differences whose spread leaves the
    decision to the interval; the standard error of the rate is 0.1 points.
    """
    import numpy as np

    draws = np.random.default_rng(0).normal(0, 1000 * LEAST_RISE, (DRAWS, max(looks)))
    wrong = np.zeros(DRAWS, bool)
    for n in looks:
        wrong |= degrading(draws[:, :n])
    return float(wrong.mean())


def degrading(
    rises: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether the rule reads degradation of rises in points, shape [draws, seeds], of one arm."""
    seeds = rises.shape[1]
    mean, sd = rises.mean(1), rises.std(1, ddof=1)
    lower = mean - t_quantile(1 - LEVEL, seeds - 1) * sd / seeds**0.5
    degrades: np.ndarray[tuple[int], np.dtype[np.bool_]] = (mean >= LEAST_RISE) & (lower > 0)
    return degrades
