"""The folder in which torch's compiler keeps code, and from which later processes run it."""

import os
import re
import stat
from pathlib import Path

__all__ = ["check_code_cache", "remove_empty_code"]


def check_code_cache(folder: str) -> None:
    """Checks that nobody else may put code into the folder.

    By default it is in the folder for temporary files, under a name that follows from that of the user. On a machine
    of several users another one can have made it first.

    Args:
        folder: the folder, which exists.

    Raises:
        PermissionError: if it is of another user than this one and root, or if all users may write into it.
    """
    if not hasattr(os, "getuid"):  # Windows has a folder for temporary files for each user
        return
    about = os.stat(folder)
    mine = about.st_uid in (os.getuid(), 0)
    if not mine or about.st_mode & stat.S_IWOTH:
        why = "all users may write into it" if mine else f"it is of another user, with number {about.st_uid}"
        raise PermissionError(
            f"torch would run compiled code from {folder}, and {why}: set the environment variable "
            "TORCHINDUCTOR_CACHE_DIR to a folder of your own"
        )


def remove_empty_code(folder: str, error: Exception) -> None:
    """Removes an empty library that an error names, as a killed compiler leaves it; torch would try it forever.

    Args:
        folder: the folder.
        error: the error of the compiler.
    """
    for name in re.findall(r"(/\S+\.so): file too short", str(error)):
        path = Path(name).resolve()
        if path.is_relative_to(Path(folder).resolve()) and path.is_file() and not path.stat().st_size:
            path.unlink(missing_ok=True)
