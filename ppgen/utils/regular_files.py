"""What a reader asks of a file before it reads: that it is a regular file, and that what it claims fits into memory.

A pipe or a device would never end, and a few bytes of a header can claim any size.
"""

import os
import stat
import sys
from pathlib import Path

__all__ = ["check_regular", "check_size", "memory", "read_bytes"]

CGROUP = Path("/sys/fs/cgroup/memory.max")  # the limit of a container


def check_regular(path: str | os.PathLike) -> int:
    """Checks that a path is a regular file, or a link to one, without opening it.

    Args:
        path: the file.

    Returns:
        Its size in bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a folder, a pipe, a socket or a device.
    """
    try:
        about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{path}: expected a file, found {kind}")
    return about.st_size


def read_bytes(path: str | os.PathLike, *, most: int | None = None) -> bytes:
    """Reads a whole regular file.

    Args:
        path: the file.
        most: the largest size in bytes; what fits into memory if left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file, and a larger one.
    """
    size = check_regular(path)
    if most is not None and size > most:
        raise ValueError(f"{path}: the file has {size} bytes, and such files have at most {most}")
    check_size(path, size)
    return Path(path).read_bytes()


def check_size(path: str | os.PathLike, size: int) -> None:
    """Checks that what is to be read fits into memory, before any is taken.

    Args:
        path: the file, for the error.
        size: bytes.

    Raises:
        ValueError: if it does not.
    """
    if size > (limit := memory()):
        raise ValueError(f"{path}: it claims {_readable(size)} of data, and this process can have {_readable(limit)}")


def memory() -> int:
    """The memory that this process can have at most, in bytes: that of the machine, or its limit of address space."""
    limits = [sys.maxsize]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if CGROUP.is_file() and (text := CGROUP.read_text().strip()).isdecimal():
        limits.append(int(text))
    try:
        import resource
    except ImportError:  # on Windows
        return min(limits)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min([*limits, soft] if soft != resource.RLIM_INFINITY else limits)


def _readable(size: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size} {unit}"
        size = round(size / 1000)
    return f"{size:,} TB"
