"""Random search: the best never gets worse, chunks change nothing, candidates follow from their keys alone."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import random, strategies, tree
from minimodel.problem import to_backend
from minimodel.search import random_search
from minimodel.search.strategies import Best, keep_best

NETWORK = mm.Network((4, 6, 3))
STRATEGIES = {
    "uniform": strategies.uniform(),
    "gaussian": strategies.gaussian(),
    "local": strategies.local(),
}
BUDGET = {"generations": 10, "population": 8}  # one for most tests: one program to compile
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


@functools.cache
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    return mm.datasets.split(x, (x @ rng.normal(size=(4, 3))).argmax(1), seed=0)


def assert_same(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def keys_of(generation, candidates, seed=0):
    """The keys under which the candidates of one generation are drawn."""
    return random.fold_in(random.fold_in(random.key(seed), generation), np.arange(candidates, dtype=np.uint32))


def ask(strategy, state, keys, backend):
    """The candidates on the host."""
    config = to_backend(backend, strategy.config)
    return backend.to_numpy(strategy.plan.ask(config, to_backend(backend, state), backend.asarray(keys), backend))


def test_it_improves_on_its_start(backend):
    model = mm.random_search(NETWORK, data(), seed=0, backend=backend, **BUDGET)
    start = mm.random_search(NETWORK, data(), seed=0, backend=backend, generations=0)
    before, after = (run.evaluate(data().train).loss for run in (start, model))
    assert after < 0.8 * before
    np.testing.assert_allclose(model.history["loss"][-1], after, rtol=1e-5)


def test_it_finds_digits():
    """At least 0.6 of the test digits after a small budget, on 256 rows."""
    digits = mm.datasets.load("digits")
    model = mm.random_search(mm.Network((64, 32, 10)), digits, seed=0, generations=60, population=32, rows=256)
    assert model.evaluate(digits.test).accuracy >= 0.6


@given(seed=st.integers(0, 2**64 - 1), name=st.sampled_from(list(STRATEGIES)))
def test_the_best_fitness_never_rises(seed, name):
    model = mm.random_search(NETWORK, data(), seed=seed, strategy=STRATEGIES[name], generations=11, population=4)
    log = model.history["loss"]
    assert log.shape == (11,)
    assert (np.diff(log) <= 0).all()
    np.testing.assert_allclose(model.evaluate(data().train).loss, log[-1], rtol=1e-5)


@every_strategy
def test_the_best_fitness_never_rises_on_any_backend(name, backend):
    model = mm.random_search(NETWORK, data(), seed=1, backend=backend, strategy=STRATEGIES[name], **BUDGET)
    assert (np.diff(model.history["loss"]) <= 0).all()
    np.testing.assert_allclose(model.evaluate(data().train).loss, model.history["loss"][-1], rtol=1e-5)


def test_the_same_seed_gives_the_same_bits(backend):
    runs = [mm.random_search(NETWORK, data(), seed=seed, backend=backend, **BUDGET) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(runs[0].history["loss"], runs[1].history["loss"])
    assert_same(runs[0].params, runs[1].params)
    assert not np.array_equal(runs[0].params[0].weight, runs[2].params[0].weight)


def test_chunks_change_nothing(backend, monkeypatch):
    """Two candidates at a time or all eight at once."""
    problem_rows, runs = len(data().train.x), []
    for cached, size in ((2 * problem_rows * 6, 2), (2**30, 8)):
        monkeypatch.setattr(random_search, "CACHED", cached)
        fresh = replace(backend, devices=("cpu",))  # a program of its own: nothing compiled before is used
        static = random_search.Static(fresh, NETWORK, None, None, 8)
        assert random_search.chunk_size(static, problem_rows) == size
        runs.append(mm.random_search(NETWORK, data(), seed=0, backend=fresh, generations=6, population=8))
    np.testing.assert_allclose(runs[0].history["loss"], runs[1].history["loss"], rtol=1e-6)
    for ours, theirs in zip(tree.leaves(runs[0].params), tree.leaves(runs[1].params), strict=True):
        np.testing.assert_array_max_ulp(ours, theirs, maxulp=4)


@pytest.mark.parametrize("population", [1, 2, 6, 7, 24, 128, 1000])
@pytest.mark.parametrize(
    ("device", "room"), [("TFRT_CPU_0", random_search.CACHED), ("cuda:0", random_search.ACCELERATED)]
)
def test_a_chunk_is_the_largest_divisor_with_room(population, device, room):
    backend = replace(mm.backends.load("numpy"), devices=(device,))
    static = random_search.Static(backend, NETWORK, None, None, population)
    for rows in (10, 100, 10_000, 10**9):
        divisors = [size for size in range(1, population + 1) if population % size == 0]
        fitting = [size for size in divisors if size * rows * 6 <= room]
        assert random_search.chunk_size(static, rows) == max(fitting, default=1)


@every_strategy
def test_a_candidate_depends_on_its_key_alone(name, backend):
    """The first of many candidates are those of a smaller population, and each is the one drawn on its own."""
    state = Best(NETWORK.init(random.key(9)), np.float32(1))
    strategy, keys = STRATEGIES[name], keys_of(3, 8)
    many = ask(strategy, state, keys, backend)
    few = ask(strategy, state, keys[:3], backend)
    one = ask(strategy, state, keys[5], backend)
    for all_of_them, first, single in zip(*map(tree.leaves, (many, few, one)), strict=True):
        np.testing.assert_array_equal(all_of_them[:3], first)
        np.testing.assert_array_equal(all_of_them[5], single)


@every_strategy
def test_candidates_generations_and_seeds_differ(name):
    state, numpy = Best(NETWORK.init(random.key(9)), np.float32(1)), mm.backends.load("numpy")
    drawn = [ask(STRATEGIES[name], state, keys_of(g, 4, seed), numpy) for g, seed in ((0, 0), (1, 0), (0, 1))]
    for leaf in zip(*map(tree.leaves, drawn), strict=True):
        rows = np.concatenate(leaf).reshape(12, -1)
        for one, other in itertools.combinations(rows, 2):
            assert not np.array_equal(one, other)


@every_strategy
def test_every_backend_draws_the_same_candidates(name, backend):
    state, numpy = Best(NETWORK.init(random.key(9)), np.float32(1)), mm.backends.load("numpy")
    found, expected = (ask(STRATEGIES[name], state, keys_of(0, 5), each) for each in (backend, numpy))
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_uniform_candidates_fill_their_range(backend):
    network = mm.Network((20, 30))
    state = Best(network.init(random.key(0)), np.float32(1))
    layer = ask(strategies.uniform(-0.5, 1.5), state, keys_of(0, 10), backend)[0]
    for leaf in layer:
        assert -0.5 <= leaf.min() < -0.45
        assert 1.45 < leaf.max() < 1.5
    assert layer.weight.mean() == pytest.approx(0.5, abs=0.05)


def test_gaussian_candidates_have_their_spread():
    """σ/√in in every layer, biases too, wherever the best is."""
    network, numpy = mm.Network((25, 100, 4)), mm.backends.load("numpy")
    far = Best(tree.map(lambda leaf: leaf + 1000, network.init(random.key(0))), np.float32(1))
    layers = ask(strategies.gaussian(0.5), far, keys_of(0, 50), numpy)
    for layer, inputs in zip(layers, (25, 100), strict=True):
        for leaf in layer:
            assert leaf.std() == pytest.approx(0.5 / np.sqrt(inputs), rel=0.15)
            assert abs(leaf.mean()) < 0.05


def test_local_candidates_lie_around_the_best(backend):
    """θ + ε with the ε of ``gaussian`` at the same keys."""
    state = Best(NETWORK.init(random.key(9)), np.float32(1))
    moved = ask(strategies.local(0.2), state, keys_of(0, 5), backend)
    noise = ask(strategies.gaussian(0.2), state, keys_of(0, 5), backend)
    for found, offset, centre in zip(*map(tree.leaves, (moved, noise, state.params)), strict=True):
        assert found.shape == (5, *centre.shape)
        assert (offset != 0).all()
        np.testing.assert_allclose(found, centre + offset, rtol=1e-6, atol=1e-6)


def candidates_of(fitness, backend):
    """Candidate i holds i + 1 everywhere."""
    xp = backend.xp
    fitness = backend.asarray(np.asarray(fitness), xp.float32)
    values = backend.asarray(np.arange(1, fitness.shape[0] + 1), xp.float32)
    layer = mm.Layer(xp.broadcast_to(values[:, None, None], (*values.shape, 2, 3)), values[:, None] + xp.zeros((1, 3)))
    return (layer._replace(bias=xp.astype(layer.bias, xp.float32)),), fitness


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fitness", "winner", "best"),
    [
        ([3, 1, 2], 2, 1),
        ([NAN, 2, 1, NAN], 3, 1),
        ([NAN, NAN, 4], 3, 4),
        ([NAN, NAN], 0, 5),
        ([INF, NAN], 0, 5),
        ([5, 6], 0, 5),  # of equals the first stays: the one that was there
        ([2, 1, 1], 2, 1),
    ],
)
def test_the_best_is_kept_and_nan_ranks_last(fitness, winner, best, backend):
    zeros = (mm.Layer(np.zeros((2, 3)), np.zeros(3)),)
    state = to_backend(backend, Best(zeros, np.float32(5)))
    found = backend.to_numpy(keep_best(None, state, *candidates_of(fitness, backend)))
    assert found.fitness == best
    assert found.fitness.shape == ()
    np.testing.assert_array_equal(found.params[0].weight, np.full((2, 3), winner))
    np.testing.assert_array_equal(found.params[0].bias, np.full(3, winner))


def test_a_finite_candidate_beats_a_start_that_is_infinite(backend):
    zeros = (mm.Layer(np.zeros((2, 3)), np.zeros(3)),)
    state = to_backend(backend, Best(zeros, np.float32(INF)))
    found = backend.to_numpy(keep_best(None, state, *candidates_of([NAN, 7], backend)))
    assert found.fitness == 7
    np.testing.assert_array_equal(found.params[0].bias, [2, 2, 2])


def test_numpy_and_jax_find_the_same():
    pytest.importorskip("jax")
    ours, theirs = (mm.random_search(NETWORK, data(), seed=3, backend=name, **BUDGET) for name in ("numpy", "jax"))
    np.testing.assert_allclose(theirs.history["loss"], ours.history["loss"], rtol=1e-4)
    for one, other in zip(tree.leaves(theirs.params), tree.leaves(ours.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_parameters_given_are_a_candidate(backend):
    """Where all others are far worse, they are the answer."""
    start = NETWORK.init(random.key(4))
    kept = tree.map(np.copy, start)
    model = mm.random_search(
        NETWORK,
        data(),
        seed=0,
        backend=backend,
        params=start,
        strategy=strategies.uniform(50.0, 51.0),
        **BUDGET,
    )
    assert_same(model.params, kept)
    assert_same(start, kept)
    np.testing.assert_allclose(model.history["loss"], model.evaluate(data().train).loss, rtol=1e-5)


def test_without_parameters_it_starts_from_init(backend):
    model = mm.random_search(NETWORK, data(), seed=4, backend=backend, generations=0, population=4)
    key = random.fold_in(random.key(4), random_search.INIT)
    assert_same(model.params, backend.to_numpy(NETWORK.init(key, backend=backend)))
    assert model.history["loss"].shape == (0,)


def test_only_the_rows_asked_for_are_seen():
    """Other values in the rest of the rows, or in validation, change nothing."""
    train, changed = data().train, data().train.x.copy()
    changed[20:] = 0
    other = replace(data(), train=train._replace(x=changed), validation=train)
    runs = [mm.random_search(NETWORK, d, seed=0, rows=20, generations=4, population=4) for d in (data(), other)]
    assert_same(runs[0].params, runs[1].params)
    np.testing.assert_array_equal(runs[0].history["loss"], runs[1].history["loss"])


def test_the_callback_sees_the_last_generation():
    seen = []
    model = mm.random_search(NETWORK, data(), seed=0, generations=23, population=2, callback=seen.append)
    assert (seen[-1].done, seen[-1].total) == (23, 23)
    assert seen[-1].best == seen[-1].loss == model.history["loss"][-1]
    assert [progress.done for progress in seen] == sorted({progress.done for progress in seen})


def test_a_number_of_a_strategy_is_traced():
    pytest.importorskip("jax")
    jax_backend = mm.backends.load("jax")
    search = jax_backend.jit(random_search.search, static=("static",), donate=("state",)).compiled
    compiled = []
    for seed, sigma in ((0, 0.1), (1, 0.2), (2, np.float32(0.3))):
        mm.random_search(NETWORK, data(), seed=seed, backend=jax_backend, strategy=strategies.local(sigma), **BUDGET)
        compiled.append(search._cache_size())
    assert compiled[0] > 0
    assert len(set(compiled)) == 1


def test_a_search_that_never_sees_a_finite_loss_says_so(backend):
    """The start overflows, and so does all around it."""
    start = tree.map(lambda leaf: np.full_like(leaf, 3e38), NETWORK.init(random.key(0)))
    with pytest.raises(mm.DivergedError, match="random_search") as caught:
        mm.random_search(NETWORK, data(), seed=0, backend=backend, params=start, generations=2, population=2)
    assert caught.value.model.network == NETWORK


def test_a_start_that_overflows_to_nan_is_left_behind(backend):
    """Infinite outputs cost ∞ − ∞ = NaN, which is worse than any finite candidate."""
    start = tree.map(lambda leaf: np.full_like(leaf, 3e38), NETWORK.init(random.key(0)))
    model = mm.random_search(
        NETWORK, data(), seed=0, backend=backend, params=start, strategy=strategies.uniform(), **BUDGET
    )
    assert np.isfinite(model.history["loss"]).all()
    assert all(np.abs(leaf).max() <= 1 for leaf in tree.leaves(model.params))


BAD = {
    "negative generations": ({"generations": -1}, "generations"),
    "no population": ({"population": 0}, "population"),
    "no rows": ({"rows": 0}, "rows"),
    "a negative seed": ({"seed": -1}, "seed"),
    "a seed of bool": ({"seed": False}, "seed"),
    "a seed of float": ({"seed": 0.5}, "seed"),
    "an unknown loss": ({"loss": "hinge"}, "loss"),
    "squared error of labels": ({"loss": "mean_squared_error"}, "train.y"),
    "params of another network": ({"params": mm.Network((4, 3)).init(random.key(0))}, "params"),
    "params with NaN": ({"params": tree.map(lambda leaf: leaf * np.nan, NETWORK.init(random.key(0)))}, "params"),
    "params of a population": ({"params": NETWORK.init(random.key([0, 1]))}, "params"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_the_name_of_the_argument(case):
    options, name = BAD[case]
    with pytest.raises(ValueError, match=name):
        mm.random_search(NETWORK, data(), **{"seed": 0, "generations": 1, "population": 2} | options)


def test_data_of_other_features_are_refused():
    with pytest.raises(ValueError, match=r"train\.x"):
        mm.random_search(mm.Network((5, 3)), data(), seed=0, generations=1)
