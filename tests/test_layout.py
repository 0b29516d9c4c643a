"""The layout: packages import downwards only, without a cycle, and nothing is loaded before it is needed."""

import ast
import graphlib
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppgen

ROOT = Path(ppgen.__file__).parent

# packages from the bottom to the top: each imports from those below it, and from itself
LAYERS = [
    "utils",
    "tracing",
    "nets",
    "data",
    "metrics",
    "flows",
    "diffusion",
    "infer",
    "models",
    "losses",
    "training",
    "posterior",
    "evaluation",
    "diagnostics",
    "report",
    "refinement",
    "fitting",
    "tuning",
    "testing",
    "runs",
    "sklearn",
]
SOURCES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def package_of(module: str) -> str:
    """The package right below the root that a dotted name such as ``ppgen.losses.elbo`` is in."""
    return module.split(".")[1]


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, in functions and for type checkers too; ``from a import b`` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = {module_of(path): path for path in SOURCES}


def imported_modules(path: Path) -> set[str]:
    """The package's own modules that a file imports; a name taken from a package's face counts as that package."""
    own = {name for name in imports(path) if name.startswith("ppgen.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in own} - {module_of(path)}


def test_the_root_holds_packages_fitting_and_tuning():
    found = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__pycache__", "__init__", "__main__"} == set(LAYERS)


@pytest.mark.parametrize("package", LAYERS)
def test_packages_import_downwards(package):
    allowed = set(LAYERS[: LAYERS.index(package) + 1])
    for path in SOURCES:
        if package_of(module_of(path)) == package:
            above = {name for name in imported_modules(path) if name == "ppgen" or package_of(name) not in allowed}
            assert not above, f"{module_of(path)} imports upwards: {', '.join(sorted(above))}"


def test_modules_make_no_cycle():
    """Not even by imports inside functions. A name taken from a package's `__init__` counts as that module."""
    graph = {name: imported_modules(path) for name, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_compiled_step_knows_nothing_of_inference():
    for path in (ROOT / "infer" / "compile").glob("*.py"):
        own = {name for name in imported_modules(path) if name.startswith("ppgen.infer")}
        assert all(name.startswith("ppgen.infer.compile") for name in own), path


def test_every_module_says_in_its_first_line_what_it_is_for():
    for path in SOURCES:
        assert (ast.get_docstring(ast.parse(path.read_text())) or "").strip(), path


def test_metrics_import_torch_alone():
    """And POT, late, where exact transport is asked for."""
    for path in (ROOT / "metrics").glob("*.py"):
        late = {"ot"} if path.name == "transport.py" else set()
        outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "ppgen"} | late, path
        assert not late & set(vars(importlib.import_module(module_of(path)))), path


def test_one_package_traces_programs():
    tracing = {
        package_of(module_of(path))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("poutine.trace", "pyro.poutine.trace")
    }
    assert tracing == {"tracing"}


@pytest.mark.parametrize("package", [ppgen, ppgen.losses, ppgen.models, ppgen.data])
def test_public_names_are_found_where_the_stub_says(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}}, file=sys.stderr)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split())


SLOW = {"arviz", "matplotlib", "pandas", "sklearn", "scipy", "xarray", "ot", "zuko"}
FIT = """import torch, ppgen; ppgen.SVI, ppgen.recipes; vae = ppgen.models.VAE((3,), latent_dim=2, hidden=(4,))
ppgen.fit(vae.model, vae.guide, torch.zeros(8, 3), validation=0.25, steps=1, batch_size=3, compile=False)"""
HELP = "from ppgen.runs.cli import main\ntry: main({words!r})\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    ("statement", "without"),
    [
        ("import ppgen", SLOW | {"torch", "pyro"}),
        (FIT, SLOW - {"scipy", "zuko"}),
        (HELP.format(words=["--help"]), SLOW | {"torch", "pyro"}),
        (HELP.format(words=["train", "vae", "--help"]), {"arviz", "matplotlib"}),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(statement, without):
    assert not loaded_by(statement) & without
