"""Tables: lines and columns of CSV files, in data and in errors; Parquet without pyarrow."""

import pandas as pd
import pytest
from data_files import NAMES, frame, same

from ppgen import data
from ppgen.data.tables import MissingLabelColumn


def test_blank_lines_are_skipped_and_quotes_removed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeff\n"a ""x""",b\r\n\n1,2\n   \n3,4.5\n')
    d = data.load(path, scale="none", test=0, validation=0)
    assert d.columns == ('a "x"', "b")
    assert same(d.x, [[1, 2], [3, 4.5]])


ParserError = pd.errors.ParserError  # a subclass of ValueError
NOT_FINITE = r"3 of 6 values, in 2 of 3 rows \(the first is row 1\), columns 'a', 'b', are not finite"

# CSV text, label, the error and its message
BAD_CSV = {
    "text": ("a,b\n1,2\n3,x\n5,y\n", None, ValueError, "line 3, column 'b': expected a number, got 'x' .2 of 3"),
    "after gaps": ('a,b\n\n"1\n",2\n  \n3,x\n', None, ValueError, "line 6, column 'b': .* got 'x'"),
    "names": ("a,b\n1,dog\n", None, ValueError, "line 2, column 'b': .* 'dog' .*label="),
    "long row": ("a,b\n1,2\n\n3,4,5\n", None, ParserError, "line 4: expected 2 cells as in the header, got 3"),
    "long rows": ("a,b\n1,2,3\n4,5,6\n", None, ParserError, "line 2: expected 2 cells as in the header, got 3"),
    "short row": ("a,b\n1,2\n3\n", None, ParserError, "line 3: expected 2 cells as in the header, got 1"),
    "open quote": ('a,b\n1,2\n3,"4\n5,6\n', None, ParserError, "line 3: .* is a quotation mark left open"),
    "not finite": ("a,b\n1,2\n3,\ninf,NA\n", None, ValueError, f"first at line 3: {NOT_FINITE}"),
    "empty": ("", None, ValueError, "is empty"),
    "no rows": ("a,b\n", None, ValueError, r"at least one row of values, got shape \(0, 2\)"),
    "no header": ("1.5,2\n3,4\n", None, ValueError, "line 1: expected column names, got only numbers: 1.5, 2"),
    "no name": ("\n,a\n0,1\n", None, ValueError, "line 2: column 1 has no name"),
    "same name": ("a,a\n0,1\n", None, ValueError, "line 1: two columns are named 'a'"),
    "no such label": ("a,b\n0,1\n", "c", MissingLabelColumn, "no column 'c' for labels, only 'a', 'b'"),
    "only labels": ("c\nx\ny\n", "c", ValueError, "has no columns of numbers"),
    "missing label": ("a,c\n1,x\n2,\n", "c", ValueError, "column 'c', line 3: the label is missing .1 of 2 are"),
    "measured label": ("a,c\n1,1\n2,0.5\n", "c", ValueError, "line 3: expected a label, .* got 0.5;"),
    "huge label": ("a,c\n1,1\n2,1e30\n", "c", ValueError, "line 3: expected a label, .* got 1e30;"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_files_are_refused_with_the_line(case, tmp_path):
    text, label, error, message = BAD_CSV[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)t\.csv.*{message}") as caught:
        data.load(tmp_path / "t.csv", label=label)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("größe;zahl\n1,5;2\n2,25;3\n", "cp1252", "semicolon, decimal comma, encoding cp1252"),
        ("größe\tzahl\n1.5\t2\n2.25\t3\n", "utf-16", "tab, decimal point, encoding utf-16"),
    ],
)
def test_another_separator_decimal_mark_and_encoding_are_recognized_and_named(text, encoding, named, tmp_path):
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    with pytest.warns(UserWarning, match=named):
        loaded = data.load(tmp_path / "t.csv", scale="none", validation=0, test=0)
    assert loaded.columns == ("größe", "zahl")
    assert sorted(map(tuple, loaded.x.tolist())) == [(1.5, 2.0), (2.25, 3.0)]


def test_parquet_without_pyarrow_is_an_import_error(tmp_path, monkeypatch):
    frame(NAMES).to_parquet(tmp_path / "t.parquet")

    def read_parquet(path):
        raise ImportError("no engine")

    monkeypatch.setattr(pd, "read_parquet", read_parquet)
    with pytest.raises(ImportError, match=r"t\.parquet needs pyarrow: pip install 'ppgen\[parquet\]'"):
        data.load(tmp_path / "t.parquet")
