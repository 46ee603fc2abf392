"""Cases on backends: placed, called, timed, and checked to be what they seem before any figure is believed."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from minimodel import backends, tree
from minimodel.backends import Backend
from minimodel.bench.cases import CASES, TRIAD, Case, Size
from minimodel.tree import Array, Tree

Call = Callable[[], Tree]
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
PROBE_SECONDS, UNNOTICED = 0.02, 1e-3
PEAK_SECONDS, HOST_SIZE = 0.01, 2**24


class Placed(NamedTuple):
    """A program on a backend with its inputs there, and how long they took to get there."""

    call: Call
    to_device: float | None


def place(case: Case, size: Size, backend: Backend, host: tuple[Any, ...]) -> Placed:
    """Compiled when it is first called. Raises TypeError where the backend has no such dtype."""
    if not host:
        return Placed(partial(case.program, size=size, backend=backend), None)
    start = perf_counter()
    given = backend.synchronize(tree.map(partial(moved, backend, size.dtype), host))
    seconds = perf_counter() - start
    run = backend.jit(case.program, static=("size", "backend"))
    return Placed(partial(run, *given, size=size, backend=backend), seconds)


def moved(backend: Backend, dtype: str, leaf: np.ndarray) -> Array:
    """The leaf on the backend, in this dtype if it holds floats."""
    if leaf.dtype.kind != "f":
        return backend.asarray(leaf)
    if not hasattr(backend.xp, dtype):
        raise TypeError(f"it has no {dtype}")
    there = backend.asarray(leaf, getattr(backend.xp, dtype))
    if not str(there.dtype).endswith(dtype):
        raise TypeError(f"asked for {dtype} it gives {there.dtype}")
    return there


def seconds_of(call: Call, backend: Backend, loops: int = 1) -> float:
    """Of one call, its result computed to the end: the median of so many, which an interruption does not move."""
    found = []
    for _ in range(loops):
        start = perf_counter()
        backend.synchronize(call())
        found.append(perf_counter() - start)
    return median(found)


def tolerance(case: Case, size: Size) -> float:
    """How far results may be from the reference, as a part of its norm.

    exact     not at all
    step      a few roundings of the dtype, and those of sums in float32
    gradient  its root: where z rounds to the other side of relu's kink, which happens to a part ~ε of all units, the
              slope jumps, and the norm of the gradient changes by ~√ε
    run       the losses of a short run, which follow the same path a little apart
    """
    eps = EPS[size.dtype]
    step = 8 * eps + 64 * min(eps, EPS["float32"])
    return {"exact": 0.0, "step": step, "gradient": step**0.5, "run": 1e-3}[case.tier]


def difference(found: Tree, expected: Tree) -> float:
    """The greatest over the leaves of |found − expected|/|expected|, in the Euclidean norm."""
    pairs = zip(tree.leaves(found), tree.leaves(expected), strict=True)
    return max(leaf_difference(np.asarray(one), np.asarray(other)) for one, other in pairs)


def leaf_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """That of two arrays; infinite where it cannot be said."""
    if found.shape != expected.shape:
        return float("inf")
    if np.array_equal(found, expected):
        return 0.0
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    distance, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    return float(distance / size) if np.isfinite(distance) and size else float("inf")


class Waits(NamedTuple):
    """Seconds until ``synchronize`` returned, of fetching the result after it, and of fetching such arrays alone."""

    claimed: float
    fetched: float
    transfer: float

    @property
    def hidden(self) -> float:
        """Work that was left to do when all was said to be done."""
        return self.fetched - self.transfer

    @property
    def honest(self) -> bool:
        """Whether most of the work was done by then; what takes less than a millisecond cannot be told."""
        return self.hidden <= max(self.claimed, UNNOTICED)


def waits(call: Call, backend: Backend, trials: int = 5) -> Waits:
    """Medians. A backend that starts work and returns, or does none before its result is looked at, hides it here."""
    found = []
    for _ in range(trials):
        start = perf_counter()
        result = backend.synchronize(call())
        done = perf_counter()
        host = backend.to_numpy(result)
        fetched = perf_counter()
        copy = backend.synchronize(tree.map(backend.asarray, host))
        again = perf_counter()
        backend.to_numpy(copy)
        found.append((done - start, fetched - done, perf_counter() - again))
    return Waits(*map(median, zip(*found, strict=True)))


def check_synchronize(backend: Backend) -> None:
    """Refuse a backend whose ``synchronize`` does not wait, before it times anything.

    A chain of products is made longer until it takes long enough to tell; what is fetched of it is almost nothing.
    """
    length = 1
    while True:
        x = np.full((256, 256), 1 / 256, np.float32)
        call = partial(backend.jit(chain, static=("length",)), backend.asarray(x), length=length)
        backend.to_numpy(call())
        found = waits(call, backend)
        if found.claimed + found.fetched > PROBE_SECONDS or length >= 2**16:
            break
        length *= 4
    if not found.honest:
        raise ValueError(
            f"not synchronised: synchronize returns after {found.claimed * 1e3:.2f} ms, and fetching the result "
            f"then takes {found.fetched * 1e3:.2f} ms more"
        )


def chain(x: Array, *, length: int) -> Tree:
    """xⁿ; a corner of it, as a tree, which is what programs return."""
    y = x
    for _ in range(length):
        y = y @ x
    return y[:1, :1], (y[:1, 0],)


def peaks(backend: Backend, dtype: str, rng: np.random.Generator) -> dict[str, float]:
    """The best operations a second of a square product, and bytes a second of x + 2y on arrays that no cache holds.

    Sizes double until a call takes long enough; of products the best counts, of memory the largest.
    """
    rates = {"operations": 0.0, "bytes": 0.0}
    for n in (512, 1024, 2048, 4096, 8192):
        size = Size((n, n), n, None, dtype)
        best = best_seconds(CASES["matmul"], size, backend, rng)
        rates["operations"] = max(rates["operations"], CASES["matmul"].operations(size) / best)
        if best > PEAK_SECONDS:
            break
    for n in (2048, 4096, 8192, 16384):
        size = Size((n, n), n, None, dtype)
        best = best_seconds(TRIAD, size, backend, rng)
        rates["bytes"] = TRIAD.traffic(size) / best
        if best > PEAK_SECONDS:
            break
    return rates


def host_bytes_a_second() -> float:
    """The best rate of the processor's memory: z ← x + y by NumPy into an array that is there, counted as 3 streams."""
    x, y, z = (np.ones(HOST_SIZE, np.float32) for _ in range(3))
    best = min(seconds_of(partial(np.add, x, y, out=z), backends.load("numpy")) for _ in range(10))
    return 3 * x.nbytes / best


def best_seconds(case: Case, size: Size, backend: Backend, rng: np.random.Generator, tries: int = 10) -> float:
    """The least of a few calls, after one that compiles."""
    call = place(case, size, backend, case.inputs(size, rng)).call
    return min([seconds_of(call, backend) for _ in range(tries + 1)][1:])
