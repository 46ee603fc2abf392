"""Random search side by side with nevergrad and evosax: candidates a second on the same network, rows and fitness.

Also low rank against full rank, with mirrored pairs, which in full rank share their first products, and with single
draws; and a generation against the bare forward products of its population. Whole calls are timed, from checking the
data to the model, after one that compiles.
"""

from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.bench import resources
from minimodel.bench.common import arguments, report, side_by_side
from minimodel.bench.descent import installed, problem
from minimodel.search.space import ravel, unravel
from minimodel.search.strategies import Strategy

SMALL, LARGE = (64, 32, 10), (784, 300, 100, 10)
POPULATIONS = {"small": 256, "large": 64}
GENERATIONS, PEER_BUDGET = 20, 512  # nevergrad evaluates one candidate at a time
Case = Callable[[], float]  # returns the best fitness it saw


def main() -> None:
    """Print and store the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--only", help="only cases of this name, as small-numpy, or *-jax")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with resources.threads(options.threads) as threads:
        results = measured(options.only, options.repeats)
    report({"threads": threads, "results": results}, options.out)


def measured(only: str | None, repeats: int) -> dict[str, Any]:
    """Of every table, printed, what each case reached."""
    results: dict[str, Any] = {}
    for name, (cases, candidates) in tables().items():
        if only and not fnmatch(name, only):
            continue
        made = {case: make() for case, make in cases.items()}
        best = {case: run() for case, run in made.items()}
        seconds = side_by_side(made, repeats)
        results[name] = {}
        first = next(iter(candidates.values()))
        for case, times in seconds.items():
            rates = {"candidates_a_second": candidates[case] / times["median"], "best": best[case]}
            results[name][case] = {**rates, "ratio": times["ratio"] * first / candidates[case]}
        show(name, results[name])
    return results


def tables() -> dict[str, tuple[dict[str, Callable[[], Case]], dict[str, int]]]:
    """Of every table the makers of its cases, ours first, and how many candidates each evaluates."""
    digits, wide = mm.datasets.load("digits"), problem(LARGE, 256)
    data = {"small": (digits, SMALL, POPULATIONS["small"]), "large": (wide, LARGE, POPULATIONS["large"])}
    s = mm.strategies
    full, low = {"open es": s.open_es()}, {"low-rank es": s.low_rank_es()}
    single = {"low-rank es": s.low_rank_es(antithetic=False), "open es": s.open_es(antithetic=False)}

    def of(size: str, backend: str, strategies: dict[str, Strategy]) -> dict[str, Callable[[], Case]]:
        return {name: partial(ours, *data[size], backend, strategy) for name, strategy in strategies.items()}

    one_by_one = {f"nevergrad {name}": partial(nevergrad, digits, name) for name in ("RandomSearch", "OnePlusOne")}
    far, near = ({name: make} if installed("nevergrad") else {} for name, make in one_by_one.items())
    evo = {"evosax Open_ES": partial(evosax, digits)}
    found = {
        "small-numpy-afresh": of("small", "numpy", {"gaussian": s.gaussian()}) | far,
        "small-numpy-around": of("small", "numpy", {"hill climbing": s.hill_climbing()}) | near,
        "small-jax": of("small", "jax", full) | (evo if installed("evosax") else {}),
        "large-numpy": of("large", "numpy", low | full),
        "large-jax": of("large", "jax", low | full),
        "large-single-numpy": of("large", "numpy", single),
        "large-single-jax": of("large", "jax", single),
        "floor-small": of("small", "jax", full) | {"bare products": partial(products, *data["small"])},
        "floor-large": of("large", "jax", full) | {"bare products": partial(products, *data["large"])},
    }

    def candidates(table: str, case: str) -> int:
        size = "large" if "large" in table else "small"
        return PEER_BUDGET if case in one_by_one else GENERATIONS * POPULATIONS[size]

    return {name: (cases, {case: candidates(name, case) for case in cases}) for name, cases in found.items()}


def ours(data: mm.Splits, sizes: tuple[int, ...], population: int, backend: str, strategy: Strategy) -> Case:
    """``random_search``, from checking the data to the model."""
    network = mm.Network(sizes)

    def case() -> float:
        options: dict[str, Any] = {"generations": GENERATIONS, "population": population, "strategy": strategy}
        return float(mm.random_search(network, data, seed=0, backend=backend, **options).history["loss"][-1])

    return case


def fitness_of(data: mm.Splits, xp: Any) -> Callable[[Any], Any]:
    """The cross-entropy of the training rows by a vector of parameters, as everyone would write it."""
    like = mm.Network(SMALL).init(mm.random.key(0))
    x, t = (
        xp.asarray(mm.datasets.fit_normalization(data.train.x)(data.train.x)),
        xp.asarray(np.eye(10, dtype=np.float32)[data.train.y]),
    )

    def fitness(vector: Any) -> Any:
        (w1, b1), (w2, b2) = unravel(like, vector)
        z = xp.maximum(x @ w1 + b1, 0) @ w2 + b2
        z = z - z.max(axis=1, keepdims=True)
        return xp.mean(xp.log(xp.exp(z).sum(axis=1)) - (z * t).sum(axis=1))

    return fitness


def nevergrad(data: mm.Splits, name: str) -> Case:
    """Its optimizer of that name, one candidate at a time, around He's initial parameters."""
    import nevergrad as ng

    fitness = fitness_of(data, np)
    start = ravel(mm.Network(SMALL).init(mm.random.key(0)))

    def case() -> float:
        space = ng.p.Array(init=start.astype(float)).set_mutation(sigma=0.1)
        space.random_state.seed(0)
        optimizer = ng.optimizers.registry[name](parametrization=space, budget=PEER_BUDGET)
        found = optimizer.minimize(lambda vector: float(fitness(vector.astype(np.float32))))
        return float(fitness(found.value.astype(np.float32)))

    return case


def evosax(data: mm.Splits) -> Case:
    """Its OpenAI strategy with Adam, all generations in one jitted scan."""
    import jax
    import jax.numpy as jnp
    import optax
    from evosax.algorithms import Open_ES

    fitness = jax.vmap(fitness_of(data, jnp))
    start = jnp.asarray(ravel(mm.Network(SMALL).init(mm.random.key(0))))
    peer = Open_ES(POPULATIONS["small"], start, optimizer=optax.adam(0.01), std_schedule=optax.constant_schedule(0.1))

    @jax.jit
    def run(key: Any) -> Any:
        params = peer.default_params
        state = peer.init(key, start, params)

        def generation(state: Any, key: Any) -> Any:
            ask, tell = jax.random.split(key)
            population, state = peer.ask(ask, state, params)
            found = fitness(population)
            state, _ = peer.tell(tell, population, found, state, params)
            return state, found.min()

        return jax.lax.scan(generation, state, jax.random.split(key, GENERATIONS))

    return lambda: float(run(jax.random.key(0))[1].min())


def products(data: mm.Splits, sizes: tuple[int, ...], population: int) -> Case:
    """The forward products of every candidate of every generation, each with weights of its own, and nothing else, in
    chunks of as many candidates as is fastest."""
    import jax

    rows, chunk = len(data.train.x), {"small": 8, "large": 1}["small" if sizes == SMALL else "large"]
    params = mm.Network(sizes).init(mm.random.split(mm.random.key(0), population).reshape(-1, chunk, 2))
    x = np.asarray(data.train.x, np.float32)
    hidden = [np.ones((chunk, rows, n), np.float32) for n in sizes[1:-1]]

    @jax.jit
    def run(weights: Any, x: Any, hidden: Any) -> Any:
        def part(last: Any, weights: Any) -> Any:  # what it begins with depends on the last, so that none is left out
            inputs = (x.at[0, 0].add(last), *hidden)
            with jax.default_matmul_precision("highest"):
                found = [one @ weight for one, weight in zip(inputs, weights, strict=True)]
            return 1e-30 * sum(product[..., -1, -1].sum() for product in found), None

        def generation(last: Any, _: Any) -> Any:
            return jax.lax.scan(part, last, weights)[0], None

        return jax.lax.scan(generation, np.float32(0), None, length=GENERATIONS)[0]

    given = jax.device_put(([layer.weight for layer in params], x, hidden))
    return lambda: float(run(*given))


def show(name: str, found: dict[str, Any]) -> None:
    """One line a case."""
    print(f"\n{name}: candidates a second (median), times ours it takes, best fitness")
    for case, row in found.items():
        print(f"{case:<24} {row['candidates_a_second']:10,.0f} {row['ratio']:6.2f}×  {row['best']:.4f}", flush=True)


if __name__ == "__main__":
    main()
