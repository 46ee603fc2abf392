"""Gradient descent: θ ← θ − η ∇J(θ) on mini-batches redrawn each epoch, the best on validation kept."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from time import perf_counter
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np

from minimodel import losses, random, tree
from minimodel.backends import Backend, load
from minimodel.datasets import Splits
from minimodel.gradients import objective
from minimodel.losses import Loss
from minimodel.model import Model, new_model
from minimodel.network import Network, Params
from minimodel.observe import Callback, Progress
from minimodel.problem import (
    DivergedError,
    Masks,
    Problem,
    Rows,
    check_count,
    check_masks,
    check_numbers,
    check_params,
    each_params,
    masked,
    nan_last,
    prepare,
    run_keys,
    to_backend,
)
from minimodel.search import dropout, optimizers, schedules
from minimodel.search.optimizers import Optimizer
from minimodel.search.packed import pack, unpack
from minimodel.search.rules import Rule
from minimodel.streams import Stream
from minimodel.tree import Array, Tree, align

INIT, ORDER, NOISE = 0, 1, 2  # what the run's key is folded with: initial parameters, order of the rows, dropout


class Training(TypedDict, total=False):
    """What training takes wherever it is part of an algorithm; ``gradient_descent`` explains it."""

    optimizer: Optimizer | None
    epochs: int
    batch_size: int
    dropout: Any
    input_dropout: Any
    label_smoothing: Any
    patience: int | None
    min_delta: float
    callback: Callback | None


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
    packed: bool = False


class Noise(NamedTuple):
    """What is random or blurred in training alone; None where it is absent."""

    inputs: Array | None = None
    hidden: Array | None = None
    labels: Array | None = None


class Draws(NamedTuple):
    """The keys of an epoch, or of all epochs: for the order of the rows, and for dropout where there is any."""

    order: Array
    noise: Array | None


class Traced(NamedTuple):
    """What a training program is given: numbers that change without recompiling."""

    config: Tree
    masks: tuple[Array, ...] | None = None
    values: Tree = None
    noise: Noise = Noise()
    active: Array | None = None  # 1 for members whose best may still change, 0 for those that have stopped


class State(NamedTuple):
    """A training run between two epochs."""

    params: Params
    opt_state: Tree
    best: Params  # the best on validation so far, as it is used
    best_loss: Array  # (*population,)


class Fit(NamedTuple):
    """What ``fit`` returns, on the host."""

    state: State
    masks: Masks | None
    history: dict[str, np.ndarray]
    diverged_at: int | None


def gradient_descent(
    network: Network,
    data: Splits | Stream,
    *,
    seed: int,
    backend: str | Backend = "numpy",
    loss: str | Loss | None = None,
    params: Params | None = None,
    masks: Masks | None = None,
    population: int | None = None,
    sample_weight: Any = None,
    class_weight: Any = None,
    resume: Model | None = None,
    **training: Unpack[Training],
) -> Model:
    """Train a network, or a population of them, and return the parameters that were best on validation.

    θ ← θ − η·update(∂J/∂θ) for every mini-batch; rows are reshuffled each epoch and the last n mod batch_size of
    them are left out of it. Without ``params`` training starts from ``network.init``.

    loss             a name from ``losses`` or a Loss; by default softmax cross-entropy for labels, else squared error
    masks            one array of 0 and 1 per weight; weights where it is 0 are and stay exactly 0
    population       P networks at once: member i is the run with seed + i, and arrays gain a leading axis of P; every
                     number below, and every number of the optimizer, may be an array of P
    sample_weight    one for each training row; class_weight: one for each class, a dict, or "balanced". J becomes the
                     weighted mean over the training rows; the validation loss is not weighted
    resume           a model that this function returned: go on from its last epoch, up to ``epochs`` in all
    optimizer        by default ``adam(cosine(1e-3))``
    epochs           20; batch_size: 32, at most all rows
    dropout          part of the hidden activations set to 0 in a training step, the others scaled up; input_dropout:
                     the same for the inputs
    label_smoothing  ε: targets are mixed with the uniform distribution in training
    patience         stop after so many epochs without a validation loss below the best − ``min_delta``; each member
                     of a population stops by itself
    callback         called with ``Progress`` after every epoch, and every chunk of a stream; True ends the run

    Raises ValueError for input that does not fit, DivergedError when no member's loss is finite any more.
    """
    backend = load(backend)
    keys = run_keys(seed, population)
    weights = {"sample_weight": sample_weight, "class_weight": class_weight}
    problem = prepare(network, data, loss, backend, fitted=data, **weights)
    if params is None:
        params = network.init(random.fold_in(keys, INIT), backend=backend)
    else:
        params = check_params(network, params, population)
    if masks is None and resume is not None:
        masks = resume.masks
    masks = None if masks is None else check_masks(network, masks, population)
    run = fit(problem, keys=keys, params=params, masks=masks, resume=resume, **training)
    return finished("gradient_descent", run, new_model(network, run.state.best, problem.loss, data))


def finished(algorithm: str, run: Fit, model: Model) -> Model:
    """The model with what the run found, or DivergedError with it."""
    params = tree.map(lambda leaf: leaf + 0.0, model.params)  # −0 becomes 0, as it comes back from a file
    model = replace(model, params=params, masks=run.masks, history=run.history, state=run.state)
    if run.diverged_at is None:
        return model
    finite = run.history["loss"][np.isfinite(run.history["loss"])]
    raise DivergedError(algorithm, run.diverged_at, finite[-1] if len(finite) else np.nan, model)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a run that diverges says so itself
def fit(
    problem: Problem,
    *,
    keys: np.ndarray,
    params: Params,
    masks: Masks | None = None,
    remask: Callable[[int, Params], Masks | None] | None = None,
    through: Through = DIRECT,
    values: Tree = None,
    resume: Model | None = None,
    optimizer: Optimizer | None = None,
    epochs: int = 20,
    batch_size: int = 32,
    dropout: Any = None,
    input_dropout: Any = None,
    label_smoothing: Any = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    callback: Callback | None = None,
) -> Fit:
    """The loop behind ``gradient_descent`` and behind the retraining of pruning and quantization.

    ``remask(epoch, params)`` may give new masks before an epoch: they are enforced at once on the parameters and
    on the optimizer's state, and the best is sought anew among the models that obey them.
    """
    members, backend = keys.shape[:-1], problem.backend
    optimizer = check_optimizer(optimizer or optimizers.adam(schedules.cosine(1e-3)), members)
    epochs, batch_size = check_count("epochs", epochs, 0), check_count("batch_size", batch_size, 1)
    patience = None if patience is None else check_count("patience", patience, 1)
    min_delta = check_numbers("min_delta", min_delta, members)
    noise = check_noise(problem.loss, members, input_dropout, dropout, label_smoothing)
    rule, batch_size = optimizer.rule, min(batch_size, problem.rows)
    if rule.full_batch:
        batch_size = check_whole(problem, noise)
    small = problem.network.parameters * prod(members) <= backend.packs
    static = Static(backend, problem.network, problem.loss, rule, through, batch_size, small)
    numbers, seen, blurs = to_backend(backend, (optimizer.config, values, noise))
    active = backend.asarray(np.ones(members, bool))
    given = Traced(numbers, masks_on(static, masks), seen, blurs, active)
    restart = backend.jit(begin, static=("static",), donate=("params", "opt_state"))
    revive = backend.jit(survivors, donate=("state",))
    programs = tuple(backend.jit(program, static=("static",), donate=("state",)) for program in (descend, epoch))
    params = enter(static, to_backend(backend, params))
    if resume is None:
        state = restart(params, None, problem.validation, given, static=static)
        log = Log(epochs, problem.rows // batch_size, np.array(backend.to_numpy(state.best_loss))[None])
    else:
        like = leave(static, State(params, rule.init(params), params, active))
        state = enter(static, to_backend(backend, check_resumed(resume, like)))
        log = Log(epochs, problem.rows // batch_size, **resume.history)

    draws = Draws(
        *(
            random.fold_in(random.fold_in(keys, use), np.arange(epochs)) if wanted else None
            for use, wanted in ((ORDER, True), (NOISE, noise.inputs is not None or noise.hidden is not None))
        )
    )
    since = 0
    for done in range(log.done, epochs):
        if remask and (new := remask(done, leave(static, (state := revive(state)).params))) is not None:
            masks, given, since = new, given._replace(masks=masks_on(static, new)), done + 1
            opt_state = None if rule.full_batch else state.opt_state  # a line search knows the loss where it stands
            state = restart(state.params, opt_state, problem.validation, given, static=static)
        elif patience is not None and since <= log.done:
            active = improving(np.stack(log.validation[since:]), patience, min_delta)
            if not active.any():
                break
            given = given._replace(active=backend.asarray(active))
        state, stop = one_epoch(state, problem, given, draws, optimizer.schedule, log, callback, programs, static)
        if stop or not np.isfinite(log.losses[-1][-1]).any():
            break
    history = log.history()
    return Fit(backend.to_numpy(leave(static, state)), masks, history, diverged_at(history["loss"]))


def enter(static: Static, values: Tree) -> Tree:
    """Every ``Params`` of the tree as the loop keeps it."""
    return each_params(pack, values) if static.packed else values


def leave(static: Static, values: Tree) -> Tree:
    """Every ``Params`` of the tree as everyone else knows it."""
    return each_params(partial(unpack, static.network), values) if static.packed else values


def masks_on(static: Static, masks: Masks | None) -> tuple[Array, ...] | None:
    """The masks on the backend, as the loop keeps the weights."""
    if masks is None or not static.packed:
        return masks and to_backend(static.backend, masks)
    flat = [mask.reshape((*mask.shape[:-2], -1)) for mask in masks]
    return to_backend(static.backend, (np.concatenate(flat, axis=-1),))


class Log:
    """What a run records, on the host."""

    def __init__(self, epochs: int, steps: int, validation_loss: Any, loss: Any = None, learning_rate: Any = None):
        self.epochs, self.steps = epochs, steps
        self.validation: list[np.ndarray] = list(validation_loss)
        self.losses: list[np.ndarray] = [] if loss is None else [loss]
        self.rates: list[np.ndarray] = [] if learning_rate is None else [learning_rate]
        self.step = sum(map(len, self.rates))
        self.started = perf_counter()

    @property
    def done(self) -> int:
        """Whole epochs."""
        return len(self.validation) - 1

    def next_rates(self, schedule: schedules.Schedule, steps: int) -> np.ndarray:
        """The learning rates of the next steps, checked."""
        run = schedules.Run(self.epochs * self.steps, self.steps, np.stack(self.validation))
        rates = np.asarray(schedule(np.arange(self.step, self.step + steps), run))
        if not (np.isfinite(rates) & (rates >= 0)).all():
            raise ValueError(f"learning_rate: the schedule gave {rates.min()} to {rates.max()} at step {self.step}")
        self.rates.append(rates)
        self.step += steps
        return rates

    def progress(self) -> Progress:
        """Of what was recorded last."""
        seconds = perf_counter() - self.started
        loss, rate = self.losses[-1].mean(axis=0), self.rates[-1][-1]
        return Progress(self.step / self.steps, self.epochs, loss, self.validation[-1], rate, seconds)

    def history(self) -> dict[str, np.ndarray]:
        """The record as arrays."""
        return {
            "loss": np.concatenate(self.losses) if self.losses else np.empty(0, np.float32),
            "learning_rate": np.concatenate(self.rates) if self.rates else np.empty(0),
            "validation_loss": np.stack(self.validation),
        }


def one_epoch(
    state: State,
    problem: Problem,
    given: Traced,
    draws: Draws,
    schedule: schedules.Schedule,
    log: Log,
    callback: Callback | None,
    programs: tuple[Callable[..., Any], Callable[..., Any]],
    static: Static,
) -> tuple[State, bool]:
    """All chunks of an epoch, then the validation; whether the callback ended the run."""
    backend, done, (run_chunk, run_last) = static.backend, log.done, programs
    keys = tree.map(lambda keys: keys[..., done, :], draws)
    for number, rows in enumerate(problem.chunks(done, static.batch_size)):
        if not (steps := rows.x.shape[0] // static.batch_size):
            break
        rates = backend.asarray(log.next_rates(schedule, steps), static.backend.xp.float32)
        here = tree.map(partial(random.fold_in, index=number), keys) if problem.streamed else keys
        key = tree.map(backend.asarray, here)
        if log.step == (done + 1) * log.steps:
            state, losses, loss = run_last(state, rows, problem.validation, key, rates, given, static=static)
            log.validation.append(backend.to_numpy(loss))
        else:
            state, losses = run_chunk(state, rows, key, rates, given, static=static)
        log.losses.append(backend.to_numpy(losses))
        if callback and callback(log.progress()) is True:
            return state, True
    return state, False


def check_optimizer(optimizer: Any, members: tuple[int, ...]) -> Optimizer:
    """Refuse what is no optimizer, and numbers that are not one for all or one for each member."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one made by minimodel.optimizers, adam(1e-3) say, got {optimizer!r}")
    rates = optimizer.schedule(np.arange(1), schedules.Run(1, 1, np.zeros((1, *members))))[0]
    for value in (*tree.leaves(optimizer.config), rates):
        check_numbers("optimizer", value, members)
    return optimizer


def check_noise(loss: Loss, members: tuple[int, ...], inputs: Any, hidden: Any, labels: Any) -> Noise:
    """The numbers, if they are within their ranges and the loss has labels to smooth."""
    if labels is not None and loss.scaled:
        raise ValueError(f"label_smoothing: {loss.name} has no labels to smooth")
    return Noise(
        check_numbers("input_dropout", inputs, members, below=1),
        check_numbers("dropout", hidden, members, below=1),
        check_numbers("label_smoothing", labels, members, below=1),
    )


def check_whole(problem: Problem, noise: Noise) -> int:
    """All rows as one batch, which a stream never has, and nothing random about it."""
    if noise.inputs is not None or noise.hidden is not None:
        raise ValueError("dropout, input_dropout: lbfgs searches along a line and cannot with a loss that is random")
    if not problem.streamed:
        return problem.rows
    raise ValueError("optimizer: lbfgs needs all rows at once, which a stream does not give; load them as Splits")


def check_resumed(model: Any, like: State) -> State:
    """The state that a model was left in, if it is one of this network, population and optimizer."""
    found = getattr(model, "state", None)
    shapes = [[leaf.shape for leaf in tree.leaves(values)] for values in (found, like)]
    if found is None or shapes[0] != shapes[1]:
        raise ValueError(
            "resume: expected a model that gradient_descent returned, not one from a file, for the same network, "
            f"population and optimizer; got {model!r:.80}"
        )
    return found


def improving(validation: np.ndarray, patience: int, min_delta: Any) -> np.ndarray:
    """Which members never went ``patience`` epochs without a loss below their best − min_delta."""
    best, waited, active = validation[0], np.zeros(validation.shape[1:], int), np.ones(validation.shape[1:], bool)
    for loss in validation[1:]:
        better = ~(loss >= best - min_delta) & ~np.isnan(loss)
        best, waited = np.where(better, loss, best), np.where(better, 0, waited + 1)
        active = active & (waited < patience)
    return active


def diverged_at(losses: np.ndarray) -> int | None:
    """The first step from which on no member's loss is finite."""
    alive = np.isfinite(losses).any(axis=tuple(range(1, losses.ndim)))
    if len(alive) == 0 or alive[-1]:
        return None
    return int(np.flatnonzero(alive)[-1]) + 1 if alive.any() else 0


def begin(params: Params, opt_state: Tree, validation: Rows, given: Traced, *, static: Static) -> State:
    """Enforce the masks on the parameters and the optimizer's state, new if None; the best so far is where we stand."""
    params = masked(params, given.masks)
    opt_state = static.rule.init(params) if opt_state is None else masked(opt_state, given.masks)
    best = tree.map(lambda p: static.backend.xp.asarray(p, copy=True), static.rule.read(params, opt_state))
    return State(params, opt_state, best, nan_last(validation_loss(best, validation, given, static)))


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


def validation_loss(params: Params, validation: Rows, given: Traced, static: Static) -> Array:
    """J on the validation part, of the parameters as they are used."""
    used = static.through.forward(given.values, leave(static, params))
    return losses.mean(static.loss.rows(static.network.apply(used, validation.x), validation.t)[0])


def epoch(
    state: State, rows: Rows, validation: Rows, key: Draws, rates: Array, given: Traced, *, static: Static
) -> tuple[State, Array, Array]:
    """The last chunk of an epoch, then the best so far by validation: the state, the loss of each step and that."""
    state, found = descend(state, rows, key, rates, given, static=static)
    xp, used = static.backend.xp, static.rule.read(state.params, state.opt_state)
    loss = validation_loss(used, validation, given, static)
    better = (loss < state.best_loss) & given.active
    best = tree.map(lambda old, new: xp.where(align(better, new), new, old), state.best, used)
    return State(state.params, state.opt_state, best, xp.where(better, loss, state.best_loss)), found, loss


def descend(
    state: State, rows: Rows, key: Draws, rates: Array, given: Traced, *, static: Static
) -> tuple[State, Array]:
    """One pass over the rows in a random order: the new state, and the loss of each step."""
    backend, noise = static.backend, given.noise

    def step(carry: tuple[Params, Tree], inputs: tuple[Array, Array, Array]) -> tuple[tuple[Params, Tree], Array]:
        (params, opt_state), (picked, noise_key, rate) = carry, inputs
        batch = rows if static.rule.full_batch else tree.map(lambda leaf: backend.take(leaf, picked), rows)
        t = batch.t if noise.labels is None else losses.smooth(batch.t, noise.labels)
        dropped = None
        if noise_key is not None:
            sizes = static.network.layer_sizes[:-1]
            dropped = dropout.noise(noise_key, noise.inputs, noise.hidden, sizes, static.batch_size, backend=backend)

        def evaluate(params: Params) -> tuple[Array, Params]:
            own = leave(static, params)
            used = static.through.forward(given.values, own)
            loss, grads = objective(static.network, static.loss, used, batch.x, t, batch.weight, dropped)
            return loss, masked(enter(static, static.through.backward(given.values, own, grads)), given.masks)

        loss, params, opt_state = static.rule.update(given.config, rate, evaluate, opt_state, params)
        return (params, opt_state), loss

    noise_keys = None
    if key.noise is not None:
        steps = backend.xp.arange(rates.shape[0], dtype=backend.xp.uint32)
        noise_keys = backend.xp.moveaxis(random.fold_in(key.noise, steps), -2, 0)
    batches = mini_batches(key.order, rows.x.shape[0], static)
    (params, opt_state), found = backend.scan(step, (state.params, state.opt_state), (batches, noise_keys, rates))
    return state._replace(params=params, opt_state=opt_state), found


def mini_batches(key: Array, rows: int, static: Static) -> Array:
    """Row numbers in random order, (steps, *population, batch); the remainder is left out."""
    xp, size = static.backend.xp, static.batch_size
    steps = rows // size
    order = random.permutation(key, rows, backend=static.backend)[..., : steps * size]
    return xp.moveaxis(xp.reshape(order, (*key.shape[:-1], steps, size)), -2, 0)
