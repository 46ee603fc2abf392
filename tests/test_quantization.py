"""Quantized models: their integers, what a mask removed, retraining through the rounding."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import minimodel as mm
from minimodel import optimizers, qarray, tree
from minimodel.compress import quantization
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


def assert_holds_its_integers(model, bits, symmetric):
    """ŵ = s·(q − z), with q of so many bits."""
    low, high = qarray.levels(bits, symmetric)
    assert model.bits == bits
    for layer, q in zip(model.params, model.quantized, strict=True):
        assert q.values.dtype == np.int8 and q.scale.dtype == layer.weight.dtype == np.float32
        assert q.values.min() >= low and q.values.max() <= high
        np.testing.assert_array_equal(layer.weight, qarray.dequantize(q))
        difference = q.values.astype(np.float32) - q.zero_point.astype(np.float32)
        np.testing.assert_array_equal(layer.weight, difference * q.scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_parameters_are_what_the_integers_stand_for(backend, population, symmetric, models, data):
    found = mm.quantize(
        models[population], data, seed=0, bits=3, symmetric=symmetric, backend=backend, epochs=2, batch_size=64
    )
    assert_holds_its_integers(found, 3, symmetric)
    assert found.population == population
    assert found.masks is None
    assert all(type(leaf) is np.ndarray for leaf in tree.leaves(found.params, found.quantized))


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_a_mask_removed_stays_exactly_zero(backend, population, symmetric, models, data):
    model = pruned(models[population], data)
    found = mm.quantize(
        model,
        data,
        seed=0,
        bits=4,
        symmetric=symmetric,
        backend=backend,
        epochs=2,
        batch_size=64,
        optimizer=optimizers.momentum(0.05, weight_decay=0.01),
    )
    assert_holds_its_integers(found, 4, symmetric)
    for layer, q, mask, before in zip(found.params, found.quantized, found.masks, model.masks, strict=True):
        np.testing.assert_array_equal(mask, before)
        assert not layer.weight[~mask].any()
        np.testing.assert_array_equal(q.values[~mask], np.broadcast_to(q.zero_point, mask.shape)[~mask])


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_retraining_lowers_the_validation_loss(backend, population, bits, symmetric, models, data):
    options = {"seed": 0, "bits": bits, "symmetric": symmetric, "backend": backend, "batch_size": 16}
    rounded = mm.quantize(models[population], data, epochs=0, **options)
    retrained = mm.quantize(models[population], data, epochs=10, optimizer=optimizers.adam(0.01), **options)
    before, after = (model.evaluate(data.validation).loss for model in (rounded, retrained))
    assert (np.asarray(after) <= np.asarray(before)).all()
    assert np.mean(after) < 0.95 * np.mean(before)
    assert_holds_its_integers(retrained, bits, symmetric)


def test_without_epochs_it_only_rounds(backend, population, models, data):
    model = models[population]
    found = mm.quantize(model, data, seed=0, bits=5, backend=backend, epochs=0)
    for layer, before, q in zip(found.params, model.params, found.quantized, strict=True):
        expected = qarray.quantize(before.weight, qarray.calibrate(before.weight, 5))
        for one, other in zip(q, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(layer.bias, before.bias)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_eight_bits_cost_almost_nothing(per_channel, clip, symmetric, models, data):
    model = models[None]
    found = mm.quantize(model, data, seed=0, bits=8, per_channel=per_channel, clip=clip, symmetric=symmetric, epochs=0)
    dense, rounded = model.evaluate(data.train), found.evaluate(data.train)
    assert dense.accuracy > 0.9
    assert abs(rounded.accuracy - dense.accuracy) <= 0.03
    assert rounded.loss == pytest.approx(dense.loss, rel=0.1)
    assert found.quantized[0].scale.shape == (1, 8 if per_channel else 1)


def test_more_bits_give_weights_closer_to_the_dense_ones(models, data):
    model = models[None]
    errors = []
    for bits in range(2, 9):
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
    assert_holds_its_integers(mm.quantize(eight, data, seed=0, bits=2, epochs=0), 2, True)


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


@pytest.mark.parametrize("bits", [1, 9, 0, -1, 4.0, "4", True, None])
def test_bits_outside_two_to_eight_are_refused(bits, models, data):
    with pytest.raises(ValueError, match="bits: expected an integer from 2 to 8"):
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
    assert_holds_its_integers(found, 4, True)
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
            assert_holds_its_integers(found, bits, True)
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
        with pytest.raises(ValueError, match="give one of sparsities and bits"):
            mm.trade_off(models[None], data, seed=0, **wrong)
