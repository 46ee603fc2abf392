"""The engine by itself: a step beside the sum of its matrix products, and what compiling costs beside jax.grad + Optax.

A step is the value and the gradient of a batch. A first call is timed in a process of its own, whole, less a second
one: what is left is tracing and compiling.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.backends import load
from minimodel.bench import descent, measure, resources
from minimodel.bench.common import arguments, report
from minimodel.bench.statistics import paired
from minimodel.network import Params

STEPS = (((784, 256, 256, 10), 128), ((784, 512, 512, 10), 128), ((784, 1024, 1024, 10), 256))
COMPILED = (("small", 1), ("small", 64), ("large", 1), ("large", 64))
ROWS, SECONDS, ROUNDS = {"small": 320, "large": 1_280}, 10.0, 200


def main() -> None:
    """Print and store both tables."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each first call")
    parser.add_argument("--first", nargs=3, help="what a process of its own times: size, networks, whose")
    options = parser.parse_args()
    if options.first:
        size, members, whose = options.first
        print(first_call(size, int(members), whose))
        return
    with resources.threads(options.threads) as threads:
        steps = {"-".join(map(str, sizes)): step(sizes, batch) for sizes, batch in STEPS}
        compiled = {}
        for size, members in COMPILED if descent.installed("optax") else ():
            turns = [
                {whose: in_process(size, members, whose) for whose in ("minimodel", "jax.grad + Optax")}
                for _ in range(options.repeats)
            ]
            compiled[f"{size}-{members}"] = {whose: median(turn[whose] for turn in turns) for whose in turns[0]}
    for name, row in steps.items():
        print(f"{name:<20} a step is {row['value']:.3f}× its products [{row['low']:.3f}, {row['high']:.3f}]")
    for name, seconds in compiled.items():
        print(f"{name:<20} compiles in {', '.join(f'{whose} {found:.2f} s' for whose, found in seconds.items())}")
    report({"threads": threads, "steps": steps, "compiled": compiled}, options.out)


def step(sizes: tuple[int, ...], batch: int) -> dict[str, float]:
    """The ratio of a step to its products, with its interval."""
    network, rng = mm.Network(sizes), np.random.default_rng(0)
    params = network.init(mm.random.key(0))
    x, y = rng.normal(size=(batch, sizes[0])).astype(np.float32), rng.integers(0, sizes[-1], batch, dtype=np.int32)
    products = descent.Products(sizes, batch)
    takes: dict[str, Callable[[], float]] = {
        "step": partial(timed, partial(value_and_grad, network, params, x, y)),
        "products": partial(timed, products.step),
    }
    found = measure.rounds(takes, perf_counter() + SECONDS, rng, ROUNDS)
    return paired(found["step"], found["products"])._asdict() | {
        name: median(seconds) for name, seconds in found.items()
    }


def value_and_grad(network: mm.Network, params: Params, x: np.ndarray, y: np.ndarray) -> Any:
    """As anybody would call it."""
    return mm.value_and_grad(network, "softmax_cross_entropy", params, x, y)


def timed(call: Any) -> float:
    """Seconds."""
    start = perf_counter()
    call()
    return perf_counter() - start


def in_process(size: str, members: int, whose: str) -> float:
    """``first_call`` in a fresh process."""
    command = [sys.executable, "-m", "minimodel.bench.engine", "--first", size, str(members), whose]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def first_call(size: str, members: int, whose: str) -> float:
    """Seconds of a whole call of one epoch, less those of the next."""
    (sizes, batch), data = descent.SIZES[size], descent.problem(descent.SIZES[size][0], ROWS[size])
    load("jax").synchronize(load("jax").asarray(np.ones(1)))  # started
    if whose == "minimodel":
        case: Any = partial(descent.ours, data, sizes, batch, 1, "jax", members if members > 1 else None)
    else:
        case = descent.optax(data, sizes, batch, 1, members)
    return timed(case) - timed(case)


if __name__ == "__main__":
    main()
