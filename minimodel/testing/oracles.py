"""Oracles: differences with their error worked out, bounds of rounding, bits, refusals, one function on every backend.

All comparisons are made on the host. An oracle raises AssertionError and says by how much it was missed.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from minimodel import backends, random, tree
from minimodel.backends import Backend
from minimodel.tree import Array, Tree

STEP = 2.0**-17  # about ε^⅓ of float64, where truncation h² and rounding ε/h are equally small; exact to add
ROUNDINGS = 64  # of each value, more than what a small network's sums make of it
TIERS = ("exact", "ulp", "step", "none")


def check_gradient(
    fn: Callable[[np.ndarray], Array], gradient: Array, x: np.ndarray, *, roundings: int = ROUNDINGS
) -> None:
    """``gradient`` is ∂(Σ fn)/∂x at x, float64, within the error of central differences D(h) = (f(x+h) − f(x−h))/2h.

    D(h) = f′ + h²f‴/6 + O(h⁴), so D(2h) − D(h) = h²f‴/2: a third of it is the truncation of D(h). To that comes the
    rounding of both values, n·ε·|f|/h for n ``roundings`` of each. Both are doubled, for the terms left out.
    """

    def change(h: float) -> np.ndarray:
        found = np.empty(x.shape)
        for place in np.ndindex(x.shape):
            ends = []
            for sign in (1, -1):
                moved = x.copy()
                moved[place] += sign * h
                ends.append(np.sum(fn(moved), dtype=np.float64))
            found[place] = (ends[0] - ends[1]) / (2 * h)
        return found

    near, size = change(STEP), float(np.sum(np.abs(fn(x.copy()))))
    allowed = difference_error(near, change(2 * STEP), size, roundings)
    _within("gradient", gradient, near, allowed)


def check_hvp(
    gradient: Callable[[Tree], Tree], product: Tree, params: Tree, tangent: Tree, *, roundings: int = ROUNDINGS
) -> None:
    """``product`` is H·v: the change of ``gradient`` along v = ``tangent``, by central differences as above."""

    def change(h: float) -> Tree:
        ends = [gradient(tree.map(lambda p, v, s=s: p + s * h * v, params, tangent)) for s in (1, -1)]
        return tree.map(lambda a, b: (a - b) / (2 * h), *ends)

    for i, (found, near, far, at) in enumerate(
        zip(*map(tree.leaves, (product, change(STEP), change(2 * STEP), gradient(params))), strict=True)
    ):
        size = float(np.max(np.abs(at), initial=1e-3))
        _within(f"product, leaf {i}", found, near, difference_error(near, far, size, roundings))


def difference_error(near: np.ndarray, far: np.ndarray, size: float, roundings: int) -> np.ndarray:
    """What D(h) may be off by, from D(h), D(2h) and the size of f."""
    epsilon = np.finfo(np.float64).eps
    return 2 * (np.abs(far - near) / 3 + roundings * epsilon * (size / STEP + np.abs(near)))


def componentwise_bound(a: np.ndarray, b: np.ndarray, *, extra: int = 0) -> np.ndarray:
    """γ_k·(|A||B|), γ_k = k·u/(1 − k·u), u = 2⁻²⁴, k = inner + ``extra``: what float32 sums in any order may be off by.

    Higham: Accuracy and stability of numerical algorithms (2002), section 3.5.
    """
    k = (a.shape[-1] + extra) * 2.0**-24
    return k / (1 - k) * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))


def assert_same_bits(found: Tree, expected: Tree, what: str = "values") -> None:
    """The same structure, shapes, dtypes and bits: −0 is not 0, and NaN is itself."""
    for i, (ours, theirs) in enumerate(zip(tree.leaves(found), tree.leaves(expected), strict=True)):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        kinds = [(str(leaf.dtype), leaf.shape) for leaf in (ours, theirs)]
        assert kinds[0] == kinds[1], f"{what}, leaf {i}: {kinds[0]} where {kinds[1]} was expected"
        if ours.tobytes() != theirs.tobytes():
            np.testing.assert_array_equal(ours, theirs, f"{what}, leaf {i}")
            raise AssertionError(f"{what}, leaf {i}: equal numbers of other bits (0 and −0, or kinds of NaN)")


def assert_within_ulp(found: Tree, expected: Tree, ulps: int = 4, what: str = "values") -> None:
    """Floats of one dtype, at most so many representable numbers apart."""
    for i, (ours, theirs) in enumerate(zip(tree.leaves(found), tree.leaves(expected), strict=True)):
        apart = ulps_apart(np.asarray(ours), np.asarray(theirs))
        worst = int(np.max(apart, initial=0))
        assert worst <= ulps, f"{what}, leaf {i}: {worst} ulp apart, at most {ulps} are allowed"


def ulps_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many representable numbers lie between: floats order like their bits once the negative ones are flipped."""
    assert a.dtype == b.dtype and a.shape == b.shape, f"{a.dtype} {a.shape} where {b.dtype} {b.shape} was expected"
    whole = np.int32 if a.dtype.itemsize == 4 else np.int64

    def ordered(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x).view(whole).astype(np.int64 if whole is np.int32 else object)
        return np.where(bits < 0, np.iinfo(whole).min - bits, bits)

    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0, np.abs(ordered(a) - ordered(b)))


def assert_within_step(found: Tree, expected: Tree, what: str = "values") -> None:
    """One float32 forward, gradient or update: rtol 1e-5, and atol 1e-6 of the largest number or of 1."""
    for i, (ours, theirs) in enumerate(zip(tree.leaves(found), tree.leaves(expected), strict=True)):
        size = float(np.max(np.abs(theirs), initial=1.0))
        message = f"{what}, leaf {i}"
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), 1e-5, 1e-6 * size, err_msg=message)


def assert_dtype(values: Tree, dtype: str, what: str = "values") -> None:
    """Every leaf has this dtype, of whatever namespace."""
    found = [str(leaf.dtype).rpartition(".")[2] for leaf in tree.leaves(values)]
    assert set(found) <= {dtype}, f"{what}: expected {dtype} throughout, got {found}"


def assert_floats_are(dtype: str, values: Tree, what: str = "values") -> None:
    """Every leaf that is a float has this dtype; others, as keys and counts, may be there as well."""
    assert_dtype(tuple(leaf for leaf in tree.leaves(values) if "float" in str(leaf.dtype)), dtype, what)


@contextmanager
def refuses(kinds: type[Exception] | tuple[type[Exception], ...], match: str = "") -> Iterator[None]:
    """What is done within raises one of these errors, with such a message."""
    try:
        yield
    except kinds as error:
        assert re.search(match, str(error)), f"refused with {error!s:.200!r}, where {match!r} was expected"
    else:
        raise AssertionError(f"it was not refused; expected {kinds} and {match!r}")


def threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """threefry2x32-20 in Python's integers. Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011)."""
    mask, words = 2**32 - 1, (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    a, b = (counter[0] + words[0]) & mask, (counter[1] + words[1]) & mask
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            a = (a + b) & mask
            b = ((b << rotation | b >> (32 - rotation)) & mask) ^ a
        a = (a + words[(group + 1) % 3]) & mask
        b = (b + words[(group + 2) % 3] + group + 1) & mask
    return a, b


class Pair(NamedTuple):
    """Two ways to compute the same, and the best tier of equality that they meet."""

    one: str
    other: str
    tier: str


class Comparison(NamedTuple):
    """What ``compare_backends`` found; prints as a table."""

    pairs: tuple[Pair, ...]

    @property
    def worst(self) -> str:
        """The tier that all pairs meet."""
        return max((pair.tier for pair in self.pairs), key=TIERS.index, default="exact")

    def __str__(self) -> str:
        return "\n".join(f"{pair.one:<36}{pair.other:<36}{pair.tier}" for pair in self.pairs)


def keys_drawn(run: Callable[[Backend], Any]) -> np.ndarray:
    """Every key (n, 2) that NumPy's ``random_bits`` is asked for while ``run(backend)`` runs, in order."""
    eager, keys = backends.load("numpy", debug=True), []

    def watched(key: Array, shape: tuple[int, ...]) -> Array:
        keys.append(key.reshape(-1, 2))
        return eager.random_bits(key, shape)

    run(replace(eager, random_bits=watched))
    return np.concatenate([np.empty((0, 2), np.uint32), *keys])


def assert_keys_are_used_once(keys: np.ndarray, family: int = 64) -> None:
    """No key is drawn from twice, and none that is drawn from is also folded or split.

    fold_in(key, i) are the two words whose sum modulo 2 is word i of a draw from the key: the same counter used twice.
    """
    drawn = [tuple(map(int, key)) for key in keys]
    assert len(set(drawn)) == len(drawn), "a key was drawn from twice: the same numbers come again"
    children = {tuple(map(int, child)) for child in random.fold_in(keys, np.arange(family)).reshape(-1, 2)}
    assert not children & set(drawn), "a key was drawn from and folded or split as well: one counter used twice"


def installed() -> tuple[Backend, ...]:
    """Every backend that can be loaded here; the one over any namespace with array-api-strict."""
    named = ("array_api:array_api_strict" if name == "array_api" else name for name in backends.available())
    return tuple(map(backends.load, named))


def compare_backends(fn: Callable[..., Tree], *arrays: Tree, on: tuple[str | Backend, ...] | None = None) -> Comparison:
    """Run a function of arrays on every backend, eagerly and compiled, and tell how equal each pair of results is.

    fn       a module-level function, as ``backend.jit`` wants it
    arrays   NumPy arrays, or trees of them
    on       backends, or their names; by default all that are installed
    """
    found: dict[str, Tree] = {}
    for backend in installed() if on is None else map(backends.load, on):
        for way, run in (("eager", fn), ("compiled", backend.jit(fn))):
            given = tree.map(backend.asarray, arrays)
            found[f"{backend.name} {way}"] = backend.to_numpy(run(*given))
    pairs = combinations(found.items(), 2)
    return Comparison(tuple(Pair(a[0], b[0], tier(a[1], b[1])) for a, b in pairs))


def tier(found: Tree, expected: Tree) -> str:
    """The best of "exact", "ulp", "step" and "none" that two results meet."""
    for name, check in (("exact", assert_same_bits), ("ulp", assert_within_ulp), ("step", _same_step)):
        try:
            check(found, expected)
        except AssertionError:
            continue
        return name
    return "none"


def _same_step(found: Tree, expected: Tree) -> None:
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert_within_step(found, expected)


def _within(what: str, found: Array, expected: np.ndarray, allowed: np.ndarray) -> None:
    found = np.asarray(found)
    assert found.shape == expected.shape, f"{what}: shape {found.shape} where {expected.shape} was expected"
    missed = np.abs(found - expected) - allowed
    if not (missed <= 0).all():
        at = np.unravel_index(np.argmax(np.where(np.isnan(missed), np.inf, missed)), missed.shape)
        place = tuple(map(int, at))
        raise AssertionError(
            f"{what} at {place}: {found[at]:.9g}, but the difference is {expected[at]:.9g} ± {allowed[at]:.2g}"
        )
