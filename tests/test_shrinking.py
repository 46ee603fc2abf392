"""A real shrink: the same outputs within rounding, from arrays of what a search through the graph says is of use."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, model, optimizers, qarray, storage, tree
from minimodel.activations import ACTIVATIONS
from minimodel.compress.calibration import calibrate
from minimodel.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:prune. no kept weight")
U = 2.0**-24  # the unit roundoff of float32
STEEPEST = {"silu": 1.1, "gelu": 1.13}  # the greatest slope; of the others it is at most 1


def random_model(sizes=(5, 6, 4, 3), activation="relu", population=None, density=1.0, seed=0, **fields):
    """Weights of which masks leave a part, and biases that are not 0."""
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    network, params, masks = mm.Network(sizes, activation), [], []
    for shape in network.shapes:
        masks.append(rng.uniform(size=(*lead, *shape)) < density)
        weight = np.where(masks[-1], rng.normal(size=(*lead, *shape)), 0)
        params.append(mm.Layer(weight.astype(np.float32), rng.normal(size=(*lead, shape[1])).astype(np.float32)))
    loss = fields.pop("loss", losses.softmax_cross_entropy)
    return Model(network, tuple(params), loss, masks=tuple(masks), **fields)


def in_integers(given_model, bits=4, **options):
    """The model with integers for its weights."""
    quantized = tuple(
        qarray.quantize(layer.weight, calibrate(layer.weight, bits, **options)) for layer in given_model.params
    )
    quantized = tuple(  # at 1 bit 0 has no sign
        q._replace(values=np.where(layer.weight != 0, q.values, qarray.spread(q.zero_point, layer.weight.shape[-2])))
        for q, layer in zip(quantized, given_model.params, strict=True)
    )
    params = tuple(
        mm.Layer(qarray.dequantize(q), layer.bias) for q, layer in zip(quantized, given_model.params, strict=True)
    )
    return replace(given_model, params=params, quantized=quantized, bits=bits)


def live_units(given_model):
    """The units of each layer on a way from an input to an output of some member, by depth-first search."""
    sizes, found = given_model.network.layer_sizes, set()
    members = (
        [given_model]
        if given_model.population is None
        else map(given_model.member, range(len(given_model.params[0].bias)))
    )
    last = len(sizes) - 1
    for one in members:
        ahead, back = {}, {}
        for i, layer in enumerate(one.params):
            for row, column in np.argwhere(layer.weight).tolist():
                ahead.setdefault((i, row), []).append((i + 1, column))
                back.setdefault((i + 1, column), []).append((i, row))
        found |= walk(ahead, [(0, j) for j in range(sizes[0])]) & walk(back, [(last, j) for j in range(sizes[-1])])
    units = [sorted(j for level, j in found if level == i) or [0] for i in range(last)]
    return [*units, list(range(sizes[-1]))]


def walk(edges, starts):
    seen, todo = set(starts), list(starts)
    while todo:
        for unit in edges.get(todo.pop(), []):
            if unit not in seen:
                seen.add(unit)
                todo.append(unit)
    return seen


def reference(given_model, x):
    """The outputs in float64, and how far from them a computation in float32 may be, whatever its order.

    With n products in a sum, |ẑ − z| ≤ (γ(|a| + E)|W| + γ|b|) + E|W|, γ = (n + 2)u/(1 − (n + 2)u); then f passes the
    error on with its greatest slope, and adds at most 16u(|z| + 1) of its own.
    """
    a = given_model.normalization(x) if given_model.normalization else x.astype(np.float32)
    a, error = a.astype(np.float64), np.zeros(a.shape)
    value, slope = given_model.network.functions.value, STEEPEST.get(given_model.network.activation, 1)
    for i, layer in enumerate(given_model.params):
        if i > 0:
            error = slope * error + 16 * U * (np.abs(a) + error + 1)
            a = value(a)
        weight, bias = layer.weight.astype(np.float64), layer.bias.astype(np.float64)[..., None, :]
        size, n = np.abs(weight), (weight.shape[-2] + 2) * U
        error = n / (1 - n) * ((np.abs(a) + error) @ size + np.abs(bias)) + error @ size
        a = a @ weight + bias
    if given_model.targets:
        a, error = given_model.targets.inverse(a), error / given_model.targets.scale
        error = error + 4 * U * (np.abs(a) + np.abs(given_model.targets.shift))
    return a, error


def assert_same_outputs(small, whole, x):
    """Both are within the bound of the same exact outputs."""
    exact, bound = reference(whole, x)
    for found in (whole.outputs(x), small.outputs(x)):
        assert found.shape == exact.shape
        assert (np.abs(found - exact) <= bound).all()


def assert_consistent(given_model):
    """Shapes are those of the network; what the masks removed is 0; the integers stand for the weights."""
    lead = () if given_model.population is None else (given_model.population,)
    for i, (shape, layer) in enumerate(zip(given_model.network.shapes, given_model.params, strict=True)):
        assert (layer.weight.shape, layer.bias.shape) == ((*lead, *shape), (*lead, shape[1]))
        assert layer.weight.dtype == layer.bias.dtype == np.float32
        if given_model.masks:
            assert given_model.masks[i].shape[-2:] == shape and given_model.masks[i].dtype == bool
            assert not layer.weight[~np.broadcast_to(given_model.masks[i], layer.weight.shape)].any()
        if given_model.quantized:
            np.testing.assert_array_equal(qarray.dequantize(given_model.quantized[i]), layer.weight)
    assert given_model.inputs is None or given_model.inputs.sum() == given_model.network.layer_sizes[0]


def assert_same_bits(one, other):
    """The same numbers everywhere, and the same file."""
    leaves = [tree.leaves(m.params, m.masks, m.quantized, m.normalization, m.targets, m.inputs) for m in (one, other)]
    for a, b in zip(*leaves, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
    assert one.dumps() == other.dumps()


SIZES = st.lists(st.integers(1, 7), min_size=3, max_size=5).map(tuple)
DENSITY = st.sampled_from([0.0, 0.15, 0.3, 0.5, 0.8, 1.0])
SEED = st.integers(0, 2**16)
POPULATION = st.sampled_from([None, None, 3])


def rows(count, features, seed=0):
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(sizes=SIZES, population=POPULATION, density=DENSITY, seed=SEED)
def test_the_outputs_are_the_same(activation, sizes, population, density, seed):
    whole = random_model(sizes, activation, population, density, seed)
    small, expected = mm.shrink(whole), live_units(whole)
    assert small.network == replace(whole.network, layer_sizes=tuple(map(len, expected)))
    assert_consistent(small)
    assert_same_outputs(small, whole, rows(6, sizes[0], seed))
    for before, after, (above, below) in zip(whole.params, small.params, pairwise(expected), strict=True):
        np.testing.assert_array_equal(after.weight, before.weight[..., above, :][..., below])
    for before, after, (above, below) in zip(whole.masks, small.masks, pairwise(expected), strict=True):
        np.testing.assert_array_equal(after, before[..., above, :][..., below])
    marked = np.ones(sizes[0], bool) if small.inputs is None else small.inputs
    assert np.flatnonzero(marked).tolist() == expected[0]
    assert small.features == whole.features == sizes[0]


@given(sizes=SIZES, population=POPULATION, density=DENSITY, seed=SEED)
def test_shrinking_again_changes_nothing(sizes, population, density, seed):
    once = mm.shrink(random_model(sizes, "tanh", population, density, seed))
    assert_same_bits(mm.shrink(once), once)


@given(
    sizes=SIZES,
    population=POPULATION,
    density=DENSITY,
    seed=SEED,
    bits=st.integers(1, 8),
    scheme=st.sampled_from(qarray.SCHEMES),
    granularity=st.sampled_from(["channel", "tensor", 1, 2, 4]),
)
def test_integers_shrink_with_their_weights(sizes, population, density, seed, bits, scheme, granularity):
    model_of_floats = random_model(sizes, "gelu", population, density, seed)
    whole = in_integers(model_of_floats, bits, scheme=scheme, granularity=granularity)
    small, expected = mm.shrink(whole), live_units(whole)
    assert small.network.layer_sizes == tuple(map(len, expected)) and small.bits == bits
    assert_consistent(small)
    assert_same_outputs(small, whole, rows(6, sizes[0], seed))
    for before, after, (above, below) in zip(whole.quantized, small.quantized, pairwise(expected), strict=True):
        np.testing.assert_array_equal(after.values, before.values[..., above, :][..., below])
        for old, new in zip(before[1:3], after[1:3], strict=True):  # of every weight that is left
            old, new = (qarray.spread(leaf, q.values.shape[-2]) for leaf, q in ((old, before), (new, after)))
            shape = before.values.shape
            old, new = np.broadcast_to(old, shape), np.broadcast_to(new, after.values.shape)
            np.testing.assert_array_equal(new, old[..., above, :][..., below])
    assert_same_bits(model.loads(small.dumps()), small)


def fixed(weights, biases, activation="identity", **fields):
    params = tuple(
        mm.Layer(np.array(weight, np.float32), np.array(bias, np.float32))
        for weight, bias in zip(weights, biases, strict=True)
    )
    network = mm.Network((len(weights[0]), *(len(bias) for bias in biases)), activation)
    return Model(network, params, losses.mean_squared_error, **fields)


CHAIN = fixed(
    # the second input feeds a neuron that feeds nothing, the third feeds nothing; the second neuron is fed by nothing
    [[[2, 0, 0], [0, 0, 5], [0, 0, 0]], [[1, 0], [3, 7], [0, 0]], [[1, 1], [10, 1]]],
    [[1, 4, 9], [0.5, -1], [0, 0.25]],
    "relu",
)


def test_a_constant_neuron_goes_into_the_biases():
    """The second neuron gives max(4, 0): 3·4 to the first of the next layer, 7·4 to the second, which nothing else
    feeds, gives 28 − 1 = 27 in its turn, and 10·27 and 1·27 to the outputs."""
    small = mm.shrink(CHAIN)
    assert small.network.layer_sizes == (1, 1, 1, 2)
    assert [layer.weight.tolist() for layer in small.params] == [[[2]], [[1]], [[1, 1]]]
    assert [layer.bias.tolist() for layer in small.params] == [[1], [12.5], [270, 27.25]]
    assert small.inputs.tolist() == [True, False, False] and small.features == 3
    x = np.array([[3, 100, 1000], [-3, 5, 5]], np.float32)
    np.testing.assert_array_equal(small.outputs(x), [[7 + 12.5 + 270, 7 + 12.5 + 27.25], [282.5, 39.75]])
    np.testing.assert_array_equal(CHAIN.outputs(x), small.outputs(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_constant_is_f_of_the_bias(activation):
    """One live way 0 → 0 → 0 and a neuron that only its bias −0.75 feeds."""
    whole = fixed([[[1, 0]], [[1], [2]]], [[0, -0.75], [0.5]], activation)
    value = ACTIVATIONS[activation].value(np.array(-0.75, np.float64))
    small = mm.shrink(whole)
    assert small.network.layer_sizes == (1, 1, 1) and small.inputs is None
    np.testing.assert_allclose(small.params[1].bias, [0.5 + 2 * value], rtol=1e-5)


def test_members_keep_what_any_of_them_needs():
    """The second neuron is of use to the second member only: to the first it stays a constant of its own."""
    whole = fixed([[[[1, 0]], [[1, 1]]], [[[1], [2]], [[1], [1]]]], [[[0, 3], [0, 0]], [[1], [0]]])
    whole = replace(whole, network=mm.Network((1, 2, 1), "identity"))
    small = mm.shrink(whole)
    assert_same_bits(small, replace(whole, inputs=None))
    none = replace(whole, params=(mm.Layer(whole.params[0].weight * [1, 0], whole.params[0].bias), whole.params[1]))
    small = mm.shrink(replace(none, params=tree.map(lambda leaf: leaf.astype(np.float32), none.params)))
    assert small.network.layer_sizes == (1, 1, 1)
    assert small.params[1].bias.tolist() == [[1 + 2 * 3], [0]]


def test_a_constant_passes_through_a_unit_that_stays():
    """2 comes from the neuron of the first layer, which only the second member needs, and makes 3·2 + 1 in a neuron
    that nobody needs: its 7 goes to the output of the first member, 1 to that of the second, where it has no input."""
    weights = [[[[0]], [[1]]], [[[0, 3]], [[1, 0]]], [[[0], [1]], [[1], [1]]]]
    whole = fixed(weights, [[[2], [2]], [[5, 1], [5, 1]], [[0], [0]]])
    whole = replace(whole, network=mm.Network((1, 1, 2, 1), "identity"))
    small, x = mm.shrink(whole), np.array([[10]], np.float32)
    assert whole.outputs(x).tolist() == [[[7]], [[18]]]
    assert small.network.layer_sizes == (1, 1, 1, 1)
    assert small.params[2].bias.tolist() == [[7], [1]]
    assert small.outputs(x).tolist() == [[[7]], [[18]]]


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_dead_layer_keeps_one_unit_of_each(dead):
    """No way leads through: the outputs are constant, and every layer keeps its first unit."""
    whole = random_model((4, 5, 6, 3), "tanh")
    whole.params[dead].weight[:] = 0
    small, x = mm.shrink(whole), rows(7, 4)
    assert small.network.layer_sizes == (1, 1, 1, 3)
    assert small.inputs.tolist() == [True, False, False, False]
    assert_same_outputs(small, whole, x)
    assert (np.ptp(small.outputs(x), axis=0) == 0).all()
    assert_same_bits(mm.shrink(small), small)
    assert_same_bits(model.loads(small.dumps()), small)


def test_without_hidden_layers_only_inputs_go():
    whole = random_model((5, 3), density=1.0)
    whole.params[0].weight[[0, 3]] = 0
    small = mm.shrink(whole)
    assert small.network.layer_sizes == (3, 3)
    assert small.inputs.tolist() == [False, True, True, False, True]
    assert_same_outputs(small, whole, rows(9, 5))


def dead_inputs(**fields):
    """A model of 5 features, of which the second and the fourth feed nothing."""
    whole = random_model(**fields)
    whole.params[0].weight[..., [1, 3], :] = 0
    return whole


def test_dead_inputs_leave_and_raw_data_stay():
    """A feature that is not looked at may hold anything finite; another number of features is refused."""
    x = rows(8, 5)
    whole = dead_inputs(normalization=mm.datasets.fit_normalization(x))
    small = mm.shrink(whole)
    assert small.inputs.tolist() == [True, False, True, False, True]
    assert (small.features, small.network.layer_sizes[0]) == (5, 3)
    assert_same_outputs(small, whole, x)
    other = x.copy()
    other[:, [1, 3]] = 1e30
    np.testing.assert_array_equal(small.outputs(other), small.outputs(x))
    np.testing.assert_array_equal(small.predict(x), whole.predict(x))
    for wrong in (x[:, :3], x[:, :4], np.hstack([x, x])):
        with pytest.raises(ValueError, match=r"x: expected \(n, 5\)"):
            small.outputs(wrong)
    y = np.arange(8) % 3
    for a, b in zip(small.evaluate(mm.Dataset(x, y)), whole.evaluate(mm.Dataset(x, y)), strict=True):
        assert a is b is None or a == pytest.approx(b, rel=1e-5)
    with pytest.raises(ValueError, match=r"the network takes \(n, 5\), got \(8, 3\)"):
        small.evaluate(mm.Dataset(x[:, :3], y))


def test_shrinking_a_shrunk_model_counts_features_from_the_first():
    once = mm.shrink(dead_inputs())
    once.params[0].weight[1] = 0  # what was the third feature
    twice, x = mm.shrink(once), rows(8, 5)
    assert once.inputs.tolist() == [True, False, True, False, True]
    assert twice.inputs.tolist() == [True, False, False, False, True]
    np.testing.assert_allclose(twice.outputs(x), once.outputs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_a_normalization_of_each_feature_is_cut_and_one_for_all_stays(size):
    fitted = mm.Normalization(np.arange(size, dtype=np.float32), np.arange(1, size + 1, dtype=np.float32))
    whole = dead_inputs(normalization=fitted)
    small = mm.shrink(whole)
    kept = [0] if size == 1 else [0, 2, 4]
    assert [part.tolist() for part in small.normalization] == [part[kept].tolist() for part in fitted]
    assert_same_outputs(small, whole, rows(8, 5))
    assert_same_bits(model.loads(small.dumps()), small)


def test_pixels_and_images_are_taken_raw():
    x = np.random.default_rng(0).integers(0, 256, size=(9, 5), dtype=np.uint8)
    whole = dead_inputs(normalization=mm.datasets.fit_normalization(x))
    small = mm.shrink(whole)
    assert_same_outputs(small, whole, x)
    np.testing.assert_array_equal(small.outputs(x.reshape(9, 1, 5)), small.outputs(x))


def test_what_is_known_of_the_data_stays_and_the_state_goes():
    targets = mm.Normalization(np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32))
    whole = dead_inputs(loss=losses.huber(2.0), targets=targets, split_seed=7, history={"loss": np.ones(3)}, state=(1,))
    small = mm.shrink(whole)
    assert (small.loss, small.targets, small.split_seed, small.bits) == (whole.loss, targets, 7, None)
    assert small.state is None and small.history is whole.history
    assert whole.inputs is None and whole.network.layer_sizes == (5, 6, 4, 3)  # the model given is as it was
    assert_same_outputs(small, whole, rows(8, 5))
    named = replace(dead_inputs(), classes=("a", "b", "c"))
    np.testing.assert_array_equal(mm.shrink(named).predict(rows(8, 5)), named.predict(rows(8, 5)))


def test_masks_without_the_population_shrink_too():
    whole = random_model(population=3)
    masks = random_model(density=0.3, seed=5).masks
    params = tuple(mm.Layer(w * mask, b) for (w, b), mask in zip(whole.params, masks, strict=True))
    whole = replace(whole, params=params, masks=masks)
    small = mm.shrink(whole)
    assert all(mask.ndim == 2 for mask in small.masks)
    assert_consistent(small)
    assert_same_outputs(small, whole, rows(8, 5))


# The file


SMALL = mm.shrink(in_integers(dead_inputs(density=0.5, normalization=mm.datasets.fit_normalization(rows(9, 5)))))


@pytest.mark.parametrize("population", [None, 3])
@pytest.mark.parametrize("bits", [None, 4])
def test_a_shrunk_model_comes_back_bit_for_bit(population, bits, tmp_path):
    small = mm.shrink(dead_inputs(population=population, density=0.5))
    small = in_integers(small, bits) if bits else small
    small.save(tmp_path / "m.safetensors")
    found, x = mm.load(tmp_path / "m.safetensors"), rows(8, 5)
    assert_same_bits(found, small)
    assert found.inputs.dtype == bool and found.features == 5
    np.testing.assert_array_equal(found.outputs(x), small.outputs(x))


@given(st.integers(1, 40), SEED)
def test_any_inputs_come_back(features, seed):
    inputs = np.random.default_rng(seed).uniform(size=features) < 0.5
    inputs[seed % features] = True
    given_model = replace(random_model((int(inputs.sum()), 2)), inputs=inputs)
    found = model.loads(given_model.dumps())
    np.testing.assert_array_equal(found.inputs, inputs)
    assert storage.loads(given_model.dumps())[1]["inputs"].size == -(-features // 8)


def parts(given_model):
    """Header and tensors, as ``storage.dumps`` takes them."""
    header, tensors = storage.loads(given_model.dumps())
    return {key: value for key, value in header.items() if key not in ("sha256", "version")}, tensors


@pytest.mark.parametrize(
    ("features", "inputs"),
    [
        (5, None),
        (None, "as it was"),
        (5, np.packbits([1, 1, 1, 1, 0])),  # four of them
        (5, np.packbits([1, 0, 1, 0, 0])),
        (5, np.zeros(1, np.uint8)),
        (4, "as it was"),
        (0, np.zeros(0, np.uint8)),
        (-5, "as it was"),
        (9, "as it was"),
        (5, np.zeros(2, np.uint8)),
        (5, np.packbits([1, 0, 1, 0, 1])[None]),
        (5, np.packbits([1, 0, 1, 0, 1]).astype(np.int8)),
        (5, np.array([1, 0, 1, 0, 1], bool)),
        (5, np.array([0.5], np.float32)),
        (5.0, "as it was"),
        ("5", "as it was"),
        (True, "as it was"),
        ([5], "as it was"),
        (10**12, "as it was"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(features, inputs):
    header, tensors = parts(SMALL)
    assert header["features"] == 5 and tensors["inputs"].tolist() == np.packbits([1, 0, 1, 0, 1]).tolist()
    header["features"] = features
    if inputs is None:
        del tensors["inputs"]
    elif isinstance(inputs, np.ndarray):
        tensors["inputs"] = inputs
    header = {key: value for key, value in header.items() if value is not None}
    with pytest.raises(ValueError, match="inputs: "):
        model.loads(storage.dumps(header, tensors))


def test_every_flipped_bit_of_the_inputs_is_refused():
    """By the digest; the parts as they are, written anew, are the file."""
    header, tensors = parts(SMALL)
    assert storage.dumps(header, tensors) == SMALL.dumps()
    raw = bytearray(SMALL.dumps())
    described = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    start, end = (8 + int.from_bytes(raw[:8], "little") + at for at in described["inputs"]["data_offsets"])
    assert end == start + 1
    for bit in range(8):
        raw[start] ^= 1 << bit
        with pytest.raises(ValueError, match="SHA-256"):
            model.loads(bytes(raw))
        raw[start] ^= 1 << bit


# With what comes before and after it


@pytest.fixture(scope="module")
def data():
    """Six features, of which the labels depend on two."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 6)).astype(np.float32)
    return mm.datasets.split(x, (x[:, [1, 4]] @ rng.normal(size=(2, 3))).argmax(1), seed=0)


@pytest.fixture(scope="module")
def shrunk(data):
    """Trained, pruned by features and neurons, shrunk: by the size of the population."""

    def make(population):
        found = mm.gradient_descent(
            mm.Network((6, 8, 3)), data, seed=0, epochs=8, optimizer=optimizers.adam(0.03), population=population
        )
        found = mm.prune(found, data, seed=0, pattern=mm.patterns.rows(), allocation=[0.5, 0.5], epochs=1)
        return found, mm.shrink(found)

    return {population: make(population) for population in (None, 3)}


def test_a_pruned_network_shrinks_to_what_is_left(data, shrunk):
    pruned, small = shrunk[None]
    assert small.network.layer_sizes == (3, 4, 3) and small.features == 6
    assert small.evaluate(data.test).accuracy == pruned.evaluate(data.test).accuracy
    assert small.evaluate(data.test).loss == pytest.approx(pruned.evaluate(data.test).loss, rel=1e-5)
    assert small.nbytes < pruned.nbytes


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.5, "epochs": 2}, {"sparsity": 0.5, "score": "surgeon", "epochs": 0}]
)
def test_a_shrunk_model_is_pruned_with_the_same_data(backend, population, data, shrunk, options):
    """It looks at its features alone: the run is that of those columns."""
    _, small = shrunk[population]
    found = mm.prune(small, data, seed=0, backend=backend, **options)
    np.testing.assert_array_equal(found.inputs, small.inputs)
    cut = {
        name: mm.Dataset(part.x[:, small.inputs], part.y)
        for name, part in vars(data).items()
        if name in ("train", "validation", "test")
    }
    alone = mm.prune(replace(small, inputs=None), replace(data, **cut), seed=0, backend=backend, **options)
    assert_same_bits(replace(found, inputs=None), alone)
    assert found.history["validation_loss"][0] == pytest.approx(alone.history["validation_loss"][0])
    again = mm.shrink(found)
    np.testing.assert_allclose(again.outputs(data.test.x), found.outputs(data.test.x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", qarray.SCHEMES)
@pytest.mark.parametrize("granularity", ["channel", "tensor", 2])
def test_prune_shrink_quantize_evaluate(population, data, shrunk, scheme, granularity):
    _, small = shrunk[population]
    options = {"bits": 6, "scheme": scheme, "granularity": granularity}
    found = mm.quantize(small, data, seed=0, epochs=1, **options)
    assert_consistent(found)
    np.testing.assert_array_equal(found.inputs, small.inputs)
    gap = np.abs(np.asarray(found.evaluate(data.test).accuracy) - small.evaluate(data.test).accuracy)
    assert gap.max() <= 0.1
    first = mm.shrink(mm.quantize(shrunk[population][0], data, seed=0, epochs=0, **options))
    assert_consistent(first)
    assert first.network == small.network
    assert_same_bits(model.loads(found.dumps()), found)


def test_a_shrunk_model_teaches(data, shrunk):
    """It is asked with raw data, whatever the student looks at."""
    _, small = shrunk[None]
    teacher = mm.Teacher(small, weight=1.0)
    np.testing.assert_allclose(teacher.targets(data.train.x), losses.softmax(small.outputs(data.train.x)), rtol=1e-6)
    options = {"seed": 0, "epochs": 2, "optimizer": optimizers.sgd(0.1)}
    found = mm.gradient_descent(mm.Network((6, 4, 3)), data, teacher=teacher, **options)
    unshrunk = mm.gradient_descent(mm.Network((6, 4, 3)), data, teacher=mm.Teacher(shrunk[None][0], 1.0), **options)
    for a, b in zip(tree.leaves(found.params), tree.leaves(unshrunk.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    student = mm.prune(small, data, seed=0, sparsity=0.3, epochs=1, teacher=teacher)
    assert student.features == 6 and student.network == small.network


def test_a_network_of_some_features_does_not_take_all_of_them(data, shrunk):
    _, small = shrunk[None]
    with pytest.raises(ValueError, match=r"train\.x: the network takes \(n, 3\), got \(\d+, 6\)"):
        mm.gradient_descent(small.network, data, seed=0, epochs=1, params=small.params)
    thin = replace(data, train=mm.Dataset(data.train.x[:, small.inputs], data.train.y))
    with pytest.raises(ValueError, match=r"train\.x: the network takes \(n, 6\), got \(\d+, 3\)"):
        mm.prune(small, thin, seed=0, sparsity=0.5, epochs=0)


@pytest.mark.parametrize("algorithm", [mm.prune, mm.quantize])
def test_a_shrunk_model_takes_no_stream(data, shrunk, algorithm):
    stream = mm.stream_batches([data.train], data.validation, data.test)
    options = {"sparsity": 0.5} if algorithm is mm.prune else {}
    with pytest.raises(
        ValueError, match=r"data: .*shrunk to some of the features takes no stream; load them as Splits"
    ):
        algorithm(shrunk[None][1], stream, seed=0, epochs=0, **options)
    whole = replace(shrunk[None][0], normalization=stream.normalization)
    assert algorithm(whole, stream, seed=0, epochs=0, **options).features == 6


# Members, summaries, texts


def test_members_are_those_of_their_numbers():
    whole = in_integers(random_model(population=4, density=0.5, history={"loss": np.ones((2, 4))}, state=(1,)))
    found, x = whole.members([2, 0, 2]), rows(8, 5)
    assert found.population == 3 and found.state is None and found.history == {}
    np.testing.assert_array_equal(found.outputs(x), whole.outputs(x)[[2, 0, 2]])
    assert_consistent(found)
    for i, number in enumerate([2, 0, 2]):
        assert_same_bits(found.member(i), whole.member(number))
    assert_same_bits(whole.members(np.arange(4)), whole)
    assert_same_bits(mm.shrink(whole).members([1]), replace(mm.shrink(whole), **vars_of(mm.shrink(whole).member(1))))


def vars_of(one):
    """The arrays of one network with an axis of one member in front."""
    return {name: tree.map(lambda leaf: leaf[None], getattr(one, name)) for name in ("params", "masks", "quantized")}


def test_members_of_one_network_are_its_copies():
    one = mm.shrink(in_integers(dead_inputs(density=0.5)))
    found = one.members([0, 0])
    assert found.population == 2 and found.features == one.features == 5
    assert_same_bits(found.member(0), one)
    assert_same_bits(found.member(1), one)
    found.params[0].weight[0] = 7  # an array of its own
    assert not (one.params[0].weight == 7).any()


def test_members_of_masks_for_all_keep_them():
    masks = random_model(density=0.5).masks
    found = replace(random_model(population=3), masks=masks).members([1, 2])
    for mask, expected in zip(found.masks, masks, strict=True):
        np.testing.assert_array_equal(mask, np.stack([expected] * 2))


def test_no_members_are_refused():
    for given_model in (random_model(), random_model(population=3)):
        with pytest.raises(ValueError, match="members: expected at least one number"):
            given_model.members([])
    with pytest.raises(IndexError):
        random_model(population=3).members([3])


@given(sizes=SIZES, population=POPULATION, density=DENSITY, seed=SEED, bits=st.sampled_from([None, 3]))
def test_a_summary_counts_what_a_search_through_the_graph_counts(sizes, population, density, seed, bits):
    whole = random_model(sizes, "relu", population, density, seed)
    whole = in_integers(whole, bits) if bits else whole
    found, live = whole.summary(), live_units(whole)
    members = [whole] if population is None else [whole.member(i) for i in range(population)]
    assert [layer.shape for layer in found] == list(whole.network.shapes)
    assert [layer.live for layer in found] == list(pairwise(map(len, live)))
    assert [layer.live for layer in found] == list(mm.shrink(whole).network.shapes)
    assert [layer.kept for layer in found] == [int(np.count_nonzero(layer.weight)) for layer in whole.params]
    work = np.zeros(len(found), int)
    for one in members:
        units = live_units(one)
        ways = all(one.params[i].weight[np.ix_(*pair)].any() for i, pair in enumerate(pairwise(units)))
        for i, pair in enumerate(pairwise(units)):
            work[i] += np.count_nonzero(one.params[i].weight[np.ix_(*pair)]) if ways else 0
    assert [layer.multiply_adds for layer in found] == work.tolist()
    tensors = parts(whole)[1]
    for i, layer in enumerate(found):
        assert layer.bytes == sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(f"{i}."))
    assert sum(layer.bytes for layer in found) <= whole.nbytes


def test_a_summary_is_a_table():
    """Of two layers, 3×2 and 2×1: the third input feeds nothing."""
    whole = fixed([[[1, 2], [3, 0], [0, 0]], [[1], [2]]], [[0, 0], [0]])
    lines = str(whole.summary()).split("\n")
    assert len({len(line) for line in lines}) == 1  # as a table
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert cells == [
        ["layer", "shape", "kept", "of", "after shrink", "bytes", "multiply-adds"],
        ["1", "3×2", "3", "50.0 %", "2×2", "32", "3"],
        ["2", "2×1", "2", "100.0 %", "2×1", "12", "2"],
        ["all", "5", "62.5 %", "44", "5"],
    ]


def test_a_summary_of_many_layers_names_them_all():
    whole = random_model((300, 40, 30, 20, 10), population=2)
    lines = str(whole.summary()).split("\n")
    assert [line.split()[0] for line in lines] == ["layer", "1", "2", "3", "4", "all"]
    total = 2 * sum(a * b for a, b in whole.network.shapes)
    assert f"{total:,}" in lines[-1] and lines[-1].count(f"{total:,}") == 2  # kept, and multiplied with
    assert "100.0 %" in lines[-1] and "300×40" in lines[1]


def test_a_model_says_what_it_is():
    assert repr(CHAIN) == "<Model 3-3-2-2 relu, mean_squared_error, 15 non-zero>"
    assert repr(mm.shrink(CHAIN)) == "<Model 1-1-1-2 relu, mean_squared_error, 8 non-zero>"
    many = random_model((50, 30, 3), "gelu", population=3)
    assert repr(many) == "<Model 50-30-3 gelu, softmax_cross_entropy, 4,869 non-zero, population 3>"
    assert many.nonzero == 3 * (50 * 30 + 30 + 30 * 3 + 3)
