"""GPTQ against restricted least squares in float64, and against every choice there is on tiny layers."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import optimizers, qarray
from minimodel.compress.calibration import calibrate
from minimodel.compress.gptq import rounded
from minimodel.compress.surgeon import DAMPING
from minimodel.problem import to_backend


def problem(inputs=6, outputs=4, rows=50, population=None, seed=0):
    """A layer and inputs that go together."""
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    mixed = rng.normal(size=(*lead, rows, inputs)) @ rng.normal(size=(inputs, inputs))
    layer = mm.Layer(rng.normal(size=(*lead, inputs, outputs)), rng.normal(size=(*lead, outputs)))
    return mm.Layer(*(part.astype(np.float32) for part in layer)), mixed.astype(np.float32)


def run(layer, quantizer, mask, a, backend):
    given = to_backend(backend, (layer, quantizer))
    masks = None if mask is None else backend.asarray(mask)
    return mm.Layer(*backend.to_numpy(rounded(*given, masks, backend.asarray(a), backend)))


def hessian(a):
    """The damped covariance in float64."""
    a = a.astype(np.float64) - a.mean(axis=0, dtype=np.float64)
    h = a.T @ a / len(a)
    return h + DAMPING * np.trace(h) / len(h) * np.eye(len(h))


def one_by_one(layer, quantizer, mask, a):
    """After each rounding, the weights to come are solved for anew: w_R = w⁰_R + H_RR⁻¹H_RQ(w⁰_Q − ŵ_Q)."""
    h, start = hessian(a), layer.weight.astype(np.float64)
    w = start.copy()
    for i in range(len(w)):
        full = qarray.fake_quantize(w.astype(np.float32), quantizer)
        w[i] = full[i] * (1 if mask is None else mask[i])
        rest, fixed = slice(i + 1, None), slice(0, i + 1)
        if i + 1 < len(w):
            w[rest] = start[rest] + np.linalg.solve(h[rest, rest], h[rest, fixed] @ (start[fixed] - w[fixed]))
    return w


@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from(qarray.SCHEMES),
    st.sampled_from(["channel", "tensor", 2, 3]),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_weights_to_come_are_those_of_least_squares(inputs, outputs, bits, scheme, granularity, some, seed):
    layer, a = problem(inputs, outputs, seed=seed)
    mask = np.random.default_rng(seed).random(layer.weight.shape) < 0.6 if some else None
    quantizer = calibrate(layer.weight, bits, scheme=scheme, granularity=granularity)
    found = run(layer, quantizer, mask, a, mm.backends.load("numpy"))
    expected = one_by_one(layer, quantizer, mask, a)
    steps = np.abs(found.weight - expected) / qarray.spread(quantizer.scale, inputs)
    assert np.mean(steps > 1e-2) <= 0.1  # a tie may fall to either side, and then others follow
    missing = a.mean(axis=0, dtype=np.float64) @ (layer.weight - found.weight.astype(np.float64))
    np.testing.assert_allclose(found.bias, layer.bias + missing, rtol=1e-4, atol=1e-4)


def error(layer, weight, h):
    """½δᵀHδ of every output."""
    delta = weight.astype(np.float64) - layer.weight
    return np.einsum("io,ij,jo->o", delta, h, delta)


def test_between_rounding_to_the_nearest_and_the_best_there_is():
    """Never better than the best of all 7⁴ choices, and over many layers nearer to it than rounding to the nearest."""
    grid, sums = np.array(list(product(range(-3, 4), repeat=4)), np.float32), np.zeros(3)
    for seed in range(20):
        layer, a = problem(4, 5, seed=seed)
        quantizer, h = calibrate(layer.weight, 3), hessian(a)
        deltas = grid[:, :, None] * quantizer.scale - layer.weight.astype(np.float64)
        best = np.einsum("nio,ij,njo->no", deltas, h, deltas).min(axis=0)
        found = run(layer, quantizer, None, a, mm.backends.load("numpy")).weight
        ours, nearest = (error(layer, w, h) for w in (found, qarray.fake_quantize(layer.weight, quantizer)))
        assert (ours >= best * (1 - 1e-5)).all() and (nearest >= best * (1 - 1e-5)).all()
        sums += best.sum(), ours.sum(), nearest.sum()
    assert sums[1] - sums[0] < 0.7 * (sums[2] - sums[0])


def test_every_backend_and_a_population_round_alike(backend, population):
    layer, a = problem(8, 5, population=population)
    quantizer = calibrate(layer.weight, 3)
    found = run(layer, quantizer, None, a, backend)
    expected = run(layer, quantizer, None, a, mm.backends.load("numpy"))
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-5)
    np.testing.assert_allclose(found.bias, expected.bias, rtol=1e-4, atol=1e-5)
    for i in range(population or 0):
        own = qarray.Quantizer(*(leaf[i] for leaf in quantizer))
        alone = run(mm.Layer(*(part[i] for part in layer)), own, None, a[i], backend)
        np.testing.assert_allclose(found.weight[i], alone.weight, rtol=1e-5)


@pytest.mark.parametrize("population", [None, 2])
def test_a_network_rounded_so_is_nearer_to_what_it_was(backend, population):
    data = mm.datasets.load("digits", seed=0)
    adam = optimizers.adam(mm.schedules.cosine(0.01))
    model = mm.gradient_descent(mm.Network((64, 24, 10)), data, seed=0, epochs=6, optimizer=adam, population=population)
    pruned = mm.prune(model, data, seed=0, sparsity=0.5, epochs=0)
    for start in (model, pruned):
        far = {}
        for rounding in ("half_even", "gptq"):
            found = mm.quantize(start, data, seed=0, bits=3, epochs=0, rounding=rounding, backend=backend)
            far[rounding] = np.square(found.outputs(data.test.x) - start.outputs(data.test.x)).mean()
            for layer, q in zip(found.params, found.quantized, strict=True):
                np.testing.assert_array_equal(layer.weight, qarray.dequantize(q))
            for layer, mask in zip(found.params, start.masks or (), strict=start.masks is not None):
                assert not layer.weight[~mask].any()
        assert far["gptq"] < 0.7 * far["half_even"]


def test_another_rounding_is_refused(splits):
    model = mm.gradient_descent(mm.Network((4, 3, 3)), splits, seed=0, epochs=0)
    with pytest.raises(ValueError, match=r"rounding: expected one of half_even, .*, gptq, adaround, got 'nearest'"):
        mm.quantize(model, splits, seed=0, rounding="nearest")
