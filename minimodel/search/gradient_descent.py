"""Gradient descent: θ ← θ − η ∇J(θ) on mini-batches redrawn each epoch, the best on validation kept."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from minimodel.backends import Backend, load
from minimodel.datasets import Splits
from minimodel.losses import Loss
from minimodel.model import Model, new_model
from minimodel.network import Network, Params
from minimodel.problem import Masks, check_masks, check_params, prepare, run_keys
from minimodel.search.options import Training, check_training
from minimodel.search.training import finished, fit
from minimodel.streams import Stream
from minimodel.teacher import Teacher


def gradient_descent(
    network: Network,
    data: Splits | Stream,
    *,
    seed: int | Sequence[int] | np.ndarray,
    backend: str | Backend = "numpy",
    loss: str | Loss | None = None,
    params: Params | None = None,
    masks: Masks | None = None,
    population: int | None = None,
    sample_weight: Any = None,
    class_weight: Any = None,
    teacher: Teacher | None = None,
    resume: Model | None = None,
    **training: Unpack[Training],
) -> Model:
    """Train a network, or a population of them, and return the parameters that were best on validation.

    θ ← θ − η·update(∂J/∂θ) for every mini-batch; rows are reshuffled each epoch (those of a stream within
    its chunks) and the last n mod batch_size of them are left out of it. Without ``params`` training starts from
    ``network.init``.

    loss             a name from ``losses`` or a Loss; by default softmax cross-entropy for labels, else squared error
    masks            one array of 0 and 1 per weight; weights where it is 0 are and stay exactly 0
    population       P networks at once: member i is the run with seed + i, or with seed[i] where there are P seeds, and
                     arrays gain a leading axis of P; the learning rate and every number of the optimizer, dropout,
                     input_dropout, label_smoothing, patience and min_delta may be arrays of P
    sample_weight    one for each training row; class_weight: one for each class, a dict, or "balanced". J becomes the
                     weighted mean over the training rows; the validation loss is not weighted
    teacher          learn from a model's outputs as well as from the targets
    resume           a model that this function returned: go on from its last epoch, up to ``epochs`` in all; the data,
                     seed and optimizer should be the same, and the schedule one that does not depend on ``epochs``
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
    check_training(training)
    backend = load(backend)
    keys = run_keys(seed, population)
    weights = {"sample_weight": sample_weight, "class_weight": class_weight}
    problem = prepare(network, data, loss, backend, fitted=data, teacher=teacher, **weights)
    if resume is not None and params is not None:
        raise ValueError("params: resume goes on from its own parameters; give one of the two")
    if params is not None:
        params = check_params(network, params, population)
    masks = getattr(resume, "masks", None) if masks is None else check_masks(network, masks, population)
    run = fit(problem, keys=keys, params=params, masks=masks, resume=resume, **training)
    return finished("gradient_descent", run, lambda params: new_model(network, params, problem.loss, data))
