"""Arrays, frames and data sets of many kinds as tensors; what cannot be converted is refused with what to do."""

from __future__ import annotations

import mmap
import sys
import warnings
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from ppgen.data.checks import check, describe_invalid, name_columns
from ppgen.data.streaming import Stream, StreamedArray
from ppgen.utils.user_warnings import warn_user

__all__ = [
    "as_array",
    "as_tensor",
    "as_tensors",
    "cast_like",
    "check_order_of_rows",
    "check_same_rows",
    "collate",
    "is_hugging_face",
    "read_items",
]

# what to do with arrays that are not numeric, by NumPy's kind
REMEDIES = {
    "O": "an array of Python objects: x.astype(float)",
    "S": "text: x.astype(float) for numbers, np.unique(x, return_inverse=True)[1] for labels",
    "U": "text: x.astype(float) for numbers, np.unique(x, return_inverse=True)[1] for labels",
    "M": "times: (x - x.min()) / np.timedelta64(1, 'D')",
    "m": "durations: x / np.timedelta64(1, 'D')",
    "V": "records: np.lib.recfunctions.structured_to_unstructured(x)",
}
# the signed type for types that torch has few operations for
SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
LOST_SHARE = 0.01  # of a standard deviation, to which a column may be rounded without a warning


def as_tensors(
    data: Any, *, dtype: torch.dtype | None = None, name: str = "data", allow_nan: bool = False
) -> tuple[Tensor, ...]:
    """Converts data to a tuple of tensors with rows first, which are the positional arguments of the programs.

    Args:
        data: a tensor, a NumPy array, perhaps masked, a pandas frame or series, a tuple or list of those, or a torch
            Dataset or a Hugging Face one, whose items are collated and held in memory.
        dtype: the type of floating data; torch's default if left out. Integers stay integers.
        name: what error messages call the data.
        allow_nan: whether NaN, a missing value, is allowed; see `ppgen.training.missing.check_missing`.

    Raises:
        TypeError: for data of another kind or columns that are not numeric.
        ValueError: for NaN, masked or infinite values (with counts, rows and columns), values beyond the range of the
            type, no rows, or arrays of different lengths.
    """
    dtype = dtype or torch.get_default_dtype()
    if isinstance(data, Stream):
        data = data.data
    if type(data) is TensorDataset:
        data = data.tensors
    if isinstance(data, Dataset) or is_hugging_face(data):
        data = collate(data, name)
    parts = tuple(data) if isinstance(data, tuple | list) else (data,)
    if not parts:
        raise ValueError(f"{name}: expected at least one array, got an empty tuple")
    check_order_of_rows(parts, name)
    tensors = []
    for i, part in enumerate(parts):
        label = name if len(parts) == 1 else f"{name}[{i}]"
        array, columns = as_array(part, label)
        check(array, name=label, columns=columns, allow_nan=allow_nan)
        tensors.append(as_tensor(array, dtype, label, columns))
    check_same_rows(tensors, name)
    return tuple(tensors)


def check_same_rows(parts: Sequence[Sized], name: str) -> None:
    """Checks that arrays have the same number of rows.

    Args:
        parts: the arrays.
        name: what errors call them.

    Raises:
        ValueError: if they have not.
    """
    sizes = [len(part) for part in parts]
    if len(set(sizes)) > 1:
        raise ValueError(f"{name}: its arrays have {', '.join(map(str, sizes))} rows; they must have the same number")


def collate(data: Any, name: str) -> Any:
    """The items of a data set, collated.

    Args:
        data: the data set.
        name: what errors call it.

    Raises:
        ValueError: if it has no items, or no numbered ones.
    """
    if isinstance(data, IterableDataset):
        raise ValueError(
            f"{name}: expected a Dataset with a length of at least 1, got {type(data).__name__}, a stream: collect its "
            "items, torch.utils.data.default_collate(list(data)). Only fit with a guide takes streams, with "
            'batch_size= and steps=; guide="auto" needs all rows'
        )
    if not hasattr(data, "__len__") or len(data) == 0:
        raise ValueError(f"{name}: expected a Dataset with a length of at least 1, got {type(data).__name__}")
    return read_items(data, np.arange(len(data)))


def read_items(data: Any, rows: np.ndarray) -> Any:
    """Items of a data set, collated. Those of a Hugging Face data set are in the order of its columns.

    Args:
        data: a torch Dataset, or a Hugging Face one.
        rows: the numbers of the items.
    """
    if is_hugging_face(data):
        formatted = data if data.format["type"] is not None else data.with_format("numpy")
        return tuple(formatted[rows.tolist()].values())
    if callable(getattr(data, "__getitems__", None)):
        return default_collate(data.__getitems__(rows.tolist()))
    items = []
    for row in rows.tolist():
        try:
            items.append(data[row])
        except Exception as error:
            error.add_note(f"(while reading item {row} of {type(data).__name__})")
            raise
    return default_collate(items)


def is_hugging_face(data: Any) -> bool:
    """Whether data are a `datasets.Dataset` or `datasets.IterableDataset` of Hugging Face.

    Args:
        data: the data.
    """
    module = sys.modules.get("datasets")  # whoever has such data has imported it
    return module is not None and isinstance(data, module.Dataset | module.IterableDataset)


def as_array(part: Any, label: str) -> tuple[np.ndarray | Tensor, list[str] | None]:
    """An array or a dense tensor of numbers, with NaN for missing ones, and the names of its columns or None.

    Args:
        part: a tensor, an array, perhaps masked, a frame or a series.
        label: what errors call it.

    Raises:
        TypeError: for anything else, and data that are not numeric.
    """
    columns = [str(c) for c in part.columns] if _is_pandas(part, "DataFrame") else None
    if isinstance(part, StreamedArray):
        part = part[:]
    if _is_pandas(part, "DataFrame", "Series"):
        part = _from_pandas(part, label)
    if isinstance(part, np.ma.MaskedArray):
        part = np.ma.filled(part.astype(float), np.nan) if np.ma.is_masked(part) else part.data
    if isinstance(part, np.ndarray) and part.dtype.kind in REMEDIES:
        raise TypeError(f"{label}: expected real numbers, got dtype {part.dtype}, {REMEDIES[part.dtype.kind]}")
    if isinstance(part, Tensor) and (part.layout != torch.strided or part.is_quantized):
        raise TypeError(
            f"{label}: expected a dense tensor, got one of layout {part.layout} and type {part.dtype}: "
            f"{'x.dequantize()' if part.is_quantized else 'x.to_dense()'}"
        )
    if not isinstance(part, np.ndarray | Tensor):
        raise TypeError(
            f"{label}: expected a NumPy array or a torch tensor, got {type(part).__name__}{_how_to_convert(part)}"
        )
    return part, columns


def as_tensor(
    part: np.ndarray | Tensor,
    dtype: torch.dtype,
    label: str,
    columns: list[str] | None = None,
    *,
    warn: bool = True,
) -> Tensor:
    """A tensor without gradient, of a floating type `dtype` if it is floating, and signed if it is integer.

    An array that has this type shares its memory with the tensor, also if it is mapped from a file or read-only.

    Args:
        part: the numbers.
        dtype: the floating type.
        label: what errors and warnings call them.
        columns: the names of columns, or None.
        warn: whether to warn of a cast.

    Raises:
        ValueError: for numbers beyond the range of the type.
    """
    if isinstance(part, np.ndarray):
        part = part.astype(float) if part.dtype == np.longdouble else part
        # torch refuses other byte orders and negative strides
        part = np.require(_unlocked(part), part.dtype.newbyteorder("="), ["C"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.as_tensor(part).detach()
    if tensor.dtype in SIGNED:
        signed = tensor.to(SIGNED[tensor.dtype])
        if (signed < 0).any():
            raise ValueError(f"{label}: integers of at least 2^63 are beyond the range of torch.int64")
        return signed
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    beyond = (cast.isinf() & tensor.isfinite()).numpy(force=True)
    if beyond.any():
        raise ValueError(
            f"{label}: {describe_invalid(beyond, columns)}, are beyond the range of {dtype}, the dtype of the "
            "programs: change their unit, or make the programs double (module.double(), torch.set_default_dtype)"
        )
    if tensor.dtype == torch.float64 and warn:
        warn_user(f"{label}: float64 cast to {dtype}, the dtype of the programs{_lost_digits(tensor, dtype, columns)}")
    return cast


def cast_like(part: Tensor, like: Tensor, label: str) -> Tensor:
    """A tensor of the type of another, if that changes none of its values, except for the precision of floats.

    Args:
        part: the tensor.
        like: a tensor of the type.
        label: what errors call it.

    Raises:
        ValueError: for fractions in the place of integers, and integers that a floating type does not hold.
    """
    if part.dtype == like.dtype:
        return part
    cast = part.to(like.dtype)
    if part.is_floating_point() and like.is_floating_point():
        return cast
    exact = cast.to(torch.float64) if like.is_floating_point() else cast
    if (changed := exact.to(part.dtype) != part).any():
        raise ValueError(
            f"{label}: {int(changed.sum())} values, such as {part[changed][0].item()}, are not exact in {like.dtype}, "
            "the dtype that the programs use here"
        )
    return cast


def _unlocked(part: np.ndarray) -> np.ndarray:
    """An array that a program may write to without harm, if it is read-only: writing to a file's pages would crash.

    The pages of a mapped file are mapped again, so that a page is copied when it is written to. Read-only views of
    arrays that NumPy owns are left as they are, and others, whose memory may be protected, are copied.
    """
    if part.flags.writeable:
        return part
    if isinstance(part, np.memmap) and isinstance(part.base, mmap.mmap) and part.filename and part.mode == "r":
        order: Any = "C" if part.flags.c_contiguous else "F"
        return np.memmap(part.filename, part.dtype, "c", offset=part.offset, shape=part.shape, order=order)
    owner: Any = part
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return part if owner.base is None and not isinstance(owner, np.memmap) else part.copy()


def check_order_of_rows(parts: tuple[Any, ...], name: str) -> None:
    """Warns if frames have the same rows in another order, since rows are paired by their position.

    Args:
        parts: the parts of the data.
        name: what the warning calls them.
    """
    indexes = [part.index for part in parts if _is_pandas(part, "DataFrame", "Series")]
    for index in indexes[1:]:
        if not index.equals(indexes[0]) and index.sort_values().equals(indexes[0].sort_values()):
            warn_user(
                f"{name}: its frames have one index in different orders, and rows are paired by position: align them, "
                "y.loc[x.index]"
            )


def _is_pandas(part: Any, *kinds: str) -> bool:
    """Whether a part is of one of these classes of pandas, which is slow to import."""
    module = sys.modules.get("pandas")  # whoever has such data has imported it
    return module is not None and isinstance(part, tuple(getattr(module, kind) for kind in kinds))


def _from_pandas(part: Any, label: str) -> np.ndarray:
    """The values of a frame or a series, with NaN for missing ones."""
    import pandas as pd

    frame = part.to_frame() if isinstance(part, pd.Series) else part
    text = [str(c) for c, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if text:
        raise TypeError(
            f"{label}: columns {', '.join(map(repr, text))} are not numeric; encode or drop them (a category by its "
            ".cat.codes, a time by (t - t.min()) / pd.Timedelta(days=1), objects and text by .astype(float))"
        )
    values = part.to_numpy()
    # a frame that mixes numbers with booleans or pandas' own missing values converts to an array of objects
    return part.to_numpy(dtype=float, na_value=np.nan) if values.dtype == object else values


def _how_to_convert(part: Any) -> str:
    if hasattr(part, "toarray"):  # SciPy's sparse matrices
        return ": x.toarray()"
    if hasattr(part, "dataset"):
        return ": give its dataset, and batch_size="
    if isinstance(part, dict):
        return ": give a tuple, in the order of the programs' arguments"
    if isinstance(part, int | float | list | np.number):
        return ": torch.tensor(data)"
    return ": x.to_numpy()" if hasattr(part, "to_numpy") else ""


def _lost_digits(tensor: Tensor, dtype: torch.dtype, columns: list[str] | None) -> str:
    """The columns that a type rounds by more than a hundredth of their standard deviation, as text."""
    finite = tensor.nan_to_num()
    rounded_by = finite.abs().amax(0) * torch.finfo(dtype).eps / 2
    lost = (rounded_by > LOST_SHARE * finite.std(0, correction=0)) & (finite.amax(0) != finite.amin(0))
    if not lost.any():
        return ""
    where = name_columns(np.argwhere(lost.numpy(force=True)), columns)
    return f", which rounds {where} by more than {LOST_SHARE:.0%} of the standard deviation: subtract the mean first"
