"""Test error of a plain network on MNIST, without augmentation: several seeds trained as one population.

10,000 of the 60,000 training rows are held out. Which epoch's parameters are kept is decided on them, and so were the
hyper-parameters below; test rows only report.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

import minimodel as mm
from minimodel.bench.common import arguments, network_of, report
from minimodel.model import standard_error

RECIPE: dict[str, Any] = {"peak": 0.1, "warmup": 0.05, "weight_decay": 3e-4, "sharpness": 0.2, "input_dropout": 0.1}
BATCH = 128


def main() -> None:
    """Print and store the errors of every seed, their mean and its standard error."""
    parser = arguments(__doc__)
    parser.add_argument("data", help="the folder with MNIST's IDX files")
    parser.add_argument("--hidden", default="300,100")
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    data = mm.datasets.load(options.data)
    network = network_of(options.hidden, data)
    began = perf_counter()
    model = train(network, data, options.backend, options.epochs, options.seeds)
    seconds = perf_counter() - began
    errors = {
        name: 100 * (1 - model.evaluate(part).accuracy)
        for name, part in (("validation", data.validation), ("test", data.test))
    }
    for name, found in errors.items():
        error = standard_error(found)
        print(f"{name:<10} error {found.mean():.3f} ± {error:.3f} %  ({', '.join(f'{value:.2f}' for value in found)})")
    settings = {"layer_sizes": network.layer_sizes, "batch_size": BATCH, "epochs": options.epochs, **RECIPE}
    results = {name: found.tolist() for name, found in errors.items()}
    print(f"{seconds:.0f} s for {options.seeds} networks")
    report(
        {
            "data": Path(options.data).name,
            "backend": options.backend,
            "seconds": seconds,
            "settings": settings,
            "error": results,
        },
        options.out,
    )


def train(network: mm.Network, data: mm.Splits, backend: str, epochs: int, seeds: int) -> mm.Model:
    """The population by the recipe."""
    schedule = mm.schedules.cosine(RECIPE["peak"], warmup=RECIPE["warmup"])
    return mm.gradient_descent(
        network,
        data,
        seed=0,
        backend=backend,
        optimizer=mm.optimizers.nesterov(schedule, weight_decay=RECIPE["weight_decay"], sharpness=RECIPE["sharpness"]),
        epochs=epochs,
        batch_size=BATCH,
        population=seeds,
        input_dropout=RECIPE["input_dropout"],
        callback=show,
    )


def show(progress: mm.observe.Progress) -> None:
    """A line for each epoch."""
    print(f"epoch {progress.done:.0f} of {progress.total}: {progress.validation_loss.round(4)}", flush=True)


if __name__ == "__main__":
    main()
