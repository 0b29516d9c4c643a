"""`FolderLock`: only one process at a time writes into a run folder.

The lock is the operating system's lock of a file, which ends with its process, however that ends.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppgen.runs.folder import LOCK
from ppgen.utils.user_warnings import warn_user

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock", "FolderLockedError"]


NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # the file is truncated, so that a link is refused; Windows has no such flag


class FolderLockedError(OSError):
    """Another process writes into the folder."""


class FolderLock:
    """Inside ``with``, no other process and no other `FolderLock` of this one holds the folder.

    Args:
        folder: The run folder, which exists.

    Raises:
        FolderLockedError: On entering, if another one holds it; the message names its process and host.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._file = folder, -1

    def __enter__(self) -> "FolderLock":
        path = self.folder / LOCK
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
            try:
                _lock(file)
            except BlockingIOError as error:
                holder = os.read(file, 300).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise FolderLockedError(
                    f"{self.folder}: {holder} writes into this run folder: wait until it has ended, or train into "
                    "another folder with --out"
                ) from error
            except OSError as error:
                warn_user(f"{self.folder}: the file system has no locks ({error}): let one process write at a time")
            if _is_at(path, file):
                break
            os.close(file)  # the holder has just deleted it
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if fcntl is None:  # Windows deletes no open file
            os.close(self._file)
        with suppress(OSError):  # the folder may be gone, or another process has the file now
            (self.folder / LOCK).unlink()
        if fcntl is not None:
            os.close(self._file)


def _lock(file: int) -> None:
    """Locks an open file, or raises a BlockingIOError if it is locked."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt  # on Windows a locked byte cannot be read by others, so that it lies behind the text

    windows: Any = msvcrt
    os.lseek(file, 1000, os.SEEK_SET)
    try:
        windows.locking(file, windows.LK_NBLCK, 1)
    except OSError as error:
        os.lseek(file, 0, os.SEEK_SET)
        raise BlockingIOError(*error.args) from error
    os.lseek(file, 0, os.SEEK_SET)


def _is_at(path: Path, file: int) -> bool:
    """Whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
