"""Ratios of times with intervals that hold on a shared machine, and what follows from them.

Times on a shared machine drift, come in bursts and have heavy tails, so that no formula for independent normal errors
holds. Two arrangements need none. In one run every round times all backends in random order: if two do the same work,
which of them is the slower in a round is the toss of a coin, whatever the noise, so the order statistics of the paired
ratios bound their median by the binomial law (the sign test, inverted). Between two runs nothing is paired; there whole
passes, minutes apart, stand for the run, and the order statistics of all quotients of their medians bound the ratio by
the law of Mann and Whitney. Either is exact, needs no seed, and ignores how bad the worst times are.
"""

from math import comb, exp, inf, log
from statistics import median
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
SAME_RUN, BETWEEN_RUNS = 0.02, 0.05  # differences too small to mean anything: the layout of memory, the day
UNSTABLE = 0.10


class Ratio(NamedTuple):
    """Seconds of one by those of another, and the interval that holds the true ratio with 95 % confidence."""

    value: float
    low: float
    high: float

    def verdict(self, floor: float) -> str:
        """Slower or faster if the interval leaves out 1 and the ratio leaves 1 by more than the floor."""
        if self.low <= 1 <= self.high or abs(log(self.value)) <= log(1 + floor):
            return "no difference"
        return "slower" if self.value > 1 else "faster"


def paired(seconds: Any, base: Any) -> Ratio:
    """The ratio to the base, timed in the same rounds."""
    d = sorted(np.log(np.asarray(seconds) / np.asarray(base)).tolist())
    return bounded(d, sign_rank(len(d)))


def unpaired(medians: list[float], base: list[float]) -> Ratio:
    """The ratio to the base, of two runs, each given by the medians of its passes."""
    own, others = np.log(medians), np.log(base)
    d = sorted((own[:, None] - others).ravel().tolist())
    return bounded(d, mann_whitney_rank(len(own), len(others)))


def bounded(d: list[float], rank: int) -> Ratio:
    """The median of sorted logarithms, between the rank-th from either end; of rank 0 nothing is known."""
    low, high = (exp(d[rank - 1]), exp(d[-rank])) if rank else (0.0, inf)
    return Ratio(exp(median(d)), low, high)


def sign_rank(n: int) -> int:
    """The greatest k with P(fewer than k of n tosses) ≤ α/2."""
    return rank_of([comb(n, i) for i in range(n + 1)])


def mann_whitney_rank(m: int, n: int) -> int:
    """The greatest k with P(U < k) ≤ α/2, U the pairs (of m and n) in which the first is greater.

    The arrangements with U = u are the coefficients of the Gaussian binomial ∏ (1 − qⁿ⁺ⁱ)/(1 − qⁱ), i to m.
    """
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):
            counts[u] += counts[u - i]
    return rank_of(counts)


def rank_of(counts: list[int]) -> int:
    """The greatest k whose first k counts are at most α/2 of all."""
    allowed, k = (1 - CONFIDENCE) / 2 * sum(counts), 0
    while sum(counts[: k + 1]) <= allowed:
        k += 1
    return k


def spread(samples: Any) -> float:
    """The median absolute deviation from the median, as a part of it, times 1.48: σ if the noise were normal."""
    samples = np.asarray(samples)
    middle = np.median(samples)
    return float(1.4826 * np.median(np.abs(samples - middle)) / middle)


def unstable(passes: list[Any]) -> bool:
    """Whether samples scatter by over a tenth, or the medians of passes lie further apart than that."""
    middles = [median(samples) for samples in passes]
    return spread(np.concatenate(passes)) > UNSTABLE or max(middles) > (1 + UNSTABLE) * min(middles)


def break_even(first: float, steady: float, base_first: float, base_steady: float) -> float:
    """After how many calls the first has cost no more in all; infinite if never.

    first + (n − 1)·steady ≤ base_first + (n − 1)·base_steady
    """
    extra, saving = first - base_first, base_steady - steady
    if extra <= 0:
        return 1.0
    return 1 + extra / saving if saving > 0 else inf


def crossovers(x: Any, one: Any, other: Any) -> list[float]:
    """Where two lines cross that are straight between points on logarithmic axes; x ascending."""
    x, d = np.log(np.asarray(x, float)), np.log(np.asarray(one, float) / np.asarray(other, float))
    found = []
    for i in range(len(x) - 1):
        if d[i] * d[i + 1] < 0:
            found.append(exp(x[i] + (x[i + 1] - x[i]) * d[i] / (d[i] - d[i + 1])))
    return found


def exponent(x: Any, y: Any) -> float:
    """b of y ∝ xᵇ, by least squares on logarithms."""
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])
