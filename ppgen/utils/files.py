"""Writing files atomically."""

import os
import secrets
import shutil
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike, content: bytes | str) -> Path:
    """Writes a file so that it is complete or absent: to a temporary file beside it, synced, then renamed.

    Creates the folder if it is missing. A link stays, and the file that it points to is written; an existing file keeps
    its permissions. If writing fails, an existing file stays as it was, and nothing else remains.

    Args:
        path: the file.
        content: bytes, or text to be encoded in UTF-8.

    Returns:
        the path.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Path(path)
