"""Quantized arrays: integers q with w ≈ ŵ = s·(q − z), lo ≤ q ≤ hi, for b bits from 1 to 8.

    symmetric        z = 0, q from −(2ᵇ⁻¹ − 1) to 2ᵇ⁻¹ − 1: [−127, 127], and three levels at 2 bits
    symmetric_full   z = 0, q from −2ᵇ⁻¹ to 2ᵇ⁻¹ − 1: [−128, 127]
    asymmetric       q from −2ᵇ⁻¹ to 2ᵇ⁻¹ − 1, z the integer of the real 0
    1 bit            q is −1 or 1, the sign, in both symmetric schemes; what a mask removed has q = 0

The real 0 is the integer z but at 1 bit, so a pruned weight stays exactly 0. Scales and zero points keep the reduced
axes: (*population, 1, 1) for a tensor, (*population, 1, out) for each output channel, (*population, groups, out) for
groups of inputs besides, of which input i of n belongs to the group ⌊i·groups/n⌋.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minimodel import tree
from minimodel.tree import Array, namespace

MAX_BITS = 8
SMALLEST = 1e-30  # a range below it counts as all zeros
LEAST = 0.01  # of its first value a learned scale is never less
SCHEMES = ("symmetric", "symmetric_full", "asymmetric")


class QArray(NamedTuple):
    """values int8, scale float32, zero_point int8: w ≈ scale·(values − zero_point).

    codebook   None, or float32 (*population, 2ᵇ, 1 or out), then w ≈ codebook[values − zero_point]
    """

    values: Array
    scale: Array
    zero_point: Array
    codebook: Array | None = None


class Quantizer(NamedTuple):
    """The map w ↦ c = clip(round(w/s − δ) + δ, lo, hi), ŵ = s·c, as float arrays that broadcast against w.

    inverse      1/s; scale: s, the distance between neighbours
    zero_point   z: the integer of ŵ is c + z, and low and high are those of q less z
    offset       δ: 0, or ½ where the levels lie on either side of 0, as ±½ at 1 bit
    """

    inverse: Array
    scale: Array
    zero_point: Array
    low: Array
    high: Array
    offset: Array


def levels(bits: Any, scheme: str) -> tuple[int, int]:
    """The least and the greatest integer."""
    half = 2 ** (check_bits(bits) - 1)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    if bits == 1 and scheme != "asymmetric":
        return -1, 1
    return (1 - half if scheme == "symmetric" else -half), half - 1


def check_bits(bits: Any, least: int = 1, name: str = "bits") -> int:
    """The bits, if they are an integer from ``least`` to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not least <= bits <= MAX_BITS:
        raise ValueError(f"{name}: expected an integer from {least} to {MAX_BITS}, got {bits!r}")
    return int(bits)


def quantizer_for(least: np.ndarray, most: np.ndarray, bits: int, scheme: str, power_of_two: bool = False) -> Quantizer:
    """The quantizer whose levels reach from ``least`` to ``most``, on the host.

    s is the larger of most/hi and least/lo, of asymmetric ones (most − least)/(2ᵇ − 1); with ``power_of_two`` the power
    of two from there on, so that dividing is a shift of bits.
    """
    low, high = levels(bits, scheme)
    least, most = np.minimum(least, 0).astype(np.float32), np.maximum(most, 0).astype(np.float32)
    centred, sign = scheme != "asymmetric", scheme != "asymmetric" and bits == 1
    width = np.maximum(most * (1 / high), least * (1 / low)) if centred else (most - least) * (1 / (high - low))
    scale = np.where(width > SMALLEST, width * (2 if sign else 1), 1).astype(np.float32)
    if power_of_two:
        mantissa, exponent = np.frexp(scale)
        scale = np.ldexp(np.float32(1), np.where(mantissa == 0.5, exponent - 1, exponent)).astype(np.float32)
    inverse = np.float32(1) / scale
    zero = np.zeros_like(scale) if centred else np.clip(low - np.round(least * inverse), low, high)
    offset = np.full_like(scale, 0.5 if sign else 0)
    low_, high_ = (np.full_like(scale, end * (0.5 if sign else 1)) - zero for end in (low, high))
    return Quantizer(inverse, scale, zero, low_, high_, offset)


def start(quantizer: Quantizer) -> Array:
    """The scales as they are learned: t of s·t, with the scales that there are at 1."""
    return namespace(quantizer.scale).ones_like(quantizer.scale)


def at(quantizer: Quantizer, t: Array) -> Quantizer:
    """The quantizer with scales s·t, t at least ``LEAST``."""
    xp = namespace(t)
    factor = xp.maximum(t, xp.full_like(t, LEAST))
    return quantizer._replace(scale=quantizer.scale * factor, inverse=quantizer.inverse / factor)


def spread(values: Any, rows: int) -> Any:
    """Every leaf with its groups' entries repeated for the rows (inputs) that belong to them."""

    def of_rows(leaf: Array) -> Array:
        xp, groups = namespace(leaf), leaf.shape[-2]
        if groups in (1, rows):
            return leaf
        return xp.take(leaf, xp.asarray([i * groups // rows for i in range(rows)]), axis=-2)

    return tree.map(of_rows, values)


def half_even(x: Array, u: Array | None = None) -> Array:
    """To the nearest, halves to even: IEEE's and ours by default."""
    return namespace(x).round(x)


def half_away(x: Array, u: Array | None = None) -> Array:
    """To the nearest, halves away from 0."""
    xp = namespace(x)
    whole = xp.trunc(x)
    return whole + xp.trunc(2 * (x - whole))


def floor(x: Array, u: Array | None = None) -> Array:
    """Down."""
    return namespace(x).floor(x)


def ceil(x: Array, u: Array | None = None) -> Array:
    """Up."""
    return namespace(x).ceil(x)


def toward_zero(x: Array, u: Array | None = None) -> Array:
    """Cut off."""
    return namespace(x).trunc(x)


def stochastic(x: Array, u: Array | None = None) -> Array:
    """Up with the probability x − ⌊x⌋, by draws u uniform on [0, 1): right on average."""
    xp, whole = namespace(x), namespace(x).floor(x)
    return whole + xp.astype(u < x - whole, x.dtype)


ROUNDINGS = {fn.__name__: fn for fn in (half_even, half_away, floor, ceil, toward_zero, stochastic)}


def unclipped(w: Array, quantizer: Quantizer, rounding: str = "half_even", u: Array | None = None) -> Array:
    """round(w/s − δ) + δ"""
    c = w * quantizer.inverse
    c -= quantizer.offset
    c = ROUNDINGS[rounding](c, u)
    c += quantizer.offset
    return c


def steps(w: Array, quantizer: Quantizer, rounding: str = "half_even", u: Array | None = None) -> Array:
    """c = clip(round(w/s − δ) + δ, lo, hi)"""
    xp, c = namespace(w), unclipped(w, quantizer, rounding, u)
    return xp.minimum(xp.maximum(c, quantizer.low), quantizer.high)


def quantize(w: Array, quantizer: Quantizer, rounding: str = "half_even", u: Array | None = None) -> QArray:
    """w as integers, clipped before they are cast."""
    xp, own = namespace(w), spread(quantizer, w.shape[-2])
    stride = 1 + 2 * quantizer.offset  # ±½ steps are the integers ±1 of half the scale
    values = steps(w, own, rounding, u) * (1 + 2 * own.offset) + own.zero_point
    return QArray(xp.astype(values, xp.int8), quantizer.scale * (1 / stride), xp.astype(quantizer.zero_point, xp.int8))


def is_plain(q: QArray) -> bool:
    """Whether ŵ = s·q, with a scale for the tensor or for each output: what integer products and coded files take."""
    return q.codebook is None and q.scale.shape[-2] == 1 and not q.zero_point.any()


def ends(rows: int, groups: int) -> list[int]:
    """The first input of each group, ⌈group·rows/groups⌉, and behind the last the number of inputs."""
    return [-(-group * rows // groups) for group in range(groups + 1)]


def dequantize(q: QArray) -> Array:
    """ŵ = s·(q − z), or codebook[q − z]"""
    xp = namespace(q.values, q.scale, q.zero_point)
    rows = q.values.shape[-2]
    scale, zero_point = spread(q.scale, rows), spread(q.zero_point, rows)
    c = xp.astype(q.values, scale.dtype) - xp.astype(zero_point, scale.dtype)
    if q.codebook is None:
        return c * scale
    found = xp.broadcast_to(q.codebook[..., :1, :], c.shape)
    for k in range(1, q.codebook.shape[-2]):
        found = xp.where(c >= k, q.codebook[..., k : k + 1, :], found)
    return found


def fake_quantize(w: Array, quantizer: Quantizer, rounding: str = "half_even", u: Array | None = None) -> Array:
    """ŵ(w): what the integers of w stand for."""
    own = spread(quantizer, w.shape[-2])
    c = steps(w, own, rounding, u)
    c *= own.scale
    return c


def straight_through(
    w: Array, quantizer: Quantizer, gradient: Array, rounding: str = "half_even", u: Array | None = None
) -> Array:
    """∂J/∂w taken as ∂J/∂ŵ where c was not clipped, else 0: rounding counts as the identity.

    Bengio, Léonard, Courville: Estimating or propagating gradients through stochastic neurons (2013).
    """
    xp, own = namespace(w), spread(quantizer, w.shape[-2])
    c = unclipped(w, own, rounding, u)
    return gradient * xp.astype((c >= own.low) & (c <= own.high), gradient.dtype)


def level_gradient(w: Array, quantizer: Quantizer, t: Array, gradient: Array) -> Array:
    """∂J/∂t, of the shape of t: s·Σ ∂J/∂ŵ·(c − w/(s·t)), and s·Σ ∂J/∂ŵ·c over what was clipped.

    Esser et al., Learned step size quantization (2020), equation 3, with what is clipped decided after rounding.
    """
    xp, own = namespace(w), spread(at(quantizer, t), w.shape[-2])
    c = unclipped(w, own)
    inside = xp.astype((c >= own.low) & (c <= own.high), w.dtype)
    slope = xp.minimum(xp.maximum(c, own.low), own.high) - inside * w * own.inverse
    return gathered(gradient * slope, t.shape) * quantizer.scale


def gathered(values: Array, shape: tuple[int, ...]) -> Array:
    """Sums of (*population, in, out) over what shares an entry of an array of that shape."""
    xp, rows, groups = namespace(values), values.shape[-2], shape[-2]
    if shape[-1] == 1:
        values = xp.sum(values, axis=-1, keepdims=True)
    parts = [xp.sum(values[..., a:b, :], axis=-2, keepdims=True) for a, b in pairwise(ends(rows, groups))]
    return parts[0] if groups == 1 else xp.concat(parts, axis=-2)
