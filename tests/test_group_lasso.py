"""Group lasso against torch's own derivative of its penalty; the layout of n of m, there and back and to the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import optimizers, packing, tree

NETWORK = mm.Network((4, 5, 3), "tanh")
RATE, STEPS = 0.1, 8
AMOUNTS = np.array([0.0, 0.02, 0.2])  # of a population


def make_data(rows=60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    return mm.datasets.split(x, (x @ rng.normal(size=(4, 3))).argmax(1), seed=0)


DATA = make_data()


def start(population=None):
    """Normal parameters; the weights that the second feature and the third neuron feed are 0."""
    rng, lead = np.random.default_rng(1), () if population is None else (population,)
    params = tuple(
        mm.Layer(*(rng.normal(size=(*lead, *shape)).astype(np.float32) for shape in (pair, pair[1:])))
        for pair in NETWORK.shapes
    )
    params[0].weight[..., 1, :] = params[1].weight[..., 2, :] = 0
    return params


def torch_run(torch, params, amount, steps=STEPS, **options):
    """SGD on J + λ Σ √n‖w‖, w the n weights that an input or a neuron feeds, in float64: the parameters at last."""
    x = torch.tensor(DATA.normalization(DATA.train.x), dtype=torch.float64)
    leaves = [torch.tensor(leaf, dtype=torch.float64, requires_grad=True) for leaf in tree.leaves(params)]
    optimizer = torch.optim.SGD(leaves, lr=RATE, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        w1, b1, w2, b2 = leaves
        loss = torch.nn.functional.cross_entropy(torch.tanh(x @ w1 + b1) @ w2 + b2, torch.tensor(DATA.train.y).long())
        for weight in (w1, w2):
            loss = loss + float(amount) * weight.shape[1] ** 0.5 * torch.linalg.vector_norm(weight, dim=1).sum()
        loss.backward()
        optimizer.step()
    return [leaf.detach().numpy() for leaf in leaves]


def train(params, optimizer, population=None, epochs=STEPS, **options):
    """An epoch is one step on all rows."""
    return mm.gradient_descent(
        NETWORK,
        DATA,
        seed=0,
        params=params,
        population=population,
        epochs=epochs,
        batch_size=len(DATA.train.x),
        optimizer=optimizer,
        **options,
    )


@pytest.mark.parametrize(("maker", "options"), [(optimizers.sgd, {}), (optimizers.momentum, {"momentum": 0.9})])
def test_the_steps_are_those_of_torch(oracle, backend, population, maker, options):
    torch = oracle("torch")
    params = start(population)
    amount = AMOUNTS if population else 0.05
    both = (backend, "numpy") if backend.name == "numpy" else (backend,)  # step by step, and recorded
    runs = [train(params, maker(RATE, group_l1=amount, **options), population, backend=b).state.params for b in both]
    for i in range(population or 1):
        one = tree.map(lambda leaf, i=i: leaf[i], params) if population else params
        expected = torch_run(torch, one, AMOUNTS[i] if population else amount, **options)
        for found in runs:
            for leaf, right in zip(tree.leaves(found), expected, strict=True):
                np.testing.assert_allclose(leaf[i] if population else leaf, right, rtol=2e-4, atol=2e-5)


def test_the_part_itself_is_the_gradient_of_torch(oracle, backend, population):
    """Of the penalty alone, and nothing for biases or weights of 0."""
    torch = oracle("torch")
    params, (part,) = start(population), optimizers.sgd(RATE, group_l1=0.3).rule.parts
    amount = np.array(AMOUNTS if population else 0.3, np.float32)
    on = tree.map(backend.asarray, params)
    zeros = tree.map(backend.xp.zeros_like, on)
    found, state = part.update(backend.asarray(amount), zeros, part.init(on), on)
    assert state is None
    for layer, pull in zip(params, backend.to_numpy(found), strict=True):
        weight = torch.tensor(layer.weight, dtype=torch.float64, requires_grad=True)
        lengths = torch.linalg.vector_norm(weight, dim=-1).sum(dim=-1)
        (torch.tensor(amount, dtype=torch.float64) * weight.shape[-1] ** 0.5 * lengths).sum().backward()
        np.testing.assert_allclose(pull.weight, weight.grad.numpy(), rtol=1e-5, atol=1e-7)
        assert not pull.bias.any()


def test_a_literal_pull():
    """λ = 2, rows (3, 4), (0, 0) and (0, −1): 2·√2 times (0.6, 0.8), (0, 0), (0, −1), on top of what was there."""
    weight = np.array([[3, 4], [0, 0], [0, -1]], np.float32)
    params = (mm.Layer(weight, np.ones(2, np.float32)),)
    d = (mm.Layer(np.full((3, 2), 10, np.float32), np.full(2, 5, np.float32)),)
    (part,) = optimizers.sgd(1.0, group_l1=2.0).rule.parts
    found, _ = part.update(np.asarray(2.0, np.float32), d, None, params)
    expected = 10 + 2 * np.sqrt(2) * np.array([[0.6, 0.8], [0, 0], [0, -1]])
    np.testing.assert_allclose(found[0].weight, expected, rtol=1e-6)
    np.testing.assert_array_equal(found[0].bias, [5, 5])
    assert (d[0].weight == 10).all() and (params[0].weight == weight).all()  # neither is consumed


def test_rows_of_zero_stay_finite(backend, population):
    """What feeds nothing and is fed nothing stays 0; all of it 0 is no error either."""
    params = start(population)
    for leaf in tree.leaves(params):
        leaf[...] = 0
    found = train(params, optimizers.adam(RATE, group_l1=0.5), population, backend=backend).state.params
    assert all(np.isfinite(leaf).all() for leaf in tree.leaves(found))
    assert not found[0].weight.any() and not found[1].weight.any() and found[1].bias.any()


@pytest.mark.parametrize("size", [1e-20, 1e-30, 1e-40])
def test_rows_next_to_zero_stay_finite(backend, size):
    """Their squares vanish in float32."""
    (part,) = optimizers.sgd(RATE, group_l1=1.0).rule.parts
    weight = np.full((2, 3), size, np.float32)
    on = tree.map(backend.asarray, (mm.Layer(weight, np.zeros(3, np.float32)),))
    found, _ = part.update(backend.asarray(np.ones((), np.float32)), tree.map(backend.xp.zeros_like, on), None, on)
    pull = backend.to_numpy(found)[0].weight
    assert np.isfinite(pull).all() and (np.abs(pull) <= 1.001).all()  # √n·w/‖w‖ of equal weights is 1


def test_masked_weights_stay_zero(backend):
    """The penalty pulls at what is left of a row, with the √n of all of it."""
    rng = np.random.default_rng(3)
    masks = tuple(rng.uniform(size=shape) < 0.5 for shape in NETWORK.shapes)
    found = train(start(), optimizers.momentum(RATE, group_l1=0.1), masks=masks, backend=backend).state.params
    for layer, mask in zip(found, masks, strict=True):
        assert not layer.weight[~mask].any()
        assert np.isfinite(layer.weight).all()


def test_useless_features_fade_as_a_whole():
    """Of four features the labels depend on one: the rows of the others get short, its own does not."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    data = mm.datasets.split(x, (x[:, 2] > 0).astype(int), seed=0)
    network, options = mm.Network((4, 8, 2)), {"seed": 0, "epochs": 60, "batch_size": 40}
    found = {
        amount: mm.gradient_descent(network, data, optimizer=optimizers.sgd(0.1, group_l1=amount), **options)
        for amount in (0.0, 0.05)
    }
    plain, sparse = (np.linalg.norm(found[amount].state.params[0].weight, axis=1) for amount in (0.0, 0.05))
    others = [0, 1, 3]
    assert (sparse[others] < 0.1).all() and (plain[others] > 0.3).all()
    assert sparse[2] > 10 * sparse[others].max()


def test_an_optimizer_with_groups_needs_shapes():
    """Where weights are trained as one flat array there are no rows."""
    assert not optimizers.sgd(RATE, group_l1=0.1).rule.elementwise
    assert optimizers.sgd(RATE, l1=0.1).rule.elementwise
    assert optimizers.sgd(RATE, group_l1=None).rule == optimizers.sgd(RATE).rule


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, "0.1", [0.1, -0.1]])
def test_a_group_l1_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="group_l1: expected finite numbers from 0"):
        optimizers.sgd(RATE, group_l1=value)


def test_of_a_population_there_must_be_one_for_each():
    with pytest.raises(ValueError, match="optimizer: expected a finite number or 2 of them"):
        train(start(2), optimizers.sgd(RATE, group_l1=AMOUNTS), population=2, epochs=1)


# n of m, as sparse hardware has it


def sparse(inputs, outputs, n, m, seed, dtype=np.float32):
    """A weight of which every group of m keeps up to n at random."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 100, size=(inputs, outputs)) * rng.choice([-1, 1], size=(inputs, outputs))
    for first in range(0, inputs, m):
        for column in range(outputs):
            size = min(m, inputs - first)
            gone = rng.permutation(size)[rng.integers(0, min(n, size) + 1) :]
            weight[first + gone, column] = 0
    return weight.astype(dtype)


def place_bits(m):
    return max(1, int(np.ceil(np.log2(m))))


PAIRS = st.integers(1, 40).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))
DTYPES = st.sampled_from([np.float32, np.float64, np.int8])


@given(st.integers(1, 30), st.integers(1, 6), PAIRS, st.integers(0, 2**16), DTYPES)
def test_n_of_m_there_and_back(inputs, outputs, pair, seed, dtype):
    """Also where the last group is a shorter one; and of exactly so many bytes."""
    n, m = pair
    weight = sparse(inputs, outputs, n, m, seed, dtype)
    packed = packing.pack_n_of_m(weight, n, m)
    groups = -(-inputs // m)
    assert packed.values.shape == (groups, n, outputs) and packed.values.dtype == dtype
    assert packed.places.dtype == np.uint8 and packed.places.shape == (-(-groups * n * outputs * place_bits(m) // 8),)
    assert (packed.shape, packed.m) == ((inputs, outputs), m)
    found = packing.unpack_n_of_m(packed)
    assert found.dtype == dtype and found.shape == weight.shape
    np.testing.assert_array_equal(found, weight)


@given(st.integers(1, 30), st.integers(1, 6), PAIRS, st.integers(0, 2**16))
def test_places_read_by_hand(inputs, outputs, pair, seed):
    """⌈log₂ m⌉ bits each, most significant first, row-major; what is not 0 comes first and in its order."""
    n, m = pair
    weight = sparse(inputs, outputs, n, m, seed)
    values, places, _, _ = packing.pack_n_of_m(weight, n, m)
    text, bits = "".join(f"{byte:08b}" for byte in places), place_bits(m)
    numbers = [int(text[i : i + bits], 2) for i in range(0, values.size * bits, bits)]
    assert set(text[values.size * bits :]) <= {"0"}
    at, found = np.array(numbers).reshape(values.shape), np.zeros_like(weight)
    for group, i, column in np.argwhere(values).tolist():
        found[group * m + at[group, i, column], column] = values[group, i, column]
        assert (values[group, :i, column] != 0).all()
        assert (np.diff(at[group, : i + 1, column]) > 0).all()
    np.testing.assert_array_equal(found, weight)


def test_literal_two_of_four():
    """Places 1, 3 and 0, 2; a group with one weight, at 2, keeps 0 beside it."""
    weight = np.array([[0, 5], [1, 0], [0, 6], [2, 0], [0, 0], [0, 0], [9, 0]], np.float32)
    values, places, shape, m = packing.pack_n_of_m(weight, 2, 4)
    assert values.tolist() == [[[1, 5], [2, 6]], [[9, 0], [0, 0]]]
    assert places.tolist() == [0b01_00_11_10, 0b10_00_00_01]
    assert (shape, m) == ((7, 2), 4)
    assert values.nbytes + places.nbytes == 8 * 4 + 2


@pytest.mark.parametrize("m", [2, 16, 255, 256, 257, 300, 1000])
def test_groups_of_any_size(m):
    """A place that takes more than a byte is refused, or it comes back; it is not cut off."""
    weight = np.zeros((m + 3, 2), np.float32)
    weight[[m - 1, m + 2], [0, 1]] = weight[0, 1] = 7
    try:
        packed = packing.pack_n_of_m(weight, 1, m)
    except ValueError as error:
        assert m > 256 and "pack_n_of_m: " in str(error)
    else:
        assert packed.places.size == -(-4 * place_bits(m) // 8)
        np.testing.assert_array_equal(packing.unpack_n_of_m(packed), weight)


@given(st.integers(1, 30), st.integers(1, 4), PAIRS, st.integers(0, 2**16))
def test_more_than_n_are_refused(inputs, outputs, pair, seed):
    """One weight too many in one group is enough; where it fits again, all is well."""
    n, m = pair
    if min(inputs, m) <= n:
        inputs, m = inputs + n + 1, n + 1
    weight = sparse(inputs, outputs, n, m, seed)
    weight[:m, 0] = 0
    weight[: n + 1, 0] = 1
    with pytest.raises(
        ValueError, match=f"pack_n_of_m: expected at most {n} of {m} weights that are not 0, got {n + 1}"
    ):
        packing.pack_n_of_m(weight, n, m)
    weight[n, 0] = 0
    np.testing.assert_array_equal(packing.unpack_n_of_m(packing.pack_n_of_m(weight, n, m)), weight)


def test_what_pruning_leaves_can_be_packed():
    """Less than half of what the weights take: two values of four, and two bits for each of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 32)).astype(np.float32)
    data = mm.datasets.split(x, (x[:, 0] > 0).astype(int), seed=0)
    model = mm.gradient_descent(mm.Network((32, 16, 2)), data, seed=0, epochs=1)
    found = mm.prune(model, data, seed=0, pattern=mm.patterns.n_of_m(2, 4), epochs=1)
    for layer, before in zip(found.params, model.params, strict=True):
        packed = packing.pack_n_of_m(layer.weight, 2, 4)
        np.testing.assert_array_equal(packing.unpack_n_of_m(packed), layer.weight)
        assert packed.values.nbytes + packed.places.nbytes == layer.weight.nbytes * (16 + 1) // 32
        with pytest.raises(ValueError, match="at most 2 of 4"):
            packing.pack_n_of_m(before.weight, 2, 4)
