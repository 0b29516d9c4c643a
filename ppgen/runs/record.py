"""`Record`: what a run folder holds of its data and of the machine, so that the run can be used without either.

Of each data set it holds the scaler, the form, the shape of a row, the names of columns and labels, the row numbers of
the splits, the digest of all rows, and the first rows of each split. A model is built, sampled, diagnosed and given
data in the units of the source from these alone.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ppgen
from ppgen.data import Data, Scaler
from ppgen.data.origin import Origin
from ppgen.infer.checkpoint_file import CheckpointError, read, with_prefix, write
from ppgen.runs.folder import RECORD
from ppgen.runs.stored import ORIGIN, SPLITS, check_part, check_record

__all__ = ["KEPT_ROWS", "KeptData", "Record"]

FORMAT = "run folder 1"
KEPT_ROWS = 256  # at most so many rows of a split are kept
KEPT_BYTES = 2**23  # and at most so many bytes, but at least one row
FIELDS = ("name", "form", "columns", "label_names", "levels", "classes")


@dataclass(frozen=True)
class KeptData:
    """What is kept of a data set.

    Attributes:
        kept: the first rows of each split, as a data set with the scaler and the names of the whole one.
        splits: the row numbers of the splits of the whole data set.
    """

    kept: Data
    splits: dict[str, np.ndarray]

    @classmethod
    def of(cls, data: Data) -> KeptData:
        """Keeps the first rows of each split of a data set."""
        row_bytes = int(np.prod(data.event_shape)) * data.x.dtype.itemsize
        count = max(1, min(KEPT_ROWS, KEPT_BYTES // max(1, row_bytes)))
        parts = {name: getattr(data, name) for name in data.rows}
        x = np.concatenate([part.x[:count] for part in parts.values()])
        y = None if data.y is None else np.concatenate([part.y[:count] for part in parts.values()])
        return cls(replace(data, x=x, y=y, rows=_ranges([len(part.x[:count]) for part in parts.values()])), data.rows)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, and JSON values."""
        kept = self.kept
        arrays = {"x": kept.x, "shift": kept.scaler.shift, "scale": kept.scaler.scale}
        arrays |= {} if kept.y is None else {"y": kept.y}
        arrays |= {f"splits/{name}": rows for name, rows in self.splits.items()}
        metadata = {name: getattr(kept, name) for name in FIELDS}
        metadata["kept"] = [len(rows) for rows in kept.rows.values()]
        metadata["origins"] = [origin.as_dict() for origin in kept.origins]
        return {name: torch.tensor(array) for name, array in arrays.items()}, metadata

    def conform(self, data: Data) -> Data:
        """Data that have changed, with the label numbers of the run.

        Args:
            data: the data as they are now.

        Raises:
            ValueError: If their rows have another shape, other columns or labels that the run does not know.
        """
        kept = self.kept
        for what in ("event_shape", "columns", "levels"):
            if (then := getattr(kept, what)) != (now := getattr(data, what)):
                raise ValueError(
                    f"{data.name}: {what} was {then} in the training and is {now}: the model cannot use it"
                )
        if data.y is None or data.label_names == kept.label_names:
            return data
        known = {name: number for number, name in enumerate(kept.label_names or ())}
        names = data.label_names or tuple(map(str, range(data.classes or 0)))
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{data.name}: labels that the run does not know: {', '.join(unknown)}")
        y = np.array([known[name] for name in names], np.int64)[data.y]
        return replace(data, y=y, label_names=kept.label_names, classes=kept.classes)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> KeptData:
        """What `to_tensors` returned, and `check_record` has checked.

        Raises:
            ValueError: If the tensors are not those that the metadata describe.
        """
        arrays = {name: _array(name, tensor) for name, tensor in tensors.items()}
        check_part(arrays, metadata)
        fields = {name: metadata[name] for name in FIELDS}
        for name in ("columns", "label_names"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        scaler = Scaler(arrays["shift"], arrays["scale"])
        origins = tuple(Origin(**{name: origin[name] for name in ORIGIN}) for origin in metadata["origins"])
        rows = _ranges(metadata["kept"])
        kept = Data(x=arrays["x"], y=arrays.get("y"), rows=rows, scaler=scaler, origins=origins, **fields)
        return cls(kept, {name: arrays[f"splits/{name}"] for name in rows})


@dataclass(frozen=True)
class Record:
    """What a run folder holds of its data and of the machine.

    Attributes:
        parts: what is kept of each data set, by the part that it has in the run.
        seed: the seed of the run.
        threads: the number of torch's threads.
        versions: the versions of Python and of the packages that computed the result.
    """

    parts: dict[str, KeptData]
    seed: int
    threads: int = field(default_factory=torch.get_num_threads)
    versions: dict[str, str] = field(default_factory=lambda: _versions())

    @classmethod
    def of(cls, parts: Mapping[str, Data], seed: int) -> Record:
        """The record of a run that begins now.

        Args:
            parts: the data sets by their part in the run.
            seed: the seed of the run.
        """
        return cls({name: KeptData.of(data) for name, data in parts.items()}, seed)

    @property
    def kept(self) -> dict[str, Data]:
        """The rows that are kept of each data set."""
        return {name: part.kept for name, part in self.parts.items()}

    def write(self, folder: Path) -> None:
        """Writes the record into a run folder."""
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, Any] = {"format": FORMAT, "parts": {}}
        metadata |= {name: getattr(self, name) for name in ("seed", "threads", "versions")}
        for name, part in self.parts.items():
            arrays, metadata["parts"][name] = part.to_tensors()
            tensors |= {f"{name}/{key}": array for key, array in arrays.items()}
        write(folder / RECORD, tensors, metadata)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Reads the record of a run folder.

        Raises:
            FileNotFoundError: If the folder has none.
            CheckpointError: If it is damaged, or another version of ppgen wrote it.
        """
        path = folder / RECORD
        tensors, metadata = read(path)
        if (found := metadata.get("format")) != FORMAT:
            raise CheckpointError(
                f"{path}: not the record of a run, or of another version of ppgen (format {str(found)[:40]!r}; this "
                f"version reads {FORMAT!r}); train the run again, or read it with the version that wrote it"
            )
        try:
            check_record(metadata)
            parts = {k: KeptData.from_tensors(with_prefix(tensors, k), about) for k, about in metadata["parts"].items()}
        except ValueError as error:
            raise CheckpointError(f"{path}: not a whole record of a run: {error}; train the run again") from error
        return cls(parts, metadata["seed"], metadata["threads"], metadata["versions"])

    def origins(self) -> Iterator[Origin]:
        """Where all rows come from."""
        for part in self.parts.values():
            yield from part.kept.origins

    def locate(self, source: str | None) -> str | None:
        """Where a source is: at its absolute path if that exists, which does not depend on the working directory.

        A path that does not end in the source is none that `Origin.of` wrote, and leads to another file.
        """
        for origin in self.origins():
            if origin.source != source or origin.path is None or source is None:
                continue
            path, named = Path(origin.path), Path(source).parts
            if path.is_absolute() and named and path.parts[-len(named) :] == named and path.exists():
                return origin.path
        return source

    def changes(self, parts: Mapping[str, Data]) -> list[str]:
        """What differs between the data of the record and others, in words.

        Args:
            parts: the other data sets.
        """
        others = [origin for data in parts.values() for origin in data.origins]
        pairs = zip(self.origins(), others, strict=True)
        return [f"{then.source} had {then} and has {now}" for then, now in pairs if then != now]


def _ranges(sizes: list[int]) -> dict[str, np.ndarray]:
    """Consecutive row numbers of each split."""
    ends = np.cumsum(sizes)
    return {name: np.arange(end - size, end) for name, size, end in zip(SPLITS, sizes, ends, strict=True)}


def _array(name: str, tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        raise ValueError(f"{name}: {tensor.dtype}, which NumPy does not have")
    return tensor.numpy()


def _versions() -> dict[str, str]:
    packages = {"torch": "torch", "pyro": "pyro-ppl", "numpy": "numpy"}
    return {
        "ppgen": ppgen.__version__,
        "python": platform.python_version(),
        **{name: version(package) for name, package in packages.items()},
    }
