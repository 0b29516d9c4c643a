"""Arrays from files: .npy and .npz of NumPy, and IDX files, the format of MNIST."""

import gzip
import math
import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from ppgen.data.raw import RawData, from_array
from ppgen.data.streaming import STREAMABLE, TO_STREAM
from ppgen.utils.regular_files import check_regular, check_size

__all__ = ["map_numpy", "read_idx", "read_numpy"]

MOST_DEFLATED = 1032  # bytes that one byte of a zip or gzip file can become at most
MOST_AXES = 8  # of an IDX file
# what NumPy and zipfile raise for bytes that are no arrays
UNREADABLE = (
    *(EOFError, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, RuntimeError, SyntaxError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)

# the dtype of the numbers, all big-endian, by the third byte of an IDX file
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_numpy(path: Path) -> RawData:
    """Reads the array of a .npy file, or of a .npz file the array "x" with optional labels "y", or its only array.

    Raises:
        ValueError: for a file that NumPy cannot read without pickle, that claims more than it can hold or than fits
            into memory, and for other arrays in a .npz file.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            _check_claims(file, path)
            loaded = np.load(file, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except UNREADABLE as error:
        named = str(path) in str(error)  # by `check_size`
        raise ValueError(str(error) if named else f"{path} is not a readable file of NumPy arrays: {error}") from error
    if len(arrays) == 1:
        return from_array(*arrays.values(), name=str(path))
    if "x" not in arrays or not arrays.keys() <= {"x", "y"}:
        found = ", ".join(map(repr, arrays)) or "none"
        raise ValueError(f"{path}: expected arrays 'x' and perhaps 'y', or a single array, got {found}")
    return from_array(arrays["x"], arrays["y"], name=str(path))


def map_numpy(path: Path) -> np.ndarray:
    """Memory-maps the array of a .npy file, which need not fit into memory.

    Raises:
        ValueError: for a file that NumPy cannot map, or that claims more than it can hold.
    """
    size = check_regular(path)
    try:
        with path.open("rb") as file:
            _check_header(file, size)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable file of a NumPy array: {error}") from error


def _check_claims(file: BinaryIO, path: Path) -> None:
    """Checks the headers of all arrays against the bytes that are there, and rewinds the file.

    Raises:
        ValueError: for a header that claims another size.
    """
    size = os.fstat(file.fileno()).st_size
    if not zipfile.is_zipfile(file):
        file.seek(0)
        check_size(path, _check_header(file, size), remedy=STREAMABLE)
    else:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            check_size(path, sum(part.file_size for part in parts), remedy=TO_STREAM)
            for part in parts:
                if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{part.filename!r} is compressed in another way than NumPy does")
                if part.file_size > MOST_DEFLATED * part.compress_size + 1000:
                    raise ValueError(f"{part.filename!r} claims {part.file_size} bytes, more than it can hold")
                with archive.open(part) as inner:
                    check_size(path, _check_header(inner, part.file_size))
    file.seek(0)


def _check_header(file: IO[bytes], size: int) -> int:
    """Checks the header of one array against the number of bytes of its file, and returns how many it claims."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"expected version 1.0 or 2.0 of the format, got {version}")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which only pickle could read")
    if any(length < 0 for length in shape) or math.prod(shape) >= 2**62 or (dtype.itemsize == 0 and shape):
        raise ValueError(f"it claims an array of shape {shape} and dtype {dtype}")
    claimed = file.tell() + math.prod(shape) * dtype.itemsize
    if claimed > size:
        raise ValueError(f"by its header, {dtype} of shape {shape}, it has {claimed} bytes, but there are {size}")
    return claimed


def read_idx(path: Path) -> np.ndarray:
    """Reads the array of an IDX file, decompressed if its name ends in .gz.

    An IDX file consists of two zero bytes, the type, the rank r, r sizes of 32 bits, and the numbers in row-major
    order, all big-endian.

    Raises:
        ValueError: for another header, or a number of bytes that does not match the sizes, or fits into memory.
    """
    size = check_regular(path)
    compressed = path.suffix == ".gz"
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            head = file.read(4)
            rank = head[3] if len(head) == 4 else 0
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or rank > MOST_AXES:
                raise ValueError(
                    f"{path} is not an IDX file: expected it to begin with 00 00, a type from "
                    f"{', '.join(f'{code:02x}' for code in IDX_TYPES)}, and a rank of at most {MOST_AXES}; got "
                    f"{head.hex(' ')}"
                )
            sizes, dtype = file.read(4 * rank), np.dtype(IDX_TYPES[head[2]])
            shape: tuple[int, ...] = ()
            expected = 4 + 4 * rank
            if len(sizes) == 4 * rank:
                shape = tuple(np.frombuffer(sizes, ">u4").tolist())
                expected += math.prod(shape) * dtype.itemsize
            available = MOST_DEFLATED * size + 1000 if compressed else size
            content = b"" if expected > available else file.read(_allowed(path, expected) - 4 - len(sizes) + 1)
            found = 4 + len(sizes) + len(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if found != expected or len(sizes) != 4 * rank:
        found = size if not compressed else found
        raise ValueError(
            f"{path}: by its header, rank {rank} and sizes {shape or 'cut off'}, it has {expected} bytes, "
            f"but the file has {found}"
        )
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _allowed(path: Path, size: int) -> int:
    check_size(path, size, remedy=TO_STREAM)
    return size
