"""Quantized arrays: bounds, zeros and integers by property, rounding against decimal, gradients against PyTorch."""

import decimal
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minimodel import qarray, ranges, tree
from minimodel.compress.calibration import calibrate
from minimodel.testing import suites

WEIGHTS = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
SCHEMES = qarray.SCHEMES
GRANULARITIES = ["channel", "tensor", 1, 2, 3, 4, 9]
RANGES = [ranges.least_error, ranges.min_max]
OPTIONS = st.fixed_dictionaries(
    {
        "scheme": st.sampled_from(SCHEMES),
        "granularity": st.sampled_from(GRANULARITIES),
        "range_of": st.sampled_from(RANGES),
        "power_of_two": st.booleans(),
    }
)
BITS = st.integers(1, 8)


@st.composite
def weights(draw, elements=WEIGHTS):
    """(*population, in, out) with and without a population."""
    shape = draw(st.sampled_from([(), (1,), (3,)])) + draw(st.tuples(st.integers(1, 6), st.integers(1, 5)))
    return draw(hnp.arrays(np.float32, shape, elements=elements))


def random_weights(shape=(7, 5), scale=1.0, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def rows_of(groups, rows):
    """The inputs of each group."""
    return [[i for i in range(rows) if i * groups // rows == group] for group in range(groups)]


def whole(leaf, shape):
    """An entry for every weight."""
    out = np.empty(shape, leaf.dtype)
    for group, rows in enumerate(rows_of(leaf.shape[-2], shape[-2])):
        out[..., rows, :] = leaf[..., group : group + 1, :]
    return out


def unclipped(w, quantizer):
    """Where w lies in the range of the quantizer."""
    inverse, _, _, low, high, offset = (whole(leaf, w.shape) for leaf in quantizer)
    c = np.round(w * inverse - offset) + offset
    return (c >= low) & (c <= high)


def cases(bits):
    """Every scheme at every number of bits, in turn with each granularity, and with scales that are powers of two."""
    each = [(n, j) for n in bits for j in range(3)]
    return [(n, SCHEMES[j], ("channel", "tensor", 3)[(n + j) % 3], i % 2 == 1) for i, (n, j) in enumerate(each)]


def quantization(case):
    bits, scheme, granularity, power_of_two = case
    return suites.quantization(bits, scheme, granularity=granularity, power_of_two=power_of_two)


class TestQuantizer(suites.QuantizerSuite):
    """The laws, of two bits and more."""

    @pytest.fixture(params=cases(range(2, 9)), ids=str)
    def quantizer(self, request):
        return quantization(request.param)


class TestSign(suites.QuantizerSuite):
    """One bit about 0 has no level for it."""

    expected_failures: ClassVar = {
        "zero_is_exact": "the levels are −s and s",
        "halves_go_to_even": "there is nothing between −1 and 1",
        "order_is_kept": "0 is taken for positive, so that the sign of −0 is not the other",
    }

    @pytest.fixture(params=[case for case in cases([1]) if case[1] != "asymmetric"], ids=str)
    def quantizer(self, request):
        return quantization(request.param)


class TestBit(suites.QuantizerSuite):
    """Of the two levels of an asymmetric bit one is 0."""

    @pytest.fixture
    def quantizer(self):
        return suites.quantization(1, "asymmetric")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("granularity", "groups"), [("tensor", (1, 1)), ("channel", (1, 5)), (3, (3, 5)), (9, (1, 5))])
def test_there_is_a_scale_for_each_group(scheme, granularity, groups, population):
    lead = () if population is None else (population,)
    q = qarray.quantize(w := random_weights((*lead, 7, 5)), calibrate(w, 4, scheme=scheme, granularity=granularity))
    assert q.values.shape == w.shape and q.scale.shape == q.zero_point.shape == (*lead, *groups)
    assert q.zero_point.dtype == np.int8 and q.scale.dtype == np.float32 and q.codebook is None
    assert scheme == "asymmetric" or not q.zero_point.any()


@given(weights(), BITS, st.sampled_from(GRANULARITIES))
def test_only_asymmetric_rounding_of_the_zero_point_clips_a_min_max_range(w, bits, granularity):
    how = {"granularity": granularity, "range_of": ranges.min_max}
    for scheme in ("symmetric", "symmetric_full"):
        assert unclipped(w, calibrate(w, bits, scheme=scheme, **how)).all()
    quantizer = calibrate(w, bits, scheme="asymmetric", **how)
    error = np.abs(w.astype(np.float64) - qarray.fake_quantize(w, quantizer))
    assert (error <= whole(quantizer.scale, w.shape) * (1 + 1e-4) + np.abs(w) * 3e-7).all()


def test_literal_integers():
    """Two bits, asymmetric: −1, 0, 1, 2 are the integers −2, −1, 0, 1 with zero point −1 and scale 1."""
    w = np.array([[-1.0], [0.0], [1.0], [2.0]], np.float32)
    q = qarray.quantize(w, calibrate(w, 2, scheme="asymmetric", range_of=ranges.min_max))
    assert q.values.ravel().tolist() == [-2, -1, 0, 1]
    assert (q.scale.item(), q.zero_point.item()) == (1.0, -1)


def test_literal_ends_of_a_byte():
    """−128 is an integer of the full scheme only; of the other it is what −127 steps reach."""
    w = np.array([[-128.0], [0.0], [127.0]], np.float32)
    full, plain = (
        qarray.quantize(w, calibrate(w, 8, scheme=scheme, range_of=ranges.min_max))
        for scheme in ("symmetric_full", "symmetric")
    )
    assert full.values.ravel().tolist() == [-128, 0, 127] and full.scale.item() == 1
    assert plain.values.ravel().tolist() == [-127, 0, 126]
    assert plain.scale.item() == np.float32(128 / 127)


def test_one_bit_is_the_sign_times_the_mean(backend):
    w = np.array([[3.0, 0.5], [-1.0, 0.25], [-2.0, -0.75]], np.float32)
    quantizer = calibrate(w, 1)
    found = backend.to_numpy(qarray.quantize(*(tree.map(backend.asarray, part) for part in (w, quantizer))))
    assert found.values.tolist() == [[1, 1], [-1, 1], [-1, -1]]
    assert found.scale.tolist() == [[2.0, 0.5]] and not found.zero_point.any()
    np.testing.assert_array_equal(qarray.fake_quantize(w, quantizer), np.sign(w) * [2.0, 0.5])
    passed = qarray.straight_through(w, quantizer, np.ones_like(w))
    assert passed.tolist() == [[1, 1], [1, 1], [1, 1]]  # w/s from −1 to 1: up to two means


# Rounding


MODES = {
    "half_even": decimal.ROUND_HALF_EVEN,
    "half_away": decimal.ROUND_HALF_UP,
    "floor": decimal.ROUND_FLOOR,
    "ceil": decimal.ROUND_CEILING,
    "toward_zero": decimal.ROUND_DOWN,
}
NEAR = [
    0.49999997,
    0.5,
    0.50000006,
    1.4999999,
    1.5,
    2.5,
    0.99999994,
    8388607.5,
    8388609,
    2**24 + 2,
    1e20,
    0.0,
    3.0,
    1e-9,
]


def literal(rounding, x):
    return [float(decimal.Decimal(float(v)).to_integral_value(MODES[rounding])) for v in x.ravel()]


@pytest.mark.parametrize("rounding", MODES)
def test_rounding_is_that_of_decimal(backend, rounding):
    x = np.array([*NEAR, *(-value for value in NEAR)], np.float32)
    found = backend.to_numpy(qarray.ROUNDINGS[rounding](backend.asarray(x)))
    assert found.dtype == np.float32
    assert found.tolist() == literal(rounding, x)


@pytest.mark.parametrize("rounding", MODES)
@given(
    x=hnp.arrays(np.float32, 16, elements=st.floats(-(2.0**30), 2.0**30, width=32))
    | hnp.arrays(np.float32, 16, elements=st.integers(-99, 99).map(lambda n: n / 2))
)
def test_rounding_of_any_float_is_that_of_decimal(rounding, x):
    assert qarray.ROUNDINGS[rounding](x).tolist() == literal(rounding, x)


def test_the_names_of_the_roundings():
    assert set(qarray.ROUNDINGS) == {*MODES, "stochastic"}


def test_stochastic_rounding_is_right_on_average():
    """Of n draws the mean is within 5σ of x, σ² = p(1 − p)/n with p = x − ⌊x⌋."""
    n, x = 20_000, np.array([-2.75, -1.5, -0.1, 0.0, 0.3, 0.5, 1.999, 4.0, 6.25], np.float32)
    u = np.random.default_rng(0).random((n, len(x)), dtype=np.float32)
    found = qarray.stochastic(np.broadcast_to(x, u.shape), u)
    assert ((found == np.floor(x)) | (found == np.ceil(x))).all()
    p = x.astype(np.float64) - np.floor(x)
    assert (np.abs(found.mean(axis=0, dtype=np.float64) - x) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-12).all()


def test_a_stochastic_half_goes_up_with_the_lower_half_of_the_draws():
    u = np.array([0.0, 0.25, 0.49999997, 0.5, 0.75, 0.99999994], np.float32)
    assert qarray.stochastic(np.full_like(u, 1.5), u).tolist() == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("rounding", qarray.ROUNDINGS)
def test_equal_draws_give_equal_integers_on_every_backend(backend, rounding):
    w, u = random_weights((33, 21)), np.random.default_rng(1).random((33, 21), dtype=np.float32)
    quantizer = calibrate(w, 4, scheme="asymmetric", granularity=10)
    given_there = (tree.map(backend.asarray, part) for part in (w, quantizer))
    found = backend.to_numpy(qarray.quantize(*given_there, rounding, backend.asarray(u)))
    assert found.values.tobytes() == qarray.quantize(w, quantizer, rounding, u).values.tobytes()


def test_every_mode_through_integers_is_that_of_decimal():
    w = (random_weights((40, 3)) * 3).astype(np.float32)
    one = np.ones((1, 1), np.float32)
    quantizer = qarray.Quantizer(4 * one, one / 4, 0 * one, -128 * one, 127 * one, 0 * one)
    for rounding in MODES:
        assert qarray.quantize(w, quantizer, rounding).values.ravel().tolist() == literal(rounding, 4 * w)


# Gradients


def torch_groups(torch, function, w, quantizer, gradient):
    """The values, and the gradients by the leaves, of ``function(w, scale, zero point)``, group by group."""
    groups = quantizer.scale.shape[-2]
    value, by_w, by_scale = np.empty_like(w), np.empty_like(w), np.empty_like(quantizer.scale)
    for group, rows in enumerate(rows_of(groups, len(w))):
        part = torch.tensor(w[rows], requires_grad=True)
        scale = torch.tensor(quantizer.scale[group], requires_grad=True)
        found = function(part, scale, torch.tensor(quantizer.zero_point[group]))
        found.backward(torch.tensor(gradient[rows]))
        value[rows], by_w[rows] = found.detach().numpy(), part.grad.numpy()
        if scale.grad is not None:
            by_scale[group] = scale.grad.numpy()
    return value, by_w, by_scale


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("range_of", RANGES)
def test_straight_through_is_torch_fake_quantize(oracle, bits, scheme, range_of):
    """Value and gradient of fake_quantize_per_channel_affine and _per_tensor_affine."""
    if bits == 1 and scheme != "asymmetric":
        return  # the sign, which PyTorch's has no integers for
    torch = oracle("torch")
    w, gradient = random_weights((60, 5), seed=bits), random_weights((60, 5), seed=100 + bits)
    low, high = qarray.levels(bits, scheme)

    def theirs(w, scale, zero):
        if len(scale) > 1:
            return torch.fake_quantize_per_channel_affine(w, scale.detach(), zero.int(), 1, low, high)
        return torch.fake_quantize_per_tensor_affine(w, scale.item(), int(zero.item()), low, high)

    for granularity in ("channel", "tensor", 16, 7):
        quantizer = calibrate(w, bits, scheme=scheme, granularity=granularity, range_of=range_of)
        value, passed, _ = torch_groups(torch, theirs, w, quantizer, gradient)
        np.testing.assert_allclose(qarray.fake_quantize(w, quantizer), value, rtol=1e-6)
        np.testing.assert_array_equal(qarray.straight_through(w, quantizer, gradient), passed)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_by_the_scale_is_torch_s(oracle, backend, bits, scheme):
    """∂J/∂t is s·∂J/∂(s·t) of _fake_quantize_learnable_per_channel_affine and _per_tensor_affine.

    Theirs with integers from 0, as it cuts zero points off toward 0 on the way back.
    """
    torch = oracle("torch")
    w, gradient = random_weights((60, 5), seed=bits), random_weights((60, 5), seed=100 + bits)
    low, high = qarray.levels(bits, scheme)

    def theirs(w, scale, zero):
        if len(scale) > 1:
            return torch._fake_quantize_learnable_per_channel_affine(w, scale, zero - low, 1, 0, high - low, 1.0)
        return torch._fake_quantize_learnable_per_tensor_affine(w, scale, zero - low, 0, high - low, 1.0)

    for granularity in ("channel", "tensor", 7):
        quantizer = calibrate(w, bits, scheme=scheme, granularity=granularity)
        t = np.random.default_rng(bits).uniform(0.5, 1.5, quantizer.scale.shape).astype(np.float32)
        moved = qarray.at(quantizer, t)
        np.testing.assert_allclose(moved.scale, quantizer.scale * t, rtol=1e-6)
        expected = torch_groups(torch, theirs, w, moved, gradient)[2] * quantizer.scale
        there = (tree.map(backend.asarray, part) for part in (w, quantizer, t, gradient))
        found = backend.to_numpy(qarray.level_gradient(*there))
        assert found.dtype == np.float32 and found.shape == t.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@given(weights(), BITS, OPTIONS, st.integers(0, 99))
def test_the_gradient_by_the_scale_is_a_sum_over_what_shares_it(w, bits, options, seed):
    """By a loop over the weights, with members one after another."""
    gradient = random_weights(w.shape, seed=seed)
    quantizer = calibrate(w, bits, **options)
    t = np.random.default_rng(seed).uniform(0.6, 1.4, quantizer.scale.shape).astype(np.float32)
    moved = qarray.at(quantizer, t)
    found = qarray.level_gradient(w, quantizer, t, gradient)
    expected, size = np.zeros(t.shape), np.zeros(t.shape)
    for place in np.ndindex(w.shape):
        *lead, i, j = place
        own = (*lead, i * t.shape[-2] // w.shape[-2], j if t.shape[-1] > 1 else 0)
        inverse, low, high, offset = (leaf[own] for leaf in (moved.inverse, moved.low, moved.high, moved.offset))
        c = np.round(np.float32(w[place] * inverse) - offset) + offset
        slope = c - float(w[place]) * float(inverse) if low <= c <= high else np.clip(c, low, high)
        expected[own] += float(gradient[place]) * slope * quantizer.scale[own]
        size[own] += abs(float(gradient[place])) * (abs(np.clip(c, low, high)) + 1) * quantizer.scale[own]
    assert (np.abs(found - expected) <= 1e-4 * size + 1e-6).all()


def test_a_learned_scale_never_falls_below_a_hundredth():
    quantizer = calibrate(random_weights(), 4)
    for t in (-3.0, 0.0, 0.01):
        moved = qarray.at(quantizer, np.full_like(quantizer.scale, t))
        np.testing.assert_allclose(moved.scale, quantizer.scale / 100, rtol=1e-6)
        np.testing.assert_allclose(moved.scale * moved.inverse, 1, rtol=1e-6)
    same = qarray.at(quantizer, qarray.start(quantizer))
    for one, other in zip(same, quantizer, strict=True):
        np.testing.assert_array_equal(one, other)


# Levels


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("symmetric", [(-1, 1), (-1, 1), (-3, 3), (-7, 7), (-127, 127)]),
        ("symmetric_full", [(-1, 1), (-2, 1), (-4, 3), (-8, 7), (-128, 127)]),
        ("asymmetric", [(-1, 0), (-2, 1), (-4, 3), (-8, 7), (-128, 127)]),
    ],
)
def test_levels(scheme, expected):
    assert [qarray.levels(np.int64(bits), scheme) for bits in (1, 2, 3, 4, 8)] == expected


@pytest.mark.parametrize("bits", [9, 0, -4, 16, 4.0, "4", None, True, np.float32(4)])
def test_bits_outside_one_to_eight_are_refused(bits):
    for refuse in (lambda: qarray.levels(bits, "symmetric"), lambda: calibrate(random_weights(), bits)):
        with pytest.raises(ValueError, match="bits: expected an integer from 1 to 8"):
            refuse()


@pytest.mark.parametrize("scheme", ["codebook", "full", None, True])
def test_another_scheme_is_refused(scheme):
    with pytest.raises(ValueError, match="scheme: expected one of symmetric, symmetric_full, asymmetric, got"):
        qarray.levels(4, scheme)
