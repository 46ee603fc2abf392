"""What the checks of a backend run on it: module-level functions, by which ``jit`` finds programs; a problem."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

import minimodel as mm
from minimodel import qarray, random, tree
from minimodel.backends import Backend

NETWORK = mm.Network((4, 6, 3), "tanh")


class Two(NamedTuple):
    """A tree with names."""

    left: Any
    right: Any


def grown(x: Any) -> Any:
    x += 1
    return x


def power(x: Any, *, times: int) -> Any:
    found = tree.namespace(x).ones_like(x)
    for _ in range(times):
        found = found * x
    return found


def many_products(x: Any) -> Any:
    for _ in range(40):
        x = x @ x
    return x


def mixed(x: Any, y: Any) -> Any:
    return (x * y, tree.namespace(x).maximum(x, y), x)


def of_trees(a: Any, b: Any) -> Any:
    return a[0] * b[0] + b[1].right


def running(carry: Any, x: Any) -> Any:
    total, last = carry
    total = total + x.left * x.right
    return (total, x.left), Two(total, last)


def summed(x: Any, *, backend: Backend) -> Any:
    return backend.scan(lambda total, row: (total + row, None), backend.xp.zeros_like(x[0, ...]), x)


def taken(x: Any, rows: Any, *, backend: Backend) -> Any:
    return backend.take(x, rows)


def spread_out(values: Any, *, axis: int | None, backend: Backend) -> Any:
    return backend.spread(values, axis)


def ordered(values: Any, *, backend: Backend) -> Any:
    return backend.order(values)


def marked(arrays: Any, k: Any, *, backend: Backend) -> Any:
    return backend.largest(arrays, k)


def quantized(w: Any, levels: Any) -> Any:
    return qarray.quantize(w, levels)


def matmul(a: Any, b: Any) -> Any:
    return a @ b


def descended(params: Any, x: Any, y: Any, *, network: mm.Network) -> Any:
    return mm.value_and_grad(network, "softmax_cross_entropy", params, x, y)


def at_a_boundary(size: int, boundary: int = 64) -> np.ndarray:
    """Zeros (size,) in float32 whose memory begins at a multiple of so many bytes, cut from a larger buffer."""
    raw = np.zeros(4 * size + boundary, np.uint8)
    start = -raw.ctypes.data % boundary
    return raw[start : start + 4 * size].view(np.float32)


def product(backend: Backend, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """On the host."""
    return np.asarray(backend.to_numpy(backend.integer_matmul(backend.asarray(a), backend.asarray(b))))


def host_bits(backend: Backend, key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Words of ``random_bits`` on the host."""
    return np.asarray(backend.to_numpy(random.bits(key, shape, backend=backend)))


def problem() -> mm.Splits:
    """96 rows of 4 features in 3 classes that a small network can learn."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4)).astype(np.float32)
    return mm.datasets.split(x, (x @ rng.normal(size=(4, 3))).argmax(axis=1), seed=0)


def trained(backend: Backend | str, seed: int, **options: Any) -> mm.Model:
    """One step on all rows, or what the options say; validated on the training rows, so that a step improves."""
    options = {"epochs": 1, "batch_size": 10_000, "optimizer": mm.optimizers.momentum(0.05), **options}
    data = problem()
    return mm.gradient_descent(NETWORK, replace(data, validation=data.train), seed=seed, backend=backend, **options)


def rounded_model(seed: int, population: int | None) -> mm.Model:
    """A model whose weights are tenths, of which many are equal."""
    keys = random.key(seed) if population is None else random.split(random.key(seed), population)
    params = tree.map(lambda leaf: np.round(leaf * 10) / np.float32(10), NETWORK.init(keys))
    return mm.Model(NETWORK, params, mm.losses.softmax_cross_entropy)
