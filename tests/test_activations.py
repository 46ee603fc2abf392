"""Activations against their textbook formulas, against differences, and far out."""

import math

import numpy as np
import pytest

import minimodel as mm
from minimodel import activations
from minimodel.activations import ACTIVATIONS
from minimodel.testing.suites import ActivationSuite

NAMES = list(ACTIVATIONS)
FORMULAS = {
    "identity": lambda z: z,
    "relu": lambda z: z if z > 0 else 0.0,
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu": lambda z: 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
}
# (value, slope) at −∞ and at +∞, where z stands for the argument itself
LIMITS = {
    "identity": (lambda z: z, (1, 1)),
    "relu": (lambda z: max(z, 0), (0, 1)),
    "leaky_relu": (lambda z: max(z, 0.01 * z), (0.01, 1)),
    "tanh": (lambda z: math.copysign(1, z), (0, 0)),
    "sigmoid": (lambda z: float(z > 0), (0, 0)),
    "silu": (lambda z: max(z, 0), (0, 1)),
    "gelu": (lambda z: max(z, 0), (0, 1)),
}
GRID = np.linspace(-6, 6, 48).reshape(6, 8)  # an even number of points: none at the kink


def derivatives(name, z):
    """f, f′ and f″ of one activation at z."""
    f = ACTIVATIONS[name]
    a = f.value(z)
    return a, f.slope(z, a), f.curvature(z, a)


class TestActivation(ActivationSuite):
    """Derivatives against differences, dtypes, far values, backends."""

    @pytest.fixture(params=NAMES)
    def activation(self, request):
        return ACTIVATIONS[request.param]


def test_every_activation_has_a_formula_here():
    assert set(FORMULAS) == set(LIMITS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_formula_on_every_backend(name, backend):
    z = backend.asarray(GRID, backend.xp.float32)
    found = backend.to_numpy(ACTIVATIONS[name].value(z))
    np.testing.assert_allclose(found, np.vectorize(FORMULAS[name])(GRID), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_float64_value_is_the_formula(name):
    found = ACTIVATIONS[name].value(GRID)
    np.testing.assert_allclose(found, np.vectorize(FORMULAS[name])(GRID), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_torch_gives_the_same_value_slope_and_curvature(name, oracle):
    torch = oracle("torch")
    functional = torch.nn.functional
    peers = {
        "identity": lambda z: z * 1,
        "relu": functional.relu,
        "leaky_relu": functional.leaky_relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "gelu": lambda z: functional.gelu(z, approximate="tanh"),
    }
    z = torch.tensor(GRID, requires_grad=True)
    value = peers[name](z)
    slope = torch.autograd.grad(value.sum(), z, create_graph=True)[0]
    second = torch.autograd.grad(slope.sum(), z)[0] if slope.requires_grad else torch.zeros_like(z)
    for ours, theirs in zip(derivatives(name, GRID), (value, slope, second), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_far_out_the_functions_are_their_limits(name, backend):
    limit, slopes = LIMITS[name]
    z = backend.asarray(np.array([-1e4, 1e4]), backend.xp.float32)
    value, slope, curvature = (backend.to_numpy(part) for part in derivatives(name, z))
    np.testing.assert_allclose(value, [limit(-1e4), limit(1e4)], rtol=1e-6)
    np.testing.assert_allclose(slope, slopes, rtol=1e-6)
    np.testing.assert_array_equal(curvature, [0, 0])


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky_relu", 0.01)])
def test_the_slope_at_the_kink_is_that_from_the_left(name, slope, backend):
    z = backend.asarray(np.zeros(3), backend.xp.float32)
    found = backend.to_numpy(derivatives(name, z)[1])
    np.testing.assert_allclose(found, slope, rtol=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
def test_relu_of_few_bits_against_torch(backend, oracle, bits):
    """Value and straight-through derivative are those of torch's fake quantization of the clipped value."""
    torch, n = oracle("torch"), 2**bits - 1
    z = np.linspace(-2, 6, 1237).astype(np.float32)
    f = activations.get(f"relu_{bits}bit")
    given = torch.tensor(z, requires_grad=True)
    expected = torch.fake_quantize_per_tensor_affine(given, 4 / n, 0, 0, n)
    expected.sum().backward()
    found = f.value(backend.asarray(z))
    slope = backend.to_numpy(f.slope(backend.asarray(z), found))
    found = backend.to_numpy(found)
    tie = np.abs(z * n / 4 - np.floor(z * n / 4) - 0.5) < 1e-3  # torch multiplies by 1/(4/n), we by n/4
    np.testing.assert_allclose(found[~tie], expected.detach().numpy()[~tie], rtol=1e-6)
    inside = (z > 1e-3) & (z < 4 - 1e-3)
    outside = (z < -1e-3 - 2 / n) | (z > 4 + 1e-3 + 2 / n)  # torch lets half a step more through
    np.testing.assert_array_equal(slope[inside | outside], given.grad.numpy()[inside | outside])
    assert found.dtype == np.float32 and len(np.unique(np.round(found * n / 4))) == n + 1
    np.testing.assert_allclose(np.round(found * n / 4), found * n / 4, atol=1e-4)


def test_relu_of_few_bits_says_its_steps():
    assert activations.steps("relu_4bit") == 15 and activations.steps("relu") is None
    with pytest.raises(ValueError, match=r"activation: expected one of identity, relu, .*relu_8bit, got 'relu_9bit'"):
        mm.Network((2, 2), "relu_9bit")


@pytest.mark.parametrize("name", NAMES)
def test_stays_on_its_device(name):
    """What a function makes besides, as zeros, is made where its argument is."""
    xp = pytest.importorskip("array_api_strict")
    z, fns = xp.ones((3, 2), dtype=xp.float32, device=xp.Device("device1")), ACTIVATIONS[name]
    a = fns.value(z)
    assert all(found.device == z.device for found in (a, fns.slope(z, a), fns.curvature(z, a)))
