"""Checks of encoded tables, with errors that name the column."""

import torch
from torch import Tensor

from ppgen.data import Schema

__all__ = ["check_table"]


def check_table(x: Tensor, schema: Schema) -> None:
    """Checks that rows are those of a schema.

    Args:
        x: Rows (n, columns), NaN where a cell is missing.
        schema: The columns.

    Raises:
        TypeError: If they are no tensor of floating point numbers.
        ValueError: If they have another number of columns, infinite numbers, codes of no category, or a row in which
            every cell is missing.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"expected rows of Schema.encode as a tensor of floating point numbers, got {found}")
    if x.dim() != 2 or x.shape[1] != len(schema) or not len(x):
        raise ValueError(
            f"expected rows of shape (n, {len(schema)}), a column each of the schema, got {tuple(x.shape)}"
        )
    for j, column in enumerate(schema.kept):
        values = x[:, j][~x[:, j].isnan()]
        if values.isinf().any():
            raise ValueError(f"column {column.name!r}: expected finite numbers")
        if column.is_coded and len(values):
            most = len(column.categories or ()) - 1
            if bool(((values < 0) | (values > most) | (values != values.round())).any()):
                raise ValueError(f"column {column.name!r}: expected codes 0 .. {most} of its categories")
    empty = torch.nonzero(x.isnan().all(1)).squeeze(1)
    if len(empty):
        raise ValueError(f"row {int(empty[0])} (the first is 0): every cell is missing; leave the row out")
