"""ONNX files: the integers of an ``IntegerModel`` to the bit in two runtimes, a ``Model`` within rounding."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minimodel as mm
from minimodel import activations, losses, qarray, ranges
from minimodel.activations import ACTIVATIONS, STEPPED
from minimodel.compress.calibration import calibrate
from minimodel.compress.integer import IntegerLayer, rescaled
from minimodel.model import Model


@pytest.fixture(scope="session")
def onnx(oracle):
    return oracle("onnx")


@pytest.fixture(scope="session")
def runtime(onnx, oracle):
    """(file, rows) -> outputs by ONNX Runtime, every operator as it is written."""
    ort = oracle("onnxruntime")

    def run(raw, x):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(["outputs"], {"x": x})
        return found

    return run


@pytest.fixture(scope="session")
def reference(onnx, oracle):
    """(file, rows) -> outputs by the definitions of the operators."""
    evaluator = oracle("onnx.reference").ReferenceEvaluator
    return lambda raw, x: evaluator(onnx.load_from_string(raw)).run(["outputs"], {"x": x})[0]


def test_rescaling_is_that_of_qlinearmatmul(onnx, oracle):
    """Of sums of products of int8, by the reference evaluator, where the scales are powers of two."""
    from onnx import helper

    rng = np.random.default_rng(0)
    q, w = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((50, 30), (30, 8)))
    a, s, after, zero = np.float32(2.0**-5), np.exp2(-rng.integers(3, 9, 8)).astype(np.float32), np.float32(0.25), 7
    names = ("q", "a", "az", "w", "s", "sz", "y", "yz")
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT)
    given = (q, a, np.int8(0), w, s, np.zeros(8, np.int8), after, np.int8(zero))
    inputs = [
        helper.make_tensor_value_info(name, kinds[value.dtype == np.float32], np.shape(value))
        for name, value in zip(names, given, strict=True)
    ]
    output = helper.make_tensor_value_info("out", kinds[0], (50, 8))
    graph = helper.make_graph([helper.make_node("QLinearMatMul", names, ["out"])], "one", inputs, [output])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    expected = oracle("onnx.reference").ReferenceEvaluator(made).run(None, dict(zip(names, given, strict=True)))[0]
    ends = [np.full(1, value, np.int32) for value in (zero, -128, 127)]
    layer = IntegerLayer(w, np.zeros(8, np.int32), a * s / after, *ends, None)
    np.testing.assert_array_equal(rescaled(q.astype(np.int32) @ w.astype(np.int32), layer), expected)
    assert len(np.unique(expected)) > 50


def random_model(sizes=(4, 6, 5, 3), activation="relu", seed=0, **fields):
    rng, network = np.random.default_rng(seed), mm.Network(sizes, activation)
    params = tuple(
        mm.Layer(rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32))
        for shape in network.shapes
    )
    return Model(network, params, fields.pop("loss", losses.softmax_cross_entropy), **fields)


def random_rows(features=4, count=40, seed=1, scale=1.0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(count, features)) * scale + offset).astype(np.float32)


def splits_of(x):
    """Data whose training rows are x."""
    part = mm.Dataset(x, (np.arange(len(x)) % 3).astype(np.int32))
    return mm.Splits(part, part, part)


def in_integers(model, bits, *, powers=False):
    """The model with integers of its own."""
    quantizers = [calibrate(layer.weight, bits, power_of_two=powers) for layer in model.params]
    quantized = tuple(qarray.quantize(layer.weight, q) for layer, q in zip(model.params, quantizers, strict=True))
    pairs = zip(quantized, model.params, strict=True)
    params = tuple(mm.Layer(qarray.dequantize(q), layer.bias) for q, layer in pairs)
    return replace(model, params=params, quantized=quantized, bits=bits)


def assert_close(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


def assert_same(found, expected):
    """To the bit."""
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


# The floats

FITTED = {
    "none": lambda x: None,
    "feature": mm.datasets.fit_normalization,
    "shared": lambda x: mm.datasets.fit_normalization((16 * x).astype(np.uint8)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fitted", FITTED)
def test_floats_are_those_of_the_model(runtime, activation, fitted):
    x = np.abs(random_rows(scale=3.0, offset=5.0))
    model = random_model(activation=activation, normalization=FITTED[fitted](x))
    assert fitted == "none" or model.normalization.shift.shape == ((4,) if fitted == "feature" else (1,))
    assert_close(runtime(mm.to_onnx(model), x), model.outputs(x))


@pytest.mark.parametrize("activation", STEPPED)
def test_floats_of_few_bits_are_those_of_the_model(runtime, activation):
    """Sums that are exact, so that both round the same numbers, halves among them."""
    model, x = dyadic(activation, 0, (4, 6, 3)), np.round(random_rows(scale=2.0)) / 8
    assert_close(runtime(mm.to_onnx(model), x), model.outputs(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_floats_far_from_zero(runtime, activation):
    x = random_rows(scale=1e3)
    model = random_model(activation=activation)
    assert_close(runtime(mm.to_onnx(model), x), model.outputs(x))


def shrunk(x, **fields):
    """A model that looks at the features 0, 2, 3 and 5 of 6."""
    whole = random_model((6, 7, 3), seed=3, normalization=mm.datasets.fit_normalization(x), **fields)
    whole.params[0].weight[[1, 4]] = 0
    whole.params[1].weight[2] = 0
    model = mm.shrink(whole)
    assert model.network.layer_sizes == (4, 6, 3) and np.flatnonzero(model.inputs).tolist() == [0, 2, 3, 5]
    return model


def test_a_shrunk_model_takes_all_raw_features(runtime):
    x = random_rows(6, offset=2.0)
    model = shrunk(x)
    raw = mm.to_onnx(model)
    found = runtime(raw, x)
    assert_close(found, model.outputs(x))
    x[:, [1, 4]] = -1e30
    assert_same(runtime(raw, x), found)


@pytest.mark.parametrize("form", ["float", "integer", "qdq", "qoperator"])
def test_targets_are_turned_back(runtime, form):
    """Also those of features that shrinking left."""
    x = random_rows(6, offset=2.0)
    targets = mm.datasets.fit_normalization(random_rows(3, scale=50.0, offset=700.0))
    model = in_integers(shrunk(x, loss=losses.mean_squared_error, targets=targets), 7)
    made = model if form == "float" else mm.to_integers(model, splits_of(x))
    found = runtime(mm.to_onnx(made) if form == "float" else mm.to_onnx(made, form=form), x)
    expected = made.outputs(x)
    assert np.abs(expected.mean() - 700) < 300 and expected.std() > 10
    (assert_close if form in ("float", "qdq") else assert_same)(found, expected)


def test_quantized_weights_without_integers_for_activations_are_floats(runtime):
    model, x = in_integers(random_model(), 4), random_rows()
    assert_close(runtime(mm.to_onnx(model), x), model.outputs(x))


# The integers

MODELS = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 8), min_size=2, max_size=4).map(tuple),
        "activation": st.sampled_from(activations.NAMES),
        "seed": st.integers(0, 2**16),
    }
)


@settings(max_examples=40)
@given(MODELS, st.sampled_from([2, 4, 8]), st.booleans(), st.booleans(), st.sampled_from([0.1, 1.0, 20.0]))
def test_integers_are_the_same_everywhere(runtime, reference, options, bits, shift, normal, scale):
    """Weights of 7 bits: there are machines whose products of 8 bits saturate in pairs."""
    model, x = random_model(**options), random_rows(options["sizes"][0], scale=scale, offset=0.5)
    model = replace(model, normalization=mm.datasets.fit_normalization(x) if normal else None)
    shift = shift and options["activation"] not in STEPPED
    made = mm.to_integers(in_integers(model, 7, powers=shift), splits_of(x), bits=bits, shift=shift)
    raw, x = mm.to_onnx(made), np.concatenate([x, 9 * x[:5]])
    expected = made.outputs(x)
    assert_same(runtime(raw, x), expected)
    assert_same(reference(raw, x), expected)


@pytest.mark.parametrize(
    ("activation", "shift"), [(name, False) for name in activations.NAMES] + [(name, True) for name in ACTIVATIONS]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_integers_of_every_activation(runtime, reference, activation, bits, shift):
    """With the model's own 8 bits for the weights by the definitions, with 7 in the runtime."""
    model, x = random_model(activation=activation), random_rows()
    for own, run in ((model, reference), (in_integers(model, 7, powers=shift), runtime)):
        made = mm.to_integers(own, splits_of(x), bits=bits, shift=shift)
        assert_same(run(mm.to_onnx(made, form="integer"), x), made.outputs(x))


def test_integers_of_a_shrunk_model(runtime, reference):
    x = random_rows(6, offset=2.0)
    made = mm.to_integers(in_integers(shrunk(x), 7), splits_of(x))
    for run in (runtime, reference):
        assert_same(run(mm.to_onnx(made), x), made.outputs(x))


@pytest.mark.parametrize("shift", [False, True])
def test_long_sums_are_exact(runtime, reference, shift):
    """784 inputs of which all products are of one sign, and a bias: the sums are beyond 2²⁴, where float32 is not."""
    rng = np.random.default_rng(0)
    weight = (np.abs(rng.normal(size=(784, 3))) + 1).astype(np.float32)
    bias = np.array([-9000, 5000, 400], np.float32)
    model = Model(mm.Network((784, 3, 2)), (mm.Layer(weight, bias), random_model((3, 2)).params[0]), losses.huber())
    x = np.abs(random_rows(784)) + np.float32(3)
    made = mm.to_integers(in_integers(model, 7, powers=shift), splits_of(x), shift=shift)
    assert np.abs(made.layers[0].bias).max() > 2**18
    for run in (runtime, reference):
        assert_same(run(mm.to_onnx(made), x), made.outputs(x))


def test_shifts_of_sums_beyond_float32_are_exact(runtime, reference):
    """32½ steps and 1/2²⁰ are 33; in float32 they would be 32½, and round to 32."""
    model, x = in_integers(random_model((4, 1, 1)), 7, powers=True), random_rows()
    made = mm.to_integers(model, splits_of(x), shift=True)
    first, last = made.layers
    acc, k = np.array([65 * 2**19 + 1], np.int32), np.array([20], np.int32)
    first = first._replace(weight=0 * first.weight, bias=acc, multiplier=k, zero_point=0 * first.zero_point)
    made = replace(made, layers=(first, last._replace(weight=last.weight**0, bias=0 * last.bias)))
    np.testing.assert_array_equal(made.integers(x), 33)
    for run in (runtime, reference):
        assert_same(run(mm.to_onnx(made), x), made.outputs(x))


def dyadic(activation, seed, sizes=(4, 8, 6, 3)):
    """Weights of 7 bits in steps of a power of two, with which s_a s_w is exact: m is rounded once, either way."""
    rng, network = np.random.default_rng(seed), mm.Network(sizes, activation)
    quantized, params = [], []
    for shape in network.shapes:
        values = rng.integers(-63, 64, size=shape).astype(np.int8)
        quantized.append(qarray.QArray(values, np.full((1, 1), 2.0**-5, np.float32), np.zeros((1, 1), np.int8)))
        bias = (rng.integers(-31, 32, size=shape[1]) / 16).astype(np.float32)
        params.append(mm.Layer(qarray.dequantize(quantized[-1]), bias))
    return Model(network, tuple(params), losses.softmax_cross_entropy, quantized=tuple(quantized), bits=7)


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("shift", [False, True])
@given(seed=st.integers(0, 2**16), sizes=st.sampled_from([(4, 3), (4, 8, 3), (4, 8, 6, 3)]))
@settings(max_examples=15)
def test_the_runtimes_own_operator_gives_the_same_integers(runtime, activation, shift, seed, sizes):
    model, x = dyadic(activation, seed, sizes), random_rows(seed=seed, scale=2.0)
    made = mm.to_integers(model, splits_of(x), shift=shift)
    raw, x = mm.to_onnx(made, form="qoperator"), np.concatenate([x, 9 * x[:5]])
    assert_same(runtime(raw, x), made.outputs(x))


@pytest.mark.parametrize("form", ["integer", "qoperator"])
@pytest.mark.parametrize("fitted", [None, mm.Normalization(np.zeros(1, np.float32), np.full(1, 0.3, np.float32))])
def test_halves_among_the_inputs_are_rounded_the_same_way(runtime, form, fitted):
    """On a grid within ±m many an x/s is half-way between integers, where x·(1/s) is not x/s."""
    model, grid = replace(dyadic("relu", 0), normalization=fitted), np.arange(-20, 20.5, 0.5, np.float32)
    for end in range(1, 21):
        x = np.clip(np.stack([grid] * 4, axis=1), -end, end)
        made = mm.to_integers(model, splits_of(x))
        assert_same(runtime(mm.to_onnx(made, form=form), x), made.outputs(x))


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_the_runtimes_own_operator_of_other_scales(runtime, splits, activation):
    """It rounds s_a s_w and then m, both to float32: once in a long while an activation is another step."""
    x, equal = splits.train.x, []
    for seed in range(5):
        model = random_model((4, 8, 6, 3), activation, seed, normalization=splits.normalization)
        made = mm.to_integers(mm.quantize(model, splits, seed=0, bits=7, epochs=0), splits)
        found, expected = runtime(mm.to_onnx(made, form="qoperator"), x), made.outputs(x)
        equal.append((found == expected).mean())
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    assert np.mean(equal) > 0.99


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("shift", [False, True])
def test_floats_between_quantized_activations(runtime, reference, activation, shift):
    """The same numbers up to the rounding of float32, which now and then moves an activation by a step."""
    for seed in range(5):
        model, x = dyadic(activation, seed), random_rows(scale=2.0)
        made = mm.to_integers(model, splits_of(x), shift=shift)
        raw, expected = mm.to_onnx(made, form="qdq"), made.outputs(x)
        largest = np.abs(expected).max()
        for found in (runtime(raw, x), reference(raw, x)):
            assert found.shape == expected.shape and found.dtype == np.float32
            near = np.isclose(found, expected, rtol=1e-5, atol=2e-6 * largest)
            assert near.mean() > 0.97 and np.abs(found - expected).max() < 0.03 * largest
            first, second = np.sort(expected, axis=1)[:, :-3:-1].T
            clear = first - second > 2 * np.abs(found - expected).max(axis=1)
            assert clear.mean() > 0.8
            np.testing.assert_array_equal(found.argmax(1)[clear], made.predict(x)[clear])


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("bias", [3.0, -700.0])
def test_biases_of_these_forms_are_without_the_zero_points_part(runtime, form, bias):
    """Inputs that are all far from 0, so that z Σq_w is as large as it gets."""
    x = random_rows(offset=20.0)
    model = dyadic("relu", 0)
    model.params[0].bias[:4] = bias
    made = mm.to_integers(model, splits_of(-np.abs(x)))
    assert made.scales[0].zero_point == 127
    found, expected = runtime(mm.to_onnx(made, form=form), -np.abs(x)), made.outputs(-np.abs(x))
    assert np.abs(found - expected).max() <= (0.03 * np.abs(expected).max() if form == "qdq" else 0)


# Files


def file_of(form, activation="relu", **options):
    """Of every form, with what it stands for."""
    model, x = dyadic(activation, 0), random_rows()
    if form == "float":
        return model, mm.to_onnx(model, **options)
    made = mm.to_integers(model, splits_of(x))
    return made, mm.to_onnx(made, form=form, **options)


@pytest.mark.parametrize("form", ["float", "integer", "qdq", "qoperator"])
def test_any_number_of_rows(runtime, form):
    made, raw = file_of(form)
    for count in (1, 2, 1000):
        x = random_rows(count=count)
        found = runtime(raw, x)
        assert found.shape == (count, 3)
        assert np.abs(found - made.outputs(x)).max() < 0.03 * np.abs(found).max()


@pytest.mark.parametrize("form", ["float", "integer", "qdq", "qoperator"])
def test_a_file_is_what_it_says(onnx, form):
    """The checker takes it; what goes in and comes out has its name, type and shape; no operator but QGemm is odd."""
    made = onnx.load_from_string(file_of(form)[1])
    onnx.checker.check_model(made, full_check=form != "qoperator")
    assert made.producer_name == "minimodel"
    for ends, name, size in ((made.graph.input, "x", 4), (made.graph.output, "outputs", 3)):
        (end,) = ends
        rows, columns = end.type.tensor_type.shape.dim
        assert end.name == name and end.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert rows.dim_param and not rows.dim_value and columns.dim_value == size
    operators = {node.op_type for node in made.graph.node}
    assert {node.op_type for node in made.graph.node if node.domain} == ({"QGemm"} if form == "qoperator" else set())
    products = {"float": "Gemm", "integer": "MatMulInteger", "qdq": "Gemm", "qoperator": "QGemm"}
    assert operators & {"Gemm", "MatMulInteger", "QGemm"} == {products[form]}
    assert ("DequantizeLinear" in operators) == (form == "qdq")
    names = [name for node in made.graph.node for name in node.output] + [c.name for c in made.graph.initializer]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_weights_of_integers_take_a_byte_each(onnx, activation, shift):
    made = mm.to_integers(random_model((100, 50, 3), activation), splits_of(random_rows(100)), shift=shift)
    file = onnx.load_from_string(mm.to_onnx(made))
    stored = [onnx.numpy_helper.to_array(constant) for constant in file.graph.initializer]
    weights = [array for array in stored if array.ndim == 2]
    for weight, layer in zip(weights, made.layers, strict=True):
        assert weight.dtype == np.int8
        np.testing.assert_array_equal(weight, layer.weight)
    assert len(mm.to_onnx(made)) < 100 * 50 + 50 * 3 + 4000


@pytest.mark.parametrize("form", ["float", "integer", "qdq", "qoperator"])
def test_a_path_gets_the_bytes_that_are_returned(onnx, tmp_path, form):
    path = tmp_path / "new" / "model.onnx"
    made, raw = file_of(form, path=path)
    assert type(raw) is bytes and path.read_bytes() == raw == file_of(form)[1]
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    options = {} if form == "float" else {"form": form}
    path.write_bytes(b"older")
    assert mm.to_onnx(made, str(path), **options) == raw == path.read_bytes()


def test_a_file_is_written_whole_or_not_at_all(onnx, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        mm.to_onnx(random_model(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"] and path.read_bytes() == b"older"


def test_the_given_model_is_not_touched(onnx):
    model = in_integers(random_model(), 7)
    made, before = mm.to_integers(model, splits_of(random_rows())), model.dumps()
    outputs = made.outputs(random_rows())
    for form in ("integer", "qdq", "qoperator"):
        mm.to_onnx(made, form=form)
    mm.to_onnx(model)
    assert model.dumps() == before
    np.testing.assert_array_equal(made.outputs(random_rows()), outputs)


# What is refused


def test_a_population_is_refused(onnx, tmp_path):
    model, x, path = random_model().members([0, 0]), random_rows(), tmp_path / "model.onnx"
    for several in (model, mm.to_integers(model, splits_of(x))):
        with pytest.raises(ValueError, match=r"population; take one of them with \.member\(i\)"):
            mm.to_onnx(several, path)
    assert not path.exists()
    assert mm.to_onnx(model.member(1)) == mm.to_onnx(random_model())


@pytest.mark.parametrize("form", ["int8", "", None])
@pytest.mark.parametrize("integers", [False, True])
def test_unknown_forms_are_refused(onnx, tmp_path, form, integers):
    model, path = random_model(), tmp_path / "model.onnx"
    made = mm.to_integers(model, splits_of(random_rows())) if integers else model
    with pytest.raises(ValueError, match=r"form: expected one of .*integer, qdq, qoperator, got"):
        mm.to_onnx(made, path, form=form)
    assert not path.exists()


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize(
    ("activation", "bits"), [("tanh", 8), ("leaky_relu", 8), ("gelu", 8), ("relu_8bit", 8), ("relu", 4)]
)
def test_tables_and_fewer_bits_have_one_form_only(onnx, form, activation, bits):
    """QuantizeLinear clips at 8 bits, and there is no operator for a table between."""
    made = mm.to_integers(random_model(activation=activation), splits_of(random_rows()), bits=bits)
    with pytest.raises(ValueError, match=r"only relu and identity with activations of 8 bits .* take form='integer'"):
        mm.to_onnx(made, form=form)
    mm.to_onnx(made, form="integer")


def test_relu_whose_range_begins_below_zero(runtime, reference):
    """In a file too what is negative is 0."""
    model, x = dyadic("relu", 1), random_rows()
    made = mm.to_integers(model, splits_of(x), range_of=lambda v, m: tuple(2 * end for end in ranges.min_max(v - 1, m)))
    z = model.outputs(x)
    for form in ("integer", "qdq", "qoperator"):
        found = runtime(mm.to_onnx(made, form=form), x)
        assert np.abs(found - z).max() < 0.1 * np.abs(z).max(), form
