"""The arrows between the package's parts point one way: who may import whom, held by walking the source."""

import ast
import graphlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppgen

ROOT = Path(ppgen.__file__).parent

# a part of the package, and the other parts that it may import; a part not listed here fails
ALLOWED: dict[str, set[str]] = {
    "metrics": {"nets"},
    "schedules": set(),
    "growth": {"nets"},
    "sites": set(),
    "draws": {"enumeration", "sites"},
    "enumeration": {"log_sums", "sites"},
    "log_sums": set(),
    "mapped": set(),
    "particles": {"draws", "mapped", "sites"},
    "posterior": {"draws", "flows", "mapped", "sites"},
    "auto": {"diagnostics", "flows", "infer", "posterior", "result", "terms", "sites"},
    "moments": set(),
    "nets": set(),
    "ode": set(),
    "flows": {"nets", "ode"},
    "diffusion": {"draws", "metrics", "nets", "ode", "sites"},
    "stepwise": {"diffusion", "draws", "objective"},
    "data": set(),
    "files": set(),
    "batches": {"data"},
    "views": {"draws", "moments", "sites"},
    "objective": {"draws", "infer", "schedules", "sites"},
    "terms": {"draws", "views", "metrics", "objective", "paths", "sites"},
    "paths": {"draws", "sites"},
    "wake_sleep": {"draws", "objective", "paths", "sites"},
    "annealing": {"draws", "schedules", "terms", "sites"},
    "recipes": {
        "annealing",
        "nets",
        "objective",
        "stepwise",
        "terms",
        "views",
        "wake_sleep",
        "metrics",
        "schedules",
        "sites",
    },
    "infer": {"draws", "files", "flows", "nets", "sites"},
    "models": {"diffusion", "flows", "data", "draws", "moments", "nets", "particles"},
    "diagnostics": {
        "draws",
        "enumeration",
        "infer",
        "metrics",
        "particles",
        "posterior",
        "referee",
        "simulators",
        "wake_sleep",
        "sites",
    },
    "measures": {"diagnostics", "metrics", "nets"},
    "watch": {"infer"},
    "referee": set(),
    "result": {"batches", "draws", "infer", "objective", "diagnostics", "referee", "report", "sites"},
    "resume": {"infer", "objective", "result", "watch"},
    "training": {"batches", "growth", "infer", "referee", "result", "resume", "watch"},
    "fit": {
        "auto",
        "batches",
        "growth",
        "infer",
        "objective",
        "result",
        "resume",
        "terms",
        "training",
        "sites",
    },
    "systems": {"flows", "infer", "recipes", "models", "objective"},
    "report": {"data", "diagnostics", "metrics", "files", "models", "referee"},
    "record": {"files", "fit"},
    "stages": {"files", "fit"},
    "run": {
        "stages",
        "growth",
        "data",
        "diagnostics",
        "files",
        "fit",
        "measures",
        "models",
        "record",
        "referee",
        "report",
        "result",
        "resume",
        "systems",
    },
    "adaptation": {"data", "diagnostics", "referee", "report", "run", "systems"},
    "energies": {"diagnostics", "infer", "models", "particles", "report", "run", "sites"},
    "compare": {"data", "files", "measures", "models", "report", "run"},
    "__init__": {
        "annealing",
        "growth",
        "metrics",
        "schedules",
        "views",
        "objective",
        "terms",
        "recipes",
        "infer",
        "fit",
        "result",
        "stepwise",
        "simulators",
        "wake_sleep",
    },
    "simulators": {"draws", "sites"},
    "cli": {"__init__", "adaptation", "compare", "data", "energies", "fit", "models", "report", "run", "systems"},
}

SOURCES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """The part of the package that a file belongs to: the folder or file right below the root."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run, in functions too; those for type checkers alone are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from statements(child)


def modules(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports; of ``from a import b``, ``a.b``."""
    package = ".".join(path.relative_to(ROOT.parent).parent.parts)
    for statement in statements(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        else:
            origin = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
            yield from (f"{origin}.{alias.name}" for alias in statement.names)


def imported_parts(path: Path) -> set[str]:
    found = {name.split(".")[1] for name in modules(path) if name.startswith("ppgen.")}
    return {name if name in PARTS else "__init__" for name in found} - {part(path)}


PARTS = {part(path) for path in SOURCES}


def test_every_part_is_in_the_table_and_the_table_has_no_others():
    assert set(ALLOWED) == PARTS


def test_the_arrows_make_no_circle():
    list(graphlib.TopologicalSorter(ALLOWED).static_order())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    extra = imported_parts(path) - ALLOWED.get(part(path), set())
    assert not extra, f"{part(path)} may not import {', '.join(sorted(extra))}"


def test_metrics_import_torch_alone():
    """And POT, late, where exact transport is asked for."""
    for path in SOURCES:
        if part(path) == "metrics":
            late = {"ot"} if path.name == "transport.py" else set()
            outside = {name.split(".")[0] for name in modules(path)} - set(sys.stdlib_module_names)
            assert outside <= {"torch", "ppgen"} | late, path
            assert not late & set(vars(importlib.import_module(f"ppgen.metrics.{path.stem}"))), path


def test_one_file_traces_programs():
    tracing = [
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("poutine.trace", "pyro.poutine.trace")
    ]
    assert tracing == ["draws.py"]
