"""minimodel.backends: every member of the interface against NumPy, and how backends are found."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import minimodel as mm
from minimodel import tree
from minimodel.backends import array_api, interface
from minimodel.backends import numpy as numpy_backend
from minimodel.testing.suites import BackendSuite

BLOCK = numpy_backend.EXACT_INNER


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


@pytest.fixture
def registry(monkeypatch):
    """An empty register of backends, put back afterwards."""
    monkeypatch.setattr(mm.backends, "_registered", {})
    mm.backends._load.cache_clear()
    yield
    mm.backends._load.cache_clear()


class TestBackend(BackendSuite):
    """Every law, on each of the backends under test; what follows is what the laws leave open."""


# asarray, to_numpy


def add_one(x):
    return x + 1


def test_asarray_takes_arrays_of_another_namespace(backend):
    values = np.arange(4, dtype=np.float32)
    strict = mm.backends.load("array_api:array_api_strict").asarray(values)
    found = backend.asarray(strict)
    assert tree.namespace(found) is tree.namespace(backend.asarray(values))
    np.testing.assert_array_equal(backend.to_numpy(found), values)


@pytest.mark.parametrize("name", ["jax", "array_api:array_api_strict"])
def test_to_numpy_copies_are_writable_and_independent(name):
    pytest.importorskip(name.rpartition(":")[2])
    backend = mm.backends.load(name)
    x = backend.asarray(np.zeros(4096, np.float32))
    found = backend.to_numpy(x)
    found[:] = 7
    assert not backend.to_numpy(x).any()


# jit


def descend(params, gradient, rate):
    return tree.map(lambda p, g: p - rate * g, params, gradient)


def shifted(x, by):
    return x[0] + by, x[1], None


@pytest.mark.parametrize("name", ["numpy", "array_api:array_api_strict"])
def test_debug_poisons_donated_arguments_and_no_others(name):
    backend = mm.backends.load(name, debug=True)
    floats, integers, kept = (backend.asarray(np.ones(3, t)) for t in (np.float32, np.int32, np.float32))
    found, count, _ = backend.jit(shifted, donate=("x",))((floats, integers), kept)
    assert backend.to_numpy(found).tolist() == [2.0, 2.0, 2.0] and backend.to_numpy(count).tolist() == [1, 1, 1]
    assert np.isnan(backend.to_numpy(floats)).all() and not backend.to_numpy(integers).any()
    assert backend.to_numpy(kept).tolist() == [1.0, 1.0, 1.0]


def test_without_debug_numpy_runs_the_function_itself():
    assert mm.backends.load("numpy").jit(add_one, donate=("x",)).__wrapped__ is add_one


def test_jax_gives_back_the_same_wrapper_for_the_same_function(jax):
    backend = mm.backends.load("jax")
    assert backend.jit(descend, donate=("params",)) is backend.jit(descend, donate=("params",))
    assert backend.jit(descend, donate=("params",)) is not backend.jit(descend)


def polynomial(x, a):
    return a * x * x


def test_jax_compiles_once_for_new_values_and_again_for_a_new_shape(jax):
    backend = mm.backends.load("jax", precision="high")  # a backend that no other test compiles for
    for rate in (0.1, 0.2, 0.3):
        run = backend.jit(polynomial)
        assert float(run(backend.asarray(np.float32(2)), rate)) == pytest.approx(4 * rate, rel=1e-6)
        assert run.compiled._cache_size() == 1
    run(backend.asarray(np.ones(2, np.float32)), 0.4)
    assert run.compiled._cache_size() == 2


# scan


@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_scan_refuses_a_carry_that_changes(backend, change):
    """JAX always does; the eager backends do in debug mode, in which the suite loads them."""
    xp = backend.xp

    def step(carry, x):
        return (xp.concat((carry, carry)) if change == "shape" else xp.astype(carry, xp.int32)), x

    xs = backend.asarray(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="carry"):
        backend.scan(step, backend.asarray(np.ones(2, np.float32)), xs)


# integer_matmul


def integer_matmul(backend, a, b):
    """The backend's product on the host, checked to be int32."""
    found = backend.to_numpy(backend.integer_matmul(backend.asarray(a), backend.asarray(b)))
    assert found.dtype == np.int32
    return found


def product(a, b):
    return a.astype(np.int64) @ b.astype(np.int64)


@pytest.mark.parametrize("inner", [BLOCK, BLOCK + 1, 5_000, interface.MAX_INNER])
def test_integer_matmul_is_exact_at_the_extremes(backend, inner):
    """−128 · −128 is the greatest product there is; the longest sum of it still fits an int32."""
    a, b = np.full((1, inner), -128, np.int8), np.full((inner, 1), -128, np.int8)
    assert product(a, b)[0, 0] < 2**31
    np.testing.assert_array_equal(integer_matmul(backend, a, b), product(a, b))


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("inner", [1_026, 1_040])
def test_integer_matmul_is_exact_where_float32_is_not(backend, inner, place):
    """An odd sum above 2^24 has no float32: one block of up to 1,040 products could not give it."""
    a, b = np.full((1, inner), -128, np.int8), np.full((inner, 1), -128, np.int8)
    a[0, place] = b[place, 0] = 1
    expected = product(a, b)
    assert expected[0, 0] > 2**24 and int(np.float32(expected[0, 0])) != expected[0, 0]
    np.testing.assert_array_equal(integer_matmul(backend, a, b), expected)


@pytest.mark.parametrize("inner", [(3, 4), (4, 3), (BLOCK, BLOCK + 1), (BLOCK + 1, BLOCK)])
def test_integer_matmul_refuses_inner_axes_that_differ(backend, inner):
    a, b = backend.asarray(np.ones((2, inner[0]), np.int8)), backend.asarray(np.ones((inner[1], 2), np.int8))
    with pytest.raises((TypeError, ValueError)):
        backend.integer_matmul(a, b)


# largest


def of_all(arrays, k, *, backend):
    return backend.largest(arrays, k)


def largest(backend, arrays, k):
    run = backend.jit(of_all, static=("backend",))
    return backend.to_numpy(run(tuple(map(backend.asarray, arrays)), np.asarray(k, np.int32), backend=backend))


def test_largest_of_every_kind_of_number(backend):
    x = np.float32([2.0, -np.inf, 0.0, 1e-40, -3.5, np.inf, 2.0, -1e-40, -0.0])
    order = [5, 0, 6, 3, 2, 8, 7, 4, 1]  # −0 is 0, and the first of equal ones comes first
    for k in range(10):
        (found,) = largest(backend, (x,), k)
        assert sorted(np.flatnonzero(found)) == sorted(order[:k])


def test_largest_does_not_reorder_its_input(backend):
    x = np.random.default_rng(4).normal(size=(2, 20)).astype(np.float32)
    given_array = backend.asarray(x)
    backend.largest((given_array,), backend.asarray(np.int32([5, 5])))
    np.testing.assert_array_equal(backend.to_numpy(given_array), x)


# load, available, register


def test_load_gives_the_same_object_for_the_same_options():
    load = mm.backends.load
    assert load("numpy") is load("numpy") and load("numpy", debug=True) is load("numpy", debug=True)
    assert load("numpy") is not load("numpy", debug=True)


def test_load_passes_a_backend_through(backend):
    assert mm.backends.load(backend) is backend


def test_load_names_the_backend():
    assert mm.backends.load("numpy").name == "numpy" and mm.backends.load("numpy").xp is np
    assert mm.backends.load("array_api:array_api_strict").name == "array_api:array_api_strict"


@pytest.mark.parametrize("name", ["tensorflow", "", "numpyy:gpu", "NumPy"])
def test_an_unknown_backend_lists_what_there_is(name):
    head = name.partition(":")[0]
    with pytest.raises(ValueError, match=f"unknown backend {head!r}. Available: numpy.*array_api"):
        mm.backends.load(name)


def test_array_api_without_a_namespace_says_how_to_name_one():
    with pytest.raises(ValueError, match="array_api:array_api_strict"):
        mm.backends.load("array_api")


def test_array_api_takes_any_namespace():
    for backend in (mm.backends.load("array_api:numpy"), array_api.make(xp=np)):
        assert backend.name == "array_api:numpy" and backend.xp is np


@pytest.fixture
def without(monkeypatch, registry):
    """without("jax"): as if that library were not installed."""
    found = mm.backends.find_spec
    return lambda name: monkeypatch.setattr(mm.backends, "find_spec", lambda needs: needs != name and found(needs))


def test_a_backend_that_is_not_installed_says_how_to_install_it(without):
    without("jax")
    assert "jax" not in mm.backends.available()
    with pytest.raises(ImportError, match=r"'jax' needs jax: pip install 'minimodel\[jax\]'. Available: numpy"):
        mm.backends.load("jax")
    with pytest.raises(ValueError, match=r"Not installed: jax \(pip install 'minimodel\[jax\]'\)"):
        mm.backends.load("unknown")


def test_array_api_needs_only_the_namespace_it_is_given(without):
    without("array_api_strict")
    assert mm.backends.load("array_api:numpy").xp is np


def test_available_names_what_is_installed():
    assert {"numpy", "array_api"} <= set(mm.backends.available())


def make_registered(variant="plain", **options):
    return dataclasses.replace(numpy_backend.make(**options), name=f"mine:{variant}")


def test_a_registered_backend_loads_by_name_and_variant(registry):
    mm.backends.register("mine", make_registered)
    assert "mine" in mm.backends.available()
    assert mm.backends.load("mine").name == "mine:plain"
    assert mm.backends.load("mine:fast", debug=True).name == "mine:fast"
    assert mm.backends.load("mine") is mm.backends.load("mine")


def test_registering_again_replaces_the_backend(registry):
    mm.backends.register("mine", make_registered)
    first = mm.backends.load("mine")
    mm.backends.register("mine", lambda: dataclasses.replace(first, name="second"))
    assert mm.backends.load("mine").name == "second"


@pytest.mark.parametrize("name", ["numpy", "jax", "array_api", "mine:fast", ":", ""])
def test_register_refuses_names_that_load_could_not_find(registry, name):
    with pytest.raises(ValueError, match="name: expected a new name without ':'"):
        mm.backends.register(name, make_registered)
    assert name not in mm.backends._registered


def test_an_entry_point_is_a_backend(registry, monkeypatch):
    points = [SimpleNamespace(name="theirs", load=lambda: make_registered)]

    def entry_points(*, group, name=None):
        return [point for point in points if group == "minimodel.backends" and name in (None, point.name)]

    monkeypatch.setattr(mm.backends, "entry_points", entry_points)
    assert mm.backends.available()[-1] == "theirs"
    assert mm.backends.load("theirs:fast").name == "mine:fast"
    with pytest.raises(ValueError, match=r"unknown backend 'other'.*theirs"):
        mm.backends.load("other")


# JAX's devices and precision


def test_jax_on_the_cpu_keeps_its_arrays_there(jax):
    backend = mm.backends.load("jax:cpu")
    assert backend.name == "jax:cpu"
    assert backend.asarray(np.ones(2)).device.platform == "cpu"
    assert backend.devices == tuple(str(device) for device in jax.devices("cpu"))


def test_jax_without_a_gpu_refuses_one_clearly(jax):
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"backend 'jax:gpu': JAX sees no such device, only .*"):
        mm.backends.load("jax:gpu")


def matmul(x, y):
    return x @ y


def precisions(jaxpr):
    """The precision of every matrix product in a jaxpr, also of those inside calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from precisions(inner)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, {"HIGHEST"}),
        ({"precision": "highest"}, {"HIGHEST"}),
        ({"precision": "high"}, {"HIGH"}),
        ({"precision": "default"}, {"DEFAULT", None}),
    ],
)
def test_jax_pins_the_precision_of_products(jax, options, allowed):
    backend = mm.backends.load("jax", **options)
    x = backend.asarray(np.ones((2, 2), np.float32))
    found = list(precisions(jax.make_jaxpr(backend.jit(matmul))(x, x).jaxpr))
    assert len(found) == 1
    of_both = found[0] if isinstance(found[0], tuple) else (found[0],) * 2
    assert {getattr(of_one, "name", None) for of_one in of_both} <= allowed


def test_jax_leaves_the_processs_own_settings_alone(jax):
    """Two precisions run side by side, and neither stays behind after a call."""
    before = jax.config.jax_default_matmul_precision
    for precision in ("highest", "default"):
        backend = mm.backends.load("jax", precision=precision)
        backend.jit(add_one)(backend.asarray(np.ones(2, np.float32)))
        assert jax.config.jax_default_matmul_precision == before


@pytest.mark.parametrize("precision", ["bfloat16", "", None])
def test_jax_refuses_an_unknown_precision(jax, precision):
    with pytest.raises(ValueError, match=r"precision: expected one of .*highest.*, got"):
        mm.backends.load("jax", precision=precision)


@pytest.mark.parametrize("name", ["numpy:fast", "jax:fast"])
def test_an_unknown_variant_is_refused_by_name(jax, name):
    with pytest.raises(ValueError, match=name):
        mm.backends.load(name)
