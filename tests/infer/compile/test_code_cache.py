"""Steps are not compiled where another user could have put code into torch's cache."""

import os
import warnings
from types import SimpleNamespace

import pyro
import pytest

import ppgen
from ppgen.infer.compile import code_cache
from ppgen.infer.compile.code_cache import check_code_cache, remove_empty_code

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners and permissions of files")


def test_a_folder_of_this_user_is_trusted(tmp_path):
    for mode in (0o700, 0o755, 0o775):
        tmp_path.chmod(mode)
        check_code_cache(str(tmp_path))


def test_a_folder_into_which_all_may_write_is_not(tmp_path):
    tmp_path.chmod(0o1777)
    with pytest.raises(PermissionError, match=r"all users may write into it: set .* TORCHINDUCTOR_CACHE_DIR"):
        check_code_cache(str(tmp_path))


def test_a_folder_of_another_user_is_not(tmp_path, monkeypatch):
    about = SimpleNamespace(st_uid=os.getuid() + 1, st_mode=0o40700)
    monkeypatch.setattr(code_cache.os, "stat", lambda _: about)
    with pytest.raises(PermissionError, match=f"it is of another user, with number {about.st_uid}"):
        check_code_cache(str(tmp_path))
    about.st_uid = 0  # root can do anything anyway
    check_code_cache(str(tmp_path))


def test_steps_stay_eager_then(vae, tmp_path, monkeypatch, inductor):
    tmp_path.chmod(0o777)
    monkeypatch.setattr(inductor, "cache_dir", lambda: str(tmp_path))
    svi = ppgen.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), ppgen.ELBO(), compile=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            svi.step(*vae.args)
    assert ["TORCHINDUCTOR_CACHE_DIR" in str(warning.message) for warning in caught] == [True]
    assert "eager" in svi.compile_status
    assert list(tmp_path.iterdir()) == []


def test_only_an_empty_library_in_the_folder_that_an_error_names_is_removed(tmp_path):
    (folder := tmp_path / "cache").mkdir()
    empty, other, whole, outside = folder / "a.so", folder / "b.so", folder / "c.so", tmp_path / "d.so"
    for path in (empty, other, outside):
        path.touch()
    whole.write_text("code")
    for path in (empty, whole, outside):
        remove_empty_code(str(folder), ImportError(f"ImportError: {path}: file too short, at x.py:787"))
    assert [path.exists() for path in (empty, other, whole, outside)] == [False, True, True, True]
