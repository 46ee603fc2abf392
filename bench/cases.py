"""What ``minimodel bench`` times: operations, steps of the engine and whole algorithms, at any size.

A case is a program and what it works on. The program is written once for all backends, compiled by each one's ``jit``;
an algorithm is called whole, from checking the data to the model.
"""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

import minimodel as mm
from minimodel import gradients, random, tree
from minimodel.backends import Backend
from minimodel.compress import integer, patterns
from minimodel.compress.masks import Choice, choose
from minimodel.network import Layer, affine
from minimodel.search import optimizers
from minimodel.tree import Array, Tree

KINDS = ("operation", "step", "algorithm")
UPDATES, BATCHES, GENERATIONS = 10, 8, 10  # of Adam in a row; in an epoch; of a search
ADAM = optimizers.adam(1e-3)
DRAWN = 2**22


class Size(NamedTuple):
    """A network, the rows of a batch, how many networks (None: one, without the axis), and the dtype."""

    layers: tuple[int, ...]
    batch: int = 32
    population: int | None = None
    dtype: str = "float32"

    @property
    def members(self) -> int:
        """How many networks there are."""
        return self.population or 1

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the parameters."""
        return () if self.population is None else (self.population,)

    @property
    def network(self) -> mm.Network:
        """One of them."""
        return mm.Network(self.layers)

    @property
    def widest(self) -> tuple[int, int]:
        """Inputs and outputs of the layer with most weights, on which operations work."""
        return max(self.network.shapes, key=prod)

    @property
    def weights(self) -> int:
        """Of all networks."""
        return self.members * sum(map(prod, self.network.shapes))

    @property
    def wide_weights(self) -> int:
        """Of that layer, in all networks."""
        return self.members * prod(self.widest)

    @property
    def activations(self) -> int:
        """How many numbers the layers put out for a batch, in all networks."""
        return self.members * self.batch * sum(self.layers[1:])

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 2 if self.dtype in ("float16", "bfloat16") else np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        """As 784-300-10/128, or 4x1024/128 ×32 float64."""
        same = len(self.layers) > 3 and len(set(self.layers)) == 1
        layers = f"{len(self.layers) - 1}x{self.layers[0]}" if same else "-".join(map(str, self.layers))
        many = "" if self.population is None else f" ×{self.population}"
        return f"{layers}/{self.batch}{many}" + ("" if self.dtype == "float32" else f" {self.dtype}")


class Case(NamedTuple):
    """A program, what it takes, and what it must at least do.

    program      (*inputs, size, backend) -> a tree of arrays; without inputs it is called as it is, whole
    inputs       (size, rng) -> a tuple of trees on the host; floats take the size's dtype on their way to the backend
    operations   additions and multiplications, of floats or of integers
    traffic      bytes of the inputs and outputs, each counted once
    tier         how equal results must be: see ``running.tolerance``
    floats       whether it is defined for every dtype of floats, else for float32 alone
    """

    name: str
    kind: str
    program: Callable[..., Tree]
    inputs: Callable[[Size, np.random.Generator], tuple[Any, ...]]
    operations: Callable[[Size], float]
    traffic: Callable[[Size], float]
    tier: str = "step"
    floats: bool = True


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 from N(0, 1); of very many the first ones over and over, which take no time to draw."""
    return np.resize(rng.standard_normal(min(prod(shape), DRAWN), np.float32), shape)


def layer(size: Size, rng: np.random.Generator, shape: tuple[int, int]) -> Layer:
    """A layer that keeps the scale of what passes through it."""
    return Layer(normal(rng, *size.lead, *shape) * np.float32(shape[0] ** -0.5), normal(rng, *size.lead, shape[1]))


def params(size: Size, rng: np.random.Generator) -> tuple[Layer, ...]:
    """Of all networks."""
    return tuple(layer(size, rng, shape) for shape in size.network.shapes)


def rows(size: Size, rng: np.random.Generator, features: int) -> np.ndarray:
    """A batch that all networks share, as the data of an algorithm are."""
    return normal(rng, size.batch, features)


def int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """All values but −128."""
    return rng.integers(-127, 128, size=shape, dtype=np.int8)


# Operations, on the widest layer.


def matmul(x: Array, weight: Array, *, size: Size, backend: Backend) -> Array:
    """x·W"""
    return x @ weight


def affine_relu(one: Layer, x: Array, *, size: Size, backend: Backend) -> Array:
    """relu(x·W + b)"""
    return size.network.functions.value(affine(one, x))


def reduction(x: Array, *, size: Size, backend: Backend) -> Array:
    """Σ over the batch."""
    return backend.xp.sum(x, axis=-2, dtype=x.dtype)


def draws(key: Array, *, size: Size, backend: Backend) -> Array:
    """Normal numbers, as many as the layer has weights."""
    return random.normal(key, size.widest, backend=backend)


def largest(scores: Array, k: Array, *, size: Size, backend: Backend) -> Tree:
    """The mask of the largest tenth."""
    return backend.largest((scores,), k)


def integer_matmul(a: Array, b: Array, *, size: Size, backend: Backend) -> Array:
    """int8 · int8 → int32"""
    return backend.integer_matmul(a, b)


# Steps of the engine.


def forward(params: Any, x: Array, *, size: Size, backend: Backend) -> Array:
    """The outputs of the network."""
    return size.network.apply(params, x)


def value_and_grad(params: Any, x: Array, y: Array, *, size: Size, backend: Backend) -> Tree:
    """J and ∂J/∂θ of the squared error."""
    return gradients.value_and_grad(size.network, "mean_squared_error", params, x, y)


def update(params: Any, grads: Any, config: Tree, rates: Array, *, size: Size, backend: Backend) -> Tree:
    """So many updates of Adam; a scan, since an update consumes what it is given."""
    rule = ADAM.rule

    def step(carry: Any, rate: Array) -> Any:
        at, state = carry
        _, at, state = rule.update(config, rate, lambda _, away=None: (rate, grads), state, at)
        return (at, state), rate

    copies = tree.map(lambda leaf: backend.xp.asarray(leaf, copy=True), params)
    return backend.scan(step, (copies, rule.init(params)), rates)[0][0]


def update_inputs(size: Size, rng: np.random.Generator) -> tuple[Any, ...]:
    """Parameters, gradients, Adam's numbers, and the learning rate of each update."""
    config = tree.map(lambda leaf: np.asarray(leaf, np.float32), ADAM.config)
    return params(size, rng), params(size, rng), config, np.full(UPDATES, 1e-3, np.float32)


# Whole algorithms.


@lru_cache(maxsize=32)
def data_for(size: Size, count: int) -> mm.Splits:
    """Rows and targets without a pattern, made once: what is learned does not matter to the time."""
    rng = np.random.default_rng(0)
    features, outputs = size.layers[0], size.layers[-1]
    train, held = (mm.Dataset(normal(rng, n, features), normal(rng, n, outputs)) for n in (count, size.batch))
    return mm.Splits(train, held, held)


def descent(*, size: Size, backend: Backend) -> Tree:
    """An epoch of ``gradient_descent``; the losses."""
    found = mm.gradient_descent(
        size.network, data_for(size, BATCHES * size.batch), seed=0, backend=backend, epochs=1, batch_size=size.batch,
        optimizer=mm.optimizers.momentum(0.01), population=size.population,
    )  # fmt: skip
    return found.history["loss"]


def search(*, size: Size, backend: Backend) -> Tree:
    """Generations of ``random_search`` with as many candidates as the population; the best fitness after each."""
    data = data_for(size, size.batch)
    found = mm.random_search(
        size.network, data, seed=0, backend=backend, generations=GENERATIONS, population=size.members
    )
    return found.history["loss"]


def mask(scores: Tree, kept: Array, *, size: Size, backend: Backend) -> Tree:
    """The masks that keep the largest tenth of all layers together: ``prune`` without the retraining."""
    choice = Choice(backend, patterns.unstructured(), True, (0,) * len(scores))
    return choose(scores, None, (kept,), choice=choice)


def quantized(layers: Tree, q: Array, *, size: Size, backend: Backend) -> Array:
    """Integer-only inference: int8 in, the int32 sums of the last layer out."""
    return integer.run(layers, q, backend=backend)


def integer_layers(size: Size, rng: np.random.Generator) -> tuple[Any, ...]:
    """Layers whose int8 outputs use their range."""

    def one(inputs: int, outputs: int) -> integer.IntegerLayer:
        zero, low, high = (np.full((*size.lead, 1), n, np.int32) for n in (0, -128, 127))
        scale = np.full((*size.lead, outputs), 0.5 / (64 * inputs**0.5), np.float32)
        bias = rng.integers(-999, 1000, size=(*size.lead, outputs), dtype=np.int32)
        return integer.IntegerLayer(int8(rng, *size.lead, inputs, outputs), bias, scale, zero, low, high, None)

    return tuple(one(*shape) for shape in size.network.shapes), int8(rng, size.batch, size.layers[0])


# What the memory can do at best.


def triad(x: Array, y: Array, *, size: Size, backend: Backend) -> Array:
    """x + 2y over arrays that no cache holds: bytes a second."""
    return x + y * 2


def wide_traffic(size: Size) -> float:
    """Bytes of a layer's inputs, weights and outputs."""
    inputs, outputs = size.widest
    return size.itemsize * (size.batch * inputs + size.wide_weights + size.members * size.batch * outputs)


def step_traffic(size: Size) -> float:
    """Bytes of a batch, all weights and all activations."""
    return size.itemsize * (size.batch * size.layers[0] + size.weights + size.activations)


CASES = {
    case.name: case
    for case in (
        Case(
            "matmul", "operation", matmul,
            lambda s, rng: (rows(s, rng, s.widest[0]), layer(s, rng, s.widest).weight),
            lambda s: 2 * s.batch * s.wide_weights, wide_traffic,
        ),
        Case(
            "affine + relu", "operation", affine_relu,
            lambda s, rng: (layer(s, rng, s.widest), rows(s, rng, s.widest[0])),
            lambda s: 2 * s.batch * s.wide_weights, wide_traffic,
        ),
        Case(
            "reduction", "operation", reduction,
            lambda s, rng: (normal(rng, *s.lead, s.batch, s.widest[1]),),
            lambda s: s.members * s.batch * s.widest[1],
            lambda s: s.itemsize * s.members * (s.batch + 1) * s.widest[1],
        ),
        Case(
            "draws", "operation", draws,
            lambda s, rng: (random.key(np.arange(s.members)).reshape(*s.lead, 2),),
            lambda s: 80 * s.wide_weights, lambda s: 4 * s.wide_weights, floats=False,
        ),
        Case(
            "largest tenth", "operation", largest,
            lambda s, rng: (
                normal(rng, *s.lead, prod(s.widest)), np.full(s.lead, max(1, prod(s.widest) // 10), np.int32),
            ),
            lambda s: s.wide_weights, lambda s: 5 * s.wide_weights, "exact", False,
        ),
        Case(
            "integer matmul", "operation", integer_matmul,
            lambda s, rng: (int8(rng, *s.lead, s.batch, s.widest[0]), int8(rng, *s.lead, *s.widest)),
            lambda s: 2 * s.batch * s.wide_weights,
            lambda s: s.members * (s.batch * (s.widest[0] + 4 * s.widest[1]) + prod(s.widest)), "exact", False,
        ),
        Case(
            "forward", "step", forward, lambda s, rng: (params(s, rng), rows(s, rng, s.layers[0])),
            lambda s: 2 * s.batch * s.weights, step_traffic,
        ),
        Case(
            "value_and_grad", "step", value_and_grad,
            lambda s, rng: (params(s, rng), rows(s, rng, s.layers[0]), rows(s, rng, s.layers[-1])),
            lambda s: 2 * s.batch * (3 * s.weights - s.members * prod(s.layers[:2])), lambda s: 3 * step_traffic(s),
            "gradient",
        ),
        Case(
            "update x10", "step", update, update_inputs,
            lambda s: 12 * UPDATES * s.weights, lambda s: 7 * s.itemsize * UPDATES * s.weights,
        ),
        Case(
            "descent epoch", "algorithm", descent, lambda s, rng: (),
            lambda s: 2 * BATCHES * s.batch * (3 * s.weights - s.members * prod(s.layers[:2])),
            lambda s: 3 * BATCHES * step_traffic(s), "run", False,
        ),
        Case(
            "search x10", "algorithm", search, lambda s, rng: (),
            lambda s: 2 * GENERATIONS * s.batch * s.weights, lambda s: GENERATIONS * step_traffic(s), "run", False,
        ),
        Case(
            "mask", "algorithm", mask,
            lambda s, rng: (
                tuple(normal(rng, *s.lead, *shape) for shape in s.network.shapes),
                np.full(s.lead, max(1, s.weights // s.members // 10), np.int32),
            ),
            lambda s: s.weights, lambda s: 5 * s.weights, "exact", False,
        ),
        Case(
            "quantized forward", "algorithm", quantized, integer_layers,
            lambda s: 2 * s.batch * s.weights, lambda s: s.weights + 4 * s.activations, "exact", False,
        ),
    )
}  # fmt: skip

TRIAD = Case(
    "triad", "peak", triad, lambda s, rng: tuple(normal(rng, *s.layers) for _ in range(2)),
    lambda s: 2 * prod(s.layers), lambda s: 3 * s.itemsize * prod(s.layers),
)  # fmt: skip


def parse_layers(text: str) -> tuple[int, ...]:
    """The sizes of "784-300-10"; of "4x1024", four layers of 1024 by 1024."""
    count, cross, width = text.partition("x")
    try:
        found = (int(width),) * (int(count) + 1) if cross else tuple(map(int, text.split("-")))
    except ValueError:
        found = ()
    if len(found) < 2 or min(found) < 1:
        raise ValueError(f"sizes: expected networks like 784-300-10 or 4x1024, got {text!r}")
    return found
