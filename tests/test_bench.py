"""The benchmarks run, report every case and write their JSON; what they measure is not asserted."""

import json
import struct
import sys
from functools import partial

import numpy as np
import pytest

import minimodel as mm
from minimodel.bench import (
    accelerator,
    agreement,
    algorithms,
    coded,
    common,
    descent,
    draws,
    gradient_free,
    integers,
    mnist,
    pipeline,
    profile,
    pruning,
    search,
    sparse,
    streaming,
)


def run(module, monkeypatch, tmp_path, *arguments):
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments, "--out", str(out)])
    module.main()
    found = json.loads(out.read_text())
    assert found["machine"]["packages"]["numpy"]
    return found


def test_side_by_side_runs_the_cases_in_turns():
    order = []
    found = common.side_by_side({name: partial(order.append, name) for name in "abc"}, repeats=9)
    turns = ["".join(order[i : i + 3]) for i in range(0, 30, 3)]
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"} and len(set(turns)) > 2
    assert all(case["min"] <= case["median"] <= case["max"] for case in found.values())


def test_draws(monkeypatch, tmp_path):
    monkeypatch.setattr(draws, "WORDS", 1_000)
    assert "numpy bits" in run(draws, monkeypatch, tmp_path)["seconds"]


def test_algorithms(monkeypatch, tmp_path):
    for name, value in {"EPOCHS": 1, "MEMBERS": 2, "GENERATIONS": 1, "CANDIDATES": 4}.items():
        monkeypatch.setattr(algorithms, name, value)
    found = run(algorithms, monkeypatch, tmp_path)
    assert {"numpy gradient descent", "numpy random search"} <= set(found["seconds"]) == set(found["counts"])


def test_agreement(monkeypatch, tmp_path):
    pytest.importorskip("jax")
    found = run(agreement, monkeypatch, tmp_path, "--hidden", "16")
    assert found["different words of 2^20"] == 0
    assert found["initial parameters, ulp"] <= 4
    assert found["first 100 losses, relative"] <= 1e-4


def test_pipeline_over_seeds(monkeypatch, tmp_path, capsys):
    found = run(
        pipeline, monkeypatch, tmp_path, "--hidden", "8", "--seeds", "2", "--backends", "numpy", "--epochs", "1"
    )
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert "±" in capsys.readouterr().out


def test_descent_beside_its_peers(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(descent, "SIZES", {"small": ((8, 6, 3), 16)})
    cases = [("small", backend, members, 64, 2) for backend, members in (("numpy", 1), ("numpy", 2), ("jax", 2))]
    monkeypatch.setattr(descent, "CASES", cases)
    pytest.importorskip("jax")
    found = run(descent, monkeypatch, tmp_path, "--repeats", "1")["results"]
    assert {"minimodel", "matrix products"} <= set(found["small-numpy-1"]) and len(found) == 3
    for case in found.values():
        losses = [row["loss"] for row in case.values() if row["loss"] is not None]
        assert max(losses) < 1.5
    assert "times ours" in capsys.readouterr().out


def test_profile(monkeypatch, tmp_path, capsys):
    """Every product of the step is there, forward and back, in all that descends."""
    for name, value in {"STEPS": 20, "GENERATIONS": 1, "POPULATION": 24_000}.items():
        monkeypatch.setattr(profile, name, value)
    monkeypatch.setattr(descent, "SIZES", {"small": ((8, 6, 3), 16)})
    found = run(profile, monkeypatch, tmp_path)["results"]
    products = {"(16, 8) (8, 6) (16, 6)", "(16, 6) (6, 3) (16, 3)", "(8, 16) (16, 6) (8, 6)", "(16, 3) (3, 6) (16, 6)"}
    assert len(found) == (8 if descent.installed("jax") else 4)
    for title, row in found.items():
        calls = row["microseconds"]
        assert title.startswith("8-6-3, 16 rows, ") and all(value > 0 for value in calls.values()) and row["slowed"] > 0
        if title.endswith("jax"):
            assert row["of"] == "the whole call" and not set(profile.OUTER) & set(calls)
        else:
            assert "random search" in title or {f"dot {shapes}" for shapes in products} <= set(calls)
    assert "in products" in capsys.readouterr().out


def test_streaming(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(streaming, "PART", 3_000)
    found = run(streaming, monkeypatch, tmp_path, "--gigabytes", "0.02", "--repeats", "1", "--folder", str(tmp_path))
    assert found["rows"] == 6_000
    assert all(found[name]["rows_a_second"] > 0 < found[name]["peak_megabytes"] for name in ("memory", "stream"))
    assert "the stream runs at" in capsys.readouterr().out


def test_mnist(monkeypatch, tmp_path):
    options = ("digits", "--hidden", "8", "--backend", "numpy", "--epochs", "1", "--seeds", "2")
    found = run(mnist, monkeypatch, tmp_path, *options)
    assert [len(errors) for errors in found["error"].values()] == [2, 2]


def test_search_beside_its_peers(monkeypatch, tmp_path, capsys):
    pytest.importorskip("jax")
    for name, value in {"GENERATIONS": 2, "LARGE": (12, 6, 5, 3), "POPULATIONS": {"small": 8, "large": 4}}.items():
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(search, "PEER_BUDGET", 4)
    found = run(search, monkeypatch, tmp_path, "--repeats", "1")["results"]
    tables = (
        "small-numpy-afresh",
        "small-numpy-around",
        "small-jax",
        "large-numpy",
        "large-jax",
        "large-single-numpy",
        "large-single-jax",
    )
    assert {*tables, "floor-small", "floor-large"} == set(found)
    assert all(row["candidates_a_second"] > 0 for table in found.values() for row in table.values())
    assert "times ours" in capsys.readouterr().out


def test_gradient_free(monkeypatch, tmp_path, capsys):
    strategy = mm.strategies.low_rank_es(0.5)
    monkeypatch.setattr(gradient_free, "digits_cases", lambda: {"low-rank es": (strategy, 8)})
    picture = tmp_path / "found.png"
    options = ("--hidden", "6", "--evaluations", "320", "--seeds", "2", "--plot", str(picture))
    pytest.importorskip("matplotlib")
    found = run(gradient_free, monkeypatch, tmp_path, *options)
    runs = found["results"]["low-rank es"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert [point["evaluations"] for point in runs[0]["points"]][-1] == 320
    assert picture.stat().st_size > 1_000 and "±" in capsys.readouterr().out


def write_idx(folder):
    """A small problem in MNIST's files."""
    rng = np.random.default_rng(0)
    for stem, rows in (("train", 120), ("t10k", 30)):
        y = (np.arange(rows) % 3).astype(np.uint8)
        x = (rng.integers(0, 60, size=(rows, 3, 3)) + 60 * y[:, None, None]).astype(np.uint8)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *x.shape) + x.tobytes())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, rows) + y.tobytes())
    return str(folder)


@pytest.mark.filterwarnings("ignore:prune. no kept weight")
def test_pruning(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot, saved = tmp_path / "found.png", tmp_path / "models"
    short = ("--hidden", "12", "--epochs", "2", "--dense-epochs", "1", "--seeds", "2", "--backend", "numpy")
    found = run(pruning, monkeypatch, tmp_path, write_idx(tmp_path), *short, "--plot", str(plot), "--save", str(saved))
    weights = 9 * 12 + 12 * 3
    kept = [point["kept"] for point in found["points"]]
    assert kept == [[weights - round((1 - part) * weights)] * 2 for part in pruning.KEPT]
    assert mm.load(saved / "1.8.safetensors").population == mm.load(saved / "dense.safetensors").population == 2
    assert plot.stat().st_size > 10_000
    assert "published" in capsys.readouterr().out


def test_accelerator(monkeypatch, tmp_path, capsys):
    pytest.importorskip("jax")
    monkeypatch.setattr(accelerator, "LAYERS", (6, 5, 3))
    sizes = ("--width", "16", "--members", "4", "--rows", "64", "--repeats", "1")
    found = run(accelerator, monkeypatch, tmp_path, *sizes)
    assert set(found["steps"]) == {"float32, highest", "float32, default", "bfloat16, default"}
    assert all(row["fraction"] == row["step"] / row["products"] > 0 for row in found["steps"].values())
    assert found["at once"]["gain"] > 0 and found["devices"]
    assert "4 networks at once" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:prune. no kept weight")
def test_sparse(monkeypatch, tmp_path):
    monkeypatch.setattr(sparse, "LARGE", mm.Network((784, 8, 10)))
    monkeypatch.setattr(sparse, "ROWS", 640)
    monkeypatch.setattr(sparse, "SIZES", ((20, 30), (30, 10)))
    found = run(sparse, monkeypatch, tmp_path)
    assert {"numpy"} <= set(found["a step with masks"]) == set(found["a global mask over 10 M weights"])
    for rows in ("256", "1"):
        assert len(found["answers at 1.8 % of the weights"][rows]["choices"]) == 2


def test_masks_of_others_are_not_timed():
    scores, masks = np.array([3.0, 1.0, 2.0, 0.0]), np.array([[True, False], [True, False]])
    sparse.check_masks((masks,), scores, 2)
    for wrong in (~masks, masks | True):
        with pytest.raises(ValueError, match="masks: expected the 2 largest"):
            sparse.check_masks((wrong,), scores, 2)


@pytest.mark.filterwarnings("ignore:prune. no kept weight")
def test_coded(monkeypatch, tmp_path, oracle):
    oracle("constriction")
    data = write_idx(tmp_path)
    dense = mm.gradient_descent(mm.Network((9, 12, 3)), mm.datasets.load(data), seed=0, epochs=1, population=2)
    (tmp_path / "models").mkdir()
    dense.save(tmp_path / "models" / "dense.safetensors")
    pruned = mm.prune(dense, mm.datasets.load(data), seed=0, sparsity=0.5, epochs=0)
    pruned.save(tmp_path / "models" / "50.safetensors")
    short = ("--kept", "50", "--bits", "3,8", "--epochs", "1", "--backend", "numpy")
    found = run(coded, monkeypatch, tmp_path, data, str(tmp_path / "models"), *short)
    assert [case["bits"] for case in found["results"]] == [3, 8]
    assert all(0 < size < 500 for case in found["results"] for size in case["bytes"])


def test_integers(monkeypatch, tmp_path):
    data = write_idx(tmp_path)
    dense = mm.gradient_descent(mm.Network((9, 12, 3)), mm.datasets.load(data), seed=0, epochs=1, population=2)
    dense.save(tmp_path / "dense.safetensors")
    short = ("--epochs", "1", "--backend", "numpy")
    found = run(integers, monkeypatch, tmp_path, data, str(tmp_path / "dense.safetensors"), *short)
    assert all(len(case["error"]) == 2 for case in found["errors"].values())
