"""Sequential Monte Carlo from a base to the posterior: its parts against closed forms, and its answers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.flows import FLOWS
from ppgen.posterior.hamiltonian import BridgePoints, move
from ppgen.posterior.log_density import UnconstrainedLogDensity
from ppgen.posterior.preconditioning import Preconditioned
from ppgen.posterior.student_mixture import StudentMixture, WithPrior
from ppgen.posterior.tempered_sampling import bridge_evidence, sample_tempered
from ppgen.tracing.double_precision import double_precision
from ppgen.utils.budget import Budget

Y = torch.tensor([1.2, -0.4, 0.9], dtype=torch.float64)
COUNT = len(Y) + 1  # the posterior of m is N(sum y / COUNT, 1 / COUNT)
EVIDENCE = float(
    -0.5 * (Y.square().sum() - Y.sum() ** 2 / COUNT) - 0.5 * len(Y) * math.log(2 * math.pi) - 0.5 * math.log(COUNT)
)
MIXTURE = StudentMixture(
    torch.tensor([0.25, 0.75], dtype=torch.float64),
    torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64),
    torch.tensor([[[1.0, 0.0], [0.5, 0.7]], [[0.4, 0.0], [0.0, 0.4]]], dtype=torch.float64),
)


def conjugate(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def scale(y):
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    w = pyro.sample("w", dist.Normal(0.0, s))
    pyro.sample("y", dist.Normal(w, s).expand([3]).to_event(1), obs=y)


def reads(y):
    """A program that runs once for each point."""
    return scale(y) if float(y[0]) > 0 and pyro.sample("c", dist.Normal(0.0, 1.0)).detach().item() < 1e9 else None


def around(center: float, width: float) -> StudentMixture:
    ones = torch.ones(1, dtype=torch.float64)
    return StudentMixture(ones, center * ones[None], width * ones[None, None])


def preconditioned(program, dim: int, flow: bool = False) -> Preconditioned:
    torch.manual_seed(0)
    with double_precision():
        made = FLOWS["iaf"](dim, hidden=(8,)).requires_grad_(False) if flow else None
    root = torch.eye(dim, dtype=torch.float64) + 0.3 * torch.ones(dim, dim, dtype=torch.float64).tril(-1)
    return Preconditioned(UnconstrainedLogDensity(program, (Y,)), torch.full((dim,), 0.5).double(), root, made)


def test_a_mixture_has_the_density_of_its_parts_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    y = MIXTURE.sample(1000, generator).requires_grad_()
    df = torch.tensor(5.0, dtype=torch.float64)
    parts = [dist.MultivariateStudentT(df, c, r).log_prob(y) for c, r in zip(MIXTURE.center, MIXTURE.root, strict=True)]
    expected = (torch.stack(parts, -1) + MIXTURE.weights.log()).logsumexp(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), y)
    value, found = MIXTURE.log_prob_and_grad(y.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(found, gradient)
    assert abs(int((MIXTURE.part_of(y.detach()) == 0).sum()) - 250) < 40  # systematic, but the parts overlap


@pytest.mark.filterwarnings("ignore:the program reads runs once for each draw")
@pytest.mark.parametrize(("program", "dim"), [(scale, 2), (reads, 3)])
@pytest.mark.parametrize("flow", [False, True])
def test_a_density_in_the_coordinates_of_a_guide_has_the_jacobian_of_the_map(program, dim, flow):
    density = preconditioned(program, dim, flow)
    y = torch.randn(3, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda p: density._map(p[None])[0][0], row) for row in y]
    )
    expected = density.target.log_prob(density.points(y)) + torch.linalg.slogdet(jacobian).logabsdet
    value, gradient = density.log_prob_and_grad(y)
    torch.testing.assert_close(value, expected)
    moves = 1e-5 * torch.eye(dim, dtype=torch.float64)
    for column, move_ in enumerate(moves):
        difference = density.log_prob_and_grad(y + move_)[0] - density.log_prob_and_grad(y - move_)[0]
        torch.testing.assert_close(gradient[:, column], difference / 2e-5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("root", [None, torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)])
def test_a_move_leaves_a_density_between_two_gaussians_invariant(root):
    """Of N(0, I) and N(0, I / 9), means and variances: within 4.5 standard errors (level 3e-5)."""

    def evaluate(y):
        log_b, log_p = -0.5 * y.square().sum(-1), -4.5 * y.square().sum(-1)
        return BridgePoints(y, log_p, log_b, -9 * y, -y)

    generator, beta, n = torch.Generator().manual_seed(0), 0.5, 4000
    y = torch.randn(n, 2, generator=generator, dtype=torch.float64) / 5**0.5
    points, accepted = evaluate(y), None
    for _ in range(3):
        points, accepted = move(points, beta, evaluate, step=0.4, leapfrog_steps=3, generator=generator, root=root)
    assert 0.5 < float(accepted.mean()) < 1.0
    z = 5**0.5 * points.y
    assert float(z.mean(0).abs().max()) < 4.5 / n**0.5
    assert float((z.square().mean(0) - 1).abs().max()) < 4.5 * (2 / n) ** 0.5
    assert abs(float((points.y * y).sum(0).max() / y.square().sum(0).max())) < 0.9  # and moves


def test_a_conjugate_posterior_and_its_evidence_from_a_distant_base():
    """Within 4.5 standard errors (level 3e-5), with the effective sample size that ends the moves."""
    one = torch.eye(1, dtype=torch.float64)
    density = Preconditioned(UnconstrainedLogDensity(conjugate, (Y,)), torch.zeros(1).double(), one)
    generator = torch.Generator().manual_seed(0)
    found = sample_tempered(density, around(6.0, 1.0), chains=4, draws=250, generator=generator)
    assert found.beta == 1.0
    assert found.temperatures > 2
    assert 0 < found.error < 0.3
    assert abs(found.log_marginal - EVIDENCE) < 4.5 * found.error
    z = (found.u[..., 0] - Y.sum() / COUNT) * COUNT**0.5
    assert abs(float(z.mean())) < 4.5 / 400**0.5
    assert abs(float(z.std()) - 1) < 4.5 / 800**0.5


class Hiding:
    """A map x -> y that grows as exp(100 |x|) below -.3, so that a third of a posterior is where no move comes."""

    def __call__(self):
        return self

    def transform_and_log_det(self, y):
        below = (-0.3 - y).clamp(min=0.0)
        return torch.where(y < -0.3, -0.3 - torch.log1p(100 * below) / 100, y), -torch.log1p(100 * below).sum(-1)

    def inverse(self, x):
        return torch.where(x < -0.3, -0.3 - torch.expm1(100 * (-0.3 - x).clamp(min=0.0)) / 100, x)


def test_moves_without_the_flow_find_what_its_coordinates_hide():
    """The mean and the deviation of a Gaussian, within four standard errors of 4000 draws, and its evidence."""
    target = UnconstrainedLogDensity(conjugate, (Y,))
    one = torch.ones(1, 1, dtype=torch.float64)
    density = Preconditioned(target, 0.5 * one[0], one, Hiding())
    generator = torch.Generator().manual_seed(0)
    sample = sample_tempered(density, around(0.0, 0.5), chains=4, draws=1000, generator=generator)
    assert float(sample.u.mean()) == pytest.approx(float(Y.sum()) / COUNT, abs=4 * 0.5 / 4000**0.5 + 0.01)
    assert float(sample.u.std()) == pytest.approx(0.5, abs=0.025)
    assert sample.log_marginal == pytest.approx(EVIDENCE, abs=0.05)
    assert sample.error > 0.1  # the weights saw two thirds of the mass


def test_a_sampler_ends_with_its_budget_and_on_interruption(monkeypatch):
    one = torch.eye(1, dtype=torch.float64)
    density = Preconditioned(UnconstrainedLogDensity(conjugate, (Y,)), torch.zeros(1).double(), one)
    ticks = iter(range(1000))
    options = {"chains": 2, "draws": 100, "generator": torch.Generator().manual_seed(0)}
    found = sample_tempered(density, around(9.0, 0.1), budget=Budget(3.0, clock=lambda: next(ticks)), **options)
    assert 0 < found.beta < 1
    assert "the budget of 3 s was over at beta = 0" in found.stop_reason
    evaluate, calls = Preconditioned.log_prob_and_grad, []

    def interrupted(self, y):
        calls.append(len(y))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(self, y)

    monkeypatch.setattr(Preconditioned, "log_prob_and_grad", interrupted)
    found = sample_tempered(density, around(9.0, 0.1), **options)
    assert found.interrupted
    assert "interrupted at beta" in found.stop_reason
    assert found.u.isfinite().all()


def test_a_base_without_density_is_named():
    def bounded():
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.factor("inside", torch.where(u > 100.0, 0.0, -torch.inf))

    one = torch.eye(1, dtype=torch.float64)
    density = Preconditioned(UnconstrainedLogDensity(bounded), torch.zeros(1).double(), one)
    with pytest.raises(FloatingPointError, match="no density at any of 100 points around the guide"):
        sample_tempered(density, around(0.0, 1.0), chains=2, draws=100, generator=torch.Generator())


def test_bridge_sampling_has_the_evidence_of_a_gaussian():
    """Between N(0, 1) and 20 N(1, .5^2), within 4.5 standard errors (level 3e-5), which are small."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 1000, generator=generator, dtype=torch.float64)
    posterior = 1 + 0.5 * torch.randn(4, 1000, generator=generator, dtype=torch.float64)

    def ratio(y):
        return math.log(20) + dist.Normal(1.0, 0.5).log_prob(y) - dist.Normal(0.0, 1.0).log_prob(y)

    found, error = bridge_evidence(ratio(base), ratio(posterior))
    assert 0 < error < 0.05
    assert abs(found - math.log(20)) < 4.5 * max(error, 0.01)
    base[:, 0] = 1e100  # a draw far out, where p has no mass
    far, _ = bridge_evidence(ratio(base), ratio(posterior))
    assert far == pytest.approx(found, abs=0.01)


def test_a_base_with_a_prior_has_the_density_of_both_and_its_gradient():
    prior = preconditioned(scale, 2)
    base = WithPrior(MIXTURE, prior, torch.zeros(10, 2, dtype=torch.float64), 0.25)
    generator = torch.Generator().manual_seed(0)
    assert int((base.sample(100, generator) == 0).all(-1).sum()) == 25
    y = MIXTURE.sample(20, generator)
    value, gradient = base.log_prob_and_grad(y)
    densities = MIXTURE.log_prob_and_grad(y)[0], prior.log_prob_and_grad(y)[0]
    parts = torch.stack([density + math.log(s) for density, s in zip(densities, (0.75, 0.25), strict=True)])
    torch.testing.assert_close(value, parts.logsumexp(0))
    moves = 1e-5 * torch.eye(2, dtype=torch.float64)
    for column, along in enumerate(moves):
        difference = base.log_prob_and_grad(y + along)[0] - base.log_prob_and_grad(y - along)[0]
        torch.testing.assert_close(gradient[:, column], difference / 2e-5, rtol=1e-4, atol=1e-5)
