"""The benchmarks of peers, of cost and of trust run at sizes that take a moment; their readers against made results."""

import json
import sys

import numpy as np
import pytest

import minimodel as mm
from minimodel.backends import load
from minimodel.bench import cost_model, descent, engine, inference, measure, peers, running, trust

pytest.importorskip("threadpoolctl")


def run(module, monkeypatch, tmp_path, *arguments):
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments, "--out", str(out)])
    module.main()
    return json.loads(out.read_text())


def test_engine(monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "STEPS", (((6, 8, 3), 4),))
    monkeypatch.setattr(engine, "SECONDS", 0.0)
    monkeypatch.setattr(engine, "ROWS", {"small": 64, "large": 64})
    monkeypatch.setattr(descent, "SIZES", {"small": ((6, 5, 3), 16)})
    monkeypatch.setattr(engine, "COMPILED", (("small", 2),) if descent.installed("optax") else ())
    monkeypatch.setattr(engine, "in_process", lambda *of: engine.first_call(of[0], of[1], of[2]))
    found = run(engine, monkeypatch, tmp_path, "--repeats", "1")
    assert found["steps"]["6-8-3"]["value"] > 0
    assert set(found["compiled"]) == {f"{size}-{members}" for size, members in engine.COMPILED}


def test_the_products_of_a_step_are_all_of_them(monkeypatch):
    """Forward, by each weight, and back to each layer but the first: counted in multiply-adds."""
    counted = []

    class Counted(np.ndarray):
        def __matmul__(self, other):
            counted.append(self.shape[0] * self.shape[1] * other.shape[1])
            return np.asarray(self) @ np.asarray(other)

    products = descent.Products((5, 7, 3), 4)
    for arrays in (products.weights, products.inputs, products.deltas):
        arrays[:] = [array.view(Counted) for array in arrays]
    products.step()
    assert sum(counted) == 4 * (3 * (5 * 7 + 7 * 3) - 5 * 7)


def test_inference_beside_onnx_runtime(monkeypatch, tmp_path, oracle, capsys):
    oracle("onnx")
    oracle("onnxruntime")
    monkeypatch.setattr(inference, "LAYERS", (6, 8, 3))
    monkeypatch.setattr(inference, "BATCHES", (4,))
    monkeypatch.setattr(inference, "REPEATS", 1)
    monkeypatch.setattr(inference, "ROWS", 640)
    results = run(inference, monkeypatch, tmp_path)["results"]
    assert {"numpy, answers", "numpy, steps"} <= set(results["integers"])
    found = results["4 rows"]
    assert found["float"]["distance"] <= inference.FLOAT_CLOSE and found["int8"]["ONNX Runtime"]["ratio"] > 0
    assert "ONNX Runtime takes" in capsys.readouterr().out


def test_outputs_that_are_not_ours_are_not_timed(monkeypatch, oracle):
    oracle("onnx")
    oracle("onnxruntime")
    data = descent.problem((6, 8, 3), 64)
    model = mm.gradient_descent(mm.Network((6, 8, 3)), data, seed=0, epochs=1)
    own = inference.session
    monkeypatch.setattr(inference, "session", lambda raw, threads: lambda x: 1.001 * own(raw, threads)(x))
    with pytest.raises(ValueError, match="float: outputs of ONNX Runtime are"):
        inference.beside(model, data, 4, 1)


def test_cost_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cost_model, "AXES", {"parameters": ("hidden", 4), "rows": ("rows", 64)})
    monkeypatch.setattr(cost_model, "DOUBLINGS", 2)
    monkeypatch.setattr(cost_model, "REPEATS", 1)
    found = run(cost_model, monkeypatch, tmp_path)["results"]
    assert len(found) == 4 * 2 and all(len(row["seconds"]) == 2 for row in found.values())
    assert "on paper" in capsys.readouterr().out


def test_the_exponents_are_those_of_what_is_measured(monkeypatch):
    """With times and bytes that are known functions of the size."""
    monkeypatch.setattr(cost_model, "measured", lambda at: (at.rows**1.5, 1e6 * at.rows))
    found = cost_model.grown(lambda at, backend: at, "rows", load("numpy"))
    assert found["time"] == pytest.approx(1.5) and found["memory"] == pytest.approx(1)
    monkeypatch.setattr(cost_model, "measured", lambda at: (1.0, None))
    assert cost_model.grown(lambda at, backend: at, "rows", load("numpy"))["memory"] is None


def test_trust(monkeypatch, tmp_path):
    for name, value in {"ROUNDS": 6, "RUN_SECONDS": 0.5, "LOOPS": 1, "REFUSALS": 1}.items():
        monkeypatch.setattr(trust, name, value)
    monkeypatch.setattr(trust, "SIZE", trust.Size((5, 4, 3), 4))
    monkeypatch.setattr(running, "PEAK_SECONDS", 0.0)
    monkeypatch.setattr(measure, "CHECKING", float("inf"))
    monkeypatch.setattr(trust, "in_process", trust.one_report)
    monkeypatch.setattr(measure, "cold", lambda name, imports: {"import_seconds": None, "start_seconds": None})
    try:
        found = run(trust, monkeypatch, tmp_path, "--runs", "2", "--processes", "1", "--backends", "numpy")["results"]
    finally:
        mm.backends._registered.pop("slower", None)
    assert found["numpy"]["same, called different"]["of"] == 2
    assert found["between processes"]["a tenth slower, called slower"]["of"] == 3
    assert found["lazy"]["not synchronised, refused"] == {"count": 1, "of": 1}


def test_the_slower_backend_takes_a_tenth_longer(monkeypatch):
    """By a clock that goes on one unit each time it is read, and 100 in the work."""
    now = [0.0]

    def clock():
        now[0] += 1
        return now[0]

    def work(x):
        now[0] += 100
        return x

    monkeypatch.setattr(trust, "perf_counter", clock)
    start = now[0]
    assert trust.slower(load("numpy")).jit(work)(7) == 7
    assert now[0] - start == pytest.approx(1.1 * 100, abs=4)


def test_rows_are_judged_by_their_targets():
    row = peers.Row("ours / theirs", "engine", lambda found: found["value"], 1.2, most=True)
    assert peers.judged(row, {"value": 1.1})["verdict"] == "met"
    assert peers.judged(row, {"value": 1.3}) == {
        "text": "ours / theirs", "target": 1.2, "most": True, "ratio": 1.3, "verdict": "not met",
    }  # fmt: skip
    assert peers.judged(row, {})["verdict"].startswith("skipped: there is no 'value'")
    assert peers.judged(row, {"failed": "reason"})["verdict"] == "failed: reason"
    missing = row._replace(needs="no_such_library")
    assert peers.judged(missing, {"value": 1})["verdict"] == "skipped: no_such_library is not installed"


def test_losses_that_differ_get_no_ratio():
    row = peers.Row("peer / ours", "descent", peers.descended("case", "peer"), 1.0)

    def found(loss):
        return {"results": {"case": {"minimodel": {"loss": 0.5}, "peer": {"loss": loss, "ratio": 2.0}}}}

    assert peers.judged(row, found(0.51))["ratio"] == 2.0
    assert "the losses differ" in peers.judged(row, found(0.6))["verdict"]
    assert peers.judged(row, found(None))["verdict"] == "met"  # bare products have no loss


def test_the_table_is_made_from_results_in_a_folder(monkeypatch, tmp_path, capsys):
    results = {"steps": {"784-256-256-10": {"value": 1.1}}, "compiled": {}}
    (tmp_path / "engine.json").write_text(json.dumps(results))
    rows = run(peers, monkeypatch, tmp_path, "--from", str(tmp_path), "--only", "engine,sparse")["rows"]
    verdicts = {row["text"]: row["verdict"] for row in rows}
    assert verdicts["784-256-256-10: engine step / its products"] == "met"
    assert verdicts["a global mask, JAX: jnp.sort / ours"].startswith("failed: there is no")
    assert "1.10×" in capsys.readouterr().out


def test_every_benchmark_that_rows_need_is_run():
    assert {row.run for row in peers.ROWS} == set(peers.RUNS)


def test_the_fitness_that_others_minimise_is_ours(monkeypatch):
    peers.check_fitness()
    monkeypatch.setattr(peers, "fitness_of", lambda data, xp: lambda vector: 2.0)
    with pytest.raises(ValueError, match="different functions"):
        peers.check_fitness()
