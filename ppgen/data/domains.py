"""Two data sets of one kind: a source with labels, and a target whose labels, if any, are for judging alone."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppgen.data.datum import Data
from ppgen.data.labels import UNKNOWN
from ppgen.data.loading import Preparation, find
from ppgen.data.raw import Raw
from ppgen.data.svmlight import SUFFIXES, widened
from ppgen.data.tables import NoColumn

__all__ = ["Domains", "Rows", "load_domains"]


class Rows(NamedTuple):
    """Rows of both domains: x (n, *event_shape), labels y (n,), `UNKNOWN` in the target, domains d (n,), 0 and 1."""

    x: np.ndarray
    y: np.ndarray
    d: np.ndarray


@dataclass(frozen=True, eq=False)
class Domains:
    """A source and a target in the source's units and labels.

    `target.y` is None, or (n,) to judge by, `UNKNOWN` where a row has no label.
    """

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
        unknown = np.full(len(target.x), UNKNOWN)
        domains = np.repeat([0, 1], [len(source.x), len(target.x)])
        return Rows(np.concatenate([source.x, target.x]), np.concatenate([source.y, unknown]), domains)


def load_domains(
    source: str | Path,
    target: str | Path,
    *,
    source_test: str | Path | None = None,
    target_test: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> Domains:
    """Both as `load` has them, with the same options; the target goes through the map that scales the source.

    Labels meet by name, or by number where the source has numbers, from 0 on. The target may have labels: those of rows
    that are trained on are left unread, which a warning says. -1 in its place is a label that is unknown, unless the
    source has a class of that name. Sparse tables get the columns of the widest. The target is drawn and split under
    the seed after the source's, so that two toy laws do not share their draws.

    Args:
        source_test, target_test: data of a domain that are its test split, in place of the share `test` of the others;
            all rows of them, whatever `size` is.
        options: of `load`.

    Raises:
        ValueError: for a source with rows without labels, or labels below 0; events that differ in shape or in columns;
            and labels that the source does not have.
    """
    finding = {name: options.pop(name) for name in ("label", "size", "features", "side") if name in options}
    prepare = Preparation(**options)
    given = {"source": source, "target": target, "source_test": source_test, "target_test": target_test}
    files = {part: name for part, name in given.items() if name is not None}
    raws: dict[str, Raw] = {}
    for number, (part, name) in enumerate(files.items()):
        wanted = finding if part in ("source", "target") else finding | {"size": None}
        try:
            raws[part] = find(name, seed=seed + number, **wanted)
        except NoColumn:  # of labels, which the source must have
            if part not in ("target", "target_test"):
                raise
            raws[part] = find(name, seed=seed + number, **wanted | {"label": None})
    if all(Path(name).suffix.lower() in SUFFIXES for name in files.values()):
        raws = dict(zip(raws, widened(list(raws.values())), strict=True))
    _check_kind(raws, files)
    classes = _classes(raws["source"], source)
    names = raws["source"].label_names
    raws = {part: _numbered(raw, classes, files[part], part)._replace(label_names=names) for part, raw in raws.items()}
    if raws["target"].y is not None:
        warnings.warn(f"{target}: the target's labels are not trained on; they serve to judge the result", stacklevel=2)
    made: list[Data] = []
    for number, domain in enumerate(("source", "target")):
        raw, test = raws[domain], raws.get(f"{domain}_test")
        scaler = made[0].scaler if made else None
        held_out = 0 if test is None else len(test.x)
        raw = raw if test is None else _joined(raw, test)
        made.append(prepare(raw, files[domain], seed=seed + number, held_out=held_out, scaler=scaler))
    return Domains(*made)


def _check_kind(raws: dict[str, Raw], files: dict[str, str | Path]) -> None:
    """Refuses data whose rows are not like the source's."""
    ours, source = raws["source"], files["source"]
    for part, raw in raws.items():
        where = f"{part.replace('_', ' ')} must have"
        if raw.x.shape[1:] != ours.x.shape[1:]:
            raise ValueError(
                f"source and {where} rows of one shape, got {ours.x.shape[1:]} of {source} and "
                f"{raw.x.shape[1:]} of {files[part]}"
            )
        if raw.columns != ours.columns:
            raise ValueError(f"source and {where} the same columns, got {ours.columns} and {raw.columns}")
        main = raws[part.removesuffix("_test")]
        if raw.levels != main.levels:
            raise ValueError(f"{files[part]}: expected {main.levels} gray levels as in the rest, got {raw.levels}")


def _classes(raw: Raw, name: str | Path) -> tuple[str, ...]:
    """The names of the source's labels, in the order of their numbers."""
    if raw.y is None:
        raise ValueError(f"{name}: the source needs labels, and these data have none; name their column by label=")
    if bad := int((raw.y < 0).sum()):
        raise ValueError(
            f"{name}: {bad} of {len(raw.y)} labels of the source are below 0, the least is {raw.y.min()}; number "
            "classes from 0 on or give them names, and leave rows without a label out"
        )
    return raw.label_names or tuple(map(str, range(int(raw.y.max()) + 1)))


def _numbered(raw: Raw, classes: tuple[str, ...], name: str | Path, part: str) -> Raw:
    """The rows with labels in the source's numbers; without, where all of them are unknown."""
    if raw.y is None:
        if part == "source_test":
            raise ValueError(f"{name}: rows of the source need labels, and these have none")
        return raw
    values, where = np.unique(raw.y, return_inverse=True)
    found = [raw.label_names[k] if raw.label_names else str(k) for k in values]
    known = {label: number for number, label in enumerate(classes)}
    if part.startswith("target"):
        known.setdefault(str(UNKNOWN), UNKNOWN)
    if strangers := [label for label in found if label not in known]:
        count = int(np.isin(where, [found.index(label) for label in strangers]).sum())
        raise ValueError(
            f"{name}: {count} of {len(raw.y)} rows have labels that the source does not have: {', '.join(strangers)}; "
            f"it has {', '.join(classes)}"
        )
    numbers = np.array([known[label] for label in found], np.int64)
    return raw._replace(y=numbers[where] if (numbers != UNKNOWN).any() else None)


def _joined(raw: Raw, test: Raw) -> Raw:
    """Rows of one domain, the held-out ones last; labels are unknown where one part alone has any."""
    y = None
    if raw.y is not None or test.y is not None:
        y = np.concatenate([np.full(len(part.x), UNKNOWN) if part.y is None else part.y for part in (raw, test)])
    return raw._replace(x=np.concatenate([raw.x, test.x]), y=y)
