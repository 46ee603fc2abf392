"""A backend over any Array-API namespace: eager, portable, the honest reference for the other two."""

import functools
import importlib
import inspect
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from minimodel import tree
from minimodel.backends.interface import Backend, check_integer_matmul, scan_length
from minimodel.backends.threefry import counter_words
from minimodel.tree import Array, Tree

HOST_KEEPS = 2**18  # 1 MiB: as much again are the gradients, and what an optimizer remembers


def make(variant: str | None = None, *, xp: Any = None, debug: bool = False) -> Backend:
    """The backend of a namespace, given as module ``xp`` or by its import name: ``array_api:array_api_strict``.

    ``debug`` poisons donated arguments and checks that a scan's carry keeps its shapes and dtypes: what a
    compiled backend would do or refuse, an eager one then shows too.
    """
    if xp is None:
        if not variant:
            raise ValueError("backend 'array_api' needs a namespace: load('array_api:array_api_strict'), say")
        xp = importlib.import_module(variant)
    if not all(hasattr(xp, name) for name in ("__array_namespace_info__", "astype", "take_along_axis")):
        raise ValueError(f"backend: {xp.__name__} is not a namespace of the Array API standard 2024.12")
    return Backend(
        name=f"array_api:{xp.__name__}",
        xp=xp,
        devices=("cpu",),
        asarray=functools.partial(asarray, xp),
        to_numpy=functools.partial(tree.map, lambda leaf: np.array(np.from_dlpack(leaf))),
        synchronize=lambda values: values,
        packs=2**16,
        keeps=HOST_KEEPS,
        room=2**19,  # 2 MiB, the cache of one core
        columns=False,
        jit=functools.partial(poisoning_jit if debug else eager_jit, xp),
        scan=functools.partial(scan, xp, debug),
        spread=lambda values, axis: values,
        take=functools.partial(take, xp),
        random_bits=functools.partial(random_bits, xp),
        order=functools.partial(order, xp),
        integer_matmul=functools.partial(integer_matmul, xp),
        largest=functools.partial(largest, xp),
    )


def asarray(xp: Any, x: Any, dtype: Any = None, copy: bool = True) -> Array:
    """A copy of ``x`` as an array of ``xp``, or where it need not be one, x itself if it can."""
    given = x if tree.space_of(x) is xp else np.asarray(x, order="C")  # PyTorch takes no negative strides
    return xp.asarray(given, copy=copy or None) if dtype is None else xp.astype(xp.asarray(given), dtype, copy=copy)


def eager_jit(xp: Any, fn: Callable[..., Any], static: tuple[str, ...] = (), donate: tuple[str, ...] = ()) -> Any:
    """``fn`` as it is, on arrays of ``xp``."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        own = {name: value if name in static else brought(xp, value) for name, value in kwargs.items()}
        return fn(*brought(xp, args), **own)

    return fn if xp is np else call


def brought(xp: Any, values: Tree) -> Tree:
    """The tree with its NumPy arrays as arrays of ``xp``."""
    return tree.map(lambda leaf: asarray(xp, leaf) if isinstance(leaf, np.ndarray) else leaf, values)


def poisoning_jit(xp: Any, fn: Callable[..., Any], static: tuple[str, ...] = (), donate: tuple[str, ...] = ()) -> Any:
    """``fn`` on copies of its donated arguments; the originals are filled with NaN (or 0), as after donation."""
    signature, run = inspect.signature(fn), eager_jit(xp, fn, static)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name in donate:
            given = bound.arguments[name]
            bound.arguments[name] = tree.map(lambda leaf: tree.namespace(leaf).asarray(leaf, copy=True), given)
            for leaf in (leaf for leaf in tree.leaves(given) if leaf.ndim):  # NumPy's scalars cannot be written to
                leaf[...] = float("nan") if "float" in str(leaf.dtype) else 0
        return run(*bound.args, **bound.kwargs)

    return call


def scan(xp: Any, debug: bool, step: Callable[..., Any], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
    """carry, y_i = step(carry, xs_i) for every i; the y_i stacked."""
    ys = []
    for i in range(scan_length(xs)):
        before = signature_of(carry) if debug else None
        carry, y = step(carry, tree.map(lambda leaf, i=i: leaf[i, ...], xs))
        if debug and signature_of(carry) != before:
            raise TypeError(f"scan: the carry must keep its shapes and dtypes: {before} became {signature_of(carry)}")
        ys.append(y)
    return carry, tree.stack(ys, xp)


def signature_of(values: Tree) -> list[tuple[Any, Any]]:
    """Shape and dtype of every leaf."""
    return [(leaf.shape, leaf.dtype) for leaf in tree.leaves(values)]


def take(xp: Any, x: Array, rows: Array) -> Array:
    """x[rows]; the standard's own take wants one axis of them."""
    return xp.reshape(xp.take(x, xp.reshape(rows, (-1,)), axis=0), (*rows.shape, *x.shape[1:]))


def random_bits(xp: Any, key: Array, shape: tuple[int, ...]) -> Array:
    """threefry2x32 words, counted in row-major order."""
    return xp.reshape(counter_words(xp, key, 0, prod(shape)), (*key.shape[:-1], *shape))


def order(xp: Any, words: Array) -> Array:
    """A stable argsort."""
    return xp.astype(xp.argsort(words, axis=-1, stable=True), xp.int32)


def integer_matmul(xp: Any, a: Array, b: Array) -> Array:
    """int8 · int8 → int32, widened first."""
    check_integer_matmul(a, b)
    return xp.matmul(xp.astype(a, xp.int32), xp.astype(b, xp.int32))


def largest(xp: Any, arrays: tuple[Array, ...], k: Array) -> tuple[Array, ...]:
    """By the ranks of a stable sort: slow and plain."""
    order = xp.argsort(-xp.concat(arrays, axis=-1), axis=-1, stable=True)
    rank, masks = xp.argsort(order, axis=-1), []
    for x in arrays:
        masks.append(rank[..., : x.shape[-1]] < xp.asarray(k)[..., None])
        rank = rank[..., x.shape[-1] :]
    return tuple(masks)
