"""Programs that take the columns of a frame by name: what they get, what is refused, names in ArviZ, predictions."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample

import ppgen
from ppgen.training.frames import FrameArguments

COUNTIES = ["Äländ", "b, c", 'd "e"', "f"]
RNG = np.random.default_rng(0)
COUNTY = RNG.integers(0, 3, 60)
FRAME = pd.DataFrame(
    {
        "y": RNG.normal(size=60) + COUNTY,
        "ignored": "text",
        "county": pd.Categorical.from_codes(COUNTY, COUNTIES),
        "x": RNG.normal(size=60),
    },
    index=pd.Index([f"row {i}" for i in range(60)], name="house"),
)


def model(x, county, num_county, y=None):
    """Known variances: conjugate. The last category has no row."""
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("county", num_county):
        a = pyro.sample("a", dist.Normal(1.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a[county] + b * x, 1.0), obs=y)


def posterior(frame):
    """The exact mean and covariance of (a, b)."""
    codes = frame["county"].cat.codes.to_numpy()
    design = np.column_stack([np.eye(4)[codes], frame["x"]])
    precision = np.diag([4.0] * 4 + [1.0])
    covariance = np.linalg.inv(precision + design.T @ design)
    prior = precision @ np.array([1.0] * 4 + [0.0])
    return covariance @ (prior + design.T @ frame["y"].to_numpy()), covariance


@pytest.fixture(scope="module")
def fitted():
    return ppgen.fit(model, "auto", FRAME, progress=False)


def test_columns_come_by_name_and_their_order_changes_nothing(fitted):
    mean, covariance = posterior(FRAME)
    drawn = fitted.to_arviz(draws=4000).posterior
    found = np.column_stack([drawn["a"].values[0], drawn["b"].values[0]])
    np.testing.assert_allclose(found.mean(0), mean, atol=5 * np.sqrt(covariance.diagonal().max() / 4000))
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.02)
    shuffled = fitted.to_arviz(FRAME[["x", "county", "ignored", "y"]], draws=50)
    same = fitted.to_arviz(draws=50)
    assert same.posterior.equals(shuffled.posterior)
    assert same.log_likelihood.equals(shuffled.log_likelihood)


def test_the_order_of_categories_changes_nothing_but_their_order():
    other = FRAME.assign(county=FRAME["county"].cat.reorder_categories(COUNTIES[::-1]))
    drawn = ppgen.fit(model, "auto", other, progress=False).to_arviz(draws=4000).posterior["a"].mean(("chain", "draw"))
    assert drawn["county"].values.tolist() == COUNTIES[::-1]
    np.testing.assert_allclose(drawn.sel(county=COUNTIES), posterior(FRAME)[0][:4], atol=0.05)


def test_arviz_has_categories_and_rows_by_name(fitted):
    idata = fitted.to_arviz(draws=50)
    assert idata.posterior["a"].dims == ("chain", "draw", "county")
    assert idata.posterior["county"].values.tolist() == COUNTIES
    for group in ("observed_data", "log_likelihood", "posterior_predictive"):
        assert idata[group]["data"].values.tolist() == FRAME.index.tolist()
    renamed = fitted.to_arviz(draws=50, dims={"a": ["place"]}, coords={"place": list("abcd")})
    assert renamed.posterior["place"].values.tolist() == list("abcd")


def test_predictions_are_a_frame_with_the_rows_of_the_new_one(fitted):
    new = FRAME.drop(columns="y").iloc[[5, 3, 40]]
    drawn = fitted.predict(new, draws=4000)
    assert drawn.index.names == ["draw", "house"]
    assert drawn.columns.tolist() == ["y"]
    assert drawn.loc[0].index.tolist() == new.index.tolist()
    mean, covariance = posterior(FRAME)
    design = np.column_stack([np.eye(4)[new["county"].cat.codes], new["x"]])
    by_row = drawn["y"].unstack("house")[new.index]
    np.testing.assert_allclose(by_row.mean(), design @ mean, atol=0.1)
    np.testing.assert_allclose(by_row.cov(), design @ covariance @ design.T + np.eye(3), atol=0.12)


def test_a_response_without_a_value_is_predicted_as_if_it_were_absent(fitted):
    new = FRAME.iloc[:2]
    without = fitted.predict(new.drop(columns="y"), draws=10)
    assert fitted.predict(new.assign(y=math.nan), draws=10).equals(without)


def test_new_groups_are_drawn_from_the_population(fitted):
    """A new county has the prior N(1, .5^2), which the others do not tell anything about, as the empty one has."""
    new = pd.DataFrame({"x": 0.0, "county": ["new", "other", "new", "f", "b, c"]})
    with pytest.raises(ValueError, match=r"row 0 .*, column 'county': expected one of the 4 categories .* got 'new'"):
        fitted.predict(new)
    drawn = fitted.predict(new, draws=6000, new_groups="draw")["y"].unstack("draw").to_numpy()
    mean, covariance = posterior(FRAME)
    np.testing.assert_allclose(drawn.mean(1), [1.0] * 4 + [mean[1]], atol=0.08)
    of_groups = np.cov(drawn) - np.eye(5)
    expected = 0.25 * np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(of_groups[:4, :4], expected, atol=0.08)
    assert math.isclose(of_groups[4, 4], covariance[1, 1], abs_tol=0.08)
    known = fitted.predict(new.iloc[3:], draws=50)
    assert known.equals(fitted.predict(new.iloc[3:], draws=50, new_groups="draw"))


def test_a_program_that_does_not_take_the_number_of_groups_refuses_new_ones():
    frame = FRAME.assign(county=FRAME["county"].astype(str))
    fit = ppgen.fit(without_number, "auto", frame, progress=False)
    with pytest.raises(ValueError, match="does not take their number: write it with an argument num_county"):
        fit.predict(frame.assign(county="new"), new_groups="draw")


def without_number(x, county, y=None):
    with pyro.plate("groups", 3):
        a = pyro.sample("a", dist.Normal(1.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a[county], 1.0), obs=y)


def test_new_groups_outside_of_a_plate_are_refused():
    def correlated(county, num_county, y):
        a = pyro.sample("a", dist.Normal(torch.ones(num_county), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a[county], 1.0), obs=y)

    fit = ppgen.fit(correlated, "auto", FRAME, progress=False)
    with pytest.raises(ValueError, match=r"'a' has an entry for each group, shape \(4,\) in the fit and \(5,\)"):
        fit.predict(FRAME.assign(county="new"), new_groups="draw")


def test_a_stored_fit_knows_its_columns(fitted, tmp_path):
    fitted.save(tmp_path / "fit.safetensors")
    loaded = ppgen.Fit.load(tmp_path / "fit.safetensors", model, "auto")
    new = FRAME.drop(columns="y").iloc[:3]
    assert loaded.predict(new, draws=20).equals(fitted.predict(new, draws=20))
    assert loaded.to_arviz(FRAME, draws=30).posterior.equals(fitted.to_arviz(draws=30).posterior)
    with pytest.raises(ValueError, match="give the data"):
        loaded.to_arviz(draws=30)


def test_draws_of_a_sampler_keep_names(fitted):
    refined = fitted.refine(draws=400, progress=False, chains=2)
    assert refined.to_arviz(draws=50).posterior["county"].values.tolist() == COUNTIES
    assert len(refined.predict(FRAME.iloc[:2], draws=10)) == 20


def test_outcomes_are_categories_again():
    frame = pd.DataFrame({"bought": ["yes", "no", "no", "yes", "no", "no"] * 8, "plan": ["a", "b", "c"] * 16})

    def purchases(num_plan, bought=None, plan=None):
        with pyro.plate("options", 1):
            p = pyro.sample("p", dist.Beta(1.0, 1.0))
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(num_plan)))
        with pyro.plate("data", 48):
            pyro.sample("bought", dist.Bernoulli(p), obs=bought)
            pyro.sample("plan", dist.Categorical(shares), obs=plan)

    drawn = ppgen.fit(purchases, "auto", frame, progress=False).predict(draws=100)
    assert set(drawn["bought"]) == {"no", "yes"}
    assert drawn["plan"].cat.categories.tolist() == ["a", "b", "c"]
    assert abs((drawn["bought"] == "yes").mean() - 17 / 50) < 0.1


def test_modules_take_columns_too():
    class Line(PyroModule):
        def __init__(self):
            super().__init__()
            self.slope = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self, x, y=None, scale=2.0):
            mean = self.slope * x
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(mean, scale), obs=y)

    fit = ppgen.fit(Line(), "auto", FRAME, progress=False)
    slope = (FRAME["x"] @ FRAME["y"] / 4) / (1 + FRAME["x"] @ FRAME["x"] / 4)
    assert abs(float(fit.to_arviz(draws=1000).posterior["slope"].mean()) - slope) < 0.05


def test_missing_numbers_may_be_left_out_by_the_program():
    def masked(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(b * x, 1.0), obs=y.nan_to_num())

    frame = FRAME.assign(y=FRAME["y"].where(COUNTY > 0))
    idata = ppgen.fit(masked, "auto", frame, progress=False).to_arviz(draws=30)
    assert idata.observed_data["y_data"].values.tolist() == frame.index[COUNTY > 0].tolist()


def test_a_whole_frame_is_still_one_argument():
    def normal(rows):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(rows)):
            pyro.sample("rows", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    fit = ppgen.fit(normal, "auto", FRAME[["x", "y"]], progress=False)
    assert fit.frame is None
    assert fit.to_arviz(FRAME[["x", "y"]], draws=30).posterior["mean"].shape == (1, 30, 2)


@pytest.mark.parametrize(
    ("cells", "number", "codes"),
    [
        (pd.Series([2, 3, 2]), 0, [2.0, 3.0, 2.0]),
        (pd.Series([2, None, 2], dtype="Int64"), 0, [2.0, math.nan, 2.0]),
        (pd.Series([1.5, None, 2], dtype=object), 0, [1.5, math.nan, 2.0]),
        (pd.Series([True, False, True]), 2, [1, 0, 1]),
        (pd.Series(["b", "a", "b"]), 2, [1, 0, 1]),
        (pd.Series(["b", None, "a"]), 2, [1.0, math.nan, 0.0]),
        (pd.Series([7, 3, 7]).astype("category"), 2, [1, 0, 1]),
        (pd.Series(["b", "a", "b"]).astype(pd.CategoricalDtype(["b", "a", "c"])), 3, [0, 1, 0]),
    ],
)
def test_what_a_program_gets_of_each_kind_of_column(cells, number, codes):
    arguments = FrameArguments.of(lambda v, w: None, frame := pd.DataFrame({"v": cells, "w": 0.0}))
    found, _ = arguments.tensors(frame)
    np.testing.assert_array_equal(found.numpy(), codes)
    assert found.dtype == (torch.float64 if isinstance(codes[0], float) else torch.int64)
    assert len(arguments.coords.get("v", [])) == number
    assert FrameArguments.from_dict(arguments.as_dict()) == arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.drop(columns="x"), ValueError, "no column 'x', an argument of the program"),
        (lambda f: f.drop(columns="y"), ValueError, "no column 'y', an argument of the program"),
        (lambda f: f.rename(columns={"x": "X"}), ValueError, "no column 'x', .*did you mean|no column 'x'"),
        (lambda f: f.assign(x=f["x"].astype(str).where(f["x"] < 1, "?")), TypeError, "'x' has numbers as text, .* '?'"),
        (
            lambda f: f.assign(x="12"),
            TypeError,
            r"'x' has numbers as text, such as '12': .*astype\(float\).*'category'",
        ),
        (lambda f: f.assign(x=pd.Timestamp("2024-01-01")), TypeError, "column 'x' has times"),
        (lambda f: f.assign(county=1.0), ValueError, "'county' .* has numbers: make it one of categories"),
        (lambda f: f.assign(county=None), ValueError, "'county' has no value in any of its 60 rows"),
        (lambda f: f.assign(y=math.nan), ValueError, "'y' has no value in any of its 60 rows"),
        (lambda f: f.assign(x=f["x"].where(f["x"] < 1)), ValueError, r"frame: .* \(the first is row .*column 'x'"),
        (lambda f: f.assign(county=f["county"].where(f["x"] < 1)), ValueError, r"column 'county', are not finite"),
        (lambda f: pd.concat([f, f[["x"]]], axis=1), ValueError, "two columns are named 'x'"),
        (lambda f: f.iloc[:0], ValueError, "row"),
    ],
)
def test_a_frame_that_the_program_cannot_take_is_refused_by_column_and_row(change, error, message):
    with pytest.raises(error, match=message):
        ppgen.fit(model, "auto", change(FRAME), progress=False)


def test_numbers_as_indices_are_refused():
    frame = FRAME.assign(county=COUNTY)
    with pytest.raises(TypeError, match=r"one of 'x', 'county', 'y': make it a column of categories"):
        ppgen.fit(without_number, "auto", frame, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="x"), "no column 'x'"),
        (lambda f: f.assign(x=["1", "a", "3"]), r"row 1 .*column 'x': expected a finite number, got 'a'"),
        (lambda f: f.assign(county=["f", "f", "new"]), r"row 2 .*column 'county': expected one of the 4"),
        (lambda f: f.assign(x=math.nan), "column 'x', are not finite"),
    ],
)
def test_rows_that_cannot_be_predicted_are_named(fitted, change, message):
    with pytest.raises(ValueError, match=message):
        fitted.predict(change(FRAME.drop(columns="y").iloc[:3]), draws=10)
