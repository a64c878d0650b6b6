"""Small-sample statistics of paired runs, without scipy: Student's t.

With few seeds a percentile bootstrap under-covers, so intervals and tests are paired t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(slots=True)
class Interval:
    """A mean of paired differences and what is known of it; nan where ``n`` is too small."""

    mean: float
    sd: float  # of the differences, n - 1 in the denominator
    n: int
    low: float  # two-sided interval
    high: float
    lower: float  # one-sided bounds, each alone at the same confidence
    upper: float
    d: float  # effect size of paired differences (Cohen's d_z): mean / sd; nan where sd is 0


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t with a whole number of degrees of freedom.

    The finite trigonometric sums of Abramowitz and Stegun, 26.7.3 and 26.7.4: exact, no
    incomplete beta function needed.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom")
    angle = math.atan2(t, math.sqrt(freedom))
    square = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(odd, freedom - 1, 2):  # powers of the cosine below freedom - 1
        total += term
        term *= square * (k + 1) / (k + 2)
    central = math.sin(angle) * total
    if odd:
        central = 2 / math.pi * (angle + central)
    return 0.5 + 0.5 * central


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """The t that ``t_cdf`` gives this probability, by bisection to the last digit."""
    if not 0 < probability < 1:
        raise ValueError(f"no quantile at {probability}")
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return high


def least_squares(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the line through points (x, y); nan of fewer than two."""
    if len(points) < 2:
        return math.nan
    x = sum(x for x, _ in points) / len(points)
    y = sum(y for _, y in points) / len(points)
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def paired_t(differences: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of paired differences with its t interval and one-sided bounds.

    One difference has a mean and no spread: everything else is nan. None has no mean either.
    """
    n = len(differences)
    mean = math.fsum(differences) / n if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, n, *[math.nan] * 5)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1))
    error = sd / math.sqrt(n)
    two_sided = error * t_quantile((1 + confidence) / 2, n - 1)
    one_sided = error * t_quantile(confidence, n - 1)
    return Interval(
        mean=mean,
        sd=sd,
        n=n,
        low=mean - two_sided,
        high=mean + two_sided,
        lower=mean - one_sided,
        upper=mean + one_sided,
        d=mean / sd if sd > 1e-12 * abs(mean) else math.nan,  # a spread of rounding is none
    )


def t_p(interval: Interval, bound: float = 0.0) -> float:
    """One-sided p of Student's t that the mean is above ``bound``.

    Without a spread there is no doubt: 0 or 1. nan for fewer than two differences.
    """
    if interval.n < 2:
        return math.nan
    error = interval.sd / math.sqrt(interval.n)
    if error == 0:
        return float(interval.mean <= bound)
    return t_cdf((bound - interval.mean) / error, interval.n - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of several tests, in their order: all may be judged at one level together.

    The smallest is multiplied by their number, the next by one less, and so on, none falling below
    the one before (Holm 1979). A nan is no test: it stays nan and does not count.
    """
    ranked = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    least = 0.0
    for rank, (p, index) in enumerate(ranked):
        least = max(least, min(1.0, (len(ranked) - rank) * p))
        adjusted[index] = least
    return adjusted
