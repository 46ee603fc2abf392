"""Rules of optimizers: from the loss and its gradient to the next parameters.

A rule is three pure functions: ``init(params) -> state``, ``update(numbers, rate, evaluate, state, params) ->
(loss, params, state)``, where ``evaluate(params, away=None)`` gives the loss and the gradient at any parameters, and
``read(params, state)``, the parameters that are to be used. ``update`` consumes the parameters and the state.
Arrays of a state have the population's axis in front, or are numbers () that are the same for all members; only where
the batch is full may they be laid out otherwise.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from minimodel import tree
from minimodel.network import Params
from minimodel.search.parts import Part, next_step, nonzero, norm, zero, zeros
from minimodel.tree import Array, Tree, align


class Evaluate(Protocol):
    """The loss and the gradient at the parameters, or so far ``away`` from them, counted where they meet the data: from
    the integers that weights are rounded to, not from the weights, a small step from which is none or a whole level.
    """

    def __call__(self, params: Params, away: Params | None = None, /) -> tuple[Array, Params]: ...


class Rule(Protocol):
    """What ``gradient_descent`` drives.

    full_batch    it is shown all rows in every step
    elementwise   it does not look at the shapes of the weights, which may then be one flat array
    """

    @property
    def full_batch(self) -> bool: ...

    @property
    def elementwise(self) -> bool: ...

    def init(self, params: Params) -> Tree: ...

    def update(
        self, numbers: Any, rate: Array, evaluate: Evaluate, state: Tree, params: Params
    ) -> tuple[Array, Params, Tree]: ...

    def read(self, params: Params, state: Tree) -> Params: ...


@dataclass(frozen=True)
class Chain:
    """d through every part, then θ ← θ − η d."""

    parts: tuple[Part, ...]
    full_batch = False

    @property
    def elementwise(self) -> bool:
        return all(part.elementwise for part in self.parts)

    def init(self, params: Params) -> Tree:
        return tuple(part.init(params) for part in self.parts)

    def update(
        self, numbers: Any, rate: Array, evaluate: Evaluate, state: Tree, params: Params
    ) -> tuple[Array, Params, Tree]:
        loss, d = evaluate(params)
        return loss, *self.step(numbers, rate, d, state, params)

    def step(self, numbers: Any, rate: Array, d: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        states = []
        for part, own, old in zip(self.parts, numbers, state, strict=True):
            d, new = part.update(own, d, old, params)
            states.append(new)

        def move(p: Array, d: Array) -> Array:
            p -= align(rate, p) * d
            return p

        return tree.map(move, params, d), tuple(states)

    def read(self, params: Params, state: Tree) -> Params:
        return params


@dataclass(frozen=True)
class SharpnessAware:
    """The step of ``chain`` with the gradient at θ + ρ g/‖g‖, the worst place nearby.

    Foret et al., Sharpness-aware minimization (2021), equations 2 and 3; the loss reported is that at θ. Where θ is
    rounded, ρ g/‖g‖ is added to what it is rounded to (Liu et al., Sharpness-aware quantization, 2021).
    """

    chain: Chain
    full_batch = False

    @property
    def elementwise(self) -> bool:
        return self.chain.elementwise

    def init(self, params: Params) -> Tree:
        return self.chain.init(params)

    def update(
        self, numbers: Any, rate: Array, evaluate: Evaluate, state: Tree, params: Params
    ) -> tuple[Array, Params, Tree]:
        rho, inner = numbers
        loss, g = evaluate(params)
        length = rho / nonzero(norm(g, loss))
        d = evaluate(params, tree.map(lambda g: align(length, g) * g, g))[1]
        return loss, *self.chain.step(inner, rate, d, state, params)

    def read(self, params: Params, state: Tree) -> Params:
        return params


class Average(NamedTuple):
    """State of ``Averaged``."""

    step: Array
    mean: Params
    inner: Tree


@dataclass(frozen=True)
class Averaged:
    """Another rule, of whose parameters the exponential moving average is used:

    θ̄ ← θ̄ + (1 − β)/(1 − βᵗ)·(θ − θ̄), the bias-corrected average of θ₁ … θ_t (``optax.ema``).
    """

    rule: Chain | SharpnessAware
    full_batch = False

    @property
    def elementwise(self) -> bool:
        return self.rule.elementwise

    def init(self, params: Params) -> Average:
        copies = tree.map(lambda p: tree.namespace(p).asarray(p, copy=True), params)
        return Average(zero(params), copies, self.rule.init(params))

    def update(
        self, numbers: Any, rate: Array, evaluate: Evaluate, state: Average, params: Params
    ) -> tuple[Array, Params, Average]:
        beta, inner = numbers
        loss, params, after = self.rule.update(inner, rate, evaluate, state.inner, params)
        step = next_step(state.step)
        part = (1 - beta) / (1 - beta**step)

        def follow(mean: Array, p: Array) -> Array:
            mean += align(part, p) * (p - mean)
            return mean

        return loss, params, Average(step, tree.map(follow, state.mean, params), after)

    def read(self, params: Params, state: Average) -> Params:
        return state.mean


class Movement(NamedTuple):
    """State of ``Tracked``."""

    total: Params
    inner: Tree


@dataclass(frozen=True)
class Tracked:
    """Another rule, with −Σ θ∘∂J/∂θ over the steps in its state."""

    rule: Rule
    full_batch = False

    @property
    def elementwise(self) -> bool:
        return self.rule.elementwise

    def init(self, params: Params) -> Movement:
        return Movement(zeros(params), self.rule.init(params))

    def update(
        self, numbers: Any, rate: Array, evaluate: Evaluate, state: Movement, params: Params
    ) -> tuple[Array, Params, Movement]:
        total = state.total

        def watched(at: Params, away: Params | None = None) -> tuple[Array, Params]:
            nonlocal total
            loss, g = evaluate(at, away)
            if away is None:  # not where a sharpness-aware rule looks as well
                total = tree.map(subtract_product, total, at, g)
            return loss, g

        loss, params, inner = self.rule.update(numbers, rate, watched, state.inner, params)
        return loss, params, Movement(total, inner)

    def read(self, params: Params, state: Movement) -> Params:
        return self.rule.read(params, state.inner)


def subtract_product(total: Array, p: Array, g: Array) -> Array:
    """total ← total − p∘g"""
    total -= p * g
    return total
