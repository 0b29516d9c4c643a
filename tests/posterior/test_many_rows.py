"""log p on many rows: sums over chunks, and estimates from a subset with control variates."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppgen
from ppgen.posterior import many_rows, row_chunks
from ppgen.posterior.directions import Directions
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.many_rows import ManyRows, on_row_subset
from ppgen.posterior.newton import find_modes
from ppgen.posterior.row_chunks import split_by_rows
from ppgen.posterior.starts import initial_points
from ppgen.utils.budget import Budget

N = 203
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 2, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(N, generator=GENERATOR, dtype=torch.float64)
GROUP = torch.randint(3, (N,), generator=GENERATOR)


def regression(x, y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("anything", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)


def without_a_plate(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.StudentT(4.0, slope * x[:, 0], 1.0).to_event(1), obs=y)
    pyro.factor("ridge", -slope.square())


def groups(group, y):
    spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, spread))
    with pyro.plate("data", N, subsample=y):
        pyro.sample("y", dist.Normal(mean[group], 1.0), obs=y)


def mixture(x, y):
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(share))
        pyro.sample("y", dist.Normal(2 * z + x[:, 0], 1.0), obs=y)


def weighted_and_masked(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), pyro.poutine.scale(scale=0.5 + x[:, 1].abs()), pyro.poutine.mask(mask=y > -1):
        pyro.sample("y", dist.Normal(slope * x[:, 0], 1.0), obs=y)


def direction(x, y):
    angle = pyro.sample("angle", dist.VonMises(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ torch.stack([angle.cos(), angle.sin()]), 1.0), obs=y)


SPLIT = {
    "regression": (regression, (X, Y)),
    "no plate": (without_a_plate, (X, Y)),
    "groups": (groups, (GROUP, Y)),
    "mixture": (mixture, (X, Y)),
    "weights": (weighted_and_masked, (X, Y)),
    "direction": (direction, (X, Y)),
}


def centered_data(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x - x.mean(0)) @ slope, 1.0), obs=y)


def local_latents(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def autoregression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("steps", len(y) - 1):
        pyro.sample("y", dist.Normal(slope * y[:-1], 1.0), obs=y[1:])


def fixed_length(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(X @ slope, 1.0), obs=y)


WHOLE = {
    "data are centered": (centered_data, (X, Y)),
    "rows have latents": (local_latents, (X, Y)),
    "rows are in order": (autoregression, (X, Y)),
    "data of a closure": (fixed_length, (X, Y)),
}


@pytest.fixture
def small(monkeypatch):
    """Few rows count as many."""
    monkeypatch.setattr(row_chunks, "ROWS", 40)
    monkeypatch.setattr(row_chunks, "TERMS", 512)


@pytest.mark.parametrize("name", WHOLE)
def test_rows_that_are_not_independent_are_not_split(name, small):
    model, args = WHOLE[name]
    assert split_by_rows(UnconstrainedLogDensity(model, args)) is None


QUICK = ["regression", "no plate", "groups"]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SPLIT]
)
def test_chunks_and_a_subset_give_the_density_of_all_rows(name, small):
    """Chunks everywhere, a subset with control variates to the second derivative at the mode."""
    model, args = SPLIT[name]
    whole, generator = UnconstrainedLogDensity(Directions(model), args), torch.Generator().manual_seed(0)
    many = ManyRows.of(whole, generator, Budget())
    u = torch.rand(11, whole.dim, generator=generator, dtype=torch.float64)
    for found, expected in zip(many.chunks.log_prob_and_grad(u), whole.log_prob_and_grad(u), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-8)
    many.anchor(find_modes(many.scaled, initial_points(many.scaled, 1, generator), generator), Budget())
    modes = many.modes(generator)
    center = modes.center
    for found, expected in zip(many.estimate.log_prob_and_grad(center), whole.log_prob_and_grad(center), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    spacing = 1e-3 * modes.root.square().sum(-1).sqrt()
    found, expected = (modes.root.mT @ part.hessian(center, spacing) @ modes.root for part in (many.estimate, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found, -torch.eye(whole.dim, dtype=torch.float64)[None], rtol=0, atol=1e-3)


def linear(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, 0.7), obs=y)


def conjugate(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """The mean and the standard deviations of the posterior of `linear`, and its log evidence."""
    x, y = x.double(), y.double()
    covariance = torch.linalg.inv(torch.eye(x.shape[1]).double() + x.mT @ x / 0.49)
    mean = covariance @ (x.mT @ y) / 0.49
    fit = -0.5 * (y.square().sum() / 0.49 - mean @ torch.linalg.solve(covariance, mean))
    return (
        mean,
        covariance.diagonal().sqrt(),
        float(fit + 0.5 * torch.logdet(covariance) - 0.5 * len(y) * math.log(2 * math.pi * 0.49)),
    )


@pytest.mark.slow
def test_many_rows_have_the_posterior_of_all_rows(tmp_path):
    """12,000 rows of a conjugate regression: 2000 draws have means within four standard errors, and the evidence."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12_000, 3, generator=generator)
    y = x @ torch.tensor([0.5, -0.3, 0.0]) + 0.7 * torch.randn(len(x), generator=generator)
    fit = ppgen.fit(linear, "auto", (x, y), restarts=2, progress=False)
    mean, sd, evidence = conjugate(x, y)
    assert fit.metadata["rows"]["subset"] == 5000
    assert fit.metadata["rows"]["error"] < 1e-3  # a Gaussian has no third derivative
    idata = fit.to_arviz(x, y, predictive=False)
    draws = torch.as_tensor(idata.posterior["slope"].values[0])
    assert ((draws.mean(0) - mean) / sd).abs().max() < 4 / math.sqrt(len(draws))
    torch.testing.assert_close(draws.std(0), sd, rtol=4 / math.sqrt(2 * len(draws)), atol=0)
    assert float(idata.vi_stats["log_marginal"][0]) == pytest.approx(evidence, abs=0.01)
    assert idata.log_likelihood["y"].shape == (1, 2000, 5000)
    assert "5000 of 12000" in idata.posterior.attrs["rows"]
    assert float(idata.log_likelihood["y"].mean()) == pytest.approx(
        float(dist.Normal(x.double() @ mean, 0.7).log_prob(y).mean()), abs=0.1
    )
    fit.save(tmp_path / "fit.safetensors")
    loaded = ppgen.Fit.load(tmp_path / "fit.safetensors", linear, "auto", data=(x, y))
    assert loaded.diagnose(x, y, starts=1).level == fit.diagnose(x, y, starts=1).level == "good"
    assert on_row_subset(loaded, (x.double(), y.double()))[1][1].shape == (5000,)
    assert on_row_subset(fit, (x.double(), y.double() + 1))[1][1].shape == (12_000,)


@pytest.mark.slow
def test_a_refined_fit_of_many_rows_is_saved_and_loaded(small, tmp_path):
    fit = ppgen.fit(regression, "auto", (X, Y), progress=False)
    assert fit.metadata["rows"]["subset"] < N
    refined = fit.refine(X, Y, chains=2, draws=400, progress=False)
    refined.save(tmp_path / "fit.safetensors")
    loaded = ppgen.Fit.load(tmp_path / "fit.safetensors", regression, "auto")
    for before, after in zip(refined.chains, loaded.chains, strict=True):
        assert all(torch.equal(value, after.weights[name]) for name, value in before.weights.items())
    verdicts = [each.diagnose(X, Y, starts=0) for each in (refined, loaded)]
    assert verdicts[0].level == verdicts[1].level
    assert verdicts[0].statistics["r_hat"] == pytest.approx(verdicts[1].statistics["r_hat"])
    assert verdicts[0].statistics["row_error"] == verdicts[1].statistics["row_error"]


def test_many_latents_that_are_not_those_of_groups_leave_the_rows_to_be_split(small, monkeypatch):
    monkeypatch.setattr(many_rows, "MANY_LATENTS", 1)
    whole = UnconstrainedLogDensity(regression, (X, Y))
    many = ManyRows.of(whole, torch.Generator().manual_seed(0), Budget())
    assert many.chunks.unit == "rows"


@pytest.mark.slow
def test_a_larger_subset_is_taken_where_the_error_is_large(small, monkeypatch):
    monkeypatch.setattr(many_rows, "MAX_ROW_ERROR", 1e-12)
    monkeypatch.setattr(row_chunks, "ROWS", 20)
    generator = torch.Generator().manual_seed(0)
    many = ManyRows.of(UnconstrainedLogDensity(mixture, (X, Y)), generator, Budget())
    many.anchor(find_modes(many.scaled, initial_points(many.scaled, 1, generator), generator), Budget())
    u = many.modes(generator).rsample(torch.randn(1, 30, 1, generator=generator, dtype=torch.float64))[0]
    assert many.rows == 20
    assert not many.serves(u, generator, Budget())
    assert many.rows == 80
    with pytest.warns(UserWarning, match="80 of 203 rows, which estimate log p with a standard deviation of"):
        assert many.serves(u, generator, Budget())  # four times as many are more than half of all rows
