"""MaskedTable: masses and densities, missing cells, conditional rows, and the closed form of a Gaussian."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import ppgen
from ppgen.data import Schema
from ppgen.models import MaskedTable
from ppgen.tracing.programs import get_trace

RNG = np.random.default_rng(0)
N = 400
FRAME = pd.DataFrame(
    {
        "plan": RNG.choice(["free", "pro", "team"], N),
        "paid": np.where(RNG.random(N) < 0.4, 0.0, RNG.gamma(2.0, 10.0, N)).round(2),
        "age": RNG.integers(18, 90, N),
        "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(RNG.integers(0, 900, N), unit="D"),
        "active": RNG.random(N) < 0.3,
    }
)
FRAME.loc[RNG.random(N) < 0.2, "plan"] = None
SCHEMA = Schema.infer(FRAME)
X = torch.from_numpy(SCHEMA.encode(FRAME))


def table(schema=SCHEMA, **options):
    torch.manual_seed(0)
    return MaskedTable(schema, **({"hidden": (16,), "components": 3} | options))


@pytest.mark.parametrize("name", ["plan", "paid", "age", "active"])
def test_masses_and_densities_of_a_column_add_up_to_one(name):
    model, j = table(), SCHEMA.index(name)
    column = model.columns[j]
    outputs = torch.randn(column.width, generator=torch.Generator().manual_seed(1))
    mass = (
        column.distribution(outputs.expand(column.spikes, -1)).log_prob(column.values).exp().sum()
        if column.spikes
        else 0
    )
    density = 0.0
    if column.components:
        grid = torch.linspace(-800.0, 1500.0, 400_001, dtype=torch.float64)
        grid = grid[~torch.isin(grid, column.values)]
        density = torch.trapezoid(
            column.distribution(outputs.expand(len(grid), -1)).log_prob(grid).exp().double(), grid
        )
    assert float(mass + density) == pytest.approx(1.0, abs=2e-3)


def test_the_log_density_is_the_sum_of_the_columns_sites():
    model = table()
    trace = get_trace(model.density_model, X)
    trace.compute_log_prob()
    sites = torch.stack([trace.nodes[name]["log_prob"] for name in SCHEMA.names])
    torch.testing.assert_close(sites.sum(0).double(), model.log_prob(X), rtol=1e-4, atol=1e-4)
    assert (sites[0][X[:, 0].isnan()] == 0).all()


def test_a_missing_cell_contributes_nothing():
    """Neither its column's term, nor a condition of another: any value in its place gives the same."""
    model = table()
    given = torch.zeros_like(X, dtype=torch.bool)
    given[:, 1:3] = True
    other = X.clone()
    other[:, 1] = math.nan
    changed = X.clone()
    changed[:, 1] = 5.0
    masked = given.clone()
    masked[:, 1] = False
    left, right = (model.masked_log_prob(x, masked)[:, 2:] for x in (other, changed))
    assert torch.equal(left, right)
    assert (model.masked_log_prob(other, masked)[:, 1] == 0).all()


def test_frequent_values_are_recognized_in_float32():
    frame = pd.DataFrame({"x": np.r_[np.full(100, 0.1), np.full(100, 1 / 3), RNG.normal(size=300)]})
    model = table(Schema.infer(frame))
    x = torch.tensor(frame.to_numpy())
    spikes = [model.columns[0].encode(part[:, 0]).spike for part in (x, x.float())]
    assert torch.equal(*spikes)
    assert spikes[0].unique().tolist() == [0, 1, 2]


def test_given_cells_are_kept_and_missing_ones_drawn():
    model = table()
    given = torch.full((len(SCHEMA),), math.nan, dtype=torch.float64)
    given[SCHEMA.index("age")] = 33
    rows = SCHEMA.decode(model.sample(50, given=given))
    assert (rows["age"] == 33).all()
    assert rows.notna().all().all()
    completed = model.complete(X)
    assert torch.equal(completed[~X.isnan()], X[~X.isnan()])
    assert not completed.isnan().any()


def test_imputed_frames_keep_what_is_there_and_follow_the_seed():
    model, frame = table(), FRAME.assign(note="kept").set_index(pd.Index(range(7, N + 7)))
    first, second = model.impute(frame, draws=2, seed=3)
    there = frame["plan"].notna()
    assert (first["plan"][there] == frame["plan"][there]).all()
    assert set(first["plan"]) == {"free", "pro", "team"}
    assert not first["plan"].equals(second["plan"])
    assert first.drop(columns="plan").equals(frame.drop(columns="plan"))
    assert first.equals(model.impute(frame, seed=3)[0])
    with pytest.raises(ValueError, match="draws: expected at least 1"):
        model.impute(frame, draws=0)


@pytest.mark.slow
def test_imputations_of_a_gaussian_equal_the_closed_form():
    """The mean and standard deviation of a missing cell, given the other, within .12 of a standard deviation."""
    rng, r = np.random.default_rng(1), 0.8
    a = rng.normal(size=20_000)
    frame = pd.DataFrame({"a": a, "b": r * a + math.sqrt(1 - r * r) * rng.normal(size=20_000)})
    frame = frame.mask(rng.random(frame.shape) < 0.25)
    frame = frame[frame.notna().any(axis=1)].reset_index(drop=True)
    schema = Schema.infer(frame)
    model = table(schema, hidden=(64, 64), components=4)
    x = torch.from_numpy(schema.encode(frame)).float()
    optim = partial(torch.optim.Adam, lr=3e-3)
    options = {"epochs": 25, "batch_size": 500, "lr_scheduler": "cosine", "optim": optim, "progress": False}
    ppgen.fit(model.model, model.guide, x, **options)
    for name, value in (("a", 1.0), ("b", -0.5)):
        given = torch.full((2,), math.nan, dtype=torch.float64)
        given[schema.index(name)] = value
        drawn = model.sample(4000, given=given)[:, 1 - schema.index(name)]
        assert float(drawn.mean()) == pytest.approx(r * value, abs=0.12)
        assert float(drawn.std()) == pytest.approx(math.sqrt(1 - r * r), abs=0.12)


def test_bad_rows_are_refused_by_name():
    model = table()
    code = X.clone()
    code[3, 0] = 7
    with pytest.raises(ValueError, match=r"column 'plan': expected codes 0 \.\. 2"):
        model.check(code)
    with pytest.raises(ValueError, match=r"row 0 .*every cell is missing"):
        model.check(torch.full((1, len(SCHEMA)), math.nan))
    with pytest.raises(ValueError, match=r"shape \(n, 5\)"):
        model.check(X[:, :2])
    with pytest.raises(ValueError, match="no marginal distribution"):
        MaskedTable(Schema.from_dict(SCHEMA.as_dict(marginals=False)))
