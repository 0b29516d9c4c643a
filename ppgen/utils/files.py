"""Writing files atomically."""

import errno
import os
import secrets
import shutil
from pathlib import Path

__all__ = ["link", "remove_leftovers", "write_atomically"]

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # of file systems that cannot sync a folder


def write_atomically(
    path: str | os.PathLike, content: bytes | str, *, previous: str | os.PathLike | None = None
) -> Path:
    """Writes a file so that it is complete or absent: to a temporary file beside it, synced, then renamed.

    Creates the folder if it is missing. A link stays, and the file that it points to is written; an existing file keeps
    its permissions. If writing fails, an existing file stays as it was, and nothing else remains. The folder is synced
    too, so that the file is there after a power failure.

    Args:
        path: the file.
        content: bytes, or text to be encoded in UTF-8.
        previous: a second file that takes the content of an existing file before it is replaced.

    Returns:
        the path.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
            if previous is not None:
                link(target, previous)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
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
    """Deletes the temporary files that killed processes left beside a file.

    Args:
        path: the file, which no other process may be writing.
    """
    target = Path(os.path.realpath(path))
    start = f".{target.name}."
    for other in target.parent.iterdir() if target.parent.is_dir() else ():
        token = other.name.removeprefix(start)
        if other.name.startswith(start) and len(token) == 8 and not set(token) - set("0123456789abcdef"):
            other.unlink(missing_ok=True)


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
