"""What pruning costs and what it gains in time: masks while training, making a global mask, answering once shrunk."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.backends import Backend, load
from minimodel.bench import resources
from minimodel.bench.common import arguments, available_two, repeat, report, side_by_side
from minimodel.compress import patterns
from minimodel.compress.masks import Choice, choose

LARGE, BATCH, ROWS = mm.Network((784, 300, 100, 10)), 128, 6400
SIZES = ((2000, 3000), (3000, 1000), (1000, 1000))  # ten million weights
KEPT = 0.018


def main() -> None:
    """Print and store the three tables."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", help="a pruned model in a file, with its structure; by default masks at random")
    options = parser.parse_args()
    with resources.threads(options.threads) as threads:
        results = {
            "a step with masks": steps(),
            "a global mask over 10 M weights": global_masks(),
            "answers at 1.8 % of the weights": answers(options.model),
        }
    report({"settings": {"threads": threads, "layer_sizes": LARGE.layer_sizes}, **results}, options.out)


def table(cases: dict[str, Any], count: int, repeats: int, title: str) -> dict[str, Any]:
    """The table of cases side by side, printed: µs for each of ``count``."""
    found = side_by_side(cases, repeats=repeats)
    print(title)
    for name, seconds in found.items():
        print(f"  {name:<34} {seconds['median'] / count * 1e6:12,.1f} µs  {seconds['ratio']:7.3f}×", flush=True)
    return {
        name: {"microseconds": seconds["median"] / count * 1e6, "ratio": seconds["ratio"]}
        for name, seconds in found.items()
    }


def steps() -> dict[str, Any]:
    """A step of training with masks beside one without."""
    rng = np.random.default_rng(0)
    data = mm.datasets.split(rng.normal(size=(ROWS, 784)).astype(np.float32), np.arange(ROWS) % 10, seed=0)
    masks = tuple(rng.random(shape) < KEPT for shape in LARGE.shapes)
    found = {}
    for name in available_two():
        run = partial(
            mm.gradient_descent, LARGE, data, seed=0, backend=name, epochs=4, batch_size=BATCH,
            optimizer=mm.optimizers.momentum(0.01),
        )  # fmt: skip
        count = 4 * (len(data.train.x) // BATCH)
        cases = {"dense": run, "with masks": partial(run, masks=masks)}
        found[name] = table(cases, count, 15, f"{name}: a step of 784-300-100-10, batches of {BATCH}")
    return found


def global_masks() -> dict[str, Any]:
    """The masks of the largest tenth, beside the library's own partition or sort of as many numbers."""
    rng = np.random.default_rng(0)
    scores = tuple(np.abs(rng.normal(size=shape)).astype(np.float32) for shape in SIZES)
    flat = np.concatenate([score.reshape(-1) for score in scores])
    kept = (np.asarray(len(flat) // 10, np.int32),)
    found = {}
    for name in available_two():
        backend = load(name)
        case = partial(masks_on, backend, tuple(map(backend.asarray, scores)), kept)
        check_masks(backend.to_numpy(case()), flat, int(kept[0]))
        other = {"jnp.sort": sort(flat)} if name == "jax" else {"np.partition": partial(np.partition, flat, -kept[0])}
        found[name] = table({"masks": case, **other}, 1, 7, f"{name}: masks of ten million weights")
    return found


def check_masks(masks: Any, scores: np.ndarray, kept: int) -> None:
    """They are what a partition of all scores in a row finds. Raises ValueError otherwise."""
    found, bar = np.concatenate([mask.reshape(-1) for mask in masks]), np.partition(scores, -kept)[-kept]
    if found.sum() != kept or (found > (scores >= bar)).any():
        raise ValueError(f"masks: expected the {kept:,} largest scores, got {found.sum():,}, or others")


def sort(numbers: np.ndarray) -> Callable[[], Any]:
    """``jnp.sort`` of numbers that are on the device."""
    import jax
    import jax.numpy as jnp

    run, there = jax.jit(jnp.sort), jnp.asarray(numbers)
    return lambda: run(there).block_until_ready()


def masks_on(backend: Backend, scores: tuple[Any, ...], kept: tuple[np.ndarray, ...]) -> Any:
    """All of ``prune``'s choice but the scores."""
    choice = Choice(backend, patterns.unstructured(), True, (0,) * len(scores))
    return backend.synchronize(backend.jit(choose, static=("choice",))(scores, None, kept, choice=choice))


def answers(path: str | None) -> dict[str, Any]:
    """``deploy`` beside the dense network, in answers to raw uint8 rows."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(256, 784), dtype=np.uint8)
    data = mm.datasets.split(np.concatenate([x] * 3), np.arange(768) % 10, seed=0)
    dense = mm.gradient_descent(LARGE, data, seed=0, epochs=0)
    pruned = mm.load(path) if path else mm.prune(dense, data, seed=0, sparsity=1 - KEPT, epochs=0, score="random")
    pruned = pruned if pruned.population is None else pruned.member(0)
    found = {}
    for rows, count in ((256, 50), (1, 2000)):
        deployed, part = mm.deploy(pruned, batch_size=rows), x[:rows]
        small = deployed.model
        cases = {
            "shrunk, dense or sparse": partial(repeat, deployed.outputs, part, count),
            "dense, deployed": partial(repeat, mm.deploy(dense, batch_size=rows).outputs, part, count),
            "dense": partial(repeat, dense.outputs, part, count),
        }
        title = f"numpy: {rows} rows, {'-'.join(map(str, small.network.layer_sizes))}, {', '.join(deployed.choices)}"
        found[str(rows)] = table(cases, count, 15, title) | {
            "choices": deployed.choices,
            "layer_sizes": small.network.layer_sizes,
        }
    return found


if __name__ == "__main__":
    main()
