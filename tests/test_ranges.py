"""Ranges against plain Python: extremes, order statistics, averages of batches, and every part that is tried."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimodel import ranges

VALUES = st.builds(
    lambda lead, rows, units, seed, offset: (
        np.random.default_rng(seed).standard_t(3, size=(*lead, rows, units)) + offset
    ).astype(np.float32),
    st.sampled_from([(), (3,)]),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 2**16),
    st.sampled_from([-5.0, 0.0, 0.5, 5.0]),
)


def squared_error(values, least, most, bits):
    """Σ(a − â)² with the asymmetric scale of these ends."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    s = np.float32((float(most) - float(least)) / (2**bits - 1) or 1.0)
    z = np.float32(np.clip(np.round(low - least / s), low, high))
    q = np.clip(np.round(values / s) + z, low, high)
    return np.square(((q - z) * s - values).astype(np.float64)).sum()


def missed_at(values, bits):
    """What a range is given to judge itself by, one network after the other."""

    def missed(least, most):
        if values.ndim == 2:
            return squared_error(values, least, most, bits)
        return np.array([squared_error(*one, bits) for one in zip(values, least, most, strict=True)])

    return missed


def members(values):
    """Each network's values, (rows, units)."""
    return values[None] if values.ndim == 2 else values


def found_ends(range_of, values, bits=8):
    """The ends for each network."""
    ends = range_of(values, missed_at(values, bits))
    assert all(np.shape(end) == values.shape[:-2] for end in ends)
    return list(zip(*map(np.atleast_1d, ends), strict=True))


@given(VALUES)
def test_min_max_is_all_that_was_seen(values):
    expected = [(min(v.min(), 0), max(v.max(), 0)) for v in members(values)]
    assert found_ends(ranges.min_max, values) == expected


@given(VALUES, st.sampled_from(["0.2", "0.5", "0.9", "0.95", "0.999", "1"]))
def test_a_percentile_is_an_order_statistic(values, part):
    """With n values, the ⌊n(1 − part)/2⌋-th from either end, counted from 0."""
    for v, (least, most) in zip(members(values), found_ends(ranges.percentile(float(part)), values), strict=True):
        ordered = sorted(v.ravel().tolist())
        left_out = math.floor(len(ordered) * (1 - Fraction(part)) / 2)
        assert least == min(ordered[left_out], 0)
        assert most == max(ordered[-1 - left_out], 0)


@pytest.mark.parametrize(("part", "expected"), [(1.0, (-19, 20)), (0.9, (-17, 18)), (0.5, (-9, 10)), (0.01, (0, 1))])
def test_literal_percentiles(part, expected):
    values = np.random.default_rng(0).permutation(np.arange(-19, 21)).astype(np.float32).reshape(20, 2)
    assert ranges.percentile(part)(values, None) == expected


@given(VALUES, st.sampled_from([0.0, 0.5, 0.9]))
def test_a_moving_average_goes_from_batch_to_batch(values, decay):
    """The rows in 16 parts after one another, the first of them one longer where they do not divide."""
    for v, found in zip(members(values), found_ends(ranges.moving_average(decay), values), strict=True):
        count, start, ends = min(16, len(v)), 0, None
        for i in range(count):
            stop = start + len(v) // count + (i < len(v) % count)
            part, start = v[start:stop], stop
            new = min(float(part.min()), 0), max(float(part.max()), 0)
            ends = new if ends is None else tuple(decay * e + (1 - decay) * n for e, n in zip(ends, new, strict=True))
        np.testing.assert_allclose(found, ends, rtol=1e-5, atol=1e-6)


@given(VALUES, st.integers(1, 8))
def test_the_least_error_is_the_best_of_all_that_are_tried(values, bits):
    """None of the 48 parts of the whole range is better; the whole range is one of them."""
    for v, (least, most) in zip(members(values), found_ends(ranges.least_error, values, bits), strict=True):
        whole = min(v.min(), 0), max(v.max(), 0)
        parts = [[end * np.float32(1 - i / 48) for end in whole] for i in range(48)]
        assert any((least, most) == tuple(part) for part in parts)
        error = squared_error(v, least, most, bits)
        assert error <= min(squared_error(v, *part, bits) for part in parts) * (1 + 1e-4) + 1e-9
        assert error <= squared_error(v, *whole, bits)


def test_the_least_error_leaves_out_a_long_tail():
    values = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    values[0, 0] = 12
    least, most = ranges.least_error(values, missed_at(values, 3))
    assert most < 8
    assert squared_error(values, least, most, 3) < 0.9 * squared_error(values, *ranges.min_max(values, None), 3)


@pytest.mark.parametrize(
    "range_of",
    [ranges.min_max, ranges.moving_average(0.9), ranges.percentile(0.6), ranges.least_error],
    ids=["min_max", "moving_average", "percentile", "least_error"],
)
@given(values=VALUES)
def test_zero_is_in_every_range_and_a_population_is_its_members(range_of, values):
    for v, (least, most) in zip(members(values), found_ends(range_of, values), strict=True):
        assert v.min() <= least <= 0 <= most <= v.max() or least == 0 or most == 0
        assert least <= 0 <= most
        assert (least, most) == range_of(v, missed_at(v, 8))


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2, math.nan, "0.9", True, None, [0.5, 0.6]])
def test_other_decays_are_refused(bad):
    with pytest.raises(ValueError, match="decay: expected a finite number"):
        ranges.moving_average(bad)


@pytest.mark.parametrize("bad", [-0.1, 0, 1.1, math.inf, "0.9", True, None, [0.5, 0.6]])
def test_other_parts_are_refused(bad):
    with pytest.raises(ValueError, match="part: expected a finite number"):
        ranges.percentile(bad)
