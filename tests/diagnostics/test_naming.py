"""Names of dimensions and coordinates."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import ppgen
from ppgen import models

N, B = 20, 4


def fitted(model, guide, *data, steps=1, **options):
    return ppgen.fit(model, guide, data or None, steps=steps, progress=False, compile=False, **options)


@pytest.fixture
def regression():
    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3, dim=-2):
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(a + (x * b[..., :1, :, :]).sum(-1), 1.0), obs=y)

    x, y = torch.randn(N, 2), torch.randn(N)
    return fitted(model, AutoNormal(model), x, y), x, y


def test_plates_and_events_are_named_by_the_program_or_the_user(regression):
    fit, x, y = regression
    plain = fit.to_arviz(x, y, draws=25)
    assert plain.posterior.b.dims == ("chain", "draw", "groups", "b_dim")
    site = [f"s{i}" for i in range(N)]
    coords = {"covariate": ["age", "bmi"], "site": site, "clinic": ["u", "v", "w"]}
    named = fit.to_arviz(x, y, draws=25, dims={"b": ["clinic", "covariate"], "y": ["site"]}, coords=coords)
    assert named.posterior.b.dims == ("chain", "draw", "clinic", "covariate")
    assert named.prior.b.dims == named.posterior.b.dims
    assert named.observed_data.y.dims == ("site",)
    assert named.log_likelihood.y.dims == ("chain", "draw", "site")
    assert list(named.posterior.b.coords["covariate"].values) == ["age", "bmi"]
    age = named.posterior.b.sel(covariate="age", clinic="v").values
    np.testing.assert_array_equal(age, plain.posterior.b.values[:, :, 1, 0])
    event = fit.to_arviz(x, y, draws=25, dims={"b": ["covariate"]}, coords={"covariate": np.array([3, 4])})
    assert event.posterior.b.dims == ("chain", "draw", "groups", "covariate")


def test_a_plate_that_is_renamed_is_renamed_everywhere():
    vae = models.VAE((3,), latent_dim=2, hidden=(4,))
    x = torch.randn(N, 3)
    named = fitted(vae.model, vae.guide, x).to_arviz(x, draws=30, dims={"x": ["patient", "lab"], "z": ["factor"]})
    assert named.posterior.z.dims == ("chain", "draw", "patient", "factor")
    assert named.sample_stats.log_weight.dims == ("chain", "draw", "patient")
    assert named.vi_stats.pareto_k.dims == ("chain", "patient")
    assert named.observed_data.x.dims == ("patient", "lab")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dims": {"c": ["k"]}}, r"dims: no variable 'c'; there are 'a', 'b', 'y'"),
        ({"dims": {"b": ["k", "l", "m"]}}, r"expected 2 names \(groups, b_dim\) for the variable 'b', or 1 .*; got"),
        ({"dims": {"a": ["k"]}}, r"expected 0 names for the variable 'a'; got \['k'\]"),
        ({"dims": {"b": ["k", "k"]}}, r"expected 2 different names for 'b'"),
        (
            {"dims": {"b": ["draw"]}},
            "for 'b', other than those of chains, draws and variables",
        ),
        (
            {"dims": {"b": ["b"]}},
            "for 'b', other than those of chains, draws and variables",
        ),
        ({"dims": {"b": ["k"], "y": ["k"]}}, r"'k' has length (2|20) in the variable '[by]' and (2|20) in"),
        ({"coords": {"b_dim": [1, 2, 3]}}, r"expected 2 values for 'b_dim', a dimension of the variable 'b', got 3"),
        ({"coords": {"bdim": [1, 2]}}, r"coords: no dimension 'bdim'; did you mean 'b_dim'"),
    ],
)
def test_names_that_do_not_match_are_refused(regression, options, says):
    fit, x, y = regression
    with pytest.raises(ValueError, match=says):
        fit.to_arviz(x, y, draws=25, **options)
