"""The laws of a backend: what every member of ``backends.interface.Backend`` promises, and what algorithms need."""

from dataclasses import FrozenInstanceError, replace
from math import prod
from statistics import NormalDist
from typing import Any

import numpy as np
from hypothesis import strategies as st

import minimodel as mm
from minimodel import random, tree
from minimodel.backends import Backend
from minimodel.backends.interface import MAX_INNER
from minimodel.compress.calibration import calibrate
from minimodel.testing import strategies as some
from minimodel.testing.oracles import (
    assert_dtype,
    assert_same_bits,
    assert_within_step,
    componentwise_bound,
    refuses,
    threefry,
)
from minimodel.testing.strategies import law
from minimodel.testing.suites.base import Suite
from minimodel.testing.suites.programs import (
    NETWORK,
    Two,
    at_a_boundary,
    descended,
    grown,
    host_bits,
    many_products,
    marked,
    matmul,
    mixed,
    of_trees,
    ordered,
    power,
    problem,
    product,
    quantized,
    rounded_model,
    running,
    spread_out,
    summed,
    taken,
    trained,
)

DTYPES = ("float32", "int8", "int32", "uint32", "bool")
words = st.integers(0, 2**32 - 1)


class BackendSuite(Suite):
    """Fixture ``backend``: a ``Backend``."""

    subject = "backend"

    # Data in and out.

    @law(x=st.sampled_from(DTYPES).flatmap(some.layouts))
    def test_asarray_keeps_values_shape_and_dtype(self, backend: Backend, x: np.ndarray) -> None:
        """to_numpy(asarray(x)) = x to the bit, of every dtype, shape and layout in memory.

        Why: all data enter here, and NumPy's are often views with strides of their own.
        Source: Python array API standard 2024.12, asarray and DLPack.
        """
        assert_same_bits(backend.to_numpy(backend.asarray(x)), x)

    @law(10, x=some.arrays((2, 3), "int32", st.nothing()), dtype=st.sampled_from(("float32", "int8", "uint32")))
    def test_asarray_converts_to_the_dtype_asked_for(self, backend: Backend, x: np.ndarray, dtype: str) -> None:
        """asarray(x, dtype) has that dtype and the values of x, and of nested lists too.

        Why: a float64 that slips in drags all that it meets to float64.
        Source: Python array API standard 2024.12, asarray.
        """
        x %= 100
        for given in (x, x.tolist()):
            found = backend.asarray(given, getattr(backend.xp, dtype))
            assert_same_bits(backend.to_numpy(found), x.astype(dtype))

    @law(5, size=st.sampled_from((3, 4096)))
    def test_asarray_never_aliases_host_memory(self, backend: Backend, size: int) -> None:
        """What is written to x after asarray(x) is not seen in the array, wherever x lies in memory.

        Why: batches are read into buffers that are used again. XLA aliases what begins at a multiple of 64 bytes, as
        some buffers do by luck; this one always does.
        Source: jax-ml/jax issue 37830, where device_put aliases NumPy's memory.
        """
        x = at_a_boundary(size)
        array = backend.synchronize(backend.asarray(x))
        x[:] = 1
        assert not backend.to_numpy(array).any(), "the array saw what was written to its source later"

    @law(5, size=st.sampled_from((3, 4096)))
    def test_asarray_copies_an_array_of_its_own(self, backend: Backend, size: int) -> None:
        """Donating a copy leaves the array alone that it was made of.

        Why: a donated argument is consumed, and parameters are copied first where they are needed again.
        Source: backends.interface.Backend, asarray.
        """
        x = backend.asarray(np.zeros(size, np.float32))
        backend.synchronize(backend.jit(grown, donate=("x",))(backend.asarray(x)))
        assert not backend.to_numpy(x).any(), "the source was changed with its copy"

    def test_to_numpy_keeps_the_tree(self, backend: Backend) -> None:
        """Tuples, NamedTuples and None stay what they are, with NumPy arrays at the leaves.

        Why: parameters and states of optimizers are such trees, and their types are part of programs.
        Source: minimodel.tree.
        """
        x = backend.asarray(np.arange(3, dtype=np.float32))
        found = backend.to_numpy((x, Two(x, None)))
        assert type(found) is tuple and type(found[1]) is Two and found[1].right is None
        assert all(type(leaf) is np.ndarray for leaf in tree.leaves(found))
        assert [leaf.tolist() for leaf in tree.leaves(found)] == [[0.0, 1.0, 2.0]] * 2

    def test_synchronize_waits_for_the_result(self, backend: Backend) -> None:
        """synchronize(tree) is the same tree, all of it computed.

        Why: without it a benchmark times the dispatch, and errors surface elsewhere. Only arrays that tell whether they
        are ready (``is_ready``, as JAX's do) can show a backend that does not wait.
        Source: JAX documentation, Asynchronous dispatch.
        """
        one = np.eye(400, dtype=np.float32)
        x = backend.asarray(one)
        found = backend.synchronize(Two(backend.jit(many_products)(x), (x, None)))
        assert type(found) is Two and found.right[1] is None
        for leaf in tree.leaves(found):
            assert getattr(leaf, "is_ready", lambda: True)(), "an array is still being computed"
        assert_same_bits(backend.to_numpy(found), Two(one, (one, None)))

    def test_the_record_is_frozen_and_hashable(self, backend: Backend) -> None:
        """A backend is itself alone, cannot change, and names its devices.

        Why: it is a static argument of compiled programs, which are found again by its hash.
        Source: backends.interface.Backend.
        """
        with refuses(FrozenInstanceError):
            backend.name = "other"  # type: ignore[misc]
        assert {backend: 1}[backend] == 1 and replace(backend) != backend
        assert backend.devices and all(isinstance(device, str) for device in backend.devices)

    # Programs.

    def test_jit_takes_static_arguments_by_name(self, backend: Backend) -> None:
        """A static argument is a Python value within the function.

        Why: networks, losses and backends are static; layers are unrolled by them.
        Source: JAX documentation, jax.jit, static_argnames.
        """
        run = backend.jit(power, static=("times",))
        x = backend.asarray(np.array([3, 2], np.float32))
        assert [backend.to_numpy(run(x, times=n)).tolist() for n in (0, 1, 3)] == [[1, 1], [3, 2], [27, 8]]

    @law(10, x=some.arrays((2, 3)), y=some.arrays((2, 3)))
    def test_jit_computes_what_the_function_does(self, backend: Backend, x: np.ndarray, y: np.ndarray) -> None:
        """A compiled function gives the values of the plain one, and leaves arguments that are not donated alone.

        Why: one source runs both ways.
        Source: backends.interface.Backend, jit.
        """
        given = backend.asarray(x), backend.asarray(y)
        found = backend.to_numpy(backend.jit(mixed)(*given))
        assert_same_bits(found, mixed(x, y))
        assert_same_bits(backend.to_numpy(given), (x, y), "arguments")

    @law(10, x=some.arrays((2, 3)), y=some.arrays((2, 3)))
    def test_jit_with_donated_arguments_computes_the_same(self, backend: Backend, x: np.ndarray, y: np.ndarray) -> None:
        """Donation changes what is left of the arguments, never the result; nor what another argument holds.

        Why: parameters and states are donated in every step of training.
        Source: JAX documentation, Buffer donation.
        """
        other = backend.asarray(y)
        found = backend.jit(mixed, donate=("x",))(backend.asarray(x), other)
        assert_same_bits(backend.to_numpy(found), mixed(x, y))
        assert_same_bits(backend.to_numpy(other), y, "the argument that was not donated")

    @law(10, x=some.arrays((2, 3)), y=some.arrays((2, 3)))
    def test_jit_takes_numpy_arrays(self, backend: Backend, x: np.ndarray, y: np.ndarray) -> None:
        """NumPy arrays among the arguments come over by themselves, also those in trees.

        Why: learning rates and counts are NumPy's, and change in every call.
        Source: backends.interface.Backend, jit.
        """
        run = backend.jit(of_trees)
        found = run((backend.asarray(x), None), (y, Two(y, x)))
        assert_same_bits(backend.to_numpy(found), x * y + x)

    # Loops.

    @law(10, left=some.arrays((6, 2)), right=some.arrays((6, 2)))
    def test_scan_is_a_loop(self, backend: Backend, left: np.ndarray, right: np.ndarray) -> None:
        """scan gives the carry after the last step, and what every step gave, stacked, in their order.

        Why: an epoch is one scan over its batches.
        Source: JAX documentation, jax.lax.scan.
        """
        carry, expected = (np.zeros(2, np.float32), np.ones(2, np.float32)), []
        for pair in zip(left, right, strict=True):
            carry, y = running(carry, Two(*pair))
            expected.append(y)
        start = tuple(backend.asarray(np.full(2, value, np.float32)) for value in (0, 1))
        found = backend.scan(running, start, Two(backend.asarray(left), backend.asarray(right)))
        assert_same_bits(backend.to_numpy(found), (carry, tree.stack(expected, np)))

    @law(5, x=some.arrays((5, 2)))
    def test_scan_within_a_program(self, backend: Backend, x: np.ndarray) -> None:
        """A scan runs inside a compiled function, with a step that gives nothing but its carry.

        Why: this is how every training is run.
        Source: JAX documentation, jax.lax.scan.
        """
        total, nothing = backend.jit(summed, static=("backend",))(backend.asarray(x), backend=backend)
        assert nothing is None
        assert_same_bits(backend.to_numpy(total), x.sum(axis=0, dtype=np.float32))

    @law(5, lengths=st.sampled_from(((0,), (0, 0), (3, 2), (1, 0), ())))
    def test_scan_refuses_no_steps_and_unequal_lengths(self, backend: Backend, lengths: tuple[int, ...]) -> None:
        """A scan over nothing, or over arrays of two lengths, is a ValueError.

        Why: a compiler cannot tell what a step that never ran would give.
        Source: jax-ml/jax issue 20399.
        """
        xs = tuple(backend.asarray(np.zeros((n, 2), np.float32)) for n in lengths)
        with refuses(ValueError, "scan: expected xs with one common length"):
            backend.scan(lambda carry, x: (carry, carry), backend.asarray(np.float32(0)), xs)

    # Rows and devices.

    @law(x=some.arrays((5, 3)), rows=st.lists(st.integers(0, 4), min_size=4, max_size=4))
    def test_take_gives_rows(self, backend: Backend, x: np.ndarray, rows: list[int]) -> None:
        """take(x, rows) = x[rows] for rows of any shape, in their order, as often as they are named.

        Why: batches of the data set are taken so, those of all members at once.
        Source: backends.interface.Backend, take.
        """
        at = np.asarray(rows, np.int32).reshape(2, 2)
        run = backend.jit(taken, static=("backend",))
        assert_same_bits(backend.to_numpy(run(backend.asarray(x), backend.asarray(at), backend=backend)), x[at])

    @law(5, x=some.arrays((4, 3)), axis=st.sampled_from((0, 1, None)))
    def test_spread_changes_no_value(self, backend: Backend, x: np.ndarray, axis: int | None) -> None:
        """spread(tree, axis) has the values of the tree, wherever they lie.

        Why: members of a population are shared out over devices, which must not show.
        Source: backends.interface.Backend, spread.
        """
        run = backend.jit(spread_out, static=("axis", "backend"))
        found = run((backend.asarray(x), None), axis=axis, backend=backend)
        assert found[1] is None
        assert_same_bits(backend.to_numpy(found), (x, None))

    # Random numbers.

    @law(10, high=words, low=words)
    def test_random_bits_are_threefry(self, backend: Backend, high: int, low: int) -> None:
        """Word i under a key is a ⊕ b, where (a, b) encrypts the counter (0, i).

        Why: the same seed gives the same draws on every backend.
        Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011); jax.random.bits, partitionable.
        """
        found = host_bits(backend, np.array([high, low], np.uint32), (7,))
        expected = [a ^ b for a, b in (threefry((high, low), (0, i)) for i in range(7))]
        assert found.dtype == np.uint32 and found.tolist() == expected

    @law(5, key=some.keys())
    def test_random_bits_count_in_row_major_order(self, backend: Backend, key: np.ndarray) -> None:
        """Draws of any shape are the first words of the key, row by row; of shape () it is the first one.

        Why: a larger draw begins with the smaller one, so that shapes can grow.
        Source: jax.random.bits, partitionable.
        """
        row = host_bits(backend, key, (24,))
        for shape in ((), (0,), (5,), (2, 3, 4)):
            assert_same_bits(host_bits(backend, key, shape), row[: prod(shape)].reshape(shape), str(shape))

    @law(5, keys=some.keys(some.MEMBERS))
    def test_random_bits_of_many_keys_are_those_of_each(self, backend: Backend, keys: np.ndarray) -> None:
        """Keys (*population, 2) give (*population, *shape): to each member what its key alone gives.

        Why: a population of P gives exactly what P single runs give.
        Source: minimodel.random.
        """
        alone = np.stack([host_bits(backend, key, (2, 3)) for key in keys])
        assert_same_bits(host_bits(backend, keys, (2, 3)), alone)

    @law(10, high=words, low=words, index=words)
    def test_folded_keys_are_words_of_threefry(self, backend: Backend, high: int, low: int, index: int) -> None:
        """fold_in(key, i) encrypts the counter (0, i); split(key, n) is fold_in of 0 to n − 1.

        Why: keys are folded on the device too.
        Source: jax.random.fold_in and split, partitionable.
        """
        key = backend.asarray(np.array([high, low], np.uint32))
        found = backend.to_numpy((random.fold_in(key, index), random.split(key, 2)))
        assert found[0].tolist() == list(threefry((high, low), (0, index)))
        assert found[1].tolist() == [list(threefry((high, low), (0, i))) for i in range(2)]

    @law(5, key=some.keys())
    def test_uniforms_are_the_high_bits(self, backend: Backend, key: np.ndarray) -> None:
        """uniform = (word >> 9)·2⁻²³ in float32, and on (−1, 1) twice that less 1, to the bit.

        Why: masks of dropout and candidates of searches come from them.
        Source: minimodel.random; the tier "exact".
        """
        unit = (host_bits(backend, key, (50,)) >> 9) * np.float64(2**-23)
        for low, high in ((0.0, 1.0), (-1.0, 1.0)):
            found = backend.to_numpy(random.uniform(key, (50,), low, high, backend=backend))
            assert_same_bits(found, (low + (high - low) * unit).astype(np.float32))

    @law(5, key=some.keys())
    def test_normals_have_the_inverse_error_function(self, backend: Backend, key: np.ndarray) -> None:
        """normal = Φ⁻¹((u + 1)/2), u on (−1, 1) from the word's 23 high bits, to float32's precision.

        Why: fresh networks are the same on every backend.
        Source: Giles, Approximating the erfinv function (2010); Python's statistics.NormalDist.
        """
        u = (host_bits(backend, key, (200,)) >> 9) * 2.0**-22 - (1 - 2.0**-24)
        expected = [NormalDist().inv_cdf((1 + value) / 2) for value in u]
        found = backend.to_numpy(random.normal(key, (200,), backend=backend))
        assert_dtype(found, "float32")
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)  # the last bits of u decide far out
        np.testing.assert_allclose(found, random.normal(key, (200,)), rtol=2e-6, atol=1e-6)

    @law(5, key=some.keys(), n=st.sampled_from((1, 40)))
    def test_permutations_are_those_of_numpy(self, backend: Backend, key: np.ndarray, n: int) -> None:
        """permutation(key, n) holds 0 … n − 1, each once, in the same order on every backend.

        Why: it is the order of the rows in an epoch.
        Source: jax.random.permutation; the tier "exact".
        """
        found = backend.to_numpy(random.permutation(key, n, backend=backend))
        assert sorted(found.tolist()) == list(range(n))
        assert_same_bits(found, random.permutation(key, n))

    @law(10, values=some.arrays((2, 9), "uint32", st.nothing()), levels=st.sampled_from((1, 3, 2**31)))
    def test_order_is_stable(self, backend: Backend, values: np.ndarray, levels: int) -> None:
        """order(words) sorts along the last axis, and of equal words the first comes first; int32.

        Why: permutations must not depend on how a backend sorts.
        Source: Python array API standard 2024.12, argsort, stable=True.
        """
        values = (values % levels).astype(np.uint32)
        run = backend.jit(ordered, static=("backend",))
        found = backend.to_numpy(run(backend.asarray(values), backend=backend))
        assert_same_bits(found, np.argsort(values, axis=-1, kind="stable").astype(np.int32))

    # Integers.

    @law(seed=some.seeds, inner=st.sampled_from((1, 7, 1_025, 2_050)))
    def test_integer_matmul_is_exact(self, backend: Backend, seed: int, inner: int) -> None:
        """int8·int8 summed in int32: the product of the integers themselves.

        Why: integer inference is promised bit for bit. float32 is exact only up to 2²⁴, about 1,024 products.
        Source: the tier "exact"; IEEE 754.
        """
        rng = np.random.default_rng(seed)
        a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in ((2, inner), (inner, 3)))
        a[0], b[:, 0] = -128, -128
        a[0, -1] = b[-1, 0] = 1  # an odd sum near the largest there is
        assert_same_bits(product(backend, a, b), (a.astype(np.int64) @ b).astype(np.int32))

    @law(
        10,
        shapes=st.sampled_from(
            (((2, 4, 9), (2, 9, 3)), ((4, 9), (2, 9, 3)), ((2, 1, 4, 9), (3, 9, 5)), ((2, 0), (0, 3)))
        ),
        seed=some.seeds,
    )
    def test_integer_matmul_broadcasts(self, backend: Backend, shapes: Any, seed: int) -> None:
        """Axes of a population in front broadcast as in any matmul; a sum of nothing is 0.

        Why: the members of a population share their inputs.
        Source: Python array API standard 2024.12, matmul.
        """
        a, b = (np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8) for shape in shapes)
        assert_same_bits(product(backend, a, b), (a.astype(np.int64) @ b).astype(np.int32))

    def test_integer_matmul_refuses_what_is_not_exact(self, backend: Backend) -> None:
        """Other dtypes are a TypeError; an inner axis whose sum could leave int32 is a ValueError.

        Why: an overflow wraps without a word.
        Source: backends.interface.check_integer_matmul.
        """
        for dtype in ("uint8", "float32", "int32"):
            other = backend.asarray(np.ones((2, 2), dtype))
            right = backend.asarray(np.ones((2, 2), np.int8))
            for pair in ((other, right), (right, other)):
                with refuses(TypeError, f"integer_matmul: expected int8 arrays, got .*{dtype}"):
                    backend.integer_matmul(*pair)
        a, b = (backend.asarray(np.zeros(shape, np.int8)) for shape in ((1, MAX_INNER + 1), (MAX_INNER + 1, 1)))
        with refuses(ValueError, "inner axis must be at most"):
            backend.integer_matmul(a, b)

    # The k largest.

    @law(
        30,
        values=some.arrays((2, 9), "float32", st.sampled_from((0.0, 1.0, -0.0, -1.0, -2.0, 1e30, -np.inf, np.inf))),
        cut=st.sampled_from((0, 4)),
        k=st.lists(st.integers(0, 9), min_size=2, max_size=2),
    )
    def test_largest_breaks_ties_by_index(self, backend: Backend, values: np.ndarray, cut: int, k: list[int]) -> None:
        """largest marks exactly the first k of a stable sort, descending, of all arrays side by side; −0 is 0.

        Why: masks from equal weights are equal everywhere, and have exactly the sparsity asked for.
        Source: the tier "exact"; Python array API standard 2024.12, argsort, stable=True.
        """
        parts = [part for part in np.split(values, [cut], axis=-1) if part.size]
        rank = np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1, kind="stable")
        expected = np.split(rank < np.asarray(k)[:, None], [cut], axis=-1)
        run, counts = backend.jit(marked, static=("backend",)), np.asarray(k, np.int32)
        found = backend.to_numpy(run(tuple(map(backend.asarray, parts)), counts, backend=backend))
        assert_same_bits(found, tuple(part for part in expected if part.size))

    # What algorithms make of it.

    @law(10, seed=some.seeds, inner=st.sampled_from((1, 33)))
    def test_products_are_of_full_precision(self, backend: Backend, seed: int, inner: int) -> None:
        """A float32 matmul in a program is within γ_k·(|A||B|) of the exact one.

        Why: accelerators use fewer bits by default, and gradients then differ between backends.
        Source: Higham, Accuracy and stability of numerical algorithms (2002), section 3.5.
        """
        rng = np.random.default_rng(seed)
        a, b = (rng.normal(size=size).astype(np.float32) for size in ((3, inner), (inner, 2)))
        found = backend.to_numpy(backend.jit(matmul)(backend.asarray(a), backend.asarray(b)))
        assert_dtype(found, "float32")
        assert (np.abs(found - a.astype(np.float64) @ b) <= componentwise_bound(a, b)).all(), "γ_k·(|A||B|) was left"

    @law(5, seed=some.seeds, population=some.populations)
    def test_gradients_agree_with_float64(self, backend: Backend, seed: int, population: int | None) -> None:
        """J and its gradient in float32, compiled, are those in float64 to the tier "step".

        Why: one source gives the same step everywhere.
        Source: the tier "step"; minimodel.gradients in float64, which differences check.
        """
        keys = random.key(seed) if population is None else random.split(random.key(seed), population)
        params = NETWORK.init(keys)
        x, y = np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32), np.arange(5, dtype=np.int32) % 3
        run = backend.jit(descended, static=("network",))
        found = run(tree.map(backend.asarray, params), backend.asarray(x), backend.asarray(y), network=NETWORK)
        assert_dtype(found, "float32")
        wide = tree.map(lambda leaf: leaf.astype(np.float64), params)
        assert_within_step(backend.to_numpy(found), descended(wide, x.astype(np.float64), y, network=NETWORK))

    @law(2, seed=st.integers(0, 2**32))
    def test_one_step_of_training_agrees_with_numpy(self, backend: Backend, seed: int) -> None:
        """One epoch of one batch from the same seed: the same start, the same step, float32 throughout.

        Why: the whole loop is one program of the backend.
        Source: the tiers "ulp" and "step".
        """
        ours, theirs = (trained(each, seed) for each in (backend, "numpy"))
        assert_dtype((ours.params, ours.state.opt_state), "float32")
        assert_within_step(ours.params, theirs.params)

    @law(2, seed=st.integers(0, 2**32))
    def test_training_repeats_to_the_bit(self, backend: Backend, seed: int) -> None:
        """The same seed gives the same bits, run after run, and a run does not touch an earlier result.

        Why: an experiment that cannot be repeated cannot be examined.
        Source: minimodel.testing, what is promised of one backend on one machine.
        """
        first = trained(backend, seed, epochs=2, batch_size=16)
        kept = tree.map(np.copy, first.params)
        again = trained(backend, seed, epochs=2, batch_size=16)
        assert_same_bits(again.params, kept, "the second run")
        assert_same_bits(first.params, kept, "the first run's result")

    @law(2, seed=st.integers(0, 2**32), population=some.populations)
    def test_masks_from_equal_weights_are_those_of_numpy(
        self, backend: Backend, seed: int, population: int | None
    ) -> None:
        """Pruning the same model keeps the same weights, and exactly as many as asked for.

        Why: masks are promised bit for bit.
        Source: the tier "exact".
        """
        model, data = rounded_model(seed, population), problem()
        found, expected = (mm.prune(model, data, seed=0, sparsity=0.5, epochs=0, backend=b) for b in (backend, "numpy"))
        assert_same_bits((found.masks, found.params), (expected.masks, expected.params))
        assert sum(int(mask.sum()) for mask in found.masks or ()) == (population or 1) * 21

    @law(2, seed=st.integers(0, 2**32), bits=st.sampled_from((2, 8)))
    def test_integers_from_equal_weights_are_those_of_numpy(self, backend: Backend, seed: int, bits: int) -> None:
        """Quantizing the same model, or weights by the same levels in a program, gives the same integers and scales.

        Why: integers are promised bit for bit, so that what is trained through the rounding is what is stored.
        Source: the tier "exact".
        """
        model, data = rounded_model(seed, None), problem()
        for layer in model.params:
            given = layer.weight, calibrate(layer.weight, bits)
            ours = backend.jit(quantized)(*tree.map(backend.asarray, given))
            assert_same_bits(backend.to_numpy(ours), quantized(*given), "integers in a program")
        found, expected = (mm.quantize(model, data, seed=0, bits=bits, epochs=0, backend=b) for b in (backend, "numpy"))
        assert_same_bits((found.quantized, found.params), (expected.quantized, expected.params))
