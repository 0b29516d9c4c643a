"""Users' scripts can be type-checked: what stays untyped is Pyro."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("user_script.py")
CONFIG = """
[mypy]
strict = true
[mypy-pyro.*]
ignore_missing_imports = true
follow_imports = skip
[mypy-ppgen.*]
follow_imports = silent
"""


@pytest.mark.slow
def test_a_users_script_passes_mypy_strict(tmp_path):
    (tmp_path / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"), str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
