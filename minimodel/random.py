"""Counter-based keys and draws: the same bits on every backend, equal to ``jax.random`` for the same key.

A key is uint32[2], or (*population, 2). A key that is folded or split is never drawn from as well:
``fold_in(key, i)`` equals ``split(key, n)[i]``, so the same counter would be used twice.
"""

from collections.abc import Callable
from math import ceil, log, prod, sqrt
from typing import Any

import numpy as np

from minimodel import tree
from minimodel.backends import Backend, load
from minimodel.backends.threefry import threefry2x32
from minimodel.tree import Array, Tree

TINY = 2.0**-24
# Giles: Approximating the erfinv function (GPU Computing Gems 2, 2010), single precision: w < 5 and w ≥ 5.
CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def key(seed: Any) -> np.ndarray:
    """The key of an integer seed in [0, 2^64): its high and low word. An array of seeds gives an array of keys."""
    seeds = np.asarray(seed)
    if seeds.dtype.kind not in "iu" or (seeds.dtype.kind == "i" and np.any(seeds < 0)):
        raise ValueError(f"seed: expected an integer from 0 to 2^64 − 1, got {seed!r}")
    wide = seeds.astype(np.uint64)
    return np.stack([wide >> np.uint64(32), wide & np.uint64(0xFFFFFFFF)], axis=-1).astype(np.uint32)


def fold_in(key: Array, index: Any) -> Array:
    """A new key for each index in [0, 2^32): key (*p, 2) and index (*n) give (*p, *n, 2)."""
    xp = tree.namespace(key)
    index = xp.asarray(index, dtype=xp.uint32)
    counter = xp.reshape(index, (*index.shape, 1))
    words = [xp.reshape(key[..., i], (*key.shape[:-1], *(1,) * counter.ndim)) for i in (0, 1)]
    return xp.concat(threefry2x32((words[0], words[1]), xp.zeros_like(words[0]), counter), axis=-1)


def split(key: Array, n: int = 2) -> Array:
    """n new keys: key (*p, 2) gives (*p, n, 2)."""
    xp = tree.namespace(key)
    return fold_in(key, xp.arange(n, dtype=xp.uint32))


def bits(key: Array, shape: tuple[int, ...] = (), *, backend: str | Backend = "numpy") -> Array:
    """Independent uniform uint32 words; key (*p, 2) gives (*p, *shape). Equals ``jax.random.bits``."""
    return _draw(_bits, key, shape, backend)


def uniform(
    key: Array,
    shape: tuple[int, ...] = (),
    low: float = 0.0,
    high: float = 1.0,
    *,
    backend: str | Backend = "numpy",
) -> Array:
    """float32 in [low, high): low + (high − low)·k/2²³ with k the word's 23 high bits. Where low is not 0, rounding
    may give high itself.

    The bits are the same on every backend where high − low is a power of two; elsewhere a fused multiply-add
    may change the last one.
    """
    return _draw(_uniform, key, shape, backend, np.float32(low), np.float32(float(high) - float(low)))


def normal(key: Array, shape: tuple[int, ...] = (), *, backend: str | Backend = "numpy") -> Array:
    """float32 from N(0, 1): √2·erf⁻¹(u), u uniform in (−1, 1). Within a few ulp of ``jax.random.normal``."""
    return _draw(_normal, key, shape, backend)


def permutation(key: Array, n: int, *, backend: str | Backend = "numpy") -> Array:
    """A random order of 0 … n−1, int32; key (*p, 2) gives (*p, n). Equals ``jax.random.permutation``.

    Indices are sorted by random words, stably, so often that ties stop mattering (3·log n / log 2³² rounds).
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    return _draw(_permutation, key, n, backend)


def like(draw: Callable[..., Array], key: Array, shapes: Tree, *, backend: Backend) -> Tree:
    """A tree of draws: leaf number i of ``shapes`` is drawn under fold_in(key, i)."""
    counter = iter(range(sum(1 for _ in tree.leaves(shapes))))
    return tree.map(lambda leaf: draw(fold_in(key, next(counter)), leaf.shape, backend=backend), shapes)


def _draw(law: Callable[..., Array], key: Array, shape: Any, backend: str | Backend, *numbers: np.float32) -> Array:
    """The law's program: compiled for the shape, given the key and the numbers."""
    backend = load(backend)
    if key.shape[-1:] != (2,) or str(key.dtype).rpartition(".")[2] != "uint32":
        raise ValueError(f"key: expected uint32 (…, 2), made by random.key, got {key.dtype} {tuple(key.shape)}")
    run = backend.jit(law, static=("shape", "backend"))
    return run(backend.asarray(key), *map(backend.asarray, numbers), shape=_checked(shape), backend=backend)


def _checked(shape: Any) -> Any:
    """A shape as a tuple, or a length."""
    sizes = tuple(shape) if np.iterable(shape) else (shape,)
    if not all(hasattr(n, "__index__") and n >= 0 for n in sizes) or prod(sizes) > 2**32:
        raise ValueError(f"shape: expected integers from 0 that make at most 2^32 words a key, got {shape}")
    return tuple(map(int, sizes)) if np.iterable(shape) else int(shape)


def _bits(key: Array, *, shape: tuple[int, ...], backend: Backend) -> Array:
    return backend.random_bits(key, shape)


def _uniform(key: Array, low: Any, width: Any, *, shape: tuple[int, ...], backend: Backend) -> Array:
    xp = backend.xp
    u = xp.astype(backend.random_bits(key, shape) >> 9, xp.float32)
    u *= 2.0**-23 * width
    u += low
    return u


def _normal(key: Array, *, shape: tuple[int, ...], backend: Backend) -> Array:
    """u = 2k/2²³ − (1 − 2⁻²⁴) never reaches ±1, where erf⁻¹ is infinite."""
    xp = backend.xp
    u = _uniform(key, TINY - 1.0, 2.0, shape=shape, backend=backend)
    # −log1p(−u²) to within its own rounding, ten times as fast in NumPy. The minimum changes no value; without it XLA
    # would round u² and the difference as one, and the tails, where that shows, would differ between backends.
    w = -xp.log(1.0 - xp.minimum(u * u, xp.ones_like(u)))
    centre, tail = w - 2.5, xp.sqrt(w) - 3.0
    u *= xp.where(w < 5.0, _horner(CENTRE, centre), _horner(TAIL, tail))
    u *= sqrt(2)
    return u


def _horner(coefficients: tuple[float, ...], w: Array) -> Array:
    total = w * coefficients[0]
    for coefficient in coefficients[1:-1]:
        total += coefficient
        total *= w
    total += coefficients[-1]
    return total


def _permutation(key: Array, *, shape: int, backend: Backend) -> Array:
    xp = backend.xp
    order = xp.broadcast_to(xp.arange(shape, dtype=xp.int32), (*key.shape[:-1], shape))
    for _ in range(ceil(3 * log(max(1, shape)) / log(2**32 - 1))):
        pair = split(key)
        key, words = pair[..., 0, :], backend.random_bits(pair[..., 1, :], (shape,))
        order = xp.take_along_axis(order, backend.order(words), axis=-1)
    return order
