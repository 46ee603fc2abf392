"""What is promised across backends beyond the laws of one: the same start, each kind of step alike, recorded runs."""

from dataclasses import replace

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses, optimizers, random, tree

NETWORK = mm.Network((4, 6, 3))
STEP = {"rtol": 1e-5, "atol": 1e-6}  # one forward, gradient or update
ONE_STEP = {"epochs": 1, "batch_size": 10_000, "optimizer": optimizers.sgd(0.05)}


def trained(population=None):
    """A model with some weights, biases and ties, on the host."""
    params = NETWORK.init(random.key(3 if population is None else [3, 4, 5]))
    params = tree.map(lambda leaf: leaf + np.float32(0.01), params)
    params[1].weight[..., 0, :2] = np.float32(0.25)  # ties
    return mm.Model(NETWORK, params, losses.softmax_cross_entropy)


def learnable(splits):
    """Validation on the training rows: a step down is an improvement, so the best is where the step led."""
    return replace(splits, validation=splits.train)


def assert_exact(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def assert_close(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, **STEP)


def assert_moved(found, start):
    assert any((ours != before).any() for ours, before in zip(tree.leaves(found), tree.leaves(start), strict=True))


# The same start.


@pytest.mark.parametrize("algorithm", [mm.gradient_descent, mm.random_search])
def test_searches_start_from_the_same_parameters(algorithm, backend, splits):
    nothing = {"epochs": 0} if algorithm is mm.gradient_descent else {"generations": 0}
    ours, theirs = (algorithm(NETWORK, splits, seed=11, backend=each, **nothing) for each in (backend, "numpy"))
    for one, other in zip(tree.leaves(ours.params), tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_max_ulp(one, other, maxulp=4)


# One step.


def test_one_step_of_blurred_and_weighted_training(backend, population, splits):
    """Dropout, smoothed labels, weights of rows and of classes, on masks."""
    masks = tuple(np.arange(np.prod(shape)).reshape(shape) % 3 > 0 for shape in NETWORK.shapes)
    weights = np.random.default_rng(0).uniform(0, 3, len(splits.train.x))
    options = {
        "dropout": 0.4,
        "input_dropout": 0.2,
        "label_smoothing": 0.1,
        "sample_weight": weights,
        "class_weight": "balanced",
        "masks": masks,
        "params": trained(population).params,
        "population": population,
    }
    ours, theirs = (
        mm.gradient_descent(NETWORK, splits, seed=0, backend=each, **options, **ONE_STEP) for each in (backend, "numpy")
    )
    start = mm.gradient_descent(NETWORK, splits, seed=0, **options, **{**ONE_STEP, "epochs": 0})
    assert_moved(ours.state.params, start.params)
    assert_close(ours.state.params, theirs.state.params)
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], **STEP)


def test_one_generation_of_random_search(backend, splits):
    ours, theirs = (
        mm.random_search(NETWORK, splits, seed=0, backend=each, generations=1, population=8)
        for each in (backend, "numpy")
    )
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], **STEP)
    assert_close(ours.params, theirs.params)


def test_one_step_after_pruning(backend, splits):
    ours, theirs = (
        mm.prune(trained(), learnable(splits), seed=0, sparsity=0.5, backend=each, **ONE_STEP)
        for each in (backend, "numpy")
    )
    assert_exact(ours.masks, theirs.masks)
    assert_moved(ours.params, mm.prune(trained(), splits, seed=0, sparsity=0.5, epochs=0).params)
    assert_close(ours.params, theirs.params)


def test_one_step_through_the_rounding(backend, splits):
    """At 8 bits and a small step no weight lies so near a rounding edge that a float's last bit would move it."""
    ours, theirs = (
        mm.quantize(trained(), learnable(splits), seed=0, bits=8, backend=each, **ONE_STEP)
        for each in (backend, "numpy")
    )
    assert_exact(tuple(q.values for q in ours.quantized), tuple(q.values for q in theirs.quantized))
    assert_moved(ours.params, mm.quantize(trained(), splits, seed=0, bits=8, epochs=0).params)
    assert_close(ours.params, theirs.params)


def test_two_backends_run_side_by_side(splits):
    """There is no current backend: each call has its own, and the results are NumPy's all the same."""
    pytest.importorskip("jax")
    first = mm.gradient_descent(NETWORK, splits, seed=0, epochs=1)
    mm.gradient_descent(NETWORK, splits, seed=0, epochs=1, backend="jax")
    again = mm.gradient_descent(NETWORK, splits, seed=0, epochs=1)
    assert_exact(first.params, again.params)
    assert all(type(leaf) is np.ndarray for leaf in tree.leaves(again.params))


# NumPy records the step of a loop once and replays it; in debug mode every step runs as it is written.

TRAININGS = {
    "sgd": {"optimizer": optimizers.sgd(0.1)},
    "adam": {"optimizer": optimizers.adam(0.02, weight_decay=0.01)},
    "everything": {
        "optimizer": optimizers.nesterov(0.05, clip_norm=1.0, clip_value=0.1, l1=1e-3, average=0.9, sharpness=0.05)
    },
    "amsgrad": {"optimizer": optimizers.amsgrad(0.02)},
    "rmsprop": {"optimizer": optimizers.rmsprop(0.01, centered=True, momentum=0.5)},
    "lbfgs": {"optimizer": optimizers.lbfgs(), "epochs": 8},
    "noise": {"dropout": 0.4, "input_dropout": 0.2, "label_smoothing": 0.1},
    "weights": {"class_weight": [1, 5, 0.5], "sample_weight": np.arange(64.0)},
    "masks": {"masks": tuple(np.arange(np.prod(shape)).reshape(shape) % 3 > 0 for shape in NETWORK.shapes)},
    "patience": {"patience": 1, "optimizer": optimizers.adam(0.3), "epochs": 6},
    "a schedule": {"optimizer": optimizers.momentum(mm.schedules.cosine(0.2, warmup=0.3))},
    "single rows": {"batch_size": 1, "epochs": 2},
}


def unrecorded():
    return mm.backends.load("numpy", debug=True)


def assert_same_run(found, expected):
    assert_exact(found.params, expected.params)
    for name, log in expected.history.items():
        assert_exact((found.history[name],), (log,))
    states = [getattr(model.state, "search", model.state) for model in (found, expected)]  # of either kind of run
    assert_exact(*states)


@pytest.mark.parametrize("name", TRAININGS)
def test_recorded_training_is_training_step_by_step(name, population, splits, exact_sums):
    options = {"seed": 3, "population": population, "epochs": 3, "batch_size": 8, **TRAININGS[name]}
    found, expected = (
        mm.gradient_descent(NETWORK, splits, backend=each, **options) for each in ("numpy", unrecorded())
    )
    assert len(found.history["loss"]) >= 8
    assert_same_run(found, expected)


@pytest.mark.parametrize("name", ["sgd", "everything", "noise", "weights", "masks"])
def test_recorded_sums_change_no_more_than_the_rounding(name, population, splits):
    options = {"seed": 3, "population": population, "epochs": 2, "batch_size": 8, **TRAININGS[name]}
    found, expected = (
        mm.gradient_descent(NETWORK, splits, backend=each, **options) for each in ("numpy", unrecorded())
    )
    for log in ("loss", "validation_loss"):
        np.testing.assert_allclose(found.history[log], expected.history[log], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "compress",
    [
        lambda model, data, **options: mm.prune(model, data, sparsity=0.5, **options),
        lambda model, data, **options: mm.prune(model, data, sparsity=0.7, schedule="gradual", **options),
        lambda model, data, **options: mm.quantize(model, data, bits=3, **options),
    ],
    ids=["prune", "gradual", "quantize"],
)
def test_recorded_retraining_is_retraining_step_by_step(compress, population, splits, exact_sums):
    options = {"seed": 0, "epochs": 4, "batch_size": 8, "optimizer": optimizers.momentum(0.05, weight_decay=0.01)}
    found, expected = (
        compress(trained(population), splits, backend=each, **options) for each in ("numpy", unrecorded())
    )
    assert_same_run(found, expected)


def test_a_recorded_search_is_the_search_step_by_step(splits):
    options = {"seed": 0, "generations": 25, "population": 8}
    found, expected = (mm.random_search(NETWORK, splits, backend=each, **options) for each in ("numpy", unrecorded()))
    assert_same_run(found, expected)


def test_a_result_is_not_touched_by_a_later_run(splits):
    """The buffers of a record are used again and again, what was returned is not among them."""
    options = {"epochs": 3, "batch_size": 8, "optimizer": optimizers.adam(0.02)}
    first = mm.gradient_descent(NETWORK, splits, seed=0, **options)
    kept = tree.map(np.copy, (first.params, first.state, tuple(first.history.values())))
    mm.gradient_descent(NETWORK, splits, seed=1, **options)
    mm.gradient_descent(NETWORK, splits, seed=0, resume=first, **{**options, "epochs": 6})
    mm.prune(first, splits, seed=0, sparsity=0.5, **options)
    assert_exact((first.params, first.state, tuple(first.history.values())), kept)
