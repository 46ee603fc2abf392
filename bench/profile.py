"""Where the algorithms spend their time on NumPy: every call that the record of a step holds, by function and arrays.

Whole calls run, of a small and a large network, with a clock around each call of the step. What is left over is copying
the row numbers in and the losses out, and the clock itself.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

import minimodel as mm
from minimodel.backends import replay
from minimodel.bench import descent, resources
from minimodel.bench.common import arguments, report
from minimodel.bench.engine import timed

STEPS, POPULATION = 500, 1_024


def main() -> None:
    """Print and store the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with resources.threads(options.threads) as threads:
        for layers, batch in descent.SIZES.values():
            for name, run in algorithms(layers, batch).items():
                title = f"{'-'.join(map(str, layers))}, {batch} rows, {name}"
                results[title] = profiled(run)
                show(title, results[title])
    report({"threads": threads, "results": results}, options.out)


def algorithms(sizes: tuple[int, ...], batch: int) -> dict[str, Callable[[], Any]]:
    """Each of the four, over so many steps; of random search one is a chunk of candidates."""
    data, network = descent.problem(sizes, 10 * batch), mm.Network(sizes)
    dense = mm.gradient_descent(network, data, seed=0, epochs=0)
    training: dict[str, Any] = {
        "seed": 0, "epochs": STEPS // 10, "batch_size": batch, "optimizer": mm.optimizers.momentum(descent.RATE)
    }  # fmt: skip
    search: dict[str, Any] = {
        "seed": 0, "strategy": mm.strategies.open_es(0.1), "rows": batch,
        "generations": STEPS // 100 or 1, "population": POPULATION,
    }  # fmt: skip
    return {
        "gradient descent": partial(mm.gradient_descent, network, data, **training),
        f"random search, {POPULATION} candidates": partial(mm.random_search, network, data, **search),
        "retraining while pruned": partial(mm.prune, dense, data, sparsity=0.9, **training),
        "retraining through the rounding": partial(mm.quantize, dense, data, bits=4, **training),
    }


def profiled(run: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of a step: of every kind of call the sum of the medians, greatest first."""
    calls: list[tuple[str, list[float]]] = []  # of the step, with the seconds of each turn
    finish = replay.Tape.finish

    def clocked(tape: replay.Tape, results: list[np.ndarray]) -> None:
        finish(tape, results)
        calls[:] = [(described(call), []) for call in tape.calls]  # the last record is that of the step
        tape.calls = [partial(clock, call, taken) for call, (_, taken) in zip(tape.calls, calls, strict=True)]

    with mock.patch.object(replay.Tape, "finish", clocked):
        run()
    found: dict[str, float] = defaultdict(float)
    for name, taken in calls:
        found[name] += median(taken) * 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def clock(call: Callable[[], Any], taken: list[float]) -> None:
    """The call, its seconds noted."""
    taken.append(timed(call))


def described(call: Any) -> str:
    """The function and the shapes of its arrays, as "dot (128, 784) (784, 300)"."""
    fn, args = getattr(call, "func", call), getattr(call, "args", ())
    own = getattr(fn, "__self__", None)
    if isinstance(own, np.ndarray):  # its own method, such as dot, looks at the array too
        args = (own, *args)
    shapes = [str(arg.shape) for arg in args if isinstance(arg, np.ndarray) and arg.ndim]
    name = f"{own.__name__}.{fn.__name__}" if isinstance(own, np.ufunc) else fn.__name__
    return " ".join([name, *shapes])


def show(title: str, found: dict[str, float]) -> None:
    """One line for each kind of call that takes a fortieth, and the rest."""
    total = sum(found.values())
    products = sum(value for name, value in found.items() if name.startswith(("dot", "matmul")))
    print(f"\n{title}: {total:.0f} µs a step, {products / total:.0%} in products")
    lines = {name: value for name, value in found.items() if value > total / 40}
    for name, value in (*lines.items(), ("the rest", total - sum(lines.values()))):
        print(f"{name:<64} {value:8.1f} µs {value / total:6.1%}", flush=True)


if __name__ == "__main__":
    main()
