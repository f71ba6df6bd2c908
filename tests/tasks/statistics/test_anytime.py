"""Expected values: by hand, by naive products of the capital, and by simulation with a fixed seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.tasks.statistics.anytime import (
    SequentialTest,
    adjusted_log_e,
    average_log_e,
    bounded_mean_sequence,
    log_calibrated,
    paired_difference_sequence,
    rate_difference_sequence,
    rate_sequence,
    smallest_detectable_difference,
)
from plumbline.tasks.statistics.betting import FRACTIONS, compressed, log_capital, log_capital_of_counts

ALPHA = 0.05


def naive_capital(values: list[float], mean: float) -> float:
    """Mean over the stakes of the product of 1 + f·(y/m - 1), multiplied out."""
    products = []
    for fraction in FRACTIONS:
        capital = 1.0
        for value in values:
            capital *= 1 + fraction * (value / mean - 1)
        products.append(capital)
    return sum(products) / len(products)


def naive_interval(values: list[float], alpha: float, cells: int = 2000) -> tuple[float, float]:
    """The means of a grid against which neither bet has paid 2/alpha."""
    mirrored = [1 - value for value in values]
    kept = [
        m / cells
        for m in range(1, cells)
        if naive_capital(values, m / cells) < 2 / alpha and naive_capital(mirrored, 1 - m / cells) < 2 / alpha
    ]
    return kept[0], kept[-1]


def test_one_win_at_even_odds_pays_one_plus_the_stake() -> None:
    # y = 1, m = 1/2: 1 + f·(2 - 1) = 1 + f; the mean over the stakes is 1 + mean(f)
    expected = math.log(1 + float(FRACTIONS.mean()))
    assert log_capital(np.array([1.0]), np.array([1.0]), 0.5) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_the_capital_is_the_naive_product(values: list[float], mean: float) -> None:
    assert log_capital(*compressed(np.array(values)), mean) == pytest.approx(
        math.log(naive_capital(values, mean)), abs=1e-9
    )


def test_capital_of_counts_is_the_capital_of_ones_and_zeros() -> None:
    values = np.array([1.0] * 7 + [0.0] * 13)
    expected = log_capital(*compressed(values), 0.4)
    assert float(log_capital_of_counts(7, 20, 0.4)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_the_interval_is_the_naive_one() -> None:
    values = np.random.default_rng(3).beta(2, 5, size=80).round(3).tolist()
    found = bounded_mean_sequence(values, alpha=ALPHA)
    low, high = naive_interval(values, ALPHA)
    assert found.low == pytest.approx(low, abs=1 / 2000)
    assert found.high == pytest.approx(high, abs=1 / 2000)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.n == 80


def test_bounds_are_scaled_and_pairs_keep_their_pairing() -> None:
    values = np.random.default_rng(5).random(50)
    unit = bounded_mean_sequence(values, alpha=ALPHA)
    wide = bounded_mean_sequence(10 * values - 3, alpha=ALPHA, low=-3, high=7)
    assert (wide.low, wide.high) == pytest.approx((10 * unit.low - 3, 10 * unit.high - 3), abs=1e-6)
    same = paired_difference_sequence(values, values, alpha=ALPHA)  # every difference is 0: hardly any spread
    assert same.mean == 0
    assert same.high - same.low < 0.35
    shuffled = paired_difference_sequence(values, values[::-1], alpha=ALPHA)
    assert shuffled.high - shuffled.low > same.high - same.low


@given(st.integers(0, 400), st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_a_rate_is_the_mean_of_ones_and_zeros(successes: int, n: int) -> None:
    successes = min(successes, n)
    counted = rate_sequence(successes, n, alpha=ALPHA)
    one_by_one = bounded_mean_sequence([1.0] * successes + [0.0] * (n - successes), alpha=ALPHA)
    assert counted.low <= one_by_one.low + 1e-9
    assert counted.high >= one_by_one.high - 1e-9
    assert (counted.low, counted.high) == pytest.approx((one_by_one.low, one_by_one.high), abs=2e-3)
    assert counted.low <= counted.mean <= counted.high


def test_nothing_seen_says_nothing() -> None:
    assert (bounded_mean_sequence([], alpha=ALPHA).low, bounded_mean_sequence([], alpha=ALPHA).high) == (0, 1)
    assert rate_sequence(0, 0, alpha=ALPHA).n == 0
    assert rate_difference_sequence(0, 0, 3, 5, alpha=ALPHA).low == -1


@pytest.mark.parametrize("bad", [[1.2], [-0.1], [float("nan")]])
def test_values_out_of_bounds_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="expected values"):
        bounded_mean_sequence(bad, alpha=ALPHA)
    with pytest.raises(ValueError, match="expected values"):
        SequentialTest(reference=0.5, alpha=ALPHA).extend(bad)


def test_very_many_distinct_values_are_rounded_to_the_safe_side() -> None:
    values = np.random.default_rng(7).random(40_000)
    found = bounded_mean_sequence(values, alpha=ALPHA)
    assert found.low < values.mean() < found.high
    assert found.high - found.low < 0.012  # a fixed-time 95 % interval is 0.0057 wide


def covered_at_every_look(rate: float, looks: list[int], rounds: int, seed: int) -> float:
    """Share of simulated streams whose interval holds the true rate at all looks."""
    rng = np.random.default_rng(seed)
    k = (rng.random((rounds, looks[-1])) < rate).cumsum(axis=1)
    evidence, good = math.log(2 / ALPHA), np.ones(rounds, dtype=bool)
    for n in looks:
        good &= log_capital_of_counts(k[:, n - 1], n, rate) < evidence
        good &= log_capital_of_counts(n - k[:, n - 1], n, 1 - rate) < evidence
    return float(good.mean())


@pytest.mark.parametrize("rate", [0.5, 0.05, 0.9])
def test_the_true_mean_stays_inside_at_all_looks_together(rate: float) -> None:
    """A 95 % interval that is looked at 200 times must hold the truth at all of them in ≥ 95 % of streams."""
    covered = covered_at_every_look(rate, list(range(10, 2001, 10)), 1000, seed=11)
    assert covered >= 0.95
    assert covered < 1.0  # an interval that is never wrong would be too wide to be of use


@pytest.mark.slow
def test_the_difference_of_rates_covers_and_is_narrower_than_two_intervals() -> None:
    rng, missed = np.random.default_rng(13), 0
    for _ in range(60):
        a, b = rng.random(600) < 0.3, rng.random(600) < 0.25
        missed += any(
            rate_difference_sequence(int(a[:n].sum()), n, int(b[:n].sum()), n, alpha=ALPHA).excludes(0.05)
            for n in (50, 200, 600)
        )
    assert missed <= 5
    both = [rate_sequence(k, 1000, alpha=ALPHA / 2) for k in (300, 250)]
    joint = rate_difference_sequence(300, 1000, 250, 1000, alpha=ALPHA)
    assert joint.high - joint.low < 0.8 * (both[0].high - both[0].low + both[1].high - both[1].low)
    assert joint.mean == pytest.approx(0.05)
    assert joint.low < 0.05 < joint.high


def test_sums_of_shares_never_pay_more_than_the_shares_themselves() -> None:
    """One voter with ½ against a mean of ½: the value itself pays 1 at every stake f, ones and zeros √(1 - f²) ≤ 1."""
    assert float(log_capital_of_counts(0.5, 1, 0.5)) == pytest.approx(math.log(np.sqrt(1 - FRACTIONS**2).mean()))
    rng = np.random.default_rng(3)
    for _ in range(50):
        shares, mean = rng.beta(0.5, 0.5, 30), float(rng.uniform(0.1, 0.9))
        assert log_capital_of_counts(shares.sum(), 30, mean) <= math.log(naive_capital(list(shares), mean)) + 1e-9
    wide, narrow = rate_sequence(7.5, 30, alpha=ALPHA), bounded_mean_sequence([0.25] * 30, alpha=ALPHA)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.5, 0.05])
@pytest.mark.parametrize("one_after_another", [False, True])
def test_users_who_ask_again_and_again_raise_no_false_alarms(mean: float, one_after_another: bool) -> None:
    """60 users, rates from Beta(mean, 1 - mean), 20 requests each; a look after each request (or round of all users).

    A user's mean still moves while they ask, so the true mean is held against the sums at each look: requests as if
    independent exclude it in many streams, users' means in no more than alpha of them.
    """
    rounds, users, asks = 400, 60, 20
    rng = np.random.default_rng(29)
    x = rng.random((rounds, users, asks)) < rng.beta(mean, 1 - mean, (rounds, users, 1))
    running = x.cumsum(axis=2) / np.arange(1, asks + 1)  # each user's mean so far
    if one_after_another:
        done = np.concatenate([np.zeros((rounds, 1)), running[:, :, -1].cumsum(axis=1)[:, :-1]], axis=1)
        means, voters = (done[:, :, None] + running).reshape(rounds, -1), np.repeat(np.arange(1, users + 1), asks)
        naive, requests = x.reshape(rounds, -1).cumsum(axis=1), np.arange(1, users * asks + 1)
    else:
        means, voters = running.sum(axis=1), np.full(asks, users)
        naive, requests = x.sum(axis=1).cumsum(axis=1), users * np.arange(1, asks + 1)
    assert _excluded(means, voters, mean) <= ALPHA
    assert _excluded(naive, requests, mean) > 0.2


def _excluded(sums: np.ndarray, counts: np.ndarray, mean: float) -> float:
    """Share of streams (rounds, looks) whose interval excludes the mean at any look."""
    evidence, ever = math.log(2 / ALPHA), np.zeros(len(sums), dtype=bool)
    for total, n in zip(sums.T, counts, strict=True):
        ever |= log_capital_of_counts(total, n, mean) >= evidence
        ever |= log_capital_of_counts(n - total, n, 1 - mean) >= evidence
    return float(ever.mean())


def test_the_difference_of_rates_is_the_naive_range_of_kept_pairs() -> None:
    ka, na, kb, nb = 12, 40, 30, 60
    grid = np.linspace(0.005, 0.995, 199)
    p, q = np.meshgrid(grid, grid, indexing="ij")
    up = log_capital_of_counts(ka, na, p) + log_capital_of_counts(nb - kb, nb, 1 - q)
    down = log_capital_of_counts(na - ka, na, 1 - p) + log_capital_of_counts(kb, nb, q)
    evidence = math.log(2 / ALPHA)
    found = rate_difference_sequence(ka, na, kb, nb, alpha=ALPHA)
    assert found.low == pytest.approx((p - q)[up < evidence].min(), abs=0.015)
    assert found.high == pytest.approx((p - q)[down < evidence].max(), abs=0.015)


def test_e_values_are_the_naive_product_and_do_not_hang_on_batches() -> None:
    values = np.random.default_rng(19).integers(0, 2, 60).astype(float)
    one, many = SequentialTest(reference=0.6, alpha=ALPHA), SequentialTest(reference=0.6, alpha=ALPHA)
    seen = [one.update(value) for value in values]
    many.extend(values)
    # a bet that the mean lies below 0.6 is one that 1 - y lies above 0.4
    assert seen[-1] == pytest.approx(naive_capital([1 - value for value in values], 0.4))
    assert many.e_value == pytest.approx(seen[-1])
    assert many.decided == (max(seen) >= 1 / ALPHA)
    assert many.mean == pytest.approx(values.mean())


def test_a_day_without_values_changes_nothing() -> None:
    test = SequentialTest(reference=0.5, alpha=ALPHA, restarting=True)
    assert test.extend([]) == 1.0
    assert test.n == 0 and math.isnan(test.mean) and not test.decided
    test.extend([0.0] * 10)
    before = (test.e_value, test.n, test.mean, test.decided)
    assert test.extend([]) == before[0]
    assert (test.e_value, test.n, test.mean, test.decided) == before


def test_a_decision_stays_when_the_values_come_back() -> None:
    test = SequentialTest(reference=0.5, alpha=ALPHA)
    test.extend([0.0] * 30)
    assert test.decided
    test.extend([1.0] * 60)
    assert test.e_value < 1 / ALPHA
    assert test.decided


def test_the_margin_and_the_direction_move_the_edge() -> None:
    falls = SequentialTest(reference=0.5, margin=0.1, alpha=ALPHA)
    rises = SequentialTest(reference=0.5, margin=0.1, alpha=ALPHA, direction="above")
    assert (falls.threshold, rises.threshold) == (pytest.approx(0.4), pytest.approx(0.6))
    values = np.tile([1.0, 0.0, 0.0, 1.0, 0.0], 100)  # mean 0.4: at the edge of one, far from the other's
    assert not falls.extend(values) >= 1 / ALPHA
    assert rises.extend(values) < 1
    assert SequentialTest(reference=0.5, alpha=ALPHA).extend(values) >= 1 / ALPHA


def test_a_restarting_test_is_the_weighted_mean_of_its_starts() -> None:
    """Shares 1/2 and 1/6 on the two starts, 1/3 in waiting."""
    test = SequentialTest(reference=0.5, alpha=ALPHA, restarting=True)
    test.extend([1.0] * 5)
    test.restart()
    test.extend([0.0] * 4)
    first, second = naive_capital([0.0] * 5 + [1.0] * 4, 0.5), naive_capital([1.0] * 4, 0.5)
    assert test.e_value == pytest.approx(first / 2 + second / 6 + 1 / 3)


@pytest.mark.slow
def test_restarts_find_a_late_change_that_one_long_bet_misses() -> None:
    rng = np.random.default_rng(23)
    good, bad = (rng.random(6000) < 0.6).astype(float), (rng.random(1500) < 0.4).astype(float)
    once, often = (SequentialTest(reference=0.5, alpha=ALPHA, restarting=again) for again in (False, True))
    once.extend(good)
    for day in np.split(good, 60):
        often.restart()
        often.extend(day)
    for day in np.split(bad, 15):
        often.restart()
        often.extend(day)
    once.extend(bad)
    assert often.decided
    assert not once.decided


@pytest.mark.long
@pytest.mark.slow
def test_no_more_than_alpha_of_unchanged_streams_are_ever_decided() -> None:
    rng, decided = np.random.default_rng(29), 0
    for _ in range(300):
        test = SequentialTest(reference=0.5, alpha=ALPHA, restarting=True)
        for day in (rng.random((20, 50)) < 0.5).astype(float):
            test.restart()
            test.extend(day)
        decided += test.decided
    assert decided / 300 <= ALPHA


def test_joined_e_values_by_hand() -> None:
    # e = 90, 20, 1: the mean is 37. For 90: min(90, (90+1)/2, 111/3) = 37; for 20: min(20, 21/2, 37) = 10.5; for 1:
    # min(1, 21/2, 37) = 1
    log_e = {"a": math.log(90), "b": math.log(20), "c": 0.0}
    assert math.exp(average_log_e(list(log_e.values()))) == pytest.approx(37)
    adjusted = {name: math.exp(value) for name, value in adjusted_log_e(log_e).items()}
    assert adjusted == pytest.approx({"a": 37, "b": 10.5, "c": 1})
    assert average_log_e([]) == 0
    assert adjusted_log_e({"a": 800.0})["a"] == 800  # e^800 is beyond floats; its logarithm is not


def test_the_calibrator_is_an_e_value() -> None:
    """(p - 1)/ln p is its integral from 0 to p: 1 in all, and 1 - 0.99/ln 100 = 0.7850 from 0.01 on.

    At p = 0.01 it is (0.99 + 0.01·ln 0.01) / (0.01·(ln 0.01)²) = 4.451.
    """
    p = 0.01 + 0.99 * (np.arange(20_000) + 0.5) / 20_000
    assert 0.99 * np.mean([math.exp(log_calibrated(float(x))) for x in p]) == pytest.approx(0.7850, abs=1e-4)
    assert math.exp(log_calibrated(0.01)) == pytest.approx(4.451, abs=1e-3)
    assert log_calibrated(1.0) == pytest.approx(math.log(0.5))
    assert math.isfinite(log_calibrated(0.0))


@pytest.mark.parametrize("n", [300, 2000])
def test_the_smallest_difference_is_seen_with_the_stated_power(n: int) -> None:
    shift = smallest_detectable_difference(n, ALPHA)
    k = np.random.default_rng(31).binomial(n, 0.5 - shift, size=4000)
    seen = log_capital_of_counts(n - k, n, 0.5) >= math.log(2 / ALPHA)
    assert float(seen.mean()) == pytest.approx(0.8, abs=0.05)


def test_the_smallest_difference_of_a_rare_rate_and_of_a_narrow_value() -> None:
    shift = smallest_detectable_difference(3000, ALPHA, mean=0.02, direction="above", two_sided=False)
    k = np.random.default_rng(37).binomial(3000, 0.02 + shift, size=4000)
    assert float((log_capital_of_counts(k, 3000, 0.02) >= math.log(1 / ALPHA)).mean()) == pytest.approx(0.8, abs=0.06)
    assert smallest_detectable_difference(1000, ALPHA, spread=0.1) < smallest_detectable_difference(1000, ALPHA) / 3
    assert smallest_detectable_difference(0, ALPHA) == 0.5  # nothing seen: not even a fall to 0
