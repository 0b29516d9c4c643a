"""Two data sets of one kind: a source with labels, and a target whose labels, if any, are only for evaluation."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppgen.data.dataset import Data
from ppgen.data.files import SPARSE_TABLES
from ppgen.data.labels import UNKNOWN
from ppgen.data.loading import READING, Preparation, read_source
from ppgen.data.raw import RawData
from ppgen.data.scaler import Scaler
from ppgen.data.svmlight import pad_columns
from ppgen.data.tables import MissingLabelColumn

__all__ = ["DomainRows", "Domains", "load_domains"]


class DomainRows(NamedTuple):
    """Rows of both domains.

    Attributes:
        x: the data (n, *event_shape).
        y: the labels (n,), `UNKNOWN` in the target.
        d: the domains (n,), 0 of the source and 1 of the target.
    """

    x: np.ndarray
    y: np.ndarray
    d: np.ndarray


@dataclass(frozen=True, eq=False)
class Domains:
    """A source and a target, with the units and label numbers of the source.

    Attributes:
        source: the source, with labels.
        target: the target; its labels, if any, are for evaluation only, `UNKNOWN` in rows without a label.

    Raises:
        ValueError: for a source without labels, and rows of different shapes.
    """

    source: Data
    target: Data

    def __post_init__(self) -> None:
        if self.source.y is None or self.source.y.min() < 0:
            raise ValueError("the source needs labels of all rows")
        if self.source.event_shape != self.target.event_shape:
            raise ValueError(
                f"source and target must have rows of one shape, got {self.source.event_shape} and "
                f"{self.target.event_shape}"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a row of x."""
        return self.source.event_shape

    @property
    def num_classes(self) -> int:
        """The number of labels of the source."""
        assert self.source.classes is not None
        return self.source.classes

    def rows(self, split: str) -> DomainRows:
        """The rows of a split, "train", "validation" or "test": those of the source, then those of the target."""
        source, target = getattr(self.source, split), getattr(self.target, split)
        unknown = np.full(len(target.x), UNKNOWN)
        domains = np.repeat([0, 1], [len(source.x), len(target.x)])
        return DomainRows(np.concatenate([source.x, target.x]), np.concatenate([source.y, unknown]), domains)


def load_domains(
    source: str | Path,
    target: str | Path,
    *,
    source_test: str | Path | None = None,
    target_test: str | Path | None = None,
    seed: int = 0,
    scalers: tuple[Scaler | None, Scaler | None] = (None, None),
    **options: Any,
) -> Domains:
    """Loads both domains as `load` does, with the same options; the scaler of the source scales the target.

    Labels are matched by name, or by number from 0 on if the source has numbers. The target may have labels; they are
    not used in training, and a warning says so. In the target, -1 is an unknown label, unless the source has a class of
    that name. Sparse tables are padded to the columns of the widest. The seed of the target is that of the source plus
    one, so that two toy data sets do not share their draws.

    Args:
        source: the source, as in `load`.
        target: the target, as in `load`.
        source_test: the test rows of the source, in place of the fraction `test`; all of them, whatever `size` is.
        target_test: the test rows of the target, likewise.
        seed: as in `load`.
        scalers: the scalers of source and target; None to fit one to the source, and to use that of the source.
        options: further options of `load`.

    Raises:
        ValueError: for a source without labels or with labels below 0, events of different shapes or columns, and
            labels that the source does not have.
    """
    if options.pop("stream", False):
        raise ValueError("stream=True: both domains of an adaptation are held in memory; leave it out")
    reading = {name: options.pop(name) for name in READING if name in options}
    prepare = Preparation(**options)
    sources = {"source": source, "target": target, "source_test": source_test, "target_test": target_test}
    files = {part: name for part, name in sources.items() if name is not None}
    raws: dict[str, RawData] = {}
    for number, (part, name) in enumerate(files.items()):
        part_options = reading if part in ("source", "target") else reading | {"size": None}
        try:
            raws[part] = read_source(name, seed=seed + number, **part_options)
        except MissingLabelColumn:  # only the source must have labels
            if part not in ("target", "target_test"):
                raise
            raws[part] = read_source(name, seed=seed + number, **part_options | {"label": None})
    if all(Path(name).suffix.lower() in SPARSE_TABLES for name in files.values()):
        raws = dict(zip(raws, pad_columns(list(raws.values())), strict=True))
    _check_same_format(raws, files)
    classes = _class_names(raws["source"], source)
    names = raws["source"].label_names
    raws = {
        part: _match_labels(raw, classes, files[part], part)._replace(label_names=names) for part, raw in raws.items()
    }
    if raws["target"].y is not None:
        warnings.warn(
            f"{target}: the target's labels are not trained on; they are used to evaluate the result", stacklevel=2
        )
    data: list[Data] = []
    for number, domain in enumerate(("source", "target")):
        raw, test = raws[domain], raws.get(f"{domain}_test")
        scaler = scalers[number] or (data[0].scaler if data else None)
        held_out = 0 if test is None else len(test.x)
        raw = raw if test is None else _concatenate(raw, test)
        data.append(prepare(raw, files[domain], seed=seed + number, held_out=held_out, scaler=scaler))
    return Domains(*data)


def _check_same_format(raws: dict[str, RawData], files: dict[str, str | Path]) -> None:
    """Checks that all rows have the shape, columns and levels of the source."""
    reference, source = raws["source"], files["source"]
    for part, raw in raws.items():
        where = f"{part.replace('_', ' ')} must have"
        if raw.x.shape[1:] != reference.x.shape[1:]:
            raise ValueError(
                f"source and {where} rows of one shape, got {reference.x.shape[1:]} of {source} and "
                f"{raw.x.shape[1:]} of {files[part]}"
            )
        if raw.columns != reference.columns:
            raise ValueError(f"source and {where} the same columns, got {reference.columns} and {raw.columns}")
        main = raws[part.removesuffix("_test")]
        if raw.levels != main.levels:
            raise ValueError(f"{files[part]}: expected {main.levels} gray levels as in the rest, got {raw.levels}")


def _class_names(raw: RawData, name: str | Path) -> tuple[str, ...]:
    """The names of the labels of the source, in the order of their numbers."""
    if raw.y is None:
        raise ValueError(f"{name}: the source needs labels, and these data have none; name their column by label=")
    if negative := int((raw.y < 0).sum()):
        raise ValueError(
            f"{name}: {negative} of {len(raw.y)} labels of the source are below 0, the least is {raw.y.min()}; number "
            "classes from 0 on or give them names, and leave rows without a label out"
        )
    return raw.label_names or tuple(map(str, range(int(raw.y.max()) + 1)))


def _match_labels(raw: RawData, classes: tuple[str, ...], name: str | Path, part: str) -> RawData:
    """The rows with the label numbers of the source; without labels if all are unknown."""
    if raw.y is None:
        if part == "source_test":
            raise ValueError(f"{name}: rows of the source need labels, and these have none")
        return raw
    values, codes = np.unique(raw.y, return_inverse=True)
    labels = [raw.label_names[k] if raw.label_names else str(k) for k in values]
    known = {label: number for number, label in enumerate(classes)}
    if part.startswith("target"):
        known.setdefault(str(UNKNOWN), UNKNOWN)
    if unexpected := [label for label in labels if label not in known]:
        count = int(np.isin(codes, [labels.index(label) for label in unexpected]).sum())
        raise ValueError(
            f"{name}: {count} of {len(raw.y)} rows have labels that the source does not have: {', '.join(unexpected)}; "
            f"it has {', '.join(classes)}"
        )
    numbers = np.array([known[label] for label in labels], np.int64)
    return raw._replace(y=numbers[codes] if (numbers != UNKNOWN).any() else None)


def _concatenate(raw: RawData, test: RawData) -> RawData:
    """The rows of one domain, the test rows last; labels are unknown in a part without them."""
    y = None
    if raw.y is not None or test.y is not None:
        y = np.concatenate([np.full(len(part.x), UNKNOWN) if part.y is None else part.y for part in (raw, test)])
    return raw._replace(x=np.concatenate([raw.x, test.x]), y=y, origins=raw.origins + test.origins)
