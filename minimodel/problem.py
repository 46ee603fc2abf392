"""A network, data and a loss that fit each other, on a backend: what every algorithm starts from."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minimodel import losses, random, tree
from minimodel.backends import Backend
from minimodel.datasets import Dataset, Splits
from minimodel.losses import Loss
from minimodel.network import Layer, Network, Params
from minimodel.streams import CHUNK, Stream, prefetched
from minimodel.teacher import check_teacher
from minimodel.tree import Array, Tree

Masks = tuple[np.ndarray, ...]  # one array of bool per weight: what is kept


class Rows(NamedTuple):
    """Rows of data as the algorithms use them: normalised, targets encoded, both float32.

    Labels become one-hot rows. ``weight`` is that of each row in the training loss, 1 on average, or None.
    """

    x: Array
    t: Array
    weight: Array | None = None


class Problem(NamedTuple):
    """A network, a loss, and data on a backend.

    objective   the loss in training, in which a teacher has its part
    chunks      (epoch, n) -> the training rows of an epoch, in one piece or, from a stream, in several, all but the
                last of a multiple of n rows
    rows        how many they are
    """

    backend: Backend
    network: Network
    loss: Loss
    objective: Loss
    rows: int
    chunks: Callable[[int, int], Iterable[Rows]]
    validation: Rows
    streamed: bool = False


class DivergedError(RuntimeError):
    """A run whose loss left the finite numbers.

    step               the step at which it did, from 0
    last_finite_loss   the training loss before
    model              the best model up to there, finite
    last               the last finite model: after the last epoch whose validation loss was finite
    """

    def __init__(
        self, algorithm: str, step: int, last_finite_loss: float, model: Any, last: Any, text: str | None = None
    ) -> None:
        super().__init__(
            text
            or f"{algorithm} diverged at step {step}; the last finite loss was {last_finite_loss:.6g}. "
            "Lower the learning rate, or check the scale of the data"
        )
        self.step, self.last_finite_loss, self.model, self.last = step, last_finite_loss, model, last


def prepare(
    network: Network,
    data: Splits | Stream,
    loss: str | Loss | None,
    backend: Backend,
    fitted: Any,
    *,
    sample_weight: Any = None,
    class_weight: Any = None,
    teacher: Any = None,
) -> Problem:
    """Check that the data fit the network and the loss, normalise them as ``fitted`` (the data or a model) says,
    encode the targets, move them to the backend; of a stream, a chunk ahead of its use.

    Without a loss, labels mean softmax cross-entropy and other targets the mean squared error.
    """
    if not isinstance(network, Network):
        raise TypeError(f"network: expected a Network, Network((64, 32, 10)) say, got {network!r:.80}")
    if not isinstance(data, Splits | Stream):
        raise TypeError(
            f"data: expected Splits or a Stream, got {type(data).__name__}; datasets.split(x, y, seed=…) makes them"
        )
    if loss is None:
        loss = "softmax_cross_entropy" if data.validation.y.ndim == 1 else "mean_squared_error"
    loss = losses.get(loss)
    objective, inputs = loss, getattr(fitted, "inputs", None)
    if inputs is not None and isinstance(data, Stream):
        raise ValueError("data: a model that was shrunk to some of the features takes no stream; load them as Splits")
    if teacher is not None:
        features = data.train.x.shape[1] if isinstance(data, Splits) else None
        objective = check_teacher(teacher, network, loss, features).loss(loss)

    def rows(
        part: Dataset,
        name: str,
        weigh: Callable[[np.ndarray], Any] = lambda y: None,
        ready: bool = False,
        taught: bool = False,
    ) -> Rows:
        """``ready``: looked at, normalised, and nobody else's."""
        x, y = check_data(network, loss, part, name, looked_at=ready, inputs=inputs)
        t = fitted.targets(y) if loss.scaled and fitted.targets else y
        t = losses.one_hot(y, network.layer_sizes[-1], np.float32) if loss.labels else t
        if taught:
            s = teacher.targets(part.x)
            t = np.concatenate([t, fitted.targets(s) if loss.scaled and fitted.targets else s], axis=-1)
        made = Rows(fitted.normalization(x) if fitted.normalization and not ready else x, t, weigh(y))

        def moved(leaf: np.ndarray) -> Array:
            """What is still the caller's own memory is copied."""
            given = not ready and (np.may_share_memory(leaf, x) or np.may_share_memory(leaf, y))
            return backend.asarray(leaf, backend.xp.float32, copy=given)

        return tree.map(moved, made)

    if isinstance(data, Splits):
        weigh = partial(row_weights, loss=loss, network=network, sample_weight=sample_weight, class_weight=class_weight)
        train = (rows(data.train, "train", weigh, taught=teacher is not None),)
        validation = rows(data.validation, "validation")
        return Problem(backend, network, loss, objective, len(data.train.x), lambda epoch, multiple: train, validation)
    if teacher is not None:
        raise ValueError("teacher: a stream takes none, as its rows come normalised; load them as Splits")
    if sample_weight is not None:
        raise ValueError("sample_weight: a stream takes none; give class_weight, or repeat rows")
    if class_weight is not None and not loss.labels:
        raise ValueError(f"class_weight: {loss.name} has no classes; use sample_weight, with Splits")
    counts = None if data.counts is None else np.pad(data.counts, (0, network.layer_sizes[-1] - len(data.counts)))
    by_class = None if class_weight is None else class_weights(class_weight, counts)

    def read(epoch: int, multiple: int) -> Iterator[Rows]:
        size = max(1, CHUNK // (4 * network.layer_sizes[0] * multiple)) * multiple
        for x, y in data.chunks(epoch, size, fitted.normalization, reuse=True):
            yield rows(Dataset(x, y), "train", lambda y: None if by_class is None else by_class[y], ready=True)
            del x, y  # or they would stay while the next are read

    validation = rows(data.validation, "validation")
    return Problem(
        backend, network, loss, objective, data.rows, lambda *at: prefetched(read(*at)), validation, streamed=True
    )


def row_weights(
    y: np.ndarray, loss: Loss, network: Network, sample_weight: Any, class_weight: Any
) -> np.ndarray | None:
    """The product of both weights of every row, scaled to 1 on average, or None for neither."""
    if sample_weight is None and class_weight is None:
        return None
    weight, n = np.ones(len(y)), len(y)
    if class_weight is not None:
        if not loss.labels:
            raise ValueError(f"class_weight: {loss.name} has no classes; use sample_weight")
        weight = class_weights(class_weight, np.bincount(y, minlength=network.layer_sizes[-1]))[y]
    if sample_weight is not None:
        weight = weight * check_weights("sample_weight", sample_weight, n)
    if not weight.sum() > 0:
        raise ValueError("sample_weight, class_weight: at least one row must have a product of them above 0")
    return weight * (n / weight.sum())


def class_weights(class_weight: Any, counts: np.ndarray | None) -> np.ndarray:
    """A weight for each class, 1 on average over the rows; "balanced": n/(K·count), as in scikit-learn."""
    if counts is None:
        raise ValueError("class_weight: these data have no classes; use sample_weight")
    if isinstance(class_weight, str) and class_weight == "balanced":
        weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    elif isinstance(class_weight, dict):
        if foreign := set(class_weight) - set(range(len(counts))):
            raise ValueError(
                f"class_weight: the classes are 0 to {len(counts) - 1}, got {sorted(foreign, key=str)[0]!r}"
            )
        listed = [class_weight.get(label, 1.0) for label in range(len(counts))]
        weights = check_weights("class_weight", listed, len(counts))
    elif isinstance(class_weight, str):
        raise ValueError(f"class_weight: expected 'balanced', {len(counts)} weights or a dict, got {class_weight!r}")
    else:
        weights = check_weights("class_weight", class_weight, len(counts))
    if not (weights * counts).any():
        raise ValueError("class_weight: at least one row must have a weight above 0")
    return weights * (counts.sum() / (weights * counts).sum())


def check_weights(name: str, weights: Any, n: int) -> np.ndarray:
    """n finite numbers of at least 0, as float64."""
    try:
        found = np.asarray(weights)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if found.dtype.kind not in "iufb" or found.shape != (n,) or not np.isfinite(found).all() or (found < 0).any():
        raise ValueError(f"{name}: expected {n} finite numbers of at least 0, got {weights!r:.200}")
    if not found.any():
        raise ValueError(f"{name}: at least one must be above 0")
    return found / found.max()  # only ratios matter, and their products must not overflow


def check_data(
    network: Network,
    loss: Loss,
    data: Dataset,
    name: str = "data",
    looked_at: bool = False,
    inputs: np.ndarray | None = None,
) -> Dataset:
    """The data with targets as the loss takes them; ValueError where something does not fit.

    looked_at   somebody saw already that all numbers are finite
    inputs      which of the features the network takes
    """
    if not isinstance(data, Dataset):
        raise TypeError(f"{name}: expected a Dataset(x, y), got {type(data).__name__}")
    x, y = np.asarray(data.x), np.asarray(data.y)
    x = x.reshape(len(x), -1) if x.ndim > 2 else x
    features, outputs = network.layer_sizes[0] if inputs is None else len(inputs), network.layer_sizes[-1]
    if x.ndim != 2 or x.shape[1] != features:
        raise ValueError(f"{name}.x: the network takes (n, {features}), got {x.shape}")
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"{name}: expected x and y of one length of at least 1, got {len(x)} and {len(y)}")
    if x.dtype.kind not in "uifb" or y.dtype.kind not in "uifb":
        raise ValueError(f"{name}: x and y must be numbers, got {x.dtype} and {y.dtype}")
    if not (looked_at or (np.isfinite(x).all() and np.isfinite(y).all())):
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
    return Dataset(x if inputs is None else x[:, inputs], y)


def run_keys(seed: Any, population: int | None) -> np.ndarray:
    """The key of the seed; with a population, the keys of its members' seeds."""
    if population is None:
        return random.key(check_seed(seed))
    return random.key(np.asarray(member_seeds(seed, population), np.uint64))


def member_seeds(seed: Any, population: int) -> list[int]:
    """seed + i for member i; or the seeds as they are, where there is one for each member."""
    count = check_count("population", population, 1)
    if not hasattr(seed, "__len__") or (isinstance(seed, np.ndarray) and seed.ndim == 0):
        return [check_seed(seed, count) + i for i in range(count)]
    if len(seed) != count:
        raise ValueError(f"seed: expected an integer or {count}, one for each member, got {len(seed)}")
    return [check_seed(one) for one in seed]


def check_seed(seed: Any, count: int = 1) -> int:
    """The seed, if it is an integer, and so many from it on are below 2^64."""
    whole = hasattr(seed, "__index__") and not isinstance(seed, bool) and np.ndim(seed) == 0
    if not whole or not 0 <= int(seed) <= 2**64 - count:
        raise ValueError(f"seed: expected an integer from 0 to 2^64 − {count}, got {seed!r}")
    return int(seed)


def check_count(name: str, value: Any, least: int) -> int:
    """The value, if it is an integer of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def check_numbers(name: str, value: Any, members: tuple[int, ...], low: float = 0.0, below: float = np.inf) -> Any:
    """The value, if it is None, or finite numbers from ``low`` up to ``below``: one for all or one for each member."""
    if value is None:
        return None
    try:
        found = np.asarray(value)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    many = f" or {members[0]} of them" if members else ""
    if (
        found.dtype.kind not in "iuf"
        or found.shape not in ((), members)
        or not (np.isfinite(found) & (found >= low) & (found < below)).all()
    ):
        limit = f" and below {below:g}" if below < np.inf else ""
        raise ValueError(f"{name}: expected a finite number{many} from {low:g}{limit}, got {value!r}")
    return found


def check_params(network: Network, params: Any, population: int | None, name: str = "params") -> Params:
    """Parameters that fit the network and are finite, with a leading axis of the population if there is one."""
    try:
        params = tuple(Layer(*map(np.asarray, layer)) for layer in params)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a (weight, bias) for each layer, got {params!r:.80}") from error
    lead = () if population is None else (population,)
    expected = [(shape, shape[1:]) for shape in network.shapes]
    found = [(layer.weight.shape, layer.bias.shape) for layer in params]
    if found == expected and lead:
        params = tree.map(lambda leaf: np.repeat(leaf[None], lead[0], axis=0), params)
    elif found != [tuple(lead + part for part in shapes) for shapes in expected]:
        raise ValueError(f"{name}: expected (weight, bias) of shapes {expected} after an axis {lead}, got {found}")
    if not all(np.isfinite(leaf).all() for leaf in tree.leaves(params)):
        raise ValueError(f"{name}: NaN or infinity among the parameters")
    return params


def check_masks(network: Network, masks: Any, population: int | None) -> Masks:
    """One array of 0 and 1 (or bool) per weight, on the host, for all members or with their axis in front."""
    arrays = tuple(np.asarray(mask) for mask in masks)
    allowed = (network.shapes, tuple((population, *shape) for shape in network.shapes))
    found = tuple(mask.shape for mask in arrays)
    if found not in allowed or any(((mask != 0) & (mask != 1)).any() for mask in arrays):
        raise ValueError(f"masks: expected arrays of 0 and 1 of shapes {network.shapes}, got shapes {found}")
    return tuple(mask.astype(bool) for mask in arrays)


def holds_numbers(dtype: Any) -> bool:
    """Whether a dtype of any namespace is of real numbers, or of yes and no."""
    return any(kind in str(dtype) for kind in ("float", "int", "bool"))


def nan_last(loss: Array) -> Array:
    """The loss with NaN as infinity: worse than any number, so that a comparison can tell."""
    xp = tree.namespace(loss)
    return xp.where(xp.isnan(loss), xp.full_like(loss, float("inf")), loss)


def each_params(fn: Callable[[Params], Params], values: Tree) -> Tree:
    """The tree with fn applied to every ``Params`` within it: parameters, gradients, an optimizer's state."""
    if not isinstance(values, tuple):
        return values
    if values and isinstance(values[0], Layer):
        return fn(values)
    return tuple.__new__(type(values), [each_params(fn, value) for value in values])


def masked(values: Tree, masks: tuple[Array, ...] | None) -> Tree:
    """Every ``Params`` within the tree with its weights times the masks."""
    if masks is None:
        return values
    return each_params(
        lambda params: tuple(Layer(w * mask, b) for (w, b), mask in zip(params, masks, strict=True)), values
    )


def to_backend(backend: Backend, values: Tree) -> Tree:
    """A float32 copy of every leaf on the backend."""
    return tree.map(lambda leaf: backend.asarray(leaf, backend.xp.float32), values)
