"""Losses of a network's raw outputs, each with its gradient beside it and its curvature directly below.

A loss is defined for one row: outputs z (*population, batch, out) and targets t of the same shape (without the
population where all members share them) give losses (*population, batch). For class labels t is one-hot, or any
distribution over the classes. ``Loss.value``, ``gradient`` and ``curvature`` average over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from minimodel.activations import sigmoid
from minimodel.tree import Array, namespace


@dataclass(frozen=True, eq=False)
class Loss:
    """What the algorithms need of a loss.

    rows            (z, t) -> the loss ℓ of every row, and ∂ℓ/∂z; pure, and both are arrays of its own
    row_curvature   (z, t, v) -> (∂²ℓ/∂z²)·v
    decide          z -> the prediction
    labels          y holds class indices; t is one-hot
    scaled          y holds quantities, which may be normalised
    config          what the loss's own function was called with
    """

    name: str
    rows: Callable[[Array, Array], tuple[Array, Array]]
    row_curvature: Callable[[Array, Array, Array], Array]
    decide: Callable[[Array], Array]
    labels: bool = False
    scaled: bool = False
    config: tuple[tuple[str, float], ...] = ()

    def encode(self, y: Array, z: Array) -> Array:
        """The targets t of outputs z: labels become one-hot rows."""
        return one_hot(y, z.shape[-1], z.dtype) if self.labels else y

    def value(self, z: Array, y: Array) -> Array:
        """J = mean ℓ over the batch, (*population,)."""
        return mean(self.rows(z, self.encode(y, z))[0])

    def gradient(self, z: Array, y: Array) -> Array:
        """∂J/∂z"""
        return self.rows(z, self.encode(y, z))[1] * (1 / z.shape[-2])

    def curvature(self, z: Array, y: Array, v: Array) -> Array:
        """(∂²J/∂z²)·v"""
        return self.row_curvature(z, self.encode(y, z), v) * (1 / z.shape[-2])


def mean(x: Array) -> Array:
    """Over the last axis."""
    return namespace(x).mean(x, axis=-1)


def one_hot(y: Array, classes: int, dtype: Any) -> Array:
    """1 in the column of the label, else 0."""
    xp = namespace(y)
    return xp.astype(y[..., None] == xp.arange(classes, dtype=y.dtype), dtype)


def smooth(t: Array, amount: Array, classes: int | None = None) -> Array:
    """t + ε(1/K − t): the target mixed with the uniform distribution over its K classes; ε (*population,).

    K is by default the number of outputs, and 2 for one output alone; independent outputs have 2 classes each.
    Szegedy et al., Rethinking the inception architecture (2016), section 7.
    """
    if amount.ndim:
        amount = namespace(amount).reshape(amount, (*amount.shape, 1, 1))
    return t + amount * (1 / (classes or max(2, t.shape[-1])) - t)


def _raw(z: Array) -> Array:
    return z


# Mean squared error: ℓ = mean over the outputs of (z − y)².


def _squared(z: Array, t: Array) -> tuple[Array, Array]:
    """∂ℓ/∂z = 2(z − t)/out"""
    error = z - t
    return mean(error * error), error * (2 / z.shape[-1])


def _squared_curvature(z: Array, t: Array, v: Array) -> Array:
    """2v/out"""
    return v * (2 / z.shape[-1])


# Softmax cross-entropy: ℓ = log Σ eᶻ − Σ t z, with p = softmax z. Shifting z by its maximum changes nothing and
# keeps every exponential at most 1.


def _cross_entropy(z: Array, t: Array) -> tuple[Array, Array]:
    """∂ℓ/∂z = p − t"""
    xp = namespace(z)
    z = z - xp.max(z, axis=-1, keepdims=True)
    p = xp.exp(z)
    whole = xp.sum(p, axis=-1)
    z *= t
    losses = xp.log(whole) - xp.sum(z, axis=-1)
    p /= whole[..., None]
    p -= t
    return losses, p


def _cross_entropy_curvature(z: Array, t: Array, v: Array) -> Array:
    """p(v − Σ p v)"""
    p = softmax(z)
    return p * (v - namespace(z).sum(p * v, axis=-1, keepdims=True))


def softmax(z: Array) -> Array:
    """eᶻ / Σ eᶻ along the last axis."""
    xp = namespace(z)
    p = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    p /= xp.sum(p, axis=-1, keepdims=True)
    return p


def _largest(z: Array) -> Array:
    return namespace(z).argmax(z, axis=-1)


# Binary cross-entropy of independent outputs, t in [0, 1]: ℓ = mean max(z, 0) − zt + log(1 + e^−|z|).


def _binary(z: Array, t: Array) -> tuple[Array, Array]:
    """∂ℓ/∂z = (σ(z) − t)/out"""
    xp = namespace(z)
    losses = mean(xp.maximum(z, xp.zeros_like(z)) - z * t + xp.log1p(xp.exp(-xp.abs(z))))
    return losses, (sigmoid(z) - t) * (1 / z.shape[-1])


def _binary_curvature(z: Array, t: Array, v: Array) -> Array:
    """σ(1 − σ)v/out"""
    s = sigmoid(z)
    return s * (1 - s) * v * (1 / z.shape[-1])


def _positive(z: Array) -> Array:
    return namespace(z).astype(z > 0, z.dtype)


# Huber: with e = z − t and its clipped value c = clip(e, −δ, δ), ℓ = mean c(e − c/2).


def _huber(z: Array, t: Array, delta: float) -> tuple[Array, Array]:
    """∂ℓ/∂z = c/out"""
    error = z - t
    clipped = namespace(z).clip(error, -delta, delta)
    return mean(clipped * (error - 0.5 * clipped)), clipped * (1 / z.shape[-1])


def _huber_curvature(z: Array, t: Array, v: Array, delta: float) -> Array:
    """v/out where |e| < δ, else 0"""
    xp = namespace(z)
    return xp.astype(xp.abs(z - t) < delta, z.dtype) * v * (1 / z.shape[-1])


mean_squared_error = Loss("mean_squared_error", _squared, _squared_curvature, _raw, scaled=True)
softmax_cross_entropy = Loss("softmax_cross_entropy", _cross_entropy, _cross_entropy_curvature, _largest, labels=True)
binary_cross_entropy = Loss("binary_cross_entropy", _binary, _binary_curvature, _positive)


def huber(delta: float = 1.0) -> Loss:
    """Quadratic for errors up to δ, linear beyond (Huber 1964). The same δ gives the same object."""
    if not delta > 0:
        raise ValueError(f"delta: expected a number above 0, got {delta}")
    return _huber_loss(float(delta))


@cache
def _huber_loss(delta: float) -> Loss:
    rows, curvature = (partial(part, delta=delta) for part in (_huber, _huber_curvature))
    return Loss("huber", rows, curvature, _raw, scaled=True, config=(("delta", delta),))


def distilled(loss: Loss, weight: float, temperature: float) -> Loss:
    """(1 − α)·ℓ(z, t) + α·T²·ℓ(z/T, s) for targets (t, s) side by side, s being a teacher's; α is the ``weight``.

    Of targets alone, as those of validation are, it is ℓ. The same arguments give the same object.
    """
    return _distilled_loss(loss, float(weight), float(temperature))


@cache
def _distilled_loss(loss: Loss, weight: float, temperature: float) -> Loss:
    def rows(z: Array, t: Array) -> tuple[Array, Array]:
        """∂/∂z = (1 − α)·ℓ′(z, t) + α·T·ℓ′(z/T, s)"""
        outputs = z.shape[-1]
        if t.shape[-1] == outputs:
            return loss.rows(z, t)
        own, soft = loss.rows(z, t[..., :outputs]), loss.rows(z * (1 / temperature), t[..., outputs:])
        losses = (1 - weight) * own[0] + weight * temperature**2 * soft[0]
        return losses, (1 - weight) * own[1] + weight * temperature * soft[1]

    return replace(loss, rows=rows)


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
