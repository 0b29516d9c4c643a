"""Running one program: its joint density, its likelihood, substituted latents."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.poutine.mask_messenger import MaskMessenger

from ppgen.tracing.double_precision import DoublePrecision
from ppgen.tracing.programs import (
    DataPlateSize,
    JointDensity,
    SubstituteLatents,
    check_observation_shapes,
    check_separate_guide,
    get_trace,
    isolated_sites,
    likelihood_of_latent,
    likelihood_sites,
    program_name,
    validation,
)
from ppgen.tracing.sites import latent_sites


def mixture(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        c = pyro.sample("c", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(m + 2 * c, 1.0), obs=x[rows])


def test_the_joint_density_uses_all_rows_and_sums_out_discrete_latents():
    x, m = torch.randn(5), torch.tensor(0.4)
    density = JointDensity(mixture, (x,), lambda site: torch.zeros(()))
    assert list(latent_sites(density.first)) == ["m", "c"]
    components = torch.stack([dist.Normal(m, 1.0).log_prob(x) + torch.tensor(0.7).log()])
    components = torch.cat([components, (dist.Normal(m + 2, 1.0).log_prob(x) + torch.tensor(0.3).log())[None]])
    expected = dist.Normal(0.0, 1.0).log_prob(m) + components.logsumexp(0).sum()
    torch.testing.assert_close(density.log_prob(lambda site: m), expected)


def test_substituted_latents_have_their_values_and_others_are_drawn():
    def program():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(a, 1.0), obs=torch.tensor(3.0))

    seen = []

    def value_of(site):
        seen.append(site["name"])
        return torch.tensor(7.0) if site["name"] == "a" else None

    trace = get_trace(SubstituteLatents(value_of)(program))
    assert seen == ["a", "b"]
    assert trace.nodes["a"]["value"] == 7.0
    assert trace.nodes["b"]["fn"].loc == 7.0
    assert not trace.nodes["a"]["is_observed"]
    assert trace.nodes["x"]["value"] == 3.0


def test_a_program_becomes_the_likelihood_of_one_of_its_latents():
    y = torch.randn(3)

    def program():
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    likelihood, shape, prior = likelihood_of_latent(program, "z", like=torch.zeros(1))
    assert prior.scale == 2.0
    z = torch.randn(4, *shape)
    trace, sites = likelihood_sites(likelihood, z)
    assert list(sites) == ["y"]
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], dist.Normal(z, 1.0).log_prob(y).reshape(4, 3))
    with pytest.raises(ValueError, match="no latent 'q'; there are 'z'"):
        likelihood_of_latent(program, "q", like=torch.zeros(1))
    with pytest.raises(ValueError, match="with observed sites only, got the latents 'z'"):
        likelihood_sites(program)
    with pytest.raises(ValueError, match="without an observed site"):
        likelihood_sites(lambda: None)


def test_isolated_runs_are_hidden_from_outer_handlers():
    with poutine.trace() as outer:
        sites = isolated_sites(mixture, torch.randn(4))
    assert list(sites) == ["m", "c", "x"]
    assert not [name for name, site in outer.trace.nodes.items() if site["type"] == "sample"]


def test_the_size_of_the_data_plate_is_recorded():
    with DataPlateSize() as plate:
        assert plate.size == 1
        mixture(torch.randn(6))
    assert plate.size == 6


def test_a_guide_messenger_is_not_a_separate_guide():
    check_separate_guide(lambda: None, "Sleep")
    with pytest.raises(TypeError, match="Sleep: AutoNormalMessenger runs model and guide together"):
        check_separate_guide(AutoNormalMessenger(mixture), "Sleep")


def test_validation_restores_the_default_of_torch():
    before = torch.distributions.Distribution._validate_args
    try:
        torch.distributions.Distribution.set_default_validate_args(False)
        with validation(True):
            assert torch.distributions.Distribution._validate_args
        assert not torch.distributions.Distribution._validate_args
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@pytest.mark.parametrize(
    ("shape", "refused"),
    [((6,), False), ((6, 1), True), ((1, 6), False), ((), False), ((3, 6), True)],
    ids=["rows", "a column", "one row of the plate's size", "one number for all rows", "a matrix"],
)
def test_observations_that_are_broadcast_against_a_plate_are_refused(shape, refused):
    """Each would count a datum more than once, or give it the density of another row."""

    def program(y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(b + torch.zeros(6), 1.0), obs=y)

    trace = get_trace(program, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"site 'y': observations of shape") if refused else nullcontext():
        check_observation_shapes(trace)


def test_observations_without_a_plate_have_the_shape_of_their_density():
    def program(y):
        pyro.sample("y", dist.Normal(torch.zeros(6), 1.0), obs=y)

    check_observation_shapes(get_trace(program, torch.zeros(6)))
    with pytest.raises(ValueError, match=r"broadcast to densities of shape \(6, 6\)"):
        check_observation_shapes(get_trace(program, torch.zeros(6, 1)))


def test_a_program_has_its_name_inside_handlers():
    for wrap in (DoublePrecision, MaskMessenger(False), lambda program: poutine.block(program, hide=["m"])):
        assert program_name(wrap(mixture)) == "mixture"
        assert program_name(MaskMessenger(False)(DoublePrecision(wrap(mixture)))) == "mixture"
    assert program_name(MaskMessenger(False)(AutoNormal(mixture))) == "AutoNormal"
