"""Every ratio to other libraries and to the bare products, with its target, in one table by one command.

Each benchmark runs in a process of its own, pinned to its threads; a library that is not installed is named as skipped.
What is compared does the same work: the final training losses of descents agree, candidates have the same fitness,
answers of ONNX Runtime are ours. A row whose results do not agree gets no ratio. The libraries are the extra
``oracles``.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

import numpy as np

import minimodel as mm
from minimodel.bench.common import arguments, report
from minimodel.bench.descent import installed
from minimodel.bench.search import SMALL, fitness_of
from minimodel.search.space import ravel

RUNS = {  # of each benchmark the options
    "descent": ("--threads", "1", *(("--compiled",) if which("g++") or which("cl") else ())),
    "search": ("--threads", "2"),
    "sparse": ("--threads", "1"),
    "inference": ("--threads", "1"),
    "engine": ("--threads", "1"),
}
LOSS_CLOSE = 0.1  # rows come in another order, so that losses agree but are not equal


class Row(NamedTuple):
    """A ratio, what it must at least (or at most) be, if anything, and the peer it needs."""

    text: str
    run: str
    read: Callable[[dict[str, Any]], float]
    target: float | None
    most: bool = False
    needs: str | None = None

    def met(self, ratio: float) -> str:
        """Whether the ratio is what it must be."""
        if self.target is None:
            return ""
        return "met" if (ratio <= self.target if self.most else ratio >= self.target) else "not met"


def descended(case: str, peer: str) -> Callable[[dict[str, Any]], float]:
    """How many times ours a peer takes. Raises ValueError where the losses are apart."""

    def read(found: dict[str, Any]) -> float:
        ours, theirs = (found["results"][case][name] for name in ("minimodel", peer))
        if theirs["loss"] is not None and not np.isclose(ours["loss"], theirs["loss"], rtol=LOSS_CLOSE):
            raise ValueError(f"the losses differ, {ours['loss']:.4f} and {theirs['loss']:.4f}")
        return theirs["ratio"]

    return read


def at_most(case: str, peer: str) -> Callable[[dict[str, Any]], float]:
    """How many times the bare matrix products of the step a peer takes: more than that no step in BLAS can be ahead."""
    return lambda found: descended(case, peer)(found) / descended(case, "matrix products")(found)


def searched(case: str, own: str, peer: str) -> Callable[[dict[str, Any]], float]:
    """How many times ours a search takes for as many candidates."""
    return lambda found: found["results"][case][peer]["ratio"] / found["results"][case][own]["ratio"]


def pruned(*keys: str) -> Callable[[dict[str, Any]], float]:
    """The ratio at the end of a path."""

    def read(found: dict[str, Any]) -> float:
        for key in keys:
            found = found[key]
        return found["ratio"]

    return read


def inverse(read: Callable[[dict[str, Any]], float]) -> Callable[[dict[str, Any]], float]:
    """Ours by theirs."""
    return lambda found: 1 / read(found)


def compiled(case: str) -> Callable[[dict[str, Any]], float]:
    """How many times theirs our first call takes."""
    return lambda found: found["compiled"][case]["minimodel"] / found["compiled"][case]["jax.grad + Optax"]


def engine_step(name: str) -> Callable[[dict[str, Any]], float]:
    """How many times its products a step takes."""
    return lambda found: found["steps"][name]["value"]


MASKS, GLOBAL, ANSWERS = "a step with masks", "a global mask over 10 M weights", "answers at 1.8 % of the weights"
SMALL_TEXT, LARGE_TEXT = "64-32-10", "784-300-100-10"
ROWS = (
    Row(f"{LARGE_TEXT}, NumPy: scikit-learn / ours", "descent", descended("large-numpy-1", "scikit-learn"), 1.6,
        needs="sklearn"),
    Row(f"{LARGE_TEXT}, NumPy: PyTorch / ours", "descent", descended("large-numpy-1", "PyTorch"), 1.5, needs="torch"),
    Row(f"{LARGE_TEXT}, NumPy: PyTorch compiled / ours", "descent", descended("large-numpy-1", "PyTorch compiled"),
        None, needs="torch"),
    Row(f"{LARGE_TEXT}, NumPy: ours / matrix products", "descent",
        inverse(descended("large-numpy-1", "matrix products")), 1.25, most=True),
    *(
        Row(f"{LARGE_TEXT}, NumPy: {peer} / matrix products alone", "descent", at_most("large-numpy-1", peer), None,
            needs=needs)
        for peer, needs in (("scikit-learn", "sklearn"), ("PyTorch", "torch"))
    ),
    Row(f"{SMALL_TEXT}, NumPy: scikit-learn / ours", "descent", descended("small-numpy-1", "scikit-learn"), 3.5,
        needs="sklearn"),
    Row(f"{SMALL_TEXT}, NumPy: PyTorch / ours", "descent", descended("small-numpy-1", "PyTorch"), 5.0, needs="torch"),
    Row(f"{SMALL_TEXT}, NumPy: PyTorch compiled / ours", "descent", descended("small-numpy-1", "PyTorch compiled"),
        None, needs="torch"),
    Row(f"{SMALL_TEXT}, NumPy, 16 at once: scikit-learn / ours", "descent",
        descended("small-numpy-16", "scikit-learn"), 14.0, needs="sklearn"),
    *(
        Row(f"{text}, JAX, {members} at once: jax.grad + Optax / ours", "descent",
            descended(f"{size}-jax-{members}", "jax.grad + Optax"), 1.0, needs="optax")
        for size, text in (("small", SMALL_TEXT), ("large", LARGE_TEXT)) for members in (1, 64)
    ),
    *(
        Row(f"{text}, JAX, {members} at once: ours / jax.grad + Optax, compiling", "engine",
            compiled(f"{size}-{members}"), 1.0, most=True, needs="optax")
        for size, text in (("small", SMALL_TEXT), ("large", LARGE_TEXT)) for members in (1, 64)
    ),
    *(
        Row(f"{name}: engine step / its products", "engine", engine_step(name), 1.2, most=True)
        for name in ("784-256-256-10", "784-512-512-10", "784-1024-1024-10")
    ),
    Row("random search, NumPy: nevergrad RandomSearch / ours", "search",
        searched("small-numpy-afresh", "gaussian", "nevergrad RandomSearch"), 3.0, needs="nevergrad"),
    Row("random search, NumPy: nevergrad OnePlusOne / ours", "search",
        searched("small-numpy-around", "hill climbing", "nevergrad OnePlusOne"), 3.0, needs="nevergrad"),
    Row("random search, JAX: evosax Open_ES / ours", "search",
        searched("small-jax", "open es", "evosax Open_ES"), 1.2, needs="evosax"),
    *(
        Row(f"{LARGE_TEXT}, {text}: full-rank ES / low-rank ES, {draws}", "search",
            searched(f"large{kind}-{name}", "low-rank es", "open es"), target)
        for kind, draws, target in (("-single", "single draws", 10.0), ("", "mirrored pairs", None))
        for name, text in (("jax", "JAX"), ("numpy", "NumPy"))
    ),
    *(
        Row(f"{text}, JAX: a generation / its products", "search",
            searched(f"floor-{size}", "bare products", "open es"), 1.5, most=True)
        for size, text in (("small", SMALL_TEXT), ("large", LARGE_TEXT))
    ),
    *(
        Row(f"retraining with masks / without, {name}", "sparse", pruned(MASKS, name, "with masks"), 1.10, most=True)
        for name in ("numpy", "jax")
    ),
    Row("a global mask, NumPy: ours / np.partition", "sparse",
        inverse(pruned(GLOBAL, "numpy", "np.partition")), 1.5, most=True),
    Row("a global mask, JAX: jnp.sort / ours", "sparse", pruned(GLOBAL, "jax", "jnp.sort"), 5.0),
    *(
        Row(f"dense / pruned and shrunk, {rows} rows", "sparse", pruned(ANSWERS, rows, "dense"), target)
        for rows, target in (("256", 4.0), ("1", 2.0))
    ),
    Row("integers / floats, NumPy, 256 rows", "inference",
        pruned("results", "integers", "numpy, answers", "256 rows, integers"), 1.3, most=True),
    *(
        Row(f"retraining through the rounding / without, {name}", "inference",
            pruned("results", "integers", f"{name}, steps", "through the rounding, a step"), target, most=True)
        for name, target in (("numpy", 2.0), ("jax", 1.5))
    ),
    *(
        Row(f"ONNX Runtime {kind} / ours, {rows} rows", "inference",
            pruned("results", f"{rows} rows", kind, "ONNX Runtime"), None, needs="onnxruntime")
        for kind in ("float", "int8") for rows in (1, 256)
    ),
)  # fmt: skip


def main() -> None:
    """Print and store the table."""
    parser = arguments(__doc__)
    parser.add_argument("--only", help=f"only rows of these benchmarks: {', '.join(RUNS)}")
    parser.add_argument("--from", dest="folder", type=Path, help="a folder with their results, instead of running them")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(RUNS)
    if unknown := set(chosen) - set(RUNS):
        parser.error(f"--only: expected {', '.join(RUNS)}, got {sorted(unknown)[0]!r}")
    if "search" in chosen:
        check_fitness()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        results = {name: results_of(name, folder, run=not options.folder) for name in chosen}
    rows = [judged(row, results[row.run]) for row in ROWS if row.run in chosen]
    show(rows)
    report({"rows": rows, "results": results}, options.out)


def check_fitness() -> None:
    """The function that the other searches minimise is ours. Raises ValueError otherwise."""
    data = mm.datasets.load("digits")
    params = mm.Network(SMALL).init(mm.random.key(0))
    z = mm.Network(SMALL).apply(params, mm.datasets.fit_normalization(data.train.x)(data.train.x))
    ours = float(mm.losses.softmax_cross_entropy.value(z, data.train.y))
    theirs = float(fitness_of(data, np)(ravel(params)))
    if not np.isclose(ours, theirs, rtol=1e-5):
        raise ValueError(f"the searches minimise different functions: {ours} and {theirs} for the same parameters")


def results_of(name: str, folder: Path, run: bool) -> dict[str, Any]:
    """What a benchmark found, or why it found nothing."""
    out = folder / f"{name}.json"
    if run:
        print(f"{name} …", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"minimodel.bench.{name}", *RUNS[name], "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": (done.stderr.splitlines() or ["without a word"])[-1]}
    return json.loads(out.read_text()) if out.exists() else {"failed": f"there is no {out}"}


def judged(row: Row, found: dict[str, Any]) -> dict[str, Any]:
    """The row with its ratio, or with the reason why there is none."""
    said = {"text": row.text, "target": row.target, "most": row.most, "ratio": None}
    if "failed" in found:
        return said | {"verdict": f"failed: {found['failed']}"}
    if row.needs and not installed(row.needs):
        return said | {"verdict": f"skipped: {row.needs} is not installed"}
    try:
        ratio = row.read(found)
    except KeyError as missing:
        return said | {"verdict": f"skipped: there is no {missing}"}
    except ValueError as error:
        return said | {"verdict": f"refused: {error}"}
    return said | {"ratio": ratio, "verdict": row.met(ratio)}


def show(rows: list[dict[str, Any]]) -> None:
    """One line a row."""
    for row in rows:
        target = "" if row["target"] is None else f"{'≤' if row['most'] else '≥'} {row['target']:g}×"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}×"
        print(f"{row['text']:<66} {ratio:>8} {target:>8}  {row['verdict']}")


if __name__ == "__main__":
    main()
