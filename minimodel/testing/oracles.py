"""Oracles: differences with their error worked out, bounds of rounding, bits, refusals, one function on every backend.

All comparisons are made on the host. An oracle raises AssertionError and says by how much it was missed; given what it
cannot judge it raises TypeError or ValueError instead.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from minimodel import backends, random, tree
from minimodel.backends import Backend
from minimodel.tree import Array, Tree

STEP = 2.0**-17  # about ε^⅓ of float64, where truncation h² and rounding ε/h are equally small
FARTHEST = 2.0**30  # beyond it the step is lost in the rounding of x + h
TIERS = ("exact", "ulp", "step", "none")


def roundings(sizes: tuple[int, ...], rows: int) -> int:
    """How many roundings, one after the other, lie between a parameter of a network and J, at most.

    Of each layer: a product and a sum of k, its bias, 4 ulp of an activation; as many of the loss, whose softmax sums
    the outputs; and the mean over the rows. Higham: Accuracy and stability of numerical algorithms (2002), section 3.1.
    """
    return sum(k + 6 for k in sizes) + rows


ROUNDINGS = 2 * roundings((3, 4, 3), 5)  # forward and back through the largest network that suites differentiate


def check_gradient(
    fn: Callable[[np.ndarray], Array], gradient: Array, x: np.ndarray, *, roundings: int = ROUNDINGS
) -> None:
    """``gradient`` is ∂(Σ fn)/∂x at x within the error of central differences D(h) = (f(x+h) − f(x−h))/2h.

    fn          float64 (…) -> float64; any shape, its entries are added up
    gradient    float64, of the shape of x
    x           float64, finite, of less than 2³⁰
    roundings   how many lie between x and an entry of fn, one after the other

    Raises TypeError for any other dtype, ValueError for any other x: in float32 the differences are of rounding alone.

    Truncation: D(h) = f′ + h²f‴/3! + h⁴f⁽⁵⁾/5! + …, and of each of these terms D(2h) − D(h) has at least three times as
    much: a third of it is what D(h) is off by. Rounding: n of them make of f at most what a relative change of n·u in
    f and in x would, u = 2⁻⁵³ (Higham 2002, section 1.5): n·u·(Σ|f| + Σ|x·f′|) in each value, and divided by h in
    D(h). Both are doubled, since terms of truncation may have opposite signs, and other arguments of f, which are not
    moved, are rounded as x is.
    """
    _expect("x", x, x.shape)
    if not (np.abs(x) < FARTHEST).all():
        raise ValueError(f"x: expected finite numbers of less than 2³⁰, got up to {np.abs(x).max()}; scale them")
    start = np.asarray(fn(x.copy()))
    _expect("fn", start, start.shape)
    gradient = np.asarray(gradient)
    _expect("gradient", gradient, x.shape)

    def change(h: float) -> np.ndarray:
        found = np.empty(x.shape)
        for place in np.ndindex(x.shape):
            ends, places = [], []
            for sign in (1, -1):
                moved = x.copy()
                moved[place] += sign * h
                places.append(moved[place])
                ends.append(np.sum(fn(moved), dtype=np.float64))
            found[place] = (ends[0] - ends[1]) / (places[0] - places[1])  # as far apart as rounding made them
        return found

    near = change(STEP)
    size = float(np.sum(np.abs(start)) + np.sum(np.abs(x * near)))
    _within("gradient", gradient, near, difference_error(near, change(2 * STEP), size, roundings))


def check_hvp(
    gradient: Callable[[Tree], Tree], product: Tree, params: Tree, tangent: Tree, *, roundings: int = ROUNDINGS
) -> None:
    """``product`` is H·v: the change of ``gradient`` along v = ``tangent``, by central differences as above.

    All are trees of one structure, float64 throughout, else TypeError. An entry's error is that of the largest entry
    of g or of H·v, which its roundings have passed through.
    """
    start = gradient(params)
    trees = {"params": params, "tangent": tangent, "gradient(params)": start, "product": product}
    for name, values in trees.items():
        assert_same_structure(values, params, name)
        for i, (leaf, like) in enumerate(zip(tree.leaves(values), tree.leaves(params), strict=True)):
            _expect(f"{name}, leaf {i}", np.asarray(leaf), like.shape)

    def change(h: float) -> list[np.ndarray]:
        ends = [gradient(tree.map(lambda p, v, s=s: p + s * h * v, params, tangent)) for s in (1, -1)]
        return [(a - b) / (2 * h) for a, b in zip(*map(tree.leaves, ends), strict=True)]

    near, far = change(STEP), change(2 * STEP)
    size = max(float(np.max(np.abs(leaf), initial=0)) for leaf in (*tree.leaves(start), *near))
    for i, (found, close, wide) in enumerate(zip(tree.leaves(product), near, far, strict=True)):
        _within(f"product, leaf {i}", np.asarray(found), close, difference_error(close, wide, size, roundings))


def difference_error(near: np.ndarray, far: np.ndarray, size: float, roundings: int) -> np.ndarray:
    """What D(h) may be off by, from D(h), D(2h) and the size of f, as ``check_gradient`` has it."""
    unit = np.finfo(np.float64).eps / 2
    return 2 * (np.abs(far - near) / 3 + roundings * unit * (size / STEP + np.abs(near)))


def _expect(what: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """float64 of that shape."""
    if values.dtype != np.float64:
        raise TypeError(
            f"{what}: expected float64, got {values.dtype}; compute it in float64, as differences of h = 2⁻¹⁷ are lost "
            "in the rounding of anything less"
        )
    if values.shape != shape:
        raise ValueError(f"{what}: expected the shape {shape}, got {values.shape}")


def componentwise_bound(a: np.ndarray, b: np.ndarray, *, extra: int = 0) -> np.ndarray:
    """γ_k·(|A||B|), γ_k = k·u/(1 − k·u), u = 2⁻²⁴, k = inner + ``extra``: what float32 sums in any order may be off by.

    Higham: Accuracy and stability of numerical algorithms (2002), section 3.5.
    """
    k = (a.shape[-1] + extra) * 2.0**-24
    return k / (1 - k) * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))


def assert_same_structure(found: Tree, expected: Tree, what: str = "values") -> None:
    """Tuples of the same kinds and lengths, and None where there is None; leaves may be anything."""
    ours, theirs = structure(found), structure(expected)
    assert ours == theirs, f"{what}: the structure is {ours}, where {theirs} was expected"


def structure(values: Tree) -> str:
    """A tree in words, with * for every leaf."""
    if not isinstance(values, tuple):
        return "None" if values is None else "*"
    name = "" if type(values) is tuple else type(values).__name__
    return f"{name}({', '.join(map(structure, values))})"


def assert_same_bits(found: Tree, expected: Tree, what: str = "values") -> None:
    """The same structure, shapes, dtypes and bits: −0 is not 0, and NaN is itself."""
    for name, ours, theirs in _pairs(found, expected, what):
        _assert_same_kind(name, ours, theirs)
        if ours.tobytes() != theirs.tobytes():
            np.testing.assert_array_equal(ours, theirs, name)
            raise AssertionError(f"{name}: equal numbers of other bits (0 and −0, or kinds of NaN)")


def positive_zeros(values: Tree) -> Tree:
    """NumPy's arrays with 0 for −0, which masks and integers do not tell apart."""
    return tree.map(lambda leaf: leaf + leaf.dtype.type(0) if leaf.dtype.kind == "f" else leaf, values)


def assert_within_ulp(found: Tree, expected: Tree, ulps: int = 4, what: str = "values") -> None:
    """The same structure, shapes and dtypes; floats at most so many representable numbers apart, others equal."""
    for name, ours, theirs in _pairs(found, expected, what):
        _assert_same_kind(name, ours, theirs)
        if ours.dtype.kind != "f":
            np.testing.assert_array_equal(ours, theirs, name)
            continue
        worst = int(np.max(ulps_apart(ours, theirs), initial=0))
        assert worst <= ulps, f"{name}: {worst} ulp apart, at most {ulps} are allowed"


def ulps_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many representable numbers lie between: floats order like their bits once the negative ones are flipped.

    Infinity and NaN have no neighbours: what is not the same is as far apart as can be. Raises TypeError for anything
    but floats of 16, 32 or 64 bits.
    """
    if a.dtype.kind != "f" or a.dtype.itemsize not in (2, 4, 8):
        raise TypeError(
            f"ulps_apart: expected floats of 16, 32 or 64 bits, got {a.dtype}; compare others by their bits"
        )
    _assert_same_kind("ulps_apart", a, b)
    size = a.dtype.itemsize
    least = -(2 ** (8 * size - 1))

    def ordered(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x).view(f"i{size}").astype(object if size == 8 else np.int64)
        return np.where(bits < 0, least - bits, bits)

    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.where(np.isfinite(a) & np.isfinite(b), np.abs(ordered(a) - ordered(b)), np.iinfo(np.int64).max)
    return np.where(same, 0, apart)


def assert_within_step(found: Tree, expected: Tree, what: str = "values", *, room: float = 1.0) -> None:
    """One float32 forward, gradient or update: rtol 1e-5, and atol 1e-6 of the largest finite number or of 1.

    The structure and the shapes are the same, infinities stand where they are expected, and what is no float is equal.
    ``expected`` may be of a wider dtype. ``room`` times as much is allowed.
    """
    for name, ours, theirs in _pairs(found, expected, what):
        assert ours.shape == theirs.shape, f"{name}: shape {ours.shape} where {theirs.shape} was expected"
        if theirs.dtype.kind != "f":
            np.testing.assert_array_equal(ours, theirs, name)
            continue
        size = float(np.max(np.abs(theirs), initial=1.0, where=np.isfinite(theirs)))
        np.testing.assert_allclose(ours, theirs, room * 1e-5, room * 1e-6 * size, err_msg=name)


def _pairs(found: Tree, expected: Tree, what: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The leaves of two trees of one structure, with their names."""
    assert_same_structure(found, expected, what)
    for i, (ours, theirs) in enumerate(zip(tree.leaves(found), tree.leaves(expected), strict=True)):
        yield f"{what}, leaf {i}", np.asarray(ours), np.asarray(theirs)


def _assert_same_kind(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    kinds = [(str(leaf.dtype), leaf.shape) for leaf in (ours, theirs)]
    assert kinds[0] == kinds[1], f"{name}: {kinds[0]} where {kinds[1]} was expected"


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
        assert re.search(match, str(error)), f"refused with {str(error)[:200]!r}, where {match!r} was expected"
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


class Keys(NamedTuple):
    """Keys (n, 2), in order: those that were drawn from, and those that were folded or split."""

    drawn: np.ndarray
    folded: np.ndarray


def keys_used(run: Callable[[Backend], Any]) -> Keys:
    """Every key that NumPy's ``random_bits``, ``random.fold_in`` and ``random.split`` are given while ``run(backend)``
    runs."""
    eager, fold_in = backends.load("numpy", debug=True), random.fold_in
    drawn, folded = [np.empty((0, 2), np.uint32)], [np.empty((0, 2), np.uint32)]

    def watched_bits(key: Array, shape: tuple[int, ...]) -> Array:
        drawn.append(np.asarray(key).reshape(-1, 2))
        return eager.random_bits(key, shape)

    def watched_fold(key: Array, index: Any) -> Array:
        folded.append(np.asarray(key).reshape(-1, 2))
        return fold_in(key, index)

    with patch.object(random, "fold_in", watched_fold):  # split calls it too
        run(replace(eager, random_bits=watched_bits))
    return Keys(np.concatenate(drawn), np.concatenate(folded))


def assert_keys_are_used_once(keys: Keys, family: int = 64) -> None:
    """No key is drawn from twice, and none that is drawn from is also folded or split.

    fold_in(key, i) are the two words whose sum modulo 2 is word i of a draw from the key: the same counter used twice.
    Keys that were derived by other means are found by the first ``family`` of their children.
    """
    drawn, folded = ([tuple(map(int, key)) for key in part] for part in keys)
    assert len(set(drawn)) == len(drawn), "a key was drawn from twice: the same numbers come again"
    children = {tuple(map(int, child)) for child in random.fold_in(keys.drawn, np.arange(family)).reshape(-1, 2)}
    both = set(drawn) & set(folded) or children & {*drawn, *folded}
    assert not both, "a key was drawn from and folded or split as well: one counter used twice"


def names_installed() -> tuple[str, ...]:
    """Of every backend that can be loaded here; the one over any namespace with array-api-strict."""
    return tuple("array_api:array_api_strict" if name == "array_api" else name for name in backends.available())


def installed() -> tuple[Backend, ...]:
    """Those backends."""
    return tuple(map(backends.load, names_installed()))


def compare_backends(
    fn: Callable[..., Tree], *arrays: Tree, on: str | Backend | tuple[str | Backend, ...] | None = None
) -> Comparison:
    """Run a function of arrays on every backend, eagerly and compiled, and tell how equal each pair of results is.

    fn       a module-level function, as ``backend.jit`` wants it
    arrays   NumPy arrays, or trees of them
    on       backends, or their names; one alone is enough; by default all that are installed

    Backends of one name are numbered. Raises ValueError where ``on`` is empty.
    """
    chosen = installed() if on is None else map(backends.load, (on,) if isinstance(on, str | Backend) else on)
    found: list[tuple[str, Tree]] = []
    seen: Counter[str] = Counter()
    for backend in chosen:
        seen[backend.name] += 1
        name = f"{backend.name} ({seen[backend.name]})" if seen[backend.name] > 1 else backend.name
        for way, run in (("eager", fn), ("compiled", backend.jit(fn))):
            given = tree.map(backend.asarray, arrays)
            found.append((f"{name} {way}", backend.to_numpy(run(*given))))
    if not found:
        raise ValueError("on: expected a backend or several, got none; leave it out for all that are installed")
    return Comparison(tuple(Pair(a[0], b[0], tier(a[1], b[1])) for a, b in combinations(found, 2)))


def tier(found: Tree, expected: Tree) -> str:
    """The best of "exact", "ulp", "step" and "none" that two results meet; ``minimodel.testing`` says what they are.

    Only floats of one dtype can be "ulp" or "step" apart: results of other structures, shapes, dtypes, integers or
    truth values are "none".
    """
    for name, check in (("exact", assert_same_bits), ("ulp", assert_within_ulp), ("step", _same_step)):
        try:
            check(found, expected)
        except AssertionError:
            continue
        return name
    return "none"


def _same_step(found: Tree, expected: Tree) -> None:
    for name, ours, theirs in _pairs(found, expected, "values"):
        _assert_same_kind(name, ours, theirs)
    assert_within_step(found, expected)


def _within(what: str, found: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> None:
    missed = np.abs(found - expected) - allowed
    if not (missed <= 0).all():
        at = np.unravel_index(np.argmax(np.where(np.isnan(missed), np.inf, missed)), missed.shape)
        place = tuple(map(int, at))
        raise AssertionError(
            f"{what} at {place}: {found[at]:.9g}, but the difference is {expected[at]:.9g} ± {allowed[at]:.2g}"
        )
