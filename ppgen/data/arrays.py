"""Arrays from files: NumPy's .npy and .npz, and the IDX files in which MNIST and its kin come."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ppgen.data.raw import Raw, from_array

# the third byte of an IDX file says what its numbers are, all of them big-endian
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_numpy(path: Path) -> Raw:
    """An array of a .npy file, or of a .npz file "x" with labels "y" if there are any, or its only array.

    Raises ValueError for a file that NumPy cannot read without pickle, and for other arrays in a .npz.
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
    """The array of an IDX file, gzipped where its name ends in .gz.

    An IDX file is two zero bytes, a type, the rank r, r sizes of 32 bits, and the numbers, row-major, all
    of it big-endian. Raises ValueError for another beginning, or more or fewer bytes than the sizes ask for.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise ValueError(
            f"{path} is not an IDX file: expected it to begin 00 00, a type from "
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
            f"{path}: its header, rank {rank} and sizes {shape or 'cut off'}, asks for {expected} bytes, "
            f"but the file has {len(content)}"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
