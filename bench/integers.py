"""Integers on MNIST: the error of int8 without retraining and of few bits with it.

The dense networks are those that ``bench.pruning --save`` wrote. Hyper-parameters were chosen on validation rows; test
rows only report.
"""

from pathlib import Path
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.bench import mnist
from minimodel.bench.common import arguments, plus_minus, report

RECIPE: dict[str, Any] = {"peak": 1e-4, "teacher": 0.9, "temperature": 2.0}


def main() -> None:
    """Print and store the table."""
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


if __name__ == "__main__":
    main()
