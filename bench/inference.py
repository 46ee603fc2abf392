"""Answers of a 784-300-100-10 beside ONNX Runtime, float and int8, its outputs checked first; integers beside floats.

The model is exported by ``to_onnx``, so that the work is the same; weights have 7 bits, since ONNX Runtime saturates
sums of 8-bit products on processors without VNNI.
"""

from functools import partial
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.bench import descent, mnist, resources
from minimodel.bench.common import arguments, available_two, repeat, report, side_by_side

LAYERS, BATCHES, ROWS, CALLS, REPEATS = (784, 300, 100, 10), (1, 256), 6_400, 20, 15
FLOAT_CLOSE, SAME = 1e-5, 0.99  # as a part of the largest output; of the rows


def main() -> None:
    """Print and store the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    data = descent.problem(LAYERS, ROWS)
    with resources.threads(options.threads) as threads:
        model = mm.gradient_descent(mm.Network(LAYERS), data, seed=0, epochs=1, batch_size=128)
        found: dict[str, Any] = {"integers": times(model, data)}
        if descent.installed("onnxruntime") and descent.installed("onnx"):
            found |= {f"{rows} rows": beside(model, data, rows, options.threads) for rows in BATCHES}
    report({"threads": threads, "results": found}, options.out)


def times(model: mm.Model, data: mm.Splits) -> dict[str, Any]:
    """Answers to 256 rows by integers beside floats; a step of retraining through the rounding beside one without."""
    integers, x = mm.to_integers(model, data), data.train.x[:256]
    cases: dict[str, Any] = {
        "256 rows, floats": partial(repeat, model.outputs, x, CALLS),
        "256 rows, integers": partial(repeat, integers.outputs, x, CALLS),
    }
    found = {"numpy, answers": table(cases)}
    few = mm.datasets.split(*data.train, seed=0)
    for name in available_two():
        common: dict[str, Any] = {"seed": 0, "backend": name, "epochs": 3, "batch_size": mnist.BATCH}
        optimizer = mm.optimizers.momentum(0.01)
        cases = {
            "training, a step": partial(
                mm.gradient_descent, model.network, few, params=model.params, optimizer=optimizer, **common
            ),
            "through the rounding, a step": partial(
                mm.quantize, model, few, bits=4, range_of=mm.ranges.min_max, optimizer=optimizer, **common
            ),
        }
        found[f"{name}, steps"] = table(cases)
    return found


def table(cases: dict[str, Any]) -> dict[str, Any]:
    """The cases side by side, printed with their ratio to the first."""
    found = side_by_side(cases, REPEATS)
    for name, seconds in found.items():
        print(f"{name:<32} {seconds['median'] * 1e3:9.1f} ms {seconds['ratio']:7.2f}×", flush=True)
    return found


def beside(model: mm.Model, data: mm.Splits, rows: int, threads: int) -> dict[str, Any]:
    """Seconds of ours and theirs, and how far the outputs are apart. Raises ValueError where that is too far."""
    x = data.train.x[:rows]
    whole = mm.to_integers(mm.quantize(model, data, seed=0, bits=7, epochs=0), data)
    pairs = {
        "float": (model.outputs, session(mm.to_onnx(model), threads)),
        "int8": (whole.outputs, session(mm.to_onnx(whole, form="qoperator"), threads)),
    }
    found: dict[str, Any] = {}
    for name, (ours, theirs) in pairs.items():
        a, b = ours(x), theirs(x)
        distance, same = float(np.abs(a - b).max() / np.abs(a).max()), float((a.argmax(1) == b.argmax(1)).mean())
        if (distance > FLOAT_CLOSE) if name == "float" else (same < SAME):
            raise ValueError(
                f"{name}: outputs of ONNX Runtime are {distance:.1e} from ours, classes {same:.3f} the same"
            )
        count = max(5, 2_000 // rows)
        cases: dict[str, Any] = {
            "minimodel": partial(repeat, ours, x, count),
            "ONNX Runtime": partial(repeat, theirs, x, count),
        }
        found[name] = side_by_side(cases, REPEATS) | {"distance": distance, "calls": count}
        ratio = found[name]["ONNX Runtime"]["ratio"]
        print(f"{rows} rows, {name}: ONNX Runtime takes {ratio:.2f}× ours, outputs {distance:.1e} apart", flush=True)
    return found


def session(raw: bytes, threads: int) -> Any:
    """x -> outputs by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    run = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"]).run
    return lambda x: run(["outputs"], {"x": x})[0]


if __name__ == "__main__":
    main()
