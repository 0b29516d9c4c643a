"""The groups that ArviZ gets, their layout, and how they are drawn."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from torch.utils.data import TensorDataset

import ppgen
from ppgen.diagnostics import from_netcdf, to_netcdf
from ppgen.models import VAE

N, D = 12, 3


GROUPS = (
    "posterior",
    "sample_stats",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
    "vi_stats",
)


def chain_of(model, guide, *data, steps=2, **options):
    """A fit of a few steps: these tests look at the layout, not at the fit."""
    return ppgen.fit(model, guide, data, steps=steps, progress=False, **options)


@pytest.fixture
def vae():
    return VAE((D,), latent_dim=2, hidden=(8,))


@pytest.fixture
def regression():
    """Global latents alone: y ~ N(a + b x, 1)."""

    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            loc = pyro.deterministic("loc", a + (x * b).sum(-1), event_dim=0)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    return model, AutoNormal(model)


def test_layout_of_local_latents(vae):
    x = torch.randn(N, D)
    idata = chain_of(vae.model, vae.guide, x, restarts=2).to_arviz(x, draws=30, chunk=13)
    dims = {group: {k: v.dims for k, v in idata[group].data_vars.items()} for group in GROUPS}
    sample = ("chain", "draw", "data")
    assert dims == {
        "posterior": {"z": (*sample, "z_dim")},
        "sample_stats": {"lp": sample, "log_q": sample, "log_weight": sample, "log_weight_smoothed": sample},
        "posterior_predictive": {"x": (*sample, "x_dim")},
        "prior": {"z": (*sample, "z_dim")},
        "prior_predictive": {"x": (*sample, "x_dim")},
        "observed_data": {"x": ("data", "x_dim")},
        "vi_stats": {
            "pareto_k": ("chain", "data"),
            "log_marginal": ("chain", "data"),
            "log_marginal_error": ("chain", "data"),
            "ess": ("chain", "data"),
            "elbo": ("chain", "data"),
            "elbo_trace": ("chain", "step"),
        },
    }
    assert idata["posterior"]["z"].shape == (2, 30, N, 2)
    assert idata["vi_stats"]["elbo_trace"].shape == (2, 2)
    assert np.array_equal(idata["observed_data"]["x"].values, x.numpy())


def test_an_amortized_model_has_no_pointwise_likelihood(vae):
    x = torch.randn(N, D)
    assert not hasattr(chain_of(vae.model, vae.guide, x).to_arviz(x, draws=25), "log_likelihood")


def test_layout_of_global_latents(regression):
    x, y = torch.randn(N, 2), torch.randn(N)
    fit = chain_of(*regression, x, y, restarts=2)
    idata = fit.to_arviz(x, y, draws=40)
    assert idata["posterior"]["a"].dims == ("chain", "draw")
    assert idata["posterior"]["b"].dims == ("chain", "draw", "b_dim")
    assert idata["posterior"]["loc"].dims == ("chain", "draw", "data")
    assert idata["sample_stats"]["log_weight"].dims == ("chain", "draw")
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    assert idata["vi_stats"]["pareto_k"].dims == ("chain",)
    a, b = (idata["posterior"][k].values for k in "ab")
    loc = a[..., None] + np.einsum("cdk,nk->cdn", b, x.numpy())
    np.testing.assert_allclose(idata["posterior"]["loc"].values, loc, atol=1e-5)
    expected = -0.5 * (y.numpy() - loc) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values, expected, atol=1e-4)


def test_a_program_that_does_not_broadcast_is_run_draw_by_draw(regression):
    x, y = torch.randn(N, 2), torch.randn(N)

    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            loc = pyro.deterministic("loc", a + x @ b)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    vectorized = chain_of(*regression, x, y).to_arviz(x, y, draws=40)
    single = chain_of(model, AutoNormal(model), x, y).to_arviz(x, y, draws=40)
    for group in ("posterior", "log_likelihood", "sample_stats", "prior_predictive", "observed_data", "vi_stats"):
        assert {k: (v.dims, v.shape) for k, v in single[group].data_vars.items()} == {
            k: (v.dims, v.shape) for k, v in vectorized[group].data_vars.items()
        }
    a, b = (single["posterior"][k].values for k in "ab")
    loc = a[..., None] + np.einsum("cdk,nk->cdn", b, x.numpy())
    np.testing.assert_allclose(single["posterior"]["loc"].values, loc, atol=1e-5)


def test_a_program_that_does_not_broadcast_may_have_any_distribution():
    """`vmap` cannot draw from a Beta, and Laplace draws by filling a tensor."""
    x, y = torch.randn(N, 2), torch.randn(N)

    def model(x, y):
        share = pyro.sample("share", dist.Beta(2.0, 6.0))
        b = torch.stack([share, 1 - share])
        with pyro.plate("data", len(x)):
            loc = pyro.deterministic("loc", x @ b)
            pyro.sample("y", dist.Laplace(loc, 1.0), obs=y)

    idata = chain_of(model, AutoNormal(model), x, y).to_arviz(x, y, draws=200)
    for group, error in (("posterior", None), ("prior", 4 * math.sqrt(0.25 * 0.75 / 9 / 200))):
        share, loc = (idata[group][name].values for name in ("share", "loc"))
        b = np.stack([share, 1 - share], -1)
        np.testing.assert_allclose(loc, b @ x.numpy().T, atol=1e-5)
        assert error is None or abs(share.mean() - 0.25) < error
    for group, locs in (("posterior_predictive", "posterior"), ("prior_predictive", "prior")):
        noise = idata[group]["y"].values - idata[locs]["loc"].values
        assert abs(np.abs(noise).mean() - 1) < 4 / math.sqrt(noise.size)
        assert abs(np.corrcoef(noise[0].T)[0, 1]) < 0.3  # each number has a draw of its own


@pytest.mark.parametrize("enumerated", [False, True])
def test_a_wrong_broadcast_without_an_error_is_detected(enumerated):
    """``scale[:, None] * ROOT`` scales columns, not rows, where scales have particles to their left."""
    y, root = torch.randn(N, 2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])

    def model(y):
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones(2)).to_event(1))
        with pyro.plate("data", len(y)):
            part = pyro.sample("part", dist.Bernoulli(0.5)) if enumerated else torch.tensor(0.0)
            loc = part[..., None] * torch.ones(2)
            pyro.sample("y", dist.MultivariateNormal(loc, scale_tril=scale[:, None] * root), obs=y)

    guide = AutoNormal(pyro.poutine.block(model, hide=["part"]), init_scale=0.5)
    program, loss = config_enumerate(model), TraceEnum_ELBO() if enumerated else None
    pyro.clear_param_store()
    fit = ppgen.fit(program, guide, y, loss=loss, steps=2, progress=False, compile=False)
    idata = fit.to_arviz(y, draws=30, predictive=not enumerated)
    scale = torch.as_tensor(idata["posterior"]["scale"].values[0])
    parts = [
        dist.MultivariateNormal(torch.full((2,), k), scale_tril=(scale[..., None] * root)[:, None]).log_prob(y)
        for k in (0.0, 1.0)
    ]
    of_y = torch.stack(parts).logsumexp(0) - math.log(2) if enumerated else parts[0]
    expected = dist.HalfNormal(1.0).log_prob(scale).sum(-1) + of_y.sum(-1)
    np.testing.assert_allclose(idata["sample_stats"]["lp"].values[0], expected.numpy(), rtol=1e-4)


def test_data_may_be_a_tuple_or_a_dataset(regression):
    x, y = torch.randn(N, 2), torch.randn(N)
    fit = chain_of(*regression, x, y)
    apart = fit.to_arviz(x, y, draws=25)
    for whole in ((x, y), TensorDataset(x, y)):
        together = fit.to_arviz(whole, draws=25)
        np.testing.assert_array_equal(together["sample_stats"]["lp"].values, apart["sample_stats"]["lp"].values)


def test_an_error_of_the_program_itself_is_not_swallowed(regression):
    model, guide = regression
    fit = chain_of(model, guide, torch.randn(N, 2), torch.randn(N))
    with pytest.raises((RuntimeError, ValueError)):
        fit.to_arviz(torch.randn(N, 5), torch.randn(N), draws=25)


def test_the_joint_density_is_that_of_the_program(regression):
    x, y = torch.randn(N, 2), torch.randn(N)
    idata = chain_of(*regression, x, y).to_arviz(x, y, draws=30)
    a, b = (torch.as_tensor(idata["posterior"][k].values[0]) for k in "ab")
    prior = dist.Normal(0.0, 1.0)
    likelihood = torch.as_tensor(idata["log_likelihood"]["y"].values[0]).sum(-1)
    expected = prior.log_prob(a) + prior.log_prob(b).sum(-1) + likelihood
    np.testing.assert_allclose(idata["sample_stats"]["lp"].values[0], expected.numpy(), rtol=1e-4)


def test_each_chain_has_its_weights_and_the_live_ones_are_restored(regression):
    x, y = torch.randn(N, 2), torch.randn(N)
    fit = chain_of(*regression, x, y, restarts=3, steps=1)
    before = {k: v.clone() for k, v in fit.chains[fit.best].weights.items()}
    idata = fit.to_arviz(x, y, draws=200)
    centers = [chain.weights["AutoNormal.locs.a"] for chain in fit.chains]
    scales = idata["posterior"]["a"].std("draw").values
    # five standard errors of a mean of 200 draws
    assert np.all(np.abs(idata["posterior"]["a"].mean("draw").values - np.array(centers)) < 5 * scales / 200**0.5)
    assert torch.equal(fit.guide.locs.a, before["AutoNormal.locs.a"])


def test_loss_trace_unless_the_loss_bounds_the_evidence(vae):
    x = torch.randn(N, D)
    fit = chain_of(vae.model, vae.guide, x, loss=ppgen.recipes.vae(beta=2.0))
    stats = fit.to_arviz(x, draws=25)["vi_stats"]
    assert "loss_trace" in stats
    assert "elbo_trace" not in stats
    np.testing.assert_allclose(stats["loss_trace"].values[0], fit.history["loss"])


def test_netcdf_round_trip(vae, tmp_path):
    x = torch.randn(N, D)
    idata = chain_of(vae.model, vae.guide, x).to_arviz(x, draws=25)
    to_netcdf(idata, tmp_path / "posterior.nc")
    back = from_netcdf(tmp_path / "posterior.nc")
    for group in GROUPS:
        assert back[group].equals(idata[group]), group


def test_predictive_groups_can_be_left_out(vae):
    x = torch.randn(N, D)
    idata = chain_of(vae.model, vae.guide, x).to_arviz(x, draws=25, predictive=False)
    assert not hasattr(idata, "posterior_predictive")
    assert hasattr(idata, "posterior")


def test_draws_are_seeded_and_keep_the_random_state(vae):
    x = torch.randn(N, D)
    fit = chain_of(vae.model, vae.guide, x)
    state = torch.get_rng_state()
    first, second = (fit.to_arviz(x, draws=25, seed=3)["posterior"]["z"].values for _ in range(2))
    assert np.array_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert not np.array_equal(first, fit.to_arviz(x, draws=25, seed=4)["posterior"]["z"].values)


def test_too_few_draws_are_refused(vae):
    x = torch.randn(N, D)
    with pytest.raises(ValueError, match="at least 25 draws"):
        chain_of(vae.model, vae.guide, x).to_arviz(x, draws=10)
    for draws in (0, 1):  # whose values do not differ, as those of a point
        with pytest.raises(ValueError, match=f"at least 25 draws, .* got {draws}"):
            chain_of(vae.model, vae.guide, x).to_arviz(x, draws=draws)
    with pytest.raises(ValueError, match="chunks of at least 1, got 30 in 0"):
        chain_of(vae.model, vae.guide, x).to_arviz(x, draws=30, chunk=0)


def test_a_factor_that_depends_on_an_enumerated_latent_joins_the_likelihood():
    """log sum_c p(c) f(c) p(x_i | c), under the names of both."""
    x = torch.tensor([0.3, -1.0])

    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.factor("prefer", -2.0 * c)
            pyro.sample("x", dist.Normal(shift + c, 1.0), obs=x)

    def guide(x):
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))

    loss = ppgen.ELBO(elbo=TraceEnum_ELBO(max_plate_nesting=1))
    idata = chain_of(model, guide, x, loss=loss).to_arviz(x, draws=30)
    shift = idata["posterior"]["shift"].values[..., None]
    terms = [math.log(p) - 2 * c - 0.5 * (x.numpy() - shift - c) ** 2 for c, p in ((0, 0.7), (1, 0.3))]
    expected = np.logaddexp(*terms) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(idata["log_likelihood"]["prefer+x"].values, expected, atol=1e-5)


def test_observations_with_a_leading_dimension_of_size_one():
    """A program that does not broadcast, which vmap runs: its distributions have no dimension of the draws."""
    x = torch.randn(1, 4)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0)).sum()
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    idata = chain_of(model, guide, x).to_arviz(x, draws=25)
    np.testing.assert_array_equal(idata["observed_data"]["x"].values, x[0].numpy())
    mean = idata["posterior"]["mean"].values[..., None]
    expected = -0.5 * (x[0].numpy() - mean) ** 2 - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(idata["log_likelihood"]["x"].values, expected, atol=1e-5)


def test_a_reparametrized_latent_is_a_latent_and_no_observation():
    """Pyro's reparametrizations replace it by auxiliary latents, and observe it as what follows from them."""
    y = torch.tensor([0.3, -1.0])

    def model(y):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", 2):
            theta = pyro.sample("theta", dist.Normal(1.0, scale))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    model = pyro.poutine.reparam(model, config={"theta": LocScaleReparam(0.0)})
    idata = chain_of(model, AutoNormal(model), y).to_arviz(y, draws=30)
    assert set(idata.posterior.data_vars) == {"scale", "theta", "theta_decentered"}
    assert set(idata.prior.data_vars) == {"scale", "theta", "theta_decentered"}
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        assert set(idata[group].data_vars) == {"y"}
    expected = 1 + idata.posterior["scale"].values[..., None] * idata.posterior["theta_decentered"].values
    np.testing.assert_allclose(idata.posterior["theta"].values, expected, rtol=1e-5)


def test_deterministic_sites_that_reduce_have_a_value_for_each_draw():
    def totals(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("total", b.sum())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * b).sum(-1), 1.0), obs=y)

    x, y = torch.randn(5, 2), torch.randn(5)
    idata = chain_of(totals, AutoNormal(totals), x, y).to_arviz(x, y, draws=30)
    for group in ("posterior", "prior"):
        total = idata[group]["total"]
        assert total.dims == ("chain", "draw")
        np.testing.assert_allclose(total.values, idata[group]["b"].values.sum(-1), rtol=1e-5)
