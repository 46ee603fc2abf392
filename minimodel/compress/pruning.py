"""Weight pruning: w ← 0 where |w| < τ, then retrain what is left."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from minimodel import random
from minimodel.backends import Backend, load
from minimodel.compress import patterns, pruning_schedules, scores
from minimodel.compress.patterns import Pattern
from minimodel.compress.pruner import Cut, Pruner
from minimodel.compress.pruning_schedules import PruningSchedule
from minimodel.compress.samples import sample
from minimodel.compress.scores import Score
from minimodel.compress.shrinking import warn_of_collapse
from minimodel.compress.target import find_target
from minimodel.datasets import Splits
from minimodel.model import Model
from minimodel.network import Params
from minimodel.problem import Masks, check_count, check_params, prepare, run_keys, to_backend
from minimodel.search import optimizers
from minimodel.search.options import DEFAULT, Training, check_training
from minimodel.search.training import finished, fit
from minimodel.streams import Stream
from minimodel.teacher import Teacher
from minimodel.tree import Tree

SCORES = 3  # what the run's key is folded with for the draws of pruning; training uses 0 to 2


def prune(
    model: Model,
    data: Splits | Stream,
    *,
    seed: int | Sequence[int] | np.ndarray,
    sparsity: Any = None,
    threshold: float | None = None,
    count: Any = None,
    score: str | Score = "magnitude",
    pattern: str | Pattern = "unstructured",
    allocation: str | Sequence[float] = "global",
    schedule: str | PruningSchedule = "one_shot",
    cap: float = 1.0,
    correct: bool = False,
    rewind: Params | Model | None = None,
    backend: str | Backend = "numpy",
    sample_weight: Any = None,
    class_weight: Any = None,
    teacher: Teacher | None = None,
    **training: Unpack[Training],
) -> Model:
    """Remove the weights of lowest score and retrain the others; biases are never pruned.

    Give one of
        sparsity     the fraction to remove; of n units, n − round(sparsity·n) are kept, ties going to the first
        count        how many to remove
        threshold    remove where the score, |w| by default, is below it
        allocation   a sequence with the sparsity of each layer
    sparsity and count may be arrays over the population. A model that is pruned already stays so, but for what "regrow"
    grows: its zeros count among those to remove. One that is quantized becomes a float model again.

    score        a name from ``scores`` or a function of ``scores.Evidence``; it looks at up to 4,096 training rows
    pattern      what goes together, and is counted: "unstructured", "2:4" (any n of m, which settles the sparsity by
                 itself), "rows", "columns", "neurons", or a pattern of your own
    allocation   "global": the lowest of all layers together; "uniform"; "erdos_renyi"; or a sparsity for each layer
    schedule     "one_shot", "periodic", "gradual", "regrow", or one made by ``pruning_schedules``
    cap          the largest part of its units that a layer may lose: below 1 no layer collapses
    correct      let the weights that stay make up for those that go, layer by layer (optimal brain surgeon)
    rewind       parameters to which the weights that stay return whenever others go; those that training began with
                 make a lottery ticket (Frankle, Carbin 2019), and calls one after another iterate it
    teacher      learn from a model's outputs, the dense one's say, as well as from the targets
    training     of what is left, as in ``gradient_descent``, by default 10 epochs; epochs=0 only prunes

    The masks are enforced on the weights and on the optimizer's state, which begins anew where ``correct`` or
    ``rewind`` change the parameters. A callback that ends the run early leaves it at the sparsity it had got to. Warns
    where no kept weight of a layer lies on a way from an input to an output. Raises ValueError for input that does not
    fit.
    """
    check_training(training)
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model, got {model!r:.80}")
    backend, keys = load(backend), run_keys(seed, model.population)
    score, pattern, schedule = scores.get(score), patterns.get(pattern), pruning_schedules.get(schedule)
    epochs = check_count("epochs", training.setdefault("epochs", 10), 0)
    goals = {"sparsity": sparsity, "threshold": threshold, "count": count}
    target = find_target(goals, allocation, pattern, cap, model.network, keys.shape[:-1], model.masks)
    if 1.0 not in schedule.parts(0, epochs):  # there are cuts to come
        if threshold is not None:
            raise ValueError(f"threshold: it prunes at once, expected schedule='one_shot', got {schedule!r}")
        if epochs < 1:
            raise ValueError(
                f"epochs: expected at least 1 to prune in, with schedule='one_shot' 0 would do; got {epochs}"
            )
    if rewind is not None:
        rewind = check_params(model.network, getattr(rewind, "params", rewind), model.population, "rewind")
        if correct:
            raise ValueError("correct: rewinding would undo the corrections; give one of correct and rewind")
    weights = {"sample_weight": sample_weight, "class_weight": class_weight}
    problem = prepare(model.network, data, model.loss, backend, fitted=model, teacher=teacher, **weights)
    key = random.fold_in(keys, SCORES)
    pruner = Pruner(problem, schedule, score, pattern, target, sample(problem), key, epochs, rewind, correct)
    masks, params = model.masks, model.params
    moving = scores.is_of_training(score)
    if moving:
        if schedule.first is None and not any(1.0 in schedule.parts(epoch, epochs) for epoch in range(1, epochs)):
            raise ValueError("score: movement is that of a training; take a schedule that prunes while training")
        training["optimizer"] = optimizers.tracked(training.get("optimizer") or DEFAULT)
    if (not moving or schedule.first) and (cut := pruner.cut(0, masks, to_backend(backend, params), None)):
        masks, params = cut.masks, params if cut.params is None else cut.params

    def later(epoch: int, masks: Masks | None, params: Params, opt_state: Tree) -> Cut | None:
        return pruner.cut(epoch, masks, params, opt_state.total if moving else None) if epoch else None

    cuts = [at for at in range(epochs) if schedule.parts(at, epochs) or schedule.exchanged(at, epochs)]
    settled = max(cuts, default=0)
    remask = later if settled else None  # of one shot no epoch need ask
    run = fit(problem, keys=keys, params=params, masks=masks, remask=remask, settled=settled, **training)
    warn_of_collapse(run.masks)
    return finished("prune", run, lambda params: replace(model, params=params, quantized=None, bits=None))
