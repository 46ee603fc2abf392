"""Codebooks: a weight is one of 2ᵇ centres, found by k-means; what is stored is which.

The same functions as those of ``qarray`` for integers, so that ``quantize`` takes either. Han, Mao, Dally: Deep
compression (2016), section 3, with the centres of all weights that are not 0 at first spaced evenly.
"""

from typing import Any, NamedTuple

import numpy as np

from minimodel.compress.calibration import check_group
from minimodel.qarray import QArray
from minimodel.tree import Array, namespace

FAR = 1e38  # a centre that is never the nearest: members of fewer bits have some
ROUNDS = 100


class Codebook(NamedTuple):
    """centres (*population, n, 1 or out), rising; zero_point (*population, 1, 1): −2ᵇ⁻¹ of the member's own b."""

    centres: Array
    zero_point: Array


def calibrate(w: np.ndarray, bits: int, *, granularity: Any = "channel", room: int | None = None) -> Codebook:
    """The centres of least Σ(w − ŵ)² that Lloyd's rounds reach, of the tensor's or each output's weights ≠ 0.

    ``room``: for so many bits, the centres beyond ``bits`` never used.
    """
    if granularity not in ("tensor", "channel"):
        check_group(granularity)
        raise ValueError(f'granularity: a codebook is of a "tensor" or of a "channel", got {granularity!r}')
    columns = w.reshape(*w.shape[:-2], -1, 1) if granularity == "tensor" else w
    columns = np.moveaxis(columns, -1, -2)
    found = np.full((*columns.shape[:-1], 2 ** (room or bits)), FAR, np.float32)
    for place in np.ndindex(columns.shape[:-1]):
        found[place][: 2**bits] = k_means(columns[place], 2**bits)
    return Codebook(found.mT, np.full((*w.shape[:-2], 1, 1), -(2 ** (bits - 1)), np.float32))


def k_means(values: np.ndarray, k: int) -> np.ndarray:
    """k centres in rising order by Lloyd's rounds on the sorted values, from evenly spaced ones."""
    ordered = np.sort(values[values != 0].astype(np.float64))
    if not len(ordered):
        return np.zeros(k, np.float32)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], k)
    for _ in range(ROUNDS):
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(ends)
        moved = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres.astype(np.float32)


def start(codebook: Codebook) -> Array:
    """The centres as they are learned: the change of each."""
    return namespace(codebook.centres).zeros_like(codebook.centres)


def at(codebook: Codebook, change: Array) -> Codebook:
    """The codebook with its centres moved."""
    return codebook._replace(centres=codebook.centres + change)


def nearest(w: Array, codebook: Codebook) -> tuple[Array, Array]:
    """Which centre is the nearest, the earlier one of two, as floats; and that centre.

    Centres that are learned may leave their order.
    """
    xp = namespace(w)
    value = xp.broadcast_to(codebook.centres[..., :1, :], w.shape)
    place, least = xp.zeros_like(w), xp.abs(w - value)
    for k in range(1, codebook.centres.shape[-2]):
        centre = codebook.centres[..., k : k + 1, :]
        away = xp.abs(w - centre)
        closer = away < least
        place = xp.where(closer, xp.full_like(w, k), place)
        value, least = xp.where(closer, centre, value), xp.minimum(away, least)
    return place, value


def fake_quantize(w: Array, codebook: Codebook, rounding: str = "half_even", u: Array | None = None) -> Array:
    """ŵ: the nearest centre."""
    return nearest(w, codebook)[1]


def quantize(w: Array, codebook: Codebook, rounding: str = "half_even", u: Array | None = None) -> QArray:
    """w as the numbers of its centres."""
    xp, zero = namespace(w), codebook.zero_point
    values = xp.astype(nearest(w, codebook)[0] + zero, xp.int8)
    return QArray(values, xp.ones_like(zero), xp.astype(zero, xp.int8), codebook.centres)


def straight_through(
    w: Array, codebook: Codebook, gradient: Array, rounding: str = "half_even", u: Array | None = None
) -> Array:
    """∂J/∂w taken as ∂J/∂ŵ."""
    return gradient


def level_gradient(w: Array, codebook: Codebook, change: Array, gradient: Array) -> Array:
    """∂J/∂centre: the sum of ∂J/∂ŵ over the weights that are nearest to it."""
    xp, mine = namespace(w), nearest(w, at(codebook, change))[0]
    sums = [xp.sum(gradient * xp.astype(mine == k, w.dtype), axis=-2) for k in range(codebook.centres.shape[-2])]
    found = xp.stack(sums, axis=-2)
    return xp.sum(found, axis=-1, keepdims=True) if codebook.centres.shape[-1] == 1 else found
