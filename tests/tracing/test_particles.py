"""Many particles at once, and their importance weights."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppgen.tracing.particles import log_weights, particle_traces
from ppgen.tracing.sites import PARTICLES, log_density, sample_sites
from ppgen.tracing.traces import Traces

Normal = dist.Normal


def test_weights_at_the_exact_posterior_equal_the_evidence(ppca):
    weights = log_weights(ppca.model, ppca.guide, ppca.args, particles=50)
    assert weights.shape == (50, 5)
    assert weights.dtype == torch.float64
    assert not weights.requires_grad
    torch.testing.assert_close(weights, ppca.exact.expand(50, 5), rtol=0, atol=1e-8)


def test_the_bound_rises_to_the_evidence_with_more_particles(ppca):
    """A guide twice too wide, 4096 groups of k draws; differences exceed 4 standard errors (level 3e-5)."""
    weights = log_weights(ppca.model, ppca.guide, (*ppca.args, 2.0), particles=2**16)
    evidence, last = ppca.exact.sum(), None
    for k in (1, 4, 16):
        groups = weights.reshape(-1, k, 5)[:4096]
        bound = (groups.logsumexp(1) - torch.tensor(float(k)).log()).sum(-1)
        error = bound.std() / 4096**0.5
        assert bound.mean() + 4 * error < evidence
        if last is not None:
            assert bound.mean() - last > 4 * error
        last = bound.mean()
    assert evidence - last < 0.3
    whole = (weights.logsumexp(0) - torch.tensor(2.0**16).log()).sum()
    assert abs(whole - evidence) < 0.05


@pytest.mark.parametrize("size", [1000, 6])
def test_the_weight_of_a_row_does_not_depend_on_the_size_of_the_data_set(size):
    data = torch.randn(6)

    def program(observe, scale=1.0):
        def run(x):
            with pyro.plate("data", size, subsample=x), poutine.scale(scale=scale):
                z = pyro.sample("z", dist.Delta(x) if not observe else Normal(0.0, 1.0))
                if observe:
                    pyro.sample("x", Normal(z, 1.0), obs=x)

        return run

    expected = Normal(0.0, 1.0).log_prob(data) + Normal(data, 1.0).log_prob(data)
    for scale in (1.0, 0.25):  # a scale that the user sets stays
        weights = log_weights(program(True, scale), program(False), (data,), particles=2)
        torch.testing.assert_close(weights, scale * expected.expand(2, 6))


def test_a_program_with_a_global_latent_has_weights_of_the_whole_data_set(subsampled):
    args = (subsampled.model, subsampled.guide, subsampled.args)
    pyro.set_rng_seed(1)
    weights = log_weights(*args, particles=3)
    pyro.set_rng_seed(1)
    (traces,) = particle_traces(*args, particles=3)
    sites = sample_sites(traces.guide_trace)
    w, z = sites["w"]["value"], sites["z"]["value"]
    (x,) = subsampled.args
    prior = Normal(0.0, 1.0)
    expected = prior.log_prob(w) - Normal(0.5, 0.4).log_prob(w)
    rows = prior.log_prob(z) + Normal(w * z, 0.7).log_prob(x) - Normal(0.8 * x, 0.4).log_prob(z)
    torch.testing.assert_close(weights, expected + 5 * rows.sum(-1, keepdim=True))  # 4 rows stand for 20


def test_weights_are_summed_over_inner_plates(nested):
    pyro.set_rng_seed(1)
    weights = log_weights(nested.model, nested.guide, nested.args, particles=4)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        (traces,) = particle_traces(nested.model, nested.guide, nested.args, particles=4)
    model_trace, guide_trace = traces.with_log_probs
    z, x = model_trace.nodes["z"], model_trace.nodes["x"]
    assert x["log_prob"].shape == (4, 3, 5)
    expected = x["log_prob"].sum(1) + (z["log_prob"] - guide_trace.nodes["z"]["log_prob"]).squeeze(1)
    torch.testing.assert_close(weights, expected)


def test_a_guide_without_latents_has_density_one():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(0.0, 1.0), obs=x)

    x = torch.randn(4)
    weights = log_weights(model, lambda x: None, (x,), particles=2)
    torch.testing.assert_close(weights, Normal(0.0, 1.0).log_prob(x).expand(2, 4))
    _, guide_trace = Traces(model, lambda x: None, (x,)).with_log_probs
    assert log_density(guide_trace, per_datum=True).tolist() == [[0.0]]


@pytest.mark.parametrize("particles", [1, 3])
def test_particles_lie_to_the_left_of_every_plate(nested, particles):
    (traces,) = particle_traces(nested.model, nested.guide, nested.args, particles=particles)
    for name in "zx":
        (frame,) = (f for f in traces.model_trace.nodes[name]["cond_indep_stack"] if f.name == PARTICLES)
        assert (frame.dim, frame.size) == (-3, particles)


@pytest.mark.filterwarnings("ignore:the program model runs once for each draw")
@pytest.mark.parametrize("reads_values", [False, True], ids=["vmap", "loop"])
def test_programs_that_do_not_broadcast_run_for_each_particle(reads_values):
    x, y, at = torch.randn(4, 2), torch.randn(4), torch.tensor([0.5, -1.0])

    def model():
        w = pyro.sample("w", Normal(torch.zeros(2), 1.0).to_event(1))
        assert not reads_values or float(torch.rand(())) < 1
        with pyro.plate("data", 4):
            pyro.sample("y", Normal(x @ w, 1.0), obs=y)

    def guide():
        pyro.sample("w", dist.Delta(at, event_dim=1))

    assert len(particle_traces(model, guide, (), particles=3)) == (3 if reads_values else 1)
    expected = Normal(0.0, 1.0).log_prob(at).sum() + Normal(x @ at, 1.0).log_prob(y).sum()
    torch.testing.assert_close(log_weights(model, guide, (), particles=3), expected.expand(3, 1))


def test_a_program_that_runs_once_for_each_particle_is_reported_once():
    def reads_its_latent():
        w = pyro.sample("w", Normal(0.0, 1.0))
        pyro.sample("y", Normal(1.0 if w > 0 else -1.0, 1.0), obs=torch.tensor(0.5))

    def guide():
        pyro.sample("w", Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match=r"the program reads_its_latent runs once for each draw.* torch.where"):
        log_weights(reads_its_latent, guide, (), particles=3)
    log_weights(reads_its_latent, guide, (), particles=3)


@pytest.mark.parametrize("reduce", [torch.sum, torch.norm, torch.max, torch.mean], ids=lambda f: f.__name__)
def test_a_deterministic_site_that_reduces_has_a_value_for_each_particle(reduce):
    """The model itself broadcasts; `max` of all particles is that of one of them."""

    def model():
        b = pyro.sample("b", Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.deterministic("total", reduce(b))
        y = pyro.sample("y", Normal(b.sum(-1), 1.0), obs=torch.tensor(0.5))
        pyro.deterministic("spread", reduce(y * torch.ones(2)))

    def guide():
        pyro.sample("b", Normal(0.0, 1.0).expand([3]).to_event(1))

    (traces,) = particle_traces(model, guide, (), particles=5)
    for trace in (traces.model_trace, traces.generated, traces.reconstructed):
        for b, total in zip(trace.nodes["b"]["value"], trace.nodes["total"]["value"], strict=True):
            torch.testing.assert_close(total, reduce(b))
    for trace in (traces.generated, traces.reconstructed):
        for y, spread in zip(trace.nodes["y"]["value"], trace.nodes["spread"]["value"], strict=True):
            torch.testing.assert_close(spread, reduce(y * torch.ones(2)))


@pytest.mark.filterwarnings("ignore:the program model runs once for each draw")
def test_a_branch_is_taken_for_each_particle():
    """``z.sum() > 0`` of all particles is one branch for all, which may be right for the first and the last."""

    def model():
        with pyro.plate("rows", 3):
            z = pyro.sample("z", Normal(0.0, 1.0))
        pyro.sample("y", Normal(2.0 if z.sum() > 0 else -2.0, 1.0), obs=torch.tensor(0.5))

    def guide():
        with pyro.plate("rows", 3):
            pyro.sample("z", Normal(0.0, 1.0))

    for seed in range(8):
        pyro.set_rng_seed(seed)
        for traces in particle_traces(model, guide, (), particles=5):
            z = traces.guide_trace.nodes["z"]["value"].reshape(-1, 3)
            expected = Normal(torch.where(z.sum(-1) > 0, 2.0, -2.0), 1.0).log_prob(torch.tensor(0.5))
            log_prob = traces.with_log_probs[0].nodes["y"]["log_prob"].expand(len(z), 1).reshape(-1)
            torch.testing.assert_close(log_prob, expected)


def test_draws_that_torch_makes_in_place_differ_between_particles():
    """A Cauchy distribution fills a new tensor; the matrix product does not broadcast, so vmap runs the program."""
    x = torch.randn(4, 2)

    def prior():
        return pyro.sample("w", dist.Cauchy(torch.zeros(2), 1.0).to_event(1))

    def model():
        w = prior()
        with pyro.plate("data", 4):
            pyro.sample("y", Normal(x @ w, 1.0), obs=torch.zeros(4))

    (traces,) = particle_traces(model, prior, (), particles=5)
    for trace in (traces.model_trace, traces.generated):
        assert len(trace.nodes["w"]["value"].reshape(5, 2).unique(dim=0)) == 5


def test_dirichlet_and_beta_latents_are_drawn_under_vmap():
    """Their means and variances, of 4000 draws, are within 5 standard errors of the closed forms."""
    shares, chance = dist.Dirichlet(torch.tensor([0.5, 1.0, 3.0])), dist.Beta(0.7, 2.0)

    def guide():
        pyro.sample("p", chance.expand([2]).to_event(1))
        return pyro.sample("w", shares.mask(torch.tensor(True)))

    def model():
        w = guide()
        pyro.deterministic("last", w.mean() * w[2])  # which is another number with particles to the left

    (traces,) = particle_traces(model, guide, (), particles=4000)
    nodes = traces.guide_trace.nodes
    for name, exact in (("w", shares), ("p", chance)):
        value = nodes[name]["value"].reshape(4000, -1).double()
        assert ((value.mean(0) - exact.mean).abs() < 5 * (exact.variance / 4000).sqrt()).all()
        spread = (value - exact.mean).square()
        assert ((spread.mean(0) - exact.variance).abs() < 5 * spread.std(0) / 4000**0.5).all()
    assert abs(torch.corrcoef(nodes["p"]["value"].reshape(4000, 2).T)[0, 1]) < 5 / 4000**0.5
