"""``guide="auto"`` finds posteriors that are known."""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_cases import covariates, regression, trained_fit, two_sides
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.nn import PyroModule, PyroSample
from torch import nn

import ppgen
from ppgen.diagnostics import bidirectional_ais
from ppgen.diagnostics.verdict import GOOD, UNKNOWN, WEIGHTED
from ppgen.fitting import Fit
from ppgen.tracing.programs import validation


def exact_regression(x, y):
    """Mean, covariance and log evidence."""
    design = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)
    precision = design.T @ design + torch.eye(3, dtype=x.dtype) / 1e8
    mean = torch.linalg.solve(precision, design.T @ y)
    residual = y @ y - mean @ precision @ mean
    evidence = -0.5 * (len(y) * math.log(2 * math.pi) + residual + torch.logdet(precision) + 3 * math.log(1e8))
    return mean.numpy(), torch.linalg.inv(precision).numpy(), float(evidence)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e4, 0.0), (1.0, 1e3)], ids=["plain", "scaled", "shifted"])
def test_a_regression_is_found_whatever_the_units_of_its_covariates(scale, shift):
    """Means within 0.1 sd and sds within 10 % of the exact ones; the errors of 2000 draws are 0.022 sd and 1.6 %."""
    x, y = covariates(scale=scale, shift=shift)
    fit = ppgen.fit(regression, "auto", (x, y), progress=False)
    mean, covariance, evidence = exact_regression(x, y)
    idata = fit.to_arviz(x, y, draws=500, predictive=False, chunk=250)
    draws = idata.posterior["b"].values.reshape(-1, 3)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean) / sd, 0.1)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)
    np.testing.assert_allclose(idata.vi_stats["log_marginal"].values, evidence, atol=1e-3)
    assert fit.diagnose(x, y).level == GOOD


@pytest.mark.slow
def test_a_linear_state_space_is_found():
    """A random walk observed with noise. Posterior and evidence are those of the joint Gaussian."""
    torch.manual_seed(0)
    steps = 12
    y = (torch.randn(steps).cumsum(0) + 0.5 * torch.randn(steps)).double()

    def walk(y):
        z = torch.zeros(())
        for t in range(steps):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=y[t])

    prior = torch.minimum(*torch.meshgrid(*[torch.arange(1.0, steps + 1).double()] * 2, indexing="ij"))
    marginal = prior + 0.25 * torch.eye(steps).double()
    mean = prior @ torch.linalg.solve(marginal, y)
    sd = (prior - prior @ torch.linalg.solve(marginal, prior)).diagonal().sqrt()
    fit = ppgen.fit(walk, "auto", y, progress=False)
    assert fit.diagnose(y).level == GOOD
    idata = fit.to_arviz(y, draws=4000, predictive=False, chunk=1000)
    z = np.stack([idata.posterior[f"z_{t}"].values[fit.best] for t in range(steps)], -1)
    np.testing.assert_allclose((z.mean(0) - mean.numpy()) / sd.numpy(), 0, atol=0.08)
    np.testing.assert_allclose(np.log(z.std(0) / sd.numpy()), 0, atol=0.06)
    exact = float(dist.MultivariateNormal(torch.zeros(steps).double(), marginal).log_prob(y))
    assert float(idata.vi_stats["log_marginal"][fit.best]) == pytest.approx(exact, abs=0.01)


def test_a_mean_with_unknown_scale_and_data_of_single_precision():
    y = torch.randn(200) * 3 + 100

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1000.0))
        s = pyro.sample("s", dist.HalfCauchy(10.0))
        with pyro.plate("data", 200):
            pyro.sample("y", dist.Normal(m, s), obs=y)

    fit = ppgen.fit(model, "auto", None, progress=False)
    verdict = fit.diagnose()
    assert verdict.level == GOOD, str(verdict)
    draws = fit.to_arviz(draws=500, predictive=False, chunk=250).posterior
    assert abs(float(draws["m"].mean()) - float(y.mean())) < 0.1 * float(y.std()) / math.sqrt(200)
    assert float(draws["s"].mean()) == pytest.approx(float(y.std()), rel=0.02)


@pytest.mark.slow
def test_flat_priors_have_a_posterior_but_no_prior_draws():
    """A mean and a scale with flat priors: m given y is Student's t with n - 2 degrees of freedom."""
    y = torch.randn(100, generator=torch.Generator().manual_seed(0)).double() + 2

    def model(y):
        m = pyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
        s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, s), obs=y)

    fit = ppgen.fit(model, "auto", y, progress=False)
    assert fit.diagnose(y).level == GOOD
    idata = fit.to_arviz(y, draws=2000)
    assert "prior" not in idata
    assert "does not support sampling" in idata.posterior.attrs["prior"]
    scale = math.sqrt(float((y - y.mean()).square().sum()) / 98 / 100)
    m = idata.posterior_resampled["m"].values.ravel()
    assert m.mean() == pytest.approx(float(y.mean()), abs=0.1 * scale)
    assert m.std() == pytest.approx(scale * math.sqrt(98 / 96), rel=0.06)


def test_a_point_estimate_with_a_flat_prior_has_groups_without_a_two_sample_test():
    def model(y):
        m = pyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    point = AutoDelta(model, init_loc_fn=init_to_value(values={"m": torch.zeros(())}))
    fit = trained_fit(model, point, torch.randn(10), steps=5)
    idata = fit.to_arviz(torch.randn(10), draws=50)
    assert "two_sample" not in idata
    assert fit.diagnose(torch.randn(10)).level == UNKNOWN


@pytest.mark.slow
def test_a_flow_is_fitted_where_a_gaussian_is_not_good():
    """A banana, which no Gaussian fits."""

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        pyro.sample("b", dist.Normal(0.03 * (a**2 - 100), 1.0))

    fit = ppgen.fit(model, "auto", None, progress=False)
    assert "flow" in fit.metadata["auto"]
    verdict = fit.diagnose()
    assert verdict.level in (GOOD, WEIGHTED), str(verdict)
    draws = fit.to_arviz(draws=2000, predictive=False, chunk=500).posterior_resampled
    assert abs(float(draws["a"].mean())) < 1.0
    assert float(draws["a"].std()) == pytest.approx(10.0, rel=0.1)
    assert abs(float(draws["b"].mean())) < 0.1 * float(draws["b"].std())


def test_several_modes_become_a_mixture():
    """Two modes of unequal mass in the plane. The mixture is exact, with its weights and its evidence."""
    low = dist.MultivariateNormal(torch.tensor([-4.0, 0.0]), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    high = dist.MultivariateNormal(torch.tensor([4.0, 2.0]), 0.3 * torch.eye(2))

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        pyro.factor("sides", torch.logaddexp(low.log_prob(z) + math.log(0.2), high.log_prob(z) + math.log(0.8)))
        pyro.factor("prior", -dist.Normal(torch.zeros(2), 10.0).to_event(1).log_prob(z))

    fit = ppgen.fit(model, "auto", None, progress=False)
    assert fit.metadata["auto"] == "mixture of Gaussians"
    assert fit.diagnose().level == GOOD
    idata = fit.to_arviz(draws=4000, predictive=False)
    z = idata.posterior["z"].values[0]
    left = z[:, 0] < 0
    assert left.mean() == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 4000))
    np.testing.assert_allclose(z[left].mean(0), [-4, 0], atol=0.15)
    assert float(idata.vi_stats["log_marginal"][0]) == pytest.approx(0.0, abs=0.01)


@pytest.mark.slow
def test_a_hierarchical_model_of_many_latents_is_found():
    """Too many latents for a full L. Given its scales the model is conjugate, which gives the expected means."""
    torch.manual_seed(0)
    groups, each = 60, 8
    of = torch.arange(groups).repeat(each)
    y = (1.0 + 0.7 * torch.randn(groups)[of] + torch.randn(groups * each)).double()

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfNormal(2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("groups", groups):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(theta[of], sigma), obs=y)

    fit = ppgen.fit(model, "auto", y, progress=False)
    verdict = fit.diagnose(y)
    assert verdict.level in (GOOD, WEIGHTED), str(verdict)
    assert "missed_mode_mass" in verdict.statistics
    found = fit.to_arviz(y, draws=2000, predictive=False).posterior
    mu, tau, sigma = (float(found[name].mean()) for name in ("mu", "tau", "sigma"))
    precision = each / sigma**2 + 1 / tau**2
    expected = (y.reshape(each, groups).sum(0).numpy() / sigma**2 + mu / tau**2) / precision
    np.testing.assert_allclose(found["theta"].mean(("chain", "draw")), expected, atol=0.15 / math.sqrt(precision))


def test_hopeless_starts_are_tried_again():
    """Poisson counts with an unscaled covariate: the rate overflows at most starting points."""
    torch.manual_seed(0)
    x = torch.rand(50, dtype=torch.float64) * 300
    y = torch.poisson(torch.exp(1.0 + 0.005 * x))

    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(torch.exp(a + b * x)), obs=y)

    fit = ppgen.fit(model, "auto", (x, y), progress=False)
    assert np.ptp([chain.final for chain in fit.chains]) < 0.01
    assert fit.diagnose(x, y).level in (GOOD, WEIGHTED)


def test_a_mixture_is_found_with_its_components_summed_out():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(30) - 3, torch.randn(30) + 3]).double()

    def model(x):
        low = pyro.sample("low", dist.Normal(-2.0, 1.0))
        gap = pyro.sample("gap", dist.LogNormal(1.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(low + gap * k, 1.0), obs=x)

    fit = ppgen.fit(model, "auto", x, progress=False)
    assert fit.diagnose(x).level == GOOD
    found = fit.to_arviz(x, draws=100, predictive=False).posterior
    assert float(found["low"].mean()) == pytest.approx(float(x[:30].mean()), abs=0.1)
    assert float((found["k"].mean(("chain", "draw")).values.round() == (x > 0).numpy()).mean()) > 0.95


@pytest.mark.slow
def test_a_gaussian_process_is_found_though_some_covariances_are_singular():
    torch.manual_seed(0)
    x = torch.linspace(0, 1, 12, dtype=torch.float64)
    y = torch.sin(6 * x) + 0.1 * torch.randn(12, dtype=torch.float64)

    def model(y):
        length = pyro.sample("length", dist.LogNormal(-1.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(-2.0, 1.0))
        covariance = (-0.5 * ((x[:, None] - x) / length) ** 2).exp()  # singular without noise^2
        distribution = dist.MultivariateNormal(torch.zeros(12), covariance + torch.diag((noise**2).expand(12)))
        pyro.sample("y", distribution, obs=y)

    assert ppgen.fit(model, "auto", y, progress=False).diagnose(y).level in (GOOD, WEIGHTED)


# densities with edges


@pytest.mark.parametrize("hole", [math.nan, -math.inf])
def test_a_mode_at_an_edge_is_found(hole):
    """The mode with 99 % of the mass is truncated 0.8 sd from its center."""
    model = two_sides(0.99, edge=-4.4, hole=hole)
    fit = ppgen.fit(model, "auto", None, progress=False)
    assert np.isfinite([chain.final for chain in fit.chains]).all()
    with validation(False):
        x = fit.to_arviz(draws=1000, predictive=False).posterior["x"].values[fit.best]
    assert (x < 0).mean() > 0.9
    if hole == -math.inf:  # Pyro's validation refuses a NaN
        assert np.isfinite(bidirectional_ais(fit, draws=32, temperatures=20).lower)


@pytest.mark.slow
def test_weights_that_cannot_be_relied_on_move_no_gaussian():
    """About one draw in 4000 of the curvature's Gaussian falls into the box, and a single draw has no covariance."""

    def box():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("box", torch.where((x.abs() < 0.02).all(-1), 0.0, -torch.inf))

    fit = ppgen.fit(box, "auto", None, seed=1, restarts=1, progress=False)
    assert all(value.isfinite().all() for value in fit.chains[fit.best].weights.values())


@pytest.mark.slow
def test_a_report_is_written_for_a_latent_that_bounds_the_data(tmp_path):
    """Data beyond t have no density: in many steps the ELBO uses only part of the draws."""
    y = torch.tensor([0.3, 0.9, 0.7, 0.8])

    def model(y):
        t = pyro.sample("t", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(y)):
            inside = torch.where(y < t, -t.log(), -torch.inf)
            pyro.factor("y", inside)

    fit = ppgen.fit(model, "auto", y, progress=False)
    assert fit.report(tmp_path / "page.html", y).exists()


# seeds and files


def test_a_seed_reproduces_the_fit_and_the_callers_random_state_is_preserved():
    x, y = covariates()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fits = [ppgen.fit(regression, "auto", (x, y), seed=7, progress=False) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    for name, value in fits[0].chains[0].weights.items():
        assert torch.equal(value, fits[1].chains[0].weights[name])


def test_a_fit_is_saved_and_loaded(tmp_path):
    x, y = covariates()
    fit = ppgen.fit(regression, "auto", (x, y), progress=False)
    fit.save(tmp_path / "fit.safetensors")
    other = ppgen.fit(regression, "auto", (x, y), seed=5, restarts=1, progress=False)
    loaded = Fit.load(tmp_path / "fit.safetensors", other.model, other.guide)
    assert torch.equal(loaded.guide.loc, fit.guide.loc)
    assert loaded.metadata == fit.metadata
    assert az.summary(loaded.to_arviz(x, y, draws=50, predictive=False)).shape[0] == 3


# bad input


def test_bad_options_are_refused():
    x, y = covariates()
    with pytest.raises(ValueError, match=r"takes no loss, steps; give a guide"):
        ppgen.fit(regression, "auto", (x, y), loss=ppgen.ELBO(), steps=10)
    with pytest.raises(ValueError, match=r'a Pyro program or "auto", got \'nuts\''):
        ppgen.fit(regression, "nuts", (x, y))

    def learned(y):
        s = pyro.param("s", torch.tensor(1.0))
        pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)), s), obs=y)

    with pytest.raises(ValueError, match=r"has the parameters 's', .*: give them priors"):
        ppgen.fit(learned, "auto", (y,))
    with pytest.raises(ValueError, match="no continuous latents"):
        ppgen.fit(lambda y: pyro.sample("y", dist.Normal(0.0, 1.0).expand([60]).to_event(1), obs=y), "auto", (y,))

    def counted(y):
        n = pyro.sample("n", dist.Poisson(3.0))
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m + n, 1.0).expand([60]).to_event(1), obs=y)

    def wide(y):
        pyro.sample("m", dist.Normal(0.0, 1.0).expand([3001]).to_event(1))

    with pytest.raises(ValueError, match=r"of dimension 3000 at most; .* have dimension 3001.*AutoLowRank"):
        ppgen.fit(wide, "auto", (y,))

    with pytest.raises(ValueError, match=r"'n' to enumeration, but its distribution Poisson has no finite"):
        ppgen.fit(counted, "auto", (y,))


# supports and programs that strangers write


@pytest.mark.slow
def test_a_support_that_depends_on_a_latent_is_followed():
    """a ~ Gamma(5, 2), b ~ Uniform(0, a), y ~ N(b, 0.3), against quadrature; 4000 draws."""

    y = torch.tensor(1.0)

    def model():
        a = pyro.sample("a", dist.Gamma(5.0, 2.0))
        b = pyro.sample("b", dist.Uniform(0.0, a))
        pyro.sample("y", dist.Normal(b, 0.3), obs=y)

    a = np.linspace(0.005, 14, 2000)[:, None]
    b = a * (np.arange(1000) + 0.5) / 1000
    cell = (a[1] - a[0]) / 1000
    density = a**4 * np.exp(-2 * a) * 2**5 / 24 * np.exp(-0.5 * ((1 - b) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi))
    evidence = float((density * cell).sum())
    fit = ppgen.fit(model, "auto", None, restarts=2, progress=False)
    assert fit.diagnose(starts=2).level == GOOD
    idata = fit.to_arviz(draws=4000, predictive=False, chunk=1000)
    for name, grid in (("a", a + 0 * b), ("b", b)):
        mean = float((density * grid * cell).sum()) / evidence
        sd = math.sqrt(float((density * (grid - mean) ** 2 * cell).sum()) / evidence)
        draws = idata.posterior[name].values[fit.best]
        assert abs(draws.mean() - mean) < 0.08 * sd
        assert draws.std() == pytest.approx(sd, rel=0.06)
    assert float(idata.vi_stats["log_marginal"][fit.best]) == pytest.approx(math.log(evidence), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 4])
def test_a_latent_that_bounds_the_data_is_found_from_each_seed(seed):
    """y ~ Uniform(0, u), below whose edge most of the prior lies, against quadrature."""
    y = torch.tensor([3.0, 6.0, 2.0, 5.0, 1.0])

    def model(y):
        u = pyro.sample("u", dist.LogNormal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Uniform(0.0, u), obs=y)

    t = np.linspace(math.log(6), math.log(1e6), 200_001)
    density = np.exp(-(t**2) / 8 - 5 * t) / (2 * math.sqrt(2 * math.pi)) * (t[1] - t[0])
    evidence = math.log(density.sum())
    fit = ppgen.fit(model, "auto", y, seed=seed, progress=False)
    assert fit.diagnose(y).level in (GOOD, WEIGHTED)
    idata = fit.to_arviz(y, draws=4000, predictive=False, chunk=1000)
    assert float(idata.vi_stats["log_marginal"][fit.best]) == pytest.approx(evidence, abs=0.1)
    median = np.exp(t[np.searchsorted(density.cumsum(), density.sum() / 2)])
    u = idata.posterior_resampled["u"].values[0]
    assert (u > 6).all()
    assert np.median(u) == pytest.approx(median, rel=0.03)


def test_pyros_tutorial_on_bayesian_regression_runs():
    """A PyroModule whose weights are PyroSamples, against the conjugate posterior given the known noise."""
    x, y = covariates()

    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1e4).expand([1, 2]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 1e4).expand([1]).to_event(1))

        def forward(self, x, y=None):
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = ppgen.fit(Regression(), "auto", (x, y), restarts=2, progress=False)
    assert fit.diagnose(x, y, starts=2).level == GOOD
    mean, covariance, evidence = exact_regression(x, y)
    idata = fit.to_arviz(x, y, draws=2000, predictive=False, chunk=1000)
    draws = np.stack(
        [idata.posterior["linear.bias"][fit.best, :, 0], *idata.posterior["linear.weight"][fit.best, :, 0].T]
    )
    np.testing.assert_allclose(draws.mean(1), mean, atol=0.1 * np.sqrt(covariance.diagonal().min()))
    np.testing.assert_allclose(draws.std(1), np.sqrt(covariance.diagonal()), rtol=0.08)
    np.testing.assert_allclose(idata.vi_stats["log_marginal"].values, evidence, atol=1e-3)


@pytest.mark.extensive
def test_a_program_that_branches_on_a_latent_is_fitted_draw_by_draw():
    """The evidence and the mean of a density with a kink at 0, against quadrature."""

    y = torch.tensor(0.4)

    def kinked():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m if m > 0 else 0.5 * m, 0.5), obs=y)

    m = np.linspace(-8, 8, 16_001)
    density = np.exp(-0.5 * m**2 - 2 * (0.4 - np.where(m > 0, m, 0.5 * m)) ** 2) / (math.pi) * (m[1] - m[0])
    with pytest.warns(UserWarning, match="the program kinked runs once for each draw"):
        fit = ppgen.fit(kinked, "auto", None, restarts=1, progress=False)
    idata = fit.to_arviz(draws=500, predictive=False)
    assert float(idata.vi_stats["log_marginal"][0]) == pytest.approx(math.log(density.sum()), abs=0.05)
    assert abs(float(idata.posterior["m"].mean()) - (m * density).sum() / density.sum()) < 0.1


# bounded, ordered and correlated latents


def correlation_root(x):
    root = pyro.sample("root", dist.LKJCholesky(2, 2.0))
    pyro.deterministic("r", root[..., 1, 0])
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=root), obs=x)


def correlation_matrix(x):
    matrix = pyro.sample("matrix", dist.LKJ(2, 2.0))
    pyro.deterministic("r", matrix[..., 1, 0])
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), matrix), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("model", [correlation_root, correlation_matrix])
def test_a_correlation_has_the_posterior_of_a_grid(model):
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) @ root.T
    r = np.linspace(-0.9999, 0.9999, 20_001)
    moments = (x.double().T @ x.double()).numpy()
    exponent = (moments[0, 0] + moments[1, 1] - 2 * r * moments[0, 1]) / (1 - r**2)
    density = (1 - r**2) ** (1 - 10) * np.exp(-0.5 * exponent)
    density /= density.sum()
    mean = float(density @ r)
    sd = math.sqrt(float(density @ (r - mean) ** 2))
    fit = ppgen.fit(model, "auto", x, restarts=2, progress=False)
    assert fit.diagnose(x, starts=2).level in (GOOD, WEIGHTED)
    draws = fit.to_arviz(x, draws=4000, predictive=False, chunk=1000).posterior_resampled["r"].values[fit.best]
    assert abs(draws.mean() - mean) < 0.08 * sd
    assert draws.std() == pytest.approx(sd, rel=0.06)


@pytest.mark.slow
def test_ordered_and_simplex_latents_have_their_closed_forms():
    """Cuts c_1 < c_2 with c_1 and log (c_2 - c_1) normal; shares under counts of a Dirichlet prior."""

    def ordered():
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("cuts", dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()]))

    def shares():
        p = pyro.sample("shares", dist.Dirichlet(torch.full((3,), 0.5)))
        pyro.sample("y", dist.Multinomial(30, p), obs=torch.tensor([20.0, 8.0, 2.0]))

    fit = ppgen.fit(ordered, "auto", None, restarts=2, progress=False)
    assert fit.diagnose(starts=2).level == GOOD
    cuts = fit.to_arviz(draws=4000, predictive=False, chunk=1000).posterior["cuts"].values[fit.best]
    logs = np.stack([cuts[:, 0], np.log(np.diff(cuts)[:, 0])])
    np.testing.assert_allclose(logs.mean(1), 0, atol=0.07)
    np.testing.assert_allclose(logs.std(1), 1, rtol=0.05)
    fit = ppgen.fit(shares, "auto", None, restarts=2, progress=False)
    found = fit.to_arviz(draws=4000, predictive=False, chunk=1000).posterior["shares"].values[fit.best]
    exact = dist.Dirichlet(torch.tensor([20.5, 8.5, 2.5]))
    np.testing.assert_allclose(found.mean(0), exact.mean.numpy(), atol=0.008)
    np.testing.assert_allclose(found.std(0), exact.variance.sqrt().numpy(), rtol=0.08)
