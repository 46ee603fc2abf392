"""Ranges: what of the values that were seen the integers are to stand for.

A range is a function of values (*lead, rows, units) and of ``missed``; it gives least and most, both (*lead,), with the
real 0 between them. ``missed(least, most)`` is Σ(v − v̂)² (*lead,) of the integers that such a range has. Values are
activations, or weights with a column, a group or a layer at a time as rows.
"""

from collections.abc import Callable

import numpy as np

from minimodel.problem import check_numbers

Ends = tuple[np.ndarray, np.ndarray]
Missed = Callable[[np.ndarray, np.ndarray], np.ndarray]
Range = Callable[[np.ndarray, Missed], Ends]
BATCHES, TRIES = 16, 48


def checked(range_of: Range, values: np.ndarray, missed: Missed) -> Ends:
    """Least and most, if the range is one."""
    name = getattr(range_of, "__name__", repr(range_of))
    try:
        least, most = (np.asarray(end, np.float32) for end in range_of(values, missed))
    except TypeError as error:
        text = "expected a function of values and missed, as mm.ranges.min_max or mm.ranges.percentile(0.999)"
        raise ValueError(f"range: {text}, got {name}: {error}") from error
    shape = values.shape[:-2]
    if least.shape != shape or most.shape != shape or not (np.isfinite(least) & np.isfinite(most)).all():
        raise ValueError(f"range: expected finite least and most {shape} of {name}, got {least.shape} and {most.shape}")
    return least, most


def min_max(values: np.ndarray, missed: Missed) -> Ends:
    """All that was seen."""
    return with_zero(values.min(axis=(-2, -1)), values.max(axis=(-2, -1)))


def moving_average(decay: float = 0.9) -> Range:
    """The ends of 16 batches after one another, e ← βe + (1 − β)·end: TensorFlow's observer."""
    beta = float(check_numbers("decay", np.nan if decay is None else decay, (), below=1))

    def of(values: np.ndarray, missed: Missed) -> Ends:
        parts = np.array_split(values, min(BATCHES, values.shape[-2]), axis=-2)
        least, most = min_max(parts[0], missed)
        for part in parts[1:]:
            low, high = min_max(part, missed)
            least, most = beta * least + (1 - beta) * low, beta * most + (1 - beta) * high
        return least, most

    return of


def percentile(part: float = 0.999) -> Range:
    """The order statistics that leave out the (1 − part)/2 of the values at either end; never interpolated."""
    share = float(check_numbers("part", np.nan if part is None else part, (), low=1e-9, below=1 + 1e-9))

    def of(values: np.ndarray, missed: Missed) -> Ends:
        flat = values.reshape(*values.shape[:-2], -1)
        left_out = int((1 - share) / 2 * flat.shape[-1] + 1e-6)
        ordered = np.partition(flat, (left_out, flat.shape[-1] - 1 - left_out), axis=-1)
        return with_zero(ordered[..., left_out], ordered[..., flat.shape[-1] - 1 - left_out])

    return of


def least_error(values: np.ndarray, missed: Missed) -> Ends:
    """The part of ``min_max``, in 48 steps, whose integers miss the values least: at few bits the few largest values
    would otherwise cost all others their precision."""
    least, most = min_max(values, missed)
    best, error = (least, most), missed(least, most)
    for i in range(1, TRIES):
        tried = least * np.float32(1 - i / TRIES), most * np.float32(1 - i / TRIES)
        now = missed(*tried)
        best = np.where(now < error, tried[0], best[0]), np.where(now < error, tried[1], best[1])
        error = np.minimum(now, error)
    return best


def with_zero(least: np.ndarray, most: np.ndarray) -> Ends:
    """The range with the real 0 in it."""
    return np.minimum(least, 0), np.maximum(most, 0)


RANGES = {
    "min_max": min_max,
    "moving_average": moving_average(),
    "percentile": percentile(),
    "least_error": least_error,
}
