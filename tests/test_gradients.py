"""Hand-written gradients against differences, jax.grad, torch.autograd and scikit-learn, and by property."""

import contextlib
import functools
import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, tree
from minimodel.activations import ACTIVATIONS
from minimodel.gradients import objective
from minimodel.testing.suites import GradientSuite

SIZES, BATCH, MEMBERS = (4, 5, 3, 3), 6, 3
NAMES = list(ACTIVATIONS)
LOSSES = {
    "mean_squared_error": losses.mean_squared_error,
    "softmax_cross_entropy": losses.softmax_cross_entropy,
    "binary_cross_entropy": losses.binary_cross_entropy,
    "huber": losses.huber(0.7),
}
table = pytest.mark.parametrize(("activation", "loss"), [(f, j) for f in NAMES for j in LOSSES])
PLAIN = {"xla_backend_optimization_level": 0}  # an oracle is compiled once and run once
every_activation = pytest.mark.parametrize("activation", NAMES)
# Where each case compiles: every activation, with each loss in turn; for automatic differentiation with two.
turns = pytest.mark.parametrize(("activation", "loss"), [(f, [*LOSSES][i % 4]) for i, f in enumerate(NAMES)])
half = pytest.mark.parametrize(
    ("activation", "loss"), [(f, j) for i, f in enumerate(NAMES) for k, j in enumerate(LOSSES) if (i + k) % 2]
)


def draw_params(seed, population=None, sizes=SIZES):
    rng = np.random.default_rng(seed)
    lead = () if population is None else (population,)
    return tuple(
        mm.Layer(rng.normal(size=(*lead, n, m)) / np.sqrt(n), 0.3 * rng.normal(size=(*lead, m)))
        for n, m in itertools.pairwise(sizes)
    )


def draw_data(loss, seed=0, batch=BATCH):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, SIZES[0]))
    if loss == "softmax_cross_entropy":
        return x, rng.integers(0, SIZES[-1], batch).astype(np.int32)
    return x, rng.uniform(size=(batch, SIZES[-1]))


def member(values, i):
    return tree.map(lambda leaf: leaf[i], values)


def dot(a, b):
    """The inner product of two trees."""
    return sum(float(np.sum(p * q)) for p, q in zip(tree.leaves(a), tree.leaves(b), strict=True))


def shift(params, step, along):
    return tree.map(lambda p, v: p + step * v, params, along)


def assert_close(found, expected, **tolerance):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, **tolerance)


def to(backend, values):
    """Floats as float32, labels as int32."""
    kinds = {"f": backend.xp.float32, "i": backend.xp.int32}
    return tree.map(lambda leaf: backend.asarray(leaf, kinds[np.asarray(leaf).dtype.kind]), values)


def everything(network, loss, params, tangent, x, y, cotangent):
    """All that gradients.py computes, by its name."""
    value, grads = mm.value_and_grad(network, loss, params, x, y)
    return {
        "value": value,
        "grads": grads,
        "hvp": mm.hvp(network, loss, params, tangent, x, y),
        "gnvp": mm.gnvp(network, loss, params, tangent, x, y),
        "fisher_diagonal": mm.fisher_diagonal(network, loss, params, x, y),
        "jvp": mm.jvp(network, params, tangent, x),
        "vjp": mm.vjp(network, params, x, cotangent),
        "input_gradient": mm.input_gradient(network, loss, params, x, y),
    }


def problem(activation, loss, population):
    """A network with params, tangent, x, y and cotangent, at least 10⁻³ away from every kink."""
    network = mm.Network(SIZES, activation)
    x, y = draw_data(loss)
    params, tangent = draw_params(9, population), draw_params(10, population)
    lead = () if population is None else (population,)
    cotangent = np.random.default_rng(3).normal(size=(*lead, BATCH, SIZES[-1]))
    hidden = [mm.Network(SIZES[:n], activation).apply(params[: n - 1], x) for n in range(2, len(SIZES))]
    assert min(np.abs(z).min() for z in hidden) > 1e-3
    assert loss != "huber" or np.abs(np.abs(network.apply(params, x) - y) - 0.7).min() > 1e-3
    return network, LOSSES[loss], params, tangent, x, y, cotangent


@contextlib.contextmanager
def x64(jax):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield


def jax_loss(jax, name):
    """A loss written for automatic differentiation, not by way of this package."""
    jnp = jax.numpy
    return {
        "mean_squared_error": lambda z, y: jnp.mean((z - y) ** 2),
        "softmax_cross_entropy": lambda z, y: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1)),
        "binary_cross_entropy": lambda z, y: -jnp.mean(y * jax.nn.log_sigmoid(z) + (1 - y) * jax.nn.log_sigmoid(-z)),
        "huber": lambda z, y: jnp.mean(
            jnp.where(jnp.abs(z - y) < 0.7, 0.5 * (z - y) ** 2, 0.7 * (jnp.abs(z - y) - 0.35))
        ),
    }[name]


def jax_activation(jax, name):
    return {
        "identity": lambda z: z,
        "relu": jax.nn.relu,
        "leaky_relu": jax.nn.leaky_relu,
        "tanh": jax.numpy.tanh,
        "sigmoid": jax.nn.sigmoid,
        "silu": jax.nn.silu,
        "gelu": functools.partial(jax.nn.gelu, approximate=True),
    }[name]


@functools.cache
def from_jax(activation, loss):
    """The same dictionary from jax.grad, jax.jvp and jax.vjp in float64, for the population, member by member."""
    jax = pytest.importorskip("jax")
    f, j = jax_activation(jax, activation), jax_loss(jax, loss)

    def apply(params, x):
        for weight, bias in params[:-1]:
            x = f(x @ weight + bias)
        return x @ params[-1][0] + params[-1][1]

    def cost(params, x, y):
        return j(apply(params, x), y)

    def one(params, tangent, x, y, cotangent):
        value, (grads, by_input) = jax.value_and_grad(cost, argnums=(0, 1))(params, x, y)
        outputs, pull = jax.vjp(lambda p: apply(p, x), params)
        changes = jax.jvp(lambda p: apply(p, x), (params,), (tangent,))
        curved = jax.jvp(jax.grad(lambda z: j(z, y)), (outputs,), (changes[1],))[1]
        rows = jax.vmap(lambda x, y: jax.grad(cost)(params, x[None], y[None]))(x, y)
        return {
            "value": value,
            "grads": grads,
            "hvp": jax.jvp(lambda p: jax.grad(cost)(p, x, y), (params,), (tangent,))[1],
            "gnvp": pull(curved)[0],
            "fisher_diagonal": tree.map(lambda row: jax.numpy.mean(row**2, axis=0), rows),
            "jvp": changes,
            "vjp": pull(cotangent)[0],
            "input_gradient": by_input,
        }

    _, _, params, tangent, x, y, cotangent = problem(activation, loss, MEMBERS)
    with x64(jax):
        found = jax.jit(jax.vmap(one, (0, 0, None, None, 0)), compiler_options=PLAIN)(params, tangent, x, y, cotangent)
        return {name: tree.map(np.asarray, values) for name, values in found.items()}


@half
def test_automatic_differentiation_gives_the_same_in_float64(activation, loss, population, oracle):
    oracle("jax")
    arguments = problem(activation, loss, MEMBERS)
    expected = from_jax(activation, loss)
    if population is None:  # the first member on its own
        network, j, params, tangent, x, y, cotangent = arguments
        arguments = network, j, member(params, 0), member(tangent, 0), x, y, cotangent[0]
        expected = {name: member(values, 0) for name, values in expected.items()}
    found = everything(*arguments)
    for name, values in expected.items():
        assert_close(found[name], values, rtol=1e-9, atol=1e-12)


@turns
def test_every_backend_agrees_with_float64(activation, loss, backend, population):
    network, j, *arrays = problem(activation, loss, population)
    found = everything(network, j, *(to(backend, values) for values in arrays))
    for name, expected in everything(network, j, *arrays).items():
        assert all(leaf.dtype == backend.xp.float32 for leaf in tree.leaves(found[name]))
        assert_close(backend.to_numpy(found[name]), expected, rtol=1e-4, atol=1e-6)


class TestGradients(GradientSuite):
    """The laws; what follows is against other libraries, on the backends, and what the laws leave open."""

    @pytest.fixture
    def gradients(self):
        return mm.gradients


@table
def test_curvature_is_that_of_the_jacobian_in_full(activation, loss):
    """J and every row's gradient column by column from differences, ∂²J/∂z² row by row: gnvp and fisher_diagonal."""
    network, j, params, tangent, x, y, _ = problem(activation, loss, None)
    step, flat = 1e-5, np.concatenate([leaf.ravel() for leaf in tree.leaves(params)])

    def shaped(numbers):
        parts = iter(np.split(numbers, np.cumsum([leaf.size for leaf in tree.leaves(params)])[:-1]))
        return tree.map(lambda leaf: next(parts).reshape(leaf.shape), params)

    def both(numbers):
        z = network.apply(shaped(numbers), x)
        return z.ravel(), j.rows(z, j.encode(y, z))[0]

    def slope(of, at, along):
        ahead, behind = of(at + step * along), of(at - step * along)
        return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]

    columns, rows = zip(*(slope(both, flat, unit) for unit in np.eye(flat.size)), strict=True)
    jacobian, rows = np.stack(columns, axis=1), np.stack(rows, axis=1)
    z = network.apply(params, x)
    hessian = np.stack(
        [slope(lambda z: (j.gradient(z.reshape(BATCH, -1), y).ravel(),), z.ravel(), unit)[0] for unit in np.eye(z.size)]
    )
    along = np.concatenate([leaf.ravel() for leaf in tree.leaves(tangent)])
    product = shaped(jacobian.T @ (hessian @ (jacobian @ along)))
    assert_close(mm.gnvp(network, j, params, tangent, x, y), product, rtol=1e-5, atol=1e-8)
    found = mm.fisher_diagonal(network, j, params, x, y)
    assert_close(found, shaped((rows**2).mean(axis=0)), rtol=1e-5, atol=1e-9)


def test_gnvp_is_the_fisher_matrix_of_a_classifier():
    """With every label weighted by its own probability: E[g gᵀ]·v, the rows and the labels written out."""
    network, params, tangent = mm.Network(SIZES, "tanh"), draw_params(0), draw_params(1)
    x, y = draw_data("softmax_cross_entropy")
    product = tree.map(np.zeros_like, params)
    for i, p in enumerate(losses.softmax(network.apply(params, x))):
        for label in range(SIZES[-1]):
            g = mm.value_and_grad(network, "softmax_cross_entropy", params, x[i : i + 1], np.array([label]))[1]
            product = shift(product, p[label] * dot(g, tangent) / BATCH, g)
    assert_close(mm.gnvp(network, "softmax_cross_entropy", params, tangent, x, y), product, rtol=1e-9, atol=1e-12)


@every_activation
def test_torch_autograd_gives_the_same(activation, oracle):
    torch = oracle("torch")
    functional = torch.nn.functional
    f = {
        "identity": lambda z: z,
        "relu": functional.relu,
        "leaky_relu": functional.leaky_relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "gelu": functools.partial(functional.gelu, approximate="tanh"),
    }[activation]
    network, j, params, _, x, y, _ = problem(activation, "softmax_cross_entropy", None)
    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in tree.leaves(params)]
    inputs = torch.tensor(x, requires_grad=True)
    a = inputs
    for i in range(0, len(leaves), 2):
        z = a @ leaves[i] + leaves[i + 1]
        a = f(z)
    value = functional.cross_entropy(z, torch.tensor(y).long())
    value.backward()
    ours, grads = mm.value_and_grad(network, j, params, x, y)
    np.testing.assert_allclose(ours, value.item(), rtol=1e-12)
    for grad, leaf in zip(tree.leaves(grads), leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(mm.input_gradient(network, j, params, x, y), inputs.grad.numpy(), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("activation", "theirs"), [("relu", "relu"), ("tanh", "tanh"), ("sigmoid", "logistic")])
def test_scikit_learn_gives_the_same_gradient(activation, theirs, oracle):
    """The backpropagation of MLPClassifier at our weights, without its penalty."""
    oracle("sklearn")
    from sklearn.neural_network import MLPClassifier

    network, j, params, _, x, y, _ = problem(activation, "softmax_cross_entropy", None)
    peer = MLPClassifier(SIZES[1:-1], activation=theirs, alpha=0.0, random_state=0)
    peer.partial_fit(x, y, classes=range(SIZES[-1]))
    peer.coefs_, peer.intercepts_ = [layer.weight for layer in params], [layer.bias for layer in params]
    values = {
        "X": x,
        "y": np.eye(SIZES[-1])[y],
        "sample_weight": None,
        "activations": [x] + [np.empty((BATCH, n)) for n in SIZES[1:]],
        "deltas": [np.empty((BATCH, n)) for n in SIZES[1:]],
        "coef_grads": [np.empty(shape) for shape in network.shapes],
        "intercept_grads": [np.empty(n) for n in SIZES[1:]],
    }
    names = inspect.signature(peer._backprop).parameters
    value, weights, biases = peer._backprop(**{name: values[name] for name in names})
    ours, grads = mm.value_and_grad(network, j, params, x, y)
    np.testing.assert_allclose(ours, value, rtol=1e-12)
    for grad, weight, bias in zip(grads, weights, biases, strict=True):
        np.testing.assert_allclose(grad.weight, weight, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(grad.bias, bias, rtol=1e-10, atol=1e-14)


seeds = st.integers(0, 2**32 - 1)
activations = st.sampled_from(NAMES)
loss_names = st.sampled_from(list(LOSSES))


@given(seed=seeds, activation=activations, loss=loss_names)
def test_the_hessian_is_symmetric(seed, activation, loss):
    """u·Hv = v·Hu"""
    network, j = mm.Network(SIZES, activation), LOSSES[loss]
    params, u, v = (draw_params(seed + i) for i in range(3))
    x, y = draw_data(loss, seed)
    left = dot(u, mm.hvp(network, j, params, v, x, y))
    right = dot(v, mm.hvp(network, j, params, u, x, y))
    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-11)


@given(seed=seeds, activation=activations, loss=loss_names)
def test_the_gauss_newton_matrix_is_symmetric_and_positive_semi_definite(seed, activation, loss):
    """u·Gv = v·Gu and v·Gv ≥ 0"""
    network, j = mm.Network(SIZES, activation), LOSSES[loss]
    params, u, v = (draw_params(seed + i) for i in range(3))
    x, y = draw_data(loss, seed)
    along_u, along_v = (mm.gnvp(network, j, params, along, x, y) for along in (u, v))
    np.testing.assert_allclose(dot(u, along_v), dot(v, along_u), rtol=1e-9, atol=1e-11)
    assert dot(u, along_u) >= 0 and dot(v, along_v) >= 0


@given(seed=seeds, activation=activations, loss=loss_names)
def test_gauss_newton_is_the_hessian_where_the_outputs_are_linear(seed, activation, loss):
    """In the parameters of one layer they are; the activation has no part in it."""
    network, j = mm.Network((SIZES[0], SIZES[-1]), activation), LOSSES[loss]
    params, v = (draw_params(seed + i, sizes=network.layer_sizes) for i in range(2))
    x, y = draw_data(loss, seed)
    expected = mm.hvp(network, j, params, v, x, y)
    assert_close(mm.gnvp(network, j, params, v, x, y), expected, rtol=1e-10, atol=1e-13)


@given(seed=seeds, activation=activations, loss=st.sampled_from(["mean_squared_error", "huber"]))
def test_gauss_newton_is_the_hessian_where_nothing_is_left_to_learn(seed, activation, loss):
    """Σ ∂J/∂z·∂²z/∂θ², which it leaves out, is 0 where ∂J/∂z is."""
    network, j = mm.Network(SIZES, activation), LOSSES[loss]
    params, v = draw_params(seed), draw_params(seed + 1)
    x, _ = draw_data(loss, seed)
    y = network.apply(params, x)
    expected = mm.hvp(network, j, params, v, x, y)
    assert_close(mm.gnvp(network, j, params, v, x, y), expected, rtol=1e-10, atol=1e-13)


@given(seed=seeds, activation=activations, loss=loss_names)
def test_the_fisher_diagonal_is_the_mean_square_of_the_gradients_of_the_rows(seed, activation, loss):
    network, j, params = mm.Network(SIZES, activation), LOSSES[loss], draw_params(seed)
    x, y = draw_data(loss, seed)
    rows = [mm.value_and_grad(network, j, params, x[i : i + 1], y[i : i + 1])[1] for i in range(BATCH)]
    mean = tree.map(lambda leaf: (leaf**2).mean(axis=0), tree.stack(rows, np))
    assert_close(mm.fisher_diagonal(network, j, params, x, y), mean, rtol=1e-10, atol=1e-14)


@given(seed=seeds, activation=activations, loss=loss_names, scale=st.floats(-3, 3))
def test_products_are_linear_in_the_direction(seed, activation, loss, scale):
    network, j = mm.Network(SIZES, activation), LOSSES[loss]
    params, u, v = (draw_params(seed + i) for i in range(3))
    x, y = draw_data(loss, seed)

    def product(along):
        change = mm.jvp(network, params, along, x)[1]
        return mm.hvp(network, j, params, along, x, y), mm.gnvp(network, j, params, along, x, y), change

    combined = tree.map(lambda a, b: a + scale * b, product(u), product(v))
    assert_close(product(shift(u, scale, v)), combined, rtol=1e-8, atol=1e-10)


@given(seed=seeds, activation=activations, loss=loss_names)
def test_the_gradient_is_the_mean_of_the_gradients_of_the_rows(seed, activation, loss):
    network, j, params = mm.Network(SIZES, activation), LOSSES[loss], draw_params(seed)
    x, y = draw_data(loss, seed)
    value, grads = mm.value_and_grad(network, j, params, x, y)
    rows = [mm.value_and_grad(network, j, params, x[i : i + 1], y[i : i + 1]) for i in range(BATCH)]
    np.testing.assert_allclose(value, np.mean([row[0] for row in rows]), rtol=1e-10)
    mean = tree.map(lambda leaf: leaf.mean(axis=0), tree.stack([row[1] for row in rows], np))
    assert_close(grads, mean, rtol=1e-9, atol=1e-12)


@given(seed=seeds, activation=activations, loss=loss_names, members=st.sampled_from([None, 3]))
def test_weighted_rows_give_the_mean_of_weight_times_gradient(seed, activation, loss, members):
    """``objective``, which training goes through; weights of 1 change nothing, those of 0 leave rows out."""
    network, j, params = mm.Network(SIZES, activation), LOSSES[loss], draw_params(seed, members)
    x, y = draw_data(loss, seed)
    t = losses.one_hot(y, SIZES[-1], x.dtype) if j.labels else y
    rng, lead = np.random.default_rng(seed), () if members is None else (members,)
    weight = rng.uniform(0, 3, size=(*lead, BATCH)) * (rng.random(BATCH) < 0.8)
    rows = [mm.value_and_grad(network, j, params, x[i : i + 1], y[i : i + 1]) for i in range(BATCH)]

    def mean(*values):
        return sum(tree.align(weight[..., i], value) * value for i, value in enumerate(values)) / BATCH

    found, expected = objective(network, j, params, x, t, weight, None), tree.map(mean, *rows)
    assert_close(found, expected, rtol=1e-9, atol=1e-12)
    plain = mm.value_and_grad(network, j, params, x, y)
    assert_close(objective(network, j, params, x, t, np.ones_like(weight), None), plain, rtol=1e-12, atol=1e-14)
    assert_close(objective(network, j, params, x, t, None, None), plain)


@pytest.mark.parametrize("loss", LOSSES)
def test_training_consumes_neither_targets_nor_weights_nor_noise(loss):
    network, j, params, _, x, y, _ = problem("tanh", loss, None)
    t = losses.one_hot(y, SIZES[-1], x.dtype) if j.labels else y
    given = params, x, t, np.full(BATCH, 2.0), (np.full_like(x, 2.0), np.full((BATCH, SIZES[1]), 2.0), None)
    kept = tree.map(np.copy, given)
    objective(network, j, *given)
    assert_close(given, kept)


WRONG = {
    "softmax_cross_entropy": [(BATCH + 1,), (1,), (BATCH, SIZES[-1])],
    "mean_squared_error": [(BATCH,), (BATCH, 1), (1, SIZES[-1]), (BATCH + 1, SIZES[-1])],
}


@pytest.mark.parametrize(("loss", "shape"), [(j, shape) for j, shapes in WRONG.items() for shape in shapes])
@pytest.mark.parametrize("function", [mm.value_and_grad, mm.input_gradient, mm.hvp, mm.gnvp, mm.fisher_diagonal])
def test_targets_of_another_shape_never_broadcast(function, loss, shape, backend):
    network = mm.Network(SIZES)
    params, x = to(backend, draw_params(0)), to(backend, draw_data(loss)[0])
    y = to(backend, np.zeros(shape, np.int32 if LOSSES[loss].labels else np.float32))
    along = (params,) if function in (mm.hvp, mm.gnvp) else ()
    with pytest.raises(ValueError, match=f"y: {loss} expects") as caught:
        function(network, loss, params, *along, x, y)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("function", [mm.value_and_grad, mm.input_gradient, mm.fisher_diagonal])
def test_inputs_and_parameters_that_do_not_fit_are_refused(function):
    network, (x, y) = mm.Network(SIZES), draw_data("softmax_cross_entropy")
    with pytest.raises(ValueError, match="x: expected"):
        function(network, "softmax_cross_entropy", draw_params(0), x[:, :-1], y)
    with pytest.raises(ValueError, match="params: expected"):
        function(network, "softmax_cross_entropy", draw_params(0, sizes=(4, 5, 3)), x, y)


def test_a_loss_may_be_given_by_name():
    network, params, (x, y) = mm.Network(SIZES), draw_params(0), draw_data("softmax_cross_entropy")
    by_name = mm.value_and_grad(network, "softmax_cross_entropy", params, x, y)
    assert_close(by_name, mm.value_and_grad(network, losses.softmax_cross_entropy, params, x, y))
    with pytest.raises(ValueError, match="loss: expected"):
        mm.value_and_grad(network, "hinge", params, x, y)
