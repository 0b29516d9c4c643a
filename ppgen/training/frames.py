"""Programs that take the columns of a pandas frame by name, ``model(income, county, y=None)``.

| column | what the program gets |
|---|---|
| numbers | float64; NaN where a cell is missing |
| category, text | the codes 0, 1, .. of the categories, int64, in their order or that of the alphabet |
| booleans | 0 and 1, int64 |

Codes with missing cells are float64, with NaN. An argument ``num_county`` is the number of categories of the column
"county": the size of its plate.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ppgen.data.schema import Column, Schema, as_frame
from ppgen.tracing.double_precision import DoublePrecision
from ppgen.tracing.programs import get_trace, signature, validation
from ppgen.tracing.sites import Program, did_you_mean
from ppgen.training.first_run import after_first_run
from ppgen.training.missing import check_missing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ByName", "FrameArguments", "is_frame", "program_of_frame", "rebound"]

COUNT = "num_"
SHARE_OF_NUMBERS = 0.5  # of the different texts of a column, from which it looks like one of numbers
# pandas' names of kinds of cells
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "integer-na")
TIMES = ("datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period")


def is_frame(data: Any) -> bool:
    """Whether data are a pandas frame."""
    module = sys.modules.get("pandas")  # whoever has such data has imported it
    return module is not None and isinstance(data, module.DataFrame)


class ByName:
    """A program that is called with the columns of a frame, in the order of its schema.

    Args:
        program: a Pyro program whose arguments are columns, or numbers of their categories.
        arguments: which ones.
    """

    def __init__(self, program: Program, arguments: "FrameArguments") -> None:
        self.program, self.arguments = program, arguments
        if not isinstance(program, torch.nn.Module):
            update_wrapper(self, program, updated=())
        self.__wrapped__ = program

    def __call__(self, *columns: Tensor | None) -> Any:
        """Runs the program."""
        given = dict(zip(self.arguments.schema.names, columns, strict=False))
        return self.program(**given, **self.arguments.sizes)


@dataclass(frozen=True)
class FrameArguments:
    """The arguments of a program that are columns of a frame.

    Attributes:
        schema: these columns, in the order of the arguments.
        counted: the columns of which the program takes the number of categories.
        optional: the columns that new frames need not have, since the default of the argument is None: responses.
    """

    schema: Schema
    counted: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @classmethod
    def of(cls, program: Program, frame: "pd.DataFrame") -> "FrameArguments | None":
        """The arguments of a program that are columns of a frame.

        Args:
            program: a Pyro program.
            frame: the frame.

        Returns:
            The arguments; None for a program that takes the whole frame: one argument, which is no column.

        Raises:
            TypeError: for a column of another kind, such as dates.
            ValueError: for an argument that is no column, and columns of one name.
        """
        frame = as_frame(frame)
        columns = {str(c): frame.iloc[:, i] for i, c in enumerate(frame.columns)}
        parameters = signature(program).parameters.values()
        by_name = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)]
        if not any(p.name in columns for p in by_name) and len(by_name) <= 1:
            return None
        by_name = [
            p for p in by_name if p.name in columns or p.default is p.empty or p.default is None
        ]  # others keep their values
        counted = [p.name.removeprefix(COUNT) for p in by_name if p.name not in columns and p.name.startswith(COUNT)]
        names = [p.name for p in by_name if p.name.removeprefix(COUNT) not in counted or p.name in columns]
        if absent := [name for name in names if name not in columns]:
            raise ValueError(_absent(absent[0], columns))
        schema = Schema(tuple(_column(name, columns[name]) for name in names))
        for name in counted:
            if name not in names or not schema[name].is_coded:
                raise ValueError(
                    f"the program takes {COUNT}{name}, the number of categories of a column {name!r} among its "
                    f"arguments, and {'that column has numbers' if name in names else 'there is none'}: make it one of "
                    f"categories, frame.astype({{{name!r}: 'category'}})"
                )
        return cls(schema, tuple(counted), tuple(p.name for p in by_name if p.name in names and p.default is None))

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that are numbers of categories."""
        return {f"{COUNT}{name}": len(self.schema[name].categories or ()) for name in self.counted}

    @property
    def coords(self) -> dict[str, list[Any]]:
        """The categories of each column that has some."""
        return {column.name: list(column.categories or ()) for column in self.schema if column.is_coded}

    def tensors(self, frame: "pd.DataFrame") -> tuple[Tensor | None, ...]:
        """The columns of a frame, in the order of the arguments.

        Args:
            frame: a frame with these columns, in any order. None stands for an optional column that is absent, or
                has no value.

        Raises:
            TypeError: if it is no frame.
            ValueError: for an absent column, a category that the fit did not have, and a cell that is no number; the
                message names column and row.
        """
        frame = as_frame(frame)
        columns = {str(c): frame.iloc[:, i] for i, c in enumerate(frame.columns)}
        if not len(frame):
            raise ValueError("frame: expected at least one row, got none")
        found: list[Tensor | None] = []
        for column in self.schema:
            if column.name not in columns:
                if column.name not in self.optional:
                    raise ValueError(_absent(column.name, columns))
                found.append(None)
                continue
            if column.name in self.optional and columns[column.name].isna().all():
                found.append(None)
                continue
            encoded = Schema((column,)).encode(columns[column.name].to_frame(column.name))[:, 0]
            numbers = torch.from_numpy(np.ascontiguousarray(encoded))
            found.append(numbers.long() if column.is_coded and not numbers.isnan().any() else numbers)
        return tuple(found)

    def numbers(self, tensors: Sequence[Tensor | None]) -> "pd.DataFrame":
        """The columns as numbers, for messages that name them.

        Args:
            tensors: what `tensors` returned.
        """
        import pandas as pd

        pairs = zip(self.schema.names, tensors, strict=True)
        return pd.DataFrame({name: column.numpy(force=True) for name, column in pairs if column is not None})

    def with_new_categories(self, frame: "pd.DataFrame") -> "FrameArguments":
        """These arguments with the categories that are new in a frame, after those of the fit.

        Args:
            frame: the frame.

        Raises:
            ValueError: if the program does not take the number of categories of a column with new ones.
        """
        columns = {str(c): frame[c] for c in frame.columns}
        grown = []
        for column in self.schema:
            if column.is_coded and column.name in columns and column.dtype != "bool":
                cells = columns[column.name].dropna()
                new = sorted(set(map(_like(column.categories or ()), cells)) - set(column.categories or ()), key=str)
                if new and column.name not in self.counted:
                    raise ValueError(
                        f"new_groups: the column {column.name!r} has {len(new)} categories that the fit did not have, "
                        f"such as {new[0]!r}, and the program does not take their number: write it with an argument "
                        f"{COUNT}{column.name}, the size of a plate, pyro.plate({column.name!r}, {COUNT}{column.name})"
                    )
                column = replace(column, categories=(*(column.categories or ()), *new))
            grown.append(column)
        return replace(self, schema=Schema(tuple(grown)))

    def as_dict(self) -> dict[str, Any]:
        """The arguments as plain values, for JSON."""
        return self.schema.as_dict() | {"counted": list(self.counted), "optional": list(self.optional)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FrameArguments":
        """The arguments of plain values, as `as_dict` makes them.

        Raises:
            ValueError: see `ppgen.data.schema.Schema.from_dict`.
        """
        columns = Schema.from_dict({"columns": values["columns"]})
        return cls(columns, tuple(values["counted"]), tuple(values["optional"]))


def _column(name: str, cells: "pd.Series") -> Column:
    """What a column is to a program."""
    import pandas as pd

    if cells.isna().all():
        raise ValueError(f"frame: column {name!r} has no value in any of its {len(cells)} rows")
    dtype, kind = cells.dtype, pd.api.types.infer_dtype(cells, skipna=True)
    if kind == "boolean":
        return Column(name=name, kind="binary", dtype="bool", categories=(False, True))
    if kind in NUMBERS:
        return Column(name=name, kind="continuous", dtype="float64")
    if kind in TIMES:
        raise TypeError(
            f"frame: column {name!r} has times; give the program a number in a unit of your choice, "
            "(t - t.min()) / pd.Timedelta(days=1)"
        )
    if kind not in ("categorical", "string"):
        raise TypeError(
            f"frame: expected numbers, text, booleans or categories in column {name!r}, got {kind} values of type "
            f"{dtype}; convert it by .astype(float), .astype(str) or .astype('category')"
        )
    if isinstance(dtype, pd.CategoricalDtype):
        values = list(dtype.categories)
        numbers = all(isinstance(v, int | np.integer) and not isinstance(v, bool | np.bool_) for v in values)
        categories: tuple[Any, ...] = tuple(map(int if numbers else str, values))
    else:
        categories = tuple(sorted({str(value) for value in cells.dropna()}))
        numbers = pd.to_numeric(pd.Series(categories, dtype=object), errors="coerce").notna()
        if numbers.mean() > SHARE_OF_NUMBERS:
            raise TypeError(
                f"frame: column {name!r} has numbers as text, such as {categories[int(numbers.argmax())]!r}"
                f"{'' if numbers.all() else f', and {categories[int(numbers.argmin())]!r}'}: convert it by "
                ".astype(float), or by .astype('category') if they are names of groups"
            )
    ordered = isinstance(dtype, pd.CategoricalDtype) and dtype.ordered
    return Column(name=name, kind="ordinal" if ordered else "categorical", dtype="object", categories=categories)


def _like(categories: Sequence[Any]) -> type:
    return int if all(isinstance(category, int) for category in categories) else str


def _absent(name: str, columns: Mapping[str, Any]) -> str:
    return (
        f"frame: there is no column {name!r}, an argument of the program; {did_you_mean(name, columns)} (rename "
        "columns with frame.rename(columns={...}); an argument that is no column gets its value by functools.partial)"
    )


def rebound(program: Program, arguments: FrameArguments) -> ByName:
    """The program of a `ByName`, beneath handlers, with other arguments.

    Args:
        program: the program of a fit to a frame.
        arguments: the arguments.
    """
    inner: Any = program
    while not isinstance(inner, ByName):
        handled = isinstance(inner, partial) and len(inner.args) > 1  # a partial of a handler and a program
        inner = inner.args[1] if handled else getattr(inner, "__wrapped__", None) or inner.func
    return ByName(inner.program, arguments)


def program_of_frame(
    program: Program, arguments: FrameArguments, frame: "pd.DataFrame", *, seed: int
) -> tuple[ByName, tuple[Tensor, ...]]:
    """A program of columns, and the columns of a frame as it takes them: codes are floats where it needs floats.

    Args:
        program: a Pyro program.
        arguments: its arguments.
        frame: the frame.
        seed: the seed of a first run.

    Raises:
        TypeError: if the program uses a column of numbers as indices.
        ValueError: for missing cells that the program does not leave out, and observations outside of the support of
            their distribution.
    """
    bound: Any = ByName(program, arguments)
    tensors: Any = arguments.tensors(frame)
    double = DoublePrecision(bound)
    check_missing(double, tensors, arguments.numbers(tensors), name="frame")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"data.*cast to")  # a code is a number where its distribution takes numbers
        tensors = after_first_run(double, None, tensors, dtype=torch.float64, seed=seed)
    try:
        with torch.no_grad(), torch.random.fork_rng(), validation(False), pyro.get_param_store().scope():
            get_trace(double, *tensors)
    except IndexError as error:
        if "used as indices" not in str(error):
            raise
        names = ", ".join(repr(column.name) for column in arguments.schema if not column.is_coded)
        raise TypeError(
            f"frame: the program uses a column of numbers as indices, one of {names}: make it a column of categories, "
            "frame.astype({name: 'category'}), whose codes are integers"
        ) from error
    return bound, tensors
