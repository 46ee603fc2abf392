"""``minimodel bench``: what is wrong, late or too much is refused with its reason; reports say what was timed."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import minimodel as mm
from minimodel import tree
from minimodel.backends import load
from minimodel.bench import compare, measure, resources, running, show, trust
from minimodel.bench.cases import CASES, Size, parse_layers

SMALL = Size((5, 8, 3), 4)
STRICT = "array_api:array_api_strict"


@pytest.fixture
def planted():
    """register(name, backend), for the time of a test."""
    names = []

    def register(name, backend):
        names.append(name)
        mm.backends.register(name, lambda: backend)

    yield register
    for name in names:
        mm.backends._registered.pop(name)
    mm.backends._load.cache_clear()


def plan(*names, cases=("matmul",), sizes=(SMALL,), seconds=1.0, **options):
    return measure.Plan(names, tuple((CASES[case], size) for case in cases for size in sizes), seconds, **options)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """A moment is enough to see that it works."""
    monkeypatch.setattr(running, "PEAK_SECONDS", 0.0)
    monkeypatch.setattr(measure, "CHECKING", float("inf"))
    monkeypatch.setattr(measure, "LIMIT", float("inf"))
    monkeypatch.setattr(measure, "cold", lambda name, imports: {"import_seconds": 0.5, "start_seconds": None})


@pytest.mark.parametrize("size", [SMALL, SMALL._replace(population=3), Size((2, 16, 1), 3)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_case_is_equal_on_every_backend(name, size, backend):
    case = CASES[name]
    host = case.inputs(size, np.random.default_rng(0))
    numpy = load("numpy")
    expected = numpy.to_numpy(running.place(case, size, numpy, host).call())
    call = running.place(case, size, backend, host).call
    for _ in range(2):  # the second call is given what the first was
        assert running.difference(backend.to_numpy(call()), expected) <= running.tolerance(case, size)
    assert case.operations(size) > 0 < case.traffic(size)


def test_operations_and_traffic_by_hand():
    size = Size((5, 8, 3), 4, 2)
    assert CASES["matmul"].operations(size) == 2 * (2 * 4 * 5 * 8)
    assert CASES["matmul"].traffic(size) == 4 * (4 * 5 + 2 * 5 * 8 + 2 * 4 * 8)
    assert CASES["forward"].operations(size) == 2 * (2 * 4 * (5 * 8 + 8 * 3))
    products = 2 * (5 * 8 + 8 * 3) + 8 * 3  # forward, by the weights, and back through all but the first
    assert CASES["value_and_grad"].operations(size) == 2 * (2 * 4 * products)


def test_float64_is_closer_and_other_dtypes_are_refused_where_there_are_none():
    size, case = SMALL._replace(dtype="float64"), CASES["matmul"]
    host = case.inputs(size, np.random.default_rng(0))
    assert running.place(case, size, load("numpy"), host).call().dtype == np.float64
    assert running.tolerance(case, size) < 1e-13
    with pytest.raises(TypeError, match="no bfloat16"):
        running.place(case, size._replace(dtype="bfloat16"), load("numpy"), host)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_a_dtype_that_comes_out_as_another_is_refused():
    pytest.importorskip("jax")
    size, case = SMALL._replace(dtype="float64"), CASES["matmul"]
    with pytest.raises(TypeError, match="asked for float64 it gives float32"):
        running.place(case, size, load("jax"), case.inputs(size, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("found", "expected", "distance"),
    [
        (np.ones(4), np.ones(4), 0),
        (np.full(4, 1.1), np.ones(4), 0.1),
        (np.array([1, 1, 1, 3.0]), np.ones(4), 1),
        (np.array([1, np.nan]), np.ones(2), np.inf),
        (np.ones(3), np.ones(4), np.inf),
        (np.ones(3), np.zeros(3), np.inf),
    ],
)
def test_differences(found, expected, distance):
    assert running.difference((found,), (expected,)) == pytest.approx(distance)


def test_a_report_is_complete_and_survives_its_file(tmp_path):
    report = measure.measure(plan("numpy", STRICT, "nonsense", cases=("matmul", "mask")))
    path = tmp_path / "report.json"
    path.write_text(json.dumps(mm.observe.plain(report)))
    assert measure.load_report(path) == json.loads(json.dumps(report))
    assert report["schema"] == measure.SCHEMA and report["machine"]["packages"]["numpy"]
    assert report["settings"]["threads"]["asked"] == 1
    assert "unknown backend" in report["backends"]["nonsense"]["refused"]
    assert [point["case"] for point in report["points"]] == ["matmul", "mask"]
    for point in report["points"]:
        assert list(point["backends"]) == ["numpy", STRICT]
        lengths = [list(map(len, found["samples"])) for found in point["backends"].values()]
        assert lengths[0] == lengths[1] and len(lengths[0]) == measure.PASSES and min(lengths[0]) >= 1
        for found in point["backends"].values():
            assert found["error"] <= point["tolerance"] and found["first_seconds"] > 0


@pytest.mark.parametrize("text", ["{}", "[]", '{"schema": "other/1"}'])
def test_other_files_are_no_reports(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected a report of schema"):
        measure.load_report(path)


def test_a_wrong_backend_is_not_timed(planted):
    numpy = load("numpy")

    def jit(fn, **kwargs):
        run = numpy.jit(fn, **kwargs)
        return lambda *args, **kwargs: tree.map(lambda leaf: leaf * np.float32(1.001), run(*args, **kwargs))

    planted("wrong", replace(numpy, jit=jit))
    found = measure.measure(plan("numpy", "wrong"))["points"][0]["backends"]
    assert "samples" in found["numpy"]
    assert "wrong result: it is 1.0e-03 from NumPy's" in found["wrong"]["skipped"]


def test_a_backend_that_computes_when_it_is_looked_at_is_refused(planted):
    planted("lazy", trust.lazy(load("numpy")))
    report = measure.measure(plan("numpy", "lazy"))
    assert "not synchronised" in report["backends"]["lazy"]["refused"]
    assert list(report["points"][0]["backends"]) == ["numpy"]


def test_a_backend_that_does_not_wait_is_refused_and_one_that_does_is_not():
    pytest.importorskip("jax")
    running.check_synchronize(load("jax"))
    with pytest.raises(ValueError, match="not synchronised"):
        running.check_synchronize(replace(load("jax"), synchronize=lambda tree: tree))


def test_one_that_waits_for_arrays_but_not_for_trees_is_refused():
    jax = pytest.importorskip("jax")
    half = replace(load("jax"), synchronize=lambda x: x.block_until_ready() if isinstance(x, jax.Array) else x)
    with pytest.raises(ValueError, match="not synchronised"):
        running.check_synchronize(half)


def test_what_hides_in_one_program_is_seen_there():
    """By a clock that the program sets: no real time is asserted."""
    numpy, wait = load("numpy"), 0.02

    def work(result):
        start = running.perf_counter()
        while running.perf_counter() - start < wait:
            pass
        return result

    lazy = trust.lazy(numpy)
    x = np.ones(3)
    honest = running.waits(partial(work, x), numpy)
    hidden = running.waits(lambda: trust.Lazy(partial(work, x)), lazy)
    assert honest.honest and not hidden.honest


def test_what_does_not_fit_or_takes_too_long_is_skipped_with_the_reason(monkeypatch):
    def skipped():
        return measure.measure(plan("numpy"))["points"][0]["backends"]["numpy"]["skipped"]

    with monkeypatch.context() as patch:
        patch.setattr(resources, "available_memory", lambda: 1e3)
        assert "needs about" in skipped()
    with monkeypatch.context() as patch:
        patch.setattr(measure, "LIMIT", 0.0)
        patch.setattr(measure, "LEAST_LIMIT", 1e-12)
        assert "more than its share of the time" in skipped()
    with monkeypatch.context() as patch:
        patch.setattr(measure, "CHECKING", 0.0)
        assert "no time was left" in skipped()


def test_what_fails_later_loses_its_point_alone(monkeypatch):
    real, other = measure.sample, Size((9, 16, 3), 8)

    def failing(case, size, *rest):
        if size == other:
            raise MemoryError("there is no room")
        return real(case, size, *rest)

    monkeypatch.setattr(measure, "sample", failing)
    kept, lost = measure.measure(plan("numpy", STRICT, sizes=(SMALL, other)))["points"]
    assert lost["backends"] == {name: {"skipped": "there is no room"} for name in ("numpy", STRICT)}
    assert all(found["samples"] for found in kept["backends"].values())


def test_calls_take_turns_in_random_order():
    order = []
    takes = {name: partial(lambda name: order.append(name) or 1e-3, name) for name in "abc"}
    found = measure.rounds(takes, 0.0, np.random.default_rng(0), most=9)
    assert found == {"a": [1e-3], "b": [1e-3], "c": [1e-3]} and sorted(order) == [*"aabbcc"]  # one round burns in
    long = measure.rounds({"a": lambda: 1.0, "b": lambda: 1e-3}, 0.0, np.random.default_rng(0), most=9)
    assert long == {"a": [1.0], "b": [1e-3]}  # a long call is never cold
    order.clear()
    found = measure.rounds(takes, float("inf"), np.random.default_rng(0), most=9)
    turns = ["".join(order[i : i + 3]) for i in range(0, 30, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns) and len(set(turns)) > 2
    assert [len(samples) for samples in found.values()] == [9, 9, 9]  # the first round burns in


def made(seconds, name="numpy", case="matmul", layers=(5, 8, 3), operations=640):
    """An entry of a report with these samples."""
    found = {
        "error": 0.0, "first_seconds": 0.01, "to_device_seconds": None, "to_host_seconds": 1e-5, "peak_bytes": None,
        "loops": 1, "samples": seconds,
    }  # fmt: skip
    size = Size(layers, 4)._asdict()
    return {
        "case": case, "kind": "operation", "size": size, "operations": operations, "bytes": 100, "tolerance": 0,
        "reference": [[1.0]] * len(seconds), "backends": {name: found},
    }  # fmt: skip


def test_reports_are_compared_point_by_point():
    rng = np.random.default_rng(0)

    def samples(scale):
        return (scale * np.exp(0.02 * rng.normal(size=(6, 9)))).tolist()

    about = {"backends": {"numpy": {"devices": ["cpu:0"]}, "jax": {"devices": ["an accelerator"]}}}
    before = about | {
        "points": [made(samples(1.0)), made(samples(1.0), case="mask"), made(samples(1.0), case="forward")]
    }
    after = about | {"points": [made(samples(1.0)), made(samples(1.3), case="mask"), made(samples(1.0), name="jax")]}
    found = {one.case: one for one in compare.compare(before, after)}
    assert found["matmul"].verdict == "no difference" and found["mask"].verdict == "slower"
    assert found["mask"].ratio.low < 1.3 < found["mask"].ratio.high
    assert set(found) == {"matmul", "mask"}
    for point in after["points"]:
        point["reference"] = [[1.3]] * 6  # the machine was slower by so much
    found = {one.case: one for one in compare.compare(before, after)}
    assert found["matmul"].verdict == "faster" and found["mask"].verdict == "no difference"
    on_device = [about | {"points": [made(samples(1.0), name="jax")]} for _ in range(2)]
    on_device[1]["points"][0]["reference"] = [[1.3]] * 6  # which says nothing of another device
    assert compare.compare(*on_device)[0].verdict == "no difference"


def test_the_table_and_the_picture(tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    report = measure.measure(plan("numpy", STRICT, "nonsense", sizes=(SMALL, Size((9, 16, 3), 8))))
    report["points"][1]["backends"][STRICT] = {"skipped": "no reason"}
    report["points"][0]["backends"]["numpy"]["samples"] = [[1e-5] * 6]
    report["points"][0]["backends"][STRICT] |= {"samples": [[1e-3] * 6], "first_seconds": 9.0}  # it never breaks even
    show.show(report)
    printed = capsys.readouterr().out
    for text in ("matmul", "5-8-3/4", "never", "nonsense: refused", "no reason", "threads: 1 asked for"):
        assert text in printed
    show.draw(report, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("first", "steady", "expected"),
    [
        (1.0, 0.5, "3"),  # 1 + 2·0.5 = 0.002 + 2·1 at the third call, all but
        (1.0, 2.0, "never"),
        (1.0, 1.0, "never"),
        (1e-3, 0.5, "at once"),
        (1e-3, 1.0, "at once"),
        (1.1e-3, 1.001, "at once"),
        (0.0, 2.0, "until 1"),
    ],
)
def test_which_first_call_pays_and_when(first, steady, expected):
    point = made([[1.0] * 6])
    point["backends"]["numpy"]["first_seconds"] = 0.002
    point["backends"]["other"] = point["backends"]["numpy"] | {"samples": [[steady] * 6], "first_seconds": first}
    report = {"backends": {name: {"devices": ["cpu"]} for name in ("numpy", "other")}, "points": [point]}
    assert show.Row(report, point, "other").pays == expected


def test_the_crossover_is_where_a_backend_overtakes_the_first():
    points = [
        made([[1e-5] * 6], layers=(5, 8, 3), operations=1e3),
        made([[1e-3] * 6], layers=(9, 8, 3), operations=1e5),
    ]
    for point in points:
        point["backends"]["other"] = point["backends"]["numpy"] | {"samples": [[1e-4] * 6]}
    peaks = {"float32": {"operations": 1e9, "bytes": 1e9}}
    report = {"points": points, "backends": {name: {"devices": ["cpu"], "peaks": peaks} for name in ("numpy", "other")}}
    rows = show.lines(report)["matmul"]
    own, base = ([row for row in rows if row.name == name] for name in ("other", "numpy"))
    assert show.overtaken(own, base) == [(pytest.approx(1e4), pytest.approx(1e-4))]


def test_threads_are_set_said_and_set_back():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def now():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]

    before = now()
    with resources.threads(1) as said:
        assert set(now()) == {1} and said["asked"] == 1
        assert all(pool["num_threads"] == 1 for pool in said["pools"])
    assert now() == before


def test_peak_memory_is_counted_anew():
    if (held := resources.forget_peak()) is None:
        pytest.skip("this system does not count anew")
    x = np.ones(10_000_000)
    assert resources.peak_memory() - held > 0.9 * x.nbytes
    del x
    held = resources.forget_peak()
    assert resources.peak_memory() - held < 1e7


@pytest.mark.parametrize(("text", "layers"), [("2-16-1", (2, 16, 1)), ("4x8", (8,) * 5), ("1x3", (3, 3))])
def test_sizes_are_read(text, layers):
    assert parse_layers(text) == layers
    assert str(Size(layers, 7)) == ("3-3/7" if text == "1x3" else f"{text}/7")
    assert str(Size(layers, 7, 5, "float64")).endswith("/7 ×5 float64")


@pytest.mark.parametrize("text", ["", "7", "2-", "0-3", "4xx", "x", "axb"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="sizes: expected networks"):
        parse_layers(text)


@pytest.mark.parametrize(("device", "more"), [("cuda:0", ["jax:cpu"]), (None, [])])
def test_jax_is_measured_on_the_processor_too(monkeypatch, device, more):
    """Where it uses an accelerator by default, and nobody has named backends."""
    pytest.importorskip("jax")

    def elsewhere(name):
        backend = load(name)
        return replace(backend, devices=(device,)) if device and name == "jax" else backend

    monkeypatch.setattr(measure.backends, "load", elsewhere)
    for everywhere in (True, False):
        opened, about = measure.open_backends(plan("numpy", "jax", everywhere=everywhere), lambda *args: None)
        assert list(opened) == list(about) == ["numpy", "jax", *(more if everywhere else [])]


def test_a_processor_that_jax_may_not_use_does_not_refuse_the_accelerator(monkeypatch):
    """As where JAX_PLATFORMS names the accelerator alone."""
    pytest.importorskip("jax")

    def elsewhere(name):
        if name == "jax:cpu":
            raise ValueError("no such device")
        return replace(load(name), devices=("cuda:0",))

    monkeypatch.setattr(measure.backends, "load", elsewhere)
    opened, about = measure.open_backends(plan("jax", everywhere=True), lambda *args: None)
    assert list(opened) == ["jax"] and "refused" not in about["jax"] and "refused" in about["jax:cpu"]
