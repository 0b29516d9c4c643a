"""Runs the tutorials and writes them, with what they print and draw, as Markdown into docs/tutorials.

    python docs/render.py [TUTORIAL.py ...]           with ppgen installed; all tutorials if none is named
    python docs/render.py --text [TUTORIAL.py ...]    runs nothing: the text is new, and code cells keep their output

A tutorial is a script in jupytext's percent format: cells begin with a line ``# %%``, prose with ``# %% [markdown]``.
As in a notebook, a cell shows what it prints, the value of a last line that is an expression, and the pyplot figures
that it leaves open. The title of a cell, ``# %% Two curves that cross``, describes its figures to those who cannot see
them.
"""

import ast
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "tutorials"


class Cell(NamedTuple):
    """A part of a tutorial.

    Attributes:
        markdown: Whether it is prose.
        title: What its marker says.
        line: Where its source begins, from 0.
        source: Its text or its code.
    """

    markdown: bool
    title: str
    line: int
    source: str


def cells(text: str) -> list[Cell]:
    """The cells of a tutorial."""
    found: list[tuple[bool, str, int, list[str]]] = []
    for number, line in enumerate(text.splitlines()):
        if marker := re.match(r"# %%(?: (\[markdown\])| (.+?))?\s*$", line):
            found.append((bool(marker[1]), marker[2] or "", number + 1, []))
        elif found:
            found[-1][3].append(re.sub(r"^# ?", "", line) if found[-1][0] else line)
    return [Cell(*head, "\n".join(lines).strip("\n")) for *head, lines in found]


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


def picture(title: str, number: int, name: str) -> str:
    return f"![{title or f'Figure {number}'}]({name})"


def outputs_by_running(path: Path) -> Iterator[list[str]]:
    """What each code cell prints and draws, as Markdown. It writes the pictures."""
    names: dict = {"__name__": "__main__"}
    os.chdir(path.parent)  # where the tutorials find their weights
    count = 0
    for cell in cells(path.read_text(encoding="utf-8")):
        if cell.markdown:
            continue
        text = run(cell.source, cell.line, path, names)
        shown = [f"```text\n{text}\n```"] if text else []
        for number in plt.get_fignums():
            count += 1
            file = OUT / f"{path.stem}_{count}.png"
            plt.figure(number).savefig(file, dpi=100, metadata={"Software": None})
            shown.append(picture(cell.title, count, file.name))
        plt.close("all")
        yield shown


OUTPUT = re.compile(r"\n\n(?:(```text\n.*?\n```)|!\[[^\]\n]*\]\(([^)]+)\))(?=\n)", re.DOTALL)


def outputs_of_page(path: Path) -> Iterator[list[str]]:
    """What the code cells printed and drew when the page was written, as Markdown.

    Raises:
        ValueError: If a code cell is not in the page as it is now.
    """
    page = (OUT / f"{path.stem}.md").read_text(encoding="utf-8")
    position = count = 0
    for cell in cells(path.read_text(encoding="utf-8")):
        if cell.markdown:
            continue
        block = f"```python\n{cell.source}\n```"
        start = page.find(block, position)
        if start < 0:
            raise ValueError(f"{path.name}, line {cell.line + 1}: the code has changed: render it without --text")
        position = start + len(block)
        shown = []
        while output := OUTPUT.match(page, position):
            position = output.end()
            count += bool(output[2])
            shown.append(output[1] or picture(cell.title, count, output[2]))
        yield shown


def written(path: Path, outputs: Iterator[list[str]]) -> str:
    """The page of a tutorial, from what its code cells show."""
    page = [f"<!-- Written by docs/render.py from tutorials/{path.name}: change that, and render again. -->"]
    for cell in cells(path.read_text(encoding="utf-8")):
        if cell.markdown:
            page.append(cell.source)
        else:
            page += [f"```python\n{cell.source}\n```", *next(outputs)]
    return "\n\n".join(page) + "\n"


def render(path: Path, text: bool = False) -> Path:
    """Writes one tutorial, and its pictures unless `text`, and returns the Markdown file."""
    page = written(path, outputs_of_page(path) if text else outputs_by_running(path))
    target = OUT / f"{path.stem}.md"
    target.write_text(page, encoding="utf-8")
    return target


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    text = "--text" in sys.argv
    names = [name for name in sys.argv[1:] if name != "--text"]
    paths = [Path(name).resolve() for name in names] or sorted((ROOT / "tutorials").glob("*.py"))
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as fresh:  # a process each, as when run as scripts
        for target in fresh.map(partial(render, text=text), paths):
            print(target)


if __name__ == "__main__":
    main()
