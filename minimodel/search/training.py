"""The loop of gradient descent, behind ``gradient_descent`` and behind the retraining of pruning and quantization."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from time import perf_counter
from typing import Any, NamedTuple, TypedDict

import numpy as np

from minimodel import random, tree
from minimodel.losses import Loss
from minimodel.model import Model
from minimodel.network import Network, Params
from minimodel.observe import Callback, Progress
from minimodel.problem import DivergedError, Masks, Problem, check_count, check_numbers, to_backend
from minimodel.search import optimizers, schedules
from minimodel.search.lbfgs import TRIALS
from minimodel.search.optimizers import Optimizer
from minimodel.search.programs import (
    DIRECT,
    Draws,
    Noise,
    State,
    Static,
    Through,
    Traced,
    begin,
    descend,
    enter,
    epoch,
    leave,
    masks_on,
    survivors,
)
from minimodel.tree import Tree

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


def check_training(training: Training) -> None:
    """Refuse what is no option of training: ``fit`` itself takes more, which is not for users."""
    if unknown := sorted(set(training) - set(Training.__annotations__)):
        raise TypeError(f"unexpected argument {unknown[0]!r}; training takes {', '.join(Training.__annotations__)}")


class Fit(NamedTuple):
    """What ``fit`` returns, on the host."""

    state: State
    masks: Masks | None
    history: dict[str, np.ndarray]
    diverged_at: int | None


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a run that diverges says so itself
def fit(
    problem: Problem,
    *,
    keys: np.ndarray,
    params: Params | None,
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

    Without ``params`` it starts from ``network.init``. ``remask(epoch, params)`` may give new masks before an epoch:
    they are enforced at once on the parameters and on the optimizer's state, and the best is sought anew among the
    models that obey them.
    """
    members, backend = keys.shape[:-1], problem.backend
    optimizer = check_optimizer(optimizer or optimizers.adam(schedules.cosine(1e-3)), members)
    epochs, batch_size = check_count("epochs", epochs, 0), check_count("batch_size", batch_size, 1)
    patience = None if patience is None else check_count("patience", patience, 1)
    min_delta = check_numbers("min_delta", 0.0 if min_delta is None else min_delta, members)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function of Progress, got {callback!r}")
    noise = check_noise(problem.loss, members, input_dropout, dropout, label_smoothing)
    rule, batch_size = optimizer.rule, min(batch_size, problem.rows)
    if rule.full_batch:
        batch_size = check_whole(problem, noise, patience)
    small = problem.network.parameters * prod(members) <= backend.packs
    static = Static(backend, problem.network, problem.loss, rule, through, batch_size, small)
    numbers, seen, blurs = to_backend(backend, (optimizer.config, values, noise))
    active = np.ones(members, bool)
    given = Traced(numbers, masks_on(static, masks), seen, blurs, active)
    restart = backend.jit(begin, static=("static",), donate=("params", "opt_state"))
    revive = backend.jit(survivors, static=("static",), donate=("state",))
    purposes = random.fold_in(keys, np.arange(3))
    if params is None:
        params = problem.network.init(purposes[..., INIT, :], backend=backend)
    else:
        params = to_backend(backend, params)
    params = enter(static, params)
    if resume is None:
        state = restart(params, None, problem.validation, given, static=static)
        log = Log(epochs, problem.rows // batch_size, np.array(backend.to_numpy(state.best_loss))[None])
    else:
        like = leave(static, State(params, rule.init(params), params, active, params))
        log = check_resumed(resume, like, problem.network, Log(epochs, problem.rows // batch_size, [0]))
        state = enter(static, to_backend(backend, resume.state))
        if masks is not resume.masks:
            state = restart(state.params, state.opt_state, problem.validation, given, static=static)

    noisy = noise.inputs is not None or noise.hidden is not None
    uses = (ORDER, NOISE) if noisy else (ORDER,)
    draws = Draws(*(random.fold_in(purposes[..., use, :], np.arange(epochs)) for use in uses))
    loop, since = Loop.of(problem, static, draws, optimizer.schedule, callback), 0
    for done in range(log.done, epochs):
        new = None
        if remask:
            state = revive(state, static=static)  # and of a line search the point it stands at, not the next trial
            at = rule.read(state.params, state.opt_state) if rule.full_batch else state.params
            new = remask(done, leave(static, at))
        if new is not None:
            masks, given, since = new, given._replace(masks=masks_on(static, new)), done + 1
            opt_state = None if rule.full_batch else state.opt_state  # it knows a loss that the masks change
            state = restart(at, opt_state, problem.validation, given, static=static)
        elif patience is not None and since <= log.done:
            active = improving(np.stack(log.validation[since:]), patience, min_delta)
            if not active.any():
                break
            given = given._replace(active=active)
        state, stop = one_epoch(state, given, log, loop)
        if stop:
            break
    history = log.history()
    return Fit(
        backend.to_numpy(leave(static, state)),
        masks,
        history,
        diverged_at(history["loss"], history["validation_loss"][-1]),
    )


class Log:
    """What a run records, on the host."""

    def __init__(self, epochs: int, steps: int, validation_loss: Any, loss: Any = None, learning_rate: Any = None):
        self.epochs, self.steps = epochs, steps
        self.validation: list[np.ndarray] = list(validation_loss)
        self.losses: list[np.ndarray] = [] if loss is None or not len(loss) else [loss]
        self.rates: list[np.ndarray] = [] if learning_rate is None or not len(learning_rate) else [learning_rate]
        self.step = sum(map(len, self.rates))
        self.first, self.started = self.step / steps, perf_counter()

    @property
    def done(self) -> int:
        """Whole epochs."""
        return len(self.validation) - 1

    def next_rates(self, schedule: schedules.Schedule, steps: int) -> np.ndarray:
        """The learning rates of the next steps, checked."""
        run = schedules.Run(self.epochs * self.steps, self.steps, np.asarray(self.validation))
        rates = np.asarray(schedule(np.arange(self.step, self.step + steps), run))
        shape = self.validation[0].shape
        if rates.shape not in ((steps,), (steps, *shape)) or rates.dtype.kind not in "iuf":
            raise ValueError(
                f"learning_rate: the schedule must give ({steps},) or {(steps, *shape)}, got {rates.shape}"
            )
        if not 0 <= rates.min() <= rates.max() < np.inf:
            raise ValueError(f"learning_rate: the schedule gave {rates.min()} to {rates.max()} at step {self.step}")
        self.rates.append(rates)
        self.step += steps
        return rates

    def all_rates(self) -> np.ndarray:
        """One for each step, or one for each step and member where they ever differed."""
        lead = self.validation[0].shape if any(rates.ndim > 1 for rates in self.rates) else ()
        full = [rates.reshape(len(rates), *(rates.shape[1:] or (1,) * len(lead))) for rates in self.rates]
        return np.concatenate([np.broadcast_to(r, (len(r), *lead)) for r in full]) if full else np.empty(0)

    def progress(self) -> Progress:
        """Of what was recorded last."""
        seconds = perf_counter() - self.started
        loss, rate = self.losses[-1].mean(axis=0), self.rates[-1][-1]
        return Progress(self.step / self.steps, self.epochs, loss, self.validation[-1], rate, seconds, self.first)

    def history(self) -> dict[str, np.ndarray]:
        """The record as arrays."""
        return {
            "loss": np.concatenate(self.losses) if self.losses else np.empty(0, np.float32),
            "learning_rate": self.all_rates(),
            "validation_loss": np.stack(self.validation),
        }


class Loop(NamedTuple):
    """What stays as it is from epoch to epoch."""

    problem: Problem
    static: Static
    draws: Draws  # of all epochs
    schedule: schedules.Schedule
    callback: Callback | None
    run_chunk: Callable[..., Any]
    run_last: Callable[..., Any]

    @classmethod
    def of(cls, problem: Problem, static: Static, *others: Any) -> "Loop":
        """With the programs compiled on the problem's backend."""
        programs = (static.backend.jit(fn, static=("static",), donate=("state",)) for fn in (descend, epoch))
        return cls(problem, static, *others, *programs)


def one_epoch(state: State, given: Traced, log: Log, loop: Loop) -> tuple[State, bool]:
    """All chunks of an epoch, then the validation; whether the callback ended the run."""
    problem, static, backend, done = loop.problem, loop.static, loop.problem.backend, log.done
    keys = tree.map(lambda keys: keys[..., done, :], loop.draws)
    passed = log.step - done * log.steps  # of a stream's epoch, where a callback had ended the run
    for number, rows in enumerate(problem.chunks(done, static.batch_size)):
        if not (steps := rows.x.shape[0] // static.batch_size):
            break
        if (passed := passed - steps) >= 0:
            continue
        rates = log.next_rates(loop.schedule, steps).astype(np.float32)
        key = tree.map(partial(random.fold_in, index=number), keys) if problem.streamed else keys
        if log.step == (done + 1) * log.steps:
            state, *found = loop.run_last(state, rows, problem.validation, key, rates, given, static=static)
        else:
            state, *found = loop.run_chunk(state, rows, key, rates, given, static=static)
        losses, *loss = map(backend.to_numpy, found)
        log.losses.append(losses)
        log.validation += loss
        stop = loop.callback and loop.callback(log.progress())
        if (isinstance(stop, bool | np.bool_) and stop) or not np.isfinite(losses[-1]).any():
            return state, True
    return state, False


def check_optimizer(optimizer: Any, members: tuple[int, ...]) -> Optimizer:
    """Refuse what is no optimizer, and numbers that are not one for all or one for each member."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one made by minimodel.optimizers, adam(1e-3) say, got {optimizer!r}")
    rates = np.asarray(optimizer.schedule(np.arange(1), schedules.Run(1, 1, np.zeros((1, *members)))))
    if rates.shape not in ((1,), (1, *members)):
        raise ValueError(f"learning_rate: the schedule must give (steps,) or {('steps', *members)}, got {rates.shape}")
    for value in (*tree.leaves(optimizer.config), rates[0]):
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


def check_whole(problem: Problem, noise: Noise, patience: int | None) -> int:
    """All rows as one batch, which a stream never has, and nothing random about it."""
    if noise.inputs is not None or noise.hidden is not None:
        raise ValueError("dropout, input_dropout: lbfgs searches along a line and cannot with a loss that is random")
    if patience is not None and patience <= TRIALS:
        raise ValueError(f"patience: an epoch of lbfgs is one trial of up to {TRIALS} on a line; expected more of them")
    if not problem.streamed:
        return problem.rows
    raise ValueError("optimizer: lbfgs needs all rows at once, which a stream does not give; load them as Splits")


def check_resumed(model: Any, like: State, network: Network, log: Log) -> Log:
    """The log to go on with, if the model is one of this network, population, optimizer and size of batches."""
    found = getattr(model, "state", None)
    shapes = [[leaf.shape for leaf in tree.leaves(values)] for values in (found, like)]
    old = Log(log.epochs, log.steps, **model.history) if found is not None and shapes[0] == shapes[1] else None
    if old is None or model.network != network or not 0 <= old.step - old.done * log.steps < log.steps:
        raise ValueError(
            "resume: expected a model that gradient_descent returned, not one from a file, for the same network, "
            f"population, optimizer and batch_size; got {model!r:.80}"
        )
    return old


def improving(validation: np.ndarray, patience: int, min_delta: Any) -> np.ndarray:
    """Which members never went ``patience`` epochs without a loss below their best − min_delta."""
    best, waited, active = validation[0], np.zeros(validation.shape[1:], int), np.ones(validation.shape[1:], bool)
    for loss in validation[1:]:
        better = ~(loss >= best - min_delta) & ~np.isnan(loss)
        best, waited = np.where(better, loss, best), np.where(better, 0, waited + 1)
        active = active & (waited < patience)
    return np.asarray(active)


def diverged_at(losses: np.ndarray, validation: np.ndarray) -> int | None:
    """The first step from which on no member's loss is finite, the validation after the last one counting as a step."""
    alive = np.isfinite(losses).any(axis=tuple(range(1, losses.ndim)))
    if len(alive) == 0 or (alive[-1] and np.isfinite(validation).any()):
        return None
    if alive[-1]:
        return len(alive)
    return int(np.flatnonzero(alive)[-1]) + 1 if alive.any() else 0


def finished(algorithm: str, run: Fit, model_of: Callable[[Params], Model]) -> Model:
    """The model of the best parameters, with what the run found, or DivergedError with it."""

    def complete(params: Params) -> Model:
        model = model_of(params)
        params = tree.map(lambda leaf: leaf + 0.0, model.params)  # −0 becomes 0, as it comes back from a file
        return replace(model, params=params, masks=run.masks, history=run.history, state=run.state)

    if run.diverged_at is None:
        return complete(run.state.best)
    finite = run.history["loss"][np.isfinite(run.history["loss"])]
    loss = finite[-1] if len(finite) else np.nan
    raise DivergedError(algorithm, run.diverged_at, loss, complete(run.state.best), complete(run.state.last))
