"""Random search: every strategy on a network, what it returns, and that chunks, devices and pauses change nothing."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from zlib import compress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minimodel as mm
from minimodel import optimizers, random, schedules, strategies, tree
from minimodel.network import Layer
from minimodel.search import random_search
from minimodel.search.plans import Plain
from minimodel.search.random_search import error_rate
from minimodel.search.space import ravel, unravel

NETWORK = mm.Network((4, 6, 3))
BUDGET = {"generations": 10, "population": 8}  # one for most tests: one program to compile


@functools.cache
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    return mm.datasets.split(x, (x @ rng.normal(size=(4, 3))).argmax(1), seed=0)


def assert_same(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_close(found, expected, rtol=1e-4, atol=1e-5):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


def loss_of(params):
    return mm.Model(NETWORK, params, mm.losses.softmax_cross_entropy, data().normalization).evaluate(data().train).loss


# Every strategy.


def test_every_strategy_searches(maker_and_backend):
    """It improves on its start, goes on where it stopped, keeps the best, and compiles once for all numbers."""
    maker, backend = maker_and_backend
    options = {"backend": backend, "population": 8, "keep": 3}
    start = mm.random_search(NETWORK, data(), seed=0, backend=backend, generations=0)
    half = mm.random_search(NETWORK, data(), seed=0, strategy=maker(0.1), generations=10, **options)
    programs = compiled(backend)
    before = tree.map(np.copy, half.state)
    whole = mm.random_search(NETWORK, data(), seed=0, strategy=maker(0.1), generations=20, **options)
    on = mm.random_search(NETWORK, data(), seed=0, strategy=maker(0.1), generations=20, resume=half, **options)
    other = mm.random_search(NETWORK, data(), seed=1, strategy=maker(0.07), generations=20, **options)
    assert compiled(backend) == programs
    assert_same(half.state, before)
    assert_same((on.params, on.state), (whole.params, whole.state))
    for name, count in (("loss", 20), ("validation_loss", 3)):
        assert whole.history[name].shape == (count,)
        np.testing.assert_array_equal(on.history[name], whole.history[name])
    for model in (whole, other):
        losses = model.evaluate(data().train).loss
        assert losses.shape == (3,) and (np.diff(losses) >= 0).all()
        assert losses[0] < start.evaluate(data().train).loss
        assert (np.diff(model.history["loss"]) <= 0).all()
        assert losses[0] <= model.history["loss"][-1] * (1 + 1e-5)
        held = model.evaluate(data().validation).loss
        np.testing.assert_allclose(model.state.best_loss, held, rtol=1e-5)
        assert_same(model.best().params, tree.map(lambda leaf, held=held: leaf[held.argmin()], model.params))
    assert not np.array_equal(whole.params[0].weight, other.params[0].weight)


def compiled(backend):
    """How often each program of a search was compiled; nothing where nothing is."""
    jitted = [
        backend.jit(random_search.begin, static=("static", "keep")),
        backend.jit(random_search.evolve, static=("static",), donate=("search",)),
        backend.jit(random_search.validate, static=("static",)),
        backend.jit(random_search.rank, static=("static",)),
    ]
    return [fn.compiled._cache_size() for fn in jitted if hasattr(fn, "compiled")]


def test_programs_are_counted():
    pytest.importorskip("jax")
    mm.random_search(NETWORK, data(), seed=0, backend="jax", **BUDGET)
    assert min(compiled(mm.backends.load("jax"))) > 0


def test_a_record_finds_what_eager_numpy_finds(maker, exact_sums):
    """Twelve generations: the scan records from four on."""
    options = {"seed": 3, "generations": 12, "population": 8, "strategy": maker(0.1)}
    eager = mm.random_search(NETWORK, data(), backend=mm.backends.load("numpy", debug=True), **options)
    found = mm.random_search(NETWORK, data(), **options)
    assert_same((found.params, found.state), (eager.params, eager.state))


@pytest.mark.parametrize("name", ["low_rank_es", "sep_cma_es"])
def test_numpy_and_jax_find_the_same(name):
    pytest.importorskip("jax")
    options = BUDGET | {"seed": 3, "strategy": getattr(strategies, name)()}
    ours, theirs = (mm.random_search(NETWORK, data(), backend=backend, **options) for backend in ("numpy", "jax"))
    np.testing.assert_allclose(theirs.history["loss"], ours.history["loss"], rtol=1e-4)
    assert_close(theirs.params, ours.params)


@settings(max_examples=5)
@given(seed=st.integers(0, 2**64 - 1))
def test_the_best_fitness_never_rises(maker, seed):
    """And what is returned is as good, or better where it is the mean."""
    model = mm.random_search(NETWORK, data(), seed=seed, strategy=maker(0.1), generations=11, population=4)
    log, state = model.history["loss"], model.state.search.state
    assert log.shape == (11,) and (np.diff(log) <= 0).all()
    np.testing.assert_allclose(loss_of(state.best), log[-1], rtol=1e-5)
    mean = loss_of(maker(0.1).read(state))
    np.testing.assert_allclose(loss_of(model.params), min(mean, log[-1]), rtol=1e-5)


def test_the_same_seed_gives_the_same_bits(backend):
    runs = [mm.random_search(NETWORK, data(), seed=seed, backend=backend, **BUDGET) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(runs[0].history["loss"], runs[1].history["loss"])
    assert_same(runs[0].params, runs[1].params)
    assert not np.array_equal(runs[0].params[0].weight, runs[2].params[0].weight)


def test_it_finds_digits():
    """At least 0.6 of the test digits after a small budget, on 256 rows."""
    digits = mm.datasets.load("digits")
    model = mm.random_search(mm.Network((64, 32, 10)), digits, seed=0, generations=60, population=32, rows=256)
    assert model.evaluate(digits.test).accuracy >= 0.6


# Chunks and devices.


def in_chunks(size, backend, **options):
    """The search with so many candidates at a time, and no more drawn ahead."""
    rows = len(data().train.x)
    fresh = replace(backend, devices=("cpu",), room=size * rows * 6)  # a program of its own: nothing compiled is used
    strategy = options["strategy"]
    static = random_search.Static(fresh, NETWORK, None, None, strategy.plan, 8)
    assert random_search.chunk_size(static, rows) == size
    return mm.random_search(NETWORK, data(), seed=0, backend=fresh, generations=6, population=8, **options)


def assert_chunks_change_nothing(backend, **options):
    few, all_of_them = (in_chunks(size, backend, **options) for size in (2, 8))
    np.testing.assert_allclose(few.history["loss"], all_of_them.history["loss"], rtol=1e-6)
    assert_close(few.params, all_of_them.params, rtol=1e-6, atol=1e-7)
    assert_close(few.state.search.state, all_of_them.state.search.state, rtol=1e-5, atol=1e-6)


def test_chunks_change_nothing(maker):
    """Two candidates at a time or all eight at once."""
    assert_chunks_change_nothing(mm.backends.load("numpy"), strategy=maker(0.1))


@given(
    population=st.integers(1, 12),
    size=st.integers(1, 12),
    name=st.sampled_from(["snes", "open_es", "low_rank_es"]),
    fitness=st.sampled_from([None, error_rate]),
)
def test_any_chunk_gives_the_same(population, size, name, fitness):
    """Also of a population that no chunk divides, whose last one is filled up with candidates that do not count; and
    ties of the error rate stay ties."""
    options = {"seed": 0, "generations": 4, "population": 2 * population, "strategy": getattr(strategies, name)()}
    options["fitness"] = fitness
    backend, taken = mm.backends.load("numpy"), 6 * len(data().train.x)
    found = [
        mm.random_search(NETWORK, data(), backend=replace(backend, room=room), **options)
        for room in (2 * size * taken, 2 * population * taken)
    ]
    np.testing.assert_allclose(found[0].history["loss"], found[1].history["loss"], rtol=1e-6)
    assert_close(found[0].params, found[1].params, rtol=1e-6, atol=1e-7)


def test_chunks_change_nothing_on_any_backend(backend):
    options = {"batch_size": len(data().train.x), "own_batches": True, "strategy": strategies.low_rank_es()}
    assert_chunks_change_nothing(backend, **options)


@pytest.mark.parametrize("population", [1, 2, 6, 7, 24, 128, 1000])
@pytest.mark.parametrize(
    ("devices", "room"),
    [
        (("TFRT_CPU_0",), 2**19),
        (("TFRT_CPU_0",) * 4, 2**22),
        (("cuda:0",), 2**28),
    ],
)
@pytest.mark.parametrize("strategy", [strategies.hill_climbing(), strategies.open_es(), strategies.low_rank_es()])
def test_a_chunk_has_room_and_is_shared_out_evenly(strategy, population, devices, room):
    """Of pairs where they share their draws; a candidate takes room for its activations, or for its own parameters.
    What is left over of the last chunk is less than a share, or as little as from half a chunk up is possible."""
    unit = (2 if strategy.plan.mirrored else 1) * len(devices)
    backend = replace(mm.backends.load("numpy"), devices=devices, room=room)
    own = NETWORK.parameters if strategy.plan.forms else 0
    population *= 2
    static = random_search.Static(backend, NETWORK, None, None, strategy.plan, population)
    for rows in (1, 10, 100, 10_000, 10**9):
        size = random_search.chunk_size(static, rows)
        most = max(unit, len(devices) * (room // max(rows * 6, own)))
        assert size % unit == 0 and size <= most
        assert size > most / 2 - unit or size >= population
        surplus = -population % size
        assert surplus < unit or surplus <= min(-population % other for other in range(size, most + 1, unit))


DEVICES = """
import json, jax, numpy as np, minimodel as mm
from minimodel import strategies, tree
from minimodel.search.random_search import error_rate

rng = np.random.default_rng(0)
x = rng.normal(size=(60, 4)).astype(np.float32)
data = mm.datasets.split(x, (x @ rng.normal(size=(4, 3))).argmax(1), seed=0)
network, found, shards = mm.Network((4, 6, 3)), [], set()

def watched(params, outputs, targets):
    def see(sharding):
        shards.add((outputs.shape, sharding.shard_shape(outputs.shape), sharding.num_devices))
    jax.debug.inspect_array_sharding(outputs, callback=see)
    return error_rate(params, outputs, targets)

for strategy, population, options in (
    (strategies.low_rank_es(), 16, {"fitness": watched, "keep": 2, "batch_size": 20, "own_batches": True}),
    (strategies.snes(), 6, {}),
):
    options = dict(generations=6, population=population, strategy=strategy) | options
    models = [mm.random_search(network, data, seed=0, backend=name, **options) for name in ("jax", "jax:cpu")]
    found.append([
        [len(mm.backends.load(name).devices) for name in ("jax", "jax:cpu")],
        [model.history["loss"].tolist() for model in models],
        [np.concatenate([leaf.ravel() for leaf in tree.leaves(model.params)]).tolist() for model in models],
    ])
print(json.dumps([found, sorted(shards)]))
"""


def test_devices_change_nothing_and_share_the_population():
    """Four of them, in a process of its own, against one; one of 6 is filled up to 8."""
    pytest.importorskip("jax")
    flags = "--xla_force_host_platform_device_count=4 " + os.environ["XLA_FLAGS"]
    run = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found, shards = json.loads(run.stdout)
    for devices, losses, params in found:
        assert devices == [4, 1]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
        np.testing.assert_allclose(params[0], params[1], rtol=1e-5, atol=1e-6)
    assert [[16, 20, 3], [4, 20, 3], 4] in shards  # four candidates on each of four devices
    assert [[16, 20, 3], [16, 20, 3], 1] in shards


# Where it starts and what it looks at.


def test_the_parameters_given_are_a_candidate(backend):
    """Where all others are far worse, they are the answer."""
    start = NETWORK.init(random.key(4))
    kept = tree.map(np.copy, start)
    options = BUDGET | {"params": start, "strategy": strategies.uniform(50.0, 51.0)}
    model = mm.random_search(NETWORK, data(), seed=0, backend=backend, **options)
    assert_same(model.params, kept)
    assert_same(start, kept)
    np.testing.assert_allclose(model.history["loss"], model.evaluate(data().train).loss, rtol=1e-5)


def test_without_parameters_it_starts_from_init(backend):
    model = mm.random_search(NETWORK, data(), seed=4, backend=backend, generations=0, population=4)
    key = random.fold_in(random.key(4), random_search.INIT)
    assert_same(model.params, backend.to_numpy(NETWORK.init(key, backend=backend)))
    assert model.history["loss"].shape == (0,)
    np.testing.assert_allclose(model.history["validation_loss"], [model.evaluate(data().validation).loss], rtol=1e-5)


def test_only_the_rows_asked_for_are_seen():
    """Other values in the rest of the rows, or in validation, change nothing."""
    train, changed = data().train, data().train.x.copy()
    changed[20:] = 0
    other = replace(data(), train=train._replace(x=changed), validation=train)
    runs = [mm.random_search(NETWORK, d, seed=0, rows=20, generations=4, population=4) for d in (data(), other)]
    assert_same(runs[0].params, runs[1].params)
    np.testing.assert_array_equal(runs[0].history["loss"], runs[1].history["loss"])


def first_class(params, outputs, targets):
    """A fitness that tells which rows were seen: how many of them are of class 0."""
    xp = tree.namespace(outputs)
    return xp.mean(targets[..., 0], axis=-1) + 0 * xp.mean(outputs, axis=(-2, -1))


@pytest.mark.parametrize("own_batches", [False, True])
@pytest.mark.parametrize("strategy", [strategies.hill_climbing(), strategies.low_rank_es()], ids=["single", "pairs"])
def test_every_generation_sees_the_rows_of_its_own_key(strategy, own_batches, backend):
    """With ``own_batches`` every candidate, or pair, sees others. Rows are drawn with replacement."""
    options = BUDGET | {"strategy": strategy, "batch_size": 30, "own_batches": own_batches, "fitness": first_class}
    model = mm.random_search(NETWORK, data(), seed=2, backend=backend, **options)
    zero, best = data().train.y == 0, (data().train.y == 0).mean()
    key, expected = random.fold_in(random.key(2), random_search.BATCHES), []
    for generation in range(10):
        keys = random.fold_in(key, generation)
        if own_batches:
            keys = random.fold_in(keys, np.arange(8, dtype=np.uint32) // (2 if strategy.plan.mirrored else 1))
        seen = zero[(random.uniform(keys, (30,)) * len(zero)).astype(int)].mean(axis=-1)
        best = min(best, seen.min())
        expected.append(best)
    assert len(set(expected)) > 1
    np.testing.assert_allclose(model.history["loss"], expected, rtol=1e-6)


def test_a_batch_is_at_most_all_rows():
    model = mm.random_search(NETWORK, data(), seed=0, batch_size=10**9, fitness=first_class, **BUDGET)
    assert np.isfinite(model.history["loss"]).all()


# What is measured.


def small_weights(params, outputs, targets):
    """The error rate and a price of every weight that is not nearly 0: steps everywhere, no gradient anywhere."""
    xp = tree.namespace(outputs)
    error = 1 - xp.mean(xp.astype(xp.argmax(outputs, axis=-1) == xp.argmax(targets, axis=-1), xp.float32), axis=-1)
    large = [xp.astype(xp.abs(layer.weight) > 0.3, xp.float32) for layer in params]
    return error + 0.1 * sum(xp.mean(leaf, axis=(-2, -1)) for leaf in large)


@pytest.mark.parametrize(
    ("name", "fitness"), [("hill_climbing", small_weights), ("low_rank_es", small_weights), ("snes", error_rate)]
)
def test_any_function_is_a_fitness(name, fitness, backend):
    """Of the parameters as well, whatever the form that a strategy keeps them in."""
    options = BUDGET | {"fitness": fitness, "strategy": getattr(strategies, name)()}
    start = mm.random_search(NETWORK, data(), seed=1, backend=backend, generations=0, fitness=fitness)
    model = mm.random_search(NETWORK, data(), seed=1, backend=backend, **options)
    normalized, targets = data().normalization(data().train.x), np.eye(3, dtype=np.float32)[data().train.y]

    def value(params):
        one = tree.map(lambda leaf: leaf[None], params)
        return fitness(one, NETWORK.apply(one, normalized), targets)[0]

    log, state = model.history["loss"], model.state.search.state
    assert (np.diff(log) <= 0).all() and log[-1] < value(start.params)
    np.testing.assert_allclose(value(state.best), log[-1], rtol=1e-5)
    assert value(model.params) <= log[-1] + 1e-6


def test_the_bytes_of_a_model_are_a_fitness(backend):
    """What no array function computes: on JAX in a callback to the host."""

    def size(params):
        return np.asarray([len(compress(w.round(1).tobytes())) for w in np.asarray(params[0].weight)], np.float32)

    def fitness(params, outputs, targets):
        if "jax" not in backend.name:
            return backend.asarray(size(params))
        import jax

        return jax.pure_callback(size, jax.ShapeDtypeStruct(outputs.shape[:1], np.float32), params)

    options = {"generations": 8, "population": 4, "strategy": strategies.hill_climbing(0.5)}
    model = mm.random_search(NETWORK, data(), seed=0, backend=backend, fitness=fitness, **options)
    log = model.history["loss"]
    assert log[-1] < log[0] and log[-1] == size(tree.map(lambda leaf: leaf[None], model.params))[0]


def test_a_fitness_that_jax_cannot_compile_says_so():
    pytest.importorskip("jax")
    for fitness, error in (
        (lambda p, z, t: np.asarray(z).sum((1, 2)), TypeError),
        (lambda p, z, t: z[z > 0], ValueError),
    ):
        with pytest.raises(error, match=r"^fitness: .*pure_callback"):
            mm.random_search(NETWORK, data(), seed=0, backend="jax", fitness=fitness)


def test_an_error_within_a_fitness_says_what_it_was():
    with pytest.raises(TypeError, match=r"^fitness: expected .* of arrays; it raised TypeError: unsupported"):
        mm.random_search(NETWORK, data(), seed=0, fitness=lambda params, outputs, targets: len(params) + "a")


def test_a_fitness_may_give_an_array_of_numpy(backend):
    fitness = np.arange(8.0) if "jax" not in backend.name else list(range(8))
    options = {"generations": 1, "population": 8}
    model = mm.random_search(
        NETWORK, data(), seed=0, backend=backend, fitness=lambda p, z, t: fitness[: z.shape[0]], **options
    )
    assert model.history["loss"][-1] == 0


def test_outputs_that_are_not_finite_are_errors():
    """A network that overflows is no good one by its first class."""
    start = tree.map(lambda leaf: np.full_like(leaf, 3e38), NETWORK.init(random.key(0)))
    options = {"strategy": strategies.gaussian(), "generations": 2, "population": 4, "fitness": error_rate}
    model = mm.random_search(NETWORK, data(), seed=0, params=start, **options)
    assert error_rate(None, np.full((1, 2, 3), np.inf), np.eye(3)[:2]) == 1 and model.history["loss"][-1] < 1
    assert np.abs(model.params[0].weight).max() < 100


def test_a_plan_of_ones_own():
    """A class with the functions of ``Plan``: here a step of one parameter at a time."""

    @dataclass(frozen=True)
    class OneAtATime(Plain):
        def place(self, sigma, state, draws):
            xp, flat = tree.space(draws), ravel(state.best)
            step = xp.where(draws == xp.max(draws, axis=1, keepdims=True), sigma * draws, xp.zeros_like(draws))
            return unravel(state.best, flat + step)

    runs = [
        mm.random_search(
            NETWORK, data(), seed=0, backend=name, strategy=strategies.Strategy(OneAtATime(), 0.5), **BUDGET
        )
        for name in {"numpy", "jax"} & set(mm.backends.available())
    ]
    for model in runs:
        assert model.history["loss"][-1] < model.history["loss"][0]
        np.testing.assert_allclose(model.history["loss"], runs[0].history["loss"], rtol=1e-5)


def test_the_error_rate_is_one_less_the_accuracy():
    model = mm.random_search(NETWORK, data(), seed=0, fitness=error_rate, **BUDGET)
    assert 1 - model.evaluate(data().train).accuracy == pytest.approx(model.history["loss"][-1], rel=1e-6)
    np.testing.assert_allclose(model.history["validation_loss"][0], loss_of_start(), rtol=1e-5)


def loss_of_start():
    """The validation loss where seed 0 starts."""
    return mm.random_search(NETWORK, data(), seed=0, generations=0).evaluate(data().validation).loss


def test_the_learning_rate_follows_its_schedule():
    """A rate of 0 from generation 10 on: the mean stays where it is."""
    seen, means = [], []
    optimizer = optimizers.sgd(lambda step: 0.1 * (step < 10))
    strategy = strategies.open_es(optimizer=optimizer)
    for generations in (10, 20):
        options = {"generations": generations, "population": 8, "strategy": strategy, "callback": seen.append}
        means.append(mm.random_search(NETWORK, data(), seed=0, **options).state.search.state.own.mean)
    assert [progress.learning_rate for progress in seen] == pytest.approx([0.1, 0.1, 0])
    assert_same(*means)
    start = mm.random_search(NETWORK, data(), seed=0, generations=0, strategy=strategy).state.search.state.own.mean
    assert not np.array_equal(start[0].weight, means[0][0].weight)


def test_a_schedule_knows_all_generations():
    seen, strategy = [], strategies.open_es(optimizer=optimizers.sgd(schedules.cosine(0.1)))
    mm.random_search(NETWORK, data(), seed=0, generations=20, population=2, strategy=strategy, callback=seen.append)
    expected = schedules.cosine(0.1)(np.array([9, 19]), schedules.Run(20))
    np.testing.assert_allclose([progress.learning_rate for progress in seen], expected, rtol=1e-6)


def test_the_callback_sees_the_last_generation():
    seen = []
    model = mm.random_search(NETWORK, data(), seed=0, generations=23, population=2, callback=seen.append)
    assert (seen[-1].done, seen[-1].total) == (23, 23)
    assert seen[-1].loss == model.history["loss"][-1]
    assert seen[-1].best == seen[-1].validation_loss == model.history["validation_loss"][-1]
    assert [progress.done for progress in seen] == [10, 20, 23]


# What is kept.


@pytest.mark.parametrize("strategy", [strategies.hill_climbing(), strategies.open_es(), strategies.low_rank_es()])
def test_the_kept_are_the_best_of_all_candidates(strategy, backend):
    """Of a search of 4 generations, as the strategy by hand asks for them; the mean of one that has it is one more."""
    key = random.fold_in(random.key(0), random_search.DRAWS)
    options = {"backend": backend, "generations": 4, "population": 8, "strategy": strategy, "keep": 5}
    model = mm.random_search(NETWORK, data(), seed=0, **options)
    start = NETWORK.init(random.fold_in(random.key(0), random_search.INIT))
    state, losses = strategy.init(start, loss_of(start)), [loss_of(start)]
    for generation in range(4):
        asked = strategy.ask(state, random.fold_in(key, generation), 8)
        found = loss_of(tuple(Layer(*formed[:2]) for formed in map(mm.network.dense, asked.params)))
        state = strategy.tell(state, asked, found)
        losses += found.tolist()
    losses += [loss_of(strategy.read(state))] if strategy.plan.mirrored else []
    np.testing.assert_allclose(model.evaluate(data().train).loss, sorted(losses)[:5], rtol=1e-5)


def test_descent_goes_on_from_the_kept():
    model = mm.random_search(NETWORK, data(), seed=0, keep=3, **BUDGET)
    found = mm.gradient_descent(NETWORK, data(), seed=0, params=model.params, population=3, epochs=2)
    assert (found.evaluate(data().train).loss < model.evaluate(data().train).loss).all()


def test_more_are_kept_than_were_seen(backend):
    """What is left over repeats the start; an infinite loss of it is never the best."""
    start = tree.map(lambda leaf: np.full_like(leaf, 3e38), NETWORK.init(random.key(0)))
    options = {"params": start, "strategy": strategies.uniform(), "keep": 6, "generations": 2, "population": 2}
    model = mm.random_search(NETWORK, data(), seed=0, backend=backend, **options)
    assert model.population == 6
    assert (np.abs(model.params[0].weight).max(axis=(1, 2)) > 1).tolist() == [False] * 4 + [True] * 2
    assert np.abs(model.best().params[0].weight).max() <= 1


# Pauses.


def test_a_search_goes_on_with_another_callback_and_stops_again():
    """In pieces of any length that end between two reports."""
    whole = mm.random_search(NETWORK, data(), seed=0, generations=30, population=4, strategy=strategies.snes())
    model = None
    for generations in (10, 20, 30):
        options = {"generations": generations, "population": 4, "strategy": strategies.snes(), "resume": model}
        model = mm.random_search(NETWORK, data(), seed=0, **options)
    assert_same((model.params, model.state), (whole.params, whole.state))
    for name, log in whole.history.items():
        np.testing.assert_array_equal(model.history[name], log)


def test_a_search_goes_on_on_another_backend():
    pytest.importorskip("jax")
    options = {"seed": 0, "population": 8, "strategy": strategies.sep_cma_es()}
    whole = mm.random_search(NETWORK, data(), generations=20, **options)
    half = mm.random_search(NETWORK, data(), generations=10, **options)
    found = mm.random_search(NETWORK, data(), generations=20, resume=half, backend="jax", **options)
    np.testing.assert_allclose(found.history["loss"], whole.history["loss"], rtol=1e-4)
    assert_close(found.params, whole.params)


def test_a_search_that_is_over_stays_as_it_is():
    model = mm.random_search(NETWORK, data(), seed=0, **BUDGET)
    again = mm.random_search(NETWORK, data(), seed=0, resume=model, **BUDGET)
    assert_same((again.params, again.state), (model.params, model.state))
    np.testing.assert_array_equal(again.history["loss"], model.history["loss"])


# What goes wrong.


def test_a_search_that_never_sees_a_finite_loss_says_so(backend):
    """The start overflows, and so does all around it."""
    start = tree.map(lambda leaf: np.full_like(leaf, 3e38), NETWORK.init(random.key(0)))
    with pytest.raises(mm.DivergedError, match="random_search") as caught:
        mm.random_search(NETWORK, data(), seed=0, backend=backend, params=start, generations=2, population=2)
    assert caught.value.model.network == NETWORK


def test_a_start_that_overflows_to_nan_is_left_behind(backend):
    """Infinite outputs cost ∞ − ∞ = NaN, which is worse than any finite candidate."""
    start = tree.map(lambda leaf: np.full_like(leaf, 3e38), NETWORK.init(random.key(0)))
    options = BUDGET | {"params": start, "strategy": strategies.uniform()}
    model = mm.random_search(NETWORK, data(), seed=0, backend=backend, **options)
    assert np.isfinite(model.history["loss"]).all()
    assert all(np.abs(leaf).max() <= 1 for leaf in tree.leaves(model.params))


def searched(**options):
    return mm.random_search(NETWORK, data(), **{"seed": 0, "generations": 1, "population": 2} | options)


BAD = {
    "negative generations": (lambda: searched(generations=-1), "generations"),
    "no population": (lambda: searched(population=0), "population"),
    "an odd population of pairs": (lambda: searched(population=3, strategy=strategies.open_es()), "population"),
    "no rows": (lambda: searched(rows=0), "rows"),
    "rows of float": (lambda: searched(rows=2.0), "rows"),
    "no batch": (lambda: searched(batch_size=0), "batch_size"),
    "none kept": (lambda: searched(keep=0), "keep"),
    "a negative seed": (lambda: searched(seed=-1), "seed"),
    "a seed of bool": (lambda: searched(seed=False), "seed"),
    "a seed of float": (lambda: searched(seed=0.5), "seed"),
    "an unknown loss": (lambda: searched(loss="hinge"), "loss"),
    "squared error of labels": (lambda: searched(loss="mean_squared_error"), r"train\.y"),
    "params of another network": (lambda: searched(params=mm.Network((4, 3)).init(random.key(0))), "params"),
    "params with NaN": (
        lambda: searched(params=tree.map(lambda leaf: leaf * np.nan, NETWORK.init(random.key(0)))),
        "params",
    ),
    "params of a population": (lambda: searched(params=NETWORK.init(random.key([0, 1]))), "params"),
    "a strategy by name": (lambda: searched(strategy="snes"), "strategy"),
    "another library's strategy": (lambda: searched(strategy=object()), "strategy"),
    "a stream": (lambda: mm.random_search(NETWORK, iter(()), seed=0), "data"),
    "more of a subspace than scipy has": (
        lambda: mm.random_search(
            mm.Network((4, 6000, 3)), data(), seed=0, strategy=strategies.gaussian(points="sobol")
        ),
        "points",
    ),
    "resume of a file": (lambda: searched(resume=replace(searched(), state=None)), "resume"),
    "resume of a descent": (
        lambda: searched(resume=mm.gradient_descent(NETWORK, data(), seed=0, epochs=1)),
        "resume",
    ),
    "resume of no model": (lambda: searched(resume=3), "resume"),
    "resume of another strategy": (lambda: searched(resume=searched(strategy=strategies.snes())), "resume"),
    "resume of another network": (
        lambda: searched(resume=mm.random_search(mm.Network((4, 5, 3)), data(), seed=0, generations=1)),
        "resume",
    ),
    "resume and more kept": (lambda: searched(resume=searched(keep=2), keep=3), "keep"),
    "data of other features": (lambda: mm.random_search(mm.Network((5, 3)), data(), seed=0), r"train\.x"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_the_name_of_the_argument(case):
    call, name = BAD[case]
    if "scipy" in case:
        pytest.importorskip("scipy")
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        call()


def test_a_fitness_may_count(backend):
    """Integers, such as how many rows are wrong, or how many parameters are not 0."""

    def wrong(params, outputs, targets):
        xp = backend.xp
        return xp.sum(xp.astype(xp.argmax(outputs, axis=-1) != xp.argmax(targets, axis=-1), xp.int32), axis=-1)

    model = mm.random_search(NETWORK, data(), seed=0, backend=backend, fitness=wrong, **BUDGET)
    rows = len(data().train.x)
    assert model.history["loss"][-1] == round(rows * (1 - model.evaluate(data().train).accuracy))


@pytest.mark.parametrize("shape", ["(P, 1)", "rows", "()"])
def test_a_fitness_of_another_shape_is_refused(shape):
    fitness = {
        "(P, 1)": lambda params, outputs, targets: outputs[:, 0, :1],
        "rows": lambda params, outputs, targets: outputs.mean(axis=(0, 2)),
        "()": lambda params, outputs, targets: outputs.mean(),
    }[shape]
    with pytest.raises(ValueError, match="fitness: expected a number for each candidate"):
        mm.random_search(NETWORK, data(), seed=0, fitness=fitness, generations=1, population=40, rows=40)


@pytest.mark.parametrize(
    "other",
    [{"fitness": mm.error_rate}, {"seed": 1}, {"rows": 20}, {"batch_size": 8}, {"strategy": strategies.gaussian()}],
)
def test_another_search_is_not_gone_on_with(other):
    options = {"seed": 0, "generations": 4, "population": 4}
    model = mm.random_search(NETWORK, data(), **options)
    with pytest.raises(ValueError, match="resume: expected a model"):
        mm.random_search(NETWORK, data(), **{**options, "generations": 8, **other}, resume=model)


def test_a_search_is_not_gone_on_with_on_other_rows():
    """What was found on the old ones is worth nothing there."""
    options = {"seed": 0, "population": 4}
    model = mm.random_search(NETWORK, data(), generations=4, **options)
    train = mm.Dataset(data().train.x, np.roll(data().train.y, 1))
    with pytest.raises(ValueError, match="resume: expected a model"):
        mm.random_search(NETWORK, replace(data(), train=train), generations=8, resume=model, **options)
    with pytest.raises(ValueError, match="resume: expected a model"):
        mm.random_search(NETWORK, replace(data(), validation=train), generations=8, resume=model, **options)


def test_more_kept_than_seen_stand_behind_the_candidates():
    """Three were seen: the start and two candidates, all of them worse than it."""
    options = {"strategy": strategies.uniform(50.0, 51.0), "generations": 1, "population": 2, "keep": 5}
    model = mm.random_search(NETWORK, data(), seed=0, **options)
    distinct = {member.tobytes() for member in model.params[0].weight[:3]}
    assert len(distinct) == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"own_batches": True}, "own_batches"),
        ({"fitness": 0}, "fitness"),
        ({"fitness": "error_rate"}, "fitness"),
        ({"params": np.zeros(5)}, "params"),
    ],
)
def test_what_makes_no_sense_is_refused(options, name):
    with pytest.raises(ValueError, match=name):
        mm.random_search(NETWORK, data(), seed=0, generations=1, population=2, **options)
