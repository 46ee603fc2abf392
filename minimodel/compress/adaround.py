"""AdaRound: which weights to round up and which down, so that a layer's outputs change least.

With Δ = ŵ − w and H the covariance of the layer's inputs (``surgeon.covariance``) the outputs change by tr ΔᵀHΔ. Every
weight has a v, with

    h = clip(1.2·σ(v) − 0.1, 0, 1),  ŵ = s·clip(⌊w/s⌋ + h, lo, hi),  J(v) = tr ΔᵀHΔ/s²H̄ + λ Σ (1 − |2h − 1|^β)

and follows −∂J/∂v by Adam, while β falls from 20 to 2, so that h ends at 0 or 1. A column that came out worse than
rounded to the nearest is rounded to the nearest. Nagel et al., Up or down? Adaptive rounding for post-training
quantization (2020); the gradient is by hand.
"""

from math import pi

from minimodel import qarray
from minimodel.activations import sigmoid
from minimodel.backends import Backend
from minimodel.compress.surgeon import covariance, with_bias
from minimodel.network import Layer
from minimodel.qarray import Quantizer
from minimodel.tree import Array

STEPS, RATE, B1, B2, EPS = 500, 0.05, 0.9, 0.999, 1e-8
WEIGHT, FREE, HARD, SOFT = 1.0, 0.2, 20.0, 2.0  # λ; the part of the steps without it; β from and to
STRETCH = 1.2


def rounded(layer: Layer, quantizer: Quantizer, mask: Array | None, a: Array, backend: Backend) -> Layer:
    """The layer on the quantizer's grid, for inputs a (*population, rows, in); what the mask removed stays 0."""
    xp, w = backend.xp, layer.weight
    own = qarray.spread(quantizer, w.shape[-2])
    h, mean = covariance(a)
    unit = xp.eye(h.shape[-1], dtype=h.dtype)
    h *= 1 / (xp.sum(h * unit, axis=(-2, -1), keepdims=True) / h.shape[-1])
    kept = xp.ones_like(w) if mask is None else xp.astype(mask, w.dtype)
    size = own.scale / xp.mean(own.scale, axis=-2, keepdims=True)  # of a step, where inputs have scales of their own
    x = w * own.inverse - own.offset
    whole = xp.floor(x)

    def clipped(up: Array) -> Array:
        return xp.minimum(xp.maximum(whole + up + own.offset, own.low), own.high)

    def missed(up: Array) -> Array:
        return (clipped(up) - x - own.offset) * size * kept

    def step(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple[Array, Array, Array], None]:
        (v, m, s), part, t = carry, i / STEPS, i + 1
        beta = SOFT + 0.5 * (HARD - SOFT) * (1 + xp.cos(pi * part))
        stretched = STRETCH * sigmoid(v)
        up = xp.clip(stretched - (STRETCH - 1) / 2, 0.0, 1.0)
        slope = 2 * (h @ missed(up)) * size * xp.astype(clipped(up) == whole + up + own.offset, w.dtype)
        side = 2 * up - 1
        away = xp.sign(side) * xp.abs(side) ** (beta - 1)
        slope = slope - xp.astype(part > FREE, w.dtype) * (2 * WEIGHT) * beta * away
        gradient = slope * kept * xp.astype((up > 0) & (up < 1), w.dtype) * stretched * (1 - stretched / STRETCH)
        m = B1 * m + (1 - B1) * gradient
        s = B2 * s + (1 - B2) * gradient * gradient
        return (v - RATE * (m / (1 - B1**t)) / (xp.sqrt(s / (1 - B2**t)) + EPS), m, s), None

    part = xp.clip((x - whole + (STRETCH - 1) / 2) / STRETCH, 1e-3, 1 - 1e-3)
    start = xp.log(part / (1 - part))
    numbers = xp.arange(STEPS, dtype=w.dtype)
    v = backend.scan(step, (start, xp.zeros_like(w), xp.zeros_like(w)), numbers)[0][0]
    up, nearest = xp.astype(v > 0, w.dtype), xp.round(x) - whole
    ours, plain = (xp.sum(delta * (h @ delta), axis=-2, keepdims=True) for delta in (missed(up), missed(nearest)))
    return with_bias(layer, clipped(xp.where(ours < plain, up, nearest)) * own.scale * kept, mean)
