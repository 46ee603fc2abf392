"""Quantized arrays: integers q with w ≈ ŵ = s·(q − z), lo ≤ q ≤ hi.

    symmetric    z = 0, q from −(2ᵇ⁻¹ − 1) to 2ᵇ⁻¹ − 1
    asymmetric   q from −2ᵇ⁻¹ to 2ᵇ⁻¹ − 1

The real 0 is always the integer z, so a pruned weight stays exactly 0. Scales and zero points keep the reduced axes:
(*population, 1, 1) per tensor, (*population, 1, out) per output channel.
"""

from typing import Any, NamedTuple

import numpy as np

from minimodel.tree import Array, namespace

MIN_BITS, MAX_BITS = 2, 8
SMALLEST = 1e-30  # a range below it counts as all zeros
CLIPPING = 48  # how many clipping ranges ``calibrate`` tries


class QArray(NamedTuple):
    """values int8, scale float32, zero_point int8: w ≈ scale·(values − zero_point)."""

    values: Array
    scale: Array
    zero_point: Array


class Quantizer(NamedTuple):
    """The map w ↦ q: 1/s, s, z and the least and the greatest q, all floats that broadcast against w."""

    inverse: Array
    scale: Array
    zero_point: Array
    low: Array
    high: Array


def calibrate(w: Array, bits: int, *, symmetric: bool = True, per_channel: bool = True, clip: bool = True) -> Quantizer:
    """The quantizer of ``bits`` for the weights (*population, in, out), one per tensor or per output channel.

    s = max|w|/hi, or (max(w, 0) − min(w, 0))/(2ᵇ − 1) with z the integer of the real 0. With ``clip``, that range is
    also tried at fractions of itself, and the one with the least Σ(w − ŵ)² is taken: at few bits the few largest
    weights would otherwise cost all others their precision.
    """
    xp = namespace(w)
    axis = -2 if per_channel else (-2, -1)
    low, high = levels(bits, symmetric)
    least, most = xp.min(w, axis=axis, keepdims=True), xp.max(w, axis=axis, keepdims=True)
    if symmetric:
        most = xp.maximum(xp.abs(least), xp.abs(most))
        least = -most
    zero = xp.zeros_like(most)
    least, most = xp.minimum(least, zero), xp.maximum(most, zero)
    best = _quantizer(least, most, low, high)
    if not clip:
        return best
    unit = best.inverse  # errors in steps: their squares neither overflow nor vanish, whatever the size of w
    error = _squared_error(w, best, unit, axis)
    for i in range(1, CLIPPING):
        tried = _quantizer(least * (1 - i / CLIPPING), most * (1 - i / CLIPPING), low, high)
        tried_error = _squared_error(w, tried, unit, axis)
        better = tried_error < error
        best = Quantizer(*(xp.where(better, new, old) for new, old in zip(tried, best, strict=True)))
        error = xp.where(better, tried_error, error)
    return best


def power_of_two(quantizer: Quantizer) -> Quantizer:
    """The quantizer with every scale the power of two from it on: dividing by it is a shift of bits."""
    mantissa, exponent = np.frexp(quantizer.scale)
    scale = np.ldexp(np.float32(1), np.where(mantissa == 0.5, exponent - 1, exponent)).astype(np.float32)
    return quantizer._replace(scale=scale, inverse=np.float32(1) / scale)


def levels(bits: int, symmetric: bool) -> tuple[int, int]:
    """The least and the greatest integer."""
    top = 2 ** (check_bits(bits) - 1) - 1
    return (-top if symmetric else -top - 1), top


def check_bits(bits: Any, least: int = MIN_BITS, name: str = "bits") -> int:
    """The bits, if they are an integer from ``least`` to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not least <= bits <= MAX_BITS:
        raise ValueError(f"{name}: expected an integer from {least} to {MAX_BITS}, got {bits!r}")
    return int(bits)


def _quantizer(least: Array, most: Array, low: int, high: int) -> Quantizer:
    xp = namespace(least, most)
    width = (most - least) * (1 / (high - low))
    scale = xp.where(width > SMALLEST, width, xp.ones_like(width))
    inverse = 1 / scale
    ends = [xp.full_like(scale, end) for end in (low, high)]
    centred = low == -high  # symmetric: the real 0 is the integer 0, whatever rounding says
    zero_point = xp.zeros_like(scale) if centred else xp.clip(low - xp.round(least * inverse), low, high)
    return Quantizer(inverse, scale, zero_point, *ends)


def _squared_error(w: Array, quantizer: Quantizer, unit: Array, axis: int | tuple[int, int]) -> Array:
    """Σ ((w − ŵ)·unit)²"""
    xp = namespace(w)
    error = w - fake_quantize(w, quantizer)
    error *= unit
    return xp.sum(error * error, axis=axis, keepdims=True)


def integers(w: Array, quantizer: Quantizer) -> Array:
    """q = clip(round(w/s) + z, lo, hi), still as floats; halves round to even."""
    xp = namespace(w)
    q = xp.round(w * quantizer.inverse)
    q += quantizer.zero_point
    return xp.minimum(xp.maximum(q, quantizer.low), quantizer.high)


def quantize(w: Array, quantizer: Quantizer) -> QArray:
    """w as integers."""
    xp = namespace(w)
    values = xp.astype(integers(w, quantizer), xp.int8)
    return QArray(values, quantizer.scale, xp.astype(quantizer.zero_point, xp.int8))


def dequantize(q: QArray) -> Array:
    """ŵ = s·(q − z)"""
    xp = namespace(*q)
    return (xp.astype(q.values, q.scale.dtype) - xp.astype(q.zero_point, q.scale.dtype)) * q.scale


def fake_quantize(w: Array, quantizer: Quantizer) -> Array:
    """ŵ(w): what the integers of w stand for."""
    q = integers(w, quantizer)
    q -= quantizer.zero_point
    q *= quantizer.scale
    return q


def straight_through(w: Array, quantizer: Quantizer, gradient: Array) -> Array:
    """∂J/∂w taken as ∂J/∂ŵ where q was not clipped, else 0: rounding counts as the identity.

    Bengio, Léonard, Courville: Estimating or propagating gradients through stochastic neurons (2013).
    """
    xp = namespace(w)
    q = xp.round(w * quantizer.inverse)
    q += quantizer.zero_point
    return gradient * xp.astype((q >= quantizer.low) & (q <= quantizer.high), gradient.dtype)
