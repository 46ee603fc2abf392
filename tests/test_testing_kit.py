"""The kit itself: its oracles against known numbers, its strategies, its machine, its plugin and its command."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import minimodel as mm
from minimodel import model, qarray, tree
from minimodel.testing import alarms, oracles, registration, suites
from minimodel.testing import strategies as some
from minimodel.testing.machine import Lifecycle
from minimodel.testing.strategies import law

SUITES = [value for name, value in vars(suites).items() if name.endswith("Suite") and name != "Suite"]


class TestFiles(suites.FileSuite):
    @pytest.fixture
    def files(self):
        return SimpleNamespace(dumps=mm.Model.dumps, loads=model.loads)


class TestQuantizer(suites.QuantizerSuite):
    @pytest.fixture(
        params=[(2, "symmetric", "channel"), (4, "symmetric_full", "tensor"), (8, "asymmetric", 3)], ids=str
    )
    def quantizer(self, request):
        bits, scheme, granularity = request.param
        return suites.quantization(bits, scheme, granularity=granularity)


class TestSigns(suites.QuantizerSuite):
    """One bit has no level for 0."""

    expected_failures: ClassVar = {
        "zero_is_exact": "the levels are −s and s",
        "halves_go_to_even": "there is nothing between −1 and 1",
        "order_is_kept": "0 is taken for positive, so that the sign of −0 is not the other",
    }

    @pytest.fixture
    def quantizer(self):
        return suites.quantization(1)


class TestFloor(suites.QuantizerSuite):
    """Rounding down is another rounding, and says so."""

    expected_failures: ClassVar = {
        "rounding_is_to_the_nearest": "down",
        "halves_go_to_even": "down",
        "quantizing_again_changes_nothing": "s·c·(1/s) may lie below c",
        "order_is_kept": "down is not symmetric",
    }

    @pytest.fixture
    def quantizer(self):
        return suites.quantization(4, rounding="floor")


# Oracles.


def test_differences_know_their_error():
    """Of sin the derivative passes, and so much more than the bound added to it does not."""
    x = np.linspace(-3, 3, 7)
    oracles.check_gradient(np.sin, np.cos(x), x)
    with oracles.refuses(AssertionError, r"gradient at \(3,\)"):
        oracles.check_gradient(np.sin, np.cos(x) + 1e-7 * (x == 0), x)


@given(seed=some.seeds, scale=st.sampled_from((1e-3, 1.0, 1e3)))
def test_differences_of_polynomials_are_within_their_error(seed, scale):
    x, a = np.random.default_rng(seed).normal(size=(2, 5))
    oracles.check_gradient(lambda z: scale * a * z**3, 3 * scale * a * x**2, x)


def test_a_product_with_the_hessian_is_checked():
    x, v = np.array([1.0, 2.0]), np.array([0.5, -1.0])
    gradient = lambda params: (params[0] ** 3,)  # noqa: E731
    oracles.check_hvp(gradient, (3 * x**2 * v,), (x,), (v,))
    with oracles.refuses(AssertionError, "product, leaf 0"):
        oracles.check_hvp(gradient, (3 * x**2,), (x,), (v,))


def test_differences_know_their_rounding():
    """Far out x + h is rounded to what is not h away, and f has as much to be rounded as x·f′ says."""
    x = np.array([1e5 + 1 / 3, -3e6, 0.1])
    oracles.check_gradient(lambda z: z * z, 2 * x, x)
    oracles.check_gradient(lambda z: np.sin(z) + 1e6, np.cos(x), x)


@pytest.mark.parametrize(
    ("name", "gradient", "x", "fn"),
    [
        ("x", np.zeros(1), np.array([300], np.float32), np.square),
        ("x", np.zeros(1), np.array([3]), np.square),
        ("gradient", np.array([600], np.float32), np.array([300.0]), np.square),
        ("fn", np.array([600.0]), np.array([300.0]), lambda z: np.square(z.astype(np.float32))),
    ],
)
def test_differences_of_float32_are_refused(name, gradient, x, fn):
    """In float32 every difference is rounding, and any gradient at all would be within its error."""
    with pytest.raises(TypeError, match=f"{name}: expected float64, got (float32|int64); compute it in float64"):
        oracles.check_gradient(fn, gradient, x)


def test_arguments_that_differences_cannot_judge_are_refused():
    for x in (np.array([np.nan]), np.array([2.0**30])):
        with pytest.raises(ValueError, match="x: expected finite numbers"):
            oracles.check_gradient(np.square, 2 * x, x)
    with pytest.raises(ValueError, match=r"gradient: expected the shape \(2,\), got \(1,\)"):
        oracles.check_gradient(np.square, np.zeros(1), np.zeros(2))
    x, narrow = (np.ones(2),), (np.ones(2, np.float32),)
    cube = lambda params: (params[0] ** 3,)  # noqa: E731
    for name, arguments in {"params": (x, narrow, x), "tangent": (x, x, narrow), "product": (narrow, x, x)}.items():
        with pytest.raises(TypeError, match=f"{name}, leaf 0: expected float64, got float32"):
            oracles.check_hvp(cube, *arguments)
    with oracles.refuses(AssertionError, r"product: the structure is \(\*, \*\), where \(\*\) was expected"):
        oracles.check_hvp(cube, (*x, *x), x, x)


@given(seed=some.seeds)
def test_products_in_float32_are_within_their_bound(seed):
    a, b = (
        np.random.default_rng(seed + i).normal(size=shape).astype(np.float32)
        for i, shape in enumerate([(4, 50), (50, 3)])
    )
    assert (np.abs(a @ b - a.astype(np.float64) @ b) <= oracles.componentwise_bound(a, b)).all()
    assert (oracles.componentwise_bound(a, b) < 1e-3).all()


def test_bits_tell_zeros_and_dtypes_apart():
    zero = np.zeros(2, np.float32)
    oracles.assert_same_bits((zero, None), (zero.copy(), None))
    oracles.assert_same_bits(np.array([np.nan]), np.array([np.nan]))
    for other in (-zero, zero.astype(np.float64), zero[:1]):
        with oracles.refuses(AssertionError):
            oracles.assert_same_bits(zero, other)


def test_trees_of_other_structures_are_not_the_same():
    x = np.zeros(1, np.float32)
    for other in ((x,), (x, None, None), (x, x), (None, x), mm.Layer(x, x)):
        for check in (oracles.assert_same_bits, oracles.assert_within_ulp, oracles.assert_within_step):
            with oracles.refuses(AssertionError, r"masks: the structure is .*, where \(\*, None\) was expected"):
                check(other, (x, None), what="masks")


def test_a_step_is_measured_beside_infinities():
    """They stand where they are expected, and say nothing of the size of the others."""
    one = np.array([1, np.inf, -np.inf], np.float32)
    oracles.assert_within_step(one, one.astype(np.float64))
    for found in ([5, np.inf, -np.inf], [1, -np.inf, -np.inf], [1, 3e38, -np.inf], [np.nan, np.inf, -np.inf]):
        with oracles.refuses(AssertionError):
            oracles.assert_within_step(np.array(found, np.float32), one)


def test_a_step_does_not_broadcast_and_keeps_integers():
    with oracles.refuses(AssertionError, r"shape \(3,\) where \(\) was expected"):
        oracles.assert_within_step(np.zeros(3), np.zeros(()))
    with oracles.refuses(AssertionError):
        oracles.assert_within_step(np.array([1_000_001]), np.array([1_000_000]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ulps_are_counted_across_zero(dtype):
    one, tiny = np.array([1.0, -2.0], dtype), np.nextafter(dtype(0), dtype(1))
    assert oracles.ulps_apart(one, np.nextafter(np.nextafter(one, dtype(9)), dtype(9))).tolist() == [2, 2]
    assert oracles.ulps_apart(np.array([tiny]), np.array([-tiny])).tolist() == [2]
    oracles.assert_within_ulp(one, np.nextafter(one, dtype(9)), 1)
    with oracles.refuses(AssertionError, "2 ulp apart, at most 1"):
        oracles.assert_within_ulp(np.array([tiny]), np.array([-tiny]), 1)


def test_infinity_and_nan_have_no_neighbours():
    most, infinite, nan = (np.array([x], np.float32) for x in (np.finfo(np.float32).max, np.inf, np.nan))
    for a, b in ((most, infinite), (infinite, nan), (infinite, -infinite)):
        with oracles.refuses(AssertionError, "ulp apart"):
            oracles.assert_within_ulp(a, b)
    with pytest.raises(TypeError, match="ulps_apart: expected floats of 16, 32 or 64 bits, got int32"):
        oracles.ulps_apart(np.zeros(1, np.int32), np.zeros(1, np.int32))


def test_another_refusal_is_told():
    with (
        pytest.raises(AssertionError, match="refused with 'too long', where 'too short' was expected"),
        oracles.refuses(ValueError, "too short"),
    ):
        raise ValueError("too long")


def test_threefry_gives_the_published_answers():
    assert oracles.threefry((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)
    key, counter = (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)
    assert oracles.threefry(key, counter) == (0xC4923A9C, 0x483DF7A0)


def doubled(x):
    return x + x


def far(x):
    xp = tree.namespace(x)
    return x * (2 if xp is np else 3)


def test_backends_are_compared_pair_by_pair():
    """Doubling is exact everywhere; a function that differs is of no tier, and the table says between whom."""
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    found = oracles.compare_backends(doubled, x)
    ways = 2 * len(oracles.installed())
    assert found.worst == "exact" and len(found.pairs) == ways * (ways - 1) // 2
    other = oracles.compare_backends(far, x, on=("numpy", "array_api:array_api_strict"))
    assert other.worst == "none" and {pair.tier for pair in other.pairs} == {"exact", "none"}
    assert "numpy eager" in str(other)
    near = np.array([1.0], np.float32)
    assert (
        oracles.tier(near, np.nextafter(near, np.float32(2))) == "ulp"
        and oracles.tier(near, near * np.float32(1.001)) == "none"
    )
    assert oracles.tier(near, near + np.float32(4e-6)) == "step"


def test_only_floats_are_an_ulp_or_a_step_apart():
    for dtype in (np.int32, np.int8, bool, np.uint32):
        assert oracles.tier(np.array([1], dtype), np.array([0], dtype)) == "none"
        assert oracles.tier(np.array([1], dtype), np.array([1], dtype)) == "exact"
    one = np.ones(2, np.float32)
    for other in ((one, one), (one, None), one[:1], one.astype(np.float64)):
        assert oracles.tier(other, one) == "none"


def test_backends_of_one_name_are_numbered_and_one_is_enough():
    x = np.ones(3, np.float32)
    found = oracles.compare_backends(doubled, x, on=("numpy", mm.backends.load("numpy", debug=True)))
    assert [pair.other for pair in found.pairs[:3]] == ["numpy compiled", "numpy (2) eager", "numpy (2) compiled"]
    for one in ("numpy", mm.backends.load("numpy")):
        assert oracles.compare_backends(doubled, x, on=one).pairs == (("numpy eager", "numpy compiled", "exact"),)
    with pytest.raises(ValueError, match="on: expected a backend or several, got none"):
        oracles.compare_backends(doubled, x, on=())


KEY = mm.random.key(0)
RUNS = {
    "children": lambda b: [mm.random.bits(key, backend=b) for key in mm.random.split(KEY, 3)],
    "drawn from twice": lambda b: [mm.random.bits(KEY, (n,), backend=b) for n in (1, 2)],
    "folded or split": lambda b: (mm.random.bits(KEY, backend=b), mm.random.split(KEY)),
    "split as well": lambda b: (mm.random.fold_in(KEY, 100), mm.random.normal(KEY, backend=b)),
    "folded or split as well: one": lambda b: (
        mm.random.bits(KEY, backend=b),
        mm.random.bits(mm.random.fold_in(mm.random.fold_in(KEY, 0), 1), backend=b),
    ),
}


@pytest.mark.parametrize("message", RUNS)
def test_a_key_that_is_split_is_not_drawn_from(message):
    """Nor is one of which a child far away, or a grandchild, is drawn from."""
    keys = oracles.keys_used(RUNS[message])
    if message == "children":
        oracles.assert_keys_are_used_once(keys)
        assert (keys.folded == KEY).all() and len(keys.drawn) == 3
        return
    with oracles.refuses(AssertionError, message):
        oracles.assert_keys_are_used_once(keys)


def test_keys_that_were_split_elsewhere_are_found_by_their_children():
    key = KEY[None]
    keys = oracles.Keys(np.concatenate([key, mm.random.split(KEY, 3)]), key[:0])
    with oracles.refuses(AssertionError, "folded or split"):
        oracles.assert_keys_are_used_once(keys)


# Strategies.


@given(st.data())
def test_what_is_drawn_fits_together(data):
    network = data.draw(some.networks())
    loss, population = data.draw(some.losses()), data.draw(some.populations)
    params = data.draw(some.params(network, population))
    x, y = data.draw(some.batches(network)), data.draw(some.targets(loss, network.layer_sizes[-1]))
    value, grads = mm.value_and_grad(network, loss, params, x, y)
    assert value.shape == some.lead(population) and np.isfinite(value).all()
    assert [leaf.shape for leaf in tree.leaves(grads)] == [leaf.shape for leaf in tree.leaves(params)]


@given(mask=st.integers(0, 6).flatmap(lambda n: st.tuples(st.just(n), some.masks((2, 3), n))))
def test_masks_keep_exactly_so_many(mask):
    assert mask[1].sum() == mask[0] and mask[1].shape == (2, 3)


@pytest.mark.parametrize("kept", [7, -1])
def test_a_mask_keeps_no_more_than_there_is(kept):
    with pytest.raises(ValueError, match=f"kept: expected 0 to 6, got {kept}"):
        some.masks((2, 3), kept)


@pytest.mark.parametrize("first", ["minimodel.testing.strategies", "hypothesis", "minimodel.testing.registration"])
def test_the_kit_and_hypothesis_can_be_imported_in_any_order(first):
    """Hypothesis calls the kit while it is being imported itself; what it calls must not need the kit's strategies."""
    lines = (
        f"import sys, {first}",
        "import hypothesis",
        "loaded = 'minimodel.testing.strategies' in sys.modules",
        f"assert loaded == ({first!r} == 'minimodel.testing.strategies'), 'imported before it was needed'",
        "import minimodel as mm",
        "from hypothesis import strategies as st",
        "st.from_type(mm.QArray).validate()",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@given(
    st.data(),
    st.integers(1, 8),
    st.sampled_from(qarray.SCHEMES),
    some.populations,
    st.sampled_from(("tensor", "channel", 2)),
)
def test_quantized_arrays_are_in_range(data, bits, scheme, population, granularity):
    q = data.draw(some.quantized((4, 3), bits, scheme, population, granularity))
    low, high = qarray.levels(bits, scheme)
    assert low <= q.values.min() and q.values.max() <= high and np.isfinite(qarray.dequantize(q)).all()
    assert q.values.shape == (*some.lead(population), 4, 3)
    shared = {"tensor": (1, 1), "channel": (1, 3), 2: (2, 3)}[granularity]
    assert q.scale.shape == q.zero_point.shape == (*some.lead(population), *shared)


@pytest.mark.parametrize("kind", registration.MAKERS)
@settings(max_examples=5)
@given(data=st.data())
def test_every_registered_type_is_made(kind, data):
    assert isinstance(data.draw(st.from_type(kind)), kind)


@given(optimizer=some.optimizers(), schedule=some.schedules(), layer=st.from_type(mm.Layer))
def test_types_have_strategies(optimizer, schedule, layer):
    rates = optimizer.schedule(np.arange(5), mm.schedules.Run(5))
    assert (rates >= 0).all() and (schedule(np.arange(5), mm.schedules.Run(5)) >= 0).all()
    assert layer.weight.shape[-1:] == layer.bias.shape


def test_layouts_are_all_there():
    """Strides that are negative, and others; the values are the same."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = {name: layout(x) for name, layout in some.LAYOUTS.items()}
    assert all((value == x).all() for value in found.values())
    assert found["negative"].strides[0] < 0 and found["Fortran"].flags.f_contiguous
    assert not found["strided"].flags.contiguous


# Suites.


@pytest.mark.parametrize("suite", SUITES)
def test_every_check_states_its_law_why_and_its_source(suite):
    assert len(suite.checks()) >= 5
    for check in suite.checks():
        text = getattr(suite, f"test_{check}").__doc__
        assert "Why: " in text and "Source: " in text and suite.law(check), check
        assert not re.search("DESIGN|NUMERICS|CONTRIBUTING", text), f"{check}: a source that users do not have"


def test_an_unknown_check_cannot_be_expected_to_fail():
    with pytest.raises(TypeError, match="no check 'asaray'"):
        type("Mine", (suites.BackendSuite,), {"expected_failures": {"asaray": "a slip"}})


def test_an_expected_failure_that_passes_is_a_failure():
    class Mine(suites.BackendSuite):
        expected_failures: ClassVar = {"take_gives_rows": "not so"}

    (found,) = suites.run(Mine, mm.backends.load("numpy"), only=("take_gives_rows",))
    assert found.outcome == "failed" and found.error == "it was expected to fail, and passes"


# The machine.


class TestLifecycle(Lifecycle.TestCase):
    """On every backend that is installed."""


class OnNumPy(Lifecycle):
    backends = ("numpy",)


class Forgetful(OnNumPy):
    """Masks are not saved."""

    def save(self, given):
        return super().save(replace(given, masks=None) if given.quantized is None else given)


class Regrowing(OnNumPy):
    """Retraining goes on without the masks."""

    def take(self, backend, step, *args, **options):
        super().take(backend, step, *args, **{name: value for name, value in options.items() if name != "masks"})


class Leaking(OnNumPy):
    """Pruned weights come back from a file as a little more than 0."""

    def load(self, raw):
        found = super().load(raw)
        if not found.masks or found.quantized:
            return found
        return replace(found, params=tuple(p._replace(weight=p.weight + np.float32(1e-9)) for p in found.params))

    def take(self, backend, step, *args, **options):
        super().take(backend, step, *args, **options)
        self.model = self.load(self.save(self.model))


class TooFar(OnNumPy):
    """The least integer is that of two's complement, whatever the scheme."""

    def take(self, backend, step, *args, **options):
        super().take(backend, step, *args, **options)
        if self.model.quantized and not self.model.masks:
            least = np.int8(-(2 ** (self.model.bits - 1)))
            integers = tuple(q._replace(values=np.full_like(q.values, least)) for q in self.model.quantized)
            params = zip(map(qarray.dequantize, integers), self.model.params, strict=True)
            params = tuple(layer._replace(weight=weight) for weight, layer in params)
            self.model = replace(self.model, quantized=integers, params=params)


class Careless(OnNumPy):
    """Of a run that stops the last parameters are kept, not the last finite ones."""

    def take(self, backend, step, *args, **options):
        super().take(backend, step, *args, **options)
        if self.stopped:
            huge = tree.map(lambda leaf: leaf * np.float32(1e30), self.model.params)
            self.model = replace(self.model, params=huge)


class Unheard(OnNumPy):
    """A run that leaves the finite numbers goes on as if nothing had been."""

    def take(self, backend, step, *args, **options):
        super().take(backend, step, *args, **options)
        self.stopped = None


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (Forgetful, "masks got lost"),
        (Regrowing, "the masks are gone"),
        (Leaking, "a pruned weight is not 0"),
        (TooFar, "out of range"),
        (Careless, "the loss is not finite"),
        (Unheard, "did not stop the run"),
    ],
)
def test_a_broken_life_is_found_by_the_invariant_that_names_it(machine, message):
    machine.TestCase.settings = settings(Lifecycle.TestCase.settings, phases=[Phase.generate])
    with oracles.refuses(AssertionError, message):
        machine.TestCase("runTest").runTest()


def test_an_expected_failure_for_another_reason_is_a_failure():
    broken = replace(mm.backends.load("numpy"), take=lambda x, rows: x[rows] + 1)
    for match, outcome in (("Not equal|not equal|equal", "expected"), ("no uint32", "failed")):
        mine = type("Mine", (suites.BackendSuite,), {"expected_failures": {"take_gives_rows": ("off", match)}})
        (found,) = suites.run(mine, broken, only=("take_gives_rows",), shrink=False)
        assert found.outcome == outcome
    assert found.error.startswith("it was expected to fail with 'no uint32', and fails with\nAssertionError")


def test_a_check_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"only: expected checks of BackendSuite, got 'nope'; there are \('asarray_"):
        suites.run(suites.BackendSuite, mm.backends.load("numpy"), only=("nope",))


class Own(suites.FileSuite):
    seen: ClassVar = []

    @law(5, x=st.integers(0, 10**9))
    def test_of_my_own(self, files, x):
        self.seen.append(x)


def test_a_check_needs_no_docstring_and_a_seed_is_that_of_one_run():
    drawn = []
    for seed in (None, 1, 2, None):
        Own.seen.clear()
        (found,) = suites.run(Own, None, only=("of_my_own",), seed=seed)
        assert found.outcome == "passed" and found.law == ""
        drawn.append(tuple(Own.seen))
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3


# Ways in.


def pytest_run(folder, source, *arguments):
    """pytest on a module, in a run of its own, without the summary, in which messages come again where CI=1."""
    (folder / "test_mine.py").write_text(f"import pytest\nfrom minimodel.testing.suites import FileSuite\n{source}")
    command = [sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", *arguments, "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


BACKENDS = """
import minimodel as mm
from minimodel.testing.suites import BackendSuite

class TestBackend(BackendSuite):
    pass
"""


def test_the_plugin_has_a_fixture_of_backends(tmp_path):
    only = "scan or nothing_else"
    done = pytest_run(tmp_path, BACKENDS, "--minimodel-backends", "numpy", "-k", only)
    count = len(suites.BackendSuite.checks())
    assert done.returncode == 0
    assert f"TestBackend[numpy]: 3 of {count} ({count - 3} not selected)" in done.stdout


# Suites whose checks take no time: what passes and fails is what the fixture says.
QUICK = """
class Quick(FileSuite):
    @pytest.fixture
    def files(self):
        return ("masks_come_back",)

for name in FileSuite.checks():
    def check(self, files, name=name):
        assert name not in files, "it is broken"
    check.__name__ = f"test_{name}"
    setattr(Quick, check.__name__, check)

class TestMine(Quick):
    expected_failures = {"masks_come_back": ("it is so", "broken")}
"""
GREEN = """
class TestAbsent(Quick):
    @pytest.fixture
    def files(self):
        pytest.skip("there is none")
"""
RED = """
class TestMarked(TestMine):
    @pytest.mark.skip(reason="slow")
    def test_integers_come_back(self, files):
        pass

class TestSkipping(TestMine):
    def test_integers_come_back(self, files):
        pytest.skip("later")

class TestMarkedOtherwise(TestMine):
    @pytest.fixture
    def files(self, request):
        if "integers" in request.node.name:
            request.node.add_marker(pytest.mark.xfail(reason="later"))
        return ("masks_come_back", "integers_come_back")

class TestOther(Quick):
    expected_failures = {"masks_come_back": ("it is so", "another")}

class TestPassing(Quick):
    expected_failures = {"masks_come_back": "it is so", "integers_come_back": "not so"}
"""
FILES = len(suites.FileSuite.checks())


def test_the_plugin_counts_checks_and_says_why_some_did_not_run(tmp_path):
    done = pytest_run(tmp_path, QUICK + GREEN)
    assert done.returncode == 0 and f"TestMine: {FILES} of {FILES}\n" in done.stdout, done.stdout
    assert f"TestAbsent: 0 of {FILES} (there is none)" in done.stdout
    done = pytest_run(tmp_path, QUICK + GREEN, "-n", "2", "-k", "masks or integers")
    assert done.returncode == 0 and f"TestMine: 2 of {FILES} ({FILES - 2} not selected)" in done.stdout, done.stdout
    assert f"TestAbsent: 0 of {FILES} (there is none; {FILES - 2} not selected)" in done.stdout


def test_the_plugin_lets_no_check_be_skipped_or_fail_otherwise(tmp_path):
    done = pytest_run(tmp_path, QUICK + RED)
    assert done.returncode == 1 and "4 failed" in done.stdout and "1 error" in done.stdout, done.stdout
    assert done.stdout.count("integers_come_back: a check is not skipped; name it in expected_failures") == 2
    assert done.stdout.count("integers_come_back: a check has no xfail of its own; name it in expected_failures") == 1
    assert "masks_come_back: expected to fail with 'another', got\nit is broken" in done.stdout
    assert "XPASS(strict)" in done.stdout and f"TestMarked: {FILES - 1} of {FILES}" in done.stdout


LOSING = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    return True if "integers" in item.name else None
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_check_that_was_selected_and_did_not_run_fails_the_run(tmp_path, workers):
    """Whatever kept it from running."""
    (tmp_path / "conftest.py").write_text(LOSING)
    done = pytest_run(tmp_path, QUICK, *workers)
    assert done.returncode == 1 and f"TestMine: {FILES - 1} of {FILES} (1 did not run)" in done.stdout, done.stdout


def test_a_check_that_is_not_collected_is_an_error(tmp_path):
    done = pytest_run(tmp_path, BACKENDS.replace("    pass\n", "    test_take_gives_rows = None\n"))
    assert done.returncode == 4 and "TestBackend: not collected: take_gives_rows" in done.stderr


BROKEN = """
from dataclasses import replace
import minimodel as mm
mm.backends.register("broken", lambda: replace(mm.backends.load("numpy"), take=lambda x, rows: x[rows[::-1]]))
"""


def test_check_prints_every_law_and_fails_where_one_is_broken(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    command = [sys.executable, "-m", "minimodel", "check", "--import", "broken", "broken", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "minimodel: broken failed" in done.stderr
    record = json.loads(done.stdout)
    outcomes = {check["check"]: check["outcome"] for check in record["checks"]}
    assert tuple(outcomes) == suites.BackendSuite.checks() and record["version"] == suites.CHECKS_VERSION
    assert outcomes["take_gives_rows"] == "failed" and outcomes["scan_is_a_loop"] == "passed"


def test_alarms_counts_failures_over_seeds(tmp_path, capsys, monkeypatch):
    """What is counted, and the file; of two checks only, as all of them take seconds."""
    some_checks = ("take_gives_rows", "scan_is_a_loop")
    monkeypatch.setattr(suites.BackendSuite, "checks", classmethod(lambda cls: some_checks))
    broken = replace(mm.backends.load("numpy"), name="broken", take=lambda x, rows: x[rows[::-1]])
    monkeypatch.setattr(mm.backends, "available", lambda: ("numpy", "array_api"))
    monkeypatch.setitem(mm.backends._registered, "broken", lambda: broken)
    assert alarms.main(["--runs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "numpy: 0 false alarms in 2 runs of 2 checks" in printed and "array_api:array_api_strict: 0 false" in printed
    assert alarms.main(["--runs", "1", "--backends", "broken", "--out", str(tmp_path / "alarms.json")]) == 1
    record = json.loads((tmp_path / "alarms.json").read_text())
    assert record["machine"]["date"] and record["version"] == suites.CHECKS_VERSION
    (found,) = record["backends"].values()
    assert found["alarms"] == 2 and found["failed"] == [[None, "take_gives_rows"], [1, "take_gives_rows"]]
    assert found["first_seconds"] > 0 and found["mean_seconds"] > 0
