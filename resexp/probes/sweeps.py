"""What probes of finished sweeps share: final errors, which settings did best, and the rule.

Primary is the final clean training error in percent; a run that collapsed, diverged or crashed
counts at chance. A *contrast* is one network's error less another's, in points, paired by seed. It
is an **effect** if its mean is at least 1 point and its one-sided 95 % lower bound (Student's t)
above 0, and **none** if its upper bound is below 1 point and the other network trained: at most
half of its runs failed, so that two failures are not alike. p of several contrasts by Holm. Fewer
than five seeds decide nothing, and neither does a nan. Where a setting is chosen, seeds 90 and 91
choose it, as ``resexp best`` does, and do not judge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from resexp.analysis.results import Run
from resexp.analysis.statistics import Interval, holm, paired_t, t_p
from resexp.analysis.verdict.rule import ENOUGH_SEEDS, LEAST_RISE, LEVEL
from resexp.analysis.verdict.select import FAILURES, endpoint, mismatches
from resexp.probes import Account, Case, Figure, Finding, Headline, Row, Tell, Verdict
from resexp.probes.rows import bounds, difference, seeds_of, those, values
from resexp.settings import UsageError

CHOICE = (90, 91)  # seeds that choose a setting
ERROR, TEST, LOSS = "train_error_percent", "test_error_percent", "log10_train_loss"

Network = tuple[str, int]  # arm and depth


def ends(
    arm: Callable[[Case], str | None],
    arms: Sequence[str],
    cases: Sequence[Case],
    tell: Tell,
    key: str | None = None,
    apart: Collection[str] = (),
) -> list[Row]:
    """A row per run of an arm: its final numbers, and the value of ``key`` if it was typed.

    ``arm`` names the arm of a case, None if it has no part; arms may differ in the settings
    ``apart``, in their arch and in ``key``. Raises UsageError, on behalf of the probe whose ``arm``
    it is, if no depth has all ``arms``, two runs are the same, or conditions differ.
    """
    probe = arm.__module__.rpartition(".")[2]
    found = [(case.run, one) for case in tell(cases) if case.run and (one := arm(case)) is not None]
    unlike = mismatches([run for run, _ in found])
    for differing, ((one, _), (other, _)) in unlike.items():
        if differing not in {key, *apart} and not differing.startswith("environment."):
            raise UsageError(
                f"{probe} compares like with like, and {one} and {other} differ in {differing}. "
                "Choose with a filter."
            )
    rows = [row_of(run, one, key) for run, one in found]
    table = judged(pd.DataFrame(rows, columns=list(rows[0]) if rows else ["arm", "depth"]))
    if not common(table, arms):
        chosen = f" (their {key} chosen on seeds {CHOICE[0]} and {CHOICE[1]})" if key else ""
        raise UsageError(
            f"{probe} needs finished runs of {', '.join(arms)} at one depth{chosen}. "
            f"Train them: CLAIMS={probe} scripts/claims.sh"
        )
    if table.duplicated(["arm", "depth", "seed"]).any():
        raise UsageError(f"{probe} found several runs of one network and seed. Choose by a filter.")
    return rows


def row_of(run: Run, arm: str, key: str | None) -> Row:
    """A run's final numbers: None where it has none."""
    end = endpoint(run) or {}
    row = {"arm": arm, "depth": run.depth, "seed": run.seed, "status": run.status}
    row |= {ERROR: end.get("train_error"), TEST: end.get("test_error"), LOSS: end.get("loss")}
    return row if key is None else row | {"value": run.extras.get(key)}


# --- choosing


def best(rows: pd.DataFrame) -> dict[Network, float]:
    """By arm and depth the value with the least mean log loss over seeds CHOICE.

    A value that one of these seeds lacks is none of them.
    """
    own = rows[rows["seed"].isin(CHOICE)].dropna(subset=[LOSS])
    groups = own.groupby(["arm", "depth", "value"])[[LOSS]]
    means = groups.mean()[groups.size() == len(CHOICE)]
    first = means.sort_values(LOSS, kind="stable").reset_index()
    first = first.drop_duplicates(["arm", "depth"]).sort_values(["arm", "depth"])
    chosen = first[["arm", "depth", "value"]].to_numpy().tolist()
    return {(arm, int(depth)): float(value) for arm, depth, value in chosen}


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that judge: where a setting was chosen, those at the best value, of other seeds."""
    if "value" not in rows:
        return rows
    chosen = best(rows)
    places = zip(rows["arm"], rows["depth"], strict=True)
    least = pd.Series([chosen.get(place) for place in places], index=rows.index, dtype=float)
    return rows[~rows["seed"].isin(CHOICE) & (rows["value"].isna() | (rows["value"] == least))]


# --- comparing


@dataclass(frozen=True, slots=True)
class Contrast:
    """How many points one network's error is above another's."""

    what: str
    points: pd.Series[float]  # index: seed
    trained: bool  # whether at most half of the other's runs failed

    @property
    def mean(self) -> Interval:
        return paired_t(list(self.points))


def contrast(rows: pd.DataFrame, worse: Network, better: Network, column: str = ERROR) -> Contrast:
    """The first network's error less the second's, over the seeds that have both."""
    errors = (values(rows, column, arm=arm, depth=depth) for arm, depth in (worse, better))
    less = " less ".join(f"{arm}-{depth}" for arm, depth in (worse, better))
    what = less if column == ERROR else f"test error, {less}"
    fails = those(rows, arm=better[0], depth=better[1])["status"].isin(FAILURES)
    return Contrast(what, difference(*errors), fails.mean() <= 0.5)


def effects(contrasts: Sequence[Contrast]) -> list[bool]:
    """Which of them are effects, by the module's rule."""
    means = [one.mean for one in contrasts]
    tests = holm([t_p(one) for one in means])
    return [
        one.n >= ENOUGH_SEEDS and one.mean >= LEAST_RISE and one.lower > 0 and p <= LEVEL
        for one, p in zip(means, tests, strict=True)
    ]


def none(contrasts: Sequence[Contrast]) -> list[bool]:
    """Which of them are shown to be no effect, by the module's rule."""
    means = [one.mean for one in contrasts]
    tests = holm([1 - t_p(one, LEAST_RISE) for one in means])
    return [
        one.trained and mean.n >= ENOUGH_SEEDS and mean.upper < LEAST_RISE and p <= LEVEL
        for one, mean, p in zip(contrasts, means, tests, strict=True)
    ]


def common(rows: pd.DataFrame, arms: Sequence[str]) -> list[int]:
    """The depths that all ``arms`` have, from shallow to deep."""
    held = [set(those(rows, arm=arm)["depth"]) for arm in arms]
    return sorted(map(int, set.intersection(*held)))


# --- telling


def told(
    rows: pd.DataFrame, arms: Sequence[str], depths: Sequence[int], column: str = ERROR
) -> str:
    """``0.1 % (plain-20), 69.3 % (plain-56)``: mean errors."""
    means = {
        f"{arm}-{depth}": those(rows, arm=arm, depth=depth)[column].mean(skipna=False)
        for depth in depths
        for arm in arms
    }
    return ", ".join(f"{mean:.1f} % ({network})" for network, mean in means.items())


def failed(rows: pd.DataFrame) -> str:
    """Which networks did not train at all, and how often."""
    found = [
        f"{arm}-{depth} ({fails} of {len(some)})"
        for (arm, depth), some in rows.groupby(["arm", "depth"])
        if (fails := some["status"].isin(FAILURES).sum())
    ]
    return f"at chance ended {', '.join(found)}" if found else "no network ended at chance"


def finding(
    rows: pd.DataFrame,
    word: Verdict,
    sentence: str,
    contrasts: Sequence[Contrast],
    conventions: Sequence[str] = (),
    account: tuple[Account, str] | None = None,
) -> Finding:
    """A finding from rows that judge, with who failed; ``contrasts`` are its headlines."""
    numbers: dict[str, float] = {
        f"{column}, {arm}-{depth}": some[column].mean(skipna=False)
        for (arm, depth), some in rows.groupby(["arm", "depth"])
        for column in (ERROR, TEST)
    }
    for one in contrasts:
        numbers |= bounds(f"points, {one.what}", one.mean)
    return Finding(
        word,
        f"{sentence}; {failed(rows)}.",
        numbers=numbers,
        conventions=[
            *conventions,
            "clean training error after the last step unless test error is named, in percent, on "
            "all training images in evaluation mode; a run that collapsed, diverged or crashed "
            "counts at chance",
            f"points: one network's error less another's, paired by seed, {seeds_of(rows)}; "
            f"an effect is {LEAST_RISE:g} point or more with its one-sided 95 % lower bound above "
            f"0, none an upper bound below {LEAST_RISE:g} point where the other trained; p of "
            "several by Holm",
        ],
        headlines=[Headline(one.what, one.points, "points", "+.1f") for one in contrasts],
        account=account,
    )


def chosen_values(rows: pd.DataFrame, key: str) -> str:
    """A convention: what was chosen, out of what, on which seeds."""
    tried = sorted(set(rows["value"].dropna()))
    named = ", ".join(f"{value:g} ({arm}-{depth})" for (arm, depth), value in best(rows).items())
    return (
        f"{key} out of {', '.join(f'{value:g}' for value in tried)} by the loss on seeds "
        f"{CHOICE[0]} and {CHOICE[1]}, which do not judge: {named}"
    )


def drawn(title: str, arms: Sequence[str], rows: pd.DataFrame) -> Figure:
    """Training and test error: a dot per network that judges, a line at each mean.

    From top to bottom the arms, each from shallow to deep.
    """
    from resexp.analysis.figures.canvas import depth_colour
    from resexp.probes.drawing import finish, panels

    rows = judged(rows)
    some = [(arm, depth) for arm in arms for depth in sorted(set(those(rows, arm=arm)["depth"]))]
    figure, axes = panels(2, 22 + 6 * len(some), sharey=True)
    for axis, (column, what) in zip(axes, ((ERROR, "clean training"), (TEST, "test")), strict=True):
        for at, (arm, depth) in enumerate(some):
            errors, colour = those(rows, arm=arm, depth=depth)[column], depth_colour(depth)
            axis.plot(errors, [at] * len(errors), "o", color=colour, ms=4, alpha=0.7)
            axis.plot([errors.mean()] * 2, [at - 0.3, at + 0.3], color=colour, linewidth=1.4)
        axis.set_xlabel(f"{what} error (%)")
        axis.set_xlim(left=-axis.get_xlim()[1] / 25)  # 0 always shows, with room for its dots
    axes[0].set_yticks(range(len(some)), [f"{arm}, {depth}" for arm, depth in some])
    axes[0].set_ylim(len(some) - 0.5, -0.5)
    return finish(figure, f"{title}: {rows['seed'].nunique()} seeds")
