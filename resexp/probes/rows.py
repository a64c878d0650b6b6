"""What probes share to conclude from their rows: the CSV, choosing rows, and numbers by seed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from resexp.analysis.statistics import Interval
from resexp.runs.records import spell

ENOUGH = 3  # seeds: of fewer a probe says inconclusive
#: Percent of training images wrong from which on a network failed to train: only networks that fit
#: are compared, or else a probe would tell what failed training does, not what skips do.
FAILED = 10.0


def as_csv(rows: Sequence[Mapping[str, str | float | None]]) -> str:
    """Tidy rows as text, numbers with seven digits; text with commas is in quotes."""
    keys = list(rows[0])
    assert all(list(row) == keys for row in rows), "rows of a tidy table share their keys"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow(one if isinstance(one, str) else spell(one) for one in row.values())
    return text.getvalue()


def read(table: str) -> pd.DataFrame:
    """A probe's CSV: numbers as numbers, NaN where a cell is empty, else text as it is."""
    text = io.StringIO(table)
    return pd.read_csv(text, keep_default_na=False, na_values=["", "nan"], low_memory=False)


def those(rows: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """The rows with these cells."""
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


def each_seed(rows: pd.DataFrame, *columns: str, **wanted: object) -> pd.DataFrame:
    """The rows with these cells, in order of seed and ``columns``, which tell them apart.

    Raises ValueError if they do not.
    """
    rows, place = those(rows, **wanted), ["seed", *columns]
    if rows.duplicated(place).any():
        raise ValueError(f"several rows per seed with {wanted}")
    return rows.sort_values(place)


def values(rows: pd.DataFrame, column: str, **wanted: object) -> pd.Series[float]:
    """The column of the only row of each seed with these cells."""
    return each_seed(rows, **wanted).set_index("seed")[column]


def by_seed(
    rows: pd.DataFrame,
    column: str,
    number: Callable[[pd.Series[float]], float],
    *along: str,
    **wanted: object,
) -> pd.Series[float]:
    """A number of each seed's values in the rows with these cells; nan where one of them is.

    In order of the columns ``along``, if any, which then tell a seed's rows apart.
    """
    rows = each_seed(rows, *along, **wanted) if along else those(rows, **wanted)
    return rows.groupby("seed")[column].agg(
        lambda some: number(some) if some.notna().all() else math.nan
    )


def difference(one: pd.Series[float], other: pd.Series[float]) -> pd.Series[float]:
    """Paired by seed; seeds that one of them lacks are left out, values that are nan are not."""
    seeds = one.index.intersection(other.index)
    return one[seeds] - other[seeds]


def mean(values: Iterable[float]) -> float:
    """nan where one of them is nan, or there is none."""
    some = list(values)
    return sum(some) / len(some) if some else math.nan


def bounds(name: str, one: Interval) -> dict[str, float]:
    """A mean and its one-sided bounds, as a finding's numbers."""
    return {name: one.mean, f"{name}, lower bound": one.lower, f"{name}, upper bound": one.upper}


def decades(values: pd.Series[float]) -> pd.Series[float]:
    """Their decimal logarithms; nan of what is not above 0."""
    return values.where(values > 0).transform(np.log10)


def fitted_depth(rows: pd.DataFrame, *archs: str) -> int | None:
    """The greatest depth at which all networks of each of ``archs`` fit, if there is one."""
    by_depth = rows[rows["arch"].isin(archs)].groupby("depth")
    worst = by_depth["clean_error_percent"].agg(lambda errors: errors.max(skipna=False))
    depths = worst.index[(worst < FAILED) & (by_depth["arch"].nunique() == len(archs))]
    return int(depths.max()) if len(depths) else None


def matched_depth(rows: pd.DataFrame) -> tuple[int, bool, str]:
    """The greatest depth at which plain and residual networks all fit, True, and words for it.

    If there is none the least depth, False, and words for that.
    """
    found = fitted_depth(rows, "plain", "residual")
    depth = found or int(rows["depth"].min())
    here = those(rows, depth=depth).groupby("arch")["clean_error_percent"].max()
    errors = ", ".join(f"{arch} {error:.1f}" for arch, error in here.items())
    which = "the greatest where plain networks fit" if found else "the least: at none do all fit"
    words = f"at depth {depth}, {which} (greatest clean training error, percent: {errors})"
    return depth, found is not None, words


def seeds_of(rows: pd.DataFrame) -> str:
    """``seeds 0, 1, 2``"""
    return f"seeds {', '.join(map(str, sorted(set(rows['seed']))))}"
