"""Rows that a model gives to a plate, and a guide that draws others."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import ppgen
from ppgen.tracing.given_rows import replaced_rows

N = 12
Y = torch.linspace(-3, 3, N)
ROWS = torch.arange(N)


def model(rows, y):
    with pyro.plate("data", N, subsample=rows):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(z, 0.1), obs=y)


def plates(rows, y):
    return pyro.plate("data", N, subsample=rows, dim=-1)


def test_an_autoguide_that_draws_its_own_rows_is_refused():
    """Pyro trains it on the data of some rows and the latents of others, without a warning."""
    with pytest.raises(ValueError, match=r"plate 'data' its rows .*create_plates="):
        ppgen.fit(model, AutoNormal(model), (ROWS, Y), batch_size=4, steps=1, progress=False)


def test_an_autoguide_that_is_given_the_rows_keeps_them():
    guide = AutoNormal(model, create_plates=plates)
    ppgen.fit(model, guide, (ROWS, Y), batch_size=4, steps=1, compile=False, progress=False)
    assert replaced_rows(model, guide, (ROWS[:5], Y[:5])) == ""


def test_svi_takes_the_step_as_pyro_does_and_warns():
    svi = ppgen.SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), compile=False)
    with pytest.warns(UserWarning, match="plate 'data' its rows"):
        svi.step(ROWS[:4], Y[:4])


def test_rows_that_are_equal_or_that_the_guide_is_given_are_kept():
    def guide(rows, y, given):
        with pyro.plate("data", N, subsample_size=None if given else 3, subsample=[0, 1, 2] if given else None):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    batch = ROWS[2:5], Y[2:5]
    assert replaced_rows(lambda *args: model(*args[:2]), guide, (*batch, True)) == ""
    assert "'data'" in replaced_rows(lambda *args: model(*args[:2]), guide, (*batch, False))
    assert replaced_rows(model, lambda rows, y: model(rows, None), batch) == ""
