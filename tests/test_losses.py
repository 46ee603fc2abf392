"""Losses against optax and torch, against differences, at extreme logits, and with smoothed labels."""

import contextlib

import numpy as np
import pytest

from minimodel import losses
from minimodel.activations import sigmoid
from minimodel.testing.suites import LossSuite

BATCH, OUT, MEMBERS = 6, 4, 3
LOSSES = {
    "mean_squared_error": losses.mean_squared_error,
    "softmax_cross_entropy": losses.softmax_cross_entropy,
    "binary_cross_entropy": losses.binary_cross_entropy,
    "huber": losses.huber(0.7),
}
NAMES = list(LOSSES)


def make(name, population=None, shared=False):
    """Outputs z and targets y in float64; y shared by the members or one for each."""
    rng = np.random.default_rng(7)
    lead = () if population is None else (population,)
    z = 2 * rng.normal(size=(*lead, BATCH, OUT))
    lead = () if shared else lead
    if name == "softmax_cross_entropy":
        return z, rng.integers(0, OUT, size=(*lead, BATCH)).astype(np.int32)
    if name == "binary_cross_entropy":
        return z, rng.uniform(size=(*lead, BATCH, OUT))
    return z, rng.normal(size=(*lead, BATCH, OUT))


def to(backend, z, y):
    """Floats as float32, labels as they are."""
    xp = backend.xp
    return backend.asarray(z, xp.float32), backend.asarray(y, xp.int32 if y.dtype.kind == "i" else xp.float32)


@contextlib.contextmanager
def x64(jax):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield


def from_optax(optax, name, z, y):
    """The loss as optax has it, before averaging."""
    if name == "softmax_cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels(z, y)
    if name == "binary_cross_entropy":
        return optax.sigmoid_binary_cross_entropy(z, y)
    return optax.huber_loss(z, y, delta=0.7) if name == "huber" else optax.squared_error(z, y)


def from_torch(torch, name, z, y):
    functional = torch.nn.functional
    if name == "softmax_cross_entropy":
        return functional.cross_entropy(z, y.long())
    if name == "binary_cross_entropy":
        return functional.binary_cross_entropy_with_logits(z, y)
    return functional.huber_loss(z, y, delta=0.7) if name == "huber" else functional.mse_loss(z, y)


class TestLoss(LossSuite):
    """Derivatives against differences, rows, populations, dtypes, far values, backends."""

    @pytest.fixture(params=NAMES)
    def loss(self, request):
        return LOSSES[request.param]


def test_every_named_loss_is_tested():
    with pytest.raises(ValueError, match="loss") as caught:
        losses.get("nothing")
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_optax_gives_the_same_value(name, population, oracle):
    jax, optax = oracle("jax"), oracle("optax")
    z, y = make(name, population)
    with x64(jax):
        theirs = np.asarray(from_optax(optax, name, jax.numpy.asarray(z), jax.numpy.asarray(y)))
    rows = theirs if name == "softmax_cross_entropy" else theirs.mean(axis=-1)
    np.testing.assert_allclose(LOSSES[name].value(z, y), rows.mean(axis=-1), rtol=1e-12)
    np.testing.assert_allclose(LOSSES[name].rows(z, LOSSES[name].encode(y, z))[0], rows, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_torch_gives_the_same_value_gradient_and_curvature(name, oracle):
    torch = oracle("torch")
    z, y = make(name)
    v = np.random.default_rng(1).normal(size=z.shape)
    leaf, target = torch.tensor(z, requires_grad=True), torch.tensor(y)
    value = from_torch(torch, name, leaf, target)
    gradient = torch.autograd.grad(value, leaf, create_graph=True)[0]
    product = torch.autograd.grad((gradient * torch.tensor(v)).sum(), leaf)[0]
    loss = LOSSES[name]
    np.testing.assert_allclose(loss.value(z, y), value.item(), rtol=1e-12)
    np.testing.assert_allclose(loss.gradient(z, y), gradient.detach().numpy(), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(loss.curvature(z, y, v), product.numpy(), rtol=1e-10, atol=1e-14)


def test_the_cross_entropy_of_any_distribution_is_that_of_torch(oracle):
    torch = oracle("torch")
    rng = np.random.default_rng(0)
    z, t = 2 * rng.normal(size=(BATCH, OUT)), rng.dirichlet(np.ones(OUT), BATCH)
    leaf = torch.tensor(z, requires_grad=True)
    value = torch.nn.functional.cross_entropy(leaf, torch.tensor(t), reduction="none")
    value.sum().backward()
    found, gradient = losses.softmax_cross_entropy.rows(z, t)
    np.testing.assert_allclose(found, value.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_softmax_cross_entropy_is_stable(backend):
    """Certain and right costs 0; certain and wrong costs the difference of the logits."""
    z = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0]])
    loss = losses.softmax_cross_entropy
    for labels, value in (([0, 0], 0.0), ([1, 1], 2e4)):
        ours, y = to(backend, z, np.array(labels, np.int32))
        np.testing.assert_allclose(backend.to_numpy(loss.value(ours, y)), value, rtol=1e-6)
        expected = (np.array([[1, 0, 0]] * 2) - np.eye(3)[labels]) / 2
        np.testing.assert_allclose(backend.to_numpy(loss.gradient(ours, y)), expected, atol=1e-7)
        np.testing.assert_array_equal(backend.to_numpy(loss.curvature(ours, y, ours)), 0)


def test_binary_cross_entropy_is_stable(backend):
    z, y = np.array([[1e4, -1e4, 1e4, -1e4]]), np.array([[1.0, 0.0, 0.0, 1.0]])
    ours, targets = to(backend, z, y)
    loss = losses.binary_cross_entropy
    np.testing.assert_allclose(backend.to_numpy(loss.value(ours, targets)), 2e4 / 4, rtol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(loss.gradient(ours, targets)), [[0, 0, 0.25, -0.25]], atol=1e-7)
    np.testing.assert_array_equal(backend.to_numpy(loss.curvature(ours, targets, ours)), 0)


@pytest.mark.parametrize("name", ["mean_squared_error", "huber"])
def test_regression_losses_are_finite_at_large_errors(name, backend):
    ours, y = to(backend, np.array([[1e4, -1e4]]), np.array([[-1e4, 1e4]]))
    expected = 4e8 if name == "mean_squared_error" else 0.7 * (2e4 - 0.35)
    np.testing.assert_allclose(backend.to_numpy(LOSSES[name].value(ours, y)), expected, rtol=1e-6)
    assert np.isfinite(backend.to_numpy(LOSSES[name].gradient(ours, y))).all()


def test_softmax_sums_to_one_and_ignores_a_shift(backend):
    z = make("softmax_cross_entropy", MEMBERS)[0]
    p, shifted = (backend.to_numpy(losses.softmax(backend.asarray(at, backend.xp.float32))) for at in (z, z + 8))
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(p, shifted, rtol=1e-5)
    assert (p > 0).all()


# Label smoothing.


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 0.99])
def test_torch_smooths_labels_alike(amount, oracle):
    torch = oracle("torch")
    z, y = make("softmax_cross_entropy")
    leaf = torch.tensor(z, requires_grad=True)
    value = torch.nn.functional.cross_entropy(leaf, torch.tensor(y).long(), label_smoothing=amount)
    value.backward()
    t = losses.smooth(losses.one_hot(y, OUT, z.dtype), np.float64(amount))
    found, gradient = losses.softmax_cross_entropy.rows(z, t)
    np.testing.assert_allclose(losses.mean(found), value.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient / BATCH, leaf.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_optax_smooths_labels_alike(oracle):
    jax, optax = oracle("jax"), oracle("optax")
    t = losses.one_hot(make("softmax_cross_entropy")[1], OUT, np.float64)
    with x64(jax):
        theirs = np.asarray(optax.smooth_labels(jax.numpy.asarray(t), 0.3))
    np.testing.assert_allclose(losses.smooth(t, np.float64(0.3)), theirs, rtol=1e-14)


@pytest.mark.parametrize("shared", [True, False], ids=["shared targets", "own targets"])
def test_each_member_may_be_smoothed_by_its_own_amount(shared, backend):
    z, y = make("softmax_cross_entropy", MEMBERS, shared)
    t, amounts = losses.one_hot(y, OUT, np.float32), np.array([0.0, 0.25, 0.5], np.float32)
    found = backend.to_numpy(losses.smooth(backend.asarray(t), backend.asarray(amounts)))
    assert found.shape == z.shape and found.dtype == np.float32
    for i, amount in enumerate(amounts):
        alone = losses.smooth(t if shared else t[i], amount)
        np.testing.assert_allclose(found[i], alone, rtol=1e-6)
        np.testing.assert_allclose(alone.sum(axis=-1), 1, rtol=1e-6)


def test_smoothing_by_zero_changes_nothing_and_none_what_is_given(backend):
    t = np.random.default_rng(0).uniform(size=(BATCH, OUT)).astype(np.float32)
    found = losses.smooth(given := backend.asarray(t), backend.asarray(np.float32(0)))
    np.testing.assert_array_equal(backend.to_numpy(found), t)
    losses.smooth(given, backend.asarray(np.float32(0.5)))
    np.testing.assert_array_equal(backend.to_numpy(given), t)


def test_one_output_is_mixed_with_one_half():
    t = np.array([[0.0], [1.0], [0.25]])
    np.testing.assert_allclose(losses.smooth(t, np.float64(0.2)), [[0.1], [0.9], [0.3]], rtol=1e-14)


def test_sigmoid_of_minus_z_is_the_rest():
    z = np.linspace(-30, 30, 61)
    np.testing.assert_allclose(sigmoid(z) + sigmoid(-z), 1, rtol=1e-14)


def test_decide(backend):
    """Classes by the largest output, the first of equals; independent outputs by their sign; others as they are."""
    z = backend.asarray(np.array([[0.5, 2.0, -1.0], [3.0, 3.0, 0.0]]), backend.xp.float32)
    decided = {name: backend.to_numpy(loss.decide(z)) for name, loss in LOSSES.items()}
    np.testing.assert_array_equal(decided["softmax_cross_entropy"], [1, 0])
    np.testing.assert_array_equal(decided["binary_cross_entropy"], [[1, 1, 0], [1, 1, 0]])
    for name in ("mean_squared_error", "huber"):
        np.testing.assert_array_equal(decided[name], backend.to_numpy(z))


def test_only_class_losses_take_labels():
    assert {name for name, loss in LOSSES.items() if loss.labels} == {"softmax_cross_entropy"}


def test_huber_of_the_same_delta_is_the_same_object():
    """A loss is a static argument of compiled programs: another object would compile them again."""
    assert losses.huber(2.0) is losses.huber(2.0)
    assert losses.huber(2.0) is losses.huber(delta=2.0)
    assert losses.huber(2) is losses.get("huber", delta=2.0)
    assert losses.huber() is losses.huber(1.0)
    assert losses.huber(2.0) is not losses.huber(3.0)
    assert losses.huber(2.0).config == (("delta", 2.0),)


@pytest.mark.parametrize("delta", [0, -1.0, float("nan")])
def test_huber_refuses_a_delta_that_is_not_positive(delta):
    with pytest.raises(ValueError, match="delta"):
        losses.huber(delta)


def test_huber_is_half_the_squared_error_inside_delta():
    z, y = make("huber")
    np.testing.assert_allclose(losses.huber(1e3).value(z, y), losses.mean_squared_error.value(z, y) / 2, rtol=1e-14)


def test_get_takes_a_name_or_a_loss():
    for name in NAMES[:3]:
        assert losses.get(name) is LOSSES[name]
    custom = losses.huber(0.3)
    assert losses.get(custom) is custom


@pytest.mark.parametrize("wrong", ["hinge", "", None, 3])
def test_get_lists_the_losses_when_there_is_no_such_one(wrong):
    with pytest.raises(ValueError, match="softmax_cross_entropy, binary_cross_entropy, huber"):
        losses.get(wrong)


def test_get_refuses_numbers_that_the_loss_does_not_have():
    with pytest.raises((TypeError, ValueError), match="delta"):
        losses.get("mean_squared_error", delta=1.0)


def test_a_mean_is_not_added_up_in_half_precision():
    assert losses.mean(np.full(8_192, 100, np.float16)) == 100
