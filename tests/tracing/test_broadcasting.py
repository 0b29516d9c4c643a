"""The values and log densities of many particles at once are those of each particle alone, at every site."""

import sys
from pathlib import Path

import pyro
import pytest
import torch
from programs import PROGRAMS as TRAINED
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_feasible
from torch import nn

from ppgen.tracing.particles import particle_traces
from ppgen.tracing.plates import all_rows
from ppgen.tracing.sites import is_observed, latent_sites, sample_sites, trace_with_values

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from posterior_programs import PROGRAMS as POSTERIORS

NOISY = "normed", "autoencoder", "wae", "plain"  # with dropout, and without latents whose values could be fixed


def with_reductions(model):
    """A model that also reports numbers which reduce each of its latents."""

    def reducing(*args):
        with poutine.trace() as traced:
            model(*args)
        for name, site in latent_sites(traced.trace).items():
            value = site["value"].double()
            pyro.deterministic(f"{name}_sum", value.sum())
            pyro.deterministic(f"{name}_largest", value.max())
            pyro.deterministic(f"{name}_first", value.reshape(-1)[:1] * 2, event_dim=1)

    return reducing


def particle_value(site, expected, number):
    value = site["value"]
    return (value if value.numel() == expected.numel() else value[number]).reshape(expected.shape)


def assert_equals_runs_alone(model, guide, args, particles=3):
    """Each particle of a batch is compared with a run of the model at the particle's latents."""
    with torch.no_grad(), pyro.validation_enabled(False):  # draws of a prior may overflow
        parts = particle_traces(model, guide, args, particles=particles)
        if len(parts) == particles:  # already one run for each
            return
        (traces,) = parts
        found = {"posterior": traces.model_trace, "prior": traces.generated, "predictions": traces.reconstructed}
        for kind, trace in found.items():
            sites = sample_sites(trace)
            drawn = {k: s for k, s in sites.items() if not s["is_observed"]}
            for number in range(particles):
                with all_rows():
                    template = poutine.trace(model).get_trace(*args)
                values = {k: particle_value(s, template.nodes[k]["value"], number) for k, s in drawn.items()}
                replayed = trace_with_values(template, values)
                for site in replayed.nodes.values():
                    site["is_observed"] = False
                program = poutine.condition(poutine.replay(model, trace=replayed), values)
                with all_rows():
                    alone = poutine.trace(program).get_trace(*args)
                alone.compute_log_prob()
                trace.compute_log_prob()
                for name, expected in sample_sites(alone).items():
                    message = f"{kind} of {name}, particle {number}"
                    if not is_observed(expected):
                        value = particle_value(sites[name], expected["value"], number)
                        torch.testing.assert_close(value, expected["value"], rtol=1e-4, atol=1e-4, msg=message)
                    size = expected["log_prob"].numel()
                    log_prob = sites[name]["log_prob"]
                    log_prob = log_prob if log_prob.numel() == size else log_prob[number]
                    torch.testing.assert_close(
                        log_prob.sum(), expected["log_prob"].sum(), rtol=1e-4, atol=1e-3, msg=message
                    )


@pytest.mark.filterwarnings("ignore:the program .* runs once for each draw")
@pytest.mark.parametrize("name", [name for name in TRAINED if name not in NOISY])
def test_programs_with_a_guide(name):
    torch.manual_seed(0)
    pyro.clear_param_store()
    model, guide, args = TRAINED[name].build()
    for program in (model, guide):
        owner = getattr(program, "__self__", program)
        if isinstance(owner, nn.Module):
            owner.eval()
    assert_equals_runs_alone(with_reductions(model), guide, args)


@pytest.mark.parametrize("name", list(POSTERIORS))
def test_programs_with_a_known_posterior(name):
    torch.manual_seed(0)
    pyro.clear_param_store()
    program = POSTERIORS[name]
    torch.set_default_dtype(torch.float64)
    try:
        guide = AutoMultivariateNormal(program.model, init_loc_fn=init_to_feasible)
        guide(*program.data)
        assert_equals_runs_alone(with_reductions(program.model), guide, program.data)
    finally:
        torch.set_default_dtype(torch.float32)
