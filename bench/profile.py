"""Where the algorithms spend their time: on NumPy in the calls that the record of a step holds, by function and arrays;
on JAX in the operations that XLA ran, by their kind.

Whole calls run, of a small and a large network, on NumPy with a clock around each call of the step, on JAX under its
own tracer. Both take time themselves, the more the smaller the network; how much longer the whole call took is printed.
What is left over is copying the row numbers in and the losses out, and the host.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np

import minimodel as mm
from minimodel.backends import replay
from minimodel.bench import descent, resources
from minimodel.bench.common import arguments, report
from minimodel.bench.engine import timed

STEPS, GENERATIONS, POPULATION = 500, 5, 1_024
OUTER = ("while", "call", "conditional")  # what holds other operations
PRODUCTS = ("dot", "matmul")
STEP, CALL = "a step of the record", "the whole call"  # what the microseconds are of

Profiler = Callable[[Callable[[], Any]], dict[str, float]]  # runs it once; the microseconds of every kind


def main() -> None:
    """Print and store the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    profilers: dict[str, Profiler] = {"numpy": calls_of} | ({"jax": operations_of} if descent.installed("jax") else {})
    with resources.threads(options.threads) as threads:
        for layers, batch in descent.SIZES.values():
            for name, run in algorithms(layers, batch).items():
                for backend, profiler in profilers.items():
                    title = f"{'-'.join(map(str, layers))}, {batch} rows, {name}, {backend}"
                    results[title] = profiled(partial(run, backend=backend), profiler)
                    show(title, **results[title])
    report({"threads": threads, "results": results}, options.out)


def algorithms(sizes: tuple[int, ...], batch: int) -> dict[str, Callable[..., Any]]:
    """Each of the four, over so many steps or generations."""
    data, network = descent.problem(sizes, 10 * batch), mm.Network(sizes)
    dense = mm.gradient_descent(network, data, seed=0, epochs=0)
    training: dict[str, Any] = {
        "seed": 0, "epochs": STEPS // 10, "batch_size": batch, "optimizer": mm.optimizers.momentum(descent.RATE)
    }  # fmt: skip
    search: dict[str, Any] = {
        "seed": 0, "strategy": mm.strategies.open_es(0.1), "rows": batch,
        "generations": GENERATIONS, "population": POPULATION,
    }  # fmt: skip
    return {
        "gradient descent": partial(mm.gradient_descent, network, data, **training),
        f"random search, {POPULATION} candidates": partial(mm.random_search, network, data, **search),
        "retraining while pruned": partial(mm.prune, dense, data, sparsity=0.9, **training),
        "retraining through the rounding": partial(mm.quantize, dense, data, bits=4, **training),
    }


def profiled(run: Callable[[], Any], profiler: Profiler) -> dict[str, Any]:
    """Microseconds of every kind, greatest first, of which part of the work, and how many times as long the call took
    for being watched."""
    run()  # compiles
    plain, watched = min(timed(run) for _ in range(3)), []
    found = profiler(lambda: watched.append(timed(run)))
    return {
        "of": STEP if profiler is calls_of else CALL,
        "slowed": watched[0] / plain,
        "microseconds": dict(sorted(found.items(), key=lambda item: -item[1])),
    }


def calls_of(run: Callable[[], Any]) -> dict[str, float]:
    """Of a step, of every kind of call the sum of the medians; of random search it is a chunk of candidates."""
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
    return found


def operations_of(run: Callable[[], Any]) -> dict[str, float]:
    """Of the whole call, of every kind of operation the sum over XLA's threads; those that XLA leaves to a library of
    its own, products and sums, have one name: ynn_fusion."""
    import jax

    found: dict[str, float] = defaultdict(float)
    settings = jax.profiler.ProfileOptions()
    settings.python_tracer_level = 0
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=settings):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events if line.name.startswith("tf_XLA") else ():
                    kind = re.sub(r"\.\d+$", "", event.name)
                    if ":" not in kind and kind not in OUTER:  # with a colon it is XLA's own bookkeeping
                        found[kind] += event.duration_ns / 1e3
    return found


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


def show(title: str, of: str, slowed: float, microseconds: dict[str, float]) -> None:
    """One line for each kind that takes a fortieth, and the rest."""
    total = sum(microseconds.values())
    print(f"\n{title}: {total:,.0f} µs of {of}; watched, the call took {slowed:.2f}× as long")
    if of == STEP:  # the names of XLA do not tell products from sums
        products = sum(value for name, value in microseconds.items() if name.startswith(PRODUCTS))
        print(f"in products {products / total:.0%}")
    lines = {name: value for name, value in microseconds.items() if value > total / 40}
    for name, value in (*lines.items(), ("the rest", total - sum(lines.values()))):
        print(f"{name:<64} {value:12,.1f} µs {value / total:6.1%}", flush=True)


if __name__ == "__main__":
    main()
