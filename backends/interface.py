"""The array-backend interface: everything the algorithms need beyond the Array-API standard."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minimodel import tree
from minimodel.tree import Array, Tree


@dataclass(frozen=True, eq=False)
class Backend:
    """A frozen record of functions. Compared and hashed by identity, so it can be a static jit argument.

    name             as given to ``load``
    xp               the Array-API namespace
    devices          the devices it uses, in words; for people and run records
    asarray          (x, dtype=None, copy=True) -> array; a copy, never an alias of host memory, but with copy=False,
                     for an array that nobody else will write to
    to_numpy         (tree) -> tree of NumPy arrays; the only way from the device to the host
    synchronize      (tree) -> the same tree, once it has been computed
    packs            networks, with their population, of up to so many parameters are trained as one array: where
                     a call costs more than a copy
    keeps            parameters of a population that are trained at once, for an epoch: on a processor as many as stay
                     in the cache; elsewhere all
    room             floats that are worked on at once where work comes in parts: as many as stay in the cache
    columns          candidates of a search are evaluated with their rows along the last axis, where that is faster
    jit              (fn, static=(), donate=()) -> fn compiled; arguments are named, fn is a module-level
                     function (results are cached by it), donated arguments are consumed, and NumPy arrays among
                     the others come over by themselves, which costs less than asarray: leave them as they are
    scan             (step, carry, xs) -> (carry, ys); step(carry, x) -> (carry, y) over the first axis of xs,
                     which must not be empty
    spread           (tree, axis) -> the tree with that axis shared out over the devices as far as it divides, or with
                     None, all of it on each of them; the values are the same
    take             (x, rows) -> x[rows] for an integer array of any shape, whose numbers must be rows of x
    random_bits      (key, shape) -> uint32 words of threefry2x32; key (*population, 2) -> (*population, *shape)
    order            (words) -> int32: what sorts uint32 words along the last axis, of equal ones the first first
    integer_matmul   (a, b) -> exact int32 product of int8 arrays
    largest          (arrays (…, n_i), k (…)) -> masks: the k largest of all arrays together, for each row of the
                     leading axes; of equal numbers those of the earlier array, and in it the first
    """

    name: str
    xp: Any
    devices: tuple[str, ...]
    asarray: Callable[..., Array]
    to_numpy: Callable[[Tree], Tree]
    synchronize: Callable[[Tree], Tree]
    packs: int
    keeps: int
    room: int
    columns: bool
    jit: Callable[..., Callable[..., Any]]
    scan: Callable[[Callable[..., Any], Tree, Tree], tuple[Tree, Tree]]
    spread: Callable[[Tree, int | None], Tree]
    take: Callable[[Array, Array], Array]
    random_bits: Callable[[Array, tuple[int, ...]], Array]
    order: Callable[[Array], Array]
    integer_matmul: Callable[[Array, Array], Array]
    largest: Callable[[tuple[Array, ...], Array], tuple[Array, ...]]


MAX_INNER = (2**31 - 1) // 2**14  # products of int8 are at most 2^14 and the sum must fit an int32


def check_integer_matmul(a: Array, b: Array) -> None:
    """Refuse what could not be exact: anything but int8, or an inner axis whose sum may leave int32."""
    if any(str(dtype).rpartition(".")[2] != "int8" for dtype in (a.dtype, b.dtype)):
        raise TypeError(f"integer_matmul: expected int8 arrays, got {a.dtype} and {b.dtype}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"integer_matmul: expected (…, m, k) and (…, k, n), got {a.shape} and {b.shape}")
    if a.shape[-1] > MAX_INNER:
        raise ValueError(f"integer_matmul: the inner axis must be at most {MAX_INNER}, got {a.shape[-1]}; split it")


def scan_length(xs: Tree) -> int:
    """The common length of the first axes of ``xs``; a scan of length 0 is refused on every backend."""
    lengths = {leaf.shape[0] for leaf in tree.leaves(xs)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"scan: expected xs with one common length of at least 1, got lengths {sorted(lengths)}")
    return int(lengths.pop())
