"""Two data sets of one kind: a source with labels, and a target whose labels, if any, are for judging alone."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .datum import Data
from .loading import load
from .svmlight import SUFFIXES, width
from .tables import NoColumn

__all__ = ["Domains", "Rows", "load_domains"]


class Rows(NamedTuple):
    """Rows of both domains: x (n, *event_shape), labels y (n,), -1 in the target, and domains d (n,), 0 and 1."""

    x: np.ndarray
    y: np.ndarray
    d: np.ndarray


@dataclass(frozen=True, eq=False)
class Domains:
    """A source and a target in the source's units and labels. `target.y` is None, or (n,) for judging."""

    source: Data
    target: Data

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.source.event_shape

    @property
    def num_classes(self) -> int:
        assert self.source.y is not None
        return int(self.source.y.max()) + 1

    def rows(self, split: str) -> Rows:
        """The rows of a split, "train", "validation" or "test", of source and target one after the other."""
        source, target = getattr(self.source, split), getattr(self.target, split)
        unknown = np.full(len(target.x), -1)
        domains = np.repeat([0, 1], [len(source.x), len(target.x)])
        return Rows(np.concatenate([source.x, target.x]), np.concatenate([source.y, unknown]), domains)


def load_domains(source: str | Path, target: str | Path, *, seed: int = 0, **options: Any) -> Domains:
    """Both by `load`, with the same options; the target goes through the map that scales the source.

    Sparse tables get the columns of the wider one. The target is drawn and split under the seed after the source's, so
    that two toy laws do not share their draws.

    Labels of the target are never trained on: a warning says so where there are any.

    Raises:
        ValueError: for a source without labels, events that differ in shape or in columns, and labels of the target
            that the source does not have.
    """
    paths = [Path(name) for name in (source, target)]
    if options.get("features") is None and all(path.suffix in SUFFIXES and path.is_file() for path in paths):
        options = options | {"features": max(map(width, paths))}
    first = load(source, seed=seed, **options)
    try:
        second = load(target, seed=seed + 1, **options)
    except NoColumn:  # the source's labels alone have a column
        second = load(target, seed=seed + 1, **{**options, "label": None})
    if first.y is None:
        raise ValueError(f"{source}: the source needs labels, and these data have none; name their column by label=")
    if first.event_shape != second.event_shape:
        raise ValueError(
            f"source and target must have rows of one shape, got {first.event_shape} of {source} and "
            f"{second.event_shape} of {target}"
        )
    if first.columns != second.columns:
        raise ValueError(f"source and target must have the same columns, got {first.columns} and {second.columns}")
    moved = first.scaler.transform(second.scaler.inverse(second.x)) if first.form == "continuous" else second.x
    second = replace(
        second, x=moved, scaler=first.scaler, y=_labels_of(first, second, target), label_names=first.label_names
    )
    if second.y is not None:
        warnings.warn(f"{target}: the target's labels are not trained on; they serve to judge the result", stacklevel=2)
    return Domains(first, second)


def _labels_of(source: Data, target: Data, name: str | Path) -> np.ndarray | None:
    """The target's labels in the source's numbers."""
    if target.y is None:
        return None
    assert source.y is not None
    theirs = target.label_names or tuple(map(str, range(int(target.y.max()) + 1)))
    ours = source.label_names or tuple(map(str, range(int(source.y.max()) + 1)))
    if unknown := [theirs[k] for k in np.unique(target.y) if theirs[k] not in ours]:
        raise ValueError(
            f"{name}: labels that the source does not have: {', '.join(unknown)}; it has {', '.join(ours)}"
        )
    return np.array([ours.index(label) if label in ours else -1 for label in theirs], np.int64)[target.y]
