"""Runs the tutorials and writes them, with what they print and draw, as Markdown into docs/tutorials.

    python docs/render.py [TUTORIAL.py ...]       from anywhere, with ppgen installed; all tutorials if none is named

A tutorial is a script in jupytext's percent format: cells begin with a line ``# %%``, prose with ``# %% [markdown]``.
As in a notebook, a cell shows what it prints, the value of a last line that is an expression, and the pyplot figures
that it leaves open.
"""

import ast
import contextlib
import io
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "tutorials"


def cells(text: str) -> list[tuple[str, int, str]]:
    """(kind, line, source) of each cell: kind is "markdown" or "code", line where its source begins, from 0."""
    found: list[tuple[str, int, list[str]]] = []
    for number, line in enumerate(text.splitlines()):
        if marker := re.match(r"# %%( \[markdown\])?\s*$", line):
            found.append(("markdown" if marker[1] else "code", number + 1, []))
        elif found:
            found[-1][2].append(re.sub(r"^# ?", "", line) if found[-1][0] == "markdown" else line)
    return [(kind, start, "\n".join(lines).strip("\n")) for kind, start, lines in found]


def run(source: str, start: int, path: Path, names: dict) -> str:
    """Runs a cell and returns its text. Tracebacks point into the tutorial."""
    tree = ast.parse("\n" * start + source, str(path))
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, str(path), "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), str(path), "eval"), names)
            if value is not None and not isinstance(value, Figure):
                print(value)
    return printed.getvalue().rstrip()


def render(path: Path) -> Path:
    """Writes one tutorial and its pictures, and returns the Markdown file."""
    page = [f"<!-- Written by docs/render.py from tutorials/{path.name}: change that, and render again. -->"]
    names: dict = {"__name__": "__main__"}
    os.chdir(path.parent)  # where the tutorials find their weights
    pictures = 0
    for kind, start, source in cells(path.read_text(encoding="utf-8")):
        if kind == "markdown":
            page.append(source)
            continue
        text = run(source, start, path, names)
        page.append(f"```python\n{source}\n```")
        if text:
            page.append(f"```text\n{text}\n```")
        for number in plt.get_fignums():
            pictures += 1
            picture = OUT / f"{path.stem}_{pictures}.png"
            plt.figure(number).savefig(picture, dpi=100, metadata={"Software": None})
            page.append(f"![Figure {pictures}]({picture.name})")
        plt.close("all")
    target = OUT / f"{path.stem}.md"
    target.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    return target


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    paths = [Path(name).resolve() for name in sys.argv[1:]] or sorted((ROOT / "tutorials").glob("*.py"))
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as fresh:  # a process each, as when run as scripts
        for target in fresh.map(render, paths):
            print(target)


if __name__ == "__main__":
    main()
