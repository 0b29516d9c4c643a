"""Lazy tables import a row when it is looked up, and take rows of users."""

import sys
from collections import ChainMap

import pytest

from ppgen.utils.lazy_table import LazyTable


@pytest.fixture
def table(tmp_path, monkeypatch):
    (tmp_path / "lazily_imported.py").write_text("calls = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield LazyTable({"calls": "lazily_imported:calls", "number": 3})
    sys.modules.pop("lazily_imported", None)


def test_a_row_is_imported_on_its_first_lookup(table):
    assert list(table) == ["calls", "number"]
    assert len(table) == 2
    assert "calls" in table
    assert "others" not in table
    assert repr(table) == "LazyTable(calls, number)"
    assert list(ChainMap(table, {})) == ["calls", "number"]
    assert "lazily_imported" not in sys.modules
    assert table["calls"] is table["calls"] == []
    assert "lazily_imported" in sys.modules


def test_users_add_and_remove_rows(table):
    table["mine"] = print
    assert table["mine"] is print
    assert table.get("others") is None
    del table["mine"]
    assert "mine" not in table
    with pytest.raises(KeyError, match="mine"):
        table["mine"]
    table["mine"] = "math:sqrt"
    assert table["mine"](4.0) == 2.0
