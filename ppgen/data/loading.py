"""Reading of a data set by its name or path, and its preparation: form, split, scale."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ppgen.data.checks import FiniteCheck, check
from ppgen.data.dataset import Data
from ppgen.data.files import KINDS, looks_like_file, read
from ppgen.data.forms import DEFERRED, FORMS, resolve_form
from ppgen.data.image_format import ImageFormat
from ppgen.data.images import pad_images
from ppgen.data.named import NAMED, openml
from ppgen.data.origin import Origin
from ppgen.data.raw import RawData
from ppgen.data.scaler import Scaler
from ppgen.data.splits import SplitBy, split_rows
from ppgen.data.streamed_files import open_stream
from ppgen.data.streaming import RowNoise, StreamedArray
from ppgen.data.toy import TOY

__all__ = ["READING", "Preparation", "load", "read_source"]

SCALES = ("none", "standard")
SPARSE_SHARE = 0.05  # of values that are not zero, below which a table is sparse
TOY_SIZE = 5000  # the default number of rows of a toy data set
# the options of `load` that `read_source` takes
READING = ("label", "split", "size", "features", "resize", "channels", "side", "stream")


def load(
    source: str | Path,
    *,
    form: str = "auto",
    scale: str = "auto",
    label: str | None = None,
    split: str = "random",
    validation: float = 0.1,
    test: float = 0.2,
    size: int | None = None,
    features: int | None = None,
    resize: int | None = None,
    channels: int | None = None,
    side: int | None = None,
    stream: bool = False,
    seed: int = 0,
) -> Data:
    """Reads, checks, converts, splits and scales a data set; the same arguments give the same arrays.

    Args:
        source: a toy data set of `TOY`, "digits", "fashion", "mnist", "mnist8", "openml:NAME", or the path of a file
            (.csv, .parquet, .npy, .npz, .svmlight, .libsvm, IDX) or of a folder of images. A name takes precedence over
            a path; "./digits" is always a path.
        form: "continuous", "integer", "binary" or "unit", see `ppgen.data.forms`; "auto" is "continuous", or with
            ``ppgen train`` the form that the model scores, and "levels" is "integer" for data with gray levels, such
            as images, and "continuous" for others.
        scale: "standard" gives each column mean 0 and standard deviation 1 on the training rows, "none" keeps the data,
            and "auto" is "standard" for continuous tables and "none" for sparse ones (of which less than a twentieth
            is not zero, such as counts of words: divided by their standard deviations, the rarest would be the
            largest), toy data sets, images and other forms.
        label: the column of labels of a table.
        split: how rows are split: "random"; "group:COLUMN" of a table, such as "group:customer", so that all rows with
            one value of that column are in one split; or "time:COLUMN", so that the latest rows are the test rows, and
            those before them the validation rows. The column is not part of x. See `ppgen.data.splits`.
        validation: the fraction of validation rows, see `ppgen.data.splits`.
        test: the fraction of test rows.
        size: the number of rows of a toy data set (5000 by default), or of rows to keep, at random, of other data.
        features: the number of columns of an svmlight file; None for the largest index plus one.
        resize: the side in pixels of square images, for images of any size: the largest square at the center of each
            image is resized. A folder whose images differ in size needs it.
        channels: 1 for gray images, 3 for colors; None for those of the files, which must agree. Transparent pixels of
            files are white.
        side: the side in pixels to which images are padded, evenly and with the lowest level, for example from 28 to
            32, a power of two; after `resize`.
        stream: whether rows stay on disk and are read when they are needed, for files .npy and .parquet and folders of
            images larger than memory; without it, a warning names a file larger than what is free. They have the same
            values, splits and scaler as otherwise. What can be wrong with a row is noticed when it is read: at once if
            a scaler is fitted, which reads all rows once.
        seed: seed of the toy data, the rows kept, the split, and the dequantization noise.

    Raises:
        ValueError: for an unknown name (the message suggests similar ones), malformed or missing values (it names the
            file, line and column), data without the given form, and options out of range.
        FileNotFoundError: for a missing file.
        TypeError: for data that are not real numbers, and a source that is neither a name nor a path.

    Example:
        >>> from ppgen import data
        >>> moons = data.load("moons", size=100)
        >>> moons
        Data('moons', 100 rows of (2,), continuous: train 70, validation 10, test 20)
        >>> moons.train.x.shape, moons.train.y.shape
        ((70, 2), (70,))
    """
    prepare = Preparation(form=form, scale=scale, validation=validation, test=test)
    images: dict[str, Any] = {"resize": resize, "channels": channels, "side": side}
    raw = read_source(
        source, label=label, split=split, size=size, features=features, stream=stream, seed=seed, **images
    )
    return prepare(raw, source, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The preparation of raw data: form, split and scale.

    Attributes:
        form: as in `load`.
        scale: as in `load`.
        validation: as in `load`.
        test: as in `load`.

    Raises:
        ValueError: for options that are unknown or exclude each other.
    """

    form: str = "auto"
    scale: str = "auto"
    validation: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        form, scale = self.form, self.scale
        if form not in (*DEFERRED, *FORMS):
            raise ValueError(f"expected form to be one of {', '.join([*DEFERRED, *FORMS])}, got {form!r}")
        if scale != "auto" and scale not in SCALES:
            raise ValueError(f"expected scale to be one of {', '.join(['auto', *SCALES])}, got {scale!r}")
        self._check_scale(form)

    def _check_scale(self, form: str) -> None:
        if self.scale == "standard" and form in ("integer", "binary"):
            raise ValueError(f"scale='standard' would undo form={form!r}; choose scale='none' or another form")

    def __call__(
        self, raw: RawData, source: str | Path, *, seed: int, held_out: int = 0, scaler: Scaler | None = None
    ) -> Data:
        """Converts, splits and scales data.

        Args:
            raw: the data.
            source: their source, for the name and errors.
            seed: seed of the split and the dequantization noise.
            held_out: the number of last rows that are the test split; 0 for a random one.
            scaler: the scaler to use, for example that of other data; None to fit one to the training rows.

        Raises:
            ValueError: for data without the given form, that are not finite in float32, or without a training row.
        """
        form = resolve_form(self.form, raw.levels)
        self._check_scale(form)
        _, split, noise = np.random.default_rng(seed).spawn(3)
        x = _apply(_Form(form, raw.levels, noise, str(source)), raw.x)
        n = len(x) - held_out
        test = 0.0 if held_out else self.test
        y = None if raw.y is None else raw.y[:n]
        rows = split_rows(n, y, validation=self.validation, test=test, rng=split, keys=raw.keys)
        if held_out:
            rows["test"] = np.arange(n, len(x))
        scale = self.scale
        if scale == "auto":
            table = x.ndim == 2 and form == "continuous" and source not in TOY
            scale = "standard" if table and not _is_sparse(x) else "none"
        if scaler is None and scale == "standard":
            scaler = Scaler.fit(x, rows=rows["train"], columns=raw.columns, name=str(source))
        if form != "integer":
            x = _apply(_Scaled(scaler, str(source), raw.columns), x)
        scaler = Scaler.identity(x.shape[1:]) if scaler is None else scaler
        levels = 2 if form == "binary" else raw.levels
        name = Path(source).name or str(source)
        classes = None if raw.y is None else int(raw.y.max()) + 1
        return Data(name, x, raw.y, rows, form, scaler, raw.columns, raw.label_names, levels, classes, raw.origins)


def _is_sparse(x: Any) -> bool:
    """Whether nearly all values of a table in memory are zero."""
    return isinstance(x, np.ndarray) and bool(np.count_nonzero(x) < SPARSE_SHARE * x.size)


@dataclass(frozen=True, eq=False)
class _Form:
    """The conversion to a form, of an array or of the rows of one."""

    form: str
    levels: int | None
    noise: np.random.Generator
    source: str

    def __call__(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        convert = FORMS[self.form]
        noise: Any = self.noise if rows is None else RowNoise(self.noise, rows)
        try:
            return convert(x, self.levels, noise)
        except ValueError as error:
            for i, row in enumerate(() if rows is None else rows):
                try:
                    convert(x[i : i + 1], self.levels, noise)
                except ValueError as first:
                    raise ValueError(f"{self.source}, row {row}: {first}") from None
            raise ValueError(f"{self.source}: {error}") from error


@dataclass(frozen=True, eq=False)
class _Scaled:
    """The conversion to the scaled data in float32, checked, of an array or of the rows of one."""

    scaler: Scaler | None
    source: str
    columns: tuple[str, ...] | None

    def __call__(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        x = x if self.scaler is None else self.scaler.transform(x)
        with np.errstate(over="ignore"):
            x = x.astype(np.float32, copy=False)
        name = f"{self.source} in float32"
        if rows is None:
            check(x, name=name, columns=self.columns)
        elif not np.isfinite(x).all():
            finite = FiniteCheck(name, self.columns, of=" read together")
            finite.add(x, rows)
            finite.finish()
        return x


@dataclass(frozen=True)
class _Padded:
    """Images of another side."""

    side: int
    source: str

    def __call__(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        return pad_images(x, self.side, name=self.source)


def _apply(convert: Callable[..., np.ndarray], x: Any) -> Any:
    """Converts an array, or each row of a streamed one when it is read."""
    return x.map(convert) if isinstance(x, StreamedArray) else convert(x)


def read_source(
    source: str | Path,
    *,
    label: str | None = None,
    split: str = "random",
    size: int | None = None,
    features: int | None = None,
    resize: int | None = None,
    channels: int | None = None,
    side: int | None = None,
    stream: bool = False,
    seed: int = 0,
) -> RawData:
    """Reads and checks the rows of a source.

    Args:
        source: as in `load`.
        label: as in `load`.
        split: as in `load`.
        size: as in `load`.
        features: as in `load`.
        resize: as in `load`.
        channels: as in `load`.
        side: as in `load`.
        stream: as in `load`.
        seed: as in `load`.

    Raises:
        ValueError: as `load` does.
        FileNotFoundError: as `load` does.
        TypeError: as `load` does.
    """
    if size is not None and size < 1:
        raise ValueError(f"expected size to be at least one row, got {size}")
    image_format, by = ImageFormat(resize, channels), SplitBy.parse(split)
    if stream:
        raw = _open_stream(source, label, features, image_format, by)
    else:
        raw = _read(source, label, size, seed, features, image_format, by)
        check(raw.x, name=str(source), columns=raw.columns)
    origin = Origin.of(source, raw, named=_is_named(source), late=stream)
    raw = raw._replace(origins=(origin,))
    if image_format.given:  # images of a folder have it already
        raw = raw._replace(x=_apply(partial(image_format, name=str(source)), raw.x))
    if side is not None:
        raw = raw._replace(x=_apply(_Padded(side, str(source)), raw.x))
    if size is not None and source not in TOY:
        raw = _subset(raw, size, str(source), np.random.default_rng(seed).spawn(3)[0])
    return raw


def _is_named(source: str | Path) -> bool:
    return isinstance(source, str) and (source in TOY or source in NAMED or source.startswith("openml:"))


def _open_stream(
    source: str | Path, label: str | None, features: int | None, image_format: ImageFormat, by: SplitBy | None
) -> RawData:
    if _is_named(source):
        raise ValueError(f"stream=True reads files and folders of images, and {source!r} is none of them; leave it out")
    if features is not None:
        raise ValueError(f"features={features} is an option of sparse tables, which cannot be streamed; leave it out")
    return open_stream(Path(source), label, image_format, by)


def _read(
    source: str | Path,
    label: str | None,
    size: int | None,
    seed: int,
    features: int | None,
    image_format: ImageFormat,
    by: SplitBy | None,
) -> RawData:
    if isinstance(source, Path):
        return read(source, label, features, image_format, by)
    if not isinstance(source, str):
        raise TypeError(f"expected the name of a data set or a path, got {type(source).__name__}")
    if source.startswith("openml:"):
        return openml(source.removeprefix("openml:"), label, by)
    if (source in TOY or source in NAMED) and (given := f"label={label!r}" if label else by and f"split={str(by)!r}"):
        raise ValueError(f"{given} names a column of a table, and {source!r} is none; leave it out")
    if source in TOY:
        x, y = TOY[source](TOY_SIZE if size is None else size, seed=seed)
        return RawData(x, y)
    if source in NAMED:
        return NAMED[source]()
    if looks_like_file(source) or Path(source).exists():
        return read(Path(source), label, features, image_format, by)
    near = difflib.get_close_matches(source, [*TOY, *NAMED])
    raise ValueError(
        f"there is no data set {source!r}{', perhaps ' + ' or '.join(map(repr, near)) if near else ''}. "
        f"Expected a toy data set ({', '.join(TOY)}), {', '.join(NAMED)}, openml:NAME, {KINDS}"
    )


def _subset(raw: RawData, size: int, name: str, rng: np.random.Generator) -> RawData:
    """Random rows."""
    if size > len(raw.x):
        raise ValueError(f"size={size} asks for more rows than {name} has, {len(raw.x)}")
    kept = rng.permutation(len(raw.x))[:size]
    x: Any = raw.x.select(kept) if isinstance(raw.x, StreamedArray) else raw.x[kept]
    keys = None if raw.keys is None else raw.keys._replace(codes=raw.keys.codes[kept])
    return raw._replace(x=x, y=None if raw.y is None else raw.y[kept], keys=keys)
