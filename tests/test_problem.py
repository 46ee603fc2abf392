"""From data to rows on a backend: normalised, encoded, and weighted by row and by class."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses, optimizers, tree
from minimodel.gradients import objective
from minimodel.problem import class_weights, prepare

NETWORK = mm.Network((4, 6, 3))
LINEAR = mm.Network((4, 3))
ALL = 10_000  # a batch of all rows


@pytest.fixture(scope="module")
def data():
    """Classes of 10, 20 and 45 training rows, of which the inputs are normalised already."""
    return unbalanced()


def unbalanced(regression=False):
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1, 2], [10, 20, 45]))
    x = (rng.normal(size=(75, 4)) + np.eye(3, 4)[y]).astype(np.float32)
    if regression:
        y = (x[:, :3] ** 2).astype(np.float32)
    train = mm.Dataset(x, y)
    return mm.Splits(train, mm.Dataset(x[::3] + np.float32(0.1), y[::3]), train)


def streamed(data, size=20):
    """The same as a stream in batches, that is not normalised either."""
    batches = [(data.train.x[at : at + size], data.train.y[at : at + size]) for at in range(0, len(data.train.x), size)]
    return replace(mm.stream_batches(batches, data.validation, data.test), normalization=None, targets=None)


def draw_params(network=NETWORK):
    """Not where the gradient is small, and with biases."""
    rng = np.random.default_rng(1)
    return tuple(
        mm.Layer(*(rng.normal(size=shape).astype(np.float32) for shape in (pair, pair[1:]))) for pair in network.shapes
    )


def value_and_grad(data, loss=None, **weights):
    """J on all training rows and its gradient, by way of the problem that training is given."""
    found = prepare(NETWORK, data, loss, mm.backends.load("numpy"), fitted=data, **weights)
    (rows,) = found.chunks(0, 1)
    return objective(NETWORK, found.loss, draw_params(), *rows, None)


def weights_of(data, **weights):
    """The weight of every training row, as training is given it."""
    return prepare(NETWORK, data, None, mm.backends.load("numpy"), fitted=data, **weights).chunks(0, 1)[0].weight


def assert_close(found, expected, rtol=2e-5, atol=1e-6):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


def assert_differ(one, other):
    assert any(not np.allclose(a, b, rtol=1e-3) for a, b in zip(tree.leaves(one), tree.leaves(other), strict=True))


# Rows.


def test_labels_become_one_hot_rows(backend, data):
    found = prepare(NETWORK, data, None, backend, fitted=data)
    assert found.loss is losses.softmax_cross_entropy and found.rows == 75
    for rows, part in ((found.chunks(0, 1)[0], data.train), (found.validation, data.validation)):
        assert rows.x.dtype == rows.t.dtype == backend.xp.float32 and rows.weight is None
        np.testing.assert_array_equal(backend.to_numpy(rows.x), part.x)
        np.testing.assert_array_equal(backend.to_numpy(rows.t), np.eye(3)[part.y])


def test_inputs_and_targets_are_normalised_as_the_data_or_a_model_say():
    rng = np.random.default_rng(0)
    x = 7 + 3 * rng.normal(size=(60, 4))
    data = mm.datasets.split(x, 100 + 10 * rng.normal(size=(60, 3)), seed=0)
    found = prepare(NETWORK, data, None, mm.backends.load("numpy"), fitted=data)
    (rows,) = found.chunks(3, 8)
    assert found.loss is losses.mean_squared_error
    for values in rows[:2]:
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(axis=0), 1, rtol=1e-4)
    model = mm.Model(NETWORK, (), losses.mean_squared_error)
    (rows,) = prepare(NETWORK, data, None, mm.backends.load("numpy"), fitted=model).chunks(0, 1)
    np.testing.assert_array_equal(rows.x, data.train.x)
    np.testing.assert_array_equal(rows.t, data.train.y)


def test_the_rows_in_memory_are_one_chunk_in_every_epoch(data):
    found = prepare(NETWORK, data, None, mm.backends.load("numpy"), fitted=data, class_weight="balanced")
    (first,), (later,) = found.chunks(0, 1), found.chunks(5, 16)
    for one, other in zip(first, later, strict=True):
        assert one is other


def test_bad_training_rows_are_named_before_bad_validation_rows(data):
    """Where both are wrong, in the same way, it is the network or the loss that does not fit."""
    with pytest.raises(ValueError, match=r"^train\.x: the network takes \(n, 5\), got \(75, 4\)"):
        prepare(mm.Network((5, 3)), data, None, mm.backends.load("numpy"), fitted=data)


@pytest.mark.parametrize("weights", [{}, {"class_weight": "balanced"}, {"sample_weight": np.ones(75)}], ids=str)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y.astype(np.float32),
        lambda y: y - 1,
        lambda y: y[:, None],
        lambda y: y.astype(str),
        lambda y: np.where(y == 2, 2**40, y),
    ],
    ids=["floats", "negative", "a column", "text", "too high"],
)
def test_labels_are_checked_before_they_are_weighted(spoil, weights, data):
    wrong = replace(data, train=data.train._replace(y=spoil(data.train.y)))
    with pytest.raises(ValueError, match=r"^train(\.y)?: "):
        prepare(NETWORK, wrong, "softmax_cross_entropy", mm.backends.load("numpy"), fitted=wrong, **weights)


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int8, np.int64])
def test_labels_may_be_integers_of_any_kind(kind, data):
    typed = replace(data, train=data.train._replace(y=data.train.y.astype(kind)))
    assert_close(value_and_grad(typed, class_weight="balanced"), value_and_grad(data, class_weight="balanced"), 0, 0)


# Weights of rows.


def draw_weights(seed=2):
    return np.random.default_rng(seed).uniform(0, 5, size=75)


def torch_gradient(torch, data, **reduction):
    """J and its gradient at ``draw_params``; ``reduction`` is what cross_entropy takes, or row weights."""
    leaves = [torch.tensor(leaf.astype(np.float64), requires_grad=True) for leaf in tree.leaves(draw_params())]
    hidden = torch.relu(torch.tensor(data.train.x, dtype=torch.float64) @ leaves[0] + leaves[1])
    z, y = hidden @ leaves[2] + leaves[3], torch.tensor(data.train.y)
    if "rows" in reduction:
        w = torch.tensor(reduction["rows"])
        value = (w * torch.nn.functional.cross_entropy(z, y, reduction="none")).sum() / w.sum()
    else:
        value = torch.nn.functional.cross_entropy(z, y, **reduction)
    value.backward()
    return (value.item(), *(leaf.grad.numpy() for leaf in leaves))


def test_sample_weights_give_the_weighted_mean_of_torch(oracle, data):
    torch, weights = oracle("torch"), draw_weights()
    found = value_and_grad(data, sample_weight=weights)
    assert_close(tuple(tree.leaves(found)), torch_gradient(torch, data, rows=weights))
    assert_differ(found, value_and_grad(data))


@pytest.mark.parametrize(
    "given", [[1, 4, 0.5], np.array([2.0, 0.0, 1.0]), {0: 1, 1: 4, 2: 0.5}, {2: 0.25}], ids=lambda given: str(given)
)
def test_class_weights_give_the_weighted_mean_of_torch(oracle, data, given):
    """Classes that a dict leaves out weigh 1."""
    torch = oracle("torch")
    listed = [given.get(i, 1) for i in range(3)] if isinstance(given, dict) else given
    expected = torch_gradient(torch, data, weight=torch.tensor(np.asarray(listed, np.float64)))
    assert_close(tuple(tree.leaves(value_and_grad(data, class_weight=given))), expected)


def test_balanced_weights_are_those_of_scikit_learn(oracle, data):
    theirs = oracle("sklearn.utils.class_weight")
    expected = theirs.compute_class_weight("balanced", classes=np.arange(3), y=data.train.y)
    counts = np.bincount(data.train.y)
    np.testing.assert_allclose(class_weights("balanced", counts), expected, rtol=1e-14)
    rows = weights_of(data, class_weight="balanced")
    np.testing.assert_allclose(rows, theirs.compute_sample_weight("balanced", data.train.y), rtol=1e-6)
    np.testing.assert_allclose([rows[data.train.y == i].sum() for i in range(3)], 25, rtol=1e-5)


def test_both_weights_multiply(data):
    rows = draw_weights()
    both = value_and_grad(data, sample_weight=rows, class_weight=[1, 4, 0.5])
    product = value_and_grad(data, sample_weight=rows * np.array([1, 4, 0.5])[data.train.y])
    assert_close(both, product, rtol=1e-5)


@pytest.mark.parametrize("loss", ["mean_squared_error", "huber", "binary_cross_entropy"])
def test_rows_of_targets_may_be_weighted(loss):
    data, weights = unbalanced(regression=True), draw_weights()
    if loss == "binary_cross_entropy":
        data = replace(data, **{name: part._replace(y=(part.y > 0.5).astype(np.float32)) for name, part in parts(data)})
    found = value_and_grad(data, loss, sample_weight=weights)
    rows = [
        mm.value_and_grad(NETWORK, loss, draw_params(), data.train.x[i : i + 1], data.train.y[i : i + 1])
        for i in range(75)
    ]
    expected = tree.map(lambda *each: sum(w * e for w, e in zip(weights / weights.sum(), each, strict=True)), *rows)
    assert_close(found, expected)


def parts(data):
    return [(name, getattr(data, name)) for name in ("train", "validation", "test")]


@pytest.mark.parametrize("factor", [1e-9, 7, 1e9])
def test_only_the_ratios_of_weights_matter(factor, data):
    """They are 1 on average, so the learning rate keeps its meaning."""
    weights = draw_weights()
    rows = weights_of(data, sample_weight=factor * weights)
    np.testing.assert_allclose(rows.mean(), 1, rtol=1e-6)
    np.testing.assert_allclose(rows, weights * (75 / weights.sum()), rtol=1e-6)
    by_class = weights_of(data, class_weight=factor * np.array([3, 2, 1]))
    np.testing.assert_allclose(by_class.mean(), 1, rtol=1e-6)
    np.testing.assert_allclose(by_class / by_class.min(), 3 - data.train.y, rtol=1e-6)


def test_equal_weights_change_nothing(data):
    plain = value_and_grad(data)
    for weights in ({"sample_weight": np.full(75, 3)}, {"class_weight": [2, 2, 2]}, {"class_weight": {}}):
        assert_close(value_and_grad(data, **weights), plain, rtol=1e-5)


def test_a_row_of_weight_two_is_that_row_twice(data):
    weights = np.ones(75)
    weights[5:15] = 2
    twice = replace(data, train=mm.Dataset(*(np.concatenate([part, part[5:15]]) for part in data.train)))
    assert_close(value_and_grad(data, sample_weight=weights), value_and_grad(twice))


def test_rows_of_weight_zero_do_not_matter(data):
    """Neither what they hold nor whether they are there."""
    weights = draw_weights() * (np.arange(75) % 3 > 0)
    x, y = data.train.x.copy(), data.train.y.copy()
    x[weights == 0], y[weights == 0] = 50, 0
    changed = replace(data, train=mm.Dataset(x, y))
    without = replace(data, train=mm.Dataset(x[weights > 0], y[weights > 0]))
    found = value_and_grad(data, sample_weight=weights)
    assert_close(value_and_grad(changed, sample_weight=weights), found, rtol=1e-6)
    assert_close(value_and_grad(without, sample_weight=weights[weights > 0]), found)


def test_a_class_without_training_rows_has_a_weight_too(data):
    """One number for each class of the network: which classes a split happens to hold is not known beforehand."""
    train = mm.Dataset(*(part[data.train.y < 2] for part in data.train))
    rare = replace(data, train=train)
    expected = value_and_grad(rare, sample_weight=np.array([1, 4, 9])[train.y])
    for given in ([1, 4, 9], {1: 4, 2: 9}):
        assert_close(value_and_grad(rare, class_weight=given), expected, rtol=1e-5)
    assert_close(
        value_and_grad(rare, class_weight="balanced"), value_and_grad(rare, sample_weight=np.array([2, 1])[train.y])
    )


def test_a_stream_weighs_its_classes_alike(data):
    """By the counts of its first pass: every chunk has the weights that the rows have together."""
    together, chunks = (
        list(prepare(NETWORK, part, None, mm.backends.load("numpy"), fitted=part, class_weight={0: 5}).chunks(0, 10))
        for part in (data, streamed(data))
    )
    found = {tuple(t): w for rows in chunks for t, w in zip(rows.t.tolist(), rows.weight.tolist(), strict=True)}
    assert found == {tuple(t): w for t, w in zip(together[0].t.tolist(), together[0].weight.tolist(), strict=True)}


# In training.


def train(data, network=NETWORK, **options):
    """By default one step of rate 1 on all rows."""
    one_step = {"seed": 0, "epochs": 1, "batch_size": ALL, "optimizer": optimizers.sgd(1.0)}
    return mm.gradient_descent(network, data, **one_step | {"params": draw_params(network)} | options)


def test_a_step_of_training_goes_along_the_weighted_gradient(backend, data):
    given = {"sample_weight": draw_weights(), "class_weight": "balanced"}
    found = train(data, backend=backend, **given)
    value, grads = value_and_grad(data, **given)
    assert_close(found.state.params, tree.map(lambda p, g: p - g, draw_params(), grads))
    np.testing.assert_allclose(found.history["loss"][0], value, rtol=1e-5)


def test_scikit_learn_takes_the_same_weighted_step(oracle, data):
    """Since 1.9 ``MLPClassifier._backprop`` divides by the sum of the weights of its batch, so that on all rows at once
    its gradient is our weighted mean as it is, and its penalty α/Σw·W, ours λW. Before 1.7 it took no weights."""
    oracle("sklearn")
    from sklearn.neural_network import MLPClassifier

    if "sample_weight" not in inspect.signature(MLPClassifier.partial_fit).parameters:
        pytest.skip("this scikit-learn has no sample_weight for MLPClassifier")
    weights, rate, alpha = draw_weights(), 0.1, 0.5
    options = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": rate, "batch_size": 75, "random_state": 0}
    peer = MLPClassifier(hidden_layer_sizes=(6,), alpha=alpha, **options).partial_fit(
        data.train.x, data.train.y, classes=range(3)
    )
    start = draw_params()
    peer.coefs_ = [layer.weight.astype(np.float64) for layer in start]
    peer.intercepts_ = [layer.bias.astype(np.float64) for layer in start]
    for _ in range(3):
        peer.partial_fit(data.train.x.astype(np.float64), data.train.y, sample_weight=weights)
    optimizer = optimizers.sgd(rate, weight_decay=alpha / weights.sum())
    found = train(data, epochs=3, optimizer=optimizer, sample_weight=weights).state.params
    for ours, weight, bias in zip(found, peer.coefs_, peer.intercepts_, strict=True):
        np.testing.assert_allclose(ours.weight, weight, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours.bias, bias, rtol=1e-4, atol=1e-6)


def test_mini_batches_take_the_weights_of_their_rows(data):
    """Rows that are all alike but for their class: each batch's loss is the mean weight of its rows times theirs."""
    alike = replace(data, train=mm.Dataset(np.zeros_like(data.train.x), data.train.y))
    zeros = tree.map(np.zeros_like, draw_params(LINEAR))
    still = {"batch_size": 15, "params": zeros, "optimizer": optimizers.sgd(0.0)}
    rows = weights_of(data, class_weight="balanced")
    log = train(alike, LINEAR, class_weight="balanced", **still).history["loss"]
    assert len(log) == 5 and np.ptp(log) > 0.01
    np.testing.assert_allclose(log.mean(), np.log(3) * rows.mean(), rtol=1e-5)
    np.testing.assert_allclose(train(alike, LINEAR, **still).history["loss"], np.log(3), rtol=1e-5)


def test_the_validation_loss_is_not_weighted(population, data):
    found = train(data, population=population, class_weight=[100, 1, 1], epochs=2, optimizer=optimizers.sgd(0.1))
    log = found.history["validation_loss"]
    plain = mm.Model(NETWORK, draw_params(), losses.softmax_cross_entropy)
    np.testing.assert_allclose(log[0], plain.evaluate(data.validation).loss, rtol=1e-5)
    np.testing.assert_allclose(found.evaluate(data.validation).loss, log.min(axis=0), rtol=1e-5)


def test_a_weighted_class_is_predicted_more_often(data):
    """By the last parameters: the best are those of a validation that is not weighted."""
    counts = []
    for weight in (0, 1, 10):
        options = {"epochs": 60, "batch_size": 25, "optimizer": optimizers.adam(0.02)}
        found = train(data, LINEAR, class_weight={0: weight}, **options)
        counts.append(int((replace(found, params=found.state.params).predict(data.train.x) == 0).sum()))
    assert counts[0] < counts[1] < counts[2]


def test_a_population_shares_the_weights(data):
    together = train(data, population=3, class_weight="balanced")
    for i in range(3):
        alone = train(data, seed=i, class_weight="balanced")
        assert_close(together.member(i).params, alone.params)


def test_pruned_and_quantized_models_retrain_with_weights(data):
    """The loss of the first step, on all rows, is the weighted one of the model that is only pruned or rounded."""
    given = {"sample_weight": draw_weights(), "class_weight": [1, 4, 0.5]}
    start = mm.Model(NETWORK, draw_params(), losses.softmax_cross_entropy)
    for algorithm, how in ((mm.prune, {"sparsity": 0.5}), (mm.quantize, {"bits": 4})):
        compressed, retrained = (
            algorithm(start, data, seed=0, epochs=epochs, batch_size=ALL, **how, **given) for epochs in (0, 1)
        )
        expected = train(data, params=compressed.params, **given).history["loss"][0]
        np.testing.assert_allclose(retrained.history["loss"][0], expected, rtol=1e-5)


def test_a_stream_trains_with_class_weights(data):
    """One chunk of all rows: the same rows, the same weights, the same loss."""
    found, expected = (train(part, class_weight={0: 5}).history["loss"] for part in (streamed(data), data))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Bad weights: one ValueError that names the argument.

BAD = {
    "one too few": {"sample_weight": np.ones(74)},
    "a column": {"sample_weight": np.ones((75, 1))},
    "one for all": {"sample_weight": 1.0},
    "negative": {"sample_weight": np.r_[-1.0, np.ones(74)]},
    "NaN": {"sample_weight": np.r_[np.nan, np.ones(74)]},
    "infinity": {"sample_weight": np.r_[np.inf, np.ones(74)]},
    "text": {"sample_weight": "balanced"},
    "texts": {"sample_weight": ["a"] * 75},
    "ragged": {"sample_weight": [[1.0], [1.0, 2.0]]},
    "nothing": {"sample_weight": [None] * 75},
    "a dict": {"sample_weight": {0: 1.0}},
    "all zero": {"sample_weight": np.zeros(75)},
    "one class too few": {"class_weight": [1, 1]},
    "one class too many": {"class_weight": [1, 1, 1, 1]},
    "one for all classes": {"class_weight": 2.0},
    "a negative class": {"class_weight": [1, -1, 1]},
    "a class of NaN": {"class_weight": [1, np.nan, 1]},
    "another word": {"class_weight": "unbalanced"},
    "classes as text": {"class_weight": ["a", "b", "c"]},
    "a set": {"class_weight": {1, 2, 3}},
    "a class that is not": {"class_weight": {3: 1.0}},
    "a class by name": {"class_weight": {"ant": 1.0}},
    "a negative number in a dict": {"class_weight": {0: -1.0}},
    "text in a dict": {"class_weight": {0: "heavy"}},
    "all classes zero": {"class_weight": [0, 0, 0]},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_weights_are_refused_by_name(case, data):
    (name,) = BAD[case]
    with pytest.raises(ValueError, match=rf"^(sample_weight, class_weight|{name}): "):
        train(data, **BAD[case])


def test_classes_that_all_weigh_nothing_are_refused(data):
    """A dict may leave weight to classes that have no rows."""
    only = replace(data, train=mm.Dataset(data.train.x[data.train.y > 0], data.train.y[data.train.y > 0]))
    with pytest.raises(ValueError, match="class_weight: "):
        train(only, class_weight={1: 0, 2: 0})


@pytest.mark.parametrize("case", [case for case in BAD if "class_weight" in BAD[case]])
def test_bad_class_weights_of_a_stream_are_refused_by_name(case, data):
    with pytest.raises(ValueError, match=r"^(sample_weight, )?class_weight: "):
        train(streamed(data), **BAD[case])


def test_weights_where_there_is_nothing_to_weigh_are_refused_by_name(data):
    targets = unbalanced(regression=True)
    for part in (targets, streamed(targets)):
        with pytest.raises(ValueError, match=r"^class_weight: .*no classes"):
            train(part, class_weight="balanced")
    with pytest.raises(ValueError, match=r"^sample_weight: a stream takes none"):
        train(streamed(data), sample_weight=np.ones(75))
