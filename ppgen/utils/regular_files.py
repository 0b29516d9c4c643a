"""What a reader asks of a file before it reads: that it is a regular file, and that what it claims fits into memory.

A pipe or a device would never end, and a few bytes of a header can claim any size.
"""

import os
import stat
import sys
from pathlib import Path

from ppgen.utils.user_warnings import warn_user

__all__ = ["check_regular", "check_size", "free_memory", "memory", "read_bytes"]

CGROUP = Path("/sys/fs/cgroup")  # of a container, with the limit of its memory


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


def check_size(path: str | os.PathLike, size: int, *, remedy: str = "") -> None:
    """Checks that what is to be read fits into memory, before any is taken.

    Args:
        path: the file, for the error.
        size: bytes.
        remedy: what to do with larger data; given, a warning says so if they are larger than the memory that is free.

    Raises:
        ValueError: if it does not.
    """
    advice = f": {remedy}" if remedy else ""
    if size > (limit := memory()):
        raise ValueError(
            f"{path}: it claims {_readable(size)} of data, and this process can have {_readable(limit)}{advice}"
        )
    if remedy and size > (free := free_memory()):
        warn_user(
            f"{path}: it has {_readable(size)} of data, and {_readable(free)} of memory are free, so that the system "
            f"may end this process{advice}"
        )


def memory() -> int:
    """The memory that this process can have at most, in bytes: that of the machine, or its limit of address space."""
    limits = [sys.maxsize]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits += [limit for limit in (_number(CGROUP / "memory.max"), _limit("RLIMIT_AS")) if limit is not None]
    return min(limits)


def free_memory() -> int:
    """The memory that this process can have now, in bytes, as far as the system tells.

    It is what is left of the machine's, of a container's, and of this process's limits of address space and of data.
    Pages of files, which the system gives up when it needs memory, count as free.
    """
    limits = [memory()]
    if (available := _number(Path("/proc/meminfo"), "MemAvailable:")) is not None:
        limits.append(1024 * available)
    most, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if most is not None and used is not None:
        limits.append(most - used + (_number(CGROUP / "memory.stat", "inactive_file") or 0))
    if (statm := Path("/proc/self/statm")).is_file():  # in pages: all addresses, ..., data and stack, 0
        pages = [int(number) for number in statm.read_text().split()]
        for name, used in (("RLIMIT_AS", pages[0]), ("RLIMIT_DATA", pages[-2])):
            if (limit := _limit(name)) is not None:
                limits.append(limit - used * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(limits))


def _number(path: Path, name: str = "") -> int | None:
    """The number in a file of the system, or the one that follows a name in it; None if there is none."""
    if not path.is_file():
        return None
    _, _, text = path.read_text().partition(name) if name else ("", "", path.read_text())
    number, *_ = [*text.split(), ""]
    return int(number) if number.isdecimal() else None


def _limit(name: str) -> int | None:
    """A limit of this process, None if it has none."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


def _readable(size: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size} {unit}"
        size = round(size / 1000)
    return f"{size:,} TB"
