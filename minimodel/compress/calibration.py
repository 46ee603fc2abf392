"""Calibration: the quantizer of a weight, once and on the host, from the range of what shares a scale."""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from minimodel import qarray
from minimodel.compress.ranges import Range, checked, least_error
from minimodel.qarray import Quantizer

Granularity = str | int


def calibrate(
    w: np.ndarray,
    bits: int,
    *,
    scheme: str = "symmetric",
    granularity: Granularity = "channel",
    range_of: Range = least_error,
    power_of_two: bool = False,
) -> Quantizer:
    """The quantizer of ``bits`` for the weights (*population, in, out).

    granularity   what shares a scale: "tensor", "channel" (an output), or so many inputs of each output
    range_of      of ``ranges``. At 1 bit ``least_error`` is exact: the scale is the mean of |w| over w ≠ 0
                  (Rastegari et al., XNOR-Net, 2016)
    power_of_two  round every scale up to a power of two
    """

    def ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if bits == 1 and scheme != "asymmetric" and range_of is least_error:
            count = np.maximum(np.count_nonzero(values, axis=(-2, -1)), 1)
            mean = np.abs(values).sum(axis=(-2, -1), dtype=np.float64) / count
            return -mean, mean
        return checked(range_of, values, partial(missed, values, bits, scheme, power_of_two))

    if granularity == "tensor":
        least, most = (end[..., None, None] for end in ends(w))
    else:
        parts = [ends(part.mT[..., None]) for part in groups_of(w, granularity)]
        least, most = (np.stack(each, axis=-2) for each in zip(*parts, strict=True))
    return qarray.quantizer_for(least, most, bits, scheme, power_of_two)


def of_activations(values: np.ndarray, bits: int, range_of: Range) -> tuple[np.ndarray, np.ndarray]:
    """Least and most of activations (*population, rows, units) that asymmetric integers are to stand for."""
    return checked(range_of, values, partial(missed, values, bits, "asymmetric", False))


def missed(
    values: np.ndarray, bits: int, scheme: str, power_of_two: bool, least: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """Σ(v − v̂)² over the last two axes of what is not 0, in units of the values' greatest: it cannot overflow."""
    quantizer = Quantizer(
        *(leaf[..., None, None] for leaf in qarray.quantizer_for(least, most, bits, scheme, power_of_two))
    )
    greatest = np.abs(values).max(axis=(-2, -1), keepdims=True)
    error = values - qarray.fake_quantize(values, quantizer)
    error *= (values != 0) / np.where(greatest > qarray.SMALLEST, greatest, 1)
    return np.square(error, dtype=np.float64).sum(axis=(-2, -1))


def groups_of(w: np.ndarray, granularity: Granularity) -> list[np.ndarray]:
    """The inputs that share a scale, as ``qarray.spread`` has them: all, or at most ``granularity`` each."""
    if granularity == "channel":
        return [w]
    rows = w.shape[-2]
    groups = -(-rows // check_group(granularity))
    return [w[..., a:b, :] for a, b in pairwise(qarray.ends(rows, groups))]


def check_group(granularity: Any) -> int:
    """A number of inputs."""
    fits = isinstance(granularity, int | np.integer) and not isinstance(granularity, bool) and granularity >= 1
    if not fits:
        raise ValueError(f'granularity: expected "tensor", "channel" or a number of inputs, got {granularity!r}')
    return int(granularity)
