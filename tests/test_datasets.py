"""Data: read, split and normalised as promised; what cannot be used is refused in one clear sentence."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import datasets

TYPES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
NAMES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "t10k-images": "t10k-images-idx3-ubyte",
    "t10k-labels": "t10k-labels-idx1-ubyte",
}


def idx(array, dtype=">u1"):
    """The bytes of an IDX file, by the format's own description."""
    dtype = np.dtype(dtype)
    code = TYPES[dtype.str if dtype.itemsize > 1 else dtype.str[1:]]
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.astype(dtype).tobytes()


def images(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(rows, 3, 2))


def labels(rows, classes=3):
    return np.arange(rows) % classes


def write_folder(folder, zipped=False, image_type=">u1", label_type=">u1", **replaced):
    """MNIST's four files, tiny; ``replaced`` gives other bytes for a file, or None to leave it out."""
    folder.mkdir(exist_ok=True)
    content = {
        "train_images": idx(images(36), image_type),
        "train_labels": idx(labels(36), label_type),
        "t10k_images": idx(images(9, seed=1), image_type),
        "t10k_labels": idx(labels(9), label_type),
    } | replaced
    for name, raw in content.items():
        path = folder / NAMES[name.replace("_", "-")]
        if raw is not None and zipped:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(raw))
        elif raw is not None:
            path.write_bytes(raw)
    return folder


def table(rows=30, features=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, features)), labels(rows)


def all_rows(splits):
    """x and y of all three parts."""
    parts = (splits.train, splits.validation, splits.test)
    return np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])


def in_order(x, y):
    """The rows sorted, so that two shuffles of one table compare equal."""
    rows = np.column_stack([x, y]).astype(np.float64)
    return rows[np.lexsort(rows.T[::-1])]


def one_line(error):
    return str(error).count("\n") == 0 and len(str(error)) > 10


# digits


def test_digits_are_those_of_sklearn(oracle):
    digits = oracle("sklearn.datasets").load_digits()
    found = datasets.load("digits")
    assert (len(found.train.x), len(found.validation.x), len(found.test.x)) == (1198, 240, 359)
    assert found.train.x.dtype == np.uint8 and found.train.y.dtype == np.int32
    assert found.outputs == 10 and found.classes is None and found.targets is None
    np.testing.assert_array_equal(in_order(*all_rows(found)), in_order(digits.data, digits.target))


# Splits


@given(st.integers(20, 200), st.integers(0, 2**32), st.floats(0.1, 0.5), st.floats(0.1, 0.5))
def test_parts_are_disjoint_and_cover_all_rows(rows, seed, test, validation):
    x = np.arange(rows, dtype=np.float32)[:, None]
    found = datasets.split(x, x[:, 0], seed=seed, test=test, validation=validation)
    assert sorted(all_rows(found)[0].ravel().tolist()) == list(range(rows))
    assert len(found.test.x) == round(test * rows)
    assert len(found.validation.x) == round(validation * (rows - round(test * rows)))
    for part in (found.train, found.validation, found.test):
        np.testing.assert_array_equal(part.x, part.y)


def test_the_seed_decides_the_split():
    x, y = table(60)
    first, again, other = (datasets.split(x, y, seed=seed) for seed in (3, 3, 4))
    for one, two in zip(all_rows(first), all_rows(again), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (all_rows(first)[0] != all_rows(other)[0]).any()
    assert (first.test.x != np.asarray(x[:12], np.float32)).any()  # shuffled, not cut


def test_the_given_arrays_are_not_touched():
    x, y = table()
    before = x.copy(), y.copy()
    found = datasets.split(x, y, seed=0)
    found.train.x[...] = 0
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_images_become_rows():
    found = datasets.split(np.zeros((30, 4, 5, 2)), labels(30), seed=0)
    assert found.train.x.shape[1:] == (40,)


# Normalisation


def test_normalization_makes_the_training_part_standard():
    x, y = table(200)
    x = x * [1.0, 100.0, 1e-3] + [0.0, 1e3, -5.0]
    found = datasets.split(x, y, seed=0)
    z = found.normalization(found.train.x)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(found.normalization.shift, found.train.x.mean(axis=0, dtype=np.float64), rtol=1e-5)
    whole = np.concatenate([found.train.x, found.validation.x, found.test.x]).mean(axis=0, dtype=np.float64)
    assert (np.abs(found.normalization.shift - whole) > 1e-6).all()  # of train, not of all rows


def test_targets_are_standardised_by_the_training_part():
    x, y = table(200)
    found = datasets.split(x, 1000 + 50 * x[:, :2], seed=0)
    z = found.targets(found.train.y)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(found.targets.inverse(z), found.train.y, rtol=1e-5)
    assert datasets.split(x, y, seed=0).targets is None


def test_normalization_is_the_inverse_of_its_inverse():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    fitted = datasets.fit_normalization(x)
    np.testing.assert_allclose(fitted.inverse(fitted(x)), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3e7, 1e-20, 3e38])
def test_a_constant_feature_is_only_shifted(value):
    x = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    x[:, 0] = value
    fitted = datasets.fit_normalization(x)
    assert fitted.scale[0] == 1 and fitted.scale[1] != 1
    assert np.abs(fitted(x)[:, 0]).max() <= 1e-6 * max(abs(value), 1)


@pytest.mark.parametrize("magnitude", [1e-42, 1e-30, 1e30, 8e37])
def test_tiny_and_large_features_stay_finite(magnitude):
    x = (np.random.default_rng(0).uniform(-1, 1, size=(60, 2)) * magnitude).astype(np.float32)
    found = datasets.split(x, labels(60), seed=0)
    assert np.isfinite(found.normalization(found.train.x)).all()


def test_bytes_share_one_scale():
    """Pixels keep their relations: one shift and one scale for all."""
    x = np.random.default_rng(0).integers(0, 100, size=(60, 3)).astype(np.uint8)
    x[:, 0] = 7
    found = datasets.split(x, labels(60), seed=0)
    assert found.train.x.dtype == np.uint8
    assert found.normalization.shift.shape == found.normalization.scale.shape == (1,)
    assert found.normalization.shift[0] == pytest.approx(found.train.x.mean(), rel=1e-6)
    assert found.normalization.scale[0] == pytest.approx(1 / found.train.x.std(), rel=1e-6)


def test_constant_bytes():
    x = np.full((30, 2), 255, np.uint8)
    found = datasets.split(x, labels(30), seed=0)
    assert not found.normalization(found.train.x).any()


# What y means


@pytest.mark.parametrize(
    ("y", "task", "dtype", "shape"),
    [
        (labels(30), None, np.int32, (19,)),
        (labels(30).astype(np.uint8), None, np.int32, (19,)),
        (labels(30, 2).astype(bool), None, np.int32, (19,)),
        (labels(30).astype(float), None, np.float32, (19, 1)),
        (labels(30).astype(float), "classification", np.int32, (19,)),
        (labels(30), "regression", np.float32, (19, 1)),
        (10 * labels(30) - 7, "regression", np.float32, (19, 1)),
        (np.ones((30, 2)) * np.arange(30)[:, None], None, np.float32, (19, 2)),
        (np.ones((30, 2), int) * np.arange(30)[:, None], "regression", np.float32, (19, 2)),
        (np.array(["b", "a", "c"] * 10), None, np.int32, (19,)),
        (np.array(["b", "a", "c"] * 10), "classification", np.int32, (19,)),
    ],
)
def test_the_task(y, task, dtype, shape):
    found = datasets.split(table()[0], y, seed=0, task=task)
    # 30 rows: 6 are for the test, 4 of the other 24 for validation
    assert found.train.y.dtype == dtype
    assert found.train.y.shape == (20, *shape[1:])
    assert (found.targets is None) == (dtype == np.int32)
    assert found.outputs == (3 if len(np.unique(y)) == 3 and dtype == np.int32 else 2 if y.dtype == bool else shape[-1])


def test_text_labels_have_names_in_alphabetical_order():
    x = np.arange(30.0)[:, None]
    names = np.array(["owl", "cat", "dog"] * 10)
    found = datasets.split(x, names, seed=0)
    assert found.classes == ("cat", "dog", "owl")
    for part in (found.train, found.validation, found.test):
        assert [found.classes[i] for i in part.y] == names[part.x[:, 0].astype(int)].tolist()


# IDX


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path, zipped):
    found = datasets.load(write_folder(tmp_path / "mnist", zipped))
    assert (len(found.train.x), len(found.validation.x), len(found.test.x)) == (30, 6, 9)
    assert found.train.x.dtype == np.uint8 and found.outputs == 3
    np.testing.assert_array_equal(found.test.x, images(9, seed=1).reshape(9, 6))
    np.testing.assert_array_equal(found.test.y, labels(9))
    rest = [np.concatenate(pair) for pair in zip(found.train, found.validation, strict=True)]
    np.testing.assert_array_equal(in_order(*rest), in_order(images(36).reshape(36, 6), labels(36)))


@pytest.mark.parametrize("dtype", TYPES)
def test_idx_of_every_type(tmp_path, dtype):
    folder = tmp_path / "mnist"
    x = (images(9, seed=1) // 2) * (1 if dtype[-2:] == "u1" else -1)
    write_folder(folder, image_type=dtype, t10k_images=idx(x, dtype))
    found = datasets.load(folder).test.x
    assert found.dtype == (np.uint8 if dtype == "u1" else np.float32)
    np.testing.assert_array_equal(found, x.reshape(9, 6))


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", ">i4"])
def test_idx_labels_of_every_integer_type(tmp_path, dtype):
    found = datasets.load(write_folder(tmp_path / "mnist", label_type=dtype))
    assert found.test.y.dtype == np.int32
    np.testing.assert_array_equal(found.test.y, labels(9))


def test_the_seed_decides_the_validation_part_of_an_idx_folder(tmp_path):
    folder = write_folder(tmp_path / "mnist")
    first, again, other = (datasets.load(folder, seed=seed).validation.x for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", [name.replace("-", "_") for name in NAMES])
def test_every_truncated_idx_file_is_refused(tmp_path, name):
    folder = write_folder(tmp_path / "mnist")
    path = folder / NAMES[name.replace("_", "-")]
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"IDX|truncated") as caught:
            datasets.load(folder)
        assert str(path) in str(caught.value) and one_line(caught.value)
    path.write_bytes(whole)
    datasets.load(folder)


def test_every_truncated_gzip_file_is_refused(tmp_path):
    folder = write_folder(tmp_path / "mnist", zipped=True)
    path = folder / f"{NAMES['train-labels']}.gz"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError) as caught:
            datasets.load(folder)
        assert str(path) in str(caught.value) and one_line(caught.value)


def test_every_flipped_bit_of_a_gzip_file_is_read_or_refused(tmp_path):
    """Header fields such as the time may change; content may not, and nothing else is ever raised."""
    folder = write_folder(tmp_path / "mnist", zipped=True)
    path = folder / f"{NAMES['t10k-labels']}.gz"
    whole, refused = path.read_bytes(), 0
    for i in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :])
            try:
                found = datasets.load(folder)
            except ValueError:
                refused += 1
            else:
                np.testing.assert_array_equal(found.test.y, labels(9))
    assert refused > 8 * (len(whole) - 10)


BROKEN_FOLDERS = {
    "text": ({"train_images": b"these are no images"}, "not an IDX file"),
    "empty": ({"train_images": b""}, "not an IDX file"),
    "first bytes": ({"train_labels": b"\1" + idx(labels(36))[1:]}, "not an IDX file"),
    "unknown type": ({"t10k_images": b"\0\0\x0a" + idx(images(9))[3:]}, "not an IDX file"),
    "bytes after the end": ({"t10k_labels": idx(labels(9)) + b"\0"}, "truncated or damaged"),
    "huge lengths": ({"train_images": b"\0\0\x08\3" + b"\xff" * 12}, "truncated or damaged"),
    "more images than labels": ({"train_labels": idx(labels(35))}, "36 images but 35 labels"),
    "fewer test images": ({"t10k_images": idx(images(8))}, "8 images but 9 labels"),
    "no training images": ({"train_images": idx(images(0))}, "0 images but 36 labels"),
    "no training labels": ({"train_labels": idx(labels(0))}, "36 images but 0 labels"),
    "no test rows": ({"t10k_images": idx(images(0)), "t10k_labels": idx(labels(0))}, "x: expected a non-empty"),
    "no test labels": ({"t10k_labels": idx(labels(0))}, "9 images but 0 labels"),
    "labels of two axes": ({"train_labels": idx(labels(36)[:, None])}, "train-labels: expected one integer a row"),
    "labels of floats": ({"t10k_labels": idx(labels(9), ">f4")}, "t10k-labels: expected one integer a row"),
    "a gap in the labels": ({"train_labels": idx(2 * labels(36))}, "label 4 is out of range"),
    "one class": ({"train_labels": idx(0 * labels(36))}, "at least two classes"),
    "negative label": ({"train_labels": idx(labels(36) - 1, "i1")}, "out of range"),
    "test label beyond train": ({"t10k_labels": idx(labels(9) + 1)}, "highest label 3 against 2"),
    "negative test label": ({"t10k_labels": idx(labels(9) - 1, "i1")}, "does not fit"),
    "other image size": ({"t10k_images": idx(images(9)[:, :2])}, "4 against 6 features"),
    "NaN": ({"train_images": idx(np.full((36, 3, 2), np.nan), ">f4")}, "x: NaN, infinite"),
    "beyond float32": ({"train_images": idx(np.full((36, 3, 2), 1e300), ">f8")}, "x: NaN, infinite"),
    "a scalar": ({"train_labels": b"\0\0\x08\0\5"}, "not an IDX file"),
}


@pytest.mark.parametrize("name", BROKEN_FOLDERS)
def test_a_broken_idx_folder_is_refused(tmp_path, name):
    replaced, message = BROKEN_FOLDERS[name]
    folder = write_folder(tmp_path / "mnist", **replaced)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.load(folder)
    assert one_line(caught.value)


@pytest.mark.parametrize("name", [name.replace("-", "_") for name in NAMES])
def test_a_missing_idx_file_is_named(tmp_path, name):
    folder = write_folder(tmp_path / "mnist", **{name: None})
    with pytest.raises(FileNotFoundError, match=name.replace("_", "-")) as caught:
        datasets.load(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_without_idx_files_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no IDX file train-images"):
        datasets.load(tmp_path)


def test_a_gzip_name_on_raw_bytes_is_refused(tmp_path):
    folder = write_folder(tmp_path / "mnist", train_images=None)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(images(36)))
    with pytest.raises(ValueError, match="damaged or truncated gzip"):
        datasets.load(folder)


# npz


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_npz(tmp_path):
    x, y = table()
    found = datasets.load(write_npz(tmp_path / "d.npz", x=x, y=y, other=np.zeros(2)))
    np.testing.assert_allclose(in_order(*all_rows(found)), in_order(x.astype(np.float32), y))
    images_found = datasets.load(write_npz(tmp_path / "D.NPZ.npz", x=images(30).astype(np.uint8), y=labels(30)))
    assert images_found.train.x.dtype == np.uint8 and images_found.train.x.shape == (20, 6)
    text = datasets.load(write_npz(tmp_path / "t.npz", x=x, y=np.array(["no", "yes"] * 15)))
    assert text.classes == ("no", "yes")
    targets = datasets.load(write_npz(tmp_path / "r.npz", x=x, y=x[:, :2]))
    assert targets.outputs == 2 and targets.targets is not None


def x_with(value):
    x, _ = table()
    x[3, 1] = value
    return x


BROKEN_ARRAYS = {
    "no y": ({"x": table()[0]}, "no targets"),
    "no x": ({"y": labels(30)}, "no array x"),
    "no arrays": ({}, "no array x"),
    "lengths": ({"x": table()[0], "y": labels(29)}, "as many rows in both, got 30 and 29"),
    "NaN in x": ({"x": x_with(np.nan), "y": labels(30)}, "x: NaN, infinite.* at row 3, column 1"),
    "infinity in x": ({"x": x_with(-np.inf), "y": labels(30)}, "x: NaN, infinite.* at row 3, column 1"),
    "beyond float32": ({"x": x_with(1e39), "y": labels(30)}, "x: NaN, infinite.* at row 3, column 1"),
    "NaN in y": ({"x": table()[0], "y": x_with(np.nan)[:, 1]}, "y: NaN.*infinite.* at row 3"),
    "infinity in y": ({"x": table()[0], "y": x_with(np.inf)[:, 1]}, "y: NaN.*infinite.* at row 3"),
    "y beyond float32": ({"x": table()[0], "y": x_with(1e300)[:, 1]}, "y: .*infinite.* at row 3"),
    "a gap": ({"x": table()[0], "y": 2 * labels(30)}, "label 4 is out of range"),
    "a negative label": ({"x": table()[0], "y": labels(30) - 1}, "out of range"),
    "from one": ({"x": table()[0], "y": labels(30) + 1}, "label 3 is out of range"),
    "a huge label": ({"x": table()[0], "y": labels(30) + 2**62}, "out of range"),
    "a huge unsigned label": ({"x": table()[0], "y": labels(30).astype(np.uint64) + np.uint64(2**63)}, "y: label"),
    "one class": ({"x": table()[0], "y": np.zeros(30, int)}, "at least two"),
    "too few rows": ({"x": table(2)[0], "y": labels(2)}, "2 rows are too few|needs more rows"),
    "one row": ({"x": table(1)[0], "y": np.ones(1)}, "too few"),
    "a rare class": ({"x": table()[0], "y": np.array([1] + [0] * 29)}, "train part has label|out of range"),
    "no rows": ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, "x: expected a non-empty"),
    "no features": ({"x": np.zeros((30, 0)), "y": labels(30)}, "x: expected a non-empty"),
    "x of one axis": ({"x": np.zeros(30), "y": labels(30)}, "x: expected a non-empty numeric array"),
    "x a scalar": ({"x": 3.0, "y": labels(30)}, "x: expected a non-empty numeric array"),
    "y a scalar": ({"x": table()[0], "y": 5.0}, "y: expected"),
    "y an integer": ({"x": table()[0], "y": 5}, "y: expected"),
    "y a word": ({"x": table()[0], "y": "yes"}, "y: expected"),
    "y of three axes": ({"x": table()[0], "y": np.zeros((30, 2, 2))}, "y: expected numbers or text"),
    "no targets in y": ({"x": table()[0], "y": np.zeros((30, 0))}, "y: expected numbers or text"),
    "complex x": ({"x": table()[0] * 1j, "y": labels(30)}, "x: expected a non-empty numeric"),
    "complex y": ({"x": table()[0], "y": labels(30) * 1j}, "y: expected numbers or text"),
    "text x": ({"x": np.array([["a"]] * 30), "y": labels(30)}, "x: expected a non-empty numeric"),
    "text of two axes": ({"x": table()[0], "y": np.array([["a", "b"]] * 30)}, "y: expected one label a row"),
    "objects": ({"x": np.array([[{}]] * 30, object), "y": labels(30)}, "not a readable .npz of plain arrays"),
    "object labels": ({"x": table()[0], "y": np.array([None] * 30, object)}, "not a readable .npz of plain arrays"),
    "dates": ({"x": table()[0].astype("M8[s]"), "y": labels(30)}, "x: expected a non-empty numeric"),
}


@pytest.mark.parametrize("name", BROKEN_ARRAYS)
def test_broken_arrays_are_refused(tmp_path, name):
    arrays, message = BROKEN_ARRAYS[name]
    path = write_npz(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.load(path)
    assert one_line(caught.value)


@pytest.mark.parametrize(
    ("y", "task", "message"),
    [
        (np.array([0.5, 1.0] * 15), "classification", "labels must be whole numbers, got 0.5"),
        (np.array([np.nan, 1.0] * 15), "classification", "labels must be whole numbers, got nan"),
        (np.array([np.inf, 1.0] * 15), "classification", "labels must be whole numbers, got inf"),
        (np.array(["a", "b"] * 15), "regression", "regression needs numbers"),
        (np.zeros((30, 2)), "classification", "one label a row"),
        (labels(30), "clustering", "task: expected one of classification, regression"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(tmp_path, y, task, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(write_npz(tmp_path / "d.npz", x=table()[0], y=y), task=task)


def npy_bytes():
    file = io.BytesIO()
    np.save(file, np.zeros((30, 2)))
    return file.getvalue()


def zip_bytes(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    "raw",
    [b"", b"x,y\n1,2\n", npy_bytes(), b"PK\3\4", zip_bytes(), zip_bytes(x="1", y="2"), b"\x80\x04N."],
    ids=["empty", "text", "npy", "cut zip", "empty zip", "no arrays", "pickle"],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path, raw):
    path = tmp_path / "d.npz"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"npz|x: expected") as caught:
        datasets.load(path)
    assert one_line(caught.value)


def test_every_truncated_npz_is_refused(tmp_path):
    path = write_npz(tmp_path / "d.npz", x=table(20, 2)[0].astype(np.float32), y=labels(20).astype(np.uint8))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"not a readable \.npz") as caught:
            datasets.load(path)
        assert str(path) in str(caught.value)


def test_every_flipped_bit_of_an_npz_is_read_or_refused(tmp_path):
    """A zip has a checksum of its content only; whatever else changes, nothing but a ValueError may come of it."""
    path = write_npz(tmp_path / "d.npz", x=np.zeros((20, 1), np.uint8), y=labels(20).astype(np.uint8))
    whole, refused = path.read_bytes(), 0
    for i in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :])
            try:
                datasets.load(path)
            except ValueError:
                refused += 1
    assert refused > 0


# csv


def write_csv(path, text, **options):
    path.write_text(text, **options)
    return path


def lines(target, rows=30):
    return "".join(f"{i},{i % 7}.5,{target(i)}\n" for i in range(rows))


@pytest.mark.parametrize("header", ["", "a,b,target\n", '"a, b","c ""d""",y\n', "\n\na,b,c\n\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_with_and_without_header(tmp_path, header, encoding, newline):
    path = write_csv(tmp_path / "d.csv", header + lines(lambda i: i % 3), encoding=encoding, newline=newline)
    found = datasets.load(path)
    x, y = all_rows(found)
    assert y.dtype == np.int32 and found.outputs == 3 and found.classes is None
    expected = np.array([[i, i % 7 + 0.5] for i in range(30)])
    np.testing.assert_array_equal(in_order(x, y), in_order(expected, np.arange(30) % 3))


@pytest.mark.parametrize(
    ("target", "outputs", "classes"),
    [
        (lambda i: ("owl", "cat")[i % 2], 2, ("cat", "owl")),
        (lambda i: ('"owl, old"', " cat ")[i % 2], 2, ("cat", "owl, old")),
        (lambda i: i % 4, 4, None),
        (lambda i: f" {i % 4} ", 4, None),
        (lambda i: f"+{i % 4}", 4, None),
        (lambda i: f'"{i % 4}"', 4, None),
        (lambda i: i / 4, 1, None),
        (lambda i: f"{i % 2}.0", 1, None),
        (lambda i: f"{i}e-1", 1, None),
        (lambda i: ("1", "yes")[i % 2], 2, ("1", "yes")),
    ],
)
def test_the_last_column_of_a_csv(tmp_path, target, outputs, classes):
    found = datasets.load(write_csv(tmp_path / "d.csv", lines(target)))
    assert (found.outputs, found.classes) == (outputs, classes)
    assert found.train.x.shape == (20, 2)


def test_whole_numbers_of_a_csv_as_targets(tmp_path):
    path = write_csv(tmp_path / "d.csv", lines(lambda i: 10 * i - 50))
    assert sorted(all_rows(datasets.load(path, task="regression"))[1].ravel()) == [10 * i - 50 for i in range(30)]
    with pytest.raises(ValueError, match="out of range"):
        datasets.load(path)


def test_whole_numbers_of_a_csv_beyond_every_integer_type(tmp_path):
    path = write_csv(tmp_path / "d.csv", lines(lambda i: 10**25 * (1 + i % 2)))
    found = datasets.load(path, task="regression")
    np.testing.assert_allclose(np.unique(found.train.y), [1e25, 2e25], rtol=1e-6)


BROKEN_CSV = {
    "empty": ("", "expected lines of features and a target"),
    "blank lines": ("\n\n\n", "expected lines of features and a target"),
    "header only": ("a,b,c\n", "expected lines of features and a target"),
    "a short line": (lines(lambda i: i % 2) + "1,2\n", "line 31: 2 cells, expected 3"),
    "a long line": (lines(lambda i: i % 2) + "1,2,0,0\n", "line 31: 4 cells, expected 3"),
    "a text feature": (lines(lambda i: i % 2) + "1,red,0\n", "line 31: a feature that is no number"),
    "a missing feature": (lines(lambda i: i % 2) + "1,,0\n", "line 31: a feature that is no number"),
    "NaN": (lines(lambda i: i % 2) + "nan,1,0\n", "x: NaN, infinite.* at row 30, column 0"),
    "infinity": (lines(lambda i: i % 2) + "1,-inf,0\n", "x: NaN, infinite.* at row 30, column 1"),
    "NaN target": (lines(lambda i: i / 3) + "1,1,nan\n", "y: NaN.*infinite"),
    "target beyond float32": (lines(lambda i: i / 3) + "1,1,1e300\n", "y: .*infinite"),
    "one column": ("1\n2\n3\n4\n", "only one column"),
    "out of range": (lines(lambda i: 5 + i % 2), "out of range"),
    "too few rows": ("1,2,0\n3,4,1\n", "too few|more rows"),
    "semicolons": (lines(lambda i: i % 2).replace(",", ";"), "."),
    "second header": (lines(lambda i: i % 2) + "a,b,c\n", "line 31: a feature that is no number"),
    "an empty target": (lines(lambda i: i % 2) + "1,2,\n", "line 31: an empty target"),
}


@pytest.mark.parametrize("name", BROKEN_CSV)
def test_a_broken_csv_is_refused(tmp_path, name):
    text, message = BROKEN_CSV[name]
    with pytest.raises(ValueError, match=message) as caught:
        datasets.load(write_csv(tmp_path / "d.csv", text))
    assert one_line(caught.value)


@pytest.mark.parametrize("raw", [b"\xff\xfe1\x00,\x002\x00", b"\x80\x81\x82", b"1," + b"9" * 200_000 + b"\n"])
def test_bytes_that_are_no_csv_are_refused(tmp_path, raw):
    path = tmp_path / "d.csv"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"d\.csv|x: |rows are too few") as caught:
        datasets.load(path)
    assert one_line(caught.value)


# Where the data are


@pytest.mark.parametrize("name", ["none", "none.csv", "none.npz", "sub/none.csv", "Digits"])
def test_a_missing_path_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no such file or folder") as caught:
        datasets.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["d.txt", "d.parquet", "d", "d.npy"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"1,2\n")
    with pytest.raises(ValueError, match=r"expected 'digits', a folder of IDX files, .npz or .csv"):
        datasets.load(tmp_path / name)


# Rows for a saved model


def test_rows_with_and_without_a_target(tmp_path):
    path = write_csv(tmp_path / "d.csv", lines(lambda i: i % 2, rows=5))
    x, y = datasets.load_rows(path, features=2, labels=True)
    assert x.shape == (5, 2) and x.dtype == np.float32 and y.tolist() == [0, 1, 0, 1, 0]
    x, y = datasets.load_rows(path, features=3, labels=True)
    assert x.shape == (5, 3) and y is None
    x, y = datasets.load_rows(write_npz(tmp_path / "d.npz", x=np.zeros((4, 2, 3))), features=6, labels=True)
    assert x.shape == (4, 6) and y is None


def test_rows_with_named_labels(tmp_path):
    path = write_csv(tmp_path / "d.csv", lines(lambda i: ("owl", "cat")[i % 2], rows=4))
    assert datasets.load_rows(path, features=2, labels=True, classes=("ant", "cat", "owl"))[1].tolist() == [2, 1, 2, 1]
    with pytest.raises(ValueError, match="does not know the label 'owl'"):
        datasets.load_rows(path, features=2, labels=True, classes=("cat", "dog"))


@pytest.mark.parametrize("features", [1, 4])
def test_rows_of_another_width_are_refused(tmp_path, features):
    path = write_csv(tmp_path / "d.csv", lines(lambda i: i % 2))
    with pytest.raises(ValueError, match=f"the model takes {features} features, got 2") as caught:
        datasets.load_rows(path, features=features, labels=True)
    assert str(path) in str(caught.value)


def test_data_sets_are_named_tuples():
    data = mm.Dataset(np.zeros((2, 1)), np.zeros(2))
    x, y = data
    assert x is data.x and y is data.y
