"""The folder in which torch's compiler keeps code, and from which later processes run it."""

import os
import stat

__all__ = ["check_code_cache"]


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
