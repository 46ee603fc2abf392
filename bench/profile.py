"""Where a step of gradient descent on NumPy spends its time: every call that its record holds, by function and arrays.

The whole of ``bench.descent`` runs, on one network, with a clock around each call. What is left over is copying the
row numbers in and the losses out, and the clock itself.
"""

from collections import defaultdict
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np

from minimodel.backends import replay
from minimodel.bench import descent, resources
from minimodel.bench.common import arguments, report

ROWS = {"small": 1_440, "large": 12_800}
EPOCHS = 10


def main() -> None:
    """Print and store the table of each size."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    results = {}
    with resources.threads(options.threads) as threads:
        for size, (layers, batch) in descent.SIZES.items():
            results[size] = profiled(layers, batch, ROWS[size])
            show("-".join(map(str, layers)), results[size])
    report({"threads": threads, "results": results}, options.out)


def profiled(sizes: tuple[int, ...], batch: int, rows: int) -> dict[str, float]:
    """Microseconds of a step: of every kind of call the sum of the medians, greatest first."""
    taken: dict[int, list[float]] = defaultdict(list)  # of each call, by its place in the step
    names: list[str] = []
    finish = replay.Tape.finish

    def timed(tape: replay.Tape, results: list[np.ndarray]) -> None:
        finish(tape, results)
        names[:] = map(described, tape.calls)
        taken.clear()  # the last record is that of the epoch
        tape.calls = [clocked(call, taken[i]) for i, call in enumerate(tape.calls)]

    with mock.patch.object(replay.Tape, "finish", timed):
        descent.ours(descent.problem(sizes, rows), sizes, batch, EPOCHS, "numpy", None)
    found: dict[str, float] = defaultdict(float)
    for i, name in enumerate(names):
        found[name] += median(taken[i]) * 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def clocked(call: Callable[[], Any], taken: list[float]) -> Callable[[], None]:
    """The call, noting its seconds."""

    def run() -> None:
        start = perf_counter()
        call()
        taken.append(perf_counter() - start)

    return run


def described(call: Any) -> str:
    """The function and the shapes of its arrays, as "dot (128, 784) (784, 300)"."""
    fn = getattr(call, "func", call)
    own = getattr(fn, "__self__", None)  # an array's own method, such as dot, looks at the array too
    args = (own, *getattr(call, "args", ())) if isinstance(own, np.ndarray) else getattr(call, "args", ())
    shapes = [str(arg.shape) for arg in args if isinstance(arg, np.ndarray) and arg.ndim]
    name = fn.__name__ if not isinstance(own, np.ufunc) else f"{own.__name__}.{fn.__name__}"
    return " ".join([name, *shapes])


def show(network: str, found: dict[str, float]) -> None:
    """One line for each kind of call that takes a hundredth, and the rest."""
    total = sum(found.values())
    products = sum(value for name, value in found.items() if name.startswith(("dot", "matmul")))
    print(f"\n{network}: {total:.0f} µs a step, {products / total:.0%} in products")
    lines = {name: value for name, value in found.items() if value > total / 100}
    for name, value in (*lines.items(), ("the rest", total - sum(lines.values()))):
        print(f"{name:<64} {value:8.1f} µs {value / total:6.1%}", flush=True)


if __name__ == "__main__":
    main()
