"""Streams: every training row once an epoch, normalised as if all were in memory, in memory that does not grow."""

import itertools
import json
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimodel import datasets, streams
from minimodel.datasets import Dataset

HELD = Dataset(np.zeros((2, 3), np.float32), np.arange(2))


def table(rows=60, features=3, kind="labels", seed=0):
    """x whose first column numbers the rows, and y that tells the row too."""
    x = np.random.default_rng(seed).normal(5, 3, size=(rows, features)).astype(np.float32)
    x[:, 0] = np.arange(rows)
    if kind == "bytes":
        x = (x % 256).astype(np.uint8)
    y = np.arange(rows) % 3
    return x, np.stack([x[:, 0] / 7, -1e3 * x[:, 0]], 1).astype(np.float32) if kind == "targets" else y


def cut(x, y, sizes):
    """The rows in batches of those sizes, over and over."""
    ends = np.cumsum(np.resize(sizes, len(x)))
    ends = ends[ends < len(x)]
    return list(zip(np.split(x, ends), np.split(y, ends), strict=True))


def stream(x, y, sizes=(7,), **options):
    """A stream of these training rows; the first ones are also what is held out."""
    return streams.stream_batches(cut(x, y, sizes), Dataset(x[:4], y[:4]), Dataset(x[2:5], y[2:5]), **options)


def save(folder, x, y):
    paths = folder / "x.npy", folder / "y.npy"
    for path, array in zip(paths, (x, y), strict=True):
        np.save(path, array)
    return paths


def gather(found, epoch=0, rows=10):
    """The rows of an epoch put together, after a look at the pieces."""
    chunks = list(found.chunks(epoch, rows))
    sizes = [len(x) for x, _ in chunks]
    assert sizes == [len(y) for _, y in chunks]
    assert sizes == [rows] * (found.rows // rows) + ([found.rows % rows] if found.rows % rows else [])
    return tuple(np.concatenate(part) for part in zip(*chunks, strict=True))


def one_line(error):
    return str(error).count("\n") == 0 and len(str(error)) > 10


# The first pass


def close(found, expected):
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == np.float32 and one.shape == two.shape
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["labels", "targets", "bytes"])
@given(st.integers(20, 90), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_the_normalization_is_that_of_all_rows_at_once(kind, rows, sizes):
    x, y = table(rows, kind=kind)
    found = stream(x, y, sizes, seed=5)
    close(found.normalization, datasets.fit_normalization(x))
    assert (found.rows, found.split_seed, found.classes) == (rows, 5, None)
    if kind == "targets":
        close(found.targets, datasets.fit_normalization(y))
        assert found.outputs == 2 and found.counts is None
    else:
        assert found.outputs == 3 and found.targets is None
        np.testing.assert_array_equal(found.counts, np.bincount(y))


def test_variances_beside_a_large_mean_and_at_the_ends_of_float32():
    """Sums of squares would lose the first column's; batches of one row have no variance of their own."""
    rng = np.random.default_rng(0)
    scale = np.array([1e6 * 2.0**-20, 1, 1e-30, 8e37, 0, 0, 0])
    x = (rng.uniform(-1, 1, size=(200, 7)) * scale + [1e6, -1e4, 0, 0, 0.1, 3e38, 1e-42]).astype(np.float32)
    for size in (1, 17, 200):
        found = stream(x, np.arange(200) % 3, (size,)).normalization
        close(found, datasets.fit_normalization(x))
        assert (found.scale[4:] == 1).all()


def test_what_is_held_out_stays_as_it_is():
    x, y = table()
    found = stream(x, y.astype(np.uint8))
    for part, rows in ((found.validation, slice(0, 4)), (found.test, slice(2, 5))):
        np.testing.assert_array_equal(part.x, x[rows])
        np.testing.assert_array_equal(part.y, y[rows])
        assert (part.x.dtype, part.y.dtype) == (np.float32, np.int32)


def test_the_first_pass_is_reported(tmp_path):
    x, y = table(50)
    seen = []
    stream(x, y, (20,), callback=lambda *progress: seen.append(progress))
    assert seen == [(20, None), (40, None), (50, None)]
    seen.clear()
    options = {"seed": 0, "validation": 5, "test": 5, "callback": lambda *progress: seen.append(progress)}
    streams.stream_files(*save(tmp_path, x, y), **options)
    assert seen[-1] == (40, 40) and all(total == 40 for _, total in seen)
    assert [done for done, _ in seen] == list(range(1, 41))  # blocks of one row in so small a file


# Chunks


@pytest.mark.parametrize("kind", ["labels", "targets", "bytes"])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 70))
def test_chunks_have_the_size_that_was_asked_for(kind, sizes, rows):
    x, y = table(60, kind=kind)
    found = gather(stream(x, y, sizes), rows=rows)
    np.testing.assert_array_equal(found[0], x)
    np.testing.assert_array_equal(found[1], y)
    assert found[0].dtype == x.dtype and found[1].dtype == (np.float32 if kind == "targets" else np.int32)


def test_chunks_are_arrays_of_their_own():
    x, y = table()
    chunks = [array for pair in stream(x, y, (60,)).chunks(0, 25) for array in pair]
    assert len(chunks) == 6
    for one, other in itertools.combinations([x, y, *chunks], 2):
        assert not np.shares_memory(one, other)


@pytest.mark.parametrize("kind", ["labels", "targets"])
def test_chunks_that_reuse_memory_leave_the_one_before_alone(kind):
    x, y = table(60, kind=kind)
    y = x if kind == "targets" else y  # both of one shape
    pairs = stream(x, y, (7,)).chunks(0, 8, reuse=True)
    before, places = None, []
    for start, pair in zip(range(0, 60, 8), pairs, strict=True):
        now = slice(start, start + 8)
        for chunk, array in ((before, slice(start - 8, start)), (pair, now)):
            if chunk is not None:
                np.testing.assert_array_equal(chunk[0], x[array])
                np.testing.assert_array_equal(chunk[1], y[array])
        before = pair
        places.append(tuple(part.ctypes.data for part in pair))
    assert len(set(places)) == 2 and places[0] == places[2] != places[1]


def test_putting_a_chunk_together_takes_the_memory_of_one():
    x, y = np.zeros((50, 100), np.float32), np.arange(50) % 2
    found = streams.stream_batches([(x, y)] * 400, Dataset(x, y), Dataset(x, y))
    tracemalloc.start()
    try:
        size = sum(array.nbytes for array in next(found.chunks(0, 10_000)))
        assert size < tracemalloc.get_traced_memory()[1] < 1.2 * size
    finally:
        tracemalloc.stop()


def test_a_chunk_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="rows: expected at least 1, got 0"):
        next(stream(*table()).chunks(0, 0))


# Where batches come from


def test_a_function_gives_each_epoch_its_order():
    x, y = table()

    def batches(epoch):
        order = np.roll(np.arange(60), epoch)
        return iter(cut(x[order], y[order], (9,)))

    found = streams.stream_batches(batches, HELD, HELD)
    for epoch in (0, 3, 1):
        np.testing.assert_array_equal(gather(found, epoch)[0], np.roll(x, epoch, axis=0))


def test_lists_of_lists():
    found = streams.stream_batches([[[[1, 2, 3], [4, 5, 6]], [1, 0]], ([[7, 8, 9]], [1])], HELD, HELD)
    x, y = gather(found, rows=2)
    assert x.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]] and y.tolist() == [1, 0, 1]
    assert found.counts.tolist() == [1, 2]


def test_images_become_rows():
    x, y = np.zeros((10, 3, 2, 2), np.uint8), np.arange(10) % 2
    found = stream(x, y)
    assert gather(found)[0].shape == (10, 12) and found.validation.x.shape == (4, 12)


def test_a_loader_of_torch(oracle):
    torch = oracle("torch")
    x, y = table()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y)),
        batch_size=8,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    found = streams.stream_batches(loader, Dataset(torch.tensor(x[:4]), torch.tensor(y[:4])), HELD)
    close(found.normalization, datasets.fit_normalization(x))
    first, second = (gather(found, epoch) for epoch in (0, 1))
    assert (first[0] != second[0]).any()
    for rows, labels in (first, second):
        order = rows[:, 0].astype(int)
        assert sorted(order) == list(range(60))
        np.testing.assert_array_equal(labels, y[order])


@pytest.mark.parametrize(
    ("y", "task", "outputs"),
    [
        (np.arange(60) % 3, "regression", 1),
        (np.arange(60) % 4.0, "classification", 4),
        (np.arange(60)[:, None] % 4, None, 4),
        (np.arange(60) % 4.0, None, 1),
        (np.arange(60) % 2 == 1, None, 2),
        (np.ones((60, 3), int), None, 3),
    ],
)
def test_the_task(y, task, outputs):
    found = stream(table()[0], y, task=task)
    assert found.outputs == outputs
    assert (found.targets is None) == (found.validation.y.ndim == 1) == (found.counts is not None)
    np.testing.assert_array_equal(gather(found)[1].ravel(), y.ravel())


# Files


@settings(max_examples=15)
@given(
    rows=st.integers(20, 200),
    seed=st.integers(0, 2**64 - 1),
    validation=st.integers(1, 9),
    test=st.integers(1, 9),
    block=st.integers(1, 2000),
)
def test_every_row_is_in_one_part_and_once_an_epoch(tmp_path, rows, seed, validation, test, block):
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    paths = save(tmp_path, x, x[:, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "BLOCK", block)
        found = streams.stream_files(*paths, seed=seed, validation=validation, test=test)
    held = np.concatenate([found.validation.x, found.test.x])
    assert (len(found.validation.x), len(found.test.x), found.rows) == (validation, test, rows - validation - test)
    for epoch in (0, 1):
        train, targets = gather(found, epoch)
        np.testing.assert_array_equal(targets[:, 0], train[:, 0])
        np.testing.assert_array_equal(np.sort(np.concatenate([train, held]), axis=0), x)
    close(found.normalization, datasets.fit_normalization(train))
    close(found.targets, datasets.fit_normalization(targets))


def test_the_seed_decides_what_is_held_out_and_the_order(tmp_path):
    x, y = table(5000)
    paths = save(tmp_path, x, y)
    one, same, other = (streams.stream_files(*paths, seed=seed, validation=50, test=30) for seed in (1, 1, 2))
    assert (one.split_seed, other.split_seed) == (1, 2)
    for name in ("validation", "test"):
        first, again, different = (getattr(found, name).x for found in (one, same, other))
        np.testing.assert_array_equal(first, again)
        assert (first != different).any()
    orders = [gather(found, epoch)[0][:, 0] for found in (one, other) for epoch in (0, 1)]
    np.testing.assert_array_equal(gather(same, 1)[0][:, 0], orders[1])
    for i, order in enumerate([*orders, np.sort(orders[0])]):
        assert all((order != earlier).mean() > 0.9 for earlier in orders[:i])


def test_what_is_held_out_comes_from_all_over_the_file(tmp_path):
    """A file that is sorted by label gives both parts each label's share; both are in random order."""
    y = np.repeat(np.arange(4), 500)
    found = streams.stream_files(*save(tmp_path, np.arange(2000.0)[:, None], y), seed=3, validation=100, test=100)
    rows = np.concatenate([found.validation.x, found.test.x])[:, 0]
    np.testing.assert_array_equal(np.sort(rows) // 10, np.arange(200))
    for part in (found.validation, found.test):
        assert np.bincount(part.y).min() > 10
        np.testing.assert_array_equal(part.y, part.x[:, 0] // 500)
        assert (np.diff(part.x[:, 0]) < 0).any()


@pytest.mark.parametrize("dtype", ["u1", "i2", ">f4", "f8", "f2", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_files_of_every_type(tmp_path, dtype, order):
    x = np.asarray(np.random.default_rng(0).integers(0, 100, size=(300, 2, 3)).astype(dtype), order=order)
    y = np.arange(300) % 3
    found = streams.stream_files(*save(tmp_path, x, y[:, None]), seed=0, validation=20, test=20)
    train, labels = gather(found)
    assert train.dtype == found.test.x.dtype == (np.uint8 if dtype == "u1" else np.float32)
    assert found.normalization.shift.shape == ((1,) if dtype == "u1" else (6,))
    close(found.normalization, datasets.fit_normalization(train))
    rows = np.concatenate([train, found.validation.x, found.test.x]).astype(np.float32)
    truth = np.column_stack([x.reshape(300, 6), y]).astype(np.float32)
    rows = np.column_stack([rows, np.concatenate([labels, found.validation.y, found.test.y])])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], truth[np.lexsort(truth.T)])


PROGRAM = """
import json, pathlib, sys
from minimodel import streams

def peak():  # getrusage would count that of the parent as well
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10

before = peak()
found = streams.stream_files(*sys.argv[1:], seed=0)
rows = [sum(len(x) for x, _ in streams.prefetched(found.chunks(epoch, 10_000))) for epoch in (0, 1)]
print(json.dumps({"rows": rows, "MiB": peak() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Of 200 MB, 16 are held out and a chunk has 8; the file has holes, which are read as zeros."""
    paths = tmp_path / "x.npy", tmp_path / "y.npy"
    np.lib.format.open_memmap(paths[0], "w+", np.float32, (250_000, 200))[::1000] = 1
    np.save(paths[1], np.arange(250_000) % 10)
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, paths)], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["rows"] == [230_000, 230_000]
    assert 8 < report["MiB"] < 100


# Ahead of use


def test_items_come_in_order_and_one_is_made_ahead():
    begun = [threading.Event() for _ in range(10)]

    def produce():
        for i, event in enumerate(begun):
            event.set()
            yield i

    found = streams.prefetched(produce())
    assert not begun[0].is_set()
    for i in range(10):
        assert next(found) == i
        assert i == 9 or begun[i + 1].wait(10)
        assert not any(event.is_set() for event in begun[i + 2 :])
    assert list(found) == []
    assert list(streams.prefetched(iter([]))) == []
    assert list(streams.prefetched(iter([None, 0]))) == [None, 0]


def test_an_error_of_the_producer_is_the_consumers():
    def produce():
        yield 1
        raise OSError("the disk is gone")

    threads = threading.active_count()
    found = streams.prefetched(produce())
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)
    assert threading.active_count() == threads


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_early_ends_the_thread_and_the_producer(taken):
    closed = []

    def produce():
        try:
            while True:
                yield len(closed)
        finally:
            closed.append(threading.current_thread())

    threads = threading.active_count()
    found = streams.prefetched(produce())
    for _ in range(taken):
        next(found)
    assert threading.active_count() == threads + bool(taken)
    found.close()
    assert threading.active_count() == threads and len(closed) == bool(taken)


def test_a_consumer_that_fails_ends_the_thread():
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        for i in streams.prefetched(iter(range(9))):
            1 / (2 - i)
    assert threading.active_count() == threads


# Rows that change


def with_value(value, dtype=np.float32):
    x = table(6)[0].astype(dtype)
    x[4, 1] = value
    return x


CHANGES = {
    "fewer rows": ([table(59)], "expected 60 rows in every epoch, got 59 in epoch 1"),
    "none": ([], "expected 60 rows in every epoch, got 0 in epoch 1"),
    "more rows": ([table(60), table(1)], "expected 60 rows in every epoch, got 61 or more in epoch 1"),
    "wider": ([table(60, 4)], "number 0 of epoch 1: expected float32 x of 3 features.* got float32 x of 4 features"),
    "bytes": ([table(60, kind="bytes")], "expected float32 x of 3 features with labels.* got uint8 x"),
    "targets": ([table(60, kind="targets")], "y: expected one label a row"),
    "another label": ([(table()[0], np.arange(60) % 4)], "y: expected the labels of training, 0 to 2, got 0 to 3"),
    "a negative label": ([(table()[0], np.arange(60) % 3 - 1)], "0 to 2, got -1 to 1"),
    "NaN": ([table(54), (with_value(np.nan), np.zeros(6, int))], "number 1 of epoch 1: x: NaN.* at row 4, column 1"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("rows", [10, 60, 100])
def test_rows_that_change_between_epochs_are_refused(name, rows):
    later, message = CHANGES[name]
    x, y = table()
    found = streams.stream_batches(lambda epoch: later if epoch else [(x, y)], HELD, HELD)
    gather(found, 0)
    with pytest.raises(ValueError, match=message) as caught:
        list(found.chunks(1, rows))
    assert str(caught.value).startswith("batches: ") and one_line(caught.value)


def test_more_rows_are_found_before_the_last_chunk_is_given():
    x, y = table()
    found = streams.stream_batches(lambda epoch: [(x, y)] * (1 + epoch), HELD, HELD)
    chunks = found.chunks(1, 30)
    next(chunks)
    with pytest.raises(ValueError, match="got 120 or more"):
        next(chunks)


def test_a_source_that_is_used_up_is_found_out():
    x, y = table()
    once = iter([(x, y)])
    found = streams.stream_batches(lambda epoch: once, HELD, HELD)
    with pytest.raises(ValueError, match="expected 60 rows in every epoch, got 0 in epoch 0"):
        list(found.chunks(0, 60))


def test_files_that_change_are_refused(tmp_path):
    x, y = table(100)
    paths = save(tmp_path, x, y)
    found = streams.stream_files(*paths, seed=0, validation=5, test=5)
    save(tmp_path, x[:90], y[:90])
    with pytest.raises(ValueError, match=r"the shapes were \(\(100, 3\), \(100,\)\), now \(\(90, 3\), \(90,\)\)"):
        list(found.chunks(0, 10))
    x[7] = np.inf
    save(tmp_path, x, y)
    with pytest.raises(ValueError, match=r"of . training rows from 7 to .: x: NaN, infinite.* at row 0, column 0"):
        list(found.chunks(0, 10))


# What is refused


X, Y = table(6)
BAD_BATCHES = {
    "a generator": (
        lambda: (batch for batch in [(X, Y)]),
        TypeError,
        "batches: expected a list or a function epoch -> iterable, .* got generator",
    ),
    "an iterator": (
        lambda: iter([(X, Y)]),
        TypeError,
        "batches: expected .* read anew each epoch, got list_iterator",
    ),
    "zip": (lambda: zip([X], [Y], strict=True), TypeError, "batches: .* got zip"),
    "a number": (lambda: 3, TypeError, "batches: expected .* got int"),
    "a function of nothing": (lambda: lambda epoch: None, TypeError, "batches: expected .* it gave NoneType"),
    "no batches": (list, ValueError, "batches: expected rows to train on, got none"),
    "a data set": (lambda: Dataset(X, Y), TypeError, r"number 0 of epoch 0: expected a pair \(x, y\), got ndarray"),
    "arrays": (lambda: [X, X], TypeError, "expected a pair .* got ndarray"),
    "triples": (lambda: [(X, Y, Y)], TypeError, "expected a pair .* got tuple"),
    "no rows": (lambda: [(X, Y), (X[:0], Y[:0])], ValueError, "number 1 of epoch 0: x: expected a non-empty"),
    "x of one axis": (lambda: [(X[0], Y)], ValueError, "x: expected a non-empty numeric array"),
    "text in x": (lambda: [(X.astype(str), Y)], ValueError, "x: expected a non-empty numeric array"),
    "ragged x": (lambda: [([[1, 2, 3], [1, 2]], [0, 1])], ValueError, "x: expected what NumPy reads as an array"),
    "ragged y": (lambda: [(X, [[0], [1, 2]])], ValueError, "y: expected what NumPy reads as an array"),
    "other features": (lambda: [(X, Y), (X[:, :2], Y)], ValueError, "number 1 of .* 3 features .* got .* 2 features"),
    "bytes": (lambda: [(X.astype(np.uint8), Y)], ValueError, "expected float32 x .* got uint8 x"),
    "rows of x and y": (lambda: [(X, Y[:5])], ValueError, "as many rows in both, got 6 and 5"),
    "no y": (lambda: [(X, None)], ValueError, "y: the data have no targets"),
    "NaN": (lambda: [(with_value(np.nan), Y)], ValueError, "x: NaN, infinite .* at row 4, column 1"),
    "beyond float32": (lambda: [(with_value(1e39, np.float64), Y)], ValueError, "x: NaN, infinite .* at row 4"),
    "text": (lambda: [(X, np.array(["a", "b"] * 3))], ValueError, "y: expected integer labels .* got text; number"),
    "targets": (lambda: [(X, Y / 2)], ValueError, "features with labels.* got .* with 1 targets; task says what y is"),
    "y of three axes": (lambda: [(X, np.zeros((6, 1, 2)))], ValueError, "y: expected numbers or text"),
    "one class": (lambda: [(X, 0 * Y)], ValueError, "y: at least two classes are needed"),
    "a gap": (lambda: [(X, Y), (X, 5 * Y)], ValueError, "y: label 10 is out of range"),
    "a huge label": (lambda: [(X, Y + 2**40)], ValueError, "y: label .* is out of range"),
    "a negative label": (lambda: [(X, Y - 1)], ValueError, "y: label .* is out of range"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches_are_refused(name):
    make, kind, message = BAD_BATCHES[name]
    with pytest.raises(kind, match=message) as caught:
        streams.stream_batches(make(), HELD, HELD)
    assert one_line(caught.value)


BAD_PARTS = {
    "none": (None, TypeError, r"expected a pair \(x, y\), got NoneType"),
    "empty": (Dataset(X[:0], Y[:0]), ValueError, "x: expected a non-empty"),
    "rows": (Dataset(X, Y[:5]), ValueError, "as many rows in both"),
    "features": (Dataset(X[:, :2], Y), ValueError, "expected float32 x of . features"),
    "bytes": (Dataset(X.astype(np.uint8), Y), ValueError, "expected .* got"),
    "targets": (Dataset(X, Y / 2), ValueError, "expected .* with .*, as in validation, got"),
    "NaN": (Dataset(with_value(np.nan), Y), ValueError, "x: NaN"),
    "text": (Dataset(X, Y.astype(str)), ValueError, "got text"),
    "unknown label": (Dataset(X, Y + 1), ValueError, "y: expected the labels of training, 0 to 2, got 1 to 3"),
    "negative label": (Dataset(X, Y - 1), ValueError, "y: expected the labels of training, 0 to 2, got -1 to 1"),
}


@pytest.mark.parametrize("place", ["validation", "test"])
@pytest.mark.parametrize("name", BAD_PARTS)
def test_bad_parts_are_refused(place, name):
    part, kind, message = BAD_PARTS[name]
    parts = {"validation": HELD, "test": HELD} | {place: part}
    with pytest.raises(kind, match=message) as caught:
        streams.stream_batches([(X, Y)], **parts)
    assert one_line(caught.value)
    assert place in str(caught.value)


def test_an_unknown_task_is_refused(tmp_path):
    for make in (
        lambda: stream(X, Y, task="clustering"),
        lambda: streams.stream_files(*save(tmp_path, X, Y), seed=0, validation=1, test=1, task="clustering"),
    ):
        with pytest.raises(ValueError, match="task: expected one of classification, regression, got 'clustering'"):
            make()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, 0], Y, r"expected \(n, …\) and as many rows in y, got \(6,\) and \(6,\)"),
        (X, Y[:5], r"got \(6, 3\) and \(5,\)"),
        (X[:0], Y[:0], r"got \(0, 3\) and \(0,\)"),
        (X[:, :0], Y, r"got \(6, 0\) and \(6,\)"),
        (np.float32(3), Y, r"got \(\) and \(6,\)"),
        (X, np.int64(3), r"got \(6, 3\) and \(\)"),
        (X.astype(str), Y, "x: expected a non-empty numeric array"),
        (X, Y.astype(str), "y: expected integer labels .* got text"),
        (X, np.array([0, 2, 0, 2, 0, 2]), "y: label 2 is out of range"),
        (X.astype("M8[s]"), Y, "x: expected a non-empty numeric array"),
    ],
)
def test_files_of_what_cannot_be_learned_are_refused(tmp_path, x, y, message):
    with pytest.raises(ValueError, match=message) as caught:
        streams.stream_files(*save(tmp_path, x, y), seed=0, validation=1, test=1)
    assert one_line(caught.value)


@pytest.mark.parametrize("count", [0, -1, 0.2, True, None, "5"])
@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_bad_number_of_rows_to_hold_out_is_refused(tmp_path, name, count):
    counts = {"validation": 1, "test": 1} | {name: count}
    with pytest.raises(ValueError, match=f"{name}: expected a number of rows to hold out, at least 1, got {count!r}"):
        streams.stream_files(*save(tmp_path, X, Y), seed=0, **counts)


def test_holding_out_all_rows_is_refused(tmp_path):
    paths = save(tmp_path, X, Y)
    with pytest.raises(ValueError, match="validation, test: expected fewer than 6 rows in all, got 4 and 2"):
        streams.stream_files(*paths, seed=0, validation=4, test=2)
    with pytest.raises(ValueError, match="got 10000 and 10000"):
        streams.stream_files(*paths, seed=0)
    with pytest.raises(ValueError, match="seed: expected an integer"):
        streams.stream_files(*paths, seed=-1, validation=1, test=1)


@pytest.mark.parametrize("name", ["x_path", "y_path"])
def test_a_path_that_leads_nowhere_is_refused(tmp_path, name):
    x_path, y_path = save(tmp_path, X, Y)
    paths = {"x_path": x_path, "y_path": y_path}
    with pytest.raises(FileNotFoundError, match=rf"{name}: .*none\.npy"):
        streams.stream_files(**paths | {name: tmp_path / "none.npy"}, seed=0)
    np.savez(tmp_path / "z.npz", x=X)
    np.save(tmp_path / "objects.npy", np.array([{}] * 6), allow_pickle=True)
    for bad in (tmp_path, X, 3, None, tmp_path / "z.npz", tmp_path / "objects.npy"):
        with pytest.raises(ValueError, match=f"{name}: expected the path of a .npy file of numbers"):
            streams.stream_files(**paths | {name: bad}, seed=0)


def test_every_truncated_file_is_refused(tmp_path):
    paths = save(tmp_path, X, Y)
    whole = paths[0].read_bytes()
    for length in range(len(whole)):
        paths[0].write_bytes(whole[:length])
        with pytest.raises(ValueError, match="x_path: expected the path"):
            streams.stream_files(*paths, seed=0, validation=1, test=1)


@pytest.mark.filterwarnings("ignore")  # of NumPy, about headers that Python 2 could have written
def test_every_damaged_byte_of_a_header_is_read_or_refused(tmp_path):
    paths = save(tmp_path, X, Y)
    whole, refused = paths[0].read_bytes(), 0
    for i in range(len(whole) - X.nbytes):
        for bit in (0, 3, 6):
            paths[0].write_bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :])
            try:
                streams.stream_files(*paths, seed=0, validation=1, test=1)
            except ValueError:
                refused += 1
    assert refused > 100


def test_no_two_purposes_share_a_key():
    """A key that is folded must not be drawn from as well, and the same seed serves streams and runs."""
    from minimodel.search import random_search, training

    purposes = [training.INIT, training.ORDER, training.NOISE, streams.FILES]
    assert len(set(purposes)) == len(purposes)
    assert {random_search.INIT, random_search.DRAWS} <= {training.INIT, training.ORDER, training.NOISE}
