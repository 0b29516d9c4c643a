"""Files are written completely or not at all."""

import os

import pytest

from ppgen.utils.files import write_atomically


def test_text_and_bytes_are_written_and_replace_what_was_there(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    assert write_atomically(str(path), "naïve") == path
    assert path.read_text(encoding="utf-8") == "naïve"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = write_atomically(tmp_path / "file", "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
