"""Gradient descent: it learns, alike on every backend, keeps masks and the best model, and refuses bad input."""

import functools
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses, optimizers, qarray, random, schedules, tree
from minimodel.compress import masks
from minimodel.compress.calibration import calibrate
from minimodel.losses import Loss
from minimodel.problem import masked, prepare, run_keys, to_backend
from minimodel.search import random_search
from minimodel.search.parts import Lasso
from minimodel.search.programs import Direct, Draws, Static, Traced, begin, epoch, mini_batches, parts_of
from minimodel.search.strategies import hill_climbing
from minimodel.search.training import INIT, ORDER, fit

NETWORK = mm.Network((4, 6, 3))
OPTIMIZERS = {
    "sgd": optimizers.sgd(0.1, weight_decay=0.01),
    "momentum": optimizers.momentum(0.05, weight_decay=0.01),
    "nesterov": optimizers.nesterov(0.05, weight_decay=0.01),
    "adam": optimizers.adam(0.01, weight_decay=0.01),
    "adamw": optimizers.adamw(0.01, weight_decay=0.01),
}


def regression():
    """Three smooth targets of four features."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4)).astype(np.float32)
    return mm.datasets.split(x, np.tanh(x @ rng.normal(size=(4, 3))).astype(np.float32), seed=0)


def draw_masks(population=None, seed=0):
    """About half of the weights, as arrays of 0 and 1."""
    rng = np.random.default_rng(seed)
    lead = () if population is None else (population,)
    return tuple((rng.random((*lead, *shape)) < 0.5).astype(np.float32) for shape in NETWORK.shapes)


def assert_same(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def program(backend, splits, optimizer, batch_size=16):
    """The parts of a run for driving ``begin`` and ``epoch`` by hand."""
    problem = prepare(NETWORK, splits, None, backend, fitted=splits)
    static = Static(backend, NETWORK, problem.loss, optimizer.rule, Direct(), batch_size)
    return problem, static


def within(values):
    """Every ``Params`` in a tree: parameters, or what the state of an optimizer holds for each of them."""
    if isinstance(values, tuple) and values and isinstance(values[0], mm.Layer):
        return [values]
    return [found for value in values for found in within(value)] if isinstance(values, tuple) else []


# It learns.


def test_it_learns_to_classify(backend, population, splits):
    model = mm.gradient_descent(
        NETWORK, splits, seed=0, backend=backend, epochs=15, population=population, optimizer=optimizers.adam(0.1)
    )
    log = model.history["validation_loss"]
    assert (log.min(axis=0) < 0.5 * log[0]).all()
    assert np.all(model.evaluate(splits.test).accuracy >= 0.75)


def test_it_learns_to_regress(backend, population):
    model = mm.gradient_descent(
        NETWORK, regression(), seed=0, backend=backend, epochs=8, population=population, optimizer=optimizers.adam(0.05)
    )
    log = model.history["validation_loss"]
    assert model.loss is losses.mean_squared_error
    assert (log.min(axis=0) < 0.5 * log[0]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name, splits):
    model = mm.gradient_descent(NETWORK, splits, seed=0, epochs=30, batch_size=8, optimizer=OPTIMIZERS[name])
    assert model.history["validation_loss"].min() < 0.6 * model.history["validation_loss"][0]


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "sigmoid", "silu", "gelu", "identity"])
def test_every_activation_learns(activation, splits):
    network = mm.Network((4, 6, 3), activation, initializer="glorot")
    model = mm.gradient_descent(network, splits, seed=1, epochs=12, optimizer=optimizers.adam(0.05))
    assert model.history["validation_loss"].min() < 0.6 * model.history["validation_loss"][0]


@pytest.mark.parametrize("loss", ["mean_squared_error", "huber", "binary_cross_entropy"])
def test_every_loss_of_targets_learns(loss):
    data = regression()
    if loss == "binary_cross_entropy":
        train, validation, test = (part._replace(y=(part.y > 0).astype(np.float32)) for part in parts(data))
        data = replace(data, train=train, validation=validation, test=test, targets=None)
    model = mm.gradient_descent(NETWORK, data, seed=0, epochs=12, loss=loss, optimizer=optimizers.adam(0.05))
    assert model.loss.name == loss
    assert model.history["validation_loss"].min() < 0.6 * model.history["validation_loss"][0]


def parts(data):
    return data.train, data.validation, data.test


# Alike on every backend, for one seed.


def test_the_same_seed_gives_the_same_bits(backend, splits):
    runs = [mm.gradient_descent(NETWORK, splits, seed=5, backend=backend, epochs=2) for _ in range(2)]
    assert_same(runs[0].params, runs[1].params)
    for name, log in runs[0].history.items():
        np.testing.assert_array_equal(log, runs[1].history[name])
    other = mm.gradient_descent(NETWORK, splits, seed=6, backend=backend, epochs=2)
    assert not np.array_equal(other.params[0].weight, runs[0].params[0].weight)


def test_numpy_and_jax_take_the_same_hundred_steps_on_digits():
    pytest.importorskip("jax")
    network, data = mm.Network((64, 32, 10)), mm.datasets.load("digits")
    runs = [mm.gradient_descent(network, data, seed=0, backend=name, epochs=3) for name in ("numpy", "jax")]
    ours, theirs = (run.history["loss"] for run in runs)
    assert len(ours) > 100
    np.testing.assert_allclose(theirs[:100], ours[:100], rtol=1e-4)
    np.testing.assert_array_equal(runs[0].history["learning_rate"], runs[1].history["learning_rate"])


def test_every_backend_shuffles_alike(backend, population, splits):
    _, static = program(backend, splits, OPTIMIZERS["sgd"])
    key = random.fold_in(run_keys(3, population), ORDER)
    found = mini_batches(backend.asarray(key), 50, static)
    numpy_static = static._replace(backend=mm.backends.load("numpy"))
    np.testing.assert_array_equal(backend.to_numpy(found), mini_batches(key, 50, numpy_static))


# A population is its members.


def test_a_member_is_the_single_run_of_its_seed(backend, splits):
    options = {"backend": backend, "epochs": 2, "optimizer": OPTIMIZERS["momentum"]}
    together = mm.gradient_descent(NETWORK, splits, seed=7, population=3, **options)
    assert together.population == 3
    for i in range(3):
        alone, member = mm.gradient_descent(NETWORK, splits, seed=7 + i, **options), together.member(i)
        for name in ("loss", "validation_loss"):
            np.testing.assert_allclose(member.history[name], alone.history[name], rtol=1e-5)
        for ours, theirs in zip(tree.leaves(member.params), tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_rows_of_a_member_are_those_of_its_single_run(backend, splits):
    _, static = program(backend, splits, OPTIMIZERS["sgd"])
    together = backend.to_numpy(mini_batches(backend.asarray(run_keys(7, 3)), 50, static))
    assert together.shape == (3, 3, 16)
    for i in range(3):
        alone = backend.to_numpy(mini_batches(backend.asarray(run_keys(7 + i, None)), 50, static))
        np.testing.assert_array_equal(together[:, i], alone)


def test_the_optimizer_may_have_a_number_for_each_member(splits):
    """Rates, momenta and decays over the population equal runs with one each."""
    rates, momenta = np.array([0.01, 0.1, 0.05]), np.array([0.9, 0.0, 0.5])
    optimizer = optimizers.momentum(schedules.cosine(rates), momentum=momenta)
    together = mm.gradient_descent(NETWORK, splits, seed=0, population=3, epochs=2, optimizer=optimizer)
    assert together.history["learning_rate"].shape == together.history["loss"].shape
    for i in range(3):
        alone = mm.gradient_descent(
            NETWORK,
            splits,
            seed=i,
            epochs=2,
            optimizer=optimizers.momentum(schedules.cosine(rates[i]), momentum=momenta[i]),
        )
        np.testing.assert_allclose(together.member(i).history["loss"], alone.history["loss"], rtol=1e-5)
        np.testing.assert_allclose(
            together.member(i).history["learning_rate"], alone.history["learning_rate"], rtol=1e-12
        )


def test_a_population_may_start_from_one_network(splits):
    start = NETWORK.init(random.key(9))
    model = mm.gradient_descent(NETWORK, splits, seed=0, population=3, epochs=0, params=start)
    for i in range(3):
        assert_same(model.member(i).params, start)


# A population that the cache does not hold is trained in parts.


PARTED = {
    "momentum": optimizers.momentum(np.geomspace(0.01, 0.1, 6), momentum=np.linspace(0, 0.9, 6)),
    "averaged": optimizers.adam(schedules.cosine(0.01, warmup=0.2), average=0.9),
    "amsgrad": optimizers.amsgrad(0.01),
    "nadam": optimizers.nadam(0.01),
    "rmsprop": optimizers.rmsprop(0.01, centered=True),
    "sharpness": optimizers.nesterov(schedules.reduce_on_plateau(0.05, patience=1), sharpness=0.05),
    "lbfgs": optimizers.lbfgs(memory=6),  # its pairs lead with an axis of six as well
}


def in_parts(backend, members, seen=None):
    """The backend when its cache holds so many members; the lengths of scans over parts are noted."""

    def scan(step, carry, xs):
        if carry is None and seen is not None:
            seen.append(tree.leaves(xs)[0].shape[0])
        return backend.scan(step, carry, xs)

    return replace(backend, keeps=members * NETWORK.parameters, scan=scan)


def assert_close(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", PARTED)
def test_a_population_in_parts_is_the_population_at_once(name, size, backend, splits):
    """With all that may differ from member to member, masks that do not, and members that stop before others."""
    options = {"seed": 0, "population": 6, "epochs": 4, "optimizer": PARTED[name], "masks": draw_masks()}
    if name != "lbfgs":
        options |= {"dropout": np.linspace(0, 0.5, 6), "label_smoothing": 0.1, "batch_size": 8}
        options |= {"patience": 1, "min_delta": np.array([10, 0, 10, 0, 10, 0])}
    seen = []
    whole = mm.gradient_descent(NETWORK, splits, backend=in_parts(backend, 6), **options)
    apart = mm.gradient_descent(NETWORK, splits, backend=in_parts(backend, size, seen), **options)
    assert set(seen) == (set() if name == "lbfgs" else {6 // size})
    assert_close((apart.params, apart.state), (whole.params, whole.state))
    assert_close(tuple(apart.history.values()), tuple(whole.history.values()))


@pytest.mark.parametrize("packs", [0, 2**16])
def test_parts_keep_masks_of_their_members(packs, splits):
    masks, numpy, seen = draw_masks(6), replace(mm.backends.load("numpy"), packs=packs), []
    options = {"seed": 0, "population": 6, "epochs": 2, "masks": masks}
    whole, apart = (mm.gradient_descent(NETWORK, splits, backend=in_parts(numpy, n, seen), **options) for n in (6, 2))
    assert seen == [3, 3]
    assert_same(apart.params, whole.params)
    for layer, mask in zip(apart.params, masks, strict=True):
        assert ((layer.weight != 0) == (mask == 1)).all()


def test_every_chunk_of_a_stream_goes_in_parts(splits, monkeypatch):
    monkeypatch.setattr(prepare.__module__ + ".CHUNK", 32 * 4 * 4)  # a batch of four features
    numpy, seen = mm.backends.load("numpy"), []
    stream = mm.stream_batches([splits.train], splits.validation, splits.test)
    whole, apart = (
        mm.gradient_descent(NETWORK, stream, seed=0, population=6, epochs=2, backend=in_parts(numpy, n, seen))
        for n in (6, 2)
    )
    assert seen == [3] * 2 * (len(splits.train.x) // 32)
    assert_same(apart.params, whole.params)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": (4, 3, 2, 4, 3, 2), "learn_levels": True},
        {"bits": 1},
        {"bits": 3, "scheme": "codebook", "learn_levels": True},
        {"bits": 4, "rounding": "stochastic"},
    ],
)
def test_integers_are_retrained_in_parts(options, splits):
    """Of networks as wide as there are members, whose masks they share."""
    network, numpy, seen = mm.Network((4, 6, 6, 3)), mm.backends.load("numpy"), []
    masks = tuple(np.random.default_rng(0).random(shape) < 0.7 for shape in network.shapes)
    start = mm.gradient_descent(network, splits, seed=0, population=6, epochs=1, masks=masks)
    whole, apart = (
        mm.quantize(start, splits, seed=0, backend=in_parts(numpy, n, seen), epochs=2, **options) for n in (20, 4)
    )
    assert seen == [3, 3]
    assert_same(apart.params, whole.params)


def test_new_masks_within_a_run_hold_in_parts(splits):
    numpy, seen = mm.backends.load("numpy"), []
    start = mm.gradient_descent(NETWORK, splits, seed=0, population=6, epochs=1)
    options = {"seed": 0, "sparsity": np.linspace(0.2, 0.5, 6), "schedule": "gradual", "epochs": 4}
    whole, apart = (mm.prune(start, splits, backend=in_parts(numpy, n, seen), **options) for n in (6, 2))
    assert seen == [3] * 4
    assert_same((apart.params, apart.masks), (whole.params, whole.masks))


def test_a_run_in_parts_goes_on_at_once_and_back(splits):
    numpy = mm.backends.load("numpy")
    options = {"seed": 0, "population": 6, "optimizer": optimizers.adam(0.01)}
    runs = {(m, n): None for m in (6, 2) for n in (6, 2)}
    for m, n in runs:
        half = mm.gradient_descent(NETWORK, splits, epochs=2, backend=in_parts(numpy, m), **options)
        runs[m, n] = mm.gradient_descent(NETWORK, splits, epochs=4, backend=in_parts(numpy, n), resume=half, **options)
    for run in runs.values():
        assert_same(run.params, runs[6, 6].params)


def test_a_state_that_is_not_by_members_is_not_taken_apart(splits):
    class Counted(Lasso):
        """Its state has an axis of its own."""

        def init(self, params):
            return np.zeros(4, np.float32)

        def update(self, amount, d, state, params):
            return super().update(amount, d, None, params)[0], state + 1

    optimizer, numpy = optimizers.compose(0.05, (Counted(), 1e-3)), mm.backends.load("numpy")
    whole, apart = (
        mm.gradient_descent(NETWORK, splits, seed=0, population=6, epochs=2, optimizer=optimizer, backend=backend)
        for backend in (numpy, in_parts(numpy, 2))
    )
    assert_same(apart.params, whole.params)


@pytest.mark.parametrize(
    ("keeps", "members", "count"),
    [(6, 6, 1), (3, 6, 2), (2, 6, 3), (1, 6, 6), (0, 6, 6), (5, 6, 2), (4, 7, 1), (1, 7, 7), (100, 7, 1), (0, None, 1)],
)
def test_parts_are_of_one_size_and_at_least_half_of_what_is_kept(keeps, members, count, splits):
    backend = in_parts(mm.backends.load("numpy"), keeps)
    _, static = program(backend, splits, optimizers.adam(0.01))
    assert parts_of(static, () if members is None else (members,)) == count


# Masks.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_are_and_stay_exactly_zero(name, backend, splits):
    """Whatever the optimizer and its weight decay; the other weights do move."""
    data = replace(splits, validation=splits.train)
    masks = draw_masks()
    start = tree.map(lambda leaf: leaf + np.float32(0.1), NETWORK.init(random.key(0)))
    model = mm.gradient_descent(
        NETWORK, data, seed=0, backend=backend, epochs=2, params=start, masks=masks, optimizer=OPTIMIZERS[name]
    )
    assert model.history["validation_loss"].argmin() > 0  # not merely the start
    for layer, before, mask, kept in zip(model.params, start, masks, model.masks, strict=True):
        np.testing.assert_array_equal(kept, mask.astype(bool))
        np.testing.assert_array_equal(layer.weight[mask == 0], 0)
        assert (layer.weight[mask == 1] != before.weight[mask == 1]).any()


def test_each_member_may_have_its_own_masks(backend, splits):
    masks = draw_masks(3)
    data = replace(splits, validation=splits.train)
    model = mm.gradient_descent(NETWORK, data, seed=0, backend=backend, epochs=2, population=3, masks=masks)
    for layer, mask in zip(model.params, masks, strict=True):
        np.testing.assert_array_equal(layer.weight[mask == 0], 0)
        assert (layer.weight[mask == 1] != 0).all()
    for i in range(3):
        assert_same(model.member(i).masks, tuple(mask[i].astype(bool) for mask in masks))


def test_masks_of_ones_change_nothing(splits):
    ones = tuple(np.ones(shape, bool) for shape in NETWORK.shapes)
    runs = [mm.gradient_descent(NETWORK, splits, seed=0, epochs=2, masks=masks) for masks in (None, ones)]
    assert_same(runs[0].params, runs[1].params)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "adamw"])
def test_masked_momentum_never_revives_a_weight(name, backend, splits):
    """The state carried from before the mask is cleared where the mask is 0, and stays so."""
    optimizer = OPTIMIZERS[name]
    problem, static = program(backend, replace(splits, validation=splits.train), optimizer, batch_size=32)
    masks = draw_masks()
    given = Traced(
        to_backend(backend, optimizer.config), to_backend(backend, masks), active=backend.asarray(np.array(True))
    )
    params = to_backend(backend, NETWORK.init(random.key(0)))
    (rows,) = problem.chunks(0, 32)
    state = tree.map(lambda leaf: leaf + 1, optimizer.rule.init(params))  # momentum everywhere
    restart = backend.jit(begin, static=("static",), donate=("params", "opt_state"))
    run = backend.jit(epoch, static=("static",), donate=("state",))
    rates = backend.asarray(np.full(len(splits.train.x) // 32, 0.1), backend.xp.float32)
    now = restart(params, state, problem.validation, given, static=static)
    for done in range(3):
        host = backend.to_numpy(now)
        momenta = within(host.opt_state)
        assert len(momenta) == (2 if "adam" in name else 1)
        for layers in (host.params, host.best, *momenta):
            for layer, mask in zip(layers, masks, strict=True):
                np.testing.assert_array_equal(layer.weight[mask == 0], 0)
                assert layer.weight[mask == 1].any()
        order = Draws(backend.asarray(random.key(done)), None)
        now, *_ = run(now, rows, problem.validation, order, rates, given, static=static)


def test_new_masks_within_a_run_restart_the_best(splits):
    """The best model obeys the masks of the last epochs, though denser ones before it were better."""
    backend = mm.backends.load("numpy", debug=True)
    problem, _ = program(backend, splits, OPTIMIZERS["adam"])
    masks = tuple(np.zeros(shape, bool) for shape in NETWORK.shapes)
    run = fit(
        problem,
        keys=run_keys(0, None),
        params=NETWORK.init(random.key(0)),
        optimizer=OPTIMIZERS["adam"],
        epochs=4,
        batch_size=16,
        remask=lambda done, *_: (masks, None) if done == 3 else None,
    )
    assert run.masks is masks
    assert run.history["validation_loss"][:4].min() < run.history["validation_loss"][4]
    for layer in run.state.best:
        np.testing.assert_array_equal(layer.weight, 0)


def test_masked_reaches_every_params_in_a_tree():
    params, masks = NETWORK.init(random.key(0)), draw_masks()
    inner, moments = optimizers.adam(0.1, weight_decay=0.1).rule.init(params)
    state = (inner, moments._replace(mean=params, square=params)), params
    (inner, found), outer = masked(state, masks)
    assert inner is None and found.step is moments.step and found.largest is None
    for layers in (found.mean, found.square, outer):
        for layer, before, mask in zip(layers, params, masks, strict=True):
            np.testing.assert_array_equal(layer.weight, before.weight * mask)
            np.testing.assert_array_equal(layer.bias, before.bias)
    assert masked(None, masks) is None
    assert masked(params, None) is params


# What is kept and what is recorded.


def test_the_best_on_validation_is_returned(backend, population, splits):
    """At a rate that overshoots, the best is not the last."""
    model = mm.gradient_descent(
        NETWORK, splits, seed=1, backend=backend, epochs=8, population=population, optimizer=optimizers.adam(0.7)
    )
    log = model.history["validation_loss"]
    assert np.any(log.argmin(axis=0) < len(log) - 1)
    np.testing.assert_allclose(model.evaluate(splits.validation).loss, log.min(axis=0), rtol=1e-5)


def test_no_epochs_return_the_start(backend, population, splits):
    model = mm.gradient_descent(NETWORK, splits, seed=3, backend=backend, epochs=0, population=population)
    key = random.fold_in(run_keys(3, population), INIT)
    assert_same(model.params, backend.to_numpy(NETWORK.init(key, backend=backend)))
    assert len(model.history["loss"]) == len(model.history["learning_rate"]) == 0
    np.testing.assert_allclose(
        model.history["validation_loss"], np.asarray(model.evaluate(splits.validation).loss)[None], rtol=1e-5
    )


def test_the_history_has_a_row_for_each_step_and_epoch(population, splits):
    schedule = schedules.cosine(0.01, warmup=0.2)
    model = mm.gradient_descent(
        NETWORK,
        splits,
        seed=0,
        epochs=3,
        batch_size=10,
        population=population,
        optimizer=optimizers.adam(schedule),
    )
    lead = () if population is None else (population,)
    steps = len(splits.train.x) // 10
    assert model.history["loss"].shape == (3 * steps, *lead)
    assert model.history["validation_loss"].shape == (4, *lead)
    expected = schedule(np.arange(3 * steps), schedules.Run(3 * steps, steps))
    np.testing.assert_array_equal(model.history["learning_rate"], expected)


def test_the_first_loss_is_that_of_the_start():
    """One batch of all rows: the loss of step 0 is the loss on train at the initial parameters."""
    data = regression()
    data = replace(data, targets=None)
    start = mm.gradient_descent(NETWORK, data, seed=0, epochs=0)
    model = mm.gradient_descent(NETWORK, data, seed=0, epochs=1, batch_size=10_000)
    assert len(model.history["loss"]) == 1
    np.testing.assert_allclose(model.history["loss"][0], start.evaluate(data.train).loss, rtol=1e-5)


def test_the_callback_sees_every_epoch(splits):
    seen = []
    model = mm.gradient_descent(NETWORK, splits, seed=0, epochs=3, population=2, callback=seen.append)
    best = model.history["validation_loss"][1:].min(axis=1)
    assert [progress[:2] for progress in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [progress.best for progress in seen] == best.tolist()


def test_what_is_given_is_not_changed(backend, splits):
    start, masks = NETWORK.init(random.key(0)), draw_masks()
    kept = tree.map(np.copy, start)
    x = splits.train.x.copy()
    mm.gradient_descent(NETWORK, splits, seed=0, backend=backend, epochs=1, params=start, masks=masks)
    assert_same(start, kept)
    assert_same(masks, draw_masks())
    np.testing.assert_array_equal(splits.train.x, x)


# Mini-batches.


def recording(log):
    """The squared error, which also writes down the targets it was given."""

    base = losses.mean_squared_error

    def rows(z, t):
        log.append(np.array(t[..., 0]))
        return base.rows(z, t)

    return Loss("recording", rows, base.row_curvature, base.decide)


@pytest.mark.parametrize(("rows", "size"), [(48, 16), (50, 16), (16, 16), (10, 16), (7, 1)])
def test_each_epoch_is_a_new_permutation_of_the_rows(rows, size):
    """Seen from outside: the targets number the rows. The remainder of an epoch is left out of it."""
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    numbered = mm.Dataset(x, np.arange(rows, dtype=np.float32)[:, None])
    log, network = [], mm.Network((4, 1))
    mm.gradient_descent(
        network,
        mm.Splits(numbered, numbered, numbered),
        seed=0,
        epochs=3,
        batch_size=size,
        loss=recording(log),
        optimizer=optimizers.sgd(0.0),
    )
    steps = rows // min(size, rows)
    log = log[1:]  # the validation before the first epoch
    epochs = [log[i * (steps + 1) : i * (steps + 1) + steps] for i in range(3)]
    assert len(log) == 3 * (steps + 1)
    for batches in epochs:
        seen = np.concatenate(batches)
        assert {len(batch) for batch in batches} == {min(size, rows)}
        assert len(set(seen)) == len(seen) == steps * min(size, rows)
        assert set(seen) <= set(range(rows))
    orders = {tuple(np.concatenate(batches)) for batches in epochs}
    assert len(orders) == 3


# As scikit-learn trains it: the gradient of a whole run, weights and steps copied.


@pytest.mark.parametrize("solver", ["sgd", "momentum", "nesterov", "adam"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_scikit_learn_takes_the_same_steps(task, solver, splits, oracle):
    """From the same weights, a few steps on all rows. Its penalty is α/(2n)·‖W‖² and its squared error is halved and
    summed over the outputs, which ours averages: so its rate is 2/out of ours in a regression. Its Adam adds ε before
    the bias correction."""
    oracle("sklearn")
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    data = splits if task == "classification" else regression()
    data = replace(data, normalization=None, targets=None)
    x, y, n, rate, alpha = data.train.x.astype(np.float64), data.train.y, len(data.train.x), 0.05, 2.0
    scale = 1.0 if task == "classification" else 2 / y.shape[1]
    moving = {"sgd": {"momentum": 0.0}, "momentum": {"nesterovs_momentum": False}, "nesterov": {}, "adam": {}}[solver]
    options = {
        "solver": "adam" if solver == "adam" else "sgd",
        "learning_rate_init": rate,
        "batch_size": n,
        "alpha": alpha,
        "hidden_layer_sizes": (6, 5),
        "activation": "tanh",
        "random_state": 0,
        **moving,
    }
    network = mm.Network((4, 6, 5, 3), "tanh")
    layers = tree.map(lambda leaf: leaf + np.float32(0.1), network.init(random.key(2)))
    if task == "classification":
        peer = MLPClassifier(**options).partial_fit(x, y, classes=range(3))
    else:
        peer = MLPRegressor(**options).partial_fit(x, y)
    peer.coefs_, peer.intercepts_ = ([leaf.astype(np.float64) for leaf in part] for part in zip(*layers, strict=True))
    del peer._optimizer  # what it remembers of its own first step
    for _ in range(5):
        peer.partial_fit(x, y)
    made = {
        "sgd": optimizers.sgd,
        "momentum": optimizers.momentum,
        "nesterov": optimizers.nesterov,
        "adam": functools.partial(optimizers.adam, eps_hat=True, eps=1e-8 * scale),
    }[solver]
    optimizer = made(rate if solver == "adam" else rate / scale, weight_decay=scale * alpha / n)
    found = mm.gradient_descent(
        network, data, seed=0, epochs=5, batch_size=n, params=layers, optimizer=optimizer
    ).state.params
    for ours, weight, bias, before in zip(found, peer.coefs_, peer.intercepts_, layers, strict=True):
        np.testing.assert_allclose(ours.weight, weight, rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(ours.bias, bias, rtol=1e-4, atol=2e-6)
        assert np.abs(ours.weight - before.weight).max() > 0.01


# Label smoothing.


def one_step(data, network=NETWORK, **options):
    """One step of rate 1 on all rows, from parameters that are not small."""
    start = tree.map(lambda leaf: leaf + np.float32(0.1), network.init(random.key(1)))
    whole = {"epochs": 1, "batch_size": 10_000, "params": start, "optimizer": optimizers.sgd(1.0)}
    return start, mm.gradient_descent(network, data, **{"seed": 0} | whole | options)


def test_smoothed_labels_give_the_step_of_torch(backend, splits, oracle):
    torch = oracle("torch")
    data = replace(splits, normalization=None)
    start, found = one_step(data, backend=backend, label_smoothing=0.2)
    leaves = [torch.tensor(leaf.astype(np.float64), requires_grad=True) for leaf in tree.leaves(start)]
    hidden = torch.relu(torch.tensor(data.train.x, dtype=torch.float64) @ leaves[0] + leaves[1])
    value = torch.nn.functional.cross_entropy(
        hidden @ leaves[2] + leaves[3], torch.tensor(data.train.y).long(), label_smoothing=0.2
    )
    value.backward()
    np.testing.assert_allclose(found.history["loss"][0], value.item(), rtol=1e-5)
    for before, after, leaf in zip(tree.leaves(start), tree.leaves(found.state.params), leaves, strict=True):
        np.testing.assert_allclose(before - after, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_labels_are_smoothed_in_training_alone(population, splits):
    _, found = one_step(splits, population=population, label_smoothing=0.5, optimizer=optimizers.sgd(0.0))
    _, plain = one_step(splits, population=population, optimizer=optimizers.sgd(0.0))
    np.testing.assert_array_equal(found.history["validation_loss"], plain.history["validation_loss"])
    assert (np.abs(found.history["loss"] - plain.history["loss"]) > 0.01).all()


def test_each_member_may_have_its_own_smoothing(splits):
    amounts = np.array([0.0, 0.1, 0.5])
    options = {"epochs": 2, "batch_size": 16, "optimizer": optimizers.sgd(0.1)}
    together = mm.gradient_descent(NETWORK, splits, seed=3, population=3, label_smoothing=amounts, **options)
    for i in range(3):
        smoothing = {"label_smoothing": amounts[i]} if i else {}
        alone = mm.gradient_descent(NETWORK, splits, seed=3 + i, **options, **smoothing)
        for name in ("loss", "validation_loss"):
            np.testing.assert_allclose(together.member(i).history[name], alone.history[name], rtol=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_independent_outputs_are_mixed_with_one_half(outputs):
    """Each is a choice between two, however many there are: t(1 − ε) + ε/2."""
    network, data = mm.Network((4, 5, outputs)), regression()
    hard, soft = (
        replace(
            data,
            targets=None,
            **{
                name: part._replace(y=(np.where(part.y > 0, high, low)[:, :outputs]).astype(np.float32))
                for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test))
            },
        )
        for low, high in ((0, 1), (0.1, 0.9))
    )
    smoothed = one_step(hard, network, loss="binary_cross_entropy", label_smoothing=0.2)[1]
    expected = one_step(soft, network, loss="binary_cross_entropy")[1]
    np.testing.assert_allclose(smoothed.history["loss"], expected.history["loss"], rtol=1e-6)
    for ours, theirs in zip(tree.leaves(smoothed.state.params), tree.leaves(expected.state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [None, "mean_squared_error", "huber"])
@pytest.mark.parametrize("amount", [0, 0.1])
def test_targets_of_a_regression_are_not_labels_to_smooth(loss, amount):
    with pytest.raises(ValueError, match=r"^label_smoothing: (mean_squared_error|huber) has no labels"):
        mm.gradient_descent(NETWORK, regression(), seed=0, epochs=1, loss=loss, label_smoothing=amount)


# Early stopping.

RESTLESS = {"batch_size": 16, "optimizer": optimizers.adam(0.3)}  # it overshoots: validation goes up and down


def stopped_after(log, patience, min_delta=0.0):
    """The epochs of a run with these validation losses, one network's, as Keras's EarlyStopping counts them."""
    best, waited = log[0], 0
    for done, loss in enumerate(log[1:], 1):
        best, waited = (loss, 0) if loss < best - min_delta else (best, waited + 1)
        if waited >= patience:
            return done
    return len(log) - 1


@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (3, 0.0), (3, 0.05), (2, 10.0), (100, 0.0)])
def test_a_run_stops_when_its_patience_is_over(patience, min_delta, backend, splits):
    options = {"seed": 1, "backend": backend, "epochs": 12, **RESTLESS}
    whole = mm.gradient_descent(NETWORK, splits, **options)
    found = mm.gradient_descent(NETWORK, splits, patience=patience, min_delta=min_delta, **options)
    log = whole.history["validation_loss"]
    epochs = stopped_after(log, patience, min_delta)
    assert epochs == {1: epochs, 100: 12}.get(patience, epochs)
    np.testing.assert_array_equal(found.history["validation_loss"], log[: epochs + 1])
    assert len(found.history["loss"]) == epochs * (len(splits.train.x) // 16)
    best = log[: epochs + 1].min()
    np.testing.assert_allclose(found.evaluate(splits.validation).loss, best, rtol=1e-5)
    if min_delta == 10:
        assert epochs == 2 and log[:3].argmin() > 0  # what is too little to go on is the best all the same


def test_patience_ends_some_of_these_runs(splits):
    """So that the test above is one."""
    log = mm.gradient_descent(NETWORK, splits, seed=1, epochs=12, **RESTLESS).history["validation_loss"]
    assert stopped_after(log, 1) < stopped_after(log, 3) < 12
    assert stopped_after(log, 3, 0.05) < 12


@pytest.mark.parametrize("min_delta", [0.0, np.array([0.0, 0.02, 0.1])], ids=["one", "for each"])
def test_each_member_stops_by_itself(min_delta, backend, splits):
    """It is the single run with the same patience; the population goes on until the last of them stops."""
    options = {"backend": backend, "epochs": 15, **RESTLESS}
    patience = 2 if np.ndim(min_delta) == 0 else np.array([1, 2, 3])
    together = mm.gradient_descent(
        NETWORK, splits, seed=0, population=3, patience=patience, min_delta=min_delta, **options
    )
    ends = []
    for i in range(3):
        delta = float(np.broadcast_to(min_delta, 3)[i])
        waits = int(np.broadcast_to(patience, 3)[i])
        alone = mm.gradient_descent(NETWORK, splits, seed=i, patience=waits, min_delta=delta, **options)
        member = together.member(i)
        ends.append(len(alone.history["validation_loss"]) - 1)
        np.testing.assert_allclose(
            member.history["validation_loss"][: ends[-1] + 1], alone.history["validation_loss"], rtol=1e-3, atol=1e-5
        )
        for ours, theirs in zip(tree.leaves(member.params), tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert len(set(ends)) > 1
    assert len(together.history["validation_loss"]) - 1 == max(ends)


def test_what_a_member_finds_after_it_stopped_does_not_count(splits):
    """By its log alone the first, which is the faster, would be the best; but its parameters are those of its end."""
    options = {"epochs": 12, "batch_size": 16, "optimizer": optimizers.sgd(np.array([0.5, 0.2]))}
    found = mm.gradient_descent(
        NETWORK, splits, seed=0, population=2, patience=2, min_delta=np.array([10.0, 0.0]), **options
    )
    log = found.history["validation_loss"]
    kept = np.array([log[:3, 0].min(), log[:, 1].min()])
    assert log[:, 0].min() < kept[1] < kept[0]
    np.testing.assert_allclose(found.evaluate(splits.validation).loss, kept, rtol=1e-5)
    np.testing.assert_allclose(found.best().evaluate(splits.validation).loss, kept[1], rtol=1e-5)


def test_a_member_that_diverges_does_not_hold_up_the_others(splits):
    """NaN is never an improvement."""
    network, data = mm.Network((4, 3), "identity"), regression()
    options = {"epochs": 40, "batch_size": 16, "patience": 3, "min_delta": 1e-3}
    with pytest.warns(RuntimeWarning, match="diverged"):
        found = mm.gradient_descent(
            network, data, seed=0, population=2, optimizer=optimizers.sgd(np.array([0.05, 1e6])), **options
        )
    alone = mm.gradient_descent(network, data, seed=0, optimizer=optimizers.sgd(0.05), **options)
    assert len(found.history["validation_loss"]) == len(alone.history["validation_loss"]) < 41
    np.testing.assert_allclose(found.member(0).params[0].weight, alone.params[0].weight, rtol=1e-5, atol=1e-6)


def test_new_masks_within_a_run_give_new_patience(splits):
    """The losses before them were those of other models: here each epoch after them improves on the one before, though
    none comes near what there was without masks."""
    problem, _ = program(mm.backends.load("numpy", debug=True), splits, OPTIMIZERS["adam"])
    masks = tuple(np.arange(np.prod(shape)).reshape(shape) % 3 == 0 for shape in NETWORK.shapes)
    trained = mm.gradient_descent(NETWORK, splits, seed=0, optimizer=optimizers.adam(0.05))
    run = fit(
        problem,
        keys=run_keys(0, None),
        params=trained.params,
        optimizer=optimizers.adam(0.003),
        epochs=8,
        batch_size=16,
        patience=2,
        remask=lambda done, *_: (masks, None) if done == 1 else None,
    )
    log = run.history["validation_loss"]
    assert (log[2:] > log[:2].max()).all()
    assert (np.diff(log[2:]) < 0).all()
    assert len(log) == 9


# Going on.


def half_and_whole(options, epochs=4):
    """Half of the epochs, all of them from there, and all of them at once."""
    half = mm.gradient_descent(NETWORK, **options, epochs=epochs // 2)
    return (
        half,
        mm.gradient_descent(NETWORK, **options, epochs=epochs, resume=half),
        mm.gradient_descent(NETWORK, **options, epochs=epochs),
    )


def assert_same_run(found, expected):
    """Bit for bit, with the whole history."""
    assert_same(found.params, expected.params)
    assert_same(found.state, expected.state)
    assert found.history.keys() == expected.history.keys()
    for name, log in expected.history.items():
        assert found.history[name].dtype == log.dtype
        np.testing.assert_array_equal(found.history[name], log)


def test_a_resumed_run_is_the_whole_run(backend, population, splits):
    half, found, whole = half_and_whole(
        {"data": splits, "seed": 3, "backend": backend, "population": population, **RESTLESS}
    )
    assert len(half.history["validation_loss"]) == 3 and len(found.history["validation_loss"]) == 5
    assert_same_run(found, whole)


RESUMED = {
    **OPTIMIZERS,
    "average": optimizers.adam(0.02, average=0.9),
    "sharpness": optimizers.momentum(0.02, sharpness=0.05),
    "rmsprop": optimizers.rmsprop(0.01, momentum=0.5, centered=True),
    "plateau": optimizers.sgd(schedules.reduce_on_plateau(0.3, patience=0)),
    "lbfgs": optimizers.lbfgs(),
}


@pytest.mark.parametrize("name", RESUMED)
def test_every_optimizer_goes_on_as_it_was(name, splits):
    _, found, whole = half_and_whole({"data": splits, "seed": 0, "optimizer": RESUMED[name]}, epochs=8)
    assert_same_run(found, whole)


@pytest.mark.parametrize(
    "training",
    [
        {"dropout": 0.3, "input_dropout": 0.1, "label_smoothing": 0.1},
        {"masks": draw_masks(), "class_weight": "balanced"},
        {"patience": 2, "min_delta": 0.01, "optimizer": optimizers.adam(0.3)},
        {"population": 3, "optimizer": optimizers.sgd(np.array([0.1, 0.2, 0.3]))},
    ],
    ids=["noise", "masks and weights", "patience", "a rate for each"],
)
def test_a_resumed_run_is_the_whole_run_with(training, splits):
    options = {"data": splits, "seed": 1, "batch_size": 16, "optimizer": optimizers.adam(0.02), **training}
    _, found, whole = half_and_whole(options, epochs=10)
    assert_same_run(found, whole)


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_the_same_masks_given_again_change_nothing(name, splits):
    options = {"data": splits, "seed": 0, "optimizer": RESUMED[name], "masks": draw_masks()}
    _, found, whole = half_and_whole(options, epochs=8)
    assert_same_run(found, whole)


def test_a_line_search_under_new_masks_forgets_the_loss_it_knew(splits):
    masks, options = draw_masks(), {"data": splits, "seed": 0, "optimizer": optimizers.lbfgs()}
    dense = mm.gradient_descent(NETWORK, epochs=60, **options)
    found = mm.gradient_descent(NETWORK, epochs=120, masks=masks, resume=dense, **options)
    encoded = prepare(NETWORK, splits, None, mm.backends.load("numpy"), fitted=splits)
    (rows,) = encoded.chunks(0, 1)
    z = NETWORK.apply(found.state.opt_state.point, rows.x)
    np.testing.assert_allclose(found.history["loss"][-1], losses.mean(encoded.loss.rows(z, rows.t)[0]), rtol=1e-4)
    assert found.history["loss"][-1] < 0.5 * found.history["loss"][60]


def test_a_run_with_another_loss_is_no_run_to_resume(splits):
    half = mm.gradient_descent(NETWORK, splits, seed=0, epochs=1)
    rounded = mm.quantize(half, splits, seed=0, bits=4, epochs=1)
    for options in (
        {
            "loss": losses.Loss("mine", *map(vars(half.loss).get, ("rows", "row_curvature", "decide")), labels=True),
            "resume": half,
        },
        {"resume": rounded},
    ):
        with pytest.raises(ValueError, match=r"^resume: "):
            mm.gradient_descent(NETWORK, splits, seed=0, epochs=2, **options)


def test_a_run_that_was_ended_goes_on_along_its_schedule(splits):
    """A schedule that knows the whole run: the callback ends the first part of it."""
    options = {
        "data": splits,
        "seed": 0,
        "epochs": 6,
        "optimizer": optimizers.momentum(schedules.cosine(0.2, warmup=0.2)),
    }
    ended = mm.gradient_descent(NETWORK, **options, callback=lambda progress: progress.done == 2)
    assert len(ended.history["validation_loss"]) == 3
    assert_same_run(mm.gradient_descent(NETWORK, **options, resume=ended), mm.gradient_descent(NETWORK, **options))


def test_a_stream_that_was_ended_within_an_epoch_goes_on_there(splits, monkeypatch):
    monkeypatch.setattr(prepare.__module__ + ".CHUNK", 4 * 4 * 32)  # two batches of 16 rows of four features
    data = mm.stream_batches([splits.train], splits.validation, splits.test)
    options = {"data": data, "seed": 0, "epochs": 3, "batch_size": 16, "optimizer": optimizers.adam(0.02)}
    ended = mm.gradient_descent(NETWORK, **options, callback=lambda progress: progress.done > 1)
    assert len(ended.history["loss"]) % (len(splits.train.x) // 16) != 0
    assert_same_run(mm.gradient_descent(NETWORK, **options, resume=ended), mm.gradient_descent(NETWORK, **options))


@pytest.mark.parametrize("rates", [0.1, [0.1, 0.2, 0.3]], ids=str)
def test_a_run_of_no_epochs_goes_on_too(population, rates, splits):
    if population is None:
        rates = 0.1
    options = {"data": splits, "seed": 0, "population": population, "optimizer": optimizers.sgd(rates)}
    start = mm.gradient_descent(NETWORK, **options, epochs=0)
    found = mm.gradient_descent(NETWORK, **options, epochs=2, resume=start)
    assert_same_run(found, mm.gradient_descent(NETWORK, **options, epochs=2))


def test_a_run_that_is_done_stays_as_it_is(backend, splits):
    options = {"data": splits, "seed": 0, "backend": backend, **RESTLESS}
    done = mm.gradient_descent(NETWORK, **options, epochs=2)
    for epochs in (2, 1, 0):
        assert_same_run(mm.gradient_descent(NETWORK, **options, epochs=epochs, resume=done), done)


def test_another_backend_may_go_on(splits):
    pytest.importorskip("jax")
    options = {"data": splits, "seed": 0, "batch_size": 16, "optimizer": optimizers.adam(0.02)}
    half = mm.gradient_descent(NETWORK, **options, epochs=1, backend="jax")
    found = mm.gradient_descent(NETWORK, **options, epochs=2, resume=half)
    whole = mm.gradient_descent(NETWORK, **options, epochs=2)
    for ours, theirs in zip(tree.leaves(found.params), tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_model_that_is_resumed_is_not_changed(backend, splits):
    options = {"data": splits, "seed": 0, "backend": backend, **RESTLESS}
    half = mm.gradient_descent(NETWORK, **options, epochs=1)
    kept = tree.map(np.copy, half.state)
    mm.gradient_descent(NETWORK, **options, epochs=3, resume=half)
    assert_same(half.state, kept)
    assert len(half.history["validation_loss"]) == 2


def test_a_masked_run_goes_on_with_its_masks(splits):
    """They need not be given again."""
    options = {"data": splits, "seed": 0, "optimizer": optimizers.adam(0.02)}
    half = mm.gradient_descent(NETWORK, **options, epochs=2, masks=draw_masks())
    found = mm.gradient_descent(NETWORK, **options, epochs=4, resume=half)
    assert_same_run(found, mm.gradient_descent(NETWORK, **options, epochs=4, masks=draw_masks()))
    assert_same(found.masks, half.masks)


def test_new_masks_hold_for_a_resumed_run_too(splits):
    dense = mm.gradient_descent(NETWORK, splits, seed=0, epochs=2)
    for epochs in (2, 4):
        found = mm.gradient_descent(NETWORK, splits, seed=0, epochs=epochs, masks=draw_masks(), resume=dense)
        for layers in (found.params, found.state.params):
            for layer, mask in zip(layers, draw_masks(), strict=True):
                np.testing.assert_array_equal(layer.weight[mask == 0], 0)


FOREIGN = {
    "other sizes": lambda data, load: mm.gradient_descent(mm.Network((4, 5, 3)), data, seed=0, epochs=1),
    "another activation": lambda data, load: mm.gradient_descent(mm.Network((4, 6, 3), "tanh"), data, seed=0, epochs=1),
    "another optimizer": lambda data, load: mm.gradient_descent(
        NETWORK, data, seed=0, epochs=1, optimizer=optimizers.sgd(0.1)
    ),
    "a population": lambda data, load: mm.gradient_descent(NETWORK, data, seed=0, epochs=1, population=2),
    "a member": lambda data, load: mm.gradient_descent(NETWORK, data, seed=0, epochs=1, population=2).member(0),
    "another batch size": lambda data, load: mm.gradient_descent(NETWORK, data, seed=0, epochs=1, batch_size=7),
    "a model from a file": lambda data, load: load(mm.gradient_descent(NETWORK, data, seed=0, epochs=1)),
    "a random search": lambda data, load: mm.random_search(NETWORK, data, seed=0, generations=1, population=2),
    "a path": lambda data, load: "model.safetensors",
    "parameters": lambda data, load: NETWORK.init(random.key(0)),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_cannot_go_on_is_refused_by_name(case, splits, tmp_path):
    def load(model):
        model.save(tmp_path / "model")
        return mm.load(tmp_path / "model")

    with pytest.raises(ValueError, match=r"^resume: "):
        mm.gradient_descent(NETWORK, splits, seed=0, epochs=2, resume=FOREIGN[case](splits, load))


def test_one_network_is_not_resumed_as_a_population(splits):
    for population, other in ((2, None), (2, 3)):
        half = mm.gradient_descent(NETWORK, splits, seed=0, epochs=1, population=other)
        with pytest.raises(ValueError, match=r"^resume: "):
            mm.gradient_descent(NETWORK, splits, seed=0, epochs=2, population=population, resume=half)


# Divergence.


def diverge(backend, **options):
    network, data = mm.Network((4, 3), "identity"), regression()
    return mm.gradient_descent(
        network, data, seed=0, backend=backend, epochs=6, batch_size=16, optimizer=optimizers.sgd(1e6), **options
    )


def test_a_run_that_diverges_says_where_and_keeps_the_best(backend, population):
    with pytest.raises(mm.DivergedError, match="gradient_descent diverged at step") as caught:
        diverge(backend, population=population)
    error = caught.value
    log = error.model.history["loss"]
    assert str(error.step) in str(error)
    assert error.step > 0
    assert np.isfinite(log[error.step - 1]).any()
    assert not np.isfinite(log[error.step :]).any()
    assert np.isfinite(error.last_finite_loss)
    assert np.isin(error.last_finite_loss, log[error.step - 1])
    assert all(np.isfinite(leaf).all() for leaf in tree.leaves(error.model.params))
    assert np.isfinite(error.model.evaluate(regression().validation).loss).all()


def test_a_run_that_diverges_keeps_the_last_finite_model(backend):
    """That after the last epoch with a finite validation loss, where a shorter run ends; it is not the best."""
    network, data = mm.Network((4, 3), "identity"), regression()
    options = {"seed": 0, "backend": backend, "batch_size": 16, "optimizer": optimizers.sgd(3.0)}
    with pytest.raises(mm.DivergedError) as caught:
        mm.gradient_descent(network, data, epochs=200, **options)
    finite = np.flatnonzero(np.isfinite(caught.value.model.history["validation_loss"]))
    shorter = mm.gradient_descent(network, data, epochs=int(finite[-1]), **options)
    assert finite[-1] > 0
    for ours, theirs in zip(tree.leaves(caught.value.last.params), tree.leaves(shorter.state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert not np.array_equal(caught.value.last.params[0].weight, caught.value.model.params[0].weight)


def test_every_member_that_diverges_keeps_its_last_finite_model(backend):
    with pytest.raises(mm.DivergedError) as caught:
        diverge(backend, population=3)
    assert caught.value.last.population == 3
    assert all(np.isfinite(leaf).all() for leaf in tree.leaves(caught.value.last.params))


def test_a_run_that_diverges_stops_there(backend):
    """Not all of its epochs are run."""
    seen = []
    with pytest.raises(mm.DivergedError):
        diverge(backend, callback=seen.append)
    assert len(seen) < 6


def test_one_member_may_diverge_without_the_others(backend):
    network, data = mm.Network((4, 3), "identity"), regression()
    optimizer = optimizers.sgd(np.array([0.05, 1e6]))
    with pytest.warns(RuntimeWarning, match=r"gradient_descent: of the population, members \[1\] diverged"):
        model = mm.gradient_descent(
            network, data, seed=0, backend=backend, epochs=6, batch_size=16, optimizer=optimizer, population=2
        )
    assert np.isfinite(model.history["loss"][-1]).tolist() == [True, False]
    assert all(np.isfinite(leaf).all() for leaf in tree.leaves(model.params))
    alone = mm.gradient_descent(
        network, data, seed=0, backend=backend, epochs=6, batch_size=16, optimizer=optimizers.sgd(0.05)
    )
    np.testing.assert_allclose(model.member(0).history["loss"], alone.history["loss"], rtol=1e-5)


# Bad input: one ValueError that names the argument, before any work.


def with_part(name, **changes):
    """The data with x or y of one part made anew."""

    def change(data):
        part = getattr(data, name)._replace(**{field: make(data) for field, make in changes.items()})
        return {"data": replace(data, **{name: part})}

    return change


def nan_in_x(data):
    x = data.train.x.copy()
    x[3, 1] = np.nan
    return x


def start(sizes=(4, 6, 3), population=None):
    key = run_keys(0, population)
    return mm.Network(sizes).init(key)


def spoilt(value):
    layers = tree.map(np.copy, start())
    layers[1].weight[0, 0] = value
    return layers


BAD = {
    "NaN in x": (with_part("train", x=nan_in_x), "train"),
    "infinity in x": (with_part("validation", x=lambda data: data.validation.x * np.inf), "validation"),
    "labels too high": (with_part("train", y=lambda data: data.train.y + 1), "train.y"),
    "negative labels": (with_part("validation", y=lambda data: data.validation.y - 1), "validation.y"),
    "float labels": (with_part("train", y=lambda data: data.train.y.astype(np.float32)), "train.y"),
    "a feature missing": (with_part("train", x=lambda data: data.train.x[:, 1:]), "train.x"),
    "fewer labels than rows": (with_part("train", y=lambda data: data.train.y[1:]), "train"),
    "an empty split": (with_part("validation", x=lambda d: d.train.x[:0], y=lambda d: d.train.y[:0]), "validation"),
    "labels for squared error": (lambda _: {"loss": "mean_squared_error"}, "train.y"),
    "an unknown loss": (lambda _: {"loss": "hinge"}, "loss"),
    "an unknown backend": (lambda _: {"backend": "abacus"}, "backend"),
    "no batch": (lambda _: {"batch_size": 0}, "batch_size"),
    "half a row": (lambda _: {"batch_size": 2.5}, "batch_size"),
    "half an epoch": (lambda _: {"epochs": 1.5}, "epochs"),
    "negative epochs": (lambda _: {"epochs": -1}, "epochs"),
    "a negative seed": (lambda _: {"seed": -1}, "seed"),
    "a seed of bool": (lambda _: {"seed": True}, "seed"),
    "a seed of float": (lambda _: {"seed": 1.0}, "seed"),
    "a seed too large": (lambda _: {"seed": 2**64}, "seed"),
    "an empty population": (lambda _: {"population": 0}, "population"),
    "a population of float": (lambda _: {"population": 2.0}, "population"),
    "params of another network": (lambda _: {"params": start((4, 5, 3))}, "params"),
    "params of fewer layers": (lambda _: {"params": start()[:1]}, "params"),
    "params with NaN": (lambda _: {"params": spoilt(np.nan)}, "params"),
    "params with infinity": (lambda _: {"params": spoilt(np.inf)}, "params"),
    "params of another population": (lambda _: {"params": start(population=2), "population": 3}, "params"),
    "params of a population for one run": (lambda _: {"params": start(population=2)}, "params"),
    "masks of other shapes": (lambda _: {"masks": draw_masks()[::-1]}, "masks"),
    "masks of fewer layers": (lambda _: {"masks": draw_masks()[:1]}, "masks"),
    "masks of no layer": (lambda _: {"masks": ()}, "masks"),
    "one array for masks": (lambda _: {"masks": draw_masks()[0]}, "masks"),
    "masks that are not 0 or 1": (lambda _: {"masks": tuple(mask / 2 for mask in draw_masks())}, "masks"),
    "masks with NaN": (lambda _: {"masks": tuple(mask * np.nan for mask in draw_masks())}, "masks"),
    "masks of another population": (lambda _: {"masks": draw_masks(2), "population": 3}, "masks"),
    "masks of a population for one run": (lambda _: {"masks": draw_masks(2)}, "masks"),
    "all labels smoothed": (lambda _: {"label_smoothing": 1.0}, "label_smoothing"),
    "negative smoothing": (lambda _: {"label_smoothing": -0.1}, "label_smoothing"),
    "smoothing of NaN": (lambda _: {"label_smoothing": np.nan}, "label_smoothing"),
    "smoothing of bool": (lambda _: {"label_smoothing": True}, "label_smoothing"),
    "smoothing of text": (lambda _: {"label_smoothing": "0.1"}, "label_smoothing"),
    "smoothing for each member of one": (lambda _: {"label_smoothing": [0.1, 0.2]}, "label_smoothing"),
    "smoothing of another population": (lambda _: {"label_smoothing": [0.1] * 2, "population": 3}, "label_smoothing"),
    "no patience": (lambda _: {"patience": 0}, "patience"),
    "patience of float": (lambda _: {"patience": 2.0}, "patience"),
    "patience of bool": (lambda _: {"patience": True}, "patience"),
    "patience for another population": (lambda _: {"patience": [1, 2], "population": 3}, "patience"),
    "a negative min_delta": (lambda _: {"patience": 1, "min_delta": -0.1}, "min_delta"),
    "a min_delta of infinity": (lambda _: {"patience": 1, "min_delta": np.inf}, "min_delta"),
    "a min_delta of text": (lambda _: {"patience": 1, "min_delta": "0"}, "min_delta"),
    "a min_delta of another population": (
        lambda _: {"patience": 1, "min_delta": [0.1] * 2, "population": 3},
        "min_delta",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_the_name_of_the_argument(case, splits):
    change, name = BAD[case]
    options = {"data": splits, "seed": 0, "epochs": 1} | change(splits)
    with pytest.raises(ValueError, match=name):
        mm.gradient_descent(NETWORK, options.pop("data"), **options)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        *product(["gradient_descent", "prune", "quantize"], ["remask", "through", "values", "epoch"]),
        *product(["prune", "quantize"], ["resume"]),
    ],
)
def test_arguments_that_an_algorithm_does_not_take_are_refused(algorithm, name, splits):
    """What the loop behind it takes is not its own: a resumed run, for one, would not be pruned."""
    model = mm.gradient_descent(NETWORK, splits, seed=0, epochs=1)
    own = {"gradient_descent": {}, "prune": {"sparsity": 0.5}, "quantize": {"bits": 4}}[algorithm]
    given = NETWORK if algorithm == "gradient_descent" else model
    with pytest.raises(TypeError, match=name):
        getattr(mm, algorithm)(given, splits, seed=0, epochs=2, **own, **{name: model})


def test_the_largest_seeds_have_members_too(splits):
    """Member i has the key of seed + i, also where that passes the range of int64."""
    model = mm.gradient_descent(NETWORK, splits, seed=2**63 - 1, population=2, epochs=0)
    alone = mm.gradient_descent(NETWORK, splits, seed=2**63, epochs=0)
    assert_same(model.member(1).params, alone.params)


# Compiled programs.


@pytest.fixture
def jax_backend():
    pytest.importorskip("jax")
    return mm.backends.load("jax")


def test_new_numbers_never_recompile(jax_backend, splits):
    def compilations():
        programs = (begin, ("params", "opt_state")), (epoch, ("state",))
        return [
            jax_backend.jit(fn, static=("static",), donate=donate).compiled._cache_size() for fn, donate in programs
        ]

    def run(seed, rate, training=None, **numbers):
        mm.gradient_descent(
            NETWORK,
            splits,
            seed=seed,
            backend=jax_backend,
            epochs=2,
            batch_size=11,
            optimizer=optimizers.momentum(rate, **numbers),
            **(training or {}),
        )

    before = compilations()
    run(0, 0.01)
    once = compilations()
    assert once[1] == before[1] + 1
    run(0, 0.01)
    run(1, 0.02, momentum=0.5)
    run(2, np.float32(0.03), momentum=np.float64(0.1))
    run(3, schedules.cosine(0.04, warmup=0.5))
    assert compilations() == once
    for i, blur in enumerate((0.1, 0.2, np.float64(0.3))):
        noise = {"dropout": blur, "input_dropout": blur / 2, "label_smoothing": blur}
        run(i, 0.01, noise | {"patience": 1 + i, "min_delta": 0.01 * i})
        assert compilations()[1] == once[1] + 1


def test_a_whole_descent_compiles_as_one_program(jax_backend, splits):
    """Drawing, starting and three epochs in one call: anything that asked the host would raise."""
    import jax

    optimizer = optimizers.adam(0.01)
    problem, static = program(jax_backend, splits, optimizer)
    rates = np.full(len(splits.train.x) // 16, 0.01, np.float32)
    masks = to_backend(jax_backend, draw_masks())

    @jax.jit
    def whole(key, config, masks, train, validation, rates):
        params = NETWORK.init(random.fold_in(key, INIT), backend=jax_backend)
        given = Traced(config, masks, active=jax.numpy.ones((), bool))
        state = begin(params, optimizer.rule.init(params), validation, given, static=static)
        log = [state.best_loss]
        for done in range(3):
            order = Draws(random.fold_in(random.fold_in(key, ORDER), done), None)
            state, _, loss = epoch(state, train, validation, order, rates, given, static=static)
            log.append(loss)
        return state, jax.numpy.stack(log)

    config = to_backend(jax_backend, optimizer.config)
    (rows,) = problem.chunks(0, 16)
    state, log = whole(jax_backend.asarray(random.key(4)), config, masks, rows, problem.validation, rates)
    model = mm.gradient_descent(
        NETWORK, splits, seed=4, backend="jax", epochs=3, batch_size=16, masks=draw_masks(), optimizer=optimizer
    )
    np.testing.assert_allclose(log, model.history["validation_loss"], rtol=1e-4)
    np.testing.assert_allclose(state.best[0].weight, model.params[0].weight, rtol=1e-3, atol=1e-5)


def test_a_whole_random_search_compiles_as_one_program(jax_backend, splits):
    import jax

    strategy = hill_climbing()
    problem = prepare(NETWORK, splits, None, jax_backend, fitted=splits)
    held = random_search.of_loss(problem.loss)
    static = random_search.Static(jax_backend, NETWORK, held, held, strategy.plan, 8)

    @jax.jit
    def whole(key, config, part, numbers):
        params = NETWORK.init(random.fold_in(key, random_search.INIT), backend=jax_backend)
        draws, batches = (random.fold_in(key, use) for use in (random_search.DRAWS, random_search.BATCHES))
        given = random_search.Given(config, part, draws, batches)
        search = random_search.begin(params, given, static=static, keep=None)
        return random_search.evolve(search, given, numbers, None, None, static=static)[1]

    config = to_backend(jax_backend, strategy.config)
    (rows,) = problem.chunks(0, 1)
    found = whole(jax_backend.asarray(random.key(4)), config, rows, np.arange(5, dtype=np.uint32))
    model = mm.random_search(NETWORK, splits, seed=4, backend="jax", generations=5, population=8, strategy=strategy)
    np.testing.assert_allclose(found, model.history["loss"], rtol=1e-5)


def test_choosing_masks_compiles_once(jax_backend, splits):
    """The number to keep is traced: another sparsity compiles nothing."""
    model = mm.gradient_descent(NETWORK, splits, seed=0, epochs=0)
    run = jax_backend.jit(masks.choose, static=("choice",))
    counts = []
    for sparsity in (0.0, 0.3, 0.9):
        mm.prune(model, splits, seed=0, sparsity=sparsity, epochs=0, backend=jax_backend)
        counts.append(run.compiled._cache_size())
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("scheme", qarray.SCHEMES)
def test_quantizing_compiles(jax_backend, scheme):
    import jax

    @jax.jit
    def whole(w, quantizer, gradient):
        q = qarray.quantize(w, quantizer)
        return qarray.dequantize(q), qarray.fake_quantize(w, quantizer), qarray.straight_through(w, quantizer, gradient)

    w = np.random.default_rng(0).normal(size=(2, 30, 5)).astype(np.float32)
    quantizer = calibrate(w, 4, scheme=scheme, granularity=7)
    restored, faked, passed = whole(w, quantizer, np.ones_like(w))
    np.testing.assert_allclose(restored, faked, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        np.abs(restored - w).mean(), np.abs(qarray.fake_quantize(w, quantizer) - w).mean(), rtol=0.02
    )
    assert set(np.unique(passed)) <= {0.0, 1.0}
