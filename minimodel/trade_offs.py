"""What sparsity, few bits or few bytes cost: one model pruned or quantized to several, with several seeds each, as one
program."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minimodel.compress import coded
from minimodel.compress.pruning import prune
from minimodel.compress.quantization import quantize
from minimodel.compress.shrinking import shrink
from minimodel.datasets import Dataset, Splits
from minimodel.model import Model, networks
from minimodel.problem import check_count, check_seed


class Point(NamedTuple):
    """Of one sparsity and number of bits or budget, with an entry for each seed in every array.

    bits               of the weights, None for floats; of a budget a tuple for each seed, of a number for each
                       layer
    model              its networks
    kept               weights that are not 0
    bytes              of the model file, shrunk; of a budget, of the coded file
    multiply_adds      of one row through them
    error              on test, 1 − accuracy, or of a regression 1 − R²; validation_error on validation
    """

    sparsity: float
    bits: Any
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
    model: Model,
    data: Splits,
    *,
    seed: int,
    sparsities: Sequence[float] | None = None,
    bits: Sequence[int] | None = None,
    budgets: Sequence[int] | None = None,
    seeds: int = 1,
    **options: Any,
) -> list[Point]:
    """``prune`` to every sparsity, or ``quantize`` to every number of bits or budget of bytes, as one program.

    seeds     of each, from ``seed`` on

    model     one network, or a population, whose member i is used with seed + i, over again from the first
    options   of ``prune`` or ``quantize``
    """
    given = {"sparsity": sparsities, "bits": bits, "budget_bytes": budgets}
    (name, levels), *others = [(key, list(values)) for key, values in given.items() if values is not None] or [("", [])]
    if others or not name:
        raise ValueError("give one of sparsities, bits and budgets")
    seeds, first = check_count("seeds", seeds, 1), check_seed(seed, seeds)
    numbers = np.tile(np.arange(seeds), len(levels))
    if not levels:
        raise ValueError(f"{name}: expected at least one")
    each = [level for level in levels for _ in range(seeds)]
    start = model.members(numbers % (model.population or 1))
    common: dict[str, Any] = {"seed": [first + int(number) for number in numbers], name: each, **options}
    found = (prune if name == "sparsity" else quantize)(start, data, **common)
    groups = np.arange(len(numbers)).reshape(-1, seeds)
    points = [point(found.members(group), data) for group in groups]
    if name != "budget_bytes":
        return points
    files = np.array([len(coded.encode(found.member(i))) for i in range(len(numbers))]).reshape(-1, seeds)
    return [one._replace(bytes=sizes) for one, sizes in zip(points, files, strict=True)]


def point(model: Model, data: Splits) -> Point:
    """The figures of one network, or of a population of one number of bits."""
    members = networks(model)
    summaries = [member.summary() for member in members]
    weights, kept, work = (
        np.array([sum(getattr(layer, name) for layer in summary) for summary in summaries])
        for name in ("weights", "kept", "multiply_adds")
    )
    sizes = np.array([shrink(member).nbytes for member in members])
    sparsity = float(1 - kept.mean() / weights[0])
    errors = error(model, data.test), error(model, data.validation)
    return Point(sparsity, model.bits, model, kept, sizes, work, *errors)


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: those that no other is smaller than with no more test error, by mean bytes."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.bytes.mean(), point.error.mean())):
        if not found or point.error.mean() < found[-1].error.mean():
            found.append(point)
    return found


def error(model: Model, data: Dataset) -> np.ndarray:
    """1 − accuracy or 1 − R², of every network."""
    found = model.evaluate(data)
    return np.atleast_1d(1 - np.asarray(found.r2 if found.accuracy is None else found.accuracy, np.float64))
