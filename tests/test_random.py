"""minimodel.random: published known answers, the same bits on every backend, and equality with jax.random."""

import functools
from dataclasses import replace
from math import erf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import random
from minimodel.backends import array_api
from minimodel.backends import numpy as numpy_backend
from minimodel.backends.threefry import threefry2x32

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1]
DRAWS = {"bits": random.bits, "uniform": random.uniform, "normal": random.normal}
seeds = st.integers(0, 2**64 - 1)


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


def host(draw, key, *args, backend="numpy", **options):
    """A draw on a backend, as a NumPy array."""
    backend = mm.backends.load(backend)
    return np.asarray(backend.to_numpy(draw(key, *args, backend=backend, **options)))


def jax_key(jax, seed):
    """JAX's typed key of a seed of 64 bits, under its default generator."""
    return jax.random.wrap_key_data(random.key(seed), impl="threefry2x32")


# threefry2x32-20: Random123's known-answer tests (kat_vectors)

KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_threefry_gives_the_published_answers(backend, counter, key, answer):
    words = [backend.asarray(np.uint32([word])) for word in (*key, *counter)]
    found = threefry2x32((words[0], words[1]), words[2], words[3])
    assert tuple(int(backend.to_numpy(word)[0]) for word in found) == answer


# keys


@pytest.mark.parametrize("seed", SEEDS)
def test_key_is_the_high_and_the_low_word_of_the_seed(seed):
    found = random.key(seed)
    assert found.dtype == np.uint32 and [int(word) for word in found] == [seed >> 32, seed & 0xFFFFFFFF]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1])
def test_key_equals_that_of_jax(jax, seed):
    np.testing.assert_array_equal(random.key(seed), jax.random.key_data(jax.random.key(seed)))


def test_key_of_an_array_of_seeds_is_an_array_of_keys():
    found = random.key(np.array([[3, 2**40], [0, 1]]))
    assert found.shape == (2, 2, 2)
    np.testing.assert_array_equal(found[0, 1], random.key(2**40))
    np.testing.assert_array_equal(found[1, 1], random.key(np.uint8(1)))


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64, 0.0, 1.5, True, "1", None, [1, -1], [0.5]])
def test_key_refuses_what_is_no_seed(seed):
    with pytest.raises(ValueError, match=r"seed: expected an integer from 0 to 2\^64"):
        random.key(seed)


@pytest.mark.parametrize("seed", [0, 42, 2**32 + 7, 2**64 - 1])
def test_fold_in_and_split_equal_jax(backend, jax, seed):
    key, theirs = backend.asarray(random.key(seed)), jax_key(jax, seed)
    for index in (0, 1, 2**32 - 1):
        expected = jax.random.key_data(jax.random.fold_in(theirs, np.uint32(index)))
        np.testing.assert_array_equal(backend.to_numpy(random.fold_in(key, index)), expected)
    for n in (1, 5):
        expected = jax.random.key_data(jax.random.split(theirs, n))
        np.testing.assert_array_equal(backend.to_numpy(random.split(key, n)), expected)


@given(seed=seeds, population=st.integers(1, 4), n=st.integers(1, 5))
def test_folding_and_splitting_a_population_is_that_of_each_key(seed, population, n):
    keys = random.split(random.key(seed), population)
    indices = np.arange(n) * 3
    split, folded = random.split(keys, n), random.fold_in(keys, indices)
    assert split.shape == folded.shape == (population, n, 2)
    for member in range(population):
        np.testing.assert_array_equal(split[member], random.split(keys[member], n))
        for i in range(n):
            np.testing.assert_array_equal(folded[member, i], random.fold_in(keys[member], indices[i]))


def test_split_keys_are_all_different():
    keys = random.split(random.split(random.key(0), 100), 100).reshape(-1, 2)
    assert len(np.unique(keys, axis=0)) == 10_000


# the same bits on every backend, and as jax.random's


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 4)])
def test_bits_equal_those_of_jax(backend, jax, shape):
    for seed in SEEDS:
        expected = jax.random.bits(jax_key(jax, seed), shape, "uint32")
        found = host(random.bits, random.key(seed), shape, backend=backend)
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (-4.0, 4.0)])
def test_uniforms_equal_those_of_jax(backend, jax, bounds):
    for seed in (0, 42, 2**40 + 1):
        expected = jax.random.uniform(jax_key(jax, seed), (3, 500), "float32", *bounds)
        found = host(random.uniform, random.key(seed), (3, 500), *bounds, backend=backend)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [1, 10, 2_000])
def test_permutations_equal_those_of_jax(backend, jax, n):
    """No round of sorting, one, two."""
    for seed in (0, 42, 2**40 + 1):
        expected = jax.random.permutation(jax_key(jax, seed), n)
        found = host(random.permutation, random.key(seed), n, backend=backend)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shape", [(), (2, 0)])
def test_draws_of_no_axis_and_no_size_have_their_shape(backend, draw, shape):
    for keys in (random.key(5), random.split(random.key(5), 3)):
        found = host(DRAWS[draw], keys, shape, backend=backend)
        assert found.shape == (*keys.shape[:-1], *shape)
        assert found.dtype == (np.uint32 if draw == "bits" else np.float32)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_single_draw_is_the_first_of_many(backend, draw):
    many = host(DRAWS[draw], random.key(5), (1,), backend=backend)
    np.testing.assert_array_equal(host(DRAWS[draw], random.key(5), backend=backend), many[0])


# normal


def ulps(a, b):
    """How many float32 numbers lie between a and b, element by element."""
    steps = [np.where(x < 0, -(x & 0x7FFFFFFF), x) for x in (v.view(np.int32).astype(np.int64) for v in (a, b))]
    return np.abs(steps[0] - steps[1])


@functools.cache
def normals(name):
    return host(random.normal, random.key(2**40 + 3), (100_000,), backend=name)


@pytest.mark.parametrize("name", ["numpy", "array_api:array_api_strict", "jax"])
def test_normals_lie_within_4_ulp_of_jax(jax, name):
    expected = np.asarray(jax.random.normal(jax_key(jax, 2**40 + 3), (100_000,), "float32"))
    assert normals(name).dtype == np.float32
    assert ulps(normals(name), expected).max() <= 4


@pytest.mark.parametrize("name", ["array_api:array_api_strict", "jax"])
def test_normals_lie_within_4_ulp_of_each_other(name):
    pytest.importorskip(name.rpartition(":")[2])
    assert ulps(normals("numpy"), normals(name)).max() <= 4


def test_normals_are_accurate(oracle):
    """Against erf⁻¹ in double precision, at the very uniforms they are made from."""
    special = oracle("scipy.special")
    words = host(random.bits, random.key(2**40 + 3), (100_000,))
    u = (words >> 9).astype(np.float64) * 2.0**-22 - (1 - 2.0**-24)
    exact = np.sqrt(2) * special.erfinv(u)
    np.testing.assert_allclose(normals("numpy"), exact, rtol=1e-4, atol=1e-7)
    centre = np.abs(exact) < 3  # further out, the rounding of 1 − u² shows
    np.testing.assert_allclose(normals("numpy")[centre], exact[centre], rtol=2e-6, atol=1e-7)


def with_words(backend, words):
    """The backend, drawing the given words."""
    return replace(backend, random_bits=lambda key, shape: backend.asarray(np.uint32(words)))


ENDS = (0, 2**32 - 1)  # the least and the greatest word there is


def test_the_ends_of_the_uniform_give_finite_normals(backend):
    """√2·erf⁻¹(u) at u = −1 + 2⁻²⁴ and 1 − 2⁻²² + 2⁻²⁴: −5.42 and 5.22."""
    found = backend.to_numpy(random._normal(None, shape=(2,), backend=with_words(backend, ENDS)))
    np.testing.assert_allclose(found, [-5.419983, 5.220113], rtol=1e-4)


# a population of keys


@given(seed=seeds, population=st.sampled_from([1, 3]), n=st.sampled_from([1, 12]))
def test_a_population_of_permutations_is_that_of_single_keys(backend, seed, population, n):
    keys = random.split(random.key(seed), population)
    together = host(random.permutation, keys, n, backend=backend)
    for member in range(population):
        np.testing.assert_array_equal(together[member], host(random.permutation, keys[member], n, backend=backend))


@given(
    seed=seeds,
    population=st.sampled_from([(), (1,), (2,), (3, 3)]),
    shape=st.sampled_from([(1,), (3,), (7,), (8,), (9,), (15,), (16,), (17,), (4, 2), (3, 3), (5, 5), (0,)]),
)
def test_blocked_words_equal_unblocked_ones(monkeypatch, seed, population, shape):
    """NumPy draws in blocks; the generic backend does not."""
    monkeypatch.setattr(numpy_backend, "WORDS", 8)
    keys = random.split(random.key(seed), int(np.prod(population, dtype=int))).reshape(*population, 2)
    found = numpy_backend.random_bits(keys, shape)
    np.testing.assert_array_equal(found, array_api.random_bits(np, keys, shape))


def test_blocks_of_the_real_size_join_without_a_seam():
    keys, size = random.split(random.key(3), 2), numpy_backend.WORDS + 1
    np.testing.assert_array_equal(numpy_backend.random_bits(keys, (size,)), array_api.random_bits(np, keys, (size,)))


# laws


@given(seed=seeds, low=st.floats(-100, 100, width=32), width=st.floats(2**-10, 100, width=32))
def test_uniforms_stay_within_their_bounds(seed, low, width):
    found = host(random.uniform, random.key(seed), (1000,), low, low + width)
    assert found.dtype == np.float32
    assert np.all(found >= np.float32(low)) and np.all(found <= np.float32(low + width))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (-0.3, 0.3)])
def test_uniforms_reach_low_but_never_high(backend, bounds):
    """[low, high) holds at both ends."""
    low, high = bounds
    law = functools.partial(random._uniform, None, *map(backend.asarray, np.float32([low, high - low])))
    found = backend.to_numpy(law(shape=(2,), backend=with_words(backend, ENDS)))
    assert found[0] == np.float32(low) and found[1] < np.float32(high)


def kolmogorov_smirnov(found, distribution):
    """√n · sup |F_n − F|: above 1.95 once in a thousand samples."""
    x = np.sort(found.astype(np.float64))
    below, n = distribution(x), len(x)
    gap = max(np.max(np.arange(1, n + 1) / n - below), np.max(below - np.arange(n) / n))
    return np.sqrt(n) * gap


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uniforms_are_uniform(seed):
    found = host(random.uniform, random.key(seed), (100_000,))
    assert abs(found.mean(dtype=np.float64) - 1 / 2) < 0.005
    assert abs(found.var(dtype=np.float64) - 1 / 12) < 0.002
    assert kolmogorov_smirnov(found, lambda x: x) < 1.95


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_normals_are_normal(seed):
    found = host(random.normal, random.key(seed), (20_000,)).astype(np.float64)
    assert abs(found.mean()) < 0.03 and abs(found.var() - 1) < 0.05
    assert abs((found**3).mean()) < 0.1 and abs((found**4).mean() - 3) < 0.3
    assert kolmogorov_smirnov(found, lambda x: np.array([(1 + erf(value / np.sqrt(2))) / 2 for value in x])) < 1.95


def test_every_bit_is_set_half_the_time():
    words = host(random.bits, random.key(7), (50_000,))
    share = [float(((words >> np.uint32(bit)) & np.uint32(1)).mean()) for bit in range(32)]
    assert max(abs(value - 0.5) for value in share) < 0.015


def test_neighbouring_seeds_are_unrelated():
    draws = host(random.uniform, random.key(np.arange(10)), (10_000,)).astype(np.float64)
    related = np.corrcoef(draws) - np.eye(10)
    assert np.abs(related).max() < 0.05


@given(seed=seeds, n=st.integers(1, 50))
def test_a_permutation_holds_every_index_once(seed, n):
    assert sorted(host(random.permutation, random.key(seed), n).tolist()) == list(range(n))


def test_every_permutation_comes_equally_often():
    orders = host(random.permutation, random.split(random.key(11), 6_000), 3)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and counts.min() > 880 and counts.max() < 1120


@pytest.mark.parametrize("n", [0, -1])
def test_permutation_refuses_no_elements(backend, n):
    with pytest.raises(ValueError, match=f"n: expected at least 1, got {n}"):
        random.permutation(random.key(0), n, backend=backend)


# trees, keys untouched, and compiled programs


def test_like_draws_every_leaf_under_its_own_key(backend):
    shapes = tuple(backend.asarray(np.zeros(shape, np.float32)) for shape in [(2, 3), (3,)])
    key = backend.asarray(random.key(9))
    found = random.like(random.normal, key, (shapes[0], (shapes[1], None)), backend=backend)
    assert found[1][1] is None
    for i, leaf in enumerate((found[0], found[1][0])):
        expected = random.normal(random.fold_in(key, i), shapes[i].shape, backend=backend)
        np.testing.assert_array_equal(backend.to_numpy(leaf), backend.to_numpy(expected))


def test_drawing_leaves_the_key_as_it_was(backend):
    key = backend.asarray(random.key(2**33 + 5))
    for draw in DRAWS.values():
        draw(key, (4,), backend=backend)
    random.permutation(key, 4, backend=backend)
    random.fold_in(key, 3), random.split(key, 3)
    np.testing.assert_array_equal(backend.to_numpy(key), random.key(2**33 + 5))


def draw_everything(keys, *, backend):
    """Every draw, each under its own key, as one program."""
    laws = [draw(keys[i, ...], (3, 2), backend=backend) for i, draw in enumerate(DRAWS.values())]
    return (*laws, random.permutation(keys[3, ...], 9, backend=backend), random.split(keys[4, ...], 3))


def test_every_draw_is_the_same_inside_a_compiled_program(backend):
    keys = backend.asarray(random.split(random.key(2**35), 5))
    inside = backend.jit(draw_everything, static=("backend",))(keys, backend=backend)
    outside = draw_everything(keys, backend=backend)
    for name, a, b in zip([*DRAWS, "permutation", "keys"], *map(backend.to_numpy, (inside, outside)), strict=True):
        if name == "normal":
            assert ulps(a, b).max() <= 4
        else:
            np.testing.assert_array_equal(a, b)
