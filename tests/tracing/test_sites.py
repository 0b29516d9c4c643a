"""Reading the sites of a trace."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal

from ppgen.tracing.programs import get_trace
from ppgen.tracing.sites import blocks_gradient, did_you_mean, is_delta, is_local, quote_names, trace_with_values
from ppgen.tracing.traces import Traces

Normal = dist.Normal


def test_programs_are_local_if_every_density_lies_in_the_data_plate(vae, subsampled, nested):
    def both(pair):
        traces = Traces(pair.model, pair.guide, pair.args)
        return traces.model_trace, traces.guide_trace

    assert is_local(*both(vae))
    assert is_local(*both(nested))
    assert not is_local(*both(subsampled))

    def with_global(site):
        def model(x):
            site(x)
            vae.model(x)

        return vae._replace(model=model)

    assert not is_local(*both(with_global(lambda x: pyro.sample("y", Normal(0.0, 1.0), obs=torch.tensor(1.0)))))
    assert is_local(*both(with_global(lambda x: pyro.deterministic("mean", x.mean()))))
    guide = AutoMultivariateNormal(poutine.block(vae.model, hide=["x"]))
    assert not is_local(*both(vae._replace(guide=guide)))  # its one latent holds those of all data


def test_messages_about_names():
    assert did_you_mean("scal", ["scale", "loc"]) == "did you mean 'scale'? there are 'loc', 'scale'"
    assert did_you_mean("x", []) == "there are none"
    assert quote_names(["a", "b"]) == "'a', 'b'"
    assert quote_names([]) == "nothing"


@pytest.mark.parametrize(
    ("distribution", "delta", "blocks"),
    [
        (Normal(torch.ones(2, requires_grad=True), 1.0), False, False),
        (dist.Bernoulli(torch.full((2,), 0.5, requires_grad=True)), False, True),
        (dist.Bernoulli(torch.full((2,), 0.5)), False, False),
        (dist.Delta(torch.ones(2)).to_event(1), True, False),
    ],
)
def test_deltas_and_draws_without_a_path_derivative_are_recognized(distribution, delta, blocks):
    site = get_trace(lambda: pyro.sample("z", distribution)).nodes["z"]
    assert (is_delta(site), blocks_gradient(site)) == (delta, blocks)
    with torch.no_grad():
        assert not blocks_gradient(site)


def test_a_trace_with_values_holds_these_sites_only():
    def model():
        pyro.sample("a", Normal(0.0, 1.0))
        pyro.sample("b", Normal(0.0, 1.0))

    held = trace_with_values(get_trace(model), {"a": torch.tensor(5.0)})
    replayed = get_trace(poutine.replay(model, trace=held))
    assert list(held.nodes) == ["a"]
    assert replayed.nodes["a"]["value"] == 5.0
    assert replayed.nodes["b"]["value"] != 5.0
