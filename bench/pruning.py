"""MNIST: test error against what is kept of 784-300-100-10, several sparsities × seeds pruned as one population.

10,000 of the 60,000 training rows are held out. Which epoch's parameters are kept is decided on them, and so were the
hyper-parameters below; test rows only report. The dense networks are trained first (the recipe of ``bench.mnist``);
each is pruned to every sparsity and learns from the mean prediction of all of them.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

import minimodel as mm
from minimodel import plots
from minimodel.bench import mnist
from minimodel.bench.common import arguments, network_of, plus_minus, report
from minimodel.trade_offs import point

KEPT = (0.083, 0.044, 0.018, 0.015, 0.01)
PUBLISHED = (1.43, 1.55, 1.98, 2.05, 2.36)  # Sparse Momentum (Dettmers, Zettlemoyer 2019), mean of seeds
RECIPE: dict[str, Any] = {
    "peak": 0.1, "warmup": 0.05, "weight_decay": 1e-4, "sharpness": 0.1, "ramp": 0.5,
    "teacher": 0.9, "temperature": 2.0,
}  # fmt: skip


def main() -> None:
    """Print, draw and store the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", help="the folder with MNIST's IDX files")
    parser.add_argument("--hidden", default="300,100")
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--epochs", type=int, default=100, help="of pruning and retraining")
    parser.add_argument("--dense-epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="draw the trade-off to this file")
    parser.add_argument("--save", type=Path, help="write the networks, dense and at each sparsity, to this folder")
    options = parser.parse_args()
    data = mm.datasets.load(options.data)
    network = network_of(options.hidden, data)
    began = perf_counter()
    dense = mnist.train(network, data, options.backend, options.dense_epochs, options.seeds)
    seconds = {"dense": perf_counter() - began}
    before = point(dense, data)
    print(f"dense: test error {plus_minus(100 * before.error)} %, {seconds['dense']:.0f} s", flush=True)
    schedule = mm.schedules.cosine(RECIPE["peak"], warmup=RECIPE["warmup"])
    points = mm.trade_off(
        dense,
        data,
        sparsities=[1 - kept for kept in KEPT],
        seed=0,
        seeds=options.seeds,
        backend=options.backend,
        schedule=mm.pruning_schedules.gradual(ramp=RECIPE["ramp"]),
        optimizer=mm.optimizers.nesterov(schedule, weight_decay=RECIPE["weight_decay"], sharpness=RECIPE["sharpness"]),
        teacher=mm.Teacher(dense, RECIPE["teacher"], RECIPE["temperature"]),
        epochs=options.epochs,
        batch_size=mnist.BATCH,
        callback=mnist.show,
    )
    seconds["pruned"] = perf_counter() - began - seconds["dense"]
    print(f"{len(KEPT) * options.seeds} networks pruned in {seconds['pruned']:.0f} s")
    print("kept      test error, %  validation, %    bytes  multiply-adds  published, %")
    for kept, found, other in zip(KEPT, points, PUBLISHED, strict=True):
        errors = (plus_minus(100 * values) for values in (found.error, found.validation_error))
        sizes = f"{found.bytes.mean():7,.0f}  {found.multiply_adds.mean():13,.0f}"
        print(f"{100 * kept:3.1f} %  {'  '.join(errors)}  {sizes}  {other:12.2f}")
    settings = {"layer_sizes": network.layer_sizes, "batch_size": mnist.BATCH, "epochs": options.epochs, **RECIPE}
    settings |= {"dense_epochs": options.dense_epochs, "dense": mnist.RECIPE, "seeds": options.seeds}
    if options.save:
        kinds = {"dense": dense} | {f"{100 * kept:g}": found.model for kept, found in zip(KEPT, points, strict=True)}
        for name, model in kinds.items():
            model.save(options.save / f"{name}.safetensors")
    if options.plot:
        title = f"{Path(options.data).name}, {'-'.join(map(str, network.layer_sizes))}, {options.seeds} seeds"
        plots.draw_trade_off(points, before, title, options.plot)
    results = {
        "data": Path(options.data).name,
        "backend": options.backend,
        "seconds": seconds,
        "settings": settings,
        "dense": before.figures(),
        "points": [found.figures() for found in points],
    }
    report(mm.observe.plain(results), options.out)


if __name__ == "__main__":
    main()
