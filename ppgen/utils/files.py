"""Writing files atomically."""

import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["link", "remove_leftovers", "write_atomically"]

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # of file systems that cannot sync a folder


def write_atomically(path: str | os.PathLike, content: bytes | str, *, previous: Sequence[Path] = ()) -> Path:
    """Writes a file so that it is complete or absent: to a temporary file beside it, synced, then renamed.

    Creates the folder if it is missing. A link stays, and the file that it points to is written; an existing file keeps
    its permissions. If writing fails, an existing file stays as it was, and nothing else remains. The folder is synced
    too, so that the file is there after a power failure. What killed processes left beside the file is deleted.

    Args:
        path: the file.
        content: bytes, or text to be encoded in UTF-8.
        previous: files that take the content of an existing file before it is replaced, each that of the one before it.

    Returns:
        the path.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    temporary, file = _open_temporary(target)
    try:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:  # Windows renames no open file
            file.close()
        if target.exists():
            shutil.copymode(target, temporary)
            for older, newer in pairwise([*reversed(previous), target]):
                if newer.exists():
                    link(newer, older)
        os.replace(temporary, target)
    except BaseException:
        file.close()
        temporary.unlink(missing_ok=True)
        raise
    file.close()
    _sync_folder(target.parent)
    return Path(path)


def link(path: str | os.PathLike, other: str | os.PathLike) -> None:
    """Gives a file a second name, without a copy where the file system can; a file of that name is replaced.

    Args:
        path: the file, which is later replaced as a whole rather than changed.
        other: the second name.
    """
    temporary = _temporary(Path(other))
    try:
        try:
            os.link(path, temporary)
        except OSError:  # no hard links here
            shutil.copy2(path, temporary)
        os.replace(temporary, other)
    finally:
        temporary.unlink(missing_ok=True)  # renaming does nothing if both are names of one file


def remove_leftovers(path: str | os.PathLike) -> None:
    """Deletes the temporary files that killed processes left beside a file, where the file system has locks.

    Args:
        path: the file. What another process is writing at present is locked, and stays.
    """
    target = Path(os.path.realpath(path))
    start = f".{target.name}."
    for other in target.parent.iterdir() if target.parent.is_dir() else ():
        token = other.name.removeprefix(start)
        if other.name.startswith(start) and len(token) == 8 and not set(token) - set("0123456789abcdef"):
            with suppress(OSError), other.open("r+b") as file:
                if _lock(file, wait=False):
                    other.unlink()


def _open_temporary(target: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file beside another one, locked while it is open."""
    while True:
        temporary = _temporary(target)
        file = temporary.open("xb")
        with suppress(OSError):  # the file system has no locks
            _lock(file, wait=True)
        if temporary.exists():
            return temporary, file
        file.close()  # another process has taken it for one that was left


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Locks an open file until it is closed; False if another process has locked it, or there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _sync_folder(folder: Path) -> None:
    """Writes the names in a folder to the disk, as fsync does for the content of a file."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
