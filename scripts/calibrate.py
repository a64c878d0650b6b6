"""How often the verdict's rule errs and finds: docs/calibration.md, by simulation.

    python scripts/calibrate.py [PAGE]

Draws of known effect go through the rule for one arm on arrays; a test compares that with ``judge``
draw by draw. The cells were named before they were drawn; none is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np

from resexp.analysis.results import find_runs, grouped
from resexp.analysis.verdict.history import degrading
from resexp.analysis.verdict.rule import LEVEL
from resexp.analysis.verdict.select import endpoint

PAGE = Path("docs/calibration.md")
CONTROL = Path("results/digits/claims/control")
DRAWS = 100_000
SEEDS = (5, 10, 20)
RISES = (2.0, 5.0, 20.0)  # percent points
CHANCE = 90.0
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
#: Errors of one depth, shape [draws, seeds], of mean 0 and about unit spread.
Noise = Callable[[np.random.Generator, tuple[int, int]], Array]
NOISE: dict[str, Noise] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "tenth": lambda generator, shape: generator.normal(size=shape) / 10,
    # Student's t of three degrees of freedom, at unit variance.
    "heavy": lambda generator, shape: generator.standard_t(3, shape) / np.sqrt(3),
    # Exponential: rare values far above the mean, as of networks that seldom fail.
    "right": lambda generator, shape: generator.exponential(size=shape) - 1,
    "left": lambda generator, shape: 1 - generator.exponential(size=shape),
    # Two modes, two apart, each as likely: a network trains or it does not.
    "modes": lambda generator, shape: (
        generator.choice([-1.0, 1.0], shape) + generator.normal(0, 0.1, shape)
    ),
}

#: What is simulated: noise of the shallow and of the deep network, its spread in points, and the
#: share of runs, at both depths, that fail and count at chance.
CELLS = {
    "normal, spread 1": ("normal", "normal", 1.0, 0.0),
    "normal, spread 10": ("normal", "normal", 10.0, 0.0),
    "heavy tails, spread 1": ("heavy", "heavy", 1.0, 0.0),
    "heavy tails, spread 10": ("heavy", "heavy", 10.0, 0.0),
    "deep ten times the spread of shallow, 10": ("tenth", "normal", 10.0, 0.0),
    "both skewed to the right, spread 10": ("right", "right", 10.0, 0.0),
    "deep skewed to the right, spread 10": ("tenth", "right", 10.0, 0.0),
    "two modes, spread 10": ("modes", "modes", 10.0, 0.0),
    "one run in ten fails, spread 1": ("normal", "normal", 1.0, 0.1),
    "half of the runs fail, spread 1": ("normal", "normal", 1.0, 0.5),
    "deep skewed to the left, spread 1": ("tenth", "left", 1.0, 0.0),
    "deep skewed to the left, spread 10": ("tenth", "left", 10.0, 0.0),
}


def rises(cell: str, rise: float, seeds: int, draws: int) -> Array:
    """Rises of one cell, deep minus shallow, in points: shape [draws, seeds]."""
    generator = np.random.default_rng([list(CELLS).index(cell), int(10 * rise), seeds])
    shallow, deep, spread, failing = CELLS[cell]
    errors = []
    for noise, level in ((shallow, 20.0), (deep, 20.0 + rise)):
        error = level + spread * NOISE[noise](generator, (draws, seeds))
        failed = generator.random((draws, seeds)) < failing
        errors.append(np.where(failed, CHANCE, error))
    return errors[1] - errors[0]


def rate(cell: str, rise: float, seeds: int, draws: int = DRAWS) -> float:
    return float(degrading(rises(cell, rise, seeds, draws)).mean())


def table() -> list[str]:
    """The page's table in Markdown: false positives, then power, in percent."""
    counts = [f"{n} seeds" for n in SEEDS]
    powers = [f"rise {rise:g}: {n}" for rise in RISES for n in SEEDS[:2]]
    lines = [
        f"| noise of a run | {' | '.join(['no rise: ' + counts[0], *counts[1:], *powers])} |",
        "|---" * (1 + len(counts) + len(powers)) + "|",
    ]
    for cell in CELLS:
        none = [rate(cell, 0.0, n) for n in SEEDS]
        some = [rate(cell, rise, n) for rise in RISES for n in SEEDS[:2]]
        cells = [f"**{one:.1%}**" if one > 0.055 else f"{one:.1%}" for one in none]
        cells += [f"{one:.0%}" for one in some]
        lines.append(f"| {cell} | {' | '.join(cells)} |")
    return lines


# --- the same network against itself, in runs that were trained


def against_itself(errors: Array) -> tuple[int, int]:
    """Of all splits of a network's seeds into two halves, how many read degradation, of how many.

    ``errors``: final clean training errors, shape [seeds]. Both halves are in order of seed.
    """
    half = len(errors) // 2
    halves = [list(one) for one in combinations(range(len(errors)), half)]
    everything = set(range(len(errors)))
    rises = [errors[one] - errors[sorted(everything - {*one})[:half]] for one in halves]
    return int(degrading(np.array(rises)).sum()), len(halves)


def control(folder: Path) -> list[str]:
    """The table of the control: every network of a folder against itself."""
    lines = ["| network | seeds | clean training error | splits that degrade |", "|---" * 4 + "|"]
    for network, runs in grouped(find_runs(folder), lambda run: f"{run.arch}-{run.depth}").items():
        errors = [end["train_error"] for run in runs if (end := endpoint(run)) is not None]
        wrong, splits = against_itself(np.array(errors))
        spread = f"{np.mean(errors):.1f} %, spread {np.std(errors, ddof=1):.1f}"
        share = f"{wrong} of {splits} ({wrong / splits:.1%})"
        lines.append(f"| {network} | {len(errors)} | {spread} | {share} |")
    return lines


def page() -> str:
    return "\n".join(
        [
            "# How often the verdict errs, and what it finds",
            "",
            "Made by `python scripts/calibrate.py`; a test makes its cells again with fewer draws. "
            f"Each cell is {DRAWS:,} simulated experiments of one arm: the share that the rule of "
            "`resexp verdict` reads as degradation (standard error at most 0.2 points). Under no "
            f"rise these are false positives, nominally at most {LEVEL:.0%}; under a rise, power. "
            "Rises and spreads are in points of clean training error; the spread is that of one "
            "run, so that of a difference of two is 1.4 times as much.",
            "",
            *table(),
            "",
            "How depths between do, such as a plateau, is no part of the rule, and failures are "
            "runs at chance: they change a cell through its spread alone.",
            "",
            "**Where the level is not held** (bold): if deep networks as good as the shallow ones "
            "on average are rarely much better and mostly a little worse, Student's t errs too "
            "often, and so would any test of a mean with few seeds. The rule has no remedy. "
            "Failures count at chance, so errors are as a rule "
            "skewed to the right, where the test is conservative.",
            "",
            "Looking again with more seeds is not in this table: judged at 5 and, if not decided, "
            "at 10 seeds, 8 % of null experiments read degradation. "
            "The verdict says so when it finds that it was asked before; `resexp preregister` "
            "fixes the number.",
            "",
            "## The same network against itself",
            "",
            "Ten trained runs of one network (`scripts/control.sh`, digits), split into two "
            "halves in every way, one in the part of the shallow network and the other in that of "
            "the deep: no effect by construction. Splits of the same ten runs are not independent, "
            "so these shares are coarse.",
            "",
            *control(CONTROL),
            "",
        ]
    )


if __name__ == "__main__":
    (Path(sys.argv[1]) if sys.argv[1:] else PAGE).write_text(page())
