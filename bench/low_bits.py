"""MNIST with weights and activations of two bits and of one: 784-256-256-256-10, several seeds as one population.

10,000 of the 60,000 training rows are held out. Which epoch's parameters are kept is decided on them, and so were the
hyper-parameters below; test rows only report. With ``--refit`` nothing is left to decide and all 60,000 are learned.
The dense networks are trained first (the recipe of ``bench.mnist``); each is then quantized and learns from the mean
prediction of all of them. What is evaluated is computed with integers alone.
"""

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.bench import mnist
from minimodel.bench.common import arguments, network_of, plus_minus, report

PUBLISHED = {2: 98.66, 1: 97.81}  # Brevitas, SFC 2W2A and 1W1A: one run, its best epoch by the test rows
COMMON = {"scheme": "symmetric_full", "warmup": 0.05, "batch_size": 256, "teacher": 0.9, "temperature": 2.0}
RECIPES: dict[int, dict[str, Any]] = {
    2: COMMON | {"gradual": (), "peak": 1.5e-3, "epochs": 100},
    1: COMMON | {"gradual": (2,), "peak": 1e-3, "epochs": 60},
}


def main() -> None:
    """Print and store the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", help="the folder with MNIST's IDX files")
    parser.add_argument("--dense", type=Path, help="take the dense networks from this file, or write them there")
    parser.add_argument("--hidden", default="256,256,256")
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--dense-epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="in place of those of the recipes")
    parser.add_argument("--bits", type=int, choices=list(RECIPES), help="only this row")
    parser.add_argument("--refit", action="store_true", help="learn the held-out rows too, once all is chosen")
    options = parser.parse_args()
    data = mm.datasets.load(options.data)
    if options.refit:
        data = refitted(data)
    network = network_of(options.hidden, data)
    known = options.dense and options.dense.exists()
    if known:
        dense = mm.load(options.dense)
    else:
        dense = mnist.train(network, data, options.backend, options.dense_epochs, options.seeds)
        if options.dense:
            dense.save(options.dense)
    rows = {"dense": figures(dense, data)}
    for bits in [options.bits] if options.bits else RECIPES:
        recipe = RECIPES[bits] | ({"epochs": options.epochs} if options.epochs else {})
        began = perf_counter()
        model = mm.to_integers(quantized(dense, data, bits, recipe, options.backend), data)
        rows[f"{bits} bits"] = figures(model, data) | {"seconds": perf_counter() - began, "recipe": recipe}
        print(f"published (Brevitas): {PUBLISHED[bits]} %", flush=True)
    settings: dict[str, Any] = {"layer_sizes": network.layer_sizes, "dense": "from a file", "refit": options.refit}
    if not known:
        settings |= {"dense_epochs": options.dense_epochs, "dense": mnist.RECIPE}
    results = {"data": Path(options.data).name, "backend": options.backend, "settings": settings, "rows": rows}
    report(mm.observe.plain(results), options.out)


def refitted(data: mm.Splits) -> mm.Splits:
    """The validation rows among those that are trained on as well."""
    x, y = (np.concatenate(parts) for parts in zip(data.train, data.validation, strict=True))
    return replace(data, train=mm.Dataset(x, y))


def quantized(dense: mm.Model, data: mm.Splits, bits: int, recipe: dict[str, Any], backend: str) -> mm.Model:
    """The population with weights and activations of so many bits."""
    schedule = mm.schedules.cosine(recipe["peak"], warmup=recipe["warmup"])
    return mm.quantize(
        dense,
        data,
        seed=0,
        bits=bits,
        activation_bits=bits,
        scheme=recipe["scheme"],
        learn_levels=True,
        gradual=recipe["gradual"],
        backend=backend,
        optimizer=mm.optimizers.adam(schedule),
        teacher=mm.Teacher(dense, recipe["teacher"], recipe["temperature"]),
        epochs=recipe["epochs"],
        batch_size=recipe["batch_size"],
        callback=mnist.show,
    )


def figures(model: Any, data: mm.Splits) -> dict[str, Any]:
    """Accuracies in percent, printed."""
    found = {name: 100 * model.evaluate(getattr(data, name)).accuracy for name in ("validation", "test")}
    print(", ".join(f"{name} accuracy {plus_minus(values)} %" for name, values in found.items()), flush=True)
    return found


if __name__ == "__main__":
    main()
