"""Schedules against optax and their own formulas, over a population, within their bounds."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimodel import schedules


@contextlib.contextmanager
def x64(jax):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield


def test_constant():
    np.testing.assert_array_equal(schedules.constant(0.3)(np.arange(4), 9), [0.3] * 4)


def test_constant_over_a_population():
    found = schedules.constant(np.array([0.1, 0.2]))(np.arange(3), 3)
    np.testing.assert_array_equal(found, [[0.1, 0.2]] * 3)


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_is_that_of_optax(final, oracle):
    jax, optax = oracle("jax"), oracle("optax")
    total, steps = 50, np.arange(50)
    with x64(jax):
        theirs = np.asarray(optax.cosine_decay_schedule(0.3, total, alpha=final)(jax.numpy.asarray(steps)))
    np.testing.assert_allclose(schedules.cosine(0.3, final=final)(steps, total), theirs, rtol=1e-12, atol=1e-15)


def test_warmup_rises_in_equal_steps_and_then_falls():
    rates = schedules.cosine(0.3, warmup=0.25, final=0.5)(np.arange(40), 40)
    np.testing.assert_allclose(rates[:10], 0.3 * np.arange(1, 11) / 11, rtol=1e-14)
    assert rates[10] == pytest.approx(0.3, rel=1e-14)
    part = np.arange(30) / 30
    np.testing.assert_allclose(rates[10:], 0.3 * (0.5 + 0.25 * (1 + np.cos(np.pi * part))), rtol=1e-13)


def test_a_schedule_in_pieces_is_the_whole():
    """Rates are asked for an epoch at a time."""
    schedule = schedules.cosine(0.3, warmup=0.2)
    pieces = [schedule(np.arange(start, start + 6), 24) for start in range(0, 24, 6)]
    np.testing.assert_array_equal(np.concatenate(pieces), schedule(np.arange(24), 24))


def test_peaks_over_a_population():
    peaks, steps = np.array([0.1, 0.2, 0.4]), np.arange(12)
    together = schedules.cosine(peaks, warmup=0.3, final=0.1)(steps, 12)
    assert together.shape == (12, 3)
    for i, peak in enumerate(peaks):
        np.testing.assert_array_equal(together[:, i], schedules.cosine(peak, warmup=0.3, final=0.1)(steps, 12))


fractions = st.floats(0, 1)


@given(peak=st.floats(1e-6, 1e3), warmup=st.floats(0, 0.99), final=fractions, total=st.integers(1, 200))
def test_rates_stay_between_zero_and_the_peak(peak, warmup, final, total):
    rates = schedules.cosine(peak, warmup=warmup, final=final)(np.arange(total), total)
    assert rates.shape == (total,)
    assert (rates >= 0).all()
    assert (rates <= peak * (1 + 1e-12)).all()
    rise = int(np.ceil(warmup * total))
    assert (rates[rise:] >= peak * final * (1 - 1e-12)).all()
    assert (np.diff(rates[:rise]) > 0).all()
    assert (np.diff(rates[rise:]) <= peak * 1e-12).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 2.0, float("nan")])
def test_warmup_must_be_a_fraction_below_one(wrong):
    with pytest.raises(ValueError, match="warmup"):
        schedules.cosine(0.1, warmup=wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_final_must_be_a_fraction(wrong):
    with pytest.raises(ValueError, match="final"):
        schedules.cosine(0.1, final=wrong)


def test_get_makes_a_number_a_constant_and_keeps_a_function():
    cosine = schedules.cosine(0.1)
    assert schedules.get(cosine) is cosine
    np.testing.assert_array_equal(schedules.get(0.2)(np.arange(2), 2), [0.2, 0.2])
