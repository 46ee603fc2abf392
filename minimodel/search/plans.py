"""Plans of search: where the next candidates lie. Lower fitness is better, and NaN is worse than any number.

A plan is pure functions over arrays. ``draw(keys, like, backend)`` gives each candidate, or mirrored pair of them, its
random numbers (n, …), by its own key alone; ``place(numbers, state, draws)`` the candidates themselves, with their axis
in front;
``tell(numbers, rate, state, draws, fitness, backend)`` what the plan knows after their evaluation, ``init`` what it
knows before. ``told`` keeps the best candidate besides, whatever the plan.
"""

from dataclasses import dataclass
from math import pi, sqrt
from typing import Any, NamedTuple, Protocol

from minimodel import random, tree
from minimodel.backends import Backend
from minimodel.network import Layer, LowRank, Mirrored, dense
from minimodel.problem import nan_last
from minimodel.search.space import ravel, scales, size, unravel
from minimodel.tree import Array, Tree


class State(NamedTuple):
    """The best candidate so far, of the form of the parameters, its fitness (), and what the plan knows."""

    best: Tree
    fitness: Array
    own: Tree


class Plan(Protocol):
    """What a search program is compiled for.

    law        of the numbers that are drawn: "normal", "uniform" or "cauchy"
    ranked     it learns from the order of a generation's candidates, of which there must be two
    mirrored   candidates 2j and 2j + 1 are made of the same draws, on either side of the centre
    points     the draws come from this quasi-random sequence, on the host
    forms      each candidate has parameters of its own in memory
    centre     what the candidates lie around; ``read`` is what is to be used
    width      how many numbers are drawn for a candidate, or pair
    """

    @property
    def ranked(self) -> bool: ...

    @property
    def mirrored(self) -> bool: ...

    @property
    def points(self) -> str | None: ...

    @property
    def law(self) -> str: ...

    @property
    def forms(self) -> bool: ...

    def width(self, like: Tree) -> int: ...

    def init(self, numbers: Any, params: Tree, backend: Backend) -> Tree: ...

    def draw(self, keys: Array, like: Tree, backend: Backend) -> Array: ...

    def place(self, numbers: Any, state: State, draws: Array) -> Tree: ...

    def tell(self, numbers: Any, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend) -> Tree: ...

    def read(self, state: State) -> Tree: ...

    def centre(self, state: State) -> Tree: ...


def told(plan: Plan, numbers: Any, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend) -> State:
    """θ ← argmin J over {θ, candidates}, of equals the first; and the plan's own next state."""
    xp, fitness = backend.xp, nan_last(fitness)
    winner = xp.reshape(xp.argmin(fitness, axis=0), (1,))
    found, least = chosen(plan, numbers, state, draws, winner), xp.min(fitness)
    better = least < state.fitness
    best = tree.map(lambda old, new: xp.where(better, new[0, ...], old), state.best, found)
    own = plan.tell(numbers, rate, state, draws, fitness, backend)
    return State(best, xp.where(better, least, state.fitness), own)


def twins(plan: Plan) -> int:
    """How many candidates are made of the same draws."""
    return 2 if plan.mirrored else 1


def chosen(plan: Plan, numbers: Any, state: State, draws: Array, which: Array) -> Tree:
    """The candidates of these numbers (k,), formed."""
    xp, each = tree.space(draws), twins(plan)
    found = formed(plan.place(numbers, state, xp.take(draws, which // each, axis=0)))
    if each == 1:
        return found
    places = each * xp.arange(which.shape[0], dtype=which.dtype) + which % each
    return tree.map(lambda leaf: xp.take(leaf, places, axis=0), found)


def formed(candidates: Tree) -> Tree:
    """The candidates, each with its own weights in memory."""
    return tuple(map(dense, candidates)) if is_params(candidates) else candidates


def is_params(values: Tree) -> bool:
    """Whether these are layers, not a vector."""
    return isinstance(values, tuple) and len(values) > 0 and isinstance(values[0], Layer | LowRank | Mirrored)


def unit(law: str, keys: Array, width: int, backend: Backend) -> Array:
    """``width`` draws under each key: "uniform" on [0, 1), "normal" N(0, 1) or "cauchy" tan(π(u − ½))."""
    if law == "normal":
        return random.normal(keys, (width,), backend=backend)
    u = random.uniform(keys, (width,), backend=backend)
    return backend.xp.tan(pi * (u - 0.5)) if law == "cauchy" else u


class Plain:
    """What most plans have in common: independent normal draws, and the best candidate is the answer."""

    law = "normal"
    ranked = False
    mirrored = False
    points: str | None = None
    forms = True

    def init(self, numbers: Any, params: Tree, backend: Backend) -> Tree:
        return None

    def width(self, like: Tree) -> int:
        return size(like)

    def draw(self, keys: Array, like: Tree, backend: Backend) -> Array:
        return unit(self.law, keys, self.width(like), backend)

    def tell(self, numbers: Any, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend) -> Tree:
        return state.own

    def read(self, state: State) -> Tree:
        return state.best

    def centre(self, state: State) -> Tree:
        return self.read(state)


class Spread(NamedTuple):
    """Numbers of ``Sampling``."""

    shift: Any
    scale: Any


@dataclass(frozen=True)
class Sampling(Plain):
    """Every candidate drawn afresh, from shift + scale·law, or around the best: θ + shift + scale·law.

    ``scaled``: within a layer of n inputs the scale is divided by √n.
    """

    law: str
    scaled: bool = True
    around_best: bool = False
    points: str | None = None

    def place(self, numbers: Spread, state: State, draws: Array) -> Tree:
        found = draws * (numbers.scale * scales(state.best) if self.scaled else numbers.scale)
        found += numbers.shift
        if self.around_best:
            found += ravel(state.best)
        return unravel(state.best, found)

    def centre(self, state: State) -> Tree:
        return state.best if self.around_best else tree.map(tree.space(state.best).zeros_like, state.best)


@dataclass(frozen=True)
class OneFifth(Plain):
    """The evolution strategy (1+1), and with P candidates (1+P): θ + σε, the best stays the parent.

    σ ← σ·exp((p − 1/5)·min(1, P/d)), p the part of the candidates that beat the parent, d = √(N + 1): with P = 1 as
    Kern et al., Learning probability distributions in continuous evolutionary algorithms (2004), algorithm 1.
    """

    def init(self, numbers: Any, params: Tree, backend: Backend) -> Array:
        return numbers

    def place(self, numbers: Any, state: State, draws: Array) -> Tree:
        return unravel(state.best, ravel(state.best) + state.own * scales(state.best) * draws)

    def tell(self, numbers: Any, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend) -> Array:
        xp, count = backend.xp, fitness.shape[0]
        success = xp.mean(xp.astype(fitness < state.fitness, fitness.dtype))
        return state.own * xp.exp((success - 0.2) * min(1.0, count / sqrt(size(state.best) + 1)))


class AnnealingNumbers(NamedTuple):
    """Numbers of ``Annealing``."""

    sigma: Any
    temperature: Any
    cooling: Any


class Chain(NamedTuple):
    """Where a chain of ``Annealing`` stands: its point (N,), the fitness there, the temperature."""

    point: Array
    fitness: Array
    temperature: Array


@dataclass(frozen=True)
class Annealing(Plain):
    """Simulated annealing: of the candidates x + σε the best is accepted with probability min(1, e^(−ΔJ/T)), T ← cT.

    With a population of 1 it is Metropolis' algorithm. Kirkpatrick et al., Optimization by simulated annealing (1983).
    """

    def init(self, numbers: AnnealingNumbers, params: Tree, backend: Backend) -> Chain:
        point = ravel(params)
        return Chain(point, backend.xp.full_like(point[0, ...], float("inf")), numbers.temperature)

    def width(self, like: Tree) -> int:
        return size(like) + 2  # e^(−½(ε² + ε′²)) of the last two is uniform on (0, 1)

    def place(self, numbers: AnnealingNumbers, state: State, draws: Array) -> Tree:
        return unravel(state.best, state.own.point + numbers.sigma * scales(state.best) * draws[:, :-2])

    def tell(
        self, numbers: AnnealingNumbers, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend
    ) -> Chain:
        xp, chain, least = backend.xp, state.own, backend.xp.min(fitness)
        row = xp.take(draws, xp.reshape(xp.argmin(fitness, axis=0), (1,)), axis=0)[0, ...]
        patience = 0.5 * chain.temperature * xp.sum(row[-2:] ** 2)  # −T·ln u
        current = xp.where(xp.isinf(chain.fitness), state.fitness, chain.fitness)  # at first that of the start
        accepted = least <= current + patience
        moved = chain.point + numbers.sigma * scales(state.best) * row[:-2]
        return Chain(
            xp.where(accepted, moved, chain.point),
            xp.where(accepted, least, current),
            chain.temperature * numbers.cooling,
        )

    def centre(self, state: State) -> Tree:
        return unravel(state.best, state.own.point)
