"""Pruning: masks against torch.nn.utils.prune, counts with ties, and zeros that stay zeros."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, optimizers, tree
from minimodel.compress import pruning
from minimodel.model import Model

NETWORK = mm.Network((4, 6, 3))
SIZES = (24, 18)
pytestmark = pytest.mark.filterwarnings("ignore:prune. no kept weight")  # so small a network collapses easily
WEIGHTS = sum(SIZES)


@pytest.fixture(scope="module")
def data():
    return small_splits()


def small_splits():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4)).astype(np.float32)
    return mm.datasets.split(x, (x @ rng.normal(size=(4, 3))).argmax(1), seed=0)


def random_model(population=None, network=NETWORK, seed=0):
    """Normal weights, all different; biases that are not 0."""
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    params = tuple(
        mm.Layer(*(rng.normal(size=(*lead, *shape)).astype(np.float32) for shape in (pair, pair[1:])))
        for pair in network.shapes
    )
    return Model(network, params, losses.softmax_cross_entropy)


def model_of(*weights):
    """A model with these weights and biases of 1."""
    weights = [np.asarray(weight, np.float32) for weight in weights]
    network = mm.Network((len(weights[0]), *(weight.shape[1] for weight in weights)))
    params = tuple(mm.Layer(weight, np.ones(weight.shape[1], np.float32)) for weight in weights)
    return Model(network, params, losses.mean_squared_error)


def one_shot(model, data, **options):
    return mm.prune(model, data, seed=0, epochs=0, **options)


def regression_for(model):
    rng = np.random.default_rng(1)
    inputs, outputs = model.network.layer_sizes[0], model.network.layer_sizes[-1]
    return mm.datasets.split(rng.normal(size=(30, inputs)), rng.normal(size=(30, outputs)), seed=0)


def removed(model):
    """How many weights the masks remove, per member of a population."""
    return sum(np.sum(~mask, axis=(-2, -1)) for mask in model.masks)


def assert_same_masks(one, other):
    for found, expected in zip(one.masks, other.masks, strict=True):
        np.testing.assert_array_equal(found, expected)


def assert_masked(model):
    """What the masks remove is exactly 0, what they keep is not."""
    for layer, mask in zip(model.params, model.masks, strict=True):
        assert mask.dtype == bool
        np.testing.assert_array_equal(layer.weight != 0, np.broadcast_to(mask, layer.weight.shape))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.9, 1.0])
def test_masks_are_those_of_torch(oracle, data, sparsity):
    """allocation="uniform" is l1_unstructured on each layer, "global" is global_unstructured with L1Unstructured."""
    torch = oracle("torch")
    prune = oracle("torch.nn.utils.prune")
    model = random_model()
    for allocation in ("global", "uniform"):
        linear = [torch.nn.Linear(*shape) for shape in NETWORK.shapes]
        for module, layer in zip(linear, model.params, strict=True):
            module.weight.data = torch.tensor(layer.weight.T.copy())
        if allocation == "uniform":
            for module in linear:
                prune.l1_unstructured(module, "weight", amount=sparsity)
        else:
            prune.global_unstructured(
                [(module, "weight") for module in linear], pruning_method=prune.L1Unstructured, amount=sparsity
            )
        found = one_shot(model, data, sparsity=sparsity, allocation=allocation)
        for module, mask in zip(linear, found.masks, strict=True):
            np.testing.assert_array_equal(mask, module.weight_mask.numpy().T.astype(bool))


TIES = model_of([[1, -1], [1, 2]], [[1], [-3]])


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        # four weights of magnitude 1: of those that may stay the first in row-major order and the earlier layer do
        ({"count": 0}, [[1, 1], [1, 1]], [[1], [1]]),
        ({"count": 1}, [[1, 1], [1, 1]], [[0], [1]]),
        ({"count": 2}, [[1, 1], [0, 1]], [[0], [1]]),
        ({"count": 3}, [[1, 0], [0, 1]], [[0], [1]]),
        ({"count": 4}, [[0, 0], [0, 1]], [[0], [1]]),
        ({"count": 5}, [[0, 0], [0, 0]], [[0], [1]]),
        ({"count": 6}, [[0, 0], [0, 0]], [[0], [0]]),
        ({"sparsity": 0.5}, [[1, 0], [0, 1]], [[0], [1]]),
        ({"sparsity": 0.5, "allocation": "uniform"}, [[1, 0], [0, 1]], [[0], [1]]),
        ({"allocation": [0.25, 0.0]}, [[1, 1], [0, 1]], [[1], [1]]),
        ({"allocation": (0.75, 1.0)}, [[0, 0], [0, 1]], [[0], [0]]),
        ({"allocation": np.array([0.5, 0])}, [[1, 0], [0, 1]], [[1], [1]]),
        ({"threshold": 0}, [[1, 1], [1, 1]], [[1], [1]]),
        ({"threshold": 1}, [[1, 1], [1, 1]], [[1], [1]]),
        ({"threshold": 1.5}, [[0, 0], [0, 1]], [[0], [1]]),
        ({"threshold": 100.0}, [[0, 0], [0, 0]], [[0], [0]]),
    ],
)
def test_literal_masks_with_ties(options, first, second):
    found = one_shot(TIES, regression_for(TIES), **options)
    assert [mask.astype(int).tolist() for mask in found.masks] == [first, second]
    assert_masked(found)


def test_literal_masks_with_ties_on_every_backend(backend):
    found = one_shot(TIES, regression_for(TIES), count=2, backend=backend)
    assert [mask.tolist() for mask in found.masks] == [[[True, True], [False, True]], [[False], [True]]]


@given(st.floats(0, 1), st.sampled_from(("global", "uniform")), st.sampled_from([None, 2]), st.integers(0, 10))
def test_the_count_is_exact(sparsity, allocation, population, seed):
    found = one_shot(random_model(population, seed=seed), small_splits(), sparsity=sparsity, allocation=allocation)
    if allocation == "global":
        assert (removed(found) == round(sparsity * WEIGHTS)).all()
    else:
        for mask, size in zip(found.masks, SIZES, strict=True):
            assert (np.sum(~mask, axis=(-2, -1)) == round(sparsity * size)).all()
    assert_masked(found)


@given(st.integers(0, WEIGHTS), st.integers(0, 10))
def test_a_count_is_what_is_removed(count, seed):
    assert removed(one_shot(random_model(seed=seed), small_splits(), count=count)) == count


@given(st.integers(0, WEIGHTS), st.sampled_from(("uniform", "erdos_renyi")), st.booleans())
def test_a_count_is_exact_over_layers_too(count, allocation, several):
    """What rounding leaves over goes to the layers it took most from."""
    counts = [count, WEIGHTS - count] if several else count
    found = one_shot(random_model(2 if several else None), small_splits(), count=counts, allocation=allocation)
    np.testing.assert_array_equal(removed(found), counts)


@given(st.floats(0, 1), st.sampled_from(("global", "uniform")), st.integers(0, 10))
def test_pruning_again_changes_nothing(sparsity, allocation, seed):
    data = small_splits()
    once = one_shot(random_model(seed=seed), data, sparsity=sparsity, allocation=allocation)
    twice = one_shot(once, data, sparsity=sparsity, allocation=allocation)
    assert_same_masks(once, twice)
    for a, b in zip(tree.leaves(once.params), tree.leaves(twice.params), strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(("global", "uniform")), st.integers(0, 10))
def test_a_higher_sparsity_keeps_a_subset(one, other, allocation, seed):
    model, data = random_model(seed=seed), small_splits()
    low, high = sorted((one, other))
    more, less = (one_shot(model, data, sparsity=sparsity, allocation=allocation) for sparsity in (low, high))
    assert all((~kept | before).all() for kept, before in zip(less.masks, more.masks, strict=True))


@given(st.floats(0, 4), st.integers(0, 10))
def test_a_threshold_removes_what_is_below_it(threshold, seed):
    model = random_model(seed=seed)
    found = one_shot(model, small_splits(), threshold=threshold)
    for mask, layer in zip(found.masks, model.params, strict=True):
        np.testing.assert_array_equal(mask, ~(np.abs(layer.weight) < threshold))


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.3}, {"sparsity": 0.0}, {"count": 5}, {"threshold": 0.01}, {"sparsity": 0.6}]
)
def test_pruning_less_revives_nothing(data, options):
    """What is pruned already counts among what is to be removed."""
    before = one_shot(random_model(), data, sparsity=0.5)
    after = one_shot(before, data, **options)
    assert all((~kept | was).all() for kept, was in zip(after.masks, before.masks, strict=True))
    expected = max(WEIGHTS // 2, round(options.get("sparsity", 0) * WEIGHTS))
    assert removed(after) == expected
    retrained = mm.prune(before, data, seed=0, epochs=2, **options)
    assert_same_masks(retrained, after)
    assert_masked(retrained)


def test_pruned_weights_of_value_zero_lose_against_live_zeros():
    """A live weight that happens to be 0 outranks a pruned one, wherever it stands."""
    masks = (np.array([[False, True], [True, True]]), np.array([[True], [True]]))
    model = replace(model_of([[0, 0], [1, 2]], [[1], [3]]), masks=masks)
    found = one_shot(model, regression_for(model), count=1)
    assert found.masks[0].tolist() == [[False, True], [True, True]]
    found = one_shot(model, regression_for(model), count=2)
    assert found.masks[0].tolist() == [[False, False], [True, True]]


def test_retraining_never_revives_a_weight(backend, population, data):
    """Momentum remembers gradients and weight decay adds some: what is removed stays exactly 0."""
    before = random_model(population)
    found = mm.prune(
        before,
        data,
        seed=3,
        sparsity=0.6,
        epochs=3,
        batch_size=16,
        backend=backend,
        optimizer=optimizers.momentum(0.05, weight_decay=0.01),
    )
    assert (removed(found) == round(0.6 * WEIGHTS)).all()
    assert_masked(found)
    assert_same_masks(found, one_shot(before, data, sparsity=0.6))
    assert any(
        (new.weight[mask] != old.weight[mask]).any()
        for new, old, mask in zip(found.params, before.params, found.masks, strict=True)
    )
    assert np.asarray(found.history["validation_loss"]).shape[0] == 4
    assert (found.history["validation_loss"].min(axis=0) <= found.history["validation_loss"][0]).all()


@pytest.mark.parametrize(
    "optimizer", [optimizers.sgd, optimizers.nesterov, optimizers.adam, optimizers.adamw], ids=lambda o: o.__name__
)
def test_no_optimizer_revives_a_weight(data, optimizer):
    found = mm.prune(random_model(), data, seed=0, sparsity=0.5, epochs=3, optimizer=optimizer(0.01, weight_decay=0.1))
    assert_masked(found)


def test_a_later_training_with_the_masks_keeps_them(data):
    pruned = one_shot(random_model(), data, sparsity=0.5)
    found = mm.gradient_descent(NETWORK, data, seed=0, params=pruned.params, masks=pruned.masks, epochs=3)
    assert_same_masks(found, pruned)
    assert_masked(found)


def test_gradual_reaches_the_exact_count(backend, population, data):
    found = mm.prune(
        random_model(population),
        data,
        seed=0,
        sparsity=0.8,
        schedule="gradual",
        epochs=4,
        batch_size=16,
        backend=backend,
        optimizer=optimizers.momentum(0.02),
    )
    assert (removed(found) == round(0.8 * WEIGHTS)).all()
    assert_masked(found)
    assert len(found.history["validation_loss"]) == 5


@given(
    st.floats(0, 1),
    st.integers(1, 5),
    st.sampled_from(("global", "uniform")),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_gradual_keeps_the_count_and_what_was_pruned_before(sparsity, epochs, allocation, population, again):
    data, model = small_splits(), random_model(population)
    if again:
        model = one_shot(model, data, sparsity=0.4, allocation=allocation)
    found = mm.prune(model, data, seed=0, sparsity=sparsity, allocation=allocation, schedule="gradual", epochs=epochs)
    sizes = [WEIGHTS] if allocation == "global" else SIZES
    least = sum(max(round(sparsity * n), round(0.4 * n) if again else 0) for n in sizes)
    assert (removed(found) == least).all()
    assert_masked(found)
    if again:
        assert all((~kept | was).all() for kept, was in zip(found.masks, model.masks, strict=True))


def test_patience_never_ends_gradual_pruning_before_its_sparsity(backend, population, data):
    """At a rate of 0 no epoch improves on anything: patience begins to count with the last masks, after the ramp."""
    found = mm.prune(
        random_model(population),
        data,
        seed=0,
        sparsity=0.8,
        schedule="gradual",
        epochs=10,
        batch_size=16,
        backend=backend,
        optimizer=optimizers.sgd(0.0),
        patience=2,
    )
    assert (removed(found) == round(0.8 * WEIGHTS)).all()
    assert_masked(found)
    ramp = round(mm.pruning_schedules.RAMP * 10)  # epochs from 0 to this one begin with new masks
    assert ramp + 2 <= len(found.history["validation_loss"]) - 1 <= ramp + 3


def test_patience_ends_retraining(data):
    options = {"seed": 0, "sparsity": 0.5, "epochs": 30, "optimizer": optimizers.adam(0.3), "patience": 3}
    found = mm.prune(random_model(), data, **options)
    log = found.history["validation_loss"]
    assert len(log) - 1 == log.argmin() + 3 < 30
    assert_masked(found)
    assert found.evaluate(data.validation).loss == pytest.approx(log.min(), rel=1e-5)


def test_gradual_by_count_and_by_layer(data):
    found = mm.prune(random_model(), data, seed=0, allocation=[10 / 24, 3 / 18], schedule="gradual", epochs=3)
    assert [int((~mask).sum()) for mask in found.masks] == [10, 3]


@pytest.mark.parametrize("options", [{"sparsity": 0.7}, {"allocation": [0.5, 0.9]}, {"threshold": 0.8}])
def test_a_population_is_its_members(data, options):
    model = random_model(3)
    together = one_shot(model, data, **options)
    for i in range(3):
        alone = one_shot(model.member(i), data, **options)
        assert_same_masks(together.member(i), alone)
        for a, b in zip(tree.leaves(together.member(i).params), tree.leaves(alone.params), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_population_retrains_as_its_members(data):
    """Member i is the run with seed + i."""
    model = random_model(3)
    for schedule in ("one_shot", "gradual", "periodic"):
        options = {"sparsity": 0.7, "schedule": schedule, "epochs": 3}
        together = mm.prune(model, data, seed=5, **options)
        for i in range(3):
            alone = mm.prune(model.member(i), data, seed=5 + i, **options)
            assert_same_masks(together.member(i), alone)
            for a, b in zip(tree.leaves(together.member(i).params), tree.leaves(alone.params), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.77}, {"count": 13}, {"threshold": 0.7}, {"sparsity": 0.9, "allocation": "uniform"}]
)
def test_equal_weights_give_equal_masks_on_every_backend(backend, population, data, options):
    model = random_model(population)
    assert_same_masks(one_shot(model, data, backend=backend, **options), one_shot(model, data, **options))
    ties = replace(model, params=tree.map(np.round, model.params))
    assert_same_masks(one_shot(ties, data, backend=backend, **options), one_shot(ties, data, **options))


def test_masks_of_one_network_prune_a_whole_population(data):
    """Masks without the population axis, as ``gradient_descent`` takes them, hold for every member."""
    masks = one_shot(random_model(), data, sparsity=0.5).masks
    trained = mm.gradient_descent(NETWORK, data, seed=0, masks=masks, population=2, epochs=1)
    found = one_shot(trained, data, sparsity=0.75)
    assert removed(found).tolist() == [round(0.75 * WEIGHTS)] * 2
    assert all((~kept | was).all() for kept, was in zip(found.masks, masks, strict=True))


def test_biases_stay(data):
    model = random_model()
    found = one_shot(model, data, sparsity=1.0)
    assert found.nonzero == 9
    for before, after in zip(model.params, found.params, strict=True):
        np.testing.assert_array_equal(before.bias, after.bias)
        assert not after.weight.any()


def test_only_parameters_masks_and_history_change(data):
    given = replace(random_model(), normalization=data.normalization, classes=("a", "b", "c"))
    found = mm.prune(given, data, seed=0, sparsity=0.5, epochs=1)
    assert found.normalization is given.normalization
    assert (found.network, found.classes, found.loss) == (given.network, given.classes, given.loss)
    assert given.masks is None and all(layer.weight.all() for layer in given.params)


def test_the_models_own_normalization_is_used(data):
    """Validation losses are those of the model as it was trained, not of the data's normalisation."""
    other = mm.Normalization(np.full(4, 0.5, np.float32), np.full(4, 2.0, np.float32))
    model = replace(random_model(), normalization=other)
    found = one_shot(model, data, sparsity=0.0)
    assert found.history["validation_loss"][0] == pytest.approx(model.evaluate(data.validation).loss, rel=1e-5)


def test_the_same_seed_gives_the_same_bits(backend, data):
    runs = [
        mm.prune(random_model(), data, seed=1, sparsity=0.5, schedule="gradual", epochs=2, backend=backend)
        for _ in range(2)
    ]
    assert runs[0].dumps() == runs[1].dumps()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of sparsity, threshold, count"),
        ({"sparsity": 0.5, "threshold": 0.1}, "give one of"),
        ({"sparsity": 0.5, "count": 1}, "give one of"),
        ({"sparsity": 0.5, "threshold": 0.1, "count": 3}, "give one of"),
        ({"sparsity": 1.5}, "sparsity: expected"),
        ({"sparsity": -0.1}, "sparsity: expected"),
        ({"sparsity": np.nan}, "sparsity: expected"),
        ({"sparsity": True}, "sparsity: expected"),
        ({"sparsity": "0.5"}, "sparsity: expected"),
        ({"sparsity": [0.5, 0.5]}, "sparsity: expected a finite number"),
        ({"allocation": [0.5]}, "allocation: expected one of global, uniform, erdos_renyi, or 2 sparsities"),
        ({"allocation": [0.5, 1.1]}, "allocation: expected"),
        ({"allocation": [0.5, None]}, "allocation: expected"),
        ({"allocation": [0.5, np.nan]}, "allocation: expected"),
        ({"allocation": 0.5}, "allocation: expected"),
        ({"allocation": "uniform"}, "give one of"),
        ({"allocation": [0.5, 0.5], "sparsity": 0.5}, "give one of"),
        ({"threshold": -1}, "threshold: expected"),
        ({"threshold": np.nan}, "threshold: expected"),
        ({"threshold": False}, "threshold: expected"),
        ({"threshold": [0.1, 0.1], "allocation": "uniform"}, "threshold: expected"),
        ({"count": WEIGHTS + 1}, "count: expected"),
        ({"count": -1}, "count: expected"),
        ({"count": 2.5}, "count: expected"),
        ({"count": 2.0}, "count: expected"),
        ({"count": True}, "count: expected"),
        ({"count": [25, 0]}, "count: expected"),
        ({"sparsity": 0.5, "allocation": "channel"}, "allocation: expected one of global, uniform, erdos_renyi"),
        ({"threshold": 0.5, "schedule": "gradual", "epochs": 2}, "threshold: it prunes at once"),
        ({"sparsity": 0.5, "schedule": "gradual"}, "epochs: expected at least 1 to prune in"),
        ({"sparsity": 0.5, "schedule": "cubic"}, "schedule: expected a schedule or one of one_shot, periodic"),
        ({"sparsity": 0.5, "score": "importance"}, "score: expected a function of Evidence or one of magnitude"),
        ({"sparsity": 0.5, "score": "movement"}, "score: movement is that of a training"),
        ({"sparsity": 0.9, "cap": 0.5}, "cap: 0.5 keeps 21 of 42 units, the sparsity only 4"),
        ({"sparsity": 0.9, "cap": 1.5}, "cap: expected"),
        ({"sparsity": 0.5, "rewind": ()}, "rewind: expected"),
        ({"sparsity": 0.5, "epochs": -1}, "epochs"),
        ({"sparsity": 0.5, "batch_size": 0}, "batch_size"),
        ({"sparsity": 0.5, "seed": None}, "seed"),
    ],
)
def test_what_does_not_fit_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        mm.prune(random_model(), data, **{"seed": 0, "epochs": 0, **options})


def test_data_that_do_not_fit_are_refused():
    x = np.random.default_rng(0).normal(size=(30, 5))
    with pytest.raises(ValueError, match=r"train\.x: the network takes \(n, 4\)"):
        one_shot(random_model(), mm.datasets.split(x, (x[:, 0] > 0).astype(int), seed=0), sparsity=0.5)


@pytest.mark.parametrize("schedule", [mm.pruning_schedules.periodic(rounds=3), "gradual", "regrow"])
def test_patience_waits_for_the_last_cut(data, schedule):
    """At a rate of 0 nothing ever improves."""
    options = {"epochs": 30, "optimizer": optimizers.sgd(0.0), "patience": 2, "sparsity": 0.8, "schedule": schedule}
    found = mm.prune(random_model(), data, seed=0, **options)
    assert removed(found) == round(0.8 * WEIGHTS)
    assert len(found.history["validation_loss"]) < 30


def test_a_member_that_stopped_goes_on_after_a_cut(data):
    """Its best is sought anew under the new masks: at no rate at all it is what the last cut left."""
    found = mm.prune(
        random_model(2), data, seed=0, sparsity=0.8, schedule="periodic", epochs=20, patience=[1, 3],
        optimizer=optimizers.sgd([0.0, 0.01]),
    )  # fmt: skip
    alone = mm.prune(random_model(2).member(0), data, seed=0, sparsity=0.8, schedule="periodic", epochs=20,
                     optimizer=optimizers.sgd(0.0))  # fmt: skip
    for a, b in zip(tree.leaves(found.member(0).params), tree.leaves(alone.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("schedule", ["gradual", "periodic"])
def test_a_schedule_begins_where_the_model_is(data, schedule, monkeypatch):
    """No cut is idle: from 60 % on each removes some."""
    before, seen = one_shot(random_model(), data, sparsity=0.6), []
    cut = pruning.Pruner.cut

    def watched(self, epoch, masks, params, moved):
        found = cut(self, epoch, masks, params, moved)
        seen.extend(sum(int(mask.sum()) for mask in found.masks) for _ in (0,) if found is not None)
        return found

    monkeypatch.setattr(pruning.Pruner, "cut", watched)
    found = mm.prune(before, data, seed=0, sparsity=0.9, schedule=schedule, epochs=8)
    assert removed(found) == round(0.9 * WEIGHTS)
    assert seen[0] < WEIGHTS - round(0.6 * WEIGHTS)
    assert all(one > other for one, other in pairwise(seen))


def test_scores_that_are_no_numbers_are_refused(data, backend):
    def wrong(e):
        return tuple(layer.weight * float("nan") for layer in e.params)

    with pytest.raises(ValueError, match="score: wrong gave NaN"):
        one_shot(random_model(), data, sparsity=0.5, score=wrong, backend=backend)


def test_infinite_scores_of_pruned_weights_do_not_matter(data, backend):
    """log|w| of what is gone is −∞, which no unit is to inherit."""

    def logarithm(e):
        xp = e.backend.xp
        return tuple(xp.log(xp.abs(layer.weight)) for layer in e.params)

    half = one_shot(random_model(), data, sparsity=0.3)
    with np.errstate(divide="ignore"):
        for pattern in ("unstructured", "columns", "neurons"):
            found = one_shot(half, data, sparsity=0.5, score=logarithm, pattern=pattern, backend=backend)
            assert any(mask.any() for mask in found.masks)
            assert all((~kept | was).all() for kept, was in zip(found.masks, half.masks, strict=True))


def test_a_score_of_integers_or_flags_will_do(data, backend):
    def flags(e):
        return tuple(layer.weight > 0 for layer in e.params)

    found = one_shot(random_model(), data, sparsity=0.2, score=flags, backend=backend)
    assert removed(found) == round(0.2 * WEIGHTS)


@pytest.mark.parametrize("pattern", ["rows", "columns"])
def test_lines_that_stay_are_not_refilled(data, pattern):
    """Regrowing exchanges whole lines; what was pruned within those that stay remains so."""
    half = one_shot(random_model(), data, sparsity=0.5)
    options = {"pattern": pattern, "schedule": mm.pruning_schedules.regrow(first="magnitude", drop=0.0)}
    found = mm.prune(half, data, seed=0, sparsity=0.2, epochs=4, **options)
    assert all((~kept | was).all() for kept, was in zip(found.masks, half.masks, strict=True))


def test_scores_of_losses_obey_the_weights_of_rows(data):
    """Without weight half of the rows do not count."""
    weight = (data.train.y == 0).astype(float)
    only = replace(data, train=mm.Dataset(data.train.x[data.train.y == 0], data.train.y[data.train.y == 0]))
    for score in ("taylor", "fisher", "neuron_taylor"):
        found = mm.prune(random_model(), data, seed=0, sparsity=0.5, epochs=0, score=score, sample_weight=weight)
        assert_same_masks(found, one_shot(random_model(), only, sparsity=0.5, score=score))


@pytest.mark.parametrize("pattern", ["rows", "columns", "neurons"])
def test_units_round_alike_on_every_backend(data, backend, pattern):
    """Lines that are permutations of one another have one score to the bit or not on every backend alike."""
    rng = np.random.default_rng(5)
    line = rng.normal(size=32).astype(np.float32)
    network = mm.Network((32, 32, 3))
    weight = np.stack([rng.permutation(line) for _ in range(32)], axis=1)
    params = mm.Layer(weight, np.ones(32, np.float32)), mm.Layer(weight[:, :3].copy(), np.ones(3, np.float32))
    model = Model(network, params, losses.softmax_cross_entropy)
    x = rng.normal(size=(60, 32))
    splits = mm.datasets.split(x, np.arange(60) % 3, seed=0)
    for score in ("magnitude", "squared"):
        options = {"sparsity": 0.5, "pattern": pattern, "score": score}
        assert_same_masks(one_shot(model, splits, backend=backend, **options), one_shot(model, splits, **options))


def test_a_model_to_rewind_to(data):
    start = random_model(seed=3)
    found = one_shot(random_model(), data, sparsity=0.5, rewind=start)
    for layer, mask, first in zip(found.params, found.masks, start.params, strict=True):
        np.testing.assert_array_equal(layer.weight, first.weight * mask)


@pytest.mark.parametrize("population", [None, 2])
def test_neurons_that_come_back_learn(data, backend, population):
    """They get weights of their own again, feed nothing at first, and then do."""
    network = mm.Network((4, 12, 8, 3))
    schedule = mm.pruning_schedules.regrow(grow="random", drop=0.5, until=0.9)
    options = {"sparsity": 0.5, "pattern": "neurons", "schedule": schedule, "epochs": 6, "batch_size": 16}
    model = random_model(population, network)
    found = mm.prune(model, data, seed=0, backend=backend, optimizer=optimizers.momentum(0.05), **options)
    first = one_shot(model, data, sparsity=0.5, pattern="neurons", score="random").masks
    assert any((a != b).any() for a, b in zip(found.masks, first, strict=True))
    assert_masked(found)
    kept = [mask.any(axis=-2) for mask in found.masks[:-1]]
    for own, (layer, after) in zip(kept, zip(found.params, found.params[1:], strict=False), strict=True):
        np.testing.assert_array_equal((layer.weight != 0).any(axis=-2), own)
        np.testing.assert_array_equal((after.weight != 0).any(axis=-1), own)
    assert sum(own.sum(axis=-1) for own in kept).tolist() == ([10] * population if population else 10)
