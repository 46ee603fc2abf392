"""Gradient descent: θ ← θ − η ∇J(θ) on mini-batches redrawn each epoch, the best on validation kept."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minimodel import random, tree
from minimodel.backends import Backend, load
from minimodel.datasets import Splits
from minimodel.gradients import value_and_grad
from minimodel.losses import Loss
from minimodel.model import Model, new_model
from minimodel.network import Network, Params
from minimodel.problem import (
    Callback,
    DivergedError,
    Masks,
    Pair,
    Problem,
    check_count,
    check_masks,
    check_params,
    masked,
    nan_last,
    prepare,
    run_keys,
    to_backend,
)
from minimodel.search import optimizers, schedules
from minimodel.search.optimizers import Optimizer, Rule
from minimodel.tree import Array, Tree, align

INIT, ORDER = 0, 1  # what the run's key is folded with: initial parameters, order of the rows


class Through(NamedTuple):
    """A function that the parameters pass before they meet the data, and the way its gradient comes back.

    forward(values, params) -> params used; backward(values, params, grads by those used) -> grads by params.
    """

    forward: Callable[[Tree, Params], Params]
    backward: Callable[[Tree, Params, Params], Params]


DIRECT = Through(lambda values, params: params, lambda values, params, grads: grads)


class Static(NamedTuple):
    """What a training program is compiled for."""

    backend: Backend
    network: Network
    loss: Loss
    rule: Rule
    through: Through
    batch_size: int


class Traced(NamedTuple):
    """What a training program is given: numbers that change without recompiling."""

    config: Tree
    masks: tuple[Array, ...] | None
    values: Tree


class State(NamedTuple):
    """A training run between two epochs."""

    params: Params
    opt_state: Tree
    best: Params  # the best on validation so far
    best_loss: Array  # (*population,)


class Fit(NamedTuple):
    """What ``fit`` returns, on the host."""

    params: Params
    masks: Masks | None
    history: dict[str, np.ndarray]
    diverged_at: int | None


def gradient_descent(
    network: Network,
    data: Splits,
    *,
    seed: int,
    backend: str | Backend = "numpy",
    loss: str | Loss | None = None,
    optimizer: Optimizer | None = None,
    epochs: int = 20,
    batch_size: int = 32,
    params: Params | None = None,
    masks: Masks | None = None,
    population: int | None = None,
    callback: Callback | None = None,
) -> Model:
    """Train a network, or a population of them, and return the parameters that were best on validation.

    θ ← θ − η·update(∂J/∂θ) for every mini-batch; rows are reshuffled each epoch and the last n mod batch_size of
    them are left out of it. Without ``params`` training starts from ``network.init``.

    loss         a name from ``losses`` or a Loss; by default softmax cross-entropy for labels, else squared error
    optimizer    by default ``adam(cosine(1e-3))``
    masks        one array of 0 and 1 per weight; weights where it is 0 are and stay exactly 0
    population   P networks at once: member i is the run with seed + i, and arrays gain a leading axis of P;
                 the optimizer's numbers may be arrays of P
    callback     called after every epoch with (epochs done, epochs, validation loss of the best member)

    Raises ValueError for input that does not fit, DivergedError when no member's loss is finite any more.
    """
    backend = load(backend)
    keys = run_keys(seed, population)
    problem = prepare(network, data, loss, backend, fitted=data)
    if params is None:
        params = network.init(random.fold_in(keys, INIT), backend=backend)
    else:
        params = check_params(network, params, population)
    run = fit(
        problem,
        keys=keys,
        params=params,
        optimizer=optimizer or optimizers.adam(schedules.cosine(1e-3)),
        epochs=epochs,
        batch_size=batch_size,
        masks=None if masks is None else check_masks(network, masks, population),
        callback=callback,
    )
    model = new_model(network, run.params, problem.loss, data)
    return finished("gradient_descent", run, model)


def finished(algorithm: str, run: Fit, model: Model) -> Model:
    """The model with what the run found, or DivergedError with it."""
    params = tree.map(lambda leaf: leaf + 0.0, run.params)  # −0 becomes 0, as it comes back from a file
    model = replace(model, params=params, masks=run.masks, history=run.history)
    if run.diverged_at is None:
        return model
    finite = run.history["loss"][np.isfinite(run.history["loss"])]
    raise DivergedError(algorithm, run.diverged_at, finite[-1] if len(finite) else np.nan, model)


@np.errstate(over="ignore", invalid="ignore")  # a run that diverges says so itself
def fit(
    problem: Problem,
    *,
    keys: np.ndarray,
    params: Params,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    masks: Masks | None = None,
    remask: Callable[[int, Params], Masks | None] | None = None,
    through: Through = DIRECT,
    values: Tree = None,
    callback: Callback | None = None,
) -> Fit:
    """The loop behind ``gradient_descent`` and behind the retraining of pruning and quantization.

    ``remask(epoch, params)`` may give new masks before an epoch: they are enforced at once on the parameters and
    on the optimizer's state, and the best is sought anew among the models that obey them.
    """
    epochs, batch_size = check_count("epochs", epochs, 0), check_count("batch_size", batch_size, 1)
    check_optimizer(optimizer, keys)
    backend, rows = problem.backend, problem.train[0].shape[0]
    static = Static(backend, problem.network, problem.loss, optimizer.rule, through, min(batch_size, rows))
    steps = rows // static.batch_size
    revive = backend.jit(survivors, donate=("state",))
    restart = backend.jit(begin, static=("static",), donate=("params", "opt_state"))
    run_epoch = backend.jit(epoch, static=("static",), donate=("state",))
    given = Traced(to_backend(backend, optimizer.config), masks and to_backend(backend, masks), values)

    params = to_backend(backend, params)
    state = restart(params, optimizer.rule.init(params), problem.validation, given, static=static)
    losses: list[np.ndarray] = []
    rates: list[np.ndarray] = []
    validation = [np.array(backend.to_numpy(state.best_loss))]  # a copy: the state is about to be consumed
    for done in range(epochs):
        if remask and (new := remask(done, (state := revive(state)).params)) is not None:
            masks, given = new, given._replace(masks=to_backend(backend, new))
            state = restart(state.params, state.opt_state, problem.validation, given, static=static)
        rates.append(optimizer.schedule(np.arange(done * steps, (done + 1) * steps), epochs * steps))
        rate = backend.asarray(rates[-1], state.best_loss.dtype)
        key = backend.asarray(random.fold_in(random.fold_in(keys, ORDER), done))
        state, *found = run_epoch(state, problem.train, problem.validation, key, rate, given, static=static)
        for log, values_found in zip((losses, validation), found, strict=True):
            log.append(backend.to_numpy(values_found))
        if callback:
            callback(done + 1, epochs, float(np.min(validation[-1], initial=np.inf, where=~np.isnan(validation[-1]))))
        if not np.isfinite(losses[-1][-1]).any():
            break
    history = {
        "loss": np.concatenate(losses) if losses else np.empty(0, np.float32),
        "learning_rate": np.concatenate(rates) if rates else np.empty(0),
        "validation_loss": np.stack(validation),
    }
    return Fit(backend.to_numpy(state.best), masks, history, diverged_at(history["loss"]))


def check_optimizer(optimizer: Optimizer, keys: np.ndarray) -> None:
    """Refuse what is no optimizer, and numbers that are not one for all or one for each member."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one made by minimodel.optimizers, adam(1e-3) say, got {optimizer!r}")
    rates = optimizer.schedule(np.arange(1), 1)[0]
    for name, value in {**optimizer.config._asdict(), "learning_rate": rates}.items():
        if value is not None and (np.shape(value) not in ((), keys.shape[:-1]) or not np.isfinite(value).all()):
            allowed = f"a finite number{f' or {len(keys)} of them' if keys.ndim > 1 else ''}"
            raise ValueError(f"optimizer: {name}: expected {allowed}, got {value!r}")


def diverged_at(losses: np.ndarray) -> int | None:
    """The first step from which on no member's loss is finite."""
    alive = np.isfinite(losses).any(axis=tuple(range(1, losses.ndim)))
    if len(alive) == 0 or alive[-1]:
        return None
    return int(np.flatnonzero(alive)[-1]) + 1 if alive.any() else 0


def begin(params: Params, opt_state: Tree, validation: Pair, given: Traced, *, static: Static) -> State:
    """Enforce the masks on the parameters and the optimizer's state; the best so far is where we stand."""
    params, opt_state = masked(params, given.masks), masked(opt_state, given.masks)
    best = tree.map(lambda p: static.backend.xp.asarray(p, copy=True), params)
    return State(params, opt_state, best, nan_last(validation_loss(params, validation, given, static)))


def survivors(state: State) -> State:
    """The state with every member whose parameters are not finite any more taken back to its best, at rest."""
    xp = tree.namespace(state.params)
    alive = xp.ones_like(state.best_loss, dtype=xp.bool)
    for leaf in tree.leaves(state.params):
        alive = alive & xp.all(xp.isfinite(leaf), axis=tuple(range(alive.ndim, leaf.ndim)))
    params = tree.map(lambda new, old: xp.where(align(alive, new), new, old), state.params, state.best)

    def rest(leaf: Array) -> Array:
        return xp.where(align(alive, leaf), leaf, xp.zeros_like(leaf)) if leaf.ndim > alive.ndim else leaf

    return state._replace(params=params, opt_state=tree.map(rest, state.opt_state))


def validation_loss(params: Params, validation: Pair, given: Traced, static: Static) -> Array:
    """J on the validation part, of the parameters as they are used."""
    used = static.through.forward(given.values, params)
    return static.loss.value(static.network.apply(used, validation[0]), validation[1])


def epoch(
    state: State, train: Pair, validation: Pair, key: Array, rates: Array, given: Traced, *, static: Static
) -> tuple[State, Array, Array]:
    """One pass over the training rows in a new order: the new state, the loss of each step, that on validation."""
    xp = static.backend.xp

    def step(carry: tuple[Params, Tree], inputs: tuple[Array, Array]) -> tuple[tuple[Params, Tree], Array]:
        (params, opt_state), (rows, rate) = carry, inputs
        used = static.through.forward(given.values, params)
        loss, grads = value_and_grad(static.network, static.loss, used, take(train[0], rows), take(train[1], rows))
        grads = masked(static.through.backward(given.values, params, grads), given.masks)
        return static.rule.update(given.config, rate, grads, opt_state, params), loss

    batches = mini_batches(key, train[0].shape[0], static)
    (params, opt_state), losses = static.backend.scan(step, (state.params, state.opt_state), (batches, rates))
    loss = validation_loss(params, validation, given, static)
    better = loss < state.best_loss
    best = tree.map(lambda old, new: xp.where(align(better, new), new, old), state.best, params)
    return State(params, opt_state, best, xp.where(better, loss, state.best_loss)), losses, loss


def mini_batches(key: Array, rows: int, static: Static) -> Array:
    """Row numbers in random order, (steps, *population, batch); the remainder is left out."""
    xp, size = static.backend.xp, static.batch_size
    steps = rows // size
    order = random.permutation(key, rows, backend=static.backend)[..., : steps * size]
    return xp.moveaxis(xp.reshape(order, (*key.shape[:-1], steps, size)), -2, 0)


def take(x: Array, rows: Array) -> Array:
    """x[rows] for row numbers of any shape."""
    xp = tree.namespace(x, rows)
    return xp.reshape(xp.take(x, xp.reshape(rows, (-1,)), axis=0), (*rows.shape, *x.shape[1:]))
