"""What ArviZ gets of each kind of program: subsampled, hierarchical, discrete, without latents or without a density."""

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

import ppgen
from ppgen import models, recipes
from ppgen.tracing.particles import log_weights, particle_traces
from ppgen.tracing.plates import all_rows
from ppgen.tracing.traces import Traces

N, B = 20, 4
GROUPS = ("posterior", "log_likelihood", "observed_data", "posterior_predictive", "sample_stats")


def fitted(model, guide, *data, steps=1, **options):
    return ppgen.fit(model, guide, data or None, steps=steps, progress=False, compile=False, **options)


def shapes(group):
    return {str(name): (value.dims, value.shape) for name, value in group.data_vars.items()}


# all rows of a plate that draws a subsample


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
def test_a_subsampled_program_yields_what_the_whole_one_does(local, batch):
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


def test_plates_draw_as_ever_outside():
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


def test_programs_that_take_batches_have_the_rows_that_they_are_given():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    x = torch.randn(N)
    fit = fitted(model, AutoNormal(model), x, batch_size=B)
    assert fit.to_arviz(x, draws=25).log_likelihood.x.shape == (1, 25, N)
    few = fit.to_arviz(x[:7], draws=25)
    np.testing.assert_array_equal(few.observed_data.x.values, x[:7])


def test_a_random_subsample_is_said_to_be_one():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(B), 1.0).to_event(1))  # as long as a batch, so it cannot be whole
        with pyro.plate("data", N, subsample_size=B) as rows:
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[rows])

    with pytest.warns(UserWarning, match=rf"plate 'data' draws {B} of {N} rows.*x\[rows\]"):
        particle_traces(model, AutoNormal(model), (torch.randn(N),), particles=3)


# names


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
        ({"dims": {"b": ["draw"]}}, r"expected 1 different names for 'b', other than those of chains and draws"),
        ({"dims": {"b": ["k"], "y": ["k"]}}, r"'k' has length (2|20) in the variable '[by]' and (2|20) in"),
        ({"coords": {"b_dim": [1, 2, 3]}}, r"expected 2 values for 'b_dim', a dimension of the variable 'b', got 3"),
        ({"coords": {"bdim": [1, 2]}}, r"coords: no dimension 'bdim'; did you mean 'b_dim'"),
    ],
)
def test_names_that_do_not_match_are_refused(regression, options, says):
    fit, x, y = regression
    with pytest.raises(ValueError, match=says):
        fit.to_arviz(x, y, draws=25, **options)


# discrete latents


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


def test_assignments_are_drawn_from_their_posterior_and_summed_out_of_the_densities():
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


def test_at_given_parameters_weights_are_the_exact_evidence_and_draws_differ():
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


# models of the library


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
    assert float(idata.two_sample.x.sel(chain=0, two_sample="p_value")) < 0.05  # data are five deviations away


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


def test_a_chain_of_diffusion_has_all_of_its_states():
    model, x = models.Diffusion((2,), hidden=(4,), steps=3), torch.randn(6, 2)
    idata = fitted(model.model, model.guide, x).to_arviz(x, draws=30, dims={"x": ["column"]})
    assert list(idata.posterior.data_vars) == ["z_3", "z_2", "z_1", "z_0"]
    assert idata.vi_stats.pareto_k.dims == ("chain", "data")
    assert idata.observed_data.x.dims == ("data", "column")


@pytest.mark.parametrize("kind", ["continuous diffusion", "flow matching"])
def test_models_by_velocities_have_the_density_of_their_ode(kind):
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


def test_an_autoflow_goes_along():
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


def test_resampling_per_datum_leaves_out_what_weights_cannot_mend():
    """Rows with a guide as wide as the posterior, and rows with one a fifth as wide."""
    n = 10
    widen = torch.tensor([1.2] * 5 + [0.2] * 5)

    def model(x):
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, pyro.param("s", torch.tensor(1.0))), obs=x)

    def guide(x):
        with pyro.plate("data", n):
            pyro.sample("z", dist.Normal(x / 2, widen * 0.5**0.5))

    idata = fitted(model, guide, torch.randn(n), optim=lambda p: torch.optim.SGD(p, lr=0.0)).to_arviz(
        torch.randn(n), draws=1000, chunk=1000, predictive=False
    )
    bad = idata.vi_stats.pareto_k.values[0] > 1 - 1 / 3
    assert not bad[:5].any()
    assert bad[5:].any()
    assert idata.posterior_resampled.z.dims == idata.posterior.z.dims
    found = idata.posterior_resampled.z.values[0]
    assert np.array_equal(np.isnan(found).all(0), bad)
    assert np.isfinite(found[:, ~bad]).all()
    ratio = found[:, :5].std(0) / idata.posterior.z.values[0][:, :5].std(0)
    np.testing.assert_allclose(ratio, 1 / 1.2, atol=0.08)  # four standard errors of two deviations of 1000 draws
