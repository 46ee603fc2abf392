"""Hypothesis strategies for what this package computes with.

Numbers are quarters from −4 to 4, which shrink to 0 and print in full; sizes are few, so that a backend that compiles
does so once for each, not for each example. ``law`` makes a property that never fails for its speed.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minimodel import losses as loss_functions
from minimodel import qarray, random
from minimodel.activations import ACTIVATIONS
from minimodel.losses import Loss
from minimodel.network import Layer, Network, Params
from minimodel.qarray import QArray
from minimodel.search import optimizers as makers
from minimodel.search import schedules as rates
from minimodel.search import strategies as searches
from minimodel.search.optimizers import Optimizer

settings.register_profile(
    "minimodel-testing",
    deadline=None,  # a compiling backend is slow on its first example
    derandomize=True,
    max_examples=20,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
CALM = settings.get_profile("minimodel-testing")

SIZES = ((3, 2), (2, 4, 3), (3, 4, 2, 2))
SHAPES = ((), (0,), (3,), (2, 3), (2, 0, 3), (2, 3, 4))
ROWS, MEMBERS = 5, 3
OFFSET = 0.0371  # away from kinks, which are at round numbers

seeds = st.integers(0, 2**64 - 1)
numbers = st.integers(-16, 16).map(lambda n: n / 4)
populations = st.sampled_from((None, MEMBERS))


def law(examples: int = 20, **drawn: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """``given(**drawn)`` with so many examples: the same on every run, no deadline, no health checks.

    ``check.again(shrink)`` is another of the kind, for who only asks whether it fails, or with a seed of its own.
    """

    def decorate(check: Any) -> Any:
        def again(shrink: bool) -> Any:
            phases = CALM.phases if shrink else [Phase.generate]
            return settings(CALM, max_examples=examples, phases=phases)(given(**drawn)(check))

        drawing = again(shrink=True)
        drawing.again = again
        return drawing

    return decorate


def arrays(
    shape: tuple[int, ...], dtype: Any = np.float32, elements: st.SearchStrategy[float] = numbers
) -> st.SearchStrategy[np.ndarray]:
    """Floats are of ``elements``; of other dtypes any number at all."""
    kind = np.dtype(dtype)
    return hnp.arrays(kind, shape, elements=elements if kind.kind == "f" else hnp.from_dtype(kind))


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda x: np.array(x, order="C"),
    "Fortran": lambda x: np.array(x, order="F"),
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "negative": lambda x: np.flip(np.flip(x).copy()),
}


@st.composite
def layouts(draw: Any, dtype: Any = np.float32) -> np.ndarray:
    """Arrays as they may lie in memory: C, Fortran, every second element, negative strides; also empty, and 0-d."""
    x = draw(arrays(draw(st.sampled_from(SHAPES)), dtype))
    return LAYOUTS[draw(st.sampled_from(tuple(LAYOUTS)))](x)


def networks(activations: tuple[str, ...] = tuple(ACTIVATIONS)) -> st.SearchStrategy[Network]:
    """Small networks of one to three layers."""
    return st.builds(
        Network,
        st.sampled_from(SIZES),
        st.sampled_from(activations),
        st.sampled_from(("he", "glorot")),
    )


def lead(population: int | None) -> tuple[int, ...]:
    """The axes of a population."""
    return () if population is None else (population,)


@st.composite
def params(draw: Any, network: Network, population: int | None = None, dtype: Any = np.float32) -> Params:
    """Parameters that fit a network, with the axis of a population or without."""
    shapes = [(lead(population) + shape, lead(population) + shape[1:]) for shape in network.shapes]
    return tuple(Layer(draw(arrays(weight, dtype)), draw(arrays(bias, dtype))) for weight, bias in shapes)


def layers() -> st.SearchStrategy[Layer]:
    """The first layer of small networks."""
    return networks().flatmap(params).map(lambda several: several[0])


def batches(
    network: Network, population: int | None = None, dtype: Any = np.float32, rows: int = ROWS
) -> st.SearchStrategy[np.ndarray]:
    """Inputs (*population, rows, in)."""
    return arrays((*lead(population), rows, network.layer_sizes[0]), dtype)


def targets(
    loss: str | Loss, outputs: int, population: int | None = None, dtype: Any = np.float32, rows: int = ROWS
) -> st.SearchStrategy[np.ndarray]:
    """What the loss takes: labels; quantities; or, of a loss that is neither, numbers from 0 to 1."""
    loss, shape = loss_functions.get(loss), (*lead(population), rows)
    if loss.labels:
        return hnp.arrays(np.int32, shape, elements=st.integers(0, outputs - 1))
    return arrays((*shape, outputs), dtype, numbers if loss.scaled else st.integers(0, 4).map(lambda n: n / 4))


def losses() -> st.SearchStrategy[Loss]:
    """The losses that are there."""
    return st.sampled_from(loss_functions.NAMES).map(loss_functions.get)


def keys(population: int | None = None) -> st.SearchStrategy[np.ndarray]:
    """Keys (*population, 2) of any seeds."""
    if population is None:
        return seeds.map(random.key)
    return st.lists(seeds, min_size=population, max_size=population).map(
        lambda several: random.key(np.asarray(several, np.uint64))
    )


def masks(shape: tuple[int, ...], kept: int | None = None) -> st.SearchStrategy[np.ndarray]:
    """A mask that keeps exactly so many, or any number. Raises ValueError for more than there are, or less than 0."""
    size = prod(shape)
    if kept is not None and not 0 <= kept <= size:
        raise ValueError(f"kept: expected 0 to {size}, got {kept}")

    def marked(drawn: tuple[int, list[int]]) -> np.ndarray:
        found = np.zeros(size, bool)
        found[drawn[1][: drawn[0]]] = True
        return found.reshape(shape)

    count = st.integers(0, size) if kept is None else st.just(kept)
    return st.tuples(count, st.permutations(range(size))).map(marked)


@st.composite
def quantized(
    draw: Any,
    shape: tuple[int, int] = (3, 2),
    bits: int = 4,
    scheme: str = "symmetric",
    population: int | None = None,
    granularity: str | int = "tensor",
) -> QArray:
    """Integers within their range, scales that are powers of two, and where the scheme has them zero points.

    granularity   what shares a scale: "tensor", "channel" (an output), or in so many groups the inputs of each output
    """
    low, high = qarray.levels(bits, scheme)
    inner = st.sampled_from((low, 0, high)) if bits == 1 else st.integers(low, high)
    shared = {"tensor": (1, 1), "channel": (1, shape[1])}
    scales = (*lead(population), *(shared[granularity] if isinstance(granularity, str) else (granularity, shape[1])))
    exponents = draw(hnp.arrays(np.int8, scales, elements=st.integers(-4, 4)))
    zero = st.integers(low, high) if scheme == "asymmetric" else st.just(0)
    return QArray(
        draw(hnp.arrays(np.int8, (*lead(population), *shape), elements=inner)),
        np.exp2(exponents.astype(np.float32)),
        draw(hnp.arrays(np.int8, scales, elements=zero)),
    )


def schedules() -> st.SearchStrategy[Any]:
    """Learning rates by step, from 0 to 0.1."""
    rate = st.sampled_from((0.1, 0.05, 0.01))
    return st.one_of(
        st.builds(rates.constant, rate),
        st.builds(rates.cosine, rate, warmup=st.sampled_from((0.0, 0.25))),
        st.builds(rates.one_cycle, rate),
        st.builds(rates.step, rate, st.integers(1, 3)),
        st.builds(rates.exponential, rate, st.integers(1, 3).map(float)),
        st.builds(rates.polynomial, rate, power=st.sampled_from((1.0, 2.0))),
    )


def optimizers() -> st.SearchStrategy[Optimizer]:
    """Any, with numbers within their range; L-BFGS among them, which sees all rows in every step."""
    part = st.sampled_from((0.0, 0.5, 0.9))
    options = {
        "weight_decay": st.sampled_from((None, 0.0, 0.1)),
        "l1": st.sampled_from((None, 0.01)),
        "clip_norm": st.sampled_from((None, 1.0)),
        "average": st.sampled_from((None, 0.5)),
        "sharpness": st.sampled_from((None, 0.05)),
    }
    several = (makers.sgd, makers.adagrad, makers.rmsprop, makers.adam, makers.adamw, makers.amsgrad, makers.nadam)
    return st.one_of(
        *(st.builds(make, schedules(), **options) for make in several),
        *(st.builds(make, schedules(), momentum=part, **options) for make in (makers.momentum, makers.nesterov)),
        st.builds(makers.lion, schedules(), b1=part, b2=part, **options),
        st.builds(
            makers.rmsprop, schedules(), centered=st.just(True), momentum=st.sampled_from((None, 0.9)), **options
        ),
        st.builds(makers.lbfgs, memory=st.integers(1, 3), weight_decay=options["weight_decay"]),
    )


def searches_of(sigmas: tuple[float, ...] = (0.1, 0.5)) -> st.SearchStrategy[searches.Strategy]:
    """Strategies of random search."""
    makes = (searches.hill_climbing, searches.one_plus_one, searches.snes, searches.open_es, searches.sep_cma_es)
    return st.builds(lambda make, sigma: make(sigma), st.sampled_from(makes), st.sampled_from(sigmas))
