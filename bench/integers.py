"""Integers on MNIST: the error of int8 without retraining and of few bits with it, and what integers cost in time.

The dense networks are those that ``bench.pruning --save`` wrote. Hyper-parameters were chosen on validation rows; test
rows only report.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.backends import available
from minimodel.bench import mnist
from minimodel.bench.common import arguments, plus_minus, report, side_by_side

RECIPE: dict[str, Any] = {"peak": 1e-4, "teacher": 0.9, "temperature": 2.0}
ROWS, REPEATS = 6400, 15


def main() -> None:
    """Print and store the table of errors; ``bench.inference`` has that of times."""
    parser = arguments(__doc__)
    parser.add_argument("data", help="the folder with MNIST's IDX files")
    parser.add_argument("dense", help="the file of the dense networks")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--backend", default="jax", help="for the retraining")
    options = parser.parse_args()
    data, dense = mm.datasets.load(options.data), mm.load(options.dense)
    found: dict[str, Any] = {"errors": errors(dense, data, options.epochs, options.backend)}
    settings = {
        "layer_sizes": dense.network.layer_sizes,
        "epochs": options.epochs,
        **RECIPE,
    }
    report(mm.observe.plain({"data": Path(options.data).name, "settings": settings, **found}), options.out)


def errors(dense: mm.Model, data: mm.Splits, epochs: int, backend: str) -> dict[str, Any]:
    """Test errors: floats; 3 bits rounded three ways; int8; and 4 bits retrained, the last two by integers."""
    optimizer = mm.optimizers.adam(mm.schedules.cosine(RECIPE["peak"]))
    retrained = mm.quantize(
        dense, data, seed=0, bits=4, activation_bits=4, epochs=epochs, batch_size=mnist.BATCH, backend=backend,
        optimizer=optimizer, teacher=mm.Teacher(dense, RECIPE["teacher"], RECIPE["temperature"]),
    )  # fmt: skip
    three: dict[str, Any] = {"seed": 0, "bits": 3, "epochs": 0, "backend": backend}
    cases: dict[str, Any] = {
        "floats": dense,
        "3 bits to the nearest": mm.quantize(dense, data, **three),
        "3 bits by GPTQ": mm.quantize(dense, data, rounding="gptq", **three),
        "3 bits by AdaRound": mm.quantize(dense, data, rounding="adaround", **three),
        "int8, not retrained": mm.to_integers(dense, data),
        "int8 by shifts, not retrained": mm.to_integers(dense, data, shift=True),
        "4 bits, retrained": mm.to_integers(retrained, data),
    }
    found, floats = {}, 1 - np.atleast_1d(dense.evaluate(data.test).accuracy)
    for name, model in cases.items():
        test, held = (1 - np.atleast_1d(model.evaluate(part).accuracy) for part in (data.test, data.validation))
        found[name] = {"error": test, "validation_error": held}
        difference = plus_minus(100 * (test - floats), "+")
        print(f"{name:<32} test error {plus_minus(100 * test)} %, difference {difference} points", flush=True)
    return found


def times(dense: mm.Model, data: mm.Splits) -> dict[str, Any]:
    """Answers to 256 rows by integers beside floats; a step of retraining through the rounding beside one without."""
    model = dense if dense.population is None else dense.member(0)
    integers, x = mm.to_integers(model, data), data.test.x[:256]
    cases: dict[str, Any] = {
        "256 rows, floats": partial(repeat, model.outputs, x),
        "256 rows, integers": partial(repeat, integers.outputs, x),
    }
    found = {"numpy, answers": table(cases)}
    few = mm.datasets.split(data.train.x[:ROWS], data.train.y[:ROWS], seed=0)
    for name in ("numpy", "jax"):
        if name not in available():
            continue
        common: dict[str, Any] = {"seed": 0, "backend": name, "epochs": 3, "batch_size": mnist.BATCH}
        optimizer = mm.optimizers.momentum(0.01)
        cases = {
            "training, a step": partial(
                mm.gradient_descent, model.network, few, params=model.params, optimizer=optimizer, **common
            ),
            "through the rounding, a step": partial(
                mm.quantize, model, few, bits=4, range_of=mm.ranges.min_max, optimizer=optimizer, **common
            ),
        }
        found[f"{name}, steps"] = table(cases)
    return found


def repeat(fn: Any, x: np.ndarray, times: int = 20) -> None:
    """fn(x), so many times."""
    for _ in range(times):
        fn(x)


def table(cases: dict[str, Any]) -> dict[str, Any]:
    """The cases side by side, printed with their ratio to the first."""
    found = side_by_side(cases, REPEATS)
    for name, seconds in found.items():
        print(f"{name:<32} {seconds['median'] * 1e3:9.1f} ms {seconds['ratio']:7.2f}×", flush=True)
    return found


if __name__ == "__main__":
    main()
