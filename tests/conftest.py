"""What the tests share: every backend, with and without a population; seeded Hypothesis; small problems."""

import importlib
import importlib.metadata
import importlib.util
import os
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import minimodel as mm
from minimodel import optimizers, strategies
from minimodel.backends import replay

# Two thirds of the time of JAX's tests are compilation, of many small programs that run once. What is said of them here
# does not depend on how well they are optimised; .ci/run tests what is promised to the bit once more with XLA_FLAGS="".
if importlib.util.find_spec("jaxlib") and "XLA_FLAGS" not in os.environ:
    flags = ["--xla_backend_optimization_level=0"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # a flag that is unknown ends the process
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)

settings.register_profile(
    "minimodel",
    deadline=None,  # JAX compiles on the first example
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("minimodel")

BACKENDS = {
    "numpy": ("numpy", {"debug": True}),
    "strict": ("array_api:array_api_strict", {"debug": True}),
    "jax": ("jax", {}),
}


def pytest_collection_modifyitems(config, items):
    """On JAX, which compiles each case, so many that every value of every parameter of a test meets it, in turn with
    the others'; NumPy and the strict namespace see all combinations, and so does JAX with MINIMODEL_ALL_CASES=1."""
    tests = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and item.callspec.params.get("backend") == "jax":
            tests[item.nodeid.partition("[")[0]].append(item)
    left_out = set()
    if os.environ.get("MINIMODEL_ALL_CASES") != "1":
        for found in tests.values():
            chosen = cover([{(name, repr(value)) for name, value in item.callspec.params.items()} for item in found])
            left_out.update(item for i, item in enumerate(found) if i not in chosen)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def cover(cases):
    """The places of cases, sets of values, that have every value: first those with most that are new, then rare."""
    missing, used, chosen = set().union(*cases), Counter(), {0}
    missing -= cases[0]
    used.update(cases[0])
    while missing:
        best = max(range(len(cases)), key=lambda i: (len(cases[i] & missing), -sum(used[value] for value in cases[i])))
        chosen.add(best)
        used.update(cases[best])
        missing -= cases[best]
    return chosen


def load(name):
    """One of the three backends under test; the eager ones in debug mode."""
    source, options = BACKENDS[name]
    return mm.backends.load(source, **options)


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "jax":
        pytest.importorskip("jax")
    return load(request.param)


@pytest.fixture(params=[None, 3], ids=["single", "population"])
def population(request):
    return request.param


# Every strategy, by its σ.
STRATEGIES = {
    "uniform": lambda sigma: strategies.uniform(-5 * sigma, 5 * sigma),
    "gaussian": lambda sigma: strategies.gaussian(10 * sigma),
    "cauchy": strategies.cauchy,
    "sobol": lambda sigma: strategies.gaussian(10 * sigma, points="sobol"),
    "hill_climbing": strategies.hill_climbing,
    "hill_climbing cauchy": lambda sigma: strategies.hill_climbing(sigma, law="cauchy"),
    "one_plus_one": strategies.one_plus_one,
    "mu_lambda": strategies.mu_lambda,
    "simulated_annealing": strategies.simulated_annealing,
    "open_es": strategies.open_es,
    "open_es average": lambda sigma: strategies.open_es(
        sigma, optimizer=optimizers.momentum(sigma, average=0.5), antithetic=False
    ),
    "low_rank_es": lambda sigma: strategies.low_rank_es(sigma, optimizer=optimizers.adam(sigma / 5)),
    "low_rank_es 3": lambda sigma: strategies.low_rank_es(sigma, rank=3, antithetic=False),
    "snes": strategies.snes,
    "sep_cma_es": strategies.sep_cma_es,
    "subspace": lambda sigma: strategies.subspace(strategies.snes(sigma), 5, seed=1),
    "subspace redraw": lambda sigma: strategies.subspace(strategies.open_es(sigma), 5, seed=1, redraw=True),
}


@pytest.fixture(params=STRATEGIES)
def maker(request):
    """A function of σ that makes a strategy."""
    if request.param == "sobol":
        pytest.importorskip("scipy")
    return STRATEGIES[request.param]


# Of every plan one, with most of its options: what a test of each plan on each backend takes.
PLANS = (
    "uniform",
    "sobol",
    "hill_climbing",
    "one_plus_one",
    "mu_lambda",
    "simulated_annealing",
    "open_es average",
    "low_rank_es 3",
    "snes",
    "sep_cma_es",
    "subspace redraw",
)


@pytest.fixture(
    params=[(name, backend) for backend in BACKENDS for name in (STRATEGIES if backend == "numpy" else PLANS)],
    ids="-".join,
)
def maker_and_backend(request):
    """Every maker on NumPy, and one of each plan on the others."""
    name, backend = request.param
    for needed in {"sobol": ("scipy",)}.get(name, ()) + (("jax",) if backend == "jax" else ()):
        pytest.importorskip(needed)
    return STRATEGIES[name], load(backend)


@pytest.fixture(params=[name for name in STRATEGIES if name not in ("sobol", "simulated_annealing")])
def lawful_maker(request):
    """As ``maker``, of strategies without an expected failure."""
    return STRATEGIES[request.param]


@pytest.fixture(params=[name for name in STRATEGIES if "low_rank" not in name])
def vector_maker(request):
    """As ``maker``, of strategies that search vectors too."""
    if request.param == "sobol":
        pytest.importorskip("scipy")
    return STRATEGIES[request.param]


@pytest.fixture
def exact_sums(monkeypatch):
    """A record of NumPy's adds up as NumPy does, not by BLAS, so that all else can be compared to the bit."""
    monkeypatch.setattr(replay, "SUMS", {})


@pytest.fixture(scope="session")
def oracle():
    """oracle("torch"): the module, or a skip; with MINIMODEL_REQUIRE_ORACLES=1 a missing one is a failure."""

    def find(name):
        if os.environ.get("MINIMODEL_REQUIRE_ORACLES") == "1":
            return importlib.import_module(name)
        return pytest.importorskip(name, reason=f"oracle {name} is not installed: pip install 'minimodel[oracles]'")

    return find


def make_splits(rows=96, features=4, classes=3, seed=0, regression=False):
    """A small problem that a small network can learn."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    truth = rng.normal(size=(features, classes))
    y = (np.tanh(x @ truth)).astype(np.float32) if regression else (x @ truth).argmax(1)
    return mm.datasets.split(x, y, seed=seed)


@pytest.fixture(scope="session")
def splits():
    return make_splits()
