"""Search strategies: where the next candidates lie. Three pure functions each, and their numbers.

Candidate i of generation g is drawn under fold_in(fold_in(key, g), i): it depends on nothing else, so the size of
a population's chunks changes no result.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

from minimodel import random, tree
from minimodel.backends import Backend
from minimodel.network import Params
from minimodel.problem import nan_last
from minimodel.tree import Array, Tree, namespace


class Best(NamedTuple):
    """The state of the strategies here: the best candidate so far and its fitness."""

    params: Params
    fitness: Array  # shape ()


class Plan(NamedTuple):
    """What a search program is compiled for.

    init(params, fitness) -> state; ask(config, state, keys, backend) -> candidates with a leading population axis;
    tell(config, state, candidates, fitness) -> state. Lower fitness is better.
    """

    init: Callable[[Params, Array], Tree]
    ask: Callable[[Tree, Tree, Array, Backend], Params]
    tell: Callable[[Tree, Tree, Params, Array], Tree]


class Strategy(NamedTuple):
    """What ``random_search`` takes: a plan and its numbers, which are traced."""

    plan: Plan
    config: Tree


class Range(NamedTuple):
    """Numbers of ``uniform``."""

    low: Any
    high: Any


class Spread(NamedTuple):
    """Numbers of ``gaussian`` and ``local``."""

    sigma: Any


def keep_best(config: Tree, state: Best, candidates: Params, fitness: Array) -> Best:
    """θ ← argmin J over {θ, candidates}. NaN ranks last; of equals the first stays."""
    xp = namespace(fitness)
    fitness = nan_last(fitness)
    winner = xp.reshape(xp.argmin(fitness, axis=0), (1,))
    better = xp.min(fitness) < state.fitness

    def pick(old: Array, new: Array) -> Array:
        return xp.where(better, xp.reshape(xp.take(new, winner, axis=0), old.shape), old)

    return Best(tree.map(pick, state.params, candidates), xp.where(better, xp.min(fitness), state.fitness))


def uniform(low: Any = -1.0, high: Any = 1.0) -> Strategy:
    """Every parameter drawn afresh, uniformly from [low, high)."""
    return Strategy(Plan(Best, _uniform, keep_best), Range(low, high))


def _uniform(config: Range, state: Best, keys: Array, backend: Backend) -> Params:
    def stretch(u: Array) -> Array:
        u *= config.high - config.low
        u += config.low
        return u

    return tree.map(stretch, random.like(random.uniform, keys, state.params, backend=backend))


def gaussian(sigma: Any = sqrt(2)) -> Strategy:
    """Every layer drawn afresh from N(0, σ²/in), in being its number of inputs; σ = √2 draws like "he"."""
    return Strategy(Plan(Best, _gaussian, keep_best), Spread(sigma))


def _gaussian(config: Spread, state: Best, keys: Array, backend: Backend) -> Params:
    return _noise(config.sigma, state.params, keys, backend)


def local(sigma: Any = 0.15) -> Strategy:
    """θ + ε around the best θ so far, ε from N(0, σ²/in) in every layer: one σ fits layers of any width."""
    return Strategy(Plan(Best, _local, keep_best), Spread(sigma))


def _local(config: Spread, state: Best, keys: Array, backend: Backend) -> Params:
    def add(noise: Array, centre: Array) -> Array:
        noise += centre
        return noise

    return tree.map(add, _noise(config.sigma, state.params, keys, backend), state.params)


def _noise(sigma: Array, params: Params, keys: Array, backend: Backend) -> Params:
    """ε of shape (candidates, …) for every parameter, scaled by σ/√in."""

    def scale(noise: Array, inputs: int) -> Array:
        noise *= sigma * (1 / sqrt(inputs))
        return noise

    draws = random.like(random.normal, keys, params, backend=backend)
    sizes = [layer.weight.shape[-2] for layer in params]
    return tuple(tree.map(lambda leaf, n=n: scale(leaf, n), layer) for layer, n in zip(draws, sizes, strict=True))
