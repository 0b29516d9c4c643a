"""Programs that subsample a plate have all of its rows in ArviZ."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy.stats import norm

import ppgen
from ppgen.tracing.particles import log_weights, particle_traces
from ppgen.tracing.plates import all_rows
from ppgen.tracing.traces import Traces

N, B = 20, 4


GROUPS = ("posterior", "log_likelihood", "observed_data", "posterior_predictive", "sample_stats")


def fitted(model, guide, *data, steps=1, **options):
    return ppgen.fit(model, guide, data or None, steps=steps, progress=False, compile=False, **options)


def pair(size, *, local):
    """A global w and, if `local`, a z for each row; rows are drawn `size` at a time."""

    def plate():
        return pyro.plate("data", N, subsample_size=size)

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with plate() as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0)) if local else 0.0
            pyro.sample("x", dist.Normal(w + z, 0.7), obs=x[rows])

    def guide(x):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.4))
        if local:
            with plate() as rows:
                scales = pyro.param("scales", 0.5 + 0.1 * torch.arange(N), event_dim=0)
                pyro.sample("z", dist.Normal(0.4 * x[rows], scales))

    return model, guide


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("batch", [B, 1])
def test_a_subsampled_program_has_the_groups_of_the_whole_one(local, batch):
    x = torch.arange(N) / N
    found = []
    for size in (batch, N):
        fit = fitted(*pair(size, local=local), x, seed=1)
        for chain in fit.chains:  # one step of subsampled data goes elsewhere
            chain.weights = {k: v.clone() for k, v in fit.chains[0].weights.items()}
            chain.weights["loc"].fill_(0.3)
            if local:
                chain.weights["scales"].copy_(0.5 + 0.1 * torch.arange(N))
        found.append(fit.to_arviz(x, draws=40, integrate=20 if local else 0))
    part, whole = found
    for group in GROUPS:
        assert part[group].equals(whole[group]), group
    np.testing.assert_array_equal(part.observed_data.x.values, x)
    assert part.log_likelihood.x.shape == (1, 40, N)
    if not local:
        w = part.posterior.w.values[..., None]
        np.testing.assert_allclose(part.log_likelihood.x.values, norm(w, 0.7).logpdf(x.numpy()), rtol=1e-5)
        lp = norm.logpdf(w[..., 0]) + part.log_likelihood.x.values.sum(-1)
        np.testing.assert_allclose(part.sample_stats.lp.values, lp, rtol=1e-5)
    else:
        assert part.posterior.z.shape == (1, 40, N)


def test_log_weights_are_of_the_whole_data_set():
    model, guide = pair(B, local=True)
    x = torch.randn(N)
    torch.manual_seed(0)
    weights = log_weights(model, guide, (x,), particles=5)
    torch.manual_seed(0)
    pyro.clear_param_store()
    expected = log_weights(*pair(N, local=True), (x,), particles=5)
    torch.testing.assert_close(weights, expected)


def test_plates_subsample_outside_of_all_rows():
    model, guide = pair(B, local=True)
    x = torch.randn(N)
    with all_rows():
        assert Traces(model, guide, (x,)).model_trace.nodes["x"]["value"].shape == (N,)
    assert Traces(model, guide, (x,)).model_trace.nodes["x"]["value"].shape == (B,)
    with all_rows(), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    assert Traces(model, guide, (x,)).model_trace.nodes["x"]["value"].shape == (B,)


def test_an_autoguide_of_subsampled_latents_and_a_plate_in_sequence():
    x = torch.randn(N)
    model, _ = pair(B, local=True)
    plates = lambda x: pyro.plate("data", N, subsample_size=B, dim=-1)  # noqa: E731
    fit = fitted(model, AutoNormal(model, create_plates=plates), x)
    assert fit.to_arviz(x, draws=25, predictive=False).posterior.z.shape == (1, 25, N)

    def loop(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 6, subsample_size=2):
            pyro.sample(f"x_{i}", dist.Normal(w, 1.0), obs=x[i])

    fit = fitted(loop, AutoNormal(poutine.block(loop, expose=["w"])), x)
    assert set(fit.to_arviz(x, draws=25).observed_data.data_vars) == {f"x_{i}" for i in range(6)}


def test_batched_programs_have_the_rows_that_they_are_given():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    x = torch.randn(N)
    fit = fitted(model, AutoNormal(model), x, batch_size=B)
    assert fit.to_arviz(x, draws=25).log_likelihood.x.shape == (1, 25, N)
    few = fit.to_arviz(x[:7], draws=25)
    np.testing.assert_array_equal(few.observed_data.x.values, x[:7])


def test_a_random_subsample_is_reported():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(B), 1.0).to_event(1))  # as long as a batch, so it cannot be whole
        with pyro.plate("data", N, subsample_size=B) as rows:
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[rows])

    with pytest.warns(UserWarning, match=rf"plate 'data' draws {B} of {N} rows.*x\[rows\]"):
        particle_traces(model, AutoNormal(model), (torch.randn(N),), particles=3)
