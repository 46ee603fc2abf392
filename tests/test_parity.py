"""What is promised across backends: exact bits, the same start, the same masks and integers, one step alike."""

from dataclasses import replace

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses, optimizers, qarray, random, ranges, tree
from minimodel.compress.calibration import calibrate
from minimodel.compress.masks import Choice, choose
from minimodel.compress.patterns import unstructured
from minimodel.problem import to_backend

NETWORK = mm.Network((4, 6, 3))
STEP = {"rtol": 1e-5, "atol": 1e-6}  # one forward, gradient or update
ONE_STEP = {"epochs": 1, "batch_size": 10_000, "optimizer": optimizers.sgd(0.05)}


@pytest.fixture
def numpy_backend():
    return mm.backends.load("numpy")


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


# Exact.


@pytest.mark.parametrize("seed", [0, 12345, 2**40 + 7, [1, 2, 3]], ids=str)
def test_draws_are_the_same_bits(seed, backend):
    key = random.key(seed)
    for draw, *arguments in (
        (random.bits, (33,)),
        (random.uniform, (4, 5)),
        (random.uniform, (4, 5), -1.0, 1.0),
        (random.permutation, 33),
    ):
        assert_exact((backend.to_numpy(draw(key, *arguments, backend=backend)),), (draw(key, *arguments),))
    assert_exact((backend.to_numpy(random.fold_in(backend.asarray(key), 9)),), (random.fold_in(key, 9),))
    assert_exact((backend.to_numpy(random.split(backend.asarray(key), 3)),), (random.split(key, 3),))


def chosen(scores, removed, backend):
    """The masks that remove so many: of all weights, or of each layer."""
    pooled = len(removed) == 1
    sizes = [score.shape[-2] * score.shape[-1] for score in scores]
    groups = [sum(sizes)] if pooled else sizes
    kept = tuple(np.asarray(size - n, np.int32) for size, n in zip(groups, removed, strict=True))
    run = backend.jit(choose, static=("choice",))
    return run(scores, None, kept, choice=Choice(backend, unstructured(), pooled, (0,) * len(sizes)))


@pytest.mark.parametrize("removed", [[0], [17], [42], [13, 5], [24, 0]], ids=str)
def test_equal_weights_give_equal_masks(removed, backend, population, numpy_backend):
    params = trained(population).params
    masks = [
        each.to_numpy(chosen(to_backend(each, tuple(np.abs(layer.weight) for layer in params)), removed, each))
        for each in (backend, numpy_backend)
    ]
    assert_exact(*masks)
    members = population or 1
    assert sum(int((~mask).sum()) for mask in masks[0]) == members * sum(removed)


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"allocation": [0.4, 0.3]}, {"threshold": 0.3}], ids=str)
def test_prune_chooses_the_same_weights(options, backend, population, splits):
    ours, theirs = (
        mm.prune(trained(population), splits, seed=0, backend=each, epochs=0, **options) for each in (backend, "numpy")
    )
    assert_exact(ours.masks, theirs.masks)
    assert_exact(ours.params, theirs.params)
    assert 0 < sum(int(mask.sum()) for mask in ours.masks) < sum(mask.size for mask in ours.masks)


@pytest.mark.parametrize("scheme", qarray.SCHEMES)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("granularity", ["channel", 4])
def test_equal_weights_and_scales_give_equal_integers(bits, scheme, granularity, backend, numpy_backend):
    w = np.random.default_rng(0).normal(size=(3, 30, 7)).astype(np.float32)
    w[:, :5] = 0
    quantizer = calibrate(w, bits, scheme=scheme, granularity=granularity, range_of=ranges.min_max)
    found = [
        each.to_numpy(qarray.quantize(each.asarray(w), to_backend(each, quantizer)))
        for each in (backend, numpy_backend)
    ]
    assert_exact(*found)
    assert len(np.unique(found[0].values)) > (1 if bits == 1 else 2)
    restored = [each.to_numpy(qarray.dequantize(tree.map(each.asarray, found[0]))) for each in (backend, numpy_backend)]
    assert_exact((restored[0],), (restored[1],))


def test_quantize_gives_the_same_integers(backend, population, splits):
    ours, theirs = (
        mm.quantize(trained(population), splits, seed=0, bits=4, backend=each, epochs=0) for each in (backend, "numpy")
    )
    assert_exact(ours.quantized, theirs.quantized)
    assert_exact(ours.params, theirs.params)


# The same start.


@pytest.mark.parametrize("algorithm", [mm.gradient_descent, mm.random_search])
def test_searches_start_from_the_same_parameters(algorithm, backend, splits):
    nothing = {"epochs": 0} if algorithm is mm.gradient_descent else {"generations": 0}
    ours, theirs = (algorithm(NETWORK, splits, seed=11, backend=each, **nothing) for each in (backend, "numpy"))
    for one, other in zip(tree.leaves(ours.params), tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_max_ulp(one, other, maxulp=4)


# One step.


def test_one_step_of_gradient_descent(backend, population, splits):
    start = trained(population).params
    ours, theirs = (
        mm.gradient_descent(
            NETWORK, learnable(splits), seed=0, backend=each, params=start, population=population, **ONE_STEP
        )
        for each in (backend, "numpy")
    )
    assert_moved(ours.params, start)
    assert_close(ours.params, theirs.params)
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(ours.history[name], theirs.history[name], **STEP)


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
