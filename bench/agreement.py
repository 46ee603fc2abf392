"""The same seed on NumPy and on another backend: draws, initial parameters, the first 100 training losses."""

from pathlib import Path

import numpy as np

import minimodel as mm
from minimodel import pipeline, tree
from minimodel.backends import load
from minimodel.bench.common import arguments, report

STEPS = 100


def main() -> None:
    """Print and store how far the two are apart."""
    parser = arguments(__doc__)
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--hidden", default="256,128")
    options = parser.parse_args()
    data = mm.datasets.load(options.data)
    sizes = (data.train.x.shape[1], *map(int, options.hidden.split(",")), data.outputs)
    network, backends = mm.Network(sizes), [load("numpy"), load(options.backend)]

    key = mm.random.key(0)
    draws = [backend.to_numpy(mm.random.bits(key, (2**20,), backend=backend)) for backend in backends]
    starts = [backend.to_numpy(network.init(key, backend=backend)) for backend in backends]
    runs = [train(network, data, backend) for backend in backends]
    losses = [run.history["loss"][:STEPS] for run in runs]
    results = {
        "different words of 2^20": int((draws[0] != draws[1]).sum()),
        "initial parameters, ulp": max(map(ulp, *map(tree.leaves, starts))),
        f"first {STEPS} losses, relative": float(np.max(np.abs(losses[0] - losses[1]) / losses[0])),
        "test accuracy after them": [float(run.evaluate(data.test).accuracy) for run in runs],
    }
    for name, value in results.items():
        print(f"{name:<28} {value}")
    report({"backend": options.backend, "data": Path(options.data).name, "layer_sizes": sizes, **results}, options.out)


def train(network: mm.Network, data: mm.Splits, backend: mm.backends.Backend) -> mm.Model:
    """The beginning of the gradient descent of ``minimodel run``: its first epochs, at the rates they have there."""
    rows = len(data.train.x)
    epochs, batch_size = pipeline.budget(rows)
    steps = rows // batch_size
    optimizer = pipeline.recipe(data, 0.1)
    schedule = optimizer.schedule
    return mm.gradient_descent(
        network,
        data,
        seed=0,
        backend=backend,
        optimizer=optimizer._replace(schedule=lambda step, run: schedule(step, run._replace(steps=epochs * steps))),
        epochs=-(-STEPS // steps),
        batch_size=batch_size,
    )


def ulp(a: np.ndarray, b: np.ndarray) -> int:
    """The greatest distance in units of the last place of float32 arrays whose signs agree."""
    return int(np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32)).max())


if __name__ == "__main__":
    main()
