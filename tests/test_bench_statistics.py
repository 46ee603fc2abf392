"""Intervals hold what they promise in simulations with the noise of shared machines; the rest against plain oracles."""

import itertools
from math import comb, inf

import numpy as np
import pytest

from minimodel.bench import statistics
from minimodel.bench.statistics import Ratio


def bursts(rng, n):
    """Factors on times as a shared machine has them: a slow drift, bursts that last, rare long pauses."""
    drift = np.cumsum(rng.normal(0, 0.02, n))
    burst = np.zeros(n)
    for start in rng.integers(0, n, 3):
        burst[start : start + 5] += rng.exponential(0.3)
    return np.exp(drift + burst), rng


def rounds(rng, n, slowdown):
    """Seconds of a base and of one that takes (1 + slowdown) times as long, timed in turns in random order."""
    factors, _ = bursts(rng, 2 * n)
    own = factors * np.exp(0.05 * rng.standard_t(3, 2 * n))
    slots = own.reshape(n, 2)
    first = rng.random(n) < 0.5
    base, other = np.where(first, slots[:, 0], slots[:, 1]), np.where(first, slots[:, 1], slots[:, 0])
    return other * (1 + slowdown), base


@pytest.mark.parametrize("slowdown", [0.0, 0.1, 1.0])
def test_paired_intervals_cover_the_ratio(slowdown):
    """Of 1,000 simulated runs at most 5 % miss, within four standard errors of that count."""
    rng = np.random.default_rng(0)
    found = [statistics.paired(*rounds(rng, 60, slowdown)) for _ in range(1000)]
    missed = sum(not ratio.low <= 1 + slowdown <= ratio.high for ratio in found)
    assert missed <= 50 + 4 * (1000 * 0.05 * 0.95) ** 0.5


def test_a_tenth_is_found_and_nothing_is_not():
    rng = np.random.default_rng(1)
    found = [statistics.paired(*rounds(rng, 120, 0.1)).verdict(statistics.SAME_RUN) for _ in range(300)]
    assert found.count("slower") >= 0.95 * 300
    same = [statistics.paired(*rounds(rng, 120, 0.0)).verdict(statistics.SAME_RUN) for _ in range(300)]
    assert same.count("no difference") >= 0.95 * 300


@pytest.mark.parametrize("n", range(1, 40))
def test_the_rank_of_the_sign_test_is_the_greatest_allowed(n):
    def below(k):
        return sum(comb(n, i) for i in range(k)) / 2**n

    k = statistics.sign_rank(n)
    assert below(k) <= 0.025 < below(k + 1)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (4, 4), (5, 5), (6, 6), (3, 7), (6, 5)])
def test_the_rank_of_mann_and_whitney_is_the_greatest_allowed(m, n):
    """Against all arrangements of m and n, counted one by one."""
    counts = np.zeros(m * n + 1)
    for places in itertools.combinations(range(m + n), m):
        counts[sum(place - i for i, place in enumerate(places))] += 1
    below = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    k = statistics.mann_whitney_rank(m, n)
    assert below[k] <= 0.025 < below[k + 1]


def test_unpaired_intervals_cover_the_ratio():
    """Passes of a run scatter by what the machine was doing; 1,000 pairs of runs."""
    rng = np.random.default_rng(2)

    def run(scale):
        return [np.median(scale * np.exp(rng.normal(0, 0.1) + 0.05 * rng.standard_t(3, 9))) for _ in range(6)]

    found = [statistics.unpaired(run(3.0), run(2.0)) for _ in range(1000)]
    missed = sum(not ratio.low <= 1.5 <= ratio.high for ratio in found)
    assert missed <= 50 + 4 * (1000 * 0.05 * 0.95) ** 0.5


def test_too_few_samples_say_nothing():
    assert statistics.paired([2.0] * 5, [1.0] * 5) == Ratio(pytest.approx(2), 0.0, inf)
    assert statistics.paired([2.0] * 5, [1.0] * 5).verdict(0.02) == "no difference"
    assert statistics.paired([2.0] * 6, [1.0] * 6).verdict(0.02) == "slower"


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (Ratio(1.1, 1.05, 1.2), "slower"),
        (Ratio(0.9, 0.8, 0.95), "faster"),
        (Ratio(1.1, 0.99, 1.2), "no difference"),
        (Ratio(1.01, 1.005, 1.015), "no difference"),  # sure, but too little to mean anything
    ],
)
def test_verdicts(ratio, expected):
    assert ratio.verdict(0.02) == expected


@pytest.mark.parametrize(
    ("first", "steady", "base_first", "base_steady", "expected"),
    [
        (1.0, 0.1, 0.2, 0.2, 9.0),  # 0.8 s more at first, 0.1 s less each time
        (1.0, 0.2, 0.2, 0.2, inf),
        (1.0, 0.3, 0.2, 0.2, inf),
        (0.1, 0.3, 0.2, 0.2, 1.0),
    ],
)
def test_break_even(first, steady, base_first, base_steady, expected):
    found = statistics.break_even(first, steady, base_first, base_steady)
    assert found == pytest.approx(expected)
    if 1 < found < inf:  # by adding up calls

        def total(start, each, n):
            return start + (n - 1) * each

        assert total(first, steady, found) == pytest.approx(total(base_first, base_steady, found))


def test_lines_cross_where_they_are_equal():
    x = np.array([1e2, 1e4, 1e6])
    assert statistics.crossovers(x, 1e-3 * x**0, 1e-6 * x) == [pytest.approx(1e3)]  # 1 ms each, against 1 µs a unit
    assert statistics.crossovers(x, x, 2 * x) == []


def test_the_exponent_of_a_power():
    x = np.array([1, 2, 4, 8])
    assert statistics.exponent(x, 5 * x**1.5) == pytest.approx(1.5)


def test_spread_is_the_standard_deviation_of_normal_noise_and_ignores_pauses():
    rng = np.random.default_rng(3)
    samples = 1 + 0.05 * rng.normal(size=10_000)
    samples[:100] = 50
    assert statistics.spread(samples) == pytest.approx(0.05, rel=0.1)
    steady = [samples[100:200], samples[200:300]]
    assert not statistics.unstable(steady)
    assert statistics.unstable([steady[0], 1.2 * steady[1]])
