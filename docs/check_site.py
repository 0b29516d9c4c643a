"""Checks the built pages: the levels of headings, texts of pictures, and that links lead somewhere.

    python docs/check_site.py build/site         prints what is wrong, and exits with status 1 if anything is

It also refuses requests to other hosts, since the site has to work without a network, and prints the size of the pages.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """What is checked of a page: its headings, pictures without a text, names, links and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.problems: list[str] = []
        self.titled = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.names |= {values[name] for name in ("id", "name") if name in values}
        self.titled |= tag == "title"
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.headings.append(int(tag[1]))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img" and not values.get("alt", "").strip():
            self.problems.append(f"the picture {values.get('src')} has no text")
        if tag == "html" and not values.get("lang"):
            self.problems.append("the page does not name its language")
        self.loaded += [values[name] for of, name in LOADED if of == tag and name in values]

    def heading_problems(self) -> list[str]:
        problems = [] if self.headings.count(1) == 1 else [f"{self.headings.count(1)} headings of the first level"]
        steps = zip(self.headings, self.headings[1:], strict=False)
        return problems + [f"a heading of level {b} follows one of level {a}" for a, b in steps if b > a + 1]


def check(root: Path) -> list[str]:
    """All problems of the pages below a folder, each with its page."""
    pages = {path: Page(path) for path in sorted(root.rglob("*.html")) if path.name != "search.html"}
    if not pages:
        return [f"{root}: expected pages of a built site, found none"]
    problems = []
    for path, page in pages.items():
        found = page.problems + page.heading_problems()
        found += [] if page.titled else ["no title"]
        found += [f"loads {url} from another host" for url in page.loaded if urlsplit(url).netloc]
        for link in page.links + page.loaded:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.exists():
                found.append(f"a link to {link}, which does not exist")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].names:
                found.append(f"a link to {link}, which has no such heading")
        problems += [f"{path.relative_to(root)}: {problem}" for problem in found]
    return problems


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    root = Path(sys.argv[1]).resolve()
    problems = check(root)
    print(*problems, sep="\n")
    sizes = sorted((path.stat().st_size, path.relative_to(root)) for path in root.rglob("*.html"))
    if sizes:
        print(
            f"{len(sizes)} pages, the largest {sizes[-1][1]} with {sizes[-1][0] / 1e3:.0f} kB; {len(problems)} problems"
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
