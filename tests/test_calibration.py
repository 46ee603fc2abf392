"""Calibration: scales against plain loops, PyTorch's observers and torchao; ranges by what they must not make worse."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minimodel import qarray, ranges, tree
from minimodel.compress.calibration import calibrate

SCHEMES = qarray.SCHEMES
GRANULARITIES = ["channel", "tensor", 1, 2, 3, 5]
WEIGHTS = hnp.arrays(
    np.float32,
    st.sampled_from([(), (2,)]).flatmap(
        lambda lead: st.tuples(st.integers(1, 7), st.integers(1, 4)).map(lambda shape: lead + shape)
    ),
    elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
)
BITS = st.integers(1, 8)
CHOICES = {"scheme": st.sampled_from(SCHEMES), "granularity": st.sampled_from(GRANULARITIES)}


def random_weights(shape=(7, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shares(shape, granularity):
    """The place of each scale, and of the weights (in, out) that share it."""
    rows, columns = shape
    if granularity == "tensor":
        return {(0, 0): [(i, j) for i in range(rows) for j in range(columns)]}
    groups = 1 if granularity == "channel" else math.ceil(rows / granularity)
    found = {(group, j): [] for group in range(groups) for j in range(columns)}
    for i in range(rows):
        for j in range(columns):
            found[i * groups // rows, j].append((i, j))
    return found


def each_share(w, granularity):
    """The place of each scale, (*population, group, output), and its weights."""
    for member in np.ndindex(w.shape[:-2]):
        for place, cells in shares(w.shape[-2:], granularity).items():
            yield (*member, *place), np.array([w[member][cell] for cell in cells])


def squared_error(w, quantizer, granularity):
    """Σ(w − ŵ)² of what shares a scale, in the order of ``each_share``."""
    error = np.square(w.astype(np.float64) - qarray.fake_quantize(w, quantizer))
    return np.array([part.sum() for _, part in each_share(error, granularity)])


def literal_scale(values, bits, scheme):
    """s of all that was seen, in float64."""
    low, high = qarray.levels(bits, scheme)
    least, most = min(values.min(), 0), max(values.max(), 0)
    if scheme == "asymmetric":
        width = (float(most) - float(least)) / (high - low)
    else:
        width = max(float(most) / high, float(least) / low)
    return width * (2 if bits == 1 and scheme != "asymmetric" else 1) if width > 1e-30 else 1.0


@given(WEIGHTS, BITS, st.fixed_dictionaries(CHOICES))
def test_scales_without_clipping_are_those_of_the_extremes(w, bits, how):
    found = calibrate(w, bits, range_of=ranges.min_max, **how)
    assert all(leaf.dtype == np.float32 and leaf.shape == found.scale.shape for leaf in found)
    places = list(each_share(w, how["granularity"]))
    assert found.scale.size == len(places)
    for place, values in places:
        expected = literal_scale(values, bits, how["scheme"])
        assert found.scale[place] == pytest.approx(expected, rel=1e-6)
        assert found.inverse[place] == pytest.approx(1 / expected, rel=1e-6)


@given(WEIGHTS, BITS, st.fixed_dictionaries(CHOICES))
def test_a_group_is_calibrated_as_if_it_were_alone(w, bits, how):
    together = calibrate(w, bits, **how)
    for place, values in each_share(w, how["granularity"]):
        alone = calibrate(values[:, None], bits, scheme=how["scheme"], granularity="tensor")
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[place], other[0, 0], rtol=1e-6)


@given(WEIGHTS, BITS, st.fixed_dictionaries(CHOICES), st.sampled_from([ranges.least_error, ranges.min_max]))
def test_a_population_is_its_members(w, bits, how, range_of):
    together = qarray.quantize(w, calibrate(w, bits, range_of=range_of, **how))
    if w.ndim == 2:
        w, together = w[None], tree.map(lambda leaf: leaf[None], together)
    for i, member in enumerate(w):
        alone = qarray.quantize(member, calibrate(member, bits, range_of=range_of, **how))
        for found, expected in zip(together[:3], alone[:3], strict=True):
            np.testing.assert_array_equal(found[i], expected)


def test_uneven_groups():
    """Seven inputs by three are groups of 3, 2 and 2."""
    w = np.arange(1, 8, dtype=np.float32)[:, None] * 127
    found = calibrate(w, 8, granularity=3, range_of=ranges.min_max)
    assert found.scale.ravel().tolist() == [3, 5, 7]
    assert qarray.spread(found.scale, 7).ravel().tolist() == [3, 3, 3, 5, 5, 7, 7]


@pytest.mark.parametrize("granularity", [7, 100])
def test_a_group_of_all_inputs_is_a_channel(granularity):
    w = random_weights()
    for one, other in zip(calibrate(w, 4, granularity=granularity), calibrate(w, 4), strict=True):
        np.testing.assert_array_equal(one, other)


# PyTorch


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_scales_and_zero_points_are_those_of_torch_s_observers(oracle, bits, granularity):
    torch, observers = oracle("torch"), oracle("torch.ao.quantization")
    w = random_weights((30, 6), bits) + np.linspace(-1, 3, 6, dtype=np.float32)
    for scheme in ("symmetric", "asymmetric"):
        low, high = qarray.levels(bits, scheme)
        kind = "tensor" if granularity == "tensor" else "channel"
        qscheme = getattr(torch, f"per_{kind}_{'affine' if scheme == 'asymmetric' else scheme}")
        how = {"dtype": torch.qint8, "qscheme": qscheme, "quant_min": low, "quant_max": high}
        if kind == "tensor":
            observer = observers.MinMaxObserver(**how)
        else:
            observer = observers.PerChannelMinMaxObserver(ch_axis=1, **how)
        observer(torch.tensor(w))
        scale, zero_point = observer.calculate_qparams()
        found = calibrate(w, bits, scheme=scheme, granularity=granularity, range_of=ranges.min_max)
        np.testing.assert_allclose(found.scale.ravel(), scale.numpy(), rtol=1e-6)
        np.testing.assert_array_equal(found.zero_point.ravel(), zero_point.numpy())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_are_those_of_torchao(oracle, bits, scheme):
    torch = pytest.importorskip("torch")
    theirs = oracle("torchao.quantization.quant_primitives")
    kinds = {"symmetric_full": "SYMMETRIC_NO_CLIPPING_ERR"}
    kind = getattr(theirs.MappingType, kinds.get(scheme, scheme.upper()))
    w = random_weights((24, 5), bits) + np.linspace(-1, 3, 5, dtype=np.float32)
    scale, zero_point = theirs.choose_qparams_affine(
        torch.tensor(w.T.copy()), kind, (1, 8), torch.int8, *qarray.levels(bits, scheme)
    )
    found = calibrate(w, bits, scheme=scheme, granularity=8, range_of=ranges.min_max)
    np.testing.assert_allclose(found.scale, scale.numpy().T, rtol=1e-6)
    np.testing.assert_array_equal(found.zero_point, zero_point.numpy().T)


# Powers of two


@given(WEIGHTS, BITS, st.fixed_dictionaries(CHOICES))
def test_scales_become_the_least_powers_of_two_that_are_not_below(w, bits, how):
    plain = calibrate(w, bits, range_of=ranges.min_max, **how)
    found = calibrate(w, bits, range_of=ranges.min_max, power_of_two=True, **how)
    np.testing.assert_array_equal(found.inverse * found.scale, 1)
    for scale, before in zip(found.scale.ravel().tolist(), plain.scale.ravel().tolist(), strict=True):
        assert math.frexp(scale)[0] == 0.5 and before <= scale < 2 * before
    if how["scheme"] != "asymmetric":
        for one, other in zip(found[2:], plain[2:], strict=True):
            np.testing.assert_array_equal(one, other)


@given(WEIGHTS, BITS, st.fixed_dictionaries(CHOICES))
def test_the_least_error_of_powers_of_two_is_that_of_powers_of_two(w, bits, how):
    found, whole = (
        calibrate(w, bits, power_of_two=True, range_of=r, **how) for r in (ranges.least_error, ranges.min_max)
    )
    assert (np.frexp(found.scale)[0] == 0.5).all()
    if bits == 1 and how["scheme"] != "asymmetric":
        return  # from the mean of |w|
    errors = [squared_error(w, quantizer, how["granularity"]) for quantizer in (found, whole)]
    assert (errors[0] <= errors[1] * (1 + 1e-5) + 1e-9).all()


# Ranges


@given(WEIGHTS, BITS, st.fixed_dictionaries(CHOICES))
def test_the_least_error_is_never_more_than_that_of_all_that_was_seen(w, bits, how):
    w = np.where(w == 0, np.float32(1), w)  # zeros do not count, as a mask may have made them
    errors = [
        squared_error(w, calibrate(w, bits, range_of=range_of, **how), how["granularity"])
        for range_of in (ranges.least_error, ranges.min_max)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_least_error_lowers_that_of_a_long_tail(scheme):
    w = random_weights((400, 3))
    w[0] = 8.0
    clipped, plain = (
        squared_error(w, calibrate(w, 4, scheme=scheme, range_of=range_of), "channel")
        for range_of in (ranges.least_error, ranges.min_max)
    )
    assert (clipped < 0.9 * plain).all()


@pytest.mark.parametrize("granularity", ["channel", "tensor", 20])
def test_a_percentile_of_weights_is_an_order_statistic(granularity):
    w = random_weights((60, 4))
    found = calibrate(w, 4, granularity=granularity, range_of=ranges.percentile(0.9))
    for place, values in each_share(w, granularity):
        ordered, left_out = sorted(values.tolist()), len(values) // 20
        most = max(-ordered[left_out], ordered[-1 - left_out])
        assert found.scale[place] == pytest.approx(most / 7, rel=1e-6)


@pytest.mark.parametrize("granularity", ["channel", "tensor", 32])
def test_a_moving_average_of_weights_goes_from_batch_to_batch(granularity):
    w = random_weights((64, 3)) + np.float32(0.5)
    found = calibrate(w, 5, scheme="asymmetric", granularity=granularity, range_of=ranges.moving_average(0.7))
    for place, values in each_share(w, granularity):
        ends = None
        for part in np.split(values, 16):
            new = np.array([min(part.min(), 0), max(part.max(), 0)], np.float64)
            ends = new if ends is None else 0.7 * ends + 0.3 * new
        assert found.scale[place] == pytest.approx((ends[1] - ends[0]) / 31, rel=1e-5)


def test_a_range_of_ones_own():
    """It is asked for the tensor, or for the outputs of one group after another, each on the last two axes."""
    w, seen = random_weights((6, 4)), []

    def of(values, missed):
        seen.append(values.shape)
        least, most = -np.ones(values.shape[:-2], np.float32), np.full(values.shape[:-2], 2, np.float32)
        assert missed(least, most).shape == values.shape[:-2]
        return least, most

    for granularity in ("tensor", "channel", 3):
        np.testing.assert_allclose(calibrate(w, 4, granularity=granularity, range_of=of).scale, 2 / 7, rtol=1e-6)
    assert seen == [(6, 4), (4, 6, 1), (4, 3, 1), (4, 3, 1)]


def test_groups_of_different_sizes_see_their_own_weights_alone():
    w = np.full((5, 1), 4, np.float32)
    for range_of in (ranges.moving_average(0.9), ranges.percentile(0.5)):
        assert (calibrate(w, 8, granularity=3, range_of=range_of).scale * 127).ravel().tolist() == [4, 4]


# One bit


def test_zeros_are_not_missed_at_one_bit():
    """Those that a mask made stay 0, whatever the scale."""
    w = np.array([[0.0], [1.0], [-3.0], [0.0]], np.float32)

    def of(values, missed):
        ends = np.full(1, -2, np.float32), np.full(1, 2, np.float32)
        assert missed(*ends).tolist() == [pytest.approx(2 / 9)]  # (1 − 2)² + (−3 + 2)², in units of 3
        return ends

    assert calibrate(w, 1, range_of=of).scale.item() == 4


@given(WEIGHTS.map(lambda w: w * (abs(w) > 1e-20)), st.sampled_from(GRANULARITIES))
def test_one_bit_is_the_mean_of_what_is_not_zero(w, granularity):
    found = calibrate(w, 1, granularity=granularity)
    for place, values in each_share(w, granularity):
        kept = np.abs(values[values != 0]).astype(np.float64)
        expected = kept.mean() if kept.sum() > 1e-29 else 0.5
        assert found.scale[place] / 2 == pytest.approx(expected, rel=1e-6)
    for one, other in zip(found, calibrate(w, 1, scheme="symmetric_full", granularity=granularity), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_other_scale_of_the_sign_is_better():
    w = random_weights((50, 4)).astype(np.float64)
    found = calibrate(w.astype(np.float32), 1).scale[0] / 2
    for j, own in enumerate(found.tolist()):
        errors = [np.square(w[:, j] - a * np.sign(w[:, j])).sum() for a in (own, *np.linspace(0.5, 1.5, 2001) * own)]
        assert errors[0] <= min(errors) * (1 + 1e-9)


@pytest.mark.parametrize("range_of", [ranges.min_max, ranges.percentile(1.0)])
def test_one_bit_of_another_range_reaches_its_ends(range_of):
    w = random_weights()
    np.testing.assert_array_equal(calibrate(w, 1, range_of=range_of).scale, 2 * np.abs(w).max(axis=0, keepdims=True))


# What is special


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("range_of", [ranges.least_error, ranges.min_max])
def test_a_channel_of_zeros_is_all_zeros(scheme, range_of):
    w = random_weights()
    w[:, 2] = 0
    quantizer = calibrate(w, 4, scheme=scheme, range_of=range_of)
    assert np.isfinite(quantizer.inverse).all()
    assert qarray.fake_quantize(w, quantizer).any(axis=0).tolist() == [True, True, False, True, True]
    nothing = calibrate(np.zeros((4, 3), np.float32), 4, scheme=scheme, range_of=range_of)
    assert not qarray.fake_quantize(np.zeros((4, 3), np.float32), nothing).any()


@pytest.mark.parametrize("magnitude", [1e-20, 1e-10, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("range_of", [ranges.least_error, ranges.min_max])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_tiny_and_large_weights_keep_their_precision(magnitude, scheme, range_of, bits):
    """No overflow and no underflow on the way: scaling the weights scales the error."""
    w = np.clip(random_weights((40, 3)), -3, 3)
    errors = []
    for factor in (1.0, magnitude):
        scaled = w * np.float32(factor)
        quantizer = calibrate(scaled, bits, scheme=scheme, range_of=range_of)
        error = scaled.astype(np.float64) - qarray.fake_quantize(scaled, quantizer)
        errors.append(np.sqrt(np.square(error / factor).sum()))
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.parametrize("granularity", [0, -1, 2.0, True, None, "layer", "4", (2,)])
def test_another_granularity_is_refused(granularity):
    with pytest.raises(ValueError, match='granularity: expected "tensor", "channel" or a number of inputs, got'):
        calibrate(random_weights(), 4, granularity=granularity)


def test_another_scheme_is_refused():
    for bits in (1, 4):
        with pytest.raises(
            ValueError, match="scheme: expected one of symmetric, symmetric_full, asymmetric, got 'full'"
        ):
            calibrate(random_weights(), bits, scheme="full")
