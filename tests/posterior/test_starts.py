"""Starting points: finite ones are found where most of the prior has none, and all are kept."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from ppgen.posterior.auto import search_from
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.newton import find_modes
from ppgen.posterior.starts import initial_points, likely_points
from ppgen.utils.budget import Budget


def upper_bound():
    """Below 6, where five sixths of the prior lie, the data are impossible."""
    u = pyro.sample("u", dist.LogNormal(0.0, 2.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Uniform(0.0, u), obs=torch.tensor([3.0, 6.0, 2.0, 5.0, 1.0]))


def flat():
    """An improper prior, which has no draws; data far from 0."""
    m = pyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
    pyro.sample("y", dist.Uniform(m - 1.0, m + 1.0), obs=torch.tensor(30.0))


def narrow():
    """Two draws of the prior in a hundred have a density, and no point around 0."""
    m = pyro.sample("m", dist.Normal(50.0, 20.0))
    pyro.sample("y", dist.Uniform(m - 0.5, m + 0.5), obs=torch.tensor(50.0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("model", [upper_bound, flat, narrow])
def test_starts_have_a_density_and_differ(model, seed):
    target = UnconstrainedLogDensity(model)
    before = torch.get_rng_state()
    points = initial_points(target, 4, torch.Generator().manual_seed(seed))
    assert points.shape == (4, 1)
    assert target.log_prob(points).isfinite().all()
    assert len(points.unique(dim=0)) == 4
    assert torch.equal(before, torch.get_rng_state())


def test_a_density_that_is_finite_everywhere_starts_uniformly_around_0():
    target = UnconstrainedLogDensity(lambda: pyro.sample("m", dist.Normal(0.0, 1.0).expand([2]).to_event(1)))
    points = initial_points(target, 4, torch.Generator().manual_seed(0))
    expected = 2 * (2 * torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
    torch.testing.assert_close(points, expected[:4])


PRIOR = dist.Normal(0.0, 15.0)
CENTERS, WIDTHS = torch.tensor([-3.0, -1.0, 1.0, 3.0, 20.0]), torch.tensor([0.2, 0.2, 0.2, 0.2, 2.0])
PARTS = dist.MixtureSameFamily(
    dist.Categorical(torch.tensor([0.01, 0.01, 0.01, 0.01, 0.96])), dist.Normal(CENTERS, WIDTHS)
)


def far_from_the_middle():
    """Most of the mass is at 20, and four narrow modes are around 0."""
    m = pyro.sample("m", PRIOR)
    pyro.factor("modes", PARTS.log_prob(m) - PRIOR.log_prob(m))


@pytest.mark.parametrize("seed", range(4))
def test_starts_that_disagree_are_followed_by_likely_draws_of_the_prior(seed):
    target, generator = UnconstrainedLogDensity(far_from_the_middle), torch.Generator().manual_seed(seed)
    starts = initial_points(target, 4, generator)
    modes = search_from(target, starts, generator, Budget())
    assert 1 < len(modes.center) <= 4
    assert float(modes.center[0]) == pytest.approx(20.0, abs=0.1)


def test_starts_that_agree_are_enough():
    target = UnconstrainedLogDensity(lambda: pyro.sample("m", dist.Normal(1.0, 1.0)))
    starts = initial_points(target, 4, torch.Generator().manual_seed(0))
    before = dict(target.evaluations)
    find_modes(target, starts, torch.Generator().manual_seed(0))
    alone = {name: value - before[name] for name, value in target.evaluations.items()}
    before = dict(target.evaluations)
    assert len(search_from(target, starts, torch.Generator().manual_seed(0), Budget()).center) == 1
    assert alone == {name: value - before[name] for name, value in target.evaluations.items()}


def test_an_improper_prior_has_no_likely_points():
    assert likely_points(UnconstrainedLogDensity(flat), 2, torch.Generator()).shape == (0, 1)
