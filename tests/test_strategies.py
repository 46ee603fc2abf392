"""Strategies by hand: ask and tell are pure, go on from a state, and do what their formulas say."""

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minimodel as mm
from minimodel import optimizers, random, schedules, strategies, tree
from minimodel.network import Layer, LowRank, Mirrored, dense
from minimodel.search import quasi, random_search
from minimodel.search.plans import Plain
from minimodel.search.random_search import error_rate
from minimodel.search.strategies import Asked
from minimodel.testing.suites import StrategySuite
from minimodel.testing.suites.search import far_from_half as bowl
from minimodel.testing.suites.search import rows_of as vectors_of

NETWORK = mm.Network((4, 3, 2))
KEY = random.key(7)
NAN, INF = float("nan"), float("inf")


def sphere(x):
    return (x * x).sum(axis=-1)


def rosenbrock(x):
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(axis=-1)


def rastrigin(x):
    return (10 + x * x - 10 * np.cos(2 * np.pi * x)).sum(axis=-1)


def params(seed=9, dtype=np.float32):
    return tree.map(lambda leaf: leaf.astype(dtype), NETWORK.init(random.key(seed)))


def drive(strategy, state, generations, population=8, fitness=bowl, backend="numpy"):
    for generation in generations:
        asked = strategy.ask(state, random.fold_in(KEY, generation), population, backend=backend)
        state = strategy.tell(state, asked, fitness(asked), backend=backend)
    return state


def assert_same(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


class TestStrategy(StrategySuite):
    """The laws, of every strategy but the next two."""

    @pytest.fixture
    def strategy(self, lawful_maker):
        return lawful_maker(0.1)


class TestAnnealing(StrategySuite):
    """The laws, of a strategy that goes by differences of the fitness."""

    expected_failures: ClassVar = {"only_the_order_of_the_fitness_counts": "e^(−ΔJ/T) is not a matter of order"}

    @pytest.fixture
    def strategy(self):
        return strategies.simulated_annealing(0.1, temperature=3.0)


class TestQuasiRandom(StrategySuite):
    """The laws, of points that scipy scrambles by the key."""

    expected_failures: ClassVar = {"no_key_is_drawn_and_split": "nothing is drawn by minimodel.random"}

    @pytest.fixture
    def strategy(self, oracle):
        oracle("scipy")
        return strategies.gaussian(1.0, points="sobol")


# Ask and tell.


def test_float64_stays_float64_also_through_a_file(maker, tmp_path):
    strategy, start = maker(0.1), params(dtype=np.float64)
    state = strategy.init(start)
    dtypes = [leaf.dtype for leaf in tree.leaves(state)]
    half = drive(strategy, state, range(3))
    assert [leaf.dtype for leaf in tree.leaves(half)] == dtypes and half.best[0].weight.dtype == np.float64
    strategy.save(half, tmp_path / "state")
    again = maker(0.2).load(tmp_path / "state", start)  # σ and the like are not part of it
    assert_same(again, half)
    assert_same(drive(strategy, again, range(3, 6)), drive(strategy, state, range(6)))


def test_a_vector_is_searched_like_a_network(vector_maker, backend):
    """A strategy by hand takes any array, finds a lower fitness, and reads as it was given."""
    start = np.linspace(-1, 1, 12, dtype=np.float32)
    strategy = vector_maker(0.1)
    state = strategy.init(start, sphere(start), backend=backend)
    state = drive(strategy, state, range(5), backend=backend)
    found = backend.to_numpy((state.best, strategy.read(state)))
    assert [leaf.shape for leaf in found] == [(12,), (12,)]
    assert float(state.fitness) < sphere(start - 0.5)


def assert_by_hand_it_is_the_search(strategy, backend):
    """``random_search`` on a network does what ask and tell do with its keys and its fitness."""
    rng = np.random.default_rng(0)
    x, seed = rng.normal(size=(40, 4)).astype(np.float32), 5
    data = mm.datasets.split(x, (x[:, 0] > x[:, 1]).astype(int), seed=0)
    options = {"fitness": error_rate, "generations": 5, "population": 8, "strategy": strategy}
    model = mm.random_search(NETWORK, data, seed=seed, backend=backend, **options)
    inputs, targets = data.normalization(data.train.x), np.eye(2, dtype=np.float32)[data.train.y]

    def fitness(candidates):
        return error_rate(None, NETWORK.apply(candidates, inputs), targets)

    start, key = (random.fold_in(random.key(seed), use) for use in (random_search.INIT, random_search.DRAWS))
    start = NETWORK.init(start)
    state = strategy.init(start, fitness(tree.map(lambda leaf: leaf[None], start))[0])
    for generation in range(5):
        asked = strategy.ask(state, random.fold_in(key, generation), 8)
        state = strategy.tell(state, asked, fitness(asked.params))
    assert_close(model.state.search.state, state, rtol=1e-4, atol=1e-5)


def test_by_hand_it_is_the_search(maker):
    assert_by_hand_it_is_the_search(maker(0.1), "numpy")


def test_by_hand_it_is_the_search_of_any_backend(backend):
    assert_by_hand_it_is_the_search(strategies.snes(), backend)


def test_ask_and_tell_can_be_compiled():
    """A user's own generation, with a fitness of JAX."""
    jax = pytest.importorskip("jax")
    strategy = strategies.snes(0.2)

    @jax.jit
    def generation(state, key):
        asked = strategy.ask(state, key, 8, backend="jax")
        return strategy.tell(state, asked, sphere(asked.params), backend="jax")

    start = np.ones(4, np.float32)
    state, expected = strategy.init(start, backend="jax"), strategy.init(start)
    for i in range(3):
        state = generation(state, random.fold_in(KEY, i))
        expected = drive(strategy, expected, [i], fitness=lambda asked: sphere(asked.params))
    assert_close(jax.tree.map(np.asarray, state), expected)


# Going on from a state.


def test_a_state_of_any_backend_is_saved(backend, tmp_path):
    strategy = strategies.sep_cma_es()
    state = drive(strategy, strategy.init(params(), backend=backend), range(2), backend=backend)
    strategy.save(state, str(tmp_path / "state"))
    assert_same(strategy.load(str(tmp_path / "state"), params()), backend.to_numpy(state))


@settings(max_examples=20)
@given(st.data())
def test_any_numbers_of_a_state_come_back(tmp_path, data):
    """To the bit, also what is not finite."""
    strategy, start = strategies.mu_lambda(), np.ones(3)
    state = strategy.init(start)
    state = tree.map(lambda leaf: np.asarray(data.draw(hnp.arrays(leaf.dtype, leaf.shape))), state)
    strategy.save(state, tmp_path / "state")
    for found, expected in zip(tree.leaves(strategy.load(tmp_path / "state", start)), tree.leaves(state), strict=True):
        assert found.tobytes() == expected.tobytes()


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    path, strategy, start = tmp_path / "state", strategies.snes(), np.ones(3)
    strategy.save(strategy.init(start), path)
    for other, like in (
        (strategies.sep_cma_es(), start),
        (strategies.hill_climbing(), start),
        (strategy, np.ones(4)),
        (strategy, np.ones(3, np.float32)),
        (strategy, params()),
    ):
        with pytest.raises(ValueError, match="state: not a state of this strategy"):
            other.load(path, like)
    mm.Model(NETWORK, params(), mm.losses.softmax_cross_entropy).save(path)
    with pytest.raises(ValueError, match="not a state"):
        strategy.load(path, start)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        strategy.load(path, start)


# The best, and what is no number.


def candidates_of(fitness):
    """Candidate i holds i + 1 everywhere: hill climbing with σ = 1 from 0."""
    values = np.arange(1, len(fitness) + 1, dtype=np.float32)
    return np.repeat(values[:, None], 5, axis=1)


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
    strategy, start = strategies.hill_climbing(1.0), np.zeros(5, np.float32)
    state = strategy.init(start, 5.0, backend=backend)
    asked = Asked(backend.asarray(candidates_of(fitness)), None)
    found = backend.to_numpy(strategy.tell(state, asked, fitness, backend=backend))
    assert found.fitness == best and found.fitness.shape == ()
    np.testing.assert_array_equal(found.best, np.full(5, winner))


def test_a_finite_candidate_beats_a_start_that_is_infinite(backend):
    strategy = strategies.hill_climbing(1.0)
    state = strategy.init(np.zeros(5, np.float32), backend=backend)
    asked = Asked(backend.asarray(candidates_of([NAN, 7])), None)
    found = backend.to_numpy(strategy.tell(state, asked, [NAN, 7], backend=backend))
    assert found.fitness == 7
    np.testing.assert_array_equal(found.best, np.full(5, 2))


def centre(strategy, state):
    """Where the next candidates lie around, flat."""
    return np.concatenate([leaf.ravel() for leaf in tree.leaves(strategy.read(state))])


@pytest.mark.parametrize("value", [NAN, INF, 0.0, 3.0])
def test_where_all_are_equal_nothing_is_learned(maker, value):
    """No NaN, and a mean that stays, up to rounding; its σ may change."""
    strategy = maker(0.1)
    before = state = strategy.init(params(), 1e9)
    for generation in range(5):
        asked = strategy.ask(state, random.fold_in(KEY, generation), 8)
        state = strategy.tell(state, asked, np.full(8, value))
        assert np.isfinite(vectors_of(asked.params)).all()
    assert not any(np.isnan(leaf).any() for leaf in tree.leaves(state))
    assert np.isfinite(centre(strategy, state)).all()
    if maker is strategies.mu_lambda:
        np.testing.assert_array_equal(state.own.mean, before.own.mean)
    elif isinstance(state.own, tuple) and maker is not strategies.simulated_annealing:
        np.testing.assert_allclose(centre(strategy, state), centre(strategy, before), atol=1e-6)


# Properties.


@pytest.mark.parametrize("name", ["open_es", "low_rank_es"])
@given(seed=st.integers(0, 2**31), worth=st.lists(st.integers(-9, 9), min_size=1, max_size=6))
def test_antithetic_draws_cancel(name, seed, worth):
    """A pair lies on either side of the mean, and where both have one fitness nothing is learned."""
    strategy, start = getattr(strategies, name)(optimizer=optimizers.sgd(1.0)), params(dtype=np.float64)
    state = strategy.init(start)
    asked = strategy.ask(state, random.key(seed), 2 * len(worth))
    found, middle = vectors_of(asked.params), vectors_of(tree.map(lambda leaf: leaf[None], start))[0]
    np.testing.assert_allclose(found[::2] + found[1::2], np.tile(2 * middle, (len(worth), 1)), atol=1e-14)
    assert (found[::2] != found[1::2]).all()
    told = strategy.tell(state, asked, np.repeat(worth, 2))
    assert_close(strategy.read(told), start, rtol=0, atol=1e-12)


# What is drawn.


def test_uniform_candidates_fill_their_range(backend):
    strategy, start = strategies.uniform(-0.5, 1.5), mm.Network((20, 30)).init(random.key(0))
    asked = strategy.ask(strategy.init(start, backend=backend), KEY, 10, backend=backend)
    (layer,) = backend.to_numpy(asked.params)
    for leaf in layer:
        assert -0.5 <= leaf.min() < -0.45 and 1.45 < leaf.max() < 1.5
    assert layer.weight.mean() == pytest.approx(0.5, abs=0.05)


def test_gaussian_candidates_have_their_spread():
    """σ/√in in every layer, biases too, wherever the best is."""
    far = tree.map(lambda leaf: leaf + 1000, mm.Network((25, 100, 4)).init(random.key(0)))
    strategy = strategies.gaussian(0.5)
    layers = strategy.ask(strategy.init(far), KEY, 50).params
    for layer, inputs in zip(layers, (25, 100), strict=True):
        for leaf in layer:
            assert leaf.std() == pytest.approx(0.5 / np.sqrt(inputs), rel=0.15)
            assert abs(leaf.mean()) < 0.05


def test_cauchy_candidates_have_their_quartiles():
    """±scale/√in are the quartiles of a Cauchy distribution; as many lie beyond scipy's 99 %."""
    start = (Layer(np.zeros((16, 100), np.float32), np.zeros(100, np.float32)),)
    found = vectors_of(strategies.cauchy(0.2).ask(strategies.cauchy(0.2).init(start), KEY, 20).params)
    np.testing.assert_allclose(np.quantile(found, [0.25, 0.5, 0.75]), [-0.05, 0, 0.05], atol=0.002)
    assert (np.abs(found) > 0.05 * np.tan(np.pi * 0.49)).mean() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("law", ["normal", "cauchy"])
def test_hill_climbing_candidates_lie_around_the_best(law, backend):
    """θ + ε with the ε of the law at the same keys."""
    noise = strategies.gaussian(0.2) if law == "normal" else strategies.cauchy(0.2)
    moved = strategies.hill_climbing(0.2, law=law)
    found, offset = (
        backend.to_numpy(strategy.ask(strategy.init(params(), backend=backend), KEY, 5, backend=backend).params)
        for strategy in (moved, noise)
    )
    assert_close(found, tree.map(lambda leaf, centre: leaf + centre, offset, params()))


@pytest.mark.parametrize("sequence", quasi.SEQUENCES)
def test_quasi_random_points_are_those_of_scipy(sequence, oracle):
    """Scrambled by the key; the candidates are these points spread over the range, or through the inverse law."""
    oracle("scipy")
    from scipy.stats import cauchy, norm, qmc

    engine = {"sobol": qmc.Sobol, "halton": qmc.Halton, "latin_hypercube": qmc.LatinHypercube}[sequence]
    expected = engine(6, rng=np.random.default_rng(KEY.tolist())).random(16)
    for strategy, value in (
        (strategies.uniform(-1.0, 3.0, points=sequence), 4 * expected - 1),
        (strategies.gaussian(0.5, points=sequence), 0.5 * norm.ppf(expected)),
        (strategies.cauchy(0.5, points=sequence), 0.5 * cauchy.ppf(expected)),
        (strategies.hill_climbing(0.5, points=sequence), 1 + 0.5 * norm.ppf(expected)),
    ):
        found = strategy.ask(strategy.init(np.ones(6)), KEY, 16).params
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sequence", quasi.SEQUENCES)
def test_quasi_random_points_are_spread_evenly(sequence, oracle):
    """One of 32 points in each 32nd of every axis (for Halton, to the base of the axis), anew in every generation."""
    qmc = oracle("scipy.stats.qmc")
    strategy = strategies.uniform(0.0, 1.0, points=sequence)
    state, found = strategy.init(np.ones(3)), []
    for generation in range(2):
        u = strategy.ask(state, random.fold_in(KEY, generation), 32).params
        assert u.min() >= 0 and u.max() < 1
        cells = 32 if sequence != "halton" else np.array([32, 27, 25])
        count = np.sort(np.floor(u * cells), axis=0)
        if sequence != "halton":
            np.testing.assert_array_equal(count, np.repeat(np.arange(32)[:, None], 3, axis=1))
        else:
            assert [len(np.unique(column)) for column in count.T] == [32, 27, 25]
        assert qmc.discrepancy(u) < qmc.discrepancy(random.uniform(KEY, (32, 3)).astype(float))
        found.append(u)
    assert (found[0] != found[1]).all()


# Layers of candidates.


@pytest.mark.parametrize("own", [False, True], ids=["shared x", "own x"])
@pytest.mark.parametrize("name", ["open_es", "low_rank_es", "hill_climbing"])
def test_rows_as_columns_change_nothing(name, own, backend):
    """The outputs of x transposed, transposed."""
    strategy, x = getattr(strategies, name)(), np.random.default_rng(0).normal(size=(4, 7, 4)).astype(np.float32)
    state = strategy.init(params(), backend=backend)
    draws = strategy.ask(state, KEY, 4, backend=backend).draws
    placed = strategy.plan.place(strategy._numbers(state.best, backend), state, draws)
    x = backend.asarray(x[[0, 0, 2, 2]] if own else x[0])
    found, expected = NETWORK.apply(placed, x.mT, columns=True).mT, NETWORK.apply(placed, x)
    assert found.shape == (4, 7, NETWORK.layer_sizes[-1])
    np.testing.assert_allclose(backend.to_numpy(found), backend.to_numpy(expected), rtol=1e-5, atol=1e-6)


# Low rank.


def low_rank_network(rank, network, members, backend):
    """Layers of low rank on the host and on the backend."""
    rng = np.random.default_rng(rank)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    layers = tuple(
        LowRank(draw(n, m), draw(members, m), draw(members, n, rank), draw(members, rank, m)) for n, m in network.shapes
    )
    return layers, tree.map(backend.asarray, layers)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("own", [False, True], ids=["shared x", "own x"])
def test_a_low_rank_layer_is_the_dense_one(rank, own, backend):
    """Within γ_k·(|x|·(|W| + |a|·|b|) + |bias|) of the exact product, k the length of all sums."""
    network, members = mm.Network((5, 3)), 4
    layers, ours = low_rank_network(rank, network, members, backend)
    x = np.random.default_rng(0).normal(size=(members, 7, 5) if own else (7, 5)).astype(np.float32)
    found = backend.to_numpy(network.apply(ours, backend.asarray(x)))
    layer, wide = tree.map(lambda leaf: leaf.astype(np.float64), layers)[0], x.astype(np.float64)
    exact = wide @ (layer.weight + layer.a @ layer.b) + layer.bias[:, None]
    size = np.abs(wide) @ (np.abs(layer.weight) + np.abs(layer.a) @ np.abs(layer.b)) + np.abs(layer.bias)[:, None]
    k = (5 + rank + 2) * 2.0**-24
    assert found.shape == (4, 7, 3)
    assert (np.abs(found - exact) <= k / (1 - k) * size).all()


@given(
    seed=st.integers(0, 2**31),
    rank=st.integers(1, 4),
    hidden=st.lists(st.integers(1, 9), max_size=2),
    pairs=st.booleans(),
    own=st.booleans(),
)
def test_a_low_rank_candidate_is_the_explicitly_perturbed_network(seed, rank, hidden, pairs, own):
    """Any network, any draws: σ·a·b in every layer, never formed, has the outputs of the layers it stands for."""
    network, key = mm.Network((4, *hidden, 3)), random.key(seed)
    strategy = strategies.low_rank_es(0.3, rank=rank, antithetic=pairs)
    state = strategy.init(network.init(key))
    asked = strategy.ask(state, key, 4)
    x = random.normal(key, (4, 7, 4) if own else (7, 4))
    found, expected = (network.apply(layers, x) for layers in (asked.params, tuple(map(dense, asked.params))))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("own", [False, True], ids=["shared x", "own x"])
def test_a_low_rank_candidate_is_the_explicitly_perturbed_network_on_any_backend(rank, own, backend):
    strategy = strategies.low_rank_es(0.3, rank=rank)
    state = strategy.init(params(), backend=backend)
    asked = strategy.ask(state, KEY, 4, backend=backend)
    assert all(isinstance(layer, LowRank) for layer in asked.params)
    x = backend.asarray(np.random.default_rng(0).normal(size=(4, 7, 4) if own else (7, 4)).astype(np.float32))
    explicit = tuple(map(dense, asked.params))
    found, expected = (backend.to_numpy(NETWORK.apply(layers, x)) for layers in (asked.params, explicit))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for layer, mean in zip(backend.to_numpy(explicit), params(), strict=True):
        change = layer.weight - mean.weight
        assert (np.linalg.matrix_rank(change, tol=1e-4) == min(rank, *mean.weight.shape)).all()


@pytest.mark.parametrize("own", [False, True], ids=["shared x", "own x"])
def test_mirrored_layers_are_the_dense_ones(own, backend):
    """Within γ_k·(|x|·(|W| + |C|) + |bias| + |c|) of the exact product, k the length of all sums."""
    rng, pairs = np.random.default_rng(0), 2
    w, b, c, d, x = (rng.normal(size=s).astype(np.float32) for s in ((5, 3), 3, (pairs, 5, 3), (pairs, 3), (7, 5)))
    x = np.repeat(np.stack([x, 2 * x]), 2, axis=0) if own else x
    layer = tree.map(backend.asarray, Mirrored(w, b, Layer(c, d)))
    found = backend.to_numpy(mm.Network((5, 3)).apply((layer,), backend.asarray(x)))
    signs, wide = np.array([1, -1, 1, -1]), x.astype(np.float64)
    weight, bias = (each.astype(np.float64).repeat(2, axis=0) for each in (c, d))
    exact = wide @ (w + signs[:, None, None] * weight) + (b + signs[:, None] * bias)[:, None]
    size = np.abs(wide) @ (np.abs(w) + np.abs(weight)) + (np.abs(b) + np.abs(bias))[:, None]
    k = (5 + 3) * 2.0**-24
    assert found.shape == (4, 7, 3)
    assert (np.abs(found - exact) <= k / (1 - k) * size).all()
    formed = backend.to_numpy(dense(layer))
    np.testing.assert_allclose(formed.weight, w + signs[:, None, None] * weight, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(formed.bias, b + signs[:, None] * bias, rtol=1e-6, atol=1e-7)


def test_a_low_rank_perturbation_has_the_spread_of_a_dense_one():
    """Every entry has variance σ²/in, whatever the rank."""
    start = (Layer(np.zeros((25, 40)), np.zeros(40)),)
    for rank in (1, 3):
        strategy = strategies.low_rank_es(0.5, rank=rank)
        (layer,) = map(dense, strategy.ask(strategy.init(start), KEY, 200).params)
        for leaf in layer:
            assert leaf.std() == pytest.approx(0.1, rel=0.05) and abs(leaf.mean()) < 0.01


@pytest.mark.parametrize("maker", ["open_es", "low_rank_es", "low_rank_es 3"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_the_gradient_is_that_of_explicit_perturbations(maker, antithetic):
    """Σ uᵢ(θᵢ − θ)/(Pσ²)·in from formed candidates, u = rank/(P − 1) − ½; a step of SGD moves the mean against it."""
    options = {"optimizer": optimizers.sgd(0.7), "antithetic": antithetic}
    options |= {"rank": 3} if maker.endswith("3") else {}
    strategy, start = getattr(strategies, maker.partition(" ")[0])(0.3, **options), params(dtype=np.float64)
    state = strategy.init(start)
    asked, fitness = strategy.ask(state, KEY, 8), np.array([3.0, -1, 4, 1, -5, 9, 2, -6])
    weights = fitness.argsort().argsort() / 7 - 0.5
    found = strategy.tell(state, asked, fitness).own.mean
    for new, mean, each in zip(found, start, map(dense, asked.params), strict=True):
        inputs = mean.weight.shape[0]
        for after, before, leaves in zip(new, mean, each, strict=True):
            gradient = np.tensordot(weights, leaves - before, 1) * inputs / (8 * 0.3**2)
            np.testing.assert_allclose(after, before - 0.7 * gradient, rtol=1e-9, atol=1e-12)


# Bad input.


CLIMBING, FALLING = strategies.hill_climbing(), strategies.open_es(optimizer=optimizers.adam(schedules.cosine(0.1)))

AVERAGED = strategies.open_es(optimizer=optimizers.momentum(0.1, average=0.5))


def told_of(fitness, strategy=CLIMBING, asked=None, **options):
    state = strategy.init(np.ones(3))
    return strategy.tell(state, strategy.ask(state, KEY, 4) if asked is None else asked, fitness, **options)


BAD = {
    "an infinite width": (lambda: strategies.uniform(-3e38, 3e38), "high − low"),
    "a fitness of text": (lambda: told_of(["1", "2", "3", "4"]), "fitness"),
    "a ragged fitness": (lambda: told_of([1, [2], 3, 4]), "fitness"),
    "no numbers": (lambda: told_of([None] * 4), "fitness"),
    "a complex fitness": (lambda: told_of(np.ones(4) * 1j), "fitness"),
    "a fitness short": (lambda: told_of([1, 2, 3]), "fitness"),
    "candidates alone": (lambda: told_of([1] * 4, asked=np.ones((4, 3))), "asked"),
    "another's candidates": (lambda: told_of([1] * 4, asked=Asked(np.ones((4, 5)), None)), "asked"),
    "no state": (lambda: CLIMBING.tell(None, Asked(np.ones((4, 3)), None), [1] * 4), "state"),
    "ask of no state": (lambda: CLIMBING.ask(None, KEY, 4), "state"),
    "no rate of a schedule": (lambda: told_of([1] * 4, FALLING), "rate"),
    "a rate of NaN given": (lambda: told_of([1] * 4, FALLING, rate=np.float64(NAN)), "rate"),
    "a negative rate": (lambda: told_of([1] * 4, FALLING, rate=-0.1), "rate"),
    "several rates": (lambda: told_of([1] * 4, FALLING, rate=np.ones(3)), "rate"),
    "a rate of no optimizer": (lambda: told_of([1] * 4, rate=0.1), "rate"),
    "a rate of text": (lambda: told_of([1] * 4, FALLING, rate="fast"), "rate"),
    "a start of several fitnesses": (lambda: CLIMBING.init(np.ones(3), [1, 2, 3]), "fitness"),
    "a start of text": (lambda: CLIMBING.init("start"), "params"),
    "no start": (lambda: CLIMBING.init(None), "params"),
    "an empty start": (lambda: CLIMBING.init(np.ones(0)), "params"),
    "a complex start": (lambda: CLIMBING.init(np.ones(3) * 1j), "params"),
    "no order of one": (lambda: strategies.snes().ask(strategies.snes().init(np.ones(3)), KEY, 1), "population"),
    "a start in a subspace that moved": (
        lambda: strategies.subspace(strategies.mu_lambda(), 2, seed=0, redraw=True), "redraw",
    ),
    "an average over subspaces": (
        lambda: strategies.subspace(AVERAGED, 2, seed=0, redraw=True), "redraw",
    ),
    "low above high": (lambda: strategies.uniform(1.0, 0.0), "low, high"),
    "low of NaN": (lambda: strategies.uniform(NAN, 0.0), "low"),
    "an infinite high": (lambda: strategies.uniform(0.0, INF), "high"),
    "no σ": (lambda: strategies.gaussian(0.0), "sigma"),
    "a negative σ": (lambda: strategies.hill_climbing(-1.0), "sigma"),
    "a σ of text": (lambda: strategies.snes("0.1"), "sigma"),
    "two σ": (lambda: strategies.sep_cma_es([0.1, 0.2]), "sigma"),
    "a σ of bool": (lambda: strategies.one_plus_one(True), "sigma"),
    "no scale": (lambda: strategies.cauchy(0), "scale"),
    "unknown points": (lambda: strategies.gaussian(points="grid"), "points"),
    "an unknown law": (lambda: strategies.hill_climbing(law="levy"), "law"),
    "no parents": (lambda: strategies.mu_lambda(parents=0.0), "parents"),
    "only parents": (lambda: strategies.mu_lambda(parents=1.0), "parents"),
    "parents of text": (lambda: strategies.mu_lambda(parents="half"), "parents"),
    "no patience": (lambda: strategies.mu_lambda(patience=0), "patience"),
    "no temperature": (lambda: strategies.simulated_annealing(temperature=0.0), "temperature"),
    "negative cooling": (lambda: strategies.simulated_annealing(cooling=-0.5), "cooling"),
    "an optimizer by name": (lambda: strategies.open_es(optimizer="adam"), "optimizer"),
    "L-BFGS": (lambda: strategies.open_es(optimizer=optimizers.lbfgs()), "optimizer"),
    "a second gradient": (lambda: strategies.low_rank_es(optimizer=optimizers.sgd(0.1, sharpness=0.1)), "optimizer"),
    "no rank": (lambda: strategies.low_rank_es(rank=0), "rank"),
    "a rank of bool": (lambda: strategies.low_rank_es(rank=True), "rank"),
    "a rank of float": (lambda: strategies.low_rank_es(rank=1.5), "rank"),
    "a rate of NaN": (lambda: strategies.snes(rate=NAN), "rate"),
    "no dimension": (lambda: strategies.subspace(strategies.snes(), 0, seed=0), "dimension"),
    "a dimension of float": (lambda: strategies.subspace(strategies.snes(), 2.0, seed=0), "dimension"),
    "a subspace of nothing": (lambda: strategies.subspace("snes", 2, seed=0), "strategy"),
    "a subspace of low rank": (lambda: strategies.subspace(strategies.low_rank_es(), 2, seed=0), "strategy"),
    "a subspace of points": (lambda: strategies.subspace(strategies.gaussian(points="sobol"), 2, seed=0), "strategy"),
    "a subspace's subspace": (
        lambda: strategies.subspace(strategies.subspace(strategies.snes(), 3, seed=0), 2, seed=0),
        "strategy",
    ),
    "a negative seed": (lambda: strategies.subspace(strategies.snes(), 2, seed=-1), "seed"),
    "a seed of float": (lambda: strategies.subspace(strategies.snes(), 2, seed=0.5), "seed"),
    "low rank of a vector": (lambda: strategies.low_rank_es().init(np.ones(3)), "low_rank"),
    "no candidates": (lambda: strategies.snes().ask(strategies.snes().init(np.ones(3)), KEY, 0), "population"),
    "an odd one of pairs": (
        lambda: strategies.open_es().ask(strategies.open_es().init(np.ones(3)), KEY, 3),
        "population",
    ),
    "too few fitnesses": (lambda: told_of([1.0, 2.0]), "fitness"),
    "one fitness": (lambda: told_of(1.0), "fitness"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_the_name_of_the_argument(case):
    call, name = BAD[case]
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        call()


@pytest.mark.parametrize(
    "optimizer", [optimizers.nadam(0.1), optimizers.adam(0.1, clip_norm=1.0), optimizers.momentum(0.1, average=0.9)]
)
def test_optimizers_that_look_at_layers_move_vectors_too(optimizer):
    strategy, key = strategies.open_es(0.1, optimizer=optimizer), random.key(0)
    state = strategy.init(np.full(3, 1.0))
    for generation in range(100):
        asked = strategy.ask(state, random.fold_in(key, generation), 8)
        state = strategy.tell(state, asked, (asked.params**2).sum(axis=1))
    assert strategy.read(state).shape == (3,)
    assert (strategy.read(state) ** 2).sum() < 0.3


@pytest.mark.parametrize("inner", [strategies.sep_cma_es(0.3), strategies.simulated_annealing(0.3, temperature=1.0)])
def test_a_new_basis_leaves_the_centre_of_any_plan_where_it_is(inner):
    fixed, redrawn = (strategies.subspace(inner, 3, seed=2, redraw=redraw) for redraw in (False, True))
    states = [strategy.init(np.arange(6.0)) for strategy in (fixed, redrawn)]
    asked = fixed.ask(states[0], random.key(0), 8)
    fitness = (asked.params**2).sum(axis=1)
    after = [strategy.tell(state, asked, fitness).own for strategy, state in zip((fixed, redrawn), states, strict=True)]
    places = [own.origin + inner.plan.centre(own.inner) @ own.basis for own in after]
    np.testing.assert_allclose(places[1], places[0], rtol=1e-6, atol=1e-6)
    assert not np.allclose(after[0].basis, after[1].basis)


@pytest.mark.parametrize("name", ["uniform", "gaussian", "hill_climbing", "one_plus_one", "simulated_annealing"])
@pytest.mark.parametrize("redraw", [False, True], ids=["one basis", "a new one each time"])
def test_a_subspace_reads_the_best_that_was_evaluated(name, redraw):
    """Wherever the subspace has moved since."""
    strategy = strategies.subspace(getattr(strategies, name)(), 3, seed=2, redraw=redraw)
    start = np.arange(6.0)
    state = drive(strategy, strategy.init(start, sphere(start)), range(20), fitness=lambda asked: sphere(asked.params))
    assert sphere(strategy.read(state)) == pytest.approx(state.fitness, rel=1e-6)


@pytest.mark.parametrize(
    "strategy",
    [
        strategies.simulated_annealing(1.0, temperature=1e-9),
        strategies.subspace(strategies.hill_climbing(1.0), 3, seed=0),
    ],
)
def test_what_the_start_is_worth_counts(strategy):
    """A worse candidate does not take its place."""
    start = np.arange(5.0)
    state = strategy.init(start, fitness=0.0)
    state = strategy.tell(state, strategy.ask(state, random.key(0), 1), [100.0])
    np.testing.assert_array_equal(strategy.read(state), start)
    found = state.own.point if hasattr(state.own, "point") else state.own.inner.best @ state.own.basis + start
    np.testing.assert_allclose(found, start)


def test_another_plan_does_not_take_a_state(tmp_path):
    one, other = (strategies.subspace(strategies.snes(), 3, seed=seed) for seed in (0, 1))
    one.save(one.init(np.ones(5)), tmp_path / "state")
    with pytest.raises(ValueError, match="not a state of this strategy"):
        other.load(tmp_path / "state", np.ones(5))


def test_a_state_of_ones_own_plan_is_found_in_another_process(tmp_path):
    """By its class: what Python prints of an object differs from process to process."""

    class Own(Plain):
        place = strategies.hill_climbing().plan.place

    strategy = strategies.Strategy(Own(), 0.1)
    strategy.save(strategy.init(np.ones(3)), tmp_path / "state")
    again = strategies.Strategy(Own(), 0.1).load(tmp_path / "state", np.ones(3))
    np.testing.assert_array_equal(again.best, np.ones(3))


def test_integers_become_floats():
    state = strategies.snes(0.1).init(np.full(3, 3))
    assert state.best.dtype == state.own.mean.dtype == np.float32


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: strategies.subspace(strategies.snes(), 9, seed=0).init(np.zeros(5)), "dimension"),
        (lambda: strategies.subspace(strategies.snes(), 3, seed=[1, 2]), "seed"),
        (lambda: strategies.snes(rate=0), "rate"),
        (lambda: strategies.hill_climbing(1e-60), "sigma"),
        (lambda: strategies.hill_climbing(1e39), "sigma"),
        (lambda: strategies.snes().init(np.array([1.0, np.nan])), "params"),
        (lambda: strategies.snes().ask(strategies.snes().init(np.zeros(3)), random.key(0), 2.5), "population"),
        (lambda: strategies.snes().ask(strategies.snes().init(np.zeros(3)), random.key([0, 1]), 2), "key"),
    ],
)
def test_what_could_not_be_used_is_refused_at_once(make, name):
    with pytest.raises(ValueError, match=name):
        make()
