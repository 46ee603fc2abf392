"""Activations, each with its first and second derivative directly below it.

Functions of the pre-activation z; a derivative is also given the value a = f(z), which is often all it needs.
"""

from collections.abc import Callable
from math import pi, sqrt
from typing import NamedTuple

from minimodel.tree import Array, namespace


class Activation(NamedTuple):
    """f(z), f′(z, a) and f″(z, a), elementwise."""

    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]
    curvature: Callable[[Array, Array], Array]


def _zero(z: Array, a: Array) -> Array:
    return namespace(z).zeros_like(z)


def _identity(z: Array) -> Array:
    """z"""
    return z


def _identity_slope(z: Array, a: Array) -> Array:
    return namespace(z).ones_like(z)


def _relu(z: Array) -> Array:
    """max(z, 0), with one row of zeros: a number alone is slow in NumPy, and as many as z has are more to read."""
    xp = namespace(z)
    return xp.maximum(z, xp.zeros_like(z[:1, ...] if z.ndim else z))


def _relu_slope(z: Array, a: Array) -> Array:
    """1 where z > 0, and 0 at the kink, as in every major library."""
    return namespace(z).astype(z > 0, z.dtype)


LEAK = 0.01


def _leaky_relu(z: Array) -> Array:
    """max(z, 0.01 z)"""
    return namespace(z).maximum(z, LEAK * z)


def _leaky_relu_slope(z: Array, a: Array) -> Array:
    slope = namespace(z).astype(z > 0, z.dtype)
    slope *= 1 - LEAK
    slope += LEAK
    return slope


def _tanh(z: Array) -> Array:
    """tanh z"""
    return namespace(z).tanh(z)


def _tanh_slope(z: Array, a: Array) -> Array:
    """1 − a²"""
    return 1 - a * a


def _tanh_curvature(z: Array, a: Array) -> Array:
    """−2a(1 − a²)"""
    return -2 * a * (1 - a * a)


def sigmoid(z: Array) -> Array:
    """1/(1 + e⁻ᶻ) = (1 + tanh(z/2))/2, which no z overflows; exact to an absolute, not a relative, rounding error."""
    a = namespace(z).tanh(0.5 * z)
    a *= 0.5
    a += 0.5
    return a


def _sigmoid_slope(z: Array, a: Array) -> Array:
    """a(1 − a)"""
    return a * (1 - a)


def _sigmoid_curvature(z: Array, a: Array) -> Array:
    """a(1 − a)(1 − 2a)"""
    return a * (1 - a) * (1 - 2 * a)


def _silu(z: Array) -> Array:
    """z·σ(z)"""
    return z * sigmoid(z)


def _silu_slope(z: Array, a: Array) -> Array:
    """σ + zσ(1 − σ)"""
    s = sigmoid(z)
    return s * (1 + z * (1 - s))


def _silu_curvature(z: Array, a: Array) -> Array:
    """σ(1 − σ)(2 + z(1 − 2σ))"""
    s = sigmoid(z)
    return s * (1 - s) * (2 + z * (1 - 2 * s))


# Hendrycks, Gimpel: Gaussian error linear units (2016), section 2: the tanh form, with
# t = tanh u, u = √(2/π)·(z + 0.044715 z³), u′ = √(2/π)·(1 + 0.134145 z²), u″ = √(2/π)·0.26829 z.
ROOT, CUBE = sqrt(2 / pi), 0.044715


def _gelu(z: Array) -> Array:
    """z(1 + t)/2"""
    return 0.5 * z * (1 + _gelu_tanh(z))


def _gelu_slope(z: Array, a: Array) -> Array:
    """(1 + t)/2 + z(1 − t²)u′/2"""
    z = _saturated(z)
    t = _gelu_tanh(z)
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * ROOT * (1 + 3 * CUBE * z * z)


def _gelu_curvature(z: Array, a: Array) -> Array:
    """(1 − t²)(u′ + zu″/2 − zt u′²)"""
    z = _saturated(z)
    t = _gelu_tanh(z)
    du = ROOT * (1 + 3 * CUBE * z * z)
    return (1 - t * t) * (du + 3 * ROOT * CUBE * z * z - z * t * du * du)


def _gelu_tanh(z: Array) -> Array:
    z = _saturated(z)
    return namespace(z).tanh(ROOT * (z + CUBE * z * z * z))


def _saturated(z: Array) -> Array:
    """z within ±10, where t is ±1 to the last bit and no power of z overflows."""
    return namespace(z).clip(z, -10.0, 10.0)


ACTIVATIONS = {
    "identity": Activation(_identity, _identity_slope, _zero),
    "relu": Activation(_relu, _relu_slope, _zero),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_slope, _zero),
    "tanh": Activation(_tanh, _tanh_slope, _tanh_curvature),
    "sigmoid": Activation(sigmoid, _sigmoid_slope, _sigmoid_curvature),
    "silu": Activation(_silu, _silu_slope, _silu_curvature),
    "gelu": Activation(_gelu, _gelu_slope, _gelu_curvature),
}


# relu whose values are integers of b bits: with n = 2ᵇ − 1 and the step s = 4/n, f(z) = s·round(clip(z, 0, 4)/s). Its
# derivative is taken as that of the clipping, as if rounding were the identity (Bengio, Léonard, Courville 2013). The
# range [0, 4] is no restriction: the weights on either side of it scale as they need.
TOP = 4.0


def _stepped(n: int) -> Activation:
    def value(z: Array) -> Array:
        xp = namespace(z)
        a = xp.round(xp.clip(z, 0.0, TOP) * (n / TOP))
        a *= TOP / n
        return a

    return Activation(value, _stepped_slope, _zero)


def _stepped_slope(z: Array, a: Array) -> Array:
    """1 where 0 < z < 4, else 0"""
    return namespace(z).astype((z > 0) & (z < TOP), z.dtype)


STEPPED = {f"relu_{bits}bit": _stepped(2**bits - 1) for bits in range(1, 9)}
NAMES = (*ACTIVATIONS, *STEPPED)


def get(name: str) -> Activation:
    """The activation of that name."""
    return ACTIVATIONS[name] if name in ACTIVATIONS else STEPPED[name]


def steps(name: str) -> int | None:
    """n of an activation whose values are 0, 4/n, …, 4; None of another."""
    return 2 ** (list(STEPPED).index(name) + 1) - 1 if name in STEPPED else None
