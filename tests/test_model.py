"""Model: predictions and figures in the data's own units, the file and its size."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, model, qarray, ranges, tree
from minimodel.compress.calibration import calibrate
from minimodel.model import Model
from minimodel.search.programs import State

NETWORK = mm.Network((4, 5, 3))


def random_model(network=NETWORK, population=None, seed=0, loss=losses.softmax_cross_entropy, **fields):
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    params = tuple(
        mm.Layer(*(rng.normal(size=(*lead, *shape)).astype(np.float32) for shape in (pair, pair[1:])))
        for pair in network.shapes
    )
    return Model(network, params, loss, **fields)


def compressed(subject, density=None, bits=None, scheme="symmetric", granularity="channel", seed=0):
    """The model with random masks and integers of its weights."""
    rng = np.random.default_rng(seed)
    masks = None
    if density is not None:
        masks = tuple(rng.uniform(size=layer.weight.shape) < density for layer in subject.params)
        params = tuple(
            mm.Layer(layer.weight * mask, layer.bias) for layer, mask in zip(subject.params, masks, strict=True)
        )
        subject = replace(subject, params=params, masks=masks)
    if bits is None:
        return subject
    quantized = tuple(
        qarray.quantize(
            layer.weight,
            calibrate(layer.weight, bits, scheme=scheme, granularity=granularity, range_of=ranges.min_max),
        )
        for layer in subject.params
    )
    if masks is not None:  # at 1 bit 0 has no sign
        quantized = tuple(
            q._replace(values=np.where(mask, q.values, qarray.spread(q.zero_point, mask.shape[-2])))
            for q, mask in zip(quantized, masks, strict=True)
        )
    params = tuple(
        mm.Layer(qarray.dequantize(q), layer.bias) for q, layer in zip(quantized, subject.params, strict=True)
    )
    return replace(subject, params=params, quantized=quantized, bits=bits)


def classification(**fields):
    rng = np.random.default_rng(1)
    x = (5 + 3 * rng.normal(size=(50, 4))).astype(np.float32)
    y = rng.integers(0, 3, 50)
    return random_model(normalization=mm.datasets.fit_normalization(x), **fields), mm.Dataset(x, y)


def regression(population=None, outputs=3):
    rng = np.random.default_rng(1)
    x = (5 + 3 * rng.normal(size=(50, 4))).astype(np.float32)
    y = (1000 + 50 * rng.normal(size=(50, outputs))).astype(np.float32)
    fit = mm.datasets.fit_normalization
    found = random_model(
        mm.Network((4, 5, outputs)),
        population,
        loss=losses.mean_squared_error,
        normalization=fit(x),
        targets=fit(y),
    )
    return found, mm.Dataset(x, y)


def assert_same_model(found, expected):
    for name in ("network", "loss", "classes", "bits", "population"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("params", "quantized", "normalization", "targets"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        for a, b in zip(tree.leaves(one), tree.leaves(other), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            np.testing.assert_array_equal(a, b)
    assert (found.masks is None) == (expected.masks is None)
    for a, b, layer in zip(found.masks or (), expected.masks or (), expected.params, strict=False):
        assert a.dtype == bool
        np.testing.assert_array_equal(a, np.broadcast_to(b, layer.weight.shape))


# The file


@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    population=st.sampled_from([None, 1, 3]),
    density=st.sampled_from([None, 0.0, 0.3, 1.0]),
    bits=st.sampled_from([None, *range(1, 9)]),
    scheme=st.sampled_from(qarray.SCHEMES),
    granularity=st.sampled_from(["channel", "tensor", 1, 3]),
    activation=st.sampled_from(["relu", "tanh", "gelu"]),
    loss=st.sampled_from([losses.softmax_cross_entropy, losses.mean_squared_error, losses.huber(0.3)]),
    seed=st.integers(0, 2**16),
)
def test_what_is_saved_is_what_is_loaded(sizes, population, density, bits, scheme, granularity, activation, loss, seed):
    network = mm.Network(tuple(sizes), activation, "glorot")
    rng = np.random.default_rng(seed)
    normalization = mm.datasets.fit_normalization(rng.normal(size=(9, sizes[0])).astype(np.float32))
    subject = random_model(network, population, seed, loss, normalization=normalization)
    if loss.labels:
        subject = replace(subject, classes=tuple(f"class {i}" for i in range(sizes[-1])))
    else:
        subject = replace(subject, targets=mm.Normalization(np.ones(1, np.float32), np.full(1, 0.1, np.float32)))
    subject = compressed(subject, density, bits, scheme, granularity)
    raw = subject.dumps()
    found = model.loads(raw)
    assert_same_model(found, subject)
    assert found.dumps() == raw
    x = rng.normal(size=(6, sizes[0]))
    np.testing.assert_array_equal(found.outputs(x), subject.outputs(x))


@pytest.mark.parametrize("names", [("ä", "日本"), ('"', "\\"), ("", " "), ("a\nb", "\0")])
def test_class_names_of_any_text(names):
    subject = random_model(mm.Network((2, 2)), classes=names)
    assert model.loads(subject.dumps()).classes == names


def test_masks_without_the_population_axis_are_saved_for_every_member():
    subject = random_model(population=3)
    masks = tuple(np.random.default_rng(0).uniform(size=shape) < 0.5 for shape in NETWORK.shapes)
    params = tuple(mm.Layer(layer.weight * mask, layer.bias) for layer, mask in zip(subject.params, masks, strict=True))
    subject = replace(subject, params=params, masks=masks)
    assert_same_model(model.loads(subject.dumps()), subject)


def test_a_trained_pruned_quantized_model_there_and_back(splits, population, tmp_path):
    trained = mm.gradient_descent(NETWORK, splits, seed=0, epochs=2, population=population)
    pruned = mm.prune(trained, splits, seed=0, sparsity=0.5, epochs=1)
    small = mm.quantize(pruned, splits, seed=0, bits=3, scheme="asymmetric", epochs=1)
    for subject in (trained, pruned, small):
        subject.save(tmp_path / "m")
        found = mm.load(tmp_path / "m")
        assert_same_model(found, subject)
        assert found.history == {}
        np.testing.assert_array_equal(found.predict(splits.test.x), subject.predict(splits.test.x))


def test_the_size_is_that_on_disk(tmp_path):
    for subject in (random_model(), compressed(random_model(), 0.3, 4), random_model(population=2)):
        subject.save(tmp_path / "m")
        assert (tmp_path / "m").stat().st_size == subject.nbytes


BIG = mm.Network((784, 300, 100, 10))


def test_a_tenth_of_the_weights_at_four_bits_is_fifteen_times_smaller():
    small = compressed(random_model(BIG), density=0.1, bits=4)
    assert small.nbytes < 4 * BIG.parameters / 15
    assert random_model(BIG).nbytes == pytest.approx(4 * BIG.parameters, rel=0.001)


def test_the_size_falls_with_bits_and_with_sparsity():
    network = mm.Network((100, 50, 10))
    subject = random_model(network)
    by_bits = [subject.nbytes, *(compressed(subject, bits=bits).nbytes for bits in range(8, 1, -1))]
    assert all(less < more for more, less in pairwise(by_bits))
    for bits in (None, 4):
        by_density = [compressed(subject, density, bits).nbytes for density in (0.7, 0.5, 0.3, 0.1, 0.01)]
        assert all(less < more for more, less in pairwise(by_density))


SCRIPT = """
import hashlib, numpy as np, minimodel as mm
x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
data = mm.datasets.split(x, (x[:, 0] > 0).astype(int), seed=0)
model = mm.gradient_descent(mm.Network((4, 6, 2)), data, seed=0, epochs=2)
model = mm.quantize(mm.prune(model, data, seed=0, sparsity=0.5, epochs=1), data, seed=0, bits=4, epochs=1)
print(hashlib.sha256(model.dumps()).hexdigest())
"""


def test_the_same_model_gives_the_same_bytes_in_every_process():
    """Hash randomisation, for one, must not reach the file."""
    digests = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1 and len(digests.pop()) == 65
    subject = compressed(random_model(), 0.4, 5)
    assert {hashlib.sha256(subject.dumps()).hexdigest() for _ in range(3)} == {
        hashlib.sha256(model.loads(subject.dumps()).dumps()).hexdigest()
    }


# Predictions and figures


def test_outputs_are_those_of_the_network_by_hand():
    subject, data = classification()
    (w1, b1), (w2, b2) = ((layer.weight.astype(float), layer.bias.astype(float)) for layer in subject.params)
    x = (data.x - data.x.mean(0, dtype=float)) / data.x.std(0, dtype=float)
    expected = np.maximum(x @ w1 + b1, 0) @ w2 + b2
    np.testing.assert_allclose(subject.outputs(data.x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(subject.predict(data.x), expected.argmax(1))


def test_labels_have_their_names():
    subject, data = classification(classes=("cat", "dog", "owl"))
    numbers = replace(subject, classes=None).predict(data.x)
    assert numbers.dtype.kind == "i" and set(numbers.tolist()) <= {0, 1, 2}
    assert subject.predict(data.x).tolist() == [("cat", "dog", "owl")[i] for i in numbers]
    assert subject.evaluate(data).accuracy == np.mean(numbers == data.y)


def test_accuracy_and_loss_are_those_of_sklearn(oracle):
    metrics = oracle("sklearn.metrics")
    subject, data = classification()
    found = subject.evaluate(data)
    z = subject.outputs(data.x).astype(float)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert found.accuracy == metrics.accuracy_score(data.y, subject.predict(data.x))
    assert found.loss == pytest.approx(metrics.log_loss(data.y, p), rel=1e-5)
    assert found.r2 is None


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_regression_is_measured_in_the_units_of_y(oracle, outputs):
    metrics = oracle("sklearn.metrics")
    subject, data = regression(outputs=outputs)
    predicted = subject.predict(data.x)
    z = replace(subject, targets=None).predict(data.x)
    np.testing.assert_allclose(predicted, z / subject.targets.scale + subject.targets.shift, rtol=1e-5)
    assert predicted.mean() == pytest.approx(1000, abs=500)
    found = subject.evaluate(data)
    assert found.accuracy is None
    assert found.loss == pytest.approx(metrics.mean_squared_error(data.y, predicted), rel=1e-4)
    expected = metrics.r2_score(data.y, predicted, multioutput="uniform_average")
    assert found.r2 == pytest.approx(expected, rel=1e-4)


def test_targets_of_one_dimension_are_one_output():
    subject, data = regression(outputs=1)
    assert subject.evaluate(mm.Dataset(data.x, data.y[:, 0])) == subject.evaluate(data)


def test_a_target_that_does_not_vary_has_no_r2():
    subject, data = regression()
    found = subject.evaluate(mm.Dataset(data.x, np.full_like(data.y, 2.0)))
    assert found.r2 is None and found.loss > 0


def test_binary_cross_entropy_decides_at_one_half():
    rng = np.random.default_rng(0)
    subject = random_model(loss=losses.binary_cross_entropy)
    x, y = rng.normal(size=(40, 4)), rng.integers(0, 2, size=(40, 3)).astype(np.float32)
    z = subject.outputs(x)
    np.testing.assert_array_equal(subject.predict(x), (z > 0).astype(np.float32))
    assert subject.evaluate(mm.Dataset(x, y)).accuracy == np.mean((z > 0) == (y > 0.5))


@pytest.mark.parametrize("make", [lambda: classification()[0], lambda: regression()[0]])
def test_a_member_is_that_network(make):
    subject = make()
    many = random_model(
        subject.network, 3, loss=subject.loss, normalization=subject.normalization, targets=subject.targets
    )
    many = compressed(
        replace(many, history={"loss": np.arange(6.0).reshape(2, 3), "learning_rate": np.ones(2)}), 0.5, 4
    )
    x = np.random.default_rng(3).normal(size=(20, 4))
    assert many.population == 3
    for i in range(3):
        one = many.member(i)
        assert one.population is None
        np.testing.assert_allclose(one.outputs(x), many.outputs(x)[i], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(one.params[0].weight, many.params[0].weight[i])
        np.testing.assert_array_equal(one.quantized[1].values, many.quantized[1].values[i])
        np.testing.assert_array_equal(one.masks[1], many.masks[1][i])
        assert one.history["loss"].tolist() == [i, 3 + i]
        assert one.history["learning_rate"].tolist() == [1, 1]
        assert_same_model(model.loads(one.dumps()), one)


# The best of a population


@pytest.mark.parametrize(
    ("kept", "best"), [([3, 2, 1], 2), ([0.5, 1, 2], 0), ([np.inf, 7, np.inf], 1), ([2, 1, 1], 1), ([np.inf] * 3, 0)]
)
def test_the_best_member_is_that_of_the_lowest_validation_loss(kept, best):
    """Of equals the first."""
    subject = random_model(population=3)
    found = replace(
        subject, state=State(subject.params, None, subject.params, np.array(kept, np.float32), subject.params)
    ).best()
    assert found.population is None and found.state is None
    np.testing.assert_array_equal(found.params[0].weight, subject.params[0].weight[best])


def test_a_member_that_was_never_finite_is_never_the_best(splits, backend):
    """Infinite outputs cost ∞ − ∞ = NaN, in the first epoch and in all others."""
    start = NETWORK.init(mm.random.key([1, 2, 3]))
    for leaf in tree.leaves(start):
        leaf[0] = 3e38
    with pytest.warns(RuntimeWarning, match=r"members \[0\] diverged"):
        found = mm.gradient_descent(NETWORK, splits, seed=0, population=3, params=start, epochs=2, backend=backend)
    assert not np.isfinite(found.history["validation_loss"][:, 0]).any()
    with np.errstate(over="ignore", invalid="ignore"):
        kept = found.evaluate(splits.validation).loss
    np.testing.assert_array_equal(found.best().params[0].weight, found.params[0].weight[np.nanargmin(kept)])


def test_the_best_of_a_training_is_the_best_on_validation(splits):
    """Also of members that diverged, were pruned and were quantized; never by the test part."""
    optimizer = mm.optimizers.adam(np.array([1e-3, 0.05, 0.02]))
    trained = mm.gradient_descent(NETWORK, splits, seed=0, epochs=4, population=3, optimizer=optimizer)
    pruned = mm.prune(trained, splits, seed=0, sparsity=0.7, schedule="gradual", epochs=4)
    small = mm.quantize(pruned, splits, seed=0, bits=3, epochs=1)
    for subject in (trained, pruned, small):
        losses_found = subject.evaluate(splits.validation).loss
        assert subject.best().evaluate(splits.validation).loss == pytest.approx(losses_found.min(), rel=1e-5)
        assert subject.best().predict(splits.test.x).shape == splits.test.y.shape


@pytest.mark.filterwarnings("ignore:prune. no kept weight")
def test_the_best_of_pruned_members_is_the_best_of_what_they_are_now(splits):
    """What they were before the last masks is in the history, and gone."""
    optimizer = mm.optimizers.adam(0.05)
    trained = mm.gradient_descent(NETWORK, splits, seed=0, epochs=8, population=4, optimizer=optimizer)
    pruned = mm.prune(
        trained, splits, seed=0, sparsity=0.9, schedule="gradual", epochs=2, optimizer=mm.optimizers.sgd(0.0)
    )
    kept = pruned.evaluate(splits.validation).loss
    assert pruned.history["validation_loss"].min(axis=0).argmin() != kept.argmin()
    assert pruned.best().evaluate(splits.validation).loss == pytest.approx(kept.min(), rel=1e-5)


def test_one_network_is_the_best_of_itself(splits):
    for subject in (random_model(), mm.gradient_descent(NETWORK, splits, seed=0, epochs=1)):
        assert subject.best() is subject


def test_the_best_of_a_population_from_a_file_is_not_known(splits, tmp_path):
    """What it reached is not saved: the message says so, and what to do."""
    mm.gradient_descent(NETWORK, splits, seed=0, epochs=1, population=2).save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"^best: .*not saved; evaluate the members"):
        mm.load(tmp_path / "m").best()


# Figures as text, over a population


@pytest.mark.parametrize("make", [classification, regression])
def test_mean_and_standard_error_are_those_of_scipy(make, oracle):
    stats = oracle("scipy.stats")
    _, data = make()
    subject = random_model(population=5) if make is classification else regression(5)[0]
    found = subject.evaluate(data)
    for name, value in found._asdict().items():
        mean, error = (getattr(part, name) for part in (found.mean(), found.standard_error()))
        if value is None:
            assert mean is None and error is None
        else:
            assert type(mean) is type(error) is float
            assert mean == pytest.approx(np.mean(value, dtype=np.float64), rel=1e-12)
            assert error == pytest.approx(stats.sem(value.astype(np.float64)), rel=1e-12)


def test_one_network_has_no_standard_error():
    subject, data = classification()
    for found in (
        subject.evaluate(data),
        replace(subject, params=tree.map(lambda leaf: leaf[None], subject.params)).evaluate(data),
    ):
        assert found.mean() == mm.Evaluation(float(np.max(found.loss)), float(np.max(found.accuracy)))
        error = found.standard_error()
        assert np.isnan(error.loss) and np.isnan(error.accuracy) and error.r2 is None


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (mm.Evaluation(0.123456, 0.5), "loss 0.1235, accuracy 0.5000"),
        (mm.Evaluation(np.float32(2), r2=-0.25), "loss 2.0000, r2 -0.2500"),
        (mm.Evaluation(1.5), "loss 1.5000"),
        (mm.Evaluation(np.array([1.0, 2.0]), np.array([0.5, 0.5])), "loss 1.5000 ± 0.5000, accuracy 0.5000 ± 0.0000"),
        (mm.Evaluation(np.array([1.0])), "loss 1.0000"),
    ],
)
def test_figures_as_text(found, text):
    assert str(found) == text
    assert f"{found}" == text


def test_a_single_network_has_no_members():
    with pytest.raises(ValueError, match="not a population"):
        random_model().member(0)


def test_a_population_is_evaluated_member_by_member():
    for make in (classification, regression):
        _, data = make()
        many = regression(3)[0] if make is regression else random_model(population=3)
        found = many.evaluate(data)
        for i in range(3):
            one = many.member(i).evaluate(data)
            for a, b in zip(found, one, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a[i] == pytest.approx(b, rel=1e-4)


def test_rows_in_chunks_give_the_same_outputs(monkeypatch):
    for subject, data in (classification(), regression(), regression(2)):
        whole, figures = subject.outputs(data.x), subject.evaluate(data)
        with monkeypatch.context() as patch:
            patch.setattr(model, "ROWS", 7)
            np.testing.assert_allclose(subject.outputs(data.x), whole, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(subject.evaluate(data).loss, figures.loss, rtol=1e-5)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_many_rows(extra):
    x = np.random.default_rng(0).normal(size=(model.ROWS + extra, 4))
    subject = random_model()
    found = subject.outputs(x)
    assert found.shape == (model.ROWS + extra, 3)
    np.testing.assert_allclose(found[-3:], subject.outputs(x[-3:]), rtol=1e-5, atol=1e-5)


def test_pixels_as_bytes_and_as_floats_are_the_same():
    x = np.random.default_rng(0).integers(0, 256, size=(20, 4)).astype(np.uint8)
    subject = random_model(normalization=mm.datasets.fit_normalization(x))
    np.testing.assert_array_equal(subject.outputs(x), subject.outputs(x.astype(np.float64)))
    plain = random_model()
    np.testing.assert_array_equal(plain.outputs(x), plain.outputs(x.astype(np.float32)))


def test_nonzero_counts_weights_and_biases():
    subject = random_model()
    assert subject.nonzero == NETWORK.parameters
    params = (mm.Layer(subject.params[0].weight * 0, subject.params[0].bias), subject.params[1])
    assert replace(subject, params=params).nonzero == NETWORK.parameters - 20


@pytest.mark.parametrize("fields", [{}, {"normalization": mm.datasets.fit_normalization(np.eye(4, dtype=np.float32))}])
@pytest.mark.parametrize("shape", [(3, 5), (3, 1), (3, 3), (3, 2, 4)])
def test_another_number_of_features_is_refused(fields, shape):
    """The message says how many features the model takes and what came."""
    with pytest.raises(ValueError, match=r"(?s)expected.*4.*got|takes.*4.*got"):
        random_model(**fields).predict(np.zeros(shape))


@pytest.mark.parametrize(
    "x",
    [
        np.full((3, 4), np.nan),
        np.array([[0, 0, 0, np.inf]]),
        np.full((2, 4), 1e300),
        np.zeros(4),
        np.zeros((0, 4)),
        np.array([["a"] * 4]),
        np.array([[None] * 4]),
        None,
        3.0,
    ],
)
def test_x_that_is_no_finite_table_is_refused(x):
    with pytest.raises(ValueError, match="x: "):
        random_model().predict(x)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(49, int), "one length"),
        (np.full(50, 3), "labels"),
        (np.full(50, -1), "labels"),
        (np.zeros(50), "labels"),
        (np.zeros((50, 3)), "labels"),
        (np.full(50, np.nan), "NaN"),
    ],
)
def test_labels_that_do_not_fit_are_refused(y, message):
    subject, data = classification()
    with pytest.raises(ValueError, match=message):
        subject.evaluate(mm.Dataset(data.x, y))


@pytest.mark.parametrize("y", [np.zeros((50, 2)), np.zeros(50), np.full((50, 3), np.inf)])
def test_targets_that_do_not_fit_are_refused(y):
    subject, data = regression()
    with pytest.raises(ValueError):
        subject.evaluate(mm.Dataset(data.x, y))
