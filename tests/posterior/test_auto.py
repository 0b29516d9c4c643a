"""``guide="auto"`` finds posteriors that are known, and `diagnose` calls failures failures."""

import math
from functools import partial

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, init_to_value
from torch.distributions import biject_to

import ppgen
from ppgen.diagnostics import bidirectional_ais, diagnose
from ppgen.diagnostics import verdict as verdict_module
from ppgen.diagnostics.verdict import BAD, GOOD, RICHER, UNKNOWN, WEIGHTED
from ppgen.fitting import Fit
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import find_modes
from ppgen.tracing.programs import validation
from ppgen.training.result import Chain

SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def covariates(n: int = 60, *, scale: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(n, 2, dtype=torch.float64)
    y = 1.0 + x @ torch.tensor([0.5, -2.0], dtype=torch.float64) + torch.randn(n, dtype=torch.float64)
    return x * torch.tensor([scale, 1.0], dtype=torch.float64) + shift, y


def regression(x, y):
    """Conjugate but for its matrix product, which does not broadcast; its noise is known."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1e4).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[0] + x @ b[1:], 1.0), obs=y)


def exact_regression(x, y):
    """Mean, covariance and log evidence."""
    design = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)
    precision = design.T @ design + torch.eye(3, dtype=x.dtype) / 1e8
    mean = torch.linalg.solve(precision, design.T @ y)
    residual = y @ y - mean @ precision @ mean
    evidence = -0.5 * (len(y) * math.log(2 * math.pi) + residual + torch.logdet(precision) + 3 * math.log(1e8))
    return mean.numpy(), torch.linalg.inv(precision).numpy(), float(evidence)


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=y)


def two_modes():
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    sides = torch.stack([dist.Normal(-4.0, 0.5).log_prob(x), dist.Normal(4.0, 0.5).log_prob(x)])
    pyro.factor("sides", sides.logsumexp(0))


def correlated():
    distribution = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]]))
    pyro.sample("z", distribution)


def heavy():
    pyro.sample("z", dist.Cauchy(torch.zeros(5), 1.0).to_event(1))


def given(model, guide, *data) -> Fit:
    """A fit of one chain that nobody trained."""
    chain = Chain({}, {"loss": np.zeros(1)}, {"step": np.zeros(0), "loss": np.zeros(0)}, "given", 1, 0.0)
    return Fit(model, guide, None, [chain], data)


def drawing(name: str, distribution):
    """A guide that draws one latent."""
    return lambda *_: pyro.sample(name, distribution)


def trained(model, guide, *data, steps: int, **options) -> Fit:
    pyro.clear_param_store()
    adam = partial(torch.optim.Adam, lr=0.02)
    return ppgen.fit(model, guide, data or None, optim=adam, steps=steps, progress=False, compile=False, **options)


# the density on the real line


def test_the_density_is_the_joint_with_the_maps_volume():
    def model(y):
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w[0], s), obs=y)

    y = torch.randn(5, dtype=torch.float64)
    target = UnconstrainedLogDensity(model, (y,))
    u = target.initial_points(4, torch.Generator().manual_seed(0))
    z = target.constrain(u)
    expected = dist.Gamma(2.0, 1.0).log_prob(z["s"]) + dist.Dirichlet(torch.ones(3).double()).log_prob(z["w"])
    expected += dist.Normal(z["w"][:, :1], z["s"][:, None]).log_prob(y).sum(-1)
    for support, part, value in (
        (dist.constraints.positive, u[:, 0], z["s"]),
        (dist.constraints.simplex, u[:, 1:], z["w"]),
    ):
        expected += biject_to(support).log_abs_det_jacobian(part, value)
    value, slope = target.log_prob_and_grad(u)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(target.log_prob(u), expected)
    torch.testing.assert_close(target.unconstrain(z), u)
    moved = [(target.log_prob(u + 1e-6 * e) - target.log_prob(u - 1e-6 * e)) / 2e-6 for e in torch.eye(3).double()]
    torch.testing.assert_close(slope, torch.stack(moved, -1), rtol=1e-5, atol=1e-6)
    assert target.labels == ["s", "w[0]", "w[1]"]


def test_discrete_latents_are_summed_out():
    @config_enumerate
    def model(x):
        m = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(m[k], 1.0), obs=x)

    x = torch.randn(6, dtype=torch.float64)
    target = UnconstrainedLogDensity(model, (x,))
    u = target.initial_points(3, torch.Generator().manual_seed(0))
    components = dist.Normal(u[:, :, None], 1.0).log_prob(x) + torch.tensor([0.3, 0.7]).double().log()[:, None]
    expected = dist.Normal(torch.tensor([-1.0, 1.0]).double(), 1.0).log_prob(u).sum(-1) + components.logsumexp(1).sum(
        -1
    )
    torch.testing.assert_close(target.log_prob_and_grad(u)[0], expected, rtol=1e-6, atol=1e-6)


def test_a_subsampling_plate_takes_all_of_its_rows():
    y = torch.randn(8, dtype=torch.float64)

    def model(y, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 8, subsample_size=size) as rows:
            pyro.sample("y", dist.Normal(m, 1.0), obs=y[rows])

    u = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        UnconstrainedLogDensity(model, (y, 3)).log_prob(u), UnconstrainedLogDensity(model, (y,)).log_prob(u)
    )


def test_a_program_may_write_into_tensors_that_it_makes():
    """By itself, as values that are missing are filled in, or in a law of torch's or Pyro's."""
    x, seen = torch.tensor([0.5, 0.0, -1.0, 0.0]), torch.tensor([True, False, True, False])

    def filled(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        whole = x.clone()
        whole[~seen] = z
        pyro.sample("y", dist.Normal(whole, 1.0).to_event(1), obs=y)

    def plain(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        whole = torch.stack([x[0], z[..., 0], x[2], z[..., 1]])
        pyro.sample("y", dist.Normal(whole, 1.0).to_event(1), obs=y)

    def ordered(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        cuts = torch.stack([z[0], z[0] + z[1].exp()])
        with pyro.plate("data", 4):
            pyro.sample("y", dist.OrderedLogistic(torch.zeros(4), cuts), obs=y)

    def categories(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        below = torch.stack([z[0], z[0] + z[1].exp()]).sigmoid()
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Categorical(torch.cat([below, torch.ones(1)]).diff(prepend=torch.zeros(1))), obs=y)

    def counts(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Multinomial(5, logits=torch.cat([z, torch.zeros(1)])), obs=y)

    def times(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        log_law = torch.cat([z, torch.zeros(1)]).log_softmax(-1)
        pyro.factor("y", (y * log_law).sum() + math.log(10.0))  # 5! / (2! 3!)

    u = torch.randn(3, 2, dtype=torch.float64)
    for writes, other, y in (
        (filled, plain, torch.randn(4)),
        (ordered, categories, torch.tensor([0, 1, 2, 1])),
        (counts, times, torch.tensor([2.0, 0.0, 3.0])),
    ):
        for found, expected in zip(
            *(UnconstrainedLogDensity(m, (y,)).log_prob_and_grad(u) for m in (writes, other)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# posteriors that are known


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e4, 0.0), (1.0, 1e3)], ids=["plain", "scaled", "shifted"])
def test_a_regression_is_found_whatever_the_units_of_its_covariates(scale, shift):
    """Means within .1 and deviations within 10 % of the exact ones; 2000 draws have errors of .022 and 1.6 %."""
    x, y = covariates(scale=scale, shift=shift)
    fit = ppgen.fit(regression, "auto", (x, y), progress=False)
    mean, covariance, evidence = exact_regression(x, y)
    idata = fit.to_arviz(x, y, draws=500, predictive=False, chunk=250)
    draws = idata.posterior["b"].values.reshape(-1, 3)
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean) / deviation, 0.1)
    np.testing.assert_allclose(draws.std(0), deviation, rtol=0.1)
    np.testing.assert_allclose(idata.vi_stats["log_marginal"].values, evidence, atol=1e-3)
    assert fit.diagnose(x, y).level == GOOD


def test_a_linear_state_space_is_found():
    """A random walk seen through noise: posterior and evidence by the joint Gaussian, as Kalman's filter has them."""
    torch.manual_seed(0)
    steps = 12
    y = (torch.randn(steps).cumsum(0) + 0.5 * torch.randn(steps)).double()

    def walk(y):
        z = torch.zeros(())
        for t in range(steps):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=y[t])

    prior = torch.minimum(*torch.meshgrid(*[torch.arange(1.0, steps + 1).double()] * 2, indexing="ij"))
    seen = prior + 0.25 * torch.eye(steps).double()
    mean = prior @ torch.linalg.solve(seen, y)
    sd = (prior - prior @ torch.linalg.solve(seen, prior)).diagonal().sqrt()
    fit = ppgen.fit(walk, "auto", y, progress=False)
    assert fit.diagnose(y).level == GOOD
    idata = fit.to_arviz(y, draws=4000, predictive=False, chunk=1000)
    z = np.stack([idata.posterior[f"z_{t}"].values[fit.best] for t in range(steps)], -1)
    np.testing.assert_allclose((z.mean(0) - mean.numpy()) / sd.numpy(), 0, atol=0.08)
    np.testing.assert_allclose(np.log(z.std(0) / sd.numpy()), 0, atol=0.06)
    exact = float(dist.MultivariateNormal(torch.zeros(steps).double(), seen).log_prob(y))
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


def test_flat_priors_have_posteriors_and_no_draws():
    """A mean and a scale without priors, p(m, s) = 1: m given y is Student's t of n - 2 degrees."""
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


def test_a_point_with_a_flat_prior_has_groups_without_a_test_of_draws():
    def model(y):
        m = pyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    point = AutoDelta(model, init_loc_fn=init_to_value(values={"m": torch.zeros(())}))
    fit = trained(model, point, torch.randn(10), steps=5)
    idata = fit.to_arviz(torch.randn(10), draws=50)
    assert "two_sample" not in idata
    assert fit.diagnose(torch.randn(10)).level == UNKNOWN


@pytest.mark.slow
def test_a_flow_is_taken_where_a_gaussian_does_not_serve():
    """A banana: its curve is beyond any Gaussian's reach."""

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


def test_modes_that_starts_have_found_are_mixed():
    """Two of unequal mass in the plane; the mixture is the posterior itself, shares and evidence too."""
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


def test_a_hierarchy_of_many_latents_is_found():
    """More than there is a full matrix for. Given its scales it is conjugate, beside which groups' means are laid."""
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


def test_starts_that_lead_nowhere_are_begun_again():
    """Poisson counts with a raw covariate: from most starts the rate overflows."""
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


def test_a_gaussian_process_is_found_though_some_points_have_no_factor():
    torch.manual_seed(0)
    x = torch.linspace(0, 1, 12, dtype=torch.float64)
    y = torch.sin(6 * x) + 0.1 * torch.randn(12, dtype=torch.float64)

    def model(y):
        length = pyro.sample("length", dist.LogNormal(-1.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(-2.0, 1.0))
        covariance = (-0.5 * ((x[:, None] - x) / length) ** 2).exp()  # without noise^2 it has no factor
        distribution = dist.MultivariateNormal(torch.zeros(12), covariance + torch.diag((noise**2).expand(12)))
        pyro.sample("y", distribution, obs=y)

    def singular(y):
        model(y)
        flat = pyro.sample("flat", dist.Normal(0.0, 1.0))
        pyro.factor("none", -torch.linalg.cholesky(torch.eye(2) * (flat + 0.5)).diagonal().square().sum())

    assert ppgen.fit(model, "auto", y, progress=False).diagnose(y).level in (GOOD, WEIGHTED)
    found = find_modes(*_started(UnconstrainedLogDensity(singular, (y,))))
    assert found.elbo.isfinite().any()


def _started(target: UnconstrainedLogDensity) -> tuple:
    generator = torch.Generator().manual_seed(0)
    return target, target.initial_points(4, generator), generator


def test_the_same_seed_finds_the_same_and_leaves_the_callers_numbers():
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


# failures, planted


def failing(name: str) -> tuple[Fit, tuple]:
    if name == "mean field of a correlated law":  # the best there is: its variances are those given the other
        return given(correlated, drawing("z", dist.Normal(torch.zeros(2), 0.3122).to_event(1))), ()
    if name == "one of two modes":
        return given(two_modes, drawing("x", dist.Normal(3.96, 0.5))), ()
    if name == "both modes, by different restarts":
        between = AutoDiagonalNormal(two_modes, init_loc_fn=init_to_value(values={"x": torch.zeros(())}))
        return trained(two_modes, between, steps=400, restarts=4), ()
    if name == "light tails":
        return given(heavy, drawing("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))), ()
    if name == "centered eight schools":
        return trained(schools, AutoDiagonalNormal(schools), SCHOOLS, steps=800), (SCHOOLS,)
    x, y = (part.float() for part in covariates())
    return trained(regression, AutoMultivariateNormal(regression), x, y, steps=20), (x, y)


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("mean field of a correlated law", "pareto_k"),
        ("centered eight schools", "pareto_k"),
        ("one of two modes", "missed_mode_mass"),
        ("both modes, by different restarts", "r_hat"),
        ("light tails", "pareto_k"),
        ("stopped too early", "pareto_k"),
    ],
)
def test_a_planted_failure_is_called_one(name, figure):
    fit, data = failing(name)
    verdict = fit.diagnose(*data)
    assert verdict.level == BAD, str(verdict)
    assert figure in verdict.reasons
    assert verdict.advice
    assert figure in str(verdict)
    assert BAD in str(verdict)


def test_a_mode_elsewhere_is_told_on_one_line():
    def model():
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 2):
            x = pyro.sample("x", dist.Normal(0.0, 10.0))
            sides = torch.stack([dist.Normal(-4.0, 0.5).log_prob(x), dist.Normal(4.0, 0.5).log_prob(x)])
            pyro.factor("sides", sides.logsumexp(0))

    def guide():
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 2):
            pyro.sample("x", dist.Normal(4.0, 0.5))

    verdict = given(model, guide).diagnose()
    assert "x = [" in verdict.reasons["missed_mode_mass"]
    assert len(str(verdict).splitlines()) == 1 + len(verdict.statistics) + len(verdict.advice)


@pytest.mark.parametrize(("share", "width", "level"), [(0.01, 10.0, BAD), (0.003, 4.0, GOOD)])
def test_a_wide_tail_behind_equal_weights_is_judged_by_what_it_holds(share, width, level):
    """A hundredth of the mass ten times as wide doubles the variance; less, four times as wide, is of no account."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        wide = dist.Normal(0.0, width).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        pyro.factor("wide", torch.logaddexp(torch.tensor(1 - share).log(), torch.tensor(share).log() + wide))

    guide = AutoDiagonalNormal(model, init_loc_fn=init_to_value(values={"z": torch.zeros(())}), init_scale=1.0)
    verdict = trained(model, guide, steps=1).diagnose(draws=4000)  # hardly a step from N(0, 1)
    assert verdict.statistics["ess_ratio"] > 0.99
    assert verdict.statistics["pareto_k"] > 0.5
    assert "missed_tail_mass" in verdict.statistics
    assert verdict.level == level, str(verdict)


def test_what_auto_found_is_not_told_to_try_auto():
    fit, data = failing("light tails")
    assert RICHER in fit.diagnose(*data).advice
    fit.metadata["auto"] = "Gaussian of full rank"
    verdict = fit.diagnose(*data)
    assert verdict.level == BAD
    assert verdict.advice
    assert RICHER not in verdict.advice


def test_a_fit_without_a_density_is_not_judged():
    fit = trained(correlated, AutoDelta(correlated), steps=5)
    verdict = fit.diagnose()
    assert verdict.level == UNKNOWN
    assert "a point" in str(verdict)


@pytest.mark.slow
def test_good_fits_are_called_good():
    """An exact guide of a conjugate model, over 40 data sets: good at least 38 times, 95 %."""
    levels = []
    for seed in range(40):
        torch.manual_seed(seed)
        y = torch.randn(12, dtype=torch.float64) + 1

        def model(y):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(m, 1.0), obs=y)

        def guide(y):
            pyro.sample("m", dist.Normal(y.sum() / (len(y) + 1), 1.02 / math.sqrt(len(y) + 1)))

        levels.append(diagnose(given(model, guide, y), y, draws=400, starts=2).level)
    assert levels.count(GOOD) >= 38


# densities with edges and holes


def two_sides(share: float, *, edge: float = -math.inf, hole: float = math.nan):
    """N(-4, .5^2) and N(4, .5^2), the former's share given, and no density, or none that is a number, below an edge."""
    shares = torch.tensor([share, 1 - share]).log()
    centers = torch.tensor([-4.0, 4.0])

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        height = (dist.Normal(centers, 0.5).log_prob(x[..., None]) + shares).logsumexp(-1)
        pyro.factor("sides", torch.where(x > edge, height - dist.Normal(0.0, 10.0).log_prob(x), hole))

    return model


def test_a_mode_with_a_hole_beside_it_is_not_overlooked():
    """Below -5.2, 2.4 deviations from the other mode, log p is NaN, where draws from there fall."""
    verdict = given(two_sides(0.5, edge=-5.2), drawing("x", dist.Normal(4.0, 0.5))).diagnose()
    assert verdict.level == BAD, str(verdict)
    assert "missed_mode_mass" in verdict.reasons


@pytest.mark.parametrize("hole", [math.nan, -math.inf])
def test_a_mode_at_an_edge_is_found(hole):
    """99 % of the mass is at the mode that is cut .8 deviations from its middle."""
    model = two_sides(0.99, edge=-4.4, hole=hole)
    fit = ppgen.fit(model, "auto", None, progress=False)
    assert np.isfinite([chain.final for chain in fit.chains]).all()
    with validation(False):
        x = fit.to_arviz(draws=1000, predictive=False).posterior["x"].values[fit.best]
    assert (x < 0).mean() > 0.9
    if hole == -math.inf:  # Pyro's own checks refuse a NaN where they see one
        assert np.isfinite(bidirectional_ais(fit, draws=32, temperatures=20).lower)


def test_a_page_is_written_of_a_latent_that_bounds_data(tmp_path):
    """U(0, t) has no density of data beyond t: many steps' bounds are of a part of the draws."""
    y = torch.tensor([0.3, 0.9, 0.7, 0.8])

    def model(y):
        t = pyro.sample("t", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(y)):
            inside = torch.where(y < t, -t.log(), -torch.inf)
            pyro.factor("y", inside)

    fit = ppgen.fit(model, "auto", y, progress=False)
    assert fit.report(tmp_path / "page.html", y).exists()


def test_draws_of_other_data_cannot_be_judged_without_them():
    x, y = covariates()
    fit = given(regression, drawing("b", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)), x, y)
    with pytest.raises(ValueError, match="needs the data"):
        fit.diagnose(idata=fit.to_arviz(x, y, draws=50, predictive=False))


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """How many draws each verdict was made of."""
    counts: list[int] = []
    true = verdict_module.to_arviz
    monkeypatch.setattr(
        verdict_module, "to_arviz", lambda fit, *data, **how: counts.append(how["draws"]) or true(fit, *data, **how)
    )
    return counts


def test_more_draws_are_taken_near_a_bound(taken):
    """A guide a little too narrow, its k-hat in between; and an exact one, which needs no more."""
    given(correlated, drawing("z", dist.Normal(torch.zeros(2), 0.8).to_event(1))).diagnose(starts=0)
    assert taken == [1000, 4000]
    taken.clear()
    exact = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]]))
    given(correlated, drawing("z", exact)).diagnose(starts=0)
    assert taken == [1000]


def test_a_guide_too_wide_needs_its_weights_though_their_tail_is_good(taken):
    """Deviations 1.15 times the posterior's: no weight is above 1.15; 1000 draws leave it open, 4000 do not."""

    def standard():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    verdict = given(standard, drawing("z", dist.Normal(torch.zeros(2), 1.15).to_event(1))).diagnose()
    assert taken == [1000, 4000]
    assert verdict.statistics["pareto_k"] < 0.3
    assert verdict.statistics["log_ratio"] == pytest.approx(math.log(1.15), abs=0.03)
    assert verdict.level == WEIGHTED
    assert list(verdict.reasons) == ["log_ratio"]


# amortized guides


def rows(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def amortized(wrong: bool):
    """The exact posterior of each row, N(.8 x, .2), by a network; the wrong one lets through no negative means."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 0.8)
    encoder = torch.nn.Sequential(layer, torch.nn.ReLU()) if wrong else layer

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x[:, None])[:, 0], math.sqrt(0.2)))

    return guide


@pytest.mark.parametrize(("wrong", "level"), [(False, GOOD), (True, BAD)])
def test_an_amortized_guide_is_judged_by_its_rows(wrong, level):
    pyro.clear_param_store()
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)) * math.sqrt(1.25)
    verdict = given(rows, amortized(wrong), x).diagnose(x)
    assert verdict.level == level, str(verdict)
    assert ("bad_rows" in verdict.reasons) == wrong


# bad input


def test_a_flat_direction_is_named():
    x, y = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)

    def model(x, y):
        b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real_vector, (), (5,)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"no posterior: its density is constant along the direction \(.*b\[\d\]"):
        ppgen.fit(model, "auto", (x, y), progress=False)


def test_a_density_that_is_nowhere_finite_names_the_site():
    def model():
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, -s * s), obs=torch.tensor(1.0))

    with pytest.raises(FloatingPointError, match=r"log p of 'y' is not finite .* s = "):
        ppgen.fit(model, "auto", None, progress=False)


def test_bad_options_are_refused():
    x, y = covariates()
    with pytest.raises(ValueError, match=r"takes no loss, steps; give a guide"):
        ppgen.fit(regression, "auto", (x, y), loss=ppgen.ELBO(), steps=10)
    with pytest.raises(ValueError, match=r'a Pyro program or "auto", got \'nuts\''):
        ppgen.fit(regression, "nuts", (x, y))

    def learned(y):
        s = pyro.param("s", torch.tensor(1.0))
        pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)), s), obs=y)

    with pytest.raises(ValueError, match=r"has parameters, 's': give them priors"):
        ppgen.fit(learned, "auto", (y,))
    with pytest.raises(ValueError, match="no continuous latents"):
        ppgen.fit(lambda y: pyro.sample("y", dist.Normal(0.0, 1.0).expand([60]).to_event(1), obs=y), "auto", (y,))

    def counted(y):
        n = pyro.sample("n", dist.Poisson(3.0))
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m + n, 1.0).expand([60]).to_event(1), obs=y)

    def wide(y):
        pyro.sample("m", dist.Normal(0.0, 1.0).expand([3001]).to_event(1))

    with pytest.raises(ValueError, match=r"at most 3000; the program has 3001 numbers.*AutoLowRank"):
        ppgen.fit(wide, "auto", (y,))

    with pytest.raises(ValueError, match=r"'n' to enumeration, but its distribution Poisson has no finite"):
        ppgen.fit(counted, "auto", (y,))


def test_data_outside_a_laws_support_are_said():
    def model(y):
        rate = pyro.sample("rate", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Bernoulli(rate), obs=y)

    with pytest.raises(ValueError, match="support"):
        ppgen.fit(model, "auto", (torch.tensor([1.0, 2.0, 0.0]),), progress=False)


def test_data_of_a_type_without_a_density_are_said():
    def model(y):
        rate = pyro.sample("rate", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Bernoulli(rate), obs=y)

    for y in (torch.tensor([1, 0, 1]), torch.tensor([True, False, True])):
        with pytest.raises(ValueError, match=rf"the distribution Bernoulli of 'y' has no density at values of {y.dtype}"):
            ppgen.fit(model, "auto", y, progress=False)


def test_a_program_that_reads_values_is_told_so():
    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m if m > 0 else -m, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"cannot be evaluated at many points at once .* reads a latent's value"):
        ppgen.fit(model, "auto", None, progress=False)


def test_climbing_stops_before_a_density_without_end():
    """Eight schools' joint density rises without end as tau goes to 0: what is taken has most evidence, not height."""
    target = UnconstrainedLogDensity(schools, (SCHOOLS,))
    generator = torch.Generator().manual_seed(0)
    found = find_modes(target, target.initial_points(4, generator), generator)
    assert (found.center[:, target.labels.index("tau")] > -2).all()
    assert found.elbo.isfinite().all()
