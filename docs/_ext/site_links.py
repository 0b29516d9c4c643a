"""Links to files outside of docs: those beside the README have a page on the site, others are named by their path."""

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README": "index", "CONTRIBUTING": "project/contributing", "CHANGELOG": "project/changelog"}
PAGES |= {"SECURITY": "project/security"}


def rewritten(app: Sphinx, name: str, source: list[str]) -> None:
    folder = (Path(app.srcdir) / name).parent

    def link(match: re.Match) -> str:
        label, target = match.groups()
        path = (folder / target.partition("#")[0]).resolve()
        if path.suffix == ".md" and path.parent == ROOT and path.stem in PAGES:
            return f"[{label}](/{PAGES[path.stem]}.md)"
        if path.parent == ROOT / "tutorials" / "solutions":
            return f"[{label}](/solutions/{path.stem}.md)"
        if path.is_relative_to(ROOT) and not path.is_relative_to(app.srcdir) and path.exists():
            return f"`{path.relative_to(ROOT)}`"
        return match[0]

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(((?!https?:|#|/)[^)\s]+)\)", link, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", rewritten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
