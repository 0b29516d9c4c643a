"""Writing files atomically."""

import os
import secrets
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike, content: bytes | str) -> Path:
    """Writes a file so that it is complete or absent: to a temporary file beside it, synced, then renamed.

    Creates the folder if it is missing. If writing fails, an existing file stays as it was, and nothing else remains.

    Args:
        path: the file.
        content: bytes, or text to be encoded in UTF-8.

    Returns:
        the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
