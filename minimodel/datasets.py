"""Data: loaded, checked, split; never changed. Models carry their own normalisation, so data stay as they came."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minimodel import random, readers

TASKS = ("classification", "regression")


class Dataset(NamedTuple):
    """x (n, features), uint8 pixels or float32; y int32 labels (n,) or float32 targets (n, out)."""

    x: np.ndarray
    y: np.ndarray


class Normalization(NamedTuple):
    """x ↦ (x − shift)·scale; shift and scale are float32 of shape (features,) or (1,)."""

    shift: np.ndarray
    scale: np.ndarray

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """float32, in a new array or in ``out``."""
        x = np.subtract(x, self.shift, out=out, dtype=np.float32, casting="unsafe")  # cast before it is subtracted
        x *= self.scale
        return x

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """x/scale + shift"""
        return x / self.scale + self.shift


class Moments(NamedTuple):
    """Mean and variance of the rows so far in float64: per feature, or one for all where they hold uint8 pixels."""

    rows: int = 0
    mean: Any = 0.0
    variance: Any = 0.0

    def joined(self, x: np.ndarray) -> "Moments":
        """With w the share of the new rows and δ = mean′ − mean: mean + wδ, (1−w)·variance + w·variance′ + w(1−w)δ²."""
        axis = None if x.dtype == np.uint8 else 0
        mean, variance = (np.atleast_1d(part(x, axis=axis, dtype=np.float64)) for part in (np.mean, np.var))
        rows = self.rows + len(x)
        w, step = len(x) / rows, mean - self.mean
        return Moments(rows, self.mean + w * step, (1 - w) * self.variance + w * variance + w * (1 - w) * step**2)

    def normalization(self) -> Normalization:
        """Zero mean and unit variance; what does not vary is only shifted."""
        deviation = np.sqrt(self.variance)
        varies = deviation > np.maximum(1e-7 * np.abs(self.mean), 1e-30)  # beyond it is rounding, or overflows float32
        scale = np.where(varies, 1 / np.where(varies, deviation, 1), 1)
        return Normalization(self.mean.astype(np.float32), scale.astype(np.float32))


def fit_normalization(x: np.ndarray) -> Normalization:
    """Zero mean and unit variance: per feature, or one shift and scale for all where x holds uint8 pixels."""
    return Moments().joined(x).normalization()


@dataclass(frozen=True)
class Splits:
    """What algorithms learn from (train), choose by (validation) and only report (test).

    normalization   of x, fitted on train only; None leaves x as it is
    targets         of y in regression, fitted on train only; predictions are turned back into y's units
    classes         the names of the labels 0, 1, …, or None for regression and for plain numbers
    split_seed      what the rows were shuffled with; a model remembers it, so as to find its test part again
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    normalization: Normalization | None = None
    targets: Normalization | None = None
    classes: tuple[str, ...] | None = None
    split_seed: int | None = None

    @property
    def outputs(self) -> int:
        """How many outputs a network for these data needs: the classes or the targets."""
        y = self.train.y
        return int(y.max()) + 1 if y.ndim == 1 else int(y.shape[1])


def load(source: str | Path, *, seed: int = 0, task: str | None = None) -> Splits:
    """The data set ``digits`` or the one at a path, split into train, validation and test with the seed.

    digits              1,797 images of 8×8 pixels, embedded (UCI optical digits, CC BY 4.0)
    a folder            IDX files named as MNIST's, gzipped or not; its own test set is kept
    FILE.npz            arrays x (n, …) and y (n,) or (n, out)
    FILE.csv            numbers, the target in the last column; a header line is skipped

    Labels are integers 0 … K−1, or text. ``task`` settles what is not clear from y: integers and text mean
    classification, other numbers regression. Raises ValueError or OSError for what cannot be used.
    """
    check_task(task)
    if str(source) == "digits":
        with resources.as_file(resources.files("minimodel") / "data" / "digits.npz") as path:
            return split(*readers.read_npz(path), seed=seed, task=task)
    path = Path(source)
    if path.is_dir():
        return _load_idx(path, seed)
    if not path.exists():
        raise FileNotFoundError(f"data: no such file or folder: {path} (and it is not the embedded set 'digits')")
    formats = {".npz": readers.read_npz, ".csv": readers.read_csv}
    if path.suffix.lower() not in formats:
        raise ValueError(f"data: expected 'digits', a folder of IDX files, .npz or .csv, got {path}")
    return split(*formats[path.suffix.lower()](path), seed=seed, task=task)


def split(
    x: Any, y: Any, *, seed: int, test: float = 0.2, validation: float = 1 / 6, task: str | None = None
) -> Splits:
    """Shuffle the rows with the seed; set ``test`` of them aside, then ``validation`` of the rest."""
    if not (0 < test < 1 and 0 < validation < 1):
        raise ValueError(f"test, validation: expected fractions between 0 and 1, got {test} and {validation}")
    data, classes = _check(x, y, task)
    order = random.permutation(random.key(seed), len(data.x))
    held = round(test * len(order))
    return _assemble(_take(data, order[held:]), _take(data, order[:held]), validation, classes, seed)


def _assemble(rest: Dataset, test: Dataset, validation: float, classes: tuple[str, ...] | None, seed: int) -> Splits:
    """``rest`` is in random order already."""
    held = round(validation * len(rest.x))
    parts = {"train": _take(rest, slice(held, None)), "validation": _take(rest, slice(held)), "test": test}
    for name, part in parts.items():
        if len(part.x) == 0:
            raise ValueError(f"data: the {name} part is empty; {len(rest.x) + len(test.x)} rows are too few")
    if test.y.ndim == 1:
        labels = range(int(max(rest.y.max(), test.y.max())) + 1)
        if absent := sorted(set(labels) - set(parts["train"].y.tolist())):
            raise ValueError(f"y: no row of the train part has label {absent[0]}; each class needs more rows")
    train = parts["train"]
    targets = fit_normalization(train.y) if train.y.ndim == 2 else None
    return Splits(
        **parts, normalization=fit_normalization(train.x), targets=targets, classes=classes, split_seed=int(seed)
    )


def _take(data: Dataset, rows: Any) -> Dataset:
    return Dataset(data.x[rows], data.y[rows])


def check_task(task: str | None) -> None:
    if task not in (None, *TASKS):
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")


def _check(x: Any, y: Any, task: str | None = None) -> tuple[Dataset, tuple[str, ...] | None]:
    """Refuse what no algorithm could learn from; x as (n, features), y as labels 0 … K−1 or targets, and the names of
    text labels."""
    x, y = check_rows(x, y, task)
    if y.dtype.kind in "US":
        names, labels = np.unique(y, return_inverse=True)
        return Dataset(x, labels.astype(np.int32)), tuple(str(name) for name in names)
    return Dataset(x, check_labels(y) if y.ndim == 1 else y), None


def check_rows(x: Any, y: Any, task: str | None = None) -> Dataset:
    """x as finite (n, features), uint8 or float32; y as finite float32 targets (n, out), or labels (n,), whichever they
    are: int64 or text."""
    if y is None:
        raise ValueError("y: the data have no targets; expected an array y beside x")
    x, y = check_x(x), _check_y(as_array("y", y), task)
    if len(x) != len(y):
        raise ValueError(f"x and y: expected as many rows in both, got {len(x)} and {len(y)}")
    return Dataset(x, y)


def as_array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors on a device or with gradients
        raise ValueError(
            f"{name}: expected what NumPy reads as an array, got {type(values).__name__} ({error})"
        ) from error


def check_x(x: Any) -> np.ndarray:
    """x as finite (n, features), uint8 or float32."""
    x = as_array("x", x)
    if x.ndim < 2 or x.size == 0 or x.dtype.kind not in "uifb":
        raise ValueError(f"x: expected a non-empty numeric array (n, features), got {x.dtype} of shape {x.shape}")
    x = x.reshape(len(x), -1)
    if x.dtype == np.uint8:
        return x
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(
            f"x: NaN, infinite or beyond float32 at row {row}, column {column} (from 0); remove or fill it"
        )
    return x


def _check_y(y: np.ndarray, task: str | None) -> np.ndarray:
    check_task(task)
    if y.dtype.kind in "OT":  # text as pandas has it
        y = np.asarray(y.tolist())
    if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind != "f":
        y = y[:, 0]
    text = y.dtype.kind in "US"
    if y.size == 0 or y.dtype.kind not in "uifbUS" or y.ndim not in (1, 2):
        raise ValueError(f"y: expected numbers or text of shape (n,) or (n, out), got {y.dtype} of shape {y.shape}")
    if task == "regression" and text:
        raise ValueError("y: regression needs numbers, got text")
    if task == "regression" or ((task is None and (y.dtype.kind == "f" or y.ndim == 2)) and not text):
        with np.errstate(over="ignore"):
            targets = y.reshape(len(y), -1).astype(np.float32, copy=False)
        if not np.isfinite(targets).all():
            raise ValueError(
                f"y: NaN, infinite or beyond float32 at row {np.argwhere(~np.isfinite(targets))[0][0]} (from 0)"
            )
        return targets
    if y.ndim != 1:
        raise ValueError(f"y: expected one label a row, shape (n,), got {y.shape}")
    return y if text else _check_whole(y)


def _check_whole(y: np.ndarray) -> np.ndarray:
    """Labels as int64."""
    with np.errstate(invalid="ignore"):
        labels = y.astype(np.int64)
    if not (labels == y).all():
        raise ValueError(f"y: labels must be whole numbers, got {y[labels != y][0]}")
    return labels


def check_labels(labels: np.ndarray) -> np.ndarray:
    """int32 labels: all of 0 … K−1, each present."""
    distinct = np.unique(labels)
    if len(distinct) < 2:
        raise ValueError(f"y: at least two classes are needed, got {len(distinct)}")
    if distinct[0] != 0 or distinct[-1] != len(distinct) - 1:
        odd = distinct[distinct != np.arange(len(distinct))][-1]
        raise ValueError(
            f"y: label {odd} is out of range: {len(distinct)} classes must be labelled 0 to {len(distinct) - 1} "
            "without gaps; renumber them, or ask for task 'regression'"
        )
    return labels.astype(np.int32)


def load_rows(
    source: str | Path, *, features: int, labels: bool, classes: tuple[str, ...] | None = None
) -> tuple[np.ndarray, Any]:
    """x (n, features) and y, or None where there is no target, of every row of a .npz or .csv, unsplit.

    ``labels`` says that y holds labels: they become the indices of ``classes``, or whole numbers. A .csv of exactly
    ``features`` columns has no target.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv":
        x, y = readers.read_csv(path, features, text=classes is not None)
    elif path.suffix.lower() == ".npz":
        x, y = readers.read_npz(path)
    else:
        raise ValueError(f"data: expected a .npz or .csv file, got {path}")
    x = check_x(x)
    if x.shape[1] != features:
        raise ValueError(f"{path}: the model takes {features} features, got {x.shape[1]}")
    if y is None or not labels:
        return x, y
    y = y.reshape(len(y)) if y.size == len(y) else y
    if classes:
        places = {name: i for i, name in enumerate(classes)}
        if unknown := sorted(set(map(str, y.tolist())) - set(places)):
            raise ValueError(f"{path}: the model does not know the label {unknown[0]!r}, only {', '.join(classes)}")
        return x, np.asarray([places[str(name)] for name in y.tolist()], np.int32)
    if y.dtype.kind == "f" and (y == np.round(y)).all():
        y = y.astype(np.int64)
    return x, y


def _load_idx(folder: Path, seed: int) -> Splits:
    """MNIST's four files; a validation part is taken from the training rows at random."""
    parts = []
    for stem in ("train", "t10k"):
        x, y = (readers.read_idx(_find(folder, f"{stem}-{what}")) for what in ("images", "labels"))
        if len(x) != len(y):
            raise ValueError(f"{folder}: {stem} has {len(x)} images but {len(y)} labels")
        parts.append(Dataset(check_x(x), _check_idx_labels(y, folder, stem)))
    rest, test = parts
    if rest.x.shape[1] != test.x.shape[1] or not 0 <= test.y.min() <= test.y.max() <= rest.y.max():
        raise ValueError(
            f"{folder}: the test set does not fit the training set: {test.x.shape[1]} against {rest.x.shape[1]} "
            f"features, highest label {test.y.max()} against {rest.y.max()}"
        )
    order = random.permutation(random.key(seed), len(rest.x))
    return _assemble(_take(rest, order), test, 1 / 6, None, seed)


def _check_idx_labels(y: np.ndarray, folder: Path, stem: str) -> np.ndarray:
    if y.ndim != 1 or y.dtype.kind not in "ui":
        raise ValueError(f"{folder}: {stem}-labels: expected one integer a row, got {y.dtype} of shape {y.shape}")
    return check_labels(y) if stem == "train" else y.astype(np.int32)


def _find(folder: Path, stem: str) -> Path:
    found = sorted(path for path in folder.iterdir() if path.name.startswith(stem))
    if not found:
        raise FileNotFoundError(f"{folder}: no IDX file {stem}-… (gzipped or not)")
    return found[0]
