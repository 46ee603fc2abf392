"""Quantized models: their integers, what a mask removed, retraining through the rounding."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import minimodel as mm
from minimodel import optimizers, qarray, ranges, tree
from minimodel.compress import quantization
from minimodel.compress.calibration import calibrate
from minimodel.gradients import forward
from minimodel.problem import check_data

NETWORK = mm.Network((4, 8, 3))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4)).astype(np.float32)
    return mm.datasets.split(x, (x @ rng.normal(size=(4, 3))).argmax(1), seed=0)


@pytest.fixture(scope="module")
def models(data):
    """A trained network and a trained population, by the size of the population."""
    train = {"optimizer": optimizers.adam(0.02), "epochs": 15, "batch_size": 16, "seed": 0}
    return {size: mm.gradient_descent(NETWORK, data, population=size, **train) for size in (None, 3)}


def pruned(model, data):
    return mm.prune(model, data, seed=0, sparsity=0.5, epochs=0)


def assert_holds_its_integers(model, bits, scheme="symmetric"):
    """ŵ = s·(q − z), with q of so many bits."""
    assert model.bits == bits
    each = bits if isinstance(bits, tuple) else (bits,) * len(model.params)
    for layer, q, own in zip(model.params, model.quantized, each, strict=True):
        low, high = qarray.levels(own, scheme)
        assert q.values.dtype == np.int8 and q.scale.dtype == layer.weight.dtype == np.float32
        assert q.values.min() >= low and q.values.max() <= high
        np.testing.assert_array_equal(layer.weight, qarray.dequantize(q))
        groups, rows = q.scale.shape[-2], q.values.shape[-2]
        scale, zero = (leaf[..., [i * groups // rows for i in range(rows)], :] for leaf in (q.scale, q.zero_point))
        difference = q.values.astype(np.float32) - zero.astype(np.float32)
        np.testing.assert_array_equal(layer.weight, difference * scale)


@pytest.mark.parametrize(("scheme", "granularity"), list(zip(qarray.SCHEMES, ("channel", 3, 3), strict=True)))
@pytest.mark.parametrize("bits", [1, 3])
def test_parameters_are_what_the_integers_stand_for(backend, population, bits, scheme, granularity, models, data):
    how = {"bits": bits, "scheme": scheme, "granularity": granularity, "epochs": 2, "batch_size": 64}
    found = mm.quantize(models[population], data, seed=0, backend=backend, **how)
    assert_holds_its_integers(found, bits, scheme)
    assert found.population == population
    assert found.masks is None
    assert all(type(leaf) is np.ndarray for leaf in tree.leaves(found.params, found.quantized))


@pytest.mark.parametrize(("scheme", "granularity"), list(zip(qarray.SCHEMES, ("tensor", 2, 2), strict=True)))
@pytest.mark.parametrize("bits", [1, 4])
def test_what_a_mask_removed_stays_exactly_zero(backend, population, bits, scheme, granularity, models, data):
    model = pruned(models[population], data)
    found = mm.quantize(
        model,
        data,
        seed=0,
        bits=bits,
        scheme=scheme,
        granularity=granularity,
        backend=backend,
        epochs=2,
        batch_size=64,
        optimizer=optimizers.momentum(0.05, weight_decay=0.01),
    )
    for layer, q, mask, before in zip(found.params, found.quantized, found.masks, model.masks, strict=True):
        np.testing.assert_array_equal(mask, before)
        assert not layer.weight[~mask].any()
        np.testing.assert_array_equal(qarray.dequantize(q), layer.weight)
        zero = np.broadcast_to(qarray.spread(q.zero_point, mask.shape[-2]), mask.shape)
        np.testing.assert_array_equal(q.values[~mask], zero[~mask])
        if bits == 1 and scheme != "asymmetric":
            assert set(np.unique(q.values[mask])) <= {-1, 1}
    again = mm.model.loads(found.dumps())
    assert again.dumps() == found.dumps()
    np.testing.assert_array_equal(again.outputs(data.test.x), found.outputs(data.test.x))


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_retraining_lowers_the_validation_loss(backend, population, bits, scheme, models, data):
    options = {"seed": 0, "bits": bits, "scheme": scheme, "backend": backend, "batch_size": 16}
    rounded = mm.quantize(models[population], data, epochs=0, **options)
    retrained = mm.quantize(models[population], data, epochs=10, optimizer=optimizers.adam(0.01), **options)
    before, after = (model.evaluate(data.validation).loss for model in (rounded, retrained))
    assert (np.asarray(after) <= np.asarray(before)).all()
    assert np.mean(after) < 0.95 * np.mean(before)
    assert_holds_its_integers(retrained, bits, scheme)


def test_a_sharpness_aware_step_looks_around_the_integers(oracle, backend, models, data):
    """θ ← θ − η ∇J(ŵ + ρ g/‖g‖), g = ∇J(ŵ), by automatic differentiation: not J of the rounded θ + ρ g/‖g‖."""
    torch, model, rate, rho = oracle("torch"), models[None], 0.1, 0.3
    how = {"seed": 0, "bits": 3, "backend": backend, "batch_size": len(data.train.x)}
    scales = [torch.tensor(q.scale) for q in mm.quantize(model, data, epochs=0, **how).quantized]
    found = mm.quantize(model, data, epochs=1, optimizer=optimizers.sgd(rate, sharpness=rho), **how).state.params
    leaves = [torch.tensor(leaf, requires_grad=True) for layer in model.params for leaf in layer]
    x, y = torch.tensor(model.prepared(data.train.x)), torch.tensor(data.train.y, dtype=torch.int64)

    def gradient(away):
        def weight(i):
            c = leaves[2 * i] / scales[i]
            return scales[i] * torch.clamp(c + (torch.round(c) - c).detach(), -3, 3) + away[2 * i]

        hidden = torch.relu(x @ weight(0) + leaves[1] + away[1])
        loss = torch.nn.functional.cross_entropy(hidden @ weight(1) + leaves[3] + away[3], y)
        return torch.autograd.grad(loss, leaves)

    g = gradient([torch.zeros_like(leaf) for leaf in leaves])
    length = torch.sqrt(sum((part**2).sum() for part in g))
    for ours, start, d in zip(tree.leaves(found), leaves, gradient([rho * part / length for part in g]), strict=True):
        np.testing.assert_allclose(ours, (start - rate * d).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_without_epochs_it_only_rounds(backend, population, models, data):
    model = models[population]
    found = mm.quantize(model, data, seed=0, bits=5, backend=backend, epochs=0)
    for layer, before, q in zip(found.params, model.params, found.quantized, strict=True):
        expected = qarray.quantize(before.weight, calibrate(before.weight, 5))
        for one, other in zip(q[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(layer.bias, before.bias)


@pytest.mark.parametrize("granularity", ["channel", "tensor", 2])
@pytest.mark.parametrize("range_of", [ranges.least_error, ranges.min_max, ranges.percentile()])
@pytest.mark.parametrize("scheme", qarray.SCHEMES)
def test_eight_bits_cost_almost_nothing(granularity, range_of, scheme, models, data):
    model = models[None]
    how = {"bits": 8, "granularity": granularity, "range_of": range_of, "scheme": scheme}
    found = mm.quantize(model, data, seed=0, epochs=0, **how)
    dense, rounded = model.evaluate(data.train), found.evaluate(data.train)
    assert dense.accuracy > 0.9
    assert abs(rounded.accuracy - dense.accuracy) <= 0.03
    assert rounded.loss == pytest.approx(dense.loss, rel=0.1)
    assert found.quantized[0].scale.shape == {"channel": (1, 8), "tensor": (1, 1), 2: (2, 8)}[granularity]


def test_more_bits_give_weights_closer_to_the_dense_ones(models, data):
    model = models[None]
    errors = []
    for bits in range(1, 9):
        found = mm.quantize(model, data, seed=0, bits=bits, epochs=0)
        errors.append(np.square(found.params[0].weight - model.params[0].weight).sum())
    assert all(less < 0.6 * more for more, less in pairwise(errors))


def test_a_population_is_its_members(models, data):
    """Member i is the run with seed + i; without epochs the integers are equal bit for bit."""
    model = models[3]
    for epochs in (0, 3):
        together = mm.quantize(model, data, seed=7, bits=4, epochs=epochs)
        for i in range(3):
            alone = mm.quantize(model.member(i), data, seed=7 + i, bits=4, epochs=epochs)
            member = together.member(i)
            for one, other in zip(tree.leaves(member.quantized), tree.leaves(alone.quantized), strict=True):
                np.testing.assert_array_equal(one, other)
            for one, other in zip(tree.leaves(member.params), tree.leaves(alone.params), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_history_and_callback(population, models, data):
    seen = []
    found = mm.quantize(models[population], data, seed=0, bits=4, epochs=3, batch_size=16, callback=seen.append)
    steps = 3 * (len(data.train.x) // 16)
    assert found.history["loss"].shape[0] == found.history["learning_rate"].shape[0] == steps
    validation = found.history["validation_loss"]
    assert validation.shape == ((4,) if population is None else (4, population))
    assert np.isfinite(validation).all()
    assert [(progress.done, progress.total) for progress in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [progress.best for progress in seen] == pytest.approx(validation[1:].reshape(3, -1).min(axis=1))
    best = found.evaluate(data.validation).loss
    np.testing.assert_allclose(best, validation.min(axis=0), rtol=1e-5)


def test_pruning_a_quantized_model_gives_floats_again(models, data):
    quantized = mm.quantize(pruned(models[None], data), data, seed=0, bits=4, epochs=0)
    found = mm.prune(quantized, data, seed=0, sparsity=0.7, epochs=1)
    assert found.quantized is None and found.bits is None
    assert all((~kept | was).all() for kept, was in zip(found.masks, quantized.masks, strict=True))
    again = mm.quantize(found, data, seed=0, bits=2, epochs=0)
    assert again.bits == 2 and again.quantized is not None


def test_quantizing_again_with_fewer_bits(models, data):
    eight = mm.quantize(models[None], data, seed=0, bits=8, epochs=0)
    assert_holds_its_integers(mm.quantize(eight, data, seed=0, bits=2, epochs=0), 2)


def test_the_given_model_is_not_touched(models, data):
    model = models[None]
    before = model.dumps()
    mm.quantize(model, data, seed=0, bits=2, epochs=2)
    assert model.dumps() == before and model.quantized is None


def test_a_regression_keeps_its_targets_normalization():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 3))
    data = mm.datasets.split(x, 100 + 50 * x[:, 0], seed=0)
    model = mm.gradient_descent(mm.Network((3, 8, 1)), data, seed=0, optimizer=optimizers.adam(0.02), epochs=30)
    found = mm.quantize(model, data, seed=0, bits=8, epochs=2)
    assert found.targets is model.targets
    assert found.evaluate(data.test).r2 > 0.9


@pytest.mark.parametrize("bits", [9, 0, -1, 4.0, "4", True, None, [4, 0], [4, "4"]])
def test_bits_outside_one_to_eight_are_refused(bits, models, data):
    with pytest.raises(ValueError, match="bits: expected an integer from 1 to 8"):
        mm.quantize(models[None], data, seed=0, bits=bits)


@pytest.mark.parametrize(
    ("options", "message"), [({"epochs": -1}, "epochs"), ({"batch_size": 0}, "batch_size"), ({"seed": 1.5}, "seed")]
)
def test_what_does_not_fit_is_refused(options, message, models, data):
    with pytest.raises(ValueError, match=message):
        mm.quantize(models[None], data, **{"seed": 0, "bits": 4, **options})


def test_data_that_do_not_fit_are_refused(models, data):
    x = np.full_like(data.train.x, np.nan)
    broken = replace(data, train=data.train._replace(x=x))
    with pytest.raises(ValueError, match="train: x or y holds NaN"):
        mm.quantize(models[None], broken, seed=0, bits=4)
    with pytest.raises(ValueError, match="train: x or y holds NaN"):
        check_data(NETWORK, models[None].loss, broken.train, "train")


# Activations of few bits


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_activations_become_integers(backend, population, bits, models, data):
    """Every hidden activation is one of 0, 4/n, …, 4; the file and the integer model hold the same network."""
    found = mm.quantize(
        models[population], data, seed=0, bits=4, activation_bits=bits, epochs=2, batch_size=16, backend=backend
    )
    assert found.network.activation == f"relu_{bits}bit" and found.population == population
    hidden = forward(found.network, found.params, found.prepared(data.test.x))[1].f * (2**bits - 1) / 4
    np.testing.assert_allclose(hidden, np.round(hidden), atol=1e-4)
    assert hidden.min() >= 0 and hidden.max() <= 2**bits - 1 + 1e-3
    assert_holds_its_integers(found, 4)
    again = mm.model.loads(found.dumps())
    np.testing.assert_array_equal(again.outputs(data.test.x), found.outputs(data.test.x))
    integers = mm.to_integers(found, data)
    np.testing.assert_array_equal(
        integers.scales[1].scale, np.full(found.params[0].bias.shape[:-1], 4 / (2**bits - 1), np.float32)
    )


def test_the_layers_take_up_the_scale(models, data):
    """At 8 bits the network computes what it did, though its activations now lie in [0, 4]."""
    for population in (None, 3):
        model = models[population]
        found = quantization.stepped(model, data, 8)
        spread = np.ptp(model.outputs(data.train.x), axis=-2, keepdims=True)
        assert (np.abs(found.outputs(data.train.x) - model.outputs(data.train.x)) < 0.02 * spread).all()
        hidden = forward(found.network, found.params, found.prepared(data.train.x))[1].f
        assert 3.6 < hidden.max() <= 4


def test_fewer_activation_bits_keep_the_scale(models, data):
    once = quantization.stepped(models[None], data, 8)
    twice = quantization.stepped(once, data, 2)
    assert twice.network.activation == "relu_2bit"
    for one, other in zip(tree.leaves(once.params), tree.leaves(twice.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_activations_of_pruned_networks_keep_the_masks(models, data):
    found = mm.quantize(pruned(models[None], data), data, seed=0, bits=3, activation_bits=3, epochs=2)
    for layer, mask in zip(found.params, found.masks, strict=True):
        assert not layer.weight[~mask].any()


@pytest.mark.parametrize("bits", [0, 9, 2.0, "2", True])
def test_activation_bits_that_do_not_fit_are_refused(bits, models, data):
    with pytest.raises(ValueError, match="activation_bits: expected an integer from 1 to 8"):
        mm.quantize(models[None], data, seed=0, activation_bits=bits)


def test_only_relu_becomes_integers(data):
    model = mm.gradient_descent(mm.Network((4, 3, 3), "tanh"), data, seed=0, epochs=0)
    with pytest.raises(ValueError, match="activation_bits: expected a model of relu and Splits, got tanh"):
        mm.quantize(model, data, seed=0, activation_bits=4)


# A population of different bits


def test_members_of_different_bits_are_their_own_runs(models, data, tmp_path):
    options = {"epochs": 2, "batch_size": 16}
    together = mm.quantize(models[3], data, seed=5, bits=[2, 8, 4], **options)
    assert together.bits == (2, 8, 4)
    together.save(tmp_path / "model")
    again = mm.load(tmp_path / "model")
    assert again.bits == (2, 8, 4)
    for i, bits in enumerate(together.bits):
        alone = mm.quantize(models[3].member(i), data, seed=5 + i, bits=bits, **options)
        for found in (together.member(i), again.member(i)):
            assert_holds_its_integers(found, bits)
            for one, other in zip(found.quantized, alone.quantized, strict=True):
                np.testing.assert_array_equal(one.values, other.values)
    assert together.members([1, 1]).bits == 8 and together.members([0, 2]).bits == (2, 4)


@pytest.mark.parametrize("bits", [[4, 4], [4, 4, 9], [4, None, 4], "444"])
def test_bits_of_members_that_do_not_fit_are_refused(bits, models, data):
    with pytest.raises(ValueError, match="bits: expected an integer"):
        mm.quantize(models[3], data, seed=0, bits=bits)


def test_a_trade_off_over_bits(models, data):
    points = mm.trade_off(models[None], data, bits=[8, 2], seeds=2, seed=0, epochs=1)
    assert [point.bits for point in points] == [8, 2] and points[1].bytes.mean() < points[0].bytes.mean()
    for point in points:
        np.testing.assert_allclose(point.error, 1 - point.model.evaluate(data.test).accuracy)
    for wrong in ({}, {"bits": [4], "sparsities": [0.5]}):
        with pytest.raises(ValueError, match="give one of sparsities"):
            mm.trade_off(models[None], data, seed=0, **wrong)


# Bits of layers


@pytest.mark.parametrize("scheme", [*qarray.SCHEMES, "codebook"])
def test_layers_of_different_bits(models, data, scheme, tmp_path):
    """Each layer is as it would be if all had its bits."""
    options = {"seed": 0, "scheme": scheme, "epochs": 0}
    found = mm.quantize(models[None], data, bits=[2, 5], **options)
    found.save(tmp_path / "model")
    assert found.bits == mm.load(tmp_path / "model").bits == (2, 5)
    for i, bits in enumerate((2, 5)):
        alone = mm.quantize(models[None], data, bits=bits, **options)
        for other in (found, mm.load(tmp_path / "model")):
            np.testing.assert_array_equal(other.params[i].weight, alone.params[i].weight)
            np.testing.assert_array_equal(other.quantized[i].values, alone.quantized[i].values)
    trained = mm.quantize(models[None], data, bits=[2, 5], **{**options, "epochs": 1})
    assert trained.bits == (2, 5)
    if scheme != "codebook":
        assert_holds_its_integers(trained, (2, 5), scheme)


@pytest.mark.parametrize("scheme", ["symmetric", "codebook"])
def test_layers_and_members_of_different_bits(models, data, scheme):
    bits, options = ((1, 4), 3, (8, 2)), {"scheme": scheme, "epochs": 2, "batch_size": 16}
    together = mm.quantize(models[3], data, seed=5, bits=bits, **options)
    again = mm.model.loads(together.dumps())
    assert together.bits == again.bits == bits
    for i, own in enumerate(bits):
        alone = mm.quantize(models[3].member(i), data, seed=5 + i, bits=own, **options)
        for found in (together.member(i), again.member(i)):
            assert found.bits == own
            for one, other in zip(found.params, alone.params, strict=True):
                np.testing.assert_allclose(one.weight, other.weight, rtol=1e-4, atol=1e-6)
        assert mm.model.loads(together.member(i).dumps()).dumps() == together.member(i).dumps()


@pytest.mark.parametrize("bits", [[4], [4, 4, 4], [[4, 4], [4, 4]], []])
def test_bits_that_are_not_one_for_each_layer_are_refused(bits, models, data):
    with pytest.raises(ValueError, match="bits: expected an integer"):
        mm.quantize(models[None], data, seed=0, bits=bits)
    with pytest.raises(ValueError, match="bits: expected an integer"):
        mm.quantize(models[3], data, seed=0, bits=[bits, 4, 4])


# One bit


@pytest.mark.parametrize("some", [False, True], ids=["whole", "pruned"])
def test_one_bit_keeps_signs_times_means(models, data, some):
    model = pruned(models[None], data) if some else models[None]
    found = mm.quantize(model, data, seed=0, bits=1, epochs=0)
    for layer, before in zip(found.params, model.params, strict=True):
        mean = np.abs(before.weight).sum(axis=0) / np.maximum(np.count_nonzero(before.weight, axis=0), 1)
        np.testing.assert_allclose(layer.weight, np.sign(before.weight) * mean, rtol=1e-6)
    assert found.nonzero <= model.nonzero
    trained = mm.quantize(model, data, seed=0, bits=1, epochs=10, optimizer=optimizers.adam(0.01))
    assert trained.evaluate(data.train).loss < found.evaluate(data.train).loss
    assert mm.model.loads(trained.dumps()).dumps() == trained.dumps()


# The biases


@pytest.mark.parametrize("how", [{"rounding": "floor", "bits": 4}, {"bits": 2}, {"scheme": "codebook", "bits": 1}])
@pytest.mark.parametrize("learned", [False, True])
def test_corrected_biases_keep_the_mean_of_every_layer(backend, models, data, how, learned):
    """On training rows a layer's sums are on average those that it had for the inputs it now gets."""
    if learned and "rounding" in how:
        return
    for population in (None, 3):
        model = models[population]
        options = {"seed": 0, "correct_bias": True, "epochs": 0, "learn_levels": learned, "backend": backend, **how}
        found = mm.quantize(model, data, **options)
        for i in range(population or 1):
            one, other = (m if population is None else m.member(i) for m in (model, found))
            a = one.prepared(data.train.x).astype(np.float64)
            for before, after in zip(one.params, other.params, strict=True):
                expected, z = (a @ layer.weight.astype(np.float64) + layer.bias for layer in (before, after))
                np.testing.assert_allclose(z.mean(axis=0), expected.mean(axis=0), rtol=1e-4, atol=1e-4)
                a = np.maximum(z, 0)
        plain = mm.quantize(model, data, **{**options, "correct_bias": False})
        for one, other in zip(found.params, plain.params, strict=True):
            np.testing.assert_array_equal(one.weight, other.weight)
        assert not np.allclose(found.params[1].bias, plain.params[1].bias)  # the inputs' means are 0


# Rounding


@pytest.mark.parametrize("rounding", ["half_away", "floor", "ceil", "toward_zero"])
def test_every_rounding_is_that_of_the_integers(backend, models, data, rounding):
    found = mm.quantize(models[None], data, seed=0, bits=3, rounding=rounding, epochs=1, backend=backend)
    assert_holds_its_integers(found, 3)
    found = mm.quantize(models[None], data, seed=0, bits=3, rounding=rounding, epochs=0, backend=backend)
    for q, layer in zip(found.quantized, models[None].params, strict=True):
        expected = qarray.quantize(layer.weight, calibrate(layer.weight, 3), rounding)
        np.testing.assert_array_equal(q.values, expected.values)


def test_the_seed_decides_stochastic_rounding(backend, models, data):
    def values(seed, backend=backend, epochs=0):
        how = {"bits": 3, "rounding": "stochastic", "epochs": epochs, "batch_size": 64}
        return mm.quantize(models[None], data, seed=seed, backend=backend, **how).quantized[0].values

    np.testing.assert_array_equal(values(0), values(0))
    np.testing.assert_array_equal(values(0), values(0, "numpy"))
    assert (values(0) != values(1)).any()
    assert np.abs(values(1)).max() <= 3 and np.abs(values(0, epochs=1)).max() <= 3


# Every way at once


@pytest.mark.parametrize("scheme", [*qarray.SCHEMES, "codebook"])
@pytest.mark.parametrize("granularity", ["channel", "tensor", 3])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_files_and_shrinking_keep_what_the_model_computes(models, data, scheme, granularity, bits, population):
    if scheme == "codebook" and granularity == 3:
        return
    for model in (models[population], mm.prune(models[population], data, seed=0, sparsity=0.7, epochs=0)):
        found = mm.quantize(model, data, seed=0, bits=bits, scheme=scheme, granularity=granularity, epochs=1)
        again, small = mm.model.loads(found.dumps()), mm.shrink(found)
        assert again.dumps() == found.dumps() and again.bits == bits
        outputs = found.outputs(data.test.x)
        np.testing.assert_array_equal(again.outputs(data.test.x), outputs)
        np.testing.assert_allclose(small.outputs(data.test.x), outputs, rtol=1e-4, atol=1e-5)
        assert mm.model.loads(small.dumps()).dumps() == small.dumps()
        for q, layer, mask in zip(small.quantized, small.params, small.masks or (1, 1), strict=True):
            np.testing.assert_array_equal(qarray.dequantize(q) * mask, layer.weight)


@pytest.mark.parametrize("scheme", ["symmetric", "symmetric_full"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_powers_of_two_become_shifts(models, data, scheme, granularity):
    how = {"bits": 4, "scheme": scheme, "granularity": granularity, "power_of_two": True}
    found = mm.quantize(models[None], data, seed=0, epochs=2, **how)
    assert all((np.frexp(q.scale)[0] == 0.5).all() for q in found.quantized)
    made = mm.to_integers(found, data, shift=True)
    assert all(layer.multiplier.dtype == np.int32 for layer in made.layers)
    spread = np.ptp(found.outputs(data.test.x))
    assert np.abs(made.outputs(data.test.x) - found.outputs(data.test.x)).max() < 0.05 * spread


@pytest.mark.parametrize("how", [{"scheme": "asymmetric"}, {"granularity": 2}, {"scheme": "codebook"}], ids=str)
def test_what_has_no_one_symmetric_scale_is_neither_computed_in_integers_nor_coded(models, data, how, oracle):
    oracle("constriction")
    found = mm.quantize(models[None], data, seed=0, bits=3, epochs=0, **how)
    with pytest.raises(ValueError, match="integer-only inference takes symmetric weights with a scale for each"):
        mm.to_integers(found, data)
    with pytest.raises(ValueError, match="encode: a coded file takes integers of"):
        mm.coded.encode(found)


@pytest.mark.parametrize(
    ("bits", "scheme"),
    [(1, "symmetric"), (2, "symmetric_full"), (4, "symmetric_full"), ((1, 6), "symmetric"), ((5, 2), "symmetric_full")],
)
@pytest.mark.parametrize("some", [False, True], ids=["whole", "pruned"])
def test_a_coded_file_holds_the_same_integers(models, data, oracle, bits, scheme, some):
    oracle("constriction")
    model = pruned(models[None], data) if some else models[None]
    found = mm.quantize(model, data, seed=0, bits=bits, scheme=scheme, range_of=ranges.percentile(0.8), epochs=0)
    if scheme == "symmetric_full":
        first = bits[0] if isinstance(bits, tuple) else bits
        assert found.quantized[0].values.min() == -(2 ** (first - 1))
    small, again = mm.shrink(found), mm.coded.decode(mm.coded.encode(found))
    assert again.bits == bits
    for one, other in zip(again.quantized, small.quantized, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.scale, other.scale)
    assert mm.coded.encode(again) == mm.coded.encode(found)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "full"}, "scheme: expected one of symmetric, symmetric_full, asymmetric, codebook, got 'full'"),
        ({"scheme": None}, "scheme: expected one of"),
        (
            {"rounding": "nearest"},
            "rounding: expected one of half_even, half_away, floor, ceil, toward_zero, stochastic",
        ),
        ({"granularity": 0}, 'granularity: expected "tensor", "channel" or a number of inputs, got 0'),
        ({"granularity": "group"}, 'granularity: expected "tensor", "channel" or a number of inputs'),
        ({"granularity": True}, 'granularity: expected "tensor", "channel" or a number of inputs'),
        ({"scheme": "codebook", "rounding": "gptq"}, "scheme: a codebook has its own nearest centre"),
        ({"scheme": "codebook", "power_of_two": True}, "scheme: a codebook has its own nearest centre"),
        ({"learn_levels": True, "power_of_two": True}, "learn_levels: learned scales are no powers of two"),
        ({"learn_levels": True, "rounding": "stochastic"}, "learn_levels: .* learned with half_even only"),
    ],
    ids=str,
)
def test_other_ways_to_quantize_are_refused(options, message, models, data):
    with pytest.raises(ValueError, match=message):
        mm.quantize(models[None], data, seed=0, **options)


def test_the_range_of_activations_is_chosen(models, data):
    """A range of half of all that was seen clips at half of it."""

    def half(values, missed):
        return tuple(0.5 * end for end in ranges.min_max(values, missed))

    found, whole = (
        mm.quantize(models[None], data, seed=0, activation_bits=8, activation_range=range_of, bits=8, epochs=0)
        for range_of in (half, ranges.min_max)
    )
    ratio = found.params[0].bias / whole.params[0].bias
    np.testing.assert_allclose(ratio, 2, rtol=1e-5)


# Options together


def test_learned_centres_that_cross_are_saved_as_they_were_used(models, data):
    """The nearest centre is the nearest, in whatever order the centres are."""
    for rate in (0.05, 0.08):
        found = mm.quantize(
            models[None], data, seed=3, bits=3, scheme="codebook", learn_levels=True, epochs=12, batch_size=16,
            optimizer=optimizers.momentum(rate),
        )  # fmt: skip
        again = mm.model.loads(found.dumps())
        assert found.evaluate(data.validation).loss == pytest.approx(found.history["validation_loss"].min(), rel=1e-5)
        assert again.evaluate(data.validation).loss == found.evaluate(data.validation).loss


@pytest.mark.parametrize("last", [{}, {"rounding": "gptq"}, {"rounding": "adaround"}, {"correct_bias": True}])
def test_the_stages_before_leave_the_weights_as_they_were(last, models, data):
    """Without training a stage of one bit changes nothing of what comes after."""
    options = {"seed": 0, "bits": 8, "epochs": 0, **last}
    found, direct = mm.quantize(models[None], data, gradual=(1,), **options), mm.quantize(models[None], data, **options)
    for one, other in zip(found.quantized, direct.quantized, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_fewer_bits_step_by_step(models, data):
    """The stages train, on weights and activations, and one bit begins where two were."""
    options = {"seed": 0, "activation_bits": 2, "epochs": 8, "optimizer": optimizers.adam(0.01), "batch_size": 16}
    found = mm.quantize(models[3], data, bits=1, gradual=(4, 2), learn_levels=True, **options)
    assert (found.bits, found.network.activation) == (1, "relu_2bit")
    assert_holds_its_integers(found, 1)
    direct = mm.quantize(models[3], data, bits=1, learn_levels=True, **options)
    assert np.mean(found.history["validation_loss"][0]) < np.mean(direct.history["validation_loss"][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_sparsities": (0.5,)}, "budget_sparsities: it has no effect here"),
        ({"activation_range": ranges.min_max}, "activation_range: it has no effect here"),
        ({"scheme": "codebook", "range_of": ranges.min_max}, "range_of: it has no effect here"),
        ({"range_of": "min_max"}, "range: expected a function of values and missed"),
        ({"range_of": ranges.percentile}, "range: expected a function of values and missed"),
        ({"range_of": lambda values, missed: (np.zeros(3), np.ones(3))}, "range: expected finite least and most"),
        ({"range_of": lambda values, missed: (values[..., 0, 0] * 0, values[..., 0, 0] * np.nan)}, "range: expected"),
        ({"gradual": 4}, "gradual: expected numbers of bits"),
        ({"gradual": (4, 9)}, "gradual: expected an integer from 1 to 8"),
        ({"gradual": (4,), "activation_bits": "4"}, "activation_bits: expected an integer"),
        ({"bits": 1, "rounding": "floor"}, "rounding: at 1 bit there is the sign alone"),
        ({"bits": (4, 1), "rounding": "toward_zero"}, "rounding: at 1 bit there is the sign alone"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(options, message, models, data):
    with pytest.raises(ValueError, match=message):
        mm.quantize(models[None], data, seed=0, epochs=0, **options)


def test_parameters_that_are_not_finite_are_refused(models, data):
    broken = replace(models[None], params=tree.map(lambda leaf: leaf * np.nan, models[None].params))
    with pytest.raises(ValueError, match="model: NaN or infinity among the parameters"):
        mm.quantize(broken, data, seed=0, epochs=0)
