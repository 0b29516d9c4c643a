"""The page: what a parser reads back, escaped and self-contained."""

import base64
import os

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing
from reports import Page, assert_self_contained

from ppgen.report import Figure, Listing, Report, Section, Table, write_report
from ppgen.report.page import cell

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


HOSTILE = "<script>alert('x')</script> & \"<b>\" {{ 7 * 7 }} ]]>"


def a_report(text: str = "plain") -> Report:
    picture = Drawing(figsize=(1, 1))
    picture.add_subplot().set_title("drawn")
    return Report(
        title=f"title {text}",
        subtitle=f"subtitle {text}",
        sections=[
            Section(f"first {text}", f"one {text}\n\ntwo {text}", [Figure(picture, f"caption {text}", f"alt {text}")]),
            Section("second", items=[Table(("name", f"head {text}"), [("n", f"cell {text}")], f"below {text}")]),
            Section("third", items=[Listing(f"listing {text}\n  indented", f"under {text}")]),
            Section("fourth", items=[Figure(SVG, "", "vector")]),
        ],
    )


@pytest.mark.parametrize("text", ["plain", HOSTILE], ids=["plain", "hostile"])
def test_the_page_contains_all_text_literally(tmp_path, text):
    path = write_report(tmp_path / "new" / "report.html", a_report(text))
    html = path.read_text(encoding="utf-8")
    assert_self_contained(html)
    page = Page(html)
    for word in ("title", "subtitle", "first", "one", "two", "caption", "head", "cell", "below", "listing", "under"):
        assert f"{word} {text}" in page.text
    assert [attributes["alt"] for attributes in page.all("img")] == [f"alt {text}", "vector"]
    assert f"listing {text}\n  indented" in page.text
    targets = {attributes["href"] for attributes in page.all("a")}
    assert targets == {f"#{section['id']}" for section in page.all("section")}
    assert len(targets) == 4


def test_a_picture_is_embedded_byte_for_byte():
    assert Figure(SVG, "", "").uri == f"data:image/svg+xml;base64,{base64.b64encode(SVG).decode()}"
    assert Figure(b"\x89PNG\r\n\x1a\n...", "", "").uri.startswith("data:image/png;base64,")
    with pytest.raises(ValueError, match=r"PNG, JPEG or SVG picture, got b'GIF89a': the caption"):
        _ = Figure(b"GIF89a", "the caption", "").uri


def test_the_same_report_has_the_same_bytes(tmp_path):
    first, second = (write_report(tmp_path / name, a_report()).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("failure", ["figure", "disk"])
def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch, failure):
    path = write_report(tmp_path / "report.html", a_report())
    old = path.read_bytes()
    report, error = a_report("new"), OSError
    if failure == "figure":
        report, error = Report("new", sections=[Section("s", items=[Figure(b"", "", "")])]), ValueError
    else:

        def refuse(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(error):
        write_report(path, report)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_has_the_permissions_of_other_files(tmp_path):
    (tmp_path / "other").write_text("")
    assert write_report(tmp_path / "page", a_report()).stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.678, "12346"),
        (0.000123456, "0.0001235"),
        (7.0, "7.000"),
        (np.float32(-64), "-64.00"),
        (1e30, "1.000e+30"),
        (float("inf"), "inf"),
        (600, "600"),
        (np.int64(3), "3"),
        (None, ""),
        ("text", "text"),
        (True, "True"),
        ((-31.4159, 0.0217), "-31.416 ± 0.022"),
        ([1234.5, 67.8], "1234 ± 68"),
        ((1.0, 0.0), "1.000 ± 0.000"),
        ((float("nan"), float("nan")), "nan ± nan"),
    ],
)
def test_a_cell_has_the_significant_digits(value, text):
    assert cell(value) == text


def test_rows_have_the_length_of_the_header():
    with pytest.raises(ValueError, match=r"rows of 2 cells, as the header, got \[1, 2, 3\]"):
        Table(("a", "b"), [(1, 2), (1, 2, 3)])
