"""Ranges of activations: what of the values that were seen integers are to stand for.

A range is a function of values (*population, rows, units) that gives least and most, (*population,), with the real 0
between them.
"""

from collections.abc import Callable

import numpy as np

from minimodel.problem import check_numbers
from minimodel.qarray import SMALLEST, check_bits

Range = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
BATCHES, TRIES = 16, 48


def min_max(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All that was seen."""
    return with_zero(values.min(axis=(-2, -1)), values.max(axis=(-2, -1)))


def moving_average(decay: float = 0.9) -> Range:
    """The ends of 16 batches after one another, e ← βe + (1 − β)·end: TensorFlow's observer."""
    beta = float(check_numbers("decay", np.nan if decay is None else decay, (), below=1))

    def of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = np.array_split(values, min(BATCHES, values.shape[-2]), axis=-2)
        least, most = min_max(parts[0])
        for part in parts[1:]:
            low, high = min_max(part)
            least, most = beta * least + (1 - beta) * low, beta * most + (1 - beta) * high
        return least, most

    return of


def percentile(part: float = 0.999) -> Range:
    """The order statistics that leave out the (1 − part)/2 of the values at either end; never interpolated."""
    share = float(check_numbers("part", np.nan if part is None else part, (), low=1e-9, below=1 + 1e-9))

    def of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = values.reshape(*values.shape[:-2], -1)
        left_out = int((1 - share) / 2 * flat.shape[-1] + 1e-6)
        ordered = np.partition(flat, (left_out, flat.shape[-1] - 1 - left_out), axis=-1)
        return with_zero(ordered[..., left_out], ordered[..., flat.shape[-1] - 1 - left_out])

    return of


def with_zero(least: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The range with the real 0 in it."""
    return np.minimum(least, 0), np.maximum(most, 0)


def least_error(bits: int = 8) -> Range:
    """The part of ``min_max``, in 48 steps, whose integers of ``bits`` bits miss the values least, Σ(a − â)²."""
    top = 2 ** check_bits(bits, 1) - 1

    def of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = min_max(values)
        best, least = ends, np.full(ends[0].shape, np.inf)
        for i in range(TRIES):
            tried = ends[0] * np.float32(1 - i / TRIES), ends[1] * np.float32(1 - i / TRIES)
            width = (tried[1] - tried[0]) / top
            scale = np.where(width > SMALLEST, width, 1)[..., None, None].astype(np.float32)
            zero = np.clip(np.round(-tried[0][..., None, None] / scale), 0, top)
            missed = (np.clip(np.round(values / scale) + zero, 0, top) - zero) * scale - values
            error = np.square(missed, dtype=np.float64).sum(axis=(-2, -1))
            better = error < least
            best = np.where(better, tried[0], best[0]), np.where(better, tried[1], best[1])
            least = np.minimum(error, least)
        return best

    return of
