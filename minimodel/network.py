"""A dense network: what it is, how its parameters begin, what it computes."""

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

from minimodel import activations, random
from minimodel.activations import Activation
from minimodel.backends import Backend, load
from minimodel.tree import Array, namespace


class Layer(NamedTuple):
    """x ↦ x·weight + bias."""

    weight: Array  # (*population, in, out)
    bias: Array  # (*population, out)


class LowRank(NamedTuple):
    """x ↦ x·(weight + a·b) + bias, where members share the weight and differ in the factors; a·b is never formed."""

    weight: Array  # (in, out)
    bias: Array  # (*population, out)
    a: Array  # (*population, in, rank)
    b: Array  # (*population, rank, out)


class Mirrored(NamedTuple):
    """x ↦ x·(weight ± change.weight) + bias ± change.bias: two members on either side, which share both products."""

    weight: Array  # (in, out)
    bias: Array  # (out)
    change: Layer  # (pairs, in, out) and (pairs, out)


Params = tuple[Layer, ...]
INITIALIZERS = ("he", "glorot")


@dataclass(frozen=True)
class Network:
    """A stack of dense layers, an activation between them, none after the last: a static, hashable description.

    layer_sizes   (inputs, hidden, …, outputs), at least two positive integers
    activation    relu, leaky_relu, tanh, sigmoid, silu, gelu (its tanh form), identity, or relu_1bit to relu_8bit,
                  whose values are 0 to 4 in steps of 4/(2ᵇ − 1)
    initializer   "he": N(0, 2/in), for the relu family; "glorot": uniform on ±√(6/(in + out)); biases start at 0
    """

    layer_sizes: tuple[int, ...]
    activation: str = "relu"
    initializer: str = "he"

    def __post_init__(self) -> None:
        sizes = tuple(self.layer_sizes) if np.iterable(self.layer_sizes) else ()
        if len(sizes) < 2 or not all(hasattr(n, "__index__") and n > 0 for n in sizes):
            raise ValueError(f"layer_sizes: expected at least two positive integers, got {self.layer_sizes!r}")
        object.__setattr__(self, "layer_sizes", tuple(int(n) for n in sizes))
        if self.activation not in activations.NAMES:
            raise ValueError(f"activation: expected one of {', '.join(activations.NAMES)}, got {self.activation!r}")
        if self.initializer not in INITIALIZERS:
            raise ValueError(f"initializer: expected one of {', '.join(INITIALIZERS)}, got {self.initializer!r}")

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shape of each layer's weight."""
        return tuple(zip(self.layer_sizes, self.layer_sizes[1:], strict=False))

    @property
    def parameters(self) -> int:
        """How many numbers the network has: weights and biases."""
        return sum((inputs + 1) * outputs for inputs, outputs in self.shapes)

    @property
    def functions(self) -> Activation:
        """The activation with its derivatives."""
        return activations.get(self.activation)

    def init(self, key: Array, *, backend: str | Backend = "numpy") -> Params:
        """Fresh float32 parameters; keys (*population, 2) give one network each. Layer i draws under fold_in(key, i).

        He et al., Delving deep into rectifiers (2015); Glorot, Bengio (2010).
        """
        backend = load(backend)
        run = backend.jit(_init, static=("network", "backend"))
        return run(backend.asarray(key), network=self, backend=backend)

    def apply(self, params: Params, x: Array, *, columns: bool = False) -> Array:
        """The raw outputs (*population, batch, out) of inputs (batch, in) or (*population, batch, in); with
        ``columns`` the rows are columns, and the outputs (*population, out, batch)."""
        check(self, params, x.mT if columns else x)
        for layer in params[:-1]:
            x = self.functions.value(affine(layer, x, columns))
        return affine(params[-1], x, columns)


def _init(key: Array, *, network: Network, backend: Backend) -> Params:
    xp, params = backend.xp, []
    for i, (inputs, outputs) in enumerate(network.shapes):
        layer_key = random.fold_in(key, i)
        if network.initializer == "he":
            weight = random.normal(layer_key, (inputs, outputs), backend=backend) * sqrt(2 / inputs)
        else:
            limit = sqrt(6 / (inputs + outputs))
            weight = random.uniform(layer_key, (inputs, outputs), -1.0, 1.0, backend=backend) * limit
        params.append(Layer(weight, xp.zeros((*key.shape[:-1], outputs), dtype=xp.float32)))
    return tuple(params)


def affine(layer: Layer | LowRank | Mirrored, x: Array, columns: bool = False) -> Array:
    """x·W + b; of a low rank x·W + (x·a)·b, of which members that share x share the first product.

    Mirrored members must share x: (batch, in), or (2·pairs, batch, in) with the same rows twice. With ``columns`` x is
    (…, in, batch) and the result (…, out, batch).
    """
    if columns and isinstance(layer, LowRank):
        return affine(layer, x.mT).mT
    if isinstance(layer, Mirrored):
        x = x[::2, ...] if x.ndim > 2 else x
        middle, z = affine(Layer(layer.weight, layer.bias), x, columns), both(affine(layer.change, x, columns))
        z += middle if middle.ndim == 2 else namespace(middle).repeat(middle, 2, axis=0)
        return z
    z = layer.weight.mT @ x if columns else _product(x, layer.weight)
    if isinstance(layer, LowRank):
        change = _through(x, layer.a) @ layer.b if layer.a.shape[-1] > 1 else _through(x, layer.a) * layer.b
        change += z
        z = change
    z += layer.bias[..., None] if columns else layer.bias[..., None, :]
    return z


def _product(x: Array, weight: Array) -> Array:
    """x·W; of members with rows of their own and one weight all rows at once."""
    if x.ndim == 2 or weight.ndim > 2:
        return x @ weight
    xp = namespace(x, weight)
    return xp.reshape(xp.reshape(x, (-1, x.shape[-1])) @ weight, (*x.shape[:-1], weight.shape[-1]))


def _through(x: Array, a: Array) -> Array:
    """x·a, (*population, batch, rank): one product for all members where they share x (batch, in)."""
    if x.ndim > 2 or a.ndim != 3:
        return x @ a
    xp = namespace(x, a)
    members, inputs, rank = a.shape
    side_by_side = xp.reshape(xp.moveaxis(a, 0, 1), (inputs, members * rank))
    return xp.moveaxis(xp.reshape(x @ side_by_side, (x.shape[0], members, rank)), 1, 0)


def both(changes: Array) -> Array:
    """+c₀, −c₀, +c₁, −c₁, …: (n, …) as (2n, …)."""
    xp = namespace(changes)
    signs = xp.reshape(xp.asarray([1, -1], dtype=changes.dtype), (2, *(1,) * (changes.ndim - 1)))
    return xp.reshape(changes[:, None, ...] * signs, (-1, *changes.shape[1:]))


def dense(layer: Layer | LowRank | Mirrored) -> Layer:
    """The same layer, each member with its weight formed."""
    if isinstance(layer, LowRank):
        return Layer(layer.weight + layer.a @ layer.b, layer.bias)
    if isinstance(layer, Mirrored):
        return Layer(layer.weight + both(layer.change.weight), layer.bias + both(layer.change.bias))
    return layer


def check(network: Network, params: Params, x: Array) -> None:
    """Refuse parameters or inputs that do not fit the network."""
    found = tuple(layer.weight.shape[-2:] for layer in params)
    if found != network.shapes or any(layer.weight.shape[-1:] != layer.bias.shape[-1:] for layer in params):
        raise ValueError(f"params: expected weights of shapes {network.shapes}, got {found}")
    if x.ndim < 2 or x.shape[-1] != network.layer_sizes[0] or x.shape[-2] == 0:
        raise ValueError(f"x: expected (…, batch, {network.layer_sizes[0]}), batch at least 1, got {tuple(x.shape)}")
