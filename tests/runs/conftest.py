"""Runs are trained in an empty folder, with a report that is only a title."""

import pytest

from ppgen.report import Report


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch, request):
    """Changes to an empty folder; replaces the report by a title, unless the test is marked to make the figures."""
    monkeypatch.chdir(tmp_path)
    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr("ppgen.report.report_of_run", lambda *_, title, **__: Report(title))


@pytest.fixture
def quick() -> list[str]:
    """Options of a short run on few data."""
    return [
        *("--fit.steps", "6", "--model.hidden", "[8]", "--draws", "0", "--particles", "4", "--data.size", "300"),
        *("--fit.compile", "false", "--evaluation_seconds", "inf"),
    ]
