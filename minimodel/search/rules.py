"""Rules of optimizers: from the loss and its gradient to the next parameters.

A rule is three pure functions: ``init(params) -> state``, ``update(numbers, rate, evaluate, state, params) ->
(loss, params, state)``, where ``evaluate`` gives the loss and the gradient at any parameters, and ``read(params,
state)``, the parameters that are to be used. ``update`` consumes the parameters and the state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from minimodel import tree
from minimodel.network import Params
from minimodel.search.parts import Part, next_step, nonzero, norm, zero
from minimodel.tree import Array, Tree, align

Evaluate = Callable[[Params], tuple[Array, Params]]


class Rule(Protocol):
    """What ``gradient_descent`` drives; a rule with ``full_batch`` is shown all rows in every step."""

    @property
    def full_batch(self) -> bool: ...

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

    Foret et al., Sharpness-aware minimization (2021), equations 2 and 3; the loss reported is that at θ.
    """

    chain: Chain
    full_batch = False

    def init(self, params: Params) -> Tree:
        return self.chain.init(params)

    def update(
        self, numbers: Any, rate: Array, evaluate: Evaluate, state: Tree, params: Params
    ) -> tuple[Array, Params, Tree]:
        rho, inner = numbers
        loss, g = evaluate(params)
        length = rho / nonzero(norm(g, loss))
        d = evaluate(tree.map(lambda p, g: p + align(length, p) * g, params, g))[1]
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
