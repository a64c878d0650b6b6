"""Student's t against tables, scipy where it is, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from resexp.analysis.statistics import holm, paired_t, t_cdf, t_p, t_quantile


@pytest.mark.parametrize(
    ("n", "two_sided", "one_sided"), [(3, 4.303, 2.920), (5, 2.776, 2.132), (8, 2.365, 1.895)]
)
def test_quantiles_are_those_of_the_table(n: int, two_sided: float, one_sided: float) -> None:
    assert t_quantile(0.975, n - 1) == pytest.approx(two_sided, abs=5e-4)
    assert t_quantile(0.95, n - 1) == pytest.approx(one_sided, abs=5e-4)


def test_one_degree_of_freedom_is_the_cauchy_distribution() -> None:
    for t in (-3.0, -0.5, 0.0, 1.0, 20.0):
        assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-14)


def test_cdf_and_quantile_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for freedom in (1, 2, 3, 4, 7, 10, 39):
        for t in (-6.0, -1.3, 0.0, 0.2, 2.5, 9.0):
            assert t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-13)
        for probability in (0.01, 0.5, 0.9, 0.975, 0.9995):
            expected = stats.t.ppf(probability, freedom)
            assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_paired_t_of_numbers_done_by_hand() -> None:
    result = paired_t([1.0, 2.0, 3.0])  # mean 2, sd 1, standard error 1 / sqrt(3)
    assert (result.mean, result.sd, result.n, result.d) == (2.0, 1.0, 3, 2.0)
    two_sided, one_sided = 4.302653 / math.sqrt(3), 2.919986 / math.sqrt(3)
    ends = [result.low, result.high, result.lower, result.upper]
    wanted = [2 - two_sided, 2 + two_sided, 2 - one_sided, 2 + one_sided]
    assert ends == pytest.approx(wanted, abs=1e-6)


def test_one_difference_has_a_mean_and_no_interval() -> None:
    result = paired_t([0.7])
    assert (result.mean, result.n) == (0.7, 1)
    assert all(math.isnan(value) for value in (result.sd, result.low, result.high, result.lower))
    assert math.isnan(paired_t([]).mean)
    for constant in ([0.0] * 5, [0.1] * 5, [0.7], []):
        assert math.isnan(paired_t(constant).d)


def test_the_p_of_t_agrees_with_the_table_and_scipy() -> None:
    assert t_p(paired_t([1.0, 2.0, 3.0])) == pytest.approx(0.0370900, abs=1e-6)  # t = 3.4641, 2 df
    assert math.isnan(t_p(paired_t([0.7])))
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for values in ([0.3, -0.1, 0.4, 0.2], [-1.0, -0.5, -0.8], [2.0, 2.1, 2.2, 2.0, 1.9]):
        expected = stats.ttest_1samp(values, 0, alternative="greater").pvalue
        assert t_p(paired_t(values)) == pytest.approx(expected, rel=1e-9)
        above = stats.ttest_1samp(values, 0.25, alternative="greater").pvalue
        assert t_p(paired_t(values), 0.25) == pytest.approx(above, rel=1e-9)


def test_without_a_spread_there_is_no_doubt() -> None:
    equal = paired_t([0.5] * 5)
    assert [t_p(equal, bound) for bound in (0.4, 0.5, 0.6)] == [0, 1, 1]


def test_holm_is_as_done_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04] and holm([]) == []
    adjusted = holm([math.nan, 0.02, 0.3])
    assert math.isnan(adjusted[0]) and adjusted[1:] == pytest.approx([0.04, 0.3])


def test_the_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    samples = np.random.default_rng(0).normal(0.4, 1.5, size=(4000, 5))
    intervals = [paired_t(list(sample)) for sample in samples]
    two_sided = np.mean([result.low <= 0.4 <= result.high for result in intervals])
    lower = np.mean([result.lower <= 0.4 for result in intervals])
    upper = np.mean([result.upper >= 0.4 for result in intervals])
    # Four standard errors of a share of 0.95 in 4,000.
    assert [two_sided, lower, upper] == pytest.approx([0.95] * 3, abs=4 * math.sqrt(0.0475 / 4000))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="0 degrees"):
        t_cdf(1.0, 0)
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(1.0, 3)
