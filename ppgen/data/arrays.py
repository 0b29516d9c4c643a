"""Arrays from files: .npy and .npz of NumPy, and IDX files, the format of MNIST."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ppgen.data.raw import RawData, from_array

__all__ = ["read_idx", "read_numpy"]

# the dtype of the numbers, all big-endian, by the third byte of an IDX file
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_numpy(path: Path) -> RawData:
    """Reads the array of a .npy file, or of a .npz file the array "x" with optional labels "y", or its only array.

    Raises:
        ValueError: for a file that NumPy cannot read without pickle, and for other arrays in a .npz file.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable file of NumPy arrays: {error}") from error
    if len(arrays) == 1:
        return from_array(*arrays.values(), name=str(path))
    if "x" not in arrays or not arrays.keys() <= {"x", "y"}:
        found = ", ".join(map(repr, arrays)) or "none"
        raise ValueError(f"{path}: expected arrays 'x' and perhaps 'y', or a single array, got {found}")
    return from_array(arrays["x"], arrays["y"], name=str(path))


def read_idx(path: Path) -> np.ndarray:
    """Reads the array of an IDX file, decompressed if its name ends in .gz.

    An IDX file consists of two zero bytes, the type, the rank r, r sizes of 32 bits, and the numbers in row-major
    order, all big-endian.

    Raises:
        ValueError: for another header, or a number of bytes that does not match the sizes.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise ValueError(
            f"{path} is not an IDX file: expected it to begin with 00 00, a type from "
            f"{', '.join(f'{code:02x}' for code in IDX_TYPES)}, and the rank; got {content[:4].hex(' ')}"
        )
    dtype, rank = np.dtype(IDX_TYPES[content[2]]), content[3]
    shape: tuple[int, ...] = ()
    start = expected = 4 + 4 * rank
    if len(content) >= start:
        shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
        expected += math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"{path}: by its header, rank {rank} and sizes {shape or 'cut off'}, it has {expected} bytes, "
            f"but the file has {len(content)}"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
