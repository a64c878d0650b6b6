"""How often the verdict's rule errs and finds: docs/calibration.md, by simulation.

    python scripts/calibrate.py [PAGE]

Draws of known effect go through the rule on arrays, for one arm alone and for one beside a
baseline; tests compare that with ``judge`` draw by draw. The cells were named before they were
drawn; none is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np

from resexp.analysis.results import find_runs, grouped
from resexp.analysis.statistics import t_quantile
from resexp.analysis.verdict.history import degrading
from resexp.analysis.verdict.rule import LEAST_RISE, LEVEL
from resexp.analysis.verdict.select import endpoint

PAGE = Path("docs/calibration.md")
CONTROL = Path("results/digits/claims/control")
DRAWS = 100_000
SEEDS = (5, 10, 20)
RISES = (2.0, 5.0, 20.0)  # percent points
CURED_RISES = (1.0, 2.0)  # of which the first is what the rule bounds
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

#: Noise of the shallow and of the deep network, its spread in points, and the share of runs, at
#: both depths, that fail and count at chance.
Cell = tuple[str, str, float, float]

#: What is simulated for degrading.
CELLS: dict[str, Cell] = {
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
#: And for curing, beside a baseline that rises by 20 points.
CURES: dict[str, Cell] = {
    "normal, spread 0.1": ("normal", "normal", 0.1, 0.0),
    "normal, spread 0.5": ("normal", "normal", 0.5, 0.0),
    "normal, spread 1": ("normal", "normal", 1.0, 0.0),
    "normal, spread 2": ("normal", "normal", 2.0, 0.0),
    "deep skewed to the right, spread 0.5": ("tenth", "right", 0.5, 0.0),
    "deep skewed to the left, spread 0.5": ("tenth", "left", 0.5, 0.0),
}
BASELINE: Cell = ("normal", "normal", 5.0, 0.0)
BASELINE_RISE = 20.0


def drawn(
    generator: np.random.Generator, cell: Cell, rise: float, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Errors of the shallow and of the deep network, percent: shape [draws, seeds] each."""
    shallow, deep, spread, failing = cell
    errors = []
    for noise, level in ((shallow, 20.0), (deep, 20.0 + rise)):
        error = level + spread * NOISE[noise](generator, shape)
        errors.append(np.where(generator.random(shape) < failing, CHANCE, error))
    return errors[0], errors[1]


def rises(cell: str, rise: float, seeds: int, draws: int) -> Array:
    """Rises of one cell, deep minus shallow, in points: shape [draws, seeds]."""
    generator = np.random.default_rng([list(CELLS).index(cell), int(10 * rise), seeds])
    shallow, deep = drawn(generator, CELLS[cell], rise, (draws, seeds))
    return deep - shallow


def rate(cell: str, rise: float, seeds: int, draws: int = DRAWS) -> float:
    return float(degrading(rises(cell, rise, seeds, draws)).mean())


def pairs(cell: str, rise: float, seeds: int, draws: int) -> list[tuple[Array, Array]]:
    """Shallow and deep errors of the baseline, then of an arm: shape [draws, seeds] each."""
    generator = np.random.default_rng([99, list(CURES).index(cell), int(10 * rise), seeds])
    arms = (BASELINE, BASELINE_RISE), (CURES[cell], rise)
    return [drawn(generator, *arm, (draws, seeds)) for arm in arms]


def curing(baseline: tuple[Array, Array], arm: tuple[Array, Array]) -> np.ndarray:
    """Whether the rule calls the arm cured, one alone beside its baseline: shape [draws]."""
    first, its = (deep - shallow for shallow, deep in (baseline, arm))
    seeds = its.shape[1]

    def bound(values: Array) -> Array:
        """How far the one-sided bounds of a mean are from it."""
        return t_quantile(1 - LEVEL, seeds - 1) * values.std(1, ddof=1) / seeds**0.5

    better = (baseline[1] - arm[1]).mean(1) > 0
    no_rise = its.mean(1) + bound(its) < LEAST_RISE
    less = (first - its).mean(1) - bound(first - its) > 0
    return degrading(first) & ~degrading(its) & no_rise & less & better


def cure_rate(cell: str, rise: float, seeds: int, draws: int = DRAWS) -> float:
    return float(curing(*pairs(cell, rise, seeds, draws)).mean())


def false_share(share: float) -> str:
    """A cell of what should be rare: bold beyond the level and what drawing leaves open."""
    return f"**{share:.1%}**" if share > 0.055 else f"{share:.1%}"


def cures() -> list[str]:
    """The table of cures in Markdown: false ones, then power, in percent."""
    titles = [f"rise {rise:g}: {n}" for rise in CURED_RISES for n in SEEDS]
    titles += [f"no rise: {n}" for n in SEEDS]
    titles[0] += " seeds"
    lines = [f"| noise of a run | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for cell in CURES:
        false = [cure_rate(cell, rise, n) for rise in CURED_RISES for n in SEEDS]
        cells = [false_share(one) for one in false]
        cells += [f"{cure_rate(cell, 0.0, n):.0%}" for n in SEEDS]
        lines.append(f"| {cell} | {' | '.join(cells)} |")
    return lines


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
        cells = [false_share(one) for one in none]
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
            "## How often a cure is read",
            "",
            f"The same for *cured*: an arm beside a baseline that rises by {BASELINE_RISE:g} "
            f"points (spread {BASELINE[2]:g}). An arm that rises by {LEAST_RISE:g} point or more "
            f"is not cured, so those are false, nominally at most {LEVEL:.0%}; of one that does "
            "not rise it is power.",
            "",
            *cures(),
            "",
            "So a cure takes many seeds where runs of one network differ by a point or more, and "
            "`inconclusive` is then the likely answer of five. Where a deep network seldom ends "
            "far above its usual error the level is not held (bold). Failures that are rare are "
            "not seen by few seeds: if one deep run of ten ends at chance, five seeds have none in "
            "59 % of experiments (0.9^5), and read the others alone.",
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
