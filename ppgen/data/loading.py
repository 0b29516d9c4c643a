"""From the name of a data set or a path to `Data`: find it, check it, form it, split it, scale it."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppgen.data.checks import check
from ppgen.data.datum import Data
from ppgen.data.files import KINDS, looks_like_file, read
from ppgen.data.forms import FORMS, UNSETTLED, settle
from ppgen.data.images import padded
from ppgen.data.named import NAMED, openml
from ppgen.data.raw import Raw
from ppgen.data.scaler import Scaler
from ppgen.data.splits import split_rows
from ppgen.data.toy import TOY

SCALES = ("none", "standard")
TOY_SIZE = 5000


def load(
    source: str | Path,
    *,
    form: str = "auto",
    scale: str = "auto",
    label: str | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    size: int | None = None,
    features: int | None = None,
    side: int | None = None,
    seed: int = 0,
) -> Data:
    """Load, check, shape, split and scale a data set; the same arguments give the same arrays.

    source: a toy law of `TOY`, "digits", "fashion", "mnist", "openml:NAME", or the path of a file (.csv,
        .parquet, .npy, .npz, .svmlight, IDX) or of a folder of images. A name goes before a path; "./digits" is
        always a path.
    form: "continuous", "integer", "binary" or "unit", see `forms`; "auto" is continuous, "levels" integer for data that
        are made of levels, images say, and continuous for others.
    scale: "standard" gives each column mean 0 and standard deviation 1 over the train rows, "none" leaves all
        as it is, "auto" is standard for continuous tables and none for the rest (toy laws, images, other
        forms).
    label: the column of a table that holds labels.
    validation, test: the fractions held out, each class by its share; see `splits`.
    size: rows of a toy law to draw (5000 if not given), or rows to keep, at random, of anything else.
    features: how many columns an svmlight file has, where its last ones may be empty.
    side: images are padded to so many pixels a side, evenly and with the lowest level: 28 x 28 to 32 x 32, whose
        scales are powers of two.
    seed: of the draws, the rows kept, the split, and the noise of dequantization.

    Raises ValueError for an unknown name (with the nearest known ones), malformed or missing values (naming
    file, line and column where there are any), a form that the data cannot take and options out of range;
    FileNotFoundError for a missing file; TypeError for data that are not real numbers, and for a source that
    is neither name nor path.
    """
    prepare = Preparation(form=form, scale=scale, validation=validation, test=test)
    return prepare(find(source, label=label, size=size, features=features, side=side, seed=seed), source, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How rows become `Data`: form, split and scale, as `load` has them."""

    form: str = "auto"
    scale: str = "auto"
    validation: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        form, scale = self.form, self.scale
        if form not in (*UNSETTLED, *FORMS):
            raise ValueError(f"expected form to be one of {', '.join([*UNSETTLED, *FORMS])}, got {form!r}")
        if scale != "auto" and scale not in SCALES:
            raise ValueError(f"expected scale to be one of {', '.join(['auto', *SCALES])}, got {scale!r}")
        self._check_scale(form)

    def _check_scale(self, form: str) -> None:
        if self.scale == "standard" and form in ("integer", "binary"):
            raise ValueError(f"scale='standard' would undo form={form!r}; choose scale='none' or another form")

    def __call__(
        self, raw: Raw, source: str | Path, *, seed: int, held_out: int = 0, scaler: Scaler | None = None
    ) -> Data:
        """What `load` makes of `raw`, found at `source`.

        held_out: so many rows, the last ones, are the test split, and none of the others.
        scaler: of other data, in whose units these are to be; fitted to the train rows if left out.
        """
        form = settle(self.form, raw.levels)
        self._check_scale(form)
        _, split, noise = np.random.default_rng(seed).spawn(3)
        try:
            x = FORMS[form](raw.x, raw.levels, noise)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        n = len(x) - held_out
        test = 0.0 if held_out else self.test
        rows = split_rows(n, None if raw.y is None else raw.y[:n], validation=self.validation, test=test, rng=split)
        if held_out:
            rows["test"] = np.arange(n, len(x))
        scale = self.scale
        if scale == "auto":
            scale = "standard" if x.ndim == 2 and form == "continuous" and source not in TOY else "none"
        if scaler is None and scale == "standard":
            scaler = Scaler.fit(x[rows["train"]], columns=raw.columns)
        if scaler is not None and form != "integer":
            x = scaler.transform(x)
        if form != "integer":
            with np.errstate(over="ignore"):
                x = x.astype(np.float32)
            check(x, name=f"{source} in float32", columns=raw.columns)
        scaler = Scaler.identity(x.shape[1:]) if scaler is None else scaler
        levels = 2 if form == "binary" else raw.levels
        name = Path(source).name or str(source)
        return Data(name, x, raw.y, rows, form, scaler, raw.columns, raw.label_names, levels)


def find(
    source: str | Path,
    *,
    label: str | None = None,
    size: int | None = None,
    features: int | None = None,
    side: int | None = None,
    seed: int = 0,
) -> Raw:
    """The rows of `load` as they are there, checked: the `size` of them that are drawn or kept."""
    if size is not None and size < 1:
        raise ValueError(f"expected size to be at least one row, got {size}")
    raw = _find(source, label, size, seed, features)
    check(raw.x, name=str(source), columns=raw.columns)
    if side is not None:
        raw = raw._replace(x=padded(raw.x, side, name=str(source)))
    if size is not None and source not in TOY:
        raw = _subset(raw, size, str(source), np.random.default_rng(seed).spawn(3)[0])
    return raw


def _find(source: str | Path, label: str | None, size: int | None, seed: int, features: int | None) -> Raw:
    if isinstance(source, Path):
        return read(source, label, features)
    if not isinstance(source, str):
        raise TypeError(f"expected the name of a data set or a path, got {type(source).__name__}")
    if source.startswith("openml:"):
        return openml(source.removeprefix("openml:"), label)
    if label is not None and (source in TOY or source in NAMED):
        raise ValueError(f"label={label!r} names a column of a table, and {source!r} is none; leave it out")
    if source in TOY:
        x, y = TOY[source](TOY_SIZE if size is None else size, seed=seed)
        return Raw(x, y)
    if source in NAMED:
        return NAMED[source]()
    if looks_like_file(source) or Path(source).exists():
        return read(Path(source), label, features)
    near = difflib.get_close_matches(source, [*TOY, *NAMED])
    raise ValueError(
        f"there is no data set {source!r}{', perhaps ' + ' or '.join(map(repr, near)) if near else ''}. "
        f"Expected a toy law ({', '.join(TOY)}), {', '.join(NAMED)}, openml:NAME, {KINDS}"
    )


def _subset(raw: Raw, size: int, name: str, rng: np.random.Generator) -> Raw:
    if size > len(raw.x):
        raise ValueError(f"size={size} asks for more rows than {name} has, {len(raw.x)}")
    kept = rng.permutation(len(raw.x))[:size]
    return raw._replace(x=raw.x[kept], y=None if raw.y is None else raw.y[kept])
