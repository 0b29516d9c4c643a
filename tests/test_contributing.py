"""The worked examples of CONTRIBUTING.md, applied to a copy of the package, pass the tests that they join."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"^New file `(\S+)`:\n\n```python\n(.*?)```", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^In `(\S+)`, after `([^`]+)`:\n\n```python\n(.*?)```", re.DOTALL | re.MULTILINE)
TESTED = re.compile(r"^Run `pytest (.+?)`\.", re.MULTILINE)


def applied(guide: str, root: Path) -> None:
    """Writes the examples' files, and their rows after the lines that the guide names, into a copy of the project."""
    for path, code in FILE.findall(guide):
        target = root / path
        assert not target.exists(), f"{path} exists already"
        target.write_text(code)
    for path, anchor, code in ROW.findall(guide):
        target = root / path
        lines = target.read_text().splitlines(keepends=True)
        places = [number for number, line in enumerate(lines) if anchor in line]
        assert len(places) == 1, f"{path}: {len(places)} lines contain {anchor!r}"
        lines.insert(places[0] + 1, code)
        target.write_text("".join(lines))


@pytest.mark.slow
def test_the_worked_examples_pass_the_tests_of_their_registries(tmp_path):
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    for part in ("ppgen", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    for file in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / file, tmp_path)
    applied(guide, tmp_path)
    tests = [words for line in TESTED.findall(guide) for words in [line.split(" -k ")]]
    assert len(tests) >= 7
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for path, *chosen in tests:
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", path]
        command += ["-k", chosen[0].strip('"')] if chosen else []
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        assert " passed" in done.stdout
    lint = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "ppgen", "tests"]
    done = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
