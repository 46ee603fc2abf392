"""A scan for NumPy: the step is recorded once and replayed for all that follows.

What a small step costs in NumPy is mostly Python: walking trees, looking up namespaces, allocating results. A record
is a list of calls of ufuncs on buffers that stay where they are, so that replaying it is little more than the
arithmetic. The source of the step does not know: while it is recorded its arrays are ``Recorded``, which takes part
in NumPy's own dispatch. A step that cannot be recorded (one that contains another scan, or looks at a value) just
runs as it is. All is done to the bit but sums, which BLAS adds as products with ones, several times faster.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from minimodel import tree
from minimodel.backends import array_api
from minimodel.backends.array_api import signature_of
from minimodel.backends.interface import scan_length
from minimodel.tree import Tree

WORTHWHILE = 4  # steps; a shorter scan is over before a record pays
REDUCTIONS = {np.sum: np.add, np.max: np.maximum, np.min: np.minimum, np.any: np.logical_or, np.all: np.logical_and}
SUMS: set[Any] = {np.sum, np.mean}
INTO = {np.clip, np.concatenate, np.round}  # functions that can write where they are told
CONSTANTS: set[Any] = {np.zeros_like, np.ones_like}
VIEWS = {np.reshape, np.moveaxis, np.broadcast_to, np.expand_dims, np.squeeze, np.matrix_transpose}


tapes: ContextVar[dict[Any, Any]] = ContextVar("tapes")  # of the program that is running


def jit(fn: Callable[..., Any], static: tuple[str, ...] = (), donate: tuple[str, ...] = ()) -> Callable[..., Any]:
    """``fn``, keeping the records of its scans from one call to the next for as long as it lives itself."""
    own: dict[Any, Any] = {}

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        token = tapes.set(own)
        try:
            return fn(*args, **kwargs)
        finally:
            tapes.reset(token)

    return call


def scan(step: Callable[..., Any], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
    """carry, y_i = step(carry, xs_i) for every i; the y_i stacked."""
    length, first = scan_length(xs), tree.map(lambda leaf: leaf[0, ...], xs)
    if any(isinstance(leaf, Recorded) for leaf in tree.leaves(carry, xs)):
        raise TypeError("a scan within a step is not recorded")
    if length < WORTHWHILE:
        return array_api.scan(np, False, step, carry, xs)
    kept, closure = tapes.get({}), [cell.cell_contents for cell in step.__closure__ or ()]
    found, signature, tape = kept.get(step.__code__, ([None], None, None))
    if same(found, closure) and signature == signature_of((carry, first)):
        for slot, leaf in zip(tree.leaves(tape and tape.carry), tree.leaves(tape and carry), strict=True):
            np.copyto(slot, leaf)
    else:
        tape = record(step, carry, first)
        kept[step.__code__] = closure, signature_of((carry, first)), tape
    return replay(tape, xs, length) if tape else array_api.scan(np, False, step, carry, xs)


def same(old: list[Any], new: list[Any]) -> bool:
    """Whether a step means what it meant: all that it refers to is the very same."""
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))


class Work(NamedTuple):
    """Calls that fill a buffer from others."""

    calls: list[Callable[[], Any]]
    target: np.ndarray
    sources: Any


class Tape:
    """The work of one step, and the buffers where its carry, its input and its results lie."""

    def __init__(self) -> None:
        self.work: list[Work] = []
        self.calls: list[Callable[[], Any]] = []  # of the work that is needed
        self.free: dict[Any, list[np.ndarray]] = defaultdict(list)  # buffers that no later call will read
        self.carry: Tree = None
        self.x: Tree = None
        self.ys: Tree = None

    def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> "Recorded":
        """The result of a function of arrays, in a buffer of its own that every replay fills anew."""
        plain, named = raw(args), {name: raw(value) for name, value in kwargs.items()}
        result = fn(*plain, **named)
        if result is None or isinstance(result, tuple) or "out" in kwargs:
            raise TypeError("only functions with one result, a new array, are recorded")
        result = np.asarray(result)
        if any(np.shares_memory(result, arg) for arg in plain if isinstance(arg, np.ndarray)):
            if fn not in VIEWS:
                raise TypeError("what may be changed by another name is not recorded")
            return Recorded(result, self, args)  # the buffer stays, and so does a view of it
        unused = self.free[result.shape, result.dtype]
        buffer = unused.pop() if unused else np.empty_like(result, order="C")
        buffer[...] = result
        self.work.append(Work(into(buffer, fn, plain, named), buffer, (plain, tuple(named.values()))))
        return Temporary(buffer, self)

    def finish(self, results: list[np.ndarray]) -> None:
        """Keep the calls that the results, or what they were made of, go back to, such as not a gradient beside a loss
        that alone is wanted."""
        needed, kept = owners(results), []
        for work in reversed(self.work):
            if owners(work.target) & needed:
                needed |= owners(work.sources)
                kept.append(work.calls)
        self.calls = [call for calls in reversed(kept) for call in calls]
        self.work.clear()  # with it goes what nothing needs


def owners(values: Any) -> set[int]:
    """In whose memory the arrays lie: their own, or that of those they are views of."""
    if isinstance(values, tuple | list):
        return set().union(*map(owners, values))
    if not isinstance(values, np.ndarray):
        return set()
    whole: Any = values
    while getattr(whole, "base", None) is not None:  # NumPy puts other objects between some views and their array
        whole = whole.base
    return {id(whole)}


def into(buffer: np.ndarray, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> list[Callable[[], Any]]:
    """The calls that write fn(*args, **kwargs) to a buffer, in the way that costs least."""
    x = args[0]
    if fn is np.astype:
        return [partial(buffer.__setitem__, ..., x)]
    if fn is np.take:  # the method is faster
        return [partial(x.take, *args[1:], **kwargs, out=buffer)]
    if (
        fn == np.maximum.reduce and set(kwargs) <= {"axis", "keepdims"} and kwargs["axis"] == -1 and x.ndim > 1
    ):  # NumPy is slow along short rows
        columns = np.empty((x.shape[-1], *x.shape[:-1]), x.dtype)
        result = buffer.reshape(x.shape[:-1])
        copy = partial(columns.__setitem__, ..., np.moveaxis(x, -1, 0))
        return [copy, partial(fn, columns, axis=0, out=result)]
    if fn is np.concatenate and kwargs == {"axis": -1}:
        pieces = np.split(buffer, np.cumsum([part.shape[-1] for part in x])[:-1], axis=-1)
        return [partial(piece.__setitem__, ..., part) for piece, part in zip(pieces, x, strict=True)]
    if isinstance(fn, np.ufunc):
        return [write(fn, args, kwargs, buffer)]
    if fn in INTO or isinstance(getattr(fn, "__self__", None), np.ufunc):
        return [partial(fn, *args, **kwargs, out=buffer)]
    return [lambda: buffer.__setitem__(..., fn(*args, **kwargs))]


def write(ufunc: np.ufunc, args: Any, kwargs: dict[str, Any], out: np.ndarray) -> Callable[[], Any]:
    """The call ufunc(*args, out). On small arrays a dot takes half as long as a matmul, and Python's numbers and names
    of arguments take as long as an addition."""
    if kwargs or ufunc in (np.maximum, np.minimum):  # these two want out by its name
        return partial(ufunc, *args, **kwargs, out=out)
    if ufunc is np.matmul and all(arg.ndim <= 2 for arg in args):
        return partial(args[0].dot, args[1], out)
    dtype = next(arg.dtype for arg in args if isinstance(arg, np.ndarray))
    kept = {int: "iuf", float: "f"}  # the kinds of arrays that a number of this type takes the dtype of
    return partial(ufunc, *(np.asarray(x, dtype) if dtype.kind in kept.get(type(x), "") else x for x in args), out)


class Recorded(NDArrayOperatorsMixin):
    """Stands for an array while a step is recorded."""

    def __init__(self, value: np.ndarray, tape: Tape, base: Any = None) -> None:
        self.value, self.tape, self.base = value, tape, base  # a view keeps alive what it is a view of

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    dtype = property(lambda self: self.value.dtype)
    mT = property(lambda self: Recorded(self.value.mT, self.tape, self))

    def __getitem__(self, index: Any) -> "Recorded":
        view = self.value[index]
        if not (isinstance(view, np.ndarray) and np.shares_memory(view, self.value)) and view.size:
            raise TypeError("only views are recorded")
        return Recorded(view, self.tape, self)

    def __array_namespace__(self, **kwargs: Any) -> Any:
        return np

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("a recorded array has no value yet")

    def __bool__(self) -> bool:
        raise TypeError("a recorded array has no value yet")

    def __array_function__(self, fn: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if fn in CONSTANTS:
            constant = fn(*raw(args), **kwargs)
            constant.setflags(write=False)  # a step that changes it cannot be recorded
            return constant
        x, at = args[0], kwargs.get("axis")
        if fn in SUMS and kwargs in ({"axis": -1}, {"axis": -2}) and x.dtype.kind == "f":
            ones = np.ones(x.shape[at], x.dtype)
            total = self.tape.call(np.matmul, *((x, ones) if at == -1 else (ones, x)))
            return total if fn is np.sum else total / x.shape[at]  # so that a mean of zeros and ones is exact
        if fn in REDUCTIONS:
            fn = REDUCTIONS[fn].reduce
            kwargs = {"axis": None, **kwargs}
        return self.tape.call(fn, *args, **kwargs)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> "Recorded":
        if method != "__call__":
            raise TypeError("only calls of ufuncs are recorded")
        target = out[0] if out else None
        if isinstance(target, np.ndarray) or any(isinstance(value, Recorded) for value in kwargs.values()):
            raise TypeError("neither a change of a constant is recorded, nor one of some entries")
        if target is None or target.ndim == 0:  # scalars are not changed in place, but get a new buffer
            return self.tape.call(ufunc, *inputs, **kwargs)
        call = write(ufunc, raw(inputs), kwargs, target.value)
        call()
        self.tape.work.append(Work([call], target.value, raw(inputs)))
        return target


class Temporary(Recorded):
    """A result; when nothing in the step refers to it any more, its buffer is free for later results."""

    def __del__(self) -> None:
        self.tape.free[self.value.shape, self.value.dtype].append(self.value)


def raw(values: Any) -> Any:
    """The arrays that stand behind recorded ones."""
    if isinstance(values, Recorded):
        return values.value
    return type(values)(map(raw, values)) if type(values) in (tuple, list) else values


def record(step: Callable[..., Any], carry: Tree, x: Tree) -> Tape | None:
    """Run the step on copies and keep what it did, ready to begin at the carry; None where it cannot be recorded."""
    tape = Tape()
    tape.carry, tape.x = (tree.map(np.array, values) for values in (carry, x))
    try:
        new, y = step(*(tree.map(lambda leaf: Recorded(leaf, tape), values) for values in (tape.carry, tape.x)))
    except Exception:
        return None
    slots = tree.leaves(tape.carry)
    moved = [(slot, raw(leaf)) for slot, leaf in zip(slots, tree.leaves(new), strict=True) if raw(leaf) is not slot]

    def held(result: Any) -> np.ndarray:
        """A copy of what is in a slot, since slots are about to be overwritten."""
        result = np.asarray(raw(result))
        if not any(np.shares_memory(result, slot) for slot, _ in moved):
            return result
        copy = np.array(result)
        tape.work.append(Work([partial(np.copyto, copy, result)], copy, result))
        return copy

    tape.ys = tree.map(held, y)
    for slot, source in [(s, held(result)) for s, result in moved]:
        tape.work.append(Work([partial(np.copyto, slot, source)], slot, source))
    tape.finish([*slots, *tree.leaves(tape.ys)])
    for slot, leaf in zip(slots, tree.leaves(carry), strict=True):
        np.copyto(slot, leaf)
    return tape


def replay(tape: Tape, xs: Tree, length: int) -> tuple[Tree, Tree]:
    """Every step. The carry is copied out: the next scan of the same step writes to the tape's own."""
    ys = tree.map(lambda y: np.empty((length, *y.shape), y.dtype), tape.ys)
    calls, inputs = tape.calls, list(zip(tree.leaves(tape.x), tree.leaves(xs), strict=True))
    outputs = list(zip(tree.leaves(ys), tree.leaves(tape.ys), strict=True))
    for i in range(length):
        for slot, leaf in inputs:
            slot[...] = leaf[i]
        for call in calls:
            call()
        for whole, part in outputs:
            whole[i] = part
    return tree.map(np.array, tape.carry), ys
