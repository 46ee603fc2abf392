"""The README's Python runs as it stands, and its commands exist."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
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
    """Two laws broken at first, by the example that is quoted, and 34 of 34 with the second definition."""
    pytest.importorskip("array_api_strict")
    from minimodel.testing import suites

    assert len(BLOCKS) == 9
    names = {}
    exec(compile(BLOCKS[5], "README.md", "exec"), names)
    for block, broken in (("", 2), (BLOCKS[6], 0)):
        exec(compile(block, "README.md", "exec"), names)
        backend = replace(mm.backends.load("mine"), largest=names["largest"])
        found = {result.check: result for result in suites.run(suites.BackendSuite, backend)}
        failed = [check for check, result in found.items() if result.outcome == "failed"]
        assert (len(found), len(failed)) == (34, broken) and ("largest_breaks_ties_by_index" in failed) == (broken > 0)
        if broken:
            quoted = README[README.index(" ACTUAL: array([[False") : README.index("    k=[0, 1],\n)")]
            assert quoted in found["largest_breaks_ties_by_index"].error
    assert README.count(f"34 checks passed, version {suites.CHECKS_VERSION} of the checks") == 2


def test_a_backend_of_ones_own_is_at_most_15_lines():
    """The first block with the second definition, blank lines not counted."""
    before, rest = BLOCKS[5].split("def largest")
    lines = "\n".join((before, BLOCKS[6], rest[rest.index("mm.backends.register") :])).splitlines()
    assert len([line for line in lines if line.strip()]) == 15


def test_the_counts_of_checks_are_those_of_the_suites():
    from minimodel.testing import suites

    rows = re.findall(r"^\| `(\w+Suite)` \|.*\| (\d+) \|$", README, flags=re.MULTILINE)
    assert {name: int(count) for name, count in rows} == {
        name: len(suite.checks()) for name, suite in vars(suites).items() if name.endswith("Suite") and name != "Suite"
    }


def test_the_examples_of_an_optimizer_and_a_quantizer_are_green(tmp_path):
    (tmp_path / "test_mine.py").write_text(BLOCKS[8])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for line in ("TestSoftSign: 10 of 10", "TestFourBits: 12 of 12"):
        assert line in done.stdout and line in README


def test_the_table_of_backends_is_what_is_printed():
    pytest.importorskip("jax")
    from minimodel import activations
    from minimodel.testing import oracles

    names = {"activations": activations, "oracles": oracles, "np": np}
    lines = README[README.index(">>> gelu") :].partition("```")[0].splitlines()
    exec(lines[0].removeprefix(">>> "), names)
    expression = lines[1].removeprefix(">>> print(").removesuffix(")")
    found, printed = (
        [line.rsplit(maxsplit=1) for line in rows] for rows in (str(eval(expression, names)).splitlines(), lines[2:])
    )
    assert [pair for pair, _ in found] == [pair for pair, _ in printed] and found[0] == printed[0]
    assert {tier for _, tier in found} <= {"exact", "ulp", "step"}  # by which of them is up to the machine


def test_every_command_and_option_the_readme_names_exists():
    pytest.importorskip("click")
    from minimodel.cli import cli

    known = {option for command in cli.commands.values() for param in command.params for option in param.opts}
    blocks = "\n".join(re.findall(r"^minimodel .*$", README, flags=re.MULTILINE))
    named = set(re.findall(r"--[a-z-]+", blocks))
    assert {"--backend", "--json"} <= named <= known
    assert {line.split()[1] for line in blocks.splitlines()} == set(cli.commands)
