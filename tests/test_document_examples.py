"""The four examples of the document this project grew from, with the results they were meant to have.

Each is on a dense network with one input and one output. The document's own snippets call a gradient that does not
exist, compare a loss with itself, and "quantize" by rounding weights to multiples of 8.
"""

import numpy as np
import pytest

import minimodel as mm

NETWORK = mm.Network((1, 1))
BACKENDS = ("numpy", "jax")


def line(slope, offset, rows=1_000):
    """Fresh random x in [0, 1) and y = slope·x + offset, as they are: no normalisation."""
    x = np.random.default_rng(0).uniform(size=(rows, 1)).astype(np.float32)
    return mm.Splits(*[mm.Dataset(x, slope * x + offset)] * 3)


def parameters(model):
    return float(model.params[0].weight[0, 0]), float(model.params[0].bias[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_four_examples(backend):
    pytest.importorskip(backend)

    # 1. Gradient descent: 1,000 steps at rate 0.1, each on one fresh random row, find the line.
    data = line(0.05, 0.7)
    trained = mm.gradient_descent(
        NETWORK, data, seed=0, backend=backend, optimizer=mm.optimizers.sgd(0.1), epochs=1, batch_size=1
    )
    assert len(trained.history["loss"]) == 1_000
    assert parameters(trained) == pytest.approx((0.05, 0.7), abs=0.01)

    # 2. Random search: of 1,000 random draws in [-1, 1] the best is kept, and it is close to the line.
    found = mm.random_search(
        NETWORK,
        data,
        seed=0,
        backend=backend,
        strategy=mm.strategies.uniform(-1, 1),
        generations=10,
        population=100,
    )
    assert all(-1 <= value < 1 for value in parameters(found))
    assert (np.diff(found.history["loss"]) <= 0).all()
    assert parameters(found) == pytest.approx((0.05, 0.7), abs=0.15)

    # 3. Pruning at threshold 0.1: the weight 0.05 becomes 0; retraining moves the bias to the mean of y.
    pruned = mm.prune(trained, data, seed=0, backend=backend, threshold=0.1, epochs=20)
    assert parameters(pruned)[0] == 0
    assert parameters(pruned)[1] == pytest.approx(0.7 + 0.05 / 2, abs=0.01)
    kept = mm.prune(found, line(0.5, 0.7), seed=0, backend=backend, threshold=1e-3, epochs=0)
    assert parameters(kept) == parameters(found)

    # 4. Quantization at level 8: the weight is an integer of 8 bits, no further from the float than half a step.
    quantized = mm.quantize(trained, data, seed=0, backend=backend, bits=8, epochs=0)
    q = quantized.quantized[0]
    assert q.values.dtype == np.int8
    assert abs(parameters(quantized)[0] - parameters(trained)[0]) <= q.scale.item() / 2
    assert parameters(quantized)[0] != 0  # rounded to a multiple of 8 it would be
