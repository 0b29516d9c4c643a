"""The pages of the course say what its scripts say, end with exercises, and the solutions of these run."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))


def loaded(path: Path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def render():
    return loaded(ROOT / "docs" / "render.py")


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_page_is_what_its_script_says(render, tutorial):
    page = render.OUT / f"{tutorial.stem}.md"
    assert page.read_text() == render.written(tutorial, render.outputs_of_page(tutorial)), "run docs/render.py"


def test_a_page_of_other_code_is_refused(render, tmp_path):
    changed = tmp_path / TUTORIALS[0].name
    changed.write_text(TUTORIALS[0].read_text().replace("import torch", "import numpy, torch"))
    with pytest.raises(ValueError, match=r"line 10: the code has changed: render it without --text"):
        render.written(changed, render.outputs_of_page(changed))


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_says_where_its_method_fails_and_ends_with_three_exercises(render, tutorial):
    text = "\n\n".join(cell.source for cell in render.cells(tutorial.read_text()) if cell.markdown)
    assert "\n## Where it fails\n" in text
    exercises = text.partition("\n## Exercises\n")[2]
    assert re.findall(r"^(\d)\. ", exercises, re.MULTILINE) == ["1", "2", "3"]
    assert f"(../../tutorials/solutions/{tutorial.name})" in exercises


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_solutions_run(tutorial):
    solutions = loaded(ROOT / "tutorials" / "solutions" / tutorial.name)
    for number in (1, 2, 3):
        torch.manual_seed(0)
        getattr(solutions, f"exercise_{number}")()
