"""Files of mixed columns: what is recognized, missing cells, and the way back."""

import numpy as np
import pandas as pd
import pytest

from ppgen.data.csv_format import CsvFormat, recognize_csv
from ppgen.data.table_files import read_table, write_table

TEXT = (
    "kunde;tarif;preis;plz;seit\n"
    '1;"frei; gratis";1,50;01234;31.01.2024\n'
    "2;größer;?;99999;01.02.2024\n"
    "3;frei;2,25;00001;NA\n"
    "\n"
    '4;"a ""b""";3,00;12345;05.03.2024\n'
)


def test_a_german_file_comes_back_as_it_was(tmp_path):
    path, again = tmp_path / "t.csv", tmp_path / "again.csv"
    path.write_bytes(TEXT.encode("cp1252"))
    table = read_table(path)
    assert table.csv == CsvFormat(";", ",", "cp1252")
    assert table.frame["preis"].tolist()[0::2] == [1.5, 2.25]
    assert table.frame["plz"].tolist() == ["01234", "99999", "00001", "12345"]
    assert table.frame.isna().sum().to_dict() == {"kunde": 0, "tarif": 0, "preis": 1, "plz": 0, "seit": 1}
    schema = table.infer(kinds={"plz": "categorical", "tarif": "categorical"})
    assert schema["seit"].date_format == "%d.%m.%Y"
    assert schema["preis"].missing == ("?",)
    decoded = schema.decode(table.encode(schema))
    write_table(decoded, again, table.csv, schema=schema)
    assert "größer;?;99999" in again.read_text("cp1252")
    assert read_table(again).frame.equals(table.frame[list(schema.names)])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_and_encodings_are_recognized(separator, encoding, tmp_path):
    lines = [["größe", "b"], ["1.5", "x y"], ["2.5", "ü"]]
    (tmp_path / "t.csv").write_text("\n".join(map(separator.join, lines)), encoding=encoding)
    assert recognize_csv(tmp_path / "t.csv") == CsvFormat(separator, ".", encoding)
    assert read_table(tmp_path / "t.csv").frame["größe"].tolist() == [1.5, 2.5]


BAD = {
    "long row": ("a,b\n1,2\n1,2,3\n", "line 3: expected 2 cells"),
    "short row": ("a,b\n1,2\n1\n", "line 3: expected 2 cells"),
    "twice": ("a,a\n1,2\n", "line 1: two columns are named 'a'"),
    "no name": ("a,\n1,2\n", "line 1: column 2 has no name"),
    "no rows": ("a,b\n", "has no rows"),
    "empty": ("", "is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_the_line(case, tmp_path):
    text, message = BAD[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"t\.csv.*{message}"):
        read_table(tmp_path / "t.csv")


def test_an_odd_cell_is_named_with_its_line(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,x\n2.5,y\n" * 30 + "l.5,x\n")
    with pytest.raises(ValueError, match=r"line 62, column 'a': expected a number like the others, got 'l\.5'"):
        read_table(tmp_path / "t.csv").infer()


def test_text_columns_keep_their_values(tmp_path):
    (tmp_path / "t.csv").write_text("pool,x\nNone,1\nbig,2\n,3\n")
    assert read_table(tmp_path / "t.csv").frame["pool"].isna().tolist() == [True, False, True]
    assert read_table(tmp_path / "t.csv", text=["pool"]).frame["pool"].isna().tolist() == [False, False, True]


def test_parquet_keeps_types(tmp_path):
    frame = pd.DataFrame({"day": pd.to_datetime(["2024-01-01", "2024-01-05"]), "x": np.array([1, 2], np.int8)})
    write_table(frame, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet").frame, frame)
