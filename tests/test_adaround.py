"""AdaRound against every choice there is on tiny layers, and against PyTorch's descent of the published formula."""

from functools import partial
from itertools import product

import numpy as np
import pytest

import minimodel as mm
from minimodel import optimizers, qarray, ranges
from minimodel.compress import adaround
from minimodel.compress.adaround import rounded
from minimodel.compress.calibration import calibrate
from minimodel.compress.surgeon import DAMPING
from minimodel.problem import to_backend

NUMPY = mm.backends.load("numpy")


def problem(inputs=6, outputs=4, rows=50, population=None, seed=0):
    """A layer and inputs that go together."""
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    mixed = rng.normal(size=(*lead, rows, inputs)) @ rng.normal(size=(inputs, inputs))
    layer = mm.Layer(rng.normal(size=(*lead, inputs, outputs)), rng.normal(size=(*lead, outputs)))
    return mm.Layer(*(part.astype(np.float32) for part in layer)), mixed.astype(np.float32)


def run(layer, quantizer, mask, a, backend=NUMPY):
    given = to_backend(backend, (layer, quantizer))
    masks = None if mask is None else backend.asarray(mask)
    compiled = (
        backend.jit(partial(rounded, backend=backend)) if backend.name == "jax" else partial(rounded, backend=backend)
    )
    return mm.Layer(*backend.to_numpy(compiled(*given, masks, backend.asarray(a))))


def hessian(a):
    """The damped covariance in float64."""
    a = a.astype(np.float64) - a.mean(axis=0, dtype=np.float64)
    h = a.T @ a / len(a)
    return h + DAMPING * np.trace(h) / len(h) * np.eye(len(h))


def error(layer, weight, h):
    """δᵀHδ of every output."""
    delta = weight.astype(np.float64) - layer.weight
    return np.einsum("io,ij,jo->o", delta, h, delta)


def neighbours(w, quantizer):
    """The levels next to each weight, below and above, as plain NumPy has it."""
    inverse, scale, _, low, high, offset = (
        np.broadcast_to(leaf[[i * len(leaf) // len(w) for i in range(len(w))]], w.shape) for leaf in quantizer
    )
    whole = np.floor(w * inverse - offset)
    return [np.clip(whole + up + offset, low, high) * scale for up in (0, 1)]


def best_error(layer, quantizer, h, mask=None):
    """The least δᵀHδ of all 2ⁿ choices, for every output."""
    down, up = (part * (1 if mask is None else mask) for part in neighbours(layer.weight, quantizer))
    choices = np.array(list(product((0, 1), repeat=len(h))))[:, :, None]
    deltas = np.where(choices, up, down).astype(np.float64) - layer.weight.astype(np.float64)
    return np.einsum("nio,ij,njo->no", deltas, h, deltas).min(axis=0)


def test_between_rounding_to_the_nearest_and_the_best_there_is():
    """Never better than the best of all 2⁶ choices; never worse than the nearest; over 20 layers much nearer to it."""
    sums = np.zeros(3)
    for seed in range(20):
        layer, a = problem(6, 5, seed=seed)
        quantizer, h = calibrate(layer.weight, 3), hessian(a)
        found = run(layer, quantizer, None, a).weight
        ours, nearest = (error(layer, w, h) for w in (found, qarray.fake_quantize(layer.weight, quantizer)))
        best = best_error(layer, quantizer, h)
        assert (ours >= best * (1 - 1e-5)).all()
        assert (ours <= nearest * (1 + 1e-5)).all()
        sums += best.sum(), ours.sum(), nearest.sum()
    assert sums[1] - sums[0] < 0.3 * (sums[2] - sums[0])


@pytest.mark.parametrize("scheme", qarray.SCHEMES)
@pytest.mark.parametrize("granularity", ["channel", "tensor", 2])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_every_weight_goes_up_or_down(scheme, granularity, bits):
    layer, a = problem(5, 3, seed=bits)
    mask, h = np.random.default_rng(bits).random(layer.weight.shape) < 0.7, hessian(a)
    quantizer = calibrate(layer.weight, bits, scheme=scheme, granularity=granularity)
    for kept in (None, mask):
        layer = layer if kept is None else layer._replace(weight=layer.weight * kept)
        found, ones = run(layer, quantizer, kept, a), np.ones(layer.weight.shape) if kept is None else kept
        down, up = (part * ones for part in neighbours(layer.weight, quantizer))
        off = np.minimum(np.abs(found.weight - down), np.abs(found.weight - up))
        assert off.max() <= 1e-6
        assert not found.weight[ones == 0].any()
        best = best_error(layer, quantizer, h, ones)
        nearest = error(layer, qarray.fake_quantize(layer.weight, quantizer) * ones, h)
        ours = error(layer, found.weight, h)
        assert (best * (1 - 1e-5) - 1e-9 <= ours).all() and (ours <= nearest * (1 + 1e-4) + 1e-9).all()
        missing = a.mean(axis=0, dtype=np.float64) @ (layer.weight - found.weight.astype(np.float64))
        np.testing.assert_allclose(found.bias, layer.bias + missing, rtol=1e-4, atol=1e-4)


def published(torch, layer, quantizer, a):
    """The weights at the end of Adam on J(v) by automatic differentiation, in float64."""
    h = torch.tensor(hessian(a) / (np.trace(hessian(a)) / a.shape[-1]))
    rows = [i * len(quantizer.scale) // a.shape[-1] for i in range(a.shape[-1])]
    scale, low, high = (
        torch.tensor(leaf.astype(np.float64)[rows]) for leaf in (quantizer.scale, quantizer.low, quantizer.high)
    )
    x = torch.tensor(layer.weight.astype(np.float64)) / scale
    whole = torch.floor(x)
    v = -torch.log(1.2 / (x - whole + 0.1) - 1)
    v.requires_grad_()
    adam = torch.optim.Adam([v], lr=adaround.RATE)
    for i in range(adaround.STEPS):
        part = i / adaround.STEPS
        beta = adaround.SOFT + (adaround.HARD - adaround.SOFT) * (1 + np.cos(np.pi * part)) / 2
        up = torch.clamp(1.2 * torch.sigmoid(v) - 0.1, 0, 1)
        delta = (torch.clamp(whole + up, low, high) - x) * scale / scale.mean(dim=0)
        loss = (delta * (h @ delta)).sum()
        if part > adaround.FREE:
            loss = loss + adaround.WEIGHT * (1 - (2 * up - 1).abs() ** beta).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (torch.clamp(whole + (v > 0), low, high) * scale).detach().numpy()


def test_it_ends_where_automatic_differentiation_ends(oracle):
    """Where that is nearer than rounding to the nearest, else there; but for the few v that end next to 0."""
    torch, same = oracle("torch"), []
    for seed, (bits, granularity) in enumerate(((2, "channel"), (3, "channel"), (4, 2))):
        layer, a = problem(8, 12, seed=seed)
        quantizer, h = calibrate(layer.weight, bits, granularity=granularity), hessian(a)
        theirs, found = published(torch, layer, quantizer, a), run(layer, quantizer, None, a).weight
        nearest = qarray.fake_quantize(layer.weight, quantizer)
        better = error(layer, theirs, h) < error(layer, nearest, h) * (1 - 1e-6)
        assert better.sum() >= 3
        expected = np.where(better, theirs, nearest)
        same += (np.abs(found - expected).max(axis=0) < 1e-5).tolist()
    assert np.mean(same) >= 0.9


def test_every_backend_and_a_population_round_alike(backend, population):
    layer, a = problem(8, 5, population=population)
    quantizer = calibrate(layer.weight, 3, granularity=4)
    found, expected = run(layer, quantizer, None, a, backend), run(layer, quantizer, None, a)
    assert np.mean(np.abs(found.weight - expected.weight) > 1e-5) <= 0.02
    for i in range(population or 0):
        own = qarray.Quantizer(*(leaf[i] for leaf in quantizer))
        alone = run(mm.Layer(*(part[i] for part in layer)), own, None, a[i])
        assert np.mean(np.abs(found.weight[i] - alone.weight) > 1e-5) <= 0.02


@pytest.mark.parametrize("population", [None, 2])
def test_a_network_rounded_so_is_nearer_to_what_it_was(population):
    data = mm.datasets.load("digits", seed=0)
    adam = optimizers.adam(mm.schedules.cosine(0.01))
    model = mm.gradient_descent(mm.Network((64, 16, 10)), data, seed=0, epochs=6, optimizer=adam, population=population)
    for start in (model, mm.prune(model, data, seed=0, sparsity=0.5, epochs=0)):
        far = {}
        for rounding in ("half_even", "adaround"):
            how = {"bits": 3, "epochs": 0, "rounding": rounding, "range_of": ranges.min_max}
            found = mm.quantize(start, data, seed=0, **how)
            far[rounding] = np.square(found.outputs(data.test.x) - start.outputs(data.test.x)).mean()
            for layer, q in zip(found.params, found.quantized, strict=True):
                np.testing.assert_array_equal(layer.weight, qarray.dequantize(q))
            for layer, mask in zip(found.params, start.masks or (), strict=start.masks is not None):
                assert not layer.weight[~mask].any()
        assert far["adaround"] < 0.6 * far["half_even"]
