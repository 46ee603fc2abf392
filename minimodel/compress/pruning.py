"""Weight pruning: w ← 0 where |w| < τ, then retrain what is left."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from minimodel.backends import Backend, load
from minimodel.compress import scores
from minimodel.datasets import Splits
from minimodel.model import Model
from minimodel.network import Network, Params
from minimodel.problem import Masks, check_count, prepare, run_keys, to_backend
from minimodel.search.options import Training, check_training
from minimodel.search.training import finished, fit
from minimodel.streams import Stream
from minimodel.tree import Array

SCOPES = ("global", "layer")
RAMP = 0.5  # the part of the epochs in which gradual pruning reaches its sparsity; the rest is retraining


def prune(
    model: Model,
    data: Splits | Stream,
    *,
    seed: int,
    sparsity: float | Sequence[float] | None = None,
    threshold: float | None = None,
    count: int | Sequence[int] | None = None,
    scope: str = "global",
    gradual: bool = False,
    backend: str | Backend = "numpy",
    sample_weight: Any = None,
    class_weight: Any = None,
    **training: Unpack[Training],
) -> Model:
    """Remove the weights of least magnitude and retrain the others; biases are never pruned.

    Give one of
        sparsity    the fraction to remove; of n weights, n − round(sparsity·n) are kept, ties going to the first
        count       how many to remove
        threshold   remove where |w| < threshold
    A model that is pruned already stays so: its zeros count among those to remove. One that is quantized becomes a
    float model again.

    scope      "global": sparsity and count are of all weights together; "layer": of each layer, and may be a
               sequence with one number a layer
    gradual    reach the sparsity over the first half of the epochs, s(t) = s·(1 − (1 − t)³), not at once
               (Zhu, Gupta: To prune, or not to prune, 2017); not with a threshold
    training   of what is left, as in ``gradient_descent``, by default 10 epochs; epochs=0 only prunes

    The masks are enforced on the weights and on the optimizer's state. Raises ValueError for input that does not fit.
    """
    check_training(training)
    backend = load(backend)
    if sum(given is not None for given in (sparsity, threshold, count)) != 1:
        raise ValueError(f"give one of sparsity, threshold, count; got {sparsity}, {threshold}, {count}")
    epochs = check_count("epochs", training.setdefault("epochs", 10), 0)
    if gradual and (threshold is not None or epochs < 1):
        raise ValueError("gradual: needs a sparsity or a count, and at least 1 epoch")
    removed = to_remove(model.network, sparsity, count, scope)
    least = None if threshold is None else in_range("threshold", threshold, np.inf)
    weights = {"sample_weight": sample_weight, "class_weight": class_weight}
    problem = prepare(model.network, data, model.loss, backend, fitted=model, **weights)
    ramp = round(RAMP * epochs)

    def remask(epoch: int, params: Params) -> Masks | None:
        """s(t) at t = (epoch + 1)/(ramp + 1); the masks of t = 1 stay."""
        part = 1 - (1 - (epoch + 1) / (ramp + 1)) ** 3
        return select(params, model.masks, [part * n for n in removed], None, backend) if epoch <= ramp else None

    at_once = None if gradual else select(to_backend(backend, model.params), model.masks, removed, least, backend)
    run = fit(
        problem,
        keys=run_keys(seed, model.population),
        params=model.params,
        masks=model.masks if gradual else at_once,
        remask=remask if gradual else None,
        **training,
    )
    return finished("prune", run, lambda params: replace(model, params=params, quantized=None, bits=None))


def to_remove(network: Network, sparsity: Any, count: Any, scope: str) -> list[float]:
    """How many weights go from each group: from all layers together, or from each layer."""
    if scope not in SCOPES:
        raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
    sizes = [inputs * outputs for inputs, outputs in network.shapes]
    groups = sizes if scope == "layer" else [sum(sizes)]
    name, value = ("sparsity", sparsity) if count is None else ("count", count)
    several = np.ndim(value) == 1 and not isinstance(value, str)
    values = list(value) if several else [value] * len(groups)
    if len(values) != len(groups):
        raise ValueError(f"{name}: expected one number or {len(groups)} of them, got {len(values)}")
    if sparsity is not None:
        return [in_range(name, part, 1) * size for part, size in zip(values, groups, strict=True)]
    if count is not None:
        return [in_range(name, n, size, int) for n, size in zip(values, groups, strict=True)]
    return [0] * len(groups)


def select(params: Params, old: Masks | None, removed: list[float], threshold: float | None, backend: Backend) -> Masks:
    """The masks that keep |w| ≥ threshold, or all but ``removed`` weights of each group; never what ``old`` removed."""
    found = scores.magnitude(params)
    if old is not None:  # what is pruned already ranks below all else
        found = tuple(score * mask - (1 - mask) for score, mask in zip(found, to_backend(backend, old), strict=True))
    if threshold is None:
        kept = keep_largest(found, [round(n) for n in removed], backend)
    else:
        kept = tuple(score >= threshold for score in found)
    return backend.to_numpy(tuple(mask & (score >= 0) for mask, score in zip(kept, found, strict=True)))


def in_range(name: str, value: Any, most: float, kind: Any = float) -> Any:
    """The value, if it is a number of this kind from 0 to ``most``."""
    kinds = (int, np.integer) if kind is int else (int, float, np.number)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= most:
        raise ValueError(f"{name}: expected {kind.__name__} from 0 to {most}, got {value!r}")
    return value


def keep_largest(found: tuple[Array, ...], removed: list[int], backend: Backend) -> tuple[Array, ...]:
    """Masks of the scores (*population, in, out): all but ``removed`` of each group are kept, the largest.

    One group is all layers together; otherwise each layer is one. Of equal scores the first in row-major order,
    and of layers the earlier, are kept.
    """
    xp = backend.xp
    flat = [xp.reshape(score, (*score.shape[:-2], -1)) for score in found]
    groups = [xp.concat(flat, axis=-1)] if len(removed) == 1 else flat
    select = backend.jit(largest, static=("backend",))
    kept = [
        select(group, backend.asarray(group.shape[-1] - n, xp.int32), backend=backend)
        for group, n in zip(groups, removed, strict=True)
    ]
    together, masks, start = xp.concat(kept, axis=-1), [], 0
    for score, row in zip(found, flat, strict=True):
        masks.append(xp.reshape(together[..., start : start + row.shape[-1]], score.shape))
        start += row.shape[-1]
    return tuple(masks)


def largest(scores: Array, k: Array, *, backend: Backend) -> Array:
    """Which of the scores (…, n) are among the k largest: exactly k of each row, ties going to the first."""
    xp = backend.xp
    k = xp.broadcast_to(k, scores.shape[:-1])
    bar = backend.kth_largest(scores, xp.maximum(k, xp.ones_like(k)))[..., None]
    above, equal = scores > bar, scores == bar
    room = k - xp.sum(xp.astype(above, xp.int32), axis=-1, dtype=xp.int32)
    rank = xp.cumulative_sum(xp.astype(equal, xp.int32), axis=-1, dtype=xp.int32)
    return (above & (k[..., None] > 0)) | (equal & (rank <= room[..., None]))
