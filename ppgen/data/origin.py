"""`Origin`: where rows come from, by which a change of the data is noticed."""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ppgen.data.digest import digest_of_rows

__all__ = ["Origin"]


class Origin:
    """A source, and what was read from it.

    Args:
        source: the source as the user named it.
        path: the absolute path of a file or a folder; None for a named data set.
        rows: the number of rows that were read.
        dtype: the type of their values.
        digest: the digest of all rows and labels and of their names, or the function that computes it.
    """

    def __init__(self, source: str, path: str | None, rows: int, dtype: str, digest: str | Callable[[], str]) -> None:
        self.source, self.path, self.rows, self.dtype, self._digest = source, path, rows, dtype, digest

    @classmethod
    def of(cls, source: str | Path, raw: Any, *, named: bool, late: bool) -> "Origin":
        """The origin of rows.

        Args:
            source: the source.
            raw: the `ppgen.data.raw.RawData` that were read.
            named: whether the source is a named data set, and not a path.
            late: whether the digest is computed when it is asked for: data on disk are read once more for it.
        """
        digest = partial(_digest, raw)
        path = None if named else str(Path(source).absolute())
        return cls(str(source), path, len(raw.x), str(raw.x.dtype), digest if late else digest())

    @cached_property
    def digest(self) -> str:
        """The digest, 64 hexadecimal digits."""
        return self._digest if isinstance(self._digest, str) else self._digest()

    def as_dict(self) -> dict[str, Any]:
        """The arguments of the constructor, as JSON values."""
        return {k: getattr(self, k) for k in ("source", "path", "rows", "dtype", "digest")}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Origin):
            return NotImplemented
        return (self.rows, self.digest) == (other.rows, other.digest)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.rows} rows with digest {self.digest[:12]}"


def _digest(raw: Any) -> str:
    rows = digest_of_rows(*(part for part in (raw.x, raw.y) if part is not None))
    return hashlib.sha256(f"{rows} {raw.columns} {raw.label_names}".encode()).hexdigest()
