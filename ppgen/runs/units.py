"""`Units`: users' data and labels as a model takes them, and what a model returns in the units of the source."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.data import FORMS, Data, check
from ppgen.tracing.sites import did_you_mean

__all__ = ["Units"]


class Units:
    """The conversion between the source of a data set and a model of it.

    Tables have the units of their file. Images are gray levels, as integers, or what `Data.form` makes of these, as
    `Trained.sample` returns them: numbers from 0 to 1 unless the model scores the levels themselves.

    Args:
        data: the data set; of its rows only the shape matters.
        device: the device of the model.
    """

    def __init__(self, data: Data, device: torch.device) -> None:
        self.data, self.device = data, device

    def to_model(self, x: Any, *, seed: int = 0) -> Tensor:
        """Rows as the model takes them.

        Args:
            x: rows (n, *event_shape), an array, a tensor or a frame with the columns of the table.
            seed: the seed of the noise that dequantizes gray levels.

        Raises:
            TypeError: for data that are not numbers.
            ValueError: for columns, a shape or values that are not those of the data.
        """
        data = self.data
        array = self._array(x)
        if array.shape[1:] != data.event_shape or array.ndim == 0:
            raise ValueError(f"x: expected rows of shape {data.event_shape}, (n, ...), got shape {array.shape}")
        check(array, name="x", columns=data.columns)
        # the levels of binary data are 0 and 1, and not the gray levels of their source
        levels = data.levels if array.dtype.kind in "iub" and data.form != "binary" else None
        if levels is not None and not ((array >= 0) & (array < levels)).all():
            raise ValueError(f"x: expected gray levels 0 .. {levels - 1}, got {array.min()} to {array.max()}")
        array = FORMS[data.form](array, levels, np.random.default_rng(seed))
        if data.form != "integer":
            array = data.scaler.transform(array).astype(np.float32)
        return torch.as_tensor(array, device=self.device)

    def from_model(self, x: Tensor) -> np.ndarray:
        """Rows that a model returns, in the units of the source."""
        return self.data.scaler.inverse(x.numpy(force=True))

    def label_numbers(self, y: Any, n: int) -> Tensor:
        """Labels as numbers (n,).

        Args:
            y: labels (n,), or one for all rows: the names of the source, or numbers.
            n: the number of rows.

        Raises:
            ValueError: for labels that the data do not have, or another number of them.
        """
        given, names, classes = np.atleast_1d(np.asarray(y)), self.data.label_names, self.data.classes or 0
        if given.dtype.kind in "OUS":
            known = {name: number for number, name in enumerate(names or map(str, range(classes)))}
            if unknown := [str(label) for label in given if str(label) not in known]:
                raise ValueError(f"no label {unknown[0]!r}; {did_you_mean(unknown[0], list(known))}")
            given = np.array([known[str(label)] for label in given])
        if given.dtype.kind not in "iu" or given.shape not in ((1,), (n,)):
            raise ValueError(f"labels: expected names or numbers, {n} or one for all rows, got {y!r}")
        if given.size and (given.min() < 0 or given.max() >= classes):
            raise ValueError(f"labels: expected numbers 0 .. {classes - 1}, got {given.min()} to {given.max()}")
        return torch.as_tensor(given.astype(np.int64), device=self.device).expand(n)

    def label_names(self, y: Tensor) -> np.ndarray:
        """Numbers of labels as the source writes them: their names, or the numbers themselves."""
        numbers, names = y.numpy(force=True), self.data.label_names
        return numbers if names is None else np.array(names)[numbers]

    def _array(self, x: Any) -> np.ndarray:
        """A NumPy array, of the columns of the table if a frame is given."""
        columns = self.data.columns
        if columns is not None and hasattr(x, "columns"):
            present: Sequence[str] = [str(name) for name in x.columns]
            if missing := [name for name in columns if name not in present]:
                raise ValueError(f"x: column {missing[0]!r} is missing; {did_you_mean(missing[0], present)}")
            x = x[list(columns)].to_numpy()
        return x.numpy(force=True) if isinstance(x, Tensor) else np.asarray(x)
