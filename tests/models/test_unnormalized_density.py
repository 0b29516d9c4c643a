"""Unnormalized densities on the plane: their potentials, normalizing constants, and fits without data."""

import math

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import ppgen
from ppgen import recipes
from ppgen.infer import AutoFlow
from ppgen.models import ENERGIES
from ppgen.tracing.particles import log_weights
from ppgen.tracing.traces import Traces

every_energy = pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES.keys())

# Rezende & Mohamed 2015, table 1, at two points, computed by hand
AT = {
    "u1": ((2.0, 0.0), 0.0),
    "u2": ((1.0, 0.6), 0.5),
    "u3": ((-4.0, 0.35), 0.5 - math.log(2)),
    "u4": ((-4.0, 0.0), -math.log(2)),
}


@every_energy
def test_potentials_have_the_values_of_the_paper(energy):
    x, expected = AT[energy.name]
    assert float(energy.potential(torch.tensor(x))) == pytest.approx(expected, abs=1e-4)


@every_energy
def test_log_z_is_the_log_of_the_integral(energy):
    """Checked by the trapezoidal rule on another grid, and by importance sampling within 5 standard errors (6e-7)."""
    side = torch.linspace(-energy.window, energy.window, 401, dtype=torch.float64)
    density = (-energy.potential(torch.stack(torch.meshgrid(side, side, indexing="ij"), -1))).exp()
    assert float(torch.trapezoid(torch.trapezoid(density, side), side).log()) == pytest.approx(energy.log_z, abs=1e-4)
    w = log_weights(energy.model, energy.base, (), particles=40_000).double().exp()
    assert float(w.mean() - math.exp(energy.log_z)) == pytest.approx(0.0, abs=5 * float(w.std()) / 200)


@every_energy
def test_an_autoguide_of_pyro_can_be_fitted(energy):
    guide = AutoNormal(energy.model)
    fit = ppgen.fit(energy.model, guide, None, steps=3, compile=False)
    x = guide()["x"]
    assert energy.support.check(x)
    assert -float(fit.chains[0].final) < energy.log_z + 1
    assert fit.example == ()


def test_the_latent_is_a_site_of_the_posterior(tmp_path):
    energy = ENERGIES["u1"]
    guide = AutoFlow(energy.model, layers=1, hidden=(8,))
    draws = Traces(energy.model, guide, ())
    assert set(draws.find("posterior", "x")["value"].shape) == {2}
    fit = ppgen.fit(
        *(energy.model, guide, None),
        loss=ppgen.ELBO(elbo=Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=0)),
        steps=2,
        compile=False,
    )
    assert fit.to_arviz(draws=50, predictive=False).vi_stats.pareto_k.shape == (1,)
    assert list(fit.breakdown()) == ["ELBO"]


def test_a_fit_without_data_resumes_from_its_checkpoint(tmp_path):
    energy = ENERGIES["u2"]

    def fitted(**options):
        pyro.set_rng_seed(0)
        guide = AutoFlow(energy.model, layers=1, hidden=(8,))
        loss = recipes.reverse_kl(energy.base, particles=8, anneal=0.5, max_plate_nesting=0)
        return ppgen.fit(energy.model, guide, None, loss=loss, steps=12, compile=False, **options).chains[0]

    whole, file = fitted(), tmp_path / "run.safetensors"
    fitted(checkpoint=file, callbacks=[lambda step: step.stop("enough") if step.number == 5 else None])
    resumed = fitted(checkpoint=file)
    assert len(resumed.history["loss"]) == 12
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in whole.weights.items())


@pytest.mark.parametrize(("option", "message"), [("validation", "no rows"), ("batch_size", "have no batches")])
def test_options_that_need_data_are_refused(option, message):
    energy = ENERGIES["u1"]
    with pytest.raises(ValueError, match=message):
        ppgen.fit(energy.model, AutoFlow(energy.model), None, **{option: {"validation": 0.1, "batch_size": 4}[option]})
