"""The command line: results on stdout, one line on stderr for a failure, and files that are what it says."""

import gzip
import io
import json
import re
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import minimodel as mm

pytest.importorskip("click")
pytest.importorskip("rich")

from rich.console import Console

from minimodel import cli, pipeline, terminal
from minimodel.observe import Progress

STAGES = ["random_search", "gradient_descent", "prune", "quantize"]
FAST = ["--epochs", "2", "--hidden", "8", "--sparsity", "0.5"]  # at 0.9 so small a network falls apart


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def in_process(capsys, *arguments):
    """Exit code, stdout and stderr of the command line within this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code or 0, *capsys.readouterr()


def in_subprocess(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "minimodel", *arguments], cwd=cwd, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def table(rows=60, features=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features)).round(3)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 0] > 1)


def write_csv(path, x, y=None):
    columns = [list(row) for row in x] if y is None else [[*row, target] for row, target in zip(x, y, strict=True)]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in columns))
    return path


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def write_idx(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stem, rows in (("train", 48), ("t10k", 12)):
        y = np.arange(rows) % 3
        x = rng.integers(0, 60, size=(rows, 2, 2)) + 60 * y[:, None, None]
        images = struct.pack(">BBBB3I", 0, 0, 8, 3, *x.shape) + x.astype(np.uint8).tobytes()
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, rows) + y.astype(np.uint8).tobytes()
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(labels)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Model files: of digits, of three classes with names, of a regression, of a population."""
    place = tmp_path_factory.mktemp("models")
    x, y = table()
    sets = {
        "digits": mm.datasets.load("digits"),
        "named": mm.datasets.split(x, np.array(["ant", "bee", "cat"])[y], seed=0),
        "regression": mm.datasets.split(x, 100 + 10 * x[:, 0], seed=0),
    }
    optimizer = mm.optimizers.adam(0.01)
    for name, data in sets.items():
        network = mm.Network((data.train.x.shape[1], 8, data.outputs))
        mm.gradient_descent(network, data, seed=0, epochs=10, optimizer=optimizer).save(place / name)
    mm.gradient_descent(mm.Network((3, 3)), sets["named"], seed=0, epochs=0, population=2).save(place / "population")
    return place


def checked_record(out, code, stdout, stderr):
    """The one object on stdout, after checking everything the contract says of it."""
    assert (code, stderr) == (0, "")
    assert stdout.endswith("}\n") and stdout.count("\n") == 1
    record = json.loads(stdout, parse_constant=pytest.fail)
    assert {"backend", "data", "seed", "network", "stages", "files"} <= set(record)
    sizes = record["network"]["layer_sizes"]
    assert record["network"]["parameters"] == sum((a + 1) * b for a, b in pairwise(sizes))
    assert [stage["name"] for stage in record["stages"]] == STAGES
    for stage in record["stages"]:
        assert {"loss", "accuracy", "validation_accuracy", "nonzero", "bytes", "seconds"} <= set(stage)
        path = out / f"{stage['name']}.safetensors"
        assert record["files"][stage["name"]] == str(path)
        assert stage["bytes"] == path.stat().st_size
        assert stage["nonzero"] == mm.load(path).nonzero
    assert set(record["files"]) == {*STAGES, "model", "record", "log"}
    assert record["files"]["log"] == str(out / "log.jsonl")
    assert (out / "model.safetensors").read_bytes() == (out / "quantize.safetensors").read_bytes()
    assert json.loads((out / "run.json").read_text()) == record
    assert {entry.name for entry in out.iterdir()} == {
        *(f"{name}.safetensors" for name in (*STAGES, "model")),
        "run.json",
        "log.jsonl",
    }
    return record


# run


def test_run_on_digits(folder):
    out = folder / "new" / "out"
    done = in_subprocess("run", *FAST, "--out", str(out), "--seed", "3", "--json", cwd=folder)
    record = checked_record(out, *done)
    assert (record["backend"], record["data"], record["seed"]) == ("numpy", "digits", 3)
    assert record["network"]["layer_sizes"] == [64, 8, 10]
    test = mm.datasets.load("digits", seed=3).test
    for stage in record["stages"]:
        evaluated = mm.load(record["files"][stage["name"]]).evaluate(test)
        assert stage["accuracy"] == evaluated.accuracy
        assert stage["loss"] == pytest.approx(float(evaluated.loss), rel=1e-5)
    small = mm.load(out / "model.safetensors")
    assert small.bits == 4
    assert sum(int((~mask).sum()) for mask in small.masks) == round(0.5 * (64 * 8 + 8 * 10))


def test_run_in_a_table(folder):
    code, stdout, stderr = in_subprocess("run", *FAST, "--out", "tmp", cwd=folder)
    assert (code, stderr) == (0, "")
    for word in (*STAGES, "accuracy", "bytes", "model", "record", "run.json"):
        assert word in stdout
    assert (folder / "tmp" / "model.safetensors").is_file()


def test_run_on_jax(folder):
    pytest.importorskip("jax")
    write_npz(folder / "d.npz", x=table()[0], y=table()[1])
    out = folder / "out"
    options = ["--backend", "jax", "--epochs", "1", "--hidden", "", "--out", str(out), "--json"]
    record = checked_record(out, *in_subprocess("run", "d.npz", *options, cwd=folder))
    assert record["backend"] == "jax"
    assert record["network"]["layer_sizes"] == [3, 3]


@pytest.mark.parametrize("kind", ["npz", "csv", "named csv", "idx"])
def test_run_on_a_classification(folder, capsys, kind):
    x, y = table()
    data = {
        "npz": lambda: write_npz(folder / "d.npz", x=x, y=y),
        "csv": lambda: write_csv(folder / "d.csv", x, y),
        "named csv": lambda: write_csv(folder / "d.csv", x, np.array(["ant", "bee", "cat"])[y]),
        "idx": lambda: write_idx(folder / "mnist"),
    }[kind]()
    out = folder / "out"
    done = in_process(capsys, "run", data, "--epochs", "4", "--hidden", "6,5", "--bits", "6", "--out", out, "--json")
    record = checked_record(out, *done)
    assert record["network"]["layer_sizes"] == [4 if kind == "idx" else 3, 6, 5, 3]
    assert all(0 <= stage["accuracy"] <= 1 for stage in record["stages"])
    assert mm.load(out / "model.safetensors").classes == (("ant", "bee", "cat") if kind == "named csv" else None)


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_run_on_a_regression(folder, capsys, kind):
    x, _ = table()
    y = np.round(100 + 10 * x[:, 0], 2)
    data = write_csv(folder / "d.csv", x, y) if kind == "csv" else write_npz(folder / "d.npz", x=x, y=y)
    out = folder / "out"
    record = checked_record(out, *in_process(capsys, "run", data, *FAST, "--out", out, "--json"))
    assert all(stage["accuracy"] is None and np.isfinite(stage["r2"]) for stage in record["stages"])
    code, stdout, _ = in_process(capsys, "run", data, *FAST, "--out", out)
    assert code == 0 and "R²" in stdout and "accuracy" not in stdout


def test_task_settles_what_whole_numbers_mean(folder, capsys):
    x, y = table()
    data = write_csv(folder / "d.csv", x, 10 * y)
    code, _, stderr = in_process(capsys, "run", data, *FAST, "--out", "out")
    assert code == 1 and "regression" in stderr
    assert in_process(capsys, "run", data, *FAST, "--out", "out", "--task", "regression")[0] == 0


def test_every_report_of_a_run_is_in_its_log(folder, capsys):
    """A line for each epoch under the name of its stage, anew in every run."""
    write_npz(folder / "d.npz", x=table()[0], y=table()[1])
    for _ in range(2):
        assert in_process(capsys, "run", "d.npz", "--hidden", "8", "--epochs", "4", "--out", "out")[0] == 0
        text = (folder / "out" / "log.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
        assert list(dict.fromkeys(line["stage"] for line in lines)) == STAGES
        for stage, total in zip(STAGES, (100, 4, 6, 2), strict=True):
            reports = [line for line in lines if line["stage"] == stage]
            done = [line["done"] for line in reports]
            assert {line["total"] for line in reports} == {total} and done[-1] == total and done == sorted(set(done))
            assert len(reports) == total or stage == "random_search"
            for line in reports:
                assert list(line) == ["stage", *Progress._fields]
                assert np.isfinite([line["loss"], line["validation_loss"]]).all() and line["seconds"] > 0
                assert (line["learning_rate"] is None) == (stage == "random_search")


def test_a_person_sees_how_far_a_run_is(folder, capsys, monkeypatch):
    """On a terminal: a bar for each stage with its pace, its loss and its learning rate, and none of it on stdout."""
    shown = io.StringIO()
    monkeypatch.setattr(
        terminal, "Console", lambda **options: Console(file=shown, force_terminal=True, width=160, color_system=None)
    )
    write_npz(folder / "d.npz", x=table()[0], y=table()[1])
    code, stdout, stderr = in_process(capsys, "run", "d.npz", *FAST, "--out", "out", "--json")
    assert (code, stderr) == (0, "") and json.loads(stdout)["files"]
    lines = shown.getvalue().replace("\r", "\n").splitlines()
    for stage, total in zip(STAGES, (100, 2, 3, 1), strict=True):
        last = [line for line in lines if stage in line][-1]
        assert f"{total}/{total}" in last and "/s" in last and re.search(r"loss \d", last)
        assert ("rate" in last) == (stage != "random_search")


def test_run_without_out_makes_a_folder_of_its_own(folder, capsys):
    write_npz(folder / "d.npz", x=table()[0], y=table()[1])
    assert in_process(capsys, "run", "d.npz", *FAST, "--seed", "5")[0] == 0
    assert (folder / "runs" / "d-numpy-5" / "run.json").is_file()


def test_the_same_seed_gives_the_same_files(folder, capsys):
    write_npz(folder / "d.npz", x=table()[0], y=table()[1])
    for out in ("a", "b"):
        assert in_process(capsys, "run", "d.npz", *FAST, "--seed", "5", "--out", out)[0] == 0
    for name in STAGES:
        one, other = ((folder / out / f"{name}.safetensors").read_bytes() for out in ("a", "b"))
        assert one == other


def test_the_numbers_are_those_of_the_options(folder, capsys):
    write_npz(folder / "d.npz", x=table()[0], y=table()[1])
    code, stdout, _ = in_process(
        capsys, "run", "d.npz", *FAST, "--sparsity", "0.25", "--bits", "7", "--out", "o", "--json"
    )
    record, found = json.loads(stdout), mm.load(folder / "o" / "model.safetensors")
    assert code == 0 and found.bits == 7
    assert sum(int((~mask).sum()) for mask in found.masks) == round(0.25 * (3 * 8 + 8 * 3))
    assert record["settings"] == {"sparsity": 0.25, "bits": 7, "epochs": 2, "task": None}


# Failures


def assert_refused(code, stdout, stderr, message, expected):
    """Nothing on stdout, one line on stderr, and the exit code."""
    assert code == expected
    assert stdout == ""
    assert stderr.startswith("minimodel: ") and stderr.count("\n") == 1 and stderr.endswith("\n")
    assert message in stderr


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


BAD_OPTIONS = [
    (["--sparsity", "1.5"], "sparsity", 2),
    (["--sparsity", "-0.1"], "sparsity", 2),
    (["--sparsity", "nan"], "sparsity", 2),
    (["--sparsity", "much"], "sparsity", 2),
    (["--bits", "9"], "bits", 2),
    (["--bits", "0"], "bits", 2),
    (["--bits", "4.5"], "bits", 2),
    (["--hidden", "a"], "--hidden", 2),
    (["--hidden", "8,-1"], "--hidden", 2),
    (["--hidden", "0"], "--hidden", 2),
    (["--hidden", "8.5"], "--hidden", 2),
    (["--seed", "-1"], "seed", 2),
    (["--seed", "x"], "seed", 2),
    (["--epochs", "-1"], "epochs", 2),
    (["--task", "clustering"], "task", 2),
    (["--foo"], "--foo", 2),
    (["extra.csv", "extra.npz"], "extra.npz", 2),
    (["--backend"], "--backend", 2),
    (["--backend", "nonsense"], "unknown backend 'nonsense'", 1),
    (["--backend", "array_api"], "needs a namespace", 1),
    (["--backend", "array_api:nonsense"], "nonsense", 1),
    (["--backend", "numpy:gpu"], "gpu", 1),
]


@pytest.mark.parametrize(("options", "message", "code"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_bad_options_are_refused(folder, capsys, options, message, code):
    assert_refused(*in_process(capsys, "run", *FAST, "--out", "out", *options), message, code)
    assert listing(folder) == []


def test_an_absent_device_is_refused(folder):
    pytest.importorskip("jax")
    done = in_subprocess("run", *FAST, "--backend", "jax:nonsense", "--out", "out", cwd=folder)
    assert_refused(*done, "JAX sees no such device", 1)
    assert listing(folder) == []


def test_an_absent_gpu_is_refused(folder):
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU or TPU here")
    done = in_subprocess("run", *FAST, "--backend", "jax:gpu", "--out", "out", cwd=folder)
    assert_refused(*done, "JAX sees no such device", 1)
    assert listing(folder) == []


def x_with(value):
    x = table()[0]
    x[3, 1] = value
    return x


BAD_DATA = {
    "missing": (lambda folder: folder / "none.csv", "none.csv"),
    "missing folder": (lambda folder: folder / "none", "no such file or folder"),
    "NaN in x": (lambda folder: write_npz(folder / "d.npz", x=x_with(np.nan), y=table()[1]), "x: NaN"),
    "NaN in y": (lambda folder: write_npz(folder / "d.npz", x=table()[0], y=x_with(np.nan)[:, 1]), "y: NaN"),
    "beyond float32": (lambda folder: write_npz(folder / "d.npz", x=table()[0], y=x_with(1e300)[:, 1]), "y: "),
    "NaN in csv": (lambda folder: write_csv(folder / "d.csv", x_with(np.nan), table()[1]), "x: NaN"),
    "label out of range": (lambda folder: write_npz(folder / "d.npz", x=table()[0], y=3 * table()[1]), "label 6"),
    "negative label": (lambda folder: write_npz(folder / "d.npz", x=table()[0], y=table()[1] - 1), "out of range"),
    "no y": (lambda folder: write_npz(folder / "d.npz", x=table()[0]), "no targets"),
    "scalar y": (lambda folder: write_npz(folder / "d.npz", x=table()[0], y=1.5), "y: expected"),
    "objects": (lambda folder: write_npz(folder / "d.npz", x=table()[0], y=np.array([{}] * 60)), "not a readable"),
    "text": (lambda folder: write_csv(folder / "d.csv", [["a", "b"]] * 3, [1, 2, 3]), "no number"),
    "suffix": (lambda folder: write_csv(folder / "d.tsv", *table()), "d.tsv"),
    "empty folder": (lambda folder: folder, "no IDX file"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_refused(folder, capsys, name):
    make, message = BAD_DATA[name]
    data = make(folder)
    before = listing(folder)
    assert_refused(*in_process(capsys, "run", data, *FAST, "--out", "out"), message, 1)
    assert listing(folder) == before


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"])
def test_a_truncated_idx_file_is_refused(folder, capsys, name):
    path = write_idx(folder / "mnist") / name
    path.write_bytes(path.read_bytes()[:-3])
    before = listing(folder)
    assert_refused(*in_process(capsys, "run", "mnist", *FAST, "--out", "out"), name, 1)
    assert listing(folder) == before


def test_a_real_failure_in_a_process_of_its_own(folder):
    """No traceback, no warning: what a shell sees."""
    write_npz(folder / "d.npz", x=x_with(np.inf), y=table()[1])
    assert_refused(*in_subprocess("run", "d.npz", cwd=folder), "x: NaN, infinite", 1)
    assert listing(folder) == ["d.npz"]


def test_out_that_is_a_file_is_refused(folder, capsys):
    (folder / "out").write_text("mine")
    assert_refused(*in_process(capsys, "run", *FAST, "--out", "out"), "is a file, not a folder", 2)
    assert (folder / "out").read_text() == "mine"


def test_out_below_a_file_is_refused(folder, capsys):
    (folder / "out").write_text("mine")
    assert_refused(*in_process(capsys, "run", *FAST, "--out", "out/deeper"), "out", 1)
    assert listing(folder) == ["out"]


# predict and evaluate


def test_predict_and_evaluate_digits(capsys, saved):
    given, test = mm.load(saved / "digits"), mm.datasets.load("digits", seed=0).test
    code, stdout, stderr = in_process(capsys, "predict", saved / "digits", "digits")
    assert (code, stderr) == (0, "")
    assert [int(line) for line in stdout.splitlines()] == given.predict(test.x).tolist()
    code, stdout, stderr = in_process(capsys, "evaluate", saved / "digits", "digits", "--json")
    assert (code, stderr) == (0, "")
    found = json.loads(stdout)
    assert found["rows"] == len(test.x) and found["r2"] is None
    assert found["accuracy"] == given.evaluate(test).accuracy
    assert found["loss"] == pytest.approx(float(given.evaluate(test).loss), rel=1e-5)
    assert in_process(capsys, "evaluate", saved / "digits", "digits", "--seed", "1")[1] != stdout


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_predict_with_and_without_a_target(folder, capsys, saved, target, kind):
    x, y = table()
    names = np.array(["ant", "bee", "cat"])[y]
    if kind == "csv":
        data = write_csv(folder / "d.csv", x, names if target else None)
    else:
        data = write_npz(folder / "d.npz", x=x, **({"y": names} if target else {}))
    code, stdout, _ = in_process(capsys, "predict", saved / "named", data)
    expected = mm.load(saved / "named").predict(x)
    assert code == 0 and stdout.split() == expected.tolist()
    code, stdout, _ = in_process(capsys, "predict", saved / "named", data, "--json")
    assert json.loads(stdout)["predictions"] == expected.tolist()
    code, stdout, stderr = in_process(capsys, "evaluate", saved / "named", data, "--json")
    if target:
        assert code == 0 and json.loads(stdout)["accuracy"] == pytest.approx(np.mean(expected == names))
        assert json.loads(stdout)["rows"] == 60
    else:
        assert_refused(code, stdout, stderr, "no targets to compare with", 1)


def test_predict_and_evaluate_a_regression(folder, capsys, saved):
    x, _ = table()
    data = write_csv(folder / "d.csv", x, np.round(100 + 10 * x[:, 0], 3))
    code, stdout, _ = in_process(capsys, "predict", saved / "regression", data)
    predicted = np.array([float(line) for line in stdout.split()])
    assert code == 0
    np.testing.assert_allclose(predicted, mm.load(saved / "regression").predict(x)[:, 0], rtol=1e-5)
    code, stdout, _ = in_process(capsys, "evaluate", saved / "regression", data)
    assert code == 0 and [line.split()[0] for line in stdout.splitlines()] == ["rows", "loss", "r2"]
    assert stdout.splitlines()[0].split()[1] == "60"


def test_whole_number_targets_of_a_regression(folder, capsys, saved):
    x, _ = table()
    data = write_csv(folder / "d.csv", x, np.round(100 + 10 * x[:, 0]).astype(int))
    code, stdout, _ = in_process(capsys, "evaluate", saved / "regression", data, "--json")
    assert code == 0 and json.loads(stdout)["r2"] is not None


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_what_a_saved_model_cannot_use_is_refused(folder, capsys, saved, command):
    x, y = table()
    good = write_csv(folder / "d.csv", x, y)
    wide = write_csv(folder / "wide.csv", np.hstack([x, x]), y)
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes((saved / "named").read_bytes()[:-1])
    (folder / "text.safetensors").write_text("hello")
    before = listing(folder)
    for arguments, message in (
        ((damaged, good), "damaged"),
        ((folder / "text.safetensors", good), "not a minimodel file"),
        ((folder / "none.safetensors", good), "none.safetensors"),
        ((folder, good), str(folder)),
        ((saved / "named", wide), "takes 3 features, got 6"),
        ((saved / "named", "digits"), "takes 3 features, got 64"),
        ((saved / "named", folder / "none.csv"), "none.csv"),
        ((saved / "named", damaged), ".npz or .csv"),
        ((saved / "population", good), "population of 2"),
    ):
        assert_refused(*in_process(capsys, command, *arguments), message, 1)
    for arguments in ((), (damaged,), (damaged, good, "--foo"), (damaged, good, good)):
        code, stdout, stderr = in_process(capsys, command, *arguments)
        assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["ant", "dog"] * 30, "does not know the label 'dog'"), ([3] * 60, "labels"), ([0.5] * 60, "labels")],
)
def test_labels_that_the_model_does_not_know_are_refused(folder, capsys, saved, labels, message):
    data = write_csv(folder / "d.csv", table()[0], labels)
    assert_refused(*in_process(capsys, "evaluate", saved / "named", data), message, 1)


# The rest


def test_backends(capsys):
    code, stdout, stderr = in_process(capsys, "backends", "--json")
    assert (code, stderr) == (0, "")
    found = json.loads(stdout)["backends"]
    assert set(found) == set(mm.backends.available())
    assert found["numpy"] == ["cpu"]
    code, stdout, _ = in_process(capsys, "backends")
    assert code == 0 and len(stdout.splitlines()) == len(found)
    for line in stdout.splitlines():
        assert mm.backends.load(line.split()[0]).devices


def test_version_and_help(capsys):
    code, stdout, stderr = in_process(capsys, "--version")
    assert (code, stderr) == (0, "") and mm.__version__ in stdout
    for arguments in (["--help"], ["-h"], []):
        code, stdout, stderr = in_process(capsys, *arguments)
        assert (code, stderr) == (0, "")
        assert all(command in stdout for command in ("run", "predict", "evaluate", "backends"))
    for command in ("run", "predict", "evaluate", "backends"):
        code, stdout, _ = in_process(capsys, command, "--help")
        assert code == 0 and stdout.startswith("Usage: minimodel")
    assert "digits" in in_process(capsys, "run", "--help")[1]


def test_an_unknown_command_is_refused(folder, capsys):
    assert_refused(*in_process(capsys, "train"), "train", 2)


def test_as_a_module(folder):
    code, stdout, stderr = in_subprocess("--version", cwd=folder)
    assert (code, stderr) == (0, "") and mm.__version__ in stdout
    code, stdout, stderr = in_subprocess("run", "--bits", "9", cwd=folder)
    assert_refused(code, stdout, stderr, "bits", 2)


def test_a_run_that_diverges_leaves_what_it_had(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "recipe", lambda data, peak, **options: mm.optimizers.sgd(1e30))
    (tmp_path / "run.json").write_text("of a run before")
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--hidden", "8", "--epochs", "2", "--out", str(tmp_path)])
    assert stop.value.code == 1
    line = capsys.readouterr().err
    assert "gradient_descent diverged at step" in line and line.count("\n") == 1
    for name in ("diverged-model", "diverged-last"):
        assert str(tmp_path / f"{name}.safetensors") in line
        assert np.isfinite(mm.load(tmp_path / f"{name}.safetensors").params[0].weight).all()
    assert not (tmp_path / "run.json").exists()


# prune, summary


@pytest.fixture
def trained(folder):
    """A model file, and the data it was trained on."""
    data = mm.datasets.load("digits", seed=4)
    model = mm.gradient_descent(mm.Network((64, 16, 10)), data, seed=0, epochs=3)
    model.save("dense.safetensors")
    return model, data


def pruned(capsys, *arguments):
    code, stdout, stderr = in_process(capsys, "prune", "dense.safetensors", "digits", "--epochs", "2", *arguments)
    assert (code, stderr) == (0, "")
    return stdout


def test_prune_reports_every_sparsity(trained, capsys):
    """The record, the files and the model agree; the split is the one that the model was trained on."""
    model, data = trained
    weights = 64 * 16 + 16 * 10
    record = json.loads(pruned(capsys, "--sparsity", "0.5,0.9", "--seeds", "2", "--teach", "0.5", "--json"))
    assert record == json.loads(Path("runs/dense-prune-0/prune.json").read_text(encoding="utf-8"))
    assert record["dense"]["error"] == [pytest.approx(1 - model.evaluate(data.test).accuracy)]
    assert record["dense"]["kept"] == [weights]
    for level, point in zip((0.5, 0.9), record["points"], strict=True):
        assert point["kept"] == [weights - round(level * weights)] * 2
        assert point["sparsity"] == pytest.approx(level, abs=0.001)
        for i in range(2):
            small = mm.load(record["files"][f"prune-{level}-{i}"])
            assert small.population is None and small.nbytes == point["bytes"][i]
            assert 1 - small.evaluate(data.test).accuracy == pytest.approx(point["error"][i])
            assert 1 - small.evaluate(data.validation).accuracy == pytest.approx(point["validation_error"][i])
    assert [
        json.loads(line)["done"]
        for line in Path("runs/dense-prune-0/log.jsonl").read_text(encoding="utf-8").splitlines()
    ] == [
        1,
        2,
    ]


def test_prune_of_one_seed_saves_a_network_to_use(trained, capsys):
    stdout = pruned(capsys, "--sparsity", "0.9", "--pattern", "neurons", "--out", "here")
    assert "32" in stdout and "test error" in stdout and "here/prune.json" in stdout
    small = mm.load("here/prune-0.9.safetensors")
    assert small.population is None and small.network.layer_sizes[1] <= 2
    code, stdout, _ = in_process(capsys, "summary", "here/prune-0.9.safetensors")
    assert code == 0 and "multiply-adds" in stdout
    code, stdout, _ = in_process(capsys, "summary", "here/prune-0.9.safetensors", "--json")
    layers = json.loads(stdout)["layers"]
    assert [layer["kept"] for layer in layers] == [layer.kept for layer in small.summary()]
    code, stdout, _ = in_process(capsys, "evaluate", "here/prune-0.9.safetensors", "digits", "--json")
    assert (
        code == 0 and json.loads(stdout)["accuracy"] == small.evaluate(mm.datasets.load("digits", seed=4).test).accuracy
    )


def test_prune_draws_the_trade_off(trained, capsys):
    pytest.importorskip("matplotlib")
    record = json.loads(pruned(capsys, "--sparsity", "0.5,0.8", "--plot", "--json"))
    assert Path(record["files"]["plot"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message", "expected"),
    [
        (["--sparsity", "1.5"], "--sparsity: expected different numbers from 0 to 1", 2),
        (["--sparsity", "nan"], "--sparsity: expected", 2),
        (["--sparsity", "0.5,0.5"], "--sparsity: expected different", 2),
        (["--sparsity", ""], "--sparsity: expected", 2),
        (["--seeds", "0"], "seeds", 2),
        (["--score", "importance"], "--score", 2),
        (["--pattern", "4:2"], "n_of_m: expected 0 < n < m", 2),
        (["--pattern", "channels"], "pattern: expected a pattern, '2:4' or one of", 2),
        (["--allocation", "best"], "--allocation", 2),
        (["--schedule", "never"], "--schedule", 2),
        (["--cap", "0.1"], "cap: 0.1 keeps", 1),
        (["--teach", "2"], "--teach", 2),
        (["--epochs", "0"], "epochs: expected at least 1 to prune in", 1),
    ],
)
def test_prune_refuses_what_does_not_fit(trained, folder, capsys, arguments, message, expected):
    found = in_process(capsys, "prune", "dense.safetensors", "digits", *arguments)
    assert_refused(*found, message, expected)
    assert not list(folder.glob("runs/**/*"))


def test_a_refused_run_leaves_the_one_before(trained, folder, capsys):
    pruned(capsys, "--sparsity", "0.9")
    before = {path: path.read_bytes() for path in folder.glob("runs/**/*.*")}
    for wrong in (["--cap", "0.1"], ["--epochs", "0"]):
        assert in_process(capsys, "prune", "dense.safetensors", "digits", *wrong)[0] == 1
    assert {path: path.read_bytes() for path in folder.glob("runs/**/*.*")} == before
    again = ["--out", "runs/dense-prune-0", "--sparsity", "0.9"]
    found = in_process(capsys, "prune", "runs/dense-prune-0/prune-0.9.safetensors", "digits", *again)
    assert_refused(*found, "is MODEL itself", 2)


def test_quantize_reports_every_number_of_bits(trained, capsys, oracle):
    oracle("onnx")
    oracle("constriction")
    code, stdout, stderr = in_process(
        capsys, "quantize", "dense.safetensors", "digits", "--bits", "8,3", "--seeds", "2", "--epochs", "1",
        "--activation-bits", "4", "--granularity", "tensor", "--coded", "--onnx", "--json",
    )  # fmt: skip
    assert (code, stderr) == (0, "")
    record, data = json.loads(stdout), trained[1]
    assert record["settings"]["bits"] == [point["bits"] for point in record["points"]] == [8, 3]
    for point in record["points"]:
        for i in range(2):
            found = mm.load(record["files"][f"quantize-{point['bits']}-{i}"])
            assert (found.bits, found.network.activation) == (point["bits"], "relu_4bit")
            assert 1 - found.evaluate(data.test).accuracy == pytest.approx(point["error"][i], abs=0.01)
            assert Path(record["files"][f"quantize-{point['bits']}-{i}-onnx"]).stat().st_size > 1000
    code, stdout, _ = in_process(capsys, "quantize", "dense.safetensors", "digits", "--bits", "4", "--epochs", "0")
    assert code == 0 and " 4 " in stdout and "test error" in stdout


def test_quantize_to_budgets(trained, capsys, oracle):
    oracle("constriction")
    code, stdout, stderr = in_process(
        capsys, "quantize", "dense.safetensors", "digits", "--budget", "700,1500", "--budget-sparsity", "0,0.8",
        "--granularity", "tensor", "--learn-levels", "--range", "min_max", "--seeds", "2", "--epochs", "1", "--json",
    )  # fmt: skip
    assert (code, stderr) == (0, "")
    record = json.loads(stdout)
    assert record["settings"]["range_of"] == "min_max" and record["settings"]["budgets"] == [700, 1500]
    for point, most in zip(record["points"], (700, 1500), strict=True):
        for i in range(2):
            path = Path(record["files"][f"quantize-{most}-{i}"])
            assert path.suffix == ".mmc" and path.stat().st_size == point["bytes"][i] <= most
            own = point["bits"][i] if isinstance(point["bits"], list) else point["bits"]
            assert mm.load(path).bits == (tuple(own) if isinstance(own, list) else own)


def test_a_codebook_from_the_command_line(trained, capsys):
    code, stdout, _ = in_process(
        capsys,
        "quantize",
        "dense.safetensors",
        "digits",
        "--bits",
        "2,1",
        "--scheme",
        "codebook",
        "--epochs",
        "0",
        "--json",
    )
    found = mm.load(json.loads(stdout)["files"]["quantize-2"])
    assert code == 0 and found.quantized[0].codebook.shape[-2] == 4 and found.masks is None


@pytest.mark.parametrize(
    ("arguments", "message", "expected"),
    [
        (["--bits", "0"], "--bits: expected different numbers from 1 to 8", 2),
        (["--budget", "none"], "--budget: expected", 2),
        (["--budget", "900", "--bits", "2"], "--budget chooses the bits", 2),
        (["--budget-sparsity", "0.5"], "--budget-sparsity goes with it", 2),
        (["--coded", "--scheme", "codebook"], "--coded, --budget: takes a symmetric --scheme", 2),
        (["--onnx", "--granularity", "8"], "--onnx: takes a symmetric --scheme", 2),
        (["--gradual", "9"], "--gradual: expected", 2),
        (["--budget", "20"], "budget_bytes: even the smallest choice takes", 1),
        (["--granularity", "0"], "--granularity: expected channel, tensor or a number", 2),
        (["--scheme", "ternary"], "--scheme", 2),
        (["--rounding", "up"], "--rounding", 2),
        (["--bits", "4.5"], "--bits: expected", 2),
        (["--bits", "4,4"], "--bits: expected different", 2),
        (["--activation-bits", "9"], "--activation-bits", 2),
    ],
)
def test_quantize_refuses_what_does_not_fit(trained, folder, capsys, arguments, message, expected):
    found = in_process(capsys, "quantize", "dense.safetensors", "digits", *arguments)
    assert_refused(*found, message, expected)
    assert not list(folder.glob("runs/**/*"))
