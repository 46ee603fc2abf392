"""Codebooks: k-means against every partition there is and scikit-learn's, gradients against PyTorch's."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minimodel as mm
from minimodel import qarray, tree
from minimodel.compress import codebooks
from minimodel.compress.quantization import calibrated

VALUES = hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(-9, 9, width=32, allow_subnormal=False))


@pytest.fixture(scope="module")
def models(splits):
    network, options = mm.Network((4, 8, 3)), {"seed": 0, "epochs": 10, "batch_size": 16}
    return {size: mm.gradient_descent(network, splits, population=size, **options) for size in (None, 3)}


def random_weights(shape=(40, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nearest(values, centres):
    """Which centre is the nearest, the lower one of two, in float64."""
    return np.abs(values.astype(np.float64)[..., None] - centres.astype(np.float64)).argmin(axis=-1)


def missed(values, centres):
    return np.square(values - centres.astype(np.float64)[nearest(values, centres)]).sum()


@given(VALUES, st.integers(1, 3))
def test_k_means_is_never_better_than_the_best_partition_and_at_rest(values, bits):
    """Cells of the best partition follow one another; at rest every centre is the mean of its cell."""
    kept = np.sort(values[values != 0].astype(np.float64))
    found = codebooks.k_means(values, 2**bits)
    assert found.shape == (2**bits,) and found.dtype == np.float32 and (np.diff(found) >= 0).all()
    best = np.inf
    for ends in combinations(range(1, max(len(kept), 1)), min(2**bits, max(len(kept), 1)) - 1):
        best = min(best, sum(np.square(part - part.mean()).sum() for part in np.split(kept, ends) if len(part)))
    assert missed(kept, found) >= best * (1 - 1e-5) - 1e-9 if len(kept) else not found.any()
    cells = nearest(kept, found)
    for k in set(cells.tolist()):
        own = kept[cells == k]
        gaps = np.abs(kept[:, None] - found.astype(np.float64))
        if np.diff(np.sort(gaps, axis=-1)[:, :2]).min() > 1e-4:  # no value lies between two centres
            assert found[k] == pytest.approx(own.mean(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_k_means_is_that_of_scikit_learn(oracle, bits):
    cluster = oracle("sklearn.cluster")
    values = np.random.default_rng(bits).uniform(-1, 2, 500).astype(np.float32)
    start = np.linspace(values.min(), values.max(), 2**bits, dtype=np.float64)[:, None]
    theirs = cluster.KMeans(2**bits, init=start, n_init=1, max_iter=codebooks.ROUNDS, tol=0, algorithm="lloyd")
    expected = np.sort(theirs.fit(values[:, None].astype(np.float64)).cluster_centers_[:, 0])
    np.testing.assert_allclose(codebooks.k_means(values, 2**bits), expected, rtol=1e-5)


def test_more_centres_miss_less():
    w = random_weights((300, 2))
    errors = []
    for bits in range(1, 7):
        codebook = codebooks.calibrate(w, bits)
        errors.append(np.square(codebooks.fake_quantize(w, codebook) - w).sum())
    assert all(less < 0.5 * more for more, less in pairwise(errors))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_weight_goes_to_its_nearest_centre(backend, population, granularity):
    w = random_weights((40, 5) if population is None else (population, 40, 5))
    codebook = codebooks.calibrate(w, 3, granularity=granularity)
    assert codebook.centres.shape == (*w.shape[:-2], 8, 1 if granularity == "tensor" else 5)
    there = tree.map(backend.asarray, codebook)
    q, faked = (backend.to_numpy(fn(backend.asarray(w), there)) for fn in (codebooks.quantize, codebooks.fake_quantize))
    assert q.values.dtype == q.zero_point.dtype == np.int8 and q.scale.dtype == faked.dtype == np.float32
    np.testing.assert_array_equal(backend.to_numpy(qarray.dequantize(tree.map(backend.asarray, q))), faked)
    for place in np.ndindex(w.shape):
        *lead, _, j = place
        own = codebook.centres[(*lead, slice(None), j if granularity == "channel" else 0)]
        k = nearest(w[place], own)
        assert (q.values[place], faked[place]) == (k - 4, own[k])


def test_of_two_centres_the_lower_one(backend):
    codebook = codebooks.Codebook(np.array([[-1], [0], [2], [5]], np.float32), np.full((1, 1), -2, np.float32))
    w = np.array([[-0.5], [1.0], [3.5], [3.5000002], [-9], [9]], np.float32)
    found = codebooks.quantize(backend.asarray(w), tree.map(backend.asarray, codebook))
    assert backend.to_numpy(found).values.ravel().tolist() == [-2, -1, 0, 1, -2, 1]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_gradient_by_the_centres_is_torch_s(oracle, backend, granularity):
    """∂/∂centre of Σ g·centre[nearest], by automatic differentiation."""
    torch = oracle("torch")
    w, gradient = random_weights(), random_weights(seed=1)
    codebook = codebooks.calibrate(w, 2, granularity=granularity)
    change = random_weights(codebook.centres.shape, seed=2) * np.float32(0.05)
    centres = torch.tensor(codebook.centres + change, requires_grad=True)
    wide = centres.expand(4, 5)
    chosen = (torch.tensor(w)[:, None, :] - wide.detach()).abs().argmin(dim=1)
    (torch.gather(wide, 0, chosen) * torch.tensor(gradient)).sum().backward()
    given_there = (tree.map(backend.asarray, part) for part in (w, codebook, change, gradient))
    found = backend.to_numpy(codebooks.level_gradient(*given_there))
    np.testing.assert_allclose(found, centres.grad.numpy(), rtol=1e-4, atol=1e-5)
    passed = codebooks.straight_through(w, codebook, gradient)
    np.testing.assert_array_equal(passed, gradient)


def test_the_gradient_of_a_population_is_that_of_its_members():
    w, gradient = random_weights((3, 40, 5)), random_weights((3, 40, 5), 1)
    codebook = codebooks.calibrate(w, 2)
    found = codebooks.level_gradient(w, codebook, codebooks.start(codebook), gradient)
    for i in range(3):
        own = codebooks.calibrate(w[i], 2)
        np.testing.assert_array_equal(codebook.centres[i], own.centres)
        alone = codebooks.level_gradient(w[i], own, codebooks.start(own), gradient[i])
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-6)


def test_zeros_are_no_part_of_the_centres():
    w = random_weights()
    kept = np.random.default_rng(1).random(w.shape) < 0.3
    found = codebooks.calibrate(w * kept, 2).centres
    for j in range(5):
        np.testing.assert_array_equal(found[:, j], codebooks.k_means(w[kept[:, j], j], 4))


def test_members_of_fewer_bits_leave_centres_unused():
    w = random_weights((3, 40, 5))
    found = calibrated(w, (1, 3, 2), True, granularity="channel")
    q = codebooks.quantize(w, found)
    assert found.centres.shape == (3, 8, 5) and q.zero_point.ravel().tolist() == [-1, -4, -2]
    for i, bits in enumerate((1, 3, 2)):
        alone = codebooks.quantize(w[i], codebooks.calibrate(w[i], bits))
        np.testing.assert_array_equal(q.values[i], alone.values)
        np.testing.assert_array_equal(qarray.dequantize(q)[i], qarray.dequantize(alone))
        assert q.values[i].min() == -(2 ** (bits - 1)) and q.values[i].max() == 2 ** (bits - 1) - 1


# Models


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("bits", [1, 3])
def test_a_pruned_model_keeps_its_zeros_and_comes_back_from_a_file(
    population, models, splits, granularity, learned, bits
):
    start = mm.prune(models[population], splits, seed=0, sparsity=0.5, epochs=0)
    found = mm.quantize(
        start, splits, seed=0, bits=bits, scheme="codebook", granularity=granularity, learn_levels=learned, epochs=2
    )
    again = mm.model.loads(found.dumps())
    assert again.dumps() == found.dumps() and again.bits == bits
    for layer, q, mask, other in zip(found.params, found.quantized, start.masks, again.quantized, strict=True):
        assert not layer.weight[~mask].any() and layer.weight[mask].all()
        np.testing.assert_array_equal(qarray.dequantize(q) * mask, layer.weight)
        columns = [layer.weight] if granularity == "tensor" else np.moveaxis(layer.weight, -1, 0)
        if population is None:
            assert all(len(np.unique(column[column != 0])) <= 2**bits for column in columns)
        np.testing.assert_array_equal(q.values[mask], other.values[mask])
        np.testing.assert_array_equal(q.codebook, other.codebook)
    np.testing.assert_array_equal(again.outputs(splits.test.x), found.outputs(splits.test.x))


def test_members_of_different_bits_are_their_own_runs(models, splits):
    how = {"scheme": "codebook", "epochs": 2, "batch_size": 16, "learn_levels": True}
    together = mm.quantize(models[3], splits, seed=5, bits=[2, 4, 1], **how)
    again = mm.model.loads(together.dumps())
    for i, bits in enumerate(together.bits):
        alone = mm.quantize(models[3].member(i), splits, seed=5 + i, bits=bits, **how)
        for found in (together.member(i), again.member(i)):
            for one, other in zip(found.params, alone.params, strict=True):
                np.testing.assert_allclose(one.weight, other.weight, rtol=1e-4, atol=1e-6)
            for q, layer in zip(found.quantized, found.params, strict=True):
                np.testing.assert_array_equal(qarray.dequantize(q), layer.weight)
        assert mm.model.loads(together.member(i).dumps()).bits == bits


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_shrunk_codebook_computes_the_same(models, splits, granularity):
    pruned = mm.prune(models[None], splits, seed=0, sparsity=0.8, epochs=0)
    found = mm.quantize(pruned, splits, seed=0, bits=2, scheme="codebook", granularity=granularity, epochs=1)
    small = mm.shrink(found)
    assert small.network.layer_sizes != found.network.layer_sizes
    np.testing.assert_allclose(small.outputs(splits.test.x), found.outputs(splits.test.x), rtol=1e-5, atol=1e-5)
    for q, layer, mask in zip(small.quantized, small.params, small.masks, strict=True):
        np.testing.assert_array_equal(qarray.dequantize(q) * mask, layer.weight)
    assert mm.model.loads(small.dumps()).dumps() == small.dumps()


def test_a_codebook_misses_less_than_integers_of_as_many_bits(models, splits):
    errors = []
    for scheme in ("codebook", "symmetric_full"):
        found = mm.quantize(models[None], splits, seed=0, bits=3, scheme=scheme, granularity="tensor", epochs=0)
        pairs = zip(found.params, models[None].params, strict=True)
        errors.append(sum(np.square(one.weight - other.weight).sum() for one, other in pairs))
    assert errors[0] < errors[1]


def test_groups_of_inputs_are_refused(models, splits):
    with pytest.raises(ValueError, match='granularity: a codebook is of a "tensor" or of a "channel", got 4'):
        mm.quantize(models[None], splits, seed=0, scheme="codebook", granularity=4)
    with pytest.raises(ValueError, match='granularity: expected "tensor", "channel" or a number of inputs'):
        mm.quantize(models[None], splits, seed=0, scheme="codebook", granularity="layer")
