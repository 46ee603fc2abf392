"""The four algorithms on the digits, NumPy beside JAX (and scikit-learn's MLP): time a step, a candidate, a weight.

Compilation is left out: every case runs once before it is timed. Batches of 32, a 64-32-10 network.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import minimodel as mm
from minimodel.backends import Backend, available, load
from minimodel.bench.common import arguments, report, side_by_side

NETWORK = mm.Network((64, 32, 10))
EPOCHS, MEMBERS, GENERATIONS, CANDIDATES = 8, 16, 10, 256


def main() -> None:
    """Print and store the table."""
    options = arguments(__doc__).parse_args()
    data = mm.datasets.load("digits")
    steps = len(data.train.x) // 32 * EPOCHS
    units: dict[str, tuple[float, str]] = {}
    cases: dict[str, Callable[[], Any]] = {}

    def add(name: str, case: Callable[[], Any], count: float, unit: str) -> None:
        cases[name], units[name] = case, (count, unit)

    for name in ("numpy", "jax"):
        if name not in available():
            continue
        backend = load(name)
        model = train(data, backend)
        retrain: dict[str, Any] = {"data": data, "seed": 0, "backend": backend, "epochs": EPOCHS}
        add(f"{name} gradient descent", partial(train, data, backend), steps, "step")
        add(f"{name} gradient descent × {MEMBERS}", partial(train, data, backend, MEMBERS), steps * MEMBERS, "step")
        add(f"{name} random search", partial(search, data, backend), GENERATIONS * CANDIDATES, "candidate")
        add(f"{name} prune and retrain", partial(mm.prune, model, sparsity=0.9, **retrain), steps, "step")
        add(f"{name} quantize and retrain", partial(mm.quantize, model, bits=4, **retrain), steps, "step")
    try:
        from sklearn.neural_network import MLPClassifier
    except ImportError:
        print("without scikit-learn: pip install 'minimodel[sklearn]'")
    else:
        x = data.normalization(data.train.x) if data.normalization else data.train.x

        def fit() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that so few epochs have not converged
                MLPClassifier((32,), batch_size=32, max_iter=EPOCHS, random_state=0).fit(x, data.train.y)

        add("scikit-learn MLPClassifier", fit, steps, "step")

    found = side_by_side(cases)
    for name, seconds in found.items():
        count, unit = units[name]
        low, middle, high = (seconds[part] / count * 1e6 for part in ("min", "median", "max"))
        print(f"{name:<30} {middle:8.1f} µs a {unit:<9} ({low:.1f} to {high:.1f})")
    counts = {name: {"count": count, "unit": unit} for name, (count, unit) in units.items()}
    report({"seconds": found, "counts": counts}, options.out)


def train(data: mm.Splits, backend: Backend, population: int | None = None) -> mm.Model:
    """Adam for a few epochs."""
    return mm.gradient_descent(NETWORK, data, seed=0, backend=backend, epochs=EPOCHS, population=population)


def search(data: mm.Splits, backend: Backend) -> mm.Model:
    """Local search on all training rows."""
    return mm.random_search(NETWORK, data, seed=0, backend=backend, generations=GENERATIONS, population=CANDIDATES)


if __name__ == "__main__":
    main()
