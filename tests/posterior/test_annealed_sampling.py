"""Annealed importance sampling bounds the evidence of a conjugate model from both sides."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.diagnostics import bidirectional_ais
from ppgen.posterior.annealed_sampling import ais_bounds
from ppgen.posterior.log_density import UnconstrainedLogDensity


def conjugate(y):
    """m ~ N(0, I) and y_i ~ N(m, I) in the plane."""
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m, 1.0).to_event(1), obs=y)


def exact(y) -> tuple[torch.Tensor, float, float]:
    """The mean and standard deviation of the posterior, and the log evidence."""
    count = len(y) + 1
    mean = y.sum(0) / count
    quadratic = y.square().sum() - count * mean.square().sum()
    return mean, count**-0.5, float(-0.5 * quadratic - len(y) * math.log(2 * math.pi) - math.log(count))


@pytest.fixture
def y() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 2, dtype=torch.float64) + 1


def test_the_bounds_enclose_the_evidence_and_meet(y):
    """With exact draws, each bound holds within 3 standard errors (level 0.003), and the gap closes."""
    mean, sd, evidence = exact(y)
    torch.manual_seed(1)
    posterior = mean + sd * torch.randn(64, 2, dtype=torch.float64)
    gaps = []
    for temperatures in (10, 80):
        base = mean + 1.0, 3 * sd * torch.eye(2, dtype=torch.float64)
        found = ais_bounds(
            UnconstrainedLogDensity(conjugate, (y,)), *base, posterior=posterior, temperatures=temperatures
        )
        assert found.lower - 3 * found.lower_error < evidence < found.upper + 3 * found.upper_error
        gaps.append(found.lower_error + found.upper_error + abs(found.upper - found.lower))
    assert gaps[1] < gaps[0]
    assert gaps[1] < 0.4
    assert found.accepted > 0.7


def test_the_posterior_as_a_base_gives_the_exact_evidence(y):
    mean, sd, evidence = exact(y)
    found = ais_bounds(
        UnconstrainedLogDensity(conjugate, (y,)), mean, sd * torch.eye(2, dtype=torch.float64), temperatures=2
    )
    assert found.lower == pytest.approx(evidence, abs=1e-9)
    assert found.lower_error < 1e-9
    assert math.isnan(found.upper)


def test_the_bounds_of_a_fit_start_from_its_guide(y):
    evidence = exact(y)[-1]
    fit = ppgen.fit(conjugate, "auto", y, progress=False, restarts=2)
    found = bidirectional_ais(fit, y, temperatures=40)
    assert bidirectional_ais(fit, y.numpy(), temperatures=40) == found
    assert found.lower - 3 * found.lower_error < evidence < found.upper + 3 * found.upper_error
    assert abs(found.upper - found.lower) < 0.3


def test_bad_input_is_refused(y):
    target, base = UnconstrainedLogDensity(conjugate, (y,)), (torch.zeros(2).double(), torch.eye(2).double())
    with pytest.raises(ValueError, match="at least two draws and temperatures, got 1 and 100"):
        ais_bounds(target, *base, draws=1)
    with pytest.raises(ValueError, match="at least two draws and temperatures, got 64 and 1"):
        ais_bounds(target, *base, temperatures=1)
