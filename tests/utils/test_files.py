"""Files are written completely or not at all."""

import os

import pytest

from ppgen.utils import files
from ppgen.utils.files import remove_leftovers, write_atomically


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


def test_files_before_take_the_content_of_the_one_before_each(tmp_path):
    path, previous = tmp_path / "file", [tmp_path / "one", tmp_path / "two"]
    for content in "abcd":
        write_atomically(path, content, previous=previous)
    assert [file.read_text() for file in (path, *previous)] == ["d", "c", "b"]
    assert sorted(os.listdir(tmp_path)) == ["file", "one", "two"]


@pytest.mark.skipif(files.fcntl is None, reason="there are no such locks on Windows")
def test_what_a_killed_process_left_is_deleted_and_what_a_live_one_is_writing_stays(tmp_path):
    """A lock belongs to an open file, so that this process stands for both."""
    left, other = tmp_path / ".file.0123abcd", tmp_path / ".other.0123abcd"
    for path in (left, other, tmp_path / ".file.notes"):
        path.write_text("half")
    live, file = files._open_temporary(tmp_path / "file")
    write_atomically(tmp_path / "file", "new")
    assert set(tmp_path.iterdir()) == {tmp_path / "file", live, other, tmp_path / ".file.notes"}
    file.close()  # as when its process ends
    remove_leftovers(tmp_path / "file")
    assert set(tmp_path.iterdir()) == {tmp_path / "file", other, tmp_path / ".file.notes"}


@pytest.mark.skipif(files.fcntl is None, reason="there are no such locks on Windows")
def test_a_temporary_file_that_another_process_deletes_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, made = files._lock, []

    def deleted_first(file, *, wait):
        made.append(file.name)
        if len(made) == 1:
            os.unlink(file.name)
        return lock(file, wait=wait)

    monkeypatch.setattr(files, "_lock", deleted_first)
    write_atomically(tmp_path / "file", "new")
    assert len(made) == 2
    assert os.listdir(tmp_path) == ["file"]
