"""Gradient descent: it learns, alike on every backend, keeps masks and the best model, and refuses bad input."""

import functools
from dataclasses import replace

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses, optimizers, qarray, random, schedules, tree
from minimodel.compress import pruning
from minimodel.losses import Loss
from minimodel.problem import masked, prepare, run_keys, to_backend
from minimodel.search import random_search
from minimodel.search.gradient_descent import DIRECT, INIT, ORDER, Static, Traced, begin, epoch, fit, mini_batches
from minimodel.search.strategies import local

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
    static = Static(backend, NETWORK, problem.loss, optimizer.rule, DIRECT, batch_size)
    return problem, static


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
    given = Traced(to_backend(backend, optimizer.config), to_backend(backend, masks), None)
    params = to_backend(backend, NETWORK.init(random.key(0)))
    state = tree.map(lambda leaf: leaf + 1, optimizer.rule.init(params))  # momentum everywhere
    restart = backend.jit(begin, static=("static",), donate=("params", "opt_state"))
    run = backend.jit(epoch, static=("static",), donate=("state",))
    rates = backend.asarray(np.full(len(splits.train.x) // 32, 0.1), backend.xp.float32)
    now = restart(params, state, problem.validation, given, static=static)
    for done in range(3):
        host = backend.to_numpy(now)
        momenta = [host.opt_state] if "adam" not in name else [host.opt_state.mean, host.opt_state.square]
        for layers in (host.params, *momenta):
            for layer, mask in zip(layers, masks, strict=True):
                np.testing.assert_array_equal(layer.weight[mask == 0], 0)
                assert layer.weight[mask == 1].any()
        now, *_ = run(
            now, problem.train, problem.validation, backend.asarray(random.key(done)), rates, given, static=static
        )


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
        remask=lambda done, params: masks if done == 3 else None,
    )
    assert run.masks is masks
    assert run.history["validation_loss"][:4].min() < run.history["validation_loss"][4]
    for layer in run.params:
        np.testing.assert_array_equal(layer.weight, 0)


def test_masked_reaches_every_params_in_a_tree():
    params, masks = NETWORK.init(random.key(0)), draw_masks()
    state = optimizers.adam(0.1).rule.init(params)._replace(mean=params, square=params)
    found = masked(state, masks)
    for layers in (found.mean, found.square):
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
    np.testing.assert_array_equal(model.history["learning_rate"], schedule(np.arange(3 * steps), 3 * steps))


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
    model = mm.gradient_descent(
        NETWORK, splits, seed=0, epochs=3, population=2, callback=lambda *args: seen.append(args)
    )
    best = model.history["validation_loss"][1:].min(axis=1)
    assert seen == [(i + 1, 3, float(loss)) for i, loss in enumerate(best)]


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

    def value(z, y):
        log.append(np.array(y[..., 0]))
        return losses.mean_squared_error.value(z, y)

    base = losses.mean_squared_error
    return Loss("recording", value, base.gradient, base.curvature, base.decide)


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


def test_a_run_that_diverges_stops_there(backend):
    """Not all of its epochs are run."""
    seen = []
    with pytest.raises(mm.DivergedError):
        diverge(backend, callback=lambda done, total, loss: seen.append(done))
    assert len(seen) < 6


def test_one_member_may_diverge_without_the_others(backend):
    network, data = mm.Network((4, 3), "identity"), regression()
    optimizer = optimizers.sgd(np.array([0.05, 1e6]))
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
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_the_name_of_the_argument(case, splits):
    change, name = BAD[case]
    options = {"data": splits, "seed": 0, "epochs": 1} | change(splits)
    with pytest.raises(ValueError, match=name):
        mm.gradient_descent(NETWORK, options.pop("data"), **options)


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

    def run(seed, rate, **numbers):
        mm.gradient_descent(
            NETWORK,
            splits,
            seed=seed,
            backend=jax_backend,
            epochs=2,
            batch_size=11,
            optimizer=optimizers.momentum(rate, **numbers),
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


def test_a_whole_descent_compiles_as_one_program(jax_backend, splits):
    """Drawing, starting and three epochs in one call: anything that asked the host would raise."""
    import jax

    optimizer = optimizers.adam(0.01)
    problem, static = program(jax_backend, splits, optimizer)
    rates = np.full(len(splits.train.x) // 16, 0.01, np.float32)
    masks = to_backend(jax_backend, draw_masks())

    @jax.jit
    def whole(key, config, masks, train, validation, rates):
        params = NETWORK.init(random.fold_in(key, 0), backend=jax_backend)
        given = Traced(config, masks, None)
        state = begin(params, optimizer.rule.init(params), validation, given, static=static)
        log = [state.best_loss]
        for done in range(3):
            order = random.fold_in(random.fold_in(key, ORDER), done)
            state, _, loss = epoch(state, train, validation, order, rates, given, static=static)
            log.append(loss)
        return state, jax.numpy.stack(log)

    config = to_backend(jax_backend, optimizer.config)
    state, log = whole(jax_backend.asarray(random.key(4)), config, masks, problem.train, problem.validation, rates)
    model = mm.gradient_descent(
        NETWORK, splits, seed=4, backend="jax", epochs=3, batch_size=16, masks=draw_masks(), optimizer=optimizer
    )
    np.testing.assert_allclose(log, model.history["validation_loss"], rtol=1e-4)
    np.testing.assert_allclose(state.best[0].weight, model.params[0].weight, rtol=1e-3, atol=1e-5)


def test_a_whole_random_search_compiles_as_one_program(jax_backend, splits):
    import jax

    strategy = local()
    problem = prepare(NETWORK, splits, None, jax_backend, fitted=splits)
    static = random_search.Static(jax_backend, NETWORK, problem.loss, strategy.plan, 8)

    @jax.jit
    def whole(key, config, pair, numbers):
        params = NETWORK.init(random.fold_in(key, random_search.INIT), backend=jax_backend)
        state = random_search.begin(params, pair, static=static)
        draws = random.fold_in(key, random_search.DRAWS)
        return random_search.search(state, config, pair, draws, numbers, static=static)[1]

    config = to_backend(jax_backend, strategy.config)
    found = whole(jax_backend.asarray(random.key(4)), config, problem.train, np.arange(5, dtype=np.uint32))
    model = mm.random_search(NETWORK, splits, seed=4, backend="jax", generations=5, population=8, strategy=strategy)
    np.testing.assert_allclose(found, model.history["loss"], rtol=1e-5)


def test_choosing_masks_compiles(jax_backend):
    """The number to keep may be traced."""
    import jax

    scores = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    select = jax.jit(functools.partial(pruning.largest, backend=jax_backend))
    for k in (0, 1, 7, 20):
        kept = np.asarray(select(scores, jax.numpy.int32(k)))
        expected = np.argsort(np.argsort(-scores, axis=-1, kind="stable"), axis=-1) < k
        np.testing.assert_array_equal(kept, expected)

    layers = tuple(np.abs(layer.weight) for layer in NETWORK.init(random.key([0, 1])))
    for removed in ([20], [12, 9]):
        whole = jax.jit(lambda found, removed=tuple(removed): pruning.keep_largest(found, list(removed), jax_backend))
        kept = whole(tuple(map(jax.numpy.asarray, layers)))
        assert_same(kept, pruning.keep_largest(layers, removed, mm.backends.load("numpy")))


@pytest.mark.parametrize("symmetric", [True, False])
def test_quantizing_compiles(jax_backend, symmetric):
    import jax

    @jax.jit
    def whole(w, gradient):
        quantizer = qarray.calibrate(w, 4, symmetric=symmetric)
        q = qarray.quantize(w, quantizer)
        return qarray.dequantize(q), qarray.fake_quantize(w, quantizer), qarray.straight_through(w, quantizer, gradient)

    w = np.random.default_rng(0).normal(size=(2, 30, 5)).astype(np.float32)
    restored, faked, passed = whole(w, np.ones_like(w))
    np.testing.assert_allclose(restored, faked, rtol=1e-6, atol=1e-7)
    quantizer = qarray.calibrate(w, 4, symmetric=symmetric)
    np.testing.assert_allclose(
        np.abs(restored - w).mean(), np.abs(qarray.fake_quantize(w, quantizer) - w).mean(), rtol=0.02
    )
    assert set(np.unique(passed)) <= {0.0, 1.0}
