"""Sequences and crossed effects: what is read of their structure, their densities, and the posterior of all latents."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

import ppgen
from ppgen.posterior import many_rows
from ppgen.posterior.gaussians import GaussianBatch
from ppgen.posterior.laplace import Laplace
from ppgen.posterior.latent_field import FAMILY, UnreadableStructure, find_field
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.many_latents import KnownDensity
from ppgen.posterior.sparse_precision import Arrow, Chain, pattern_of
from ppgen.posterior.sparsity import colored, find_dependencies
from ppgen.utils.budget import Budget

T, A, B, ROWS = 150, 70, 50, 400
GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(T, generator=GENERATOR, dtype=torch.float64)
SERIES = 0.5 * NOISE.cumsum(0) + torch.randn(T, generator=GENERATOR)
COUNTS = torch.poisson(SERIES.clamp(-2, 2).exp(), generator=GENERATOR)
OF_A, OF_B = (torch.randint(size, (ROWS,), generator=GENERATOR) for size in (A, B))
Y = (
    torch.randn(A, generator=GENERATOR)[OF_A]
    + torch.randn(B, generator=GENERATOR)[OF_B]
    + torch.randn(ROWS, generator=GENERATOR)
).double()
REAL = dist.constraints.real


def sums_of_steps(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("steps", len(y)):
        step = pyro.sample("step", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(scale * step.cumsum(-1), noise), obs=y)


def vector_with_a_factor(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    level = pyro.sample("level", dist.ImproperUniform(REAL, (), (len(y),)))
    pyro.factor("walk", dist.Normal(0.0, scale).log_prob(level.diff(prepend=level.new_zeros(1))).sum())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(level.exp()), obs=y)


def trend(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with pyro.plate("steps", len(y)):
        step = pyro.sample("step", dist.Normal(0.0, scale[0]))
        turn = pyro.sample("turn", dist.Normal(0.0, scale[1]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((step + turn.cumsum(-1)).cumsum(-1), 1.0), obs=y)


def crossed(a, b, y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with pyro.plate("rows", A):
        alpha = pyro.sample("alpha", dist.Normal(0.0, spread[0]))
    with pyro.plate("columns", B):
        beta = pyro.sample("beta", dist.Normal(0.0, spread[1]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean + alpha[a] + beta[b], 1.0), obs=y)


def log_gammas(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    level = pyro.sample("level", dist.ImproperUniform(REAL, (), (len(y),)))
    pyro.factor("gamma", (y * level - level.exp()).sum() + mean * 0.0)


def dense(x, y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, scale).expand([T]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def gaussian_series(u, loading, scale, noise, y):
    """log N(y; 0, C) at scales on the real line, with their priors and Jacobians."""
    variance = scale**2 * loading @ loading.mT + noise**2 * torch.eye(len(y)).double()
    prior = sum(dist.HalfNormal(1.0).log_prob(part) for part in (scale, noise)) + u.sum()
    return MultivariateNormal(torch.zeros(len(y)).double(), variance).log_prob(y) + prior


def test_dependencies_of_a_sparse_function_are_found():
    rng = np.random.default_rng(0)
    jacobian = torch.zeros(300, 1000, dtype=torch.float64)
    for row in range(299):
        jacobian[row, rng.choice(1000, rng.integers(6), replace=False)] = 1.0
    jacobian[299] = 1.0
    found = find_dependencies(lambda v: v @ jacobian.mT, 300, 1000)
    assert found.dense.tolist() == [299]
    order = np.lexsort([found.argument, found.value])
    expected = jacobian[:299].nonzero().numpy().T
    assert np.array_equal(np.stack([found.value, found.argument])[:, order], expected)
    color = colored(found.value, found.argument, 1000)
    of_values = np.stack([found.value, color[found.argument]], 1)
    assert len(np.unique(of_values, axis=0)) == len(of_values)


def banded(size, width, rng):
    place = rng.permutation(size)
    pairs = [(place[i], place[i - k]) for i in range(size) for k in range(width + 1) if i >= k]
    return np.max(pairs, 1), np.min(pairs, 1), [np.arange(size)]


def crossing(rng):
    pairs = {(A + int(rng.integers(B)), int(rng.integers(A))) for _ in range(ROWS)} | {(i, i) for i in range(A + B)}
    row, column = np.array(sorted(pairs)).T
    return row, column, [np.arange(A), A + np.arange(B)]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (Chain, lambda rng: banded(1, 0, rng)),
        (Chain, lambda rng: banded(33, 1, rng)),
        (Chain, lambda rng: banded(200, 3, rng)),
        (Arrow, crossing),
    ],
)
def test_sparse_factors_equal_dense_ones(kind, make, monkeypatch):
    monkeypatch.setattr("ppgen.posterior.sparse_precision.WIDEST", 4)
    row, column, families = make(np.random.default_rng(0))
    size = sum(map(len, families))
    entries = torch.where(torch.as_tensor(row == column), 8.0, torch.rand(len(row), generator=GENERATOR)).double()
    entries.requires_grad_()
    lower = torch.zeros(size, size, dtype=torch.float64).index_put(
        (torch.as_tensor(row), torch.as_tensor(column)), entries
    )
    matrix = lower + lower.tril(-1).mT
    pattern = pattern_of(row, column, families)
    factor = pattern.factor(entries)
    assert isinstance(factor, kind)
    inverse = torch.linalg.inv(matrix)
    root = torch.stack([factor.draw(e) for e in torch.eye(size).double()], 1)
    torch.testing.assert_close(root @ root.mT, inverse, rtol=1e-10, atol=1e-12)
    b = torch.randn(size, generator=GENERATOR, dtype=torch.float64)
    torch.testing.assert_close(factor.solve(b), inverse @ b, rtol=1e-10, atol=1e-12)
    expected = torch.logdet(matrix)
    torch.testing.assert_close(factor.log_det, expected, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(expected, entries)
    torch.testing.assert_close(pattern.log_det_slope(entries, factor), slope, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_a_gaussian_sequence_is_integrated_exactly():
    laplace = Laplace(find_field(UnconstrainedLogDensity(sums_of_steps, (SERIES,))))
    loading = torch.ones(T, T).double().tril()
    for u in ([-1.0, 0.3], [0.4, -0.7]):
        u = torch.tensor(u, dtype=torch.float64, requires_grad=True)
        scale, noise = u.exp()
        expected = gaussian_series(u, loading, scale, noise, SERIES)
        (slope,) = torch.autograd.grad(expected, u, retain_graph=True)
        values, gradients = laplace.log_prob_and_grad(u.detach()[None])
        torch.testing.assert_close(values[0], expected.detach(), rtol=0, atol=1e-8)
        torch.testing.assert_close(gradients[0], slope, rtol=1e-8, atol=1e-8)
        # the steps given the scales
        precision = torch.eye(T).double() + scale.detach() ** 2 / noise.detach() ** 2 * loading.mT @ loading
        covariance = torch.linalg.inv(precision)
        mean = covariance @ loading.mT @ SERIES * scale.detach() / noise.detach() ** 2
        z, _, _, factor = laplace.mode(u.detach())
        torch.testing.assert_close(laplace.field.parts_of(z)["step"], mean, rtol=0, atol=1e-8)
        draws = [laplace.field.parts_of(factor.draw(e))["step"] for e in torch.eye(T).double()]
        root = torch.stack(draws, 1)
        torch.testing.assert_close(root @ root.mT, covariance, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_gaussian_crossed_effects_are_integrated_exactly(monkeypatch):
    monkeypatch.setattr(many_rows, "MANY_LATENTS", 10)
    whole = UnconstrainedLogDensity(crossed, (OF_A, OF_B, Y))
    laplace = many_rows.ManyRows.of(whole, GENERATOR, Budget()).chunks  # and not as groups of many global latents
    assert laplace.field.local == ("alpha", "beta")
    u = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    spread = u[1:].exp()
    design = [torch.nn.functional.one_hot(of, size).double() for of, size in ((OF_A, A), (OF_B, B))]
    variance = sum(s**2 * part @ part.mT for s, part in zip(spread, design, strict=True)) + torch.eye(ROWS).double()
    expected = MultivariateNormal(u[0].expand(ROWS), variance).log_prob(Y) + u[1:].sum()
    expected = expected + dist.Normal(0.0, 2.0).log_prob(u[0]) + dist.HalfNormal(1.0).log_prob(spread).sum()
    (slope,) = torch.autograd.grad(expected, u)
    laplace.begin_at(torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64))
    values, gradients = laplace.log_prob_and_grad(u.detach()[None])
    torch.testing.assert_close(values[0], expected.detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(gradients[0], slope, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_other_likelihoods_have_the_laplace_approximation_of_dense_algebra():
    density = UnconstrainedLogDensity(vector_with_a_factor, (COUNTS,))
    laplace = Laplace(find_field(density))
    g = torch.tensor([-0.7], dtype=torch.float64)
    value, gradient = laplace.log_prob_and_grad(g[None])
    z, log_p, _, _ = laplace.mode(g)
    u = laplace.field.point(g, z)
    _, slope = density.log_prob_and_grad(u[None])
    assert float(slope[0, 1:].abs().max()) < 1e-6
    h = torch.autograd.functional.hessian(lambda z: density.terms(laplace.field.point(g, z)).sum(), z)
    expected = log_p - torch.logdet(-h) / 2 + T / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(value[0], expected.detach(), rtol=0, atol=1e-7)
    near = laplace.log_prob(torch.stack([g + 1e-4, g - 1e-4]))
    assert float(gradient) == pytest.approx(float(near[0] - near[1]) / 2e-4, rel=1e-5)


@pytest.mark.slow
def test_means_are_corrected_to_first_order():
    """The logarithm of a Gamma variable has the mode log k and the mean digamma(k) = log k - 1 / 2k - 1 / 12 k^2 ..."""
    shape = torch.linspace(5.0, 50.0, FAMILY, dtype=torch.float64)
    laplace = Laplace(find_field(UnconstrainedLogDensity(log_gammas, (shape,))))
    laplace.begin_at(torch.zeros(1, dtype=torch.float64))
    z, _, _, _ = laplace.mode(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(z, shape.log(), rtol=0, atol=1e-8)
    error = (z + laplace.correction - shape.digamma()) * 12 * shape**2
    assert ((error > 0.9) & (error < 1.1)).all()
    assert laplace.skew == pytest.approx(0.5 / math.sqrt(5.0))
    points = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)[:, None]
    evidence = shape.lgamma().sum() + dist.Normal(0.0, 1.0).log_prob(points[:, 0])
    assert 0.2 < float((evidence - laplace.log_prob(points)).mean()) < 0.25  # the sum of 1 / 12 k is .22
    laplace.correct(points)
    assert float((evidence - laplace.log_prob(points)).abs().max()) < 0.1
    assert laplace.other_error(points) < 1e-8  # it is the same for all means


@pytest.mark.slow
def test_sums_of_sums_are_read():
    field = find_field(UnconstrainedLogDensity(trend, (SERIES,)))
    assert [family.order for family in field.families] == [1, 2]


def test_latents_that_depend_on_each_other_are_named(monkeypatch):
    x = torch.randn(30, T, generator=GENERATOR, dtype=torch.float64)
    whole = UnconstrainedLogDensity(dense, (x, SERIES[:30]))
    with pytest.raises(UnreadableStructure, match="'slope' depend on too many of each other"):
        find_field(whole)
    monkeypatch.setattr(many_rows, "MANY_LATENTS", 10)
    with pytest.warns(UserWarning, match="all together, which takes long, since .*'slope' depend on too many"):
        assert many_rows.ManyRows.of(whole, torch.Generator(), Budget(), report=True) is None


@pytest.mark.slow
def test_the_posterior_of_a_sequence_is_exact(monkeypatch, tmp_path):
    """Weighted means of all latents within five standard errors of 400 draws, and the evidence; after loading too."""
    monkeypatch.setattr(many_rows, "MANY_LATENTS", 10)
    fit = ppgen.fit(sums_of_steps, "auto", (SERIES,), restarts=1, progress=False)
    assert fit.metadata["rows"]["integrated"] == ["step"]
    assert fit.metadata["rows"]["error"] < 0.1
    grid = torch.linspace(-2.6, 1.0, 37, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    loading = torch.ones(T, T).double().tril()
    log_p, means = [], []
    for u in points:
        scale, noise = u.exp()
        log_p.append(gaussian_series(u, loading, scale, noise, SERIES))
        precision = torch.eye(T).double() + scale**2 / noise**2 * loading.mT @ loading
        means.append(torch.linalg.solve(precision, loading.mT @ SERIES * scale / noise**2))
    log_p = torch.stack(log_p)
    evidence = float(log_p.logsumexp(0)) + 2 * math.log(float(grid[1] - grid[0]))
    weights = log_p.softmax(0)
    expected = torch.cat([weights @ points.exp(), weights @ torch.stack(means)])
    fit.save(tmp_path / "fit.safetensors")
    loaded = ppgen.Fit.load(tmp_path / "fit.safetensors", sums_of_steps, "auto", data=(SERIES,))
    for each in (fit, loaded):
        idata = each.to_arviz(SERIES, draws=400, predictive=False)
        draws = np.concatenate([idata.posterior[k].values[0].reshape(400, -1) for k in ("scale", "noise", "step")], 1)
        log_weight = idata.sample_stats["log_weight"].values[0]
        weight = np.exp(log_weight - log_weight.max())
        error = (weight @ draws / weight.sum() - expected.numpy()) / draws.std(0)
        assert np.abs(error).max() < 5 / math.sqrt(400)
        assert float(idata.vi_stats["log_marginal"][0]) == pytest.approx(evidence, abs=0.1)
    verdict = fit.diagnose(SERIES, starts=1)
    assert verdict.level != "not to be trusted"
    assert verdict.statistics["row_error"] < 0.1


class _Skewed:
    """Independent logarithms of Gamma variables, whose lower tails are exponential."""

    checked, shape = 24, torch.tensor([0.7, 3.0]).double()

    def log_prob_and_grad(self, u, show=None):
        return (self.shape * u - u.exp()).sum(-1), self.shape - u.exp()


def test_a_surrogate_is_right_where_its_own_draws_are_and_those_of_the_density():
    mode, curvature = _Skewed.shape.log(), _Skewed.shape
    at = GaussianBatch(mode[None], curvature.rsqrt().diag()[None])
    known = KnownDensity(_Skewed(), at, _Skewed().log_prob_and_grad(mode[None])[0], 8, Budget())
    generator = torch.Generator().manual_seed(0)
    for u in (
        known._draws(generator)[0],
        torch._standard_gamma(_Skewed.shape.expand(200, 2), generator=generator).log(),
    ):
        exact = _Skewed().log_prob_and_grad(u)[0]
        assert (exact - torch.func.vmap(known.surrogate)(u)).std() < 0.2
    assert 8 < len(known) < 8 + 24 * 10
