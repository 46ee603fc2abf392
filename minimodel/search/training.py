"""The loop of gradient descent, behind ``gradient_descent`` and behind the retraining of pruning and quantization."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minimodel import random, tree
from minimodel.model import Model
from minimodel.network import Params
from minimodel.problem import DivergedError, Masks, Problem, to_backend
from minimodel.search.log import Log, diverged_at, improving
from minimodel.search.options import Options, check_options
from minimodel.search.programs import (
    Direct,
    Draws,
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


Remask = Callable[[int, Masks | None, Params, Tree], tuple[Masks, Params | None] | None]


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
    remask: Remask | None = None,
    settled: int = 0,
    through: Through = Direct(),
    values: Tree = None,
    resume: Model | None = None,
    **training: Any,
) -> Fit:
    """Train from ``params`` or, without, from ``network.init``; or go on from where ``resume`` stopped.

    ``remask(epoch, masks, params, opt_state)`` may give new masks before an epoch: they are enforced at once on the
    parameters and on the optimizer's state, and the best is sought anew among the models that obey them. With the
    masks it may give parameters to go on from, with a new optimizer's state. From the epoch ``settled`` on it gives
    none; patience begins there.
    """
    members, backend = keys.shape[:-1], problem.backend
    options, purposes = check_options(problem, members, **training), random.fold_in(keys, np.arange(3))
    loop = Loop.of(problem, options, purposes, through)
    numbers, seen, blurs = to_backend(backend, (options.optimizer.config, values, options.noise))
    everyone = backend.asarray(np.ones(members, bool))
    given = Traced(numbers, masks_on(loop.static, masks), seen, blurs, everyone)
    if params is None:
        params = problem.network.init(purposes[..., INIT, :], backend=backend)
    else:
        params = to_backend(backend, params)
    state, log = loop.start(params, given) if resume is None else loop.go_on(resume, params, masks, given)

    since = 0  # the epoch from which on the best is sought
    for done in range(log.done, options.epochs):
        new = None
        if remask:
            state, at = loop.alive(state)
            new = remask(done, masks, leave(loop.static, at), leave(loop.static, state.opt_state))
        if new is not None:
            (masks, moved), since = new, done + 1
            given = given._replace(masks=masks_on(loop.static, masks), active=everyone)
            if moved is not None:
                state, at = state._replace(opt_state=None), enter(loop.static, to_backend(backend, moved))
            state = loop.restart(state, at, given)
        elif options.patience is not None and max(since, settled) <= log.done:
            going = improving(log.validation[since:], options.patience, options.min_delta)
            if not going.any():
                break
            given = given._replace(active=going)
        state, stop = loop.one_epoch(state, given, log)
        if stop:
            break
    history = log.history()
    at_step = diverged_at(history["loss"], history["validation_loss"][-1])
    return Fit(backend.to_numpy(leave(loop.static, state)), masks, history, at_step)


class Loop(NamedTuple):
    """What stays as it is from epoch to epoch, and the programs, compiled on the problem's backend."""

    problem: Problem
    options: Options
    static: Static
    draws: list[Draws]  # of each epoch
    programs: dict[Any, Callable[..., Any]]

    @classmethod
    def of(cls, problem: Problem, options: Options, purposes: np.ndarray, through: Through) -> "Loop":
        """For the keys of all purposes, (*population, 3, 2)."""
        members, network, backend = purposes.shape[:-2], problem.network, problem.backend
        rule, size = options.optimizer.rule, options.batch_size
        packed = rule.elementwise and not through.learned and network.parameters * prod(members) <= backend.packs
        static = Static(backend, network, problem.objective, rule, through, size, packed)
        noisy = options.noise.inputs is not None or options.noise.hidden is not None
        uses = (ORDER, NOISE) if noisy else (ORDER,)
        keys = [random.fold_in(purposes[..., use, :], np.arange(options.epochs)) for use in uses]
        draws = [Draws(*own) for own in zip(*(np.moveaxis(each, -2, 0) for each in keys), strict=True)]
        donated = {begin: ("params", "opt_state"), survivors: ("state",), descend: ("state",), epoch: ("state",)}
        programs = {fn: backend.jit(fn, static=("static",), donate=names) for fn, names in donated.items()}
        return cls(problem, options, static, draws, programs)

    def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """The program of ``fn``."""
        return self.programs[fn](*args, static=self.static)

    def new_log(self, validation_loss: Any) -> Log:
        """Of a run that has not begun."""
        return Log(self.options.epochs, self.problem.rows // self.static.batch_size, validation_loss)

    def start(self, params: Params, given: Traced) -> tuple[State, Log]:
        """The state and the log before the first epoch."""
        state = self.run(begin, enter(self.static, params), None, self.problem.validation, given)
        return state, self.new_log(np.array(self.static.backend.to_numpy(state.best_loss))[None])

    def restart(self, state: State, at: Params, given: Traced) -> State:
        """The state under new masks; a line search forgets the loss it knew, which they change."""
        opt_state = None if self.static.rule.full_batch else state.opt_state
        return self.run(begin, at, opt_state, self.problem.validation, given)

    def go_on(self, model: Model, params: Params, masks: Masks | None, given: Traced) -> tuple[State, Log]:
        """The state and the log that a model carries, under its own masks or new ones."""
        packed = enter(self.static, params)
        like = leave(self.static, State(packed, self.static.rule.init(packed), packed, given.active, packed))
        log = check_resumed(model, like, self.problem, self.new_log([0]))
        state = enter(self.static, to_backend(self.static.backend, model.state))
        if not same_masks(masks, model.masks):
            state = self.restart(state, self.standing(state), given)
        return state, log

    def alive(self, state: State) -> tuple[State, Params]:
        """The state with diverged members taken back, and where it stands."""
        state = self.run(survivors, state)
        return state, self.standing(state)

    def standing(self, state: State) -> Params:
        """The parameters that training goes on from: of a line search not its next trial."""
        rule = self.static.rule
        return rule.read(state.params, state.opt_state) if rule.full_batch else state.params

    def one_epoch(self, state: State, given: Traced, log: Log) -> tuple[State, bool]:
        """All chunks of an epoch, then the validation; whether the callback ended the run."""
        problem, options, done = self.problem, self.options, log.done
        keys = self.draws[done]
        passed = log.step - done * log.steps  # of a stream's epoch, where a callback had ended the run
        for number, rows in enumerate(problem.chunks(done, options.batch_size)):
            if not (steps := rows.x.shape[0] // options.batch_size):
                break
            if (passed := passed - steps) >= 0:
                continue
            rates = log.next_rates(options.optimizer.schedule, steps).astype(np.float32)
            key = tree.map(partial(random.fold_in, index=number), keys) if problem.streamed else keys
            if log.step == (done + 1) * log.steps:
                state, *found = self.run(epoch, state, rows, problem.validation, key, rates, given)
            else:
                state, *found = self.run(descend, state, rows, key, rates, given)
            losses, *loss = problem.backend.to_numpy(tuple(found))
            log.add(losses, *loss)
            stop = options.callback and options.callback(log.progress())
            if (isinstance(stop, bool | np.bool_) and stop) or not np.isfinite(losses[-1]).any():
                return state, True
        return state, False


def same_masks(one: Masks | None, other: Masks | None) -> bool:
    """Whether they keep the same weights."""
    if one is None or other is None:
        return one is other
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def check_resumed(model: Any, like: State, problem: Problem, log: Log) -> Log:
    """The log to go on with, if the model is one of this network, loss, population, optimizer and size of batches."""
    found = getattr(model, "state", None)
    shapes = [[leaf.shape for leaf in tree.leaves(values)] for values in (found, like) if isinstance(values, State)]
    fits = len(shapes) == 2 and shapes[0] == shapes[1] and model.quantized is None
    fits = fits and model.network == problem.network and model.loss is problem.loss
    old = Log(log.epochs, log.steps, **{name: model.history.get(name) for name in log.history()}) if fits else None
    if old is None or not 0 <= old.step - old.done * log.steps < log.steps:
        raise ValueError(
            "resume: expected a model that gradient_descent returned, not one from a file, for the same network, loss, "
            f"population, optimizer and batch_size; got {model!r:.80}"
        )
    return old


def finished(algorithm: str, run: Fit, model_of: Callable[[Params], Model]) -> Model:
    """The model of the best parameters, with what the run found, or DivergedError with it."""

    def complete(params: Params) -> Model:
        model = model_of(params)
        params = tree.map(lambda leaf: leaf + 0.0, model.params)  # −0 becomes 0, as it comes back from a file
        return replace(model, params=params, masks=run.masks, history=run.history, state=run.state)

    if run.diverged_at is None:
        lost = np.flatnonzero(~np.isfinite(run.history["loss"][-1:]).all(axis=0))
        if len(lost):
            text = f"{algorithm}: of the population, members {lost.tolist()} diverged; each is the best it was before"
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        return complete(run.state.best)
    finite = run.history["loss"][np.isfinite(run.history["loss"])]
    loss = finite[-1] if len(finite) else np.nan
    raise DivergedError(algorithm, run.diverged_at, loss, complete(run.state.best), complete(run.state.last))
