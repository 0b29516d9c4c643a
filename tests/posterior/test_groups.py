"""Latents of groups that are integrated out: which they are, their evidence, and the posterior of all latents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.posterior import group_chunks, many_rows
from ppgen.posterior.group_chunks import split_by_groups
from ppgen.posterior.grouped import find_groups
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.marginal import Marginal

G, ROWS = 40, 3
GENERATOR = torch.Generator().manual_seed(0)
INDEX = torch.arange(G).repeat(ROWS)
X = torch.randn(G * ROWS, generator=GENERATOR, dtype=torch.float64)
Y = X + 0.5 * torch.randn(G, generator=GENERATOR)[INDEX] + torch.randn(G * ROWS, generator=GENERATOR)
COUNTS = torch.poisson(Y.exp().clamp(max=5), generator=GENERATOR)


def linear(index, x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", int(index.max()) + 1):
        z = pyro.sample("z", dist.Normal(0.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(slope * x + z[index], 1.0), obs=y)


def two_latents(index, x, y):
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", G):
        a = pyro.sample("a", dist.Normal(0.0, spread))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson((a[index] + x).exp() + rate[index]), obs=y)


def size_of_a_closure(index, y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", G):
        z = pyro.sample("z", dist.Normal(mean, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.StudentT(4.0, z[index, 0], z[index, 1].exp()), obs=y)


def rows_with_latents(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def random_walk(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("steps", len(y)):
        step = pyro.sample("step", dist.Normal(0.0, scale))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(step.cumsum(0), 1.0), obs=y)


def correlations(index, y):
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    with pyro.plate("groups", G):
        root = pyro.sample("root", dist.LKJCholesky(2, shape))
        scale = pyro.sample("scale", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(root[index, 1, 0] + scale[index, 2], 1.0), obs=y)


GROUPED = {
    "linear": (linear, (INDEX, X, Y)),
    "two latents": (two_latents, (INDEX, X, COUNTS)),
    "closure": (size_of_a_closure, (INDEX, Y)),
    "rows": (rows_with_latents, (Y,)),
    "events of another shape": (correlations, (INDEX, Y)),
}


def exact(slope, index, x, y):
    """log p(slope, y) of `linear`, with z integrated out."""
    count = torch.bincount(index).double()
    residual = y - slope * x
    total = torch.zeros(G).double().index_add(0, index, residual)
    variance = 1 / (4 + count)
    quadratic = residual.square().sum() - (total.square() * variance).sum()
    log_det = (variance * 4).log().sum() / 2
    return dist.Normal(0.0, 1.0).log_prob(slope) + log_det - quadratic / 2 - len(y) / 2 * math.log(2 * math.pi)


@pytest.mark.parametrize("name", GROUPED)
def test_groups_are_found_and_run_alone(name):
    """The split checks that every other group, run alone, has the densities that it has in the whole program."""
    model, args = GROUPED[name]
    chunks = split_by_groups(UnconstrainedLogDensity(model, args))
    assert chunks is not None
    assert chunks.size == (G if name != "rows" else G * ROWS)
    part = chunks.part(torch.arange(5))
    assert part.count == 5
    assert len(part.density.args[-1]) == (15 if name != "rows" else 5)


def test_groups_that_depend_on_each_other_are_not_found():
    assert find_groups(UnconstrainedLogDensity(random_walk, (Y,))) is None


def test_the_evidence_of_a_linear_hierarchy_is_exact():
    whole = UnconstrainedLogDensity(linear, (INDEX, X, Y))
    chunks = split_by_groups(whole)
    points = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64)
    values, gradients = chunks.log_prob_and_grad(points)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        slope = point[0].clone().requires_grad_()
        expected = exact(slope, INDEX, X, Y)
        expected.backward()
        assert float(value) == pytest.approx(float(expected.detach()), abs=1e-8)
        assert float(gradient) == pytest.approx(float(slope.grad), abs=1e-8)


@pytest.mark.parametrize("near", [False, True])
def test_gradients_are_those_of_the_quadrature(near):
    """Of a skewed density, against central differences: gradients at fixed nodes are off by a tenth."""
    model, args = GROUPED["two latents"]
    chunks = split_by_groups(UnconstrainedLogDensity(model, args))
    if near:
        chunks.begin_at(torch.tensor([-0.25], dtype=torch.float64))
    at, step = torch.tensor([[-0.3]], dtype=torch.float64), 1e-4
    gradient = chunks.log_prob_and_grad(at)[1]
    difference = (chunks.log_prob(at + step) - chunks.log_prob(at - step)) / (2 * step)
    assert float(gradient) == pytest.approx(float(difference), rel=1e-5, abs=1e-5)


def test_a_finer_rule_of_quadrature_is_more_accurate():
    """Per group, of a skewed density in two dimensions: .03 nats by default."""
    model, args = GROUPED["two latents"]
    groups = split_by_groups(UnconstrainedLogDensity(model, args)).part(torch.arange(10))
    g = torch.tensor([-0.3], dtype=torch.float64)
    rules = [Marginal(groups, more_nodes=more)(g, torch.zeros(10, 2).double()).log_evidence for more in (0, 2, 8)]
    coarse, fine = ((rule - rules[-1]).abs().max() for rule in rules[:2])
    assert fine < coarse < 0.06


@pytest.mark.slow
def test_the_posterior_of_a_linear_hierarchy_is_exact(monkeypatch, tmp_path):
    """Global and local means within five standard errors of 400 draws, the evidence, and all of it after loading."""
    monkeypatch.setattr(many_rows, "MANY_LATENTS", 10)
    monkeypatch.setattr(group_chunks, "GROUPS", 10)
    data = (INDEX, X, Y)
    fit = ppgen.fit(linear, "auto", data, restarts=1, progress=False)
    rows = fit.metadata["rows"]
    assert (rows["unit"], rows["all"], rows["integrated"]) == ("groups", G, ["z"])
    assert rows["error"] < 1e-3  # its evidence is quadratic in the slope
    # the joint posterior of slope and z, which is Gaussian
    count = torch.bincount(INDEX).double()
    precision = torch.zeros(G + 1, G + 1, dtype=torch.float64)
    precision[0, 0] = 1 + X.square().sum()
    precision[0, 1:] = precision[1:, 0] = torch.zeros(G).double().index_add(0, INDEX, X)
    precision[1:, 1:] = (4 + count).diag()
    linear_term = torch.cat([(X * Y).sum()[None], torch.zeros(G).double().index_add(0, INDEX, Y)])
    covariance = torch.linalg.inv(precision)
    mean, sd = covariance @ linear_term, covariance.diagonal().sqrt()
    refined = fit.refine(*data, draws=400)
    fit.save(tmp_path / "fit.safetensors")
    loaded = ppgen.Fit.load(tmp_path / "fit.safetensors", linear, "auto", data=data)
    for each in (fit, loaded, refined):
        idata = each.to_arviz(*data, draws=400, predictive=False)
        draws = torch.cat([torch.as_tensor(idata.posterior[k].values[0]).reshape(400, -1) for k in ("slope", "z")], 1)
        assert ((draws.mean(0) - mean) / sd).abs().max() < 5 / math.sqrt(400)
        torch.testing.assert_close(draws.std(0), sd, rtol=5 / math.sqrt(800), atol=0)
        evidence = float(exact(mean[0], *data) - dist.Normal(mean[0], sd[0]).log_prob(mean[0]))
        assert float(idata.vi_stats["log_marginal"].values.ravel()[0]) == pytest.approx(evidence, abs=0.02)
    assert fit.diagnose(*data, starts=1).level == "good"
    assert refined.diagnose(*data, starts=1).level == "good"
    with pytest.raises(ValueError, match="integrated out, which needs the data of the fit"):
        ppgen.Fit.load(tmp_path / "fit.safetensors", linear, "auto")
