"""Every optimizer with every loss on every backend, alone and as a population: one table, one test for all of it."""

import os
from functools import partial

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses, optimizers, schedules, tree
from minimodel.problem import masked, prepare, run_keys
from minimodel.search.programs import epoch
from minimodel.search.training import fit

# By a factor on its rate and numbers, so that they can change where the program may not.
OPTIMIZERS = {
    "sgd": lambda by: optimizers.sgd(0.2 * by, weight_decay=0.01 * by, l1=0.001 * by, clip_norm=2.0 * by),
    "momentum": lambda by: optimizers.momentum(0.05 * by, momentum=0.8 * by, weight_decay=0.01 * by, decoupled=True),
    "nesterov": lambda by: optimizers.nesterov(0.05 * by, momentum=0.8 * by, clip_value=2.0 * by),
    "adagrad": lambda by: optimizers.adagrad(0.1 * by, eps=1e-6 * by, initial=0.01 * by),
    "rmsprop": lambda by: optimizers.rmsprop(0.01 * by, decay=0.9 * by, centered=True, momentum=0.5 * by),
    "adam": lambda by: optimizers.adam(
        0.03 * by, b1=0.9 * by, b2=0.99 * by, eps_root=1e-6 * by, weight_decay=0.01 * by
    ),
    "adamw": lambda by: optimizers.adamw(0.03 * by, weight_decay=0.1 * by),
    "amsgrad": lambda by: optimizers.amsgrad(0.03 * by, b2=0.9 * by),
    "nadam": lambda by: optimizers.nadam(0.03 * by, momentum_decay=0.01 * by),
    "lion": lambda by: optimizers.lion(0.01 * by, b1=0.9 * by, weight_decay=0.1 * by),
    "average": lambda by: optimizers.momentum(0.05 * by, average=0.5 * by),
    "sharpness": lambda by: optimizers.sgd(0.2 * by, sharpness=0.05 * by),
    "lbfgs": lambda by: optimizers.lbfgs(by, memory=2),
}
OUTPUTS, ROWS, BATCH, HALF = 3, 20, 5, 2
NETWORK = mm.Network((4, 5, OUTPUTS), "tanh", initializer="glorot")


def problem(loss):
    """A few rows that can be learned; validation is train, so that the best is the last where it learns."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    score = x @ rng.normal(size=(4, OUTPUTS))
    y = {
        "softmax_cross_entropy": score.argmax(1).astype(np.int32),
        "binary_cross_entropy": (score > 0).astype(np.float32),
        "mean_squared_error": np.tanh(score).astype(np.float32),
        "huber": (2 * score).astype(np.float32),
    }[loss]
    part = mm.Dataset(x, y)
    return mm.Splits(part, part, part)


def draw_masks(population):
    """About half of the weights; of a population each member's own."""
    lead = () if population is None else (population,)
    return tuple(np.random.default_rng(1).random((*lead, *shape)) < 0.6 for shape in NETWORK.shapes)


def assert_same(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_the_same_run(found, expected):
    """Bit for bit: parameters, state, and all that was recorded."""
    assert_same((found.params, found.state), (expected.params, expected.state))
    assert found.history.keys() == expected.history.keys()
    for name, log in found.history.items():
        np.testing.assert_array_equal(log, expected.history[name])


def programs(backend):
    """How often the program of an epoch was compiled."""
    return backend.jit(epoch, static=("static",), donate=("state",)).compiled._cache_size()


def cases():
    """All of them with MINIMODEL_ALL_CASES=1. Else all on NumPy; on the strict namespace, at half a second each, every
    optimizer alone and as a population, each time with another loss; on JAX what the rule for all tests leaves."""
    everything = os.environ.get("MINIMODEL_ALL_CASES") == "1"
    for i, name in enumerate(OPTIMIZERS):
        for j, loss in enumerate(losses.NAMES):
            for k, population in enumerate((None, 3)):
                yield name, loss, "numpy", population
                yield name, loss, "jax", population
                if everything or (j - i) % 4 == k:
                    yield name, loss, "strict", population


@pytest.mark.parametrize(("name", "loss", "backend", "population"), [*cases()], indirect=["backend", "population"])
def test_every_optimizer_learns_every_loss(name, loss, backend, population, exact_sums):
    """It learns, keeps masked weights at exactly 0, resumes to the bits of one long run, and compiles once."""
    compiles, half = backend.name == "jax", 2 * HALF if name == "lbfgs" else HALF
    masks, make = draw_masks(population), OPTIMIZERS[name]
    run = partial(
        mm.gradient_descent,
        NETWORK,
        problem(loss),
        seed=3,
        batch_size=BATCH,
        loss=loss,
        masks=masks,
        population=population,
    )
    before = programs(backend) if compiles else 0
    whole = run(backend=backend, optimizer=make(1.0), epochs=2 * half)

    log = whole.history["validation_loss"]
    assert log.shape == (2 * half + 1, *masks[0].shape[:-2])
    assert all(np.isfinite(leaf).all() for leaf in (*tree.leaves(whole.params), *whole.history.values()))
    assert (log[-1] < log[0]).all()
    assert (log.min(axis=0) < 0.97 * log[0]).all()
    np.testing.assert_allclose(whole.evaluate(problem(loss).validation).loss, log.min(axis=0), rtol=1e-5)

    assert_same(masked(whole.state, masks), whole.state)
    for layer, kept, at_rest in zip(whole.params, masks, run(epochs=0).params, strict=True):
        np.testing.assert_array_equal(layer.weight[~kept], 0)
        assert (layer.weight[kept] != 0).all()
        assert (layer.weight != at_rest.weight).any()

    first = run(backend=backend, optimizer=make(1.0), epochs=half)
    assert_same(first.history["validation_loss"], log[: half + 1])
    assert_the_same_run(run(backend=backend, optimizer=make(1.0), epochs=2 * half, resume=first), whole)

    if compiles:
        run(backend=backend, optimizer=make(0.5), epochs=1)
        run(backend=backend, optimizer=make(0.25), epochs=half + 1, resume=first)
        assert programs(backend) == before + 1
    elif backend.name == "numpy":  # which here runs without its recorded scans
        assert_the_same_run(run(backend="numpy", optimizer=make(1.0), epochs=2 * half), whole)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_new_masks_bring_a_diverged_member_back_to_its_best(name):
    """``remask`` after two epochs: from then on, at a rate of 0, the member that diverged has the loss of its best; the
    others go on as if nothing had happened."""
    optimizer, rates = OPTIMIZERS[name](1.0), np.array([1.0, 1e30, 1.0])
    backend, data, keys = mm.backends.load("numpy", debug=True), problem("mean_squared_error"), run_keys(0, 3)
    ones = tuple(np.ones(shape, bool) for shape in NETWORK.shapes)

    def schedule(steps, run):
        base = optimizer.schedule(steps, run)[:, None]
        late = (steps >= 2 * run.epoch)[:, None]
        return base * np.where(late & (rates > 1), 0, rates)

    runs = [
        fit(
            prepare(NETWORK, data, None, backend, fitted=data),
            keys=keys,
            params=NETWORK.init(keys),
            optimizer=optimizer._replace(schedule=schedule),
            epochs=4,
            batch_size=BATCH,
            remask=lambda done, *_, when=when: (ones, None) if done == when else None,
        )
        for when in (2, None)
    ]
    log, plain = (run.history["validation_loss"] for run in runs)
    np.testing.assert_array_equal(log[:3], plain[:3])
    assert not np.isfinite(plain[2, 1])
    np.testing.assert_array_equal(log[:, [0, 2]], plain[:, [0, 2]])
    np.testing.assert_allclose(log[3:, 1], np.fmin.reduce(log[:3, 1]), rtol=1e-5)


def test_a_run_of_no_epochs_can_be_resumed(population):
    run = partial(mm.gradient_descent, NETWORK, problem("huber"), seed=0, loss="huber", population=population)
    options = {"batch_size": BATCH, "optimizer": optimizers.adam(0.01)}
    start = run(epochs=0, **options)
    assert_the_same_run(run(epochs=2, resume=start, **options), run(epochs=2, **options))


DESCENTS = {
    "sgd": optimizers.sgd,
    "momentum": optimizers.momentum,
    "nesterov": optimizers.nesterov,
    "adagrad": partial(optimizers.adagrad, initial=1e-6),
    "rmsprop": optimizers.rmsprop,
    "adam": optimizers.adam,
    "adamw": partial(optimizers.adamw, weight_decay=0.0),
    "amsgrad": optimizers.amsgrad,
    "nadam": optimizers.nadam,
    "lion": optimizers.lion,
    "average": partial(optimizers.momentum, average=0.9),
    "sharpness": partial(optimizers.sgd, sharpness=1e-3),
    "lbfgs": optimizers.lbfgs,
}
RATES = {
    "sgd": 0.3,
    "momentum": 0.05,
    "nesterov": 0.05,
    "adagrad": 0.5,
    "average": 0.05,
    "sharpness": 0.3,
    "lbfgs": 1.0,
}


@pytest.mark.parametrize("name", DESCENTS)
def test_every_optimizer_descends_a_quadratic_to_its_minimum(name, population):
    """Least squares: one layer, the squared error, all rows at once; against the solution of the normal equations."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(30, 1)).astype(np.float32)
    part, wide = mm.Dataset(x, y), np.hstack([x, np.ones((30, 1))])
    solution, (error,), *_ = np.linalg.lstsq(wide, y.astype(np.float64), rcond=None)
    rate = RATES.get(name, 0.05)
    model = mm.gradient_descent(
        mm.Network((4, 1), "identity"),
        mm.Splits(part, part, part),
        seed=0,
        population=population,
        batch_size=30,
        epochs=40 if name == "lbfgs" else 300,
        optimizer=DESCENTS[name](rate if name == "lbfgs" else schedules.cosine(rate)),
    )
    log, best = model.history["validation_loss"], error / 30
    assert (log[0] > 1.5 * best).all()
    np.testing.assert_allclose(log[-1], best, rtol=1e-4)
    found = np.concatenate([model.params[0].weight[..., 0], model.params[0].bias], axis=-1)
    np.testing.assert_allclose(found, np.broadcast_to(solution[:, 0], found.shape), atol=5e-3)
