"""Distributions that leave out NaN, without a look at values: Pyro's densities, gradients, and closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import grad, vmap

from ppgen.tracing.programs import get_trace

NAN = torch.nan
X = torch.tensor([[0.1, 0.2, 3.4], [0.5, 0.1, NAN], [NAN, 0.5, NAN], [NAN, NAN, NAN]], dtype=torch.double)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 1.2]], dtype=torch.double)
LOC = torch.tensor([0.3, -0.2, 0.1], dtype=torch.double)

FAMILIES = {
    "normal": lambda loc: dist.NanMaskedNormal(loc, 0.5),
    "event": lambda loc: dist.NanMaskedNormal(loc, 0.5).to_event(1),
    "masked": lambda loc: dist.NanMaskedNormal(loc, 0.5).mask(X < 1).to_event(1),
    "expanded": lambda loc: dist.NanMaskedNormal(loc, 0.5).expand([4, 3]).to_event(1),
    "joint": lambda loc: dist.NanMaskedMultivariateNormal(loc, ROOT @ ROOT.mT),
    "joint by its root": lambda loc: dist.NanMaskedMultivariateNormal(loc, scale_tril=ROOT),
}


def replaced(fn):
    """The distribution that a site has in a trace."""
    return get_trace(lambda: pyro.sample("x", fn, obs=X)).nodes["x"]["fn"]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_densities_and_gradients_are_those_of_pyro(family):
    def of_pyro(loc):
        return family(loc).log_prob(X)

    def ours(loc):
        return replaced(family(loc)).log_prob(X)

    torch.testing.assert_close(ours(LOC), of_pyro(LOC))
    expected, found = (torch.autograd.functional.jacobian(f, LOC) for f in (of_pyro, ours))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_it_runs_for_many_draws_at_once(family):
    draws = LOC + torch.arange(5.0, dtype=torch.double)[:, None]
    total = lambda loc: replaced(family(loc)).log_prob(X).sum()  # noqa: E731
    torch.testing.assert_close(vmap(total)(draws), torch.stack([total(loc) for loc in draws]))
    torch.testing.assert_close(vmap(grad(total))(draws), torch.stack([grad(total)(loc) for loc in draws]))


def test_a_row_of_the_joint_density_in_closed_form():
    """Row 1 has the first two numbers, whose covariance is [[1, .5], [.5, .89]]."""
    log_p = replaced(FAMILIES["joint"](torch.zeros(3, dtype=torch.double))).log_prob(X)
    quadratic = (0.25 * 0.89 - 2 * 0.5 * 0.1 * 0.5 + 0.01) / 0.64
    assert log_p[1] == pytest.approx(-math.log(2 * math.pi) - 0.5 * math.log(0.64) - 0.5 * quadratic)
    assert log_p[3] == 0
