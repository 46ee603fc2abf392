"""Integer-only inference: the bits of Python's own integers on every backend, close to the floats; and the ranges."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minimodel as mm
from minimodel import activations, losses, optimizers, qarray, ranges, tree
from minimodel.activations import ACTIVATIONS, STEPPED
from minimodel.compress import integer, samples
from minimodel.compress.calibration import calibrate
from minimodel.compress.integer import IntegerLayer
from minimodel.gradients import forward
from minimodel.model import Model, evaluation

STEEPEST = 1.13  # the greatest slope of any activation, gelu's
INT32 = 2**31 - 1


def random_model(sizes=(4, 5, 3), activation="relu", population=None, seed=0, kind="floats", **fields):
    """kind: floats, pruned without a channel of zeros, integers of 4 bits, or those with powers of two for scales."""
    rng, lead, params, masks = np.random.default_rng(seed), () if population is None else (population,), [], []
    network = mm.Network(sizes, activation)
    for shape in network.shapes:
        masks.append(rng.uniform(size=(*lead, *shape)) < 0.5)
        masks[-1][..., 0, :] = True
        weight = rng.normal(size=(*lead, *shape)) * (masks[-1] if kind == "pruned" else 1)
        params.append(mm.Layer(weight.astype(np.float32), rng.normal(size=(*lead, shape[1])).astype(np.float32)))
    model = Model(network, tuple(params), fields.pop("loss", losses.softmax_cross_entropy), **fields)
    if kind == "pruned":
        return replace(model, masks=tuple(masks))
    return model if kind == "floats" else in_integers(model, 4, powers=kind == "powers")


def in_integers(model, bits, *, powers=False, **options):
    """The model with integers of its own."""
    quantizers = [calibrate(layer.weight, bits, power_of_two=powers, **options) for layer in model.params]
    quantized = tuple(qarray.quantize(layer.weight, q) for layer, q in zip(model.params, quantizers, strict=True))
    return replace(with_weights(model, quantized), quantized=quantized, bits=bits)


def with_weights(model, quantized):
    """The model of floats that these integers stand for."""
    pairs = zip(quantized, model.params, strict=True)
    return replace(model, params=tuple(mm.Layer(qarray.dequantize(q), layer.bias) for q, layer in pairs))


def own_weights(model, shift):
    """The integers that are used: the model's, or 8 bits for each output."""
    if model.quantized:
        return model.quantized
    how = {"range_of": ranges.min_max, "power_of_two": shift}
    quantizers = [calibrate(layer.weight, 8, **how) for layer in model.params]
    return tuple(qarray.quantize(layer.weight, q) for layer, q in zip(model.params, quantizers, strict=True))


def random_rows(features, count=40, seed=1, scale=1.0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(count, features)) * scale + offset).astype(np.float32)


def splits_of(x, outputs=3):
    """Data whose training rows are x."""
    part = mm.Dataset(x, (np.arange(len(x)) % outputs).astype(np.int32))
    return mm.Splits(part, part, part)


def literal_scale(values, bits, shift):
    """s, z and the least and the greatest integer of all that was seen."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least, most = np.minimum(values.min(), 0), np.maximum(values.max(), 0)
    s = (float(most) - float(least)) / (2**bits - 1) or 1.0
    s = np.float32(2.0 ** math.ceil(math.log2(s)) if shift else s)
    return s, int(np.clip(np.round(low - least / s), low, high)), low, high


def literal(model, train, x, bits, shift, member=None):
    """The sums of the last layer by Python's integers and fractions, (n, out); None where a shift is not 0 to 30."""

    def own(array, axes):
        return array if array.ndim == axes else array[member]

    quantized, network = own_weights(model, shift), model.network
    steps = forward(network, with_weights(model, quantized).params, model.prepared(train))
    scales = [literal_scale(own(step.f, 2), bits, shift) for step in steps]
    if n := activations.steps(network.activation):  # the activations are 0, 4/n, …, 4
        low = -128 if n == 255 else 0
        scales[1:] = [(np.float32(4 / n), low, low, low + n)] * len(scales[1:])
    s, z, low, high = scales[0]
    inverse = np.float32(1) / s
    q = [[min(max(round(float(v * inverse)) + z, low), high) for v in row] for row in model.prepared(x)]
    for i, (weight, layer) in enumerate(zip(quantized, model.params, strict=True)):
        s, z, *_ = scales[i]
        integers, bias = own(weight.values, 2).tolist(), own(layer.bias, 1)
        units = [float(s) * float(v) for v in np.broadcast_to(own(weight.scale, 2)[0], bias.shape)]
        biases = [round(Fraction(float(b)) / Fraction(unit)) for b, unit in zip(bias, units, strict=True)]
        columns = list(zip(biases, zip(*integers, strict=True), strict=True))
        acc = [[b + sum((v - z) * w for v, w in zip(row, column, strict=True)) for b, column in columns] for row in q]
        if i + 1 == len(quantized):
            return acc
        clipping = n or network.activation in ("relu", "identity")
        s, z, low, high = scales[i + 1] if clipping else literal_scale(own(steps[i].z, 2), bits, shift)
        if shift:
            factors = [Fraction(unit) / Fraction(float(s)) for unit in units]
            if any(not 1 <= 1 / factor <= 2**30 for factor in factors):
                return None
            scaled = [[round(v * factor) for v, factor in zip(row, factors, strict=True)] for row in acc]
        else:
            factors = [np.float32(unit / float(s)) for unit in units]
            scaled = [[round(float(np.float32(v) * m)) for v, m in zip(row, factors, strict=True)] for row in acc]
        q = [[min(max(v + z, low), high) for v in row] for row in scaled]
        if not clipping:
            f = network.functions.value((np.arange(-128, 128) - z).astype(np.float32) * s)
            s, z, low, high = scales[i + 1]
            q = [[int(min(max(round(float(f[v + 128] / s)) + z, low), high)) for v in row] for row in q]


MODELS = st.fixed_dictionaries(
    {
        "sizes": st.sampled_from([(3, 2), (4, 5, 3), (2, 4, 3, 2)]),
        "activation": st.sampled_from(activations.NAMES),
        "population": st.sampled_from([None, 2]),
        "seed": st.integers(0, 2**16),
    }
)
ROWS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**16), "scale": st.sampled_from([0.01, 1.0, 30.0]), "offset": st.sampled_from([0.0, 2.0])}
)
KINDS = st.sampled_from(["floats", "pruned", "integers"])
BITS = st.integers(2, 8)


def test_every_activation_gives_the_literal_integers(backend, population):
    for seed, activation in enumerate(activations.NAMES):
        model = random_model((4, 5, 3), activation, population, seed)
        assert_literal(model, random_rows(4), backend, bits=8, shift=False)


@settings(max_examples=60)
@given(MODELS, ROWS, KINDS, BITS)
def test_the_integers_are_those_of_python(backend, options, rows, kind, bits):
    assert_literal(random_model(**options, kind=kind), random_rows(options["sizes"][0], **rows), backend, bits, False)


@settings(max_examples=60)
@given(MODELS, ROWS, st.sampled_from(["floats", "powers"]), BITS)
def test_the_integers_of_shifts_are_those_of_python(backend, options, rows, kind, bits):
    assert_literal(random_model(**options, kind=kind), random_rows(options["sizes"][0], **rows), backend, bits, True)


def assert_literal(model, train, backend, bits, shift):
    """Of rows within the ranges and of rows far outside; shifts of relu of few bits are refused."""
    x, data = np.concatenate([train[:3], 9 * train[3:5]]), splits_of(train)
    model = replace(model, normalization=mm.datasets.fit_normalization(train) if len(model.params) == 2 else None)
    if shift and model.network.activation in STEPPED:
        with pytest.raises(ValueError, match=f"shift: the scale of {model.network.activation} is no power of two"):
            mm.to_integers(model, data, bits=bits, shift=shift)
        return
    expected = [literal(model, train, x, bits, shift, i) for i in range(model.population or 1)]
    if None in expected:
        with pytest.raises(ValueError, match="shift: expected shifts by 0 to 30 bits"):
            mm.to_integers(model, data, bits=bits, shift=shift)
        return
    made = mm.to_integers(model, data, bits=bits, shift=shift)
    found = made.integers(x, backend=backend)
    assert found.dtype == np.int32 and type(found) is np.ndarray
    assert found.tolist() == (expected[0] if model.population is None else expected)
    z = found.astype(np.float32) * made.units[-1][..., None, :]
    assert made.outputs(x, backend=backend).tobytes() == z.tobytes()
    assert all(layer.weight.dtype == np.int8 and layer.bias.dtype == np.int32 for layer in made.layers)


@settings(max_examples=200)
@given(MODELS, ROWS, KINDS, BITS, st.booleans())
def test_the_outputs_are_within_the_half_steps_of_the_floats(options, rows, kind, bits, shift):
    """Rounding a value costs half a step, and clipping half a step, as z is rounded too; f passes an error on with its
    greatest slope and W with |W|. x is what the ranges were taken from, so that nothing else is clipped. Of relu of few
    bits both are rounded, by half a step each."""
    kind = "floats" if shift else kind
    options = {**options, "population": None}
    model, x = random_model(**options, kind=kind), random_rows(options["sizes"][0], **rows)
    try:
        made = mm.to_integers(model, splits_of(x), bits=bits, shift=shift)
    except ValueError as error:
        assert shift and str(error).startswith("shift: ")
        return
    floats = with_weights(model, own_weights(model, shift))
    steps, error = forward(model.network, floats.params, model.prepared(x)), made.scales[0].scale
    for i, (layer, unit) in enumerate(zip(floats.params, made.units, strict=True)):
        error = np.broadcast_to(error, x.shape[:1] + layer.weight.shape[:1]) @ np.abs(layer.weight) + unit / 2
        if i + 1 < len(steps):
            if options["activation"] not in ("relu", "identity", *STEPPED):
                error = STEEPEST * (error + literal_scale(steps[i].z, bits, shift)[0])
            error = error + made.scales[i + 1].scale
    z = floats.outputs(x)
    assert (np.abs(made.outputs(x) - z) <= error * (1 + 1e-3) + 1e-5 * np.abs(z).max()).all()


# The parts


def test_a_shift_rounds_halves_to_even(backend):
    """round(acc/2ᵏ) for random sums of every size, all halves up to ±9½ and their neighbours, and the ends of int32."""
    rng = np.random.default_rng(0)
    k = np.arange(31, dtype=np.int32)
    size = np.exp2(rng.uniform(0, 31, size=(100, 31)))
    random = (rng.choice([-1, 1], size=size.shape) * size).astype(np.int64)
    halves = np.arange(-19, 20, 2)[:, None] * 2 ** np.maximum(k.astype(np.int64) - 1, 0)
    ends = np.broadcast_to(np.array([[-INT32 - 1], [-INT32], [-1], [0], [1], [INT32]]), (6, 31))
    acc = np.concatenate([random, halves - 1, halves, halves + 1, ends])
    acc = np.clip(acc, -INT32 - 1, INT32).astype(np.int32)
    found = backend.to_numpy(integer.shifted(backend.asarray(acc), backend.asarray(k[None, :])))
    expected = [[round(Fraction(v, 2**shift)) for shift, v in enumerate(row)] for row in acc.tolist()]
    assert found.dtype == np.int32
    assert found.tolist() == expected


def layer_of(values, bias, multiplier, zero_point=0):
    """A layer of one's own, with one multiplier for all outputs."""
    values, bias = np.asarray(values, np.int8), np.asarray(bias, np.int32)
    ends = (np.full(1, value, np.int32) for value in (zero_point, -128, 127))
    return IntegerLayer(values, bias, np.broadcast_to(multiplier, bias.shape).copy(), *ends, None)


@pytest.mark.parametrize("zero_point", [-128, 0, 127])
@pytest.mark.parametrize(
    "factor", [np.int32(k) for k in (0, 1, 20, 24, 30)] + [np.float32(m) for m in (3.0, 0.5, 1e-7)]
)
def test_sums_up_to_the_ends_of_int32_are_rescaled_right(backend, factor, zero_point):
    acc = np.array([[-INT32 - 1, -INT32, -(2**24) - 1, -3, -1, 0, 1, 3, 5, 2**24 + 1, INT32]], np.int32)
    layer = layer_of(np.zeros((1, 11)), np.zeros(11), factor, zero_point)
    found = backend.to_numpy(integer.rescaled(backend.asarray(acc), tree.map(backend.asarray, layer)))
    if factor.dtype == np.int32:
        whole = [round(Fraction(v, 2 ** int(factor))) for v in acc[0].tolist()]
    else:
        whole = [round(float(np.float32(v) * factor)) for v in acc[0]]
    assert found.dtype == np.int8
    assert found[0].tolist() == [min(max(v + zero_point, -128), 127) for v in whole]


def test_inputs_on_a_grid_are_rounded_to_even():
    """x·(1/s) in float32, a half in many places, then z."""
    model, grid = random_model((1, 3)), np.arange(-20, 20.5, 0.5, np.float32)
    for end in range(1, 21):
        x = np.clip(grid, -end, end)[:, None]
        s, z, low, high = literal_scale(x, 8, False)
        expected = [min(max(round(float(v * (np.float32(1) / s))) + z, low), high) for v in x[:, 0]]
        assert mm.to_integers(model, splits_of(x)).quantized(x)[:, 0].tolist() == expected


def test_a_multiplier_is_rounded_once(population):
    """m is the float32 nearest to s_a s_w/s."""
    model, x = random_model((4, 9, 8, 3), population=population), random_rows(4)
    made = mm.to_integers(model, splits_of(x))
    for i, q in enumerate(own_weights(model, False)[:-1]):
        a, s = (made.scales[at].scale[..., None].astype(np.float64) for at in (i, i + 1))
        np.testing.assert_array_equal(made.layers[i].multiplier, (a * q.scale[..., 0, :] / s).astype(np.float32))


@pytest.mark.parametrize(("a", "w"), [(-128, 127), (127, -127), (-128, -127), (127, 127), (-128, -128)])
def test_the_longest_sums_are_exact(backend, a, w):
    """784 products of the greatest integers, with a bias that takes the sum to the end of int32, and an odd one."""
    total = 784 * a * w
    ends = [INT32 - total if total > 0 else -INT32 - 1 - total, 0, 2**24 + 1]
    layers = tree.map(backend.asarray, (layer_of(np.full((784, 3), w), ends, np.float32(1)),))
    program = backend.jit(integer.run, static=("backend",))
    found = backend.to_numpy(program(layers, backend.asarray(np.full((2, 784), a, np.int8)), backend=backend))
    assert found.tolist() == 2 * [[bias + total for bias in ends]]


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in ("relu", "identity")])
@pytest.mark.parametrize("bits", [3, 8])
def test_a_table_is_the_function_of_every_integer(activation, bits):
    """f in float64 by another formula, rounded; off by one only where f/s is half-way between integers."""
    exact = {
        "leaky_relu": lambda a: max(a, 0.01 * a),
        "tanh": math.tanh,
        "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
        "silu": lambda a: a / (1 + math.exp(-a)),
        "gelu": lambda a: a / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))),
    }[activation]
    before = integer.scale_for(np.float32(-4), np.float32(3), bits, False)
    after = integer.scale_for(np.float32(-0.9), np.float32(2.7), bits, False)
    found = integer.table(mm.Network((1, 1, 1), activation), before, after)
    assert found.shape == (256,) and found.dtype == np.int8
    for q in range(before.low, before.high + 1):
        whole = exact((q - int(before.zero_point)) * float(before.scale)) / float(after.scale)
        missed = found[q + 128] - min(max(whole + int(after.zero_point), after.low), after.high)
        assert abs(missed) <= 0.5 + 1e-4


ENDS = st.floats(0, 1e6, width=32, allow_subnormal=False)


@settings(max_examples=200)
@given(ENDS, ENDS, BITS, st.booleans())
def test_a_scale_covers_its_range(below, above, bits, shift):
    """Both ends are within half a step of an integer's value, 0 is an integer, and no step is wasted."""
    least, most = -np.float32(below), np.float32(above)
    found = integer.scale_for(least, most, bits, shift)
    s, z = float(found.scale), int(found.zero_point)
    width = (float(most) - float(least)) / (2**bits - 1)
    assert found.scale.dtype == np.float32 and found.zero_point.dtype == np.int32
    assert (found.low, found.high) == qarray.levels(bits, "asymmetric")
    assert found.low <= z <= found.high
    if width <= 1e-30:
        assert s == 1
        return
    if shift:
        assert math.frexp(s)[0] == 0.5 and width * (1 - 1e-7) <= s < 2 * width
    else:
        assert s == pytest.approx(width, rel=1e-7)
    assert s * (found.low - z) <= least + s * 0.5001 and s * (found.high - z) >= most - s * 0.5001


# Models


def train(data, activation="relu", loss=None, **options):
    network = mm.Network((data.train.x.shape[1], 8, data.outputs), activation)
    options = {"optimizer": optimizers.adam(0.02), "epochs": 40, "batch_size": 16, "seed": 0, "loss": loss, **options}
    return mm.gradient_descent(network, data, **options)


@pytest.fixture(scope="module")
def trained(splits):
    return {activation: train(splits, activation) for activation in ("relu", "tanh")}


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    "range_of", [ranges.min_max, ranges.moving_average(), ranges.percentile(0.999), ranges.least_error]
)
def test_eight_bits_cost_almost_nothing(activation, shift, range_of, trained, splits):
    model = trained[activation]
    found = mm.to_integers(model, splits, shift=shift, range_of=range_of).evaluate(splits.train)
    floats = model.evaluate(splits.train)
    assert floats.accuracy > 0.9
    assert abs(found.accuracy - floats.accuracy) <= 0.04
    assert found.loss == pytest.approx(floats.loss, rel=0.2)


def test_more_bits_are_closer(trained, splits):
    expected = trained["tanh"].outputs(splits.train.x)
    made = [mm.to_integers(trained["tanh"], splits, bits=bits) for bits in (2, 4, 6, 8)]
    errors = [np.square(one.outputs(splits.train.x) - expected).mean() for one in made]
    assert all(more > 4 * less for more, less in pairwise(errors))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("shift", [False, True])
def test_a_population_is_its_members(backend, activation, shift):
    model, x = random_model((4, 6, 5, 3), activation, 3), random_rows(4)
    together = mm.to_integers(model, splits_of(x), bits=6, shift=shift)
    outputs = together.outputs(x, backend=backend)
    assert outputs.shape == (3, 40, 3)
    for i in range(3):
        alone = mm.to_integers(model.member(i), splits_of(x), bits=6, shift=shift)
        np.testing.assert_allclose([s.scale for s in alone.scales], [s.scale[i] for s in together.scales], rtol=1e-6)
        for one, other in zip(alone.layers, together.layers, strict=True):
            np.testing.assert_array_equal(one.weight, other.weight[i])
            np.testing.assert_allclose(one.bias, other.bias[i], atol=1)
        scales = tuple(s._replace(scale=s.scale[i], zero_point=s.zero_point[i]) for s in together.scales)
        units, layers = (tree.map(lambda leaf, i=i: leaf[i], part) for part in (together.units, together.layers))
        taken = integer.IntegerModel(model.member(i), scales, units, layers)
        np.testing.assert_array_equal(outputs[i], taken.outputs(x, backend=backend))
        steps = np.abs(alone.outputs(x, backend=backend) - outputs[i]) / together.scales[-1].scale[i]
        assert np.mean(steps) < 0.05  # all but bits that another order of the sums could have changed


def test_zero_of_relu_is_exact():
    """What is not positive becomes the integer of the real 0, which is the least there is."""
    for bits in (2, 5, 8):
        model, x = random_model((4, 9, 3), seed=bits), random_rows(4)
        made = mm.to_integers(model, splits_of(x), bits=bits)
        backend = mm.backends.load("numpy")
        acc = integer.run(made.layers[:1], made.quantized(x), backend=backend)
        q = integer.rescaled(acc, made.layers[0])
        assert made.scales[1].zero_point == made.scales[1].low == -(2 ** (bits - 1))
        assert (acc <= 0).mean() > 0.2
        assert (q[acc <= 0] == made.scales[1].zero_point).all() and (q[acc > 0] > q.min()).any()


@pytest.mark.parametrize("range_of", [lambda v, missed: (-np.abs(v).max((-2, -1)), np.abs(v).max((-2, -1)))])
def test_relu_is_relu_whatever_the_range(range_of):
    """A range of one's own may begin below 0; what is negative is 0 all the same."""
    model, x = random_model((4, 9, 3)), random_rows(4)
    found = mm.to_integers(model, splits_of(x), range_of=range_of).outputs(x)
    z = model.outputs(x)
    assert np.abs(found - z).max() < 0.05 * np.abs(z).max()


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "sigmoid"])
@pytest.mark.parametrize("shift", [False, True])
def test_nothing_gives_nothing(backend, activation, shift):
    """f(0) = 0, and the real 0 is an integer in every layer."""
    model, x = random_model((4, 6, 5, 3), activation), random_rows(4, offset=0.3)
    model = replace(model, params=tuple(mm.Layer(layer.weight, 0 * layer.bias) for layer in model.params))
    made = mm.to_integers(model, splits_of(x), shift=shift)
    zeros = np.zeros((2, 4), np.float32)
    np.testing.assert_array_equal(made.quantized(zeros), np.full((2, 4), made.scales[0].zero_point))
    assert not made.outputs(zeros, backend=backend).any()
    assert made.outputs(x, backend=backend).any()


@pytest.mark.parametrize("population", [None, 2])
@pytest.mark.parametrize("quantized", [False, True])
def test_what_a_mask_removed_stays_zero(population, quantized):
    model, x = random_model((4, 6, 3), "tanh", population, kind="pruned"), random_rows(4)
    model = in_integers(model, 4) if quantized else model
    for layer, mask in zip(mm.to_integers(model, splits_of(x)).layers, model.masks, strict=True):
        assert not layer.weight[~mask].any() and layer.weight[mask].any()


@pytest.mark.parametrize(("bits", "shift"), [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("scheme", ["symmetric", "symmetric_full"])
def test_a_quantized_models_own_integers_are_used(population, bits, scheme, granularity, shift):
    model, x = random_model((4, 6, 3), population=population), random_rows(4)
    model = in_integers(model, bits, powers=shift, scheme=scheme, granularity=granularity)
    made = mm.to_integers(model, splits_of(x), shift=shift)
    for layer, q, unit, scale in zip(made.layers, model.quantized, made.units, made.scales, strict=True):
        np.testing.assert_array_equal(layer.weight, q.values)
        assert np.abs(layer.weight).max() <= (1 if bits == 1 else 7 if scheme == "symmetric" else 8)
        expected = np.broadcast_to(scale.scale[..., None] * q.scale[..., 0, :], unit.shape)
        np.testing.assert_allclose(unit, expected, rtol=1e-6)


@pytest.mark.parametrize("name", STEPPED)
def test_activations_of_few_bits_stay_what_they_are(backend, name):
    """From inputs that are integers the sums are exact, and so is every activation 0, 4/n, …, 4, whatever ``bits``."""
    rng, n = np.random.default_rng(0), activations.steps(name)
    x, one = rng.integers(-128, 128, size=(50, 4)).astype(np.float32), np.ones((1, 1), np.float32)
    x[0, :2] = -128, 127
    values = rng.integers(-127, 128, size=(4, 6)).astype(np.int8)
    hidden = qarray.QArray(values, one * np.float32(2.0**-12), 0 * values[:1, :1])
    last = qarray.QArray(np.eye(6, dtype=np.int8), one, 0 * values[:1, :1])
    biases = (rng.integers(0, 2**14, size=6) * 2.0**-12).astype(np.float32), np.zeros(6, np.float32)
    params = tuple(mm.Layer(qarray.dequantize(q), b) for q, b in zip((hidden, last), biases, strict=True))
    model = Model(mm.Network((4, 6, 6), name), params, losses.mean_squared_error, quantized=(hidden, last), bits=8)
    made, low = mm.to_integers(model, splits_of(x)), -128 if n == 255 else 0
    assert made.scales[1] == (np.float32(4 / n), low, low, low + n)
    found = made.outputs(x, backend=backend)
    np.testing.assert_allclose(found, model.outputs(x), rtol=1e-6, atol=0)
    assert len(np.unique(np.round(found * n / 4))) > min(n, 50)


def test_retrained_weights_of_few_bits_keep_their_integers(trained, splits):
    model = mm.quantize(trained["relu"], splits, seed=0, bits=4, epochs=2)
    made = mm.to_integers(model, splits)
    for layer, q in zip(made.layers, model.quantized, strict=True):
        np.testing.assert_array_equal(layer.weight, q.values)
    assert abs(made.evaluate(splits.train).accuracy - model.evaluate(splits.train).accuracy) <= 0.04


@pytest.mark.parametrize("shift", [False, True])
def test_a_neuron_without_weights_keeps_its_bias(shift):
    """As pruning leaves some: its sums are its bias alone, whatever the scale, and it costs the others nothing."""
    x = random_rows(4, scale=100.0)
    model = random_model((4, 6, 3), "identity")
    hidden, last = (mm.Layer(layer.weight.copy(), layer.bias.copy()) for layer in model.params)
    hidden.weight[:] *= 0.01
    hidden.weight[:, 1] = last.weight[:, 2] = 0
    hidden.bias[1], last.bias[2] = 0.3, 0.2
    model = replace(model, params=(hidden, last))
    z, found = model.outputs(x), mm.to_integers(model, splits_of(x), shift=shift).outputs(x)
    np.testing.assert_allclose(found[:, 2], 0.2, rtol=0.02)
    assert np.abs(found - z).max() < 0.03 * np.abs(z).max()


def test_targets_of_a_regression_are_turned_back(backend):
    x = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    data = mm.datasets.split(x, np.stack([100 + 50 * x[:, 0], -3 * x[:, 1]], 1), seed=0)
    model = train(data, epochs=60)
    made = mm.to_integers(model, data)
    z = made.integers(data.test.x, backend=backend).astype(np.float32) * made.units[-1]
    found = made.outputs(data.test.x, backend=backend)
    np.testing.assert_array_equal(found, z / model.targets.scale + model.targets.shift)
    np.testing.assert_array_equal(made.predict(data.test.x, backend=backend), found)
    evaluated = made.evaluate(data.test, backend=backend)
    assert evaluated.r2 > 0.9 and evaluated.accuracy is None
    assert evaluated.r2 == pytest.approx(model.evaluate(data.test).r2, abs=0.02)
    assert evaluated == evaluation(model.loss, found, data.test.y)


def test_predictions_are_class_names(backend):
    x = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    names = np.array(["left", "middle", "right"])
    data = mm.datasets.split(x, names[np.digitize(x[:, 0], [-0.5, 0.5])], seed=0)
    made = mm.to_integers(train(data), data)
    predicted = made.predict(data.test.x, backend=backend)
    np.testing.assert_array_equal(predicted, names[made.outputs(data.test.x).argmax(-1)])
    hits = np.mean(predicted == names[data.test.y])
    assert made.evaluate(data.test, backend=backend).accuracy == hits > 0.7


@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, losses.binary_cross_entropy, losses.mean_squared_error])
def test_evaluate_is_the_evaluation_of_the_outputs(backend, population, loss):
    model, x = random_model(population=population, loss=loss), random_rows(4)
    made, data = mm.to_integers(model, splits_of(x)), splits_of(x).test
    if not loss.labels:
        data = data._replace(y=losses.one_hot(data.y, 3, np.float32))
    found = made.evaluate(data, backend=backend)
    for one, other in zip(found, evaluation(loss, made.outputs(x), data.y), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.shape(found.loss) == (() if population is None else (population,))


def test_a_shrunk_model_takes_the_same_raw_rows(backend):
    whole = random_model((6, 8, 3), seed=2)
    whole.params[0].weight[[1, 4]] = 0
    whole.params[1].weight[[0, 5]] = 0
    x = random_rows(6, offset=3.0)
    model = mm.shrink(replace(whole, normalization=mm.datasets.fit_normalization(x)))
    assert model.network.layer_sizes == (4, 6, 3) and model.features == 6
    made = mm.to_integers(model, splits_of(x))
    found, z = made.outputs(x, backend=backend), model.outputs(x)
    assert np.abs(found - z).max() < 0.02 * np.abs(z).max()
    x[:, [1, 4]] = -1e30
    np.testing.assert_array_equal(made.outputs(x, backend=backend), found)
    assert made.evaluate(splits_of(x).test).loss == evaluation(model.loss, found, splits_of(x).test.y).loss


def test_pixels_are_rows_too(backend):
    pixels = np.random.default_rng(0).integers(0, 256, size=(30, 4)).astype(np.uint8)
    model = random_model(normalization=mm.datasets.fit_normalization(pixels))
    assert model.normalization.shift.shape == (1,)
    found = mm.to_integers(model, splits_of(pixels)).integers(pixels, backend=backend)
    same = mm.to_integers(model, splits_of(pixels.astype(np.float32))).integers(pixels.astype(np.float32))
    np.testing.assert_array_equal(found, same)


def test_ranges_are_of_every_layer_and_of_few_rows(monkeypatch):
    """``range_of`` gets the inputs, and of each hidden layer what is rounded: activations, and sums before a table."""
    monkeypatch.setattr(samples, "ROWS", 10)
    x, seen = random_rows(4, 30), []

    def spy(values, missed):
        seen.append(values)
        return ranges.min_max(values, missed)

    for activation, count in (("relu", 2), ("tanh", 3)):
        seen.clear()
        model = random_model((4, 5, 3), activation)
        made = mm.to_integers(model, splits_of(x), range_of=spy)
        used = with_weights(model, own_weights(model, False))
        steps = forward(model.network, used.params, seen[0])
        assert len(seen) == count and seen[0].shape == (10, 4)
        chosen = [row.tolist() for row in x].index(seen[0][-1].tolist())
        assert chosen >= 10 and all(row in x for row in seen[0])  # from all rows, not the first
        assert len(np.unique(seen[0], axis=0)) == 10
        np.testing.assert_array_equal(seen[1], steps[1].f)
        if activation == "tanh":
            np.testing.assert_array_equal(seen[2], steps[0].z)
        for scale, values in zip(made.scales, seen[:2], strict=True):
            s, z, low, high = literal_scale(values, 8, False)
            assert (scale.scale, scale.zero_point, scale.low, scale.high) == (s, z, low, high)


def test_the_given_model_is_not_touched():
    model, x = random_model(kind="integers"), random_rows(4)
    before, rows = model.dumps(), x.copy()
    mm.to_integers(model, splits_of(x)).outputs(x)
    assert model.dumps() == before
    np.testing.assert_array_equal(x, rows)


def test_what_does_not_fit_is_refused():
    model, x = random_model(), random_rows(4)
    data = splits_of(x)
    for bad in (x, data.train, None):
        with pytest.raises(TypeError, match="data: expected Splits, got " + type(bad).__name__):
            mm.to_integers(model, bad)
    for bits in (1, 9, 4.0, "8", True, None):
        with pytest.raises(ValueError, match="bits: expected an integer from 2 to 8"):
            mm.to_integers(model, data, bits=bits)
    with pytest.raises(ValueError, match=r"x: expected \(n, 4\), got \(40, 5\)"):
        mm.to_integers(model, splits_of(random_rows(5)))
    made = mm.to_integers(model, data)
    with pytest.raises(ValueError, match=r"x: expected \(n, 4\), got \(40, 5\)"):
        made.outputs(random_rows(5))
    with pytest.raises(ValueError, match=r"network takes \(n, 4\)"):
        made.evaluate(splits_of(random_rows(5)).test)


@pytest.mark.parametrize("how", [{"scheme": "asymmetric"}, {"granularity": 2}, {"scheme": "codebook"}])
def test_weights_without_one_symmetric_scale_are_refused(how):
    data = splits_of(random_rows(4))
    model = mm.quantize(random_model(), data, seed=0, bits=4, epochs=0, **how)
    with pytest.raises(
        ValueError, match="takes symmetric weights with a scale for each tensor or output; quantize with"
    ):
        mm.to_integers(model, data)


def test_shifts_of_other_scales_are_refused():
    model, data = random_model(kind="integers"), splits_of(random_rows(4))
    mm.to_integers(model, data)
    with pytest.raises(ValueError, match="shift: the scales of these weights are no powers of two"):
        mm.to_integers(model, data, shift=True)


def test_shifts_to_the_left_are_refused():
    """Large terms that cancel: the sums would need more bits after the rescaling than before."""
    x = np.repeat(random_rows(1, scale=1000.0), 2, axis=1)
    hidden = mm.Layer(np.array([[1], [-1]], np.float32), np.array([0.5], np.float32))
    params = (hidden, mm.Layer(np.ones((1, 1), np.float32), np.zeros(1, np.float32)))
    model = Model(mm.Network((2, 1, 1)), params, losses.mean_squared_error)
    assert mm.to_integers(model, splits_of(x)).layers[0].multiplier > 1
    with pytest.raises(ValueError, match="shift: expected shifts by 0 to 30 bits, got -"):
        mm.to_integers(model, splits_of(x), shift=True)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_bias_beyond_int32_is_refused(sign):
    """With the longest sum that the weights could add to it, here more than 2^14."""
    model, x = random_model(), random_rows(4)
    unit, size = mm.to_integers(model, splits_of(x)).units[0][1], 4 * 128 * 127
    for sums, fits in ((2**31 - size - 2**12, True), (2**31 - 2**12, False), (2**31 + 2**12, False)):
        model.params[0].bias[1] = sign * unit * np.float32(sums)
        if fits:
            made = mm.to_integers(model, splits_of(x))
            assert abs(made.layers[0].bias[1]) > 2**30
            continue
        with pytest.raises(ValueError, match="do not fit int32; the bias is too large"):
            mm.to_integers(model, splits_of(x))
