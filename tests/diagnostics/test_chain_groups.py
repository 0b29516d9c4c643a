"""The groups of one chain: discrete latents, programs without a density, and the models of the package."""

import io
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy.special import expit, logsumexp
from scipy.stats import norm
from support import untrained_fit

import ppgen
from ppgen import models, recipes
from ppgen.diagnostics import to_arviz
from ppgen.diagnostics.chain_groups import draws_at_a_time
from ppgen.tracing.particles import log_weights, particle_traces
from ppgen.utils.arviz_versions import group

N, B = 20, 4


def fitted(model, guide, *data, steps=1, **options):
    return ppgen.fit(model, guide, data or None, steps=steps, progress=False, compile=False, **options)


def mixture(x, *, fixed=None):
    """Two normals; the component of each row is left to enumeration, the means are drawn or fixed."""
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).to_event(1)) if fixed is None else fixed
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(torch.where(c == 1, means[..., 1], means[..., 0]), 1.0), obs=x)


def enumerated(model, *data, hide=("c",), **options):
    guide = AutoNormal(poutine.block(model, hide=list(hide)))
    loss = ppgen.ELBO(elbo=TraceEnum_ELBO(max_plate_nesting=1))
    return fitted(model, guide, *data, loss=loss, **options)


def test_enumerated_latents_are_drawn_from_their_posterior_and_summed_out():
    """Shares of 4000 draws within .04 of the closed form at each draw's means, five standard errors."""
    x = torch.linspace(-2, 3, 7)
    idata = enumerated(mixture, x, steps=20).to_arviz(x, draws=4000, chunk=4000)
    means = idata.posterior.means.values[0]
    parts = [np.log(w) + norm(means[:, k, None], 1).logpdf(x.numpy()) for k, w in enumerate((0.7, 0.3))]
    np.testing.assert_allclose(idata.log_likelihood.x.values[0], logsumexp(parts, axis=0), atol=1e-5)
    lp = norm([-1.0, 1.0], 0.5).logpdf(means).sum(-1) + logsumexp(parts, axis=0).sum(-1)
    np.testing.assert_allclose(idata.sample_stats.lp.values[0], lp, rtol=1e-4)
    share = expit(parts[1] - parts[0]).mean(0)
    np.testing.assert_allclose(idata.posterior.c.values[0].mean(0), share, atol=0.04)
    assert idata.vi_stats.pareto_k.shape == (1,)
    # x' is drawn at the assignments that x has
    c = idata.posterior.c.values[0]
    gap = idata.posterior_predictive.x.values[0] - np.where(c == 1, means[:, 1:], means[:, :1])
    assert abs(gap.mean()) < 5 / gap.size**0.5
    assert abs(gap.std() - 1) < 0.05


def test_weights_are_the_exact_evidence_if_all_latents_are_summed_out():
    x, means = torch.linspace(-2, 3, 7), torch.tensor([-1.0, 1.0])
    model = lambda x: mixture(x, fixed=means)  # noqa: E731
    torch.manual_seed(0)
    weights = log_weights(model, lambda x: None, (x,), particles=2000)
    exact = logsumexp([np.log(0.7) + norm(-1, 1).logpdf(x), np.log(0.3) + norm(1, 1).logpdf(x)], axis=0)
    np.testing.assert_allclose(weights[:1].numpy(), exact[None], atol=1e-5)
    (draws,) = particle_traces(model, lambda x: None, (x,), particles=2000)
    share = expit(np.log(0.3) + norm(1, 1).logpdf(x) - np.log(0.7) - norm(-1, 1).logpdf(x))
    drawn = draws.with_sampled_discrete.nodes["c"]["value"].expand(2000, 7).mean(0)
    np.testing.assert_allclose(drawn.numpy(), share, atol=0.05)  # four and a half standard errors of a share


def test_draws_are_made_a_few_at_a_time_where_data_are_many(monkeypatch):
    assert draws_at_a_time((torch.zeros(10),), 250) == 250
    assert draws_at_a_time((torch.zeros(2**15), torch.zeros(2**15), None), 250) == 2**21 // 2**16
    assert draws_at_a_time((torch.zeros(2**22),), 250) == 1
    x = torch.randn(10)
    fit = enumerated(mixture, x)
    sizes = []

    def recorded(*args, particles, **options):
        sizes.append(particles)
        return particle_traces(*args, particles=particles, **options)

    monkeypatch.setattr("ppgen.diagnostics.chain_groups.particle_traces", recorded)
    monkeypatch.setattr("ppgen.diagnostics.chain_groups.MAX_NUMBERS", 200)
    assert fit.to_arviz(x, draws=45).posterior.sizes["draw"] == 45
    assert sizes == [20, 20, 5]
    sizes.clear()
    fit.diagnose(x, draws=45, starts=0)
    assert sizes == [20, 20, 5]


def test_likelihoods_are_kept_only_if_they_are_asked_for():
    x = torch.randn(5)
    fit = enumerated(mixture, x)
    for kept in (True, False):
        assert (group(to_arviz(fit, x, draws=25, likelihood=kept), "log_likelihood") is not None) == kept


def test_sites_that_share_a_latent_have_one_likelihood():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(w + c, 1.0), obs=x)
            pyro.sample("y", dist.Normal(w - c, 1.0), obs=y)

    x, y = torch.randn(5), torch.randn(5)
    idata = enumerated(model, x, y).to_arviz(x, y, draws=25)
    assert list(idata.log_likelihood.data_vars) == ["x+y"]
    w = idata.posterior.w.values[..., None]
    parts = [np.log(p) + norm(w + c, 1).logpdf(x) + norm(w - c, 1).logpdf(y) for c, p in enumerate((0.2, 0.3, 0.5))]
    np.testing.assert_allclose(idata.log_likelihood["x+y"].values, logsumexp(parts, axis=0), atol=1e-4)


def test_rows_that_share_a_discrete_latent_have_no_pointwise_likelihood():
    """A hidden chain over the rows: its sum is exact, and belongs to all of them."""
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        c = 0
        for t in pyro.markov(range(len(x))):
            c = pyro.sample(f"c_{t}", dist.Categorical(transition[c]), infer={"enumerate": "parallel"})
            with pyro.plate(f"sensors_{t}", 2):
                pyro.sample(f"x_{t}", dist.Normal(w * c, 1.0), obs=x[t])

    x = torch.randn(3, 2)
    guide = AutoNormal(poutine.block(model, expose=["w"]))
    loss = ppgen.ELBO(elbo=TraceEnum_ELBO(max_plate_nesting=1))
    idata = fitted(model, guide, x, loss=loss).to_arviz(x, draws=25)
    assert not hasattr(idata, "log_likelihood")
    assert {f"c_{t}" for t in range(3)} < set(idata.posterior.data_vars)
    w = idata.posterior.w.values[0]
    forward = np.array([[1.0, 0.0]] * 25)
    for t in range(3):
        emit = np.stack([norm(w[:, None] * c, 1).pdf(x[t].numpy()).prod(-1) for c in (0, 1)], -1)
        forward = forward @ transition.numpy() * emit
    lp = norm.logpdf(w) + np.log(forward.sum(-1))
    np.testing.assert_allclose(idata.sample_stats.lp.values[0], lp, atol=1e-4)


def test_a_latent_that_cannot_be_enumerated_is_named():
    def counts(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Poisson(1.0), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def sequential(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "sequential"})
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    x = torch.randn(4)
    cases = (counts, "its distribution Poisson has no finite support"), (sequential, "'sequential'; the model can")
    for model, says in cases:
        with pytest.raises(ValueError, match=rf"leaves 'c' to enumeration.*{says}"):
            log_weights(model, lambda x: None, (x,), particles=2)


@pytest.mark.parametrize(
    ("make", "loss", "says"),
    [
        (models.Generator, recipes.gan, "gives 'x' by a Delta"),
        (models.ALI, recipes.gan, "gives 'x' by a Delta"),
        (models.Autoencoder, recipes.ae, "the guide gives 'z' a single value"),
    ],
)
def test_without_a_density_there_is_no_khat_but_a_two_sample_test(make, loss, says):
    model, x = make((2,), latent_dim=2, hidden=(4,)), 5 + torch.randn(16, 2)
    idata = fitted(model.model, model.guide, x, loss=loss()).to_arviz(x, draws=30)
    assert says in idata.posterior.attrs["density"]
    assert not hasattr(idata, "sample_stats")
    assert not hasattr(idata, "log_likelihood")
    assert not hasattr(idata, "posterior_resampled")
    assert set(idata.vi_stats.data_vars) == {"loss_trace"}
    assert idata.posterior_predictive.x.shape == (1, 30, 16, 2)
    assert float(idata.two_sample.x.sel(chain=0, two_sample="p_value")) < 0.05  # data are five standard deviations away


def test_a_map_estimate_has_no_weights():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    x = torch.randn(8)
    idata = fitted(model, AutoDelta(model), x).to_arviz(x, draws=30)
    assert "the guide gives 'w' a single value" in idata.posterior.attrs["density"]
    assert not hasattr(idata, "sample_stats")


def test_a_flow_has_its_exact_likelihood_and_no_posterior():
    model, x = models.FlowModel((2,), flow="nice", hidden=(4,)), torch.randn(6, 2)
    idata = fitted(model.model, model.guide, x).to_arviz(x, draws=25)
    assert not hasattr(idata, "posterior")
    exact = model.log_prob(x).detach().numpy()
    np.testing.assert_allclose(idata.vi_stats.log_marginal.values[0], exact, rtol=1e-5)
    np.testing.assert_allclose(idata.log_likelihood.x.values[0, 3], exact, rtol=1e-5)


def test_a_diffusion_has_all_states_of_its_chain():
    model, x = models.Diffusion((2,), hidden=(4,), steps=3), torch.randn(6, 2)
    idata = fitted(model.model, model.guide, x).to_arviz(x, draws=30, dims={"x": ["column"]})
    assert list(idata.posterior.data_vars) == ["z_3", "z_2", "z_1", "z_0"]
    assert idata.vi_stats.pareto_k.dims == ("chain", "data")
    assert idata.observed_data.x.dims == ("data", "column")


@pytest.mark.parametrize("kind", ["continuous diffusion", "flow matching"])
def test_velocity_models_have_the_density_of_their_ode(kind):
    torch.manual_seed(0)
    x = torch.randn(3, 2)
    if kind == "flow matching":
        model, loss = models.FlowMatching((2,), hidden=(4,)), ppgen.ELBO()
    else:
        model, loss = models.Diffusion((2,), hidden=(4,), steps=None), ppgen.DiffusionELBO()
    idata = fitted(model.model, model.guide, x, loss=loss).to_arviz(x, draws=25, predictive=False)
    np.testing.assert_allclose(
        idata.vi_stats.log_marginal.values[0], model.distribution().log_prob(x).detach().numpy(), rtol=1e-4
    )
    assert list(idata.observed_data.data_vars) == ["x"]
    assert ("elbo_trace" in idata.vi_stats) == (kind != "flow matching")


def shapes(group):
    return {str(name): (value.dims, value.shape) for name, value in group.data_vars.items()}


def test_an_autoflow_has_a_density():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, tau), obs=y)

    y = torch.randn(8)
    idata = fitted(model, ppgen.infer.autoguide.flow.AutoFlow(model, flow="realnvp", hidden=(4,)), y).to_arviz(
        y, draws=30
    )
    assert "density" not in idata.posterior.attrs
    assert shapes(idata.posterior) == {"mu": (("chain", "draw"), (1, 30)), "tau": (("chain", "draw"), (1, 30))}


def test_many_draws_show_a_bar_on_a_terminal(monkeypatch):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    x = torch.randn(8)
    fit = fitted(model, AutoNormal(model), x)
    for delay, shown in ((0.0, True), (60.0, False)):
        monkeypatch.setattr("ppgen.diagnostics.chain_groups.BAR_DELAY", delay)
        monkeypatch.setattr("sys.stderr", Terminal())
        fit.to_arviz(x, draws=60, chunk=30)
        assert ("/60" in sys.stderr.getvalue()) == shown


@pytest.mark.parametrize("total", [4, 6])
def test_counts_of_other_totals_than_those_of_predictions_are_named(total):
    """Documents have different lengths, and a Multinomial has one total for all rows."""
    counts = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 1.0], [2.0, 2.0, total - 4.0]])

    def model(counts):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(counts)):
            pyro.sample("words", dist.Multinomial(total, p, validate_args=False), obs=counts)

    def guide(counts):
        pyro.sample("p", dist.Dirichlet(1 + counts.sum(0)))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        idata = untrained_fit(model, guide, counts).to_arviz(counts, draws=30)
    found = [str(each.message) for each in caught if "'words' have sums from 4 to 6" in str(each.message)]
    assert len(found) == (total == 6)
    assert (idata["posterior_predictive"]["words"].sum("words_dim") == total).all()
