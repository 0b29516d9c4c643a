"""The code of the quickstart and of the how-to guides runs, each page from its first block to its last."""

import re
from pathlib import Path

import pyro
import pytest
import torch

from ppgen.flows import FLOWS
from ppgen.runs.methods import METHODS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "quickstart.md", *sorted(path for path in (DOCS / "howto").glob("*.md") if path.stem != "index")]


@pytest.mark.filterwarnings("default")  # what the library warns of is for the reader of a page, and no failure of it
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FLOWS, "_rows", dict(FLOWS._rows))  # a page adds a flow, which other tests are not to see
    pyro.clear_param_store()
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks, f"{page}: expected code"
    names = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_the_commands_of_the_pages_name_methods():
    commands = [
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"ppgen train (\w+)", page.read_text())
        if name != "METHOD"
    ]
    assert commands
    assert {name for _, name in commands} <= set(METHODS), commands
