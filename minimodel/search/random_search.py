"""Random search: θ ← argmin J over {θ, θ + ε₁, …, θ + ε_P}, a whole population evaluated at once."""

from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

import numpy as np

from minimodel import losses, random, tree
from minimodel.backends import Backend, load
from minimodel.datasets import Splits
from minimodel.losses import Loss
from minimodel.model import Model, new_model
from minimodel.network import Network, Params
from minimodel.observe import Callback, Progress
from minimodel.problem import (
    DivergedError,
    Rows,
    check_count,
    check_params,
    nan_last,
    prepare,
    run_keys,
    to_backend,
)
from minimodel.search import strategies
from minimodel.search.strategies import Plan, Strategy
from minimodel.tree import Array, Tree

INIT, DRAWS = 0, 1  # what the run's key is folded with: initial parameters, candidates
GENERATIONS = 10  # in one program; between two of them the host looks and reports
CACHED, ACCELERATED = 2**19, 2**28  # floats: 2 MiB, the cache of one core; 1 GiB


class Static(NamedTuple):
    """What a search program is compiled for."""

    backend: Backend
    network: Network
    loss: Loss
    plan: Plan
    population: int


@np.errstate(over="ignore", invalid="ignore")  # candidates that overflow rank last
def random_search(
    network: Network,
    data: Splits,
    *,
    seed: int,
    backend: str | Backend = "numpy",
    loss: str | Loss | None = None,
    strategy: Strategy | None = None,
    generations: int = 100,
    population: int = 128,
    rows: int | None = None,
    params: Params | None = None,
    callback: Callback | None = None,
) -> Model:
    """Search the parameters without gradients; the fitness is the loss on the training rows.

    Each generation the strategy draws a population of candidates, evaluated in chunks that fit the cache. The best
    candidate ever seen is kept, so the fitness never gets worse. It starts from ``params``, or from ``network.init``,
    which counts as a candidate.

    loss         a name from ``losses`` or a Loss; by default softmax cross-entropy for labels, else squared error
    strategy     by default ``strategies.local()``
    population   candidates of a generation
    rows         evaluate on this many training rows, the same for all candidates; by default on all of them
    callback     called now and then with ``Progress``; True ends the search

    Raises ValueError for input that does not fit, DivergedError when no candidate ever had a finite loss.
    """
    generations, population = check_count("generations", generations, 0), check_count("population", population, 1)
    rows = None if rows is None else check_count("rows", rows, 1)
    backend, key = load(backend), run_keys(seed, None)
    if not isinstance(data, Splits):
        raise TypeError(f"data: random_search takes Splits, got {type(data).__name__}")
    problem = prepare(network, data, loss, backend, fitted=data)
    strategy = strategy or strategies.local()
    if params is None:
        params = network.init(random.fold_in(key, INIT), backend=backend)
    else:
        params = check_params(network, params, None)
    check_strategy(strategy)
    used = min(rows or len(data.train.x), len(data.train.x))
    (train,) = problem.chunks(0, 1)
    part = Rows(train.x[:used, ...], train.t[:used, ...])
    static = Static(backend, network, problem.loss, strategy.plan, population)
    config = to_backend(backend, strategy.config)
    start = backend.jit(begin, static=("static",))
    advance = backend.jit(search, static=("static",), donate=("state",))

    state = start(to_backend(backend, params), part, static=static)
    history, started = [], perf_counter()
    draws = backend.asarray(random.fold_in(key, DRAWS))
    for first in range(0, generations, GENERATIONS):
        numbers = np.arange(first, min(first + GENERATIONS, generations), dtype=np.uint32)
        state, found = advance(state, config, part, draws, backend.asarray(numbers), static=static)
        history.append(backend.to_numpy(found))
        if callback:
            progress = Progress(
                int(numbers[-1]) + 1, generations, history[-1][-1], None, None, perf_counter() - started
            )
            stop = callback(progress)
            if isinstance(stop, bool | np.bool_) and stop:
                break
    best = backend.to_numpy(state)
    log = {"loss": np.concatenate(history) if history else np.empty(0, np.float32)}
    model = replace(new_model(network, best.params, problem.loss, data), history=log)
    if not np.isfinite(best.fitness):
        raise DivergedError("random_search", 0, float("nan"), model, model)
    return model


def begin(params: Params, part: Rows, *, static: Static) -> Tree:
    """The strategy's state at the starting parameters."""
    return static.plan.init(params, nan_last(fitness(params, part, static)))


def fitness(params: Params, part: Rows, static: Static) -> Array:
    """J of the parameters or of every candidate."""
    return losses.mean(static.loss.rows(static.network.apply(params, part.x), part.t)[0])


def check_strategy(strategy: Strategy) -> None:
    """Refuse what is no strategy, and numbers it cannot use."""
    if not isinstance(strategy, Strategy):
        raise TypeError(f"strategy: expected one made by minimodel.strategies, local(0.15) say, got {strategy!r}")
    numbers = strategy.config._asdict()
    if not all(np.ndim(value) == 0 and np.isreal(value) and np.isfinite(value) for value in numbers.values()):
        raise ValueError(f"strategy: expected finite numbers, got {numbers}")
    if numbers.get("sigma", 1) <= 0 or numbers.get("low", 0) >= numbers.get("high", 1):
        raise ValueError(f"strategy: expected sigma above 0 and low below high, got {numbers}")


def search(state: Tree, config: Tree, part: Rows, key: Array, numbers: Array, *, static: Static) -> tuple[Tree, Array]:
    """The generations of these numbers; the best fitness after each."""
    xp, plan = static.backend.xp, static.plan
    chunk = chunk_size(static, part.x.shape[0])

    def generation(state: Tree, number: Array) -> tuple[Tree, Array]:
        def evaluate(carry: None, keys: Array) -> tuple[None, tuple[Params, Array]]:
            candidates = plan.ask(config, state, keys, static.backend)
            return None, (candidates, fitness(candidates, part, static))

        keys = random.fold_in(random.fold_in(key, number), xp.arange(static.population, dtype=xp.uint32))
        found = static.backend.scan(evaluate, None, xp.reshape(keys, (-1, chunk, 2)))[1]
        candidates, losses_found = tree.map(lambda leaf: xp.reshape(leaf, (-1, *leaf.shape[2:])), found)
        state = plan.tell(config, state, candidates, losses_found)
        return state, state.fitness

    return static.backend.scan(generation, state, numbers)


def chunk_size(static: Static, rows: int) -> int:
    """How many candidates to draw and evaluate at once: the largest part of the population that divides it and whose
    parameters and activations stay in the cache, or in a gigabyte of an accelerator."""
    floats = max(rows * max(static.network.layer_sizes[1:]), static.network.parameters)
    on_host = all("cpu" in device.lower() for device in static.backend.devices)
    most = max(1, (CACHED if on_host else ACCELERATED) // floats)
    return max(size for size in range(1, min(most, static.population) + 1) if static.population % size == 0)
