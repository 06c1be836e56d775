"""The shape of the code: import direction, cycles, sizes and formatting (docs/architecture.md)."""

import ast
import graphlib
import json
import subprocess
import sys

import grimp
import pytest
from importlinter.cli import lint_imports

from lesionlib.engine.files import ROOT

CODE = sorted(path for name in ("lesionlib", "benchmarks") for path in (ROOT / name).rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_ENTRIES = 9  # in lesionlib/: eight packages and __init__.py
MOST_LINES = 50  # of a function, its docstring included
MOST_PARAMETERS = 8  # of a function, self and *args included
MOST_NAMES = 6  # that a notebook imports from lesionlib


def functions(path):
    """Every function of a file, methods and nested functions too."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def parameter_count(function) -> int:
    """All parameters: positional, keyword, *args and **kwargs."""
    spec = function.args
    stars = (spec.vararg is not None) + (spec.kwarg is not None)
    return len(spec.posonlyargs) + len(spec.args) + len(spec.kwonlyargs) + stars


def imported_names(source: str) -> list[str]:
    """The names that a source file imports from lesionlib, wherever the import stands."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] == "lesionlib"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lesionlib":
            names += [alias.name for alias in node.names]
    return names


def test_packages_import_in_one_direction(capfd):
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capfd.readouterr().out.partition("Broken contracts")[2]


def test_no_circular_imports():
    graph = grimp.build_graph("lesionlib", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert any(imports.values())
    list(graphlib.TopologicalSorter(imports).static_order())  # a CycleError names the circle


def test_the_top_of_the_package_is_small():
    entries = {
        path.name for path in (ROOT / "lesionlib").iterdir() if not path.name.startswith("__pyc")
    }
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_functions_are_short_and_take_few_parameters():
    assert CODE
    large = [
        f"{path.relative_to(ROOT)}: {function.name}: {lines} lines, {count} parameters"
        for path in CODE
        for function in functions(path)
        for lines in [function.end_lineno - function.lineno + 1]
        for count in [parameter_count(function)]
        if lines > MOST_LINES or count > MOST_PARAMETERS
    ]
    assert not large, "\n".join(large)


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_passes(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebooks_import_few_names(path):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = [name for source in code for name in imported_names(source)]
    assert len(names) <= MOST_NAMES, names
