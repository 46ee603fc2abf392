"""How near a large step comes to the device's own products, and what training many networks at once gains.

The value and gradient of 4×8192 with batches of 8192 rows take turns with one product of that width, at each precision.
Then 1,024 networks of 784-64-10 are trained at once beside one of them, whole calls. Smaller sizes run anywhere.
"""

from functools import partial
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.backends import load
from minimodel.bench import descent
from minimodel.bench.cases import CASES, Size
from minimodel.bench.common import arguments, report, side_by_side
from minimodel.bench.running import place, seconds_of

PRECISIONS = (("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))
LAYERS, BATCH, EPOCHS = (784, 64, 10), 32, 5


def main() -> None:
    """Print and store both tables."""
    parser = arguments(__doc__)
    parser.add_argument("--backend", default="jax", choices=("jax", "jax:cpu", "jax:gpu", "jax:tpu"))
    parser.add_argument("--width", type=int, default=8192, help="of four layers, and rows of a batch")
    parser.add_argument("--members", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=6400, help="that the members are trained on")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    steps = {}
    for dtype, precision in PRECISIONS:
        found = steps[f"{dtype}, {precision}"] = step(options.backend, options.width, dtype, precision, options.repeats)
        rate = found["products"] / 1e12
        print(f"{dtype}, {precision}: {found['fraction']:.1%} of the {rate:.2f} T operations/s of products", flush=True)
    many = at_once(options.backend, options.members, options.rows, options.repeats)
    print(f"{options.members} networks at once: {many['gain']:.1f}× one after the other", flush=True)
    settings = {name: getattr(options, name) for name in ("backend", "width", "members", "rows", "repeats")}
    devices = load(options.backend).devices
    report({"devices": devices, "settings": settings, "steps": steps, "at once": many}, options.out)


def step(name: str, width: int, dtype: str, precision: str, repeats: int) -> dict[str, float]:
    """Operations a second of a step and of a product, and the one as a part of the other."""
    backend, size = load(name, precision=precision), Size((width,) * 5, width, None, dtype)
    rng, cases = np.random.default_rng(0), {"step": CASES["value_and_grad"], "products": CASES["matmul"]}
    calls = {what: place(case, size, backend, case.inputs(size, rng)).call for what, case in cases.items()}
    seconds = side_by_side({what: partial(seconds_of, call, backend) for what, call in calls.items()}, repeats)
    rates = {what: case.operations(size) / seconds[what]["median"] for what, case in cases.items()}
    return rates | {"fraction": rates["step"] / rates["products"]}


def at_once(name: str, members: int, rows: int, repeats: int) -> dict[str, Any]:
    """Seconds of training one network and of all at once, and how many times that gains."""
    run = partial(
        mm.gradient_descent, mm.Network(LAYERS), descent.problem(LAYERS, rows), seed=0, backend=name,
        optimizer=mm.optimizers.momentum(0.02), epochs=EPOCHS, batch_size=BATCH,
    )  # fmt: skip
    found = side_by_side({"all": partial(run, population=members), "one": run}, repeats)
    return found | {"gain": members * found["one"]["ratio"]}


if __name__ == "__main__":
    main()
