"""Search in a random subspace: θ = θ₀ + zB with few coordinates z, moved by any other plan."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

from minimodel import random
from minimodel.backends import Backend
from minimodel.search.plans import Plain, Plan, State, told
from minimodel.search.space import ravel, scales, size, unravel
from minimodel.tree import Array, Tree


class Within(NamedTuple):
    """State of ``Subspace``: θ₀ (N,), B (d, N), the state of the inner plan, and the key of the next basis."""

    origin: Array
    basis: Array
    inner: State
    key: Array
    step: Array


@dataclass(frozen=True)
class Subspace(Plain):
    """θ = θ₀ + zB, the rows of B of N(0, 1/d) times what ``space.scales`` says; the inner plan searches z ∈ ℝᵈ.

    ``redraw``: a new B in every generation, and θ₀ moved so that the centre of the inner plan stays where it is.
    Li et al., Measuring the intrinsic dimension of objective landscapes (2018), equation 2; Gressmann et al., Improving
    neural network training in low dimensional random bases (2020).
    """

    plan: Plan
    dimension: int
    seed: int
    redraw: bool = False

    @property
    def ranked(self) -> bool:  # type: ignore[override]
        """As the inner plan."""
        return self.plan.ranked

    @property
    def mirrored(self) -> bool:  # type: ignore[override]
        """As the inner plan."""
        return self.plan.mirrored

    def init(self, numbers: Any, params: Tree, backend: Backend) -> Within:
        xp, origin = backend.xp, ravel(params)
        if self.dimension > origin.shape[0]:
            raise ValueError(f"dimension: expected at most {origin.shape[0]}, all there are, got {self.dimension}")
        key = backend.asarray(random.key(self.seed))
        start = xp.zeros((self.dimension,), dtype=origin.dtype)
        inner = State(start, xp.full_like(origin[0, ...], float("inf")), self.plan.init(numbers, start, backend))
        step = xp.zeros((), dtype=xp.uint32)
        return Within(origin, self.basis(params, key, step, backend), inner, key, step)

    def basis(self, like: Tree, key: Array, step: Array, backend: Backend) -> Array:
        """B of that generation."""
        rows = random.normal(random.fold_in(key, step), (self.dimension, size(like)), backend=backend)
        return rows * (scales(like) * (1 / sqrt(self.dimension)))

    def width(self, like: Tree) -> int:
        return self.plan.width(ravel(like)[: self.dimension])

    def draw(self, keys: Array, like: Tree, backend: Backend) -> Array:
        return self.plan.draw(keys, backend.xp.zeros((self.dimension,), dtype=ravel(like).dtype), backend)

    def place(self, numbers: Any, state: State, draws: Array) -> Tree:
        own = state.own
        return unravel(state.best, own.origin + self.plan.place(numbers, own.inner, draws) @ own.basis)

    def tell(self, numbers: Any, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend) -> Within:
        own = state.own
        start = own.inner._replace(fitness=backend.xp.minimum(own.inner.fitness, state.fitness))  # what was known of it
        inner = told(self.plan, numbers, rate, start, draws, fitness, backend)
        if not self.redraw:
            return own._replace(inner=inner)
        step = own.step + backend.xp.ones_like(own.step)
        basis, centre = self.basis(state.best, own.key, step, backend), self.plan.centre(inner)
        return Within(own.origin + centre @ own.basis - centre @ basis, basis, inner, own.key, step)

    def read(self, state: State) -> Tree:
        inner = state.own.inner
        held = self.plan.read(inner)
        if held is inner.best:  # whose place is known, though the subspace may have moved on
            return state.best
        return unravel(state.best, state.own.origin + held @ state.own.basis)
