"""Losses of a network's raw outputs, each with its gradient and its curvature directly below it.

Outputs z are (*population, batch, out). Class labels y are integers (batch,) or (*population, batch); other
targets are floats (batch, out) or (*population, batch, out). A value has the shape (*population,).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from minimodel.activations import sigmoid
from minimodel.tree import Array, namespace


@dataclass(frozen=True, eq=False)
class Loss:
    """J(z, y) averaged over the batch, ∂J/∂z, the product (∂²J/∂z²)·v, and the prediction made from z.

    ``labels`` says that y holds class indices, ``scaled`` that it holds quantities, which may be normalised.
    ``config`` is what the loss's own function was called with.
    """

    name: str
    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    curvature: Callable[[Array, Array, Array], Array]
    decide: Callable[[Array], Array]
    labels: bool = False
    scaled: bool = False
    config: tuple[tuple[str, float], ...] = ()


def _mean(x: Array) -> Array:
    """Over the batch and the outputs."""
    return namespace(x).sum(x, axis=(-2, -1)) * (1 / (x.shape[-2] * x.shape[-1]))


def _raw(z: Array) -> Array:
    return z


# Mean squared error: J = mean (z − y)².


def _squared(z: Array, y: Array) -> Array:
    error = z - y
    error *= error
    return _mean(error)


def _squared_gradient(z: Array, y: Array) -> Array:
    """2(z − y)/(batch·out)"""
    return (z - y) * (2 / (z.shape[-1] * z.shape[-2]))


def _squared_curvature(z: Array, y: Array, v: Array) -> Array:
    """2v/(batch·out)"""
    return v * (2 / (z.shape[-1] * z.shape[-2]))


# Softmax cross-entropy: J = mean over the batch of log Σ eᶻ − z_y, with p = softmax z. Shifting z by its maximum
# changes nothing and keeps every exponential at most 1.


def _cross_entropy(z: Array, y: Array) -> Array:
    xp = namespace(z, y)
    z = z - xp.max(z, axis=-1, keepdims=True)
    losses = xp.log(xp.sum(xp.exp(z), axis=-1)) - xp.sum(z * _one_hot(y, z), axis=-1)
    return xp.sum(losses, axis=-1) * (1 / z.shape[-2])


def _cross_entropy_gradient(z: Array, y: Array) -> Array:
    """(p − onehot y)/batch"""
    p = softmax(z)
    p -= _one_hot(y, z)
    p *= 1 / z.shape[-2]
    return p


def _cross_entropy_curvature(z: Array, y: Array, v: Array) -> Array:
    """p(v − Σ p v)/batch"""
    p = softmax(z)
    return p * (v - namespace(z).sum(p * v, axis=-1, keepdims=True)) * (1 / z.shape[-2])


def softmax(z: Array) -> Array:
    """eᶻ / Σ eᶻ along the last axis."""
    xp = namespace(z)
    p = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    p /= xp.sum(p, axis=-1, keepdims=True)
    return p


def _one_hot(y: Array, z: Array) -> Array:
    xp = namespace(z, y)
    return xp.astype(y[..., None] == xp.arange(z.shape[-1], dtype=y.dtype), z.dtype)


def _largest(z: Array) -> Array:
    return namespace(z).argmax(z, axis=-1)


# Binary cross-entropy of independent outputs, y in [0, 1]: J = mean max(z, 0) − zy + log(1 + e^−|z|).


def _binary(z: Array, y: Array) -> Array:
    xp = namespace(z, y)
    return _mean(xp.maximum(z, xp.zeros_like(z)) - z * y + xp.log1p(xp.exp(-xp.abs(z))))


def _binary_gradient(z: Array, y: Array) -> Array:
    """(σ(z) − y)/(batch·out)"""
    return (sigmoid(z) - y) * (1 / (z.shape[-1] * z.shape[-2]))


def _binary_curvature(z: Array, y: Array, v: Array) -> Array:
    """σ(1 − σ)v/(batch·out)"""
    s = sigmoid(z)
    return s * (1 - s) * v * (1 / (z.shape[-1] * z.shape[-2]))


def _positive(z: Array) -> Array:
    return namespace(z).astype(z > 0, z.dtype)


# Huber: with e = z − y and its clipped value c = clip(e, −δ, δ), J = mean c(e − c/2).


def _huber(z: Array, y: Array, delta: float) -> Array:
    error = z - y
    clipped = namespace(z, y).clip(error, -delta, delta)
    return _mean(clipped * (error - 0.5 * clipped))


def _huber_gradient(z: Array, y: Array, delta: float) -> Array:
    """c/(batch·out)"""
    return namespace(z, y).clip(z - y, -delta, delta) * (1 / (z.shape[-1] * z.shape[-2]))


def _huber_curvature(z: Array, y: Array, v: Array, delta: float) -> Array:
    """v/(batch·out) where |e| < δ, else 0"""
    xp = namespace(z, y)
    inside = xp.astype(xp.abs(z - y) < delta, z.dtype)
    return inside * v * (1 / (z.shape[-1] * z.shape[-2]))


mean_squared_error = Loss("mean_squared_error", _squared, _squared_gradient, _squared_curvature, _raw, scaled=True)
softmax_cross_entropy = Loss(
    "softmax_cross_entropy",
    _cross_entropy,
    _cross_entropy_gradient,
    _cross_entropy_curvature,
    _largest,
    labels=True,
)
binary_cross_entropy = Loss("binary_cross_entropy", _binary, _binary_gradient, _binary_curvature, _positive)


def huber(delta: float = 1.0) -> Loss:
    """Quadratic for errors up to δ, linear beyond (Huber 1964). The same δ gives the same object."""
    if not delta > 0:
        raise ValueError(f"delta: expected a number above 0, got {delta}")
    return _huber_loss(float(delta))


@cache
def _huber_loss(delta: float) -> Loss:
    value, gradient, curvature = (partial(part, delta=delta) for part in (_huber, _huber_gradient, _huber_curvature))
    return Loss("huber", value, gradient, curvature, _raw, scaled=True, config=(("delta", delta),))


NAMES = ("mean_squared_error", "softmax_cross_entropy", "binary_cross_entropy", "huber")


def get(loss: str | Loss, **config: Any) -> Loss:
    """A loss by its name, or the loss itself."""
    if isinstance(loss, Loss):
        return loss
    if loss not in NAMES:
        raise ValueError(f"loss: expected a Loss or one of {', '.join(NAMES)}, got {loss!r}")
    if loss == "huber":
        return huber(**config)
    if config:
        raise ValueError(f"loss: {loss} takes no {', '.join(config)}")
    return globals()[loss]
