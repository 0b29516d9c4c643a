r"""Makes reStructuredText of the docstrings, which are written for people who read them in a terminal.

In those, ``*``, ``|`` and ``_`` are signs of formulas, single backticks are code, and a formula has a line of its own.
"""

import re

from sphinx.application import Sphinx

LITERAL = re.compile(r"(``.+?``|`[^`]+`|https?://\S+)")
BULLET = re.compile(r"^\s*[*+-] ")
ARGUMENT = re.compile(r"^(\s*\*{0,2}\w+)(?=(?: \([^)]*\))?:(?:\s|$))")


def plain(text: str) -> str:
    """Text in which no sign is markup, but for code in backticks and links."""
    parts = LITERAL.split(text)
    parts[::2] = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" if re.fullmatch(r"`[^`]+`", part) else part for part in parts[1::2]]
    return "".join(parts)


def escaped(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    literal = None  # the indentation of the line that began a literal block
    result = []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is not None or line.lstrip().startswith((">>>", "...")):
            result.append(line)
            continue
        head = ARGUMENT.match(line) or BULLET.match(line)
        start = head.end() if head else 0
        result.append(line[:start] + plain(line[start:]))
        if line.rstrip().endswith("::"):
            literal = indent
    lines[:] = result


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", escaped, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}
