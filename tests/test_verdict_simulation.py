"""The rule on synthetic endpoints of known effect: how often it errs, and how often it finds.

Thousands of draws go through ``judge``, which is the rule without files; ``decide`` is shown to
give the same answer on the same numbers, and gets the labels. Bounds are four standard errors of
a share (Monte Carlo), so that a right rule fails about once in 30,000 such checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resexp.analysis.results import Run
from resexp.analysis.statistics import Interval, t_quantile
from resexp.analysis.verdict import Verdict, decide
from resexp.analysis.verdict.rule import (
    Arm,
    Endpoint,
    all_contrasts,
    changes,
    difference,
    judge,
    summary,
)
from resexp.settings import Settings, as_dict

THRESHOLD = 0.3
DRAWS = 2500
CHANCE = {"loss": math.log10(math.log(10)), "train_error": 90.0, "test_error": 90.0}
Numbers = dict[tuple[int, int], Endpoint]


def drawn(
    generator: np.random.Generator,
    effect: Mapping[int, float],
    sd: float,
    seeds: int,
    test: float = 0.0,
    shared: float = 1.0,
) -> Numbers:
    """One arm: log10 loss ``effect`` of each depth, plus a part of the seed and one of the run.

    The seed's part (sd ``shared``) cancels in pairs; the run's is such that a difference of two
    runs has standard deviation ``sd``. Test error rises by ``test`` points per depth trained.
    """
    numbers: Numbers = {}
    for seed in range(seeds):
        common = generator.normal(0, shared)
        for rank, (depth, loss) in enumerate(effect.items()):
            train, tested = 10 + generator.normal(0, 1), 12 + generator.normal(0, 0.5)
            own = generator.normal(0, sd / math.sqrt(2))
            numbers[depth, seed] = {
                "loss": loss + common + own,
                "train_error": train,
                "test_error": tested + rank * test,
            }
    return numbers


def judged(numbers: Numbers) -> Arm:
    return judge("plain", numbers, 20, 56, THRESHOLD)


def share_shown(effect: float, sd: float, seeds: int, threshold: float, draws: int) -> float:
    generator = np.random.default_rng(int(1000 * (effect + sd) + seeds))
    readings = [
        judge("plain", drawn(generator, {20: 0, 56: effect}, sd, seeds), 20, 56, threshold).reading
        for _ in range(draws)
    ]
    return readings.count("degrades") / draws


def error_of(share: float, draws: int = DRAWS) -> float:
    """Four standard errors of a share."""
    return 4 * math.sqrt(share * (1 - share) / draws)


# --- false positives


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("sd", [0.05, 0.5, 5.0])
def test_without_an_effect_degradation_is_shown_at_most_once_in_twenty(
    seeds: int, sd: float
) -> None:
    assert share_shown(0.0, sd, seeds, THRESHOLD, 1500) <= 0.05 + error_of(0.05, 1500)


def test_the_level_is_used_up_where_only_the_interval_decides() -> None:
    # With five seeds a lower bound above zero implies a majority of rises: the t test alone is
    # left once the threshold is negligible, and its level is 5 % exactly.
    assert share_shown(0.0, 1.0, 5, 1e-9, DRAWS) == pytest.approx(0.05, abs=error_of(0.05))


def test_a_depth_between_makes_false_positives_rarer() -> None:
    generator = np.random.default_rng(4)
    flat = {20: 0.0, 32: 0.0, 56: 0.0}
    shown = [judged(drawn(generator, flat, 1.0, 5)).reading == "degrades" for _ in range(1500)]
    assert np.mean(shown) < 0.05


def test_runs_that_fail_at_any_depth_alike_do_not_show_degradation() -> None:
    """Half of the runs end at chance whatever their depth: heavy tails, no effect."""
    generator = np.random.default_rng(5)
    shown = 0
    for _ in range(1500):
        numbers = drawn(generator, {20: -2.0, 56: -2.0}, 0.2, 5)
        for key in numbers:
            if generator.random() < 0.5:
                numbers[key] = CHANCE
        shown += judged(numbers).reading == "degrades"
    assert shown / 1500 <= 0.05 + error_of(0.05, 1500)


def test_no_worse_is_said_of_a_threshold_rise_at_most_once_in_twenty() -> None:
    generator = np.random.default_rng(6)
    at_threshold = {20: 0.0, 56: THRESHOLD}
    said = [
        judged(drawn(generator, at_threshold, 0.3, 5)).reading.startswith("no worse")
        for _ in range(DRAWS)
    ]
    assert np.mean(said) == pytest.approx(0.05, abs=error_of(0.05))


def test_holm_over_all_pairs_errs_in_one_family_of_twenty() -> None:
    generator = np.random.default_rng(7)
    flat = {8: 0.0, 20: 0.0, 32: 0.0, 56: 0.0}
    draws = 300
    wrong = {"flips": 0, "t": 0}
    for _ in range(draws):
        family = all_contrasts({"plain": drawn(generator, flat, 0.5, 8)})
        wrong["flips"] += min(one.holm for one in family) <= 0.05
        wrong["t"] += min(one.holm_t for one in family) <= 0.05
    assert max(wrong.values()) / draws <= 0.05 + error_of(0.05, draws)


# --- power

#: Effect, standard deviation of a difference, seeds, and the probability that the mean is at least
#: max(0.3, t s / sqrt(n)): the normal tail of the mean, integrated over the chi distribution of s.
POWERS = [
    (0.6, 0.5, 3, 0.3951),
    (0.6, 0.5, 5, 0.7051),
    (0.5, 0.4, 5, 0.7197),
    (0.3, 0.2, 5, 0.4944),
]


@pytest.mark.parametrize(("effect", "sd", "seeds", "power"), POWERS)
def test_the_power_is_as_computed(effect: float, sd: float, seeds: int, power: float) -> None:
    share = share_shown(effect, sd, seeds, THRESHOLD, DRAWS)
    assert share == pytest.approx(power, abs=error_of(power))


def test_the_power_without_a_threshold_is_that_of_noncentral_t() -> None:
    share = share_shown(0.6, 0.5, 5, 1e-9, DRAWS)
    assert share == pytest.approx(0.7119, abs=error_of(0.7119))


def test_the_effect_of_the_digits_is_found_with_five_seeds() -> None:
    # Plain 44 against 20 on the digits: 1.25 with a spread of 0.28 between seeds.
    assert share_shown(1.25, 0.28, 5, THRESHOLD, 300) == 1.0


@pytest.mark.parametrize(("effect", "sd", "seeds", "power"), POWERS)
def test_the_powers_are_those_of_numerical_integration(
    effect: float, sd: float, seeds: int, power: float
) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    integrate = pytest.importorskip("scipy.integrate", reason="scipy is not installed")
    scale = math.sqrt(seeds - 1) / sd
    t = stats.t.ppf(0.95, seeds - 1)

    def at(s: float) -> float:
        least = max(THRESHOLD, t * s / math.sqrt(seeds))
        tail = stats.norm.sf((least - effect) * math.sqrt(seeds) / sd)
        return float(stats.chi.pdf(s * scale, seeds - 1) * scale * tail)

    kink = THRESHOLD * math.sqrt(seeds) / t
    total = integrate.quad(at, 0, kink)[0] + integrate.quad(at, kink, 20 * sd)[0]
    assert total == pytest.approx(power, abs=1e-4)


def test_the_noncentral_t_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    power = stats.nct.sf(t_quantile(0.95, 4), 4, 0.6 / 0.5 * math.sqrt(5))
    assert power == pytest.approx(0.7119, abs=1e-4)


# --- coverage


def test_intervals_of_every_contrast_cover_the_truth_at_their_rate() -> None:
    generator = np.random.default_rng(8)
    truth = {"plain": 1.2, "residual": -0.1, "difference": 1.3}
    found: dict[str, list[Interval]] = {name: [] for name in truth}
    for _ in range(2000):
        plain = changes(drawn(generator, {20: -2.0, 56: -0.8}, 0.6, 5), 20, 56)
        residual = changes(drawn(generator, {20: -2.0, 56: -2.1}, 0.2, 5), 20, 56)
        for name, values in (
            ("plain", plain),
            ("residual", residual),
            ("difference", difference(plain, residual)),
        ):
            found[name].append(summary(values).loss)
    allowed = error_of(0.95, 2000)
    for name, value in truth.items():
        intervals = found[name]
        assert np.mean([one.low <= value <= one.high for one in intervals]) == pytest.approx(
            0.95, abs=allowed
        )
        assert np.mean([one.lower <= value for one in intervals]) == pytest.approx(
            0.95, abs=allowed
        )
        assert np.mean([value <= one.upper for one in intervals]) == pytest.approx(
            0.95, abs=allowed
        )


# --- labels, by decide on records in memory


def run(arch: str, depth: int, seed: int, endpoint: Endpoint, status: str = "ok") -> Run:
    """A finished run as its record would say, without a file."""
    settings = as_dict(Settings(depth=depth, seed=seed))
    settings["arch"]["merge"] = arch
    last = {
        "clean_train_loss": 10 ** endpoint["loss"],
        "clean_train_error": endpoint["train_error"],
        "test_error": endpoint["test_error"],
    }
    name = f"{arch}-{depth}-s{seed}"
    record: dict[str, Any] = {
        "run": name,
        "name": "made-up",
        "arch": arch,
        "depth": depth,
        "seed": seed,
        "status": status,
        "extras": {},
        "settings": settings,
        "data": {"name": "digits", "classes": 10, "chance_error": 90.0},
        "last": {} if status in ("failed", "diverged") else last,
    }
    return Run(Path("results/made-up") / name, record)


def sweep(
    generator: np.random.Generator,
    plain: tuple[Endpoint, Endpoint],
    residual: tuple[Endpoint, Endpoint],
    fails: Mapping[tuple[str, int, int], str] | None = None,
) -> list[Run]:
    """Both arms, shallow and deep, five seeds, with a little noise around what is given."""
    runs = []
    for arch, ends in (("plain", plain), ("residual", residual)):
        for depth, end in zip((20, 56), ends, strict=True):
            for seed in range(5):
                noise = generator.normal(0, (0.05, 0.1, 0.3))
                near = dict(zip(end, np.add(list(end.values()), noise).tolist(), strict=True))
                status = (fails or {}).get((arch, depth, seed), "ok")
                runs.append(run(arch, depth, seed, near, status))
    return runs


MEASURES = ("loss", "train_error", "test_error")


def end(*values: float) -> Endpoint:
    return dict(zip(MEASURES, values, strict=True))


GOOD = end(-2.5, 1.0, 8.0)
LABELS = {
    "degradation": end(-0.5, 20.0, 28.0),
    "overfitting": end(-2.7, 0.5, 12.0),
    "under-optimised": end(-1.5, 6.0, 5.0),
    "depth helps": end(-3.0, 0.2, 5.0),
}


@pytest.mark.parametrize(("label", "deep"), LABELS.items())
def test_runs_made_to_behave_get_their_label(label: str, deep: Endpoint) -> None:
    generator = np.random.default_rng(len(label))
    for _ in range(8):
        plain, residual = decide(sweep(generator, (GOOD, deep), (GOOD, GOOD))).arms
        assert plain.label == label
        assert residual.label in ("inconclusive", "overfitting", "depth helps")
        assert residual.reading.startswith("no worse")


def test_equal_networks_get_no_label_but_for_the_level_of_two_bounds() -> None:
    generator = np.random.default_rng(9)
    labels = [judged(drawn(generator, {20: 0, 56: 0}, 0.1, 5)).label for _ in range(1500)]
    assert "degradation" not in labels and "under-optimised" not in labels
    assert 1 - labels.count("inconclusive") / 1500 <= 0.10 + error_of(0.10, 1500)


def test_deep_plain_networks_that_diverge_are_degradation() -> None:
    fails = {("plain", 56, seed): "diverged" for seed in range(4)}
    runs = sweep(np.random.default_rng(10), (GOOD, LABELS["degradation"]), (GOOD, GOOD), fails)
    verdict = decide(runs)
    assert (verdict.outcome, verdict.arms[0].label) == ("shown", "degradation")
    assert verdict.failures["diverged"] == 4 and verdict.seeds == [0, 1, 2, 3, 4]


def test_one_failure_of_five_among_equals_carries_nothing() -> None:
    runs = sweep(
        np.random.default_rng(11), (GOOD, GOOD), (GOOD, GOOD), {("plain", 56, 2): "diverged"}
    )
    assert decide(runs).outcome == "inconclusive"


def test_crashed_runs_leave_too_few_pairs_to_decide() -> None:
    fails = {("plain", 56, seed): "failed" for seed in range(4)}
    verdict = decide(
        sweep(np.random.default_rng(12), (GOOD, LABELS["degradation"]), (GOOD, GOOD), fails)
    )
    assert verdict.outcome == "inconclusive (preliminary)"
    assert verdict.arms[0].label == "inconclusive"
    assert verdict.failures["failed"] == 4 and len(verdict.missing) == 4


def test_a_control_of_two_arms_alike_has_no_effect() -> None:
    generator = np.random.default_rng(13)
    for _ in range(10):
        verdict = decide(sweep(generator, (GOOD, GOOD), (GOOD, GOOD)), baseline="residual")
        assert verdict.outcome == "not shown"
        assert abs(verdict.interactions["plain"].loss.mean) < THRESHOLD


def test_decide_and_judge_agree_on_the_same_numbers() -> None:
    generator = np.random.default_rng(14)
    for _ in range(10):
        numbers = drawn(generator, {20: -2.0, 56: -1.5}, 0.4, 5, test=1.0)
        verdict: Verdict = decide([run("plain", *key, end) for key, end in numbers.items()])
        alone = judged(numbers)
        arm = verdict.arms[0]
        assert (arm.reading, arm.label, arm.rising) == (alone.reading, alone.label, alone.rising)
        assert arm.change.loss.lower == pytest.approx(alone.change.loss.lower)
        assert arm.change.gap.high == pytest.approx(alone.change.gap.high)
