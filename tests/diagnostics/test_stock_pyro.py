"""Stock Pyro objects in ArviZ: MCMC, and programs that stock SVI trains."""

import importlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import Conjugate, untrained_fit
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.infer.mcmc import HMC

import ppgen
from ppgen.diagnostics import loo
from ppgen.utils import arviz_versions as versions

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.deterministic("theta", mu + tau * pyro.sample("t", dist.Normal(0.0, 1.0)))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def sampled(model, *args, draws=12, kernel=NUTS, **kwargs):
    """A short run: these tests look at what follows from draws, not at the draws."""
    mcmc = MCMC(kernel(model), num_samples=draws, warmup_steps=5, disable_progbar=True)
    mcmc.run(*args, **kwargs)
    return mcmc


def trained(model, guide, *args, steps=2, **kwargs):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(steps):
        svi.step(*args, **kwargs)
    return guide


def joint(model, latents, *args, **kwargs):
    """The log joint density at each draw (S,), by runs of the model alone."""
    size = len(next(iter(latents.values())))
    runs = (poutine.condition(model, data={k: v[i] for k, v in latents.items()}) for i in range(size))
    return np.array([float(poutine.trace(run).get_trace(*args, **kwargs).log_prob_sum()) for run in runs])


def test_mcmc_draws_have_their_order_plates_and_densities():
    mcmc = sampled(schools, SIGMA, y=Y)
    mcmc._diagnostics[0]["divergences"] = [3, 7]
    idata = ppgen.from_pyro(mcmc, chunk=5, coords={"school": list("abcdefgh")})
    z = mcmc.get_samples()
    for name, value in z.items():
        assert np.array_equal(idata["posterior"][name].values[0], value.numpy())
    theta = z["mu"][:, None] + z["tau"][:, None] * z["t"]
    assert idata["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert list(idata["posterior"]["school"].values) == list("abcdefgh")
    np.testing.assert_allclose(idata["posterior"]["theta"].values[0], theta, rtol=1e-5)
    expected = dist.Normal(theta, SIGMA).log_prob(Y)
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0], expected, rtol=1e-5)
    stats = idata["sample_stats"]
    np.testing.assert_allclose(stats["lp"].values[0], joint(schools, z, SIGMA, y=Y), rtol=1e-5)
    assert set(stats.data_vars) == {"lp", "diverging"}
    assert list(np.flatnonzero(stats["diverging"].values[0])) == [3, 7]
    assert idata["posterior_predictive"]["y"].shape == idata["prior_predictive"]["y"].shape == (1, 12, 8)
    assert idata["posterior"].attrs["inference_library"] == "pyro"
    assert versions.group(idata, "vi_stats") is None


def test_mcmc_draws_discrete_latents_that_the_sampler_summed_out():
    """y_i ~ N(m_c, 1) with c_i = 0 or 1: at these data the labels are sure, and log p is that of the mixture."""
    y = torch.tensor([-20.0, -21.0, 19.0, 22.0, 20.0])

    def model(y):
        m = pyro.sample("m", dist.Normal(torch.tensor([-20.0, 20.0]), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)))
            pyro.sample("y", dist.Normal(m[c], 1.0), obs=y)

    mcmc = sampled(model, y, draws=6)
    idata = ppgen.from_pyro(mcmc, predictive=False)
    assert (idata["posterior"]["c"].values == [0, 0, 1, 1, 1]).all()
    m = mcmc.get_samples()["m"]
    mixture = dist.Normal(m[:, None], 1.0).log_prob(y[:, None]).logsumexp(-1) - np.log(2)
    prior = dist.Normal(torch.tensor([-20.0, 20.0]), 1.0).log_prob(m).sum(-1)
    np.testing.assert_allclose(idata["sample_stats"]["lp"].values[0], prior + mixture.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0], mixture, rtol=1e-5)


def test_a_model_that_reads_values_runs_draw_by_draw():
    def reads_a_value(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 2.0 if m > 0 else 1.0), obs=y)

    mcmc = sampled(reads_a_value, Y, draws=4, kernel=HMC)
    with pytest.warns(UserWarning, match="runs once for each draw"):
        idata = ppgen.from_pyro(mcmc)
    expected = joint(reads_a_value, mcmc.get_samples(), Y)
    np.testing.assert_allclose(idata["sample_stats"]["lp"].values[0], expected, rtol=1e-5)


def test_draws_of_a_guide_are_those_of_a_fit():
    """One place makes both: equal draws, weights, likelihoods, and predictive draws for equal seeds."""
    pair = Conjugate(shift=0.2, widen=1.1)
    ours = ppgen.from_pyro_svi(pair.model, pair.guide, pair.data, draws=60, chunk=1000)
    theirs = untrained_fit(pair.model, pair.guide, *pair.data).to_arviz(*pair.data, draws=60, chunk=1000)
    for group in ("posterior", "posterior_resampled", "sample_stats", "log_likelihood", "prior_predictive"):
        for name, value in theirs[group].data_vars.items():
            np.testing.assert_array_equal(ours[group][name].values, value.values)
    assert float(ours["vi_stats"]["pareto_k"].values[0]) == float(theirs["vi_stats"]["pareto_k"].values[0])


def test_stock_svi_with_keywords_plates_and_names_of_events():
    def model(x, y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"event_dims": ["covariate"]})
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal((x * b).sum(-1), 1.0), obs=y)

    x, y = torch.randn(7, 2), torch.randn(7)
    guide = trained(model, AutoNormal(model), x, y=y)
    idata = ppgen.from_pyro_svi(model, guide, x, {"y": y}, draws=30)
    assert idata["posterior"]["b"].dims == ("chain", "draw", "covariate")
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "rows")
    b = torch.tensor(idata["posterior"]["b"].values[0])
    stats = idata["sample_stats"]
    np.testing.assert_allclose(stats["lp"].values[0], joint(model, {"b": b}, x, y=y), rtol=1e-5)
    q = dist.Normal(guide.locs.b, guide.scales.b).log_prob(b).sum(-1).detach()
    np.testing.assert_allclose(stats["log_q"].values[0], q, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"], rtol=1e-5)
    pooled = ppgen.from_pyro_svi(model, guide, x, {"y": y}, draws=30, sample_dims=["sample"], dims={"b": ["k"]})
    assert pooled["posterior"]["b"].dims == ("sample", "k")
    assert pooled["sample_stats"]["log_q"].dims == ("sample",)
    assert pooled["vi_stats"]["pareto_k"].dims == ()
    np.testing.assert_array_equal(pooled["posterior"]["b"].values, b)
    assert str(loo(pooled)) == str(loo(idata))


def test_plates_that_subsample_use_all_rows_where_programs_can():
    """The weights are those of all rows, and do not depend on the subsample of the run."""

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=3) as rows:
            pyro.sample("y", dist.Normal(m, 1.0), obs=y[rows])

    guide = trained(model, AutoNormal(model), Y)
    idata = ppgen.from_pyro_svi(model, guide, Y, draws=25)
    m = torch.tensor(idata["posterior"]["m"].values[0])
    expected = dist.Normal(0.0, 1.0).log_prob(m) + dist.Normal(m[:, None], 1.0).log_prob(Y).sum(-1)
    np.testing.assert_allclose(idata["sample_stats"]["lp"].values[0], expected, rtol=1e-5)


def test_a_point_estimate_has_no_weights():
    idata = ppgen.from_pyro_svi(schools, trained(schools, AutoDelta(schools), SIGMA, Y), (SIGMA, Y), draws=25)
    assert versions.group(idata, "sample_stats") is None
    assert "a single value" in idata["posterior"].attrs["density"]


def batched(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample=torch.arange(len(y))):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def takes_a_batch(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 8, subsample_size=3):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def test_bad_input_is_refused_by_name():
    def misses(*args):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(TypeError, match=r"expected a pyro.infer.MCMC, got dict"):
        ppgen.from_pyro({})
    with pytest.raises(TypeError, match="a kernel of a model"):
        ppgen.from_pyro(MCMC(NUTS(potential_fn=lambda z: z["a"] ** 2), 2, initial_params={"a": torch.zeros(())}))
    with pytest.raises(ValueError, match="no draws yet"):
        ppgen.from_pyro(MCMC(NUTS(schools), num_samples=4))
    with pytest.raises(ValueError, match=r"'data' has 8 of 100 rows at 'y'"):
        ppgen.from_pyro(sampled(batched, Y, draws=2))
    with pytest.raises(ValueError, match=r"'data' has 8 of 100 rows at 'y'"):
        ppgen.from_pyro_svi(batched, trained(batched, AutoNormal(batched), Y), Y)
    with pytest.raises(ValueError, match=r"'data' has 3 of 8 rows at 'y'"):
        ppgen.from_pyro_svi(takes_a_batch, trained(takes_a_batch, AutoNormal(takes_a_batch), Y[:3]), Y[:3])
    with pytest.raises(ValueError, match="never run"):
        ppgen.from_pyro_svi(schools, AutoNormal(schools), (SIGMA, Y))
    with pytest.raises(LookupError, match="does not draw 'tau', 't'"):
        ppgen.from_pyro_svi(schools, misses, (SIGMA, Y))
    with pytest.raises(ValueError, match="at least 25 draws"):
        ppgen.from_pyro_svi(schools, misses, (SIGMA, Y), draws=5)
    with pytest.raises(ValueError, match="sample_dims is"):
        ppgen.from_pyro_svi(schools, misses, (SIGMA, Y), sample_dims=["draw"])


def test_leave_one_out_is_that_of_arviz_stats():
    """Total, each datum and its k-hat; p differs, since theirs takes the guide's draws for the posterior's."""
    stats = pytest.importorskip("arviz_stats")
    if not hasattr(stats, "loo_approximate_posterior"):
        pytest.skip("arviz_stats has no loo_approximate_posterior")
    xr = importlib.import_module("xarray")
    for options in ({}, {"widen": 1.3}, {"shift": 0.5, "widen": 1.1}):
        pair = Conjugate(**options)
        idata = ppgen.from_pyro_svi(pair.model, pair.guide, pair.data, draws=1000, chunk=1000)
        tree = xr.DataTree.from_dict(
            {name: versions.group(idata, name) for name in ("log_likelihood", "observed_data")}
        )
        lp, log_q = (versions.group(idata, "sample_stats")[name] for name in ("lp", "log_q"))
        theirs = stats.loo_approximate_posterior(tree, log_p=lp, log_q=log_q, pointwise=True)
        ours = loo(idata)
        total, pointwise = (ours.elpd, ours.elpd_i) if versions.IS_NEW else (ours.elpd_loo, ours.loo_i)
        assert total == pytest.approx(theirs.elpd, abs=1e-6)
        np.testing.assert_allclose(pointwise, theirs.elpd_i, atol=1e-6)
        np.testing.assert_allclose(ours.pareto_k, theirs.pareto_k, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu")
def test_chains_of_several_processes():
    mcmc = MCMC(NUTS(schools), num_samples=10, warmup_steps=5, num_chains=2, disable_progbar=True)
    mcmc.run(SIGMA, y=Y)
    idata = ppgen.from_pyro(mcmc)
    assert idata["posterior"]["theta"].shape == (2, 10, 8)
    for name, value in mcmc.get_samples(group_by_chain=True).items():
        assert np.array_equal(idata["posterior"][name].values, value.numpy())
