"""The README's Python runs as it stands, and its commands exist."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import minimodel as mm

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_four_algorithms_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    accuracies = [float(line.split()[0]) for line in printed[:4]]
    assert accuracies[0] > 0.3
    assert min(accuracies[1:]) > 0.95
    assert (tmp_path / "digits.safetensors").stat().st_size < 201_000 / 15


def test_gradient_descent_in_full_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    assert "±" in capsys.readouterr().out
    assert names["best"].evaluate(names["data"].test).accuracy > 0.95
    assert len(names["longer"].history["loss"]) == 80
    assert 8 < len((tmp_path / "log.jsonl").read_text().splitlines()) <= 20


def test_search_without_gradients_in_full_runs(capsys):
    names = {}
    exec(compile(BLOCKS[2], "README.md", "exec"), names)
    test = names["data"].test
    assert names["found"].evaluate(test).accuracy > 0.93
    assert min(names[name].evaluate(test).accuracy for name in ("best", "winner")) > 0.88
    assert names["fewest"].evaluate(test).accuracy > 0.7
    assert names["state"].fitness < 1e-6
    assert "accuracy" in capsys.readouterr().out


def test_pruning_in_full_runs(capsys):
    pytest.importorskip("scipy")
    names = {}
    exec(compile(BLOCKS[3], "README.md", "exec"), names)
    test = names["data"].test
    assert min(names[name].evaluate(test).accuracy for name in ("own", "half", "narrow", "rigl", "surgeon")) > 0.95
    assert names["small"].evaluate(test).accuracy > 0.93
    assert capsys.readouterr().out.splitlines()[-1].endswith("True")


def test_quantization_in_full_runs(tmp_path, monkeypatch, capsys, oracle):
    for name in ("jax", "onnx", "constriction"):
        oracle(name)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(BLOCKS[4], "README.md", "exec"), names)
    test = names["data"].test
    assert min(names[name].evaluate(test).accuracy for name in ("integers", "shifts", "small", "tiny")) > 0.94
    assert "the same bits: True" in capsys.readouterr().out
    assert (tmp_path / "tiny.mmc").stat().st_size < 800


def test_the_worked_example_is_what_the_suite_says():
    """Two laws broken at first, and 34 of 34 with the second definition."""
    pytest.importorskip("array_api_strict")
    from minimodel.testing import suites

    assert len(BLOCKS) == 8
    names = {}
    exec(compile(BLOCKS[5], "README.md", "exec"), names)
    for block, broken in (("", 2), (BLOCKS[6], 0)):
        exec(compile(block, "README.md", "exec"), names)
        backend = replace(mm.backends.load("mine"), largest=names["largest"])
        found = list(suites.run(suites.BackendSuite, backend))
        failed = [result.check for result in found if result.outcome == "failed"]
        assert (len(found), len(failed)) == (34, broken) and ("largest_breaks_ties_by_index" in failed) == (broken > 0)


def test_every_command_and_option_the_readme_names_exists():
    pytest.importorskip("click")
    from minimodel.cli import cli

    known = {option for command in cli.commands.values() for param in command.params for option in param.opts}
    blocks = "\n".join(re.findall(r"^minimodel .*$", README, flags=re.MULTILINE))
    named = set(re.findall(r"--[a-z-]+", blocks))
    assert {"--backend", "--json"} <= named <= known
    assert {line.split()[1] for line in blocks.splitlines()} == set(cli.commands)
