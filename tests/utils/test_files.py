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


def test_a_link_stays_and_its_target_is_written(tmp_path):
    target, link, dangling = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "dangling"
    write_atomically(target, "old")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "there" / "new")
    for path in (link, dangling):
        assert write_atomically(path, "new") == path
        assert path.is_symlink()
    assert target.read_text() == (tmp_path / "there" / "new").read_text() == "new"
    assert sorted(os.listdir(tmp_path / "there")) == ["new", "target"]


def test_a_file_keeps_its_permissions(tmp_path):
    path = write_atomically(tmp_path / "file", "old")
    path.chmod(0o600)
    write_atomically(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600


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
