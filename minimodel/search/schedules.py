"""Learning-rate schedules: functions (steps, total) -> rates.

``steps`` is an array of step numbers from 0 to total − 1. A schedule made with an array of rates over a population
gives (steps, *population). Rates are computed on the host, once an epoch, so any function will do and no new rate
ever recompiles a program.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Schedule = Callable[[np.ndarray, int], np.ndarray]


def constant(rate: Any) -> Schedule:
    """η(t) = rate"""
    return lambda steps, total: np.multiply.outer(np.ones(len(steps)), np.asarray(rate))


def cosine(peak: Any, *, warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Linear up to ``peak`` over the first ``warmup`` of all steps, then half a cosine down to ``final``·peak.

    With u the part done of the second phase, η = peak·(final + (1 − final)(1 + cos πu)/2).
    Loshchilov, Hutter: SGDR (2017), without restarts.
    """
    if not (0 <= warmup < 1 and 0 <= final <= 1):
        raise ValueError(f"warmup, final: expected fractions below 1 and up to 1, got {warmup} and {final}")

    def schedule(steps: np.ndarray, total: int) -> np.ndarray:
        rise = warmup * total
        u = np.clip((steps - rise) / (total - rise), 0, 1)
        fall = final + (1 - final) * 0.5 * (1 + np.cos(np.pi * u))
        return np.multiply.outer(np.where(steps < rise, (steps + 1) / (rise + 1), fall), np.asarray(peak))

    return schedule


def get(rate: Any) -> Schedule:
    """A number, or an array over the population, is a constant schedule."""
    return rate if callable(rate) else constant(rate)
