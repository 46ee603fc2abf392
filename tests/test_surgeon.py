"""Optimal brain surgeon against dense least squares and a greedy search that inverts H anew at every step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, tree
from minimodel.compress import surgeon
from minimodel.gradients import forward
from minimodel.model import Model

DAMPING = 0.01  # of the mean variance of the inputs, as the docstring says
pytestmark = pytest.mark.filterwarnings("ignore:prune. no kept weight")
BACKENDS = {
    "numpy": ("numpy", {"debug": True}),
    "recorded": ("numpy", {}),  # what prune uses by default: scans within scans and results in buffers of their own
    "strict": ("array_api:array_api_strict", {"debug": True}),
    "jax": ("jax", {}),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    """As everywhere, and NumPy as it runs outside tests."""
    if request.param == "jax":
        pytest.importorskip("jax")
    source, options = BACKENDS[request.param]
    return mm.backends.load(source, **options)


def problem(population=None, rows=40, inputs=6, outputs=4, seed=0):
    """A layer, and inputs that depend on one another; every member has its own."""
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    mixed = rng.normal(size=(*lead, rows, inputs)) @ rng.normal(size=(*lead, inputs, inputs)) + rng.normal(size=inputs)
    drawn = (rng.normal(size=(*lead, inputs, outputs)), rng.normal(size=(*lead, outputs)), mixed)
    weight, bias, a = (part.astype(np.float32) for part in drawn)
    return mm.Layer(weight, bias), a


def random_mask(shape, density, seed=0):
    return np.random.default_rng(seed).uniform(size=shape) < density


def damped(a):
    """The covariance of the inputs with a hundredth of its mean diagonal added, in float64."""
    centred = a.astype(np.float64) - a.mean(axis=0, dtype=np.float64)
    h = centred.T @ centred / len(a)
    return h + DAMPING * (h.trace() / len(h) or 1.0) * np.eye(len(h))


def least_squares(layer, mask, a):
    """Column by column, of ‖A(w′ − w)‖² + λ‖w′ − w‖² the least over the kept w′, A the centred inputs; and the bias."""
    weight, a = layer.weight.astype(np.float64), a.astype(np.float64)
    centred = (a - a.mean(axis=0)) / np.sqrt(len(a))
    level = DAMPING * (np.square(centred).sum() / a.shape[1] or 1.0)
    design, found = np.vstack([centred, np.sqrt(level) * np.eye(a.shape[1])]), np.zeros_like(weight)
    for j, kept in enumerate(mask.T):
        found[kept, j] = np.linalg.lstsq(design[:, kept], design @ weight[:, j])[0]
    before, after = a @ weight + layer.bias, a @ found
    return found, (before - after).mean(axis=0)


def greedy(w, h):
    """One column: the inputs in the order in which they go, what each costs then, and the weights after each."""
    left, w, order, costs, after = list(range(len(w))), w.astype(np.float64), [], [], []
    start = w.copy()
    while left:
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        each = w[left] ** 2 / inverse.diagonal()
        q = left[int(each.argmin())]
        order.append(q)
        costs.append(each.min())
        left.remove(q)
        w = np.zeros_like(w)
        w[left] = np.linalg.solve(h[np.ix_(left, left)], (h @ start)[left]) if left else 0
        after.append(w)
    return order, np.array(costs), np.array(after)


def members(layer, *values):
    """The members of a population one by one; or the one network."""
    if layer.weight.ndim == 2:
        return [(layer, *values)]
    return [(mm.Layer(layer.weight[i], layer.bias[i]), *(v[i] for v in values)) for i in range(len(layer.weight))]


def corrected(layer, mask, a, *, backend, cached):
    return surgeon.corrected(layer, mask, a, backend)


def removal_costs(weight, a, *, backend, cached):
    return surgeon.removal_costs(weight, a, backend)


def run(fn, *values, backend):
    """As a program; one that is compiled anew where another number of columns goes at a time."""
    program = backend.jit(fn, static=("backend", "cached"))
    on = (tree.map(backend.asarray, value) for value in values)
    return backend.to_numpy(program(*on, backend=backend, cached=surgeon.CACHED))


def assert_corrected(layer, mask, a, found):
    for one, kept, inputs, weight, bias in members(layer, mask, a, found.weight, found.bias):
        expected, shift = least_squares(one, kept, inputs)
        assert not weight[~kept].any()
        np.testing.assert_allclose(weight, expected, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(bias, shift, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("density", [0.0, 0.3, 0.7])
def test_the_correction_is_least_squares(backend, population, density):
    layer, a = problem(population)
    mask = random_mask(layer.weight.shape, density)
    assert_corrected(layer, mask, a, run(corrected, layer, mask, a, backend=backend))


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 30), st.floats(0, 1), st.integers(0, 1000))
def test_the_correction_is_least_squares_whatever_the_shapes(inputs, outputs, rows, density, seed):
    """With fewer rows than inputs, too: the damping makes H invertible."""
    layer, a = problem(None, rows, inputs, outputs, seed)
    mask = random_mask(layer.weight.shape, density, seed)
    assert_corrected(layer, mask, a, run(corrected, layer, mask, a, backend=mm.backends.load("numpy")))


def test_a_mask_without_the_population_holds_for_every_member(backend):
    layer, a = problem(3)
    mask = random_mask(layer.weight.shape[1:], 0.5)
    assert_corrected(
        layer, np.broadcast_to(mask, layer.weight.shape), a, run(corrected, layer, mask, a, backend=backend)
    )


def test_where_all_is_kept_nothing_changes(backend, population):
    layer, a = problem(population)
    found = run(corrected, layer, np.ones(layer.weight.shape, bool), a, backend=backend)
    for new, old in zip(found, layer, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4)


def test_where_nothing_is_kept_the_bias_gives_the_mean(backend, population):
    layer, a = problem(population)
    found = run(corrected, layer, np.zeros(layer.weight.shape, bool), a, backend=backend)
    outputs = a.astype(np.float64) @ layer.weight + layer.bias[..., None, :]
    assert not found.weight.any()
    np.testing.assert_allclose(found.bias, outputs.mean(axis=-2), rtol=1e-4, atol=1e-4)


def test_a_literal_correction(backend):
    """Two inputs that are the same but for the damping: the one that stays takes over (1 + 1/1.01)-fold."""
    a = np.array([[3, 3], [1, 1]], np.float32)  # variance 1, covariance 1, mean 2
    found = run(
        corrected, mm.Layer(np.ones((2, 1), np.float32), np.zeros(1, np.float32)), np.eye(2, 1) > 0, a, backend=backend
    )
    np.testing.assert_allclose(found.weight, [[2.01 / 1.01], [0]], rtol=1e-5)
    np.testing.assert_allclose(found.bias, [2 * (2 - 2.01 / 1.01)], rtol=1e-3)


def test_costs_are_those_of_a_greedy_search(backend, population):
    """Each the largest so far in its column; and in the order in which the search removes."""
    layer, a = problem(population, inputs=7)
    costs = run(removal_costs, layer.weight, a, backend=backend)
    assert costs.shape == layer.weight.shape
    fell = 0
    for one, inputs, found in members(layer, a, costs):
        for w, column in zip(one.weight.T, found.T, strict=True):
            order, each, _ = greedy(w, damped(inputs))
            fell += int((np.diff(each) < 0).sum())
            np.testing.assert_allclose(column[order], np.maximum.accumulate(each), rtol=1e-2, atol=1e-5)
            assert (np.diff(column[order]) >= 0).all()
    assert fell > 0  # or the running maximum would not show


def test_literal_costs(backend):
    """Independent inputs of variances 4 and 1: w²·(variance + damping), of each its own; a zero goes for nothing."""
    a = np.array([[2, 1, 0], [2, -1, 0], [-2, 1, 0], [-2, -1, 0]], np.float32)
    weight = np.array([[1, 0], [1.5, 1], [2, 3]], np.float32)
    level = DAMPING * 5 / 3
    expected = np.array([[4 + level, 0], [2.25 * (1 + level), 1 + level], [4 * level, 9 * level]])
    np.testing.assert_allclose(
        run(removal_costs, weight, a, backend=backend), np.maximum(expected, [[0, 0], [0, 9 * level], [0, 0]]), 1e-5
    )


def test_after_every_removal_the_rest_has_made_up_for_it(backend):
    """w is the solution on what is left, H⁻¹ that of what is left, and what went is marked."""
    layer, a = problem(inputs=7, outputs=3)
    h, xp, step = damped(a), backend.xp, backend.jit(surgeon.remove_one)
    w = backend.asarray(layer.weight.T)
    inverse = np.broadcast_to(np.linalg.inv(h).astype(np.float32), (3, 7, 7))
    diagonal = backend.asarray(np.broadcast_to(inverse[0].diagonal(), (3, 7)))
    carry = (w, backend.asarray(inverse), diagonal, xp.zeros_like(w), xp.zeros_like(w), xp.zeros_like(w[:, :1]))
    searched, scale = [greedy(column, h) for column in layer.weight.T], np.abs(inverse).max()
    for k in range(7):
        carry, _ = step(carry, None)
        w, inverse, _, gone, *_ = backend.to_numpy(carry)
        for j, (order, _, after) in enumerate(searched):
            left = np.ix_(*[np.setdiff1d(range(7), order[: k + 1])] * 2)
            np.testing.assert_array_equal(np.flatnonzero(gone[j]), sorted(order[: k + 1]))
            np.testing.assert_allclose(w[j], after[k], rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(inverse[j][left], np.linalg.inv(h[left]), rtol=1e-2, atol=1e-3 * scale)
        if k == 3:
            found = run(corrected, layer, gone.T == 0, a, backend=backend)
            np.testing.assert_allclose(found.weight.T, w, rtol=5e-3, atol=5e-3)


def test_a_population_is_its_members(backend):
    layer, a = problem(3)
    mask = random_mask(layer.weight.shape, 0.5)
    together, costs = (
        run(corrected, layer, mask, a, backend=backend),
        run(removal_costs, layer.weight, a, backend=backend),
    )
    for i, (one, kept, inputs) in enumerate(members(layer, mask, a)):
        alone = run(corrected, one, kept, inputs, backend=backend)
        np.testing.assert_allclose(together.weight[i], alone.weight, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.bias[i], alone.bias, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(costs[i], run(removal_costs, one.weight, inputs, backend=backend), rtol=1e-3)


@pytest.mark.parametrize(("columns", "at_once"), [(1, 1), (3, 3), (5, 3)])
def test_columns_a_few_at_a_time_give_the_same(backend, population, monkeypatch, columns, at_once):
    """As many as divide six and fit."""
    layer, a = problem(population, inputs=5, outputs=6)
    mask = random_mask(layer.weight.shape, 0.5)
    whole = (*run(corrected, layer, mask, a, backend=backend), run(removal_costs, layer.weight, a, backend=backend))
    seen, remove_one = set(), surgeon.remove_one

    def watched(carry, x):
        seen.add(carry[0].shape)
        return remove_one(carry, x)

    monkeypatch.setattr(surgeon, "CACHED", columns * 5**2)
    monkeypatch.setattr(surgeon, "remove_one", watched)
    parts = (*run(corrected, layer, mask, a, backend=backend), run(removal_costs, layer.weight, a, backend=backend))
    assert seen == {(at_once, 5)}
    for new, old in zip(parts, whole, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [[0, 3, 5], range(6)], ids=["some", "all"])
def test_inputs_that_never_vary_cost_nearly_nothing(backend, population, constant):
    """They are finite, they go first, and the bias takes over what they gave."""
    layer, a = problem(population)
    a[..., list(constant)] = 3
    costs = run(removal_costs, layer.weight, a, backend=backend)
    assert np.isfinite(costs).all() and (costs >= 0).all()
    varying = np.setdiff1d(range(6), constant)
    if len(varying):
        assert (costs[..., list(constant), :].max(axis=-2) < costs[..., varying, :].max(axis=-2)).all()
    mask = np.ones(layer.weight.shape, bool)
    mask[..., list(constant), :] = False
    found = run(corrected, layer, mask, a, backend=backend)
    assert_corrected(layer, mask, a, found)
    before, after = (a @ each.weight + each.bias[..., None, :] for each in (layer, found))
    np.testing.assert_allclose(before, after, rtol=1e-3, atol=1e-3)


# As prune uses it


def small_model(population=None, activation="tanh"):
    rng, lead = np.random.default_rng(0), () if population is None else (population,)
    network = mm.Network((6, 8, 3), activation)
    params = tuple(
        mm.Layer(*(rng.normal(size=(*lead, *shape)).astype(np.float32) for shape in (pair, pair[1:])))
        for pair in network.shapes
    )
    return Model(network, params, losses.softmax_cross_entropy)


@pytest.fixture(scope="module")
def data():
    """Features that depend on one another: with them a surgeon has what to work with."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 4)) @ rng.normal(size=(4, 6)) + 0.3 * rng.normal(size=(120, 6))
    return mm.datasets.split(x, (x @ rng.normal(size=(6, 3))).argmax(1), seed=0)


def layer_changes(model, found, x):
    """Of every layer the mean square change of its outputs, for the inputs that it had."""
    steps = forward(model.network, model.params, x)
    return [
        np.square(step.a @ new.weight + new.bias[..., None, :] - step.z).mean(axis=(-2, -1))
        for step, new in zip(steps, found.params, strict=True)
    ]


def test_a_surgeon_changes_the_outputs_less_than_magnitude(backend, population, data):
    model, options = small_model(population), {"seed": 0, "epochs": 0, "backend": backend, "allocation": [0.5] * 2}
    by_surgeon, by_size = {"score": "surgeon", **options}, {"score": "magnitude", **options}
    found = [
        mm.prune(model, data, correct=correct, **by)
        for by, correct in ((by_surgeon, True), (by_size, True), (by_size, False), (by_surgeon, False))
    ]
    changes = [layer_changes(model, one, data.train.x) for one in found]
    for best, repaired, plain, uncorrected in zip(*changes, strict=True):
        assert (best <= 1.001 * repaired).all() and (repaired < plain).all() and (best < uncorrected).all()
    for one in found:
        for layer, mask in zip(one.params, one.masks, strict=True):
            np.testing.assert_array_equal(layer.weight != 0, mask)
            assert (np.sum(mask, axis=(-2, -1)) == mask.shape[-2] * mask.shape[-1] // 2).all()


def test_a_correction_in_prune_is_that_of_its_layers(backend, population, data):
    """For the inputs that the layer had before anything went."""
    model = small_model(population)
    found = mm.prune(model, data, seed=0, sparsity=0.5, correct=True, epochs=0, backend=backend)
    for step, layer, new, mask in zip(
        forward(model.network, model.params, data.train.x), model.params, found.params, found.masks, strict=True
    ):
        a = np.broadcast_to(step.a, (*layer.weight.shape[:-2], *step.a.shape[-2:]))
        assert_corrected(layer, mask, a, new)


def test_the_surgeon_gives_the_same_masks_on_every_backend(backend, population, data):
    options = {"seed": 0, "sparsity": 0.6, "score": "surgeon", "correct": True, "epochs": 0}
    found, reference = (mm.prune(small_model(population), data, backend=b, **options) for b in (backend, "numpy"))
    for one, other in zip(found.masks, reference.masks, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(found.params, reference.params, strict=True):
        np.testing.assert_allclose(one.weight, other.weight, rtol=1e-3, atol=1e-3)


def test_data_with_constant_features_and_silent_neurons_stay_finite(backend, data):
    """The features 0 and 3 never vary; of the neurons some give 0 for every row."""
    x = data.train.x.copy()
    x[:, [0, 3]] = 1
    model = small_model(activation="relu")
    model.params[0].bias[:3] = -100
    found = mm.prune(
        model,
        mm.Splits(mm.Dataset(x, data.train.y), data.validation, data.test),
        seed=0,
        sparsity=0.5,
        score="surgeon",
        correct=True,
        epochs=1,
        backend=backend,
    )
    assert all(np.isfinite(leaf).all() for layer in found.params for leaf in layer)
    assert sum(np.sum(~mask) for mask in found.masks) == round(0.5 * 72)
    assert not found.masks[1][:3].any()


@pytest.mark.parametrize("schedule", ["gradual", "periodic"])
def test_a_correction_goes_with_every_schedule(data, schedule):
    found = mm.prune(
        small_model(), data, seed=0, sparsity=0.75, score="surgeon", correct=True, schedule=schedule, epochs=3
    )
    assert sum(np.sum(~mask) for mask in found.masks) == round(0.75 * 72)
    for layer, mask in zip(found.params, found.masks, strict=True):
        np.testing.assert_array_equal(layer.weight != 0, mask)
        assert np.isfinite(layer.weight).all()


def test_a_correction_is_undone_by_rewinding_and_refused(data):
    model = small_model()
    with pytest.raises(ValueError, match="correct: rewinding would undo the corrections"):
        mm.prune(model, data, seed=0, sparsity=0.5, correct=True, rewind=model.params)
