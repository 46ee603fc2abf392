"""A model made ready: the same outputs, whichever way each layer is multiplied, and only where it is one model."""

import sys
from dataclasses import replace

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses
from minimodel.activations import ACTIVATIONS
from minimodel.compress import deployment
from minimodel.model import Model

FEATURES = 6


def random_model(activation="relu", sizes=(FEATURES, 9, 8, 3), density=0.4, seed=0, **fields):
    """Sparse, with a feature and a neuron that nothing leads to."""
    rng, network, params = np.random.default_rng(seed), mm.Network(sizes, activation), []
    for shape in network.shapes:
        weight = np.where(rng.uniform(size=shape) < density, rng.normal(size=shape), 0)
        params.append(mm.Layer(weight.astype(np.float32), rng.normal(size=shape[1]).astype(np.float32)))
    params[0].weight[2] = 0
    params[0].weight[:, 4:6] = 0
    return Model(network, tuple(params), fields.pop("loss", losses.softmax_cross_entropy), **fields)


def rows(count=7, offset=0.0, seed=1):
    return (offset + np.random.default_rng(seed).normal(size=(count, FEATURES))).astype(np.float32)


def force(monkeypatch, kind):
    """Make this kind of matrix the fastest in every layer."""
    monkeypatch.setattr(
        deployment, "timed", lambda matrix, inputs: float(isinstance(matrix, np.ndarray) != (kind == "dense"))
    )


@pytest.fixture(params=["dense", "sparse"])
def kind(request, monkeypatch):
    """Every layer is of this kind."""
    if request.param == "sparse":
        pytest.importorskip("scipy")
    force(monkeypatch, request.param)
    return request.param


def assert_same(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_outputs_are_those_of_the_model(kind, activation, batch_size):
    """Of any number of rows, also another one than it was timed with."""
    pytest.importorskip("scipy")
    model = random_model(activation, normalization=mm.datasets.fit_normalization(rows(50)))
    ready = mm.deploy(model, batch_size=batch_size)
    assert ready.choices == [kind] * 3
    assert [isinstance(matrix, np.ndarray) for matrix in ready.matrices] == [kind == "dense"] * 3
    for count in (1, 7, 65):
        x = rows(count)
        before = x.copy()
        assert_same(ready.outputs(x), model.outputs(x))
        np.testing.assert_array_equal(ready.predict(x), model.predict(x))
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(ready.outputs(x), ready.outputs(x))  # nothing of it is used up


def test_what_is_multiplied_is_shrunk(kind):
    model = random_model()
    ready = mm.deploy(model)
    assert ready.model.network == mm.shrink(model).network and ready.model.features == FEATURES
    assert ready.model.network.layer_sizes[:2] == (5, 6)
    assert [matrix.shape for matrix in ready.matrices] == [shape[::-1] for shape in ready.model.network.shapes]
    other = rows()
    other[:, 2] = 1e30  # what is not looked at
    np.testing.assert_array_equal(ready.outputs(other), ready.outputs(rows()))


@pytest.mark.parametrize("winners", [("dense", "sparse", "dense"), ("sparse", "dense", "sparse")])
def test_each_layer_takes_its_own_winner(monkeypatch, winners):
    """One entry each, with the seconds of both."""
    pytest.importorskip("scipy")
    model, seen = random_model(), []

    def timed(matrix, inputs):
        seen.append((isinstance(matrix, np.ndarray), matrix.shape, inputs.shape))
        kind = "dense" if isinstance(matrix, np.ndarray) else "sparse"
        return 1.0 if kind == winners[(len(seen) - 1) // 2] else 2.0

    monkeypatch.setattr(deployment, "timed", timed)
    ready = mm.deploy(model, batch_size=33)
    assert tuple(ready.choices) == winners
    assert ready.seconds == [{"dense": 1.0 + (w == "sparse"), "sparse": 1.0 + (w == "dense")} for w in winners]
    shapes = ready.model.network.shapes
    assert seen == [(dense, (b, a), (a, 33)) for a, b in shapes for dense in (True, False)]
    assert_same(ready.outputs(rows()), model.outputs(rows()))


def test_what_is_timed_is_what_is_chosen():
    """As it is: seconds above 0, and the lesser of them wins."""
    ready = mm.deploy(random_model(), batch_size=4)
    assert len(ready.choices) == len(ready.seconds) == 3
    for choice, seconds in zip(ready.choices, ready.seconds, strict=True):
        assert set(seconds) <= {"dense", "sparse"} and min(seconds.values()) > 0
        assert seconds[choice] == min(seconds.values())
    assert_same(ready.outputs(rows()), random_model().outputs(rows()))


def test_without_scipy_all_is_dense(monkeypatch):
    """And SciPy is not asked for."""
    monkeypatch.setattr(deployment, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)  # an import would fail
    model = random_model()
    ready = mm.deploy(model)
    assert ready.choices == ["dense"] * 3 and all(set(seconds) == {"dense"} for seconds in ready.seconds)
    assert_same(ready.outputs(rows()), model.outputs(rows()))


# Normalisation, and raw data


@pytest.mark.parametrize("size", [1, FEATURES])
@pytest.mark.parametrize(("shift", "is_folded"), [(0.0, True), (3.0, True), (500.0, False)])
def test_a_normalization_is_folded_where_it_costs_no_digits(kind, size, shift, is_folded):
    """Up to 8 standard deviations; beyond them the difference x − m is taken first."""
    rng = np.random.default_rng(2)
    fitted = mm.Normalization(
        (shift + rng.uniform(0.5, 1, size)).astype(np.float32), rng.uniform(1, 2, size).astype(np.float32)
    )
    model = random_model(normalization=fitted)
    ready, x = mm.deploy(model), rows(offset=shift)
    assert (ready.normalization is None) == is_folded
    assert (np.abs(fitted.shift * fitted.scale).max() <= deployment.FAR) == is_folded
    assert_same(ready.outputs(x), model.outputs(x))


def test_a_literal_fold():
    """(x − 3)·2·5 + 1 = 10x − 29, (y + 1)·½·4 = 2y + 2."""
    layer = mm.Layer(np.array([[5], [4]], np.float32), np.array([1], np.float32))
    fitted = mm.Normalization(np.array([3, -1], np.float32), np.array([2, 0.5], np.float32))
    model = Model(mm.Network((2, 1)), (layer,), losses.mean_squared_error, fitted)
    normalization, (found,) = deployment.folded(model)
    assert normalization is None
    assert found.weight.tolist() == [[10], [2]] and found.bias.tolist() == [-27]
    assert found.weight.dtype == found.bias.dtype == np.float32
    x = np.array([[1, 2], [-3, 4]], np.float32)
    np.testing.assert_array_equal(mm.deploy(model).outputs(x), [[-13], [-49]])
    np.testing.assert_array_equal(model.outputs(x), [[-13], [-49]])


def test_a_far_shift_keeps_its_digits(kind):
    """Features around 10⁶ that vary by 1: folded, float32 would be left with an error of about 0.1."""
    x = rows(40) + np.float32(1e6)
    model = random_model(normalization=mm.datasets.fit_normalization(x))
    exact = mm.shrink(model)
    a = ((x.astype(np.float64) - model.normalization.shift) * model.normalization.scale)[:, exact.inputs]
    for i, layer in enumerate(exact.params):
        a = (np.maximum(a, 0) if i else a) @ layer.weight.astype(np.float64) + layer.bias
    np.testing.assert_allclose(mm.deploy(model).outputs(x), a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalized", [True, False])
def test_pixels_are_taken_as_they_come(kind, normalized):
    x = np.random.default_rng(0).integers(0, 256, size=(12, FEATURES), dtype=np.uint8)
    model = random_model(normalization=mm.datasets.fit_normalization(x) if normalized else None)
    ready = mm.deploy(model)
    assert_same(ready.outputs(x), model.outputs(x))
    assert_same(ready.outputs(x.reshape(12, 2, 3)), model.outputs(x))
    assert_same(ready.outputs(x.astype(np.float64).tolist()), model.outputs(x))
    assert x.dtype == np.uint8


def test_targets_are_turned_back_into_their_units(kind):
    targets = mm.Normalization(np.array([10, -20, 30], np.float32), np.array([0.5, 2, 4], np.float32))
    model = random_model("tanh", loss=losses.huber(0.5), targets=targets)
    ready = mm.deploy(model)
    plain = mm.deploy(replace(model, targets=None)).outputs(rows())
    assert_same(ready.outputs(rows()), model.outputs(rows()))
    np.testing.assert_allclose(ready.outputs(rows()), plain / targets.scale + targets.shift, rtol=1e-5)
    np.testing.assert_array_equal(ready.predict(rows()), ready.outputs(rows()))


def test_predictions_have_the_names_of_the_classes(kind):
    model = random_model(classes=("ant", "bee", "cat"), seed=3)
    x = 10 * rows(200)
    found = mm.deploy(model).predict(x)
    np.testing.assert_array_equal(found, model.predict(x))
    assert set(found.tolist()) == {"ant", "bee", "cat"}
    binary = random_model(loss=losses.binary_cross_entropy)
    np.testing.assert_array_equal(mm.deploy(binary).predict(rows(50)), binary.outputs(rows(50)) > 0)


@pytest.mark.parametrize("sizes", [(FEATURES, 3), (FEATURES, 8, 1)])
def test_networks_of_one_layer_or_one_output(kind, sizes):
    model = random_model(sizes=sizes, loss=losses.mean_squared_error)
    assert_same(mm.deploy(model).outputs(rows()), model.outputs(rows()))


def test_a_network_without_a_way_gives_its_constants(kind):
    model = random_model()
    model.params[2].weight[:] = 0
    ready = mm.deploy(model)
    assert ready.model.network.layer_sizes == (1, 1, 1, 3)
    assert_same(ready.outputs(rows()), model.outputs(rows()))


def test_a_model_that_was_pruned_and_quantized_is_ready_too(kind, splits):
    pruned = mm.prune(random_model(sizes=(4, 9, 3), density=1.0), splits, seed=0, sparsity=0.5, epochs=1)
    small = mm.quantize(pruned, splits, seed=0, epochs=0)
    x = splits.test.x
    assert_same(mm.deploy(small).outputs(x), small.outputs(x))
    alone = mm.shrink(small)
    np.testing.assert_array_equal(mm.deploy(alone).outputs(x), mm.deploy(small).outputs(x))


# What is refused


def test_a_population_is_refused():
    several = random_model().members([0, 0])
    with pytest.raises(
        ValueError, match=r"deploy: this is a population; take one of them with \.member\(i\) or \.best"
    ):
        mm.deploy(several)
    assert_same(mm.deploy(several.member(1)).outputs(rows()), random_model().outputs(rows()))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None])
def test_a_batch_of_no_rows_is_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size: expected an integer of at least 1"):
        mm.deploy(random_model(), batch_size=batch_size)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (rows()[:, :5], r"x: expected \(n, 6\), got \(7, 5\)"),
        (np.hstack([rows(), rows()]), r"x: expected \(n, 6\), got \(7, 12\)"),
        (rows()[0], "x: expected a non-empty numeric array"),
        (rows()[:0], "x: expected a non-empty numeric array"),
        (np.full((2, FEATURES), np.nan), "x: NaN, infinite"),
        (np.full((2, FEATURES), 1e39), "x: NaN, infinite or beyond float32"),
        ([["a"] * FEATURES], "x: expected a non-empty numeric array"),
        ([[1.0, 2.0], [3.0]], "x: expected what NumPy reads as an array"),
    ],
)
@pytest.mark.parametrize("call", ["outputs", "predict"])
def test_rows_that_do_not_fit_are_refused(monkeypatch, x, message, call):
    force(monkeypatch, "dense")
    with pytest.raises(ValueError, match=message):
        getattr(mm.deploy(random_model()), call)(x)
