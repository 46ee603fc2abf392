"""NumPy: the Array-API backend with the operations that NumPy has a faster way for."""

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from minimodel.backends import array_api, replay
from minimodel.backends.interface import Backend, check_integer_matmul
from minimodel.backends.threefry import counter_words
from minimodel.tree import Array, Tree

WORDS = 62_500  # a block of draws that stays in the cache; a power of two would fall on the same cache lines
EXACT_INNER = 1_024  # 2^24 / 2^14: so many products of int8 add up exactly in float32


def make(variant: str | None = None, *, debug: bool = False) -> Backend:
    """Eager NumPy. ``debug`` as in ``array_api.make``."""
    if variant:
        raise ValueError(f"backend 'numpy:{variant}': NumPy has no variants; load('numpy')")
    eager = array_api.make(xp=np, debug=debug)
    return replace(
        eager,
        name="numpy",
        jit=eager.jit if debug else replay.jit,
        scan=eager.scan if debug else replay.scan,
        asarray=asarray,
        to_numpy=identity,
        take=take,
        random_bits=random_bits,
        order=order,
        integer_matmul=integer_matmul,
        largest=largest,
    )


def asarray(x: Any, dtype: Any = None, copy: bool = True) -> Array:
    """As everywhere; what is being recorded is an array already."""
    if isinstance(x, replay.Recorded) and dtype in (None, x.dtype):
        return x
    return array_api.asarray(np, x, dtype, copy)


def identity(values: Tree) -> Tree:
    """Already there."""
    return values


def take(x: Array, rows: Array) -> Array:
    """x[rows] in one go; with a mode NumPy writes the result to its place at once."""
    take = rows.tape.call if isinstance(rows, replay.Recorded) else lambda fn, *args, **kwargs: fn(*args, **kwargs)
    return take(np.take, x, rows, axis=0, mode="clip")


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """threefry2x32 words in blocks that fit the cache, over the keys and over the counter."""
    if isinstance(key, replay.Recorded):
        return key.tape.call(random_bits, key, shape=shape)
    size = prod(shape)
    keys = key.reshape(-1, 2)
    out = np.empty((len(keys), size), np.uint32)
    rows, columns = max(1, WORDS // max(1, size)), min(WORDS, max(1, size))
    for row in range(0, len(keys), rows):
        for start in range(0, size, columns):
            block = slice(start, min(start + columns, size))
            out[row : row + rows, block] = counter_words(np, keys[row : row + rows], block.start, block.stop)
    return out.reshape((*key.shape[:-1], *shape))


def order(words: Array) -> Array:
    """Words with their places behind them, sorted as numbers of 64 bits: ten times as fast as a stable argsort."""
    wide = words.astype(np.uint64) << 32
    wide |= np.arange(words.shape[-1], dtype=np.uint64)
    wide.sort(axis=-1)
    return wide.astype(np.uint32).astype(np.int32)


def integer_matmul(a: Array, b: Array) -> Array:
    """int8 · int8 → int32 through float32 BLAS: exact, since each block of the inner axis stays within 2^24."""
    check_integer_matmul(a, b)
    blocks = [slice(start, start + EXACT_INNER) for start in range(0, max(1, a.shape[-1]), EXACT_INNER)]
    first, *others = ((a[..., k].astype(np.float32) @ b[..., k, :].astype(np.float32)).astype(np.int32) for k in blocks)
    for part in others:
        first += part
    return first


def largest(arrays: tuple[Array, ...], k: Array) -> tuple[Array, ...]:
    """By partial sorting, one row of the leading axes after the other."""
    lead = arrays[0].shape[:-1]
    counts = np.broadcast_to(k, lead)
    masks = tuple(np.empty(x.shape, bool) for x in arrays)
    for at in np.ndindex(lead):
        mark_largest([x[at] for x in arrays], int(counts[at]), [mask[at] for mask in masks])
    return masks


def mark_largest(rows: list[Array], k: int, masks: list[Array]) -> None:
    """The same of one row, into its masks: all from the k-th largest number on, less the last of those equal to it."""
    numbers = np.concatenate(rows)
    place = len(numbers) - max(k, 1)
    numbers.partition(place)
    bar = numbers[place]
    for row, mask in zip(rows, masks, strict=True):
        np.greater_equal(row, bar, out=mask)
    extra = sum(map(np.count_nonzero, masks)) - k
    for row, mask in zip(rows[::-1], masks[::-1], strict=True):
        if extra > 0:
            ties = np.flatnonzero(row == bar)[-extra:]
            mask[ties] = False
            extra -= len(ties)
