"""Evolution strategies: plans that move a distribution, not a single point, by the ranks of the candidates.

Every one uses fitness through its order alone, so a monotone transformation of it changes nothing. Candidates of one
fitness share their utilities; where all are equal nothing is learned from them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, sqrt
from typing import Any, NamedTuple

import numpy as np

from minimodel import tree
from minimodel.backends import Backend
from minimodel.network import Layer, Mirrored, both
from minimodel.search.plans import Plain, State, is_params
from minimodel.search.rules import Averaged, Chain
from minimodel.search.space import ravel, scales, size, unravel
from minimodel.tree import Array, Tree


def utilities(fitness: Array, table: Callable[[int], np.ndarray], xp: Any) -> Array:
    """What each candidate weighs: ``table(P)[rank]``, rank 0 being the best; equal ones share."""
    ranked = table(fitness.shape[0])
    sums = np.concatenate([[0], np.cumsum(ranked)])
    ordered = xp.sort(fitness)
    first, stop = (xp.searchsorted(ordered, fitness, side=side) for side in ("left", "right"))
    alone, sums = (xp.asarray(values, dtype=fitness.dtype) for values in (ranked, sums))
    shared = (xp.take(sums, stop, axis=0) - xp.take(sums, first, axis=0)) / xp.astype(stop - first, fitness.dtype)
    return xp.where(stop - first == 1, xp.take(alone, first, axis=0), shared)


def centred(count: int) -> np.ndarray:
    """−½ for the best to ½ for the worst: what descends. Salimans et al. (2017), section 2.1."""
    return (np.arange(count) - (count - 1) / 2) / max(1, count - 1)


def recombination(count: int) -> np.ndarray:
    """log(μ + 1) − log i for the best μ = P/2, scaled to a sum of 1. Ros, Hansen (2008), equation 2."""
    weights = np.maximum(0, log(max(1, count // 2) + 1) - np.log(np.arange(1, count + 1)))
    return np.asarray(weights / weights.sum())


def natural(count: int) -> np.ndarray:
    """max(0, log(P/2 + 1) − log i), scaled to a sum of 1, less 1/P. Wierstra et al. (2014), section 3.1."""
    weights = np.maximum(0, log(count / 2 + 1) - np.log(np.arange(1, count + 1)))
    return np.asarray(weights / weights.sum() - 1 / count)


def of_best(part: float) -> Callable[[int], np.ndarray]:
    """1/μ for the best μ, that part of all."""

    def table(count: int) -> np.ndarray:
        chosen = min(max(1, round(part * count)), max(1, count - 1))  # all of them would move nothing
        return np.asarray((np.arange(count) < chosen) / chosen)

    return table


class Restarting(NamedTuple):
    """State of ``MuLambda``: its mean, its σ, where it starts anew, its best fitness since, how long that stood."""

    mean: Array
    sigma: Array
    start: Array
    fitness: Array
    waited: Array


class MuLambdaNumbers(NamedTuple):
    """Numbers of ``MuLambda``."""

    sigma: Any
    patience: Any


@dataclass(frozen=True)
class MuLambda(Plain):
    """(μ/μ, λ): m ← mean of the best μ candidates m + σᵢε, σᵢ = σ·e^(τη), σ ← their geometric mean, τ = 1/√(2N).

    After ``patience`` generations without a better candidate it starts anew near where it began.
    Beyer, Schwefel: Evolution strategies, a comprehensive introduction (2002), sections 3 and 4.
    """

    part: float
    ranked = True

    def init(self, numbers: MuLambdaNumbers, params: Tree, backend: Backend) -> Restarting:
        xp, mean = backend.xp, ravel(params)
        inf = xp.full_like(mean[0, ...], float("inf"))
        return Restarting(mean, numbers.sigma, mean, inf, xp.zeros_like(inf))

    def width(self, like: Tree) -> int:
        return size(like) + 1  # the last is η

    def place(self, numbers: MuLambdaNumbers, state: State, draws: Array) -> Tree:
        return unravel(state.best, self.points_of(state, draws))

    def points_of(self, state: State, draws: Array) -> Array:
        """m + σᵢε, (n, N)."""
        own = self.sigma(state, draws[:, -1:]) * scales(state.best)
        own *= draws[:, :-1]
        own += state.own.mean
        return own

    def sigma(self, state: State, eta: Array) -> Array:
        """σ·e^(τη)"""
        return state.own.sigma * tree.space(eta).exp(eta * (1 / sqrt(2 * size(state.best))))

    def tell(
        self, numbers: MuLambdaNumbers, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend
    ) -> Restarting:
        xp, own, weights = backend.xp, state.own, utilities(fitness, of_best(self.part), backend.xp)
        learned = xp.any(fitness != fitness[0, ...])  # else equal weights would move the mean at random
        mean = xp.where(learned, weights @ self.points_of(state, draws), own.mean)
        sigma = xp.where(learned, self.sigma(state, weights @ draws[:, -1]), own.sigma)
        least = xp.min(fitness)
        better = least < own.fitness
        waited = xp.where(better, xp.zeros_like(own.waited), own.waited + 1)
        anew = waited >= numbers.patience
        start = own.start + numbers.sigma * scales(state.best) * draws[0, :-1]
        return Restarting(
            xp.where(anew, start, mean),
            xp.where(anew, numbers.sigma, sigma),
            own.start,
            xp.where(anew, xp.full_like(least, float("inf")), xp.where(better, least, own.fitness)),
            xp.where(anew, xp.zeros_like(waited), waited),
        )

    def centre(self, state: State) -> Tree:
        return unravel(state.best, state.own.mean)


class Centre(NamedTuple):
    """State of ``Gradient``: the mean as layers, and the optimizer's state."""

    mean: Tree
    opt_state: Tree


class GradientNumbers(NamedTuple):
    """Numbers of ``Gradient``."""

    sigma: Any
    optimizer: Any


@dataclass(frozen=True)
class Gradient(Plain):
    """θ ← step(g), g = 1/(Pσ) Σ uᵢεᵢ, u the centred ranks, step that of any optimizer of gradients; candidates θ + σε.

    In a layer of so many inputs σ stands for σ/√in, in both places.
    Salimans et al., Evolution strategies as a scalable alternative to reinforcement learning (2017), algorithm 1.
    """

    rule: Chain | Averaged
    mirrored: bool = True
    ranked = True

    def init(self, numbers: GradientNumbers, params: Tree, backend: Backend) -> Centre:
        mean = tree.map(lambda leaf: backend.xp.asarray(leaf, copy=True), as_layers(params))
        return Centre(mean, self.rule.init(mean))

    def place(self, numbers: GradientNumbers, state: State, draws: Array) -> Tree:
        changes, mean = draws * (numbers.sigma * scales(state.best)), self.centre(state)
        if not self.mirrored:
            changes += ravel(mean)
            return unravel(state.best, changes)
        changes = unravel(state.best, changes)
        if not is_params(mean):
            return mean + both(changes)
        first = Mirrored(mean[0].weight, mean[0].bias, changes[0])
        return (first, *tree.map(lambda leaf, change: leaf + both(change), mean[1:], changes[1:]))

    def gradient(self, numbers: GradientNumbers, state: State, draws: Array, weights: Array) -> Tree:
        """Σ wᵢεᵢ/σ, as layers; w are the ranks over P, of a pair their difference."""
        return as_layers(unravel(state.best, (weights @ draws) / (numbers.sigma * scales(state.best))))

    def tell(
        self, numbers: GradientNumbers, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend
    ) -> Centre:
        weights = utilities(fitness, centred, backend.xp) * (1 / fitness.shape[0])
        d = self.gradient(numbers, state, draws, weights[::2] - weights[1::2] if self.mirrored else weights)
        own = tree.map(lambda leaf: backend.xp.asarray(leaf, copy=True), state.own)  # the rule consumes them
        _, mean, opt_state = self.rule.update(
            numbers.optimizer, rate, lambda _, away=None: (None, d), own.opt_state, own.mean
        )
        return Centre(mean, opt_state)

    def read(self, state: State) -> Tree:
        return of_layers(state.best, self.rule.read(state.own.mean, state.own.opt_state))

    def centre(self, state: State) -> Tree:
        return of_layers(state.best, state.own.mean)


def as_layers(params: Tree) -> Tree:
    """Parameters as an optimizer takes them: a vector becomes the weight of one layer, whose bias stays 0."""
    return params if is_params(params) else (Layer(params, tree.space(params).zeros_like(params[:1])),)


def of_layers(like: Tree, layers: Tree) -> Tree:
    """What ``as_layers`` was given."""
    return layers if is_params(like) else layers[0].weight


class Diagonal(Plain):
    """Candidates m + σ⊙ε, the mean m being what is used and σ what ``deviations`` says, (N,)."""

    ranked = True

    def deviations(self, state: State) -> Array:
        raise NotImplementedError

    def place(self, numbers: Any, state: State, draws: Array) -> Tree:
        found = draws * self.deviations(state)
        found += state.own.mean
        return unravel(state.best, found)

    def read(self, state: State) -> Tree:
        return unravel(state.best, state.own.mean)


class Normal(NamedTuple):
    """State of ``Natural``: mean and standard deviations, (N,)."""

    mean: Array
    sigma: Array


class NaturalNumbers(NamedTuple):
    """Numbers of ``Natural``; without a rate it is (3 + ln N)/(5√N)."""

    sigma: Any
    rate: Any


@dataclass(frozen=True)
class Natural(Diagonal):
    """Separable natural evolution strategy (SNES): x = m + σ⊙ε, m ← m + σ⊙Σuᵢεᵢ, σ ← σ⊙exp(½η_σ Σuᵢ(εᵢ² − 1)).

    Wierstra et al., Natural evolution strategies (JMLR 2014), algorithm 6.
    """

    def init(self, numbers: NaturalNumbers, params: Tree, backend: Backend) -> Normal:
        return Normal(ravel(params), numbers.sigma * scales(params))

    def deviations(self, state: State) -> Array:
        return state.own.sigma

    def tell(
        self, numbers: NaturalNumbers, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend
    ) -> Normal:
        xp, own, count = backend.xp, state.own, size(state.best)
        weights = utilities(fitness, natural, xp)
        eta = (3 + log(count)) / (5 * sqrt(count)) if numbers.rate is None else numbers.rate
        spread = weights @ (draws * draws)  # Σu = 0, so that the 1 falls out
        return Normal(own.mean + own.sigma * (weights @ draws), own.sigma * xp.exp(0.5 * eta * spread))


class Paths(NamedTuple):
    """State of ``SeparableCMA``: mean, step size, variances, the two evolution paths, and generations done."""

    mean: Array
    sigma: Array
    variance: Array
    path: Array  # p_c
    sigma_path: Array  # p_σ
    step: Array


@dataclass(frozen=True)
class SeparableCMA(Diagonal):
    """CMA-ES with a diagonal covariance: x = m + σ√c⊙ε. With y = √c⊙ε and y_w the recombination of the best half,

    m ← m + σy_w;  p_σ ← (1−c_σ)p_σ + √(c_σ(2−c_σ)μ_w) y_w/√c;  σ ← σ·exp(c_σ/d_σ (‖p_σ‖/χ_N − 1));
    p_c ← (1−c_c)p_c + h√(c_c(2−c_c)μ_w) y_w;  c ← (1 + c₁(1−h)c_c(2−c_c) − c₁ − c_μ)c + c₁p_c² + c_μΣwᵢyᵢ².

    Ros, Hansen: A simple modification in CMA-ES achieving linear time and space complexity (2008); constants as in
    Hansen's tutorial (2016), as the library cmaes has them.
    """

    def init(self, numbers: Any, params: Tree, backend: Backend) -> Paths:
        xp, mean = backend.xp, ravel(params)
        zeros = xp.zeros_like(mean)
        return Paths(mean, numbers, scales(params) ** 2, zeros, zeros, xp.zeros_like(mean[0, ...]))

    def deviations(self, state: State) -> Array:
        return state.own.sigma * tree.space(state.own.variance).sqrt(state.own.variance)

    def tell(self, numbers: Any, rate: Any, state: State, draws: Array, fitness: Array, backend: Backend) -> Paths:
        xp, own, n = backend.xp, state.own, size(state.best)
        c = constants(n, fitness.shape[0])
        weights, deviation, step = utilities(fitness, recombination, xp), xp.sqrt(own.variance), own.step + 1
        z_w = weights @ draws
        y_w = deviation * z_w
        sigma_path = (1 - c.sigma) * own.sigma_path + sqrt(c.sigma * (2 - c.sigma) * c.mu_eff) * z_w
        length = xp.sqrt(xp.sum(sigma_path * sigma_path))
        sigma = own.sigma * xp.exp((c.sigma / c.damping) * (length / c.chi - 1))
        kept = 1 - (1 - c.sigma) ** (2 * (step + 1))
        h = xp.astype(length / xp.sqrt(kept) < (1.4 + 2 / (n + 1)) * c.chi, length.dtype)
        path = (1 - c.path) * own.path + h * sqrt(c.path * (2 - c.path) * c.mu_eff) * y_w
        old = 1 + c.one * (1 - h) * c.path * (2 - c.path) - c.one - c.mu
        rank_mu = own.variance * (weights @ (draws * draws))
        variance = old * own.variance + c.one * path * path + c.mu * rank_mu
        learned = xp.any(fitness != fitness[0, ...])  # else equal weights would shrink the variances
        new = Paths(own.mean + own.sigma * y_w, sigma, variance, path, sigma_path, step)
        return tree.map(lambda old, new: xp.where(learned, new, old), own, new)


class Constants(NamedTuple):
    """Of ``SeparableCMA``, by dimension and population."""

    mu_eff: float
    one: float
    mu: float
    sigma: float
    damping: float
    path: float
    chi: float


def constants(n: int, count: int) -> Constants:
    """Hansen, The CMA evolution strategy: a tutorial (2016), table 1, with Ros and Hansen's faster c_μ."""
    mu_eff = float(1 / (recombination(count) ** 2).sum())
    one = 2 / ((n + 1.3) ** 2 + mu_eff)
    full = 2 / mu_eff / (n + sqrt(2)) ** 2 + (1 - 1 / mu_eff) * min(1, (2 * mu_eff - 1) / ((n + 2) ** 2 + mu_eff))
    sigma = (mu_eff + 2) / (n + mu_eff + 3)
    damping = 1 + 2 * max(0, sqrt((mu_eff - 1) / (n + 1)) - 1) + sigma
    chi = sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
    mu = min(1 - one, (n + 2) / 3 * full)  # else a large population would make variances negative
    return Constants(mu_eff, one, mu, sigma, damping, 4 / (n + 4), chi)
