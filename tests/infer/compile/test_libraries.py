"""The folder of compiled libraries: what is in it is found again, and only what belongs there is run."""

import json
import os
import time

import pytest
import torch

from ppgen.infer.compile import libraries
from ppgen.infer.compile.libraries import Libraries, library_key


@pytest.fixture
def folder(tmp_path) -> Libraries:
    return Libraries(tmp_path / "compiled")


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "made.so"
    path.write_bytes(b"machine code")
    return path


def test_what_was_added_is_found(folder, library):
    assert folder.find("a") is None
    copy = folder.add("a", library, seconds=2.0, operations=100)
    assert folder.find("a").file == copy
    assert copy.read_bytes() == b"machine code"
    assert folder.find("b") is None
    (entry,) = folder.entries()
    assert (entry.about["torch"], entry.about["seconds"]) == (torch.__version__, 2.0)


def test_two_writers_of_a_key_leave_one_library(folder, library):
    folder.add("a", library)
    library.write_bytes(b"the same, compiled again")
    second = folder.add("a", library)
    assert folder.find("a").file == second
    assert len(folder.entries()) == 1


@pytest.mark.parametrize("change", ["library", "manifest", "missing", "elsewhere"])
def test_what_is_not_as_its_manifest_says_is_not_used(folder, library, change):
    copy = folder.add("a", library)
    manifest = folder.folder / "a.json"
    if change == "library":
        copy.write_bytes(b"other code")
    elif change == "manifest":
        manifest.write_text("{")
    elif change == "missing":
        copy.unlink()
    else:
        about = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(about | {"file": f"../../{library.name}"}))
    assert folder.find("a") is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners and permissions of files")
def test_code_that_another_user_may_have_written_is_refused(folder, library, monkeypatch):
    copy = folder.add("a", library)
    copy.chmod(0o666)
    with pytest.raises(PermissionError, match=r"all users may write to it: set .* PPGEN_CACHE_DIR"):
        folder.find("a")
    copy.chmod(0o600)
    folder.find("a")
    monkeypatch.setattr(libraries.os, "getuid", lambda: os.stat(copy).st_uid + 1)
    with pytest.raises(PermissionError, match="it is another user's"):
        folder.find("a")


def test_the_least_recently_used_go_first(folder, library):
    for key, used in (("a", 30), ("b", 20), ("c", 10)):
        library.write_bytes(key.encode() * 2**20)
        folder.add(key, library)
        for path in (folder.folder / f"{key}.json", folder.find(key).file):
            os.utime(path, (used, used))
    assert folder.trim(2.5) == 1
    assert [folder.find(key) is not None for key in "abc"] == [True, True, False]
    assert folder.trim(0) == 2
    assert folder.entries() == []


def test_a_library_without_a_manifest_is_deleted_after_a_day(folder, library):
    copy = folder.add("a", library)
    (folder.folder / "a.json").unlink()
    folder.trim(100)
    assert copy.exists()
    os.utime(copy, (time.time() - 2 * libraries.ABANDONED,) * 2)
    folder.trim(100)
    assert not copy.exists()


def test_the_time_of_compiling_is_that_of_this_machine(folder, library):
    before = folder.predicted_seconds(700)
    for key, seconds in (("a", 4.0), ("b", 5.0), ("c", 100.0)):
        folder.add(key, library, seconds=seconds, operations=700)
    assert before == pytest.approx(1000 * libraries.PRIOR)
    assert folder.predicted_seconds(700) == pytest.approx(5.0)
    assert folder.predicted_seconds(1700) == pytest.approx(10.0)


def test_the_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PPGEN_CACHE_DIR", str(tmp_path))
    assert Libraries().folder == tmp_path / "compiled"
    monkeypatch.delenv("PPGEN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Libraries().folder == tmp_path / "ppgen" / "compiled"


def test_a_key_depends_on_all_that_a_library_does(monkeypatch):
    keys = [library_key("graph", 1), library_key("other graph", 1), library_key("graph", 2)]
    monkeypatch.setattr(libraries, "_surroundings", lambda: ("another torch",))
    assert len({*keys, library_key("graph", 1)}) == 4
