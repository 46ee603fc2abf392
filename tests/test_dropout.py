"""Dropout: how much is dropped, that the rest makes up for it, alike on every backend, and in training alone."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, optimizers, random, tree
from minimodel.gradients import objective
from minimodel.search import dropout
from minimodel.search.dropout import multiplier, noise

NETWORK = mm.Network((4, 6, 3))
SIZES = (4, 5, 3, 3)
STEP = {"rtol": 1e-5, "atol": 1e-6}
STILL = optimizers.sgd(0.0)  # nothing moves: the losses show the noise alone
RATES = [0.0, 0.1, 0.5, 0.9, 0.99]


def number(value):
    return np.asarray(value, np.float32)


def draw(seed, rate, shape, backend=None):
    """m on the host."""
    backend = backend or mm.backends.load("numpy")
    key, rate = backend.asarray(random.key(seed)), backend.asarray(number(rate))
    return backend.to_numpy(multiplier(key, rate, shape, backend=backend))


def rates(population, hidden=0.5, inputs=0.25):
    """Of both kinds, for one network or for each member: so few programs are compiled."""
    if population is None:
        return {"dropout": hidden, "input_dropout": inputs}
    return {"dropout": np.full(population, hidden), "input_dropout": np.full(population, inputs)}


def train(data, **options):
    return mm.gradient_descent(
        NETWORK, data, **{"seed": 0, "epochs": 2, "batch_size": 16, "optimizer": STILL} | options
    )


# What is drawn.


@pytest.mark.parametrize("rate", [*RATES, 1e-4, 0.123456])
def test_the_part_that_is_dropped_is_within_binomial_bounds(rate, oracle):
    """All over, in every column, and in both halves of the words: bounds that one run in 10⁹ would leave."""
    binom = oracle("scipy.stats").binom
    dropped = draw(1, rate, (4096, 33)) == 0
    for part in (dropped, *dropped.T, dropped[:, :17], dropped[:, 17:]):
        low, high = binom.ppf([1e-9, 1 - 1e-9], part.size, rate)
        assert low <= part.sum() <= high


@pytest.mark.parametrize("rate", [*RATES, 1e-4, 0.123456, 0.99999, np.nextafter(np.float32(1), np.float32(0))])
def test_the_rest_makes_up_for_it(rate, backend):
    """m is 0 or 1/(1 − p), p the rate to the nearest 2⁻¹⁶ below 1: its mean is 1."""
    found = draw(0, rate, (5, 64), backend)
    p = min(round(float(rate) * dropout.STEPS), dropout.STEPS - 1) / dropout.STEPS
    assert abs(p - rate) <= 1 / dropout.STEPS
    assert found.dtype == np.float32
    kept = found[found != 0]
    np.testing.assert_allclose(kept, 1 / (1 - p), rtol=1e-6)
    assert len(set(kept.tolist())) <= 1
    np.testing.assert_allclose((1 - p) * kept, 1, rtol=1e-6)


def test_the_mean_of_many_draws_is_one():
    """Within six standard deviations √(p/(1 − p)/n), and so is that of the activations they multiply."""
    for rate in RATES:
        found = draw(3, rate, (4096, 64)).astype(np.float64)
        assert abs(found.mean() - 1) <= 6 * np.sqrt(rate / (1 - rate) / found.size)


def test_without_a_rate_every_activation_is_kept(backend):
    np.testing.assert_array_equal(draw(0, 0.0, (7, 3), backend), 1)


@pytest.mark.parametrize("shape", [(7, 3), (5, 64)])
def test_every_backend_draws_the_same_bits(shape, population, backend):
    seeds, each = (5, 0.3) if population is None else ([5, 6, 7], [0.0, 0.3, 0.9])
    found = draw(seeds, each, shape, backend)
    assert found.shape == (*(() if population is None else (3,)), *shape)
    np.testing.assert_array_equal(found == 0, draw(seeds, each, shape) == 0)
    np.testing.assert_array_max_ulp(found, draw(seeds, each, shape), maxulp=1)


def test_a_member_draws_as_on_its_own(backend):
    together = draw([5, 6, 7], [0.0, 0.3, 0.9], (7, 3), backend)
    for i, rate in enumerate([0.0, 0.3, 0.9]):
        np.testing.assert_array_equal(together[i], draw(5 + i, rate, (7, 3), backend))


def test_no_two_places_are_dropped_together():
    """No column is another's copy or complement, nor are layers, keys and members."""
    network_noise = noise(
        random.key([0, 1]), number(0.5), number(0.5), (8, 8, 8), 256, backend=mm.backends.load("numpy")
    )
    columns = np.concatenate([m[i].T for m in network_noise for i in range(2)] + [draw(2, 0.5, (256, 8)).T]) > 0
    agree = (columns[:, None] == columns[None]).mean(axis=-1)
    others = agree[~np.eye(len(columns), dtype=bool)]
    assert len(columns) == 56
    assert others.min() > 0.2 and others.max() < 0.8  # 10 standard deviations of a fair coin's 256 throws


@pytest.mark.parametrize(("inputs", "hidden"), [(None, 0.5), (0.5, None), (0.2, 0.5), (None, None)])
def test_inputs_and_hidden_layers_have_rates_of_their_own(inputs, hidden):
    given_rates = (None if rate is None else number(rate) for rate in (inputs, hidden))
    found = noise(random.key(0), *given_rates, SIZES[:-1], 11, backend=mm.backends.load("numpy"))
    assert [m is None for m in found] == [inputs is None, hidden is None, hidden is None]
    for m, size, rate in zip(found, SIZES[:-1], (inputs, hidden, hidden), strict=True):
        if m is not None:
            assert m.shape == (11, size)
            np.testing.assert_allclose(m[m != 0], 1 / (1 - rate), rtol=1e-4)


# The gradient under noise.


def draw_problem(loss, population=None, seed=0, batch=6):
    """float64 parameters, x, t and noise of the inputs and both hidden layers."""
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    params = tuple(
        mm.Layer(rng.normal(size=(*lead, n, m)) / np.sqrt(n), 0.3 * rng.normal(size=(*lead, m)))
        for n, m in itertools.pairwise(SIZES)
    )
    x = rng.normal(size=(batch, SIZES[0]))
    t = rng.dirichlet(np.ones(SIZES[-1]), batch) if loss == "softmax_cross_entropy" else rng.uniform(size=(batch, 3))
    masks = tuple(2.0 * (rng.random((*lead, batch, n)) < 0.5) for n in SIZES[:-1])
    return params, x, t, masks


def losses_of_rows(jax, name):
    """Mean losses written for automatic differentiation."""
    jnp = jax.numpy
    return {
        "softmax_cross_entropy": lambda z, t: -jnp.mean(jnp.sum(t * jax.nn.log_softmax(z), axis=-1)),
        "mean_squared_error": lambda z, t: jnp.mean((z - t) ** 2),
        "binary_cross_entropy": lambda z, t: -jnp.mean(t * jax.nn.log_sigmoid(z) + (1 - t) * jax.nn.log_sigmoid(-z)),
    }[name]


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error", "binary_cross_entropy"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_the_gradient_under_noise_is_that_of_jax(activation, loss, population, oracle):
    """Of the network with the same masks on its inputs and activations; also with some of them absent."""
    jax = oracle("jax")
    f = {
        "relu": jax.nn.relu,
        "tanh": jax.numpy.tanh,
        "gelu": functools.partial(jax.nn.gelu, approximate=True),
    }[activation]
    j, ours = losses_of_rows(jax, loss), losses.get(loss)
    params, x, t, masks = draw_problem(loss, population)

    def cost(params, masks):
        a = x if masks[0] is None else x * masks[0]
        for (weight, bias), m in zip(params[:-1], masks[1:], strict=True):
            a = f(a @ weight + bias)
            a = a if m is None else a * m
        return j(a @ params[-1][0] + params[-1][1], t)

    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    partly = () if population else ((None, *masks[1:]), (masks[0], None, None))
    for chosen in (masks, *partly):
        found = objective(mm.Network(SIZES, activation), ours, params, x, t, None, chosen)
        for i in range(population or 1):
            alone, ours_alone = (params, chosen), found
            if population is not None:
                alone, ours_alone = (tree.map(lambda leaf, i=i: leaf[i], values) for values in (alone, found))
            with enable(True):
                expected = jax.value_and_grad(cost)(*alone)
            for one, other in zip(tree.leaves(ours_alone), tree.leaves(expected), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), activation=st.sampled_from(["relu", "leaky_relu", "silu", "sigmoid"]))
def test_the_gradient_under_noise_is_the_difference_along_a_direction(seed, activation):
    params, x, t, masks = draw_problem("mean_squared_error", None, seed)
    along, network, step = draw_problem("mean_squared_error", None, seed + 1)[0], mm.Network(SIZES, activation), 1e-7
    ends = [
        objective(
            network,
            losses.mean_squared_error,
            tree.map(lambda p, v, sign=sign: p + sign * step * v, params, along),
            x,
            t,
            None,
            masks,
        )[0]
        for sign in (1, -1)
    ]
    grads = objective(network, losses.mean_squared_error, params, x, t, None, masks)[1]
    slope = sum(float((g * v).sum()) for g, v in zip(tree.leaves(grads), tree.leaves(along), strict=True))
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-4, atol=1e-6)


def test_noise_of_ones_changes_nothing():
    params, x, t, masks = draw_problem("mean_squared_error")
    ones = tuple(np.ones_like(m) for m in masks)
    found, expected = (
        objective(mm.Network(SIZES), losses.mean_squared_error, params, x, t, None, m) for m in (ones, None)
    )
    for one, other in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


# In training.


def test_a_rate_of_zero_is_no_dropout(backend, population, splits):
    moving = {"backend": backend, "population": population, "optimizer": optimizers.sgd(0.1)}
    plain, noiseless = train(splits, **moving), train(splits, **moving, **rates(population, 0, 0))
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(noiseless.history[name], plain.history[name], **STEP)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"input_dropout": 0.5}, rates(None)], ids=repr)
def test_every_step_of_every_epoch_draws_anew(options, splits):
    """Rows that are all alike and parameters that do not move: without noise all losses are the same."""
    alike = replace(splits, train=mm.Dataset(*(np.repeat(part[:1], 64, axis=0) for part in splits.train)))
    still = train(alike, epochs=3).history["loss"]
    np.testing.assert_allclose(still, still[0], rtol=1e-5)
    log = train(alike, epochs=3, **options).history["loss"]
    assert len(log) == 12 and np.ptp(log) > 0.01
    assert len(set(log.tolist())) >= 10  # the masks of two steps may well have the same sum


def test_every_step_draws_anew_on_every_backend(backend, splits):
    alike = replace(splits, train=mm.Dataset(*(np.repeat(part[:1], 64, axis=0) for part in splits.train)))
    log = train(alike, backend=backend, epochs=3, **rates(None)).history["loss"]
    assert len(set(log.tolist())) == len(log) == 12


def test_the_seed_decides(backend, splits):
    moving = {"backend": backend, "optimizer": optimizers.sgd(0.1), **rates(None)}
    runs = [train(splits, **moving, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].history["loss"], runs[1].history["loss"])
    for one, other in zip(tree.leaves(runs[0].params), tree.leaves(runs[1].params), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (runs[0].history["loss"] != runs[2].history["loss"]).any()


def test_every_backend_takes_the_same_steps_under_noise(backend, population, splits):
    options = {"epochs": 1, "optimizer": optimizers.sgd(0.05), "population": population, **rates(population)}
    ours, theirs = (train(splits, backend=each, **options) for each in (backend, "numpy"))
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], **STEP)
    for one, other in zip(tree.leaves(ours.state.params), tree.leaves(theirs.state.params), strict=True):
        np.testing.assert_allclose(one, other, **STEP)


def test_a_member_is_the_single_run_of_its_seed_and_rates(backend, splits):
    hidden, inputs = np.array([0.0, 0.3, 0.6]), np.array([0.5, 0.0, 0.1])
    options = {"backend": backend, "optimizer": optimizers.sgd(0.1)}
    together = train(splits, seed=7, population=3, dropout=hidden, input_dropout=inputs, **options)
    for i in range(3):
        alone = train(splits, seed=7 + i, dropout=hidden[i], input_dropout=inputs[i], **options)
        for name in ("loss", "validation_loss"):
            np.testing.assert_allclose(together.member(i).history[name], alone.history[name], rtol=1e-5)
        for one, other in zip(tree.leaves(together.member(i).params), tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_one_rate_is_for_all_members(splits):
    one, each = (train(splits, population=3, dropout=rate) for rate in (0.25, np.full(3, 0.25)))
    np.testing.assert_array_equal(one.history["loss"], each.history["loss"])


def test_validation_and_the_model_are_without_noise(backend, population, splits):
    """Nothing moves, so nothing may change."""
    log, options = [], {"backend": backend, "population": population}
    for noise_rates in ({}, rates(population, 0.9, 0.5)):
        found = train(splits, **options, **noise_rates)
        log.append(found.history["validation_loss"])
        np.testing.assert_array_equal(log[-1], np.broadcast_to(log[-1][0], log[-1].shape))
        np.testing.assert_allclose(found.evaluate(splits.validation).loss, log[-1][0], rtol=1e-5)
    np.testing.assert_array_equal(*log)


@pytest.mark.parametrize("name", ["dropout", "input_dropout"])
def test_with_all_dropped_nothing_of_the_row_is_left(name, splits):
    """At the greatest rate below 1 the first outputs are the last biases, which are 0: log 3 for three classes."""
    log = train(splits, batch_size=48, epochs=1, **{name: 1 - 2.0**-16}).history["loss"]
    np.testing.assert_allclose(log[0], np.log(3), rtol=1e-5)


def test_inputs_are_dropped_before_the_first_layer(splits):
    """Without hidden layers ``dropout`` has nothing to act on, ``input_dropout`` has."""
    network = mm.Network((4, 3))
    plain, hidden, inputs = (
        mm.gradient_descent(network, splits, seed=0, epochs=1, **options).history["loss"]
        for options in ({}, {"dropout": 0.5}, {"input_dropout": 0.5})
    )
    np.testing.assert_array_equal(plain, hidden)
    assert (plain != inputs).all()


def test_it_learns_all_the_same(population, splits):
    found = train(splits, epochs=30, population=population, dropout=0.2, optimizer=optimizers.adam(0.05))
    log = found.history["validation_loss"]
    assert (log.min(axis=0) < 0.6 * log[0]).all()


def test_pruned_and_quantized_models_retrain_with_it(splits):
    model = train(splits, optimizer=optimizers.adam(0.02))
    options = {"seed": 0, "epochs": 2, "batch_size": 16}
    for compress in (functools.partial(mm.prune, sparsity=0.5), functools.partial(mm.quantize, bits=6)):
        plain, noisy = (compress(model, splits, **options, **more) for more in ({}, {"dropout": 0.5}))
        assert plain.history["validation_loss"][0] == noisy.history["validation_loss"][0]
        assert (plain.history["loss"] != noisy.history["loss"]).all()
    assert noisy.bits == 6


BAD = [1, 1.0, 1.5, -0.1, np.nan, np.inf, "0.5", True, [0.1, 0.2], np.array([0.1]), [0.1, [0.2]], {"hidden": 0.5}, 1j]


@pytest.mark.parametrize("rate", BAD, ids=repr)
@pytest.mark.parametrize("name", ["dropout", "input_dropout"])
def test_a_bad_rate_is_refused_by_name(name, rate, splits):
    with pytest.raises(ValueError, match=rf"^{name}: expected a finite number from 0 and below 1, got"):
        train(splits, **{name: rate})


@pytest.mark.parametrize("wrong", [[0.1, 0.2], [0.1, 0.2, 1.0], [0.1, np.nan, 0.2], [[0.1, 0.2, 0.3]]], ids=repr)
@pytest.mark.parametrize("name", ["dropout", "input_dropout"])
def test_bad_rates_of_a_population_are_refused_by_name(name, wrong, splits):
    with pytest.raises(ValueError, match=rf"^{name}: expected a finite number or 3 of them from 0 and below 1, got"):
        train(splits, population=3, **{name: wrong})
