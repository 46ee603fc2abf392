"""A network: its description, how parameters begin, what it computes."""

import math

import numpy as np
import pytest

import minimodel as mm
from minimodel import tree

NETWORK = mm.Network((5, 7, 3), "tanh")


def draw(network, population=None, seed=0):
    """float64 parameters with biases that are not 0."""
    rng = np.random.default_rng(seed)
    lead = () if population is None else (population,)
    return tuple(
        mm.Layer(rng.normal(size=(*lead, inputs, outputs)), rng.normal(size=(*lead, outputs)))
        for inputs, outputs in network.shapes
    )


def by_loops(params, x, activation):
    """Every output as the sum it is, one number at a time."""
    rows = []
    for row in x:
        values = [float(v) for v in row]
        for i, (weight, bias) in enumerate(params):
            sums = [
                sum(values[k] * float(weight[k, j]) for k in range(weight.shape[0])) + float(bias[j])
                for j in range(weight.shape[1])
            ]
            values = sums if i == len(params) - 1 else [activation(z) for z in sums]
        rows.append(values)
    return np.array(rows)


def move(backend, params):
    return tuple(mm.Layer(*(backend.asarray(leaf, backend.xp.float32) for leaf in layer)) for layer in params)


def test_he_weights_have_their_spread(backend):
    layer = mm.Network((300, 200)).init(mm.random.key(0), backend=backend)[0]
    weight, bias = backend.to_numpy(layer)
    assert weight.std() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert abs(weight.mean()) < 4 * math.sqrt(2 / 300) / math.sqrt(weight.size)
    assert np.abs(weight).max() > 3.5 * math.sqrt(2 / 300)  # normal, not uniform
    np.testing.assert_array_equal(bias, 0)


def test_glorot_weights_fill_their_range(backend):
    layer = mm.Network((300, 200), initializer="glorot").init(mm.random.key(0), backend=backend)[0]
    weight, bias = backend.to_numpy(layer)
    limit = math.sqrt(6 / 500)
    assert np.abs(weight).max() <= limit * (1 + 1e-6)
    assert weight.max() > 0.999 * limit
    assert weight.min() < -0.999 * limit
    assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    np.testing.assert_array_equal(bias, 0)


@pytest.mark.parametrize("initializer", ["he", "glorot"])
def test_every_backend_begins_with_the_same_parameters(initializer, backend):
    network = mm.Network((40, 30, 10), initializer=initializer)
    key = mm.random.key(3)
    found, expected = backend.to_numpy(network.init(key, backend=backend)), network.init(key)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.weight.dtype == ours.bias.dtype == np.float32
        np.testing.assert_array_max_ulp(ours.weight, theirs.weight, maxulp=4)
        np.testing.assert_array_equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("initializer", ["he", "glorot"])
def test_a_population_of_keys_begins_as_its_members(initializer, backend):
    network = mm.Network((5, 4, 3), initializer=initializer)
    together = backend.to_numpy(network.init(mm.random.key([4, 5, 6]), backend=backend))
    for i, seed in enumerate((4, 5, 6)):
        alone = backend.to_numpy(network.init(mm.random.key(seed), backend=backend))
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(many.weight[i], one.weight)
            np.testing.assert_array_equal(many.bias[i], one.bias)


def test_layers_and_seeds_draw_different_numbers():
    network = mm.Network((6, 6, 6))
    first, second = network.init(mm.random.key(0))
    other = network.init(mm.random.key(1))[0]
    assert not np.array_equal(first.weight, second.weight)
    assert not np.array_equal(first.weight, other.weight)


def test_apply_is_the_plain_loop(backend, population):
    params = draw(NETWORK, population)
    x = np.random.default_rng(1).normal(size=(4, 5))
    found = backend.to_numpy(NETWORK.apply(move(backend, params), backend.asarray(x, backend.xp.float32)))
    if population is None:
        np.testing.assert_allclose(found, by_loops(params, x, math.tanh), rtol=1e-5, atol=1e-5)
        return
    assert found.shape == (population, 4, 3)
    for i in range(population):
        member = [(weight[i], bias[i]) for weight, bias in params]
        np.testing.assert_allclose(found[i], by_loops(member, x, math.tanh), rtol=1e-5, atol=1e-5)


def test_each_member_may_have_its_own_inputs(backend):
    params = draw(NETWORK, 3)
    x = np.random.default_rng(1).normal(size=(3, 4, 5))
    found = backend.to_numpy(NETWORK.apply(move(backend, params), backend.asarray(x, backend.xp.float32)))
    for i in range(3):
        member = [(weight[i], bias[i]) for weight, bias in params]
        np.testing.assert_allclose(found[i], by_loops(member, x[i], math.tanh), rtol=1e-5, atol=1e-5)


def test_one_layer_has_no_activation():
    network = mm.Network((5, 3), "relu")
    params, x = draw(network), np.random.default_rng(1).normal(size=(4, 5))
    found = network.apply(params, x)
    assert (found < 0).any()
    np.testing.assert_allclose(found, by_loops(params, x, None), rtol=1e-12)


def test_apply_consumes_nothing():
    params, x = draw(NETWORK), np.random.default_rng(1).normal(size=(4, 5))
    kept_x = x.copy()
    NETWORK.apply(params, x)
    np.testing.assert_array_equal(x, kept_x)
    for ours, fresh in zip(params, draw(NETWORK), strict=True):
        np.testing.assert_array_equal(ours.weight, fresh.weight)
        np.testing.assert_array_equal(ours.bias, fresh.bias)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (4, 0), (0, 5), ()])
def test_inputs_that_do_not_fit_are_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"x: expected \(…, batch, 5\).* got") as caught:
        NETWORK.apply(draw(NETWORK), np.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [mm.Network((5, 6, 3)), mm.Network((5, 3)), mm.Network((5, 7, 3, 3)), mm.Network((7, 5, 3))],
    ids=str,
)
def test_parameters_of_another_network_are_refused(other):
    with pytest.raises(ValueError, match="params: expected weights of shapes"):
        NETWORK.apply(draw(other), np.zeros((4, 5)))


def test_a_bias_that_does_not_fit_its_weight_is_refused():
    params = tuple(mm.Layer(layer.weight, layer.bias[:1]) for layer in draw(NETWORK))
    with pytest.raises(ValueError, match="params"):
        NETWORK.apply(params, np.zeros((4, 5)))


def test_arrays_of_two_backends_do_not_mix():
    strict = mm.backends.load("array_api:array_api_strict")
    with pytest.raises((TypeError, ValueError)):
        NETWORK.apply(draw(NETWORK), strict.asarray(np.zeros((4, 5))))


@pytest.mark.parametrize("sizes", [(), 5, (4,), (4, 0), (4, -1, 2), (4, 2.5), (4, "3"), (None, 2)])
def test_layer_sizes_must_be_two_positive_integers_or_more(sizes):
    with pytest.raises(ValueError, match="layer_sizes"):
        mm.Network(sizes)


def test_unknown_names_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"activation: expected one of .*relu.*got 'swish'"):
        mm.Network((2, 2), "swish")
    with pytest.raises(ValueError, match="initializer: expected one of he, glorot, got 'zeros'"):
        mm.Network((2, 2), initializer="zeros")


def test_equal_networks_are_one_static_argument():
    """Lists, NumPy integers and tuples describe the same network."""
    one, same = mm.Network((4, 3, 2)), mm.Network([np.int64(4), 3, np.int32(2)])
    assert one == same
    assert hash(one) == hash(same)
    assert {type(n) for n in same.layer_sizes} == {int}
    others = (mm.Network((4, 2)), mm.Network((4, 3, 2), "tanh"), mm.Network((4, 3, 2), initializer="glorot"))
    assert len({one, same, *others}) == 4


def test_a_network_cannot_be_changed():
    with pytest.raises(AttributeError):
        NETWORK.activation = "relu"


@pytest.mark.parametrize(("sizes", "parameters"), [((5, 3), 18), ((5, 7, 3), 66), ((64, 32, 10), 2410)])
def test_parameters_counts_weights_and_biases(sizes, parameters):
    network = mm.Network(sizes)
    assert network.parameters == parameters
    assert sum(leaf.size for leaf in tree.leaves(network.init(mm.random.key(0)))) == parameters
    assert sum(leaf.size for leaf in tree.leaves(network.init(mm.random.key([0, 1])))) == 2 * parameters
