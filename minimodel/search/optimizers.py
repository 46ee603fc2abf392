"""Optimizers: two pure functions each, ``init`` and ``update``, and their numbers.

The functions are module-level and the numbers are traced, so a new number never recompiles a program. Every number
may be an array over the population. ``update`` consumes the parameters and the state it is given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from minimodel import tree
from minimodel.network import Params
from minimodel.search import schedules
from minimodel.tree import Array, Tree, align


class Rule(NamedTuple):
    """init(params) -> opt_state; update(config, rate, grads, opt_state, params) -> (params, opt_state)."""

    init: Callable[[Params], Tree]
    update: Callable[[Any, Array, Params, Tree, Params], tuple[Params, Tree]]


class Optimizer(NamedTuple):
    """What ``gradient_descent`` takes: a rule, its numbers, and the learning rate by step."""

    rule: Rule
    config: Tree
    schedule: schedules.Schedule


def _zeros(params: Params) -> Params:
    return tree.map(tree.namespace(params).zeros_like, params)


def _regularized(grads: Params, params: Params, decay: Array | None) -> Params:
    """g + λθ"""
    if decay is None:
        return grads
    return tree.map(lambda g, p: g + align(decay, p) * p, grads, params)


def _descend(rate: Array, params: Params, directions: Params) -> Params:
    """θ ← θ − η d"""

    def move(p: Array, d: Array) -> Array:
        p -= align(rate, p) * d
        return p

    return tree.map(move, params, directions)


class SGD(NamedTuple):
    """Numbers of ``sgd``."""

    weight_decay: Any


def _stateless(params: Params) -> None:
    return None


def _sgd(config: SGD, rate: Array, grads: Params, state: None, params: Params) -> tuple[Params, None]:
    return _descend(rate, params, _regularized(grads, params, config.weight_decay)), None


def sgd(learning_rate: Any, *, weight_decay: Any = None) -> Optimizer:
    """θ ← θ − η(g + λθ)"""
    return Optimizer(Rule(_stateless, _sgd), SGD(weight_decay), schedules.get(learning_rate))


class Momentum(NamedTuple):
    """Numbers of ``momentum`` and ``nesterov``."""

    momentum: Any
    weight_decay: Any


def _accumulate(velocity: Params, grads: Params, momentum: Array) -> Params:
    """v ← μv + g"""

    def add(v: Array, g: Array) -> Array:
        v *= align(momentum, v)
        v += g
        return v

    return tree.map(add, velocity, grads)


def _momentum(config: Momentum, rate: Array, grads: Params, velocity: Params, params: Params) -> tuple[Params, Params]:
    grads = _regularized(grads, params, config.weight_decay)
    velocity = _accumulate(velocity, grads, config.momentum)
    return _descend(rate, params, velocity), velocity


def momentum(learning_rate: Any, *, momentum: Any = 0.9, weight_decay: Any = None) -> Optimizer:
    """v ← μv + g + λθ, θ ← θ − ηv: the heavy ball as torch.optim.SGD has it, with no dampening.

    Sutskever et al., On the importance of initialization and momentum (2013), up to the place of η.
    """
    return Optimizer(Rule(_zeros, _momentum), Momentum(momentum, weight_decay), schedules.get(learning_rate))


def _nesterov(config: Momentum, rate: Array, grads: Params, velocity: Params, params: Params) -> tuple[Params, Params]:
    grads = _regularized(grads, params, config.weight_decay)
    velocity = _accumulate(velocity, grads, config.momentum)
    ahead = tree.map(lambda g, v: g + align(config.momentum, v) * v, grads, velocity)
    return _descend(rate, params, ahead), velocity


def nesterov(learning_rate: Any, *, momentum: Any = 0.9, weight_decay: Any = None) -> Optimizer:
    """v ← μv + g, θ ← θ − η(g + μv) with g the regularized gradient: torch.optim.SGD(nesterov=True), optax.sgd."""
    return Optimizer(Rule(_zeros, _nesterov), Momentum(momentum, weight_decay), schedules.get(learning_rate))


class Adam(NamedTuple):
    """Numbers of ``adam`` and ``adamw``."""

    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any


class Moments(NamedTuple):
    """State: the steps done, and the running means of g and g²."""

    step: Array  # float, shape ()
    mean: Params
    square: Params


def _moments(params: Params) -> Moments:
    xp = tree.namespace(params)
    return Moments(xp.zeros((), dtype=params[0].weight.dtype), _zeros(params), _zeros(params))


def _adam_direction(config: Adam, grads: Params, state: Moments) -> tuple[Params, Moments]:
    """m ← β₁m + (1 − β₁)g, s ← β₂s + (1 − β₂)g², d = (m/(1 − β₁ᵗ)) / (√(s/(1 − β₂ᵗ)) + ε)"""
    xp = tree.namespace(grads)
    step = state.step + xp.ones_like(state.step)

    def average(old: Array, new: Array, rate: Array) -> Array:
        old *= align(rate, old)
        old += (1 - align(rate, old)) * new
        return old

    mean = tree.map(lambda m, g: average(m, g, config.b1), state.mean, grads)
    square = tree.map(lambda s, g: average(s, g * g, config.b2), state.square, grads)
    fix1, fix2 = 1 - config.b1**step, 1 - config.b2**step

    def direction(m: Array, s: Array) -> Array:
        scale = xp.sqrt(s / align(fix2, s))
        scale += align(config.eps, s)
        return m / (align(fix1, m) * scale)

    return tree.map(direction, mean, square), Moments(xp.asarray(step), mean, square)


def _adam(config: Adam, rate: Array, grads: Params, state: Moments, params: Params) -> tuple[Params, Moments]:
    directions, state = _adam_direction(config, _regularized(grads, params, config.weight_decay), state)
    return _descend(rate, params, directions), state


def adam(learning_rate: Any, *, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = None) -> Optimizer:
    """θ ← θ − η m̂/(√ŝ + ε), ε outside the root and after the bias correction, decay added to the gradient: torch.

    Kingma, Ba: Adam (2015), algorithm 1.
    """
    return Optimizer(Rule(_moments, _adam), Adam(b1, b2, eps, weight_decay), schedules.get(learning_rate))


def _adamw(config: Adam, rate: Array, grads: Params, state: Moments, params: Params) -> tuple[Params, Moments]:
    directions, state = _adam_direction(config, grads, state)
    return _descend(rate, params, _regularized(directions, params, config.weight_decay)), state


def adamw(
    learning_rate: Any, *, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 1e-2
) -> Optimizer:
    """θ ← θ − η(m̂/(√ŝ + ε) + λθ): decay decoupled from the moments and scaled by η, as torch and optax have it.

    Loshchilov, Hutter: Decoupled weight decay regularization (2019).
    """
    return Optimizer(Rule(_moments, _adamw), Adam(b1, b2, eps, weight_decay), schedules.get(learning_rate))
