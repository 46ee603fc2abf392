"""Distillation against torch in float64, against training on the teacher's outputs, and within every algorithm."""

from dataclasses import replace

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses, optimizers, tree
from minimodel.model import Model

CROSS, SQUARED, BINARY = losses.softmax_cross_entropy, losses.mean_squared_error, losses.binary_cross_entropy
NETWORK = mm.Network((4, 5, 3))
FAST = {"seed": 0, "epochs": 3, "batch_size": 16, "optimizer": optimizers.momentum(0.05)}
pytestmark = pytest.mark.filterwarnings("ignore:prune. no kept weight")


def random_model(loss=CROSS, population=None, sizes=(4, 6, 3), seed=7, **fields):
    """A teacher that knows nothing, with outputs far from 0."""
    network, lead, rng = mm.Network(sizes), () if population is None else (population,), np.random.default_rng(seed)
    params = tuple(
        mm.Layer(*(rng.normal(size=(*lead, *shape)).astype(np.float32) for shape in (pair, pair[1:])))
        for pair in network.shapes
    )
    return Model(network, params, loss, **fields)


def task(loss=CROSS, rows=96):
    """Data that the loss takes."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    z = x @ rng.normal(size=(4, 3))
    y = (
        z.argmax(1)
        if loss.labels
        else (z > 0).astype(np.float32)
        if loss is BINARY
        else (10 + 4 * z).astype(np.float32)
    )
    data = mm.datasets.split(x, y, seed=0)
    return replace(data, targets=None) if loss is BINARY else data


@pytest.fixture(scope="module")
def data():
    return task()


def assert_same_params(one, other, **tolerance):
    for a, b in zip(tree.leaves(one.params), tree.leaves(other.params), strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


# The loss


def torch_loss(torch, name, z, t, s, weight, temperature):
    """(1 − α)·ℓ(z, t) + α·T²·D(z/T, s) of each row; D is the divergence KL for classes and ℓ for all else."""
    f = torch.nn.functional
    if name == "softmax_cross_entropy":
        hard = -(t * f.log_softmax(z, -1)).sum(-1)
        soft = f.kl_div(f.log_softmax(z / temperature, -1), s, reduction="none").sum(-1)
    else:
        own = {
            "mean_squared_error": f.mse_loss,
            "binary_cross_entropy": f.binary_cross_entropy_with_logits,
            "huber": lambda *args, reduction: f.huber_loss(*args, reduction=reduction, delta=0.7),
        }[name]
        hard, soft = own(z, t, reduction="none").mean(-1), own(z / temperature, s, reduction="none").mean(-1)
    return (1 - weight) * hard + weight * temperature**2 * soft


@pytest.mark.parametrize("loss", [CROSS, SQUARED, BINARY, losses.huber(0.7)], ids=lambda loss: loss.name)
@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.5, 4.0), (1.0, 0.5), (0.9, 20.0)])
def test_the_loss_and_its_gradient_are_those_of_torch(oracle, population, loss, weight, temperature):
    """Of classes up to α·T²·Σ s log s, which no output changes."""
    torch = oracle("torch")
    rng, lead = np.random.default_rng(0), () if population is None else (population,)
    z = 3 * rng.normal(size=(*lead, 7, 3))
    s = losses.softmax(rng.normal(size=(7, 3))) if loss.labels else rng.uniform(size=(7, 3))
    t = np.eye(3)[rng.integers(0, 3, 7)] if loss.labels else rng.uniform(size=(7, 3))
    found, slope = losses.distilled(loss, weight, temperature).rows(z.copy(), np.concatenate([t, s], axis=-1))
    at = torch.tensor(z, requires_grad=True)
    given = (torch.tensor(part + np.zeros_like(z)) for part in (t, s))
    expected = torch_loss(torch, loss.name, at, *given, weight, temperature)
    expected.sum().backward()
    constant = -weight * temperature**2 * (s * np.log(s)).sum(axis=-1) if loss.labels else 0
    np.testing.assert_allclose(found, expected.detach().numpy() + constant, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(slope, at.grad.numpy(), rtol=1e-10, atol=1e-12)
    assert found.dtype == slope.dtype == np.float64


def test_the_loss_on_every_backend(backend):
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(2, 7, 3)), np.eye(3)[rng.integers(0, 3, 7)]
    t = np.concatenate([t, losses.softmax(rng.normal(size=(7, 3)))], axis=-1)
    loss = losses.distilled(CROSS, 0.4, 3.0)
    found = backend.to_numpy(loss.rows(*(backend.asarray(part, backend.xp.float32) for part in (z, t))))
    for a, b in zip(found, loss.rows(z, t), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [CROSS, SQUARED], ids=lambda loss: loss.name)
def test_of_targets_alone_it_is_the_plain_loss(loss):
    """As those of validation are."""
    z, t = np.random.default_rng(0).normal(size=(2, 6, 3))
    for a, b in zip(losses.distilled(loss, 0.9, 2.0).rows(z.copy(), t), loss.rows(z.copy(), t), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_numbers_give_the_same_object():
    """Or every training would be compiled anew."""
    assert losses.distilled(CROSS, 0.5, 2) is losses.distilled(CROSS, 0.5, 2.0)
    assert losses.distilled(CROSS, 0.5, 2) is not losses.distilled(CROSS, 0.25, 2)
    assert mm.Teacher(random_model(), 0.5, 2).loss(CROSS) is losses.distilled(CROSS, 0.5, 2.0)


# What a teacher says


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_a_teacher_of_classes_says_its_probabilities(data, population, temperature):
    """Those of a population are averaged: the mean of the members' softmax, not the softmax of their mean."""
    model = random_model(population=population)
    z = model.outputs(data.train.x).astype(np.float64) / temperature
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    found = mm.Teacher(model, temperature=temperature).targets(data.train.x)
    assert found.shape == (len(data.train.x), 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, p.mean(axis=0) if population else p, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)


def test_a_teacher_of_independent_outputs_says_its_probabilities(data, population):
    model = random_model(BINARY, population)
    z = model.outputs(data.train.x).astype(np.float64)
    p = 1 / (1 + np.exp(-z))
    found = mm.Teacher(model).targets(data.train.x)
    np.testing.assert_allclose(found, p.mean(axis=0) if population else p, rtol=1e-5, atol=1e-6)


def test_a_literal_teacher():
    """As a literal: outputs 0 and log 3 are probabilities ½ and ¾."""
    layer = mm.Layer(np.zeros((1, 2), np.float32), np.array([0, np.log(3)], np.float32))
    teacher = mm.Teacher(Model(mm.Network((1, 2)), (layer,), BINARY))
    np.testing.assert_allclose(teacher.targets(np.ones((1, 1))), [[0.5, 0.75]], rtol=1e-6)


@pytest.mark.parametrize("loss", [SQUARED, losses.huber(0.5)], ids=lambda loss: loss.name)
def test_a_teacher_of_quantities_says_them_in_their_units(population, loss):
    data = task(SQUARED)
    model = random_model(loss, population, targets=data.targets, normalization=data.normalization)
    z = model.outputs(data.train.x)
    found = mm.Teacher(model).targets(data.train.x)
    np.testing.assert_allclose(found, z.mean(axis=0) if population else z, rtol=1e-6)
    assert not np.allclose(found, data.targets(found))  # the data's own units are others than the network's


# What is learned


def test_without_weight_a_teacher_changes_nothing(data, population):
    """Bit for bit, whatever it says."""
    options = {**FAST, "population": population}
    alone = mm.gradient_descent(NETWORK, data, **options)
    found = mm.gradient_descent(NETWORK, data, teacher=mm.Teacher(random_model(), 0.0, 3.0), **options)
    assert_same_params(found, alone)
    for name, log in alone.history.items():
        np.testing.assert_array_equal(found.history[name], log)


def test_with_all_weight_the_labels_do_not_matter(data):
    """Of the training rows; which parameters are the best is still for the validation rows' labels to say."""
    other = replace(data, train=mm.Dataset(data.train.x, data.train.y[::-1].copy()))
    teacher = mm.Teacher(random_model(), 1.0, 2.0)
    one, two = (mm.gradient_descent(NETWORK, each, teacher=teacher, **FAST) for each in (data, other))
    assert_same_params(one, two)
    np.testing.assert_array_equal(one.history["validation_loss"], two.history["validation_loss"])
    half = [mm.gradient_descent(NETWORK, each, teacher=teacher._replace(weight=0.5), **FAST) for each in (data, other)]
    assert (half[0].params[0].weight != half[1].params[0].weight).any()


def test_a_perfect_teacher_leaves_its_student_alone(backend, data):
    """With α = 1 and T = 1 the gradient of a student that says the same is 0 to rounding."""
    model = random_model(normalization=data.normalization)
    options = {**FAST, "backend": backend, "params": model.params, "optimizer": optimizers.sgd(0.1)}
    found = mm.gradient_descent(model.network, data, teacher=mm.Teacher(model, 1.0), **options)
    last = found.state.params
    for a, b in zip(tree.leaves(last), tree.leaves(model.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    moved = mm.gradient_descent(model.network, data, teacher=mm.Teacher(model, 0.5), **options).state.params
    assert np.abs(moved[0].weight - model.params[0].weight).max() > 1e-3
    entropy = -np.mean(np.sum(losses.softmax(z := model.outputs(data.train.x)) * np.log(losses.softmax(z)), axis=-1))
    np.testing.assert_allclose(found.history["loss"].reshape(3, -1).mean(axis=1), entropy, rtol=0.2)


def test_a_student_comes_closer_to_its_teacher(data):
    teacher = random_model(normalization=data.normalization)
    options = {**FAST, "epochs": 8}
    wanted = losses.softmax(teacher.outputs(data.test.x))

    def distance(model):
        return float(np.abs(losses.softmax(model.outputs(data.test.x)) - wanted).mean())

    taught = mm.gradient_descent(NETWORK, data, teacher=mm.Teacher(teacher, 1.0), **options)
    last = replace(taught, params=taught.state.params)
    alone = mm.gradient_descent(NETWORK, data, **options)
    assert distance(last) < 0.5 * distance(alone)


@pytest.mark.parametrize("loss", [losses.huber(0.5), BINARY], ids=lambda loss: loss.name)
def test_to_learn_from_a_teacher_is_to_learn_from_its_outputs(backend, loss):
    """With α = 1: as from data that hold what it predicts, normalised as before."""
    data = task(loss)
    known = {"normalization": data.normalization, "targets": data.targets if loss.scaled else None}
    teacher = mm.Teacher(random_model(loss, 2, **known), 1.0)
    said = replace(data, train=mm.Dataset(data.train.x, teacher.targets(data.train.x)))
    options = {**FAST, "loss": loss, "backend": backend}
    found = mm.gradient_descent(NETWORK, data, teacher=teacher, **options)
    expected = mm.gradient_descent(NETWORK, said, **options)
    assert_same_params(found, expected, rtol=1e-4, atol=1e-6)
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(found.history[name], expected.history[name], rtol=1e-4)


def test_a_weight_between_is_the_mean_of_both(data):
    """Of one step of gradient descent, which is linear in the loss."""
    teacher = mm.Teacher(random_model())
    whole = {"seed": 0, "epochs": 1, "batch_size": len(data.train.x), "optimizer": optimizers.sgd(0.1)}
    ends = [
        mm.gradient_descent(NETWORK, data, teacher=teacher._replace(weight=weight), **whole).state.params
        for weight in (0.0, 1.0, 0.25)
    ]
    for none, full, quarter in zip(*map(tree.leaves, ends), strict=True):
        np.testing.assert_allclose(quarter, 0.75 * none + 0.25 * full, rtol=1e-4, atol=1e-6)
        assert (none != full).any()


def test_row_weights_count_for_both_parts(data):
    """Rows of weight 0 are as good as left out, the teacher's part of them, too."""
    half, teacher = len(data.train.x) // 2, mm.Teacher(random_model(), 0.7, 2.0)
    weight = np.repeat([1.0, 0.0], [half, len(data.train.x) - half])
    garbled = data.train.x.copy()
    garbled[half:] = 5
    options = {"seed": 0, "epochs": 2, "batch_size": len(weight), "teacher": teacher, "optimizer": optimizers.sgd(0.1)}
    fitted = {"normalization": None}
    one, two = (
        mm.gradient_descent(
            NETWORK, replace(data, train=mm.Dataset(x, data.train.y), **fitted), sample_weight=weight, **options
        )
        for x in (data.train.x, garbled)
    )
    assert_same_params(one, two, rtol=1e-5, atol=1e-7)


# In every algorithm


ALGORITHMS = {
    "gradient_descent": lambda model, data, **options: mm.gradient_descent(
        model.network, data, population=model.population, params=model.params, **options
    ),
    "prune": lambda model, data, **options: mm.prune(
        model, data, sparsity=0.5, schedule="gradual", score="taylor", **options
    ),
    "quantize": lambda model, data, **options: mm.quantize(model, data, bits=4, **options),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_takes_a_teacher(backend, population, data, name):
    """It is learned from, on every backend the same; what is validated is the plain loss."""
    model = random_model(population=population, normalization=data.normalization)
    options = {**FAST, "epochs": 2}
    teacher = mm.Teacher(random_model(population=2, seed=11), 0.8, 2.0)
    found = ALGORITHMS[name](model, data, teacher=teacher, backend=backend, **options)
    reference = ALGORITHMS[name](model, data, teacher=teacher, **options)
    for a, b in zip(tree.leaves(found.state.params), tree.leaves(reference.state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for a, b in zip(found.masks or (), reference.masks or (), strict=True):
        np.testing.assert_array_equal(a, b)
    if name != "prune":  # where the best is that of the last masks, perhaps before they were trained
        best = found.history["validation_loss"].min(axis=0)
        np.testing.assert_allclose(best, found.evaluate(data.validation).loss, rtol=1e-4)
    alone = ALGORITHMS[name](model, data, **options)
    assert (found.state.params[0].weight != alone.state.params[0].weight).any()
    assert (found.history["loss"] != alone.history["loss"]).any()


def test_the_dense_model_teaches_what_is_left_of_it(data):
    """What the teacher is for: the pruned one comes closer to what it was."""
    dense = mm.gradient_descent(NETWORK, data, **{**FAST, "epochs": 10})
    options = {**FAST, "epochs": 6, "sparsity": 0.4}
    wanted = dense.outputs(data.test.x)
    taught, alone = (mm.prune(dense, data, teacher=t, **options) for t in (mm.Teacher(dense, 1.0, 2.0), None))
    gaps = [np.abs(losses.softmax(m.outputs(data.test.x)) - losses.softmax(wanted)).mean() for m in (taught, alone)]
    assert gaps[0] < gaps[1]
    for mask, layer in zip(taught.masks, taught.params, strict=True):
        np.testing.assert_array_equal(layer.weight != 0, mask)


def test_scores_see_what_the_teacher_asks(data):
    """Of a perfect teacher alone every gradient is 0, so that Taylor scores are nothing but rounding."""
    seen = {}

    def watched(key):
        def score(evidence):
            seen[key] = mm.scores.taylor(evidence)
            return mm.scores.magnitude(evidence)

        return score

    model = random_model(normalization=data.normalization)
    for name, teacher in (("alone", None), ("perfect", mm.Teacher(model, 1.0))):
        mm.prune(model, data, seed=0, sparsity=0.5, score=watched(name), teacher=teacher, epochs=0)
    for alone, perfect in zip(seen["alone"], seen["perfect"], strict=True):
        assert perfect.max() < 1e-5 < 1e-2 < alone.max()


# What is refused

OTHER = random_model()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [
        (OTHER, TypeError, r"teacher: expected a Teacher\(model, weight=…, temperature=…\), got <Model"),
        ("dense", TypeError, "teacher: expected a Teacher"),
        ((OTHER, 0.5, 1.0), TypeError, "teacher: expected a Teacher"),
        (mm.Teacher("dense"), ValueError, "teacher: expected a model with softmax_cross_entropy and 3 outputs"),
        (mm.Teacher(None), ValueError, "teacher: expected a model with softmax_cross_entropy and 3 outputs"),
        (
            mm.Teacher(random_model(sizes=(4, 6, 2))),
            ValueError,
            "teacher: expected a model .* 3 outputs, got <Model 4-6-2",
        ),
        (mm.Teacher(random_model(SQUARED)), ValueError, "teacher: expected a model with softmax_cross_entropy"),
        (mm.Teacher(random_model(losses.huber())), ValueError, "teacher: expected a model with softmax_cross_entropy"),
        *[
            (mm.Teacher(OTHER, weight), ValueError, "teacher: expected a weight from 0 to 1")
            for weight in (-0.1, 1.1, np.nan, np.inf, None, "0.5", True, np.array([0.5, 0.5]))
        ],
        *[
            (mm.Teacher(OTHER, 0.5, temperature), ValueError, "teacher: expected a (finite )?temperature")
            for temperature in (0, 0.0, -1, np.nan, np.inf, None, "1", True, np.ones(2))
        ],
    ],
)
def test_what_is_no_teacher_is_refused(data, algorithm, teacher, error, message):
    with pytest.raises(error, match=message):
        ALGORITHMS[algorithm](random_model(), data, teacher=teacher, **FAST)


@pytest.mark.parametrize("loss", [SQUARED, BINARY, losses.huber()], ids=lambda loss: loss.name)
def test_a_temperature_needs_a_softmax(loss):
    """At 1 it is none."""
    message = f"teacher: {loss.name} has no softmax to take a temperature; leave it at 1"
    with pytest.raises(ValueError, match=message):
        mm.gradient_descent(NETWORK, task(loss), loss=loss, teacher=mm.Teacher(random_model(loss), 0.5, 2.0), **FAST)
    mm.gradient_descent(NETWORK, task(loss), loss=loss, teacher=mm.Teacher(random_model(loss), 0.5, 1), **FAST)


def test_losses_of_another_number_are_others():
    with pytest.raises(ValueError, match="teacher: expected a model with huber and 3 outputs"):
        teacher = mm.Teacher(random_model(losses.huber(2.0)))
        mm.gradient_descent(NETWORK, task(SQUARED), loss=losses.huber(1.0), teacher=teacher, **FAST)


@pytest.mark.parametrize("amount", [0.1, 0.0])
def test_smoothed_labels_beside_a_teacher_are_refused(data, amount):
    with pytest.raises(ValueError, match="label_smoothing: a teacher smooths the labels already; give one of the two"):
        mm.gradient_descent(NETWORK, data, teacher=mm.Teacher(OTHER), label_smoothing=amount, **FAST)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stream_with_a_teacher_is_refused(data, algorithm):
    stream = mm.stream_batches([data.train], data.validation, data.test)
    with pytest.raises(ValueError, match=r"teacher: a stream takes none.*load them as Splits"):
        ALGORITHMS[algorithm](random_model(), stream, teacher=mm.Teacher(OTHER), **FAST)


def test_a_teacher_of_other_features_is_refused(data):
    with pytest.raises(ValueError, match="teacher"):
        mm.gradient_descent(NETWORK, data, teacher=mm.Teacher(random_model(sizes=(5, 6, 3))), **FAST)
