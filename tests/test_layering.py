"""The arrows of the design: who may import whom, read from the source; what ``import minimodel`` needs, by doing it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module imports only from lower lines; where a package stands for its modules, they may import one another.
LAYERS = (
    ("minimodel._version", "minimodel.tree", "minimodel.observe"),
    ("minimodel.backends",),
    ("minimodel.random", "minimodel.activations", "minimodel.readers"),
    ("minimodel.losses",),
    ("minimodel.network",),
    ("minimodel.gradients", "minimodel.qarray", "minimodel.datasets"),
    ("minimodel.streams",),
    ("minimodel.teacher", "minimodel.summary"),
    ("minimodel.problem", "minimodel.storage"),
    ("minimodel.packing",),
    ("minimodel.model",),
    ("minimodel.search",),
    ("minimodel.compress",),
    ("minimodel.pipeline", "minimodel.trade_offs", "minimodel.export"),
    ("minimodel", "minimodel.plots"),
    ("minimodel.terminal",),
    ("minimodel.bench",),
    ("minimodel.testing",),
    ("minimodel.commands",),
    ("minimodel.cli",),
    ("minimodel.__main__",),
)
RANKS = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
PACKAGES = (
    "minimodel.backends",
    "minimodel.search",
    "minimodel.compress",
    "minimodel.commands",
    "minimodel.bench",
    "minimodel.testing",
)


def source_files():
    """Module name: its file, for every module of the package."""
    files = {}
    for folder, package in [
        ("minimodel", "minimodel"),
        ("backends", "minimodel.backends"),
        ("bench", "minimodel.bench"),
    ]:
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join([package, *(part for part in inner if part != "__init__")])] = path
    return files


FILES = source_files()


def imports(path, module, *, at_module_level=False):
    """Every name that a file imports, in full; only those outside functions if ``at_module_level``."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    todo = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if at_module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def module_of(name):
    """The module of ours that an imported name lives in: ``minimodel.tree.map`` is of ``minimodel.tree``."""
    while name not in FILES:
        name = name.rpartition(".")[0]
    return name


def layer_of(module):
    """The name under which LAYERS lists a module: its own, or that of its package."""
    return next((package for package in PACKAGES if module == package or module.startswith(package + ".")), module)


def ours(names):
    return {module_of(name) for name in names if name.partition(".")[0] == "minimodel"}


def third_party(names):
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"minimodel"}


def test_every_module_has_a_layer():
    assert {"minimodel.tree", "minimodel.backends.jax", "minimodel.search.gradient_descent"} <= FILES.keys()
    assert {layer_of(module) for module in FILES} == RANKS.keys()


@pytest.mark.parametrize("module", FILES)
def test_arrows_point_one_way(module):
    """No module imports from its own layer or one above it, its own package excepted; functions count too."""
    layer = layer_of(module)
    above = {
        name
        for name in ours(imports(FILES[module], module))
        if layer_of(name) != layer and RANKS[layer_of(name)] >= RANKS[layer]
    }
    assert not above


def test_search_does_not_import_compress():
    searching = [module for module in FILES if module.startswith("minimodel.search")]
    assert searching
    for module in searching:
        assert not any(name.startswith("minimodel.compress") for name in imports(FILES[module], module))


@pytest.mark.parametrize("module", FILES)
def test_only_the_jax_backend_imports_jax(module):
    """A benchmark may, in a function: there JAX itself is one of the peers that are compared."""
    found = third_party(imports(FILES[module], module, at_module_level=module.startswith("minimodel.bench")))
    assert bool(found & {"jax", "jaxlib"}) == (module == "minimodel.backends.jax")


@pytest.mark.parametrize("module", FILES)
def test_modules_need_numpy_alone_to_be_imported(module):
    """What else a function needs, it imports itself."""
    allowed = {
        "minimodel.backends.jax": {"numpy", "jax"},
        "minimodel.cli": {"click"},
        "minimodel.terminal": {"numpy", "click", "rich"},
    }
    if module.startswith("minimodel.testing"):
        allowed[module] = {"numpy", "hypothesis"} | ({"pytest"} if module.endswith(".plugin") else set())
    command = {"numpy", "click"} if module.startswith("minimodel.commands") else {"numpy"}
    assert third_party(imports(FILES[module], module, at_module_level=True)) <= allowed.get(module, command)


def test_nothing_imports_the_jax_backend_by_name():
    """It is imported by ``backends.load`` when it is asked for, and never before."""
    for module, path in FILES.items():
        assert "minimodel.backends.jax" not in ours(imports(path, module))


def new_modules(statement):
    """The top-level modules outside the standard library that a fresh interpreter imports for a statement."""
    program = f"""
import json, sys
before = set(sys.modules)
{statement}
new = {{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
print(json.dumps(sorted(name for name in new if not name.startswith("__editable__"))))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_import_minimodel_needs_numpy_alone():
    assert new_modules("import minimodel") == ["minimodel", "numpy"]


def test_training_on_numpy_needs_numpy_alone():
    statement = """
import minimodel as mm
data = mm.datasets.load("digits")
mm.gradient_descent(mm.Network((64, 10)), data, seed=0, epochs=1, batch_size=256)
"""
    assert new_modules(statement) == ["minimodel", "numpy"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b, c", {"a.b", "c"}),
        ("from a import b as x", {"a.b"}),
        ("from . import b", {"minimodel.search.b"}),
        ("from ..tree import map", {"minimodel.tree.map"}),
        ("try:\n    import a\nexcept ImportError:\n    pass", {"a"}),
        ("class A:\n    import a", {"a"}),
        ("def f():\n    import a", set()),
    ],
)
def test_the_reader_of_imports_reads_them(tmp_path, source, expected):
    """The tests above rest on it."""
    path = tmp_path / "module.py"
    path.write_text(source)
    assert imports(path, "minimodel.search.module", at_module_level=True) == expected
    assert imports(path, "minimodel.search.module") >= expected
