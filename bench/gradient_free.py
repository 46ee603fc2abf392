"""Accuracy without a gradient, against the evaluations of candidates it took.

On the digits every strategy gets the same number of evaluations; with a folder of MNIST's IDX files the low-rank
evolution strategy is shown there. Hyper-parameters were chosen on validation rows; test rows only report.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.bench.common import arguments, plus_minus, report
from minimodel.search.strategies import Strategy

POINTS = 12  # at which a run is looked at, evenly spaced in the logarithm


def digits_cases() -> dict[str, tuple[Strategy, int]]:
    """Strategies with their populations for 64-32-10."""
    s, adam, cosine = mm.strategies, mm.optimizers.adam, mm.schedules.cosine
    return {
        "uniform": (s.uniform(-0.5, 0.5), 100),
        "gaussian": (s.gaussian(1.0), 100),
        "cauchy": (s.cauchy(0.2), 100),
        "gaussian, sobol": (s.gaussian(1.0, points="sobol"), 1024),
        "gaussian, halton": (s.gaussian(1.0, points="halton"), 1000),
        "gaussian, latin hypercube": (s.gaussian(1.0, points="latin_hypercube"), 1000),
        "hill climbing": (s.hill_climbing(0.15), 20),
        "hill climbing, cauchy": (s.hill_climbing(0.005, law="cauchy"), 20),
        "one plus one": (s.one_plus_one(0.15), 10),
        "mu, lambda": (s.mu_lambda(0.15), 100),
        "simulated annealing": (s.simulated_annealing(0.1, temperature=0.003, cooling=0.998), 10),
        "snes": (s.snes(0.5), 50),
        "sep-cma-es": (s.sep_cma_es(0.5), 50),
        "snes, 200 dimensions": (s.subspace(s.snes(0.5), 200, seed=0), 50),
        "open es, 200 dimensions, redrawn": (
            s.subspace(s.open_es(0.3, optimizer=mm.optimizers.sgd(cosine(1.0))), 200, seed=0, redraw=True),
            100,
        ),
        "open es": (s.open_es(0.3, optimizer=adam(cosine(0.03))), 100),
        "low-rank es": (s.low_rank_es(0.6, optimizer=adam(cosine(0.03))), 100),
    }


def main() -> None:
    """Print, draw and store the accuracies."""
    parser = arguments(__doc__)
    parser.add_argument("data", nargs="?", default="digits", help="digits, or the folder with MNIST's IDX files")
    parser.add_argument("--evaluations", type=int, help="by default 50,000 on the digits, 512,000 on MNIST")
    parser.add_argument("--hidden", help="by default 32 on the digits, 128 on MNIST")
    parser.add_argument("--population", type=int, default=256, help="on MNIST")
    parser.add_argument("--batch-size", type=int, default=512, help="on MNIST")
    parser.add_argument("--sigma", type=float, default=0.5, help="on MNIST")
    parser.add_argument("--rate", type=float, default=0.003, help="on MNIST, of Adam, falling to 0 as a cosine")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backend", help="by default numpy on the digits, jax on MNIST")
    parser.add_argument("--plot", type=Path, help="draw accuracy against evaluations to this file")
    options = parser.parse_args()
    small, data = options.data == "digits", mm.datasets.load(options.data)
    hidden = map(int, (options.hidden or ("32" if small else "128")).split(","))
    network = mm.Network((data.train.x.shape[1], *hidden, data.outputs))
    evaluations = options.evaluations or (50_000 if small else 512_000)
    optimizer = mm.optimizers.adam(mm.schedules.cosine(options.rate))
    low_rank = mm.strategies.low_rank_es(options.sigma, optimizer=optimizer)
    cases = digits_cases() if small else {"low-rank es": (low_rank, options.population)}
    common = {
        "backend": options.backend or ("numpy" if small else "jax"),
        "batch_size": None if small else options.batch_size,
    }
    results: dict[str, Any] = {}
    for name, (strategy, population) in cases.items():
        runs = [
            trace(network, data, evaluations, seed=seed, strategy=strategy, population=population, **common)
            for seed in range(options.seeds)
        ]
        results[name] = {"population": population, "runs": runs}
        last = [100 * np.array([run["points"][-1][part] for run in runs]) for part in ("test", "validation")]
        test, held = map(plus_minus, last)
        seconds = np.median([run["seconds"] for run in runs])
        print(f"{name:<33} test {test} %   validation {held} %   {seconds:6.1f} s", flush=True)
    settings = {"data": Path(options.data).name, "layer_sizes": network.layer_sizes, "evaluations": evaluations}
    settings |= {} if small else {name: vars(options)[name] for name in ("sigma", "rate", "population", "batch_size")}
    if options.plot:
        draw(results, f"{settings['data']}, {'-'.join(map(str, network.layer_sizes))}", options.plot)
    report({"settings": settings | {"backend": common["backend"]}, "results": results}, options.out)


def trace(network: mm.Network, data: mm.Splits, evaluations: int, *, population: int, **options: Any) -> dict[str, Any]:
    """The accuracies of one run after so many evaluations, and the seconds it took without looking."""
    generations = evaluations // population
    looks = set(np.geomspace(10, generations, POINTS).round(-1).astype(int)) | {generations}
    points, seconds, model = [], 0.0, None
    while model is None or len(model.history["loss"]) < generations:
        began = perf_counter()
        model = mm.random_search(
            network,
            data,
            generations=generations,
            population=population,
            resume=model,
            callback=lambda progress: progress.done in looks,
            **options,
        )
        seconds += perf_counter() - began
        parts = {name: float(model.evaluate(getattr(data, name)).accuracy) for name in ("validation", "test")}
        points.append({"evaluations": len(model.history["loss"]) * population, **parts})
    return {"seed": options["seed"], "seconds": seconds, "points": points}


def draw(results: dict[str, Any], title: str, path: Path) -> None:
    """Mean test accuracy against evaluations, with a band of one standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for i, (name, found) in enumerate(results.items()):
        x = [point["evaluations"] for point in found["runs"][0]["points"]]
        y = 100 * np.array([[point["test"] for point in run["points"]] for run in found["runs"]])
        mean, error = y.mean(axis=0), y.std(axis=0, ddof=min(1, len(y) - 1)) / np.sqrt(len(y))
        line = axes.plot(x, mean, ("-", "--", ":", "-.")[i // 5], label=name)[0]
        axes.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xscale="log", xlabel="candidates evaluated", ylabel="test accuracy, %", title=title)
    figure.legend(fontsize=8, loc="outside right upper")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
