"""`Traces`: how often programs run, what each trace holds, and errors about sites."""

from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormalMessenger
from support import Pair

import ppgen as o
from ppgen import metrics as m
from ppgen import views as v
from ppgen.tracing.particles import log_weights
from ppgen.tracing.sites import is_observed, sample_sites
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
        # views of data use a trace that is there already
        (energy(x, v.data("y")), 1, 1),
        (energy(x, new_x), 1, 0),
        (energy(new_x, x), 1, 0),
        (energy(x.given(y=1), new_x.given(y=1)), 1, 0),
        (energy(x & new_z, new_x & new_z), 1, 0),
        (energy(new_x, x) + o.Rate(), 2, 1),
    ],
    ids=str,
)
def test_a_program_runs_at_most_once_for_each_trace(loss, models, guides):
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


# what each trace holds


def test_the_four_traces_of_a_pair_of_programs(vae):
    traces = Traces(vae.model, vae.guide, vae.args)
    (data,) = vae.args
    value = {
        distribution: {name: site["value"] for name, site in sample_sites(getattr(traces, distribution)).items()}
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
        assert torch.equal(traces.find("data", "x")["value"], data)


def test_programs_may_have_keyword_arguments():
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


def test_values_that_condition_a_program_are_observations():
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", Normal(0.0, 1.0))

    given = torch.tensor([5.0, 6.0, 7.0])
    traces = Traces(poutine.condition(model, {"x": given}), guide)
    assert not torch.equal(v.generated("x")(traces).values, given)
    assert torch.equal(v.data("x")(traces).values, given)


def test_only_observations_are_sampled_again():
    """Deterministic sites keep their shape for any event_dim, and factors stay observed."""

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

    traces = Traces(model, guide)
    for trace in (traces.generated, traces.reconstructed):
        z, h, g, f, x = (trace.nodes[name] for name in "zhgfx")
        assert torch.equal(h["value"], 2 * z["value"])
        assert torch.equal(g["value"], 3 * z["value"])
        assert f["is_observed"]
        assert not x["is_observed"]
        assert x["value"].shape == (4, 2)
        assert [is_observed(site) for site in (z, h, g, f, x)] == [False, False, False, False, True]


def test_all_traces_share_one_subsample():
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
            traces = Traces(model, program)
            getattr(traces, first)
            assert traces.num_data == 100
            rows = [
                getattr(traces, distribution).nodes["x"]["fn"].mean
                for distribution in ("model_trace", "generated", "reconstructed")
            ]
            assert rows[0].shape == (7,)
            assert torch.equal(rows[0], rows[1]), (name, first)
            assert torch.equal(rows[0], rows[2]), (name, first)


def test_a_guide_messenger_has_every_trace(vae):
    guide = AutoNormalMessenger(vae.model)
    traces = Traces(vae.model, guide, vae.args)
    model_trace, guide_trace = traces.with_log_probs
    assert torch.equal(model_trace.nodes["z"]["value"], guide_trace.nodes["z"]["value"])
    assert torch.equal(traces.reconstructed.nodes["z"]["value"], guide_trace.nodes["z"]["value"])
    assert log_weights(vae.model, guide, vae.args, particles=3).shape == (3, 6)


# sites that are not there


@pytest.mark.parametrize(
    ("distribution", "name", "message"),
    [
        ("data", "z", "there are 'x', 'y'"),
        ("data", "xy", "did you mean 'y' or 'x'"),
        ("posterior", "zz", "did you mean 'z'"),
        ("prior", "q", "there are 'x', 'y', 'z'"),
        ("generated", "q", "there are 'x', 'y', 'z'"),
        ("reconstructed", "q", "there are 'x', 'y', 'z'"),
    ],
)
def test_an_unknown_site_is_refused_with_similar_names(distribution, name, message):
    pair = labeled()
    with pytest.raises(LookupError, match=rf"{distribution}\('{name}'\).*{message}"):
        Traces(pair.model, pair.guide, pair.args).find(distribution, name)


def test_a_latent_left_to_enumeration_is_not_in_the_posterior(mixture):
    traces = Traces(mixture.model, mixture.guide, mixture.args)
    assert "c" in sample_sites(traces.model_trace)
    with pytest.raises(LookupError, match=r"posterior\('c'\)"):
        traces.find("posterior", "c")
    with pytest.raises(LookupError, match="leaves 'c' to enumeration"):
        traces.with_log_probs  # noqa: B018


def test_a_guide_with_other_latents_than_the_model_is_refused():
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
    with pytest.raises(LookupError, match="draws 'x', which the model observes"):
        run(program("z", "x"))
    run(program("z", "w", is_auxiliary=True))


def test_a_guide_that_draws_what_the_model_observes_is_told_what_a_guide_is():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0))

    with pytest.raises(LookupError, match=r"draws 'x', which the model observes: a guide draws latents only"):
        Traces(model, guide, (torch.zeros(3),)).model_trace  # noqa: B018
