"""Writes pages before a build: the API reference, the methods, and copies of the pages that stand beside the README."""

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path

from sphinx.application import Sphinx

from ppgen.runs.methods import METHODS

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent

API = {
    "ppgen": "fits, losses, and what to do with them",
    "ppgen.losses.recipes": "the known methods, as losses",
    "ppgen.losses.views": "where two distributions are compared",
    "ppgen.losses": "terms of losses",
    "ppgen.metrics": "metrics of samples, and metrics by a critic",
    "ppgen.models": "models with their guides",
    "ppgen.flows": "normalizing flows",
    "ppgen.diffusion": "noise schedules, denoisers, samplers",
    "ppgen.nets": "networks, and their defaults",
    "ppgen.data": "data to fit",
    "ppgen.data.domains": "data of two domains",
    "ppgen.diagnostics": "can the posterior be trusted?",
    "ppgen.evaluation": "how draws compare with data",
    "ppgen.tuning": "a choice of settings",
    "ppgen.report": "reports",
    "ppgen.runs.trained": "a run folder, loaded",
    "ppgen.sklearn": "estimators for scikit-learn",
    "ppgen.testing": "invariants for your own classes",
}
"""The documented modules, and what each is about. A name that several of them export is on the page of the first."""

DOCUMENTED_ELSEWHERE = (
    "object, Module, dict, tuple, Enum, ABC, ELBO, Transform, TorchDistributionMixin, BaseEstimator, ClassifierMixin, "
    "RegressorMixin"
)
"""Classes of Python, torch, Pyro and scikit-learn, whose members these have too."""

FAMILIES = {
    "Autoencoders": ("Autoencoder", "VAE"),
    "Generators": ("Generator", "ALI"),
    "Normalizing flows": ("FlowModel", "AutoFlow"),
    "Diffusion and flow matching": ("Diffusion", "FlowMatching"),
    "Domain adaptation": ("DANN",),
}
"""The model classes of each family of methods."""


def api_pages() -> dict[str, str]:
    """A page for each module of `API`, and their index."""
    pages, seen = {}, set()
    for module in API:
        package = importlib.import_module(module)
        names = [*package.__all__]
        if module == "ppgen.flows":
            names += [*package.FLOWS, *package.IMAGE_FLOWS, *package.TORUS_FLOWS]
        objects = {name: getattr(package, name) for name in names}
        objects = {name: it for name, it in objects.items() if not inspect.ismodule(it) and id(it) not in seen}
        seen.update(map(id, objects.values()))
        summary = (inspect.getdoc(package) or "").partition("\n\n")[0].replace("\n", " ")
        body = "\n\n".join(directive(f"{module}.{name}", it) for name, it in objects.items())
        pages[module] = f"# {module}\n\n{summary}\n\n```{{eval-rst}}\n{body}\n```\n"
    links = "\n".join(f"- [{module}]({module}.md): {about}" for module, about in API.items())
    pages["index"] = (
        "# API reference\n\nAll that is public, with formulas, shapes, units and errors, as `help()` shows it.\n\n"
        + f"{links}\n\n{toctree(API)}"
    )
    return pages


def directive(name: str, value: object) -> str:
    """What documents an object, in reStructuredText."""
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :inherited-members: {DOCUMENTED_ELSEWHERE}"
    if inspect.isroutine(value):
        return f".. autofunction:: {name}"
    if isinstance(value, Mapping):
        rows = ", ".join(f"``{key}``" for key in value)
        return f".. py:data:: {name}\n\n   A table, whose rows are {rows}."
    return f".. py:data:: {name}\n\n   ``{value}``"


def method_pages() -> dict[str, str]:
    """A page for each method of the command line, and their index."""
    rows = remarks()
    index = [
        "# Methods",
        "What `ppgen train METHOD SOURCE` trains, by families. Each page begins with what the method's default is good "
        "for and where it fails, as far as it was measured.",
    ]
    pages = {}
    for family, classes in FAMILIES.items():
        members = [name for name, method in METHODS.items() if re.split("[:.]", method.model)[-1] in classes]
        table = "\n".join(f"| [{name}]({name}.md) | {METHODS[name].summary} | {rows[name][0]} |" for name in members)
        index.append(f"## {family}\n\n| | what it is | good for |\n|---|---|---|\n{table}")
        pages |= {name: method_page(name, family, *rows[name]) for name in members}
    if missing := set(METHODS) - set(pages):
        raise ValueError(f"FAMILIES in {__file__} has no family for the models of {sorted(missing)}")
    pages["index"] = "\n\n".join([*index, toctree(pages)])
    return pages


def remarks() -> dict[str, tuple[str, str]]:
    """What each method is good for and where it fails, from the table of docs/defaults.md."""
    page = (DOCS / "defaults.md").read_text(encoding="utf-8")
    table = page.split("| method | good for | where it fails |\n|---|---|---|\n")[1].split("\n\n")[0]
    found = {}
    for row in table.splitlines():
        names, good, fails = (cell.strip() for cell in row.strip("|").split("|"))
        cells = (relative(good, "../defaults.md"), relative(fails, "../defaults.md"))
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), cells)
    return found


def relative(text: str, page: str) -> str:
    """A cell with links to sections of the page it is from, as it stands one folder below."""
    text = re.sub(r"\]\(#", f"]({page}#", text)
    return re.sub(r"\]\((?!\.\./|http)", "](../", text)


def method_page(name: str, family: str, good: str, fails: str) -> str:
    """The page of a method."""
    method = METHODS[name]
    model, recipe = (path.replace(":", ".") for path in (method.model, method.recipe))
    source = "--energy u1" if name == "flow" else "--source mnist8 --target digits" if name == "dann" else "digits"
    shown = "\n".join(f"| `--{option}` | `{value}` |" for option, value in method.defaults.items())
    tutorials = [
        f"[{title}](../tutorials/{path.name})"
        for path in sorted((DOCS / "tutorials").glob("[0-9]*.md"))
        if re.search(rf"recipes\.{recipe.rpartition('.')[2]}\(|ppgen train {name} ", text := path.read_text("utf-8"))
        for title in [re.search(r"^# (.+)$", text, re.M)[1]]
    ]
    parts = [
        f"# {name}",
        f"{method.summary[0].upper()}{method.summary[1:]}. One of the [{family.lower()}](index.md).",
        f"| | |\n|---|---|\n| **Good for** | {good} |\n| **Where it fails** | {fails or 'not measured'} |",
        f"```bash\nppgen train {name} {source}\nppgen train {name} {source} --help   # all options\n```",
        f"In Python the model is {{py:obj}}`{model}` and the loss {{py:obj}}`{recipe}`. Their arguments are options of "
        "the command, `--model.*` and `--loss.*`.",
    ]
    if shown:
        parts.append(f"The command's defaults where they are not those of the classes:\n\n| | |\n|---|---|\n{shown}")
    if tutorials:
        parts.append("In the course: " + "; ".join(tutorials))
    return "\n\n".join(parts) + "\n"


def project_pages() -> dict[str, str]:
    """The pages that stand beside the README, with their links as seen from docs/project."""
    pages = {}
    for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](../", text)
        pages[name.lower()] = re.sub(
            r"\]\((CONTRIBUTING|CHANGELOG|SECURITY)\.md", lambda match: f"]({match[1].lower()}.md", text
        )
    return pages


def solution_pages() -> dict[str, str]:
    """A page for the solutions of each tutorial's exercises."""
    pages = {}
    for path in sorted((ROOT / "tutorials" / "solutions").glob("[0-9]*.py")):
        code = path.read_text(encoding="utf-8")
        title = code[3 : code.index('"""', 3)].rstrip(".")
        pages[path.stem] = (
            f"---\norphan: true\n---\n\n# {title}\n\n"
            f"[Back to the tutorial](../tutorials/{path.stem}.md). The code is run by the tests.\n\n"
            f"```python\n{code.partition(chr(10))[2].strip()}\n```\n"
        )
    return pages


def toctree(names: Mapping | list) -> str:
    lines = "\n".join(names)
    return f"```{{toctree}}\n:hidden:\n\n{lines}\n```\n"


def write(folder: Path, pages: dict[str, str]) -> None:
    """Writes pages. Those that have not changed are left alone, so that a second build is quick."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def generate(app: Sphinx) -> None:
    write(DOCS / "api", api_pages())
    write(DOCS / "methods", method_pages())
    write(DOCS / "project", project_pages())
    write(DOCS / "solutions", solution_pages())


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
