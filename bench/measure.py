"""``minimodel bench``: every backend on the same cases, checked first, then timed side by side.

A report is what ``--json`` writes:

schema     "minimodel.bench/2"
machine    date, processor, cores, system, versions of packages
settings   seed, seconds, passes, and ``threads``: how many were asked for, on which processors, the pools of BLAS and
           OpenMP with their versions, and whether they were set before JAX was loaded
backends   by name: devices, library and its version, experimental; in a fresh process ``import_seconds`` (loading the
           backend) and ``start_seconds`` (the first product it computes); ``peaks``: by dtype the best operations and
           bytes a second seen, null where it has no such dtype; or ``refused`` with the reason
points     a list of: case, kind, size (layers, batch, population, dtype), operations and bytes a call must at least
           do, ``reference``: seconds of one and the same small product by NumPy, in every round as ``samples``, which
           tell how fast the machine was then, and by backend either ``skipped`` with the reason, or
             error              distance from NumPy's result, as a part of its norm; ``tolerance`` is the point's
             first_seconds      the first call: tracing and compilation included
             to_device_seconds, to_host_seconds   of the inputs, of the result; null where a case has no inputs
             peak_bytes         the inputs, and what a call takes besides; of a device that counts for itself all that
                                was ever in use, if this call used more; null where that is not known
             loops              calls in a sample
             samples            seconds a call, each the median of ``loops`` calls: a list for each pass over all cases,
                                whose i-th is of its i-th round, in which every backend is timed once, in random order

What is derived from samples (``bench.statistics``) is not stored. First calls are those of this process, which should
be a fresh one, as the command is.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from math import ceil, nan
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from minimodel import backends, tree
from minimodel.backends import Backend
from minimodel.bench import resources, running
from minimodel.bench.cases import CASES, Case, Size
from minimodel.bench.common import machine

SCHEMA = "minimodel.bench/2"
PASSES, MOST_ROUNDS = 6, 40  # an interval of 95 % takes 6 samples
SAMPLE_SECONDS, LONG_SECONDS = 1e-3, 0.1
COPIES = 10  # of its weights and activations, at most, that a program needs
LIMIT, LEAST_LIMIT = 1 / 1500, 0.5  # the longest call, as a part of the time, but always so many seconds
REFERENCE, REFERENCE_LOOPS, SQUARE = "reference", 3, np.ones((256, 256), np.float32)
CHECKING, LEAST_PART = 0.8, 0.5  # of the time: after that part no point is looked at; at least so much is for points
REFERENCE_LIMIT = 10  # times the limit of a call, what NumPy may take for the result to compare with
DTYPES = tuple(running.EPS)
COLD = (
    "import sys; from time import perf_counter as now; names, name = sys.argv[1].split(), sys.argv[2]; "
    "[__import__(one) for one in names]; start = now(); import numpy; import minimodel; from minimodel.backends "
    "import load; backend = load(name); loaded = now(); x = backend.asarray(numpy.ones((2, 2), 'float32')); "
    "backend.synchronize(x @ x); print(loaded - start, now() - loaded)"
)

Watch = Callable[[str, int, int], None]  # (what is done now, done, of how many)


class Plan(NamedTuple):
    """What is to be measured, and how long it may take; ``imports`` are modules that register backends.

    ``everywhere``: where JAX's default device is an accelerator, JAX on the processor as well.
    """

    backends: tuple[str, ...]
    points: tuple[tuple[Case, Size], ...]
    seconds: float
    threads: int = 1
    seed: int = 0
    imports: tuple[str, ...] = ()
    everywhere: bool = False


class Timed(NamedTuple):
    """A point of the plan, its entry in the report, and the backends that it is timed on."""

    case: Case
    size: Size
    entry: dict[str, Any]
    backends: dict[str, Backend]


def points(
    cases: Any, layers: Any, populations: Any, dtypes: Any, batch: int | None = None
) -> tuple[tuple[Case, Size], ...]:
    """All combinations that there are, by default in batches of 32 rows, of a network with a wide layer 128."""
    found = []
    for name, sizes, population, dtype in product(cases, layers, populations, dtypes):
        if dtype == "float32" or CASES[name].floats:
            rows = batch or (32 if max(sizes) < 256 else 128)
            size = Size(sizes, rows, population if population > 1 else None, dtype)
            found.append((CASES[name], size))
    return tuple(found)


def measure(plan: Plan, watch: Watch = lambda *args: None) -> dict[str, Any]:
    """The report."""
    began = perf_counter()
    for name in plan.imports:
        import_module(name)
    with resources.threads(plan.threads) as said:
        rng = np.random.default_rng(plan.seed)
        opened, about = open_backends(plan, watch)
        dtypes = {size.dtype for _, size in plan.points}
        for name, backend in opened.items():
            watch(f"peaks of {name}", 0, 0)
            about[name]["peaks"] = {dtype: peaks_of(backend, dtype, rng) for dtype in sorted(dtypes)}
        of_memory(about)
        checked_from = perf_counter()
        deadline = max(began + plan.seconds, checked_from + LEAST_PART * plan.seconds)  # short ones end a little later
        limit, timed = max(LEAST_LIMIT, LIMIT * plan.seconds), []
        for number, (case, size) in enumerate(plan.points):
            watch(f"check {case.name} {size}", number, len(plan.points))
            rates = {name: about[name]["peaks"][size.dtype] for name in opened}
            late = perf_counter() - checked_from > CHECKING * (deadline - checked_from)
            timed.append(check(case, size, opened, rates, 0.0 if late else limit, plan.seed))
        sweep([one for one in timed if one.backends], deadline, rng, plan.seed, watch)
    settings = {"seed": plan.seed, "seconds": plan.seconds, "passes": PASSES, "threads": said}
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "settings": settings,
        "backends": about,
        "points": [one.entry for one in timed],
    }


def open_backends(plan: Plan, watch: Watch) -> tuple[dict[str, Backend], dict[str, Any]]:
    """Those that load and wait for their results, and what there is to say of each."""
    opened: dict[str, Backend] = {}
    about: dict[str, Any] = {}
    names = list(plan.backends)
    for name in names:
        watch(f"start {name}", 0, 0)
        try:
            backend = backends.load(name)
            running.check_synchronize(backend)
            about[name] = described(backend) | cold(name, plan.imports)
            opened[name] = backend
            if name == "jax" and plan.everywhere and "cpu" not in backend.devices[0].lower():
                names.append("jax:cpu")
        except Exception as error:  # a third party's: whatever it is, the others are still to be measured
            about[name] = {"refused": reason(error)}
    return opened, about


def described(backend: Backend) -> dict[str, Any]:
    """Where it runs and on what; namespaces that nobody has tested here are experimental."""
    library = backend.xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    try:
        known: str | None = version(library.replace("_", "-"))
    except PackageNotFoundError:
        known = None
    tested = library in ("numpy", "jax", "array_api_strict")
    return {"devices": list(backend.devices), "library": library, "version": known, "experimental": not tested}


def cold(name: str, imports: tuple[str, ...]) -> dict[str, float | None]:
    """Seconds to load the backend and to compute something in a fresh process; none if only this one knows it."""
    command = [sys.executable, "-c", COLD, " ".join(imports), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = map(float, done.stdout.split()) if done.returncode == 0 else (None, None)
    return dict(zip(("import_seconds", "start_seconds"), found, strict=True))


def of_memory(about: dict[str, Any]) -> None:
    """The rate of the processor's memory among the peaks of every backend on it: what allocates does not reach it."""
    rates = [
        rates
        for one in about.values()
        if "peaks" in one and platform(one) == "cpu"
        for rates in one["peaks"].values()
        if rates
    ]
    best = running.host_bytes_a_second() if rates else 0.0
    for each in rates:
        each["bytes"] = max(each["bytes"], best)


def peaks_of(backend: Backend, dtype: str, rng: np.random.Generator) -> dict[str, float] | None:
    """None where there is no such dtype."""
    try:
        return running.peaks(backend, dtype, rng)
    except Exception:
        return None


def check(case: Case, size: Size, opened: dict[str, Backend], rates: dict[str, Any], limit: float, seed: int) -> Timed:
    """Run the point once or a few times on every backend, note what is seen once, and leave out what is wrong.

    ``limit``: the longest call that there is time for; none, and nothing is run.
    """
    entry: dict[str, Any] = {
        "case": case.name,
        "kind": case.kind,
        "size": size._asdict(),
        "operations": case.operations(size),
        "bytes": case.traffic(size),
        "tolerance": running.tolerance(case, size),
        REFERENCE: [],
        "backends": {},
    }

    def skip(why: str) -> Timed:
        return Timed(case, size, entry | {"backends": {name: {"skipped": why} for name in opened}}, {})

    need, have = COPIES * size.itemsize * (size.weights + size.activations), resources.available_memory()
    if need > have:
        return skip(f"needs about {need / 1e9:.1f} GB, there are {have / 1e9:.1f}")
    if not limit:
        return skip("no time was left for it; give more of it, or fewer cases")
    takes = {name: estimate(case, size, rates[name]) for name in opened}
    if min(takes.values(), default=0.0) > limit:
        return skip(too_long(min(takes.values())))
    if takes.get("numpy", 0.0) > REFERENCE_LIMIT * limit:
        return skip(f"NumPy takes about {takes['numpy']:.1f} s for what it is to be compared with")
    host = case.inputs(size, np.random.default_rng(seed))
    numpy, start = backends.load("numpy"), perf_counter()
    try:
        expected = numpy.to_numpy(running.place(case, reference(size), numpy, host).call())
    except Exception as error:
        return skip(f"NumPy gives nothing to compare with: {reason(error)}")
    first_of_numpy = perf_counter() - start
    if "numpy" in takes:
        takes["numpy"] = max(takes["numpy"], first_of_numpy)
    going: dict[str, Backend] = {}
    for name, backend in opened.items():
        try:
            if takes[name] > limit:
                raise ValueError(too_long(takes[name]))
            entry["backends"][name] = look(case, size, backend, host, expected, limit)
            if name == "numpy" and size == reference(size):
                entry["backends"][name]["first_seconds"] = first_of_numpy
            going[name] = backend
        except Exception as error:
            entry["backends"][name] = {"skipped": reason(error)}
    return Timed(case, size, entry, going)


def reference(size: Size) -> Size:
    """What NumPy computes for comparison: the same, of a dtype that it has."""
    return size if size.dtype == "float64" else size._replace(dtype="float32")


def estimate(case: Case, size: Size, rates: dict[str, float] | None) -> float:
    """Seconds of a call at the best rates, 0 where there are none, so that the call itself says why."""
    return 0.0 if rates is None else case.operations(size) / rates["operations"] + case.traffic(size) / rates["bytes"]


def too_long(seconds: float) -> str:
    """A reason."""
    return f"a call takes about {seconds:.1f} s, which is more than its share of the time"


def look(case: Case, size: Size, backend: Backend, host: Any, expected: Any, limit: float) -> dict[str, Any]:
    """What is measured once. Raises ValueError where the result is wrong, comes too early or takes too long."""
    placed = running.place(case, size, backend, host)
    start = perf_counter()
    result = backend.synchronize(placed.call())
    first = perf_counter() - start
    error = running.difference(backend.to_numpy(result), expected)
    if error > (allowed := running.tolerance(case, size)):
        raise ValueError(f"wrong result: it is {error:.1e} from NumPy's, as a part of it; {allowed:.1e} is allowed")
    held, seen = resources.forget_peak(), resources.device_peak(result)
    result = backend.synchronize(placed.call())
    peak = None if held is None else max(0.0, resources.peak_memory() - held) + size_of(host)
    if seen is not None:
        peak = now if (now := resources.device_peak(result)) != seen else None
    waits = running.waits(placed.call, backend, 1)
    if waits.claimed > limit:
        raise ValueError(too_long(waits.claimed))
    if waits.claimed < limit / 5:
        waits = running.waits(placed.call, backend)
    if not waits.honest:
        raise ValueError(
            f"not synchronised: after {waits.claimed * 1e3:.2f} ms {waits.hidden * 1e3:.2f} ms of work were left"
        )
    return {
        "error": error,
        "first_seconds": first,
        "to_device_seconds": placed.to_device,
        "to_host_seconds": waits.transfer if host else None,
        "peak_bytes": peak,
        "loops": max(1, ceil(SAMPLE_SECONDS / waits.claimed)),
        "samples": [],
    }


def size_of(host: Any) -> int:
    """Bytes of the inputs."""
    return sum(leaf.nbytes for leaf in tree.leaves(host))


def sweep(timed: list[Timed], deadline: float, rng: np.random.Generator, seed: int, watch: Watch) -> None:
    """All points in turn, so many times over; each gets an equal share of the time that is left.

    Passes lie far apart in time, so that what is seen of a backend does not hang on one moment.
    """
    everything = PASSES * len(timed)
    for done, one in enumerate(timed * PASSES):
        if done >= len(timed) and perf_counter() > deadline:
            return
        watch(f"time {one.case.name} {one.size}", done, everything)
        until = perf_counter() + (deadline - perf_counter()) / (everything - done)
        host = one.case.inputs(one.size, np.random.default_rng(seed))
        found = {name: one.entry["backends"][name] for name in one.backends}
        takes: dict[str, Callable[[], float]] = {
            name: partial(sample, one.case, one.size, own, host, found[name]["loops"])
            for name, own in one.backends.items()
        }
        try:
            seconds = rounds(takes | {REFERENCE: product_of_numpy}, until, rng)
        except Exception as error:  # a third party's: the other points are not lost
            one.entry["backends"] |= {name: {"skipped": reason(error)} for name in found}
            one.backends.clear()
            continue
        one.entry[REFERENCE].append(seconds.pop(REFERENCE))
        for name, samples in seconds.items():
            found[name]["samples"].append(samples)


def product_of_numpy() -> float:
    """Seconds of the reference, of about a millisecond of them."""
    start = perf_counter()
    for _ in range(REFERENCE_LOOPS):
        SQUARE @ SQUARE
    return (perf_counter() - start) / REFERENCE_LOOPS


def sample(case: Case, size: Size, backend: Backend, host: Any, loops: int) -> float:
    """Seconds a call, of so many, after one that is not counted if it is short.

    Inputs are placed anew each time: where in memory they lie makes a difference of up to a half, which would else be
    taken for one between backends.
    """
    call = running.place(case, size, backend, host).call
    if (once := running.seconds_of(call, backend)) > LONG_SECONDS:
        return once
    return running.seconds_of(call, backend, loops)


def rounds(
    takes: dict[str, Callable[[], float]], until: float, rng: np.random.Generator, most: int = MOST_ROUNDS
) -> dict[str, list[float]]:
    """Samples of each, until the time is up: in every round all once, in random order; if short, the first burns in."""
    found: dict[str, list[float]] = {name: [] for name in takes}
    for number in range(most + 1):
        for name in rng.permutation(list(takes)):
            found[name].append(takes[name]())
        if number == 0 and max(seconds[0] for seconds in found.values()) < LONG_SECONDS:
            found = {name: [] for name in takes}
        elif perf_counter() >= until:
            break
    return found


def reason(error: Exception) -> str:
    """One line."""
    return " ".join(f"{error}".split())[:300] or type(error).__name__


def load_report(path: Any) -> dict[str, Any]:
    """A report from its file. Raises ValueError for anything else."""
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except ValueError:
            found = None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not {"points", "backends"} <= set(found):
        raise ValueError(f"{path}: expected a report of schema {SCHEMA!r}, as 'minimodel bench --json' writes")
    return found


def best_peaks(report: dict[str, Any], dtype: str, name: str) -> dict[str, float]:
    """What the device of a backend can do, as far as any backend on it got."""
    place = platform(report["backends"][name])
    rates = [
        about["peaks"][dtype]
        for about in report["backends"].values()
        if "peaks" in about and about["peaks"].get(dtype) and platform(about) == place
    ]
    return {kind: max((rate[kind] for rate in rates), default=nan) for kind in ("operations", "bytes")}


def platform(about: dict[str, Any]) -> str:
    """The processor, or another device by its name."""
    devices = ", ".join(about["devices"])
    return "cpu" if "cpu" in devices.casefold() else devices


def middle(found: dict[str, Any]) -> float:
    """The median of all samples."""
    return median(second for samples in found["samples"] for second in samples)
