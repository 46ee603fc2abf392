"""Search strategies: ask for candidates, evaluate them in any way, tell their fitness. Lower is better.

    strategy, key = strategies.snes(0.1), random.key(0)
    state = strategy.init(params)
    for generation in range(100):
        asked = strategy.ask(state, random.fold_in(key, generation), 32)
        state = strategy.tell(state, asked, fitness(asked.params))
    state.best, strategy.read(state)

Parameters are those of a network or one vector. Candidate i of generation g is drawn under fold_in(fold_in(key, g), i)
and depends on nothing else, but the points of a Latin hypercube, which belong together. Where the parameters are
layers, σ is divided by √in in a layer of so many inputs.
``random_search`` drives a strategy on a network.
"""

from dataclasses import is_dataclass
from functools import partial
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minimodel import random, storage, tree
from minimodel.backends import Backend, load
from minimodel.problem import check_count, check_seed, holds_numbers, nan_last
from minimodel.search import quasi, schedules
from minimodel.search.evolution import (
    Gradient,
    GradientNumbers,
    MuLambda,
    MuLambdaNumbers,
    Natural,
    NaturalNumbers,
    SeparableCMA,
)
from minimodel.search.low_rank import LowRankGradient
from minimodel.search.optimizers import Optimizer, adam
from minimodel.search.options import check_optimizer
from minimodel.search.plans import (
    Annealing,
    AnnealingNumbers,
    OneFifth,
    Plan,
    Sampling,
    Spread,
    State,
    formed,
    told,
    twins,
)
from minimodel.search.rules import Averaged, Chain
from minimodel.search.space import size
from minimodel.search.subspace import Subspace
from minimodel.tree import Array, Tree


class Asked(NamedTuple):
    """What was drawn for each candidate, or mirrored pair, and the candidates, with their axis in front."""

    draws: Array
    params: Tree


class Strategy(NamedTuple):
    """What ``random_search`` takes: a plan, its numbers, which are traced, and the learning rate by generation."""

    plan: Plan
    config: Tree
    schedule: schedules.Schedule | None = None

    def init(self, params: Tree, fitness: Any = np.inf, *, backend: str | Backend = "numpy") -> State:
        """The state before the first generation; with the fitness of ``params``, they count as a candidate. Not for
        ``jax.jit``: it looks at the parameters, which must be finite."""
        backend = load(backend)
        params = tree.map(partial(_floats, backend), params)
        if not any(map(prod, (leaf.shape for leaf in tree.leaves(params)))):
            raise ValueError(f"params: expected a vector, or the parameters of a network, got {params!r:.80}")
        own = self.plan.init(self._numbers(params, backend), params, backend)
        return State(params, nan_last(_fitness(fitness, (), params, backend)), own)

    def ask(self, state: State, key: Array, population: int, *, backend: str | Backend = "numpy") -> Asked:
        """The candidates of a generation, whose key this is. Quasi-random points come from the host: no ``jax.jit``."""
        backend, population = load(backend), check_population(self, population)
        _check("state", state, State, "init or tell")
        key = backend.asarray(key)
        if key.shape != (2,) or "uint32" not in str(key.dtype):
            raise ValueError(f"key: expected uint32 (2,), made by random.key, got {key.dtype} {tuple(key.shape)}")
        if self.plan.points:
            own, law = backend.to_numpy(key), self.plan.law
            draws = backend.asarray(quasi.points(self.plan.points, law, own, population, size(state.best)))
        else:
            numbers = backend.asarray(np.arange(0, population, twins(self.plan), dtype=np.uint32))
            draws = self.plan.draw(random.fold_in(key, numbers), state.best, backend)
        candidates = self.plan.place(self._numbers(state.best, backend), state, draws)
        return Asked(draws, formed(candidates) if self.plan.forms else candidates)

    def tell(
        self, state: State, asked: Asked, fitness: Any, *, rate: Any = None, backend: str | Backend = "numpy"
    ) -> State:
        """The state after a generation, from a number for each candidate, which counts in the parameters' dtype.

        ``rate`` is the optimizer's learning rate in this generation; a constant one is known.
        """
        backend = load(backend)
        _check("state", state, State, "init or tell")
        _check("asked", asked, Asked, "ask")
        if self.schedule is not None:
            if rate is None:
                if not isinstance(self.schedule, schedules.Constant):
                    raise ValueError("rate: the optimizer's schedule is not constant; give its rate of this generation")
                rate = self.schedule.rates
            if isinstance(rate, int | float | str | list | np.ndarray | np.generic) and number("rate", rate) < 0:
                raise ValueError(f"rate: expected a number of at least 0, got {rate!r}")
            rate = backend.xp.asarray(rate, dtype=tree.leaves(state.best)[0].dtype)
        elif rate is not None:
            raise ValueError(f"rate: this strategy has no optimizer; leave it out, got {rate!r:.80}")
        drawn, width = asked.draws.shape[1:], self.plan.width(state.best)
        if drawn != (width,):
            raise ValueError(f"asked: expected {width} draws a candidate, as this strategy makes them, got {drawn}")
        found = _fitness(fitness, (asked.draws.shape[0] * twins(self.plan),), state.best, backend)
        return told(self.plan, self._numbers(state.best, backend), rate, state, asked.draws, found, backend)

    def read(self, state: State) -> Tree:
        """The parameters that the strategy holds for the best: its mean, or the best candidate."""
        return self.plan.read(state)

    def save(self, state: State, path: str | Path) -> None:
        """Write a state to one file; ``load`` gives back the same numbers."""
        tensors = {str(i): np.asarray(leaf) for i, leaf in enumerate(tree.leaves(state))}
        storage.write(path, storage.dumps({"plan": _name(self.plan)}, tensors))

    def load(self, path: str | Path, params: Tree) -> State:
        """The state in a file, as NumPy arrays; ``params`` tells its form. ValueError for a file that does not fit."""
        header, found = storage.loads(Path(path).read_bytes(), str(path))
        like, names = self.init(params), iter(sorted(found, key=lambda name: (len(name), name)))
        expected = {str(i): (leaf.dtype, leaf.shape) for i, leaf in enumerate(tree.leaves(like))}
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()}
        if header.get("plan") != _name(self.plan) or shapes != expected:
            raise ValueError(f"{path}: not a state of this strategy for parameters of this form and dtype")
        return tree.map(lambda _: found[next(names)], like)

    def _numbers(self, params: Tree, backend: Backend) -> Tree:
        dtype = tree.leaves(params)[0].dtype
        return tree.map(lambda value: backend.xp.asarray(value, dtype=dtype), self.config)


def uniform(low: Any = -1.0, high: Any = 1.0, *, points: str = "random") -> Strategy:
    """Every parameter drawn afresh, uniformly from [low, high): Brooks, A discussion of random methods for seeking
    maxima (1958).

    ``points``: "random", or evenly spread "sobol", "halton" or "latin_hypercube" by scipy, here and below: a freshly
    scrambled set in every generation (Owen, Quasi-Monte Carlo sampling, 2003). Fewer than 2ᵏ of Sobol's are uneven.
    """
    low, high = number("low", low), number("high", high)
    if not low < high:
        raise ValueError(f"low, high: expected low below high, got {low} and {high}")
    return _sampling("uniform", points, Spread(low, number("high − low", high - low)), scaled=False)


def gaussian(sigma: Any = sqrt(2), *, points: str = "random") -> Strategy:
    """Every layer drawn afresh from N(0, σ²/in), in being its number of inputs; σ = √2 draws like "he".

    He et al., Delving deep into rectifiers (2015), equation 10.
    """
    return _sampling("normal", points, Spread(np.zeros(()), number("sigma", sigma, 0)))


def cauchy(scale: Any = 0.1, *, points: str = "random") -> Strategy:
    """Every layer drawn afresh from scale/√in times a standard Cauchy number, tan(π(u − ½)): rarely, very far, as in
    Szu, Hartley, Fast simulated annealing (1987)."""
    return _sampling("cauchy", points, Spread(np.zeros(()), number("scale", scale, 0)))


def hill_climbing(sigma: Any = 0.15, *, law: str = "normal", points: str = "random") -> Strategy:
    """θ + ε around the best θ so far, ε from N(0, σ²/in), or with ``law="cauchy"`` Cauchy numbers of scale σ/√in.

    Matyas, Random optimization (1965); with Cauchy numbers Yao, Liu, Lin, Evolutionary programming made faster (1999).
    """
    if law not in ("normal", "cauchy"):
        raise ValueError(f"law: expected 'normal' or 'cauchy', got {law!r}")
    return _sampling(law, points, Spread(np.zeros(()), number("sigma", sigma, 0)), around_best=True)


def one_plus_one(sigma: Any = 0.15) -> Strategy:
    """The (1+1) evolution strategy with the one-fifth rule, from this σ; with P candidates (1+P). See ``OneFifth``."""
    return Strategy(OneFifth(), number("sigma", sigma, 0))


def mu_lambda(sigma: Any = 0.15, *, parents: float = 0.25, patience: int = 100) -> Strategy:
    """The (μ/μ, λ) evolution strategy with its own σ in every candidate; λ the population, μ its part ``parents``.

    It starts anew after ``patience`` generations without a better candidate. See ``MuLambda``.
    """
    if not number("parents", parents) > 0 or not parents < 1:
        raise ValueError(f"parents: expected a part of the population, above 0 and below 1, got {parents!r}")
    return Strategy(
        MuLambda(float(parents)), MuLambdaNumbers(number("sigma", sigma, 0), number("patience", patience, 0))
    )


def simulated_annealing(sigma: Any = 0.1, *, temperature: Any = 0.01, cooling: Any = 0.99) -> Strategy:
    """x + σε, accepted with probability min(1, e^(−ΔJ/T)), T ← cooling·T in every generation. See ``Annealing``."""
    numbers = AnnealingNumbers(
        number("sigma", sigma, 0), number("temperature", temperature, 0), number("cooling", cooling, 0)
    )
    return Strategy(Annealing(), numbers)


def open_es(sigma: Any = 0.1, *, optimizer: Optimizer | None = None, antithetic: bool = True) -> Strategy:
    """The gradient estimated from ranks, for any of our optimizers that takes one gradient a step (not L-BFGS, nor with
    ``sharpness``), by default Adam at 0.01. In its schedule an epoch is 10 generations.

    ``antithetic``: candidates come in pairs θ ± σε. See ``Gradient``.
    """
    rule, numbers, schedule = _step(optimizer, sigma)
    return Strategy(Gradient(rule, antithetic), numbers, schedule)


def low_rank_es(
    sigma: Any = 0.1, *, rank: int = 1, optimizer: Optimizer | None = None, antithetic: bool = True
) -> Strategy:
    """As ``open_es``, but every candidate changes a weight by a matrix of this rank, which is never formed.

    For networks only. See ``LowRankGradient``.
    """
    rank = check_count("rank", rank, 1)
    rule, numbers, schedule = _step(optimizer, sigma)
    return Strategy(LowRankGradient(rule, antithetic, rank), numbers, schedule)


def snes(sigma: Any = 0.1, *, rate: Any = None) -> Strategy:
    """Separable natural evolution strategy, from this σ; ``rate`` of σ by default (3 + ln N)/(5√N). See ``Natural``."""
    return Strategy(
        Natural(), NaturalNumbers(number("sigma", sigma, 0), None if rate is None else number("rate", rate, 0))
    )


def sep_cma_es(sigma: Any = 0.1) -> Strategy:
    """CMA-ES with a diagonal covariance, from this σ. See ``SeparableCMA``."""
    return Strategy(SeparableCMA(), number("sigma", sigma, 0))


def subspace(strategy: Strategy, dimension: int, *, seed: int, redraw: bool = False) -> Strategy:
    """Another strategy in a random subspace of so many dimensions, which the seed settles; new in each generation with
    ``redraw``. See ``Subspace``."""
    dimension = check_count("dimension", dimension, 1)
    check_strategy(strategy)
    if strategy.plan.points or isinstance(strategy.plan, LowRankGradient | Subspace):
        raise ValueError("strategy: in a subspace expected one of vectors with random points, not of low rank")
    averaged = isinstance(getattr(strategy.plan, "rule", None), Averaged)
    if redraw and (averaged or isinstance(strategy.plan, MuLambda)):
        raise ValueError("redraw: a mean over generations, or a start to return to, lies in one subspace; leave it out")
    return strategy._replace(plan=Subspace(strategy.plan, dimension, check_seed(seed), bool(redraw)))


def check_strategy(strategy: Any) -> None:
    """Refuse what is no strategy."""
    if not isinstance(strategy, Strategy):
        raise TypeError(
            f"strategy: expected one of minimodel.strategies, hill_climbing(0.15) say, got {strategy!r:.80}"
        )


def check_population(strategy: Strategy, population: Any) -> int:
    """As many candidates as the strategy can learn from."""
    population = check_count("population", population, 1)
    if strategy.plan.mirrored and population % 2:
        raise ValueError(
            f"population: this strategy's candidates come in pairs; expected an even number, got {population}; "
            "antithetic=False draws them one by one"
        )
    if strategy.plan.ranked and population < 2:
        raise ValueError("population: this strategy learns from the order of candidates; expected at least 2, got 1")
    return population


def _name(plan: Plan) -> str:
    """The same in another process."""
    return repr(plan) if is_dataclass(plan) else type(plan).__qualname__


def _check(name: str, value: Any, kind: type, maker: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected what strategy.{maker} returns, got {value!r:.80}")


def _fitness(values: Any, shape: tuple[int, ...], params: Tree, backend: Backend) -> Array:
    """The values as an array of that shape and of the parameters' dtype."""
    try:
        found = backend.asarray(values if hasattr(values, "dtype") else np.asarray(values))
        fits = found.shape == shape and holds_numbers(found.dtype)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        expected = f"a number for each candidate, {shape}" if shape else "one number"
        raise ValueError(f"fitness: expected {expected}, got {values!r:.80}")
    return backend.xp.astype(found, tree.leaves(params)[0].dtype)


def number(name: str, value: Any, above: float = -np.inf) -> np.ndarray:
    """The value as an array (), if it is a finite number above that."""
    found = np.asarray(value)
    with np.errstate(over="ignore"):
        used = np.float32(found) if found.dtype.kind in "iuf" and not found.ndim else np.float32(np.nan)
    if not np.isfinite(used) or not used > above:
        limit = f" above {above:g}" if above > -np.inf else ""
        raise ValueError(f"{name}: expected a finite number{limit}, got {value!r}")
    return found


def _floats(backend: Backend, leaf: Any) -> Array:
    """The array on the backend, float32 if it was not of floats."""
    found = np.asarray(leaf) if isinstance(leaf, int | float | list) else leaf
    kind = str(getattr(found, "dtype", None))
    if not holds_numbers(kind):
        raise TypeError(f"params: expected a vector of numbers, or the parameters of a network, got {leaf!r:.80}")
    found = backend.asarray(found, None if "float" in kind else backend.xp.float32)
    if not bool(backend.xp.all(backend.xp.isfinite(found))):
        raise ValueError("params: NaN or infinity among the parameters")
    return found


def _sampling(law: str, points: str, numbers: Spread, **options: bool) -> Strategy:
    if points != "random" and points not in quasi.SEQUENCES:
        raise ValueError(f"points: expected random, {', '.join(quasi.SEQUENCES)}, got {points!r}")
    return Strategy(Sampling(law, points=None if points == "random" else points, **options), numbers)


def _step(optimizer: Optimizer | None, sigma: Any) -> tuple[Any, GradientNumbers, schedules.Schedule]:
    optimizer = adam(0.01) if optimizer is None else optimizer
    rule = getattr(optimizer, "rule", None)
    if not isinstance(rule, Chain) and not (isinstance(rule, Averaged) and isinstance(rule.rule, Chain)):
        raise TypeError(
            f"optimizer: expected one of minimodel.optimizers without a second gradient, got {optimizer!r:.80}"
        )
    optimizer = check_optimizer(optimizer, ())
    return rule, GradientNumbers(number("sigma", sigma, 0), optimizer.config), optimizer.schedule
