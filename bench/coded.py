"""MNIST: the size of a coded file against its test error, from the pruned networks that ``bench.pruning --save`` wrote.

Every population is quantized with one scale a layer and retrained through the rounding, learning from the dense
networks; each of its networks is then coded and decoded again, and what was decoded is what is evaluated. Every byte of
the file counts. Hyper-parameters were chosen on validation rows; test rows only report.
"""

from pathlib import Path
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.bench import mnist
from minimodel.bench.common import arguments, plus_minus, report

RECIPE: dict[str, Any] = {"peak": 0.02, "warmup": 0.1, "weight_decay": 1e-4, "teacher": 0.9, "temperature": 2.0}


def main() -> None:
    """Print and store the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", help="the folder with MNIST's IDX files")
    parser.add_argument("models", type=Path, help="the folder with the pruned networks")
    parser.add_argument("--kept", default="1,1.5,1.8", help="per cent of the weights, as the files are named")
    parser.add_argument("--bits", default="3,4,5")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--backend", default="jax")
    options = parser.parse_args()
    data = mm.datasets.load(options.data)
    dense = mm.load(options.models / "dense.safetensors")
    schedule = mm.schedules.cosine(RECIPE["peak"], warmup=RECIPE["warmup"])
    results = []
    print("kept   bits    bytes of the file  smaller  test error, %  validation, %")
    for kept in options.kept.split(","):
        pruned = mm.load(options.models / f"{kept}.safetensors")
        for bits in map(int, options.bits.split(",")):
            small = mm.quantize(
                pruned,
                data,
                seed=0,
                bits=bits,
                granularity="tensor",
                backend=options.backend,
                optimizer=mm.optimizers.nesterov(schedule, weight_decay=RECIPE["weight_decay"]),
                epochs=options.epochs,
                batch_size=mnist.BATCH,
                teacher=mm.Teacher(dense, RECIPE["teacher"], RECIPE["temperature"]),
            )
            files = [mm.coded.encode(small.member(i)) for i in range(small.population or 0)]
            found: dict[str, Any] = {"kept": float(kept), "bits": bits, "bytes": np.array([len(raw) for raw in files])}
            for name, part in (("error", data.test), ("validation_error", data.validation)):
                found[name] = np.array([1 - mm.coded.decode(raw).evaluate(part).accuracy for raw in files])
            results.append(found)
            errors = "  ".join(plus_minus(100 * found[name]) for name in ("error", "validation_error"))
            smaller = 4 * pruned.network.parameters / found["bytes"].mean()
            print(f"{kept:>4} % {bits:5} {plus_minus(found['bytes']):>20} {smaller:7.0f}×  {errors}", flush=True)
    settings = {
        "layer_sizes": pruned.network.layer_sizes,
        "epochs": options.epochs,
        "batch_size": mnist.BATCH,
        **RECIPE,
    }
    report(mm.observe.plain({"data": Path(options.data).name, "settings": settings, "results": results}), options.out)


if __name__ == "__main__":
    main()
