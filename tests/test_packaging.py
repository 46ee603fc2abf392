"""What is installed, editable and as a wheel: every package is importable, from anywhere, with its data."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import minimodel as mm

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("minimodel", "minimodel.backends", "minimodel.bench", "minimodel.search", "minimodel.compress")
LEFT_OUT = (".*", "build", "dist", "runs", "*.egg-info", "__pycache__")

PROBE = f"""
import importlib, json
import minimodel as mm
data = mm.datasets.load("digits")
print(json.dumps({{
    "files": {{name: importlib.import_module(name).__file__ for name in {MODULES!r}}},
    "version": mm.__version__,
    "rows": len(data.train.x) + len(data.validation.x) + len(data.test.x),
    "draw": mm.random.bits(mm.random.key(0), (1,)).tolist(),
}}))
"""


def run(*command, cwd, **environment):
    """The standard output of a command; its error output is the message if it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_TARGET"))}
    done = subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def isolation():
    """Build with the setuptools that is here if it is new enough; otherwise let pip fetch one."""
    try:
        return ["--no-build-isolation"] if int(version("setuptools").partition(".")[0]) >= 77 else []
    except PackageNotFoundError:
        return []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the source so that the working tree stays clean."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this interpreter has no pip to build a wheel with")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*LEFT_OUT))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", *isolation(), "--wheel-dir", str(folder), "./source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel):
    """A folder that the wheel is installed into."""
    target = wheel.parent / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=wheel.parent)
    return target


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("module", MODULES)
def test_the_installed_package_imports_from_anywhere(module, tmp_path):
    statement = f"import {module}; print({module}.__name__)"
    assert run(sys.executable, "-W", "error", "-c", statement, cwd=tmp_path).strip() == module


@pytest.mark.parametrize("name", ["backends", "bench"])
def test_no_top_level_package_takes_a_common_name(name, tmp_path):
    statement = f"import minimodel, importlib.util; print(importlib.util.find_spec({name!r}))"
    assert run(sys.executable, "-c", statement, cwd=tmp_path).strip() == "None"


def test_the_installed_version_is_the_one_of_the_source():
    assert version("minimodel") == mm.__version__


def test_the_wheel_imports_every_package_and_loads_its_data(site, tmp_path):
    """In a folder without the source, with the wheel first on the path: it, and no editable install, is what runs."""
    found = json.loads(run(sys.executable, "-W", "error", "-c", PROBE, cwd=tmp_path, PYTHONPATH=str(site)))
    assert found["files"].keys() == set(MODULES)
    for file in found["files"].values():
        assert Path(file).resolve().is_relative_to(site.resolve())
    assert found["version"] == mm.__version__
    assert found["rows"] == 1797
    assert found["draw"] == mm.random.bits(mm.random.key(0), (1,)).tolist()


def test_the_wheel_holds_every_module_of_the_source(wheel):
    expected = set()
    for folder, package in [
        ("minimodel", "minimodel"),
        ("backends", "minimodel/backends"),
        ("bench", "minimodel/bench"),
    ]:
        for path in (ROOT / folder).rglob("*.py"):
            expected.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    assert {"minimodel/__init__.py", "minimodel/backends/jax.py", "minimodel/bench/__init__.py"} <= expected
    assert {name for name in names(wheel) if name.endswith(".py")} == expected


def test_the_wheel_holds_its_types_data_and_license(wheel):
    found = names(wheel)
    assert {"minimodel/py.typed", "minimodel/data/digits.npz"} <= found
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in found)


def test_the_wheel_installs_under_one_name(wheel):
    """No top-level ``backends``, ``bench`` or ``tests`` that could collide with a user's own."""
    tops = {name.partition("/")[0] for name in names(wheel)}
    assert tops == {"minimodel", f"minimodel-{mm.__version__}.dist-info"}


def test_the_wheel_needs_numpy_and_has_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"minimodel-{mm.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(line.split()[1].split(">")[0] for line in required) == ["numpy", "safetensors"]
    assert "minimodel = minimodel.cli:main" in scripts
