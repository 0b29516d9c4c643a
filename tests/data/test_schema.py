"""Schemas: the exact round trip of generated frames, the kinds that are inferred, and input that is refused."""

import datetime

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ppgen.data import Column, Schema

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
WORDS = st.sampled_from(["free", "pro, plus", 'the "best"', "Größe", "nan?", "0", "None", "ß"])
DATES = st.datetimes(datetime.datetime(1850, 1, 1), datetime.datetime(2100, 1, 1))
FLOATS = st.floats(-1e12, 1e12)
# by name: the values of one cell, and what makes a series of them
CELLS = {
    "float64": (FLOATS, lambda v: pd.Series(v, dtype="float64")),
    "float32": (st.floats(-1e6, 1e6, width=32), lambda v: pd.Series(v, dtype="float32")),
    "cents": (st.integers(-(10**6), 10**6).map(lambda i: i / 100), lambda v: pd.Series(v, dtype="float64")),
    "share": (st.floats(0, 1), lambda v: pd.Series(v, dtype="float64")),
    "Float64": (FLOATS, lambda v: pd.Series(v, dtype="Float64")),
    "Int64": (st.integers(-(2**40), 2**40), lambda v: pd.Series(v, dtype="Int64")),
    "boolean": (st.booleans(), lambda v: pd.Series(v, dtype="boolean")),
    "objects": (st.booleans(), lambda v: pd.Series(v, dtype=object)),
    "text": (WORDS, lambda v: pd.Series(v, dtype=object)),
    "string": (WORDS, lambda v: pd.Series(v, dtype="string")),
    "category": (WORDS, lambda v: pd.Series(pd.Categorical(v))),
    "ordered": (
        st.sampled_from(["low", "high"]),
        lambda v: pd.Series(pd.Categorical(v, categories=["low", "mid", "high"], ordered=True)),
    ),
    "numbered": (st.integers(-3, 3), lambda v: pd.Series(pd.Categorical(v, categories=list(range(3, -4, -1))))),
    "datetime": (DATES, lambda v: pd.Series(v, dtype="datetime64[us]")),
    "zone": (DATES, lambda v: pd.Series(v, dtype="datetime64[us]").dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")),
    "duration": (st.integers(-(10**12), 10**12), lambda v: pd.Series(v, dtype="Int64").astype("timedelta64[ms]")),
    "date": (DATES.map(lambda d: d.date()), lambda v: pd.Series(v, dtype=object)),
    "iso": (DATES.map(lambda d: d.strftime("%Y-%m-%d")), lambda v: pd.Series(v, dtype=object)),
    "german": (DATES.map(lambda d: d.strftime("%d.%m.%Y %H:%M")), lambda v: pd.Series(v, dtype=object)),
}
WHOLE = {"int64": 2**50, "int8": 2**7 - 1, "uint16": 2**16 - 1}  # which no missing cell has


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Frames of any of these columns, with missing cells, in any order, under any names."""
    rows = draw(st.integers(1, 25))
    kinds = draw(st.lists(st.sampled_from([*CELLS, *WHOLE]), min_size=1, max_size=4))
    names = draw(st.lists(TEXT, min_size=len(kinds), max_size=len(kinds), unique=True))
    columns = {}
    for name, kind in zip(names, kinds, strict=True):
        if kind in WHOLE:
            least = 0 if kind.startswith("u") else -WHOLE[kind]
            cells = draw(st.lists(st.integers(least, WHOLE[kind]), min_size=rows, max_size=rows))
            columns[name] = pd.Series(cells, dtype=kind)
        else:
            values, make = CELLS[kind]
            columns[name] = make(draw(st.lists(st.none() | values, min_size=rows, max_size=rows)))
    return pd.DataFrame(columns)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate), derandomize=True)
@given(frames())
def test_decode_inverts_encode(frame: pd.DataFrame) -> None:
    """Types, categories, decimals, dates, names and their order come back, and through YAML as well."""
    try:
        schema = Schema.infer(frame)
    except ValueError as error:
        assert "every column is omitted" in str(error)  # noqa: PT017
        return
    stored = Schema.from_dict(yaml.safe_load(yaml.safe_dump(schema.as_dict())))
    assert stored == schema
    decoded = stored.decode(stored.encode(frame))
    pd.testing.assert_frame_equal(decoded, frame[list(schema.names)], check_column_type=False)
    shuffled = frame[list(frame.columns)[::-1]]
    np.testing.assert_array_equal(schema.encode(shuffled), schema.encode(frame))


def _column(values: object, name: str = "x", **options: object) -> Column:
    return Schema.infer(pd.DataFrame({name: values, "other": np.linspace(0.5, 9.0, len(values))}), **options)[name]  # type: ignore[arg-type]


RNG = np.random.default_rng(0)
KINDS = [
    ("x", RNG.normal(size=100), "continuous"),
    ("x", RNG.gamma(2.0, size=100), "positive"),
    ("x", RNG.random(100), "bounded"),
    ("x", RNG.poisson(500, 100), "count"),
    ("x", RNG.integers(0, 2, 100), "binary"),
    ("x", RNG.integers(1, 6, 100), "ordinal"),
    ("x", RNG.choice(["a", "b", "c"], 100), "categorical"),
    ("x", RNG.permutation(100) + 7, "omitted"),  # a key
    ("customer_id", RNG.integers(0, 50, 100), "omitted"),
    ("x", [f"note {i}" for i in range(100)], "omitted"),
    ("x", [None] * 100, "omitted"),
    ("x", [4.5] * 100, "categorical"),  # one value
    ("x", [f"{h:02d}:30" for h in RNG.integers(0, 24, 100)], "datetime"),
    ("x", [f"{d:02d}/{m:02d}/2024" for d, m in RNG.integers(1, 13, (100, 2))], "datetime"),
]


@pytest.mark.parametrize(("name", "values", "kind"), KINDS, ids=[f"{i}-{row[2]}" for i, row in enumerate(KINDS)])
def test_kinds(name: str, values: object, kind: str) -> None:
    column = _column(values, name)
    assert column.kind == kind
    assert column.reason


def test_given_kinds_and_marks() -> None:
    assert _column([1, 2, 3] * 10, kinds={"x": "count"}).kind == "count"
    assert _column([1, 2, 3] * 10, kinds={"x": "categorical"}).categories == (1, 2, 3)
    marked = pd.DataFrame({"x": ["1", "2", "?"] * 10})
    schema = Schema.infer(marked, missing=["?"])
    assert schema["x"].optional
    assert np.isnan(schema.encode(marked)[2, 0])
    ambiguous = _column([f"{d:02d}/{d:02d}/2024" for d in range(1, 13)])
    assert "would fit as well" in ambiguous.reason


def test_numbers_out_of_the_schema_are_rounded_into_it() -> None:
    frame = pd.DataFrame({"share": [0.25, 0.5, 0.75], "count": [10, 2000, 4], "plan": ["a", "b", "c"] * 1})
    schema = Schema.infer(frame, kinds={"plan": "categorical"})
    decoded = schema.decode([[1.4, -3.6, 7.2], [0.333, 12.6, -1.0]])
    assert decoded.to_dict("list") == {"share": [1.0, 0.33], "count": [0, 13], "plan": ["c", "a"]}


GOOD = pd.DataFrame({"plan": ["a", "b"] * 20, "paid": np.linspace(1.0, 9.0, 40), "day": ["2024-01-31"] * 40})
REFUSED = [
    (lambda f: f.drop(columns="plan"), "lacks the column 'plan'"),
    (lambda f: f.assign(plan=["c", *f["plan"][1:]]), r"row 0 .*column 'plan': expected one of the 2 categories"),
    (lambda f: f.assign(day=[*f["day"][:-1], "2024-02-31"]), r"row 39 .*column 'day': expected a date"),
    (lambda f: f.assign(paid=[*f["paid"][:-1], -1.0]), r"row 39 .*column 'paid': expected a finite number above 0"),
    (lambda f: f.set_axis(["plan", "plan", "day"], axis=1), "two columns are named 'plan'"),
    (lambda f: f.assign(paid=np.inf), "finite"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[row[1][:20] for row in REFUSED])
def test_encode_refuses(change: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schema.infer(GOOD).encode(change(GOOD))  # type: ignore[operator]


INFER_REFUSED = [
    ({"x": ["1"] * 40 + ["l"]}, {}, r"row 40 .*column 'x': expected a number like the others"),
    ({"x": ["2024-01-01"] * 40 + ["2024-13-01"]}, {}, r"row 40 .*column 'x': expected a date like the others"),
    ({"x": [1.0, -2.0]}, {"kinds": {"x": "positive"}}, "does not fit"),
    ({"x": ["a", "b"]}, {"kinds": {"x": "count"}}, "expects numbers"),
    ({"x": [1.0, 2.0]}, {"kinds": {"y": "count"}}, "a column 'y' that does not exist"),
    ({"x": ["a", "b"]}, {"kinds": {"x": "number"}}, "among continuous"),
    ({"x": [None, None]}, {}, "nothing to model"),
]


@pytest.mark.parametrize(("columns", "options", "message"), INFER_REFUSED, ids=[row[2][:24] for row in INFER_REFUSED])
def test_infer_refuses(columns: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schema.infer(pd.DataFrame(columns), **options)


def test_unknown_categories_can_be_missing() -> None:
    schema = Schema.infer(GOOD)
    other = GOOD.assign(plan="c")
    assert np.isnan(schema.encode(other, unknown="missing")[:, 0]).all()
    assert np.isnan(schema.encode(GOOD[["paid"]], partial=True)[:, [0, 2]]).all()


def test_tensors_and_coords() -> None:
    schema = Schema.infer(GOOD)
    columns = schema.tensors(GOOD)
    assert columns["plan"].tolist() == [0, 1] * 20
    assert columns["plan"].dtype.is_floating_point is False
    assert columns["paid"].dtype.is_floating_point
    assert schema.coords()["plan"] == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'columns'"),
        ({"columns": [{"kind": "count"}]}, "a name and a kind"),
        ({"columns": [{"name": "x", "kind": "count", "colour": 1}]}, "no entry 'colour'"),
        ({"columns": [{"name": "x", "kind": "ordinal"}]}, "needs its categories"),
        ({"columns": [{"name": "x", "kind": "bounded", "low": 1.0}]}, "low < high"),
        ({"columns": [{"name": "x", "kind": "datetime"}]}, "an origin and a unit"),
    ],
)
def test_stored_schemas_are_checked(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schema.from_dict(values)
