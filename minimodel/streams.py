"""Data larger than memory: two .npy files, or batches from anywhere, regrouped into chunks that are read ahead."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from os import PathLike
from typing import Any, TypeVar

import numpy as np

from minimodel import random
from minimodel.datasets import Dataset, Moments, Normalization, check_labels, check_rows

BLOCK = 2**21  # bytes of x that are read at one place of a file
CHUNK = 2**26  # bytes of float32 x that are learned from at once
FILES = 3  # what the seed's key is folded with; a run of the same seed folds it with 0 to 2

Path = str | PathLike[str]
Batches = Callable[[int], Iterable[tuple[Any, Any]]]  # epoch -> (x, y) in batches of any size
Item = TypeVar("Item")


@dataclass(frozen=True)
class Stream:
    """Training rows that are read anew in every epoch; it stands where ``Splits`` does in gradient descent, pruning
    and quantization.

    rows               training rows of an epoch
    batches            epoch -> its raw (x, y) in batches of any size, in the order of that epoch
    validation, test   in memory, as ``datasets.split`` makes them; the training rows are of the same form
    counts             training rows of each label, or None for regression

    The other fields are those of ``Splits``.
    """

    rows: int
    batches: Batches
    validation: Dataset
    test: Dataset
    normalization: Normalization | None = None
    targets: Normalization | None = None
    classes: tuple[str, ...] | None = None
    split_seed: int | None = None
    counts: np.ndarray | None = None

    @property
    def outputs(self) -> int:
        """How many outputs a network for these data needs: the classes or the targets."""
        return int(self.validation.y.shape[1]) if self.counts is None else len(self.counts)

    def chunks(
        self, epoch: int, rows: int, normalization: Normalization | None = None, *, reuse: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(x, y) of ``rows`` rows each, the last of what is left: the batches of an epoch, checked and regrouped.

        x (rows, features) is uint8 or float32, or float32 and normalised, which is cheapest while a batch is in the
        cache; y int32 labels (rows,) or float32 targets (rows, out). With ``reuse`` a chunk lies where the one before
        the last did, since new memory costs a fault a page.
        Raises ValueError where the rows are not as many or not of the form that the stream was made for.
        """
        if rows < 1:
            raise ValueError(f"rows: expected at least 1, got {rows}")
        parts = self._checked(epoch)
        x, y = (array[:0] for array in self.validation)  # what is left of a batch
        kinds = (np.float32 if normalization else x.dtype, y.dtype)
        rows = min(rows, self.rows)
        shapes = [(rows, *array.shape[1:]) for array in self.validation]

        def new() -> list[np.ndarray]:
            return list(map(np.empty, shapes, kinds))

        places = cycle([new(), new()]) if reuse else iter(new, None)
        for start, place in zip(range(0, self.rows, rows), places, strict=False):
            size, filled = min(rows, self.rows - start), 0
            chunk = Dataset(*(array[:size] for array in place))
            while filled < size:
                x, y = (x, y) if len(x) else next(parts)
                n = min(len(x), size - filled)
                put = normalization or np.positive
                put(x[:n], out=chunk.x[filled : filled + n])
                chunk.y[filled : filled + n] = y[:n]
                x, y, filled = x[n:], y[n:], filled + n
            if start + size == self.rows:
                next(parts, None)  # raises if there is more
            yield chunk

    def _checked(self, epoch: int) -> Iterator[Dataset]:
        """The batches of an epoch; ValueError where they do not add up to ``rows``."""
        task, classes = ("classification", self.outputs) if self.validation.y.ndim == 1 else ("regression", 0)
        done = 0
        for part in _read(self.batches, epoch, task, self.validation, classes):
            if (done := done + len(part.x)) > self.rows:
                break
            yield part
        if done != self.rows:
            more = " or more" if done > self.rows else ""
            raise ValueError(f"batches: expected {self.rows} rows in every epoch, got {done}{more} in epoch {epoch}")


class Checked(Dataset):
    """Rows whose numbers were looked at."""


def prefetched(iterator: Iterator[Item]) -> Iterator[Item]:
    """The items, each of them made on a background thread while the one before is in use."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Any] = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item


def stream_batches(
    batches: Iterable[tuple[Any, Any]] | Batches,
    validation: Dataset,
    test: Dataset,
    *,
    seed: int | None = None,
    task: str | None = None,
    callback: Callable[[int, int | None], Any] | None = None,
) -> Stream:
    """A stream of batches (x, y): from an iterable that can be gone through in every epoch, such as a list or torch's
    DataLoader, or from a function epoch -> iterable.

    x is (n, …); y integer labels 0 … K−1 (n,), or targets (n,) or (n, out). ``task`` settles which, as in
    ``datasets.load``. The batches are gone through once to count and check the rows and to fit the normalisation;
    ``callback(rows done, None)`` follows that. ``seed`` is what the rows were split with, if anything.
    """
    if isinstance(batches, Iterator) or not (isinstance(batches, Iterable) or callable(batches)):
        kind = type(batches).__name__
        raise TypeError(f"batches: expected a list or a function epoch -> iterable, read anew each epoch, got {kind}")
    source: Batches = (lambda epoch: batches) if isinstance(batches, Iterable) else batches
    validation = _check("validation", validation, task)
    test = _check("test", test, task, validation)
    of_x, of_y, labels = Moments(), Moments(), Counter[int]()
    for x, y in _read(source, 0, task, validation):
        of_x, of_y = of_x.joined(x), of_y.joined(y) if y.ndim == 2 else of_y
        if y.ndim == 1:  # not by bincount: a label may still be any number
            labels.update(dict(zip(*(part.tolist() for part in np.unique(y, return_counts=True)), strict=True)))
        if callback:
            callback(of_x.rows, None)
    if not of_x.rows:
        raise ValueError("batches: expected rows to train on, got none")
    counts = np.array([labels[label] for label in check_labels(np.array(sorted(labels)))]) if labels else None
    parts = (("validation", validation), ("test", test))
    validation, test = (_check(*part, task, classes=len(labels)) for part in parts)
    fitted = (of_x.normalization(), of_y.normalization() if of_y.rows else None)
    return Stream(of_x.rows, source, validation, test, *fitted, split_seed=seed, counts=counts)


def stream_files(
    x_path: Path,
    y_path: Path,
    *,
    seed: int,
    validation: int = 10_000,
    test: int = 10_000,
    task: str | None = None,
    callback: Callable[[int, int | None], Any] | None = None,
) -> Stream:
    """A stream from two .npy files: x (n, …) and y, integer labels 0 … K−1 (n,), or targets (n,) or (n, out).

    ``validation`` and ``test`` rows, drawn with the seed evenly from all over the files, are held out. The others are
    read in blocks of 2 MiB, in a random order that is new in every epoch; within a block they are in the files' order.
    The first time they are checked and the normalisation is fitted; ``callback(rows done, rows)`` follows that.
    """
    for name, count in (("validation", validation), ("test", test)):
        if isinstance(count, bool) or not hasattr(count, "__index__") or count < 1:
            raise ValueError(f"{name}: expected a number of rows to hold out, at least 1, got {count!r}")
    x, y = _open("x_path", x_path), _open("y_path", y_path)
    if x.ndim < 2 or x.size == 0 or x.shape[:1] != y.shape[:1]:
        raise ValueError(f"x_path, y_path: expected (n, …) and as many rows in y, got {x.shape} and {y.shape}")
    n, held = len(x), validation + test
    if held >= n:
        raise ValueError(f"validation, test: expected fewer than {n} rows in all, got {validation} and {test}")
    key, blocks = random.key(seed), min(n, max(64, -(-x.nbytes // BLOCK)))  # small files, too, are in several blocks
    rows, order, turns = (random.fold_in(random.fold_in(key, FILES), i) for i in range(3))
    files = _Files((x_path, y_path), (x.shape, y.shape), task, blocks, _spread(rows, n, held))
    drawn = Dataset(*map(np.concatenate, zip(*files.read(range(blocks), training=False), strict=True)))
    parts = (Dataset(drawn.x[part], drawn.y[part]) for part in np.split(random.permutation(order, held), [validation]))

    def batches(epoch: int) -> Iterator[Dataset]:
        return files.read(random.permutation(random.fold_in(turns, epoch), blocks), training=True)

    report = None if callback is None else lambda done, _: callback(done, n - held)
    return stream_batches(batches, *parts, seed=seed, task=task, callback=report)


@dataclass(frozen=True)
class _Files:
    """Two .npy files, cut into equal blocks."""

    paths: tuple[Path, Path]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    task: str | None
    blocks: int
    held: np.ndarray  # the rows that are held out, ascending

    def read(self, numbers: Iterable[int], *, training: bool) -> Iterator[Checked]:
        """The rows of blocks that are for training or that are held out, checked here, where their place is known."""
        files, most = self.opened(), -(-self.shapes[0][0] // self.blocks)
        places = [np.empty((most, *file.shape[1:]), file.dtype) for file in files]
        for i in numbers:
            first, stop = (int(j) * self.shapes[0][0] // self.blocks for j in (i, i + 1))
            held = self.held[slice(*np.searchsorted(self.held, (first, stop)))]
            if len(rows := np.delete(np.arange(first, stop), held - first) if training else held):
                kind = "training" if training else "held-out"
                name = f"{self.paths[0]}, {self.paths[1]}: of {len(rows)} {kind} rows from {rows[0]} to {rows[-1]}"
                each = zip(self.paths, files, places, strict=True)
                pair = tuple(_block(*found, first, stop)[rows - first] for found in each)
                yield Checked(*_check(name, pair, self.task))

    def opened(self) -> tuple[np.memmap, ...]:
        """Both files as they are now."""
        files = _open("x_path", self.paths[0]), _open("y_path", self.paths[1])
        if (shapes := tuple(file.shape for file in files)) != self.shapes:
            raise ValueError(f"x_path, y_path: the shapes were {self.shapes}, now {shapes}; make the stream anew")
        return files


def _block(path: Path, file: np.memmap, place: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Rows of a file, read to one place: what a mapping has touched would count as memory in use."""
    if not file.flags.c_contiguous:
        return np.array(_open("path", path)[first:stop])
    block = place[: stop - first]
    with open(path, "rb", buffering=0) as raw:
        raw.seek(file.offset + first * place[0].nbytes)
        if raw.readinto(block.reshape(-1).view(np.uint8).data) != block.nbytes:
            raise ValueError(f"{path}: rows {first} to {stop - 1} are not there any more; make the stream anew")
    return block


def _spread(key: np.ndarray, n: int, count: int) -> np.ndarray:
    """One row from each of ``count`` equal stretches of 0 … n−1, ascending."""
    edges = np.arange(count + 1) * n // count
    return edges[:-1] + (random.uniform(key, (count,)) * np.diff(edges).astype(np.float64)).astype(np.int64)


def _open(name: str, path: Path) -> np.memmap:
    """The array of a .npy file, mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header has NumPy raise nearly anything
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{name}: expected the path of a .npy file of numbers, got {path!r:.200} ({error})") from error


def _read(batches: Batches, epoch: int, task: str | None, like: Dataset, classes: int = 0) -> Iterator[Dataset]:
    found = batches(epoch)
    if not isinstance(found, Iterable):
        raise TypeError(f"batches: expected a function epoch -> iterable of (x, y), it gave {type(found).__name__}")
    for i, batch in enumerate(found):
        yield _check(f"batches: number {i} of epoch {epoch}", batch, task, like, classes)


def _check(name: str, batch: Any, task: str | None, like: Dataset | None = None, classes: int = 0) -> Dataset:
    """A pair (x, y) as x (n, features), uint8 or float32, and y, int64 labels (n,) or float32 targets (n, out); of the
    form of ``like``; where ``classes`` are known, int32 labels below that number."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"{name}: expected a pair (x, y), got {type(batch).__name__}; each batch must be one")
    try:
        x, y = batch if isinstance(batch, Checked) else check_rows(batch[0], batch[1], task)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if y.dtype.kind in "US":
        raise ValueError(f"{name}: y: expected integer labels 0 … K−1 or targets, got text; number the classes")
    if like and _form(x, y) != _form(*like):
        raise ValueError(f"{name}: expected {_form(*like)}, as in validation, got {_form(x, y)}; task says what y is")
    if classes and not 0 <= y.min() <= y.max() < classes:
        raise ValueError(f"{name}: y: expected the labels of training, 0 to {classes - 1}, got {y.min()} to {y.max()}")
    return Dataset(x, y.astype(np.int32) if classes else y)


def _form(x: np.ndarray, y: np.ndarray) -> str:
    return f"{x.dtype} x of {x.shape[1]} features with {'labels' if y.ndim == 1 else f'{y.shape[1]} targets'}"
