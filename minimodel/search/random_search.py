"""Random search: θ ← argmin J over {θ, θ + ε₁, …, θ + ε_P}, a whole population evaluated at once."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from time import perf_counter
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from minimodel import losses, random, tree
from minimodel.backends import Backend, load
from minimodel.datasets import Splits
from minimodel.losses import Loss
from minimodel.model import Model, new_model
from minimodel.network import Layer, Network, Params
from minimodel.observe import Callback, Progress, Watch
from minimodel.problem import (
    DivergedError,
    Problem,
    Rows,
    check_count,
    check_params,
    holds_numbers,
    nan_last,
    prepare,
    run_keys,
    to_backend,
)
from minimodel.search import quasi, schedules
from minimodel.search.plans import Plan, State, chosen, formed, told, twins
from minimodel.search.space import ravel, unravel
from minimodel.search.strategies import Strategy, check_population, check_strategy, hill_climbing
from minimodel.tree import Array, Tree

INIT, DRAWS, BATCHES = 0, 1, 2  # what the run's key is folded with: initial parameters, candidates, mini-batches
GENERATIONS = 10  # in one program; between two of them the host looks and reports

Fitness = Callable[[Params, Array, Array], Array]  # (params, outputs, targets) -> one number a candidate


class Static(NamedTuple):
    """What a search program is compiled for."""

    backend: Backend
    network: Network
    fitness: Fitness
    validation: Fitness
    plan: Plan
    population: int
    batch_size: int | None = None
    own_batches: bool = False


class Elite(NamedTuple):
    """The k best candidates so far, as vectors (k, N), the best first, and their fitness (k,)."""

    vectors: Array
    fitness: Array


class Search(NamedTuple):
    """A search between two generations."""

    state: State
    elite: Elite | None


class Given(NamedTuple):
    """What a search program is given: numbers that change without recompiling."""

    config: Tree
    part: Rows
    key: Array
    batch_key: Array


class Stopped(NamedTuple):
    """What a model of a search keeps: the search, for ``resume``, and the validation losses of its networks."""

    search: Search
    best_loss: np.ndarray
    made: tuple[Any, ...]  # what a search that goes on must have in common with it


def error_rate(params: Params, outputs: Array, targets: Array) -> Array:
    """1 − accuracy, a fitness without a gradient: the part of the rows whose greatest output is not that of the label,
    or where outputs are not finite."""
    xp = tree.namespace(outputs)
    hits = xp.argmax(outputs, axis=-1) == xp.argmax(targets, axis=-1)
    hits &= xp.all(xp.isfinite(outputs), axis=-1)
    return 1 - losses.mean(xp.astype(hits, outputs.dtype))


@np.errstate(over="ignore", invalid="ignore")  # candidates that overflow rank last
def random_search(
    network: Network,
    data: Splits,
    *,
    seed: int,
    backend: str | Backend = "numpy",
    loss: str | Loss | None = None,
    fitness: Fitness | None = None,
    strategy: Strategy | None = None,
    generations: int = 100,
    population: int = 128,
    rows: int | None = None,
    batch_size: int | None = None,
    own_batches: bool = False,
    keep: int | None = None,
    params: Params | None = None,
    resume: Model | None = None,
    callback: Callback | None = None,
) -> Model:
    """Search the parameters without gradients.

    Each generation the strategy asks for a population of candidates, evaluated in chunks that fit the cache and, with
    JAX, on all its devices. The search starts from ``params``, or ``network.init``, which counts as a candidate. At the
    end the best candidate and the strategy's own mean are evaluated on all the rows; the better one is returned.

    loss         a name from ``losses`` or a Loss; by default softmax cross-entropy for labels, else squared error
    fitness      what is to be as low as possible: any pure function (params, outputs (P, rows, out), targets (rows,
                 out)) -> (P,), labels being one-hot, such as ``error_rate``; by default the loss. JAX compiles it: what
                 needs the numbers themselves, the bytes of a file say, goes in a ``jax.pure_callback``. It may look at
                 the parameters, which are formed for a function of your own, of low rank too
    strategy     by default ``strategies.hill_climbing()``
    generations  in all, those before a ``resume`` included
    population   candidates of a generation
    rows         evaluate on the first so many training rows; by default on all of them
    batch_size   evaluate each generation on so many of the rows, drawn anew; with ``own_batches`` each candidate, or
                 mirrored pair of them, on its own. For strategies that move a mean: the best candidate so far, which
                 others go by, may owe its fitness to a lucky batch
    keep         return the best so many candidates, as a population, to descend from for instance
    resume       a model that random_search returned: go on where it stopped
    callback     called now and then with ``Progress``; True ends the search

    The history holds the best fitness so far after each generation, "loss", and "validation_loss": that of what the
    strategy holds for the best, at first and after every 10 generations.
    Raises ValueError for input that does not fit, DivergedError when no candidate ever had a finite fitness.
    """
    backend, key = load(backend), run_keys(seed, None)
    generations = check_count("generations", generations, 0)
    rows, batch_size, keep = (
        None if value is None else check_count(name, value, 1)
        for name, value in (("rows", rows), ("batch_size", batch_size), ("keep", keep))
    )
    strategy = hill_climbing() if strategy is None else strategy
    check_strategy(strategy)
    population = check_population(strategy, population)
    if own_batches and batch_size is None:
        raise ValueError("own_batches: expected a batch_size as well, of which each candidate gets its own")
    if resume is not None and params is not None:
        raise ValueError("params: a search that is resumed has its own; leave them out")
    watch = Watch(callback)
    if not isinstance(data, Splits):
        raise TypeError(f"data: random_search takes Splits, got {type(data).__name__}")
    problem = prepare(network, data, loss, backend, fitted=data)
    (train,) = problem.chunks(0, 1)
    used = min(rows or problem.rows, problem.rows)
    part = Rows(train.x[:used, ...], train.t[:used, ...])
    batch_size = None if batch_size is None else min(batch_size, part.x.shape[0])
    held = of_loss(problem.loss)
    measure = held if fitness is None else fitness
    if not callable(measure):
        raise ValueError(f"fitness: expected a function (params, outputs, targets) -> (P,), got {fitness!r}")
    if measure is error_rate and not problem.loss.labels:
        raise ValueError(f"fitness: error_rate needs labels, which {problem.loss.name} has not; leave it out")
    static = Static(backend, network, measure, held, strategy.plan, population, batch_size, own_batches)
    seen = checksum(data.train.x[:used], data.train.y[:used], *data.validation)
    made = (strategy.plan, measure, int(seed), used, batch_size, own_batches, seen)
    draws, batches = (backend.asarray(random.fold_in(key, use)) for use in (DRAWS, BATCHES))
    given = Given(to_backend(backend, strategy.config), part, draws, batches)
    if resume is None:
        start = random_start(network, params, key, backend)
        search = backend.jit(begin, static=("static", "keep"))(start, given, static=static, keep=keep)
        log: dict[str, Any] = {"loss": [], "validation_loss": []}
    else:
        search, log = go_on(resume, network, made, keep, backend)
    search, log = run(search, given, log, static, strategy, problem, generations, watch)
    return finished(search, given, log, static, problem, data, made)


def checksum(*arrays: np.ndarray) -> int:
    """Of rows and targets: a fitness that was found on others is worth nothing."""
    return reduce(lambda found, values: crc32(np.ascontiguousarray(values).data, found), arrays, 0)


def random_start(network: Network, params: Params | None, key: np.ndarray, backend: Backend) -> Params:
    """The parameters given, checked, or fresh ones; on the backend."""
    if params is None:
        return network.init(random.fold_in(key, INIT), backend=backend)
    return to_backend(backend, check_params(network, params, None))


def of_loss(loss: Loss) -> Fitness:
    """J, the same object for the same loss."""
    return _measures.setdefault(loss, lambda params, outputs, targets: losses.mean(loss.rows(outputs, targets)[0]))


_measures: dict[Loss, Fitness] = {}


def run(
    search: Search,
    given: Given,
    log: dict[str, Any],
    static: Static,
    strategy: Strategy,
    problem: Problem,
    generations: int,
    watch: Watch,
) -> tuple[Search, dict[str, Any]]:
    """All generations that are left, a few in one program."""
    backend, started = static.backend, perf_counter()
    advance = backend.jit(evolve, static=("static",), donate=("search",))
    validated = backend.jit(validate, static=("static",))

    def look() -> float:
        return float(backend.to_numpy(validated(search.state, problem.validation, static=static)))

    log = {"loss": list(log["loss"]), "validation_loss": list(log["validation_loss"]) or [look()]}
    before = len(log["loss"])
    for first in range(before, generations, GENERATIONS):
        numbers = np.arange(first, min(first + GENERATIONS, generations), dtype=np.uint32)
        rates = None
        if strategy.schedule:
            seen = schedules.Run(generations, GENERATIONS, np.asarray(log["validation_loss"]))
            rates = np.asarray(strategy.schedule(numbers, seen), np.float32)
        points = host_points(static, given, numbers)
        search, found = advance(search, given, numbers, rates, points, static=static)
        log["loss"] += backend.to_numpy(found).tolist()
        log["validation_loss"].append(look())
        seconds, rate = perf_counter() - started, None if rates is None else rates[-1]
        last = log["loss"][-1], log["validation_loss"][-1]
        if watch(Progress(len(log["loss"]), generations, *last, rate, seconds, before)):
            break
    return search, log


def host_points(static: Static, given: Given, numbers: np.ndarray) -> np.ndarray | None:
    """The quasi-random draws of these generations, if the plan wants them."""
    plan = static.plan
    if plan.points is None:
        return None
    keys = static.backend.to_numpy(random.fold_in(given.key, static.backend.asarray(numbers)))
    return np.stack(
        [quasi.points(plan.points, plan.law, key, static.population, static.network.parameters) for key in keys]
    )


def begin(params: Params, given: Given, *, static: Static, keep: int | None) -> Search:
    """The search at the starting parameters."""
    xp = static.backend.xp
    one = xp.reshape(ravel(params), (1, -1))
    fitness = nan_last(measured(unravel(params, one), given.part, static))
    state = State(params, fitness[0, ...], static.plan.init(given.config, params, static.backend))
    if keep is None:
        return Search(state, None)
    rest = xp.full((keep - 1,), float("inf"), dtype=xp.float32)
    return Search(state, Elite(xp.tile(one, (keep, 1)), xp.concat([fitness, rest])))


def measured(candidates: Params, part: Rows, static: Static) -> Array:
    """The fitness of every candidate. Only a function of the user's own may look at the parameters."""
    xp, network = static.backend.xp, static.network
    if static.backend.columns and static.plan.forms:
        outputs = network.apply(candidates, part.x.mT, columns=True).mT
    else:
        outputs = network.apply(candidates, part.x)
    try:
        found = static.fitness(formed(candidates) if is_own(static) else candidates, outputs, part.t)
        found = found if type(found) is type(outputs) else static.backend.asarray(found)
    except (TypeError, ValueError, IndexError) as error:
        hint = " for JAX to compile; what needs the numbers themselves goes in a jax.pure_callback"
        raise (TypeError if isinstance(error, TypeError) else ValueError)(
            f"fitness: expected a function (params, outputs, targets) -> (P,) of arrays"
            f"{hint if 'jax' in static.backend.name else ''}; it raised {type(error).__name__}: {error}"
        ) from error
    if found.shape != (count := outputs.shape[:1]) or not holds_numbers(found.dtype):
        raise ValueError(f"fitness: expected a number for each candidate, {count}, got {found.dtype} {found.shape}")
    return found if found.dtype == xp.float32 else xp.astype(found, xp.float32)


def is_own(static: Static) -> bool:
    """Whether the fitness is a function of the user's own."""
    return static.fitness not in (static.validation, error_rate)


def validate(state: State, validation: Rows, *, static: Static) -> Array:
    """J on the validation part of what the strategy holds for the best."""
    params = static.plan.read(state)
    return static.validation(params, static.network.apply(params, validation.x), validation.t)


def evolve(
    search: Search, given: Given, numbers: Array, rates: Array | None, points: Array | None, *, static: Static
) -> tuple[Search, Array]:
    """The generations of these numbers; the best fitness after each."""
    xp, plan, backend = static.backend.xp, static.plan, static.backend
    population, each = static.population, twins(plan)
    size = chunk_size(static, given.part.x.shape[0])
    parts = -(-population // size)

    def generation(search: Search, inputs: tuple[Array, Array | None, Array | None]) -> tuple[Search, Array]:
        (state, elite), (number, rate, draws) = search, inputs
        batch_key = random.fold_in(given.batch_key, number)
        common = given.part if static.batch_size is None or static.own_batches else drawn(batch_key, given.part, static)

        def evaluate(carry: None, own: tuple[Array, Array]) -> tuple[None, Array]:
            draws, batch_keys = backend.spread(own, 0)
            part = drawn(xp.repeat(batch_keys, each, axis=0), given.part, static) if static.own_batches else common
            return None, measured(plan.place(given.config, state, draws), part, static)

        def draw(carry: None, keys: Array) -> tuple[None, Array]:
            return None, plan.draw(backend.spread(keys, 0), state.best, backend)

        def in_parts(count: int, leaves: Tree) -> Tree:
            return tree.map(lambda leaf: xp.reshape(leaf, (count, -1, *leaf.shape[1:])), leaves)

        def whole(found: Array) -> Array:
            return xp.reshape(backend.spread(found, None), (-1, *found.shape[2:]))

        index = xp.arange(parts * size // each, dtype=xp.uint32)  # the last may be too many, and are left out
        if draws is None:
            keys = random.fold_in(random.fold_in(given.key, number), index * each)
            few = keys.shape[0] * plan.width(state.best) <= backend.room and keys.shape[0] % 2 == 0
            # By a loop of their own, which one step is not: else XLA would draw the same again for every layer.
            draws = whole(backend.scan(draw, None, in_parts(2 if few else parts, keys))[1])
        elif parts * size > population:
            draws = xp.take(draws, xp.astype(xp.clip(index, 0, population - 1), xp.int32), axis=0)
        batch_keys = random.fold_in(batch_key, index) if static.own_batches else None
        fitness = whole(backend.scan(evaluate, None, in_parts(parts, (draws, batch_keys)))[1])
        if parts * size > population:
            draws, fitness = draws[: population // each, ...], fitness[:population]
        if elite is not None:
            elite = elite_of(elite, given, state, draws, nan_last(fitness), static)
        state = told(plan, given.config, rate, state, draws, fitness, backend)
        return Search(state, elite), state.fitness

    return backend.scan(generation, search, (numbers, rates, points))


def drawn(key: Array, part: Rows, static: Static) -> Rows:
    """A mini-batch under each key, its rows drawn with replacement."""
    xp, count = static.backend.xp, part.x.shape[0]
    u = random.uniform(key, (static.batch_size or 1,), backend=static.backend)
    picked = xp.clip(xp.astype(u * count, xp.int32), 0, count - 1)
    return tree.map(lambda leaf: static.backend.take(leaf, picked), part)


def elite_of(elite: Elite, given: Given, state: State, draws: Array, fitness: Array, static: Static) -> Elite:
    """The k best of the elite and the candidates; of equals the first."""
    xp, k = static.backend.xp, elite.fitness.shape[0]
    order = xp.argsort(fitness, stable=True)[: min(k, fitness.shape[0])]
    found = chosen(static.plan, given.config, state, draws, order)
    vectors = xp.concat([xp.reshape(leaf, (leaf.shape[0], -1)) for leaf in tree.leaves(found)], axis=1)
    both = xp.concat([elite.fitness, xp.take(fitness, order, axis=0)])
    first = xp.argsort(both, stable=True)[:k]
    return Elite(xp.take(xp.concat([elite.vectors, vectors]), first, axis=0), xp.take(both, first, axis=0))


def chunk_size(static: Static, rows: int) -> int:
    """How many candidates to evaluate at once: as many as have room on the devices, with their activations and what
    is formed of their parameters, an equal share for each; of the sizes from half of that up, the one that the
    population fills best."""
    floats = (static.batch_size or rows) * max(static.network.layer_sizes[1:])
    formed = static.plan.forms or is_own(static)
    floats = max(floats, static.network.parameters) if formed else floats
    unit = twins(static.plan) * len(static.backend.devices)
    room = static.backend.room // floats * len(static.backend.devices) // unit
    most = max(1, min(room, -(-static.population // unit)))
    sizes = [unit * shares for shares in range(most, most // 2, -1)]
    return min(sizes, key=lambda size: -(-static.population // size) * size)


def go_on(
    model: Any, network: Network, made: tuple[Any, ...], keep: int | None, backend: Backend
) -> tuple[Search, dict[str, Any]]:
    """The search and the history that a model carries."""
    stopped: Any = getattr(model, "state", None)
    if not isinstance(stopped, Stopped) or model.network != network or stopped.made != made:
        raise ValueError(
            "resume: expected a model that random_search returned, not one from a file, for the same network, "
            f"strategy, fitness, seed, rows and batches; got {model!r:.80}"
        )
    kept = None if stopped.search.elite is None else stopped.search.elite.fitness.shape[0]
    if kept != keep:
        raise ValueError(f"keep: expected {kept}, as in the search that is resumed, got {keep}")
    return tree.map(backend.asarray, stopped.search), model.history


def finished(
    search: Search,
    given: Given,
    log: dict[str, Any],
    static: Static,
    problem: Problem,
    data: Splits,
    made: tuple[Any, ...],
) -> Model:
    """The best of the kept candidates and of the strategy's mean by their fitness on all rows, as a model."""
    backend, elite = static.backend, search.elite
    ranked = backend.jit(rank, static=("static",))
    vectors, fitness, held = backend.to_numpy(ranked(search, given.part, problem.validation, static=static))
    order = np.argsort(np.where(np.isnan(fitness), np.inf, fitness), stable=True)
    order = order[0] if elite is None else order[: elite.fitness.shape[0]]
    params = unravel(network_like(static.network), vectors[order])
    history = {name: np.asarray(values, np.float32) for name, values in log.items()}
    model = replace(new_model(static.network, params, problem.loss, data), history=history)
    if not (fitness < np.inf).any():
        text = "random_search: no candidate had a finite fitness; check the scale of the data, or your fitness"
        raise DivergedError("random_search", 0, float("nan"), model, model, text)
    return replace(model, state=Stopped(backend.to_numpy(search), held[order], made))


def rank(search: Search, part: Rows, validation: Rows, *, static: Static) -> tuple[Array, Array, Array]:
    """The kept candidates and the mean as vectors, their fitness on all rows and their loss on validation."""
    xp, (state, elite), mean = static.backend.xp, search, static.plan.read(search.state)
    pool = [xp.reshape(ravel(state.best), (1, -1)) if elite is None else elite.vectors]
    pool += [] if mean is state.best else [xp.reshape(ravel(mean), (1, -1))]

    def look(carry: None, vector: Array) -> tuple[None, tuple[Array, Array]]:
        one = unravel(state.best, xp.reshape(vector, (1, -1)))
        held = static.validation(one, static.network.apply(one, validation.x), validation.t)
        return None, (measured(one, part, static)[0, ...], nan_last(held)[0, ...])

    vectors = xp.concat(pool)
    fitness, held = static.backend.scan(look, None, vectors)[1]
    if elite is not None:  # what stands in for candidates that were not seen yet goes last
        seen = xp.concat([elite.fitness[:1] * 0, elite.fitness[1:], xp.zeros_like(fitness[elite.fitness.shape[0] :])])
        fitness = xp.where(xp.isinf(seen), seen, fitness)
    return vectors, fitness, held


def network_like(network: Network) -> Params:
    """Parameters of the network's shapes, on the host."""
    return tuple(Layer(np.empty(shape, np.float32), np.empty(shape[1:], np.float32)) for shape in network.shapes)
