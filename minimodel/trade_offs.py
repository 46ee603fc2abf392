"""What sparsity costs: one model pruned to several sparsities, with several seeds each, as one program."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minimodel.compress.pruning import prune
from minimodel.compress.shrinking import shrink
from minimodel.datasets import Dataset, Splits
from minimodel.model import Model
from minimodel.problem import check_count, check_seed


class Point(NamedTuple):
    """Of one sparsity, with an entry for each seed in every array.

    model              its networks
    kept               weights that are not 0
    bytes              of the model file, shrunk
    multiply_adds      of one row through them
    error              on test, 1 − accuracy, or of a regression 1 − R²; validation_error on validation
    """

    sparsity: float
    model: Model
    kept: np.ndarray
    bytes: np.ndarray
    multiply_adds: np.ndarray
    error: np.ndarray
    validation_error: np.ndarray

    def figures(self) -> dict[str, Any]:
        """All but the model."""
        return {name: value for name, value in self._asdict().items() if name != "model"}


def trade_off(
    model: Model, data: Splits, *, sparsities: Sequence[float], seed: int, seeds: int = 1, **options: Any
) -> list[Point]:
    """``prune`` to every sparsity with the seeds seed, seed + 1, …, all in one population.

    model     one network, or a population, whose member i is pruned with seed + i, over again from the first
    options   of ``prune``
    """
    sparsities, seeds = list(sparsities), check_count("seeds", seeds, 1)
    if not sparsities:
        raise ValueError("sparsities: expected at least one")
    numbers = np.tile(np.arange(seeds), len(sparsities))
    first = check_seed(seed, seeds)
    pruned = prune(
        model.members(numbers % (model.population or 1)),
        data,
        seed=[first + int(number) for number in numbers],
        sparsity=np.repeat(sparsities, seeds),
        **options,
    )
    groups = np.arange(len(numbers)).reshape(-1, seeds)
    return [point(sparsity, pruned.members(group), data) for sparsity, group in zip(sparsities, groups, strict=True)]


def point(sparsity: float, model: Model, data: Splits) -> Point:
    """The figures of one network, or of a population."""
    members = [model] if model.population is None else [model.member(i) for i in range(model.population)]
    summaries = [member.summary() for member in members]
    kept, work = (
        np.array([sum(getattr(layer, name) for layer in summary) for summary in summaries])
        for name in ("kept", "multiply_adds")
    )
    sizes = np.array([shrink(member).nbytes for member in members])
    return Point(sparsity, model, kept, sizes, work, error(model, data.test), error(model, data.validation))


def error(model: Model, data: Dataset) -> np.ndarray:
    """1 − accuracy or 1 − R², of every network."""
    found = model.evaluate(data)
    return np.atleast_1d(1 - np.asarray(found.r2 if found.accuracy is None else found.accuracy, np.float64))
