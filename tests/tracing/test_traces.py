"""Draws: what runs and how often, the four laws, importance weights."""

from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormalMessenger
from support import Pair

import ppgen as o
from ppgen import metrics as m
from ppgen import views as v
from ppgen.tracing.particles import log_weights, particle_traces
from ppgen.tracing.sites import PARTICLES, is_local, is_observed, log_density, sample_sites
from ppgen.tracing.traces import Traces

Normal = dist.Normal
x, z = v.data("x"), v.posterior("z")
new_x, new_z = v.generated("x"), v.prior("z")


def energy(a: v.View, b: v.View) -> o.Objective:
    return o.match(a, b, m.EnergyDistance())


def labeled() -> Pair:
    """A latent z, observations x and a label y."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Bernoulli(0.5), obs=(x > 0).float())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(x, 0.1))

    return Pair(model, guide, (torch.randn(5),), 5)


# how often programs run


@pytest.mark.parametrize(
    ("loss", "models", "guides"),
    [
        (o.ELBO(), 1, 1),
        (o.Reconstruction() + o.Rate() + o.ELBO(), 1, 1),
        (energy(z, new_z), 2, 1),
        (energy(x & z, new_x & new_z) + o.ELBO(), 2, 1),
        (energy(x, v.reconstructed("x")), 2, 1),
        (energy(new_x, v.reconstructed("x")) + o.ELBO() + energy(z, new_z), 3, 1),
        # views of data alone take the run that there is
        (energy(x, v.data("y")), 1, 1),
        (energy(x, new_x), 1, 0),
        (energy(new_x, x), 1, 0),
        (energy(x.given(y=1), new_x.given(y=1)), 1, 0),
        (energy(x & new_z, new_x & new_z), 1, 0),
        (energy(new_x, x) + o.Rate(), 2, 1),
    ],
    ids=str,
)
def test_a_program_runs_at_most_once_a_law(loss, models, guides):
    runs: Counter = Counter()
    pair = labeled()

    def model(*args):
        runs["model"] += 1
        pair.model(*args)

    def guide(*args):
        runs["guide"] += 1
        pair.guide(*args)

    loss.differentiable_loss(model, guide, *pair.args)
    assert (runs["model"], runs["guide"]) == (models, guides)


# the four laws


def test_the_four_distributions_of_a_program(vae):
    draws = Traces(vae.model, vae.guide, vae.args)
    (data,) = vae.args
    value = {
        distribution: {name: site["value"] for name, site in sample_sites(getattr(draws, distribution)).items()}
        for distribution in ("guide_trace", "model_trace", "generated", "reconstructed")
    }
    assert value["guide_trace"].keys() == {"z"}
    assert torch.equal(value["model_trace"]["x"], data)
    for distribution in ("model_trace", "reconstructed"):
        assert torch.equal(value[distribution]["z"], value["guide_trace"]["z"])
    assert not torch.equal(value["generated"]["z"], value["guide_trace"]["z"])
    for distribution in ("generated", "reconstructed"):
        assert value[distribution]["x"].shape == data.shape
        assert not torch.isclose(value[distribution]["x"], data).any()
        assert torch.equal(draws.find("data", "x")["value"], data)


def test_programs_take_keywords():
    def model(x, *, scale):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(0.0, scale))
            pyro.sample("x", Normal(0.0, scale), obs=x)

    def guide(x, *, scale):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(scale * x))

    x = torch.randn(3)
    expected = Normal(0.0, 2.0).log_prob(x) + Normal(0.0, 2.0).log_prob(2 * x)
    assert o.ELBO().loss(model, guide, x, scale=2.0) == pytest.approx(-float(expected.mean()))
    weights = log_weights(model, guide, (x,), particles=2, kwargs={"scale": 2.0})
    torch.testing.assert_close(weights, expected.expand(2, 3))


def test_values_given_from_outside_are_observations():
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", Normal(0.0, 1.0))

    given = torch.tensor([5.0, 6.0, 7.0])
    draws = Traces(poutine.condition(model, {"x": given}), guide)
    assert not torch.equal(v.generated("x")(draws).values, given)
    assert torch.equal(v.data("x")(draws).values, given)


def test_only_observations_are_drawn_anew():
    """Deterministic sites keep their shape, whatever their event_dim; factors keep their weight."""

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([2]).to_event(1))
            h = pyro.deterministic("h", 2 * z)
            g = pyro.deterministic("g", 3 * z, event_dim=1)
            pyro.factor("f", -h.sum(-1))
            pyro.sample("x", Normal(h + g, 1.0).to_event(1), obs=torch.zeros(4, 2))

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", Normal(0.0, 1.0).expand([2]).to_event(1))

    draws = Traces(model, guide)
    for trace in (draws.generated, draws.reconstructed):
        z, h, g, f, x = (trace.nodes[name] for name in "zhgfx")
        assert torch.equal(h["value"], 2 * z["value"])
        assert torch.equal(g["value"], 3 * z["value"])
        assert f["is_observed"]
        assert not x["is_observed"]
        assert x["value"].shape == (4, 2)
        assert [is_observed(site) for site in (z, h, g, f, x)] == [False, False, False, False, True]


def test_all_runs_share_one_subsample():
    data = torch.arange(100.0)

    def model():
        with pyro.plate("data", 100, subsample_size=7) as rows:
            pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(data[rows], 0.1), obs=data[rows])

    def guide():
        with pyro.plate("data", 100, subsample_size=7):
            pyro.sample("z", Normal(0.0, 1.0))

    def guide_without_plate():
        pyro.sample("z", Normal(torch.zeros(7), 1.0))

    programs = {"guide": guide, "messenger": AutoNormalMessenger(model), "no plate": guide_without_plate}
    for name, program in programs.items():
        for first in ("generated", "model_trace"):
            draws = Traces(model, program)
            getattr(draws, first)
            assert draws.num_data == 100
            rows = [
                getattr(draws, distribution).nodes["x"]["fn"].mean
                for distribution in ("model_trace", "generated", "reconstructed")
            ]
            assert rows[0].shape == (7,)
            assert torch.equal(rows[0], rows[1]), (name, first)
            assert torch.equal(rows[0], rows[2]), (name, first)


# sites that are not there


@pytest.mark.parametrize(
    ("distribution", "name", "says"),
    [
        ("data", "z", "there are 'x', 'y'"),
        ("data", "xy", "did you mean 'y' or 'x'"),
        ("posterior", "zz", "did you mean 'z'"),
        ("prior", "q", "there are 'x', 'y', 'z'"),
        ("generated", "q", "there are 'x', 'y', 'z'"),
        ("reconstructed", "q", "there are 'x', 'y', 'z'"),
    ],
)
def test_an_unknown_site_comes_with_the_nearest(distribution, name, says):
    pair = labeled()
    with pytest.raises(LookupError, match=rf"{distribution}\('{name}'\).*{says}"):
        Traces(pair.model, pair.guide, pair.args).find(distribution, name)


def test_a_latent_left_to_enumeration_is_no_posterior_draw(mixture):
    draws = Traces(mixture.model, mixture.guide, mixture.args)
    assert "c" in sample_sites(draws.model_trace)
    with pytest.raises(LookupError, match=r"posterior\('c'\)"):
        draws.find("posterior", "c")
    with pytest.raises(LookupError, match="leaves 'c' to enumeration"):
        draws.with_log_probs  # noqa: B018


def test_a_guide_that_does_not_fit_is_told_how():
    pair = labeled()

    def program(*names, **infer):
        def guide(x):
            for name in names:
                pyro.sample(name, Normal(x, 1.0).to_event(1), infer=infer)

        return guide

    def run(guide):
        return Traces(pair.model, guide, pair.args).model_trace

    with pytest.raises(LookupError, match="does not draw 'z', which the model samples; it draws nothing"):
        run(program())
    with pytest.raises(LookupError, match="does not draw 'z', which the model samples; it draws 'w'"):
        run(program("w"))
    with pytest.raises(LookupError, match=r"draws 'w', which is no latent of the model; those are 'z'.*is_auxiliary"):
        run(program("z", "w"))
    with pytest.raises(LookupError, match="draws 'x', which is no latent of the model"):
        run(program("z", "x"))
    run(program("z", "w", is_auxiliary=True))


# importance weights


def test_weights_at_the_exact_posterior_are_the_exact_evidence(ppca):
    weights = log_weights(ppca.model, ppca.guide, ppca.args, particles=50)
    assert weights.shape == (50, 5)
    assert weights.dtype == torch.float64
    assert not weights.requires_grad
    torch.testing.assert_close(weights, ppca.exact.expand(50, 5), rtol=0, atol=1e-8)


def test_more_particles_bring_the_bound_closer_from_below(ppca):
    """At a posterior twice too wide, with 4096 groups of k draws; each difference by 4 standard errors, level 3e-5."""
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
def test_a_rows_weight_does_not_know_the_data_sets_size(size):
    data = torch.randn(6)

    def program(observe, scale=1.0):
        def run(x):
            with pyro.plate("data", size, subsample=x), poutine.scale(scale=scale):
                z = pyro.sample("z", dist.Delta(x) if not observe else Normal(0.0, 1.0))
                if observe:
                    pyro.sample("x", Normal(z, 1.0), obs=x)

        return run

    expected = Normal(0.0, 1.0).log_prob(data) + Normal(data, 1.0).log_prob(data)
    for scale in (1.0, 0.25):  # a scale of the user's own stays
        weights = log_weights(program(True, scale), program(False), (data,), particles=2)
        torch.testing.assert_close(weights, scale * expected.expand(2, 6))


def test_weights_of_a_program_with_something_global_are_of_the_whole_data_set(subsampled):
    args = (subsampled.model, subsampled.guide, subsampled.args)
    pyro.set_rng_seed(1)
    weights = log_weights(*args, particles=3)
    pyro.set_rng_seed(1)
    (draws,) = particle_traces(*args, particles=3)
    sites = sample_sites(draws.guide_trace)
    w, z = sites["w"]["value"], sites["z"]["value"]
    (x,) = subsampled.args
    prior = Normal(0.0, 1.0)
    expected = prior.log_prob(w) - Normal(0.5, 0.4).log_prob(w)
    rows = prior.log_prob(z) + Normal(w * z, 0.7).log_prob(x) - Normal(0.8 * x, 0.4).log_prob(z)
    torch.testing.assert_close(weights, expected + 5 * rows.sum(-1, keepdim=True))  # 4 rows stand for 20


def test_what_is_local_to_a_datum(vae, subsampled, nested):
    def traces(pair):
        draws = Traces(pair.model, pair.guide, pair.args)
        return draws.model_trace, draws.guide_trace

    assert is_local(*traces(vae))
    assert is_local(*traces(nested))
    assert not is_local(*traces(subsampled))

    def with_global(site):
        def model(x):
            site(x)
            vae.model(x)

        return vae._replace(model=model)

    assert not is_local(*traces(with_global(lambda x: pyro.sample("y", Normal(0.0, 1.0), obs=torch.tensor(1.0)))))
    assert is_local(*traces(with_global(lambda x: pyro.deterministic("mean", x.mean()))))
    guide = AutoMultivariateNormal(poutine.block(vae.model, hide=["x"]))
    assert not is_local(*traces(vae._replace(guide=guide)))  # its one latent is of all data together


def test_weights_of_nested_plates_are_summed_over_the_inner_one(nested):
    pyro.set_rng_seed(1)
    weights = log_weights(nested.model, nested.guide, nested.args, particles=4)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        (draws,) = particle_traces(nested.model, nested.guide, nested.args, particles=4)
    model_trace, guide_trace = draws.with_log_probs
    z, x = model_trace.nodes["z"], model_trace.nodes["x"]
    assert x["log_prob"].shape == (4, 3, 5)
    expected = x["log_prob"].sum(1) + (z["log_prob"] - guide_trace.nodes["z"]["log_prob"]).squeeze(1)
    torch.testing.assert_close(weights, expected)


def test_a_guide_without_latents_has_the_density_one():
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
    (draws,) = particle_traces(nested.model, nested.guide, nested.args, particles=particles)
    for name in "zx":
        (frame,) = (f for f in draws.model_trace.nodes[name]["cond_indep_stack"] if f.name == PARTICLES)
        assert (frame.dim, frame.size) == (-3, particles)


@pytest.mark.parametrize("reads_values", [False, True], ids=["mapped", "one by one"])
def test_programs_that_do_not_broadcast_are_runs_of_their_own(reads_values):
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


def test_a_guide_messenger_serves_every_law(vae):
    guide = AutoNormalMessenger(vae.model)
    draws = Traces(vae.model, guide, vae.args)
    model_trace, guide_trace = draws.with_log_probs
    assert torch.equal(model_trace.nodes["z"]["value"], guide_trace.nodes["z"]["value"])
    assert torch.equal(draws.reconstructed.nodes["z"]["value"], guide_trace.nodes["z"]["value"])
    assert log_weights(vae.model, guide, vae.args, particles=3).shape == (3, 6)
