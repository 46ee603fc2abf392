"""The whole way: search for a model, train it, prune it, quantize it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from minimodel.backends import Backend
from minimodel.compress.pruning import prune
from minimodel.compress.quantization import quantize
from minimodel.compress.target import check_fraction
from minimodel.datasets import Splits
from minimodel.model import Model
from minimodel.network import Network
from minimodel.observe import Callback
from minimodel.problem import check_count
from minimodel.qarray import check_bits
from minimodel.search import optimizers, schedules
from minimodel.search.gradient_descent import gradient_descent
from minimodel.search.optimizers import Optimizer
from minimodel.search.random_search import random_search
from minimodel.search.strategies import hill_climbing

STAGES = ("random_search", "gradient_descent", "prune", "quantize")
MANY_ROWS = 10_000  # from here on mini-batches are larger and epochs fewer


@dataclass(frozen=True)
class Stage:
    """One stage of a run: the model it gave, its figures on test and validation, and the seconds it took."""

    name: str
    model: Model
    loss: float
    accuracy: float | None
    r2: float | None
    validation_accuracy: float | None
    nonzero: int
    bytes: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The figures, without the model."""
        return {name: value for name, value in vars(self).items() if name != "model"}


def run(
    network: Network,
    data: Splits,
    *,
    seed: int,
    backend: str | Backend = "numpy",
    sparsity: float = 0.9,
    bits: int = 4,
    epochs: int | None = None,
    on_progress: Callable[[str], Callback] = lambda name: lambda progress: None,
) -> Iterator[Stage]:
    """The four stages, each yielded when it is done; each starts from the model of the one before.

    epochs        of gradient descent, by default 40, or 20 from 10,000 training rows on; pruning takes half as many
                  more, quantization half as many
    on_progress   called with a stage's name; what it returns is that stage's callback
    """
    check_bits(bits)  # refuse what a late stage would refuse, before any work
    check_fraction("sparsity", sparsity, ())
    usual, batch_size = budget(len(data.train.x))
    epochs = usual if epochs is None else check_count("epochs", epochs, 0)
    common: dict[str, Any] = {"seed": seed, "backend": backend}
    batches: dict[str, Any] = {**common, "batch_size": batch_size}
    fast, slow = recipe(data, 0.1), recipe(data, 0.02)
    few = data.train.y.ndim == 1 and len(data.train.x) < MANY_ROWS
    care = 0.1 if few else None  # of dropout and sharpness: what validation prefers on the digits, over 24 runs

    longer = epochs + epochs // 2
    stages: dict[str, Callable[[Model, Callback], Model]] = {
        "random_search": lambda _, callback: random_search(
            network,
            data,
            strategy=hill_climbing(),
            generations=100,
            population=32,
            rows=512,
            callback=callback,
            **common,
        ),
        "gradient_descent": lambda model, callback: gradient_descent(
            network,
            data,
            params=model.params,
            optimizer=recipe(data, 0.1, sharpness=care),
            epochs=epochs,
            dropout=care,
            input_dropout=care,
            callback=callback,
            **batches,
        ),
        "prune": lambda model, callback: prune(
            model,
            data,
            sparsity=sparsity,
            schedule="gradual" if longer else "one_shot",
            optimizer=fast,
            epochs=longer,
            callback=callback,
            **batches,
        ),
        "quantize": lambda model, callback: quantize(
            model, data, bits=bits, optimizer=slow, epochs=epochs // 2, callback=callback, **batches
        ),
    }
    model: Any = None
    for name, stage in stages.items():
        start = perf_counter()
        model = stage(model, on_progress(name))
        yield measure(name, model, data, perf_counter() - start)


def budget(rows: int) -> tuple[int, int]:
    """The epochs of gradient descent and the batch size for so many training rows."""
    return (20, 128) if rows >= MANY_ROWS else (40, 32)


def recipe(data: Splits, peak: float, **options: Any) -> Optimizer:
    """Nesterov momentum with a warm-up and a cosine for labels; Adam, at a hundredth of the rate, for targets."""
    if data.train.y.ndim == 1:
        decay = 1e-3 if len(data.train.x) < MANY_ROWS else 5e-4
        return optimizers.nesterov(schedules.cosine(peak, warmup=0.1), weight_decay=decay, **options)
    return optimizers.adam(schedules.cosine(peak / 20, warmup=0.1), **options)


def measure(name: str, model: Model, data: Splits, seconds: float) -> Stage:
    """The figures of a model on test and validation data."""
    test, validation = model.evaluate(data.test), model.evaluate(data.validation)
    accuracy, r2, chosen = (
        None if value is None else float(value) for value in (test.accuracy, test.r2, validation.accuracy)
    )
    return Stage(name, model, float(test.loss), accuracy, r2, chosen, model.nonzero, model.nbytes, seconds)
