"""Through integers and back: gradients against automatic differentiation, and levels that are learned."""

import numpy as np
import pytest

import minimodel as mm
from minimodel import optimizers, qarray, random, ranges, schedules, tree
from minimodel.compress import codebooks
from minimodel.compress.calibration import calibrate
from minimodel.compress.rounding import Levels, Rounding
from minimodel.network import Layer
from minimodel.problem import to_backend
from minimodel.search.programs import begin, epoch

SHAPES = ((12, 5), (5, 3))


@pytest.fixture(scope="module")
def digits():
    return mm.datasets.load("digits", seed=0)


@pytest.fixture(scope="module")
def trained(digits):
    """A network and two of them, by the size of the population."""
    how = {"seed": 0, "epochs": 10, "optimizer": optimizers.adam(0.01)}
    return {size: mm.gradient_descent(mm.Network((64, 16, 10)), digits, population=size, **how) for size in (None, 2)}


def random_params(population=None, seed=0, shapes=SHAPES):
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    return tuple(
        Layer(
            rng.normal(size=(*lead, *shape)).astype(np.float32),
            rng.normal(size=(*lead, shape[1])).astype(np.float32),
        )
        for shape in shapes
    )


def random_masks(params, seed=1):
    rng = np.random.default_rng(seed)
    return tuple((rng.random(layer.weight.shape) < 0.6).astype(np.float32) for layer in params)


def jittered(params, way, seed=2):
    """The levels a little moved, so that they are not where they began."""
    rng = np.random.default_rng(seed)
    count = len(SHAPES)
    moved = [
        Layer(empty, t + (rng.uniform(-0.2, 0.2, t.shape) * (0.3 if way.codebook else 1)).astype(np.float32))
        for empty, t in params[count:]
    ]
    return (*params[:count], *moved)


def spread(torch, leaf, rows):
    return leaf[..., [i * leaf.shape[-2] // rows for i in range(rows)], :]


def torch_scaled(torch, w, t, quantizer):
    """ŵ of learned step size quantization: s·t·round(w/(s·t)), the rounding passed by, the ends kept."""
    rows = w.shape[-2]
    scale = spread(torch, torch.tensor(quantizer.scale) * t, rows)
    low, high, offset = (
        spread(torch, torch.tensor(leaf), rows) for leaf in (quantizer.low, quantizer.high, quantizer.offset)
    )
    x = w / scale - offset
    c = x + (torch.round(x) - x).detach() + offset
    inside = (c.detach() >= low) & (c.detach() <= high)
    return scale * torch.where(inside, c, torch.minimum(torch.maximum(c.detach(), low), high))


def torch_centred(torch, w, change, codebook):
    """The nearest centre, chosen once; by w as if it were w."""
    centres = (torch.tensor(codebook.centres) + change).expand(*w.shape[:-2], -1, w.shape[-1])
    chosen = (w.detach()[..., :, None, :] - centres.detach()[..., None, :, :]).abs().argmin(dim=-2)
    return torch.gather(centres, -2, chosen) + w - w.detach()


CASES = {
    "two bits": (False, {"bits": 2}),
    "one bit": (False, {"bits": 1}),
    "groups": (False, {"bits": 3, "granularity": 5, "scheme": "symmetric_full"}),
    "asymmetric": (False, {"bits": 4, "granularity": "tensor", "scheme": "asymmetric"}),
    "codebook": (True, {"bits": 2}),
    "one codebook": (True, {"bits": 3, "granularity": "tensor"}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("some", [False, True], ids=["whole", "masked"])
def test_the_way_there_and_back_is_that_of_automatic_differentiation(oracle, backend, population, case, some):
    """By weights and by levels, those by a level over √ of how many weights share it."""
    torch, (codebook, how) = oracle("torch"), CASES[case]
    way, find = Rounding(codebook, learned=True), codebooks.calibrate if codebook else calibrate
    plain = random_params(population)
    quantizers = tuple(find(layer.weight, **how) for layer in plain)
    levels = Levels(quantizers, random_masks(plain) if some else None)
    params = jittered(way.extended(levels, plain), way)
    given = random_params(population, seed=3)
    there = to_backend(backend, (levels, params, given))
    used = backend.to_numpy(way.forward(*there[:2]))
    grads = backend.to_numpy(way.backward(*there))
    assert len(used) == 2 and len(grads) == 4
    value = torch_centred if codebook else torch_scaled
    for i, (weight, quantizer) in enumerate(zip((layer.weight for layer in plain), quantizers, strict=True)):
        w = torch.tensor(weight, requires_grad=True)
        t = torch.tensor(params[2 + i].bias, requires_grad=True)
        found = value(torch, w, t, quantizer) * (torch.tensor(levels.masks[i]) if some else 1)
        np.testing.assert_allclose(used[i].weight, found.detach().numpy(), rtol=1e-5, atol=1e-6)
        found.backward(torch.tensor(given[i].weight))
        by_w = w.grad.numpy()
        kept = levels.masks[i] > 0 if some else np.ones(weight.shape, bool)  # training masks the others itself
        np.testing.assert_allclose(grads[i].weight[kept], by_w[kept], rtol=1e-5, atol=1e-6)
        shared = weight.shape[-2] * weight.shape[-1] / (t.shape[-2] * t.shape[-1])
        expected = t.grad.numpy() / np.sqrt(shared)
        np.testing.assert_allclose(grads[2 + i].bias, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(grads[i].bias, given[i].bias)
        np.testing.assert_array_equal(used[i].bias, plain[i].bias)
        assert grads[2 + i].weight.shape == params[2 + i].weight.shape


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("learned", [False, True])
def test_what_is_stored_is_what_was_computed_with(case, learned):
    codebook, how = CASES[case]
    way, find, plain = (
        Rounding(codebook, learned=learned),
        codebooks.calibrate if codebook else calibrate,
        random_params(),
    )
    for masks in (None, random_masks(plain)):
        levels = Levels(tuple(find(layer.weight, **how) for layer in plain), masks)
        params = jittered(way.extended(levels, plain), way)
        for i, (layer, q) in enumerate(zip(way.forward(levels, params), way.integers(levels, params), strict=True)):
            stored = qarray.dequantize(q) * (masks[i] if masks and codebook else 1)
            np.testing.assert_allclose(stored, layer.weight, rtol=1e-6)


def test_levels_that_are_not_learned_add_nothing():
    plain = random_params()
    levels = Levels(tuple(calibrate(layer.weight, 4) for layer in plain))
    way = Rounding()
    assert way.extended(levels, plain) is plain and way.masks(None) is None
    assert way.moved(levels, plain) is levels
    assert len(way.backward(levels, plain, random_params(seed=3))) == 2


def test_the_masks_of_learned_levels_keep_all_of_them():
    plain = random_params()
    masks = tuple(mask > 0 for mask in random_masks(plain))
    levels = Levels(tuple(calibrate(layer.weight, 4) for layer in plain))
    way = Rounding(learned=True)
    extended, found = way.extended(levels, plain), way.masks(masks)
    for layer, mask in zip(extended, found, strict=True):
        np.broadcast_to(mask, layer.weight.shape)
    assert way.masks(None) is None and found[:2] == masks


def test_draws_decide_what_is_rounded_up():
    plain = random_params()
    quantizers = tuple(calibrate(layer.weight, 4) for layer in plain)
    way = Rounding(name="stochastic")
    for u, fn in ((0.0, np.ceil), (0.99999994, np.floor)):
        draws = tuple(np.full(layer.weight.shape, u, np.float32) for layer in plain)
        found = way.forward(Levels(quantizers, None, draws), plain)
        for layer, before, quantizer in zip(found, plain, quantizers, strict=True):
            c = np.clip(fn(before.weight * quantizer.inverse), quantizer.low, quantizer.high)
            exact = np.abs(before.weight * quantizer.inverse - np.round(before.weight * quantizer.inverse)) < 1e-5
            np.testing.assert_allclose(layer.weight[~exact], (c * quantizer.scale)[~exact], rtol=1e-6)


# Trained


@pytest.mark.parametrize(
    ("granularity", "range_of"), [("channel", ranges.least_error), ("tensor", ranges.min_max), (16, ranges.min_max)]
)
def test_learned_scales_reach_a_lower_loss(trained, digits, granularity, range_of):
    how = {"seed": 0, "bits": 2, "epochs": 8, "granularity": granularity, "range_of": range_of}
    fixed, learned = (
        mm.quantize(trained[None], digits, learn_levels=learn, optimizer=optimizers.adam(schedules.cosine(3e-3)), **how)
        for learn in (False, True)
    )
    ends = [found.history["loss"][-50:].mean() for found in (fixed, learned)]
    assert ends[1] < 0.9 * ends[0]
    assert any((one.scale != other.scale).any() for one, other in zip(fixed.quantized, learned.quantized, strict=True))
    for q, layer in zip(learned.quantized, learned.params, strict=True):
        assert q.values.min() >= -1 and q.values.max() <= 1
        np.testing.assert_array_equal(qarray.dequantize(q), layer.weight)


def assert_nearly_same(one, other):
    """But for weights next to a half, which may fall to either side."""
    for a, b in zip(tree.leaves(one.params), tree.leaves(other.params), strict=True):
        assert np.mean(np.abs(a - b) > 1e-4) <= 0.01


@pytest.mark.parametrize("scheme", ["symmetric", "codebook"])
def test_learned_levels_of_a_population_on_every_backend(backend, trained, digits, scheme):
    """Members are their own runs; masks and zeros stay; the model has the network's layers only."""
    model = mm.prune(trained[2], digits, seed=0, sparsity=0.5, epochs=0)
    how = {"bits": 2, "scheme": scheme, "learn_levels": True, "epochs": 1, "batch_size": 64}
    together = mm.quantize(model, digits, seed=3, backend=backend, **how)
    assert len(together.params) == len(together.masks) == len(together.quantized) == 2
    for layer, q, mask in zip(together.params, together.quantized, model.masks, strict=True):
        assert not layer.weight[~mask].any()
        np.testing.assert_array_equal(qarray.dequantize(q) * mask, layer.weight)
    for i in range(2):
        assert_nearly_same(together.member(i), mm.quantize(model.member(i), digits, seed=3 + i, **how))
    assert mm.model.loads(together.dumps()).dumps() == together.dumps()


def test_learned_scales_stay_positive(trained, digits):
    how = {"seed": 0, "bits": 3, "learn_levels": True, "epochs": 1}
    found = mm.quantize(trained[None], digits, optimizer=optimizers.sgd(3.0), **how)
    start = mm.quantize(trained[None], digits, **{**how, "epochs": 0})
    moved = way_of(found)
    for q, before in zip(moved, start.quantized, strict=True):
        assert (q.scale >= 0.0099 * before.scale).all()


def way_of(model):
    """The integers of where the run stopped, which need not be the best."""
    plain = model.state.params[:2]
    levels = Levels(tuple(calibrate(layer.weight, 3) for layer in plain))
    return Rounding(learned=True).integers(levels, model.state.params)


def test_quantizing_again_compiles_nothing(digits, trained):
    pytest.importorskip("jax")
    backend = mm.backends.load("jax")

    def compilations():
        programs = (begin, ("params", "opt_state")), (epoch, ("state",))
        return [backend.jit(fn, static=("static",), donate=donate).compiled._cache_size() for fn, donate in programs]

    def run(seed, rate, bits):
        how = {"bits": bits, "learn_levels": True, "epochs": 1, "batch_size": 128, "backend": backend}
        mm.quantize(trained[None], digits, seed=seed, optimizer=optimizers.adam(rate), **how)

    before = compilations()
    run(0, 0.01, 3)
    once = compilations()
    assert once[1] <= before[1] + 1
    run(1, 0.02, 3)
    run(2, 0.01, 4)
    assert compilations() == once


def test_draws_are_the_member_s_own(trained, digits):
    """Member i of a population rounds as the run with seed + i."""
    how = {"bits": 3, "rounding": "stochastic", "epochs": 0}
    together = mm.quantize(trained[2], digits, seed=7, **how)
    for i in range(2):
        alone = mm.quantize(trained[2].member(i), digits, seed=7 + i, **how)
        for one, other in zip(together.member(i).quantized, alone.quantized, strict=True):
            np.testing.assert_array_equal(one.values, other.values)
    u = random.uniform(random.fold_in(random.fold_in(random.key(7), 3), 0), (64, 16))
    w = trained[2].params[0].weight[0]
    expected = qarray.quantize(w, calibrate(w, 3), "stochastic", u)
    np.testing.assert_array_equal(together.quantized[0].values[0], expected.values)
