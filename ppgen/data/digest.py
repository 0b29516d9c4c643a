"""The digest of data: SHA-256 of all rows, in one pass and chunk by chunk, so that data need not fit into memory."""

import hashlib
from typing import Any

import numpy as np
import torch

from ppgen.data.checks import chunks

__all__ = ["RowDigest", "digest_of_rows"]


class RowDigest:
    """The digest of rows that come in chunks. However the rows are divided into chunks, it is the same.

    Example:
        >>> import numpy as np
        >>> from ppgen.data.digest import RowDigest, digest_of_rows
        >>> x, digest = np.arange(6.0).reshape(3, 2), RowDigest()
        >>> for chunk in (x[:2], x[2:]):
        ...     digest.add(chunk)
        >>> digest.hexdigest() == digest_of_rows(x)
        True
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str, Any]] = []
        self._rows = 0

    def add(self, *parts: Any) -> None:
        """Adds the next rows.

        Args:
            *parts: arrays or tensors (m, ...) with the same number of rows; in each call as many as in the first, with
                the same types and shapes of a row.

        Raises:
            ValueError: if their number, types or shapes are not those of the first call.
        """
        arrays = [_little_endian(part) for part in parts]
        headers = [f"{array.dtype.str} {array.shape[1:]}" for array in arrays]
        if not self._parts:
            self._parts = [(header, hashlib.sha256()) for header in headers]
        if headers != [header for header, _ in self._parts]:
            raise ValueError(f"digest: expected rows of {[header for header, _ in self._parts]}, got {headers}")
        for array, (_, state) in zip(arrays, self._parts, strict=True):
            state.update(array.reshape(-1).view(np.uint8))
        self._rows += len(arrays[0]) if arrays else 0

    def hexdigest(self) -> str:
        """The digest of the rows so far, 64 hexadecimal digits."""
        whole = hashlib.sha256(str(self._rows).encode())
        for header, state in self._parts:
            whole.update(f"{header} {state.hexdigest()}".encode())
        return whole.hexdigest()


def digest_of_rows(*parts: Any) -> str:
    """The digest of whole arrays, which are read once, in the order of their rows and in chunks.

    Args:
        *parts: arrays, tensors or `ppgen.data.StreamedArray`s (n, ...) with the same number of rows n.
    """
    digest = RowDigest()
    largest = max(parts, key=lambda part: int(np.prod(part.shape[1:])), default=None)
    for start, stop in () if largest is None else chunks(tuple(largest.shape)):
        digest.add(*(part[start:stop] for part in parts))
    return digest.hexdigest()


def _little_endian(part: Any) -> np.ndarray:
    """A contiguous array, whose bytes are the same on every machine."""
    if isinstance(part, torch.Tensor):
        tensor = part.detach().cpu().contiguous()
        # NumPy has no bfloat16
        part = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    array = np.ascontiguousarray(part).reshape(np.shape(part))  # which keeps an empty shape
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
