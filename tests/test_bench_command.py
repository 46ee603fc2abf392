"""``minimodel bench`` and ``minimodel bench compare`` from the command line, at sizes that take a moment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("threadpoolctl")

from minimodel import cli
from minimodel.bench import measure, running

TINY = ("bench", "--sizes", "3-4-2", "--populations", "1,2", "--only", "reduction,mask", "--backends")
STRICT = "array_api:array_api_strict"


@pytest.fixture(autouse=True)
def quickly(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "PEAK_SECONDS", 0.0)
    monkeypatch.setattr(measure, "CHECKING", float("inf"))
    monkeypatch.setattr(measure, "LIMIT", float("inf"))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code or 0, *capsys.readouterr()


def test_a_table_a_file_and_a_comparison(capsys, tmp_path):
    code, out, err = run(capsys, *TINY, f"numpy,{STRICT}", "--seconds", "2", "--json", "a.json")
    assert code == 0, err
    assert "3-4-2/32 ×2" in out and "reduction" in out and STRICT in out
    assert "bench: time" in err
    report = measure.load_report(tmp_path / "a.json")
    assert report["backends"]["numpy"]["import_seconds"] > 0  # in a process of its own
    assert [point["size"]["population"] for point in report["points"]] == [None, 2, None, 2]

    code, out, err = run(capsys, "bench", "compare", "a.json", "a.json")
    assert code == 0, err
    assert out.count("no difference") == 8 and "1.00" in out and "not the same" not in err

    report["machine"]["packages"] |= {"numpy": "9.9", "new": "1"}
    (tmp_path / "b.json").write_text(json.dumps(report))
    code, _, err = run(capsys, "bench", "compare", "a.json", "b.json")
    own = json.loads((tmp_path / "a.json").read_text())["machine"]["packages"]["numpy"]
    assert code == 0 and f"not the same packages: new A None, B 1; numpy A {own}, B 9.9\n" in err


def test_a_backend_of_the_users_own_is_measured_by_the_same_command(capsys, tmp_path, monkeypatch):
    (tmp_path / "own_backend.py").write_text(
        "from dataclasses import replace\n"
        "from minimodel.backends import load, register\n"
        "register('own', lambda: replace(load('numpy'), name='own'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    try:
        code, _, err = run(capsys, *TINY, "numpy,own", "--seconds", "1", "--import", "own_backend", "--json", "a.json")
    finally:
        sys.modules.pop("own_backend", None)
        measure.backends._registered.pop("own", None)
    assert code == 0, err
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["backends"]["own"]["import_seconds"] > 0
    assert all("samples" in point["backends"]["own"] for point in report["points"])


def test_the_quick_run_is_planned_from_its_options(capsys, monkeypatch):
    seen = []
    report = {"points": [{"backends": {"numpy": {"samples": []}}}]}
    monkeypatch.setattr(measure, "measure", lambda plan, watch: seen.append(plan) or report)
    monkeypatch.setattr("minimodel.bench.show.show", lambda report: None)
    code, _, err = run(capsys, "bench", "--quick", "--only", "step", "--dtypes", "float32,float64", "--threads", "2")
    assert code == 0, err
    (plan,) = seen
    assert plan.threads == 2 and plan.seconds < 60 and "numpy" in plan.backends and "array_api" not in plan.backends
    assert {case.kind for case, _ in plan.points} == {"step"} and len(plan.points) == 3 * 2 * 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--only", "sleep"], "--only: expected"),
        (["--sizes", "3"], "sizes: expected networks"),
        (["--populations", "0"], "--populations: expected positive"),
        (["--dtypes", "int8"], "--dtypes: expected"),
        (["--import", "no_such_module"], "no_such_module"),
        (["--populations", "²"], "--populations: expected positive"),
        (["--threads", "4096"], "threads: expected at most"),
        (["--json", "nowhere/a.json"], "--json: there is no folder nowhere"),
        (["--plot", "nowhere/a.png"], "--plot: there is no folder nowhere"),
        (["--plot", "a.xyz"], "--plot: expected a file ending in"),
    ],
)
def test_mistakes_are_one_line(capsys, options, text):
    code, out, err = run(capsys, "bench", *options)
    assert code in (1, 2) and out == "" and err.count("\n") == 1 and text in err


def test_nothing_timed_is_a_failure(capsys):
    code, out, err = run(capsys, "bench", "--quick", "--only", "forward", "--backends", "nonsense")
    assert code == 1 and "nonsense: refused" in out and "nothing was timed" in err


def test_a_module_of_the_current_folder_registers_a_backend(tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\nimport minimodel as mm\n"
        'mm.backends.register("own", lambda: replace(mm.backends.load("numpy"), name="own"))\n'
    )
    options = "--only matmul --sizes 2-16-1 --populations 1 --seconds 2 --import own --backends numpy,own --json a.json"
    command = [str(Path(sys.executable).with_name("minimodel")), "bench", *options.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert set(found["points"][0]["backends"]) == {"numpy", "own"}
    assert found["backends"]["own"]["import_seconds"] > 0


def test_a_file_that_is_no_report_is_named(capsys, tmp_path):
    for text in ("{", "[]", '{"schema": "minimodel.bench/2"}'):
        (tmp_path / "a.json").write_text(text)
        code, _, err = run(capsys, "bench", "compare", "a.json", "a.json")
        assert code == 1 and err.startswith("minimodel: a.json: expected a report"), err


def test_reports_that_share_nothing_are_not_compared(capsys, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"schema": measure.SCHEMA, "points": [], "backends": {}}))
    code, _, err = run(capsys, "bench", "compare", "a.json", "b.json")
    assert code == 1 and "share no point" in err
