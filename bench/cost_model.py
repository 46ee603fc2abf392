"""What each algorithm costs in time and memory as the problem grows: the exponent on paper beside the fitted one.

One of parameters, rows and population grows by doubling while the others stay; b of y ∝ xᵇ is fitted to the last
doublings, where what does not grow with it matters least. Memory is the most that a call takes above what the process
holds; where all doublings together add less than can be seen, 0. On paper, with N parameters, n rows of d numbers and P
networks or candidates,

                                        time           memory
    gradient descent, an epoch          N·n·P          N·P + n·d
    random search, a generation         N·n·P          N·P + n·d
    pruning, without retraining         N·P + n·d      N·P + n·d
    quantization, without retraining    N·P + n·d      N·P + n·d

N·P of a search are the draws of a generation, by which its candidates are told apart; n·d are the rows, which every
algorithm checks, normalises and keeps a copy of.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import minimodel as mm
from minimodel.backends import Backend, load
from minimodel.bench import descent, resources
from minimodel.bench.common import arguments, report
from minimodel.bench.engine import timed
from minimodel.bench.statistics import exponent

DOUBLINGS, FITTED, REPEATS = 6, 4, 5
SEEN = 4e6  # bytes that memory must grow by from first to last


class Problem(NamedTuple):
    """One hidden layer of so many neurons, so many training rows, so many networks."""

    hidden: int = 64
    rows: int = 256
    population: int = 2

    @property
    def network(self) -> mm.Network:
        return mm.Network((64, self.hidden, 10))

    @property
    def data(self) -> mm.Splits:
        return descent.problem(self.network.layer_sizes, self.rows)


def epoch(at: Problem, backend: Backend) -> Callable[[], Any]:
    """Gradient descent, an epoch in batches of 64."""
    options: dict[str, Any] = {"epochs": 1, "batch_size": 64, "population": at.population}
    optimizer = mm.optimizers.momentum(0.01)
    return partial(mm.gradient_descent, at.network, at.data, seed=0, backend=backend, optimizer=optimizer, **options)


def generation(at: Problem, backend: Backend) -> Callable[[], Any]:
    """Random search, two generations of as many candidates."""
    options: dict[str, Any] = {"generations": 2, "population": at.population}
    return partial(mm.random_search, at.network, at.data, seed=0, backend=backend, **options)


def pruning(at: Problem, backend: Backend) -> Callable[[], Any]:
    """The masks of half the weights of each layer."""
    options: dict[str, Any] = {"sparsity": 0.5, "allocation": "uniform", "epochs": 0}
    return partial(mm.prune, untrained(at), at.data, seed=0, backend=backend, **options)


def quantization(at: Problem, backend: Backend) -> Callable[[], Any]:
    """Weights of 4 bits."""
    return partial(mm.quantize, untrained(at), at.data, seed=0, backend=backend, bits=4, epochs=0)


def untrained(at: Problem) -> mm.Model:
    """A model to make smaller."""
    return mm.gradient_descent(at.network, at.data, seed=0, epochs=0, population=at.population)


ALGORITHMS = {
    "gradient descent": epoch, "random search": generation, "pruning": pruning, "quantization": quantization,
}  # fmt: skip
AXES = {"parameters": ("hidden", 256), "rows": ("rows", 4096), "population": ("population", 4)}  # where each begins
PAPER = {"time": 1, "memory": 1}  # whatever the axis: each of the sums above grows as what grows in it


def main() -> None:
    """Print and store the table."""
    parser = arguments(__doc__)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with resources.threads(options.threads) as threads:
        backend = load(options.backend)
        for name, make in ALGORITHMS.items():
            for axis in AXES:
                found[f"{name}, {axis}"] = row = grown(make, axis, backend) | {"paper": PAPER}
                fitted = {part: "unknown" if row[part] is None else f"{row[part]:.2f}" for part in PAPER}
                parts = (f"{part} {PAPER[part]} on paper, {fitted[part]} fitted" for part in PAPER)
                print(f"{name:<18} by {axis:<11} {'; '.join(parts)}", flush=True)
    report({"backend": options.backend, "threads": threads, "results": found}, options.out)


def grown(make: Callable[..., Any], axis: str, backend: Backend) -> dict[str, Any]:
    """Seconds and bytes at every doubling, and the exponents of the last."""
    name, first = AXES[axis]
    sizes = [first * 2**i for i in range(DOUBLINGS)]
    points = [measured(make(Problem(**{name: size}), backend)) for size in sizes]
    x = [Problem(hidden=size).network.parameters for size in sizes] if axis == "parameters" else sizes
    seconds, memory = zip(*points, strict=True)
    seen = None not in memory and memory[-1] - memory[0] > SEEN and min(memory[-FITTED:]) > 0
    return {
        "x": x,
        "seconds": seconds,
        "bytes": memory,
        "time": exponent(x[-FITTED:], seconds[-FITTED:]),
        "memory": exponent(x[-FITTED:], memory[-FITTED:]) if seen else 0.0 if None not in memory else None,
    }


def measured(call: Callable[[], Any]) -> tuple[float, float | None]:
    """The median of a few times, and the most memory above what is held; the first call compiles."""
    call()
    held = resources.forget_peak()
    call()
    memory = None if held is None else max(0.0, resources.peak_memory() - held)
    return median(timed(call) for _ in range(REPEATS)), memory


if __name__ == "__main__":
    main()
