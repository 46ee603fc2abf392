"""A network, data and a loss that fit each other, on a backend: what every algorithm starts from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minimodel import losses, random, tree
from minimodel.backends import Backend
from minimodel.datasets import Dataset, Splits
from minimodel.losses import Loss
from minimodel.network import Layer, Network, Params
from minimodel.tree import Array, Tree

Callback = Callable[[int, int, float], None]  # steps done, steps in all, the loss being watched
Pair = tuple[Array, Array]  # inputs and targets
Masks = tuple[np.ndarray, ...]  # one array of bool per weight: what is kept


class Problem(NamedTuple):
    """A network, a loss, and (x, y) of the train and the validation part on a backend."""

    backend: Backend
    network: Network
    loss: Loss
    train: Pair
    validation: Pair


class DivergedError(RuntimeError):
    """A run whose loss left the finite numbers.

    step               the step at which it did, from 0
    last_finite_loss   the training loss before
    model              the best model up to there, finite
    """

    def __init__(self, algorithm: str, step: int, last_finite_loss: float, model: Any) -> None:
        super().__init__(
            f"{algorithm} diverged at step {step}; the last finite loss was {last_finite_loss:.6g}. "
            "Lower the learning rate, or check the scale of the data; the error's .model is the best one before"
        )
        self.step, self.last_finite_loss, self.model = step, last_finite_loss, model


def prepare(
    network: Network,
    data: Splits,
    loss: str | Loss | None,
    backend: Backend,
    fitted: Any,
) -> Problem:
    """Check that the data fit the network and the loss, normalise them as ``fitted`` (the data or a model) says, move
    them to the backend.

    Without a loss, labels mean softmax cross-entropy and other targets the mean squared error.
    """
    if not isinstance(data, Splits):
        raise TypeError(f"data: expected Splits, got {type(data).__name__}; datasets.split(x, y, seed=…) makes them")
    if loss is None:
        loss = "softmax_cross_entropy" if data.train.y.ndim == 1 else "mean_squared_error"
    loss = losses.get(loss)
    parts = []
    for name in ("train", "validation"):
        x, y = check_data(network, loss, getattr(data, name), name)
        x = fitted.normalization(x) if fitted.normalization else x
        y = fitted.targets(y) if loss.scaled and fitted.targets else y
        parts.append((backend.asarray(x, backend.xp.float32), backend.asarray(y)))
    return Problem(backend, network, loss, *parts)


def check_data(network: Network, loss: Loss, data: Dataset, name: str = "data") -> Dataset:
    """The data with targets as the loss takes them; ValueError where something does not fit."""
    if not isinstance(data, Dataset):
        raise TypeError(f"{name}: expected a Dataset(x, y), got {type(data).__name__}")
    x, y = np.asarray(data.x), np.asarray(data.y)
    x = x.reshape(len(x), -1) if x.ndim > 2 else x
    inputs, outputs = network.layer_sizes[0], network.layer_sizes[-1]
    if x.ndim != 2 or x.shape[1] != inputs:
        raise ValueError(f"{name}.x: the network takes (n, {inputs}), got {x.shape}")
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"{name}: expected x and y of one length of at least 1, got {len(x)} and {len(y)}")
    if x.dtype.kind not in "uifb" or y.dtype.kind not in "uifb":
        raise ValueError(f"{name}: x and y must be numbers, got {x.dtype} and {y.dtype}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"{name}: x or y holds NaN or infinity; remove or fill it")
    if not loss.labels:
        y = (y[:, None] if y.ndim == 1 else y).astype(np.float32)
        if y.shape[1:] != (outputs,):
            raise ValueError(f"{name}.y: {loss.name} and the network expect (n, {outputs}), got {np.shape(data.y)}")
        if loss is losses.binary_cross_entropy and not (y.min() >= 0 and y.max() <= 1):
            raise ValueError(f"{name}.y: {loss.name} expects targets from 0 to 1, got {y.min()} to {y.max()}")
    elif y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= outputs:
        what = f"{y.dtype} of shape {y.shape}" + (f" from {y.min()} to {y.max()}" if y.dtype.kind in "iu" else "")
        raise ValueError(f"{name}.y: {loss.name} expects integer labels (n,) from 0 to {outputs - 1}, got {what}")
    else:
        y = y.astype(np.int32)
    return Dataset(x, y)


def run_keys(seed: Any, population: int | None) -> np.ndarray:
    """The key of the seed; with a population, member i has the key of seed + i."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise ValueError(f"seed: expected an integer from 0 to 2^64 − 1, got {seed!r}")
    if population is None:
        return random.key(int(seed))
    seeds = [int(seed) + i for i in range(check_count("population", population, 1))]
    if not 0 <= seeds[0] <= seeds[-1] < 2**64:
        raise ValueError(f"seed: expected an integer from 0 to 2^64 − {len(seeds)}, got {seed!r}")
    return random.key(np.asarray(seeds, np.uint64))


def check_count(name: str, value: Any, least: int) -> int:
    """The value, if it is an integer of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def check_params(network: Network, params: Any, population: int | None) -> Params:
    """Parameters that fit the network and are finite, with a leading axis of the population if there is one."""
    params = tuple(Layer(*map(np.asarray, layer)) for layer in params)
    lead = () if population is None else (population,)
    expected = [(shape, shape[1:]) for shape in network.shapes]
    found = [(layer.weight.shape, layer.bias.shape) for layer in params]
    if found == expected and lead:
        params = tree.map(lambda leaf: np.repeat(leaf[None], lead[0], axis=0), params)
    elif found != [tuple(lead + part for part in shapes) for shapes in expected]:
        raise ValueError(f"params: expected (weight, bias) of shapes {expected} after an axis {lead}, got {found}")
    if not all(np.isfinite(leaf).all() for leaf in tree.leaves(params)):
        raise ValueError("params: NaN or infinity among the parameters")
    return params


def check_masks(network: Network, masks: Any, population: int | None) -> Masks:
    """One array of 0 and 1 (or bool) per weight, on the host, for all members or with their axis in front."""
    arrays = tuple(np.asarray(mask) for mask in masks)
    allowed = (network.shapes, tuple((population, *shape) for shape in network.shapes))
    found = tuple(mask.shape for mask in arrays)
    if found not in allowed or any(((mask != 0) & (mask != 1)).any() for mask in arrays):
        raise ValueError(f"masks: expected arrays of 0 and 1 of shapes {network.shapes}, got shapes {found}")
    return tuple(mask.astype(bool) for mask in arrays)


def nan_last(loss: Array) -> Array:
    """The loss with NaN as infinity: worse than any number, so that a comparison can tell."""
    xp = tree.namespace(loss)
    return xp.where(xp.isnan(loss), xp.full_like(loss, float("inf")), loss)


def masked(values: Tree, masks: tuple[Array, ...] | None) -> Tree:
    """Every ``Params`` within the tree (parameters, gradients, optimizer state) with its weights times the masks."""
    if masks is None or not isinstance(values, tuple):
        return values
    if values and isinstance(values[0], Layer):
        return tuple(Layer(layer.weight * mask, layer.bias) for layer, mask in zip(values, masks, strict=True))
    return type(values)(*(masked(value, masks) for value in values))


def to_backend(backend: Backend, values: Tree) -> Tree:
    """A float32 copy of every leaf on the backend."""
    return tree.map(lambda leaf: backend.asarray(leaf, backend.xp.float32), values)
