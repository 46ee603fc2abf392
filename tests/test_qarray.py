"""Quantized arrays: bounds, zeros and integers by property, values and gradients against PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minimodel import qarray, tree

WEIGHTS = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
OPTIONS = st.fixed_dictionaries({"symmetric": st.booleans(), "per_channel": st.booleans(), "clip": st.booleans()})


@st.composite
def weights(draw, elements=WEIGHTS):
    """(*population, in, out) with and without a population."""
    shape = draw(st.sampled_from([(), (1,), (3,)])) + draw(st.tuples(st.integers(1, 6), st.integers(1, 5)))
    return draw(hnp.arrays(np.float32, shape, elements=elements))


def random_weights(shape=(7, 5), scale=1.0, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def unclipped(w, quantizer):
    """Where w lies in the range of the quantizer."""
    q = np.round(w * quantizer.inverse) + quantizer.zero_point
    return (q >= quantizer.low) & (q <= quantizer.high)


def squared_error(w, quantizer, per_channel):
    error = w.astype(np.float64) - qarray.fake_quantize(w, quantizer)
    return np.square(error).sum(axis=-2 if per_channel else (-2, -1))


@given(weights(), st.integers(2, 8), OPTIONS)
def test_integers_stay_in_range_as_int8(w, bits, options):
    q = qarray.quantize(w, qarray.calibrate(w, bits, **options))
    top = 2 ** (bits - 1) - 1
    assert q.values.shape == w.shape
    assert q.values.dtype == q.zero_point.dtype == np.int8
    assert q.scale.dtype == np.float32
    assert q.values.max() <= top
    assert q.values.min() >= (-top if options["symmetric"] else -top - 1)
    assert q.scale.shape == q.zero_point.shape == (*w.shape[:-2], 1, w.shape[-1] if options["per_channel"] else 1)
    assert (q.scale > 0).all() and np.isfinite(q.scale).all()
    if options["symmetric"]:
        assert not q.zero_point.any()


@given(weights(), st.integers(2, 8), OPTIONS)
def test_what_is_not_clipped_is_off_by_half_a_step_at_most(w, bits, options):
    quantizer = qarray.calibrate(w, bits, **options)
    kept = unclipped(w, quantizer)
    half = np.broadcast_to(quantizer.scale, w.shape) / 2
    error = np.abs(w.astype(np.float64) - qarray.fake_quantize(w, quantizer))
    # the relative error of float32, on the half step and on the value itself
    assert (error <= half * (1 + 1e-4) + np.abs(w) * 3e-7)[kept].all()


@given(weights(), st.integers(2, 8), st.booleans())
def test_only_asymmetric_rounding_of_the_zero_point_clips_a_min_max_range(w, bits, per_channel):
    quantizer = qarray.calibrate(w, bits, symmetric=True, per_channel=per_channel, clip=False)
    assert unclipped(w, quantizer).all()
    quantizer = qarray.calibrate(w, bits, symmetric=False, per_channel=per_channel, clip=False)
    error = np.abs(w.astype(np.float64) - qarray.fake_quantize(w, quantizer))
    assert (error <= np.broadcast_to(quantizer.scale, w.shape) * (1 + 1e-4) + np.abs(w) * 3e-7).all()


@given(weights(st.just(0.0) | WEIGHTS), st.integers(2, 8), OPTIONS)
def test_the_real_zero_stays_exactly_zero(w, bits, options):
    quantizer = qarray.calibrate(w, bits, **options)
    assert not qarray.dequantize(qarray.quantize(np.zeros_like(w), quantizer)).any()
    assert not qarray.dequantize(qarray.quantize(w, quantizer))[w == 0].any()


@given(weights(), st.integers(2, 8), OPTIONS)
def test_quantizing_again_gives_the_same_integers(w, bits, options):
    quantizer = qarray.calibrate(w, bits, **options)
    once = qarray.quantize(w, quantizer)
    twice = qarray.quantize(qarray.dequantize(once), quantizer)
    np.testing.assert_array_equal(twice.values, once.values)


@given(weights(), st.integers(2, 8), OPTIONS)
def test_fake_quantization_is_quantization_there_and_back(w, bits, options):
    quantizer = qarray.calibrate(w, bits, **options)
    there_and_back = qarray.dequantize(qarray.quantize(w, quantizer))
    np.testing.assert_array_equal(qarray.fake_quantize(w, quantizer), there_and_back)


@given(weights(), st.integers(2, 8), OPTIONS)
def test_a_population_is_its_members(w, bits, options):
    together = qarray.quantize(w, qarray.calibrate(w, bits, **options))
    if w.ndim == 2:
        w, together = w[None], tree.map(lambda leaf: leaf[None], together)
    for i, member in enumerate(w):
        alone = qarray.quantize(member, qarray.calibrate(member, bits, **options))
        for found, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(found[i], expected)


@given(weights(), st.integers(2, 8), st.booleans(), st.booleans())
def test_clipping_never_raises_the_squared_error(w, bits, symmetric, per_channel):
    plain, clipped = (
        squared_error(
            w, qarray.calibrate(w, bits, symmetric=symmetric, per_channel=per_channel, clip=clip), per_channel
        )
        for clip in (False, True)
    )
    assert (clipped <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_lowers_the_error_of_a_long_tail(symmetric):
    w = random_weights((400, 3))
    w[0] = 8.0
    plain, clipped = (
        squared_error(w, qarray.calibrate(w, 4, symmetric=symmetric, clip=clip), True) for clip in (False, True)
    )
    assert (clipped < 0.9 * plain).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_scale_without_clipping_is_that_of_the_extremes(bits, per_channel):
    w = random_weights((3, 7, 5)).astype(np.float64)
    w[..., 0] = np.abs(w[..., 0])  # a channel of one sign: its range still includes 0
    axis = -2 if per_channel else (-2, -1)
    symmetric = qarray.calibrate(w.astype(np.float32), bits, per_channel=per_channel, clip=False)
    asymmetric = qarray.calibrate(w.astype(np.float32), bits, symmetric=False, per_channel=per_channel, clip=False)
    greatest = np.abs(w).max(axis=axis, keepdims=True)
    width = np.maximum(w, 0).max(axis=axis, keepdims=True) - np.minimum(w, 0).min(axis=axis, keepdims=True)
    np.testing.assert_allclose(symmetric.scale, greatest / (2 ** (bits - 1) - 1), rtol=1e-6)
    np.testing.assert_allclose(asymmetric.scale, width / (2**bits - 1), rtol=1e-6)


def test_literal_integers():
    """Two bits, asymmetric: −1, 0, 1, 2 are the integers −2, −1, 0, 1 with zero point −1 and scale 1."""
    w = np.array([[-1.0], [0.0], [1.0], [2.0]], np.float32)
    q = qarray.quantize(w, qarray.calibrate(w, 2, symmetric=False, clip=False))
    assert q.values.ravel().tolist() == [-2, -1, 0, 1]
    assert (q.scale.item(), q.zero_point.item()) == (1.0, -1)


def test_halves_round_to_even(backend):
    """s = 1: the halves go to the even neighbour on every backend."""
    w = np.array([[-3.0], [-2.5], [-1.5], [-0.5], [0.5], [1.5], [2.5], [3.0]], np.float32)
    quantizer = qarray.calibrate(w, 3, clip=False)
    assert quantizer.scale.item() == 1.0
    w, quantizer = (tree.map(backend.asarray, given) for given in (w, quantizer))
    values = backend.to_numpy(qarray.quantize(w, quantizer)).values
    assert values.ravel().tolist() == [-3, -2, -2, 0, 0, 2, 2, 3]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_a_channel_of_zeros_is_all_zeros(symmetric, clip):
    w = random_weights()
    w[:, 2] = 0
    quantizer = qarray.calibrate(w, 4, symmetric=symmetric, clip=clip)
    assert np.isfinite(quantizer.inverse).all()
    assert not qarray.fake_quantize(w, quantizer)[:, 2].any()
    assert qarray.fake_quantize(w, quantizer).any(axis=0).tolist() == [True, True, False, True, True]
    nothing = qarray.calibrate(np.zeros((4, 3), np.float32), 4, symmetric=symmetric, clip=clip)
    assert not qarray.fake_quantize(np.zeros((4, 3), np.float32), nothing).any()


@pytest.mark.parametrize("magnitude", [1e-20, 1e-10, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("bits", [2, 8])
def test_tiny_and_large_weights_keep_their_precision(magnitude, symmetric, clip, bits):
    """No overflow and no underflow on the way: scaling the weights scales the error."""
    w = np.clip(random_weights((40, 3)), -3, 3)
    errors = []
    for factor in (1.0, magnitude):
        scaled = w * np.float32(factor)
        quantizer = qarray.calibrate(scaled, bits, symmetric=symmetric, clip=clip)
        error = scaled.astype(np.float64) - qarray.fake_quantize(scaled, quantizer)
        errors.append(np.sqrt(np.square(error / factor).sum()))
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_equal_weights_and_scales_give_equal_integers_on_every_backend(backend, population, symmetric, per_channel):
    shape = (33, 21) if population is None else (population, 33, 21)
    for bits in range(2, 9):
        w = random_weights(shape, scale=0.3, seed=bits)
        quantizer = qarray.calibrate(w, bits, symmetric=symmetric, per_channel=per_channel)
        expected = qarray.quantize(w, quantizer)
        there = tree.map(backend.asarray, quantizer)
        found = backend.to_numpy(qarray.quantize(backend.asarray(w), there))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
        back = backend.to_numpy(qarray.dequantize(tree.map(backend.asarray, expected)))
        assert back.tobytes() == qarray.dequantize(expected).tobytes()


def test_calibration_agrees_on_every_backend(backend):
    w = random_weights((33, 21))
    found = backend.to_numpy(qarray.calibrate(backend.asarray(w), 4, clip=False))
    np.testing.assert_allclose(found.scale, qarray.calibrate(w, 4, clip=False).scale, rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_straight_through_is_torch_fake_quantize(oracle, bits, symmetric, clip):
    """Value and gradient of fake_quantize_per_channel_affine and _per_tensor_affine."""
    torch = oracle("torch")
    w, gradient = random_weights((60, 5), seed=bits), random_weights((60, 5), seed=100 + bits)
    low, high = qarray.levels(bits, symmetric)
    for per_channel in (True, False):
        quantizer = qarray.calibrate(w, bits, symmetric=symmetric, per_channel=per_channel, clip=clip)
        given_w = torch.tensor(w, requires_grad=True)
        scale, zero = quantizer.scale.ravel(), quantizer.zero_point.ravel().astype(np.int32)
        if per_channel:
            value = torch.fake_quantize_per_channel_affine(
                given_w, torch.tensor(scale), torch.tensor(zero), 1, low, high
            )
        else:
            value = torch.fake_quantize_per_tensor_affine(given_w, float(scale[0]), int(zero[0]), low, high)
        value.backward(torch.tensor(gradient))
        np.testing.assert_allclose(qarray.fake_quantize(w, quantizer), value.detach().numpy(), rtol=1e-6)
        np.testing.assert_array_equal(qarray.straight_through(w, quantizer, gradient), given_w.grad.numpy())


def test_the_gradient_vanishes_where_a_weight_is_clipped():
    w = np.array([[-9.0], [-1.0], [0.4], [1.0], [9.0]], np.float32)
    ones = np.ones((1, 1), np.float32)
    quantizer = qarray.Quantizer(ones, ones, 0 * ones, -3 * ones, 3 * ones)
    found = qarray.straight_through(w, quantizer, np.full_like(w, 5.0))
    assert found.ravel().tolist() == [0, 5, 5, 5, 0]


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 16, 4.0, "4", None, True, np.float32(4)])
def test_bits_outside_two_to_eight_are_refused(bits):
    with pytest.raises(ValueError, match="bits: expected an integer from 2 to 8"):
        qarray.calibrate(random_weights(), bits)


@pytest.mark.parametrize(("bits", "symmetric", "expected"), [(2, True, (-1, 1)), (2, False, (-2, 1))])
def test_levels(bits, symmetric, expected):
    assert qarray.levels(np.int64(bits), symmetric) == expected
