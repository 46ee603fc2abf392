"""What the benchmarks share: timing side by side, the machine's description, results as JSON."""

import argparse
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

from minimodel.backends import available
from minimodel.datasets import Splits
from minimodel.model import standard_error
from minimodel.network import Network

PACKAGES = (
    "minimodel", "numpy", "jax", "jaxlib", "scikit-learn", "torch", "optax", "evosax", "nevergrad", "onnxruntime"
)  # fmt: skip


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file as well")
    return parser


def network_of(hidden: str, data: Splits) -> Network:
    """For the data, with hidden layers as "300,100"."""
    return Network((data.train.x.shape[1], *map(int, hidden.split(",")), data.outputs))


def side_by_side(cases: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, dict[str, Any]]:
    """Seconds of every case as least, median and greatest: one warm-up each, then in turns, in random order.

    ``ratio`` is the median over the turns of a case's seconds by those of the first case in the same turn, which
    holds where the machine's speed drifts.
    """
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    order, rng = list(cases), Random(0)
    for _ in range(repeats):
        rng.shuffle(order)  # or each would always be found in the cache that the same other one leaves
        for name in order:
            start = perf_counter()
            cases[name]()
            seconds[name].append(perf_counter() - start)
    first = next(iter(seconds.values()))
    return {
        name: {
            "min": min(found),
            "median": median(found),
            "max": max(found),
            "ratio": median(own / other for own, other in zip(found, first, strict=True)),
        }
        for name, found in seconds.items()
    }


def repeat(fn: Callable[[Any], Any], x: Any, times: int) -> None:
    """fn(x), so many times."""
    for _ in range(times):
        fn(x)


def available_two() -> list[str]:
    """NumPy, and JAX where it is installed."""
    return [name for name in ("numpy", "jax") if name in available()]


def plus_minus(values: Any, sign: str = "") -> str:
    """Mean ± standard error of an array; the mean alone of one value."""
    return f"{values.mean():{sign}6.2f}" + (f" ± {standard_error(values):.2f}" if values.size > 1 else "")


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": packages,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def report(results: dict[str, Any], out: Path | None) -> None:
    """Results with the machine's description, to the file if one is given."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
        print(f"written to {out}")
