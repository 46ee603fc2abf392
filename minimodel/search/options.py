"""What training takes, wherever it is part of an algorithm, and whether it fits the problem."""

from typing import Any, NamedTuple, TypedDict

import numpy as np

from minimodel import tree
from minimodel.losses import Loss
from minimodel.observe import Callback
from minimodel.problem import Problem, check_count, check_numbers
from minimodel.search import optimizers, schedules
from minimodel.search.lbfgs import TRIALS
from minimodel.search.optimizers import Optimizer
from minimodel.search.programs import Noise

DEFAULT = optimizers.adam(schedules.cosine(1e-3))


class Training(TypedDict, total=False):
    """What every algorithm that trains takes as keywords; ``gradient_descent`` explains it."""

    optimizer: Optimizer | None
    epochs: int
    batch_size: int
    dropout: Any
    input_dropout: Any
    label_smoothing: Any
    patience: Any
    min_delta: Any
    callback: Callback | None


def check_training(training: Training) -> None:
    """Refuse what is no option of training: ``fit`` itself takes more, which is not for users."""
    if unknown := sorted(set(training) - set(Training.__annotations__)):
        raise TypeError(f"unexpected argument {unknown[0]!r}; training takes {', '.join(Training.__annotations__)}")


class Options(NamedTuple):
    """``Training`` with its defaults, checked."""

    optimizer: Optimizer
    epochs: int
    batch_size: int
    noise: Noise
    patience: np.ndarray | None
    min_delta: Any
    callback: Callback | None


def check_options(
    problem: Problem,
    members: tuple[int, ...],
    *,
    optimizer: Optimizer | None = None,
    epochs: int = 20,
    batch_size: int = 32,
    dropout: Any = None,
    input_dropout: Any = None,
    label_smoothing: Any = None,
    patience: Any = None,
    min_delta: Any = 0.0,
    callback: Callback | None = None,
) -> Options:
    """The options, if they fit the problem and a population of these members."""
    optimizer = check_optimizer(optimizer or DEFAULT, members)
    epochs, batch_size = check_count("epochs", epochs, 0), check_count("batch_size", batch_size, 1)
    patience = check_numbers("patience", patience, members, low=1)
    if patience is not None and patience.dtype.kind not in "iu":
        raise ValueError(f"patience: expected whole epochs, got {patience!r}")
    min_delta = check_numbers("min_delta", 0.0 if min_delta is None else min_delta, members)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function of Progress, got {callback!r}")
    if label_smoothing is not None and problem.objective is not problem.loss:
        raise ValueError("label_smoothing: a teacher smooths the labels already; give one of the two")
    noise = check_noise(problem.loss, members, input_dropout, dropout, label_smoothing)
    batch_size = min(batch_size, problem.rows)
    if optimizer.rule.full_batch:
        batch_size = check_whole(problem, noise, patience)
    return Options(optimizer, epochs, batch_size, noise, patience, min_delta, callback)


def check_optimizer(optimizer: Any, members: tuple[int, ...]) -> Optimizer:
    """Refuse what is no optimizer, and numbers that are not one for all or one for each member."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one made by minimodel.optimizers, adam(1e-3) say, got {optimizer!r}")
    rates = np.asarray(optimizer.schedule(np.arange(1), schedules.Run(1, 1, np.zeros((1, *members)))))
    if rates.shape not in ((1,), (1, *members)):
        expected = f"one number or {members[0]}, one for each member" if members else "one number, without a population"
        raise ValueError(f"learning_rate: expected {expected}, got rates of shape {rates.shape[1:]}")
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


def check_whole(problem: Problem, noise: Noise, patience: np.ndarray | None) -> int:
    """All rows as one batch, which a stream never has, and nothing random about it."""
    if noise.inputs is not None or noise.hidden is not None:
        raise ValueError("dropout, input_dropout: lbfgs searches along a line and cannot with a loss that is random")
    if patience is not None and (patience <= TRIALS).any():
        raise ValueError(f"patience: an epoch of lbfgs is one trial of up to {TRIALS} on a line; expected more of them")
    if not problem.streamed:
        return problem.rows
    raise ValueError("optimizer: lbfgs needs all rows at once, which a stream does not give; load them as Splits")
