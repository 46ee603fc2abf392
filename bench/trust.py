"""Whether ``minimodel bench`` can be believed, by really running it on what is known.

A backend beside itself must be called no different, one that does a tenth more must be called slower, within a run and
between runs in processes of their own; and one that does not wait for its results must be refused, always.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from importlib.util import find_spec
from math import inf
from time import perf_counter
from typing import Any

import numpy as np

from minimodel import backends
from minimodel.backends import Backend, load
from minimodel.bench import measure, resources, running
from minimodel.bench.cases import CASES, Case, Size
from minimodel.bench.common import arguments, report
from minimodel.bench.compare import compare
from minimodel.bench.statistics import SAME_RUN, paired

SLOWER = 0.1
SIZE = Size((256, 128, 10), 128)  # calls long enough that the planted tenth is all that is planted
NAMES = ("matmul", "forward", "value_and_grad")
ROUNDS, RUN_SECONDS, LOOPS = 40, 10.0, 10
REFUSALS = 20


def main() -> None:
    """Print and store the counts."""
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=100, help="of a backend beside itself, and as many beside a slower")
    parser.add_argument("--processes", type=int, default=10, help="pairs of runs in processes of their own")
    parser.add_argument("--backends", default="numpy,jax")
    parser.add_argument("--worker", help="the backend that a process of its own measures")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(one_report(options.worker)))
        return
    rng, found = np.random.default_rng(0), {}
    with resources.threads(1) as threads:
        for name in [name for name in options.backends.split(",") if find_spec(name)]:
            backend = load(name)
            found[name] = {
                "same, called different": within(backend, backend, options.runs, rng),
                "a tenth slower, called slower": within(slower(backend), backend, options.runs, rng),
            }
            if name != "numpy":  # which has nothing to wait for
                planted = replace(backend, synchronize=lambda tree: tree)
                found[name]["not synchronised, refused"] = refused(planted, REFUSALS)
        found["lazy"] = {"not synchronised, refused": refused(lazy(load("numpy")), REFUSALS)}
        found["between processes"] = between(options.processes)
    for name, rows in found.items():
        for what, row in rows.items():
            print(f"{name:<18} {what:<32} {row['count']:4d} of {row['of']}")
    report({"threads": threads, "settings": {"runs": options.runs}, "results": found}, options.out)


def within(backend: Backend, base: Backend, runs: int, rng: np.random.Generator) -> dict[str, Any]:
    """How many runs of the two side by side say that the first differs, and the ratios they give."""
    same = backend is base
    case = CASES[NAMES[0]]
    ratios = [one_run(case, backend, base, rng) for _ in range(runs)]
    called = [ratio.verdict(SAME_RUN) for ratio in ratios]
    hits = sum(one != "no difference" for one in called) if same else called.count("slower")
    return {"count": hits, "of": runs, "ratios": [ratio.value for ratio in ratios]}


def one_run(case: Case, backend: Backend, base: Backend, rng: np.random.Generator) -> Any:
    """The ratio that one stretch of rounds gives, as in ``measure.sweep``."""
    host = case.inputs(SIZE, rng)
    takes: dict[str, Callable[[], float]] = {
        name: partial(measure.sample, case, SIZE, one, host, LOOPS) for name, one in (("one", backend), ("base", base))
    }
    found = measure.rounds(takes, inf, rng, most=ROUNDS)
    return paired(found["one"], found["base"])


def slower(backend: Backend) -> Backend:
    """The backend, whose calls go on for a tenth of the time that they took."""

    def jit(fn: Any, static: tuple[str, ...] = (), donate: tuple[str, ...] = ()) -> Any:
        run = backend.jit(fn, static=static, donate=donate)

        @wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            result = backend.synchronize(run(*args, **kwargs))
            end = perf_counter()
            while perf_counter() - end < SLOWER * (end - start):
                pass
            return result

        return call

    return replace(backend, name="slower", jit=jit)


class Lazy:
    """What is computed when somebody looks."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute = compute


def lazy(backend: Backend) -> Backend:
    """The backend, whose programs compute nothing before their results are fetched."""

    def jit(fn: Any, **kwargs: Any) -> Any:
        run = backend.jit(fn, **kwargs)
        return lambda *args, **kwargs: Lazy(lambda: run(*args, **kwargs))

    def to_numpy(tree: Any) -> Any:
        return backend.to_numpy(tree.compute() if isinstance(tree, Lazy) else tree)

    return replace(backend, name="lazy", jit=jit, to_numpy=to_numpy)


def refused(backend: Backend, times: int) -> dict[str, Any]:
    """How many times it is."""
    hits = 0
    for _ in range(times):
        try:
            running.check_synchronize(backend)
        except ValueError:
            hits += 1
    return {"count": hits, "of": times}


def between(pairs: int) -> dict[str, Any]:
    """How many points of pairs of reports differ, of NumPy and itself, and of NumPy and a slower one."""
    found: dict[str, list[Any]] = {"numpy": [], "slower": []}
    for _ in range(pairs):
        before = in_process("numpy")
        for name, differences in found.items():
            differences += compare(before, in_process(name))
    rows = {}
    for name, what, verdicts in (
        ("numpy", "same, called different", ("slower", "faster")),
        ("slower", "a tenth slower, called slower", ("slower",)),
    ):
        hits = sum(one.verdict in verdicts for one in found[name])
        ratios = [one.ratio.value for one in found[name]]
        rows[what] = {"count": hits, "of": len(ratios), "ratios": ratios}
    return rows


def in_process(name: str) -> dict[str, Any]:
    """``one_report`` in a fresh process."""
    command = [sys.executable, "-m", "minimodel.bench.trust", "--worker", name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one_report(name: str) -> dict[str, Any]:
    """A short report under NumPy's name, whichever of the two is measured."""
    if name == "slower":
        backends.register("slower", lambda: slower(load("numpy")))
    plan = measure.Plan((name,), tuple((CASES[case], SIZE) for case in NAMES), RUN_SECONDS)
    found = measure.measure(plan)
    for point in found["points"]:
        point["backends"] = {"numpy": point["backends"][name]}
    return found | {"backends": {"numpy": found["backends"][name]}}


if __name__ == "__main__":
    main()
