"""The whole pipeline over several seeds and backends: mean ± standard error of what each stage gives."""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import minimodel as mm
from minimodel import pipeline
from minimodel.bench.common import arguments, network_of, plus_minus, report


def main() -> None:
    """Print and store the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--hidden", default="256,128")
    parser.add_argument("--backends", default="numpy,jax")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--epochs", type=int, help="of gradient descent; the other stages follow it")
    options = parser.parse_args()
    runs = []
    for backend in options.backends.split(","):
        for seed in range(options.seeds):
            start = perf_counter()
            data = mm.datasets.load(options.data, seed=seed)
            network = network_of(options.hidden, data)
            stages = pipeline.run(
                network,
                data,
                seed=seed,
                backend=backend,
                sparsity=options.sparsity,
                bits=options.bits,
                epochs=options.epochs,
            )
            found = [stage.summary() for stage in stages]
            seconds = perf_counter() - start
            runs.append({"backend": backend, "seed": seed, "seconds": seconds, "stages": found})
            print(f"{backend} seed {seed}: {seconds:.0f} s, " + summary(found), flush=True)
        show(backend, [run for run in runs if run["backend"] == backend])
    settings = {"sparsity": options.sparsity, "bits": options.bits, "layer_sizes": network.layer_sizes}
    report({"data": Path(options.data).name, "settings": settings, "runs": runs}, options.out)


def summary(stages: list[dict[str, Any]]) -> str:
    """The test errors of one run, in per cent."""
    return ", ".join(f"{stage['name']} {100 * (1 - stage['accuracy']):.2f} %" for stage in stages)


def show(backend: str, runs: list[dict[str, Any]]) -> None:
    """One line a stage."""
    print(f"\n{backend}, {len(runs)} seeds: test error %, difference to gradient_descent, bytes, seconds")
    errors = np.array([[100 * (1 - stage["accuracy"]) for stage in run["stages"]] for run in runs])
    for i, name in enumerate(pipeline.STAGES):
        sizes, seconds = ([run["stages"][i][what] for run in runs] for what in ("bytes", "seconds"))
        print(
            f"{name:<17} {plus_minus(errors[:, i])}  {plus_minus(errors[:, i] - errors[:, 1], '+')}"
            f"  {np.mean(sizes):10,.0f}  {np.median(seconds):7.1f}"
        )
    print()


if __name__ == "__main__":
    main()
