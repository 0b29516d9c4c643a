"""The examples of docs/scale.md run as they stand there, one after the other."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_examples_of_data_beyond_memory_run(tmp_path, monkeypatch):
    section = PAGE.read_text().split("## Data beyond memory")[1].split("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 3
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), namespace)
    options = {"batch_size": 50, "steps": 3, "patience": 2}
    with pytest.raises(ValueError, match="give validation data"):
        namespace["ppgen"].fit(namespace["vae"].model, namespace["vae"].guide, namespace["stream"], **options)
